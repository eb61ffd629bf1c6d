//! What can go wrong with a disk while it runs. Power cuts are [`super::SimDisk::power_cut`].

use std::collections::BTreeMap;

use super::content::Fate;

/// A fault that an operation on a file meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `sync` fails with EIO; some of the unsynced bytes are on the platter, the others are
    /// forgotten, and the next sync succeeds (what Linux does).
    FailSync,
    /// As `FailSync`, with ENOSPC: a file system that finds its blocks late (NFS does).
    NoSpaceAtSync,
    /// `sync` says yes and does nothing: a device that ignores flushes. No promise holds on such a
    /// device; it shows that a test would notice software that does not sync.
    IgnoreSync,
    /// `sync_dir` fails with EIO; the names stay unsynced.
    FailSyncDir,
    /// A read fails with EIO.
    FailRead,
    /// A write fails with EIO and changes nothing.
    FailWrite,
    /// A write is acknowledged and never reaches the platter.
    DropWrite,
    /// A write is acknowledged and lands this many sectors further on (or back).
    MisdirectWrite(i64),
    /// Whatever changes something or makes it durable fails with EIO; half of a write is there.
    FailChange,
    /// Whatever changes something fails with ENOSPC; half of a write is there. Syncs succeed.
    NoSpace,
    /// Nothing is opened (EMFILE), not even a directory to sync it.
    NoDescriptor,
    /// Whatever is asked of the directory fails with this number.
    Refuse(i32),
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::FailSync => "failed sync",
            Self::NoSpaceAtSync => "no space at sync",
            Self::IgnoreSync => "ignored sync",
            Self::FailSyncDir => "failed directory sync",
            Self::FailRead => "failed read",
            Self::FailWrite => "failed write",
            Self::DropWrite => "dropped write",
            Self::MisdirectWrite(_) => "misdirected write",
            Self::FailChange => "failed change",
            Self::NoSpace => "no space for a change",
            Self::NoDescriptor => "no descriptor for a file",
            Self::Refuse(_) => "refusal",
        }
    }
}

/// What an operation is, for the choice of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Sync,
    SyncDir,
    Read,
    Write,
    Open,
    /// Any of those on names, beside what it is else.
    Name,
    /// Any that changes something, beside what it is else.
    Change {
        /// Or makes it durable.
        is_sync: bool,
    },
}

struct Rule {
    fault: Fault,
    path_part: String,
    skip: u64,
    times: u64,
}

/// The faults that wait for their operation, and how many have fired.
#[derive(Default)]
pub(crate) struct Faults {
    rules: Vec<Rule>,
    fired: BTreeMap<&'static str, u64>,
}

impl Faults {
    pub(crate) fn add(&mut self, fault: Fault, path_part: &str, skip: u64, times: u64) {
        self.rules.push(Rule { fault, path_part: path_part.to_owned(), skip, times });
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    pub(crate) fn note(&mut self, name: &'static str) {
        *self.fired.entry(name).or_default() += 1;
    }

    pub(crate) fn fired(&self) -> BTreeMap<&'static str, u64> {
        self.fired.clone()
    }

    /// The fault that `operation` on `path` meets now, if any.
    pub(crate) fn meet(&mut self, operation: Operation, path: &str) -> Option<Fault> {
        let found =
            self.rules.iter_mut().filter(|rule| path.contains(&rule.path_part)).find_map(|rule| {
                let fits = matches!(
                    (rule.fault, operation),
                    (Fault::FailSync | Fault::NoSpaceAtSync | Fault::IgnoreSync, Operation::Sync)
                        | (Fault::FailSyncDir, Operation::SyncDir)
                        | (Fault::FailRead, Operation::Read)
                        | (
                            Fault::FailWrite | Fault::DropWrite | Fault::MisdirectWrite(_),
                            Operation::Write
                        )
                        | (Fault::FailChange, Operation::Change { .. })
                        | (Fault::NoSpace, Operation::Change { is_sync: false })
                        | (Fault::NoDescriptor, Operation::Open)
                        | (Fault::Refuse(_), Operation::Name)
                );
                if !fits || rule.times == 0 {
                    return None;
                }
                if rule.skip > 0 {
                    rule.skip -= 1;
                    return None;
                }
                rule.times -= 1;
                Some(rule.fault)
            });
        self.rules.retain(|rule| rule.times > 0);
        if let Some(fault) = found {
            self.note(fault.name());
        }
        found
    }
}

impl From<Option<Fault>> for Fate {
    fn from(fault: Option<Fault>) -> Self {
        match fault {
            Some(Fault::DropWrite) => Self::Dropped,
            Some(Fault::MisdirectWrite(sectors)) => Self::Moved(sectors),
            _ => Self::Honest,
        }
    }
}
