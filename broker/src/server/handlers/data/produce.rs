//! Produce 3–13: append, then answer when `acks` is satisfied.
//!
//! KIPs: 98 (idempotence), 110 (zstd from version 7 on), 467 (record errors), 516 (topic ids from
//! version 13), 951 (leader hints: not given yet). Transactions are not
//! offered; a batch that says it is part of one is refused by the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use letterbox_protocol::batch::{BatchHeader, Compression};
use letterbox_protocol::model::{LeaderEpoch, Offset};
use letterbox_protocol::produce::{
    OwnedTopicKey, ProduceAnswer, ProducePartitionAnswer, ProduceRefusal, ProduceTopicAnswer,
    ProduceView, encode_produce_response,
};
use letterbox_protocol::{ErrorCode, WireError};
use letterbox_storage::{COPIED_BELOW, Effort};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::Services;
use super::init_producer_id::NO_TRANSACTIONS;
use crate::metadata::decide::is_internal_topic;
use crate::metadata::{MetadataImage, Topic};
use crate::replication::{Acks, Appended, Partition, Within};
use crate::request::RequestContext;
use crate::security::{Operation, Resource};

/// What becomes of a Produce.
pub(crate) enum Produced {
    /// With `acks=0` there is no answer.
    Unanswered,
    /// Nothing is to be waited for.
    Answered(Result<Bytes, WireError>),
    /// Appended; the answer waits until it is committed.
    Waiting(BoxFuture<'static, Encoded>),
    /// Some batches take long to validate, which happens elsewhere.
    Validating {
        /// Validates and appends, then gives the answer, if there is to be one; an error: the
        /// connection must be closed, and why.
        appending: BoxFuture<'static, Result<Option<BoxFuture<'static, Encoded>>, String>>,
        /// Resolves when everything is appended.
        appended: oneshot::Receiver<()>,
    },
}

type Encoded = Result<Bytes, WireError>;

/// A batch that takes long to validate.
struct Heavy {
    topic: usize,
    partition: usize,
    of: Arc<Partition>,
    records: BytesMut,
}

/// A partition whose append waits to be committed.
struct Waiting {
    topic: usize,
    partition: usize,
    of: Arc<Partition>,
    leader_epoch: LeaderEpoch,
    end_offset: Offset,
}

impl Waiting {
    /// What is answered; `None` as long as it is not known.
    fn answer(&self) -> Option<ErrorCode> {
        self.of.commit(self.leader_epoch, self.end_offset).produce_answer()
    }
}

/// The answer as it grows.
struct Answers {
    correlation_id: i32,
    version: i16,
    topics: Vec<ProduceTopicAnswer>,
}

impl Answers {
    fn encode(self) -> Result<Bytes, WireError> {
        let answer = ProduceAnswer { topics: self.topics, ..ProduceAnswer::default() };
        encode_produce_response(self.correlation_id, self.version, &answer)
    }

    fn get_mut(&mut self, topic: usize, partition: usize) -> Option<&mut ProducePartitionAnswer> {
        self.topics.get_mut(topic)?.partitions.get_mut(partition)
    }
}

/// What became of the batches so far.
struct Outcome {
    answers: Answers,
    waiting: Vec<Waiting>,
    failed: Option<ErrorCode>,
}

impl Outcome {
    fn note(
        &mut self,
        services: &Services,
        acks: Option<Acks>,
        (topic, partition, index): (usize, usize, i32),
        appended: Result<(Appended, Arc<Partition>), Failure>,
    ) -> ProducePartitionAnswer {
        services.metrics.produced.inc();
        match appended {
            Ok((appended, of)) => {
                services.metrics.messages_in.inc_by(appended.records);
                services.metrics.produce_bytes.inc_by(appended.bytes);
                of.traffic.received(&appended);
                let (leader_epoch, end_offset) = (appended.leader_epoch, appended.end_offset);
                match appended.commit.produce_answer() {
                    _ if acks != Some(Acks::All) => success(index, &appended),
                    Some(ErrorCode::None) => success(index, &appended),
                    Some(error) => {
                        of.traffic.answered_with_error();
                        self.failed(services, Failure::code(error), index)
                    }
                    None => {
                        self.waiting.push(Waiting {
                            topic,
                            partition,
                            of,
                            leader_epoch,
                            end_offset,
                        });
                        success(index, &appended)
                    }
                }
            }
            Err(failure) => self.failed(services, failure, index),
        }
    }

