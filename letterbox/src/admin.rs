//! `letterbox admin`: the lifecycle calls of a broker's admin port, for people and scripts.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use letterbox_env::Env;
use letterbox_operator::admin::{
    CaughtUp, Partitions, RestartLease, RestartVerdict, caught_up, release_restart_lease,
    restart_lease, restart_verdict,
};

/// What it ends with when the answer is no.
const NO: u8 = 3;

#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    call: Call,
}

#[derive(Subcommand)]
enum Call {
    /// Say whether brokers may restart at the same time, and which partitions that would
    /// interrupt. Changes nothing. Exit codes: 0 it is safe, 3 it is not, 1 nobody could tell.
    Verdict {
        /// The ids of the brokers, separated by commas.
        #[arg(long, required = true, value_delimiter = ',')]
        brokers: Vec<i32>,
        #[command(flatten)]
        how: How,
    },
    /// Reserve the restart of brokers at the same time: until they are back, others count them as
    /// away, and they lead only what nobody else may. Over when they have started again and are in
    /// sync, after its time, or with --release. Exit codes: 0 granted, 3 refused, 1 nobody could tell.
    RestartLease {
        /// The ids of the brokers, separated by commas.
        #[arg(long, required_unless_present = "release", value_delimiter = ',')]
        brokers: Vec<i32>,
        /// Who has it: letters, digits and "._-/:@". A holder has one lease at a time, and gets it
        /// over the same brokers again.
        #[arg(long, value_parser = holder)]
        holder: String,
        /// For how long, in seconds: 1 to 3600.
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        /// Give the holder's lease back.
        #[arg(long, conflicts_with = "brokers")]
        release: bool,
        #[command(flatten)]
        how: How,
    },
    /// Say whether brokers serve and all of their replicas are in sync, and how much is left to
    /// copy. Exit codes: 0 they are, 3 not yet, 1 nobody could tell.
    CaughtUp {
        /// The ids of the brokers, separated by commas; all when it is left out.
        #[arg(long, value_delimiter = ',')]
        brokers: Vec<i32>,
        /// The epoch that was told before these brokers were restarted ("admin verdict" tells it):
        /// they are caught up only once they have registered again.
        #[arg(long)]
        since_epoch: Option<i64>,
        #[command(flatten)]
        how: How,
    },
}

/// Whom to ask, and how to tell the answer.
#[derive(Args)]
struct How {
    /// The admin port of any broker of the cluster (admin.listener), as HOST:PORT.
    #[arg(long, default_value = "localhost:9644", value_parser = address)]
    admin_listener: (String, u16),
    /// Print the answer as JSON, as docs/openapi.json describes it.
    #[arg(long)]
    json: bool,
}

/// A name that can stand in a query as it is; the broker says what else is wrong with it.
fn holder(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    match text.chars().all(is_plain) {
        true => Ok(text.to_owned()),
        false => Err("write letters, digits and \"._-/:@\"".to_owned()),
    }
}

/// Host and port; an IPv6 address in brackets or without.
fn address(text: &str) -> Result<(String, u16), String> {
    let wrong = || "write HOST:PORT".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = port.parse().map_err(|_| wrong())?;
    if host.is_empty() { Err(wrong()) } else { Ok((host.to_owned(), port)) }
}

