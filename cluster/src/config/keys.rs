//! What a broker key is, which values it takes, and what becomes of a setting that somebody wrote.
//!
//! A file that Apache Kafka takes must start here too: a setting that nothing acts on is a warning.
//! Refused is only what would drop security or safety, and a value that a key with an effect does
//! not take. The rows are in `super::table`.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use super::foreign;
pub use super::table::KEYS;

/// What may be written as a value; Kafka's types with their bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A 16-bit whole number within the bounds, both inclusive.
    Short(i64, i64),
    /// A 32-bit whole number within the bounds, both inclusive.
    Int(i64, i64),
    /// The first number, or a 32-bit whole number within the bounds, both inclusive.
    IntOr(i64, i64, i64),
    /// A 64-bit whole number within the bounds, both inclusive.
    Long(i64, i64),
    /// A number within the bounds, both inclusive.
    Double(f64, f64),
    /// `true` or `false`.
    Bool,
    /// Any text.
    Text,
    /// One of the words.
    Word(&'static [&'static str]),
    /// Any of the words, separated by commas; at least one.
    Words(&'static [&'static str]),
    /// Any of the words, separated by commas; none is a value too.
    WordsOrNone(&'static [&'static str]),
    /// Texts separated by commas.
    List,
    /// The name of a Java class.
    Class,
    /// A text that is never shown.
    Secret,
    /// `*`, or pairs `partition:broker` separated by commas.
    Replicas,
}

/// What a key does here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Effect {
    /// It does what its meaning says.
    Honoured,
    /// Nothing acts on it; the reason completes "has no effect: …". Any value but the default is a
    /// warning, or a refusal with `config.strict=true`.
    None(&'static str),
    /// As `None`, of a key that an earlier version needed: always a warning, never a refusal.
    Needless(&'static str),
    /// Going on without it would drop security or safety: any value but the default is refused.
    Guard(&'static str),
}

impl Effect {
    /// Why nothing acts on the key; `None` when something does.
    #[must_use]
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::Honoured => None,
            Self::None(reason) | Self::Needless(reason) | Self::Guard(reason) => Some(reason),
        }
    }
}

/// One broker key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Kafka's spelling.
    pub name: &'static str,
    /// The values it takes.
    pub kind: Kind,
    /// The value when it is not set; `None` where Kafka has null.
    pub default: Option<&'static str>,
    /// What it does.
    pub effect: Effect,
    /// Whether it can be changed while the broker runs, for one broker or for all (KIP-226).
    pub dynamic: bool,
    /// Its meaning in a sentence; empty when nothing acts on it.
    pub help: &'static str,
}

impl Key {
    pub(super) const fn dynamic(self) -> Self {
        Self { dynamic: true, ..self }
    }

    /// Its meaning, or that it has none here and why.
    #[must_use]
    pub fn documentation(&self) -> String {
        match self.effect {
            Effect::Honoured => self.help.to_owned(),
            Effect::None(reason) | Effect::Needless(reason) => format!("No effect: {reason}."),
            Effect::Guard(reason) => format!("Only the default is accepted: {reason}."),
        }
    }

    fn is_default(&self, value: &str) -> bool {
        let default = self.default.unwrap_or_default();
        self.kind.is_same(value, default) || value.trim().eq_ignore_ascii_case(default)
    }
}

/// Why a key or its value is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A line that is not a property.
    #[error(transparent)]
    Syntax(#[from] letterbox_protocol::properties::SyntaxError),
    /// A setting without effect, where `config.strict=true` asks to refuse those.
    #[error(
        "{key}: has no effect: {why}; remove it, or set config.strict=false to go on with a warning"
    )]
    Strict {
        /// As written.
        key: String,
        /// Why it has no effect.
        why: String,
    },
    /// A setting that going on without would drop security or safety.
    #[error("{key} is set: {why}; remove the setting to start without it")]
    Guarded {
        /// As written.
        key: String,
        /// What would not be done.
        why: &'static str,
    },
    /// A value outside of what the key takes.
    #[error("{key}={value}: {why}")]
    Value {
        /// The key.
        key: String,
        /// The value as written.
        value: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// A key that must be set.
    #[error("{key}: must be set; {why}")]
    Missing {
        /// The key.
        key: &'static str,
        /// An example.
        why: &'static str,
    },
}

impl Problem {
    pub(super) fn value(key: &str, value: &str, why: impl Into<String>) -> Self {
        Self::Value { key: key.to_owned(), value: value.to_owned(), why: why.into() }
    }

