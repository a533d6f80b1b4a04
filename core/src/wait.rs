//! What keeps a partition from going on, as its task sees it.
//!
//! People read the text; the manager goes by the kind: a task that waits for something that it would wait for on any node is
//! left alone, one that only stands still is replaced.

use std::fmt;

/// See the module's page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The broker does not answer this node, or has nobody that leads the partition.
    Broker(String),
    /// A transaction at the source that is open.
    Transaction {
        /// For how many seconds.
        seconds: u64,
        /// How many offsets it holds back.
        offsets: i64,
        /// From which one on.
        from: i64,
    },
    /// Memory: rows that are not committed are at their limit.
    Memory,
    /// Others are read first.
    Turn,
    /// Its parts cannot become durable.
    PartStore(String),
    /// The client cannot give records, or cannot be set up.
    Client(String),
    /// To be assigned anew.
    Assignment(String),
    /// An operator, who says how it goes on.
    Operator(String),
    /// Nothing: everything that it shall read is read.
    Done,
}

/// The kinds of [`Wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is described at the wait of its name")]
pub enum WaitKind {
    Broker,
    Transaction,
    Memory,
    Turn,
    PartStore,
    Client,
    Assignment,
    Operator,
    Done,
}

impl Wait {
    /// Its kind.
    pub fn kind(&self) -> WaitKind {
        match self {
            Wait::Broker(_) => WaitKind::Broker,
            Wait::Transaction { .. } => WaitKind::Transaction,
            Wait::Memory => WaitKind::Memory,
            Wait::Turn => WaitKind::Turn,
            Wait::PartStore(_) => WaitKind::PartStore,
            Wait::Client(_) => WaitKind::Client,
            Wait::Assignment(_) => WaitKind::Assignment,
            Wait::Operator(_) => WaitKind::Operator,
            Wait::Done => WaitKind::Done,
        }
    }
}

impl WaitKind {
    /// Its name, as shown.
    pub fn name(self) -> &'static str {
        match self {
            WaitKind::Broker => "broker",
            WaitKind::Transaction => "transaction",
            WaitKind::Memory => "memory",
            WaitKind::Turn => "turn",
            WaitKind::PartStore => "part store",
            WaitKind::Client => "client",
            WaitKind::Assignment => "assignment",
            WaitKind::Operator => "operator",
            WaitKind::Done => "done",
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wait::Broker(why) => write!(f, "the broker: {why}"),
            Wait::Transaction { seconds, offsets, from } => write!(
                f,
                "a transaction at the source that has been open for {seconds} s: it holds back {offsets} offsets from {from} on"
            ),
            Wait::Memory => f.write_str("memory: the rows of this node that are not committed are at their limit"),
            Wait::Turn => {
                f.write_str("its turn: other partitions of this node, whose records expire soon, are read first")
            }
            Wait::PartStore(why) => write!(f, "its parts to become durable: {why}"),
            Wait::Client(why) => write!(f, "the Kafka client: {why}"),
            Wait::Assignment(why) | Wait::Operator(why) => f.write_str(why),
            Wait::Done => f.write_str("nothing: everything that it shall read is read"),
        }
    }
}
