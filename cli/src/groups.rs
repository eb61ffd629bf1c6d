//! `kafka-consumer-groups`.

mod describe;
mod reset;

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use letterbox_client::{BrokerError, Client, Error, ErrorCode, ListedGroup, TopicPartition};
use letterbox_env::Env;

use crate::args::{Grammar, Parsed, Spec, Takes, listed, two_values};
use crate::connect;
use crate::failure::{Failure, java_cause, plain, sentence};

const ACTIONS: [&str; 6] =
    ["list", "describe", "delete", "reset-offsets", "delete-offsets", "validate-regex"];

/// Options that exist only beside one of these actions.
const ONLY_WITH: [(&str, &[&str]); 5] = [
    ("members", &["describe"]),
    ("offsets", &["describe"]),
    ("state", &["describe", "list"]),
    ("type", &["list"]),
    ("verbose", &["describe"]),
];

const NO_PATTERNS: &str = "consumers cannot give the broker an expression to choose topics by \
    (ConsumerGroupHeartbeat, KIP-848), so there is none to check";

const SPECS: [Spec; 27] = [
    ("all-groups", Takes::Nothing, "Apply to all consumer groups."),
    ("all-topics", Takes::Nothing, "Apply to all topics of the group when resetting offsets."),
    ("by-duration", Takes::Value("String"), "Reset offsets to this long ago, as PnDTnHnMnS."),
    ("delete", Takes::Nothing, "Delete groups with all their offsets."),
    ("delete-offsets", Takes::Nothing, "Delete the offsets of one group for topics."),
    ("describe", Takes::Nothing, "Describe groups and list their lag."),
    ("dry-run", Takes::Nothing, "Show what a reset would do."),
    ("execute", Takes::Nothing, "Perform the reset."),
    ("export", Takes::Nothing, "Print the result of the reset as CSV."),
    ("from-file", Takes::Value("String"), "Reset offsets to the values in a CSV file."),
    ("group", Takes::Values("String: consumer group"), "The group. May be repeated."),
    ("list", Takes::Nothing, "List all consumer groups."),
    ("members", Takes::Nothing, "Describe the members of the group."),
    ("offsets", Takes::Nothing, "Describe the offsets of the group (the default)."),
    ("reset-offsets", Takes::Nothing, "Reset the offsets of groups without members."),
    (
        "shift-by",
        Takes::Value("Long: number-of-offsets"),
        "Reset offsets by a number, which may be negative.",
    ),
    (
        "state",
        Takes::Perhaps("String"),
        "With --describe: the state of the group. With --list: show states, or only groups in \
         these states.",
    ),
    (
        "timeout",
        Takes::Value("Long: timeout (ms)"),
        "Milliseconds to wait for the brokers. (default: 30000)",
    ),
    ("to-current", Takes::Nothing, "Reset offsets to the current ones."),
    (
        "to-datetime",
        Takes::Value("String"),
        "Reset offsets to a time, as YYYY-MM-DDTHH:mm:SS.sss with an optional offset from UTC.",
    ),
    ("to-earliest", Takes::Nothing, "Reset offsets to the earliest."),
    ("to-latest", Takes::Nothing, "Reset offsets to the latest."),
    ("to-offset", Takes::Value("Long: offset"), "Reset offsets to a number."),
    (
        "topic",
        Takes::Values("String: topic"),
        "A topic, or topic:0,1 for some of its partitions. May be repeated.",
    ),
    ("type", Takes::Perhaps("String"), "With --list: show types, or only groups of these types."),
    ("validate-regex", Takes::Refused, NO_PATTERNS),
    ("verbose", Takes::Nothing, "Show more columns."),
];

/// Runs the tool.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let about = "This tool helps to list all consumer groups, describe a consumer group, delete \
        consumer group info, or reset consumer group offsets.";
    let parsed = Grammar::new(about, &SPECS).refuse_repeated(two_values_refused).parse(args)?;
    check(&parsed)?;
    let line = "Command must include exactly one action: --list, --describe, --delete, \
        --reset-offsets, --delete-offsets, --validate-regex";
    let action = parsed.exactly_one(&ACTIONS, line)?;
    if action == "delete-offsets" && parsed.values("group").len() > 1 {
        return Err(two_values_refused(two_values("group")));
    }
    if action == "reset-offsets" && !parsed.has("dry-run") && !parsed.has("execute") {
        writeln!(
            err,
            "WARN: No action will be performed as the --execute option is missing. In version 5.0, \
             this command will require either --dry-run or --execute to be specified. You should \
             add the --dry-run option explicitly if you are scripting this command and want to \
             keep the current default behavior without prompting."
        )?;
    }
    let timeout = Duration::from_millis(parsed.number("timeout")?.unwrap_or(30000));
    let client = connect::admin(env, &parsed, Some(timeout), err).await?;
    match action {
        "list" => list(&client, &parsed, out).await,
        "describe" => describe::run(&client, &parsed, out, err).await,
        "delete" => delete(&client, &parsed, out).await,
        "delete-offsets" => delete_offsets(&client, &parsed, out).await,
        _ => reset::run(env, &client, &parsed, out, err).await,
    }
    .map(|()| 0)
}