    /// The key that is wrong; `None` for a line that has none.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Syntax(_) => None,
            Self::Strict { key, .. } | Self::Guarded { key, .. } | Self::Value { key, .. } => {
                Some(key)
            }
            Self::Missing { key, .. } => Some(key),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Long(min, i64::MAX) => write!(f, "a whole number, at least {min}"),
            Self::Short(min, max) | Self::Int(min, max) | Self::Long(min, max) => {
                write!(f, "a whole number from {min} to {max}")
            }
            Self::IntOr(other, min, max) => {
                write!(f, "{other} or a whole number from {min} to {max}")
            }
            Self::Double(f64::MIN, f64::MAX) => write!(f, "a number"),
            Self::Double(min, max) => write!(f, "a number from {min} to {max}"),
            Self::Bool => write!(f, "true or false"),
            Self::Text | Self::Class | Self::Secret => write!(f, "text"),
            Self::Word(words) => write!(f, "one of {}", words.join(", ")),
            Self::Words(words) => write!(f, "a list of {}", words.join(", ")),
            Self::WordsOrNone(words) => write!(f, "empty or a list of {}", words.join(", ")),
            Self::List => write!(f, "a list separated by commas"),
            Self::Replicas => write!(f, "* or a list of partition:broker"),
        }
    }
}

impl Kind {
    /// Whether `value` can be written for a key of this kind.
    ///
    /// # Errors
    /// A sentence that names the range.
    pub fn check(&self, value: &str) -> Result<(), String> {
        let value = value.trim();
        let all = |words: &[&str]| value.split(',').all(|item| words.contains(&item.trim()));
        let number = |value: &str| value.parse::<u32>().is_ok();
        let fits = match self {
            Self::Short(min, max) | Self::Int(min, max) | Self::Long(min, max) => {
                value.parse().is_ok_and(|n: i64| (*min..=*max).contains(&n))
            }
            Self::IntOr(other, min, max) => {
                value.parse().is_ok_and(|n: i64| n == *other || (*min..=*max).contains(&n))
            }
            Self::Double(min, max) => value.parse().is_ok_and(|n: f64| (*min..=*max).contains(&n)),
            Self::Bool => matches!(value.to_ascii_lowercase().as_str(), "true" | "false"),
            Self::Text | Self::List | Self::Class | Self::Secret => true,
            Self::Word(words) => words.contains(&value),
            Self::Words(words) => !value.is_empty() && all(words),
            Self::WordsOrNone(words) => value.is_empty() || all(words),
            Self::Replicas => {
                let pair = |item: &str| {
                    item.trim().split_once(':').is_some_and(|(a, b)| number(a) && number(b))
                };
                value.is_empty() || value == "*" || value.split(',').all(pair)
            }
        };
        if fits { Ok(()) } else { Err(format!("must be {self}")) }
    }

    /// Whether values of this kind are comma-separated lists, to which an item can be added.
    #[must_use]
    pub fn is_list(&self) -> bool {
        matches!(self, Self::List | Self::Words(_) | Self::WordsOrNone(_) | Self::Replicas)
    }

    /// A value as it is shown: of a list each item once, without blanks around it.
    #[must_use]
    pub fn shown(self, value: &str) -> Cow<'_, str> {
        if !self.is_list() {
            return Cow::Borrowed(value);
        }
        let mut seen = BTreeSet::new();
        let items = value.split(',').map(str::trim).filter(|item| seen.insert(*item));
        Cow::Owned(items.collect::<Vec<_>>().join(","))
    }

    /// Whether two texts are the same value.
    #[must_use]
    pub fn is_same(&self, a: &str, b: &str) -> bool {
        let (a, b) = (a.trim(), b.trim());
        let items =
            |list: &str| list.split(',').map(|item| item.trim().to_owned()).collect::<Vec<_>>();
        match self {
            Self::Double(..) => {
                a == b || matches!((a.parse::<f64>(), b.parse::<f64>()), (Ok(a), Ok(b)) if a == b)
            }
            Self::Bool => a.eq_ignore_ascii_case(b),
            _ if self.is_list() => items(a) == items(b),
            _ => a == b,
        }
    }
}

pub(super) const I32: i64 = i32::MAX as i64;
pub(super) const I32_MIN: i64 = i32::MIN as i64;
pub(super) const I64: i64 = i64::MAX;
pub(super) const I64_MIN: i64 = i64::MIN;

pub(super) mod words {
    pub(crate) const CLEANUP: &[&str] = &["compact", "delete"];
    pub(crate) const CODECS: &[&str] =
        &["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"];
    pub(crate) const TIMESTAMPS: &[&str] = &["CreateTime", "LogAppendTime"];
}

/// The row of `name`.
#[must_use]
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.binary_search_by(|key| key.name.cmp(name)).ok().and_then(|at| KEYS.get(at))
}

