//! What a cluster says before one of its brokers is restarted, and afterwards
//! (`/lifecycle/restart-verdict`, `/lifecycle/restart-lease` and `/lifecycle/caught-up` on the admin
//! port of any broker).

use std::time::Duration;

use letterbox_env::{Env, with_causes};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::identity::{ANSWER_MAX, request};

/// How long an answer may take. A broker asks the active controller, and answers within 5 s, or
/// says why it cannot (`broker/src/lifecycle/mod.rs`).
const WITHIN: Duration = Duration::from_secs(8);

/// What the restart of some brokers would interrupt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestartVerdict {
    /// Whether it interrupts nothing that a restart at another time would not.
    pub safe: bool,
    /// Why it is not safe.
    pub because: Vec<String>,
    /// The newest epoch of their registrations, for [`caught_up`].
    #[serde(default)]
    pub epoch: i64,
    /// The partitions that have one replica: they have no leader meanwhile.
    pub single_replica: Partitions,
    /// The partitions that have no more replicas than `min.insync.replicas`.
    pub no_spare_replica: Partitions,
}

/// What became of the question for a restart lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestartLease {
    /// Whether there is one now.
    pub granted: bool,
    /// Why not, in words of a kind.
    pub reasons: Vec<String>,
    /// The same in sentences.
    pub because: Vec<String>,
    /// How many seconds it lasts.
    pub seconds_left: Option<u64>,
    /// How many partitions the brokers still lead that others could.
    pub leads_left: u64,
    /// What the restart would interrupt; `None` where leases are not supported.
    pub verdict: Option<RestartVerdict>,
}

/// Whether there was a lease that was given back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct LeaseReleased {
    /// See there.
    pub released: bool,
}

/// How many partitions there are of a kind, and the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Partitions {
    /// How many.
    pub count: u64,
    /// Some of them.
    pub partitions: Vec<Partition>,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Partition {
    /// Its topic.
    pub topic: String,
    /// Its index.
    pub partition: i32,
}

/// How far brokers are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaughtUp {
    /// Whether all of them are.
    pub caught_up: bool,
    /// Each of them.
    pub brokers: Vec<BrokerCaughtUp>,
}

/// How far a broker is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerCaughtUp {
    /// Its id.
    pub broker: i32,
    /// Whether it serves and all of its replicas are in sync.
    pub caught_up: bool,
    /// Why it is not.
    pub because: Vec<String>,
}

/// How far `brokers`, or all, are, which have restarted since `since_epoch` was told, if they have;
/// and the text that it came in.
///
/// # Errors
/// Why nobody can tell.
pub async fn caught_up(
    env: &Env,
    at: (&str, u16),
    brokers: &[i32],
    since_epoch: Option<i64>,
) -> Result<(CaughtUp, String), String> {
    let mut query = Vec::new();
    if !brokers.is_empty() {
        query.push(format!("brokers={}", joined(brokers)));
    }
    query.extend(since_epoch.map(|epoch| format!("since-epoch={epoch}")));
    Ok(ask(env, at, "GET", &format!("caught-up?{}", query.join("&"))).await?)
}

/// The verdict over the restart of `brokers` at the same time, and the text that it came in.
///
/// # Errors
/// Why there is none.
pub async fn restart_verdict(
    env: &Env,
    at: (&str, u16),
    brokers: &[i32],
) -> Result<(RestartVerdict, String), String> {
    Ok(ask(env, at, "GET", &format!("restart-verdict?brokers={}", joined(brokers))).await?)
}

/// Takes a restart lease over `brokers` for `holder`, or has it for all of its time again; and the
/// text that the answer came in.
///
/// # Errors
/// Why nobody can tell.
pub async fn restart_lease(
    env: &Env,
    at: (&str, u16),
    holder: &str,
    brokers: &[i32],
    seconds: Option<u64>,
) -> Result<(RestartLease, String), String> {
    Ok(ask(env, at, "POST", &lease_call(holder, brokers, seconds)).await?)
}

fn lease_call(holder: &str, brokers: &[i32], seconds: Option<u64>) -> String {
    let seconds = seconds.map_or_else(String::new, |seconds| format!("&seconds={seconds}"));
    format!("restart-lease?holder={holder}&brokers={}{seconds}", joined(brokers))
}

