//! Fetch 4–18: committed records, as stored, without copying them together.
//!
//! KIPs: 74 (response size), 320 (leader epochs), 516 (topic ids from version 13). A consumer that
//! asks for a session (KIP-227) has a way of its own (`consumer_fetch`), and so do followers
//! (`replica_fetch`).
//!
//! An answer without records says that there are none, so it waits for what was acknowledged before
//! to be readable, even when `max.wait` is 0: see [`Partition::settle`].

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages as m;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use letterbox_env::Gather;
use letterbox_protocol::fetch::{
    EpochEndOffset, FetchAnswer, FetchPartitionAnswer, FetchTopicAnswer,
};
use letterbox_protocol::model::Offset;
use letterbox_protocol::produce::TopicKey;
use letterbox_protocol::{self as protocol, ErrorCode, WireError};
use letterbox_storage::{ReadResult, Slice};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::consumer_fetch::fetch_in;
use super::session::{What, said};
use super::{SETTLE_MAX, Services, replica_fetch};
use crate::metadata::Secret;
use crate::replication::{Partition, Ticket, Wanted};
use crate::request::RequestContext;
use crate::security::{Operation, Resource};
use crate::server::budget::Share;
use crate::server::response::{Part, Response};

/// The first version whose clients know KAFKA_STORAGE_ERROR.
const STORAGE_ERROR_SINCE: i16 = 6;
/// Partitions that are looked at whenever one of them has moved.
const NARROW: u32 = 64;
/// Between two looks at more of them, for each: some twenty times of what the look takes.
const BETWEEN_LOOKS: Duration = Duration::from_micros(20);

/// Pieces of files in one answer: each keeps a file open until the answer is read.
const FILES_MAX: usize = 256;

/// What an answer may still take.
pub(super) struct Left {
    bytes: usize,
    files: usize,
    /// The first batch of an answer is sent even when it is larger than allowed, or a consumer with
    /// a small limit would never get past it (KIP-74).
    is_first: bool,
}

impl Left {
    pub(super) fn new(bytes: usize) -> Self {
        Self { bytes, files: FILES_MAX, is_first: true }
    }

    /// What of a partition is read.
    pub(super) fn wanted(&self, from: Offset, partition_max_bytes: i32) -> Wanted {
        let most = usize::try_from(partition_max_bytes).unwrap_or(0).min(self.bytes);
        Wanted {
            from,
            max_bytes: if self.has_all_files() { 0 } else { most },
            at_least_one_batch: self.is_first,
        }
    }

    pub(super) fn take(&mut self, records: &ReadResult) {
        let is_file = |slice: &&Slice| matches!(slice, Slice::File { .. });
        self.files = match records.lacks_files {
            true => 0,
            false => self.files.saturating_sub(records.slices.iter().filter(is_file).count()),
        };
        self.bytes = self.bytes.saturating_sub(records.bytes);
        self.is_first &= records.bytes == 0;
    }

    /// Whether nothing more is read, however little there is.
    pub(super) fn has_all_files(&self) -> bool {
        self.files == 0
    }
}

/// The answer, before it is written down.
pub(crate) struct Fetched {
    pub(crate) error: ErrorCode,
    /// The session, 0 where none is kept.
    pub(crate) session: i32,
    pub(crate) topics: Vec<FetchedTopic>,
    /// Whether the client asked for aborted transactions; there are none.
    pub(crate) read_committed: bool,
    /// To a follower: what proves which broker this one is.
    pub(crate) secret: Option<Secret>,
}

impl Fetched {
    /// Without any partition.
    pub(super) fn of(error: ErrorCode) -> Self {
        Self { error, session: 0, topics: Vec::new(), read_committed: false, secret: None }
    }

    /// Bytes of records.
    fn bytes(&self) -> usize {
        self.topics.iter().flat_map(|topic| &topic.partitions).map(|one| one.records.bytes).sum()
    }

    /// Those of the partitions that were read, in their order.
    fn high_watermarks(&self) -> Vec<Offset> {
        let partitions = self.topics.iter().flat_map(|topic| &topic.partitions);
        let read = partitions.filter(|one| one.error == ErrorCode::None);
        read.map(|one| one.high_watermark).collect()
    }

