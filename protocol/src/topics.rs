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

/// Whether `name` is one of [`INTERNAL_TOPICS`].
#[must_use]
pub fn is_internal_topic(name: &str) -> bool {
    INTERNAL_TOPICS.contains(&name)
}
