//! DeleteTopics 1–6: topics and their records, for good.
//!
//! KIPs: 4, 516 (by topic id from version 6 on), 599 (quota: none is enforced).

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages as m;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use letterbox_protocol::ErrorCode;
use uuid::Uuid;

use super::{Errors, Services, TIMED_OUT, errors, is_late, message, of_controller, topic_name};
use crate::metadata::decide::{DeleteTopics, TopicSelector};
use crate::metadata::{ApiError, MetadataImage};
use crate::request::RequestContext;
use crate::security::{Operation, Resource};
use crate::server::changes::Within;

/// From this version on topics may be named by id.
const BY_ID: i16 = 6;

/// Answers DeleteTopics.
pub(crate) async fn delete(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::DeleteTopicsRequest,
) -> m::DeleteTopicsResponse {
    let by_name = request.topic_names.into_iter().map(|name| (Some(name), Uuid::nil()));
    let by_either = request.topics.into_iter().map(|topic| (topic.name, topic.topic_id));
    let asked: Vec<Asked> =
        if ctx.api_version >= BY_ID { by_either.collect() } else { by_name.collect() };
    let is_enabled = services.config.is_true("delete.topic.enable");
    let image = services.image();
    // As in Kafka, a topic is answered once, however often it is named in one way.
    let mut seen = BTreeSet::new();
    let is_first: Vec<bool> = asked.iter().map(|one| seen.insert(one.clone())).collect();
    let mut answers = Vec::with_capacity(asked.len());
    let mut accepted = Vec::new();
    for (at, one) in asked.into_iter().enumerate() {
        let answer = DeletableTopicResult::default().with_topic_id(one.1);
        answers.push(match selected(&ctx, &image, is_enabled, &one) {
            Ok(selector) => {
                accepted.push((at, selector));
                answer.with_name(one.0)
            }
            Err(error) => refused(answer.with_name(one.0), &error),
        });
    }
    let (places, topics): (Vec<usize>, Vec<TopicSelector>) = accepted.into_iter().unzip();
    let within = Within::asked(request.timeout_ms, false);
    let changed = services.change(DeleteTopics { topics }, within).await;
    for (nth, at) in places.into_iter().enumerate() {
        let Some(answer) = answers.get_mut(at) else { continue };
        let result = match &changed {
            Ok(changed) => changed.outcome.get(nth).map(|(_, result)| result.clone()),
            Err(error) => Some(Err(of_controller(error))),
        };
        match result {
            Some(Ok(deleted)) => {
                answer.name = Some(topic_name(&deleted.name));
                answer.topic_id = deleted.id;
            }
            Some(Err(error)) => *answer = refused(std::mem::take(answer), &error),
            None => answer.error_code = ErrorCode::UnknownServerError.code(),
        }
        if ctx.api_version < BY_ID && answer.name.is_none() {
            answer.name = Some(m::TopicName::default());
        }
    }
    if is_late(&changed) {
        let done = answers.iter_mut().filter(|answer| answer.error_code == 0);
        done.for_each(|answer| answer.error_code = TIMED_OUT);
    }
    let told = answers.into_iter().zip(is_first).filter(|(_, is_first)| *is_first);
    m::DeleteTopicsResponse::default().with_responses(told.map(|(answer, _)| answer).collect())
}

/// A topic as the request names it.
type Asked = (Option<m::TopicName>, Uuid);

/// The topic that is meant, when it may be deleted.
fn selected(
    ctx: &RequestContext,
    image: &MetadataImage,
    is_enabled: bool,
    (name, id): &Asked,
) -> Result<TopicSelector, ApiError> {
    // As Kafka: which of the two is meant would be a guess.
    if ctx.api_version >= BY_ID && name.is_some() != id.is_nil() {
        let message = match name {
            Some(name) => {
                format!("You may not specify both topic name {} and topic id.", name.as_str())
            }
            None => "Neither topic name nor id were specified.".to_owned(),
        };
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    }
    if !is_enabled {
        // Older versions know no such code (Kafka does the same).
        let code = match ctx.api_version {
            ..3 => ErrorCode::InvalidRequest,
            _ => ErrorCode::TopicDeletionDisabled,
        };
        return Err(ApiError::new(code, "delete.topic.enable=false on this broker".to_owned()));
    }
    // An id that no topic has is the controller's to answer.
    let known = match name {
        Some(name) => Some(name.as_str()),
        None => image.topic_by_id(id).map(|topic| &*topic.name),
    };
    if let Some(name) = known {
        ctx.check(Operation::Delete, Resource::Topic(name))?;
    }
    Ok(match name {
        Some(name) => TopicSelector::Name(name.as_str().to_owned()),
        None => TopicSelector::Id(*id),
    })
}

fn refused(answer: DeletableTopicResult, error: &ApiError) -> DeletableTopicResult {
    answer.with_error_code(error.code.code()).with_error_message(message(error))
}

errors!(DeleteTopicsResponse, |all, each| {
    all.responses.iter().for_each(|one| each(one.error_code));
});
