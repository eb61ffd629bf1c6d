//! The topic keys: one row each, with the broker key that gives the default.

use std::collections::BTreeMap;

use letterbox_env::Gather;

use super::broker::{Config, Entry, Source};
use super::keys::{self, Effect, I32, I64, Kind, words};

/// One topic key.
#[derive(Clone, Copy, Debug)]
pub struct TopicKey {
    /// Kafka's spelling.
    pub name: &'static str,
    /// The broker key that is its default, where there is one.
    pub synonym: Option<&'static str>,
    /// The values it takes.
    pub kind: Kind,
    /// The default where no broker key has a value.
    pub default: &'static str,
    /// What it does, where that is not what its synonym does.
    effect: Option<Effect>,
}

impl TopicKey {
    /// What it does.
    #[must_use]
    pub fn effect(&self) -> Effect {
        let synonym = || self.synonym.and_then(keys::find).map(|key| key.effect);
        self.effect.or_else(synonym).unwrap_or(Effect::Honoured)
    }

    /// Its meaning, or that it has none here and why.
    #[must_use]
    pub fn documentation(&self) -> String {
        match (self.effect, self.synonym.and_then(keys::find)) {
            (Some(Effect::Guard(reason)), _) => format!("Only the default is accepted: {reason}."),
            (Some(effect), _) => format!("No effect: {}.", effect.reason().unwrap_or_default()),
            (None, Some(key)) => key.documentation(),
            (None, None) => String::new(),
        }
    }
}

const THROTTLES: &str = "replication is not throttled by this version";
const TIERED: &str = "tiered storage is not offered by this version; all records stay in log.dirs";

const fn row(name: &'static str, synonym: &'static str, kind: Kind) -> TopicKey {
    // Where the broker's value is null, it is one of Kafka's numbers that mean never.
    TopicKey { name, synonym: Some(synonym), kind, default: NEVER, effect: None }
}

/// As its broker key, without effect.
const fn inert(
    name: &'static str,
    synonym: &'static str,
    kind: Kind,
    default: &'static str,
) -> TopicKey {
    TopicKey { name, synonym: Some(synonym), kind, default, effect: None }
}

const fn alone(name: &'static str, kind: Kind, default: &'static str, effect: Effect) -> TopicKey {
    TopicKey { name, synonym: None, kind, default, effect: Some(effect) }
}

const NEVER: &str = "9223372036854775807";

/// Every key a topic takes, sorted by name.
#[rustfmt::skip] // a row is a line
pub const KEYS: &[TopicKey] = &[
    row("cleanup.policy", "log.cleanup.policy", Kind::WordsOrNone(words::CLEANUP)),
    row("compression.gzip.level", "compression.gzip.level", Kind::IntOr(-1, 1, 9)),
    inert("compression.lz4.level", "compression.lz4.level", Kind::Int(1, 17), "9"),
    row("compression.type", "compression.type", Kind::Word(words::CODECS)),
    row("compression.zstd.level", "compression.zstd.level", Kind::Int(-131_072, 22)),
    row("delete.retention.ms", "log.cleaner.delete.retention.ms", Kind::Long(0, I64)),
    row("file.delete.delay.ms", "log.segment.delete.delay.ms", Kind::Long(0, I64)),
    row("flush.messages", "log.flush.interval.messages", Kind::Long(1, I64)),
    row("flush.ms", "log.flush.interval.ms", Kind::Long(0, I64)),
    row("flush.on.ack", "log.flush.on.ack", Kind::Bool),
    alone("follower.replication.throttled.replicas", Kind::Replicas, "", Effect::None(THROTTLES)),
    row("index.interval.bytes", "log.index.interval.bytes", Kind::Int(0, I32)),
    alone("leader.replication.throttled.replicas", Kind::Replicas, "", Effect::None(THROTTLES)),
    inert("local.retention.bytes", "log.local.retention.bytes", Kind::Long(-2, I64), "-2"),
    inert("local.retention.ms", "log.local.retention.ms", Kind::Long(-2, I64), "-2"),
    row("max.compaction.lag.ms", "log.cleaner.max.compaction.lag.ms", Kind::Long(1, I64)),
    row("max.decompressed.message.bytes", "max.decompressed.message.bytes", Kind::Int(1, I32)),
    row("max.message.bytes", "message.max.bytes", Kind::Int(0, I32)),
    row("message.timestamp.after.max.ms", "log.message.timestamp.after.max.ms", Kind::Long(0, I64)),
    row("message.timestamp.before.max.ms", "log.message.timestamp.before.max.ms", Kind::Long(0, I64)),
    row("message.timestamp.type", "log.message.timestamp.type", Kind::Word(words::TIMESTAMPS)),
    row("min.cleanable.dirty.ratio", "log.cleaner.min.cleanable.ratio", Kind::Double(0.0, 1.0)),
    row("min.compaction.lag.ms", "log.cleaner.min.compaction.lag.ms", Kind::Long(0, I64)),
    row("min.insync.replicas", "min.insync.replicas", Kind::Int(1, I32)),
    inert("preallocate", "log.preallocate", Kind::Bool, "false"),
    alone("remote.log.copy.disable", Kind::Bool, "false", Effect::None(TIERED)),
    alone("remote.log.delete.on.disable", Kind::Bool, "false", Effect::None(TIERED)),
    // Records that a topic believes to be in another store would be deleted here.
    alone("remote.storage.enable", Kind::Bool, "false", Effect::Guard(TIERED)),
    row("retention.bytes", "log.retention.bytes", Kind::Long(-1, I64)),
    row("retention.ms", "log.retention.ms", Kind::Long(-1, I64)),
    row("segment.bytes", "log.segment.bytes", Kind::Int(1_048_576, I32)),
    row("segment.index.bytes", "log.index.size.max.bytes", Kind::Int(4, I32)),
    inert("segment.jitter.ms", "log.roll.jitter.ms", Kind::Long(0, I64), "0"),
    row("segment.ms", "log.roll.ms", Kind::Long(1, I64)),
    row("unclean.leader.election.enable", "unclean.leader.election.enable", Kind::Bool),
];

