//! One partition that this broker leads: its shard, who waits, and the queue of what is to be written.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use kafka_protocol::ResponseError;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::{Inner, lock, to_response};
use crate::coordinator::group::{Completion, Output, Reply, ReplyId, Write};
use crate::coordinator::replicated_log::{AppendError, KeyValue};
use crate::coordinator::shard::Shard;

/// Batches of one partition that wait for their commit.
pub(super) const WRITES_IN_FLIGHT_MAX: usize = 8;
/// Writes are coalesced up to this size, half of the default `max.message.bytes`.
const BATCH_BYTES_MAX: usize = 512 * 1024;

pub(super) struct Slot {
    partition: i32,
    state: Mutex<SlotState>,
    /// A copy of the shard's next deadline, `u64::MAX` for none, so that looking takes no lock.
    next_deadline_ms: AtomicU64,
    /// There is something to write, or the slot was closed.
    wake: Notify,
    pub(super) writer: Mutex<Option<JoinHandle<()>>>,
}

pub(super) enum SlotState {
    /// With the topics that were deleted meanwhile.
    Loading(Vec<Arc<str>>),
    Active(Box<Active>),
    Closed,
}

pub(super) struct Active {
    pub(super) shard: Shard,
    waiting: BTreeMap<ReplyId, oneshot::Sender<Reply>>,
    next_reply: u64,
    queue: VecDeque<Write>,
}

impl Active {
    pub(super) fn register(&mut self, sender: oneshot::Sender<Reply>) -> ReplyId {
        let id = ReplyId(self.next_reply);
        self.next_reply = self.next_reply.wrapping_add(1);
        self.waiting.insert(id, sender);
        id
    }

    /// Sends the answers and queues the writes of an event.
    pub(super) fn settle(&mut self, out: Output) {
        for (id, reply) in out.replies {
            if let Some(sender) = self.waiting.remove(&id) {
                // A client that has gone away does not want its answer.
                let _ = sender.send(reply);
            }
        }
        self.queue.extend(out.writes);
    }
}

impl Slot {
    pub(super) fn loading(partition: i32) -> Self {
        Self {
            partition,
            state: Mutex::new(SlotState::Loading(Vec::new())),
            next_deadline_ms: AtomicU64::new(u64::MAX),
            wake: Notify::new(),
            writer: Mutex::default(),
        }
    }

    /// Begins to serve. `false`: the slot was closed meanwhile.
    pub(super) fn activate(&self, shard: Shard, out: Output) -> bool {
        let mut state = lock(&self.state);
        let SlotState::Loading(deleted_topics) = &*state else { return false };
        let mut active = Active { shard, waiting: BTreeMap::new(), next_reply: 0, queue: VecDeque::new() };
        active.settle(out);
        active.settle(active.shard.forget_topics(deleted_topics));
        self.copy_deadline(&active);
        *state = SlotState::Active(Box::new(active));
        self.wake.notify_one();
        true
    }

    /// Ends it: senders are dropped, so whoever waits learns NOT_COORDINATOR.
    pub(super) fn close(&self) {
        *lock(&self.state) = SlotState::Closed;
        self.next_deadline_ms.store(u64::MAX, Ordering::Release);
        self.wake.notify_one();
    }

    pub(super) fn with_active<T>(&self, act: impl FnOnce(&mut Active) -> T) -> Result<T, ResponseError> {
        let mut state = lock(&self.state);
        match &mut *state {
            SlotState::Active(active) => {
                let result = act(active);
                self.copy_deadline(active);
                Ok(result)
            }
            other => Err(other.refusal()),
        }
    }

    pub(super) fn is_loading(&self) -> bool {
        matches!(*lock(&self.state), SlotState::Loading(_))
    }

    pub(super) fn forget_topics(&self, topics: &[Arc<str>]) {
        match &mut *lock(&self.state) {
            SlotState::Loading(deleted_topics) => deleted_topics.extend_from_slice(topics),
            SlotState::Active(active) => active.settle(active.shard.forget_topics(topics)),
            SlotState::Closed => {}
        }
        self.wake.notify_one();
    }

    pub(super) fn next_deadline_ms(&self) -> Option<u64> {
        Some(self.next_deadline_ms.load(Ordering::Acquire)).filter(|&deadline_ms| deadline_ms != u64::MAX)
    }

    pub(super) fn wake_writer(&self) {
        self.wake.notify_one();
    }

