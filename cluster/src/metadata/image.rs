//! The immutable image of the cluster's metadata.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use letterbox_env::Random;
use letterbox_protocol::model::{BrokerId, LeaderEpoch, ProducerId, TopicId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::entry::Unfinished;
use super::features::Release;
use super::lease::RestartLease;
use super::removed::RemovedTopics;
use super::shared_map::SharedMap;

/// Configuration keys and values as they were set, in the spelling that Kafka gives them.
pub type Configs = BTreeMap<String, String>;

/// Everything the cluster knows about itself at one position of the metadata log.
///
/// Cloning copies pointers of maps and nothing else. What a change of topics costs does not depend
/// on how many topics there are, nor on how many partitions a changed topic has.
///
/// Invariants, kept by [`crate::metadata::apply`]: every topic is found by its name, too; a topic's
/// partitions are numbered from 0 without a gap; a partition is found by each broker that it is
/// assigned to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetadataImage {
    /// The cluster's id, once it has one. Never changes afterwards.
    pub cluster_id: Option<Arc<str>>,
    /// Index of the last entry of the metadata log that this image contains; 0 when there is none.
    pub applied_index: u64,
    /// Every broker that ever registered and was not removed.
    pub brokers: Arc<BTreeMap<BrokerId, Arc<BrokerRegistration>>>,
    pub(crate) topic_ids: SharedMap<Arc<str>, TopicId>,
    pub(crate) topics_by_id: SharedMap<TopicId, Arc<Topic>>,
    /// The partitions that each broker has a replica of: what a change of one broker costs does not
    /// depend on how many partitions the others have.
    pub(crate) replicas_by_broker: SharedMap<BrokerId, SharedMap<(TopicId, i32), ()>>,
    /// The topics whose name has another form in metrics, by that form (see [`metric_name`]).
    pub(crate) topics_by_metric_name: SharedMap<Arc<str>, Arc<str>>,
    /// Dynamic configurations of one broker each (not of topics: those are in [`Topic::configs`]).
    pub broker_configs: Arc<BTreeMap<BrokerId, Configs>>,
    /// The dynamic defaults for all brokers (Kafka's broker resource with the empty name).
    pub cluster_configs: Arc<Configs>,
    /// Configurations of groups, by group id (KIP-1071's and KIP-848's keys). A group need not be
    /// there to have some.
    pub group_configs: Arc<BTreeMap<String, Configs>>,
    /// The first producer id that was never handed out.
    pub next_producer_id: ProducerId,
    /// Finalized feature levels by name; a feature at level 0 is absent.
    pub features: Arc<BTreeMap<String, i16>>,
    /// Restart leases, by holder.
    pub(crate) leases: Arc<BTreeMap<String, RestartLease>>,
    /// The topics that were removed last.
    pub removed_topics: RemovedTopics,
    /// A decision of which some parts were applied and the last one was not: nothing of it is seen.
    pub(crate) unfinished: Option<Arc<Unfinished>>,
}

