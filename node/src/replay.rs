//! `REPLAY REJECTED`, the part of it that decodes and writes: ingest's decoder and storage's writer, for the query engine.

use arrow::array::{BooleanArray, RecordBatch};
use async_trait::async_trait;
use rand::random;
use std::collections::BTreeMap;
use std::sync::Arc;
use tidemill_core::catalog::{Pipe, RejectPart, Table};
use tidemill_core::command::{Recovered, UsedRejects};
use tidemill_core::{Epoch, PartId, PartitionId};
use tidemill_ingest::decode::{JsonDecoder, SourceRecord, rejected_offsets, rejected_records, without};
use tidemill_query::{Replayed, Replayer};
use tidemill_storage::part::{WrittenPart, write_parts, write_rejects};
use tidemill_storage::store::{PartStore, put_all};

/// Decodes rejects by the pipe's present definition, and puts what comes of it into the part store.
pub struct Decode {
    /// Where parts go.
    pub store: Arc<dyn PartStore>,
}

#[async_trait]
impl Replayer for Decode {
    async fn replay(
        &self,
        pipe: &Pipe,
        table: &Table,
        part: &RejectPart,
        epoch: Epoch,
        rejects: &RecordBatch,
        chosen: &BooleanArray,
    ) -> Result<Replayed, String> {
        let work = Work {
            pipe: pipe.clone(),
            table: table.clone(),
            part: part.clone(),
            epoch,
            rejects: rejects.clone(),
            chosen: chosen.clone(),
        };
        let done = tokio::task::spawn_blocking(move || work.run()).await;
        let (parts, rest, recovered) = done.map_err(|e| e.to_string())??;
        let files = parts.iter().chain(&rest);
        let files = files.map(|written| (written.file.path.as_str(), written.bytes.clone()));
        let holders = put_all(&*self.store, files).await.map_err(|e| e.to_string())?;
        Ok(Replayed {
            parts: parts.into_iter().map(|written| written.file).collect(),
            used: UsedRejects {
                part: part.file.id,
                rest: rest.map(|written| written.file),
                recovered,
            },
            holders,
        })
    }
}

struct Work {
    pipe: Pipe,
    table: Table,
    part: RejectPart,
    epoch: Epoch,
    rejects: RecordBatch,
    chosen: BooleanArray,
}

type Outcome = (Vec<WrittenPart>, Option<WrittenPart>, Vec<Recovered>);

impl Work {
    /// Parts of rows, what is left of the reject part, and what became of its records.
    fn run(self) -> Result<Outcome, String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let decoder = JsonDecoder::new(&self.table, &self.pipe.format, self.pipe.source.topic());
        let records = rejected_records(&self.rejects).map_err(|e| text(&e))?;
        let mut by_partition: BTreeMap<i32, Vec<(usize, SourceRecord<'_>)>> = BTreeMap::new();
        for (row, (partition, record)) in records.into_iter().enumerate() {
            if self.chosen.value(row) {
                by_partition.entry(partition).or_default().push((row, record));
            }
        }
        let (mut rows, mut recovered, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for (partition, numbered) in by_partition {
            let records: Vec<SourceRecord<'_>> = numbered.iter().map(|(_, record)| *record).collect();
            let decoded = decoder.decode(partition, &records).map_err(|e| text(&e))?;
            if decoded.stored() + decoded.filtered() == 0 {
                continue;
            }
            // What is still bad stays; everything else that was chosen leaves the reject part.
            let bad = rejected_offsets(&decoded);
            let left = numbered
                .iter()
                .filter(|(_, record)| bad.binary_search(&record.offset).is_err());
            gone.extend(left.map(|(row, _)| *row));
            recovered.push(Recovered {
                partition: PartitionId(partition.unsigned_abs()),
                stored: decoded.stored(),
                rows: decoded.rows_count(),
                filtered: decoded.filtered(),
            });
            rows.extend(decoded.rows);
        }
        let mut new_id = || PartId(random());
        let shard = self.part.shard;
        // Few rows of all times: as one part.
        let whole = self.table.undivided();
        let parts = write_parts(&whole, shard, self.epoch, &rows, &mut new_id).map_err(|e| text(&e))?;
        let rest = without(&self.rejects, &gone).map_err(|e| text(&e))?;
        let rest = match rest.num_rows() {
            0 => None,
            _ => Some(write_rejects(self.pipe.id, shard, self.epoch, &[rest], &mut new_id).map_err(|e| text(&e))?),
        };
        Ok((parts, rest, recovered))
    }
}
