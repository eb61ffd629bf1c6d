//! How a broker starts from a file, says in its log what it does, and refuses what it cannot do.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

mod common;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{
    Broker, PRODUCE_VERSION, ask, ask_for_topic, command, free_port, is_closed, kcat,
    produce_request, produced, refusal,
};
use kafka_protocol::messages as m;
use letterbox_protocol::Response;

fn quick_start() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quick-start.properties")
}

/// What has to differ from the quick start on a machine where others run: the port and the
/// directory.
fn overrides(dir: &Path, port: u16) -> Vec<String> {
    [
        format!("listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://:9093"),
        format!("advertised.listeners=PLAINTEXT://127.0.0.1:{port}"),
        format!("log.dirs={}", dir.join("not/there/yet").display()),
    ]
    .into_iter()
    .flat_map(|pair| ["--override".to_owned(), pair])
    .collect()
}

#[test]
fn a_quick_start_file_needs_no_change_and_no_format_step() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let broker = Broker::run(
        quick_start(),
        overrides(dir.path(), port),
        SocketAddr::from(([127, 0, 0, 1], port)),
    );
    let mut client = broker.connect();
    let Response::ApiVersions(versions) = ask(&mut client, 0, m::ApiVersionsRequest::default())
    else {
        unreachable!()
    };
    assert_eq!(versions.error_code, 0);
    assert_eq!(ask_for_topic(&mut client, "quickstart-events"), 0);
    assert_eq!(
        produced(ask(
            &mut client,
            PRODUCE_VERSION,
            produce_request("quickstart-events", b"This is my first event")
        )),
        (0, 0)
    );
    // As a stranger would read it, group and all.
    let seen = kcat(
        &broker,
        &["-G", "readers", "quickstart-events", "-X", "auto.offset.reset=earliest", "-e", "-q"],
        "",
    );
    assert_eq!(seen, "This is my first event\n");
}

#[test]
fn a_setting_that_cannot_be_is_refused_by_name_value_reason_and_range() {
    let dir = tempfile::tempdir().unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let taken = format!("listeners=PLAINTEXT://{address},CONTROLLER://:9093");
    let cannot = format!(
        "listeners=PLAINTEXT://{address}: cannot listen on {address}; is another process using the \
         port?: Address"
    );
    for (name, line, said) in [
        (
            "an unknown key, and strictness",
            "config.strict=true\nnum.partition=3",
            &["num.partition: has no effect: no setting has this name; the nearest is \
                 num.partitions; remove it"][..],
        ),
        (
            "a word instead of a number",
            "num.partitions=many",
            &["num.partitions=many: must be a whole number from 1 to 2147483647"],
        ),
        (
            "a number out of range",
            "num.partitions=0",
            &["num.partitions=0: must be a whole number from 1 to 2147483647"],
        ),
        (
            "no range upwards",
            "log.retention.ms=-2",
            &["log.retention.ms=-2: must be a whole number, at least -1"],
        ),
        (
            "an unknown word",
            "log.cleanup.policy=shred",
            &["log.cleanup.policy=shred: must be empty or a list of compact, delete"],
        ),
        (
            "an impossible role",
            "process.roles=broker",
            &["process.roles=broker: this version runs both roles", "write broker,controller"],
        ),
        (
            "a promise not kept",
            "ssl.keystore.location=/k",
            &["ssl.keystore.location is set: this version does not encrypt connections; remove \
                 the setting"],
        ),
        (
            "two at once",
            "num.partitions=0\nauthorizer.class.name=x",
            &["num.partitions=0: must be", "authorizer.class.name is set"],
        ),
        ("a port in use", &taken, &[&cannot]),
        ("no property", "broken=\\u12", &["line ", "has \\u without four hexadecimal digits"]),
    ] {
        let config = dir.path().join("server.properties");
        let text = std::fs::read_to_string(quick_start()).unwrap();
        let logs = dir.path().join("data");
        std::fs::write(
            &config,
            format!(
                "{text}log.dirs={}\nadvertised.listeners=PLAINTEXT://localhost:9092\n{line}\n",
                logs.display()
            ),
        )
        .unwrap();
        let output = refusal(&mut command(&config));
        // Whoever started it tells from the code that trying again cannot help.
        assert_eq!(output.status.code(), Some(if line == taken { 69 } else { 78 }), "{name}");
        let error = String::from_utf8(output.stderr).unwrap();
        for part in said {
            assert!(error.contains(part), "{name}: {part:?} is not in {error:?}");
        }
        assert!(
            error.contains(config.to_str().unwrap()) || line == taken,
            "{name}: the file is not named in {error:?}"
        );
    }
    let nowhere = dir.path().join("nowhere");
    let error = String::from_utf8(refusal(&mut command(&nowhere)).stderr).unwrap();
    assert!(error.contains(nowhere.to_str().unwrap()), "{error}");
    let output = refusal(command(&quick_start()).args(["--override", "num.partitions=0"]));
    assert!(String::from_utf8(output.stderr).unwrap().contains("num.partitions=0: must be"));
}

