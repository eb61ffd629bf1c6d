//! What voters ask one another that is not consensus.

use std::sync::Arc;
use std::time::Duration;

use letterbox_env::{BoxFuture, Env};
use letterbox_protocol::model::BrokerId;
use tokio::time::{Instant, timeout};

use super::eventually;
use super::three_voters::{config, free_ports};
use crate::quorum::{Answering, AskError, Lane, MetadataQuorum, RaftQuorum};

/// Answers `b"now"`, and nothing else ever.
struct Reluctant;

impl Answering for Reluctant {
    fn answer<'a>(&'a self, _from: BrokerId, question: Vec<u8>) -> BoxFuture<'a, Vec<u8>> {
        Box::pin(async move {
            match question == b"now" {
                true => question,
                false => std::future::pending().await,
            }
        })
    }

    fn ended(&self, _node: BrokerId) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_does_not_wait_behind_operations_and_nobody_asks_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports().await;
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let config = config(dir.path(), id, &ports);
        nodes.push(RaftQuorum::open(Env::real(), config).await.unwrap());
    }
    let mut found = None;
    eventually("one leads, and another knows it", || {
        let leader = nodes[0].status().leader;
        let is_known = nodes.iter().all(|node| node.status().leader == leader);
        found = leader.filter(|_| is_known);
        found.is_some()
    })
    .await;
    let leader = found.unwrap();
    let of = |id: BrokerId| &nodes[usize::try_from(id.0 - 1).unwrap()];
    let asking = nodes.iter().find(|node| node.status().node_id != leader).unwrap();
    // A question that comes before there is who answers is not lost.
    let soon = Instant::now() + Duration::from_secs(20);
    let early = asking.ask(leader, Lane::Operations, soon, b"now");
    let answers = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        of(leader).answer_with(Arc::new(Reluctant));
    };
    let (early, ()) = tokio::join!(early, answers);
    assert_eq!(early.unwrap(), b"now");

    let deadline = Instant::now() + Duration::from_secs(3);
    let never = (0..40).map(|_| asking.ask(leader, Lane::Operations, deadline, b"never"));
    let never = futures::future::join_all(never);
    let lives = async {
        for lane in [Lane::Heartbeats, Lane::Status, Lane::Heartbeats] {
            let answer = timeout(Duration::from_secs(2), asking.ask(leader, lane, soon, b"now"));
            assert_eq!(answer.await.expect("it waits").unwrap(), b"now");
        }
    };
    let (never, ()) = tokio::join!(never, lives);
    assert!(Instant::now() >= deadline);
    let heard = never.iter().filter(|answer| matches!(answer, Err(AskError::NoAnswer { .. })));
    assert_eq!(heard.count(), 8, "the others had no turn, and know that they were not heard");
    assert!(never.iter().all(Result::is_err));
    for node in &nodes {
        node.shutdown().await;
    }
}
