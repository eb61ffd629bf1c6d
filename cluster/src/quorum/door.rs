//! Where other voters come in: the controller listener, from before the founding to the stop.
//!
//! Whoever connects says hello within [`HELLO_DEADLINE`] and proves that it is the process which
//! answers at the address that voter is configured with: only there it is told the secret that it
//! is asked for (`Identity::ask_back`). Nobody else is heard. Those who have not proved who they
//! are share [`STRANGERS_MAX`] places, the oldest making room for the newest, so that silent ones
//! keep nobody out; each voter has [`CONNECTIONS_MAX`] of its own.
//!
//! openraft queues what it is asked for without a bound, and stands still while its disk does. So
//! one request of each voter is in it at a time, and those behind it end with their connections.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use letterbox_env::panics::lock;
use letterbox_env::{BoxListener, BoxStream, Env};
use openraft::SnapshotSegmentId;
use openraft::error::{InstallSnapshotError, RaftError, SnapshotMismatch};
use openraft::raft::{InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest};
use tokio::io::AsyncReadExt;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use uuid::Uuid;

use super::ask::Ears;
use super::bounds::{check_append, check_snapshot, check_vote_request};
use super::elections::would;
use super::identity::{Hello, Identity, Refusal};
use super::network::{
    ANSWER, APPEND, ASK, ATTEND, FRAME_LEN_MAX, HELLO, HELLO_DEADLINE, HELLO_LEN_MAX, PROOF, PROVE,
    REFUSED, SECRET, SNAPSHOT, STAND, VOTE, WELCOME, WHO, WOULD, decode_append, decode_snapshot,
    invalid, read_frame, write_frame,
};
use super::raft_quorum::QuorumTiming;
use super::state_machine::read_image;
use super::types::{Raft, TypeConfig, take_u64};
use super::voters;

/// Connections that have not proved yet of which voter they are.
const STRANGERS_MAX: usize = 64;
/// Connections of one voter: more than it ever uses at a time.
const CONNECTIONS_MAX: usize = 32;
/// Requests of one voter to openraft that wait for the one that is in it.
const WAITING_MAX: usize = 4;
/// A peer that asks nothing for this long is gone.
const IDLE_DEADLINE: Duration = Duration::from_secs(60);
/// A peer that does not take an answer for this long is gone.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// The longest snapshot that is taken: that of some millions of partitions.
const SNAPSHOT_LEN_MAX: usize = 1 << 30;

/// Lets other voters in.
pub(super) struct Door {
    pub(super) env: Env,
    pub(super) identity: Arc<Identity>,
    pub(super) ears: Ears,
    timing: QuorumTiming,
    since: Instant,
    guests: Mutex<Guests>,
    turns: Mutex<BTreeMap<u64, Arc<Turns>>>,
    /// What openraft was asked for. It goes on when the connection that it came on ends.
    begun: Mutex<JoinSet<()>>,
    arriving: tokio::sync::Mutex<Option<Pieces>>,
}

/// The turns of one voter to ask openraft.
struct Turns {
    waiting: Semaphore,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { waiting: Semaphore::new(WAITING_MAX), turn: Arc::default() }
    }
}

impl Turns {
    /// Waits for a turn and begins `work`, which keeps the turn until it is done, also when nobody
    /// waits for it any more.
    ///
    /// # Errors
    /// More wait than there is a place for; `begun` has ended.
    async fn run<T: Send + 'static>(
        &self,
        begun: &Mutex<JoinSet<()>>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<T> {
        let busy = |_| invalid("requests of this voter wait already");
        let place = self.waiting.try_acquire().map_err(busy)?;
        let turn = Arc::clone(&self.turn).lock_owned().await;
        drop(place);
        let (tell, told) = oneshot::channel();
        {
            let mut begun = lock(begun);
            while begun.try_join_next().is_some() {}
            begun.spawn(async move {
                let _ = tell.send(work.await);
                drop(turn);
            });
        }
        told.await.map_err(|_| io::ErrorKind::ConnectionAborted.into())
    }
}

/// The connections that there are, the oldest first. Each has a number.
#[derive(Default)]
struct Guests {
    last: u64,
    strangers: VecDeque<(u64, AbortHandle)>,
    voters: BTreeMap<u64, VecDeque<(u64, AbortHandle)>>,
}

