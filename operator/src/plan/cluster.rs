//! The plan of a cluster.
//!
//! Independent things do not wait for one another: addresses, volumes and brokers are planned side
//! by side, and a fault in one leaves the others going.

use super::loss::{Loss, Lost, losses};
use crate::api::{DeletionPolicy, KafkaCluster, bytes_of, is_paused, shown};
use crate::desired::Blueprint;
use crate::observe::{Observed, Part, Run};

/// What to do and what is waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order. A failed step does not keep the ones after it from being tried.
    pub steps: Vec<Step>,
    /// Why the cluster is not what it should be even after the steps, worst first.
    pub waits: Vec<Wait>,
    /// What a person may want to know, though nothing is wrong.
    pub notes: Vec<Note>,
    /// Brokers without the records that they had, accepted or not.
    pub losses: Vec<Loss>,
}

/// One change to the world, safe to repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Apply services and the service account.
    ApplyAccess {
        /// Whether some of it is not there at all.
        makes: bool,
        /// What is made or put back.
        what: Vec<String>,
    },
    /// Apply the disruption budget.
    ApplyBudget {
        /// What is made or put back.
        what: Vec<String>,
    },
    /// Remove what nothing asks for any more.
    Prune {
        /// What is removed.
        what: String,
    },
    /// Ask for a larger volume.
    GrowVolume {
        /// Whose.
        broker: i32,
        /// In bytes.
        from: u64,
        /// In bytes.
        to: u64,
    },
    /// Make a claim again that no volume could be made for, so that it asks for the right class.
    RemakeClaim {
        /// Whose.
        broker: i32,
        /// The class that it names.
        from: String,
        /// The class that it should name.
        to: String,
    },
    /// Hold the cluster's object until its volumes are deleted, or hold it no longer.
    HoldObject {
        /// Whether it is to be held.
        held: bool,
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
    /// Go on without the records of a broker: a person said so.
    AcceptLoss {
        /// Whose.
        broker: i32,
        /// The loss that was accepted.
        name: String,
    },
}

/// Why the cluster is not what it should be yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A broker has lost its records.
    DataLost(Loss),
    /// A part could not be read: what it is like is not known, and nothing is changed in it.
    NotRead {
        /// Which.
        part: Part,
        /// What was tried and what was said.
        message: String,
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
    /// A volume is of another class than the spec names, and stays so.
    OtherClass {
        /// Whose.
        broker: i32,
        /// The class that it has.
        live: String,
        /// The class that the spec names.
        spec: String,
    },
    /// A volume was asked to grow and has not yet.
    VolumeGrowing {
        /// Whose.
        broker: i32,
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
        /// In bytes.
        live: u64,
        /// In bytes.
        spec: u64,
    },
}

/// Plans `cluster`, whose blueprint is `desired`.
#[must_use]
pub fn plan_cluster(cluster: &KafkaCluster, desired: &Blueprint, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    if is_paused(&cluster.metadata) || cluster.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let was_read = |part: Part| !observed.unread.contains_key(&part);
    plan.waits.extend(
        observed
            .unread
            .iter()
            .map(|(part, fault)| Wait::NotRead { part: *part, message: fault.message.clone() }),
    );
    plan.losses = losses(cluster, observed);
    for loss in &plan.losses {
        if loss.is_accepted {
            plan.steps.push(Step::AcceptLoss { broker: loss.broker, name: loss.name.clone() });
        } else {
            plan.waits.push(Wait::DataLost(loss.clone()));
        }
    }
    if was_read(Part::Access) && !observed.access.is_as_desired() {
        plan.steps.push(Step::ApplyAccess {
            makes: !observed.access.missing.is_empty(),
            what: observed.access.all(),
        });
    }
    if was_read(Part::Budget) && !observed.budget.is_as_desired() {
        plan.steps.push(Step::ApplyBudget { what: observed.budget.all() });
    }
    if was_read(Part::Storage) {
        plan_volumes(desired, observed, &mut plan);
    }
    // Whether a broker may be restarted follows from which ones serve.
    if was_read(Part::Brokers) {
        plan_brokers(cluster, desired, observed, &mut plan);
    }
    // Last, so that a client of a listener that moved has its new address before the old one goes.
    if was_read(Part::Access) {
        plan.steps.extend(observed.stale.iter().map(|what| Step::Prune { what: what.clone() }));
    }
    plan.waits.sort_by_key(Wait::rank);
    plan
}

