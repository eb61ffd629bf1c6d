//! `kafka-leader-election`.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use letterbox_client::{ElectionType, Error, ErrorCode, TopicPartition};
use letterbox_env::Env;
use serde_json::Value;

use crate::args::{Grammar, Parsed, Spec, Takes};
use crate::connect;
use crate::failure::{Failure, java_cause, plain};
use crate::{files, json};

/// How long the tool waits for the election, unless a property file says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);

const SPECS: [Spec; 6] = [
    (
        "admin.config",
        Takes::Value("String: config file"),
        "(DEPRECATED) Property file with client settings. Use --command-config instead.",
    ),
    (
        "all-topic-partitions",
        Takes::Nothing,
        "Elect leaders of all partitions that need one of that type.",
    ),
    (
        "election-type",
        Takes::Value("[PREFERRED,UNCLEAN]: election type"),
        "REQUIRED: preferred: the first replica of the assignment leads, if it is in sync. unclean: \
         where nobody leads, any replica does, also one that may miss acknowledged records.",
    ),
    (
        "partition",
        Takes::Value("Integer: partition id"),
        "The partition of --topic. REQUIRED with --topic.",
    ),
    (
        "path-to-json-file",
        Takes::Value("String: Path to JSON file"),
        "The JSON file with the partitions. Example: {\"partitions\":[{\"topic\":\"foo\",\
         \"partition\":1}]}",
    ),
    ("topic", Takes::Value("String: topic name"), "The topic of the partition."),
];
const WHICH: [&str; 3] = ["topic", "all-topic-partitions", "path-to-json-file"];

/// Runs the tool.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let about = "This tool attempts to elect a new leader for a set of topic partitions. The type \
                 of elections supported are preferred replicas and unclean replicas.";
    let parsed = Grammar::new(about, &SPECS).parse(args)?;
    check(&parsed)?;
    let election = election_type(&parsed)?;
    let partitions = partitions(env, &parsed)?;
    let files = ["command-config", "admin.config"];
    let client = connect::admin_with(env, &parsed, &files, Some(TIMEOUT), err).await?;
    let name = match election {
        ElectionType::Preferred => "PREFERRED",
        ElectionType::Unclean => "UNCLEAN",
    };
    let results = match client.elect_leaders(election, partitions.as_deref()).await {
        Ok(results) => results,
        Err(error) => return Err(failed_call(&error, out)?),
    };
    let of = |wanted: fn(Option<ErrorCode>) -> bool| -> Vec<String> {
        let all = results.iter();
        let all = all.filter(|(_, result)| wanted(result.as_ref().err().map(|error| error.code)));
        all.map(|(partition, _)| partition.to_string()).collect()
    };
    let elected = of(|error| error.is_none());
    if !elected.is_empty() {
        let elected = elected.join(", ");
        writeln!(out, "Successfully completed leader election ({name}) for partitions {elected}")?;
    }
    let unchanged = of(|error| error == Some(ErrorCode::ElectionNotNeeded));
    if !unchanged.is_empty() {
        writeln!(out, "Valid replica already elected for partitions {}", unchanged.join(", "))?;
    }
    let mut failed = 0;
    for (partition, result) in &results {
        if let Err(error) = result
            && error.code != ErrorCode::ElectionNotNeeded
        {
            failed += 1;
            writeln!(
                out,
                "Error completing leader election ({name}) for partition: {partition}: {}",
                java_cause(error)
            )?;
        }
    }
    match failed {
        0 => Ok(0),
        count => Err(Failure::Stderr(format!("{count} replica(s) could not be elected"))),
    }
}

/// As Kafka's tool, which says these without the table of options.
fn check(parsed: &Parsed) -> Result<(), Failure> {
    let refuse = |line: String| Err(Failure::Stderr(line));
    let missing: Vec<&str> = ["bootstrap-server", "election-type"]
        .into_iter()
        .filter(|name| !parsed.has(name))
        .collect();
    if !missing.is_empty() {
        return refuse(format!("Missing required option(s): {}", missing.join(", ")));
    }
    if WHICH.iter().filter(|name| parsed.has(name)).count() != 1 {
        return refuse(format!(
            "One and only one of the following options is required: {}",
            WHICH.join(", ")
        ));
    }
    match (parsed.has("topic"), parsed.has("partition")) {
        (true, false) => refuse("Missing required option(s): partition".to_owned()),
        (false, true) => refuse("Option partition is only allowed if topic is used".to_owned()),
        _ => Ok(()),
    }
}

fn election_type(parsed: &Parsed) -> Result<ElectionType, Failure> {
    let text = parsed.required("election-type")?;
    match text.to_ascii_lowercase().as_str() {
        "preferred" => Ok(ElectionType::Preferred),
        "unclean" => Ok(ElectionType::Unclean),
        _ => {
            Err(Failure::Stderr(format!("Cannot parse argument '{text}' of option election-type")))
        }
    }
}

/// `None` for all there are.
fn partitions(env: &Env, parsed: &Parsed) -> Result<Option<Vec<TopicPartition>>, Failure> {
    if let Some(file) = parsed.value("path-to-json-file") {
        return of_file(&files::read(env, file)?).map(Some).map_err(Failure::Stderr);
    }
    let partition = parsed.number("partition")?.unwrap_or_default();
    Ok(parsed.value("topic").map(|topic| vec![TopicPartition::new(topic, partition)]))
}

fn of_file(bytes: &[u8]) -> Result<Vec<TopicPartition>, String> {
    let file: Value =
        serde_json::from_slice(bytes).map_err(|_| "Replica election data is empty".to_owned())?;
    let all = json::entries(&file, "partitions")?
        .ok_or("Replica election data is missing \"partitions\" field")?;
    let (mut partitions, mut seen) = (Vec::new(), BTreeSet::new());
    for entry in all {
        let partition = json::partition(entry)?;
        if !seen.insert(partition.clone()) {
            return Err(format!(
                "Replica election data contains duplicate partitions: [{partition}]"
            ));
        }
        partitions.push(partition);
    }
    Ok(partitions)
}

/// Some of these Kafka's tool says on both streams.
fn failed_call(error: &Error, out: &mut (dyn Write + Send)) -> std::io::Result<Failure> {
    let line = match error {
        Error::Timeout { .. } => "Timeout waiting for election results".to_owned(),
        _ if error.code() == Some(ErrorCode::ClusterAuthorizationFailed) => {
            "Not authorized to perform leader election".to_owned()
        }
        error => return Ok(Failure::Stderr(plain(error))),
    };
    writeln!(out, "{line}")?;
    Ok(Failure::Stderr(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_names_each_partition_once() {
        let read = |text: &str| of_file(text.as_bytes());
        let one = r#"{"topic":"a","partition":1}"#;
        let some = format!(r#"{{"partitions":[{one},{{"topic":"a","partition":0}}]}}"#);
        assert_eq!(read(&some), Ok(vec![TopicPartition::new("a", 1), TopicPartition::new("a", 0)]));
        for (text, why) in [
            ("", "Replica election data is empty"),
            ("{}", "Replica election data is missing \"partitions\" field"),
            (
                &*format!(r#"{{"partitions":[{one},{one}]}}"#),
                "Replica election data contains duplicate partitions: [a-1]",
            ),
        ] {
            assert_eq!(read(text), Err(why.to_owned()), "{text}");
        }
        assert!(read(r#"{"partitions":[{"topic":"a","partition":"x"}]}"#).is_err());
    }
}
