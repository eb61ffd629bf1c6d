//! What a cluster says before one of its brokers is restarted, and afterwards
//! (`GET /lifecycle/restart-verdict` and `/lifecycle/caught-up` on the admin port of any broker).

use std::time::Duration;

use letterbox_env::{Env, with_causes};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::identity::{ANSWER_MAX, get};

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
    ask(env, at, &format!("caught-up?{}", query.join("&"))).await
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
    ask(env, at, &format!("restart-verdict?brokers={}", joined(brokers))).await
}

fn joined(brokers: &[i32]) -> String {
    brokers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

async fn ask<T: DeserializeOwned>(
    env: &Env,
    (host, port): (&str, u16),
    call: &str,
) -> Result<(T, String), String> {
    let path = format!("/lifecycle/{call}");
    let answer = get(env, host, port, &path, WITHIN);
    let answer = answer.await.map_err(|error| format!("no answer: {}", with_causes(&error)))?;
    read(&answer)
}

/// Why the cluster of the broker at this address does not do without `broker` now; `None` where it
/// does.
pub(crate) async fn held_back(env: &Env, at: (&str, u16), broker: i32) -> Option<String> {
    match restart_verdict(env, at, &[broker]).await {
        Ok((verdict, _)) if verdict.safe => None,
        Ok((verdict, _)) => Some(verdict.because.join("; ")),
        Err(why) => Some(format!("it cannot tell whether it may: {why}")),
    }
}

fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<(T, String), String> {
    #[derive(Deserialize)]
    struct Refused {
        error: String,
    }
    let not_understood =
        || "the answer is not understood; is it a broker of this version?".to_owned();
    let text = std::str::from_utf8(answer).map_err(|_| not_understood())?;
    if answer.len() >= ANSWER_MAX {
        return Err(format!("the answer is longer than {ANSWER_MAX} bytes; name fewer brokers"));
    }
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(not_understood)?;
    if head.lines().next().and_then(|line| line.split(' ').nth(1)) != Some("200") {
        let refused = serde_json::from_str(body).map_err(|_| not_understood());
        return Err(refused.map(|refused: Refused| refused.error)?);
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
        assert_eq!(said(refused), Err("it starts".to_owned()));
        // A broker of an earlier version has no such path; of another one, no such fields.
        for other in ["HTTP/1.1 404 Not Found\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n{}", "", "\u{1}"] {
            assert!(said(other).unwrap_err().starts_with("the answer is not understood"));
        }
    }
}
