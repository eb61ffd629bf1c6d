//! openraft's log store on the [`Wal`]. Entries are also kept in memory: snapshots keep them few.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use letterbox_env::{Env, Fault};
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{AnyError, EntryPayload, RaftLogReader, StorageIOError};

use super::patience::{Of, Patience};
use super::snapshot::Coverage;
use super::types::{
    Entry, NodeLogId, Reached, StorageError, StoredMembership, TypeConfig, Vote, decode_entry,
    encode_entry, log_id,
};
use super::wal::{Item, Wal};

/// The file is written anew after a purge when it is longer than this.
const REWRITE_LEN: usize = 2 << 20;

/// About how many bytes of entries one replication request carries.
const READ_LEN_MAX: usize = 4 << 20;

#[derive(Clone)]
pub(super) struct LogStore {
    env: Env,
    patience: Patience,
    coverage: Coverage,
    /// Whose log it is.
    node_id: u64,
    wal: Arc<Mutex<Wal>>,
    memory: Arc<Mutex<Memory>>,
}

#[derive(Default)]
struct Memory {
    vote: Option<Vote>,
    /// What goes to the disk with the next write: see [`LogStore::is_alone`].
    unwritten: Vec<Item>,
    purged: Option<NodeLogId>,
    entries: BTreeMap<u64, (Entry, usize)>,
    /// Bytes of entries ever appended by this process or read at its start.
    appended: u64,
}

impl LogStore {
    /// Puts together what is in the file. An error names what does not fit.
    pub(super) fn new(
        env: Env,
        patience: Patience,
        coverage: Coverage,
        wal: Wal,
        items: Vec<Item>,
    ) -> Result<Self, String> {
        let mut memory = Memory::default();
        for item in items {
            memory.replay(item)?;
        }
        Ok(Self {
            env,
            patience,
            coverage,
            node_id: wal.node_id(),
            wal: Arc::new(Mutex::new(wal)),
            memory: Arc::new(Mutex::new(memory)),
        })
    }

    pub(super) fn appended_bytes(&self) -> u64 {
        self.memory().appended
    }

    pub(super) fn purged(&self) -> Option<NodeLogId> {
        self.memory().purged
    }

    /// Begins the log with `entry`.
    pub(super) async fn begin(&self, entry: Entry) -> io::Result<()> {
        let bytes = encode_entry(&entry);
        let len = bytes.len();
        match self.is_only_member(&entry) {
            true => self.memory().unwritten.push(Item::Entry(bytes)),
            false => self.write(vec![Item::Entry(bytes)]).await?,
        }
        self.memory().insert(entry, len);
        Ok(())
    }

    /// Whether this node is the only member of its cluster. Then nobody hears of its term before the
    /// first entry of that, so that what its election stores goes to the disk with that entry: what
    /// a power cut takes of it was never told.
    fn is_alone(&self) -> bool {
        let memory = self.memory();
        let mut entries = memory.entries.values().rev().map(|(entry, _)| entry);
        let newest = entries.find(|entry| matches!(entry.payload, EntryPayload::Membership(_)));
        newest.is_some_and(|entry| self.is_only_member(entry))
    }

    fn is_only_member(&self, entry: &Entry) -> bool {
        match &entry.payload {
            EntryPayload::Membership(membership) => {
                membership.nodes().map(|(id, _)| *id).eq([self.node_id])
            }
            _ => false,
        }
    }

    /// The index after the last entry that was ever stored and not truncated.
    pub(super) fn end(&self) -> u64 {
        self.memory().next_index().unwrap_or(0)
    }

    /// The newest entry that was ever stored and not truncated.
    pub(super) fn last(&self) -> Option<NodeLogId> {
        self.memory().last()
    }

    /// How far this log has come.
    pub(super) fn reached(&self) -> Reached {
        let memory = self.memory();
        Reached::new(memory.vote.map_or(0, |vote| vote.leader_id.term), memory.last())
    }

