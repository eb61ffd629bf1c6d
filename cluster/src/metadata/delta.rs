//! What changed from one image to the next.

use std::collections::BTreeSet;
use std::sync::Arc;

use letterbox_env::Gather;
use letterbox_protocol::model::BrokerId;

use super::image::{ConfigResource, MetadataImage, PartitionState, Topic};

/// The difference between two images, so that a reader can open, change and close what it keeps.
///
/// Topics are told apart by id: a topic that was deleted and made anew under its name is in both
/// `topics_removed` and `topics_added`. Handle removals first.
#[derive(Clone, Debug)]
pub struct MetadataDelta {
    /// The image before.
    pub before: Arc<MetadataImage>,
    /// The image after.
    pub after: Arc<MetadataImage>,
    /// Topics that are only in `before`.
    pub topics_removed: Vec<Arc<Topic>>,
    /// Topics that are only in `after`.
    pub topics_added: Vec<Arc<Topic>>,
    /// Topics that are in both and not the same.
    pub topics_changed: Vec<TopicChange>,
    /// Brokers that were added, removed or changed.
    pub brokers_changed: BTreeSet<BrokerId>,
    /// Brokers and the cluster default whose dynamic configurations changed. Configurations of
    /// topics are in `topics_changed`.
    pub configs_changed: BTreeSet<ConfigResource>,
}

/// A topic before and after.
#[derive(Clone, Debug)]
pub struct TopicChange {
    /// As it was.
    pub before: Arc<Topic>,
    /// As it is now.
    pub after: Arc<Topic>,
}

/// A partition before and after.
#[derive(Clone, Copy, Debug)]
pub struct PartitionChange<'a> {
    /// The partition's index.
    pub partition: i32,
    /// As it was; `None` when it is new.
    pub before: Option<&'a PartitionState>,
    /// As it is now.
    pub after: &'a PartitionState,
}

impl TopicChange {
    /// The partitions that are new or changed.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionChange<'_>> {
        // A topic only ever grows.
        self.before.partitions.diff(&self.after.partitions).filter_map(|change| {
            let (partition, before) = (*change.key, change.before);
            change.after.map(|after| PartitionChange { partition, before, after })
        })
    }

    /// Whether the topic's own configurations changed.
    #[must_use]
    pub fn configs_changed(&self) -> bool {
        self.before.configs != self.after.configs
    }
}

impl MetadataDelta {
    /// The difference. What the two images share is not looked at.
    #[must_use]
    pub fn between(before: Arc<MetadataImage>, after: Arc<MetadataImage>) -> Self {
        let mut delta = Self {
            topics_removed: Vec::new(),
            topics_added: Vec::new(),
            topics_changed: Vec::new(),
            brokers_changed: BTreeSet::new(),
            configs_changed: BTreeSet::new(),
            before: Arc::clone(&before),
            after: Arc::clone(&after),
        };
        delta.compare_topics(&before, &after);
        if !Arc::ptr_eq(&before.brokers, &after.brokers) {
            let ids = before.brokers.keys().chain(after.brokers.keys());
            delta.brokers_changed =
                ids.filter(|id| before.brokers.get(id) != after.brokers.get(id)).copied().gather();
        }
        let ids = before.broker_configs.keys().chain(after.broker_configs.keys());
        delta.configs_changed = ids
            .filter(|id| before.broker_configs.get(id) != after.broker_configs.get(id))
            .map(|id| ConfigResource::Broker(*id))
            .gather();
        if before.cluster_configs != after.cluster_configs {
            delta.configs_changed.insert(ConfigResource::Cluster);
        }
        delta
    }

    fn compare_topics(&mut self, before: &MetadataImage, after: &MetadataImage) {
        for change in before.topics_by_id.diff(&after.topics_by_id) {
            match (change.before.cloned(), change.after.cloned()) {
                (Some(before), Some(after)) => {
                    self.topics_changed.push(TopicChange { before, after });
                }
                (Some(before), None) => self.topics_removed.push(before),
                (None, after) => self.topics_added.extend(after),
            }
        }
    }
}
