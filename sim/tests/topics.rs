//! Topics that are made, filled, grown, changed, compacted and deleted while something is broken:
//! three ordinary requests and one fault at a time.
//!
//! The broker is killed or loses its power at any operation, its disk is full or slow, one of its
//! two log directories fails, it runs out of descriptors, its clock jumps, the directory of a
//! partition is taken away, bits of a log change, and clients vanish, trickle or do not read.
//! Beside the promises that the clients look at (`workload::churner`, `workload::committer`), no
//! fault of this file ends the broker's process, and a stop takes at most five seconds.
//! `sim/README.md` says which faults of a broker it finds.

mod common;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use letterbox_env::{BoxStream, Disk as _, Env, OpenMode};
use letterbox_sim::cluster::{Cluster, Exit, NetworkOptions};
use letterbox_sim::disk::{Fault, SimDisk};
use letterbox_sim::history::History;
use letterbox_sim::rng::Rng;
use letterbox_sim::workload::{self, Broken, Churned, Hurt};
use letterbox_sim::{seeds, trace::Trace};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use common::{BROKER, broker, show_log};

const CLIENTS: &str = "clients";
const RUDE: &str = "rude";
/// The second holds no metadata log: the broker goes on without it.
const DIRS: [&str; 2] = ["/var/lib/letterbox/a", "/var/lib/letterbox/b"];
/// Where directories go that are taken away.
const ASIDE: &str = "/aside";
const CONFIG: &str = "log.dirs=/var/lib/letterbox/a,/var/lib/letterbox/b\nauto.create.topics.enable=false\n\
    log.retention.check.interval.ms=300\nlog.flush.offset.checkpoint.interval.ms=900\nlog.cleaner.backoff.ms=400\n\
    replica.high.watermark.checkpoint.interval.ms=1100\noffsets.retention.minutes=1\noffsets.retention.check.interval.ms=50\n";
/// How long the broker may take to serve again once nothing is broken any more.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a stop may take while nothing is broken.
const STOP: Duration = Duration::from_secs(5);

/// Clients that break off, say nothing, trickle a large request, wait for records that do not come,
/// or do not read their answers.
async fn rude(env: Env, stop: Arc<AtomicBool>) -> Exit {
    let mut rng = Rng::new(env.random_u64());
    while !stop.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(rng.between(50, 600))).await;
        if let Ok(Ok(stream)) =
            timeout(Duration::from_millis(300), env.net.connect(BROKER, 9092)).await
        {
            // Whatever becomes of it: the connection may be cut at any moment.
            let _ = be_rude(stream, &mut rng).await;
        }
    }
    Ok(())
}

async fn be_rude(mut stream: BoxStream, rng: &mut Rng) -> std::io::Result<()> {
    // Metadata of all topics, version 0.
    let metadata = [0, 0, 0, 14, 0, 3, 0, 0, 0, 0, 0, 7, 0xff, 0xff, 0, 0, 0, 0];
    match rng.below(10) {
        // A Produce of 64 MiB, of which a byte comes now and then.
        0..=1 => {
            stream
                .write_all(&[
                    4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff, 0, 1, 0, 0, 0x3a,
                    0x98,
                ])
                .await?;
            for _ in 0..rng.below(20) {
                stream.write_all(&[0]).await?;
                sleep(Duration::from_millis(rng.below(200))).await;
            }
        }
        // A Fetch, version 4, that waits half a minute for records.
        2..=3 => {
            let name = b"churn-1-0";
            let size = u8::try_from(10 + 17 + 4 + 2 + name.len() + 4 + 16).unwrap();
            let head = [0, 0, 0, size, 0, 1, 0, 4, 0, 0, 0, 7, 0xff, 0xff];
            let body = [0xff, 0xff, 0xff, 0xff, 0, 0, 0x75, 0x30, 0, 0x10, 0, 0, 0, 0x10, 0, 0, 0];
            let (topics, partition) = (
                [0, 0, 0, 1, 0, 9],
                [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0],
            );
            stream.write_all(&[&head[..], &body, &topics, name, &partition].concat()).await?;
            sleep(Duration::from_millis(rng.below(500))).await;
        }
        // Questions, more than fit, whose answers nobody reads.
        4 => {
            for _ in 0..rng.between(100, 400) {
                if timeout(Duration::from_millis(100), stream.write_all(&metadata)).await.is_err() {
                    break;
                }
            }
        }
        _ => {
            let request = &metadata
                [..if rng.percent(50) { metadata.len() } else { rng.index(metadata.len()) }];
            for _ in 0..rng.between(1, 40) {
                stream.write_all(request).await?;
            }
            if rng.percent(30) {
                let _ =
                    timeout(Duration::from_millis(rng.below(200)), stream.read(&mut [0; 64])).await;
            }
        }
    }
    sleep(Duration::from_millis(rng.below(400))).await;
    Ok(())
}

