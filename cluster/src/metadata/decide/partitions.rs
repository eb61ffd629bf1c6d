//! Adding partitions to topics.

use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use serde::{Deserialize, Serialize};

use super::placement::{Placement, check_manual_assignment};
use super::topics::{bounded_count, new_partition};
use super::{
    Context, Decide, Decision, Draft, ItemResult, PARTITIONS_PER_OPERATION_MAX, each_once,
    is_internal_topic,
};
use crate::metadata::{ApiError, MetadataImage, MetadataRecord};

/// CreatePartitions. A topic only ever grows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatePartitions {
    /// The topics; one twice fails both.
    pub topics: Vec<TopicGrowth>,
    /// Check everything, change nothing.
    pub validate_only: bool,
}

/// One topic to grow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicGrowth {
    /// The topic's name.
    pub name: String,
    /// How many partitions it shall have in all.
    pub count: i32,
    /// Replicas of each new partition; `None`: the controller places them.
    pub assignments: Option<Vec<Vec<BrokerId>>>,
}

impl Decide for CreatePartitions {
    /// In the order of the request.
    type Outcome = Vec<(String, ItemResult<()>)>;

    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome> {
        let mut draft = Draft::new(image);
        let mut partitions_left = PARTITIONS_PER_OPERATION_MAX;
        let name = |topic: &TopicGrowth| topic.name.clone();
        let outcome = each_once(&self.topics, name, "Duplicate topic in request.", |topic| {
            grow(topic, &mut draft, &mut partitions_left, context)
        });
        let records = if self.validate_only { Vec::new() } else { draft.records };
        Decision { records, outcome }
    }
}

fn grow(
    growth: &TopicGrowth,
    draft: &mut Draft,
    partitions_left: &mut usize,
    context: &Context<'_>,
) -> ItemResult<()> {
    let image = &draft.image;
    let topic = image.topic(&growth.name).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    if is_internal_topic(&growth.name) {
        let message = format!(
            "{} cannot get more partitions: which of them has a group's offsets follows from \
             their number. offsets.topic.num.partitions says with how many it is made.",
            growth.name
        );
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    }
    let present = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
    let invalid = |message: String| Err(ApiError::new(ErrorCode::InvalidPartitions, message));
    if growth.count == present {
        return invalid(format!("Topic already has {present} partition(s)."));
    }
    if growth.count < present {
        let (name, count) = (&growth.name, growth.count);
        return invalid(format!(
            "The topic {name} currently has {present} partition(s); {count} would not be an \
             increase."
        ));
    }
    let additional = growth.count.saturating_sub(present);
    let count = bounded_count(additional, *partitions_left)?;
    // New partitions get as many replicas as the first one has, as in Kafka.
    let factor = topic.partition(0).map_or(1, |partition| partition.replicas.len());
    let assignments = match &growth.assignments {
        Some(assignments) => {
            if assignments.len() != count {
                let message = format!(
                    "Attempted to add {additional} additional partition(s), but only {} \
                     assignment(s) were specified.",
                    assignments.len()
                );
                return Err(ApiError::new(ErrorCode::InvalidReplicaAssignment, message));
            }
            assignments
                .iter()
                .try_for_each(|replicas| check_manual_assignment(image, replicas, Some(factor)))?;
            assignments.clone()
        }
        None => Placement::of(image).place(
            count,
            i16::try_from(factor).unwrap_or(i16::MAX),
            context.random_u64(),
        )?,
    };
    let mut records = Vec::with_capacity(count);
    for (partition, replicas) in (present..).zip(&assignments) {
        records
            .push(MetadataRecord::Partition(new_partition(image, topic.id, partition, replicas)?));
    }
    draft.add(records)?;
    *partitions_left = partitions_left.saturating_sub(count);
    Ok(())
}
