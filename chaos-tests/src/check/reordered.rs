//! Rows of one key in another order than they were sent: `seq` has to grow with the offset, by key and partition.
//!
//! Where the log itself has them in another order, the producer or the broker did it; that is counted and no finding.

use super::tables::Row;
use super::{Outcome, Run};
use std::collections::BTreeMap;

/// See the module's page.
pub fn check(run: &Run) -> Outcome {
    let mut outcome = Outcome::new("reordered");
    let (mut rows, mut at_source) = (0, 0);
    for ((table, topic), filled) in &run.facts.tables.filled {
        for (partition, of) in &filled.rows {
            let log = run.facts.sources.logs.get(&(topic.clone(), *partition));
            let as_logged = |row: &Row| {
                log.and_then(|log| log.at(row.offset))
                    .is_some_and(|(_, id, _)| *id == row.id)
            };
            let destroyed = |row: &Row| log.is_some_and(|log| log.lives(row.offset) > 1);
            let mut last: BTreeMap<&str, (u64, &Row)> = BTreeMap::new();
            for row in of {
                let sent = row.id.and_then(|id| run.facts.sources.sent.get(&id));
                let Some((key, seq)) = sent.and_then(|s| Some((s.key.as_deref()?, s.seq?))) else {
                    continue;
                };
                rows += 1;
                let Some((before, other)) = last.insert(key, (seq, row)) else {
                    continue;
                };
                if before <= seq {
                    continue;
                }
                if as_logged(row) && as_logged(other) {
                    at_source += 1;
                } else if !destroyed(row) && !destroyed(other) {
                    outcome.find(
                        &[other.entry, row.entry],
                        format!(
                            "table {table} has key {key} of {topic}/{partition} with seq {before} at offset {}, and with {seq} behind \
                             it at {}",
                            other.offset, row.offset
                        ),
                    );
                }
            }
        }
    }
    outcome.looked(rows, "rows with a key and a seq");
    outcome.looked(at_source, "out of order in the log already");
    outcome
}
