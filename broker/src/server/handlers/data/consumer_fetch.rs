//! Fetch 7–18 of a consumer in a session (KIP-227): see [`super::session`].
//!
//! What is answered is what [`super::fetch`] answers, of the partitions that have news: records, an
//! error, or another high watermark or log start than the client was told last. The first answer
//! names all, and one after an error of a partition names that again. What was answered with records
//! and is not asked for anew from behind them is sent again.
//!
//! A session is one of `max.incremental.fetch.session.cache.slots`, and its memory is part of the
//! account; where either is used up, one goes that no request has gone on with for two minutes, or
//! one that is smaller than the new one and at least two minutes old (KIP-227), and else the new one
//! is none: its client names all partitions each time. A session ends with the connection on which
//! it began, too, because no client goes on with it on another one.
//!
//! Nobody is told when retention moves a log start, or when what a caller may read has changed:
//! each session looks at all of its partitions now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use kafka_protocol::messages as m;
use kafka_protocol::messages::fetch_request::{FetchTopic, ForgottenTopic};
use kafka_protocol::protocol::StrBytes;
use letterbox_env::Random;
use letterbox_env::panics::lock;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::{Offset, TopicId};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::fetch::{Fetched, FetchedPartition, Left, count_sent, one};
use super::session::{self, AT_ONCE, Found, NEW, NONE, Side, Wants, What, next_epoch, said};
use super::{SETTLE_MAX, Services};
use crate::metadata::{MetadataImage, Topic};
use crate::replication::fetcher::Key;
use crate::replication::waiters::{Marks, Waiter};
use crate::replication::{Partition, Ticket};
use crate::request::{Caller, RequestContext};
use crate::security::{Operation, Resource};
use crate::server::budget::Share;

/// The first version that names topics by their ids.
const IDS_SINCE: i16 = 13;
/// A session that no request has gone on with for so long may go, and so may one that has been there
/// for so long, for a larger one (KIP-227).
const EVICTED_AFTER: Duration = Duration::from_secs(120);
/// How often a session looks at all of its partitions.
const LOOK_AFTER: Duration = Duration::from_secs(5);
/// Sessions may have so much of the account, one byte in so many: they last, and others need the
/// rest.
const PART_OF_ACCOUNT: usize = 8;
/// A partition in a session, with the nodes of the maps that it is in: its own, that of those who
/// wait for the partition, and that of those that have moved.
const ENTRY_BYTES: usize = 3 * (size_of::<Key>() + size_of::<Asked>()) / 2
    + 2 * (size_of::<Waiter>() + 16 + size_of::<Key>());
/// A topic in a session by names, beside its name.
const TOPIC_BYTES: usize = 200;

pub(super) type Session = session::Session<Reading>;

/// A consumer.
pub(super) struct Reading {
    /// The request that is under way.
    ctx: RequestContext,
    topics: Topics,
    /// When all partitions were looked at.
    looked: Instant,
    /// How many records clients had written when all that was acknowledged could be read.
    settled: Option<u64>,
    /// What the session holds.
    memory: Share,
}

/// How the requests of a session name topics: all in the same way.
enum Topics {
    ById,
    /// Each name has a number in the place of an id.
    ByName {
        numbers: BTreeMap<m::TopicName, TopicId>,
        names: BTreeMap<TopicId, m::TopicName>,
        last: u128,
        /// What they take.
        bytes: usize,
    },
}

impl Topics {
    fn of(version: i16) -> Self {
        match version >= IDS_SINCE {
            true => Self::ById,
            false => {
                let (numbers, names) = (BTreeMap::new(), BTreeMap::new());
                Self::ByName { numbers, names, last: 0, bytes: 0 }
            }
        }
    }

    fn is_by_id(&self) -> bool {
        matches!(self, Self::ById)
    }

    /// What is said of a partition that does not exist.
    fn missing(&self) -> ErrorCode {
        match self {
            Self::ById => ErrorCode::UnknownTopicId,
            Self::ByName { .. } => ErrorCode::UnknownTopicOrPartition,
        }
    }

