//! Voters that are added, removed and replaced.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use letterbox_env::Env;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use tokio::time::Instant;
use uuid::Uuid;

use super::three_voters::{Nodes, config, create, free_ports, leader};
use super::{controller, eventually};
use crate::controller::ControllerError;
use crate::quorum::{MetadataQuorum as _, QuorumConfig, RaftQuorum, Seat, VoterChange};

const SOON: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(30);

/// `directory.id` of a node, in its `turn`th directory.
fn directory(id: i32, turn: u128) -> Uuid {
    Uuid::from_u128(u128::try_from(id).unwrap() * 100 + turn)
}

async fn open(config: QuorumConfig, turn: u128) -> Arc<RaftQuorum> {
    let directory = directory(config.node_id, turn);
    let deadline = Instant::now() + PATIENCE;
    loop {
        // The port of the process before may not be free yet.
        match Seat::take(Env::real(), config.clone()).await {
            Ok(seat) => return seat.join(Some(directory)).await.unwrap(),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A node that knows where the others are, and is none of the founders.
fn joining(dir: &Path, id: i32, ports: &BTreeMap<i32, u16>, joins: bool) -> QuorumConfig {
    let others = ports.iter().filter(|(other, _)| **other != id);
    QuorumConfig {
        voters: BTreeMap::new(),
        servers: others.map(|(_, port)| ("127.0.0.1".to_owned(), *port)).collect(),
        reached_at: Some(("127.0.0.1".to_owned(), ports[&id])),
        joins,
        ..config(dir, id, ports)
    }
}

/// The first node, which founds a cluster of its own.
fn founder(dir: &Path, ports: &BTreeMap<i32, u16>) -> QuorumConfig {
    let first = ports.iter().take(1).map(|(id, port)| (*id, *port)).collect();
    config(dir, 1, &first)
}

async fn five_ports() -> BTreeMap<i32, u16> {
    let (mut ports, more) = (free_ports().await, free_ports().await);
    ports.extend(more.into_iter().take(2).map(|(id, port)| (id + 3, port)));
    ports
}

async fn change(
    nodes: &Nodes,
    by: i32,
    change: VoterChange,
    within: Duration,
) -> Result<(), ControllerError> {
    // Whoever leads answers what another node passes on.
    let mut controllers = Vec::new();
    for node in nodes.values() {
        controllers.push(controller(&Env::real(), node));
    }
    let at = nodes.keys().position(|id| *id == by).unwrap();
    let changed = controllers[at].change_voters(&change, within).await;
    for controller in controllers {
        controller.shutdown().await;
    }
    changed
}

fn add(id: i32, turn: u128) -> VoterChange {
    VoterChange::Add { node: BrokerId(id), directory_id: directory(id, turn) }
}

fn remove(id: i32, turn: u128) -> VoterChange {
    VoterChange::Remove { node: BrokerId(id), directory_id: directory(id, turn) }
}

fn voters(node: &RaftQuorum) -> Vec<i32> {
    node.status().voters.keys().map(|id| id.0).collect()
}

async fn all_show(nodes: &Nodes, names: &[String]) {
    eventually("all show all of it", || {
        nodes.values().all(|node| names.iter().all(|name| node.image().topic(name).is_some()))
    })
    .await;
}

async fn shut_down(nodes: Nodes) {
    for node in nodes.values() {
        node.shutdown().await;
    }
}

#[allow(clippy::disallowed_methods, reason = "the test empties a disk")]
fn empty(config: &QuorumConfig) {
    std::fs::remove_dir_all(&config.dir).unwrap();
}

/// One voter becomes three, five, and three others, whichever leads; and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_are_added_and_removed_one_after_the_other() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), five_ports().await);
    let mut nodes = Nodes::from([(1, open(founder(dir.path(), &ports), 0).await)]);
    let mut names = Vec::new();
    for id in 2..=5 {
        nodes.insert(id, open(joining(dir.path(), id, &ports, false), 0).await);
        names.push(format!("with-{id}"));
        create(&nodes, names.last().unwrap()).await;
        // It observes, with all entries, and votes when that is asked for, at any node.
        all_show(&nodes, &names).await;
        assert_eq!(voters(&nodes[&id]), (1..id).collect::<Vec<_>>());
        let told = nodes[&1].status();
        assert!(told.observers.contains_key(&BrokerId(id)) || told.leader != Some(BrokerId(1)));
        change(&nodes, id - 1, add(id, 0), PATIENCE).await.unwrap();
        eventually("it votes", || voters(&nodes[&id]).len() == usize::try_from(id).unwrap()).await;
    }
    // Twice, and under another directory.
    let error = change(&nodes, 2, add(5, 0), PATIENCE).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::DuplicateVoter);
    let error = change(&nodes, 2, remove(5, 1), PATIENCE).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::VoterNotFound);

    // The one that leads is removed, and what it or another node was asked for is answered.
    for left in [4, 3] {
        let id = leader(&nodes).await;
        let other = voters(&nodes[&id]).into_iter().find(|other| *other != id);
        let asked = if left == 4 { id } else { other.unwrap() };
        change(&nodes, asked, remove(id, 0), PATIENCE).await.unwrap();
        eventually("it observes", || voters(&nodes[&id]).len() == left).await;
        names.push(format!("without-{id}"));
        create(&nodes, names.last().unwrap()).await;
        assert_ne!(leader(&nodes).await, id);
        all_show(&nodes, &names).await;
    }
    let left = voters(&nodes[&1]);
    // Those that do not vote are not needed.
    let gone: Vec<i32> = (1..=5).filter(|id| !left.contains(id)).collect();
    for id in &gone {
        nodes.remove(id).unwrap().shutdown().await;
    }
    names.push("by-three".to_owned());
    create(&nodes, "by-three").await;
    // They come back as what they were.
    for id in gone {
        let own = match id {
            1 => founder(dir.path(), &ports),
            _ => joining(dir.path(), id, &ports, false),
        };
        nodes.insert(id, open(own, 0).await);
        all_show(&nodes, &names).await;
        assert_eq!(voters(&nodes[&id]), left);
    }
    shut_down(nodes).await;
}

