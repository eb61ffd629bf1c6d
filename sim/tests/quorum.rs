//! The metadata quorum as three voters under one seed: power cuts, kills, stops, cut links, slow
//! disks and clock jumps, while every node asks its controller for changes.
//!
//! What must hold: nothing answered is lost, nothing is carried out twice, no decision is seen in
//! part, no partition is led by a broker that is fenced, and after everything is healed the voters
//! have the same metadata, every broker lives in it, and every partition is led.

mod common;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use letterbox_broker::controller::{Controller, ControllerError};
use letterbox_broker::metadata::decide::liveness::Heartbeat;
use letterbox_broker::metadata::decide::{
    AllocateProducerIds, CreateTopics, NewTopic, RegisterBroker, TopicPlacement,
};
use letterbox_broker::metadata::features::Release;
use letterbox_broker::metadata::{MetadataImage, Stamp};
use letterbox_broker::quorum::{
    MetadataQuorum, QuorumConfig, QuorumError, QuorumStatus, QuorumTiming, RaftQuorum,
};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use letterbox_sim::cluster::{Cluster, Exit, NetworkOptions, Process};
use letterbox_sim::rng::Rng;
use letterbox_sim::seeds;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
const PORT: u16 = 9093;
/// Where a volume is mounted.
const DATA: &str = "/data";
/// Of a broker: how long it may be silent, and between two heartbeats.
const SESSION: Duration = Duration::from_secs(3);
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Enough for several entries of the log.
const LARGE: i32 = 3_000;

/// What the nodes have seen, across their lives.
#[derive(Default)]
struct Seen {
    /// The running nodes' quorums.
    quorums: BTreeMap<i32, Arc<RaftQuorum>>,
    /// Topics whose creation was answered, with their partitions.
    created: BTreeMap<String, i32>,
    /// Topics that somebody asked for.
    asked: BTreeMap<String, i32>,
    /// Blocks of producer ids that were handed out.
    blocks: BTreeSet<i64>,
    unknown: u64,
    refused: u64,
    /// Times that a node has seen a broker become fenced.
    fenced: u64,
    /// Nobody asks for anything any more.
    is_quiet: bool,
    /// By term, who was seen to lead.
    leaders: BTreeMap<u64, i32>,
}

type Shared = Rc<RefCell<Seen>>;

const QUICK: QuorumTiming = QuorumTiming {
    heartbeat: Duration::from_millis(100),
    lease: Duration::from_secs(1),
    fetch_timeout: Duration::from_secs(2),
    election_timeout: Duration::from_secs(1),
    session: Duration::from_secs(600),
};

fn config(id: i32, timing: QuorumTiming) -> QuorumConfig {
    let voters = (1..).zip(NODES).map(|(id, name)| (id, (name.to_owned(), PORT))).collect();
    QuorumConfig {
        node_id: id,
        dir: PathBuf::from(DATA).join("__letterbox_metadata"),
        voters,
        listener: Some((String::new(), PORT)),
        cluster_id: Some("abcdefghijklmnopqrstuv".to_owned()),
        servers: Vec::new(),
        reached_at: None,
        joins: false,
        must_exist: false,
        timing,
    }
}

/// Three nodes.
fn cluster(seed: u64, network: NetworkOptions, timing: QuorumTiming) -> (Cluster, Shared) {
    let mut cluster = Cluster::with(seed, network, false);
    let seen = Shared::default();
    for (id, name) in (1..).zip(NODES) {
        let seen = Rc::clone(&seen);
        cluster.host(name, move |process| node(process, (id, timing), Rc::clone(&seen)));
    }
    (cluster, seen)
}

async fn node(process: Process, (id, timing): (i32, QuorumTiming), seen: Shared) -> Exit {
    let disk = Arc::clone(&process.env.disk);
    let mount = move || {
        disk.create_dir_all(Path::new(DATA))?;
        disk.sync_dir(Path::new("/"))
    };
    process.env.blocking(mount).await.map_err(|error| error.to_string())?;
    // Waits for the others while the cluster is not founded.
    let opened = tokio::select! {
        biased;
        () = process.stopped() => return Ok(()),
        opened = RaftQuorum::open(process.env.clone(), config(id, timing)) => opened,
    };
    let quorum = opened.map_err(|error| error.to_string())?;
    let controller = Controller::start(
        process.env.clone(),
        Arc::clone(&quorum) as _,
        Arc::new(common::AnyConfig),
        SESSION,
    );
    seen.borrow_mut().quorums.insert(id, Arc::clone(&quorum));
    let work = async {
        let seed = u64::try_from(id).unwrap() + u64::try_from(process.env.clock.wall_ms()).unwrap();
        let rng = |maker: u64| Rng::named(seed, &format!("maker {maker}"));
        let epoch = register(&controller, id, &seen).await;
        futures::join!(
            heartbeats(&controller, &quorum, id, epoch),
            changes(&controller, id, rng(1), &seen),
            changes(&controller, id, rng(2), &seen),
            changes(&controller, id, rng(3), &seen),
            producer_ids(&controller, id, &seen),
        )
    };
    let work = async { futures::join!(work, watch(&quorum, id, &seen)) };
    let fatal = tokio::select! {
        biased;
        () = process.stopped() => None,
        reason = quorum.fatal() => Some(reason),
        // Watches until the end of its quorum.
        _ = work => process.stopped().map(|()| None).await,
    };
    controller.shutdown().await;
    quorum.shutdown().await;
    fatal.map_or(Ok(()), Err)
}

