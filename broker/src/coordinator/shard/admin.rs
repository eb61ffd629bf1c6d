//! What administrators ask: describe, list, delete.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use kafka_protocol::messages::{
    DeleteGroupsResponse, GroupId, OffsetDeleteRequest, OffsetDeleteResponse,
};
use letterbox_protocol::ErrorCode;

use super::Shard;
use crate::coordinator::GroupFigures;
use crate::coordinator::group::{
    Group, GroupState, Member, Now, Output, Reply, ReplyId, str_bytes,
};
use crate::coordinator::records::{OffsetAndMetadata, OffsetKey, Record};

/// From this version on a group that does not exist is an error, before it is "Dead" (KIP-1043).
const NOT_FOUND_ERROR_VERSION: i16 = 6;

impl Shard {
    /// One group of DescribeGroups. Metadata is shown while the group is Stable, as Kafka does.
    #[must_use]
    pub(crate) fn describe(&self, group_id: &GroupId, api_version: i16) -> DescribedGroup {
        let described = DescribedGroup::default().with_group_id(group_id.clone());
        let Some(group) = self.groups.get(group_id.as_str()) else {
            let described = described.with_group_state(str_bytes("Dead"));
            if api_version < NOT_FOUND_ERROR_VERSION {
                return described;
            }
            let message = format!("Group {} not found.", group_id.as_str());
            return described
                .with_error_code(ErrorCode::GroupIdNotFound.code())
                .with_error_message(Some(str_bytes(&message)));
        };
        let protocol = group.protocol().filter(|_| group.state() == GroupState::Stable);
        let members = group
            .members()
            .iter()
            .map(|(id, member)| describe_member(id, member, protocol.map(|name| &**name)));
        described
            .with_group_state(str_bytes(group.state().as_str()))
            .with_protocol_type(str_bytes(group.protocol_type().map_or("", |name| name)))
            .with_protocol_data(str_bytes(protocol.map_or("", |name| name)))
            .with_members(members.collect())
    }

    /// The groups for ListGroups. Empty filters let everything through; they are compared without
    /// regard to case.
    #[must_use]
    pub(crate) fn list(
        &self,
        states: &BTreeSet<String>,
        types: &BTreeSet<String>,
    ) -> Vec<ListedGroup> {
        if !types.is_empty() && !types.contains("classic") {
            return Vec::new();
        }
        let is_wanted = |group: &&Group| {
            states.is_empty() || states.contains(&group.state().as_str().to_lowercase())
        };
        let listed = self.groups.values().filter(is_wanted).map(|group| {
            ListedGroup::default()
                .with_group_id(GroupId(str_bytes(group.id())))
                .with_protocol_type(str_bytes(group.protocol_type().map_or("", |name| name)))
                .with_group_state(str_bytes(group.state().as_str()))
                .with_group_type(str_bytes("classic"))
        });
        listed.collect()
    }

    /// How many groups, members and offsets there are.
    #[must_use]
    pub(crate) fn figures(&self) -> GroupFigures {
        let mut figures =
            GroupFigures { offsets: self.offsets.committed_count(), ..GroupFigures::default() };
        for group in self.groups.values() {
            let of_state = match group.state() {
                GroupState::Empty => &mut figures.empty,
                GroupState::PreparingRebalance => &mut figures.preparing_rebalance,
                GroupState::CompletingRebalance => &mut figures.completing_rebalance,
                GroupState::Stable => &mut figures.stable,
            };
            *of_state = of_state.saturating_add(1);
            figures.members = figures.members.saturating_add(group.members().len());
        }
        figures
    }

    /// Shows every group and how many members it has to `each`.
    pub(crate) fn each_group(&self, each: &mut dyn FnMut(&str, usize)) {
        self.groups.values().for_each(|group| each(group.id(), group.members().len()));
    }

