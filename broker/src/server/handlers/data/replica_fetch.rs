//! Fetch 15–18 of a follower: everything that its leader has, committed or not, and how far the
//! follower counts.
//!
//! KIPs: 320 and 595 (epochs: where the logs differ is answered at once), 516 (topic ids), 903
//! (broker epochs). Beyond Kafka's schema a follower says the secret of its registration and up to
//! where its log is on stable storage (`letterbox_protocol::replica`): a replica counts only with
//! that, and only as the registration that the metadata log knows. Any client could say that it is a
//! replica; what it cannot know is the secret, which stands in that log alone.
//!
//! An answer is parked until there is a record, another high watermark or log start, or the wait is
//! over. While it is, its connection serves nothing else, so a follower whose disk has synced
//! reports over another one: a Fetch that asks for no records, and is answered at once. It may say
//! that the parked one is to be answered too, because the next one asks for more partitions.
//!
//! OFFSET_OUT_OF_RANGE tells where the leader's log begins and, as the high watermark, where it
//! ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kafka_protocol::messages as m;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use letterbox_env::panics::lock;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::fetch::EpochEndOffset;
use letterbox_protocol::model::{BrokerId, Offset};
use letterbox_protocol::replica::{self, Standing};
use letterbox_storage::ReadResult;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Services;
use super::fetch::{Fetched, FetchedPartition, FetchedTopic, Left, Looks};
use crate::metadata::Secret;
use crate::replication::follower::Answer;
use crate::replication::leader::{BrokerEpoch, FollowerFetch, FollowerReport};
use crate::replication::{Partition, Ticket};
use crate::request::RequestContext;
use crate::security::{Operation, Resource};
use crate::server::budget::Share;

/// The first version in which a follower says which registration it is.
const BROKER_EPOCHS_SINCE: i16 = 15;

/// Whether a follower asks, or somebody who says so.
pub(super) fn is_of_replica(request: &m::FetchRequest) -> bool {
    request.replica_id.0 >= 0 || request.replica_state.replica_id.0 >= 0
}

/// A registered broker.
#[derive(Clone, Copy)]
struct Replica {
    id: BrokerId,
    epoch: BrokerEpoch,
}

/// Who asks.
///
/// # Errors
/// REPLICA_NOT_AVAILABLE for who is not the broker that the metadata of now knows.
fn replica(
    services: &Services,
    ctx: &RequestContext,
    request: &m::FetchRequest,
) -> Result<Replica, ErrorCode> {
    ctx.check(Operation::ClusterAction, Resource::Cluster)
        .map_err(|_| ErrorCode::TopicAuthorizationFailed)?;
    let (said, image) = (&request.replica_state, services.replicas.image());
    let id = BrokerId(said.replica_id.0);
    let registered = image.brokers.get(&id).ok_or(ErrorCode::ReplicaNotAvailable)?;
    let tags = &request.unknown_tagged_fields;
    let is_it = ctx.api_version >= BROKER_EPOCHS_SINCE
        && registered.epoch == said.replica_epoch
        && registered.secret.is_some_and(|secret| replica::has_secret(tags, secret.as_bytes()));
    if !is_it {
        return Err(ErrorCode::ReplicaNotAvailable);
    }
    Ok(Replica { id, epoch: registered.epoch })
}

/// Proves to a follower which registration answers: another cluster may be reached where its leader
/// was, a copy of its own too.
fn own_secret(services: &Services) -> Option<Secret> {
    services.replicas.image().brokers.get(&services.config.node_id)?.secret
}

/// One asked partition.
struct Asked {
    what: FetchPartition,
    /// What the leader had to say at once, unless it is to be read.
    found: Result<Arc<Partition>, FetchedPartition>,
    /// The high watermark that the follower knows.
    known: Offset,
}

struct AskedTopic {
    name: m::TopicName,
    id: uuid::Uuid,
    partitions: Vec<Asked>,
}

