//! Voters that change under load: one becomes three, five, and three others, a disk is emptied and
//! its voter replaced, while power is cut, processes are killed, and the network is.
//!
//! What must hold: nothing answered is lost or made twice, nobody leads in the term of another, and
//! after everything is healed those vote that are to, and all members show the same.

mod common;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use letterbox_broker::controller::Controller;
use letterbox_broker::metadata::Stamp;
use letterbox_broker::metadata::decide::{CreateTopics, NewTopic, RegisterBroker, TopicPlacement};
use letterbox_broker::metadata::features::Release;
use letterbox_broker::quorum::{
    MetadataQuorum, QuorumConfig, QuorumTiming, RaftQuorum, Seat, VoterChange,
};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use letterbox_sim::cluster::{Cluster, Exit, Process};
use letterbox_sim::rng::Rng;
use letterbox_sim::seeds;
use tokio::time::sleep;
use uuid::Uuid;

const NODES: [&str; 5] = ["node-1", "node-2", "node-3", "node-4", "node-5"];
const PORT: u16 = 9093;
const DATA: &str = "/data";
const SESSION: Duration = Duration::from_secs(600);
const TIMING: QuorumTiming = QuorumTiming {
    heartbeat: Duration::from_millis(100),
    lease: Duration::from_secs(1),
    fetch_timeout: Duration::from_secs(2),
    election_timeout: Duration::from_secs(1),
    session: SESSION,
};

/// What the nodes have seen, across their lives, and what they are to do.
#[derive(Default)]
struct Seen {
    quorums: BTreeMap<i32, Arc<RaftQuorum>>,
    created: BTreeSet<String>,
    /// Who is to vote.
    goal: BTreeSet<i32>,
    /// Who begins with an empty disk next time.
    empties: BTreeSet<i32>,
    /// The directory of each node, and those that are lost.
    directories: BTreeMap<i32, Uuid>,
    lost: BTreeSet<(i32, Uuid)>,
    /// Whether there is more than one voter: nobody founds any more.
    is_founded: bool,
    is_quiet: bool,
    /// By term, who was seen to lead.
    leaders: BTreeMap<u64, i32>,
    changes: usize,
}

type Shared = Rc<RefCell<Seen>>;

fn name(id: i32) -> &'static str {
    NODES[usize::try_from(id - 1).unwrap()]
}

fn config(id: i32, is_founded: bool) -> QuorumConfig {
    let own = (name(id).to_owned(), PORT);
    let founds = id == 1 && !is_founded;
    let others = (1..=5).filter(|other| *other != id).map(|id| (name(id).to_owned(), PORT));
    QuorumConfig {
        node_id: id,
        dir: PathBuf::from(DATA).join("__cluster_metadata-0"),
        voters: if founds { [(1, own.clone())].into() } else { BTreeMap::new() },
        servers: if founds { Vec::new() } else { others.collect() },
        listener: Some((String::new(), PORT)),
        reached_at: Some(own),
        joins: false,
        cluster_id: Some("abcdefghijklmnopqrstuv".to_owned()),
        must_exist: false,
        timing: TIMING,
    }
}

/// Mounts the disk, emptied if it is to be; `directory.id` of what is there.
async fn mount(process: &Process, empties: bool) -> Result<Uuid, String> {
    let (disk, drawn) = (Arc::clone(&process.env.disk), process.env.random_uuid());
    let mount = move || {
        let (data, file) = (Path::new(DATA), Path::new(DATA).join("directory-id"));
        disk.create_dir_all(data)?;
        disk.sync_dir(Path::new("/"))?;
        if empties {
            for entry in disk.list(data)? {
                let path = data.join(&entry.name);
                if entry.is_dir { disk.remove_dir_all(&path)? } else { disk.remove_file(&path)? }
            }
            disk.sync_dir(data)?;
        }
        if !disk.exists(&file)? {
            disk.write_atomically(&file, drawn.as_bytes())?;
        }
        std::io::Result::Ok(Uuid::from_slice(&disk.read(&file)?).unwrap())
    };
    process.env.blocking(mount).await.map_err(|error| error.to_string())
}

