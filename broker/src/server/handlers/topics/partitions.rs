//! DescribeTopicPartitions 0: topics page by page (KIP-966).
//!
//! Topics come in the order of their names, so that the cursor of one answer is where the next
//! begins.

use std::collections::BTreeSet;

use kafka_protocol::messages as m;
use kafka_protocol::messages::describe_topic_partitions_response::{
    Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
};
use letterbox_env::Gather;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;

use super::{Errors, Services, errors, topic_name};
use crate::metadata::decide::is_internal_topic;
use crate::metadata::{MetadataImage, PartitionState, Topic};
use crate::request::RequestContext;
use crate::security::{Operation, Resource};
use crate::server::handlers::cluster::metadata::{missing_error, told};

/// Answers DescribeTopicPartitions.
pub(crate) fn describe(
    services: &Services,
    ctx: &RequestContext,
    request: &m::DescribeTopicPartitionsRequest,
) -> m::DescribeTopicPartitionsResponse {
    let image = services.image();
    let may = |name: &str| ctx.may(Operation::Describe, Resource::Topic(name));
    let asked: BTreeSet<&str> = request.topics.iter().map(|topic| topic.name.as_str()).gather();
    let all = asked.is_empty();
    let (from, first) = request
        .cursor
        .as_ref()
        .map_or(("", 0), |cursor| (cursor.topic_name.as_str(), cursor.partition_index));
    if request.cursor.is_some() && (first < 0 || !all && !asked.contains(from)) {
        let refused = asked.iter().map(|name| nothing(name, ErrorCode::InvalidRequest)).collect();
        return m::DescribeTopicPartitionsResponse::default().with_topics(refused);
    }
    let names: BTreeSet<&str> = if all {
        image.topics().map(|topic| &*topic.name).filter(|name| may(name)).gather()
    } else {
        asked
    };
    let most = services.config.size("max.request.partition.size.limit");
    let mut left = usize::try_from(request.response_partition_limit).unwrap_or(1).min(most).max(1);
    let mut topics = Vec::new();
    let mut next = None;
    for name in names.range(from..) {
        if left == 0 {
            next = Some((*name, 0));
            break;
        }
        let first = if *name == from { first } else { 0 };
        let Some(topic) = image.topic(name).filter(|_| may(name)) else {
            let error =
                if may(name) { missing_error(name) } else { ErrorCode::TopicAuthorizationFailed };
            topics.push(nothing(name, error));
            continue;
        };
        let partitions: Vec<_> =
            topic.indexed_partitions().skip_while(|(index, _)| *index < first).take(left).collect();
        left = left.saturating_sub(partitions.len());
        let end = partitions.last().map_or(first, |(index, _)| index.saturating_add(1));
        let operations = ctx.authorized_operations(Resource::Topic(name));
        topics.push(
            found(services, &image, topic, &partitions)
                .with_topic_authorized_operations(operations),
        );
        if usize::try_from(end).is_ok_and(|end| end < topic.partitions.len()) {
            next = Some((*name, end));
            break;
        }
    }
    let cursor = next.map(|(name, index)| {
        Cursor::default().with_topic_name(topic_name(name)).with_partition_index(index)
    });
    m::DescribeTopicPartitionsResponse::default().with_topics(topics).with_next_cursor(cursor)
}

fn nothing(name: &str, error: ErrorCode) -> DescribeTopicPartitionsResponseTopic {
    DescribeTopicPartitionsResponseTopic::default()
        .with_name(Some(topic_name(name)))
        .with_error_code(error as i16)
}

fn found(
    services: &Services,
    image: &MetadataImage,
    topic: &Topic,
    partitions: &[(i32, &PartitionState)],
) -> DescribeTopicPartitionsResponseTopic {
    let ids = |ids: &[BrokerId]| ids.iter().map(|id| m::BrokerId(id.0)).collect();
    let partitions = partitions.iter().map(|(index, partition)| {
        let told = told(services, image, topic, *index, partition);
        DescribeTopicPartitionsResponsePartition::default()
            .with_error_code(told.error.code())
            .with_partition_index(*index)
            .with_leader_id(told.leader)
            .with_leader_epoch(partition.leader_epoch)
            .with_replica_nodes(told.replicas)
            .with_isr_nodes(told.isr)
            .with_eligible_leader_replicas(Some(ids(&partition.elr)))
            .with_last_known_elr(Some(ids(&partition.last_known_elr)))
            .with_offline_replicas(told.offline)
    });
    DescribeTopicPartitionsResponseTopic::default()
        .with_name(Some(topic_name(&topic.name)))
        .with_topic_id(topic.id)
        .with_is_internal(is_internal_topic(&topic.name))
        .with_partitions(partitions.collect())
}

errors!(DescribeTopicPartitionsResponse, |all, each| {
    for topic in &all.topics {
        each(topic.error_code);
        topic.partitions.iter().for_each(|one| each(one.error_code));
    }
});
