//! Offsets: committing, fetching, and what replay makes of them.

use std::sync::Arc;

use kafka_protocol::messages::offset_commit_request::OffsetCommitRequestPartition;
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopics;
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponsePartitions, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{OffsetCommitRequest, OffsetCommitResponse, TopicName};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::TopicId;

use super::{Shard, of_group};
use crate::coordinator::group::{Cx, GroupState, Now, Output, Reply, ReplyId, str_bytes};
use crate::coordinator::memory::offset_bytes;
use crate::coordinator::records::{OffsetAndMetadata, OffsetKey, Record};

/// From this version on a missing group has its own error (KIP-848).
const GROUP_ID_NOT_FOUND_VERSION: i16 = 9;

/// Offsets by topic and partition. Cheap to take out of a shard, which others wait for; the answer
/// is built apart from it.
#[derive(Debug, Default)]
pub(crate) struct FetchedOffsets(Vec<FetchedTopic>);

/// A topic's name, and its partitions with what was committed.
type FetchedTopic = (Arc<str>, Vec<(i32, Option<OffsetAndMetadata>)>);

impl FetchedOffsets {
    /// As OffsetFetch tells them.
    #[must_use]
    pub(crate) fn answer(self) -> Vec<OffsetFetchResponseTopics> {
        let topic = |(topic, partitions): FetchedTopic| {
            let partitions = partitions
                .into_iter()
                .map(|(partition, offset)| fetched(partition, offset.as_ref()))
                .collect();
            OffsetFetchResponseTopics::default()
                .with_name(TopicName(str_bytes(&topic)))
                .with_partitions(partitions)
        };
        self.0.into_iter().map(topic).collect()
    }
}

impl Shard {
    /// OffsetCommit. `exists` says which partitions there are, with the id of their topic; others
    /// are refused one by one, before the group is looked at.
    pub(crate) fn commit_offsets(
        &mut self,
        request: &OffsetCommitRequest,
        api_version: i16,
        exists: impl Fn(&str, i32) -> Option<TopicId>,
        reply: ReplyId,
        now: Now,
    ) -> Output {
        let mut out = Output::default();
        if let Some(error) = self.refused_commit(request, api_version, &exists, now) {
            out.replies.push((reply, Reply::OffsetCommit(commit_error(request, error))));
            return out;
        }
        let group: Arc<str> = request.group_id.as_str().into();
        let expire_timestamp_ms = Some(request.retention_time_ms)
            .filter(|&retention| retention != -1)
            .map(|retention| now.wall_ms.saturating_add(retention));
        let mut records = Vec::new();
        let mut topics = Vec::with_capacity(request.topics.len());
        for topic in &request.topics {
            let name: Arc<str> = topic.name.as_str().into();
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for partition in &topic.partitions {
                let metadata = partition.committed_metadata.as_deref().unwrap_or("");
                let error = match exists(&name, partition.partition_index) {
                    None => ErrorCode::UnknownTopicOrPartition.code(),
                    Some(_)
                        if metadata.encode_utf16().count()
                            > self.config.offset_metadata_max_bytes =>
                    {
                        ErrorCode::OffsetMetadataTooLarge.code()
                    }
                    Some(topic_id) => {
                        let key = OffsetKey {
                            group: group.clone(),
                            topic: name.clone(),
                            partition: partition.partition_index,
                        };
                        let value = committed(topic_id, partition, expire_timestamp_ms, now);
                        records.push(Record::Offset { key, value: Some(value) });
                        0
                    }
                };
                partitions.push(
                    OffsetCommitResponsePartition::default()
                        .with_partition_index(partition.partition_index)
                        .with_error_code(error),
                );
            }
            topics.push(
                OffsetCommitResponseTopic::default()
                    .with_name(topic.name.clone())
                    .with_partitions(partitions),
            );
        }
        let response = Reply::OffsetCommit(OffsetCommitResponse::default().with_topics(topics));
        if records.is_empty() {
            out.replies.push((reply, response));
        } else {
            self.write(records, Some((reply, response)), now, &mut out);
        }
        out
    }

    /// Why nothing of a commit is taken.
    fn refused_commit(
        &mut self,
        request: &OffsetCommitRequest,
        api_version: i16,
        exists: impl Fn(&str, i32) -> Option<TopicId>,
        now: Now,
    ) -> Option<ErrorCode> {
        let mut partitions = request
            .topics
            .iter()
            .flat_map(|topic| topic.partitions.iter().map(|partition| (&topic.name, partition)));
        if !request.topics.is_empty()
            && partitions
                .all(|(topic, partition)| exists(topic, partition.partition_index).is_none())
        {
            return Some(ErrorCode::UnknownTopicOrPartition);
        }
        if let Err(error) = self.validate_commit(request, api_version, now) {
            return Some(error);
        }
        let has_room = self.memory.takes_offsets(self.growth(request), now);
        (!has_room).then_some(ErrorCode::CoordinatorNotAvailable)
    }

