//! Changing in-sync replicas on the leader's word.

use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{BrokerId, LeaderEpoch, TopicId};
use serde::{Deserialize, Serialize};

use super::change::Change;
use super::{Context, Decide, Decision, Draft, ItemResult};
use crate::metadata::record::PartitionRecord;
use crate::metadata::{ApiError, MetadataImage, MetadataRecord, PartitionState};

/// AlterPartition (KIP-497): the leader `broker` asks to change the ISR of partitions it leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlterIsr {
    /// The leader that asks.
    pub broker: BrokerId,
    /// Which start of it asks (KIP-903).
    pub broker_epoch: i64,
    /// What it asks for.
    pub changes: Vec<IsrChange>,
}

/// One partition's new ISR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsrChange {
    /// The topic.
    pub topic_id: TopicId,
    /// The partition.
    pub partition: i32,
    /// The epoch in which the asking broker leads.
    pub leader_epoch: LeaderEpoch,
    /// The state the change builds on.
    pub partition_epoch: i32,
    /// The ISR wanted.
    pub isr: Vec<IsrMember>,
}

/// A replica that the leader takes to have everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsrMember {
    /// Its broker.
    pub id: BrokerId,
    /// Which start of that broker has it all: a later start may have lost some (KIP-903).
    pub epoch: i64,
}

impl Decide for AlterIsr {
    /// In the order of the request; the state after the change.
    type Outcome = Vec<ItemResult<PartitionState>>;

    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome> {
        let mut draft = Draft::new(image);
        let registered = image.brokers.get(&self.broker).map(|registration| registration.epoch);
        let outcome = self.changes.iter().map(|change| match registered {
            Some(epoch) if epoch == self.broker_epoch => {
                alter(self.broker, change, &mut draft, context)
            }
            _ => Err(ErrorCode::StaleBrokerEpoch.into()),
        });
        let outcome = outcome.collect();
        Decision { records: draft.records, outcome }
    }
}

fn alter(
    broker: BrokerId,
    change: &IsrChange,
    draft: &mut Draft,
    context: &Context<'_>,
) -> ItemResult<PartitionState> {
    let image = &draft.image;
    let topic = image.topic_by_id(&change.topic_id).ok_or(ErrorCode::UnknownTopicId)?;
    let present = topic.partition(change.partition).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    check(image, broker, change, present)?;
    // The order of the assignment, whatever order the leader sent: equal sets are equal states.
    let next = Change::of(image, context.rules, topic, present).with_isr(|id| names(change, id));
    let Some(state) = next.build() else { return Ok(present.clone()) };
    let record = PartitionRecord::of(change.topic_id, change.partition, &state);
    draft.add(vec![MetadataRecord::Partition(record)])?;
    Ok(state)
}

fn names(change: &IsrChange, id: BrokerId) -> bool {
    change.isr.iter().any(|member| member.id == id)
}

fn check(
    image: &MetadataImage,
    broker: BrokerId,
    change: &IsrChange,
    present: &PartitionState,
) -> ItemResult<()> {
    let invalid = |message: &str| Err(ApiError::new(ErrorCode::InvalidRequest, message));
    if change.leader_epoch < present.leader_epoch {
        return Err(ErrorCode::FencedLeaderEpoch.into());
    }
    if present.leader != Some(broker) || change.leader_epoch > present.leader_epoch {
        return invalid("the broker does not lead the partition in that epoch");
    }
    if change.partition_epoch != present.partition_epoch {
        return Err(ErrorCode::InvalidUpdateVersion.into());
    }
    if !names(change, broker) {
        return invalid("the ISR must contain the leader");
    }
    let has_room = |member: &IsrMember| !present.full.contains(&member.id);
    let some_have_room = change.isr.iter().any(has_room);
    for member @ IsrMember { id, epoch } in &change.isr {
        if !present.replicas.contains(id) {
            return invalid("the ISR has a broker that is not a replica");
        }
        let is_that_start = image.brokers.get(id).is_some_and(|known| known.epoch == *epoch);
        let is_held_up = some_have_room && !has_room(member);
        let may_join = image.is_serving(*id) && !present.offline.contains(id) && !is_held_up;
        if !is_that_start || !present.isr.contains(id) && !may_join {
            return Err(ErrorCode::IneligibleReplica.into());
        }
    }
    Ok(())
}