/// Gives the lease of `holder` back.
///
/// # Errors
/// Why nobody can tell whether it was.
pub async fn release_restart_lease(
    env: &Env,
    at: (&str, u16),
    holder: &str,
) -> Result<(LeaseReleased, String), String> {
    Ok(ask(env, at, "DELETE", &format!("restart-lease?holder={holder}")).await?)
}

fn joined(brokers: &[i32]) -> String {
    brokers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

async fn ask<T: DeserializeOwned>(
    env: &Env,
    at: (&str, u16),
    method: &str,
    call: &str,
) -> Result<(T, String), NoAnswer> {
    let asked = format!("{method} /lifecycle/{call}");
    let answer = request(env, at, &asked, WITHIN);
    let no_answer = |error| NoAnswer::Because(format!("no answer: {}", with_causes(&error)));
    let answer = answer.await.map_err(no_answer)?;
    read(&answer)
}

/// For how long our own programs take a lease, in seconds: until the broker that they end has said
/// that it stops, or is fenced. From then on the verdict counts it as away.
const LEASE_SECONDS: u64 = 300;

/// Whether a broker may be ended now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MayEnd {
    /// It may.
    Yes,
    /// Its end is reserved, and what has to be done before it.
    NotYet(String),
    /// Why it may not.
    No(String),
    /// Why nobody can tell.
    Unknown(String),
}

/// Asks the broker at this address for the restart lease over `broker`, or for the verdict where not
/// all nodes of its cluster know leases yet: they could not be upgraded otherwise.
pub(crate) async fn reserve(env: &Env, at: (&str, u16), holder: &str, broker: i32) -> MayEnd {
    let call = lease_call(holder, &[broker], Some(LEASE_SECONDS));
    match of_lease(ask(env, at, "POST", &call).await.map(|(lease, _)| lease)) {
        Some(reserved) => reserved,
        None => may_end(env, at, broker).await,
    }
}

/// `None` where leases are not known.
fn of_lease(lease: Result<RestartLease, NoAnswer>) -> Option<MayEnd> {
    Some(match lease {
        Ok(lease) if lease.granted && lease.leads_left == 0 => MayEnd::Yes,
        Ok(RestartLease { granted: true, leads_left, .. }) => {
            MayEnd::NotYet(format!("{leads_left} partitions are still handed over to others"))
        }
        Ok(lease) if lease.reasons.iter().any(|reason| reason == "notSupported") => return None,
        Ok(lease) => MayEnd::No(lease.because.join("; ")),
        Err(NoAnswer::OtherVersion) => return None,
        Err(NoAnswer::Because(why)) => MayEnd::Unknown(why),
    })
}

/// Gives the lease of `holder` back, if the broker at this address can be asked; otherwise it lasts
/// until its time is over.
pub(crate) async fn give_back(env: &Env, at: (&str, u16), holder: &str) {
    let call = format!("restart-lease?holder={holder}");
    // Where leases are not known there is none.
    if let Err(NoAnswer::Because(why)) = ask::<LeaseReleased>(env, at, "DELETE", &call).await {
        tracing::warn!(holder, why, "the restart lease was not given back; it expires");
    }
}

/// Asks the broker at this address whether `broker` could be ended now.
pub(crate) async fn may_end(env: &Env, at: (&str, u16), broker: i32) -> MayEnd {
    of_verdict(restart_verdict(env, at, &[broker]).await)
}