    /// Every error in the answer.
    pub(crate) fn errors(&self) -> impl Iterator<Item = ErrorCode> {
        let partitions =
            self.topics.iter().flat_map(|topic| &topic.partitions).map(|one| one.error);
        std::iter::once(self.error).chain(partitions).filter(|error| *error != ErrorCode::None)
    }
}

pub(crate) struct FetchedTopic {
    pub(crate) name: m::TopicName,
    pub(crate) id: uuid::Uuid,
    pub(crate) partitions: Vec<FetchedPartition>,
}

#[derive(Clone)]
pub(crate) struct FetchedPartition {
    pub(crate) index: i32,
    pub(crate) error: ErrorCode,
    pub(crate) high_watermark: Offset,
    pub(crate) log_start_offset: Offset,
    /// Where a follower's log differs.
    pub(crate) diverging: Option<EpochEndOffset>,
    pub(crate) records: ReadResult,
}

/// One asked partition, looked up once for all rounds of a long poll.
struct Asked {
    found: Result<Arc<Partition>, ErrorCode>,
    what: What,
}

struct AskedTopic {
    name: m::TopicName,
    id: uuid::Uuid,
    /// What is said of a partition that does not exist.
    missing: ErrorCode,
    partitions: Vec<Asked>,
}

/// Gathers records until there are `min.bytes` of them, the wait is over, or there is an error to
/// tell; gives them with the share of memory that they hold.
///
/// While it waits it holds the decoded request alone, which is `held`. A large one is answered
/// early when others wait for memory, as if its wait were over. Dropped while it waits, it leaves
/// nothing behind.
pub(crate) async fn fetch(
    services: Arc<Services>,
    ctx: RequestContext,
    request: m::FetchRequest,
    held: &Share,
) -> (Fetched, Share) {
    if replica_fetch::is_of_replica(&request) {
        return replica_fetch::fetch(services, ctx, request, held).await;
    }
    // Epoch 0 asks for a new session and −1 for none, both with all partitions, and end the one that
    // they name; any other epoch goes on with a session.
    match services.consumers.of(&services, &ctx, &request) {
        Ok(None) => {}
        Ok(Some(session)) => {
            return Box::pin(fetch_in(session, &services, ctx, request, held)).await;
        }
        Err(error) => return (Fetched::of(error), Share::new(&services.memory)),
    }
    let (most, min_bytes, max_wait_ms) =
        (request.max_bytes, request.min_bytes, request.max_wait_ms);
    let read_committed = request.isolation_level == 1;
    let mut topics = look_up(&services, &ctx, request);
    drop_repeated(&mut topics);
    let most = usize::try_from(most).unwrap_or(0).min(services.config.size("fetch.max.bytes"));
    let min_bytes = usize::try_from(min_bytes).unwrap_or(0).min(most);
    // Where there is no minimum, or nothing that could grow, there is no wait.
    let waits = min_bytes > 0 && topics.iter().any(|topic| !topic.partitions.is_empty());
    let max_wait_ms = if waits { u64::try_from(max_wait_ms).unwrap_or(0) } else { 0 };
    let mut deadline = Instant::now() + Duration::from_millis(max_wait_ms);
    let mut registered = Registered {
        topics: &topics,
        notify: Arc::default(),
        tickets: Vec::new(),
        looks: Looks::default(),
    };
    let mut settled = false;
    let (mut fetched, records) = loop {
        let mut records = Share::new(&services.memory);
        let (fetched, enough) =
            gather(&services, &topics, most, min_bytes.max(1), &mut records).await;
        if enough {
            break (fetched, records);
        }
        if Instant::now() < deadline {
            // Registered first and looked at once more afterwards, so that no move is missed in
            // between.
            let seen = fetched.high_watermarks();
            // What waits holds no records.
            drop((fetched, records));
            if registered.again(seen) {
                tokio::select! {
                    biased;
                    () = registered.moved() => {}
                    () = tokio::time::sleep_until(deadline) => {}
                    () = held.until_pressed() => deadline = Instant::now(),
                }
            }
            continue;
        }
        if settled || fetched.bytes() > 0 || !settle(&topics).await {
            break (fetched, records);
        }
        settled = true;
    };
    fetched.read_committed = read_committed;
    registered.give_up();
    let answered = fetched.topics.iter().flat_map(|topic| &topic.partitions);
    let asked = topics.iter().flat_map(|topic| &topic.partitions);
    count_sent(&services, asked.map(|asked| asked.found.as_ref().ok()).zip(answered));
    (fetched, records)
}

