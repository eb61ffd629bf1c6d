//! `kafka-topics`.

use std::collections::BTreeMap;
use std::io::Write;

use letterbox_client::{
    BrokerError, Client, ConfigEntry, ConfigResource, ConfigSource, EligibleLeaders, Error,
    ErrorCode, Metadata, NewTopic, Partition, PartitionReassignment, Topic, TopicPartition,
    decode_uuid, encode_uuid,
};
use letterbox_env::{Env, Gather};

use crate::args::{Grammar, Parsed, Spec, Takes};
use crate::connect;
use crate::failure::{Failure, plain, sentence};
use crate::pattern::{Pattern, is_internal};
use crate::text::joined;

const ACTIONS: [&str; 5] = ["create", "list", "alter", "describe", "delete"];

/// With one of these `--describe` shows partitions only, and only some.
const FILTERS: [&str; 4] = [
    "under-replicated-partitions",
    "unavailable-partitions",
    "under-min-isr-partitions",
    "at-min-isr-partitions",
];

const SPECS: [Spec; 21] = [
    ("alter", Takes::Nothing, "Alter the number of partitions."),
    (
        "at-min-isr-partitions",
        Takes::Nothing,
        "When describing topics, show only partitions whose ISR is exactly min.insync.replicas.",
    ),
    (
        "config",
        Takes::Values("String: name=value"),
        "A configuration of the topic to create. May be repeated.",
    ),
    ("create", Takes::Nothing, "Create a new topic."),
    ("delete", Takes::Nothing, "Delete a topic."),
    (
        "delete-config",
        Takes::Values("String: name"),
        "Does nothing any more: kafka-configs --alter --delete-config removes configurations.",
    ),
    ("describe", Takes::Nothing, "List details for the given topics."),
    ("exclude-internal", Takes::Nothing, "Exclude internal topics when listing or describing."),
    (
        "if-exists",
        Takes::Nothing,
        "When altering, deleting or describing, do not fail if the topic does not exist.",
    ),
    ("if-not-exists", Takes::Nothing, "When creating, do not fail if the topic already exists."),
    ("list", Takes::Nothing, "List all available topics."),
    (
        "partition-size-limit-per-response",
        Takes::Value("Integer: maximum number of partitions per response"),
        "How many partitions one response may tell of, when describing. Default: 2000.",
    ),
    (
        "partitions",
        Takes::Value("Integer: # of partitions"),
        "The number of partitions of the topic to create or alter. Altering it changes the \
         partition of records with a key.",
    ),
    (
        "replica-assignment",
        Takes::Value("String: 1:2,2:3"),
        "The brokers of each partition: partitions are separated by commas, replicas by colons.",
    ),
    (
        "replication-factor",
        Takes::Value("Integer: replication factor"),
        "The number of replicas of each partition. (default: the cluster's)",
    ),
    (
        "topic",
        Takes::Value("String: topic"),
        "The topic; a regular expression, except with --create.",
    ),
    ("topic-id", Takes::Value("String: topic-id"), "The id of the topic to describe."),
    (
        "topics-with-overrides",
        Takes::Nothing,
        "When describing, show only topics that override a configuration.",
    ),
    (
        "unavailable-partitions",
        Takes::Nothing,
        "When describing, show only partitions without a leader.",
    ),
    (
        "under-min-isr-partitions",
        Takes::Nothing,
        "When describing, show only partitions whose ISR is less than min.insync.replicas.",
    ),
    (
        "under-replicated-partitions",
        Takes::Nothing,
        "When describing, show only partitions with replicas that are not in the ISR.",
    ),
];

/// Runs the tool.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let grammar =
        Grammar::new("This tool helps to create, delete, describe, or change a topic.", &SPECS);
    let parsed = grammar.refuse_repeated(failed).parse(args)?;
    let line = "Command must include exactly one action: --list, --describe, --create, --alter or \
        --delete";
    let action = parsed.exactly_one(&ACTIONS, line)?;
    if parsed.has("delete-config") {
        writeln!(
            err,
            "delete-config option is no longer supported and deprecated since version 4.0. The \
             config will be fully removed in future releases."
        )?;
    }
    check(&parsed, action)?;
    let client = connect::admin(env, &parsed, None, err).await?;
    let result = match action {
        "create" => create(&client, &parsed, out).await,
        "alter" => alter(&client, &parsed).await,
        "delete" => delete(&client, &parsed).await,
        "describe" => describe(&client, &parsed, out).await,
        _ => list(&client, &parsed, out).await,
    };
    result.map(|()| 0)
}

