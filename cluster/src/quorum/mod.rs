//! The metadata quorum: consensus on the records of `crate::metadata`, on openraft, behind
//! [`MetadataQuorum`].
//!
//! What must stay true: a vote and an entry are durable before anybody is told of them; a node
//! whose log was lost never takes part under its old identity; whatever this node does not
//! understand, or the disk has lost, stops it loudly ([`MetadataQuorum::fatal`]); on a full disk it
//! waits.

mod ask;
mod bounds;
mod door;
mod elections;
mod founding;
mod identity;
mod links;
mod log_store;
mod network;
mod patience;
mod place;
mod raft_quorum;
mod runtime;
mod seat;
mod snapshot;
mod state_machine;
mod types;
mod voters;
mod wal;

use std::collections::BTreeMap;
use std::sync::Arc;

use letterbox_env::BoxFuture;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

pub use founding::FoundingError;
pub(crate) use network::FRAME_LEN_MAX;
pub use place::{settle, written_ms};
pub use raft_quorum::{OpenError, QuorumConfig, QuorumTiming, RaftQuorum};
pub use seat::Seat;
pub use wal::WalError;

use crate::metadata::{ApiError, MetadataDelta, MetadataImage, MetadataRecord};

/// Agreement on the metadata log. Object safe, so that the consensus library can be exchanged.
pub trait MetadataQuorum: Send + Sync {
    /// Commits `records`, however many they are, all or nothing, and returns when this node has
    /// applied them.
    ///
    /// `term` must be the one that [`Self::begin_leading`] returned: the records do nothing when
    /// this node has led, lost and regained the lead in between, because then they were decided on
    /// an outdated image. One proposal at a time: what is proposed in the middle of another gives
    /// that one up.
    ///
    /// Not cancel safe: the records may be committed although the future was dropped.
    ///
    /// # Errors
    /// [`QuorumError`]. After `OutcomeUnknown` the entry may or may not be committed later; so it is
    /// when no majority has it within a few seconds. Whoever proposes again begins with
    /// [`Self::begin_leading`], which waits for what was begun.
    fn propose<'a>(
        &'a self,
        term: u64,
        records: &'a [MetadataRecord],
    ) -> BoxFuture<'a, Result<Proposed, QuorumError>>;

    /// Waits until this node, if it leads, has applied everything that was ever committed, and
    /// returns the term in which it leads.
    ///
    /// # Errors
    /// `NotLeader` at once when it does not lead.
    fn begin_leading(&self) -> BoxFuture<'_, Result<u64, QuorumError>>;

    /// The newest image of this node. Never blocks; on a node that does not lead it may be behind.
    fn image(&self) -> Arc<MetadataImage>;

    /// Makes sure that this node leads now, and has led without a break in the `term` that
    /// [`Self::begin_leading`] returned: nobody else has committed anything since. Returns the
    /// newest index that it has applied.
    ///
    /// # Errors
    /// `NotLeader` when another node leads, or has led meanwhile.
    fn confirm_leading(&self, term: u64) -> BoxFuture<'_, Result<u64, QuorumError>>;

    /// Watches the newest image; intermediate ones may be missed.
    fn subscribe(&self) -> watch::Receiver<Arc<MetadataImage>>;

    /// What changes from now on, in order. The first delta is the difference from an empty image.
    fn deltas(&self) -> DeltaStream {
        DeltaStream { seen: Arc::default(), images: self.subscribe() }
    }

    /// Who leads and who votes, as far as this node knows.
    fn status(&self) -> QuorumStatus;

    /// The other members that could not be reached when that was tried last, and why.
    fn unreachable(&self) -> BTreeMap<BrokerId, String>;

    /// Why other members take this node for none any more, while none of them that leads has
    /// called it since: others may act for it.
    fn refusal(&self) -> Option<String>;

    /// Whether this node takes itself for the leader, and no majority has answered it lately.
    fn leads_alone(&self) -> bool;

    /// This node is about to end: from now on it does not ask to be a member any more.
    fn leave(&self);

    /// Asks `leader`, over a connection on which each side has proved who it is. Given up at
    /// `deadline`, and as soon as this node knows that another one leads.
    ///
    /// # Errors
    /// [`AskError`] says whether the question may have been heard. Nothing is asked twice.
    fn ask<'a>(
        &'a self,
        leader: BrokerId,
        lane: Lane,
        deadline: Instant,
        question: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, AskError>>;

    /// Whether nothing listens any more where `node` is reached: its process has ended. `false` when
    /// it lives, and when nobody can tell.
    fn is_refused(&self, node: BrokerId) -> BoxFuture<'_, bool>;

    /// Makes `change`, if this node leads, and returns when that is committed. Waits until it is
    /// possible, but not beyond `deadline`. One change at a time.
    ///
    /// Not cancel safe: a change that was begun is finished, whoever leads.
    ///
    /// # Errors
    /// [`ChangeError`]; `NotLeader` also when this node is to be removed and has handed the lead
    /// over.
    fn change_voters<'a>(
        &'a self,
        change: &'a VoterChange,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<(), ChangeError>>;

    /// Sets who answers what other nodes ask this one.
    fn answer_with(&self, answering: Arc<dyn Answering>);

    /// Writes a snapshot now and lets the log before it go.
    ///
    /// # Errors
    /// `Stopped`.
    fn snapshot(&self) -> BoxFuture<'_, Result<(), QuorumError>>;

    /// Completes when the quorum cannot go on (a panic in it, a disk that failed, a record from a
    /// newer version) with the reason; the process must end. Never completes after a clean
    /// [`Self::shutdown`].
    fn fatal(&self) -> BoxFuture<'static, String>;

    /// Hands the lead over, if this node has it and can, and stops taking part: no I/O of the quorum is under way when this returns.
    fn shutdown(&self) -> BoxFuture<'_, ()>;
}

