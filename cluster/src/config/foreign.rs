//! Settings that people write for a broker and that are not broker keys: of clients, of topics, of
//! older Kafka, of other products. None of them has an effect, in Apache Kafka neither; the
//! sentences here say so and name what is meant.

use super::{group, keys, topic};

const ZOOKEEPER: &str = "metadata is kept by the brokers' own quorum, without ZooKeeper";
const VERSIONS: &str =
    "Kafka 4 no longer has it; there is one message format and one protocol between brokers";
const QUOTAS: &str = "Kafka 4 no longer has it; quotas are not offered by this version";
const GONE: &str = "Kafka 4 no longer has it";

/// Keys that Kafka had before 4.0, and Confluent's and others' by prefix.
const EXACT: &[(&str, &str)] = &[
    (
        "advertised.host.name",
        "Kafka 4 no longer has it; advertised.listeners says what clients connect to",
    ),
    (
        "allow.everyone.if.no.acl.found",
        "there is no authorizer in this version: everyone may do everything already",
    ),
    (
        "advertised.port",
        "Kafka 4 no longer has it; advertised.listeners says what clients connect to",
    ),
    ("broker.id.generation.enable", GONE),
    (
        "control.plane.listener.name",
        "Kafka 4 no longer has it; controller.listener.names takes its place",
    ),
    (
        "delegation.token.master.key",
        "Kafka 4 no longer has it, and this version does not authenticate clients",
    ),
    ("group.coordinator.new.enable", GONE),
    ("host.name", "Kafka 4 no longer has it; listeners says where to listen"),
    ("inter.broker.protocol.version", VERSIONS),
    ("kraft.mode", "there is no other mode: metadata is always kept by the brokers' own quorum"),
    (
        "log.message.downconversion.enable",
        "Kafka 4 no longer has it; batches are sent as they are stored",
    ),
    ("log.message.format.version", VERSIONS),
    (
        "log.message.timestamp.difference.max.ms",
        "Kafka 4 no longer has it; log.message.timestamp.before.max.ms and \
         log.message.timestamp.after.max.ms bound record timestamps",
    ),
    ("message.format.version", VERSIONS),
    ("metadata.version", "the metadata log's format is not a setting"),
    (
        "offsets.commit.required.acks",
        "Kafka 4 no longer has it; a commit is answered once it is stored",
    ),
    ("port", "Kafka 4 no longer has it; listeners says where to listen"),
    ("quota.consumer.default", QUOTAS),
    ("quota.producer.default", QUOTAS),
    ("reserved.broker.max.id", GONE),
    ("schema.registry.url", "it is a setting of Schema Registry and its clients"),
    ("unstable.api.versions.enable", "only finished versions are offered"),
    ("unstable.feature.versions.enable", "only finished versions are offered"),
];

const PREFIXES: &[(&str, &str)] = &[
    ("config.providers.", "values of the form ${provider:…} are not replaced"),
    ("confluent.", "it belongs to a component of Confluent Platform"),
    ("cruise.control.", "it belongs to Cruise Control"),
    ("kafka.rest.", "it belongs to Confluent's REST proxy"),
    (
        "listener.name.",
        "settings of single listeners are not offered by this version; the key without the prefix \
         is for all listeners",
    ),
    ("password.encoder.", "Kafka 4 no longer has it; no passwords are kept"),
    ("redpanda.", "it belongs to Redpanda"),
    ("schema.registry.", "it belongs to Schema Registry"),
    ("strimzi.", "it belongs to Strimzi"),
    ("zookeeper.", ZOOKEEPER),
];