async fn node(process: Process, id: i32, seen: Shared) -> Exit {
    let empties = seen.borrow().empties.contains(&id);
    let directory = mount(&process, empties).await?;
    let is_founded = {
        let mut seen = seen.borrow_mut();
        seen.empties.remove(&id);
        if let Some(before) = seen.directories.insert(id, directory)
            && before != directory
        {
            seen.lost.insert((id, before));
        }
        seen.is_founded
    };
    let open = async {
        let seat = Seat::take(process.env.clone(), config(id, is_founded)).await;
        seat.map_err(|error| error.to_string())?
            .join(Some(directory))
            .await
            .map_err(|error| error.to_string())
    };
    let quorum = tokio::select! {
        biased;
        () = process.stopped() => return Ok(()),
        opened = open => opened?,
    };
    let (env, rules) = (process.env.clone(), Arc::new(common::AnyConfig));
    let controller = Controller::start(env, Arc::clone(&quorum) as _, rules, SESSION);
    seen.borrow_mut().quorums.insert(id, Arc::clone(&quorum));
    let seed = u64::try_from(id).unwrap() + u64::try_from(process.env.clock.wall_ms()).unwrap();
    let rng = Rng::named(seed, "node");
    let work = async {
        futures::join!(
            topics(&controller, id, rng.clone(), &seen),
            voters(&controller, &quorum, rng, &seen),
            watch(&quorum, id, &seen)
        )
    };
    let fatal = tokio::select! {
        biased;
        () = process.stopped() => None,
        reason = quorum.fatal() => Some(reason),
        _ = work => process.stopped().map(|()| None).await,
    };
    seen.borrow_mut().quorums.remove(&id);
    controller.shutdown().await;
    quorum.shutdown().await;
    fatal.map_or(Ok(()), Err)
}

/// Makes topics, one after the other.
async fn topics(controller: &Controller, id: i32, mut rng: Rng, seen: &Shared) {
    let registration = RegisterBroker {
        id: BrokerId(1),
        directories: [(Uuid::from_u128(1), Stamp::default())].into(),
        absent: Default::default(),
        endpoints: Vec::new(),
        rack: None,
        clean_start: true,
        flushes_on_ack: true,
        min_insync_replicas: 1,
        session_ms: 0,
        replaces: None,
        found: None,
        release: Release::own(),
    };
    while id == 1 && controller.run(registration.clone()).await.is_err() {
        sleep(Duration::from_millis(50)).await;
    }
    for n in 0u64.. {
        sleep(Duration::from_millis(rng.between(20, 300))).await;
        if seen.borrow().is_quiet {
            return;
        }
        let name = format!("topic-{id}-{}-{n}", rng.next_u64());
        let operation = CreateTopics {
            topics: vec![NewTopic {
                name: name.clone(),
                placement: TopicPlacement::automatic(2, 1),
                configs: BTreeMap::new(),
            }],
            validate_only: false,
            default_partitions: 1,
            default_replication_factor: 1,
        };
        if let Ok(done) = controller.run(operation).await {
            match &done.outcome[0].1 {
                Ok(_) => drop(seen.borrow_mut().created.insert(name)),
                // The broker says nothing, and was fenced when a connection ended.
                Err(error) if error.code == ErrorCode::InvalidReplicationFactor => {
                    let _ = controller.run(registration.clone()).await;
                }
                Err(error) => {
                    assert_ne!(error.code, ErrorCode::TopicAlreadyExists, "{name}: made twice");
                }
            }
        }
    }
}

