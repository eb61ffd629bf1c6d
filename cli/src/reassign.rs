//! `kafka-reassign-partitions`.
//!
//! Kafka's tool also throttles what it moves, and moves replicas between the log directories of a
//! broker. Neither is done here, and both are refused; the directories that it prints of the present
//! assignment are taken back where they are those of a replica, or the only ones of its broker. What
//! a throttle of another tool has left behind is taken away as Kafka's does.

mod dirs;
mod file;
mod generate;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io::Write;

use letterbox_client::{
    AlterOp, Client, ConfigResource, Error, Metadata, PartitionReassignment, TopicPartition,
};
use letterbox_env::{Env, Gather};

use self::dirs::{Dirs, Named};
use self::file::{Assignment, as_json, moves_of, named};
use crate::args::{CONTROLLERS, Grammar, Parsed, Spec, Takes};
use crate::connect;
use crate::failure::{Failure, java_cause, sentence};
use crate::files;
use crate::text::joined;

const ACTIONS: [&str; 5] = ["generate", "execute", "verify", "cancel", "list"];

const NO_THROTTLES: &str = "this version does not throttle replication (leader. and \
    follower.replication.throttled.rate, replica.alter.log.dirs.io.max.bytes.per.second)";

const SPECS: [Spec; 16] = [
    ("additional", Takes::Nothing, "With --execute: although other partitions move already."),
    ("bootstrap-controller", Takes::Refused, CONTROLLERS),
    (
        "broker-list",
        Takes::Value("String: brokerlist"),
        "With --generate: the brokers to move to, as 0,1,2.",
    ),
    ("cancel", Takes::Nothing, "Cancel an active reassignment."),
    ("disable-rack-aware", Takes::Nothing, "With --generate: do not look at the racks of brokers."),
    (
        "disallow-replication-factor-change",
        Takes::Nothing,
        "With --execute: refuse to give a partition more or fewer replicas.",
    ),
    ("execute", Takes::Nothing, "Start the reassignment of --reassignment-json-file."),
    ("generate", Takes::Nothing, "Propose a reassignment of topics to brokers. Nothing is moved."),
    ("list", Takes::Nothing, "List all active partition reassignments."),
    (
        "preserve-throttles",
        Takes::Nothing,
        "With --verify or --cancel: leave the throttle settings of brokers and topics as they are.",
    ),
    (
        "reassignment-json-file",
        Takes::Value("String: manual assignment json file path"),
        "The JSON file with the brokers of each partition, the preferred leader first. Example: \
         {\"partitions\":[{\"topic\":\"foo\",\"partition\":1,\"replicas\":[1,2,3]}],\"version\":1}",
    ),
    ("replica-alter-log-dirs-throttle", Takes::Refused, NO_THROTTLES),
    ("throttle", Takes::Refused, NO_THROTTLES),
    (
        "timeout",
        Takes::Refused,
        "it is a time for moves between log directories, which this version does not make",
    ),
    (
        "topics-to-move-json-file",
        Takes::Value("String: topics to reassign json file path"),
        "With --generate: the JSON file with the topics. Example: \
         {\"topics\":[{\"topic\":\"foo\"}],\"version\":1}",
    ),
    (
        "verify",
        Takes::Nothing,
        "Say how far the reassignment of --reassignment-json-file is; when nothing moves any more, \
         throttle settings are removed.",
    ),
];

/// For each option: the actions that it may be given with.
const ONLY_WITH: [(&str, &[&str]); 7] = [
    ("additional", &["execute"]),
    ("broker-list", &["generate"]),
    ("disable-rack-aware", &["generate"]),
    ("disallow-replication-factor-change", &["execute"]),
    ("preserve-throttles", &["verify", "cancel"]),
    ("reassignment-json-file", &["execute", "verify", "cancel"]),
    ("topics-to-move-json-file", &["generate"]),
];

const OTHERS_MOVE: &str = "Cannot execute because there is an existing partition assignment.  Use --additional to \
     override this and create a new partition assignment in addition to the existing one. The \
     --additional flag can also be used to change the throttle by resubmitting the current \
     reassignment.";

