//! What every coordinator needs apart from what it coordinates: partitions of an internal topic
//! that are loaded and unloaded with leadership, a queue of writes per partition, answers that wait
//! for their records, and timers.
//!
//! A coordinator is a `Machine` without I/O, one per partition. It decides on its *latest* state,
//! which contains what is still on its way into the log (`timeline::Timeline`), so no decision is
//! taken against an earlier one. In return:
//!
//! - Records are appended in the order of the decisions.
//! - When records cannot be appended, that write and every later one has failed, and the machine
//!   takes all of them back (`Machine::failed`): they were decided on top of it. A write that is
//!   larger than the topic allows fails before anything is decided on top of it, so it fails alone.
//! - When appended records are not committed (leadership or the log was lost), nobody knows what
//!   the log will hold: the machine is thrown away and read back from the log as soon as that can
//!   be read and is committed to its end.
//!
//! Order: under a partition's lock a request changes the machine and queues its writes; one task
//! per partition appends the queue and gives each write back when it is committed or has failed. No
//! lock is held across an await. One task for all partitions sleeps until the earliest deadline.
//!
//! Bounds: while a queue holds `slot::QUEUE_BYTES_MAX`, requests that may write wait before they
//! are looked at, and hold their own frames, which the server bounds; timers that fire add to it.
//! At most `slot::WRITES_IN_FLIGHT_MAX` batches per partition wait for their commit.

mod slot;
pub(super) mod timeline;
pub(super) mod timers;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use letterbox_env::Env;
use letterbox_env::panics::lock;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::TimestampMs;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::replicated_log::{AppendError, KeyValue, ReplicatedLog};
use slot::Slot;

pub(super) use slot::Event;
pub(crate) use timeline::WriteId;

/// Names a request that waits for its answer; unique within a partition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ReplyId(pub u64);

/// The time of an event, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// Milliseconds of a monotonic clock, for timeouts.
    pub mono_ms: u64,
    /// Milliseconds since 1970, for what is written.
    pub wall_ms: TimestampMs,
}

/// What an event leads to.
#[derive(Debug)]
pub(crate) struct Output<Reply, Record, Completion> {
    /// Answers that may leave at once: they promise nothing that is not durable.
    pub replies: Vec<(ReplyId, Reply)>,
    /// Records to append, in this order.
    pub writes: Vec<Write<Record, Completion>>,
}

impl<Reply, Record, Completion> Default for Output<Reply, Record, Completion> {
    fn default() -> Self {
        Self { replies: Vec::new(), writes: Vec::new() }
    }
}

/// Records that stand or fall together, and what happens then.
#[derive(Debug)]
pub(crate) struct Write<Record, Completion> {
    /// To append in one batch. Empty for what only waits for everything before it.
    pub records: Vec<Record>,
    /// Given back to the machine when the records are committed or have failed.
    pub then: Completion,
}

/// The output of a machine's event.
pub(super) type OutputOf<M> =
    Output<<M as Machine>::Reply, <M as Machine>::Record, <M as Machine>::Completion>;

/// One partition of a coordinator: (state, event, now) → (state, [`Output`]).
pub(super) trait Machine: Send + Sized + 'static {
    type Record: Send;
    type Reply: Send;
    type Completion: Send;
    /// Why a record cannot be read or written.
    type CodecError: std::fmt::Display;

    /// The bytes of a record.
    fn encode(record: &Self::Record) -> Result<KeyValue, Self::CodecError>;

    /// Takes in a record of the log, in the log's order.
    fn replay(
        &mut self,
        key: &Bytes,
        value: Option<&Bytes>,
        now: Now,
    ) -> Result<(), Self::CodecError>;

    /// Everything was replayed: deadlines begin to count.
    fn on_loaded(&mut self, now: Now) -> OutputOf<Self>;

    /// The next time [`advance`](Self::advance) has something to do, in milliseconds of the
    /// monotonic clock.
    fn next_deadline_ms(&self) -> Option<u64>;

    /// Does what is due.
    fn advance(&mut self, now: Now) -> OutputOf<Self>;

    /// The records of a write, and of every earlier one, are committed.
    fn committed(&mut self, then: Self::Completion, now: Now) -> OutputOf<Self>;

    /// The records of the newest writes, oldest first, were not appended and will not be.
    fn failed(
        &mut self,
        newest: Vec<Self::Completion>,
        why: AppendError,
        now: Now,
    ) -> OutputOf<Self>;
}

