//! server.properties of one broker.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use letterbox_client::properties::{escape_key, escape_value};
use letterbox_env::{Gather, join_address, split_address};

use super::{BrokerConfig, BrokerFacts, knows, tag_of};
use crate::api::{KafkaClusterSpec, Listener, ListenerType, nanos_of};

/// A host and a port that clients are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
}

/// A host that clients are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name or address that is known now.
    Named(String),
    /// The node that the broker will run on, known only when its container starts.
    Node,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = match &self.host {
            Host::Named(host) => host,
            Host::Node => "$(HOST_IP)",
        };
        f.write_str(&join_address(host, self.port))
    }
}

/// The listener that brokers and the operator use: the first internal one.
#[must_use]
pub fn internal_listener(listeners: &[Listener]) -> Option<&Listener> {
    listeners.iter().find(|listener| listener.type_ == ListenerType::Internal)
}

/// Builds the configuration; names the listeners whose addresses are not known yet and which it
/// does without.
pub(super) fn build(
    spec: &KafkaClusterSpec,
    id: i32,
    facts: &BrokerFacts,
    voters: &str,
    cluster_id: Option<&str>,
    image: &str,
) -> (BrokerConfig, Vec<String>) {
    let Addresses { listeners, advertised, protocols, on_node, unknown } = addresses(spec, facts);
    // What the user set comes first, in key order; what the operator owns is put over it.
    let mut keys: BTreeMap<&str, String> =
        spec.config.iter().map(|(key, value)| (key.as_str(), value.clone())).gather();
    if spec.replicas > 1 {
        // What several brokers are for; the spec may say otherwise.
        keys.insert("default.replication.factor", spec.default_replication());
        keys.entry("min.insync.replicas").or_insert_with(|| "2".to_owned());
        // A broker that is to go on without its metadata log, as a person accepted, votes again.
        keys.entry("controller.quorum.auto.join.enable").or_insert_with(|| "true".to_owned());
    }
    keys.insert("process.roles", "broker,controller".to_owned());
    keys.insert("node.id", id.to_string());
    if let Some(cluster_id) = cluster_id {
        keys.insert("cluster.id", cluster_id.to_owned());
    }
    keys.insert("controller.quorum.voters", voters.to_owned());
    keys.insert("controller.listener.names", "CONTROLLER".to_owned());
    keys.insert("listeners", listeners);
    keys.insert("listener.security.protocol.map", protocols);
    if let Some(listener) = internal_listener(&spec.listeners) {
        keys.insert("inter.broker.listener.name", kafka_name(listener));
    }
    let log_dirs: Vec<&str> = facts.volumes.iter().map(|place| place.log_dir.as_str()).collect();
    keys.insert("log.dirs", log_dirs.join(","));
    // The operator tells what is missing, and a person decides; a process that ended says nothing.
    if knows(image, [0, 1, 0]) && facts.admin_bind.is_none() {
        keys.insert("missing.directories.wait.enable", "true".to_owned());
    }
    if let Some((host, port)) = &facts.admin_bind {
        keys.insert("admin.listener", format!("{host}:{port}"));
    }
    let mut overrides = Vec::new();
    if on_node {
        overrides.push(format!("advertised.listeners={advertised}"));
    } else {
        keys.insert("advertised.listeners", advertised);
    }
    let remembered = [
        ("expected.directory.ids", [0, 1, 0], facts.directory_ids.clone()),
        ("accepted.lost.directory.ids", [0, 1, 0], facts.given_up.clone()),
        ("accepted.lost.metadata.log", [0, 1, 0], facts.begins_anew.iter().cloned().collect()),
    ];
    // With config.strict, a broker that does not know a key does not start.
    let known = remembered.iter().filter(|(_, since, _)| knows(image, *since));
    let set = known.filter(|(_, _, value)| !value.is_empty());
    overrides.extend(set.map(|(key, _, value)| format!("{key}={}", value.join(","))));

    let mut properties = String::from(
        "# Made by the Letterbox operator from the KafkaCluster; edits are put back.\n",
    );
    for (key, value) in keys {
        // Writing to a string cannot fail.
        let _ = writeln!(properties, "{}={}", escape_key(key), escape_value(&value));
    }
    let revision = fingerprint(std::iter::once(&properties).chain(&overrides));
    let file_revision = fingerprint(std::iter::once(&properties));
    (BrokerConfig { properties, overrides, file_revision, revision }, unknown)
}

