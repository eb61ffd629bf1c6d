//! Three voters over loopback.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use letterbox_env::Env;

use super::{controller, eventually, registration, topic};
use crate::controller::ControllerError;
use crate::quorum::{MetadataQuorum, QuorumConfig, QuorumTiming, RaftQuorum};

pub(super) fn config(dir: &Path, id: i32, ports: &BTreeMap<i32, u16>) -> QuorumConfig {
    let voters = ports.iter().map(|(id, port)| (*id, ("127.0.0.1".to_owned(), *port))).collect();
    QuorumConfig {
        node_id: id,
        dir: dir.join(format!("node-{id}")),
        voters,
        listener: Some(("127.0.0.1".to_owned(), ports[&id])),
        cluster_id: Some("abcdefghijklmnopqrstuv".to_owned()),
        servers: Vec::new(),
        reached_at: None,
        joins: false,
        must_exist: false,
        timing: QuorumTiming {
            heartbeat: Duration::from_millis(100),
            lease: Duration::from_millis(800),
            fetch_timeout: Duration::from_millis(1600),
            election_timeout: Duration::from_millis(800),
            ..QuorumTiming::default()
        },
    }
}

/// Ports that were free a moment ago.
pub(super) async fn free_ports() -> BTreeMap<i32, u16> {
    let mut ports = BTreeMap::new();
    let mut held = Vec::new();
    for id in 1..=3 {
        let listener = Env::real().net.bind("127.0.0.1", 0).await.unwrap();
        ports.insert(id, listener.local_addr().unwrap().port());
        held.push(listener);
    }
    ports
}

pub(super) type Nodes = BTreeMap<i32, Arc<RaftQuorum>>;

/// Starts all three together: they found a cluster only so.
pub(super) async fn open_all(dir: &Path, ports: &BTreeMap<i32, u16>) -> Nodes {
    let all = ports.keys().map(|id| async move {
        (*id, RaftQuorum::open(Env::real(), config(dir, *id, ports)).await.unwrap())
    });
    futures::future::join_all(all).await.into_iter().collect()
}

/// The node that leads and that a majority of `nodes` follows.
pub(super) async fn leader(nodes: &Nodes) -> i32 {
    let mut found = None;
    eventually("a leader", || {
        found = nodes.keys().copied().find(|id| {
            nodes
                .values()
                .filter(|node| node.status().leader.map(|leader| leader.0) == Some(*id))
                .count()
                == nodes.len()
        });
        found.is_some()
    })
    .await;
    found.unwrap()
}

