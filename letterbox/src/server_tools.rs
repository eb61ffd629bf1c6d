//! `kafka-server-start` and `kafka-server-stop`: what start scripts call.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use letterbox_cli::plain_name;
use rustix::process::{Pid, Signal, kill_process};

/// What `kafka-server-start` was asked for.
pub(crate) enum Start {
    /// To run the broker in this process.
    Here { config: PathBuf, overrides: Vec<(String, String)> },
    /// To run it in another one, behind the terminal.
    Behind(Vec<String>),
    /// Help, the version, or that the line is wrong: what to print, and the exit code.
    Say(String, i32),
}

const USAGE: &str =
    "USAGE: kafka-server-start [-daemon] server.properties [--override property=value]*\n";

/// Reads the arguments of `kafka-server-start`.
pub(crate) fn start(arguments: &[String]) -> Start {
    if arguments.iter().any(|argument| argument == "--help") {
        return Start::Say(USAGE.to_owned(), 0);
    }
    if arguments.iter().any(|argument| argument == "--version") {
        return Start::Say(format!("{}\n", letterbox_cli::KAFKA_VERSION), 0);
    }
    let (behind, rest) = match arguments.split_first() {
        Some((first, rest)) if first == "-daemon" => (true, rest),
        _ => (false, arguments),
    };
    let Some((config, rest)) = rest.split_first().filter(|(config, _)| !config.starts_with('-'))
    else {
        return Start::Say(USAGE.to_owned(), 1);
    };
    let mut overrides = Vec::new();
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        let pair = match word.strip_prefix("--override") {
            Some("") => words.next().map(String::as_str),
            Some(rest) => rest.strip_prefix('='),
            None => {
                return Start::Say(format!("Found non argument parameters: {word}\n{USAGE}"), 1);
            }
        };
        match pair.and_then(|pair| pair.split_once('=')) {
            Some((key, value)) => overrides.push((key.trim().to_owned(), value.trim().to_owned())),
            None => return Start::Say(format!("--override takes property=value\n{USAGE}"), 1),
        }
    }
    if behind {
        let pairs = overrides
            .into_iter()
            .flat_map(|(key, value)| ["--override".to_owned(), format!("{key}={value}")]);
        return Start::Behind(
            ["broker".to_owned(), "--config".to_owned(), config.clone()]
                .into_iter()
                .chain(pairs)
                .collect(),
        );
    }
    Start::Here { config: PathBuf::from(config), overrides }
}

/// Runs the broker in a process of its own, with its output in `kafkaServer.out` in `folder`.
#[expect(
    clippy::disallowed_methods,
    reason = "the process outlives this one, and its output is no file of the broker's"
)]
pub(crate) fn run_behind(arguments: &[String], folder: &Path) -> anyhow::Result<()> {
    use anyhow::Context;
    let file = folder.join("kafkaServer.out");
    let log = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::File::create(&file))
        .with_context(|| format!("create {} (LOG_DIR)", file.display()))?;
    let program = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(program);
    // A process group of its own: what is typed at the terminal does not reach it.
    command
        .arg0("letterbox")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    command.spawn().context("start the broker")?;
    Ok(())
}

/// Where `kafkaServer.out` goes: `LOG_DIR`, else `logs` beside the folder of the tool, else below
/// the working directory.
pub(crate) fn output_folder(called: &str, log_dir: Option<String>) -> PathBuf {
    match (log_dir.filter(|folder| !folder.is_empty()), called.rsplit_once('/')) {
        (Some(folder), _) => PathBuf::from(folder),
        (None, Some((bin, _))) => Path::new(bin).join("../logs"),
        (None, None) => PathBuf::from("logs"),
    }
}

/// A running broker of this user or, for root, of anybody.
struct Running {
    pid: i32,
    arguments: Vec<String>,
}

