//! From a proposal to a command that has happened, and who leads the group meanwhile.

use crate::event::{Body, Duty, Event, Message};
use crate::group::Pending;
use crate::node::{Node, Purpose};
use crate::seeds::Violation;
use crate::time::{MS, Time};
use crate::world::{World, tell};
use tidemill_core::command::Outcome;
use tidemill_core::{Command, Proposal};

/// How long a proposal is waited for.
const DECIDE: Time = 1_500 * MS;
/// For how long a leader without a majority goes on believing in itself.
const LEASE: Time = 1_000 * MS;

impl World {
    /// Node `index` proposes `command`; what comes of it goes where `purpose` says.
    pub fn propose(&mut self, index: usize, purpose: Purpose, command: Command) {
        self.requests += 1;
        let request = self.requests;
        // What is only true at the moment is late rather often: what a disk has, where a partition stops, what nobody has, who may go.
        let momentary = matches!(
            command,
            Command::PassGap(_) | Command::StopPartition(_) | Command::RemoveNode(_)
        );
        let momentary = momentary || matches!(purpose, Purpose::Keep);
        let odds = if momentary { 1 } else { self.late };
        let late = self.late > 0 && self.dice.one_in(odds + 1);
        let hides = match command {
            Command::PassGap(_) => self.late_gaps,
            Command::SetHoldings(_) => self.late_claims,
            _ => false,
        };
        let late = late || (hides && self.dice.one_in(2));
        let node = &mut self.nodes[index];
        let at_ms = (self.now / MS) as i64 + node.wall_ms;
        let proposal = Box::new(Proposal::new(at_ms, command));
        node.waiting.insert(request, purpose);
        let boot = node.boot;
        match node.leader {
            Some((_, leader)) => {
                let body = Body::Propose { request, proposal };
                if late {
                    let time = self.dice.between(500, 12_000) * MS;
                    let (from, to) = (index, leader);
                    self.after(time, Event::Deliver(Message { from, to, body }));
                } else {
                    self.send(index, leader, body);
                }
                self.after(DECIDE, Event::Duty(index, boot, Duty::GiveUp(request)));
            }
            None => self.after(100 * MS, Event::Duty(index, boot, Duty::GiveUp(request))),
        }
    }

    /// A node that believes that it leads takes a proposal.
    pub fn take_proposal(&mut self, index: usize, asked: (usize, u64), proposal: Proposal) {
        let node = &self.nodes[index];
        let Some((term, _)) = node.leader.filter(|(_, leader)| *leader == index) else {
            let (request, outcome) = (asked.1, None);
            return self.send(index, asked.0, Body::Decided { request, outcome });
        };
        let leader = (index, node.boot);
        let entry = self.group.take(Pending {
            proposal,
            leader,
            term,
            asked,
        });
        let sync = self.nodes[index].sync_time(&mut self.dice);
        // In the order in which they were taken.
        let at = (self.now + sync).max(self.nodes[index].decides_at + 1);
        self.nodes[index].decides_at = at;
        self.after(at - self.now, Event::Decide(entry));
    }

    pub fn decide(&mut self, entry: u64) -> Result<(), Violation> {
        let Some(pending) = self.group.pending.get(&entry).cloned() else {
            return Ok(());
        };
        let (leader, boot) = pending.leader;
        if self.group.term != pending.term {
            // Another leads by now: what of this reached a majority was decided when it was elected.
            self.group.pending.remove(&entry);
            return Ok(());
        }
        let node = &self.nodes[leader];
        let leads = node.up && node.boot == boot && self.group.leader == Some(leader);
        if leads && self.has_majority(leader) {
            self.group.pending.remove(&entry);
            let outcome = self.commit(pending.proposal)?;
            let (to, request) = pending.asked;
            let outcome = Some(outcome);
            self.send(leader, to, Body::Decided { request, outcome });
        }
        // Else it waits, in the logs of those that have it.
        Ok(())
    }

    /// Appends a command to the log: from here on it has happened.
    pub fn commit(&mut self, proposal: Proposal) -> Result<Outcome, Violation> {
        let command = proposal.command.clone();
        let decided = self.group.commit(proposal, self.mutant)?;
        self.tally.commands += 1;
        self.note(3, decided.version as u64);
        tell!(
            self,
            "#{} {} -> {:?}",
            decided.version,
            brief(&command),
            decided.outcome
        );
        match &decided.outcome {
            Ok(_) => self.tally.commits += u64::from(matches!(command, Command::CommitPart(_))),
            Err(_) => self.tally.refusals += 1,
        }
        self.oracle.step(&decided.before, &decided.after)?;
        if decided.outcome.is_ok() {
            self.check_command(&command, &decided.before, &decided.after)?;
        }
        let leader = self.group.leader;
        for index in 0..self.nodes.len() {
            if leader.is_some_and(|leader| self.hears(leader, index)) && self.group.has(index) {
                let boot = self.nodes[index].boot;
                let time = self.dice.between(200, 15_000);
                self.after(time, Event::Apply(index, boot, decided.version));
            }
        }
        let living = self.nodes.iter().filter(|node| !node.gone && !node.joining);
        let oldest = living.map(|node| node.synced.min(node.applied)).min();
        self.group.forget_before(oldest.unwrap_or_default());
        Ok(decided.outcome)
    }

