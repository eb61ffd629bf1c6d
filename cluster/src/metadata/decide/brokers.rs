//! Brokers that come and go, and what the cluster as a whole hands out once.

use std::collections::{BTreeMap, BTreeSet};

use letterbox_env::Gather;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{BrokerId, ProducerId, TopicId, encode_uuid};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::change::{Change, changed};
use super::{Context, Decide, Decision, Draft, ItemResult};
use crate::metadata::features::{FEATURE, Levels, Release};
use crate::metadata::record::{
    BrokerFenceRecord, ClusterIdRecord, FeatureRecord, ProducerIdsRecord,
};
use crate::metadata::{
    ApiError, BrokerRegistration, Endpoint, MetadataImage, MetadataRecord, PartitionState, Secret,
    Stamp, Topic,
};

/// Producer ids are handed out in blocks of this many (Kafka's number).
pub const PRODUCER_ID_BLOCK_LEN: i32 = 1000;

/// States of lost log directories that are remembered of a broker.
const GONE_MAX: usize = 16;

/// A broker has started: it registers, unfenced, and takes the lead of the partitions that wait for
/// it.
///
/// A log counts only in a log directory that it was registered with, in the state that the metadata
/// know. In any other one it is lost, whatever is found there: the replica leaves ISR and ELR, and is
/// copied anew where another one has everything. Where none has, the log stays out of use until a
/// person accepts the loss, or the directory is back. A broker that comes with none of its directories
/// is refused while it is not fenced: unlike one of these, whose lock a process has alone, others do
/// not prove that the process of before has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterBroker {
    /// Its id.
    pub id: BrokerId,
    /// Its log directories that are in use, by `directory.id`. Without any, and without absent ones,
    /// it is of an earlier version, and is refused.
    #[serde(default)]
    pub directories: BTreeMap<Uuid, Stamp>,
    /// Those that it remembers, and that cannot be used now: nothing else stands for their logs.
    #[serde(default)]
    pub absent: BTreeSet<Uuid>,
    /// Its advertised listeners.
    pub endpoints: Vec<Endpoint>,
    /// Its rack.
    pub rack: Option<String>,
    /// Whether it ended cleanly last time. If not, it may have lost records that were not yet
    /// synced: the partitions that it leads get a new leader epoch so that readers can tell
    /// (KIP-320), and it leaves the ISRs and ELRs in which it counted what was not synced (KIP-966).
    /// Where it was the last one there, it leads again, and the election says what that is.
    pub clean_start: bool,
    /// `log.flush.on.ack` as this broker's file has it: whether it counts only what is on its disk.
    /// An earlier version does not say, and then it counts as false.
    #[serde(default)]
    pub flushes_on_ack: bool,
    /// Its logs, as this start found them. An earlier version does not say, and then they count as
    /// whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<FoundLogs>,
    /// `min.insync.replicas` as this broker's file has it. An earlier version does not say, and
    /// then it counts as 1.
    #[serde(default = "one")]
    pub min_insync_replicas: usize,
    /// See [`BrokerRegistration::session_ms`].
    #[serde(default)]
    pub session_ms: u64,
    /// The epoch of the registration that this one replaces, 0 when there is none: it is refused
    /// (STALE_BROKER_EPOCH) when there is another one by then, so that one that was long on its way
    /// takes nothing from a later start. An earlier version does not say, and replaces any.
    #[serde(default)]
    pub replaces: Option<i64>,
    /// What it runs; it is refused where that does not support a level that the cluster has
    /// finalized.
    #[serde(default)]
    pub release: Release,
}

/// The logs that a broker has found at its start. A partition whose log it does not find now is lost
/// here, with all its records: its log directory was lost and given up, say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundLogs {
    /// Those that are open, by the `directory.id` of their log directory.
    pub open: BTreeMap<Uuid, OpenLogs>,
    /// Those that are there and out of use: the partitions of each topic.
    pub offline: BTreeMap<TopicId, BTreeSet<i32>>,
    /// The same of topics of which only the name is known.
    pub offline_by_name: BTreeMap<String, BTreeSet<i32>>,
    /// A log directory could not be read: what is nowhere else may lie in it.
    pub has_unread: bool,
    /// Every log directory that was read has had the list of its partitions: one that is nowhere was
    /// never made, or was in another log directory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_lists: bool,
    /// The log directories whose loss a person has accepted.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub given_up: BTreeSet<Uuid>,
}