    fn failed(
        &mut self,
        services: &Services,
        failure: Failure,
        index: i32,
    ) -> ProducePartitionAnswer {
        services.metrics.answered_with("Produce", failure.error.name());
        services.metrics.produce_failed.inc();
        self.failed.get_or_insert(failure.error);
        failure.answer(index)
    }

    /// The answer when everything has been appended.
    fn produced(
        self,
        services: &Arc<Services>,
        acks: Option<Acks>,
        timeout: Duration,
    ) -> Result<Produced, String> {
        let Self { mut answers, waiting, failed } = self;
        if acks == Some(Acks::None) {
            return failed.map_or(Ok(Produced::Unanswered), |error| {
                Err(format!(
                    "Produce with acks=0 failed with {}; closing the connection is the only way to \
                    tell the client",
                    error.name()
                ))
            });
        }
        if waiting.is_empty() {
            return Ok(Produced::Answered(answers.encode()));
        }
        let services = services.clone();
        Ok(Produced::Waiting(Box::pin(async move {
            wait(&services, &mut answers, waiting, timeout).await;
            answers.encode()
        })))
    }
}

/// Validates and appends what takes long, where blocking is allowed; then as [`produce`].
fn validate_elsewhere(
    services: Arc<Services>,
    mut outcome: Outcome,
    heavy: Vec<Heavy>,
    acks: Acks,
    timeout: Duration,
) -> Produced {
    let (done, appended) = oneshot::channel();
    let appending = Box::pin(async move {
        let append = move |Heavy { topic, partition, of, records }| {
            let appended = of.append(records, acks).map_err(|why| refused_by(&of, why));
            (topic, partition, appended.map(|appended| (appended, of)))
        };
        let results: Vec<_> = services
            .validation
            .run(&services.env, move || heavy.into_iter().map(append).collect())
            .await;
        for (topic, partition, result) in results {
            let place = outcome.answers.get_mut(topic, partition);
            let index = place.map_or(-1, |answer| answer.index);
            let place = (topic, partition, index);
            let answer = outcome.note(&services, Some(acks), place, result);
            if let Some(place) = outcome.answers.get_mut(topic, partition) {
                *place = answer;
            }
        }
        // The next request of the connection may be started.
        drop(done);
        let answer: Option<BoxFuture<'static, Encoded>> =
            match outcome.produced(&services, Some(acks), timeout)? {
                Produced::Answered(answer) => Some(Box::pin(std::future::ready(answer))),
                Produced::Waiting(answer) => Some(answer),
                Produced::Unanswered | Produced::Validating { .. } => None,
            };
        Ok(answer)
    });
    Produced::Validating { appending, appended }
}

/// Appends every partition's batch at once, in order, and answers, at once or when `acks` is
/// satisfied. `body` has been walked.
///
/// What takes long to validate is appended elsewhere, and with it all that follows it in the
/// request.
///
/// # Errors
/// With `acks=0` there is no answer to put an error in: the connection must be closed, as Kafka
/// does.
pub(crate) fn produce(
    services: &Arc<Services>,
    ctx: &RequestContext,
    body: BytesMut,
) -> Result<Produced, String> {
    let view = ProduceView::of_checked(ctx.api_version, &body).map_err(|why| why.to_string())?;
    let acks = match view.acks {
        -1 => Some(Acks::All),
        0 => Some(Acks::None),
        1 => Some(Acks::Leader),
        _ => None,
    };
    let timeout = Duration::from_millis(u64::try_from(view.timeout_ms).unwrap_or(0));
    let refused = refused_as_a_whole(ctx, acks, &view);

    let answers = Answers {
        correlation_id: ctx.correlation_id,
        version: ctx.api_version,
        topics: Vec::with_capacity(view.topic_count()),
    };
    let mut outcome = Outcome { answers, waiting: Vec::new(), failed: None };
    let mut appending = Appending { effort: Effort::light(), heavy: Vec::new() };
    let image = services.image();
    let (parts, body_len) = (view.parts(), body.len());
    let mut parts = parts(body);
    while let Some((topic, partitions)) = parts.next_topic() {
        let found = match refused {
            Some((error, message)) => Err((error, message)),
            None => look_up(ctx, &image, &topic).map_err(|error| (error, None)),
        };
        let topic_at = outcome.answers.topics.len();
        let mut of_topic = Vec::with_capacity(partitions);
        while let Some((index, records)) = parts.next_partition() {
            let records = to_keep(records.unwrap_or_default(), body_len);
            let place = (topic_at, of_topic.len(), index);
            let appended = match (found, acks) {
                (Ok(found), Some(acks)) => known_in(ctx.api_version, &records).and_then(|()| {
                    let of =
                        services.replicas.partition(&found.id, index).map_err(Failure::code)?;
                    appending.append(of, records, acks, place)
                }),
                (Err((error, message)), _) => Err(Failure::new(error, message)),
                (Ok(_), None) => Err(Failure::code(ErrorCode::InvalidRequiredAcks)),
            };
            of_topic.push(match appended.transpose() {
                Some(appended) => outcome.note(services, acks, place, appended),
                // Its place, until it is known.
                None => Failure::code(ErrorCode::UnknownServerError).answer(index),
            });
        }
        outcome.answers.topics.push(ProduceTopicAnswer { topic, partitions: of_topic });
    }
    match acks {
        Some(acks) if !appending.heavy.is_empty() => {
            Ok(validate_elsewhere(services.clone(), outcome, appending.heavy, acks, timeout))
        }
        _ => outcome.produced(services, acks, timeout),
    }
}

/// Why no batch of the request is appended, whatever its topic.
fn refused_as_a_whole(
    ctx: &RequestContext,
    acks: Option<Acks>,
    view: &ProduceView<'_>,
) -> Option<(ErrorCode, Option<&'static str>)> {
    let transactional_id = view.transactional_id();
    if let Some(id) = transactional_id
        && let Err(error) = ctx.check(Operation::Write, Resource::TransactionalId(id))
    {
        return Some((error, None));
    }
    match (acks, transactional_id) {
        (None, _) => Some((ErrorCode::InvalidRequiredAcks, None)),
        (_, Some(_)) => Some((ErrorCode::InvalidTxnState, Some(NO_TRANSACTIONS))),
        _ if names_twice(view) => Some((ErrorCode::InvalidRequest, Some(NAMED_TWICE))),
        _ => None,
    }
}

const NAMED_TWICE: &str =
    "the request names a partition more than once; send one batch for each partition";

/// Whether a partition is named more than once. Kafka appends what was named last and answers once,
/// so that a client may take records for stored that are not.
fn names_twice(view: &ProduceView<'_>) -> bool {
    if view.is_for_one() {
        return false;
    }
    let (mut all, mut numbers) = (Vec::new(), BTreeMap::new());
    for topic in view.topics() {
        // Names are compared once for each topic: they may be long, and partitions many.
        let next = numbers.len();
        let number = *numbers.entry(topic.topic).or_insert(next);
        all.extend(topic.partitions().map(|index| (number, index)));
    }
    all.sort_unstable();
    all.windows(2).any(|pair| matches!(pair, [one, next] if one == next))
}

/// The topic, when the caller may write to it: whether others exist it is not told. Ids tell
/// nothing.
///
/// # Errors
/// INVALID_TOPIC_EXCEPTION for the topics of the coordinators: what lies there is believed when a
/// coordinator loads it. (Kafka lets a client through that calls itself `__admin_client`.)
fn look_up<'a>(
    ctx: &RequestContext,
    image: &'a MetadataImage,
    topic: &OwnedTopicKey,
) -> Result<&'a Topic, ErrorCode> {
    let may = |name: &str| ctx.check(Operation::Write, Resource::Topic(name));
    let found = match topic {
        OwnedTopicKey::Name(name) => {
            may(name)?;
            image.topic(name).ok_or(ErrorCode::UnknownTopicOrPartition)?
        }
        OwnedTopicKey::Id(id) => {
            let found = image.topic_by_id(id).ok_or(ErrorCode::UnknownTopicId)?;
            may(&found.name)?;
            found
        }
    };
    if is_internal_topic(&found.name) { Err(ErrorCode::InvalidTopicException) } else { Ok(found) }
}

