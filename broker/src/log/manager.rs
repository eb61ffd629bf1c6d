//! All logs of a broker: opening, making, deleting. Their upkeep and closing is in `upkeep`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use letterbox_env::{Disk, Env, FileRef};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::checkpoint::{self, CLEAN_SHUTDOWN, CLEANER_OFFSETS, HIGH_WATERMARKS, LOG_STARTS, Offsets, RECOVERY_POINTS};
use super::dir::LogDir;
use super::error::{IoContext, LogError};
use super::partition::Identity;
use super::recover::recover;
use super::tail_cache::CacheBudget;
use super::upkeep::Upkeep;
use super::{DurabilityObserver, Log, LogConfig, sync};
use crate::model::TopicId;

/// The metadata quorum's directory, which may lie in a log directory and holds no partition.
pub const QUORUM_DIR: &str = "__cluster_metadata-0";

/// Partitions opened or closed at the same time.
const PARALLEL_MAX: usize = 8;
const PROGRESS_EVERY: usize = 1000;

/// How the logs are kept.
#[derive(Clone, Debug)]
pub struct LogManagerOptions {
    /// `log.dirs`; new partitions go where there are fewest.
    pub dirs: Vec<PathBuf>,
    /// In force for a log that was opened until [`Log::set_config`].
    pub default_config: LogConfig,
    /// Bytes in the tail caches of all logs.
    pub tail_cache_bytes: usize,
    /// Bytes in the tail cache of one log.
    pub tail_cache_bytes_per_log: usize,
    /// A log directory takes no appends while less than this is free.
    pub reserve_bytes: u64,
    /// Keys that compaction remembers at once, at some 40 bytes each (`log.cleaner.dedupe.buffer.size`).
    pub cleaner_keys_max: usize,
    /// `producer.id.expiration.ms`.
    pub producer_id_expiration_ms: i64,
    /// `log.retention.check.interval.ms`.
    pub retention_check_interval: Duration,
    /// `log.flush.offset.checkpoint.interval.ms`.
    pub recovery_point_interval: Duration,
    /// `replica.high.watermark.checkpoint.interval.ms`.
    pub high_watermark_interval: Duration,
}

impl LogManagerOptions {
    /// Kafka's defaults over these directories.
    #[must_use]
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        Self {
            dirs,
            default_config: LogConfig::default(),
            tail_cache_bytes: 24 << 20,
            tail_cache_bytes_per_log: 2 << 20,
            reserve_bytes: 64 << 20,
            cleaner_keys_max: 1 << 20,
            producer_id_expiration_ms: 24 * 3_600_000,
            retention_check_interval: Duration::from_secs(300),
            recovery_point_interval: Duration::from_secs(60),
            high_watermark_interval: Duration::from_secs(5),
        }
    }
}

/// A partition directory that was not opened.
#[derive(Clone, Debug)]
pub struct OfflineLog {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's index.
    pub partition: i32,
    /// The topic's id, when `partition.metadata` could be read.
    pub topic_id: Option<TopicId>,
    /// Why.
    pub error: LogError,
}

type Key = (TopicId, i32);