    /// The newest membership among the entries.
    pub(super) fn membership(&self) -> Option<StoredMembership> {
        let memory = self.memory();
        memory.entries.values().rev().find_map(|(entry, _)| match &entry.payload {
            EntryPayload::Membership(membership) => {
                Some(StoredMembership::new(Some(entry.log_id), membership.clone()))
            }
            _ => None,
        })
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(&self, items: Vec<Item>) -> io::Result<()> {
        let all = self.behind_unwritten(items);
        self.write_with(move |wal| wal.append(&all)).await
    }

    fn behind_unwritten(&self, items: Vec<Item>) -> Vec<Item> {
        let mut all = self.memory().unwritten.clone();
        all.extend(items);
        all
    }

    /// `write` writes all that is unwritten, too. There is one writer: openraft's core, once the log
    /// was begun.
    async fn write_with(
        &self,
        write: impl Fn(&mut Wal) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<()> {
        let wal = Arc::clone(&self.wal);
        self.patience
            .write(&self.env, Of::Log, move || {
                write(&mut wal.lock().unwrap_or_else(PoisonError::into_inner))
            })
            .await?;
        self.memory().unwritten.clear();
        Ok(())
    }

    async fn write_purge(&self, upto: NodeLogId) -> io::Result<()> {
        let purge = Item::Purge(upto.leader_id.term, upto.index);
        let whole: Vec<Item> = {
            let memory = self.memory();
            let vote =
                memory.vote.as_ref().and_then(|vote| serde_json::to_vec(vote).ok()).map(Item::Vote);
            let kept = memory
                .entries
                .range(upto.index.saturating_add(1)..)
                .map(|(_, (entry, _))| Item::Entry(encode_entry(entry)));
            vote.into_iter().chain([purge.clone()]).chain(kept).collect()
        };
        let appended = self.behind_unwritten(vec![purge]);
        self.write_with(move |wal| {
            if wal.len() > REWRITE_LEN {
                match wal.rewrite(&whole) {
                    // There is no space for a second file: the one there is grows on until there
                    // is.
                    Err(error) if Fault::of(&error).is_state() => {}
                    result => return result,
                }
            }
            wal.append(&appended)
        })
        .await
    }
}

impl Memory {
    fn replay(&mut self, item: Item) -> Result<(), String> {
        match item {
            Item::Vote(bytes) => {
                self.vote = Some(
                    serde_json::from_slice(&bytes)
                        .map_err(|error| format!("a vote cannot be read: {error}"))?,
                );
            }
            Item::Entry(bytes) => {
                let entry = decode_entry(&bytes).ok_or("an entry cannot be read")?;
                let expected = self.next_index();
                if expected.is_some_and(|expected| expected != entry.log_id.index) {
                    return Err(format!(
                        "entry {} follows where {expected:?} should",
                        entry.log_id.index
                    ));
                }
                self.insert(entry, bytes.len());
            }
            Item::Truncate(from) => drop(self.entries.split_off(&from)),
            Item::Purge(term, index) => self.purge(log_id(term, index)),
        }
        Ok(())
    }

    fn last(&self) -> Option<NodeLogId> {
        self.entries.last_key_value().map(|(_, (entry, _))| entry.log_id).or(self.purged)
    }

    fn next_index(&self) -> Option<u64> {
        self.last().map(|last| last.index.saturating_add(1))
    }

    fn insert(&mut self, entry: Entry, len: usize) {
        self.appended = self.appended.saturating_add(len as u64);
        self.entries.insert(entry.log_id.index, (entry, len));
    }

    fn purge(&mut self, upto: NodeLogId) {
        self.entries = self.entries.split_off(&upto.index.saturating_add(1));
        self.purged = Some(upto);
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        Ok(self.memory().entries.range(range).map(|(_, (entry, _))| entry.clone()).collect())
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        let mut total = 0;
        let memory = self.memory();
        let fits = |(_, (_, len)): &(&u64, &(Entry, usize))| {
            let first = total == 0;
            total += len;
            first || total <= READ_LEN_MAX
        };
        Ok(memory
            .entries
            .range(start..end)
            .take_while(fits)
            .map(|(_, (entry, _))| entry.clone())
            .collect())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let memory = self.memory();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let bytes = serde_json::to_vec(vote)
            .map_err(|error| StorageIOError::write_vote(AnyError::new(&error)))?;
        let is_own = vote.leader_id.voted_for == Some(self.node_id);
        // That this node was elected is nothing that a start of it hears (`read_vote`).
        let is_stored =
            is_own && self.memory().vote.is_some_and(|stored| stored.leader_id == vote.leader_id);
        if !is_stored {
            let item = Item::Vote(bytes);
            match is_own && self.is_alone() {
                true => self.memory().unwritten.push(item),
                false => self
                    .write(vec![item])
                    .await
                    .map_err(|error| StorageIOError::write_vote(AnyError::new(&error)))?,
            }
        }
        self.memory().vote = Some(*vote);
        Ok(())
    }

    /// A lead ends with the process, so that this node's own vote is never given back as that of a
    /// leader: openraft would lead in the old term at once. Were the directory older than the node,
    /// others would have entries of that term, under ids that this node gives to new ones.
    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let mut vote = self.memory().vote;
        if let Some(own) = &mut vote
            && own.leader_id.voted_for == Some(self.node_id)
        {
            own.committed = false;
        }
        Ok(vote)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let encoded: Vec<(Entry, Vec<u8>)> = entries
            .into_iter()
            .map(|entry| (encode_entry(&entry), entry))
            .map(|(b, e)| (e, b))
            .collect();
        let items = encoded.iter().map(|(_, bytes)| Item::Entry(bytes.clone())).collect();
        // The core task waits for the flush in any case, and votes must not overtake entries.
        self.write(items)
            .await
            .map_err(|error| StorageIOError::write_logs(AnyError::new(&error)))?;
        {
            let mut memory = self.memory();
            encoded.into_iter().for_each(|(entry, bytes)| memory.insert(entry, bytes.len()));
        }
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, from: NodeLogId) -> Result<(), StorageError> {
        self.write(vec![Item::Truncate(from.index)])
            .await
            .map_err(|error| StorageIOError::write_logs(AnyError::new(&error)))?;
        drop(self.memory().entries.split_off(&from.index));
        Ok(())
    }

    /// Waits for the snapshot that has these entries: without it, a node that is killed now could
    /// not start again. Meanwhile openraft's core stands still, so this node acknowledges nothing
    /// behind it, votes for nobody and leads nothing.
    async fn purge(&mut self, upto: NodeLogId) -> Result<(), StorageError> {
        let mut stopped = self.patience.stopped();
        let covered = tokio::select! {
            biased;
            covered = self.coverage.reach(upto) => covered,
            () = super::stopped(&mut stopped) => Err(io::Error::other("this node stops")),
        };
        let purged = match covered {
            Ok(()) => self.write_purge(upto).await,
            Err(error) => Err(error),
        };
        purged.map_err(|error| StorageIOError::write_logs(AnyError::new(&error)))?;
        self.memory().purge(upto);
        Ok(())
    }
}
