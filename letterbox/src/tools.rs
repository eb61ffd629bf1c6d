//! Kafka's tools by their names: most are `letterbox-cli`; those that need the broker's own code
//! are here.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use letterbox_cli::command_line::exit_code;
use letterbox_env::{Env, with_causes};

use crate::args::Command;
use crate::server_tools::{self, Start};
use crate::{logging, read_config, storage_tool};

const OWN: [&str; 3] = ["kafka-server-start", "kafka-server-stop", "kafka-storage"];

/// The tool that `name`, which may be a path and end in `.sh`, calls.
pub(crate) fn tool_of(name: &str) -> Option<&'static str> {
    let own = || OWN.iter().find(|tool| **tool == letterbox_cli::plain_name(name)).copied();
    letterbox_cli::tool_of(name).or_else(own)
}

/// All tools.
pub(crate) fn names() -> Vec<&'static str> {
    letterbox_cli::tool_names().iter().chain(&OWN).copied().collect()
}

/// The arguments of `tool`.
///
/// # Errors
/// The exit code, when one is not text; that is said.
pub(crate) fn as_text(tool: &str, arguments: Vec<OsString>) -> Result<Vec<String>, ExitCode> {
    arguments.into_iter().map(OsString::into_string).collect::<Result<_, _>>().map_err(|_| {
        eprintln!("{tool}: an argument is not UTF-8");
        ExitCode::FAILURE
    })
}

/// Runs `command` when it is one of the tools that are here, or says what runs in their place.
///
/// # Errors
/// The exit code of a tool that has ended.
pub(crate) fn run_own(command: Command) -> Result<Command, ExitCode> {
    let (name, arguments) = match command {
        Command::Tool { name, arguments } if OWN.contains(&name.as_str()) => (name, arguments),
        command => return Ok(command),
    };
    let (mut stdout, mut stderr) = (std::io::stdout(), std::io::stderr());
    let arguments = as_text(&name, arguments)?;
    let code = match name.as_str() {
        "kafka-server-start" => match server_tools::start(&arguments) {
            Start::Here { config, overrides } => {
                return Ok(Command::Broker { config, overrides, log: logging::Options::default() });
            }
            Start::Behind(arguments) => {
                let called = std::env::args().next().unwrap_or_default();
                let folder = server_tools::output_folder(&called, std::env::var("LOG_DIR").ok());
                match server_tools::run_behind(&arguments, &folder) {
                    Ok(()) => 0,
                    Err(error) => {
                        eprintln!("{name}: {}", with_causes(error.as_ref()));
                        1
                    }
                }
            }
            Start::Say(text, code) => {
                // There is nobody to tell when nobody reads.
                let _ = if code == 0 {
                    stdout.write_all(text.as_bytes())
                } else {
                    stderr.write_all(text.as_bytes())
                };
                code
            }
        },
        "kafka-server-stop" => {
            server_tools::stop(&arguments, &mut stdout, &mut stderr).unwrap_or(1)
        }
        _ => {
            let read = |path: &std::path::Path| read_config(path, &[]);
            exit_code(
                storage_tool::run(&Env::real(), arguments, read, &mut stdout),
                &mut std::io::stdout(),
                &mut stderr,
            )
        }
    };
    Err(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
