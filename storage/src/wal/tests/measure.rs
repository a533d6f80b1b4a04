//! What the log costs; the figures are in docs/adr/0010-write-ahead-log.md. To be run by hand:
//! `cargo test --workspace --lib -- wal::tests::measure --ignored --nocapture --test-threads 1`

use super::*;
use arrow::array::{ArrayRef, StringArray};
use std::time::Instant;

/// A chunk of about `size` bytes that cannot be compressed.
fn sized(key: SpanKey, offset: u64, size: usize) -> Chunk {
    let mut state = offset | 1;
    let mut text = String::with_capacity(size);
    while text.len() < size {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        // Codes of more than six bits of chance each are not worth the trouble: LZ4 has no entropy coder.
        text.push(char::from(b'!' + (state >> 33) as u8 % 90));
    }
    let offsets: ArrayRef = Arc::new(Int64Array::from(vec![offset as i64]));
    let text: ArrayRef = Arc::new(StringArray::from(vec![text]));
    let mut chunk = full(key, offset + 1, offset + 2);
    chunk.span = Span {
        start: Offset(offset),
        end: Offset(offset + 1),
        counts: Counts::stored(1),
        ..chunk.span
    };
    chunk.rows = Some(RecordBatch::try_from_iter([(OFFSET, offsets), ("text", text)]).unwrap());
    chunk.rejects = None;
    chunk
}

/// Bytes that this process has had written to disk.
fn written_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[test]
#[ignore = "a measurement"]
fn appends_of_several_writers() {
    for size in [1 << 10, 16 << 10] {
        for writers in [1, 16, 64_u32] {
            let folder = TempDir::new().unwrap();
            let wal = open(folder.path());
            let (began, before) = (Instant::now(), written_bytes());
            let mut waits: Vec<Duration> = std::thread::scope(|scope| {
                let append = |p: u32| {
                    let wal = &wal;
                    move || {
                        let mut waits = Vec::new();
                        for o in 0.. {
                            if began.elapsed() > Duration::from_secs(4) {
                                break;
                            }
                            let chunk = [sized(key(p, 1), o, size)];
                            let asked = Instant::now();
                            wal.append(shard(p % 4), EPOCH, &chunk).unwrap();
                            waits.push(asked.elapsed());
                            // A commit covers what is there, every second or so.
                            if o % 500 == 499 {
                                wal.trim(shard(p % 4), &[(key(p, 1), Offset(o))]).unwrap();
                            }
                        }
                        waits
                    }
                };
                let threads: Vec<_> = (0..writers).map(|p| scope.spawn(append(p))).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
            });
            let took = began.elapsed();
            waits.sort();
            let at = |share: usize| waits[(waits.len() - 1) * share / 100];
            let stats = wal.stats();
            println!(
                "{writers:>2} writers of {size:>5} B: {:>6.0} appends/s, p50 {:?}, p99 {:?}, {:.2} bytes written for one \
                 appended ({:.2} for one of payload)",
                waits.len() as f64 / took.as_secs_f64(),
                at(50),
                at(99),
                (written_bytes() - before) as f64 / stats.appended_bytes as f64,
                (written_bytes() - before) as f64 / (waits.len() * size) as f64,
            );
        }
    }
}

/// How much is written and left on disk when a log is always trimmed after `behind` bytes.
#[test]
#[ignore = "a measurement"]
fn amplification_after_trims() {
    const SIZE: usize = 256 << 10;
    for behind in [8 << 20, 24 << 20, 128 << 20] {
        let folder = TempDir::new().unwrap();
        let wal = open(folder.path());
        let before = written_bytes();
        let (step, total) = ((behind / SIZE) as u64, (1 << 30) / SIZE as u64);
        for o in 0..total {
            wal.append(shard(0), EPOCH, &[sized(key(0, 1), o, SIZE)]).unwrap();
            if o % step == step - 1 {
                wal.trim(shard(0), &[(key(0, 1), Offset(o))]).unwrap();
            }
        }
        let wrote = (written_bytes() - before) as f64 / wal.stats().appended_bytes as f64;
        let files = std::fs::read_dir(folder.path()).unwrap();
        let on_disk: u64 = files.map(|file| file.unwrap().metadata().map_or(0, |m| m.len())).sum();
        println!(
            "trimmed every {} MiB: {wrote:.2} bytes written for one appended, {} MiB on disk",
            behind >> 20,
            on_disk >> 20
        );
        drop(wal);
        let began = Instant::now();
        let wal = open(folder.path());
        println!(
            "  opened in {:?} with {} MiB in it",
            began.elapsed(),
            wal.stats().bytes >> 20
        );
    }
}

/// One range for all that goes, against a mark for each.
#[test]
#[ignore = "a measurement"]
fn trims_by_range_and_by_key() {
    for by_range in [true, false] {
        let folder = TempDir::new().unwrap();
        let wal = open(folder.path());
        let chunks: Vec<Chunk> = (0..100_000).map(|o| sized(key(0, 1), o, 100)).collect();
        chunks
            .chunks(1000)
            .for_each(|chunks| wal.append(shard(0), EPOCH, chunks).unwrap());
        let began = Instant::now();
        for round in 1..=100 {
            match by_range {
                true => wal.trim(shard(0), &[(key(0, 1), Offset(round * 1000))]).unwrap(),
                false => {
                    let gone = wal.index().trim(shard(0), &[(key(0, 1), Offset(round * 1000))]);
                    let mut batch = WriteBatch::default();
                    for sequence in (round - 1) * 1000..round * 1000 {
                        let entry = WalEntry {
                            shard: shard(0),
                            epoch: EPOCH,
                            sequence,
                            history: key(0, 1),
                            start: Offset(0),
                            end: Offset(0),
                            dense: true,
                            bytes: 0,
                        };
                        batch.delete_cf(wal.family(ENTRIES).unwrap(), entry.key());
                    }
                    assert!(!gone.is_empty());
                    wal.db.write(batch).unwrap();
                }
            }
        }
        let trims = began.elapsed();
        drop(wal);
        let began = Instant::now();
        let left = open(folder.path()).stats().entries;
        let how = if by_range { "range" } else { "key" };
        println!(
            "100 trims of 1000 entries by {how}: {trims:?}; opened behind them in {:?}, {left} entries",
            began.elapsed()
        );
    }
}
