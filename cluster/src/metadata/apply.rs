//! From one image to the next.

use std::sync::Arc;

use letterbox_protocol::model::{BrokerId, TopicId};

use super::features::Release;
use super::image::{ConfigResource, MetadataImage, PartitionState, Topic, metric_name};
use super::record::{
    BrokerFenceRecord, ClusterIdRecord, ConfigRecord, FeatureRecord, MetadataRecord,
    PartitionRecord, ProducerIdsRecord, TopicRecord,
};
use super::shared_map::SharedMap;

/// A committed record that does not fit the image: an invariant is broken, by a fault of the
/// program or of the disk. The node must stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ApplyError {
    #[error("the cluster's id is {present} and cannot become {record}")]
    ClusterIdChanged { present: Arc<str>, record: String },
    #[error("topic \"{name}\" or its id {id} is already there")]
    TopicExists { name: String, id: TopicId },
    #[error("topic id {id} is not there")]
    NoSuchTopic { id: TopicId },
    #[error("topic \"{name}\" is not there")]
    NoSuchTopicName { name: String },
    #[error(
        "partition {partition} of topic id {id} would leave a gap: there are {count} partitions"
    )]
    PartitionGap { id: TopicId, partition: i32, count: usize },
    #[error("partition {partition} of topic id {id} is inconsistent: {reason}")]
    BadPartition { id: TopicId, partition: i32, reason: &'static str },
    #[error("broker {id} is not registered")]
    NoSuchBroker { id: BrokerId },
    #[error("there is no restart lease of {holder}")]
    NoSuchLease { holder: String },
    #[error("producer ids would go back from {present} to {record}")]
    ProducerIdsGoBack { present: i64, record: i64 },
    #[error(
        "{name} is finalized at level {level}, which {release} does not support: it supports \
         {levels}. Run a release that does",
        release = Release::own(), levels = Release::own().levels(name)
    )]
    UnsupportedLevel { name: String, level: i16 },
}

/// The image after the batch `records`, which is the entry `index` of the metadata log.
///
/// Pure and deterministic: no clock, no randomness, no order but that of the records.
///
/// # Errors
/// [`ApplyError`] when a record does not fit; the image is then unchanged as a whole.
pub fn apply(
    image: &MetadataImage,
    index: u64,
    records: &[MetadataRecord],
) -> Result<MetadataImage, ApplyError> {
    let mut next = image.clone();
    next.apply_in_place(records)?;
    next.applied_index = index;
    Ok(next)
}

impl MetadataImage {
    /// Applies `records` to this image itself, for a reader that owns it. After an error the image
    /// is half changed and must be dropped.
    pub(crate) fn apply_in_place(&mut self, records: &[MetadataRecord]) -> Result<(), ApplyError> {
        records.iter().try_for_each(|record| self.apply_one(record))
    }

    fn apply_one(&mut self, record: &MetadataRecord) -> Result<(), ApplyError> {
        match record {
            MetadataRecord::ClusterId(record) => self.apply_cluster_id(record),
            MetadataRecord::Broker(registration) => {
                Arc::make_mut(&mut self.brokers)
                    .insert(registration.id, Arc::new(registration.clone()));
                Ok(())
            }
            MetadataRecord::BrokerFence(record) => self.apply_fence(record),
            MetadataRecord::RemoveBroker(record) => {
                let removed = Arc::make_mut(&mut self.brokers).remove(&record.id);
                removed.map(drop).ok_or(ApplyError::NoSuchBroker { id: record.id })
            }
            MetadataRecord::Topic(record) => self.apply_topic(record),
            MetadataRecord::Partition(record) => self.apply_partition(record),
            MetadataRecord::RemoveTopic(record) => self.apply_remove_topic(record.id),
            MetadataRecord::Config(record) => self.apply_config(record),
            MetadataRecord::GroupConfig(record) => {
                self.apply_group_config(&record.group, |configs| match &record.value {
                    Some(value) => drop(configs.insert(record.key.clone(), value.clone())),
                    None => drop(configs.remove(&record.key)),
                });
                Ok(())
            }
            MetadataRecord::ProducerIds(record) => self.apply_producer_ids(record),
            MetadataRecord::Feature(record) => self.apply_feature(record),
            MetadataRecord::RestartLease(lease) => {
                Arc::make_mut(&mut self.leases).insert(lease.holder.clone(), lease.clone());
                Ok(())
            }
            MetadataRecord::EndRestartLease(record) => {
                let ended = Arc::make_mut(&mut self.leases).remove(&record.holder);
                let holder = &record.holder;
                ended.map(drop).ok_or_else(|| ApplyError::NoSuchLease { holder: holder.clone() })
            }
            MetadataRecord::RemovedTopics(record) => {
                self.removed_topics.restore(record);
                Ok(())
            }
            MetadataRecord::Unfinished(unfinished) => {
                self.unfinished = Some(Arc::new(unfinished.clone()));
                Ok(())
            }
        }
    }