/// Appends in order; what follows something that takes long waits for it.
struct Appending {
    effort: Effort,
    heavy: Vec<Heavy>,
}

impl Appending {
    /// Appends at once, or keeps the records for later and says nothing.
    fn append(
        &mut self,
        of: Arc<Partition>,
        records: BytesMut,
        acks: Acks,
        (topic, partition, _): (usize, usize, i32),
    ) -> Result<Option<(Appended, Arc<Partition>)>, Failure> {
        let within = match self.heavy.is_empty() {
            true => of
                .append_within(records, acks, &mut self.effort)
                .map_err(|why| refused_by(&of, why))?,
            false => Within::TooLong(records),
        };
        Ok(match within {
            Within::Appended(appended) => Some((appended, of)),
            Within::TooLong(records) => {
                self.heavy.push(Heavy { topic, partition, of, records });
                None
            }
        })
    }
}

/// Whether clients of this version know how the records are compressed.
fn known_in(api_version: i16, records: &[u8]) -> Result<(), Failure> {
    if api_version >= ZSTD_SINCE || !is_zstd(records) {
        return Ok(());
    }
    let message = format!(
        "Produce requests with version {api_version} are not allowed to use ZStandard compression"
    );
    Err(Failure::new(ErrorCode::UnsupportedCompressionType, Some(&message)))
}

