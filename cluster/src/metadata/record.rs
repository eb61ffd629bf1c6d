//! The records of the metadata log and how they are written down.
//!
//! A record is a JSON object (see `envelope`); a batch is an array of them.
//! JSON and not a packed binary form, because these records are few (metadata changes, not data),
//! because a field that a reader does not know is tolerated by construction, and because a person
//! can read a damaged log with `strings`. Framing, checksums and order are the log's business
//! (`crate::quorum`), not this module's.
//!
//! Two rules for change beside those of the envelope, which hold across a rolling upgrade:
//! - An older reader stops at a record of a newer version rather than go on with an image that
//!   differs from the others'.
//! - Only a record marked `"i": true` (ignorable: it carries no state that anybody else's record
//!   builds on) may be skipped by a reader that does not know it.

use letterbox_protocol::model::{BrokerId, ProducerId, TopicId};
use serde::{Deserialize, Serialize};

use super::entry::Unfinished;
pub use super::envelope::{DecodeError, Subject};
use super::envelope::{Envelope, kinds};
use super::features::FIRST;
use super::image::{BrokerRegistration, ConfigResource, PartitionState};
use super::lease::RestartLease;
pub use super::removed::RemovedTopicsRecord;

/// One change of the metadata image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataRecord {
    /// Gives the cluster its id, once.
    ClusterId(ClusterIdRecord),
    /// Adds a broker or replaces its registration.
    Broker(BrokerRegistration),
    /// Fences or unfences a registered broker.
    BrokerFence(BrokerFenceRecord),
    /// Removes the registration of a broker.
    RemoveBroker(RemoveBrokerRecord),
    /// Adds a topic without partitions.
    Topic(TopicRecord),
    /// Adds the next partition of a topic or replaces the state of one that is there.
    Partition(PartitionRecord),
    /// Removes a topic with its partitions and configurations.
    RemoveTopic(RemoveTopicRecord),
    /// Sets or removes one configuration.
    Config(ConfigRecord),
    /// Sets or removes one configuration of a group.
    GroupConfig(GroupConfigRecord),
    /// Moves the first producer id that was never handed out forward.
    ProducerIds(ProducerIdsRecord),
    /// Finalizes the level of a feature; 0 removes it.
    Feature(FeatureRecord),
    /// Grants a restart lease, in place of the one that its holder had; from level 4 on.
    RestartLease(RestartLease),
    /// Ends a restart lease.
    EndRestartLease(EndRestartLeaseRecord),
    /// The topics that were removed last. Only in snapshots.
    RemovedTopics(RemovedTopicsRecord),
    /// The parts so far of a decision that takes several entries. Only in snapshots that were made
    /// in its middle.
    Unfinished(Unfinished),
}

/// See [`MetadataRecord::ClusterId`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterIdRecord {
    /// The id in Kafka's form: 22 characters of base64url.
    pub cluster_id: String,
}

/// See [`MetadataRecord::BrokerFence`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerFenceRecord {
    /// Which broker.
    pub id: BrokerId,
    /// Whether it is fenced from now on.
    pub fenced: bool,
    /// Whether it is about to stop; if not, that stays as it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopping: bool,
}

/// See [`MetadataRecord::RemoveBroker`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveBrokerRecord {
    /// Which broker.
    pub id: BrokerId,
}

/// See [`MetadataRecord::Topic`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicRecord {
    /// The name; not in use.
    pub name: String,
    /// The id; never used before.
    pub id: TopicId,
}

/// See [`MetadataRecord::Partition`]. Carries the whole state, so that it can be read by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionRecord {
    /// The topic.
    pub topic_id: TopicId,
    /// The partition; at most the number of partitions there are.
    pub partition: i32,
    /// The state, whose fields stand beside the others.
    #[serde(flatten)]
    pub state: PartitionState,
}

impl PartitionRecord {
    /// The oldest version of the record that says all of it: a cluster that makes no use of what
    /// came later can go back to a version that does not know it.
    ///
    /// 0: replicas, ISR, leader and epochs. 1: ELR, last known ELR, election, and replicas that
    /// move; the ISR may be empty. 2: replicas whose log is out of use. 3: replicas whose log was
    /// lost, and several that may have the most. 4: replicas that may have more than their leader.
    /// 5: replicas that have no room.
    fn version(&self) -> u16 {
        let PartitionState { isr, elr, last_known_elr, election, offline, lost, .. } = &self.state;
        if !self.state.full.is_empty() {
            return 5;
        }
        if !self.state.may_have_more.is_empty() {
            return 4;
        }
        if !lost.is_empty() || last_known_elr.len() > 1 {
            return 3;
        }
        if !offline.is_empty() {
            return 2;
        }
        let is_plain = !isr.is_empty()
            && elr.is_empty()
            && last_known_elr.is_empty()
            && election.is_clean()
            && !self.state.is_reassigning();
        if is_plain { 0 } else { 1 }
    }
}

/// See [`MetadataRecord::RemoveTopic`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveTopicRecord {
    /// Which topic.
    pub id: TopicId,
}