fn check(parsed: &Parsed) -> Result<(), Failure> {
    let lost = ONLY_WITH.iter().filter(|(option, actions)| {
        parsed.has(option) && !actions.iter().any(|action| parsed.has(action))
    });
    let lost: Vec<&str> = lost.map(|(option, _)| *option).collect();
    if !lost.is_empty() {
        return Err(parsed.wrong(format!(
            "Option(s) [{}] are unavailable given other options on the command line",
            lost.join(",")
        )));
    }
    parsed.required("bootstrap-server")?;
    let named = parsed.has("group") || parsed.has("all-groups");
    for (action, option) in
        [("describe", "[describe]"), ("delete", "[delete]"), ("reset-offsets", "[reset-offsets]")]
    {
        if parsed.has(action) && !named {
            return Err(parsed.wrong(format!(
                "Option {option} takes one of these options: [all-groups], [group]"
            )));
        }
    }
    if parsed.has("describe")
        && ["members", "offsets", "state"].iter().filter(|option| parsed.has(option)).count() > 1
    {
        return Err(parsed.wrong(
            "Option [describe] takes at most one of these options: [members], [offsets], [state]",
        ));
    }
    if parsed.has("describe") && parsed.value("state").is_some() {
        return Err(parsed.wrong("Option [describe] does not take a value for [state]"));
    }
    if parsed.has("delete") && parsed.has("topic") {
        return Err(parsed.wrong(
            "The consumer does not support topic-specific offset deletion from a consumer group.",
        ));
    }
    if parsed.has("delete-offsets") && !(parsed.has("group") && parsed.has("topic")) {
        return Err(
            parsed.wrong("Option [delete-offsets] takes the following options: [group], [topic]")
        );
    }
    if parsed.has("reset-offsets") && parsed.has("dry-run") && parsed.has("execute") {
        return Err(
            parsed.wrong("Option [reset-offsets] only accepts one of [execute] and [dry-run]")
        );
    }
    for (index, scenario) in reset::SCENARIOS.iter().enumerate() {
        parsed.excludes(scenario, reset::SCENARIOS.get(index + 1..).unwrap_or_default())?;
    }
    // Kafka's tool passes over these: it deletes in spite of --dry-run, and resets all topics in
    // spite of --topic. What it passes over without harm stays allowed: --list lists --all-groups
    // anyway, and --describe and --delete mean --all-topics.
    for option in ["dry-run", "execute", "export"].iter().chain(&reset::SCENARIOS) {
        parsed.excludes(option, &["list", "describe", "delete", "delete-offsets"])?;
    }
    parsed.excludes("topic", &["all-topics", "from-file"])?;
    parsed.excludes("group", &["all-groups"])?;
    parsed.excludes("group", &["list"])?;
    parsed.excludes("topic", &["list", "describe"])
}

/// Kafka's tool says its errors on stdout, after an empty line, and ends with 0.
fn complain(out: &mut (dyn Write + Send), line: impl std::fmt::Display) -> Result<(), Failure> {
    Ok(writeln!(out, "\nError: {line}")?)
}

fn command_failed(
    out: &mut (dyn Write + Send),
    why: impl std::fmt::Display,
) -> Result<(), Failure> {
    complain(out, format!("Executing consumer group command failed due to {why}"))
}

/// Kafka's tool finds out as late as a call that fails, and says and ends the same.
fn two_values_refused(line: String) -> Failure {
    Failure::Asked(format!("\nError: Executing consumer group command failed due to {line}\n"))
}

/// What Kafka's tool says when a call fails.
fn failed_call(out: &mut (dyn Write + Send), error: &Error) -> Result<(), Failure> {
    match error {
        Error::Broker(error) => command_failed(out, java_cause(error)),
        other => Err(Failure::Stderr(plain(other))),
    }
}