impl MetadataImage {
    /// The topic of that name.
    #[must_use]
    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics_by_id.get(self.topic_ids.get(name)?)
    }

    /// The topic of that id.
    #[must_use]
    pub fn topic_by_id(&self, id: &TopicId) -> Option<&Arc<Topic>> {
        self.topics_by_id.get(id)
    }

    /// Every topic, by name.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.topic_ids.values().filter_map(|id| self.topics_by_id.get(id))
    }

    /// How many topics there are.
    #[must_use]
    pub fn topic_count(&self) -> usize {
        self.topics_by_id.len()
    }

    /// The state of one partition.
    #[must_use]
    pub fn partition(&self, topic: &str, partition: i32) -> Option<&PartitionState> {
        self.topic(topic)?.partition(partition)
    }

    /// The partitions that are assigned to `broker`, those of a topic one after the other.
    pub fn partitions_of(
        &self,
        broker: BrokerId,
    ) -> impl Iterator<Item = (&Arc<Topic>, i32, &PartitionState)> {
        let all = self.replicas_by_broker.get(&broker).into_iter().flat_map(SharedMap::iter);
        all.filter_map(|((id, index), ())| {
            let topic = self.topics_by_id.get(id)?;
            Some((topic, *index, topic.partition(*index)?))
        })
    }

    /// Brokers that are registered and not fenced, in order of their ids.
    pub fn live_brokers(&self) -> impl Iterator<Item = (&BrokerId, &Arc<BrokerRegistration>)> {
        self.brokers.iter().filter(|(_, registration)| !registration.fenced)
    }

    /// Whether `broker` is registered and not fenced.
    #[must_use]
    pub fn is_live(&self, broker: BrokerId) -> bool {
        self.brokers.get(&broker).is_some_and(|registration| !registration.fenced)
    }

    /// Whether `broker` is live and not about to stop.
    #[must_use]
    pub fn is_serving(&self, broker: BrokerId) -> bool {
        self.brokers.get(&broker).is_some_and(|one| !one.fenced && !one.stopping)
    }

    /// The brokers that are live and not about to stop, in order of their ids.
    pub fn serving_brokers(&self) -> impl Iterator<Item = BrokerId> {
        self.live_brokers().filter(|(_, one)| !one.stopping).map(|(id, _)| *id)
    }

    /// The partitions that move, by topic (ListPartitionReassignments, KIP-455). Looks at all there
    /// are.
    pub fn reassignments(&self) -> impl Iterator<Item = (&Arc<Topic>, i32, &PartitionState)> {
        self.topics().flat_map(Topic::all).filter(|(_, _, state)| state.is_reassigning())
    }

    /// The dynamic configurations set on `resource`; `None` when the resource does not exist. A
    /// broker exists here when it is registered or has configurations of its own.
    #[must_use]
    pub fn configs(&self, resource: &ConfigResource) -> Option<&Configs> {
        static NONE: Configs = Configs::new();
        match resource {
            ConfigResource::Topic(name) => self.topic(name).map(|topic| &topic.configs),
            ConfigResource::Broker(id) => self
                .broker_configs
                .get(id)
                .or_else(|| self.brokers.contains_key(id).then_some(&NONE)),
            ConfigResource::Cluster => Some(&self.cluster_configs),
            ConfigResource::Group(id) => Some(self.group_configs.get(id).unwrap_or(&NONE)),
        }
    }
}

/// The form that metrics give a topic's name: there `.` and `_` are the same. `None` when it is the
/// name itself.
pub(crate) fn metric_name(name: &str) -> Option<String> {
    name.contains(['.', '_']).then(|| name.replace('.', "_"))
}

/// What configurations can be set on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConfigResource {
    /// A topic, by name.
    Topic(String),
    /// One broker.
    Broker(BrokerId),
    /// The defaults of all brokers.
    Cluster,
    /// A group, by id. Written down as a record of its own kind.
    Group(String),
}

/// A broker as it registered itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerRegistration {
    /// The broker's id.
    pub id: BrokerId,
    /// Its log directories by `directory.id`, and the state of each that counts; also those that it
    /// remembers and that are not in use now. Empty when a version without them wrote it: nothing is
    /// known of them then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub directories: BTreeMap<Uuid, Stamp>,
    /// The states of log directories that were lost, and have not come back, the last ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<(Uuid, Uuid)>,
    /// Which start of the broker this is: rises with every registration, and is at most the index
    /// of it in the metadata log (Kafka's broker epoch). 0 when a version without it wrote it.
    #[serde(default)]
    pub epoch: i64,
    /// Where clients and other brokers reach it, by listener.
    pub endpoints: Vec<Endpoint>,
    /// `broker.rack`.
    pub rack: Option<String>,
    /// Whether it is kept from leading partitions and from being assigned new ones.
    pub fenced: bool,
    /// Whether it is about to stop (KIP-841): until its next registration it comes into no ISR, and
    /// leads only where nobody else could.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopping: bool,
    /// `min.insync.replicas` as the broker's file has it: what its partitions go by when nothing is
    /// set for their topic, the broker or the cluster. 1 when a version without it wrote it.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub min_insync_replicas: usize,
    /// For how long it leads after it has registered, or an active controller has answered it, at
    /// most: its `broker.session.timeout.ms`. 0 when a version without it wrote it.
    #[serde(default)]
    pub session_ms: u64,
    /// What the broker proves by that it is this registration. `None` when a version without it
    /// wrote it: nobody can then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// What it runs, and which levels of features that supports.
    #[serde(default, skip_serializing_if = "Release::is_unknown")]
    pub release: Release,
}