/// See [`MetadataRecord::Config`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigRecord {
    /// What it is set on.
    pub resource: ConfigResource,
    /// Kafka's key.
    pub key: String,
    /// The value; `None` removes the key.
    pub value: Option<String>,
}

/// See [`MetadataRecord::GroupConfig`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupConfigRecord {
    /// The group's id.
    pub group: String,
    /// Kafka's key.
    pub key: String,
    /// The value; `None` removes the key.
    pub value: Option<String>,
}

/// See [`MetadataRecord::ProducerIds`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerIdsRecord {
    /// The first id that was never handed out.
    pub next: ProducerId,
}

/// See [`MetadataRecord::Feature`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureRecord {
    /// Kafka's name of the feature.
    pub name: String,
    /// The finalized level.
    pub level: i16,
}

/// See [`MetadataRecord::EndRestartLease`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndRestartLeaseRecord {
    /// Whose.
    pub holder: String,
}

impl FeatureRecord {
    /// 0 is read also by what knows no levels, and would go on whatever the level.
    fn version(&self) -> u16 {
        u16::from(self.level > FIRST)
    }
}

impl MetadataRecord {
    /// The record that sets `key` of `resource`, or removes it.
    #[must_use]
    pub fn config(resource: &ConfigResource, key: &str, value: Option<&str>) -> Self {
        let (key, value) = (key.to_owned(), value.map(str::to_owned));
        match resource {
            ConfigResource::Group(group) => {
                Self::GroupConfig(GroupConfigRecord { group: group.clone(), key, value })
            }
            _ => Self::Config(ConfigRecord { resource: resource.clone(), key, value }),
        }
    }

    fn written(&self) -> Result<Envelope, serde_json::Error> {
        let envelope = self.to_envelope()?;
        Ok(match self {
            Self::Partition(record) => Envelope { v: record.version(), ..envelope },
            Self::Feature(record) => Envelope { v: record.version(), ..envelope },
            // An earlier version sets aside what it could delete.
            Self::RemovedTopics(_) => Envelope { i: true, ..envelope },
            _ => envelope,
        })
    }
}

kinds! {
    MetadataRecord, Subject::Record;
    ClusterId "clusterId" 0,
    Broker "broker" 1,
    BrokerFence "brokerFence" 0,
    RemoveBroker "removeBroker" 0,
    Topic "topic" 0,
    Partition "partition" 5,
    RemoveTopic "removeTopic" 0,
    Config "config" 0,
    GroupConfig "groupConfig" 0,
    ProducerIds "producerIds" 0,
    Feature "feature" 1,
    RestartLease "restartLease" 0,
    EndRestartLease "endRestartLease" 0,
    RemovedTopics "removedTopics" 0,
    Unfinished "unfinished" 0,
}

/// Writes a batch.
///
/// # Errors
/// When a record cannot be written as JSON, which no record of this module is.
pub fn encode(records: &[MetadataRecord]) -> Result<String, serde_json::Error> {
    let envelopes = records.iter().map(MetadataRecord::written).collect::<Result<Vec<_>, _>>()?;
    serde_json::to_string(&envelopes)
}

