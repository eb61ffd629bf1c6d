//! What a broker says of itself on its admin port: who it is (`GET /identity`), and why it is not
//! ready (`GET /readyz`).

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use letterbox_env::{BoxFuture, Env, Gather};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::MayEnd;

/// Whose the operator's restart leases are: one of each cluster at a time.
const HOLDER: &str = "letterbox-operator";
/// How long an answer may take that a broker gives by itself.
const DEADLINE: Duration = Duration::from_secs(2);
/// The longest answer that is read, in bytes: how far a thousand brokers are is some 1.5 MB.
pub(super) const ANSWER_MAX: usize = 2 << 20;

/// Who a broker is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The id of its cluster; empty while it does not know it.
    pub cluster_id: String,
    /// Its node id, if it told it.
    pub node_id: Option<i32>,
    /// The `directory.id` of each directory that it uses now, by the directory's path.
    pub directories: BTreeMap<String, String>,
    /// Where the directories were that it used before and does not find, by their `directory.id`.
    pub lost: BTreeMap<String, String>,
    /// Whether it does not start because its metadata log is missing beside partitions.
    pub misses_metadata: bool,
    /// How far it is with opening its logs, while it does that.
    pub opening: Option<Opening>,
}

/// How far a broker is that opens its logs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Opening {
    /// So many are open.
    pub done: u64,
    /// So many there are.
    pub total: u64,
    /// How long the others take at the pace of the first, where that can be told.
    #[serde(rename = "seconds.left", default, deserialize_with = "seconds")]
    pub left: Option<Duration>,
}

fn seconds<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    Ok(Option::<u32>::deserialize(from)?.map(|seconds| Duration::from_secs(seconds.into())))
}

impl Identity {
    /// Whether this may be what broker `id` of this cluster says: it names no other one.
    #[must_use]
    pub fn is_of(&self, id: i32, cluster_id: Option<&str>) -> bool {
        let is_other = |known: &str| !self.cluster_id.is_empty() && self.cluster_id != known;
        self.node_id.is_none_or(|said| said == id) && !cluster_id.is_some_and(is_other)
    }
}

/// Asks brokers who they are.
pub trait AskIdentity: Send + Sync {
    /// What the broker at `host` says; `None` when it does not answer, or not understandably.
    fn identity<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, Option<Identity>>;

    /// Takes the restart lease over `broker` at the broker at `host`.
    fn reserve<'a>(&'a self, host: &'a str, port: u16, broker: i32) -> BoxFuture<'a, MayEnd>;

    /// Gives that lease back.
    fn give_back<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, ()>;

    /// Whether the cluster of the broker at `host` does without `broker` now.
    fn may_end<'a>(&'a self, host: &'a str, port: u16, broker: i32) -> BoxFuture<'a, MayEnd>;

    /// What the broker at `host` says that it waits for before it serves, and how far it is; `None`
    /// when it does not answer, or serves.
    fn not_ready_because<'a>(&'a self, _: &'a str, _: u16) -> BoxFuture<'a, Option<String>> {
        Box::pin(std::future::ready(None))
    }
}

/// Over HTTP.
pub struct HttpIdentity(pub Env);

impl AskIdentity for HttpIdentity {
    fn identity<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, Option<Identity>> {
        Box::pin(async move { read(&get(&self.0, host, port, "/identity", DEADLINE).await.ok()?) })
    }

    fn reserve<'a>(&'a self, host: &'a str, port: u16, broker: i32) -> BoxFuture<'a, MayEnd> {
        Box::pin(super::reserve(&self.0, (host, port), HOLDER, broker))
    }

    fn give_back<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, ()> {
        Box::pin(super::give_back(&self.0, (host, port), HOLDER))
    }

    fn may_end<'a>(&'a self, host: &'a str, port: u16, broker: i32) -> BoxFuture<'a, MayEnd> {
        Box::pin(super::may_end(&self.0, (host, port), broker))
    }

    fn not_ready_because<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, Option<String>> {
        Box::pin(
            async move { read_reason(&get(&self.0, host, port, "/readyz", DEADLINE).await.ok()?) },
        )
    }
}

/// The answer to a GET at the admin port of a broker: status line, headers and body.
async fn get(
    env: &Env,
    host: &str,
    port: u16,
    path: &str,
    within: Duration,
) -> io::Result<Vec<u8>> {
    request(env, (host, port), &format!("GET {path}"), within).await
}

