//! The broker keys: one row each.
//!
//! Defaults are Kafka 4.4's, but where this product's promises ask for another one; those rows say so.

use std::fmt;

/// What may be written as a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A whole number within the bounds, both inclusive.
    Int(i64, i64),
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
    /// Texts separated by commas.
    List,
}

/// What a key does here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Effect {
    /// It does what its meaning says.
    Honoured,
    /// Kafka's key has nothing to act on here; the reason is logged when it is set.
    None(&'static str),
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
    /// Its meaning in a sentence.
    pub help: &'static str,
}

/// Why a key or its value is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A line that is not a property.
    #[error("line {line}: \"{text}\" cannot be read as key=value")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// A key that nobody knows.
    #[error("{key}={value}: unknown setting{}", .near.map(|near| format!("; did you mean {near}?")).unwrap_or_default())]
    UnknownKey {
        /// As written.
        key: String,
        /// As written.
        value: String,
        /// The known key that is nearest in spelling.
        near: Option<&'static str>,
    },
    /// A key of Kafka's whose promise this version does not keep.
    #[error("{key}={value}: this version does not support {key}; remove the line")]
    Unsupported {
        /// As written.
        key: String,
        /// As written.
        value: String,
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
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(min, i64::MAX) => write!(f, "a whole number, at least {min}"),
            Self::Int(min, max) => write!(f, "a whole number from {min} to {max}"),
            Self::Double(min, max) => write!(f, "a number from {min} to {max}"),
            Self::Bool => write!(f, "true or false"),
            Self::Text => write!(f, "text"),
            Self::Word(words) => write!(f, "one of {}", words.join(", ")),
            Self::Words(words) => write!(f, "a list of {}", words.join(", ")),
            Self::List => write!(f, "a list separated by commas"),
        }
    }
}

impl Kind {
    /// Whether `value` can be written for a key of this kind.
    ///
    /// # Errors
    /// A sentence that names the range.
    pub fn check(&self, value: &str) -> Result<(), String> {
        let fits = match self {
            Self::Int(min, max) => value.trim().parse().is_ok_and(|n: i64| (*min..=*max).contains(&n)),
            Self::Double(min, max) => value.trim().parse().is_ok_and(|n: f64| (*min..=*max).contains(&n)),
            Self::Bool => matches!(value.trim().to_ascii_lowercase().as_str(), "true" | "false"),
            Self::Text | Self::List => true,
            Self::Word(words) => words.contains(&value.trim()),
            Self::Words(words) => !value.trim().is_empty() && value.split(',').all(|item| words.contains(&item.trim())),
        };
        if fits { Ok(()) } else { Err(format!("must be {self}")) }
    }
}

pub(super) const I32: i64 = i32::MAX as i64;
pub(super) const I64: i64 = i64::MAX;
const THREADS: Effect = Effect::None("work is spread over the machine's cores by itself");
const TRANSACTIONS: Effect = Effect::None("transactions are not offered by this version");
const SHARE: Effect = Effect::None("share groups are not offered by this version");
const ONE_BROKER: Effect = Effect::None("this version runs one broker per cluster");
const OWN_QUORUM: Effect = Effect::None("the metadata quorum has its own timing");