/// The row of `name`.
#[must_use]
pub fn find(name: &str) -> Option<&'static TopicKey> {
    KEYS.binary_search_by(|key| key.name.cmp(name)).ok().and_then(|at| KEYS.get(at))
}

/// Whether a topic may set `name` to `value`; `None` asks for the default, which every name may.
///
/// # Errors
/// A sentence for the client, in Kafka's words where it has some.
pub fn check(name: &str, value: Option<&str>) -> Result<(), String> {
    let Some(value) = value else { return Ok(()) };
    let key = find(name).ok_or_else(|| format!("Unknown topic config name: {name}"))?;
    key.kind
        .check(value)
        .map_err(|why| format!("Invalid value {value} for configuration {name}: {why}"))?;
    match key.effect() {
        Effect::Guard(reason) if !key.kind.is_same(value, key.default) => {
            Err(format!("Invalid value {value} for configuration {name}: {reason}"))
        }
        _ => Ok(()),
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
            .map(|key| {
                (
                    key.name,
                    overrides
                        .get(key.name)
                        .cloned()
                        .unwrap_or_else(|| broker_value(config, key).value.unwrap_or_default()),
                )
            })
            .gather();
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

/// The broker keys that stand for a topic key that is not set, the first that is set before the
/// others, each with how many milliseconds or things one of it is.
#[must_use]
pub fn broker_keys(key: &TopicKey) -> Vec<(&'static str, i64)> {
    match key.synonym {
        Some("log.retention.ms") => vec![
            ("log.retention.ms", 1),
            ("log.retention.minutes", 60_000),
            ("log.retention.hours", HOUR_MS),
        ],
        Some("log.roll.ms") => vec![("log.roll.ms", 1), ("log.roll.hours", HOUR_MS)],
        Some("log.roll.jitter.ms") => {
            vec![("log.roll.jitter.ms", 1), ("log.roll.jitter.hours", HOUR_MS)]
        }
        Some(name) => vec![(name, 1)],
        None => Vec::new(),
    }
}

const HOUR_MS: i64 = 3_600_000;

/// The broker's value that stands for a topic key that is not set, with where it comes from.
/// Kafka's hours and minutes are counted in milliseconds.
#[must_use]
pub fn broker_value(config: &Config, key: &TopicKey) -> Entry {
    for (name, factor) in broker_keys(key) {
        let entry = config.entry(name);
        let scaled = entry
            .value
            .as_deref()
            .filter(|_| factor > 1)
            .and_then(|value| value.parse::<i64>().ok());
        match scaled {
            Some(n) => {
                return Entry {
                    value: Some(if n < 0 { -1 } else { n.saturating_mul(factor) }.to_string()),
                    ..entry
                };
            }
            None if entry.value.is_some() => return entry,
            None => {}
        }
    }
    Entry {
        name: key.synonym.unwrap_or(key.name),
        value: Some(key.default.to_owned()),
        source: Source::Default,
    }
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
            let overrides = overrides
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect();
            crate::config::log_config(&TopicConfig::resolve(&config(""), &overrides))
        };
        assert_eq!(log(&[("max.compaction.lag.ms", "60000")]).segment_ms, 604_800_000);
        assert_eq!(
            log(&[("max.compaction.lag.ms", "60000"), ("cleanup.policy", "compact")]).segment_ms,
            60_000
        );
        assert_eq!(
            log(&[
                ("max.compaction.lag.ms", "60000"),
                ("cleanup.policy", "compact"),
                ("segment.ms", "5")
            ])
            .segment_ms,
            5
        );
    }

    /// A key is read by its own name, or through the topic key that it is the default of.
    #[test]
    fn what_is_said_to_act_is_read_somewhere() {
        fn sources(disk: &dyn Disk, folder: &Path, into: &mut String) {
            for entry in disk.list(folder).unwrap() {
                let path = folder.join(&entry.name);
                if entry.name.starts_with("tests")
                    || ["table.rs", "foreign.rs", "group.rs"]
                        .iter()
                        .any(|name| path.ends_with(Path::new("config").join(name)))
                {
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
        for folder in ["src", "../broker/src"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
            sources(&*Env::real().disk, &folder, &mut text);
        }
        let start = text.find("pub const KEYS: &[TopicKey]").unwrap();
        let rows = text.split_off(start);
        text.push_str(rows.split_once("/// The row of `name`").unwrap().1);
        let is_read = |name: &str| text.contains(&format!("\"{name}\""));
        // A key with one value has nothing to read.
        let acts = |key: &&keys::Key| {
            key.effect == keys::Effect::Honoured && !matches!(key.kind, Kind::Word([_]))
        };
        for key in keys::KEYS.iter().filter(acts) {
            let through_topics = KEYS.iter().any(|topic| {
                is_read(topic.name) && broker_keys(topic).iter().any(|(name, _)| *name == key.name)
            });
            assert!(is_read(key.name) || through_topics, "{} has no effect", key.name);
        }
        for topic in KEYS.iter().filter(|topic| topic.effect() == Effect::Honoured) {
            assert!(is_read(topic.name), "{} has no effect", topic.name);
        }
    }

    #[test]
    fn topic_values_fall_back_to_the_broker_in_kafkas_order() {
        assert!(KEYS.is_sorted_by(|a, b| a.name < b.name));
        let topic = TopicConfig::resolve(
            &config("log.retention.hours=2\nmessage.max.bytes=77"),
            &BTreeMap::new(),
        );
        assert_eq!(
            (topic.number("retention.ms"), topic.number("max.message.bytes"), topic.durable()),
            (7_200_000, 77, true)
        );
        let topic = TopicConfig::resolve(
            &config("log.retention.hours=2\nlog.retention.minutes=1"),
            &BTreeMap::new(),
        );
        assert_eq!(topic.number("retention.ms"), 60_000);
        let overrides = BTreeMap::from([
            ("retention.ms".to_owned(), "-1".to_owned()),
            ("flush.on.ack".to_owned(), "false".to_owned()),
        ]);
        let topic = TopicConfig::resolve(&config(""), &overrides);
        assert_eq!((topic.number("retention.ms"), topic.durable()), (-1, false));
        assert!(topic.has("cleanup.policy", "delete") && !topic.has("cleanup.policy", "compact"));
    }

    #[test]
    fn asking_kafkas_way_for_a_flush_gives_at_least_as_much() {
        let overrides = BTreeMap::from([
            ("flush.on.ack".to_owned(), "false".to_owned()),
            ("flush.messages".to_owned(), "1".to_owned()),
        ]);
        assert!(TopicConfig::resolve(&config(""), &overrides).durable());
    }

    #[test]
    fn refusals_for_topics() {
        assert_eq!(check("no.such", Some("1")).unwrap_err(), "Unknown topic config name: no.such");
        assert!(
            check("remote.storage.enable", Some("true"))
                .unwrap_err()
                .contains("tiered storage is not offered")
        );
        assert!(check("retention.ms", Some("-2")).unwrap_err().contains("at least -1"));
        assert!(
            check("compression.gzip.level", Some("0"))
                .unwrap_err()
                .contains("-1 or a whole number from 1 to 9")
        );
        assert!(check("leader.replication.throttled.replicas", Some("x")).is_err());
    }

    /// Tools read every key and write it back (a copy of a topic, a mirror, a desired state).
    #[test]
    fn every_key_can_be_deleted_and_set_to_its_default() {
        let config = config("");
        for key in KEYS {
            check(key.name, None).unwrap();
            let value = broker_value(&config, key).value.unwrap();
            check(key.name, Some(&value)).unwrap_or_else(|why| panic!("{why}"));
        }
        check("a.key.of.another.version", None).unwrap();
    }

    #[test]
    fn keys_without_effect_take_other_values_too() {
        for (name, value) in [
            ("preallocate", "true"),
            ("segment.jitter.ms", "1000"),
            ("local.retention.ms", "60000"),
            ("local.retention.bytes", "-2"),
            ("leader.replication.throttled.replicas", "0:1,1:2"),
            ("follower.replication.throttled.replicas", "*"),
            ("compression.lz4.level", "3"),
            ("remote.log.copy.disable", "true"),
            ("cleanup.policy", ""),
        ] {
            check(name, Some(value)).unwrap_or_else(|why| panic!("{why}"));
            assert!(find(name).is_some_and(|key| name == "cleanup.policy" || key.effect() != Effect::Honoured), "{name}");
        }
    }

    #[test]
    fn without_a_cleanup_policy_records_are_kept() {
        let log = |value: &str| {
            crate::config::log_config(&TopicConfig::resolve(
                &config(""),
                &BTreeMap::from([("cleanup.policy".to_owned(), value.to_owned())]),
            ))
        };
        let policy = log("").cleanup_policy;
        assert!(!policy.delete && !policy.compact);
        assert!(log("delete").cleanup_policy.delete);
    }
}