/// The first version whose records may be compressed with zstd (KIP-110): a client of an older one
/// may not know that others cannot read what it sends.
const ZSTD_SINCE: i16 = 7;

fn is_zstd(records: &[u8]) -> bool {
    BatchHeader::parse(records)
        .is_ok_and(|header| matches!(header.compression(), Ok(Compression::Zstd)))
}

/// The records of a partition as the log may keep them in memory: of small ones it makes copies
/// itself, and what is less than half of the request would keep the whole request there.
fn to_keep(records: BytesMut, body_len: usize) -> BytesMut {
    let keeps_much = records.len() >= COPIED_BELOW && records.len().saturating_mul(2) < body_len;
    if keeps_much { BytesMut::from(&records[..]) } else { records }
}

/// Waits until everything is committed, and writes an error into the answer of what is not in time.
async fn wait(
    services: &Services,
    answers: &mut Answers,
    waiting: Vec<Waiting>,
    timeout: Duration,
) {
    let deadline = Instant::now() + timeout;
    let notify = Arc::new(Notify::new());
    let mut waiting: Vec<_> = waiting
        .into_iter()
        .map(|item| {
            let ticket = item.of.waiters.register(item.end_offset, &notify);
            (item, ticket)
        })
        .collect();
    let mut set = |item: &Waiting, error: ErrorCode| {
        let Some(of_topic) = answers.topics.get_mut(item.topic) else { return };
        let error = match (error, &of_topic.topic) {
            (ErrorCode::UnknownTopicOrPartition, OwnedTopicKey::Id(_)) => ErrorCode::UnknownTopicId,
            (error, _) => error,
        };
        if let Some(answer) = of_topic.partitions.get_mut(item.partition) {
            services.metrics.answered_with("Produce", error.name());
            services.metrics.produce_failed.inc();
            item.of.traffic.answered_with_error();
            // As in Kafka, the rest says where the records are if they are committed after all.
            answer.error_code = error.code();
        }
    };
    // All are to be committed, so they are looked at one after the other, and each once beside the
    // wake-ups.
    while let Some((item, _)) = waiting.last() {
        match item.answer() {
            None => {
                if tokio::time::timeout_at(deadline, notify.notified()).await.is_err() {
                    break;
                }
                continue;
            }
            Some(ErrorCode::None) => {}
            Some(error) => set(item, error),
        }
        waiting.pop();
    }
    for (item, ticket) in &waiting {
        item.of.waiters.forget(*ticket);
        match item.answer().unwrap_or(ErrorCode::RequestTimedOut) {
            ErrorCode::None => {}
            error => set(item, error),
        }
    }
}