/// Runs `kafka-server-stop`: all brokers on this machine that this user may end, or those of one
/// node id or of some roles.
pub(crate) fn stop(
    arguments: &[String],
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> std::io::Result<i32> {
    let value =
        |name: &str| arguments.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    if arguments.iter().any(|argument| argument == "--help") {
        writeln!(
            out,
            "USAGE: kafka-server-stop [--node-id=ID | --process-role=ROLES]\nEnds the brokers on \
             this machine with SIGTERM, or with the signal in SIGNAL."
        )?;
        return Ok(0);
    }
    if let Some(word) = arguments
        .iter()
        .find(|word| !["--node-id=", "--process-role="].iter().any(|name| word.starts_with(name)))
    {
        writeln!(err, "kafka-server-stop: {word} is not a recognized option")?;
        return Ok(1);
    }
    let (node_id, roles) = (value("--node-id"), value("--process-role"));
    if node_id.is_some() && roles.is_some() {
        writeln!(
            out,
            "When both node-id and process-role are provided, the value for node-id will take \
             precedence"
        )?;
    }
    let name = std::env::var("SIGNAL").unwrap_or_else(|_| "TERM".to_owned());
    let Some(signal) = signal(&name) else {
        writeln!(
            err,
            "kafka-server-stop: SIGNAL={name}: TERM, INT, QUIT, HUP and KILL are supported"
        )?;
        return Ok(1);
    };
    let running = running();
    if running.is_empty() {
        writeln!(out, "No kafka server to stop")?;
        return Ok(1);
    }
    let mut code = 0;
    for broker in running {
        let wanted = match (node_id, roles) {
            (None, None) => true,
            (Some(id), _) => setting(&broker, "node.id").as_deref() == Some(id),
            (None, Some(roles)) => setting(&broker, "process.roles").as_deref() == Some(roles),
        };
        if let Some(pid) = Pid::from_raw(broker.pid).filter(|_| wanted)
            && let Err(error) = kill_process(pid, signal)
        {
            writeln!(err, "kafka-server-stop: process {}: {error}", broker.pid)?;
            code = 1;
        }
    }
    Ok(code)
}

fn signal(name: &str) -> Option<Signal> {
    Some(match name.strip_prefix("SIG").unwrap_or(name) {
        "TERM" | "15" => Signal::TERM,
        "INT" | "2" => Signal::INT,
        "QUIT" | "3" => Signal::QUIT,
        "HUP" | "1" => Signal::HUP,
        "KILL" | "9" => Signal::KILL,
        _ => return None,
    })
}

#[expect(clippy::disallowed_methods, reason = "/proc tells of processes; its files have no length")]
fn of_process(pid: i32, name: &str) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .filter(|word| !word.is_empty())
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "/proc tells of processes")]
fn running() -> Vec<Running> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| {
        str::from_utf8(OsStr::as_bytes(&entry.file_name())).ok()?.parse::<i32>().ok()
    });
    let mut running: Vec<Running> = pids
        .map(|pid| Running { pid, arguments: of_process(pid, "cmdline") })
        .filter(|process| is_broker(&process.arguments))
        .collect();
    running.sort_by_key(|process| process.pid);
    running
}

/// Whether a command line is that of a broker, however it was started.
fn is_broker(arguments: &[String]) -> bool {
    let word = |index: usize| arguments.get(index).map_or("", String::as_str);
    match plain_name(word(0)) {
        "letterbox" => {
            matches!(word(1), "broker" | "container")
                || (word(1) == "tool" && word(2) == "kafka-server-start" && word(3) != "-daemon")
        }
        "kafka-server-start" => !word(1).is_empty() && word(1) != "-daemon",
        _ => false,
    }
}

