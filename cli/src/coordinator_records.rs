//! Records of `__consumer_offsets` as JSON, in the form of Kafka's formatters.
//!
//! The bytes come from a broker or a disk: no length in them is trusted, and what cannot be read is
//! `None`. Source: the message definitions of Apache Kafka's group coordinator and of the consumer
//! protocol.

mod new_groups;

use std::fmt::Write;

use bytes::{Buf, Bytes};
use letterbox_client::encode_uuid;
use uuid::Uuid;

use crate::deserializers::java_text;
use crate::json;

/// What kind of record a key begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Key types 0 and 1.
    Offset,
    /// Key type 2: a classic group.
    Group,
    /// One of [`new_groups::RECORDS`], by its key type.
    NewGroup(i16),
}

/// The type number of a key, and its kind when it is one of those that Kafka 4.3 has.
pub(crate) fn key_type(key: &[u8]) -> Option<(i16, Option<Kind>)> {
    let number = key.get(..2).map(|mut bytes| bytes.get_i16())?;
    let kind = match number {
        0 | 1 => Some(Kind::Offset),
        2 => Some(Kind::Group),
        _ => new_group(number).map(|_| Kind::NewGroup(number)),
    };
    Some((number, kind))
}

/// The fields of the key and of the value.
fn new_group(number: i16) -> Option<(&'static [Field], &'static [Field])> {
    new_groups::RECORDS.iter().find(|(of, ..)| *of == number).map(|(_, key, value)| (*key, *value))
}

/// The fields of a key, after its type number.
///
/// # Errors
/// Why they cannot be read, in the words of Kafka's tools.
pub(crate) fn key_json(kind: Kind, key: &Bytes) -> Result<String, String> {
    let fields = match kind {
        Kind::Offset => OFFSET_KEY,
        Kind::Group => GROUP_KEY,
        Kind::NewGroup(number) => new_group(number).map_or(GROUP_KEY, |(key, _)| key),
    };
    let version = version_of(key, "key")?;
    object(fields, key, &Reading { version, flexible: false, decode_members: false })
        .map_err(|why| unreadable(version, "key", &why))
}

/// The version number of a value and its fields, or why they cannot be read. With `decode_members`
/// what a consumer subscribes to and is assigned is told in words, else as bytes in base64.
///
/// # Errors
/// When the value has no version.
pub(crate) fn value_json(
    kind: Kind,
    value: &Bytes,
    decode_members: bool,
) -> Result<(i16, Result<String, String>), String> {
    let version = version_of(value, "value")?;
    let (fields, number, newest, flexible_since) = match kind {
        Kind::Offset => (OFFSET_VALUE, 1, 4, 4),
        Kind::Group => (GROUP_VALUE, 2, 4, 4),
        Kind::NewGroup(number) => {
            (new_group(number).map_or(GROUP_VALUE, |(_, value)| value), number, 0, 0)
        }
    };
    if !(0..=newest).contains(&version) {
        return Ok((
            version,
            Err(format!("Found an unknown record version {version} for {number} type")),
        ));
    }
    let reading = Reading { version, flexible: version >= flexible_since, decode_members };
    let data = object(fields, value, &reading).map_err(|why| unreadable(version, "value", &why));
    Ok((version, data))
}

fn version_of(bytes: &Bytes, name: &str) -> Result<i16, String> {
    bytes
        .get(..2)
        .map(|mut bytes| bytes.get_i16())
        .ok_or_else(|| format!("Could not read version from {name}'s buffer."))
}

fn unreadable(version: i16, name: &str, why: &str) -> String {
    format!("Could not read record with version {version} from {name}'s buffer due to: {why}.")
}

/// Of bytes that end too early Java knows no more to say.
const TOO_SHORT: &str = "null";

fn object(fields: &[Field], bytes: &Bytes, reading: &Reading) -> Result<String, String> {
    let mut rest = bytes.slice(2.min(bytes.len())..);
    reading.fields(fields, &mut rest)
}

