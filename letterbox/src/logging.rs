//! Logs: one event a line, as text or JSON, on standard output; why the process ends, on standard
//! error.
//!
//! Nobody has to read them: a disk that is full, a pipe whose reader has ended or does not read
//! costs lines and nothing else ([`Output`]).

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use letterbox_env::{log_filter, with_causes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::error;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::prelude::*;

/// What `--log-format` and `--log-level` say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// JSON instead of text.
    pub(crate) json: bool,
    /// `info`, `debug`, or directives such as `info,letterbox_broker::server=debug`.
    pub(crate) level: Option<String>,
}

/// Starts logging.
///
/// # Errors
/// When the level cannot be read.
pub(crate) fn start(options: &Options) -> anyhow::Result<()> {
    // What ends openraft is said as why the broker cannot go on; the rest is a voter that is away.
    let level = options.level.as_deref().unwrap_or("info,openraft=off");
    let filter = log_filter(level).with_context(|| format!("--log-level {level}"))?;
    let ansi = !options.json && io::stdout().is_terminal();
    let output = Output::new(io::stdout(), options.json, ansi);
    let builder = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_target(false)
        .with_ansi(ansi)
        .log_internal_errors(false)
        .with_writer(output);
    if options.json {
        builder.json().flatten_event(true).finish().with(filter).init();
    } else {
        builder.finish().with(filter).init();
    }
    Ok(())
}

/// Says why the process ends, as text or JSON, whatever the level and whether or not logging has
/// started.
pub(crate) fn say_refusal(error: &anyhow::Error, json: bool) {
    if json {
        let once = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_target(false)
            .log_internal_errors(false)
            .with_writer(io::stderr)
            .finish();
        tracing::subscriber::with_default(once, || error!("{}", with_causes(error.as_ref())));
    } else {
        // Who does not take it does not learn it; the exit code says it too.
        let _ = writeln!(io::stderr(), "letterbox: {}", with_causes(error.as_ref()));
    }
}

/// How long the first line that is not taken waits. Those after it do not, until one is taken: log
/// lines are written by the threads that serve clients.
const PATIENCE: Duration = Duration::from_millis(100);

/// A pipe that has room for a byte has room for as many.
const TAKEN_AT_ONCE: usize = 4096;

/// Where log lines go. A line that is not taken within [`PATIENCE`] is dropped and counted, and the
/// next one that is taken comes after a line with the count. It never fails and never blocks.
struct Output<F> {
    to: F,
    json: bool,
    /// With colours.
    ansi: bool,
    missing: Mutex<Missing>,
}

/// What is missing in the output.
#[derive(Default)]
struct Missing {
    /// Lines that were dropped since one was taken.
    lines: u64,
    /// Whether the output ends in the middle of one of them.
    half: bool,
}

impl<F: AsFd> Output<F> {
    fn new(to: F, json: bool, ansi: bool) -> Self {
        Self { to, json, ansi, missing: Mutex::default() }
    }

    fn line(&self, line: &[u8]) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut patience = PATIENCE;
        if missing.lines > 0 {
            let lines = missing.lines;
            let message =
                format!("{lines} log lines were dropped, because the log output was not read");
            let mut said = if self.json {
                format!(r#"{{"level":"WARN","message":"{message}"}}"#)
            } else {
                format!(" WARN {message}")
            };
            said.push('\n');
            if missing.half {
                said.insert(0, '\n');
            }
            patience = Duration::ZERO;
            if self.put(said.as_bytes(), patience, &mut missing.half) {
                *missing = Missing::default();
            }
        }
        if missing.lines > 0 || !self.put(line, patience, &mut missing.half) {
            missing.lines = missing.lines.saturating_add(1);
        }
    }