fn of_verdict(verdict: Result<(RestartVerdict, String), String>) -> MayEnd {
    match verdict {
        Ok((verdict, _)) if verdict.safe => MayEnd::Yes,
        Ok((verdict, _)) => MayEnd::No(verdict.because.join("; ")),
        Err(why) => MayEnd::Unknown(why),
    }
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum NoAnswer {
    /// There is no such call.
    #[error("the call is not known; is it a broker of this version?")]
    OtherVersion,
    #[error("{0}")]
    Because(String),
}

impl From<NoAnswer> for String {
    fn from(why: NoAnswer) -> Self {
        why.to_string()
    }
}

fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<(T, String), NoAnswer> {
    #[derive(Deserialize)]
    struct Refused {
        error: String,
    }
    // It may have been cut off.
    let not_understood = || {
        let why = "the answer is not understood; is it a broker of this version?";
        NoAnswer::Because(why.to_owned())
    };
    let text = std::str::from_utf8(answer).map_err(|_| not_understood())?;
    if answer.len() >= ANSWER_MAX {
        let why = format!("the answer is longer than {ANSWER_MAX} bytes; name fewer brokers");
        return Err(NoAnswer::Because(why));
    }
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(not_understood)?;
    let status = head.lines().next().and_then(|line| line.split(' ').nth(1));
    // A lease that is refused is an answer, too.
    if !matches!(status, Some("200" | "409")) {
        return Err(match serde_json::from_str::<Refused>(body) {
            Ok(refused) => NoAnswer::Because(refused.error),
            Err(_) if matches!(status, Some("404" | "405")) => NoAnswer::OtherVersion,
            Err(_) => not_understood(),
        });
    }
    let found = serde_json::from_str(body).map_err(|_| not_understood())?;
    Ok((found, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_read_or_it_is_said_why_there_is_none() {
        let said =
            |answer: &str| read(answer.as_bytes()).map(|(verdict, _): (RestartVerdict, _)| verdict);
        let body = r#"{"safe":false,"because":["no"],"partitions":9,
            "singleReplica":{"count":1,"partitions":[{"topic":"t","partition":2}]},
            "noSpareReplica":{"count":0,"partitions":[]}}"#;
        let verdict = said(&format!("HTTP/1.1 200 OK\r\nx: y\r\n\r\n{body}")).unwrap();
        assert_eq!((verdict.safe, verdict.because), (false, vec!["no".to_owned()]));
        let single = Partition { topic: "t".to_owned(), partition: 2 };
        assert_eq!(verdict.single_replica.partitions, [single]);
        let refused = "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"error\":\"it starts\"}";
        assert_eq!(said(refused), Err(NoAnswer::Because("it starts".to_owned())));
        // A broker of an earlier version has no such path.
        assert_eq!(said("HTTP/1.1 404 Not Found\r\n\r\n"), Err(NoAnswer::OtherVersion));
        // One of another version has no such fields; and what was cut off tells of no version.
        let cut_off = "HTTP/1.1 200 OK\r\n\r\n{\"safe\":tr";
        for other in ["HTTP/1.1 200 OK\r\n\r\n{}", cut_off, "HTTP/1.1 503 No\r\n", "", "\u{1}"] {
            assert!(matches!(said(other), Err(NoAnswer::Because(_))), "{other}");
        }
    }

    #[test]
    fn a_lease_lets_a_broker_go_once_it_leads_nothing_and_an_older_cluster_is_asked_for_a_verdict()
    {
        let said = |answer: &str| of_lease(read(answer.as_bytes()).map(|(lease, _)| lease));
        let lease = |status: &str, granted: bool, reason: &str, leads_left: u32| {
            let (seconds, reasons) = (if granted { "9" } else { "null" }, format!("[{reason:?}]"));
            said(&format!(
                "HTTP/1.1 {status} x\r\n\r\n{{\"granted\":{granted},\"reasons\":{reasons},\
                 \"because\":[\"a\",\"b\"],\"secondsLeft\":{seconds},\
                 \"leadsLeft\":{leads_left},\"verdict\":null}}"
            ))
        };
        assert_eq!(lease("200", true, "", 0), Some(MayEnd::Yes));
        let left = "7 partitions are still handed over to others".to_owned();
        assert_eq!(lease("200", true, "", 7), Some(MayEnd::NotYet(left)));
        let refused = Some(MayEnd::No("a; b".to_owned()));
        assert_eq!(lease("409", false, "holderHasLease", 0), refused);
        assert_eq!(lease("409", false, "notSupported", 0), None);
        for older in ["HTTP/1.1 404 Not Found\r\n\r\n", "HTTP/1.1 405 No\r\n\r\n"] {
            assert_eq!(said(older), None);
        }
        // Not by a verdict, which reserves nothing.
        let starts = "HTTP/1.1 503 x\r\n\r\n{\"error\":\"it starts\"}";
        assert_eq!(said(starts), Some(MayEnd::Unknown("it starts".to_owned())));
        assert!(matches!(said(""), Some(MayEnd::Unknown(_))), "it may have been granted");
        let refused = RestartVerdict { because: vec!["c".to_owned()], ..Default::default() };
        let said =
            |safe| of_verdict(Ok((RestartVerdict { safe, ..refused.clone() }, String::new())));
        assert_eq!((said(true), said(false)), (MayEnd::Yes, MayEnd::No("c".to_owned())));
        assert_eq!(of_verdict(Err("x".to_owned())), MayEnd::Unknown("x".to_owned()));
    }
}
