//! OffsetCommit 2–10, OffsetFetch 1–10 and OffsetDelete 0: offsets of the topics that a caller may
//! read.
//!
//! KIPs: 211 (retention), 447 (stable offsets), 496 (deletion), 709 (several groups), 848 (topic ids
//! from version 10 on). Topics that a caller may not see are answered with
//! TOPIC_AUTHORIZATION_FAILED, or left out where all were asked for.

use std::sync::Arc;

use kafka_protocol::messages as m;
use kafka_protocol::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::by_id::{BY_ID, topic_id};

use super::{Errors, Services, errors, text};
use crate::coordinator::commit_error;
use crate::metadata::MetadataImage;
use crate::request::RequestContext;
use crate::security::{Operation, Resource};

const REFUSED: ErrorCode = ErrorCode::TopicAuthorizationFailed;
/// From this version on OffsetFetch asks for several groups.
const SEVERAL_GROUPS: i16 = 8;

/// Whether the caller may do `operation` to the topic that it calls `said`: by id from version 10
/// on. An id that no topic has is the coordinator's to answer.
fn may(
    ctx: &RequestContext,
    image: &MetadataImage,
    operation: Operation,
    said: &m::TopicName,
) -> bool {
    let may = |name: &str| ctx.may(operation, Resource::Topic(name));
    if ctx.api_version < BY_ID {
        return may(said);
    }
    topic_id(said).and_then(|id| image.topic_by_id(&id)).is_none_or(|topic| may(&topic.name))
}

/// Answers OffsetCommit.
pub(crate) async fn commit(
    services: Arc<Services>,
    ctx: RequestContext,
    mut request: m::OffsetCommitRequest,
) -> m::OffsetCommitResponse {
    let image = services.image();
    let is_refused = |name: &m::TopicName| !may(&ctx, &image, Operation::Read, name);
    let refused: Vec<_> = request.topics.extract_if(.., |topic| is_refused(&topic.name)).collect();
    if refused.is_empty() {
        return services.groups.offset_commit(&ctx, request).await;
    }
    let refused = m::OffsetCommitRequest::default().with_topics(refused);
    let mut response = refused_commit(&refused, REFUSED);
    if !request.topics.is_empty() {
        response.topics.extend(services.groups.offset_commit(&ctx, request).await.topics);
    }
    response
}

/// The answer to an OffsetCommit that is not allowed.
pub(crate) fn refused_commit(
    request: &m::OffsetCommitRequest,
    error: ErrorCode,
) -> m::OffsetCommitResponse {
    commit_error(request, error)
}

/// Answers OffsetFetch.
pub(crate) async fn fetch(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::OffsetFetchRequest,
) -> m::OffsetFetchResponse {
    if ctx.api_version < SEVERAL_GROUPS {
        fetch_one(&services, &ctx, request).await
    } else {
        fetch_several(&services, &ctx, request).await
    }
}

async fn fetch_one(
    services: &Services,
    ctx: &RequestContext,
    mut request: m::OffsetFetchRequest,
) -> m::OffsetFetchResponse {
    if let Err(error) = ctx.check(Operation::Describe, Resource::Group(&request.group_id)) {
        // Version 1 has no error of its own.
        let topics = request.topics.unwrap_or_default().into_iter();
        let topics = topics.map(|topic| refused_topic(topic.name, topic.partition_indexes, error));
        let response = m::OffsetFetchResponse::default();
        return match ctx.api_version {
            ..2 => response.with_topics(topics.collect()),
            _ => response.with_error_code(error.code()),
        };
    }
    let image = services.image();
    let is_refused = |name: &m::TopicName| !may(ctx, &image, Operation::Describe, name);
    let is_all = request.topics.is_none();
    let refused: Vec<_> = request
        .topics
        .iter_mut()
        .flat_map(|topics| topics.extract_if(.., |topic| is_refused(&topic.name)))
        .collect();
    let mut response = services.groups.offset_fetch(ctx, request).await;
    if is_all {
        response.topics.retain(|topic| !is_refused(&topic.name));
    }
    let refused = refused.into_iter();
    response
        .topics
        .extend(refused.map(|topic| refused_topic(topic.name, topic.partition_indexes, REFUSED)));
    response
}