/// The machines of the partitions that this broker leads. [`shutdown`](Self::shutdown) ends its
/// tasks.
pub(super) struct Runtime<M: Machine> {
    env: Env,
    log: Arc<dyn ReplicatedLog>,
    new_machine: Box<dyn Fn() -> M + Send + Sync>,
    started: Instant,
    slots: Mutex<BTreeMap<i32, Arc<Slot<M>>>>,
    /// When the timer task wakes up next, in milliseconds since `started`; `u64::MAX` while it
    /// looks.
    armed_ms: AtomicU64,
    rearm: Notify,
    is_shut_down: AtomicBool,
    /// Turns to read a partition.
    reading: Semaphore,
    timer_task: Mutex<Option<JoinHandle<()>>>,
}

impl<M: Machine> Runtime<M> {
    /// A runtime without partitions. Must be called within a tokio runtime.
    pub(super) fn start(
        env: Env,
        log: Arc<dyn ReplicatedLog>,
        new_machine: Box<dyn Fn() -> M + Send + Sync>,
    ) -> Arc<Self> {
        let runtime = Arc::new(Self {
            env,
            log,
            new_machine,
            started: Instant::now(),
            slots: Mutex::default(),
            armed_ms: AtomicU64::new(u64::MAX),
            rearm: Notify::new(),
            is_shut_down: AtomicBool::new(false),
            reading: Semaphore::new(slot::LOADS_AT_ONCE),
            timer_task: Mutex::default(),
        });
        *lock(&runtime.timer_task) = Some(tokio::spawn(drive_timers(runtime.clone())));
        runtime
    }

    /// This broker leads `partition`: from now on it is being loaded, and served as soon as it is
    /// read, some at a time. The future is ready after the first try; when that failed it goes on
    /// trying until [`unload`](Self::unload). The machine is told `first` before anybody asks it;
    /// what is written of one of these events may fail alone.
    /// Does nothing if the partition is loaded or being loaded. Must be called within a tokio
    /// runtime.
    pub(super) fn load(
        self: &Arc<Self>,
        partition: i32,
        first: Vec<Event<M>>,
    ) -> impl Future<Output = Result<(), AppendError>> + use<M> {
        let (first_try, tried) = oneshot::channel();
        let mut slots = lock(&self.slots);
        if !slots.contains_key(&partition) && !self.is_shut_down() {
            let slot = Arc::new(Slot::loading(partition, self.log.clone(), first));
            *lock(&slot.task) =
                Some(tokio::spawn(slot::run(self.clone(), slot.clone(), first_try)));
            slots.insert(partition, slot);
        }
        // Without an answer it is loaded already, or was unloaded before the first try ended.
        async { tried.await.unwrap_or(Ok(())) }
    }

    /// This broker no longer leads `partition`: whoever waits is answered NOT_COORDINATOR.
    pub(super) async fn unload(&self, partition: i32) {
        let slot = lock(&self.slots).remove(&partition);
        if let Some(slot) = slot {
            slot.close();
            let task = lock(&slot.task).take();
            if let Some(task) = task {
                // It ends by itself once the slot is closed; a panic there has been reported
                // already.
                let _ = task.await;
            }
        }
    }

    /// Ends everything. What was appended is in the log.
    pub(super) async fn shutdown(&self) {
        self.is_shut_down.store(true, Ordering::Release);
        let partitions: Vec<i32> = lock(&self.slots).keys().copied().collect();
        for partition in partitions {
            self.unload(partition).await;
        }
        self.rearm.notify_one();
        let timer_task = lock(&self.timer_task).take();
        if let Some(timer_task) = timer_task {
            let _ = timer_task.await;
        }
    }

    pub(super) fn is_shut_down(&self) -> bool {
        self.is_shut_down.load(Ordering::Acquire)
    }

    pub(super) fn env(&self) -> &Env {
        &self.env
    }

    fn now(&self) -> Now {
        let mono_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now { mono_ms, wall_ms: self.env.clock.wall_ms() }
    }

    fn slot(&self, partition: i32) -> Result<Arc<Slot<M>>, ErrorCode> {
        lock(&self.slots).get(&partition).cloned().ok_or(ErrorCode::NotCoordinator)
    }

