//! The commit: parts, offsets, rejects and counts in one step, or nothing.
//!
//! The order of the checks is part of the contract. First comes the question whether this very
//! commit was applied before, so that a repetition after a lost answer is recognised even when the
//! shard has a new leader since. Then the fence: the epoch. Then the table. Then each span on its
//! own, so that a refusal can name those to drop. Then the disks on which the files are. Only when all hold is
//! anything written.

use super::cluster::stale_epoch;
use super::definitions::table_of;
use super::events::note;
use super::{At, Stop, Verdict, replicas};
use crate::catalog::*;
use crate::command::{CommitPart, Refusal, Response, SpanRefusal};
use crate::ids::{PipeId, SchemaVersion, ShardId};
use crate::span::Span;
use crate::view::{CatalogRead, Overlay, ViewError};

pub(super) fn commit_part(state: &mut Overlay<'_>, at: At, c: &CommitPart) -> Verdict {
    let mut shard = state.get::<Shard>(&c.shard)?.ok_or(Refusal::NoShard(c.shard))?;
    let digest = c.digest();
    // One commit is in flight per shard, so remembering the last is enough.
    if let Some(last) = shard.last_commit.as_ref().filter(|last| last.id == c.commit) {
        let refusal = match last.digest == digest {
            true => Refusal::AlreadyCommitted(last.version),
            false => Refusal::IdReused(c.commit),
        };
        return Err(refusal.into());
    }
    if shard.epoch != c.epoch || shard.leader.is_none() {
        return Err(stale_epoch(&shard, c.epoch).into());
    }
    let table = table_taking(state, c.shard, c.schema_version)?;
    let mut moved = Vec::with_capacity(c.spans.len());
    let mut refused = Vec::new();
    for (i, span) in c.spans.iter().enumerate() {
        let named_twice = c.spans[..i]
            .iter()
            .any(|s| (s.key.pipe, s.key.partition) == (span.key.pipe, span.key.partition));
        match check_span(state, c, span)? {
            Ok(partition) if !named_twice => moved.push(advance(partition, span, at)),
            Ok(_) => refused.push((span.key, SpanRefusal::Unsound)),
            Err(why) => refused.push((span.key, why)),
        }
    }
    if !refused.is_empty() {
        return Err(Refusal::Spans(refused).into());
    }
    let holders = replicas::holders_that_count(state, &table, &shard, &c.holders, c.files().count())?;
    check_counts(c)?;

    note_gaps(state, at, &moved, c)?;
    for partition in &moved {
        state.put(&(partition.pipe, partition.partition), partition)?;
    }
    put_parts(state, at, c.shard, c.schema_version, &c.parts)?;
    for (pipe, file) in &c.reject_parts {
        let part = RejectPart {
            pipe: *pipe,
            shard: c.shard,
            file: file.clone(),
            of: rejected_of(c, *pipe),
            version: at.version,
            committed_at_ms: at.ms,
        };
        state.put(&(*pipe, file.id), &part)?;
    }
    replicas::put_copies(state, c.shard, c.files(), holders)?;
    shard.last_commit = Some(LastCommit {
        id: c.commit,
        digest,
        version: at.version,
    });
    state.put(&shard.id, &shard)?;
    Ok(Response::Done)
}

/// The table of `shard`, if it still takes parts with the columns of `given`.
pub(super) fn table_taking(state: &Overlay<'_>, shard: ShardId, given: SchemaVersion) -> Result<Table, Stop> {
    let table = table_of(state, shard.table)?;
    if given < table.min_schema {
        return Err(Refusal::SchemaTooOld {
            given,
            oldest: table.min_schema,
        }
        .into());
    }
    Ok(table)
}

pub(super) fn put_parts(
    state: &mut Overlay<'_>,
    at: At,
    shard: ShardId,
    schema_version: SchemaVersion,
    files: &[PartFile],
) -> Result<(), ViewError> {
    for file in files {
        let part = Part {
            shard,
            file: file.clone(),
            schema_version,
            version: at.version,
            committed_at_ms: at.ms,
        };
        state.put(&(shard, file.id), &part)?;
    }
    Ok(())
}