    /// The bytes that the offsets of a commit take more than those they replace.
    fn growth(&self, request: &OffsetCommitRequest) -> usize {
        let group: Arc<str> = request.group_id.as_str().into();
        let mut growth = 0_usize;
        for topic in &request.topics {
            let name: Arc<str> = topic.name.as_str().into();
            for partition in &topic.partitions {
                let key = OffsetKey {
                    group: group.clone(),
                    topic: name.clone(),
                    partition: partition.partition_index,
                };
                let metadata = partition.committed_metadata.as_deref().unwrap_or("");
                let before = self
                    .offsets
                    .latest(&key)
                    .map_or(0, |offset| offset_bytes(&group, &name, &offset.metadata));
                growth = growth
                    .saturating_add(offset_bytes(&group, &name, metadata).saturating_sub(before));
            }
        }
        growth
    }

    fn validate_commit(
        &mut self,
        request: &OffsetCommitRequest,
        api_version: i16,
        now: Now,
    ) -> Result<(), ErrorCode> {
        let generation = request.generation_id_or_member_epoch;
        let Some(group) = self.groups.get_mut(request.group_id.as_str()) else {
            // Without membership anybody may commit to a new group.
            return match generation {
                ..0 => Ok(()),
                0.. if api_version >= GROUP_ID_NOT_FOUND_VERSION => Err(ErrorCode::GroupIdNotFound),
                0.. => Err(ErrorCode::IllegalGeneration),
            };
        };
        group.validate_offset_commit(
            &request.member_id,
            request.group_instance_id.as_deref(),
            generation,
        )?;
        if matches!(group.state(), GroupState::Stable | GroupState::PreparingRebalance) {
            let mut out = Output::default();
            group.touch(
                &request.member_id,
                &mut Cx { config: &self.config, timers: &mut self.timers, out: &mut out, now },
            );
        }
        Ok(())
    }

    /// The committed offsets of a group, of `topics` or of all there are. What was never committed
    /// has none. So has what was committed for another topic of that name: `id_of` says which one
    /// has it now. When a topic is deleted its offsets go with it, but only soon after, and after the
    /// next start when the broker ends between the two.
    #[must_use]
    pub(crate) fn fetch_offsets(
        &self,
        group_id: &str,
        topics: Option<&[OffsetFetchRequestTopics]>,
        id_of: impl Fn(&str) -> Option<TopicId>,
    ) -> FetchedOffsets {
        let group: Arc<str> = group_id.into();
        let is_of = |id: Option<TopicId>, offset: &OffsetAndMetadata| {
            offset.topic_id.is_nil() || id.is_none_or(|id| id == offset.topic_id)
        };
        let mut all: Vec<FetchedTopic> = Vec::new();
        let Some(topics) = topics else {
            let (mut of, mut id) = ("", None);
            for (key, offset) in self.offsets.committed_range(of_group(&group)) {
                if *key.topic != *of {
                    (of, id) = (&key.topic, id_of(&key.topic));
                }
                if !is_of(id, offset) {
                    continue;
                }
                let partition = (key.partition, Some(offset.clone()));
                match all.last_mut().filter(|(topic, _)| *topic == key.topic) {
                    Some((_, partitions)) => partitions.push(partition),
                    None => all.push((key.topic.clone(), vec![partition])),
                }
            }
            return FetchedOffsets(all);
        };
        let found = topics.iter().map(|asked| {
            let topic: Arc<str> = asked.name.as_str().into();
            let id = id_of(&topic);
            let partitions = asked.partition_indexes.iter().map(|&partition| {
                let key = OffsetKey { group: group.clone(), topic: topic.clone(), partition };
                let offset = self.offsets.committed(&key).filter(|offset| is_of(id, offset));
                (partition, offset.cloned())
            });
            let partitions = partitions.collect();
            (topic, partitions)
        });
        all.extend(found);
        FetchedOffsets(all)
    }

    /// A committed offset.
    #[cfg(test)]
    pub(crate) fn offset(&self, key: &OffsetKey) -> Option<&OffsetAndMetadata> {
        self.offsets.committed(key)
    }
}

fn committed(
    topic_id: TopicId,
    partition: &OffsetCommitRequestPartition,
    expire_timestamp_ms: Option<i64>,
    now: Now,
) -> OffsetAndMetadata {
    OffsetAndMetadata {
        topic_id,
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
        None => response
            .with_committed_offset(-1)
            .with_committed_leader_epoch(-1)
            .with_metadata(Some(str_bytes(""))),
    }
}

/// The answer that refuses every partition.
pub(crate) fn commit_error(
    request: &OffsetCommitRequest,
    error: ErrorCode,
) -> OffsetCommitResponse {
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            OffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(error.code())
        });
        OffsetCommitResponseTopic::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    OffsetCommitResponse::default().with_topics(topics.collect())
}
