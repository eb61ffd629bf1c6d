//! What the table of message schemas is made of. The table itself, `schema_table.rs`, is generated.

/// A closed range of versions; `Versions(1, 0)` holds none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Versions(pub(super) i16, pub(super) i16);

impl Versions {
    /// No version at all.
    pub(super) const NEVER: Versions = Versions(1, 0);

    /// Whether `version` is in the range.
    pub(super) const fn contains(self, version: i16) -> bool {
        self.0 <= version && version <= self.1
    }
}

/// How a field looks on the wire.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Always this many bytes, any of which are right.
    Fixed(usize),
    /// Length (int16, or varint + 1 when flexible) and UTF-8.
    Str,
    /// Length (int32, or varint + 1 when flexible) and anything.
    Blob,
    /// Record batches; framed like [`Kind::Blob`], looked into elsewhere.
    Records,
    /// Count (int32, or varint + 1 when flexible) and so many elements.
    Array(&'static Kind),
    /// Its fields one after the other, then tagged fields when flexible.
    Struct(&'static [Field]),
}

/// One field of a message or of a struct in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    /// Kafka's name for it.
    pub(super) name: &'static str,
    /// What it looks like.
    pub(super) kind: Kind,
    /// The versions that have the field.
    pub(super) versions: Versions,
    /// The versions in which it may be null.
    pub(super) nullable: Versions,
    /// Its number among the tagged fields (KIP-482); `None` when it has a fixed place.
    pub(super) tag: Option<u32>,
}

/// A request or a response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    /// The API key.
    pub(super) key: i16,
    /// Kafka's name, such as `MetadataRequest`.
    #[cfg_attr(
        not(test),
        allow(dead_code, reason = "for the reader of the table, and for the test of its names")
    )]
    pub(super) name: &'static str,
    /// The versions that Kafka knows; Letterbox serves those in [`super::apis`].
    pub(super) versions: Versions,
    /// The versions with compact lengths and tagged fields (KIP-482).
    pub(super) flexible: Versions,
    /// The fields in the order of the wire.
    pub(super) fields: &'static [Field],
}

/// The message of an API key, in a table that is sorted by key.
pub(super) fn find(table: &'static [Message], api_key: i16) -> Option<&'static Message> {
    table.binary_search_by_key(&api_key, |m| m.key).ok().and_then(|at| table.get(at))
}

/// A [`Field`], short enough for one line of the table.
macro_rules! f {
    ($name:literal, $kind:expr, $versions:expr, $nullable:expr, $tag:expr) => {
        crate::schema::Field {
            name: $name,
            kind: $kind,
            versions: $versions,
            nullable: $nullable,
            tag: $tag,
        }
    };
}
pub(super) use f;
