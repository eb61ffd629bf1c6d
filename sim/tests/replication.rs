//! Three whole nodes under one seed, each partition with three replicas: whatever happens to nodes,
//! links and disks, nothing that was acknowledged is lost, doubled or moved, and once everything is
//! healed all replicas are the same and in sync.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use kafka_protocol::messages as m;
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponsePartition;
use letterbox_env::{Disk as _, Env, OpenMode};
use letterbox_protocol::Response;
use letterbox_protocol::batch::Batch;
use letterbox_sim::check::{Checker, Demands};
use letterbox_sim::cluster::{Cluster, Exit, Process};
use letterbox_sim::disk::{Fault, SimDisk};
use letterbox_sim::rng::Rng;
use letterbox_sim::seeds;
use tokio::time::{sleep, timeout};

use common::{Clients, DATA, NODES, PATIENCE, TOPIC, ask, connect, node_with, show_log};

const FAULTS: u64 = 8;
const REQUEST_TIMED_OUT: i16 = 7;
/// Kinds of elections.
const PREFERRED: i8 = 0;
const UNCLEAN: i8 = 1;

fn cluster(seed: u64) -> Cluster {
    cluster_with(seed, "")
}

fn cluster_with(seed: u64, more: &str) -> Cluster {
    show_log();
    let mut cluster = Cluster::new(seed);
    let more = format!(
        "default.replication.factor=3\nmin.insync.replicas=2\n\
         offsets.topic.replication.factor=3\nreplica.lag.time.max.ms=2000\n\
         replica.socket.timeout.ms=1000\n{more}"
    );
    let backoff = "replica.fetch.backoff.ms";
    let more = if more.contains(backoff) { more } else { format!("{more}\n{backoff}=200\n") };
    (1..).zip(NODES).for_each(|(id, name)| cluster.host(name, node_with(id, &more)));
    cluster
}

/// The partitions of every topic, as `at` tells of them.
async fn partitions(env: &Env, at: &str) -> Option<Vec<MetadataResponsePartition>> {
    partitions_with(env, at, NODES.len()).await
}

/// While that many brokers are there.
async fn partitions_with(
    env: &Env,
    at: &str,
    brokers: usize,
) -> Option<Vec<MetadataResponsePartition>> {
    let mut stream = timeout(Duration::from_secs(5), connect(env, at)).await.ok()?;
    let request = m::MetadataRequest::default().with_topics(None);
    let asked = ask(&mut stream, 9, request);
    let Ok(Some(Response::Metadata(told))) = timeout(Duration::from_secs(5), asked).await else {
        return None;
    };
    (told.brokers.len() == brokers)
        .then(|| told.topics.into_iter().flat_map(|topic| topic.partitions).collect())
}

