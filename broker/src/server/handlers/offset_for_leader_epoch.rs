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

use super::Shared;
use crate::server::context::{Operation, RequestContext, Resource};

/// Answers OffsetForLeaderEpoch.
pub(crate) fn offset_for_leader_epoch(
    shared: &Shared,
    ctx: &RequestContext,
    request: m::OffsetForLeaderEpochRequest,
) -> m::OffsetForLeaderEpochResponse {
    let image = shared.image();
    let topics = request.topics.into_iter().map(|topic| {
        let id = match image.topic(topic.topic.as_str()) {
            _ if !ctx.may(Operation::Describe, Resource::Topic(topic.topic.as_str())) => {
                Err(ErrorCode::TopicAuthorizationFailed)
            }
            Some(found) => Ok(found.id),
            None => Err(ErrorCode::UnknownTopicOrPartition),
        };
        let partitions = topic.partitions.iter().map(|asked| {
            let (error, (epoch, end)) = match id.and_then(|id| one(shared, &id, asked)) {
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
    shared: &Shared,
    topic: &uuid::Uuid,
    asked: &OffsetForLeaderPartition,
) -> Result<(LeaderEpoch, Offset), ErrorCode> {
    let partition = shared.replicas.partition(topic, asked.partition)?;
    partition.check_epoch(asked.current_leader_epoch)?;
    Ok(partition.end_of_epoch(asked.leader_epoch))
}
