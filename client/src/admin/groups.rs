//! Groups from outside: who is in them and what they have committed.

use std::collections::BTreeMap;

use bytes::Buf;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::{
    ConsumerProtocolAssignment, DeleteGroupsRequest, DescribeGroupsRequest, GroupId,
    ListGroupsRequest, OffsetCommitRequest, OffsetDeleteRequest, OffsetFetchRequest,
    OffsetFetchResponse, TopicName,
};
use kafka_protocol::protocol::{Decodable, Request};
use letterbox_env::Gather;
use letterbox_protocol::ErrorCode;
use tokio::time::Instant;

use super::ids_by_topic;
use crate::client::{Client, Lane, text, topic_name};
use crate::error::{BrokerError, Error};
use crate::metadata::TopicPartition;

/// Each row of an answer by topic and partition, with its partition.
macro_rules! rows {
    ($topics:expr) => {
        $topics.iter().flat_map(|topic| {
            topic.partitions.iter().map(|row| {
                (TopicPartition::new(topic.name.0.to_string(), row.partition_index), row)
            })
        })
    };
}

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedGroup {
    /// Its id.
    pub group: String,
    /// `consumer`, `connect`, …; empty for a group that only holds offsets.
    pub protocol_type: String,
    /// Its state as the broker spells it; empty from brokers before 2.6.
    pub state: String,
    /// `classic`, `consumer`, …; empty from brokers before 3.8.
    pub kind: String,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    /// Its id.
    pub member_id: String,
    /// `group.instance.id`.
    pub instance_id: Option<String>,
    /// `client.id`.
    pub client_id: String,
    /// Where it connects from, as the broker spells it (Kafka: `/127.0.0.1`).
    pub host: String,
    /// The partitions it has; empty when its assignment is not one of consumers.
    pub assignment: Vec<TopicPartition>,
}

/// A group in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedGroup {
    /// Its id.
    pub group: String,
    /// Its state as the broker spells it: `Stable`, `Empty`, `Dead`, …
    pub state: String,
    /// `consumer`, `connect`, …
    pub protocol_type: String,
    /// The assignor in use.
    pub protocol: String,
    /// Its members.
    pub members: Vec<GroupMember>,
    /// The broker that coordinates it.
    pub coordinator: i32,
}

/// An offset that a group has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The next offset to read.
    pub offset: i64,
    /// The epoch of the last record read; -1 when not known.
    pub leader_epoch: i32,
    /// What the committer noted.
    pub metadata: String,
}

impl Client {
    /// All groups of all brokers; with filters only those in these states or of these types.
    ///
    /// # Errors
    /// When a broker does not answer in time or refuses.
    pub async fn list_groups(
        &self,
        states: &[String],
        kinds: &[String],
    ) -> Result<BTreeMap<String, ListedGroup>, Error> {
        let deadline = self.api_deadline();
        let request = ListGroupsRequest::default()
            .with_states_filter(states.iter().map(|state| text(state)).collect())
            .with_types_filter(kinds.iter().map(|kind| text(kind)).collect());
        let metadata = self.read_metadata(Some(&[]), false, deadline).await?;
        let asked = metadata.brokers.keys().map(|id| {
            let request = &request;
            self.retrying(deadline, move || async move {
                let connection = self.node(*id, Lane::Main).await?;
                let version = connection.version_of::<ListGroupsRequest>(i16::MAX)?;
                if (version < 4 && !states.is_empty()) || (version < 5 && !kinds.is_empty()) {
                    return Err(Error::Invalid(format!(
                        "the broker at {} cannot filter groups by state or type",
                        connection.address()
                    )));
                }
                let response =
                    connection.call(request, version, self.request_deadline(deadline)).await?;
                BrokerError::check(response.error_code, None)?;
                Ok(response)
            })
        });
        let mut groups = BTreeMap::new();
        for response in futures::future::join_all(asked).await {
            for group in response?.groups {
                let listed = ListedGroup {
                    group: group.group_id.0.to_string(),
                    protocol_type: group.protocol_type.to_string(),
                    state: group.group_state.to_string(),
                    kind: group.group_type.to_string(),
                };
                groups.insert(listed.group.clone(), listed);
            }
        }
        Ok(groups)
    }

