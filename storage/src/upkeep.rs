//! What is done to logs in the background, and their closing.
//!
//! Each kind of work has a loop of its own, so that none waits for another: neither a checkpoint
//! nor the removal of deleted files waits for a compaction that takes minutes. What changes
//! metadata waits for none of them: beyond the few file operations that a [`Log`] makes under its
//! own lock, no lock is held. A pass goes log by log, within a big log batch by batch, and ends at
//! the next of them when `stop` is cancelled.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use letterbox_env::{Failing, with_causes};
use letterbox_protocol::model::TimestampMs;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::checkpoint::CLEAN_SHUTDOWN;
use super::cleaner::Pass;
use super::dir::LogDir;
use super::error::{IoContext, LogError};
use super::manager::lock;
use super::producers::Ages;
use super::{Log, LogManager};

/// Partitions closed at the same time.
const PARALLEL_MAX: usize = 8;
/// How often it is looked whether much was appended, and whether deleted files are to be removed.
const SECOND: Duration = Duration::from_secs(1);
/// How long a file is not used before it is closed; a second where descriptors lack.
const IDLE_EVERY: Duration = Duration::from_secs(60);
/// How often producers are forgotten.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);
/// After the start, as Kafka's.
const FIRST_RETENTION: Duration = Duration::from_secs(30);

/// Something renamed that is to be removed.
pub(super) struct Doomed {
    at: Instant,
    dir: Arc<LogDir>,
    path: PathBuf,
    is_dir: bool,
}

impl Doomed {
    /// `delay_ms` is the topic's `file.delete.delay.ms`.
    pub(super) fn after(delay_ms: i64, dir: Arc<LogDir>, path: PathBuf, is_dir: bool) -> Self {
        Self {
            at: Instant::now() + Duration::from_millis(u64::try_from(delay_ms).unwrap_or(0)),
            dir,
            path,
            is_dir,
        }
    }
}

/// Runs `pass` every `period`, until `stop`.
async fn every<F: Future<Output = ()>>(
    first: Duration,
    period: Duration,
    stop: &CancellationToken,
    mut pass: impl FnMut() -> F,
) {
    let mut ticks =
        tokio::time::interval_at(Instant::now() + first, period.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => pass().await,
        }
    }
}

impl LogManager {
    /// Looks after the logs until `stop`: rolls by time, retention, compaction, removal of deleted
    /// files, recovery points, high watermarks, expired producers, idle files. Its I/O runs off the
    /// async threads. Not to be dropped before it has ended: what it has begun goes on.
    pub async fn run_upkeep(self: Arc<Self>, stop: CancellationToken) {
        let options = &self.options;
        let early = SECOND.min(options.recovery_point_interval);
        tokio::join!(
            biased;
            every(SECOND, SECOND, &stop, || self.remove_doomed(&stop)),
            every(early, early, &stop, || self.checkpoint_logs(false, &stop)),
            every(options.recovery_point_interval, options.recovery_point_interval, &stop, || self.checkpoint_logs(true, &stop)),
            every(EXPIRE_EVERY, EXPIRE_EVERY, &stop, || self.expire_producers(self.env.clock.wall_ms(), &stop)),
            every(options.high_watermark_interval, options.high_watermark_interval, &stop, || self.checkpoint()),
            every(FIRST_RETENTION.min(options.retention_check_interval), options.retention_check_interval, &stop, || self.retain(&stop)),
            self.close_idle_often(&stop),
            self.compact_often(&stop),
        );
    }

