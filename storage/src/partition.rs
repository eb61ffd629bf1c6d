//! The log of one partition.
//!
//! `start <= high watermark <= end`, at every moment, and `durable end <= end`; offsets below `end`
//! are in the page cache, below `durable end` on the device. The append path touches the page cache
//! only; what waits for the device says "Blocks" and is called through `Env::blocking`.
//!
//! Locks, outermost first: `disk_work` (one sync, truncation or retention at a time), `cutting`,
//! `inner` (appends), then a segment's own. Readers take none but a segment's, and `inner` for a
//! moment where the log has no record up to its end. No cut and no sync waits for the device with
//! `inner` held.
//!
//! A cut is decided at one moment, in memory, before any file of the log is changed: the log then
//! ends where it is to end, and takes no appends until its files agree ([`Cutting`]). Whoever works
//! on its files next finishes a cut that has failed half-way; the syncer tries again and again. What
//! a kill leaves of it is a log that ends somewhere between, which was never counted on.
//!
//! A log that is *gone* (its topic was deleted) touches no file by name any more, because the name
//! may be another log's: `disk_work` is not given out, appends are refused, segments open nothing.
//! What was queued for it has no effect.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use letterbox_env::panics::lock;
use letterbox_env::{Failing, Fault, OpenMode, with_causes};

use super::checkpoint::{self, Epochs, LACKS_RECORDS, LOST_BEFORE, NOT_SYNCED};
use super::cleaner::Merging;
use super::config::LogConfig;
use super::dir::LogDir;
use super::error::{AppendError, IoContext, LogError, ReadError};
use super::lifecycle::make_aside;
use super::memory::Memory;
use super::partition_table::Kept;
use super::producers::{Ages, ProducerView, Producers};
use super::recover::{self, Recovered};
use super::retention::Renaming;
use super::segment::{RESERVE_BYTE, Segment};
use super::tail_cache::TailCache;
use super::types::{AppendInfo, AppendOptions, Origin};
use super::validate::{Effort, ValidBatch, Validated, validate};
use letterbox_protocol::batch::{self, Batch, BatchHeader};
use letterbox_protocol::model::{LeaderEpoch, Offset, TimestampMs, TopicId};
use letterbox_protocol::topics::is_internal_topic;
use tokio::time::Instant;

/// How often it is said that a log cannot be read.
const NOT_READ_EVERY: Duration = Duration::from_secs(60);
/// Syncs of fewer bytes than this are helped by a reserve: larger ones pay for the new blocks
/// anyway.
const SMALL_SYNC: u64 = 256 << 10;
const RESERVE_MIN: u64 = 64 << 10;
const RESERVE_MAX: u64 = 1 << 20;
/// The files of a segment.
const SUFFIXES: [&str; 4] = [".log", ".index", ".timeindex", ".txnindex"];
/// Fewer bytes past the recovery point than this are looked at by the next start rather than that
/// the stop waits for the indexes and the producers of each log.
const CLOSE_BYTES: u64 = 1 << 20;
/// So many segments, whose files it opens all.
const CLOSE_SEGMENTS: usize = 8;
/// Bytes after which the recovery point moves before its time.
const CHECKPOINT_BYTES: u64 = 64 << 20;

/// Nothing is lost before that offset.
pub(super) const NOTHING_LOST: Offset = -1;
/// As [`NOTHING_LOST`], but the file `lost-before` is still there.
const NO_LONGER_LOST: Offset = -2;

/// What a log may lack of what it has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing.
    None,
    /// Records at its end: it was opened after an end that was not in order when what counted was
    /// not on the device (`flush.on.ack=false`, perhaps only before it was made `true`).
    End,
    /// Records within it, or all: it was opened with a loss that a person has accepted, or made in
    /// this run in the place of one that is missing.
    Records,
    /// All there ever was, if anything: it was made in this run, and no log directory knew of it.
    New,
}

/// The log of one partition. See the module's description for what holds between its offsets.
pub struct Log {
    topic: Arc<str>,
    topic_id: TopicId,
    partition: i32,
    pub(super) dir: Arc<LogDir>,
    pub(super) path: PathBuf,
    config: ArcSwap<LogConfig>,
    /// `durable` of the configuration, which each append asks for.
    is_durable: AtomicBool,
    pub(super) segments: ArcSwap<Vec<Arc<Segment>>>,
    pub(super) start: AtomicI64,
    end: AtomicI64,
    durable: AtomicI64,
    high_watermark: AtomicI64,
    recovery_point: AtomicI64,
    /// The file `not-synced` is there, durably: without it no record counts that is not on the
    /// device, whatever the configuration. So the next start knows whether some may have.
    counts_unsynced: AtomicBool,
    /// The configuration is that of the topic, and whoever had to be told of the file was.
    is_configured: AtomicBool,
    loss: Mutex<Loss>,
    /// See [`Log::lacks_records`].
    lacks_records: AtomicBool,
    /// The file `lacks-records` is there, or may be again after a power cut.
    may_lack_records: AtomicBool,
    /// Where it began when it first led with a loss that was accepted, or [`NOTHING_LOST`] or
    /// [`NO_LONGER_LOST`].
    lost_before: AtomicI64,
    /// Times it was cut or emptied: who has looked for records meanwhile looks again. Changed under
    /// `inner`.
    cuts: AtomicU64,
    queued: AtomicBool,
    closed: AtomicBool,
    /// Set under `inner`, together with `closed`.
    gone: AtomicBool,
    /// Why this log alone is out of use.
    broken: OnceLock<Arc<str>>,
    /// The log says that offsets within it have no records.
    is_gap_said: AtomicBool,
    /// When it was last said that something cannot be read.
    not_read_said: Mutex<Option<Instant>>,
    disk_work: Mutex<()>,
    /// Changed while `disk_work` is held.
    cutting: Mutex<Option<Cutting>>,
    pub(super) renaming: Mutex<Renaming>,
    /// Changed while `disk_work` is held.
    pub(super) merging: Mutex<Option<Merging>>,
    pub(super) compaction: Failing,
    pub(super) retention: Failing,
    inner: Mutex<Inner>,
    pub(super) cache: Mutex<TailCache>,
}

struct Inner {
    producers: Producers,
    epochs: Epochs,
    /// No append of an older leader epoch is taken; −1 until one was begun.
    begun_epoch: LeaderEpoch,
    /// A cut was begun, and the files do not agree with it yet: nothing is appended, nothing rolls.
    is_cutting: bool,
    epochs_changed: bool,
    /// Rolled segments whose bytes may not be on the device.
    unsynced: Vec<Arc<Segment>>,
    /// Files were made since the directory was last synced.
    dir_changed: bool,
    /// `partition.metadata` is not there. It is written by the first sync; until then the list of
    /// the log directory alone knows the topic id.
    lacks_metadata: bool,
    /// The end of the active file, the reserve included.
    file_end: u64,
    /// Nothing was appended since [`Log::close_idle`] looked last.
    idle: bool,
    reserve: u64,
    /// A part of a refused append may lie behind the end; it is cut before the next one, so that it
    /// is never taken for a batch.
    torn: bool,
    /// Timestamp of the active segment's first batch, and when it was appended.
    first_timestamp: Option<TimestampMs>,
    opened_ms: TimestampMs,
    bytes_since_sync: u64,
    bytes_since_checkpoint: u64,
}

impl Inner {
    fn check_begun(&self, epoch: LeaderEpoch) -> Result<(), AppendError> {
        let current = self.begun_epoch;
        if epoch < current {
            return Err(AppendError::StaleLeaderEpoch { epoch, current });
        }
        Ok(())
    }

    /// An append of a leader continues the newest epoch that has a record or was begun.
    fn check_epoch(&self, epoch: LeaderEpoch) -> Result<(), AppendError> {
        self.check_begun(epoch)?;
        match self.epochs.latest() {
            Some(current) if epoch < current => {
                Err(AppendError::StaleLeaderEpoch { epoch, current })
            }
            _ => Ok(()),
        }
    }
}