/// What comes of an operation that has no outcome.
fn note(seen: &Shared, error: &ControllerError) {
    let mut seen = seen.borrow_mut();
    match error {
        ControllerError::Quorum(QuorumError::OutcomeUnknown | QuorumError::Stopped { .. }) => {
            seen.unknown += 1;
        }
        ControllerError::OtherVersion(message) => panic!("{message}"),
        _ => seen.refused += 1,
    }
}

/// Registers; the epoch of this start.
async fn register(controller: &Controller, id: i32, seen: &Shared) -> i64 {
    let registration = RegisterBroker {
        id: BrokerId(id),
        directories: [(Uuid::from_u128(1), Stamp::default())].into(),
        absent: Default::default(),
        endpoints: Vec::new(),
        rack: None,
        clean_start: true,
        flushes_on_ack: true,
        found: None,
        min_insync_replicas: 1,
        session_ms: 0,
        replaces: None,
        release: Release::own(),
    };
    loop {
        match controller.run(registration.clone()).await {
            Ok(done) => return done.outcome.unwrap(),
            Err(error) => note(seen, &error),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Says that the broker lives, as long as it does.
async fn heartbeats(controller: &Controller, quorum: &RaftQuorum, id: i32, epoch: i64) {
    loop {
        let applied_index = quorum.image().applied_index;
        let heartbeat = Heartbeat {
            id: BrokerId(id),
            epoch,
            applied_index,
            wants_fence: false,
            wants_stop: false,
            behind: Vec::new(),
        };
        if let Ok(Err(ControllerError::Refused(error))) =
            timeout(HEARTBEAT, controller.heartbeat(heartbeat)).await
        {
            // A leader that has not applied the registration yet.
            let is_early = error.code == ErrorCode::BrokerIdNotRegistered
                || error.code == ErrorCode::StaleBrokerEpoch;
            assert!(is_early, "{error}");
        }
        sleep(HEARTBEAT).await;
    }
}

/// Makes topics, small and large ones, one after the other.
async fn changes(controller: &Controller, id: i32, mut rng: Rng, seen: &Shared) {
    for n in 0u64.. {
        sleep(Duration::from_millis(rng.between(20, 300))).await;
        if seen.borrow().is_quiet {
            return;
        }
        let partitions = if rng.percent(3) { LARGE } else { 2 };
        let name = format!("topic-{id}-{}-{n}", rng.next_u64());
        seen.borrow_mut().asked.insert(name.clone(), partitions);
        let operation = CreateTopics {
            topics: vec![NewTopic {
                name: name.clone(),
                placement: TopicPlacement::automatic(partitions, 1),
                configs: BTreeMap::new(),
            }],
            validate_only: false,
            default_partitions: 1,
            default_replication_factor: 1,
        };
        match controller.run(operation).await {
            Ok(done) => match &done.outcome[0].1 {
                Ok(_) => drop(seen.borrow_mut().created.insert(name, partitions)),
                // Nobody else makes a topic of that name: it was made twice.
                Err(error) => {
                    assert_ne!(error.code, ErrorCode::TopicAlreadyExists, "{name}: made twice");
                }
            },
            Err(error) => note(seen, &error),
        }
    }
}

/// Takes producer ids; none may be handed out twice.
async fn producer_ids(controller: &Controller, id: i32, seen: &Shared) {
    loop {
        sleep(Duration::from_millis(100)).await;
        if seen.borrow().is_quiet {
            return;
        }
        match controller.run(AllocateProducerIds { broker: BrokerId(id) }).await {
            Ok(done) => {
                if let Ok(block) = done.outcome {
                    let is_new = seen.borrow_mut().blocks.insert(block.first_id);
                    assert!(is_new, "producer ids from {} are handed out twice", block.first_id);
                }
            }
            Err(error) => note(seen, &error),
        }
    }
}

/// Looks at every change that this node shows.
async fn watch(quorum: &RaftQuorum, id: i32, seen: &Shared) {
    let mut deltas = quorum.deltas();
    while let Some(delta) = deltas.next().await {
        let changed = delta.topics_changed.iter().map(|change| &change.after);
        let mut seen = seen.borrow_mut();
        let was_live = |id: &BrokerId| delta.before.is_live(*id);
        let fenced = delta.after.brokers.values().filter(|b| b.fenced && was_live(&b.id)).count();
        seen.fenced += fenced as u64;
        let mut brokers = delta.after.brokers.values();
        let before = |id| delta.before.brokers.get(&id).map_or(0, |broker| broker.epoch);
        assert!(brokers.all(|broker| broker.epoch >= before(broker.id)), "an epoch goes back");
        for topic in delta.topics_added.iter().chain(changed) {
            let count = i32::try_from(topic.partitions.len()).unwrap();
            let asked = seen.asked.get(&*topic.name);
            assert_eq!(asked, Some(&count), "{} is shown in part", topic.name);
            let mut leaders = topic.partitions.values().filter_map(|state| state.leader);
            assert!(leaders.all(|id| delta.after.is_live(id)), "a fenced broker leads");
        }
        let status = quorum.status();
        common::note_leader(&mut seen.leaders, &status, id);
    }
}

/// One fault, mostly of the node that leads.
fn break_something(cluster: &mut Cluster, rng: &mut Rng, seen: &Shared) {
    let leader = seen.borrow().quorums.values().find_map(|quorum| quorum.status().leader);
    let at = leader.and_then(|leader| usize::try_from(leader.0 - 1).ok());
    let name = NODES[at.filter(|_| rng.percent(60)).unwrap_or_else(|| rng.index(3))];
    let other = NODES[rng.index(3)];
    match rng.below(9) {
        0 => cluster.power_cut(name),
        1 => cluster.disk(name).cut_power_after(rng.below(30)),
        2 => cluster.kill(name),
        3 => drop(cluster.stop(name, Duration::from_secs(10))),
        4 if name != other => cluster.cut(name, other),
        5 if name != other => cluster.cut_one_way(name, other),
        6 => cluster.disk(name).set_slow(Duration::from_millis(rng.between(20, 400))),
        7 => cluster.jump_clock(name, i64::try_from(rng.below(7_200_000)).unwrap() - 3_600_000),
        // All at once.
        _ => NODES.into_iter().for_each(|name| cluster.power_cut(name)),
    }
}

fn heal(cluster: &mut Cluster) {
    for (at, name) in NODES.into_iter().enumerate() {
        cluster.disk(name).set_slow(Duration::ZERO);
        for other in &NODES[at + 1..] {
            cluster.mend(name, other);
        }
        if !cluster.is_running(name) {
            cluster.restart(name);
        }
    }
}

/// What a run has been through.
#[derive(Clone, Copy, Debug, Default)]
struct Happened {
    faults: u64,
    fenced: u64,
    terms: usize,
    created: usize,
    blocks: usize,
}

fn run(seed: u64) -> Happened {
    let (mut cluster, seen) = cluster(seed, NetworkOptions::default(), QUICK);
    let mut rng = cluster.schedule_rng();
    cluster.run_for(Duration::from_secs(3));
    for _ in 0..10 {
        break_something(&mut cluster, &mut rng, &seen);
        cluster.run_for(Duration::from_millis(rng.between(50, 2500)));
        if rng.percent(70) {
            heal(&mut cluster);
            cluster.run_for(Duration::from_millis(rng.between(50, 2500)));
        }
    }
    heal(&mut cluster);
    // What was begun before the healing is still done: a disk may have failed in its middle.
    cluster.run_for(Duration::from_secs(1));
    heal(&mut cluster);
    let before = seen.borrow().created.len();
    let goes_on = |_: &Cluster| seen.borrow().created.len() > before + 10;
    assert!(cluster.run_until(Duration::from_secs(60), goes_on), "the healed quorum stands still");

    seen.borrow_mut().is_quiet = true;
    let agree = |cluster: &Cluster| {
        // It takes long to tell.
        if !cluster.elapsed().as_millis().is_multiple_of(100) {
            return false;
        }
        let seen = seen.borrow();
        let images: Vec<_> = seen.quorums.values().map(|quorum| quorum.image()).collect();
        let has_all = |image: &MetadataImage| {
            seen.created.keys().all(|name| image.topic(name).is_some())
                && seen.blocks.iter().all(|first| *first < image.next_producer_id)
        };
        let is_whole = |image: &MetadataImage| {
            (1..=3).all(|id| image.is_live(BrokerId(id)))
                && image
                    .topics()
                    .flat_map(|topic| topic.partitions.values())
                    .all(|partition| partition.leader.is_some())
        };
        images
            .iter()
            .all(|image| has_all(image) && is_whole(image) && image.topics().eq(images[0].topics()))
    };
    assert!(cluster.run_until(Duration::from_secs(60), agree), "the voters do not agree");
    let seen = seen.borrow();
    println!(
        "seed {seed}, {:?} of virtual time, {} faults, {} terms with a leader: {} topics and {} \
         blocks of ids, {} unknown, {} refused, {} fences seen",
        cluster.elapsed(),
        cluster.faults(),
        seen.leaders.len(),
        seen.created.len(),
        seen.blocks.len(),
        seen.unknown,
        seen.refused,
        seen.fenced,
    );
    Happened {
        fenced: seen.fenced,
        faults: cluster.faults(),
        terms: seen.leaders.len(),
        created: seen.created.len(),
        blocks: seen.blocks.len(),
    }
}

#[test]
fn nothing_answered_is_lost_or_done_twice_by_three_voters() {
    common::show_log();
    let (mut seeds, mut all) = (0, Happened::default());
    seeds::for_each(
        3,
        "quorum",
        "nothing_answered_is_lost_or_done_twice_by_three_voters",
        |seed| {
            let run = run(seed);
            seeds += 1;
            all.faults += run.faults;
            all.fenced += run.fenced;
            all.terms += run.terms;
            all.created += run.created;
            all.blocks += run.blocks;
        },
    );
    let is_enough = all.faults > 5 * seeds as u64
        && all.fenced > seeds as u64
        && all.terms > seeds
        && all.created > 20 * seeds
        && all.blocks > 20 * seeds;
    assert!(is_enough, "too little has happened in {seeds} seeds: {all:?}");
}

/// Runs until every running node knows who leads; the leader and its term.
fn leader(cluster: &mut Cluster, seen: &Shared) -> (&'static str, u64) {
    let led = |_: &Cluster| {
        let seen = seen.borrow();
        let mut all = seen.quorums.values().map(|quorum| quorum.status());
        let Some(first) = all.next() else { return false };
        let same = |other: QuorumStatus| (other.leader, other.term) == (first.leader, first.term);
        seen.quorums.len() == NODES.len() && first.leader.is_some() && all.all(same)
    };
    assert!(cluster.run_until(Duration::from_secs(30), led), "nobody leads");
    let status = seen.borrow().quorums[&1].status();
    (NODES[usize::try_from(status.leader.unwrap().0 - 1).unwrap()], status.term)
}

/// A voter hears nobody for a while, as one whose process was stopped: when it hears the others
/// again, it takes no lead from a leader that a majority follows.
#[test]
fn a_voter_that_was_cut_off_for_a_while_ends_no_lead() {
    common::show_log();
    for seed in 0..3 {
        let (mut cluster, seen) = cluster(seed, NetworkOptions::default(), QUICK);
        let before = leader(&mut cluster, &seen);
        let mut rng = cluster.schedule_rng();
        for name in NODES.into_iter().filter(|name| *name != before.0) {
            let others = || NODES.into_iter().filter(move |other| *other != name);
            others().for_each(|other| cluster.cut(name, other));
            cluster.run_for(Duration::from_millis(rng.between(1500, 5000)));
            others().for_each(|other| cluster.mend(name, other));
            cluster.run_for(Duration::from_secs(5));
            assert_eq!(leader(&mut cluster, &seen), before, "seed {seed}, {name}");
        }
        // A leader that is gone is succeeded soon.
        cluster.kill(before.0);
        let id = i32::try_from(NODES.iter().position(|name| *name == before.0).unwrap()).unwrap();
        seen.borrow_mut().quorums.remove(&(id + 1));
        let is_led = |_: &Cluster| {
            let seen = seen.borrow();
            let mut all = seen.quorums.values().map(|quorum| quorum.status());
            all.all(|status| status.term > before.1 && status.leader.is_some())
        };
        assert!(cluster.run_until(Duration::from_millis(2500), is_led), "seed {seed}");
    }
}

/// A look-up, a connection and its hellos take longer here than one request to consensus may.
#[test]
fn voters_that_are_far_apart_found_a_cluster_and_agree() {
    common::show_log();
    for seed in 0..3 {
        let far = NetworkOptions { latency_ms_min: 95, latency_ms_max: 110 };
        let (mut cluster, seen) = cluster(seed, far, QuorumTiming::default());
        let goes_on = |_: &Cluster| seen.borrow().created.len() > 10;
        assert!(cluster.run_until(Duration::from_secs(60), goes_on), "seed {seed}");
    }
}