/// The logs of one log directory that are open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenLogs {
    /// Those that are whole: the partitions of each topic.
    pub whole: BTreeMap<TopicId, BTreeSet<i32>>,
    /// Those that are open and may lack what counted, whatever `flush.on.ack` says now: it was
    /// false before, or a person has accepted a loss.
    pub may_have_lost: BTreeMap<TopicId, BTreeSet<i32>>,
    /// Those of `may_have_lost` that lack more than their end: they go on behind records that are
    /// missing within them, or have none.
    pub lacks_records: BTreeMap<TopicId, BTreeSet<i32>>,
}

/// What has become of one log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Whole,
    /// It may lack its end.
    Shortened,
    Offline,
    /// It lacks records within it, because a person has accepted a loss.
    Lacking,
    /// It is nowhere.
    Nowhere,
}

/// What a log directory is to the registration before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// One of its directories, in the state of then.
    Known,
    /// One that was lost before, in the state of then.
    Back,
    /// Another one, or an older state.
    Other,
}

/// The log directories of a registration, and what has become of those of the one before.
struct Directories {
    standing: BTreeMap<Uuid, Standing>,
    /// None is known of those that the broker was registered with.
    are_other: bool,
    /// The states that were lost and that nobody has given up, the last ones last.
    gone: Vec<(Uuid, Uuid)>,
    /// Some were lost, and a person has given up all of them.
    are_given_up: bool,
    /// One that was registered before is not there, and nobody has accepted that.
    lack_one: bool,
    /// All that were registered before are there, in the state of then.
    are_all_there: bool,
    /// The broker was registered.
    were_registered: bool,
}

impl Directories {
    fn of(registration: &RegisterBroker, present: Option<&BrokerRegistration>) -> Self {
        let RegisterBroker { directories, absent, found, .. } = registration;
        let known = present.filter(|one| !one.directories.is_empty() && !directories.is_empty());
        let standing = |(id, stamp): (&Uuid, &Stamp)| {
            let is_known = known.is_none_or(|known| {
                known.directories.get(id).is_some_and(|known| stamp.follows(known))
            });
            let is_it = |(of, run): &(Uuid, Uuid)| of == id && stamp.is_of(*run);
            let is_back = || known.is_some_and(|known| known.gone.iter().any(is_it));
            let standing = if is_known {
                Standing::Known
            } else if is_back() {
                Standing::Back
            } else {
                Standing::Other
            };
            (*id, standing)
        };
        let standing: BTreeMap<_, _> = directories.iter().map(standing).gather();
        let are_other = known.is_some() && !standing.values().any(|one| *one == Standing::Known);
        let is_there = |id: &Uuid| standing.get(id) == Some(&Standing::Known);
        let are_all_there = known.is_some_and(|known| known.directories.keys().all(is_there));
        let lost_now = known.into_iter().flat_map(|known| &known.directories);
        let lost_now = lost_now
            .filter(|(id, stamp)| !is_there(id) && !absent.contains(id) && stamp.before.is_none());
        let lost_now: Vec<_> = lost_now.map(|(id, stamp)| (*id, stamp.run)).collect();
        let mut gone = known.map_or(Vec::new(), |known| known.gone.clone());
        gone.retain(|(id, run)| !directories.get(id).is_some_and(|stamp| stamp.is_of(*run)));
        gone.extend(&lost_now);
        let had_gone = !gone.is_empty();
        let is_given_up = |id: &Uuid| found.as_ref().is_some_and(|all| all.given_up.contains(id));
        gone.retain(|(id, _)| !is_given_up(id));
        gone.drain(..gone.len().saturating_sub(GONE_MAX));
        Self {
            standing,
            are_other,
            are_given_up: had_gone && gone.is_empty(),
            lack_one: lost_now.iter().any(|(id, _)| !is_given_up(id)),
            are_all_there,
            gone,
            were_registered: present.is_some(),
        }
    }

