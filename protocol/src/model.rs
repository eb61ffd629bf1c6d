//! Ids and positions, in Kafka's words. No I/O; used by all.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

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
pub type TopicId = Uuid;

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

const BASE64URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// An id as Kafka writes it: base64url without padding, 22 characters.
#[must_use]
pub fn encode_uuid(id: Uuid) -> String {
    let bits = id.as_u128();
    // 128 bits are 21 times 6 and 2: the last character carries 2 bits, on its upper side.
    let digit = |n: u32| {
        let six = if n < 21 { bits >> (122 - 6 * n) } else { bits << 4 };
        usize::try_from(six & 63).unwrap_or(0)
    };
    (0..22).filter_map(|n| BASE64URL.get(digit(n)).map(|byte| char::from(*byte))).collect()
}

/// The inverse of [`encode_uuid`]; `None` when `text` is not of that form.
#[must_use]
pub fn decode_uuid(text: &str) -> Option<Uuid> {
    if text.len() != 22 {
        return None;
    }
    let mut bits = 0u128;
    for (n, byte) in text.bytes().enumerate() {
        let six = BASE64URL.iter().position(|digit| *digit == byte)? as u128;
        // Kafka's decoder does not look at the four bits below the last two; neither may be lost
        // here.
        bits = if n < 21 { bits << 6 | six } else { bits << 2 | six >> 4 };
    }
    Some(Uuid::from_u128(bits))
}

/// What a configuration belongs to; the numbers are the protocol's (`ConfigResource.Type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i8)]
pub enum ResourceType {
    /// A topic.
    Topic = 2,
    /// A broker by id; an empty name means the default for all brokers.
    Broker = 4,
    /// The log levels of a broker (KIP-412).
    BrokerLogger = 8,
    /// Client metrics subscriptions (KIP-714).
    ClientMetrics = 16,
    /// A consumer group (KIP-848).
    Group = 32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_kafkas_form() {
        // From a Kafka cluster: `kafka-storage random-uuid`, and java.util.UUID of the same bytes.
        let id = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(encode_uuid(id), "ASNFZ4mrze8BI0VniavN7w");
        // As java.util.Base64's URL encoder gives it.
        let id = Uuid::from_u128(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210);
        assert_eq!(encode_uuid(id), "ASNFZ4mrze_-3LqYdlQyEA");
        assert_eq!(encode_uuid(Uuid::max()), "_____________________w");
        for bits in [0, 1, u128::MAX, 0x8000_0000_0000_0000_0000_0000_0000_0001] {
            let id = Uuid::from_u128(bits);
            assert_eq!(decode_uuid(&encode_uuid(id)), Some(id));
        }
        for bad in
            ["", "ASNFZ4mrze8BI0VniavN7", "ASNFZ4mrze8BI0VniavN7w=", "ASNFZ4mrze8BI0VniavN/w"]
        {
            assert_eq!(decode_uuid(bad), None, "{bad}");
        }
    }
}
