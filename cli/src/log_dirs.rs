//! `kafka-log-dirs`.

use std::collections::BTreeSet;
use std::io::Write;

use letterbox_client::LogDirectory;
use letterbox_env::{Env, Gather};

use crate::args::{Grammar, Spec, Takes};
use crate::connect;
use crate::failure::{Failure, java_class};
use crate::text::joined;

const SPECS: [Spec; 3] = [
    (
        "broker-list",
        Takes::Value("String: Broker list"),
        "The brokers to query, as 0,1,2. (default: all)",
    ),
    ("describe", Takes::Nothing, "REQUIRED: Describe the log directories of the brokers."),
    (
        "topic-list",
        Takes::Value("String: Topic list"),
        "The topics to show, as topic1,topic2. (default: all)",
    ),
];

/// Runs the tool.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let parsed = Grammar::new(
        "This tool helps to query log directory usage on the specified brokers.",
        &SPECS,
    )
    .parse(args)?;
    parsed.required("bootstrap-server")?;
    if !parsed.has("describe") {
        return Err(parsed.wrong("Missing required argument \"[describe]\""));
    }
    let words = |option: &str| -> BTreeSet<&str> {
        parsed
            .value(option)
            .into_iter()
            .flat_map(|list| list.split(','))
            .filter(|word| !word.is_empty())
            .gather()
    };
    let topics = words("topic-list");
    let wrong = |word: &str| {
        Failure::Stderr(format!(
            "--broker-list takes ids of brokers separated by commas, but received: {word}"
        ))
    };
    let wanted: Vec<i32> = words("broker-list")
        .into_iter()
        .map(|word| word.parse().map_err(|_| wrong(word)))
        .collect::<Result<_, _>>()?;
    let client = connect::admin(env, &parsed, None, err).await?;
    let live: Vec<i32> = client.describe_cluster().await?.brokers.into_keys().collect();
    let missing: Vec<i32> = wanted.iter().filter(|id| !live.contains(id)).copied().collect();
    if !missing.is_empty() {
        let (missing, live) = (joined(&missing), joined(&live));
        let line = format!(
            "ERROR: The given brokers do not exist from --broker-list: {missing}. Current existent \
             brokers: {live}"
        );
        return Err(Failure::Stderr(line));
    }
    let asked = if wanted.is_empty() { live } else { wanted };
    writeln!(out, "Querying brokers for log directories information")?;
    out.flush()?;
    let mut brokers = Vec::new();
    for id in &asked {
        let directories: Vec<String> = client
            .describe_log_dirs(*id)
            .await?
            .iter()
            .map(|directory| json(directory, &topics))
            .collect();
        brokers.push(format!("{{\"broker\":{id},\"logDirs\":[{}]}}", directories.join(",")));
    }
    writeln!(out, "Received log directory information from brokers {}", joined(&asked))?;
    writeln!(out, "{{\"brokers\":[{}],\"version\":1}}", brokers.join(","))?;
    Ok(0)
}

/// With the fields in the order of Kafka's tool.
fn json(directory: &LogDirectory, topics: &BTreeSet<&str>) -> String {
    let shown = directory
        .replicas
        .iter()
        .filter(|(partition, _)| topics.is_empty() || topics.contains(partition.topic.as_str()));
    let replicas: Vec<String> = shown
        .map(|(partition, replica)| {
            let name = crate::json::text(&partition.to_string());
            format!(
                "{{\"partition\":{name},\"size\":{},\"offsetLag\":{},\"isFuture\":{}}}",
                replica.bytes, replica.offset_lag, replica.is_future
            )
        })
        .collect();
    let error = directory
        .error
        .as_ref()
        .map_or_else(|| "null".to_owned(), |error| crate::json::text(&java_class(error.code)));
    let path = crate::json::text(&directory.path);
    format!("{{\"partitions\":[{}],\"error\":{error},\"logDir\":{path}}}", replicas.join(","))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use letterbox_client::{BrokerError, ErrorCode, LogReplica, TopicPartition};

    use super::*;

    #[test]
    fn directories_are_printed_as_kafka_prints_them() {
        let replica = LogReplica { bytes: 92, offset_lag: 0, is_future: false };
        let replicas = BTreeMap::from([
            (TopicPartition::new("a", 1), replica),
            (TopicPartition::new("b", 0), replica),
        ]);
        let mut directory = LogDirectory { path: "/da\"ta".to_owned(), error: None, replicas };
        let expected = r#"{"partitions":[{"partition":"a-1","size":92,"offsetLag":0,"isFuture":false}],"error":null,"logDir":"/da\"ta"}"#;
        assert_eq!(json(&directory, &BTreeSet::from(["a"])), expected);
        directory.replicas.clear();
        directory.error = Some(BrokerError { code: ErrorCode::KafkaStorageError, message: None });
        let error = "org.apache.kafka.common.errors.KafkaStorageException";
        assert_eq!(
            json(&directory, &BTreeSet::new()),
            format!(r#"{{"partitions":[],"error":"{error}","logDir":"/da\"ta"}}"#)
        );
    }
}