/// Reads a batch; ignorable records that are not understood are left out.
///
/// # Errors
/// [`DecodeError`]; the caller must stop the node.
pub fn decode(batch: &str) -> Result<Vec<MetadataRecord>, DecodeError> {
    let envelopes: Vec<Envelope> = serde_json::from_str(batch)
        .map_err(|source| DecodeError::Malformed { subject: Subject::Record, source })?;
    let known = |envelope: Envelope| {
        let is_ignorable = envelope.i;
        match MetadataRecord::from_envelope(envelope) {
            Err(DecodeError::FromTheFuture { .. }) if is_ignorable => None,
            record => Some(record),
        }
    };
    envelopes.into_iter().filter_map(known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Election;

    #[test]
    fn field_that_is_not_known_is_tolerated() {
        let records =
            decode(r#"[{"k":"producerIds","v":0,"d":{"next":7,"colour":"blue"},"x":1}]"#).unwrap();
        assert_eq!(records, [MetadataRecord::ProducerIds(ProducerIdsRecord { next: 7 })]);
    }

    #[test]
    fn record_of_a_newer_version_or_kind_is_refused() {
        for batch in
            [r#"[{"k":"producerIds","v":1,"d":{"next":7}}]"#, r#"[{"k":"quota","v":0,"d":{}}]"#]
        {
            assert!(matches!(decode(batch), Err(DecodeError::FromTheFuture { .. })), "{batch}");
        }
    }

    /// What earlier versions wrote is read, and written again as they wrote it as long as nothing in
    /// it is new; so a cluster that makes no use of what is new can go back.
    #[test]
    fn a_partition_is_written_in_the_oldest_version_that_says_it_all() {
        let topic_id = TopicId::from_u128(7);
        let ids = |ids: &[i32]| ids.iter().map(|id| BrokerId(*id)).collect::<Vec<_>>().into();
        let plain = PartitionState {
            replicas: ids(&[1, 2]),
            isr: ids(&[1]),
            leader: Some(BrokerId(1)),
            leader_epoch: 4,
            partition_epoch: 9,
            ..PartitionState::default()
        };
        let eligible = PartitionState { elr: ids(&[2]), ..plain.clone() };
        let nobody = PartitionState {
            isr: ids(&[]),
            last_known_elr: ids(&[1]),
            leader: None,
            ..plain.clone()
        };
        let moves = PartitionState { adding: ids(&[2]), removing: ids(&[1]), ..plain.clone() };
        let unclean = PartitionState { election: Election::Unclean, ..plain.clone() };
        let lost = PartitionState { lost: ids(&[2]), ..plain.clone() };
        let more = PartitionState { may_have_more: ids(&[2]), ..unclean.clone() };
        let full = PartitionState { full: ids(&[2]), ..plain.clone() };
        for (state, written) in [
            (
                plain,
                r#"[{"k":"partition","v":0,"d":{"isr":[1],"leader":1,"leader_epoch":4,"partition":3,"partition_epoch":9,"replicas":[1,2],"topic_id":"00000000-0000-0000-0000-000000000007"}}]"#,
            ),
            (
                eligible,
                r#"[{"k":"partition","v":1,"d":{"elr":[2],"isr":[1],"leader":1,"leader_epoch":4,"partition":3,"partition_epoch":9,"replicas":[1,2],"topic_id":"00000000-0000-0000-0000-000000000007"}}]"#,
            ),
            (
                nobody,
                r#"[{"k":"partition","v":1,"d":{"isr":[],"last_known_elr":[1],"leader":null,"leader_epoch":4,"partition":3,"partition_epoch":9,"replicas":[1,2],"topic_id":"00000000-0000-0000-0000-000000000007"}}]"#,
            ),
            (
                moves,
                r#"[{"k":"partition","v":1,"d":{"adding":[2],"isr":[1],"leader":1,"leader_epoch":4,"partition":3,"partition_epoch":9,"removing":[1],"replicas":[1,2],"topic_id":"00000000-0000-0000-0000-000000000007"}}]"#,
            ),
            (
                unclean,
                r#"[{"k":"partition","v":1,"d":{"election":"Unclean","isr":[1],"leader":1,"leader_epoch":4,"partition":3,"partition_epoch":9,"replicas":[1,2],"topic_id":"00000000-0000-0000-0000-000000000007"}}]"#,
            ),
            (
                lost,
                r#"[{"k":"partition","v":3,"d":{"isr":[1],"leader":1,"leader_epoch":4,"lost":[2],"partition":3,"partition_epoch":9,"replicas":[1,2],"topic_id":"00000000-0000-0000-0000-000000000007"}}]"#,
            ),
            (
                full,
                r#"[{"k":"partition","v":5,"d":{"full":[2],"isr":[1],"leader":1,"leader_epoch":4,"partition":3,"partition_epoch":9,"replicas":[1,2],"topic_id":"00000000-0000-0000-0000-000000000007"}}]"#,
            ),
            (
                more,
                r#"[{"k":"partition","v":4,"d":{"election":"Unclean","isr":[1],"leader":1,"leader_epoch":4,"may_have_more":[2],"partition":3,"partition_epoch":9,"replicas":[1,2],"topic_id":"00000000-0000-0000-0000-000000000007"}}]"#,
            ),
        ] {
            let record =
                MetadataRecord::Partition(PartitionRecord { topic_id, partition: 3, state });
            assert_eq!(encode(std::slice::from_ref(&record)).unwrap(), written);
            assert_eq!(decode(written).unwrap(), [record]);
        }
        let fence = r#"[{"k":"brokerFence","v":0,"d":{"fenced":true,"id":1}}]"#;
        let record = BrokerFenceRecord { id: BrokerId(1), fenced: true, stopping: false };
        let record = MetadataRecord::BrokerFence(record);
        assert_eq!(encode(std::slice::from_ref(&record)).unwrap(), fence);
        assert_eq!(decode(fence).unwrap(), [record]);
        let broker = r#"[{"k":"broker","v":0,"d":{"id":1,"incarnation":"00000000-0000-0000-0000-000000000001","endpoints":[],"rack":null,"fenced":false}}]"#;
        let [MetadataRecord::Broker(broker)] = &decode(broker).unwrap()[..] else { panic!() };
        assert_eq!((broker.epoch, broker.min_insync_replicas), (0, 1));
        assert!(broker.directories.is_empty());
    }

    #[test]
    fn ignorable_record_that_is_not_known_is_skipped() {
        let batch =
            r#"[{"k":"note","v":3,"i":true,"d":{}},{"k":"producerIds","v":0,"d":{"next":7}}]"#;
        assert_eq!(decode(batch).unwrap().len(), 1);
    }

    #[test]
    fn damaged_batch_is_refused() {
        for batch in [
            "",
            "[",
            "{}",
            r#"[{"k":"producerIds","v":0,"d":{"next":"many"}}]"#,
            r#"[{"k":"topic"}]"#,
        ] {
            assert!(matches!(decode(batch), Err(DecodeError::Malformed { .. })), "{batch}");
        }
    }
}