/// What throttles a broker and what throttles a topic.
const OF_BROKERS: [&str; 3] = [
    "leader.replication.throttled.rate",
    "follower.replication.throttled.rate",
    "replica.alter.log.dirs.io.max.bytes.per.second",
];
const OF_TOPICS: [&str; 2] =
    ["leader.replication.throttled.replicas", "follower.replication.throttled.replicas"];

/// Runs the tool.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let about = "This tool helps to move topic partitions between replicas.";
    let parsed = Grammar::new(about, &SPECS).parse(args)?;
    let line = "Command must include exactly one action: --generate, --execute, --verify, \
                --cancel, --list";
    let action = parsed.exactly_one(&ACTIONS, line)?;
    check(&parsed, action)?;
    let client = connect::admin(env, &parsed, None, err).await?;
    let read = |option| {
        let bytes = files::read(env, parsed.required(option)?)?;
        String::from_utf8(bytes).map_err(|_| failed(format!("the file of --{option} is not UTF-8")))
    };
    match action {
        "generate" => {
            let topics = read("topics-to-move-json-file")?;
            let brokers = parsed.required("broker-list")?;
            let by_rack = !parsed.has("disable-rack-aware");
            generate::run(env, &client, &topics, brokers, by_rack, out).await?;
        }
        "list" => list(&client, out).await?,
        _ => {
            let moves = moves_of(&read("reassignment-json-file")?).map_err(failed)?;
            match action {
                "execute" => execute(&client, &parsed, moves, out).await?,
                "verify" => verify(&client, &parsed, &moves, out).await?,
                _ => cancel(&client, &parsed, &moves, out).await?,
            }
        }
    }
    Ok(0)
}

fn check(parsed: &Parsed, action: &'static str) -> Result<(), Failure> {
    if !parsed.has("bootstrap-server") {
        return Err(
            parsed.wrong("Please specify either --bootstrap-server or --bootstrap-controller")
        );
    }
    let required: &[&str] = match action {
        "generate" => &["topics-to-move-json-file", "broker-list"],
        "list" => &[],
        _ => &["reassignment-json-file"],
    };
    required.iter().try_for_each(|name| parsed.required(name).map(drop))?;
    match ONLY_WITH.iter().find(|(name, with)| parsed.has(name) && !with.contains(&action)) {
        Some((name, _)) => {
            Err(parsed
                .wrong(format!("Option \"[{name}]\" can't be used with action \"[{action}]\"")))
        }
        None => Ok(()),
    }
}

/// Kafka's tool says these on stdout.
fn failed(reason: impl Display) -> Failure {
    Failure::Stdout(format!("Error: {reason}"))
}

fn failed_call(error: &Error) -> Failure {
    match error {
        Error::Connect { .. } => Failure::Stderr(error.to_string()),
        Error::Broker(error) => failed(java_cause(error)),
        error => failed(error),
    }
}

/// What moves now.
async fn moving(
    client: &Client,
    partitions: Option<&[TopicPartition]>,
) -> Result<BTreeMap<TopicPartition, PartitionReassignment>, Failure> {
    client.partition_reassignments(partitions).await.map_err(|error| failed_call(&error))
}

/// The topics of `partitions`, as far as they are there.
async fn topics_of(
    client: &Client,
    partitions: impl Iterator<Item = &TopicPartition>,
) -> Result<Metadata, Failure> {
    let names: BTreeSet<String> = partitions.map(|partition| partition.topic.clone()).gather();
    let names: Vec<String> = names.into_iter().collect();
    let mut found = client.metadata(Some(&names)).await.map_err(|error| failed_call(&error))?;
    found.topics.retain(|_, topic| topic.error.is_none());
    Ok(found)
}

fn replicas_of<'a>(metadata: &'a Metadata, partition: &TopicPartition) -> Option<&'a [i32]> {
    let topic = metadata.topics.get(&partition.topic)?;
    Some(&topic.partitions.get(&partition.partition)?.replicas)
}

