//! OffsetCommit and OffsetFetch version 10, which name topics by id (KIP-848). The message codec
//! knows version 9, and the topic's key is all that differs: a body of version 10 is rewritten to
//! version 9 with the id's text in the place of the name, and back. Whoever handles version 10
//! reads the name as an id ([`topic_id`]).

use bytes::{BufMut, Bytes, BytesMut};
use uuid::Uuid;

use super::put::Put;
use super::varint;

/// The last version that the message codec knows.
pub(super) const BY_NAME: i16 = 9;
/// The version with ids.
pub const BY_ID: i16 = 10;

/// The shape of a message: what is copied, and where the topic's key stands.
pub(super) type Shape = fn(&mut Rewrite<'_>) -> Option<()>;

/// The id that stands in the place of a topic's name in a message of version 10; `None` when it is
/// none.
pub fn topic_id(name: &str) -> Option<Uuid> {
    Uuid::try_parse(name).ok()
}

/// The request of version 10 that needs rewriting, by API key.
pub(super) fn request_shape(api_key: i16, version: i16) -> Option<Shape> {
    match (api_key, version) {
        (8, BY_ID) => Some(offset_commit_request),
        (9, BY_ID) => Some(offset_fetch_request),
        _ => None,
    }
}

/// The response of version 10 that needs rewriting, by API key.
pub(super) fn response_shape(api_key: i16, version: i16) -> Option<Shape> {
    match (api_key, version) {
        (8, BY_ID) => Some(offset_commit_response),
        (9, BY_ID) => Some(offset_fetch_response),
        _ => None,
    }
}

/// A body of version 10 as version 9. `None`: it is not whole. Bytes after the last field are left
/// out.
pub(super) fn to_names(shape: Shape, body: &[u8]) -> Option<Bytes> {
    rewrite(shape, body, true)
}

/// A body of version 9 as version 10. `None`: it is not whole, or a name is not an id.
pub(super) fn to_ids(shape: Shape, body: &[u8]) -> Option<Bytes> {
    rewrite(shape, body, false)
}

fn rewrite(shape: Shape, body: &[u8], to_names: bool) -> Option<Bytes> {
    let mut rewrite = Rewrite { from: body, to: BytesMut::with_capacity(body.len()), to_names };
    shape(&mut rewrite)?;
    Some(rewrite.to.freeze())
}

pub(super) struct Rewrite<'a> {
    from: &'a [u8],
    to: BytesMut,
    to_names: bool,
}

impl Rewrite<'_> {
    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let (taken, rest) = self.from.split_at_checked(count)?;
        self.from = rest;
        Some(taken)
    }

    fn bytes(&mut self, count: usize) -> Option<()> {
        let (taken, rest) = self.from.split_at_checked(count)?;
        self.from = rest;
        self.to.put_slice(taken);
        Some(())
    }

    fn varint(&mut self) -> Option<u32> {
        let value = varint::take(&mut self.from).ok()?;
        self.to.varint(value);
        Some(value)
    }

    /// A string or null.
    fn string(&mut self) -> Option<()> {
        let length = self.varint()?.saturating_sub(1);
        self.bytes(usize::try_from(length).ok()?)
    }

    fn tags(&mut self) -> Option<()> {
        for _ in 0..self.varint()? {
            self.varint()?;
            let length = self.varint()?;
            self.bytes(usize::try_from(length).ok()?)?;
        }
        Some(())
    }

    /// An array or null.
    fn array(&mut self, element: impl Fn(&mut Self) -> Option<()>) -> Option<()> {
        for _ in 1..self.varint()?.max(1) {
            element(self)?;
        }
        Some(())
    }

    fn topic(&mut self) -> Option<()> {
        if self.to_names {
            let id = Uuid::from_slice(self.take(16)?).ok()?;
            self.to.string(true, &id.to_string());
        } else {
            let length =
                usize::try_from(varint::take(&mut self.from).ok()?.checked_sub(1)?).ok()?;
            let id = topic_id(std::str::from_utf8(self.take(length)?).ok()?)?;
            self.to.uuid(id);
        }
        Some(())
    }
}

fn offset_commit_request(message: &mut Rewrite<'_>) -> Option<()> {
    message.string()?; // group id
    message.bytes(4)?; // generation or member epoch
    message.string()?; // member id
    message.string()?; // group instance id
    message.array(|message| {
        message.topic()?;
        message.array(|message| {
            message.bytes(16)?; // partition, offset, leader epoch
            message.string()?; // metadata
            message.tags()
        })?;
        message.tags()
    })?;
    message.tags()
}

fn offset_commit_response(message: &mut Rewrite<'_>) -> Option<()> {
    message.bytes(4)?; // throttle time
    message.array(|message| {
        message.topic()?;
        message.array(|message| {
            message.bytes(6)?; // partition, error
            message.tags()
        })?;
        message.tags()
    })?;
    message.tags()
}