pub(crate) async fn run(env: &Env, options: &Options) -> ExitCode {
    let (Call::Verdict { how, .. } | Call::RestartLease { how, .. } | Call::CaughtUp { how, .. }) =
        &options.call;
    let (host, port) = (how.admin_listener.0.as_str(), how.admin_listener.1);
    let answer = match &options.call {
        Call::Verdict { brokers, .. } => restart_verdict(env, (host, port), brokers)
            .await
            .map(|(verdict, json)| (verdict.safe, in_words(&verdict), json)),
        Call::RestartLease { holder, release: true, .. } => {
            release_restart_lease(env, (host, port), holder).await.map(|(found, json)| {
                let words = match found.released {
                    true => "released\n".to_owned(),
                    false => format!("{holder} has no restart lease\n"),
                };
                (true, words, json)
            })
        }
        Call::RestartLease { brokers, holder, seconds, .. } => {
            restart_lease(env, (host, port), holder, brokers, Some(*seconds))
                .await
                .map(|(found, json)| (found.granted, leased(&found), json))
        }
        Call::CaughtUp { brokers, since_epoch, .. } => {
            caught_up(env, (host, port), brokers, *since_epoch)
                .await
                .map(|(found, json)| (found.caught_up, how_far(&found), json))
        }
    };
    let (is_so, words, json) = match answer {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("letterbox admin: {host}:{port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let text = if how.json { format!("{json}\n") } else { words };
    // Nothing is left to do when standard output is closed.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if is_so { ExitCode::SUCCESS } else { ExitCode::from(NO) }
}

fn how_far(found: &CaughtUp) -> String {
    let mut text = String::new();
    for one in &found.brokers {
        let word = if one.caught_up { "caught up" } else { "not caught up" };
        text.push_str(&format!("broker {}: {word}\n", one.broker));
        one.because.iter().for_each(|reason| text.push_str(&format!("  {reason}\n")));
    }
    text
}

fn leased(found: &RestartLease) -> String {
    let mut text = match found.seconds_left {
        Some(seconds) => format!("granted for {seconds} s\n"),
        None => "refused\n".to_owned(),
    };
    found.because.iter().for_each(|reason| text.push_str(&format!("  {reason}\n")));
    if found.leads_left > 0 {
        let left = found.leads_left;
        text.push_str(&format!("note: {left} partitions are still handed over to other leaders\n"));
    }
    if let Some(verdict) = found.verdict.as_ref().filter(|_| found.granted) {
        text.push_str(&notes(verdict));
    }
    text
}

fn in_words(verdict: &RestartVerdict) -> String {
    let mut text = if verdict.safe { "safe\n" } else { "not safe\n" }.to_owned();
    for reason in &verdict.because {
        text.push_str(&format!("  {reason}\n"));
    }
    text.push_str(&notes(verdict));
    text
}

/// What is interrupted whenever these brokers restart, and the epoch that they have.
fn notes(verdict: &RestartVerdict) -> String {
    let mut text = String::new();
    for (list, what) in [
        (&verdict.single_replica, "with one replica have no leader meanwhile"),
        (
            &verdict.no_spare_replica,
            "with no more replicas than min.insync.replicas refuse acks=all meanwhile",
        ),
    ] {
        if list.count > 0 {
            text.push_str(&format!("note: partitions {what}: {}\n", names(list)));
        }
    }
    text.push_str(&format!("epoch: {}\n", verdict.epoch));
    text
}

fn names(list: &Partitions) -> String {
    let names = list.partitions.iter().map(|one| format!("{}-{}", one.topic, one.partition));
    let names: Vec<String> = names.collect();
    let shown = u64::try_from(names.len()).unwrap_or(u64::MAX);
    match list.count.saturating_sub(shown) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use letterbox_operator::admin::{BrokerCaughtUp, Partition};

    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for (text, expected) in [
            ("localhost:9644", Some(("localhost", 9644))),
            ("[::1]:9644", Some(("::1", 9644))),
            ("::1:9644", Some(("::1", 9644))),
            ("localhost", None),
            (":9644", None),
            ("a:b", None),
            ("a:70000", None),
        ] {
            let found = address(text).ok();
            let found = found.as_ref().map(|(host, port)| (host.as_str(), *port));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn a_verdict_in_words_begins_with_the_answer() {
        let one = Partition { topic: "t".to_owned(), partition: 3 };
        let single_replica = Partitions { count: 2, partitions: vec![one] };
        let verdict = RestartVerdict { safe: true, single_replica, ..Default::default() };
        let expected = "safe\nnote: partitions with one replica have no leader meanwhile: t-3 and 1 more\nepoch: 0\n";
        assert_eq!(in_words(&verdict), expected);
        let because = vec!["3 partitions".to_owned()];
        let verdict = RestartVerdict { because, ..Default::default() };
        assert_eq!(in_words(&verdict), "not safe\n  3 partitions\nepoch: 0\n");
    }

    #[test]
    fn each_broker_is_told_with_what_it_lacks() {
        let behind = BrokerCaughtUp { broker: 2, because: vec!["x".to_owned()], caught_up: false };
        let brokers = vec![BrokerCaughtUp { broker: 1, caught_up: true, because: vec![] }, behind];
        let said = how_far(&CaughtUp { caught_up: false, brokers });
        assert_eq!(said, "broker 1: caught up\nbroker 2: not caught up\n  x\n");
    }
}