fn check(parsed: &Parsed, action: &str) -> Result<(), Failure> {
    parsed.required("bootstrap-server")?;
    if matches!(action, "create" | "alter" | "delete") {
        parsed.required("topic")?;
    }
    if action == "describe" {
        parsed.excludes("topic", &["topic-id"])?;
    }
    if action == "alter" && !parsed.has("partitions") {
        return Err(parsed.wrong("Missing required argument \"[partitions]\""));
    }
    parsed.excludes(
        "replica-assignment",
        if action == "create" { &["partitions", "replication-factor"] } else { &[] },
    )?;
    let only = |name: &str, actions: &[&str]| {
        let others: Vec<&str> =
            ACTIONS.into_iter().filter(|other| !actions.contains(other)).collect();
        parsed.excludes(name, &others)
    };
    only("config", &["create"])?;
    only("partitions", &["create", "alter"])?;
    only("replication-factor", &["create"])?;
    only("replica-assignment", &["create", "alter"])?;
    only("if-not-exists", &["create"])?;
    only("if-exists", &["alter", "delete", "describe"])?;
    only("exclude-internal", &["list", "describe"])?;
    for name in FILTERS {
        only(name, &["describe"])?;
        parsed.excludes(name, &["topics-with-overrides"])?;
    }
    only("topics-with-overrides", &["describe"])?;
    only("topic-id", &["describe"])?;
    for (name, zero) in [
        ("partitions", "The partitions must be greater than 0"),
        ("replication-factor", "The replication factor must be between 1 and 32767 inclusive"),
    ] {
        if parsed
            .number::<i64>(name)?
            .is_some_and(|number| number < 1 || (name == "replication-factor" && number > 32767))
        {
            return Err(failed(zero));
        }
    }
    Ok(())
}

/// Kafka's tool says these on stdout.
fn failed(reason: impl std::fmt::Display) -> Failure {
    Failure::Stdout(format!("Error while executing topic command : {reason}"))
}

fn failed_call(error: &Error) -> Failure {
    match error {
        Error::Connect { .. } => Failure::Stderr(error.to_string()),
        error => failed(plain(error)),
    }
}

async fn create(
    client: &Client,
    parsed: &Parsed,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let name = parsed.required("topic")?.to_owned();
    if name.contains(['.', '_']) {
        writeln!(
            out,
            "WARNING: Due to limitations in metric names, topics with a period ('.') or underscore \
             ('_') could collide. To avoid issues it is best to use either, but not both."
        )?;
    }
    let mut topic = NewTopic {
        name: name.clone(),
        partitions: parsed.number("partitions")?,
        replication_factor: parsed.number("replication-factor")?,
        ..NewTopic::default()
    };
    for word in parsed.values("config") {
        let (key, value) = word.split_once('=').ok_or_else(|| {
            failed(
                "requirement failed: Invalid topic config: all configs to be added must be in \
                the format \"key=val\".",
            )
        })?;
        topic.configs.insert(key.trim().to_owned(), value.trim().to_owned());
    }
    if let Some(assignment) = parsed.value("replica-assignment") {
        topic.assignments = (0..).zip(replica_assignment(assignment)?).gather();
    }
    let outcomes =
        client.create_topics(&[topic], false).await.map_err(|error| failed_call(&error))?;
    match outcomes.into_iter().next().map(|(_, outcome)| outcome) {
        Some(Ok(_)) => Ok(writeln!(out, "Created topic {name}.")?),
        Some(Err(error))
            if error.code == ErrorCode::TopicAlreadyExists && parsed.has("if-not-exists") =>
        {
            Ok(())
        }
        Some(Err(error)) => Err(failed(sentence(&error))),
        None => Err(failed("the broker did not answer for the topic")),
    }
}

fn replica_assignment(text: &str) -> Result<Vec<Vec<i32>>, Failure> {
    let mut partitions: Vec<Vec<i32>> = Vec::new();
    for part in text.split(',') {
        let ids: Result<Vec<i32>, _> = part.split(':').map(|id| id.trim().parse()).collect();
        let ids = ids.map_err(|_| failed(format!("For input string: \"{part}\"")))?;
        if ids.iter().enumerate().any(|(index, id)| ids.iter().take(index).any(|other| other == id))
        {
            return Err(failed(format!(
                "Partition replica lists may not contain duplicate entries: {part}"
            )));
        }
        if partitions.first().is_some_and(|first| first.len() != ids.len()) {
            return Err(failed(format!(
                "Partition {} has different replication factor: {part}",
                partitions.len()
            )));
        }
        partitions.push(ids);
    }
    Ok(partitions)
}

