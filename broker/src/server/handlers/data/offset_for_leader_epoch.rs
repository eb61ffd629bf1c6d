//! OffsetForLeaderEpoch 2–4: where a leader epoch ends, so that a reader notices that its log was
//! cut.
//!
//! KIPs: 101 and 279 (epochs), 320 (consumers ask). librdkafka asks in version 2.

use kafka_protocol::messages as m;
use kafka_protocol::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{LeaderEpoch, Offset};

use super::{Errors, Services, errors};
use crate::request::RequestContext;
use crate::security::{Operation, Resource};

/// Answers OffsetForLeaderEpoch.
pub(crate) fn offset_for_leader_epoch(
    services: &Services,
    ctx: &RequestContext,
    request: m::OffsetForLeaderEpochRequest,
) -> m::OffsetForLeaderEpochResponse {
    let image = services.image();
    let topics = request.topics.into_iter().map(|topic| {
        let name = topic.topic.as_str();
        let id = ctx.check(Operation::Describe, Resource::Topic(name)).and_then(|()| {
            image.topic(name).map(|found| found.id).ok_or(ErrorCode::UnknownTopicOrPartition)
        });
        let partitions = topic.partitions.iter().map(|asked| {
            let (error, (epoch, end)) = match id.and_then(|id| one(services, &id, asked)) {
                Ok(found) => (ErrorCode::None, found),
                Err(error) => (error, (-1, -1)),
            };
            EpochEndOffset::default()
                .with_error_code(error as i16)
                .with_partition(asked.partition)
                .with_leader_epoch(epoch)
                .with_end_offset(end)
        });
        let partitions = partitions.collect();
        OffsetForLeaderTopicResult::default().with_topic(topic.topic).with_partitions(partitions)
    });
    m::OffsetForLeaderEpochResponse::default().with_topics(topics.collect())
}

fn one(
    services: &Services,
    topic: &uuid::Uuid,
    asked: &OffsetForLeaderPartition,
) -> Result<(LeaderEpoch, Offset), ErrorCode> {
    let partition = services.replicas.partition(topic, asked.partition)?;
    partition.check_epoch(asked.current_leader_epoch)?;
    Ok(partition.end_of_epoch(asked.leader_epoch))
}

errors!(OffsetForLeaderEpochResponse, |all, each| {
    let partitions = all.topics.iter().flat_map(|topic| &topic.partitions);
    partitions.for_each(|one| each(one.error_code));
});
