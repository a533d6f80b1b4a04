//! Full cores are no reason to take anybody for gone. Five minutes of it are `scripts/bench saturation`.

use tidemill_chaos_tests::saturation::measure;

#[tokio::test(flavor = "multi_thread")]
async fn full_cores_cause_no_election_and_nobody_is_taken_for_down() {
    let seen = measure(45).await.unwrap();
    println!("{seen:?}");
    seen.check().unwrap();
    assert!(seen.busy > 0.8, "the cores were not full");
}
