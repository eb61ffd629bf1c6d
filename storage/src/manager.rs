//! All logs of a broker, and the start with all of them. How one is opened is in `open`; how they are
//! made and deleted in `lifecycle`; their upkeep and closing in `upkeep`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
pub(super) use letterbox_env::panics::lock;
use letterbox_env::{Disk, Env, FileRef, with_causes};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::checkpoint::CLEAN_SHUTDOWN;
use super::dir::LogDir;
use super::error::{IoContext, LogError};
use super::fence::Fence;
use super::lifecycle::{deleted_name, partition_name};
use super::memory::Memory;
use super::open::{Found, Opened, Owned, holds_no_log};
use super::open_segments::Descriptors;
use super::partition_table::{Name, PartitionTable};
use super::producers::ProducerMemory;
use super::progress::OpenProgress;
use super::tail_cache::CacheBudget;
use super::upkeep::Doomed;
use super::{DurabilityObserver, Log, LogConfig, sync};
use letterbox_protocol::model::TopicId;
use letterbox_protocol::topics::KAFKA_METADATA_DIR;

/// Partitions opened or closed at the same time.
const PARALLEL_MAX: usize = 8;
const PROGRESS_EVERY: usize = 1000;
/// What a key that compaction remembers takes of memory.
const KEY_BYTES: usize = 40;

/// How the logs are kept.
#[derive(Clone, Debug)]
pub struct LogManagerOptions {
    /// `log.dirs`; new partitions go where there are fewest.
    pub dirs: Vec<PathBuf>,
    /// Those of `dirs` that were found to be unusable before, and why; they are not tried.
    pub unusable: BTreeMap<PathBuf, Arc<std::io::Error>>,
    /// In force for a log that was opened until [`Log::set_config`].
    pub default_config: LogConfig,
    /// Bytes in the tail caches of all logs.
    pub tail_cache_bytes: usize,
    /// Bytes in the tail cache of one log.
    pub tail_cache_bytes_per_log: usize,
    /// `log.dir.reserve.bytes`: a log directory takes no appends of clients while less than this is
    /// free. `None`: 64 MiB, or a sixteenth of a smaller file system.
    pub reserve_bytes: Option<u64>,
    /// Keys that compaction remembers at once, at some 40 bytes each
    /// (`log.cleaner.dedupe.buffer.size`).
    pub cleaner_keys_max: usize,
    /// What idempotent producers that are remembered may take of memory.
    pub producers_memory_bytes: usize,
    /// `producer.id.expiration.ms`.
    pub producer_id_expiration_ms: i64,
    /// `log.retention.check.interval.ms`.
    pub retention_check_interval: Duration,
    /// `log.cleaner.backoff.ms`: how often it is looked whether a log is to be compacted.
    pub cleaner_backoff: Duration,
    /// `log.flush.offset.checkpoint.interval.ms`.
    pub recovery_point_interval: Duration,
    /// `replica.high.watermark.checkpoint.interval.ms`.
    pub high_watermark_interval: Duration,
    /// Files that the process may have open: of the segments that take no more appends, only a part
    /// is kept open.
    pub descriptors: usize,
    /// Where the start tells how far it is.
    pub progress: Arc<OpenProgress>,
}

