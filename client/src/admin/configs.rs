//! Dynamic configuration of topics, brokers and groups.

use std::collections::BTreeMap;

use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::{
    DescribeConfigsRequest, IncrementalAlterConfigsRequest, ListConfigResourcesRequest,
};

use letterbox_protocol::model::ResourceType;

use crate::client::{Client, Lane, text};
use crate::error::{BrokerError, Error};

/// One configured thing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigResource {
    /// What kind of thing.
    pub kind: ResourceType,
    /// Its name.
    pub name: String,
}

impl ConfigResource {
    /// The configuration of topic `name`.
    #[must_use]
    pub fn topic(name: impl Into<String>) -> Self {
        Self { kind: ResourceType::Topic, name: name.into() }
    }

    /// The configuration of broker `id`.
    #[must_use]
    pub fn broker(id: i32) -> Self {
        Self { kind: ResourceType::Broker, name: id.to_string() }
    }

    /// The default configuration of all brokers.
    #[must_use]
    pub fn all_brokers() -> Self {
        Self { kind: ResourceType::Broker, name: String::new() }
    }
}

/// Where a value comes from; the number is the protocol's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigSource(pub i8);

#[allow(missing_docs, reason = "named as in Kafka's protocol")]
impl ConfigSource {
    pub const DYNAMIC_TOPIC_CONFIG: Self = Self(1);
    pub const DYNAMIC_BROKER_CONFIG: Self = Self(2);
    pub const DYNAMIC_DEFAULT_BROKER_CONFIG: Self = Self(3);
    pub const STATIC_BROKER_CONFIG: Self = Self(4);
    pub const DEFAULT_CONFIG: Self = Self(5);
    pub const DYNAMIC_BROKER_LOGGER_CONFIG: Self = Self(6);
    pub const DYNAMIC_CLIENT_METRICS_CONFIG: Self = Self(7);
    pub const DYNAMIC_GROUP_CONFIG: Self = Self(8);

    /// The name that Kafka's tools print.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            1 => "DYNAMIC_TOPIC_CONFIG",
            2 => "DYNAMIC_BROKER_CONFIG",
            3 => "DYNAMIC_DEFAULT_BROKER_CONFIG",
            4 => "STATIC_BROKER_CONFIG",
            5 => "DEFAULT_CONFIG",
            6 => "DYNAMIC_BROKER_LOGGER_CONFIG",
            7 => "DYNAMIC_CLIENT_METRICS_CONFIG",
            8 => "DYNAMIC_GROUP_CONFIG",
            _ => "UNKNOWN",
        }
    }
}

/// A value that would apply if the ones before it were not set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSynonym {
    /// Its key, which may be another than the entry's (`log.retention.ms` for `retention.ms`).
    pub name: String,
    /// Its value; `None` when unset or sensitive.
    pub value: Option<String>,
    /// Where it comes from.
    pub source: ConfigSource,
}

/// One key of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigEntry {
    /// The key.
    pub name: String,
    /// The value in effect; `None` when unset or sensitive.
    pub value: Option<String>,
    /// Where the value comes from.
    pub source: ConfigSource,
    /// Whether it cannot be altered while the broker runs.
    pub read_only: bool,
    /// Whether its value is kept secret.
    pub sensitive: bool,
    /// All values by precedence; the first is in effect.
    pub synonyms: Vec<ConfigSynonym>,
}

/// The entries of one resource in the broker's order.
pub type TopicConfigs = Vec<ConfigEntry>;

/// What to do with one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AlterOp {
    /// Sets the value.
    Set(String),
    /// Goes back to the default.
    Delete,
    /// Adds to a list.
    Append(String),
    /// Takes out of a list.
    Subtract(String),
}

impl Client {
    /// The configuration of each resource, with `keys` only these.
    ///
    /// # Errors
    /// Per resource in the map: the broker's refusal. As a whole: when no broker answers in time.
    pub async fn describe_configs(
        &self,
        resources: &[ConfigResource],
        keys: Option<&[String]>,
        synonyms: bool,
    ) -> Result<BTreeMap<ConfigResource, Result<TopicConfigs, BrokerError>>, Error> {
        let mut described = BTreeMap::new();
        for (node, resources) in by_node(resources) {
            let wanted = resources.iter().map(|resource| {
                let keys = keys.map(|keys| keys.iter().map(|key| text(key)).collect());
                let wanted =
                    DescribeConfigsResource::default().with_resource_type(resource.kind as i8);
                wanted.with_resource_name(text(&resource.name)).with_configuration_keys(keys)
            });
            let request = DescribeConfigsRequest::default()
                .with_resources(wanted.collect())
                .with_include_synonyms(synonyms);
            let response = self.call_configured(node, &request).await?;
            for result in &response.results {
                let Some(resource) = resources.iter().find(|r| {
                    r.kind as i8 == result.resource_type && *r.name == *result.resource_name
                }) else {
                    continue;
                };
                let entries = result.configs.iter().map(|config| ConfigEntry {
                    name: config.name.to_string(),
                    value: config.value.as_ref().map(|value| value.to_string()),
                    source: ConfigSource(config.config_source),
                    read_only: config.read_only,
                    sensitive: config.is_sensitive,
                    synonyms: config.synonyms.iter().map(synonym).collect(),
                });
                let outcome =
                    BrokerError::check(result.error_code, result.error_message.as_deref())
                        .map(|()| entries.collect());
                described.insert((*resource).clone(), outcome);
            }
        }
        Ok(described)
    }

