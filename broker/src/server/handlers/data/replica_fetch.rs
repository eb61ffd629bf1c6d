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
use kafka_protocol::messages::fetch_request::FetchTopic;
use letterbox_env::Gather as _;
use letterbox_env::panics::lock;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::fetch::EpochEndOffset;
use letterbox_protocol::model::{BrokerId, Offset, TopicId};
use letterbox_protocol::replica;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Services;
use super::fetch::{Fetched, FetchedPartition, FetchedTopic, Left};
use super::session::{self, AT_ONCE, Found, NEW, NONE, Side, Wants, What, next_epoch, said};
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
/// So often within `replica.lag.time.max.ms` a session shows everywhere that its follower asks.
const LOOKS_WITHIN_LAG: u32 = 4;
/// And at least so often.
const LOOK_AFTER: Duration = Duration::from_secs(5);

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
    take_in(&mut session, &services, request).await;
    let (wants, hurry) = (Wants { most, min_bytes, deadline }, session.side.hurry.clone());
    let none = BTreeSet::new();
    let (gathered, memory) = session.wait(&services, none, wants, (held, &*hurry)).await;
    let mut fetched = session.tell(gathered);
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
    what: &What,
    counts: Offset,
) -> Result<(), FetchedPartition> {
    let fetch = FollowerFetch {
        replica: replica.id,
        broker_epoch: replica.epoch,
        leader_epoch: what.leader_epoch,
        at: what.at,
        last_epoch: what.last_epoch,
        counts,
        start: what.start,
    };
    let index = what.index;
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
            return Ok(Session::new(id, Following::new(replica, hurry)));
        }
        let is_it = |session: &Session| session.id == id && session.side.replica == replica;
        let session = idle.filter(is_it).ok_or(ErrorCode::FetchSessionIdNotFound)?;
        match session.epoch == epoch {
            true => Ok(session),
            false => Err(ErrorCode::InvalidFetchSessionEpoch),
        }
    }

    /// Keeps a session for its next request; its id, 0 where none is kept.
    fn put_back(&self, mut session: Session) -> i32 {
        let id = session.id;
        session.epoch = next_epoch(session.epoch);
        if id != 0 {
            // One that began meanwhile is the newer one.
            let mut sessions = lock(&self.0);
            let replica = session.side.replica.id;
            let newer = sessions.idle.get(&replica).filter(|other| other.id > id);
            if newer.is_none() {
                sessions.idle.insert(replica, session);
            }
        }
        id
    }
}

type Session = session::Session<Following>;

/// A follower.
struct Following {
    replica: Replica,
    /// Those where it was not in sync when they were looked at last.
    lagging: BTreeSet<Key>,
    /// When all were looked at, and who might be in sync then.
    looked: (Instant, Eligible),
    hurry: Arc<Notify>,
}

