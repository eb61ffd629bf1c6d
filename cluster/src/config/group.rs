//! The group keys (KIP-848, KIP-932, KIP-1071): one row each. They shape groups of protocols that
//! this version does not offer; a value that is set is kept and shown, as Kafka does for a group
//! that is not there yet.
//!
//! Source of names, types and defaults: Apache Kafka 4.3.1, as its DescribeConfigs answers.

use super::keys::{I32, Kind};

/// One group key.
#[derive(Clone, Copy, Debug)]
pub struct GroupKey {
    /// Kafka's spelling.
    pub name: &'static str,
    /// The values it takes.
    pub kind: Kind,
    /// The broker key that gives the default; itself where no broker key does.
    pub synonym: &'static str,
    /// The broker keys that bound it from below and from above.
    pub bounds: (Option<&'static str>, Option<&'static str>),
    /// The default where no broker key gives one.
    pub default: &'static str,
}

const fn row(
    name: &'static str,
    kind: Kind,
    synonym: &'static str,
    min: Option<&'static str>,
    max: Option<&'static str>,
) -> GroupKey {
    GroupKey { name, kind, synonym, bounds: (min, max), default: "" }
}

const fn own(name: &'static str, kind: Kind, default: &'static str) -> GroupKey {
    GroupKey { name, kind, synonym: name, bounds: (None, None), default }
}

/// What DescribeConfigs says of every group key.
pub const NO_EFFECT: &str = "No effect: only groups of the classic protocol are offered by this \
    version; the value is kept.";

/// Every key a group takes, sorted by name.
#[rustfmt::skip] // a row is a line
pub const KEYS: &[GroupKey] = &[
    row(
        "consumer.assignment.interval.ms",
        Kind::Int(0, I32),
        "group.consumer.assignment.interval.ms",
        Some("group.consumer.min.assignment.interval.ms"),
        Some("group.consumer.max.assignment.interval.ms"),
    ),
    row(
        "consumer.heartbeat.interval.ms",
        Kind::Int(1, I32),
        "group.consumer.heartbeat.interval.ms",
        Some("group.consumer.min.heartbeat.interval.ms"),
        Some("group.consumer.max.heartbeat.interval.ms"),
    ),
    row(
        "consumer.session.timeout.ms",
        Kind::Int(1, I32),
        "group.consumer.session.timeout.ms",
        Some("group.consumer.min.session.timeout.ms"),
        Some("group.consumer.max.session.timeout.ms"),
    ),
    row(
        "share.assignment.interval.ms",
        Kind::Int(0, I32),
        "group.share.assignment.interval.ms",
        Some("group.share.min.assignment.interval.ms"),
        Some("group.share.max.assignment.interval.ms"),
    ),
    own("share.auto.offset.reset", Kind::Text, "latest"),
    row(
        "share.delivery.count.limit",
        Kind::Int(2, I32),
        "group.share.delivery.count.limit",
        Some("group.share.min.delivery.count.limit"),
        Some("group.share.max.delivery.count.limit"),
    ),
    row(
        "share.heartbeat.interval.ms",
        Kind::Int(1, I32),
        "group.share.heartbeat.interval.ms",
        Some("group.share.min.heartbeat.interval.ms"),
        Some("group.share.max.heartbeat.interval.ms"),
    ),
    own("share.isolation.level", Kind::Word(&["read_uncommitted", "read_committed"]), "read_uncommitted"),
    row(
        "share.partition.max.record.locks",
        Kind::Int(100, I32),
        "group.share.partition.max.record.locks",
        Some("group.share.min.partition.max.record.locks"),
        Some("group.share.max.partition.max.record.locks"),
    ),
    row(
        "share.record.lock.duration.ms",
        Kind::Int(1000, I32),
        "group.share.record.lock.duration.ms",
        Some("group.share.min.record.lock.duration.ms"),
        Some("group.share.max.record.lock.duration.ms"),
    ),
    own("share.renew.acknowledge.enable", Kind::Bool, "true"),
    row(
        "share.session.timeout.ms",
        Kind::Int(1, I32),
        "group.share.session.timeout.ms",
        Some("group.share.min.session.timeout.ms"),
        Some("group.share.max.session.timeout.ms"),
    ),
    row(
        "streams.assignment.interval.ms",
        Kind::Int(0, I32),
        "group.streams.assignment.interval.ms",
        Some("group.streams.min.assignment.interval.ms"),
        Some("group.streams.max.assignment.interval.ms"),
    ),
    row(
        "streams.heartbeat.interval.ms",
        Kind::Int(1, I32),
        "group.streams.heartbeat.interval.ms",
        Some("group.streams.min.heartbeat.interval.ms"),
        Some("group.streams.max.heartbeat.interval.ms"),
    ),
    row("streams.initial.rebalance.delay.ms", Kind::Int(0, I32), "group.streams.initial.rebalance.delay.ms", None, None),
    row(
        "streams.num.standby.replicas",
        Kind::Int(0, I32),
        "group.streams.num.standby.replicas",
        None,
        Some("group.streams.max.standby.replicas"),
    ),
    row(
        "streams.session.timeout.ms",
        Kind::Int(1, I32),
        "group.streams.session.timeout.ms",
        Some("group.streams.min.session.timeout.ms"),
        Some("group.streams.max.session.timeout.ms"),
    ),
];

/// The row of `name`.
#[must_use]
pub fn find(name: &str) -> Option<&'static GroupKey> {
    KEYS.binary_search_by(|key| key.name.cmp(name)).ok().and_then(|at| KEYS.get(at))
}
