//! What is remembered of each broker.

use crate::api::NodeStatus;
use crate::desired::{Blueprint, BrokerVolume, POOL};
use crate::observe::{Observed, ObservedBroker};
use crate::plan::Plan;

/// What is remembered of each broker. What was recorded stays as it was while it is not seen, and
/// while its loss is not accepted.
pub(super) fn nodes(
    old: &[NodeStatus],
    desired: &Blueprint,
    observed: &Observed,
    plan: &Plan,
) -> Vec<NodeStatus> {
    let node = |id: &i32| {
        let new = || NodeStatus { id: *id, incarnation: 1, ..NodeStatus::default() };
        let mut node = old.iter().find(|node| node.id == *id).cloned().unwrap_or_else(new);
        node.pool = POOL.to_owned();
        node.roles = vec!["broker".to_owned(), "controller".to_owned()];
        let losses = || plan.losses.iter().filter(|loss| loss.broker == *id);
        for accepted in losses().filter(|loss| loss.is_accepted) {
            node.incarnation += 1;
            node.volumes.retain(|volume| volume.name != accepted.volume);
        }
        match losses().find(|loss| !loss.is_accepted) {
            Some(loss) => {
                node.data_loss = Some(loss.name.clone());
                return node;
            }
            _ => node.data_loss = None,
        }
        if let Some(seen) = observed.brokers.get(id) {
            let volumes = desired.brokers.get(id).into_iter().flat_map(|broker| &broker.volumes);
            // What was given up was still seen by this pass.
            let is_kept = |volume: &&BrokerVolume| losses().all(|loss| loss.volume != volume.name);
            record_volumes(&mut node, volumes.filter(is_kept), seen, observed.has_claims());
        }
        node
    };
    desired.brokers.keys().map(node).collect()
}

/// Records what is seen of a broker's volumes: what the broker says it found there is recorded for
/// the claim that it was started with, and also while there is none, so that its loss is seen. One that was never used is forgotten with its claim.
fn record_volumes<'a>(
    node: &mut NodeStatus,
    volumes: impl Iterator<Item = &'a BrokerVolume>,
    seen: &ObservedBroker,
    has_claims: bool,
) {
    let mut old = std::mem::take(&mut node.volumes);
    for volume in volumes {
        let at = old.iter().position(|each| each.name == volume.name);
        let mut recorded = at.map(|at| old.swap_remove(at)).unwrap_or_default();
        recorded.name.clone_from(&volume.name);
        if let Some(live) = seen.volumes.get(&volume.name) {
            (recorded.claim, recorded.claim_uid) = (live.claim.clone(), Some(live.uid.clone()));
        }
        let told = seen.found_on(&volume.name, &volume.log_dir).filter(|_| has_claims);
        recorded.directory_id = told.cloned().or(recorded.directory_id);
        if recorded.claim_uid.is_some() || recorded.directory_id.is_some() {
            node.volumes.push(recorded);
        }
    }
}
