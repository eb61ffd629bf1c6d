//! A client that makes, fills, grows, changes and deletes topics of its own, under the same few names again and again,
//! and commits offsets for groups of its own. It knows what must be there, and looks.
//!
//! What it demands of the cluster, per topic id: every record acknowledged with `acks=all` is read back at its offset,
//! no record of another topic id is, and every partition can be written and read once nothing is broken any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use letterbox_client::{
    AlterOp, AutoOffsetReset, Client, CommittedOffset, ConfigResource, Consumer, ConsumerOptions, Error, ErrorCode, IsolationLevel,
    NewTopic, OffsetSpec, Producer, ProducerOptions, ProducerRecord, TopicPartition,
};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{Load, PAUSE};
use crate::rng::Rng;

/// Names that a churner uses in turn.
const NAMES: u64 = 2;
/// After an answer that did not come, the broker has carried the request out by then, or never will: no fault of the
/// simulation delays one for longer.
const SETTLED: Duration = Duration::from_secs(6);

/// A topic as it must be.
struct Known {
    id: Uuid,
    partitions: i32,
    acknowledged: BTreeMap<(i32, i64), u64>,
    sent: BTreeSet<u64>,
}

impl Known {
    fn new(id: Uuid, partitions: i32) -> Self {
        Self { id, partitions, acknowledged: BTreeMap::new(), sent: BTreeSet::new() }
    }
}

/// A change that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Create,
    Delete,
    Grow,
}

/// What is known of a name.
#[derive(Default)]
struct Held {
    /// The topic, before `change` if there is one.
    known: Option<Known>,
    /// A change without an answer.
    change: Option<Change>,
}

/// What a churner did, to see that a run was worth its verdict.
#[derive(Clone, Copy, Debug, Default)]
pub struct Churned {
    /// Topics that were made.
    pub created: u64,
    /// Topics that were deleted.
    pub deleted: u64,
    /// Records that were acknowledged.
    pub acknowledged: u64,
    /// Acknowledged records that were looked for and found.
    pub verified: u64,
    /// Offsets that were committed and found again.
    pub commits: u64,
}

/// Runs until the load ends, then looks once more at everything that must be there.
///
/// # Errors
/// What is not as it must be, in words; also when the cluster does not serve within `patience` after the load has ended.
pub async fn churner(load: Load, number: u64, patience: Duration) -> Result<Churned, String> {
    let mut churner = Churner {
        rng: Rng::new(load.env.random_u64()),
        group: format!("churners-{number}"),
        topics: BTreeMap::new(),
        committed: None,
        counter: number << 40,
        did: Churned::default(),
        number,
    };
    while let Some(client) = load.client().await {
        while !load.is_over() {
            if let Err(trouble) = churner.act(&client).await {
                match trouble {
                    Trouble::Wrong(what) => return Err(what),
                    Trouble::Again(error) => {
                        tracing::debug!(%error, number, "churner begins anew");
                        break;
                    }
                }
            }
            sleep(Duration::from_millis(churner.rng.below(120))).await;
        }
        sleep(PAUSE).await;
    }
    let last = Load { stop: std::sync::Arc::default(), ..load };
    let deadline = Instant::now() + patience;
    loop {
        let client = last.client().await.ok_or("no client")?;
        match churner.verify_all(&client).await {
            Ok(()) => return Ok(churner.did),
            Err(Trouble::Wrong(what)) => return Err(what),
            Err(Trouble::Again(error)) if Instant::now() >= deadline => {
                return Err(format!("churner {number}: {patience:?} after everything was healed: {error}"));
            }
            Err(Trouble::Again(_)) => sleep(PAUSE).await,
        }
    }
}

enum Trouble {
    /// The cluster broke a promise.
    Wrong(String),
    /// It did not answer, or said to try again.
    Again(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Again(error)
    }
}

struct Churner {
    rng: Rng,
    number: u64,
    group: String,
    topics: BTreeMap<String, Held>,
    /// The committed offset of the group, when it is known.
    committed: Option<(TopicPartition, i64)>,
    counter: u64,
    did: Churned,
}

impl Churner {
    async fn act(&mut self, client: &Client) -> Result<(), Trouble> {
        let name = format!("churn-{}-{}", self.number, self.rng.below(NAMES));
        let mut held = self.topics.remove(&name).unwrap_or_default();
        let result = self.act_on(client, &name, &mut held).await;
        self.topics.insert(name, held);
        result
    }

