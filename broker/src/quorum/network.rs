//! Voters talking to one another.
//!
//! ```text
//! frame  u32 length, u32 crc32c of the rest, u8 kind, body        (little endian)
//! ```
//! A connection begins with a hello of each side: the versions it speaks, cluster id, node id,
//! incarnation. Then requests and answers take turns, in the newest version that both speak. The
//! stream is taken out of its place during a call and put back only after a whole answer, so a call
//! that was late, cancelled or garbled costs the connection and nothing else. The name of a voter
//! is looked up again at every connect, because the address of a pod changes.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use letterbox_env::panics::lock;
use letterbox_env::{BoxListener, BoxStream, Env};
use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::ask::Ears;
use super::snapshot::Meta;
use super::types::{
    NodeLogId, Raft, TypeConfig, Vote, Voter, decode_entry, encode_entry, put_block, take_block,
};

/// Larger frames are refused: an entry of the greatest length and a batch of others fit.
const FRAME_LEN_MAX: usize = 32 << 20;
/// Larger answers are refused. What an operation comes to may be told in more words than it has.
const ANSWER_LEN_MAX: usize = 128 << 20;
/// Before the peer is known.
const HELLO_LEN_MAX: usize = 1024;
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// A peer that asks nothing for this long is gone.
const IDLE_DEADLINE: Duration = Duration::from_secs(60);
/// A peer that does not take an answer for this long is gone.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// The versions of what is said after the hello, the oldest and the newest that this node speaks.
const VERSIONS: (u16, u16) = (1, 1);
const CONNECTIONS_MAX: usize = 64;
const PEERS_FILE: &str = "peers.json";

const HELLO: u8 = 0;
const VOTE: u8 = 1;
const APPEND: u8 = 2;
const SNAPSHOT: u8 = 3;
const ANSWER: u8 = 4;
/// Not consensus; see `super::ask`.
pub(super) const ASK: u8 = 5;
/// A hello of a voter that has no cluster yet; see `super::founding`.
const WHO: u8 = 6;

/// Nodes of which it is remembered why they were refused.
const SAID_MAX: usize = 16;

/// Who this node is, and whom it has met.
pub(super) struct Identity {
    pub(super) cluster_id: Option<String>,
    pub(super) node_id: u64,
    pub(super) incarnation: Uuid,
    pub(super) peers: Arc<Peers>,
    /// Connections that were refused because of who the other side is.
    pub(super) refused: AtomicU64,
    /// Why each node was refused last: it tries again and again.
    pub(super) said: Mutex<BTreeMap<u64, String>>,
}

/// What each side says first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// The oldest and the newest version that it speaks.
    versions: (u16, u16),
    pub(super) cluster_id: Option<String>,
    pub(super) from: u64,
    to: u64,
    incarnation: Uuid,
}

impl Hello {
    /// Of a voter that has no cluster yet.
    pub(super) fn of_new(from: u64, to: u64) -> Self {
        Self { versions: VERSIONS, cluster_id: None, from, to, incarnation: Uuid::nil() }
    }

    /// The newest version that both sides speak.
    fn version(&self) -> Option<u16> {
        let (oldest, newest) = (self.versions.0.max(VERSIONS.0), self.versions.1.min(VERSIONS.1));
        (oldest <= newest).then_some(newest)
    }
}

impl Identity {
    pub(super) fn new(
        cluster_id: Option<String>,
        node_id: u64,
        incarnation: Uuid,
        peers: Peers,
    ) -> Self {
        let (refused, said) = (AtomicU64::new(0), Mutex::default());
        Self { cluster_id, node_id, incarnation, peers: Arc::new(peers), refused, said }
    }

    fn hello(&self, to: u64) -> Hello {
        Hello {
            versions: VERSIONS,
            cluster_id: self.cluster_id.clone(),
            from: self.node_id,
            to,
            incarnation: self.incarnation,
        }
    }

