//! What voters ask one another that is not consensus.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use letterbox_env::{BoxFuture, Env};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use tokio::time::{Instant, timeout};

use super::three_voters::{free_ports, open_all};
use super::{controller, eventually};
use crate::controller::ControllerError;
use crate::metadata::decide::{DeleteTopics, TopicSelector};
use crate::quorum::network::{ASK, exchange};
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

/// Three voters, and who leads: first one that does not.
async fn voters(dir: &Path) -> ([Arc<RaftQuorum>; 3], Arc<RaftQuorum>, Arc<RaftQuorum>) {
    let ports = free_ports().await;
    let nodes: Vec<_> = open_all(dir, &ports).await.into_values().collect();
    let nodes: [_; 3] = nodes.try_into().ok().unwrap();
    let mut found = None;
    eventually("one leads, and all know it", || {
        let leader = nodes[0].status().leader;
        let is_known = nodes.iter().all(|node| node.status().leader == leader);
        found = leader.filter(|_| is_known);
        found.is_some()
    })
    .await;
    let leads = |node: &&Arc<RaftQuorum>| Some(node.status().node_id) == found;
    let leading = nodes.iter().find(leads).unwrap().clone();
    let following = nodes.iter().find(|node| !leads(node)).unwrap().clone();
    (nodes, following, leading)
}

/// What one node takes, each does, whichever leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_is_as_large_as_it_may_be_wherever_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (nodes, following, leading) = voters(dir.path()).await;
    let env = Env::real();
    let (at_leader, elsewhere) = (controller(&env, &leading), controller(&env, &following));
    // Each quote is written as two characters, and as four when it is passed on.
    let topics = |count| DeleteTopics {
        topics: (0..count)
            .map(|n| TopicSelector::Name(format!("{n}{}", "\"".repeat(100))))
            .collect(),
    };
    for (count, is_taken) in [(35_000, true), (45_000, false), (400_000, false)] {
        for controller in [&at_leader, &elsewhere] {
            match controller.run_within(topics(count), Duration::from_secs(60)).await {
                Ok(done) => assert!(is_taken && done.outcome.len() == count, "{count}"),
                Err(ControllerError::Refused(error)) => {
                    assert!(!is_taken && error.code == ErrorCode::PolicyViolation, "{count}");
                }
                Err(error) => panic!("{count}: {error}"),
            }
        }
    }
    at_leader.shutdown().await;
    elsewhere.shutdown().await;
    for node in &nodes {
        node.shutdown().await;
    }
}

/// Begins what it is asked, and never ends it.
#[derive(Default)]
struct Counted {
    begun: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
}

struct Counts(Arc<AtomicUsize>);

impl Drop for Counts {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Answering for Counted {
    fn answer<'a>(&'a self, _from: BrokerId, _question: Vec<u8>) -> BoxFuture<'a, Vec<u8>> {
        let dropped = Counts(Arc::clone(&self.dropped));
        Box::pin(async move {
            self.begun.fetch_add(1, Ordering::Relaxed);
            let _dropped = dropped;
            std::future::pending().await
        })
    }

    fn ended(&self, _node: BrokerId) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_ends_with_its_asker_and_is_not_begun_after_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let (nodes, asking, leading) = voters(dir.path()).await;
    let leader = leading.status().node_id;
    let counted = Counted::default();
    let (begun, dropped) = (Arc::clone(&counted.begun), Arc::clone(&counted.dropped));
    leading.answer_with(Arc::new(counted));
    let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
    let later = Instant::now() + Duration::from_secs(600);
    let given_up =
        timeout(Duration::from_secs(1), asking.ask(leader, Lane::Operations, later, b"?"));
    assert!(given_up.await.is_err());
    eventually("it ends with its asker", || (count(&begun), count(&dropped)) == (1, 1)).await;

    // By the clock of the node that is asked: one was to be answered before it arrives.
    let link = asking.dialer.ways_to(leader).unwrap().consensus.clone();
    for (until, is_begun) in [(0, false), (u64::MAX, true)] {
        let mut connection = link.take().await.unwrap();
        let question = [&u64::to_le_bytes(until)[..], b"?"].concat();
        let asked = exchange(&mut connection.stream, ASK, &question);
        let asked = timeout(Duration::from_secs(1), asked).await;
        assert!(!matches!(asked, Ok(Ok(_))));
        assert_eq!((asked.is_err(), count(&begun)), (is_begun, 1 + usize::from(is_begun)));
    }
    for node in &nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_does_not_wait_behind_operations_and_nobody_asks_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (nodes, asking, leading) = voters(dir.path()).await;
    let leader = leading.status().node_id;
    // A question that comes before there is who answers is not lost.
    let soon = Instant::now() + Duration::from_secs(20);
    let early = asking.ask(leader, Lane::Operations, soon, b"now");
    let answers = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        leading.answer_with(Arc::new(Reluctant));
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
