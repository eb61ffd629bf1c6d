//! Bytes made by Apache Kafka's own classes.
//!
//! Taken once from kafka-group-coordinator 4.3.1: a Java program fills the generated classes
//! `OffsetCommitKey`, `OffsetCommitValue`, `GroupMetadataKey` and `GroupMetadataValue` with the
//! values below and prints `MessageUtil.toVersionPrefixedBytes(version, message)` in hexadecimal.

use bytes::Bytes;
use letterbox_protocol::model::TopicId;
use proptest::prelude::*;

use super::{DecodeError, GroupMetadata, MemberMetadata, OffsetAndMetadata, OffsetKey, Record};

const OKEY1: &str = "000100076772c3bc70706500066f726465727300000007";
const OVAL0: &str = "00000000011f71fb04cb00036dc3a40000018bcfe56800";
const OVAL1: &str = "00010000011f71fb04cb00036dc3a40000018bcfe568000000018bcfe6ee9f";
const OVAL2: &str = "00020000011f71fb04cb00036dc3a40000018bcfe56800";
const OVAL3: &str = "00030000011f71fb04cb0000000900036dc3a40000018bcfe56800";
const OVAL4: &str = "00040000011f71fb04cb00000009046dc3a40000018bcfe5680000";
const OVAL4_OF_TOPIC: &str =
    "00040000011f71fb04cb00000009046dc3a40000018bcfe568000100100102030405060708090a0b0c0d0e0f10";
const GKEY2: &str = "000200076772c3bc707065";
const GVAL0: &str = "00000008636f6e73756d657200000005000572616e67650003632d31000000010003632d3100016300092f31302e302e302e31000027100000000201020000000103";
const GVAL1: &str = "00010008636f6e73756d657200000005000572616e67650003632d31000000010003632d3100016300092f31302e302e302e310000ea60000027100000000201020000000103";
const GVAL2: &str = "00020008636f6e73756d657200000005000572616e67650003632d310000018bcfe56800000000010003632d3100016300092f31302e302e302e310000ea60000027100000000201020000000103";
const GVAL3: &str = "00030008636f6e73756d657200000005000572616e67650003632d310000018bcfe56800000000010003632d310002693100016300092f31302e302e302e310000ea60000027100000000201020000000103";
const GVAL4: &str = "000409636f6e73756d6572000000050672616e676504632d310000018bcfe568000204632d3103693102630a2f31302e302e302e310000ea600000271003010202030000";
const GEMPTY3: &str = "0003000000000006ffffffff0000018bcfe5680000000000";

const TOPIC_ID: TopicId = TopicId::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);