/// All logs of a broker.
pub struct LogManager {
    was_clean: bool,
    pub(super) env: Env,
    pub(super) options: LogManagerOptions,
    pub(super) dirs: Vec<Arc<LogDir>>,
    _locks: Vec<FileRef>,
    budget: Arc<CacheBudget>,
    logs: Mutex<BTreeMap<Key, Arc<Log>>>,
    offline: Mutex<Vec<OfflineLog>>,
    /// One `create`, `delete` or stray mark at a time.
    changing: tokio::sync::Mutex<()>,
    pub(super) upkeep: tokio::sync::Mutex<Upkeep>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory found at the start.
struct Found {
    dir: Arc<LogDir>,
    topic: Arc<str>,
    partition: i32,
    path: PathBuf,
    recovery_point: i64,
    start: i64,
    high_watermark: i64,
    clean: bool,
}

impl LogManager {
    /// Opens every partition directory. One that cannot be opened is listed in [`LogManager::offline_logs`].
    ///
    /// # Errors
    /// `Locked`; `Malformed` checkpoints; `Io` of a log directory itself.
    pub async fn open(env: Env, options: LogManagerOptions) -> Result<Arc<Self>, LogError> {
        let (disk, paths) = (env.disk.clone(), options.dirs.clone());
        let opened = env.blocking(move || paths.iter().map(|path| open_dir(&disk, path)).collect::<Result<Vec<_>, _>>()).await?;
        let (mut dirs, mut locks, mut found) = (Vec::new(), Vec::new(), Vec::new());
        let mut was_clean = true;
        for (dir, lock, logs, clean) in opened {
            was_clean &= clean;
            dirs.push(dir);
            locks.push(lock);
            found.extend(logs);
        }
        let upkeep = Upkeep::new(&options);
        let budget = Arc::new(CacheBudget::new(options.tail_cache_bytes, options.tail_cache_bytes_per_log));
        let manager = Self {
            was_clean,
            env,
            options,
            dirs,
            _locks: locks,
            budget,
            logs: Mutex::default(),
            offline: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            upkeep: tokio::sync::Mutex::new(upkeep),
        };
        manager.open_logs(found).await;
        Ok(Arc::new(manager))
    }

    async fn open_logs(&self, found: Vec<Found>) {
        let total = found.len();
        let mut opening = futures::stream::iter(found.into_iter().map(|found| self.open_log(found))).buffer_unordered(PARALLEL_MAX);
        let (mut done, mut scanned) = (0, 0);
        while let Some(result) = opening.next().await {
            done += 1;
            match result {
                Ok((log, bytes)) => {
                    scanned += bytes;
                    if let Some(twice) = lock(&self.logs).insert((log.topic_id(), log.partition()), log) {
                        tracing::error!(dir = %twice.path.display(), "two log directories hold the same partition");
                    }
                }
                Err(offline) => {
                    tracing::error!(topic = %offline.topic, partition = offline.partition, error = %offline.error, "partition is offline: its log was not opened");
                    lock(&self.offline).push(offline);
                }
            }
            if done % PROGRESS_EVERY == 0 || done == total {
                tracing::info!(done, total, bytes_scanned = scanned, "opened logs");
            }
        }
    }

    async fn open_log(&self, found: Found) -> Result<(Arc<Log>, u64), OfflineLog> {
        let (budget, config, now) = (self.budget.clone(), self.options.default_config.clone(), self.env.clock.wall_ms());
        self.env
            .blocking(move || {
                let Found { dir, topic, partition, path, recovery_point, start, high_watermark, clean } = found;
                let offline = |topic_id, error| {
                    // What the device cannot read is not the partition's fault alone; a file that is not there or too short is.
                    if let LogError::Io { source, .. } = &error
                        && !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
                    {
                        dir.fence("open a log", source);
                    }
                    OfflineLog { topic: topic.clone(), partition, topic_id, error }
                };
                let topic_id = checkpoint::read_partition_metadata(&*dir.disk, &path).map_err(|error| offline(None, error))?;
                let recovered = recover(&dir.disk, &path, recovery_point, start.max(recovery_point.min(start)), clean)
                    .map_err(|error| offline(Some(topic_id), error))?;
                let scanned = recovered.bytes_scanned;
                let identity = Identity { topic: topic.clone(), topic_id, partition, dir, path, start, high_watermark, recovery_point };
                let log = Log::new(identity, recovered, config, budget, now);
                Ok((Arc::new(log), scanned))
            })
            .await
    }

    /// Whether the last run closed every log directory.
    #[must_use]
    pub fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// Every open log, by topic id and partition.
    #[must_use]
    pub fn logs(&self) -> Vec<Arc<Log>> {
        lock(&self.logs).values().cloned().collect()
    }

    /// The log of a partition.
    #[must_use]
    pub fn get(&self, topic_id: TopicId, partition: i32) -> Option<Arc<Log>> {
        lock(&self.logs).get(&(topic_id, partition)).cloned()
    }

