//! What a source lost, when its client says that it cannot go on where we are.

use super::native::Fault;
use super::run::Place;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use std::time::Duration;
use tidemill_core::Offset;
use tidemill_core::stop::StopReason;
use tracing::warn;

/// How long the broker may take to say what it has.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the partition at `place` cannot be read on, asked of the broker after `fault`; `None` if that cannot be told yet.
pub(super) fn find<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
    place: &Place,
    fault: &Fault,
) -> Option<StopReason> {
    let partition = place.key.partition.0 as i32;
    let truncated = fault.reason.contains("truncation") || fault.reason.contains("No epoch found");
    let (low, high) = match client.fetch_watermarks(topic, partition, PATIENCE) {
        Ok(marks) => marks,
        Err(error) => {
            warn!(%topic, partition, %error, "cannot ask for the offsets that the source still has");
            return None;
        }
    };
    let offset = |at: i64| Offset(at.max(0) as u64);
    if place.next < low {
        Some(StopReason::Expired { earliest: offset(low) })
    } else if truncated {
        let (diverged, epoch) = diverged_at(&fault.reason).unzip();
        Some(StopReason::Truncated {
            diverged: diverged.map(offset),
            epoch: epoch.flatten(),
        })
    } else if place.next > high {
        Some(StopReason::EndBelow { end: offset(high) })
    } else {
        // The log may have grown past our offset since the client was told that it is not there. Without a leader
        // epoch nobody can say whether what is there now is what was to be read: that is a cut log.
        (fault.partition == Some(partition)).then_some(StopReason::Truncated {
            diverged: None,
            epoch: None,
        })
    }
}

/// The offset from which the broker's log differs, and the leader epoch of the record before it if there is one, out of the
/// client's words: it gives them nowhere else.
fn diverged_at(reason: &str) -> Option<(i64, Option<i32>)> {
    let number = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    let (_, rest) = reason.split_once("broker end offset is ")?;
    let at = number(rest).parse().ok()?;
    let epoch = rest.split_once("(offset leader epoch ").map(|(_, epoch)| number(epoch));
    Some((at, epoch.and_then(|epoch| epoch.parse().ok())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_from_which_logs_differ_is_found_in_the_clients_words() {
        let words = "Partition log truncation detected at offset 25 (leader epoch 3): broker end offset is 20 \
                     (offset leader epoch 2). Reset to INVALID.";
        assert_eq!(diverged_at(words), Some((20, Some(2))));
        assert_eq!(diverged_at("broker end offset is -1 (offset leader epoch -1)"), None);
    }
}
