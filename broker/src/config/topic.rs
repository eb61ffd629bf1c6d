//! The topic keys: one row each, with the broker key that gives the default.

use std::collections::BTreeMap;

use super::broker::{Config, Entry};
use super::keys::{I32, I64, Kind, topic_words};

/// One topic key.
#[derive(Clone, Copy, Debug)]
pub struct TopicKey {
    /// Kafka's spelling.
    pub name: &'static str,
    /// The broker key that is its default.
    pub synonym: &'static str,
    /// The values it takes.
    pub kind: Kind,
}

const fn row(name: &'static str, synonym: &'static str, kind: Kind) -> TopicKey {
    TopicKey { name, synonym, kind }
}

/// Every key a topic takes, sorted by name.
pub const KEYS: &[TopicKey] = &[
    row("cleanup.policy", "log.cleanup.policy", Kind::Words(topic_words::CLEANUP)),
    row("compression.gzip.level", "compression.gzip.level", Kind::Int(-1, 9)),
    row("compression.type", "compression.type", Kind::Word(topic_words::CODECS)),
    row("compression.zstd.level", "compression.zstd.level", Kind::Int(-131_072, 22)),
    row("delete.retention.ms", "log.cleaner.delete.retention.ms", Kind::Int(0, I64)),
    row("file.delete.delay.ms", "log.segment.delete.delay.ms", Kind::Int(0, I64)),
    row("flush.messages", "log.flush.interval.messages", Kind::Int(1, I64)),
    row("flush.ms", "log.flush.interval.ms", Kind::Int(0, I64)),
    row("flush.on.ack", "log.flush.on.ack", Kind::Bool),
    row("index.interval.bytes", "log.index.interval.bytes", Kind::Int(0, I32)),
    row("max.compaction.lag.ms", "log.cleaner.max.compaction.lag.ms", Kind::Int(1, I64)),
    row("max.message.bytes", "message.max.bytes", Kind::Int(0, I32)),
    row("message.timestamp.after.max.ms", "log.message.timestamp.after.max.ms", Kind::Int(0, I64)),
    row("message.timestamp.before.max.ms", "log.message.timestamp.before.max.ms", Kind::Int(0, I64)),
    row("message.timestamp.type", "log.message.timestamp.type", Kind::Word(topic_words::TIMESTAMPS)),
    row("min.cleanable.dirty.ratio", "log.cleaner.min.cleanable.ratio", Kind::Double(0.0, 1.0)),
    row("min.compaction.lag.ms", "log.cleaner.min.compaction.lag.ms", Kind::Int(0, I64)),
    row("min.insync.replicas", "min.insync.replicas", Kind::Int(1, I32)),
    row("retention.bytes", "log.retention.bytes", Kind::Int(-1, I64)),
    row("retention.ms", "log.retention.ms", Kind::Int(-1, I64)),
    row("segment.bytes", "log.segment.bytes", Kind::Int(1_048_576, I32)),
    row("segment.index.bytes", "log.index.size.max.bytes", Kind::Int(4, I32)),
    row("segment.ms", "log.roll.ms", Kind::Int(1, I64)),
];

/// Kafka's topic keys that this version knows and refuses.
const UNSUPPORTED: &[&str] = &[
    "compression.lz4.level",
    "follower.replication.throttled.replicas",
    "leader.replication.throttled.replicas",
    "local.retention.bytes",
    "local.retention.ms",
    "preallocate",
    "remote.log.copy.disable",
    "remote.log.delete.on.disable",
    "remote.storage.enable",
    "segment.jitter.ms",
    "unclean.leader.election.enable",
];

/// The row of `name`.
#[must_use]
pub fn find(name: &str) -> Option<&'static TopicKey> {
    KEYS.binary_search_by(|key| key.name.cmp(name)).ok().and_then(|at| KEYS.get(at))
}

/// Whether a topic may set `name` to `value`; `None` asks for the default and needs only a known name.
///
/// # Errors
/// A sentence for the client, in Kafka's words where it has some.
pub fn check(name: &str, value: Option<&str>) -> Result<(), String> {
    match (find(name), value) {
        (Some(_), None) => Ok(()),
        (Some(key), Some(value)) => key.kind.check(value).map_err(|why| format!("Invalid value {value} for configuration {name}: {why}")),
        (None, _) if UNSUPPORTED.contains(&name) => Err(format!("Topic config {name} is not supported by this version")),
        (None, _) => Err(format!("Unknown topic config name: {name}")),
    }
}

/// What a topic's logs go by: every key resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicConfig {
    values: BTreeMap<&'static str, String>,
}