const fn key(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Key {
    Key { name, kind, default: Some(default), effect: Effect::Honoured, help }
}

const fn unset(name: &'static str, kind: Kind, help: &'static str) -> Key {
    Key { name, kind, default: None, effect: Effect::Honoured, help }
}

const fn idle(name: &'static str, kind: Kind, default: &'static str, effect: Effect) -> Key {
    Key { name, kind, default: Some(default), effect, help: "Accepted so that Kafka's files start unchanged; has nothing to act on here." }
}

/// Every key that a file may hold, sorted by name.
pub const KEYS: &[Key] = &[
    key(
        "admin.listener",
        Kind::Text,
        ":9644",
        "Where health, readiness and metrics are served over HTTP, as host:port; none switches it off. Letterbox's own key.",
    ),
    unset(
        "advertised.listeners",
        Kind::List,
        "What clients are told to connect to; when not set the listeners themselves, with localhost for all addresses.",
    ),
    key("auto.create.topics.enable", Kind::Bool, "true", "Make a topic when a client that allows it asks for one that is not there."),
    idle("auto.leader.rebalance.enable", Kind::Bool, "true", ONE_BROKER),
    idle("background.threads", Kind::Int(1, I32), "10", THREADS),
    unset("broker.id", Kind::Int(-1, I32), "The old name of node.id; must be equal to it when both are set."),
    unset("broker.rack", Kind::Text, "The rack or zone of this broker, told to clients."),
    unset(
        "cluster.id",
        Kind::Text,
        "The cluster's id, 22 characters of base64url; made up on the first start when not set. Letterbox's own key (Kafka's format step has it as a flag).",
    ),
    key("compression.gzip.level", Kind::Int(-1, 9), "-1", "Effort of gzip when the broker compresses anew."),
    key(
        "compression.type",
        Kind::Word(topic_words::CODECS),
        "producer",
        "Codec that batches are stored with; producer keeps them as they came.",
    ),
    key("compression.zstd.level", Kind::Int(-131_072, 22), "3", "Effort of zstd when the broker compresses anew."),
    key("connections.max.idle.ms", Kind::Int(1, I64), "600000", "A connection with no request for this long is closed."),
    idle("controlled.shutdown.enable", Kind::Bool, "true", ONE_BROKER),
    unset("controller.listener.names", Kind::List, "The listener of the metadata quorum."),
    key("controller.quorum.bootstrap.servers", Kind::List, "", "The quorum's address; in this version the node's own controller listener."),
    idle("controller.quorum.election.backoff.max.ms", Kind::Int(0, I32), "1000", OWN_QUORUM),
    idle("controller.quorum.election.timeout.ms", Kind::Int(0, I32), "1000", OWN_QUORUM),
    idle("controller.quorum.fetch.timeout.ms", Kind::Int(0, I32), "2000", OWN_QUORUM),
    key("controller.quorum.voters", Kind::List, "", "The quorum's members as id@host:port; in this version one, this node."),
    key("default.replication.factor", Kind::Int(1, 32767), "1", "Copies of a topic that is made without saying how many."),
    key("delete.topic.enable", Kind::Bool, "true", "Whether topics can be deleted."),
    key("fetch.max.bytes", Kind::Int(1024, I32), "57671680", "Most bytes of records in one fetch response."),
    idle(
        "group.coordinator.rebalance.protocols",
        Kind::Words(&["classic", "consumer", "streams", "share"]),
        "classic",
        Effect::None("this version offers the classic protocol alone"),
    ),
    idle("group.coordinator.threads", Kind::Int(1, I32), "4", THREADS),
    key(
        "group.initial.rebalance.delay.ms",
        Kind::Int(0, I32),
        "3000",
        "How long an empty group waits for more members before its first rebalance.",
    ),
    key("group.max.session.timeout.ms", Kind::Int(1, I32), "1800000", "Longest session timeout a member may ask for."),
    key("group.max.size", Kind::Int(1, I32), "2147483647", "Most members of a group."),
    key("group.min.session.timeout.ms", Kind::Int(1, I32), "6000", "Shortest session timeout a member may ask for."),
    unset("inter.broker.listener.name", Kind::Text, "The listener brokers use among themselves."),
    key(
        "listener.security.protocol.map",
        Kind::List,
        "PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL",
        "The protocol of each listener name. PLAINTEXT alone is offered by this version.",
    ),
    key("listeners", Kind::List, "PLAINTEXT://:9092", "What to listen on."),
    key("log.cleaner.delete.retention.ms", Kind::Int(0, I64), "86400000", "How long a tombstone stays in a compacted topic."),
    key(
        "log.cleaner.enable",
        Kind::Word(&["true"]),
        "true",
        "Compaction runs; it cannot be switched off, since committed offsets are kept by it.",
    ),
    key("log.cleaner.max.compaction.lag.ms", Kind::Int(1, I64), "9223372036854775807", "Longest time a record stays uncompacted."),
    key(
        "log.cleaner.min.cleanable.ratio",
        Kind::Double(0.0, 1.0),
        "0.5",
        "Share of a log that must be uncompacted before it is compacted.",
    ),
    key("log.cleaner.min.compaction.lag.ms", Kind::Int(0, I64), "0", "Shortest time a record stays uncompacted."),
    idle("log.cleaner.threads", Kind::Int(0, I32), "1", THREADS),
    key("log.cleanup.policy", Kind::Words(topic_words::CLEANUP), "delete", "What happens to old records."),
    key("log.dir", Kind::List, "/tmp/kafka-logs", "Where records are kept, when log.dirs is not set."),
    key(
        "log.dir.reserve.bytes",
        Kind::Int(-1, I64),
        "-1",
        "Bytes of each log directory's file system that stay free: below it clients' records are refused with KAFKA_STORAGE_ERROR, which \
         they retry, until there is space again. Group offsets, the metadata log, checkpoints and the shutdown use it. -1 is 64 MiB, or a \
         sixteenth of a file system smaller than 1 GiB. Letterbox's own.",
    ),
    unset("log.dirs", Kind::List, "Where records are kept: directories separated by commas."),
    key(
        "log.flush.interval.messages",
        Kind::Int(1, I64),
        "9223372036854775807",
        "Anything but the default asks for the disk before an answer, which log.flush.on.ack gives.",
    ),
    unset(
        "log.flush.interval.ms",
        Kind::Int(0, I64),
        "Anything but the default asks for the disk before an answer, which log.flush.on.ack gives.",
    ),
    key(
        "log.flush.offset.checkpoint.interval.ms",
        Kind::Int(0, I32),
        "60000",
        "How often the recovery point is written; bounds what is read again after a crash.",
    ),
    key(
        "log.flush.on.ack",
        Kind::Bool,
        "true",
        "Answer acks=all only once the records are on stable storage; false gives Kafka's page-cache behaviour. Letterbox's own key.",
    ),
    idle(
        "log.flush.scheduler.interval.ms",
        Kind::Int(0, I64),
        "9223372036854775807",
        Effect::None("nothing is flushed by the clock; log.flush.on.ack says whether an answer waits for it"),
    ),
    key("log.index.interval.bytes", Kind::Int(0, I32), "4096", "Bytes of records for each index entry."),
    key("log.index.size.max.bytes", Kind::Int(4, I32), "10485760", "Largest index of a segment."),
    key("log.message.timestamp.after.max.ms", Kind::Int(0, I64), "3600000", "How far in the future a record's time may lie."),
    key("log.message.timestamp.before.max.ms", Kind::Int(0, I64), "9223372036854775807", "How far in the past a record's time may lie."),
    key("log.message.timestamp.type", Kind::Word(topic_words::TIMESTAMPS), "CreateTime", "Whose clock a record's time is of."),
    key("log.retention.bytes", Kind::Int(-1, I64), "-1", "Bytes that a partition keeps; -1 for no bound."),
    key("log.retention.check.interval.ms", Kind::Int(1, I64), "300000", "How often old segments are looked for."),
    key("log.retention.hours", Kind::Int(-1, I32), "168", "Hours that records are kept, when minutes and ms are not set."),
    unset("log.retention.minutes", Kind::Int(-1, I32), "Minutes that records are kept, when ms is not set."),
    unset("log.retention.ms", Kind::Int(-1, I64), "Milliseconds that records are kept; -1 for ever."),
    key("log.roll.hours", Kind::Int(1, I32), "168", "Hours after which a segment is closed, when ms is not set."),
    unset("log.roll.ms", Kind::Int(1, I64), "Milliseconds after which a segment is closed."),
    key("log.segment.bytes", Kind::Int(1_048_576, I32), "1073741824", "Bytes at which a segment is closed."),
    key("log.segment.delete.delay.ms", Kind::Int(0, I64), "60000", "How long a removed segment's files stay for readers under way."),
    key("max.connections", Kind::Int(0, I32), "2147483647", "Most connections of the broker; never more than its file descriptors allow."),
    key("max.connections.per.ip", Kind::Int(0, I32), "2147483647", "Most connections from one address."),
    key("message.max.bytes", Kind::Int(0, I32), "1048588", "Largest batch, as stored."),
    unset("metadata.log.dir", Kind::Text, "Where the metadata quorum keeps its log; the first of log.dirs when not set."),
    key("min.insync.replicas", Kind::Int(1, I32), "1", "Replicas that must hold a record before acks=all is answered."),
    unset("node.id", Kind::Int(0, I32), "This node's id."),
    idle("num.io.threads", Kind::Int(1, I32), "8", THREADS),
    idle("num.network.threads", Kind::Int(1, I32), "3", THREADS),
    key("num.partitions", Kind::Int(1, I32), "1", "Partitions of a topic that is made without saying how many."),
    idle("num.recovery.threads.per.data.dir", Kind::Int(1, I32), "2", THREADS),
    idle("num.replica.fetchers", Kind::Int(1, I32), "1", ONE_BROKER),
    key("offset.metadata.max.bytes", Kind::Int(0, I32), "4096", "Longest note that a commit may carry."),
    key("offsets.commit.timeout.ms", Kind::Int(1, I32), "5000", "How long a commit waits to be stored."),
    key("offsets.retention.check.interval.ms", Kind::Int(1, I64), "600000", "How often expired offsets are looked for."),
    key("offsets.retention.minutes", Kind::Int(1, I32), "10080", "How long the offsets of an empty group are kept."),
    key("offsets.topic.num.partitions", Kind::Int(1, 10_000), "50", "Partitions of __consumer_offsets when it is made."),
    key(
        "offsets.topic.replication.factor",
        Kind::Int(1, 32767),
        "3",
        "Copies of __consumer_offsets when it is made; never more than there are brokers.",
    ),
    key("offsets.topic.segment.bytes", Kind::Int(1, I32), "104857600", "Segment size of __consumer_offsets when it is made."),
    unset("process.roles", Kind::Words(&["broker", "controller"]), "What this node is. This version runs both in one process."),
    key("producer.id.expiration.ms", Kind::Int(1, I32), "86400000", "How long an idle producer's sequence numbers are remembered."),
    key(
        "queued.max.request.bytes",
        Kind::Int(-1, I64),
        "-1",
        "Memory for requests being read or handled; -1 means 256 MiB (Kafka: no bound).",
    ),
    idle("queued.max.requests", Kind::Int(1, I32), "500", Effect::None("requests are bounded by their bytes (queued.max.request.bytes)")),
    key("replica.high.watermark.checkpoint.interval.ms", Kind::Int(1, I64), "5000", "How often high watermarks are written down."),
    idle("replica.lag.time.max.ms", Kind::Int(1, I64), "30000", ONE_BROKER),
    idle("share.coordinator.state.topic.min.isr", Kind::Int(1, 32767), "2", SHARE),
    idle("share.coordinator.state.topic.replication.factor", Kind::Int(1, 32767), "3", SHARE),
    idle("socket.listen.backlog.size", Kind::Int(1, I32), "1024", Effect::None("1024 connections may always wait to be accepted")),
    idle("socket.receive.buffer.bytes", Kind::Int(-1, I32), "102400", Effect::None("the system sizes socket buffers by itself")),
    key("socket.request.max.bytes", Kind::Int(1, I32), "104857600", "Largest request."),
    idle("socket.send.buffer.bytes", Kind::Int(-1, I32), "102400", Effect::None("the system sizes socket buffers by itself")),
    idle("transaction.state.log.min.isr", Kind::Int(1, I32), "2", TRANSACTIONS),
    idle("transaction.state.log.num.partitions", Kind::Int(1, I32), "50", TRANSACTIONS),
    idle("transaction.state.log.replication.factor", Kind::Int(1, 32767), "3", TRANSACTIONS),
    idle("unclean.leader.election.enable", Kind::Bool, "false", ONE_BROKER),
];

pub(super) mod topic_words {
    pub(crate) const CLEANUP: &[&str] = &["compact", "delete"];
    pub(crate) const CODECS: &[&str] = &["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"];
    pub(crate) const TIMESTAMPS: &[&str] = &["CreateTime", "LogAppendTime"];
}

/// Prefixes and names of Kafka's keys that are known and refused, so that the refusal can say so.
const UNSUPPORTED: &[&str] = &[
    "add.partitions.",
    "alter.config.policy",
    "alter.log.dirs.",
    "authorizer.",
    "broker.heartbeat.",
    "broker.session.",
    "client.quota.",
    "compression.lz4.level",
    "config.providers",
    "connection.failed.",
    "connections.max.reauth",
    "controller.",
    "cordoned.",
    "create.topic.policy",
    "delegation.token.",
    "delete.records.",
    "early.start.",
    "fetch.purgatory.",
    "follower.",
    "group.consumer.",
    "group.coordinator.",
    "group.share.",
    "group.streams.",
    "initial.broker.",
    "kafka.metrics.",
    "leader.",
    "log.cleaner.",
    "log.dir.failure",
    "log.flush.",
    "log.local.",
    "log.preallocate",
    "log.roll.jitter",
    "max.connection",
    "max.incremental.",
    "max.request.partition",
    "metadata.",
    "metric",
    "num.replica.",
    "offsets.load.",
    "offsets.topic.compression",
    "password.encoder",
    "principal.builder",
    "producer.purgatory",
    "quota.",
    "remote.",
    "replica",
    "request.timeout.ms",
    "sasl.",
    "security.",
    "share.",
    "socket.connection.",
    "ssl.",
    "super.users",
    "telemetry.",
    "transaction",
    "allow.everyone.if.no.acl.found",
    "zookeeper.",
];

/// The row of `name`.
#[must_use]
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.binary_search_by(|key| key.name.cmp(name)).ok().and_then(|at| KEYS.get(at))
}

