//! Snapshots as files.
//!
//! `magic "LBXSNAP1", u32 crc32c of the rest, u32 length of meta, meta (JSON), data`. Two slots,
//! written in turn and each atomically; the newest one that is whole counts.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use letterbox_env::Disk;
use tokio::sync::watch;

use super::types::{NodeLogId, Voter, put_block, take_block, take_u32};

pub(super) type Meta = openraft::SnapshotMeta<u64, Voter>;

const MAGIC: &[u8; 8] = b"LBXSNAP1";
const SLOTS: [&str; 2] = ["snapshot-0", "snapshot-1"];

/// A snapshot and its data (records, encoded).
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) meta: Meta,
    pub(super) data: Arc<Vec<u8>>,
}

/// How far the newest durable snapshot goes. Entries go only once they are in one: openraft has the
/// log purged while the snapshot that it has received is still being written.
#[derive(Clone)]
pub(super) struct Coverage(Arc<watch::Sender<Covered>>);

#[derive(Clone, Default)]
struct Covered {
    upto: Option<NodeLogId>,
    /// Why no further snapshot is written.
    failed: Option<Arc<str>>,
}

impl Coverage {
    fn new(upto: Option<NodeLogId>) -> Self {
        Self(Arc::new(watch::Sender::new(Covered { upto, failed: None })))
    }

    pub(super) fn extend(&self, upto: Option<NodeLogId>) {
        self.0.send_modify(|covered| covered.upto = covered.upto.max(upto));
    }

    /// Whoever waits is told that it is in vain. The first reason counts.
    pub(super) fn fail(&self, reason: &str) {
        self.0.send_modify(|covered| {
            covered.failed.get_or_insert_with(|| reason.into());
        });
    }

    /// Waits until a durable snapshot has everything up to `upto`. Cancel safe.
    pub(super) async fn reach(&self, upto: NodeLogId) -> io::Result<()> {
        let mut covered = self.0.subscribe();
        let is_known = |covered: &Covered| covered.upto >= Some(upto) || covered.failed.is_some();
        // The sender lives in `self`.
        let covered = covered.wait_for(is_known).await.map_err(io::Error::other)?;
        match &covered.failed {
            Some(reason) if covered.upto < Some(upto) => Err(io::Error::other(&**reason)),
            _ => Ok(()),
        }
    }
}

/// The directory's snapshots.
pub(super) struct Slots {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    /// Which slot is written next: not the one with the newest whole snapshot.
    next: usize,
    closed: bool,
    coverage: Coverage,
}

impl Slots {
    /// The newest whole snapshot. A slot that is not whole is said in the log and otherwise left
    /// alone: whether the other one is enough shows when the log is laid on top of it.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
    ) -> io::Result<(Self, Option<Stored>)> {
        let mut newest: Option<(usize, Stored)> = None;
        for (slot, name) in SLOTS.iter().enumerate() {
            let path = directory.join(name);
            if !disk.exists(&path)? {
                continue;
            }
            let Some(stored) = decode(&disk.read_stored(&path)?) else {
                tracing::error!(path = %path.display(), "snapshot of the metadata log is damaged; \
                    trying the other one");
                continue;
            };
            if newest
                .as_ref()
                .is_none_or(|(_, best)| stored.meta.last_log_id > best.meta.last_log_id)
            {
                newest = Some((slot, stored));
            }
        }
        let next = newest.as_ref().map_or(0, |(slot, _)| 1 - *slot);
        let newest = newest.map(|(_, stored)| stored);
        let coverage = Coverage::new(newest.as_ref().and_then(|stored| stored.meta.last_log_id));
        Ok((Self { disk, directory: directory.to_owned(), next, closed: false, coverage }, newest))
    }

    pub(super) fn coverage(&self) -> Coverage {
        self.coverage.clone()
    }

    /// Makes `stored` durable. Blocks.
    pub(super) fn write(&mut self, stored: &Stored) -> io::Result<()> {
        if self.closed {
            return Err(io::Error::other("the metadata quorum is shut down"));
        }
        let name = SLOTS.get(self.next).copied().unwrap_or(SLOTS[0]);
        self.disk.write_atomically(&self.directory.join(name), &encode(stored)?)?;
        self.next = 1 - self.next;
        self.coverage.extend(stored.meta.last_log_id);
        Ok(())
    }

    /// Nothing is written any more.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }
}

fn encode(stored: &Stored) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    put_block(&mut body, &serde_json::to_vec(&stored.meta).map_err(io::Error::other)?);
    body.extend(&*stored.data);
    let mut bytes = MAGIC.to_vec();
    bytes.extend(super::wal::crc(&[&body]).to_le_bytes());
    bytes.extend(body);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Option<Stored> {
    let (sum, body) = take_u32(bytes.strip_prefix(MAGIC)?)?;
    (super::wal::crc(&[body]) == sum).then_some(())?;
    let (meta, data) = take_block(body)?;
    Some(Stored { meta: serde_json::from_slice(meta).ok()?, data: Arc::new(data.to_vec()) })
}