/// Which state of a log directory it is: an older one, a copy that was put back say, has another run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Drawn by each start of a broker among several; nil in a directory that has seen none.
    pub run: Uuid,
    /// In a directory and a registration: the run before, until it is known that this one is
    /// registered. In the metadata: the directory came with logs that do not count, and that one,
    /// and has not been settled since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Uuid>,
}

impl Stamp {
    /// Whether a directory with this stamp is in the state of the run `run`. Its registration may
    /// not have been taken.
    pub(super) fn is_of(&self, run: Uuid) -> bool {
        self.run == run || self.before == Some(run)
    }

    /// Whether the logs of a directory with this stamp count where the metadata know `known`.
    pub(super) fn follows(&self, known: &Self) -> bool {
        let is_settled = known.before.is_none() || self.before != known.before;
        self.is_of(known.run) && is_settled
    }
}

/// Drawn for each registration. It stands in the metadata log and nowhere else, so that who knows
/// it reads that log: no client does.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(Uuid);

impl Secret {
    pub(super) fn draw(random: &dyn Random) -> Self {
        let mut bytes = [0; 16];
        random.fill(&mut bytes);
        Self(Uuid::from_bytes(bytes))
    }

    /// As it is sent.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

/// Says nothing: what is printed is read.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

fn one() -> usize {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_one(n: &usize) -> bool {
    *n == 1
}

impl BrokerRegistration {
    /// The endpoint of the listener of that name.
    #[must_use]
    pub fn endpoint(&self, listener: &str) -> Option<&Endpoint> {
        self.endpoints.iter().find(|endpoint| endpoint.listener == listener)
    }
}

/// One advertised listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The listener's name: `PLAINTEXT`, `EXTERNAL`, …
    pub listener: String,
    /// The advertised host.
    pub host: String,
    /// The advertised port.
    pub port: u16,
    /// What is spoken there.
    pub security_protocol: SecurityProtocol,
}

/// Kafka's security protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "the names are Kafka's and say it all")]
pub enum SecurityProtocol {
    Plaintext,
    Ssl,
    SaslPlaintext,
    SaslSsl,
}

/// A topic with its partitions and its own configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// The topic's name.
    pub name: Arc<str>,
    /// The topic's id (KIP-516).
    pub id: TopicId,
    /// The partitions by their indexes.
    pub partitions: SharedMap<i32, PartitionState>,
    /// Configurations set on the topic; what is absent is inherited.
    pub configs: Configs,
}

impl Topic {
    /// The partition of that index.
    #[must_use]
    pub fn partition(&self, index: i32) -> Option<&PartitionState> {
        self.partitions.get(&index)
    }

    /// The partitions with their topic and their indexes, in order.
    pub(crate) fn all(
        self: &Arc<Self>,
    ) -> impl Iterator<Item = (&Arc<Self>, i32, &PartitionState)> {
        self.indexed_partitions().map(move |(index, state)| (self, index, state))
    }

    /// The partitions with their indexes, in order.
    pub fn indexed_partitions(&self) -> impl Iterator<Item = (i32, &PartitionState)> {
        self.partitions.iter().map(|(index, state)| (*index, state))
    }
}

