//! A volume without the records that it had, and what is said about it.

use crate::api::{ACCEPT_LOSS_ANNOTATION, DATA_VOLUME, LossReason, LossStatus, NodeStatus};

/// A loss that nobody accepted yet, as it is recorded, and what is known besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Namespace and name of the cluster.
    pub cluster: (String, String),
    /// Which broker.
    pub broker: i32,
    /// The name of the volume's claim, where it is known.
    pub claim: Option<String>,
    /// The log directory, where the broker tells it now.
    pub log_dir: Option<String>,
    /// The `directory.id` that the broker has there now, where it tells it.
    pub found: Option<String>,
    /// What is recorded.
    pub recorded: LossStatus,
}

/// How many characters of an id tell one loss from others of its name.
const ID_PART: usize = 8;

/// Names the loss of one volume, once: an incarnation ends when a loss is accepted, and a cluster
/// that is made again under the same name has other directories. `id` is the `directory.id`, or the
/// uid of the claim where the broker never told the other.
pub(super) fn loss_name(node: &NodeStatus, volume: &str, id: Option<&String>) -> String {
    let volume = match volume {
        DATA_VOLUME => String::new(),
        other => format!("-{other}"),
    };
    let id: String = id.map_or("unknown", String::as_str).chars().take(ID_PART).collect();
    format!("{}-{}{volume}-incarnation-{}-{id}", node.pool, node.id, node.incarnation)
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (broker, (namespace, cluster)) = (self.broker, &self.cluster);
        let LossStatus { volume, directory_id, .. } = &self.recorded;
        let claim = match &self.claim {
            Some(claim) => format!("PersistentVolumeClaim {claim}"),
            None => format!("the PersistentVolumeClaim of volume {volume}"),
        };
        let id = directory_id.as_deref().unwrap_or("not known");
        match self.recorded.reason {
            LossReason::ClaimGone => write!(f, "{claim} of broker {broker} was deleted")?,
            LossReason::VolumeGone => write!(
                f,
                "the PersistentVolume of {claim} of broker {broker} is gone (the claim's phase is \
                 Lost)"
            )?,
            LossReason::ClaimMadeAgain => write!(
                f,
                "{claim} of broker {broker} was deleted and made again, empty as far as is known"
            )?,
            LossReason::NotFound if directory_id.is_none() => write!(
                f,
                "volume {volume} of broker {broker} is missing, and other volumes that the broker \
                 had before this KafkaCluster was made are there"
            )?,
            LossReason::NotFound => {
                let place = match &self.log_dir {
                    Some(log_dir) => format!("in {log_dir}"),
                    None => format!("on volume {volume}"),
                };
                write!(
                    f,
                    "broker {broker} does not find the log directory that it used before {place} \
                     (directory.id {id})"
                )?;
            }
            LossReason::OtherDirectory => {
                write!(
                    f,
                    "broker {broker} runs on another volume {volume}: its directory.id was {id}"
                )?;
                if let Some(found) = &self.found {
                    write!(f, " and is {found}")?;
                }
            }
        }
        if self.recorded.held {
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
            self.recorded.name
        )
    }
}