struct Outcome {
    trace: Trace,
    churned: Churned,
    faults: u64,
}

fn run(seed: u64, keep_lines: bool) -> Outcome {
    show_log();
    let mut cluster = Cluster::with(seed, NetworkOptions::default(), keep_lines);
    let stop = Arc::new(AtomicBool::new(false));
    cluster.host(BROKER, broker(CONFIG));
    let broken = Broken::new(cluster.disk(BROKER));
    let churned: Rc<RefCell<Vec<Churned>>> = Rc::default();
    let (noted, stopped, known) = (Rc::clone(&churned), Arc::clone(&stop), broken.clone());
    cluster.client(CLIENTS, move |env| async move {
        let load = |topic: String| workload::Load {
            env: env.clone(),
            bootstrap: vec![format!("{BROKER}:9092")],
            topic,
            partitions: 1,
            history: History::default(),
            stop: Arc::clone(&stopped),
        };
        let churner = |number: u64| {
            workload::churner(load(format!("churn-{number}")), known.clone(), number, PATIENCE)
        };
        let committer = async {
            let load = load("commits".to_owned());
            load.create_topic(Default::default()).await?;
            workload::committer(load, known.clone()).await
        };
        // The first that fails ends the run, so that its log ends where it failed.
        let all = tokio::try_join!(churner(1), churner(2), churner(3), committer)?;
        let commits = Churned { commits: all.3, ..Churned::default() };
        noted.borrow_mut().extend([all.0, all.1, all.2, commits]);
        Ok(())
    });
    let stopped = Arc::clone(&stop);
    cluster.client(RUDE, move |env| rude(env, stopped));

    let mut rng = cluster.schedule_rng();
    cluster.run_for(Duration::from_secs(2));
    let mut faults = 0;
    for _ in 0..8 {
        cluster.run_for(Duration::from_millis(rng.between(100, 2500)));
        faults += 1;
        break_something(&mut cluster, &mut rng, &broken);
    }
    cluster.run_for(Duration::from_secs(3));
    ended_by_fault_only(&mut cluster);
    stop.store(true, Ordering::Relaxed);
    assert!(cluster.run_clients(PATIENCE * 3), "clients do not end after everything was healed");
    ended_by_fault_only(&mut cluster);
    assert!(cluster.stop(BROKER, STOP), "the broker does not stop");
    assert_eq!(cluster.exit(BROKER), Some(Ok(())), "the broker does not stop in order");
    let churned = churned.borrow().iter().fold(Churned::default(), |sum, one| Churned {
        created: sum.created + one.created,
        deleted: sum.deleted + one.deleted,
        acknowledged: sum.acknowledged + one.acknowledged,
        verified: sum.verified + one.verified,
        commits: sum.commits + one.commits,
        by_time: sum.by_time + one.by_time,
    });
    println!("seed {seed}, {:?} of virtual time: {churned:?}", cluster.elapsed());
    Outcome { trace: cluster.trace(), churned, faults }
}

