//! The requests, as handlers call them: message structs in, message structs out.
//!
//! Topic and group authorization is the handlers' work; so is answering versions that are not advertised.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::DescribedGroup;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_delete_request::OffsetDeleteRequestTopic;
use kafka_protocol::messages::offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic};
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{
    DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse, GroupId, HeartbeatRequest, HeartbeatResponse,
    JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse, ListGroupsRequest, ListGroupsResponse, OffsetCommitRequest,
    OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse, OffsetFetchRequest, OffsetFetchResponse, SyncGroupRequest,
    SyncGroupResponse,
};

use super::{GroupCoordinator, lower_case};
use crate::coordinator::RequestContext;
use crate::coordinator::group::{Completion, JoinRequest, Output, Reply, Write, join::join_error, str_bytes, sync::sync_error};
use crate::coordinator::shard::commit_error;

/// The longest part of a `client.id` that goes into a member id, in bytes; the whole must fit into a protocol string.
const CLIENT_ID_BYTES_MAX: usize = 1_024;

/// Every operation on a group (bits of Kafka's `AclOperation`): READ, DELETE, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS.
const GROUP_OPERATIONS: i32 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11;

impl GroupCoordinator {
    /// JoinGroup. Answered when the join phase ends, which may take as long as the largest rebalance timeout.
    pub async fn join_group(&self, context: &RequestContext, request: JoinGroupRequest) -> JoinGroupResponse {
        let refuse = |error| into_join(join_error(&request.member_id, error));
        if request.group_id.is_empty() {
            return refuse(ResponseError::InvalidGroupId);
        }
        let config = &self.inner.config;
        if !(config.min_session_timeout_ms..=config.max_session_timeout_ms).contains(&request.session_timeout_ms) {
            return refuse(ResponseError::InvalidSessionTimeout);
        }
        let group_id: Arc<str> = request.group_id.as_str().into();
        let joined = self.inner.request(&group_id, |shard, reply, now| {
            let prefix = request.group_instance_id.as_deref().unwrap_or(&context.client_id);
            let join = JoinRequest {
                reply,
                api_version: context.api_version,
                client_id: context.client_id.clone(),
                client_host: context.client_host.clone(),
                member_id: request.member_id.as_str().into(),
                new_member_id: new_member_id(prefix, self.inner.env.random_uuid()),
                instance_id: request.group_instance_id.as_deref().map(Arc::from),
                session_timeout_ms: request.session_timeout_ms,
                // Version 0 has no rebalance timeout of its own.
                rebalance_timeout_ms: if context.api_version == 0 { request.session_timeout_ms } else { request.rebalance_timeout_ms },
                protocol_type: request.protocol_type.as_str().into(),
                protocols: request
                    .protocols
                    .iter()
                    .map(|protocol| (protocol.name.as_str().into(), Bytes::copy_from_slice(&protocol.metadata)))
                    .collect(),
            };
            shard.join(&group_id, join, now)
        });
        joined.await.map_or_else(refuse, into_join)
    }

    /// SyncGroup. Answered when the leader's assignment is committed.
    pub async fn sync_group(&self, context: &RequestContext, request: SyncGroupRequest) -> SyncGroupResponse {
        if request.group_id.is_empty() {
            return into_sync(sync_error(ResponseError::InvalidGroupId));
        }
        // From version 5 on the member says what it has joined with (KIP-559).
        if context.api_version >= 5 && (request.protocol_type.is_none() || request.protocol_name.is_none()) {
            return into_sync(sync_error(ResponseError::InconsistentGroupProtocol));
        }
        let synced = self.inner.request(&request.group_id, |shard, reply, now| shard.sync(&request, reply, now)).await;
        into_sync(synced.unwrap_or_else(sync_error))
    }

    /// Heartbeat. While the group is being loaded every heartbeat is taken as good.
    #[must_use]
    pub fn heartbeat(&self, _context: &RequestContext, request: &HeartbeatRequest) -> HeartbeatResponse {
        let beat = if request.group_id.is_empty() {
            Err(ResponseError::InvalidGroupId)
        } else {
            let instance_id = request.group_instance_id.as_deref();
            let beat = |shard: &mut super::Shard, now| {
                shard.heartbeat(&request.group_id, &request.member_id, instance_id, request.generation_id, now)
            };
            self.inner.with_shard(&request.group_id, beat).flatten()
        };
        let error_code = match beat {
            Ok(()) | Err(ResponseError::CoordinatorLoadInProgress) => 0,
            Err(error) => error.code(),
        };
        HeartbeatResponse::default().with_error_code(error_code)
    }

