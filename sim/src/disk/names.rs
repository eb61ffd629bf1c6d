//! Directories: which names readers see, which would be found after a power cut, and the changes
//! between.
//!
//! The model is a journal, as ext4 and XFS have one, with POSIX's weakest promise about it: a
//! change of names (made, renamed, removed) is durable once a directory it touches was synced,
//! together with the earlier changes it depends on, and not before; syncing a *file* saves no name.
//! Of the rest, a power cut keeps a prefix in the order they were made. A rename is one change: it
//! is kept whole or not at all.

use std::collections::{BTreeMap, BTreeSet};

use crate::rng::Rng;

/// The number of a file or directory. [`ROOT`] is the root directory.
pub(crate) type Inode = u64;

pub(crate) const ROOT: Inode = 0;

#[derive(Clone, Debug)]
enum Change {
    Link { dir: Inode, name: String, inode: Inode },
    Unlink { dir: Inode, name: String },
    Move { from: (Inode, String), to: (Inode, String), inode: Inode },
}

type Entries = BTreeMap<String, Inode>;

/// `durable` plus some prefix of `journal` is what a power cut may leave.
pub(crate) struct Names {
    view: BTreeMap<Inode, Entries>,
    durable: BTreeMap<Inode, Entries>,
    journal: Vec<Change>,
}

impl Names {
    pub(crate) fn new() -> Self {
        let root = BTreeMap::from([(ROOT, Entries::new())]);
        Self { view: root.clone(), durable: root, journal: Vec::new() }
    }

    pub(crate) fn is_dir(&self, inode: Inode) -> bool {
        self.view.contains_key(&inode)
    }

    pub(crate) fn entries(&self, dir: Inode) -> Option<&Entries> {
        self.view.get(&dir)
    }

    pub(crate) fn find(&self, dir: Inode, name: &str) -> Option<Inode> {
        self.view.get(&dir)?.get(name).copied()
    }

    pub(crate) fn link(&mut self, dir: Inode, name: &str, inode: Inode) {
        self.change(Change::Link { dir, name: name.to_owned(), inode });
    }

    pub(crate) fn make_dir(&mut self, dir: Inode, name: &str, inode: Inode) {
        self.view.insert(inode, Entries::new());
        self.durable.insert(inode, Entries::new());
        self.link(dir, name, inode);
    }

    pub(crate) fn unlink(&mut self, dir: Inode, name: &str) {
        self.change(Change::Unlink { dir, name: name.to_owned() });
    }

    pub(crate) fn rename(&mut self, from: (Inode, String), to: (Inode, String), inode: Inode) {
        self.change(Change::Move { from, to, inode });
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.view, &change);
        self.journal.push(change);
    }

    /// Makes the changes that touch `dir` durable, and the earlier ones that they depend on.
    pub(crate) fn sync(&mut self, dir: Inode) {
        let mut dirs = BTreeSet::from([dir]);
        let mut keep = vec![false; self.journal.len()];
        for (i, change) in self.journal.iter().enumerate().rev() {
            if change.dirs().iter().any(|touched| dirs.contains(touched)) {
                keep[i] = true;
                dirs.extend(change.dirs());
            }
        }
        let mut keep = keep.into_iter();
        let durable = &mut self.durable;
        self.journal.retain(|change| {
            let kept = keep.next().unwrap_or(false);
            if kept {
                apply(durable, change);
            }
            !kept
        });
    }

    /// The power fails; returns how many changes of names were lost.
    pub(crate) fn power_cut(&mut self, rng: &mut Rng) -> u64 {
        let all = self.journal.len();
        let kept = match rng.below(3) {
            0 => 0,
            1 => all,
            _ => rng.index(all + 1),
        };
        for change in self.journal.drain(..).take(kept) {
            apply(&mut self.durable, &change);
        }
        self.view.clone_from(&self.durable);
        (all - kept) as u64
    }

    /// Every file and directory that some name leads to, now or after a power cut.
    pub(crate) fn reachable(&self) -> BTreeSet<Inode> {
        let mut found = BTreeSet::from([ROOT]);
        for names in [&self.view, &self.durable] {
            found.extend(names.values().flat_map(BTreeMap::values));
        }
        found.extend(self.journal.iter().filter_map(|change| match change {
            Change::Link { inode, .. } | Change::Move { inode, .. } => Some(*inode),
            Change::Unlink { .. } => None,
        }));
        found
    }

    /// Every file and directory that can be opened now.
    pub(crate) fn visible(&self) -> BTreeSet<Inode> {
        let mut found = BTreeSet::from([ROOT]);
        let mut next = vec![ROOT];
        while let Some(dir) = next.pop() {
            for inode in self.view.get(&dir).into_iter().flat_map(BTreeMap::values) {
                if found.insert(*inode) {
                    next.push(*inode);
                }
            }
        }
        found
    }

    /// Forgets directories that nothing leads to.
    pub(crate) fn forget(&mut self, keep: &BTreeSet<Inode>) {
        self.view.retain(|inode, _| keep.contains(inode));
        self.durable.retain(|inode, _| keep.contains(inode));
    }
}

