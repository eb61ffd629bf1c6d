//! DescribeConfigs 1–4, AlterConfigs 0–2, IncrementalAlterConfigs 0–1 and ListConfigResources 0–1,
//! for topics, brokers and groups.
//!
//! KIPs: 133, 226 (dynamic broker configurations, synonyms), 339 (incremental), 569 (types and
//! documentation), 848 (groups), 1142 (list). Not offered: log levels (BROKER_LOGGER), client
//! metrics (KIP-714).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages as m;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse as ReplacedResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::list_config_resources_response::ConfigResource as ListedResource;
use kafka_protocol::protocol::StrBytes;
use letterbox_env::Gather;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{BrokerId, ResourceType};

use super::{Errors, Services, errors, of_controller, text};
use crate::config::keys::{self, Effect, Kind};
use crate::config::topic::{self, TopicConfig, broker_keys, broker_value};
use crate::config::{Entry, Source, group};
use crate::controller::DECIDE_WITHIN;
use crate::metadata::decide::{
    AlterConfigs, ConfigOp, ConfigRules, ConfigScope, ResourceAlteration, validate_topic_name,
};
use crate::metadata::{ApiError, ConfigResource, Configs};
use crate::request::RequestContext;
use crate::security::{Operation, Resource};
use crate::server::changes::Within;

const TOPIC: i8 = ResourceType::Topic as i8;
const BROKER: i8 = ResourceType::Broker as i8;
const BROKER_LOGGER: i8 = ResourceType::BrokerLogger as i8;
const CLIENT_METRICS: i8 = ResourceType::ClientMetrics as i8;
const GROUP: i8 = ResourceType::Group as i8;

/// How long the answer to a change waits at most until the change can be seen.
const APPLIED_MAX: Duration = Duration::from_secs(15);

/// Kafka's numbers of types (KIP-569).
fn type_of(kind: Kind) -> i8 {
    match kind {
        Kind::Bool => 1,
        Kind::Text | Kind::Word(_) => 2,
        Kind::Int(..) | Kind::IntOr(..) => 3,
        Kind::Short(..) => 4,
        Kind::Long(..) => 5,
        Kind::Double(..) => 6,
        Kind::List | Kind::Words(_) | Kind::WordsOrNone(_) | Kind::Replicas => 7,
        Kind::Class => 8,
        Kind::Secret => 9,
    }
}

/// Answers DescribeConfigs. A resource that is asked for more than once is answered once.
pub(crate) fn describe(
    services: &Services,
    ctx: &RequestContext,
    request: m::DescribeConfigsRequest,
) -> m::DescribeConfigsResponse {
    let with =
        With { synonyms: request.include_synonyms, documentation: request.include_documentation };
    let one =
        |resource: m::describe_configs_request::DescribeConfigsResource| {
            let answer = DescribeConfigsResult::default()
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.resource_name.clone());
            let wanted: Option<BTreeSet<&str>> = resource
                .configuration_keys
                .as_ref()
                .map(|keys| keys.iter().map(|key| key.as_str()).gather());
            let is_wanted = |name: &str| {
                wanted.as_ref().is_none_or(|wanted| wanted.is_empty() || wanted.contains(name))
            };
            let name = resource.resource_name.as_str();
            let found = may(ctx, Operation::DescribeConfigs, resource.resource_type, name)
                .and_then(|()| match resource.resource_type {
                    TOPIC => topic_configs(services, name, with),
                    BROKER => broker_configs(services, name, with),
                    GROUP => group_configs(services, name, with),
                    other => Err(unsupported(other)),
                });
            match found {
                Ok(mut configs) => {
                    configs.retain(|config| is_wanted(config.name.as_str()));
                    answer.with_configs(configs)
                }
                Err((code, message)) => answer
                    .with_error_code(code as i16)
                    .with_error_message((!message.is_empty()).then(|| text(&message))),
            }
        };
    let mut seen = BTreeSet::new();
    let resources = request
        .resources
        .into_iter()
        .filter(|resource| seen.insert((resource.resource_type, resource.resource_name.clone())));
    m::DescribeConfigsResponse::default().with_results(resources.map(one).collect())
}

type Refusal = (ErrorCode, String);

/// A refusal that its code says all about.
fn refusal(code: ErrorCode) -> Refusal {
    (code, String::new())
}