/// Notes which partitions have lost a replica in sync although nothing happens.
async fn watch_the_calm(env: &Env, left: &RefCell<Vec<MetadataResponsePartition>>) {
    let mut were_whole = false;
    for _ in 0..40 {
        let all = partitions(env, NODES[0]).await.unwrap_or_default();
        let lacks = |one: &MetadataResponsePartition| one.isr_nodes.len() < NODES.len();
        if were_whole {
            left.borrow_mut().extend(all.into_iter().filter(lacks));
        } else {
            were_whole = !all.is_empty() && !all.iter().any(lacks);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// One fault, and what it is called. The first takes a node away: somebody else has to lead.
fn break_something(
    cluster: &mut Cluster,
    rng: &mut Rng,
    is_first: bool,
) -> (Vec<&'static str>, &'static str) {
    let name = NODES[rng.index(3)];
    let other = NODES[(NODES.iter().position(|node| *node == name).unwrap() + 1) % 3];
    match rng.below(if is_first { 5 } else { 12 }) {
        0 => {
            cluster.power_cut(name);
            (vec![name], "power cut")
        }
        1 | 2 => {
            // Half of the time one of them is behind with its disk.
            if rng.percent(50) {
                cluster.disk(other).set_slow(Duration::from_millis(rng.between(50, 400)));
                cluster.run_for(Duration::from_millis(rng.between(200, 1_500)));
            }
            NODES.into_iter().for_each(|name| cluster.power_cut(name));
            cluster.disk(other).set_slow(Duration::ZERO);
            if rng.percent(50) {
                // And one comes back later than the others, who have to lead without it.
                NODES.into_iter().filter(|node| *node != name).for_each(|node| {
                    cluster.restart(node);
                });
                cluster.run_for(Duration::from_secs(6));
            }
            (NODES.to_vec(), "power cut of all")
        }
        3 | 4 => {
            cluster.kill(name);
            (vec![name], "kill")
        }
        5 => {
            assert!(cluster.stop(name, PATIENCE), "{name} does not stop");
            (vec![name], "stop")
        }
        6 => {
            cluster.cut(name, other);
            (vec![name], "cut")
        }
        7 => {
            cluster.cut_one_way(name, other);
            (vec![name], "cut of one way")
        }
        8 => {
            NODES.into_iter().filter(|node| *node != name).for_each(|node| cluster.cut(name, node));
            (vec![name], "isolation")
        }
        9 => {
            cluster.disk(name).set_slow(Duration::from_millis(rng.between(20, 400)));
            (vec![name], "slow disk")
        }
        10 => {
            cluster.disk(name).set_free(rng.between(1, 64) << 20);
            (vec![name], "full disk")
        }
        _ => {
            for name in NODES {
                cluster.disk(name).set_free(rng.between(1, 64) << 20);
                cluster.run_for(Duration::from_millis(rng.between(0, 3_000)));
            }
            (NODES.to_vec(), "full disk of all")
        }
    }
}

/// Everything goes on. No node ended by itself but those whose power failed.
fn heal(cluster: &mut Cluster, unplugged: &mut BTreeSet<&'static str>) {
    for (at, name) in NODES.into_iter().enumerate() {
        cluster.disk(name).set_slow(Duration::ZERO);
        cluster.disk(name).set_capacity(None);
        NODES[at + 1..].iter().for_each(|other| cluster.mend(name, other));
        if !cluster.is_running(name) {
            let exit = cluster.exit(name);
            let is_well = exit.as_ref().is_none_or(Result::is_ok);
            assert!(unplugged.remove(name) || is_well, "{name} ended: {exit:?}");
            cluster.restart(name);
        }
    }
}

/// The batches of each partition's log on the disk of `name`, by directory.
fn logs(cluster: &Cluster, name: &str) -> BTreeMap<String, Vec<u8>> {
    let disk = cluster.disk(name);
    let all = [DATA, "/first", "/second"].into_iter().flat_map(|root| {
        let entries = disk.list(Path::new(root)).unwrap_or_default();
        entries.into_iter().map(move |entry| (root, entry))
    });
    let is_of_data = |name: &str| name.starts_with(TOPIC) || name.starts_with("__consumer");
    let dirs = all.filter(|(_, entry)| entry.is_dir && is_of_data(&entry.name));
    let of_dir = |(root, dir): (&str, letterbox_env::DirEntry)| {
        let path = Path::new(root).join(&dir.name);
        let mut files: Vec<String> =
            disk.list(&path).unwrap().into_iter().map(|entry| entry.name).collect();
        files.retain(|file| file.ends_with(".log"));
        files.sort_unstable();
        let bytes = files.iter().flat_map(|file| disk.read(&path.join(file)).unwrap()).collect();
        (dir.name, bytes)
    };
    dirs.map(of_dir).collect()
}

fn run(seed: u64) {
    let mut cluster = cluster(seed);
    let clients = Clients::begin(&mut cluster);
    let left = Rc::new(RefCell::new(Vec::new()));
    let told = Rc::clone(&left);
    cluster.client("watcher", move |env| async move {
        watch_the_calm(&env, &told).await;
        Ok(())
    });
    let (mut rng, mut unplugged) = (cluster.schedule_rng(), BTreeSet::new());
    cluster.run_for(Duration::from_secs(6));
    assert!(left.borrow().is_empty(), "nothing was wrong, and left the ISR: {:?}", left.borrow());
    for fault in 0..FAULTS {
        let (names, what) = break_something(&mut cluster, &mut rng, fault == 0);
        if what.starts_with("power") {
            unplugged.extend(&names);
        }
        clients.note_fault(&cluster, &names.join(","), what);
        let least = if fault == 0 { 4_000 } else { 50 };
        cluster.run_for(Duration::from_millis(rng.between(least, 6_000)));
        if rng.percent(70) {
            heal(&mut cluster, &mut unplugged);
            cluster.run_for(Duration::from_millis(rng.between(50, 5_000)));
        }
    }
    heal(&mut cluster, &mut unplugged);
    assert!(clients.go_on(&mut cluster), "the healed cluster stands still");
    clients.ask_to_end();
    assert!(cluster.run_clients(PATIENCE * 2), "clients do not end");

    let elections = Rc::new(RefCell::new(0));
    let told = Rc::clone(&elections);
    let to_scan = clients.clone();
    cluster.client("scanner", move |env| async move {
        for name in NODES {
            loop {
                let all = partitions(&env, name).await.unwrap_or_default();
                let in_sync = |one: &MetadataResponsePartition| {
                    one.error_code == 0 && one.isr_nodes.len() == NODES.len()
                };
                if !all.is_empty() && all.iter().all(in_sync) {
                    *told.borrow_mut() = all.iter().map(|one| one.leader_epoch).sum();
                    break;
                }
                sleep(Duration::from_millis(200)).await;
            }
        }
        to_scan.scan(env).await
    });
    assert!(cluster.run_clients(PATIENCE * 2), "not every replica comes in sync again");
    // What is appended to groups last is fetched and synced.
    cluster.run_for(Duration::from_secs(3));
    NODES.into_iter().for_each(|name| {
        assert!(cluster.stop(name, PATIENCE), "{name} does not stop");
        assert_eq!(cluster.exit(name), Some(Ok(())), "{name}");
    });
    let ended: Vec<_> = NODES.map(|name| logs(&cluster, name)).into();
    for (dir, one) in &ended[0] {
        assert!(!one.is_empty() || dir.starts_with("__"), "{dir} is empty");
        for (name, other) in NODES.iter().zip(&ended) {
            let other = &other[dir];
            let same = one.iter().zip(other).take_while(|(one, other)| one == other).count();
            // Groups go on until the nodes stop.
            let is_same = one.len() == other.len() || dir.starts_with("__");
            assert!(
                is_same && same == one.len().min(other.len()),
                "{dir} of {name} has {} bytes and differs from that of {} with {} after {same}",
                other.len(),
                NODES[0],
                one.len(),
            );
        }
    }
    let demands = Demands { sends_ok_min: 200, reads_min: 400, faults_min: FAULTS };
    let report = Checker::check(clients.history.events(), demands);
    let elections = *elections.borrow();
    println!(
        "seed {seed}, {:?} of virtual time, {elections} elections: {report}",
        cluster.elapsed()
    );
    assert!(report.is_clean(), "{report}");
    assert!(elections >= 2, "only {elections} elections");
}

#[test]
fn three_replicas_lose_nothing_and_become_the_same_again() {
    const NAME: &str = "three_replicas_lose_nothing_and_become_the_same_again";
    seeds::for_each(3, "replication", NAME, run);
}

/// Waits until `is_so` of the partitions, as each of `names` tells of them.
fn wait_for(
    cluster: &mut Cluster,
    names: &'static [&'static str],
    what: &str,
    is_so: impl Fn(&[MetadataResponsePartition]) -> bool + 'static,
) {
    wait_with(cluster, names, NODES.len(), what, is_so);
}

/// While that many brokers are there.
fn wait_with(
    cluster: &mut Cluster,
    names: &'static [&'static str],
    brokers: usize,
    what: &str,
    is_so: impl Fn(&[MetadataResponsePartition]) -> bool + 'static,
) {
    let last = Rc::new(RefCell::new(Vec::new()));
    let told = Rc::clone(&last);
    let found = Rc::new(Cell::new(false));
    let is_found = Rc::clone(&found);
    cluster.client(what, move |env| async move {
        for name in names {
            loop {
                let all = partitions_with(&env, name, brokers).await.unwrap_or_default();
                if !all.is_empty() && is_so(&all) {
                    break;
                }
                *told.borrow_mut() = all;
                sleep(Duration::from_millis(100)).await;
            }
        }
        is_found.set(true);
        Ok(())
    });
    assert!(cluster.run_until(PATIENCE, |_| found.get()), "{what}: {:?}", last.borrow());
}

/// Its broker lives on with its other directory: what it leads in the first goes to others, and
/// comes back when the disk was replaced and the broker started again.
#[test]
fn a_log_directory_that_fails_hands_over_what_it_leads() {
    let dirs = "log.dirs=/first,/second\nmetadata.log.dir=/metadata";
    let mut cluster = cluster_with(8, dirs);
    let clients = Clients::begin(&mut cluster);
    let whole = |all: &[MetadataResponsePartition]| {
        all.iter().all(|one| one.error_code == 0 && one.isr_nodes.len() == NODES.len())
    };
    wait_for(&mut cluster, &NODES, "all are in sync", whole);
    assert!(clients.go_on(&mut cluster));
    let led = |one: &MetadataResponsePartition| one.leader_id.0 == 1;
    wait_for(&mut cluster, &NODES, "the first leads", move |all| all.iter().any(led));

    cluster.disk(NODES[0]).inject(Fault::FailChange, "/first/", 0, u64::MAX);
    clients.note_fault(&cluster, NODES[0], "failed directory");
    wait_for(&mut cluster, &NODES, "others lead", |all| {
        let first = m::BrokerId(1);
        let is_led = all.iter().all(|one| one.error_code == 0);
        let (offline, other): (Vec<_>, Vec<_>) =
            all.iter().partition(|one| one.offline_replicas.contains(&first));
        let is_out = |one: &&MetadataResponsePartition| {
            one.leader_id != first && !one.isr_nodes.contains(&first)
        };
        // Those in the other directory stay in sync.
        let stays = other.iter().any(|one| one.isr_nodes.contains(&first));
        is_led && stays && !offline.is_empty() && offline.iter().all(is_out)
    });
    assert!(cluster.is_running(NODES[0]));
    assert!(clients.go_on(&mut cluster), "writes wait for the directory that failed");

    cluster.kill(NODES[0]);
    cluster.disk(NODES[0]).heal();
    cluster.restart(NODES[0]);
    wait_for(&mut cluster, &NODES, "all are in sync again", move |all| {
        whole(all) && all.iter().all(|one| one.offline_replicas.is_empty())
    });
    clients.ask_to_end();
    assert!(cluster.run_clients(PATIENCE * 2), "clients do not end");
    let demands = Demands { sends_ok_min: 200, reads_min: 200, faults_min: 1 };
    clients.scan_and_check(&mut cluster, demands);
}

/// Its broker lives on: others lead until it has room again. Where nobody has any, all is readable,
/// also after the end of one.
#[test]
fn a_full_disk_holds_nobody_up_while_another_has_room() {
    let mut cluster = cluster(11);
    let clients = Clients::begin(&mut cluster);
    let is_led = |one: &MetadataResponsePartition| one.error_code == 0;
    let whole = move |all: &[MetadataResponsePartition]| {
        all.iter().all(|one| is_led(one) && one.isr_nodes.len() == NODES.len())
    };
    wait_for(&mut cluster, &NODES, "all are in sync", whole);
    assert!(clients.go_on(&mut cluster));
    let led = |one: &MetadataResponsePartition| one.leader_id.0 == 1;
    wait_for(&mut cluster, &NODES, "the first leads", move |all| all.iter().any(led));

    // Nor may coordinators use what is left.
    let fill = |cluster: &Cluster, name| cluster.disk(name).set_free(8 << 20);
    fill(&cluster, NODES[0]);
    clients.note_fault(&cluster, NODES[0], "full disk");
    wait_for(&mut cluster, &NODES, "others lead", move |all| {
        all.iter().all(|one| is_led(one) && !one.isr_nodes.contains(&m::BrokerId(1)))
    });
    assert!(clients.go_on(&mut cluster), "writes wait for the disk that is full");
    cluster.disk(NODES[0]).set_capacity(None);
    wait_for(&mut cluster, &NODES, "all are in sync again", whole);

    NODES.into_iter().for_each(|name| fill(&cluster, name));
    clients.note_fault(&cluster, &NODES.join(","), "full disk of all");
    cluster.run_for(Duration::from_secs(20));
    wait_for(&mut cluster, &NODES, "all are led", move |all| all.iter().all(is_led));
    cluster.kill(NODES[2]);
    wait_with(&mut cluster, &NODES[..2], 2, "all are led without the third", move |all| {
        all.iter().all(|one| is_led(one) && one.leader_id.0 != 3)
    });
    cluster.restart(NODES[2]);
    NODES.into_iter().for_each(|name| cluster.disk(name).set_capacity(None));
    wait_for(&mut cluster, &NODES, "all are in sync at the end", whole);
    assert!(clients.go_on(&mut cluster), "writes wait for disks that have room");
    clients.ask_to_end();
    assert!(cluster.run_clients(PATIENCE * 2), "clients do not end");
    let demands = Demands { sends_ok_min: 200, reads_min: 200, faults_min: 2 };
    clients.scan_and_check(&mut cluster, demands);
}

/// Whoever leads next has them not either: a replica whose broker lives and does not fetch holds up
/// the answer until it has dropped them, or is known to be gone.
#[test]
fn records_are_deleted_when_no_replica_has_them_any_more() {
    let mut cluster = cluster(9);
    let clients = Clients::begin(&mut cluster);
    wait_for(&mut cluster, &NODES, "all are in sync", |all| {
        all.iter().all(|one| one.error_code == 0 && one.isr_nodes.len() == NODES.len())
    });
    assert!(clients.go_on(&mut cluster));
    let asked = Rc::new(RefCell::new(None));
    let delete = |cluster: &mut Cluster, offset, timeout_ms| {
        let told = Rc::clone(&asked);
        cluster.client(&format!("deletes before {offset}"), move |env| async move {
            let led = leader_of(&env, NODES[0]).await;
            let mut stream = connect(&env, led).await;
            let partition = DeleteRecordsPartition::default().with_offset(offset);
            let topic = DeleteRecordsTopic::default()
                .with_name(common::name(TOPIC))
                .with_partitions(vec![partition]);
            let request = m::DeleteRecordsRequest::default()
                .with_topics(vec![topic])
                .with_timeout_ms(timeout_ms);
            let Some(Response::DeleteRecords(answer)) = ask(&mut stream, 2, request).await else {
                return Err("no answer".to_owned());
            };
            let partition = &answer.topics[0].partitions[0];
            *told.borrow_mut() = Some((led, partition.error_code, partition.low_watermark));
            Ok(())
        });
        assert!(cluster.run_until(PATIENCE, |_| asked.borrow().is_some()));
        asked.take().unwrap()
    };
    let (leader, code, low) = delete(&mut cluster, 5, 5_000);
    assert_eq!((code, low), (0, 5));
    // One is cut off from both others: its broker is still taken to live.
    let cut = NODES.into_iter().rfind(|name| *name != leader).unwrap();
    NODES.into_iter().filter(|name| *name != cut).for_each(|name| cluster.cut(name, cut));
    assert_eq!(delete(&mut cluster, 7, 300), (leader, REQUEST_TIMED_OUT, -1));
    // Until its session is over.
    assert_eq!(delete(&mut cluster, 8, 20_000), (leader, 0, 8));
    NODES.into_iter().filter(|name| *name != cut).for_each(|name| cluster.mend(name, cut));
    clients.ask_to_end();
    assert!(cluster.run_clients(PATIENCE * 2), "clients do not end");
}

/// Who leads the first partition of the topic.
async fn leader_of(env: &Env, at: &str) -> &'static str {
    let mut stream = connect(env, at).await;
    let topic = MetadataRequestTopic::default().with_name(Some(common::name(TOPIC)));
    let request = m::MetadataRequest::default().with_topics(Some(vec![topic]));
    let Some(Response::Metadata(told)) = ask(&mut stream, 9, request).await else {
        panic!("no answer")
    };
    let leader = told.topics[0].partitions.iter().find(|one| one.partition_index == 0).unwrap();
    NODES[usize::try_from(leader.leader_id.0).unwrap() - 1]
}

