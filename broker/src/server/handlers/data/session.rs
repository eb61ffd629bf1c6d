//! A fetch session (KIP-227): what was asked for in it, and which of that may have news.
//!
//! A request names what changed, and an answer what has news; an idle partition is in neither. Each
//! partition marks itself when it moves, so that the others cost nothing, neither when a request
//! comes nor when one that waits is woken.
//!
//! Followers and consumers differ in what they are shown, what is news to them, and what becomes of
//! it once it was told: see [`Side`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use kafka_protocol::messages::TopicName;
use kafka_protocol::messages::fetch_request::FetchPartition;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{LeaderEpoch, Offset, TopicId};
use letterbox_storage::ReadResult;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Services;
use super::fetch::{Fetched, FetchedPartition, FetchedTopic, Left, Looks};
use crate::replication::fetcher::Key;
use crate::replication::waiters::Marks;
use crate::server::budget::Share;

/// The epoch of a request that begins a session.
pub(super) const NEW: i32 = 0;
/// That of a request without one.
pub(super) const NONE: i32 = -1;
/// Partitions that are looked at before other tasks have a turn.
pub(super) const AT_ONCE: usize = 64;
/// Partitions in one answer of a session that goes on: it is written down where it takes the thread
/// from others.
const TOLD_MAX: usize = 500;

/// From 1 on, and 1 again after the largest.
pub(super) fn next_epoch(epoch: i32) -> i32 {
    epoch.checked_add(1).unwrap_or(1)
}

/// What is asked of one partition.
#[derive(Clone, Copy)]
pub(super) struct What {
    pub(super) index: i32,
    pub(super) leader_epoch: LeaderEpoch,
    pub(super) at: Offset,
    /// Of followers: that of the record before `at`, and where their log starts.
    pub(super) last_epoch: LeaderEpoch,
    pub(super) start: Offset,
    pub(super) max_bytes: i32,
}

impl From<&FetchPartition> for What {
    fn from(what: &FetchPartition) -> Self {
        Self {
            index: what.partition,
            leader_epoch: what.current_leader_epoch,
            at: what.fetch_offset,
            last_epoch: what.last_fetched_epoch,
            start: what.log_start_offset,
            max_bytes: what.partition_max_bytes,
        }
    }
}

/// An answer about a partition with nothing but an error, if any.
pub(super) fn said(index: i32, error: ErrorCode) -> FetchedPartition {
    FetchedPartition {
        index,
        error,
        high_watermark: -1,
        log_start_offset: -1,
        diverging: None,
        records: ReadResult::default(),
    }
}

/// What was found in a partition.
pub(super) struct Found {
    pub(super) fetched: FetchedPartition,
    /// It is to be told, beside records.
    pub(super) is_news: bool,
    /// It is to be told at once.
    pub(super) is_urgent: bool,
    /// There are records, of which the answer holds none.
    pub(super) has_more: bool,
}

/// Whose session it is.
pub(super) trait Side: Send {
    /// What is asked of a partition. Dropped, it leaves nothing behind.
    type Asked: Send;

    /// Looks at a partition, after it has had `marks` told of what comes from then on, so that no
    /// move is missed in between.
    fn look(
        &mut self,
        services: &Services,
        asked: (Key, &mut Self::Asked),
        marks: &Arc<Marks>,
        left: &Left,
        memory: &mut Share,
    ) -> impl Future<Output = Found> + Send;

    /// The other side hears of this now; whether the session still has the partition.
    fn told(
        &mut self,
        key: Key,
        asked: &mut Self::Asked,
        fetched: &FetchedPartition,
        marks: &Arc<Marks>,
    ) -> bool;

    /// Its name, where the answer says names.
    fn name(&self, topic: &TopicId) -> TopicName;
}

pub(super) struct Session<S: Side> {
    pub(super) id: i32,
    /// Of the next request.
    pub(super) epoch: i32,
    pub(super) asked: BTreeMap<Key, S::Asked>,
    /// Those that may have news.
    pub(super) marks: Arc<Marks>,
    /// Where the next round begins, because an answer is bounded: at the first that was passed over
    /// for others, or behind the last that got records. Whoever is first gets a batch of any size.
    next: Bound<Key>,
    pub(super) side: S,
}

/// When an answer is worth it.
#[derive(Clone, Copy)]
pub(super) struct Wants {
    /// Bytes that it holds at most.
    pub(super) most: usize,
    pub(super) min_bytes: usize,
    pub(super) deadline: Instant,
}

/// One round over the partitions that may have news.
pub(super) struct Gathered {
    /// What is to be told.
    found: Vec<(Key, FetchedPartition)>,
    /// Those that have more than the answer holds.
    left: BTreeSet<Key>,
    next: Bound<Key>,
    /// Whether it is worth an answer before the wait is over.
    pub(super) is_enough: bool,
    /// Of records.
    pub(super) bytes: usize,
}

