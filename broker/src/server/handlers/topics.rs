//! CreateTopics 2–7, DeleteTopics 1–6, CreatePartitions 0–3, and the making of topics that clients
//! or the broker itself need.
//!
//! KIPs: 4, 464 (defaults), 516 (topic ids), 525 (configurations in the answer), 599 (quota: none
//! is enforced).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages as m;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_response::{
    CreatableTopicConfigs, CreatableTopicResult,
};
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;

use super::{Shared, of_controller, text, topic_name};
use crate::config::{Source, topic};
use crate::controller::ControllerError;
use crate::metadata::ApiError;
use crate::metadata::decide::{
    CreatePartitions, CreateTopics, DeleteTopics, NewTopic, TopicGrowth, TopicPlacement,
    TopicSelector, is_internal_topic,
};
use crate::server::changes::Changed;
use crate::server::context::{Operation, RequestContext, Resource};

/// How long the broker itself waits for the logs of a topic that it makes without being asked by an
/// administrator.
const APPLIED_MAX: Duration = Duration::from_secs(30);
const TIMED_OUT: i16 = ErrorCode::RequestTimedOut as i16;

/// How long an answer waits until the change shows: `timeout_ms` of the request; what only checks
/// changes nothing. What it asks for is done even when the answer is REQUEST_TIMED_OUT, as with
/// Kafka.
fn show_within(timeout_ms: i32, validate_only: bool) -> Duration {
    let ms = if validate_only { 0 } else { u64::try_from(timeout_ms).unwrap_or(0) };
    Duration::from_millis(ms)
}

/// Whether the change took effect and does not show yet.
fn is_late<T>(changed: &Result<Changed<T>, ControllerError>) -> bool {
    changed.as_ref().is_ok_and(|changed| !changed.is_shown)
}

/// Answers CreateTopics.
pub(crate) async fn create(
    shared: Arc<Shared>,
    ctx: RequestContext,
    request: m::CreateTopicsRequest,
) -> m::CreateTopicsResponse {
    let mut answers: Vec<CreatableTopicResult> = Vec::with_capacity(request.topics.len());
    let mut accepted = Vec::new();
    for (at, topic) in request.topics.into_iter().enumerate() {
        let name = topic.name.as_str().to_owned();
        answers.push(
            CreatableTopicResult::default()
                .with_name(topic.name)
                .with_num_partitions(-1)
                .with_replication_factor(-1),
        );
        if !ctx.may(Operation::Create, Resource::Topic(&name)) {
            refuse(answers.last_mut(), &ApiError::from(ErrorCode::TopicAuthorizationFailed));
            continue;
        }
        let ids = |ids: Vec<m::BrokerId>| ids.into_iter().map(|id| BrokerId(id.0)).collect();
        let placement = TopicPlacement {
            num_partitions: topic.num_partitions,
            replication_factor: topic.replication_factor,
            assignments: topic
                .assignments
                .into_iter()
                .map(|one| (one.partition_index, ids(one.broker_ids)))
                .collect(),
        };
        let configs = topic.configs.into_iter().map(|config| {
            (config.name.as_str().to_owned(), config.value.map(|value| value.as_str().to_owned()))
        });
        accepted.push((at, NewTopic { name, placement, configs: configs.collect() }));
    }
    let (places, topics): (Vec<usize>, Vec<NewTopic>) = accepted.into_iter().unzip();
    let show_within = show_within(request.timeout_ms, request.validate_only);
    let operation = create_operation(&shared, topics, request.validate_only);
    let changed = shared.change(operation, show_within).await;
    for (nth, at) in places.into_iter().enumerate() {
        let Some(answer) = answers.get_mut(at) else { continue };
        match &changed {
            Ok(changed) => match changed.outcome.get(nth).map(|(_, result)| result) {
                Some(Ok(created)) => {
                    answer.topic_id = created.id;
                    answer.num_partitions = created.num_partitions;
                    answer.replication_factor = created.replication_factor;
                    answer.configs = Some(created_configs(&shared, &created.configs));
                }
                Some(Err(error)) => refuse(Some(answer), error),
                None => refuse(Some(answer), &ApiError::from(ErrorCode::UnknownServerError)),
            },
            Err(error) => refuse(Some(answer), &of_controller(error)),
        }
    }
    if !request.validate_only && is_late(&changed) {
        answers
            .iter_mut()
            .filter(|answer| answer.error_code == 0)
            .for_each(|answer| answer.error_code = TIMED_OUT);
    }
    m::CreateTopicsResponse::default().with_topics(answers)
}

fn refuse(answer: Option<&mut CreatableTopicResult>, error: &ApiError) {
    if let Some(answer) = answer {
        answer.error_code = error.code.code();
        answer.error_message = (!error.message.is_empty()).then(|| text(&error.message));
    }
}