fn offset_fetch_request(message: &mut Rewrite<'_>) -> Option<()> {
    message.array(|message| {
        message.string()?; // group id
        message.string()?; // member id
        message.bytes(4)?; // member epoch
        message.array(|message| {
            message.topic()?;
            message.array(|message| message.bytes(4))?; // partitions
            message.tags()
        })?;
        message.tags()
    })?;
    message.bytes(1)?; // require stable
    message.tags()
}

fn offset_fetch_response(message: &mut Rewrite<'_>) -> Option<()> {
    message.bytes(4)?; // throttle time
    message.array(|message| {
        message.string()?; // group id
        message.array(|message| {
            message.topic()?;
            message.array(|message| {
                message.bytes(16)?; // partition, offset, leader epoch
                message.string()?; // metadata
                message.bytes(2)?; // error
                message.tags()
            })?;
            message.tags()
        })?;
        message.bytes(2)?; // error
        message.tags()
    })?;
    message.tags()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages as m;
    use kafka_protocol::protocol::StrBytes;

    use crate::{
        Request, Response, decode_request, decode_response, encode_request, encode_response,
    };

    const ID: &str = "0cb5a5f1-58c6-4b31-8a0f-0d5c6e0e5a11";

    fn name() -> m::TopicName {
        m::TopicName(StrBytes::from_static_str(ID))
    }

    /// The bytes as Kafka's definitions have them, written down field by field.
    #[test]
    fn version_10_has_the_id_in_the_place_of_the_name() {
        let partition = m::offset_commit_request::OffsetCommitRequestPartition::default()
            .with_partition_index(1)
            .with_committed_offset(2)
            .with_committed_leader_epoch(3)
            .with_committed_metadata(Some(StrBytes::from_static_str("m")));
        let topic = m::offset_commit_request::OffsetCommitRequestTopic::default()
            .with_name(name())
            .with_partitions(vec![partition]);
        let request: Request = m::OffsetCommitRequest::default()
            .with_group_id(m::GroupId(StrBytes::from_static_str("g")))
            .with_generation_id_or_member_epoch(5)
            .with_topics(vec![topic])
            .into();
        let frame = encode_request(7, None, BY_ID, &request).unwrap();
        let body = frame.slice(4 + 2 + 2 + 4 + 2 + 1..);
        let mut expected = BytesMut::new();
        expected.put_slice(&[2, b'g', 0, 0, 0, 5, 1, 0, 2]);
        expected.put_slice(Uuid::parse_str(ID).unwrap().as_bytes());
        expected.put_slice(&[2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 2, b'm', 0, 0, 0]);
        assert_eq!(body, expected.freeze());
        assert_eq!(decode_request(8, BY_ID, body).unwrap(), request);
    }

    #[test]
    fn answers_and_null_topics_come_back_as_they_were() {
        let partition = m::offset_fetch_response::OffsetFetchResponsePartitions::default()
            .with_committed_offset(9)
            .with_committed_leader_epoch(4)
            .with_metadata(Some(StrBytes::from_static_str("ä")));
        let topic = m::offset_fetch_response::OffsetFetchResponseTopics::default()
            .with_name(name())
            .with_partitions(vec![partition]);
        let group = m::offset_fetch_response::OffsetFetchResponseGroup::default()
            .with_topics(vec![topic])
            .with_error_code(14);
        let fetched: Response = m::OffsetFetchResponse::default().with_groups(vec![group]).into();
        let partition = m::offset_commit_response::OffsetCommitResponsePartition::default()
            .with_partition_index(3)
            .with_error_code(100);
        let topic = m::offset_commit_response::OffsetCommitResponseTopic::default()
            .with_name(name())
            .with_partitions(vec![partition]);
        let committed: Response =
            m::OffsetCommitResponse::default().with_topics(vec![topic]).into();
        for response in [fetched, committed] {
            let frame = encode_response(7, BY_ID, &response).unwrap();
            assert_eq!(
                decode_response(response.api_key(), BY_ID, frame.slice(4..)).unwrap(),
                (7, response)
            );
        }
        let all = m::offset_fetch_request::OffsetFetchRequestGroup::default().with_topics(None);
        let topic = m::offset_fetch_request::OffsetFetchRequestTopics::default()
            .with_name(name())
            .with_partition_indexes(vec![1, 2]);
        let some = all.clone().with_topics(Some(vec![topic]));
        let request: Request = m::OffsetFetchRequest::default()
            .with_groups(vec![all, some])
            .with_require_stable(true)
            .into();
        let frame = encode_request(7, None, BY_ID, &request).unwrap();
        assert_eq!(decode_request(9, BY_ID, frame.slice(15..)).unwrap(), request);
    }

    #[test]
    fn a_name_that_is_no_id_cannot_be_said() {
        let topic = m::offset_commit_response::OffsetCommitResponseTopic::default()
            .with_name(m::TopicName(StrBytes::from_static_str("orders")));
        let response: Response = m::OffsetCommitResponse::default().with_topics(vec![topic]).into();
        assert!(encode_response(7, BY_ID, &response).is_err());
    }
}
