//! How logs come and go: made, found again, deleted, set aside. Many at once, since a request may
//! name thousands: one sync of the log directory and one write of its list of partitions for all of
//! them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::checkpoint::{self, ACCEPT_DATA_LOSS, read_partition_metadata};
use super::dir::LogDir;
use super::error::{IoContext, LogError};
use super::manager::{LogManager, OfflineLog, lock};
use super::open::{Found, holds_no_log};
use super::partition::{Identity, Loss, NOTHING_LOST};
use super::partition_table::{Kept, Name};
use super::recover::Recovered;
use super::upkeep::Doomed;
use super::{Log, LogConfig, Origin};
use letterbox_protocol::model::TopicId;
use letterbox_protocol::topics::KAFKA_METADATA_DIR;

/// About what the directory and the small files of a new log take: counted, or thousands of them
/// would use up the reserve between two looks at the free space.
const NEW_LOG_BYTES: i64 = 16 << 10;
/// A damaged log is looked at again this often at least, since that may read a whole segment.
const RETRY_MAX: Duration = Duration::from_secs(600);

/// A log that is to be there.
#[derive(Clone, Debug)]
pub struct WantedLog {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The topic's id.
    pub topic_id: TopicId,
    /// The partition's index.
    pub partition: i32,
    /// In force from then on.
    pub config: LogConfig,
    /// The topic was made in this run, so that no log of the partition can lie in a directory that
    /// was not read.
    pub is_new: bool,
    /// Nobody counts on what is here of it, and another broker has all. A directory that is missing
    /// is made anew then.
    pub may_be_copied: bool,
}

impl WantedLog {
    fn name(&self) -> Name {
        (self.topic.clone(), self.partition)
    }

    fn dir_name(&self) -> String {
        format!("{}-{}", self.topic, self.partition)
    }
}

/// What becomes of a directory that is taken away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Its files go after `file.delete.delay.ms`.
    Deleted,
    /// Kept until a person removes it.
    Stray,
}

/// A partition that is taken away, with a log or without.
struct Leaving {
    name: Name,
    topic_id: Option<TopicId>,
    dir: Arc<LogDir>,
    path: PathBuf,
    log: Option<Arc<Log>>,
}

/// Where a new log stands in a request, and what it lacks of what was counted.
type Place = (usize, Loss);

/// The new logs of one directory.
type NewLogs = Vec<(Place, WantedLog)>;

impl LogManager {
    /// The logs of these partitions, in their order: those that are open, or can be opened now, or
    /// new ones, in the log directories that have the fewest.
    ///
    /// Called again for a partition that failed, it tries again: at once when a person has put
    /// something there, else after a while that grows.
    ///
    /// # Errors
    /// For each by itself: `Exists` when the name is another topic's; `NoLogDir`; `NotRead`;
    /// `Missing`; `Io`; why it is offline.
    pub async fn host(&self, wanted: Vec<WantedLog>) -> Vec<Result<Arc<Log>, LogError>> {
        let _one = self.changing.lock().await;
        let mut answers: Vec<Option<Result<Arc<Log>, LogError>>> = Vec::with_capacity(wanted.len());
        let mut counts: Vec<usize> = self.dirs.iter().map(|dir| dir.partitions.len()).collect();
        let mut new: Vec<NewLogs> = self.dirs.iter().map(|_| Vec::new()).collect();
        for (at, wanted) in wanted.into_iter().enumerate() {
            let mut loss = Loss::New;
            if let Some(log) = self.get(wanted.topic_id, wanted.partition) {
                log.set_config(wanted.config);
                answers.push(Some(Ok(log)));
                continue;
            }
            match self.known(&wanted) {
                Ok(None) => match self
                    .dirs
                    .iter()
                    .find(|dir| dir.partitions.is_unread() && !wanted.is_new)
                {
                    None => {}
                    Some(dir) => {
                        let reason = dir.offline().unwrap_or_default();
                        answers
                            .push(Some(Err(LogError::NotRead { dir: dir.path.clone(), reason })));
                        continue;
                    }
                },
                Ok(Some(offline)) => {
                    let dir = offline.dir.clone();
                    let opened = self.reopen(offline, wanted.clone()).await;
                    let is_missing = matches!(opened, Err(LogError::Missing { .. }));
                    if !is_missing
                        || !wanted.may_be_copied
                        || !self.forget_missing(&dir, &wanted).await
                    {
                        answers.push(Some(opened));
                        continue;
                    }
                    loss = Loss::Records;
                }
                Err(error) => {
                    answers.push(Some(Err(error)));
                    continue;
                }
            }
            match self.place_for_new(&mut counts, &mut new) {
                Some((dir, count, new)) => {
                    dir.expect(NEW_LOG_BYTES);
                    *count += 1;
                    new.push(((at, loss), wanted));
                    answers.push(None);
                }
                None => answers.push(Some(Err(LogError::NoLogDir))),
            }
        }
        for (dir, new) in self.dirs.iter().zip(new).filter(|(_, new)| !new.is_empty()) {
            for ((at, _), made) in self.make_logs(dir.clone(), new).await {
                if let Some(answer) = answers.get_mut(at) {
                    *answer = Some(made);
                }
            }
        }
        answers.into_iter().map(|answer| answer.unwrap_or(Err(LogError::NotFound))).collect()
    }

