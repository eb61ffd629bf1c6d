//! What about a cluster is waited for, and what is only noted.

use super::loss::Loss;
use crate::api::{ADMIN_PORT, shown};
use crate::desired::objects::ObjectKey;
use crate::observe::{Fault, Part};

/// Why the cluster is not what it should be yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The cluster is being deleted, and its object is still held.
    Deleting {
        /// The finalizers that hold it.
        held_by: Vec<String>,
    },
    /// A broker has lost its records.
    DataLost(Box<Loss>),
    /// A part could not be read: what it is like is not known, and nothing is changed in it.
    NotRead {
        /// Which.
        part: Part,
        /// What was tried and what was said.
        message: String,
        /// Whether nothing else tells that clients have what they had.
        blocks: bool,
    },
    /// A broker cannot run as it is defined.
    BrokerFailing {
        /// Which.
        broker: i32,
        /// A word for it, as Kubernetes says it.
        reason: String,
        /// What is known.
        message: String,
    },
    /// The addresses of some listeners are not known yet.
    Address {
        /// The broker that needs them.
        broker: i32,
        /// The listeners.
        listeners: Vec<String>,
    },
    /// A broker is not restarted while another one is down.
    OtherBrokerDown {
        /// The broker that has to restart.
        broker: i32,
        /// The broker that is down.
        other: i32,
    },
    /// A broker is not restarted while its cluster does not do without it.
    RestartNotSafe {
        /// The broker that has to restart.
        broker: i32,
        /// Why, as the cluster says it.
        why: String,
    },
    /// No node with a broker is drained while the cluster would not do without it.
    EvictionsHeld {
        /// Why, as the cluster says it.
        why: String,
    },
    /// A broker was started and does not serve yet.
    BrokerStarting {
        /// Which.
        broker: i32,
        /// What it waits for.
        detail: String,
    },
    /// A broker has yet to take up its new definition.
    BrokerRestarting {
        /// Which.
        broker: i32,
    },
    /// A broker runs as it was started, and is not restarted with what is asked for now.
    NotRestarted {
        /// Which.
        broker: i32,
        /// Why not.
        why: String,
    },
    /// A broker is not restarted for a volume of which it is not known yet whether it can be made.
    VolumePending {
        /// Whose.
        broker: i32,
        /// Which of its volumes.
        volume: String,
    },
    /// A broker is not restarted for a volume that cannot be made.
    VolumeNotMade {
        /// Whose.
        broker: i32,
        /// Which of its volumes.
        volume: String,
        /// Why, as Kubernetes says it.
        fault: Fault,
    },
    /// The claim of a volume that a broker has is being deleted: the records go when the broker
    /// ends, so nothing here ends it.
    ClaimEnding {
        /// Whose.
        broker: i32,
        /// The claim's name.
        claim: String,
    },
    /// A broker has the last copy of records, because its claim or the volume behind it is gone:
    /// nothing here ends it before that loss is accepted.
    HoldsLastCopy {
        /// Whose.
        broker: i32,
        /// Which of its volumes.
        volume: String,
    },
    /// A broker has yet to go on without what was lost, as a person accepted.
    GoesOnWithout {
        /// Which.
        broker: i32,
        /// The loss.
        loss: String,
    },
    /// Something that clients or brokers need is not there or differs, and is not made while the
    /// cluster is paused.
    NotMade {
        /// What is missing or differs.
        what: Vec<String>,
    },
    /// A broker does not say who it is: what it lost cannot be told from what it never had.
    IdentityUnknown {
        /// Which.
        broker: i32,
    },
    /// A broker serves without one of its log directories.
    VolumeOffline {
        /// Which broker.
        broker: i32,
        /// The volume that the directory is on.
        volume: String,
        /// The directory.
        log_dir: String,
    },
    /// A volume that records are on was taken out of the spec. It stays in use.
    VolumeStillUsed {
        /// Whose.
        broker: i32,
        /// Which of its volumes.
        volume: String,
    },
    /// Somebody changed the image of a broker's pod again, soon after it was restored.
    OtherImage {
        /// Which.
        broker: i32,
        /// The image that it runs.
        image: String,
    },
    /// Something has this cluster's label and is no broker of it.
    Stray {
        /// Its definition.
        set: ObjectKey,
    },
    /// Volume claims have this cluster's label and belong to none of its brokers.
    UnusedClaims {
        /// Their names.
        claims: Vec<String>,
    },
    /// A pod of somebody else gets clients of this cluster.
    Foreign {
        /// Its name.
        pod: String,
    },
    /// What changes of some kind of objects is noticed late.
    NotWatched {
        /// The plural of the kind.
        what: String,
        /// Why.
        message: String,
    },
    /// A volume is of another class than the spec names, and stays so.
    OtherClass {
        /// Whose.
        broker: i32,
        /// Which of its volumes.
        volume: String,
        /// The class that it has.
        live: String,
        /// The class that the spec names.
        spec: String,
    },
    /// A volume was asked to grow and cannot.
    VolumeNotGrown {
        /// Whose.
        broker: i32,
        /// Which of its volumes.
        volume: String,
        /// What it has, in bytes.
        from: u64,
        /// In bytes.
        to: u64,
        /// Why, as Kubernetes says it.
        fault: Fault,
    },
    /// A volume was asked to grow and has not yet.
    VolumeGrowing {
        /// Whose.
        broker: i32,
        /// Which of its volumes.
        volume: String,
        /// What it has, in bytes.
        from: u64,
        /// In bytes.
        to: u64,
    },
}