    /// Alters the keys of each resource; with `validate_only` only says whether they could be.
    ///
    /// # Errors
    /// Per resource in the map: the broker's refusal; then none of its keys is altered. As a whole:
    /// when no broker answers in time.
    pub async fn incremental_alter_configs(
        &self,
        changes: &BTreeMap<ConfigResource, Vec<(String, AlterOp)>>,
        validate_only: bool,
    ) -> Result<BTreeMap<ConfigResource, Result<(), BrokerError>>, Error> {
        let mut outcomes = BTreeMap::new();
        let resources: Vec<ConfigResource> = changes.keys().cloned().collect();
        for (node, resources) in by_node(&resources) {
            let wanted = resources.iter().map(|resource| {
                let configs = changes
                    .get(*resource)
                    .into_iter()
                    .flatten()
                    .map(|(name, op)| alterable(name, op));
                let wanted =
                    AlterConfigsResource::default().with_resource_type(resource.kind as i8);
                wanted.with_resource_name(text(&resource.name)).with_configs(configs.collect())
            });
            let request = IncrementalAlterConfigsRequest::default()
                .with_resources(wanted.collect())
                .with_validate_only(validate_only);
            let response = self.call_configured(node, &request).await?;
            for result in &response.responses {
                let found = resources.iter().find(|r| {
                    r.kind as i8 == result.resource_type && *r.name == *result.resource_name
                });
                if let Some(resource) = found {
                    outcomes.insert(
                        (*resource).clone(),
                        BrokerError::check(result.error_code, result.error_message.as_deref()),
                    );
                }
            }
        }
        Ok(outcomes)
    }

    /// The names of the resources of `kind` that have a configuration of their own (KIP-1142).
    ///
    /// # Errors
    /// When no broker answers in time, or it refuses; [`Error::Unsupported`] from brokers that list
    /// client metrics only.
    pub async fn list_config_resources(&self, kind: ResourceType) -> Result<Vec<String>, Error> {
        let deadline = self.api_deadline();
        let response = self
            .retrying(deadline, async || {
                let connection = self.any().await?;
                let version = connection.version_of::<ListConfigResourcesRequest>(i16::MAX)?;
                if version < 1 {
                    let (ours, theirs) = ("1 at least".to_owned(), version.to_string());
                    return Err(Error::Unsupported {
                        address: connection.address().to_owned(),
                        api: "ListConfigResources".to_owned(),
                        ours,
                        theirs,
                    });
                }
                let request =
                    ListConfigResourcesRequest::default().with_resource_types(vec![kind as i8]);
                connection.call(&request, version, self.request_deadline(deadline)).await
            })
            .await?;
        BrokerError::check(response.error_code, None)?;
        let of_kind = response
            .config_resources
            .iter()
            .filter(|resource| resource.resource_type == kind as i8);
        Ok(of_kind.map(|resource| resource.resource_name.to_string()).collect())
    }

    async fn call_configured<R: kafka_protocol::protocol::Request>(
        &self,
        node: Option<i32>,
        request: &R,
    ) -> Result<R::Response, Error> {
        let deadline = self.api_deadline();
        match node {
            None => self.call_any(request, i16::MAX, deadline).await,
            Some(id) => {
                self.retrying(deadline, async || {
                    self.call_node(id, Lane::Main, request, deadline).await
                })
                .await
            }
        }
    }
}

/// A broker answers for its own configuration only; everything else any broker answers.
fn by_node(resources: &[ConfigResource]) -> BTreeMap<Option<i32>, Vec<&ConfigResource>> {
    let mut nodes: BTreeMap<Option<i32>, Vec<&ConfigResource>> = BTreeMap::new();
    for resource in resources {
        let own = matches!(resource.kind, ResourceType::Broker | ResourceType::BrokerLogger);
        let node = if own { resource.name.parse().ok() } else { None };
        nodes.entry(node).or_default().push(resource);
    }
    nodes
}

fn alterable(name: &str, op: &AlterOp) -> AlterableConfig {
    let (code, value) = match op {
        AlterOp::Set(value) => (0, Some(value)),
        AlterOp::Delete => (1, None),
        AlterOp::Append(value) => (2, Some(value)),
        AlterOp::Subtract(value) => (3, Some(value)),
    };
    AlterableConfig::default()
        .with_name(text(name))
        .with_config_operation(code)
        .with_value(value.map(|value| text(value)))
}

fn synonym(
    synonym: &kafka_protocol::messages::describe_configs_response::DescribeConfigsSynonym,
) -> ConfigSynonym {
    let value = synonym.value.as_ref().map(|value| value.to_string());
    ConfigSynonym { name: synonym.name.to_string(), value, source: ConfigSource(synonym.source) }
}
