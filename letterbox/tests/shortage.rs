//! A real broker that lacks space or descriptors: it refuses what needs them, serves the rest, and
//! heals by itself.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

mod common;

use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{
    Broker, PATIENCE, PRODUCE_VERSION, ask, ask_for_topic, command, free_port, http_get, is_closed,
    produce_request, produced, refusal, topic_name,
};
use kafka_protocol::messages as m;
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::Response;
use rustix::process::{Resource, Rlimit, prlimit};

const STORAGE_ERROR: i16 = 56;

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The error of a commit by a client that is in no group's generation.
fn commit(client: &mut TcpStream) -> i16 {
    let group = m::GroupId(StrBytes::from_static_str("readers"));
    ask(client, 3, m::FindCoordinatorRequest::default().with_key(group.0.clone()));
    let partition =
        m::offset_commit_request::OffsetCommitRequestPartition::default().with_committed_offset(1);
    let topic = m::offset_commit_request::OffsetCommitRequestTopic::default()
        .with_name(topic_name("orders"))
        .with_partitions(vec![partition]);
    let request = m::OffsetCommitRequest::default()
        .with_group_id(group)
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    let Response::OffsetCommit(answer) = ask(client, 8, request) else { unreachable!() };
    answer.topics[0].partitions[0].error_code
}

#[test]
fn below_the_reserve_only_records_of_clients_are_refused_and_readyz_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let admin = format!("admin.listener=127.0.0.1:{port}");
    let broker = Broker::start(dir.path(), &admin);
    assert_eq!(ask_for_topic(&mut broker.connect(), "orders"), 0);
    assert_eq!(
        produced(ask(&mut broker.connect(), PRODUCE_VERSION, produce_request("orders", b"one"))),
        (0, 0)
    );
    drop(broker);

    let space = rustix::fs::statvfs(dir.path()).unwrap();
    let reserve = space.f_bavail * space.f_frsize * 2;
    let mut broker =
        Broker::start(dir.path(), &format!("{admin}\nlog.dir.reserve.bytes={reserve}"));
    eventually("readyz says no", || http_get(port, "/readyz").0 == "503");
    let (_, reason) = http_get(port, "/readyz");
    assert!(
        reason.contains("takes no appends") && reason.contains("log.dir.reserve.bytes"),
        "{reason}"
    );
    assert_eq!(http_get(port, "/livez").0, "200");
    let mut client = broker.connect();
    assert_eq!(
        produced(ask(&mut client, PRODUCE_VERSION, produce_request("orders", b"two"))).0,
        STORAGE_ERROR
    );
    eventually("topics are made", || ask_for_topic(&mut client, "more") == 0);
    eventually("offsets are committed", || commit(&mut client) == 0);
    broker.stop();

    let broker = Broker::start(dir.path(), &format!("{admin}\nlog.dir.reserve.bytes=0"));
    assert_eq!(
        produced(ask(&mut broker.connect(), PRODUCE_VERSION, produce_request("orders", b"two"))),
        (0, 1)
    );
    assert_eq!(http_get(port, "/readyz").0, "200");
}

#[test]
fn without_a_descriptor_the_open_partitions_serve_until_others_want_one_and_all_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path(), "");
    let mut client = broker.connect();
    assert_eq!(ask_for_topic(&mut client, "orders"), 0);
    assert_eq!(
        produced(ask(&mut client, PRODUCE_VERSION, produce_request("orders", b"one"))),
        (0, 0)
    );
    let pid = broker.pid();
    let own = rustix::process::getrlimit(Resource::Nofile);
    let limit = |current| {
        prlimit(
            Some(pid),
            Resource::Nofile,
            Rlimit { current: Some(current), maximum: own.maximum },
        )
        .unwrap()
    };
    limit(3);

    for offset in 1..4 {
        assert_eq!(
            produced(ask(&mut client, PRODUCE_VERSION, produce_request("orders", b"more"))),
            (0, offset)
        );
    }
    ask_for_topic(&mut client, "late");
    let (error, _) = produced(ask(&mut client, PRODUCE_VERSION, produce_request("late", b"one")));
    assert!([3, STORAGE_ERROR].contains(&error), "{error}");
    // Waits in the backlog.
    let mut second = broker.connect();
    broker.wait_for_line("cannot accept connections");

    limit(1024);
    assert_eq!(
        produced(ask(&mut second, PRODUCE_VERSION, produce_request("orders", b"more"))),
        (0, 4)
    );
    eventually("the late topic is led", || ask_for_topic(&mut client, "late") == 0);
    eventually("the late topic is written", || {
        produced(ask(&mut client, PRODUCE_VERSION, produce_request("late", b"one"))).0 == 0
    });
    broker.stop();
}