/// Elects leaders of all partitions that want one: the error of each that was looked at.
fn elect(cluster: &mut Cluster, kind: i8) -> Vec<i16> {
    let elected = Rc::new(RefCell::new(None));
    let told = Rc::clone(&elected);
    cluster.client(&format!("elects {kind}"), move |env| async move {
        let request = m::ElectLeadersRequest::default()
            .with_election_type(kind)
            .with_topic_partitions(None)
            .with_timeout_ms(10_000);
        let mut stream = connect(&env, NODES[1]).await;
        let Some(Response::ElectLeaders(answer)) = ask(&mut stream, 2, request).await else {
            return Err("no answer".to_owned());
        };
        let all = answer.replica_election_results.iter().flat_map(|one| &one.partition_result);
        *told.borrow_mut() = Some(all.map(|one| one.error_code).collect::<Vec<_>>());
        Ok(())
    });
    assert!(cluster.run_until(PATIENCE, |_| elected.borrow().is_some()));
    elected.take().unwrap()
}

/// Its followers have a connection to the process of before.
#[test]
fn a_leader_that_was_restarted_is_followed_at_once() {
    let backoff = Duration::from_secs(25);
    let more = format!("replica.fetch.backoff.ms={}\n", backoff.as_millis());
    let mut cluster = cluster_with(12, &more);
    let clients = Clients::begin(&mut cluster);
    wait_for(&mut cluster, &NODES, "all are in sync", are_whole);
    assert!(clients.go_on(&mut cluster));
    assert!(cluster.stop(NODES[0], PATIENCE));
    cluster.restart(NODES[0]);
    wait_for(&mut cluster, &NODES, "all are in sync again", are_whole);
    let elected = elect(&mut cluster, PREFERRED);
    assert!(!elected.is_empty() && elected.iter().all(|code| *code == 0), "{elected:?}");
    let from = cluster.elapsed();
    assert!(clients.go_on(&mut cluster));
    let took = cluster.elapsed() - from;
    assert!(took < backoff / 2, "{took:?}");
}

