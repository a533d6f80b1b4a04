//! Newtypes for every number and identifier, so that two of different meaning never mix.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The next value. Saturates: these counters start near zero and grow by one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! uuid {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                u128::from_str_radix(text, 16).map(Self)
            }
        }

        // Written as 32 hexadecimal digits: MessagePack has no 128-bit integer, and people read these.
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

number!(/// A node of the cluster. Given out by the catalog, never used twice.
    NodeId(u64));
number!(/// A table.
    TableId(u64));
number!(/// A pipe: a source connected to a table.
    PipeId(u64));
number!(/// A partition of a pipe's source, with the source's own number.
    PartitionId(u32));
number!(/// A position in a source partition: the number of a record, counted by the source.
    Offset(u64));
number!(/// The term of office of a shard's leader; grows by one at every change.
    Epoch(u64));
number!(/// The number of a (pipe, partition) life; work begun in an earlier one cannot be committed.
    Incarnation(u64));
number!(/// A state of the catalog: the Raft log index of the last command applied to it.
    Version(u64));
number!(/// A program that writes rows into a table itself. Given out by the catalog, never used twice.
    WriterId(u64));
number!(/// A version of a table's columns.
    SchemaVersion(u32));

uuid!(/// One part file.
    PartId);
uuid!(/// One attempt to commit, repeated unchanged when its answer was lost.
    CommitId);
uuid!(/// A data folder: made when the folder is, so that a wiped node is a different one.
    InstanceId);
uuid!(/// A disk for part files: made when its folder is, so that an emptied one is a different one.
    DiskId);
uuid!(/// One run of a node's process; another one when all its tasks have stopped since no manager was heard.
    BootId);
uuid!(/// One wish for a writer, repeated unchanged when its answer was lost.
    WriterToken);
uuid!(/// A cluster, named once when it is founded.
    ClusterId);
uuid!(/// A topic as its broker knows it (KIP-516): a topic created again under the same name has another.
    TopicId);

/// The unit of placement and of writing: one slice of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId {
    /// The table.
    pub table: TableId,
    /// Which of its shards, from 0.
    pub index: u32,
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.table, self.index)
    }
}
