//! What the brokers say of a topic, and what lies on their disks.

use super::kafka;
use crate::world::World;
use anyhow::Context;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A batch of records begins with its first offset and its length, and has the number of its last record at byte 23.
/// See the [message format](https://kafka.apache.org/documentation/#recordbatch).
const LENGTH_AT: u64 = 8;
const LAST_AT: u64 = 23;

/// A topic as `topic describe` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// What tells it from another of the same name.
    pub id: String,
    /// Copies of each partition.
    pub replication: u32,
    /// Settings, separated by commas.
    pub settings: String,
    /// In their order.
    pub partitions: Vec<Partition>,
}

/// A partition of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partition {
    /// The broker that leads it, if one does.
    pub leader: Option<u32>,
    /// Brokers that have a copy, the one that is meant to lead first.
    pub replicas: Vec<u32>,
    /// Those of them that have everything.
    pub in_sync: Vec<u32>,
}

/// What follows `name` in a line of words and tabs.
fn word<'t>(line: &'t str, name: &str) -> Option<&'t str> {
    let rest = line.split(name).nth(1)?;
    rest.split(['\t', ' ']).find(|word| !word.is_empty())
}

fn numbers(text: Option<&str>) -> Vec<u32> {
    text.into_iter()
        .flat_map(|text| text.split(','))
        .filter_map(|n| n.parse().ok())
        .collect()
}

impl Topic {
    /// Asks the brokers.
    ///
    /// # Errors
    /// If there is no such topic.
    pub fn look(world: &World, name: &str) -> anyhow::Result<Self> {
        Self::read(&kafka(world, &["topic", "describe", name])?).with_context(|| format!("the topic {name}"))
    }

    fn read(said: &str) -> Option<Self> {
        let head = said.lines().find(|line| line.contains("PartitionCount:"))?;
        let partitions = said.lines().filter(|line| line.contains("Leader:"));
        Some(Self {
            name: word(head, "Topic:")?.to_owned(),
            id: word(head, "TopicId:")?.to_owned(),
            replication: word(head, "ReplicationFactor:")?.parse().ok()?,
            settings: word(head, "Configs:").unwrap_or_default().to_owned(),
            partitions: partitions
                .map(|line| Partition {
                    leader: word(line, "Leader:").and_then(|leader| leader.parse().ok()),
                    replicas: numbers(word(line, "Replicas:")),
                    in_sync: numbers(word(line, "Isr:")),
                })
                .collect(),
        })
    }

    /// The partitions that a broker leads.
    pub fn led_by(&self, broker: u32) -> impl Iterator<Item = u32> + '_ {
        let led = move |partition: &Partition| partition.leader == Some(broker);
        (0..)
            .zip(&self.partitions)
            .filter(move |(_, partition)| led(partition))
            .map(|(i, _)| i)
    }

    /// Creates one like it.
    ///
    /// # Errors
    /// If the brokers refuse, for instance because this one is still there.
    pub fn create(&self, world: &World) -> anyhow::Result<()> {
        let (partitions, replication) = (self.partitions.len().to_string(), self.replication.to_string());
        let mut words = vec![
            "topic",
            "create",
            &self.name,
            "--partitions",
            &partitions,
            "--replication",
            &replication,
        ];
        let settings = self.settings.split(',').filter(|setting| !setting.is_empty());
        words.extend(settings.flat_map(|setting| ["--config", setting]));
        kafka(world, &words).map(drop)
    }
}

/// The earliest offset of each partition.
pub(super) fn earliest(world: &World, topic: &str) -> anyhow::Result<Vec<(u32, u64)>> {
    offsets(world, &["offsets", topic, "--earliest"])
}

/// The offset of the next record of each partition.
pub(super) fn latest(world: &World, topic: &str) -> anyhow::Result<Vec<(u32, u64)>> {
    offsets(world, &["offsets", topic])
}

fn offsets(world: &World, arguments: &[&str]) -> anyhow::Result<Vec<(u32, u64)>> {
    let said = kafka(world, arguments)?;
    let line = |line: &str| {
        let mut words = line.rsplit(':');
        let offset = words.next()?.trim().parse().ok()?;
        Some((words.next()?.parse().ok()?, offset))
    };
    Ok(said.lines().filter_map(line).collect())
}