impl Door {
    pub(super) fn new(env: Env, identity: Arc<Identity>, ears: Ears, timing: QuorumTiming) -> Self {
        Self {
            env,
            identity,
            ears,
            timing,
            since: Instant::now(),
            guests: Mutex::default(),
            turns: Mutex::default(),
            begun: Mutex::default(),
            arriving: tokio::sync::Mutex::default(),
        }
    }

    /// Accepts other voters until it is told to stop; then drops every connection.
    pub(super) async fn serve(
        self: Arc<Self>,
        listener: BoxListener,
        mut stopped: watch::Receiver<bool>,
    ) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = super::stopped(&mut stopped) => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.begin(stream, &mut connections),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection of the metadata quorum");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
        connections.shutdown().await;
        let mut begun = std::mem::take(&mut *lock(&self.begun));
        begun.shutdown().await;
    }

    fn begin(self: &Arc<Self>, stream: BoxStream, connections: &mut JoinSet<()>) {
        let mut guests = lock(&self.guests);
        guests.last = guests.last.wrapping_add(1);
        let number = guests.last;
        if guests.strangers.len() >= STRANGERS_MAX
            && let Some((_, oldest)) = guests.strangers.pop_front()
        {
            oldest.abort();
        }
        let mut guest = Guest { door: Arc::clone(self), number, node: None };
        let answering = async move {
            if let Err(error) = guest.answer(stream).await {
                let node = guest.node;
                tracing::debug!(node, %error, "connection of the metadata quorum ended");
            }
        };
        // Under the lock: the connection finds itself among the guests.
        guests.strangers.push_back((number, connections.spawn(answering)));
    }
}

/// One connection; tells when it was the last of its voter.
struct Guest {
    door: Arc<Door>,
    number: u64,
    node: Option<u64>,
}

impl Guest {
    async fn answer(&mut self, mut stream: BoxStream) -> io::Result<()> {
        let greeted = tokio::time::timeout(HELLO_DEADLINE, self.greet(&mut stream));
        let Some(hello) = greeted.await?? else { return Ok(()) };
        self.is_proved(hello.from);
        let door = Arc::clone(&self.door);
        let Some(raft) = door.identity.raft.get() else { return Ok(()) };
        loop {
            let (kind, body) =
                tokio::time::timeout(IDLE_DEADLINE, read_frame(&mut stream, FRAME_LEN_MAX))
                    .await??;
            if !door.identity.hears(&hello) {
                return Err(invalid("it is no member any more"));
            }
            if !door.identity.is_current(&hello) {
                return Err(invalid("another process is this voter now"));
            }
            let from = hello.from;
            let answer = match kind {
                ASK => while_connected(&mut stream, door.answer(from, &body)).await??,
                _ => {
                    let turns = Arc::clone(lock(&door.turns).entry(from).or_default());
                    let work = Arc::clone(&door).consult(raft.clone(), from, kind, body);
                    while_connected(&mut stream, turns.run(&door.begun, work)).await???
                }
            };
            let written = write_frame(&mut stream, ANSWER, &answer);
            tokio::time::timeout(WRITE_DEADLINE, written).await??;
        }
    }

    /// Each side's hello; that of the other side, or nothing when it only asked for ours.
    async fn greet(&self, stream: &mut BoxStream) -> io::Result<Option<Hello>> {
        let identity = &self.door.identity;
        let (kind, body) = read_frame(stream, HELLO_LEN_MAX).await?;
        if kind != HELLO && kind != WHO && kind != ATTEND {
            return Err(invalid("the peer does not say hello"));
        }
        let hello = match Hello::read(&body) {
            Ok(hello) => hello,
            // The other side finds the versions in the answer, and says the same.
            Err(error) => {
                let own = identity.hello(identity.node_id);
                write_frame(stream, HELLO, &serde_json::to_vec(&own)?).await?;
                return Err(error);
            }
        };
        if kind == ATTEND {
            let attended = voters::attend(&self.door.env, identity, hello).await?;
            write_frame(stream, ANSWER, &serde_json::to_vec(&attended)?).await?;
            return Ok(None);
        }
        write_frame(stream, HELLO, &serde_json::to_vec(&identity.hello(hello.from))?).await?;
        if kind == WHO {
            // Who only wanted to know has no secret to tell.
            if let Ok((SECRET, told)) = read_frame(stream, HELLO_LEN_MAX).await {
                let secret = Uuid::from_slice(&told).map_err(|_| invalid("a secret"))?;
                identity.keep_secret(hello.from, secret);
                write_frame(stream, WELCOME, &[]).await?;
            }
            return Ok(None);
        }
        if !identity.hears(&hello) && hello.at > identity.newest().at {
            identity.ask_around(&self.door.env).await;
        }
        let mut heard = identity.check(&hello, None);
        if heard.is_ok() && identity.raft.get().is_none() {
            heard = Err(Refusal::not_yet("it is starting".to_owned()));
        }
        if heard.is_ok() {
            heard = self.prove(stream, &hello).await?;
        }
        match heard {
            Ok(()) => {
                identity.tell(hello.known());
                identity.meet(hello.from, hello.incarnation, |met| met.hear(&hello));
                write_frame(stream, WELCOME, &self.door.clock_ms().to_le_bytes()).await?;
                Ok(Some(hello))
            }
            Err(refusal) => {
                identity.say(hello.from, Some(&refusal), false);
                write_frame(stream, REFUSED, &serde_json::to_vec(&refusal)?).await?;
                Err(invalid(refusal.reason))
            }
        }
    }

