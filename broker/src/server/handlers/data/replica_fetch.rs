//! Fetch 15–18 of a follower: everything that its leader has, committed or not, and how far the
//! follower counts.
//!
//! KIPs: 320 and 595 (epochs: where the logs differ is answered at once), 516 (topic ids), 903
//! (broker epochs). Beyond Kafka's schema a follower says the secret of its registration and up to
//! where its log is on stable storage (`letterbox_protocol::replica`): a replica counts only with
//! that, and only as the registration that the metadata log knows. Any client could say that it is a
//! replica; what it cannot know is the secret, which stands in that log alone.
//!
//! A follower has a session (KIP-227): its leader remembers what was asked for, a request names what
//! changed, and an answer what has news; an idle partition costs neither side anything. Unlike a
//! consumer's, a session is kept for each broker that has proved to be one, and the next one
//! replaces it. What was answered with records or an error leaves it until it is asked for anew.
//! Where the follower is not in sync, each of its requests says again how far it is, and may bring
//! it in; everywhere else now and then, so that it does not pass for one that lags.
//!
//! An answer is parked until there is a record, another high watermark or log start, or the wait is
//! over. While it is, its connection serves nothing else, so a follower whose disk has synced
//! reports over another one: a Fetch that asks for no records, and is answered at once. It may say
//! that the parked one is to be answered too, because the next one asks for more partitions. The
//! first answer of a session comes at once.
//!
//! OFFSET_OUT_OF_RANGE tells where the leader's log begins and, as the high watermark, where it
//! ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use kafka_protocol::messages as m;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use letterbox_env::Gather as _;
use letterbox_env::panics::lock;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::fetch::EpochEndOffset;
use letterbox_protocol::model::{BrokerId, Offset};
use letterbox_protocol::replica;
use letterbox_storage::ReadResult;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Services;
use super::fetch::{Fetched, FetchedPartition, FetchedTopic, Left};
use crate::metadata::Secret;
use crate::replication::fetcher::Key;
use crate::replication::follower::Answer;
use crate::replication::leader::{BrokerEpoch, Eligible, FollowerFetch, FollowerReport};
use crate::replication::waiters::{Marks, Waiter};
use crate::replication::{Partition, Ticket};
use crate::request::RequestContext;
use crate::security::{Operation, Resource};
use crate::server::budget::Share;

/// The first version in which a follower says which registration it is.
const BROKER_EPOCHS_SINCE: i16 = 15;
/// The session epoch of a request that begins one.
const NEW: i32 = 0;
/// That of a request without one.
const NONE: i32 = -1;
/// So often within `replica.lag.time.max.ms` a session shows everywhere that its follower asks.
const LOOKS_WITHIN_LAG: u32 = 4;
/// And at least so often.
const LOOK_AFTER: Duration = Duration::from_secs(5);
/// Partitions that are looked at before other tasks have a turn.
const AT_ONCE: usize = 64;

/// Whether a follower asks, or somebody who says so.
pub(super) fn is_of_replica(request: &m::FetchRequest) -> bool {
    request.replica_id.0 >= 0 || request.replica_state.replica_id.0 >= 0
}

/// A registered broker.
#[derive(Clone, Copy, PartialEq, Eq)]
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

/// Answers as [`super::fetch::fetch`].
pub(super) async fn fetch(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::FetchRequest,
    held: &Share,
) -> (Fetched, Share) {
    let nothing = |fetched| (fetched, Share::new(&services.memory));
    let replica = match replica(&services, &ctx, &request) {
        Ok(replica) => replica,
        Err(error) => return nothing(refused(&request, error)),
    };
    let tags = &request.unknown_tagged_fields;
    if replica::reports(tags) {
        request.topics.iter().for_each(|topic| take_report(&services, replica, topic));
        if replica::hurries(tags) {
            services.sessions.hurry(replica.id).notify_one();
        }
        return nothing(Fetched::of(ErrorCode::None));
    }
    let mut session = match services.sessions.take(replica, &request) {
        Ok(session) => session,
        Err(error) => return nothing(Fetched::of(error)),
    };
    let most = usize::try_from(request.max_bytes).unwrap_or(0);
    let min_bytes = usize::try_from(request.min_bytes).unwrap_or(0).min(most).max(1);
    let is_new = request.session_epoch == NEW;
    let wait_ms = if is_new { 0 } else { u64::try_from(request.max_wait_ms).unwrap_or(0) };
    let deadline = Instant::now() + Duration::from_millis(wait_ms);
    session.take_in(&services, request).await;
    let wants = (most, min_bytes, deadline);
    let (mut fetched, memory) = session.answer(&services, wants, held).await;
    fetched.session = services.sessions.put_back(session);
    fetched.secret = own_secret(&services);
    (fetched, memory)
}