fn unsupported(resource_type: i8) -> Refusal {
    let message = format!(
        "Unsupported resource type: {resource_type}; this version has TOPIC (2), BROKER (4) and \
         GROUP (32)"
    );
    (ErrorCode::InvalidRequest, message)
}

fn may(
    ctx: &RequestContext,
    operation: Operation,
    resource_type: i8,
    name: &str,
) -> Result<(), Refusal> {
    let resource = match resource_type {
        TOPIC => Resource::Topic(name),
        GROUP => Resource::Group(name),
        _ => Resource::Cluster,
    };
    ctx.check(operation, resource).map_err(refusal)
}

/// What an answer holds beside the values.
#[derive(Clone, Copy)]
struct With {
    synonyms: bool,
    documentation: bool,
}

impl With {
    /// `chain`: every value that the key has, the one that counts first.
    fn result(
        self,
        name: &str,
        kind: Kind,
        chain: &[Entry],
        read_only: bool,
        documentation: impl FnOnce() -> String,
    ) -> DescribeConfigsResourceResult {
        let (value, source) = chain
            .first()
            .map_or((None, Source::Default), |entry| (entry.value.as_deref(), entry.source));
        let is_secret = kind == Kind::Secret;
        let shown = |value: Option<&str>| {
            value.filter(|_| !is_secret).map(|value| text(&kind.shown(value)))
        };
        let synonym = |entry: &Entry| {
            DescribeConfigsSynonym::default()
                .with_name(text(entry.name))
                .with_value(shown(entry.value.as_deref()))
                .with_source(entry.source as i8)
        };
        DescribeConfigsResourceResult::default()
            .with_name(text(name))
            .with_value(shown(value))
            .with_read_only(read_only)
            .with_config_source(source as i8)
            .with_is_sensitive(is_secret)
            .with_config_type(type_of(kind))
            .with_synonyms(if self.synonyms {
                chain.iter().filter(|entry| entry.value.is_some()).map(synonym).collect()
            } else {
                Vec::new()
            })
            .with_documentation(self.documentation.then(|| text(&documentation())))
    }
}

fn topic_configs(
    services: &Services,
    name: &str,
    with: With,
) -> Result<Vec<DescribeConfigsResourceResult>, Refusal> {
    let image = services.image();
    let Some(topic) = image.topic(name) else {
        let code = if validate_topic_name(name).is_err() {
            ErrorCode::InvalidTopicException
        } else {
            ErrorCode::UnknownTopicOrPartition
        };
        return Err(refusal(code));
    };
    let one = |key: &topic::TopicKey| {
        let own = topic.configs.get(key.name).map(|value| Entry {
            name: key.name,
            value: Some(value.clone()),
            source: Source::Topic,
        });
        let inherited = broker_value(&services.config, key);
        let counts = own.as_ref().unwrap_or(&inherited).clone();
        let chain: Vec<Entry> = own
            .into_iter()
            .chain(
                broker_keys(key).into_iter().flat_map(|(name, _)| services.config.synonyms(name)),
            )
            .collect();
        // Hours and minutes are shown as they were set, and count in milliseconds.
        let documentation = || key.documentation();
        let value =
            with.result(key.name, key.kind, std::slice::from_ref(&counts), false, documentation);
        let synonyms = with.result(key.name, key.kind, &chain, false, String::new).synonyms;
        value.with_synonyms(synonyms)
    };
    Ok(topic::KEYS.iter().map(one).collect())
}

fn broker_configs(
    services: &Services,
    name: &str,
    with: With,
) -> Result<Vec<DescribeConfigsResourceResult>, Refusal> {
    match name.parse::<i32>().map(BrokerId) {
        Err(_) if name.is_empty() => return Ok(cluster_configs(services, with)),
        Ok(id) if id == services.config.node_id => {}
        Ok(id) => {
            return Err((
                ErrorCode::InvalidRequest,
                format!(
                    "Unexpected broker id, expected {} or empty string, but received {id}",
                    services.config.node_id
                ),
            ));
        }
        Err(_) => {
            return Err((
                ErrorCode::InvalidRequest,
                format!("Broker id must be an integer, but it is: {name}"),
            ));
        }
    }
    let one = |key: &keys::Key| {
        with.result(key.name, key.kind, &services.config.synonyms(key.name), !key.dynamic, || {
            key.documentation()
        })
    };
    Ok(keys::KEYS.iter().map(one).collect())
}