fn plan_volumes(desired: &Blueprint, observed: &Observed, plan: &mut Plan) {
    // No volume has the cluster for an owner: what is deleted with it is decided when it goes, by
    // what its spec says then.
    let held = desired.storage.deletion_policy == DeletionPolicy::Delete;
    if observed.is_held.is_some_and(|is_held| is_held != held) {
        plan.steps.push(Step::HoldObject { held });
    }
    let volumes =
        || observed.brokers.iter().filter_map(|(id, broker)| Some((*id, broker.volume.as_ref()?)));
    for (broker, volume) in volumes() {
        // Without a class in the spec the default is right, whichever it is now.
        let Some(to) =
            desired.storage.class.clone().filter(|class| volume.class.as_ref() != Some(class))
        else {
            continue;
        };
        let from = volume.class.clone().unwrap_or_default();
        if volume.is_bound {
            plan.waits.push(Wait::OtherClass { broker, live: from, spec: to });
        } else if !volume.is_ending {
            plan.steps.push(Step::RemakeClaim { broker, from, to });
        }
    }
    let Some(wanted) = bytes_of(&desired.storage.size) else { return };
    for (broker, volume) in volumes() {
        if volume.requested < wanted {
            plan.steps.push(Step::GrowVolume { broker, from: volume.requested, to: wanted });
        } else if volume.requested > wanted {
            plan.notes.push(Note::VolumeLargerThanSpec {
                broker,
                live: volume.requested,
                spec: wanted,
            });
        }
        let target = volume.requested.max(wanted);
        if volume.capacity > 0 && volume.capacity < target {
            plan.waits.push(Wait::VolumeGrowing { broker, from: volume.capacity, to: target });
        }
    }
}

fn plan_brokers(cluster: &KafkaCluster, desired: &Blueprint, observed: &Observed, plan: &mut Plan) {
    // At most one broker is down on purpose. One that does not serve anyway may be put right at
    // once: that is how a bad image or configuration heals.
    let mut down = desired
        .brokers
        .keys()
        .find(|id| observed.brokers.get(id).is_none_or(|broker| !broker.serves()))
        .copied();
    let absent = crate::observe::ObservedBroker::default();
    for (&id, broker) in &desired.brokers {
        if !broker.unknown.is_empty() {
            plan.waits.push(Wait::Address { broker: id, listeners: broker.unknown.clone() });
            // This first pass makes the services, and the next one mostly knows their ports: the
            // broker need not start twice. From then on it runs, and is repaired, without the
            // listeners that are not known.
            if cluster.status.is_none() {
                continue;
            }
        }
        let seen = observed.brokers.get(&id).unwrap_or(&absent);
        let is_gone =
            |loss: &Loss| loss.broker == id && matches!(loss.what, Lost::ClaimGone { .. });
        if seen.run == Run::Absent && plan.losses.iter().any(is_gone) {
            // Starting it would make a new volume in place of the old one.
            continue;
        }
        if seen.run == Run::Absent && seen.volume.as_ref().is_some_and(|volume| volume.is_ending) {
            // It would wait for a claim that goes.
            plan.waits.push(Wait::BrokerStarting {
                broker: id,
                detail: "its old volume claim is being deleted".to_owned(),
            });
            continue;
        }
        if !observed.unread.contains_key(&Part::Definitions) {
            let restarts = seen.serves() && !seen.is_current;
            let is_as_defined = seen.definition.is_as_desired();
            if let Some(other) = down.filter(|&other| restarts && other != id) {
                // Not even the definition changes: whatever ends this broker meanwhile brings it
                // back as it was.
                plan.waits.push(Wait::OtherBrokerDown { broker: id, other });
                continue;
            }
            if restarts {
                down = Some(id);
            }
            if !is_as_defined {
                plan.steps.push(Step::ApplyBroker {
                    broker: id,
                    restarts,
                    what: seen.definition.all(),
                });
            } else if let Some(ended) = seen.to_end.clone().filter(|_| seen.has_to_restart()) {
                plan.steps.push(Step::RestartBroker { broker: id, ended });
            }
        }
        match &seen.run {
            Run::Failing { reason, message } => {
                plan.waits.push(Wait::BrokerFailing {
                    broker: id,
                    reason: reason.clone(),
                    message: message.clone(),
                });
            }
            Run::Starting(detail) => {
                plan.waits.push(Wait::BrokerStarting { broker: id, detail: detail.clone() })
            }
            Run::Absent => plan
                .waits
                .push(Wait::BrokerStarting { broker: id, detail: "not started yet".to_owned() }),
            Run::Ready if !seen.is_current => {
                plan.waits.push(Wait::BrokerRestarting { broker: id })
            }
            Run::Ready => {}
        }
    }
}