impl Gathered {
    /// Those that it is about, to be looked at again.
    pub(super) fn keys(self) -> BTreeSet<Key> {
        let mut keys = self.left;
        keys.extend(self.found.into_iter().map(|(key, _)| key));
        keys
    }
}

impl<S: Side> Session<S> {
    pub(super) fn new(id: i32, side: S) -> Self {
        let (asked, marks) = (BTreeMap::new(), Arc::default());
        Self { id, epoch: NEW, asked, marks, next: Bound::Unbounded, side }
    }

    /// What is to be told of `due` and of those that move meanwhile, as soon as it is worth it, with
    /// the memory that it holds.
    pub(super) async fn wait(
        &mut self,
        services: &Services,
        mut due: BTreeSet<Key>,
        Wants { most, min_bytes, mut deadline }: Wants,
        (held, hurry): (&Share, &Notify),
    ) -> (Gathered, Share) {
        let (marks, mut looks) = (self.marks.clone(), Looks::default());
        loop {
            due.append(&mut marks.take());
            let mut memory = Share::new(&services.memory);
            let gathered = self.gather(services, due, (most, min_bytes), &mut memory).await;
            if gathered.is_enough || Instant::now() >= deadline {
                return (gathered, memory);
            }
            due = gathered.keys();
            // What waits holds no records.
            drop(memory);
            tokio::select! {
                biased;
                () = looks.after(&marks.came, due.len()) => {}
                () = tokio::time::sleep_until(deadline) => {}
                () = hurry.notified() => deadline = Instant::now(),
                () = held.until_pressed() => deadline = Instant::now(),
            }
        }
    }

    async fn gather(
        &mut self,
        services: &Services,
        due: BTreeSet<Key>,
        (most, min_bytes): (usize, usize),
        memory: &mut Share,
    ) -> Gathered {
        let (mut left, mut bytes, mut is_urgent) = (Left::new(most), 0, false);
        let (mut found, mut more) = (Vec::new(), BTreeSet::new());
        let (mut passed_over, mut served) = (None, None);
        // The first answer of a session names all.
        let told_max = if self.epoch == NEW { usize::MAX } else { TOLD_MAX };
        let first = due.range((self.next, Bound::Unbounded));
        let behind = match self.next {
            Bound::Unbounded => None,
            Bound::Included(next) => Some(due.range(..next)),
            Bound::Excluded(last) => Some(due.range(..=last)),
        };
        let in_turn = first.chain(behind.into_iter().flatten());
        for (n, key) in in_turn.copied().enumerate() {
            if n % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let Some(asked) = self.asked.get_mut(&key) else { continue };
            if found.len() >= told_max {
                more.insert(key);
                passed_over = passed_over.or(Some(key));
                continue;
            }
            let looked = self.side.look(services, (key, asked), &self.marks, &left, memory).await;
            is_urgent |= looked.is_urgent;
            bytes += looked.fetched.records.bytes;
            left.take(&looked.fetched.records);
            let has_records = looked.fetched.records.bytes > 0;
            if looked.has_more {
                more.insert(key);
                // One that gets nothing though it is first would keep the others from being so.
                passed_over = passed_over.or(Some(key).filter(|_| !has_records && bytes > 0));
            }
            if looked.is_news || has_records {
                found.push((key, looked.fetched));
            }
            if has_records {
                served = Some(key);
            }
        }
        let behind_served = served.map_or(Bound::Unbounded, Bound::Excluded);
        let next = passed_over.map_or(behind_served, Bound::Included);
        let is_full = found.len() >= told_max || left.has_all_files();
        let is_enough = is_urgent || is_full || bytes >= min_bytes;
        Gathered { found, left: more, next, is_enough, bytes }
    }

    /// The other side hears of this now.
    pub(super) fn tell(&mut self, mut gathered: Gathered) -> Fetched {
        gathered.left.iter().for_each(|key| self.marks.note(*key));
        if gathered.next != Bound::Unbounded {
            self.next = gathered.next;
        }
        gathered.found.sort_unstable_by_key(|(key, _)| *key);
        let mut topics: Vec<FetchedTopic> = Vec::new();
        for (key, fetched) in gathered.found {
            if let Some(asked) = self.asked.get_mut(&key)
                && !self.side.told(key, asked, &fetched, &self.marks)
            {
                self.asked.remove(&key);
            }
            match topics.last_mut().filter(|topic| topic.id == key.0) {
                Some(topic) => topic.partitions.push(fetched),
                None => {
                    let (name, partitions) = (self.side.name(&key.0), vec![fetched]);
                    topics.push(FetchedTopic { name, id: key.0, partitions });
                }
            }
        }
        Fetched { topics, ..Fetched::of(ErrorCode::None) }
    }
}
