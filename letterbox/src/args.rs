//! The command line of `letterbox` itself.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use letterbox_operator::up::UpOptions;

use crate::{admin, logging, tools};

/// What was asked for.
pub(crate) enum Command {
    /// `letterbox broker`.
    Broker { config: PathBuf, overrides: Vec<(String, String)>, log: logging::Options },
    /// `letterbox container`: what the image runs.
    Container { log: logging::Options },
    /// `letterbox up`.
    Up(UpOptions),
    /// `letterbox admin …`.
    Admin(admin::Options),
    /// `letterbox tool NAME …`.
    Tool { name: String, arguments: Vec<OsString> },
}

/// Why nothing runs: help, version, or a mistake.
pub(crate) struct End(clap::Error);

impl End {
    /// Prints it; help and version end well.
    pub(crate) fn say(self) -> ExitCode {
        let code = self.0.exit_code();
        // Nothing is left to do when standard output is closed.
        let _ = self.0.print();
        ExitCode::from(u8::try_from(code).unwrap_or(2))
    }
}

#[derive(Parser)]
#[command(
    name = "letterbox",
    version,
    about = "A Kafka-compatible broker. Called by the name of one of Kafka's tools (kafka-topics, \
        kafka-console-consumer, …), it runs that tool."
)]
struct Letterbox {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Subcommand)]
enum Sub {
    /// Run a broker from a server.properties file.
    Broker {
        /// The file, with Kafka's setting names.
        #[arg(long)]
        config: PathBuf,
        /// A setting that overrides the file, as KEY=VALUE. May be repeated.
        #[arg(long = "override", value_parser = pair)]
        overrides: Vec<(String, String)>,
        #[command(flatten)]
        log: Log,
    },
    /// Run a broker as the container image does: from KAFKA_* variables and
    /// /mnt/shared/config/server.properties.
    Container {
        #[command(flatten)]
        log: Log,
    },
    /// Run the clusters and topics of a YAML file as local processes, without Kubernetes.
    Up {
        /// The file with KafkaCluster and KafkaTopic documents, as for kubectl apply.
        file: PathBuf,
        /// Directory for the data.
        #[arg(long, default_value = ".letterbox")]
        data: PathBuf,
        /// Port of the first broker for clients; the others follow.
        #[arg(long, default_value_t = 9092)]
        port: u16,
    },
    /// Ask a cluster before its brokers are restarted.
    Admin(admin::Options),
    /// Run one of Kafka's tools by name, as in: letterbox tool kafka-topics --list
    /// --bootstrap-server localhost:9092
    Tool {
        /// The tool's name, and its arguments.
        // One list: what follows the name is the tool's, `--help` too.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        name: Vec<OsString>,
    },
}

#[derive(Args)]
struct Log {
    /// Format of log lines.
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    log_format: String,
    /// What is logged: error, warn, info, debug, or directives per module.
    #[arg(long)]
    log_level: Option<String>,
}

impl From<Log> for logging::Options {
    fn from(log: Log) -> Self {
        Self { json: log.log_format == "json", level: log.log_level }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

/// Reads the arguments after the program's name. Without any, inside the image, the broker runs.
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Command, End> {
    let all = std::iter::once(OsString::from("letterbox")).chain(arguments);
    Ok(match Letterbox::try_parse_from(all).map_err(End)?.command {
        Sub::Broker { config, overrides, log } => {
            Command::Broker { config, overrides, log: log.into() }
        }
        Sub::Container { log } => Command::Container { log: log.into() },
        Sub::Admin(options) => Command::Admin(options),
        Sub::Up { file, data, port } => Command::Up(UpOptions { file, data, port }),
        Sub::Tool { name: mut arguments } => {
            // One is required.
            let name = arguments.remove(0).to_string_lossy().into_owned();
            let Some(tool) = tools::tool_of(&name) else {
                let known = tools::names().join(", ");
                let error = clap::Error::raw(
                    clap::error::ErrorKind::InvalidValue,
                    format!("{name} is not one of the tools of this version: {known}\n"),
                );
                return Err(End(error));
            };
            Command::Tool { name: tool.to_owned(), arguments }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_name_of_a_tool_is_the_tools() {
        let parsed = |line: &str| parse(line.split(' ').map(OsString::from).collect());
        for arguments in ["--help", "-h --version", "--list --help", "describe"] {
            let Ok(Command::Tool { name, arguments: found }) =
                parsed(&format!("tool kafka-features.sh {arguments}"))
            else {
                panic!("{arguments}")
            };
            assert_eq!(name, "kafka-features");
            assert_eq!(found.join(" ".as_ref()), arguments);
        }
        for line in ["tool", "tool --help", "tool kafka-nothing --help"] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
