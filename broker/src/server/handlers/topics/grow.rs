//! CreatePartitions 0–3: more partitions for topics that are there.
//!
//! KIPs: 195, 599 (quota: none is enforced).

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages as m;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;

use super::{Errors, Services, TIMED_OUT, errors, is_late, message, of_controller};
use crate::metadata::ApiError;
use crate::metadata::decide::{CreatePartitions, TopicGrowth};
use crate::request::RequestContext;
use crate::security::{Operation, Resource};
use crate::server::changes::Within;

/// Answers CreatePartitions.
pub(crate) async fn grow(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::CreatePartitionsRequest,
) -> m::CreatePartitionsResponse {
    let mut answers = Vec::with_capacity(request.topics.len());
    let mut accepted = Vec::new();
    for (at, topic) in request.topics.into_iter().enumerate() {
        let name = topic.name.as_str().to_owned();
        let mut answer = CreatePartitionsTopicResult::default().with_name(topic.name);
        match ctx.check(Operation::Alter, Resource::Topic(&name)) {
            Ok(()) => {
                let assignments = topic.assignments.map(|all| {
                    all.into_iter()
                        .map(|one| one.broker_ids.into_iter().map(|id| BrokerId(id.0)).collect())
                        .collect()
                });
                accepted.push((at, TopicGrowth { name, count: topic.count, assignments }));
            }
            Err(error) => answer.error_code = error.code(),
        }
        answers.push(answer);
    }
    let (places, topics): (Vec<usize>, Vec<TopicGrowth>) = accepted.into_iter().unzip();
    let within = Within::asked(request.timeout_ms, request.validate_only);
    let operation = CreatePartitions { topics, validate_only: request.validate_only };
    let changed = services.change(operation, within).await;
    for (nth, at) in places.into_iter().enumerate() {
        let Some(answer) = answers.get_mut(at) else { continue };
        let result = match &changed {
            Ok(changed) => {
                let missing = || Err(ApiError::from(ErrorCode::UnknownServerError));
                changed.outcome.get(nth).map_or_else(missing, |(_, result)| result.clone())
            }
            Err(error) => Err(of_controller(error)),
        };
        if let Err(error) = result {
            answer.error_code = error.code.code();
            answer.error_message = message(&error);
        }
    }
    if !request.validate_only && is_late(&changed) {
        let done = answers.iter_mut().filter(|answer| answer.error_code == 0);
        done.for_each(|answer| answer.error_code = TIMED_OUT);
    }
    // As in Kafka, a topic is answered once, however often it is named.
    let mut told = BTreeSet::new();
    answers.retain(|answer| told.insert(answer.name.clone()));
    m::CreatePartitionsResponse::default().with_results(answers)
}

errors!(CreatePartitionsResponse, |all, each| {
    all.results.iter().for_each(|one| each(one.error_code));
});
