//! The client against nodes that refuse, vanish, hang and break off.

#![allow(clippy::unwrap_used, reason = "a failure of the scaffolding fails the test")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use support::{Act, End, Node, batch, message, nobody, pieces, retryable};
use tidemill_client::{Answer, Client, ClientConfig, ClientError, Rows};
use tonic::{Code, Status};

const READ: &str = "SELECT a FROM t";
const WRITE: &str = "CREATE TABLE t (a BIGINT)";

fn client<'a>(addresses: impl IntoIterator<Item = &'a String>) -> Client {
    let mut config = ClientConfig::new(addresses);
    config.connect_timeout = Duration::from_millis(500);
    config.request_timeout = Duration::from_millis(500);
    config.retry_for = Duration::from_secs(2);
    Client::new(config).unwrap()
}

fn rows(answer: Result<Answer, ClientError>) -> Rows {
    match answer {
        Ok(Answer::Rows(rows)) => rows,
        other => panic!("rows expected, not {other:?}"),
    }
}

fn text(answer: Result<Answer, ClientError>) -> String {
    match answer {
        Ok(Answer::Message(text)) => text,
        other => panic!("a message expected, not {other:?}"),
    }
}

fn good() -> Act {
    Act::Pieces(pieces(&[batch([1, 2]), batch([3])], 1 << 20, true), End::Well)
}

async fn values(rows: Rows) -> Result<i64, ClientError> {
    Ok(rows.collect().await?.iter().map(|batch| batch.num_rows() as i64).sum())
}

#[tokio::test]
async fn rows_arrive_however_they_are_cut() {
    let batches = [batch(0..100), batch(100..101), batch(101..300)];
    for size in [1, 7, 64, 1000, 1 << 20] {
        let node = Node::start([Act::Pieces(pieces(&batches, size, true), End::Well)]).await;
        let answer = rows(client([&node.address]).query(READ).await);
        assert_eq!(answer.schema(), batches[0].schema());
        assert_eq!(answer.collect().await.unwrap(), batches, "{size}");
    }
}

#[tokio::test]
async fn rows_without_an_end_are_not_all() {
    for size in [1, 7, 64, 1000, 1 << 20] {
        let sent = [batch(0..100), batch(100..300)];
        let node = Node::start([Act::Pieces(pieces(&sent, size, false), End::Well)]).await;
        let error = rows(client([&node.address]).query(READ).await)
            .collect()
            .await
            .unwrap_err();
        assert!(matches!(error, ClientError::Server { .. }), "{size}: {error:?}");
        assert!(error.to_string().contains("it is not all"), "{error}");
    }
}

#[tokio::test]
async fn no_rows_still_have_a_schema() {
    let node = Node::start([Act::Pieces(pieces(&[], 1 << 20, true), End::Well)]).await;
    let mut answer = rows(client([&node.address]).query(READ).await);
    assert_eq!(answer.schema(), batch([]).schema());
    assert_eq!(answer.next().await.unwrap(), None);
    assert_eq!(answer.next().await.unwrap(), None);
}

#[tokio::test]
async fn batches_without_rows_are_not_handed_out() {
    let sent = [batch([]), batch([1]), batch([]), batch([2]), batch([])];
    let node = Node::start([Act::Pieces(pieces(&sent, 1 << 20, true), End::Well)]).await;
    let answer = rows(client([&node.address]).query(READ).await);
    assert_eq!(answer.collect().await.unwrap(), [batch([1]), batch([2])]);
}

#[tokio::test]
async fn a_refused_connection_is_passed_over_even_by_writes() {
    let node = Node::start([]).await;
    let client = client([&nobody().await, &node.address]);
    assert_eq!(text(client.query(WRITE).await), "ok");
    assert_eq!(client.cluster_status().await.unwrap().cluster, "demo");
}

#[tokio::test]
async fn nobody_listens() {
    let addresses = [nobody().await, nobody().await];
    let begun = Instant::now();
    let Err(ClientError::Unavailable { tried }) = client(&addresses).query(WRITE).await else {
        panic!("somebody answered");
    };
    assert!(begun.elapsed() < Duration::from_secs(4));
    assert_eq!(tried.len(), 2);
    for tried in tried {
        assert!(addresses.contains(&tried.address));
        assert!(tried.reason.contains("refused"), "{tried}");
    }
}

#[tokio::test]
async fn retryable_errors_are_retried_even_by_writes() {
    let first = Node::start([Act::Fail(retryable("no leader")), Act::Fail(retryable("no leader"))]).await;
    let client = client([&first.address]);
    assert_eq!(text(client.query(WRITE).await), "ok");
    assert_eq!(first.requests().len(), 3);
}

#[tokio::test]
async fn retryable_for_ever_is_unavailable() {
    let node = Node::start((0..1000).map(|_| Act::Fail(retryable("no leader")))).await;
    let error = client([&node.address]).query(WRITE).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the cluster is unavailable: {}: no leader", node.address)
    );
    assert!(
        (3..20).contains(&node.requests().len()),
        "it backs off: {}",
        node.requests().len()
    );
}

