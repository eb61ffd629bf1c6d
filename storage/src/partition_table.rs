//! What a log directory keeps of its partitions across restarts: whose they are, and four offsets
//! of each.
//!
//! Kafka's checkpoint files know a partition by its name, and a name may be used again by another
//! topic. Here every row belongs to one topic id, which it names (those of Kafka and of earlier
//! versions do not):
//! - A log changes a row only while the row has its topic id. What a deleted log still writes has
//!   no effect.
//! - `partition-topic-ids`, the one file that is not Kafka's, says whose the rows are. At a start
//!   an offset counts only for the directory that has the row's topic id. Without that file (Kafka
//!   has kept the directory) names are trusted.
//! - A directory of that name and another id does not end a row: the row waits until it is known
//!   which of the two the cluster has. So a directory in the place of a lost one is not taken for
//!   its end.
//! - A row enters that file when its directory is on the device and Kafka's files hold nothing of
//!   an older topic of that name, and before a record of the partition is acknowledged. So a row
//!   without a directory is a lost directory, unless its topic was deleted meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use letterbox_env::panics::lock;
use letterbox_env::{Disk, Gather};

use super::Log;
use super::checkpoint::{
    self, CLEANER_OFFSETS, HIGH_WATERMARKS, LOG_ENDS, LOG_STARTS, Offsets, RECOVERY_POINTS,
    TOPIC_IDS,
};
use super::error::{IoContext, LogError};
use letterbox_protocol::model::{Offset, TopicId};

/// Topic and partition.
pub(super) type Name = (Arc<str>, i32);

/// The offsets of one partition, as they are checkpointed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) recovery_point: Offset,
    pub(super) log_start: Offset,
    pub(super) high_watermark: Offset,
    /// Up to where it was compacted; `None`: never.
    pub(super) cleaned: Option<Offset>,
    /// Where the log ended, on the device, when it was last closed, if it was not cut since.
    pub(super) closed_end: Option<Offset>,
    /// Up to where the device had the log when its offsets were written, exclusive: a log that ends
    /// before has lost records. Stands in no file: it is the recovery point, the end when it was
    /// closed, and the high watermark where this broker wrote it (Kafka's may be ahead of the
    /// device).
    pub(super) durable_end: Offset,
}

impl Kept {
    /// Up to where the log is known to have held records, exclusive.
    pub(super) fn end_offset(&self) -> Offset {
        let closed_end = self.closed_end.unwrap_or(0);
        self.recovery_point.max(self.high_watermark).max(self.log_start).max(closed_end)
    }

    /// What a start may ask of the device. `counts_high_watermark`: this broker wrote it.
    fn note_durable_end(&mut self, counts_high_watermark: bool) {
        let high_watermark = if counts_high_watermark { self.high_watermark } else { 0 };
        let closed_end = self.closed_end.unwrap_or(0);
        self.durable_end = self.recovery_point.max(high_watermark).max(closed_end);
    }
}

/// Sets what one of the files says; `None`: it says nothing.
type Set = fn(&mut Kept, Option<Offset>);

#[derive(Default)]
struct Row {
    /// `None` until its directory is opened, when only the files of offsets speak of it.
    topic_id: Option<TopicId>,
    /// Until then: whose the offset of each file is that says it. They may be of different age.
    said: Vec<(TopicId, Set)>,
    kept: Kept,
}

/// The partitions of one log directory.
pub(super) struct PartitionTable {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Its files were not read, so they are not written over.
    is_unread: bool,
    /// `partition-topic-ids` was there when it was read.
    had_list: bool,
    /// Held while files are written, so that no older content comes after a newer one. Locked
    /// before `rows`.
    writing: Mutex<()>,
    /// Held for moments: whoever asks whose a partition is never waits for the device.
    rows: Mutex<Rows>,
}

