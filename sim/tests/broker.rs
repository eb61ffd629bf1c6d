//! The broker's own code under simulated faults: nothing acknowledged is lost, nothing is doubled,
//! and the same seed gives the same run.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use letterbox_env::Disk as _;
use letterbox_sim::check::{Checker, Demands, Report, segment};
use letterbox_sim::cluster::{Cluster, NetworkOptions};
use letterbox_sim::disk::{DiskStats, Fault};
use letterbox_sim::history::{Action, Event, History, Phase};
use letterbox_sim::rng::Rng;
use letterbox_sim::trace::Trace;
use letterbox_sim::{seeds, workload};

use common::{BROKER, DATA, broker, show_log};

const CLIENTS: &str = "clients";
const TOPIC: &str = "orders";
const PARTITIONS: i32 = 3;
const CONFIG: &str = "group.initial.rebalance.delay.ms=0\n";

/// How long the broker may take to serve again, and the clients to end, once nothing is broken any
/// more.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is broken in a run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// The power fails, at random moments and in the middle of random disk operations.
    PowerCuts,
    /// Power cuts, kills, clean stops, network cuts, slow and full disks, clock jumps and failed
    /// syncs.
    Everything,
    /// A failed sync, a kill, a restart on what the page cache shows, and a power cut after that.
    FailedSyncs,
    /// A full disk, without a reserve, and a full table of descriptors, with kills in between, also
    /// on a disk that stays full. The broker must not end by itself, and goes on without a restart.
    Shortage,
    /// Power cuts on a device that ignores flushes: the run must be found guilty.
    LyingDisk,
}

struct Outcome {
    trace: Trace,
    report: Report,
    stats: DiskStats,
}

