//! What can be done about a cluster.

use super::wait::{CLUSTER, broker_of, listed, volume_of};
use crate::api::shown;
use crate::desired::objects::ObjectKey;
use crate::observe::{Observed, ObservedBroker, Part};

/// One change to the world, safe to repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Apply services and the service account.
    ApplyAccess {
        /// Whether clients or brokers may miss it
        /// ([`Compared::may_be_missed`](crate::observe::Compared::may_be_missed)).
        is_missed: bool,
        /// What is made or put back.
        what: Vec<String>,
    },
    /// Apply the disruption budget.
    ApplyBudget {
        /// What is made or put back.
        what: Vec<String>,
    },
    /// Remove what nothing asks for any more.
    Prune(ObjectKey),
    /// Make the claim of a volume.
    MakeClaim {
        /// Whose.
        broker: i32,
        /// Which of its volumes.
        volume: String,
    },
    /// Write on a claim that the operator made which one it is, so that no copy of it is taken for
    /// it.
    MarkClaim {
        /// Whose.
        broker: i32,
        /// Which of its volumes.
        volume: String,
    },
    /// Ask for a larger volume.
    GrowVolume {
        /// Whose.
        broker: i32,
        /// Which of its volumes.
        volume: String,
        /// In bytes.
        from: u64,
        /// In bytes.
        to: u64,
    },
    /// Make a claim again that nothing is behind, and that cannot be changed.
    RemakeClaim {
        /// Whose.
        broker: i32,
        /// Which of its volumes.
        volume: String,
        /// What is wrong with it.
        why: String,
    },
    /// Remove a claim that nothing asks for any more and that no broker ever had.
    DropClaim {
        /// Whose.
        broker: i32,
        /// Which of its volumes.
        volume: String,
    },
    /// Hold the cluster's object until its volumes are deleted, or hold it no longer.
    HoldObject {
        /// Whether it is to be held.
        held: bool,
    },
    /// End what holds an object that is being deleted: its volumes are deleted first, if its spec
    /// says so when this is carried out.
    LetGo {
        /// What becomes of the volumes.
        volumes: VolumesAtEnd,
    },
    /// Put a broker's definition right; makes it when it is not there.
    ApplyBroker {
        /// Which.
        broker: i32,
        /// Whether the broker serves now and this asks it to restart.
        restarts: bool,
        /// What is made or put back.
        what: Vec<String>,
    },
    /// End what a broker was started as, so that it takes up its newest definition.
    RestartBroker {
        /// Which.
        broker: i32,
        /// What is ended, and nothing that came after it
        /// ([`ObservedBroker::to_end`](crate::observe::ObservedBroker::to_end)).
        ended: String,
    },
    /// Remove the definition of a broker, with what runs by it. It is made again once the claims of
    /// its volumes are.
    RemoveBroker {
        /// Which.
        broker: i32,
        /// What has to be made again while nothing names it.
        why: String,
    },
    /// Put the recorded id of the cluster right.
    CorrectClusterId {
        /// What status said.
        from: String,
        /// What the cluster is.
        to: String,
    },
    /// Go on without the records of a broker: a person said so.
    AcceptLoss {
        /// Whose.
        broker: i32,
        /// The loss that was accepted.
        name: String,
    },
}

/// What becomes of the volumes of a cluster that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumesAtEnd {
    /// They are deleted.
    Deleted {
        /// The claims that stay all the same.
        but: Vec<String>,
    },
    /// They stay, as the spec says.
    Retained,
    /// They stay, because nothing is deleted for an object that is paused.
    Paused,
}

impl std::fmt::Display for VolumesAtEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Deleted { but } if but.is_empty() => f.write_str("its volumes are deleted"),
            Self::Deleted { but } => write!(
                f,
                "its volumes are deleted, except those of the claims {}: the operator did not make \
                 them for this cluster, or they name a snapshot",
                listed(but)
            ),
            Self::Retained => {
                f.write_str("its volumes stay, because spec.storage.deletionPolicy is Retain")
            }
            Self::Paused => f.write_str("its volumes stay, because the object is paused"),
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ApplyAccess { what, .. } | Self::ApplyBudget { what } => {
                write!(f, "apply {}", listed(what))
            }
            Self::Prune(key) => write!(f, "remove {key}"),
            Self::MakeClaim { broker, volume } => {
                write!(f, "create the claim of volume {volume} of broker {broker}")
            }
            Self::MarkClaim { broker, volume } => {
                write!(f, "mark the claim of volume {volume} of broker {broker} as the operator's")
            }
            Self::GrowVolume { broker, volume, from, to } => {
                let (from, to) = (shown(*from), shown(*to));
                write!(f, "grow volume {volume} of broker {broker} from {from} to {to}")
            }
            Self::RemakeClaim { broker, volume, why } => {
                write!(f, "recreate the claim of volume {volume} of broker {broker}: {why}")
            }
            Self::DropClaim { broker, volume } => {
                write!(f, "remove the unused claim of volume {volume} of broker {broker}")
            }
            Self::HoldObject { held: true } => {
                f.write_str("add a finalizer, so that the volumes are deleted before the object")
            }
            Self::HoldObject { held: false } => f.write_str(
                "remove the finalizer, so that the volumes stay when the cluster is deleted",
            ),
            Self::LetGo { volumes } => write!(f, "remove the finalizer; {volumes}"),
            Self::ApplyBroker { broker, restarts: true, what } => {
                write!(f, "change broker {broker}, which restarts: {}", listed(what))
            }
            Self::ApplyBroker { broker, restarts: false, what } => {
                write!(f, "set up broker {broker}: {}", listed(what))
            }
            Self::RestartBroker { broker, .. } => {
                write!(f, "restart broker {broker}, so that it uses its new definition")
            }
            Self::RemoveBroker { broker, why } => {
                write!(f, "remove the StatefulSet of broker {broker} for now: {why}")
            }
            Self::CorrectClusterId { from, to } => write!(
                f,
                "correct status.clusterId: it was {from}, and the brokers or their volume claims \
                 say {to}"
            ),
            Self::AcceptLoss { broker, name } => write!(
                f,
                "start broker {broker} without its lost records, because the loss {name} was \
                 accepted"
            ),
        }
    }
}