/// A field: name, first and last version that have it, type.
struct Field(&'static str, i16, i16, Type);

enum Type {
    I8,
    I16,
    U16,
    I32,
    I64,
    Uuid,
    Text,
    /// A string that may be null.
    MaybeText,
    /// Bytes that may be null, shown in base64.
    Blob,
    /// Bytes that hold the subscription or the assignment of a consumer.
    Consumer(&'static [Field]),
    I16s,
    I32s,
    /// Numbers, or null.
    MaybeI32s,
    Texts,
    Array(&'static [Field]),
    /// An array that may be null.
    MaybeArray(&'static [Field]),
    /// A structure that may be null.
    MaybeStruct(&'static [Field]),
    /// A tagged field: its tag, and its default as JSON, with which it is left out.
    Tagged(i32, &'static Type, &'static str),
}

const NEWEST: i16 = i16::MAX;
/// The id that is none, as JSON.
const NIL: &str = "\"AAAAAAAAAAAAAAAAAAAAAA\"";
const OFFSET_KEY: &[Field] = &[
    Field("group", 0, NEWEST, Type::Text),
    Field("topic", 0, NEWEST, Type::Text),
    Field("partition", 0, NEWEST, Type::I32),
];
const GROUP_KEY: &[Field] = &[Field("group", 0, NEWEST, Type::Text)];
const OFFSET_VALUE: &[Field] = &[
    Field("offset", 0, NEWEST, Type::I64),
    Field("leaderEpoch", 3, NEWEST, Type::I32),
    Field("metadata", 0, NEWEST, Type::Text),
    Field("commitTimestamp", 0, NEWEST, Type::I64),
    Field("expireTimestamp", 1, 1, Type::I64),
    Field("topicId", 4, NEWEST, Type::Tagged(0, &Type::Uuid, NIL)),
];
const GROUP_VALUE: &[Field] = &[
    Field("protocolType", 0, NEWEST, Type::Text),
    Field("generation", 0, NEWEST, Type::I32),
    Field("protocol", 0, NEWEST, Type::MaybeText),
    Field("leader", 0, NEWEST, Type::MaybeText),
    Field("currentStateTimestamp", 2, NEWEST, Type::I64),
    Field("members", 0, NEWEST, Type::Array(MEMBER)),
];
const MEMBER: &[Field] = &[
    Field("memberId", 0, NEWEST, Type::Text),
    Field("groupInstanceId", 3, NEWEST, Type::MaybeText),
    Field("clientId", 0, NEWEST, Type::Text),
    Field("clientHost", 0, NEWEST, Type::Text),
    Field("rebalanceTimeout", 1, NEWEST, Type::I32),
    Field("sessionTimeout", 0, NEWEST, Type::I32),
    Field("subscription", 0, NEWEST, Type::Consumer(SUBSCRIPTION)),
    Field("assignment", 0, NEWEST, Type::Consumer(ASSIGNMENT)),
];
const SUBSCRIPTION: &[Field] = &[
    Field("topics", 0, NEWEST, Type::Texts),
    Field("userData", 0, NEWEST, Type::Blob),
    Field("ownedPartitions", 1, NEWEST, Type::Array(PARTITIONS)),
    Field("generationId", 2, NEWEST, Type::I32),
    Field("rackId", 3, NEWEST, Type::MaybeText),
];
const ASSIGNMENT: &[Field] = &[
    Field("assignedPartitions", 0, NEWEST, Type::Array(PARTITIONS)),
    Field("userData", 0, NEWEST, Type::Blob),
];
const PARTITIONS: &[Field] =
    &[Field("topic", 0, NEWEST, Type::Text), Field("partitions", 0, NEWEST, Type::I32s)];

struct Reading {
    version: i16,
    /// Compact lengths and tagged fields (KIP-482).
    flexible: bool,
    decode_members: bool,
}

impl Reading {
    fn fields(&self, fields: &[Field], bytes: &mut Bytes) -> Result<String, String> {
        let here = |field: &&Field| (field.1..=field.2).contains(&self.version);
        let mut parts = Vec::new();
        for field in fields.iter().filter(here).filter(|field| !matches!(field.3, Type::Tagged(..)))
        {
            parts.push(format!("\"{}\":{}", field.0, self.value(field.0, &field.3, bytes)?));
        }
        if self.flexible {
            for _ in 0..unsigned(bytes)? {
                let tag = unsigned(bytes)?;
                let size = i64::from(unsigned(bytes)?);
                let tagged = fields.iter().filter(here).find_map(|field| match &field.3 {
                    Type::Tagged(of, kind, default) if *of == tag => {
                        Some((field.0, *kind, *default))
                    }
                    _ => None,
                });
                let Some((name, kind, default)) = tagged else {
                    take(bytes, size)?;
                    continue;
                };
                // A field's own length counts, not the one that the tag gives.
                let value = self.value(name, kind, bytes)?;
                if value != default {
                    parts.push(format!("\"{name}\":{value}"));
                }
            }
        }
        Ok(format!("{{{}}}", parts.join(",")))
    }

    fn value(&self, name: &str, kind: &Type, bytes: &mut Bytes) -> Result<String, String> {
        let not_null = || format!("non-nullable field {name} was serialized as null");
        let or_null = |list: Option<String>| list.unwrap_or_else(|| "null".to_owned());
        let short = |bytes: &mut Bytes| Ok(bytes.try_get_i16().map_err(|_| TOO_SHORT)?.to_string());
        Ok(match kind {
            Type::I8 => bytes.try_get_i8().map_err(|_| TOO_SHORT)?.to_string(),
            Type::I16 => short(bytes)?,
            Type::U16 => bytes.try_get_u16().map_err(|_| TOO_SHORT)?.to_string(),
            Type::Uuid => {
                let id = Uuid::from_u128(bytes.try_get_u128().map_err(|_| TOO_SHORT)?);
                json::text(&encode_uuid(id))
            }
            Type::I32 => number(bytes)?.to_string(),
            Type::I64 => bytes.try_get_i64().map_err(|_| TOO_SHORT)?.to_string(),
            Type::Text => json::text(&self.text(bytes)?.ok_or_else(not_null)?),
            Type::MaybeText => json::text_or_null(self.text(bytes)?.as_deref()),
            Type::Blob => blob(self.blob(bytes)?.as_deref()),
            Type::Consumer(fields) => {
                let content = self.blob(bytes)?.ok_or_else(not_null)?;
                let decoded = self.decode_members.then(|| {
                    let version = content.get(..2)?.get_i16();
                    object(
                        fields,
                        &content,
                        &Reading { version, flexible: false, decode_members: false },
                    )
                    .ok()
                });
                decoded.flatten().unwrap_or_else(|| blob(Some(&content)))
            }
            Type::I16s => self.list(bytes, short)?.ok_or_else(not_null)?,
            Type::I32s => {
                self.list(bytes, |bytes| Ok(number(bytes)?.to_string()))?.ok_or_else(not_null)?
            }
            Type::MaybeI32s => or_null(self.list(bytes, |bytes| Ok(number(bytes)?.to_string()))?),
            Type::Texts => self
                .list(bytes, |bytes| Ok(json::text(&self.text(bytes)?.ok_or_else(not_null)?)))?
                .ok_or_else(not_null)?,
            Type::Array(fields) => {
                self.list(bytes, |bytes| self.fields(fields, bytes))?.ok_or_else(not_null)?
            }
            Type::MaybeArray(fields) => {
                or_null(self.list(bytes, |bytes| self.fields(fields, bytes))?)
            }
            Type::MaybeStruct(fields) => match bytes.try_get_i8().map_err(|_| TOO_SHORT)? {
                ..0 => "null".to_owned(),
                _ => self.fields(fields, bytes)?,
            },
            Type::Tagged(..) => return Err("a tagged field stands among the others".to_owned()),
        })
    }

    /// `None` is null.
    fn list(
        &self,
        bytes: &mut Bytes,
        element: impl Fn(&mut Bytes) -> Result<String, String>,
    ) -> Result<Option<String>, String> {
        let count =
            if self.flexible { i64::from(unsigned(bytes)?) - 1 } else { i64::from(number(bytes)?) };
        let Ok(size) = usize::try_from(count) else { return Ok(None) };
        // Every element takes at least a byte.
        if size > bytes.len() {
            return Err(format!(
                "Tried to allocate a collection of size {size}, but there are only {} bytes \
                 remaining.",
                bytes.len()
            ));
        }
        let elements: Result<Vec<String>, String> = (0..size).map(|_| element(bytes)).collect();
        Ok(Some(format!("[{}]", elements?.join(","))))
    }

    /// `None` is null.
    fn text(&self, bytes: &mut Bytes) -> Result<Option<String>, String> {
        let length = if self.flexible {
            i64::from(unsigned(bytes)?) - 1
        } else {
            i64::from(bytes.try_get_i16().map_err(|_| TOO_SHORT)?)
        };
        Ok(take(bytes, length)?.map(|text| java_text(&text)))
    }

    /// `None` is null.
    fn blob(&self, bytes: &mut Bytes) -> Result<Option<Bytes>, String> {
        let length =
            if self.flexible { i64::from(unsigned(bytes)?) - 1 } else { i64::from(number(bytes)?) };
        take(bytes, length)
    }
}

fn number(bytes: &mut Bytes) -> Result<i32, String> {
    Ok(bytes.try_get_i32().map_err(|_| TOO_SHORT)?)
}

/// `None` for a negative length: null.
fn take(bytes: &mut Bytes, length: i64) -> Result<Option<Bytes>, String> {
    match usize::try_from(length) {
        Err(_) => Ok(None),
        Ok(length) if length <= bytes.len() => Ok(Some(bytes.split_to(length))),
        Ok(length) => Err(format!(
            "Error reading byte array of {length} byte(s): only {} byte(s) available",
            bytes.len()
        )),
    }
}

/// A variable-length number of at most five bytes.
fn unsigned(bytes: &mut Bytes) -> Result<i32, String> {
    let mut value = 0u32;
    for shift in [0, 7, 14, 21, 28] {
        let byte = bytes.try_get_u8().map_err(|_| TOO_SHORT)?;
        value |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value.cast_signed());
        }
    }
    Err(format!(
        "Varint is too long, the most significant bit in the 5th byte is set, converted value: \
         {value:x}"
    ))
}

/// Standard base64 with padding, in quotes.
fn blob(bytes: Option<&[u8]>) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let Some(bytes) = bytes else { return "null".to_owned() };
    let mut text = String::from("\"");
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |value, byte| (value << 8) | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let digit = usize::try_from((bits >> (18 - 6 * index)) & 63).unwrap_or(0);
            let digit = DIGITS
                .get(digit)
                .filter(|_| index <= chunk.len())
                .map_or('=', |digit| char::from(*digit));
            // Writing to a string cannot fail.
            let _ = text.write_char(digit);
        }
    }
    text + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Bytes {
        let hex: String = hex.split_whitespace().collect();
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect::<Vec<u8>>()
            .into()
    }

    /// Group `g`, topic `t`, partition 3; offset 5, epoch 2, metadata `m`, at 9.
    const KEY: &str = "0001 0001 67 0001 74 00000003";
    const VALUE_3: &str = "0003 0000000000000005 00000002 0001 6d 0000000000000009";

    #[test]
    fn offsets_of_every_version_are_read() {
        assert_eq!(key_type(&bytes(KEY)), Some((1, Some(Kind::Offset))));
        assert_eq!(
            key_json(Kind::Offset, &bytes(KEY)).unwrap(),
            r#"{"group":"g","topic":"t","partition":3}"#
        );
        let read = |hex: &str| value_json(Kind::Offset, &bytes(hex), false);
        let json = |text: &str| Ok(text.to_owned());
        assert_eq!(
            read(VALUE_3),
            Ok((3, json(r#"{"offset":5,"leaderEpoch":2,"metadata":"m","commitTimestamp":9}"#)))
        );
        let one = "0001 0000000000000005 0001 6d 0000000000000009 000000000000000a";
        assert_eq!(
            read(one),
            Ok((
                1,
                json(r#"{"offset":5,"metadata":"m","commitTimestamp":9,"expireTimestamp":10}"#)
            ))
        );
        let four = "0004 0000000000000005 ffffffff 01 0000000000000009 01 00 10 \
            00000000000000000000000000000001";
        let expected = r#"{"offset":5,"leaderEpoch":-1,"metadata":"","commitTimestamp":9,"topicId":"AAAAAAAAAAAAAAAAAAAAAQ"}"#;
        assert_eq!(read(four), Ok((4, json(expected))));
        assert!(matches!(read("0009 00"), Ok((9, Err(_)))));
        for cut in 2..bytes(VALUE_3).len() {
            assert!(
                matches!(
                    value_json(Kind::Offset, &bytes(VALUE_3).slice(..cut), false),
                    Ok((3, Err(_)))
                ),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn groups_are_read_with_what_their_members_ask_for() {
        let subscription = "0001 00000001 0001 74 ffffffff 00000000";
        let member = format!(
            "0001 6d ffff 0001 63 0002 2f68 00000001 00000002 {:08x} {subscription} 00000000",
            bytes(subscription).len()
        );
        let value = format!(
            "0003 0008 636f6e73756d6572 00000007 ffff 0001 6d 0000000000000009 00000001 {member}"
        );
        let head = r#"{"protocolType":"consumer","generation":7,"protocol":null,"leader":"m","currentStateTimestamp":9,"members":[{"memberId":"m","groupInstanceId":null,"clientId":"c","clientHost":"/h","rebalanceTimeout":1,"sessionTimeout":2,"subscription":"#;
        let read = |decode| value_json(Kind::Group, &bytes(&value), decode).unwrap().1.unwrap();
        assert_eq!(
            read(false),
            format!(r#"{head}"AAEAAAABAAF0/////wAAAAA=","assignment":""}}]}}"#)
        );
        assert_eq!(
            read(true),
            format!(
                r#"{head}{{"topics":["t"],"userData":null,"ownedPartitions":[]}},"assignment":""}}]}}"#
            )
        );
        // A count that is larger than the bytes is refused and not believed.
        assert!(matches!(
            value_json(Kind::Group, &bytes("0000 0000 00000001 ffff ffff 7fffffff"), false),
            Ok((0, Err(_)))
        ));
        for (number, kind) in [
            (3, Some(Kind::NewGroup(3))),
            (23, Some(Kind::NewGroup(23))),
            (9, None),
            (18, None),
            (24, None),
        ] {
            assert_eq!(key_type(&bytes(&format!("{number:04x} 00"))), Some((number, kind)));
        }
        assert_eq!(key_type(&bytes("00")), None);
    }

    /// Bytes and JSON of Apache Kafka 4.3.1.
    #[test]
    fn records_of_new_groups_are_read_as_kafka_reads_them() {
        let (group, member) = (r#"{"groupId":"g"}"#, r#"{"groupId":"g","memberId":"m"}"#);
        for (number, key, key_text, value, text) in [
            (3, "000167", group, "0000000400", r#"{"epoch":4}"#),
            (
                3,
                "000167",
                group,
                "000000040100080000000000000009",
                r#"{"epoch":4,"metadataHash":9}"#,
            ),
            (
                5,
                "00016700016d",
                member,
                "0002720263032f68020274000000000308756e69666f726d0100110100000005020672616e67650301020000",
                r#"{"instanceId":null,"rackId":"r","clientId":"c","clientHost":"/h","subscribedTopicNames":["t"],"subscribedTopicRegex":null,"rebalanceTimeoutMs":3,"serverAssignor":"uniform","classicMemberMetadata":{"sessionTimeoutMs":5,"supportedProtocols":[{"name":"range","metadata":"AQI="}]}}"#,
            ),
            (
                8,
                "00016700016d",
                member,
                "0000000200000001010200000000000000000000000000000007030000000000000001010009030000000100000002020000000000000000000000000000000702000000030000",
                r#"{"memberEpoch":2,"previousMemberEpoch":1,"state":1,"assignedPartitions":[{"topicId":"AAAAAAAAAAAAAAAAAAAABw","partitions":[0,1],"assignmentEpochs":[1,2]}],"partitionsPendingRevocation":[{"topicId":"AAAAAAAAAAAAAAAAAAAABw","partitions":[3]}]}"#,
            ),
            (
                17,
                "000167",
                group,
                "00000001000000000000000202000400000003010602026b027600",
                r#"{"epoch":1,"metadataHash":2,"validatedTopologyEpoch":3,"lastAssignmentConfigs":[{"key":"k","value":"v"}]}"#,
            ),
            (
                19,
                "00016700016d",
                member,
                "01010263032f68ffffffff000000000270010265ffff000100",
                r#"{"instanceId":"","rackId":"","clientId":"c","clientHost":"/h","rebalanceTimeoutMs":-1,"topologyEpoch":0,"processId":"p","userEndpoint":{"host":"e","port":65535},"clientTags":[]}"#,
            ),
            (
                23,
                "000167",
                group,
                "000000010202730202740102026e00000000ffff0100010102030000012c0101000000",
                r#"{"epoch":1,"subtopologies":[{"subtopologyId":"s","sourceTopics":["t"],"sourceTopicRegex":[],"stateChangelogTopics":[{"name":"n","partitions":0,"replicationFactor":-1,"topicConfigs":[]}],"repartitionSinkTopics":[],"repartitionSourceTopics":[],"copartitionGroups":[{"sourceTopics":[0,300],"sourceTopicRegex":[],"repartitionSourceTopics":[]}]}]}"#,
            ),
        ] {
            let (kind, value) = (Kind::NewGroup(number), bytes(&format!("0000 {value}")));
            assert_eq!(
                key_json(kind, &bytes(&format!("{number:04x} {key}"))).as_deref(),
                Ok(key_text)
            );
            assert_eq!(value_json(kind, &value, true), Ok((0, Ok(text.to_owned()))));
            for cut in 2..value.len() {
                assert!(
                    matches!(value_json(kind, &value.slice(..cut), true), Ok((0, Err(_)))),
                    "{number}: cut at {cut}"
                );
            }
        }
        assert!(matches!(value_json(Kind::NewGroup(3), &bytes("0001 00"), true), Ok((1, Err(_)))));
    }
}