    fn apply_cluster_id(&mut self, record: &ClusterIdRecord) -> Result<(), ApplyError> {
        match &self.cluster_id {
            Some(present) if **present != *record.cluster_id => Err(ApplyError::ClusterIdChanged {
                present: Arc::clone(present),
                record: record.cluster_id.clone(),
            }),
            _ => {
                self.cluster_id = Some(record.cluster_id.as_str().into());
                Ok(())
            }
        }
    }

    fn apply_fence(&mut self, record: &BrokerFenceRecord) -> Result<(), ApplyError> {
        let registration = Arc::make_mut(&mut self.brokers)
            .get_mut(&record.id)
            .ok_or(ApplyError::NoSuchBroker { id: record.id })?;
        let registration = Arc::make_mut(registration);
        registration.fenced = record.fenced;
        registration.stopping |= record.stopping;
        Ok(())
    }

    fn apply_topic(&mut self, record: &TopicRecord) -> Result<(), ApplyError> {
        if self.topic_ids.contains_key(record.name.as_str())
            || self.topics_by_id.contains_key(&record.id)
        {
            return Err(ApplyError::TopicExists { name: record.name.clone(), id: record.id });
        }
        let name: Arc<str> = record.name.as_str().into();
        if let Some(form) = metric_name(&name) {
            self.topics_by_metric_name.insert(form.into(), Arc::clone(&name));
        }
        let topic = Topic {
            name: Arc::clone(&name),
            id: record.id,
            partitions: SharedMap::default(),
            configs: Default::default(),
        };
        self.topics_by_id.insert(record.id, Arc::new(topic));
        self.topic_ids.insert(name, record.id);
        Ok(())
    }

    /// A topic, to be changed. One that no other image shares is not copied.
    fn topic_mut(&mut self, id: TopicId) -> Result<&mut Topic, ApplyError> {
        let slot = self.topics_by_id.get_mut(&id).ok_or(ApplyError::NoSuchTopic { id })?;
        Ok(Arc::make_mut(slot))
    }

    fn apply_partition(&mut self, record: &PartitionRecord) -> Result<(), ApplyError> {
        let (id, partition) = (record.topic_id, record.partition);
        if let Some(reason) = inconsistency(&record.state) {
            return Err(ApplyError::BadPartition { id, partition, reason });
        }
        let topic = self.topics_by_id.get(&id).ok_or(ApplyError::NoSuchTopic { id })?;
        let count = topic.partitions.len();
        let gap = ApplyError::PartitionGap { id, partition, count };
        if usize::try_from(partition).ok().is_none_or(|position| position > count) {
            return Err(gap);
        }
        let before = topic.partition(partition).map(|state| Arc::clone(&state.replicas));
        let (before, after) = (before.unwrap_or_default(), &record.state.replicas);
        for broker in before.iter().filter(|broker| !after.contains(broker)) {
            self.forget_replica(*broker, (id, partition));
        }
        for broker in after.iter().filter(|broker| !before.contains(broker)) {
            if let Some(all) = self.replicas_by_broker.get_mut(broker) {
                all.insert((id, partition), ());
            } else {
                let mut all = SharedMap::default();
                all.insert((id, partition), ());
                self.replicas_by_broker.insert(*broker, all);
            }
        }
        self.topic_mut(id)?.partitions.insert(partition, record.state.clone());
        Ok(())
    }