/// The disk of one broker lost something and the loss was accepted; it starts before anybody has
/// noticed that it was gone. The others have all, and keep it.
fn lose_a_log(more: &str, lose: impl Fn(&Cluster)) {
    let mut cluster = cluster_with(10, more);
    let clients = Clients::begin(&mut cluster);
    let whole = |all: &[MetadataResponsePartition]| {
        all.iter().all(|one| one.error_code == 0 && one.isr_nodes.len() == NODES.len())
    };
    wait_for(&mut cluster, &NODES, "all are in sync", whole);
    assert!(clients.go_on(&mut cluster));
    cluster.kill(NODES[0]);
    lose(&cluster);
    clients.note_fault(&cluster, NODES[0], "lost");
    cluster.restart(NODES[0]);
    assert!(clients.go_on(&mut cluster));
    wait_for(&mut cluster, &NODES, "all are in sync again", whole);
    clients.ask_to_end();
    assert!(cluster.run_clients(PATIENCE * 2), "clients do not end");
    cluster.run_for(Duration::from_secs(3));
    NODES.into_iter().for_each(|name| assert!(cluster.stop(name, PATIENCE), "{name}"));
    let ended: Vec<_> = NODES.map(|name| logs(&cluster, name)).into();
    for dir in ended[0].keys().filter(|dir| dir.starts_with(TOPIC) && !dir.contains('.')) {
        assert!(!ended[0][dir].is_empty(), "{dir} is empty");
        assert!(ended.iter().all(|logs| logs[dir] == ended[0][dir]), "{dir} differs");
    }
    NODES.into_iter().for_each(|name| cluster.restart(name));
    let demands = Demands { sends_ok_min: 200, reads_min: 200, faults_min: 1 };
    clients.scan_and_check(&mut cluster, demands);
}

