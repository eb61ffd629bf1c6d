//! The last batches of a log, in memory, so that consumers and followers at the tail read no file.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};

use super::types::{ReadResult, Slice};
use letterbox_protocol::model::Offset;

/// Smaller batches are kept as copies: a slice would keep its whole request in memory.
pub const COPIED_BELOW: usize = 64 << 10;
/// Batches in smaller blocks are joined when they are read.
const JOINED_BELOW: usize = 16 << 10;
/// What a cached batch costs besides its bytes.
const OVERHEAD: usize = 64;

/// Bytes in the caches of all logs, and their bound.
pub(super) struct CacheBudget {
    used: AtomicUsize,
    max: usize,
    max_per_log: usize,
}

impl CacheBudget {
    pub(super) fn new(max: usize, max_per_log: usize) -> Self {
        Self { used: AtomicUsize::new(0), max, max_per_log }
    }
}

impl CacheBudget {
    /// Bytes in all caches.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

struct Cached {
    base: Offset,
    next: Offset,
    /// Where the batch lies; neighbours may share it.
    block: Bytes,
    at: Range<usize>,
}

impl Cached {
    fn len(&self) -> usize {
        self.at.len()
    }

    /// Whether `next` lies right behind this batch in the same block.
    fn continues_in(&self, next: &Self) -> bool {
        self.is_with(next) && self.at.end == next.at.start
    }

    fn is_with(&self, other: &Self) -> bool {
        self.block.as_ptr() == other.block.as_ptr() && self.block.len() == other.block.len()
    }
}

pub(super) struct TailCache {
    budget: Arc<CacheBudget>,
    batches: VecDeque<Cached>,
    used: usize,
    touched: bool,
}

impl TailCache {
    pub(super) fn new(budget: Arc<CacheBudget>) -> Self {
        Self { budget, batches: VecDeque::new(), used: 0, touched: false }
    }

    pub(super) fn push(&mut self, base: Offset, next: Offset, bytes: Bytes) {
        self.touched = true;
        let cost = bytes.len() + OVERHEAD;
        while !self.batches.is_empty()
            && (self.used + cost > self.budget.max_per_log
                || self.budget.used.load(Ordering::Relaxed) + cost > self.budget.max)
        {
            self.pop();
        }
        if cost > self.budget.max_per_log
            || self.budget.used.fetch_add(cost, Ordering::Relaxed) + cost > self.budget.max
        {
            if cost <= self.budget.max_per_log {
                self.budget.used.fetch_sub(cost, Ordering::Relaxed);
            }
            // A hole would hide batches: what is cached must reach the end of the log.
            return self.clear();
        }
        self.used += cost;
        let block = if bytes.len() < COPIED_BELOW { Bytes::copy_from_slice(&bytes) } else { bytes };
        self.batches.push_back(Cached { base, next, at: 0..block.len(), block });
    }

    /// Drops the oldest batch, and all that share its memory.
    fn pop(&mut self) {
        let Some(first) = self.batches.pop_front() else { return };
        let mut cost = first.len() + OVERHEAD;
        while let Some(next) = self.batches.pop_front_if(|next| next.is_with(&first)) {
            cost += next.len() + OVERHEAD;
        }
        self.used -= cost;
        self.budget.used.fetch_sub(cost, Ordering::Relaxed);
    }

    pub(super) fn clear(&mut self) {
        while !self.batches.is_empty() {
            self.pop();
        }
    }

    /// Empties the cache when nothing was appended since the last call.
    pub(super) fn clear_idle(&mut self) {
        if !std::mem::take(&mut self.touched) {
            self.clear();
        }
    }

    /// As `Log::read`; `None` when `from` is not cached. Readers share what they are given: nothing
    /// is copied for one of them.
    pub(super) fn read(
        &mut self,
        from: Offset,
        max_bytes: usize,
        end: Offset,
        at_least_one: bool,
    ) -> Option<ReadResult> {
        let first = self.batches.partition_point(|batch| batch.next <= from);
        self.batches.get(first).filter(|batch| batch.base <= from)?;
        let mut result = ReadResult { next_offset: from, ..ReadResult::default() };
        let mut last = first;
        for batch in self.batches.range(first..).take_while(|batch| batch.next <= end) {
            if result.bytes + batch.len() > max_bytes && !(at_least_one && result.bytes == 0) {
                break;
            }
            result.bytes += batch.len();
            result.next_offset = batch.next;
            last += 1;
        }
        self.join(first, last);
        let mut run: Option<(&Cached, Range<usize>)> = None;
        let mut previous: Option<&Cached> = None;
        for batch in self.batches.range(first..last) {
            match (&mut run, previous) {
                (Some((_, at)), Some(previous)) if previous.continues_in(batch) => {
                    at.end = batch.at.end
                }
                _ => {
                    if let Some((of, at)) = run.replace((batch, batch.at.clone())) {
                        result.slices.push(Slice::Memory(of.block.slice(at)));
                    }
                }
            }
            previous = Some(batch);
        }
        if let Some((of, at)) = run {
            result.slices.push(Slice::Memory(of.block.slice(at)));
        }
        Some(result)
    }