impl Step {
    /// Whether the cluster is not what clients were promised when this does not work: a broker, a
    /// volume or an address is not there, or is another one.
    #[must_use]
    pub fn blocks_ready(&self) -> bool {
        match self {
            Self::ApplyAccess { is_missed, .. } => *is_missed,
            Self::ApplyBroker { .. }
            | Self::RestartBroker { .. }
            | Self::RemoveBroker { .. }
            | Self::MakeClaim { .. } => true,
            Self::ApplyBudget { .. }
            | Self::Prune(_)
            | Self::MarkClaim { .. }
            | Self::CorrectClusterId { .. }
            | Self::GrowVolume { .. }
            | Self::HoldObject { .. }
            | Self::LetGo { .. }
            | Self::RemakeClaim { .. }
            | Self::DropClaim { .. }
            | Self::AcceptLoss { .. } => false,
        }
    }

    /// Whether it ends `broker`, as that was seen.
    #[must_use]
    pub fn ends(&self, broker: i32, observed: &Observed) -> bool {
        match self {
            Self::RestartBroker { broker: id, .. } | Self::RemoveBroker { broker: id, .. } => {
                *id == broker
            }
            Self::ApplyBroker { broker: id, .. } if *id == broker => {
                let seen = observed.brokers.get(id);
                seen.is_some_and(ObservedBroker::ends_with_its_definition)
            }
            _ => false,
        }
    }

    /// What it changes. Steps of different parts do not wait for one another, except that those
    /// about definitions and about what runs by them are one after the other.
    #[must_use]
    pub fn part(&self) -> Part {
        match self {
            Self::ApplyAccess { .. } | Self::Prune(_) => Part::Access,
            Self::ApplyBudget { .. } => Part::Budget,
            Self::MakeClaim { .. }
            | Self::MarkClaim { .. }
            | Self::GrowVolume { .. }
            | Self::HoldObject { .. }
            | Self::LetGo { .. }
            | Self::RemakeClaim { .. }
            | Self::DropClaim { .. } => Part::Storage,
            Self::ApplyBroker { .. } => Part::Definitions,
            Self::RestartBroker { .. }
            | Self::RemoveBroker { .. }
            | Self::CorrectClusterId { .. }
            | Self::AcceptLoss { .. } => Part::Brokers,
        }
    }

    /// What it changes, for people.
    #[must_use]
    pub fn subject(&self) -> String {
        match self {
            Self::ApplyAccess { .. } | Self::ApplyBudget { .. } => self.part().to_string(),
            Self::Prune(key) => key.to_string(),
            Self::MakeClaim { broker, volume }
            | Self::MarkClaim { broker, volume }
            | Self::GrowVolume { broker, volume, .. }
            | Self::RemakeClaim { broker, volume, .. }
            | Self::DropClaim { broker, volume } => volume_of(volume, *broker),
            Self::HoldObject { .. } | Self::LetGo { .. } | Self::CorrectClusterId { .. } => {
                CLUSTER.to_owned()
            }
            Self::ApplyBroker { broker, .. }
            | Self::RestartBroker { broker, .. }
            | Self::RemoveBroker { broker, .. }
            | Self::AcceptLoss { broker, .. } => broker_of(*broker),
        }
    }

    /// A CamelCase word for events.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ApplyAccess { .. } => "AccessApplied",
            Self::ApplyBudget { .. } => "BudgetApplied",
            Self::Prune(_) => "Pruned",
            Self::MakeClaim { .. } => "VolumeClaimMade",
            Self::MarkClaim { .. } => "VolumeClaimMarked",
            Self::CorrectClusterId { .. } => "ClusterIdCorrected",
            Self::GrowVolume { .. } => "VolumeGrown",
            Self::RemakeClaim { .. } => "VolumeClaimRemade",
            Self::DropClaim { .. } => "VolumeClaimDropped",
            Self::HoldObject { held: true } => "VolumesDeletedWithCluster",
            Self::HoldObject { held: false } => "VolumesRetained",
            Self::LetGo { .. } => "FinalizerRemoved",
            Self::ApplyBroker { .. } => "BrokerApplied",
            Self::RestartBroker { .. } => "BrokerRestarted",
            Self::RemoveBroker { .. } => "BrokerRemoved",
            Self::AcceptLoss { .. } => "DataLossAccepted",
        }
    }
}
