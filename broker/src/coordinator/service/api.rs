//! The requests, as handlers call them: message structs in, message structs out.
//!
//! Whether the caller may ask is the handlers' work; so is answering versions that are not
//! advertised.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::DescribedGroup;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{
    DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse,
    GroupId, HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse,
    LeaveGroupRequest, LeaveGroupResponse, ListGroupsRequest, ListGroupsResponse,
    OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse,
    OffsetFetchRequest, OffsetFetchResponse, SyncGroupRequest, SyncGroupResponse,
};
use letterbox_protocol::ErrorCode;

use super::{GroupCoordinator, by_id, lower_case};
use crate::coordinator::group::{
    Completion, JoinRequest, Output, Reply, Write, join::join_error, str_bytes, sync::sync_error,
};
use crate::coordinator::memory::{MEMBER_BYTES_MAX, protocol_bytes};
use crate::coordinator::shard::Shard;
use crate::coordinator::shard::commit_error;
use crate::request::{OPERATIONS_NOT_ASKED, RequestContext};
use crate::security::Resource;

/// The longest part of a `client.id` that goes into a member id, in bytes; the whole must fit into
/// a protocol string.
const CLIENT_ID_BYTES_MAX: usize = 1_024;

impl GroupCoordinator {
    /// JoinGroup. Answered when the join phase ends, which may take as long as the largest
    /// rebalance timeout. The request is gone when the first of the two futures is ready.
    pub(crate) async fn join_group(
        &self,
        context: &RequestContext,
        request: JoinGroupRequest,
    ) -> BoxFuture<'static, JoinGroupResponse> {
        let member_id: Arc<str> = request.member_id.as_str().into();
        let refuse = |error| now(into_join(join_error(&member_id, error)));
        if request.group_id.is_empty() {
            return refuse(ErrorCode::InvalidGroupId);
        }
        let config = &self.inner.config;
        if !(config.min_session_timeout_ms..=config.max_session_timeout_ms)
            .contains(&request.session_timeout_ms)
        {
            return refuse(ErrorCode::InvalidSessionTimeout);
        }
        let bytes = request
            .protocols
            .iter()
            .map(|protocol| protocol_bytes(&protocol.name, &protocol.metadata));
        let bytes = bytes.fold(0, usize::saturating_add);
        if bytes > MEMBER_BYTES_MAX {
            tracing::warn!(group = %request.group_id.as_str(), bytes, MEMBER_BYTES_MAX, "refused a member with too much metadata");
            return refuse(ErrorCode::InvalidRequest);
        }
        let group_id: Arc<str> = request.group_id.as_str().into();
        let prefix = request.group_instance_id.as_deref().unwrap_or(&context.client_id);
        let new_member_id = new_member_id(prefix, self.inner.runtime.env().random_uuid());
        let asked = self
            .inner
            .ask(&group_id, |shard, reply, now| {
                let join = JoinRequest {
                    reply,
                    api_version: context.api_version,
                    client_id: context.client_id.clone(),
                    client_host: context.caller.host.clone(),
                    member_id: member_id.clone(),
                    new_member_id,
                    instance_id: request.group_instance_id.as_deref().map(Arc::from),
                    session_timeout_ms: request.session_timeout_ms,
                    // Version 0 has no rebalance timeout of its own.
                    rebalance_timeout_ms: if context.api_version == 0 {
                        request.session_timeout_ms
                    } else {
                        request.rebalance_timeout_ms
                    },
                    protocol_type: request.protocol_type.as_str().into(),
                    protocols: request
                        .protocols
                        .iter()
                        .map(|protocol| {
                            (
                                protocol.name.as_str().into(),
                                Bytes::copy_from_slice(&protocol.metadata),
                            )
                        })
                        .collect(),
                };
                shard.join(&group_id, join, now)
            })
            .await;
        Box::pin(async move {
            let refuse = |error| into_join(join_error(&member_id, error));
            asked.answer().await.map_or_else(refuse, into_join)
        })
    }

    /// SyncGroup. Answered when the leader's assignment is committed. The request is gone when the
    /// first of the two futures is ready.
    pub(crate) async fn sync_group(
        &self,
        context: &RequestContext,
        request: SyncGroupRequest,
    ) -> BoxFuture<'static, SyncGroupResponse> {
        if request.group_id.is_empty() {
            return now(into_sync(sync_error(ErrorCode::InvalidGroupId)));
        }
        // From version 5 on the member says what it has joined with (KIP-559).
        if context.api_version >= 5
            && (request.protocol_type.is_none() || request.protocol_name.is_none())
        {
            return now(into_sync(sync_error(ErrorCode::InconsistentGroupProtocol)));
        }
        let asked = self
            .inner
            .ask(&request.group_id, |shard, reply, now| shard.sync(&request, reply, now))
            .await;
        Box::pin(async move { into_sync(asked.answer().await.unwrap_or_else(sync_error)) })
    }

    /// Heartbeat. While the group is being loaded every heartbeat is taken as good.
    #[must_use]
    pub(crate) fn heartbeat(
        &self,
        _context: &RequestContext,
        request: &HeartbeatRequest,
    ) -> HeartbeatResponse {
        let beat = if request.group_id.is_empty() {
            Err(ErrorCode::InvalidGroupId)
        } else {
            let instance_id = request.group_instance_id.as_deref();
            let beat = |shard: &mut Shard, now| {
                shard.heartbeat(
                    &request.group_id,
                    &request.member_id,
                    instance_id,
                    request.generation_id,
                    now,
                )
            };
            self.inner.with_shard(&request.group_id, beat).flatten()
        };
        let error_code = match beat {
            Ok(()) | Err(ErrorCode::CoordinatorLoadInProgress) => 0,
            Err(error) => error.code(),
        };
        HeartbeatResponse::default().with_error_code(error_code)
    }

    /// LeaveGroup: one member up to version 2, a list of them from 3 on.
    pub(crate) async fn leave_group(
        &self,
        context: &RequestContext,
        request: LeaveGroupRequest,
    ) -> LeaveGroupResponse {
        if request.group_id.is_empty() {
            return LeaveGroupResponse::default().with_error_code(ErrorCode::InvalidGroupId.code());
        }
        let is_single = context.api_version <= 2;
        let members = if is_single {
            vec![MemberIdentity::default().with_member_id(request.member_id.clone())]
        } else {
            request.members.clone()
        };
        let left = self
            .inner
            .request(&request.group_id, |shard, reply, now| {
                shard.leave(&request.group_id, &members, reply, now)
            })
            .await;
        let mut response = match left {
            Ok(Reply::Leave(response)) => response,
            Ok(_) => {
                LeaveGroupResponse::default().with_error_code(ErrorCode::UnknownServerError.code())
            }
            Err(error) => LeaveGroupResponse::default().with_error_code(error.code()),
        };
        if is_single {
            let of_member =
                std::mem::take(&mut response.members).first().map_or(0, |member| member.error_code);
            if response.error_code == 0 {
                response.error_code = of_member;
            }
        }
        response
    }

    /// OffsetCommit. Answered when the offsets are committed, at the latest after
    /// `offsets.commit.timeout.ms`.
    pub(crate) async fn offset_commit(
        &self,
        context: &RequestContext,
        request: OffsetCommitRequest,
    ) -> OffsetCommitResponse {
        if context.api_version < by_id::FROM_VERSION {
            return self.commit(context, request, |_| true).await;
        }
        let (request, ids) = by_id::to_names(request, |id| self.inner.metadata.name_of(id));
        let response = if request.topics.is_empty() && ids.has_unknown() {
            OffsetCommitResponse::default()
        } else {
            // A topic that got the name in the meantime is another one.
            self.commit(context, request, |name| self.inner.metadata.id_of(name) == ids.id(name))
                .await
        };
        ids.answer_commit(response)
    }

    async fn commit(
        &self,
        context: &RequestContext,
        request: OffsetCommitRequest,
        is_meant: impl Fn(&str) -> bool,
    ) -> OffsetCommitResponse {
        let committed = self.inner.request(&request.group_id, |shard, reply, now| {
            // Asked under the shard's lock: a topic that is deleted after this is forgotten after
            // this commit.
            let exists = |topic: &str, partition| {
                let exists = self.inner.exists(topic, partition) && is_meant(topic);
                if exists { self.inner.metadata.id_of(topic) } else { None }
            };
            shard.commit_offsets(&request, context.api_version, exists, reply, now)
        });
        let timeout = Duration::from_millis(self.inner.config.offset_commit_timeout_ms);
        match tokio::time::timeout(timeout, committed).await {
            Ok(Ok(Reply::OffsetCommit(response))) => response,
            Ok(Ok(_)) => commit_error(&request, ErrorCode::UnknownServerError),
            Ok(Err(error)) => commit_error(&request, error),
            // They may still be committed; the client tries again.
            Err(_) => commit_error(&request, ErrorCode::CoordinatorNotAvailable),
        }
    }

    /// OffsetFetch: one group up to version 7, several from 8 on. Topics the client may not see are
    /// to be left out before.
    pub(crate) async fn offset_fetch(
        &self,
        context: &RequestContext,
        request: OffsetFetchRequest,
    ) -> OffsetFetchResponse {
        if context.api_version >= 8 {
            let mut groups = Vec::with_capacity(request.groups.len());
            for group in distinct_groups(request.groups) {
                groups.push(if context.api_version >= by_id::FROM_VERSION {
                    self.fetch_group_by_id(group, request.require_stable).await
                } else {
                    self.fetch_group(&group, request.require_stable).await
                });
            }
            return OffsetFetchResponse::default().with_groups(groups);
        }
        let topics = request.topics.map(|topics| {
            let topics = topics.into_iter().map(|topic| {
                OffsetFetchRequestTopics::default()
                    .with_name(topic.name)
                    .with_partition_indexes(topic.partition_indexes)
            });
            distinct_topics(topics)
        });
        let group =
            OffsetFetchRequestGroup::default().with_group_id(request.group_id).with_topics(topics);
        let fetched = self.fetch_group(&group, request.require_stable).await;
        if fetched.error_code != 0 && context.api_version < 2 {
            // Version 1 has no error of its own.
            return OffsetFetchResponse::default()
                .with_topics(refused_partitions(&group, fetched.error_code));
        }
        OffsetFetchResponse::default()
            .with_error_code(fetched.error_code)
            .with_topics(fetched.topics.into_iter().map(to_single).collect())
    }

    async fn fetch_group_by_id(
        &self,
        group: OffsetFetchRequestGroup,
        require_stable: bool,
    ) -> OffsetFetchResponseGroup {
        let (group, ids) = by_id::group_to_names(group, |id| self.inner.metadata.name_of(id));
        let response = self.fetch_group(&group, require_stable).await;
        ids.answer_fetch(response, |name| self.inner.metadata.id_of(name))
    }

    async fn fetch_group(
        &self,
        group: &OffsetFetchRequestGroup,
        require_stable: bool,
    ) -> OffsetFetchResponseGroup {
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
    ) -> Result<Vec<OffsetFetchResponseTopics>, ErrorCode> {
        if require_stable {
            // What was appended before must be in the answer (KIP-447).
            self.inner
                .request(&group.group_id, |_, reply, _| Output {
                    replies: Vec::new(),
                    writes: vec![Write { records: Vec::new(), then: Completion::Fence(reply) }],
                })
                .await?;
        }
        let fetched = self.inner.with_shard(&group.group_id, |shard, _| {
            let id_of = |topic: &str| self.inner.metadata.id_of(topic);
            shard.fetch_offsets(&group.group_id, group.topics.as_deref(), id_of)
        });
        Ok(fetched?.answer())
    }

    /// DescribeGroups, each group once.
    #[must_use]
    pub(crate) fn describe_groups(
        &self,
        context: &RequestContext,
        request: &DescribeGroupsRequest,
    ) -> DescribeGroupsResponse {
        let describe = |group_id: &GroupId| {
            let described = self
                .inner
                .with_shard(group_id, |shard, _| shard.describe(group_id, context.api_version));
            let described = described.unwrap_or_else(|error| {
                DescribedGroup::default()
                    .with_group_id(group_id.clone())
                    .with_error_code(error.code())
            });
            let is_asked = request.include_authorized_operations && described.error_code == 0;
            described.with_authorized_operations(if is_asked {
                context.authorized_operations(Resource::Group(group_id))
            } else {
                OPERATIONS_NOT_ASKED
            })
        };
        DescribeGroupsResponse::default()
            .with_groups(distinct(&request.groups).map(describe).collect())
    }

    /// ListGroups: the groups of all partitions this broker leads.
    #[must_use]
    pub(crate) fn list_groups(
        &self,
        _context: &RequestContext,
        request: &ListGroupsRequest,
    ) -> ListGroupsResponse {
        if self.inner.runtime.is_loading() {
            return ListGroupsResponse::default()
                .with_error_code(ErrorCode::CoordinatorLoadInProgress.code());
        }
        let (states, types) =
            (lower_case(&request.states_filter), lower_case(&request.types_filter));
        let listed = self.inner.runtime.each(|shard| shard.list(&states, &types));
        ListGroupsResponse::default().with_groups(listed.into_iter().flatten().collect())
    }

    /// DeleteGroups: removes groups without members, with their offsets; each group is answered
    /// once.
    pub(crate) async fn delete_groups(
        &self,
        _context: &RequestContext,
        request: &DeleteGroupsRequest,
    ) -> DeleteGroupsResponse {
        let mut results = Vec::with_capacity(request.groups_names.len());
        for group_id in distinct(&request.groups_names) {
            let refused = |error: ErrorCode| {
                DeletableGroupResult::default()
                    .with_group_id(group_id.clone())
                    .with_error_code(error.code())
            };
            match self
                .inner
                .request(group_id, |shard, reply, now| shard.delete_group(group_id, reply, now))
                .await
            {
                Ok(Reply::DeleteGroups(response)) => results.extend(response.results),
                Ok(_) => results.push(refused(ErrorCode::UnknownServerError)),
                Err(error) => results.push(refused(error)),
            }
        }
        DeleteGroupsResponse::default().with_results(results)
    }

    /// OffsetDelete: removes offsets of topics that no member of the group reads.
    pub(crate) async fn offset_delete(
        &self,
        _context: &RequestContext,
        request: &OffsetDeleteRequest,
    ) -> OffsetDeleteResponse {
        let refused =
            |error: ErrorCode| OffsetDeleteResponse::default().with_error_code(error.code());
        let exists = |topic: &str, partition| self.inner.exists(topic, partition);
        let deleted = self.inner.request(&request.group_id, |shard, reply, now| {
            shard.delete_offsets(request, exists, reply, now)
        });
        match deleted.await {
            Ok(Reply::OffsetDelete(response)) => response,
            Ok(_) => refused(ErrorCode::UnknownServerError),
            Err(error) => refused(error),
        }
    }
}