    /// The topic as the session knows it; a new one.
    fn number(&mut self, topic: &FetchTopic) -> TopicId {
        match self {
            Self::ById => topic.topic_id,
            Self::ByName { numbers, names, last, bytes } => {
                if let Some(number) = numbers.get(&topic.topic) {
                    return *number;
                }
                *last += 1;
                let number = TopicId::from_u128(*last);
                // A copy: the one of the request is a part of its frame.
                let name = m::TopicName(StrBytes::from_string(topic.topic.to_string()));
                *bytes += bytes_of_name(&name);
                numbers.insert(name.clone(), number);
                names.insert(number, name);
                number
            }
        }
    }

    fn known(&self, topic: &ForgottenTopic) -> Option<TopicId> {
        match self {
            Self::ById => Some(topic.topic_id),
            Self::ByName { numbers, .. } => numbers.get(&topic.topic).copied(),
        }
    }

    /// None of its partitions is left.
    fn forget(&mut self, topic: TopicId) {
        if let Self::ByName { numbers, names, bytes, .. } = self
            && let Some(name) = names.remove(&topic)
        {
            numbers.remove(&name);
            *bytes -= bytes_of_name(&name);
        }
    }

    /// What they take, and `topics` when they are new.
    fn bytes_with(&self, topics: &[FetchTopic]) -> usize {
        let new = || topics.iter().map(|topic| bytes_of_name(&topic.topic)).sum();
        self.bytes().saturating_add(if self.is_by_id() { 0 } else { new() })
    }

    fn find<'a>(&self, image: &'a MetadataImage, topic: &TopicId) -> Option<&'a Arc<Topic>> {
        match self {
            Self::ById => image.topic_by_id(topic),
            Self::ByName { names, .. } => image.topic(names.get(topic)?.as_str()),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::ById => 0,
            Self::ByName { bytes, .. } => *bytes,
        }
    }
}

/// One asked partition.
pub(super) struct Asked {
    what: What,
    /// The partition as it was found last. A session keeps none that is gone, nor its files.
    found: Weak<Partition>,
    /// High watermark and log start, as the client knows them.
    told: Option<(Offset, Offset)>,
    /// Of the high watermark of `found`.
    ticket: Option<Ticket>,
}