pub(super) async fn create(nodes: &Nodes, name: &str) {
    let env = Env::real();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let id = leader(nodes).await;
        let controller = controller(&env, &nodes[&id]);
        let result = async {
            let _ = controller.run(registration(1)).await?;
            controller.run(topic(name, 2)).await
        };
        let result: Result<_, ControllerError> = result.await;
        controller.shutdown().await;
        match result {
            Ok(done) => {
                let made = done.outcome;
                return assert!(
                    made[0].1.is_ok() || made[0].1.as_ref().unwrap_err().code.code() == 36,
                    "{made:?}"
                );
            }
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_voters_agree_and_survive_the_leaders_end() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports().await;
    let env = Env::real();
    let mut nodes = open_all(dir.path(), &ports).await;
    create(&nodes, "a").await;
    eventually("the topic on every voter", || {
        nodes.values().all(|node| node.image().topic("a").is_some())
    })
    .await;
    let topics: Vec<_> = nodes.values().map(|node| node.image().topic("a").cloned()).collect();
    assert!(topics.iter().all(|topic| *topic == topics[0]));

    // A voter that does not lead has the one that does carry the operation out, and tells the index
    // that shows it.
    let first = leader(&nodes).await;
    let follower = *nodes.keys().find(|id| **id != first).unwrap();
    let (leading, following) =
        (controller(&env, &nodes[&first]), controller(&env, &nodes[&follower]));
    let done = following.run(topic("b", 1)).await.unwrap();
    assert!(done.outcome[0].1.is_ok(), "{done:?}");
    eventually("that index on the voter that was asked", || {
        nodes[&follower].image().applied_index >= done.index
    })
    .await;
    assert!(nodes[&follower].image().topic("b").is_some());
    leading.shutdown().await;
    following.shutdown().await;

    // The leader ends; the others go on.
    let ended = nodes.remove(&first).unwrap();
    ended.shutdown().await;
    drop(ended);
    create(&nodes, "c").await;

    // It comes back with its disk and catches up.
    nodes.insert(
        first,
        RaftQuorum::open(env.clone(), config(dir.path(), first, &ports)).await.unwrap(),
    );
    eventually("what it missed", || nodes[&first].image().topic("c").is_some()).await;
    for node in nodes.values() {
        node.shutdown().await;
    }
}

/// The leader ends while it writes the parts of a decision: every voter shows all of it or nothing,
/// at every moment, and they agree which.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_that_ends_in_the_middle_of_a_decision_leaves_all_of_it_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports().await;
    let env = Env::real();
    let mut nodes = open_all(dir.path(), &ports).await;
    create(&nodes, "small").await;
    for round in 0u64..3 {
        let name = format!("large-{round}");
        let mut watchers = tokio::task::JoinSet::new();
        for node in nodes.values() {
            let (mut images, name) = (node.subscribe(), name.clone());
            watchers.spawn(async move {
                loop {
                    let topic = images.borrow_and_update().topic(&name).cloned();
                    let count = topic.map_or(0, |topic| topic.partitions.len());
                    assert!(count == 0 || count == 10_000, "{count} partitions are seen");
                    if images.changed().await.is_err() {
                        return;
                    }
                }
            });
        }
        let first = leader(&nodes).await;
        let proposer = controller(&env, &nodes[&first]);
        let before = nodes[&first].status().last_log_index;
        let operation = proposer.run(topic(&name, 10_000));
        let end = async {
            // A few parts are written, more in each round, and there are about ten.
            let parts = 2 + 2 * round;
            eventually("some parts", || nodes[&first].status().last_log_index > before + parts)
                .await;
            nodes[&first].shutdown().await;
        };
        let (result, ()) = tokio::join!(operation, end);
        proposer.shutdown().await;
        nodes.remove(&first);
        leader(&nodes).await;
        create(&nodes, &format!("after-{round}")).await;
        let shows = |nodes: &Nodes| nodes.values().all(|node| node.image().topic(&name).is_some());
        if result.is_ok() {
            eventually("what was answered", || shows(&nodes)).await;
        }
        nodes.insert(
            first,
            RaftQuorum::open(env.clone(), config(dir.path(), first, &ports)).await.unwrap(),
        );
        let last = format!("after-{round}");
        eventually("all voters are at the same entry", || {
            nodes.values().all(|node| node.image().topic(&last).is_some())
        })
        .await;
        let topics: Vec<_> =
            nodes.values().map(|node| node.image().topic(&name).cloned()).collect();
        assert!(topics.iter().all(|topic| *topic == topics[0]));
        watchers.abort_all();
        while let Some(watched) = watchers.join_next().await {
            assert!(!watched.is_err_and(|error| error.is_panic()));
        }
    }
    for node in nodes.values() {
        node.shutdown().await;
    }
}

/// A host that is off, or a process that is stopped, refuses no connection: it does not answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_that_do_not_answer_are_told_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports().await;
    let nodes = open_all(dir.path(), &ports).await;
    create(&nodes, "a").await;
    let mut silent = Vec::new();
    for id in [2, 3] {
        nodes[&id].shutdown().await;
        // The kernel takes connections, and nobody hears them.
        silent.push(Env::real().net.bind("127.0.0.1", ports[&id]).await.unwrap());
    }
    eventually("both are told", || {
        let told = nodes[&1].unreachable();
        told.len() == 2 && told.values().all(|why| why.contains("does not answer"))
    })
    .await;
    drop(silent);
    eventually("they refuse now", || {
        nodes[&1].unreachable().values().all(|why| why.contains("refused"))
    })
    .await;
    nodes[&1].shutdown().await;
}