/// The message of a JSON log line that has everything a log line must have.
fn message(line: &str) -> String {
    let event: serde_json::Value =
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let text =
        |name: &str| event[name].as_str().unwrap_or_else(|| panic!("no {name}: {line}")).to_owned();
    assert!(text("timestamp").ends_with('Z'), "{line}");
    assert!(["ERROR", "WARN", "INFO", "DEBUG"].contains(&&*text("level")), "{line}");
    text("message")
}

/// A line for each partition would hide what matters.
#[test]
fn a_start_after_a_kill_says_little_however_many_partitions_there_are() {
    const LOADED: &str = "loaded groups and offsets";
    let dir = tempfile::tempdir().unwrap();
    let extra = "num.partitions=100\noffsets.topic.num.partitions=100";
    let broker = Broker::start(dir.path(), extra);
    let mut client = broker.connect();
    while ask_for_topic(&mut client, "orders") != 0 {}
    for partition in 0..100 {
        let mut request = produce_request("orders", b"one");
        request.topic_data[0].partition_data[0].index = partition;
        assert_eq!(produced(ask(&mut client, PRODUCE_VERSION, request)), (0, 0), "{partition}");
    }
    let key = kafka_protocol::protocol::StrBytes::from_static_str("group");
    ask(&mut client, 3, m::FindCoordinatorRequest::default().with_key(key));
    broker.wait_for_line(LOADED);
    let broker = broker.kill_and_restart();
    if !broker.said().iter().any(|line| line.contains(LOADED)) {
        broker.wait_for_line(LOADED);
    }
    let mut said = broker.said();
    said.extend(broker.stop_and_read_log());
    for once in ["coordinating groups", LOADED] {
        let lines = said.iter().filter(|line| line.contains(once)).count();
        assert_eq!(lines, 1, "{once}: {said:#?}");
    }
    assert!(said.len() < 50, "{said:#?}");
}

#[test]
fn with_json_every_line_of_the_log_is_one_object() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let json = ["--log-format", "json", "--log-level", "debug"].map(str::to_owned);
    let arguments = overrides(dir.path(), port).into_iter().chain(json).collect();
    let broker = Broker::run(quick_start(), arguments, SocketAddr::from(([127, 0, 0, 1], port)));
    kcat(&broker, &["-P", "-t", "orders"], "one\n");
    let mut stranger = broker.connect();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(is_closed(&mut stranger));
    message(&broker.wait_for_line("connection closed"));
    let messages: Vec<String> =
        broker.stop_and_read_log().iter().map(|line| message(line)).collect();
    assert!(messages.iter().any(|message| message.starts_with("stopped in ")), "{messages:?}");
}

#[test]
fn with_json_a_refusal_is_an_object_too() {
    let container = |variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_letterbox"));
        command.arg("container").env_clear().envs(variables.iter().copied());
        command
    };
    let broker = |config: &Path, more: &[&str]| {
        let mut command = command(config);
        command.args(more);
        command
    };
    for (mut command, said) in [
        (broker(Path::new("nowhere"), &[]), &["read nowhere (--config)"][..]),
        (
            broker(&quick_start(), &["--override", "num.partitions=0"]),
            &["num.partitions=0: must be a whole number"],
        ),
        (broker(&quick_start(), &["--log-level", "a=b=c"]), &["--log-level a=b=c"]),
        (
            container(&[("KAFKA_CFG_NUM_PARTITIONS", "0")]),
            &[
                "KAFKA_CFG_NUM_PARTITIONS is taken as num.partitions",
                "num.partitions=0: must be a whole number",
            ],
        ),
    ] {
        let output = refusal(command.args(["--log-format", "json"]));
        let text =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        let messages: Vec<String> = text.lines().map(message).collect();
        assert_eq!(messages.len(), said.len(), "{text}");
        for (message, part) in messages.iter().zip(said) {
            assert!(message.contains(part), "{message}");
        }
    }
}