fn created_configs(shared: &Shared, set: &BTreeMap<String, String>) -> Vec<CreatableTopicConfigs> {
    let one = |key: &topic::TopicKey| {
        let inherited = topic::broker_value(&shared.config, key);
        let source = if set.contains_key(key.name) { Source::Topic } else { inherited.source };
        let value = set.get(key.name).cloned().or(inherited.value);
        CreatableTopicConfigs::default()
            .with_name(text(key.name))
            .with_value(value.as_deref().map(text))
            .with_config_source(source as i8)
    };
    topic::KEYS.iter().map(one).collect()
}

fn create_operation(shared: &Shared, topics: Vec<NewTopic>, validate_only: bool) -> CreateTopics {
    CreateTopics {
        topics,
        validate_only,
        default_partitions: i32::try_from(shared.config.number("num.partitions")).unwrap_or(1),
        default_replication_factor: i16::try_from(
            shared.config.number("default.replication.factor"),
        )
        .unwrap_or(1),
    }
}

/// Makes topics with the broker's defaults because a client asked for them by name;
/// `__consumer_offsets` gets its own settings. Answers the errors by name; a topic that somebody
/// else made meanwhile is no error.
pub(crate) async fn auto_create(
    shared: &Arc<Shared>,
    names: Vec<Arc<str>>,
) -> BTreeMap<String, ErrorCode> {
    let (internal, ordinary): (Vec<_>, Vec<_>) =
        names.into_iter().partition(|name| is_internal_topic(name));
    let mut topics: Vec<NewTopic> = ordinary
        .iter()
        .map(|name| NewTopic {
            name: name.to_string(),
            placement: TopicPlacement::automatic(-1, -1),
            configs: BTreeMap::new(),
        })
        .collect();
    topics.extend(
        internal.iter().filter(|name| &***name == OFFSETS_TOPIC).map(|_| offsets_topic(shared)),
    );
    // A client that does not find it yet asks again.
    match shared.change(create_operation(shared, topics, false), APPLIED_MAX).await {
        Ok(changed) => changed
            .outcome
            .into_iter()
            .filter_map(|(name, result)| {
                let code = result.err()?.code;
                (code != ErrorCode::TopicAlreadyExists).then_some((name, code))
            })
            .collect(),
        // Not answered now; the client asks again.
        Err(_) => ordinary
            .iter()
            .chain(&internal)
            .map(|name| (name.to_string(), ErrorCode::UnknownTopicOrPartition))
            .collect(),
    }
}

/// Makes one topic as asked unless it is there.
///
/// # Errors
/// Why it cannot be made.
pub(crate) async fn ensure(
    shared: &Shared,
    name: &str,
    partitions: i32,
    replication_factor: i16,
    configs: BTreeMap<String, String>,
) -> Result<(), String> {
    let configs = configs.into_iter().map(|(key, value)| (key, Some(value))).collect();
    let topic = NewTopic {
        name: name.to_owned(),
        placement: TopicPlacement::automatic(partitions, replication_factor),
        configs,
    };
    let changed = shared
        .change(create_operation(shared, vec![topic], false), APPLIED_MAX)
        .await
        .map_err(|error| error.to_string())?;
    if !changed.is_shown {
        return Err(format!("the log of {name} was not opened within {} s", APPLIED_MAX.as_secs()));
    }
    match changed.outcome.into_iter().next() {
        Some((_, Err(error))) if error.code != ErrorCode::TopicAlreadyExists => Err(error.message),
        _ => Ok(()),
    }
}

/// Where committed offsets are kept.
pub(crate) const OFFSETS_TOPIC: &str = "__consumer_offsets";

fn offsets_topic(shared: &Shared) -> NewTopic {
    let brokers = shared.image().live_brokers().count().max(1);
    let wanted =
        usize::try_from(shared.config.number("offsets.topic.replication.factor")).unwrap_or(1);
    let partitions =
        i32::try_from(shared.config.number("offsets.topic.num.partitions")).unwrap_or(50);
    let configs = [
        ("cleanup.policy", "compact".to_owned()),
        ("compression.type", "producer".to_owned()),
        (
            "segment.bytes",
            shared.config.number("offsets.topic.segment.bytes").max(1_048_576).to_string(),
        ),
        // Committed offsets are on the disk before they are acknowledged, whatever the topics'
        // default is.
        ("flush.on.ack", "true".to_owned()),
    ];
    NewTopic {
        name: OFFSETS_TOPIC.to_owned(),
        placement: TopicPlacement::automatic(
            partitions,
            i16::try_from(wanted.min(brokers)).unwrap_or(1),
        ),
        configs: configs.into_iter().map(|(key, value)| (key.to_owned(), Some(value))).collect(),
    }
}