    /// Whether this is a voter of our cluster that still has its log. An error says why not.
    async fn check(&self, hello: &Hello, expected: Option<u64>) -> Result<(), String> {
        let result = self.examine(hello, expected).await;
        let mut said = lock(&self.said);
        if let Err(reason) = &result {
            self.refused.fetch_add(1, Ordering::Relaxed);
            if said.len() >= SAID_MAX {
                said.clear();
            }
            if said.insert(hello.from, reason.clone()).as_ref() != Some(reason) {
                let node = hello.from;
                tracing::error!(node, reason, "refusing a voter of the metadata quorum");
            }
        } else {
            said.remove(&hello.from);
        }
        drop(said);
        result
    }

    async fn examine(&self, hello: &Hello, expected: Option<u64>) -> Result<(), String> {
        if hello.version().is_none() {
            let ((oldest, newest), (own_oldest, own_newest)) = (hello.versions, VERSIONS);
            return Err(format!(
                "it speaks versions {oldest} to {newest} of the protocol between brokers, and this \
                 node {own_oldest} to {own_newest}; upgrade one version at a time"
            ));
        }
        if hello.cluster_id != self.cluster_id {
            return Err(format!(
                "it belongs to cluster {:?}, not {:?}",
                hello.cluster_id, self.cluster_id
            ));
        }
        if hello.to != self.node_id {
            return Err(format!(
                "it addresses node {}, but this is node {}",
                hello.to, self.node_id
            ));
        }
        if expected.is_some_and(|expected| expected != hello.from) {
            return Err(format!("it is node {}, not the node that was called", hello.from));
        }
        self.peers.check(hello.from, hello.incarnation).await
    }
}

/// The incarnation of every voter ever met. The first one met counts; a voter that comes back with
/// another one has lost its votes and its log, and letting it vote again could undo what was
/// committed.
pub(super) struct Peers {
    env: Env,
    path: PathBuf,
    known: tokio::sync::Mutex<BTreeMap<u64, Uuid>>,
    count: usize,
}

impl Peers {
    pub(super) fn open(env: &Env, directory: &Path) -> io::Result<Self> {
        let path = directory.join(PEERS_FILE);
        let known: BTreeMap<u64, Uuid> = if env.disk.exists(&path)? {
            serde_json::from_slice(&env.disk.read(&path)?)?
        } else {
            BTreeMap::new()
        };
        Ok(Self {
            env: env.clone(),
            path,
            count: known.len(),
            known: tokio::sync::Mutex::new(known),
        })
    }

    /// Whether none was known at open.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    async fn check(&self, node: u64, incarnation: Uuid) -> Result<(), String> {
        let mut known = self.known.lock().await;
        match known.get(&node) {
            Some(present) if *present == incarnation => return Ok(()),
            Some(present) => {
                return Err(format!(
                    "node {node} was {present} and comes back as {incarnation}: it has lost its \
                     metadata log and must not vote under its old id. Give it a new node.id"
                ));
            }
            None => {}
        }
        let mut next = known.clone();
        next.insert(node, incarnation);
        let bytes = serde_json::to_vec(&next).map_err(|error| error.to_string())?;
        let (disk, path) = (Arc::clone(&self.env.disk), self.path.clone());
        let written = self.env.blocking(move || disk.write_atomically(&path, &bytes)).await;
        written.map_err(|error| format!("{} cannot be written: {error}", self.path.display()))?;
        *known = next;
        Ok(())
    }
}