/// Those that were written to first kept their files, and the others were refused.
#[test]
fn more_partitions_than_descriptors_are_written_to_in_turn() {
    const PARTITIONS: i32 = 40;
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path(), &format!("num.partitions={PARTITIONS}"));
    let mut client = broker.connect();
    eventually("the topic is led", || ask_for_topic(&mut client, "orders") == 0);
    let open = std::fs::read_dir(format!("/proc/{}/fd", broker.pid())).unwrap();
    let open = open.filter_map(|fd| fd.unwrap().file_name().to_str()?.parse::<u64>().ok());
    let open: std::collections::BTreeSet<_> = open.collect();
    // Room for six partitions.
    let limit = (0..).filter(|fd| !open.contains(fd)).nth(20).unwrap();
    let own = rustix::process::getrlimit(Resource::Nofile);
    let few = Rlimit { current: Some(limit), maximum: own.maximum };
    prlimit(Some(broker.pid()), Resource::Nofile, few).unwrap();
    for round in 0..3 {
        for partition in 0..PARTITIONS {
            let mut request = produce_request("orders", b"one");
            request.topic_data[0].partition_data[0].index = partition;
            assert_eq!(
                produced(ask(&mut client, PRODUCE_VERSION, request)),
                (0, round),
                "partition {partition}"
            );
        }
    }
    broker.stop();
}

const LEADER_NOT_AVAILABLE: i16 = 5;

/// The errors of the partitions of `topic`, in order.
fn partition_errors(client: &mut TcpStream, topic: &'static str) -> Vec<i16> {
    let wanted =
        m::metadata_request::MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
    let Response::Metadata(answer) =
        ask(client, 9, m::MetadataRequest::default().with_topics(Some(vec![wanted])))
    else {
        unreachable!()
    };
    let mut errors: Vec<i16> =
        answer.topics[0].partitions.iter().map(|partition| partition.error_code).collect();
    errors.sort_unstable();
    errors
}

#[test]
fn a_broker_starts_without_a_log_directory_that_it_cannot_use() {
    let dir = tempfile::tempdir().unwrap();
    let [good, bad, hidden] = ["good", "bad", "hidden"].map(|name| dir.path().join(name));
    let port = free_port();
    let extra = format!(
        "admin.listener=127.0.0.1:{port}\nnum.partitions=2\nlog.dirs={},{}",
        good.display(),
        bad.display()
    );
    let mut broker = Broker::start(dir.path(), &extra);
    assert_eq!(ask_for_topic(&mut broker.connect(), "orders"), 0);
    broker.stop();
    std::fs::rename(&bad, &hidden).unwrap();
    std::fs::write(&bad, "no directory").unwrap();

    let mut broker = Broker::start(dir.path(), &extra);
    let mut client = broker.connect();
    assert_eq!(partition_errors(&mut client, "orders"), [0, LEADER_NOT_AVAILABLE]);
    assert_eq!(ask_for_topic(&mut client, "more"), 0);
    eventually("both partitions are made in the other directory", || {
        partition_errors(&mut client, "more") == [0, 0]
    });
    let (_, metrics) = http_get(port, "/metrics");
    for metric in [
        "kafka_log_logmanager_offlinelogdirectorycount 1",
        "kafka_server_replicamanager_offlinereplicacount 1",
    ] {
        assert!(metrics.contains(metric), "{metric}");
    }
    broker.stop();

    std::fs::remove_file(&bad).unwrap();
    std::fs::rename(&hidden, &bad).unwrap();
    let broker = Broker::start(dir.path(), &extra);
    for topic in ["orders", "more"] {
        assert_eq!(partition_errors(&mut broker.connect(), topic), [0, 0], "{topic}");
    }
}