    /// Closes files that are idle, every now and then, and as soon as descriptors lack, until
    /// `stop`.
    async fn close_idle_often(&self, stop: &CancellationToken) {
        let lack = || {
            let each = self.dirs().iter().map(|dir| Box::pin(dir.until_descriptors_lack()));
            futures::future::select_all(each)
        };
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(IDLE_EVERY) => self.close_idle(stop).await,
                _ = lack() => {
                    // What is not on the device cannot be closed.
                    self.each_log(stop, |log| log.sync_if_behind()).await;
                    // The first look marks the files, the second closes those that nobody used.
                    self.close_idle(stop).await;
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(SECOND) => self.close_idle(stop).await,
                    }
                }
            }
        }
    }

    /// There is no descriptor for something else than a log's file: closes those of a log, at once
    /// where one is on the device.
    pub fn lacks_descriptors(&self) {
        if !self.descriptors.active.close_one() {
            self.dirs().iter().for_each(|dir| dir.lacks_descriptors());
        }
    }

    /// Compacts after every `log.cleaner.backoff.ms`, which may change meanwhile, until `stop`.
    async fn compact_often(&self, stop: &CancellationToken) {
        let mut backoff = self.cleaner_backoff.subscribe();
        loop {
            let pause = backoff.borrow_and_update().max(Duration::from_millis(1));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                // The sender is the manager's own.
                _ = backoff.changed() => {}
                () = tokio::time::sleep(pause) => self.compact(stop).await,
            }
        }
    }

    /// Does `work` to every log that is in use, one after the other, so that others have their turn
    /// between two of them.
    async fn each_log(
        &self,
        stop: &CancellationToken,
        work: impl Fn(&Arc<Log>) + Clone + Send + 'static,
    ) {
        for log in self.logs() {
            if stop.is_cancelled() {
                return;
            }
            if !log.is_offline() && !log.is_closed() {
                let work = work.clone();
                self.env.blocking(move || work(&log)).await;
            }
        }
    }

    /// Moves recovery points: of all logs with new bytes, or of those with so many that it does not
    /// wait for its time. Each log is synced by itself; what their directory keeps of them is
    /// written once.
    async fn checkpoint_logs(&self, all: bool, stop: &CancellationToken) {
        for (dir, logs) in self.logs_by_dir() {
            let mut moved = Vec::new();
            for log in logs {
                if stop.is_cancelled() {
                    return;
                }
                if log.is_closed()
                    || !(log.is_checkpoint_due() || all && log.bytes_since_checkpoint() > 0)
                {
                    continue;
                }
                let job = log.clone();
                // A failure has been said, and is of this log alone unless it has fenced the
                // directory.
                match self.env.blocking(move || job.checkpoint()).await {
                    Ok(_) => moved.push(log),
                    Err(_) if dir.offline().is_some() => break,
                    Err(_) => {}
                }
            }
            if !moved.is_empty() {
                self.env
                    .blocking(move || {
                        said(
                            &dir,
                            dir.partitions.set_recovery_points(moved.iter().map(|log| &**log)),
                        )
                    })
                    .await;
            }
        }
    }

    /// Forgets the producers that have sent nothing for `producer.id.expiration.ms`, and where too
    /// many are known those that are idle longest, until there is room ([`Ages::next`]).
    pub(super) async fn expire_producers(&self, now: TimestampMs, stop: &CancellationToken) {
        let (memory, logs, stop) = (self.memory.producers.clone(), self.logs(), stop.clone());
        let mut next = Some(Ages::new(self.options.producer_id_expiration_ms));
        let forget = move || {
            while let Some(ages) = next {
                for log in &logs {
                    if stop.is_cancelled() {
                        return;
                    }
                    log.expire_producers(now, &ages);
                }
                next = ages.next(&memory);
            }
            memory.looked_at();
        };
        self.env.blocking(forget).await;
    }

    /// Writes the high watermarks and log start offsets of every directory.
    pub async fn checkpoint(&self) {
        self.for_each_dir(|dir, logs| dir.partitions.set_positions(logs.iter().map(|log| &**log)))
            .await;
    }

    async fn retain(&self, stop: &CancellationToken) {
        let (now, ends) = (self.env.clock.wall_ms(), stop.clone());
        let doomed = self.doomed.clone();
        let retain = move |log: &Arc<Log>| {
            roll_if_old(log, now);
            while !ends.is_cancelled() {
                match log.apply_retention(now) {
                    Ok(paths) if paths.is_empty() => {
                        return say_done(log, "retention", &log.retention, Ok(()));
                    }
                    Ok(paths) => {
                        let delay_ms = log.config().file_delete_delay_ms;
                        lock(&doomed).extend(
                            paths
                                .into_iter()
                                .map(|path| Doomed::after(delay_ms, log.dir.clone(), path, false)),
                        );
                    }
                    Err(error) => {
                        return say_done(log, "retention", &log.retention, Err(error));
                    }
                }
            }
        };
        self.each_log(stop, retain).await;
    }

    async fn close_idle(&self, stop: &CancellationToken) {
        let now = self.env.clock.wall_ms();
        self.each_log(stop, move |log| {
            roll_if_old(log, now);
            log.close_idle();
        })
        .await;
    }

    /// Compacts, one after the other, the logs that are compacted and dirty enough.
    async fn compact(&self, stop: &CancellationToken) {
        let (env, keys_max, stops) =
            (self.env.clone(), self.options.cleaner_keys_max, stop.clone());
        let keys = self.compaction_keys.clone();
        let compact = move |log: &Arc<Log>| {
            if !log.config().cleanup_policy.compact {
                return;
            }
            let pass = Pass {
                seed: u128::from(env.random_u64()) << 64 | u128::from(env.random_u64()),
                keys_max,
                now: env.clock.wall_ms(),
                first_dirty: log.dir.partitions.cleaned(log).clamp(0, log.end_offset()),
                stop: stops.clone(),
                keys: keys.clone(),
            };
            say_done(log, "compaction", &log.compaction, log.compact(&pass).map(drop));
        };
        self.each_log(stop, compact).await;
    }

    pub(super) async fn remove_doomed(&self, stop: &CancellationToken) {
        let now = Instant::now();
        let due: Vec<_> = lock(&self.doomed).extract_if(.., |doomed| now >= doomed.at).collect();
        if due.is_empty() {
            return;
        }
        let stop = stop.clone();
        self.env
            .blocking(move || {
                for doomed in due {
                    if let Err(error) = remove(&doomed, &stop)
                        // With a deleted partition its deleted segments are gone already.
                        && error.kind() != std::io::ErrorKind::NotFound
                    {
                        tracing::warn!(path = %doomed.path.display(), %error, "could not remove a \
                            deleted file or directory; the next start removes it");
                    }
                }
            })
            .await;
    }

    pub(super) async fn for_each_dir(
        &self,
        work: impl Fn(&LogDir, &[Arc<Log>]) -> Result<(), LogError> + Copy + Send + 'static,
    ) {
        for (dir, logs) in self.logs_by_dir() {
            self.env.blocking(move || said(&dir, work(&dir, &logs))).await;
        }
    }

    /// The logs of each directory that is in use.
    fn logs_by_dir(&self) -> Vec<(Arc<LogDir>, Vec<Arc<Log>>)> {
        let logs = self.logs();
        let of = |dir: &Arc<LogDir>| {
            logs.iter().filter(|log| Arc::ptr_eq(&log.dir, dir)).cloned().collect()
        };
        self.dirs
            .iter()
            .filter(|dir| dir.offline().is_none())
            .map(|dir| (dir.clone(), of(dir)))
            .collect()
    }

    /// Syncs and closes every log, writes the checkpoints, and marks the directories as left in
    /// order. To be called after [`LogManager::run_syncers`] and [`LogManager::run_upkeep`] have
    /// ended. Appends are refused from then on.
    ///
    /// A directory with a log that could not be opened is not marked: its tail has not been looked
    /// at since the last run.
    ///
    /// # Errors
    /// `Offline` when a directory could not be closed in order; the others are.
    pub async fn close(&self) -> Result<(), LogError> {
        let closing = self.logs().into_iter().map(|log| {
            self.env.blocking(move || {
                if log.close().is_err() {
                    log.dir.mark_unclean();
                }
            })
        });
        futures::stream::iter(closing).buffer_unordered(PARALLEL_MAX).collect::<Vec<()>>().await;
        self.checkpoint().await;
        let mut result = Ok(());
        for (dir, logs) in self.logs_by_dir() {
            match self.env.blocking(move || close_dir(&dir, &logs)).await {
                Err(error) if error.fault().is_state() => {
                    tracing::warn!(
                        error = with_causes(&error),
                        "cannot mark a log directory as cleanly shut down; the \
                        next start checks the ends of its logs"
                    );
                }
                closed => result = result.and(closed),
            }
        }
        // What was unusable from the start was not to be closed.
        for dir in self.dirs.iter().filter(|dir| !dir.partitions.is_unread()) {
            if let Some(reason) = dir.offline() {
                result = Err(LogError::Offline { dir: dir.path.clone(), reason });
            }
        }
        result
    }
}

