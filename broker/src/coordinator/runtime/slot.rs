//! One partition that this broker leads: its machine, who waits, and the queue of what is to be
//! written.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use letterbox_env::Failing;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::batch::{BatchBuilder, HEADER_BYTES};
use letterbox_protocol::model::LeaderEpoch;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Machine, Now, OutputOf, ReplyId, Runtime, lock};
use crate::coordinator::replicated_log::{AppendError, KeyValue, ReplicatedLog};

/// Batches of one partition that wait for their commit.
pub(super) const WRITES_IN_FLIGHT_MAX: usize = 8;
/// Writes are coalesced up to this size, half of the default `max.message.bytes`.
const BATCH_BYTES_MAX: usize = 512 * 1024;
/// While so much waits to be written, requests wait: the queue outlives the requests that filled it
/// when their clients have gone, or others have taken their place.
const QUEUE_BYTES_MAX: usize = 1024 * 1024;
/// What a queued write takes besides its records.
const QUEUED_OVERHEAD: usize = 256;
/// The most bytes that a record has besides its key and value: four lengths, the offset delta, and
/// three single bytes.
const RECORD_OVERHEAD_MAX: usize = 28;
/// Partitions that are read at once.
pub(super) const LOADS_AT_ONCE: usize = 4;
/// How long after a failed try a partition is read again.
const LOAD_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// An event for every partition's machine.
pub(in crate::coordinator) type Event<M> = Arc<dyn Fn(&mut M, Now) -> OutputOf<M> + Send + Sync>;

pub(super) struct Slot<M: Machine> {
    partition: i32,
    log: Arc<dyn ReplicatedLog>,
    state: Mutex<State<M>>,
    /// A copy of the machine's next deadline, `u64::MAX` for none, so that looking takes no lock.
    next_deadline_ms: AtomicU64,
    /// There is something to write.
    wake: Notify,
    /// There is room in the queue again, or no queue.
    room: Notify,
    closed: CancellationToken,
    pub(super) task: Mutex<Option<JoinHandle<()>>>,
}

enum State<M: Machine> {
    Loading {
        /// What it was told meanwhile.
        told: Vec<Event<M>>,
        /// The last try to read it failed: as a partition without a leader, it answers
        /// NOT_COORDINATOR until it is read.
        is_out: bool,
    },
    Active(Box<Active<M>>),
    Closed,
}

struct Active<M: Machine> {
    machine: M,
    /// The epoch in which the machine was read. In a later one another broker may have decided
    /// otherwise meanwhile: the machine is asked nothing any more, and what it has decided is not
    /// appended, until it is unloaded.
    leader_epoch: LeaderEpoch,
    waiting: BTreeMap<ReplyId, oneshot::Sender<M::Reply>>,
    next_reply: u64,
    queue: VecDeque<Queued<M::Completion>>,
    queued_bytes: usize,
}

/// A write whose records are encoded.
struct Queued<Completion> {
    records: Vec<KeyValue>,
    /// An upper bound of what the records take in a batch.
    bytes: usize,
    then: Completion,
}

impl<Completion> Queued<Completion> {
    fn held_bytes(&self) -> usize {
        self.bytes.saturating_add(QUEUED_OVERHEAD)
    }
}

impl<M: Machine> Active<M> {
    /// Sends the answers and queues the writes of an event.
    fn settle(&mut self, out: OutputOf<M>, bytes_max: usize, now: Now) {
        let mut next = Some(out);
        while let Some(out) = next.take() {
            for (id, reply) in out.replies {
                if let Some(sender) = self.waiting.remove(&id) {
                    // A client that has gone away does not want its answer.
                    let _ = sender.send(reply);
                }
            }
            let mut writes = out.writes.into_iter();
            while let Some(write) = writes.next() {
                match encode::<M>(&write.records, bytes_max) {
                    Ok((records, bytes)) => {
                        let write = Queued { records, bytes, then: write.then };
                        self.queued_bytes = self.queued_bytes.saturating_add(write.held_bytes());
                        self.queue.push_back(write);
                    }
                    // Nothing was decided after the writes of this event, so they are the newest.
                    Err(why) => {
                        let newest = std::iter::once(write.then)
                            .chain(writes.by_ref().map(|later| later.then))
                            .collect();
                        next = Some(self.machine.failed(newest, why, now));
                    }
                }
            }
        }
    }
}