    /// Partitions whose directories are there but were not opened.
    #[must_use]
    pub fn offline_logs(&self) -> Vec<OfflineLog> {
        lock(&self.offline).clone()
    }

    /// Completes, with the reason of one of them, when no log directory is left that could be written to. A broker ends then, as
    /// Kafka's does: somebody else may lead its partitions, and a restart looks at the disk anew.
    pub async fn until_all_offline(&self) -> String {
        let mut said = String::new();
        for dir in &self.dirs {
            said = format!("{}: {}", dir.path().display(), dir.until_offline().await);
        }
        said
    }

    /// The log directories.
    #[must_use]
    pub fn dirs(&self) -> &[Arc<LogDir>] {
        &self.dirs
    }

    /// Makes the log of a partition, in the directory that has the fewest.
    ///
    /// # Errors
    /// `Exists`; `NoLogDir`; `Io`.
    pub async fn create(&self, topic: &str, topic_id: TopicId, partition: i32, config: LogConfig) -> Result<Arc<Log>, LogError> {
        let _one = self.changing.lock().await;
        let name = format!("{topic}-{partition}");
        let taken =
            name == QUORUM_DIR || lock(&self.offline).iter().any(|offline| &*offline.topic == topic && offline.partition == partition);
        if taken || self.logs().iter().any(|log| (&**log.topic(), log.partition()) == (topic, partition)) {
            return Err(LogError::Exists(name));
        }
        let count = |dir: &Arc<LogDir>| self.logs().iter().filter(|log| Arc::ptr_eq(&log.dir, dir)).count();
        let dir =
            self.dirs.iter().filter(|dir| dir.check_writable().is_ok()).min_by_key(|dir| count(dir)).cloned().ok_or(LogError::NoLogDir)?;
        let (topic, budget, now): (Arc<str>, _, _) = (Arc::from(topic), self.budget.clone(), self.env.clock.wall_ms());
        let log = self
            .env
            .blocking(move || {
                let path = dir.path.join(&name);
                dir.disk.create_dir_all(&path).during("create", &path)?;
                // A log that was deleted under this name must not lend its recovery point.
                dir.update_recovery_points([((String::from(&*topic), partition), Some(0))].into())?;
                dir.set_cleaned((topic.to_string(), partition), None)?;
                checkpoint::write_partition_metadata(&*dir.disk, &path, topic_id)?;
                let recovered = recover(&dir.disk, &path, 0, 0, false)?;
                dir.disk.sync_dir(&dir.path).during("sync", &dir.path)?;
                let identity = Identity { topic, topic_id, partition, dir, path, start: 0, high_watermark: 0, recovery_point: 0 };
                Ok(Arc::new(Log::new(identity, recovered, config, budget, now)))
            })
            .await?;
        lock(&self.logs).insert((topic_id, partition), log.clone());
        Ok(log)
    }

    /// Deletes a log: it is renamed and gone for everybody at once, its files go `file.delete.delay.ms` later.
    ///
    /// # Errors
    /// `NotFound`; `Io`.
    pub async fn delete(&self, topic_id: TopicId, partition: i32) -> Result<(), LogError> {
        let (log, path) = self.take_away(topic_id, partition, "delete").await?;
        let delay = Duration::from_millis(u64::try_from(log.config().file_delete_delay_ms).unwrap_or(0));
        self.upkeep.lock().await.doomed.push((Instant::now() + delay, log.dir.clone(), path, true));
        Ok(())
    }

    /// Sets a log aside that no metadata know of: renamed to `*-stray`, kept until a person removes it.
    ///
    /// # Errors
    /// `NotFound`; `Io`.
    pub async fn mark_stray(&self, topic_id: TopicId, partition: i32) -> Result<(), LogError> {
        self.take_away(topic_id, partition, "stray").await.map(drop)
    }

