//! Settings of brokers, topics and groups as tools read and change them while the broker runs.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

mod common;

use std::net::TcpStream;

use common::{Broker, PATIENCE, ask, ask_for_topic, is_closed};
use kafka_protocol::messages as m;
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::Response;

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const GROUP: i8 = 32;
const SET: i8 = 0;
const DELETE: i8 = 1;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// The error code of one change.
fn change(
    stream: &mut TcpStream,
    kind: i8,
    name: &str,
    key: &str,
    op: i8,
    value: Option<&str>,
) -> i16 {
    use m::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
    let config = AlterableConfig::default()
        .with_name(text(key))
        .with_config_operation(op)
        .with_value(value.map(text));
    let resource = AlterConfigsResource::default()
        .with_resource_type(kind)
        .with_resource_name(text(name))
        .with_configs(vec![config]);
    let Response::IncrementalAlterConfigs(answer) =
        ask(stream, 1, m::IncrementalAlterConfigsRequest::default().with_resources(vec![resource]))
    else {
        unreachable!()
    };
    answer.responses[0].error_code
}

/// The old call: everything that is set afterwards.
fn replace(
    stream: &mut TcpStream,
    version: i16,
    kind: i8,
    name: &str,
    configs: &[(&str, &str)],
) -> i16 {
    use m::alter_configs_request::{AlterConfigsResource, AlterableConfig};
    let configs = configs.iter().map(|(key, value)| {
        AlterableConfig::default().with_name(text(key)).with_value(Some(text(value)))
    });
    let resource = AlterConfigsResource::default()
        .with_resource_type(kind)
        .with_resource_name(text(name))
        .with_configs(configs.collect());
    let Response::AlterConfigs(answer) =
        ask(stream, version, m::AlterConfigsRequest::default().with_resources(vec![resource]))
    else {
        unreachable!()
    };
    answer.responses[0].error_code
}

fn describe(
    stream: &mut TcpStream,
    kind: i8,
    name: &str,
) -> Vec<m::describe_configs_response::DescribeConfigsResourceResult> {
    use m::describe_configs_request::DescribeConfigsResource;
    let resource = DescribeConfigsResource::default()
        .with_resource_type(kind)
        .with_resource_name(text(name))
        .with_configuration_keys(None);
    let request = m::DescribeConfigsRequest::default()
        .with_resources(vec![resource])
        .with_include_synonyms(true)
        .with_include_documentation(true);
    let Response::DescribeConfigs(mut answer) = ask(stream, 4, request) else { unreachable!() };
    let result = answer.results.remove(0);
    assert_eq!(result.error_code, 0, "{:?}", result.error_message);
    result.configs
}

/// Value, source, and the sources of the synonyms of one key.
fn value(stream: &mut TcpStream, kind: i8, name: &str, key: &str) -> (String, i8, Vec<i8>) {
    let config = describe(stream, kind, name)
        .into_iter()
        .find(|config| config.name.as_str() == key)
        .unwrap();
    let sources = config.synonyms.iter().map(|synonym| synonym.source).collect();
    (
        config.value.map_or_else(String::new, |value| value.as_str().to_owned()),
        config.config_source,
        sources,
    )
}

fn found(value: &str, source: i8, synonyms: &[i8]) -> (String, i8, Vec<i8>) {
    (value.to_owned(), source, synonyms.to_vec())
}

