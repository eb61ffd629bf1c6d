//! A partition this broker leads: its log, its leader state and its waiters.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::BytesMut;
use letterbox_env::Clock;
use letterbox_env::panics::lock;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{BrokerId, LeaderEpoch, Offset, TimestampMs};
use letterbox_storage::{AppendError, AppendOptions, Effort, Log, Origin, Validated};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::leader::{LeaderState, NotEnoughReplicas};
use super::waiters::Waiters;
use crate::metadata::PartitionState;

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
    /// The offset that follows the last record: committed when the high watermark reaches it.
    pub end_offset: Offset,
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
    /// `acks=all` with too small an in-sync set.
    #[error(transparent)]
    NotEnoughReplicas(#[from] NotEnoughReplicas),
    /// The log refused it.
    #[error(transparent)]
    Log(#[from] AppendError),
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

/// A partition led by this broker.
pub struct Partition {
    /// Its records.
    pub log: Arc<Log>,
    /// Who waits for its high watermark.
    pub waiters: Waiters,
    /// For the metrics.
    pub traffic: Traffic,
    state: Mutex<LeaderState>,
    clock: Arc<dyn Clock>,
}

impl Partition {
    pub(super) fn new(
        log: Arc<Log>,
        me: BrokerId,
        epoch: LeaderEpoch,
        replicas: &[BrokerId],
        isr: &[BrokerId],
        min_insync: usize,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let mut state =
            LeaderState::new(me, epoch, replicas, isr, min_insync, log.high_watermark());
        // What an earlier run had stored and recovery found whole is on the disk: recovery synced
        // it.
        let moved = state.own_end(log.durable_end());
        let this = Self {
            log,
            waiters: Waiters::default(),
            traffic: Traffic::default(),
            state: Mutex::new(state),
            clock,
        };
        if let Some(high_watermark) = moved {
            this.log.set_high_watermark(high_watermark);
        }
        this
    }

    /// Takes the partition over as the metadata now has it.
    pub(super) fn lead(&self, me: BrokerId, as_of: &PartitionState) {
        let end =
            if self.log.config().durable { self.log.durable_end() } else { self.log.end_offset() };
        {
            let mut state = self.state();
            *state = LeaderState::new(
                me,
                as_of.leader_epoch,
                &as_of.replicas,
                &as_of.isr,
                state.min_insync(),
                self.log.high_watermark(),
            );
        }
        self.counts_up_to(end);
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
        let bytes = batch.len() as u64;
        let now_ms = self.clock.wall_ms();
        let batch = match self.log.validate(batch, origin, now_ms, effort)? {
            Validated::Valid(batch) => batch,
            Validated::TooLong(batch) => return Ok(Within::TooLong(batch)),
        };
        // Asked after the validation, which may take long.
        let leader_epoch = {
            let state = self.state();
            if acks == Acks::All {
                state.may_append_to_all()?;
            }
            state.epoch()
        };
        let info = self.log.append_valid(batch, &AppendOptions { leader_epoch, now_ms, origin })?;
        if !self.log.config().durable {
            self.counts_up_to(self.log.end_offset());
        }
        let end_offset = info.last_offset.saturating_add(1);
        let stored = !info.duplicate;
        Ok(Within::Appended(Appended {
            base_offset: info.base_offset,
            end_offset,
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
        let moved = {
            let mut state = self.state();
            let moved = state.own_end(end);
            // Under the lock, so that two moves are stored in their order.
            if let Some(high_watermark) = moved {
                self.log.set_high_watermark(high_watermark);
            }
            moved
        };
        if let Some(high_watermark) = moved {
            self.waiters.moved_to(high_watermark);
        }
    }

    /// Exclusive end of what clients may see.
    #[must_use]
    pub fn high_watermark(&self) -> Offset {
        self.log.high_watermark()
    }

    /// Whether everything below `end_offset` is committed.
    #[must_use]
    pub fn is_committed(&self, end_offset: Offset) -> bool {
        self.high_watermark() >= end_offset
    }

    /// As [`Partition::is_committed`], but knows when waiting is in vain.
    ///
    /// # Errors
    /// `KAFKA_STORAGE_ERROR` when the log can no longer be written, `UNKNOWN_TOPIC_OR_PARTITION`
    /// when the topic was deleted.
    pub fn commit_state(&self, end_offset: Offset) -> Result<bool, ErrorCode> {
        if self.is_committed(end_offset) {
            return Ok(true);
        }
        if self.log.is_gone() {
            return Err(ErrorCode::UnknownTopicOrPartition);
        }
        if self.log.is_offline() { Err(ErrorCode::KafkaStorageError) } else { Ok(false) }
    }

    /// Waits until readers may see everything that was appended before this call, where that
    /// depends on this broker alone; at most until `deadline`.
    ///
    /// With `acks=1` an append is answered before it is durable, and readers never see what is not
    /// durable. Without this wait "produce, then read to the end" would miss records that were
    /// acknowledged. Where other replicas decide, there is no wait, as in Kafka.
    ///
    /// # Errors
    /// `OFFSET_NOT_AVAILABLE` at the deadline; `KAFKA_STORAGE_ERROR` when the log can no longer be
    /// written.
    pub async fn settle(&self, deadline: Instant) -> Result<(), ErrorCode> {
        let end = self.log.end_offset();
        if self.is_committed(end) || !self.state().decides_alone() {
            return Ok(());
        }
        let notify = Arc::new(Notify::new());
        loop {
            // Registered before the look, so that no move is missed in between.
            let ticket = self.waiters.register(end, &notify);
            let settled = match self.commit_state(end) {
                Ok(false) => tokio::time::timeout_at(deadline, notify.notified())
                    .await
                    .map_err(|_| ErrorCode::OffsetNotAvailable),
                Ok(true) => Ok(()),
                Err(error) => Err(error),
            };
            self.waiters.forget(ticket);
            if settled.is_err() || self.is_committed(end) {
                return settled;
            }
        }
    }

    /// The epoch this broker leads in.
    #[must_use]
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.state().epoch()
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
        self.state().may_append_to_all().is_err()
    }

    /// Where `epoch` ends: the largest known epoch up to it and the offset that follows its last
    /// record; (−1, −1) for an epoch that has not begun. One older than every record ends where the
    /// log starts.
    ///
    /// Source: KIP-101, KIP-279; Apache Kafka's LeaderEpochFileCache for what they leave open.
    #[must_use]
    pub fn end_of_epoch(&self, epoch: LeaderEpoch) -> (LeaderEpoch, Offset) {
        let own = self.leader_epoch();
        if epoch < 0 || epoch > own {
            (-1, -1)
        } else if epoch == own {
            // It may have no record yet.
            (own, self.log.end_offset())
        } else {
            self.log.end_offset_for_epoch(epoch).unwrap_or((epoch, self.log.start_offset()))
        }
    }

    /// The leader epoch of the record at `offset`, or of the last record before it; without any
    /// record that of the leader, as with Kafka, whose epoch begins with the leader and not with
    /// its first record.
    #[must_use]
    pub fn epoch_at(&self, offset: Offset) -> LeaderEpoch {
        self.log
            .epoch_for_offset(offset)
            .or_else(|| self.log.latest_epoch())
            .unwrap_or_else(|| self.leader_epoch())
    }

    pub(super) fn set_min_insync(&self, min_insync: usize) {
        self.state().set_min_insync(min_insync);
    }

    fn state(&self) -> MutexGuard<'_, LeaderState> {
        lock(&self.state)
    }
}
