//! A fault under way: what has to be mended, in which order, and what has to be said about it.

use super::Fault;
use super::brokers::Topic;
use super::{brokers, combined, damage, disks, process};
use crate::history::{self, History};
use crate::world::World;
use anyhow::Context;
use rand::rngs::StdRng;
use serde_json::Value;
use std::fmt;
use std::process::Child;
use std::time::Duration;

/// How long a process may take to end or to be ready.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Something that mends itself when it is dropped.
pub(super) trait Guard: Send + Sync {}
impl<T: Send + Sync> Guard for T {}

/// What is done when a fault ends.
pub(super) enum After {
    /// Dropped.
    Mend(Box<dyn Guard>),
    /// A node is started if it does not run.
    Start(usize),
    /// A node that loses what its disk lied about.
    Betray(usize),
    /// The damaged write-ahead log of a node is moved away.
    MoveLogAway(usize),
    /// A node that has nothing, or nothing that it can start with, joins as a new one.
    JoinAnew(usize),
    /// A node may not be able to start with what it has; then the same.
    StartOrJoinAnew(usize),
    /// A node is being replaced by another.
    Replaced(usize, Child),
    /// A broker is started if it does not run.
    StartBroker(u32),
    /// Those lead that are meant to.
    PreferredLeaders,
    /// A topic, as it was, has these settings as it had them.
    Restore(Topic, &'static [&'static str]),
    /// Another fault ends.
    End(Box<Running>),
    /// What has gone of a topic since these were its earliest offsets.
    TellExpired(String, Vec<(u32, u64)>),
}

/// A fault under way. See [`Fault::begin`].
#[must_use = "a fault ends when this is dropped, as far as it can without the world"]
pub struct Running {
    fault: Fault,
    target: Value,
    after: Vec<After>,
    /// Last: the history says that it has ended when it has.
    told: Option<history::Fault>,
    history: History,
}

impl fmt::Debug for Running {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} of {}", self.fault, self.target)
    }
}

impl Running {
    /// Which one it is.
    pub fn fault(&self) -> Fault {
        self.fault
    }

    /// Who was struck, and how.
    pub fn target(&self) -> &Value {
        &self.target
    }

    /// Ends it: what was broken is mended, and what has ended is started, but not waited for.
    ///
    /// # Errors
    /// If something cannot be mended.
    pub async fn end(mut self, world: &mut World) -> anyhow::Result<()> {
        for after in std::mem::take(&mut self.after) {
            mend(after, world, &self.history)
                .await
                .with_context(|| format!("{} could not end", self.fault))?;
        }
        self.told = None;
        Ok(())
    }
}

async fn mend(after: After, world: &mut World, history: &History) -> anyhow::Result<()> {
    match after {
        After::Mend(guard) => drop(guard),
        After::Start(node) => process::start(world, node)?,
        After::Betray(node) => disks::betray(world, node)?,
        After::MoveLogAway(node) => damage::move_log_away(world, node).await?,
        After::JoinAnew(node) => damage::join_anew(world, node).await?,
        After::StartOrJoinAnew(node) => damage::start_or_join_anew(world, node).await?,
        After::Replaced(old, child) => process::replaced(world, old, child).await?,
        After::End(running) => Box::pin(running.end(world)).await?,
        After::StartBroker(broker) => brokers::start(world, broker)?,
        After::PreferredLeaders => brokers::prefer(world).await?,
        After::Restore(topic, changed) => brokers::restore(world, &topic, changed)?,
        After::TellExpired(topic, before) => brokers::tell_expired(world, history, &topic, &before)?,
    }
    Ok(())
}

/// A fault that begins, and all that it has at hand.
pub(super) struct Stroke<'a> {
    pub world: &'a mut World,
    pub rng: &'a mut StdRng,
    running: Running,
}

impl<'a> Stroke<'a> {
    pub fn new(fault: Fault, world: &'a mut World, rng: &'a mut StdRng, history: &History) -> Self {
        let running = Running {
            fault,
            target: Value::Null,
            after: vec![],
            told: None,
            history: history.clone(),
        };
        Self { world, rng, running }
    }

    pub fn into_running(self) -> Running {
        self.running
    }

    pub fn fault(&self) -> Fault {
        self.running.fault
    }

    pub fn history(&self) -> &History {
        &self.running.history
    }

    /// Says in the history who is struck: to be called right before.
    pub fn tell(&mut self, target: Value) {
        let running = &mut self.running;
        running.told = Some(running.history.fault(running.fault.name(), target.clone()));
        running.target = target;
    }

    /// What is to be done at the end, after what was said before.
    pub fn after(&mut self, after: After) {
        self.running.after.push(after);
    }

    /// What is to be dropped at the end.
    pub fn until_the_end(&mut self, guard: impl Guard + 'static) {
        self.after(After::Mend(Box::new(guard)));
    }

    pub async fn strike(&mut self) -> anyhow::Result<()> {
        use Fault::*;
        match self.fault() {
            Kill | KillAll | Pause | Terminate | RollingRestart | ReplaceNode => process::strike(self).await,
            Cut | CutOneWay | CutBrokers | Isolate | IsolateOneWay | Split | Ring | Unplug | Loss | Delay | Jitter
            | Bandwidth | HalfOpen | Resets | Duplication => super::wires::strike(self).await,
            SlowSync | FailingSync | FailingSyncs | LyingSync | PowerCut | DiskFull | ReadErrors | ClockJump
            | ClockDrift => disks::strike(self),
            CorruptParts | TruncateParts | CorruptWal | TruncateWal | CorruptRaftLog | WipeDisk => {
                damage::strike(self).await
            }
            KillBroker | PauseBroker | MoveLeaders | UncleanElection | Retention | DeleteRecords | RecreateTopic
            | GrowTopic => brokers::strike(self).await,
            Combined => combined::strike(self).await,
        }
    }
}
