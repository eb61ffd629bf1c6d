//! The group coordinator as handlers call it: it finds the partition that owns a group and gives
//! the request to its shard; the [`runtime`](super::runtime) appends what the shard says, and
//! answers when that is committed.

mod api;
mod by_id;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, OnceLock};

use letterbox_env::panics::lock;
use letterbox_env::{Env, Gather};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::TopicId;

use super::group::{Now, Output, Reply, ReplyId};
use super::memory::GroupMemory;
use super::records::{OffsetAndMetadata, OffsetKey, Record};
use super::runtime::{Asked, Event, Runtime};
use super::shard::Shard;
use super::{
    AppendError, GROUP_METADATA_TOPIC, GroupConfig, GroupFigures, ReplicatedLog, partition_for,
};

/// What the coordinator asks of the cluster's metadata.
pub(crate) trait GroupMetadataView: Send + Sync + 'static {
    /// How many partitions a topic has, `None` when it does not exist; offsets of others are
    /// refused with UNKNOWN_TOPIC_OR_PARTITION.
    fn partitions_of(&self, topic: &str) -> Option<i32>;

    /// The id of a topic; requests from version 10 on name topics by id.
    fn id_of(&self, topic: &str) -> Option<TopicId>;

    /// The topic of an id.
    fn name_of(&self, id: TopicId) -> Option<Arc<str>>;
}

/// Groups whose members have their assignment, apart from the log that they are written in.
#[derive(Clone, Default)]
pub(crate) struct LiveGroups(Vec<Record>);

/// The group coordinator of this broker. Cheap to clone; [`shutdown`](Self::shutdown) ends its
/// tasks.
#[derive(Clone)]
pub(crate) struct GroupCoordinator {
    inner: Arc<Inner>,
}

struct Inner {
    config: GroupConfig,
    metadata: Box<dyn GroupMetadataView>,
    memory: Arc<GroupMemory>,
    runtime: Arc<Runtime<Shard>>,
    outlived: Mutex<LiveGroups>,
}

impl GroupCoordinator {
    /// A coordinator without partitions. Must be called within a tokio runtime.
    #[must_use]
    pub(crate) fn new(
        env: Env,
        config: GroupConfig,
        log: Arc<dyn ReplicatedLog>,
        metadata: impl GroupMetadataView,
    ) -> Self {
        let memory = Arc::new(GroupMemory::default());
        let (of_shard, shared) = (config.clone(), memory.clone());
        let runtime = Runtime::start(
            env,
            log,
            Box::new(move || Shard::new(of_shard.clone(), shared.clone())),
        );
        let metadata = Box::new(metadata);
        let outlived = Mutex::default();
        Self { inner: Arc::new(Inner { config, metadata, memory, runtime, outlived }) }
    }

    /// The partition of `__consumer_offsets` that owns `group_id`; `None`
    /// while the topic does not exist.
    #[cfg(test)]
    pub(crate) fn partition_of(&self, group_id: &str) -> Option<i32> {
        self.inner.partition_count().map(|count| partition_for(group_id, count))
    }

    /// What groups and offsets hold; cheap to read.
    #[must_use]
    pub(crate) fn memory(&self) -> &Arc<GroupMemory> {
        &self.inner.memory
    }

    /// How many groups, members and offsets there are; one short pass over the groups.
    #[must_use]
    pub(crate) fn figures(&self) -> GroupFigures {
        let sum = |a: GroupFigures, b: GroupFigures| GroupFigures {
            empty: a.empty.saturating_add(b.empty),
            preparing_rebalance: a.preparing_rebalance.saturating_add(b.preparing_rebalance),
            completing_rebalance: a.completing_rebalance.saturating_add(b.completing_rebalance),
            stable: a.stable.saturating_add(b.stable),
            members: a.members.saturating_add(b.members),
            offsets: a.offsets.saturating_add(b.offsets),
        };
        self.inner
            .runtime
            .each(|shard| shard.figures())
            .into_iter()
            .fold(GroupFigures::default(), sum)
    }

    /// Shows every group and how many members it has to `each`. Requests to a partition wait while
    /// it is shown, so `each` must be quick.
    pub(crate) fn each_group(&self, mut each: impl FnMut(&str, usize)) {
        self.inner.runtime.each(|shard| shard.each_group(&mut each));
    }

    /// Shows every committed offset to `each`, to compute lags from. Requests to a partition wait
    /// while it is shown, so `each` must be quick.
    pub(crate) fn each_offset(&self, mut each: impl FnMut(&OffsetKey, &OffsetAndMetadata)) {
        self.inner.runtime.each(|shard| shard.each_offset(&mut each));
    }