/// A voter comes back with an empty disk: it takes no part under its old name until that is
/// removed, and then it observes, and votes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_lost_its_disk_is_replaced_by_its_next_log_and_not_taken_for_the_old_one() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), free_ports().await);
    let all = ports.keys().map(|id| async {
        let own = config(dir.path(), *id, &ports);
        (*id, open(own, 0).await)
    });
    let mut nodes: Nodes = futures::future::join_all(all).await.into_iter().collect();
    create(&nodes, "a").await;
    let lost = leader(&nodes).await;
    let old = nodes.remove(&lost).unwrap();
    old.shutdown().await;
    let own = config(dir.path(), lost, &ports);
    empty(&own);
    create(&nodes, "b").await;
    nodes.insert(lost, open(own.clone(), 1).await);
    // It is nobody's voter: without it and one other, nothing is committed.
    let (left, gone) = {
        let mut others = nodes.keys().copied().filter(|id| *id != lost);
        (others.next().unwrap(), others.next().unwrap())
    };
    tokio::time::sleep(SOON / 3).await;
    assert!(nodes[&lost].status().voters.is_empty() && nodes[&lost].image().topic("b").is_none());
    nodes.remove(&gone).unwrap().shutdown().await;
    let alone = tokio::time::timeout(SOON, nodes[&left].ensure_leading()).await;
    assert!(!matches!(alone, Ok(Ok(_))), "a log that is new counts for the one that was lost");
    nodes.insert(gone, open(config(dir.path(), gone, &ports), 0).await);

    // Nor is it added beside the old one.
    let by = |nodes: &Nodes| *nodes.keys().find(|id| **id != lost).unwrap();
    let error = change(&nodes, by(&nodes), add(lost, 1), PATIENCE).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::DuplicateVoter);
    change(&nodes, by(&nodes), remove(lost, 0), PATIENCE).await.unwrap();
    all_show(&nodes, &["a".to_owned(), "b".to_owned()]).await;
    change(&nodes, by(&nodes), add(lost, 1), PATIENCE).await.unwrap();
    eventually("it votes", || voters(&nodes[&lost]).contains(&lost)).await;
    // Now it counts.
    nodes.remove(&gone).unwrap().shutdown().await;
    create(&nodes, "c").await;
    shut_down(nodes).await;
}

#[allow(clippy::disallowed_methods, reason = "the test changes disks")]
fn put(from: &Path, to: &Path) {
    std::fs::rename(from, to).unwrap();
}