    /// LeaveGroup: one member up to version 2, a list of them from 3 on.
    pub async fn leave_group(&self, context: &RequestContext, request: LeaveGroupRequest) -> LeaveGroupResponse {
        if request.group_id.is_empty() {
            return LeaveGroupResponse::default().with_error_code(ResponseError::InvalidGroupId.code());
        }
        let is_single = context.api_version <= 2;
        let members =
            if is_single { vec![MemberIdentity::default().with_member_id(request.member_id.clone())] } else { request.members.clone() };
        let left = self.inner.request(&request.group_id, |shard, reply, now| shard.leave(&request.group_id, &members, reply, now)).await;
        let mut response = match left {
            Ok(Reply::Leave(response)) => response,
            Ok(_) => LeaveGroupResponse::default().with_error_code(ResponseError::UnknownServerError.code()),
            Err(error) => LeaveGroupResponse::default().with_error_code(error.code()),
        };
        if is_single {
            let of_member = std::mem::take(&mut response.members).first().map_or(0, |member| member.error_code);
            if response.error_code == 0 {
                response.error_code = of_member;
            }
        }
        response
    }

    /// OffsetCommit. Answered when the offsets are committed, at the latest after `offsets.commit.timeout.ms`.
    pub async fn offset_commit(&self, context: &RequestContext, request: OffsetCommitRequest) -> OffsetCommitResponse {
        let unknown_topics: BTreeSet<Arc<str>> = request
            .topics
            .iter()
            .filter(|topic| !(self.inner.metadata.topic_exists)(&topic.name))
            .map(|topic| Arc::from(topic.name.as_str()))
            .collect();
        if !request.topics.is_empty() && request.topics.iter().all(|topic| unknown_topics.contains(topic.name.as_str())) {
            return commit_error(&request, ResponseError::UnknownTopicOrPartition);
        }
        let committed = self.inner.request(&request.group_id, |shard, reply, now| {
            shard.commit_offsets(&request, context.api_version, &unknown_topics, reply, now)
        });
        let timeout = Duration::from_millis(self.inner.config.offset_commit_timeout_ms);
        match tokio::time::timeout(timeout, committed).await {
            Ok(Ok(Reply::OffsetCommit(response))) => response,
            Ok(Ok(_)) => commit_error(&request, ResponseError::UnknownServerError),
            Ok(Err(error)) => commit_error(&request, error),
            // They may still be committed; the client tries again.
            Err(_) => commit_error(&request, ResponseError::CoordinatorNotAvailable),
        }
    }

    /// OffsetFetch: one group up to version 7, several from 8 on. Topics the client may not see are to be left out before.
    pub async fn offset_fetch(&self, context: &RequestContext, request: OffsetFetchRequest) -> OffsetFetchResponse {
        if context.api_version >= 8 {
            let mut groups = Vec::with_capacity(request.groups.len());
            for group in &request.groups {
                groups.push(self.fetch_group(group, request.require_stable).await);
            }
            return OffsetFetchResponse::default().with_groups(groups);
        }
        let topics = request.topics.map(|topics| {
            let topics = topics
                .into_iter()
                .map(|topic| OffsetFetchRequestTopics::default().with_name(topic.name).with_partition_indexes(topic.partition_indexes));
            topics.collect::<Vec<_>>()
        });
        let group = OffsetFetchRequestGroup::default().with_group_id(request.group_id).with_topics(topics);
        let fetched = self.fetch_group(&group, request.require_stable).await;
        if fetched.error_code != 0 && context.api_version < 2 {
            // Version 1 has no error of its own.
            return OffsetFetchResponse::default().with_topics(refused_partitions(&group, fetched.error_code));
        }
        OffsetFetchResponse::default().with_error_code(fetched.error_code).with_topics(fetched.topics.into_iter().map(to_single).collect())
    }

    async fn fetch_group(&self, group: &OffsetFetchRequestGroup, require_stable: bool) -> OffsetFetchResponseGroup {
        let response = OffsetFetchResponseGroup::default().with_group_id(group.group_id.clone());
        match self.fetch_committed(group, require_stable).await {
            Ok(topics) => response.with_topics(topics),
            Err(error) => response.with_error_code(error.code()),
        }
    }

    async fn fetch_committed(
        &self,
        group: &OffsetFetchRequestGroup,
        require_stable: bool,
    ) -> Result<Vec<OffsetFetchResponseTopics>, ResponseError> {
        if require_stable {
            // What was appended before must be in the answer (KIP-447).
            self.inner
                .request(&group.group_id, |_, reply, _| Output {
                    replies: Vec::new(),
                    writes: vec![Write { records: Vec::new(), then: Completion::Fence(reply) }],
                })
                .await?;
        }
        self.inner.with_shard(&group.group_id, |shard, _| shard.fetch_offsets(&group.group_id, group.topics.as_deref()))
    }

    /// DescribeGroups. Without an authorizer everything is authorized.
    #[must_use]
    pub fn describe_groups(&self, context: &RequestContext, request: &DescribeGroupsRequest) -> DescribeGroupsResponse {
        let describe = |group_id: &GroupId| {
            let described = self.inner.with_shard(group_id, |shard, _| shard.describe(group_id, context.api_version));
            let described =
                described.unwrap_or_else(|error| DescribedGroup::default().with_group_id(group_id.clone()).with_error_code(error.code()));
            let is_asked = request.include_authorized_operations && described.error_code == 0;
            described.with_authorized_operations(if is_asked { GROUP_OPERATIONS } else { i32::MIN })
        };
        DescribeGroupsResponse::default().with_groups(request.groups.iter().map(describe).collect())
    }

