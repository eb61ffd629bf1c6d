//! `kafka-transactions`: of its commands the one that needs no transactions.

use std::io::Write;

use letterbox_client::TopicPartition;
use letterbox_env::Env;

use crate::args::{Command, Grammar, Parsed, Takes};
use crate::connect;
use crate::failure::Failure;
use crate::text::columns;

const COMMANDS: &[Command] = &[
    ("list", "", &[]),
    ("describe", "", &[]),
    (
        "describe-producers",
        "Describe the states of active producers for a topic partition",
        &[
            (
                "broker-id",
                Takes::Value("BROKER_ID"),
                "The broker to ask, instead of the leader of the partition.",
            ),
            ("topic", Takes::Value("TOPIC"), "REQUIRED: The topic."),
            ("partition", Takes::Value("PARTITION"), "REQUIRED: The partition."),
        ],
    ),
    ("abort", "", &[]),
    ("find-hanging", "", &[]),
    ("forceTerminateTransaction", "", &[]),
];
const HEADER: [&str; 6] = [
    "ProducerId",
    "ProducerEpoch",
    "LatestCoordinatorEpoch",
    "LastSequence",
    "LastTimestamp",
    "CurrentTransactionStartOffset",
];

/// Runs the tool.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let about = "This tool is used to analyze the transactional state of producers in the cluster.";
    let parsed = Grammar::new(about, &[]).argparse(&[]).commands(COMMANDS).parse(args)?;
    let required = |name: &'static str| match parsed.first(&[name]) {
        Some(value) => Ok(value),
        None => Err(parsed.wrong(format!("argument --{name} is required"))),
    };
    let topic = required("topic")?.to_owned();
    let partition = number(&parsed, "partition", required("partition")?)?;
    let at = parsed.first(&["broker-id"]);
    let at = at.map(|id| number(&parsed, "broker-id", id)).transpose()?;
    let client = connect::admin(env, &parsed, None, err).await?;
    let found = client.describe_producers(&TopicPartition::new(topic, partition), at).await?;
    let mut rows = vec![HEADER.map(str::to_owned)];
    rows.extend(found.iter().map(|one| {
        let start = match one.transaction_start {
            ..0 => "None".to_owned(),
            start => start.to_string(),
        };
        [
            one.id.to_string(),
            one.epoch.to_string(),
            one.coordinator_epoch.to_string(),
            one.last_sequence.to_string(),
            one.last_timestamp.to_string(),
            start,
        ]
    }));
    write!(out, "{}", columns(&rows))?;
    Ok(0)
}

fn number(parsed: &Parsed, name: &str, value: &str) -> Result<i32, Failure> {
    value.parse().map_err(|_| {
        parsed.wrong(format!("argument --{name}: could not convert '{value}' to integer (32 bit)"))
    })
}