async fn write_frame(stream: &mut BoxStream, kind: u8, body: &[u8]) -> io::Result<()> {
    let len =
        u32::try_from(body.len().saturating_add(5)).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut bytes = Vec::with_capacity(body.len().saturating_add(9));
    bytes.extend(len.to_le_bytes());
    bytes.extend(super::wal::crc(&[&[kind], body]).to_le_bytes());
    bytes.push(kind);
    bytes.extend(body);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

async fn read_frame(stream: &mut BoxStream, len_max: usize) -> io::Result<(u8, Vec<u8>)> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let len = usize::try_from(stream.read_u32_le().await?).map_err(|_| bad("length"))?;
    if !(5..=len_max).contains(&len) {
        return Err(bad("the frame's length is out of bounds"));
    }
    let sum = stream.read_u32_le().await?;
    let kind = stream.read_u8().await?;
    // Grows with what arrives, not with what was announced.
    let mut body = Vec::new();
    let mut limited = stream.take((len - 5) as u64);
    limited.read_to_end(&mut body).await?;
    if body.len() != len - 5 || super::wal::crc(&[&[kind], &body]) != sum {
        return Err(bad("the frame is cut short or its checksum is wrong"));
    }
    Ok((kind, body))
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

// Calling.

/// Makes a [`Client`] for each voter.
#[derive(Clone)]
pub(super) struct Dialer {
    pub(super) env: Env,
    pub(super) identity: Arc<Identity>,
    /// Where voters are reached, as the configuration of this node says. That counts before what
    /// the metadata log says, so that a voter may move.
    pub(super) voters: Arc<BTreeMap<u64, Voter>>,
}

impl RaftNetworkFactory<TypeConfig> for Dialer {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &Voter) -> Client {
        self.client(target, node)
    }
}

impl Dialer {
    pub(super) fn client(&self, target: u64, node: &Voter) -> Client {
        Client {
            env: self.env.clone(),
            identity: Arc::clone(&self.identity),
            target,
            node: self.voters.get(&target).unwrap_or(node).clone(),
            idle: Mutex::new(None),
        }
    }
}

/// One request and its answer. After an error the stream is of no use any more.
pub(super) async fn exchange(stream: &mut BoxStream, kind: u8, body: &[u8]) -> io::Result<Vec<u8>> {
    write_frame(stream, kind, body).await?;
    let (answer, body) = read_frame(stream, ANSWER_LEN_MAX).await?;
    if answer != ANSWER {
        return Err(invalid("the peer does not answer"));
    }
    Ok(body)
}

/// Calls one voter.
pub(super) struct Client {
    env: Env,
    identity: Arc<Identity>,
    target: u64,
    node: Voter,
    idle: Mutex<Option<BoxStream>>,
}

impl Client {
    /// Whether nothing listens where the voter is reached.
    pub(super) async fn is_refused(&self) -> bool {
        let connected = self.env.net.connect(&self.node.host, self.node.port).await;
        connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }

    pub(super) async fn connect(&self) -> io::Result<BoxStream> {
        let mut stream = self.env.net.connect(&self.node.host, self.node.port).await?;
        let hello = serde_json::to_vec(&self.identity.hello(self.target))?;
        write_frame(&mut stream, HELLO, &hello).await?;
        let (kind, body) = read_frame(&mut stream, HELLO_LEN_MAX).await?;
        if kind != HELLO {
            return Err(invalid("the peer does not say hello"));
        }
        let hello: Hello = serde_json::from_slice(&body)?;
        self.identity.check(&hello, Some(self.target)).await.map_err(invalid)?;
        Ok(stream)
    }

    async fn request<T: DeserializeOwned>(&self, kind: u8, body: &[u8]) -> io::Result<T> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut stream = match idle {
            Some(stream) => stream,
            None => self.connect().await?,
        };
        let body = exchange(&mut stream, kind, body).await?;
        let answer = serde_json::from_slice(&body)?;
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
        Ok(answer)
    }

    async fn call<T, E>(
        &self,
        kind: u8,
        body: io::Result<Vec<u8>>,
        option: &RPCOption,
    ) -> Result<T, RPCError<u64, Voter, RaftError<u64, E>>>
    where
        T: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let answer: io::Result<Result<T, RaftError<u64, E>>> = match body {
            Ok(body) => {
                match tokio::time::timeout(option.hard_ttl(), self.request(kind, &body)).await {
                    Ok(answer) => answer,
                    Err(late) => return Err(RPCError::Network(NetworkError::new(&late))),
                }
            }
            Err(error) => Err(error),
        };
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(RPCError::RemoteError(RemoteError::new(self.target, error))),
            // Whatever was in the way: the next attempt comes after a pause ([`Client::backoff`]).
            Err(error) => Err(RPCError::Unreachable(Unreachable::new(&error))),
        }
    }
}

/// An append request without its entries.
#[derive(Serialize, Deserialize)]
struct AppendHead {
    vote: Vote,
    prev: Option<NodeLogId>,
    commit: Option<NodeLogId>,
}