impl Asked {
    fn give_up(&mut self) {
        if let (Some(partition), Some(ticket)) = (self.found.upgrade(), self.ticket.take()) {
            partition.waiters.forget(ticket);
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Answers as [`super::fetch::fetch`].
pub(super) async fn fetch_in(
    mut session: Session,
    services: &Services,
    ctx: RequestContext,
    request: m::FetchRequest,
    held: &Share,
) -> (Fetched, Share) {
    session.side.ctx = ctx;
    let sessions = &services.consumers;
    let most = usize::try_from(request.max_bytes).unwrap_or(0);
    let most = most.min(services.config.size("fetch.max.bytes"));
    let min_bytes = usize::try_from(request.min_bytes).unwrap_or(0).min(most);
    let max_wait_ms = if min_bytes > 0 { request.max_wait_ms } else { 0 };
    let read_committed = request.isolation_level == 1;
    let due = take_in(&mut session, request);
    if session.asked.is_empty() || !sessions.hold(services, &mut session) {
        sessions.end(session.id);
        let error = match session.asked.is_empty() {
            true => ErrorCode::None,
            // Its client begins anew, and has none then.
            false => ErrorCode::FetchSessionIdNotFound,
        };
        return (Fetched::of(error), Share::new(&services.memory));
    }
    look_at_all(&mut session, services).await;
    let wait = Duration::from_millis(u64::try_from(max_wait_ms).unwrap_or(0));
    let wants = Wants { most, min_bytes: min_bytes.max(1), deadline: Instant::now() + wait };
    let never = Notify::new();
    let (mut gathered, mut memory) = session.wait(services, due, wants, (held, &never)).await;
    if !gathered.is_enough && gathered.bytes == 0 {
        // It would say that there is nothing.
        let mut due = settle(&mut session, services).await;
        if !due.is_empty() {
            due.append(&mut gathered.keys());
            drop(memory);
            let wants = Wants { deadline: Instant::now(), ..wants };
            (gathered, memory) = session.wait(services, due, wants, (held, &never)).await;
        }
    }
    let mut fetched = session.tell(gathered);
    let told = fetched.topics.iter().flat_map(|topic| {
        let (id, asked) = (topic.id, &session.asked);
        let of = move |one: &FetchedPartition| asked.get(&(id, one.index))?.found.upgrade();
        topic.partitions.iter().map(move |one| (of(one), one))
    });
    count_sent(services, told);
    fetched.read_committed = read_committed;
    fetched.session = sessions.put_back(session);
    (fetched, memory)
}

/// What the request says of partitions; those that it names. What it both names and forgets is
/// forgotten.
///
/// Source: Apache Kafka's FetchSession.
fn take_in(session: &mut Session, request: m::FetchRequest) -> BTreeSet<Key> {
    let mut named = BTreeSet::new();
    for topic in request.topics {
        if topic.partitions.is_empty() {
            continue;
        }
        session.side.settled = None;
        let number = session.side.topics.number(&topic);
        for what in &topic.partitions {
            let (key, what) = ((number, what.partition), What::from(what));
            match session.asked.get_mut(&key) {
                Some(asked) => asked.what = what,
                None => {
                    let asked = Asked { what, found: Weak::new(), told: None, ticket: None };
                    session.asked.insert(key, asked);
                }
            }
            named.insert(key);
        }
    }
    for topic in request.forgotten_topics_data {
        let Some(number) = session.side.topics.known(&topic) else { continue };
        for index in topic.partitions {
            session.asked.remove(&(number, index));
        }
        if session.asked.range((number, i32::MIN)..=(number, i32::MAX)).next().is_none() {
            session.side.topics.forget(number);
        }
    }
    named
}

/// Now and then: what has moved without a word, and what the caller may not read any more.
async fn look_at_all(session: &mut Session, services: &Services) {
    if session.side.looked.elapsed() < LOOK_AFTER {
        return;
    }
    session.side.looked = Instant::now();
    let mut last: Option<(TopicId, bool)> = None;
    for (n, (key, asked)) in session.asked.iter().enumerate() {
        if n % AT_ONCE == AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
        let may_read = match last {
            Some((topic, may_read)) if topic == key.0 => may_read,
            _ => session.side.may_read(services, &key.0),
        };
        last = Some((key.0, may_read));
        let found = asked.found.upgrade();
        let start = found.and_then(|found| Some(found.log().ok()?.start_offset()));
        if !may_read || start != asked.told.map(|(_, start)| start) {
            session.marks.note(*key);
        }
    }
}

/// Waits until the partitions show what was acknowledged before, unless no client has written since
/// that was so last; those that have moved. One whose disk does not answer is left as it is.
///
/// What a partition shows, its client may know of before the partition has marked itself: so marks
/// are not enough.
async fn settle(session: &mut Session, services: &Services) -> BTreeSet<Key> {
    let (mut moved, written) = (BTreeSet::new(), services.metrics.messages_in.get());
    if session.side.settled.replace(written) == Some(written) {
        return moved;
    }
    let deadline = Instant::now() + SETTLE_MAX;
    for (n, (key, asked)) in session.asked.iter().enumerate() {
        if n % AT_ONCE == AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
        let Some(partition) = asked.found.upgrade() else { continue };
        let has_unseen = || partition.end_offset() > partition.high_watermark();
        if has_unseen() && (partition.settle(deadline).await.is_err() || has_unseen()) {
            // It may be acknowledged, and seen, without another write: the next answer looks again.
            session.side.settled = None;
        }
        if asked.told.is_none_or(|(known, _)| partition.high_watermark() > known) {
            moved.insert(*key);
        }
    }
    moved
}

impl Reading {
    fn may_read(&self, services: &Services, topic: &TopicId) -> bool {
        let image = services.image();
        self.topics.find(&image, topic).is_none_or(|topic| {
            self.ctx.check(Operation::Read, Resource::Topic(&topic.name)).is_ok()
        })
    }

    /// The partition, as it is now. Whether a topic exists is told to whoever may read it. Ids tell
    /// nothing.
    fn find(
        &self,
        services: &Services,
        key: &Key,
        asked: &mut Asked,
    ) -> Result<Arc<Partition>, ErrorCode> {
        asked.found = Weak::new();
        let image = services.image();
        let hit = self.topics.find(&image, &key.0);
        let name = match (hit, &self.topics) {
            (Some(hit), _) => Some(&*hit.name),
            (None, Topics::ByName { names, .. }) => names.get(&key.0).map(|name| name.as_str()),
            (None, Topics::ById) => None,
        };
        if let Some(name) = name {
            self.ctx.check(Operation::Read, Resource::Topic(name))?;
        }
        let id = hit.ok_or(self.topics.missing())?.id;
        let partition = services.replicas.partition(&id, key.1)?;
        partition.check_epoch(asked.what.leader_epoch)?;
        asked.found = Arc::downgrade(&partition);
        Ok(partition)
    }
}

impl Side for Reading {
    type Asked = Asked;

    async fn look(
        &mut self,
        services: &Services,
        (key, asked): (Key, &mut Asked),
        marks: &Arc<Marks>,
        left: &Left,
        memory: &mut Share,
    ) -> Found {
        asked.give_up();
        let read = match self.find(services, &key, asked) {
            Ok(partition) => {
                let next = partition.high_watermark().saturating_add(1);
                let waiter = Waiter::Session(marks.clone(), key);
                asked.ticket = Some(partition.waiters.register(next, waiter));
                match one(services, &partition, &asked.what, left, memory).await {
                    // Deleted, or moved, while it was read.
                    _ if partition.is_gone() => Err(partition.gone_as(self.topics.missing())),
                    read => read,
                }
            }
            Err(error) => Err(error),
        };
        let fetched = read.unwrap_or_else(|error| said(key.1, error));
        let is_urgent = fetched.error != ErrorCode::None;
        let has_more =
            !is_urgent && fetched.records.bytes == 0 && fetched.high_watermark > asked.what.at;
        let is_news =
            is_urgent || asked.told != Some((fetched.high_watermark, fetched.log_start_offset));
        Found { fetched, is_news, is_urgent, has_more }
    }

    fn told(
        &mut self,
        key: Key,
        asked: &mut Asked,
        fetched: &FetchedPartition,
        marks: &Arc<Marks>,
    ) -> bool {
        let is_well = fetched.error == ErrorCode::None;
        asked.told = is_well.then_some((fetched.high_watermark, fetched.log_start_offset));
        if !is_well || fetched.records.bytes > 0 {
            marks.note(key);
        }
        true
    }

    fn name(&self, topic: &TopicId) -> m::TopicName {
        match &self.topics {
            Topics::ById => m::TopicName::default(),
            Topics::ByName { names, .. } => names.get(topic).cloned().unwrap_or_default(),
        }
    }
}

/// The sessions of consumers.
#[derive(Default)]
pub(crate) struct ConsumerSessions(Mutex<Slots>);

#[derive(Default)]
struct Slots {
    all: BTreeMap<i32, Slot>,
    /// Which began on which connection.
    of_connections: BTreeSet<(usize, i32)>,
    /// What they hold of the account.
    bytes: usize,
    partitions: usize,
    /// When it is worth looking again who might go: nobody could when that was done last.
    full_until: Option<Instant>,
}

/// The place of one session.
struct Slot {
    /// The connection on which it began, by where its caller is in memory.
    of: usize,
    since: Instant,
    used: Instant,
    partitions: usize,
    bytes: usize,
    /// `None` while a request goes on with it.
    idle: Option<Session>,
}

fn place_of(caller: &Arc<Caller>) -> usize {
    Arc::as_ptr(caller).addr()
}

impl ConsumerSessions {
    /// How many there are, and how many partitions they have.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let slots = lock(&self.0);
        (slots.all.len(), slots.partitions)
    }

    /// Ends the session `id`, if there is one; kafka-go says −1 for none.
    fn end(&self, id: i32) {
        let ended = if id > 0 { lock(&self.0).remove(id) } else { None };
        // After the lock: it leaves all partitions that it waits for.
        drop(ended);
    }

    /// The connection of `caller` has ended.
    pub(crate) fn connection_ended(&self, caller: &Arc<Caller>) {
        let mut slots = lock(&self.0);
        let of = place_of(caller);
        let begun = slots.of_connections.range((of, 0)..=(of, i32::MAX));
        let ids: Vec<i32> = begun.map(|(_, id)| *id).collect();
        let ended: Vec<_> = ids.into_iter().filter_map(|id| slots.remove(id)).collect();
        drop(slots);
        drop(ended);
    }

    /// The session of the request: a new one, in place of the one that it names, or the one that it
    /// goes on with; `None` where it wants none, or there is no place for one.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub(super) fn of(
        &self,
        services: &Services,
        ctx: &RequestContext,
        request: &m::FetchRequest,
    ) -> Result<Option<Session>, ErrorCode> {
        let (id, epoch) = (request.session_id, request.session_epoch);
        if matches!(epoch, NEW | NONE) {
            self.end(id);
        }
        match epoch {
            NONE => Ok(None),
            NEW => Ok(self.begin(services, ctx, request)),
            epoch => self.take(ctx.api_version, id, epoch).map(Some),
        }
    }

    fn begin(
        &self,
        services: &Services,
        ctx: &RequestContext,
        request: &m::FetchRequest,
    ) -> Option<Session> {
        let partitions = request.topics.iter().map(|topic| topic.partitions.len()).sum();
        let topics = Topics::of(ctx.api_version);
        let bytes = bytes_of(partitions, topics.bytes_with(&request.topics));
        let slots_max = services.config.size("max.incremental.fetch.session.cache.slots");
        let mut memory = Share::new(&services.memory);
        if partitions == 0 || slots_max == 0 || !memory.try_grow_to(bytes) {
            return None;
        }
        let (now, bytes_max) = (Instant::now(), services.memory.size() / PART_OF_ACCOUNT);
        if bytes > bytes_max {
            return None;
        }
        let mut evicted = Vec::new();
        let mut slots = lock(&self.0);
        while slots.all.len() >= slots_max || slots.bytes.saturating_add(bytes) > bytes_max {
            let gone = slots.may_go(partitions, now)?;
            evicted.extend(slots.remove(gone));
        }
        let id = slots.new_id(&*services.env.random);
        let (of, since, used) = (place_of(&ctx.caller), now, now);
        slots.of_connections.insert((of, id));
        slots.all.insert(id, Slot { of, since, used, partitions, bytes, idle: None });
        slots.bytes += bytes;
        slots.partitions += partitions;
        drop(slots);
        drop(evicted);
        let (ctx, looked, settled) = (ctx.clone(), now, None);
        Some(Session::new(id, Reading { ctx, topics, looked, settled, memory }))
    }

    /// The session that the request goes on with.
    ///
    /// # Errors
    /// FETCH_SESSION_ID_NOT_FOUND, INVALID_FETCH_SESSION_EPOCH, FETCH_SESSION_TOPIC_ID_ERROR.
    fn take(&self, version: i16, id: i32, epoch: i32) -> Result<Session, ErrorCode> {
        let mut slots = lock(&self.0);
        let slot = slots.all.get_mut(&id).ok_or(ErrorCode::FetchSessionIdNotFound)?;
        let is_next = |session: &mut Session| session.epoch == epoch;
        let by_id = version >= IDS_SINCE;
        if slot.idle.as_ref().is_some_and(|idle| idle.side.topics.is_by_id() != by_id) {
            return Err(ErrorCode::FetchSessionTopicIdError);
        }
        // The epoch of one that a request goes on with has passed.
        let taken = slot.idle.take_if(is_next).ok_or(ErrorCode::InvalidFetchSessionEpoch);
        let session = taken?;
        slot.used = Instant::now();
        Ok(session)
    }

    /// Takes what the session needs of the account now; whether there is so much.
    fn hold(&self, services: &Services, session: &mut Session) -> bool {
        let bytes = bytes_of(session.asked.len(), session.side.topics.bytes());
        let held = session.side.memory.bytes();
        if bytes == held {
            return true;
        }
        let bytes_max = services.memory.size() / PART_OF_ACCOUNT;
        let mut slots = lock(&self.0);
        let others = slots.bytes.saturating_sub(held);
        let Some(slot) = slots.all.get_mut(&session.id) else { return false };
        if bytes > held && others.saturating_add(bytes) > bytes_max {
            return false;
        }
        slot.bytes = bytes;
        slots.bytes = others + bytes;
        drop(slots);
        session.side.memory.try_resize_to(bytes)
    }

    /// Keeps a session for its next request, unless its place was given to another one; its id, 0
    /// then.
    fn put_back(&self, mut session: Session) -> i32 {
        session.epoch = next_epoch(session.epoch);
        let (id, partitions) = (session.id, session.asked.len());
        let mut slots = lock(&self.0);
        let Some(slot) = slots.all.get_mut(&id) else {
            drop(slots);
            return 0;
        };
        let before = std::mem::replace(&mut slot.partitions, partitions);
        (slot.used, slot.idle) = (Instant::now(), Some(session));
        slots.partitions = slots.partitions.saturating_sub(before) + partitions;
        id
    }
}

/// What a session of so many partitions takes, beside so much for names.
fn bytes_of(partitions: usize, names: usize) -> usize {
    partitions.saturating_mul(ENTRY_BYTES).saturating_add(names)
}

fn bytes_of_name(name: &m::TopicName) -> usize {
    name.len().saturating_add(TOPIC_BYTES)
}

impl Slots {
    fn remove(&mut self, id: i32) -> Option<Session> {
        let slot = self.all.remove(&id)?;
        self.of_connections.remove(&(slot.of, id));
        self.bytes = self.bytes.saturating_sub(slot.bytes);
        self.partitions = self.partitions.saturating_sub(slot.partitions);
        self.full_until = None;
        slot.idle
    }

