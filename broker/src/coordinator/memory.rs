//! How much memory groups and their offsets hold, over all partitions of this broker, and the
//! bounds.
//!
//! Kafka bounds the members of a group (`group.max.size`) and nothing else. A member's metadata
//! outlives its request, so here the bytes are bounded too:
//!
//! | what | bound | past it |
//! |---|---|---|
//! | one member's protocols with their metadata | [`MEMBER_BYTES_MAX`] | INVALID_REQUEST: such a group could not be written either |
//! | all groups with their members, those that were only given an id, and assignments | [`GROUPS_BYTES_MAX`]; the last quarter is for small members | COORDINATOR_NOT_AVAILABLE, which clients retry |
//! | all offsets | [`OFFSETS_BYTES_MAX`] | COORDINATOR_NOT_AVAILABLE for commits that add to it; others go on |
//!
//! Figures are estimates: the bytes of the strings and a stated amount for each object around them.
//! A bound may be passed by one request per partition at the same moment. What the log holds is
//! loaded in any case.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::runtime::Now;

/// The most bytes that one member's protocols may take with their metadata: the default
/// `max.message.bytes` of `__consumer_offsets`, into one batch of which the whole group has to fit.
pub(crate) const MEMBER_BYTES_MAX: usize = 1024 * 1024;
/// The most bytes of all groups together.
pub(crate) const GROUPS_BYTES_MAX: usize = 128 * 1024 * 1024;
/// The most bytes of all offsets together.
pub(crate) const OFFSETS_BYTES_MAX: usize = 512 * 1024 * 1024;
/// A member of no more bytes may use the last quarter of the bound.
const SMALL_MEMBER_BYTES: usize = 16 * 1024;
/// For how long refusals are not logged again.
const QUIET_MS: u64 = 60_000;

/// The bytes that the coordinator of this broker holds.
#[derive(Debug)]
pub(crate) struct GroupMemory {
    groups: AtomicUsize,
    offsets: AtomicUsize,
    groups_max: usize,
    offsets_max: usize,
    /// When a refusal was logged last, plus 1; 0 for never.
    told_ms: AtomicU64,
}

impl Default for GroupMemory {
    fn default() -> Self {
        Self::new(GROUPS_BYTES_MAX, OFFSETS_BYTES_MAX)
    }
}

impl GroupMemory {
    /// Nothing is held; the bounds are in bytes.
    #[must_use]
    pub(crate) fn new(groups_max: usize, offsets_max: usize) -> Self {
        Self {
            groups: AtomicUsize::new(0),
            offsets: AtomicUsize::new(0),
            groups_max,
            offsets_max,
            told_ms: AtomicU64::new(0),
        }
    }

    /// Bytes of groups, members and assignments.
    #[must_use]
    pub(crate) fn groups_bytes(&self) -> usize {
        self.groups.load(Ordering::Relaxed)
    }

    /// Bytes of offsets, committed or on their way.
    #[must_use]
    pub(crate) fn offsets_bytes(&self) -> usize {
        self.offsets.load(Ordering::Relaxed)
    }

    /// Whether a member of `bytes` that adds `more` may be taken in.
    pub(super) fn takes_member(&self, bytes: usize, more: usize, now: Now) -> bool {
        let bound =
            if bytes <= SMALL_MEMBER_BYTES { self.groups_max } else { self.groups_max / 4 * 3 };
        let takes = more == 0 || self.groups_bytes().saturating_add(more) <= bound;
        if !takes {
            self.tell(now, "members of groups", self.groups_bytes(), bound);
        }
        takes
    }

    /// Whether offsets that add `more` bytes may be committed.
    pub(super) fn takes_offsets(&self, more: usize, now: Now) -> bool {
        let takes = more == 0 || self.offsets_bytes().saturating_add(more) <= self.offsets_max;
        if !takes {
            self.tell(now, "offsets of groups", self.offsets_bytes(), self.offsets_max);
        }
        takes
    }

    fn tell(&self, now: Now, what: &str, held_bytes: usize, max_bytes: usize) {
        let told_ms = self.told_ms.load(Ordering::Relaxed);
        if told_ms == 0 || now.mono_ms.saturating_sub(told_ms) >= QUIET_MS {
            self.told_ms.store(now.mono_ms.saturating_add(1), Ordering::Relaxed);
            tracing::warn!(
                held_bytes,
                max_bytes,
                "the group coordinator has reached its memory limit for {what}; more are refused \
                with COORDINATOR_NOT_AVAILABLE until members leave (group.max.size, \
                group.max.session.timeout.ms) or offsets expire (offsets.retention.minutes)"
            );
        }
    }
}

/// Which figure a [`Charge`] is part of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Of {
    Groups,
    Offsets,
}

/// What something holds of a [`GroupMemory`]; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    memory: Option<Arc<GroupMemory>>,
    of: Of,
    bytes: usize,
}

impl Charge {
    /// Nothing yet.
    pub(super) fn none(of: Of) -> Self {
        Self { memory: None, of, bytes: 0 }
    }

    /// It is `bytes` now.
    pub(super) fn set(&mut self, memory: &Arc<GroupMemory>, bytes: usize) {
        let memory = self.memory.get_or_insert_with(|| memory.clone());
        let figure = match self.of {
            Of::Groups => &memory.groups,
            Of::Offsets => &memory.offsets,
        };
        figure.fetch_add(bytes, Ordering::Relaxed);
        figure.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.clone() {
            self.set(&memory, 0);
        }
    }
}

/// What one protocol of a member takes.
pub(super) fn protocol_bytes(name: &str, metadata: &[u8]) -> usize {
    const AROUND: usize = 96;
    AROUND.saturating_add(name.len()).saturating_add(metadata.len())
}

/// What a member takes besides its protocols and its assignment; `strings` are the bytes of its
/// ids.
pub(super) fn member_bytes(strings: usize) -> usize {
    const AROUND: usize = 768;
    AROUND.saturating_add(strings)
}

/// What a group takes besides its members.
pub(super) fn group_bytes(id: &str) -> usize {
    const AROUND: usize = 768;
    AROUND.saturating_add(id.len())
}

/// What an id takes that was given out and not used yet.
pub(super) fn name_bytes(name: &str) -> usize {
    const AROUND: usize = 96;
    AROUND.saturating_add(name.len())
}

/// What an offset takes.
pub(super) fn offset_bytes(group: &str, topic: &str, metadata: &str) -> usize {
    const AROUND: usize = 224;
    AROUND.saturating_add(group.len()).saturating_add(topic.len()).saturating_add(metadata.len())
}