/// What a log is cut to.
struct Cut {
    /// Its segments; none: it begins and ends at `end`.
    kept: Vec<Arc<Segment>>,
    /// The size of the last of them.
    size: u64,
    end: Offset,
    cutting: Cutting,
}

/// What is left to be done with the files of a log that was cut.
struct Cutting {
    /// Segments that are the log's no more, the oldest first, and whose files may still be there.
    leaving: Vec<Arc<Segment>>,
    /// Where these files go; `None`: they are removed.
    aside: Option<PathBuf>,
    /// Nothing stays.
    is_anew: bool,
}

/// Who and where a log is, and what its log directory keeps of it.
pub(super) struct Identity {
    pub(super) topic: Arc<str>,
    pub(super) topic_id: TopicId,
    pub(super) partition: i32,
    pub(super) dir: Arc<LogDir>,
    pub(super) path: PathBuf,
    pub(super) kept: Kept,
    /// `partition.metadata` is not there.
    pub(super) lacks_metadata: bool,
    /// `not-synced` is there.
    pub(super) counts_unsynced: bool,
    /// See [`Log::loss`].
    pub(super) loss: Loss,
    /// See [`Log::lacks_records`].
    pub(super) lacks_records: bool,
    /// See [`Log::start_for_followers`].
    pub(super) lost_before: Offset,
}

impl Log {
    /// Longer than most because it is one line for each field, with nothing to cut out.
    pub(super) fn new(
        identity: Identity,
        mut found: Recovered,
        config: LogConfig,
        memory: Memory,
        now: TimestampMs,
    ) -> Self {
        let Identity { topic, topic_id, partition, dir, path, kept, lacks_metadata, .. } = identity;
        let Identity { counts_unsynced, loss, lacks_records, lost_before, .. } = identity;
        let end = found.end_offset;
        let start = kept.log_start.clamp(found.begins_at().min(end), end);
        let file_end = found.segments.last().map_or(0, |segment| segment.size());
        for segment in found.segments.split_last().map_or(&[][..], |(_, sealed)| sealed) {
            segment.seal(&dir.open_segments);
            if !found.unsynced.iter().any(|unsynced| Arc::ptr_eq(unsynced, segment)) {
                segment.became_durable();
            }
        }
        found.segments.iter().for_each(|segment| segment.count_in(&dir.open_segments));
        found.producers.count_in(memory.producers);
        let inner = Inner {
            producers: found.producers,
            epochs: found.epochs,
            begun_epoch: -1,
            is_cutting: false,
            epochs_changed: found.epochs_changed,
            unsynced: found.unsynced,
            dir_changed: found.dir_changed,
            lacks_metadata,
            file_end,
            idle: false,
            reserve: 0,
            torn: false,
            first_timestamp: found.first_timestamp,
            // Keeps the age of a segment across restarts.
            opened_ms: found
                .first_timestamp
                .filter(|first| (0..now).contains(first))
                .unwrap_or(now),
            bytes_since_sync: 0,
            bytes_since_checkpoint: found.bytes_scanned,
        };
        Self {
            topic,
            topic_id,
            partition,
            dir,
            path,
            is_durable: AtomicBool::new(config.durable),
            config: ArcSwap::from_pointee(config),
            segments: ArcSwap::from_pointee(found.segments),
            start: start.into(),
            end: end.into(),
            durable: end.into(),
            high_watermark: kept.high_watermark.clamp(start, end).into(),
            recovery_point: kept.recovery_point.into(),
            counts_unsynced: counts_unsynced.into(),
            is_configured: false.into(),
            loss: loss.into(),
            lacks_records: lacks_records.into(),
            may_lack_records: lacks_records.into(),
            lost_before: lost_before.into(),
            cuts: 0.into(),
            queued: false.into(),
            closed: false.into(),
            gone: false.into(),
            broken: OnceLock::new(),
            is_gap_said: false.into(),
            not_read_said: Mutex::default(),
            disk_work: Mutex::new(()),
            cutting: Mutex::default(),
            renaming: Mutex::default(),
            merging: Mutex::default(),
            compaction: Failing::default(),
            retention: Failing::default(),
            inner: Mutex::new(inner),
            cache: Mutex::new(TailCache::new(memory.cache)),
        }
    }

    /// The topic's name.
    #[must_use]
    pub fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// The topic's id.
    #[must_use]
    pub fn topic_id(&self) -> TopicId {
        self.topic_id
    }

    /// The partition's index.
    #[must_use]
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// The log directory it lies in.
    #[must_use]
    pub fn dir(&self) -> &Arc<LogDir> {
        &self.dir
    }

    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> Arc<LogConfig> {
        self.config.load_full()
    }

