//! What clients do while things break: each workload has tables, topics and operations of its own, and writes down every one of them.
//!
//! A workload does not judge. It knows what it asked and what it was told; what must follow from that is the matter of the
//! checkers, which read the history alone.

pub mod acked;
mod clerk;
pub mod operators;
mod readers;
mod registers;
pub mod stage;
mod topics;
mod writers;

use self::stage::Stage;
use std::future::Future;
use std::pin::Pin;

/// What a workload's tasks come to; an error is one of the harness, not of what it tests.
pub type Work = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// See the module's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Workload {
    /// Values that grow by one for each key and partition
    Counter,
    /// Transactions, of which some are aborted
    Transactions,
    /// A topic that is compacted while it is read, tombstones and undecodable records among its records
    Compacted,
    /// Programs that write rows themselves, with each level of acknowledgement
    Writers,
    /// Settings of tables, written and read by several at once
    Registers,
    /// A pipe that is paused, resumed, altered and read anew
    Operators,
    /// A topic that gets more partitions
    Growth,
    /// Tables and pipes that are created, filled and dropped again
    CreateDrop,
}

impl Workload {
    /// All of them.
    pub const ALL: [Workload; 8] = [
        Workload::Counter,
        Workload::Transactions,
        Workload::Compacted,
        Workload::Writers,
        Workload::Registers,
        Workload::Operators,
        Workload::Growth,
        Workload::CreateDrop,
    ];

    /// Its name in histories and reports.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Counter => "counter",
            Workload::Transactions => "transactions",
            Workload::Compacted => "compacted",
            Workload::Writers => "writers",
            Workload::Registers => "registers",
            Workload::Operators => "operators",
            Workload::Growth => "growth",
            Workload::CreateDrop => "create-drop",
        }
    }

    /// Operations of which at least one of each must have succeeded, or the run proves nothing: see [`crate::history::Requires`].
    pub fn requires(self) -> &'static [&'static str] {
        match self {
            Workload::Counter => &["produce counter", "read counter"],
            Workload::Transactions => &[
                "transaction transactions commit=true",
                "transaction transactions commit=false",
                "read transactions",
            ],
            Workload::Compacted => &["produce compacted", "tombstone compacted", "read compacted"],
            Workload::Writers => &[
                "write written_all",
                "write written_leader",
                "write written_none",
                "read written_all",
                "read written_leader",
                "read written_none",
            ],
            Workload::Registers => &["set register", "get register"],
            Workload::Operators => &[
                "produce operated",
                "operate operated PAUSE",
                "operate operated RESUME",
                "operate operated SET",
                "operate operated RESET",
                "operate operated SKIP",
                "read operated",
            ],
            Workload::Growth => &["produce growing", "grow growing", "read growing"],
            Workload::CreateDrop => &["operate generation", "read generation"],
        }
    }

    /// Those of them that must have succeeded after everything was mended, too: what clients do all the time.
    pub fn goes_on(self) -> impl Iterator<Item = &'static str> {
        let always = |f: &str| matches!(f, "produce" | "transaction" | "write" | "read" | "set" | "get");
        let required = self.requires().iter().copied();
        // A generation may not be done by the end, and of the last few transactions none may have been aborted.
        let required = required.filter(move |required| {
            let f = required.split(' ').next().unwrap_or_default();
            always(f) && self != Workload::CreateDrop
        });
        required.map(|required| required.split(" commit=").next().unwrap_or(required))
    }

    /// Creates what it needs.
    ///
    /// # Errors
    /// If that fails; nothing is broken at that time.
    pub async fn prepare(self, stage: &Stage) -> anyhow::Result<()> {
        match self {
            Workload::Counter => topics::prepare(stage, topics::COUNTER).await,
            Workload::Transactions => topics::prepare(stage, topics::TRANSACTIONS).await,
            Workload::Compacted => topics::prepare(stage, topics::COMPACTED).await,
            Workload::Growth => topics::prepare(stage, topics::GROWING).await,
            Workload::Operators => topics::prepare(stage, topics::OPERATED).await,
            Workload::Writers => writers::prepare(stage).await,
            Workload::Registers => registers::prepare(stage).await,
            Workload::CreateDrop => operators::prepare_create_drop(stage).await,
        }
    }

    /// Its clients. Each ends soon after the stage says that it is over.
    ///
    /// # Errors
    /// If a client cannot be started.
    pub async fn start(self, stage: &Stage) -> anyhow::Result<Vec<Work>> {
        match self {
            Workload::Counter => topics::count(stage, topics::COUNTER, 48).await,
            Workload::Transactions => topics::transact(stage, 3).await,
            Workload::Compacted => topics::compact(stage).await,
            Workload::Growth => topics::grow(stage).await,
            Workload::Operators => operators::operate(stage).await,
            Workload::Writers => writers::write(stage).await,
            Workload::Registers => registers::set_and_get(stage),
            Workload::CreateDrop => Ok(vec![operators::create_drop(stage.clone())]),
        }
    }

    /// Writes down what is there in the end: the log as an independent client reads it, and the rows of the table.
    ///
    /// # Errors
    /// If that cannot be found out.
    pub async fn collect(self, stage: &Stage) -> anyhow::Result<()> {
        match self {
            Workload::Counter => clerk::pipe(stage, topics::COUNTER.name).await,
            Workload::Transactions => clerk::pipe(stage, topics::TRANSACTIONS.name).await,
            Workload::Compacted => clerk::pipe(stage, topics::COMPACTED.name).await,
            Workload::Growth => clerk::pipe(stage, topics::GROWING.name).await,
            Workload::Operators => clerk::pipe(stage, topics::OPERATED.name).await,
            Workload::Writers => writers::collect(stage).await,
            Workload::CreateDrop => clerk::pipe(stage, operators::STILL_TOPIC).await,
            // What they were told is all that there is to know.
            Workload::Registers => Ok(()),
        }
    }

    /// The pipes that must have caught up in the end.
    pub fn pipes(self) -> &'static [&'static str] {
        match self {
            Workload::Counter => &[topics::COUNTER.name],
            Workload::Transactions => &[topics::TRANSACTIONS.name],
            Workload::Compacted => &[topics::COMPACTED.name],
            Workload::Growth => &[topics::GROWING.name],
            Workload::Operators => &[topics::OPERATED.name],
            Workload::CreateDrop => &[operators::STILL_TOPIC],
            Workload::Writers | Workload::Registers => &[],
        }
    }

    /// The topic that faults of the log are for, if it has one.
    pub fn topic(self) -> Option<&'static str> {
        // What nobody writes any more must stay as it is, so that it is known what a table filled from it has to hold.
        self.pipes().first().copied().filter(|_| self != Workload::CreateDrop)
    }
}
