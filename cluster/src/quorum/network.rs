//! Voters calling one another; `super::door` answers.
//!
//! ```text
//! frame  u32 length, u32 crc32c of the rest, u8 kind, body        (little endian)
//! ```
//! A connection begins with a hello of each side (`super::identity`), and a welcome or a refusal
//! with its reason. Then requests and answers take turns, in the newest version that both speak.
//! The stream is taken out of its place (`super::links`) during a call and put back only after a
//! whole answer, so a call that was late, cancelled or garbled costs the connection and nothing
//! else.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use letterbox_env::panics::lock;
use letterbox_env::{BoxStream, Env};
use letterbox_protocol::model::BrokerId;
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
use tokio::time::Instant;
use uuid::Uuid;

use super::ask::Asker;
use super::bounds::{check_append_response, check_vote, check_vote_response};
use super::identity::{Hello, Identity, Refusal};
use super::links::{Connection, Link, OtherClock};
use super::snapshot::Meta;
use super::types::{
    Known, NodeLogId, Reached, TypeConfig, Vote, Voter, decode_entry, encode_entry, put_block,
    take_block,
};

/// Larger frames are refused: an entry of the greatest length and a batch of others fit.
pub(crate) const FRAME_LEN_MAX: usize = 32 << 20;
/// Larger answers are refused. What an operation comes to may be told in more words than it has.
const ANSWER_LEN_MAX: usize = 128 << 20;
/// Before the peer is known: some tens of voters with the longest names fit.
pub(super) const HELLO_LEN_MAX: usize = 32 << 10;
pub(super) const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// The versions of the hello and of what is said after it, the oldest and the newest that this node
/// speaks.
pub(super) const VERSIONS: (u16, u16) = (6, 6);

pub(super) const HELLO: u8 = 0;
pub(super) const VOTE: u8 = 1;
pub(super) const APPEND: u8 = 2;
pub(super) const SNAPSHOT: u8 = 3;
pub(super) const ANSWER: u8 = 4;
/// Not consensus; see `super::ask`.
pub(super) const ASK: u8 = 5;
/// A hello of somebody who only wants to know who this is.
pub(super) const WHO: u8 = 6;
/// The hello is taken. The body is what the clock of who says so shows (eight bytes), by which it
/// is asked to answer in time.
pub(super) const WELCOME: u8 = 7;
/// It is not; the body says why.
pub(super) const REFUSED: u8 = 8;
/// The node that leads ends: the other one asks for votes now.
pub(super) const STAND: u8 = 9;
/// After [`WHO`]: what whoever answers here says from now on when it is asked for its [`PROOF`].
pub(super) const SECRET: u8 = 10;
/// Whoever has said hello shall prove that it is this voter.
pub(super) const PROVE: u8 = 11;
/// The secret that this voter was told by the one that asks.
pub(super) const PROOF: u8 = 12;
/// Whether this voter would vote for who asks; see `super::elections`.
pub(super) const WOULD: u8 = 13;
/// A hello of a node that wants the membership to say of it what it says of itself; see
/// `super::voters`.
pub(super) const ATTEND: u8 = 14;