    /// Whether a record counts only when it is on the device, as the configuration in force says.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.is_durable.load(Ordering::Acquire)
    }

    /// Puts a new configuration in force, from the next append on.
    pub fn set_config(self: &Arc<Self>, config: LogConfig) {
        let is_durable = config.durable;
        self.config.store(Arc::new(config));
        self.is_durable.store(is_durable, Ordering::Release);
        // What was appended while nobody waited for the device is in no queue; from now on somebody
        // may wait for it. Under the lock, so that an append either is seen here or sees the new
        // configuration.
        let _inner = lock(&self.inner);
        self.is_configured.store(true, Ordering::Release);
        let is_marked = self.counts_unsynced.load(Ordering::Acquire);
        if is_durable && (is_marked || self.end_offset() > self.synced_end()) {
            self.enqueue();
        }
    }

    /// What it may lack of what it counted, as it was made or opened, until that is known
    /// ([`Log::loss_is_known`]).
    #[must_use]
    pub fn loss(&self) -> Loss {
        *lock(&self.loss)
    }

    /// Whoever counts on it knows what it lacks, or counts on nothing in it: what it counts from now
    /// on it has.
    pub fn loss_is_known(&self) {
        *lock(&self.loss) = Loss::None;
    }

    /// Whether a loss was accepted in it: where another replica has all, it is to be copied anew,
    /// because it goes on behind the records that are missing.
    #[must_use]
    pub fn lacks_records(&self) -> bool {
        self.lacks_records.load(Ordering::Acquire)
    }

    /// Whether the next start may still take it for one that lacks records ([`Loss::Records`]), with
    /// whatever counts in it until then: so nothing may.
    #[must_use]
    pub fn may_lack_records(&self) -> bool {
        self.may_lack_records.load(Ordering::Acquire)
    }

    /// It was emptied to be copied anew: the device has where it begins before that counts. Blocks.
    ///
    /// # Errors
    /// The file system's own; it lacks records as before.
    pub fn lacks_nothing_more(&self) -> Result<(), LogError> {
        let _one = self.disk_work().during("change", &self.path)?;
        self.sync_locked(false).during("sync", &self.path)?;
        if self.may_lack_records() {
            self.remove_noted(LACKS_RECORDS)?;
            self.lacks_records.store(false, Ordering::Release);
            self.may_lack_records.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Removes a file that says something of the log, durably. While its disk work is held.
    fn remove_noted(&self, name: &str) -> Result<(), LogError> {
        let file = self.path.join(name);
        match self.dir.disk.remove_file(&file) {
            // An attempt before this one may have come so far.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.dir.disk.sync_dir(&self.path),
        }
        .during("remove", &file)
    }

    /// Forgets durably what [`Log::delete_records_before`] has named. Blocks.
    pub(super) fn keep_lost_front(&self) -> Result<(), LogError> {
        match self.lost_before.load(Ordering::Acquire) {
            NO_LONGER_LOST if !self.is_gone() => {
                let _one = self.disk_work().during("change", &self.path)?;
                self.remove_lost_before()
            }
            _ => Ok(()),
        }
    }

    /// While its disk work is held.
    fn remove_lost_before(&self) -> Result<(), LogError> {
        if self.lost_before.load(Ordering::Acquire) == NO_LONGER_LOST {
            self.remove_noted(LOST_BEFORE)?;
            self.lost_before.store(NOTHING_LOST, Ordering::Release);
        }
        Ok(())
    }

    /// What is lost in front of it matters no more.
    fn forget_lost_front(&self) {
        if self.lost_before.load(Ordering::Acquire) != NOTHING_LOST {
            self.lost_before.store(NO_LONGER_LOST, Ordering::Release);
        }
    }

    /// It leads, and is what it is: what it lacks is lost. See [`Log::start_for_followers`]. The
    /// disk may be slow, and by then another one may lead that has what is missing: nothing changes
    /// unless `while_it_leads` calls what it is given, and holds up meanwhile that another one is
    /// followed. Nothing counts in it before it was done ([`Log::may_lack_records`]). Blocks.
    ///
    /// # Errors
    /// The file system's own; it lacks records as before.
    pub fn goes_on_with_loss(
        &self,
        while_it_leads: impl FnOnce(&dyn Fn()),
    ) -> Result<(), LogError> {
        let _one = self.disk_work().during("change", &self.path)?;
        if !self.may_lack_records() {
            return Ok(());
        }
        let (file, start) = (self.path.join(LOST_BEFORE), self.start_offset());
        self.dir
            .disk
            .write_atomically(&file, start.to_string().as_bytes())
            .during("write", &file)?;
        self.lost_before.store(start, Ordering::Release);
        while_it_leads(&|| self.lacks_records.store(false, Ordering::Release));
        if self.lacks_records() {
            return Ok(());
        }
        self.remove_noted(LACKS_RECORDS).inspect_err(|_| {
            self.lacks_records.store(true, Ordering::Release);
        })?;
        self.may_lack_records.store(false, Ordering::Release);
        Ok(())
    }

    /// Log start offset as others are told that follow it, to delete what they have before it; −1
    /// where nothing is to go. So it is from when it first led with a loss that was accepted until it
    /// begins elsewhere: whether what lies in front was deleted or lost is not known, and a follower
    /// may have it.
    #[must_use]
    pub fn start_for_followers(&self) -> Offset {
        let start = self.start_offset();
        let may_be_lost = self.lacks_records() || start <= self.lost_before.load(Ordering::Acquire);
        if may_be_lost { -1 } else { start }
    }

    /// Log start offset.
    #[must_use]
    pub fn start_offset(&self) -> Offset {
        self.start.load(Ordering::Acquire)
    }

    /// Log end offset, exclusive.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        self.end.load(Ordering::Acquire)
    }

    /// Up to where an acknowledgement may count on this log, exclusive: what is on the device; with
    /// `durable: false` the end offset, as soon as the disk says so to the next start.
    #[must_use]
    pub fn durable_end(&self) -> Offset {
        // Looked at first: what was appended before the configuration changed is synced before the
        // file `not-synced` goes.
        let end = self.end_offset();
        if self.counts_unsynced.load(Ordering::Acquire) && !self.is_durable() {
            end
        } else {
            self.durable.load(Ordering::Acquire)
        }
    }

    /// The high watermark, as replication set it last.
    #[must_use]
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark.load(Ordering::Acquire)
    }

    /// Stores the high watermark; it is checkpointed, nothing else. Kept within the log.
    pub fn set_high_watermark(&self, offset: Offset) {
        let (start, end) = self.range();
        self.high_watermark.store(offset.clamp(start, end), Ordering::Release);
    }

    /// Log start and end offset as they were at one moment, so that the start is not past the end.
    pub(super) fn range(&self) -> (Offset, Offset) {
        loop {
            let (start, end) = (self.start_offset(), self.end_offset());
            if self.start_offset() == start {
                return (start, end);
            }
        }
    }

    /// Bytes of its batches.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.segments.load().iter().map(|segment| segment.size()).sum()
    }

    /// About how many bytes its batches from `offset` on have: within a segment, all records are
    /// taken to be equally large. Reads nothing.
    #[must_use]
    pub fn bytes_from(&self, offset: Offset) -> u64 {
        let (mut bytes, mut end) = (0_u64, self.end_offset());
        for segment in self.segments.load().iter().rev() {
            if offset >= end {
                break;
            }
            let (records, left) = (end.abs_diff(segment.base), end.abs_diff(offset));
            let part = if offset <= segment.base { records } else { left };
            let size = u128::from(segment.size()) * u128::from(part);
            let size = size.checked_div(records.into()).unwrap_or(0);
            bytes = bytes.saturating_add(u64::try_from(size).unwrap_or(u64::MAX));
            end = segment.base;
        }
        bytes
    }

    /// Idempotent producers it knows.
    #[must_use]
    pub fn producers_count(&self) -> usize {
        lock(&self.inner).producers.len()
    }

    /// How many segments it has.
    #[must_use]
    pub fn segments_count(&self) -> usize {
        self.segments.load().len()
    }

    /// The idempotent producers it knows, by id.
    #[must_use]
    pub fn producers(&self) -> Vec<ProducerView> {
        lock(&self.inner).producers.views()
    }

    /// Whether it takes no appends any more: its log directory went offline, or its own files are
    /// broken.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.broken.get().is_some() || self.dir.offline().is_some()
    }

    /// What a change that failed means: a state passes, a lost write takes the directory out of
    /// use, and broken files take this log out of use, and it alone.
    pub(super) fn failed(&self, action: &'static str, error: &io::Error) -> AppendError {
        if Fault::of(error) != Fault::BrokenInvariant {
            return self.dir.failed(action, error);
        }
        if self.is_gone() {
            return AppendError::Closed;
        }
        let reason: Arc<str> = format!("{action}: {error}").into();
        if self.broken.set(reason.clone()).is_ok() {
            tracing::error!(topic = %self.topic, partition = self.partition, path = %self.path.display(), %reason, "the \
                log is out of use, because its files are missing, damaged or may not be \
                used; repair them and restart the broker");
        }
        AppendError::Broken { reason }
    }

    /// Says, once, that a reader found no record between two offsets, where compaction is not the
    /// reason.
    pub(super) fn say_gap(&self, from: Offset, to: Offset) {
        if self.config.load().cleanup_policy.compact
            || from < self.start_offset()
            || self.is_gap_said.swap(true, Ordering::Relaxed)
            || from < self.dir.partitions.cleaned(self)
        {
            return;
        }
        tracing::warn!(
            topic = %self.topic,
            partition = self.partition,
            from,
            to,
            path = %self.path.display(),
            "the log has no records between two of its offsets: a power cut took them before they \
             were acknowledged, or segments were removed from its directory; readers skip them"
        );
    }

    /// Says what cannot be read, now and then: a client that asks for it asks again and again.
    pub(super) fn say_not_read(&self, error: &ReadError) {
        if matches!(error, ReadError::OffsetOutOfRange { .. }) {
            return;
        }
        let mut said = lock(&self.not_read_said);
        if said.is_some_and(|at| at.elapsed() < NOT_READ_EVERY) {
            return;
        }
        *said = Some(Instant::now());
        drop(said);
        tracing::error!(
            topic = %self.topic,
            partition = self.partition,
            path = %self.path.display(),
            error = with_causes(error),
            "records cannot be read; clients that ask for them are told so, and wait or fail. \
             docs/offline-partitions.md says what can be done"
        );
    }

    /// The latest leader epoch that appended.
    #[must_use]
    pub fn latest_epoch(&self) -> Option<LeaderEpoch> {
        lock(&self.inner).epochs.latest()
    }

    /// The largest known epoch ≤ `epoch` and where it ends (KIP-101, KIP-279).
    #[must_use]
    pub fn end_offset_for_epoch(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, Offset)> {
        let inner = lock(&self.inner);
        inner.epochs.end_offset_for(epoch, self.end_offset())
    }

    /// The epoch that appended `offset`.
    #[must_use]
    pub fn epoch_for_offset(&self, offset: Offset) -> Option<LeaderEpoch> {
        lock(&self.inner).epochs.epoch_for(offset)
    }

    /// How often it was cut or emptied.
    pub(super) fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Acquire)
    }

    /// The epoch that appended `offset`, −1 when it is not known; `None` when the log was cut
    /// since [`Log::cuts`] was `cuts`. Waits for a cut that is being decided.
    pub(super) fn epoch_unless_cut(&self, offset: Offset, cuts: u64) -> Option<LeaderEpoch> {
        let inner = lock(&self.inner);
        (self.cuts() == cuts).then(|| inner.epochs.epoch_for(offset).unwrap_or(-1))
    }

    /// From now on no append of an older leader epoch is taken: the epoch of an append is compared
    /// with this one under the lock that it is written under. Waits for an append that has begun,
    /// and for nothing else that appends would not wait for.
    pub fn begin_epoch(&self, epoch: LeaderEpoch) {
        let mut inner = lock(&self.inner);
        inner.begun_epoch = inner.begun_epoch.max(epoch);
    }

    /// Appends a batch (with [`Origin::Replication`], any number of batches). Touches the page
    /// cache only.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing was stored then.
    pub fn append(
        self: &Arc<Self>,
        bytes: BytesMut,
        options: &AppendOptions,
    ) -> Result<AppendInfo, AppendError> {
        // What a coordinator has written into its leader's reserve is committed only when it is here
        // too.
        let writer = match options.origin {
            Origin::Replication { .. } => self.writer(),
            origin => origin,
        };
        self.dir.check_writable_by(writer)?;
        let config = self.config.load();
        if matches!(options.origin, Origin::Replication { .. }) {
            return self.append_replicated(bytes, options, &config);
        }
        match validate(bytes, &config, options.origin, options.now_ms, &mut Effort::unbounded())? {
            Validated::Valid(batch) => self.append_valid(batch, options),
            Validated::TooLong(_) => Err(AppendError::InvalidRecord {
                message: "not validated".into(),
                records: Vec::new(),
            }),
        }
    }

    /// Who writes to it, on the broker that leads.
    fn writer(&self) -> Origin {
        if is_internal_topic(&self.topic) { Origin::Coordinator } else { Origin::Client }
    }

    /// Whether it takes no records for want of space, or has not taken them a moment ago.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.dir.is_full_for(self.writer())
    }

    /// Whether it takes nothing of what another broker leads for want of space.
    #[must_use]
    pub fn takes_no_copies(&self) -> bool {
        self.dir.is_short_for(self.writer())
    }

    /// Checks a batch of `origin` for [`Log::append_valid`], as long as that takes no more than
    /// `effort`.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn validate(
        &self,
        bytes: BytesMut,
        origin: Origin,
        now: TimestampMs,
        effort: &mut Effort,
    ) -> Result<Validated, AppendError> {
        validate(bytes, &self.config.load(), origin, now, effort)
    }

    /// As [`Log::append`], for a batch that this log has validated.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn append_valid(
        self: &Arc<Self>,
        batch: ValidBatch,
        options: &AppendOptions,
    ) -> Result<AppendInfo, AppendError> {
        // Here, because validating may have taken long.
        self.dir.check_writable_by(options.origin)?;
        let ValidBatch { mut bytes, mut header, log_append_time } = batch;
        let config = self.config.load();
        let _under_way = self.dir.appends.begin();
        let mut inner = lock(&self.inner);
        self.check_open(&inner)?;
        inner.check_epoch(options.leader_epoch)?;
        if options.origin == Origin::Client
            && header.has_producer_id()
            && let Some(known) = inner.producers.check(&header, options.now_ms)?
        {
            let log_append_time = if log_append_time < 0 { -1 } else { known.timestamp };
            return Ok(AppendInfo {
                base_offset: known.base_offset,
                last_offset: known.last_offset,
                log_append_time,
                log_start_offset: self.start_offset(),
                duplicate: true,
            });
        }
        let base_offset = self.end_offset();
        (header.base_offset, header.leader_epoch) = (base_offset, options.leader_epoch);
        batch::assign(&mut bytes, base_offset, options.leader_epoch);
        self.store(&mut inner, bytes, &[(0, header)], &config, options)?;
        Ok(AppendInfo {
            base_offset,
            last_offset: header.last_offset(),
            log_append_time,
            log_start_offset: self.start_offset(),
            duplicate: false,
        })
    }

    fn append_replicated(
        self: &Arc<Self>,
        bytes: BytesMut,
        options: &AppendOptions,
        config: &LogConfig,
    ) -> Result<AppendInfo, AppendError> {
        let (mut headers, mut rest) = (Vec::new(), &bytes[..]);
        while !rest.is_empty() {
            let (batch, after) = Batch::split(rest)?;
            batch.check_crc()?;
            headers.push(((bytes.len() - rest.len()) as u64, batch.header));
            rest = after;
        }
        let _under_way = self.dir.appends.begin();
        let mut inner = lock(&self.inner);
        self.check_open(&inner)?;
        inner.check_begun(options.leader_epoch)?;
        let (mut end, mut epoch) = (self.end_offset(), inner.epochs.latest().unwrap_or(-1));
        for (_, header) in &headers {
            if header.base_offset < end
                || header.last_offset_delta < 0
                || header.next_offset() == Offset::MAX
            {
                return Err(AppendError::OutOfOrderOffset {
                    base_offset: header.base_offset,
                    end_offset: end,
                });
            }
            if header.leader_epoch < epoch {
                return Err(AppendError::StaleLeaderEpoch {
                    epoch: header.leader_epoch,
                    current: epoch,
                });
            }
            // The answer of a leader that has been replaced while it read.
            if header.leader_epoch > options.leader_epoch {
                return Err(AppendError::StaleLeaderEpoch {
                    epoch: options.leader_epoch,
                    current: header.leader_epoch,
                });
            }
            (end, epoch) = (header.next_offset(), header.leader_epoch);
        }
        let (Some((_, first)), Some((_, last))) = (headers.first(), headers.last()) else {
            return Err(AppendError::CorruptMessage("there is no batch".into()));
        };
        let info = AppendInfo {
            base_offset: first.base_offset,
            last_offset: last.last_offset(),
            log_append_time: -1,
            log_start_offset: self.start_offset(),
            duplicate: false,
        };
        self.store(&mut inner, bytes, &headers, config, options)?;
        Ok(info)
    }

    fn check_open(&self, inner: &Inner) -> Result<(), AppendError> {
        if let Some(reason) = self.broken.get() {
            return Err(AppendError::Broken { reason: reason.clone() });
        }
        match (self.is_closed(), inner.is_cutting) {
            (true, _) => Err(AppendError::Closed),
            (_, true) => Err(AppendError::Unavailable {
                action: "append",
                reason: "the log is being cut, which takes the disk a while".into(),
            }),
            _ => Ok(()),
        }
    }

    /// Whether it takes no more appends, because it was closed or deleted.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn store(
        self: &Arc<Self>,
        inner: &mut Inner,
        bytes: BytesMut,
        headers: &[(u64, BatchHeader)],
        config: &LogConfig,
        options: &AppendOptions,
    ) -> Result<(), AppendError> {
        let now = options.now_ms;
        let (Some((_, first)), Some((_, last))) = (headers.first(), headers.last()) else {
            return Ok(());
        };
        if last.next_offset() == Offset::MAX {
            return Err(AppendError::InvalidRecord {
                message: "the log has no offsets left".into(),
                records: Vec::new(),
            });
        }
        fits_a_segment(bytes.len(), headers.len(), config, options.origin)?;
        let mut active = self.active();
        if inner.torn {
            self.trim_reserve(inner).map_err(|error| self.failed("cut a partial write", &error))?;
        }
        if must_roll(inner, &active, bytes.len() as u64, last, config, now, self.dir.rolls_wait()) {
            // No gap between the records is one between segments, as far as indexes reach.
            let end = self.end_offset();
            let is_far = last.last_offset().saturating_sub(end) > i64::from(i32::MAX);
            self.roll(inner, if is_far { first.base_offset } else { end }, now)
                .map_err(|error| self.failed("roll", &error))?;
            active = self.active();
        }
        if let Err(error) = active.append(&bytes, headers, config.index_interval_bytes) {
            inner.torn = true;
            let _ = self.trim_reserve(inner);
            return Err(self.failed("write", &error));
        }
        self.dir.took(bytes.len() as u64);
        active.was_modified(now);
        inner.file_end = inner.file_end.max(active.size());
        inner.idle = false;
        inner.first_timestamp.get_or_insert(first.max_timestamp);
        if inner.bytes_since_checkpoint == 0 && active.size() == bytes.len() as u64 {
            inner.opened_ms = now;
        }
        inner.bytes_since_sync += bytes.len() as u64;
        inner.bytes_since_checkpoint += bytes.len() as u64;
        for (_, header) in headers {
            match options.origin {
                Origin::Replication { committed } if header.base_offset < committed => {
                    inner.producers.note_old(header, Some(now));
                }
                _ => inner.producers.note(header),
            }
            inner.epochs_changed |= inner.epochs.assign(header.leader_epoch, header.base_offset);
        }
        self.keep_for_readers(bytes.freeze(), headers);
        self.end.store(last.next_offset(), Ordering::Release);
        // As it is now: see [`Log::set_config`].
        if self.is_durable() || !self.counts_unsynced.load(Ordering::Relaxed) {
            self.enqueue();
        }
        Ok(())
    }

    /// Readers at the end of the log find the batches in memory.
    fn keep_for_readers(&self, bytes: Bytes, headers: &[(u64, BatchHeader)]) {
        let mut cache = lock(&self.cache);
        for (at, header) in headers {
            let at = usize::try_from(*at).unwrap_or(usize::MAX);
            cache.push(
                header.base_offset,
                header.next_offset(),
                bytes.slice(at..at.saturating_add(header.size())),
            );
        }
    }

    /// Has the log synced soon.
    fn enqueue(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.dir.enqueue(self.clone());
        }
    }

    pub(super) fn active(&self) -> Arc<Segment> {
        // There is always one: recovery makes it, and nothing removes the last.
        self.segments.load().last().cloned().unwrap_or_else(|| {
            Arc::new(Segment::new(self.dir.disk.clone(), &self.path, self.end_offset(), 0))
        })
    }

    fn roll(&self, inner: &mut Inner, base: Offset, now: TimestampMs) -> io::Result<()> {
        let old = self.active();
        if old.size() == 0 && old.base == base {
            return Ok(());
        }
        if let Err(error) = old.write_indexes()
            && !Fault::of(&error).is_state()
        {
            return Err(error);
        }
        let new = Arc::new(Segment::new(self.dir.disk.clone(), &self.path, base, 0));
        new.count_in(&self.dir.open_segments);
        new.files()?;
        old.seal(&self.dir.open_segments);
        inner.unsynced.push(old);
        (inner.dir_changed, inner.file_end, inner.first_timestamp, inner.opened_ms) =
            (true, 0, None, now);
        let mut segments = self.segments.load().to_vec();
        segments.push(new);
        self.segments.store(Arc::new(segments));
        Ok(())
    }

    /// Changes the list of segments; appends cannot roll meanwhile.
    pub(super) fn replace_segments(&self, change: impl FnOnce(&mut Vec<Arc<Segment>>)) {
        let _inner = lock(&self.inner);
        let mut segments = self.segments.load().to_vec();
        change(&mut segments);
        self.segments.store(Arc::new(segments));
    }

    /// Rolls the active segment when it is older than `segment.ms`. Tells whether it did.
    pub(super) fn roll_if_old(&self, now: TimestampMs) -> io::Result<bool> {
        let config = self.config();
        let mut inner = lock(&self.inner);
        let rolls = self.active().size() > 0
            && now.saturating_sub(inner.opened_ms) >= config.segment_ms
            && !self.is_closed()
            && !inner.is_cutting
            && !self.dir.rolls_wait();
        if rolls {
            let end = self.end_offset();
            self.roll(&mut inner, end, now)?;
        }
        Ok(rolls)
    }

    /// Takes the oldest segments out of the log: as many as `decide` says of what is there while
    /// nothing is appended. When that is all of them the log rolls, so that an empty one stays. The
    /// log start moves to the first that stays.
    pub(super) fn take_oldest(
        &self,
        now: TimestampMs,
        decide: impl FnOnce(&[Arc<Segment>]) -> io::Result<usize>,
    ) -> io::Result<Vec<Arc<Segment>>> {
        let mut inner = lock(&self.inner);
        if self.is_closed() {
            return Ok(Vec::new());
        }
        let count = decide(&self.segments.load())?;
        if count == self.segments.load().len() {
            self.roll(&mut inner, self.end_offset(), now)?;
        }
        let mut gone = self.segments.load().to_vec();
        let kept = gone.split_off(count.min(gone.len().saturating_sub(1)));
        if let Some(first) = kept.first().filter(|_| !gone.is_empty()) {
            // In front of the list: a reader never looks for an offset below the first segment.
            self.start.fetch_max(first.base, Ordering::AcqRel);
            self.segments.store(Arc::new(kept));
        }
        Ok(gone)
    }

    /// Rolls so that every batch lies in a sealed segment.
    #[cfg(test)]
    pub(super) fn roll_now(&self, now: TimestampMs) -> io::Result<()> {
        let mut inner = lock(&self.inner);
        if self.closed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let end = self.end_offset();
        self.roll(&mut inner, end, now)
    }

    /// Makes everything appended before the call durable; gives the durable end. Blocks.
    ///
    /// # Errors
    /// A state ([`Fault::State`]): no sync was tried for want of a resource, nothing is lost, try
    /// again. Else the device's own; the log directory is offline then, because the kernel may have
    /// dropped the bytes, and a second try would not tell.
    pub fn sync(&self) -> io::Result<Offset> {
        let _one = self.disk_work()?;
        self.sync_locked(false)
    }

    /// Has on the device what nobody waits for. Blocks.
    pub(super) fn sync_if_behind(&self) {
        if self.synced_end() < self.end_offset() && !self.is_durable() {
            // What fails was said.
            drop(self.sync());
        }
    }

    /// As [`Log::sync`], and moves the recovery point there: epochs, indexes and producers go to
    /// the device before.
    pub(super) fn checkpoint(&self) -> io::Result<Offset> {
        let _one = self.disk_work()?;
        self.sync_locked(true)
    }

    pub(super) fn sync_locked(&self, checkpoint: bool) -> io::Result<Offset> {
        // In front of the look at the end: an append after it queues the log again.
        self.queued.store(false, Ordering::Release);
        if let Some(reason) = self.broken.get().cloned().or(self.dir.offline()) {
            return Err(io::Error::other(reason.to_string()));
        }
        let mut inner = lock(&self.inner);
        let is_durable = self.is_durable();
        let (end, active) = (self.end_offset(), self.active());
        if !checkpoint && !self.is_closed() {
            self.top_up_reserve(&mut inner, &active);
        }
        inner.bytes_since_sync = 0;
        let work = Work {
            sealed: std::mem::take(&mut inner.unsynced),
            epochs: std::mem::take(&mut inner.epochs_changed).then(|| inner.epochs.clone()),
            dir_changed: std::mem::take(&mut inner.dir_changed),
            lacks_metadata: std::mem::take(&mut inner.lacks_metadata),
            snapshot: checkpoint.then(|| inner.producers.to_snapshot()),
            bytes: if checkpoint { std::mem::take(&mut inner.bytes_since_checkpoint) } else { 0 },
        };
        drop(inner);
        let synced = self.sync_data(&work, &active).and_then(|()| self.set_mark(is_durable));
        if let Err(error) = synced {
            self.put_back(work);
            self.failed("sync", &error);
            return Err(error);
        }
        self.durable.fetch_max(end, Ordering::AcqRel);
        match self.write_side_files(&work, &active, end) {
            Ok(()) => Ok(end),
            Err(error) => {
                // Recovery reads from the recovery point on, which has not moved: an
                // acknowledgement needs none of these files.
                let is_enough = !checkpoint && error.fault().is_state();
                self.put_back(work);
                let error = error.into_io();
                self.failed("write a checkpoint", &error);
                if is_enough { Ok(end) } else { Err(error) }
            }
        }
    }

    /// What acknowledgements wait for: the bytes of every segment, and the names of new ones.
    fn sync_data(&self, work: &Work, active: &Segment) -> io::Result<()> {
        for segment in &work.sealed {
            segment.trim()?;
            segment.sync()?;
        }
        active.sync()?;
        if work.lacks_metadata {
            checkpoint::write_partition_metadata(&*self.dir.disk, &self.path, self.topic_id)?;
        }
        if work.dir_changed { self.dir.disk.sync_dir(&self.path) } else { Ok(()) }
    }

    /// Says to the next start whether what is not on the device may count, `is_durable` having been
    /// in force before all was synced.
    fn set_mark(&self, is_durable: bool) -> io::Result<()> {
        let (disk, mark) = (&self.dir.disk, self.path.join(NOT_SYNCED));
        let is_marked = self.counts_unsynced.load(Ordering::Acquire);
        if !is_durable && !is_marked {
            disk.open(&mark, OpenMode::Create)?;
            disk.sync_dir(&self.path)?;
            self.counts_unsynced.store(true, Ordering::Release);
        } else if is_durable && is_marked && self.is_configured.load(Ordering::Acquire) {
            // If it is there again after a power cut, it says too much.
            disk.remove_file(&mark)?;
            self.counts_unsynced.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// What only the recovery point depends on. It moves last.
    fn write_side_files(&self, work: &Work, active: &Segment, end: Offset) -> Result<(), LogError> {
        for segment in &work.sealed {
            segment.sync_indexes().during("sync", segment.path(".index"))?;
            segment.became_durable();
        }
        if let Some(epochs) = &work.epochs {
            epochs.write(&*self.dir.disk, &self.path)?;
        }
        if let Some(snapshot) = &work.snapshot {
            active.sync_indexes().during("sync", active.path(".index"))?;
            recover::write_snapshot(&self.dir.disk, &self.path, end, snapshot)
                .during("write a snapshot in", &self.path)?;
            self.recovery_point.store(end, Ordering::Release);
        }
        Ok(())
    }

    /// The work is still to be done.
    fn put_back(&self, work: Work) {
        let mut inner = lock(&self.inner);
        inner.unsynced.splice(0..0, work.sealed);
        inner.epochs_changed |= work.epochs.is_some();
        inner.dir_changed |= work.dir_changed;
        inner.lacks_metadata |= work.lacks_metadata;
        inner.bytes_since_checkpoint += work.bytes;
    }

    /// Keeps written blocks ahead of the tail, so that the next syncs find them: `fdatasync` then
    /// has no new size and no new blocks to record. Grows while syncs stay small.
    fn top_up_reserve(&self, inner: &mut Inner, active: &Segment) {
        let size = active.size();
        if inner.bytes_since_sync >= SMALL_SYNC || !self.is_durable() || !self.dir.has_room() {
            inner.reserve = 0;
            return;
        }
        if size == 0
            || inner.file_end.saturating_sub(size) >= inner.reserve / 4 && inner.reserve > 0
        {
            return;
        }
        inner.reserve = (inner.reserve * 2).clamp(RESERVE_MIN, RESERVE_MAX);
        let from = inner.file_end.max(size);
        let to = (size + inner.reserve).min(self.config.load().segment_bytes);
        let reserve = vec![RESERVE_BYTE; usize::try_from(to.saturating_sub(from)).unwrap_or(0)];
        inner.file_end = from + reserve.len() as u64;
        if active
            .files()
            .and_then(|files| files.log.write_at(&[IoSlice::new(&reserve)], from))
            .is_err()
        {
            // Without the reserve everything goes on, only slower. What was written of it is given
            // back.
            let _ = self.trim_reserve(inner);
        }
    }

    /// Gives the reserve back to the file system, and cuts what a refused append has left. Needs no
    /// sync: what a crash brings back is trimmed by recovery.
    fn trim_reserve(&self, inner: &mut Inner) -> io::Result<()> {
        let active = self.active();
        inner.reserve = 0;
        if inner.file_end > active.size() || inner.torn {
            active.trim()?;
        }
        (inner.file_end, inner.torn) = (active.size(), false);
        Ok(())
    }

    /// Up to where the device has the log, whatever acknowledgements wait for.
    pub(super) fn synced_end(&self) -> Offset {
        self.durable.load(Ordering::Acquire)
    }

    pub(super) fn is_last_of_producer(&self, header: &BatchHeader) -> bool {
        lock(&self.inner).producers.is_last_of_producer(header)
    }

    /// Bytes appended since the recovery point moved.
    pub(super) fn bytes_since_checkpoint(&self) -> u64 {
        lock(&self.inner).bytes_since_checkpoint
    }

    /// Whether the recovery point is to move before its time: a segment was rolled and is not on the
    /// device (Kafka writes it there at once), or the next start would open many. Where answers do
    /// not wait for the device, moving it sends all the bytes there, in the way of appends: then it
    /// waits for as much as a segment, about as often as Kafka does this.
    pub(super) fn is_checkpoint_due(&self) -> bool {
        let config = self.config.load();
        let bytes = match config.durable {
            true => CHECKPOINT_BYTES,
            false => config.segment_bytes.max(CHECKPOINT_BYTES),
        };
        let inner = lock(&self.inner);
        inner.bytes_since_checkpoint >= bytes
            || !inner.unsynced.is_empty()
            || self.has_many_unchecked()
    }

    /// Whether a start would open many segments, because they lie past the recovery point.
    fn has_many_unchecked(&self) -> bool {
        let (segments, recovery_point) = (self.segments.load(), self.recovery_point());
        let unchecked = segments.iter().rev().take_while(|one| one.base > recovery_point);
        unchecked.count() > CLOSE_SEGMENTS
    }

    pub(super) fn recovery_point(&self) -> Offset {
        self.recovery_point.load(Ordering::Acquire)
    }

    /// See [`Producers::expire`].
    pub(super) fn expire_producers(&self, now: TimestampMs, ages: &Ages) {
        lock(&self.inner).producers.expire(now, ages);
    }

    /// Closes files, empties caches and gives back the reserve that nobody used since the last
    /// call. Blocks.
    pub(super) fn close_idle(&self) {
        let Ok(_one) = self.disk_work() else { return };
        lock(&self.cache).clear_idle();
        let mut inner = lock(&self.inner);
        if self.durable.load(Ordering::Acquire) == self.end_offset()
            && inner.unsynced.is_empty()
            && !self.is_closed()
        {
            // A reserve that could not be given back is harmless.
            if std::mem::replace(&mut inner.idle, true) && self.trim_reserve(&mut inner).is_err() {
                tracing::debug!(topic = %self.topic, partition = self.partition, "could not trim the reserve of an idle log");
            }
            for segment in self.segments.load().iter() {
                segment.close_idle();
            }
        }
    }

    /// Takes no more appends, makes everything durable, trims the reserve. The recovery point moves
    /// only where the next start would have much to look at. Blocks.
    pub(super) fn close(&self) -> io::Result<()> {
        let _one = self.disk_work()?;
        let mut inner = lock(&self.inner);
        self.closed.store(true, Ordering::Relaxed);
        self.trim_reserve(&mut inner).inspect_err(|error| drop(self.failed("trim", error)))?;
        let (bytes, end) = (inner.bytes_since_checkpoint, self.end_offset());
        let is_small = bytes < CLOSE_BYTES && !self.has_many_unchecked();
        let is_untouched = bytes == 0 && self.recovery_point() == end;
        let is_on_device = self.synced_end() == end && !inner.dir_changed && !inner.lacks_metadata;
        let has_nothing_to_sync = (is_untouched || is_small && is_on_device)
            && inner.unsynced.is_empty()
            && !inner.epochs_changed;
        drop(inner);
        if has_nothing_to_sync { Ok(()) } else { self.sync_locked(!is_small).map(drop) }
    }

    /// Its topic was deleted: takes no more appends, and nothing that is queued for it has an
    /// effect any more.
    pub fn set_gone(&self) {
        let _inner = lock(&self.inner);
        self.closed.store(true, Ordering::Relaxed);
        self.gone.store(true, Ordering::Release);
    }

    /// Whether its topic was deleted: whoever waits for something of it waits in vain.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// As [`Log::set_gone`], and waits for the work on its files that had begun: when it returns,
    /// its directory may be renamed and the name given to another log. Blocks.
    pub(super) fn leave(&self) {
        self.set_gone();
        let _one = lock(&self.disk_work);
        let (cutting, renaming) = (lock(&self.cutting), lock(&self.renaming));
        // Also those that are out of the list, and whose files may still be there: a reader may have
        // the list of before.
        let out = cutting.iter().flat_map(|cutting| &cutting.leaving).chain(&renaming.left);
        self.segments.load().iter().chain(out).for_each(|segment| segment.leave());
    }

    /// Whether somebody works on its files, for whom syncs wait.
    #[cfg(test)]
    pub(super) fn is_at_work(&self) -> bool {
        self.disk_work.try_lock().is_err()
    }

    /// To be held while files are changed by name. A cut that has failed half-way is finished before.
    ///
    /// # Errors
    /// `NotFound` when the log is gone; that of the cut.
    pub(super) fn disk_work(&self) -> io::Result<MutexGuard<'_, ()>> {
        let work = lock(&self.disk_work);
        if self.is_gone() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the log was deleted"));
        }
        self.finish_cut().map_err(LogError::into_io)?;
        Ok(work)
    }

    /// Moves the log start to `offset`, at most to the high watermark. Gives the log start. Durable
    /// with [`super::LogManager::keep_log_starts`]; whole segments before it go with the next
    /// retention check.
    ///
    /// # Errors
    /// The file system's own.
    pub fn delete_records_before(&self, offset: Offset) -> Result<Offset, LogError> {
        let mut inner = lock(&self.inner);
        let offset = offset.min(self.high_watermark());
        self.start.fetch_max(offset, Ordering::AcqRel);
        // Also what is lost in front of it is not wanted any more.
        if offset >= self.lost_before.load(Ordering::Acquire) {
            self.forget_lost_front();
        }
        self.forget_epochs(&mut inner);
        Ok(self.start_offset())
    }

    pub(super) fn forget_before_start(&self) {
        self.forget_epochs(&mut lock(&self.inner));
    }

    fn forget_epochs(&self, inner: &mut Inner) {
        inner.epochs_changed |= inner.epochs.truncate_from_start(self.start_offset());
        self.high_watermark.fetch_max(self.start_offset(), Ordering::AcqRel);
    }

    /// Cuts the log so that it ends at `offset` or at the start of the batch that holds it: a
    /// follower follows its leader (KIP-101). Blocks.
    ///
    /// # Errors
    /// The file system's own. The log is as it was, or ends there and takes no appends until its
    /// files do, for which the syncer sees; unless it is out of use, or its log directory.
    pub fn truncate_to(self: &Arc<Self>, offset: Offset) -> Result<(), LogError> {
        let _one = self.segment_work("truncate")?;
        let mut inner = lock(&self.inner);
        if offset >= self.end_offset() {
            // The epochs too, even when no data is cut (KAFKA-10706).
            inner.epochs_changed |= inner.epochs.truncate_from_end(offset);
            return Ok(());
        }
        drop(inner);
        let first = self.segments.load().first().map_or(0, |segment| segment.base);
        if offset < self.start_offset().max(first) {
            self.cut(|| self.plan_restart(offset, false))
        } else {
            self.cut(|| self.plan_truncation(offset))
        }
    }

    /// Empties the log; it begins and ends at `offset`: a follower whose leader's log begins later.
    /// Blocks.
    ///
    /// # Errors
    /// As [`Log::truncate_to`].
    pub fn truncate_fully_and_start_at(self: &Arc<Self>, offset: Offset) -> Result<(), LogError> {
        let _one = self.segment_work("truncate")?;
        self.cut(|| self.plan_restart(offset, false))
    }

    /// As [`Log::truncate_fully_and_start_at`], and keeps what it has in a directory named `*-stray`
    /// beside its own, of which it tells a person. Blocks.
    ///
    /// # Errors
    /// As [`Log::truncate_to`].
    pub fn set_aside_and_start_at(self: &Arc<Self>, offset: Offset) -> Result<(), LogError> {
        let _one = self.segment_work("set aside")?;
        self.cut(|| self.plan_restart(offset, true))
    }

    /// To be called while the segment work is held.
    fn cut(self: &Arc<Self>, plan: impl FnOnce() -> Result<Cut, LogError>) -> Result<(), LogError> {
        lock(&self.inner).is_cutting = true;
        // What retention has taken away may have the names of what comes.
        let planned = self.finish_renaming().and_then(|()| plan());
        let cut = planned.inspect_err(|_| {
            lock(&self.inner).is_cutting = false;
            // What is durable may count as less by now.
            self.enqueue();
        })?;
        self.decide(cut);
        self.finish_cut().inspect_err(|_| self.enqueue())
    }

    fn plan_truncation(&self, offset: Offset) -> Result<Cut, LogError> {
        let mut kept = self.segments.load().to_vec();
        let leaving = kept.split_off(kept.partition_point(|segment| segment.base <= offset).max(1));
        let active = kept.last().cloned().unwrap_or_else(|| self.active());
        let (size, end) = match active.find(offset).during("read", active.path(".log"))? {
            Some((position, header)) => (position, header.base_offset.max(active.base)),
            // In a gap between two batches: the log ends where the one before it does, as recovery
            // will see it.
            None => active
                .files()
                .map_err(ReadError::from)
                .and_then(|files| active.end_of_batches(&files, 0, active.size(), offset))
                .during("read", active.path(".log"))?
                .unwrap_or((0, active.base)),
        };
        // A batch is cut as a whole: the log may end before `offset`, and the recovery point may
        // not lie past its end.
        self.lower_recovery_point(end)?;
        Ok(Cut { kept, size, end, cutting: Cutting { leaving, aside: None, is_anew: false } })
    }

    fn plan_restart(&self, offset: Offset, sets_aside: bool) -> Result<Cut, LogError> {
        if sets_aside {
            self.sync_locked(false).during("sync", &self.path)?;
            self.trim_reserve(&mut lock(&self.inner)).during("trim", &self.path)?;
        }
        // Whatever a crash leaves of it, even nothing, has to be taken for the log.
        self.lower_recovery_point(0)?;
        let mut aside = None;
        if sets_aside {
            let name = (self.topic.clone(), self.partition);
            let dir = make_aside(&self.dir, &name, self.topic_id)?;
            tracing::error!(
                topic = %self.topic,
                partition = self.partition,
                from = self.start_offset(),
                to = self.end_offset(),
                dir = %dir.display(),
                "the leader may have none of the records of this replica, some of which were \
                 committed: they are set aside in this directory and not replicated; when they are \
                 wanted, see docs/offline-partitions.md, else remove it"
            );
            aside = Some(dir);
        }
        let leaving = self.segments.load().to_vec();
        let cutting = Cutting { leaving, aside, is_anew: true };
        Ok(Cut { kept: Vec::new(), size: 0, end: offset, cutting })
    }

    /// From here on the log is what it is cut to. In memory.
    fn decide(&self, Cut { mut kept, size, end, cutting }: Cut) {
        *lock(&self.cutting) = Some(cutting);
        let mut inner = lock(&self.inner);
        let is_anew = kept.is_empty();
        if is_anew {
            // Until its files are made, nobody may make them: another file may have their names.
            let place = Arc::new(Segment::new(self.dir.disk.clone(), &self.path, end, 0));
            place.leave();
            kept.push(place);
        } else if let Some(active) = kept.last() {
            active.set_size(size);
        }
        // Sealed segments that stay still wait for their trim and sync; the last one takes appends
        // again.
        let sealed = kept.split_last().map_or(&[][..], |(_, sealed)| sealed);
        inner.unsynced.retain(|segment| sealed.iter().any(|kept| Arc::ptr_eq(kept, segment)));
        self.segments.store(Arc::new(kept));
        if is_anew {
            // In this order `start <= high watermark <= end` at every moment, wherever `end` lies.
            self.end.fetch_max(end, Ordering::AcqRel);
            self.start.fetch_min(end, Ordering::AcqRel);
            self.high_watermark.store(end, Ordering::Release);
            self.start.store(end, Ordering::Release);
            inner.epochs = Epochs::default();
            self.forget_lost_front();
        }
        lock(&self.cache).clear();
        inner.epochs.truncate_from_end(end);
        inner.epochs_changed = true;
        self.durable.fetch_min(end, Ordering::AcqRel);
        // The batch that holds the log start was cut as a whole.
        self.start.fetch_min(end, Ordering::AcqRel);
        self.high_watermark.fetch_min(end, Ordering::AcqRel);
        self.end.store(end, Ordering::Release);
        // Behind the end: whoever knows of this cut must not know the end of before.
        self.cuts.fetch_add(1, Ordering::AcqRel);
        self.recovery_point.fetch_min(end, Ordering::AcqRel);
    }

    /// Finishes a cut that was decided; each step may be taken again. To be called while the disk
    /// work is held.
    fn finish_cut(&self) -> Result<(), LogError> {
        let mut cutting = lock(&self.cutting);
        let Some(of) = &mut *cutting else { return Ok(()) };
        self.cut_files(of)
            .inspect_err(|error| drop(self.failed("cut", &error.clone().into_io())))?;
        *cutting = None;
        Ok(())
    }

    fn cut_files(&self, cutting: &mut Cutting) -> Result<(), LogError> {
        let (disk, end) = (&self.dir.disk, self.end_offset());
        let mut segments = self.segments.load_full();
        if cutting.is_anew {
            // Nothing is known of the batches in front of it, so nothing of their producers.
            recover::remove_snapshots_past(disk, &self.path, -1)?;
            let new = Arc::new(Segment::new(disk.clone(), &self.path, end, 0));
            new.count_in(&self.dir.open_segments);
            segments = Arc::new(vec![new]);
        }
        // The newest first, each durably before the one in front of it: a crash must not leave a
        // hole, behind which old records would be taken for the log's.
        while let Some(segment) = cutting.leaving.last() {
            self.take_files(segment, cutting.aside.as_deref())?;
            cutting.leaving.pop();
        }
        // Not before: after a crash the log may still be the one that it is about.
        self.remove_lost_before()?;
        let active = segments.last().cloned().unwrap_or_else(|| self.active());
        active
            .cut(end, self.config().index_interval_bytes)
            .during("truncate", active.path(".log"))?;
        let first_timestamp = active.first_timestamp().during("read", active.path(".log"))?;
        let producers = recover::read_producers(disk, &self.path, &segments, end)?;
        let mut inner = lock(&self.inner);
        inner.producers.replace(producers);
        inner.first_timestamp = first_timestamp;
        (inner.dir_changed, inner.file_end, inner.reserve) = (true, active.size(), 0);
        self.segments.store(segments);
        inner.is_cutting = false;
        Ok(())
    }

    /// Removes the files of a segment, or moves them to `aside`, durably. Readers that have them
    /// open go on.
    fn take_files(&self, segment: &Segment, aside: Option<&Path>) -> Result<(), LogError> {
        let disk = &self.dir.disk;
        segment.leave();
        for suffix in SUFFIXES {
            let path = segment.path(suffix);
            if disk.exists(&path).during("look for", &path)? {
                match aside.zip(path.file_name()) {
                    Some((aside, name)) => disk.rename(&path, &aside.join(name)),
                    None => disk.remove_file(&path),
                }
                .during("take away", &path)?;
            }
        }
        for dir in aside.into_iter().chain([&*self.path]) {
            disk.sync_dir(dir).during("sync", dir)?;
        }
        Ok(())
    }

    /// Before a cut: after a crash, a log that ends below what was written of it would be taken for
    /// damaged. Where that cannot be written, nothing is cut and the log is as it was.
    fn lower_recovery_point(&self, offset: Offset) -> Result<(), LogError> {
        let partitions = &self.dir.partitions;
        partitions.lower_end(self, offset)?;
        partitions.lower_cleaned(self, offset)?;
        let before = self.recovery_point.fetch_min(offset, Ordering::AcqRel);
        if offset < before {
            partitions
                .set_recovery_points([self])
                .inspect_err(|_| self.recovery_point.store(before, Ordering::Release))?;
        }
        let before = self.durable.fetch_min(offset, Ordering::AcqRel);
        if offset < before {
            partitions
                .set_positions([self])
                .inspect_err(|_| self.durable.store(before, Ordering::Release))?;
        }
        Ok(())
    }
}

