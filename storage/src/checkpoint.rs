//! The small text files beside the data, in Kafka's formats: offset checkpoints of a log directory,
//! the leader epochs of a partition, `partition.metadata`.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;

use letterbox_env::{Disk, OpenMode};

use super::error::{IoContext, LogError};
use super::partition_table::Name;
use letterbox_protocol::model::{LeaderEpoch, Offset, TopicId, decode_uuid, encode_uuid};

/// Up to where each partition needs no recovery.
pub(super) const RECOVERY_POINTS: &str = "recovery-point-offset-checkpoint";
/// Where each log begins, when that is after its first segment's start.
pub(super) const LOG_STARTS: &str = "log-start-offset-checkpoint";
/// High watermarks.
pub(super) const HIGH_WATERMARKS: &str = "replication-offset-checkpoint";
/// Up to where each log was compacted.
pub(super) const CLEANER_OFFSETS: &str = "cleaner-offset-checkpoint";
/// Where each log ended when it was last closed. Not one of Kafka's files.
pub(super) const LOG_ENDS: &str = "log-end-offset-checkpoint";
/// Whose the partitions in the files above are.
pub(super) use letterbox_protocol::topics::PARTITION_TOPIC_IDS as TOPIC_IDS;
/// The leader epochs of one partition.
pub(super) const LEADER_EPOCHS: &str = "leader-epoch-checkpoint";
/// The topic id of one partition.
pub(super) const PARTITION_METADATA: &str = "partition.metadata";
/// Put by a person into the directory of a partition that is damaged or missing: what is lost is
/// lost. Taken away when the partition was opened.
pub(super) const ACCEPT_DATA_LOSS: &str = "accept-data-loss";
/// In a partition's directory: a loss was accepted there, and the log has not been copied anew, nor
/// taken for the one that all others follow.
pub(super) const LACKS_RECORDS: &str = "lacks-records";
/// In a partition's directory: it leads with a loss that was accepted, and began there then. Whether
/// what lies in front was deleted on purpose is not known.
pub(super) const LOST_BEFORE: &str = "lost-before";
/// In a partition's directory: records may have counted that were not on the device.
pub(super) const NOT_SYNCED: &str = "not-synced";
/// Left by a clean stop, taken away at the start.
pub(super) const CLEAN_SHUTDOWN: &str = ".kafka_cleanshutdown";

/// Offsets by topic and partition, and the id of the topic that each is of, which Kafka does not
/// say.
pub(super) type Offsets = BTreeMap<Name, (Offset, Option<TopicId>)>;

fn malformed(path: &Path, reason: impl Into<String>) -> LogError {
    let mut reason = reason.into();
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let files =
        [RECOVERY_POINTS, LOG_STARTS, HIGH_WATERMARKS, CLEANER_OFFSETS, LOG_ENDS, TOPIC_IDS];
    if files.contains(&name) {
        reason.push_str(
            "; restore the file, or remove it: docs/offline-partitions.md says what that costs",
        );
    }
    LogError::Malformed { path: path.into(), reason }
}

/// The lines of a checkpoint of version 0, split at spaces; nothing when the file is not there.
fn read_lines(disk: &dyn Disk, path: &Path) -> Result<Vec<Vec<String>>, LogError> {
    if !disk.exists(path).during("look for", path)? {
        return Ok(Vec::new());
    }
    let bytes = disk.read_stored(path).during("read", path)?;
    let text = String::from_utf8(bytes).map_err(|_| malformed(path, "is not text"))?;
    let mut lines = text.lines();
    if lines.next() != Some("0") {
        return Err(malformed(path, "its version is not 0"));
    }
    let count: usize = lines
        .next()
        .and_then(|line| line.parse().ok())
        .ok_or_else(|| malformed(path, "has no count"))?;
    let rows: Vec<Vec<String>> =
        lines.map(|line| line.split(' ').map(str::to_owned).collect()).collect();
    if rows.len() != count {
        return Err(malformed(path, format!("says {count} entries and has {}", rows.len())));
    }
    Ok(rows)
}

