//! The controller: carries out operations on the metadata, wherever they are asked for.
//!
//! Every node has one. The node that leads the quorum decides (`proposer`); the others pass the
//! operation on to it (`forward`). An operation is carried out once or not at all: it is passed
//! on again only when it was surely not begun. It has a deadline, and is not begun after that, nor
//! after the node that was asked has given it up, however long it was on its way. The node that
//! leads also watches over the brokers (`heartbeats`).
//!
//! It begins and ends with the node's part in the quorum: others wait for a node that leads and
//! does not answer.

mod forward;
mod heartbeats;
mod leads;
mod proposer;
mod unclean;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use letterbox_env::Env;
use letterbox_protocol::ErrorCode;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use self::forward::Door;
use self::heartbeats::{NEWS_LEN_MAX, News, Watch};
use self::proposer::{Job, Proposer, QUEUE_LEN_MAX};
use crate::metadata::ApiError;
use crate::metadata::decide::liveness::{Heartbeat, HeartbeatAnswer};
use crate::metadata::decide::{Answer, ConfigRules, Kind, Operation};
use crate::quorum::{
    ChangeError, FRAME_LEN_MAX, MetadataQuorum, QuorumError, QuorumStatus, VoterChange,
};

/// How long an operation takes at most whose client names no time: shorter than clients wait for an
/// answer, longer than it takes to elect a leader.
pub const DECIDE_WITHIN: Duration = Duration::from_secs(10);
/// How long one takes at most, whatever its client names.
pub const DECIDE_WITHIN_MAX: Duration = Duration::from_secs(60);
/// The most that an operation may be, as it is passed on: so that what one node takes, each does,
/// and its answer is of a bounded length too.
const OPERATION_LEN_MAX: usize = 8 << 20;
/// The same of a registration, which names each log of a broker and cannot be divided: some 500,000
/// topics. As it is passed on it fits a frame between two nodes.
const REGISTRATION_LEN_MAX: usize = FRAME_LEN_MAX / 4 * 3;
/// Between two looks at who leads.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Why an operation has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ControllerError {
    /// The quorum did not take it.
    #[error(transparent)]
    Quorum(#[from] QuorumError),
    /// The node that leads is shutting down; the operation was not begun.
    #[error("the controller is shutting down")]
    ShuttingDown,
    /// The active controller, or this node, is of another version and does not understand.
    #[error("{0}")]
    OtherVersion(String),
    /// The controller does not take what a broker says or asks for.
    #[error(transparent)]
    Refused(ApiError),
}

impl From<ChangeError> for ControllerError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Quorum(error) => Self::Quorum(error),
            ChangeError::Refused(error) => Self::Refused(error),
        }
    }
}

impl ControllerError {
    /// Whether the operation was surely not begun, and another leader may take it.
    #[must_use]
    pub fn is_not_begun(&self) -> bool {
        match self {
            Self::Quorum(QuorumError::NotLeader { .. } | QuorumError::Stopped { .. })
            | Self::ShuttingDown => true,
            Self::Quorum(QuorumError::OutcomeUnknown | QuorumError::Waiting { .. })
            | Self::OtherVersion(_)
            | Self::Refused(_) => false,
        }
    }

    /// Whether somebody took the operation, and did not say what has become of it.
    fn is_unknown(&self) -> bool {
        matches!(self, Self::Quorum(QuorumError::OutcomeUnknown))
    }

    /// What a client is told. All but [`Self::OtherVersion`] and [`Self::Refused`] are retried by
    /// clients.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Quorum(QuorumError::OutcomeUnknown) => ErrorCode::RequestTimedOut,
            Self::Quorum(QuorumError::Waiting { .. }) => ErrorCode::KafkaStorageError,
            Self::Quorum(QuorumError::NotLeader { .. } | QuorumError::Stopped { .. })
            | Self::ShuttingDown => ErrorCode::NotController,
            Self::OtherVersion(_) => ErrorCode::UnsupportedVersion,
            Self::Refused(error) => error.code,
        }
    }
}

/// What an operation came to, typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done<T> {
    /// See [`Answer::index`].
    pub index: u64,
    /// What the operation came to.
    pub outcome: T,
}