/// Answers as [`super::fetch::fetch`].
pub(super) async fn fetch(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::FetchRequest,
    held: &Share,
) -> (Fetched, Share) {
    let replica = replica(&services, &ctx, &request);
    let tags = &request.unknown_tagged_fields;
    if let (Ok(replica), true) = (replica, replica::reports(tags)) {
        request.topics.iter().for_each(|topic| take_report(&services, replica, topic));
        if replica::hurries(tags) {
            services.parked.of(replica.id).notify_one();
        }
        let (error, topics, read_committed) = (ErrorCode::None, Vec::new(), false);
        let fetched = Fetched { error, topics, read_committed, secret: None };
        return (fetched, Share::new(&services.memory));
    }
    let most = usize::try_from(request.max_bytes).unwrap_or(0);
    let min_bytes = usize::try_from(request.min_bytes).unwrap_or(0).min(most).max(1);
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
    let topics: Vec<AskedTopic> =
        request.topics.into_iter().map(|topic| look_up(&services, replica, topic)).collect();
    // Where nothing could grow, there is no wait: nothing would end it.
    let waits = topics.iter().flat_map(|topic| &topic.partitions).any(|asked| asked.found.is_ok());
    let mut deadline = Instant::now() + if waits { wait } else { Duration::ZERO };
    let (mut parked, mut is_registered) = (Parked::new(&topics), false);
    let hurry = replica.map(|replica| services.parked.of(replica.id)).unwrap_or_default();
    loop {
        let mut memory = Share::new(&services.memory);
        let (mut fetched, enough) =
            gather(&services, &topics, (most, min_bytes), &mut memory).await;
        if enough || Instant::now() >= deadline {
            fetched.secret = replica.ok().and_then(|_| own_secret(&services));
            return (fetched, memory);
        }
        // What waits holds no records.
        drop((fetched, memory));
        if !is_registered {
            // And looks again, so that no move is missed in between.
            parked.register();
            is_registered = true;
            continue;
        }
        tokio::select! {
            biased;
            () = parked.moved() => {
                parked.give_up();
                is_registered = false;
            }
            () = tokio::time::sleep_until(deadline) => {}
            () = hurry.notified() => deadline = Instant::now(),
            () = held.until_pressed() => deadline = Instant::now(),
        }
    }
}

/// What has the parked fetch of each follower answered: one entry for each broker that was ever
/// proven to be one.
#[derive(Default)]
pub(crate) struct ParkedFetches(Mutex<BTreeMap<BrokerId, Arc<Notify>>>);

impl ParkedFetches {
    fn of(&self, replica: BrokerId) -> Arc<Notify> {
        lock(&self.0).entry(replica).or_default().clone()
    }
}

fn take_report(services: &Services, replica: Replica, topic: &FetchTopic) {
    for what in &topic.partitions {
        let partition = services.replicas.hosted(&(topic.topic_id, what.partition));
        let standing = replica::standing(&what.unknown_tagged_fields);
        if let (Some(partition), Some(standing)) = (partition, standing) {
            partition.follower_reports(FollowerReport {
                replica: replica.id,
                broker_epoch: replica.epoch,
                leader_epoch: what.current_leader_epoch,
                counts: standing.counts,
                last_epoch: what.last_fetched_epoch,
            });
        }
    }
}

fn look_up(
    services: &Services,
    replica: Result<Replica, ErrorCode>,
    topic: FetchTopic,
) -> AskedTopic {
    let id = topic.topic_id;
    let of_partition = |what: FetchPartition| {
        let standing = replica::standing(&what.unknown_tagged_fields);
        let found = replica.map_err(|error| said(&what, error)).and_then(|replica| {
            let hosted = services.replicas.hosted(&(id, what.partition));
            let partition = hosted.ok_or_else(|| said(&what, ErrorCode::NotLeaderOrFollower))?;
            ask(&partition, replica, &what, standing).map(|()| partition)
        });
        let known = standing.map_or(-1, |standing| standing.high_watermark);
        Asked { what, found, known }
    };
    let partitions = topic.partitions.into_iter().map(of_partition).collect();
    AskedTopic { name: topic.topic, id, partitions }
}

/// Tells the leader how far the follower is; what it answers, unless that is to be read.
fn ask(
    partition: &Partition,
    replica: Replica,
    what: &FetchPartition,
    standing: Option<Standing>,
) -> Result<(), FetchedPartition> {
    let fetch = FollowerFetch {
        replica: replica.id,
        broker_epoch: replica.epoch,
        leader_epoch: what.current_leader_epoch,
        at: what.fetch_offset,
        last_epoch: what.last_fetched_epoch,
        counts: standing.map_or(-1, |standing| standing.counts),
        start: what.log_start_offset,
    };
    match partition.follower_fetches(fetch) {
        Answer::Records { .. } => Ok(()),
        Answer::Diverging { epoch, end } => {
            let diverging = Some(EpochEndOffset { epoch, end_offset: end });
            Err(FetchedPartition { diverging, ..said(what, ErrorCode::None) })
        }
        Answer::OutOfRange { leader_start, leader_end } => Err(FetchedPartition {
            high_watermark: leader_end,
            log_start_offset: leader_start,
            ..said(what, ErrorCode::OffsetOutOfRange)
        }),
        Answer::Fenced => Err(said(what, ErrorCode::FencedLeaderEpoch)),
        Answer::NotReady => Err(said(what, ErrorCode::NotLeaderOrFollower)),
    }
}