/// One asked partition.
struct Asked {
    what: What,
    /// Up to where the follower has said that it counts.
    counts: Offset,
    /// What the leader had to say at once, unless it is to be read. A session keeps no partition
    /// that is gone, nor its files.
    found: Result<Weak<Partition>, Box<FetchedPartition>>,
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
        self.what.max_bytes > 0
    }

    /// Has `marks` told when there is news.
    fn register(&mut self, key: Key, marks: &Arc<Marks>) {
        self.give_up();
        let Some(partition) = self.partition() else { return };
        let (at, known) = (self.what.at, self.known);
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
            || fetched.high_watermark.min(self.what.at) > self.known
            || fetched.log_start_offset.min(self.known) > self.what.start
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl Following {
    fn new(replica: Replica, hurry: Arc<Notify>) -> Self {
        let looked = (Instant::now(), Eligible::default());
        Self { replica, lagging: BTreeSet::new(), looked, hurry }
    }

    fn note_lag(&mut self, key: Key, partition: &Partition) {
        match partition.knows_in_sync(self.replica.id) {
            true => self.lagging.remove(&key),
            false => self.lagging.insert(key),
        };
    }
}

/// What the request says of partitions.
async fn take_in(session: &mut Session, services: &Services, request: m::FetchRequest) {
    for topic in request.forgotten_topics_data {
        for index in topic.partitions {
            session.asked.remove(&(topic.topic_id, index));
            session.side.lagging.remove(&(topic.topic_id, index));
        }
    }
    let mut due = look_at_all(session, services);
    for topic in request.topics {
        for what in topic.partitions {
            let key = (topic.topic_id, what.partition);
            let standing = replica::standing(&what.unknown_tagged_fields);
            let hosted = services.replicas.hosted(&key);
            let missing = || Box::new(said(key.1, ErrorCode::NotLeaderOrFollower));
            let asked = Asked {
                what: What::from(&what),
                counts: standing.map_or(-1, |standing| standing.counts),
                found: hosted.as_ref().map(Arc::downgrade).ok_or_else(missing),
                known: standing.map_or(-1, |standing| standing.high_watermark),
                tickets: None,
            };
            session.asked.insert(key, asked);
            session.marks.note(key);
            due.insert(key);
        }
    }
    for (n, key) in due.into_iter().enumerate() {
        if n % AT_ONCE == AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
        say_how_far(session, key);
    }
}

/// Those of which the leader is told again that the follower asks for them. When a broker has come
/// or gone, and now and then, these are all; then their log start is looked at too, of which nobody
/// is told when retention moves it.
fn look_at_all(session: &mut Session, services: &Services) -> BTreeSet<Key> {
    let lag_max = services.config.duration("replica.lag.time.max.ms");
    let (looked, before) = &session.side.looked;
    let eligible = services.replicas.eligible();
    let is_same = Arc::ptr_eq(before, &eligible);
    if is_same && looked.elapsed() < LOOK_AFTER.min(lag_max / LOOKS_WITHIN_LAG) {
        return session.side.lagging.clone();
    }
    session.side.looked = (Instant::now(), eligible);
    session.asked.keys().for_each(|key| session.marks.note(*key));
    session.asked.keys().copied().gather()
}

/// Tells the leader how far the follower is.
fn say_how_far(session: &mut Session, key: Key) {
    let Some(asked) = session.asked.get_mut(&key) else { return };
    let Some(partition) = asked.partition() else { return };
    if let Err(answer) = ask(&partition, session.side.replica, &asked.what, asked.counts) {
        asked.give_up();
        asked.found = Err(Box::new(answer));
        session.marks.note(key);
    }
    session.side.note_lag(key, &partition);
}

impl Side for Following {
    type Asked = Asked;

    async fn look(
        &mut self,
        services: &Services,
        (key, asked): (Key, &mut Asked),
        marks: &Arc<Marks>,
        left: &Left,
        memory: &mut Share,
    ) -> Found {
        asked.register(key, marks);
        let partition = asked.partition();
        let (fetched, has_more) = match (&asked.found, &partition) {
            (Ok(_), Some(partition)) => {
                let read = read(services, partition, &asked.what, left, memory).await;
                let is_there = read.error == ErrorCode::None && read.records.bytes == 0;
                let is_more = partition.end_offset() > asked.what.at;
                (read, is_there && is_more && asked.wants_records())
            }
            (Ok(_), None) => (said(key.1, ErrorCode::NotLeaderOrFollower), false),
            (Err(answer), _) => ((**answer).clone(), false),
        };
        if let Some(partition) = partition {
            self.note_lag(key, &partition);
        }
        let is_news = asked.is_news(&fetched);
        Found { fetched, is_news, is_urgent: is_news, has_more }
    }

    /// Followers speak of ids.
    fn name(&self, _: &TopicId) -> m::TopicName {
        m::TopicName::default()
    }

    fn told(
        &mut self,
        key: Key,
        asked: &mut Asked,
        fetched: &FetchedPartition,
        marks: &Arc<Marks>,
    ) -> bool {
        let is_over = fetched.error != ErrorCode::None
            || fetched.diverging.is_some()
            || fetched.records.bytes > 0;
        if is_over {
            self.lagging.remove(&key);
        } else {
            asked.known = asked.known.max(fetched.high_watermark.min(asked.what.at));
            let start = fetched.log_start_offset.min(asked.known);
            asked.what.start = asked.what.start.max(start);
            asked.register(key, marks);
            // It may have moved in between.
            marks.note(key);
        }
        !is_over
    }
}

async fn read(
    services: &Services,
    partition: &Arc<Partition>,
    what: &What,
    left: &Left,
    memory: &mut Share,
) -> FetchedPartition {
    let may_keep = |bytes| memory.try_grow_to(memory.bytes() + bytes);
    let (epoch, index) = (what.leader_epoch, what.index);
    let mut wanted = left.wanted(what.at, what.max_bytes);
    wanted.at_least_one_batch &= what.max_bytes > 0;
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