/// Where a broker listens and what clients are told, as its configuration says it.
struct Addresses {
    listeners: String,
    advertised: String,
    protocols: String,
    /// Whether clients are told the address of the node that the broker runs on.
    on_node: bool,
    /// Listeners whose addresses are not known yet.
    unknown: Vec<String>,
}

fn addresses(spec: &KafkaClusterSpec, facts: &BrokerFacts) -> Addresses {
    let (mut listeners, mut advertised, mut protocols) = (Vec::new(), Vec::new(), Vec::new());
    let (mut on_node, mut unknown) = (false, Vec::new());
    for listener in &spec.listeners {
        let Some(Some(address)) = facts.advertised.get(&listener.name) else {
            unknown.push(listener.name.clone());
            continue;
        };
        let name = kafka_name(listener);
        let port = u16::try_from(listener.port).unwrap_or_default();
        let (host, port) = facts.bind.get(&listener.name).cloned().unwrap_or((String::new(), port));
        listeners.push(format!("{name}://{host}:{port}"));
        on_node |= address.host == Host::Node;
        advertised.push(format!("{name}://{address}"));
        protocols.push(format!("{name}:PLAINTEXT"));
    }
    protocols.push("CONTROLLER:PLAINTEXT".to_owned());
    listeners.push(format!("CONTROLLER://{}:{}", facts.quorum_bind.0, facts.quorum_bind.1));
    Addresses {
        listeners: listeners.join(","),
        advertised: advertised.join(","),
        protocols: protocols.join(","),
        on_node,
        unknown,
    }
}

/// The fingerprint of what the spec asks of a broker and a running one does not take up. Of the
/// listeners, those count whose addresses are known. Nothing that the operator adds by itself is in
/// it, so that upgrading the operator restarts nobody.
pub(super) fn asked(spec: &KafkaClusterSpec, image: &str, facts: &BrokerFacts) -> String {
    // Where a version comes from, the spec does not say.
    let version = tag_of(image).filter(|_| spec.image.is_none());
    let mut texts = vec![match version {
        Some(version) => format!("version={version}"),
        None => format!("image={image}"),
    }];
    texts.extend(spec.config.iter().map(|(key, value)| format!("config.{key}={value}")));
    for listener in &spec.listeners {
        if let Some(Some(address)) = facts.advertised.get(&listener.name) {
            let type_ = match listener.type_ {
                ListenerType::Internal => "Internal",
                ListenerType::Nodeport => "Nodeport",
            };
            texts.push(format!("listener.{}={type_} {} {address}", listener.name, listener.port));
        }
    }
    // Every broker has the first one.
    texts.extend(facts.volumes.iter().skip(1).map(|place| format!("volume={}", place.name)));
    for (name, amounts) in
        [("requests", &spec.resources.requests), ("limits", &spec.resources.limits)]
    {
        // `1000m` and `1` are the same.
        let amount =
            |text: &str| nanos_of(text).map_or_else(|| text.to_owned(), |nanos| nanos.to_string());
        texts.extend(
            amounts
                .iter()
                .map(|(resource, quantity)| format!("{name}.{resource}={}", amount(&quantity.0))),
        );
    }
    fingerprint(texts.iter())
}

/// The address of `listener` in a text that has `advertised.listeners=` in it: what a broker was
/// given earlier.
#[must_use]
pub fn advertised_in(text: &str, listener: &Listener) -> Option<Address> {
    let (_, list) = text.split_once("advertised.listeners=")?;
    let mut entries = list.lines().next()?.split(',');
    let address =
        entries.find_map(|entry| entry.strip_prefix(&format!("{}://", kafka_name(listener))))?;
    let (host, port) = split_address(address)?;
    let host = match host {
        "$(HOST_IP)" => Host::Node,
        host => Host::Named(host.to_owned()),
    };
    Some(Address { host, port })
}

fn kafka_name(listener: &Listener) -> String {
    listener.name.to_ascii_uppercase()
}