    async fn act_on(&mut self, client: &Client, name: &str, held: &mut Held) -> Result<(), Trouble> {
        self.settle(client, name, held).await?;
        let Some(topic) = &mut held.known else { return self.create(client, name, held).await };
        match self.rng.below(13) {
            0..=3 => self.produce(client, name, topic).await,
            4..=5 => self.verify(client, name, topic).await,
            6 => self.grow(client, name, held).await,
            7 => self.configure(client, name).await,
            8 => self.commit(client, name).await,
            9 => self.delete_records(client, name, topic).await,
            kind => {
                let mut under_way = Vec::new();
                match kind {
                    // Right after the answer, while the broker still has work to do for these records.
                    10 => self.produce(client, name, topic).await?,
                    // Records are under way while their topic goes.
                    11 => {
                        let producer = Self::producer(client).await?;
                        for _ in 0..self.rng.between(1, 30) {
                            under_way.push(producer.send(self.record(name, topic).2).await?);
                        }
                        sleep(Duration::from_millis(self.rng.below(8))).await;
                    }
                    _ => {}
                }
                self.delete(client, name, held).await?;
                if self.rng.percent(70) && under_way.is_empty() {
                    self.create(client, name, held).await?;
                    if let Some(topic) = &mut held.known {
                        self.produce(client, name, topic).await?;
                    }
                }
                // Their fate is nobody's business, but it has to be told.
                for delivery in under_way {
                    drop(delivery.await);
                }
                Ok(())
            }
        }
    }

