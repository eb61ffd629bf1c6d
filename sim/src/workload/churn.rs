//! A client that makes, fills, grows, changes and deletes topics of its own, under the same few
//! names again and again, and commits offsets for groups of its own. It knows what must be there,
//! and looks.
//!
//! What it demands of the cluster, per topic id ([`known`]): every record acknowledged with
//! `acks=all` is read back at its offset, as far as the topic keeps it, and one acknowledged before
//! it was synced as long as no power cut took it; a record of an idempotent producer is there once;
//! no record of another topic id is there; and every partition can be written and read once nothing
//! is broken any more.

mod known;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use letterbox_client::{
    Acks, AlterOp, Client, CommittedOffset, Compression, ConfigResource, Error, ErrorCode,
    IsolationLevel, NewTopic, OffsetSpec, Producer, ProducerOptions, ProducerRecord,
    TopicPartition,
};
use tokio::time::{Instant, sleep};

use self::known::{Acknowledged, IDENTITY, Keeps, Known, Moment, Unmet};
use super::broken::{Broken, Hurt};
use super::read_all::{Contents, read_all};
use super::{Load, PAUSE, SETTLED};
use crate::rng::Rng;

/// Names that a churner uses in turn.
const NAMES: u64 = 2;
/// A topic as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    partitions: i32,
    keeps: Keeps,
    /// `flush.on.ack`
    syncs: bool,
    /// Of so many keys; `None`: every record has a key of its own.
    keys: Option<u64>,
}

/// A change that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Create(Plan),
    Delete,
    Grow,
}

/// What is known of a name.
#[derive(Default)]
struct Held {
    /// The topic, before `change` if there is one.
    known: Option<(Known, Plan)>,
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
    /// Offsets that were found by their time.
    pub by_time: u64,
}

