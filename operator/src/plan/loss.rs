//! A volume without the records that it had, and what is said about it.

use crate::api::{ACCEPT_LOSS_ANNOTATION, DATA_VOLUME, LossReason, LossStatus, NodeStatus};

/// A loss that nobody accepted yet, as it is recorded, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Namespace and name of the cluster.
    pub cluster: (String, String),
    /// Which broker.
    pub broker: i32,
    /// The name of the volume's claim.
    pub claim: String,
    /// What is recorded.
    pub recorded: LossStatus,
}

/// How many characters of an id are in the name of a loss.
const ID_PART: usize = 8;

/// Names the loss of one volume, once. `id` is the `directory.id`, or the uid of the claim where
/// the broker never told the other; a person knows the loss by it. `pass` is of the pass that found
/// it and of no other ([`pass_of`](super::memory::pass_of)): no annotation that is there already,
/// for whichever loss, is the name of one that comes.
pub(super) fn loss_name(
    node: &NodeStatus,
    volume: &str,
    id: Option<&String>,
    pass: &str,
) -> String {
    let volume = match volume {
        DATA_VOLUME => String::new(),
        other => format!("-{other}"),
    };
    let id: String = id.map_or("unknown", String::as_str).chars().take(ID_PART).collect();
    let pass: String = pass.chars().take(ID_PART).collect();
    format!("{}-{}{volume}-incarnation-{}-{id}-{pass}", node.pool, node.id, node.incarnation)
}

/// What is said is only what is recorded: it stays the same for as long as the loss does, whether
/// or not the broker answers.
impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (broker, (namespace, cluster)) = (self.broker, &self.cluster);
        let LossStatus { volume, directory_id, .. } = &self.recorded;
        let claim = format!("PersistentVolumeClaim {}", self.claim);
        let id = directory_id.as_deref().unwrap_or("not known");
        match self.recorded.reason {
            LossReason::ClaimGone => write!(f, "{claim} of broker {broker} was deleted")?,
            LossReason::VolumeGone => write!(
                f,
                "the PersistentVolume of {claim} of broker {broker} is gone (the claim's phase is \
                 Lost)"
            )?,
            LossReason::ClaimMadeAgain => {
                write!(f, "{claim} of broker {broker} was deleted and recreated, presumably empty")?
            }
            LossReason::NotFound if directory_id.is_none() => write!(
                f,
                "volume {volume} of broker {broker} is missing, or its claim is a new one, and \
                 other volumes that the broker had before this KafkaCluster was made are there"
            )?,
            LossReason::NotFound => write!(
                f,
                "broker {broker} does not find the log directory that it used before on volume \
                 {volume} (directory.id {id})"
            )?,
            LossReason::OtherDirectory => write!(
                f,
                "broker {broker} has another log directory on volume {volume}: its directory.id \
                 was {id}"
            )?,
        }
        let is_claim = self.recorded.claim_uid.is_some() && directory_id.is_none();
        if is_claim && self.recorded.reason != LossReason::NotFound {
            f.write_str("; the broker never reported what was on it; it may have been empty")?;
        }
        if self.recorded.held {
            f.write_str(
                "; the broker still has the old volume until it stops, so that the operator does \
                 not restart it",
            )?;
        }
        write!(
            f,
            "; topics, records and committed offsets that were only there are lost, and nothing is \
             recreated in their place. Restore the old volume, or accept the loss: kubectl -n \
             {namespace} annotate --overwrite kafkacluster {cluster} {ACCEPT_LOSS_ANNOTATION}={}",
            self.recorded.name
        )
    }
}