    /// Learns what became of a change whose answer did not come.
    async fn settle(&mut self, client: &Client, name: &str, held: &mut Held) -> Result<(), Trouble> {
        let Some(change) = held.change else { return Ok(()) };
        sleep(SETTLED).await;
        let metadata = client.metadata(Some(&[name.to_owned()])).await?;
        let found = metadata.topics.get(name);
        match found.and_then(|topic| topic.error) {
            None | Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION) => {}
            Some(code) => return Err(Trouble::Again(Error::Broker(letterbox_client::BrokerError { code, message: None }))),
        }
        let found = found.filter(|topic| topic.error.is_none());
        let before = held.known.take();
        held.known = match (found, before) {
            (Some(found), Some(before)) if found.id == before.id => {
                Some(Known { partitions: i32::try_from(found.partitions.len()).unwrap_or(0), ..before })
            }
            (found, Some(before)) if change == Change::Grow => {
                return Err(Trouble::Wrong(format!("{name}: topic {} was to grow and is gone; there is {found:?}", before.id)));
            }
            (Some(found), _) => Some(Known::new(found.id, i32::try_from(found.partitions.len()).unwrap_or(0))),
            (None, _) => None,
        };
        held.change = None;
        Ok(())
    }

    async fn create(&mut self, client: &Client, name: &str, held: &mut Held) -> Result<(), Trouble> {
        let partitions = i32::try_from(self.rng.between(1, 7)).unwrap_or(1);
        let mut configs =
            BTreeMap::from([("segment.ms".to_owned(), "300".to_owned()), ("file.delete.delay.ms".to_owned(), "500".to_owned())]);
        if self.rng.percent(30) {
            // Every key is written once: compaction has to keep all of them.
            configs.insert("cleanup.policy".to_owned(), "compact".to_owned());
            configs.insert("min.cleanable.dirty.ratio".to_owned(), "0.01".to_owned());
        }
        let topic = NewTopic { name: name.to_owned(), partitions: Some(partitions), configs, ..NewTopic::default() };
        held.change = Some(Change::Create);
        let mut outcomes = client.create_topics(&[topic], false).await?;
        let created = outcomes.remove(name).ok_or(Error::Closed)?.map_err(Error::from)?;
        self.did.created += 1;
        *held = Held { known: Some(Known::new(created.id, partitions)), change: None };
        Ok(())
    }

    async fn delete(&mut self, client: &Client, name: &str, held: &mut Held) -> Result<(), Trouble> {
        held.change = Some(Change::Delete);
        // Offsets of a deleted topic are nobody's.
        self.committed = None;
        let mut outcomes = client.delete_topics(&[name.to_owned()]).await?;
        outcomes.remove(name).ok_or(Error::Closed)?.map_err(Error::from)?;
        self.did.deleted += 1;
        *held = Held { known: None, change: None };
        Ok(())
    }

    async fn grow(&mut self, client: &Client, name: &str, held: &mut Held) -> Result<(), Trouble> {
        let Some(topic) = &mut held.known else { return Ok(()) };
        let partitions = topic.partitions + 1;
        held.change = Some(Change::Grow);
        let mut outcomes = client.create_partitions(&BTreeMap::from([(name.to_owned(), (partitions, None))])).await?;
        outcomes.remove(name).ok_or(Error::Closed)?.map_err(Error::from)?;
        topic.partitions = partitions;
        held.change = None;
        Ok(())
    }

    /// Deletes the records of a partition up to one of those that were acknowledged.
    async fn delete_records(&mut self, client: &Client, name: &str, topic: &mut Known) -> Result<(), Trouble> {
        let at = self.rng.index(topic.acknowledged.len().max(1));
        let Some((partition, before)) = topic.acknowledged.keys().nth(at).copied() else { return Ok(()) };
        // Even without an answer they are not demanded any more; what lies after them is.
        topic.acknowledged.retain(|(index, offset), _| *index != partition || *offset >= before);
        let partition = TopicPartition::new(name, partition);
        let mut outcomes = client.delete_records(&BTreeMap::from([(partition.clone(), before)])).await?;
        let low = outcomes.remove(&partition).ok_or(Error::Closed)?.map_err(Error::from)?;
        if low < before {
            return Err(Trouble::Wrong(format!("{partition}: records before {before} were deleted, and the log starts at {low}")));
        }
        Ok(())
    }

    async fn configure(&mut self, client: &Client, name: &str) -> Result<(), Trouble> {
        let value = self.rng.between(200, 2000).to_string();
        let change = vec![("segment.ms".to_owned(), AlterOp::Set(value))];
        let resource = ConfigResource::topic(name);
        let mut outcomes = client.incremental_alter_configs(&BTreeMap::from([(resource.clone(), change)]), false).await?;
        outcomes.remove(&resource).ok_or(Error::Closed)?.map_err(Error::from)?;
        Ok(())
    }

    async fn producer(client: &Client) -> Result<Producer, Trouble> {
        let options =
            ProducerOptions { delivery_timeout: Duration::from_secs(6), block_max: Duration::from_secs(3), ..ProducerOptions::default() };
        Ok(Producer::new(client, options).await?)
    }

    fn record(&mut self, name: &str, topic: &mut Known) -> (i32, u64, ProducerRecord) {
        self.counter += 1;
        topic.sent.insert(self.counter);
        let partition = i32::try_from(self.rng.below(topic.partitions.unsigned_abs().into())).unwrap_or(0);
        let value = format!("{} {} {}", topic.id, self.counter, ".".repeat(self.rng.index(600)));
        (partition, self.counter, ProducerRecord::new(name).partition(partition).key(self.counter.to_string()).value(value))
    }

    async fn produce(&mut self, client: &Client, name: &str, topic: &mut Known) -> Result<(), Trouble> {
        let producer = Self::producer(client).await?;
        let mut deliveries = Vec::new();
        for _ in 0..self.rng.between(1, 20) {
            let (partition, value, record) = self.record(name, topic);
            deliveries.push((partition, value, producer.send(record).await?));
        }
        let mut failed = None;
        for (partition, value, delivery) in deliveries {
            match delivery.await {
                Ok(place) => {
                    topic.acknowledged.insert((partition, place.offset.unwrap_or(-1)), value);
                    self.did.acknowledged += 1;
                }
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            tracing::debug!(%error, name, "some records have an unknown fate");
        }
        Ok(())
    }

    async fn commit(&mut self, client: &Client, name: &str) -> Result<(), Trouble> {
        let partition = TopicPartition::new(name, 0);
        if let Some(committed) = &self.committed {
            let found = client.list_group_offsets(&self.group, None).await?;
            let found: BTreeMap<_, _> = found.into_iter().map(|(partition, committed)| (partition, committed.offset)).collect();
            let (partition, offset) = committed;
            if found.get(partition) != Some(offset) {
                return Err(Trouble::Wrong(format!("group {}: committed {offset} for {partition}, found {found:?}", self.group)));
            }
            self.did.commits += 1;
        }
        self.committed = None;
        if self.rng.percent(25) {
            let mut outcomes = client.delete_groups(std::slice::from_ref(&self.group)).await;
            match outcomes.remove(&self.group) {
                Some(Err(error)) if error.code() != Some(ErrorCode::GROUP_ID_NOT_FOUND) => return Err(error.into()),
                _ => {}
            }
            let left = client.list_group_offsets(&self.group, None).await?;
            if !left.is_empty() {
                return Err(Trouble::Wrong(format!("group {} was deleted and has offsets: {left:?}", self.group)));
            }
        }
        let offset = i64::try_from(self.rng.below(1000)).unwrap_or(0);
        let committed = CommittedOffset { offset, leader_epoch: -1, metadata: String::new() };
        let outcomes = client.alter_group_offsets(&self.group, &BTreeMap::from([(partition.clone(), committed)])).await?;
        for outcome in outcomes.into_values() {
            outcome.map_err(Error::from)?;
        }
        self.committed = Some((partition, offset));
        Ok(())
    }

    async fn verify_all(&mut self, client: &Client) -> Result<(), Trouble> {
        let names: Vec<String> = self.topics.keys().cloned().collect();
        for name in names {
            let mut held = self.topics.remove(&name).unwrap_or_default();
            let mut result = self.settle(client, &name, &mut held).await;
            if let (Ok(()), Some(topic)) = (&result, &held.known) {
                result = self.verify(client, &name, topic).await;
            }
            // What cannot be read now is still demanded.
            self.topics.insert(name, held);
            result?;
        }
        Ok(())
    }

    /// Everything acknowledged is there, at its offset, and nothing of another topic is.
    async fn verify(&mut self, client: &Client, name: &str, topic: &Known) -> Result<(), Trouble> {
        let metadata = client.metadata(Some(&[name.to_owned()])).await?;
        let found = metadata.topics.get(name).filter(|found| found.error.is_none());
        let Some(found) = found.filter(|found| found.id == topic.id) else {
            return Err(Trouble::Wrong(format!("{name}: topic {} is gone: {:?}", topic.id, metadata.topics.get(name))));
        };
        if i32::try_from(found.partitions.len()).unwrap_or(0) < topic.partitions {
            return Err(Trouble::Wrong(format!("{name}: {} partitions of {}", found.partitions.len(), topic.partitions)));
        }
        let records = read_all(client, name, topic.partitions).await?;
        for ((partition, offset), value) in &topic.acknowledged {
            let expected = format!("{} {value} ", topic.id);
            match records.get(&(*partition, *offset)) {
                Some(record) if record.starts_with(&expected) => self.did.verified += 1,
                other => {
                    let held: Vec<_> = records.keys().filter(|key| key.0 == *partition).map(|key| key.1).collect();
                    return Err(Trouble::Wrong(format!(
                        "{name}-{partition} of topic {}: acknowledged {value} at offset {offset}, found {other:?}; it has {:?}..={:?}",
                        topic.id,
                        held.first(),
                        held.last()
                    )));
                }
            }
        }
        let foreign = records.iter().find(|(_, record)| {
            let mut parts = record.split(' ');
            let is_own = parts.next() == Some(&topic.id.to_string());
            !(is_own && parts.next().and_then(|value| value.parse().ok()).is_some_and(|value: u64| topic.sent.contains(&value)))
        });
        if let Some((place, record)) = foreign {
            return Err(Trouble::Wrong(format!("{name} of topic {}: a record of another topic at {place:?}: {record}", topic.id)));
        }
        Ok(())
    }
}

