//! A partition that is assigned to this broker: its role, its log and its waiters.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytes::BytesMut;
use letterbox_env::Clock;
use letterbox_env::panics::lock;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{BrokerId, LeaderEpoch, Offset, TimestampMs, TopicId};
use letterbox_storage::{AppendError, AppendOptions, Effort, Log, LogConfig, Origin, Validated};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::leader::NotEnoughReplicas;
use super::role::{Commit, Effect, Event, MayNotAppend, OwnLog, Replica};
use super::waiters::{Ticket, Waiters};
use crate::metadata::PartitionState;

/// Stands for the epoch where this broker does not lead.
const NOT_LED: LeaderEpoch = -1;

/// What an append waits for before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    /// Nothing; there is no answer.
    None,
    /// The leader's log.
    Leader,
    /// Every in-sync replica, on stable storage unless the topic opts out.
    All,
}

/// What was appended.
#[derive(Clone, Copy, Debug)]
pub struct Appended {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// The offset that follows the last record: committed when the high watermark reaches it, as
    /// long as this broker leads in `leader_epoch` ([`Partition::commit`]).
    pub end_offset: Offset,
    /// The epoch it was appended in.
    pub leader_epoch: LeaderEpoch,
    /// Whether it is committed already.
    pub commit: Commit,
    /// The time all records got; −1 when they keep their own.
    pub log_append_time: TimestampMs,
    /// Log start offset after the append.
    pub log_start_offset: Offset,
    /// Records that were stored; 0 for a batch that was there already.
    pub records: u64,
    /// Bytes that were stored.
    pub bytes: u64,
}

/// What became of a batch that was to be appended within an effort.
#[derive(Debug)]
pub enum Within {
    /// It is in the log.
    Appended(Appended),
    /// Validating it takes longer; it is as it came.
    TooLong(BytesMut),
}

/// Why an append was refused; nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum AppendRefused {
    /// This broker does not lead the partition, or leads it in a newer epoch than a moment ago.
    #[error("this broker does not lead the partition; look up its leader again")]
    NotLeader,
    /// The log is not open.
    #[error("the partition is offline; see the broker's log")]
    Offline,
    /// `acks=all` with too small an in-sync set.
    #[error(transparent)]
    NotEnoughReplicas(#[from] NotEnoughReplicas),
    /// The log refused it.
    #[error(transparent)]
    Log(AppendError),
}

impl From<AppendError> for AppendRefused {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::StaleLeaderEpoch { .. } => Self::NotLeader,
            error => Self::Log(error),
        }
    }
}

impl From<MayNotAppend> for AppendRefused {
    fn from(why: MayNotAppend) -> Self {
        match why {
            MayNotAppend::NotLeader => Self::NotLeader,
            MayNotAppend::Offline => Self::Offline,
            MayNotAppend::NotEnoughReplicas(why) => Self::NotEnoughReplicas(why),
        }
    }
}

/// A place among the waiters, given up when it is dropped.
struct Place<'a> {
    waiters: &'a Waiters,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiters.forget(self.ticket);
    }
}

/// What clients have written to a partition and read from it, since this broker leads it.
#[derive(Debug, Default)]
pub struct Traffic {
    records_in: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// A [`Traffic`] at one moment.
#[derive(Clone, Copy, Debug)]
pub struct TrafficSoFar {
    /// Records appended.
    pub records_in: u64,
    /// Bytes of them.
    pub bytes_in: u64,
    /// Bytes of records sent.
    pub bytes_out: u64,
}

impl Traffic {
    /// Counts what was sent to a client.
    pub fn sent(&self, bytes: u64) {
        self.bytes_out.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts what a client has written.
    pub fn received(&self, appended: &Appended) {
        self.records_in.fetch_add(appended.records, Ordering::Relaxed);
        self.bytes_in.fetch_add(appended.bytes, Ordering::Relaxed);
    }

    /// The counts.
    #[must_use]
    pub fn so_far(&self) -> TrafficSoFar {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        TrafficSoFar {
            records_in: read(&self.records_in),
            bytes_in: read(&self.bytes_in),
            bytes_out: read(&self.bytes_out),
        }
    }
}

/// A partition that is assigned to this broker: one object from the assignment to the end of the
/// topic, whatever the role.
///
/// The lock of `role` is held for a few instructions and never over I/O. What an append needs of
/// it (the epoch, and whether it may begin) is looked up before, and the log compares that epoch
/// under its own lock with the one that was begun last ([`Log::begin_epoch`]): between the two the
/// role may change, and the append is refused then.
pub struct Partition {
    /// Who waits for its high watermark.
    pub waiters: Waiters,
    /// For the metrics.
    pub traffic: Traffic,
    topic_id: TopicId,
    index: i32,
    /// Its records, as soon as they are open.
    log: OnceLock<Arc<Log>>,
    role: Mutex<Replica>,
    /// What the times that `role` is told count from.
    began: Instant,
    /// The epoch in which this broker leads, or −1: what `role` says, for those who only read it.
    led_epoch: AtomicI32,
    clock: Arc<dyn Clock>,
}

impl Partition {
    pub(super) fn new(
        (topic_id, index): (TopicId, i32),
        me: BrokerId,
        assigned: PartitionState,
        (min_insync, lag_max_ms): (usize, u64),
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            waiters: Waiters::default(),
            traffic: Traffic::default(),
            topic_id,
            index,
            log: OnceLock::new(),
            role: Mutex::new(Replica::new(me, assigned, min_insync, lag_max_ms)),
            began: Instant::now(),
            led_epoch: NOT_LED.into(),
            clock,
        }
    }

