//! DescribeConfigs 1–4 and IncrementalAlterConfigs 0–1, for topics and brokers.
//!
//! KIPs: 226 (synonyms), 339 (incremental), 569 (types and documentation). Broker configuration cannot be
//! changed while the broker runs in this version: every broker key is read-only.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages as m;
use kafka_protocol::messages::describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym};
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;

use super::{Shared, of_controller, text};
use crate::config::Entry;
use crate::config::keys::{self, Kind};
use crate::config::topic::{self, TopicConfig, broker_keys, broker_value};
use crate::metadata::controller::{AlterConfigs, ConfigOp, ConfigRules, ConfigScope, ResourceAlteration, validate_topic_name};
use crate::metadata::{ConfigResource, Configs};
use crate::model::BrokerId;
use crate::server::context::{Operation, RequestContext, Resource};
use crate::wire::ErrorCode;

const TOPIC: i8 = 2;
const BROKER: i8 = 4;

/// Where a value comes from; Kafka's numbers.
#[derive(Clone, Copy, PartialEq)]
#[repr(i8)]
enum Source {
    Topic = 1,
    StaticBroker = 4,
    Default = 5,
}

impl Source {
    fn of(entry: &Entry) -> Self {
        if entry.is_set { Self::StaticBroker } else { Self::Default }
    }
}

/// Kafka's numbers of types (KIP-569).
fn type_of(kind: Kind) -> i8 {
    match kind {
        Kind::Bool => 1,
        Kind::Text | Kind::Word(_) => 2,
        Kind::Int(_, max) if max <= i64::from(i16::MAX) => 4,
        Kind::Int(_, max) if max <= i64::from(i32::MAX) => 3,
        Kind::Int(..) => 5,
        Kind::Double(..) => 6,
        Kind::List | Kind::Words(_) => 7,
    }
}

/// Answers DescribeConfigs.
pub(crate) fn describe(shared: &Shared, ctx: &RequestContext, request: m::DescribeConfigsRequest) -> m::DescribeConfigsResponse {
    let (synonyms, documentation) = (request.include_synonyms, request.include_documentation);
    let one = |resource: m::describe_configs_request::DescribeConfigsResource| {
        let answer =
            DescribeConfigsResult::default().with_resource_type(resource.resource_type).with_resource_name(resource.resource_name.clone());
        let wanted: Option<BTreeSet<&str>> = resource.configuration_keys.as_ref().map(|keys| keys.iter().map(|key| key.as_str()).collect());
        let is_wanted = |name: &str| wanted.as_ref().is_none_or(|wanted| wanted.is_empty() || wanted.contains(name));
        let name = resource.resource_name.as_str();
        let found = match resource.resource_type {
            TOPIC if ctx.may(Operation::DescribeConfigs, Resource::Topic(name)) => topic_configs(shared, name, synonyms, documentation),
            BROKER if ctx.may(Operation::DescribeConfigs, Resource::Cluster) => broker_configs(shared, name, synonyms, documentation),
            TOPIC => Err(ErrorCode::TopicAuthorizationFailed.into()),
            BROKER => Err(ErrorCode::ClusterAuthorizationFailed.into()),
            other => {
                Err((ErrorCode::InvalidRequest, format!("Unsupported resource type: {other}; TOPIC (2) and BROKER (4) can be described")))
            }
        };
        match found {
            Ok(mut configs) => {
                configs.retain(|config| is_wanted(config.name.as_str()));
                answer.with_configs(configs)
            }
            Err((code, message)) => answer.with_error_code(code as i16).with_error_message((!message.is_empty()).then(|| text(&message))),
        }
    };
    m::DescribeConfigsResponse::default().with_results(request.resources.into_iter().map(one).collect())
}

type Refusal = (ErrorCode, String);

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Self {
        (code, String::new())
    }
}