/// What a person may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A volume is larger than the spec says. It stays so.
    VolumeLargerThanSpec {
        /// Whose.
        broker: i32,
        /// Which of its volumes.
        volume: String,
        /// In bytes.
        live: u64,
        /// In bytes.
        spec: u64,
    },
    /// A listener has an address for a broker that there is not.
    NoSuchBroker {
        /// The name of the listener.
        listener: String,
        /// The id.
        broker: i32,
    },
}

/// So many of what is told together are named.
const NAMED_MAX: usize = 8;

/// The first of `names`, and how many more there are.
pub(super) fn listed(names: &[String]) -> String {
    let (named, more) = names.split_at(names.len().min(NAMED_MAX));
    let named = named.join(", ");
    if more.is_empty() { named } else { format!("{named} and {} more", more.len()) }
}

/// Says that an object is being deleted, and what it waits for.
pub(super) fn being_deleted(
    f: &mut std::fmt::Formatter<'_>,
    held_by: &[String],
) -> std::fmt::Result {
    match held_by {
        [] => f.write_str("the object is being deleted"),
        held_by => write!(
            f,
            "the object is being deleted and goes when these finalizers are removed: {}",
            listed(held_by)
        ),
    }
}

/// What is said about a wait, and what follows from it.
struct Told {
    /// Worst first: the first wait gives the reason of the conditions.
    rank: u8,
    /// Summary of the cluster's state.
    phase: &'static str,
    /// A CamelCase word for conditions and events.
    reason: &'static str,
    /// Whether clients notice, or may: a volume that grows keeps nobody from the cluster.
    blocks_ready: bool,
    /// Whether waiting alone will not end it.
    is_fault: bool,
}

