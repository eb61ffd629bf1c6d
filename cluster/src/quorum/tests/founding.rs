//! Voters that are all new, and voters that lost their logs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use letterbox_env::Env;
use letterbox_protocol::model::BrokerId;
use tokio::time::timeout;

use super::eventually;
use super::three_voters::{Nodes, config, create, free_ports, leader as leader_of, open_all};
use crate::quorum::identity::Hello;
use crate::quorum::network::{
    HELLO, HELLO_LEN_MAX, PROOF, PROVE, REFUSED, SECRET, WHO, read_frame, write_frame,
};
use crate::quorum::{MetadataQuorum as _, OpenError, QuorumConfig, RaftQuorum, Seat};

const SOON: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(30);

/// As a node starts that does not know its cluster.
fn new(dir: &Path, id: i32, ports: &BTreeMap<i32, u16>) -> QuorumConfig {
    QuorumConfig { cluster_id: None, ..config(dir, id, ports) }
}

async fn open(config: QuorumConfig) -> Result<(Arc<RaftQuorum>, String), OpenError> {
    let mut seat = Seat::take(Env::real(), config).await?;
    let cluster_id = seat.agree().await?.expect("it is agreed on");
    Ok((seat.join(None).await?, cluster_id))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_voters_take_one_id_once_all_of_them_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports().await;
    let new = |id| new(dir.path(), id, &ports);
    // Two of three are not enough: the third may belong to a cluster.
    let two = async { tokio::join!(open(new(1)), open(new(2))) };
    assert!(timeout(SOON, two).await.is_err());
    let all = async { tokio::join!(open(new(1)), open(new(2)), open(new(3))) };
    let (first, second, third) = timeout(PATIENCE, all).await.expect("they agree");
    let all = [first.unwrap(), second.unwrap(), third.unwrap()];
    assert!(all.iter().all(|(_, cluster_id)| *cluster_id == all[0].1));
    // Nobody was refused: that is for a person to look at.
    assert!(all.iter().all(|(quorum, _)| quorum.refused_connections() == 0));
    for (quorum, _) in &all {
        quorum.shutdown().await;
    }
}

/// As with `controller.quorum.bootstrap.servers`: nobody has an id of another one, and what each
/// takes for its own address is wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_know_addresses_alone_found_a_cluster_once_all_of_them_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports().await;
    let at = |port: &u16| ("127.0.0.1".to_owned(), *port);
    let node = |id, cluster_id: &Option<String>| QuorumConfig {
        cluster_id: cluster_id.clone(),
        voters: BTreeMap::new(),
        servers: ports.values().map(at).collect(),
        reached_at: Some(("nowhere.invalid".to_owned(), 9093)),
        ..new(dir.path(), id, &ports)
    };
    let mut of_cluster = None;
    let two = async { tokio::join!(open(node(1, &None)), open(node(2, &None))) };
    assert!(timeout(SOON, two).await.is_err());
    for _ in 0..2 {
        // What a broker keeps in its directories.
        let start = |id| open(node(id, &of_cluster));
        let all = async { tokio::join!(start(1), start(2), start(3)) };
        let (first, second, third) = timeout(PATIENCE, all).await.expect("they agree");
        let all = [first.unwrap(), second.unwrap(), third.unwrap()];
        let cluster = of_cluster.get_or_insert(all[0].1.clone());
        assert!(all.iter().all(|(_, id)| id == cluster));
        eventually("a voter leads", || all.iter().all(|(one, _)| one.status().leader.is_some()))
            .await;
        let expected: BTreeMap<_, _> =
            ports.iter().map(|(id, port)| (BrokerId(*id), at(port))).collect();
        // And they stay where they are reached.
        eventually("all know where", || all.iter().all(|(one, _)| one.status().voters == expected))
            .await;
        assert!(all.iter().all(|(one, _)| one.refused_connections() == 0));
        for (quorum, _) in &all {
            quorum.shutdown().await;
        }
    }
}

/// Empties the directory of a voter, as a volume that was lost and made anew.
#[allow(clippy::disallowed_methods, reason = "the test empties a disk")]
fn empty(config: &QuorumConfig) {
    std::fs::remove_dir_all(&config.dir).unwrap();
}

