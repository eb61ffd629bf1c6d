//! Where partitions begin and end, and which offset belongs to a time.

use std::collections::BTreeMap;
use std::future::Future;

use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{BrokerId, ListOffsetsRequest};
use letterbox_env::Gather;
use letterbox_protocol::ErrorCode;

use crate::client::{Client, Lane, topic_name};
use crate::error::{BrokerError, Error};
use crate::metadata::TopicPartition;

/// What a consumer may see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IsolationLevel {
    /// Everything below the high watermark.
    #[default]
    ReadUncommitted,
    /// What is below the last stable offset and was not aborted.
    ReadCommitted,
}

/// Which offset of a partition is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The next offset to be written that consumers may see: high watermark or last stable offset.
    Latest,
    /// The log start offset.
    Earliest,
    /// The record with the largest timestamp (KIP-734).
    MaxTimestamp,
    /// The first offset on the leader's own disk (KIP-405).
    EarliestLocal,
    /// The last offset in the remote tier (KIP-1005).
    LatestTiered,
    /// The first offset that is not in the remote tier yet (KIP-1023).
    EarliestPendingUpload,
    /// The first record whose timestamp, in milliseconds since 1970, is this or later.
    Timestamp(i64),
}

impl OffsetSpec {
    fn wire(self) -> i64 {
        match self {
            Self::Latest => -1,
            Self::Earliest => -2,
            Self::MaxTimestamp => -3,
            Self::EarliestLocal => -4,
            Self::LatestTiered => -5,
            Self::EarliestPendingUpload => -6,
            Self::Timestamp(ms) => ms.max(0),
        }
    }

    /// The first version of ListOffsets that has it.
    fn version_min(self) -> i16 {
        match self {
            Self::Latest | Self::Earliest | Self::Timestamp(_) => 1,
            Self::MaxTimestamp => 7,
            Self::EarliestLocal => 8,
            Self::LatestTiered => 9,
            Self::EarliestPendingUpload => 11,
        }
    }
}

/// What was found for an [`OffsetSpec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundOffset {
    /// The offset; `None` when no record fits.
    pub offset: Option<i64>,
    /// The record's timestamp in milliseconds since 1970; `None` when the question was not about a
    /// record.
    pub timestamp: Option<i64>,
    /// The epoch of the leader that wrote it; -1 when unknown.
    pub leader_epoch: i32,
}

/// What a leader answers for each partition it was asked about.
pub(crate) type Answers<A> = Vec<(TopicPartition, Result<A, BrokerError>)>;

impl Client {
    /// Finds an offset in each partition, asking each leader once.
    ///
    /// # Errors
    /// Per partition in the map: the broker's refusal, after retries. As a whole: when the leaders
    /// cannot be asked in time.
    pub async fn list_offsets(
        &self,
        wanted: &BTreeMap<TopicPartition, OffsetSpec>,
        isolation: IsolationLevel,
    ) -> Result<BTreeMap<TopicPartition, Result<FoundOffset, BrokerError>>, Error> {
        let deadline = self.api_deadline();
        self.ask_leaders(wanted, deadline, |leader, specs| {
            self.ask_leader(leader, specs, isolation, deadline)
        })
        .await
    }