async fn alter(client: &Client, parsed: &Parsed) -> Result<(), Failure> {
    let metadata = existing(client, parsed).await?;
    let count: i32 = parsed.number("partitions")?.unwrap_or(0);
    let assignment = parsed.value("replica-assignment").map(replica_assignment).transpose()?;
    let mut wanted = BTreeMap::new();
    for (name, topic) in &metadata.topics {
        let have = topic.partitions.len();
        let added = assignment.as_ref().map(|all| all.iter().skip(have).cloned().collect());
        wanted.insert(name.clone(), (count, added));
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let outcomes = client.create_partitions(&wanted).await.map_err(|error| failed_call(&error))?;
    all_or_first(outcomes)
}

async fn delete(client: &Client, parsed: &Parsed) -> Result<(), Failure> {
    let metadata = existing(client, parsed).await?;
    let names: Vec<String> = metadata.topics.into_keys().collect();
    if names.is_empty() {
        return Ok(());
    }
    all_or_first(client.delete_topics(&names).await.map_err(|error| failed_call(&error))?)
}

fn all_or_first(outcomes: BTreeMap<String, Result<(), BrokerError>>) -> Result<(), Failure> {
    outcomes.into_values().collect::<Result<(), _>>().map_err(|error| failed(sentence(&error)))
}

async fn list(
    client: &Client,
    parsed: &Parsed,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let metadata = client.metadata(None).await.map_err(|error| failed_call(&error))?;
    let pattern = pattern(parsed)?;
    let mut any = false;
    for (name, topic) in &metadata.topics {
        if pattern.as_ref().is_none_or(|pattern| pattern.matches(name))
            && !(parsed.has("exclude-internal") && internal(topic))
        {
            writeln!(out, "{name}")?;
            any = true;
        }
    }
    if !any {
        // Kafka's tool ends the empty list with a line break, too.
        writeln!(out)?;
    }
    Ok(())
}

fn internal(topic: &Topic) -> bool {
    topic.is_internal || is_internal(&topic.name)
}

fn pattern(parsed: &Parsed) -> Result<Option<Pattern>, Failure> {
    let text = parsed.value("topic");
    text.map(Pattern::parse)
        .transpose()
        .map_err(|why| failed(format!("{} is an invalid regex: {why}", text.unwrap_or_default())))
}

/// The topics that `--topic` means; none when there is none and `--if-exists` is given.
async fn existing(client: &Client, parsed: &Parsed) -> Result<Metadata, Failure> {
    let mut metadata = client.metadata(None).await.map_err(|error| failed_call(&error))?;
    let pattern = pattern(parsed)?;
    metadata.topics.retain(|name, topic| {
        pattern.as_ref().is_none_or(|pattern| pattern.matches(name))
            && !(parsed.has("exclude-internal") && internal(topic))
    });
    if metadata.topics.is_empty()
        && !parsed.has("if-exists")
        && let Some(wanted) = parsed.value("topic")
    {
        return Err(failed(format!("Topic '{wanted}' does not exist as expected")));
    }
    Ok(metadata)
}

async fn describe(
    client: &Client,
    parsed: &Parsed,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let limit = parsed.number("partition-size-limit-per-response")?.unwrap_or(2000);
    let metadata = described(client, parsed).await?;
    let resources: Vec<ConfigResource> =
        metadata.topics.keys().map(ConfigResource::topic).collect();
    let configs = if resources.is_empty() {
        BTreeMap::new()
    } else {
        client
            .describe_configs(&resources, None, false)
            .await
            .map_err(|error| failed_call(&error))?
    };
    let names: Vec<String> = metadata.topics.keys().cloned().collect();
    // As Kafka's tool, which asks for a topic by its id with a call that does not tell them.
    let eligible = match parsed.value("topic-id") {
        Some(_) => None,
        None => {
            client.eligible_leaders(&names, limit).await.map_err(|error| failed_call(&error))?
        }
    };
    let moving = moving(client, &metadata).await?;
    let filtered = FILTERS.iter().any(|name| parsed.has(name));
    for (name, topic) in &metadata.topics {
        let none = Vec::new();
        let entries = match configs.get(&ConfigResource::topic(name)) {
            Some(Ok(entries)) => entries,
            Some(Err(error)) => return Err(failed(sentence(error))),
            None => &none,
        };
        let overrides = overrides(entries);
        if parsed.has("topics-with-overrides") && overrides.is_empty() {
            continue;
        }
        if !filtered {
            print_topic(topic, &overrides, &moving, out)?;
        }
        if parsed.has("topics-with-overrides") {
            continue;
        }
        let min_isr = min_isr(entries);
        for (partition, moving) in topic
            .partitions
            .values()
            .map(|partition| (partition, moving.get(&TopicPartition::new(name, partition.index))))
            .filter(|(partition, moving)| {
                !filtered || is_wanted(parsed, partition, *moving, min_isr, &metadata)
            })
        {
            print_partition(name, partition, moving, eligible.as_ref(), out)?;
        }
    }
    Ok(())
}

/// The partitions that are told and move.
type Moving = BTreeMap<TopicPartition, PartitionReassignment>;

/// Those of `metadata`, as far as this client may know and the broker tells.
async fn moving(client: &Client, metadata: &Metadata) -> Result<Moving, Failure> {
    let all = metadata.topics.values().flat_map(|topic| {
        topic.partitions.keys().map(|index| TopicPartition::new(&*topic.name, *index))
    });
    let partitions: Vec<TopicPartition> = all.collect();
    match client.partition_reassignments(Some(&partitions)).await {
        Err(Error::Unsupported { .. }) => Ok(Moving::new()),
        Err(error) if error.code() == Some(ErrorCode::ClusterAuthorizationFailed) => {
            Ok(Moving::new())
        }
        result => result.map_err(|error| failed_call(&error)),
    }
}

/// How many replicas a partition has without those that a move adds.
fn factor(partition: &Partition, moving: Option<&PartitionReassignment>) -> usize {
    let added = |id: &&i32| moving.is_some_and(|moving| moving.adding.contains(id));
    partition.replicas.iter().filter(|id| !added(id)).count()
}

/// The topics that `--topic` or `--topic-id` means.
async fn described(client: &Client, parsed: &Parsed) -> Result<Metadata, Failure> {
    let mut metadata = existing(client, parsed).await?;
    if let Some(text) = parsed.value("topic-id") {
        let id = decode_uuid(text).ok_or_else(|| {
            failed(format!("Input string `{text}` is not a topic id of 22 base64 characters"))
        })?;
        metadata.topics.retain(|_, topic| topic.id == id);
        if metadata.topics.is_empty() && !parsed.has("if-exists") {
            return Err(failed(format!("TopicId '{text}' does not exist as expected")));
        }
    }
    Ok(metadata)
}

fn print_topic(
    topic: &Topic,
    overrides: &str,
    moving: &Moving,
    out: &mut (dyn Write + Send),
) -> std::io::Result<()> {
    let replication = topic.partitions.values().next().map_or(0, |first| {
        factor(first, moving.get(&TopicPartition::new(topic.name.clone(), first.index)))
    });
    writeln!(
        out,
        "Topic: {}\tTopicId: {}\tPartitionCount: {}\tReplicationFactor: {replication}\tConfigs: \
         {overrides}",
        topic.name,
        encode_uuid(topic.id),
        topic.partitions.len(),
    )
}

/// `eligible` is `None` when nobody knows: on brokers without KIP-966.
fn print_partition(
    topic: &str,
    partition: &Partition,
    moving: Option<&PartitionReassignment>,
    eligible: Option<&BTreeMap<TopicPartition, EligibleLeaders>>,
    out: &mut (dyn Write + Send),
) -> std::io::Result<()> {
    let leader = partition.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string());
    let leaders = |pick: fn(&EligibleLeaders) -> &[i32]| match eligible {
        None => "N/A".to_owned(),
        Some(eligible) => eligible
            .get(&TopicPartition::new(topic, partition.index))
            .map_or_else(String::new, |found| joined(pick(found))),
    };
    let moving = moving.map_or_else(String::new, |moving| {
        let (adding, removing) = (joined(&moving.adding), joined(&moving.removing));
        format!("\tAdding Replicas: {adding}\tRemoving Replicas: {removing}")
    });
    writeln!(
        out,
        "\tTopic: {topic}\tPartition: {}\tLeader: {leader}\tReplicas: {}\tIsr: {}{moving}\tElr: \
         {}\tLastKnownElr: {}",
        partition.index,
        joined(&partition.replicas),
        joined(&partition.isr),
        leaders(|found| &found.now),
        leaders(|found| &found.last_known),
    )
}