#[derive(Default)]
struct Rows {
    of: BTreeMap<Name, Row>,
    /// Rows whose names were claimed for directories of other topics, until one of the two is
    /// forgotten. Until then these are what the files say.
    displaced: BTreeMap<Name, Row>,
    /// Names under which Kafka's files may still hold offsets of a topic that is gone.
    stale: BTreeSet<Name>,
    /// `partition-topic-ids` does not say what `of` says.
    ids_changed: bool,
}

impl PartitionTable {
    /// Reads the files of the log directory `dir`. Blocks.
    ///
    /// # Errors
    /// `Malformed`; `Io`.
    pub(super) fn read(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Self, LogError> {
        let mut rows = Rows::default();
        let ids = checkpoint::read_topic_ids(&**disk, &dir.join(TOPIC_IDS))?;
        let is_ours = ids.is_some();
        for (name, id) in ids.into_iter().flatten() {
            rows.of.entry(name).or_default().topic_id = Some(id);
        }
        let mut read = |file, set: Set| -> Result<(), LogError> {
            for (name, (offset, said)) in checkpoint::read_offsets(&**disk, &dir.join(file))? {
                let row = rows.of.entry(name).or_default();
                if said.is_none() || row.topic_id.is_none() || said == row.topic_id {
                    set(&mut row.kept, Some(offset));
                    row.said.extend(said.filter(|_| !is_ours).map(|id| (id, set)));
                }
            }
            Ok(())
        };
        read(RECOVERY_POINTS, |kept, offset| kept.recovery_point = offset.unwrap_or(0))?;
        read(LOG_STARTS, |kept, offset| kept.log_start = offset.unwrap_or(0))?;
        read(HIGH_WATERMARKS, |kept, offset| kept.high_watermark = offset.unwrap_or(0))?;
        read(CLEANER_OFFSETS, |kept, offset| kept.cleaned = offset)?;
        read(LOG_ENDS, |kept, offset| kept.closed_end = offset)?;
        for Row { kept, .. } in rows.of.values_mut() {
            kept.note_durable_end(is_ours);
        }
        if is_ours {
            let (of, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
                rows.of.into_iter().partition(|(_, row)| row.topic_id.is_some());
            (rows.of, rows.stale) = (of, gone.into_keys().gather());
        }
        let rows = Mutex::new(rows);
        Ok(Self { rows, is_unread: false, had_list: is_ours, ..Self::unread(disk, dir) })
    }

    /// The table of a log directory that cannot be used: nothing is known, and nothing will be
    /// written.
    pub(super) fn unread(disk: &Arc<dyn Disk>, dir: &Path) -> Self {
        Self {
            disk: disk.clone(),
            dir: dir.into(),
            is_unread: true,
            had_list: false,
            writing: Mutex::default(),
            rows: Mutex::default(),
        }
    }

    /// Whether the list of its partitions is on the device, which is written where it is missing. Not
    /// beside what only Kafka's files speak of, which count no more with it. Blocks.
    ///
    /// # Errors
    /// The file system's own.
    pub(super) fn has_list(&self) -> Result<bool, LogError> {
        let (_one, path) = (lock(&self.writing), self.dir.join(TOPIC_IDS));
        if self.disk.exists(&path).during("look for", &path)? {
            return Ok(true);
        }
        if self.is_unread || self.rows().of.values().any(|row| row.topic_id.is_none()) {
            return Ok(false);
        }
        self.write_ids().map(|()| true)
    }

    /// Whether it is not known which partitions lie there.
    pub(super) fn is_unread(&self) -> bool {
        self.is_unread
    }

    /// Whether its list was there at the start: a partition that is not in it was never made there.
    pub(super) fn had_list(&self) -> bool {
        self.had_list
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        lock(&self.rows)
    }

    /// Partitions in it.
    pub(super) fn len(&self) -> usize {
        self.rows().of.len()
    }

    /// Whose the partition of that name is, and its offsets.
    pub(super) fn get(&self, name: &Name) -> Option<(Option<TopicId>, Kept)> {
        self.rows().of.get(name).map(|row| (row.topic_id, row.kept))
    }

    /// Every partition that is known to be of a topic; under one name there may be two.
    pub(super) fn all(&self) -> Vec<(Name, TopicId)> {
        let rows = self.rows();
        let known = rows.displaced.iter().chain(&rows.of);
        known.filter_map(|(name, row)| Some((name.clone(), row.topic_id?))).collect()
    }

    /// Gives the row to the directory of `topic_id` that was found, and what is known of that
    /// directory: nothing, when the row was another topic's, which then waits. In memory: see
    /// [`PartitionTable::write_changed`].
    pub(super) fn claim(&self, name: &Name, topic_id: TopicId) -> Kept {
        let mut rows = self.rows();
        let Rows { of, displaced, ids_changed, .. } = &mut *rows;
        let row = of.entry(name.clone()).or_default();
        match row.topic_id {
            Some(before) if before == topic_id => {}
            Some(_) => {
                let other =
                    std::mem::replace(row, Row { topic_id: Some(topic_id), ..Row::default() });
                displaced.entry(name.clone()).or_insert(other);
            }
            None => {
                for (_, set) in row.said.drain(..).filter(|(said, _)| *said != topic_id) {
                    set(&mut row.kept, None);
                }
                row.kept.note_durable_end(false);
                row.topic_id = Some(topic_id);
                *ids_changed = true;
            }
        }
        row.kept
    }

    /// Begins the rows of new partitions, whose directories are on the device: with nothing of what
    /// was known under their names before. Blocks.
    ///
    /// # Errors
    /// The file system's own; nothing may be appended to these partitions then, and the rows are
    /// not there.
    pub(super) fn add(&self, new: &[(Name, TopicId)]) -> Result<(), LogError> {
        let _one = lock(&self.writing);
        let mut rows = self.rows();
        for (name, topic_id) in new {
            if rows
                .of
                .insert(name.clone(), Row { topic_id: Some(*topic_id), ..Row::default() })
                .is_some()
            {
                rows.stale.insert(name.clone());
            }
        }
        rows.ids_changed = true;
        drop(rows);
        let written = self.write_ids();
        if written.is_err() {
            let mut rows = self.rows();
            for (name, _) in new {
                rows.of.remove(name);
            }
        }
        written
    }

    /// Forgets partitions that are gone; a row that has another topic id by now stays. In memory:
    /// the files follow with the next pass, and before the name is used again.
    pub(super) fn forget<'a>(&self, gone: impl IntoIterator<Item = (&'a Name, Option<TopicId>)>) {
        let mut rows = self.rows();
        let Rows { of, displaced, stale, ids_changed } = &mut *rows;
        for (name, topic_id) in gone {
            let is_gone = |row: &Row| {
                row.topic_id.is_none() || topic_id.is_none() || row.topic_id == topic_id
            };
            let mut is_changed = displaced.get(name).is_some_and(is_gone);
            if is_changed {
                displaced.remove(name);
            }
            if of.get(name).is_some_and(is_gone) {
                // The files have said so all the time when another row has waited.
                if let Some(waiting) = displaced.remove(name) {
                    of.insert(name.clone(), waiting);
                } else {
                    of.remove(name);
                    is_changed = true;
                }
            }
            if is_changed {
                stale.insert(name.clone());
                *ids_changed = true;
            }
        }
    }

