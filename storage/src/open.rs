//! How the directory of a partition becomes a log again: whose it is, what was known of it, and
//! what a person has decided about records that are lost.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use letterbox_env::{Disk, Fault, OpenMode};
use letterbox_protocol::model::{Offset, TimestampMs, TopicId};
use tokio::time::Instant;

use super::checkpoint::{
    self, ACCEPT_DATA_LOSS, LACKS_RECORDS, LOST_BEFORE, NOT_SYNCED, PARTITION_METADATA,
};
use super::dir::LogDir;
use super::error::{IoContext, LogError};
use super::manager::OfflineLog;
use super::memory::Memory;
use super::partition::{Identity, Loss, NOTHING_LOST};
use super::partition_table::{Kept, Name};
use super::recover::{Recovered, recover};
use super::{Log, LogConfig};

/// After how long a log that was not opened is tried again, the first time.
pub(super) const RETRY_MIN: Duration = Duration::from_secs(1);

/// The directory of a partition.
pub(super) struct Found {
    pub(super) dir: Arc<LogDir>,
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) path: PathBuf,
    /// It was left in order.
    pub(super) clean: bool,
    /// Whose it must be; `None`: whoever's it says it is.
    pub(super) topic_id: Option<TopicId>,
}

/// The directory of a partition, and whose it is.
pub(super) struct Owned {
    pub(super) found: Found,
    pub(super) topic_id: TopicId,
    lacks_metadata: bool,
}

/// A log that was opened.
pub(super) struct Opened {
    pub(super) log: Arc<Log>,
    /// Bytes that this took to read.
    pub(super) bytes_scanned: u64,
    /// Files in its directory that are to be removed.
    pub(super) deleted: Vec<PathBuf>,
}

/// What is wrong, and whose the directory is, as far as that is known.
type Refused = (Option<TopicId>, LogError);

impl Owned {
    /// Whether it was made and no log in it: of a log, at least one file is there from the first
    /// record on. Blocks.
    pub(super) fn was_never_used(&self) -> bool {
        let Found { dir, path, .. } = &self.found;
        let had = dir.partitions.get(&self.found.name()).unwrap_or_default().1.end_offset();
        self.lacks_metadata && had == 0 && holds_no_log(&*dir.disk, path).unwrap_or(false)
    }

    /// Removes it. Blocks.
    pub(super) fn remove(self) -> Result<(), Self> {
        let Found { dir, path, .. } = &self.found;
        if let Err(error) = dir.disk.remove_dir_all(path) {
            tracing::warn!(dir = %path.display(), %error, "could not remove a directory of a \
                partition that was never used");
            return Err(self);
        }
        dir.partitions.forget([(&self.found.name(), Some(self.topic_id))]);
        Ok(())
    }

    /// Opens the log. Blocks.
    pub(super) fn open(
        self,
        memory: Memory,
        config: LogConfig,
        now: TimestampMs,
    ) -> Result<Opened, Box<OfflineLog>> {
        let Self { found, topic_id, lacks_metadata } = self;
        found
            .open_as(topic_id, lacks_metadata, memory, config, now)
            .map_err(|error| Box::new(found.offline(Some(topic_id), error)))
    }
}

impl Found {
    /// Finds out whose it is; `None` when it was being made as the broker ended, and nothing is in
    /// it. Blocks.
    pub(super) fn identify(self) -> Result<Option<Owned>, Box<OfflineLog>> {
        match self.whose() {
            Ok(None) => Ok(None),
            Ok(Some((topic_id, lacks_metadata))) => {
                Ok(Some(Owned { found: self, topic_id, lacks_metadata }))
            }
            Err((topic_id, error)) => Err(Box::new(self.offline(topic_id, error))),
        }
    }

    /// The partition is not served, because of `error`.
    pub(super) fn offline(self, topic_id: Option<TopicId>, error: LogError) -> OfflineLog {
        let Self { dir, topic, partition, path, .. } = self;
        dir.mark_unclean();
        // What the device cannot read is not the partition's fault alone; a file that is not there,
        // too short or another user's is.
        if let LogError::Io { source, .. } = &error
            && Fault::of_read(source) == Fault::LostWrite
        {
            dir.fence("open a log", source);
        }
        let retry = (Instant::now() + RETRY_MIN, RETRY_MIN);
        OfflineLog { topic, partition, topic_id, error, dir, path, retry }
    }

