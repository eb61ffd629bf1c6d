//! Changing dynamic configurations.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use letterbox_env::Gather;
use letterbox_protocol::{ErrorCode, STRING_MAX};
use serde::{Deserialize, Serialize};

use super::change::{Change, MIN_INSYNC, UNCLEAN, changed};
use super::{Context, Decide, Decision, Draft, ItemResult};
use crate::metadata::{
    ApiError, ConfigResource, Configs, MetadataImage, MetadataRecord, PartitionState, Topic,
};

/// Which table of keys a configuration belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConfigScope {
    /// Keys of topics.
    Topic,
    /// Keys of one broker.
    Broker,
    /// Defaults of all brokers.
    Cluster,
    /// Keys of groups.
    Group,
}

/// What the keys mean; implemented by the configuration tables.
pub trait ConfigRules: Send + Sync {
    /// Checks that `key` may be set in `scope` and that `value` is one of its values; `None` when
    /// the key is to be removed.
    ///
    /// # Errors
    /// A sentence for the client: what is wrong and what is allowed.
    fn validate(&self, scope: ConfigScope, key: &str, value: Option<&str>) -> Result<(), String>;

    /// Checks what is set in `scope` after a change as a whole.
    ///
    /// # Errors
    /// A sentence for the client: which values contradict one another.
    fn validate_all(&self, _scope: ConfigScope, _configs: &Configs) -> Result<(), String> {
        Ok(())
    }

    /// The inherited value of a key whose type is a list, comma separated; `None` when it is not a
    /// list. What is appended or subtracted starts from there when nothing is set.
    fn list_default(&self, scope: ConfigScope, key: &str) -> Option<String>;

    /// How often leads are given back to the preferred replicas that are in sync; `None` for never:
    /// `auto.leader.rebalance.enable` and `leader.imbalance.check.interval.seconds` in the file of
    /// the node that decides.
    fn balances_leaders_every(&self) -> Option<Duration> {
        None
    }

    /// Whether a replica may lead that is not known to have every committed record, where nothing
    /// is set for the topic or the cluster: `unclean.leader.election.enable` of the node that
    /// decides.
    fn may_be_unclean(&self) -> bool {
        false
    }
}

/// AlterConfigs and IncrementalAlterConfigs (KIP-339).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlterConfigs {
    /// What to change; a resource twice fails both.
    pub resources: Vec<ResourceAlteration>,
    /// Check everything, change nothing.
    pub validate_only: bool,
}

/// The changes to one resource, made together or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceAlteration {
    /// What they are made to.
    pub resource: ConfigResource,
    /// The changes; a key twice fails the resource.
    pub changes: Vec<(String, ConfigOp)>,
    /// Whether every key that is not among the changes goes back to what is inherited
    /// (AlterConfigs).
    pub replace: bool,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigOp {
    /// Set to the value. `None`: the client sent null, which is refused.
    Set(Option<String>),
    /// Back to what is inherited.
    Delete,
    /// Add the comma-separated values to a list, those that are not in it.
    Append(Option<String>),
    /// Take the comma-separated values out of a list.
    Subtract(Option<String>),
}

impl Decide for AlterConfigs {
    /// In the order of the request.
    type Outcome = Vec<(ConfigResource, ItemResult<()>)>;

    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome> {
        let mut draft = Draft::new(image);
        let mut times: BTreeMap<&ConfigResource, usize> = BTreeMap::new();
        for alteration in &self.resources {
            *times.entry(&alteration.resource).or_default() += 1;
        }
        let mut outcome = Vec::with_capacity(self.resources.len());
        for alteration in &self.resources {
            let result = if times.get(&alteration.resource).is_some_and(|times| *times > 1) {
                Err(ApiError::new(
                    ErrorCode::InvalidRequest,
                    "Each resource must appear at most once.",
                ))
            } else {
                alter(alteration, &mut draft, context)
            };
            outcome.push((alteration.resource.clone(), result));
        }
        let records = if self.validate_only { Vec::new() } else { draft.records };
        Decision { records, outcome }
    }
}