    /// Writes what [`PartitionTable::claim`] and [`PartitionTable::forget`] changed. Blocks.
    ///
    /// # Errors
    /// The file system's own; it is written the next time, and what is not written is not trusted
    /// at a start.
    pub(super) fn write_changed(&self) -> Result<(), LogError> {
        let _one = lock(&self.writing);
        self.write_changed_ids()
    }

    /// Writes the recovery points of these logs. Blocks.
    pub(super) fn set_recovery_points<'a>(
        &self,
        logs: impl IntoIterator<Item = &'a Log>,
    ) -> Result<(), LogError> {
        let _one = lock(&self.writing);
        self.rows().change(logs, |kept, log| kept.recovery_point = log.recovery_point());
        self.write(RECOVERY_POINTS)
    }

    /// Writes where these logs end, which are closed. Blocks.
    pub(super) fn set_ends<'a>(
        &self,
        logs: impl IntoIterator<Item = &'a Log>,
    ) -> Result<(), LogError> {
        let _one = lock(&self.writing);
        self.rows().change(logs, |kept, log| kept.closed_end = Some(log.synced_end()));
        self.write(LOG_ENDS)
    }

    /// Has a log end at `end` or before where it was closed: it is going to be cut. Blocks.
    pub(super) fn lower_end(&self, log: &Log, end: Offset) -> Result<(), LogError> {
        let _one = lock(&self.writing);
        let name = (log.topic().clone(), log.partition());
        let before = self.rows().of.get(&name).and_then(|row| row.kept.closed_end);
        let lower = |kept: &mut Kept, _: &_| kept.closed_end = kept.closed_end.min(Some(end));
        if !self.rows().change([log], lower) {
            return Ok(());
        }
        self.write(LOG_ENDS).inspect_err(|_| {
            // The next try has to write it.
            self.rows().change([log], |kept, _| kept.closed_end = before);
        })
    }

    /// Writes the high watermarks and log start offsets of these logs, and what deleted ones have
    /// left. Of one that is ahead of the device (`flush.on.ack=false`) only what the device has, so
    /// that a start may ask for all of it. Blocks.
    pub(super) fn set_positions<'a>(
        &self,
        logs: impl IntoIterator<Item = &'a Log>,
    ) -> Result<(), LogError> {
        let _one = lock(&self.writing);
        self.rows().change(logs, |kept, log| {
            let synced_end = log.synced_end();
            (kept.high_watermark, kept.log_start) =
                (log.high_watermark().min(synced_end), log.start_offset().min(synced_end));
            kept.durable_end = kept.recovery_point.max(kept.high_watermark);
        });
        self.write(HIGH_WATERMARKS)?;
        self.write(LOG_STARTS)?;
        self.write_changed_ids()
    }

    /// Up to where a log was compacted.
    pub(super) fn cleaned(&self, log: &Log) -> Offset {
        let name = (log.topic().clone(), log.partition());
        self.rows()
            .of
            .get(&name)
            .filter(|row| row.topic_id == Some(log.topic_id()))
            .and_then(|row| row.kept.cleaned)
            .unwrap_or(0)
    }

    /// Has a log be compacted up to `end` or before: it is going to be cut there, and what comes in
    /// the place of that is another matter. Blocks.
    pub(super) fn lower_cleaned(&self, log: &Log, end: Offset) -> Result<(), LogError> {
        let before = self.cleaned(log);
        if before <= end {
            return Ok(());
        }
        self.set_cleaned(log, end).inspect_err(|_| {
            // The next try has to write it.
            self.rows().change([log], |kept, _| kept.cleaned = Some(before));
        })
    }

    /// Notes up to where a log was compacted. Blocks.
    pub(super) fn set_cleaned(&self, log: &Log, offset: Offset) -> Result<(), LogError> {
        let _one = lock(&self.writing);
        let is_changed = self.rows().change([log], |kept, _| kept.cleaned = Some(offset));
        if is_changed { self.write(CLEANER_OFFSETS) } else { Ok(()) }
    }

    fn write_changed_ids(&self) -> Result<(), LogError> {
        let is_changed = self.rows().ids_changed;
        if is_changed { self.write_ids() } else { Ok(()) }
    }

    /// To be called under `writing`. What changes while it writes is written the next time.
    fn write_ids(&self) -> Result<(), LogError> {
        if self.is_unread {
            return Ok(());
        }
        let stale = std::mem::take(&mut self.rows().stale);
        if !stale.is_empty() {
            let files = [RECOVERY_POINTS, LOG_STARTS, HIGH_WATERMARKS, CLEANER_OFFSETS, LOG_ENDS];
            let written = files.into_iter().try_for_each(|file| self.write(file));
            if written.is_err() {
                self.rows().stale.extend(stale);
                return written;
            }
        }
        let mut rows = self.rows();
        rows.ids_changed = false;
        let ids: Vec<_> =
            rows.written().filter_map(|(name, row)| Some((name.clone(), row.topic_id?))).collect();
        drop(rows);
        let ids = ids.iter().map(|((topic, partition), id)| (&**topic, *partition, *id));
        checkpoint::write_topic_ids(&*self.disk, &self.dir.join(TOPIC_IDS), ids)
            .inspect_err(|_| self.rows().ids_changed = true)
    }

    /// To be called under `writing`.
    fn write(&self, file: &'static str) -> Result<(), LogError> {
        if self.is_unread {
            return Ok(());
        }
        let offset = |kept: &Kept| match file {
            RECOVERY_POINTS => Some(kept.recovery_point),
            LOG_STARTS => Some(kept.log_start),
            HIGH_WATERMARKS => Some(kept.high_watermark),
            LOG_ENDS => kept.closed_end,
            _ => kept.cleaned,
        };
        let rows = self.rows();
        let offsets: Offsets = rows
            .written()
            .filter_map(|(name, row)| Some((name.clone(), (offset(&row.kept)?, row.topic_id))))
            .gather();
        drop(rows);
        checkpoint::write_offsets(&*self.disk, &self.dir.join(file), &offsets)
    }
}