/// Its own log says that it is a member, and that of the others does not: because it was taken out,
/// or because another disk was in the place of its own for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_taken_out_and_does_not_know_it_is_a_member_again_when_it_is_back() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), free_ports().await);
    let mut nodes = Nodes::from([(1, open(founder(dir.path(), &ports), 0).await)]);
    let own = || joining(dir.path(), 3, &ports, false);
    nodes.insert(3, open(own(), 0).await);
    create(&nodes, "a").await;
    all_show(&nodes, &["a".to_owned()]).await;
    nodes.remove(&3).unwrap().shutdown().await;
    let forget = VoterChange::Forget { node: BrokerId(3) };
    change(&nodes, 1, forget, PATIENCE).await.unwrap();
    let observes = |nodes: &Nodes| nodes[&1].status().observers.contains_key(&BrokerId(3));
    assert!(!observes(&nodes));
    create(&nodes, "b").await;
    nodes.insert(3, open(own(), 0).await);
    all_show(&nodes, &["a".to_owned(), "b".to_owned()]).await;
    assert!(observes(&nodes));

    nodes.remove(&3).unwrap().shutdown().await;
    let (present, aside) = (own().dir, dir.path().join("aside"));
    put(&present, &aside);
    nodes.insert(3, open(own(), 1).await);
    create(&nodes, "c").await;
    all_show(&nodes, &["a".to_owned(), "b".to_owned(), "c".to_owned()]).await;
    nodes.remove(&3).unwrap().shutdown().await;
    empty(&own());
    put(&aside, &present);
    nodes.insert(3, open(own(), 0).await);
    all_show(&nodes, &["b".to_owned(), "c".to_owned()]).await;
    shut_down(nodes).await;
}

/// With `controller.quorum.auto.join.enable` nobody has to ask for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_to_join_vote_by_themselves_also_with_an_empty_disk() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), free_ports().await);
    let mut nodes = Nodes::from([(1, open(founder(dir.path(), &ports), 0).await)]);
    for id in [2, 3] {
        nodes.insert(id, open(joining(dir.path(), id, &ports, true), 0).await);
    }
    let is_three = |nodes: &Nodes| nodes.values().all(|node| voters(node) == [1, 2, 3]);
    eventually("all three vote", || is_three(&nodes)).await;
    create(&nodes, "a").await;
    nodes.remove(&3).unwrap().shutdown().await;
    let own = joining(dir.path(), 3, &ports, true);
    empty(&own);
    create(&nodes, "b").await;
    nodes.insert(3, open(own, 1).await);
    all_show(&nodes, &["a".to_owned(), "b".to_owned()]).await;
    eventually("the next log votes", || {
        let told = |node: &Arc<RaftQuorum>| node.status().seen[&BrokerId(3)].directory_id;
        is_three(&nodes) && nodes.values().all(|node| told(node) == Some(directory(3, 1)))
    })
    .await;
    nodes.remove(&2).unwrap().shutdown().await;
    create(&nodes, "c").await;
    shut_down(nodes).await;
}

/// What would leave no majority is refused, and nothing is written of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_nobody_could_commit_is_refused_and_nothing_has_changed() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), free_ports().await);
    let mut nodes = Nodes::from([(1, open(founder(dir.path(), &ports), 0).await)]);
    // The only voter, and one that is not there.
    let own = |nodes: &Nodes| nodes[&1].status().seen[&BrokerId(1)].directory_id;
    eventually("it has told its directory", || own(&nodes).is_some()).await;
    let error = change(&nodes, 1, remove(1, 0), PATIENCE).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidRequest);
    let error = change(&nodes, 1, add(2, 0), SOON).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RequestTimedOut);
    for id in [2, 3] {
        nodes.insert(id, open(joining(dir.path(), id, &ports, false), 0).await);
        change(&nodes, 1, add(id, 0), PATIENCE).await.unwrap();
    }
    eventually("all three vote", || nodes.values().all(|node| voters(node).len() == 3)).await;
    create(&nodes, "a").await;
    // An observer that has ended has not everything, whatever it had.
    let observer = nodes.remove(&3).unwrap();
    change(&nodes, 1, remove(3, 0), PATIENCE).await.unwrap();
    observer.shutdown().await;
    create(&nodes, "b").await;
    tokio::time::sleep(SOON).await;
    let error = change(&nodes, 1, add(3, 0), SOON).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RequestTimedOut);
    assert_eq!(voters(&nodes[&1]), [1, 2]);
    // It is forgotten when it is gone for good. A voter is not, and nobody is not missed.
    let observes = |nodes: &Nodes| {
        nodes.values().all(|node| node.status().observers.contains_key(&BrokerId(3)))
    };
    assert!(observes(&nodes));
    for id in [2, 3, 9] {
        let forget = VoterChange::Forget { node: BrokerId(id) };
        change(&nodes, 1, forget, PATIENCE).await.unwrap();
    }
    eventually("it is no member any more", || !observes(&nodes)).await;
    assert_eq!(voters(&nodes[&1]), [1, 2]);
    // Two voters, one of which has ended: the other does not go on without it.
    let (stays, ends) = match leader(&nodes).await {
        1 => (1, 2),
        _ => (2, 1),
    };
    nodes.remove(&ends).unwrap().shutdown().await;
    let error = change(&nodes, stays, remove(ends, 0), SOON).await.unwrap_err();
    assert!(matches!(error.code(), ErrorCode::RequestTimedOut | ErrorCode::NotController));
    assert_eq!(voters(&nodes[&stays]), [1, 2]);
    shut_down(nodes).await;
}