async fn group_names(client: &Client, parsed: &Parsed) -> Result<Vec<String>, Error> {
    if parsed.has("all-groups") {
        return Ok(consumer_groups(client, &[], &[])
            .await?
            .into_iter()
            .map(|group| group.group)
            .collect());
    }
    Ok(parsed.values("group").into_iter().map(str::to_owned).collect())
}

async fn consumer_groups(
    client: &Client,
    states: &[String],
    kinds: &[String],
) -> Result<Vec<ListedGroup>, Error> {
    let groups = client.list_groups(states, kinds).await?;
    Ok(groups
        .into_values()
        .filter(|group| matches!(group.protocol_type.as_str(), "" | "consumer"))
        .collect())
}

async fn list(
    client: &Client,
    parsed: &Parsed,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    const STATES: [&str; 7] = [
        "PreparingRebalance",
        "CompletingRebalance",
        "Stable",
        "Dead",
        "Empty",
        "Assigning",
        "Reconciling",
    ];
    let states = known(parsed, "state", &STATES, |_| {
        format!(
            "Invalid state list '{}'. Valid states are: {}",
            parsed.value("state").unwrap_or_default(),
            STATES.join(", ")
        )
    })?;
    let kinds = known(parsed, "type", &["Classic", "Consumer"], |word| {
        format!("Invalid types list '{word}'. Valid types are: Classic, Consumer")
    })?;
    let states: Vec<String> = states.into_iter().map(str::to_owned).collect();
    let kinds: Vec<String> = kinds.into_iter().map(str::to_ascii_lowercase).collect();
    let groups = match consumer_groups(client, &states, &kinds).await {
        Ok(groups) => groups,
        Err(error) => return failed_call(out, &error),
    };
    Ok(print_list(&groups, parsed.has("type"), parsed.has("state"), out)?)
}

/// The words of a list behind `option`, each in the spelling of `words`; `wrong` says that one is
/// none of them.
fn known(
    parsed: &Parsed,
    option: &str,
    words: &[&'static str],
    wrong: impl Fn(&str) -> String,
) -> Result<Vec<&'static str>, Failure> {
    let given = parsed.value(option).into_iter().flat_map(listed);
    given
        .map(|word| {
            let found = words.iter().find(|known| known.eq_ignore_ascii_case(word));
            found.copied().ok_or_else(|| parsed.wrong(wrong(word)))
        })
        .collect()
}

/// Names alone, or a table with what was asked for.
fn print_list(
    groups: &[ListedGroup],
    with_type: bool,
    with_state: bool,
    out: &mut (dyn Write + Send),
) -> std::io::Result<()> {
    if !with_type && !with_state {
        for group in groups {
            writeln!(out, "{}", group.group)?;
        }
        return Ok(());
    }
    let width = groups.iter().map(|group| group.group.len()).max().unwrap_or(0).max(15) + 10;
    let mut row = |group: &str, kind: &str, state: &str| {
        write!(out, "{group:<width$}")?;
        if with_type {
            write!(out, " {kind:<20}")?;
        }
        if with_state {
            write!(out, " {state:<20}")?;
        }
        writeln!(out)
    };
    row("GROUP", "TYPE", "STATE")?;
    for group in groups {
        let kind = match group.kind.to_ascii_lowercase().as_str() {
            "classic" => "Classic",
            "consumer" => "Consumer",
            _ => "Unknown",
        };
        row(&group.group, kind, if group.state.is_empty() { "Unknown" } else { &group.state })?;
    }
    Ok(())
}

async fn delete(
    client: &Client,
    parsed: &Parsed,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let groups = match group_names(client, parsed).await {
        Ok(groups) => groups,
        Err(error) => return failed_call(out, &error),
    };
    let outcomes = client.delete_groups(&groups).await;
    let deleted: Vec<String> = outcomes
        .iter()
        .filter(|(_, outcome)| outcome.is_ok())
        .map(|(group, _)| format!("'{group}'"))
        .collect();
    let deleted = deleted.join(", ");
    if outcomes.values().all(Result::is_ok) {
        writeln!(out, "Deletion of requested consumer groups ({deleted}) was successful.")?;
        return Ok(());
    }
    complain(out, "Deletion of some consumer groups failed:")?;
    for (group, outcome) in &outcomes {
        if let Err(error) = outcome {
            let cause = match error {
                Error::Broker(error) => java_cause(error),
                other => other.to_string(),
            };
            writeln!(out, "* Group '{group}' could not be deleted due to: {cause}")?;
        }
    }
    if !deleted.is_empty() {
        writeln!(out, "\nThese consumer groups were deleted successfully: {deleted}")?;
    }
    Ok(())
}