    /// Puts runs of small batches in `first..last` into one block each, which all readers share
    /// from then on: one part of a vectored write instead of hundreds. A batch is copied here once,
    /// or a few times while its block is still small.
    fn join(&mut self, first: usize, last: usize) {
        let mut at = first;
        while at < last {
            let (mut bytes, mut blocks, mut to) = (0, 0, at);
            while let Some(batch) =
                self.batches.get(to).filter(|batch| to < last && batch.block.len() < JOINED_BELOW)
            {
                if bytes + batch.len() > COPIED_BELOW {
                    break;
                }
                let is_new = to == at
                    || self
                        .batches
                        .get(to - 1)
                        .is_none_or(|previous| !previous.continues_in(batch));
                blocks += usize::from(is_new);
                bytes += batch.len();
                to += 1;
            }
            if blocks > 1 {
                let mut joined = BytesMut::with_capacity(bytes);
                for batch in self.batches.range(at..to) {
                    joined.extend_from_slice(batch.block.get(batch.at.clone()).unwrap_or_default());
                }
                let joined = joined.freeze();
                let mut start = 0;
                for batch in self.batches.range_mut(at..to) {
                    let range = start..start + batch.len();
                    start = range.end;
                    (batch.block, batch.at) = (joined.clone(), range);
                }
            }
            at = to.max(at + 1);
        }
    }
}

impl Drop for TailCache {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(max: usize) -> TailCache {
        TailCache::new(Arc::new(CacheBudget::new(max, max)))
    }

    /// What lies at and behind `from`, and where each slice lies in memory.
    fn read(cache: &mut TailCache, from: Offset, end: Offset) -> (Vec<u8>, Vec<*const u8>) {
        let found = cache.read(from, 1 << 20, end, true).unwrap();
        let memory = |slice: &Slice| match slice {
            Slice::Memory(bytes) => bytes.clone(),
            Slice::File { .. } => panic!("the cache reads no file"),
        };
        let slices: Vec<Bytes> = found.slices.iter().map(memory).collect();
        (slices.concat(), slices.iter().map(|slice| slice.as_ptr()).collect())
    }

    #[test]
    fn readers_share_small_batches_instead_of_copying_them() {
        let mut cache = cache(1 << 20);
        let batch = |base: Offset| Bytes::from(vec![u8::try_from(base).unwrap(); 1_000]);
        (0..50).for_each(|base| cache.push(base, base + 1, batch(base)));
        let all: Vec<u8> = (0..50).flat_map(batch).collect();
        let (bytes, first) = read(&mut cache, 0, 50);
        assert_eq!((bytes, first.len()), (all.clone(), 1));
        assert_eq!(
            read(&mut cache, 0, 50),
            (all.clone(), first.clone()),
            "the second reader has a copy of its own"
        );
        let (bytes, middle) = read(&mut cache, 10, 20);
        assert_eq!(
            (bytes.as_slice(), middle[0].addr() - first[0].addr()),
            (&all[10_000..20_000], 10_000)
        );
        // What comes later is joined with itself.
        (50..60).for_each(|base| cache.push(base, base + 1, batch(base)));
        let (bytes, later) = read(&mut cache, 40, 60);
        assert_eq!((bytes, later.len()), ((40..60).flat_map(batch).collect::<Vec<u8>>(), 2));
    }

    #[test]
    fn large_batches_stay_where_they_are() {
        let mut cache = cache(1 << 20);
        let large = Bytes::from(vec![1; COPIED_BELOW]);
        cache.push(0, 1, large.clone());
        cache.push(1, 2, Bytes::from(vec![2; 10]));
        cache.push(2, 3, large.clone());
        let (_, places) = read(&mut cache, 0, 3);
        assert_eq!((places.len(), places[0], places[2]), (3, large.as_ptr(), large.as_ptr()));
    }

    #[test]
    fn what_shares_memory_goes_together_and_is_counted() {
        let mut cache = cache(20_000);
        let budget = cache.budget.clone();
        (0..10).for_each(|base| cache.push(base, base + 1, Bytes::from(vec![0; 1_000])));
        read(&mut cache, 0, 5);
        assert_eq!(budget.used(), 10 * (1_000 + OVERHEAD));
        // There is room for this one when one batch goes; four more lie in the same block.
        cache.push(10, 11, Bytes::from(vec![0; 20_000 - 10 * (1_000 + OVERHEAD) - OVERHEAD + 1]));
        assert!(cache.read(4, 1, 20, true).is_none() && cache.read(5, 1, 20, true).is_some());
        cache.clear();
        assert_eq!(budget.used(), 0);
    }
}