/// The same with one voter emptied and with two, whichever they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_that_lost_their_logs_found_no_second_cluster() {
    for lost in [vec![1], vec![1, 2], vec![2, 3], vec![3]] {
        let dir = tempfile::tempdir().unwrap();
        let ports = free_ports().await;
        let config = |id| config(dir.path(), id, &ports);
        let mut nodes = open_all(dir.path(), &ports).await;
        create(&nodes, "a").await;
        for node in nodes.values() {
            node.shutdown().await;
        }
        nodes.clear();
        lost.iter().for_each(|id| empty(&config(*id)));
        // They meet one another first. They do not know that they were voters, and wait for all.
        let together = futures::future::join_all(
            lost.iter().map(|id| RaftQuorum::open(Env::real(), config(*id))),
        );
        assert!(timeout(SOON, together).await.is_err(), "{lost:?} do not wait for the others");
        // As soon as one is there that has its log, they wait to be members of its cluster.
        let kept = (1..=3).find(|id| !lost.contains(id)).unwrap();
        let kept = RaftQuorum::open(Env::real(), config(kept)).await.unwrap();
        let together = lost.iter().map(|id| RaftQuorum::open(Env::real(), config(*id)));
        let together = timeout(PATIENCE, futures::future::join_all(together)).await.unwrap();
        let led = timeout(SOON, kept.ensure_leading()).await;
        assert!(!matches!(led, Ok(Ok(_))), "one voter of three leads");
        for quorum in together {
            let quorum = quorum.unwrap();
            assert!(quorum.status().leader.is_none() && quorum.image().topic("a").is_none());
            assert!(quorum.status().voters.is_empty());
            quorum.shutdown().await;
        }
        kept.shutdown().await;
    }
}

fn copy(from: &Path, to: &Path) {
    let env = Env::real();
    env.disk.create_dir_all(to).unwrap();
    for entry in env.disk.list(from).unwrap() {
        let bytes = env.disk.read(&from.join(&entry.name)).unwrap();
        env.disk.write_atomically(&to.join(&entry.name), &bytes).unwrap();
    }
}

/// A second process with a copy of a voter's directory: its log has the incarnation that others
/// expect, but it is not where that voter is reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_voter_is_refused_while_the_voter_lives_and_when_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports().await;
    let own = config(dir.path(), 2, &ports);
    let mut nodes = open_all(dir.path(), &ports).await;
    create(&nodes, "a").await;
    nodes.remove(&2).unwrap().shutdown().await;
    let copied = QuorumConfig {
        dir: dir.path().join("copy"),
        listener: Some(("127.0.0.1".to_owned(), 0)),
        ..own.clone()
    };
    copy(&own.dir, &copied.dir);
    let second = RaftQuorum::open(Env::real(), copied).await.unwrap();
    let unheard = |nodes: &Nodes| {
        let seen = second.status();
        nodes.values().all(|node| node.status().leader != Some(seen.node_id))
    };
    create(&nodes, "while-it-is-gone").await;
    nodes.insert(2, RaftQuorum::open(Env::real(), own).await.unwrap());
    create(&nodes, "while-it-lives").await;
    eventually("the others refuse the copy", || {
        nodes.iter().all(|(id, node)| *id == 2 || node.refused_connections() > 0)
    })
    .await;
    assert!(unheard(&nodes) && second.image().topic("while-it-lives").is_none());
    second.shutdown().await;
    for node in nodes.values() {
        node.shutdown().await;
    }
}

/// An older state of a voter's directory is put in its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_has_gone_back_is_refused_by_the_leader_and_ends_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports().await;
    let mut nodes = open_all(dir.path(), &ports).await;
    create(&nodes, "a").await;
    let leader = leader_of(&nodes).await;
    let victim = *nodes.keys().find(|id| **id != leader).unwrap();
    let own = config(dir.path(), victim, &ports);
    let older = dir.path().join("older");
    nodes.remove(&victim).unwrap().shutdown().await;
    copy(&own.dir, &older);
    nodes.insert(victim, RaftQuorum::open(Env::real(), own.clone()).await.unwrap());
    for name in ["b", "c", "d"] {
        create(&nodes, name).await;
    }
    eventually("it has all", || nodes[&victim].image().topic("d").is_some()).await;
    assert_eq!(leader_of(&nodes).await, leader, "the leader has changed");
    nodes.remove(&victim).unwrap().shutdown().await;
    empty(&own);
    copy(&older, &own.dir);
    let back = RaftQuorum::open(Env::real(), own).await.unwrap();
    eventually("the leader refuses it", || nodes[&leader].refused_connections() > 0).await;
    create(&nodes, "e").await;
    assert!(back.image().topic("e").is_none());
    back.shutdown().await;
    for node in nodes.values() {
        node.shutdown().await;
    }
}