/// For the metrics.
pub(super) fn count_sent<'a, P: Borrow<Arc<Partition>>>(
    services: &Services,
    told: impl Iterator<Item = (Option<P>, &'a FetchedPartition)>,
) {
    let (mut all, mut all_failed, mut all_bytes) = (0, 0, 0);
    for (partition, answer) in told {
        let (failed, bytes) = (answer.error != ErrorCode::None, answer.records.bytes as u64);
        (all, all_failed) = (all + 1, all_failed + u64::from(failed));
        all_bytes += bytes;
        if let Some(partition) = partition {
            let partition: &Arc<Partition> = partition.borrow();
            partition.traffic.sent(bytes, failed);
        }
    }
    services.metrics.fetched.inc_by(all);
    services.metrics.fetch_failed.inc_by(all_failed);
    services.metrics.fetch_bytes.inc_by(all_bytes);
}

/// Looks up what is asked for.
fn look_up(services: &Services, ctx: &RequestContext, request: m::FetchRequest) -> Vec<AskedTopic> {
    let is_by_id = ctx.api_version >= 13;
    let missing =
        if is_by_id { ErrorCode::UnknownTopicId } else { ErrorCode::UnknownTopicOrPartition };
    let image = services.image();
    let of_topic = |topic: FetchTopic| {
        let (hit, said) = if is_by_id {
            let hit = image.topic_by_id(&topic.topic_id);
            (hit, hit.map(|hit| &*hit.name))
        } else {
            let said = topic.topic.as_str();
            (image.topic(said), Some(said))
        };
        // Whether a topic exists is told to whoever may read it. Ids tell nothing.
        let allowed = match said {
            Some(said) => ctx.check(Operation::Read, Resource::Topic(said)),
            None => Ok(()),
        };
        let of_partition = |what: FetchPartition| {
            let found = allowed.and_then(|()| {
                let hit = hit.ok_or(missing)?;
                let partition = services.replicas.partition(&hit.id, what.partition)?;
                partition.check_epoch(what.current_leader_epoch).map(|()| partition)
            });
            Asked { found, what: What::from(&what) }
        };
        AskedTopic {
            name: topic.topic,
            id: topic.topic_id,
            missing,
            partitions: topic.partitions.into_iter().map(of_partition).collect(),
        }
    };
    request.topics.into_iter().map(of_topic).collect()
}

/// A request that waits for its partitions, until it is dropped.
struct Registered<'a> {
    topics: &'a [AskedTopic],
    notify: Arc<Notify>,
    /// For each of [`found`], or none at all.
    tickets: Vec<Ticket>,
    looks: Looks,
}

/// When it is worth to look at all partitions of a request again. When little comes to one that
/// wants much of many partitions, each append would have all of them looked at: the looks are so
/// far apart that they take a small part of the time.
#[derive(Default)]
pub(super) struct Looks {
    next: Option<Instant>,
}

impl Looks {
    /// Completes when one of so many partitions has moved.
    pub(super) async fn after(&mut self, moved: &Notify, partitions: usize) {
        moved.notified().await;
        if let Some(next) = self.next {
            tokio::time::sleep_until(next).await;
        }
        let partitions = u32::try_from(partitions).unwrap_or(u32::MAX);
        if partitions > NARROW {
            self.next = Some(Instant::now() + BETWEEN_LOOKS * partitions);
        }
    }
}