fn alter(
    alteration: &ResourceAlteration,
    draft: &mut Draft,
    context: &Context<'_>,
) -> ItemResult<()> {
    let resource = &alteration.resource;
    let Some(present) = draft.image.configs(resource) else {
        return Err(match resource {
            ConfigResource::Topic(name) => ApiError::new(
                ErrorCode::UnknownTopicOrPartition,
                format!("The topic '{name}' does not exist."),
            ),
            ConfigResource::Broker(id) => ApiError::new(
                ErrorCode::BrokerIdNotRegistered,
                format!("No broker with id {id} found."),
            ),
            ConfigResource::Cluster | ConfigResource::Group(_) => {
                ErrorCode::UnknownServerError.into()
            }
        });
    };
    let scope = match resource {
        ConfigResource::Topic(_) => ConfigScope::Topic,
        ConfigResource::Broker(_) => ConfigScope::Broker,
        ConfigResource::Cluster => ConfigScope::Cluster,
        ConfigResource::Group(_) => ConfigScope::Group,
    };
    let mut seen = BTreeSet::new();
    let mut records = Vec::new();
    let mut after = if alteration.replace { Configs::new() } else { present.clone() };
    for (key, op) in &alteration.changes {
        if !seen.insert(key) {
            let message = format!("Error due to duplicate config keys: {key}");
            return Err(ApiError::new(ErrorCode::InvalidRequest, message));
        }
        let value = changed_value(context, scope, present, key, op)?;
        check_config(context, scope, key, value.as_deref())?;
        match &value {
            Some(value) => after.insert(key.clone(), value.clone()),
            None => after.remove(key),
        };
    }
    let keys: BTreeSet<&String> = present.keys().chain(after.keys()).gather();
    for key in keys.into_iter().filter(|key| present.get(*key) != after.get(*key)) {
        records.push(MetadataRecord::config(resource, key, after.get(key).map(String::as_str)));
    }
    check_together(context, scope, &after)?;
    let differs = |key| present.get(key) != after.get(key);
    let moves_partitions = scope != ConfigScope::Group && (differs(MIN_INSYNC) || differs(UNCLEAN));
    draft.add(records)?;
    if moves_partitions {
        let changes = partition_changes(resource, &draft.image, context);
        draft.add(changes)?;
    }
    Ok(())
}

/// What changes for partitions when `min.insync.replicas` or `unclean.leader.election.enable` does:
/// nobody stays eligible where enough are in sync now, and somebody may lead where nobody did.
fn partition_changes(
    resource: &ConfigResource,
    image: &MetadataImage,
    context: &Context<'_>,
) -> Vec<MetadataRecord> {
    let change = |topic: &Topic, _: i32, state: &PartitionState| {
        let may_change = !state.elr.is_empty() || state.leader.is_none();
        may_change.then(|| Change::of(image, context.rules, topic, state).build()).flatten()
    };
    match resource {
        ConfigResource::Topic(name) => {
            changed(image.topic(name).into_iter().flat_map(Topic::all), change)
        }
        ConfigResource::Broker(id) => changed(image.partitions_of(*id), change),
        ConfigResource::Cluster => changed(image.topics().flat_map(Topic::all), change),
        ConfigResource::Group(_) => Vec::new(),
    }
}

/// What the key is set to afterwards; `None` when it is not set any more.
fn changed_value(
    context: &Context<'_>,
    scope: ConfigScope,
    present: &Configs,
    key: &str,
    op: &ConfigOp,
) -> ItemResult<Option<String>> {
    let (word, value) = match op {
        ConfigOp::Delete => return Ok(None),
        ConfigOp::Set(value) => ("SET", value),
        ConfigOp::Append(value) => ("APPEND", value),
        ConfigOp::Subtract(value) => ("SUBTRACT", value),
    };
    let Some(value) = value else {
        return Err(ApiError::new(
            ErrorCode::InvalidRequest,
            format!("Null value not supported for : {key}"),
        ));
    };
    if matches!(op, ConfigOp::Set(_)) {
        return Ok(Some(value.clone()));
    }
    let Some(inherited) = context.rules.list_default(scope, key) else {
        // A key that is not known at all is told as that, not as a wrong type.
        check_config(context, scope, key, Some(value))?;
        let message = format!("Can't {word} to key {key} because its type is not LIST.");
        return Err(ApiError::new(ErrorCode::InvalidConfig, message));
    };
    let mut list = items(present.get(key).unwrap_or(&inherited));
    let given = items(value);
    if value.trim().is_empty() && !list.is_empty() && matches!(op, ConfigOp::Append(_)) {
        let message = format!("There is nothing to append to {key}: its values must not be empty.");
        return Err(ApiError::new(ErrorCode::InvalidConfig, message));
    }
    if matches!(op, ConfigOp::Append(_)) {
        let mut known: BTreeSet<&str> = list.iter().copied().gather();
        list.extend(given.into_iter().filter(|item| known.insert(item)));
    } else {
        let given: BTreeSet<&str> = given.into_iter().gather();
        list.retain(|item| !given.contains(item));
    }
    let list = list.join(",");
    if list.len() > STRING_MAX {
        let message = format!("The list of {key} is longer than {STRING_MAX} bytes.");
        return Err(ApiError::new(ErrorCode::InvalidConfig, message));
    }
    Ok(Some(list))
}

fn items(list: &str) -> Vec<&str> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()
}

pub(super) fn check_together(
    context: &Context<'_>,
    scope: ConfigScope,
    configs: &Configs,
) -> ItemResult<()> {
    context
        .rules
        .validate_all(scope, configs)
        .map_err(|message| ApiError::new(ErrorCode::InvalidConfig, message))
}

pub(super) fn check_config(
    context: &Context<'_>,
    scope: ConfigScope,
    key: &str,
    value: Option<&str>,
) -> ItemResult<()> {
    context
        .rules
        .validate(scope, key, value)
        .map_err(|message| ApiError::new(ErrorCode::InvalidConfig, message))
}
