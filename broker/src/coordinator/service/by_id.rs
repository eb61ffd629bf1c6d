//! Requests that name topics by id, from version 10 of OffsetCommit and OffsetFetch on (KIP-848):
//! to names, which the coordinator keeps offsets by, and back.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartitions, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{OffsetCommitRequest, OffsetCommitResponse, TopicName};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::by_id::topic_id;
use letterbox_protocol::model::TopicId;

use crate::coordinator::group::str_bytes;

/// From this version on the names in these messages are ids.
pub(super) use letterbox_protocol::by_id::BY_ID as FROM_VERSION;

/// The ids of one request.
#[derive(Default)]
pub(super) struct Ids {
    known: BTreeMap<Arc<str>, TopicId>,
    /// What stood in the place of a name, and the partitions asked for.
    unknown: Vec<(TopicName, Vec<i32>)>,
}

/// The request by name, without topics whose id nobody has.
pub(super) fn to_names(
    mut request: OffsetCommitRequest,
    name_of: impl Fn(TopicId) -> Option<Arc<str>>,
) -> (OffsetCommitRequest, Ids) {
    let mut ids = Ids::default();
    request.topics.retain_mut(|topic| {
        let partitions =
            || topic.partitions.iter().map(|partition| partition.partition_index).collect();
        ids.resolve(&topic.name, &name_of, partitions).map(|name| topic.name = name).is_some()
    });
    (request, ids)
}

/// The group by name, without topics whose id nobody has.
pub(super) fn group_to_names(
    mut group: OffsetFetchRequestGroup,
    name_of: impl Fn(TopicId) -> Option<Arc<str>>,
) -> (OffsetFetchRequestGroup, Ids) {
    let mut ids = Ids::default();
    if let Some(topics) = &mut group.topics {
        topics.retain_mut(|topic| {
            let partitions = || topic.partition_indexes.clone();
            ids.resolve(&topic.name, &name_of, partitions).map(|name| topic.name = name).is_some()
        });
    }
    (group, ids)
}

impl Ids {
    fn resolve(
        &mut self,
        said: &TopicName,
        name_of: impl Fn(TopicId) -> Option<Arc<str>>,
        partitions: impl FnOnce() -> Vec<i32>,
    ) -> Option<TopicName> {
        match topic_id(said).and_then(|id| Some((id, name_of(id)?))) {
            Some((id, name)) => {
                let answer = TopicName(str_bytes(&name));
                self.known.insert(name, id);
                Some(answer)
            }
            None => {
                self.unknown.push((said.clone(), partitions()));
                None
            }
        }
    }

    pub(super) fn id(&self, name: &str) -> Option<TopicId> {
        self.known.get(name).copied()
    }

    pub(super) fn has_unknown(&self) -> bool {
        !self.unknown.is_empty()
    }

    /// The answer by id, with the topics whose id nobody has.
    pub(super) fn answer_commit(self, mut response: OffsetCommitResponse) -> OffsetCommitResponse {
        for topic in &mut response.topics {
            topic.name = id_text(self.known.get(topic.name.as_str()).copied());
        }
        response.topics.extend(self.unknown.into_iter().map(|(name, partitions)| {
            let refused = |index| {
                OffsetCommitResponsePartition::default()
                    .with_partition_index(index)
                    .with_error_code(ErrorCode::UnknownTopicId.code())
            };
            OffsetCommitResponseTopic::default()
                .with_name(name)
                .with_partitions(partitions.into_iter().map(refused).collect())
        }));
        response
    }

    /// The answer by id, with the topics whose id nobody has. Topics that were not asked for by id
    /// and have none any more are left out, as Kafka does.
    pub(super) fn answer_fetch(
        self,
        mut response: OffsetFetchResponseGroup,
        id_of: impl Fn(&str) -> Option<TopicId>,
    ) -> OffsetFetchResponseGroup {
        if response.error_code != 0 {
            return response;
        }
        response.topics.retain_mut(|topic| {
            let id = self.id(&topic.name).or_else(|| id_of(&topic.name));
            topic.name = id_text(id);
            id.is_some()
        });
        response.topics.extend(self.unknown.into_iter().map(|(name, partitions)| {
            let refused = |index| {
                OffsetFetchResponsePartitions::default()
                    .with_partition_index(index)
                    .with_committed_offset(-1)
                    .with_committed_leader_epoch(-1)
                    .with_metadata(Some(str_bytes("")))
                    .with_error_code(ErrorCode::UnknownTopicId.code())
            };
            OffsetFetchResponseTopics::default()
                .with_name(name)
                .with_partitions(partitions.into_iter().map(refused).collect())
        }));
        response
    }
}

fn id_text(id: Option<TopicId>) -> TopicName {
    TopicName(str_bytes(&id.unwrap_or_default().to_string()))
}
