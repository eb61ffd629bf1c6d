//! `kafka-configs`, for topics, brokers and groups.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use letterbox_client::{
    AlterOp, Client, ConfigEntry, ConfigResource, ConfigSource, ConfigSynonym, ResourceType,
};
use letterbox_env::{Env, Gather};

use crate::args::{CONTROLLERS, Grammar, Parsed, Spec, Takes, listed};
use crate::connect;
use crate::failure::{Failure, java_cause, plain};
use crate::files::read_properties;

const QUOTAS: &str = "quotas (DescribeClientQuotas, AlterClientQuotas) are not offered by this \
    version";
const USERS: &str = "quotas (DescribeClientQuotas, AlterClientQuotas) and SCRAM credentials \
    (DescribeUserScramCredentials, AlterUserScramCredentials) are not offered by this version";
const CLIENT_METRICS: &str = "metrics of clients (GetTelemetrySubscriptions, PushTelemetry) are \
    not offered by this version";
const LOGGERS: &str = "log levels do not change while a broker runs (the resource BROKER_LOGGER); \
    --log-level sets them at its start";

const SPECS: [Spec; 23] = [
    (
        "add-config",
        Takes::Value("String"),
        "Configurations to set, as k1=v1,k2=[v1,v2]. Put a value with commas in square brackets.",
    ),
    ("add-config-file", Takes::Value("String"), "Property file with configurations to set."),
    (
        "all",
        Takes::Nothing,
        "When describing, list all configurations, including those that are not dynamic.",
    ),
    ("alter", Takes::Nothing, "Alter the configuration of the entity."),
    ("bootstrap-controller", Takes::Refused, CONTROLLERS),
    ("broker", Takes::Value("String"), "The id of a broker."),
    ("broker-defaults", Takes::Nothing, "The default configuration of all brokers."),
    ("broker-logger", Takes::Refused, LOGGERS),
    ("client", Takes::Refused, QUOTAS),
    ("client-defaults", Takes::Refused, QUOTAS),
    ("client-metrics", Takes::Refused, CLIENT_METRICS),
    ("delete-config", Takes::Values("String"), "Configurations to delete, as k1,k2."),
    ("describe", Takes::Nothing, "List the dynamic configuration of the entity."),
    ("entity-default", Takes::Nothing, "The default entity of the type (only for brokers)."),
    (
        "entity-name",
        Takes::Value("String"),
        "Name of the entity: topic name, broker id or group id.",
    ),
    ("entity-type", Takes::Values("String"), "Type of the entity: topics, brokers or groups."),
    ("force", Takes::Nothing, "Do not ask for confirmation. This tool never does."),
    ("group", Takes::Value("String"), "A group."),
    ("ip", Takes::Refused, QUOTAS),
    ("ip-defaults", Takes::Refused, QUOTAS),
    ("topic", Takes::Value("String"), "A topic."),
    ("user", Takes::Refused, USERS),
    ("user-defaults", Takes::Refused, USERS),
];

/// Runs the tool.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let about = "This tool helps to manipulate and describe entity config for a topic, client, \
        user, broker, ip, client-metrics or group";
    let given = args.join(" ");
    let parsed = Grammar::new(about, &SPECS).parse(args)?;
    let action = parsed.exactly_one(
        &["describe", "alter"],
        "Command must include exactly one action: --describe, --alter",
    )?;
    // Kafka's tool passes over a file of changes beside --describe, and over --all beside --alter.
    parsed.excludes("describe", &["add-config", "delete-config", "add-config-file"])?;
    parsed.excludes("alter", &["all"])?;
    let (kind, name) = entity(&parsed)?;
    if action == "alter" {
        if parsed.has("add-config") && parsed.has("add-config-file") {
            return refuse("Only one of --add-config or --add-config-file must be specified");
        }
        if !["add-config", "add-config-file", "delete-config"]
            .iter()
            .any(|option| parsed.has(option))
        {
            return refuse(
                "At least one of --add-config, --add-config-file, or --delete-config must be \
                 specified with --alter",
            );
        }
        let changes = changes(env, &parsed)?;
        let client = connect::admin(env, &parsed, None, err).await?;
        alter(&client, kind, name, changes, &given, out).await?;
    } else {
        let client = connect::admin(env, &parsed, None, err).await?;
        describe(&client, kind, name, parsed.has("all"), out).await?;
    }
    Ok(0)
}

