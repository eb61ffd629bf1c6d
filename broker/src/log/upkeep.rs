//! What is done to logs in the background, and their closing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::Instant;

use super::checkpoint::CLEAN_SHUTDOWN;
use super::cleaner::Pass;
use super::dir::LogDir;
use super::error::{IoContext, LogError};
use super::manager::{Doomed, LogManagerOptions, lock};
use super::{Log, LogManager};
use crate::model::TimestampMs;

/// Partitions closed at the same time.
const PARALLEL_MAX: usize = 8;
const IDLE_EVERY: Duration = Duration::from_secs(60);
/// `log.cleaner.backoff.ms`.
const COMPACTION_EVERY: Duration = Duration::from_secs(15);

/// When what is due.
pub(super) struct Upkeep {
    next_checkpoint: Instant,
    next_high_watermarks: Instant,
    next_retention: Instant,
    next_idle: Instant,
    next_compaction: Instant,
}

impl Upkeep {
    pub(super) fn new(options: &LogManagerOptions) -> Self {
        let now = Instant::now();
        Self {
            next_checkpoint: now + options.recovery_point_interval,
            next_high_watermarks: now + options.high_watermark_interval,
            next_retention: now + Duration::from_secs(30),
            next_idle: now + IDLE_EVERY,
            next_compaction: now + COMPACTION_EVERY,
        }
    }
}

impl LogManager {
    /// Upkeep that is due: rolls by time, retention, removal of deleted files, recovery points, high watermarks,
    /// expired producers, idle files. To be called about every second. Its I/O runs off the async threads.
    pub async fn maintain(&self, now: TimestampMs) {
        let mut upkeep = self.upkeep.lock().await;
        let clock = Instant::now();
        let due = |next: &mut Instant, every: Duration| {
            let due = clock >= *next;
            if due {
                *next = clock + every;
            }
            due
        };
        let checkpoint = due(&mut upkeep.next_checkpoint, self.options.recovery_point_interval);
        let high_watermarks = due(&mut upkeep.next_high_watermarks, self.options.high_watermark_interval);
        let retention = due(&mut upkeep.next_retention, self.options.retention_check_interval);
        let idle = due(&mut upkeep.next_idle, IDLE_EVERY);
        for log in self.logs() {
            if log.is_offline() {
                continue;
            }
            if !log.is_checkpoint_due() && !checkpoint && !retention && !idle {
                continue;
            }
            let expiration = self.options.producer_id_expiration_ms;
            let job = log.clone();
            let doomed = self.env.blocking(move || upkeep_of(&job, now, checkpoint, retention, idle, expiration)).await;
            let delay = Duration::from_millis(u64::try_from(log.config().file_delete_delay_ms).unwrap_or(0));
            lock(&self.doomed).extend(doomed.into_iter().map(|path| (clock + delay, log.dir.clone(), path, false)));
        }
        if checkpoint {
            self.write_recovery_points().await;
        }
        if high_watermarks {
            self.checkpoint().await;
        }
        if due(&mut upkeep.next_compaction, COMPACTION_EVERY) {
            self.compact(now).await;
        }
        let due = {
            let mut doomed = lock(&self.doomed);
            let (due, later) = std::mem::take(&mut *doomed).into_iter().partition(|doomed| clock >= doomed.0);
            *doomed = later;
            due
        };
        self.remove(due).await;
    }

    async fn remove(&self, doomed: Vec<Doomed>) {
        self.env
            .blocking(move || {
                for (_, dir, path, is_dir) in doomed {
                    let removed = if is_dir { dir.disk.remove_dir_all(&path) } else { dir.disk.remove_file(&path) };
                    // With a deleted partition its deleted segments are gone already.
                    if let Err(error) = removed
                        && error.kind() != std::io::ErrorKind::NotFound
                    {
                        tracing::warn!(path = %path.display(), %error, "could not remove what was deleted; the next start does");
                    }
                }
            })
            .await;
    }