impl Wait {
    fn told(&self) -> Told {
        let row = |rank, phase, reason, blocks_ready, is_fault| Told {
            rank,
            phase,
            reason,
            blocks_ready,
            is_fault,
        };
        match self {
            Self::Deleting { .. } => row(0, "Deleting", "Deleting", true, false),
            Self::DataLost(_) => row(0, "Data lost", "DataLost", true, true),
            Self::BrokerFailing { .. } => row(0, "Broker failing", "BrokerFailing", true, true),
            Self::ClaimEnding { .. } => {
                row(1, "Volume being deleted", "ClaimBeingDeleted", false, true)
            }
            Self::HoldsLastCopy { .. } => row(1, "Not restarted", "HoldsLastCopy", true, true),
            Self::NotRead { part, blocks, .. } => {
                let rank = if *part == Part::Events { 10 } else { 1 };
                row(rank, "Not checked", "NotChecked", *blocks, true)
            }
            Self::Address { .. } => {
                row(2, "Waiting for an address", "WaitingForAddress", true, false)
            }
            Self::VolumeNotMade { .. } => {
                row(3, "Waiting for a volume", "VolumeNotMade", true, true)
            }
            Self::VolumePending { .. } => {
                row(5, "Waiting for a volume", "VolumePending", true, false)
            }
            Self::VolumeOffline { .. } => row(4, "Volume offline", "VolumeOffline", true, true),
            Self::OtherBrokerDown { .. } => {
                row(5, "Waiting for a broker", "WaitingForOtherBroker", true, false)
            }
            Self::RestartNotSafe { .. } => {
                row(5, "Waiting for replicas", "WaitingForIsr", true, false)
            }
            Self::GoesOnWithout { .. } => {
                row(6, "Starting without lost data", "GoingOnWithout", true, false)
            }
            Self::BrokerRestarting { .. } => row(6, "Restarting", "BrokerRestarting", true, false),
            Self::NotRestarted { .. } => row(2, "Not restarted", "BrokerNotRestarted", true, false),
            Self::NotMade { .. } => row(6, "Paused", "Paused", true, false),
            Self::BrokerStarting { .. } => row(7, "Starting", "BrokerStarting", true, false),
            Self::IdentityUnknown { .. } => {
                row(8, "Broker not identified", "IdentityUnknown", false, true)
            }
            Self::VolumeStillUsed { .. } => {
                row(8, "Volume still used", "VolumeStillUsed", false, true)
            }
            Self::OtherClass { .. } => {
                row(9, "Other storage class", "StorageClassDiffers", false, true)
            }
            Self::VolumeNotGrown { .. } => {
                row(9, "Volume not grown", "VolumeNotGrown", false, true)
            }
            Self::OtherImage { .. } => row(9, "Other image", "ImageChanged", false, true),
            Self::Stray { .. } => row(10, "Unknown broker", "UnknownBroker", false, true),
            Self::UnusedClaims { .. } => {
                row(10, "Unused volume claims", "UnusedVolumeClaims", false, true)
            }
            Self::Foreign { .. } => row(10, "Unknown pod", "UnknownPod", false, true),
            Self::NotWatched { .. } => row(10, "Not watched", "NotWatched", false, true),
            Self::EvictionsHeld { .. } => {
                row(12, "Holding node drains", "EvictionsHeld", false, false)
            }
            Self::VolumeGrowing { .. } => {
                row(11, "Growing a volume", "VolumeGrowing", false, false)
            }
        }
    }

    /// Worst first: the first wait gives the reason of the conditions.
    pub(super) fn rank(&self) -> u8 {
        self.told().rank
    }

    /// Whether it is about what the operator is going to do, or does not do yet.
    pub(super) fn is_about_steps(&self) -> bool {
        matches!(
            self,
            Self::Address { .. }
                | Self::OtherBrokerDown { .. }
                | Self::RestartNotSafe { .. }
                | Self::EvictionsHeld { .. }
                | Self::BrokerRestarting { .. }
                | Self::NotRestarted { .. }
                | Self::VolumePending { .. }
                | Self::HoldsLastCopy { .. }
        )
    }

    /// Whether clients notice, or may.
    #[must_use]
    pub fn blocks_ready(&self) -> bool {
        self.told().blocks_ready
    }

