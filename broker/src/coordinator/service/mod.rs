//! The async side of the coordinator: it owns one shard per partition of `__consumer_offsets` that this broker leads, appends
//! what a shard says, and answers when that is committed.
//!
//! Order: under a shard's lock a request changes the shard and queues its writes; one task per loaded partition appends the
//! queue in that order and gives each write back to the shard when it is committed or has failed, again in order. No lock
//! is held across an await. One task for the whole service sleeps until the earliest deadline of all shards.
//!
//! Bounds: a queue holds at most one write per request in flight, which the server bounds, and per group whose timer fired;
//! at most `WRITES_IN_FLIGHT_MAX` batches per partition wait for their commit.

mod api;
mod slot;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kafka_protocol::ResponseError;
use letterbox_env::Env;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::group::{Now, Output, Reply, ReplyId};
use super::records::Record;
use super::shard::Shard;
use super::{AppendError, GroupConfig, ReplicatedLog, partition_for};
use slot::{Slot, SlotState};

/// What the coordinator asks of the cluster's metadata.
pub struct GroupMetadataView {
    /// Whether a topic exists; offsets of others are refused with UNKNOWN_TOPIC_OR_PARTITION.
    pub topic_exists: Box<dyn Fn(&str) -> bool + Send + Sync>,
    /// The number of partitions of `__consumer_offsets`; `None` while it does not exist.
    pub partition_count: Box<dyn Fn() -> Option<i32> + Send + Sync>,
}

/// The group coordinator of this broker. Cheap to clone; [`shutdown`](Self::shutdown) ends its tasks.
#[derive(Clone)]
pub struct GroupCoordinator {
    inner: Arc<Inner>,
}

struct Inner {
    env: Env,
    config: GroupConfig,
    log: Arc<dyn ReplicatedLog>,
    metadata: GroupMetadataView,
    started: Instant,
    slots: Mutex<BTreeMap<i32, Arc<Slot>>>,
    /// When the timer task wakes up next, in milliseconds since `started`; `u64::MAX` while it looks.
    armed_ms: AtomicU64,
    rearm: Notify,
    is_shut_down: AtomicBool,
    timer_task: Mutex<Option<JoinHandle<()>>>,
}

impl GroupCoordinator {
    /// A coordinator without partitions. Must be called within a tokio runtime.
    #[must_use]
    pub fn new(env: Env, config: GroupConfig, log: Arc<dyn ReplicatedLog>, metadata: GroupMetadataView) -> Self {
        let inner = Arc::new(Inner {
            env,
            config,
            log,
            metadata,
            started: Instant::now(),
            slots: Mutex::default(),
            armed_ms: AtomicU64::new(u64::MAX),
            rearm: Notify::new(),
            is_shut_down: AtomicBool::new(false),
            timer_task: Mutex::default(),
        });
        *lock(&inner.timer_task) = Some(tokio::spawn(drive_timers(inner.clone())));
        Self { inner }
    }

    /// The partition of `__consumer_offsets` that owns `group_id`, for FindCoordinator; `None` while the topic does not exist.
    #[must_use]
    pub fn partition_of(&self, group_id: &str) -> Option<i32> {
        (self.inner.metadata.partition_count)().map(|count| partition_for(group_id, count))
    }

    /// This broker has become leader of `partition`: reads its groups and begins to serve them. Until it returns they
    /// answer COORDINATOR_LOAD_IN_PROGRESS. Does nothing if the partition is loaded or being loaded.
    ///
    /// Not cancel safe: dropped half-way, the partition stays in loading until [`unload`](Self::unload).
    ///
    /// # Errors
    /// The log could not be read; the partition is not served then, and may be loaded again.
    pub async fn load(&self, partition: i32) -> Result<(), AppendError> {
        let slot = {
            let mut slots = lock(&self.inner.slots);
            if slots.contains_key(&partition) || self.inner.is_shut_down.load(Ordering::Acquire) {
                return Ok(());
            }
            let slot = Arc::new(Slot::loading(partition));
            slots.insert(partition, slot.clone());
            slot
        };
        let mut shard = Shard::new(self.inner.config.clone());
        let (mut record_count, mut unreadable_count) = (0_u64, 0_u64);
        let now = self.inner.now();
        let read = self
            .inner
            .log
            .read_all(partition, &mut |key, value| match Record::decode(&key, value.as_ref()) {
                Ok(record) => {
                    record_count += 1;
                    shard.replay(record, now);
                }
                Err(error) => {
                    unreadable_count += 1;
                    tracing::error!(partition, %error, "a record of __consumer_offsets cannot be read and is passed over");
                }
            })
            .await;
        if let Err(error) = read {
            slot.close();
            let mut slots = lock(&self.inner.slots);
            if slots.get(&partition).is_some_and(|current| Arc::ptr_eq(current, &slot)) {
                slots.remove(&partition);
            }
            return Err(error);
        }
        tracing::info!(partition, groups = shard.groups().len(), record_count, unreadable_count, "groups are loaded");
        let out = shard.on_loaded(self.inner.now());
        if slot.activate(shard, out) {
            *lock(&slot.writer) = Some(tokio::spawn(slot::write_queue(self.inner.clone(), slot.clone())));
            self.inner.rearm_if_earlier(slot.next_deadline_ms());
        }
        Ok(())
    }

    /// This broker no longer leads `partition`: whoever waits is answered NOT_COORDINATOR.
    pub async fn unload(&self, partition: i32) {
        let slot = lock(&self.inner.slots).remove(&partition);
        if let Some(slot) = slot {
            slot.close();
            let writer = lock(&slot.writer).take();
            if let Some(writer) = writer {
                // It ends by itself once the slot is closed; a panic there has been reported already.
                let _ = writer.await;
            }
        }
    }