    /// Whether the other side knows what was told to the process that is its voter.
    async fn prove(
        &self,
        stream: &mut BoxStream,
        hello: &Hello,
    ) -> io::Result<Result<(), Refusal>> {
        let identity = &self.door.identity;
        let mut has_told = false;
        loop {
            if identity.is_current(hello) {
                write_frame(stream, PROVE, &[]).await?;
                let (PROOF, said) = read_frame(stream, HELLO_LEN_MAX).await? else {
                    return Err(invalid("the peer does not prove who it is"));
                };
                if identity.is_secret(hello.from, &said) {
                    return Ok(Ok(()));
                }
            }
            // Once more: somebody else may have told it another secret in the name of this node.
            if std::mem::replace(&mut has_told, true) {
                return Ok(Err(Refusal::not_yet(format!(
                    "it does not say what node {} was told where it is reached",
                    hello.from
                ))));
            }
            if let Err(refusal) = identity.ask_back(&self.door.env, hello).await {
                return Ok(Err(refusal));
            }
        }
    }

    /// From now on it has a place among those of its voter.
    fn is_proved(&mut self, node: u64) {
        let mut guests = lock(&self.door.guests);
        let Some(at) = guests.strangers.iter().position(|(number, _)| *number == self.number)
        else {
            return; // It has just made room, and ends.
        };
        let Some(own) = guests.strangers.remove(at) else { return };
        let of_node = guests.voters.entry(node).or_default();
        if of_node.len() >= CONNECTIONS_MAX
            && let Some((_, oldest)) = of_node.pop_front()
        {
            oldest.abort();
        }
        of_node.push_back(own);
        self.node = Some(node);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut guests = lock(&self.door.guests);
        let Some(node) = self.node else {
            guests.strangers.retain(|(number, _)| *number != self.number);
            return;
        };
        let Some(of_node) = guests.voters.get_mut(&node) else { return };
        of_node.retain(|(number, _)| *number != self.number);
        if !of_node.is_empty() {
            return;
        }
        guests.voters.remove(&node);
        drop(guests);
        let answering = self.door.ears.get();
        if let (Some(answering), Some(node)) = (answering, super::raft_quorum::broker_id(node)) {
            answering.ended(node);
        }
    }
}

/// What comes of `work`, which is dropped when the other side ends the connection before: nobody
/// waits for it any more. What has arrived with the end of its connection is not begun.
async fn while_connected<T>(
    stream: &mut BoxStream,
    work: impl Future<Output = T>,
) -> io::Result<T> {
    tokio::select! {
        biased;
        _ = stream.read_u8() => Err(io::ErrorKind::ConnectionAborted.into()),
        done = work => Ok(done),
    }
}

impl Door {
    fn clock_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The answer to what is no consensus, and what this node's clock shows (the last eight bytes).
    /// The question begins with the time by that clock until which the answer is waited for: after
    /// that nothing is begun, although the question may have been on its way for long.
    async fn answer(&self, from: u64, body: &[u8]) -> io::Result<Vec<u8>> {
        let (until, question) = take_u64(body).ok_or_else(|| invalid("the question"))?;
        let left = until.checked_sub(self.clock_ms()).filter(|left| *left > 0);
        let left = Duration::from_millis(left.ok_or_else(|| invalid("the question is late"))?);
        let answer = self.ears.answer(from, question.to_vec());
        let mut answer = tokio::time::timeout(left, answer).await??;
        answer.extend(self.clock_ms().to_le_bytes());
        Ok(answer)
    }
}