/// One fault, sometimes a kill on top of it, and its end.
fn break_something(cluster: &mut Cluster, rng: &mut Rng, broken: &Broken) {
    let disk = cluster.disk(BROKER);
    let (mut fences, mut aside) = (false, None);
    match rng.below(13) {
        0 => cluster.power_cut(BROKER),
        1..=2 => disk.cut_power_after(rng.below(80)),
        3 => cluster.kill(BROKER),
        4 => assert!(cluster.stop(BROKER, STOP), "the broker does not stop"),
        5 => cluster.cut(BROKER, CLIENTS),
        6 => disk.set_slow(Duration::from_millis(rng.between(20, 300))),
        7 => disk.set_descriptors_left(Some(rng.below(4))),
        8 => {
            let (total, free) = disk.space(Path::new("/")).unwrap();
            disk.set_capacity(Some(total - free + rng.below(300_000)));
        }
        9 => {
            // The offsets of groups expire, and records become old.
            let by_ms = i64::try_from(rng.between(0, 180_000)).unwrap() - 20_000;
            broken.note_jump(by_ms);
            cluster.jump_clock(BROKER, by_ms);
            if rng.percent(50) {
                disk.set_slow(Duration::from_millis(rng.between(20, 100)));
            }
        }
        10 => {
            fences = true;
            let fault = [Fault::FailSync, Fault::FailSync, Fault::FailWrite, Fault::FailSyncDir]
                [rng.index(4)];
            disk.inject(fault, DIRS[1], rng.below(10), 1);
        }
        11 => {
            if rng.percent(50) {
                cluster.kill(BROKER);
            }
            rot(&disk, rng, broken);
        }
        _ => {
            if rng.percent(50) {
                cluster.kill(BROKER);
            } else {
                assert!(cluster.stop(BROKER, STOP), "the broker does not stop");
            }
            aside = take_away(&disk, rng, broken);
            cluster.restart(BROKER);
        }
    }
    cluster.run_for(Duration::from_millis(rng.between(10, 2500)));
    if rng.percent(20) {
        // While something else is broken.
        cluster.kill(BROKER);
        if rng.percent(50) {
            cluster.restart(BROKER);
            cluster.run_for(Duration::from_millis(rng.between(10, 1500)));
        }
    }
    ended_by_fault_only(cluster);
    cluster.mend(BROKER, CLIENTS);
    disk.heal();
    if let Some(aside) = aside {
        give_back(&disk, rng, broken, &aside);
    }
    if fences && cluster.is_running(BROKER) {
        // A log directory that has failed comes back with the process.
        if rng.percent(50) {
            assert!(
                cluster.stop(BROKER, STOP),
                "the broker does not stop with a failed log directory"
            );
        } else {
            cluster.kill(BROKER);
        }
    }
    if !cluster.is_running(BROKER) {
        cluster.restart(BROKER);
    }
}

/// A partition of a churner's topic, and its directory.
struct Place {
    topic: String,
    partition: i32,
    path: PathBuf,
}

fn any_partition(disk: &SimDisk, rng: &mut Rng) -> Option<Place> {
    let mut places = Vec::new();
    for dir in DIRS.map(Path::new) {
        for entry in disk.list(dir).unwrap_or_default() {
            // Not what is deleted, or set aside: its name goes on.
            if let Some((topic, partition)) = entry.name.rsplit_once('-')
                && topic.starts_with("churn-")
                && let Ok(partition) = partition.parse()
            {
                places.push(Place {
                    topic: topic.to_owned(),
                    partition,
                    path: dir.join(&entry.name),
                });
            }
        }
    }
    let at = rng.index(places.len());
    places.into_iter().nth(at)
}

