//! Deleting what is old or too much.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::Log;
use super::error::{IoContext, LogError};
use super::segment::Segment;
use crate::model::TimestampMs;

impl Log {
    /// Takes away sealed segments before the log start, older than `retention.ms`, or beyond `retention.bytes`;
    /// never past the high watermark. Gives the renamed files, to be removed after `file.delete.delay.ms`. Blocks.
    ///
    /// # Errors
    /// The file system's own.
    pub(super) fn apply_retention(&self, now: TimestampMs) -> Result<Vec<PathBuf>, LogError> {
        let config = self.config();
        let count = self.deletable(now).during("look at segments of", &self.path)?;
        let segments = self.segments.load_full();
        if count == segments.len() && self.active().size() > 0 && config.cleanup_policy.delete {
            self.roll_now(now).during("roll", &self.path)?;
        }
        let _one = self.disk_work.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let segments = self.segments.load_full();
        let count = count.min(segments.len().saturating_sub(1));
        let (gone, kept) = segments.split_at_checked(count).unwrap_or_default();
        let Some(first) = kept.first().filter(|_| count > 0) else { return Ok(Vec::new()) };
        self.start.fetch_max(first.base, std::sync::atomic::Ordering::AcqRel);
        self.forget_before_start();
        self.segments_remove(gone);
        tracing::info!(topic = %self.topic(), partition = self.partition(), segments = count, log_start_offset = self.start_offset(), "deleted old segments");
        self.rename_deleted(gone)
    }

    /// How many of the oldest segments may go.
    fn deletable(&self, now: TimestampMs) -> io::Result<usize> {
        let (config, segments) = (self.config(), self.segments.load_full());
        let (high_watermark, start, end) = (self.high_watermark(), self.start_offset(), self.end_offset());
        let retention_bytes = u64::try_from(config.retention_bytes).ok().filter(|_| config.cleanup_policy.delete);
        let retention_ms = Some(config.retention_ms).filter(|ms| *ms >= 0 && config.cleanup_policy.delete);
        let mut excess = retention_bytes.map_or(0, |max| self.size().saturating_sub(max));
        let mut count = 0;
        for (at, segment) in segments.iter().enumerate() {
            let segment_end = segments.get(at + 1).map_or(end, |next| next.base);
            if segment_end > high_watermark || segment.size() == 0 {
                break;
            }
            let before_start = at + 1 < segments.len() && segment_end <= start;
            let too_much = excess >= segment.size();
            // Without a timestamp (−1) a segment is not old but unknown: Kafka keeps it by its modification time.
            let too_old = |segment: &Segment| -> io::Result<bool> {
                let Some(retention_ms) = retention_ms else { return Ok(false) };
                Ok(segment.max_timestamp()?.is_some_and(|max| max.0 >= 0 && now.saturating_sub(max.0) > retention_ms))
            };
            if !(before_start || too_much || too_old(segment)?) {
                break;
            }
            excess = excess.saturating_sub(segment.size());
            count = at + 1;
        }
        Ok(count)
    }

    fn segments_remove(&self, gone: &[Arc<Segment>]) {
        self.replace_segments(|segments| segments.retain(|segment| !gone.iter().any(|gone| Arc::ptr_eq(gone, segment))));
    }

    fn rename_deleted(&self, gone: &[Arc<Segment>]) -> Result<Vec<PathBuf>, LogError> {
        let mut renamed = Vec::new();
        for segment in gone {
            segment.retire().during("open", segment.path(".log"))?;
            for suffix in [".log", ".index", ".timeindex", ".txnindex"] {
                let (from, to) = (segment.path(suffix), segment.path(&format!("{suffix}.deleted")));
                if self.dir.disk.exists(&from).during("look for", &from)? {
                    self.dir.disk.rename(&from, &to).during("rename", &from)?;
                    renamed.push(to);
                }
            }
        }
        self.dir.disk.sync_dir(&self.path).during("sync", &self.path)?;
        Ok(renamed)
    }
}