// Consensus.

impl Door {
    /// What openraft answers.
    async fn consult(
        self: Arc<Self>,
        raft: Raft,
        from: u64,
        kind: u8,
        body: Vec<u8>,
    ) -> io::Result<Vec<u8>> {
        // A log without a membership may be one that was lost: nothing is promised by it.
        if matches!(kind, VOTE | WOULD) && self.identity.log.end() == 0 {
            return Err(invalid("this node's log is empty: it votes for nobody"));
        }
        Ok(match kind {
            VOTE => {
                let request: VoteRequest<u64> = serde_json::from_slice(&body)?;
                check_vote_request(from, &request)?;
                serde_json::to_vec(&raft.vote(request).await)?
            }
            APPEND => {
                let request = decode_append(&body)?;
                drop(body);
                check_append(from, &request)?;
                self.identity.hear_leader();
                serde_json::to_vec(&raft.append_entries(request).await)?
            }
            SNAPSHOT => {
                let request = decode_snapshot(&body)?;
                drop(body);
                check_snapshot(from, &request)?;
                self.identity.hear_leader();
                serde_json::to_vec(&self.install(&raft, from, request).await?)?
            }
            WOULD => {
                let question = serde_json::from_slice(&body)?;
                let would = would(&raft, &self.identity, &self.timing, question);
                serde_json::to_vec(&would.await?)?
            }
            STAND if !self.identity.is_voter() => return Err(invalid("this node does not vote")),
            STAND => {
                raft.trigger().elect().await.map_err(io::Error::other)?;
                // Until it has heard that.
                raft.with_raft_state(|_| ()).await.map_err(io::Error::other)?;
                Vec::new()
            }
            _ => return Err(invalid("the request is not known")),
        })
    }
}

// Snapshots.

/// What has come of a snapshot.
struct Pieces {
    from: u64,
    id: String,
    bytes: Vec<u8>,
}

impl Door {
    /// Takes a piece of a snapshot, and installs it with the last one.
    async fn install(
        &self,
        raft: &Raft,
        from: u64,
        request: InstallSnapshotRequest<TypeConfig>,
    ) -> io::Result<Result<InstallSnapshotResponse<u64>, RaftError<u64, InstallSnapshotError>>>
    {
        let vote = match raft.with_raft_state(|state| *state.vote_ref()).await {
            Ok(vote) => vote,
            Err(fatal) => return Ok(Err(RaftError::Fatal(fatal))),
        };
        // Of a leader whose term is over.
        if request.vote.partial_cmp(&vote).is_none_or(Ordering::is_lt) {
            return Ok(Ok(InstallSnapshotResponse { vote }));
        }
        let (sender, meta) = (request.vote, request.meta.clone());
        let mut arriving = self.arriving.lock().await;
        match Pieces::take(&mut arriving, from, request, SNAPSHOT_LEN_MAX)? {
            Ok(None) => Ok(Ok(InstallSnapshotResponse { vote })),
            Ok(Some(bytes)) => {
                // openraft would end with one that cannot be read.
                let (read, bytes) = {
                    let meta = meta.clone();
                    let read = move || (read_image(&meta, &bytes).map(drop), bytes);
                    self.env.blocking(read).await
                };
                read.map_err(invalid)?;
                let snapshot = Box::new(io::Cursor::new(bytes));
                let snapshot = openraft::Snapshot { meta, snapshot };
                let installed = raft.install_full_snapshot(sender, snapshot).await;
                Ok(installed.map(Into::into).map_err(RaftError::Fatal))
            }
            Err(mismatch) => Ok(Err(RaftError::APIError(mismatch.into()))),
        }
    }
}

