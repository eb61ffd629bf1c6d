//! What is remembered of each broker.

use crate::api::NodeStatus;
use crate::desired::{Blueprint, BrokerVolume, POOL};
use crate::observe::{Observed, ObservedBroker};
use crate::plan::{Plan, is_offline};

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
            let is_it = |id: &String| *id == accepted.directory_id;
            node.volumes.retain(|volume| !volume.directory_id.as_ref().is_some_and(is_it));
            if !node.given_up.iter().any(is_it) {
                node.given_up.push(accepted.directory_id.clone());
            }
        }
        let open = losses().find(|loss| !loss.is_accepted);
        node.data_loss = open.map(|loss| loss.name.clone());
        if let Some(seen) = observed.brokers.get(id) {
            let volumes = desired.brokers.get(id).into_iter().flat_map(|broker| &broker.volumes);
            // What is lost stays as it was, and what was given up was still seen by this pass.
            let is_lost = |volume: &BrokerVolume| losses().any(|loss| loss.volume == volume.name);
            let volumes = volumes.map(|volume| (volume, is_lost(volume)));
            record_volumes(&mut node, volumes, seen, observed.has_claims());
        }
        // What came back may be lost again, and that is another loss.
        let volumes = &node.volumes;
        let is_here = |id: &String| volumes.iter().any(|v| v.directory_id.as_ref() == Some(id));
        node.given_up.retain(|id| !is_here(id));
        node
    };
    desired.brokers.keys().map(node).collect()
}

/// Records what is seen of a broker's volumes: what the broker says it found there is recorded for
/// the claim that it was started with, and also while there is none, so that its loss is seen. One
/// that was never used is forgotten with its claim.
fn record_volumes<'a>(
    node: &mut NodeStatus,
    volumes: impl Iterator<Item = (&'a BrokerVolume, bool)>,
    seen: &ObservedBroker,
    has_claims: bool,
) {
    let mut old = std::mem::take(&mut node.volumes);
    for (volume, is_lost) in volumes {
        let at = old.iter().position(|each| each.name == volume.name);
        let mut recorded = at.map(|at| old.swap_remove(at)).unwrap_or_default();
        if is_lost {
            node.volumes.extend(Some(recorded).filter(|known| !known.name.is_empty()));
            continue;
        }
        recorded.name.clone_from(&volume.name);
        if let Some(live) = seen.volumes.get(&volume.name) {
            (recorded.claim, recorded.claim_uid) = (live.claim.clone(), Some(live.uid.clone()));
        }
        let told = seen.found_on(&volume.name, &volume.log_dir).filter(|_| has_claims);
        recorded.directory_id = told.cloned().or(recorded.directory_id);
        recorded.offline = is_offline(&volume.log_dir, Some(&recorded), seen);
        if recorded.claim_uid.is_some() || recorded.directory_id.is_some() {
            node.volumes.push(recorded);
        }
    }
}
