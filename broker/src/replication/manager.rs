//! The partitions of this broker: opened, changed and closed as the metadata says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use letterbox_env::panics::lock;
use letterbox_env::{Env, Gather, with_causes};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{BrokerId, Offset, TopicId};
use letterbox_storage::{
    DurabilityObserver, Log, LogConfig, LogDir, LogError, LogManager, WantedLog,
};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info};

use super::deliver::delivering;
use super::fetcher::Key;
use super::leader::Eligible;
use super::outbox::Outbox;
use super::partition::{Partition, Shared};
use super::role::{LogStanding, Times};
use crate::config::topic::TopicConfig;
use crate::config::{Config, log_config};
use crate::metadata::decide::liveness::Behind;
use crate::metadata::{
    MetadataDelta, MetadataImage, PartitionState, SharedMap, Topic, TopicChange,
};

/// When logs are opened or made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occasion {
    /// At the start, from the whole image: the partitions may have logs already.
    Start,
    /// At a change of the metadata: the partitions are new.
    Change,
    /// The partitions are not new. This broker may have had them before, also in a directory that
    /// cannot be read now.
    Move,
    /// What is offline is tried again.
    Heal,
}

/// Every partition this broker keeps.
pub(crate) struct ReplicaManager {
    config: Config,
    logs: Arc<LogManager>,
    /// Replaced as a whole when partitions come or go, which is rare; read for every request.
    hosted: ArcSwap<SharedMap<Key, Arc<Partition>>>,
    /// The newest metadata that [`ReplicaManager::apply`] was told.
    image: ArcSwap<MetadataImage>,
    /// Held from the look at the newest configuration of a topic until its partitions have it, so
    /// that an older one never comes after it.
    configuring: Mutex<()>,
    /// The brokers that may be in sync, as that metadata has it.
    eligible: ArcSwap<Eligible>,
    /// Up to where the roles follow the metadata.
    followed: watch::Sender<u64>,
    shared: Arc<Shared>,
    /// Replicas that were taken off this broker, whose logs are to be deleted.
    leaving: Mutex<Vec<(Arc<str>, TopicId, i32)>>,
    /// Why partitions are offline, as it was logged; those that are not are absent.
    offline: Mutex<BTreeMap<Key, LogError>>,
    /// See [`ReplicaManager::behind`].
    behind: ArcSwap<Vec<(BrokerId, Behind)>>,
}

/// Sets the logs aside, as `*-stray`, that `me` found in other log directories than those that count,
/// where nobody else has every committed record and nobody has accepted what was lost.
pub(crate) async fn set_lost_aside(logs: &LogManager, image: &MetadataImage, me: BrokerId) {
    let is_lost = |id: &TopicId, index: i32| {
        let state = image.topic_by_id(id).and_then(|topic| topic.partition(index));
        state.is_some_and(|state| state.is_lost_on(me))
    };
    let open = logs.logs().into_iter().map(|log| (log.topic_id(), log.partition()));
    let others: BTreeSet<Key> = open.filter(|(id, index)| is_lost(id, *index)).gather();
    if !others.is_empty() {
        let is_other = |id: TopicId, index: i32| others.contains(&(id, index));
        logs.set_unknown_aside(|_, id, index| !id.is_some_and(|id| is_other(id, index))).await;
    }
}

impl ReplicaManager {
    /// A manager over logs that were opened; nothing is hosted until metadata says so.
    #[must_use]
    pub(crate) fn new(env: &Env, config: Config, logs: Arc<LogManager>) -> Arc<Self> {
        let number = |key| u64::try_from(config.number(key)).unwrap_or(u64::MAX);
        let times = Times {
            lag_max_ms: number("replica.lag.time.max.ms"),
            backoff_ms: number("replica.fetch.backoff.ms"),
        };
        let shared = Arc::new(Shared {
            me: config.node_id,
            clock: env.clock.clone(),
            began: Instant::now(),
            times,
            outbox: Outbox::default(),
            leads_until_ms: u64::MAX.into(),
        });
        Arc::new(Self {
            config,
            logs,
            configuring: Mutex::default(),
            hosted: ArcSwap::default(),
            image: ArcSwap::default(),
            eligible: ArcSwap::default(),
            followed: watch::Sender::new(0),
            shared,
            leaving: Mutex::default(),
            offline: Mutex::default(),
            behind: ArcSwap::default(),
        })
    }