    /// The log directory that a new log goes to, how many it has, and what is to be made there: where
    /// clients' records are refused for want of space only when it is so everywhere, because a new
    /// log is small.
    fn place_for_new<'a>(
        &'a self,
        counts: &'a mut [usize],
        new: &'a mut [NewLogs],
    ) -> Option<(&'a Arc<LogDir>, &'a mut usize, &'a mut NewLogs)> {
        let places = self.dirs.iter().zip(counts).zip(new);
        places
            .map(|((dir, count), new)| (dir, count, new))
            .filter(|(dir, ..)| dir.check_writable_by(Origin::Coordinator).is_ok())
            .min_by_key(|(dir, count, _)| (dir.is_read_only(), **count))
    }

    /// Makes new logs in one directory, each with its place in the request.
    async fn make_logs(
        &self,
        dir: Arc<LogDir>,
        new: NewLogs,
    ) -> Vec<(Place, Result<Arc<Log>, LogError>)> {
        let (memory, now) = (self.memory.clone(), self.env.clock.wall_ms());
        let made = self
            .env
            .urgent(move || {
                let (places, new): (Vec<Place>, Vec<WantedLog>) = new.into_iter().unzip();
                let found = make(&dir, &new);
                let log = |loss, wanted, made: Result<PathBuf, LogError>| {
                    let path = made?;
                    let recovered = Recovered::empty(&dir.disk, &path, 0);
                    let WantedLog { topic, topic_id, partition, config, .. } = wanted;
                    let identity = Identity {
                        topic,
                        topic_id,
                        partition,
                        dir: dir.clone(),
                        path,
                        kept: Kept::default(),
                        lacks_metadata: true,
                        counts_unsynced: false,
                        loss,
                        lacks_records: false,
                        lost_before: NOTHING_LOST,
                    };
                    Ok(Arc::new(Log::new(identity, recovered, config, memory.clone(), now)))
                };
                let all = places.into_iter().zip(new.into_iter().zip(found));
                all.map(|(place, (wanted, made))| (place, log(place.1, wanted, made)))
                    .collect::<Vec<_>>()
            })
            .await;
        let mut logs = lock(&self.logs);
        for log in made.iter().filter_map(|(_, made)| made.as_ref().ok()) {
            logs.insert((log.topic_id(), log.partition()), log.clone());
        }
        drop(logs);
        made
    }

    /// What is there of a partition whose log is not open.
    fn known(&self, wanted: &WantedLog) -> Result<Option<OfflineLog>, LogError> {
        let exists = || LogError::Exists(wanted.dir_name());
        let name = wanted.name();
        if let Some(offline) = lock(&self.offline).get(&name) {
            return if offline.topic_id.is_none_or(|id| id == wanted.topic_id) {
                Ok(Some(offline.clone()))
            } else {
                Err(exists())
            };
        }
        let row = self.dirs.iter().find_map(|dir| Some((dir, dir.partitions.get(&name)?)));
        match row {
            _ if wanted.dir_name() == KAFKA_METADATA_DIR => Err(exists()),
            None => Ok(None),
            // Kafka kept this directory, and not even it had anything durable there.
            Some((_, (None, kept))) if kept.end_offset() == 0 => Ok(None),
            Some((_, (Some(id), _))) if id != wanted.topic_id => Err(exists()),
            Some((dir, (topic_id, kept))) => {
                let path = dir.path.join(wanted.dir_name());
                Ok(Some(OfflineLog {
                    topic: name.0,
                    partition: name.1,
                    topic_id,
                    error: LogError::Missing { path: path.clone(), end_offset: kept.end_offset() },
                    dir: dir.clone(),
                    path,
                    retry: (Instant::now(), RETRY_MAX),
                }))
            }
        }
    }

    /// Forgets a partition whose directory is missing in `dir`, durably; false when that cannot be
    /// done now.
    async fn forget_missing(&self, dir: &Arc<LogDir>, wanted: &WantedLog) -> bool {
        if dir.offline().is_some() {
            return false;
        }
        let (name, topic_id, forgetful) = (wanted.name(), wanted.topic_id, dir.clone());
        let forget = move || {
            forgetful.partitions.forget([(&name, Some(topic_id))]);
            forgetful.partitions.write_changed()
        };
        let is_forgotten = self.env.blocking(forget).await;
        if is_forgotten.is_ok() {
            lock(&self.offline).remove(&wanted.name());
            tracing::warn!(topic = %wanted.topic, partition = wanted.partition,
                dir = %dir.path().join(wanted.dir_name()).display(),
                "the directory of a replica is missing, and others have its records: recreating it \
                 as a copy of the leader's");
        }
        is_forgotten.is_ok()
    }

    async fn reopen(&self, offline: OfflineLog, wanted: WantedLog) -> Result<Arc<Log>, LogError> {
        let OfflineLog { mut dir, mut path, error, retry: (at, delay), .. } = offline;
        if matches!(error, LogError::Twice { .. }) {
            let (dirs, name) = (self.dirs.clone(), wanted.dir_name());
            let looked = self.env.blocking(move || {
                let place = |dir: Arc<LogDir>| (dir.path.join(&name), dir);
                dirs.into_iter()
                    .map(place)
                    .filter(|(path, dir)| dir.disk.exists(path).unwrap_or(true))
                    .collect::<Vec<_>>()
            });
            let Ok([one]) = <[_; 1]>::try_from(looked.await) else { return Err(error) };
            (path, dir) = one;
        }
        if dir.offline().is_some() {
            return Err(error);
        }
        let (name, clock) = (wanted.name(), Instant::now());
        let (disk, looked_at) = (dir.disk.clone(), path.clone());
        let is_missing = matches!(error, LogError::Missing { .. });
        let may_have_changed = move || {
            let sign = if is_missing { looked_at } else { looked_at.join(ACCEPT_DATA_LOSS) };
            clock >= at || disk.exists(&sign).unwrap_or(false)
        };
        if !self.env.blocking(may_have_changed).await {
            return Err(error);
        }
        let found = Found {
            dir,
            topic: name.0.clone(),
            partition: name.1,
            path,
            clean: false,
            topic_id: Some(wanted.topic_id),
        };
        let opened = match self.env.blocking(move || found.identify()).await {
            Ok(None) => {
                lock(&self.offline).remove(&name);
                return Err(error);
            }
            Ok(Some(owned)) => self.open_log(owned).await,
            Err(still) => Err(still),
        };
        match opened {
            Ok(opened) => {
                opened.log.set_config(wanted.config);
                lock(&self.offline).remove(&name);
                Ok(self.take_in(opened))
            }
            Err(mut still) => {
                still.retry = (clock + delay, (delay * 2).min(RETRY_MAX));
                let error = still.error.clone();
                lock(&self.offline).insert(name, *still);
                Err(error)
            }
        }
    }

    /// Has these partitions, of which nothing is here, count as missing (`Missing`) instead of being
    /// made anew: their directories were lost with another disk. Where a log directory was not
    /// read they may lie there, and count as `NotRead` already.
    pub async fn miss(&self, lost: Vec<(Arc<str>, TopicId, i32)>) {
        let _one = self.changing.lock().await;
        let usable = self.dirs.iter().find(|dir| dir.offline().is_none());
        let Some(dir) = usable.filter(|_| !self.has_unread()) else { return };
        let missed = |(topic, topic_id, partition): (Arc<str>, TopicId, i32)| {
            let path = dir.path.join(format!("{topic}-{partition}"));
            OfflineLog {
                topic,
                partition,
                topic_id: Some(topic_id),
                error: LogError::Missing { path: path.clone(), end_offset: 0 },
                dir: dir.clone(),
                path,
                retry: (Instant::now(), RETRY_MAX),
            }
        };
        let is_nowhere =
            |name: &Name| self.dirs.iter().all(|dir| dir.partitions.get(name).is_none());
        let (mut rows, mut offline) = (Vec::new(), Vec::new());
        for log in lost.into_iter().map(missed) {
            let name = (log.topic.clone(), log.partition);
            if is_nowhere(&name) && !lock(&self.offline).contains_key(&name) {
                rows.extend(log.topic_id.map(|id| (name.clone(), id)));
                offline.push((name, log));
            }
        }
        if offline.is_empty() {
            return;
        }
        lock(&self.offline).extend(offline);
        let of_task = dir.clone();
        if let Err(error) = self.env.urgent(move || of_task.partitions.add(&rows)).await {
            tracing::warn!(dir = %dir.path.display(), %error, "could not write which partitions \
                are missing; it is written at the next start");
        }
    }

    /// Deletes partitions of deleted topics, and such as other brokers have now: gone for everybody
    /// at once, whether their logs were open, offline or missing. Their files go `file.delete.delay.ms` later. What fails is
    /// logged, and set aside when the name is used again or at the next start.
    pub async fn delete(&self, gone: Vec<(Arc<str>, TopicId, i32)>) {
        let _one = self.changing.lock().await;
        let gone: Vec<_> =
            gone.into_iter().map(|(topic, id, partition)| ((topic, partition), id)).collect();
        let leaving = self.leaving(&gone);
        let delays: Vec<_> = leaving
            .iter()
            .map(|leaving| leaving.log.as_ref().map_or(0, |log| log.config().file_delete_delay_ms))
            .collect();
        let renamed = self.take_away(leaving, Fate::Deleted).await;
        for dir in &self.dirs {
            dir.partitions.forget(gone.iter().map(|(name, id)| (name, Some(*id))));
        }
        let doomed = renamed.into_iter().zip(delays).filter_map(|(renamed, delay_ms)| {
            let (dir, path) = renamed?;
            Some(Doomed::after(delay_ms, dir, path, true))
        });
        lock(&self.doomed).extend(doomed);
    }

    /// Sets aside, under the name `*-stray`, every partition that the metadata do not know. They
    /// are kept until a person removes them: that metadata are missing is no reason to destroy
    /// data.
    pub async fn set_unknown_aside(&self, is_known: impl Fn(&str, Option<TopicId>, i32) -> bool) {
        let _one = self.changing.lock().await;
        let mut leaving = Vec::new();
        lock(&self.logs).retain(|_, log| {
            let known = is_known(log.topic(), Some(log.topic_id()), log.partition());
            if !known {
                leaving.push(Leaving::of(log));
            }
            known
        });
        lock(&self.offline).retain(|_, offline| {
            let known = is_known(&offline.topic, offline.topic_id, offline.partition);
            if !known {
                leaving.push(Leaving::offline(offline));
            }
            known
        });
        for leaving in &leaving {
            let (topic, partition) = &leaving.name;
            tracing::warn!(%topic, partition, topic_id = ?leaving.topic_id, dir = %leaving.path.display(),
                "found the log of an unknown partition; renaming it to *-stray");
        }
        self.take_away(leaving, Fate::Stray).await;
        for dir in &self.dirs {
            let all = dir.partitions.all();
            dir.partitions.forget(
                all.iter()
                    .filter(|(name, id)| !is_known(&name.0, Some(*id), name.1))
                    .map(|(name, id)| (name, Some(*id))),
            );
        }
        // What is hosted from now on may be acknowledged in.
        self.for_each_dir(|dir, _| dir.partitions.write_changed()).await;
    }

    /// Takes the partitions out of the lists.
    fn leaving(&self, gone: &[(Name, TopicId)]) -> Vec<Leaving> {
        let mut leaving = Vec::with_capacity(gone.len());
        let (mut logs, mut offline) = (lock(&self.logs), lock(&self.offline));
        for (name, topic_id) in gone {
            if let Some(log) = logs.remove(&(*topic_id, name.1)) {
                leaving.push(Leaving::of(&log));
            }
            if offline
                .get(name)
                .is_some_and(|offline| offline.topic_id.is_none_or(|id| id == *topic_id))
            {
                leaving.extend(offline.remove(name).as_ref().map(Leaving::offline));
            }
        }
        leaving
    }

    /// Renames the directories of partitions and forgets them; where each is now, if it could be
    /// renamed.
    async fn take_away(
        &self,
        leaving: Vec<Leaving>,
        fate: Fate,
    ) -> Vec<Option<(Arc<LogDir>, PathBuf)>> {
        if leaving.is_empty() {
            return Vec::new();
        }
        self.env
            .urgent(move || {
                let renamed: Vec<_> = leaving.iter().map(|leaving| leaving.rename(fate)).collect();
                let mut synced: Vec<&Arc<LogDir>> = Vec::new();
                for Leaving { dir, .. } in &leaving {
                    if !synced.iter().any(|synced| Arc::ptr_eq(synced, dir)) {
                        synced.push(dir);
                        if let Err(error) = dir.disk.sync_dir(&dir.path) {
                            tracing::error!(dir = %dir.path.display(), %error, "cannot sync a log \
                                directory after partitions were renamed");
                        }
                    }
                }
                for Leaving { name, topic_id, dir, .. } in &leaving {
                    dir.partitions.forget([(name, *topic_id)]);
                }
                leaving
                    .into_iter()
                    .zip(renamed)
                    .map(|(leaving, to)| Some((leaving.dir, to?)))
                    .collect()
            })
            .await
    }
}

