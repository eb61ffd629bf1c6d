//! What a cluster says before one of its brokers is restarted (`GET /lifecycle/restart-verdict`
//! on the admin port of any broker).

use letterbox_env::{Env, with_causes};
use serde::Deserialize;

use super::identity::get;

/// What the restart of some brokers would interrupt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestartVerdict {
    /// Whether it interrupts nothing that a restart at another time would not.
    pub safe: bool,
    /// Why it is not safe.
    pub because: Vec<String>,
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

/// The verdict over the restart of `brokers` at the same time, and the text that it came in.
///
/// # Errors
/// Why there is none.
pub async fn restart_verdict(
    env: &Env,
    (host, port): (&str, u16),
    brokers: &[i32],
) -> Result<(RestartVerdict, String), String> {
    let ids: Vec<String> = brokers.iter().map(ToString::to_string).collect();
    let path = format!("/lifecycle/restart-verdict?brokers={}", ids.join(","));
    let answer = get(env, host, port, &path);
    let answer = answer.await.map_err(|error| format!("no answer: {}", with_causes(&error)))?;
    read(&answer)
}

fn read(answer: &[u8]) -> Result<(RestartVerdict, String), String> {
    #[derive(Deserialize)]
    struct Refused {
        error: String,
    }
    let not_understood = || "the answer is not a restart verdict".to_owned();
    let text = std::str::from_utf8(answer).map_err(|_| not_understood())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(not_understood)?;
    if head.lines().next().and_then(|line| line.split(' ').nth(1)) != Some("200") {
        let refused = serde_json::from_str(body).map_err(|_| not_understood());
        return Err(refused.map(|refused: Refused| refused.error)?);
    }
    let verdict = serde_json::from_str(body).map_err(|_| not_understood())?;
    Ok((verdict, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_read_or_it_is_said_why_there_is_none() {
        let said = |answer: &str| read(answer.as_bytes()).map(|(verdict, _)| verdict);
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
            assert_eq!(said(other), Err("the answer is not a restart verdict".to_owned()));
        }
    }
}
