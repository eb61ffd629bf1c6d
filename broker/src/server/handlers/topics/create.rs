//! CreateTopics 2–7, and the making of topics that clients or the broker itself need.
//!
//! KIPs: 4, 464 (defaults), 516 (topic ids), 525 (configurations in the answer), 599 (quota: none
//! is enforced).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages as m;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{
    CreatableTopicConfigs, CreatableTopicResult,
};
use letterbox_env::Gather;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;

use super::{Errors, Services, TIMED_OUT, errors, is_late, message, of_controller, text};
use crate::config::{Source, topic};
use crate::coordinator::GROUP_METADATA_TOPIC;
use crate::metadata::ApiError;
use crate::metadata::decide::{
    CreateTopics, CreatedTopic, NewTopic, TopicPlacement, is_internal_topic,
};
use crate::request::RequestContext;
use crate::security::{Operation, Resource};
use crate::server::changes::Within;

/// For a topic that a client asks for by name. It asks again, and others wait behind its request on
/// the same connection, so that it is answered soon when there is no majority: with
/// UNKNOWN_TOPIC_OR_PARTITION, as Kafka does at once.
const FOR_CLIENT: Within =
    Within { decided: Duration::from_secs(5), shown: Duration::from_secs(10) };
/// For a topic that the broker is to have from its start on.
const FROM_START: Within =
    Within { decided: Duration::from_secs(30), shown: Duration::from_secs(30) };

/// Answers CreateTopics.
pub(crate) async fn create(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::CreateTopicsRequest,
) -> m::CreateTopicsResponse {
    let mut answers: Vec<CreatableTopicResult> = Vec::with_capacity(request.topics.len());
    let mut accepted = Vec::new();
    let may_all = ctx.may(Operation::Create, Resource::Cluster);
    for (at, topic) in request.topics.into_iter().enumerate() {
        let name = topic.name.as_str().to_owned();
        answers.push(
            CreatableTopicResult::default()
                .with_name(topic.name.clone())
                .with_num_partitions(-1)
                .with_replication_factor(-1),
        );
        if !may_all && let Err(error) = ctx.check(Operation::Create, Resource::Topic(&name)) {
            refuse(answers.last_mut(), &ApiError::from(error));
            continue;
        }
        accepted.push((at, new_topic(name, topic)));
    }
    let (places, topics): (Vec<usize>, Vec<NewTopic>) = accepted.into_iter().unzip();
    let within = Within::asked(request.timeout_ms, request.validate_only);
    let operation = create_operation(&services, topics, request.validate_only);
    let changed = services.change(operation, within).await;
    for (nth, at) in places.into_iter().enumerate() {
        let Some(answer) = answers.get_mut(at) else { continue };
        match &changed {
            Ok(changed) => match changed.outcome.get(nth).map(|(_, result)| result) {
                Some(Ok(created)) => tell_created(&services, &ctx, answer, created),
                Some(Err(error)) => refuse(Some(answer), error),
                None => refuse(Some(answer), &ApiError::from(ErrorCode::UnknownServerError)),
            },
            Err(error) => refuse(Some(answer), &of_controller(error)),
        }
    }
    if !request.validate_only && is_late(&changed) {
        let done = answers.iter_mut().filter(|answer| answer.error_code == 0);
        done.for_each(|answer| answer.error_code = TIMED_OUT);
    }
    // As in Kafka, a topic is answered once, however often it is named.
    let mut told = BTreeSet::new();
    answers.retain(|answer| told.insert(answer.name.clone()));
    m::CreateTopicsResponse::default().with_topics(answers)
}

fn new_topic(name: String, topic: CreatableTopic) -> NewTopic {
    let ids = |ids: Vec<m::BrokerId>| ids.into_iter().map(|id| BrokerId(id.0)).collect();
    let assignments = topic.assignments.into_iter();
    let placement = TopicPlacement {
        num_partitions: topic.num_partitions,
        replication_factor: topic.replication_factor,
        assignments: assignments.map(|one| (one.partition_index, ids(one.broker_ids))).collect(),
    };
    let configs = topic.configs.into_iter().map(|config| {
        (config.name.as_str().to_owned(), config.value.map(|value| value.as_str().to_owned()))
    });
    NewTopic { name, placement, configs: configs.gather() }
}