/// Silent connections, as many as anybody likes, keep no voter out; one that names no voter is told
/// so, and nothing of it is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_told_that_they_are_and_keep_no_voter_out() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports().await;
    let mut nodes = open_all(dir.path(), &ports).await;
    create(&nodes, "a").await;
    let env = Env::real();
    let mut silent = Vec::new();
    let mut more = async |count: usize| {
        for _ in 0..count {
            silent.push(env.net.connect("127.0.0.1", ports[&1]).await.unwrap());
        }
    };
    more(200).await;
    let files = |id| Env::real().disk.list(&config(dir.path(), id, &ports).dir).unwrap().len();
    let before = files(1);
    // Its port is that of voter 2; it is another node, of the same cluster.
    nodes.remove(&2).unwrap().shutdown().await;
    let mut voters = ports.clone();
    voters.insert(7, ports[&2]);
    let stranger = QuorumConfig { dir: dir.path().join("7"), ..config(dir.path(), 7, &voters) };
    let mut stranger = Seat::take(Env::real(), stranger).await.unwrap();
    // It may observe, once it takes part.
    timeout(SOON, stranger.agree()).await.expect("it is answered at once").unwrap();
    drop(stranger);
    assert_eq!(files(1), before);
    more(200).await;
    let own = config(dir.path(), 2, &ports);
    let listens = async {
        loop {
            match RaftQuorum::open(Env::real(), own.clone()).await {
                Err(OpenError::Listen { .. }) => tokio::time::sleep(SOON / 100).await,
                opened => return opened.unwrap(),
            }
        }
    };
    nodes.insert(2, listens.await);
    let shown = async { eventually("it is let in", || nodes[&2].status().leader.is_some()).await };
    timeout(SOON * 2, shown).await.expect("silent connections keep a voter out");
    create(&nodes, "b").await;
    for node in nodes.values() {
        node.shutdown().await;
    }
}

/// All stop, and the directory of the one that led is replaced by an older state of it: it does not
/// lead on in its term, in which others have entries that it has lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_has_gone_back_does_not_lead_on_and_loses_nothing_that_was_committed() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports().await;
    let mut nodes = open_all(dir.path(), &ports).await;
    create(&nodes, "a").await;
    let leader = leader_of(&nodes).await;
    let term = nodes[&leader].status().term;
    let own = config(dir.path(), leader, &ports);
    let older = dir.path().join("older");
    copy(&own.dir, &older);
    create(&nodes, "b").await;
    assert_eq!(nodes[&leader].status().term, term, "the leader has changed");
    // It is the last one to end, and hands the lead over to nobody.
    for (id, node) in &nodes {
        if *id != leader {
            node.shutdown().await;
        }
    }
    nodes.remove(&leader).unwrap().shutdown().await;
    nodes.clear();
    empty(&own);
    copy(&older, &own.dir);
    let mut nodes = open_all(dir.path(), &ports).await;
    create(&nodes, "c").await;
    eventually("all show all of it", || {
        nodes
            .values()
            .all(|node| ["a", "b", "c"].iter().all(|name| node.image().topic(name).is_some()))
    })
    .await;
    let topics: Vec<_> = nodes.values().map(|node| node.image().topic("b").cloned()).collect();
    assert!(topics.iter().all(|topic| *topic == topics[0]));
    while let Some((_, node)) = nodes.pop_first() {
        node.shutdown().await;
    }
}

/// What a voter tells everybody who asks is not enough to be heard in its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_what_a_voter_says_is_not_taken_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports().await;
    let nodes = open_all(dir.path(), &ports).await;
    create(&nodes, "a").await;
    let env = Env::real();
    let connect = |id| env.net.connect("127.0.0.1", ports[&id]);
    let mut asking = connect(2).await.unwrap();
    let question = nodes[&1].identity.hello(2);
    write_frame(&mut asking, WHO, &serde_json::to_vec(&question).unwrap()).await.unwrap();
    let (_, told) = read_frame(&mut asking, HELLO_LEN_MAX).await.unwrap();
    let told: Hello = serde_json::from_slice(&told).unwrap();
    let hello = serde_json::to_vec(&Hello { to: 1, ..told }).unwrap();
    for says in [uuid::Uuid::nil(), uuid::Uuid::from_u128(7)] {
        // It may also have told voter 2 a secret, in the name of voter 1.
        let mut telling = connect(2).await.unwrap();
        write_frame(&mut telling, WHO, &serde_json::to_vec(&question).unwrap()).await.unwrap();
        read_frame(&mut telling, HELLO_LEN_MAX).await.unwrap();
        write_frame(&mut telling, SECRET, says.as_bytes()).await.unwrap();
        let mut stream = connect(1).await.unwrap();
        write_frame(&mut stream, HELLO, &hello).await.unwrap();
        assert_eq!(read_frame(&mut stream, HELLO_LEN_MAX).await.unwrap().0, HELLO);
        loop {
            match read_frame(&mut stream, HELLO_LEN_MAX).await.unwrap().0 {
                PROVE => write_frame(&mut stream, PROOF, says.as_bytes()).await.unwrap(),
                REFUSED => break,
                kind => panic!("{kind}"),
            }
        }
    }
    // The voter itself is heard all the same.
    create(&nodes, "b").await;
    eventually("all have it", || nodes.values().all(|node| node.image().topic("b").is_some()))
        .await;
    for node in nodes.values() {
        node.shutdown().await;
    }
}
