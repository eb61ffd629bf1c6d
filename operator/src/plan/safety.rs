//! Whether a broker may be ended on purpose.
//!
//! At most one is down. One that runs and does not serve may lead or vote all the same, so it is
//! asked as one that serves is, and put right at once where it does not answer: that is how a bad
//! image or configuration heals. But one that has the last copy of records is never ended.

use super::cluster::recorded_node;
use super::{Plan, Wait};
use crate::api::{KafkaCluster, NodeStatus, VolumeStatus};
use crate::desired::Blueprint;
use crate::observe::{Observed, ObservedBroker, Part, Run};

/// Whether a broker that runs may be ended, for whatever reason; asked before every step that ends
/// one.
///
/// # Errors
/// Why not: records would go with it, or it is not known or not written down yet whether they
/// would.
pub(super) fn may_end(
    cluster: &KafkaCluster,
    broker: i32,
    observed: &Observed,
    plan: &Plan,
) -> Result<(), Wait> {
    // What runs is not known while pods or sets are not, nor what goes with it.
    let parts = [Part::Storage, Part::Brokers, Part::Definitions];
    if let Some(unread) = parts.into_iter().find(|part| !observed.was_read(*part)) {
        let why = format!(
            "it is not known what it would lose, because the operator cannot check {unread}"
        );
        return Err(Wait::NotRestarted { broker, why });
    }
    let Some(seen) = observed.brokers.get(&broker).filter(|seen| seen.run != Run::Absent) else {
        return Ok(());
    };
    if let Some(lent) = seen.volumes.values().find(|volume| volume.is_lent()) {
        return Err(Wait::ClaimEnding { broker, claim: lent.claim.clone() });
    }
    let node = plan.nodes.iter().find(|node| node.id == broker);
    let mut lost = node.into_iter().flat_map(NodeStatus::open_losses);
    if let Some(loss) = lost.find(|loss| loss.held) {
        return Err(Wait::HoldsLastCopy { broker, volume: loss.volume.clone() });
    }
    if !is_written(recorded_node(cluster, broker), node) {
        return Err(Wait::BrokerRestarting { broker });
    }
    Ok(())
}

/// Whether what is to be remembered of a broker's volumes is written down already: after the end
/// of the broker nobody can see it any more.
fn is_written(recorded: Option<&NodeStatus>, node: Option<&NodeStatus>) -> bool {
    let (empty, mut same) = (NodeStatus::default(), true);
    let (recorded, node) = (recorded.unwrap_or(&empty), node.unwrap_or(&empty));
    for volume in &node.volumes {
        let is_it = |known: &VolumeStatus| {
            VolumeStatus { offline: known.offline, ..volume.clone() } == *known
        };
        same &= recorded.volumes.iter().any(is_it);
    }
    same &= node.losses.iter().all(|loss| recorded.losses.contains(loss));
    same && recorded.volumes.len() == node.volumes.len()
        && recorded.losses.len() == node.losses.len()
}

/// The broker that is down, or is taken down by this plan.
pub(super) struct Down(Option<i32>);

impl Down {
    /// The first broker that should serve and does not.
    pub(super) fn of(desired: &Blueprint, observed: &Observed) -> Self {
        let serves = |id: &&i32| observed.brokers.get(id).is_some_and(ObservedBroker::serves);
        Self(desired.brokers.keys().find(|id| !serves(id)).copied())
    }

    /// Takes down a broker that serves.
    ///
    /// # Errors
    /// Why it has to wait.
    pub(super) fn take(&mut self, broker: i32, seen: &ObservedBroker) -> Result<(), Wait> {
        if let Some(other) = self.0.filter(|other| *other != broker) {
            return Err(Wait::OtherBrokerDown { broker, other });
        }
        is_let_go(broker, seen)?;
        self.0 = Some(broker);
        Ok(())
    }
}

/// Whether its cluster does without a broker that runs, as far as it was asked.
///
/// # Errors
/// Why it has to wait.
pub(super) fn is_let_go(broker: i32, seen: &ObservedBroker) -> Result<(), Wait> {
    match seen.held_back.clone() {
        Some(why) => Err(Wait::RestartNotSafe { broker, why }),
        None => Ok(()),
    }
}

impl ObservedBroker {
    pub(crate) fn serves(&self) -> bool {
        self.run == Run::Ready
    }

    /// Whether it runs, as far as is known, and may say whether its cluster does without it.
    pub(super) fn may_answer(&self) -> bool {
        matches!(self.run, Run::Ready | Run::Starting(_) | Run::Failing { .. })
    }

    /// Whether what runs ends when its definition is applied.
    pub(super) fn ends_with_its_definition(&self) -> bool {
        self.run != Run::Absent && self.to_end.is_none()
    }
}
