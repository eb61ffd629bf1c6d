//! The partitions of this broker: opened, changed and closed as the metadata says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use letterbox_env::Env;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{BrokerId, Offset, TopicId};
use letterbox_storage::{
    DurabilityObserver, Log, LogConfig, LogDir, LogError, LogManager, WantedLog,
};
use tracing::{error, info};

use super::deliver::delivering;
use super::partition::Partition;
use crate::config::topic::TopicConfig;
use crate::config::{Config, log_config};
use crate::metadata::{MetadataDelta, MetadataImage, PartitionState, Topic};

type Key = (TopicId, i32);

/// What is known of a partition that is assigned here.
#[derive(Clone)]
enum Hosted {
    Leader(Arc<Partition>),
    /// Its log could not be opened or made; why was logged.
    Offline(LogError),
}

impl Hosted {
    /// Whether it is offline for a reason that may pass while the broker runs.
    fn may_heal(&self) -> bool {
        matches!(self, Self::Offline(error) if !matches!(error, LogError::NotRead { .. }))
    }
}

/// When logs are opened or made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occasion {
    /// At the start, from the whole image: the partitions may have logs already.
    Start,
    /// At a change of the metadata: the partitions are new.
    Change,
    /// What is offline is tried again.
    Heal,
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
            Some(Hosted::Offline(_)) => Err(ErrorCode::KafkaStorageError),
            None => Err(ErrorCode::UnknownTopicOrPartition),
        }
    }

    /// Every partition led from here.
    #[must_use]
    pub fn leading(&self) -> Vec<Arc<Partition>> {
        self.hosted
            .load()
            .values()
            .filter_map(|hosted| {
                if let Hosted::Leader(partition) = hosted { Some(partition.clone()) } else { None }
            })
            .collect()
    }

    /// The log directories, and every log in them.
    #[must_use]
    pub fn log_dirs(&self) -> (Vec<Arc<LogDir>>, Vec<Arc<Log>>) {
        (self.logs.dirs().to_vec(), self.logs.logs())
    }

    /// See [`LogManager::keep_log_starts`].
    ///
    /// # Errors
    /// As there.
    pub async fn keep_log_starts(&self, logs: Vec<Arc<Log>>) -> Result<(), LogError> {
        self.logs.keep_log_starts(logs).await
    }

    /// Partitions hosted.
    #[must_use]
    pub fn hosted_count(&self) -> usize {
        self.hosted.load().len()
    }

    /// Partitions hosted, led, and out of use.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        let hosted = self.hosted.load();
        let offline = hosted.values().filter(|hosted| match hosted {
            Hosted::Offline(_) => true,
            Hosted::Leader(partition) => partition.log.is_offline(),
        });
        let offline = offline.count();
        (hosted.len(), hosted.len().saturating_sub(offline), offline)
    }

    /// Brings everything in line with the whole image: at start.
    ///
    /// Logs whose topic the metadata does not know are set aside under another name, never deleted:
    /// local state that is missing is no reason to destroy data. That comes first, because a topic
    /// of the image may need the name of one that is gone.
    pub async fn start(&self, image: &MetadataImage) {
        let is_known = |name: &str, id: Option<TopicId>, partition: i32| {
            let topic = id.map_or_else(|| image.topic(name), |id| image.topic_by_id(&id));
            topic.is_some_and(|topic| &*topic.name == name && topic.partition(partition).is_some())
        };
        self.logs.set_unknown_aside(is_known).await;
        self.host(image.topics(), Occasion::Start).await;
    }

    /// Brings everything in line with a change of the metadata.
    pub async fn apply(&self, delta: &MetadataDelta) {
        self.drop_topics(&delta.topics_removed).await;
        self.host(
            delta
                .topics_added
                .iter()
                .chain(delta.topics_changed.iter().map(|change| &change.after)),
            Occasion::Change,
        )
        .await;
        for change in &delta.topics_changed {
            for partition in change.partitions() {
                if let (Some(before), Ok(hosted)) =
                    (partition.before, self.partition(&change.after.id, partition.partition))
                    && (before.leader_epoch != partition.after.leader_epoch
                        || before.isr != partition.after.isr)
                {
                    hosted.lead(self.me, partition.after);
                }
            }
            if change.configs_changed() {
                info!(topic = %change.after.name, "topic configuration changed");
                self.reconfigure(&change.after);
            }
        }
        if !delta.configs_changed.is_empty() {
            info!("broker configuration changed");
            delta.after.topics().for_each(|topic| self.reconfigure(topic));
        }
    }

    /// Whether a partition that is assigned here is out of use.
    #[must_use]
    pub fn is_offline(&self, topic: &TopicId, index: i32) -> bool {
        match self.hosted.load().get(&(*topic, index)) {
            Some(Hosted::Offline(_)) => true,
            Some(Hosted::Leader(partition)) => partition.log.is_offline(),
            None => false,
        }
    }

    /// Tries again what is offline, to be called every second: the disk may have space again, or a
    /// person may have mended a directory. The partitions that are back.
    pub async fn heal(&self, image: &MetadataImage) -> Vec<(TopicId, i32)> {
        let hosted = self.hosted.load_full();
        let offline = hosted.iter().filter(|(_, hosted)| hosted.may_heal());
        let ids: BTreeSet<TopicId> = offline.map(|((topic, _), _)| *topic).collect();
        if ids.is_empty() {
            Vec::new()
        } else {
            self.host(ids.iter().filter_map(|id| image.topic_by_id(id)), Occasion::Heal).await
        }
    }

    /// Opens or makes the logs of all partitions of these topics that are assigned here and not
    /// hosted yet; to heal, those that are offline too. Gives those that were offline and are not
    /// any more.
    async fn host<'a>(
        &self,
        topics: impl Iterator<Item = &'a Arc<Topic>>,
        occasion: Occasion,
    ) -> Vec<Key> {
        let (hosted, mut wanted, mut states) = (self.hosted.load_full(), Vec::new(), Vec::new());
        for topic in topics {
            let new = |(index, state): &(i32, &PartitionState)| {
                let is_due = match hosted.get(&(topic.id, *index)) {
                    None => true,
                    Some(hosted) => occasion == Occasion::Heal && hosted.may_heal(),
                };
                is_due && state.replicas.contains(&self.me)
            };
            let mut new = topic.indexed_partitions().filter(new).peekable();
            if new.peek().is_none() {
                continue;
            }
            let config = self.topic_config(topic);
            let (log_config, min_insync) = (log_config(&config), min_insync(&config));
            for (partition, state) in new {
                let (topic_name, config) = (topic.name.clone(), log_config.clone());
                // What is offline and may heal is not of a directory that was not read.
                let is_new = occasion != Occasion::Start;
                wanted.push(WantedLog {
                    topic: topic_name,
                    topic_id: topic.id,
                    partition,
                    config,
                    is_new,
                });
                states.push((topic, partition, state, min_insync));
            }
        }
        if wanted.is_empty() {
            return Vec::new();
        }
        let mut back = Vec::new();
        let logs = self.logs.host(wanted).await;
        let added = logs.into_iter().zip(states).map(|(log, (topic, index, state, min_insync))| {
            let key = (topic.id, index);
            let before = if let Some(Hosted::Offline(error)) = hosted.get(&key) { Some(error.to_string()) } else { None };
            let now = match log {
                Ok(log) => {
                    if before.is_some() {
                        info!(topic = %topic.name, partition = index, end_offset = log.end_offset(), "partition is back");
                        back.push(key);
                    }
                    let clock = self.env.clock.clone();
                    let partition = Partition::new(log, self.me, state.leader_epoch, &state.replicas, &state.isr, min_insync, clock);
                    Hosted::Leader(Arc::new(partition))
                }
                Err(error) => {
                    if before.is_none_or(|before| before != error.to_string()) {
                        error!(topic = %topic.name, partition = index, %error, "partition is offline");
                    }
                    Hosted::Offline(error)
                }
            };
            (key, now)
        });
        let added: Vec<_> = added.collect();
        self.change(|hosted| hosted.extend(added.iter().cloned()));
        back
    }

    async fn drop_topics(&self, topics: &[Arc<Topic>]) {
        if topics.is_empty() {
            return;
        }
        let mut dropped = Vec::new();
        self.change(|hosted| {
            dropped.clear();
            for topic in topics {
                dropped.extend(
                    topic
                        .indexed_partitions()
                        .filter_map(|(index, _)| hosted.remove(&(topic.id, index))),
                );
            }
        });
        for hosted in dropped {
            if let Hosted::Leader(partition) = hosted {
                partition.log.set_gone();
                partition.waiters.wake_all();
            }
        }
        let gone = topics.iter().flat_map(|topic| {
            topic.indexed_partitions().map(|(index, _)| (topic.name.clone(), topic.id, index))
        });
        self.logs.delete(gone.collect()).await;
        for topic in topics {
            info!(topic = %topic.name, topic_id = %topic.id, "topic deleted");
        }
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
            delivering(|| partition.counts_up_to(durable_end));
        }
    }

    fn failed(&self, log: &Arc<Log>) {
        if let Some(partition) = self.partition_of(log) {
            partition.waiters.wake_all();
        }
    }
}
