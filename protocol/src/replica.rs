//! What the brokers of a cluster say to one another in Fetch beyond Kafka's schema.
//!
//! Tagged fields of our own (KIP-482), which everybody else ignores. Their numbers are far from
//! those that Kafka gives out, which begin at 0.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::model::Offset;

/// The tagged fields of a message, as the codec has them.
pub type Tags = BTreeMap<i32, Bytes>;

/// Of a request, the secret of the registration of the broker that asks; of an answer to one that has
/// proved what it is, that of the broker that answers: 16 bytes. (10,000 was its incarnation, which
/// clients can learn.)
pub(super) const SECRET: u16 = 10_004;
/// Of a request: it reports, and asks for nothing. Empty.
const REPORTS: i32 = 10_001;
/// Of a report: the fetch of the same broker that is parked is to be answered. Empty.
const HURRIES: i32 = 10_003;
/// Of a partition in a request: see [`Standing`], 16 bytes.
const STANDING: i32 = 10_002;

/// How far a follower is with a partition, beside where its log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Up to where its log counts: on stable storage, unless the topic opts out.
    pub counts: Offset,
    /// The high watermark, as it knows it.
    pub high_watermark: Offset,
}

/// Proves which registration of a broker asks: the secret stands in the metadata log alone, so that
/// no client passes for a replica.
pub fn put_secret(tags: &mut Tags, secret: &[u8; 16]) {
    tags.insert(SECRET.into(), Bytes::copy_from_slice(secret));
}

/// Whether the request was given `secret` by [`put_secret`], or the answer says it.
#[must_use]
pub fn has_secret(tags: &Tags, secret: &[u8; 16]) -> bool {
    tags.get(&SECRET.into()).is_some_and(|said| said[..] == secret[..])
}

/// Says that the request reports how far partitions count, and asks for no records.
pub fn put_reports(tags: &mut Tags) {
    tags.insert(REPORTS, Bytes::new());
}

/// See [`put_reports`].
#[must_use]
pub fn reports(tags: &Tags) -> bool {
    tags.contains_key(&REPORTS)
}

/// Says that a fetch of the same broker that is parked is to be answered as if its wait were over,
/// because the next one asks for more.
pub fn put_hurries(tags: &mut Tags) {
    tags.insert(HURRIES, Bytes::new());
}

/// See [`put_hurries`].
#[must_use]
pub fn hurries(tags: &Tags) -> bool {
    tags.contains_key(&HURRIES)
}

/// Says how far the follower is.
pub fn put_standing(tags: &mut Tags, standing: Standing) {
    let mut bytes = BytesMut::with_capacity(16);
    bytes.put_i64(standing.counts);
    bytes.put_i64(standing.high_watermark);
    tags.insert(STANDING, bytes.freeze());
}

/// See [`put_standing`].
#[must_use]
pub fn standing(tags: &Tags) -> Option<Standing> {
    let mut bytes: &[u8] = tags.get(&STANDING).filter(|bytes| bytes.len() == 16)?;
    Some(Standing { counts: bytes.get_i64(), high_watermark: bytes.get_i64() })
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::FetchRequest;
    use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};

    use super::*;
    use crate::{Request, check_request, decode_checked_request, encode_request};

    #[test]
    fn what_a_follower_says_passes_the_door_and_is_read_back() {
        let standing = Standing { counts: 5, high_watermark: -1 };
        let mut partition = FetchPartition::default();
        put_standing(&mut partition.unknown_tagged_fields, standing);
        let topic = FetchTopic::default().with_partitions(vec![partition]);
        let mut request = FetchRequest::default().with_topics(vec![topic]);
        put_secret(&mut request.unknown_tagged_fields, &[7; 16]);
        put_reports(&mut request.unknown_tagged_fields);
        put_hurries(&mut request.unknown_tagged_fields);
        let frame = encode_request(1, Some("c"), 17, &request.into()).unwrap().slice(4..);
        let header = check_request(&frame).unwrap();
        let body = frame.slice(header.body_offset..);
        let Ok(Request::Fetch(read)) = decode_checked_request(1, 17, body) else { unreachable!() };
        let tags = &read.unknown_tagged_fields;
        assert!(has_secret(tags, &[7; 16]) && !has_secret(tags, &[8; 16]));
        assert!(reports(tags) && hurries(tags));
        let partition = &read.topics[0].partitions[0];
        assert_eq!(self::standing(&partition.unknown_tagged_fields), Some(standing));
    }

    #[test]
    fn what_is_not_as_it_should_be_says_nothing() {
        let tags = Tags::from([(STANDING, Bytes::from_static(b"short"))]);
        assert_eq!(standing(&tags), None);
        for said in [&b""[..], &[7; 15], &[7; 17]] {
            let tags = Tags::from([(SECRET.into(), Bytes::from_static(said))]);
            assert!(!has_secret(&tags, &[7; 16]) && !reports(&tags) && !hurries(&tags));
        }
    }
}
