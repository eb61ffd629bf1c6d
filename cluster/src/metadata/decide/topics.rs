//! Making and deleting topics.

use std::collections::BTreeMap;

use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{BrokerId, TopicId};
use serde::{Deserialize, Serialize};

use super::configs::{ConfigScope, check_config, check_together};
use super::placement::{Placement, check_manual_assignment, first_isr};
use super::{
    Context, Decide, Decision, Draft, ItemResult, PARTITIONS_PER_OPERATION_MAX, each_once, names,
};
use crate::metadata::record::{ConfigRecord, PartitionRecord, RemoveTopicRecord, TopicRecord};
use crate::metadata::{
    ApiError, ConfigResource, Configs, MetadataImage, MetadataRecord, PartitionState,
};

/// CreateTopics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateTopics {
    /// The topics; a name twice fails both.
    pub topics: Vec<NewTopic>,
    /// Check everything, change nothing.
    pub validate_only: bool,
    /// `num.partitions`, for −1.
    pub default_partitions: i32,
    /// `default.replication.factor`, for −1.
    pub default_replication_factor: i16,
}

/// One topic to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTopic {
    /// Its name, as the client sent it.
    pub name: String,
    /// Where its partitions go.
    pub placement: TopicPlacement,
    /// Its own configurations. `None`: the client sent null.
    pub configs: BTreeMap<String, Option<String>>,
}

/// Where the partitions of a new topic go, as the three fields of the request say it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicPlacement {
    /// How many; −1 for the default, and with `assignments`.
    pub num_partitions: i32,
    /// How many replicas each; −1 for the default, and with `assignments`.
    pub replication_factor: i16,
    /// By hand: (partition, replicas). Empty: the controller places them.
    pub assignments: Vec<(i32, Vec<BrokerId>)>,
}

impl TopicPlacement {
    /// The controller places `num_partitions` with `replication_factor` replicas each.
    #[must_use]
    pub fn automatic(num_partitions: i32, replication_factor: i16) -> Self {
        Self { num_partitions, replication_factor, assignments: Vec::new() }
    }
}

/// A topic that was made (or would have been).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedTopic {
    /// Its id; nil when only validated, as Kafka answers then.
    pub id: TopicId,
    /// How many partitions.
    pub num_partitions: i32,
    /// How many replicas of partition 0.
    pub replication_factor: i16,
    /// Its own configurations.
    pub configs: Configs,
}

impl Decide for CreateTopics {
    /// In the order of the request.
    type Outcome = Vec<(String, ItemResult<CreatedTopic>)>;

    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome> {
        let mut draft = Draft::new(image);
        let mut partitions_left = PARTITIONS_PER_OPERATION_MAX;
        let name = |topic: &NewTopic| topic.name.clone();
        let outcome = each_once(&self.topics, name, "Duplicate topic name.", |topic| {
            self.create(topic, &mut draft, &mut partitions_left, context)
        });
        let records = if self.validate_only { Vec::new() } else { draft.records };
        Decision { records, outcome }
    }
}

impl CreateTopics {
    fn create(
        &self,
        topic: &NewTopic,
        draft: &mut Draft,
        partitions_left: &mut usize,
        context: &Context<'_>,
    ) -> ItemResult<CreatedTopic> {
        names::validate_topic_name(&topic.name)?;
        names::check_free(&draft.image, &topic.name)?;
        let configs = check_configs(topic, context)?;
        let assignments = self.assign(&topic.placement, &draft.image, *partitions_left, context)?;
        let id = context.new_topic_id(&draft.image);
        let mut records = vec![MetadataRecord::Topic(TopicRecord { name: topic.name.clone(), id })];
        for (partition, replicas) in (0i32..).zip(&assignments) {
            records.push(MetadataRecord::Partition(new_partition(
                &draft.image,
                id,
                partition,
                replicas,
            )?));
        }
        for (key, value) in &configs {
            records.push(MetadataRecord::Config(ConfigRecord {
                resource: ConfigResource::Topic(topic.name.clone()),
                key: key.clone(),
                value: Some(value.clone()),
            }));
        }
        draft.add(records)?;
        *partitions_left = partitions_left.saturating_sub(assignments.len());
        Ok(CreatedTopic {
            id: if self.validate_only { TopicId::nil() } else { id },
            num_partitions: i32::try_from(assignments.len()).unwrap_or(i32::MAX),
            replication_factor: assignments
                .first()
                .map_or(0, |replicas| i16::try_from(replicas.len()).unwrap_or(i16::MAX)),
            configs,
        })
    }

    fn assign(
        &self,
        placement: &TopicPlacement,
        image: &MetadataImage,
        partitions_left: usize,
        context: &Context<'_>,
    ) -> ItemResult<Vec<Vec<BrokerId>>> {
        if !placement.assignments.is_empty() {
            return manual(placement, image, partitions_left);
        }
        let (partitions, factor) = (placement.num_partitions, placement.replication_factor);
        if factor == 0 || factor < -1 {
            let message =
                "Replication factor must be larger than 0, or -1 to use the default value.";
            return Err(ApiError::new(ErrorCode::InvalidReplicationFactor, message));
        }
        if partitions == 0 || partitions < -1 {
            let message = "Number of partitions was set to an invalid non-positive value.";
            return Err(ApiError::new(ErrorCode::InvalidPartitions, message));
        }
        let partitions = if partitions == -1 { self.default_partitions } else { partitions };
        let factor = if factor == -1 { self.default_replication_factor } else { factor };
        let count = bounded_count(partitions, partitions_left)?;
        Placement::of(image).place(count, factor, context.random_u64())
    }
}

