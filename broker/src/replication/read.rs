//! Reading a partition: for consumers, coordinators and followers.
//!
//! From the tail cache, else from the page cache, else from the disk on a thread that may wait, when
//! it is the reader's turn.

use std::io;
use std::sync::Arc;

use letterbox_env::Env;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{LeaderEpoch, Offset};
use letterbox_storage::{Log, ReadError, ReadResult, Slice};

use super::Partition;

/// What a reader asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// From the batch that holds this offset on.
    pub from: Offset,
    /// At most so many bytes of batches.
    pub max_bytes: usize,
    /// The first batch even when it is larger than that (KIP-74).
    pub at_least_one_batch: bool,
}

/// What a reader is shown.
pub(crate) struct Shown {
    /// Exclusive end of what it may see.
    pub high_watermark: Offset,
    /// Log start offset.
    pub log_start_offset: Offset,
    /// The batches; `OFFSET_OUT_OF_RANGE` when the log does not reach to where was asked.
    pub records: Result<ReadResult, ErrorCode>,
}

impl Partition {
    /// Reads what is committed. `may_keep` is asked before batches of that size are shown from
    /// memory, which is kept until they were sent; without it they are shown from their file.
    ///
    /// # Errors
    /// As [`Partition::check_led`]; what the log could not read, as Kafka's error.
    pub(crate) async fn read(
        &self,
        env: &Env,
        wanted: Wanted,
        mut may_keep: impl FnMut(usize) -> bool,
    ) -> Result<Shown, ErrorCode> {
        self.check_led()?;
        let log = self.log()?;
        let (high_watermark, log_start_offset) = (self.high_watermark(), log.start_offset());
        let shown = |records| Shown { high_watermark, log_start_offset, records };
        let Wanted { from, max_bytes, at_least_one_batch } = wanted;
        if from < log_start_offset || from > log.end_offset() {
            return Ok(shown(Err(ErrorCode::OffsetOutOfRange)));
        }
        if from >= high_watermark || (max_bytes == 0 && !at_least_one_batch) {
            return Ok(shown(Ok(ReadResult::default())));
        }
        let cached = log
            .try_read_cached(from, max_bytes, high_watermark, at_least_one_batch)
            .map_err(|error| error.code())?;
        if let Some(found) = cached.filter(|found| may_keep(found.bytes)) {
            return Ok(shown(Ok(found)));
        }
        // What was written a while ago is mostly still in the page cache: no hop to a thread that
        // may wait for the disk.
        let found =
            log.try_read_from_page_cache(from, max_bytes, high_watermark, at_least_one_batch);
        let found = if let Some(found) = found {
            found
        } else {
            let (log, cold_reads) = (log.clone(), log.dir().cold_reads().clone());
            let read =
                move || log.read_from_disk(from, max_bytes, high_watermark, at_least_one_batch);
            cold_reads.run(env, read).await.map_err(|error| error.code())?
        };
        if found.lacks_files {
            // A small copy goes on its way whatever others hold.
            may_keep(found.in_memory());
        }
        Ok(shown(Ok(found)))
    }

    /// Reads for a follower what is there, committed or not, as long as this broker leads in
    /// `epoch`. `may_keep` as with [`Partition::read`].
    ///
    /// What is not committed may be cut as soon as this broker does not lead any more, and other
    /// records may take its place in the same file. So that is never shown from its file but
    /// copied, and the epoch is looked at afterwards: whoever follows in `epoch` gets what its
    /// leader had.
    ///
    /// # Errors
    /// `NOT_LEADER_OR_FOLLOWER` when the epoch is over; what the log could not read.
    pub(crate) async fn read_for_follower(
        &self,
        env: &Env,
        epoch: LeaderEpoch,
        wanted: Wanted,
        may_keep: impl FnMut(usize) -> bool,
    ) -> Result<Shown, ErrorCode> {
        let shown = self.read_uncommitted(env, wanted, may_keep).await?;
        if self.leader_epoch() != epoch {
            return Err(ErrorCode::NotLeaderOrFollower);
        }
        Ok(shown)
    }

    async fn read_uncommitted(
        &self,
        env: &Env,
        wanted: Wanted,
        mut may_keep: impl FnMut(usize) -> bool,
    ) -> Result<Shown, ErrorCode> {
        let log = self.log()?;
        let (high_watermark, log_start_offset) = (self.high_watermark(), log.start_offset());
        let shown = |records| Shown { high_watermark, log_start_offset, records };
        let (Wanted { from, max_bytes, at_least_one_batch }, end) = (wanted, log.end_offset());
        if from < log_start_offset || from > end {
            return Ok(shown(Err(ErrorCode::OffsetOutOfRange)));
        }
        if from == end || (max_bytes == 0 && !at_least_one_batch) {
            return Ok(shown(Ok(ReadResult::default())));
        }
        let cached = log
            .try_read_cached(from, max_bytes, end, at_least_one_batch)
            .map_err(|error| error.code())?;
        if let Some(found) = cached.filter(|found| may_keep(found.bytes)) {
            return Ok(shown(Ok(found)));
        }
        if from < high_watermark {
            return self.read(env, wanted, may_keep).await;
        }
        let copied = self.copy(env, from, end, max_bytes).await;
        let (bytes, next_offset) = copied.map_err(|error| error.code())?;
        // One batch goes on its way, whatever others hold.
        if !may_keep(bytes.len()) && !at_least_one_batch {
            return Ok(shown(Ok(ReadResult::default())));
        }
        let len = bytes.len();
        let slices = vec![Slice::Memory(bytes.into())];
        Ok(shown(Ok(ReadResult { slices, bytes: len, next_offset, lacks_files: false })))
    }

    /// Copies whole batches that begin at `from` and end before `end`, committed or not: at least
    /// one, where there is one. Gives the offset that follows them.
    ///
    /// # Errors
    /// What could not be read.
    pub(crate) async fn copy(
        &self,
        env: &Env,
        from: Offset,
        end: Offset,
        max_bytes: usize,
    ) -> Result<(Vec<u8>, Offset), ReadError> {
        let log =
            self.log().map_err(|_| ReadError::from(io::Error::from(io::ErrorKind::NotFound)))?;
        let (log, cold_reads) = (log.clone(), log.dir().cold_reads().clone());
        cold_reads.run(env, move || copy_from(&log, from, end, max_bytes)).await
    }
}

/// Blocks.
fn copy_from(
    log: &Arc<Log>,
    from: Offset,
    end: Offset,
    max_bytes: usize,
) -> Result<(Vec<u8>, Offset), ReadError> {
    let found = log.read_from_disk(from, max_bytes, end, true)?;
    let mut bytes = Vec::with_capacity(found.bytes);
    for slice in &found.slices {
        match slice {
            Slice::Memory(memory) => bytes.extend_from_slice(memory),
            Slice::File { file, position, len, .. } => {
                let start = bytes.len();
                bytes.resize(start + len, 0);
                file.read_exact_at(bytes.get_mut(start..).unwrap_or_default(), *position)?;
            }
        }
    }
    Ok((bytes, found.next_offset))
}