/// Each group once, in the order of the request: an answer may be thousands of times larger than
/// the name that asks for it.
fn distinct(groups: &[GroupId]) -> impl Iterator<Item = &GroupId> {
    let mut seen = BTreeSet::new();
    groups.iter().filter(move |group| seen.insert(group.as_str()))
}

/// As [`distinct`]; a group that is named twice is asked for all that either names.
fn distinct_groups(groups: Vec<OffsetFetchRequestGroup>) -> Vec<OffsetFetchRequestGroup> {
    let (mut distinct, mut at): (Vec<OffsetFetchRequestGroup>, _) = (Vec::new(), BTreeMap::new());
    for group in groups {
        let index = *at.entry(group.group_id.to_string()).or_insert(distinct.len());
        match distinct.get_mut(index) {
            Some(known) => match (&mut known.topics, group.topics) {
                (Some(known), Some(more)) => known.extend(more),
                (all, _) => *all = None,
            },
            None => distinct.push(group),
        }
    }
    for group in &mut distinct {
        group.topics = group.topics.take().map(|topics| distinct_topics(topics.into_iter()));
    }
    distinct
}

/// Each topic and partition once, in the order of the request: 4 bytes of a request may ask for 12
/// KiB of metadata.
fn distinct_topics(
    topics: impl Iterator<Item = OffsetFetchRequestTopics>,
) -> Vec<OffsetFetchRequestTopics> {
    let (mut distinct, mut at) = (Vec::<OffsetFetchRequestTopics>::new(), BTreeMap::new());
    for mut topic in topics {
        let (index, seen) =
            at.entry(topic.name.to_string()).or_insert_with(|| (distinct.len(), BTreeSet::new()));
        topic.partition_indexes.retain(|partition| seen.insert(*partition));
        match distinct.get_mut(*index) {
            Some(known) => known.partition_indexes.append(&mut topic.partition_indexes),
            None => distinct.push(topic),
        }
    }
    distinct
}