    fn forget_replica(&mut self, broker: BrokerId, partition: (TopicId, i32)) {
        let Some(all) = self.replicas_by_broker.get_mut(&broker) else { return };
        all.remove(&partition);
        if all.is_empty() {
            self.replicas_by_broker.remove(&broker);
        }
    }

    fn apply_remove_topic(&mut self, id: TopicId) -> Result<(), ApplyError> {
        let topic = self.topics_by_id.remove(&id).ok_or(ApplyError::NoSuchTopic { id })?;
        self.topic_ids.remove(&topic.name);
        if let Some(form) = metric_name(&topic.name)
            && self.topics_by_metric_name.get(&*form) == Some(&topic.name)
        {
            self.topics_by_metric_name.remove(&*form);
        }
        for (partition, state) in topic.indexed_partitions() {
            for broker in &*state.replicas {
                self.forget_replica(*broker, (id, partition));
            }
        }
        self.removed_topics.push(id);
        Ok(())
    }

    fn apply_config(&mut self, record: &ConfigRecord) -> Result<(), ApplyError> {
        let set = |configs: &mut super::Configs| match &record.value {
            Some(value) => drop(configs.insert(record.key.clone(), value.clone())),
            None => drop(configs.remove(&record.key)),
        };
        match &record.resource {
            ConfigResource::Topic(name) => {
                let id = self
                    .topic(name)
                    .ok_or_else(|| ApplyError::NoSuchTopicName { name: name.clone() })?
                    .id;
                set(&mut self.topic_mut(id)?.configs);
            }
            ConfigResource::Broker(id) => {
                let all = Arc::make_mut(&mut self.broker_configs);
                let configs = all.entry(*id).or_default();
                set(configs);
                if configs.is_empty() {
                    all.remove(id);
                }
            }
            ConfigResource::Cluster => set(Arc::make_mut(&mut self.cluster_configs)),
            ConfigResource::Group(group) => self.apply_group_config(group, set),
        }
        Ok(())
    }

    fn apply_group_config(&mut self, group: &str, change: impl FnOnce(&mut super::Configs)) {
        let all = Arc::make_mut(&mut self.group_configs);
        let configs = all.entry(group.to_owned()).or_default();
        change(configs);
        if configs.is_empty() {
            all.remove(group);
        }
    }

    fn apply_producer_ids(&mut self, record: &ProducerIdsRecord) -> Result<(), ApplyError> {
        if record.next < self.next_producer_id {
            return Err(ApplyError::ProducerIdsGoBack {
                present: self.next_producer_id,
                record: record.next,
            });
        }
        self.next_producer_id = record.next;
        Ok(())
    }

    fn apply_feature(&mut self, record: &FeatureRecord) -> Result<(), ApplyError> {
        let FeatureRecord { name, level } = record;
        if *level != 0 && !Release::own().levels(name).has(*level) {
            return Err(ApplyError::UnsupportedLevel { name: name.clone(), level: *level });
        }
        let features = Arc::make_mut(&mut self.features);
        if *level == 0 {
            features.remove(name);
        } else {
            features.insert(name.clone(), *level);
        }
        Ok(())
    }