impl<M: Machine> Slot<M> {
    /// `told` is the first that it is told once it is loaded.
    pub(super) fn loading(
        partition: i32,
        log: Arc<dyn ReplicatedLog>,
        told: Vec<Event<M>>,
    ) -> Self {
        Self {
            partition,
            log,
            state: Mutex::new(State::Loading { told, is_out: false }),
            next_deadline_ms: AtomicU64::new(u64::MAX),
            wake: Notify::new(),
            room: Notify::new(),
            closed: CancellationToken::new(),
            task: Mutex::default(),
        }
    }

    /// Begins to serve; does nothing if the slot was closed meanwhile.
    fn activate(&self, mut machine: M, leader_epoch: LeaderEpoch, now: Now) {
        let mut state = lock(&self.state);
        let State::Loading { told, .. } = &mut *state else { return };
        let told = std::mem::take(told);
        let out = machine.on_loaded(now);
        let mut active = Active {
            machine,
            leader_epoch,
            waiting: BTreeMap::new(),
            next_reply: 0,
            queue: VecDeque::new(),
            queued_bytes: 0,
        };
        let bytes_max = self.log.batch_bytes_max(self.partition);
        active.settle(out, bytes_max, now);
        for event in told {
            let out = event(&mut active.machine, now);
            active.settle(out, bytes_max, now);
        }
        self.copy_deadline(&active);
        *state = State::Active(Box::new(active));
        self.wake.notify_one();
    }

    /// Throws the machine away, to be read back: whoever waits learns NOT_COORDINATOR, because its
    /// sender is dropped.
    fn begin_again(&self) {
        let mut state = lock(&self.state);
        if matches!(*state, State::Active(_)) {
            *state = State::Loading { told: Vec::new(), is_out: false };
            self.next_deadline_ms.store(u64::MAX, Ordering::Release);
            self.room.notify_waiters();
        }
    }

    fn set_out(&self, out: bool) {
        if let State::Loading { is_out, .. } = &mut *lock(&self.state) {
            *is_out = out;
        }
    }

    /// Ends it: senders are dropped, so whoever waits learns NOT_COORDINATOR.
    pub(super) fn close(&self) {
        *lock(&self.state) = State::Closed;
        self.next_deadline_ms.store(u64::MAX, Ordering::Release);
        self.room.notify_waiters();
        self.closed.cancel();
    }

    fn with_active<T>(&self, act: impl FnOnce(&mut Active<M>) -> T) -> Result<T, ErrorCode> {
        match &mut *lock(&self.state) {
            State::Active(active) => {
                let result = act(active);
                self.copy_deadline(active);
                Ok(result)
            }
            State::Loading { is_out: false, .. } => Err(ErrorCode::CoordinatorLoadInProgress),
            State::Loading { is_out: true, .. } | State::Closed => Err(ErrorCode::NotCoordinator),
        }
    }

