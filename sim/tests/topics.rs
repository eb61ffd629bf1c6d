//! Topics that are made, filled, grown, changed and deleted while the broker is killed, loses its power, its disk is
//! full or slow, it runs out of descriptors, and clients vanish: three ordinary requests and one fault at a time.
//!
//! Beside the promises that the churners look at (`workload::churner`), no fault of this file ends the broker's process.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use letterbox_broker::config::Config;
use letterbox_broker::server::Broker;
use letterbox_env::{Disk as _, Env};
use letterbox_sim::cluster::{Cluster, Exit, NetworkOptions, Process};
use letterbox_sim::history::History;
use letterbox_sim::rng::Rng;
use letterbox_sim::workload::{self, Churned};
use letterbox_sim::{seeds, trace::Trace};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

const BROKER: &str = "broker-0";
const CLIENTS: &str = "clients";
const RUDE: &str = "rude";
const DATA: &str = "/var/lib/letterbox";
/// How long the broker may take to serve again once nothing is broken any more.
const PATIENCE: Duration = Duration::from_secs(60);

async fn broker(process: Process) -> Exit {
    let text = format!(
        "process.roles=broker,controller\nnode.id=0\ncontroller.quorum.voters=0@{BROKER}:9093\ncontroller.listener.names=CONTROLLER\n\
         listeners=PLAINTEXT://:9092,CONTROLLER://:9093\nadvertised.listeners=PLAINTEXT://{BROKER}:9092\nlog.dirs={DATA}\n\
         admin.listener=none\noffsets.topic.num.partitions=2\noffsets.topic.replication.factor=1\nauto.create.topics.enable=false\n\
         log.retention.check.interval.ms=700\nlog.flush.offset.checkpoint.interval.ms=900\n"
    );
    let config = Config::parse(&text).map_err(|error| error.to_string())?;
    let broker = Broker::start(process.env.clone(), config).await.map_err(|error| error.to_string())?;
    let fatal = tokio::select! {
        biased;
        () = process.stopped() => None,
        reason = broker.fatal() => Some(reason),
    };
    match fatal {
        Some(reason) => Err(reason),
        None => broker.shutdown().await.map_err(|error| error.to_string()),
    }
}

/// Clients that break off: half a request, a request whose answer is not read, a connection that says nothing.
async fn rude(env: Env, stop: Arc<AtomicBool>) -> Exit {
    let mut rng = Rng::new(env.random_u64());
    while !stop.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(rng.between(50, 600))).await;
        let Ok(Ok(mut stream)) = tokio::time::timeout(Duration::from_millis(300), env.net.connect(BROKER, 9092)).await else { continue };
        // Metadata of all topics, version 0; ApiVersions, version 0.
        let metadata = [0, 0, 0, 14, 0, 3, 0, 0, 0, 0, 0, 7, 0xff, 0xff, 0, 0, 0, 0];
        let request = &metadata[..if rng.percent(50) { metadata.len() } else { rng.index(metadata.len()) }];
        for _ in 0..rng.between(1, 40) {
            if stream.write_all(request).await.is_err() {
                break;
            }
        }
        if rng.percent(30) {
            let _ = tokio::time::timeout(Duration::from_millis(rng.below(200)), stream.read(&mut [0; 64])).await;
        }
        sleep(Duration::from_millis(rng.below(400))).await;
    }
    Ok(())
}

struct Outcome {
    trace: Trace,
    churned: Churned,
    faults: u64,
}

fn run(seed: u64, keep_lines: bool) -> Outcome {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    // Another test of this program may have set it up already.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).without_time().with_test_writer().try_init();
    let mut cluster = Cluster::with(seed, NetworkOptions::default(), keep_lines);
    let stop = Arc::new(AtomicBool::new(false));
    cluster.host(BROKER, broker);
    let churned: Rc<RefCell<Vec<Churned>>> = Rc::default();
    let (noted, stopped) = (Rc::clone(&churned), Arc::clone(&stop));
    cluster.client(CLIENTS, move |env| async move {
        let load = |number| workload::Load {
            env: env.clone(),
            bootstrap: format!("{BROKER}:9092"),
            topic: format!("churn-{number}"),
            partitions: 0,
            history: History::default(),
            stop: Arc::clone(&stopped),
        };
        let all = tokio::join!(
            workload::churner(load(1), 1, PATIENCE),
            workload::churner(load(2), 2, PATIENCE),
            workload::churner(load(3), 3, PATIENCE)
        );
        for one in [all.0, all.1, all.2] {
            noted.borrow_mut().push(one?);
        }
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
        let disk = cluster.disk(BROKER);
        match rng.below(8) {
            0 => cluster.power_cut(BROKER),
            1 => disk.cut_power_after(rng.below(80)),
            2 => cluster.kill(BROKER),
            3 => assert!(cluster.stop(BROKER, Duration::from_secs(20)), "the broker does not stop"),
            4 => cluster.cut(BROKER, CLIENTS),
            5 => disk.set_slow(Duration::from_millis(rng.between(20, 300))),
            6 => disk.set_descriptors_left(Some(rng.below(4))),
            _ => {
                let (total, free) = disk.space(Path::new("/")).unwrap();
                disk.set_capacity(Some(total - free + rng.below(300_000)));
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
        ended_by_fault_only(&mut cluster);
        cluster.mend(BROKER, CLIENTS);
        disk.heal();
        if !cluster.is_running(BROKER) {
            cluster.restart(BROKER);
        }
    }
    cluster.run_for(Duration::from_secs(3));
    ended_by_fault_only(&mut cluster);
    stop.store(true, Ordering::Relaxed);
    assert!(cluster.run_clients(PATIENCE * 3), "clients do not end after everything was healed");
    ended_by_fault_only(&mut cluster);
    assert!(cluster.stop(BROKER, Duration::from_secs(20)), "the broker does not stop");
    assert_eq!(cluster.exit(BROKER), Some(Ok(())), "the broker does not stop in order");
    let churned = churned.borrow().iter().fold(Churned::default(), |sum, one| Churned {
        created: sum.created + one.created,
        deleted: sum.deleted + one.deleted,
        acknowledged: sum.acknowledged + one.acknowledged,
        verified: sum.verified + one.verified,
        commits: sum.commits + one.commits,
    });
    println!("seed {seed}, {:?} of virtual time: {churned:?}", cluster.elapsed());
    Outcome { trace: cluster.trace(), churned, faults }
}

/// A process that was not taken down from outside has to be there. What it says while the power fails (EIO) is allowed.
fn ended_by_fault_only(cluster: &mut Cluster) {
    if !cluster.is_running(BROKER)
        && let Some(Err(reason)) = cluster.exit(BROKER)
        && !reason.contains("os error 5)")
    {
        panic!("the broker ended by itself: {reason}");
    }
}

#[test]
fn topics_come_and_go_under_faults_and_nothing_acknowledged_is_lost() {
    seeds::for_each(4, "topics", "topics_come_and_go_under_faults_and_nothing_acknowledged_is_lost", |seed| {
        let Outcome { churned, faults, .. } = run(seed, false);
        assert!(faults >= 8);
        assert!(churned.created >= 5 && churned.deleted >= 3, "too few topics to conclude anything: {churned:?}");
        assert!(churned.acknowledged >= 100 && churned.verified >= 50, "too few records to conclude anything: {churned:?}");
    });
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (first, second) = (run(5, true).trace, run(5, true).trace);
    if let Some((line, ours, theirs)) = first.first_difference(&second) {
        panic!("runs part at event {line}:\n  {ours}\n  {theirs}");
    }
}