fn topic_configs(shared: &Shared, name: &str, synonyms: bool, documentation: bool) -> Result<Vec<DescribeConfigsResourceResult>, Refusal> {
    let image = shared.image();
    let Some(topic) = image.topic(name) else {
        let code = if validate_topic_name(name).is_err() { ErrorCode::InvalidTopicException } else { ErrorCode::UnknownTopicOrPartition };
        return Err(code.into());
    };
    let one = |key: &topic::TopicKey| {
        let broker = broker_value(&shared.config, key);
        let set = topic.configs.get(key.name);
        let source = if set.is_some() { Source::Topic } else { Source::of(&broker) };
        let value = set.cloned().or_else(|| broker.value.clone());
        let mut chain = Vec::new();
        if let Some(value) = set {
            chain.push(synonym(key.name, Some(value), Source::Topic));
        }
        chain.extend(broker_keys(key).into_iter().flat_map(|(name, _)| broker_chain(&shared.config.entry(name))));
        result(key.name, key.kind, value, source, false)
            .with_synonyms(if synonyms { chain } else { Vec::new() })
            .with_documentation(documentation.then(|| text(keys::find(key.synonym).map_or("", |row| row.help))))
    };
    Ok(topic::KEYS.iter().map(one).collect())
}

fn broker_configs(shared: &Shared, name: &str, synonyms: bool, documentation: bool) -> Result<Vec<DescribeConfigsResourceResult>, Refusal> {
    match name.parse::<i32>().map(BrokerId) {
        // The defaults of all brokers: nothing can be set there, so there is nothing to show.
        Err(_) if name.is_empty() => return Ok(Vec::new()),
        Ok(id) if id == shared.config.node_id => {}
        Ok(id) => {
            return Err((
                ErrorCode::InvalidRequest,
                format!("Unexpected broker id, expected {} or empty string, but received {id}", shared.config.node_id),
            ));
        }
        Err(_) => return Err((ErrorCode::InvalidRequest, format!("Broker id must be an integer, but it is: {name}"))),
    }
    let one = |key: &keys::Key| {
        let entry = shared.config.entry(key.name);
        result(key.name, key.kind, entry.value.clone(), Source::of(&entry), true)
            .with_synonyms(if synonyms { broker_chain(&entry) } else { Vec::new() })
            .with_documentation(documentation.then(|| text(key.help)))
    };
    Ok(keys::KEYS.iter().map(one).collect())
}

fn result(name: &str, kind: Kind, value: Option<String>, source: Source, read_only: bool) -> DescribeConfigsResourceResult {
    DescribeConfigsResourceResult::default()
        .with_name(text(name))
        .with_value(value.as_deref().map(text))
        .with_read_only(read_only)
        .with_config_source(source as i8)
        .with_is_sensitive(false)
        .with_config_type(type_of(kind))
}

fn synonym(name: &str, value: Option<&str>, source: Source) -> DescribeConfigsSynonym {
    DescribeConfigsSynonym::default().with_name(text(name)).with_value(value.map(text)).with_source(source as i8)
}

fn broker_chain(entry: &Entry) -> Vec<DescribeConfigsSynonym> {
    let default = keys::find(entry.name).and_then(|key| key.default);
    let mut chain = Vec::new();
    if entry.is_set {
        chain.push(synonym(entry.name, entry.value.as_deref(), Source::StaticBroker));
    }
    if let Some(default) = default {
        chain.push(synonym(entry.name, Some(default), Source::Default));
    }
    chain
}

