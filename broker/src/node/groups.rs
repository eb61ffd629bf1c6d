//! The group coordinator over the partitions of `__consumer_offsets` that this node leads.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use letterbox_env::{Env, Gather};
use letterbox_protocol::model::{BrokerId, LeaderEpoch, TopicId};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, info};

use super::group_log::GroupLog;
use crate::config::Config;
use crate::coordinator::service::GroupMetadataView;
use crate::coordinator::{
    AppendError, GROUP_METADATA_TOPIC, GroupConfig, GroupCoordinator, LiveGroups,
};
use crate::metadata::{MetadataDelta, MetadataImage, Topic};
use crate::replication::ReplicaManager;
use crate::server::Shown;

/// Gives the coordinator its partitions and takes them away; reading them goes on meanwhile.
pub(super) struct GroupHost {
    coordinator: GroupCoordinator,
    log: Arc<GroupLog>,
    node_id: BrokerId,
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
        Self { coordinator, log, node_id: config.node_id, loads: JoinSet::new() }
    }

    /// What handlers call.
    pub(super) fn coordinator(&self) -> GroupCoordinator {
        self.coordinator.clone()
    }

    /// Before `delta` is shown to clients: partitions that this node no longer leads, or whose
    /// topic is gone, are no longer coordinated.
    pub(super) async fn release(&mut self, delta: &MetadataDelta) {
        let (before, after) = offsets_topic(delta);
        for partition in Moves::between(before, after, self.node_id).released {
            self.coordinator.unload(partition).await;
        }
        if id_of(before) != id_of(after) {
            self.log.set_topic(id_of(after).unwrap_or_default());
        }
    }

    /// After `delta` was shown to clients: forgets topics that are gone, and takes over the
    /// partitions that this node leads now.
    pub(super) fn take_over(&mut self, delta: &MetadataDelta) {
        let deleted: Vec<(Arc<str>, TopicId)> =
            delta.topics_removed.iter().map(|topic| (topic.name.clone(), topic.id)).collect();
        if !deleted.is_empty() {
            self.coordinator.topics_deleted(deleted);
        }
        let (before, after) = offsets_topic(delta);
        let taken = Moves::between(before, after, self.node_id).taken;
        if !taken.is_empty() {
            info!(partitions = taken.len(), "coordinating groups");
        }
        // Only a new topic takes them: roles may be ahead, and have kept them since `delta`.
        let is_new = after.is_some() && id_of(before) != id_of(after);
        let outlived = if is_new { self.coordinator.take_live() } else { LiveGroups::default() };
        self.load(taken, &outlived, &delta.after);
    }

    /// Partitions that were offline can be read now.
    pub(super) fn partitions_are_back(&mut self, image: &MetadataImage, back: &[(TopicId, i32)]) {
        let terms = terms(image.topic(GROUP_METADATA_TOPIC), self.node_id);
        let is_led = |(topic, partition): &&(TopicId, i32)| {
            terms.get(partition).is_some_and(|(of, _)| of == topic)
        };
        let partitions = back.iter().filter(is_led).map(|(_, partition)| *partition).collect();
        self.load(partitions, &LiveGroups::default(), image);
    }

    fn load(&mut self, partitions: Vec<i32>, live: &LiveGroups, image: &MetadataImage) {
        if partitions.is_empty() {
            return;
        }
        let load = |partition| (partition, self.coordinator.load(partition, live));
        self.loads.spawn(read(partitions.into_iter().map(load).collect()));
        let removed: HashSet<TopicId> = image.removed_topics.ids().copied().collect();
        if !removed.is_empty() {
            self.coordinator.topics_removed(removed);
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

async fn read(partitions: Vec<(i32, impl Future<Output = Result<(), AppendError>>)>) {
    let (started, partitions_count) = (Instant::now(), partitions.len());
    let each = partitions.into_iter().map(|(partition, loaded)| async move {
        loaded
            .await
            .inspect_err(|error| {
                error!(partition, %error, "cannot load groups and offsets; their clients are told \
                    to retry")
            })
            .is_ok()
    });
    let loaded = futures::future::join_all(each).await;
    let loaded_count = loaded.into_iter().filter(|loaded| *loaded).count();
    info!(
        partitions_count,
        loaded_count,
        elapsed_ms = started.elapsed().as_millis(),
        "loaded groups and offsets"
    );
}

/// Before the roles of partitions follow `delta`: where `__consumer_offsets` is deleted, its groups
/// are kept for the next one.
pub(super) fn keep_live(coordinator: &GroupCoordinator, delta: &MetadataDelta) {
    let (before, after) = offsets_topic(delta);
    if before.is_some() && id_of(before) != id_of(after) {
        coordinator.keep_live();
    }
}

/// Which partitions of `__consumer_offsets` a node ceases and begins to coordinate. One that it
/// leads again in a later epoch is both: another node may have led it meanwhile.
#[derive(Debug, PartialEq, Eq)]
struct Moves {
    released: Vec<i32>,
    taken: Vec<i32>,
}

impl Moves {
    fn between(before: Option<&Arc<Topic>>, after: Option<&Arc<Topic>>, node: BrokerId) -> Self {
        let (before, after) = (terms(before, node), terms(after, node));
        let only_in = |these: &Terms, others: &Terms| {
            let of_these = these.iter().filter(|(index, term)| others.get(index) != Some(*term));
            of_these.map(|(index, _)| *index).collect()
        };
        Self { released: only_in(&before, &after), taken: only_in(&after, &before) }
    }
}

/// What a node leads, by partition: of which topic, in which epoch.
type Terms = BTreeMap<i32, (TopicId, LeaderEpoch)>;

fn terms(topic: Option<&Arc<Topic>>, node: BrokerId) -> Terms {
    let of_topic = topic.into_iter().flat_map(|topic| {
        let led = topic.indexed_partitions().filter(|(_, state)| state.leader == Some(node));
        led.map(|(index, state)| (index, (topic.id, state.leader_epoch)))
    });
    of_topic.gather()
}

/// `__consumer_offsets` before and after `delta`.
fn offsets_topic(delta: &MetadataDelta) -> (Option<&Arc<Topic>>, Option<&Arc<Topic>>) {
    (delta.before.topic(GROUP_METADATA_TOPIC), delta.after.topic(GROUP_METADATA_TOPIC))
}

fn id_of(topic: Option<&Arc<Topic>>) -> Option<TopicId> {
    topic.map(|topic| topic.id)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{Configs, PartitionState};
    use letterbox_sim::transcript::{Line, check};

    /// `id=` and, a partition each, `leaders=` (0: nobody) and `epochs=`; `gone`: no topic.
    fn topic(line: &Line<'_>) -> Option<Arc<Topic>> {
        let mut topic = Topic {
            name: GROUP_METADATA_TOPIC.into(),
            id: TopicId::from_u128(line.find("id")?.parse().unwrap()),
            partitions: Default::default(),
            configs: Configs::new(),
        };
        let epochs = line.text("epochs").split(',').map(|epoch| epoch.parse().unwrap());
        for (index, (leader, leader_epoch)) in
            (0..).zip(line.ids("leaders").into_iter().zip(epochs))
        {
            let state = PartitionState {
                replicas: [leader].into(),
                isr: [leader].into(),
                leader: Some(leader).filter(|leader| leader.0 > 0),
                leader_epoch,
                ..PartitionState::default()
            };
            topic.partitions.insert(index, state);
        }
        Some(Arc::new(topic))
    }

    #[test]
    fn the_coordinator_follows_the_leaders_of_its_topic() {
        let mut before = None;
        check(
            "# It is made; node 1 leads two of its three partitions.
             > topic id=7 leaders=1,2,1 epochs=0,0,0
             load 0
             load 2
             # Node 1 loses one and gets another.
             > topic id=7 leaders=2,1,1 epochs=1,1,0
             unload 0
             load 1
             # Another node may have led it meanwhile.
             > topic id=7 leaders=2,1,1 epochs=1,1,2
             unload 2
             load 2
             # No replica of the ISR is alive.
             > topic id=7 leaders=2,0,1 epochs=1,2,2
             unload 1
             # A replica in sync: nothing of a leader.
             > topic id=7 leaders=2,0,1 epochs=1,2,2
             # More partitions.
             > topic id=7 leaders=2,0,1,1,2 epochs=1,2,2,0,0
             load 3
             > gone
             unload 2
             unload 3
             > topic id=8 leaders=1 epochs=0
             load 0
             # Deleted and made again in one step.
             > topic id=9 leaders=1 epochs=0
             unload 0
             load 0",
            |line| {
                let after = topic(line);
                let moves = Moves::between(before.as_ref(), after.as_ref(), BrokerId(1));
                before = after;
                let told = |word: &str, of: Vec<i32>| {
                    of.into_iter().map(move |index| format!("{word} {index}")).collect::<Vec<_>>()
                };
                [told("unload", moves.released), told("load", moves.taken)].concat()
            },
        );
    }
}