pub(super) async fn write_frame(stream: &mut BoxStream, kind: u8, body: &[u8]) -> io::Result<()> {
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

pub(super) async fn read_frame(
    stream: &mut BoxStream,
    len_max: usize,
) -> io::Result<(u8, Vec<u8>)> {
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

pub(super) fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

// Calling.

/// Makes a [`Client`] for each member.
#[derive(Clone)]
pub(super) struct Dialer {
    pub(super) env: Env,
    pub(super) identity: Arc<Identity>,
    /// To each member, shared by all clients.
    ways: Arc<Mutex<BTreeMap<u64, Arc<Ways>>>>,
    stopped: watch::Receiver<bool>,
}

/// The ways to one member, with one log at one address.
pub(super) struct Ways {
    to: Voter,
    pub(super) consensus: Arc<Link>,
    pub(super) asker: Asker,
}

impl RaftNetworkFactory<TypeConfig> for Dialer {
    type Network = Client;

    /// openraft names the member of the membership by which it counts: another log than that one's
    /// is not heard, whatever is known by now.
    async fn new_client(&mut self, target: u64, node: &Voter) -> Client {
        self.client(target, &self.identity.reached(target, node.clone()))
    }
}

impl Dialer {
    pub(super) fn new(env: Env, identity: Arc<Identity>, stopped: watch::Receiver<bool>) -> Self {
        Self { env, identity, ways: Arc::default(), stopped }
    }

    /// The ways to `to`, which is the node `target`.
    fn ways(&self, target: u64, to: &Voter) -> Arc<Ways> {
        let mut all = lock(&self.ways);
        if let Some(ways) = all.get(&target).filter(|ways| ways.to.is_reached_as(to)) {
            return Arc::clone(ways);
        }
        let world = || (self.env.clone(), Arc::clone(&self.identity));
        let link = || Link::new(world(), (target, to.clone()), self.stopped.clone());
        let (consensus, node) = (link(), BrokerId(i32::try_from(target).unwrap_or(i32::MAX)));
        let asker = Asker::new(node, Arc::clone(&consensus), link);
        let ways = Arc::new(Ways { to: to.clone(), consensus, asker });
        all.insert(target, Arc::clone(&ways));
        ways
    }

    /// The ways to the member `node`.
    pub(super) fn ways_to(&self, node: BrokerId) -> Option<Arc<Ways>> {
        let target = u64::try_from(node.0).ok().filter(|id| *id != self.identity.node_id)?;
        let member = self.identity.member(&self.identity.newest(), target)?;
        Some(self.ways(target, &member))
    }

    fn client(&self, target: u64, to: &Voter) -> Client {
        let (env, identity) = (self.env.clone(), Arc::clone(&self.identity));
        let link = Arc::clone(&self.ways(target, to).consensus);
        Client { env, identity, target, link, incarnation: to.incarnation, matched: None }
    }

    /// One for each other voter of `own`.
    pub(super) fn voters(&self, own: &Known) -> Vec<(u64, Client)> {
        let others = own.voters().into_iter().filter(|id| *id != self.identity.node_id);
        others
            .filter_map(|id| Some((id, self.client(id, &self.identity.member(own, id)?))))
            .collect()
    }

    /// Waits until no connection is being made any more, after this node was told to stop.
    pub(super) async fn end(&self) {
        let all = std::mem::take(&mut *lock(&self.ways));
        for ways in all.values() {
            ways.consensus.end().await;
            ways.asker.end().await;
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

/// Says hello on a new connection to `target`; each side proves who it is.
pub(super) async fn say_hello(
    mut stream: BoxStream,
    identity: &Identity,
    (target, incarnation): (u64, Uuid),
) -> io::Result<Connection> {
    let hello = serde_json::to_vec(&identity.hello(target))?;
    write_frame(&mut stream, HELLO, &hello).await?;
    let (kind, body) = read_frame(&mut stream, HELLO_LEN_MAX).await?;
    if kind != HELLO {
        return Err(invalid("the peer does not say hello"));
    }
    let hello = Hello::read(&body)?;
    if let Err(refusal) = identity.check(&hello, Some((target, incarnation))) {
        identity.say(target, Some(&refusal), false);
        return Err(invalid(refusal.reason));
    }
    identity.tell(hello.known());
    identity.meet(target, incarnation, |met| met.hear(&hello));
    loop {
        match read_frame(&mut stream, HELLO_LEN_MAX).await? {
            (WELCOME, body) => {
                let shown = body.try_into().map_err(|_| invalid("the peer's clock"))?;
                identity.say(target, None, true);
                return Ok(Connection { stream, clock: OtherClock::read(shown) });
            }
            // Asked again when it was told another secret meanwhile.
            (PROVE, _) => {
                let secret = identity.secret_of(target);
                write_frame(&mut stream, PROOF, secret.as_bytes()).await?;
            }
            (REFUSED, body) => {
                let refusal: Refusal = serde_json::from_slice(&body)?;
                identity.say(target, Some(&refusal), true);
                return Err(invalid(format!("it refuses this node: {}", refusal.reason)));
            }
            _ => return Err(invalid("the peer does not answer the hello")),
        }
    }
}

/// Calls one voter.
pub(super) struct Client {
    identity: Arc<Identity>,
    link: Arc<Link>,
    env: Env,
    target: u64,
    incarnation: Uuid,
    /// The last entry that the voter has acknowledged to this client.
    matched: Option<NodeLogId>,
}

impl Client {
    /// What the voter answers.
    pub(super) async fn request<T: DeserializeOwned>(
        &self,
        kind: u8,
        body: &[u8],
    ) -> io::Result<T> {
        let mut connection = self.link.take().await?;
        let body = exchange(&mut connection.stream, kind, body).await?;
        let answer = serde_json::from_slice(&body)?;
        self.link.give_back(connection);
        Ok(answer)
    }

    /// An answer that `check` refuses is none.
    async fn call<T, E>(
        &self,
        kind: u8,
        body: io::Result<Vec<u8>>,
        option: &RPCOption,
        check: impl FnOnce(&T) -> io::Result<()>,
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
            Ok(Ok(answer)) => match check(&answer) {
                Ok(()) => Ok(answer),
                Err(error) => Err(RPCError::Unreachable(Unreachable::new(&error))),
            },
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

pub(super) fn decode_append(body: &[u8]) -> io::Result<AppendEntriesRequest<TypeConfig>> {
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

pub(super) fn decode_snapshot(body: &[u8]) -> io::Result<InstallSnapshotRequest<TypeConfig>> {
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
        let end = request.prev_log_id.map_or(0, |last| last.index.saturating_add(1));
        let has_all = end.saturating_add(request.entries.len() as u64) >= self.identity.log.end();
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let reached = Reached::new(request.vote.leader_id.term, last);
        let (sent, sent_ms) = (Instant::now(), self.env.clock.wall_ms());
        let asked = (&request.vote, request.prev_log_id, self.matched);
        let check = |answer: &_| check_append_response(asked, answer);
        let answer = self.call(APPEND, encode_append(&request), &option, check).await?;
        if matches!(answer, AppendEntriesResponse::Success) {
            self.matched = self.matched.max(last);
        }
        let answered_ms = self.env.clock.wall_ms();
        self.identity.meet(self.target, self.incarnation, |met| match answer {
            AppendEntriesResponse::HigherVote(_) => {}
            _ => {
                met.followed = Some(sent);
                met.seen.fetched_ms = Some(answered_ms);
                if matches!(answer, AppendEntriesResponse::Success) {
                    met.acknowledged(reached);
                    met.seen.caught_up_ms = has_all.then_some(sent_ms).or(met.seen.caught_up_ms);
                    met.caught_up = has_all.then_some(sent).or(met.caught_up);
                }
            }
        });
        Ok(answer)
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, CallError<InstallSnapshotError>> {
        let check = |answer: &InstallSnapshotResponse<u64>| check_vote(&answer.vote);
        self.call(SNAPSHOT, encode_snapshot(request), &option, check).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, CallError> {
        let body = serde_json::to_vec(&request).map_err(Into::into);
        self.call(VOTE, body, &option, check_vote_response).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(Duration::from_millis(200)))
    }
}

/// Asks the node at `at`, which should be `to`, if that is known, who it is.
pub(super) async fn ask_who(
    env: &Env,
    own: &Hello,
    to: Option<u64>,
    at: &Voter,
) -> io::Result<Hello> {
    let found = tokio::time::timeout(HELLO_DEADLINE, find(env, own, to, at));
    found.await?.map(|(_, hello)| hello)
}

/// Looks who answers at `at`, which should be `to`, and tells it its secret, if it is to have one;
/// says whether it is.
pub(super) async fn tell_secret(
    env: &Env,
    own: &Hello,
    to: u64,
    at: &Voter,
    secret: impl FnOnce(&Hello) -> Option<Uuid>,
) -> io::Result<bool> {
    let told = async {
        let (mut stream, found) = find(env, own, Some(to), at).await?;
        let Some(secret) = secret(&found) else { return Ok(false) };
        write_frame(&mut stream, SECRET, secret.as_bytes()).await?;
        match read_frame(&mut stream, HELLO_LEN_MAX).await? {
            (WELCOME, _) => Ok(true),
            _ => Err(invalid("the peer does not take its secret")),
        }
    };
    tokio::time::timeout(HELLO_DEADLINE, told).await?
}

async fn find(
    env: &Env,
    own: &Hello,
    to: Option<u64>,
    at: &Voter,
) -> io::Result<(BoxStream, Hello)> {
    let mut stream = env.net.connect(&at.host, at.port).await?;
    write_frame(&mut stream, WHO, &serde_json::to_vec(own)?).await?;
    let (kind, body) = read_frame(&mut stream, HELLO_LEN_MAX).await?;
    let hello = Hello::read(&body)?;
    match to {
        _ if kind != HELLO => Err(invalid("the peer does not say hello")),
        Some(to) if to != hello.from => {
            Err(invalid(format!("node {} answers there, not node {to}", hello.from)))
        }
        _ => Ok((stream, hello)),
    }
}

/// Has the node at `at` make the membership say of this node what `own` says, or tells why not.
pub(super) async fn attend<T: DeserializeOwned>(
    env: &Env,
    own: &Hello,
    at: &Voter,
) -> io::Result<T> {
    let mut stream = env.net.connect(&at.host, at.port).await?;
    write_frame(&mut stream, ATTEND, &serde_json::to_vec(own)?).await?;
    match read_frame(&mut stream, HELLO_LEN_MAX).await? {
        (ANSWER, body) => Ok(serde_json::from_slice(&body)?),
        _ => Err(invalid("the peer does not answer")),
    }
}