    /// The records that make this image out of an empty one: the content of a snapshot.
    #[must_use]
    pub fn to_records(&self) -> Vec<MetadataRecord> {
        let mut records = Vec::new();
        records.extend(
            self.cluster_id
                .as_deref()
                .map(|id| MetadataRecord::ClusterId(ClusterIdRecord { cluster_id: id.to_owned() })),
        );
        records.extend(
            self.brokers
                .values()
                .map(|registration| MetadataRecord::Broker((**registration).clone())),
        );
        for topic in self.topics() {
            topic_records(topic, &mut records);
        }
        for (id, configs) in &*self.broker_configs {
            config_records(&ConfigResource::Broker(*id), configs, &mut records);
        }
        config_records(&ConfigResource::Cluster, &self.cluster_configs, &mut records);
        for (group, configs) in &*self.group_configs {
            config_records(&ConfigResource::Group(group.clone()), configs, &mut records);
        }
        records
            .push(MetadataRecord::ProducerIds(ProducerIdsRecord { next: self.next_producer_id }));
        records.extend(self.features.iter().map(|(name, level)| {
            MetadataRecord::Feature(FeatureRecord { name: name.clone(), level: *level })
        }));
        records.extend(self.leases().cloned().map(MetadataRecord::RestartLease));
        records.extend(self.removed_topics.to_record().map(MetadataRecord::RemovedTopics));
        let unfinished = self.unfinished.as_deref().cloned();
        records.extend(unfinished.map(MetadataRecord::Unfinished));
        records
    }
}

fn topic_records(topic: &Topic, records: &mut Vec<MetadataRecord>) {
    records.push(MetadataRecord::Topic(TopicRecord { name: topic.name.to_string(), id: topic.id }));
    for (partition, state) in topic.indexed_partitions() {
        records.push(MetadataRecord::Partition(PartitionRecord::of(topic.id, partition, state)));
    }
    config_records(&ConfigResource::Topic(topic.name.to_string()), &topic.configs, records);
}

fn config_records(
    resource: &ConfigResource,
    configs: &super::Configs,
    records: &mut Vec<MetadataRecord>,
) {
    records.extend(
        configs.iter().map(|(key, value)| MetadataRecord::config(resource, key, Some(value))),
    );
}

/// What is wrong with a partition's state; `None` when nothing is.
fn inconsistency(state: &PartitionState) -> Option<&'static str> {
    let PartitionState { replicas, isr, elr, last_known_elr, leader, adding, removing, .. } = state;
    let PartitionState { offline, full, lost, may_have_more, .. } = state;
    let are_replicas = |ids: &[BrokerId]| ids.iter().all(|id| replicas.contains(id));
    if replicas.is_empty() {
        Some("there is no replica")
    } else if isr.is_empty() && elr.is_empty() && last_known_elr.is_empty() {
        Some("nobody is in the ISR, eligible, or known to have led")
    } else if !are_replicas(isr) {
        Some("the ISR has a broker that is not a replica")
    } else if !are_replicas(elr) || elr.iter().any(|id| isr.contains(id)) {
        Some("the ELR has a broker that is not a replica, or that is in the ISR")
    } else if !are_replicas(adding) || !are_replicas(removing) {
        Some("a broker that is added or removed is not a replica")
    } else if !are_replicas(offline) || offline.iter().any(|id| isr.contains(id)) {
        Some("a broker whose log is out of use is not a replica, or is in the ISR")
    } else if !are_replicas(full) {
        Some("a broker without room is not a replica")
    } else if !are_replicas(lost) || lost.iter().any(|id| isr.contains(id) || elr.contains(id)) {
        Some("a broker whose log was lost is not a replica, or is in the ISR or eligible")
    } else if !are_replicas(may_have_more) || may_have_more.iter().any(|id| isr.contains(id)) {
        Some("a broker that may have more records is not a replica, or is in the ISR")
    } else if leader.is_some_and(|leader| !isr.contains(&leader)) {
        Some("the leader is not in the ISR")
    } else {
        None
    }
}

impl PartitionRecord {
    /// The record that sets a partition to `state`.
    #[must_use]
    pub fn of(topic_id: TopicId, partition: i32, state: &PartitionState) -> Self {
        Self { topic_id, partition, state: state.clone() }
    }
}