    fn slots(&self) -> Vec<Arc<Slot<M>>> {
        lock(&self.slots).values().cloned().collect()
    }

    /// Whether a partition is being loaded.
    pub(super) fn is_loading(&self) -> bool {
        self.slots().iter().any(|slot| slot.is_loading())
    }

    /// Runs `read` on one partition's machine, at once.
    ///
    /// # Errors
    /// The partition is not served here (NOT_COORDINATOR) or not yet
    /// (COORDINATOR_LOAD_IN_PROGRESS).
    pub(super) fn with_machine<T>(
        &self,
        partition: i32,
        read: impl FnOnce(&mut M, Now) -> T,
    ) -> Result<T, ErrorCode> {
        let slot = self.slot(partition)?;
        let now = self.now();
        let result = slot.read(|machine| read(machine, now))?;
        self.rearm_if_earlier(slot.next_deadline_ms());
        Ok(result)
    }

    /// Runs `read` on the machine of each partition that is served.
    pub(super) fn each<T>(&self, mut read: impl FnMut(&mut M) -> T) -> Vec<T> {
        self.slots().iter().filter_map(|slot| slot.read(&mut read).ok()).collect()
    }

    /// Gives an event to one partition's machine, as soon as its queue has room. Cancel safe.
    pub(super) async fn ask(
        &self,
        partition: i32,
        event: impl FnOnce(&mut M, ReplyId, Now) -> OutputOf<M>,
    ) -> Asked<M::Reply> {
        let ask = async {
            let slot = self.slot(partition)?;
            slot.room().await;
            let (sender, receiver) = oneshot::channel();
            let now = self.now();
            slot.request(sender, now, |machine, reply| event(machine, reply, now))?;
            self.rearm_if_earlier(slot.next_deadline_ms());
            Ok(receiver)
        };
        Asked(ask.await)
    }

    /// Gives an event to every partition's machine; those that are being loaded get it afterwards.
    pub(super) fn tell_all(&self, event: &Event<M>) {
        for slot in self.slots() {
            slot.tell(self.now(), event);
            self.rearm_if_earlier(slot.next_deadline_ms());
        }
    }

    fn rearm_if_earlier(&self, deadline_ms: Option<u64>) {
        if deadline_ms
            .is_some_and(|deadline_ms| deadline_ms < self.armed_ms.load(Ordering::Acquire))
        {
            self.rearm.notify_one();
        }
    }
}

/// An event that an answer is awaited to.
#[must_use]
pub(super) struct Asked<Reply>(Result<oneshot::Receiver<Reply>, ErrorCode>);

impl<Reply> Asked<Reply> {
    pub(super) fn refused(error: ErrorCode) -> Self {
        Self(Err(error))
    }

    /// Waits for the answer. Cancel safe: an answer that nobody waits for is dropped.
    ///
    /// # Errors
    /// The partition is not served here, or ceased to be before there was an answer.
    pub(super) async fn answer(self) -> Result<Reply, ErrorCode> {
        // A machine that is thrown away drops its senders.
        self.0?.await.map_err(|_| ErrorCode::NotCoordinator)
    }
}

/// Sleeps until the earliest deadline of all machines, and does what is due.
async fn drive_timers<M: Machine>(runtime: Arc<Runtime<M>>) {
    while !runtime.is_shut_down() {
        // While it looks, every new deadline notifies: the permit then ends the sleep below at
        // once.
        runtime.armed_ms.store(u64::MAX, Ordering::Release);
        let earliest_ms = runtime.slots().iter().filter_map(|slot| slot.next_deadline_ms()).min();
        runtime.armed_ms.store(earliest_ms.unwrap_or(u64::MAX), Ordering::Release);
        match earliest_ms {
            None => runtime.rearm.notified().await,
            Some(earliest_ms) => {
                let at = runtime.started.checked_add(std::time::Duration::from_millis(earliest_ms));
                let sleep = async {
                    match at {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    () = runtime.rearm.notified() => {}
                    () = sleep => {}
                }
            }
        }
        let now = runtime.now();
        for slot in runtime.slots() {
            if slot.next_deadline_ms().is_some_and(|deadline_ms| deadline_ms <= now.mono_ms) {
                slot.event(now, |machine| machine.advance(now));
            }
        }
        // There may be more to do at once.
        tokio::task::yield_now().await;
    }
}