/// A bit of a segment changes.
fn rot(disk: &SimDisk, rng: &mut Rng, broken: &Broken) {
    let Some(place) = any_partition(disk, rng) else { return };
    let mut files = disk.list(&place.path).unwrap_or_default();
    files.retain(|entry| entry.name.ends_with(".log"));
    let Some(file) = files.get(rng.index(files.len())) else { return };
    let path = place.path.join(&file.name);
    let len = disk.open(&path, OpenMode::Read).and_then(|file| file.len()).unwrap();
    broken.note_hurt(&place.topic, place.partition, Hurt::Damaged);
    // A segment begins with records; what follows may be the reserve.
    let offset = if rng.percent(70) { rng.below(len.min(1000)) } else { rng.below(len) };
    disk.flip_bit(&path, offset, u8::try_from(rng.below(8)).unwrap());
}

/// Takes the directory of a partition away, while no broker uses it.
fn take_away(disk: &SimDisk, rng: &mut Rng, broken: &Broken) -> Option<(Place, PathBuf)> {
    let place = any_partition(disk, rng)?;
    broken.note_hurt(&place.topic, place.partition, Hurt::Missing);
    disk.create_dir_all(Path::new(ASIDE)).unwrap();
    let aside = Path::new(ASIDE).join(rng.next_u64().to_string());
    disk.rename(&place.path, &aside).unwrap();
    for dir in [Path::new("/"), Path::new(ASIDE)].into_iter().chain(place.path.parent()) {
        disk.sync_dir(dir).unwrap();
    }
    Some((place, aside))
}

/// The directory comes back, or its loss is accepted, or nothing is done, and the topic goes sooner
/// or later.
fn give_back(disk: &SimDisk, rng: &mut Rng, broken: &Broken, (place, aside): &(Place, PathBuf)) {
    let kind = rng.below(3);
    if kind == 2
        || disk.exists(&place.path).unwrap()
        || !broken.note_back(&place.topic, place.partition)
    {
        return;
    }
    if kind == 0 {
        disk.rename(aside, &place.path).unwrap();
    } else {
        broken.note_dropped(&place.topic, place.partition);
        disk.create_dir_all(&place.path).unwrap();
        disk.open(&place.path.join("accept-data-loss"), OpenMode::Create).unwrap();
        disk.sync_dir(&place.path).unwrap();
    }
    for dir in [Path::new(ASIDE)].into_iter().chain(place.path.parent()) {
        disk.sync_dir(dir).unwrap();
    }
}

/// A process that was not taken down from outside has to be there. What it says while the power
/// fails (EIO) is allowed.
fn ended_by_fault_only(cluster: &mut Cluster) {
    if !cluster.is_running(BROKER)
        && let Some(Err(reason)) = cluster.exit(BROKER)
        && !reason.contains("os error 5)")
    {
        panic!("the broker ended by itself: {reason}");
    }
}

fn judge(seed: u64) {
    let Outcome { churned, faults, .. } = run(seed, false);
    assert!(faults >= 8);
    assert!(
        churned.created >= 5 && churned.deleted >= 3,
        "too few topics to conclude anything: {churned:?}"
    );
    assert!(
        churned.acknowledged >= 100 && churned.verified >= 50,
        "too few records to conclude anything: {churned:?}"
    );
}

const MIX: &str = "topics_come_and_go_under_faults_and_nothing_acknowledged_is_lost";

#[test]
fn topics_come_and_go_under_faults_and_nothing_acknowledged_is_lost() {
    seeds::for_each(4, "topics", MIX, judge);
}

/// Each of them found a fault: `sim/README.md` says which.
#[test]
fn seeds_that_have_failed_pass() {
    seeds::for_these([1100, 2071, 2180, 2452, 2931, 17506], "topics", MIX, judge);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (first, second) = (run(5, true).trace, run(5, true).trace);
    if let Some((line, ours, theirs)) = first.first_difference(&second) {
        panic!("runs part at event {line}:\n  {ours}\n  {theirs}");
    }
}
