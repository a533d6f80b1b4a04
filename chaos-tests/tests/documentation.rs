//! The statements in the documentation, and what failures say how to see them again, run as they stand there.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::process::Command;
use tidemill_chaos_tests::stage::Stage;
use tidemill_chaos_tests::world::{checkout, output};
use tidemill_client::sql::split;

/// The blocks of a page that say they are SQL.
fn sql_of(page: &str) -> String {
    let text = std::fs::read_to_string(checkout().join("docs").join(page)).unwrap();
    let blocks = text.split("```sql\n").skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_about_guarantees_and_repairing_run_as_documented() {
    let stage = Stage::new(1, &[], false).await.unwrap();
    let mut source = stage.begin(2).await.unwrap();
    for partition in 0..2 {
        source.send_ids(partition, 0..200).unwrap();
    }
    source.flush().unwrap();
    stage.caught_up().await.unwrap();
    let mut statements = 0;
    for page in ["guarantees.md", "keeping-up.md"] {
        for statement in split(&sql_of(page)) {
            stage.run(statement.text).await.unwrap();
            statements += 1;
        }
    }
    assert!(statements > 15, "only {statements} statements were found");
    // RESET … KEEP ROWS reads again what is there, as its page says; nothing else went wrong.
    stage.check().unwrap();
    assert_eq!(
        stage
            .ask("SELECT count(*) FROM system.ledger WHERE NOT balanced")
            .await
            .unwrap(),
        0
    );
}

/// `timeout` ends what stands still: openraft's simulation does within a runtime of another kind.
#[test]
fn the_line_that_a_broken_history_prints_replays_it() {
    for simulation in ["sim", "raft"] {
        let mut replay = Command::new("timeout");
        replay.args(["60", env!("CARGO_BIN_EXE_chaos"), simulation, "--seed", "7", "--tell"]);
        let told = output(&mut replay).unwrap();
        assert!(told.ends_with("twice the same history\n"), "{simulation}: {told}");
    }
}
