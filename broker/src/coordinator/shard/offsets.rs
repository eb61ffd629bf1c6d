//! Offsets: committing, fetching, and what replay makes of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_commit_request::OffsetCommitRequestPartition;
use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopics;
use kafka_protocol::messages::offset_fetch_response::{OffsetFetchResponsePartitions, OffsetFetchResponseTopics};
use kafka_protocol::messages::{OffsetCommitRequest, OffsetCommitResponse, TopicName};

use super::Shard;
use crate::coordinator::group::{Completion, Cx, Group, GroupState, Now, Output, Reply, ReplyId, Write, str_bytes};
use crate::coordinator::records::{OffsetAndMetadata, OffsetKey, Record};

/// From this version on a missing group has its own error (KIP-848).
const GROUP_ID_NOT_FOUND_VERSION: i16 = 9;

impl Shard {
    /// OffsetCommit. `unknown_topics` are those that do not exist; their partitions are refused one by one.
    pub fn commit_offsets(
        &mut self,
        request: &OffsetCommitRequest,
        api_version: i16,
        unknown_topics: &BTreeSet<Arc<str>>,
        reply: ReplyId,
        now: Now,
    ) -> Output {
        let mut out = Output::default();
        if let Err(error) = self.validate_commit(request, api_version, now) {
            out.replies.push((reply, Reply::OffsetCommit(commit_error(request, error))));
            return out;
        }
        let group: Arc<str> = request.group_id.as_str().into();
        let expire_timestamp_ms =
            Some(request.retention_time_ms).filter(|&retention| retention != -1).map(|retention| now.wall_ms.saturating_add(retention));
        let mut records = Vec::new();
        let mut topics = Vec::with_capacity(request.topics.len());
        for topic in &request.topics {
            let name: Arc<str> = topic.name.as_str().into();
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for partition in &topic.partitions {
                let metadata = partition.committed_metadata.as_deref().unwrap_or("");
                let error = if unknown_topics.contains(&name) {
                    ResponseError::UnknownTopicOrPartition.code()
                } else if metadata.encode_utf16().count() > self.config.offset_metadata_max_bytes {
                    ResponseError::OffsetMetadataTooLarge.code()
                } else {
                    let key = OffsetKey { group: group.clone(), topic: name.clone(), partition: partition.partition_index };
                    records.push(Record::Offset { key, value: Some(committed(partition, expire_timestamp_ms, now)) });
                    0
                };
                partitions
                    .push(OffsetCommitResponsePartition::default().with_partition_index(partition.partition_index).with_error_code(error));
            }
            topics.push(OffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions));
        }
        let response = Reply::OffsetCommit(OffsetCommitResponse::default().with_topics(topics));
        if records.is_empty() {
            out.replies.push((reply, response));
        } else {
            let then = Completion::Apply { records: records.clone(), reply: Some((reply, response)) };
            out.writes.push(Write { records, then });
        }
        out
    }

    fn validate_commit(&mut self, request: &OffsetCommitRequest, api_version: i16, now: Now) -> Result<(), ResponseError> {
        let generation = request.generation_id_or_member_epoch;
        let Some(group) = self.groups.get_mut(request.group_id.as_str()) else {
            // Without membership anybody may commit to a new group.
            return match generation {
                ..0 => Ok(()),
                0.. if api_version >= GROUP_ID_NOT_FOUND_VERSION => Err(ResponseError::GroupIdNotFound),
                0.. => Err(ResponseError::IllegalGeneration),
            };
        };
        group.validate_offset_commit(&request.member_id, request.group_instance_id.as_deref(), generation)?;
        if matches!(group.state(), GroupState::Stable | GroupState::PreparingRebalance) {
            let mut out = Output::default();
            group.touch(&request.member_id, &mut Cx { config: &self.config, timers: &mut self.timers, out: &mut out, now });
        }
        Ok(())
    }

    /// The committed offsets of a group, of `topics` or of all there are. What was never committed has offset −1.
    #[must_use]
    pub fn fetch_offsets(&self, group_id: &str, topics: Option<&[OffsetFetchRequestTopics]>) -> Vec<OffsetFetchResponseTopics> {
        let of_group = self.offsets.get(group_id);
        match topics {
            None => of_group
                .into_iter()
                .flatten()
                .map(|(name, partitions)| {
                    let partitions = partitions.iter().map(|(partition, offset)| fetched(*partition, Some(offset))).collect();
                    OffsetFetchResponseTopics::default().with_name(TopicName(str_bytes(name))).with_partitions(partitions)
                })
                .collect(),
            Some(topics) => topics
                .iter()
                .map(|topic| {
                    let of_topic = of_group.and_then(|offsets| offsets.get(topic.name.as_str()));
                    let offset = |partition: &i32| fetched(*partition, of_topic.and_then(|offsets| offsets.get(partition)));
                    let partitions = topic.partition_indexes.iter().map(offset).collect();
                    OffsetFetchResponseTopics::default().with_name(topic.name.clone()).with_partitions(partitions)
                })
                .collect(),
        }
    }

    /// A committed offset.
    #[must_use]
    pub fn offset(&self, key: &OffsetKey) -> Option<&OffsetAndMetadata> {
        self.offsets.get(&key.group)?.get(&key.topic)?.get(&key.partition)
    }

    pub(super) fn apply_offset(&mut self, record: Record, now: Now) {
        let Record::Offset { key, value } = record else { return };
        match value {
            Some(value) => {
                self.groups.entry(key.group.clone()).or_insert_with(|| Group::new(key.group.clone(), now));
                self.offsets.entry(key.group).or_default().entry(key.topic).or_default().insert(key.partition, value);
            }
            None => {
                let Some(of_group) = self.offsets.get_mut(&key.group) else { return };
                if let Some(of_topic) = of_group.get_mut(&key.topic) {
                    of_topic.remove(&key.partition);
                    if of_topic.is_empty() {
                        of_group.remove(&key.topic);
                    }
                }
                if of_group.is_empty() {
                    self.offsets.remove(&key.group);
                }
            }
        }
    }
}

fn committed(partition: &OffsetCommitRequestPartition, expire_timestamp_ms: Option<i64>, now: Now) -> OffsetAndMetadata {
    OffsetAndMetadata {
        offset: partition.committed_offset,
        leader_epoch: partition.committed_leader_epoch,
        metadata: partition.committed_metadata.as_deref().unwrap_or("").into(),
        commit_timestamp_ms: now.wall_ms,
        expire_timestamp_ms,
    }
}

fn fetched(partition: i32, offset: Option<&OffsetAndMetadata>) -> OffsetFetchResponsePartitions {
    let response = OffsetFetchResponsePartitions::default().with_partition_index(partition);
    match offset {
        Some(offset) => response
            .with_committed_offset(offset.offset)
            .with_committed_leader_epoch(offset.leader_epoch)
            .with_metadata(Some(str_bytes(&offset.metadata))),
        None => response.with_committed_offset(-1).with_committed_leader_epoch(-1).with_metadata(Some(str_bytes(""))),
    }
}

/// The answer that refuses every partition.
pub(in crate::coordinator) fn commit_error(request: &OffsetCommitRequest, error: ResponseError) -> OffsetCommitResponse {
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            OffsetCommitResponsePartition::default().with_partition_index(partition.partition_index).with_error_code(error.code())
        });
        OffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
    });
    OffsetCommitResponse::default().with_topics(topics.collect())
}