async fn execute(
    client: &Client,
    parsed: &Parsed,
    moves: Vec<Assignment>,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let named = named(&moves);
    let moves = file::checked(moves).map_err(failed)?;
    if !parsed.has("additional") && !moving(client, None).await?.is_empty() {
        return Err(Failure::Stdout(OTHERS_MOVE.to_owned()));
    }
    let metadata = topics_of(client, moves.keys()).await?;
    let mut ids = moves.values().flatten();
    if let Some(unknown) = ids.find(|id| !metadata.brokers.contains_key(id)) {
        return Err(failed(format!("Unknown broker id {unknown}")));
    }
    let mut present = BTreeMap::new();
    for partition in moves.keys() {
        let unknown = "org.apache.kafka.common.errors.UnknownTopicOrPartitionException:";
        let topic = &partition.topic;
        if !metadata.topics.contains_key(topic) {
            return Err(failed(format!("{unknown} Topic {topic} not found.")));
        }
        let replicas = replicas_of(&metadata, partition)
            .ok_or_else(|| failed(format!("{unknown} Unable to find partition: {partition}")))?;
        present.insert(partition.clone(), replicas.to_vec());
    }
    let ids = present.values().flatten().chain(named.keys().map(|(id, _)| id)).copied();
    let dirs = Dirs::of(client, ids.filter(|id| metadata.brokers.contains_key(id))).await;
    dirs.check(&named).map_err(failed)?;
    writeln!(
        out,
        "Current partition replica assignment\n\n{}\n\nSave this to use as the \
         --reassignment-json-file option during rollback",
        as_json(&present, &dirs)
    )?;
    let wanted = moves.into_iter().map(|(partition, replicas)| (partition, Some(replicas)));
    let may_change_factor = !parsed.has("disallow-replication-factor-change");
    let asked: BTreeMap<_, _> = wanted.gather();
    let results = client
        .alter_partition_reassignments(&asked, may_change_factor)
        .await
        .map_err(|error| failed_call(&error))?;
    refusals("Error reassigning partition(s):", &results)?;
    writeln!(
        out,
        "Successfully started partition reassignment{} for {}",
        plural(asked.len()),
        joined(asked.keys())
    )?;
    for ((id, partition), dir) in &named {
        // Kafka's tool says so too of a replica that lies there already, and ends the line so.
        writeln!(
            out,
            "Successfully started moving log directory to {dir} for replica {partition} with \
             broker {id} "
        )?;
    }
    Ok(())
}

/// The end of the tool when the broker has refused some.
fn refusals(
    heading: &str,
    results: &BTreeMap<TopicPartition, Result<(), letterbox_client::BrokerError>>,
) -> Result<(), Failure> {
    let lines: Vec<String> = results
        .iter()
        .filter_map(|(partition, result)| {
            let error = result.as_ref().err()?;
            Some(format!("{partition}: {}", sentence(error)))
        })
        .collect();
    if lines.is_empty() {
        return Ok(());
    }
    Err(Failure::Stdout(format!("{heading}\n{}", lines.join("\n"))))
}

async fn verify(
    client: &Client,
    parsed: &Parsed,
    moves: &[Assignment],
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let moving = moving(client, None).await?;
    let metadata = topics_of(client, moves.iter().map(|one| &one.partition)).await?;
    writeln!(out, "Status of partition reassignment:")?;
    let sorted: BTreeMap<&TopicPartition, &[i32]> =
        moves.iter().map(|one| (&one.partition, &*one.replicas)).gather();
    for (partition, wanted) in sorted {
        let present = replicas_of(&metadata, partition).unwrap_or_default();
        if moving.contains_key(partition) {
            writeln!(out, "Reassignment of partition {partition} is still in progress.")?;
        } else if present == wanted {
            writeln!(out, "Reassignment of partition {partition} is completed.")?;
        } else {
            writeln!(
                out,
                "There is no active reassignment of partition {partition}, but replica set is {} \
                 rather than {}.",
                joined(present.iter()),
                joined(wanted.iter())
            )?;
        }
    }
    let named = named(moves);
    let dirs = Dirs::of(client, brokers_of(&named, &metadata)).await;
    writeln!(out, "{}", dirs.states(&named).join("\n"))?;
    if moving.is_empty() && !parsed.has("preserve-throttles") {
        clear_throttles(client, moves, out).await?;
    }
    Ok(())
}