/// Who is to vote, or not any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VoterChange {
    /// An observer becomes a voter (KIP-853).
    Add {
        /// Its id.
        node: BrokerId,
        /// `directory.id` of the directory with its log.
        directory_id: Uuid,
    },
    /// A voter becomes an observer, if it lives.
    Remove {
        /// Its id.
        node: BrokerId,
        /// `directory.id` of the directory with its log.
        directory_id: Uuid,
    },
    /// An observer leaves the membership; nothing, if the node votes or is no member. One that
    /// lives asks to observe again.
    Forget {
        /// Its id.
        node: BrokerId,
    },
}

impl VoterChange {
    /// Whether it is refused with `code` because it was made before: a removed voter votes no more.
    pub(crate) fn is_made<T>(&self, code: ErrorCode, voters: &BTreeMap<BrokerId, T>) -> bool {
        matches!(self, Self::Remove { node, .. }
            if code == ErrorCode::VoterNotFound && !voters.contains_key(node))
    }
}

/// Why a change of the voters has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The quorum did not take it.
    #[error(transparent)]
    Quorum(#[from] QuorumError),
    /// It is not possible.
    #[error(transparent)]
    Refused(#[from] ApiError),
}

impl From<letterbox_protocol::ErrorCode> for ChangeError {
    fn from(code: letterbox_protocol::ErrorCode) -> Self {
        Self::Refused(code.into())
    }
}

/// Where a decision landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// The index of its last entry in the metadata log: who has applied that sees it.
    pub index: u64,
}