    /// This broker has become leader of `partition`: reads its groups, after others that wait for
    /// it, and begins to serve them. From the call on until then they answer
    /// COORDINATOR_LOAD_IN_PROGRESS. Does nothing if the partition is loaded or being loaded.
    /// Those of `live` that belong to it go on in it, unless it has groups already.
    ///
    /// # Errors
    /// The log could not be read. It is tried again until that succeeds or [`unload`](Self::unload)
    /// is called.
    pub(crate) fn load(
        &self,
        partition: i32,
        live: &LiveGroups,
    ) -> impl Future<Output = Result<(), AppendError>> + Send + use<> {
        let is_here = |record: &&Record| {
            let Record::Group { group, .. } = record else { return false };
            self.inner.owner_of(group) == Ok(partition)
        };
        let is_new = Arc::new(OnceLock::new());
        let go_on = |record: &Record| -> Event<Shard> {
            let (record, is_new) = (record.clone(), is_new.clone());
            Arc::new(move |shard, now| match is_new.get_or_init(|| shard.has_no_groups()) {
                true => shard.go_on(&record, now),
                false => Output::default(),
            })
        };
        let live = live.0.iter().filter(is_here).map(go_on).collect();
        self.inner.runtime.load(partition, live)
    }

    /// Keeps the groups that live now, whose topic goes: they can go on in the next one. Bounded as
    /// the groups are.
    pub(crate) fn keep_live(&self) {
        let of_each = self.inner.runtime.each(|shard| shard.live_groups());
        *lock(&self.inner.outlived) = LiveGroups(of_each.into_iter().flatten().collect());
    }

    /// Those that were kept last.
    pub(crate) fn take_live(&self) -> LiveGroups {
        std::mem::take(&mut lock(&self.inner.outlived))
    }

    /// This broker no longer leads `partition`: whoever waits is answered NOT_COORDINATOR.
    pub(crate) async fn unload(&self, partition: i32) {
        self.inner.runtime.unload(partition).await;
    }

    /// Topics were deleted: no group keeps an offset of them, also not one that is being committed
    /// now. Metadata must not know them any more when this is called; it may know others of their
    /// names.
    pub(crate) fn topics_deleted(&self, topics: Vec<(Arc<str>, TopicId)>) {
        let forget: Event<Shard> = Arc::new(move |shard, now| shard.forget_topics(&topics, now));
        self.inner.runtime.tell_all(&forget);
    }

    /// As [`GroupCoordinator::topics_deleted`], for partitions that are being loaded.
    pub(crate) fn topics_removed(&self, removed: HashSet<TopicId>) {
        let forget: Event<Shard> = Arc::new(move |shard, now| shard.forget_removed(&removed, now));
        self.inner.runtime.tell_all(&forget);
    }

    /// Ends everything; later requests are answered COORDINATOR_NOT_AVAILABLE. What was appended is
    /// in the log.
    pub(crate) async fn shutdown(&self) {
        self.inner.runtime.shutdown().await;
    }
}

impl Inner {
    /// The number of partitions of `__consumer_offsets`; `None` while it does not exist.
    fn partition_count(&self) -> Option<i32> {
        self.metadata.partitions_of(GROUP_METADATA_TOPIC)
    }

    fn exists(&self, topic: &str, partition: i32) -> bool {
        partition >= 0 && self.metadata.partitions_of(topic).is_some_and(|count| partition < count)
    }

    fn owner_of(&self, group_id: &str) -> Result<i32, ErrorCode> {
        if self.runtime.is_shut_down() {
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        let count = self.partition_count().ok_or(ErrorCode::CoordinatorNotAvailable)?;
        Ok(partition_for(group_id, count))
    }

    /// Runs `read` on the shard that owns `group_id`, at once.
    fn with_shard<T>(
        &self,
        group_id: &str,
        read: impl FnOnce(&mut Shard, Now) -> T,
    ) -> Result<T, ErrorCode> {
        self.runtime.with_machine(self.owner_of(group_id)?, read)
    }

    /// Gives an event to the shard that owns `group_id`. [`Asked::answer`] waits for the answer it
    /// leads to; a request that may wait long is dropped before, because it keeps its whole frame
    /// in memory.
    async fn ask(
        &self,
        group_id: &str,
        event: impl FnOnce(&mut Shard, ReplyId, Now) -> Output,
    ) -> Asked<Reply> {
        match self.owner_of(group_id) {
            Ok(owner) => self.runtime.ask(owner, event).await,
            Err(error) => Asked::refused(error),
        }
    }

    /// Gives an event to the shard that owns `group_id` and waits for the answer it leads to.
    ///
    /// # Errors
    /// This broker does not serve the group, or ceased to before there was an answer.
    async fn request(
        &self,
        group_id: &str,
        event: impl FnOnce(&mut Shard, ReplyId, Now) -> Output,
    ) -> Result<Reply, ErrorCode> {
        self.ask(group_id, event).await.answer().await
    }
}

/// A set of lower-case filter strings, as ListGroups compares them.
fn lower_case(filters: &[kafka_protocol::protocol::StrBytes]) -> BTreeSet<String> {
    filters.iter().map(|filter| filter.trim().to_lowercase()).gather()
}
