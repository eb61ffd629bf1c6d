//! Whether a broker still has the records that it had.
//!
//! What was recorded about it (the uid of its claim, the id of its directory) is compared with what
//! is. A difference is a loss until the old volume is back or a person accepts it by its name:
//! nothing heals over it, and no topic is made again meanwhile.

use kube::ResourceExt as _;

use crate::api::{ACCEPT_LOSS_ANNOTATION, DATA_VOLUME, KafkaCluster, NodeStatus, VolumeStatus};
use crate::desired::Blueprint;
use crate::observe::{Observed, ObservedBroker, Run};

/// A volume of a broker without the records that it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Namespace and name of the cluster.
    pub cluster: (String, String),
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
        /// Whether a broker that runs may still have the volume, until it ends.
        is_held: bool,
    },
    /// The claim is there, and its volume is not.
    VolumeGone {
        /// The claim's name.
        claim: String,
    },
    /// The claim was deleted and made again, and the broker has not shown that its records are on
    /// the new one.
    ClaimMadeAgain {
        /// Its name.
        claim: String,
        /// Whether a broker that runs may still have the old volume, until it ends.
        is_held: bool,
    },
    /// The broker came up on another directory.
    OtherDirectory {
        /// The id that was recorded.
        recorded: String,
        /// The id that the broker has now.
        found: String,
    },
}

impl Lost {
    /// Whether the records go when the broker ends, and not before.
    pub(super) fn is_held(&self) -> bool {
        match self {
            Self::ClaimGone { is_held, .. } | Self::ClaimMadeAgain { is_held, .. } => *is_held,
            Self::VolumeGone { .. } | Self::OtherDirectory { .. } => false,
        }
    }
}

/// Every loss that is to be seen.
pub(super) fn losses(
    cluster: &KafkaCluster,
    desired: &Blueprint,
    observed: &Observed,
) -> Vec<Loss> {
    let accepted = cluster.annotations().get(ACCEPT_LOSS_ANNOTATION);
    let mut losses = Vec::new();
    for node in cluster.status.iter().flat_map(|status| &status.nodes) {
        let Some(broker) = observed.brokers.get(&node.id) else { continue };
        for volume in &node.volumes {
            let log_dir = desired.log_dir_of(node.id, &volume.name);
            // A broker that was never seen on it had nothing on it.
            let Some(recorded) = &volume.directory_id else { continue };
            let what = lost_of(volume, recorded, log_dir, broker, observed.has_claims());
            let Some(what) = what else { continue };
            let name = loss_name(node, volume, recorded);
            let is_accepted = accepted == Some(&name);
            let volume = volume.name.clone();
            let cluster = (desired.namespace.clone(), desired.name.clone());
            losses.push(Loss { cluster, broker: node.id, volume, name, what, is_accepted });
        }
    }
    losses
}

/// How many characters of a `directory.id` tell one loss from others of its name.
const ID_PART: usize = 8;

/// Names the loss of one directory, once: an incarnation ends when a loss is accepted, and a cluster
/// that is made again under the same name has other directories.
fn loss_name(node: &NodeStatus, volume: &VolumeStatus, recorded: &str) -> String {
    let volume = match volume.name.as_str() {
        DATA_VOLUME => String::new(),
        other => format!("-{other}"),
    };
    let id: String = recorded.chars().take(ID_PART).collect();
    format!("{}-{}{volume}-incarnation-{}-{id}", node.pool, node.id, node.incarnation)
}

fn lost_of(
    volume: &VolumeStatus,
    recorded: &str,
    log_dir: Option<&str>,
    broker: &ObservedBroker,
    has_claims: bool,
) -> Option<Lost> {
    let said = broker.identity.as_ref().and_then(|said| said.directories.get(log_dir?));
    if let Some(found) = said.filter(|found| *found != recorded).cloned() {
        return Some(Lost::OtherDirectory { recorded: recorded.to_owned(), found });
    }
    let claim = volume.claim.clone();
    let may_run = matches!(broker.run, Run::Ready | Run::Failing { .. });
    match broker.volumes.get(&volume.name) {
        _ if !has_claims => None,
        None => Some(Lost::ClaimGone { claim, is_held: may_run }),
        Some(live) if live.is_gone => Some(Lost::VolumeGone { claim }),
        Some(live) if volume.claim_uid.as_ref() == Some(&live.uid) => None,
        // What the broker says about this claim counts: a volume may be restored under a new one.
        Some(live) if live.is_mounted && said.is_some() => None,
        Some(live) => Some(Lost::ClaimMadeAgain { claim, is_held: may_run && !live.is_mounted }),
    }
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (broker, (namespace, cluster)) = (self.broker, &self.cluster);
        match &self.what {
            Lost::ClaimGone { claim, .. } => {
                write!(f, "PersistentVolumeClaim {claim} of broker {broker} was deleted")?;
            }
            Lost::VolumeGone { claim } => {
                write!(
                    f,
                    "the PersistentVolume of PersistentVolumeClaim {claim} of broker {broker} is \
                     gone (the claim's phase is Lost)"
                )?;
            }
            Lost::ClaimMadeAgain { claim, .. } => {
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
        if self.what.is_held() {
            f.write_str(
                "; the broker still has the old volume until it ends, and the operator does not \
                 restart it",
            )?;
        }
        write!(
            f,
            "; topics, records and committed offsets that were only there are lost, and nothing \
             is made again in their place. Bring the old volume back, or go on without \
             them: kubectl -n {namespace} annotate --overwrite kafkacluster {cluster} \
             {ACCEPT_LOSS_ANNOTATION}={}",
            self.name
        )
    }
}