    /// As [`Self::with_active`], for clients: not when this broker has led in another epoch since
    /// the machine was read.
    fn with_led<T>(&self, act: impl FnOnce(&mut Active<M>) -> T) -> Result<T, ErrorCode> {
        self.with_active(|active| match self.log.is_led_in(self.partition, active.leader_epoch) {
            true => Ok(act(active)),
            false => Err(ErrorCode::NotCoordinator),
        })?
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&mut M) -> T) -> Result<T, ErrorCode> {
        self.with_led(|active| read(&mut active.machine))
    }

    /// An event that nobody waits for; dropped when the slot is not active.
    pub(super) fn event(&self, now: Now, event: impl FnOnce(&mut M) -> OutputOf<M>) {
        let bytes_max = self.log.batch_bytes_max(self.partition);
        let _ = self.with_active(|active| {
            let out = event(&mut active.machine);
            active.settle(out, bytes_max, now);
        });
        self.wake.notify_one();
    }

    /// As [`event`](Self::event), but kept for later while the slot is being loaded.
    pub(super) fn tell(&self, now: Now, event: &Event<M>) {
        if let State::Loading { told, .. } = &mut *lock(&self.state) {
            told.push(event.clone());
            return;
        }
        self.event(now, |machine| event(machine, now));
    }

    /// Waits until the queue has room for what a request may write, or is no more.
    pub(super) async fn room(&self) {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            match &*lock(&self.state) {
                State::Active(active) if active.queued_bytes >= QUEUE_BYTES_MAX => {}
                _ => return,
            }
            room.await;
        }
    }

    pub(super) fn request(
        &self,
        sender: oneshot::Sender<M::Reply>,
        now: Now,
        event: impl FnOnce(&mut M, ReplyId) -> OutputOf<M>,
    ) -> Result<(), ErrorCode> {
        let bytes_max = self.log.batch_bytes_max(self.partition);
        self.with_led(|active| {
            let reply = ReplyId(active.next_reply);
            active.next_reply = active.next_reply.wrapping_add(1);
            active.waiting.insert(reply, sender);
            let out = event(&mut active.machine, reply);
            active.settle(out, bytes_max, now);
        })?;
        self.wake.notify_one();
        Ok(())
    }

    pub(super) fn is_loading(&self) -> bool {
        matches!(*lock(&self.state), State::Loading { is_out: false, .. })
    }

    pub(super) fn next_deadline_ms(&self) -> Option<u64> {
        Some(self.next_deadline_ms.load(Ordering::Acquire))
            .filter(|&deadline_ms| deadline_ms != u64::MAX)
    }

    fn copy_deadline(&self, active: &Active<M>) {
        self.next_deadline_ms
            .store(active.machine.next_deadline_ms().unwrap_or(u64::MAX), Ordering::Release);
    }

    /// The next writes of the queue, as many as fit into one batch, and in which epoch they were
    /// decided; none when there is nothing to write.
    fn take_batch(&self) -> (LeaderEpoch, Vec<Queued<M::Completion>>) {
        let bytes_max = self.log.batch_bytes_max(self.partition).min(BATCH_BYTES_MAX);
        let take = |active: &mut Active<M>| {
            let (mut batch, mut bytes) = (Vec::new(), HEADER_BYTES);
            while let Some(write) = active.queue.pop_front_if(|write| {
                bytes.saturating_add(write.bytes) <= bytes_max || bytes == HEADER_BYTES
            }) {
                bytes = bytes.saturating_add(write.bytes);
                active.queued_bytes = active.queued_bytes.saturating_sub(write.held_bytes());
                batch.push(write);
            }
            (active.leader_epoch, batch)
        };
        let batch = self.with_active(take).unwrap_or_default();
        self.room.notify_waiters();
        batch
    }

    fn ended(&self, completions: Vec<M::Completion>, now: Now) {
        let bytes_max = self.log.batch_bytes_max(self.partition);
        // A slot that was closed meanwhile has nobody to tell.
        let _ = self.with_active(|active| {
            for then in completions {
                let out = active.machine.committed(then, now);
                active.settle(out, bytes_max, now);
            }
        });
    }

    /// A batch could not be appended: it and all that is queued behind it has failed.
    fn failed(&self, batch: Vec<M::Completion>, why: AppendError, now: Now) {
        let bytes_max = self.log.batch_bytes_max(self.partition);
        let _ = self.with_active(|active| {
            active.queued_bytes = 0;
            let newest =
                batch.into_iter().chain(active.queue.drain(..).map(|write| write.then)).collect();
            let out = active.machine.failed(newest, why, now);
            active.settle(out, bytes_max, now);
        });
    }
}

/// The bytes of records and an upper bound of what they take in a batch.
fn encode<M: Machine>(
    records: &[M::Record],
    bytes_max: usize,
) -> Result<(Vec<KeyValue>, usize), AppendError> {
    let encoded: Result<Vec<KeyValue>, _> = records.iter().map(M::encode).collect();
    let encoded = encoded.map_err(|error| {
        tracing::error!(%error, "cannot encode a record of the coordinator");
        AppendError::TooLarge
    })?;
    let size = |(key, value): &KeyValue| {
        key.len()
            .saturating_add(value.as_ref().map_or(0, |value| value.len()))
            .saturating_add(RECORD_OVERHEAD_MAX)
    };
    let bytes = encoded.iter().map(size).fold(0_usize, usize::saturating_add);
    if bytes.saturating_add(HEADER_BYTES) > bytes_max && exact_size(&encoded) > bytes_max {
        return Err(AppendError::TooLarge);
    }
    Ok((encoded, bytes))
}

fn exact_size(records: &[KeyValue]) -> usize {
    let mut batch = BatchBuilder::new(0);
    for (key, value) in records {
        batch.push(0, Some(key), value.as_deref(), &[]);
    }
    batch.size()
}

/// Loads the slot and serves it until it is closed.
pub(super) async fn run<M: Machine>(
    runtime: Arc<Runtime<M>>,
    slot: Arc<Slot<M>>,
    first_try: oneshot::Sender<Result<(), AppendError>>,
) {
    let closed = slot.closed.clone();
    tokio::select! {
        biased;
        () = closed.cancelled() => {}
        () = serve(runtime, slot, first_try) => {}
    }
}