/// A handle to the controller of this node. Cheap to clone.
#[derive(Clone)]
pub struct Controller {
    quorum: Arc<dyn MetadataQuorum>,
    queue: mpsc::Sender<Job>,
    news: mpsc::Sender<News>,
    stop: CancellationToken,
    unclean: Arc<AtomicU64>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl Controller {
    /// Starts the controller of the node that takes part in `quorum`. A broker that is not heard
    /// from for `session` is fenced.
    #[must_use]
    pub fn start(
        env: Env,
        quorum: Arc<dyn MetadataQuorum>,
        rules: Arc<dyn ConfigRules>,
        session: Duration,
    ) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE_LEN_MAX);
        let (news, heard) = mpsc::channel(NEWS_LEN_MAX);
        let stop = CancellationToken::new();
        quorum.answer_with(Arc::new(Door {
            quorum: Arc::downgrade(&quorum),
            queue: queue.clone(),
            news: news.clone(),
        }));
        let lags = Arc::default();
        let watch = Watch {
            quorum: Arc::clone(&quorum),
            session,
            balance_every: rules.balances_leaders_every(),
            news: heard,
            tell: news.downgrade(),
            queue: queue.clone(),
            stopped: stop.clone(),
            told: None,
            lags: Arc::clone(&lags),
        };
        let unclean = Arc::<AtomicU64>::default();
        let proposer = Proposer {
            node: quorum.status().node_id,
            env,
            quorum: Arc::clone(&quorum),
            rules,
            jobs,
            stopped: stop.clone(),
            unclean: Arc::clone(&unclean),
            lags,
            term: None,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(proposer.run());
        tasks.spawn(watch.run());
        Self { quorum, queue, news, stop, unclean, tasks: Arc::new(Mutex::new(tasks)) }
    }

    /// Leaders that this node has elected as the active controller, since it started, without
    /// knowing that they have every committed record.
    #[must_use]
    pub fn unclean_elections(&self) -> u64 {
        self.unclean.load(Ordering::Relaxed)
    }

    /// Tells the active controller that a broker lives. Never told twice.
    ///
    /// # Errors
    /// [`ControllerError`]; `Refused` when it is not the broker that is registered.
    pub async fn heartbeat(
        &self,
        heartbeat: Heartbeat,
    ) -> Result<HeartbeatAnswer, ControllerError> {
        let status = self.quorum.status();
        match status.leader {
            Some(leader) if leader == status.node_id => hear(&self.news, heartbeat).await,
            Some(leader) => forward::heartbeat(&*self.quorum, leader, heartbeat).await,
            None => Err(QuorumError::NotLeader { leader: None }.into()),
        }
    }

    /// How the quorum is, as its leader knows.
    ///
    /// # Errors
    /// [`ControllerError`] when there is no leader that can be reached. A question begins nothing, so
    /// a leader that does not answer is none.
    pub async fn quorum_status(&self) -> Result<QuorumStatus, ControllerError> {
        let status = self.quorum.status();
        match status.leader {
            Some(leader) if leader != status.node_id => {
                let told = forward::status(&*self.quorum, leader).await;
                told.map_err(|error| match error.is_unknown() {
                    true => QuorumError::NotLeader { leader: None }.into(),
                    false => error,
                })
            }
            _ => leading(status),
        }
    }

    /// As [`Self::quorum_status`], asking the next leader while there is none that answers, for
    /// `within`.
    ///
    /// # Errors
    /// As of [`Self::quorum_status`].
    pub async fn quorum_status_within(
        &self,
        within: Duration,
    ) -> Result<QuorumStatus, ControllerError> {
        let deadline = Instant::now() + within.min(DECIDE_WITHIN_MAX);
        loop {
            let told = self.quorum_status().await;
            if self.is_final(&told, deadline) {
                return told;
            }
            self.pause().await?;
        }
    }