/// What becomes of one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is part of the configuration; with a reason when nothing acts on it.
    Keep(Option<String>),
    /// It is left out, and why.
    Ignore(String),
    /// The broker does not start.
    Refuse(Problem),
}

/// Decides about one setting of a file or the environment.
pub(super) fn judge(name: &str, value: &str, strict: bool) -> Verdict {
    let ignore = |why: String| match strict {
        true => Verdict::Refuse(Problem::Strict { key: name.to_owned(), why }),
        false => Verdict::Ignore(why),
    };
    let guard = |why| Verdict::Refuse(Problem::Guarded { key: name.to_owned(), why });
    let is_empty = value.trim().is_empty();
    let Some(key) = find(name) else {
        return match foreign::guarded(name, value).filter(|_| !is_empty) {
            Some(why) => guard(why),
            None => ignore(foreign::explain(name)),
        };
    };
    if is_empty && !matches!(key.kind, Kind::WordsOrNone(_)) {
        return match key.default == Some("") && strict {
            true => Verdict::Keep(None),
            false => ignore(format!(
                "it is empty, so {}",
                key.default.filter(|default| !default.is_empty()).map_or_else(
                    || "it counts as not set".to_owned(),
                    |default| format!("its default {default} applies"),
                )
            )),
        };
    }
    let fits = key.kind.check(value);
    match (key.effect, fits) {
        (Effect::Honoured, Ok(())) => Verdict::Keep(None),
        (Effect::Honoured, Err(why)) => Verdict::Refuse(Problem::value(name, value, why)),
        (Effect::Needless(reason), _) => Verdict::Keep(Some(reason.to_owned())),
        (_, Ok(())) if key.is_default(value) => Verdict::Keep(None),
        (Effect::Guard(why), _) => guard(why),
        (Effect::None(reason), Err(why)) => ignore(format!("it {why}, and {reason}")),
        (Effect::None(reason), Ok(())) => match strict {
            true => ignore(reason.to_owned()),
            false => Verdict::Keep(Some(reason.to_owned())),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_its_defaults_fit() {
        assert!(KEYS.is_sorted_by(|a, b| a.name < b.name));
        for key in KEYS {
            if let Some(default) = key.default {
                key.kind
                    .check(default)
                    .unwrap_or_else(|why| panic!("{}={default}: {why}", key.name));
            }
            assert_eq!(key.help.is_empty(), key.effect != Effect::Honoured, "{}", key.name);
            assert!(!key.documentation().ends_with(".."), "{}", key.name);
        }
    }

    #[test]
    fn a_list_is_shown_without_repetitions_and_blanks() {
        for (kind, value, shown) in [
            (Kind::WordsOrNone(words::CLEANUP), " delete ,compact, delete", "delete,compact"),
            (Kind::WordsOrNone(words::CLEANUP), "", ""),
            (Kind::Replicas, "0:1, 0:1", "0:1"),
            (Kind::Text, "a, a", "a, a"),
        ] {
            assert_eq!(kind.shown(value), shown, "{value}");
        }
    }

    #[test]
    fn refusals_say_name_value_why_and_range() {
        for (name, value, said) in [
            (
                "num.partitions",
                "0",
                "num.partitions=0: must be a whole number from 1 to 2147483647",
            ),
            (
                "num.partitions",
                "many",
                "num.partitions=many: must be a whole number from 1 to 2147483647",
            ),
            (
                "log.cleanup.policy",
                "shred",
                "log.cleanup.policy=shred: must be empty or a list of compact, delete",
            ),
            (
                "compression.gzip.level",
                "0",
                "compression.gzip.level=0: must be -1 or a whole number from 1 to 9",
            ),
            (
                "ssl.keystore.location",
                "/x",
                "ssl.keystore.location is set: this version does not encrypt connections; remove \
                 the setting to start without it",
            ),
        ] {
            let Verdict::Refuse(problem) = judge(name, value, false) else {
                panic!("{name}={value} is not refused")
            };
            assert_eq!(problem.to_string(), said);
        }
    }

    /// Topics follow the broker's settings with every change; anything else that changes live must
    /// be read live.
    #[test]
    fn what_can_be_changed_live_acts_live() {
        let is_live = |name| {
            ["log.cleaner.backoff.ms", "max.connections", "max.connections.per.ip"].contains(&name)
        };
        for key in KEYS.iter().filter(|key| key.dynamic && key.effect == Effect::Honoured) {
            let is_topics =
                super::super::topic::KEYS.iter().any(|topic| topic.synonym == Some(key.name));
            assert!(is_topics || is_live(key.name), "{}", key.name);
        }
    }

    /// What would drop security or safety: with any value, with the listener's prefix, under an
    /// unknown name.
    #[test]
    fn what_guards_is_refused_unless_it_asks_for_nothing() {
        for (name, value) in [
            ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
            ("super.users", "User:admin"),
            ("allow.everyone.if.no.acl.found", "false"),
            ("sasl.enabled.mechanisms", "PLAIN"),
            ("sasl.jaas.config", "x"),
            ("ssl.client.auth", "required"),
            ("ssl.keystore.filename", "kafka.jks"),
            ("listener.name.external.ssl.keystore.location", "/x"),
            ("listener.name.sasl_plaintext.plain.sasl.jaas.config", "x"),
            ("security.inter.broker.protocol", "SASL_SSL"),
            ("create.topic.policy.class.name", "com.example.Policy"),
        ] {
            let verdict = judge(name, value, false);
            assert!(
                matches!(verdict, Verdict::Refuse(Problem::Guarded { .. })),
                "{name}={value}: {verdict:?}"
            );
            assert!(!matches!(judge(name, "", false), Verdict::Refuse(_)), "{name}=");
        }
        for (name, value) in [
            ("security.inter.broker.protocol", "PLAINTEXT"),
            ("sasl.mechanism.inter.broker.protocol", "GSSAPI"),
            ("ssl.client.auth", "none"),
            ("ssl.enabled.protocols", "TLSv1.2, TLSv1.3"),
            ("allow.everyone.if.no.acl.found", "true"),
        ] {
            assert!(!matches!(judge(name, value, false), Verdict::Refuse(_)), "{name}={value}");
        }
    }

    #[test]
    fn a_setting_without_effect_is_a_warning_that_says_why() {
        for (name, value, said) in [
            ("num.partition", "1", "no setting has this name; the nearest is num.partitions"),
            (
                "min.in.sync.replicas",
                "1",
                "no setting has this name; the nearest is min.insync.replicas",
            ),
            (
                "zookeeper.connect",
                "zk:2181",
                "metadata is kept by the brokers' own quorum, without ZooKeeper",
            ),
            ("port", "9092", "Kafka 4 no longer has it; listeners says where to listen"),
            ("bootstrap.servers", "kafka:9092", "it is a setting of clients, not of brokers"),
            (
                "allow.everyone.if.no.acl.found",
                "true",
                "there is no authorizer in this version: everyone may do everything already",
            ),
            ("retention.ms", "1000", "it is a topic's key; the broker's key is log.retention.ms"),
            (
                "confluent.support.metrics.enable",
                "false",
                "it belongs to a component of Confluent Platform",
            ),
            ("num.partitions", " ", "it is empty, so its default 1 applies"),
            (
                "zookeeper.connect",
                "",
                "metadata is kept by the brokers' own quorum, without ZooKeeper",
            ),
            ("broker.rack", "", "it is empty, so it counts as not set"),
        ] {
            assert_eq!(
                judge(name, value, false),
                Verdict::Ignore(said.to_owned()),
                "{name}={value}"
            );
        }
        let kept = |name, value| judge(name, value, false);
        assert_eq!(
            kept("num.replica.fetchers", "5"),
            Verdict::Keep(Some(
                "one fetch is under way to each leader, for all partitions".to_owned()
            ))
        );
        assert_eq!(
            kept("num.io.threads", "8"),
            Verdict::Keep(None),
            "the default needs no warning"
        );
        assert!(
            matches!(kept("request.timeout.ms", "soon"), Verdict::Ignore(_)),
            "a bad value of a key that nothing acts on"
        );
        assert_eq!(kept("log.cleanup.policy", ""), Verdict::Keep(None), "keeps records for ever");
    }

    #[test]
    fn strict_refuses_what_is_otherwise_a_warning() {
        for (name, value) in [
            ("no.such.key", "1"),
            ("num.partitions", ""),
            ("remote.log.storage.system.enable", "true"),
            ("group.id", "a"),
            ("confluent.support.metrics.enable", "false"),
            ("request.timeout.ms", "60000"),
            ("request.timeout.ms", "soon"),
            ("num.io.threads", "16"),
            ("broker.rack", ""),
            ("log.dirs", " "),
        ] {
            assert!(
                matches!(judge(name, value, true), Verdict::Refuse(Problem::Strict { .. })),
                "{name}={value}"
            );
        }
        // The default, and what acts.
        for (name, value) in [
            ("num.io.threads", "8"),
            ("group.share.max.size", "200"),
            ("accepted.lost.directory.ids", ""),
            ("log.cleanup.policy", ""),
            ("broker.rack", "a"),
        ] {
            assert_eq!(judge(name, value, true), Verdict::Keep(None), "{name}={value}");
        }
    }
}
