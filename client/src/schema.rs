//! Proves that the lengths and counts in a response fit into its bytes, before it is decoded.
//!
//! The message crate allocates by the counts it reads, so that four bytes could make the process ask for gigabytes and abort.
//! After [`check`] every element that is announced is really there; what decoding allocates is bounded by the size of the frame.

mod table;

use bytes::{Buf, Bytes};

/// One response of one API, all versions.
pub(crate) struct Schema {
    key: i16,
    /// From this version on: compact lengths and tagged fields (KIP-482).
    flexible_since: i16,
    fields: &'static [Field],
}

/// A field and the versions that have it.
pub(crate) struct Field {
    since: i16,
    until: i16,
    /// -1: not a tagged field.
    tag: i64,
    tagged_since: i16,
    kind: Kind,
}

/// What a field is on the wire.
pub(crate) enum Kind {
    /// So many bytes.
    Fixed(usize),
    /// A string.
    Text,
    /// Bytes or records.
    Blob,
    /// Several of a kind.
    Array(&'static Kind),
    /// Fields one after the other.
    Struct(&'static [Field]),
    /// One byte, and the fields unless that is below zero.
    Optional(&'static [Field]),
}

/// Checks a response body of API `key` that begins after the header.
///
/// # Errors
/// What does not fit. An API that is not in the table is refused.
pub(crate) fn check(key: i16, version: i16, body: &Bytes) -> Result<(), &'static str> {
    let schema = table::RESPONSES.iter().find(|schema| schema.key == key).ok_or("it is of an API without a schema")?;
    let walk = Walk { version, flexible: version >= schema.flexible_since };
    walk.fields(schema.fields, &mut body.clone())
}

struct Walk {
    version: i16,
    flexible: bool,
}

impl Walk {
    fn fields(&self, fields: &'static [Field], bytes: &mut Bytes) -> Result<(), &'static str> {
        let here = |field: &&Field| (field.since..=field.until).contains(&self.version);
        let is_tagged = |field: &&Field| field.tag >= 0 && self.version >= field.tagged_since;
        for field in fields.iter().filter(here).filter(|field| !is_tagged(field)) {
            self.kind(&field.kind, bytes)?;
        }
        if !self.flexible {
            return Ok(());
        }
        for _ in 0..unsigned(bytes)? {
            let tag = i64::from(unsigned(bytes)?);
            let size = unsigned(bytes)?;
            let mut content = take(bytes, u64::from(size))?;
            if let Some(field) = fields.iter().filter(here).find(|field| is_tagged(field) && field.tag == tag) {
                self.kind(&field.kind, &mut content)?;
            }
        }
        Ok(())
    }

    fn kind(&self, kind: &'static Kind, bytes: &mut Bytes) -> Result<(), &'static str> {
        match kind {
            Kind::Fixed(length) => take(bytes, u64::try_from(*length).unwrap_or(u64::MAX)).map(drop),
            Kind::Text => {
                let length = if self.flexible { compact(bytes)? } else { i64::from(bytes.try_get_i16().map_err(|_| "it is cut off")?) };
                take(bytes, u64::try_from(length).unwrap_or(0)).map(drop)
            }
            Kind::Blob => {
                let length = self.length(bytes)?;
                take(bytes, u64::try_from(length).unwrap_or(0)).map(drop)
            }
            Kind::Array(element) => {
                let count = self.length(bytes)?;
                // Every element takes at least one byte; walking them proves that they are there.
                if usize::try_from(count).is_ok_and(|count| count > bytes.len()) {
                    return Err("a count is larger than the rest of the bytes");
                }
                for _ in 0..count {
                    self.kind(element, bytes)?;
                }
                Ok(())
            }
            Kind::Struct(fields) => self.fields(fields, bytes),
            Kind::Optional(fields) => match bytes.try_get_i8().map_err(|_| "it is cut off")? {
                ..0 => Ok(()),
                0.. => self.fields(fields, bytes),
            },
        }
    }

    /// A length or count of 32 bits; -1 for null.
    fn length(&self, bytes: &mut Bytes) -> Result<i64, &'static str> {
        if self.flexible { compact(bytes) } else { Ok(i64::from(bytes.try_get_i32().map_err(|_| "it is cut off")?)) }
    }
}

/// A compact length is one more than the length; 0 is null.
fn compact(bytes: &mut Bytes) -> Result<i64, &'static str> {
    Ok(i64::from(unsigned(bytes)?) - 1)
}

fn take(bytes: &mut Bytes, length: u64) -> Result<Bytes, &'static str> {
    match usize::try_from(length) {
        Ok(length) if length <= bytes.len() => Ok(bytes.split_to(length)),
        _ => Err("a length is larger than the rest of the bytes"),
    }
}

fn unsigned(bytes: &mut Bytes) -> Result<u32, &'static str> {
    let mut value = 0u64;
    for shift in [0, 7, 14, 21, 28] {
        let byte = bytes.try_get_u8().map_err(|_| "it is cut off")?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return u32::try_from(value).map_err(|_| "a number is too large");
        }
    }
    Err("a number is too long")
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kafka_protocol::messages::metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic};
    use kafka_protocol::messages::produce_response::{NodeEndpoint, PartitionProduceResponse, TopicProduceResponse};
    use kafka_protocol::messages::{BrokerId, MetadataResponse, ProduceResponse};
    use kafka_protocol::protocol::{Encodable, StrBytes};

    use super::*;

    fn metadata(version: i16) -> Bytes {
        let mut partition =
            MetadataResponsePartition::default().with_replica_nodes(vec![BrokerId(1), BrokerId(2)]).with_isr_nodes(vec![BrokerId(1)]);
        if version >= 7 {
            partition = partition.with_leader_epoch(3);
        }
        let topic =
            MetadataResponseTopic::default().with_name(Some(StrBytes::from_static_str("orders").into())).with_partitions(vec![partition]);
        let broker = MetadataResponseBroker::default().with_host(StrBytes::from_static_str("localhost")).with_port(9092);
        let mut bytes = BytesMut::new();
        MetadataResponse::default().with_brokers(vec![broker]).with_topics(vec![topic]).encode(&mut bytes, version).unwrap();
        bytes.freeze()
    }

    #[test]
    fn real_responses_pass_in_every_version_and_every_cut_is_refused() {
        for version in 0..=13 {
            let whole = metadata(version);
            assert_eq!(check(3, version, &whole), Ok(()), "version {version}");
            for cut in 0..whole.len() {
                assert!(check(3, version, &whole.slice(..cut)).is_err(), "version {version} cut at {cut}");
            }
        }
    }

    #[test]
    fn tagged_fields_are_walked_too() {
        let row = PartitionProduceResponse::default();
        let topic = TopicProduceResponse::default().with_name(StrBytes::from_static_str("t").into()).with_partition_responses(vec![row]);
        let endpoint = NodeEndpoint::default().with_host(StrBytes::from_static_str("h"));
        let mut bytes = BytesMut::new();
        ProduceResponse::default().with_responses(vec![topic]).with_node_endpoints(vec![endpoint]).encode(&mut bytes, 12).unwrap();
        let whole = bytes.freeze();
        assert_eq!(check(0, 12, &whole), Ok(()));
        // The count of the endpoints follows number, tag and size of the tagged field.
        let at = whole.len() - (1 + 4 + 2 + 4 + 1 + 1);
        let lie: Vec<u8> = whole.iter().enumerate().map(|(index, byte)| if index == at { 0x7f } else { *byte }).collect();
        assert_ne!(lie, whole);
        assert!(check(0, 12, &Bytes::from(lie)).is_err());
    }

    #[test]
    fn a_huge_count_is_refused() {
        assert!(check(3, 0, &Bytes::from_static(&[0x7f, 0xff, 0xff, 0xff])).is_err());
        assert!(check(18, 3, &Bytes::from_static(&[0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f])).is_err());
        assert!(check(999, 0, &Bytes::new()).is_err());
    }
}