fn write_lines(disk: &dyn Disk, path: &Path, lines: &[String]) -> Result<(), LogError> {
    let mut text = format!("0\n{}\n", lines.len());
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    disk.write_atomically(path, text.as_bytes()).during("write", path)
}

/// Reads an offset checkpoint; empty when there is none.
pub(super) fn read_offsets(disk: &dyn Disk, path: &Path) -> Result<Offsets, LogError> {
    let parse = |row: &Vec<String>| {
        let [topic, partition, offset, id @ ..] = row.as_slice() else { return None };
        let id = match id {
            [] => None,
            [id] => Some(decode_uuid(id)?),
            _ => return None,
        };
        Some(((topic.as_str().into(), partition.parse().ok()?), (offset.parse().ok()?, id)))
    };
    let expected = "a line is not `topic partition offset topic-id`";
    let rows = read_lines(disk, path)?;
    rows.iter().map(|row| parse(row).ok_or_else(|| malformed(path, expected))).collect()
}

/// Writes an offset checkpoint. Blocks.
pub(super) fn write_offsets(
    disk: &dyn Disk,
    path: &Path,
    offsets: &Offsets,
) -> Result<(), LogError> {
    let line = |((topic, partition), (offset, id)): (&Name, &(Offset, Option<TopicId>))| {
        let id = id.map_or_else(String::new, |id| format!(" {}", encode_uuid(id)));
        format!("{topic} {partition} {offset}{id}")
    };
    write_lines(disk, path, &offsets.iter().map(line).collect::<Vec<_>>())
}

/// Reads whose partitions are whose; `None` when there is no such file.
pub(super) fn read_topic_ids(
    disk: &dyn Disk,
    path: &Path,
) -> Result<Option<BTreeMap<Name, TopicId>>, LogError> {
    if !disk.exists(path).during("look for", path)? {
        return Ok(None);
    }
    let parse = |row: &Vec<String>| match row.as_slice() {
        [topic, partition, id] => {
            Some(((topic.as_str().into(), partition.parse().ok()?), decode_uuid(id)?))
        }
        _ => None,
    };
    let rows = read_lines(disk, path)?;
    rows.iter()
        .map(|row| {
            parse(row).ok_or_else(|| malformed(path, "a line is not `topic partition topic-id`"))
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

/// Writes whose partitions are whose. Blocks.
pub(super) fn write_topic_ids<'a>(
    disk: &dyn Disk,
    path: &Path,
    ids: impl Iterator<Item = (&'a str, i32, TopicId)>,
) -> Result<(), LogError> {
    let lines: Vec<_> = ids
        .map(|(topic, partition, id)| format!("{topic} {partition} {}", encode_uuid(id)))
        .collect();
    write_lines(disk, path, &lines)
}

/// Where each leader epoch began: ascending in both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Epochs {
    entries: Vec<(LeaderEpoch, Offset)>,
}

impl Epochs {
    pub(super) fn read(disk: &dyn Disk, dir: &Path) -> Result<Self, LogError> {
        let path = dir.join(LEADER_EPOCHS);
        let mut epochs = Self::default();
        for row in read_lines(disk, &path)? {
            match row.as_slice() {
                [epoch, start] if let (Ok(epoch), Ok(start)) = (epoch.parse(), start.parse()) => {
                    epochs.assign(epoch, start)
                }
                _ => return Err(malformed(&path, "a line is not `epoch offset`")),
            };
        }
        Ok(epochs)
    }

    pub(super) fn write(&self, disk: &dyn Disk, dir: &Path) -> Result<(), LogError> {
        let lines: Vec<_> =
            self.entries.iter().map(|(epoch, start)| format!("{epoch} {start}")).collect();
        write_lines(disk, &dir.join(LEADER_EPOCHS), &lines)
    }

    pub(super) fn latest(&self) -> Option<LeaderEpoch> {
        self.entries.last().map(|entry| entry.0)
    }

    /// Notes that the record at `offset` is of `epoch`, if that is news: the epoch began there, or
    /// before. Entries that contradict it go.
    pub(super) fn assign(&mut self, epoch: LeaderEpoch, offset: Offset) -> bool {
        if epoch < 0 || self.epoch_for(offset) == Some(epoch) {
            return false;
        }
        while self.entries.last().is_some_and(|last| last.0 > epoch || last.1 >= offset) {
            self.entries.pop();
        }
        if self.latest() != Some(epoch) {
            self.entries.push((epoch, offset));
        }
        true
    }

    /// The largest epoch ≤ `epoch`, and its end: where the next begins, or `log_end`.
    pub(super) fn end_offset_for(
        &self,
        epoch: LeaderEpoch,
        log_end: Offset,
    ) -> Option<(LeaderEpoch, Offset)> {
        let after = self.entries.partition_point(|entry| entry.0 <= epoch);
        let (found, _) = self.entries.get(after.checked_sub(1)?)?;
        Some((*found, self.entries.get(after).map_or(log_end, |next| next.1)))
    }

    pub(super) fn epoch_for(&self, offset: Offset) -> Option<LeaderEpoch> {
        let after = self.entries.partition_point(|entry| entry.1 <= offset);
        self.entries.get(after.checked_sub(1)?).map(|entry| entry.0)
    }

    /// Forgets epochs that begin at `end` or later. Tells whether there were any.
    pub(super) fn truncate_from_end(&mut self, end: Offset) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.1 < end);
        self.entries.len() != before
    }

    /// Forgets epochs that end at `start` or before; the one that holds `start` begins there.
    pub(super) fn truncate_from_start(&mut self, start: Offset) -> bool {
        let after = self.entries.partition_point(|entry| entry.1 <= start);
        let Some(holds) = after.checked_sub(1) else { return false };
        let changed = holds > 0 || self.entries.first().is_some_and(|first| first.1 != start);
        self.entries.drain(..holds);
        if let Some(first) = self.entries.first_mut() {
            first.1 = start;
        }
        changed
    }
}

