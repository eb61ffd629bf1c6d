//! Kafka's command line tools in one native binary.
//!
//! The interface is Kafka's: names of tools and options, defaults, what is printed on which stream,
//! and exit codes, so that people's fingers and scripts work unchanged. An option of Kafka's that
//! is not supported is refused by its name, never ignored. `e2e/cli/compare` runs these tools and
//! the Java ones against one cluster and compares.

mod acls;
mod args;
mod broker_api_versions;
mod cluster;
pub mod command_line;
mod configs;
mod connect;
mod console_consumer;
mod console_producer;
mod coordinator_records;
mod delete_records;
mod deserializers;
mod dump_log;
mod failure;
mod features;
mod files;
mod formatters;
mod get_offsets;
mod groups;
mod json;
mod leader_election;
mod list_groups;
mod log_dirs;
mod metadata_quorum;
mod metrics;
mod pattern;
mod perf_consumer;
mod perf_producer;
mod reassign;
mod sending;
mod text;
mod topics;
mod transactions;
mod verifiable_consumer;
mod verifiable_producer;

use std::io::Write;

use letterbox_env::Env;
use tokio::io::AsyncRead;

use failure::Failure;

/// The version that `--version` prints: that of Apache Kafka whose tools these follow.
pub const KAFKA_VERSION: &str = "4.3.1";

/// The streams of a tool.
pub struct Streams<'a> {
    /// Records to send.
    pub stdin: &'a mut (dyn AsyncRead + Send + Unpin),
    /// Results.
    pub stdout: &'a mut (dyn Write + Send),
    /// Complaints.
    pub stderr: &'a mut (dyn Write + Send),
}

/// Standard input for [`Streams::stdin`]. Reads happen on the runtime's own blocking threads; shut
/// the runtime down with `shutdown_background`, or the process waits for a line that nobody types.
///
/// # Errors
/// When there is no standard input.
#[expect(clippy::disallowed_methods, reason = "standard input is no file of the seam's")]
pub fn stdin() -> std::io::Result<impl AsyncRead + Send + Unpin> {
    use std::os::fd::AsFd;
    let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
    Ok(tokio::fs::File::from_std(std::fs::File::from(stdin)))
}

/// The tools, by the names they are called by (each also with `.sh`).
#[must_use]
pub fn tool_names() -> &'static [&'static str] {
    &[
        "kafka-topics",
        "kafka-configs",
        "kafka-get-offsets",
        "kafka-consumer-groups",
        "kafka-console-producer",
        "kafka-console-consumer",
        "kafka-producer-perf-test",
        "kafka-consumer-perf-test",
        "kafka-acls",
        "kafka-broker-api-versions",
        "kafka-cluster",
        "kafka-delete-records",
        "kafka-dump-log",
        "kafka-features",
        "kafka-groups",
        "kafka-leader-election",
        "kafka-log-dirs",
        "kafka-metadata-quorum",
        "kafka-reassign-partitions",
        "kafka-transactions",
        "kafka-verifiable-consumer",
        "kafka-verifiable-producer",
    ]
}

/// Whether `name`, which may be a path and end in `.sh`, is one of [`tool_names`]; its plain name.
#[must_use]
pub fn tool_of(name: &str) -> Option<&'static str> {
    let name = plain_name(name);
    tool_names().iter().find(|tool| **tool == name).copied()
}

/// The name of a tool without its path and without `.sh`.
#[must_use]
pub fn plain_name(name: &str) -> &str {
    let name = name.rsplit('/').next().unwrap_or(name);
    name.strip_suffix(".sh").unwrap_or(name)
}

/// Runs `tool` (see [`tool_of`]) with `args` (without the tool's own name) and returns its exit
/// code.
pub async fn run(env: Env, tool: &str, args: Vec<String>, streams: Streams<'_>) -> i32 {
    let Streams { stdin, stdout, stderr } = streams;
    let result = match tool_of(tool) {
        Some("kafka-topics") => topics::run(&env, args, stdout, stderr).await,
        Some("kafka-configs") => configs::run(&env, args, stdout, stderr).await,
        Some("kafka-get-offsets") => get_offsets::run(&env, args, stdout, stderr).await,
        Some("kafka-consumer-groups") => groups::run(&env, args, stdout, stderr).await,
        Some("kafka-console-producer") => {
            console_producer::run(&env, args, stdin, stdout, stderr).await
        }
        Some("kafka-console-consumer") => console_consumer::run(&env, args, stdout, stderr).await,
        Some("kafka-producer-perf-test") => perf_producer::run(&env, args, stdout, stderr).await,
        Some("kafka-consumer-perf-test") => perf_consumer::run(&env, args, stdout, stderr).await,
        Some("kafka-acls") => acls::run(&env, args, stdout, stderr).await,
        Some("kafka-broker-api-versions") => {
            broker_api_versions::run(&env, args, stdout, stderr).await
        }
        Some("kafka-cluster") => cluster::run(&env, args, stdout, stderr).await,
        Some("kafka-delete-records") => delete_records::run(&env, args, stdout, stderr).await,
        Some("kafka-dump-log") => dump_log::run(&env, args, stdout, stderr),
        Some("kafka-features") => features::run(&env, args, stdout, stderr).await,
        Some("kafka-groups") => list_groups::run(&env, args, stdout, stderr).await,
        Some("kafka-leader-election") => leader_election::run(&env, args, stdout, stderr).await,
        Some("kafka-log-dirs") => log_dirs::run(&env, args, stdout, stderr).await,
        Some("kafka-metadata-quorum") => metadata_quorum::run(&env, args, stdout, stderr).await,
        Some("kafka-reassign-partitions") => reassign::run(&env, args, stdout, stderr).await,
        Some("kafka-transactions") => transactions::run(&env, args, stdout, stderr).await,
        Some("kafka-verifiable-consumer") => {
            verifiable_consumer::run(&env, args, stdout, stderr).await
        }
        Some("kafka-verifiable-producer") => {
            verifiable_producer::run(&env, args, stdout, stderr).await
        }
        _ => Err(Failure::Stderr(format!(
            "{tool} is not one of the tools: {}",
            tool_names().join(", ")
        ))),
    };
    command_line::exit_code(result, stdout, stderr)
}