impl LogManagerOptions {
    /// Kafka's defaults over these directories.
    #[must_use]
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        Self {
            dirs,
            unusable: BTreeMap::new(),
            default_config: LogConfig::default(),
            tail_cache_bytes: 24 << 20,
            tail_cache_bytes_per_log: 2 << 20,
            reserve_bytes: None,
            cleaner_keys_max: 1 << 20,
            producers_memory_bytes: 128 << 20,
            producer_id_expiration_ms: 24 * 3_600_000,
            retention_check_interval: Duration::from_secs(300),
            cleaner_backoff: Duration::from_secs(15),
            recovery_point_interval: Duration::from_secs(60),
            high_watermark_interval: Duration::from_secs(5),
            descriptors: usize::MAX,
            progress: Arc::default(),
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
    pub(super) dir: Arc<LogDir>,
    pub(super) path: PathBuf,
    /// When it is tried again, and how long after that.
    pub(super) retry: (Instant, Duration),
}

pub(super) type Key = (TopicId, i32);

/// All logs of a broker.
pub struct LogManager {
    was_clean: bool,
    pub(super) env: Env,
    pub(super) options: LogManagerOptions,
    pub(super) dirs: Vec<Arc<LogDir>>,
    _locks: Vec<FileRef>,
    pub(super) memory: Memory,
    pub(super) logs: Mutex<BTreeMap<Key, Arc<Log>>>,
    pub(super) offline: Mutex<BTreeMap<Name, OfflineLog>>,
    /// Logs come or go one call at a time.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// Renamed files and directories, and when they go.
    pub(super) doomed: Arc<Mutex<Vec<Doomed>>>,
    pub(super) descriptors: Descriptors,
    /// Keys that compaction has in memory.
    pub(super) compaction_keys: Arc<AtomicUsize>,
    /// [`LogManagerOptions::cleaner_backoff`] as it is now.
    pub(super) cleaner_backoff: watch::Sender<Duration>,
}

impl Drop for LogManager {
    /// A queued log and its directory refer to each other; without a manager nobody takes it out of
    /// the queue.
    fn drop(&mut self) {
        for dir in &self.dirs {
            drop(dir.take_dirty());
        }
    }
}

impl LogManager {
    /// Opens every partition directory. One that cannot be opened is listed in
    /// [`LogManager::offline_logs`]. A log directory that cannot be used is offline until the next
    /// start, as Kafka's is.
    ///
    /// # Errors
    /// `Locked`; an `Io` that passes; why the first directory cannot be used, when none can.
    pub async fn open(env: Env, options: LogManagerOptions) -> Result<Arc<Self>, LogError> {
        let (disk, paths, unusable) =
            (env.disk.clone(), options.dirs.clone(), options.unusable.clone());
        let descriptors = Descriptors::new(options.descriptors);
        let (dirs, shared) = (options.dirs.len(), descriptors.clone());
        let open = move |path: &PathBuf| match unusable.get(path) {
            Some(source) => {
                Err(LogError::Io { action: "use", path: path.clone(), source: source.clone() })
            }
            None => open_dir(&disk, path, dirs, shared.clone()),
        };
        let opened = env.blocking(move || paths.iter().map(open).collect::<Vec<_>>()).await;
        let (mut dirs, mut locks, mut found) = (Vec::new(), Vec::new(), Vec::new());
        let mut doomed = Vec::new();
        let mut was_clean = true;
        let mut first_error = None;
        for (path, opened) in options.dirs.iter().zip(opened) {
            match opened {
                Ok(opened) => {
                    was_clean &= opened.clean;
                    doomed.extend(
                        opened
                            .deleted
                            .into_iter()
                            .map(|path| Doomed::after(0, opened.dir.clone(), path, true)),
                    );
                    dirs.push(opened.dir);
                    locks.push(opened.lock);
                    found.extend(opened.found);
                }
                Err(error) if matches!(error, LogError::Locked(_)) || error.fault().is_state() => {
                    return Err(error);
                }
                Err(error) => {
                    dirs.push(Arc::new(LogDir::unusable(&env.disk, path, &error)));
                    first_error.get_or_insert(error);
                }
            }
        }
        if let Some(error) = first_error.filter(|_| locks.is_empty()) {
            return Err(error);
        }
        let (all, each) = (options.tail_cache_bytes, options.tail_cache_bytes_per_log);
        let memory = Memory {
            cache: Arc::new(CacheBudget::new(all, each)),
            producers: Arc::new(ProducerMemory::new(options.producers_memory_bytes)),
        };
        let manager = Self {
            was_clean,
            env,
            cleaner_backoff: watch::Sender::new(options.cleaner_backoff),
            options,
            dirs,
            _locks: locks,
            memory,
            logs: Mutex::default(),
            offline: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            doomed: Arc::new(Mutex::new(doomed)),
            descriptors,
            compaction_keys: Arc::default(),
        };
        manager.open_logs(found).await;
        Ok(Arc::new(manager))
    }