#[test]
fn a_loss_that_was_accepted_for_one_replica_is_made_good_from_the_others() {
    lose_a_log("", |cluster| {
        let disk = cluster.disk(NODES[0]);
        for partition in 0..common::PARTITIONS {
            let dir = Path::new(DATA).join(format!("{TOPIC}-{partition}"));
            disk.remove_dir_all(&dir).unwrap();
            disk.create_dir_all(&dir).unwrap();
            drop(disk.open(&dir.join("accept-data-loss"), OpenMode::Create).unwrap());
        }
    });
}

#[test]
fn a_log_directory_that_was_given_up_is_filled_from_the_others() {
    lose_a_log("log.dirs=/first,/second\nmetadata.log.dir=/metadata", |cluster| {
        let disk = cluster.disk(NODES[0]);
        let second = Path::new("/second");
        for entry in disk.list(second).unwrap() {
            let path = second.join(&entry.name);
            if entry.is_dir { disk.remove_dir_all(&path) } else { disk.remove_file(&path) }
                .unwrap();
        }
        disk.remove_file(Path::new("/metadata/log-directories")).unwrap();
    });
}

const DIRS: &str = "log.dirs=/first,/second\nmetadata.log.dir=/metadata";

/// A node whose log directories are named in another order at each start.
fn swapping(id: usize, more: &str) -> impl Fn(Process) -> Pin<Box<dyn Future<Output = Exit>>> {
    let of =
        |dirs: &str| node_with(id, &format!("log.dirs={dirs}\nmetadata.log.dir=/metadata\n{more}"));
    let (one, other, starts) = (of("/first,/second"), of("/second,/first"), Cell::new(0));
    move |process| {
        starts.set(starts.get() + 1);
        if starts.get() % 2 == 0 { other(process) } else { one(process) }
    }
}