    /// ListGroups: the groups of all partitions this broker leads.
    #[must_use]
    pub fn list_groups(&self, _context: &RequestContext, request: &ListGroupsRequest) -> ListGroupsResponse {
        let slots = self.inner.all_slots();
        if slots.iter().any(|slot| slot.is_loading()) {
            return ListGroupsResponse::default().with_error_code(ResponseError::CoordinatorLoadInProgress.code());
        }
        let (states, types) = (lower_case(&request.states_filter), lower_case(&request.types_filter));
        let listed = slots.iter().filter_map(|slot| slot.with_active(|active| active.shard.list(&states, &types)).ok());
        ListGroupsResponse::default().with_groups(listed.flatten().collect())
    }

    /// DeleteGroups: removes groups without members, with their offsets.
    pub async fn delete_groups(&self, _context: &RequestContext, request: &DeleteGroupsRequest) -> DeleteGroupsResponse {
        let mut results = Vec::with_capacity(request.groups_names.len());
        for group_id in &request.groups_names {
            let refused =
                |error: ResponseError| DeletableGroupResult::default().with_group_id(group_id.clone()).with_error_code(error.code());
            let one = std::slice::from_ref(group_id);
            match self.inner.request(group_id, |shard, reply, _| shard.delete_groups(one, reply)).await {
                Ok(Reply::DeleteGroups(response)) => results.extend(response.results),
                Ok(_) => results.push(refused(ResponseError::UnknownServerError)),
                Err(error) => results.push(refused(error)),
            }
        }
        DeleteGroupsResponse::default().with_results(results)
    }

    /// OffsetDelete: removes offsets of topics that no member of the group reads.
    pub async fn offset_delete(&self, _context: &RequestContext, request: &OffsetDeleteRequest) -> OffsetDeleteResponse {
        let refused = |error: ResponseError| OffsetDeleteResponse::default().with_error_code(error.code());
        let unknown = |topic: &OffsetDeleteRequestTopic| !(self.inner.metadata.topic_exists)(&topic.name);
        let known = request.topics.iter().filter(|topic| !unknown(topic)).cloned().collect();
        let asked = OffsetDeleteRequest::default().with_group_id(request.group_id.clone()).with_topics(known);
        let mut response = match self.inner.request(&request.group_id, |shard, reply, _| shard.delete_offsets(&asked, reply)).await {
            Ok(Reply::OffsetDelete(response)) => response,
            Ok(_) => return refused(ResponseError::UnknownServerError),
            Err(error) => return refused(error),
        };
        if response.error_code == 0 {
            response.topics.extend(request.topics.iter().filter(|topic| unknown(topic)).map(|topic| {
                let partitions = topic.partitions.iter().map(|partition| {
                    OffsetDeleteResponsePartition::default()
                        .with_partition_index(partition.partition_index)
                        .with_error_code(ResponseError::UnknownTopicOrPartition.code())
                });
                OffsetDeleteResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
            }));
        }
        response
    }
}

/// "PREFIX-UUID", the prefix shortened at a character's edge where it is absurdly long.
fn new_member_id(prefix: &str, uuid: uuid::Uuid) -> Arc<str> {
    let prefix = &prefix[..prefix.floor_char_boundary(CLIENT_ID_BYTES_MAX)];
    format!("{prefix}-{uuid}").into()
}

fn into_join(reply: Reply) -> JoinGroupResponse {
    match reply {
        Reply::Join(response) => response,
        _ => into_join(join_error("", ResponseError::UnknownServerError)),
    }
}

fn into_sync(reply: Reply) -> SyncGroupResponse {
    match reply {
        Reply::Sync(response) => response,
        _ => SyncGroupResponse::default().with_error_code(ResponseError::UnknownServerError.code()),
    }
}

fn to_single(topic: OffsetFetchResponseTopics) -> OffsetFetchResponseTopic {
    let partitions = topic.partitions.into_iter().map(|partition| {
        OffsetFetchResponsePartition::default()
            .with_partition_index(partition.partition_index)
            .with_committed_offset(partition.committed_offset)
            .with_committed_leader_epoch(partition.committed_leader_epoch)
            .with_metadata(partition.metadata)
            .with_error_code(partition.error_code)
    });
    OffsetFetchResponseTopic::default().with_name(topic.name).with_partitions(partitions.collect())
}

fn refused_partitions(group: &OffsetFetchRequestGroup, error_code: i16) -> Vec<OffsetFetchResponseTopic> {
    let topics = group.topics.iter().flatten().map(|topic| {
        let partitions = topic.partition_indexes.iter().map(|partition| {
            OffsetFetchResponsePartition::default()
                .with_partition_index(*partition)
                .with_committed_offset(-1)
                .with_committed_leader_epoch(-1)
                .with_metadata(Some(str_bytes("")))
                .with_error_code(error_code)
        });
        OffsetFetchResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
    });
    topics.collect()
}