/// Every record between the earliest and the latest offset, by partition and offset.
async fn read_all(client: &Client, name: &str, partitions: i32) -> Result<BTreeMap<(i32, i64), String>, Error> {
    let partitions: Vec<_> = (0..partitions).map(|index| TopicPartition::new(name, index)).collect();
    let mut edges = Vec::new();
    for spec in [OffsetSpec::Earliest, OffsetSpec::Latest] {
        let wanted = partitions.iter().map(|partition| (partition.clone(), spec)).collect();
        edges.push(client.list_offsets(&wanted, IsolationLevel::ReadUncommitted).await?);
    }
    let mut consumer = Consumer::new(
        client,
        ConsumerOptions { offset_reset: AutoOffsetReset::None, fetch_wait: Duration::from_millis(100), ..ConsumerOptions::default() },
    );
    consumer.assign(partitions.clone());
    let mut ends = BTreeMap::new();
    for partition in &partitions {
        let edge = |at: usize| match edges.get(at).and_then(|found| found.get(partition)) {
            Some(Ok(found)) => found.offset.ok_or_else(|| Error::Invalid(format!("no offset of {partition}"))),
            Some(Err(error)) => Err(Error::Broker(error.clone())),
            None => Err(Error::Invalid(format!("no offsets of {partition}"))),
        };
        let (start, end) = (edge(0)?, edge(1)?);
        consumer.seek(partition, start)?;
        if start < end {
            ends.insert(partition.clone(), end);
        }
    }
    let mut records = BTreeMap::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while ends.iter().any(|(partition, end)| consumer.position(partition).unwrap_or(0) < *end) {
        if Instant::now() > deadline {
            return Err(Error::Timeout { what: format!("reading {name}"), after: Duration::from_secs(20) });
        }
        for record in consumer.poll(Duration::from_millis(500)).await? {
            let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned();
            records.insert((record.partition, record.offset), value);
        }
    }
    Ok(records)
}