/// The defaults of all brokers: those that were set, and nothing else.
fn cluster_configs(services: &Services, with: With) -> Vec<DescribeConfigsResourceResult> {
    let image = services.image();
    let one = |(key, value): (&String, &String)| {
        let key = keys::find(key)?;
        let set =
            Entry { name: key.name, value: Some(value.clone()), source: Source::DynamicDefault };
        Some(with.result(key.name, key.kind, &[set], false, || key.documentation()))
    };
    image.cluster_configs.iter().filter_map(one).collect()
}

fn group_configs(
    services: &Services,
    name: &str,
    with: With,
) -> Result<Vec<DescribeConfigsResourceResult>, Refusal> {
    check_group(name)?;
    let image = services.image();
    let own = image.group_configs.get(name);
    let one = |key: &group::GroupKey| {
        let set = own.and_then(|own| own.get(key.name));
        let set = set.map(|value| Entry {
            name: key.name,
            value: Some(value.clone()),
            source: Source::Group,
        });
        let mut inherited = services.config.synonyms(key.synonym);
        if inherited.is_empty() {
            inherited.push(Entry {
                name: key.name,
                value: Some(key.default.to_owned()),
                source: Source::Default,
            });
        }
        let chain: Vec<Entry> = set.into_iter().chain(inherited).collect();
        with.result(key.name, key.kind, &chain, false, || group::NO_EFFECT.to_owned())
    };
    Ok(group::KEYS.iter().map(one).collect())
}

fn check_group(name: &str) -> Result<(), Refusal> {
    if name.is_empty() {
        Err((ErrorCode::InvalidRequest, "Group name must not be empty".to_owned()))
    } else {
        Ok(())
    }
}

/// One resource of a request that changes configurations.
struct Change {
    resource_type: i8,
    name: StrBytes,
    changes: Result<Vec<(String, ConfigOp)>, Refusal>,
}

/// Answers AlterConfigs, the old call: what is not in it goes back to what is inherited.
pub(crate) async fn replace(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::AlterConfigsRequest,
) -> m::AlterConfigsResponse {
    let set = |config: m::alter_configs_request::AlterableConfig| {
        (
            config.name.as_str().to_owned(),
            ConfigOp::Set(config.value.map(|value| value.as_str().to_owned())),
        )
    };
    let change = |resource: m::alter_configs_request::AlterConfigsResource| Change {
        resource_type: resource.resource_type,
        name: resource.resource_name,
        changes: Ok(resource.configs.into_iter().map(set).collect()),
    };
    let changed = change_all(
        &services,
        &ctx,
        request.resources.into_iter().map(change).collect(),
        true,
        request.validate_only,
    )
    .await;
    let answer = |(resource_type, name, result): (i8, StrBytes, Result<(), (i16, String)>)| {
        let answer =
            ReplacedResource::default().with_resource_type(resource_type).with_resource_name(name);
        match result {
            Ok(()) => answer,
            Err((code, message)) => {
                answer.with_error_code(code).with_error_message(Some(text(&message)))
            }
        }
    };
    m::AlterConfigsResponse::default().with_responses(changed.into_iter().map(answer).collect())
}

