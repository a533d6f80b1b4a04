//! Asking a broker what a topic has: partitions and offsets. Blocking; call it off the runtime.

use super::native::ask_topic_id;
use super::{SourceError, client_config};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};
use std::time::{Duration, Instant};
use tidemill_core::catalog::KafkaSource;
use tidemill_core::{Offset, PartitionId, TopicId};

/// How long a broker may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(8);

/// Where a new pipe begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartPosition {
    /// At the oldest record that the source still has.
    Earliest,
    /// Behind the newest record.
    Latest,
    /// At the first record that is not older, milliseconds since 1970.
    TimestampMs(i64),
}

/// Exact offsets of a topic's partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceOffsets {
    /// The topic's id, where the broker gives one.
    pub topic: Option<TopicId>,
    /// Every partition with its offset.
    pub partitions: Vec<(PartitionId, Offset)>,
}

/// Whether the brokers are librdkafka's mock cluster, which says so in its id.
fn is_mock(consumer: &BaseConsumer) -> bool {
    let id = consumer.client().fetch_cluster_id(PATIENCE);
    id.is_some_and(|id| id.starts_with("mockCluster"))
}

/// The partitions of the topic and the exact offset at which each begins.
pub fn start_offsets(source: &KafkaSource, start: &StartPosition) -> Result<SourceOffsets, SourceError> {
    let consumer = connect(source)?;
    let partitions = partitions(&consumer, source)?;
    // The id first: should the topic be created anew in between, the pipe stops at once instead of mixing the two.
    let asked = match is_mock(&consumer) {
        // librdkafka's mock cluster never answers that question.
        true => Err(RDKafkaErrorCode::UnsupportedFeature),
        // The broker that is asked may not have heard yet of a topic that another one has just given the partitions of.
        false => patiently(|| ask_topic_id(&consumer, &source.topic, PATIENCE), |code| Some(*code)),
    };
    let topic = match asked {
        Ok(topic) => topic,
        // An old broker: it cannot be noticed there when a topic is created anew.
        Err(RDKafkaErrorCode::UnsupportedFeature) => None,
        Err(RDKafkaErrorCode::UnknownTopicOrPartition) => return Err(missing(source)),
        Err(code) => return Err(unreachable(source, &code)),
    };
    Ok(SourceOffsets {
        topic,
        partitions: resolve(&consumer, source, &partitions, start)?,
    })
}

/// The partitions that the topic has and `known` does not, from their oldest record on.
pub fn added_partitions(
    source: &KafkaSource,
    known: &[PartitionId],
) -> Result<Vec<(PartitionId, Offset)>, SourceError> {
    let consumer = connect(source)?;
    let mut added = partitions(&consumer, source)?;
    added.retain(|p| !known.contains(&PartitionId(*p as u32)));
    resolve(&consumer, source, &added, &StartPosition::Earliest)
}

pub(super) fn connect(source: &KafkaSource) -> Result<BaseConsumer, SourceError> {
    let mut config = client_config(source, "tidemill.inspect");
    // An inspection is one question; statistics and prefetching would only cost.
    config.set("statistics.interval.ms", "0");
    config.create().map_err(|e| match e {
        KafkaError::ClientConfig(_, why, name, value) => {
            SourceError(format!("the Kafka client does not take {name} = '{value}': {why}"))
        }
        other => SourceError(format!("the Kafka client cannot be set up: {other}")),
    })
}

fn partitions(consumer: &BaseConsumer, source: &KafkaSource) -> Result<Vec<i32>, SourceError> {
    let metadata = consumer
        .fetch_metadata(Some(&source.topic), PATIENCE)
        .map_err(|e| unreachable(source, &e))?;
    let topic = metadata.topics().iter().find(|t| t.name() == source.topic);
    let topic = topic.ok_or_else(|| missing(source))?;
    if let Some(error) = topic.error() {
        return Err(match RDKafkaErrorCode::from(error) {
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => missing(source),
            code => SourceError(format!(
                "the broker at {} does not give topic '{}': {code}",
                source.brokers, source.topic
            )),
        });
    }
    let mut ids: Vec<i32> = topic.partitions().iter().map(|p| p.id()).collect();
    ids.sort_unstable();
    if ids.is_empty() {
        return Err(missing(source));
    }
    Ok(ids)
}