/// A piece of a snapshot without its bytes.
#[derive(Serialize, Deserialize)]
struct SnapshotHead {
    vote: Vote,
    meta: Meta,
    offset: u64,
    done: bool,
}

fn encode_append(request: &AppendEntriesRequest<TypeConfig>) -> io::Result<Vec<u8>> {
    let head =
        AppendHead { vote: request.vote, prev: request.prev_log_id, commit: request.leader_commit };
    let mut body = Vec::new();
    put_block(&mut body, &serde_json::to_vec(&head)?);
    request.entries.iter().for_each(|entry| put_block(&mut body, &encode_entry(entry)));
    Ok(body)
}

fn decode_append(body: &[u8]) -> io::Result<AppendEntriesRequest<TypeConfig>> {
    let (head, mut rest) = take_block(body).ok_or_else(|| invalid("append request"))?;
    let head: AppendHead = serde_json::from_slice(head)?;
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let (entry, after) = take_block(rest).ok_or_else(|| invalid("append request"))?;
        entries.push(decode_entry(entry).ok_or_else(|| invalid("entry"))?);
        rest = after;
    }
    Ok(AppendEntriesRequest {
        vote: head.vote,
        prev_log_id: head.prev,
        entries,
        leader_commit: head.commit,
    })
}

fn encode_snapshot(request: InstallSnapshotRequest<TypeConfig>) -> io::Result<Vec<u8>> {
    let head = SnapshotHead {
        vote: request.vote,
        meta: request.meta,
        offset: request.offset,
        done: request.done,
    };
    let mut body = Vec::new();
    put_block(&mut body, &serde_json::to_vec(&head)?);
    body.extend(request.data);
    Ok(body)
}

fn decode_snapshot(body: &[u8]) -> io::Result<InstallSnapshotRequest<TypeConfig>> {
    let (head, data) = take_block(body).ok_or_else(|| invalid("snapshot request"))?;
    let head: SnapshotHead = serde_json::from_slice(head)?;
    Ok(InstallSnapshotRequest {
        vote: head.vote,
        meta: head.meta,
        offset: head.offset,
        data: data.to_vec(),
        done: head.done,
    })
}

type CallError<E = openraft::error::Infallible> = RPCError<u64, Voter, RaftError<u64, E>>;