/// Answers IncrementalAlterConfigs.
pub(crate) async fn alter(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::IncrementalAlterConfigsRequest,
) -> m::IncrementalAlterConfigsResponse {
    let set = |config: m::incremental_alter_configs_request::AlterableConfig| {
        let value = config.value.map(|value| value.as_str().to_owned());
        let op = match config.config_operation {
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
        Ok((config.name.as_str().to_owned(), op))
    };
    let change = |resource: m::incremental_alter_configs_request::AlterConfigsResource| Change {
        resource_type: resource.resource_type,
        name: resource.resource_name,
        changes: resource.configs.into_iter().map(set).collect(),
    };
    let changed = change_all(
        &services,
        &ctx,
        request.resources.into_iter().map(change).collect(),
        false,
        request.validate_only,
    )
    .await;
    let answer = |(resource_type, name, result): (i8, StrBytes, Result<(), (i16, String)>)| {
        let answer = AlterConfigsResourceResponse::default()
            .with_resource_type(resource_type)
            .with_resource_name(name);
        match result {
            Ok(()) => answer,
            Err((code, message)) => {
                answer.with_error_code(code).with_error_message(Some(text(&message)))
            }
        }
    };
    m::IncrementalAlterConfigsResponse::default()
        .with_responses(changed.into_iter().map(answer).collect())
}

/// Changes what may be changed; the result of each resource in the order of `all`.
async fn change_all(
    services: &Services,
    ctx: &RequestContext,
    all: Vec<Change>,
    replace: bool,
    validate_only: bool,
) -> Vec<(i8, StrBytes, Result<(), (i16, String)>)> {
    let mut answers = Vec::with_capacity(all.len());
    let (mut places, mut resources) = (Vec::new(), Vec::new());
    for change in all {
        let (resource_type, name) = (change.resource_type, change.name.clone());
        let result = match checked(ctx, change, replace) {
            Ok(alteration) => {
                places.push(answers.len());
                resources.push(alteration);
                Ok(())
            }
            Err((code, message)) => Err((code as i16, message)),
        };
        answers.push((resource_type, name, result));
    }
    // Who asks next sees it; later than that it is seen all the same.
    let shown = if validate_only { Duration::ZERO } else { APPLIED_MAX };
    let within = Within { decided: DECIDE_WITHIN, shown };
    let changed = services.change(AlterConfigs { resources, validate_only }, within).await;
    for (nth, at) in places.into_iter().enumerate() {
        let result = match &changed {
            Ok(changed) => {
                let missing = || Err(ApiError::from(ErrorCode::UnknownServerError));
                changed.outcome.get(nth).map_or_else(missing, |(_, result)| result.clone())
            }
            Err(error) => Err(of_controller(error)),
        };
        if let (Err(error), Some((_, _, answer))) = (result, answers.get_mut(at)) {
            *answer = Err((error.code.code(), error.message));
        }
    }
    answers
}

fn checked(
    ctx: &RequestContext,
    change: Change,
    replace: bool,
) -> Result<ResourceAlteration, Refusal> {
    let name = change.name.as_str();
    may(ctx, Operation::AlterConfigs, change.resource_type, name)?;
    let changes = change.changes?;
    let resource = match change.resource_type {
        TOPIC if name.is_empty() => {
            return Err((
                ErrorCode::InvalidRequest,
                "Default topic resources are not allowed.".to_owned(),
            ));
        }
        GROUP if name.is_empty() => {
            return Err((
                ErrorCode::InvalidRequest,
                "Default group resources are not allowed.".to_owned(),
            ));
        }
        TOPIC => ConfigResource::Topic(name.to_owned()),
        BROKER => {
            let is_fixed = |key: &str| keys::find(key).is_some_and(|key| !key.dynamic);
            if let Some((key, _)) =
                changes.iter().find(|(key, op)| *op != ConfigOp::Delete && is_fixed(key))
            {
                let message = format!(
                    "Cannot update these configs dynamically: [{key}]; set it in the broker's \
                     properties file and restart"
                );
                return Err((ErrorCode::InvalidRequest, message));
            }
            if name.is_empty() {
                ConfigResource::Cluster
            } else {
                let id: i32 = name.parse().map_err(|_| {
                    (
                        ErrorCode::InvalidRequest,
                        format!("Broker id must be an integer, but it is: {name}"),
                    )
                })?;
                if id < 0 {
                    let message = "Invalid negative broker ID.".to_owned();
                    return Err((ErrorCode::InvalidRequest, message));
                }
                ConfigResource::Broker(BrokerId(id))
            }
        }
        GROUP => ConfigResource::Group(name.to_owned()),
        other => return Err(unsupported(other)),
    };
    Ok(ResourceAlteration { resource, changes, replace })
}

/// Answers ListConfigResources. Version 0 lists client metrics alone, of which there are none; nor
/// are there loggers, whose levels this version neither tells nor changes.
pub(crate) fn list(
    services: &Services,
    ctx: &RequestContext,
    request: &m::ListConfigResourcesRequest,
) -> m::ListConfigResourcesResponse {
    let answer = m::ListConfigResourcesResponse::default();
    let every = [TOPIC, BROKER, BROKER_LOGGER, CLIENT_METRICS, GROUP];
    let mut types: BTreeSet<i8> = request.resource_types.iter().copied().gather();
    if !types.iter().all(|kind| every.contains(kind)) {
        return answer.with_error_code(ErrorCode::UnsupportedVersion as i16);
    }
    match (ctx.api_version, types.is_empty()) {
        (0, _) => types = BTreeSet::from([CLIENT_METRICS]),
        (_, true) => types = every.into(),
        _ => {}
    }
    let image = services.image();
    let listed = |name: &str, kind: i8| {
        ListedResource::default().with_resource_name(text(name)).with_resource_type(kind)
    };
    let mut all = Vec::new();
    for kind in types {
        match kind {
            TOPIC => all.extend(image.topics().map(|topic| listed(&topic.name, kind))),
            BROKER => all.extend(image.brokers.keys().map(|id| listed(&id.to_string(), kind))),
            GROUP => all.extend(image.group_configs.keys().map(|group| listed(group, kind))),
            _ => {}
        }
    }
    answer.with_config_resources(all)
}

errors!(DescribeConfigsResponse, |all, each| {
    all.results.iter().for_each(|one| each(one.error_code));
});
errors!(AlterConfigsResponse, |all, each| {
    all.responses.iter().for_each(|one| each(one.error_code));
});
errors!(IncrementalAlterConfigsResponse, |all, each| {
    all.responses.iter().for_each(|one| each(one.error_code));
});
errors!(ListConfigResourcesResponse, |all, each| each(all.error_code));

/// The tables of this broker, as the controller asks them.
pub(crate) struct Rules {
    /// What topics inherit from.
    pub(crate) config: crate::config::Config,
}

impl ConfigRules for Rules {
    fn validate(&self, scope: ConfigScope, key: &str, value: Option<&str>) -> Result<(), String> {
        let Some(given) = value else { return Ok(()) };
        let invalid = |why: String| format!("Invalid value {given} for configuration {key}: {why}");
        match scope {
            ConfigScope::Topic => topic::check(key, value),
            ConfigScope::Group => {
                let row =
                    group::find(key).ok_or_else(|| format!("Unknown group config name: {key}"))?;
                row.kind.check(given).map_err(invalid)
            }
            ConfigScope::Broker | ConfigScope::Cluster => {
                let row =
                    keys::find(key).ok_or_else(|| format!("Unknown broker config name: {key}"))?;
                if !row.dynamic {
                    return Err(format!("Cannot update these configs dynamically: [{key}]"));
                }
                row.kind.check(given).map_err(invalid)?;
                if let Effect::None(reason) = row.effect {
                    tracing::warn!(key, "setting has no effect: {reason}");
                }
                Ok(())
            }
        }
    }

    fn validate_all(&self, scope: ConfigScope, configs: &Configs) -> Result<(), String> {
        match scope {
            ConfigScope::Topic => {
                let topic = TopicConfig::resolve(&self.config, configs);
                let (min, max) =
                    (topic.number("min.compaction.lag.ms"), topic.number("max.compaction.lag.ms"));
                if min > max {
                    return Err(format!(
                        "conflict topic config setting min.compaction.lag.ms ({min}) > \
                         max.compaction.lag.ms ({max})"
                    ));
                }
                Ok(())
            }
            ConfigScope::Broker => self.config.check_dynamic(Some(configs), None),
            ConfigScope::Cluster => self.config.check_dynamic(None, Some(configs)),
            ConfigScope::Group => group::KEYS.iter().try_for_each(|key| {
                let Some(value) =
                    configs.get(key.name).and_then(|value| value.trim().parse::<i64>().ok())
                else {
                    return Ok(());
                };
                match key.bounds {
                    (Some(min), _) if value < self.config.number(min) => {
                        Err(format!("{} must be greater than or equal to {min}", key.name))
                    }
                    (_, Some(max)) if value > self.config.number(max) => {
                        Err(format!("{} must be less than or equal to {max}", key.name))
                    }
                    _ => Ok(()),
                }
            }),
        }
    }

    fn balances_leaders_every(&self) -> Option<Duration> {
        let in_file = |key| self.config.in_file(key);
        let is_on = in_file("auto.leader.rebalance.enable").eq_ignore_ascii_case("true");
        let seconds = in_file("leader.imbalance.check.interval.seconds").parse();
        is_on.then(|| Duration::from_secs(seconds.unwrap_or(u64::MAX)))
    }

    fn may_be_unclean(&self) -> bool {
        self.config.is_true("unclean.leader.election.enable")
    }

    fn list_default(&self, scope: ConfigScope, key: &str) -> Option<String> {
        match scope {
            ConfigScope::Topic => {
                broker_value(&self.config, topic::find(key).filter(|row| row.kind.is_list())?).value
            }
            ConfigScope::Broker | ConfigScope::Cluster => {
                let row = keys::find(key).filter(|row| row.kind.is_list())?;
                Some(self.config.entry(row.name).value.unwrap_or_default())
            }
            ConfigScope::Group => None,
        }
    }
}
