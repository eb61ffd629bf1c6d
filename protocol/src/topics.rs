//! The topics that are the brokers' own.

macro_rules! metadata_topic {
    () => {
        "__cluster_metadata"
    };
}

/// Where coordinators keep groups and their offsets.
pub const GROUP_METADATA_TOPIC: &str = "__consumer_offsets";

/// Topics that belong to the cluster itself.
pub const INTERNAL_TOPICS: &[&str] =
    &[GROUP_METADATA_TOPIC, "__transaction_state", "__share_group_state"];

/// The quorum's own log, which lies among the partitions as partition 0 of this topic and is none.
pub const METADATA_TOPIC: &str = metadata_topic!();

/// The directory of that log in `metadata.log.dir`, which may be a log directory. No partition's has
/// such a name, which lacks the `-`, and Apache Kafka does not start with it.
pub const METADATA_DIR: &str = "__letterbox_metadata";

/// Where Apache Kafka has its metadata log, and earlier versions of Letterbox had theirs.
pub const KAFKA_METADATA_DIR: &str = concat!(metadata_topic!(), "-0");

/// The list of its partitions in each log directory, from its first start on. Not one of Kafka's
/// files.
pub const PARTITION_TOPIC_IDS: &str = "partition-topic-ids";

/// The longest name in characters: with a partition's number behind it, it still fits into a file
/// name.
pub const TOPIC_NAME_LEN_MAX: usize = 249;

/// Why no topic can have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrongTopicName {
    /// It is empty.
    Empty,
    /// It is `.` or `..`.
    Dots,
    /// It is longer than [`TOPIC_NAME_LEN_MAX`].
    TooLong,
    /// It has other characters than ASCII letters and digits, `.`, `_` and `-`.
    Characters,
}

/// Checks a topic's name by Kafka's rules (its `Topic.validate`), in their order.
///
/// # Errors
/// The first rule that the name breaks.
pub fn check_topic_name(name: &str) -> Result<(), WrongTopicName> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match name {
        "" => Err(WrongTopicName::Empty),
        "." | ".." => Err(WrongTopicName::Dots),
        name if name.len() > TOPIC_NAME_LEN_MAX => Err(WrongTopicName::TooLong),
        name if !name.bytes().all(is_allowed) => Err(WrongTopicName::Characters),
        _ => Ok(()),
    }
}

/// Whether `name` is one of [`INTERNAL_TOPICS`].
#[must_use]
pub fn is_internal_topic(name: &str) -> bool {
    INTERNAL_TOPICS.contains(&name)
}