/// The topic id in `partition.metadata`.
pub(super) fn read_partition_metadata(disk: &dyn Disk, dir: &Path) -> Result<TopicId, LogError> {
    let path = dir.join(PARTITION_METADATA);
    let bytes = disk.read_stored(&path).during("read", &path)?;
    let text = String::from_utf8(bytes).map_err(|_| malformed(&path, "is not text"))?;
    let value = |key: &str| {
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": ").map(str::trim))
    };
    if value("version") != Some("0") {
        return Err(malformed(&path, "its version is not 0"));
    }
    value("topic_id").and_then(decode_uuid).ok_or_else(|| malformed(&path, "has no topic_id"))
}

/// Writes `partition.metadata` and waits for the device. Its name is durable when `dir` is synced.
/// Blocks.
pub(super) fn write_partition_metadata(disk: &dyn Disk, dir: &Path, id: TopicId) -> io::Result<()> {
    let text = format!("version: 0\ntopic_id: {}", encode_uuid(id));
    let file = disk.open(&dir.join(PARTITION_METADATA), OpenMode::Truncate)?;
    file.write_at(&[IoSlice::new(text.as_bytes())], 0)?;
    file.sync()
}

#[cfg(test)]
mod tests {
    use letterbox_env::Env;
    use uuid::Uuid;

    use super::*;