fn absent<T>(kind: &str, why: &str) -> Result<T, Failure> {
    refuse(format!("The entity type {kind} is not supported: {why}."))
}

fn refuse<T>(line: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Stderr(line.into()))
}

/// The flags that name an entity of a type, with the type.
const FLAGS: [(&str, &str); 4] = [
    ("topic", "topics"),
    ("broker", "brokers"),
    ("broker-defaults", "brokers"),
    ("group", "groups"),
];

/// The one entity type that was given, by `--entity-type` or by a flag.
fn entity_type(parsed: &Parsed) -> Result<&str, Failure> {
    let flags = FLAGS.iter().filter(|(flag, _)| parsed.has(flag)).map(|(_, kind)| *kind);
    let kinds: Vec<&str> = parsed.values("entity-type").into_iter().chain(flags).collect();
    if let Some((_, kind)) = kinds
        .iter()
        .enumerate()
        .find(|(index, kind)| kinds.iter().take(*index).any(|other| other == *kind))
    {
        return refuse(format!("Duplicate entity type(s) specified: {kind}"));
    }
    for kind in &kinds {
        match *kind {
            "topics" | "brokers" | "groups" => {}
            "users" => return absent(kind, USERS),
            "clients" | "ips" => return absent(kind, QUOTAS),
            "client-metrics" => return absent(kind, CLIENT_METRICS),
            "broker-loggers" => return absent(kind, LOGGERS),
            kind => {
                return refuse(format!(
                    "Invalid entity type {kind}, the entity type must be one of topics, clients, \
                     users, brokers, ips, client-metrics, groups, broker-loggers with a \
                     --bootstrap-server or --bootstrap-controller argument"
                ));
            }
        }
    }
    match kinds[..] {
        [] => refuse("At least one entity type must be specified"),
        [kind] => Ok(kind),
        _ => refuse("Only 'users' and 'clients' entity types may be specified together"),
    }
}

/// The kind and the name; an empty name is the default entity, `None` means all.
fn entity(parsed: &Parsed) -> Result<(ResourceType, Option<String>), Failure> {
    let kind = entity_type(parsed)?;
    if FLAGS.iter().any(|(flag, _)| parsed.has(flag))
        && ["entity-name", "entity-type", "entity-default"].iter().any(|option| parsed.has(option))
    {
        return refuse(
            "--entity-{type,name,default} should not be used in conjunction with specific entity \
             flags",
        );
    }
    // Kafka's tool takes the first of the two.
    parsed.excludes("entity-name", &["entity-default"])?;
    let default = parsed.has("entity-default") || parsed.has("broker-defaults");
    let name = parsed.first(&["topic", "broker", "group", "entity-name"]).or(default.then_some(""));
    let (alter, unnamed) = (parsed.has("alter"), name.is_none_or(str::is_empty));
    match (kind, name) {
        ("topics" | "groups", _) if alter && unnamed => {
            refuse(format!("An entity name must be specified with --alter of {kind}"))
        }
        ("topics" | "groups", _) if default => {
            refuse(format!("--entity-default must not be specified with --describe of {kind}"))
        }
        ("topics", name) => Ok((ResourceType::Topic, name.map(str::to_owned))),
        ("groups", name) => Ok((ResourceType::Group, name.map(str::to_owned))),
        (_, None) if alter => refuse(
            "An entity-name or default entity must be specified with --alter of users, clients, \
             brokers or ips",
        ),
        (_, Some(name)) if !unnamed => Ok((ResourceType::Broker, Some(broker_id(name)?))),
        (_, name) => Ok((ResourceType::Broker, name.map(str::to_owned))),
    }
}

fn broker_id(text: &str) -> Result<String, Failure> {
    text.parse::<i32>().map(|id| id.to_string()).map_err(|_| {
        Failure::Stderr(format!(
            "The entity name for brokers must be a valid integer broker id, but it is: {text}"
        ))
    })
}