    /// Has the node that leads change who votes, within `within` or a minute, and returns when that
    /// is committed.
    ///
    /// # Errors
    /// As of [`Self::run_within`]; `Refused` when the change is not possible.
    pub async fn change_voters(
        &self,
        change: &VoterChange,
        within: Duration,
    ) -> Result<(), ControllerError> {
        let deadline = Instant::now() + within.min(DECIDE_WITHIN_MAX);
        let mut may_be_done = false;
        loop {
            let status = self.quorum.status();
            let result = match status.leader {
                Some(leader) if leader == status.node_id => {
                    let changed = self.quorum.change_voters(change, deadline).await;
                    changed.map_err(Into::into)
                }
                Some(leader) => forward::voters(&*self.quorum, leader, change, deadline).await,
                None => Err(QuorumError::NotLeader { leader: None }.into()),
            };
            // Asked for twice it is made once, so the next leader is asked: one that is to be
            // removed hands over first.
            let is_unknown = matches!(&result, Err(error) if error.is_unknown());
            if !(is_unknown && Instant::now() < deadline) && self.is_final(&result, deadline) {
                let voters = self.quorum.status().voters;
                let is_so = matches!(&result, Err(error) if change.is_made(error.code(), &voters));
                return if may_be_done && is_so { Ok(()) } else { result };
            }
            may_be_done |= is_unknown;
            self.pause().await?;
        }
    }

    /// Carries out an operation, here or at the node that leads, within ten seconds; see
    /// [`Self::run_within`].
    ///
    /// # Errors
    /// [`ControllerError`] when there is no outcome.
    pub async fn run<O: Kind>(&self, operation: O) -> Result<Done<O::Outcome>, ControllerError> {
        self.run_within(operation, DECIDE_WITHIN).await
    }

    /// Carries out an operation, here or at the node that leads, and returns after at most `within`,
    /// or a minute.
    ///
    /// Not cancel safe in effect: an operation that was begun may take effect although the future
    /// was dropped.
    ///
    /// # Errors
    /// [`ControllerError`] when there is no outcome: `NotLeader` when nobody took the operation in
    /// time, `OutcomeUnknown` when somebody did who has not answered in time, or leads no more.
    pub async fn run_within<O: Kind>(
        &self,
        operation: O,
        within: Duration,
    ) -> Result<Done<O::Outcome>, ControllerError> {
        let deadline = Instant::now() + within.min(DECIDE_WITHIN_MAX);
        let Answer { index, outcome } = self.submit(operation.into(), deadline).await?;
        let other_kind = || {
            ControllerError::OtherVersion(
                "the active controller answered another operation than it was asked for".to_owned(),
            )
        };
        Ok(Done { index, outcome: O::outcome(outcome).ok_or_else(other_kind)? })
    }

    async fn submit(
        &self,
        operation: Operation,
        deadline: Instant,
    ) -> Result<Answer, ControllerError> {
        let encoded = operation.encode().map_err(forward::unreadable)?;
        check_len(&operation, encoded.len())?;
        loop {
            let status = self.quorum.status();
            let result = match status.leader {
                Some(leader) if leader == status.node_id => {
                    match decide_here(&self.queue, operation.clone(), deadline).await {
                        // Nobody else is asked by a node that has ended.
                        Err(error @ ControllerError::Quorum(QuorumError::Stopped { .. })) => {
                            return Err(error);
                        }
                        result => result,
                    }
                }
                Some(leader) => forward::operation(&*self.quorum, leader, &encoded, deadline).await,
                None => Err(QuorumError::NotLeader { leader: None }.into()),
            };
            if self.is_final(&result, deadline) {
                return result;
            }
            self.pause().await?;
        }
    }

    /// Whether nobody else is asked any more.
    fn is_final<T>(&self, result: &Result<T, ControllerError>, deadline: Instant) -> bool {
        let is_open = matches!(result, Err(error) if error.is_not_begun());
        !is_open || self.stop.is_cancelled() || Instant::now() >= deadline
    }

    async fn pause(&self) -> Result<(), ControllerError> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(ControllerError::ShuttingDown),
            () = tokio::time::sleep(LOOK_EVERY) => Ok(()),
        }
    }

    /// Begins no further operation, waits for the one under way, and refuses what is queued.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let mut tasks = self.tasks.lock().await;
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }
}

/// `status`, when it is the leader's.
fn leading(status: QuorumStatus) -> Result<QuorumStatus, ControllerError> {
    match status.leader == Some(status.node_id) {
        true => Ok(status),
        false => Err(QuorumError::NotLeader { leader: status.leader }.into()),
    }
}