impl Rows {
    /// What the files say.
    fn written(&self) -> impl Iterator<Item = (&Name, &Row)> {
        self.of.iter().map(|(name, row)| (name, self.displaced.get(name).unwrap_or(row)))
    }

    /// Tells whether anything is different now. A log that is gone says nothing: the row may be of
    /// one that came after it.
    fn change<'a>(
        &mut self,
        logs: impl IntoIterator<Item = &'a Log>,
        change: impl Fn(&mut Kept, &Log),
    ) -> bool {
        let mut changed = false;
        for log in logs.into_iter().filter(|log| !log.is_gone()) {
            let row = self.of.get_mut(&(log.topic().clone(), log.partition()));
            if let Some(row) = row.filter(|row| row.topic_id == Some(log.topic_id())) {
                let before = row.kept;
                change(&mut row.kept, log);
                changed |= row.kept != before;
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use letterbox_env::Env;
    use uuid::Uuid;

    use super::*;

    /// `partition-topic-ids` was removed by hand, and the files beside it are of different age.
    #[test]
    fn without_the_list_each_offset_counts_for_the_topic_that_its_own_file_says() {
        let (disk, dir) = (Env::real().disk, tempfile::tempdir().unwrap());
        let (older, newer) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let name: Name = ("t".into(), 0);
        for (file, offset, said) in [
            (RECOVERY_POINTS, 1_000, Some(older)),
            (LOG_STARTS, 20, Some(newer)),
            (HIGH_WATERMARKS, 30, None),
            (LOG_ENDS, 40, Some(newer)),
            (CLEANER_OFFSETS, 900, Some(older)),
        ] {
            let offsets = Offsets::from([(name.clone(), (offset, said))]);
            checkpoint::write_offsets(&*disk, &dir.path().join(file), &offsets).unwrap();
        }
        let claimed = |by| PartitionTable::read(&disk, dir.path()).unwrap().claim(&name, by);
        let of_newer = Kept {
            log_start: 20,
            high_watermark: 30,
            closed_end: Some(40),
            durable_end: 40,
            ..Kept::default()
        };
        assert_eq!(claimed(newer), of_newer);
        let of_older = Kept {
            recovery_point: 1_000,
            high_watermark: 30,
            cleaned: Some(900),
            durable_end: 1_000,
            ..Kept::default()
        };
        assert_eq!(claimed(older), of_older);
    }
}