#[test]
fn broker_settings_change_while_it_runs_and_outlive_a_restart() {
    const KEY: &str = "log.retention.bytes";
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "log.retention.bytes=4000");
    let mut stream = broker.connect();
    let s = &mut stream;
    assert_eq!(ask_for_topic(s, "orders"), 0);
    assert_eq!(value(s, BROKER, "1", KEY), found("4000", 4, &[4, 5]));
    assert!(describe(s, BROKER, "").is_empty());

    // For all brokers, then for this one: the nearer wins, and topics inherit it.
    assert_eq!(change(s, BROKER, "", KEY, SET, Some("3000")), 0);
    assert_eq!(value(s, BROKER, "1", KEY), found("3000", 3, &[3, 4, 5]));
    assert_eq!(value(s, BROKER, "", KEY), found("3000", 3, &[3]));
    assert_eq!(change(s, BROKER, "1", KEY, SET, Some("2000")), 0);
    assert_eq!(value(s, BROKER, "1", KEY), found("2000", 2, &[2, 3, 4, 5]));
    assert_eq!(value(s, TOPIC, "orders", "retention.bytes"), found("2000", 2, &[2, 3, 4, 5]));
    assert_eq!(change(s, TOPIC, "orders", "retention.bytes", SET, Some("1000")), 0);
    assert_eq!(value(s, TOPIC, "orders", "retention.bytes"), found("1000", 1, &[1, 2, 3, 4, 5]));

    let broker = broker.kill_and_restart();
    let s = &mut broker.connect();
    assert_eq!(value(s, BROKER, "1", KEY), found("2000", 2, &[2, 3, 4, 5]));
    assert_eq!(change(s, BROKER, "1", KEY, DELETE, None), 0);
    assert_eq!(change(s, BROKER, "", KEY, DELETE, None), 0);
    assert_eq!(value(s, BROKER, "1", KEY), found("4000", 4, &[4, 5]));

    // INVALID_REQUEST for what needs a restart, INVALID_CONFIG for what is wrong.
    for (key, given, code) in [
        ("num.partitions", "3", 42),
        ("ssl.keystore.location", "/x", 42),
        (KEY, "many", 40),
        ("no.such.key", "1", 40),
        ("num.io.threads", "9", 0),
    ] {
        assert_eq!(change(s, BROKER, "1", key, SET, Some(given)), code, "{key}={given}");
    }
    for (key, given) in
        [("log.cleaner.min.compaction.lag.ms", "6"), ("log.cleaner.max.compaction.lag.ms", "5")]
    {
        let code = change(s, BROKER, "", key, SET, Some(given));
        assert_eq!(code, if given == "5" { 40 } else { 0 }, "the two contradict one another");
    }

    // Not only shown: a second connection from this address has no place any more.
    assert_eq!(change(s, BROKER, "1", "max.connections.per.ip", SET, Some("1")), 0);
    assert!(is_closed(&mut broker.connect()));
    assert_eq!(change(s, BROKER, "1", "max.connections.per.ip", SET, Some("9")), 0);
    let mut second = broker.connect();
    assert_eq!(ask_for_topic(&mut second, "orders"), 0);
}

#[test]
fn the_old_call_replaces_all_that_is_set() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let s = &mut broker.connect();
    assert_eq!(ask_for_topic(s, "orders"), 0);
    for version in 0..=2 {
        assert_eq!(
            replace(s, version, TOPIC, "orders", &[("retention.ms", "5"), ("preallocate", "true")]),
            0
        );
        assert_eq!(value(s, TOPIC, "orders", "retention.ms").1, 1);
        assert_eq!(replace(s, version, TOPIC, "orders", &[("cleanup.policy", "")]), 0);
        assert_eq!(value(s, TOPIC, "orders", "retention.ms").1, 5, "v{version}");
        assert_eq!(value(s, TOPIC, "orders", "cleanup.policy"), found("", 1, &[1, 5]));
        assert_eq!(replace(s, version, TOPIC, "nowhere", &[]), 3);
        assert_eq!(replace(s, version, TOPIC, "orders", &[("remote.storage.enable", "true")]), 40);
        assert_eq!(replace(s, version, BROKER, "1", &[("log.retention.ms", "5000")]), 0);
        assert_eq!(replace(s, version, BROKER, "1", &[]), 0);
        assert_eq!(value(s, BROKER, "1", "log.retention.ms").1, 5);
    }
}

/// As a mirror and an infrastructure tool do: every key is read and written back, on the topic and
/// on another one.
#[test]
fn what_is_described_can_be_written_back() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let s = &mut broker.connect();
    assert_eq!((ask_for_topic(s, "orders"), ask_for_topic(s, "copy")), (0, 0));
    for (key, given) in [
        ("unclean.leader.election.enable", "true"),
        ("segment.jitter.ms", "7"),
        ("local.retention.ms", "1000"),
    ] {
        assert_eq!(change(s, TOPIC, "orders", key, SET, Some(given)), 0, "{key}");
    }
    let all: Vec<(String, String)> = describe(s, TOPIC, "orders")
        .into_iter()
        .map(|config| (config.name.as_str().to_owned(), config.value.unwrap().as_str().to_owned()))
        .collect();
    assert!(all.len() >= 34, "{all:?}");
    let pairs: Vec<(&str, &str)> =
        all.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(replace(s, 2, TOPIC, "copy", &pairs), 0);
    let copied = describe(s, TOPIC, "copy")
        .into_iter()
        .map(|config| (config.name.as_str().to_owned(), config.value.unwrap().as_str().to_owned()));
    assert_eq!(copied.collect::<Vec<_>>(), all);
    for (key, _) in &all {
        assert_eq!(change(s, TOPIC, "copy", key, DELETE, None), 0, "{key}");
    }
}