    /// A group of the classic protocol in full.
    ///
    /// # Errors
    /// `GROUP_ID_NOT_FOUND` when there is none (from brokers before 4.0: a group in state `Dead`);
    /// when its coordinator does not answer in time.
    pub async fn describe_group(&self, group: &str) -> Result<DescribedGroup, Error> {
        let request = DescribeGroupsRequest::default().with_groups(vec![GroupId(text(group))]);
        let (coordinator, response) = self
            .call_coordinator(group, &request, Lane::Main, self.api_deadline(), |response| {
                response.groups.first().map_or(0, |group| group.error_code)
            })
            .await?;
        let found = response.groups.into_iter().next().ok_or_else(|| Error::Malformed {
            address: format!("broker {coordinator}"),
            reason: "DescribeGroups without the group that was asked for".to_owned(),
        })?;
        BrokerError::check(found.error_code, found.error_message.as_deref())?;
        let members = found.members.into_iter().map(|member| GroupMember {
            member_id: member.member_id.to_string(),
            instance_id: member.group_instance_id.map(|id| id.to_string()),
            client_id: member.client_id.to_string(),
            host: member.client_host.to_string(),
            assignment: if *found.protocol_type == *"consumer" {
                assignment(member.member_assignment).unwrap_or_default()
            } else {
                Vec::new()
            },
        });
        Ok(DescribedGroup {
            group: found.group_id.0.to_string(),
            state: found.group_state.to_string(),
            protocol_type: found.protocol_type.to_string(),
            protocol: found.protocol_data.to_string(),
            members: members.collect(),
            coordinator,
        })
    }

    /// The broker that coordinates `group`.
    ///
    /// # Errors
    /// When no broker can tell in time.
    pub async fn find_group_coordinator(&self, group: &str) -> Result<i32, Error> {
        self.coordinator(group, self.api_deadline()).await
    }

    /// What `group` has committed for `partitions`, or for everything. Partitions without an offset
    /// are left out.
    ///
    /// # Errors
    /// The broker's refusal; when the coordinator does not answer in time.
    pub async fn list_group_offsets(
        &self,
        group: &str,
        partitions: Option<&[TopicPartition]>,
    ) -> Result<BTreeMap<TopicPartition, CommittedOffset>, Error> {
        let deadline = self.api_deadline();
        let by_topic = partitions.map(ids_by_topic);
        self.retrying(deadline, async || {
            let coordinator = self.coordinator(group, deadline).await?;
            let result =
                self.offset_fetch_once(group, by_topic.as_ref(), coordinator, deadline).await;
            self.note_coordinator_error(group, result.as_ref().err());
            result
        })
        .await
    }

    async fn offset_fetch_once(
        &self,
        group: &str,
        by_topic: Option<&BTreeMap<&str, Vec<i32>>>,
        coordinator: i32,
        deadline: Instant,
    ) -> Result<BTreeMap<TopicPartition, CommittedOffset>, Error> {
        let connection = self.node(coordinator, Lane::Main).await?;
        let version = connection.version_of::<OffsetFetchRequest>(i16::MAX)?;
        let request = offset_fetch_request(version, group, by_topic);
        let response = connection.call(&request, version, self.request_deadline(deadline)).await?;
        Ok(committed_offsets(&response)?)
    }