    /// What is registered: a directory that has other logs than those that count is told apart until
    /// the broker has dealt with them.
    fn registered(
        &self,
        registration: &RegisterBroker,
        present: Option<&BrokerRegistration>,
    ) -> BTreeMap<Uuid, Stamp> {
        let RegisterBroker { directories, absent, found, .. } = registration;
        let has_logs = |id: &Uuid| {
            let open = found.as_ref().and_then(|found| found.open.get(id));
            open.is_some_and(|open| *open != OpenLogs::default())
        };
        let settled = |(id, stamp): (&Uuid, &Stamp)| {
            let is_other = self.standing.get(id) == Some(&Standing::Other) && has_logs(id);
            (*id, Stamp { before: stamp.before.filter(|_| is_other), ..*stamp })
        };
        let before = present.into_iter().flat_map(|present| &present.directories);
        let kept = before.filter(|(id, _)| absent.contains(id) || directories.is_empty());
        let mut all: BTreeMap<_, _> = kept.map(|(id, stamp)| (*id, *stamp)).gather();
        if present.is_some_and(|present| present.directories.is_empty()) {
            // They have seen no run that an earlier version knew.
            all.extend(absent.iter().map(|id| (*id, Stamp::default())));
        }
        all.extend(directories.iter().map(settled));
        all
    }
}

impl FoundLogs {
    /// What has become of a log, and the log directory that has it, if it is open.
    fn of(&self, topic: &Topic, index: i32) -> (Found, Option<Uuid>) {
        let is_in = |logs: &BTreeMap<TopicId, BTreeSet<i32>>| {
            logs.get(&topic.id).is_some_and(|partitions| partitions.contains(&index))
        };
        let of_directory = |(id, logs): (&Uuid, &OpenLogs)| {
            let found = if is_in(&logs.lacks_records) {
                Found::Lacking
            } else if is_in(&logs.may_have_lost) {
                Found::Shortened
            } else if is_in(&logs.whole) {
                Found::Whole
            } else {
                return None;
            };
            Some((found, Some(*id)))
        };
        let is_named = || {
            let partitions = self.offline_by_name.get(&*topic.name);
            partitions.is_some_and(|partitions| partitions.contains(&index))
        };
        self.open.iter().find_map(of_directory).unwrap_or_else(|| {
            let is_offline = self.has_unread || is_in(&self.offline) || is_named();
            (if is_offline { Found::Offline } else { Found::Nowhere }, None)
        })
    }
}

fn one() -> usize {
    1
}

impl Decide for RegisterBroker {
    /// The epoch of this start (see [`BrokerRegistration::epoch`]).
    type Outcome = ItemResult<i64>;

    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome> {
        let mut draft = Draft::new(image);
        let outcome = self.register(&mut draft, context);
        draft.decided(outcome)
    }
}