fn close_dir(dir: &LogDir, logs: &[Arc<Log>]) -> Result<(), LogError> {
    let logs = || logs.iter().map(|log| &**log);
    dir.partitions.set_recovery_points(logs())?;
    dir.partitions.set_ends(logs())?;
    if !dir.is_clean() {
        tracing::warn!(dir = %dir.path.display(), "not every log of the directory was opened and \
            closed cleanly; the next start checks the ends of its logs");
        return Ok(());
    }
    let marker = dir.path.join(CLEAN_SHUTDOWN);
    dir.disk
        .write_atomically(&marker, br#"{"version":0,"brokerEpoch":-1}"#)
        .during("write", &marker)
}

fn said(dir: &LogDir, written: Result<(), LogError>) {
    let (checkpoints, dir) = (&dir.checkpoints, dir.path.display());
    match written {
        Ok(()) if checkpoints.succeeded() => tracing::info!(%dir, "checkpoints are written again"),
        Err(error) if checkpoints.failed(error.fault()) => {
            tracing::warn!(%dir, error = with_causes(&error), "could not write a checkpoint; the \
                previous one stays in effect");
        }
        _ => {}
    }
}

/// Says that upkeep of a log has failed, and that it fails no more.
fn say_done(log: &Log, work: &str, failing: &Failing, done: Result<(), LogError>) {
    let (topic, partition) = (log.topic(), log.partition());
    match done {
        Err(LogError::Interrupted) => {}
        Err(_) if log.is_closed() => {}
        Ok(()) if failing.succeeded() => {
            tracing::info!(%topic, partition, "{work} succeeded again")
        }
        Err(error) if failing.failed(error.fault()) => tracing::warn!(
            %topic,
            partition,
            error = with_causes(&error),
            "{work} failed; it will be retried"
        ),
        _ => {}
    }
}

/// As Kafka, which writes a segment to the device when it is rolled. A log that nobody appends to
/// would keep it waiting, in the place of others'.
fn roll_if_old(log: &Log, now: i64) {
    match log.roll_if_old(now) {
        // What fails was said.
        Ok(true) => drop(log.sync()),
        Ok(false) => {}
        Err(error) => drop(log.failed("roll", &error)),
    }
}

/// Removes a directory file by file, so that a stop need not wait for all of a big one; the next
/// start removes the rest.
fn remove(doomed: &Doomed, stop: &CancellationToken) -> std::io::Result<()> {
    let disk = &doomed.dir.disk;
    if !doomed.is_dir {
        return disk.remove_file(&doomed.path);
    }
    for entry in disk.list(&doomed.path)?.iter().filter(|entry| !entry.is_dir) {
        if stop.is_cancelled() {
            return Ok(());
        }
        disk.remove_file(&doomed.path.join(&entry.name))?;
    }
    disk.remove_dir_all(&doomed.path)
}
