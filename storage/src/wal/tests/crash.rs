//! A process that is killed while it appends and trims: what it said is there must be there.

use super::*;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

const FOLDER: &str = "TIDEMILL_WAL_CRASH_FOLDER";
const LANES: u32 = 4;

/// Where each lane ends, from nothing committed on or from what the run before committed.
fn ends(wal: &Wal, committed: &BTreeMap<u32, u64>) -> BTreeMap<u32, u64> {
    let end = |p: u32| replayed_to(wal, shard(p % 2), key(p, 1), committed.get(&p).copied().unwrap_or(0));
    (0..LANES).map(|p| (p, end(p))).collect()
}

/// Not a test of its own: the process that is killed by the test below.
#[test]
fn child_appends_until_it_is_killed() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let wal = open(Path::new(&folder));
    let starts: Vec<u64> = std::env::var("STARTS")
        .unwrap()
        .split(',')
        .map(|n| n.parse().unwrap())
        .collect();
    std::thread::scope(|scope| {
        for p in 0..LANES {
            let (wal, mut next) = (&wal, starts[p as usize]);
            scope.spawn(move || {
                for round in 0.. {
                    let chunks = [full(key(p, 1), next, next + 5), full(key(p, 1), next + 5, next + 8)];
                    wal.append(shard(p % 2), EPOCH, &chunks).unwrap();
                    next += 8;
                    println!("end {p} {next}");
                    if round % 10 == 9 {
                        // Known to be committed before it is trimmed.
                        println!("committed {p} {}", next - 20);
                        wal.trim(shard(p % 2), &[(key(p, 1), Offset(next - 20))]).unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn what_a_killed_process_acknowledged_is_there() {
    let folder = TempDir::new().unwrap();
    let program = std::env::current_exe().unwrap();
    let (mut committed, mut acknowledged) = (BTreeMap::new(), BTreeMap::new());
    let mut starts = vec!["0".to_owned(); LANES as usize];
    for round in 0..8 {
        let mut child = Command::new(&program)
            .args([
                "--exact",
                "wal::tests::crash::child_appends_until_it_is_killed",
                "--nocapture",
            ])
            .env(FOLDER, folder.path())
            .env("STARTS", starts.join(","))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || output.lines().map_while(Result::ok).collect::<Vec<_>>());
        std::thread::sleep(Duration::from_millis(300 + 137 * round % 400));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in reader.join().unwrap() {
            let words: Vec<&str> = line.split(' ').collect();
            let [what, p, offset] = words[..] else { continue };
            let (Ok(p), Ok(offset)) = (p.parse(), offset.parse()) else {
                continue;
            };
            match what {
                "end" => _ = acknowledged.insert(p, offset),
                "committed" => _ = committed.insert(p, offset),
                _ => {}
            }
        }
        let found = ends(&open(folder.path()), &committed);
        for (p, end) in &acknowledged {
            assert!(
                found[p] >= *end,
                "round {round}: partition {p} ends at {}, acknowledged was {end}",
                found[p]
            );
        }
        starts = found.values().map(u64::to_string).collect();
    }
    let least: u64 = acknowledged.values().copied().min().unwrap_or(0);
    assert!(
        acknowledged.len() == LANES as usize && least > 100,
        "the child hardly ran: {acknowledged:?}"
    );
}