/// Why the quorum did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum QuorumError {
    /// Another node leads, or none.
    #[error(
        "this node does not lead the metadata quorum; {}",
        .leader.map_or_else(|| "nobody does".to_owned(), |leader| format!("node {leader} does"))
    )]
    NotLeader {
        /// Who leads, if known.
        leader: Option<BrokerId>,
    },
    /// The lead was lost in the middle, or the time is over: the entry may or may not be committed.
    #[error("the metadata quorum did not confirm the change in time; it may still take effect")]
    OutcomeUnknown,
    /// The metadata log waits for space, or for a descriptor; nothing was proposed. It goes on by
    /// itself.
    #[error(
        "the metadata log cannot be written: {reason}; it goes on by itself when there is space in \
         metadata.log.dir"
    )]
    Waiting {
        /// What is short.
        reason: Arc<str>,
    },
    /// The quorum is shut down or has failed; nothing was proposed.
    #[error("the metadata quorum has stopped: {reason}")]
    Stopped {
        /// Why: what the disk said, for example.
        reason: Arc<str>,
    },
}

/// Answers what other nodes [`ask`](MetadataQuorum::ask) this one. What is said is not the quorum's
/// business.
pub trait Answering: Send + Sync {
    /// The answer to `question`, which `from` asks.
    fn answer<'a>(&'a self, from: BrokerId, question: Vec<u8>) -> BoxFuture<'a, Vec<u8>>;

    /// The last connection of `node` to this one has ended.
    fn ended(&self, node: BrokerId);
}

/// What a question is about. No question waits behind those of another lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// A change of the metadata, which takes as long as its commit.
    Operations,
    /// How the quorum is.
    Status,
    /// That a broker lives.
    Heartbeats,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The other node has not heard the question.
    #[error("node {node} cannot be reached")]
    NotSent {
        /// Who was asked.
        node: BrokerId,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The other node may have heard the question, and may act on it still.
    #[error("node {node} did not answer")]
    NoAnswer {
        /// Who was asked.
        node: BrokerId,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Who leads and who votes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuorumStatus {
    /// This node.
    pub node_id: BrokerId,
    /// The leader, if one is known.
    pub leader: Option<BrokerId>,
    /// The newest term that this node knows.
    pub term: u64,
    /// Whom it has voted for in that term.
    #[serde(default)]
    pub vote: Option<BrokerId>,
    /// The voters and where they are reached.
    pub voters: BTreeMap<BrokerId, (String, u16)>,
    /// The other members, which have all entries and do not vote.
    #[serde(default)]
    pub observers: BTreeMap<BrokerId, (String, u16)>,
    /// Last index of this node's log.
    pub last_log_index: u64,
    /// Last index that each voter is known to have; only the leader knows.
    pub matched: BTreeMap<BrokerId, u64>,
    /// What the leader has seen of each voter.
    #[serde(default)]
    pub seen: BTreeMap<BrokerId, SeenVoter>,
    /// Last index that this node has applied.
    pub applied_index: u64,
    /// Last index that the newest snapshot contains.
    pub snapshot_index: u64,
}

/// What a node has seen of a voter since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenVoter {
    /// `directory.id` of the directory with its log.
    pub directory_id: Option<Uuid>,
    /// When it last took entries or a heartbeat, in ms since 1970.
    pub fetched_ms: Option<i64>,
    /// The last moment at which it had all entries of the leader, in ms since 1970.
    pub caught_up_ms: Option<i64>,
}

/// An ordered stream of changes that never loses one and never queues: a slow reader gets several
/// changes as one.
#[derive(Debug)]
pub struct DeltaStream {
    seen: Arc<MetadataImage>,
    images: watch::Receiver<Arc<MetadataImage>>,
}

impl DeltaStream {
    /// The difference between what was returned last and the newest image; waits until there is
    /// one. `None` after shutdown. Cancel safe.
    pub async fn next(&mut self) -> Option<MetadataDelta> {
        loop {
            let newest = Arc::clone(&self.images.borrow_and_update());
            if newest.applied_index != self.seen.applied_index {
                let before = std::mem::replace(&mut self.seen, Arc::clone(&newest));
                return Some(MetadataDelta::between(before, newest));
            }
            self.images.changed().await.ok()?;
        }
    }
}

/// Completes when `flag` is true or its sender is gone. Cancel safe.
async fn stopped(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|stopped| *stopped).await;
}

#[cfg(test)]
mod tests;