/// Answers DeleteTopics.
pub(crate) async fn delete(
    shared: Arc<Shared>,
    ctx: RequestContext,
    request: m::DeleteTopicsRequest,
) -> m::DeleteTopicsResponse {
    let by_name = request.topic_names.into_iter().map(|name| (Some(name), uuid::Uuid::nil()));
    let by_either = request.topics.into_iter().map(|topic| (topic.name, topic.topic_id));
    let asked: Vec<_> = if ctx.api_version >= 6 { by_either.collect() } else { by_name.collect() };
    let enabled = shared.config.is_true("delete.topic.enable");
    let selector = |(name, id): &(Option<m::TopicName>, uuid::Uuid)| match name {
        Some(name) => TopicSelector::Name(name.as_str().to_owned()),
        None => TopicSelector::Id(*id),
    };
    let image = shared.image();
    let mut answers = Vec::with_capacity(asked.len());
    let mut accepted = Vec::new();
    for (at, one) in asked.into_iter().enumerate() {
        let known = one
            .0
            .as_ref()
            .map(|name| name.as_str().to_owned())
            .or_else(|| image.topic_by_id(&one.1).map(|topic| topic.name.to_string()));
        let allowed =
            known.as_ref().is_none_or(|name| ctx.may(Operation::Delete, Resource::Topic(name)));
        let mut answer = DeletableTopicResult::default().with_topic_id(one.1);
        // As Kafka: which of the two is meant would be a guess.
        let unclear =
            (ctx.api_version >= 6 && one.0.is_some() != one.1.is_nil()).then(|| match &one.0 {
                Some(name) => {
                    format!("You may not specify both topic name {} and topic id.", name.as_str())
                }
                None => "Neither topic name nor id were specified.".to_owned(),
            });
        if let Some(message) = unclear {
            answer.error_code = ErrorCode::InvalidRequest as i16;
            answer.error_message = Some(text(&message));
        } else if !enabled {
            // Older versions know no such code (Kafka does the same).
            answer.error_code = if ctx.api_version < 3 {
                ErrorCode::InvalidRequest
            } else {
                ErrorCode::TopicDeletionDisabled
            } as i16;
            answer.error_message = Some(text("delete.topic.enable=false on this broker"));
        } else if allowed {
            accepted.push((at, selector(&one)));
        } else {
            answer.error_code = ErrorCode::TopicAuthorizationFailed as i16;
        }
        answer.name = one.0;
        answers.push(answer);
    }
    let (places, topics): (Vec<usize>, Vec<TopicSelector>) = accepted.into_iter().unzip();
    let changed =
        shared.change(DeleteTopics { topics }, show_within(request.timeout_ms, false)).await;
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
            Some(Err(error)) => {
                answer.error_code = error.code.code();
                answer.error_message = (!error.message.is_empty()).then(|| text(&error.message));
            }
            None => answer.error_code = ErrorCode::UnknownServerError as i16,
        }
        if ctx.api_version < 6 && answer.name.is_none() {
            answer.name = Some(m::TopicName::default());
        }
    }
    if is_late(&changed) {
        answers
            .iter_mut()
            .filter(|answer| answer.error_code == 0)
            .for_each(|answer| answer.error_code = TIMED_OUT);
    }
    m::DeleteTopicsResponse::default().with_responses(answers)
}

/// Answers CreatePartitions.
pub(crate) async fn grow(
    shared: Arc<Shared>,
    ctx: RequestContext,
    request: m::CreatePartitionsRequest,
) -> m::CreatePartitionsResponse {
    let mut answers = Vec::with_capacity(request.topics.len());
    let mut accepted = Vec::new();
    for (at, topic) in request.topics.into_iter().enumerate() {
        let name = topic.name.as_str().to_owned();
        let mut answer = CreatePartitionsTopicResult::default().with_name(topic.name);
        if ctx.may(Operation::Alter, Resource::Topic(&name)) {
            let assignments = topic.assignments.map(|all| {
                all.into_iter()
                    .map(|one| one.broker_ids.into_iter().map(|id| BrokerId(id.0)).collect())
                    .collect()
            });
            accepted.push((at, TopicGrowth { name, count: topic.count, assignments }));
        } else {
            answer.error_code = ErrorCode::TopicAuthorizationFailed as i16;
        }
        answers.push(answer);
    }
    let (places, topics): (Vec<usize>, Vec<TopicGrowth>) = accepted.into_iter().unzip();
    let show_within = show_within(request.timeout_ms, request.validate_only);
    let operation = CreatePartitions { topics, validate_only: request.validate_only };
    let changed = shared.change(operation, show_within).await;
    for (nth, at) in places.into_iter().enumerate() {
        let Some(answer) = answers.get_mut(at) else { continue };
        let result = match &changed {
            Ok(changed) => changed.outcome.get(nth).map_or(Ok(()), |(_, result)| result.clone()),
            Err(error) => Err(of_controller(error)),
        };
        if let Err(error) = result {
            answer.error_code = error.code.code();
            answer.error_message = (!error.message.is_empty()).then(|| text(&error.message));
        }
    }
    if !request.validate_only && is_late(&changed) {
        answers
            .iter_mut()
            .filter(|answer| answer.error_code == 0)
            .for_each(|answer| answer.error_code = TIMED_OUT);
    }
    m::CreatePartitionsResponse::default().with_results(answers)
}
