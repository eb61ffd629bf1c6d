//! What is: one value per cluster, made by a platform from what it read. Failing to reach a broker
//! is an observation, not an error.

use std::collections::{BTreeMap, BTreeSet};

use crate::admin::Identity;
use crate::desired::objects::ObjectKey;

/// What could not be read, or a step that did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// A CamelCase word for it.
    pub reason: String,
    /// What was tried and what was said.
    pub message: String,
}

/// A cluster as it is, compared with its blueprint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// What clients and brokers find each other by: services and the service account. Changing
    /// these never restarts a broker.
    pub access: Compared,
    /// The disruption budget.
    pub budget: Compared,
    /// Whether the disruption budget, as it is, lets no broker be evicted.
    pub holds_evictions: bool,
    /// Things of this cluster that nothing asks for any more and that hold no data: a service of a
    /// removed listener.
    pub stale: Vec<ObjectKey>,
    /// Brokers' definitions with this cluster's label that belong to none of its brokers: what is
    /// on their volumes is not known, so they are left as they are.
    pub strays: Vec<ObjectKey>,
    /// Volume claims with this cluster's label that belong to none of its brokers: nothing uses
    /// them, and there may be records on their volumes.
    pub stray_claims: BTreeSet<String>,
    /// Pods of somebody else that the services of this cluster select.
    pub foreign: Vec<String>,
    /// The brokers, by id.
    pub brokers: BTreeMap<i32, ObservedBroker>,
    /// By listener name: where clients connect first.
    pub bootstrap: BTreeMap<String, String>,
    /// The cluster's id, when a broker told it.
    pub cluster_id: Option<String>,
    /// Whether the operator holds the cluster's object until its volumes are deleted; `None` where
    /// nothing can hold it.
    pub is_held: Option<bool>,
    /// The uids of claims that are gone and never had a volume, where that is known.
    pub unmade: BTreeSet<String>,
    /// What could not be read, and why. The fields above say nothing about it: nothing is planned
    /// for it, and nothing is reported about it except this.
    pub unread: BTreeMap<Part, Fault>,
    /// The kinds of objects whose changes bring no news, and why: they are seen at the next look.
    pub unwatched: BTreeMap<String, String>,
}

impl Observed {
    /// Whether it is known what a part of the cluster is like.
    #[must_use]
    pub fn was_read(&self, part: Part) -> bool {
        !self.unread.contains_key(&part)
    }

    /// Whether it is known which volume claims there are: the platform has claims, and they were
    /// read.
    #[must_use]
    pub fn has_claims(&self) -> bool {
        self.is_held.is_some() && self.was_read(Part::Storage)
    }

    /// Whether a volume of which this is recorded is known never to have been: its claim went
    /// without one, and no broker told a directory on it. So nothing was on it.
    #[must_use]
    pub fn never_was(&self, claim_uid: Option<&String>, directory_id: Option<&String>) -> bool {
        directory_id.is_none() && claim_uid.is_some_and(|uid| self.unmade.contains(uid))
    }
}

/// A part of a cluster that is read and changed apart from the others, so that a fault in one
/// leaves the others going.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Services and the service account.
    Access,
    /// The disruption budget.
    Budget,
    /// Volume claims.
    Storage,
    /// The brokers' definitions: StatefulSets and ConfigMaps.
    Definitions,
    /// The brokers that run: pods.
    Brokers,
    /// What Kubernetes says about brokers that do not run and claims that have no volume: events.
    Events,
}

/// How a part of the cluster compares with what it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// What is not there.
    pub missing: Vec<String>,
    /// What is there and differs.
    pub differs: Vec<Difference>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The thing and its field, for people.
    pub what: String,
    /// Whether it changes what the thing stands for. A label, for one, does not.
    pub is_of_spec: bool,
    /// Whether Kubernetes lets nobody change that field.
    pub is_fixed: bool,
}

impl Compared {
    /// Whether nothing is missing and nothing differs.
    #[must_use]
    pub fn is_as_desired(&self) -> bool {
        self.missing.is_empty() && self.differs.is_empty()
    }

    /// Whether somebody may miss it: it is not there, or its spec differs. What is said about an
    /// object besides that, such as a label, keeps nobody from what it stands for.
    #[must_use]
    pub fn may_be_missed(&self) -> bool {
        !self.missing.is_empty() || self.differs.iter().any(|it| it.is_of_spec)
    }

    /// What is there and differs, for people.
    pub fn different(&self) -> impl Iterator<Item = String> {
        self.differs.iter().map(|it| it.what.clone())
    }

    /// Everything that is to be applied.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        self.missing.iter().cloned().chain(self.different()).collect()
    }
}