/// A disk that is not mounted, or that `log.dirs` does not name any more.
#[test]
fn the_partitions_of_a_lost_log_directory_are_not_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let [good, lost, away] = ["good", "lost", "away"].map(|name| dir.path().join(name));
    let port = free_port();
    let with = |dirs: String| {
        format!("admin.listener=127.0.0.1:{port}\nnum.partitions=2\nlog.dirs={dirs}")
    };
    let (both, one) =
        (with(format!("{},{}", good.display(), lost.display())), with(good.display().to_string()));
    let mut broker = Broker::start(dir.path(), &both);
    assert_eq!(ask_for_topic(&mut broker.connect(), "orders"), 0);
    broker.stop();
    std::fs::rename(&lost, &away).unwrap();
    std::fs::create_dir(&lost).unwrap();
    let meta = std::fs::read_to_string(away.join("meta.properties")).unwrap();
    let id = meta.lines().find_map(|line| line.strip_prefix("directory.id=")).unwrap();
    for extra in [&both, &one] {
        let mut broker = Broker::start(dir.path(), extra);
        assert_eq!(partition_errors(&mut broker.connect(), "orders"), [0, LEADER_NOT_AVAILABLE]);
        let (_, metrics) = http_get(port, "/metrics");
        assert!(metrics.contains("kafka_log_logmanager_offlinelogdirectorycount 1"));
        let said = identity(port);
        let known = serde_json::json!([{"path": lost, "directory.id": id}]);
        assert_eq!((&said["lost"], said["directories"].as_array().unwrap().len()), (&known, 1));
        assert_eq!(said["offline"][0]["path"].as_str(), lost.to_str());
        broker.stop();
    }
    // Fails when something is in it.
    std::fs::remove_dir(&lost).unwrap();
    std::fs::rename(&away, &lost).unwrap();
    // What is there is not given up, whatever the configuration says.
    let accepts = format!("{both}\naccepted.lost.directory.ids={id}");
    for extra in [&both, &accepts] {
        let mut broker = Broker::start(dir.path(), extra);
        assert_eq!(partition_errors(&mut broker.connect(), "orders"), [0, 0]);
        assert_eq!(identity(port)["lost"], serde_json::json!([]));
        broker.stop();
    }
    std::fs::remove_dir_all(&lost).unwrap();
    let broker = Broker::start(dir.path(), &accepts);
    eventually("they are made anew once the loss is accepted", || {
        partition_errors(&mut broker.connect(), "orders") == [0, 0]
    });
    assert_eq!(identity(port)["directories"].as_array().unwrap().len(), 2);
}

/// But for `meta.properties`: it is the same one by its id.
#[test]
fn the_partitions_of_a_log_directory_that_was_emptied_are_not_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let [good, emptied] = ["good", "emptied"].map(|name| dir.path().join(name));
    let extra = format!("num.partitions=2\nlog.dirs={},{}", good.display(), emptied.display());
    let empty = |directory: &std::path::Path| {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                std::fs::remove_dir_all(path).unwrap();
            } else if !path.ends_with("meta.properties") {
                std::fs::remove_file(path).unwrap();
            }
        }
    };
    let forget = |directory: &std::path::Path| {
        let file = directory.join("meta.properties");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("used=true\n"), "{text}");
        std::fs::write(file, text.replace("used=true\n", "")).unwrap();
    };
    let mut broker = Broker::start(dir.path(), &extra);
    assert_eq!(ask_for_topic(&mut broker.connect(), "orders"), 0);
    broker.stop();
    // As an earlier version leaves them.
    [&good, &emptied].into_iter().for_each(|directory| forget(directory));
    let mut broker = Broker::start(dir.path(), &extra);
    assert_eq!(partition_errors(&mut broker.connect(), "orders"), [0, 0]);
    broker.stop();
    empty(&emptied);
    let mut broker = Broker::start(dir.path(), &extra);
    assert_eq!(partition_errors(&mut broker.connect(), "orders"), [0, LEADER_NOT_AVAILABLE]);
    broker.stop();
    forget(&emptied);
    let mut broker = Broker::start(dir.path(), &extra);
    assert_eq!(partition_errors(&mut broker.connect(), "orders"), [0, 0]);
    broker.stop();
    empty(&good);
    let refused = refusal(&mut command(&dir.path().join("server.properties")));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned()
        + &String::from_utf8_lossy(&refused.stdout);
    assert!(said.contains("take the line used=true out of meta.properties"), "{said}");
}