impl RegisterBroker {
    fn register(&self, draft: &mut Draft, context: &Context<'_>) -> ItemResult<i64> {
        self.check_release(&draft.image)?;
        let present = draft.image.brokers.get(&self.id).cloned();
        let directories = Directories::of(self, present.as_deref());
        if let Some(present) = present.as_ref().filter(|one| directories.are_other && !one.fenced) {
            let ids = |of: &BTreeMap<Uuid, Stamp>| {
                of.keys().map(|id| encode_uuid(*id)).collect::<Vec<_>>().join(",")
            };
            let message = format!(
                "Broker {} is registered with directory.id {} and is not fenced; the broker that \
                registers now has other log directories, or an older state of them (directory.id \
                {}). It is taken when nothing has been heard of the first one for \
                broker.session.timeout.ms. If both run, give one of them its own node.id.",
                self.id,
                ids(&present.directories),
                ids(&self.directories)
            );
            return Err(ApiError::new(ErrorCode::DuplicateBrokerRegistration, message));
        }
        let next_index = i64::try_from(draft.image.applied_index).unwrap_or(i64::MAX);
        let present_epoch = present.as_ref().map_or(0, |present| present.epoch);
        if let Some(replaces) = self.replaces.filter(|replaces| *replaces != present_epoch) {
            let message = format!(
                "Broker {} is registered with epoch {present_epoch}, and this registration \
                 replaces epoch {replaces}.",
                self.id
            );
            return Err(ApiError::new(ErrorCode::StaleBrokerEpoch, message));
        }
        let epoch = next_index.max(present_epoch).saturating_add(1);
        let registration = BrokerRegistration {
            id: self.id,
            directories: directories.registered(self, present.as_deref()),
            gone: directories.gone.clone(),
            epoch,
            endpoints: self.endpoints.clone(),
            rack: self.rack.clone(),
            fenced: false,
            stopping: false,
            min_insync_replicas: self.min_insync_replicas,
            session_ms: self.session_ms,
            secret: Some(Secret::draw(context.random)),
            release: self.release.clone(),
        };
        draft.add(vec![MetadataRecord::Broker(registration)])?;
        let image = &draft.image;
        let changes = changed(image.partitions_of(self.id), |topic, index, state| {
            let change = Change::of(image, context.rules, topic, state);
            self.take_log(change, &directories, image, topic, index, state).build()
        });
        draft.add(changes)?;
        self.forget_gone(draft)?;
        Ok(epoch)
    }

    /// Directories that were lost are remembered only while something is missing because of them: a
    /// later loss is accepted by its own id.
    fn forget_gone(&self, draft: &mut Draft) -> ItemResult<()> {
        let Some(own) = draft.image.brokers.get(&self.id).filter(|own| !own.gone.is_empty()) else {
            return Ok(());
        };
        let is_missing = |image: &MetadataImage| {
            image.partitions_of(self.id).any(|(_, _, state)| {
                state.is_lost_on(self.id) && state.isr.is_empty() && state.elr.is_empty()
            })
        };
        if is_missing(&draft.image) {
            return Ok(());
        }
        let record = BrokerRegistration { gone: Vec::new(), ..(**own).clone() };
        draft.add(vec![MetadataRecord::Broker(record)])
    }

    /// Whether what it runs may take part.
    fn check_release(&self, image: &MetadataImage) -> ItemResult<()> {
        let Self { id, release, .. } = self;
        let refuse = |why: String| Err(ApiError::new(ErrorCode::UnsupportedVersion, why));
        if self.directories.is_empty() && self.absent.is_empty() {
            return refuse(format!(
                "Unable to register broker {id} because {release} does not say its log \
                 directories. Start it with the release of the others."
            ));
        }
        let finalized = image.features.keys().map(String::as_str).chain([FEATURE]);
        for feature in finalized {
            let (level, levels) = (image.level(feature), release.levels(feature));
            if !levels.has(level) {
                let Levels { min, max } = levels;
                return refuse(format!(
                    "Unable to register broker {id} because {release} does not support finalized \
                     version {level} of {feature}. The broker wants a version between {min} and \
                     {max}, inclusive."
                ));
            }
        }
        Ok(())
    }

