//! The memory that ingestion may use on a node, and who uses it.
//!
//! Two shares. *Rows*: what memtables hold and what encoding their cuts takes. *Decoding*: what clients have fetched and
//! consumer threads are turning into columns; each client is given its part of it when it is set up, and keeps within it.
//!
//! Every task has an [`Account`] and says how much its memtable holds whenever that changes. Consumers ask before they
//! read on; writers ask whether theirs is the memtable to flush first, and wait for their turn to encode. So rows go
//! beyond their share by one run for each consumer at most, since they are counted once they are decoded. An account
//! that nobody holds any more counts for nothing.
//!
//! The memtable of a standby gives way long before: its rows are a copy, and no leader flushes earlier because of them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tidemill_storage::memtable::{Memtable, MemtableStats};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The largest memtable is flushed before its time when what is in no cut yet, and that memtable once more for its
/// encoding, take this share of the room for rows. What is left is for the rows that come meanwhile.
const FLUSH_AT_PERCENT: u64 = 60;
/// Standbys give way when this share of the room for rows is used.
const YIELD_AT_PERCENT: u64 = 50;
/// Cuts of so much of the share, one over `ENCODING`, are encoded at a time; a larger one alone.
const ENCODING: u64 = 3;
/// Encoding takes turns in units of so many bytes.
const UNIT: u64 = 64 << 10;
/// A client gets one over `CLIENTS` of the share for decoding, or of what is left of it one over `LATER_CLIENTS`,
const CLIENTS: u64 = 8;
const LATER_CLIENTS: u64 = 4;
/// within these bounds: with less it cannot work, and more does not make it faster.
const CLIENT_BYTES: (u64, u64) = (3 << 19, 96 << 20);

/// Bytes that ingestion uses, against its shares.
#[derive(Debug)]
pub struct Budget {
    rows: u64,
    decoding: u64,
    accounts: Mutex<Vec<Weak<Holding>>>,
    turns: Arc<Semaphore>,
    encoding: AtomicU64,
    fetching: AtomicU64,
}

/// What a memtable holds.
#[derive(Debug, Default)]
struct Holding {
    all: AtomicU64,
    /// Of it, what is not in a cut yet.
    uncut: AtomicU64,
    /// Whether it is a standby's.
    yields: AtomicBool,
}

/// Bytes in use, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Rows in memtables.
    pub memtables: u64,
    /// Cuts that are being encoded, and files that are not committed yet.
    pub encoding: u64,
    /// Given to clients and their consumer threads.
    pub decoding: u64,
}

/// What one memtable uses.
#[derive(Clone, Debug)]
pub struct Account {
    budget: Arc<Budget>,
    holding: Arc<Holding>,
}

impl Budget {
    /// A budget with so many bytes for rows and for decoding, none of them used.
    pub fn new(rows: u64, decoding: u64) -> Self {
        let turns = (rows / ENCODING / UNIT).clamp(1, Semaphore::MAX_PERMITS as u64);
        Self {
            rows,
            decoding,
            accounts: Mutex::default(),
            turns: Arc::new(Semaphore::new(turns as usize)),
            encoding: AtomicU64::new(0),
            fetching: AtomicU64::new(0),
        }
    }

    /// A new account, empty.
    pub fn open(self: &Arc<Self>) -> Account {
        let holding = Arc::new(Holding::default());
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.retain(|account| account.strong_count() > 0);
        accounts.push(Arc::downgrade(&holding));
        Account {
            budget: self.clone(),
            holding,
        }
    }

    fn each(&self) -> Vec<Arc<Holding>> {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.iter().filter_map(Weak::upgrade).collect()
    }

    /// What memtables that are flushed have in no cut yet, and the most of that in one of them.
    fn uncut(&self) -> (u64, u64) {
        let flushed = self.each().into_iter().filter(|holding| !holding.yields());
        flushed.fold((0, 0), |(uncut, largest), holding| {
            let own = holding.uncut.load(Ordering::Relaxed);
            (uncut + own, largest.max(own))
        })
    }

    /// Bytes in use.
    pub fn used(&self) -> Used {
        let memtables = self.each().into_iter();
        Used {
            memtables: memtables.map(|holding| holding.all.load(Ordering::Relaxed)).sum(),
            encoding: self.encoding.load(Ordering::Relaxed),
            decoding: self.fetching.load(Ordering::Relaxed),
        }
    }