/// Answers IncrementalAlterConfigs.
pub(crate) async fn alter(
    shared: Arc<Shared>,
    ctx: RequestContext,
    request: m::IncrementalAlterConfigsRequest,
) -> m::IncrementalAlterConfigsResponse {
    let mut answers: Vec<AlterConfigsResourceResponse> = Vec::with_capacity(request.resources.len());
    let mut accepted = Vec::new();
    for (at, resource) in request.resources.into_iter().enumerate() {
        let answer = AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        let name = resource.resource_name.as_str();
        let checked = match resource.resource_type {
            TOPIC if ctx.may(Operation::AlterConfigs, Resource::Topic(name)) => Ok(ConfigResource::Topic(name.to_owned())),
            TOPIC => Err(ErrorCode::TopicAuthorizationFailed.into()),
            BROKER if !ctx.may(Operation::AlterConfigs, Resource::Cluster) => Err(ErrorCode::ClusterAuthorizationFailed.into()),
            BROKER if name.is_empty() => Ok(ConfigResource::Cluster),
            BROKER => name
                .parse()
                .map(|id| ConfigResource::Broker(BrokerId(id)))
                .map_err(|_| (ErrorCode::InvalidRequest, format!("Broker id must be an integer, but it is: {name}"))),
            other => {
                Err((ErrorCode::InvalidRequest, format!("Unsupported resource type: {other}; TOPIC (2) and BROKER (4) can be altered")))
            }
        };
        let checked = checked.and_then(|of| {
            let changes = resource.configs.into_iter().map(|config| {
                let value = config.value.map(|value| value.as_str().to_owned());
                let change = match config.config_operation {
                    0 => ConfigOp::Set(value),
                    1 => ConfigOp::Delete,
                    2 => ConfigOp::Append(value),
                    3 => ConfigOp::Subtract(value),
                    other => {
                        return Err((
                            ErrorCode::InvalidRequest,
                            format!("Unknown operation type {other} for config {}", config.name.as_str()),
                        ));
                    }
                };
                Ok((config.name.as_str().to_owned(), change))
            });
            Ok(ResourceAlteration { resource: of, changes: changes.collect::<Result<_, Refusal>>()? })
        });
        answers.push(match checked {
            Ok(alteration) => {
                accepted.push((at, alteration));
                answer
            }
            Err((code, message)) => answer.with_error_code(code as i16).with_error_message(Some(text(&message))),
        });
    }
    let (places, resources): (Vec<usize>, Vec<ResourceAlteration>) = accepted.into_iter().unzip();
    let outcome = shared.controller.run(AlterConfigs { resources, validate_only: request.validate_only }).await;
    for (nth, at) in places.into_iter().enumerate() {
        let result = match &outcome {
            Ok(outcome) => outcome.get(nth).map_or(Ok(()), |(_, result)| result.clone()),
            Err(error) => Err(of_controller(error)),
        };
        if let (Err(error), Some(answer)) = (result, answers.get_mut(at)) {
            answer.error_code = error.code.code();
            answer.error_message = Some(text(&error.message));
        }
    }
    m::IncrementalAlterConfigsResponse::default().with_responses(answers)
}

/// The tables of this broker, as the controller asks them.
pub(crate) struct Rules {
    /// What topics inherit from.
    pub(crate) config: crate::config::Config,
}

impl ConfigRules for Rules {
    fn validate(&self, scope: ConfigScope, key: &str, value: Option<&str>) -> Result<(), String> {
        match scope {
            ConfigScope::Topic => topic::check(key, value),
            ConfigScope::Broker | ConfigScope::Cluster => Err(match keys::find(key) {
                Some(_) => format!("Cannot update these configs dynamically: {key}; set it in the broker's properties file and restart"),
                None => format!("Unknown broker config name: {key}"),
            }),
        }
    }

    fn validate_all(&self, scope: ConfigScope, configs: &Configs) -> Result<(), String> {
        if scope != ConfigScope::Topic {
            return Ok(());
        }
        let topic = TopicConfig::resolve(&self.config, configs);
        let (min, max) = (topic.number("min.compaction.lag.ms"), topic.number("max.compaction.lag.ms"));
        if min > max {
            return Err(format!("conflict topic config setting min.compaction.lag.ms ({min}) > max.compaction.lag.ms ({max})"));
        }
        Ok(())
    }

    fn list_default(&self, scope: ConfigScope, key: &str) -> Option<String> {
        let row = topic::find(key).filter(|row| scope == ConfigScope::Topic && matches!(row.kind, Kind::List | Kind::Words(_)))?;
        broker_value(&self.config, row).value
    }
}
