//! The simulated cluster itself: the same seed gives the same run, and machines go down as real
//! ones do.

use std::cell::RefCell;
use std::io::IoSlice;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use letterbox_env::{BoxStream, Disk as _, Env, OpenMode};
use letterbox_sim::cluster::{Cluster, Exit, NetworkOptions, Process};
use letterbox_sim::disk::Fault;
use letterbox_sim::trace::Trace;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

const PORT: u16 = 7000;
const LOG: &str = "/data/log";

/// A toy store: each request is one byte, appended and synced before it is answered with how many
/// there are. Each connection and each housekeeper is a task of its own, so that there are many to
/// be dropped at a crash.
async fn store(process: Process, sync_first: bool) -> Exit {
    let env = process.env.clone();
    recover(&env).await.map_err(|error| error.to_string())?;
    for n in 0..7 {
        tokio::spawn(async move {
            loop {
                sleep(Duration::from_millis(50 + n)).await;
            }
        });
    }
    let listener = env.net.bind("", PORT).await.map_err(|error| error.to_string())?;
    loop {
        tokio::select! {
            biased;
            () = process.stopped() => return Ok(()),
            accepted = listener.accept() => {
                let (mut stream, _) = accepted.map_err(|error| error.to_string())?;
                let env = env.clone();
                tokio::spawn(async move {
                    while let Ok(byte) = stream.read_u8().await {
                        let Ok(count) = append(&env, byte, sync_first).await else { return };
                        if stream.write_u64(count).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
    }
}

async fn recover(env: &Env) -> std::io::Result<()> {
    let disk = env.disk.clone();
    env.blocking(move || {
        disk.create_dir_all(Path::new("/data"))?;
        disk.sync_dir(Path::new("/"))?;
        disk.open(Path::new(LOG), OpenMode::Create)?.sync()?;
        disk.sync_dir(Path::new("/data"))
    })
    .await
}

async fn append(env: &Env, byte: u8, sync_first: bool) -> std::io::Result<u64> {
    let disk = env.disk.clone();
    let job = move || {
        let file = disk.open(Path::new(LOG), OpenMode::ReadWrite)?;
        let end = file.len()?;
        file.write_at(&[IoSlice::new(&[byte])], end)?;
        if sync_first {
            file.sync()?;
        }
        std::io::Result::Ok(end + 1)
    };
    env.blocking(job).await
}

/// Sends bytes, over a new connection after each trouble, and notes the largest acknowledged count.
async fn load(env: Env, host: &'static str, requests: u64, acknowledged: Rc<RefCell<u64>>) -> Exit {
    let mut stream = None;
    for n in 0..requests {
        let mut current = match stream.take() {
            Some(stream) => stream,
            None => match timeout(Duration::from_millis(100), env.net.connect(host, PORT)).await {
                Ok(Ok(stream)) => stream,
                _ => {
                    sleep(Duration::from_millis(20)).await;
                    continue;
                }
            },
        };
        let byte = 1 + u8::try_from(n % 250).unwrap();
        let call = async {
            current.write_u8(byte).await?;
            current.read_u64().await
        };
        if let Ok(Ok(count)) = timeout(Duration::from_millis(100), call).await {
            let mut acknowledged = acknowledged.borrow_mut();
            *acknowledged = count.max(*acknowledged);
            stream = Some(current);
        }
    }
    Ok(())
}

/// The store may not listen yet.
async fn connect(env: &Env) -> BoxStream {
    loop {
        if let Ok(Ok(stream)) =
            timeout(Duration::from_millis(100), env.net.connect("a", PORT)).await
        {
            return stream;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// Three stores, six clients, and every kind of trouble at seeded moments.
fn chaos(seed: u64, keep_lines: bool) -> Trace {
    let mut cluster = Cluster::with(seed, NetworkOptions::default(), keep_lines);
    let hosts = ["a", "b", "c"];
    for host in hosts {
        cluster.host(host, |process| store(process, true));
    }
    for (i, client) in ["c1", "c2", "c3", "c4", "c5", "c6"].into_iter().enumerate() {
        cluster.client(client, move |env| load(env, hosts[i % 3], 150, Rc::default()));
    }
    let mut rng = cluster.schedule_rng();
    for _ in 0..12 {
        cluster.run_for(Duration::from_millis(rng.between(20, 200)));
        let host = hosts[rng.index(3)];
        let other = hosts[(rng.index(2) + 1) % 3];
        match rng.below(6) {
            0 => cluster.power_cut(host),
            1 => cluster.kill(host),
            2 => {
                cluster.stop(host, Duration::from_secs(1));
            }
            3 if host != other => cluster.cut(host, other),
            4 => cluster.cut_one_way("c1", host),
            _ => cluster.disk(host).cut_power_after(rng.below(20)),
        }
        cluster.run_for(Duration::from_millis(rng.between(1, 50)));
        for host in hosts {
            cluster.mend("c1", host);
            if !cluster.is_running(host) {
                cluster.restart(host);
            }
        }
    }
    assert!(cluster.run_clients(Duration::from_secs(120)));
    cluster.trace()
}

#[test]
fn the_same_seed_gives_the_same_trace_twice_in_one_process() {
    for seed in 0..6 {
        let (first, second) = (chaos(seed, true), chaos(seed, true));
        if let Some((line, ours, theirs)) = first.first_difference(&second) {
            panic!("seed {seed}: runs part at event {line}:\n  {ours}\n  {theirs}");
        }
        assert_eq!(first.hash(), second.hash());
        assert!(
            first.hash().1 > 1000,
            "{} events are too few to conclude anything",
            first.hash().1
        );
    }
    assert_ne!(chaos(1, false).hash(), chaos(2, false).hash());
}

/// Runs this test program once more for one seed and compares what it prints.
#[test]
#[allow(clippy::disallowed_methods, reason = "the test is run once more as another process")]
fn the_same_seed_gives_the_same_trace_in_a_fresh_process() {
    let ours = chaos(3, false).hash();
    if std::env::var_os("PRINT_TRACE_HASH").is_some() {
        println!("trace hash {ours:?}");
        return;
    }
    let name = "the_same_seed_gives_the_same_trace_in_a_fresh_process";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("PRINT_TRACE_HASH", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(&format!("trace hash {ours:?}")), "expected {ours:?} in: {text}");
}

/// Loses acknowledged bytes when told to answer before the sync; says how many seeds showed it.
fn seeds_with_loss(sync_first: bool) -> usize {
    let lost = (0..30).filter(|seed| {
        let mut cluster = Cluster::new(*seed);
        cluster.host("a", move |process| store(process, sync_first));
        let acknowledged = Rc::new(RefCell::new(0));
        let noted = Rc::clone(&acknowledged);
        cluster.client("c", move |env| load(env, "a", 200, noted));
        let mut rng = cluster.schedule_rng();
        let mut lost = false;
        for _ in 0..4 {
            cluster.run_for(Duration::from_millis(rng.between(20, 300)));
            cluster.power_cut("a");
            let left = cluster
                .disk("a")
                .read(Path::new(LOG))
                .map_or(0, |bytes| bytes.iter().take_while(|byte| **byte != 0).count());
            lost |= (left as u64) < *acknowledged.borrow();
            // Start over from what is left: counts begin there.
            *acknowledged.borrow_mut() = 0;
            cluster.run_for(Duration::from_millis(rng.between(1, 50)));
            cluster.restart("a");
        }
        lost
    });
    lost.count()
}

#[test]
fn a_power_cut_takes_what_was_acknowledged_before_it_was_synced_and_nothing_else() {
    assert_eq!(seeds_with_loss(true), 0);
    let caught = seeds_with_loss(false);
    assert!(caught >= 20, "only {caught} of 30 seeds show the planted fault");
}

#[test]
fn a_kill_ends_connections_and_keeps_the_page_cache() {
    let mut cluster = Cluster::new(1);
    cluster.host("a", |process| store(process, false));
    let ended = Rc::new(RefCell::new(None));
    let noted = Rc::clone(&ended);
    cluster.client("c", move |env| async move {
        let mut stream = connect(&env).await;
        stream.write_all(&[7; 5]).await.map_err(|error| error.to_string())?;
        for _ in 0..5 {
            stream.read_u64().await.map_err(|error| error.to_string())?;
        }
        // Nothing is sent any more: only the end of the connection can wake this.
        let end = stream.read_u64().await;
        *noted.borrow_mut() = Some(end.map_err(|error| error.kind()));
        Ok(())
    });
    cluster.run_for(Duration::from_millis(100));
    assert!(ended.borrow().is_none());
    cluster.kill("a");
    assert!(!cluster.is_running("a"));
    assert!(cluster.run_clients(Duration::from_millis(50)), "the client did not hear of the end");
    assert!(matches!(*ended.borrow(), Some(Err(_))));
    assert_eq!(cluster.disk("a").read(Path::new(LOG)).unwrap(), [7; 5]);
}

#[test]
fn a_power_cut_is_silent_to_the_peers() {
    let mut cluster = Cluster::new(1);
    cluster.host("a", |process| store(process, true));
    cluster.client("c", |env| async move {
        let mut stream = connect(&env).await;
        match timeout(Duration::from_secs(5), stream.read_u64()).await {
            Err(_) => Ok(()),
            Ok(result) => Err(format!("heard of the power cut: {result:?}")),
        }
    });
    cluster.run_for(Duration::from_millis(100));
    cluster.power_cut("a");
    assert!(cluster.run_clients(Duration::from_secs(10)));
}

#[test]
fn a_stop_is_clean_and_an_error_ends_the_process_with_its_reason() {
    let mut cluster = Cluster::new(1);
    cluster.host("a", |process| store(process, true));
    cluster.run_for(Duration::from_millis(50));
    assert!(cluster.stop("a", Duration::from_secs(1)));
    assert_eq!(cluster.exit("a"), Some(Ok(())));
    cluster.disk("a").inject(Fault::FailSync, "log", 0, 1);
    cluster.restart("a");
    cluster.run_for(Duration::from_millis(50));
    assert!(!cluster.is_running("a"));
    assert!(
        cluster.exit("a").unwrap().unwrap_err().contains("os error 5"),
        "{:?}",
        cluster.exit("a")
    );
    cluster.restart("a");
    cluster.run_for(Duration::from_millis(50));
    assert!(cluster.is_running("a"));
    assert_eq!(cluster.disk_stats("a").waits_outside_blocking, 0);
}

#[test]
fn time_follows_the_simulation_and_jumps_when_told() {
    let mut cluster = Cluster::new(1);
    let seen = Rc::new(RefCell::new(Vec::new()));
    let noted = Rc::clone(&seen);
    cluster.host("a", |_| std::future::pending());
    cluster.client("c", move |env| async move {
        for _ in 0..3 {
            noted.borrow_mut().push(env.clock.wall_ms());
            sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    });
    cluster.run_for(Duration::from_millis(1500));
    cluster.jump_clock("c", -3_600_000);
    cluster.run_clients(Duration::from_secs(10));
    let seen = seen.borrow();
    assert_eq!([seen[1] - seen[0], seen[2] - seen[1]], [1000, 1000 - 3_600_000]);
}

/// A blocking job that was handed over runs, whether anybody waits for it or not.
#[test]
fn blocking_jobs_run_without_a_waiter() {
    let mut cluster = Cluster::new(1);
    cluster.client("c", |env| async move {
        let disk = env.disk.clone();
        let job = env.blocking(move || disk.create_dir_all(Path::new("/made")));
        let _ = timeout(Duration::ZERO, job).await;
        sleep(Duration::from_millis(10)).await;
        if env.disk.exists(Path::new("/made")).unwrap_or(false) {
            Ok(())
        } else {
            Err("the job did not run".to_owned())
        }
    });
    assert!(cluster.run_clients(Duration::from_secs(1)));
}