impl Registered<'_> {
    /// Waits for what follows the offsets that were `seen`, of each of [`found`]; tells whether
    /// nothing has moved meanwhile.
    fn again(&mut self, seen: Vec<Offset>) -> bool {
        self.give_up();
        let mut moved = false;
        for (partition, seen) in found(self.topics).zip(seen) {
            self.tickets.push(partition.waiters.register(seen.saturating_add(1), &self.notify));
            moved |= partition.high_watermark() > seen || partition.check_led().is_err();
        }
        !moved
    }

    /// Completes when one of the partitions has moved.
    async fn moved(&mut self) {
        self.looks.after(&self.notify, self.tickets.len()).await;
    }

    fn give_up(&mut self) {
        for (partition, ticket) in found(self.topics).zip(self.tickets.drain(..)) {
            partition.waiters.forget(ticket);
        }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Drops what is asked for more than once: the first time counts.
fn drop_repeated(topics: &mut [AskedTopic]) {
    if found(topics).nth(1).is_none() {
        return;
    }
    let place = |partition: &Arc<Partition>| Arc::as_ptr(partition).addr();
    let mut places: Vec<usize> = found(topics).map(place).collect();
    let all = places.len();
    places.sort_unstable();
    places.dedup();
    if places.len() < all {
        let mut left: BTreeSet<usize> = places.into_iter().gather();
        for topic in topics {
            topic.partitions.retain(|asked| {
                asked.found.as_ref().map_or(true, |partition| left.remove(&place(partition)))
            });
        }
    }
}

/// The asked partitions that are led from here.
fn found(topics: &[AskedTopic]) -> impl Iterator<Item = &Arc<Partition>> {
    topics.iter().flat_map(|topic| &topic.partitions).filter_map(|asked| asked.found.as_ref().ok())
}

/// Waits until the partitions show what was acknowledged before; one whose disk does not answer is
/// left as it is. Tells whether there was anything to wait for.
async fn settle(topics: &[AskedTopic]) -> bool {
    let deadline = Instant::now() + SETTLE_MAX;
    let mut waited = false;
    for partition in
        found(topics).filter(|partition| partition.end_offset() > partition.high_watermark())
    {
        let _ = partition.settle(deadline).await;
        waited = true;
    }
    waited
}

/// One round over all partitions, and whether it is worth an answer.
async fn gather(
    services: &Services,
    topics: &[AskedTopic],
    most: usize,
    min_bytes: usize,
    memory: &mut Share,
) -> (Fetched, bool) {
    let (mut left, mut bytes) = (Left::new(most), 0);
    let mut failed = false;
    let mut out = Vec::with_capacity(topics.len());
    for topic in topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in &topic.partitions {
            let read = match &asked.found {
                Ok(partition) => {
                    match one(services, partition, &asked.what, &left, memory).await {
                        // Deleted, or moved, while this request waited or read.
                        _ if partition.is_gone() => Err(partition.gone_as(topic.missing)),
                        read => read,
                    }
                }
                Err(error) => Err(*error),
            };
            let fetched = read.unwrap_or_else(|error| said(asked.what.index, error));
            failed |= fetched.error != ErrorCode::None;
            bytes += fetched.records.bytes;
            left.take(&fetched.records);
            partitions.push(fetched);
        }
        out.push(FetchedTopic { name: topic.name.clone(), id: topic.id, partitions });
    }
    (
        Fetched { topics: out, ..Fetched::of(ErrorCode::None) },
        failed || bytes >= min_bytes || left.has_all_files(),
    )
}

/// Reads one partition.
pub(super) async fn one(
    services: &Services,
    partition: &Arc<Partition>,
    what: &What,
    left: &Left,
    memory: &mut Share,
) -> Result<FetchedPartition, ErrorCode> {
    // An answer keeps what it shows of the cache until it is read, so it counts. Without room for
    // it the same bytes are sent from the file.
    let may_keep = |bytes| memory.try_grow_to(memory.bytes() + bytes);
    let shown =
        partition.read(&services.env, left.wanted(what.at, what.max_bytes), may_keep).await?;
    let (error, records) = match shown.records {
        Ok(records) => (ErrorCode::None, records),
        Err(error) => (error, ReadResult::default()),
    };
    Ok(FetchedPartition {
        index: what.index,
        error,
        high_watermark: shown.high_watermark,
        log_start_offset: shown.log_start_offset,
        diverging: None,
        records,
    })
}