/// A setting of a broker: `--override`, its file, or for one in a container its environment.
fn setting(broker: &Running, key: &str) -> Option<String> {
    let words = || broker.arguments.iter().map(String::as_str);
    let mut pairs =
        words().filter_map(|word| word.strip_prefix("--override=").unwrap_or(word).split_once('='));
    let overridden = pairs.rfind(|(found, _)| found.trim() == key);
    if let Some((_, value)) = overridden {
        return Some(value.trim().to_owned());
    }
    if words().any(|word| word == "container") {
        let variable = format!("KAFKA_{}=", key.to_ascii_uppercase().replace('.', "_"));
        return of_process(broker.pid, "environ")
            .iter()
            .find_map(|pair| pair.strip_prefix(&variable))
            .map(str::to_owned);
    }
    let named = words()
        .skip_while(|word| *word != "--config")
        .nth(1)
        .or_else(|| words().find_map(|word| word.strip_prefix("--config=")));
    let file = named.or_else(|| words().skip(1).find(|word| word.ends_with(".properties")))?;
    // Relative to where the broker was started.
    let path = Path::new("/proc").join(broker.pid.to_string()).join("cwd").join(file);
    #[expect(clippy::disallowed_methods, reason = "below /proc")]
    let text = String::from_utf8_lossy(&std::fs::read(path).ok()?).into_owned();
    let mut lines = text.lines().filter_map(|line| line.split_once('='));
    lines.rfind(|(found, _)| found.trim() == key).map(|(_, value)| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_start_script_is_read_as_kafkas() {
        let Start::Here { config, overrides } =
            start(&words("config/server.properties --override node.id=2 --override=a=b=c"))
        else {
            panic!("it runs here")
        };
        assert_eq!(config, Path::new("config/server.properties"));
        assert_eq!(
            overrides,
            [("node.id".to_owned(), "2".to_owned()), ("a".to_owned(), "b=c".to_owned())]
        );
        let Start::Behind(arguments) = start(&words("-daemon f --override node.id=2")) else {
            panic!("it runs behind")
        };
        assert_eq!(arguments, ["broker", "--config", "f", "--override", "node.id=2"]);
        for (line, code) in [
            ("--help", 0),
            ("--version", 0),
            ("-daemon", 1),
            ("-loggc f", 1),
            ("f --override x", 1),
            ("f more", 1),
        ] {
            let Start::Say(text, said) = start(&words(line)) else { panic!("{line} runs nothing") };
            assert!(said == code && !text.is_empty(), "{line}: {text}");
        }
        assert!(matches!(start(&[]), Start::Say(_, 1)));
    }

    #[test]
    fn brokers_are_told_from_other_processes() {
        for (line, is) in [
            ("/usr/local/bin/letterbox container", true),
            ("letterbox broker --config f", true),
            ("/opt/kafka/bin/kafka-server-start.sh server.properties", true),
            ("letterbox tool kafka-server-start server.properties", true),
            ("kafka-server-start.sh -daemon server.properties", false),
            ("kafka-server-stop.sh", false),
            ("letterbox up f.yaml", false),
            ("letterbox tool kafka-topics --list", false),
            ("vim letterbox broker", false),
        ] {
            assert_eq!(is_broker(&words(line)), is, "{line}");
        }
        assert!(!is_broker(&[]));
    }

    #[test]
    fn a_broker_is_chosen_by_what_it_was_started_with() {
        let broker = |line: &str| Running { pid: 0, arguments: words(line) };
        let told = broker(
            "letterbox broker --config f --override node.id=7 --override=process.roles=broker",
        );
        assert_eq!(
            [setting(&told, "node.id"), setting(&told, "process.roles")],
            [Some("7".to_owned()), Some("broker".to_owned())]
        );
        assert_eq!(setting(&broker("letterbox broker --config /no/such/file"), "node.id"), None);
    }

    #[test]
    fn output_goes_where_kafkas_script_puts_it() {
        assert_eq!(
            output_folder("/opt/kafka/bin/kafka-server-start.sh", None),
            Path::new("/opt/kafka/bin/../logs")
        );
        assert_eq!(output_folder("kafka-server-start", Some(String::new())), Path::new("logs"));
        assert_eq!(output_folder("x/y", Some("/var/log".to_owned())), Path::new("/var/log"));
    }
}
