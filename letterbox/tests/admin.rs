//! Health and metrics, asked for over HTTP as a probe and a scraper ask.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{
    Broker, PATIENCE, PRODUCE_VERSION, ask, ask_for_topic, command, free_port, http, http_get,
    produce_request, produced, refusal, topic_name,
};
use kafka_protocol::messages as m;
use kafka_protocol::protocol::StrBytes;
use letterbox_broker::config::Config;
use letterbox_broker::node::Node;
use letterbox_env::Env;
use letterbox_protocol::Response;
use serde_json::Value;

/// Whether `line` is a comment, or `name value` or `name{label="value",…} value`.
fn is_metric(line: &str) -> bool {
    let Some((series, value)) = line.rsplit_once(' ') else { return false };
    let name = match series.split_once('{') {
        Some((name, labels)) if labels.ends_with("\"}") && labels.contains("=\"") => name,
        Some(_) => return false,
        None => series,
    };
    line.starts_with("# ")
        || (name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
            && value.parse::<f64>().is_ok())
}

#[test]
fn probes_and_scrapers_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let broker = Broker::start(
        dir.path(),
        &format!("admin.listener=127.0.0.1:{port}\noffsets.topic.num.partitions=2"),
    );
    for path in ["/livez", "/readyz"] {
        assert_eq!(http_get(port, path), ("200".to_owned(), "ok\n".to_owned()), "{path}");
    }
    assert_eq!(http_get(port, "/nowhere").0, "404");
    assert!(
        http(
            port,
            b"POST /livez HTTP/1.1\r\nHost: broker\r\nConnection: close\r\nContent-Length: \
            0\r\n\r\n"
        )
        .starts_with("HTTP/1.1 405 ")
    );
    assert!(http(port, b"no request at all\r\n\r\n").starts_with("HTTP/1.1 400 "));

    let mut client = broker.connect();
    assert_eq!(ask_for_topic(&mut client, "orders"), 0);
    for offset in 0..3 {
        assert_eq!(
            produced(ask(&mut client, PRODUCE_VERSION, produce_request("orders", b"one"))),
            (0, offset)
        );
    }
    assert_eq!(
        produced(ask(&mut client, PRODUCE_VERSION, produce_request("nowhere", b"one"))).0,
        3
    );
    assert_eq!(ask_for_topic(&mut client, "no name for a topic"), 17);
    let batch = produce_request("orders", b"one").topic_data[0].partition_data[0]
        .records
        .as_ref()
        .unwrap()
        .len();
    let partition = m::fetch_request::FetchPartition::default().with_partition_max_bytes(1 << 20);
    let topic = m::fetch_request::FetchTopic::default()
        .with_topic(topic_name("orders"))
        .with_partitions(vec![partition]);
    ask(
        &mut client,
        11,
        m::FetchRequest::default().with_max_bytes(1 << 20).with_topics(vec![topic]),
    );
    ask_for_topic(&mut client, "__consumer_offsets");
    let partition =
        m::offset_commit_request::OffsetCommitRequestPartition::default().with_committed_offset(1);
    let topic = m::offset_commit_request::OffsetCommitRequestTopic::default()
        .with_name(topic_name("orders"))
        .with_partitions(vec![partition]);
    let commit = m::OffsetCommitRequest::default()
        .with_group_id(m::GroupId(StrBytes::from_static_str("readers")))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    let begun = std::time::Instant::now();
    loop {
        let Response::OffsetCommit(answer) = ask(&mut client, 8, commit.clone()) else {
            unreachable!()
        };
        match answer.topics[0].partitions[0].error_code {
            0 => break,
            // The coordinator is loading.
            14..=16 if begun.elapsed() < PATIENCE => std::thread::yield_now(),
            error => panic!("OffsetCommit: {error}"),
        }
    }
    let (status, metrics) = http_get(port, "/metrics");
    assert_eq!(status, "200");
    for line in metrics.lines() {
        assert!(line == "# EOF" || is_metric(line), "{line:?}");
    }
    for line in [
        "kafka_server_brokertopicmetrics_messagesin_total 3",
        "kafka_server_brokertopicmetrics_messagesin_total{topic=\"orders\"} 3",
        &format!("kafka_server_brokertopicmetrics_bytesin_total{{topic=\"orders\"}} {}", 3 * batch),
        &format!(
            "kafka_server_brokertopicmetrics_bytesout_total{{topic=\"orders\"}} {}",
            3 * batch
        ),
        &format!("kafka_log_log_size{{topic=\"orders\",partition=\"0\"}} {}", 3 * batch),
        "kafka_topic_partition_current_offset{topic=\"orders\",partition=\"0\"} 3",
        "kafka_server_replicamanager_underreplicatedpartitions 0",
        "kafka_consumergroup_lag{consumergroup=\"readers\",topic=\"orders\",partition=\"0\"} 2",
        "kafka_consumergroup_lag_sum{consumergroup=\"readers\",topic=\"orders\"} 2",
        "kafka_coordinator_group_groupmetadatamanager_numgroups 1",
        "kafka_controller_kafkacontroller_offlinepartitionscount 0",
        "kafka_controller_controllerstats_uncleanleaderelections_total 0",
        "kafka_server_raftmetrics_current_state{current_state=\"leader\"} 1",
        "kafka_server_raftmetrics_current_leader 1",
        "kafka_server_raftmetrics_current_vote 1",
        "kafka_network_requestmetrics_requests_total{request=\"Produce\"} 4",
        "kafka_network_requestmetrics_errors_total{request=\"Produce\",error=\"UNKNOWN_TOPIC_OR_PARTITION\"} \
         1",
        "kafka_network_requestmetrics_errors_total{request=\"Metadata\",error=\"INVALID_TOPIC_EXCEPTION\"} \
         1",
        "kafka_server_socket_server_metrics_connection_count 1",
        "kafka_server_replicamanager_partitioncount 3",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    assert_eq!(http_get(port, "/livez").0, "200", "after everything that came before");
}

