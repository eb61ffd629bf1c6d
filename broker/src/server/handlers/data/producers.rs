//! DescribeProducers 0: which idempotent producers a partition knows (KIP-664).

use std::collections::BTreeSet;

use kafka_protocol::messages as m;
use kafka_protocol::messages::describe_producers_response::{
    PartitionResponse, ProducerState, TopicResponse,
};
use letterbox_protocol::ErrorCode;

use super::{Errors, Services, errors, text};
use crate::metadata::decide::validate_topic_name;
use crate::request::RequestContext;
use crate::security::{Operation, Resource};

/// Answers DescribeProducers, each partition once however often it is asked for. With no
/// transactions, no producer has an open one.
pub(crate) fn describe(
    services: &Services,
    ctx: &RequestContext,
    request: m::DescribeProducersRequest,
) -> m::DescribeProducersResponse {
    let image = services.image();
    let mut seen = BTreeSet::new();
    let topics = request.topics.into_iter().map(|mut topic| {
        topic.partition_indexes.retain(|index| seen.insert((topic.name.clone(), *index)));
        let name = topic.name.as_str();
        let found = match image.topic(name) {
            _ if validate_topic_name(name).is_err() => Err(ErrorCode::InvalidTopicException),
            found => ctx.check(Operation::Read, Resource::Topic(name)).and_then(|()| {
                found.map(|found| found.id).ok_or(ErrorCode::UnknownTopicOrPartition)
            }),
        };
        let partitions = topic.partition_indexes.iter().map(|index| {
            let answer = PartitionResponse::default().with_partition_index(*index);
            let producers = found.and_then(|id| {
                let partition = services.replicas.partition(&id, *index)?;
                Ok(partition.log()?.producers())
            });
            match producers {
                Ok(producers) => {
                    answer.with_active_producers(producers.into_iter().map(state).collect())
                }
                Err(error) => answer
                    .with_error_code(error as i16)
                    .with_error_message(Some(text(error.name()))),
            }
        });
        let partitions = partitions.collect();
        TopicResponse::default().with_name(topic.name).with_partitions(partitions)
    });
    m::DescribeProducersResponse::default().with_topics(topics.collect())
}

fn state(producer: letterbox_storage::ProducerView) -> ProducerState {
    ProducerState::default()
        .with_producer_id(m::ProducerId(producer.id))
        .with_producer_epoch(i32::from(producer.epoch))
        .with_last_sequence(producer.last_sequence)
        .with_last_timestamp(producer.last_timestamp)
        .with_coordinator_epoch(-1)
        .with_current_txn_start_offset(-1)
}

errors!(DescribeProducersResponse, |all, each| {
    let partitions = all.topics.iter().flat_map(|topic| &topic.partitions);
    partitions.for_each(|one| each(one.error_code));
});