/// One run: load, trouble, healing, a scan of everything, the verdict.
fn run(seed: u64, trouble: Trouble, keep_lines: bool) -> Outcome {
    show_log();
    let mut cluster = Cluster::with(seed, NetworkOptions::default(), keep_lines);
    let (history, stop) = (History::default(), Arc::new(AtomicBool::new(false)));
    cluster.host(
        BROKER,
        broker(&format!(
            "{CONFIG}{}",
            if trouble == Trouble::Shortage { "log.dir.reserve.bytes=0" } else { "" }
        )),
    );
    if trouble == Trouble::LyingDisk {
        for partition in 0..PARTITIONS {
            let segment = format!("{TOPIC}-{partition}/00000000000000000000.log");
            cluster.disk(BROKER).inject(Fault::IgnoreSync, &segment, 0, u64::MAX);
        }
    }
    let load = {
        let (history, stop) = (history.clone(), Arc::clone(&stop));
        move |env| workload::Load {
            env,
            bootstrap: vec![format!("{BROKER}:9092")],
            topic: TOPIC.into(),
            partitions: PARTITIONS,
            history,
            stop,
        }
    };
    let with_clients = load.clone();
    cluster.client(CLIENTS, move |env| async move {
        let load = with_clients(env);
        // Segments roll all the time.
        load.create_topic(BTreeMap::from([("segment.ms".to_owned(), "400".to_owned())])).await?;
        let group = || "readers".to_owned();
        tokio::join!(
            workload::producer(load.clone(), 1),
            workload::producer(load.clone(), 2),
            workload::reader(load.clone(), 1),
            workload::member(load.clone(), group(), 1),
            workload::member(load.clone(), group(), 2),
        );
        Ok(())
    });

    let mut rng = cluster.schedule_rng();
    cluster.run_for(Duration::from_secs(3));
    for _ in 0..6 {
        cluster.run_for(Duration::from_millis(rng.between(300, 2000)));
        if trouble == Trouble::Shortage {
            run_short(&mut cluster, &mut rng, &history);
            continue;
        }
        if trouble == Trouble::FailedSyncs {
            cluster.disk(BROKER).inject(Fault::FailSync, TOPIC, rng.below(5), 1);
            cluster.run_for(Duration::from_millis(rng.between(100, 500)));
            cluster.kill(BROKER);
            note_fault(&history, &cluster, "failed sync and kill");
            cluster.restart(BROKER);
            cluster.run_for(Duration::from_millis(rng.between(500, 2000)));
        }
        let kinds = if trouble == Trouble::Everything { 9 } else { 2 };
        let what = match rng.below(kinds) {
            0 => {
                cluster.power_cut(BROKER);
                "power cut"
            }
            1 => {
                cluster.disk(BROKER).cut_power_after(rng.below(60));
                "power cut at an operation"
            }
            2 => {
                cluster.kill(BROKER);
                "kill"
            }
            3 => {
                cluster.stop(BROKER, Duration::from_secs(20));
                "stop"
            }
            4 => {
                cluster.cut(BROKER, CLIENTS);
                "network cut"
            }
            5 => {
                cluster.disk(BROKER).set_slow(Duration::from_millis(rng.between(20, 400)));
                "slow disk"
            }
            6 => {
                cluster.jump_clock(
                    BROKER,
                    i64::try_from(rng.below(7_200_000)).unwrap_or(0) - 3_600_000,
                );
                "clock jump"
            }
            7 => {
                let disk = cluster.disk(BROKER);
                let (total, free) = disk.space(std::path::Path::new("/")).unwrap();
                disk.set_capacity(Some(total - free + rng.below(200_000)));
                "full disk"
            }
            _ => {
                cluster.disk(BROKER).inject(Fault::FailSync, DATA, rng.below(10), 1);
                "failed sync"
            }
        };
        note_fault(&history, &cluster, what);
        cluster.run_for(Duration::from_millis(rng.between(10, 3000)));
        cluster.mend(BROKER, CLIENTS);
        cluster.disk(BROKER).set_capacity(None);
        if !cluster.is_running(BROKER) {
            cluster.restart(BROKER);
            if rng.percent(25) {
                // Once more, in the middle of its recovery.
                cluster.disk(BROKER).cut_power_after(rng.below(40));
                note_fault(&history, &cluster, "power cut at recovery");
                cluster.run_for(Duration::from_millis(rng.between(1, 300)));
                if !cluster.is_running(BROKER) {
                    cluster.restart(BROKER);
                }
            }
        }
    }

    // Everything is healed: the cluster has to serve again.
    if trouble != Trouble::LyingDisk {
        cluster.disk(BROKER).heal();
    }
    if cluster.is_running(BROKER) && trouble == Trouble::Everything {
        // A log directory that was fenced comes back with the process.
        cluster.stop(BROKER, Duration::from_secs(20));
        cluster.kill(BROKER);
    }
    if !cluster.is_running(BROKER) {
        cluster.restart(BROKER);
    }
    cluster.run_for(Duration::from_secs(5));
    stop.store(true, Ordering::Relaxed);
    assert!(
        cluster.run_clients(PATIENCE),
        "clients do not end {PATIENCE:?} after everything was healed; last seen: {:#?}",
        last_seen(&history)
    );
    cluster.client("scanner", move |env| async move {
        let load = workload::Load { stop: Arc::default(), ..load(env) };
        match workload::scan(&load, BROKER, PATIENCE).await {
            // The broker may have noticed what is missing, and not serve it.
            Err(reason) if trouble == Trouble::LyingDisk => println!("{reason}"),
            result => result?,
        }
        Ok(())
    });
    assert!(cluster.run_clients(PATIENCE * 2), "the scan does not end");
    assert!(cluster.stop(BROKER, Duration::from_secs(20)), "the broker does not stop");
    if trouble != Trouble::LyingDisk {
        check_segments(&cluster);
    }
    let report = Checker::check(
        history.events(),
        Demands { sends_ok_min: 100, reads_min: 200, faults_min: 6 },
    );
    let stats = cluster.disk_stats(BROKER);
    println!("seed {seed}, {:?} of virtual time\n{report}{stats:?}", cluster.elapsed());
    Outcome { trace: cluster.trace(), report, stats }
}

/// Takes space or descriptors away for a while, with a kill and a restart in the middle of it at
/// times.
fn run_short(cluster: &mut Cluster, rng: &mut Rng, history: &History) {
    let disk = cluster.disk(BROKER);
    let what = if rng.percent(60) {
        let (total, free) = disk.space(std::path::Path::new("/")).unwrap();
        disk.set_capacity(Some(total - free + rng.below(100_000)));
        "full disk"
    } else {
        disk.set_descriptors_left(Some(rng.below(4)));
        "no descriptors"
    };
    note_fault(history, cluster, what);
    cluster.run_for(Duration::from_millis(rng.between(200, 4000)));
    assert!(cluster.is_running(BROKER), "{what} ended the broker");
    if rng.percent(50) {
        cluster.kill(BROKER);
        note_fault(history, cluster, "kill");
        cluster.restart(BROKER);
        cluster.run_for(Duration::from_millis(rng.between(500, 3000)));
        assert!(cluster.is_running(BROKER), "{what} ended the broker at its start");
    }
    disk.set_capacity(None);
    disk.set_descriptors_left(None);
}