/// A partition and what became of its offset; partition -1 is a topic as a whole.
type Deleted = (TopicPartition, Result<(), String>);

async fn delete_offsets(
    client: &Client,
    parsed: &Parsed,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let group = parsed.required("group")?;
    let (topics, mut partitions) = topics_and_partitions(parsed)?;
    let mut rows = match add_partitions(client, &topics, &mut partitions).await {
        Ok(unknown) => unknown,
        Err(error) => return failed_call(out, &error),
    };
    let outcomes = if partitions.is_empty() {
        Ok(BTreeMap::new())
    } else {
        client.delete_group_offsets(group, &partitions).await
    };
    match outcomes {
        Ok(outcomes) => {
            if outcomes.values().all(Result::is_ok) {
                writeln!(out, "Request succeeded for deleting offsets from group {group}.")?;
            } else {
                complain(
                    out,
                    "Encountered some partition-level error, see the follow-up details.",
                )?;
            }
            rows.extend(outcomes.into_iter().map(|(partition, outcome)| {
                (partition, outcome.map_err(|error| java_cause(&error)))
            }));
        }
        Err(Error::Broker(error))
            if matches!(error.code, ErrorCode::GroupIdNotFound | ErrorCode::NonEmptyGroup) =>
        {
            complain(out, sentence(&error))?;
            rows.extend(
                partitions.into_iter().map(|partition| (partition, Err(java_cause(&error)))),
            );
        }
        Err(error) => return failed_call(out, &error),
    }
    Ok(print_deleted(rows, out)?)
}

/// What `--topic` names: whole topics, and single partitions.
fn topics_and_partitions(parsed: &Parsed) -> Result<(Vec<String>, Vec<TopicPartition>), Failure> {
    let (mut topics, mut partitions) = (Vec::new(), Vec::new());
    for word in parsed.values("topic") {
        if word.contains(':') {
            partitions.extend(partitions_of(word).map_err(|line| parsed.wrong(line))?);
        } else {
            topics.push(word.to_owned());
        }
    }
    Ok((topics, partitions))
}

/// `topic:0,1`.
fn partitions_of(word: &str) -> Result<Vec<TopicPartition>, String> {
    let (topic, ids) = match word.split(':').collect::<Vec<_>>().as_slice() {
        [topic, ids] => (*topic, *ids),
        _ => return Err(format!("Invalid topic arg '{word}', expected topic name and partitions")),
    };
    let id = |text: &str| {
        text.trim()
            .parse()
            .map_err(|_| format!("Invalid partition '{text}' specified in topic arg '{word}''"))
    };
    ids.split(',').map(|text| Ok(TopicPartition::new(topic, id(text)?))).collect()
}

/// Adds all partitions of `topics`; returns the topics whose partitions cannot be told.
async fn add_partitions(
    client: &Client,
    topics: &[String],
    partitions: &mut Vec<TopicPartition>,
) -> Result<Vec<Deleted>, Error> {
    let mut unknown = Vec::new();
    if topics.is_empty() {
        return Ok(unknown);
    }
    for (name, topic) in client.metadata(Some(topics)).await?.topics {
        match topic.error {
            Some(code) => {
                let cause = java_cause(&BrokerError { code, message: None });
                unknown.push((TopicPartition::new(name, -1), Err(cause)));
            }
            None => partitions
                .extend(topic.partitions.keys().map(|id| TopicPartition::new(name.clone(), *id))),
        }
    }
    Ok(unknown)
}

fn print_deleted(mut rows: Vec<Deleted>, out: &mut (dyn Write + Send)) -> std::io::Result<()> {
    rows.sort_by_key(|(partition, _)| format!("{}{}", partition.topic, partition.partition));
    let width = rows.iter().map(|(partition, _)| partition.topic.len()).max().unwrap_or(0).max(15);
    write!(out, "\n{:<width$} {:<10} {:<15}", "TOPIC", "PARTITION", "STATUS")?;
    for (partition, outcome) in rows {
        let id =
            if partition.partition >= 0 { partition.partition.to_string() } else { "-".to_owned() };
        let status =
            outcome.map_or_else(|cause| format!("Error: {cause}"), |()| "Successful".to_owned());
        write!(out, "\n{:<width$} {id:<10} {status:<15}", partition.topic)?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_may_name_some_of_its_partitions() {
        assert_eq!(
            partitions_of("t:0,2").unwrap(),
            [TopicPartition::new("t", 0), TopicPartition::new("t", 2)]
        );
        assert!(partitions_of("t:x").is_err() && partitions_of("t:1:2").is_err());
    }
}