impl RaftNetwork<TypeConfig> for Client {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallError> {
        self.call(APPEND, encode_append(&request), &option).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, CallError<InstallSnapshotError>> {
        self.call(SNAPSHOT, encode_snapshot(request), &option).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, CallError> {
        self.call(VOTE, serde_json::to_vec(&request).map_err(Into::into), &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(Duration::from_millis(200)))
    }
}

// Answering.

/// Accepts other voters until it is told to stop; then drops every connection.
pub(super) async fn serve(
    listener: BoxListener,
    raft: Raft,
    identity: Arc<Identity>,
    ears: Ears,
    mut stopped: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let present = Present { ears, counts: Arc::default() };
    loop {
        tokio::select! {
            biased;
            () = super::stopped(&mut stopped) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, peer)) => {
                    let (raft, identity) = (raft.clone(), Arc::clone(&identity));
                    let present = present.clone();
                    connections.spawn(async move {
                        if let Err(error) = answer(stream, &raft, &identity, &present).await {
                            tracing::debug!(%peer, %error, "connection of the metadata quorum ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of the metadata quorum");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    connections.shutdown().await;
}

/// How many connections of each voter there are to this node.
#[derive(Clone)]
struct Present {
    ears: Ears,
    counts: Arc<Mutex<BTreeMap<u64, usize>>>,
}

impl Present {
    fn begins(&self, node: u64) -> Connection<'_> {
        let mut counts = lock(&self.counts);
        let count = counts.entry(node).or_default();
        *count = count.saturating_add(1);
        Connection { present: self, node }
    }
}

/// One connection of a voter; tells when it was the last.
struct Connection<'a> {
    present: &'a Present,
    node: u64,
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        let mut counts = lock(&self.present.counts);
        let count = counts.entry(self.node).or_default();
        *count = count.saturating_sub(1);
        if *count > 0 {
            return;
        }
        counts.remove(&self.node);
        drop(counts);
        let answering = self.present.ears.get();
        if let (Some(answering), Some(node)) = (answering, super::raft_quorum::broker_id(self.node))
        {
            answering.ended(node);
        }
    }
}

async fn answer(
    mut stream: BoxStream,
    raft: &Raft,
    identity: &Identity,
    present: &Present,
) -> io::Result<()> {
    let Some(from) = tokio::time::timeout(HELLO_DEADLINE, greet(&mut stream, identity)).await??
    else {
        return Ok(());
    };
    let connection = present.begins(from);
    loop {
        let (kind, body) =
            tokio::time::timeout(IDLE_DEADLINE, read_frame(&mut stream, FRAME_LEN_MAX)).await??;
        let answer = match kind {
            VOTE => serde_json::to_vec(&raft.vote(serde_json::from_slice(&body)?).await)?,
            APPEND => serde_json::to_vec(&raft.append_entries(decode_append(&body)?).await)?,
            SNAPSHOT => serde_json::to_vec(&raft.install_snapshot(decode_snapshot(&body)?).await)?,
            ASK => present.ears.answer(connection.node, body).await?,
            _ => return Err(invalid("the request is not known")),
        };
        let written = write_frame(&mut stream, ANSWER, &answer);
        tokio::time::timeout(WRITE_DEADLINE, written).await??;
    }
}

/// Each side's hello; who the other side is, or nothing when it only asked for ours.
async fn greet(stream: &mut BoxStream, identity: &Identity) -> io::Result<Option<u64>> {
    let (kind, body) = read_frame(stream, HELLO_LEN_MAX).await?;
    if kind != HELLO && kind != WHO {
        return Err(invalid("the peer does not say hello"));
    }
    let hello: Hello = serde_json::from_slice(&body)?;
    // Our own hello goes out first, so that the other side can say in its log what is wrong.
    write_frame(stream, HELLO, &serde_json::to_vec(&identity.hello(hello.from))?).await?;
    if kind == WHO {
        return Ok(None);
    }
    identity.check(&hello, None).await.map_err(invalid)?;
    Ok(Some(hello.from))
}

/// Answers a voter that asks who this is, while this node has no cluster either.
pub(super) async fn answer_as_new(mut stream: BoxStream, node_id: u64) -> io::Result<()> {
    let greeted = async {
        let (_, body) = read_frame(&mut stream, HELLO_LEN_MAX).await?;
        let hello: Hello = serde_json::from_slice(&body)?;
        let own = Hello::of_new(node_id, hello.from);
        write_frame(&mut stream, HELLO, &serde_json::to_vec(&own)?).await
    };
    tokio::time::timeout(HELLO_DEADLINE, greeted).await?
}

/// Asks the voter `to` who it is.
pub(super) async fn ask_who(env: &Env, from: u64, to: u64, at: &Voter) -> io::Result<Hello> {
    let asked = async {
        let mut stream = env.net.connect(&at.host, at.port).await?;
        write_frame(&mut stream, WHO, &serde_json::to_vec(&Hello::of_new(from, to))?).await?;
        let (kind, body) = read_frame(&mut stream, HELLO_LEN_MAX).await?;
        let hello: Hello = serde_json::from_slice(&body)?;
        match kind == HELLO && hello.from == to {
            true => Ok(hello),
            false => Err(invalid(format!("another node than {to} answers there"))),
        }
    };
    tokio::time::timeout(HELLO_DEADLINE, asked).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_that_both_sides_speak_is_spoken() {
        let version = |versions| Hello { versions, ..Hello::of_new(1, 2) }.version();
        assert_eq!(version(VERSIONS), Some(VERSIONS.1));
        assert_eq!(version((VERSIONS.0, u16::MAX)), Some(VERSIONS.1));
        assert_eq!(version((0, VERSIONS.0)), Some(VERSIONS.0));
        assert_eq!(version((VERSIONS.1 + 1, u16::MAX)), None);
        assert_eq!(version((3, 2)), None);
    }
}
