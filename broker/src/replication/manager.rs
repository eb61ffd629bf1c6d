//! The partitions of this broker: opened, changed and closed as the metadata says.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use letterbox_env::Env;
use tracing::{error, info, warn};

use super::partition::Partition;
use crate::config::topic::TopicConfig;
use crate::config::{Config, log_config};
use crate::log::{DurabilityObserver, Log, LogConfig, LogManager};
use crate::metadata::{MetadataDelta, MetadataImage, PartitionState, Topic};
use crate::model::{BrokerId, Offset, TopicId};
use crate::wire::ErrorCode;

type Key = (TopicId, i32);

/// What is known of a partition that is assigned here.
#[derive(Clone)]
enum Hosted {
    Leader(Arc<Partition>),
    /// Its log could not be opened or made; the reason was logged.
    Offline,
}

/// Every partition this broker keeps.
pub struct ReplicaManager {
    env: Env,
    me: BrokerId,
    config: Config,
    logs: Arc<LogManager>,
    /// Replaced as a whole when partitions come or go, which is rare; read for every request.
    hosted: ArcSwap<BTreeMap<Key, Hosted>>,
}

impl ReplicaManager {
    /// A manager over logs that were opened; nothing is hosted until metadata says so.
    #[must_use]
    pub fn new(env: Env, config: Config, logs: Arc<LogManager>) -> Arc<Self> {
        Arc::new(Self { env, me: config.node_id, config, logs, hosted: ArcSwap::default() })
    }

    /// The partition, when this broker leads it.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC_OR_PARTITION`, or `KAFKA_STORAGE_ERROR` when its log is out of use.
    pub fn partition(&self, topic: &TopicId, index: i32) -> Result<Arc<Partition>, ErrorCode> {
        match self.hosted.load().get(&(*topic, index)) {
            Some(Hosted::Leader(partition)) => Ok(partition.clone()),
            Some(Hosted::Offline) => Err(ErrorCode::KafkaStorageError),
            None => Err(ErrorCode::UnknownTopicOrPartition),
        }
    }

    /// Every partition led from here.
    #[must_use]
    pub fn leading(&self) -> Vec<Arc<Partition>> {
        self.hosted
            .load()
            .values()
            .filter_map(|hosted| if let Hosted::Leader(partition) = hosted { Some(partition.clone()) } else { None })
            .collect()
    }