/// Who has and who leads a partition.
///
/// `isr ⊆ replicas \ offline`, `elr ⊆ replicas \ isr`, `offline ⊆ replicas`, `full ⊆ replicas`,
/// `lost ⊆ replicas \ (isr ∪ elr)`, `may_have_more ⊆ replicas \ isr`, and `leader ∈ isr` when there is one. Made by the operations in [`crate::metadata::decide`] and checked by `apply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionState {
    /// The brokers the partition is assigned to; the first is the preferred leader.
    pub replicas: Arc<[BrokerId]>,
    /// The replicas that have every committed record, and that the high watermark waits for. Empty
    /// only while nobody leads.
    pub isr: Arc<[BrokerId]>,
    /// Eligible leader replicas (KIP-966): they have every committed record because they left the
    /// ISR when it was below `min.insync.replicas`, or made it so, and nothing was committed since.
    /// One of them leads when the ISR is empty.
    #[serde(default, skip_serializing_if = "is_none")]
    pub elr: Arc<[BrokerId]>,
    /// Who may have the most, while the ISR is empty (KIP-966): who led last or, where that one's
    /// log is lost, those whose log is not. Leads when nobody is eligible any more, and may lack
    /// what was committed; of several nobody leads by itself, since it is not known who has more.
    #[serde(default, skip_serializing_if = "is_none")]
    pub last_known_elr: Arc<[BrokerId]>,
    /// Replicas that the partition gets and did not have before it began to move (KIP-455). One that
    /// is also among those that go was to come before the move got another target.
    #[serde(default, skip_serializing_if = "is_none")]
    pub adding: Arc<[BrokerId]>,
    /// Replicas that go when all others are in sync.
    #[serde(default, skip_serializing_if = "is_none")]
    pub removing: Arc<[BrokerId]>,
    /// Replicas whose log is out of use although their broker lives (KIP-858): until it says that
    /// they are back they come into no ISR and lead nothing. One may be eligible.
    #[serde(default, skip_serializing_if = "is_none")]
    pub offline: Arc<[BrokerId]>,
    /// Replicas whose log takes no records, for want of space: one is in the ISR only while nobody
    /// in it has room, and leads only where nobody else may.
    #[serde(default, skip_serializing_if = "is_none")]
    pub full: Arc<[BrokerId]>,
    /// Replicas whose log was lost, or lacks records within it because a loss was accepted, until
    /// they are in sync again: one of them leads only when a person asks for it, the topic allows
    /// it, or there is no other replica.
    #[serde(default, skip_serializing_if = "is_none")]
    pub lost: Arc<[BrokerId]>,
    /// Replicas that have not been in sync since a leader was elected that may lack committed
    /// records. Of one a log that lacks records within it is set aside, not emptied, before it
    /// follows; and no move takes it away, unless its broker is unregistered.
    #[serde(default, skip_serializing_if = "is_none")]
    pub may_have_more: Arc<[BrokerId]>,
    /// The leader; `None` while nobody who has every committed record is alive.
    pub leader: Option<BrokerId>,
    /// Goes up by one when the leader changes, or may have lost its tail, or when a replica is taken
    /// away.
    pub leader_epoch: LeaderEpoch,
    /// Goes up by one with every change of this state (KIP-497).
    pub partition_epoch: i32,
    /// How this leader epoch began.
    #[serde(default, skip_serializing_if = "Election::is_clean")]
    pub election: Election,
}

impl PartitionState {
    /// How many replicas must be in sync for a record to be committed: `min.insync.replicas`, but
    /// never more than there are without those that a move adds.
    #[must_use]
    pub fn required_in_sync(&self, min_insync: usize) -> usize {
        min_insync.min(self.replicas.len().saturating_sub(self.adding.len())).max(1)
    }

    /// Whether that replica is known to have every committed record.
    #[must_use]
    pub fn has_all(&self, id: BrokerId) -> bool {
        self.isr.contains(&id) || self.elr.contains(&id)
    }

    /// Whether the log of that replica is out of use and does not count for anything: where no
    /// other one has every committed record it was lost with its disk, and nobody has accepted it.
    #[must_use]
    pub fn is_lost_on(&self, id: BrokerId) -> bool {
        self.offline.contains(&id) && !self.has_all(id)
    }

    /// Whether it is not known which of several replicas has the most, and nobody is known to have
    /// everything: a person elects one, or `unclean.leader.election.enable=true` does.
    #[must_use]
    pub fn waits_for_a_person(&self) -> bool {
        self.isr.is_empty() && self.elr.is_empty() && self.last_known_elr.len() > 1
    }

    /// Whether its replicas move.
    #[must_use]
    pub fn is_reassigning(&self) -> bool {
        !self.adding.is_empty() || !self.removing.is_empty()
    }

    /// The replicas that it had before it began to move, and has again if the move is given up.
    #[must_use]
    pub fn original_replicas(&self) -> Vec<BrokerId> {
        self.replicas.iter().copied().filter(|id| !self.adding.contains(id)).collect()
    }
}

fn is_none(ids: &Arc<[BrokerId]>) -> bool {
    ids.is_empty()
}

/// How the leader of a leader epoch came to lead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Election {
    /// It has every committed record.
    #[default]
    Clean,
    /// Nobody was known to have every committed record, and nobody was known to have more than it:
    /// it led last, before it lost what was not yet on its disk (KIP-966), or all other replicas
    /// have lost their logs, or there are none.
    LastKnown,
    /// Nobody was known to have every committed record, and the topic allows such a leader
    /// (`unclean.leader.election.enable`) or somebody asked for one.
    Unclean,
}

impl Election {
    /// Whether nothing that was committed is lost by it.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        *self == Self::Clean
    }
}
