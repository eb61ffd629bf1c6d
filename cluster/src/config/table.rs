//! The rows of the broker keys, and what they are made of.
//!
//! Names, types, bounds and defaults are those of Apache Kafka 4.3.1, read from its own definitions; where this product's
//! promises ask for another default, the row says so.

use super::keys::{Effect, I32, I32_MIN, I64, I64_MIN, Key, Kind, words};

const THREADS: &str = "work is spread over the machine's cores by itself";
const TRANSACTIONS: &str = "transactions are not offered by this version";
const SHARE: &str = "share groups are not offered by this version";
const STREAMS: &str =
    "streams groups (KIP-1071) are not offered by this version; Kafka Streams uses classic groups";
const NEW_GROUPS: &str =
    "the consumer group protocol of KIP-848 is not offered by this version; classic groups are";
const ONE_BROKER: &str = "this version does not act on it, whatever the number of brokers";
const FOUND_ANYWAY: &str = "several nodes form a cluster without it; remove it";
const THROTTLES: &str = "replication is not throttled by this version";
const MOVES: &str = "partitions are not moved between log directories by this version";
const FETCHERS: &str = "one fetch is under way to each leader, for all partitions";
const SELECTOR: &str = "consumers read from leaders in this version";
const OWN_QUORUM: &str = "the metadata quorum has its own timing";
const OWN_METADATA: &str = "the metadata log bounds its size by itself";
const TIERED: &str = "tiered storage is not offered by this version; all records stay in log.dirs";
const QUOTAS: &str = "quotas are not offered by this version";
const METRICS: &str =
    "metrics are served over HTTP (admin.listener); there are no reporters to configure";
const BY_ITSELF: &str = "there is no such buffer or interval to set";
const CLEANER: &str = "compaction bounds its memory and pace by itself";
const JITTER: &str = "segments are rolled without jitter";
const PREALLOCATE: &str = "space is reserved ahead of every log's end in any case";
const CONNECTION_RATE: &str = "only max.connections and max.connections.per.ip bound connections";
const PROVIDERS: &str = "values of the form ${provider:…} are not replaced";
const OFFSETS_CODEC: &str = "committed offsets are stored without compression";
const LZ4: &str = "the broker compresses with lz4 at one level";
const NO_SECURITY: &str = "this version does not authenticate clients";
const AUTHORIZER: &str =
    "this version has no authorizer, so every client could read, write and change everything";
const POLICY: &str = "this version runs no policy classes, so nothing would be checked";
const SASL: &str = "this version does not authenticate clients, so everybody could connect";
const TLS: &str = "this version does not encrypt connections";