impl TopicConfig {
    /// The topic's own `overrides` over the broker's values.
    #[must_use]
    pub fn resolve(config: &Config, overrides: &BTreeMap<String, String>) -> Self {
        let values = KEYS
            .iter()
            .map(|key| (key.name, overrides.get(key.name).cloned().unwrap_or_else(|| broker_value(config, key).value.unwrap_or_default())))
            .collect();
        Self { values }
    }

    /// The value of `key` as text.
    #[must_use]
    pub fn text(&self, key: &str) -> &str {
        self.values.get(key).map_or("", String::as_str)
    }

    /// The value of a whole-number `key`.
    #[must_use]
    pub fn number(&self, key: &str) -> i64 {
        self.text(key).trim().parse().unwrap_or(I64)
    }

    /// The value of a fractional `key`.
    #[must_use]
    pub fn fraction(&self, key: &str) -> f64 {
        self.text(key).trim().parse().unwrap_or_default()
    }

    /// Whether the list under `key` holds `word`.
    #[must_use]
    pub fn has(&self, key: &str, word: &str) -> bool {
        self.text(key).split(',').any(|item| item.trim() == word)
    }

    /// Whether an acknowledgement waits for stable storage. Asking Kafka's way (`flush.messages`,
    /// `flush.ms`) is answered by the stronger promise.
    #[must_use]
    pub fn durable(&self) -> bool {
        self.text("flush.on.ack").trim().eq_ignore_ascii_case("true")
            || self.number("flush.messages") != I64
            || self.number("flush.ms") != I64
    }
}

/// The broker's value that stands for a topic key that is not set, with where it comes from. Kafka's
/// hours and minutes are counted in milliseconds.
#[must_use]
pub fn broker_value(config: &Config, key: &TopicKey) -> Entry {
    let scaled: &[(&str, i64)] = match key.synonym {
        "log.retention.ms" => &[("log.retention.ms", 1), ("log.retention.minutes", 60_000), ("log.retention.hours", 3_600_000)],
        "log.roll.ms" => &[("log.roll.ms", 1), ("log.roll.hours", 3_600_000)],
        "log.flush.interval.ms" => &[("log.flush.interval.ms", 1)],
        name => return config.entry(name),
    };
    for (name, factor) in scaled {
        let entry = config.entry(name);
        if let Some(n) = entry.value.as_deref().and_then(|value| value.trim().parse::<i64>().ok()) {
            let value = if n < 0 { -1 } else { n.saturating_mul(*factor) };
            return Entry { value: Some(value.to_string()), ..entry };
        }
    }
    Entry { name: key.synonym, value: Some(I64.to_string()), is_set: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: &str) -> Config {
        Config::parse(&format!("node.id=1\nprocess.roles=broker,controller\ncontroller.listener.names=CONTROLLER\ncontroller.quorum.voters=1@localhost:9093\nlisteners=PLAINTEXT://:9092,CONTROLLER://:9093\n{extra}")).unwrap()
    }

    #[test]
    fn topic_values_fall_back_to_the_broker_in_kafkas_order() {
        assert!(KEYS.is_sorted_by(|a, b| a.name < b.name));
        let topic = TopicConfig::resolve(&config("log.retention.hours=2\nmessage.max.bytes=77"), &BTreeMap::new());
        assert_eq!((topic.number("retention.ms"), topic.number("max.message.bytes"), topic.durable()), (7_200_000, 77, true));
        let topic = TopicConfig::resolve(&config("log.retention.hours=2\nlog.retention.minutes=1"), &BTreeMap::new());
        assert_eq!(topic.number("retention.ms"), 60_000);
        let overrides = BTreeMap::from([("retention.ms".to_owned(), "-1".to_owned()), ("flush.on.ack".to_owned(), "false".to_owned())]);
        let topic = TopicConfig::resolve(&config(""), &overrides);
        assert_eq!((topic.number("retention.ms"), topic.durable()), (-1, false));
        assert!(topic.has("cleanup.policy", "delete") && !topic.has("cleanup.policy", "compact"));
    }

    #[test]
    fn asking_kafkas_way_for_a_flush_gives_at_least_as_much() {
        let overrides = BTreeMap::from([("flush.on.ack".to_owned(), "false".to_owned()), ("flush.messages".to_owned(), "1".to_owned())]);
        assert!(TopicConfig::resolve(&config(""), &overrides).durable());
    }

    #[test]
    fn refusals_for_topics() {
        assert_eq!(check("no.such", Some("1")).unwrap_err(), "Unknown topic config name: no.such");
        assert!(check("remote.storage.enable", Some("true")).unwrap_err().contains("not supported"));
        assert!(check("retention.ms", Some("-2")).unwrap_err().contains("at least -1"));
        assert!(check("retention.ms", None).is_ok());
    }
}