    /// Whether waiting alone will not end it.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        self.told().is_fault
    }

    /// Summary of the cluster's state.
    #[must_use]
    pub fn phase(&self) -> &'static str {
        self.told().phase
    }

    /// A CamelCase word for conditions and events.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.told().reason
    }

    /// What it is about.
    #[must_use]
    pub fn subject(&self) -> String {
        match self {
            Self::Deleting { .. } | Self::NotMade { .. } => CLUSTER.to_owned(),
            Self::DataLost(loss) => volume_of(&loss.recorded.volume, loss.broker),
            Self::NotRead { part, .. } => part.to_string(),
            Self::BrokerFailing { broker, .. }
            | Self::Address { broker, .. }
            | Self::OtherBrokerDown { broker, .. }
            | Self::RestartNotSafe { broker, .. }
            | Self::BrokerStarting { broker, .. }
            | Self::BrokerRestarting { broker }
            | Self::NotRestarted { broker, .. }
            | Self::GoesOnWithout { broker, .. }
            | Self::IdentityUnknown { broker }
            | Self::OtherImage { broker, .. } => broker_of(*broker),
            Self::VolumePending { broker, volume }
            | Self::VolumeNotMade { broker, volume, .. }
            | Self::HoldsLastCopy { broker, volume }
            | Self::VolumeOffline { broker, volume, .. }
            | Self::VolumeStillUsed { broker, volume }
            | Self::OtherClass { broker, volume, .. }
            | Self::VolumeNotGrown { broker, volume, .. }
            | Self::VolumeGrowing { broker, volume, .. } => volume_of(volume, *broker),
            Self::ClaimEnding { claim, .. } => format!("volume claim {claim}"),
            Self::Stray { set } => set.to_string(),
            Self::UnusedClaims { .. } => Part::Storage.to_string(),
            Self::EvictionsHeld { .. } => Part::Budget.to_string(),
            Self::Foreign { pod } => format!("pod {pod}"),
            Self::NotWatched { what, .. } => what.clone(),
        }
    }
}

/// A subject that is no part of the cluster.
pub(super) const CLUSTER: &str = "cluster";

pub(super) fn broker_of(broker: i32) -> String {
    format!("broker {broker}")
}

pub(super) fn volume_of(volume: &str, broker: i32) -> String {
    format!("volume {volume} of broker {broker}")
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Access => "services and the service account",
            Self::Budget => "PodDisruptionBudgets",
            Self::Storage => "volume claims",
            Self::Definitions => "StatefulSets and ConfigMaps",
            Self::Brokers => "pods",
            Self::Events => "events",
        })
    }
}