    /// What has become of the log of one partition.
    fn take_log<'a>(
        &self,
        mut change: Change<'a>,
        directories: &Directories,
        image: &MetadataImage,
        topic: &Topic,
        index: i32,
        state: &PartitionState,
    ) -> Change<'a> {
        let found = self.found.as_ref().map(|logs| logs.of(topic, index));
        let (mut found, directory) = found.map_or((None, None), |(found, id)| (Some(found), id));
        // It was never made, and nothing was committed as long as it counted without a log.
        let has_lists = self.found.as_ref().is_some_and(|found| found.has_lists);
        if found == Some(Found::Nowhere)
            && has_lists
            && directories.are_all_there
            && state.has_all(self.id)
        {
            found = Some(Found::Whole);
        }
        let was_lost = state.is_lost_on(self.id);
        let is_other = directory.map_or(directories.are_other, |id| {
            match directories.standing.get(&id) {
                Some(Standing::Known) => false,
                // What was lost with it has been nowhere else since.
                Some(Standing::Back) => !was_lost,
                Some(Standing::Other) | None => true,
            }
        });
        let may_lack = is_other
            || matches!(found, Some(Found::Shortened | Found::Lacking | Found::Nowhere))
            || !self.clean_start && !self.has_synced(image, topic);
        if may_lack {
            change = change.shortened(self.id);
        } else if !self.clean_start && state.leader == Some(self.id) {
            change = change.renewed();
        }
        // A person did not say that what is not here may be lost, and perhaps it is nowhere else.
        // Then it is waited for: nobody who has less leads by itself.
        let is_missed = if !directories.were_registered {
            found.is_none_or(|found| found == Found::Nowhere)
        } else if is_other {
            // Where nothing is missing, a person has moved the only log there is.
            directory.is_none() || !directories.gone.is_empty() || state.replicas.len() > 1
        } else {
            found == Some(Found::Nowhere) && (was_lost || directories.lack_one)
        };
        let is_missed = is_missed && !directories.are_given_up && !change.is_elsewhere();
        let is_lost = is_other || matches!(found, Some(Found::Lacking | Found::Nowhere));
        if is_lost && !is_missed {
            change = change.lost(self.id);
        }
        // Alone it stays the leader: nobody else could be.
        let may_tell = state.replicas.len() > 1 || was_lost;
        let is_offline = found == Some(Found::Offline) && may_tell || is_missed;
        if found.is_some() || is_offline { change.with_log(self.id, is_offline) } else { change }
    }

    /// Whether this broker surely has on its disk what it counted in partitions of `topic`.
    fn has_synced(&self, image: &MetadataImage, topic: &Topic) -> bool {
        let of_broker = image.broker_configs.get(&self.id);
        let set = topic
            .configs
            .get("flush.on.ack")
            .or_else(|| of_broker.and_then(|configs| configs.get("log.flush.on.ack")))
            .or_else(|| image.cluster_configs.get("log.flush.on.ack"));
        set.map_or(self.flushes_on_ack, |value| value.trim().eq_ignore_ascii_case("true"))
    }
}

/// Fences brokers or lifts their fence.
///
/// A fenced broker leaves every ISR and leads nothing; the lead goes to the first live replica of
/// the ISR in the order of the assignment, or to nobody. Where that makes the ISR too small it
/// stays eligible (KIP-966). Brokers that die together are fenced together: one after the other,
/// the first would leave an ISR that is large enough without it, and not be eligible; and a lead
/// could go to one that is dead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceBrokers {
    /// Which brokers, and which start of each: a fence that is meant for an earlier one does
    /// nothing.
    pub brokers: Vec<(BrokerId, i64)>,
    /// Whether they shall be fenced.
    pub fenced: bool,
}

impl Decide for FenceBrokers {
    /// In the order of the operation.
    type Outcome = Vec<ItemResult<()>>;

    fn decide(&self, image: &MetadataImage, context: &Context<'_>) -> Decision<Self::Outcome> {
        let mut draft = Draft::new(image);
        let mut outcome: Vec<_> =
            self.brokers.iter().map(|one| self.fence(*one, &mut draft)).collect();
        if let Err(error) = self.change_partitions(&mut draft, context) {
            outcome.iter_mut().for_each(|of_one| *of_one = Err(error.clone()));
            return Decision { records: Vec::new(), outcome };
        }
        Decision { records: draft.records, outcome }
    }
}

impl FenceBrokers {
    fn fence(&self, (id, epoch): (BrokerId, i64), draft: &mut Draft) -> ItemResult<()> {
        if registered(&draft.image, id, epoch)?.fenced == self.fenced {
            return Ok(());
        }
        let record = BrokerFenceRecord { id, fenced: self.fenced, stopping: false };
        draft.add(vec![MetadataRecord::BrokerFence(record)])
    }