/// Whether `name` may be set to `value`.
///
/// # Errors
/// What is wrong and what would be right.
pub fn check(name: &str, value: &str) -> Result<&'static Key, Problem> {
    match find(name) {
        Some(key) => key.kind.check(value).map(|()| key).map_err(|why| Problem::value(name, value, why)),
        None if UNSUPPORTED.iter().any(|known| name.starts_with(known)) => {
            Err(Problem::Unsupported { key: name.to_owned(), value: value.to_owned() })
        }
        None => Err(Problem::UnknownKey { key: name.to_owned(), value: value.to_owned(), near: nearest(name) }),
    }
}

fn nearest(name: &str) -> Option<&'static str> {
    KEYS.iter().map(|key| (distance(name, key.name), key.name)).min().filter(|(far, _)| *far <= 3).map(|(_, near)| near)
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
    fn the_table_is_sorted_and_its_defaults_fit() {
        assert!(KEYS.is_sorted_by(|a, b| a.name < b.name));
        for key in KEYS {
            if let Some(default) = key.default {
                key.kind.check(default).unwrap_or_else(|why| panic!("{}={default}: {why}", key.name));
            }
        }
    }

    #[test]
    fn refusals_say_name_value_why_and_range() {
        for (name, value, said) in [
            ("num.partitions", "0", "num.partitions=0: must be a whole number from 1 to 2147483647"),
            ("num.partitions", "many", "num.partitions=many: must be a whole number from 1 to 2147483647"),
            ("log.cleanup.policy", "shred", "log.cleanup.policy=shred: must be a list of compact, delete"),
            ("num.partition", "1", "num.partition=1: unknown setting; did you mean num.partitions?"),
            (
                "ssl.keystore.location",
                "/x",
                "ssl.keystore.location=/x: this version does not support ssl.keystore.location; remove the line",
            ),
        ] {
            assert_eq!(check(name, value).unwrap_err().to_string(), said);
        }
    }
}
