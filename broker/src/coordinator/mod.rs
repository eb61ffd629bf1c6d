//! The group coordinator: consumer groups of the classic protocol and the offsets they commit.
//!
//! Each partition of `__consumer_offsets` that this broker leads is one [`shard::Shard`]: a state
//! machine without I/O. A request or a timer changes it and says which records to append and which
//! requests to answer. Decisions see what was decided before, committed or not; a failed append
//! takes it back, and no answer leaves before what it promises is committed. [`runtime`] appends,
//! waits and answers, for any coordinator; [`service::GroupCoordinator`] is what handlers call.
//!
//! A group lives in the partition that the hash of its id names ([`partition_for`]); nothing about
//! it is kept elsewhere. What the topic does not know how to tell (record types of newer Kafka
//! versions) is kept in the log and ignored here.

pub(crate) mod group;
pub(crate) mod memory;
pub(crate) mod records;
pub(crate) mod replicated_log;
pub(crate) mod runtime;
pub(crate) mod service;
pub(crate) mod shard;

pub(crate) use letterbox_protocol::topics::GROUP_METADATA_TOPIC;
pub(crate) use replicated_log::{AppendError, KeyValue, LogEnd, ReplicatedLog};
pub(crate) use service::{GroupCoordinator, LiveGroups};
pub(crate) use shard::commit_error;

/// The settings of the coordinator, under Kafka's names. Times in milliseconds.
#[derive(Clone, Debug)]
pub(crate) struct GroupConfig {
    /// `group.initial.rebalance.delay.ms`: how long an empty group waits for more members before
    /// its first generation.
    pub initial_rebalance_delay_ms: u64,
    /// `group.min.session.timeout.ms`: the smallest session timeout a member may ask for.
    pub min_session_timeout_ms: i32,
    /// `group.max.session.timeout.ms`: the largest session timeout a member may ask for.
    pub max_session_timeout_ms: i32,
    /// `group.max.size`: members beyond it are refused with GROUP_MAX_SIZE_REACHED.
    pub max_size: usize,
    /// `offset.metadata.max.bytes`: the longest metadata string of a commit, in UTF-16 units as
    /// Kafka counts it.
    pub offset_metadata_max_bytes: usize,
    /// `offsets.retention.minutes`, in milliseconds: how long offsets outlive the last member of
    /// their group (KIP-211).
    pub offsets_retention_ms: i64,
    /// `offsets.retention.check.interval.ms`: how often expired offsets are looked for.
    pub offsets_retention_check_interval_ms: u64,
    /// `offsets.commit.timeout.ms`: how long a request waits for its records to be committed.
    pub offset_commit_timeout_ms: u64,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            initial_rebalance_delay_ms: 3_000,
            min_session_timeout_ms: 6_000,
            max_session_timeout_ms: 1_800_000,
            max_size: i32::MAX as usize,
            offset_metadata_max_bytes: 4_096,
            offsets_retention_ms: 7 * 24 * 60 * 60 * 1_000,
            offsets_retention_check_interval_ms: 600_000,
            offset_commit_timeout_ms: 5_000,
        }
    }
}

/// How many groups, members and offsets the partitions of this broker hold.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct GroupFigures {
    /// Groups without members.
    pub empty: usize,
    /// Groups that wait for their members to join.
    pub preparing_rebalance: usize,
    /// Groups that wait for the leader's assignment.
    pub completing_rebalance: usize,
    /// Groups whose members have their assignments.
    pub stable: usize,
    /// Members of all groups.
    pub members: usize,
    /// Committed offsets.
    pub offsets: usize,
}

/// The partition of `__consumer_offsets` that owns `group_id`, out of `partition_count` (at least
/// 1).
///
/// Java's `String.hashCode` over the UTF-16 units with the sign bit cleared, so that data written
/// by Apache Kafka is found where it lies.
#[must_use]
pub(crate) fn partition_for(group_id: &str, partition_count: i32) -> i32 {
    let hash = group_id
        .encode_utf16()
        .fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    // `max(1)` holds the function total; a topic never has fewer partitions.
    (hash & i32::MAX) % partition_count.max(1)
}

#[cfg(test)]
mod tests {
    use super::partition_for;

    #[test]
    fn a_group_lies_where_kafka_puts_it() {
        // Expected values: `(s.hashCode() & 0x7fffffff) % n` in jshell.
        for (group, count, expected) in [
            ("", 50, 0),
            ("a", 50, 47),
            ("test", 50, 48),
            ("polygenelubricants", 50, 0),
            ("gruppe-ä", 50, 48),
            ("😀", 50, 49),
        ] {
            assert_eq!(partition_for(group, count), expected, "{group}");
        }
    }
}