    /// Changes [`LogManagerOptions::cleaner_backoff`]; the wait that goes on begins anew.
    pub fn set_cleaner_backoff(&self, backoff: Duration) {
        self.cleaner_backoff.send_if_modified(|now| std::mem::replace(now, backoff) != backoff);
    }

    /// Opens what is the only directory of its partition.
    async fn open_logs(&self, found: Vec<Found>) {
        let mut owned: BTreeMap<Key, Vec<Owned>> = BTreeMap::new();
        let mut looking = futures::stream::iter(
            found.into_iter().map(|found| self.env.blocking(move || found.identify())),
        )
        .buffer_unordered(PARALLEL_MAX);
        while let Some(result) = looking.next().await {
            match result {
                Ok(None) => {}
                Ok(Some(one)) => {
                    owned.entry((one.topic_id, one.found.partition)).or_default().push(one);
                }
                Err(offline) => self.set_offline(*offline),
            }
        }
        let (mut single, total) = (Vec::new(), owned.len());
        for mut copies in owned.into_values() {
            if copies.len() > 1 {
                copies = self.env.blocking(|| without_unused(copies)).await;
            }
            match <[Owned; 1]>::try_from(copies) {
                Ok([one]) => single.push(one),
                Err(copies) => self.set_twice(copies),
            }
        }
        let (mut done, mut scanned) = (total - single.len(), 0);
        self.options.progress.begin(total);
        let mut opening = futures::stream::iter(single.into_iter().map(|one| self.open_log(one)))
            .buffer_unordered(PARALLEL_MAX);
        while let Some(result) = opening.next().await {
            done += 1;
            self.options.progress.set_done(done);
            match result {
                Ok(opened) => {
                    scanned += opened.bytes_scanned;
                    self.take_in(opened);
                }
                Err(offline) => self.set_offline(*offline),
            }
            if done % PROGRESS_EVERY == 0 || done == total {
                tracing::info!(done, total, bytes_scanned = scanned, "opened logs");
            }
        }
        self.for_each_dir(|dir, _| dir.partitions.write_changed()).await;
    }

    /// From now on the log is served.
    pub(super) fn take_in(&self, opened: Opened) -> Arc<Log> {
        let Opened { log, deleted, .. } = opened;
        let doomed = |path| Doomed::after(0, log.dir.clone(), path, false);
        lock(&self.doomed).extend(deleted.into_iter().map(doomed));
        lock(&self.logs).insert((log.topic_id(), log.partition()), log.clone());
        log
    }

    fn set_offline(&self, offline: OfflineLog) {
        tracing::error!(
            topic = %offline.topic,
            partition = offline.partition,
            error = with_causes(&offline.error),
            "partition is offline: its log was not opened"
        );
        lock(&self.offline).insert((offline.topic.clone(), offline.partition), offline);
    }

    /// Notes that none of these directories of one partition is served.
    fn set_twice(&self, copies: Vec<Owned>) {
        let paths: Vec<_> = copies.iter().map(|copy| copy.found.path.clone()).collect();
        for Owned { found, topic_id, .. } in copies {
            let error = LogError::Twice { paths: paths.clone() };
            let mut offline = found.offline(Some(topic_id), error);
            offline.retry.0 = Instant::now();
            self.set_offline(offline);
        }
    }

    /// As [`Owned::open`].
    pub(super) async fn open_log(&self, owned: Owned) -> Result<Opened, Box<OfflineLog>> {
        let (memory, config) = (self.memory.clone(), self.options.default_config.clone());
        let now = self.env.clock.wall_ms();
        self.env.blocking(move || owned.open(memory, config, now)).await
    }

    /// Whether the last run closed the log directory `dir`, as far as can be told.
    #[must_use]
    pub fn is_left_in_order(disk: &dyn Disk, dir: &Path) -> bool {
        disk.exists(&dir.join(CLEAN_SHUTDOWN)).unwrap_or(false)
    }