    /// The partition, when this broker leads it.
    ///
    /// # Errors
    /// `NOT_LEADER_OR_FOLLOWER` when it is assigned to others, `UNKNOWN_TOPIC_OR_PARTITION` when it
    /// is not there; as [`Partition::check_led`].
    pub(crate) fn partition(
        &self,
        topic: &TopicId,
        index: i32,
    ) -> Result<Arc<Partition>, ErrorCode> {
        let hosted = self.hosted.load();
        let is_there = || {
            let image = self.image.load();
            image.topic_by_id(topic).is_some_and(|topic| topic.partition(index).is_some())
        };
        let elsewhere = || match is_there() {
            true => ErrorCode::NotLeaderOrFollower,
            false => ErrorCode::UnknownTopicOrPartition,
        };
        let partition = hosted.get(&(*topic, index)).ok_or_else(elsewhere)?;
        partition.check_led()?;
        Ok(partition.clone())
    }

    /// The partition, whatever this broker is to it.
    pub(crate) fn hosted(&self, key: &Key) -> Option<Arc<Partition>> {
        self.hosted.load().get(key).cloned()
    }

    /// The brokers that may be in sync.
    pub(crate) fn eligible(&self) -> Eligible {
        Eligible::clone(&self.eligible.load())
    }

    /// What the partitions want of others.
    pub(crate) fn outbox(&self) -> &Outbox {
        &self.shared.outbox
    }

    /// The clock of the roles: milliseconds since this began.
    pub(crate) fn now_ms(&self) -> u64 {
        self.shared.now_ms()
    }

    /// Waits until the roles follow the metadata up to `index`. Cancel safe.
    pub(crate) async fn follow(&self, index: u64) {
        // Its sender lives as long as this does.
        let _ = self.followed.subscribe().wait_for(|followed| *followed >= index).await;
    }

    /// From that moment on nothing is appended for clients, unless this is told of a later one.
    /// Without one that is so now.
    pub(crate) fn lead_until(&self, moment: Option<Instant>) {
        let since = |moment: Instant| moment.saturating_duration_since(self.shared.began);
        let since = moment.map_or(0, |moment| since(moment).as_millis());
        let until_ms = u64::try_from(since).unwrap_or(u64::MAX);
        self.shared.leads_until_ms.store(until_ms, Ordering::Relaxed);
    }

    /// See [`Self::lead_until`].
    pub(crate) fn may_lead(&self) -> bool {
        self.shared.may_lead()
    }

    /// The newest metadata that the roles have followed.
    pub(crate) fn image(&self) -> Arc<MetadataImage> {
        self.image.load_full()
    }

    /// Looks at who lags, in every partition that is led from here. To be called often within
    /// `replica.lag.time.max.ms`.
    pub(crate) fn look_at_lags(&self) {
        for partition in self.hosted.load().values() {
            if partition.leader_epoch() >= 0 {
                partition.tick();
            }
        }
    }

    /// What each follower has yet to copy of the partitions that are led from here and in which it is
    /// not in sync, as it was looked at last.
    pub(crate) fn behind(&self) -> Vec<(BrokerId, Behind)> {
        self.behind.load().to_vec()
    }

    /// Looks at that. May wait for a partition whose log the device holds up.
    pub(crate) fn look_behind(&self) {
        let mut behind = BTreeMap::<BrokerId, Behind>::new();
        for partition in self.hosted.load().values() {
            for (id, bytes) in partition.behind() {
                *behind.entry(id).or_default() += Behind { partitions: 1, bytes };
            }
        }
        self.behind.store(Arc::new(behind.into_iter().collect()));
    }

    /// The partitions of whose logs the metadata says otherwise than they are, and how those are.
    /// To be looked at often: a log directory fails, or fills, with all that is in it.
    pub(crate) fn unreported_logs(&self) -> Vec<(Key, LogStanding)> {
        let hosted = self.hosted.load();
        let tells_room = self.image.load().tells_room();
        let of_one =
            |partition: &Arc<Partition>| Some((partition.key(), partition.unreported(tells_room)?));
        hosted.values().filter_map(of_one).collect()
    }

    /// Every partition led from here.
    #[cfg(test)]
    pub(crate) fn leading(&self) -> Vec<Arc<Partition>> {
        let hosted = self.hosted.load();
        hosted.values().filter(|partition| partition.check_led().is_ok()).cloned().collect()
    }