/// The files below `root`, on a disk that no process uses.
fn files(disk: &SimDisk, root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let of_entry = |entry: letterbox_env::DirEntry| {
        let path = root.join(&entry.name);
        if entry.is_dir {
            files(disk, &path)
        } else {
            [(path.clone(), disk.read(&path).unwrap())].into()
        }
    };
    disk.list(root).unwrap().into_iter().flat_map(of_entry).collect()
}

/// Puts `files` in the place of what is below `root`.
fn put_back(disk: &SimDisk, root: &str, files: &BTreeMap<PathBuf, Vec<u8>>) {
    disk.remove_dir_all(Path::new(root)).unwrap();
    for (path, bytes) in files.iter().filter(|(path, _)| path.starts_with(root)) {
        disk.create_dir_all_durably(path.parent().unwrap()).unwrap();
        disk.write_atomically(path, bytes).unwrap();
    }
}

fn are_whole(all: &[MetadataResponsePartition]) -> bool {
    all.iter().all(|one| one.error_code == 0 && one.isr_nodes.len() == NODES.len())
}

/// It was in sync when the others ended, and what it has now lacks what was acknowledged since.
#[test]
fn an_older_state_of_log_directories_does_not_lead() {
    let mut cluster = cluster_with(10, DIRS);
    let clients = Clients::begin(&mut cluster);
    wait_for(&mut cluster, &NODES, "all are in sync", are_whole);
    assert!(clients.go_on(&mut cluster));
    assert!(cluster.stop(NODES[1], PATIENCE));
    let disk = cluster.disk(NODES[1]);
    let copy: BTreeMap<_, _> =
        ["/first", "/second"].iter().flat_map(|root| files(&disk, Path::new(root))).collect();
    cluster.restart(NODES[1]);
    wait_for(&mut cluster, &NODES, "all are in sync again", are_whole);
    assert!(cluster.stop(NODES[2], PATIENCE));
    assert!(clients.go_on(&mut cluster), "two are enough");
    [NODES[0], NODES[1]].iter().for_each(|name| cluster.kill(name));
    clients.note_fault(&cluster, NODES[1], "older state");
    ["/first", "/second"].iter().for_each(|root| put_back(&disk, root, &copy));
    [NODES[1], NODES[2]].iter().for_each(|name| cluster.restart(name));
    cluster.run_for(Duration::from_secs(15));
    cluster.restart(NODES[0]);
    wait_for(&mut cluster, &NODES, "all are in sync at last", are_whole);
    assert!(clients.go_on(&mut cluster));
    clients.ask_to_end();
    assert!(cluster.run_clients(PATIENCE * 2), "clients do not end");
    let demands = Demands { sends_ok_min: 200, reads_min: 200, faults_min: 1 };
    clients.scan_and_check(&mut cluster, demands);
}

