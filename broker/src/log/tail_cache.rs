//! The last batches of a log, in memory, so that consumers and followers at the tail read no file.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};

use super::types::{ReadResult, Slice};
use crate::model::Offset;

/// Smaller batches are kept as copies: a slice would keep its whole request in memory.
pub(crate) const COPIED_BELOW: usize = 64 << 10;
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

struct Cached {
    base: Offset,
    next: Offset,
    bytes: Bytes,
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
            && (self.used + cost > self.budget.max_per_log || self.budget.used.load(Ordering::Relaxed) + cost > self.budget.max)
        {
            self.pop();
        }
        if cost > self.budget.max_per_log || self.budget.used.fetch_add(cost, Ordering::Relaxed) + cost > self.budget.max {
            if cost <= self.budget.max_per_log {
                self.budget.used.fetch_sub(cost, Ordering::Relaxed);
            }
            // A hole would hide batches: what is cached must reach the end of the log.
            return self.clear();
        }
        self.used += cost;
        let bytes = if bytes.len() < COPIED_BELOW { Bytes::copy_from_slice(&bytes) } else { bytes };
        self.batches.push_back(Cached { base, next, bytes });
    }

    fn pop(&mut self) {
        if let Some(old) = self.batches.pop_front() {
            let cost = old.bytes.len() + OVERHEAD;
            self.used -= cost;
            self.budget.used.fetch_sub(cost, Ordering::Relaxed);
        }
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

    /// As `Log::read`; `None` when `from` is not cached.
    pub(super) fn read(&self, from: Offset, max_bytes: usize, end: Offset, at_least_one: bool) -> Option<ReadResult> {
        let at = self.batches.partition_point(|batch| batch.next <= from);
        self.batches.get(at).filter(|batch| batch.base <= from)?;
        let mut result = ReadResult { next_offset: from, ..ReadResult::default() };
        let mut small = BytesMut::new();
        for batch in self.batches.range(at..).take_while(|batch| batch.next <= end) {
            if result.bytes + batch.bytes.len() > max_bytes && !(at_least_one && result.bytes == 0) {
                break;
            }
            result.bytes += batch.bytes.len();
            result.next_offset = batch.next;
            // Many small batches become one slice: one part of a vectored write instead of hundreds.
            if batch.bytes.len() < COPIED_BELOW / 4 {
                small.extend_from_slice(&batch.bytes);
            } else {
                if !small.is_empty() {
                    result.slices.push(Slice::Memory(small.split().freeze()));
                }
                result.slices.push(Slice::Memory(batch.bytes.clone()));
            }
        }
        if !small.is_empty() {
            result.slices.push(Slice::Memory(small.freeze()));
        }
        Some(result)
    }
}

impl Drop for TailCache {
    fn drop(&mut self) {
        self.clear();
    }
}
