//! Whether a broker still has the records that it had.
//!
//! What was recorded about it (the uid of its claim, the id of its directory) is compared with what
//! is. A difference is a loss until the old volume is back or a person accepts it by its name:
//! nothing heals over it, and no topic is made again meanwhile.

use kube::ResourceExt as _;

use crate::api::{ACCEPT_LOSS_ANNOTATION, KafkaCluster, NodeStatus};
use crate::observe::{Observed, ObservedBroker, Part};

/// A broker without the records that it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Which broker.
    pub broker: i32,
    /// The name of this loss, and of no other: what the annotation has to say.
    pub name: String,
    /// What is lost.
    pub what: Lost,
    /// Whether a person said that it goes on.
    pub is_accepted: bool,
}

/// What is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The claim is not there.
    ClaimGone {
        /// Its name.
        claim: String,
    },
    /// The claim was deleted and made again, and the broker has not shown that its records are on
    /// the new one.
    ClaimMadeAgain {
        /// Its name.
        claim: String,
    },
    /// The broker came up on another directory.
    OtherDirectory {
        /// The id that was recorded.
        recorded: String,
        /// The id that the broker has now.
        found: String,
    },
}

/// Every loss that is to be seen.
pub(super) fn losses(cluster: &KafkaCluster, observed: &Observed) -> Vec<Loss> {
    let nodes = cluster.status.iter().flat_map(|status| &status.nodes);
    let accepted = cluster.annotations().get(ACCEPT_LOSS_ANNOTATION);
    let lost = nodes.filter_map(|node| {
        let broker = observed.brokers.get(&node.id)?;
        let what = lost_of(node, broker, !observed.unread.contains_key(&Part::Storage))?;
        let name = format!("{}-{}-incarnation-{}", node.pool, node.id, node.incarnation);
        Some(Loss { broker: node.id, is_accepted: accepted == Some(&name), name, what })
    });
    lost.collect()
}

fn lost_of(node: &NodeStatus, broker: &ObservedBroker, storage_was_read: bool) -> Option<Lost> {
    node.volumes.iter().find_map(|volume| {
        // A broker that was never seen on it had nothing on it.
        let recorded = volume.directory_id.clone()?;
        if let Some(identity) = &broker.identity {
            // What the broker itself says counts: a volume may be restored under a new claim.
            let found = identity.directory_ids.first().cloned().unwrap_or_default();
            return (found != recorded).then_some(Lost::OtherDirectory { recorded, found });
        }
        let uid = volume.claim_uid.as_ref().filter(|_| storage_was_read)?;
        let claim = volume.claim.clone();
        match &broker.volume {
            None => Some(Lost::ClaimGone { claim }),
            Some(live) if live.uid != *uid => Some(Lost::ClaimMadeAgain { claim }),
            Some(_) => None,
        }
    })
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let broker = self.broker;
        match &self.what {
            Lost::ClaimGone { claim } => {
                write!(f, "PersistentVolumeClaim {claim} of broker {broker} was deleted")?
            }
            Lost::ClaimMadeAgain { claim } => {
                write!(
                    f,
                    "PersistentVolumeClaim {claim} of broker {broker} was deleted and made again, \
                     empty as far as is known"
                )?;
            }
            Lost::OtherDirectory { recorded, found } => {
                write!(
                    f,
                    "broker {broker} runs on another volume: its directory.id was {recorded} and \
                     is {found}"
                )?;
            }
        }
        write!(
            f,
            "; topics, records and committed offsets that only this broker had are lost, and \
             nothing is made again in their place. Bring the old volume back, or go on without \
             them: kubectl annotate --overwrite kafkacluster NAME {ACCEPT_LOSS_ANNOTATION}={}",
            self.name
        )
    }
}
