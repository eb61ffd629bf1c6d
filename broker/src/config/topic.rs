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

/// The broker keys that stand for a topic key that is not set, the first that is set before the others, each with how many milliseconds
/// or things one of it is.
#[must_use]
pub fn broker_keys(key: &TopicKey) -> Vec<(&'static str, i64)> {
    match key.synonym {
        "log.retention.ms" => vec![("log.retention.ms", 1), ("log.retention.minutes", 60_000), ("log.retention.hours", 3_600_000)],
        "log.roll.ms" => vec![("log.roll.ms", 1), ("log.roll.hours", 3_600_000)],
        name => vec![(name, 1)],
    }
}

/// The broker's value that stands for a topic key that is not set, with where it comes from. Kafka's
/// hours and minutes are counted in milliseconds.
#[must_use]
pub fn broker_value(config: &Config, key: &TopicKey) -> Entry {
    for (name, factor) in broker_keys(key) {
        let entry = config.entry(name);
        let scaled = entry.value.as_deref().filter(|_| factor > 1).and_then(|value| value.parse::<i64>().ok());
        match scaled {
            Some(n) => return Entry { value: Some(if n < 0 { -1 } else { n.saturating_mul(factor) }.to_string()), ..entry },
            None if entry.value.is_some() => return entry,
            None => {}
        }
    }
    // Without a value in the whole table it is one of Kafka's numbers that mean never.
    Entry { name: key.synonym, value: Some(I64.to_string()), is_set: false }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use letterbox_env::{Disk, Env};

    use super::*;
    use crate::config::keys;

    fn config(extra: &str) -> Config {
        Config::parse(&format!("node.id=1\nprocess.roles=broker,controller\ncontroller.listener.names=CONTROLLER\ncontroller.quorum.voters=1@localhost:9093\nlisteners=PLAINTEXT://:9092,CONTROLLER://:9093\n{extra}")).unwrap()
    }

    #[test]
    fn a_record_stays_uncompacted_no_longer_than_asked() {
        let log = |overrides: &[(&str, &str)]| {
            let overrides = overrides.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            crate::config::log_config(&TopicConfig::resolve(&config(""), &overrides))
        };
        assert_eq!(log(&[("max.compaction.lag.ms", "60000")]).segment_ms, 604_800_000);
        assert_eq!(log(&[("max.compaction.lag.ms", "60000"), ("cleanup.policy", "compact")]).segment_ms, 60_000);
        assert_eq!(log(&[("max.compaction.lag.ms", "60000"), ("cleanup.policy", "compact"), ("segment.ms", "5")]).segment_ms, 5);
    }

    /// A key is read by its own name, or through the topic key that it is the default of.
    #[test]
    fn what_is_said_to_act_is_read_somewhere() {
        fn sources(disk: &dyn Disk, folder: &Path, into: &mut String) {
            for entry in disk.list(folder).unwrap() {
                let path = folder.join(&entry.name);
                if path.ends_with("config/keys.rs") || entry.name.starts_with("tests") {
                    continue;
                }
                if entry.is_dir {
                    sources(disk, &path, into);
                } else {
                    let text = String::from_utf8(disk.read(&path).unwrap()).unwrap();
                    into.push_str(text.split("#[cfg(test)]").next().unwrap());
                }
            }
        }
        let mut text = String::new();
        sources(&*Env::real().disk, &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
        let rows = text.find("pub const KEYS").unwrap()..text.find("const UNSUPPORTED").unwrap();
        text.replace_range(rows, "");
        let is_read = |name: &str| text.contains(&format!("\"{name}\""));
        // A key with one value has nothing to read.
        let acts = |key: &&keys::Key| key.effect == keys::Effect::Honoured && !matches!(key.kind, Kind::Word([_]));
        for key in keys::KEYS.iter().filter(acts) {
            let through_topics =
                KEYS.iter().any(|topic| is_read(topic.name) && broker_keys(topic).iter().any(|(name, _)| *name == key.name));
            assert!(is_read(key.name) || through_topics, "{} has no effect", key.name);
        }
        for topic in KEYS {
            assert!(is_read(topic.name), "{} has no effect", topic.name);
        }
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