    /// The session whose place one of `partitions` may have.
    fn may_go(&mut self, partitions: usize, now: Instant) -> Option<i32> {
        if self.full_until.is_some_and(|until| now < until) {
            return None;
        }
        let is_over = |at: Instant| now.saturating_duration_since(at) > EVICTED_AFTER;
        let unused = self.all.iter().filter(|(_, slot)| is_over(slot.used));
        let unused = unused.min_by_key(|(_, slot)| slot.used);
        let smaller =
            |(_, slot): &(&i32, &Slot)| is_over(slot.since) && slot.partitions < partitions;
        let smallest = || {
            let smaller = self.all.iter().filter(smaller);
            smaller.min_by_key(|(id, slot)| (slot.partitions, **id))
        };
        let id = unused.or_else(smallest).map(|(id, _)| *id);
        if id.is_none() {
            self.full_until = Some(now + LOOK_AFTER);
        }
        id
    }

    /// One that no session has, and that others do not guess.
    fn new_id(&self, random: &dyn Random) -> i32 {
        loop {
            let mut drawn = [0; 4];
            random.fill(&mut drawn);
            let id = i32::from_le_bytes(drawn) & i32::MAX;
            // 0 says that there is none.
            if id != 0 && !self.all.contains_key(&id) {
                return id;
            }
        }
    }
}

#[cfg(test)]
impl ConsumerSessions {
    /// As if so much time had passed for all of them.
    pub(crate) fn grow_older(&self, by: Duration) {
        let mut slots = lock(&self.0);
        slots.full_until = None;
        for slot in slots.all.values_mut() {
            (slot.since, slot.used) = (slot.since - by, slot.used - by);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules of KIP-227, of places that sessions of so many partitions have had since, and used,
    /// so many seconds ago.
    #[test]
    fn a_place_is_given_to_another_one_when_it_is_not_used_or_for_a_larger_one() {
        let now = Instant::now() + Duration::from_secs(1_000);
        let ago = |seconds| now - Duration::from_secs(seconds);
        for (places, expected) in [
            // All are in use, and none has been there for long enough.
            (&[(1, 119, 1), (5, 10, 1)][..], None),
            // The one that was not used for longest.
            (&[(1, 300, 1), (90, 300, 121), (90, 400, 130)][..], Some(3)),
            // The smallest of those that are old and smaller.
            (&[(10, 300, 1), (9, 300, 1), (2, 100, 1), (3, 121, 1)][..], Some(4)),
            (&[(10, 300, 1), (11, 300, 1)][..], None),
        ] {
            let mut slots = Slots::default();
            for (id, (partitions, since, used)) in (1..).zip(places) {
                let (of, since, used) = (0, ago(*since), ago(*used));
                let slot = Slot { of, since, used, partitions: *partitions, bytes: 1, idle: None };
                slots.all.insert(id, slot);
            }
            assert_eq!(slots.may_go(10, now), expected, "{places:?}");
            if let Some(id) = expected {
                slots.remove(id);
                assert!(!slots.all.contains_key(&id));
            }
        }
    }
}