/// Runs until the load ends, then looks once more at everything that must be there.
///
/// # Errors
/// What is not as it must be, in words; also when the cluster does not serve within `patience`
/// after the load has ended.
pub async fn churner(
    load: Load,
    broken: Broken,
    number: u64,
    patience: Duration,
) -> Result<Churned, String> {
    let mut churner = Churner {
        rng: Rng::new(load.env.random_u64()),
        broken,
        group: format!("churners-{number}"),
        topics: BTreeMap::new(),
        committed: None,
        commit_is_open: false,
        counter: number << 40,
        producer: None,
        strays: BTreeSet::new(),
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
        match churner.look_at_all(&client).await {
            Ok(()) => return Ok(churner.did),
            Err(Trouble::Wrong(what)) => return Err(what),
            Err(Trouble::Again(error)) if Instant::now() >= deadline => {
                return Err(format!(
                    "churner {number}: {patience:?} after everything was healed: {error}"
                ));
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
    broken: Broken,
    number: u64,
    group: String,
    topics: BTreeMap<String, Held>,
    /// The committed offset of the group, when it is known, and how often the broker's clock had
    /// jumped before: a jump expires it.
    committed: Option<(TopicPartition, i64, u64)>,
    /// A commit, or the deletion of the group, has no answer.
    commit_is_open: bool,
    counter: u64,
    /// An idempotent producer that has not failed yet. It outlives the topics it writes to.
    producer: Option<Producer>,
    /// Records that were sent without waiting for an answer: they may come to a later topic of the
    /// name.
    strays: BTreeSet<u64>,
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

    async fn act_on(
        &mut self,
        client: &Client,
        name: &str,
        held: &mut Held,
    ) -> Result<(), Trouble> {
        self.settle(client, name, held).await?;
        let Some((topic, plan)) = &mut held.known else {
            return self.create(client, name, held).await;
        };
        let plan = *plan;
        match self.rng.below(20) {
            0..=7 => self.produce(client, name, topic, plan).await,
            8..=11 => self.verify(client, name, topic).await,
            12 => self.grow(client, name, held).await,
            13 => self.configure(client, name).await,
            14..=15 => self.commit(client, name).await,
            16 => self.delete_records(client, name, topic).await,
            kind => {
                let mut under_way = Vec::new();
                match kind {
                    // Right after the answer, while the broker still has work to do for these
                    // records.
                    17 => self.produce(client, name, topic, plan).await?,
                    // Records are under way while their topic goes.
                    18 => {
                        let producer = Self::producer(client, ProducerOptions::default()).await?;
                        for _ in 0..self.rng.between(1, 30) {
                            under_way.push(
                                producer
                                    .send(self.record(client, name, topic, plan, true).1)
                                    .await?,
                            );
                        }
                        sleep(Duration::from_millis(self.rng.below(8))).await;
                    }
                    _ => {}
                }
                self.delete(client, name, held).await?;
                if self.rng.percent(70) && under_way.is_empty() {
                    self.create(client, name, held).await?;
                    if let Some((topic, plan)) = &mut held.known {
                        self.produce(client, name, topic, *plan).await?;
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
    async fn settle(
        &mut self,
        client: &Client,
        name: &str,
        held: &mut Held,
    ) -> Result<(), Trouble> {
        let Some(change) = held.change else { return Ok(()) };
        sleep(SETTLED).await;
        let metadata = client.metadata(Some(&[name.to_owned()])).await?;
        let found = metadata.topics.get(name);
        match found.and_then(|topic| topic.error) {
            None | Some(ErrorCode::UnknownTopicOrPartition) => {}
            Some(code) => {
                return Err(Trouble::Again(Error::Broker(letterbox_client::BrokerError {
                    code,
                    message: None,
                })));
            }
        }
        let found = found.filter(|topic| topic.error.is_none());
        let wrong = |what: &str| Err(Trouble::Wrong(format!("{name}: {what}; there is {found:?}")));
        let count = found.map_or(0, |found| i32::try_from(found.partitions.len()).unwrap_or(0));
        match (change, found, held.known.take()) {
            (_, Some(found), Some((mut before, plan))) if found.id == before.id => {
                before.partitions = count;
                held.known = Some((before, plan));
            }
            (Change::Grow, _, Some((before, _))) => {
                return wrong(&format!("topic {} was to grow and is gone", before.id));
            }
            (Change::Create(plan), Some(found), None) if count == plan.partitions => {
                held.known = Some((Known::new(found.id, count, plan.keeps), plan));
            }
            (_, Some(_), _) => {
                return wrong(&format!(
                    "nobody has asked for this topic; {change:?} has no answer"
                ));
            }
            (_, None, _) => self.broken.topic_gone(name),
        }
        held.change = None;
        Ok(())
    }

    /// Draws a topic, and its configuration.
    fn plan(&mut self) -> (Plan, BTreeMap<String, String>) {
        let mut configs =
            vec![("segment.ms", "300".to_owned()), ("file.delete.delay.ms", "500".to_owned())];
        let partitions = i32::try_from(self.rng.between(1, 7)).unwrap_or(1);
        let mut plan = Plan { partitions, keeps: Keeps::All, syncs: true, keys: None };
        match self.rng.below(100) {
            0..40 => {}
            40..50 => {
                plan.syncs = false;
                configs.push(("flush.on.ack", "false".to_owned()));
            }
            50..75 => {
                let drops_tombstones = self.rng.percent(50);
                plan.keeps = Keeps::Newest { drops_tombstones };
                // Without a bound nothing is old and nothing is too much.
                let policy = if self.rng.percent(30) { "compact,delete" } else { "compact" };
                configs.extend([
                    ("cleanup.policy", policy.to_owned()),
                    ("retention.ms", "-1".to_owned()),
                ]);
                configs.push(("min.cleanable.dirty.ratio", "0.01".to_owned()));
                if drops_tombstones {
                    configs.push(("delete.retention.ms", "100".to_owned()));
                }
                if self.rng.percent(80) {
                    plan.keys = Some(self.rng.between(1, 8));
                }
            }
            75..88 => {
                let ms = self.rng.between(500, 4000);
                plan.keeps = Keeps::Age { ms: i64::try_from(ms).unwrap_or(0) };
                configs.push(("retention.ms", ms.to_string()));
            }
            _ => {
                let bytes = self.rng.between(0, 6000);
                plan.keeps = Keeps::Size { bytes };
                configs.push(("retention.bytes", bytes.to_string()));
            }
        }
        (plan, configs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    async fn create(
        &mut self,
        client: &Client,
        name: &str,
        held: &mut Held,
    ) -> Result<(), Trouble> {
        let (plan, configs) = self.plan();
        let topic = NewTopic {
            name: name.to_owned(),
            partitions: Some(plan.partitions),
            configs,
            ..NewTopic::default()
        };
        held.change = Some(Change::Create(plan));
        tracing::debug!(name, ?plan, "churner creates");
        let mut outcomes = client.create_topics(&[topic], false).await?;
        let created = outcomes.remove(name).ok_or(Error::Closed)?.map_err(Error::from)?;
        self.did.created += 1;
        *held = Held {
            known: Some((Known::new(created.id, plan.partitions, plan.keeps), plan)),
            change: None,
        };
        Ok(())
    }

    async fn delete(
        &mut self,
        client: &Client,
        name: &str,
        held: &mut Held,
    ) -> Result<(), Trouble> {
        held.change = Some(Change::Delete);
        // Offsets of a deleted topic are nobody's.
        self.committed = None;
        let mut outcomes = client.delete_topics(&[name.to_owned()]).await?;
        outcomes.remove(name).ok_or(Error::Closed)?.map_err(Error::from)?;
        self.did.deleted += 1;
        self.broken.topic_gone(name);
        *held = Held { known: None, change: None };
        Ok(())
    }

    async fn grow(&mut self, client: &Client, name: &str, held: &mut Held) -> Result<(), Trouble> {
        let Some((topic, _)) = &mut held.known else { return Ok(()) };
        let partitions = topic.partitions + 1;
        held.change = Some(Change::Grow);
        let mut outcomes = client
            .create_partitions(&BTreeMap::from([(name.to_owned(), (partitions, None))]))
            .await?;
        outcomes.remove(name).ok_or(Error::Closed)?.map_err(Error::from)?;
        topic.partitions = partitions;
        held.change = None;
        Ok(())
    }

    /// Deletes the records of a partition up to one of those that were acknowledged.
    async fn delete_records(
        &mut self,
        client: &Client,
        name: &str,
        topic: &mut Known,
    ) -> Result<(), Trouble> {
        let at = self.rng.index(topic.acknowledged.len().max(1));
        let Some((partition, before)) = topic.acknowledged.keys().nth(at).copied() else {
            return Ok(());
        };
        topic.delete_before(partition, before);
        tracing::debug!(name, partition, before, "churner deletes records");
        let partition = TopicPartition::new(name, partition);
        let mut outcomes =
            client.delete_records(&BTreeMap::from([(partition.clone(), before)])).await?;
        let low = outcomes.remove(&partition).ok_or(Error::Closed)?.map_err(Error::from)?;
        if low < before {
            return Err(Trouble::Wrong(format!(
                "{partition}: records before {before} were deleted, and the log starts at {low}"
            )));
        }
        Ok(())
    }

    async fn configure(&mut self, client: &Client, name: &str) -> Result<(), Trouble> {
        let value = self.rng.between(200, 2000).to_string();
        let change = vec![("segment.ms".to_owned(), AlterOp::Set(value))];
        let resource = ConfigResource::topic(name);
        let mut outcomes = client
            .incremental_alter_configs(&BTreeMap::from([(resource.clone(), change)]), false)
            .await?;
        outcomes.remove(&resource).ok_or(Error::Closed)?.map_err(Error::from)?;
        Ok(())
    }

    async fn producer(client: &Client, options: ProducerOptions) -> Result<Producer, Trouble> {
        let options = ProducerOptions {
            delivery_timeout: Duration::from_secs(6),
            block_max: Duration::from_secs(3),
            ..options
        };
        Ok(Producer::new(client, options).await?)
    }

    /// How to produce: mostly as the default is.
    fn style(&mut self, plan: Plan) -> ProducerOptions {
        let compression = match self.rng.below(8) {
            0 => Compression::Gzip,
            1 => Compression::Snappy,
            2 => Compression::Lz4,
            3 => Compression::Zstd,
            _ => Compression::None,
        };
        let (acks, idempotence) = match self.rng.below(10) {
            // Bytes that are there twice count twice.
            _ if matches!(plan.keeps, Keeps::Size { .. }) => (Acks::All, true),
            0 => (Acks::None, false),
            1..=2 => (Acks::Leader, false),
            3 => (Acks::All, false),
            _ => (Acks::All, true),
        };
        ProducerOptions { acks, idempotence, compression, ..ProducerOptions::default() }
    }

    fn record(
        &mut self,
        client: &Client,
        name: &str,
        topic: &mut Known,
        plan: Plan,
        idempotent: bool,
    ) -> ((i32, u64), ProducerRecord) {
        self.counter += 1;
        let value = self.counter;
        let partition =
            i32::try_from(self.rng.below(topic.partitions.unsigned_abs().into())).unwrap_or(0);
        let key = plan
            .keys
            .map_or_else(|| value.to_string(), |keys| format!("key-{}", self.rng.below(keys)));
        let len = (plan.keys.is_none() || self.rng.percent(80)).then(|| self.rng.index(600));
        let identity = topic.send(
            value,
            partition,
            &key,
            len.map(|len| len + 60),
            idempotent,
            client.env().clock.wall_ms(),
        );
        let record = ProducerRecord::new(name).partition(partition).key(key);
        let record = match len {
            Some(len) => record.value(format!("{identity}{}", ".".repeat(len))),
            None => record.header(IDENTITY, Some(identity.into())),
        };
        ((partition, value), record)
    }

    async fn produce(
        &mut self,
        client: &Client,
        name: &str,
        topic: &mut Known,
        plan: Plan,
    ) -> Result<(), Trouble> {
        let style = self.style(plan);
        let (acks, idempotence) = (style.acks, style.idempotence);
        let producer = match self.producer.take() {
            Some(producer) if idempotence && self.rng.percent(60) => producer,
            _ => Self::producer(client, style).await?,
        };
        let waits_for_sync = acks == Acks::All && plan.syncs;
        let unsynced_at = (!waits_for_sync).then(|| self.broken.losses());
        let mut deliveries = Vec::new();
        for _ in 0..self.rng.between(1, 20) {
            let (place, record) = self.record(client, name, topic, plan, idempotence);
            if acks == Acks::None {
                self.strays.insert(place.1);
            }
            deliveries.push((place, producer.send(record).await?));
        }
        let mut failed = None;
        for ((partition, value), delivery) in deliveries {
            match delivery.await {
                Ok(place) => {
                    if let Some(offset) = place.offset {
                        topic
                            .acknowledged
                            .insert((partition, offset), Acknowledged { value, unsynced_at });
                        self.did.acknowledged += 1;
                    }
                }
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => tracing::debug!(%error, name, "some records have an unknown fate"),
            None if idempotence => self.producer = Some(producer),
            None => {}
        }
        Ok(())
    }

    async fn commit(&mut self, client: &Client, name: &str) -> Result<(), Trouble> {
        let partition = TopicPartition::new(name, 0);
        if let Some(committed) = &self.committed {
            let found = client.list_group_offsets(&self.group, None).await?;
            let found: BTreeMap<_, _> = found
                .into_iter()
                .map(|(partition, committed)| (partition, committed.offset))
                .collect();
            let (partition, offset, jumps) = committed;
            let is_expired = *jumps != self.broken.jumps() && !found.contains_key(partition);
            if found.get(partition) != Some(offset) && !is_expired {
                return Err(Trouble::Wrong(format!(
                    "group {}: committed {offset} for {partition}, found {found:?}",
                    self.group
                )));
            }
            self.did.commits += 1;
        }
        self.committed = None;
        if std::mem::replace(&mut self.commit_is_open, true) {
            sleep(SETTLED).await;
        }
        if self.rng.percent(25) {
            let mut outcomes = client.delete_groups(std::slice::from_ref(&self.group)).await;
            match outcomes.remove(&self.group) {
                Some(Err(error)) if error.code() != Some(ErrorCode::GroupIdNotFound) => {
                    return Err(error.into());
                }
                _ => {}
            }
            let left = client.list_group_offsets(&self.group, None).await?;
            if !left.is_empty() {
                return Err(Trouble::Wrong(format!(
                    "group {} was deleted and has offsets: {left:?}",
                    self.group
                )));
            }
        }
        let offset = i64::try_from(self.rng.below(1000)).unwrap_or(0);
        let jumps = self.broken.jumps();
        let committed = CommittedOffset { offset, leader_epoch: -1, metadata: String::new() };
        let outcomes = client
            .alter_group_offsets(&self.group, &BTreeMap::from([(partition.clone(), committed)]))
            .await?;
        for outcome in outcomes.into_values() {
            outcome.map_err(Error::from)?;
        }
        self.commit_is_open = false;
        self.committed = Some((partition, offset, jumps));
        Ok(())
    }

    /// Everything that must be there is, and what is hurt can be replaced.
    async fn look_at_all(&mut self, client: &Client) -> Result<(), Trouble> {
        let names: Vec<String> = self.topics.keys().cloned().collect();
        for name in names {
            let mut held = self.topics.remove(&name).unwrap_or_default();
            let result = self.look_at(client, &name, &mut held).await;
            // What cannot be read now is still demanded.
            self.topics.insert(name, held);
            result?;
        }
        Ok(())
    }

    async fn look_at(
        &mut self,
        client: &Client,
        name: &str,
        held: &mut Held,
    ) -> Result<(), Trouble> {
        self.settle(client, name, held).await?;
        if let Some((topic, _)) = &mut held.known {
            self.verify(client, name, topic).await?;
        }
        if held.known.is_some() && !self.broken.hurt(name).is_empty() {
            self.delete(client, name, held).await?;
            self.create(client, name, held).await?;
            if let Some((topic, plan)) = &mut held.known {
                self.produce(client, name, topic, *plan).await?;
                self.verify(client, name, topic).await?;
            }
        }
        Ok(())
    }

    /// Everything acknowledged is there, at its offset, and nothing of another topic is.
    async fn verify(
        &mut self,
        client: &Client,
        name: &str,
        topic: &mut Known,
    ) -> Result<(), Trouble> {
        let metadata = client.metadata(Some(&[name.to_owned()])).await?;
        let found = metadata.topics.get(name).filter(|found| found.error.is_none());
        let Some(found) = found.filter(|found| found.id == topic.id) else {
            return Err(Trouble::Wrong(format!(
                "{name}: topic {} is gone: {:?}",
                topic.id,
                metadata.topics.get(name)
            )));
        };
        if i32::try_from(found.partitions.len()).unwrap_or(0) < topic.partitions {
            return Err(Trouble::Wrong(format!(
                "{name}: {} partitions of {}",
                found.partitions.len(),
                topic.partitions
            )));
        }
        let (harms, hurt) = (self.broken.harms(), self.broken.hurt(name));
        let mut contents = read_all(
            client,
            name,
            (0..topic.partitions).filter(|partition| !hurt.contains_key(partition)),
        )
        .await?;
        for (partition, hurt) in hurt {
            // It need not be served; but if it is, a directory that was taken away is no reason for
            // an empty log.
            if let Ok(read) = read_all(client, name, [partition]).await
                && hurt == Hurt::Missing
            {
                contents.extend(read);
            }
        }
        // One whose bits changed while it was read proves nothing.
        let hurt = self.broken.hurt(name);
        contents.retain(|partition, _| hurt.get(partition) != Some(&Hurt::Damaged));
        for partition in self.broken.take_dropped(name) {
            topic.give_up(partition);
        }
        let broker_ms_max = client.env().clock.wall_ms() + self.broken.ahead_ms_max();
        let now = Moment { broker_ms_max, losses: self.broken.losses() };
        match topic.check(&contents, now, &|value| self.strays.contains(&value)) {
            Ok(verified) => self.did.verified += verified,
            Err(Unmet::Broken(what)) => {
                return Err(Trouble::Wrong(format!("{name} of topic {}: {what}", topic.id)));
            }
            Err(Unmet::NotYet(what)) => {
                return Err(Trouble::Again(Error::Invalid(format!(
                    "{name} of topic {}: {what}",
                    topic.id
                ))));
            }
        }
        if topic.keeps == Keeps::All && harms == self.broken.harms() {
            self.look_up_by_time(client, name, &contents, harms).await?;
        }
        Ok(())
    }

    /// The first record at a time or later is found, in the order of the offsets; unless something
    /// was harmed since `contents` were read, when there were `harms`.
    async fn look_up_by_time(
        &mut self,
        client: &Client,
        name: &str,
        contents: &BTreeMap<i32, Contents>,
        harms: u64,
    ) -> Result<(), Trouble> {
        let mut wanted = BTreeMap::new();
        for (partition, held) in contents {
            if !held.records.is_empty() {
                let drawn = self.rng.index(held.records.len());
                let at = held.records.get(drawn).map_or(0, |record| record.timestamp)
                    + i64::from(self.rng.percent(30));
                let expected = held
                    .records
                    .iter()
                    .find(|record| record.timestamp >= at)
                    .map(|record| record.offset);
                wanted.insert(TopicPartition::new(name, *partition), (at, expected, held.end));
            }
        }
        let specs = wanted
            .iter()
            .map(|(partition, (at, ..))| (partition.clone(), OffsetSpec::Timestamp(*at)))
            .collect();
        let found = client.list_offsets(&specs, IsolationLevel::ReadUncommitted).await?;
        for (partition, (at, expected, end)) in wanted {
            let offset =
                found.get(&partition).cloned().ok_or(Error::Closed)?.map_err(Error::from)?.offset;
            let is_right = if expected.is_some() {
                offset == expected
            } else {
                offset.is_none_or(|offset| offset >= end)
            };
            if !is_right && self.broken.harms() == harms {
                return Err(Trouble::Wrong(format!(
                    "{partition}: the first record at {at} or later is {offset:?}, not {expected:?}"
                )));
            }
            self.did.by_time += 1;
        }
        Ok(())
    }
}