impl crate::observe::ObservedBroker {
    fn serves(&self) -> bool {
        self.run == Run::Ready
    }

    /// A change that the spec did not ask for ends nothing that serves, or may yet. What fails is
    /// started as it should be.
    fn has_to_restart(&self) -> bool {
        match self.run {
            Run::Failing { .. } => !self.is_newest,
            Run::Ready | Run::Starting(_) => !self.is_current,
            Run::Absent => false,
        }
    }
}

impl Wait {
    /// Worst first: the first wait gives the reason of the conditions.
    fn rank(&self) -> u8 {
        match self {
            Self::DataLost(_) | Self::BrokerFailing { .. } => 0,
            Self::NotRead { .. } => 1,
            Self::Address { .. } => 2,
            Self::OtherBrokerDown { .. } => 3,
            Self::BrokerRestarting { .. } => 4,
            Self::BrokerStarting { .. } => 5,
            Self::OtherClass { .. } => 6,
            Self::VolumeGrowing { .. } => 7,
        }
    }

    /// Whether clients notice, or may: a volume that grows keeps nobody from the cluster.
    #[must_use]
    pub fn blocks_ready(&self) -> bool {
        !matches!(
            self,
            Self::VolumeGrowing { .. }
                | Self::OtherClass { .. }
                | Self::NotRead { part: Part::Budget | Part::Storage, .. }
        )
    }

    /// Whether waiting alone will not end it.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        matches!(
            self,
            Self::DataLost(_)
                | Self::BrokerFailing { .. }
                | Self::NotRead { .. }
                | Self::OtherClass { .. }
        )
    }

    /// What is going on, in a few words.
    #[must_use]
    pub fn phase(&self) -> &'static str {
        match self {
            Self::DataLost(_) => "Data lost",
            Self::BrokerFailing { .. } => "Broker failing",
            Self::NotRead { .. } => "Not checked",
            Self::Address { .. } => "Waiting for an address",
            Self::OtherBrokerDown { .. } => "Waiting for a broker",
            Self::BrokerRestarting { .. } => "Restarting",
            Self::BrokerStarting { .. } => "Starting",
            Self::OtherClass { .. } => "Other storage class",
            Self::VolumeGrowing { .. } => "Growing a volume",
        }
    }

    /// A CamelCase word for conditions and events.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::DataLost(_) => "DataLost",
            Self::BrokerFailing { .. } => "BrokerFailing",
            Self::NotRead { .. } => "NotChecked",
            Self::Address { .. } => "WaitingForAddress",
            Self::OtherBrokerDown { .. } => "WaitingForOtherBroker",
            Self::BrokerRestarting { .. } => "BrokerRestarting",
            Self::BrokerStarting { .. } => "BrokerStarting",
            Self::OtherClass { .. } => "StorageClassDiffers",
            Self::VolumeGrowing { .. } => "VolumeGrowing",
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Access => "services and the service account",
            Self::Budget => "PodDisruptionBudgets",
            Self::Storage => "volume claims",
            Self::Definitions => "StatefulSets and ConfigMaps",
            Self::Brokers => "pods",
        })
    }
}

impl crate::observe::Compared {
    /// Everything that is to be applied.
    fn all(&self) -> Vec<String> {
        self.missing.iter().chain(&self.differs).cloned().collect()
    }
}