    /// Whether the last run closed every log directory.
    #[must_use]
    pub fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// The partitions whose logs are somewhere and not open: by name, and by topic id where that is
    /// known. What is in a log directory that was not read is not among them.
    #[must_use]
    pub fn not_open(&self) -> Vec<(Arc<str>, Option<TopicId>, i32)> {
        let offline = self.offline_logs().into_iter();
        let mut all: Vec<_> = offline.map(|log| (log.topic, log.topic_id, log.partition)).collect();
        let rows = self.dirs.iter().flat_map(|dir| dir.partitions.all());
        let missing = rows.filter(|((_, index), id)| self.get(*id, *index).is_none());
        all.extend(missing.map(|((topic, index), id)| (topic, Some(id), index)));
        all
    }

    /// Whether a log directory was not read, so that it is not known what lies there.
    #[must_use]
    pub fn has_unread(&self) -> bool {
        self.dirs.iter().any(|dir| dir.partitions.is_unread())
    }

    /// Whether every log directory that was read had the list of its partitions: what is nowhere was
    /// never made there.
    #[must_use]
    pub fn had_lists(&self) -> bool {
        self.dirs.iter().all(|dir| dir.partitions.is_unread() || dir.partitions.had_list())
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
        lock(&self.offline).values().cloned().collect()
    }

    /// Completes, with the reason of one of them, when no log directory is left that could be
    /// written to. A broker ends then, as Kafka's does: somebody else may lead its partitions, and
    /// a restart looks at the disk anew.
    pub async fn until_all_offline(&self) -> String {
        let mut said = String::new();
        for dir in &self.dirs {
            said = format!("{}: {}", dir.path().display(), dir.until_offline().await);
        }
        said
    }

    /// Why no log directory takes records of clients, a line for each; `None` while one does.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        self.dirs.iter().map(|dir| dir.refusal().map(|why| why + "\n")).collect()
    }

    /// Which log directories hold up what is written to them, a line for each ([`LogDir::held_up`]).
    #[must_use]
    pub fn held_up(&self) -> String {
        self.dirs.iter().filter_map(|dir| Some(dir.held_up()? + "\n")).collect()
    }

    /// Bytes in the tail caches of all logs.
    #[must_use]
    pub fn tail_cache_bytes(&self) -> usize {
        self.memory.cache.used()
    }

    /// Files that answers keep open until they are read.
    #[must_use]
    pub fn answer_files(&self) -> usize {
        self.descriptors.answers.open()
    }

    /// Bytes of the keys that compaction has in memory.
    #[must_use]
    pub fn compaction_bytes(&self) -> usize {
        self.compaction_keys.load(Ordering::Relaxed).saturating_mul(KEY_BYTES)
    }

    /// Idempotent producers with remembered state, counted once for each partition; the bytes that
    /// they take; and how many batches of new ones were refused for lack of room.
    #[must_use]
    pub fn producers_memory(&self) -> (usize, usize, u64) {
        let producers = &self.memory.producers;
        (producers.known(), producers.used(), producers.refused())
    }

    /// The log directories.
    #[must_use]
    pub fn dirs(&self) -> &[Arc<LogDir>] {
        &self.dirs
    }

    /// Makes the log starts of these logs durable: what was deleted stays deleted after a crash.
    ///
    /// # Errors
    /// The file system's own: after a crash the logs may begin where they began before.
    pub async fn keep_log_starts(&self, logs: Vec<Arc<Log>>) -> Result<(), LogError> {
        for dir in &self.dirs {
            let (dir, logs) = (
                dir.clone(),
                logs.iter().filter(|log| Arc::ptr_eq(&log.dir, dir)).cloned().collect::<Vec<_>>(),
            );
            if !logs.is_empty() {
                let keep = move || {
                    // A log start past what the device has would be past the end after a power cut.
                    let is_ahead = |log: &&Arc<Log>| log.start_offset() > log.synced_end();
                    for log in logs.iter().filter(is_ahead).filter(|log| !log.is_gone()) {
                        log.sync().during("sync", &log.path)?;
                    }
                    dir.partitions.set_positions(logs.iter().map(|log| &**log))?;
                    logs.iter().try_for_each(|log| log.keep_lost_front())
                };
                self.env.urgent(keep).await?;
            }
        }
        Ok(())
    }