/// Writes the answer down around the records, which stay where they are.
///
/// # Errors
/// When the answer cannot be said in this version; a fault of ours.
pub(crate) fn encode(
    correlation_id: i32,
    version: i16,
    fetched: Fetched,
) -> Result<Response, WireError> {
    let by_id = version >= 13;
    let read_committed = fetched.read_committed;
    let mut records: Vec<Vec<Slice>> = Vec::new();
    let mut names = Vec::with_capacity(fetched.topics.len());
    let mut partitions = Vec::with_capacity(fetched.topics.len());
    for topic in fetched.topics {
        names.push((topic.name, topic.id));
        let one = |partition: FetchedPartition| {
            let failed = partition.error != ErrorCode::None;
            let answer = FetchPartitionAnswer {
                index: partition.index,
                error_code: known_in(version, partition.error) as i16,
                high_watermark: partition.high_watermark,
                last_stable_offset: partition.high_watermark,
                log_start_offset: partition.log_start_offset,
                diverging_epoch: partition.diverging,
                current_leader: None,
                snapshot_id: None,
                aborted_transactions: (read_committed && !failed).then(Vec::new),
                preferred_read_replica: -1,
                records_bytes: Some(partition.records.bytes),
            };
            records.push(partition.records.slices);
            answer
        };
        partitions.push(topic.partitions.into_iter().map(one).collect::<Vec<_>>());
    }
    let topics = names
        .iter()
        .zip(partitions)
        .map(|((name, id), partitions)| FetchTopicAnswer {
            topic: if by_id { TopicKey::Id(*id) } else { TopicKey::Name(name.as_str()) },
            partitions,
        })
        .collect();
    let (error_code, secret) = (fetched.error as i16, fetched.secret.map(|it| *it.as_bytes()));
    let session_id = fetched.session;
    let answer = FetchAnswer { error_code, session_id, topics, secret, ..FetchAnswer::default() };
    let mut parts = Vec::new();
    for part in answer.frame(correlation_id, version)? {
        match part {
            protocol::fetch::Part::Bytes(bytes) => parts.push(Part::Bytes(bytes)),
            protocol::fetch::Part::Records { partition, .. } => parts.extend(
                records
                    .get_mut(partition)
                    .map(std::mem::take)
                    .into_iter()
                    .flatten()
                    .map(Part::from),
            ),
        }
    }
    Ok(parts.into())
}

/// The error as a client of this version knows it: an older one takes a storage error for fatal,
/// and is told what makes it come back.
///
/// Source: Apache Kafka's KafkaApis; with Produce it does not do so.
fn known_in(version: i16, error: ErrorCode) -> ErrorCode {
    match error {
        ErrorCode::KafkaStorageError if version < STORAGE_ERROR_SINCE => {
            ErrorCode::NotLeaderOrFollower
        }
        error => error,
    }
}

impl From<Slice> for Part {
    fn from(slice: Slice) -> Self {
        match slice {
            Slice::Memory(bytes) => Self::Bytes(bytes),
            Slice::File { file, position, len, cold_reads, counted } => {
                Self::File { file, position, len: len as u64, cold_reads, counted }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It waited for its `max.wait.ms`, although nothing that comes meanwhile makes room.
    #[test]
    fn an_answer_whose_files_have_no_room_waits_for_no_more_records() {
        let mut left = Left::new(1_000);
        let mut records = ReadResult { bytes: 10, ..ReadResult::default() };
        left.take(&records);
        assert!(!left.has_all_files());
        records.lacks_files = true;
        left.take(&records);
        assert!(left.has_all_files());
    }

    #[test]
    fn a_client_that_does_not_know_the_storage_error_is_sent_to_look_for_the_leader() {
        for (version, error) in [
            (4, ErrorCode::NotLeaderOrFollower),
            (5, ErrorCode::NotLeaderOrFollower),
            (6, ErrorCode::KafkaStorageError),
        ] {
            assert_eq!(known_in(version, ErrorCode::KafkaStorageError), error);
            assert_eq!(known_in(version, ErrorCode::OffsetOutOfRange), ErrorCode::OffsetOutOfRange);
        }
    }
}
