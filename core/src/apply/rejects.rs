//! Replaying rejected records: they become rows, exactly once.
//!
//! Compare-and-set on the reject parts: every part that a replay uses must still be live. Two replays of the same
//! records, or one whose answer was lost and that is said again, cannot both succeed, since the first deletes the
//! parts that the second names. Records are conserved: what a reject part held is in the rows, in what is
//! left of it, or left out on purpose, and the ledgers that counted them move by the same numbers.

use super::cluster::stale_epoch;
use super::commit::{put_parts, table_taking};
use super::events::note;
use super::{At, Stop, Verdict, definitions, replicas};
use crate::catalog::*;
use crate::command::{Recovered, Refusal, ReplayRejects, Response, UsedRejects};
use crate::ids::*;
use crate::ledger::{ClosedLedger, Counts};
use crate::view::{CatalogRead, Overlay};

pub(super) fn replay(state: &mut Overlay<'_>, at: At, c: &ReplayRejects) -> Verdict {
    let pipe = definitions::pipe_of(state, c.pipe)?;
    let shard = state.get::<Shard>(&c.shard)?.ok_or(Refusal::NoShard(c.shard))?;
    // The collector deletes unreferenced files of older epochs: parts written in one might be gone by now.
    if shard.epoch != c.epoch {
        return Err(stale_epoch(&shard, c.epoch).into());
    }
    let table = table_taking(state, c.shard, c.schema_version)?;
    // The new parts are younger than what was deleted meanwhile, so nothing would hide such rows in them.
    if table.deleted.iter().any(|deleted| deleted.version > c.chosen_at) {
        return Err(Refusal::RowsDeleted(table.name).into());
    }
    let (mut rows, mut records) = (0, 0);
    for used in &c.used {
        let recovered = replay_one(state, at, c, used)?;
        rows += recovered.rows;
        records += recovered.stored;
    }
    let written: u64 = c.parts.iter().map(|p| p.rows).sum();
    if written != rows {
        return Err(Refusal::Definition(format!(
            "the parts hold {written} rows, the replayed records became {rows}"
        ))
        .into());
    }
    let files = || {
        c.parts
            .iter()
            .chain(c.used.iter().filter_map(|used| used.rest.as_ref()))
    };
    let holders = replicas::holders_that_count(state, &table, &shard, &c.holders, files().count())?;
    put_parts(state, at, c.shard, c.schema_version, &c.parts)?;
    replicas::put_copies(state, c.shard, files(), holders)?;
    let text = format!(
        "{records} rejected records became {rows} rows of table '{}'",
        table.name
    );
    note(state, at, "replay", &pipe.name, None, text)?;
    Ok(Response::Done)
}

/// Uses up one reject part; gives what became of its records in sum.
fn replay_one(state: &mut Overlay<'_>, at: At, c: &ReplayRejects, used: &UsedRejects) -> Result<Counts, Stop> {
    let key = (c.pipe, used.part);
    let live = state.get::<RejectPart>(&key)?.filter(|part| part.shard == c.shard);
    let Some(old) = live else {
        return Err(Refusal::RejectsGone(used.part).into());
    };
    let mut left = old.of.clone();
    let mut sum = Counts::default();
    for (i, recovered) in used.recovered.iter().enumerate() {
        let named_twice = used.recovered[..i].iter().any(|r| r.partition == recovered.partition);
        let of = left
            .iter_mut()
            .find(|of| of.partition == recovered.partition && !named_twice);
        let records = recovered.stored.checked_add(recovered.filtered);
        let (Some(of), Some(records)) = (of, records) else {
            return Err(unsound(used));
        };
        let Some(rest) = of.records.checked_sub(records) else {
            return Err(unsound(used));
        };
        of.records = rest;
        move_counts(state, c.pipe, of, recovered, records)?;
        sum.stored += recovered.stored;
        sum.rows += recovered.rows;
    }
    left.retain(|of| of.records > 0);
    let rest_rows: u64 = left.iter().map(|of| of.records).sum();
    if used.rest.as_ref().map_or(0, |rest| rest.rows) != rest_rows {
        return Err(unsound(used));
    }
    state.delete::<RejectPart>(&key);
    definitions::bury(state, at, old.shard, old.file.clone())?;
    if let Some(rest) = used.rest.as_ref().filter(|rest| rest.rows > 0) {
        // Its records are as old as they were: those that a reset deleted since stay deleted.
        let part = RejectPart {
            file: rest.clone(),
            of: left,
            ..old
        };
        state.put(&(c.pipe, part.file.id), &part)?;
    }
    Ok(sum)
}

/// Moves `records` from rejected to stored and filtered in the ledger of the life that counted them.
fn move_counts(
    state: &mut Overlay<'_>,
    pipe: PipeId,
    of: &RejectedOf,
    recovered: &Recovered,
    records: u64,
) -> Result<(), Stop> {
    let shift = |counts: &mut Counts| -> Result<(), Stop> {
        let rejected = counts.rejected.checked_sub(records);
        counts.rejected =
            rejected.ok_or_else(|| Refusal::Definition("the ledger counts fewer rejected records".into()))?;
        counts.stored += recovered.stored;
        counts.filtered += recovered.filtered;
        counts.rows += recovered.rows;
        Ok(())
    };
    let place = (pipe, of.partition);
    if let Some(mut partition) = state.get::<SourcePartition>(&place)?
        && partition.incarnation == of.incarnation
    {
        shift(&mut partition.ledger.counts)?;
        state.put(&place, &partition)?;
    } else if let Some(mut closed) = state.get::<ClosedLedger>(&(pipe, of.partition, of.incarnation))? {
        shift(&mut closed.ledger.counts)?;
        state.put(&(pipe, of.partition, of.incarnation), &closed)?;
    }
    Ok(())
}

fn unsound(used: &UsedRejects) -> Stop {
    Refusal::Definition(format!(
        "the replay of reject part {} does not account for each of its records once",
        used.part
    ))
    .into()
}