impl Pieces {
    /// Adds a piece to those that have come, which it must follow or repeat; the whole snapshot
    /// with the last one. A mismatch makes the sender begin again.
    fn take(
        arriving: &mut Option<Self>,
        from: u64,
        request: InstallSnapshotRequest<TypeConfig>,
        len_max: usize,
    ) -> io::Result<Result<Option<Vec<u8>>, SnapshotMismatch>> {
        let InstallSnapshotRequest { meta, offset, data, done, .. } = request;
        if offset == 0 {
            *arriving = Some(Self { from, id: meta.snapshot_id.clone(), bytes: Vec::new() });
        }
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let fits = |pieces: &&mut Self| {
            pieces.from == from && pieces.id == meta.snapshot_id && begin <= pieces.bytes.len()
        };
        let Some(pieces) = arriving.as_mut().filter(fits) else {
            let segment = |offset| SnapshotSegmentId { id: meta.snapshot_id.clone(), offset };
            return Ok(Err(SnapshotMismatch { expect: segment(0), got: segment(offset) }));
        };
        if begin.saturating_add(data.len()) > len_max {
            *arriving = None;
            return Err(invalid(format!("a snapshot of more than {len_max} bytes is not taken")));
        }
        pieces.bytes.truncate(begin);
        pieces.bytes.try_reserve(data.len())?;
        pieces.bytes.extend(data);
        Ok(Ok(if done { arriving.take().map(|pieces| pieces.bytes) } else { None }))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::super::snapshot::Meta;
    use super::super::types::Vote;
    use super::*;

    /// A disk that hangs, and with it openraft, whose peer asks again and again.
    #[tokio::test]
    async fn one_request_of_a_voter_is_in_openraft_whoever_has_given_it_up() {
        let (turns, begun) = (Turns::default(), Mutex::default());
        let answered = Arc::new(Semaphore::new(0));
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let work = || {
            let (answered, asked) = (Arc::clone(&answered), Arc::clone(&asked));
            async move {
                asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                answered.acquire().await.unwrap().forget();
            }
        };
        let count = || asked.load(std::sync::atomic::Ordering::Relaxed);
        // Each is given up, with its connection, while it waits.
        for _ in 0..20 {
            let given_up =
                tokio::time::timeout(Duration::from_millis(5), turns.run(&begun, work()));
            assert!(given_up.await.is_err());
            assert_eq!((count(), turns.waiting.available_permits()), (1, WAITING_MAX));
        }
        // Those that are not given up have their places, and no more.
        let mut waiting: Vec<_> =
            (0..WAITING_MAX).map(|_| Box::pin(turns.run(&begun, work()))).collect();
        assert!(waiting.iter_mut().all(|one| one.now_or_never().is_none()));
        assert!(turns.run(&begun, work()).now_or_never().unwrap().is_err());
        assert_eq!(count(), 1);
        answered.add_permits(1 + WAITING_MAX);
        for one in waiting {
            one.await.unwrap();
        }
        assert_eq!(count(), 1 + WAITING_MAX);
    }

    fn piece(id: &str, offset: u64, data: &[u8], done: bool) -> InstallSnapshotRequest<TypeConfig> {
        let meta = Meta { snapshot_id: id.to_owned(), ..Meta::default() };
        InstallSnapshotRequest { vote: Vote::new(1, 1), meta, offset, data: data.to_vec(), done }
    }

    #[test]
    fn a_snapshot_is_put_together_from_pieces_that_follow_one_another_and_nothing_else() {
        let mut arriving = None;
        let mut take = |from, piece| Pieces::take(&mut arriving, from, piece, 8);
        let begins_again = |taken: io::Result<Result<Option<Vec<u8>>, SnapshotMismatch>>| {
            taken.unwrap().unwrap_err().expect.offset == 0
        };
        // Nothing has come yet; far away; of another snapshot; of another node.
        assert!(begins_again(take(1, piece("a", 3, b"def", false))));
        assert_eq!(take(1, piece("a", 0, b"abc", false)).unwrap(), Ok(None));
        assert!(begins_again(take(1, piece("a", u64::MAX, b"x", false))));
        assert!(begins_again(take(1, piece("a", 4, b"x", true))));
        assert!(begins_again(take(1, piece("b", 3, b"x", true))));
        assert!(begins_again(take(2, piece("a", 3, b"x", true))));
        // The last piece may come again, and the sender may begin again.
        assert_eq!(take(1, piece("a", 3, b"xx", false)).unwrap(), Ok(None));
        assert_eq!(take(1, piece("a", 3, b"de", false)).unwrap(), Ok(None));
        assert_eq!(take(1, piece("a", 5, b"f", true)).unwrap(), Ok(Some(b"abcdef".to_vec())));
        assert!(begins_again(take(1, piece("a", 6, b"g", true))));
        // Not more than is allowed.
        assert_eq!(take(1, piece("c", 0, b"12345678", false)).unwrap(), Ok(None));
        assert!(take(1, piece("c", 8, b"9", true)).is_err());
        assert!(begins_again(take(1, piece("c", 8, b"9", true))));
    }
}