impl Leaving {
    fn of(log: &Arc<Log>) -> Self {
        let name = (log.topic().clone(), log.partition());
        Self {
            name,
            topic_id: Some(log.topic_id()),
            dir: log.dir.clone(),
            path: log.path.clone(),
            log: Some(log.clone()),
        }
    }

    fn offline(log: &OfflineLog) -> Self {
        let name = (log.topic.clone(), log.partition);
        Self {
            name,
            topic_id: log.topic_id,
            dir: log.dir.clone(),
            path: log.path.clone(),
            log: None,
        }
    }

    /// Blocks.
    /// Where the directory is now, if it could be renamed and is what was meant to go.
    fn rename(&self, fate: Fate) -> Option<PathBuf> {
        if let Some(log) = &self.log {
            log.leave();
        }
        // A directory that was not opened may be another's, as a backup that somebody put there.
        let is_known = self.log.is_some()
            || read_partition_metadata(&*self.dir.disk, &self.path)
                .is_ok_and(|found| self.topic_id == Some(found));
        let fate = if is_known { fate } else { Fate::Stray };
        let to = place_aside(&self.dir, &self.name, self.topic_id, fate);
        match self.dir.disk.rename(&self.path, &to) {
            Ok(()) if is_known => Some(to),
            Ok(()) => {
                tracing::warn!(dir = %to.display(), "the directory of a deleted partition may \
                    belong to another topic; renaming it to *-stray");
                None
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.log.is_none() => None,
            Err(error) => {
                tracing::error!(dir = %self.path.display(), %error, "could not rename the \
                    directory of a deleted partition; it is set aside when its name is used again, \
                    or at the next start");
                None
            }
        }
    }
}

/// Where a directory is put aside. There may be one already: a replica that was taken off this
/// broker came back and is taken off again. Blocks.
fn place_aside(dir: &LogDir, name: &Name, topic_id: Option<TopicId>, fate: Fate) -> PathBuf {
    let place = |nth| dir.path.join(name_aside(name, topic_id, nth, fate));
    // What cannot be looked for cannot be renamed either.
    let is_free = |path: &PathBuf| !dir.disk.exists(path).unwrap_or(false);
    (0..u32::MAX).map(place).find(is_free).unwrap_or_else(|| place(u32::MAX))
}

/// Kafka's form, within what a file name may have: topic, partition, id, suffix.
fn name_aside(
    (topic, partition): &Name,
    topic_id: Option<TopicId>,
    nth: u32,
    fate: Fate,
) -> String {
    let suffix = if fate == Fate::Deleted { "delete" } else { "stray" };
    let nth = if nth == 0 { String::new() } else { format!("-{nth}") };
    let tail = format!("-{partition}.{}{nth}-{suffix}", topic_id.unwrap_or_default().simple());
    let mut name = String::from(&**topic);
    while name.len() + tail.len() > 255 {
        name.pop();
    }
    name + &tail
}

/// Makes a directory aside for what the log of a partition has, in the form of one, and gives its
/// path. Blocks.
pub(super) fn make_aside(
    dir: &LogDir,
    name: &Name,
    topic_id: TopicId,
) -> Result<PathBuf, LogError> {
    let path = place_aside(dir, name, Some(topic_id), Fate::Stray);
    dir.disk.create_dir_all(&path).during("create", &path)?;
    let written = checkpoint::write_partition_metadata(&*dir.disk, &path, topic_id)
        .during("write", &path)
        .and_then(|()| dir.disk.sync_dir(&dir.path).during("sync", &dir.path));
    if written.is_err() {
        // It is tried again, and would leave one each time.
        drop(dir.disk.remove_dir_all(&path));
    }
    written.map(|()| path)
}

/// Topic and partition of a directory of that name.
pub(super) fn partition_name(name: &str) -> Option<(&str, i32)> {
    let (topic, partition) = name.rsplit_once('-')?;
    Some((topic, partition.parse().ok().filter(|partition| *partition >= 0)?))
}

/// What was put aside under that name to be deleted, unless the name had to be shortened.
pub(super) fn deleted_name(name: &str) -> Option<(Name, TopicId)> {
    let (name, id) = name.strip_suffix("-delete")?.rsplit_once('.')?;
    let (topic, partition) = partition_name(name)?;
    Some(((topic.into(), partition), TopicId::try_parse(id.get(..32)?).ok()?))
}

/// Makes the directories of new partitions, durably, and their rows. Blocks.
fn make(dir: &LogDir, new: &[WantedLog]) -> Vec<Result<PathBuf, LogError>> {
    let mut made: Vec<_> = new.iter().map(|wanted| make_directory(dir, wanted)).collect();
    let rows: Vec<_> = new
        .iter()
        .zip(&made)
        .filter(|(_, made)| made.is_ok())
        .map(|(wanted, _)| (wanted.name(), wanted.topic_id))
        .collect();
    let written = dir
        .disk
        .sync_dir(&dir.path)
        .during("sync", &dir.path)
        .and_then(|()| dir.partitions.add(&rows));
    if let Err(error) = written {
        made.iter_mut().filter(|made| made.is_ok()).for_each(|made| *made = Err(error.clone()));
    }
    made
}

fn make_directory(dir: &LogDir, wanted: &WantedLog) -> Result<PathBuf, LogError> {
    let path = dir.path.join(wanted.dir_name());
    if !dir.disk.exists(&path).during("look for", &path)? {
        // As nearly always.
    } else if holds_no_log(&*dir.disk, &path)? {
        dir.disk.remove_dir_all(&path).during("remove", &path)?;
    } else {
        let of = checkpoint::read_partition_metadata(&*dir.disk, &path).ok();
        let to = place_aside(dir, &wanted.name(), of, Fate::Stray);
        tracing::warn!(dir = %path.display(), to = %to.display(), "another directory has the name \
            of a new partition; renaming it to *-stray");
        dir.disk.rename(&path, &to).during("rename", &path)?;
    }
    dir.disk.create_dir_all(&path).during("create", &path)?;
    Ok(path)
}