    /// Shows every committed offset to `each`.
    pub(crate) fn each_offset(&self, each: &mut dyn FnMut(&OffsetKey, &OffsetAndMetadata)) {
        self.offsets.committed_range(..).for_each(|(key, offset)| each(key, offset));
    }

    /// DeleteGroups for one group; refused while it has members.
    pub(crate) fn delete_group(&mut self, group_id: &GroupId, reply: ReplyId, now: Now) -> Output {
        let mut tombstones = Vec::new();
        let error = match self.groups.get(group_id.as_str()) {
            None => ErrorCode::GroupIdNotFound.code(),
            Some(group) if group.state() != GroupState::Empty => ErrorCode::NonEmptyGroup.code(),
            Some(group) => {
                tombstones = self.offset_tombstones(group.id());
                tombstones.push(Record::Group { group: group.id().clone(), value: None });
                0
            }
        };
        let result =
            DeletableGroupResult::default().with_group_id(group_id.clone()).with_error_code(error);
        let response =
            Reply::DeleteGroups(DeleteGroupsResponse::default().with_results(vec![result]));
        let mut out = Output::default();
        self.remove(tombstones, Some((reply, response)), now, &mut out);
        out
    }

    /// OffsetDelete: removes offsets of topics that no member reads. `exists` says which partitions
    /// there are.
    pub(crate) fn delete_offsets(
        &mut self,
        request: &OffsetDeleteRequest,
        exists: impl Fn(&str, i32) -> bool,
        reply: ReplyId,
        now: Now,
    ) -> Output {
        let failed = |error: ErrorCode| {
            let response = OffsetDeleteResponse::default().with_error_code(error.code());
            Output { replies: vec![(reply, Reply::OffsetDelete(response))], writes: Vec::new() }
        };
        let Some(group) = self.groups.get(request.group_id.as_str()) else {
            return failed(ErrorCode::GroupIdNotFound);
        };
        if group.state() != GroupState::Empty && !group.is_consumer_group() {
            return failed(ErrorCode::NonEmptyGroup);
        }
        // A set, because a partition may be named twice.
        let mut removed = BTreeSet::new();
        let subscriptions = group.subscriptions();
        let mut topics = Vec::with_capacity(request.topics.len());
        for topic in &request.topics {
            let (name, is_read): (Arc<str>, _) =
                (topic.name.as_str().into(), subscriptions.may_read(&topic.name));
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for partition in &topic.partitions {
                let partition = partition.partition_index;
                let key = OffsetKey { group: group.id().clone(), topic: name.clone(), partition };
                let error = if !exists(&name, partition) {
                    ErrorCode::UnknownTopicOrPartition.code()
                } else if is_read {
                    ErrorCode::GroupSubscribedToTopic.code()
                } else {
                    if self.offsets.latest(&key).is_some() {
                        removed.insert(key);
                    }
                    0
                };
                partitions.push(
                    OffsetDeleteResponsePartition::default()
                        .with_partition_index(partition)
                        .with_error_code(error),
                );
            }
            topics.push(
                OffsetDeleteResponseTopic::default()
                    .with_name(topic.name.clone())
                    .with_partitions(partitions),
            );
        }
        let tombstones =
            removed.into_iter().map(|key| Record::Offset { key, value: None }).collect();
        let mut out = Output::default();
        self.remove(
            tombstones,
            Some((reply, Reply::OffsetDelete(OffsetDeleteResponse::default().with_topics(topics)))),
            now,
            &mut out,
        );
        out
    }
}

fn describe_member(id: &str, member: &Member, protocol: Option<&str>) -> DescribedGroupMember {
    let (client_id, client_host) = member.client();
    DescribedGroupMember::default()
        .with_member_id(str_bytes(id))
        .with_group_instance_id(member.instance_id().map(|id| str_bytes(id)))
        .with_client_id(str_bytes(client_id))
        .with_client_host(str_bytes(client_host))
        .with_member_metadata(protocol.map(|name| member.metadata_for(name)).unwrap_or_default())
        .with_member_assignment(member.assignment().clone())
}
