//! Administration: topics, configurations, offsets, groups.
//!
//! Calls are retried within `default.api.timeout.ms` while the reason to fail is temporary, as
//! Kafka's own admin client does; so a change whose answer got lost may be refused the second time
//! (`TOPIC_ALREADY_EXISTS`).

mod acls;
mod cluster;
mod configs;
mod groups;
mod offsets;
mod producers;
mod reassignments;
mod records;
mod topics;

pub use acls::{AccessControlEntry, AclResource, ResourceFilter};
pub use cluster::{
    ApiVersions, Endpoint, FinalizedFeatures, LogDirectory, LogReplica, QuorumNode, QuorumReplica,
    QuorumStatus, UpgradeType, VersionRange,
};
pub use configs::{
    AlterOp, ConfigEntry, ConfigResource, ConfigSource, ConfigSynonym, TopicConfigs,
};
pub use groups::{CommittedOffset, DescribedGroup, GroupMember, ListedGroup};
pub use offsets::{FoundOffset, IsolationLevel, OffsetSpec};
pub use producers::ProducerState;
pub use reassignments::{ElectionType, PartitionReassignment};
pub use topics::{DescribedCluster, EligibleLeaders, MorePartitions, NewTopic, TopicCreated};

pub(crate) use groups::assignment;

use std::collections::BTreeMap;

use crate::metadata::TopicPartition;

/// What belongs to partitions, by the names of their topics.
fn by_topic<'a, T>(
    partitions: impl Iterator<Item = (&'a TopicPartition, T)>,
) -> BTreeMap<&'a str, Vec<T>> {
    let mut topics: BTreeMap<&str, Vec<T>> = BTreeMap::new();
    for (partition, of) in partitions {
        topics.entry(&partition.topic).or_default().push(of);
    }
    topics
}

/// The indexes of partitions, by the names of their topics.
fn ids_by_topic(partitions: &[TopicPartition]) -> BTreeMap<&str, Vec<i32>> {
    by_topic(partitions.iter().map(|one| (one, one.partition)))
}
