//! AlterPartitionReassignments 0–1 and ListPartitionReassignments 0: moving partitions to other
//! brokers, and what moves now.
//!
//! KIPs: 455, 860 (whether a partition may get more or fewer replicas).

use std::sync::Arc;

use kafka_protocol::messages as m;
use kafka_protocol::messages::alter_partition_reassignments_response::{
    ReassignablePartitionResponse, ReassignableTopicResponse,
};
use kafka_protocol::messages::list_partition_reassignments_response::{
    OngoingPartitionReassignment, OngoingTopicReassignment,
};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;

use super::{Errors, Services, TIMED_OUT, errors, is_late, message, of_controller, topic_name};
use crate::metadata::decide::{AlterReassignments, Reassignment};
use crate::metadata::{ApiError, PartitionState, Topic};
use crate::server::changes::Within;

/// Answers AlterPartitionReassignments.
pub(crate) async fn alter(
    services: Arc<Services>,
    request: m::AlterPartitionReassignmentsRequest,
) -> m::AlterPartitionReassignmentsResponse {
    let may_change_replication_factor = request.allow_replication_factor_change;
    let partitions = request.topics.iter().flat_map(|topic| {
        topic.partitions.iter().map(|one| Reassignment {
            topic: topic.name.as_str().to_owned(),
            partition: one.partition_index,
            replicas: one
                .replicas
                .as_ref()
                .map(|ids| ids.iter().map(|id| BrokerId(id.0)).collect()),
        })
    });
    let operation =
        AlterReassignments { partitions: partitions.collect(), may_change_replication_factor };
    let changed = services.change(operation, Within::asked(request.timeout_ms, false)).await;
    let is_late = is_late(&changed);
    let outcome = match changed {
        Ok(changed) => changed.outcome,
        Err(error) => return altered_nothing(&of_controller(&error)),
    };
    let mut results = outcome.into_iter();
    let mut answer_to = |partition_index| {
        let answer = ReassignablePartitionResponse::default()
            .with_partition_index(partition_index)
            .with_error_message(None);
        match results.next() {
            Some(Ok(())) if is_late => answer.with_error_code(TIMED_OUT),
            Some(Ok(())) => answer,
            Some(Err(error)) => {
                answer.with_error_code(error.code.code()).with_error_message(message(&error))
            }
            None => answer.with_error_code(ErrorCode::UnknownServerError.code()),
        }
    };
    let responses = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|one| answer_to(one.partition_index));
        ReassignableTopicResponse::default()
            .with_partitions(partitions.collect())
            .with_name(topic.name)
    });
    m::AlterPartitionReassignmentsResponse::default()
        .with_allow_replication_factor_change(may_change_replication_factor)
        .with_error_message(None)
        .with_responses(responses.collect())
}

/// The answer to a request to move partitions that was refused as a whole.
pub(crate) fn altered_nothing(error: &ApiError) -> m::AlterPartitionReassignmentsResponse {
    m::AlterPartitionReassignmentsResponse::default()
        .with_error_code(error.code.code())
        .with_error_message(message(error))
}

/// Answers ListPartitionReassignments, with nothing that is older than what the active controller
/// knew when it was asked: who has started or seen a move at another broker finds it here.
pub(crate) async fn list(
    services: Arc<Services>,
    request: m::ListPartitionReassignmentsRequest,
) -> m::ListPartitionReassignmentsResponse {
    let within = Within::asked(request.timeout_ms, false);
    let image = match services.newest_image(within.shown).await {
        Ok(image) => image,
        Err(error) => return listed_nothing(&error),
    };
    let topics = match request.topics {
        None => by_topic(image.reassignments()),
        Some(topics) => {
            let found = topics.iter().filter_map(|asked| {
                let topic = image.topic(asked.name.as_str())?;
                let states = asked.partition_indexes.iter();
                let states = states.filter_map(|index| Some((*index, topic.partition(*index)?)));
                Some(states.map(move |(index, state)| (topic, index, state)))
            });
            by_topic(found.flatten().filter(|(_, _, state)| state.is_reassigning()))
        }
    };
    m::ListPartitionReassignmentsResponse::default().with_error_message(None).with_topics(topics)
}

/// The answer to a request to list what moves that was refused.
pub(crate) fn listed_nothing(error: &ApiError) -> m::ListPartitionReassignmentsResponse {
    m::ListPartitionReassignmentsResponse::default()
        .with_error_code(error.code.code())
        .with_error_message(message(error))
}

/// Partitions of the same topic that follow each other, together.
fn by_topic<'a>(
    moving: impl Iterator<Item = (&'a Arc<Topic>, i32, &'a PartitionState)>,
) -> Vec<OngoingTopicReassignment> {
    let mut topics: Vec<OngoingTopicReassignment> = Vec::new();
    for (topic, index, state) in moving {
        let ids = |ids: &[BrokerId]| ids.iter().map(|id| m::BrokerId(id.0)).collect();
        // Who goes does not come, as with Kafka: the move got another target.
        let comes = |id: &&BrokerId| !state.removing.contains(id);
        let adding: Vec<BrokerId> = state.adding.iter().filter(comes).copied().collect();
        let partition = OngoingPartitionReassignment::default()
            .with_partition_index(index)
            .with_replicas(ids(&state.replicas))
            .with_adding_replicas(ids(&adding))
            .with_removing_replicas(ids(&state.removing));
        match topics.last_mut().filter(|last| *last.name.0 == *topic.name) {
            Some(last) => last.partitions.push(partition),
            None => topics.push(
                OngoingTopicReassignment::default()
                    .with_name(topic_name(&topic.name))
                    .with_partitions(vec![partition]),
            ),
        }
    }
    topics
}

errors!(AlterPartitionReassignmentsResponse, |all, each| {
    each(all.error_code);
    let partitions = all.responses.iter().flat_map(|topic| &topic.partitions);
    partitions.for_each(|one| each(one.error_code));
});
errors!(ListPartitionReassignmentsResponse, |all, each| each(all.error_code));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_only_to_come_and_goes_is_listed_as_one_that_goes() {
        let ids = |ids: &[i32]| ids.iter().map(|id| BrokerId(*id)).collect::<Vec<_>>().into();
        let state = PartitionState {
            replicas: ids(&[2, 5, 4, 1]),
            adding: ids(&[5, 4]),
            removing: ids(&[4, 1]),
            ..PartitionState::default()
        };
        let topic = Arc::new(Topic {
            name: "t".into(),
            id: Default::default(),
            partitions: Default::default(),
            configs: Default::default(),
        });
        let listed = by_topic([(&topic, 3, &state)].into_iter());
        let one = &listed[0].partitions[0];
        let of = |ids: &[m::BrokerId]| ids.iter().map(|id| id.0).collect::<Vec<_>>();
        assert_eq!((one.partition_index, of(&one.replicas)), (3, vec![2, 5, 4, 1]));
        assert_eq!((of(&one.adding_replicas), of(&one.removing_replicas)), (vec![5], vec![4, 1]));
    }
}