    /// After the brokers: each partition is changed once, with all of them fenced.
    fn change_partitions(&self, draft: &mut Draft, context: &Context<'_>) -> ItemResult<()> {
        let of_record = |record: &MetadataRecord| match record {
            MetadataRecord::BrokerFence(record) => Some(record.id),
            _ => None,
        };
        let changed_brokers: Vec<BrokerId> = draft.records.iter().filter_map(of_record).collect();
        let mut left = BTreeSet::new();
        for id in &changed_brokers {
            let of_it = draft.image.partitions_of(*id);
            left.extend(of_it.map(|(topic, index, _)| (topic.id, index)));
        }
        let image = &draft.image;
        let partitions = left.iter().filter_map(|(id, index)| {
            let topic = image.topic_by_id(id)?;
            Some((topic, *index, topic.partition(*index)?))
        });
        let changes = changed(partitions, |topic, _, state| {
            let change = Change::of(image, context.rules, topic, state);
            let gone = changed_brokers.iter().filter(|_| self.fenced);
            gone.fold(change, |change, id| change.without(*id)).build()
        });
        draft.add(changes)
    }
}

/// The registration of this start of a broker.
pub(super) fn registered(
    image: &MetadataImage,
    id: BrokerId,
    epoch: i64,
) -> ItemResult<&BrokerRegistration> {
    let Some(present) = image.brokers.get(&id) else {
        let message = format!("No broker with id {id} found.");
        return Err(ApiError::new(ErrorCode::BrokerIdNotRegistered, message));
    };
    if present.epoch != epoch {
        let message =
            format!("Broker {id} is registered with epoch {}, not {epoch}.", present.epoch);
        return Err(ApiError::new(ErrorCode::StaleBrokerEpoch, message));
    }
    Ok(present)
}

/// Hands a block of producer ids to a broker. An id is handed out once and never again, also when
/// the broker loses the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocateProducerIds {
    /// The broker that asks.
    pub broker: BrokerId,
}

/// `first_id .. first_id + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerIdBlock {
    /// The first id of the block.
    pub first_id: ProducerId,
    /// How many ids.
    pub len: i32,
}

impl Decide for AllocateProducerIds {
    type Outcome = ItemResult<ProducerIdBlock>;

    fn decide(&self, image: &MetadataImage, _context: &Context<'_>) -> Decision<Self::Outcome> {
        let refuse = |error: ApiError| Decision { records: Vec::new(), outcome: Err(error) };
        if !image.brokers.contains_key(&self.broker) {
            return refuse(ApiError::new(
                ErrorCode::BrokerIdNotRegistered,
                format!("No broker with id {} found.", self.broker),
            ));
        }
        let first_id = image.next_producer_id;
        let Some(next) = first_id.checked_add(i64::from(PRODUCER_ID_BLOCK_LEN)) else {
            return refuse(ApiError::new(
                ErrorCode::UnknownServerError,
                "Exhausted all producerIds.",
            ));
        };
        Decision {
            records: vec![MetadataRecord::ProducerIds(ProducerIdsRecord { next })],
            outcome: Ok(ProducerIdBlock { first_id, len: PRODUCER_ID_BLOCK_LEN }),
        }
    }
}

/// Gives a new cluster its id and the highest level of [`FEATURE`], or confirms that the cluster has
/// this id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetClusterId {
    /// The id, in Kafka's form.
    pub cluster_id: String,
}

impl Decide for SetClusterId {
    type Outcome = ItemResult<()>;

    fn decide(&self, image: &MetadataImage, _context: &Context<'_>) -> Decision<Self::Outcome> {
        match &image.cluster_id {
            None => Decision {
                records: vec![
                    MetadataRecord::ClusterId(ClusterIdRecord {
                        cluster_id: self.cluster_id.clone(),
                    }),
                    MetadataRecord::Feature(FeatureRecord {
                        name: FEATURE.to_owned(),
                        level: Levels::SUPPORTED.max,
                    }),
                ],
                outcome: Ok(()),
            },
            Some(present) if **present == *self.cluster_id => {
                Decision { records: Vec::new(), outcome: Ok(()) }
            }
            Some(present) => Decision {
                records: Vec::new(),
                outcome: Err(ApiError::new(
                    ErrorCode::InconsistentClusterId,
                    format!("The cluster's id is {present}, not {}.", self.cluster_id),
                )),
            },
        }
    }
}
