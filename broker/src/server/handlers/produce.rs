//! Produce 3–13: append, then answer when `acks` is satisfied.
//!
//! KIPs: 98 (idempotence), 467 (record errors), 516 (topic ids from version 13), 951 (leader hints: not given, a
//! cluster has one broker). Transactions are not offered; a batch that says it is part of one is refused by the log.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use kafka_protocol::messages as m;
use kafka_protocol::messages::produce_response::{BatchIndexAndErrorMessage, PartitionProduceResponse, TopicProduceResponse};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Shared, text};
use crate::log::AppendError;
use crate::model::Offset;
use crate::replication::{Acks, Appended, Partition};
use crate::server::context::{Operation, RequestContext, Resource};
use crate::wire::ErrorCode;

/// A partition whose append waits to be committed.
struct Waiting {
    topic: usize,
    partition: usize,
    of: Arc<Partition>,
    end_offset: Offset,
}

/// Appends every partition's batch at once, in order; the future waits for what `acks` asks and answers.
///
/// `None` is for `acks=0`, which has no answer.
///
/// # Errors
/// With `acks=0` there is no answer to put an error in: the connection must be closed, as Kafka does.
pub(crate) fn produce(
    shared: &Arc<Shared>,
    ctx: &RequestContext,
    request: m::ProduceRequest,
) -> Result<Option<BoxFuture<'static, m::ProduceResponse>>, String> {
    let acks = match request.acks {
        -1 => Some(Acks::All),
        0 => Some(Acks::None),
        1 => Some(Acks::Leader),
        _ => None,
    };
    let mut waiting = Vec::new();
    let mut failed = None;
    let mut topics = Vec::with_capacity(request.topic_data.len());
    let by_id = ctx.api_version >= 13;
    let image = shared.image();
    for (topic_at, topic) in request.topic_data.into_iter().enumerate() {
        let found = if by_id { image.topic_by_id(&topic.topic_id) } else { image.topic(topic.name.as_str()) };
        let mut answers = Vec::with_capacity(topic.partition_data.len());
        for (partition_at, data) in topic.partition_data.into_iter().enumerate() {
            let index = data.index;
            let appended = match (acks, found) {
                (None, _) => Err(Failure::code(ErrorCode::InvalidRequiredAcks)),
                (Some(_), _) if request.transactional_id.is_some() => {
                    Err(Failure::new(ErrorCode::TransactionalIdAuthorizationFailed, "transactions are not offered by this version"))
                }
                (Some(_), None) => Err(Failure::code(if by_id { ErrorCode::UnknownTopicId } else { ErrorCode::UnknownTopicOrPartition })),
                (Some(_), Some(found)) if !ctx.may(Operation::Write, Resource::Topic(&found.name)) => {
                    Err(Failure::code(ErrorCode::TopicAuthorizationFailed))
                }
                (Some(acks), Some(found)) => shared.replicas.partition(&found.id, index).map_err(Failure::code).and_then(|partition| {
                    Ok((partition.append(data.records.unwrap_or_default(), acks).map_err(Failure::from)?, partition))
                }),
            };
            let answer = PartitionProduceResponse::default().with_index(index);
            answers.push(match appended {
                Ok((appended, partition)) => {
                    shared.metrics.messages_in.inc_by(appended.records);
                    shared.metrics.produce_bytes.inc_by(appended.bytes);
                    if acks == Some(Acks::All) && !partition.is_committed(appended.end_offset) {
                        waiting.push(Waiting { topic: topic_at, partition: partition_at, of: partition, end_offset: appended.end_offset });
                    }
                    success(answer, &appended)
                }
                Err(failure) => {
                    failed.get_or_insert(failure.error);
                    failure.answer(answer)
                }
            });
        }
        topics.push(TopicProduceResponse::default().with_name(topic.name).with_topic_id(topic.topic_id).with_partition_responses(answers));
    }
    if acks == Some(Acks::None) {
        return failed
            .map_or(Ok(None), |error| Err(format!("Produce with acks=0 failed with {}; closing is the only way to say so", error.name())));
    }
    let mut response = m::ProduceResponse::default().with_responses(topics);
    let timeout = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
    Ok(Some(Box::pin(async move {
        if !waiting.is_empty() {
            wait(&mut response, waiting, timeout).await;
        }
        response
    })))
}

/// Waits until everything is committed, and writes an error into the answer of what is not in time.
async fn wait(response: &mut m::ProduceResponse, mut waiting: Vec<Waiting>, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    let notify = Arc::new(Notify::new());
    for item in &waiting {
        item.of.waiters.register(item.end_offset, &notify);
    }
    let mut set = |item: &Waiting, error: ErrorCode| {
        let answer = response.responses.get_mut(item.topic).and_then(|topic| topic.partition_responses.get_mut(item.partition));
        if let Some(answer) = answer {
            *answer = PartitionProduceResponse::default().with_index(answer.index).with_error_code(error as i16).with_base_offset(-1);
        }
    };
    loop {
        waiting.retain(|item| match item.of.commit_state(item.end_offset) {
            Ok(true) => false,
            Ok(false) => true,
            Err(error) => {
                set(item, error);
                false
            }
        });
        if waiting.is_empty() {
            return;
        }
        if tokio::time::timeout_at(deadline, notify.notified()).await.is_err() {
            for item in &waiting {
                item.of.waiters.forget(&notify);
                set(item, ErrorCode::RequestTimedOut);
            }
            return;
        }
    }
}

fn success(answer: PartitionProduceResponse, appended: &Appended) -> PartitionProduceResponse {
    answer
        .with_base_offset(appended.base_offset)
        .with_log_append_time_ms(appended.log_append_time)
        .with_log_start_offset(appended.log_start_offset)
}

struct Failure {
    error: ErrorCode,
    message: Option<String>,
    records: Vec<BatchIndexAndErrorMessage>,
}

impl Failure {
    fn code(error: ErrorCode) -> Self {
        Self { error, message: None, records: Vec::new() }
    }

    fn new(error: ErrorCode, message: &str) -> Self {
        Self { error, message: Some(message.to_owned()), records: Vec::new() }
    }

    fn answer(self, answer: PartitionProduceResponse) -> PartitionProduceResponse {
        answer
            .with_error_code(self.error as i16)
            .with_base_offset(-1)
            .with_log_append_time_ms(-1)
            .with_log_start_offset(-1)
            .with_record_errors(self.records)
            .with_error_message(self.message.as_deref().map(text))
    }
}

impl From<crate::replication::AppendRefused> for Failure {
    fn from(refused: crate::replication::AppendRefused) -> Self {
        match refused {
            crate::replication::AppendRefused::NotEnoughReplicas(why) => Self::new(ErrorCode::NotEnoughReplicas, &why.to_string()),
            crate::replication::AppendRefused::Log(error) => {
                let records = error
                    .record_errors()
                    .iter()
                    .map(|record| {
                        BatchIndexAndErrorMessage::default()
                            .with_batch_index(record.batch_index)
                            .with_batch_index_error_message(Some(text(&record.message)))
                    })
                    .collect();
                Self { error: code_of(&error), message: Some(error.to_string()), records }
            }
        }
    }
}

fn code_of(error: &AppendError) -> ErrorCode {
    ErrorCode::from_code(error.code()).unwrap_or(ErrorCode::UnknownServerError)
}