    /// The topic's id and the partition's index.
    #[must_use]
    pub fn key(&self) -> (TopicId, i32) {
        (self.topic_id, self.index)
    }

    /// Its records.
    ///
    /// # Errors
    /// `KAFKA_STORAGE_ERROR` when they are not open. They are where this broker leads.
    pub fn log(&self) -> Result<&Arc<Log>, ErrorCode> {
        self.log.get().ok_or(ErrorCode::KafkaStorageError)
    }

    /// Whether its topic was deleted.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self.log.get() {
            Some(log) => log.is_gone(),
            None => self.role().log() == OwnLog::Gone,
        }
    }

    /// Whether its log is out of use; not while it is being made.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        match self.log.get() {
            Some(log) => log.is_offline(),
            None => self.role().log() == OwnLog::Failed,
        }
    }

    /// Whether its log is still to be opened or made.
    pub(super) fn is_opening(&self) -> bool {
        self.role().log() == OwnLog::Opening
    }

    /// Whether this broker leads it.
    ///
    /// # Errors
    /// `NOT_LEADER_OR_FOLLOWER`; `KAFKA_STORAGE_ERROR` when its log is out of use;
    /// `UNKNOWN_TOPIC_OR_PARTITION` while it is being made.
    pub fn check_led(&self) -> Result<(), ErrorCode> {
        if self.leader_epoch() != NOT_LED {
            return Ok(());
        }
        Err(match self.role().log() {
            OwnLog::Open { .. } => ErrorCode::NotLeaderOrFollower,
            OwnLog::Failed => ErrorCode::KafkaStorageError,
            OwnLog::Opening | OwnLog::Gone => ErrorCode::UnknownTopicOrPartition,
        })
    }

    /// The newest word of the metadata.
    pub(super) fn assign(&self, state: &PartitionState) {
        self.step(Event::Assigned(state.clone()));
    }

    /// Its log is open.
    pub(super) fn opened(&self, log: Arc<Log>) {
        // What an earlier run had stored and recovery found whole is on the disk: recovery synced
        // it.
        let (end, high_watermark) = (log.durable_end(), log.high_watermark());
        let _ = self.log.set(log);
        self.step(Event::Opened { end, high_watermark });
    }

    /// Its log cannot be opened now.
    pub(super) fn open_failed(&self) {
        self.step(Event::OpenFailed);
    }

    /// Its topic was deleted.
    pub(super) fn set_gone(&self) {
        self.step(Event::Gone);
    }

    /// Its topic's configuration changed.
    pub(super) fn reconfigure(&self, config: LogConfig, min_insync: usize) {
        let is_durable = config.durable;
        if let Some(log) = self.log.get() {
            log.set_config(config);
            // A topic that stops waiting for the disk has already appended what it waited for.
            if !is_durable {
                self.counts_up_to(log.end_offset());
            }
        }
        self.step(Event::MinInsync(min_insync));
    }

    fn step(&self, event: Event) {
        let (log_end, elapsed) = (self.end_offset(), self.began.elapsed());
        let mut role = self.role();
        let now_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let effects = role.step(event, log_end, now_ms);
        // Under the lock, so that two changes take effect in their order; and readers are told an
        // epoch only when the log has begun it.
        for effect in &effects {
            match (effect, self.log.get()) {
                (Effect::BeginEpoch(epoch), Some(log)) => log.begin_epoch(*epoch),
                (Effect::HighWatermark(offset), Some(log)) => log.set_high_watermark(*offset),
                (Effect::Discard, Some(log)) => log.set_gone(),
                _ => {}
            }
        }
        self.led_epoch.store(role.led_epoch().unwrap_or(NOT_LED), Ordering::Release);
        drop(role);
        for effect in effects {
            match effect {
                Effect::HighWatermark(offset) => self.waiters.moved_to(offset),
                Effect::WakeAll => self.waiters.wake_all(),
                Effect::BeginEpoch(_) | Effect::Discard => {}
            }
        }
    }

    /// Appends one batch of a client.
    ///
    /// # Errors
    /// [`AppendRefused`]; nothing was stored.
    pub fn append(&self, batch: BytesMut, acks: Acks) -> Result<Appended, AppendRefused> {
        self.append_from(batch, acks, Origin::Client)
    }

    /// Appends one batch of `origin`.
    ///
    /// # Errors
    /// [`AppendRefused`]; nothing was stored.
    pub fn append_from(
        &self,
        batch: BytesMut,
        acks: Acks,
        origin: Origin,
    ) -> Result<Appended, AppendRefused> {
        self.append_with(batch, acks, origin, &mut Effort::unbounded()).and_then(|appended| {
            match appended {
                Within::Appended(appended) => Ok(appended),
                Within::TooLong(_) => Err(AppendError::InvalidRecord {
                    message: "not validated".into(),
                    records: Vec::new(),
                }
                .into()),
            }
        })
    }

    /// As [`Partition::append`], as long as validating the batch takes no more than `effort`.
    ///
    /// # Errors
    /// [`AppendRefused`]; nothing was stored.
    pub fn append_within(
        &self,
        batch: BytesMut,
        acks: Acks,
        effort: &mut Effort,
    ) -> Result<Within, AppendRefused> {
        self.append_with(batch, acks, Origin::Client, effort)
    }

    fn append_with(
        &self,
        batch: BytesMut,
        acks: Acks,
        origin: Origin,
        effort: &mut Effort,
    ) -> Result<Within, AppendRefused> {
        let Some(log) = self.log.get() else { return Err(AppendRefused::Offline) };
        let bytes = batch.len() as u64;
        let now_ms = self.clock.wall_ms();
        let batch = match log.validate(batch, origin, now_ms, effort)? {
            Validated::Valid(batch) => batch,
            Validated::TooLong(batch) => return Ok(Within::TooLong(batch)),
        };
        // Asked after the validation, which may take long.
        let leader_epoch = self.role().may_append(acks == Acks::All)?;
        let info = log.append_valid(batch, &AppendOptions { leader_epoch, now_ms, origin })?;
        let end_offset = info.last_offset.saturating_add(1);
        let commit = if !log.config().durable {
            self.count(log.end_offset(), |role| role.commit(leader_epoch, end_offset))
        } else if self.high_watermark() < end_offset {
            Commit::Waiting
        } else {
            // It was there already.
            self.commit(leader_epoch, end_offset)
        };
        let stored = !info.duplicate;
        Ok(Within::Appended(Appended {
            base_offset: info.base_offset,
            end_offset,
            leader_epoch,
            commit,
            log_append_time: info.log_append_time,
            log_start_offset: info.log_start_offset,
            records: if stored {
                u64::try_from(end_offset - info.base_offset).unwrap_or(0)
            } else {
                0
            },
            bytes: if stored { bytes } else { 0 },
        }))
    }

    /// The own log counts up to `end`: durable, or appended where the topic opts out.
    pub(super) fn counts_up_to(&self, end: Offset) {
        self.count(end, |_| ());
    }

    /// As [`Partition::counts_up_to`], and looks at what that makes of it.
    fn count<T>(&self, end: Offset, look: impl FnOnce(&Replica) -> T) -> T {
        let (moved, seen) = {
            let mut role = self.role();
            let moved = role.counts_up_to(end);
            // Under the lock, so that two moves are stored in their order.
            if let (Some(high_watermark), Some(log)) = (moved, self.log.get()) {
                log.set_high_watermark(high_watermark);
            }
            (moved, look(&role))
        };
        if let Some(high_watermark) = moved {
            self.waiters.moved_to(high_watermark);
        }
        seen
    }

    /// Log end offset, exclusive.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        self.log.get().map_or(0, |log| log.end_offset())
    }

    /// Exclusive end of what clients may see.
    #[must_use]
    pub fn high_watermark(&self) -> Offset {
        self.log.get().map_or(0, |log| log.high_watermark())
    }

    /// What became of the records before `end` that were appended, or were there, when this broker
    /// led in `epoch`.
    #[must_use]
    pub fn commit(&self, epoch: LeaderEpoch, end: Offset) -> Commit {
        match self.role().commit(epoch, end) {
            Commit::Waiting if self.log.get().is_some_and(|log| log.is_offline()) => {
                Commit::Offline
            }
            commit => commit,
        }
    }

    /// As [`Partition::commit`], once it is known; [`Commit::Waiting`] only at the `deadline`.
    /// Cancel safe.
    pub async fn committed(
        &self,
        epoch: LeaderEpoch,
        end: Offset,
        deadline: Option<Instant>,
    ) -> Commit {
        let notify = Arc::new(Notify::new());
        loop {
            // Registered before the look, so that no move is missed in between.
            let place =
                Place { waiters: &self.waiters, ticket: self.waiters.register(end, &notify) };
            let commit = self.commit(epoch, end);
            if commit != Commit::Waiting {
                return commit;
            }
            match deadline {
                None => notify.notified().await,
                Some(at) if tokio::time::timeout_at(at, notify.notified()).await.is_ok() => {}
                Some(_) => return self.commit(epoch, end),
            }
            drop(place);
        }
    }

    /// Waits until readers may see everything that was appended before this call, where that
    /// depends on this broker alone; at most until `deadline`.
    ///
    /// With `acks=1` an append is answered before it is durable, and readers never see what is not
    /// durable. Without this wait "produce, then read to the end" would miss records that were
    /// acknowledged. Where other replicas decide, there is no wait, as in Kafka.
    ///
    /// # Errors
    /// `OFFSET_NOT_AVAILABLE` at the deadline; else as [`Commit::reached`].
    pub async fn settle(&self, deadline: Instant) -> Result<(), ErrorCode> {
        let end = self.log()?.end_offset();
        let epoch = {
            let role = self.role();
            match role.leader() {
                Some(leader) if leader.high_watermark() < end && leader.decides_alone() => {
                    leader.epoch()
                }
                _ => return Ok(()),
            }
        };
        self.committed(epoch, end, Some(deadline)).await.reached()
    }

    /// The epoch this broker leads in; −1 when it does not.
    #[must_use]
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.led_epoch.load(Ordering::Acquire)
    }

    /// Compares the epoch a client believes in; −1 believes in none (KIP-320).
    ///
    /// # Errors
    /// `FENCED_LEADER_EPOCH` when the client's is older, `UNKNOWN_LEADER_EPOCH` when it is newer.
    pub fn check_epoch(&self, current: LeaderEpoch) -> Result<(), ErrorCode> {
        let own = self.leader_epoch();
        match current {
            -1 => Ok(()),
            older if older < own => Err(ErrorCode::FencedLeaderEpoch),
            newer if newer > own => Err(ErrorCode::UnknownLeaderEpoch),
            _ => Ok(()),
        }
    }

    /// Whether fewer replicas are in sync than an append with `acks=all` asks for.
    #[must_use]
    pub fn is_under_min_isr(&self) -> bool {
        matches!(self.role().may_append(true), Err(MayNotAppend::NotEnoughReplicas(_)))
    }

    /// Where `epoch` ends: the largest known epoch up to it and the offset that follows its last
    /// record; (−1, −1) for an epoch that has not begun. One older than every record ends where the
    /// log starts.
    ///
    /// Source: KIP-101, KIP-279; Apache Kafka's LeaderEpochFileCache for what they leave open.
    #[must_use]
    pub fn end_of_epoch(&self, epoch: LeaderEpoch) -> (LeaderEpoch, Offset) {
        let own = self.leader_epoch();
        let Some(log) = self.log.get() else { return (-1, -1) };
        if epoch < 0 || epoch > own {
            (-1, -1)
        } else if epoch == own {
            // It may have no record yet.
            (own, log.end_offset())
        } else {
            log.end_offset_for_epoch(epoch).unwrap_or((epoch, log.start_offset()))
        }
    }

    /// The leader epoch of the record at `offset`, or of the last record before it; without any
    /// record that of the leader, as with Kafka, whose epoch begins with the leader and not with
    /// its first record.
    #[must_use]
    pub fn epoch_at(&self, offset: Offset) -> LeaderEpoch {
        self.log
            .get()
            .and_then(|log| log.epoch_for_offset(offset).or_else(|| log.latest_epoch()))
            .unwrap_or_else(|| self.leader_epoch())
    }

    fn role(&self) -> MutexGuard<'_, Replica> {
        lock(&self.role)
    }
}