    /// The log directories, and every log in them.
    #[must_use]
    pub(crate) fn log_dirs(&self) -> (Vec<Arc<LogDir>>, Vec<Arc<Log>>) {
        (self.logs.dirs().to_vec(), self.logs.logs())
    }

    /// See [`LogManager::lacks_descriptors`].
    pub(crate) fn lacks_descriptors(&self) {
        self.logs.lacks_descriptors();
    }

    /// See [`LogManager::keep_log_starts`].
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn keep_log_starts(&self, logs: Vec<Arc<Log>>) -> Result<(), LogError> {
        self.logs.keep_log_starts(logs).await
    }

    /// Partitions hosted.
    #[must_use]
    pub(crate) fn hosted_count(&self) -> usize {
        self.hosted.load().len()
    }

    /// Partitions hosted, led, and out of use.
    #[must_use]
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let hosted = self.hosted.load();
        let (mut leading, mut offline) = (0, 0);
        for partition in hosted.values() {
            if partition.is_offline() {
                offline += 1;
            } else if partition.check_led().is_ok() {
                leading += 1;
            }
        }
        (hosted.len(), leading, offline)
    }

    /// Brings everything in line with the whole image: at start.
    ///
    /// Logs whose topic the metadata does not know are set aside under another name, never deleted:
    /// local state that is missing is no reason to destroy data. Those of topics that are known to
    /// be removed are deleted, and those of partitions that the metadata give to other brokers: the
    /// controller took them away when those had everything. That comes first, because a topic of
    /// the image may need the name of one that is gone.
    pub(crate) async fn start(&self, image: &Arc<MetadataImage>) {
        self.image.store(image.clone());
        self.set_eligible(image);
        self.assign(image.topics().flat_map(all_of));
        self.followed.send_replace(image.applied_index);
        let is_known = |name: &str, id: Option<TopicId>, partition: i32| {
            let topic = id.map_or_else(|| image.topic(name), |id| image.topic_by_id(&id));
            topic.is_some_and(|topic| &*topic.name == name && topic.partition(partition).is_some())
        };
        self.delete_removed(image).await;
        self.logs.set_unknown_aside(is_known).await;
        self.delete_logs_of_others(image).await;
        let mine = image.partitions_of(self.shared.me);
        let lost = mine.filter(|(_, _, state)| state.is_lost_on(self.shared.me));
        let lost = lost.map(|(topic, index, _)| (topic.name.clone(), topic.id, index));
        self.logs.miss(lost.collect()).await;
        let hosted = self.hosted.load_full();
        self.host(&hosted, image.topics().flat_map(all_of), Occasion::Start).await;
    }

    /// Deletes what is there of topics that were deleted while this node was away, or as it ended.
    async fn delete_removed(&self, image: &MetadataImage) {
        let removed: BTreeSet<&TopicId> = image.removed_topics.ids().gather();
        let is_gone = |id: &TopicId| removed.contains(id) && image.topic_by_id(id).is_none();
        let gone: Vec<_> = self.all_logs().filter(|(_, id, _)| is_gone(id)).collect();
        for (topic, id, partition) in &gone {
            info!(%topic, topic_id = %id, partition, "deleting a log: its topic was deleted before \
                this broker started");
        }
        if !gone.is_empty() {
            self.logs.delete(gone).await;
        }
    }

    /// Takes a change of the metadata in: who leads, who is in sync, what is configured, what was
    /// deleted. At once, whatever is being done with logs meanwhile: that follows with
    /// [`ReplicaManager::apply_to_logs`].
    pub(crate) fn apply(&self, delta: &MetadataDelta) {
        // Before any log is looked for: one that is opened meanwhile takes its configuration from
        // here.
        self.image.store(delta.after.clone());
        if !Arc::ptr_eq(&delta.before.brokers, &delta.after.brokers) {
            self.set_eligible(&delta.after);
        }
        self.forget(&delta.topics_removed);
        let changed = || delta.topics_changed.iter();
        let added = delta.topics_added.iter().flat_map(all_of);
        self.assign(added.chain(changed().flat_map(changed_of).map(|(_, assigned)| assigned)));
        self.followed.send_replace(delta.after.applied_index);
        for change in changed().filter(|change| change.configs_changed()) {
            info!(topic = %change.after.name, "topic configuration changed");
            self.reconfigure(&change.after);
        }
        if !delta.configs_changed.is_empty() {
            info!("broker configuration changed");
            delta.after.topics().for_each(|topic| self.reconfigure(topic));
        }
    }

    /// Deletes and makes the logs that a change of the metadata asks for; it may be the sum of
    /// several that [`ReplicaManager::apply`] was told. One call after the other.
    pub(crate) async fn apply_to_logs(&self, delta: &MetadataDelta) {
        // Looked at before what is to go: the log of a partition that came back is not the one that
        // goes.
        let hosted = self.hosted.load_full();
        self.delete_logs(&delta.topics_removed).await;
        let leaving = std::mem::take(&mut *lock(&self.leaving));
        if !leaving.is_empty() {
            self.logs.delete(leaving).await;
        }
        let changed = delta.topics_changed.iter().flat_map(changed_of);
        let added = delta.topics_added.iter().flat_map(all_of).map(|assigned| (true, assigned));
        let (new, old): (Vec<_>, Vec<_>) = added.chain(changed).partition(|(is_new, _)| *is_new);
        let assigned = |all: Vec<(bool, _)>| all.into_iter().map(|(_, assigned)| assigned);
        self.host(&hosted, assigned(new), Occasion::Change).await;
        self.host(&hosted, assigned(old), Occasion::Move).await;
    }

    /// Whether a partition that is assigned here is out of use.
    #[must_use]
    pub(crate) fn is_offline(&self, topic: &TopicId, index: i32) -> bool {
        self.hosted.load().get(&(*topic, index)).is_some_and(|partition| partition.is_offline())
    }

    /// Tries again what is offline, to be called every second: the disk may have space again, or a
    /// person may have mended a directory. The partitions that are back.
    pub(crate) async fn heal(&self, image: &MetadataImage) -> Vec<(TopicId, i32)> {
        let ids: BTreeSet<TopicId> = self.may_heal().map(|(topic, _)| topic).gather();
        if ids.is_empty() {
            Vec::new()
        } else {
            let topics = ids.iter().filter_map(|id| image.topic_by_id(id));
            let hosted = self.hosted.load_full();
            self.host(&hosted, topics.flat_map(all_of), Occasion::Heal).await
        }
    }

    /// What is offline for a reason that may pass while the broker runs.
    fn may_heal(&self) -> impl Iterator<Item = Key> + use<> {
        let offline = lock(&self.offline).clone();
        offline
            .into_iter()
            .filter(|(_, error)| !matches!(error, LogError::NotRead { .. }))
            .map(|(key, _)| key)
    }

    /// Tells the partitions that are assigned here what the metadata says now; new ones begin with
    /// that, without a log.
    fn assign<'a>(&self, partitions: impl Iterator<Item = Assigned<'a>>) {
        let hosted = self.hosted.load_full();
        let (mut new, mut gone, mut min_insync) = (Vec::new(), Vec::new(), OfTopic::default());
        for (topic, index, state) in partitions {
            let key = (topic.id, index);
            let mut min_insync =
                || *min_insync.get(topic, || min_insync_of(&self.topic_config(topic)));
            if let Some(partition) = hosted.get(&key) {
                partition.assign(state, min_insync());
                if partition.is_gone() {
                    gone.push((topic.name.clone(), topic.id, index));
                }
            } else if state.replicas.contains(&self.shared.me) {
                let (eligible, shared) = (Eligible::clone(&self.eligible.load()), &self.shared);
                let partition =
                    Partition::new(key, state.clone(), eligible, min_insync(), shared.clone());
                new.push((key, Arc::new(partition)));
            }
        }
        if !new.is_empty() {
            self.change(|hosted| {
                for (key, partition) in &new {
                    hosted.insert(*key, partition.clone());
                }
            });
        }
        if !gone.is_empty() {
            let keys: BTreeSet<Key> = gone.iter().map(|(_, id, index)| (*id, *index)).gather();
            self.change(|hosted| keys.iter().for_each(|key| drop(hosted.remove(key))));
            lock(&self.offline).retain(|key, _| !keys.contains(key));
            info!(
                replicas = gone.len(),
                "replicas were moved off this broker; deleting their logs"
            );
            lock(&self.leaving).extend(gone);
        }
    }

    /// Opens or makes the logs of those of these partitions that are assigned here and have none
    /// yet; to heal, of those that are offline. Gives those that were offline and are not any more.
    async fn host<'a>(
        &self,
        hosted: &SharedMap<Key, Arc<Partition>>,
        candidates: impl Iterator<Item = Assigned<'a>>,
        occasion: Occasion,
    ) -> Vec<Key> {
        let (mut wanted, mut partitions) = (Vec::new(), Vec::new());
        let offline: BTreeSet<Key> = match occasion {
            Occasion::Heal => self.may_heal().collect(),
            Occasion::Start | Occasion::Change | Occasion::Move => BTreeSet::new(),
        };
        let mut config = OfTopic::default();
        for (topic, index, _) in candidates {
            let key = (topic.id, index);
            let Some(partition) = hosted.get(&key) else { continue };
            if partition.is_opening() || offline.contains(&key) {
                let config = config.get(topic, || log_config(&self.topic_config(topic))).clone();
                // What is offline and may heal is not of a directory that was not read.
                let is_new = matches!(occasion, Occasion::Change | Occasion::Heal);
                let (topic_name, topic_id) = (topic.name.clone(), topic.id);
                wanted.push(WantedLog {
                    topic: topic_name,
                    topic_id,
                    partition: index,
                    config,
                    is_new,
                    may_be_copied: partition.may_be_copied(),
                });
                partitions.push((topic, partition.clone()));
            }
        }
        if wanted.is_empty() {
            return Vec::new();
        }
        let logs = self.logs.host(wanted).await;
        let mut back = Vec::new();
        for (log, (topic, partition)) in logs.into_iter().zip(partitions) {
            let key = partition.key();
            match log {
                Ok(log) => {
                    let was_offline = lock(&self.offline).remove(&key).is_some();
                    let end_offset = log.end_offset();
                    partition.opened(log);
                    // It was taken away meanwhile.
                    if partition.is_gone() {
                        lock(&self.leaving).push((topic.name.clone(), key.0, key.1));
                        continue;
                    }
                    if was_offline {
                        let (topic, index) = (&topic.name, key.1);
                        info!(%topic, partition = index, end_offset, "partition is online again");
                        back.push(key);
                    }
                    self.reconfigure_to_newest(&partition);
                    partition.look_at_loss();
                }
                Err(error) => self.is_offline_because(&topic.name, &partition, error),
            }
        }
        back
    }

    fn is_offline_because(&self, topic: &str, partition: &Partition, error: LogError) {
        let (key, text) = (partition.key(), with_causes(&error));
        partition.failed();
        self.shared.outbox.logs.notify_one();
        let mut offline = lock(&self.offline);
        // Looked for under the lock: who forgets a topic takes it out of there first.
        if !self.hosted.load().contains_key(&key) {
            return;
        }
        let before = offline.insert(key, error);
        drop(offline);
        if before.is_none_or(|before| before.to_string() != text) {
            error!(topic, partition = key.1, error = text, "partition is offline");
        }
    }

    /// The configuration may have changed while its log was being opened.
    fn reconfigure_to_newest(&self, partition: &Partition) {
        let _one = lock(&self.configuring);
        if let Some(topic) = self.image.load().topic_by_id(&partition.key().0) {
            let config = self.topic_config(topic);
            let min_insync = min_insync_of(&config);
            // The state first that goes with it.
            if let Some(state) = topic.partition(partition.key().1) {
                partition.assign(state, min_insync);
            }
            partition.reconfigure(log_config(&config), min_insync);
        }
    }

    /// The partitions of these topics are gone, for everybody and at once.
    fn forget(&self, topics: &[Arc<Topic>]) {
        if topics.is_empty() {
            return;
        }
        let ids: BTreeSet<TopicId> = topics.iter().map(|topic| topic.id).gather();
        let keys = topics.iter().flat_map(all_of).map(|(topic, index, _)| (topic.id, index));
        let (keys, before): (Vec<Key>, _) = (keys.collect(), self.hosted.load_full());
        self.change(|hosted| keys.iter().for_each(|key| drop(hosted.remove(key))));
        lock(&self.offline).retain(|(topic, _), _| !ids.contains(topic));
        keys.iter().filter_map(|key| before.get(key)).for_each(|partition| partition.set_gone());
    }

    /// Every log that is here, in use or not, and every one that is missed, whose topic's id is
    /// known. One that was deleted just before this broker ended may count as missed.
    fn all_logs(&self) -> impl Iterator<Item = (Arc<str>, TopicId, i32)> + use<> {
        let of_log = |log: Arc<Log>| (log.topic().clone(), log.topic_id(), log.partition());
        let not_open = self.logs.not_open().into_iter();
        let not_open = not_open.filter_map(|(topic, id, index)| Some((topic, id?, index)));
        self.logs.logs().into_iter().map(of_log).chain(not_open)
    }

    /// What was taken off this broker while it was down, or just before it ended.
    async fn delete_logs_of_others(&self, image: &MetadataImage) {
        let is_of_others = |id: &TopicId, index: i32| {
            let state = image.topic_by_id(id).and_then(|topic| topic.partition(index));
            state.is_some_and(|state| !state.replicas.contains(&self.shared.me))
        };
        let gone: Vec<_> =
            self.all_logs().filter(|(_, id, index)| is_of_others(id, *index)).collect();
        if !gone.is_empty() {
            info!(
                replicas = gone.len(),
                "replicas were moved off this broker; deleting their logs"
            );
            self.logs.delete(gone).await;
        }
    }

    async fn delete_logs(&self, topics: &[Arc<Topic>]) {
        if topics.is_empty() {
            return;
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
        let _one = lock(&self.configuring);
        let config = self.topic_config(topic);
        let (log_config, min_insync) = (log_config(&config), min_insync_of(&config));
        let hosted = self.hosted.load();
        for (index, _) in topic.indexed_partitions() {
            if let Some(partition) = hosted.get(&(topic.id, index)) {
                partition.reconfigure(log_config.clone(), min_insync);
            }
        }
    }

    /// Who may be in sync comes before what the same change says of partitions.
    fn set_eligible(&self, image: &MetadataImage) {
        // A leader that is about to stop and has nobody else yet goes on to take others in.
        let may_be = |id: BrokerId| image.is_serving(id) || id == self.shared.me;
        let live = image.live_brokers().filter(|(id, _)| may_be(**id));
        let live = live.map(|(id, registration)| (*id, registration.epoch));
        let eligible = Eligible::new(live.gather());
        self.eligible.store(Arc::new(eligible.clone()));
        for partition in self.hosted.load().values() {
            partition.set_eligible(eligible.clone());
        }
    }

    fn topic_config(&self, topic: &Topic) -> TopicConfig {
        TopicConfig::resolve(&self.config, &topic.configs)
    }

    /// The configuration that logs are opened with before the metadata is there.
    #[must_use]
    pub(crate) fn default_log_config(config: &Config) -> LogConfig {
        log_config(&TopicConfig::resolve(config, &BTreeMap::new()))
    }

    fn change(&self, mut edit: impl FnMut(&mut SharedMap<Key, Arc<Partition>>)) {
        self.hosted.rcu(|hosted| {
            let mut hosted = SharedMap::clone(hosted);
            edit(&mut hosted);
            hosted
        });
    }

    fn partition_of(&self, log: &Log) -> Option<Arc<Partition>> {
        self.hosted.load().get(&(log.topic_id(), log.partition())).cloned()
    }
}

