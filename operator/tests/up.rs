//! `letterbox up` with this program in the place of the broker: started as
//! `up broker --config FILE`, it answers `/readyz`.
#![allow(clippy::disallowed_methods, reason = "a test stands outside of the seam")]

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use letterbox_env::{Env, OpenMode};
use letterbox_operator::platform::local::CONFIGURATION_REFUSED;
use letterbox_operator::up::{UpOptions, up_in};
use rustix::process::{Pid, Signal, getpid, kill_process, test_kill_process};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("broker") => play_broker(Path::new(&arguments[3])),
        Some("--list") => {
            println!("a_cluster_lives_through_kill_edit_and_drain: test");
            println!("brokers_restart_only_when_their_cluster_does_without_them: test");
        }
        _ => {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(brokers_restart_only_when_their_cluster_does_without_them());
            println!("test brokers_restart_only_when_their_cluster_does_without_them ... ok");
            runtime.block_on(a_cluster_lives_through_kill_edit_and_drain());
            println!("test a_cluster_lives_through_kill_edit_and_drain ... ok");
        }
    }
}

/// Answers every HTTP request with 200 at `admin.listener`; refuses what a broker would refuse. Its
/// restart lease is granted unless there is a file `hold` in its folder; for which broker is in a
/// file `asked`.
fn play_broker(config: &Path) {
    let properties = String::from_utf8(Env::real().disk.read(config).unwrap()).unwrap();
    if properties.contains("num.partitions=nonsense") {
        eprintln!("letterbox: {}: num.partitions=nonsense: must be a number", config.display());
        std::process::exit(i32::from(CONFIGURATION_REFUSED));
    }
    let admin = properties.lines().find_map(|line| line.strip_prefix("admin.listener=")).unwrap();
    let listener = std::net::TcpListener::bind(admin).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut request = [0; 1024];
        let len = stream.read(&mut request).unwrap_or(0);
        let request = String::from_utf8_lossy(&request[..len]);
        let (mut body, dir) = (String::new(), config.parent().unwrap());
        if let Some((_, rest)) =
            request.split_once("POST /lifecycle/restart-lease?holder=letterbox-up&brokers=")
        {
            let is_granted = !Env::real().disk.exists(&dir.join("hold")).unwrap();
            write(&dir.join("asked"), rest.split('&').next().unwrap());
            let seconds = if is_granted { "300" } else { "null" };
            body = format!(
                r#"{{"granted":{is_granted},"reasons":[],"because":[],"secondsLeft":{seconds},"leadsLeft":0,"verdict":null}}"#
            );
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let _ = stream.write_all((head + &body).as_bytes());
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn free_first_port() -> u16 {
    loop {
        let port = Env::real().net.bind("127.0.0.1", 0).await.unwrap().local_addr().unwrap().port();
        if (10_000..60_000).contains(&port)
            && Env::real().net.bind("127.0.0.1", port + 552).await.is_ok()
        {
            return port;
        }
    }
}

fn write(path: &Path, text: &str) {
    let file = Env::real().disk.open(path, OpenMode::Truncate).unwrap();
    file.write_at(&[std::io::IoSlice::new(text.as_bytes())], 0).unwrap();
}

fn read(path: &Path) -> String {
    Env::real().disk.read(path).map(|bytes| String::from_utf8(bytes).unwrap()).unwrap_or_default()
}

/// A first port for three brokers: what `letterbox up` takes above it is free, too.
async fn free_first_port_of_three() -> u16 {
    loop {
        let port = free_first_port().await;
        let mut is_free = port < 40_000;
        for above in [1, 2, 400, 401, 402, 552, 553, 554] {
            is_free = is_free && Env::real().net.bind("127.0.0.1", port + above).await.is_ok();
        }
        if is_free {
            return port;
        }
    }
}

async fn brokers_restart_only_when_their_cluster_does_without_them() {
    let dir = tempfile::tempdir().unwrap();
    let (file, data) = (dir.path().join("cluster.yaml"), dir.path().join("data"));
    let document = |partitions: u8| {
        format!(
            "apiVersion: letterbox.dev/v1alpha1\nkind: KafkaCluster\nmetadata: {{name: \
             three}}\nspec: {{replicas: 3, config: {{num.partitions: {partitions}}}}}\n"
        )
    };
    write(&file, &document(1));
    let options = UpOptions {
        file: file.clone(),
        data: data.clone(),
        port: free_first_port_of_three().await,
    };
    let up = tokio::spawn(up_in(Env::real(), options, std::env::current_exe().unwrap()));
    let broker = |id: i32| data.join(format!("three/broker-{id}"));
    let pids = || [0, 1, 2].map(|id| read(&broker(id).join("pid")));
    let asked = |id: i32| read(&broker(id).join("asked"));
    until("the brokers run", || pids().iter().all(|pid| !pid.is_empty())).await;
    let first = pids();

    (0..3).for_each(|id| write(&broker(id).join("hold"), ""));
    write(&file, &document(2));
    until("each is asked about itself", || [0, 1, 2].iter().all(|id| asked(*id) == id.to_string()))
        .await;
    for _ in 0..2 {
        Env::real().disk.remove_file(&broker(0).join("asked")).unwrap();
        until("it is asked again", || asked(0) == "0").await;
    }
    assert_eq!(pids(), first, "none restarts while that is not safe");

    // One that may is not held up by others.
    Env::real().disk.remove_file(&broker(1).join("hold")).unwrap();
    until("it restarts", || pids()[1] != first[1]).await;
    let second = pids();
    assert_eq!((&second[0], &second[2]), (&first[0], &first[2]));
    for id in [0, 2] {
        Env::real().disk.remove_file(&broker(id).join("hold")).unwrap();
    }
    until("all restart", || pids().iter().zip(&second).filter(|(a, b)| a != b).count() == 2).await;
    assert_eq!(pids()[1], second[1], "once");

    kill_process(getpid(), Signal::TERM).unwrap();
    let code = tokio::time::timeout(Duration::from_secs(20), up).await.expect("it ends");
    assert_eq!(code.unwrap().unwrap(), 0);
}

async fn a_cluster_lives_through_kill_edit_and_drain() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cluster.yaml");
    let data: PathBuf = dir.path().join("data");
    let document = |config: &str| {
        format!(
            "apiVersion: letterbox.dev/v1alpha1\nkind: KafkaCluster\nmetadata: {{name: \
             demo}}\nspec: {{config: {{{config}}}}}\n"
        )
    };
    write(&file, &document(""));
    let options =
        UpOptions { file: file.clone(), data: data.clone(), port: free_first_port().await };
    let binary = std::env::current_exe().unwrap();
    let up = tokio::spawn(up_in(Env::real(), options.clone(), binary.clone()));
    let broker = data.join("demo/broker-0");
    let pid = || read(&broker.join("pid")).trim().parse().ok().and_then(Pid::from_raw);
    let runs = |pid: Option<Pid>| pid.is_some_and(|pid| test_kill_process(pid).is_ok());

    until("the broker runs", || runs(pid())).await;
    let first = pid();
    let second_up =
        up_in(Env::real(), options.clone(), binary.clone()).await.unwrap_err().to_string();
    assert!(second_up.contains("another letterbox up uses"), "{second_up}");

    kill_process(first.unwrap(), Signal::KILL).unwrap();
    until("a killed broker is started again", || pid() != first && runs(pid())).await;

    let second = pid();
    write(&file, &document("num.partitions: \"7\""));
    until("an edit restarts it with the new configuration", || {
        pid() != second
            && runs(pid())
            && read(&broker.join("server.properties")).contains("num.partitions=7\n")
    })
    .await;
    assert!(!runs(second), "the old process has ended");

    // Not valid: told, and nothing changes.
    let third = pid();
    write(&file, &document("node.id: \"7\""));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(pid() == third && runs(third));

    // Valid as a document, refused by the broker: told, not tried again, and healed by the next
    // edit.
    write(&file, &document("num.partitions: \"nonsense\""));
    until("the broker's refusal is in its log", || {
        read(&broker.join("broker.log")).contains("must be a number")
    })
    .await;
    let refused = pid();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(pid(), refused, "a broker that refused its configuration is not started again");
    write(&file, &document("num.partitions: 9"));
    until("the next correct edit heals it", || {
        runs(pid()) && read(&broker.join("server.properties")).contains("num.partitions=9\n")
    })
    .await;

    let last = pid();
    kill_process(getpid(), Signal::TERM).unwrap();
    let code =
        tokio::time::timeout(Duration::from_secs(20), up).await.expect("it ends").unwrap().unwrap();
    assert_eq!(code, 0);
    assert!(!runs(last), "no broker is left behind");

    // Refused from the start: it ends, and says why.
    write(&file, &document("num.partitions: nonsense"));
    let ended =
        tokio::time::timeout(Duration::from_secs(20), up_in(Env::real(), options, binary)).await;
    let refused = ended.expect("it does not go on for ever").unwrap_err().to_string();
    assert!(
        refused.contains("broker 0 refuses its configuration")
            && refused.ends_with("num.partitions=nonsense: must be a number"),
        "{refused}"
    );
}