    fn copy_deadline(&self, active: &Active) {
        self.next_deadline_ms.store(active.shard.next_deadline_ms().unwrap_or(u64::MAX), Ordering::Release);
    }
}

/// The completions of one appended batch and how they ended.
type Ended = (Vec<Completion>, Result<(), ResponseError>);

/// Appends what is queued, in order, until the slot is closed.
pub(super) async fn write_queue(inner: Arc<Inner>, slot: Arc<Slot>) {
    let mut in_flight: FuturesOrdered<BoxFuture<'static, Ended>> = FuturesOrdered::new();
    loop {
        while in_flight.len() < WRITES_IN_FLIGHT_MAX {
            match slot.with_active(|active| take_batch(&mut active.queue)) {
                Err(_) => return,
                Ok(batch) if batch.is_empty() => break,
                Ok(batch) => append(&inner, slot.partition, batch, &mut in_flight).await,
            }
        }
        tokio::select! {
            biased;
            Some((completions, result)) = in_flight.next() => {
                let now = inner.now();
                let ended = slot.with_active(|active| {
                    for then in completions {
                        let out = active.shard.written(then, result, now);
                        active.settle(out);
                    }
                });
                if ended.is_err() {
                    return;
                }
                inner.rearm_if_earlier(slot.next_deadline_ms());
            }
            () = slot.wake.notified() => {
                if slot.with_active(|_| ()).is_err() {
                    return;
                }
            }
        }
    }
}

/// Takes writes off the queue, with their bytes, up to the size of a batch. A write whose records cannot be encoded gets no
/// bytes and fails.
fn take_batch(queue: &mut VecDeque<Write>) -> Vec<(Option<Vec<KeyValue>>, Completion)> {
    let (mut batch, mut bytes) = (Vec::new(), 0_usize);
    while bytes < BATCH_BYTES_MAX
        && let Some(write) = queue.pop_front()
    {
        let encoded: Result<Vec<KeyValue>, _> = write.records.iter().map(|record| record.encode()).collect();
        match encoded {
            Ok(records) => {
                let size = |(key, value): &KeyValue| key.len().saturating_add(value.as_ref().map_or(0, |value| value.len()));
                bytes = bytes.saturating_add(records.iter().map(size).sum());
                batch.push((Some(records), write.then));
            }
            Err(error) => {
                tracing::error!(%error, "a record of a group cannot be written");
                batch.push((None, write.then));
            }
        }
    }
    batch
}

/// Appends a batch as one, or write by write if it is too large for the topic, and leaves what follows in `in_flight`.
async fn append(
    inner: &Inner,
    partition: i32,
    batch: Vec<(Option<Vec<KeyValue>>, Completion)>,
    in_flight: &mut FuturesOrdered<BoxFuture<'static, Ended>>,
) {
    let is_single = batch.len() <= 1;
    let records: Vec<KeyValue> = batch.iter().filter_map(|(records, _)| records.as_ref()).flatten().cloned().collect();
    let has_unencodable = batch.iter().any(|(records, _)| records.is_none());
    if !has_unencodable {
        match append_records(inner, partition, records).await {
            Err(AppendError::TooLarge) if !is_single => {}
            appended => {
                let completions = batch.into_iter().map(|(_, then)| then).collect();
                return in_flight.push_back(wait_committed(inner, partition, completions, appended));
            }
        }
    }
    for (records, then) in batch {
        let appended = match records {
            Some(records) => append_records(inner, partition, records).await,
            None => Err(AppendError::TooLarge),
        };
        in_flight.push_back(wait_committed(inner, partition, vec![then], appended));
    }
}

/// The end offset to wait for; `None` when there was nothing to append.
async fn append_records(inner: &Inner, partition: i32, records: Vec<KeyValue>) -> Result<Option<i64>, AppendError> {
    if records.is_empty() {
        return Ok(None);
    }
    inner.log.append(partition, records, inner.env.clock.wall_ms()).await.map(Some)
}

fn wait_committed(
    inner: &Inner,
    partition: i32,
    completions: Vec<Completion>,
    appended: Result<Option<i64>, AppendError>,
) -> BoxFuture<'static, Ended> {
    let committed = match appended {
        Ok(Some(end_offset)) => Ok(Some(inner.log.committed(partition, end_offset))),
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    Box::pin(async move {
        let result = match committed {
            Ok(Some(committed)) => committed.await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(partition, %error, "records of groups were not committed");
        }
        (completions, result.map_err(to_response))
    })
}