fn said(what: &FetchPartition, error: ErrorCode) -> FetchedPartition {
    FetchedPartition {
        index: what.partition,
        error,
        high_watermark: -1,
        log_start_offset: -1,
        diverging: None,
        records: ReadResult::default(),
    }
}

/// One round over all partitions, and whether it is worth an answer.
async fn gather(
    services: &Services,
    topics: &[AskedTopic],
    (most, min_bytes): (usize, usize),
    memory: &mut Share,
) -> (Fetched, bool) {
    let (mut left, mut bytes, mut has_news) = (Left::new(most), 0, false);
    let mut out = Vec::with_capacity(topics.len());
    for topic in topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in &topic.partitions {
            let fetched = match &asked.found {
                Ok(partition) => read(services, partition, &asked.what, &left, memory).await,
                Err(answer) => answer.clone(),
            };
            let (what, records) = (&asked.what, &fetched.records);
            has_news |= fetched.error != ErrorCode::None
                || fetched.diverging.is_some()
                || fetched.high_watermark.min(what.fetch_offset) > asked.known
                || fetched.log_start_offset.min(asked.known) > what.log_start_offset;
            bytes += records.bytes;
            left.take(records);
            partitions.push(fetched);
        }
        out.push(FetchedTopic { name: topic.name.clone(), id: topic.id, partitions });
    }
    let (error, topics, read_committed) = (ErrorCode::None, out, false);
    let fetched = Fetched { error, topics, read_committed, secret: None };
    (fetched, has_news || bytes >= min_bytes || left.has_all_files())
}

async fn read(
    services: &Services,
    partition: &Arc<Partition>,
    what: &FetchPartition,
    left: &Left,
    memory: &mut Share,
) -> FetchedPartition {
    let may_keep = |bytes| memory.try_grow_to(memory.bytes() + bytes);
    let epoch = what.current_leader_epoch;
    let shown = match partition
        .read_for_follower(&services.env, epoch, left.wanted(what), may_keep)
        .await
    {
        Ok(shown) => shown,
        Err(error) => return said(what, error),
    };
    let (high_watermark, log_start_offset) = (shown.high_watermark, shown.log_start_offset);
    match shown.records {
        Ok(records) => FetchedPartition {
            high_watermark,
            log_start_offset: partition.log().map_or(-1, |log| log.start_for_followers()),
            records,
            ..said(what, ErrorCode::None)
        },
        // It was deleted meanwhile.
        Err(error) => FetchedPartition {
            high_watermark: partition.end_offset(),
            log_start_offset,
            ..said(what, error)
        },
    }
}

/// A request that waits for its partitions, until it is dropped.
struct Parked<'a> {
    topics: &'a [AskedTopic],
    notify: Arc<Notify>,
    /// For each of [`Parked::found`]: of its end, and of its high watermark.
    tickets: Vec<(Ticket, Ticket)>,
    looks: Looks,
}

impl<'a> Parked<'a> {
    fn new(topics: &'a [AskedTopic]) -> Self {
        Self { topics, notify: Arc::default(), tickets: Vec::new(), looks: Looks::default() }
    }

    /// The partitions that are read.
    fn found(&self) -> impl Iterator<Item = (&'a Arc<Partition>, &'a Asked)> + use<'a> {
        let all = self.topics.iter().flat_map(|topic| &topic.partitions);
        all.filter_map(|asked| asked.found.as_ref().ok().map(|partition| (partition, asked)))
    }

    fn register(&mut self) {
        for (partition, Asked { what, known, .. }) in self.found() {
            let past_end = what.fetch_offset.saturating_add(1);
            // Of a high watermark past its own end it learns with the records.
            let news = if *known < what.fetch_offset { known.saturating_add(1) } else { past_end };
            let end = partition.ends.register(past_end, &self.notify);
            self.tickets.push((end, partition.waiters.register(news, &self.notify)));
        }
    }

    async fn moved(&mut self) {
        self.looks.after(&self.notify, self.tickets.len()).await;
    }

    fn give_up(&mut self) {
        let found = self.found();
        for ((partition, _), (end, news)) in found.zip(self.tickets.drain(..)) {
            partition.ends.forget(end);
            partition.waiters.forget(news);
        }
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.give_up();
    }
}