    /// Whether all of `bytes` was taken; `half`, whether only the beginning was.
    fn put(&self, bytes: &[u8], patience: Duration, half: &mut bool) -> bool {
        let timeout = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        let mut left = bytes;
        while !left.is_empty() {
            let mut ready = [PollFd::new(&self.to, PollFlags::OUT)];
            let taken = match poll(&mut ready, Some(&timeout)) {
                Ok(1..) => rustix::io::write(&self.to, left.get(..TAKEN_AT_ONCE).unwrap_or(left)),
                Ok(0) => return false,
                Err(error) => Err(error),
            };
            match taken {
                Ok(0) => return false,
                Ok(taken) => left = left.get(taken..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return false,
            }
            *half = !left.is_empty();
        }
        true
    }
}

impl<'a, F: AsFd + 'a> MakeWriter<'a> for Output<F> {
    type Writer = Line<'a, F>;

    fn make_writer(&'a self) -> Line<'a, F> {
        Line(self)
    }
}

/// One line on its way; it comes in one piece.
struct Line<'a, F>(&'a Output<F>);

impl<F: AsFd> Write for Line<'_, F> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(line) {
            Ok(text) => self.0.line(one_line(text, self.0.ansi).as_bytes()),
            Err(_) => self.0.line(line),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The event in one line: names that clients give may hold line ends and whatever a terminal obeys,
/// which would look like lines of our own. Colours stay where there are some.
fn one_line(event: &str, ansi: bool) -> Cow<'_, str> {
    let (text, end) = event.strip_suffix('\n').map_or((event, ""), |text| (text, "\n"));
    if !text.contains(char::is_control) {
        return Cow::Borrowed(event);
    }
    let mut line = String::with_capacity(event.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let colour = if ansi { colour(rest) } else { None };
        let taken = colour.unwrap_or(next.len_utf8());
        let (this, after) = rest.split_at(taken);
        if next.is_control() && colour.is_none() {
            line.extend(next.escape_default());
        } else {
            line.push_str(this);
        }
        rest = after;
    }
    line.push_str(end);
    Cow::Owned(line)
}

/// The bytes of the change of colour that `text` begins with.
fn colour(text: &str) -> Option<usize> {
    let numbers = text.strip_prefix("\x1b[")?;
    let end = numbers.find(|c: char| !(c.is_ascii_digit() || c == ';'))?;
    numbers.get(end..)?.starts_with('m').then_some(text.len() - numbers.len() + end + 1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn lines_that_nobody_takes_are_dropped_and_counted() {
        let (mut reader, writer) = io::pipe().unwrap();
        let output = Output::new(writer, false, false);
        let line = [&[b'x'; 9_999][..], b"\n"].concat();
        let before = std::time::Instant::now();
        for _ in 0..1_000 {
            output.line(&line);
        }
        assert!(before.elapsed() < Duration::from_secs(20), "each line waited");
        let dropped = output.missing.lock().unwrap().lines;
        assert!((900..1_000).contains(&dropped), "{dropped}");
        let mut taken = vec![0; 1 << 20];
        let count = reader.read(&mut taken).unwrap();
        output.line(b"heard again\n");
        drop(output);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        let said = format!(
            " WARN {dropped} log lines were dropped, because the log output was not read\nheard \
             again\n"
        );
        let all = String::from_utf8(taken[..count].to_vec()).unwrap() + &rest;
        assert!(all.ends_with(&format!("\n{said}")), "{}", &rest[rest.len().saturating_sub(200)..]);
    }

    #[test]
    fn names_that_clients_give_make_no_lines_of_their_own() {
        let (mut reader, writer) = io::pipe().unwrap();
        let output = Output::new(writer, false, false);
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(output).finish();
        tracing::subscriber::with_default(subscriber, || {
            let group = "g\n ERROR the disk is gone\u{1b}[31m\u{9b}31m\r";
            tracing::info!(%group, "new generation of {group}");
        });
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said.matches('\n').count(), 1, "{said:?}");
        assert!(!said.trim_end().contains(char::is_control), "{said:?}");
        assert!(said.contains("g\\n ERROR the disk is gone"), "{said:?}");
        assert_eq!(
            one_line("\x1b[1;31mred\x1b[0m \x1b[2J\n", true),
            "\x1b[1;31mred\x1b[0m \\u{1b}[2J\n"
        );
    }

    #[test]
    fn an_output_that_fails_harms_nobody() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        for _ in 0..3 {
            Output::new(&writer, true, false).line(b"gone\n");
            Output::new(&full, true, false).line(b"gone\n");
        }
    }
}