/// With all nodes down at once, and one replica each: a log that counted as lost would stay so.
fn end_starts(seed: u64) {
    show_log();
    let mut cluster = Cluster::new(seed);
    let more = "offsets.topic.replication.factor=1";
    (1..).zip(NODES).for_each(|(id, name)| cluster.host(name, swapping(id, more)));
    let clients = Clients::begin(&mut cluster);
    assert!(clients.go_on(&mut cluster));
    let mut rng = cluster.schedule_rng();
    for _ in 0..2 {
        NODES.iter().for_each(|name| cluster.kill(name));
        clients.note_fault(&cluster, "all", "kill");
        for _ in 0..8 {
            let ends = rng.below(3);
            for name in NODES {
                if cluster.is_running(name) {
                    continue;
                }
                if ends == 0 {
                    cluster.disk(name).cut_power_after(rng.between(1, 60));
                }
                cluster.restart(name);
            }
            cluster.run_for(Duration::from_millis(rng.between(1, 2_500)));
            for name in NODES.into_iter().filter(|_| ends != 0 || rng.percent(50)) {
                if ends == 1 { cluster.kill(name) } else { cluster.power_cut(name) }
            }
        }
        NODES.iter().for_each(|name| cluster.power_cut(name));
        NODES.iter().for_each(|name| cluster.restart(name));
        assert!(clients.go_on(&mut cluster), "something is missing that was never lost");
    }
    clients.ask_to_end();
    assert!(cluster.run_clients(PATIENCE * 2), "clients do not end");
    let demands = Demands { sends_ok_min: 200, reads_min: 200, faults_min: 2 };
    clients.scan_and_check(&mut cluster, demands);
}

#[test]
fn starts_that_are_ended_at_any_moment_lose_no_log() {
    const NAME: &str = "starts_that_are_ended_at_any_moment_lose_no_log";
    seeds::for_each(2, "replication", NAME, end_starts);
}

/// The first is not there for a while: what lies in the other one stays in sync.
#[test]
fn a_log_directory_that_is_away_for_a_while_takes_nothing_else_with_it() {
    let mut cluster = cluster_with(11, DIRS);
    let clients = Clients::begin(&mut cluster);
    wait_for(&mut cluster, &NODES, "all are in sync", are_whole);
    assert!(clients.go_on(&mut cluster));
    cluster.kill(NODES[0]);
    clients.note_fault(&cluster, NODES[0], "directory away");
    let disk = cluster.disk(NODES[0]);
    disk.rename(Path::new("/first"), Path::new("/away")).unwrap();
    cluster.restart(NODES[0]);
    wait_for(&mut cluster, &NODES, "the others are in sync", |all| {
        let is_there = |one: &MetadataResponsePartition| one.isr_nodes.contains(&m::BrokerId(1));
        let is_away =
            |one: &MetadataResponsePartition| one.offline_replicas.contains(&m::BrokerId(1));
        all.iter().any(is_there) && all.iter().any(is_away)
    });
    cluster.kill(NODES[0]);
    disk.remove_dir_all(Path::new("/first")).unwrap_or_default();
    disk.rename(Path::new("/away"), Path::new("/first")).unwrap();
    cluster.restart(NODES[0]);
    wait_for(&mut cluster, &NODES, "all are in sync again", are_whole);
    clients.ask_to_end();
    assert!(cluster.run_clients(PATIENCE * 2), "clients do not end");
    let strays = disk.list(Path::new("/first")).unwrap();
    assert!(!strays.iter().any(|entry| entry.name.ends_with("-stray")), "{strays:?}");
    let demands = Demands { sends_ok_min: 200, reads_min: 200, faults_min: 1 };
    clients.scan_and_check(&mut cluster, demands);
}

/// It joins as a new voter, and its logs count as before.
#[test]
fn a_voter_that_lost_its_metadata_log_alone_joins_with_its_logs() {
    let more = "log.dirs=/first\nmetadata.log.dir=/metadata\n\
        controller.quorum.auto.join.enable=true\naccepted.lost.metadata.log=lost";
    let mut cluster = cluster_with(12, more);
    let clients = Clients::begin(&mut cluster);
    wait_for(&mut cluster, &NODES, "all are in sync", are_whole);
    assert!(clients.go_on(&mut cluster));
    cluster.kill(NODES[2]);
    clients.note_fault(&cluster, NODES[2], "metadata log lost");
    let disk = cluster.disk(NODES[2]);
    disk.remove_dir_all(Path::new("/metadata")).unwrap();
    assert!(clients.go_on(&mut cluster), "two are enough");
    cluster.restart(NODES[2]);
    wait_for(&mut cluster, &NODES, "all are in sync again", are_whole);
    assert!(cluster.stop(NODES[0], PATIENCE));
    assert!(clients.go_on(&mut cluster), "it votes");
    cluster.restart(NODES[0]);
    wait_for(&mut cluster, &NODES, "all are in sync at last", are_whole);
    clients.ask_to_end();
    assert!(cluster.run_clients(PATIENCE * 2), "clients do not end");
    let there = disk.list(Path::new("/first")).unwrap();
    assert!(!there.iter().any(|entry| entry.name.ends_with("-stray")), "{there:?}");
    let demands = Demands { sends_ok_min: 200, reads_min: 200, faults_min: 1 };
    clients.scan_and_check(&mut cluster, demands);
}

