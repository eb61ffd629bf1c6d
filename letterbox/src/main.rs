//! `letterbox`: the broker, Kafka's command line tools by their names, and `letterbox up`.

mod admin;
mod args;
mod container;
mod image_env;
mod limits;
mod logging;
#[cfg(test)]
mod real_life;
mod server_tools;
mod storage_tool;
mod tools;

use std::ffi::OsString;
use std::future::poll_fn;
use std::path::Path;
use std::process::ExitCode;
use std::task::Poll;

use anyhow::{Context, bail};
use letterbox_broker::config::{Config, parse_properties};
use letterbox_broker::node::{Node, StartError};
use letterbox_env::Env;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info};

// The system's allocator is slow under many threads, musl's more so; this one is small and even.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use letterbox_operator::platform::local::{CONFIGURATION_REFUSED, PORT_TAKEN};

fn main() -> ExitCode {
    limits::on_own_stack(run)
}

fn run() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let called = arguments
        .first()
        .and_then(|path| Path::new(path).file_name()?.to_str())
        .unwrap_or("letterbox")
        .to_owned();
    let command = match tools::tool_of(&called) {
        Some(tool) => {
            Ok(args::Command::Tool { name: tool.to_owned(), arguments: arguments.split_off(1) })
        }
        None => args::parse(arguments.split_off(1.min(arguments.len()))),
    };
    let command = match command.map(tools::run_own) {
        Ok(Ok(command)) => command,
        Ok(Err(code)) => return code,
        Err(end) => return end.say(),
    };
    let (json, configuration) = match command {
        args::Command::Tool { name, arguments } => return run_tool(&name, arguments),
        args::Command::Admin(options) => return run_admin(&options),
        args::Command::Up(up) => {
            return run_up(up).unwrap_or_else(|error| refuse(&error, false, ExitCode::FAILURE));
        }
        args::Command::Broker { config, overrides, log } => (
            log.json,
            logging::start(&log).and_then(|()| Ok((read_config(&config, &overrides)?, Vec::new()))),
        ),
        args::Command::Container { log } => {
            (log.json, logging::start(&log).and_then(|()| container::configuration()))
        }
    };
    match configuration {
        Ok((config, topics)) => run_broker(config, topics).unwrap_or_else(|error| {
            let is_of_taken_port =
                error.downcast_ref::<StartError>().is_some_and(StartError::is_of_taken_port);
            let code =
                if is_of_taken_port { ExitCode::from(PORT_TAKEN) } else { ExitCode::FAILURE };
            refuse(&error, json, code)
        }),
        // Trying again cannot help: whoever started this tells it from a broker that failed.
        Err(error) => refuse(&error, json, ExitCode::from(CONFIGURATION_REFUSED)),
    }
}

fn refuse(error: &anyhow::Error, json: bool, code: ExitCode) -> ExitCode {
    logging::say_refusal(error, json);
    code
}

/// One thread is enough for a tool, and starts fastest.
fn start_runtime(tool: &str) -> Result<tokio::runtime::Runtime, ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        eprintln!("{tool}: cannot start: {error}");
        ExitCode::FAILURE
    })
}

fn run_admin(options: &admin::Options) -> ExitCode {
    let runtime = match start_runtime("letterbox admin") {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    runtime.block_on(admin::run(&Env::real(), options))
}

/// Runs one of Kafka's tools.
fn run_tool(tool: &str, arguments: Vec<OsString>) -> ExitCode {
    let runtime = match start_runtime(tool) {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    let arguments = match tools::as_text(tool, arguments) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let code = runtime.block_on(async {
        let mut stdin = match letterbox_cli::stdin() {
            Ok(stdin) => stdin,
            Err(error) => {
                eprintln!("{tool}: standard input: {error}");
                return 1;
            }
        };
        let (mut stdout, mut stderr) = (std::io::stdout(), std::io::stderr());
        let streams =
            letterbox_cli::Streams { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr };
        letterbox_cli::run(Env::real(), tool, arguments, streams).await
    });
    // A read from standard input that nobody waits for any more must not hold the exit up.
    runtime.shutdown_background();
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn read_config(path: &Path, overrides: &[(String, String)]) -> anyhow::Result<Config> {
    let bytes = Env::real()
        .disk
        .read(path)
        .with_context(|| format!("read {} (--config)", path.display()))?;
    let pairs = parse_properties(bytes).with_context(|| format!("{}", path.display()))?;
    Config::from_pairs(pairs.into_iter().chain(overrides.iter().cloned()))
        .with_context(|| format!("{}", path.display()))
}

fn run_broker(config: Config, topics: Vec<image_env::TopicToCreate>) -> anyhow::Result<ExitCode> {
    letterbox_env::panics::end_process_on_panic();
    limits::raise();
    limits::check_threads()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        let mut stop = Stop::new()?;
        let mut file_limit = limits::FileLimit::hear()?;
        // Not on this thread's stack, which would keep the room that the start takes.
        let started = Box::pin(Node::start(Env::real(), config, stop.asked())).await?;
        let Some(broker) = started else { return Ok(ExitCode::SUCCESS) };
        let make_topics = async {
            container::create_topics(&broker, topics).await;
            std::future::pending().await
        };
        let fatal = tokio::select! {
            biased;
            () = stop.asked() => None,
            reason = broker.fatal() => Some(reason),
            () = make_topics => None,
            () = file_limit.tell() => None,
        };
        if let Some(reason) = fatal {
            error!(reason, "the broker cannot go on");
            bail!("the broker cannot go on: {reason}");
        }
        info!("received a signal to stop");
        broker.shutdown().await?;
        Ok(ExitCode::SUCCESS)
    });
    runtime.shutdown_background();
    code
}

/// The signals that ask for an orderly end: SIGTERM, SIGINT, and SIGHUP as long as nobody had it
/// ignored, as `nohup` does.
struct Stop(Vec<Signal>);

impl Stop {
    fn new() -> std::io::Result<Self> {
        let mut kinds = vec![SignalKind::terminate(), SignalKind::interrupt()];
        if !is_hangup_ignored() {
            kinds.push(SignalKind::hangup());
        }
        kinds.into_iter().map(signal).collect::<Result<_, _>>().map(Self)
    }

    async fn asked(&mut self) {
        poll_fn(|context| {
            let asked = self.0.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
            if asked { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

fn is_hangup_ignored() -> bool {
    let status = Env::real().disk.read(Path::new("/proc/self/status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // The lowest bit is signal 1.
    mask.is_some_and(|mask| mask & 1 == 1)
}

fn run_up(options: letterbox_operator::up::UpOptions) -> anyhow::Result<ExitCode> {
    letterbox_env::panics::end_process_on_panic();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let code = runtime.block_on(letterbox_operator::up::up(options))?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