/// The log directory with the metadata is lost, and another one has partitions.
#[test]
fn a_metadata_log_is_begun_anew_only_once_it_is_given_up_and_deletes_no_partition() {
    let dir = tempfile::tempdir().unwrap();
    let [data, more] = ["data", "more"].map(|name| dir.path().join(name));
    let extra = format!("num.partitions=1\nlog.dirs={},{}", data.display(), more.display());
    let names = |of: &std::path::Path, with: &str| -> Vec<String> {
        let entries = std::fs::read_dir(of).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("orders-") && name.contains(with)).collect()
    };
    let refuses_with = |extra: &str, words: [&str; 2]| {
        let file = dir.path().join("server.properties");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{text}\n{extra}\n")).unwrap();
        let refused = refusal(&mut command(&file));
        std::fs::write(&file, text).unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned()
            + &String::from_utf8_lossy(&refused.stdout);
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    };
    let refuses =
        |extra: &str| refuses_with(extra, ["is missing, but", "accepted.lost.metadata.log"]);
    let id = || {
        let meta = std::fs::read_to_string(data.join("meta.properties")).unwrap();
        let id = meta.lines().find_map(|line| line.strip_prefix("directory.id="));
        id.unwrap().to_owned()
    };
    let produce = |broker: &Broker| {
        let request = produce_request("orders", b"one");
        produced(ask(&mut broker.connect(), PRODUCE_VERSION, request))
    };
    let mut broker = Broker::start(dir.path(), &extra);
    for topic in ["first", "orders"] {
        assert_eq!(ask_for_topic(&mut broker.connect(), topic), 0);
    }
    assert_eq!(produce(&broker), (0, 0));
    assert_eq!(names(&more, "").len(), 1, "each log directory has one");
    let lost = id();
    broker.stop();
    // In another order it is not lost, whatever was accepted.
    let there = format!("Set metadata.log.dir={}", data.display());
    let other_order = format!("log.dirs={},{}", more.display(), data.display());
    for accepted in ["", "\naccepted.lost.metadata.log=x"] {
        refuses_with(&format!("{other_order}{accepted}"), ["the metadata log is in", &there]);
    }
    std::fs::remove_dir_all(&data).unwrap();
    refuses("");
    assert_eq!(names(&more, "-stray").len(), 0);

    let accepts =
        format!("{extra}\naccepted.lost.metadata.log={lost}\naccepted.lost.directory.ids={lost}");
    let mut broker = Broker::start(dir.path(), &accepts);
    assert_eq!(ask_for_topic(&mut broker.connect(), "orders"), 0);
    eventually("the topic is made anew", || produce(&broker) == (0, 0));
    let [aside] = names(&more, "-stray").try_into().unwrap();
    assert!(more.join(aside).join("00000000000000000000.log").exists());
    broker.stop();
    // Once: what has come since stays.
    let mut broker = Broker::start(dir.path(), &accepts);
    assert_eq!(produce(&broker), (0, 1));
    broker.stop();
    // Whoever starts it has learned of the other directory only, and the new one is not unexpected.
    let more_id = directory_id(&more);
    let expects = format!("{accepts}\nexpected.directory.ids={more_id}");
    let mut broker = Broker::start(dir.path(), &expects);
    assert_eq!(produce(&broker), (0, 2));
    broker.stop();
    Broker::start(dir.path(), &accepts).stop();
    // A directory that is there is not lost.
    std::fs::remove_dir_all(data.join("__letterbox_metadata")).unwrap();
    refuses(&format!("accepted.lost.metadata.log={}", id()));
}

fn directory_id(directory: &std::path::Path) -> String {
    let meta = std::fs::read_to_string(directory.join("meta.properties")).unwrap();
    meta.lines().find_map(|line| line.strip_prefix("directory.id=")).unwrap().to_owned()
}