/// What a sync takes from [`Inner`].
struct Work {
    sealed: Vec<Arc<Segment>>,
    epochs: Option<Epochs>,
    dir_changed: bool,
    lacks_metadata: bool,
    /// Only where the recovery point is to move.
    snapshot: Option<Vec<u8>>,
    bytes: u64,
}

/// Whether a segment holds so many bytes of batches that come together.
fn fits_a_segment(
    size: usize,
    batches: usize,
    config: &LogConfig,
    origin: Origin,
) -> Result<(), AppendError> {
    let max = config.segment_bytes;
    // What a leader has was taken by it: a segment of its own holds any batch.
    let is_copy = matches!(origin, Origin::Replication { .. });
    let holds = if batches > 1 || !is_copy { max } else { u64::MAX };
    match size as u64 > holds.min(i32::MAX as u64) {
        true => Err(AppendError::RecordListTooLarge { size, max }),
        false => Ok(()),
    }
}

/// `may_wait`: too many segments wait for the device, and only what cannot be otherwise rolls.
fn must_roll(
    inner: &Inner,
    active: &Segment,
    bytes: u64,
    last: &BatchHeader,
    config: &LogConfig,
    now: TimestampMs,
    may_wait: bool,
) -> bool {
    let size = active.size();
    let is_far = last.last_offset().saturating_sub(active.base) > i64::from(i32::MAX);
    if size == 0 || is_far || size + bytes > i32::MAX as u64 || may_wait {
        return is_far || size > 0 && size + bytes > i32::MAX as u64;
    }
    // As Kafka: with timestamps, by the records' own time, so that a copy of old data rolls alike.
    let waited = match inner.first_timestamp {
        Some(first) if first >= 0 && last.max_timestamp >= 0 => {
            last.max_timestamp.saturating_sub(first)
        }
        _ => now.saturating_sub(inner.opened_ms),
    };
    size + bytes > config.segment_bytes
        || waited > config.segment_ms
        || active.index_full(config.segment_index_bytes)
}