#[test]
fn groups_keep_their_settings_and_resources_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let s = &mut broker.connect();
    assert_eq!(ask_for_topic(s, "orders"), 0);
    let list = |s: &mut TcpStream, version: i16, types: &[i8]| {
        let request = m::ListConfigResourcesRequest::default().with_resource_types(types.to_vec());
        let Response::ListConfigResources(answer) = ask(s, version, request) else {
            unreachable!()
        };
        let all = answer
            .config_resources
            .into_iter()
            .map(|one| (one.resource_type, one.resource_name.as_str().to_owned()));
        (answer.error_code, all.collect::<Vec<_>>())
    };
    assert_eq!(value(s, GROUP, "billing", "consumer.session.timeout.ms"), found("45000", 5, &[5]));
    assert_eq!(list(s, 1, &[GROUP]), (0, vec![]));
    assert_eq!(change(s, GROUP, "billing", "consumer.session.timeout.ms", SET, Some("46000")), 0);
    assert_eq!(
        change(s, GROUP, "billing", "consumer.session.timeout.ms", SET, Some("1")),
        40,
        "below the broker's bound"
    );
    assert_eq!(change(s, GROUP, "billing", "nope", SET, Some("1")), 40);
    assert_eq!(change(s, GROUP, "", "consumer.session.timeout.ms", SET, Some("46000")), 42);
    let broker = broker.kill_and_restart();
    let s = &mut broker.connect();
    assert_eq!(
        value(s, GROUP, "billing", "consumer.session.timeout.ms"),
        found("46000", 8, &[8, 5])
    );
    let named = |kind: i8, name: &str| (kind, name.to_owned());
    assert_eq!(
        list(s, 1, &[]),
        (0, vec![named(TOPIC, "orders"), named(BROKER, "1"), named(GROUP, "billing")])
    );
    assert_eq!(list(s, 1, &[TOPIC, TOPIC]), (0, vec![named(TOPIC, "orders")]));
    assert_eq!(list(s, 1, &[7]).0, 35, "UNSUPPORTED_VERSION");
    assert_eq!(list(s, 0, &[]), (0, vec![]), "client metrics alone");
    assert_eq!(change(s, GROUP, "billing", "consumer.session.timeout.ms", DELETE, None), 0);
    assert_eq!(list(s, 1, &[GROUP]), (0, vec![]));
}

/// Every key of Kafka 4.3.1 is known, whether or not anything acts on it; a bounded answer for a
/// repeated question.
#[test]
fn every_key_is_described_once() {
    use m::describe_configs_request::DescribeConfigsResource;
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let s = &mut broker.connect();
    let all = describe(s, BROKER, "1");
    assert!(all.len() >= 340, "{}", all.len());
    for (key, kind, read_only) in [
        ("log.cleaner.backoff.ms", 5, false),
        ("offsets.topic.replication.factor", 4, true),
        ("ssl.key.password", 9, true),
    ] {
        let config = all.iter().find(|config| config.name.as_str() == key).unwrap();
        assert_eq!(
            (config.config_type, config.read_only, config.is_sensitive),
            (kind, read_only, kind == 9),
            "{key}"
        );
    }
    let resource = DescribeConfigsResource::default()
        .with_resource_type(BROKER)
        .with_resource_name(text("1"))
        .with_configuration_keys(None);
    let request = m::DescribeConfigsRequest::default().with_resources(vec![resource; 1000]);
    let Response::DescribeConfigs(answer) = ask(s, 4, request) else { unreachable!() };
    assert_eq!(answer.results.len(), 1);
}

#[test]
fn a_file_for_kafka_starts_with_warnings_and_any_text_is_a_cluster_id() {
    let dir = tempfile::tempdir().unwrap();
    let extra = "cluster.id=my dev: \
        cluster\nnum.partition=3\nzookeeper.connect=\nmin.in.sync.replicas=1\nmetric.reporters=a.B\nconfluent.license.topic=x\ngroup.id=a\nnum.recovery.threads.per.data.dir=\ngroup.min.session.timeout.ms=0\n#\u{e9}";
    let broker = Broker::start(dir.path(), extra).stop_and_restart();
    let s = &mut broker.connect();
    s.set_read_timeout(Some(PATIENCE)).unwrap();
    let Response::DescribeCluster(answer) = ask(s, 0, m::DescribeClusterRequest::default()) else {
        unreachable!()
    };
    assert_eq!(answer.cluster_id.as_str(), "my dev: cluster");
}
