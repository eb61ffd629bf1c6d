//! Moving replicas to other brokers, and having more or fewer of them (KIP-455).
//!
//! A partition that moves has the replicas of before and of after, and those that are new are
//! `adding`. When all replicas of after are in sync, those that are to go are taken away in the same
//! change; see [`Change`]. So a move is in the partition's state and nowhere else: it goes on after
//! any crash, and waits while a source or target is fenced. Given another target, it keeps the
//! replicas of the first one until it ends, as Apache Kafka does.

use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use serde::{Deserialize, Serialize};

use super::change::{Change, min_insync};
use super::placement::check_manual_assignment;
use super::{Context, Decide, Decision, Draft, ItemResult};
use crate::metadata::record::PartitionRecord;
use crate::metadata::{ApiError, MetadataImage, MetadataRecord, PartitionState};

/// AlterPartitionReassignments (KIP-455).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlterReassignments {
    /// The partitions to move; each succeeds or fails alone.
    pub partitions: Vec<Reassignment>,
    /// Whether a partition may get more or fewer replicas (KIP-860).
    pub may_change_replication_factor: bool,
}

/// Where one partition goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reassignment {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The brokers that shall have it, the preferred leader first. `None`: a move that is under way
    /// is given up, and the replicas of before stay.
    pub replicas: Option<Vec<BrokerId>>,
}

impl Decide for AlterReassignments {
    /// In the order of the request.
    type Outcome = Vec<ItemResult<()>>;

    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome> {
        let mut draft = Draft::new(image);
        let outcome = self.partitions.iter().map(|one| self.alter(one, &mut draft, context));
        let outcome = outcome.collect();
        Decision { records: draft.records, outcome }
    }
}

impl AlterReassignments {
    fn alter(
        &self,
        one: &Reassignment,
        draft: &mut Draft,
        context: &Context<'_>,
    ) -> ItemResult<()> {
        let Reassignment { topic: name, partition, replicas } = one;
        let unknown = |what| ApiError::new(ErrorCode::UnknownTopicOrPartition, what);
        let image = &draft.image;
        let topic = image
            .topic(name)
            .ok_or_else(|| unknown(format!("Unable to find a topic named {name}.")))?;
        let state = topic
            .partition(*partition)
            .ok_or_else(|| unknown(format!("Unable to find partition {name}:{partition}.")))?;
        let change = Change::of(image, context.rules, topic, state);
        let change = match replicas {
            None if !state.is_reassigning() => {
                return Err(ErrorCode::NoReassignmentInProgress.into());
            }
            None => change.given_up(),
            Some(target) => {
                check_manual_assignment(image, target, None)?;
                self.check_factor(target.len(), state.original_replicas().len())?;
                change.moving(target)
            }
        };
        let Some(next) = change.build() else { return Ok(()) };
        let min_insync = min_insync(image, topic, &next.replicas);
        check_kept(state, &next, next.required_in_sync(min_insync))?;
        let record = PartitionRecord::of(topic.id, *partition, &next);
        draft.add(vec![MetadataRecord::Partition(record)])
    }

    fn check_factor(&self, wanted: usize, present: usize) -> ItemResult<()> {
        if self.may_change_replication_factor || wanted == present {
            return Ok(());
        }
        let message = format!(
            "The replication factor is {present} and the request, which does not allow to change \
             it, asks for {wanted}."
        );
        Err(ApiError::new(ErrorCode::InvalidReplicationFactor, message))
    }
}

/// Whoever was only to come and has come into the ISR meanwhile leaves it at once when a move is
/// given up: not when too few stay.
fn check_kept(before: &PartitionState, next: &PartitionState, required: usize) -> ItemResult<()> {
    let all = |state: &PartitionState| state.isr.len().saturating_add(state.elr.len());
    let needed = before.isr.len().min(required);
    if next.isr.len() >= needed && (all(next) > 0 || all(before) == 0) {
        return Ok(());
    }
    let message = format!(
        "{} of {needed} replicas that must be in sync would be left, because others that are in \
         sync are not in the assignment of before. It can be had again when one of its own is in sync.",
        next.isr.len()
    );
    Err(ApiError::new(ErrorCode::InvalidReplicaAssignment, message))
}