fn changes(env: &Env, parsed: &Parsed) -> Result<Vec<(String, AlterOp)>, Failure> {
    let mut changes = Vec::new();
    if let Some(text) = parsed.value("add-config") {
        for (key, value) in pairs(text).map_err(Failure::Stderr)? {
            changes.push((key, AlterOp::Set(value)));
        }
    }
    if let Some(file) = parsed.value("add-config-file") {
        changes.extend(
            read_properties(env, file)?.into_iter().map(|(key, value)| (key, AlterOp::Set(value))),
        );
    }
    for text in parsed.values("delete-config") {
        changes.extend(listed(text).map(|key| (key.to_owned(), AlterOp::Delete)));
    }
    Ok(changes)
}

/// `k1=v1,k2=[v1,v2]`: commas inside square brackets belong to the value.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut parts = vec![String::new()];
    let mut inside = false;
    for c in text.chars() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            ',' if !inside => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    let pair = |part: &String| {
        let (key, value) = part.split_once('=').ok_or(
            "Invalid entity config: all configs to be added must be in the format \"key=val\".",
        )?;
        let value = value.trim();
        let value =
            value.strip_prefix('[').and_then(|value| value.strip_suffix(']')).unwrap_or(value);
        Ok((key.trim().to_owned(), value.to_owned()))
    };
    parts.iter().filter(|part| !part.trim().is_empty()).map(pair).collect()
}

async fn alter(
    client: &Client,
    kind: ResourceType,
    name: Option<String>,
    changes: Vec<(String, AlterOp)>,
    given: &str,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let resource = ConfigResource { kind, name: name.unwrap_or_default() };
    let failed = |cause: String| {
        Failure::Stderr(format!(
            "Error while executing config command with args '{given}'\n{cause}"
        ))
    };
    let outcomes = client
        .incremental_alter_configs(&BTreeMap::from([(resource.clone(), changes)]), false)
        .await;
    let outcomes = outcomes.map_err(|error| failed(plain(&error)))?;
    match outcomes.get(&resource) {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            return Err(failed(format!(
                "java.util.concurrent.ExecutionException: {}",
                cause(error)
            )));
        }
        None => return Err(failed("the broker's response does not contain it".to_owned())),
    }
    match (kind, resource.name.as_str()) {
        (ResourceType::Broker, "") => {
            writeln!(out, "Completed updating default config for brokers in the cluster.")?
        }
        (ResourceType::Broker, name) => {
            writeln!(out, "Completed updating config for broker {name}.")?
        }
        (kind, name) => writeln!(out, "Completed updating config for {} {name}.", word(kind))?,
    }
    Ok(())
}

fn cause(error: &letterbox_client::BrokerError) -> String {
    match error.code {
        letterbox_client::ErrorCode::InvalidConfig => {
            format!(
                "org.apache.kafka.common.errors.InvalidConfigurationException: {}",
                crate::failure::sentence(error)
            )
        }
        _ => java_cause(error),
    }
}