/// One replica of each partition has nothing, and the others have lost some: nobody leads by itself. A
/// person elects one, and what the others have is not deleted.
#[test]
fn where_all_logs_are_lost_a_person_elects_and_what_the_others_have_is_set_aside() {
    let mut cluster = cluster(11);
    let clients = Clients::begin(&mut cluster);
    let whole = |all: &[MetadataResponsePartition]| {
        all.iter().all(|one| one.error_code == 0 && one.isr_nodes.len() == NODES.len())
    };
    wait_for(&mut cluster, &NODES, "all are in sync", whole);
    assert!(clients.go_on(&mut cluster));
    clients.ask_to_end();
    assert!(cluster.run_clients(PATIENCE * 2), "clients do not end");
    NODES.into_iter().for_each(|name| assert!(cluster.stop(name, PATIENCE), "{name}"));
    let mut had = BTreeMap::new();
    for (name, partition) in
        NODES.iter().flat_map(|name| (0..common::PARTITIONS).map(move |n| (name, n)))
    {
        let (disk, dir) =
            (cluster.disk(name), Path::new(DATA).join(format!("{TOPIC}-{partition}")));
        if *name == NODES[0] {
            disk.remove_dir_all(&dir).unwrap();
            disk.create_dir_all(&dir).unwrap();
        } else {
            let log =
                disk.open(&dir.join("00000000000000000000.log"), OpenMode::ReadWrite).unwrap();
            let mut bytes = disk.read(&dir.join("00000000000000000000.log")).unwrap();
            bytes.truncate(bytes.len() / 2);
            log.set_len(bytes.len() as u64).unwrap();
            // Its whole batches: the rest of the half is torn off.
            let mut rest = &bytes[..];
            while let Ok((_, after)) = Batch::split(rest) {
                rest = after;
            }
            let whole = bytes.len() - rest.len();
            had.insert((*name, partition), bytes[..whole].to_vec());
        }
        drop(disk.open(&dir.join("accept-data-loss"), OpenMode::Create).unwrap());
    }
    NODES.into_iter().for_each(|name| cluster.restart(name));
    let nobody_leads = |all: &[MetadataResponsePartition]| {
        let led = all.iter().filter(|one| one.leader_id.0 >= 0).count();
        all.len() - led == usize::try_from(common::PARTITIONS).unwrap()
    };
    wait_for(&mut cluster, &NODES, "nobody leads", nobody_leads);
    cluster.run_for(Duration::from_secs(5));
    wait_for(&mut cluster, &NODES, "still nobody leads", nobody_leads);
    let codes = elect(&mut cluster, UNCLEAN);
    assert_eq!(codes, vec![0; usize::try_from(common::PARTITIONS).unwrap()]);
    wait_for(&mut cluster, &NODES, "all are in sync again", whole);
    let of_the_empty = Rc::new(RefCell::new(Vec::new()));
    let led_by_it = Rc::clone(&of_the_empty);
    wait_for(&mut cluster, &NODES, "who leads", move |all| {
        let led = all.iter().filter(|one| one.leader_id.0 == 1).map(|one| one.partition_index);
        *led_by_it.borrow_mut() = led.collect();
        true
    });
    // The others lead with what they have. Who led last may have been copied to the empty one before:
    // what a replica had is in its log then, else beside it.
    assert!(!of_the_empty.borrow().is_empty());
    for partition in of_the_empty.take() {
        for name in &NODES[1..] {
            let (disk, of) = (cluster.disk(name), format!("{TOPIC}-{partition}"));
            let entries = disk.list(Path::new(DATA)).unwrap().into_iter();
            let dirs = entries.filter(|entry| {
                let is_aside = entry.name.starts_with(&format!("{of}."));
                entry.name == of || is_aside && entry.name.ends_with("-stray")
            });
            let logs = dirs.map(|entry| Path::new(DATA).join(entry.name));
            let mut logs = logs.map(|dir| disk.read(&dir.join("00000000000000000000.log")));
            let had = &had[&(*name, partition)];
            let is_there = logs.any(|log| log.is_ok_and(|log| log.starts_with(had)));
            assert!(is_there, "{partition} of {name}: what it had is gone");
        }
    }
}