/// The last event of each process: where it hangs.
fn last_seen(history: &History) -> BTreeMap<String, String> {
    let events = history.events().into_iter();
    let shown = events.map(|event| {
        let mut action = format!("{:?}", event.action);
        action.truncate(80);
        (
            event.process,
            format!(
                "op {} {:?} at {} ms: {action}",
                event.op,
                event.phase,
                event.time_ns / 1_000_000
            ),
        )
    });
    shown.collect()
}

fn note_fault(history: &History, cluster: &Cluster, what: &str) {
    let time_ns = u64::try_from(cluster.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let op = history.events().len() as u64;
    let action = Action::Fault { what: what.to_owned(), target: BROKER.to_owned() };
    history.push(Event {
        process: "nemesis".to_owned(),
        op,
        phase: Phase::Ok,
        time_ns,
        action,
        error: None,
    });
}

/// Walks every segment of every partition on the stopped broker's disk.
fn check_segments(cluster: &Cluster) {
    let disk = cluster.disk(BROKER);
    let data = std::path::Path::new(DATA);
    let mut records = 0;
    for dir in disk
        .list(data)
        .unwrap()
        .into_iter()
        .filter(|entry| entry.is_dir && entry.name.starts_with(TOPIC))
    {
        let mut end = None;
        for file in disk
            .list(&data.join(&dir.name))
            .unwrap()
            .into_iter()
            .filter(|entry| entry.name.ends_with(".log"))
        {
            let base: i64 = file.name.trim_end_matches(".log").parse().unwrap();
            // A power cut may take records that were in no sync from the end of a segment, and not
            // the segment after it.
            assert!(
                end.is_none_or(|end| end <= base),
                "{}/{}: begins before {end:?}",
                dir.name,
                file.name
            );
            let bytes = disk.read(&data.join(&dir.name).join(&file.name)).unwrap();
            let walked = segment::walk(&bytes, base)
                .unwrap_or_else(|fault| panic!("{}/{}: {fault:?}", dir.name, file.name));
            records += walked.end_offset - base;
            end = Some(walked.end_offset);
        }
    }
    assert!(records > 100, "only {records} records on the disk");
}

#[test]
fn nothing_acknowledged_is_lost_or_doubled_by_power_cuts() {
    seeds::for_each(3, "broker", "nothing_acknowledged_is_lost_or_doubled_by_power_cuts", |seed| {
        let outcome = run(seed, Trouble::PowerCuts, false);
        assert!(outcome.report.is_clean(), "{}", outcome.report);
        assert!(outcome.stats.power_cuts > 0);
    });
}

#[test]
fn nothing_acknowledged_is_lost_or_doubled_by_any_mix_of_faults() {
    seeds::for_each(3, "broker", MIX, judge);
}

/// A power cut took the end of a segment that was rolled, and not the name of the next: nothing of
/// it was acknowledged, and the log goes on behind the gap.
#[test]
fn seeds_that_have_failed_pass() {
    seeds::for_these([245, 936], "broker", MIX, judge);
}

const MIX: &str = "nothing_acknowledged_is_lost_or_doubled_by_any_mix_of_faults";

fn judge(seed: u64) {
    let outcome = run(seed, Trouble::Everything, false);
    assert!(outcome.report.is_clean(), "{}", outcome.report);
}

/// A power cut after a restart took records away that were acknowledged behind bytes of a failed
/// sync, which only the page cache had.
#[test]
fn a_restart_does_not_believe_what_a_failed_sync_left_in_the_page_cache() {
    seeds::for_each(
        2,
        "broker",
        "a_restart_does_not_believe_what_a_failed_sync_left_in_the_page_cache",
        |seed| {
            let outcome = run(seed, Trouble::FailedSyncs, false);
            assert!(outcome.report.is_clean(), "{}", outcome.report);
            assert!(outcome.stats.faults.contains_key("failed sync"));
        },
    );
}

/// The operations of a first start, the making of a topic and its first records, and of each
/// recovery after that: the power fails in front of one of them, chosen by the seed. `SEEDS=200` is
/// all of them.
#[test]
fn a_first_start_survives_a_power_cut_at_any_operation() {
    seeds::for_each(10, "broker", "a_first_start_survives_a_power_cut_at_any_operation", |seed| {
        // 200 and 61 have no common factor: every operation has its turn.
        let operation = seed * 61 % 200;
        let mut cluster = Cluster::new(seed);
        let (history, stop) = (History::default(), Arc::new(AtomicBool::new(false)));
        cluster.host(BROKER, broker(CONFIG));
        cluster.disk(BROKER).cut_power_after(operation);
        let load = {
            let (history, stop) = (history.clone(), Arc::clone(&stop));
            move |env| workload::Load {
                env,
                bootstrap: vec![format!("{BROKER}:9092")],
                topic: TOPIC.into(),
                partitions: 1,
                history,
                stop,
            }
        };
        let with_clients = load.clone();
        cluster.client(CLIENTS, move |env| async move {
            let load = with_clients(env);
            load.create_topic(Default::default()).await?;
            tokio::join!(
                workload::producer(load.clone(), 1),
                workload::member(load.clone(), "readers".to_owned(), 1)
            );
            Ok(())
        });
        for restarts in 0..2 {
            let failed =
                cluster.run_until(Duration::from_secs(4), |cluster| cluster.faults() > restarts);
            assert!(failed || restarts > 0, "operation {operation} is beyond the end");
            if failed {
                note_fault(&history, &cluster, "power cut at an operation");
                cluster.restart(BROKER);
                // The recovery has fewer operations.
                cluster.disk(BROKER).cut_power_after(operation / 4);
            }
        }
        cluster.disk(BROKER).heal();
        if !cluster.is_running(BROKER) {
            cluster.restart(BROKER);
        }
        cluster.run_for(Duration::from_secs(3));
        stop.store(true, Ordering::Relaxed);
        assert!(cluster.run_clients(PATIENCE), "clients do not end");
        cluster.client("scanner", move |env| async move {
            let load = workload::Load { stop: Arc::default(), ..load(env) };
            workload::scan(&load, BROKER, PATIENCE).await
        });
        assert!(cluster.run_clients(PATIENCE * 2), "the scan does not end");
        let report = Checker::check(
            history.events(),
            Demands { sends_ok_min: 10, reads_min: 10, faults_min: 1 },
        );
        println!("seed {seed}, operation {operation}\n{report}");
        assert!(report.is_clean(), "{report}");
    });
}

#[test]
fn a_lack_of_space_or_descriptors_ends_no_broker_and_loses_nothing() {
    seeds::for_each(
        3,
        "broker",
        "a_lack_of_space_or_descriptors_ends_no_broker_and_loses_nothing",
        |seed| {
            let outcome = run(seed, Trouble::Shortage, false);
            assert!(outcome.report.is_clean(), "{}", outcome.report);
            let met = |fault| outcome.stats.faults.contains_key(fault);
            assert!(met("disk full") || met("no descriptor"), "{:?}", outcome.stats.faults);
        },
    );
}

/// The tests above must be able to fail: on a device that ignores flushes a broker loses what it
/// acknowledged, unless the power cuts of a seed took nothing of it.
#[test]
fn a_disk_that_ignores_syncs_is_found_guilty() {
    let mut found = BTreeSet::new();
    seeds::for_each(3, "broker", "a_disk_that_ignores_syncs_is_found_guilty", |seed| {
        let Outcome { report, stats, .. } = run(seed, Trouble::LyingDisk, false);
        assert!(!report.is_clean() || stats.promises_broken == 0, "{report}");
        found.extend(report.names());
    });
    assert!(found.contains("lost-write-after-heal") || found.contains("lost-write"), "{found:?}");
}

/// Twice in one process, and once in a fresh one: some leaks show only there, some only here.
#[test]
fn the_same_seed_gives_the_same_run() {
    const NAME: &str = "the_same_seed_gives_the_same_run";
    let fresh = std::env::var_os("PRINT_TRACE_HASH").is_some();
    seeds::for_each(1, "broker", NAME, |seed| {
        let first = run(seed, Trouble::Everything, true).trace;
        if fresh {
            println!("trace hash {:?}", first.hash());
            return;
        }
        let second = run(seed, Trouble::Everything, true).trace;
        if let Some((line, ours, theirs)) = first.first_difference(&second) {
            panic!("runs part at event {line}:\n  {ours}\n  {theirs}");
        }
        assert_eq!(first.hash(), second.hash());
        #[allow(
            clippy::disallowed_methods,
            reason = "the test is run once more as another process"
        )]
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again
            .args(["--exact", NAME, "--nocapture"])
            .env("PRINT_TRACE_HASH", "1")
            .env("SEED", seed.to_string());
        let text = String::from_utf8(again.output().unwrap().stdout).unwrap();
        assert!(
            text.contains(&format!("trace hash {:?}", first.hash())),
            "{:?} is not what a fresh process has: {text}",
            first.hash()
        );
    });
}
