//! Nodes with little memory read a backlog while heavy queries run. What they do not have, they do not use: consumers wait,
//! memtables are flushed early, queries spill or are refused.

use tidemill_chaos_tests::throughput::{Options, measure};

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_512_mib_keep_within_it() {
    let options = Options {
        rows: 1_600_000,
        nodes: 3,
        memory: Some("512MiB".into()),
        queries: true,
    };
    // Every row is there once, or this fails.
    let done = measure(&options).await.unwrap();
    println!("{done:?}");
    // The peak of what the kernel counts as resident: what a control group would kill for, and files of code besides.
    assert!(done.peak_mib <= 512, "a node had {} MiB", done.peak_mib);
    assert!(done.queries.failed.is_empty(), "{:?}", done.queries.failed);
    assert!(done.queries.answered > 0, "{:?}", done.queries);
}