async fn describe(
    client: &Client,
    kind: ResourceType,
    name: Option<String>,
    all: bool,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let names: Vec<String> = match (kind, name) {
        (ResourceType::Broker, Some(name)) => vec![name],
        (ResourceType::Broker, None) => {
            let brokers = client.metadata(Some(&[])).await?.brokers;
            brokers.keys().map(i32::to_string).chain([String::new()]).collect()
        }
        (ResourceType::Group, name) => {
            let groups = groups(client).await?;
            match name {
                None => groups.into_iter().collect(),
                Some(name) if groups.contains(&name) => vec![name],
                Some(name) => {
                    writeln!(
                        out,
                        "The group '{name}' doesn't exist and doesn't have dynamic config."
                    )?;
                    return Ok(());
                }
            }
        }
        (_, Some(name)) => {
            let metadata = client.metadata(Some(std::slice::from_ref(&name))).await?;
            if metadata.topics.get(&name).is_none_or(|topic| topic.error.is_some()) {
                writeln!(out, "The topic '{name}' doesn't exist and doesn't have dynamic config.")?;
                return Ok(());
            }
            vec![name]
        }
        (_, None) => client.metadata(None).await?.topics.into_keys().collect(),
    };
    let resources: Vec<ConfigResource> =
        names.into_iter().map(|name| ConfigResource { kind, name }).collect();
    let described = client.describe_configs(&resources, None, true).await?;
    for resource in &resources {
        let dynamic = match (kind, resource.name.as_str()) {
            (ResourceType::Broker, "") => ConfigSource::DYNAMIC_DEFAULT_BROKER_CONFIG,
            (ResourceType::Broker, _) => ConfigSource::DYNAMIC_BROKER_CONFIG,
            (ResourceType::Group, _) => ConfigSource::DYNAMIC_GROUP_CONFIG,
            _ => ConfigSource::DYNAMIC_TOPIC_CONFIG,
        };
        let what = if all { "All" } else { "Dynamic" };
        match (kind, resource.name.as_str()) {
            (ResourceType::Broker, "") => {
                writeln!(out, "Default configs for brokers in the cluster are:")?
            }
            (ResourceType::Broker, name) => writeln!(out, "{what} configs for broker {name} are:")?,
            (kind, name) => writeln!(out, "{what} configs for {} {name} are:", word(kind))?,
        }
        let mut entries = match described.get(resource) {
            Some(Ok(entries)) => entries.clone(),
            Some(Err(error)) => {
                return Err(Failure::Stderr(format!("Error: {}", java_cause(error))));
            }
            None => Vec::new(),
        };
        entries.retain(|entry| all || entry.source == dynamic);
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in &entries {
            writeln!(out, "  {}", line(entry))?;
        }
    }
    Ok(())
}

/// The groups that exist or have a configuration of their own.
async fn groups(client: &Client) -> Result<BTreeSet<String>, Failure> {
    let mut groups: BTreeSet<String> = client.list_groups(&[], &[]).await?.into_keys().gather();
    match client.list_config_resources(ResourceType::Group).await {
        Ok(configured) => groups.extend(configured),
        // A broker that keeps no configuration of groups has only those that exist.
        Err(letterbox_client::Error::Unsupported { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(groups)
}

fn word(kind: ResourceType) -> &'static str {
    match kind {
        ResourceType::Topic => "topic",
        ResourceType::Broker => "broker",
        ResourceType::BrokerLogger => "broker-logger",
        ResourceType::ClientMetrics => "client-metrics",
        ResourceType::Group => "group",
    }
}

fn line(entry: &ConfigEntry) -> String {
    let value = entry.value.as_deref().unwrap_or("null");
    let synonym = |synonym: &ConfigSynonym| {
        format!(
            "{}:{}={}",
            synonym.source.name(),
            synonym.name,
            synonym.value.as_deref().unwrap_or("null")
        )
    };
    let synonyms = entry.synonyms.iter().map(synonym).collect::<Vec<_>>().join(", ");
    format!("{}={value} sensitive={} synonyms={{{synonyms}}}", entry.name, entry.sensitive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_keep_commas_together() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            pairs("a=1, b=[x,y],c=").unwrap(),
            [pair("a", "1"), pair("b", "x,y"), pair("c", "")]
        );
        assert!(pairs("a").is_err());
    }

    #[test]
    fn entries_are_printed_as_kafka_prints_them() {
        let synonym = |name: &str, value: Option<&str>, source| ConfigSynonym {
            name: name.to_owned(),
            value: value.map(str::to_owned),
            source,
        };
        let entry = ConfigEntry {
            name: "retention.ms".to_owned(),
            value: Some("5".to_owned()),
            source: ConfigSource::DYNAMIC_TOPIC_CONFIG,
            read_only: false,
            sensitive: false,
            synonyms: vec![
                synonym("retention.ms", Some("5"), ConfigSource::DYNAMIC_TOPIC_CONFIG),
                synonym("log.retention.ms", None, ConfigSource::STATIC_BROKER_CONFIG),
            ],
        };
        let expected = "retention.ms=5 sensitive=false \
            synonyms={DYNAMIC_TOPIC_CONFIG:retention.ms=5, STATIC_BROKER_CONFIG:log.retention.ms=null}";
        assert_eq!(line(&entry), expected);
    }
}