/// Keys of producers, consumers, admin clients, Connect and Streams that brokers do not have.
const OF_CLIENTS: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "application.id",
    "auto.commit.interval.ms",
    "auto.offset.reset",
    "batch.size",
    "bootstrap.servers",
    "buffer.memory",
    "check.crcs",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "config.storage.replication.factor",
    "config.storage.topic",
    "connect.protocol",
    "default.api.timeout.ms",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.idempotence",
    "fetch.max.wait.ms",
    "fetch.min.bytes",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "heartbeat.interval.ms",
    "interceptor.classes",
    "isolation.level",
    "key.converter",
    "key.deserializer",
    "key.serializer",
    "linger.ms",
    "max.block.ms",
    "max.in.flight.requests.per.connection",
    "max.partition.fetch.bytes",
    "max.poll.interval.ms",
    "max.poll.records",
    "max.request.size",
    "metadata.max.age.ms",
    "num.stream.threads",
    "offset.flush.interval.ms",
    "offset.storage.file.filename",
    "offset.storage.replication.factor",
    "offset.storage.topic",
    "partition.assignment.strategy",
    "partitioner.class",
    "plugin.path",
    "processing.guarantee",
    "receive.buffer.bytes",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "retries",
    "retry.backoff.ms",
    "security.protocol",
    "send.buffer.bytes",
    "session.timeout.ms",
    "state.dir",
    "status.storage.replication.factor",
    "status.storage.topic",
    "transaction.timeout.ms",
    "transactional.id",
    "value.converter",
    "value.deserializer",
    "value.serializer",
];

/// Why `name`, which is no broker key, has no effect. Completes "has no effect: …".
pub(super) fn explain(name: &str) -> String {
    let of = |table: &[(&str, &'static str)], is: &dyn Fn(&str) -> bool| {
        table.iter().find(|(key, _)| is(key)).map(|(_, why)| *why)
    };
    if let Some(why) =
        of(EXACT, &|key| key == name).or_else(|| of(PREFIXES, &|prefix| name.starts_with(prefix)))
    {
        return why.to_owned();
    }
    if OF_CLIENTS.contains(&name) {
        return "it is a setting of clients, not of brokers".to_owned();
    }
    if let Some(key) = topic::find(name) {
        return match key.synonym {
            Some(synonym) => format!("it is a topic's key; the broker's key is {synonym}"),
            None => "it is a topic's key; set it on topics".to_owned(),
        };
    }
    if group::find(name).is_some() {
        return "it is a group's key; set it on groups".to_owned();
    }
    match nearest(name) {
        Some(near) => format!("no setting has this name; the nearest is {near}"),
        None => "no setting has this name".to_owned(),
    }
}

/// What going on without `name`, which is no broker key, would drop: security that belongs to a
/// listener, or to an authorizer or start script whose own keys Kafka does not list.
pub(super) fn guarded(name: &str, value: &str) -> Option<&'static str> {
    let own = name
        .strip_prefix("listener.name.")
        .and_then(|rest| rest.split_once('.'))
        .map_or(name, |(_, key)| key);
    if own == "allow.everyone.if.no.acl.found" && value.trim().eq_ignore_ascii_case("true") {
        return None;
    }
    if own.starts_with("super.users") || own == "allow.everyone.if.no.acl.found" {
        return keys::find("authorizer.class.name")?.effect.reason();
    }
    // `plain.sasl.jaas.config`: the mechanism comes before.
    if own.starts_with("sasl.") || own.contains(".sasl.") || own == "connections.max.reauth.ms" {
        return keys::find("sasl.jaas.config")?.effect.reason();
    }
    own.starts_with("ssl.").then(|| keys::find("ssl.keystore.location")?.effect.reason()).flatten()
}

/// The key that is nearest in spelling; `None` when none is near.
fn nearest(name: &str) -> Option<&'static str> {
    // Longer names may have more mistakes in them. A name of unbounded length is not worth
    // comparing.
    let far = 3.max(name.len() / 6);
    if name.len() > 100 {
        return None;
    }
    keys::KEYS
        .iter()
        .map(|key| (distance(name, key.name), key.name))
        .min()
        .filter(|(at, _)| *at <= far)
        .map(|(_, near)| near)
}

/// Edits that turn one text into the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (slot, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let best = (diagonal + usize::from(x != y)).min(left + 1).min(*slot + 1);
            diagonal = std::mem::replace(slot, best);
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_foreign_key_is_a_broker_key() {
        for name in EXACT.iter().map(|(name, _)| name).chain(OF_CLIENTS) {
            assert!(keys::find(name).is_none(), "{name}");
        }
        assert!(OF_CLIENTS.is_sorted());
    }
}