#[test]
fn a_broker_tells_who_it_is_and_an_empty_disk_does_not_pass_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let config = format!("admin.listener=127.0.0.1:{port}\ncluster.id=events");
    let broker = Broker::start(dir.path(), &config);
    let identity =
        || -> serde_json::Value { serde_json::from_str(&http_get(port, "/identity").1).unwrap() };
    let first = identity();
    assert_eq!((&first["cluster.id"], &first["node.id"]), (&"events".into(), &1.into()));
    let id = first["directories"][0]["directory.id"].as_str().unwrap().to_owned();
    drop(broker);

    let broker = Broker::start(dir.path(), &format!("{config}\nexpected.directory.ids={id}"));
    assert_eq!(identity(), first);
    drop(broker);
    std::fs::remove_dir_all(dir.path().join("data")).unwrap();
    let refused = refusal(&mut command(&dir.path().join("server.properties")));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned()
        + &String::from_utf8_lossy(&refused.stdout);
    assert!(
        said.contains("is empty, but")
            && said.contains(&id)
            && said.contains("expected.directory.ids"),
        "{said}"
    );
    assert!(!dir.path().join("data").exists());
}

/// As when a device holds up a write of each of them. A probe took a healthy broker for dead.
#[test]
fn probes_are_answered_while_all_threads_of_clients_are_held_up() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let config = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@localhost:9093\n\
         controller.listener.names=CONTROLLER\nlog.dirs={}\nadmin.listener=127.0.0.1:{port}\n\
         listeners=PLAINTEXT://127.0.0.1:{},CONTROLLER://127.0.0.1:9093\n",
        dir.path().join("data").display(),
        free_port(),
    );
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let config = Config::parse(&config).unwrap();
    let start = Node::start(Env::real(), config, std::future::pending());
    let broker = runtime.block_on(start).unwrap().unwrap();
    let (hold, held) = std::sync::mpsc::channel();
    let goes_on: Vec<_> = (0..2)
        .map(|_| {
            let (goes_on, wait) = std::sync::mpsc::channel::<()>();
            let hold = hold.clone();
            runtime.spawn(async move {
                hold.send(()).unwrap();
                wait.recv().unwrap_err();
            });
            goes_on
        })
        .collect();
    goes_on.iter().for_each(|_| held.recv_timeout(PATIENCE).unwrap());
    for path in ["/livez", "/readyz", "/identity"] {
        assert_eq!(http_get(port, path).0, "200", "{path}");
    }
    drop(goes_on);
    runtime.block_on(broker.shutdown()).unwrap();
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "its thread has ended");
}

