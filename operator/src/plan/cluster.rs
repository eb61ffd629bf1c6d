//! The plan of a cluster.
//!
//! Independent things do not wait for one another: addresses, volumes and brokers are planned side
//! by side, and a fault in one leaves the others going.

use kube::ResourceExt as _;

use super::access::{plan_access, plan_pruning};
use super::loss::Loss;
use super::memory::{losses, remember, tell_their_directories};
use super::roll::plan_brokers;
use super::safety::Down;
use super::volumes::plan_volumes;
use super::{Note, Step, VolumesAtEnd, Wait};
use crate::api::{
    DeletionPolicy, KafkaCluster, LossStatus, NodeStatus, READY, find_condition, is_paused,
};
use crate::desired::Blueprint;
use crate::observe::{Compared, Fault, Observed, ObservedBroker, Part, Run};

/// What to do and what is waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order. A failed step does not keep the ones after it from being tried.
    pub steps: Vec<Step>,
    /// Why the cluster is not what it should be even after the steps, worst first.
    pub waits: Vec<Wait>,
    /// What a person may want to know, though nothing is wrong.
    pub notes: Vec<Note>,
    /// Volumes without the records that they had, while nobody accepted that.
    pub losses: Vec<Loss>,
    /// What is to be remembered of each broker (`status.nodes`). No step that may end records is in
    /// a plan before what it follows from is written there.
    pub nodes: Vec<NodeStatus>,
}

impl Plan {
    /// The broker that runs and that this plan ends, or is about to, if there is one that `is_open`.
    #[must_use]
    pub fn takes_down(&self, observed: &Observed, is_open: impl Fn(i32) -> bool) -> Option<i32> {
        let runs = |id: &i32| {
            is_open(*id) && observed.brokers.get(id).is_some_and(ObservedBroker::may_answer)
        };
        let is_ended = |id: &i32, restarts: bool| {
            let seen = observed.brokers.get(id);
            restarts || seen.is_some_and(ObservedBroker::ends_with_its_definition)
        };
        self.steps.iter().find_map(|step| match step {
            Step::ApplyBroker { broker, restarts, .. } => {
                Some(*broker).filter(|id| is_ended(id, *restarts)).filter(runs)
            }
            Step::RestartBroker { broker, .. } | Step::RemoveBroker { broker, .. } => {
                Some(*broker).filter(runs)
            }
            _ => None,
        })
    }
}

/// Plans `cluster`, whose blueprint is `desired`.
#[must_use]
pub fn plan_cluster(cluster: &KafkaCluster, desired: &Blueprint, observed: &Observed) -> Plan {
    if cluster.metadata.deletion_timestamp.is_some() {
        return plan_end(cluster, desired, observed);
    }
    let remembered = remember(cluster, desired, observed);
    let mut plan = Plan { nodes: remembered.clone(), ..Plan::default() };
    tell_losses(cluster, desired, observed, &mut plan);
    plan.steps.extend(plan.nodes.iter().flat_map(|node| newly_accepted(cluster, node)));
    let recorded = cluster.status.as_ref().and_then(|status| status.cluster_id.clone());
    plan.steps.extend(
        recorded
            .zip(desired.cluster_id.clone())
            .filter(|(from, to)| from != to)
            .map(|(from, to)| Step::CorrectClusterId { from, to }),
    );
    let begun = plan.nodes.iter().flat_map(|node| {
        let loss = |loss: &LossStatus| (node.id, loss.name.clone());
        node.accepted_losses().map(loss)
    });
    plan.waits.extend(begun.map(|(broker, loss)| Wait::GoesOnWithout { broker, loss }));
    let strays = observed.strays.iter().cloned();
    plan.waits.extend(strays.map(|set| Wait::Stray { set }));
    let unused: Vec<String> = observed.stray_claims.iter().cloned().collect();
    plan.waits.extend((!unused.is_empty()).then_some(Wait::UnusedClaims { claims: unused }));
    plan.waits.extend(observed.foreign.iter().cloned().map(|pod| Wait::Foreign { pod }));
    plan_access(desired, observed, &mut plan);
    let mut down = Down::of(desired, observed);
    if observed.has_claims() {
        plan_volumes(cluster, desired, observed, &mut down, &mut plan);
    }
    // Whether a broker may be restarted follows from which ones serve.
    if observed.was_read(Part::Brokers) {
        plan_brokers(cluster, desired, observed, &mut down, &mut plan);
    }
    plan_pruning(observed, &mut plan);
    tell_addresses(cluster, desired, &mut plan);
    if is_paused(&cluster.metadata) {
        leave_out_steps(cluster, desired, observed, &mut plan);
        // What brokers use and lose is written down all the same, and nothing else.
        plan.nodes = remembered;
    }
    plan.waits.sort_by_key(Wait::rank);
    plan
}

/// Tells what could not be read and what is lost.
fn tell_losses(cluster: &KafkaCluster, desired: &Blueprint, observed: &Observed, plan: &mut Plan) {
    let blocks = |part| match part {
        Part::Budget | Part::Events => false,
        Part::Storage => !tell_their_directories(cluster, observed),
        Part::Access | Part::Definitions | Part::Brokers => true,
    };
    let not_read = |(part, fault): (&Part, &Fault)| {
        let (part, message) = (*part, fault.message.clone());
        Wait::NotRead { part, message, blocks: blocks(part) }
    };
    plan.waits.extend(observed.unread.iter().map(not_read));
    plan.waits.extend(
        observed.unwatched.iter().map(|(what, message)| Wait::NotWatched {
            what: what.clone(),
            message: message.clone(),
        }),
    );
    plan.losses = losses(desired, &plan.nodes);
    let lost = plan.losses.iter().map(|loss| Wait::DataLost(Box::new(loss.clone())));
    plan.waits.extend(lost);
}

