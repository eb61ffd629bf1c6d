//! Kafka's command line tools in one native binary.
//!
//! The interface is Kafka's: names of tools and options, defaults, what is printed on which stream, and exit codes, so that people's
//! fingers and scripts work unchanged. An option of Kafka's that is not supported is refused by its name, never ignored.
//! `e2e/cli/compare` runs these tools and the Java ones against one cluster and compares.

mod args;
mod configs;
mod connect;
mod console_consumer;
mod console_producer;
mod failure;
mod get_offsets;
mod groups;
mod perf_consumer;
mod perf_producer;
mod table;
mod topics;

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

/// Standard input for [`Streams::stdin`]. Reads happen on the runtime's own blocking threads; shut the runtime down with
/// `shutdown_background`, or the process waits for a line that nobody types.
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
    ]
}

/// Whether `name`, which may be a path and end in `.sh`, is one of [`tool_names`]; its plain name.
#[must_use]
pub fn tool_of(name: &str) -> Option<&'static str> {
    let name = name.rsplit('/').next().unwrap_or(name);
    let name = name.strip_suffix(".sh").unwrap_or(name);
    tool_names().iter().find(|tool| **tool == name).copied()
}

/// Runs `tool` (see [`tool_of`]) with `args` (without the tool's own name) and returns its exit code.
pub async fn run(env: Env, tool: &str, args: Vec<String>, streams: Streams<'_>) -> i32 {
    let Streams { stdin, stdout, stderr } = streams;
    let result = match tool_of(tool) {
        Some("kafka-topics") => topics::run(&env, args, stdout).await,
        Some("kafka-configs") => configs::run(&env, args, stdout).await,
        Some("kafka-get-offsets") => get_offsets::run(&env, args, stdout).await,
        Some("kafka-consumer-groups") => groups::run(&env, args, stdout, stderr).await,
        Some("kafka-console-producer") => console_producer::run(&env, args, stdin, stdout, stderr).await,
        Some("kafka-console-consumer") => console_consumer::run(&env, args, stdout, stderr).await,
        Some("kafka-producer-perf-test") => perf_producer::run(&env, args, stdout, stderr).await,
        Some("kafka-consumer-perf-test") => perf_consumer::run(&env, args, stdout).await,
        _ => Err(Failure::Stderr(format!("{tool} is not one of the tools: {}", tool_names().join(", ")))),
    };
    let code = match result {
        Ok(code) => code,
        Err(failure) => failure.report(stdout, stderr),
    };
    // A closed pipe (`| head`) is not worth a complaint.
    let _ = stdout.flush();
    let _ = stderr.flush();
    code
}