    fn name(&self) -> Name {
        (self.topic.clone(), self.partition)
    }

    /// Whose it is, and whether `partition.metadata` is not there; `None` when nothing is in it,
    /// and it is gone now.
    fn whose(&self) -> Result<Option<(TopicId, bool)>, Refused> {
        let (known_id, known) = self.dir.partitions.get(&self.name()).unwrap_or_default();
        let (disk, path) = (&*self.dir.disk, &self.path);
        let is_there = disk.exists(path).during("look for", path);
        if !is_there.map_err(|error| (known_id, error))? {
            let end_offset = known.end_offset();
            return Err((known_id, LogError::Missing { path: path.clone(), end_offset }));
        }
        let (topic_id, lacks_metadata) =
            match (checkpoint::read_partition_metadata(disk, path), known_id) {
                (Ok(topic_id), _) => (topic_id, false),
                // It was made for another topic, whose row could not be written, or somebody has
                // emptied it: of what the row knows nothing is here.
                (Err(_), Some(_)) if known.end_offset() > 0 && holds_nothing(disk, path) => {
                    disk.remove_dir_all(path)
                        .during("remove", path)
                        .map_err(|error| (known_id, error))?;
                    return Ok(None);
                }
                // It was not synced before the broker ended, so nothing else was.
                (Err(_), Some(topic_id)) => (topic_id, true),
                (Err(error), None) => {
                    let refused = |error| (None, error);
                    let is_new =
                        known.recovery_point == 0 && holds_no_log(disk, path).map_err(refused)?;
                    if !is_new {
                        return Err(refused(error));
                    }
                    disk.remove_dir_all(path).during("remove", path).map_err(refused)?;
                    return Ok(None);
                }
            };
        if let Some(expected) = self.topic_id.filter(|expected| *expected != topic_id) {
            let reason =
                format!("the directory is of topic id {topic_id}, the topic has {expected}");
            return Err((Some(expected), LogError::Malformed { path: path.clone(), reason }));
        }
        Ok(Some((topic_id, lacks_metadata)))
    }

    fn open_as(
        &self,
        topic_id: TopicId,
        lacks_metadata: bool,
        memory: Memory,
        config: LogConfig,
        now: TimestampMs,
    ) -> Result<Opened, LogError> {
        let marker = self.path.join(ACCEPT_DATA_LOSS);
        let accepts_loss = self.dir.disk.exists(&marker).during("look for", &marker)?;
        let mark = self.path.join(NOT_SYNCED);
        let counts_unsynced = self.dir.disk.exists(&mark).during("look for", &mark)?;
        let mark = self.path.join(LACKS_RECORDS);
        let lacks_records =
            accepts_loss || self.dir.disk.exists(&mark).during("look for", &mark)?;
        let lost_before = self.lost_before()?;
        let row = self.dir.partitions.get(&self.name());
        let kept = self.dir.partitions.claim(&self.name(), topic_id);
        let (mut recovered, records_end, kept) = if accepts_loss {
            self.recover_what_is_left(kept)?
        } else {
            let recovered = self.recover_all(&kept)?;
            let end = recovered.end_offset();
            (recovered, end, kept)
        };
        // Kafka, which keeps no topic ids there, notes a log start only where it has to.
        if self.clean && row.is_some_and(|(id, _)| id == Some(topic_id)) {
            self.say_missing_start(kept.log_start, recovered.begins_at());
        }
        let (bytes_scanned, deleted) =
            (recovered.bytes_scanned, std::mem::take(&mut recovered.deleted));
        let loss = match lacks_records {
            true => Loss::Records,
            false if counts_unsynced && !self.clean => Loss::End,
            false => Loss::None,
        };
        let identity = Identity {
            topic: self.topic.clone(),
            topic_id,
            partition: self.partition,
            dir: self.dir.clone(),
            path: self.path.clone(),
            kept,
            lacks_metadata,
            counts_unsynced,
            loss,
            lacks_records,
            lost_before,
        };
        let log = Log::new(identity, recovered, config, memory, now);
        if accepts_loss {
            self.note_loss(&log, records_end, &marker)?;
        }
        Ok(Opened { log: Arc::new(log), bytes_scanned, deleted })
    }