    /// Topics were deleted: no group keeps an offset of them (as Kafka; a commit that is under way at this moment may stay).
    pub fn topics_deleted(&self, topics: &[Arc<str>]) {
        for slot in self.inner.all_slots() {
            slot.forget_topics(topics);
        }
    }

    /// Ends everything; later requests are answered COORDINATOR_NOT_AVAILABLE. What was appended is in the log.
    pub async fn shutdown(&self) {
        self.inner.is_shut_down.store(true, Ordering::Release);
        let partitions: Vec<i32> = lock(&self.inner.slots).keys().copied().collect();
        for partition in partitions {
            self.unload(partition).await;
        }
        self.inner.rearm.notify_one();
        let timer_task = lock(&self.inner.timer_task).take();
        if let Some(timer_task) = timer_task {
            let _ = timer_task.await;
        }
    }
}

impl Inner {
    fn now(&self) -> Now {
        let mono_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now { mono_ms, wall_ms: self.env.clock.wall_ms() }
    }

    /// The slot that owns `group_id`, or why there is none.
    fn slot_of(&self, group_id: &str) -> Result<Arc<Slot>, ResponseError> {
        if self.is_shut_down.load(Ordering::Acquire) {
            return Err(ResponseError::CoordinatorNotAvailable);
        }
        let count = (self.metadata.partition_count)().ok_or(ResponseError::CoordinatorNotAvailable)?;
        lock(&self.slots).get(&partition_for(group_id, count)).cloned().ok_or(ResponseError::NotCoordinator)
    }

    fn all_slots(&self) -> Vec<Arc<Slot>> {
        lock(&self.slots).values().cloned().collect()
    }

    /// Runs `read` on the shard that owns `group_id`, at once.
    fn with_shard<T>(&self, group_id: &str, read: impl FnOnce(&mut Shard, Now) -> T) -> Result<T, ResponseError> {
        let slot = self.slot_of(group_id)?;
        let now = self.now();
        let result = slot.with_active(|active| read(&mut active.shard, now))?;
        self.rearm_if_earlier(slot.next_deadline_ms());
        Ok(result)
    }

    /// Gives an event to the shard that owns `group_id` and waits for the answer it leads to.
    ///
    /// # Errors
    /// This broker does not serve the group, or ceased to before there was an answer.
    async fn request(&self, group_id: &str, event: impl FnOnce(&mut Shard, ReplyId, Now) -> Output) -> Result<Reply, ResponseError> {
        let slot = self.slot_of(group_id)?;
        let now = self.now();
        let (sender, receiver) = oneshot::channel();
        slot.with_active(|active| {
            let reply = active.register(sender);
            let out = event(&mut active.shard, reply, now);
            active.settle(out);
        })?;
        slot.wake_writer();
        self.rearm_if_earlier(slot.next_deadline_ms());
        // A shard that is unloaded drops its senders.
        receiver.await.map_err(|_| ResponseError::NotCoordinator)
    }

    fn rearm_if_earlier(&self, deadline_ms: Option<u64>) {
        if deadline_ms.is_some_and(|deadline_ms| deadline_ms < self.armed_ms.load(Ordering::Acquire)) {
            self.rearm.notify_one();
        }
    }
}

/// Sleeps until the earliest deadline of all shards, and does what is due.
async fn drive_timers(inner: Arc<Inner>) {
    while !inner.is_shut_down.load(Ordering::Acquire) {
        // While it looks, every new deadline notifies: the permit then ends the sleep below at once.
        inner.armed_ms.store(u64::MAX, Ordering::Release);
        let earliest_ms = inner.all_slots().iter().filter_map(|slot| slot.next_deadline_ms()).min();
        inner.armed_ms.store(earliest_ms.unwrap_or(u64::MAX), Ordering::Release);
        match earliest_ms {
            None => inner.rearm.notified().await,
            Some(earliest_ms) => {
                let at = inner.started.checked_add(std::time::Duration::from_millis(earliest_ms));
                let sleep = async {
                    match at {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    () = inner.rearm.notified() => {}
                    () = sleep => {}
                }
            }
        }
        let now = inner.now();
        for slot in inner.all_slots() {
            if slot.next_deadline_ms().is_some_and(|deadline_ms| deadline_ms <= now.mono_ms) {
                // A slot that was closed meanwhile has nothing to do.
                let _ = slot.with_active(|active| {
                    let out = active.shard.advance(now);
                    active.settle(out);
                });
                slot.wake_writer();
            }
        }
    }
}

/// A set of lower-case filter strings, as ListGroups compares them.
fn lower_case(filters: &[kafka_protocol::protocol::StrBytes]) -> BTreeSet<String> {
    filters.iter().map(|filter| filter.trim().to_lowercase()).collect()
}

/// Locks, also after a panic of another holder: the data behind these locks is whole between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a client is told when its records were not committed.
fn to_response(error: AppendError) -> ResponseError {
    match error {
        AppendError::NotEnoughReplicas | AppendError::UnknownPartition => ResponseError::CoordinatorNotAvailable,
        AppendError::NotLeader | AppendError::Storage => ResponseError::NotCoordinator,
        AppendError::TooLarge => ResponseError::UnknownServerError,
    }
}

impl SlotState {
    /// What a request is told that comes while the slot does not serve.
    fn refusal(&self) -> ResponseError {
        match self {
            Self::Loading(_) => ResponseError::CoordinatorLoadInProgress,
            Self::Active(_) | Self::Closed => ResponseError::NotCoordinator,
        }
    }
}