/// A log of a topic on the disk of a broker.
#[derive(Debug, PartialEq, Eq)]
pub struct Kept {
    pub partition: u32,
    /// Whether it is set aside, to be deleted.
    pub deleted: bool,
    /// The offset after its last record.
    pub end: u64,
}

/// What a broker with this folder has of this very topic, and not of another of its name.
pub fn kept(data: &Path, topic: &Topic) -> Vec<Kept> {
    let folders = fs::read_dir(data).into_iter().flatten().flatten();
    let read = |entry: fs::DirEntry| {
        let (path, name) = (entry.path(), entry.file_name().into_string().ok()?);
        let rest = name.strip_prefix(&topic.name)?.strip_prefix('-')?;
        let partition = rest.split('.').next()?.parse().ok()?;
        let says = fs::read_to_string(path.join("partition.metadata")).ok()?;
        let id = says.lines().find_map(|line| line.strip_prefix("topic_id:"))?;
        (id.trim() == topic.id).then(|| Kept {
            partition,
            deleted: rest.ends_with("-delete"),
            end: log_end(&path),
        })
    };
    folders.filter_map(read).collect()
}

/// Up to where a broker has a partition that lies in `folder`: the offset after its last record; 0 if there is nothing.
pub fn log_end(folder: &Path) -> u64 {
    let files = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let newest = files
        .filter(|path| path.extension().is_some_and(|end| end == "log"))
        .max();
    let Some(newest) = newest else { return 0 };
    // Its name is the first offset that it may have.
    let first = newest
        .file_stem()
        .and_then(|stem| stem.to_str()?.parse().ok())
        .unwrap_or_default();
    File::open(&newest).map_or(first, |file| end_of(&file, first))
}

fn end_of(file: &File, first: u64) -> u64 {
    let number = |at: u64| -> Option<u64> {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at)
            .ok()
            .map(|()| u64::from_be_bytes(bytes))
    };
    let (mut at, mut end) = (0, first);
    // Ends where a batch is missing, or not all there yet.
    while let (Some(base), Some(length)) = (number(at), number(at + LENGTH_AT).map(|word| word >> 32)) {
        let Some(last) = number(at + LAST_AT).map(|word| word >> 32) else {
            break;
        };
        let next = at + 12 + length;
        if length == 0 || file.metadata().is_ok_and(|there| there.len() < next) {
            break;
        }
        (at, end) = (next, base + last + 1);
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_describe_says_is_read() {
        let said = "Topic: t\tTopicId: abc\tPartitionCount: 2\tReplicationFactor: 2\tConfigs: min.insync.replicas=1,a=b\n\
                    \tTopic: t\tPartition: 0\tLeader: 2\tReplicas: 2,3\tIsr: 2,3\tElr: \tLastKnownElr: \n\
                    \tTopic: t\tPartition: 1\tLeader: none\tReplicas: 3,1\tIsr: \tElr: \tLastKnownElr: \n";
        let topic = Topic::read(said).unwrap();
        assert_eq!(
            (topic.name.as_str(), topic.id.as_str(), topic.replication),
            ("t", "abc", 2)
        );
        assert_eq!(topic.settings, "min.insync.replicas=1,a=b");
        assert_eq!(topic.partitions[0].in_sync, [2, 3]);
        assert_eq!(
            (topic.partitions[1].leader, topic.partitions[1].replicas.as_slice()),
            (None, [3, 1].as_slice())
        );
        assert_eq!(topic.led_by(2).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn logs_of_another_topic_of_that_name_are_not_counted() {
        let data = tempfile::tempdir().unwrap();
        for (folder, id) in [
            ("t-1", "new"),
            ("t-0.5f-delete", "old"),
            ("t-1.6f-delete", "older"),
            ("t-u-0", "old"),
        ] {
            let folder = data.path().join(folder);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("partition.metadata"), format!("version: 0\ntopic_id: {id}")).unwrap();
            fs::write(folder.join("00000000000000000007.log"), "").unwrap();
        }
        let kept = |id: &str| {
            let topic = Topic {
                name: "t".into(),
                id: id.into(),
                replication: 1,
                settings: String::new(),
                partitions: Vec::new(),
            };
            super::kept(data.path(), &topic)
        };
        let log = |partition, deleted| Kept {
            partition,
            deleted,
            end: 7,
        };
        assert_eq!((kept("old"), kept("new")), (vec![log(0, true)], vec![log(1, false)]));
    }
}
