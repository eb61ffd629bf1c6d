//! Whether a broker still has the records that it had.
//!
//! What was recorded about it (the uid of its claim, the id of its directory) is compared with what
//! is. A difference is a loss until the old volume is back or a person accepts it by its name:
//! nothing heals over it, and no topic is made again meanwhile.

use kube::ResourceExt as _;

use crate::api::validate::volume_number;
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
    /// The `directory.id` that is lost.
    pub directory_id: String,
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
    /// The broker remembers a directory that it does not find, and nothing here knows of it.
    NotFound {
        /// Where it was.
        log_dir: String,
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
            Self::VolumeGone { .. } | Self::NotFound { .. } | Self::OtherDirectory { .. } => false,
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
        let mut add = |volume: &str, directory_id: &str, what: Lost| {
            let name = loss_name(node, volume, directory_id);
            losses.push(Loss {
                cluster: (desired.namespace.clone(), desired.name.clone()),
                broker: node.id,
                volume: volume.to_owned(),
                is_accepted: accepted == Some(&name),
                name,
                directory_id: directory_id.to_owned(),
                what,
            });
        };
        for volume in &node.volumes {
            let log_dir = desired.log_dir_of(node.id, &volume.name);
            // A broker that was never seen on it had nothing on it.
            let Some(recorded) = &volume.directory_id else { continue };
            if let Some(what) = lost_of(volume, recorded, log_dir, broker, observed.has_claims()) {
                add(&volume.name, recorded, what);
            }
        }
        let is_known = |id: &String| {
            let recorded = node.volumes.iter().filter_map(|volume| volume.directory_id.as_ref());
            recorded.chain(&node.given_up).any(|known| known == id)
        };
        // A cluster that was made again knows less than its brokers do.
        let not_found = broker.identity.iter().flat_map(|said| &said.lost);
        for (id, log_dir) in not_found.filter(|(id, _)| !is_known(id)) {
            // One that is not in use any more was where its name is in the path.
            let named = || log_dir.rsplit('/').nth(1).filter(|name| volume_number(name).is_some());
            let volume = desired.volume_at(node.id, log_dir).or_else(named).unwrap_or(log_dir);
            add(volume, id, Lost::NotFound { log_dir: log_dir.clone() });
        }
    }
    losses
}

/// How many characters of a `directory.id` tell one loss from others of its name.
const ID_PART: usize = 8;

/// Names the loss of one directory, once: an incarnation ends when a loss is accepted, and a cluster
/// that is made again under the same name has other directories.
fn loss_name(node: &NodeStatus, volume: &str, recorded: &str) -> String {
    let volume = match volume {
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
    // It need not be ready: one whose disk is full or that recovers holds its volumes, too.
    let may_run = broker.run != Run::Absent;
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
            Lost::NotFound { log_dir } => {
                write!(
                    f,
                    "broker {broker} does not find the log directory that it used before in \
                     {log_dir} (directory.id {})",
                    self.directory_id
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