impl Change {
    fn dirs(&self) -> Vec<Inode> {
        match self {
            Self::Link { dir, .. } | Self::Unlink { dir, .. } => vec![*dir],
            Self::Move { from, to, .. } => vec![from.0, to.0],
        }
    }
}

fn apply(names: &mut BTreeMap<Inode, Entries>, change: &Change) {
    let mut at = |dir: &Inode, name: &str, inode: Option<Inode>| {
        let entries = names.entry(*dir).or_default();
        match inode {
            Some(inode) => entries.insert(name.to_owned(), inode),
            None => entries.remove(name),
        };
    };
    match change {
        Change::Link { dir, name, inode } => at(dir, name, Some(*inode)),
        Change::Unlink { dir, name } => at(dir, name, None),
        Change::Move { from, to, inode } => {
            at(&from.0, &from.1, None);
            at(&to.0, &to.1, Some(*inode));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after_cuts(build: impl Fn(&mut Names)) -> BTreeSet<Vec<String>> {
        (0..64)
            .map(|seed| {
                let mut names = Names::new();
                build(&mut names);
                names.power_cut(&mut Rng::new(seed));
                names.view[&ROOT].keys().cloned().collect()
            })
            .collect()
    }

    fn sets(found: &[&[&str]]) -> BTreeSet<Vec<String>> {
        found.iter().map(|names| names.iter().map(|name| (*name).to_owned()).collect()).collect()
    }

    #[test]
    fn names_are_durable_only_after_their_directory_was_synced() {
        let unsynced = after_cuts(|names| {
            names.link(ROOT, "a", 1);
            names.link(ROOT, "b", 2);
        });
        assert_eq!(unsynced, sets(&[&[], &["a"], &["a", "b"]]));
        let synced = after_cuts(|names| {
            names.link(ROOT, "a", 1);
            names.sync(ROOT);
            names.link(ROOT, "b", 2);
        });
        assert_eq!(synced, sets(&[&["a"], &["a", "b"]]));
    }

    #[test]
    fn a_rename_is_kept_whole_or_not_at_all() {
        let found = after_cuts(|names| {
            names.link(ROOT, "a", 1);
            names.link(ROOT, "b", 2);
            names.sync(ROOT);
            names.rename((ROOT, "a".into()), (ROOT, "b".into()), 1);
        });
        assert_eq!(found, sets(&[&["a", "b"], &["b"]]));
    }

    #[test]
    fn syncing_the_target_of_a_rename_takes_the_making_of_the_file_along() {
        let mut names = Names::new();
        names.make_dir(ROOT, "d", 1);
        names.sync(ROOT);
        names.link(1, "x", 2);
        names.link(ROOT, "other", 3);
        names.rename((1, "x".into()), (ROOT, "x".into()), 2);
        names.sync(ROOT);
        assert_eq!(names.durable[&ROOT].get("x"), Some(&2));
        assert_eq!(names.durable[&1].len(), 0);
        assert_eq!(names.journal.len(), 0);
    }

    #[test]
    fn syncing_one_directory_saves_nothing_of_another() {
        let mut names = Names::new();
        names.make_dir(ROOT, "d", 1);
        names.link(1, "x", 2);
        names.sync(1);
        assert!(names.durable[&ROOT].is_empty(), "the new directory's own name is its parent's");
    }
}