fn hex(text: &str) -> Bytes {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn offset(leader_epoch: i32, expire_timestamp_ms: Option<i64>) -> Record {
    offset_of(TopicId::nil(), leader_epoch, expire_timestamp_ms)
}

fn offset_of(topic_id: TopicId, leader_epoch: i32, expire_timestamp_ms: Option<i64>) -> Record {
    Record::Offset {
        key: OffsetKey { group: "grüppe".into(), topic: "orders".into(), partition: 7 },
        value: Some(OffsetAndMetadata {
            topic_id,
            offset: 1_234_567_890_123,
            leader_epoch,
            metadata: "mä".into(),
            commit_timestamp_ms: 1_700_000_000_000,
            expire_timestamp_ms,
        }),
    }
}

fn group(
    instance_id: Option<&str>,
    rebalance_timeout_ms: i32,
    current_state_timestamp_ms: i64,
) -> Record {
    Record::Group {
        group: "grüppe".into(),
        value: Some(GroupMetadata {
            protocol_type: "consumer".into(),
            generation: 5,
            protocol: Some("range".into()),
            leader: Some("c-1".into()),
            current_state_timestamp_ms,
            members: vec![MemberMetadata {
                member_id: "c-1".into(),
                group_instance_id: instance_id.map(Into::into),
                client_id: "c".into(),
                client_host: "/10.0.0.1".into(),
                rebalance_timeout_ms,
                session_timeout_ms: 10_000,
                subscription: Bytes::from_static(&[1, 2]),
                assignment: Bytes::from_static(&[3]),
            }],
        }),
    }
}

fn empty_group() -> Record {
    let value = GroupMetadata {
        protocol_type: "".into(),
        generation: 6,
        protocol: None,
        leader: None,
        current_state_timestamp_ms: 1_700_000_000_000,
        members: Vec::new(),
    };
    Record::Group { group: "grüppe".into(), value: Some(value) }
}

#[test]
fn every_version_kafka_has_written_is_read() {
    let wall = 1_700_000_000_000;
    for (key, value, expected) in [
        (OKEY1, OVAL0, offset(-1, None)),
        (OKEY1, OVAL1, offset(-1, Some(1_700_000_099_999))),
        (OKEY1, OVAL2, offset(-1, None)),
        (OKEY1, OVAL3, offset(9, None)),
        (OKEY1, OVAL4, offset(9, None)),
        (OKEY1, OVAL4_OF_TOPIC, offset_of(TOPIC_ID, 9, None)),
        (GKEY2, GVAL0, group(None, -1, -1)),
        (GKEY2, GVAL1, group(None, 60_000, -1)),
        (GKEY2, GVAL2, group(None, 60_000, wall)),
        (GKEY2, GVAL3, group(Some("i1"), 60_000, wall)),
        (GKEY2, GVAL4, group(Some("i1"), 60_000, wall)),
        (GKEY2, GEMPTY3, empty_group()),
    ] {
        assert_eq!(Record::decode(&hex(key), Some(&hex(value))), Ok(expected), "{value}");
    }
}

#[test]
fn what_is_written_is_what_kafka_writes() {
    for (record, key, value) in [
        (offset_of(TOPIC_ID, 9, None), OKEY1, OVAL4_OF_TOPIC),
        (offset(9, None), OKEY1, OVAL4),
        (group(Some("i1"), 60_000, 1_700_000_000_000), GKEY2, GVAL3),
        (empty_group(), GKEY2, GEMPTY3),
    ] {
        assert_eq!(record.encode(), Ok((hex(key), Some(hex(value)))));
    }
}

/// Kafka passes over the tag, and its own records cannot say both.
#[test]
fn an_offset_with_an_expiry_keeps_the_id_of_its_topic() {
    let record = offset_of(TOPIC_ID, 9, Some(1_700_000_099_999));
    let (key, value) = record.encode().unwrap();
    let untagged = hex(OVAL4_OF_TOPIC);
    let tags_at = untagged.len() - 19;
    let value = value.unwrap();
    assert_eq!(value[..tags_at], untagged[..tags_at]);
    assert_eq!((untagged[tags_at], value[tags_at]), (1, 2), "one more tag");
    assert_eq!(Record::decode(&key, Some(&value)), Ok(record));
}

#[test]
fn tombstones_and_unknown_types_are_told_apart() {
    let tombstone = Record::decode(&hex(GKEY2), None);
    assert_eq!(tombstone, Ok(Record::Group { group: "grüppe".into(), value: None }));
    // ConsumerGroupMetadataKey is type 3; its value is none of our business.
    assert_eq!(
        Record::decode(&hex("0003000161"), Some(&hex("ff"))),
        Ok(Record::Unknown { key_type: 3 })
    );
    assert_eq!(
        Record::decode(&hex(OKEY1), Some(&hex("0005"))),
        Err(DecodeError::UnknownVersion(5))
    );
}

#[test]
fn no_cut_and_no_length_makes_the_decoder_panic() {
    for (key, value) in [
        (OKEY1, OVAL1),
        (OKEY1, OVAL3),
        (OKEY1, OVAL4),
        (OKEY1, OVAL4_OF_TOPIC),
        (GKEY2, GVAL0),
        (GKEY2, GVAL3),
        (GKEY2, GVAL4),
    ] {
        let (key, value) = (hex(key), hex(value));
        for end in 0..value.len() {
            assert!(Record::decode(&key, Some(&value.slice(..end))).is_err(), "cut at {end}");
        }
        for at in 0..value.len() {
            for byte in [0x00, 0x7f, 0x80, 0xff] {
                let mut bent = value.to_vec();
                bent[at] = byte;
                let _ = Record::decode(&key, Some(&bent.into()));
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(key in prop::collection::vec(any::<u8>(), 0..40), value in prop::collection::vec(any::<u8>(), 0..80), kind in 0..4_u8) {
        let mut typed = vec![0, kind];
        typed.extend(key);
        let _ = Record::decode(&typed.into(), Some(&value.into()));
    }
}