/// A partition as the metadata has it.
type Assigned<'a> = (&'a Arc<Topic>, i32, &'a PartitionState);

fn all_of(topic: &Arc<Topic>) -> impl Iterator<Item = Assigned<'_>> {
    topic.indexed_partitions().map(move |(index, state)| (topic, index, state))
}

/// Those that changed, and whether each is new.
fn changed_of(change: &TopicChange) -> impl Iterator<Item = (bool, Assigned<'_>)> {
    let topic = &change.after;
    change.partitions().map(move |one| (one.before.is_none(), (topic, one.partition, one.after)))
}

/// What is resolved once for all partitions of a topic, which come one after the other.
struct OfTopic<T>(Option<(TopicId, T)>);

impl<T> Default for OfTopic<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> OfTopic<T> {
    fn get(&mut self, topic: &Topic, resolve: impl FnOnce() -> T) -> &T {
        let known = self.0.take().filter(|(id, _)| *id == topic.id);
        &self.0.insert(known.unwrap_or_else(|| (topic.id, resolve()))).1
    }
}

fn min_insync_of(config: &TopicConfig) -> usize {
    usize::try_from(config.number("min.insync.replicas")).unwrap_or(1)
}

impl DurabilityObserver for ReplicaManager {
    fn durable(&self, log: &Arc<Log>, _durable_end: Offset) {
        if let Some(partition) = self.partition_of(log) {
            delivering(|| partition.counts());
        }
    }

    fn failed(&self, log: &Arc<Log>) {
        if let Some(partition) = self.partition_of(log) {
            partition.look_at_log();
            partition.waiters.wake_all();
        }
        self.shared.outbox.logs.notify_one();
    }
}