    async fn take_away(&self, topic_id: TopicId, partition: i32, suffix: &'static str) -> Result<(Arc<Log>, PathBuf), LogError> {
        let _one = self.changing.lock().await;
        let log = self.get(topic_id, partition).ok_or(LogError::NotFound)?;
        log.stop();
        let renamed = log.clone();
        let path = self
            .env
            .blocking(move || {
                let dir = &renamed.dir;
                let mut to = String::from(&**renamed.topic());
                // Kafka's form, within what a file name may have: topic, partition, id, suffix.
                let tail = format!("-{partition}.{}-{suffix}", topic_id.simple());
                while to.len() + tail.len() > 255 {
                    to.pop();
                }
                let to = dir.path.join(to + &tail);
                dir.disk.rename(&renamed.path, &to).during("rename", &renamed.path)?;
                dir.disk.sync_dir(&dir.path).during("sync", &dir.path)?;
                dir.update_recovery_points([((renamed.topic().to_string(), partition), None)].into())?;
                Ok(to)
            })
            .await?;
        lock(&self.logs).remove(&(topic_id, partition));
        Ok((log, path))
    }

    /// Group commit for every directory: runs until `stop`, syncs what is left, and ends.
    pub async fn run_syncers(self: Arc<Self>, observer: Arc<dyn DurabilityObserver>, stop: CancellationToken) {
        let loops = self
            .dirs
            .iter()
            .map(|dir| sync::run(self.env.clone(), dir.clone(), self.options.reserve_bytes, observer.clone(), stop.clone()));
        futures::future::join_all(loops).await;
    }
}

fn open_dir(disk: &Arc<dyn Disk>, path: &Path) -> Result<(Arc<LogDir>, FileRef, Vec<Found>, bool), LogError> {
    disk.create_dir_all(path).during("create", path)?;
    let lock = disk.lock(&path.join(".lock")).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => LogError::Locked(path.into()),
        _ => LogError::Io { action: "lock", path: path.into(), source: Arc::new(error) },
    })?;
    let marker = path.join(CLEAN_SHUTDOWN);
    let clean = disk.exists(&marker).during("look for", &marker)?;
    let recovery_points = checkpoint::read_offsets(&**disk, &path.join(RECOVERY_POINTS))?;
    let starts = checkpoint::read_offsets(&**disk, &path.join(LOG_STARTS))?;
    let high_watermarks = checkpoint::read_offsets(&**disk, &path.join(HIGH_WATERMARKS))?;
    let cleaned = checkpoint::read_offsets(&**disk, &path.join(CLEANER_OFFSETS))?;
    if clean {
        disk.remove_file(&marker).and_then(|()| disk.sync_dir(path)).during("remove", &marker)?;
    }
    let dir = Arc::new(LogDir::new(disk.clone(), path.into(), recovery_points.clone(), cleaned));
    let mut found = Vec::new();
    for entry in disk.list(path).during("list", path)?.into_iter().filter(|entry| entry.is_dir) {
        if entry.name == QUORUM_DIR {
            continue;
        }
        if entry.name.ends_with("-delete") {
            disk.remove_dir_all(&path.join(&entry.name)).during("remove", path.join(&entry.name))?;
            continue;
        }
        let Some((topic, partition)) =
            entry.name.rsplit_once('-').and_then(|(topic, partition)| Some((topic, partition.parse::<i32>().ok().filter(|p| *p >= 0)?)))
        else {
            continue;
        };
        let key = (topic.to_owned(), partition);
        let of = |offsets: &Offsets| offsets.get(&key).copied().unwrap_or(0);
        if !disk.exists(&path.join(&entry.name).join(checkpoint::PARTITION_METADATA)).during("look into", path.join(&entry.name))? {
            // A crash while it was being made: nothing was ever acknowledged from it.
            if of(&recovery_points) == 0
                && disk.list(&path.join(&entry.name)).during("list", path.join(&entry.name))?.iter().all(|file| file.name.ends_with(".tmp"))
            {
                disk.remove_dir_all(&path.join(&entry.name)).during("remove", path.join(&entry.name))?;
                continue;
            }
        }
        found.push(Found {
            dir: dir.clone(),
            topic: topic.into(),
            partition,
            path: path.join(&entry.name),
            recovery_point: of(&recovery_points),
            start: of(&starts),
            high_watermark: of(&high_watermarks),
            clean,
        });
    }
    Ok((dir, lock, found, clean))
}