/// docs/openapi.json.
struct Description(Value);

impl Description {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
        Self(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
    }

    /// Each method and path with each status that it is answered with.
    fn answers(&self) -> BTreeSet<(String, String)> {
        let paths = self.0["paths"].as_object().unwrap().iter();
        let answers = paths.flat_map(|(path, methods)| {
            methods.as_object().unwrap().iter().flat_map(move |(method, described)| {
                let statuses = described["responses"].as_object().unwrap().keys();
                statuses.map(move |status| (format!("{method} {path}"), status.clone()))
            })
        });
        answers.collect()
    }

    /// That `value` has what `schema` says, and nothing else.
    fn check(&self, schema: &Value, value: &Value, at: &str) {
        let of = |schema: &Value| schema["$ref"].as_str().map(|at| at[1..].to_owned());
        if value.is_null() && schema["anyOf"][1]["type"] == "null" {
            return;
        }
        let of_either = || of(&schema["anyOf"][0]);
        if let Some(pointer) = of(schema).or_else(|| of(&schema["allOf"][0])).or_else(of_either) {
            return self.check(self.0.pointer(&pointer).unwrap(), value, at);
        }
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let may_be = |types: &Value| *types == kind || types[0] == kind || types[1] == kind;
        assert!(may_be(&schema["type"]), "{at}: {value} is no {}", schema["type"]);
        for (n, one) in value.as_array().into_iter().flatten().enumerate() {
            self.check(&schema["items"], one, &format!("{at}[{n}]"));
        }
        let Some(fields) = value.as_object() else { return };
        for (name, field) in fields {
            let described = &schema["properties"][name];
            assert!(described.is_object(), "{at}.{name} is not described");
            assert!(described["description"].is_string(), "{at}.{name} has no description");
            self.check(described, field, &format!("{at}.{name}"));
        }
        for name in schema["required"].as_array().unwrap() {
            assert!(fields.contains_key(name.as_str().unwrap()), "{at} has no {name}");
        }
    }