/// Has those vote that are to, one change after the other, as every other node does at the same
/// time.
async fn voters(controller: &Controller, quorum: &RaftQuorum, mut rng: Rng, seen: &Shared) {
    loop {
        sleep(Duration::from_millis(rng.between(100, 500))).await;
        let status = quorum.status();
        let change = {
            let seen = seen.borrow();
            let directory = |id: &BrokerId| status.seen.get(id).and_then(|seen| seen.directory_id);
            let is_wanted = |id: &BrokerId| {
                seen.goal.contains(&id.0)
                    && directory(id).is_none_or(|it| !seen.lost.contains(&(id.0, it)))
            };
            let unwanted = status.voters.keys().find(|id| !is_wanted(id));
            let missing = status.observers.keys().find(|id| is_wanted(id));
            match (missing, unwanted) {
                (Some(id), _) => {
                    directory(id).map(|directory_id| VoterChange::Add { node: *id, directory_id })
                }
                (None, Some(id)) => directory(id)
                    .map(|directory_id| VoterChange::Remove { node: *id, directory_id }),
                (None, None) => None,
            }
        };
        if let Some(change) = change
            && controller.change_voters(&change, Duration::from_secs(5)).await.is_ok()
        {
            seen.borrow_mut().changes += 1;
        }
    }
}

/// Looks at every change that this node shows.
async fn watch(quorum: &RaftQuorum, id: i32, seen: &Shared) {
    let mut deltas = quorum.deltas();
    while deltas.next().await.is_some() {
        let status = quorum.status();
        let mut seen = seen.borrow_mut();
        seen.is_founded |= status.voters.len() > 1;
        common::note_leader(&mut seen.leaders, &status, id);
    }
}

fn break_something(cluster: &mut Cluster, rng: &mut Rng, seen: &Shared) {
    let leader = seen.borrow().quorums.values().find_map(|quorum| quorum.status().leader);
    let at = leader.and_then(|leader| usize::try_from(leader.0 - 1).ok());
    let name = NODES[at.filter(|_| rng.percent(50)).unwrap_or_else(|| rng.index(NODES.len()))];
    let other = NODES[rng.index(NODES.len())];
    match rng.below(7) {
        0 => cluster.power_cut(name),
        1 => cluster.disk(name).cut_power_after(rng.below(30)),
        2 => cluster.kill(name),
        3 => drop(cluster.stop(name, Duration::from_secs(10))),
        4 if name != other => cluster.cut(name, other),
        5 if name != other => cluster.cut_one_way(name, other),
        // All at once.
        _ => NODES.into_iter().for_each(|name| cluster.power_cut(name)),
    }
}

fn heal(cluster: &mut Cluster) {
    for (at, name) in NODES.into_iter().enumerate() {
        for other in &NODES[at + 1..] {
            cluster.mend(name, other);
        }
        if !cluster.is_running(name) {
            cluster.restart(name);
        }
    }
}

/// Breaks and heals for a while, and waits until those vote that are to, and changes are made.
fn stage(cluster: &mut Cluster, rng: &mut Rng, seen: &Shared, faults: u64) {
    for _ in 0..faults {
        break_something(cluster, rng, seen);
        cluster.run_for(Duration::from_millis(rng.between(50, 2500)));
        if rng.percent(70) {
            heal(cluster);
            cluster.run_for(Duration::from_millis(rng.between(50, 2500)));
        }
    }
    heal(cluster);
    cluster.run_for(Duration::from_secs(1));
    heal(cluster);
    let before = seen.borrow().created.len();
    let is_reached = |cluster: &Cluster| {
        if !cluster.elapsed().as_millis().is_multiple_of(100) {
            return false;
        }
        let seen = seen.borrow();
        let is_as_wanted = |quorum: &Arc<RaftQuorum>| {
            let status = quorum.status();
            let is_lost = |id: &BrokerId| {
                let directory = status.seen.get(id).and_then(|seen| seen.directory_id);
                directory.is_none_or(|directory| seen.lost.contains(&(id.0, directory)))
            };
            status.voters.keys().map(|id| id.0).eq(seen.goal.iter().copied())
                && !status.voters.keys().any(is_lost)
        };
        seen.quorums.len() == NODES.len() && seen.quorums.values().all(is_as_wanted)
    };
    let reached = run_until(cluster, is_reached);
    assert!(reached, "{:?} do not vote: {}", seen.borrow().goal, told(cluster, seen));
    let goes_on = |_: &Cluster| seen.borrow().created.len() > before + 5;
    let goes_on = run_until(cluster, goes_on);
    assert!(goes_on, "the quorum stands still: {}", told(cluster, seen));
}