impl std::fmt::Display for Wait {
    // One arm for each reason: a table, whatever its length.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Deleting { held_by } => being_deleted(f, held_by),
            Self::DataLost(loss) => loss.fmt(f),
            Self::BrokerFailing { broker, reason, message } if message.is_empty() => {
                write!(f, "broker {broker} does not run: {reason}")
            }
            Self::BrokerFailing { broker, reason, message } => {
                write!(f, "broker {broker} does not run: {reason}: {message}")
            }
            Self::NotRead { part: Part::Events, message, .. } => write!(
                f,
                "events could not be read, so that the cause of what is waited for may be missing: \
                 {message}"
            ),
            Self::NotRead { part, message, .. } => {
                write!(f, "cannot check {part}, so that they are not changed: {message}")
            }
            Self::Address { broker, listeners } => {
                write!(f, "broker {broker} waits for the address of listener {}", listed(listeners))
            }
            Self::OtherBrokerDown { broker, other } => {
                write!(
                    f,
                    "broker {broker} is not restarted while broker {other} is down; the restart \
                     follows when that one is ready"
                )
            }
            Self::RestartNotSafe { broker, why } => write!(
                f,
                "broker {broker} is not restarted with its new definition yet: {why}; the restart \
                 follows when it is safe"
            ),
            Self::EvictionsHeld { why } => {
                write!(f, "no broker may be evicted by a drain of its node yet: {why}")
            }
            Self::BrokerRestarting { broker } => {
                write!(f, "broker {broker} restarts with its new definition")
            }
            Self::NotRestarted { broker, why } => write!(
                f,
                "broker {broker} still runs with its old definition and is not restarted with the \
                 new one: {why}"
            ),
            Self::BrokerStarting { broker, detail } => {
                write!(f, "waiting for broker {broker}: {detail}")
            }
            Self::VolumePending { broker, volume } => write!(
                f,
                "broker {broker} is not restarted before its volume {volume} is bound, or \
                 Kubernetes reports that the volume waits for its first consumer"
            ),
            Self::VolumeNotMade { broker, volume, fault } => write!(
                f,
                "cannot create volume {volume} of broker {broker}: {}: {}",
                fault.reason, fault.message
            ),
            Self::ClaimEnding { broker, claim } => write!(
                f,
                "volume claim {claim} of broker {broker} is being deleted, and its records are \
                 lost when the broker stops, so that the operator does not restart it. Set the \
                 reclaim policy of its PersistentVolume to Retain now; docs/lost-volumes.md says \
                 what to do next"
            ),
            Self::HoldsLastCopy { broker, volume } => write!(
                f,
                "broker {broker} is not restarted: it has the last copy of what is on its volume \
                 {volume}, which is lost when the broker stops. Copy the records that you need, \
                 and restore the volume or accept the loss; docs/lost-volumes.md says how"
            ),
            Self::GoesOnWithout { broker, loss } => write!(
                f,
                "broker {broker} starts without its lost records, because the loss {loss} was \
                 accepted; waiting until it serves with a new volume"
            ),
            Self::NotMade { what } => {
                write!(f, "not created while the object is paused: {}", listed(what))
            }
            Self::IdentityUnknown { broker } => write!(
                f,
                "broker {broker} serves, but the operator cannot read its log directories (GET \
                 /identity on its port {ADMIN_PORT}): it would not notice another volume under the \
                 same claim. Let the operator's pods reach that port (NetworkPolicy)"
            ),
            Self::VolumeOffline { broker, volume, log_dir } => write!(
                f,
                "broker {broker} does not use its volume {volume}: the log directory {log_dir} \
                 cannot be read or written, or was replaced; partitions that are only there are \
                 offline. The broker's log says why, and what to do"
            ),
            Self::VolumeStillUsed { broker, volume } => write!(
                f,
                "broker {broker} has records on volume {volume}, which stays in use: put \
                 {volume} back into spec.storage.volumes. This version does not move records off \
                 a volume"
            ),
            Self::OtherImage { broker, image } => write!(
                f,
                "broker {broker} runs image {image}: somebody has changed the image of its pod \
                 again, less than an hour after the operator restarted the broker to restore it; \
                 the operator does so once an hour while the broker serves. Find out who \
                 changes it (kubectl get pod --show-managed-fields)"
            ),
            Self::Stray { set } => write!(
                f,
                "{set} has this cluster's label and is none of the brokers in status.nodes; the \
                 operator does not change it: delete it if its volumes are not needed, or remove \
                 the label"
            ),
            Self::UnusedClaims { claims } => write!(
                f,
                "volume claims {} have this cluster's label and belong to none of the brokers in \
                 status.nodes, so that nobody can read what is on their volumes; the operator \
                 neither uses nor deletes them: delete them if the records are not needed, or \
                 remove the label",
                listed(claims)
            ),
            Self::Foreign { pod } => write!(
                f,
                "pod {pod} has the labels of this cluster's brokers and is none of them, so that \
                 Services may send clients to it; delete it, or remove these labels from it"
            ),
            Self::NotWatched { what, message } => write!(
                f,
                "the operator cannot watch {what}, so that it sees changes late or never: the API \
                 server refuses it ({message}); give its role the verbs list and watch"
            ),
            Self::OtherClass { broker, volume, live, spec } => write!(
                f,
                "volume {volume} of broker {broker} is of storage class {live}, and the class in \
                 spec.storage is {spec}; a volume cannot change its class: set it to {live}, or \
                 make a new cluster in {spec}"
            ),
            Self::VolumeNotGrown { broker, volume, from, to, fault } => {
                let (from, to) = (shown(*from), shown(*to));
                write!(
                    f,
                    "volume {volume} of broker {broker} has {from} and cannot grow to {to}: {}: \
                     {}; set its size in spec.storage to one that its storage class can provide, \
                     or back to {from}",
                    fault.reason, fault.message
                )
            }
            Self::VolumeGrowing { broker, volume, from, to } => {
                let (from, to) = (shown(*from), shown(*to));
                write!(f, "volume {volume} of broker {broker} grows from {from} to {to}")
            }
        }
    }
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::VolumeLargerThanSpec { broker, volume, live, spec } => {
                let (live, spec) = (shown(*live), shown(*spec));
                write!(
                    f,
                    "volume {volume} of broker {broker} has {live}, more than the {spec} in \
                     spec.storage; it is not shrunk"
                )
            }
            Self::NoSuchBroker { listener, broker } => write!(
                f,
                "listener {listener} has an address for broker {broker}, and there is none of this \
                 id (status.nodes)"
            ),
        }
    }
}
