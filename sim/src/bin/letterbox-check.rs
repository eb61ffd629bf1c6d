//! Reads a history of client operations (JSON lines) and prints what may not have happened.
//!
//! Exit codes: 0 nothing found, 1 anomalies, 2 the history cannot be read.
#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a command line tool that reads a real file"
)]

use std::io::{BufRead, BufReader, Read, stdin};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use letterbox_sim::check::{Checker, Demands, Report};

/// Checks a history of client operations for lost, doubled, reordered or damaged records.
#[derive(Parser)]
#[command(name = "letterbox-check")]
struct Arguments {
    /// The history, one JSON object per line; several are read one after the other; none or "-":
    /// standard input.
    files: Vec<PathBuf>,
    /// Fail unless at least this many records were acknowledged.
    #[arg(long, default_value_t = Demands::default().sends_ok_min)]
    sends_ok_min: u64,
    /// Fail unless at least this many records were read.
    #[arg(long, default_value_t = Demands::default().reads_min)]
    reads_min: u64,
    /// Fail unless at least this many faults were injected.
    #[arg(long, default_value_t = Demands::default().faults_min)]
    faults_min: u64,
}

fn main() -> ExitCode {
    match check(&Arguments::parse()) {
        Ok(report) => {
            print!("{report}");
            println!("{}", if report.is_clean() { "no anomaly found" } else { "ANOMALIES FOUND" });
            if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => {
            eprintln!("letterbox-check: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn check(arguments: &Arguments) -> anyhow::Result<Report> {
    let mut checker = Checker::new();
    let files =
        if arguments.files.is_empty() { &[PathBuf::from("-")][..] } else { &arguments.files };
    for file in files {
        let input: Box<dyn Read> = if file.as_os_str() == "-" {
            Box::new(stdin().lock())
        } else {
            Box::new(std::fs::File::open(file).with_context(|| format!("open {}", file.display()))?)
        };
        for (n, line) in BufReader::new(input).lines().enumerate() {
            let line = line.with_context(|| format!("read {}", file.display()))?;
            if !line.trim().is_empty() {
                checker.event(
                    serde_json::from_str(&line)
                        .with_context(|| format!("{} line {}", file.display(), n + 1))?,
                );
            }
        }
    }
    let Arguments { sends_ok_min, reads_min, faults_min, .. } = *arguments;
    Ok(checker.finish(Demands { sends_ok_min, reads_min, faults_min }))
}