    /// Whether so much of the room for rows is used.
    fn is_used_to(&self, percent: u64) -> bool {
        let used = self.used();
        (used.memtables + used.encoding) * 100 >= self.rows * percent
    }

    /// Whether consumers have to wait.
    pub fn is_spent(&self) -> bool {
        self.is_used_to(100)
    }

    /// The part of a new client.
    fn fetch(self: &Arc<Self>) -> Fetching {
        let part = |given: u64| {
            let left = self.decoding.saturating_sub(given);
            let part = (self.decoding / CLIENTS).min(left / LATER_CLIENTS);
            part.clamp(CLIENT_BYTES.0, CLIENT_BYTES.1)
        };
        let take = |given| Some(given + part(given));
        let before = self
            .fetching
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .unwrap_or_else(|given| given);
        Fetching {
            budget: self.clone(),
            bytes: part(before),
        }
    }
}

impl Holding {
    fn yields(&self) -> bool {
        self.yields.load(Ordering::Relaxed)
    }
}

impl Account {
    /// Takes note of what its memtable holds now.
    pub fn observe(&self, memtable: &Memtable) -> MemtableStats {
        let stats = memtable.stats();
        self.report(stats.bytes, stats.uncut_bytes);
        stats
    }

    /// Says how many bytes its memtable has now, and how many of them are not in a cut.
    pub fn report(&self, bytes: u64, uncut_bytes: u64) {
        self.holding.all.store(bytes, Ordering::Relaxed);
        self.holding.uncut.store(uncut_bytes, Ordering::Relaxed);
    }

    /// Says whether it is a standby's.
    pub fn set_yields(&self, yields: bool) {
        self.holding.yields.store(yields, Ordering::Relaxed);
    }

    /// Whether it is a standby's, and memory is so short that it has to give back what it holds.
    pub fn must_yield(&self) -> bool {
        self.holding.yields() && self.budget.is_used_to(YIELD_AT_PERCENT)
    }

    /// Whether consumers have to wait.
    pub fn is_spent(&self) -> bool {
        self.budget.is_spent()
    }

    /// Whether memory is short, and no memtable has more that could be flushed.
    pub fn should_flush(&self) -> bool {
        let own = self.holding.uncut.load(Ordering::Relaxed);
        let (uncut, largest) = self.budget.uncut();
        let short = (uncut + largest) * 100 >= self.budget.rows * FLUSH_AT_PERCENT;
        own > 0 && own >= largest && short
    }

    /// Waits until `bytes` of rows may be encoded. That takes about as much again.
    pub async fn encode(&self, bytes: u64) -> Encoding {
        let all = (self.budget.rows / ENCODING / UNIT).max(1);
        let turns = bytes.div_ceil(UNIT).clamp(1, all).min(u64::from(u32::MAX)) as u32;
        let turn = self.budget.turns.clone().acquire_many_owned(turns).await;
        self.budget.encoding.fetch_add(bytes, Ordering::Relaxed);
        Encoding {
            budget: self.budget.clone(),
            bytes,
            // The semaphore is never closed.
            turn: turn.ok(),
        }
    }

    /// The part of a new client in the memory for decoding.
    pub(crate) fn fetch(&self) -> Fetching {
        self.budget.fetch()
    }
}

/// The memory of a cut that is being encoded, and then of its files, until it is dropped.
#[derive(Debug)]
pub struct Encoding {
    budget: Arc<Budget>,
    bytes: u64,
    turn: Option<OwnedSemaphorePermit>,
}

impl Encoding {
    /// It is done: what remains are files of so many bytes, and it is the turn of others.
    pub fn keep(&mut self, bytes: u64) {
        self.budget.encoding.fetch_add(bytes, Ordering::Relaxed);
        self.budget.encoding.fetch_sub(self.bytes, Ordering::Relaxed);
        (self.bytes, self.turn) = (bytes, None);
    }
}