/// FNV-1a over 128 bits: told apart are two configurations of one broker, nobody attacks it.
pub(crate) fn fingerprint<'a>(texts: impl Iterator<Item = &'a String>) -> String {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for text in texts {
        for byte in text.bytes().chain([0xff]) {
            hash =
                (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }
    format!("{hash:032x}")
}

#[cfg(test)]
mod tests {
    use super::super::VolumePlace;
    use super::*;

    fn place(name: &str) -> VolumePlace {
        VolumePlace { name: name.to_owned(), log_dir: format!("/{name}/kafka-log") }
    }

    fn facts() -> BrokerFacts {
        let named = |host: &str, port| Some(Address { host: Host::Named(host.to_owned()), port });
        BrokerFacts {
            volumes: vec![place("data")],
            bind: BTreeMap::new(),
            advertised: BTreeMap::from([("plain".to_owned(), named("demo-broker-0.ns.svc", 9092))]),
            quorum: ("demo-broker-0.ns.svc".into(), 9090),
            quorum_bind: (String::new(), 9090),
            admin_bind: None,
            directory_ids: Vec::new(),
            given_up: Vec::new(),
            begins_anew: None,
            claim_templates: None,
        }
    }

    #[test]
    fn a_value_cannot_smuggle_in_another_key() {
        let mut spec = KafkaClusterSpec::default();
        spec.config.insert("a\nnode.id".to_owned(), "1\nnode.id=7".to_owned());
        spec.config.insert("node.id".to_owned(), "9".to_owned());
        let (config, _) = build(&spec, 0, &facts(), "0@demo-broker-0.ns.svc:9090", None, "i:1");
        let lines: Vec<&str> =
            config.properties.lines().filter(|line| line.starts_with("node.id=")).collect();
        assert_eq!(lines, ["node.id=0"]);
        assert!(config.properties.contains("a\\nnode.id=1\\nnode.id=7\n"), "{}", config.properties);
    }

    #[test]
    fn several_brokers_keep_several_replicas_unless_the_spec_says_otherwise() {
        let properties = |spec: &KafkaClusterSpec| build(spec, 0, &facts(), "v", None, "i:1").0;
        let mut spec = KafkaClusterSpec::default();
        assert!(!properties(&spec).properties.contains("replica"));
        spec.replicas = 3;
        spec.config.insert("min.insync.replicas".to_owned(), "1".to_owned());
        let text = properties(&spec).properties;
        for line in ["default.replication.factor=3\n", "min.insync.replicas=1\n"] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn the_revision_follows_the_content() {
        let spec = KafkaClusterSpec::default();
        let (first, _) = build(&spec, 0, &facts(), "v", None, "i:1");
        assert_eq!(build(&spec, 0, &facts(), "v", None, "i:1").0, first);
        let mut other = spec;
        other.config.insert("num.partitions".to_owned(), "3".to_owned());
        assert_ne!(build(&other, 0, &facts(), "v", None, "i:1").0.revision, first.revision);
    }

    #[test]
    fn what_is_known_after_the_first_start_leaves_the_file_as_it_is() {
        let spec = KafkaClusterSpec::default();
        let (before, _) = build(&spec, 0, &facts(), "v", Some("-id"), "i:1");
        assert!(before.properties.contains("cluster.id=-id\n") && before.overrides.is_empty());
        let known = BrokerFacts {
            directory_ids: vec!["a".into(), "b".into()],
            given_up: vec!["c".into()],
            begins_anew: Some("c".into()),
            ..facts()
        };
        let (after, _) = build(&spec, 0, &known, "v", Some("-id"), "i:1");
        assert_eq!(
            (&after.properties, &after.file_revision),
            (&before.properties, &before.file_revision)
        );
        let (expected, given_up) = ("expected.directory.ids=a,b", "accepted.lost.directory.ids=c");
        assert_eq!(after.overrides, [expected, given_up, "accepted.lost.metadata.log=c"]);
        let (old, _) = build(&spec, 0, &known, "v", Some("-id"), "letterbox:0.0.9");
        assert!(old.overrides.is_empty(), "a broker that does not know them: {:?}", old.overrides);
        assert_ne!(after.revision, before.revision);
        assert_eq!(asked(&spec, "i", &known), asked(&spec, "i", &facts()), "no restart for it");
    }

    #[test]
    fn a_restart_is_asked_for_by_the_spec_alone() {
        let spec: KafkaClusterSpec =
            serde_yaml::from_str("resources: {requests: {cpu: 1000m}}").unwrap();
        let base = asked(&spec, "a:1", &facts());
        // What an operator of another version may do differently, and the same in other words.
        let mut moved = facts();
        (moved.volumes[0].log_dir, moved.quorum.1) = ("/elsewhere".to_owned(), 9999);
        assert_ne!(
            build(&spec, 0, &moved, "v", None, "i:1").0.revision,
            build(&spec, 0, &facts(), "v", None, "i:1").0.revision
        );
        assert_eq!(asked(&spec, "a:1", &moved), base);
        let same: KafkaClusterSpec =
            serde_yaml::from_str("resources: {requests: {cpu: 1}}").unwrap();
        assert_eq!(asked(&same, "a:1", &facts()), base);
        // What the user changes.
        assert_ne!(asked(&spec, "a:2", &facts()), base);
        for changed in [
            "config: {num.partitions: 3}",
            "resources: {limits: {cpu: 1}}",
            "listeners: [{name: plain, port: 9093}]",
        ] {
            assert_ne!(
                asked(&serde_yaml::from_str(changed).unwrap(), "a:1", &facts()),
                base,
                "{changed}"
            );
        }
        let mut outside = facts();
        outside
            .advertised
            .insert("plain".to_owned(), Some(Address { host: Host::Node, port: 31_000 }));
        assert_ne!(asked(&spec, "a:1", &outside), base);
        let mut larger = facts();
        larger.volumes.push(place("data-1"));
        assert_ne!(asked(&spec, "a:1", &larger), base);
        let (config, _) = build(&spec, 0, &larger, "v", None, "i:1");
        let log_dirs = "log.dirs=/data/kafka-log,/data-1/kafka-log\n";
        assert!(config.properties.contains(log_dirs), "{}", config.properties);
    }

    #[test]
    fn what_was_asked_has_the_same_fingerprint_in_every_version_of_the_operator() {
        let mut spec: KafkaClusterSpec = serde_yaml::from_str(
            "{config: {num.partitions: 3}, resources: {requests: {cpu: 1, memory: 1Gi}, limits: \
             {memory: 2Gi}}, listeners: [{name: plain, port: 9092}, {name: outside, port: 9094, \
             type: nodeport}]}",
        )
        .unwrap();
        let mut facts = facts();
        let outside = Some(Address { host: Host::Node, port: 31_000 });
        facts.advertised.insert("outside".to_owned(), outside);
        facts.volumes.push(place("data-1"));
        // Another one restarts every broker of every cluster as soon as the operator is upgraded.
        let fingerprint = "7b1866bfe686796a6891e8a3a0f2c498";
        assert_eq!(asked(&spec, "a/b:1", &facts), fingerprint);
        spec.version = Some("1".to_owned());
        assert_eq!(asked(&spec, "a/b:1", &facts), fingerprint);
        assert_eq!(asked(&spec, "elsewhere/b:1", &facts), fingerprint);
        (spec.version, spec.image) = (None, Some("a/b:1".to_owned()));
        assert_eq!(asked(&spec, "a/b:1", &facts), "5fbf3c09fb50e3c2dcc69e57e8a5fe89");
    }

    #[test]
    fn a_listener_without_an_address_is_left_out_and_a_node_is_left_to_the_start() {
        let mut spec = KafkaClusterSpec::default();
        let (before, _) = build(&spec, 0, &facts(), "v", None, "i:1");
        let mut external = spec.listeners[0].clone();
        external.name = "external".to_owned();
        external.type_ = ListenerType::Nodeport;
        external.port = 9094;
        spec.listeners.push(external);
        let mut facts = facts();
        facts.advertised.insert("external".to_owned(), None);
        // Exactly as without it: a listener that is added does not restart a broker twice.
        assert_eq!(
            build(&spec, 0, &facts, "v", None, "i:1"),
            (before.clone(), vec!["external".to_owned()])
        );
        assert_eq!(advertised_in(&before.properties, &spec.listeners[1]), None);
        assert_eq!(
            advertised_in(&before.properties, &spec.listeners[0]),
            facts.advertised["plain"]
        );
        let told = Some(Address { host: Host::Node, port: 31_000 });
        facts.advertised.insert("external".to_owned(), told.clone());
        let (config, _) = build(&spec, 0, &facts, "v", None, "i:1");
        assert_eq!(advertised_in(&config.overrides[0], &spec.listeners[1]), told);
        assert_eq!(
            config.overrides,
            ["advertised.listeners=PLAIN://demo-broker-0.ns.svc:9092,EXTERNAL://$(HOST_IP):31000"]
        );
        assert!(!config.properties.contains("advertised.listeners"));
    }
}