    pub fn tend_group(&mut self) -> Result<(), Violation> {
        let count = self.nodes.len();
        let healthy = self.group.leader.filter(|leader| self.has_majority(*leader));
        for index in 0..count {
            let node = &mut self.nodes[index];
            if !node.up || node.paused {
                continue;
            }
            // Whoever leads without a majority notices in time; whoever was deposed, when he hears of it.
            if node.leader.is_some_and(|(_, leader)| leader == index)
                && healthy != Some(index)
                && self.now >= node.heard_at + LEASE
            {
                node.leader = None;
                node.manager = None;
                self.group.leader = self.group.leader.filter(|leader| *leader != index);
            }
        }
        if let Some(leader) = healthy {
            let term = self.group.term;
            for index in 0..count {
                if !self.hears(leader, index) || !self.group.has(index) {
                    continue;
                }
                let node = &mut self.nodes[index];
                if node.leader != Some((term, leader)) {
                    node.leader = Some((term, leader));
                    if index != leader {
                        node.manager = None;
                    }
                }
                node.heard_at = self.now;
                let (boot, behind) = (node.boot, node.applied < self.group.committed());
                if behind {
                    let (time, version) = (self.dice.between(500, 30_000), self.group.committed());
                    self.after(time, Event::Apply(index, boot, version));
                }
            }
            let waiting: Vec<u64> = self
                .group
                .pending
                .iter()
                .filter(|(_, p)| p.term == term)
                .map(|(n, _)| *n)
                .collect();
            // What waited for a majority goes on, if it is not on its way anyway.
            for entry in waiting {
                self.after(MS, Event::Decide(entry));
            }
            return Ok(());
        }
        let now = self.now;
        let silent = |node: &Node, time: Time| node.heard_at + time <= now;
        let candidates: Vec<usize> = (0..count)
            .filter(|index| {
                let node = &self.nodes[*index];
                let voters = &self.group.voters;
                let agrees = |other: &&usize| self.talk(*index, **other) && silent(&self.nodes[**other], 400 * MS);
                let may = voters.contains(index) && node.up && !node.paused && silent(node, node.patience);
                may && voters.iter().filter(agrees).count() * 2 > voters.len()
            })
            .collect();
        let Some(winner) = self.dice.pick(&candidates).copied() else {
            return Ok(());
        };
        self.elect(winner)
    }

    pub fn elect(&mut self, winner: usize) -> Result<(), Violation> {
        self.group.term += 1;
        self.group.leader = Some(winner);
        let (term, now) = (self.group.term, self.now);
        self.note(4, winner as u64);
        tell!(self, "n{} leads the group in term {term}", winner + 1);
        // What the one before had taken was on the disks of a majority, or was not.
        let open = std::mem::take(&mut self.group.pending);
        for (_, pending) in open {
            if self.dice.one_in(2) {
                // Its proposer was deposed: nobody is told.
                _ = self.commit(pending.proposal)?;
            }
        }
        let version = self.group.committed();
        let state = self.group.tip();
        let patience = self.dice.between(400, 800) * MS;
        let node = &mut self.nodes[winner];
        (node.leader, node.heard_at, node.applied, node.state) = (Some((term, winner)), now, version, state);
        node.patience = patience;
        node.manage(now);
        let boot = node.boot;
        self.after(MS, Event::Duty(winner, boot, Duty::Manage));
        Ok(())
    }
}

/// A command in a few words.
fn brief(command: &Command) -> String {
    match command {
        Command::CommitPart(c) => {
            let spans = c.spans.iter().map(|s| {
                let key = s.key;
                format!(
                    "{}/{}@{} {}..{}",
                    key.pipe, key.partition, key.incarnation, s.start, s.end
                )
            });
            let spans: Vec<String> = spans.collect();
            let holders: Vec<String> = c.holders.iter().map(|h| format!("n{}", h.node)).collect();
            format!(
                "commit {} epoch {} [{}] on {}",
                c.shard,
                c.epoch,
                spans.join(", "),
                holders.join(" ")
            )
        }
        other => format!("{other:?}").chars().take(300).collect(),
    }
}
