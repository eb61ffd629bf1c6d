//! The plan of a cluster.
//!
//! Independent things do not wait for one another: addresses, volumes and brokers are planned side
//! by side, and a fault in one leaves the others going.

use super::access::{plan_access, plan_pruning};
use super::loss::{Loss, losses};
use super::roll::plan_brokers;
use super::volumes::plan_volumes;
use super::{Note, Step, Wait};
use crate::api::{KafkaCluster, is_paused};
use crate::desired::Blueprint;
use crate::observe::{Observed, Part};

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

/// Plans `cluster`, whose blueprint is `desired`.
#[must_use]
pub fn plan_cluster(cluster: &KafkaCluster, desired: &Blueprint, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    if is_paused(&cluster.metadata) || cluster.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let unread = observed.unread.iter();
    plan.waits.extend(
        unread.map(|(part, fault)| Wait::NotRead { part: *part, message: fault.message.clone() }),
    );
    plan.losses = losses(cluster, desired, observed);
    for loss in &plan.losses {
        if loss.is_accepted {
            plan.steps.push(Step::AcceptLoss { broker: loss.broker, name: loss.name.clone() });
        } else {
            plan.waits.push(Wait::DataLost(Box::new(loss.clone())));
        }
    }
    let strays = observed.strays.iter().cloned();
    plan.waits.extend(strays.map(|set| Wait::Stray { set }));
    plan_access(observed, &mut plan);
    if observed.has_claims() {
        plan_volumes(cluster, desired, observed, &mut plan);
    }
    // Whether a broker may be restarted follows from which ones serve.
    if observed.was_read(Part::Brokers) {
        plan_brokers(cluster, desired, observed, &mut plan);
    }
    plan_pruning(observed, &mut plan);
    plan.waits.sort_by_key(Wait::rank);
    plan
}
