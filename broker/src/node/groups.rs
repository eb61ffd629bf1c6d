//! The group coordinator over the partitions of `__consumer_offsets` that this node leads.

use std::sync::Arc;

use letterbox_env::Env;
use letterbox_protocol::model::TopicId;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, info};

use super::group_log::GroupLog;
use crate::config::Config;
use crate::coordinator::service::GroupMetadataView;
use crate::coordinator::{GROUP_METADATA_TOPIC, GroupConfig, GroupCoordinator};
use crate::metadata::{MetadataDelta, MetadataImage, Topic};
use crate::replication::ReplicaManager;
use crate::server::Shown;

/// Partitions of `__consumer_offsets` that are read at once.
const LOADS_AT_ONCE: usize = 4;

/// Gives the coordinator its partitions and takes them away; reading them goes on meanwhile.
pub(super) struct GroupHost {
    coordinator: GroupCoordinator,
    log: Arc<GroupLog>,
    loads: JoinSet<()>,
}

impl GroupHost {
    /// A coordinator without partitions.
    pub(super) fn new(
        env: &Env,
        config: &Config,
        replicas: Arc<ReplicaManager>,
        shown: Arc<Shown>,
    ) -> Self {
        let log = Arc::new(GroupLog::new(env.clone(), replicas));
        let coordinator =
            GroupCoordinator::new(env.clone(), group_config(config), log.clone(), View(shown));
        Self { coordinator, log, loads: JoinSet::new() }
    }

    /// What handlers call.
    pub(super) fn coordinator(&self) -> GroupCoordinator {
        self.coordinator.clone()
    }

    /// Before `delta` is shown to clients: partitions of a topic that is gone are no longer
    /// coordinated.
    pub(super) async fn release(&mut self, delta: &MetadataDelta) {
        let (before, after) = offsets_topic(delta);
        if id_of(before) == id_of(after) {
            return;
        }
        for partition in 0..count(before) {
            self.coordinator.unload(partition).await;
        }
        self.log.set_topic(id_of(after).unwrap_or_default());
    }

    /// After `delta` was shown to clients: forgets topics that are gone, and takes over partitions
    /// that are new.
    pub(super) fn take_over(&mut self, delta: &MetadataDelta) {
        let deleted: Vec<Arc<str>> =
            delta.topics_removed.iter().map(|topic| topic.name.clone()).collect();
        if !deleted.is_empty() {
            self.coordinator.topics_deleted(&deleted);
        }
        let (before, after) = offsets_topic(delta);
        let first = if id_of(before) == id_of(after) { count(before) } else { 0 };
        if first < count(after) {
            info!(partitions = count(after), "coordinating groups");
        }
        self.load((first..count(after)).collect());
    }

    /// Partitions that were offline can be read now.
    pub(super) fn partitions_are_back(&mut self, image: &MetadataImage, back: &[(TopicId, i32)]) {
        let offsets = id_of(image.topic(GROUP_METADATA_TOPIC));
        let of_groups = back.iter().filter(|(topic, _)| Some(*topic) == offsets);
        self.load(of_groups.map(|(_, partition)| *partition).collect());
    }

    fn load(&mut self, partitions: Vec<i32>) {
        if !partitions.is_empty() {
            self.loads.spawn(read(self.coordinator.clone(), partitions));
        }
    }

    /// Whether partitions are being read.
    pub(super) fn is_loading(&self) -> bool {
        !self.loads.is_empty()
    }

    /// Waits until one of the tasks that read partitions has ended. Cancel safe.
    pub(super) async fn one_is_loaded(&mut self) {
        self.loads.join_next().await;
    }
}

async fn read(coordinator: GroupCoordinator, partitions: Vec<i32>) {
    let (started, partitions_count) = (Instant::now(), partitions.len());
    let (mut loads, at_once) = (JoinSet::new(), Arc::new(Semaphore::new(LOADS_AT_ONCE)));
    for partition in partitions {
        let (coordinator, at_once) = (coordinator.clone(), at_once.clone());
        loads.spawn(async move {
            let _turn = at_once.acquire().await;
            let loaded = coordinator.load(partition).await;
            loaded
                .inspect_err(|error| {
                    error!(partition, %error, "cannot load groups and offsets; their clients are \
                        told to retry")
                })
                .is_ok()
        });
    }
    let loaded_count = loads.join_all().await.into_iter().filter(|loaded| *loaded).count();
    info!(
        partitions_count,
        loaded_count,
        elapsed_ms = started.elapsed().as_millis(),
        "groups and offsets are loaded"
    );
}

/// `__consumer_offsets` before and after `delta`.
fn offsets_topic(delta: &MetadataDelta) -> (Option<&Arc<Topic>>, Option<&Arc<Topic>>) {
    (delta.before.topic(GROUP_METADATA_TOPIC), delta.after.topic(GROUP_METADATA_TOPIC))
}

fn id_of(topic: Option<&Arc<Topic>>) -> Option<TopicId> {
    topic.map(|topic| topic.id)
}

fn count(topic: Option<&Arc<Topic>>) -> i32 {
    topic.map_or(0, |topic| i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX))
}

/// The metadata that clients see, as the group coordinator asks for it.
struct View(Arc<Shown>);

impl GroupMetadataView for View {
    fn partitions_of(&self, topic: &str) -> Option<i32> {
        let image = self.0.image();
        image.topic(topic).and_then(|topic| i32::try_from(topic.partitions.len()).ok())
    }

    fn id_of(&self, topic: &str) -> Option<TopicId> {
        id_of(self.0.image().topic(topic))
    }

    fn name_of(&self, id: TopicId) -> Option<Arc<str>> {
        self.0.image().topic_by_id(&id).map(|topic| topic.name.clone())
    }
}

fn group_config(config: &Config) -> GroupConfig {
    let int = |key| i32::try_from(config.number(key)).unwrap_or(i32::MAX);
    let long = |key| u64::try_from(config.number(key)).unwrap_or(u64::MAX);
    GroupConfig {
        initial_rebalance_delay_ms: long("group.initial.rebalance.delay.ms"),
        min_session_timeout_ms: int("group.min.session.timeout.ms"),
        max_session_timeout_ms: int("group.max.session.timeout.ms"),
        max_size: config.size("group.max.size"),
        offset_metadata_max_bytes: config.size("offset.metadata.max.bytes"),
        offsets_retention_ms: config.number("offsets.retention.minutes").saturating_mul(60_000),
        offsets_retention_check_interval_ms: long("offsets.retention.check.interval.ms"),
        offset_commit_timeout_ms: long("offsets.commit.timeout.ms"),
    }
}
