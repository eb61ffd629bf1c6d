//! Ids and positions, in Kafka's words. No I/O; used by all.

use std::fmt;
use std::sync::Arc;

/// A position in a partition's log. An offset names its edge: `last_offset` is inclusive;
/// `end_offset` and `next_offset` are exclusive.
pub type Offset = i64;

/// Counts the leaders of a partition; one leader per epoch. −1: none.
pub type LeaderEpoch = i32;

/// Identifies an idempotent producer; handed out in blocks by the controller and never reused. −1:
/// none.
pub type ProducerId = i64;

/// Milliseconds since 1970-01-01T00:00:00Z, as records carry them. −1: none.
pub type TimestampMs = i64;

/// A topic's id: chosen once when it is made, so that a topic made anew under the same name is
/// another topic (KIP-516).
pub type TopicId = uuid::Uuid;

/// The `node.id` of a process of the cluster: broker, controller or both. −1: none.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct BrokerId(pub i32);

impl fmt::Display for BrokerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A partition by the name of its topic.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's index; never negative.
    pub partition: i32,
}

impl fmt::Display for TopicPartition {
    /// Kafka's way to write it, which is also the name of its directory: `orders-0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}