/// The brokers of these replicas that are there.
fn brokers_of(named: &Named, metadata: &Metadata) -> impl Iterator<Item = i32> {
    named.keys().map(|(id, _)| *id).filter(|id| metadata.brokers.contains_key(id))
}

async fn cancel(
    client: &Client,
    parsed: &Parsed,
    moves: &[Assignment],
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let partitions: Vec<TopicPartition> = moves.iter().map(|one| one.partition.clone()).collect();
    let moving = moving(client, Some(&partitions)).await?;
    if moving.is_empty() {
        writeln!(out, "None of the specified partition reassignments are active.")?;
    } else {
        let all = moving.into_keys().map(|partition| (partition, None)).gather();
        let results = client.alter_partition_reassignments(&all, true).await;
        let results = results.map_err(|error| failed_call(&error))?;
        let refused = results.values().filter(|result| result.is_err()).count();
        let heading = format!("Error cancelling partition reassignment{} for:", plural(refused));
        refusals(&heading, &results)?;
        writeln!(
            out,
            "Successfully cancelled partition reassignment{} for: {}",
            plural(all.len()),
            joined(all.keys())
        )?;
    }
    let named = named(moves);
    if !named.is_empty() {
        let metadata = client.metadata(Some(&[])).await.map_err(|error| failed_call(&error))?;
        let dirs = Dirs::of(client, brokers_of(&named, &metadata)).await;
        dirs.check_none_moves(&named).map_err(failed)?;
    }
    // Kafka's tool ends no line here.
    write!(out, "None of the specified partition moves are active.")?;
    if !parsed.has("preserve-throttles") {
        clear_throttles(client, moves, out).await?;
    }
    Ok(())
}

async fn list(client: &Client, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let moving = moving(client, None).await?;
    if moving.is_empty() {
        return Ok(writeln!(out, "No partition reassignments found.")?);
    }
    writeln!(out, "Current partition reassignments:")?;
    for (partition, PartitionReassignment { replicas, adding, removing }) in moving {
        let some = |word: &str, ids: &[i32]| match ids {
            [] => String::new(),
            ids => format!(" {word}: {}.", joined(ids.iter())),
        };
        let (adding, removing) = (some("adding", &adding), some("removing", &removing));
        writeln!(out, "{partition}: replicas: {}.{adding}{removing}", joined(replicas.iter()))?;
    }
    Ok(())
}

/// Takes away the throttles of all brokers that are there or asked for, and of the topics: who has
/// moved replicas, and from where, is not known any more.
async fn clear_throttles(
    client: &Client,
    moves: &[Assignment],
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let cluster = client.describe_cluster().await.map_err(|error| failed_call(&error))?;
    let mut brokers: BTreeSet<i32> = cluster.brokers.into_keys().gather();
    brokers.extend(moves.iter().flat_map(|one| &one.replicas));
    let topics: BTreeSet<&str> = moves.iter().map(|one| &*one.partition.topic).gather();
    let delete = |keys: &[&str]| -> Vec<(String, AlterOp)> {
        keys.iter().map(|key| ((*key).to_owned(), AlterOp::Delete)).collect()
    };
    for (what, names, changes) in [
        (
            "broker",
            (brokers.len(), joined(brokers.iter())),
            brokers
                .iter()
                .map(|id| (ConfigResource::broker(*id), delete(&OF_BROKERS)))
                .gather::<BTreeMap<_, _>>(),
        ),
        (
            "topic",
            (topics.len(), joined(topics.iter())),
            topics.iter().map(|name| (ConfigResource::topic(*name), delete(&OF_TOPICS))).gather(),
        ),
    ] {
        writeln!(out, "Clearing {what}-level throttles on {what}{} {}", plural(names.0), names.1)?;
        let results = client.incremental_alter_configs(&changes, false).await;
        let results = results.map_err(|error| failed_call(&error))?;
        if let Some(error) = results.into_values().find_map(Result::err) {
            return Err(failed(java_cause(&error)));
        }
    }
    Ok(())
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}
