//! Whether a broker still has the records that it had.
//!
//! What was recorded about it (the uid of its claim, the id of its directory) is compared with what
//! is. A difference is a loss until the old volume is back or a person accepts it by its name:
//! nothing heals over it, and no topic is made again meanwhile.

use kube::ResourceExt as _;

use crate::api::{ACCEPT_LOSS_ANNOTATION, DATA_VOLUME, KafkaCluster, NodeStatus, VolumeStatus};
use crate::desired::Blueprint;
use crate::observe::{Observed, ObservedBroker, Part};

/// A volume of a broker without the records that it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Which broker.
    pub broker: i32,
    /// Which of its volumes.
    pub volume: String,
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
pub(super) fn losses(
    cluster: &KafkaCluster,
    desired: &Blueprint,
    observed: &Observed,
) -> Vec<Loss> {
    let accepted = cluster.annotations().get(ACCEPT_LOSS_ANNOTATION);
    let storage_was_read = !observed.unread.contains_key(&Part::Storage);
    let mut losses = Vec::new();
    for node in cluster.status.iter().flat_map(|status| &status.nodes) {
        let Some(broker) = observed.brokers.get(&node.id) else { continue };
        for volume in &node.volumes {
            let log_dir = desired.log_dir_of(node.id, &volume.name);
            let Some(what) = lost_of(volume, log_dir, broker, storage_was_read) else { continue };
            let name = loss_name(node, volume);
            let is_accepted = accepted == Some(&name);
            let volume = volume.name.clone();
            losses.push(Loss { broker: node.id, volume, name, what, is_accepted });
        }
    }
    losses
}

/// Names the loss of one volume, once: an incarnation ends when a loss is accepted.
fn loss_name(node: &NodeStatus, volume: &VolumeStatus) -> String {
    let volume = match volume.name.as_str() {
        DATA_VOLUME => String::new(),
        other => format!("-{other}"),
    };
    format!("{}-{}{volume}-incarnation-{}", node.pool, node.id, node.incarnation)
}

fn lost_of(
    volume: &VolumeStatus,
    log_dir: Option<&str>,
    broker: &ObservedBroker,
    storage_was_read: bool,
) -> Option<Lost> {
    // A broker that was never seen on it had nothing on it.
    let recorded = volume.directory_id.clone()?;
    let said = broker.identity.as_ref().and_then(|said| said.directories.get(log_dir?));
    if let Some(found) = said.cloned() {
        // What the broker itself says counts: a volume may be restored under a new claim.
        return (found != recorded).then_some(Lost::OtherDirectory { recorded, found });
    }
    let uid = volume.claim_uid.as_ref().filter(|_| storage_was_read)?;
    let claim = volume.claim.clone();
    match broker.volumes.get(&volume.name) {
        None => Some(Lost::ClaimGone { claim }),
        Some(live) if live.uid != *uid => Some(Lost::ClaimMadeAgain { claim }),
        Some(_) => None,
    }
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
                    "broker {broker} runs on another volume {}: its directory.id was {recorded} \
                     and is {found}",
                    self.volume
                )?;
            }
        }
        write!(
            f,
            "; topics, records and committed offsets that were only there are lost, and nothing \
             is made again in their place. Bring the old volume back, or go on without \
             them: kubectl annotate --overwrite kafkacluster NAME {ACCEPT_LOSS_ANNOTATION}={}",
            self.name
        )
    }
}