fn told(cluster: &Cluster, seen: &Shared) -> String {
    let seen = seen.borrow();
    let all: Vec<_> = seen.quorums.values().map(|quorum| quorum.status()).collect();
    let exits: Vec<_> = NODES.into_iter().map(|name| cluster.exit(name)).collect();
    format!("{all:?}, ended: {exits:?}, lost: {:?}", seen.lost)
}

/// The power of a node that writes little may go late: it is started again.
fn run_until(cluster: &mut Cluster, is_so: impl Fn(&Cluster) -> bool) -> bool {
    (0..60).any(|_| {
        heal(cluster);
        cluster.run_until(Duration::from_secs(2), &is_so)
    })
}

fn run(seed: u64) -> usize {
    let mut cluster = Cluster::new(seed);
    let seen = Shared::default();
    for id in 1..=5 {
        let seen = Rc::clone(&seen);
        cluster.host(name(id), move |process| node(process, id, Rc::clone(&seen)));
    }
    let mut rng = cluster.schedule_rng();
    let mut goals: Vec<BTreeSet<i32>> = vec![[1, 2, 3].into(), (1..=5).collect()];
    // Any three.
    let mut three: BTreeSet<i32> = (1..=5).collect();
    while three.len() > 3 {
        let at = rng.index(three.len());
        let id = three.iter().copied().nth(at).unwrap();
        three.remove(&id);
    }
    goals.push(three.clone());
    for goal in goals {
        seen.borrow_mut().goal = goal;
        // A cluster of one is founded before anything is broken.
        let is_founded = |_: &Cluster| seen.borrow().is_founded;
        assert!(cluster.run_until(Duration::from_secs(60), is_founded), "nobody joins");
        stage(&mut cluster, &mut rng, &seen, 4);
    }
    // One of them loses its disk.
    let lost = three.iter().copied().nth(rng.index(three.len())).unwrap();
    cluster.power_cut(name(lost));
    seen.borrow_mut().quorums.remove(&lost);
    seen.borrow_mut().empties.insert(lost);
    cluster.run_for(Duration::from_millis(rng.between(50, 3000)));
    cluster.restart(name(lost));
    cluster.run_for(Duration::from_millis(rng.between(50, 3000)));
    stage(&mut cluster, &mut rng, &seen, 3);

    seen.borrow_mut().is_quiet = true;
    let agree = |cluster: &Cluster| {
        if !cluster.elapsed().as_millis().is_multiple_of(100) {
            return false;
        }
        let seen = seen.borrow();
        let images: Vec<_> = seen.quorums.values().map(|quorum| quorum.image()).collect();
        images.iter().all(|image| {
            seen.created.iter().all(|name| image.topic(name).is_some())
                && image.topics().eq(images[0].topics())
        })
    };
    let agree = run_until(&mut cluster, agree);
    assert!(agree, "the members do not agree: {}", told(&cluster, &seen));
    let seen = seen.borrow();
    println!(
        "seed {seed}, {:?} of virtual time, {} faults, {} terms, {} topics, {} changes of voters",
        cluster.elapsed(),
        cluster.faults(),
        seen.leaders.len(),
        seen.created.len(),
        seen.changes
    );
    assert!(!seen.lost.is_empty() && seen.created.len() > 30, "too little has happened");
    seen.changes
}

#[test]
fn voters_change_under_faults_and_nothing_answered_is_lost() {
    common::show_log();
    let name = "voters_change_under_faults_and_nothing_answered_is_lost";
    let (mut seeds, mut changes) = (0, 0);
    seeds::for_each(2, "voters", name, |seed| {
        changes += run(seed);
        seeds += 1;
    });
    // Some are made whose answers are lost.
    assert!(changes >= 5 * seeds, "only {changes} changes are answered in {seeds} seeds");
}