/// What was made, as far as the caller may see it.
fn tell_created(
    services: &Services,
    ctx: &RequestContext,
    answer: &mut CreatableTopicResult,
    created: &CreatedTopic,
) {
    answer.topic_id = created.id;
    let shown = ctx.check(Operation::DescribeConfigs, Resource::Topic(answer.name.as_str()));
    match shown {
        Ok(()) => {
            answer.num_partitions = created.num_partitions;
            answer.replication_factor = created.replication_factor;
            answer.configs = Some(created_configs(services, &created.configs));
        }
        Err(error) => answer.topic_config_error_code = error.code(),
    }
}

fn refuse(answer: Option<&mut CreatableTopicResult>, error: &ApiError) {
    if let Some(answer) = answer {
        answer.error_code = error.code.code();
        answer.error_message = message(error);
    }
}

fn created_configs(
    services: &Services,
    set: &BTreeMap<String, String>,
) -> Vec<CreatableTopicConfigs> {
    let one = |key: &topic::TopicKey| {
        let inherited = topic::broker_value(&services.config, key);
        let source = if set.contains_key(key.name) { Source::Topic } else { inherited.source };
        let value = set.get(key.name).cloned().or(inherited.value);
        CreatableTopicConfigs::default()
            .with_name(text(key.name))
            .with_value(value.as_deref().map(text))
            .with_config_source(source as i8)
    };
    topic::KEYS.iter().map(one).collect()
}

fn create_operation(
    services: &Services,
    topics: Vec<NewTopic>,
    validate_only: bool,
) -> CreateTopics {
    CreateTopics {
        topics,
        validate_only,
        default_partitions: i32::try_from(services.config.number("num.partitions")).unwrap_or(1),
        default_replication_factor: i16::try_from(
            services.config.number("default.replication.factor"),
        )
        .unwrap_or(1),
    }
}

/// Makes topics with the broker's defaults because a client asked for them by name;
/// `__consumer_offsets` gets its own settings. Answers the errors by name; a topic that somebody
/// else made meanwhile is no error.
pub(crate) async fn auto_create(
    services: &Arc<Services>,
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
        internal
            .iter()
            .filter(|name| &***name == GROUP_METADATA_TOPIC)
            .map(|_| offsets_topic(services)),
    );
    // A client that does not find it yet asks again.
    match services.change(create_operation(services, topics, false), FOR_CLIENT).await {
        Ok(changed) => changed
            .outcome
            .into_iter()
            .filter_map(|(name, result)| {
                let code = result.err()?.code;
                (code != ErrorCode::TopicAlreadyExists).then_some((name, code))
            })
            .gather(),
        // Not answered now; the client asks again.
        Err(_) => ordinary
            .iter()
            .chain(&internal)
            .map(|name| (name.to_string(), ErrorCode::UnknownTopicOrPartition))
            .gather(),
    }
}

/// Makes one topic as asked unless it is there.
///
/// # Errors
/// Why it cannot be made.
pub(crate) async fn ensure(
    services: &Services,
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
    let changed = services
        .change(create_operation(services, vec![topic], false), FROM_START)
        .await
        .map_err(|error| error.to_string())?;
    if !changed.is_shown {
        return Err(format!("the log of {name} was not opened within {:?}", FROM_START.shown));
    }
    match changed.outcome.into_iter().next() {
        Some((_, Err(error))) if error.code != ErrorCode::TopicAlreadyExists => Err(error.message),
        _ => Ok(()),
    }
}

fn offsets_topic(services: &Services) -> NewTopic {
    // A broker alone has one, whatever Kafka's default says; where some are down the topic has to
    // wait for them, or it would have too few for ever.
    let voters = services.config.voters.len().max(services.quorum.status().voters.len());
    let brokers = voters.max(1);
    let wanted =
        usize::try_from(services.config.number("offsets.topic.replication.factor")).unwrap_or(1);
    let partitions =
        i32::try_from(services.config.number("offsets.topic.num.partitions")).unwrap_or(50);
    let configs = [
        ("cleanup.policy", "compact".to_owned()),
        ("compression.type", "producer".to_owned()),
        (
            "segment.bytes",
            services.config.number("offsets.topic.segment.bytes").max(1_048_576).to_string(),
        ),
        // Committed offsets are on the disk before they are acknowledged, whatever the topics'
        // default is.
        ("flush.on.ack", "true".to_owned()),
    ];
    NewTopic {
        name: GROUP_METADATA_TOPIC.to_owned(),
        placement: TopicPlacement::automatic(
            partitions,
            i16::try_from(wanted.min(brokers)).unwrap_or(1),
        ),
        configs: configs.into_iter().map(|(key, value)| (key.to_owned(), Some(value))).gather(),
    }
}

errors!(CreateTopicsResponse, |all, each| all.topics.iter().for_each(|one| each(one.error_code)));