    /// Sets the committed offsets of a group without members.
    ///
    /// # Errors
    /// Per partition in the map: the broker's refusal (`UNKNOWN_MEMBER_ID` while the group has
    /// members). As a whole: when the coordinator does not answer in time.
    pub async fn alter_group_offsets(
        &self,
        group: &str,
        offsets: &BTreeMap<TopicPartition, CommittedOffset>,
    ) -> Result<BTreeMap<TopicPartition, Result<(), BrokerError>>, Error> {
        self.commit_offsets(group, -1, "", None, offsets, Lane::Main, self.api_deadline()).await
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of the request")]
    pub(crate) async fn commit_offsets(
        &self,
        group: &str,
        generation: i32,
        member: &str,
        instance: Option<&str>,
        offsets: &BTreeMap<TopicPartition, CommittedOffset>,
        lane: Lane,
        deadline: Instant,
    ) -> Result<BTreeMap<TopicPartition, Result<(), BrokerError>>, Error> {
        let mut topics: BTreeMap<&str, Vec<OffsetCommitRequestPartition>> = BTreeMap::new();
        for (partition, committed) in offsets {
            let row = OffsetCommitRequestPartition::default()
                .with_partition_index(partition.partition)
                .with_committed_offset(committed.offset);
            let row = row
                .with_committed_leader_epoch(committed.leader_epoch)
                .with_committed_metadata(Some(text(&committed.metadata)));
            topics.entry(&partition.topic).or_default().push(row);
        }
        let topics = topics.into_iter().map(|(name, rows)| {
            OffsetCommitRequestTopic::default().with_name(topic_name(name)).with_partitions(rows)
        });
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_generation_id_or_member_epoch(generation)
            .with_member_id(text(member))
            .with_group_instance_id(instance.map(text))
            .with_retention_time_ms(-1)
            .with_topics(topics.collect());
        let first_code = |response: &kafka_protocol::messages::OffsetCommitResponse| {
            response
                .topics
                .iter()
                .flat_map(|topic| &topic.partitions)
                .map(|partition| partition.error_code)
                .find(|code| *code != 0)
                .unwrap_or(0)
        };
        let (_, response) =
            self.call_coordinator(group, &request, lane, deadline, first_code).await?;
        let outcomes = rows!(response.topics)
            .map(|(partition, row)| (partition, BrokerError::check(row.error_code, None)));
        Ok(outcomes.gather())
    }

    /// Deletes groups without members, with their offsets.
    ///
    /// # Errors
    /// Per group in the map: the refusal or that its coordinator did not answer.
    pub async fn delete_groups(&self, groups: &[String]) -> BTreeMap<String, Result<(), Error>> {
        let mut outcomes = BTreeMap::new();
        for group in groups {
            let request =
                DeleteGroupsRequest::default().with_groups_names(vec![GroupId(text(group))]);
            let codes = |response: &kafka_protocol::messages::DeleteGroupsResponse| {
                response.results.first().map_or(0, |result| result.error_code)
            };
            let answer = self
                .call_coordinator(group, &request, Lane::Main, self.api_deadline(), codes)
                .await;
            let outcome =
                answer.and_then(|(_, response)| Ok(BrokerError::check(codes(&response), None)?));
            outcomes.insert(group.clone(), outcome);
        }
        outcomes
    }

    /// Deletes committed offsets of a group.
    ///
    /// # Errors
    /// Per partition in the map: the refusal (`GROUP_SUBSCRIBED_TO_TOPIC` while a member reads the
    /// topic). As a whole: the refusal for the group; when the coordinator does not answer in time.
    pub async fn delete_group_offsets(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, Result<(), BrokerError>>, Error> {
        let topics = ids_by_topic(partitions).into_iter().map(|(name, ids)| {
            let ids = ids
                .into_iter()
                .map(|id| OffsetDeleteRequestPartition::default().with_partition_index(id));
            OffsetDeleteRequestTopic::default()
                .with_name(topic_name(name))
                .with_partitions(ids.collect())
        });
        let request = OffsetDeleteRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_topics(topics.collect());
        let (_, response) = self
            .call_coordinator(group, &request, Lane::Main, self.api_deadline(), |response| {
                response.error_code
            })
            .await?;
        BrokerError::check(response.error_code, None)?;
        let outcomes = rows!(response.topics)
            .map(|(partition, row)| (partition, BrokerError::check(row.error_code, None)));
        Ok(outcomes.gather())
    }

    /// Sends `request` to the coordinator of `group`; finds it again while the code in the response
    /// says it has moved or is loading. Other codes are the caller's to read.
    pub(crate) async fn call_coordinator<R: Request>(
        &self,
        group: &str,
        request: &R,
        lane: Lane,
        deadline: Instant,
        code: impl Fn(&R::Response) -> i16,
    ) -> Result<(i32, R::Response), Error> {
        self.retrying(deadline, async || {
            let coordinator = self.coordinator(group, deadline).await?;
            let result =
                self.call_node(coordinator, lane, request, deadline).await.and_then(|response| {
                    match ErrorCode::of_answer(code(&response)) {
                        Some(
                            code @ (ErrorCode::CoordinatorLoadInProgress
                            | ErrorCode::CoordinatorNotAvailable
                            | ErrorCode::NotCoordinator),
                        ) => Err(BrokerError { code, message: None }.into()),
                        _ => Ok((coordinator, response)),
                    }
                });
            self.note_coordinator_error(group, result.as_ref().err());
            result
        })
        .await
    }

    fn note_coordinator_error(&self, group: &str, error: Option<&Error>) {
        if error.is_some_and(|error| error.code() != Some(ErrorCode::CoordinatorLoadInProgress)) {
            self.forget_coordinator(group);
        }
    }
}

/// From version 8 on several groups are asked for at once; here it is one.
fn offset_fetch_request(
    version: i16,
    group: &str,
    by_topic: Option<&BTreeMap<&str, Vec<i32>>>,
) -> OffsetFetchRequest {
    fn topics<T>(
        by_topic: Option<&BTreeMap<&str, Vec<i32>>>,
        topic: impl Fn(TopicName, Vec<i32>) -> T,
    ) -> Option<Vec<T>> {
        let topics = by_topic?.iter();
        Some(topics.map(|(name, ids)| topic(topic_name(name), ids.clone())).collect())
    }
    let request = OffsetFetchRequest::default();
    let group = GroupId(text(group));
    if version < 8 {
        let topics = topics(by_topic, |name, ids| {
            OffsetFetchRequestTopic::default().with_name(name).with_partition_indexes(ids)
        });
        return request.with_group_id(group).with_topics(topics);
    }
    let topics = topics(by_topic, |name, ids| {
        OffsetFetchRequestTopics::default().with_name(name).with_partition_indexes(ids)
    });
    let group = OffsetFetchRequestGroup::default()
        .with_group_id(group)
        .with_member_epoch(-1)
        .with_topics(topics);
    request.with_groups(vec![group])
}

/// The offsets in an answer of any version: those before 8 have them in `topics`, for one group.
fn committed_offsets(
    response: &OffsetFetchResponse,
) -> Result<BTreeMap<TopicPartition, CommittedOffset>, BrokerError> {
    let mut offsets = BTreeMap::new();
    // The rows of the two forms are of two types with the same fields.
    macro_rules! add {
        ($topics:expr) => {
            for (partition, row) in rows!($topics) {
                BrokerError::check(row.error_code, None)?;
                if row.committed_offset >= 0 {
                    let committed = CommittedOffset {
                        offset: row.committed_offset,
                        leader_epoch: row.committed_leader_epoch,
                        metadata: row
                            .metadata
                            .as_ref()
                            .map(ToString::to_string)
                            .unwrap_or_default(),
                    };
                    offsets.insert(partition, committed);
                }
            }
        };
    }
    BrokerError::check(response.error_code, None)?;
    add!(response.topics);
    for group in &response.groups {
        BrokerError::check(group.error_code, None)?;
        add!(group.topics);
    }
    Ok(offsets)
}

/// The partitions of a member's assignment; `None` when the bytes are not one of consumers. `bytes`
/// come from other clients.
pub(crate) fn assignment(mut bytes: bytes::Bytes) -> Option<Vec<TopicPartition>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let version = bytes.try_get_i16().ok()?;
    if version < 0 {
        return None;
    }
    // The message crate allocates by the counts it reads; what follows proves them against the
    // bytes that are there.
    let mut view = bytes.clone();
    let topics = view.try_get_i32().ok()?;
    for _ in 0..topics.max(0) {
        let name = usize::try_from(view.try_get_i16().ok()?).ok()?;
        if view.remaining() < name {
            return None;
        }
        view.advance(name);
        let ids = usize::try_from(view.try_get_i32().ok()?).ok()?.checked_mul(4)?;
        if view.remaining() < ids {
            return None;
        }
        view.advance(ids);
    }
    if usize::try_from(topics).ok()? > bytes.len() / 6 {
        return None;
    }
    let decoded = ConsumerProtocolAssignment::decode(&mut bytes, version.min(3)).ok()?;
    let partitions = decoded.assigned_partitions.iter();
    let partitions = partitions.flat_map(|topic| {
        topic.partitions.iter().map(|id| TopicPartition::new(topic.topic.0.to_string(), *id))
    });
    Some(partitions.collect())
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::offset_fetch_response::{
        OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
        OffsetFetchResponseTopic, OffsetFetchResponseTopics,
    };

    use super::*;

    /// Both forms of a request ask for the same, and both forms of an answer say the same.
    #[test]
    fn offsets_are_fetched_for_one_group_in_every_version() {
        let asked = BTreeMap::from([("a", vec![0, 1])]);
        let (old, new) = (
            offset_fetch_request(7, "g", Some(&asked)),
            offset_fetch_request(8, "g", Some(&asked)),
        );
        let (group, topics) = (&new.groups[0], old.topics.unwrap());
        assert_eq!((&old.group_id, old.groups.len()), (&group.group_id, 0));
        let topic = &group.topics.as_ref().unwrap()[0];
        assert_eq!((&topics[0].name, &topics[0].partition_indexes), (&topic.name, &vec![0, 1]));
        assert_eq!(topics[0].partition_indexes, topic.partition_indexes);
        let everything = offset_fetch_request(8, "g", None);
        assert!(everything.groups[0].topics.is_none());
        assert!(offset_fetch_request(7, "g", None).topics.is_none());

        macro_rules! topic {
            ($topic:ident, $row:ident) => {{
                let row = |id, offset| {
                    $row::default()
                        .with_partition_index(id)
                        .with_committed_offset(offset)
                        .with_committed_leader_epoch(4)
                        .with_metadata(Some(text("m")))
                };
                $topic::default()
                    .with_name(topic_name("a"))
                    .with_partitions(vec![row(0, 7), row(1, -1)])
            }};
        }
        let before = OffsetFetchResponse::default()
            .with_topics(vec![topic!(OffsetFetchResponseTopic, OffsetFetchResponsePartition)]);
        let group = OffsetFetchResponseGroup::default()
            .with_topics(vec![topic!(OffsetFetchResponseTopics, OffsetFetchResponsePartitions)]);
        let since = OffsetFetchResponse::default().with_groups(vec![group.clone()]);
        let committed = CommittedOffset { offset: 7, leader_epoch: 4, metadata: "m".to_owned() };
        let expected = BTreeMap::from([(TopicPartition::new("a", 0), committed)]);
        assert_eq!(committed_offsets(&before), Ok(expected.clone()));
        assert_eq!(committed_offsets(&since), Ok(expected));
        let code = ErrorCode::NotCoordinator.code();
        for refused in [
            before.with_error_code(code),
            OffsetFetchResponse::default().with_groups(vec![group.with_error_code(code)]),
        ] {
            assert_eq!(committed_offsets(&refused).unwrap_err().code, ErrorCode::NotCoordinator);
        }
    }
}