    /// See [`Log::start_for_followers`].
    fn lost_before(&self) -> Result<Offset, LogError> {
        let file = self.path.join(LOST_BEFORE);
        if !self.dir.disk.exists(&file).during("look for", &file)? {
            return Ok(NOTHING_LOST);
        }
        let text = self.dir.disk.read_stored(&file).during("read", &file)?;
        // Where it cannot be read nothing is deleted for it.
        let offset = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        Ok(offset.unwrap_or(Offset::MAX))
    }

    /// Everything that is known to have been there, or nothing.
    fn recover_all(&self, kept: &Kept) -> Result<Recovered, LogError> {
        let (disk, path) = (&self.dir.disk, &self.path);
        let (point, start) = (kept.recovery_point, kept.log_start);
        // An earlier version moved the recovery point there.
        let closed_end = self.clean.then(|| kept.closed_end.unwrap_or(point));
        // Where nothing is known of a log, nothing tells a gap of compaction from a lost end.
        let gaps_end = match kept.end_offset().max(kept.cleaned.unwrap_or(0)) {
            0 => Offset::MAX,
            known => known,
        };
        let recovered = recover(disk, path, point, kept.durable_end, start, closed_end, gaps_end)?;
        let end_offset = recovered.end_offset();
        if start > end_offset {
            return Err(LogError::StartsPastEnd {
                path: path.clone(),
                log_start: start,
                end_offset,
            });
        }
        Ok(recovered)
    }

    /// What is whole, since a person has accepted that the rest is lost, and where it ends. An
    /// offset that was given out is not given to another record: the log goes on behind them.
    fn recover_what_is_left(&self, mut kept: Kept) -> Result<(Recovered, Offset, Kept), LogError> {
        let (disk, path, had) = (&self.dir.disk, &self.path, kept.end_offset());
        if holds_no_log(&**disk, path)? {
            kept.log_start = had;
        }
        (kept.recovery_point, kept.durable_end) = (0, 0);
        let mut recovered = recover(disk, path, 0, 0, kept.log_start, None, Offset::MAX)?;
        let records_end = recovered.end_offset();
        if had > records_end {
            recovered.go_on_at(disk, path, had);
        }
        Ok((recovered, records_end, kept))
    }

    /// The loss was accepted, and is never asked about again: when the marker goes, the device has
    /// the log as it goes on.
    fn note_loss(&self, log: &Log, records_end: Offset, marker: &Path) -> Result<(), LogError> {
        tracing::error!(
            topic = %self.topic,
            partition = self.partition,
            records_end,
            end_offset = log.end_offset(),
            "opened a partition without its lost records, as {ACCEPT_DATA_LOSS} in its directory \
             asks for"
        );
        // Before anything of it is taken for whole.
        let disk = &self.dir.disk;
        let noted = self.path.join(LACKS_RECORDS);
        disk.open(&noted, OpenMode::Create).map(drop).during("make", &noted)?;
        disk.sync_dir(&self.path).during("sync", &self.path)?;
        log.checkpoint().during("sync", &self.path)?;
        self.dir.partitions.set_recovery_points([log])?;
        self.dir.partitions.set_positions([log])?;
        disk.remove_file(marker)
            .and_then(|()| disk.sync_dir(&self.path))
            .and_then(|()| disk.sync_dir(&self.dir.path))
            .during("remove", marker)
    }

    /// Between a stop in order and this start only a person has touched the directory.
    fn say_missing_start(&self, from: Offset, to: Offset) {
        if from < to {
            tracing::warn!(
                topic = %self.topic,
                partition = self.partition,
                from,
                to,
                path = %self.path.display(),
                "records are missing at the start of a log: segments were removed from its \
                 directory while the broker was stopped; readers begin after them"
            );
        }
    }
}

fn holds_nothing(disk: &dyn Disk, path: &Path) -> bool {
    disk.list(path).is_ok_and(|entries| entries.is_empty())
}

/// Whether a partition's directory has nothing in it but what is there before its log.
pub(super) fn holds_no_log(disk: &dyn Disk, path: &Path) -> Result<bool, LogError> {
    let entries = disk.list(path).during("list", path)?;
    let is_of_none = |name: &str| {
        let names = [PARTITION_METADATA, ACCEPT_DATA_LOSS, LACKS_RECORDS, LOST_BEFORE, NOT_SYNCED];
        names.contains(&name) || name.ends_with(".tmp")
    };
    Ok(entries.iter().all(|entry| is_of_none(&entry.name)))
}