async fn fetch_several(
    services: &Services,
    ctx: &RequestContext,
    mut request: m::OffsetFetchRequest,
) -> m::OffsetFetchResponse {
    let image = services.image();
    let is_refused = |name: &m::TopicName| !may(ctx, &image, Operation::Describe, name);
    let mut answers: Vec<OffsetFetchResponseGroup> = Vec::new();
    request.groups.retain(|group| {
        let checked = ctx.check(Operation::Describe, Resource::Group(&group.group_id));
        let answer = OffsetFetchResponseGroup::default().with_group_id(group.group_id.clone());
        answers.extend(checked.err().map(|error| answer.with_error_code(error.code())));
        checked.is_ok()
    });
    // What is refused of each group: a group may be named twice, and is answered once.
    let mut refused: Vec<(m::GroupId, OffsetFetchResponseTopics)> = Vec::new();
    for group in &mut request.groups {
        for topic in group
            .topics
            .iter_mut()
            .flat_map(|topics| topics.extract_if(.., |topic| is_refused(&topic.name)))
        {
            let partitions = topic.partition_indexes.into_iter().map(|index| {
                OffsetFetchResponsePartitions::default()
                    .with_partition_index(index)
                    .with_committed_offset(-1)
                    .with_committed_leader_epoch(-1)
                    .with_metadata(Some(text("")))
                    .with_error_code(REFUSED.code())
            });
            let topic = OffsetFetchResponseTopics::default()
                .with_name(topic.name)
                .with_partitions(partitions.collect());
            refused.push((group.group_id.clone(), topic));
        }
    }
    let mut response = services.groups.offset_fetch(ctx, request).await;
    for group in response.groups.iter_mut().filter(|group| group.error_code == 0) {
        // Those that were asked for by name and are refused were not asked for any more.
        group.topics.retain(|topic| !is_refused(&topic.name));
        let of_group = refused.extract_if(.., |(id, _)| *id == group.group_id);
        group.topics.extend(of_group.map(|(_, topic)| topic));
    }
    response.groups.append(&mut answers);
    response
}

fn refused_topic(
    name: m::TopicName,
    partitions: Vec<i32>,
    error: ErrorCode,
) -> OffsetFetchResponseTopic {
    let partitions = partitions.into_iter().map(|index| {
        OffsetFetchResponsePartition::default()
            .with_partition_index(index)
            .with_committed_offset(-1)
            .with_committed_leader_epoch(-1)
            .with_metadata(Some(text("")))
            .with_error_code(error.code())
    });
    OffsetFetchResponseTopic::default().with_name(name).with_partitions(partitions.collect())
}

/// Answers OffsetDelete.
pub(crate) async fn delete(
    services: Arc<Services>,
    ctx: RequestContext,
    mut request: m::OffsetDeleteRequest,
) -> m::OffsetDeleteResponse {
    let is_refused = |name: &str| !ctx.may(Operation::Read, Resource::Topic(name));
    let refused: Vec<_> = request.topics.extract_if(.., |topic| is_refused(&topic.name)).collect();
    let mut response = if refused.is_empty() || !request.topics.is_empty() {
        services.groups.offset_delete(&ctx, &request).await
    } else {
        m::OffsetDeleteResponse::default()
    };
    if response.error_code != 0 {
        return response;
    }
    response.topics.extend(refused.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            OffsetDeleteResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(REFUSED.code())
        });
        let partitions = partitions.collect();
        OffsetDeleteResponseTopic::default().with_name(topic.name).with_partitions(partitions)
    }));
    response
}

errors!(OffsetCommitResponse, |all, each| {
    let partitions = all.topics.iter().flat_map(|topic| &topic.partitions);
    partitions.for_each(|one| each(one.error_code));
});
errors!(OffsetFetchResponse, |all, each| {
    each(all.error_code);
    let partitions = all.topics.iter().flat_map(|topic| &topic.partitions);
    partitions.for_each(|one| each(one.error_code));
    for group in &all.groups {
        each(group.error_code);
        let partitions = group.topics.iter().flat_map(|topic| &topic.partitions);
        partitions.for_each(|one| each(one.error_code));
    }
});
errors!(OffsetDeleteResponse, |all, each| {
    each(all.error_code);
    let partitions = all.topics.iter().flat_map(|topic| &topic.partitions);
    partitions.for_each(|one| each(one.error_code));
});