    /// Asks with GET or another method that comes first, and compares the answer; its JSON, if it
    /// is some.
    fn ask(&self, port: u16, asked: &str) -> (String, Value) {
        let (method, asked) = asked.split_once(' ').unwrap_or(("get", asked));
        let line = format!("{} {asked} HTTP/1.1\r\n", method.to_uppercase());
        let head = format!("{line}Host: broker\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let answer = http(port, head.as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let (status, path) = (head.split(' ').nth(1).unwrap(), asked.split('?').next().unwrap());
        let described = &self.0["paths"][path][method]["responses"][status]["content"];
        let described = described.as_object().unwrap_or_else(|| panic!("{asked}: {answer}"));
        let (content, schema) = described.iter().next().unwrap();
        assert!(head.contains(&format!("content-type: {}", content)), "{asked}: {head}");
        let value = match content.as_str() {
            "application/json" => serde_json::from_str(body).unwrap(),
            _ => Value::String(body.to_owned()),
        };
        self.check(&schema["schema"], &value, asked);
        (status.to_owned(), value)
    }
}

#[test]
fn each_answer_is_as_its_description_says_and_nothing_else_is_served() {
    let (dir, described) = (tempfile::tempdir().unwrap(), Description::read());
    let port = free_port();
    let broker = Broker::start(dir.path(), &format!("admin.listener=127.0.0.1:{port}"));
    let mut client = broker.connect();
    assert_eq!(ask_for_topic(&mut client, "orders"), 0);
    // One that waits for the others of its cluster.
    let (alone, waiting) = (tempfile::tempdir().unwrap(), free_port());
    let voters = [1, 2, 3].map(|id| format!("{id}@127.0.0.1:{}", free_port())).join(",");
    let own = voters.split(',').next().unwrap().replace("1@", "CONTROLLER://");
    let file = alone.path().join("server.properties");
    let text = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters={voters}\n\
         controller.listener.names=CONTROLLER\n\
         listeners=PLAINTEXT://127.0.0.1:{},{own}\nlog.dirs={}\n\
         admin.listener=127.0.0.1:{waiting}\n",
        free_port(),
        alone.path().join("data").display(),
    );
    std::fs::write(&file, text).unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], waiting));
    let other = Broker::begin(command(&file), file, Vec::new(), address);
    let begun = std::time::Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", waiting)).is_err() {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::yield_now();
    }

    const VERDICT: &str = "/lifecycle/restart-verdict";
    let of = |brokers: &str| format!("{VERDICT}?brokers={brokers}");
    const LEASE: &str = "/lifecycle/restart-lease";
    let take = |holder: &str, brokers: &str| {
        format!("post {LEASE}?holder={holder}&brokers={brokers}&seconds=60")
    };
    let mut seen = BTreeSet::new();
    for (port, asked, expected) in [
        (port, "/livez".to_owned(), "200"),
        (port, "/readyz".to_owned(), "200"),
        (waiting, "/readyz".to_owned(), "503"),
        (port, "/metrics".to_owned(), "200"),
        (waiting, "/metrics".to_owned(), "503"),
        (port, "/identity".to_owned(), "200"),
        (waiting, "/identity".to_owned(), "503"),
        (port, of("1"), "200"),
        (port, of("one"), "400"),
        (port, VERDICT.to_owned(), "400"),
        (port, of("1,7"), "404"),
        (waiting, of("1"), "503"),
        (port, "/lifecycle/caught-up".to_owned(), "200"),
        (port, "/lifecycle/caught-up?all".to_owned(), "400"),
        (port, "/lifecycle/caught-up?brokers=1&since-epoch=0".to_owned(), "200"),
        (waiting, "/lifecycle/caught-up".to_owned(), "503"),
        (port, take("a", "1"), "200"),
        (port, take("b", "1"), "409"),
        (port, take("b", "7"), "404"),
        (port, take("two%20words", "1"), "400"),
        (port, format!("post {LEASE}?holder=a"), "400"),
        (port, format!("post {LEASE}?holder=a&brokers=1&seconds=0"), "400"),
        (waiting, take("a", "1"), "503"),
        (port, of("1"), "200"),
        (port, format!("delete {LEASE}?holder=a"), "200"),
        (port, format!("delete {LEASE}"), "400"),
        (waiting, format!("delete {LEASE}?holder=a"), "503"),
    ] {
        let (status, _) = described.ask(port, &asked);
        assert_eq!(status, expected, "{asked}");
        let path = asked.split('?').next().unwrap();
        let method = if path.starts_with('/') { "get " } else { "" };
        seen.insert((format!("{method}{path}"), status));
    }
    drop(other);
    assert_eq!(seen, described.answers(), "each is seen, and no other one");
    let (_, verdict) = described.ask(port, &of("1"));
    assert_eq!(verdict["safe"], true, "{verdict}");
    let single =
        serde_json::json!({"count": 1, "partitions": [{"topic": "orders", "partition": 0}]});
    assert_eq!(verdict["singleReplica"], single);
    let voters = serde_json::json!({"count": 1, "needed": 1, "left": 0, "kept": true});
    assert_eq!(verdict["voters"], voters);
    // Every path in the source is described.
    let source = include_str!("../../broker/src/server/admin_http.rs");
    let (source, _) = source.split_once("#[cfg(test)]").unwrap();
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    let routes = code.flat_map(|line| line.split('"').skip(1).step_by(2));
    let routes: BTreeSet<_> =
        routes.filter(|text| text.starts_with('/')).map(str::to_owned).collect();
    let path_of = |asked: String| asked.split(' ').nth(1).unwrap().to_owned();
    let paths: BTreeSet<_> =
        described.answers().into_iter().map(|(asked, _)| path_of(asked)).collect();
    assert_eq!(routes, paths);
    // The same as a command.
    let admin = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_letterbox"));
        command.arg("admin").args(arguments);
        command.args(["--admin-listener", &format!("127.0.0.1:{port}")]).output().unwrap()
    };
    let said = admin(&["verdict", "--brokers", "1"]);
    let note = "safe\nnote: partitions with one replica have no leader meanwhile: orders-0\n";
    let note = format!("{note}epoch: {}\n", verdict["epoch"]);
    assert_eq!((said.status.code(), &*String::from_utf8_lossy(&said.stdout)), (Some(0), &*note));
    let said = admin(&["verdict", "--brokers", "1", "--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&said.stdout).unwrap(), verdict);
    let said = admin(&["verdict", "--brokers", "7"]);
    assert_eq!(said.status.code(), Some(1));
    let error = String::from_utf8_lossy(&said.stderr);
    assert!(error.contains("Broker ID 7 is not currently registered"), "{error}");
    assert_eq!(admin(&["verdict"]).status.code(), Some(2));
    let said = admin(&["caught-up"]);
    let words = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!((said.status.code(), &*words), (Some(0), "broker 1: caught up\n"));
    let said = admin(&["caught-up", "--brokers", "1,7"]);
    let words = String::from_utf8_lossy(&said.stdout).into_owned();
    let expected = "broker 1: caught up\nbroker 7: not caught up\n  it is not registered\n";
    assert_eq!((said.status.code(), &*words), (Some(3), expected));
    // The broker of before its restart is told apart from the one after it.
    for (since_epoch, code) in [(verdict["epoch"].as_i64().unwrap(), 3), (0, 0)] {
        let said = admin(&["caught-up", "--since-epoch", &since_epoch.to_string()]);
        assert_eq!(said.status.code(), Some(code), "{since_epoch}");
    }
    leases_as_commands(&described, port, &admin);
}

/// As a person takes them; one that nobody gives back is over after its time.
fn leases_as_commands(
    described: &Description,
    port: u16,
    admin: &dyn Fn(&[&str]) -> std::process::Output,
) {
    let said = |arguments: &[&str]| {
        let output = admin(arguments);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let one = ["restart-lease", "--brokers", "1", "--holder"];
    let (code, words) = said(&[&one[..], &["me", "--seconds", "30"]].concat());
    assert_eq!((code, words.lines().next()), (Some(0), Some("granted for 30 s")), "{words}");
    let (code, words) = said(&[&one[..], &["you"]].concat());
    assert_eq!((code, &*words), (Some(3), "refused\n  me has the restart lease of broker 1\n"));
    let release = ["restart-lease", "--release", "--holder", "me"];
    assert_eq!(said(&release), (Some(0), "released\n".to_owned()));
    assert_eq!(said(&release), (Some(0), "me has no restart lease\n".to_owned()));
    assert_eq!(said(&["restart-lease", "--holder", "me"]).0, Some(2));
    let asked = "post /lifecycle/restart-lease?holder=me&brokers=1&seconds=1";
    let (_, granted) = described.ask(port, asked);
    assert_eq!((&granted["secondsLeft"], &granted["leadsLeft"]), (&1.into(), &0.into()));
    let begun = std::time::Instant::now();
    while said(&[&one[..], &["you"]].concat()).0 != Some(0) {
        assert!(begun.elapsed() < PATIENCE);
    }
}