const fn key(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Key {
    Key { name, kind, default: Some(default), effect: Effect::Honoured, dynamic: false, help }
}

const fn unset(name: &'static str, kind: Kind, help: &'static str) -> Key {
    Key { name, kind, default: None, effect: Effect::Honoured, dynamic: false, help }
}

const fn idle(name: &'static str, kind: Kind, default: &'static str, effect: Effect) -> Key {
    Key { name, kind, default: Some(default), effect, dynamic: false, help: "" }
}

const fn idle_unset(name: &'static str, kind: Kind, effect: Effect) -> Key {
    Key { name, kind, default: None, effect, dynamic: false, help: "" }
}

/// Every broker key, sorted by name.
#[rustfmt::skip] // a row is a line
pub const KEYS: &[Key] = &[
    key(
        "accepted.lost.directory.ids",
        Kind::List,
        "",
        "The directory.id of each log directory whose loss is accepted: its line is taken out of \
         the list of used log directories (log-directories) at start, so that an empty directory \
         in its place is used, and the partitions that were only there are recreated, empty. A \
         directory that is there, or is in expected.directory.ids, is not given up, but what an \
         older state of it lacks is. Letterbox's own key.",
    ),
    key(
        "accepted.lost.metadata.log",
        Kind::Text,
        "",
        "Names the loss of the metadata log that was accepted: the directory.id of the directory that it was in or, where that is not known, any \
         other name. A node that finds no metadata log then begins a new one, though partitions are in its log \
         directories. One of several voters joins the others with it as a new voter would. The only one, and voters that have all lost theirs, begin \
         anew: the cluster has no topics, and those partitions are set aside as *-stray, never deleted. Without effect where there is a \
         metadata log, or where the directory of this id is metadata.log.dir. Letterbox's own key.",
    ),
    idle("add.partitions.to.txn.retry.backoff.max.ms", Kind::Int(0, I32), "100", Effect::None(TRANSACTIONS)),
    idle("add.partitions.to.txn.retry.backoff.ms", Kind::Int(1, I32), "20", Effect::None(TRANSACTIONS)),
    key(
        "admin.listener",
        Kind::Text,
        ":9644",
        "Address of health, readiness and metrics over HTTP, as host:port; `none` switches it off. Letterbox's own key.",
    ),
    unset(
        "advertised.listeners",
        Kind::List,
        "Addresses that clients are told to connect to. Not set: the listeners themselves. In place of no host, and of 0.0.0.0 there, the host that this node has in controller.quorum.voters among several voters, and localhost otherwise.",
    ),
    idle_unset("alter.config.policy.class.name", Kind::Class, Effect::Guard(POLICY)),
    idle("alter.log.dirs.replication.quota.window.num", Kind::Int(1, I32), "11", Effect::None(QUOTAS)),
    idle("alter.log.dirs.replication.quota.window.size.seconds", Kind::Int(1, I32), "1", Effect::None(QUOTAS)),
    idle("authorizer.class.name", Kind::Text, "", Effect::Guard(AUTHORIZER)),
    key("auto.create.topics.enable", Kind::Bool, "true", "Create a topic when a client asks for one that does not exist, and the client allows it."),
    key("auto.leader.rebalance.enable", Kind::Bool, "true", "Whether the active controller moves leadership back to preferred replicas that are in sync."),
    idle("background.threads", Kind::Int(1, I32), "10", Effect::None(THREADS)).dynamic(),
    key("broker.heartbeat.interval.ms", Kind::Int(1, I32), "2000", "Time between two heartbeats of this broker to the active controller."),
    unset("broker.id", Kind::Int(-1, I32), "The old name of node.id; must be equal to it when both are set."),
    unset("broker.rack", Kind::Text, "The rack or zone of this broker, part of Metadata responses."),
    key("broker.session.timeout.ms", Kind::Int(1, I32), "9000", "A broker that the active controller has not heard from for this long is fenced: it leads no partition until its next heartbeat. The active controller's own value counts."),
    idle_unset("client.quota.callback.class", Kind::Class, Effect::None(QUOTAS)),
    unset(
        "cluster.id",
        Kind::Text,
        "The cluster's id, any text. Not set: a random id is generated at the first start. Letterbox's own key (Kafka's format step has it as a flag).",
    ),
    key("compression.gzip.level", Kind::IntOr(-1, 1, 9), "-1", "Level of gzip when the broker recompresses a batch; -1 is gzip's default.").dynamic(),
    idle("compression.lz4.level", Kind::Int(1, 17), "9", Effect::None(LZ4)).dynamic(),
    key("compression.type", Kind::Word(words::CODECS), "producer", "Codec of stored batches; `producer` stores them as the producer sent them.")
        .dynamic(),
    key("compression.zstd.level", Kind::Int(-131_072, 22), "3", "Level of zstd when the broker recompresses a batch.").dynamic(),
    idle("config.providers", Kind::List, "", Effect::None(PROVIDERS)).dynamic(),
    key(
        "config.strict",
        Kind::Bool,
        "false",
        "Refuse to start on a setting that nothing acts on: an unknown key, one of clients or of another product, an empty value, or any value but the \
         default of a key that has no effect here. Without it each is a warning. Letterbox's own key.",
    ),
    idle("connection.failed.authentication.delay.ms", Kind::Int(0, I32), "100", Effect::None(NO_SECURITY)),
    key("connections.max.idle.ms", Kind::Long(-1, I64), "600000", "A connection with no request for this long is closed; -1 for never."),
    idle("connections.max.reauth.ms", Kind::Long(I64_MIN, I64), "0", Effect::Guard(SASL)),
    key("controlled.shutdown.enable", Kind::Bool, "true", "Whether the broker moves the leadership of its partitions to other brokers before it stops; takes at most 15 s."),
    unset("controller.listener.names", Kind::List, "The listener of the metadata quorum."),
    idle("controller.quorum.append.linger.ms", Kind::Int(0, I32), "25", Effect::None(OWN_QUORUM)),
    key("controller.quorum.auto.join.enable", Kind::Bool, "false", "Whether a node that is no voter becomes one by itself once it has all entries (KIP-1186). One that comes with an empty disk where a voter of its id was reached has that one removed first. Without it, kafka-metadata-quorum add-controller and remove-controller do both."),
    key("controller.quorum.bootstrap.servers", Kind::List, "", "Where voters are found, as host:port. This node's own controller listener alone is a quorum of this node, and so is one host at its port, unless the controller listener is told under another name. Others are joined: the node observes until it is made a voter. Three or five new nodes that find one another there, each of them at one of the addresses, found a cluster and are its voters. Not read beside controller.quorum.voters."),
    idle("controller.quorum.election.backoff.max.ms", Kind::Int(0, I32), "1000", Effect::None(OWN_QUORUM)),
    key("controller.quorum.election.timeout.ms", Kind::Int(0, I32), "1000", "A voter that asks for votes waits for them for half of this time, and asks again, where nobody leads then, after a half to one and a half of it. Less than 600 counts as 600, which is more than two heartbeats."),
    idle("controller.quorum.fetch.max.bytes", Kind::Int(1, I32), "1048576", Effect::None(OWN_QUORUM)),
    idle("controller.quorum.fetch.snapshot.max.bytes", Kind::Int(1, I32), "1048576", Effect::None(OWN_QUORUM)),
    key("controller.quorum.fetch.timeout.ms", Kind::Int(0, I32), "2000", "A voter that has heard of no active controller for between a half and three quarters of this time, drawn anew each time, asks for votes, and for half of it votes for nobody else. More is better where CPU or disk lack for seconds, and the active controller changes for it; one that ends without handing over is followed that much later, and so is the first one after all voters were started together. Less than 2000, or than twice controller.quorum.election.timeout.ms, counts as that, because an active controller counts on its voters for a second after each of their answers: those with less patience would elect another one beside it."),
    idle("controller.quorum.request.timeout.ms", Kind::Int(0, I32), "2000", Effect::None(OWN_QUORUM)),
    idle("controller.quorum.retry.backoff.ms", Kind::Int(0, I32), "20", Effect::None(OWN_QUORUM)),
    key("controller.quorum.voters", Kind::List, "", "The voters that found the cluster as id@host:port: 1, 3 or 5, in each of them the same. Afterwards the metadata log says who votes, and this is where the voters named here are reached: a later address of one has to be written here. Host names are looked up again at each connect. A node that is not named among several observes."),
    idle("controller.quota.window.num", Kind::Int(1, I32), "11", Effect::None(QUOTAS)),
    idle("controller.quota.window.size.seconds", Kind::Int(1, I32), "1", Effect::None(QUOTAS)),
    idle("controller.socket.timeout.ms", Kind::Int(I32_MIN, I32), "30000", Effect::None(ONE_BROKER)),
    idle("cordoned.log.dirs", Kind::List, "", Effect::None(ONE_BROKER)).dynamic(),
    idle_unset("create.topic.policy.class.name", Kind::Class, Effect::Guard(POLICY)),
    key("default.replication.factor", Kind::Int(1, 32767), "1", "Replication factor of a topic that is created without one."),
    idle("delegation.token.expiry.check.interval.ms", Kind::Long(1, I64), "3600000", Effect::None(NO_SECURITY)),
    idle("delegation.token.expiry.time.ms", Kind::Long(1, I64), "86400000", Effect::None(NO_SECURITY)),
    idle("delegation.token.max.lifetime.ms", Kind::Long(1, I64), "604800000", Effect::None(NO_SECURITY)),
    idle_unset("delegation.token.secret.key", Kind::Secret, Effect::None(NO_SECURITY)),
    idle("delete.records.purgatory.purge.interval.requests", Kind::Int(I32_MIN, I32), "1", Effect::None(BY_ITSELF)),
    key("delete.topic.enable", Kind::Bool, "true", "Whether topics can be deleted."),
    idle_unset("early.start.listeners", Kind::List, Effect::None(ONE_BROKER)),
    key(
        "expected.directory.ids",
        Kind::List,
        "",
        "The directory.id of each directory of log.dirs and metadata.log.dir that has been used, in any order. When set, a directory that has \
         another id is refused at start, and so is an empty one while one of these is missing: an empty volume in place of a lost one does not \
         serve as if it held the records. An empty directory beside all of these is a new one, and is known from then on. Whoever starts \
         brokers sets it after a broker's first start (GET /identity on admin.listener tells the ids). Letterbox's own key.",
    ),
    key("fetch.max.bytes", Kind::Int(1024, I32), "57671680", "Largest fetch response, in bytes of records."),
    idle("fetch.purgatory.purge.interval.requests", Kind::Int(I32_MIN, I32), "1000", Effect::None(BY_ITSELF)),
    idle("follower.fetch.last.tiered.offset.enable", Kind::Bool, "false", Effect::None(TIERED)).dynamic(),
    idle("follower.replication.throttled.rate", Kind::Long(0, I64), "9223372036854775807", Effect::None(THROTTLES)).dynamic(),
    idle("group.consumer.assignment.interval.ms", Kind::Int(0, I32), "1000", Effect::None(NEW_GROUPS)).dynamic(),
    idle("group.consumer.assignors", Kind::List, "uniform,range", Effect::None(NEW_GROUPS)),
    idle("group.consumer.heartbeat.interval.ms", Kind::Int(1, I32), "5000", Effect::None(NEW_GROUPS)),
    idle("group.consumer.max.assignment.interval.ms", Kind::Int(0, I32), "15000", Effect::None(NEW_GROUPS)),
    idle("group.consumer.max.heartbeat.interval.ms", Kind::Int(1, I32), "15000", Effect::None(NEW_GROUPS)),
    idle("group.consumer.max.session.timeout.ms", Kind::Int(1, I32), "60000", Effect::None(NEW_GROUPS)),
    idle("group.consumer.max.size", Kind::Int(1, I32), "2147483647", Effect::None(NEW_GROUPS)),
    idle("group.consumer.migration.policy", Kind::Text, "bidirectional", Effect::None(NEW_GROUPS)),
    idle("group.consumer.min.assignment.interval.ms", Kind::Int(0, I32), "0", Effect::None(NEW_GROUPS)),
    idle("group.consumer.min.heartbeat.interval.ms", Kind::Int(1, I32), "5000", Effect::None(NEW_GROUPS)),
    idle("group.consumer.min.session.timeout.ms", Kind::Int(1, I32), "45000", Effect::None(NEW_GROUPS)),
    idle("group.consumer.session.timeout.ms", Kind::Int(1, I32), "45000", Effect::None(NEW_GROUPS)),
    idle("group.coordinator.append.linger.ms", Kind::Int(-1, I32), "-1", Effect::None(NEW_GROUPS)),
    idle("group.coordinator.background.threads", Kind::Int(1, I32), "2", Effect::None(NEW_GROUPS)),
    idle("group.coordinator.cached.buffer.max.bytes", Kind::Int(524_288, I32), "1048588", Effect::None(NEW_GROUPS)).dynamic(),
    idle(
        "group.coordinator.rebalance.protocols",
        Kind::Words(&["classic", "consumer", "streams", "share"]),
        "classic",
        Effect::None("this version offers the classic protocol alone"),
    ),
    idle("group.coordinator.threads", Kind::Int(1, I32), "4", Effect::None(THREADS)),
    key(
        "group.initial.rebalance.delay.ms",
        Kind::Int(0, I32),
        "3000",
        "Time that an empty group waits for more members before its first rebalance.",
    ),
    key("group.max.session.timeout.ms", Kind::Int(1, I32), "1800000", "Longest session timeout that a member may ask for."),
    key("group.max.size", Kind::Int(1, I32), "2147483647", "Largest number of members of a group."),
    key("group.min.session.timeout.ms", Kind::Int(0, I32), "6000", "Shortest session timeout that a member may ask for."),
    idle("group.share.assignment.interval.ms", Kind::Int(0, I32), "1000", Effect::None(SHARE)).dynamic(),
    idle("group.share.assignors", Kind::List, "simple", Effect::None(SHARE)),
    idle("group.share.delivery.count.limit", Kind::Int(2, 10), "5", Effect::None(SHARE)),
    idle("group.share.heartbeat.interval.ms", Kind::Int(1, I32), "5000", Effect::None(SHARE)),
    idle("group.share.max.assignment.interval.ms", Kind::Int(0, I32), "15000", Effect::None(SHARE)),
    idle("group.share.max.delivery.count.limit", Kind::Int(5, 25), "10", Effect::None(SHARE)),
    idle("group.share.max.heartbeat.interval.ms", Kind::Int(1, I32), "15000", Effect::None(SHARE)),
    idle("group.share.max.partition.max.record.locks", Kind::Int(2000, 10_000), "4000", Effect::None(SHARE)),
    idle("group.share.max.record.lock.duration.ms", Kind::Int(30_000, 3_600_000), "60000", Effect::None(SHARE)),
    idle("group.share.max.session.timeout.ms", Kind::Int(1, I32), "60000", Effect::None(SHARE)),
    idle("group.share.max.share.sessions", Kind::Int(1, I32), "2000", Effect::None(SHARE)),
    idle("group.share.max.size", Kind::Int(1, 1000), "200", Effect::None(SHARE)),
    idle("group.share.min.assignment.interval.ms", Kind::Int(0, I32), "0", Effect::None(SHARE)),
    idle("group.share.min.delivery.count.limit", Kind::Int(2, 5), "2", Effect::None(SHARE)),
    idle("group.share.min.heartbeat.interval.ms", Kind::Int(1, I32), "5000", Effect::None(SHARE)),
    idle("group.share.min.partition.max.record.locks", Kind::Int(100, 2000), "100", Effect::None(SHARE)),
    idle("group.share.min.record.lock.duration.ms", Kind::Int(1000, 30_000), "15000", Effect::None(SHARE)),
    idle("group.share.min.session.timeout.ms", Kind::Int(1, I32), "45000", Effect::None(SHARE)),
    idle("group.share.partition.max.record.locks", Kind::Int(100, 10_000), "2000", Effect::None(SHARE)),
    idle("group.share.record.lock.duration.ms", Kind::Int(1000, 3_600_000), "30000", Effect::None(SHARE)),
    idle("group.share.session.timeout.ms", Kind::Int(1, I32), "45000", Effect::None(SHARE)),
    idle("group.streams.assignment.interval.ms", Kind::Int(0, I32), "1000", Effect::None(STREAMS)).dynamic(),
    idle("group.streams.heartbeat.interval.ms", Kind::Int(1, I32), "5000", Effect::None(STREAMS)),
    idle("group.streams.initial.rebalance.delay.ms", Kind::Int(0, I32), "3000", Effect::None(STREAMS)),
    idle("group.streams.max.assignment.interval.ms", Kind::Int(0, I32), "15000", Effect::None(STREAMS)),
    idle("group.streams.max.heartbeat.interval.ms", Kind::Int(1, I32), "15000", Effect::None(STREAMS)),
    idle("group.streams.max.session.timeout.ms", Kind::Int(1, I32), "60000", Effect::None(STREAMS)),
    idle("group.streams.max.size", Kind::Int(1, I32), "2147483647", Effect::None(STREAMS)),
    idle("group.streams.max.standby.replicas", Kind::Int(0, I32), "2", Effect::None(STREAMS)),
    idle("group.streams.min.assignment.interval.ms", Kind::Int(0, I32), "0", Effect::None(STREAMS)),
    idle("group.streams.min.heartbeat.interval.ms", Kind::Int(1, I32), "5000", Effect::None(STREAMS)),
    idle("group.streams.min.session.timeout.ms", Kind::Int(1, I32), "45000", Effect::None(STREAMS)),
    idle("group.streams.num.standby.replicas", Kind::Int(0, I32), "0", Effect::None(STREAMS)),
    idle("group.streams.session.timeout.ms", Kind::Int(1, I32), "45000", Effect::None(STREAMS)),
    idle("initial.broker.registration.timeout.ms", Kind::Int(I32_MIN, I32), "60000", Effect::None(ONE_BROKER)),
    unset("inter.broker.listener.name", Kind::Text, "The listener that brokers use between themselves."),
    idle("kafka.metrics.polling.interval.secs", Kind::Int(1, I32), "10", Effect::None(METRICS)),
    idle("kafka.metrics.reporters", Kind::List, "", Effect::None(METRICS)),
    key("leader.imbalance.check.interval.seconds", Kind::Long(1, I64), "300", "Interval between checks for partitions that are not led by their preferred replica."),
    idle("leader.replication.throttled.rate", Kind::Long(0, I64), "9223372036854775807", Effect::None(THROTTLES)).dynamic(),
    key(
        "listener.security.protocol.map",
        Kind::List,
        "PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL",
        "The protocol of each listener name. This version offers PLAINTEXT only.",
    ),
    key("listeners", Kind::List, "PLAINTEXT://:9092", "Addresses that the broker listens on, as NAME://HOST:PORT."),
    key("log.cleaner.backoff.ms", Kind::Long(0, I64), "15000", "Interval between checks for logs to compact.").dynamic(),
    idle("log.cleaner.dedupe.buffer.size", Kind::Long(I64_MIN, I64), "134217728", Effect::None(CLEANER)).dynamic(),
    key("log.cleaner.delete.retention.ms", Kind::Long(0, I64), "86400000", "Time that a tombstone stays in a compacted topic.").dynamic(),
    idle("log.cleaner.enable", Kind::Bool, "true", Effect::None("compaction always runs, because committed offsets are kept by it")),
    idle("log.cleaner.io.buffer.load.factor", Kind::Double(f64::MIN, f64::MAX), "0.9", Effect::None(CLEANER)).dynamic(),
    idle("log.cleaner.io.buffer.size", Kind::Int(0, I32), "524288", Effect::None(CLEANER)).dynamic(),
    idle("log.cleaner.io.max.bytes.per.second", Kind::Double(f64::MIN, f64::MAX), "1.7976931348623157E308", Effect::None(CLEANER))
        .dynamic(),
    key("log.cleaner.max.compaction.lag.ms", Kind::Long(1, I64), "9223372036854775807", "Longest time that a record stays uncompacted.")
        .dynamic(),
    key(
        "log.cleaner.min.cleanable.ratio",
        Kind::Double(0.0, 1.0),
        "0.5",
        "Ratio of uncompacted bytes to the log's size at which the log is compacted.",
    )
    .dynamic(),
    key("log.cleaner.min.compaction.lag.ms", Kind::Long(0, I64), "0", "Shortest time that a record stays uncompacted.").dynamic(),
    idle("log.cleaner.threads", Kind::Int(0, I32), "1", Effect::None(THREADS)).dynamic(),
    key("log.cleanup.policy", Kind::WordsOrNone(words::CLEANUP), "delete", "What happens to old records: deleted, compacted, or both.").dynamic(),
    key("log.dir", Kind::List, "/tmp/kafka-logs", "Directory of the records, when log.dirs is not set."),
    idle("log.dir.failure.timeout.ms", Kind::Long(1, I64), "30000", Effect::None(ONE_BROKER)),
    key(
        "log.dir.reserve.bytes",
        Kind::Long(-1, I64),
        "-1",
        "Bytes of each log directory's file system that stay free: below it clients' records are refused with KAFKA_STORAGE_ERROR, which \
         they retry, until there is space again. Group offsets, the metadata log, checkpoints and the shutdown use it. -1 is 64 MiB, or a \
         sixteenth of a file system smaller than 1 GiB. Letterbox's own key.",
    ),
    unset("log.dirs", Kind::List, "Directories of the records."),
    key(
        "log.flush.interval.messages",
        Kind::Long(1, I64),
        "9223372036854775807",
        "Any value but the default makes acks=all wait for the disk, as log.flush.on.ack does.",
    )
    .dynamic(),
    unset(
        "log.flush.interval.ms",
        Kind::Long(0, I64),
        "Any value but the default makes acks=all wait for the disk, as log.flush.on.ack does.",
    )
    .dynamic(),
    key(
        "log.flush.offset.checkpoint.interval.ms",
        Kind::Int(0, I32),
        "60000",
        "Time between two writes of the recovery point. It bounds how much is read again after a crash.",
    ),
    key(
        "log.flush.on.ack",
        Kind::Bool,
        "true",
        "Answer acks=all only once the records are on stable storage; false gives Kafka's page-cache behaviour. Letterbox's own key.",
    )
    .dynamic(),
    idle(
        "log.flush.scheduler.interval.ms",
        Kind::Long(0, I64),
        "9223372036854775807",
        Effect::None("nothing is flushed by the clock; log.flush.on.ack says whether an answer waits for it"),
    ),
    idle("log.flush.start.offset.checkpoint.interval.ms", Kind::Int(0, I32), "60000", Effect::None(BY_ITSELF)),
    key("log.index.interval.bytes", Kind::Int(0, I32), "4096", "Bytes of records between two index entries.").dynamic(),
    key("log.index.size.max.bytes", Kind::Int(4, I32), "10485760", "Largest index of a segment, in bytes.").dynamic(),
    idle("log.local.retention.bytes", Kind::Long(-2, I64), "-2", Effect::None(TIERED)).dynamic(),
    idle("log.local.retention.ms", Kind::Long(-2, I64), "-2", Effect::None(TIERED)).dynamic(),
    key("log.message.timestamp.after.max.ms", Kind::Long(0, I64), "3600000", "How far a record's timestamp may be ahead of the broker's clock.").dynamic(),
    key("log.message.timestamp.before.max.ms", Kind::Long(0, I64), "9223372036854775807", "How far a record's timestamp may be behind the broker's clock.")
        .dynamic(),
    key(
        "log.message.timestamp.type",
        Kind::Word(words::TIMESTAMPS),
        "CreateTime",
        "Which clock sets record timestamps: the producer's (CreateTime) or the broker's (LogAppendTime).",
    )
    .dynamic(),
    idle("log.preallocate", Kind::Bool, "false", Effect::None(PREALLOCATE)).dynamic(),
    key("log.retention.bytes", Kind::Long(-1, I64), "-1", "Bytes that a partition keeps; -1: no bound.").dynamic(),
    key("log.retention.check.interval.ms", Kind::Long(1, I64), "300000", "Interval between checks for segments past retention."),
    key("log.retention.hours", Kind::Int(-1, I32), "168", "Hours that records are kept, when log.retention.minutes and log.retention.ms are not set."),
    unset("log.retention.minutes", Kind::Int(-1, I32), "Minutes that records are kept, when log.retention.ms is not set."),
    unset("log.retention.ms", Kind::Long(-1, I64), "Milliseconds that records are kept; -1: no bound.").dynamic(),
    key("log.roll.hours", Kind::Int(1, I32), "168", "Age in hours at which a segment is rolled, when log.roll.ms is not set."),
    idle("log.roll.jitter.hours", Kind::Int(0, I32), "0", Effect::None(JITTER)),
    idle_unset("log.roll.jitter.ms", Kind::Long(I64_MIN, I64), Effect::None(JITTER)).dynamic(),
    unset("log.roll.ms", Kind::Long(1, I64), "Age in milliseconds at which a segment is rolled.").dynamic(),
    key("log.segment.bytes", Kind::Int(1_048_576, I32), "1073741824", "Size in bytes at which a segment is rolled.").dynamic(),
    key("log.segment.delete.delay.ms", Kind::Long(0, I64), "60000", "Time before the files of a removed segment are deleted, so that running reads can finish.")
        .dynamic(),
    idle("max.connection.creation.rate", Kind::Int(0, I32), "2147483647", Effect::None(CONNECTION_RATE)).dynamic(),
    key("max.connections", Kind::Int(1, I32), "2147483647", "Largest number of connections of the broker; its file descriptors may allow fewer.")
        .dynamic(),
    key("max.connections.per.ip", Kind::Int(1, I32), "2147483647", "Largest number of connections from one address.").dynamic(),
    idle("max.connections.per.ip.overrides", Kind::Text, "", Effect::None(CONNECTION_RATE)).dynamic(),
    key(
        "max.decompressed.message.bytes",
        Kind::Int(1, I32),
        "268435456",
        "Largest record of a compressed batch, unpacked, in bytes (Kafka: no bound). A whole batch may unpack to 256 MiB, or to one such record. Letterbox's own key.",
    )
    .dynamic(),
    key("max.incremental.fetch.session.cache.slots", Kind::Int(0, I32), "1000", "Fetch sessions of consumers (KIP-227) that are kept at most. A consumer without one names all of its partitions in each request, and is answered about all of them. They have at most an eighth of queued.max.request.bytes."),
    key("max.request.partition.size.limit", Kind::Int(1, I32), "2000", "Largest number of partitions in one response to DescribeTopicPartitions."),
    key("message.max.bytes", Kind::Int(0, I32), "1048588", "Largest batch, in bytes as stored.").dynamic(),
    unset("metadata.log.dir", Kind::Text, "Directory of the metadata log. Not set: the first of log.dirs."),
    idle("metadata.log.max.record.bytes.between.snapshots", Kind::Long(1, I64), "20971520", Effect::None(OWN_METADATA)),
    idle("metadata.log.max.snapshot.interval.ms", Kind::Long(0, I64), "3600000", Effect::None(OWN_METADATA)),
    idle("metadata.log.segment.bytes", Kind::Int(8_388_608, I32), "1073741824", Effect::None(OWN_METADATA)),
    idle("metadata.log.segment.ms", Kind::Long(I64_MIN, I64), "604800000", Effect::None(OWN_METADATA)),
    idle("metadata.max.idle.interval.ms", Kind::Int(0, I32), "500", Effect::None(OWN_METADATA)),
    idle("metadata.max.retention.bytes", Kind::Long(I64_MIN, I64), "104857600", Effect::None(OWN_METADATA)),
    idle("metadata.max.retention.ms", Kind::Long(I64_MIN, I64), "604800000", Effect::None(OWN_METADATA)),
    idle("metric.reporters", Kind::List, "org.apache.kafka.common.metrics.JmxReporter", Effect::None(METRICS)).dynamic(),
    idle("metrics.num.samples", Kind::Int(1, I32), "2", Effect::None(METRICS)),
    idle("metrics.recording.level", Kind::Text, "INFO", Effect::None(METRICS)),
    idle("metrics.sample.window.ms", Kind::Long(1, I64), "30000", Effect::None(METRICS)),
    key("min.insync.replicas", Kind::Int(1, I32), "1", "Replicas that must be in sync for a write with acks=all.").dynamic(),
    key(
        "missing.directories.wait.enable",
        Kind::Bool,
        "false",
        "What a broker does that is refused its log directories at start, because one of expected.directory.ids is missing or another one is in \
         its place, or because the metadata log is missing beside partitions. true: it stays up, not ready, tells what it has and misses \
         (GET /identity and /readyz on admin.listener), looks again each second, and starts when all is there. false: it ends. Letterbox's own key.",
    ),
    unset("node.id", Kind::Int(0, I32), "This node's id, unique in the cluster."),
    idle("num.io.threads", Kind::Int(1, I32), "8", Effect::None(THREADS)).dynamic(),
    idle("num.network.threads", Kind::Int(1, I32), "3", Effect::None(THREADS)).dynamic(),
    key("num.partitions", Kind::Int(1, I32), "1", "Partitions of a topic that is created without a number."),
    idle("num.recovery.threads.per.data.dir", Kind::Int(1, I32), "2", Effect::None(THREADS)).dynamic(),
    idle_unset("num.replica.alter.log.dirs.threads", Kind::Int(I32_MIN, I32), Effect::None(MOVES)),
    idle("num.replica.fetchers", Kind::Int(1, I32), "1", Effect::None(FETCHERS)).dynamic(),
    key("offset.metadata.max.bytes", Kind::Int(0, I32), "4096", "Longest metadata text of a committed offset, in bytes."),
    key("offsets.commit.timeout.ms", Kind::Int(1, I32), "5000", "Time that an offset commit may take to be stored."),
    idle("offsets.load.buffer.size", Kind::Int(1, I32), "5242880", Effect::None(BY_ITSELF)),
    key("offsets.retention.check.interval.ms", Kind::Long(1, I64), "600000", "Interval between checks for expired offsets."),
    key("offsets.retention.minutes", Kind::Int(1, I32), "10080", "Minutes that the offsets of an empty group are kept."),
    idle("offsets.topic.compression.codec", Kind::Int(I32_MIN, I32), "0", Effect::None(OFFSETS_CODEC)),
    key("offsets.topic.num.partitions", Kind::Int(1, 10_000), "50", "Partitions of __consumer_offsets when it is created."),
    key(
        "offsets.topic.replication.factor",
        Kind::Short(1, 32767),
        "3",
        "Replication factor of __consumer_offsets when it is created; at most the number of brokers.",
    ),
    key("offsets.topic.segment.bytes", Kind::Int(1, I32), "104857600", "Segment size of __consumer_offsets when it is created, in bytes."),
    idle(
        "principal.builder.class",
        Kind::Class,
        "org.apache.kafka.common.security.authenticator.DefaultKafkaPrincipalBuilder",
        Effect::Guard(AUTHORIZER),
    ),
    unset("process.roles", Kind::Words(&["broker", "controller"]), "What this node does. This version runs both roles in one process."),
    key("producer.id.expiration.ms", Kind::Int(1, I32), "86400000", "How long an idle producer's sequence numbers are remembered."),
    idle("producer.purgatory.purge.interval.requests", Kind::Int(I32_MIN, I32), "1000", Effect::None(BY_ITSELF)),
    key(
        "queued.max.request.bytes",
        Kind::Long(-1, I64),
        "-1",
        "Memory that clients together may hold: requests that are read or handled, answers that they have not read. An eighth of it is kept for those up to 64 KiB. -1 means 256 MiB, or a quarter of the memory that the process may have (its container's limit, ulimit -v) where that is less (Kafka: no bound).",
    ),
    idle("queued.max.requests", Kind::Int(1, I32), "500", Effect::None("requests are bounded by their bytes (queued.max.request.bytes)")),
    idle("quota.window.num", Kind::Int(1, I32), "11", Effect::None(QUOTAS)),
    idle("quota.window.size.seconds", Kind::Int(1, I32), "1", Effect::None(QUOTAS)),
    idle("remote.fetch.max.wait.ms", Kind::Int(1, I32), "500", Effect::None(TIERED)).dynamic(),
    idle("remote.list.offsets.request.timeout.ms", Kind::Long(1, I64), "30000", Effect::None(TIERED)).dynamic(),
    idle("remote.log.index.file.cache.total.size.bytes", Kind::Long(1, I64), "1073741824", Effect::None(TIERED)).dynamic(),
    idle("remote.log.manager.copier.thread.pool.size", Kind::Int(1, I32), "10", Effect::None(TIERED)).dynamic(),
    idle("remote.log.manager.copy.max.bytes.per.second", Kind::Long(1, I64), "9223372036854775807", Effect::None(TIERED)).dynamic(),
    idle("remote.log.manager.copy.quota.window.num", Kind::Int(1, I32), "11", Effect::None(QUOTAS)),
    idle("remote.log.manager.copy.quota.window.size.seconds", Kind::Int(1, I32), "1", Effect::None(QUOTAS)),
    idle("remote.log.manager.expiration.thread.pool.size", Kind::Int(1, I32), "10", Effect::None(TIERED)).dynamic(),
    idle("remote.log.manager.fetch.max.bytes.per.second", Kind::Long(1, I64), "9223372036854775807", Effect::None(TIERED)).dynamic(),
    idle("remote.log.manager.fetch.quota.window.num", Kind::Int(1, I32), "11", Effect::None(QUOTAS)),
    idle("remote.log.manager.fetch.quota.window.size.seconds", Kind::Int(1, I32), "1", Effect::None(QUOTAS)),
    idle("remote.log.manager.follower.thread.pool.size", Kind::Int(1, I32), "2", Effect::None(TIERED)).dynamic(),
    idle("remote.log.manager.task.interval.ms", Kind::Long(1, I64), "30000", Effect::None(TIERED)),
    idle("remote.log.manager.thread.pool.size", Kind::Int(1, I32), "2", Effect::None(TIERED)),
    idle("remote.log.metadata.custom.metadata.max.bytes", Kind::Int(0, I32), "128", Effect::None(TIERED)),
    idle(
        "remote.log.metadata.manager.class.name",
        Kind::Text,
        "org.apache.kafka.server.log.remote.metadata.storage.TopicBasedRemoteLogMetadataManager",
        Effect::None(TIERED),
    ),
    idle_unset("remote.log.metadata.manager.class.path", Kind::Text, Effect::None(TIERED)),
    idle("remote.log.metadata.manager.impl.prefix", Kind::Text, "rlmm.config.", Effect::None(TIERED)),
    idle_unset("remote.log.metadata.manager.listener.name", Kind::Text, Effect::None(TIERED)),
    idle("remote.log.reader.max.pending.tasks", Kind::Int(1, I32), "100", Effect::None(TIERED)),
    idle("remote.log.reader.threads", Kind::Int(1, I32), "10", Effect::None(TIERED)).dynamic(),
    idle_unset("remote.log.storage.manager.class.name", Kind::Text, Effect::None(TIERED)),
    idle_unset("remote.log.storage.manager.class.path", Kind::Text, Effect::None(TIERED)),
    idle("remote.log.storage.manager.impl.prefix", Kind::Text, "rsm.config.", Effect::None(TIERED)),
    idle("remote.log.storage.system.enable", Kind::Bool, "false", Effect::None(TIERED)),
    idle("replica.alter.log.dirs.io.max.bytes.per.second", Kind::Long(0, I64), "9223372036854775807", Effect::None(MOVES)).dynamic(),
    key("replica.fetch.backoff.ms", Kind::Int(0, I32), "1000", "Time before a follower retries a failed fetch, in milliseconds."),
    key("replica.fetch.max.bytes", Kind::Int(0, I32), "1048576", "Most bytes of one partition in a fetch response to a follower; a first batch that is larger is still returned."),
    key("replica.fetch.min.bytes", Kind::Int(I32_MIN, I32), "1", "Bytes that a leader collects before it answers a follower's fetch, waiting at most replica.fetch.wait.max.ms."),
    key("replica.fetch.response.max.bytes", Kind::Int(0, I32), "10485760", "Most bytes of records in a fetch response to a follower; a first batch that is larger is still returned."),
    key("replica.fetch.wait.max.ms", Kind::Int(I32_MIN, I32), "500", "Longest time a leader lets a follower wait for records, in milliseconds."),
    key("replica.high.watermark.checkpoint.interval.ms", Kind::Long(1, I64), "5000", "Time between two writes of the high watermarks."),
    key("replica.lag.time.max.ms", Kind::Long(1, I64), "30000", "Time after which a follower that has not caught up leaves the in-sync replicas, in milliseconds."),
    idle_unset("replica.selector.class", Kind::Text, Effect::None(SELECTOR)),
    idle("replica.socket.receive.buffer.bytes", Kind::Int(I32_MIN, I32), "65536", Effect::None(BY_ITSELF)),
    key("replica.socket.timeout.ms", Kind::Int(I32_MIN, I32), "30000", "Longest time a follower waits for its leader's answer, and for a connection to it, in milliseconds."),
    idle("replication.quota.window.num", Kind::Int(1, I32), "11", Effect::None(QUOTAS)),
    idle("replication.quota.window.size.seconds", Kind::Int(1, I32), "1", Effect::None(QUOTAS)),
    idle("request.timeout.ms", Kind::Int(I32_MIN, I32), "30000", Effect::None(ONE_BROKER)),
    idle_unset("sasl.client.callback.handler.class", Kind::Class, Effect::Guard(SASL)),
    idle("sasl.enabled.mechanisms", Kind::List, "GSSAPI", Effect::Guard(SASL)),
    idle_unset("sasl.jaas.config", Kind::Secret, Effect::Guard(SASL)),
    idle("sasl.kerberos.kinit.cmd", Kind::Text, "/usr/bin/kinit", Effect::Guard(SASL)),
    idle("sasl.kerberos.min.time.before.relogin", Kind::Long(I64_MIN, I64), "60000", Effect::Guard(SASL)),
    idle("sasl.kerberos.principal.to.local.rules", Kind::List, "DEFAULT", Effect::Guard(SASL)),
    idle_unset("sasl.kerberos.service.name", Kind::Text, Effect::Guard(SASL)),
    idle("sasl.kerberos.ticket.renew.jitter", Kind::Double(f64::MIN, f64::MAX), "0.05", Effect::Guard(SASL)),
    idle("sasl.kerberos.ticket.renew.window.factor", Kind::Double(f64::MIN, f64::MAX), "0.8", Effect::Guard(SASL)),
    idle_unset("sasl.login.callback.handler.class", Kind::Class, Effect::Guard(SASL)),
    idle_unset("sasl.login.class", Kind::Class, Effect::Guard(SASL)),
    idle_unset("sasl.login.connect.timeout.ms", Kind::Int(I32_MIN, I32), Effect::Guard(SASL)),
    idle_unset("sasl.login.read.timeout.ms", Kind::Int(I32_MIN, I32), Effect::Guard(SASL)),
    idle("sasl.login.refresh.buffer.seconds", Kind::Short(-32_768, 32_767), "300", Effect::Guard(SASL)),
    idle("sasl.login.refresh.min.period.seconds", Kind::Short(-32_768, 32_767), "60", Effect::Guard(SASL)),
    idle("sasl.login.refresh.window.factor", Kind::Double(f64::MIN, f64::MAX), "0.8", Effect::Guard(SASL)),
    idle("sasl.login.refresh.window.jitter", Kind::Double(f64::MIN, f64::MAX), "0.05", Effect::Guard(SASL)),
    idle("sasl.login.retry.backoff.max.ms", Kind::Long(I64_MIN, I64), "10000", Effect::Guard(SASL)),
    idle("sasl.login.retry.backoff.ms", Kind::Long(I64_MIN, I64), "100", Effect::Guard(SASL)),
    idle("sasl.mechanism.controller.protocol", Kind::Text, "GSSAPI", Effect::Guard(SASL)),
    idle("sasl.mechanism.inter.broker.protocol", Kind::Text, "GSSAPI", Effect::Guard(SASL)),
    idle("sasl.oauthbearer.assertion.algorithm", Kind::Text, "RS256", Effect::Guard(SASL)),
    idle_unset("sasl.oauthbearer.assertion.claim.aud", Kind::Text, Effect::Guard(SASL)),
    idle("sasl.oauthbearer.assertion.claim.exp.seconds", Kind::Int(0, 86_400), "300", Effect::Guard(SASL)),
    idle_unset("sasl.oauthbearer.assertion.claim.iss", Kind::Text, Effect::Guard(SASL)),
    idle("sasl.oauthbearer.assertion.claim.jti.include", Kind::Bool, "false", Effect::Guard(SASL)),
    idle("sasl.oauthbearer.assertion.claim.nbf.seconds", Kind::Int(0, 3600), "60", Effect::Guard(SASL)),
    idle_unset("sasl.oauthbearer.assertion.claim.sub", Kind::Text, Effect::Guard(SASL)),
    idle_unset("sasl.oauthbearer.assertion.file", Kind::Text, Effect::Guard(SASL)),
    idle_unset("sasl.oauthbearer.assertion.private.key.file", Kind::Text, Effect::Guard(SASL)),
    idle_unset("sasl.oauthbearer.assertion.private.key.passphrase", Kind::Secret, Effect::Guard(SASL)),
    idle_unset("sasl.oauthbearer.assertion.template.file", Kind::Text, Effect::Guard(SASL)),
    idle_unset("sasl.oauthbearer.client.credentials.client.id", Kind::Text, Effect::Guard(SASL)),
    idle_unset("sasl.oauthbearer.client.credentials.client.secret", Kind::Secret, Effect::Guard(SASL)),
    idle("sasl.oauthbearer.clock.skew.seconds", Kind::Int(I32_MIN, I32), "30", Effect::Guard(SASL)),
    idle("sasl.oauthbearer.expected.audience", Kind::List, "", Effect::Guard(SASL)),
    idle_unset("sasl.oauthbearer.expected.issuer", Kind::Text, Effect::Guard(SASL)),
    idle("sasl.oauthbearer.jwks.endpoint.refresh.ms", Kind::Long(I64_MIN, I64), "3600000", Effect::Guard(SASL)),
    idle("sasl.oauthbearer.jwks.endpoint.retry.backoff.max.ms", Kind::Long(I64_MIN, I64), "10000", Effect::Guard(SASL)),
    idle("sasl.oauthbearer.jwks.endpoint.retry.backoff.ms", Kind::Long(I64_MIN, I64), "100", Effect::Guard(SASL)),
    idle_unset("sasl.oauthbearer.jwks.endpoint.url", Kind::Text, Effect::Guard(SASL)),
    idle(
        "sasl.oauthbearer.jwt.retriever.class",
        Kind::Class,
        "org.apache.kafka.common.security.oauthbearer.DefaultJwtRetriever",
        Effect::Guard(SASL),
    ),
    idle(
        "sasl.oauthbearer.jwt.validator.class",
        Kind::Class,
        "org.apache.kafka.common.security.oauthbearer.DefaultJwtValidator",
        Effect::Guard(SASL),
    ),
    idle_unset("sasl.oauthbearer.scope", Kind::Text, Effect::Guard(SASL)),
    idle("sasl.oauthbearer.scope.claim.name", Kind::Text, "scope", Effect::Guard(SASL)),
    idle("sasl.oauthbearer.sub.claim.name", Kind::Text, "sub", Effect::Guard(SASL)),
    idle_unset("sasl.oauthbearer.token.endpoint.url", Kind::Text, Effect::Guard(SASL)),
    idle_unset("sasl.server.callback.handler.class", Kind::Class, Effect::Guard(SASL)),
    idle("sasl.server.max.receive.size", Kind::Int(I32_MIN, I32), "524288", Effect::Guard(SASL)),
    idle(
        "security.inter.broker.protocol",
        Kind::Word(&["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]),
        "PLAINTEXT",
        Effect::Guard(TLS),
    ),
    idle_unset("security.providers", Kind::Text, Effect::None(NO_SECURITY)),
    idle("share.coordinator.append.linger.ms", Kind::Int(-1, I32), "-1", Effect::None(SHARE)),
    idle("share.coordinator.cached.buffer.max.bytes", Kind::Int(524_288, I32), "1048588", Effect::None(SHARE)).dynamic(),
    idle("share.coordinator.load.buffer.size", Kind::Int(1, I32), "5242880", Effect::None(SHARE)),
    idle("share.coordinator.snapshot.update.records.per.snapshot", Kind::Int(0, 500), "500", Effect::None(SHARE)),
    idle("share.coordinator.state.topic.compression.codec", Kind::Int(I32_MIN, I32), "0", Effect::None(SHARE)),
    idle("share.coordinator.state.topic.min.isr", Kind::Short(1, 32767), "2", Effect::None(SHARE)),
    idle("share.coordinator.state.topic.num.partitions", Kind::Int(1, I32), "50", Effect::None(SHARE)),
    idle("share.coordinator.state.topic.replication.factor", Kind::Short(1, 32767), "3", Effect::None(SHARE)),
    idle("share.coordinator.state.topic.segment.bytes", Kind::Int(1, I32), "104857600", Effect::None(SHARE)),
    idle("share.coordinator.threads", Kind::Int(1, I32), "1", Effect::None(SHARE)),
    idle("share.coordinator.write.timeout.ms", Kind::Int(1, I32), "5000", Effect::None(SHARE)),
    idle("share.fetch.purgatory.purge.interval.requests", Kind::Int(I32_MIN, I32), "1000", Effect::None(SHARE)),
    idle("socket.connection.setup.timeout.max.ms", Kind::Long(I64_MIN, I64), "30000", Effect::None(CONNECTION_RATE)),
    idle("socket.connection.setup.timeout.ms", Kind::Long(I64_MIN, I64), "10000", Effect::None(CONNECTION_RATE)),
    idle("socket.listen.backlog.size", Kind::Int(1, I32), "50", Effect::None("1024 connections may always wait to be accepted")),
    idle("socket.receive.buffer.bytes", Kind::Int(-1, I32), "102400", Effect::None("the system sizes socket buffers by itself")),
    key("socket.request.max.bytes", Kind::Int(1, I32), "104857600", "Largest request, in bytes."),
    idle("socket.send.buffer.bytes", Kind::Int(-1, I32), "102400", Effect::None("the system sizes socket buffers by itself")),
    idle("ssl.allow.dn.changes", Kind::Bool, "false", Effect::Guard(TLS)),
    idle("ssl.allow.san.changes", Kind::Bool, "false", Effect::Guard(TLS)),
    idle("ssl.cipher.suites", Kind::List, "", Effect::Guard(TLS)),
    idle("ssl.client.auth", Kind::Word(&["required", "requested", "none"]), "none", Effect::Guard(TLS)),
    idle("ssl.enabled.protocols", Kind::List, "TLSv1.2,TLSv1.3", Effect::Guard(TLS)),
    idle("ssl.endpoint.identification.algorithm", Kind::Text, "https", Effect::Guard(TLS)),
    idle_unset("ssl.engine.factory.class", Kind::Class, Effect::Guard(TLS)),
    idle_unset("ssl.key.password", Kind::Secret, Effect::Guard(TLS)),
    idle("ssl.keymanager.algorithm", Kind::Text, "SunX509", Effect::Guard(TLS)),
    idle_unset("ssl.keystore.certificate.chain", Kind::Secret, Effect::Guard(TLS)),
    idle_unset("ssl.keystore.key", Kind::Secret, Effect::Guard(TLS)),
    idle_unset("ssl.keystore.location", Kind::Text, Effect::Guard(TLS)),
    idle_unset("ssl.keystore.password", Kind::Secret, Effect::Guard(TLS)),
    idle("ssl.keystore.type", Kind::Text, "JKS", Effect::Guard(TLS)),
    idle("ssl.principal.mapping.rules", Kind::Text, "DEFAULT", Effect::Guard(TLS)),
    idle("ssl.protocol", Kind::Text, "TLSv1.3", Effect::Guard(TLS)),
    idle_unset("ssl.provider", Kind::Text, Effect::Guard(TLS)),
    idle_unset("ssl.secure.random.implementation", Kind::Text, Effect::Guard(TLS)),
    idle("ssl.trustmanager.algorithm", Kind::Text, "PKIX", Effect::Guard(TLS)),
    idle_unset("ssl.truststore.certificates", Kind::Secret, Effect::Guard(TLS)),
    idle_unset("ssl.truststore.location", Kind::Text, Effect::Guard(TLS)),
    idle_unset("ssl.truststore.password", Kind::Secret, Effect::Guard(TLS)),
    idle("ssl.truststore.type", Kind::Text, "JKS", Effect::Guard(TLS)),
    idle("telemetry.max.bytes", Kind::Int(1, I32), "1048576", Effect::None(METRICS)),
    idle("transaction.abort.timed.out.transaction.cleanup.interval.ms", Kind::Int(1, I32), "10000", Effect::None(TRANSACTIONS)),
    idle("transaction.max.timeout.ms", Kind::Int(1, I32), "900000", Effect::None(TRANSACTIONS)),
    idle("transaction.partition.verification.enable", Kind::Bool, "true", Effect::None(TRANSACTIONS)).dynamic(),
    idle("transaction.remove.expired.transaction.cleanup.interval.ms", Kind::Int(1, I32), "3600000", Effect::None(TRANSACTIONS)),
    idle("transaction.state.log.load.buffer.size", Kind::Int(1, I32), "5242880", Effect::None(TRANSACTIONS)),
    idle("transaction.state.log.min.isr", Kind::Int(1, I32), "2", Effect::None(TRANSACTIONS)),
    idle("transaction.state.log.num.partitions", Kind::Int(1, I32), "50", Effect::None(TRANSACTIONS)),
    idle("transaction.state.log.replication.factor", Kind::Short(1, 32767), "3", Effect::None(TRANSACTIONS)),
    idle("transaction.state.log.segment.bytes", Kind::Int(1, I32), "104857600", Effect::None(TRANSACTIONS)),
    idle("transaction.two.phase.commit.enable", Kind::Bool, "false", Effect::None(TRANSACTIONS)),
    idle("transactional.id.expiration.ms", Kind::Int(1, I32), "604800000", Effect::None(TRANSACTIONS)),
    key("unclean.leader.election.enable", Kind::Bool, "false", "Whether a replica that may lack acknowledged records becomes leader when no other can; the records that it lacks are lost. Where neither the topic nor the cluster sets it, the active controller's value counts.").dynamic(),
    idle_unset("unstable.several.nodes.enable", Kind::Bool, Effect::Needless(FOUND_ANYWAY)),
];
