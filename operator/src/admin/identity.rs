//! Who a broker says that it is: `GET /identity` on its admin port.

use std::collections::BTreeMap;
use std::time::Duration;

use letterbox_env::{BoxFuture, Env};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(2);
/// The longest answer that is read, in bytes.
const ANSWER_MAX: u64 = 64 << 10;

/// Who a broker is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The id of its cluster.
    pub cluster_id: String,
    /// The `directory.id` of each directory that it uses now, by the directory's path.
    pub directories: BTreeMap<String, String>,
    /// Where the directories were that it used before and does not find, by their `directory.id`.
    pub lost: BTreeMap<String, String>,
}

/// Asks brokers who they are.
pub trait AskIdentity: Send + Sync {
    /// What the broker at `host` says; `None` when it does not answer, or not understandably.
    fn identity<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, Option<Identity>>;
}

/// Over HTTP.
pub struct HttpIdentity(pub Env);

impl AskIdentity for HttpIdentity {
    fn identity<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, Option<Identity>> {
        let ask = async move {
            let mut stream = self.0.net.connect(host, port).await?;
            stream
                .write_all(
                    format!("GET /identity HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
                        .as_bytes(),
                )
                .await?;
            let mut answer = Vec::new();
            stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
            std::io::Result::Ok(read(&answer))
        };
        Box::pin(async move { tokio::time::timeout(DEADLINE, ask).await.ok()?.ok()? })
    }
}

/// Reads an answer: status line, headers and body.
fn read(answer: &[u8]) -> Option<Identity> {
    #[derive(Deserialize)]
    struct Said {
        #[serde(rename = "cluster.id")]
        cluster_id: String,
        directories: Vec<Directory>,
        #[serde(default)]
        lost: Vec<Directory>,
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
        cluster_id: said.cluster_id,
        directories: said
            .directories
            .into_iter()
            .map(|directory| (directory.path, directory.id))
            .collect(),
        lost: said.lost.into_iter().map(|directory| (directory.id, directory.path)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_or_left() {
        let body = r#"{"cluster.id":"c","node.id":0,
            "directories":[{"path":"/d","directory.id":"a"},{"path":"/e","directory.id":"b"}],
            "offline":[{"path":"/f","reason":"x"}],"lost":[{"path":"/f","directory.id":"c"}]}"#;
        let known = Identity {
            cluster_id: "c".into(),
            directories: [("/d", "a"), ("/e", "b")]
                .map(|(path, id)| (path.into(), id.into()))
                .into(),
            lost: [("c".into(), "/f".into())].into(),
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