/// The number of partitions asked for, if one operation may make that many.
pub(super) fn bounded_count(partitions: i32, partitions_left: usize) -> ItemResult<usize> {
    match usize::try_from(partitions) {
        Ok(count) if count <= partitions_left => Ok(count),
        _ => Err(ApiError::new(
            ErrorCode::PolicyViolation,
            format!(
                "Excessively large number of partitions per request: at most \
                 {PARTITIONS_PER_OPERATION_MAX} are made at once."
            ),
        )),
    }
}

fn manual(
    placement: &TopicPlacement,
    image: &MetadataImage,
    partitions_left: usize,
) -> ItemResult<Vec<Vec<BrokerId>>> {
    if placement.replication_factor != -1 {
        let message = "A manual partition assignment was specified, but replication factor was not \
            set to -1.";
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    }
    if placement.num_partitions != -1 {
        let message =
            "A manual partition assignment was specified, but numPartitions was not set to -1.";
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    }
    bounded_count(i32::try_from(placement.assignments.len()).unwrap_or(i32::MAX), partitions_left)?;
    let mut by_partition = BTreeMap::new();
    for (partition, replicas) in &placement.assignments {
        if by_partition.insert(*partition, replicas).is_some() {
            let message =
                format!("Found multiple manual partition assignments for partition {partition}");
            return Err(ApiError::new(ErrorCode::InvalidReplicaAssignment, message));
        }
    }
    let factor = by_partition.values().next().map(|replicas| replicas.len());
    let mut assignments = Vec::with_capacity(by_partition.len());
    for (expected, (partition, replicas)) in (0i32..).zip(&by_partition) {
        if expected != *partition {
            let message = "partitions should be a consecutive 0-based integer sequence";
            return Err(ApiError::new(ErrorCode::InvalidReplicaAssignment, message));
        }
        check_manual_assignment(image, replicas, factor)?;
        assignments.push((*replicas).clone());
    }
    Ok(assignments)
}

/// A new partition: every live replica is in sync, and the first of them leads that has no restart
/// lease over it.
pub(super) fn new_partition(
    image: &MetadataImage,
    topic_id: TopicId,
    partition: i32,
    replicas: &[BrokerId],
) -> ItemResult<PartitionRecord> {
    let isr = first_isr(image, replicas);
    let stays = |id: &&BrokerId| !image.is_leased(**id);
    let Some(leader) = isr.iter().find(stays).or(isr.first()).copied() else {
        let message = format!(
            "All brokers specified in the manual partition assignment for partition {partition} \
             are fenced or in controlled shutdown."
        );
        return Err(ApiError::new(ErrorCode::InvalidReplicaAssignment, message));
    };
    let state = PartitionState {
        replicas: replicas.into(),
        isr: isr.into(),
        leader: Some(leader),
        ..PartitionState::default()
    };
    Ok(PartitionRecord { topic_id, partition, state })
}

fn check_configs(topic: &NewTopic, context: &Context<'_>) -> ItemResult<Configs> {
    let mut configs = Configs::new();
    for (key, value) in &topic.configs {
        let Some(value) = value else {
            return Err(ApiError::new(
                ErrorCode::InvalidConfig,
                format!("Null value not supported for topic configs: {key}"),
            ));
        };
        check_config(context, ConfigScope::Topic, key, Some(value))?;
        configs.insert(key.clone(), value.clone());
    }
    check_together(context, ConfigScope::Topic, &configs)?;
    Ok(configs)
}

/// DeleteTopics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteTopics {
    /// Which topics; one twice fails both.
    pub topics: Vec<TopicSelector>,
}

/// How a topic is named in a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TopicSelector {
    /// By name.
    Name(String),
    /// By id.
    Id(TopicId),
}

/// A topic that was deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedTopic {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: TopicId,
}

impl Decide for DeleteTopics {
    /// In the order of the request.
    type Outcome = Vec<(TopicSelector, ItemResult<DeletedTopic>)>;

    fn decide(&self, image: &MetadataImage, _context: &Context<'_>) -> Decision<Self::Outcome> {
        let mut draft = Draft::new(image);
        // A topic may be named twice in two ways, so what counts is what the selector finds.
        let mut times: BTreeMap<TopicId, usize> = BTreeMap::new();
        let mut named: BTreeMap<&TopicSelector, usize> = BTreeMap::new();
        for selector in &self.topics {
            *named.entry(selector).or_default() += 1;
            if let Ok(found) = find(image, selector) {
                *times.entry(found.id).or_default() += 1;
            }
        }
        let mut outcome = Vec::with_capacity(self.topics.len());
        for selector in &self.topics {
            let is_repeated = named.get(selector).is_some_and(|times| *times > 1);
            let again = || {
                let is_name = matches!(selector, TopicSelector::Name(_));
                let message = format!("Duplicate topic {}.", if is_name { "name" } else { "id" });
                ApiError::new(ErrorCode::InvalidRequest, message)
            };
            // Whether there is such a topic or not.
            let found = if is_repeated { Err(again()) } else { find(image, selector) };
            let result = found.and_then(|found| {
                if times.get(&found.id).is_some_and(|times| *times > 1) {
                    return Err(again());
                }
                draft.add(vec![MetadataRecord::RemoveTopic(RemoveTopicRecord { id: found.id })])?;
                Ok(found)
            });
            outcome.push((selector.clone(), result));
        }
        Decision { records: draft.records, outcome }
    }
}

fn find(image: &MetadataImage, selector: &TopicSelector) -> ItemResult<DeletedTopic> {
    let (topic, error) = match selector {
        TopicSelector::Name(name) => (image.topic(name), ErrorCode::UnknownTopicOrPartition),
        TopicSelector::Id(id) => (image.topic_by_id(id), ErrorCode::UnknownTopicId),
    };
    topic
        .map(|topic| DeletedTopic { name: topic.name.to_string(), id: topic.id })
        .ok_or_else(|| error.into())
}
