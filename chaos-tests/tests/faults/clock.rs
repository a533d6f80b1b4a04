//! A process goes by the clock that it was given.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use tidemill_chaos_tests::fault::clock::{Clock, Shift};

/// Says, for each line that it reads, the wall clock and the monotonic clock, and how long a wait of 0.3 s took by the latter.
const WATCH: &str = "
import sys, time, threading
for line in sys.stdin:
    wall, mono = time.time(), time.monotonic()
    threading.Event().wait(0.2)
    time.sleep(0.1)
    print(wall, mono, time.monotonic() - mono, time.time() - wall, flush=True)
";

#[test]
fn a_process_sees_jumps_and_drift_of_the_wall_clock_alone() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::new(folder.path(), "n1").unwrap();
    let mut command = Command::new("python3");
    clock.give(&mut command);
    command.args(["-c", WATCH]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut asked, mut said) = (
        child.stdin.take().unwrap(),
        BufReader::new(child.stdout.take().unwrap()),
    );
    let mut look = |shift: Shift| {
        clock.set(shift).unwrap();
        writeln!(asked, "now").unwrap();
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let numbers: Vec<f64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
        let right = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        // Ahead of the harness's clock when it began to look; by how much its waits were too long; its wall clock per second.
        (numbers[0] + numbers[2] - right, numbers[2], numbers[3] / numbers[2])
    };
    let jump = |jump_s| Shift { jump_s, rate: 1.0 };
    let drift = |rate| Shift { jump_s: 0, rate };
    for (shift, ahead, rate) in [
        (Shift::default(), 0.0, 1.0),
        (jump(3600), 3600.0, 1.0),
        (jump(-3600), -3600.0, 1.0),
        (drift(2.0), 0.0, 2.0),
        (drift(0.5), 0.0, 0.5),
        (Shift::default(), 0.0, 1.0),
    ] {
        let (seen, waited, ran) = look(shift);
        assert!((seen - ahead).abs() < 1.0, "{shift:?}: {seen} s ahead");
        assert!((0.3..1.0).contains(&waited), "{shift:?}: waited for {waited} s");
        assert!((ran - rate).abs() < 0.1, "{shift:?}: {ran} seconds in a second");
    }
    drop(asked);
    child.wait().unwrap();
}