/// As the operator starts it: it tells what is missing, and whoever brings that back need not
/// restart it.
#[test]
fn a_broker_that_is_refused_its_directories_stays_up_and_tells_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let [data, more, away] = ["data", "more", "away"].map(|name| dir.path().join(name));
    let port = free_port();
    let extra = format!(
        "admin.listener=127.0.0.1:{port}\nnum.partitions=2\ncluster.id=test\nlog.dirs={},{}\n\
         missing.directories.wait.enable=true",
        data.display(),
        more.display()
    );
    let mut broker = Broker::start(dir.path(), &extra);
    assert_eq!(ask_for_topic(&mut broker.connect(), "orders"), 0);
    let ids = [directory_id(&data), directory_id(&more)];
    let expects = format!("{extra}\nexpected.directory.ids={}", ids.join(","));
    for (lost, id, extra) in
        [(&data, &ids[0], &expects), (&more, &ids[1], &expects), (&data, &ids[0], &extra)]
    {
        broker.stop();
        std::fs::rename(lost, &away).unwrap();
        std::fs::create_dir(lost).unwrap();
        let file = dir.path().join("server.properties");
        let text = std::fs::read_to_string(&file).unwrap();
        let begin = text.split("missing.directories.wait.enable").next().unwrap();
        let keys = extra.lines().skip_while(|line| !line.starts_with("missing."));
        std::fs::write(&file, format!("{begin}{}\n", keys.collect::<Vec<_>>().join("\n"))).unwrap();
        broker = Broker::begin(command(&file), file, Vec::new(), broker.address);
        broker.wait_for_line("cannot identify the log directories now");
        let (status, why) = http_get(port, "/readyz");
        assert!(status == "503" && why.contains("waiting for log directories"), "{why}");
        let said = identity(port);
        assert_eq!((&said["cluster.id"], &said["node.id"]), (&"test".into(), &1.into()));
        assert_eq!(said["directories"].as_array().unwrap().len(), 1, "{said}");
        if extra.contains("expected.directory.ids") {
            assert_eq!(said["lost"], serde_json::json!([{"path": lost, "directory.id": id}]));
        } else {
            assert_eq!(said["metadata.log"], "missing", "nothing else says that it is lost");
        }
        assert_eq!(std::fs::read_dir(lost).unwrap().count(), 0, "nothing is written there");
        // It is brought back under the broker.
        std::fs::remove_dir(lost).unwrap();
        std::fs::rename(&away, lost).unwrap();
        broker.wait_until_it_serves();
        assert_eq!(partition_errors(&mut broker.connect(), "orders"), [0, 0]);
        assert_eq!(http_get(port, "/readyz").0, "200");
    }
    broker.stop();
}

fn identity(port: u16) -> serde_json::Value {
    serde_json::from_str(&http_get(port, "/identity").1).unwrap()
}

/// Connections that say nothing are ended, the oldest first, when there are too many.
#[test]
fn silent_connections_do_not_keep_probes_out() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let _broker = Broker::start(dir.path(), &format!("admin.listener=127.0.0.1:{port}"));
    let mut silent: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    assert_eq!(http_get(port, "/livez").0, "200");
    silent[0].set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(is_closed(&mut silent[0]));
    // The others are ended when their request has not come in time.
    let last = silent.last_mut().unwrap();
    last.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(is_closed(last));
}

/// The start overflowed the stack.
#[test]
fn a_small_limit_of_stacks_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path(), "");
    let address = broker.address;
    broker.stop();
    let config = dir.path().join("server.properties");
    let by = command(&config);
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -s 64 && exec \"$0\" \"$@\""]).arg(by.get_program());
    limited.args(by.get_args());
    let broker = Broker::run_by(limited, config, Vec::new(), address);
    assert_eq!(ask_for_topic(&mut broker.connect(), "orders"), 0);
}

/// The kernel ended the process (SIGXFSZ), without a line.
#[test]
fn a_limit_of_file_sizes_refuses_records_is_named_and_passes() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    assert_eq!(ask_for_topic(&mut broker.connect(), "orders"), 0);
    let limit = |bytes| {
        let limit = Rlimit { current: bytes, maximum: None };
        prlimit(Some(broker.pid()), Resource::Fsize, limit).unwrap();
    };
    let produce = || {
        let request = produce_request("orders", &[7; 100_000]);
        produced(ask(&mut broker.connect(), PRODUCE_VERSION, request)).0
    };
    assert_eq!(produce(), 0);
    limit(Some(2 << 20));
    eventually("records are refused", || produce() == STORAGE_ERROR);
    broker.wait_for_line("ulimit -f");
    assert_eq!(ask_for_topic(&mut broker.connect(), "other"), 0);
    limit(None);
    eventually("it goes on", || produce() == 0);
}