fn check_len(operation: &Operation, len: usize) -> Result<(), ControllerError> {
    let (len_max, what_to_do) = match operation {
        Operation::RegisterBroker(_) => {
            (REGISTRATION_LEN_MAX, "move partitions of this broker to others")
        }
        _ => (OPERATION_LEN_MAX, "divide the request"),
    };
    if len <= len_max {
        return Ok(());
    }
    let message = format!(
        "Unable to perform excessively large batch operation: it is {} MiB, and at most {} MiB are \
         changed at once; {what_to_do}.",
        len >> 20,
        len_max >> 20
    );
    Err(ControllerError::Refused(ApiError::new(ErrorCode::PolicyViolation, message)))
}

/// Hands a heartbeat to this node's watch.
async fn hear(
    news: &mpsc::Sender<News>,
    heartbeat: Heartbeat,
) -> Result<HeartbeatAnswer, ControllerError> {
    let (reply, receive) = oneshot::channel();
    let heartbeat = News::Heartbeat(heartbeat, reply);
    news.send(heartbeat).await.map_err(|_| ControllerError::ShuttingDown)?;
    receive.await.map_err(|_| ControllerError::ShuttingDown)?
}

/// Hands an operation to this node's proposer, and waits for its outcome until `deadline`.
async fn decide_here(
    queue: &mpsc::Sender<Job>,
    operation: Operation,
    deadline: Instant,
) -> Result<Answer, ControllerError> {
    let (reply, receive) = oneshot::channel();
    match timeout_at(deadline, queue.send(Job::new(operation, reply))).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return Err(ControllerError::ShuttingDown),
        Err(_) => return Err(QuorumError::NotLeader { leader: None }.into()),
    }
    match timeout_at(deadline, receive).await {
        Ok(Ok(result)) => result,
        // It may have been begun.
        Ok(Err(_)) | Err(_) => Err(QuorumError::OutcomeUnknown.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use letterbox_protocol::model::{BrokerId, TopicId};

    use super::*;
    use crate::metadata::decide::{
        DeleteTopics, FoundLogs, OpenLogs, RegisterBroker, TopicSelector,
    };
    use crate::metadata::features::Release;

    /// It was refused at every start.
    #[test]
    fn a_broker_with_very_many_logs_registers() {
        let id = |n: u32| TopicId::from_u128(u128::MAX - u128::from(n));
        let offline: BTreeMap<_, _> = (0..400_000).map(|n| (id(n), [0].into())).collect();
        let whole = offline.clone();
        let open = [(id(0), OpenLogs { whole, ..OpenLogs::default() })].into();
        registers(FoundLogs { open, ..FoundLogs::default() });
        registers(FoundLogs { offline, ..FoundLogs::default() });
        let topics = vec![TopicSelector::Name("t".to_owned())];
        let other = Operation::from(DeleteTopics { topics });
        assert!(check_len(&other, OPERATION_LEN_MAX + 1).is_err());
    }

    fn registers(found: FoundLogs) {
        let registration = RegisterBroker {
            id: BrokerId(1),
            directories: Default::default(),
            absent: Default::default(),
            endpoints: Vec::new(),
            rack: None,
            clean_start: true,
            flushes_on_ack: true,
            found: Some(found),
            min_insync_replicas: 1,
            session_ms: 0,
            replaces: None,
            release: Release::own(),
        };
        let registration = Operation::from(registration);
        let encoded = registration.encode().unwrap();
        assert!(encoded.len() > 2 * OPERATION_LEN_MAX, "{}", encoded.len());
        check_len(&registration, encoded.len()).unwrap();
        // A quote in it takes two bytes more on its way.
        let quotes = encoded.bytes().filter(|byte| *byte == b'"').count();
        let on_its_way = REGISTRATION_LEN_MAX / encoded.len() * quotes + REGISTRATION_LEN_MAX;
        assert!(on_its_way < FRAME_LEN_MAX / 10 * 9, "{on_its_way}");
        assert!(check_len(&registration, REGISTRATION_LEN_MAX + 1).is_err());
    }
}