impl std::fmt::Display for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::DataLost(loss) => loss.fmt(f),
            Self::BrokerFailing { broker, reason, message } if message.is_empty() => {
                write!(f, "broker {broker} does not run: {reason}")
            }
            Self::BrokerFailing { broker, reason, message } => {
                write!(f, "broker {broker} does not run: {reason}: {message}")
            }
            Self::NotRead { part, message } => {
                write!(f, "{part} could not be checked and are left as they are: {message}")
            }
            Self::Address { broker, listeners } => {
                write!(
                    f,
                    "broker {broker} waits for the address of listener {}",
                    listeners.join(", ")
                )
            }
            Self::OtherBrokerDown { broker, other } => {
                write!(
                    f,
                    "broker {broker} is not restarted while broker {other} is down; it goes on by \
                     itself when that one is back"
                )
            }
            Self::BrokerRestarting { broker } => {
                write!(f, "broker {broker} takes up its new definition")
            }
            Self::BrokerStarting { broker, detail } => {
                write!(f, "waiting for broker {broker}: {detail}")
            }
            Self::OtherClass { broker, live, spec } => write!(
                f,
                "the volume of broker {broker} is of storage class {live}, and spec.storage.class \
                 is {spec}; a volume cannot change its class: set spec.storage.class to {live}, or \
                 make a new cluster in {spec}"
            ),
            Self::VolumeGrowing { broker, from, to } => {
                write!(
                    f,
                    "the volume of broker {broker} grows from {} to {}",
                    shown(*from),
                    shown(*to)
                )
            }
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ApplyAccess { what, .. } | Self::ApplyBudget { what } => {
                write!(f, "apply {}", what.join(", "))
            }
            Self::Prune { what } => write!(f, "remove {what}"),
            Self::GrowVolume { broker, from, to } => {
                write!(
                    f,
                    "grow the volume of broker {broker} from {} to {}",
                    shown(*from),
                    shown(*to)
                )
            }
            Self::RemakeClaim { broker, from, to } => {
                write!(
                    f,
                    "make the volume claim of broker {broker} again in storage class {to}: no \
                     volume was made for it in {from}"
                )
            }
            Self::HoldObject { held: true } => {
                f.write_str("hold the object until its volumes are deleted")
            }
            Self::HoldObject { held: false } => {
                f.write_str("let the volumes stay when the cluster is deleted")
            }
            Self::ApplyBroker { broker, restarts: true, what } => {
                write!(f, "change broker {broker}, which restarts: {}", what.join(", "))
            }
            Self::ApplyBroker { broker, restarts: false, what } => {
                write!(f, "set up broker {broker}: {}", what.join(", "))
            }
            Self::RestartBroker { broker, .. } => {
                write!(f, "restart broker {broker}, so that it takes up its new definition")
            }
            Self::AcceptLoss { broker, name } => write!(
                f,
                "go on without the records of broker {broker}: the loss {name} was accepted"
            ),
        }
    }
}

impl Step {
    /// Whether the cluster is not what clients were promised when this does not work: a broker or
    /// an address is not there. One that differs still serves as it did.
    #[must_use]
    pub fn blocks_ready(&self) -> bool {
        match self {
            Self::ApplyAccess { makes, .. } => *makes,
            Self::ApplyBroker { .. } | Self::RestartBroker { .. } => true,
            Self::ApplyBudget { .. }
            | Self::Prune { .. }
            | Self::GrowVolume { .. }
            | Self::HoldObject { .. }
            | Self::RemakeClaim { .. }
            | Self::AcceptLoss { .. } => false,
        }
    }

    /// A CamelCase word for events.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ApplyAccess { .. } => "AccessApplied",
            Self::ApplyBudget { .. } => "BudgetApplied",
            Self::Prune { .. } => "Pruned",
            Self::GrowVolume { .. } => "VolumeGrown",
            Self::RemakeClaim { .. } => "VolumeClaimRemade",
            Self::HoldObject { held: true } => "VolumesDeletedWithCluster",
            Self::HoldObject { held: false } => "VolumesRetained",
            Self::ApplyBroker { .. } => "BrokerApplied",
            Self::RestartBroker { .. } => "BrokerRestarted",
            Self::AcceptLoss { .. } => "DataLossAccepted",
        }
    }
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::VolumeLargerThanSpec { broker, live, spec } => {
                let (live, spec) = (shown(*live), shown(*spec));
                write!(
                    f,
                    "the volume of broker {broker} has {live}, more than the {spec} of \
                     spec.storage.size; it stays so"
                )
            }
        }
    }
}