fn min_isr(entries: &[ConfigEntry]) -> usize {
    entries
        .iter()
        .find(|entry| entry.name == "min.insync.replicas")
        .and_then(|entry| entry.value.as_ref()?.parse().ok())
        .unwrap_or(1)
}

/// Values that are not defaults, as `key=value` joined by commas.
fn overrides(entries: &[ConfigEntry]) -> String {
    let own = entries.iter().filter(|entry| entry.source != ConfigSource::DEFAULT_CONFIG);
    own.map(|entry| format!("{}={}", entry.name, entry.value.as_deref().unwrap_or("null")))
        .collect::<Vec<_>>()
        .join(",")
}

fn is_wanted(
    parsed: &Parsed,
    partition: &Partition,
    moving: Option<&PartitionReassignment>,
    min_isr: usize,
    metadata: &Metadata,
) -> bool {
    let live = partition.leader.is_some_and(|leader| metadata.brokers.contains_key(&leader));
    let in_sync = partition.isr.len();
    let is_small = partition.leader.is_none() || in_sync < min_isr;
    (parsed.has("under-replicated-partitions") && in_sync < factor(partition, moving))
        || (parsed.has("unavailable-partitions") && !live)
        || (parsed.has("under-min-isr-partitions") && is_small)
        || (parsed.has("at-min-isr-partitions") && in_sync == min_isr)
}
