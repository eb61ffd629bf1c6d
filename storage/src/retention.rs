//! Deleting what is old or too much.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use letterbox_env::Fault;
use letterbox_env::panics::lock;

use super::Log;
use super::error::{IoContext, LogError};
use super::segment::{Held, Segment};
use letterbox_protocol::model::TimestampMs;

/// Segments taken away at once: meanwhile the log's syncs wait.
const AT_ONCE: usize = 64;

impl Log {
    /// Takes away the oldest segments that lie before the log start, are older than `retention.ms`,
    /// or are beyond `retention.bytes`; never past the high watermark. Gives the renamed files, to
    /// be removed after `file.delete.delay.ms`; as long as it gives some there may be more to take
    /// away. Blocks.
    ///
    /// # Errors
    /// The file system's own.
    pub(super) fn apply_retention(&self, now: TimestampMs) -> Result<Vec<PathBuf>, LogError> {
        // Cold indexes are read here, where nobody waits. The decision is made below, while nothing
        // is appended and from what is in memory: a batch that came in meanwhile makes the active
        // segment young again.
        let candidates = self
            .deletable(now, &self.segments.load_full(), usize::MAX, Segment::newest_ms)
            .during("look at segments of", &self.path)?;
        if candidates == 0 && lock(&self.renaming).is_over() {
            return Ok(Vec::new());
        }
        let _one = match self.segment_work("delete old segments of") {
            Err(_) if self.is_gone() => return Ok(Vec::new()),
            one => one?,
        };
        let gone = self
            .take_oldest(now, |segments| {
                Ok(self.deletable_in_memory(now, segments, candidates)?.min(AT_ONCE))
            })
            .during("roll", &self.path)?;
        if !gone.is_empty() {
            self.forget_before_start();
            tracing::info!(topic = %self.topic(), partition = self.partition(), segments = gone.len(), log_start_offset = self.start_offset(), "deleted old segments");
        }
        self.rename_deleted(gone)
    }

    /// As [`Log::deletable`]; what would have to be read stays.
    pub(super) fn deletable_in_memory(
        &self,
        now: TimestampMs,
        segments: &[Arc<Segment>],
        limit: usize,
    ) -> io::Result<usize> {
        self.deletable(now, segments, limit, |segment| Ok(segment.known_newest_ms()))
    }

    /// How many of the oldest segments may go; `limit` at most.
    fn deletable(
        &self,
        now: TimestampMs,
        segments: &[Arc<Segment>],
        limit: usize,
        newest_ms: impl Fn(&Segment) -> io::Result<Option<TimestampMs>>,
    ) -> io::Result<usize> {
        let config = self.config();
        let (high_watermark, start, end) =
            (self.high_watermark(), self.start_offset(), self.end_offset());
        let deletes = config.cleanup_policy.delete;
        let retention_bytes = u64::try_from(config.retention_bytes).ok().filter(|_| deletes);
        let retention_ms = Some(config.retention_ms).filter(|ms| *ms >= 0 && deletes);
        let size: u64 = segments.iter().map(|segment| segment.size()).sum();
        let mut excess = retention_bytes.and_then(|max| size.checked_sub(max));
        let mut count = 0;
        for (at, segment) in segments.iter().enumerate().take(limit) {
            let next = segments.get(at + 1);
            let segment_end = next.map_or(end, |next| next.base);
            if segment_end > high_watermark {
                break;
            }
            let before_start = next.is_some() && segment_end <= start;
            if segment.size() == 0 && !before_start {
                // Compaction emptied it, or nothing was appended yet: it has no age and frees
                // nothing. It goes together with a later one, and never alone: that would move the
                // log start for nothing, and with it groups that are inside.
                continue;
            }
            let too_much = excess.is_some_and(|excess| excess >= segment.size());
            let too_old = |segment: &Segment| -> io::Result<bool> {
                let Some(retention_ms) = retention_ms else { return Ok(false) };
                Ok(newest_ms(segment)?
                    .is_some_and(|newest| now.saturating_sub(newest) > retention_ms))
            };
            if !(before_start || too_much || too_old(segment)?) {
                break;
            }
            excess = excess.map(|excess| excess.saturating_sub(segment.size()));
            count = at + 1;
        }
        Ok(count)
    }

    /// Renames the files of these segments, and of those whose renaming has failed before; gives
    /// their names.
    fn rename_deleted(&self, gone: Vec<Arc<Segment>>) -> Result<Vec<PathBuf>, LogError> {
        lock(&self.renaming).left.extend(gone);
        self.finish_renaming()?;
        Ok(std::mem::take(&mut lock(&self.renaming).done))
    }

    /// Renames the files of segments that were taken away; the oldest first, so that a crash leaves
    /// no hole. To be called while the segment work is held.
    pub(super) fn finish_renaming(&self) -> Result<(), LogError> {
        let mut renaming = lock(&self.renaming);
        if renaming.is_over() {
            return Ok(());
        }
        if !renaming.left.is_empty() {
            self.keep_producers().during("checkpoint", &self.path)?;
        }
        let disk = &self.dir.disk;
        while let Some(segment) = renaming.left.front().cloned() {
            for suffix in [".log", ".index", ".timeindex", ".txnindex"] {
                let (from, to) = (segment.path(suffix), segment.path(&format!("{suffix}.deleted")));
                if disk.exists(&from).during("look for", &from)? {
                    let held = match suffix {
                        ".log" => Some(segment.hold().during("open", &from)?),
                        _ => None,
                    };
                    disk.rename(&from, &to).during("rename", &from)?;
                    held.into_iter().for_each(Held::for_good);
                    renaming.done.push(to);
                }
            }
            renaming.left.pop_front();
        }
        disk.sync_dir(&self.path).during("sync", &self.path)
    }

    /// Makes durable what the producers of the segments that go have sent. Where that lacks a
    /// resource, the segments still go, since they may be what takes the room: after a crash these
    /// producers are then not known.
    fn keep_producers(&self) -> io::Result<()> {
        match self.sync_locked(true) {
            Err(error) if !Fault::of(&error).is_state() => Err(error),
            _ => Ok(()),
        }
    }
}

/// Segments that were taken away and whose files are not handed over yet to be removed: what fails
/// is gone on with the next time.
#[derive(Default)]
pub(super) struct Renaming {
    pub(super) left: VecDeque<Arc<Segment>>,
    /// Files under their new names.
    done: Vec<PathBuf>,
}

impl Renaming {
    fn is_over(&self) -> bool {
        self.left.is_empty() && self.done.is_empty()
    }
}
