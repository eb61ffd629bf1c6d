//! The members of a group, and the ids of those to come, which know their size at any time: no event
//! of a large group looks at all of them to find out.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::Arc;

use super::Member;
use crate::coordinator::memory::name_bytes;

/// The members by id.
#[derive(Debug, Default)]
pub(super) struct Members {
    by_id: BTreeMap<Arc<str>, Member>,
    bytes: usize,
    joining: usize,
}

impl Deref for Members {
    type Target = BTreeMap<Arc<str>, Member>;

    fn deref(&self) -> &Self::Target {
        &self.by_id
    }
}

impl Members {
    /// What they take in memory, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        self.bytes
    }

    /// How many of them have a JoinGroup that waits.
    pub(super) fn joining(&self) -> usize {
        self.joining
    }

    /// Puts `member` in under its id.
    pub(super) fn insert(&mut self, member: Member) {
        let after = of(&member);
        let replaced = self.by_id.insert(member.id.clone(), member);
        self.count(replaced.as_ref().map_or((0, 0), of), after);
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Member> {
        let member = self.by_id.remove(id)?;
        self.count(of(&member), (0, 0));
        Some(member)
    }

    /// Changes a member, but for its id. `None`: there is none of that id.
    pub(super) fn change<T>(
        &mut self,
        id: &str,
        change: impl FnOnce(&mut Member) -> T,
    ) -> Option<T> {
        let member = self.by_id.get_mut(id)?;
        let before = of(member);
        let changed = change(member);
        let after = of(member);
        self.count(before, after);
        Some(changed)
    }

    /// Changes every member, but for its id.
    pub(super) fn change_all(&mut self, mut change: impl FnMut(&mut Member)) {
        (self.bytes, self.joining) = (0, 0);
        for member in self.by_id.values_mut() {
            change(member);
            let (bytes, joining) = of(member);
            self.bytes = self.bytes.saturating_add(bytes);
            self.joining = self.joining.saturating_add(joining);
        }
    }

    fn count(&mut self, before: (usize, usize), after: (usize, usize)) {
        self.bytes = self.bytes.saturating_add(after.0).saturating_sub(before.0);
        self.joining = self.joining.saturating_add(after.1).saturating_sub(before.1);
    }
}

/// A member's bytes, and 1 while its JoinGroup waits.
fn of(member: &Member) -> (usize, usize) {
    (member.held_bytes(), usize::from(member.awaiting_join.is_some()))
}

/// A set of names.
#[derive(Debug, Default)]
pub(super) struct Names {
    names: BTreeSet<Arc<str>>,
    bytes: usize,
}

impl Deref for Names {
    type Target = BTreeSet<Arc<str>>;

    fn deref(&self) -> &Self::Target {
        &self.names
    }
}

impl Names {
    /// What they take in memory, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn insert(&mut self, name: Arc<str>) {
        let bytes = name_bytes(&name);
        if self.names.insert(name) {
            self.bytes = self.bytes.saturating_add(bytes);
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        if self.names.remove(name) {
            self.bytes = self.bytes.saturating_sub(name_bytes(name));
        }
    }
}