    /// Group commit for every directory: runs until `stop`, syncs what is left, and ends.
    pub async fn run_syncers(
        self: Arc<Self>,
        observer: Arc<dyn DurabilityObserver>,
        stop: CancellationToken,
    ) {
        let loops = self.dirs.iter().map(|dir| {
            sync::run(
                self.env.clone(),
                dir.clone(),
                self.options.reserve_bytes,
                observer.clone(),
                stop.clone(),
            )
        });
        futures::future::join_all(loops).await;
    }
}

/// The directories of one partition but for those that no log was ever in, unless all are such: a
/// log that could not be made in one log directory was made in another. Blocks.
fn without_unused(copies: Vec<Owned>) -> Vec<Owned> {
    let (mut unused, mut used): (Vec<_>, Vec<_>) =
        copies.into_iter().partition(Owned::was_never_used);
    if used.is_empty() {
        used.extend(unused.pop());
    }
    // One that cannot be removed is looked at again at the next start.
    used.extend(unused.into_iter().filter_map(|copy| copy.remove().err()));
    used
}

/// A log directory that is in use now.
struct OpenedDir {
    dir: Arc<LogDir>,
    lock: FileRef,
    /// It was left in order.
    clean: bool,
    /// The directories of its partitions.
    found: Vec<Found>,
    /// Those of deleted ones, and empty ones that were set aside. Nothing depends on them, and they
    /// may be big: they go later.
    deleted: Vec<PathBuf>,
}

fn open_dir(
    disk: &Arc<dyn Disk>,
    path: &Path,
    dirs: usize,
    descriptors: Descriptors,
) -> Result<OpenedDir, LogError> {
    disk.create_dir_all_durably(path).during("create", path)?;
    let lock = disk.lock(&path.join(".lock")).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => LogError::Locked(path.into()),
        _ => LogError::Io { action: "lock", path: path.into(), source: Arc::new(error) },
    })?;
    let (fence, disk) = Fence::around(path, disk, &descriptors.active);
    let marker = path.join(CLEAN_SHUTDOWN);
    let clean = disk.exists(&marker).during("look for", &marker)?;
    let partitions = PartitionTable::read(&disk, path)?;
    if clean {
        disk.remove_file(&marker).and_then(|()| disk.sync_dir(path)).during("remove", &marker)?;
    }
    let dir = LogDir::new(path.into(), (fence, disk.clone()), partitions, dirs, descriptors);
    let dir = Arc::new(dir);
    let (mut found, mut deleted) = (Vec::new(), Vec::new());
    for entry in disk.list(path).during("list", path)?.into_iter().filter(|entry| entry.is_dir) {
        // The metadata log itself has no name of a partition.
        if entry.name == KAFKA_METADATA_DIR {
            continue;
        }
        if entry.name.ends_with("-delete") {
            deleted.push(path.join(&entry.name));
            continue;
        }
        // Nothing came into it before the broker ended.
        if entry.name.ends_with("-stray")
            && holds_no_log(&*disk, &path.join(&entry.name)).unwrap_or(false)
        {
            deleted.push(path.join(&entry.name));
            continue;
        }
        let Some((topic, partition)) = partition_name(&entry.name) else { continue };
        found.push(Found {
            dir: dir.clone(),
            topic: topic.into(),
            partition,
            path: path.join(&entry.name),
            clean,
            topic_id: None,
        });
    }
    forget_deleted(&dir, &found, &deleted);
    Ok(OpenedDir { dir, lock, clean, found, deleted })
}

/// A row is written a while after its directory was renamed: without its directory it would count
/// as lost, although it was deleted.
fn forget_deleted(dir: &LogDir, found: &[Found], deleted: &[PathBuf]) {
    let names = deleted.iter().filter_map(|path| path.file_name()?.to_str());
    for (name, id) in names.filter_map(deleted_name) {
        if !found.iter().any(|found| (&*found.topic, found.partition) == (&*name.0, name.1)) {
            dir.partitions.forget([(&name, Some(id))]);
        }
    }
}