    /// Partitions hosted, led, and out of use.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        let hosted = self.hosted.load();
        let offline = hosted.values().filter(|hosted| match hosted {
            Hosted::Offline => true,
            Hosted::Leader(partition) => partition.log.is_offline(),
        });
        let offline = offline.count();
        (hosted.len(), hosted.len().saturating_sub(offline), offline)
    }

    /// Brings everything in line with the whole image: at start.
    ///
    /// Logs whose topic the metadata does not know are set aside under another name, never deleted: local
    /// state that is missing is no reason to destroy data.
    pub async fn start(&self, image: &MetadataImage) {
        for topic in image.topics() {
            self.host_topic(topic).await;
        }
        for log in self.logs.logs() {
            let known = image.topic_by_id(&log.topic_id()).is_some_and(|topic| topic.partition(log.partition()).is_some());
            if !known {
                warn!(topic = %log.topic(), partition = log.partition(), topic_id = %log.topic_id(), "log of a partition that the cluster does not know: set aside as stray");
                if let Err(error) = self.logs.mark_stray(log.topic_id(), log.partition()).await {
                    error!(%error, "set a stray log aside");
                }
            }
        }
    }

    /// Brings everything in line with a change of the metadata.
    pub async fn apply(&self, delta: &MetadataDelta) {
        for topic in &delta.topics_removed {
            self.drop_topic(topic).await;
        }
        for topic in &delta.topics_added {
            self.host_topic(topic).await;
        }
        for change in &delta.topics_changed {
            self.host_topic(&change.after).await;
            for partition in change.partitions() {
                if let (Some(before), Ok(hosted)) = (partition.before, self.partition(&change.after.id, partition.partition))
                    && (before.leader_epoch != partition.after.leader_epoch || before.isr != partition.after.isr)
                {
                    hosted.lead(self.me, partition.after);
                }
            }
            if change.configs_changed() {
                self.reconfigure(&change.after);
            }
        }
    }

    /// Opens or makes the logs of a topic's partitions that are assigned here and not hosted yet.
    async fn host_topic(&self, topic: &Topic) {
        let config = self.topic_config(topic);
        let mut added = Vec::new();
        for (index, state) in topic.indexed_partitions() {
            let key = (topic.id, index);
            if state.replicas.contains(&self.me) && !self.hosted.load().contains_key(&key) {
                added.push((key, self.host(topic, index, state, &config).await));
            }
        }
        if !added.is_empty() {
            self.change(|hosted| hosted.extend(added.iter().cloned()));
        }
    }

    async fn host(&self, topic: &Topic, index: i32, state: &PartitionState, config: &TopicConfig) -> Hosted {
        let log_config = log_config(config);
        let log = match self.logs.get(topic.id, index) {
            Some(log) => {
                log.set_config(log_config);
                Ok(log)
            }
            None if self.logs.offline_logs().iter().any(|log| log.topic_id == Some(topic.id) && log.partition == index) => {
                return Hosted::Offline;
            }
            None => self.logs.create(&topic.name, topic.id, index, log_config).await,
        };
        match log {
            Ok(log) => {
                let min_insync = min_insync(config);
                let clock = self.env.clock.clone();
                Hosted::Leader(Arc::new(Partition::new(log, self.me, state.leader_epoch, &state.replicas, &state.isr, min_insync, clock)))
            }
            Err(error) => {
                error!(topic = %topic.name, partition = index, %error, "partition is offline: its log cannot be opened");
                Hosted::Offline
            }
        }
    }

    async fn drop_topic(&self, topic: &Topic) {
        let mut dropped = Vec::new();
        self.change(|hosted| {
            dropped.clear();
            for (index, _) in topic.indexed_partitions() {
                dropped.extend(hosted.remove(&(topic.id, index)));
            }
        });
        for hosted in dropped {
            let Hosted::Leader(partition) = hosted else { continue };
            if let Err(error) = self.logs.delete(topic.id, partition.log.partition()).await {
                error!(topic = %topic.name, partition = partition.log.partition(), %error, "delete the log of a deleted topic");
            }
            partition.waiters.wake_all();
        }
        info!(topic = %topic.name, topic_id = %topic.id, "topic deleted");
    }

    fn reconfigure(&self, topic: &Topic) {
        let config = self.topic_config(topic);
        for (index, _) in topic.indexed_partitions() {
            if let Ok(partition) = self.partition(&topic.id, index) {
                partition.log.set_config(log_config(&config));
                partition.set_min_insync(min_insync(&config));
                // A topic that stops waiting for the disk has already appended what it waited for.
                if !partition.log.config().durable {
                    partition.counts_up_to(partition.log.end_offset());
                }
            }
        }
        info!(topic = %topic.name, "topic configuration changed");
    }

    fn topic_config(&self, topic: &Topic) -> TopicConfig {
        TopicConfig::resolve(&self.config, &topic.configs)
    }

    /// The configuration that logs are opened with before the metadata is there.
    #[must_use]
    pub fn default_log_config(config: &Config) -> LogConfig {
        log_config(&TopicConfig::resolve(config, &BTreeMap::new()))
    }

    fn change(&self, mut edit: impl FnMut(&mut BTreeMap<Key, Hosted>)) {
        self.hosted.rcu(|hosted| {
            let mut hosted = BTreeMap::clone(hosted);
            edit(&mut hosted);
            hosted
        });
    }

    fn partition_of(&self, log: &Log) -> Option<Arc<Partition>> {
        self.partition(&log.topic_id(), log.partition()).ok()
    }
}

fn min_insync(config: &TopicConfig) -> usize {
    usize::try_from(config.number("min.insync.replicas")).unwrap_or(1)
}

impl DurabilityObserver for ReplicaManager {
    fn durable(&self, log: &Arc<Log>, durable_end: Offset) {
        if let Some(partition) = self.partition_of(log) {
            partition.counts_up_to(durable_end);
        }
    }

    fn failed(&self, log: &Arc<Log>) {
        if let Some(partition) = self.partition_of(log) {
            partition.waiters.wake_all();
        }
    }
}
