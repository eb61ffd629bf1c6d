//! openraft's state machine: the metadata image.

use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use letterbox_env::{Env, with_causes};
use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{AnyError, EntryPayload, RaftSnapshotBuilder, StorageIOError};
use tokio::sync::watch;

use super::patience::{Of, Patience};
use super::snapshot::{Coverage, Meta, Slots, Stored};
use super::types::{
    Applied, Batch, Entry, NodeLogId, StorageError, StoredMembership, TypeConfig, Voter,
};
use crate::metadata::{MetadataImage, apply, record};

/// Where the newest image is put for everybody else.
#[derive(Clone)]
pub(super) struct Published {
    newest: Arc<ArcSwap<MetadataImage>>,
    watchers: Arc<watch::Sender<Arc<MetadataImage>>>,
}

impl Published {
    pub(super) fn new() -> Self {
        Self { newest: Arc::default(), watchers: Arc::new(watch::Sender::new(Arc::default())) }
    }

    pub(super) fn image(&self) -> Arc<MetadataImage> {
        self.newest.load_full()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<MetadataImage>> {
        self.watchers.subscribe()
    }

    fn publish(&self, image: Arc<MetadataImage>) {
        // First the image, then the news of it: who was woken finds it there.
        self.newest.store(Arc::clone(&image));
        self.watchers.send_replace(image);
    }
}

pub(super) struct StateMachine {
    env: Env,
    patience: Patience,
    published: Published,
    slots: Arc<Mutex<Slots>>,
    coverage: Coverage,
    current: Arc<Mutex<Option<Stored>>>,
    applied: Option<NodeLogId>,
    membership: StoredMembership,
}

impl Drop for StateMachine {
    fn drop(&mut self) {
        self.coverage.fail("the state machine of the metadata log has ended");
    }
}

impl StateMachine {
    /// Starts from the newest snapshot.
    pub(super) fn new(
        env: Env,
        patience: Patience,
        published: Published,
        slots: Arc<Mutex<Slots>>,
        stored: Option<Stored>,
    ) -> Result<Self, String> {
        let coverage = slots.lock().unwrap_or_else(PoisonError::into_inner).coverage();
        let (current, membership) = (Arc::default(), StoredMembership::default());
        let mut machine =
            Self { env, patience, published, slots, coverage, current, applied: None, membership };
        if let Some(stored) = stored {
            let image = read_image(&stored.meta, &stored.data)?;
            machine.take_over(image, stored);
        }
        Ok(machine)
    }

    fn take_over(&mut self, image: MetadataImage, stored: Stored) {
        self.applied = stored.meta.last_log_id;
        self.membership = stored.meta.last_membership.clone();
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(stored);
        self.published.publish(Arc::new(image));
    }

    /// Who waits for a snapshot is told of it: openraft hears it only after that.
    fn fail(&self, error: String) -> AnyError {
        self.coverage.fail(&error);
        AnyError::error(error)
    }

    fn apply_entry(&mut self, image: &mut MetadataImage, entry: Entry) -> Result<Applied, String> {
        let (index, leader_term) = (entry.log_id.index, entry.log_id.leader_id.term);
        self.applied = Some(entry.log_id);
        image.apply_blank(index, leader_term);
        match entry.payload {
            EntryPayload::Blank => Ok(Applied::Done),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Ok(Applied::Done)
            }
            EntryPayload::Normal(Batch { term, .. }) if term != leader_term => {
                Ok(Applied::Outdated)
            }
            EntryPayload::Normal(Batch { term, part, records }) => {
                let applied = image.apply_part(index, term, part, &records);
                let is_done = applied.map_err(|error| with_causes(&error))?;
                Ok(if is_done { Applied::Done } else { Applied::Outdated })
            }
        }
    }
}

/// The image that a snapshot holds.
pub(super) fn read_image(meta: &Meta, data: &[u8]) -> Result<MetadataImage, String> {
    let text = str::from_utf8(data).map_err(|error| with_causes(&error))?;
    let records = record::decode(text).map_err(|error| with_causes(&error))?;
    let index = meta.last_log_id.map_or(0, |id| id.index);
    apply(&MetadataImage::default(), index, &records).map_err(|error| with_causes(&error))
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = Builder;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<NodeLogId>, StoredMembership), StorageError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut image = (*self.published.image()).clone();
        let mut results = Vec::new();
        for entry in entries {
            let log_id = entry.log_id;
            let result = self.apply_entry(&mut image, entry);
            let failed = |error| StorageIOError::apply(log_id, self.fail(error));
            results.push(result.map_err(failed)?);
        }
        self.published.publish(Arc::new(image));
        Ok(results)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            env: self.env.clone(),
            patience: self.patience.clone(),
            image: self.published.image(),
            applied: self.applied,
            membership: self.membership.clone(),
            slots: Arc::clone(&self.slots),
            current: Arc::clone(&self.current),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &openraft::SnapshotMeta<u64, Voter>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let stored = Stored { meta: meta.clone(), data: Arc::new(snapshot.into_inner()) };
        let failed =
            |error| StorageIOError::write_snapshot(Some(meta.signature()), self.fail(error));
        let image = read_image(&stored.meta, &stored.data).map_err(failed)?;
        let written = write(&self.env, &self.patience, &self.slots, &stored).await;
        written.map_err(failed)?;
        self.take_over(image, stored);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        Ok(self.current.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(handle))
    }
}

fn handle(stored: &Stored) -> Snapshot<TypeConfig> {
    Snapshot { meta: stored.meta.clone(), snapshot: Box::new(Cursor::new(stored.data.to_vec())) }
}

async fn write(
    env: &Env,
    patience: &Patience,
    slots: &Arc<Mutex<Slots>>,
    stored: &Stored,
) -> Result<(), String> {
    let (slots, stored) = (Arc::clone(slots), stored.clone());
    let write = move || slots.lock().unwrap_or_else(PoisonError::into_inner).write(&stored);
    patience.write(env, Of::Snapshot, write).await.map_err(|error| with_causes(&error))
}

/// Builds a snapshot of the image at the time it was made.
pub(super) struct Builder {
    env: Env,
    patience: Patience,
    image: Arc<MetadataImage>,
    applied: Option<NodeLogId>,
    membership: StoredMembership,
    slots: Arc<Mutex<Slots>>,
    current: Arc<Mutex<Option<Stored>>>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let failed = |error: String| StorageIOError::write_snapshot(None, AnyError::error(error));
        let image = self.image.clone();
        let encoded = self.env.blocking(move || record::encode(&image.to_records())).await;
        let data = encoded.map_err(|error| failed(with_causes(&error)))?;
        let snapshot_id = self
            .applied
            .map_or_else(|| "0".to_owned(), |id| format!("{}-{}", id.leader_id.term, id.index));
        let meta = Meta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id,
        };
        let stored = Stored { meta, data: Arc::new(data.into_bytes()) };
        write(&self.env, &self.patience, &self.slots, &stored).await.map_err(failed)?;
        let snapshot = handle(&stored);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // A newer one may have been installed meanwhile.
        if current
            .as_ref()
            .is_none_or(|present| present.meta.last_log_id <= stored.meta.last_log_id)
        {
            *current = Some(stored);
        }
        Ok(snapshot)
    }
}