    /// Compacts, one after the other, the logs that are compacted and dirty enough.
    async fn compact(&self, now: TimestampMs) {
        for log in self.logs().into_iter().filter(|log| log.config().cleanup_policy.compact && !log.is_offline()) {
            let seed = u128::from(self.env.random_u64()) << 64 | u128::from(self.env.random_u64());
            let keys_max = self.options.cleaner_keys_max;
            self.env
                .blocking(move || {
                    let first_dirty = log.dir.partitions.cleaned(&log).clamp(0, log.end_offset());
                    match log.compact(&Pass { seed, keys_max, now, first_dirty }).and_then(|end| end.map_or(Ok(()), |end| log.dir.partitions.set_cleaned(&log, end))) {
                        Ok(()) => {}
                        Err(_) if log.is_gone() => {}
                        Err(error) => tracing::warn!(topic = %log.topic(), partition = log.partition(), %error, "compaction failed; it is tried again"),
                    }
                })
                .await;
        }
    }

    async fn write_recovery_points(&self) {
        self.for_each_dir(|dir, logs| dir.partitions.set_recovery_points(logs.iter().map(|log| &**log))).await;
    }

    /// Writes the high watermarks and log start offsets of every directory.
    pub async fn checkpoint(&self) {
        self.for_each_dir(|dir, logs| dir.partitions.set_positions(logs.iter().map(|log| &**log))).await;
    }

    pub(super) async fn for_each_dir(&self, work: impl Fn(&LogDir, &[Arc<Log>]) -> Result<(), LogError> + Copy + Send + 'static) {
        for dir in self.dirs.iter().filter(|dir| dir.offline().is_none()) {
            let (dir, logs) = (dir.clone(), self.logs().into_iter().filter(|log| Arc::ptr_eq(&log.dir, dir)).collect::<Vec<_>>());
            self.env
                .blocking(move || {
                    if let Err(error) = work(&dir, &logs) {
                        tracing::warn!(dir = %dir.path.display(), %error, "could not write a checkpoint; the last one stays");
                    }
                })
                .await;
        }
    }

    /// Syncs and closes every log, writes the checkpoints, and marks the directories as left in order. To be
    /// called after [`LogManager::run_syncers`] has ended. Appends are refused from then on.
    ///
    /// # Errors
    /// `Offline` when a directory could not be closed in order; the others are.
    pub async fn close(&self) -> Result<(), LogError> {
        let closing = self.logs().into_iter().map(|log| self.env.blocking(move || drop(log.close())));
        futures::stream::iter(closing).buffer_unordered(PARALLEL_MAX).collect::<Vec<()>>().await;
        self.checkpoint().await;
        let mut result = Ok(());
        for dir in self.dirs.clone() {
            if let Some(reason) = dir.offline() {
                result = Err(LogError::Offline { dir: dir.path.clone(), reason });
                continue;
            }
            let logs: Vec<_> = self.logs().into_iter().filter(|log| Arc::ptr_eq(&log.dir, &dir)).collect();
            let closed = self
                .env
                .blocking(move || {
                    dir.partitions.set_recovery_points(logs.iter().map(|log| &**log))?;
                    let marker = dir.path.join(CLEAN_SHUTDOWN);
                    dir.disk.write_atomically(&marker, br#"{"version":0,"brokerEpoch":-1}"#).during("write", &marker)
                })
                .await;
            result = result.and(closed);
        }
        result
    }
}

fn upkeep_of(log: &Log, now: TimestampMs, checkpoint: bool, retention: bool, idle: bool, expiration_ms: i64) -> Vec<PathBuf> {
    if let Err(error) = log.roll_if_old(now) {
        drop(log.dir.write_failed(&error));
    }
    if checkpoint {
        log.expire_producers(now, expiration_ms);
    }
    // A failure has fenced the directory and said so.
    let due = log.is_checkpoint_due() || checkpoint && log.bytes_since_checkpoint() > 0;
    if due
        && log.checkpoint().is_ok()
        && let Err(error) = log.dir.partitions.set_recovery_points([log])
    {
        tracing::warn!(dir = %log.dir.path.display(), %error, "could not write a recovery point; the last one stays");
    }
    if idle {
        log.close_idle();
    }
    let doomed = if retention { log.apply_retention(now) } else { Ok(Vec::new()) };
    doomed.unwrap_or_else(|error| {
        tracing::warn!(topic = %log.topic(), partition = log.partition(), %error, "retention failed; it is tried again");
        Vec::new()
    })
}