async fn serve<M: Machine>(
    runtime: Arc<Runtime<M>>,
    slot: Arc<Slot<M>>,
    first_try: oneshot::Sender<Result<(), AppendError>>,
) {
    let (mut first_try, mut was_out) = (Some(first_try), false);
    loop {
        let loaded = load(&runtime, &slot).await;
        if let Some(first_try) = first_try.take() {
            // Whoever asked for it may have gone.
            let _ = first_try.send(loaded);
        }
        if loaded.is_err() {
            slot.set_out(true);
            was_out = true;
            tokio::time::sleep(LOAD_AGAIN_AFTER).await;
            continue;
        }
        if std::mem::take(&mut was_out) {
            tracing::info!(
                partition = slot.partition,
                "reloaded the coordinator's partition; serving it again"
            );
        }
        let why = write_queue(&runtime, &slot).await;
        if why == AppendError::NotLeader {
            tracing::info!(
                partition = slot.partition,
                "this broker no longer coordinates the groups of this partition; their clients are \
                 told to find the new coordinator"
            );
        } else {
            tracing::error!(
                partition = slot.partition,
                error = %why,
                "appended records of the coordinator were not committed; the partition is loaded \
                 again, and its clients are told to retry"
            );
        }
        slot.begin_again();
    }
}

/// Reads the partition to its end and begins to serve it when all of that is committed.
async fn load<M: Machine>(runtime: &Runtime<M>, slot: &Slot<M>) -> Result<(), AppendError> {
    let partition = slot.partition;
    let mut machine = (runtime.new_machine)();
    let (mut record_count, mut unreadable_count) = (0_u64, 0_u64);
    let now = runtime.now();
    let mut each = |key, value: Option<bytes::Bytes>| {
        record_count += 1;
        if let Err(error) = machine.replay(&key, value.as_ref(), now) {
            unreadable_count += 1;
            tracing::error!(partition, %error, "skipped a record of the coordinator's topic that \
                cannot be decoded");
        }
    };
    // Only for the read: the replicas of one partition, which its commit waits for, hold up no
    // other.
    let turn = runtime.reading.acquire().await;
    let end = runtime.log.read_all(partition, &mut each).await?;
    drop(turn);
    slot.set_out(false);
    runtime.log.committed(partition, end).await?;
    tracing::debug!(
        partition,
        record_count,
        unreadable_count,
        "the coordinator's partition is loaded"
    );
    slot.activate(machine, end.leader_epoch, runtime.now());
    runtime.rearm_if_earlier(slot.next_deadline_ms());
    Ok(())
}

/// The completions of an appended batch, and whether it was committed.
type Ended<M> = (Vec<<M as Machine>::Completion>, Result<(), AppendError>);

/// Appends what is queued, in order, until an appended batch is not committed: returns why.
async fn write_queue<M: Machine>(runtime: &Runtime<M>, slot: &Slot<M>) -> AppendError {
    let mut in_flight: FuturesOrdered<BoxFuture<'static, Ended<M>>> = FuturesOrdered::new();
    let refused = Failing::default();
    loop {
        while in_flight.len() < WRITES_IN_FLIGHT_MAX {
            let (epoch, batch) = slot.take_batch();
            if batch.is_empty() {
                break;
            }
            let (records, completions): (Vec<_>, Vec<_>) =
                batch.into_iter().map(|write| (write.records, write.then)).unzip();
            let records = records.into_iter().flatten().collect();
            match append(runtime, slot.partition, epoch, records).await {
                Ok(committed) => {
                    if refused.succeeded() {
                        tracing::info!(
                            slot.partition,
                            "records of the coordinator are appended \
                            again"
                        );
                    }
                    in_flight.push_back(Box::pin(async move { (completions, committed.await) }))
                }
                Err(error) => {
                    if refused.failed(error) {
                        tracing::warn!(slot.partition, %error, "records of the coordinator were \
                            not appended");
                    }
                    slot.failed(completions, error, runtime.now());
                    runtime.rearm_if_earlier(slot.next_deadline_ms());
                }
            }
        }
        tokio::select! {
            biased;
            Some((completions, committed)) = in_flight.next() => {
                if let Err(error) = committed {
                    return error;
                }
                slot.ended(completions, runtime.now());
                runtime.rearm_if_earlier(slot.next_deadline_ms());
            }
            () = slot.wake.notified() => {}
        }
    }
}

/// Appends records; the result is ready when they are committed. Without records it is ready at
/// once.
async fn append<M: Machine>(
    runtime: &Runtime<M>,
    partition: i32,
    leader_epoch: LeaderEpoch,
    records: Vec<KeyValue>,
) -> Result<BoxFuture<'static, Result<(), AppendError>>, AppendError> {
    if records.is_empty() {
        return Ok(Box::pin(std::future::ready(Ok(()))));
    }
    let now = runtime.env.clock.wall_ms();
    let end = runtime.log.append(partition, leader_epoch, records, now).await?;
    Ok(runtime.log.committed(partition, end))
}