impl Drop for Encoding {
    fn drop(&mut self) {
        self.budget.encoding.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What a client and its consumer thread may use, until it is dropped.
#[derive(Debug)]
pub(crate) struct Fetching {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Fetching {
    /// The payload that a client may have fetched, and as much again is decoded at once. A third of all: the client keeps
    /// a note of each record that may be larger than the record, and columns grow by doubling.
    pub(crate) fn payload(&self) -> u64 {
        self.bytes / 3
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.budget.fetching.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_largest_memtable_goes_first_and_consumers_wait_at_the_limit() {
        let budget = Arc::new(Budget::new(100, 0));
        let (a, b) = (budget.open(), budget.open());
        a.report(20, 20);
        b.report(10, 10);
        assert!(!a.should_flush());
        b.report(21, 21);
        assert!(b.should_flush() && !a.should_flush());
        // What is in a cut is on its way already, and flushing others makes no more room.
        b.report(79, 9);
        assert!(!a.should_flush() && !b.should_flush());
        assert!(!budget.is_spent());
        a.report(21, 21);
        assert!(a.is_spent() && b.is_spent());
        drop(b);
        assert_eq!(budget.used().memtables, 21);
    }

    #[test]
    fn whatever_spends_all_can_be_flushed() {
        // Nobody flushes, so nothing is in a cut and nothing is encoded: then some memtable must be due.
        let budget = Arc::new(Budget::new(100, 0));
        let accounts: Vec<Account> = (0..50).map(|_| budget.open()).collect();
        accounts.iter().for_each(|account| account.report(2, 2));
        assert!(budget.is_spent() && accounts.iter().all(Account::should_flush));
    }

    #[tokio::test]
    async fn cuts_are_encoded_as_far_as_there_is_room_and_files_count_until_they_are_committed() {
        let budget = Arc::new(Budget::new(30 * MIB, 0));
        let account = budget.open();
        let mut first = account.encode(8 * MIB).await;
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(20), account.encode(4 * MIB));
        assert!(waiting.await.is_err(), "there is room for 10 MiB");
        assert_eq!(budget.used().encoding, 8 * MIB);
        first.keep(3 * MIB);
        // A cut that is larger than all the room has its turn as well.
        let second = account.encode(40 * MIB).await;
        assert_eq!(budget.used().encoding, 43 * MIB);
        assert!(budget.is_spent());
        drop((first, second));
        assert_eq!(budget.used().encoding, 0);
    }

    #[test]
    fn clients_share_what_there_is_and_each_can_work() {
        let budget = Arc::new(Budget::new(0, 64 * MIB));
        let account = budget.open();
        let mut clients: Vec<Fetching> = (0..6).map(|_| account.fetch()).collect();
        assert_eq!(clients[0].bytes, 8 * MIB);
        assert!(clients[5].bytes < 8 * MIB);
        assert!(budget.used().decoding <= 64 * MIB);
        clients.extend((0..60).map(|_| account.fetch()));
        assert!(clients.iter().all(|client| client.payload() >= MIB / 2));
        drop(clients);
        assert_eq!(budget.used().decoding, 0);
    }

    #[test]
    fn a_standby_gives_way_first_and_is_never_waited_for() {
        let budget = Arc::new(Budget::new(100, 0));
        let (leader, standby) = (budget.open(), budget.open());
        standby.set_yields(true);
        leader.report(20, 20);
        standby.report(29, 29);
        assert!(!standby.must_yield());
        standby.report(30, 30);
        assert!(
            standby.must_yield() && !leader.must_yield(),
            "a leader keeps what it has"
        );
        assert!(
            !leader.should_flush(),
            "a leader flushes before a standby has given way"
        );
        leader.report(30, 30);
        standby.report(60, 60);
        assert!(leader.should_flush(), "it waits for a memtable that is never flushed");
        standby.set_yields(false);
        assert!(!leader.should_flush(), "one that leads is flushed in its turn");
        assert!(standby.should_flush() && !standby.must_yield());
    }

    #[tokio::test]
    async fn what_is_encoded_is_room_that_standbys_do_not_have() {
        let budget = Arc::new(Budget::new(30 * MIB, 0));
        let (leader, standby) = (budget.open(), budget.open());
        standby.set_yields(true);
        standby.report(8 * MIB, 8 * MIB);
        assert!(!standby.must_yield());
        let cut = leader.encode(7 * MIB).await;
        assert!(standby.must_yield());
        drop(cut);
        assert!(!standby.must_yield());
    }
}