fn success(index: i32, appended: &Appended) -> ProducePartitionAnswer {
    ProducePartitionAnswer {
        index,
        error_code: 0,
        base_offset: appended.base_offset,
        log_append_time_ms: appended.log_append_time,
        log_start_offset: appended.log_start_offset,
        refusal: None,
    }
}

struct Failure {
    error: ErrorCode,
    message: Option<String>,
    records: Vec<(i32, Option<String>)>,
    log_start_offset: Offset,
}

impl Failure {
    fn code(error: ErrorCode) -> Self {
        Self::new(error, None)
    }

    fn new(error: ErrorCode, message: Option<&str>) -> Self {
        let message = message.map(str::to_owned);
        Self { error, message, records: Vec::new(), log_start_offset: -1 }
    }

    fn answer(self, index: i32) -> ProducePartitionAnswer {
        let is_told = self.message.is_some() || !self.records.is_empty();
        let refusal = is_told.then_some(ProduceRefusal {
            record_errors: self.records,
            error_message: self.message,
            current_leader: None,
        });
        ProducePartitionAnswer {
            index,
            error_code: self.error as i16,
            base_offset: -1,
            log_append_time_ms: -1,
            log_start_offset: self.log_start_offset,
            refusal: refusal.map(Box::new),
        }
    }
}

impl From<crate::replication::AppendRefused> for Failure {
    fn from(refused: crate::replication::AppendRefused) -> Self {
        match refused {
            crate::replication::AppendRefused::NotLeader => {
                Self::code(ErrorCode::NotLeaderOrFollower)
            }
            crate::replication::AppendRefused::Offline => Self::code(ErrorCode::KafkaStorageError),
            crate::replication::AppendRefused::NotEnoughReplicas(why) => {
                Self::new(ErrorCode::NotEnoughReplicas, Some(&why.to_string()))
            }
            crate::replication::AppendRefused::Log(error) => {
                let records = error
                    .record_errors()
                    .iter()
                    .map(|record| (record.batch_index, Some(record.message.clone())))
                    .collect();
                Self { records, ..Self::new(error.code(), Some(&error.to_string())) }
            }
        }
    }
}

/// Kafka tells where the log begins with what it refuses because of the batch or its producer, and
/// not where that says nothing about this replica's log.
fn refused_by(of: &Partition, why: crate::replication::AppendRefused) -> Failure {
    of.traffic.refused();
    let failure = Failure::from(why);
    let tells_start = matches!(
        failure.error,
        ErrorCode::NotEnoughReplicas
            | ErrorCode::InvalidTimestamp
            | ErrorCode::OutOfOrderSequenceNumber
            | ErrorCode::InvalidProducerEpoch
            | ErrorCode::UnsupportedCompressionType
            | ErrorCode::InvalidRecord
    );
    match of.log() {
        Ok(log) if tells_start => Failure { log_start_offset: log.start_offset(), ..failure },
        _ => failure,
    }
}