#[test]
fn a_directory_that_was_only_formatted_has_seen_no_unclean_end() {
    let dir = tempfile::tempdir().unwrap();
    let (config, port) = (dir.path().join("server.properties"), free_port());
    let text = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@localhost:9093\ncontroller.listener.names=CONTROLLER\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:9093\nlog.dirs={}\nadmin.listener=none\n",
        dir.path().join("data").display()
    );
    std::fs::write(&config, text).unwrap();
    let mut format = Command::new(env!("CARGO_BIN_EXE_letterbox"));
    format
        .args(["tool", "kafka-storage", "format", "-t", "4L6g3nShT-eMCtK--X86sw", "-c"])
        .arg(&config);
    assert!(format.status().unwrap().success());
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    for (run, expected) in [("first", false), ("second, after it was killed", true)] {
        let child = command(&config).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let deadline = std::time::Instant::now() + common::PATIENCE;
        let mut stream = loop {
            match std::net::TcpStream::connect(address) {
                Ok(stream) => break stream,
                Err(error) => assert!(std::time::Instant::now() < deadline, "{run}: {error}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        // It is answered when the start is over.
        assert_eq!(ask_for_topic(&mut stream, "t"), 0);
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&child),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        let log = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert_eq!(log.contains("the last run did not end cleanly"), expected, "{run}: {log}");
    }
}

/// As Kafka; `nohup` has it ignored. The file may come from a pipe, too.
#[test]
fn a_hangup_ends_it_in_order_unless_it_is_ignored() {
    use rustix::process::{Signal, kill_process};
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let text = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.listener.names=CONTROLLER\n\
         controller.quorum.voters=1@localhost:9093\nadmin.listener=none\nlog.dirs={}\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{}\n",
        dir.path().join("data").display(),
        free_port(),
    );
    let config = dir.path().join("server.properties");
    std::fs::write(&config, text).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut broker = Broker::run(config.clone(), Vec::new(), address);
    broker.stop_by(Signal::HUP);
    let mut shell = Command::new("bash");
    shell.args(["-c", "trap '' HUP; exec \"$1\" broker --config <(cat \"$2\")", "bash"]);
    shell.arg(env!("CARGO_BIN_EXE_letterbox")).arg(&config);
    let mut broker = Broker::run_by(shell, config, Vec::new(), address);
    let status = format!("/proc/{}/status", broker.pid().as_raw_nonzero());
    let status = std::fs::read_to_string(status).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    assert_eq!(u64::from_str_radix(ignored.trim(), 16).unwrap() & 1, 1, "{status}");
    kill_process(broker.pid(), Signal::HUP).unwrap();
    ask(&mut broker.connect(), 0, m::ApiVersionsRequest::default());
    broker.stop();
}

/// An earlier version had the metadata log under the name of Apache Kafka's, which cuts it to
/// nothing.
#[test]
fn the_directory_of_an_earlier_version_is_taken_over_and_apache_kafkas_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (now, before) = (data.join("__letterbox_metadata"), data.join("__cluster_metadata-0"));
    let meta = data.join("meta.properties");
    let extra = format!("log.dirs={}", data.display());
    let produce = |broker: &Broker| {
        let request = produce_request("orders", b"one");
        produced(ask(&mut broker.connect(), PRODUCE_VERSION, request))
    };
    let mut broker = Broker::start(dir.path(), &extra);
    assert_eq!(ask_for_topic(&mut broker.connect(), "orders"), 0);
    assert_eq!(produce(&broker), (0, 0));
    broker.stop();
    let marked = std::fs::read_to_string(&meta).unwrap();
    assert!(marked.contains("version=letterbox-1\n"), "{marked}");
    // As it was left.
    let kafkas = marked.replace("version=letterbox-1\n", "version=1\n");
    std::fs::write(&meta, &kafkas).unwrap();
    std::fs::rename(&now, &before).unwrap();
    for offset in [1, 2] {
        let mut broker = Broker::start(dir.path(), &extra);
        assert_eq!(produce(&broker), (0, offset));
        broker.stop();
        assert!(now.exists() && !before.exists());
        assert_eq!(std::fs::read_to_string(&meta).unwrap(), marked);
    }
    // Kafka's own.
    std::fs::remove_dir_all(&now).unwrap();
    std::fs::create_dir(&before).unwrap();
    std::fs::write(before.join("quorum-state"), "{}").unwrap();
    std::fs::write(before.join("00000000000000000000.log"), [0; 64]).unwrap();
    std::fs::write(&meta, &kafkas).unwrap();
    let refused = refusal(&mut command(&dir.path().join("server.properties")));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned()
        + &String::from_utf8_lossy(&refused.stdout);
    assert!(said.contains("__cluster_metadata-0 is Apache Kafka's metadata log"), "{said}");
    assert_eq!(std::fs::read_to_string(&meta).unwrap(), kafkas, "Kafka can start on it again");
    assert!(!now.exists());
}