/// A broker as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedBroker {
    /// Its definition (configuration, set, process arguments).
    pub definition: Compared,
    /// What of its definition differs and can be changed by nobody: it has to be made again.
    pub fixed: Vec<String>,
    /// What it is doing.
    pub run: Run,
    /// Whether what was started is what the spec asks for: false from a change until the restart
    /// for it.
    pub is_current: bool,
    /// Whether what was started is the newest definition in everything, also in what the spec did
    /// not ask for.
    pub is_newest: bool,
    /// Names what was started, where the platform keeps a definition apart from what was started by
    /// it (a pod's uid) and would start it again by the newest definition; then it has to be ended
    /// to take that up. Otherwise applying a definition restarts it.
    pub to_end: Option<String>,
    /// Its volumes, by name; empty where the platform has none.
    pub volumes: BTreeMap<String, Volume>,
    /// The volumes that it has until it ends, by name: it was given to a node with a claim for each
    /// of them.
    pub mounts: BTreeSet<String>,
    /// The volumes that its definition names: what is started by it, and waits for a claim of one
    /// of these, has that claim as soon as it is there.
    pub defined: BTreeSet<String>,
    /// Whether its definition is being removed, with what runs by it.
    pub is_removed: bool,
    /// Who it says that it is, also while it waits for its directories; `None` where it was not
    /// asked or did not answer.
    pub identity: Option<Identity>,
    /// The image that it runs.
    pub image: Option<String>,
    /// Whether somebody made it another image than it was started with, and it is left so for now.
    pub is_image_left: bool,
    /// Why its cluster says that it does not do without it now; `None` also where nobody asked
    /// ([`Platform::reserve`](crate::platform::Platform::reserve)), or nobody could tell of one that
    /// does not serve.
    pub held_back: Option<String>,
}

/// What a broker is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Run {
    /// It does not run.
    #[default]
    Absent,
    /// It was started and is not ready yet; what it waits for, in plain words.
    Starting(String),
    /// It serves clients.
    Ready,
    /// Its node does not answer: it may run there, and serve. What is known, in plain words.
    Unreachable(String),
    /// It ends again and again, or cannot be started.
    Failing {
        /// A word for it, as Kubernetes says it (`CrashLoopBackOff`, `ImagePullBackOff`).
        reason: String,
        /// What is known, such as its last words.
        message: String,
    },
}

/// A volume as it is; sizes in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// The name of its claim.
    pub claim: String,
    /// The uid of its claim.
    pub uid: String,
    /// The class that its claim names.
    pub class: Option<String>,
    /// What was asked for when the operator made its claim; `None` for a claim that somebody else
    /// made, which is never deleted.
    pub asked: Option<Asked>,
    /// Whether the operator made its claim for this cluster, and its volume came without records:
    /// it may be deleted with the cluster.
    pub is_own: bool,
    /// Whether it is so, and its claim does not say yet which one it is: a copy of it would be taken
    /// for it.
    pub is_unmarked: bool,
    /// Whether there is a volume behind its claim. One that never was has nothing on it.
    pub is_bound: bool,
    /// Whether the volume behind its claim is gone for good.
    pub is_gone: bool,
    /// Whether its claim names a snapshot or another claim whose content its volume is to have.
    pub is_restored: bool,
    /// Whether an earlier object of the cluster had it: its claim says so, or is older.
    pub is_kept: bool,
    /// Whether no volume is made for its claim before there is a pod that has it.
    pub waits_for_pod: bool,
    /// Whether its claim is being deleted.
    pub is_ending: bool,
    /// Whether the broker that runs was started with this claim. Otherwise it has what was behind
    /// an earlier claim of this name, and what it says about its directory is not said of this one.
    pub is_mounted: bool,
    /// Why no volume can be made for its claim, as far as Kubernetes tells.
    pub fault: Option<Fault>,
    /// Why it does not grow to what its claim asks for, as far as Kubernetes tells.
    pub not_grown: Option<Fault>,
    /// What its claim asks for; `None` where that is not understood.
    pub requested: Option<u64>,
    /// What it has; 0 while it is not bound.
    pub capacity: u64,
}

/// What the operator asked for when it made a claim. Admission may have made something else of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The storage class; `None` for the default one.
    pub class: Option<String>,
    /// The size in bytes; `None` where that was not written down, or not understood.
    pub size: Option<u64>,
}

impl ObservedBroker {
    /// Whether the broker says that it uses `log_dir`, whatever is behind it.
    #[must_use]
    pub fn uses(&self, log_dir: &str) -> bool {
        self.identity.as_ref().is_some_and(|said| said.directories.contains_key(log_dir))
    }
}

impl Volume {
    /// Whether it is there only until its broker ends: its claim is being deleted.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.is_bound && self.is_ending && !self.is_gone
    }

    /// Whether its claim is to ask for `size` bytes: more than it does, or less where it cannot
    /// grow to that. Kubernetes lets no claim ask for as little as its volume has.
    #[must_use]
    pub fn is_to_ask_for(&self, size: u64) -> bool {
        let is_less = |asked| size < asked && size > self.capacity && self.not_grown.is_some();
        self.is_bound && self.requested.is_some_and(|asked| asked < size || is_less(asked))
    }
}