/// Tells the addresses that are for no broker.
fn tell_addresses(cluster: &KafkaCluster, desired: &Blueprint, plan: &mut Plan) {
    let listeners = cluster.spec.listeners.iter();
    let addresses = listeners.flat_map(|it| it.brokers.iter().map(|each| (&it.name, each.broker)));
    let others = addresses.filter(|(_, broker)| !desired.brokers.contains_key(broker));
    let note = |(listener, broker): (&String, i32)| Note::NoSuchBroker {
        listener: listener.clone(),
        broker,
    };
    plan.notes.extend(others.map(note));
}

/// Plans the end of a cluster that is being deleted: everything but the volumes has an owner, and
/// Kubernetes removes it with the object. What is remembered stays as it is, because volumes that
/// go now are no losses.
fn plan_end(cluster: &KafkaCluster, desired: &Blueprint, observed: &Observed) -> Plan {
    let mut plan = Plan { nodes: recorded(cluster).to_vec(), ..Plan::default() };
    if observed.is_held == Some(true) {
        let volumes = match desired.storage.deletion_policy {
            _ if is_paused(&cluster.metadata) => VolumesAtEnd::Paused,
            DeletionPolicy::Retain => VolumesAtEnd::Retained,
            DeletionPolicy::Delete => VolumesAtEnd::Deleted { but: others_claims(observed) },
        };
        plan.steps.push(Step::LetGo { volumes });
    }
    plan.waits.push(Wait::Deleting { held_by: cluster.finalizers().to_vec() });
    tell_losses(cluster, desired, observed, &mut plan);
    plan.waits.sort_by_key(Wait::rank);
    plan
}

/// The claims that do not go with the cluster.
fn others_claims(observed: &Observed) -> Vec<String> {
    let volumes = observed.brokers.values().flat_map(|broker| broker.volumes.values());
    let others = volumes.filter(|volume| !volume.is_own).map(|volume| volume.claim.clone());
    others.chain(observed.stray_claims.iter().cloned()).collect()
}

/// Leaves everything as it is. What was read stays in the plan, and what clients miss because no
/// step is carried out is told.
fn leave_out_steps(
    cluster: &KafkaCluster,
    desired: &Blueprint,
    observed: &Observed,
    plan: &mut Plan,
) {
    plan.waits.retain(|wait| !wait.is_about_steps());
    plan.steps.clear();
    if observed.holds_evictions {
        let why = "it was so when the object was paused, and nothing is changed meanwhile";
        let why = desired.evictions_held.clone().unwrap_or_else(|| why.to_owned());
        plan.waits.push(Wait::EvictionsHeld { why });
    }
    let ready = cluster.status.as_ref().and_then(|it| find_condition(&it.conditions, READY));
    let acted_on = ready.and_then(|ready| ready.observed_generation);
    // What only a change of the spec asks for was not promised to anybody yet.
    if acted_on.is_some() && acted_on != cluster.metadata.generation {
        return;
    }
    let is_down = |broker: &&ObservedBroker| broker.run == Run::Absent;
    let definitions = observed.brokers.values().filter(is_down).map(|broker| &broker.definition);
    let missing = std::iter::once(&observed.access).chain(definitions);
    let mut what: Vec<String> = missing.flat_map(|compared| compared.missing.clone()).collect();
    let access = Some(&observed.access).filter(|access| access.may_be_missed());
    what.extend(access.into_iter().flat_map(Compared::different));
    let is_behind =
        |(_, broker): &(&i32, &ObservedBroker)| broker.run == Run::Ready && !broker.is_current;
    let behind = observed.brokers.iter().filter(is_behind);
    what.extend(behind.map(|(id, _)| format!("broker {id} with what the spec asks for")));
    plan.waits.extend((!what.is_empty()).then_some(Wait::NotMade { what }));
}

/// What the status has of each broker.
fn recorded(cluster: &KafkaCluster) -> &[NodeStatus] {
    cluster.status.as_ref().map(|status| status.nodes.as_slice()).unwrap_or_default()
}

/// What the status has of one broker; `None` before it was written first.
pub(super) fn recorded_node(cluster: &KafkaCluster, id: i32) -> Option<&NodeStatus> {
    recorded(cluster).iter().find(|node| node.id == id)
}

/// The losses of a broker that a person has just accepted.
fn newly_accepted(cluster: &KafkaCluster, node: &NodeStatus) -> Vec<Step> {
    let before = recorded_node(cluster, node.id);
    let is_old = |loss: &&LossStatus| {
        let mut known = before.into_iter().flat_map(NodeStatus::accepted_losses);
        known.any(|old| old.name == loss.name)
            || before.is_some_and(|node| {
                node.given_up.iter().any(|id| Some(id) == loss.directory_id.as_ref())
            })
    };
    let new = node.accepted_losses().filter(|loss| !is_old(loss));
    new.map(|loss| Step::AcceptLoss { broker: node.id, name: loss.name.clone() }).collect()
}