    /// Asks the leader of each partition with `ask`, and again where the answer says that it heals
    /// by itself.
    ///
    /// A topic that does not exist is an answer.
    pub(crate) async fn ask_leaders<T: Clone, A, F: Future<Output = Result<Answers<A>, Error>>>(
        &self,
        wanted: &BTreeMap<TopicPartition, T>,
        deadline: tokio::time::Instant,
        ask: impl Fn(i32, BTreeMap<TopicPartition, T>) -> F,
    ) -> Result<BTreeMap<TopicPartition, Result<A, BrokerError>>, Error> {
        let connects_until = tokio::time::Instant::now() + self.options().connect_wait;
        let mut found = BTreeMap::new();
        let mut left = wanted.clone();
        // The leaders of several topics are learnt with one request.
        self.know_leaders(wanted.keys(), deadline).await?;
        loop {
            let mut by_leader: BTreeMap<i32, BTreeMap<TopicPartition, T>> = BTreeMap::new();
            let mut lost: Option<Error> = None;
            for (partition, spec) in &left {
                match self.leader(partition, deadline).await {
                    Ok((leader, _)) => drop(
                        by_leader
                            .entry(leader)
                            .or_default()
                            .insert(partition.clone(), spec.clone()),
                    ),
                    Err(Error::Broker(error)) => drop(found.insert(partition.clone(), Err(error))),
                    Err(error) => lost = Some(error),
                }
            }
            let asked = by_leader.into_iter().map(|(leader, specs)| ask(leader, specs));
            for answer in futures::future::join_all(asked).await {
                match answer {
                    Ok(answers) => found.extend(answers),
                    Err(error) if error.is_retriable() => lost = Some(error),
                    Err(error) => return Err(error),
                }
            }
            left = wanted
                .iter()
                .filter(|(p, _)| retry(found.get(*p)))
                .map(|(p, spec)| (p.clone(), spec.clone()))
                .gather();
            if left.is_empty() {
                return Ok(found);
            }
            let again = tokio::time::Instant::now() + self.options().retry_backoff;
            if let Some(error @ Error::Connect { .. }) = &lost
                && again >= connects_until
            {
                return Err(error.clone());
            }
            if again >= deadline {
                return if left.keys().all(|p| found.contains_key(p)) {
                    Ok(found)
                } else {
                    Err(lost.unwrap_or(Error::Closed))
                };
            }
            for partition in left.keys() {
                self.forget_topic(&partition.topic);
            }
            tokio::time::sleep(self.options().retry_backoff).await;
        }
    }

    /// Reads the metadata of the topics that are not known yet, all at once.
    pub(crate) async fn know_leaders(
        &self,
        partitions: impl Iterator<Item = &TopicPartition>,
        deadline: tokio::time::Instant,
    ) -> Result<(), Error> {
        let mut unknown: Vec<String> = partitions
            .map(|p| p.topic.clone())
            .filter(|topic| self.known_partitions(topic).is_none())
            .collect();
        unknown.dedup();
        if unknown.len() > 1 {
            self.read_metadata(Some(&unknown), false, deadline).await?;
        }
        Ok(())
    }

    async fn ask_leader(
        &self,
        leader: i32,
        specs: BTreeMap<TopicPartition, OffsetSpec>,
        isolation: IsolationLevel,
        deadline: tokio::time::Instant,
    ) -> Result<Answers<FoundOffset>, Error> {
        let mut topics: BTreeMap<&str, Vec<ListOffsetsPartition>> = BTreeMap::new();
        for (partition, spec) in &specs {
            let asked = ListOffsetsPartition::default()
                .with_partition_index(partition.partition)
                .with_current_leader_epoch(-1);
            topics
                .entry(partition.topic.as_str())
                .or_default()
                .push(asked.with_timestamp(spec.wire()));
        }
        let topics = topics.into_iter().map(|(name, partitions)| {
            ListOffsetsTopic::default().with_name(topic_name(name)).with_partitions(partitions)
        });
        let request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_isolation_level(i8::from(isolation == IsolationLevel::ReadCommitted))
            .with_timeout_ms(self.timeout_ms())
            .with_topics(topics.collect());
        let connection = self.node(leader, Lane::Main).await?;
        let version = connection.version_of::<ListOffsetsRequest>(i16::MAX)?;
        if let Some(spec) = specs.values().find(|spec| spec.version_min() > version) {
            return Err(Error::Unsupported {
                address: connection.address().to_owned(),
                api: format!("ListOffsets for {spec:?}"),
                ours: format!("{} at least", spec.version_min()),
                theirs: version.to_string(),
            });
        }
        let response = connection.call(&request, version, self.request_deadline(deadline)).await?;
        let answers = response.topics.iter().flat_map(|topic| {
            topic.partitions.iter().map(|partition| {
                let found = FoundOffset {
                    offset: (partition.offset >= 0).then_some(partition.offset),
                    timestamp: (partition.timestamp >= 0).then_some(partition.timestamp),
                    leader_epoch: partition.leader_epoch,
                };
                let name = TopicPartition::new(topic.name.0.to_string(), partition.partition_index);
                (name, BrokerError::check(partition.error_code, None).map(|()| found))
            })
        });
        Ok(answers.collect())
    }
}

/// A topic that does not exist is an answer; only what heals by itself is asked again.
fn retry<A>(answer: Option<&Result<A, BrokerError>>) -> bool {
    match answer {
        None => true,
        Some(Ok(_)) => false,
        Some(Err(error)) => {
            error.code.is_retriable() && error.code != ErrorCode::UnknownTopicOrPartition
        }
    }
}
