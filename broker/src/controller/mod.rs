//! The controller service: evaluates operations one after the other and commits them in batches.
//!
//! openraft writes one entry per proposal and waits for each flush. So one proposer takes
//! everything that is queued while a write is in flight and makes one decision of it: each operation
//! is evaluated on an image that already contains what the ones before it decided, and each caller
//! gets its own outcome when the decision is applied.

use std::sync::Arc;

use letterbox_env::Env;
use letterbox_protocol::ErrorCode;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::metadata::decide::{Answer, ConfigRules, Context, Decision, Kind, Operation, Outcome};
use crate::metadata::{MetadataImage, MetadataRecord};
use crate::quorum::{MetadataQuorum, QuorumError};

/// Operations that wait; more wait at the callers.
const QUEUE_LEN_MAX: usize = 1024;

/// Operations are decided together until they have this many records, whatever else is queued.
const RECORDS_TOGETHER_MAX: usize = 20_000;

/// Why an operation has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControllerError {
    /// The quorum did not take it.
    #[error(transparent)]
    Quorum(#[from] QuorumError),
    /// This node is shutting down; the operation was not begun.
    #[error("the controller is shutting down")]
    ShuttingDown,
}

impl ControllerError {
    /// What a client is told. All of these are retried by clients.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Quorum(QuorumError::OutcomeUnknown) => ErrorCode::RequestTimedOut,
            Self::Quorum(QuorumError::Waiting { .. }) => ErrorCode::KafkaStorageError,
            Self::Quorum(QuorumError::NotLeader { .. } | QuorumError::Stopped)
            | Self::ShuttingDown => ErrorCode::NotController,
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

/// A queued operation and who waits for it.
struct Job {
    operation: Operation,
    /// What was decided last; it counts once its records are committed.
    outcome: Option<Outcome>,
    reply: oneshot::Sender<Result<Answer, ControllerError>>,
}

impl Job {
    /// Hands the outcome, or the error, to the caller, who may have gone away.
    fn complete(self, result: Result<u64, ControllerError>) {
        let answer = result.and_then(|index| {
            let outcome = self.outcome.ok_or(ControllerError::ShuttingDown)?;
            Ok(Answer { index, outcome })
        });
        let _ = self.reply.send(answer);
    }
}

/// A handle to the controller of this node. Cheap to clone.
#[derive(Clone)]
pub struct Controller {
    queue: mpsc::Sender<Job>,
    stop: CancellationToken,
    task: Arc<Mutex<Option<tokio::task::JoinHandle<()>>>>,
}

impl Controller {
    /// Starts the proposer on `quorum`.
    #[must_use]
    pub fn start(env: Env, quorum: Arc<dyn MetadataQuorum>, rules: Arc<dyn ConfigRules>) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE_LEN_MAX);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let proposer = Proposer { env, quorum, rules, jobs, stopped, term: None };
        let task = Arc::new(Mutex::new(Some(tokio::spawn(proposer.run()))));
        Self { queue, stop, task }
    }

    /// Carries out an operation.
    ///
    /// Not cancel safe in effect: an operation that was queued may take effect although the future
    /// was dropped.
    ///
    /// # Errors
    /// [`ControllerError`] when there is no outcome.
    pub async fn run<O: Kind>(&self, operation: O) -> Result<Done<O::Outcome>, ControllerError> {
        let Answer { index, outcome } = self.submit(operation.into()).await?;
        // An operation is answered with an outcome of its own kind.
        let outcome = O::outcome(outcome).ok_or(ControllerError::ShuttingDown)?;
        Ok(Done { index, outcome })
    }

    /// Carries out an operation of any kind; as [`Self::run`].
    ///
    /// # Errors
    /// [`ControllerError`] when there is no outcome.
    pub async fn submit(&self, operation: Operation) -> Result<Answer, ControllerError> {
        let (reply, receive) = oneshot::channel();
        let job = Job { operation, outcome: None, reply };
        self.queue.send(job).await.map_err(|_| ControllerError::ShuttingDown)?;
        receive.await.map_err(|_| ControllerError::ShuttingDown)?
    }

    /// Begins no further operation, waits for the one under way, and refuses what is queued.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        if let Some(task) = self.task.lock().await.take()
            && let Err(error) = task.await
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

struct Proposer {
    env: Env,
    quorum: Arc<dyn MetadataQuorum>,
    rules: Arc<dyn ConfigRules>,
    jobs: mpsc::Receiver<Job>,
    stopped: CancellationToken,
    /// The term in which this node's image is known to be complete.
    term: Option<u64>,
}

impl Proposer {
    async fn run(mut self) {
        loop {
            let first = tokio::select! {
                biased;
                () = self.stopped.cancelled() => break,
                job = self.jobs.recv() => match job {
                    Some(job) => job,
                    None => break,
                },
            };
            let mut batch = vec![first];
            while batch.len() < QUEUE_LEN_MAX
                && let Ok(job) = self.jobs.try_recv()
            {
                batch.push(job);
            }
            self.commit(batch).await;
        }
        self.jobs.close();
        while let Some(job) = self.jobs.recv().await {
            job.complete(Err(ControllerError::ShuttingDown));
        }
    }

    /// Commits the operations in their order, as few decisions of bounded length.
    async fn commit(&mut self, batch: Vec<Job>) {
        let mut rest = batch.into_iter();
        loop {
            let term = match self.lead().await {
                Ok(term) => term,
                Err(error) => {
                    return rest.for_each(|job| job.complete(Err(error.clone().into())));
                }
            };
            let mut image = (*self.quorum.image()).clone();
            let mut decided = Vec::new();
            let mut jobs = Vec::new();
            while decided.len() < RECORDS_TOGETHER_MAX
                && let Some(mut job) = rest.next()
            {
                self.evaluate(&mut job, &mut image, &mut decided);
                jobs.push(job);
            }
            if jobs.is_empty() {
                return;
            }
            let result = self.propose(term, &decided).await;
            if result.is_err() {
                self.term = None;
            }
            jobs.into_iter().for_each(|job| job.complete(result.clone().map_err(Into::into)));
        }
    }

    async fn lead(&mut self) -> Result<u64, QuorumError> {
        match self.term {
            Some(term) if self.quorum.status().term == term => Ok(term),
            _ => {
                let term = self.quorum.begin_leading().await?;
                self.term = Some(term);
                Ok(term)
            }
        }
    }

    fn evaluate(
        &self,
        job: &mut Job,
        image: &mut MetadataImage,
        decided: &mut Vec<MetadataRecord>,
    ) {
        let context = Context { random: &*self.env.random, rules: &*self.rules };
        let Decision { records, outcome } = job.operation.decide(image, &context);
        // Each operation has applied its records to its own draft already, so this cannot fail.
        if let Err(error) = image.apply_in_place(&records) {
            panic!("an operation decided on records that do not fit its own image: {error}");
        }
        decided.extend(records);
        job.outcome = Some(outcome);
    }

    /// Commits `records`; the index that shows them.
    async fn propose(&self, term: u64, records: &[MetadataRecord]) -> Result<u64, QuorumError> {
        if records.is_empty() {
            // Nothing to write, but the outcomes must not come from a leader that was deposed.
            return Ok(self.quorum.linearizable_image().await?.applied_index);
        }
        Ok(self.quorum.propose(term, records).await?.index)
    }
}