/// The answer to a request without a body: `request` is its method and path.
pub(super) async fn request(
    env: &Env,
    (host, port): (&str, u16),
    request: &str,
    within: Duration,
) -> io::Result<Vec<u8>> {
    let ask = async {
        let mut stream = env.net.connect(host, port).await?;
        let head = format!(
            "{request} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX as u64).read_to_end(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(within, ask).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// The longest reason that is repeated, in characters.
const REASON_MAX: usize = 300;

/// Reads why a broker is not ready: the first line of an answer with status 503.
fn read_reason(answer: &[u8]) -> Option<String> {
    let (head, body) = std::str::from_utf8(answer).ok()?.split_once("\r\n\r\n")?;
    let is_not_ready = head.lines().next()?.split(' ').nth(1) == Some("503");
    let line = body.lines().next().filter(|_| is_not_ready)?.trim();
    (!line.is_empty()).then(|| line.chars().take(REASON_MAX).collect())
}

/// Reads an answer: status line, headers and body.
fn read(answer: &[u8]) -> Option<Identity> {
    #[derive(Deserialize)]
    struct Said {
        #[serde(rename = "cluster.id", default)]
        cluster_id: Option<String>,
        #[serde(rename = "node.id", default)]
        node_id: Option<i32>,
        directories: Vec<Directory>,
        #[serde(default)]
        lost: Vec<Directory>,
        #[serde(rename = "metadata.log", default)]
        metadata_log: Option<String>,
        #[serde(default)]
        opening: serde_json::Value,
    }
    #[derive(Deserialize)]
    struct Directory {
        path: String,
        #[serde(rename = "directory.id")]
        id: String,
    }
    let (head, body) = std::str::from_utf8(answer).ok()?.split_once("\r\n\r\n")?;
    let is_ok = head.lines().next()?.split(' ').nth(1) == Some("200");
    let said: Said = serde_json::from_str(is_ok.then_some(body)?).ok()?;
    Some(Identity {
        cluster_id: said.cluster_id.unwrap_or_default(),
        node_id: said.node_id,
        directories: said
            .directories
            .into_iter()
            .map(|directory| (directory.path, directory.id))
            .collect(),
        lost: said.lost.into_iter().map(|directory| (directory.id, directory.path)).gather(),
        misses_metadata: said.metadata_log.as_deref() == Some("missing"),
        // Whatever another version says about it, the rest counts.
        opening: serde_json::from_value(said.opening).ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_broker_is_not_ready_is_its_first_line() {
        let because = |answer: &str| read_reason(answer.as_bytes());
        let head = "HTTP/1.1 503 Service Unavailable\r\nx: y\r\n\r\n";
        assert_eq!(because(&format!("{head}a\nb")).as_deref(), Some("a"));
        assert_eq!(because(&format!("{head}{}", "é".repeat(999))).unwrap().len(), 2 * REASON_MAX);
        for other in ["HTTP/1.1 200 OK\r\n\r\nok\n", head, "HTTP/1.1 503 No\r\nno", ""] {
            assert_eq!(because(other), None, "{other}");
        }
    }

    #[test]
    fn another_broker_at_the_address_is_not_believed() {
        for (cluster_id, node_id, expected) in [
            ("c", Some(3), true),
            ("", None, true),
            ("c", Some(4), false),
            ("other", Some(3), false),
        ] {
            let said = Identity { cluster_id: cluster_id.into(), node_id, ..Identity::default() };
            assert_eq!(said.is_of(3, Some("c")), expected, "{cluster_id} {node_id:?}");
        }
        assert!(Identity { cluster_id: "c".into(), ..Identity::default() }.is_of(3, None));
    }

    #[test]
    fn an_answer_is_read_or_left() {
        let body = r#"{"cluster.id":"c","node.id":0,
            "directories":[{"path":"/d","directory.id":"a"},{"path":"/e","directory.id":"b"}],
            "offline":[{"path":"/f","reason":"x"}],"lost":[{"path":"/f","directory.id":"c"}],
            "metadata.log":"missing","opening":{"done":12,"total":40,"seconds.left":7}}"#;
        let known = Identity {
            cluster_id: "c".into(),
            node_id: Some(0),
            directories: [("/d", "a"), ("/e", "b")]
                .map(|(path, id)| (path.into(), id.into()))
                .into(),
            lost: [("c".into(), "/f".into())].into(),
            misses_metadata: true,
            opening: Some(Opening { done: 12, total: 40, left: Some(Duration::from_secs(7)) }),
        };
        for (answer, expected) in [
            (
                format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{body}"),
                Some(known),
            ),
            (format!("HTTP/1.1 404 Not Found\r\n\r\n{body}"), None),
            ("HTTP/1.1 200 OK\r\n\r\n{}".to_owned(), None),
            (body.to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(read(answer.as_bytes()), expected, "{answer}");
        }
    }
}