/// Whether `span` is the next piece of its partition's history, as its owner may write it (OFF-1).
fn check_span(
    state: &Overlay<'_>,
    c: &CommitPart,
    span: &Span,
) -> Result<Result<SourcePartition, SpanRefusal>, ViewError> {
    let key = (span.key.pipe, span.key.partition);
    let pipe = state.get::<Pipe>(&span.key.pipe)?;
    let (Some(pipe), Some(partition)) = (pipe, state.get::<SourcePartition>(&key)?) else {
        return Ok(Err(SpanRefusal::Unknown));
    };
    Ok(if pipe.table != c.shard.table || partition.shard != c.shard {
        Err(SpanRefusal::NotOwner(partition.shard))
    } else if partition.incarnation != span.key.incarnation {
        Err(SpanRefusal::StaleIncarnation(partition.incarnation))
    } else if span.topic.is_some() && partition.topic.is_some() && span.topic != partition.topic {
        Err(SpanRefusal::OtherTopic)
    } else if partition.offset != span.start {
        Err(SpanRefusal::NotNext(partition.offset))
    } else if let Some(until) = partition.until.filter(|until| *until < span.end) {
        Err(SpanRefusal::BehindEnd(until))
    } else if !span.is_sound() {
        Err(SpanRefusal::Unsound)
    } else {
        Ok(partition)
    })
}

/// The first gap of a life in a topic that should have none is an event: nothing should be absent there, and if
/// transactions or compaction are at work, the pipe should say so. `moved` are the partitions of the spans, in their order.
fn note_gaps(state: &mut Overlay<'_>, at: At, moved: &[SourcePartition], c: &CommitPart) -> Result<(), Stop> {
    for (partition, span) in moved.iter().zip(&c.spans) {
        let now = span.counts.absent;
        if now == 0 || partition.ledger.counts.absent != now {
            continue;
        }
        let alarms = |pipe: &Pipe| pipe.settings.gaps == Gaps::Alarm;
        let Some(pipe) = state.get::<Pipe>(&partition.pipe)?.filter(alarms) else {
            continue;
        };
        let text = format!(
            "{now} offsets below {} hold no record that may be read; if the topic has transactions or is compacted, say ALTER PIPE {} \
             SET (gaps = 'expect'), else ask what happened to them",
            partition.offset, pipe.name
        );
        note(state, at, "absent", &pipe.name, Some(partition.partition), text)?;
    }
    Ok(())
}

/// How many records of each partition the reject part of `pipe` holds. A commit has one such part for each pipe.
fn rejected_of(c: &CommitPart, pipe: PipeId) -> Vec<RejectedOf> {
    let of_pipe = c.spans.iter().filter(|s| s.key.pipe == pipe && s.counts.rejected > 0);
    let count = |s: &Span| RejectedOf {
        partition: s.key.partition,
        incarnation: s.key.incarnation,
        records: s.counts.rejected,
    };
    of_pipe.map(count).collect()
}

fn advance(mut partition: SourcePartition, span: &Span, at: At) -> SourcePartition {
    partition.offset = span.end;
    partition.topic = partition.topic.or(span.topic);
    partition.source_epoch = span.source_epoch.or(partition.source_epoch);
    partition.ledger.counts += span.counts;
    partition.committed_at_ms = at.ms;
    partition
}

/// The files hold exactly the records that the spans account for (LED-1), each at least one: a file that no offset
/// stands for could be committed once more when it is long buried, since no offset would tell.
fn check_counts(c: &CommitPart) -> Result<(), Refusal> {
    if let Some(empty) = c.files().find(|file| file.rows == 0) {
        return Err(Refusal::Definition(format!("part {} holds no rows", empty.id)));
    }
    let counted: u64 = c.spans.iter().map(|s| s.counts.rows).sum();
    let rows: u64 = c.parts.iter().map(|p| p.rows).sum();
    if counted != rows {
        return Err(Refusal::Definition(format!(
            "the parts hold {rows} rows, the spans account for {counted}"
        )));
    }
    for (i, (pipe, part)) in c.reject_parts.iter().enumerate() {
        if c.reject_parts[..i].iter().any(|(other, _)| other == pipe) {
            return Err(Refusal::Definition(format!(
                "there are two reject parts of pipe {pipe}"
            )));
        }
        let of_pipe = c.spans.iter().filter(|s| s.key.pipe == *pipe);
        let rejected: u64 = of_pipe.map(|s| s.counts.rejected).sum();
        if rejected != part.rows {
            return Err(Refusal::Definition(format!(
                "the reject part of pipe {pipe} holds {} records, the spans account for {rejected}",
                part.rows
            )));
        }
    }
    let without = |s: &&Span| s.counts.rejected > 0 && !c.reject_parts.iter().any(|(pipe, _)| *pipe == s.key.pipe);
    if let Some(span) = c.spans.iter().find(without) {
        return Err(Refusal::Definition(format!(
            "pipe {} partition {} counts rejected records, but there is no reject part of that pipe",
            span.key.pipe, span.key.partition
        )));
    }
    Ok(())
}