/// Nothing is remembered of it.
fn refused(request: &m::FetchRequest, error: ErrorCode) -> Fetched {
    let of_topic = |topic: &FetchTopic| FetchedTopic {
        name: topic.topic.clone(),
        id: topic.topic_id,
        partitions: topic.partitions.iter().map(|what| said(what.partition, error)).collect(),
    };
    Fetched {
        topics: request.topics.iter().map(of_topic).collect(),
        ..Fetched::of(ErrorCode::None)
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

/// Tells the leader how far the follower is; what it answers, unless that is to be read.
fn ask(
    partition: &Partition,
    replica: Replica,
    what: &FetchPartition,
    counts: Offset,
) -> Result<(), FetchedPartition> {
    let fetch = FollowerFetch {
        replica: replica.id,
        broker_epoch: replica.epoch,
        leader_epoch: what.current_leader_epoch,
        at: what.fetch_offset,
        last_epoch: what.last_fetched_epoch,
        counts,
        start: what.log_start_offset,
    };
    let index = what.partition;
    match partition.follower_fetches(fetch) {
        Answer::Records { .. } => Ok(()),
        Answer::Diverging { epoch, end } => {
            let diverging = Some(EpochEndOffset { epoch, end_offset: end });
            Err(FetchedPartition { diverging, ..said(index, ErrorCode::None) })
        }
        Answer::OutOfRange { leader_start, leader_end } => Err(FetchedPartition {
            high_watermark: leader_end,
            log_start_offset: leader_start,
            ..said(index, ErrorCode::OffsetOutOfRange)
        }),
        Answer::Fenced => Err(said(index, ErrorCode::FencedLeaderEpoch)),
        Answer::NotReady => Err(said(index, ErrorCode::NotLeaderOrFollower)),
    }
}

fn said(index: i32, error: ErrorCode) -> FetchedPartition {
    FetchedPartition {
        index,
        error,
        high_watermark: -1,
        log_start_offset: -1,
        diverging: None,
        records: ReadResult::default(),
    }
}

/// The sessions of followers: one for each broker that was ever proven to be one.
#[derive(Default)]
pub(crate) struct ReplicaSessions(Mutex<Sessions>);

#[derive(Default)]
struct Sessions {
    /// What has the parked fetch of each follower answered.
    hurries: BTreeMap<BrokerId, Arc<Notify>>,
    /// Those that no request goes on with now.
    idle: BTreeMap<BrokerId, Session>,
    /// The id of the last one that began.
    last: i32,
}

impl ReplicaSessions {
    fn hurry(&self, replica: BrokerId) -> Arc<Notify> {
        lock(&self.0).hurries.entry(replica).or_default().clone()
    }

    /// The session that the request goes on with, or a new one.
    ///
    /// # Errors
    /// FETCH_SESSION_ID_NOT_FOUND, INVALID_FETCH_SESSION_EPOCH: the follower begins anew.
    fn take(&self, replica: Replica, request: &m::FetchRequest) -> Result<Session, ErrorCode> {
        let (id, epoch) = (request.session_id, request.session_epoch);
        let mut sessions = lock(&self.0);
        let hurry = sessions.hurries.entry(replica.id).or_default().clone();
        let idle = sessions.idle.remove(&replica.id);
        if matches!(epoch, NEW | NONE) {
            // 0 says that there is none.
            sessions.last = sessions.last.checked_add(1).unwrap_or(1);
            let id = if epoch == NEW { sessions.last } else { 0 };
            return Ok(Session::new(id, replica, hurry));
        }
        let is_it = |session: &Session| session.id == id && session.replica == replica;
        let session = idle.filter(is_it).ok_or(ErrorCode::FetchSessionIdNotFound)?;
        match session.epoch == epoch {
            true => Ok(session),
            false => Err(ErrorCode::InvalidFetchSessionEpoch),
        }
    }

    /// Keeps a session for its next request; its id, 0 where none is kept.
    fn put_back(&self, mut session: Session) -> i32 {
        let id = session.id;
        session.epoch = session.epoch.checked_add(1).unwrap_or(1);
        if id != 0 {
            // One that began meanwhile is the newer one.
            let mut sessions = lock(&self.0);
            let newer = sessions.idle.get(&session.replica.id).filter(|other| other.id > id);
            if newer.is_none() {
                sessions.idle.insert(session.replica.id, session);
            }
        }
        id
    }
}

/// What a follower has asked for.
struct Session {
    id: i32,
    /// Of the next request.
    epoch: i32,
    replica: Replica,
    asked: BTreeMap<Key, Asked>,
    /// Those that may have news.
    marks: Arc<Marks>,
    /// Those where the follower was not in sync when they were looked at last.
    lagging: BTreeSet<Key>,
    /// The last that got records. Those behind it come first the next time: an answer is bounded.
    served: Option<Key>,
    /// When all were looked at, and who might be in sync then.
    looked: (Instant, Eligible),
    hurry: Arc<Notify>,
}

/// One asked partition.
struct Asked {
    what: FetchPartition,
    /// Up to where the follower has said that it counts.
    counts: Offset,
    /// What the leader had to say at once, unless it is to be read. A session keeps no partition
    /// that is gone, nor its files.
    found: Result<Weak<Partition>, FetchedPartition>,
    /// The high watermark that the follower knows; the log start is in `what`.
    known: Offset,
    /// Of its end, and of its high watermark.
    tickets: Option<(Ticket, Ticket)>,
}

impl Asked {
    /// The partition that is to be read.
    fn partition(&self) -> Option<Arc<Partition>> {
        self.found.as_ref().ok().and_then(Weak::upgrade)
    }

    /// A follower without space asks for none.
    fn wants_records(&self) -> bool {
        self.what.partition_max_bytes > 0
    }

    /// Has `marks` told when there is news.
    fn register(&mut self, key: Key, marks: &Arc<Marks>) {
        self.give_up();
        let Some(partition) = self.partition() else { return };
        let (at, known) = (self.what.fetch_offset, self.known);
        let past_end = at.saturating_add(1);
        // Of a high watermark past its own end it learns with the records.
        let news = if known < at { known.saturating_add(1) } else { past_end };
        let who = || Waiter::Session(marks.clone(), key);
        // Of a new log start, and who is in sync, it hears without wanting records.
        let end = if self.wants_records() { past_end } else { Offset::MAX };
        let tickets =
            (partition.ends.register(end, who()), partition.waiters.register(news, who()));
        self.tickets = Some(tickets);
    }

    fn give_up(&mut self) {
        if let (Some(partition), Some((end, news))) = (self.partition(), self.tickets.take()) {
            partition.ends.forget(end);
            partition.waiters.forget(news);
        }
    }

    /// Whether the follower has to hear of this, beside records.
    fn is_news(&self, fetched: &FetchedPartition) -> bool {
        fetched.error != ErrorCode::None
            || fetched.diverging.is_some()
            || fetched.high_watermark.min(self.what.fetch_offset) > self.known
            || fetched.log_start_offset.min(self.known) > self.what.log_start_offset
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// One round over the partitions that may have news.
struct Gathered {
    found: BTreeMap<Key, FetchedPartition>,
    /// Those that have more than the answer holds.
    left: BTreeSet<Key>,
    is_enough: bool,
}

impl Session {
    fn new(id: i32, replica: Replica, hurry: Arc<Notify>) -> Self {
        let (asked, marks, lagging) = (BTreeMap::new(), Arc::default(), BTreeSet::new());
        let looked = (Instant::now(), Eligible::default());
        Self { id, epoch: 0, replica, asked, marks, lagging, served: None, looked, hurry }
    }

    /// What the request says of partitions.
    async fn take_in(&mut self, services: &Services, request: m::FetchRequest) {
        for topic in request.forgotten_topics_data {
            for index in topic.partitions {
                self.asked.remove(&(topic.topic_id, index));
                self.lagging.remove(&(topic.topic_id, index));
            }
        }
        let mut due = self.look(services);
        for topic in request.topics {
            for mut what in topic.partitions {
                let key = (topic.topic_id, what.partition);
                let standing = replica::standing(&std::mem::take(&mut what.unknown_tagged_fields));
                let hosted = services.replicas.hosted(&key);
                let missing = || said(key.1, ErrorCode::NotLeaderOrFollower);
                let counts = standing.map_or(-1, |standing| standing.counts);
                let known = standing.map_or(-1, |standing| standing.high_watermark);
                let found = hosted.as_ref().map(Arc::downgrade).ok_or_else(missing);
                self.asked.insert(key, Asked { what, counts, found, known, tickets: None });
                self.marks.mark(key);
                due.insert(key);
            }
        }
        for (n, key) in due.into_iter().enumerate() {
            if n % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            self.ask(key);
        }
    }

    /// Those of which the leader is told again that the follower asks for them. When a broker has
    /// come or gone, and now and then, these are all; then their log start is looked at too, of
    /// which nobody is told when retention moves it.
    fn look(&mut self, services: &Services) -> BTreeSet<Key> {
        let lag_max = services.config.duration("replica.lag.time.max.ms");
        let (looked, before) = &self.looked;
        let eligible = services.replicas.eligible();
        let is_same = Arc::ptr_eq(before, &eligible);
        if is_same && looked.elapsed() < LOOK_AFTER.min(lag_max / LOOKS_WITHIN_LAG) {
            return self.lagging.clone();
        }
        self.looked = (Instant::now(), eligible);
        self.asked.keys().for_each(|key| self.marks.mark(*key));
        self.asked.keys().copied().gather()
    }

    /// Tells the leader how far the follower is.
    fn ask(&mut self, key: Key) {
        let Some(asked) = self.asked.get_mut(&key) else { return };
        let Some(partition) = asked.partition() else { return };
        if let Err(answer) = ask(&partition, self.replica, &asked.what, asked.counts) {
            asked.give_up();
            asked.found = Err(answer);
            self.marks.mark(key);
        }
        self.note_lag(key, &partition);
    }

    fn note_lag(&mut self, key: Key, partition: &Partition) {
        match partition.knows_in_sync(self.replica.id) {
            true => self.lagging.remove(&key),
            false => self.lagging.insert(key),
        };
    }

    /// What is to be told, as soon as it is worth it.
    async fn answer(
        &mut self,
        services: &Services,
        (most, min_bytes, mut deadline): (usize, usize, Instant),
        held: &Share,
    ) -> (Fetched, Share) {
        let (marks, hurry) = (self.marks.clone(), self.hurry.clone());
        let mut due = BTreeSet::new();
        loop {
            due.append(&mut marks.take());
            let mut memory = Share::new(&services.memory);
            let gathered = self.gather(services, due, (most, min_bytes), &mut memory).await;
            if gathered.is_enough || Instant::now() >= deadline {
                gathered.left.iter().for_each(|key| marks.mark(*key));
                return (self.told(gathered.found), memory);
            }
            due = gathered.left;
            due.extend(gathered.found.into_keys());
            // What waits holds no records.
            drop(memory);
            tokio::select! {
                biased;
                () = marks.came.notified() => {}
                () = tokio::time::sleep_until(deadline) => {}
                () = hurry.notified() => deadline = Instant::now(),
                () = held.until_pressed() => deadline = Instant::now(),
            }
        }
    }

    async fn gather(
        &mut self,
        services: &Services,
        due: BTreeSet<Key>,
        (most, min_bytes): (usize, usize),
        memory: &mut Share,
    ) -> Gathered {
        let (mut left, mut bytes, mut has_news) = (Left::new(most), 0, false);
        let (mut found, mut more) = (BTreeMap::new(), BTreeSet::new());
        let (behind, first): (Vec<Key>, Vec<Key>) =
            due.into_iter().partition(|key| Some(*key) <= self.served);
        for (n, key) in first.into_iter().chain(behind).enumerate() {
            if n % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let Some(asked) = self.asked.get_mut(&key) else { continue };
            // And looked at afterwards, so that no move is missed in between.
            asked.register(key, &self.marks);
            let partition = asked.partition();
            let (fetched, has_more) = match (&asked.found, &partition) {
                (Ok(_), Some(partition)) => {
                    let read = read(services, partition, &asked.what, &left, memory).await;
                    let is_there = read.error == ErrorCode::None && read.records.bytes == 0;
                    let is_more = partition.end_offset() > asked.what.fetch_offset;
                    (read, is_there && is_more && asked.wants_records())
                }
                (Ok(_), None) => (said(key.1, ErrorCode::NotLeaderOrFollower), false),
                (Err(answer), _) => (answer.clone(), false),
            };
            let is_news = asked.is_news(&fetched);
            has_news |= is_news;
            bytes += fetched.records.bytes;
            left.take(&fetched.records);
            if has_more {
                more.insert(key);
            }
            if is_news || fetched.records.bytes > 0 {
                found.insert(key, fetched);
            }
            if let Some(partition) = partition {
                self.note_lag(key, &partition);
            }
        }
        let is_enough = has_news || bytes >= min_bytes || left.has_all_files();
        Gathered { found, left: more, is_enough }
    }

    /// The follower hears of this now.
    fn told(&mut self, found: BTreeMap<Key, FetchedPartition>) -> Fetched {
        let mut topics: Vec<FetchedTopic> = Vec::new();
        for (key, fetched) in found {
            let is_over = fetched.error != ErrorCode::None
                || fetched.diverging.is_some()
                || fetched.records.bytes > 0;
            if fetched.records.bytes > 0 {
                self.served = Some(key);
            }
            if is_over {
                self.asked.remove(&key);
                self.lagging.remove(&key);
            } else if let Some(asked) = self.asked.get_mut(&key) {
                asked.known = asked.known.max(fetched.high_watermark.min(asked.what.fetch_offset));
                let start = fetched.log_start_offset.min(asked.known);
                asked.what.log_start_offset = asked.what.log_start_offset.max(start);
                asked.register(key, &self.marks);
                // It may have moved in between.
                self.marks.mark(key);
            }
            match topics.last_mut().filter(|topic| topic.id == key.0) {
                Some(topic) => topic.partitions.push(fetched),
                None => {
                    let (name, partitions) = (m::TopicName::default(), vec![fetched]);
                    topics.push(FetchedTopic { name, id: key.0, partitions });
                }
            }
        }
        Fetched { topics, ..Fetched::of(ErrorCode::None) }
    }
}

async fn read(
    services: &Services,
    partition: &Arc<Partition>,
    what: &FetchPartition,
    left: &Left,
    memory: &mut Share,
) -> FetchedPartition {
    let may_keep = |bytes| memory.try_grow_to(memory.bytes() + bytes);
    let (epoch, index) = (what.current_leader_epoch, what.partition);
    let mut wanted = left.wanted(what);
    wanted.at_least_one_batch &= what.partition_max_bytes > 0;
    let shown = match partition.read_for_follower(&services.env, epoch, wanted, may_keep).await {
        Ok(shown) => shown,
        Err(error) => return said(index, error),
    };
    let (high_watermark, log_start_offset) = (shown.high_watermark, shown.log_start_offset);
    match shown.records {
        Ok(records) => FetchedPartition {
            high_watermark,
            log_start_offset: partition.log().map_or(-1, |log| log.start_for_followers()),
            records,
            ..said(index, ErrorCode::None)
        },
        // It was deleted meanwhile.
        Err(error) => FetchedPartition {
            high_watermark: partition.end_offset(),
            log_start_offset,
            ..said(index, error)
        },
    }
}