#[tokio::test]
async fn a_read_whose_node_vanishes_is_asked_elsewhere() {
    for act in [Act::Vanish, Act::Hang, Act::Fail(Status::unavailable("shutting down"))] {
        let nodes = [Node::start([act]).await, Node::start([good()]).await];
        let client = client(nodes.iter().map(|node| &node.address));
        assert_eq!(values(rows(client.query(READ).await)).await, Ok(3));
        assert_eq!(nodes[0].requests().len(), 1);
    }
}

#[tokio::test]
async fn a_write_whose_node_vanishes_is_unknown() {
    let acts = [
        Act::Vanish,
        Act::Hang,
        Act::Fail(Status::internal("oops")),
        Act::Pieces(vec![], End::Cut),
    ];
    for act in acts {
        let nodes = [Node::start([act]).await, Node::start([]).await];
        let client = client(nodes.iter().map(|node| &node.address));
        let error = client.query(WRITE).await.unwrap_err();
        assert!(
            matches!(&error, ClientError::Unknown { address, .. } if *address == nodes[0].address),
            "{error:?}"
        );
        assert!(nodes[1].requests().is_empty(), "never sent twice");
    }
}

#[tokio::test]
async fn a_read_that_breaks_before_its_first_rows_is_repeated() {
    let schema_only = || pieces(&[], 1 << 20, false);
    for end in [End::Cut, End::Fail(retryable("shard moved"))] {
        let nodes = [
            Node::start([Act::Pieces(schema_only(), end)]).await,
            Node::start([good()]).await,
        ];
        let client = client(nodes.iter().map(|node| &node.address));
        assert_eq!(values(rows(client.query(READ).await)).await, Ok(3));
    }
}

#[tokio::test]
async fn a_read_that_breaks_later_is_an_error_not_a_repetition() {
    for end in [End::Cut, End::Fail(retryable("shard moved"))] {
        let act = Act::Pieces(pieces(&[batch([1]), batch([2])], 1 << 20, false), end);
        let nodes = [Node::start([act]).await, Node::start([good()]).await];
        let mut answer = rows(client(nodes.iter().map(|node| &node.address)).query(READ).await);
        assert_eq!(answer.next().await.unwrap(), Some(batch([1])));
        assert_eq!(answer.next().await.unwrap(), Some(batch([2])));
        let error = answer.next().await.unwrap_err();
        assert!(matches!(&error, ClientError::Unavailable { .. }), "{error:?}");
        assert!(error.to_string().contains("broke off"), "{error}");
        assert_eq!(answer.next().await, Ok(None));
        assert!(nodes[1].requests().is_empty());
    }
}

#[tokio::test]
async fn a_lost_connection_is_made_again() {
    let node = Node::start([]).await;
    let client = client([&node.address]);
    assert_eq!(text(client.query(WRITE).await), "ok");
    node.cut();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(text(client.query(WRITE).await), "ok");
}

#[tokio::test]
async fn the_node_that_answered_is_asked_first() {
    let nodes = [
        Node::start([Act::Fail(retryable("starting"))]).await,
        Node::start([]).await,
    ];
    let client = client(nodes.iter().map(|node| &node.address));
    for _ in 0..3 {
        assert_eq!(text(client.query(WRITE).await), "ok");
    }
    assert_eq!((nodes[0].requests().len(), nodes[1].requests().len()), (1, 3));
}

#[tokio::test]
async fn a_wrong_statement_is_not_repeated() {
    let node = Node::start([Act::Fail(Status::new(Code::InvalidArgument, "no table 't'"))]).await;
    let error = client([&node.address]).query(READ).await.unwrap_err();
    let message = "no table 't'".to_owned();
    assert_eq!(
        error,
        ClientError::Invalid {
            message,
            line: 0,
            column: 0,
            length: 0
        }
    );
    assert_eq!(node.requests().len(), 1);
}

#[tokio::test]
async fn broken_answers_are_errors() {
    let mut truncated = pieces(&[batch(0..100)], 100, false);
    truncated.pop();
    for pieces in [vec![], truncated] {
        let node = Node::start([Act::Pieces(pieces, End::Well)]).await;
        let error = client([&node.address]).query(READ).await.unwrap_err();
        assert!(matches!(error, ClientError::Server { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn accepted_settings_belong_to_the_session() {
    let refused = Act::Fail(Status::invalid_argument("no such setting"));
    let ok = || Act::Pieces(vec![message("ok")], End::Well);
    let node = Node::start([ok(), refused]).await;
    let client = client([&node.address]);
    text(client.query("SET tidemill.consistency = committed").await);
    client.query("SET tidemill.nonsense = 1").await.unwrap_err();
    text(client.clone().query(WRITE).await);
    text(client.query_with(WRITE, &BTreeMap::new()).await);
    text(client.query("SET tidemill.consistency = DEFAULT").await);
    text(client.query(WRITE).await);

    let sent: Vec<_> = node.requests().iter().map(|request| request.settings.len()).collect();
    assert_eq!(sent, [0, 1, 1, 0, 1, 0]);
    assert_eq!(node.requests()[2].settings["tidemill.consistency"], "committed");
}

#[tokio::test]
async fn calls_can_be_spawned() {
    let node = Node::start([]).await;
    let client = client([&node.address]);
    let task = tokio::spawn(async move { client.query(WRITE).await });
    assert_eq!(text(task.await.unwrap()), "ok");
}