    /// A scan begins in the middle of an epoch, and what it finds is mostly known.
    #[test]
    fn a_record_whose_epoch_is_known_changes_nothing_and_one_that_contradicts_corrects() {
        let of = |entries: &[(LeaderEpoch, Offset)]| Epochs { entries: entries.to_vec() };
        let known = of(&[(0, 0), (1, 30), (2, 100)]);
        for (epoch, offset) in [(0, 0), (0, 29), (1, 30), (1, 60), (2, 100), (2, 500), (-1, 60)] {
            let mut epochs = known.clone();
            assert!(!epochs.assign(epoch, offset), "{epoch} at {offset}");
            assert_eq!(epochs, known);
        }
        for (epoch, offset, then) in [
            (3, 500, of(&[(0, 0), (1, 30), (2, 100), (3, 500)])),
            (3, 90, of(&[(0, 0), (1, 30), (3, 90)])),
            (1, 150, of(&[(0, 0), (1, 30)])),
            (1, 10, of(&[(0, 0), (1, 10)])),
        ] {
            let mut epochs = known.clone();
            assert!(epochs.assign(epoch, offset), "{epoch} at {offset}");
            assert_eq!(epochs, then, "{epoch} at {offset}");
        }
    }

    #[test]
    fn files_read_back_and_damage_is_told() {
        let (disk, dir) = (Env::real().disk, tempfile::tempdir().unwrap());
        let path = dir.path().join(RECOVERY_POINTS);
        assert!(read_offsets(&*disk, &path).unwrap().is_empty());
        let id = Uuid::from_u128(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210);
        let offsets =
            Offsets::from([(("a.b-c".into(), 3), (77, Some(id))), (("t".into(), 0), (0, None))]);
        write_offsets(&*disk, &path, &offsets).unwrap();
        let written = b"0\n2\na.b-c 3 77 ASNFZ4mrze_-3LqYdlQyEA\nt 0 0\n";
        assert_eq!(disk.read(&path).unwrap(), written);
        assert_eq!(read_offsets(&*disk, &path).unwrap(), offsets);
        let bads = ["0\n1\nt 0\n", "0\n1\nt x 0\n", "0\n1\nt 0 0 x\n", "0\n1\nt 0 0 x y\n"];
        for bad in ["", "1\n0\n", "0\n2\nt 0 0\n"].into_iter().chain(bads) {
            disk.write_atomically(&path, bad.as_bytes()).unwrap();
            let error = read_offsets(&*disk, &path).unwrap_err();
            assert!(
                matches!(error, LogError::Malformed { .. })
                    && error.to_string().contains("or remove it"),
                "{bad:?}: {error}"
            );
        }
        let path = dir.path().join(TOPIC_IDS);
        assert_eq!(read_topic_ids(&*disk, &path).unwrap(), None);
        write_topic_ids(&*disk, &path, [("t", 7, id)].into_iter()).unwrap();
        assert_eq!(disk.read(&path).unwrap(), b"0\n1\nt 7 ASNFZ4mrze_-3LqYdlQyEA\n");
        assert_eq!(read_topic_ids(&*disk, &path).unwrap(), Some([(("t".into(), 7), id)].into()));
        write_partition_metadata(&*disk, dir.path(), id).unwrap();
        assert_eq!(read_partition_metadata(&*disk, dir.path()).unwrap(), id);
    }

    #[test]
    fn epochs_answer_where_they_end() {
        let mut epochs = Epochs::default();
        assert!(
            epochs.assign(2, 0)
                && epochs.assign(5, 10)
                && !epochs.assign(5, 12)
                && epochs.assign(7, 20)
        );
        for (epoch, answer) in [
            (1, None),
            (2, Some((2, 10))),
            (4, Some((2, 10))),
            (5, Some((5, 20))),
            (9, Some((7, 33))),
        ] {
            assert_eq!(epochs.end_offset_for(epoch, 33), answer);
        }
        assert_eq!(
            (epochs.epoch_for(9), epochs.epoch_for(10), epochs.epoch_for(99)),
            (Some(2), Some(5), Some(7))
        );
        let mut cut = epochs.clone();
        assert!(cut.truncate_from_end(20) && !cut.truncate_from_end(20) && cut.latest() == Some(5));
        assert!(epochs.truncate_from_start(15) && !epochs.truncate_from_start(15));
        assert_eq!(epochs.entries, [(5, 15), (7, 20)]);
        assert!(epochs.assign(8, 15));
        assert_eq!(epochs.entries, [(8, 15)]);
    }
}