fn resolve(
    consumer: &BaseConsumer,
    source: &KafkaSource,
    partitions: &[i32],
    start: &StartPosition,
) -> Result<Vec<(PartitionId, Offset)>, SourceError> {
    let watermarks = |partition: i32| {
        let ask = || consumer.fetch_watermarks(&source.topic, partition, PATIENCE);
        patiently(ask, KafkaError::rdkafka_error_code).map_err(|e| unreachable(source, &e))
    };
    let at = |partition: i32, offset: i64| (PartitionId(partition as u32), Offset(offset.max(0) as u64));
    if let StartPosition::TimestampMs(ms) = start {
        let mut wanted = TopicPartitionList::new();
        for partition in partitions {
            wanted
                .add_partition_offset(&source.topic, *partition, KafkaOffset::Offset(*ms))
                .map_err(|e| unreachable(source, &e))?;
        }
        let ask = || consumer.offsets_for_times(wanted.clone(), PATIENCE);
        let found = patiently(ask, KafkaError::rdkafka_error_code).map_err(|e| unreachable(source, &e))?;
        return found
            .elements()
            .iter()
            .map(|element| match element.offset() {
                KafkaOffset::Offset(offset) => Ok(at(element.partition(), offset)),
                // No record is that young: begin with the next one.
                _ => Ok(at(element.partition(), watermarks(element.partition())?.1)),
            })
            .collect();
    }
    partitions
        .iter()
        .map(|partition| {
            let (low, high) = watermarks(*partition)?;
            Ok(at(*partition, if *start == StartPosition::Latest { high } else { low }))
        })
        .collect()
}

/// Asks again while the broker says that it is only not yet, or not any more, able to answer: a new topic's
/// partitions have no leader for a moment, brokers hear of it one after the other, and leaders change.
fn patiently<T, E>(
    mut ask: impl FnMut() -> Result<T, E>,
    code_of: impl Fn(&E) -> Option<RDKafkaErrorCode>,
) -> Result<T, E> {
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = ask();
        let passing = matches!(
            answer.as_ref().err().and_then(&code_of),
            Some(
                RDKafkaErrorCode::NotLeaderForPartition
                    | RDKafkaErrorCode::LeaderNotAvailable
                    | RDKafkaErrorCode::ReplicaNotAvailable
                    | RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::OffsetNotAvailable
            )
        );
        if !passing || Instant::now() >= until {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn missing(source: &KafkaSource) -> SourceError {
    SourceError(format!(
        "the broker at {} has no topic '{}'; create it there first, or correct the name",
        source.brokers, source.topic
    ))
}

pub(super) fn unreachable(source: &KafkaSource, error: &dyn std::fmt::Display) -> SourceError {
    SourceError(format!(
        "the Kafka broker at {} does not answer ({error}); check the address and that the broker runs",
        source.brokers
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_has_not_heard_of_a_topic_yet_is_asked_again() {
        let mut answers = [
            Err(RDKafkaErrorCode::UnknownTopicOrPartition),
            Err(RDKafkaErrorCode::LeaderNotAvailable),
            Ok(7),
        ]
        .into_iter();
        assert_eq!(patiently(|| answers.next().unwrap(), |code| Some(*code)), Ok(7));
        let mut answers = [Err(RDKafkaErrorCode::TopicAuthorizationFailed), Ok(7)].into_iter();
        let refused = patiently(|| answers.next().unwrap(), |code| Some(*code));
        assert_eq!(refused, Err(RDKafkaErrorCode::TopicAuthorizationFailed));
    }
}