/// "PREFIX-UUID", the prefix shortened at a character's edge where it is absurdly long.
fn new_member_id(prefix: &str, uuid: uuid::Uuid) -> Arc<str> {
    let prefix = &prefix[..prefix.floor_char_boundary(CLIENT_ID_BYTES_MAX)];
    format!("{prefix}-{uuid}").into()
}

/// An answer that nothing has to be waited for.
fn now<T: Send + 'static>(answer: T) -> BoxFuture<'static, T> {
    Box::pin(std::future::ready(answer))
}

fn into_join(reply: Reply) -> JoinGroupResponse {
    match reply {
        Reply::Join(response) => response,
        _ => into_join(join_error("", ErrorCode::UnknownServerError)),
    }
}

fn into_sync(reply: Reply) -> SyncGroupResponse {
    match reply {
        Reply::Sync(response) => response,
        _ => SyncGroupResponse::default().with_error_code(ErrorCode::UnknownServerError.code()),
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

fn refused_partitions(
    group: &OffsetFetchRequestGroup,
    error_code: i16,
) -> Vec<OffsetFetchResponseTopic> {
    let topics = group.topics.iter().flatten().map(|topic| {
        let partitions = topic.partition_indexes.iter().map(|partition| {
            OffsetFetchResponsePartition::default()
                .with_partition_index(*partition)
                .with_committed_offset(-1)
                .with_committed_leader_epoch(-1)
                .with_metadata(Some(str_bytes("")))
                .with_error_code(error_code)
        });
        OffsetFetchResponseTopic::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    topics.collect()
}
