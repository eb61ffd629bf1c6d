//! Three voters over loopback.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use letterbox_env::Env;

use super::{controller, eventually, registration, topic};
use crate::controller::ControllerError;
use crate::quorum::{MetadataQuorum, QuorumConfig, QuorumTiming, RaftQuorum};

fn config(dir: &Path, id: i32, ports: &BTreeMap<i32, u16>) -> QuorumConfig {
    let voters = ports.iter().map(|(id, port)| (*id, ("127.0.0.1".to_owned(), *port))).collect();
    QuorumConfig {
        node_id: id,
        dir: dir.join(format!("node-{id}")),
        voters,
        listener: Some(("127.0.0.1".to_owned(), ports[&id])),
        cluster_id: Some("abcdefghijklmnopqrstuv".to_owned()),
        must_exist: false,
        timing: QuorumTiming {
            heartbeat: Duration::from_millis(100),
            election_timeout: Duration::from_millis(400),
        },
    }
}

/// Ports that were free a moment ago.
async fn free_ports() -> BTreeMap<i32, u16> {
    let mut ports = BTreeMap::new();
    let mut held = Vec::new();
    for id in 1..=3 {
        let listener = Env::real().net.bind("127.0.0.1", 0).await.unwrap();
        ports.insert(id, listener.local_addr().unwrap().port());
        held.push(listener);
    }
    ports
}

type Nodes = BTreeMap<i32, Arc<RaftQuorum>>;

/// The node that leads and that a majority of `nodes` follows.
async fn leader(nodes: &Nodes) -> i32 {
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

async fn create(nodes: &Nodes, name: &str) {
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
#[allow(clippy::disallowed_methods, reason = "the test empties a disk")]
async fn three_voters_agree_survive_the_leaders_end_and_refuse_an_emptied_voter() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports().await;
    let env = Env::real();
    let mut nodes = Nodes::new();
    for id in 1..=3 {
        nodes.insert(
            id,
            RaftQuorum::open(env.clone(), config(dir.path(), id, &ports)).await.unwrap(),
        );
    }
    create(&nodes, "a").await;
    eventually("the topic on every voter", || {
        nodes.values().all(|node| node.image().topic("a").is_some())
    })
    .await;
    let topics: Vec<_> = nodes.values().map(|node| node.image().topic("a").cloned()).collect();
    assert!(topics.iter().all(|topic| *topic == topics[0]));

    // A voter that does not lead says who does.
    let first = leader(&nodes).await;
    let follower = *nodes.keys().find(|id| **id != first).unwrap();
    let refused = controller(&env, &nodes[&follower]).run(topic("b", 1)).await.unwrap_err();
    assert!(
        matches!(refused, ControllerError::Quorum(_)) && refused.code().code() == 41,
        "{refused:?}"
    );

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

    // It comes back with an empty disk: nobody talks to it, and the others go on.
    let ended = nodes.remove(&first).unwrap();
    ended.shutdown().await;
    drop(ended);
    std::fs::remove_dir_all(dir.path().join(format!("node-{first}"))).unwrap();
    let empty = RaftQuorum::open(env.clone(), config(dir.path(), first, &ports)).await.unwrap();
    create(&nodes, "d").await;
    eventually("both others have it", || {
        nodes.values().all(|node| node.image().topic("d").is_some())
    })
    .await;
    eventually("both others refuse it", || {
        nodes.values().all(|node| node.refused_connections() > 0)
    })
    .await;
    assert_eq!(empty.image().topic_count(), 0);
    assert!(empty.status().leader.is_none());
    empty.shutdown().await;
    for node in nodes.values() {
        node.shutdown().await;
    }
}
