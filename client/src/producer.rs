//! Producing: records are collected into batches per partition and sent in order, several requests
//! at a time.
//!
//! [`Producer::send`] puts a record into a batch; a task ([`sender`]) sends the batches. Idempotent
//! by default (KIP-98): a retry carries the sequence numbers of the first try, so that a broker
//! stores each record once and in order.

mod sender;
mod state;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use letterbox_protocol::ErrorCode;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::client::Client;
use crate::error::{BrokerError, Error};
use crate::metadata::TopicPartition;
use crate::partitioner::partition_for_key;
use crate::record::{Compression, Header};
use state::State;

/// When the broker answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// Never: a record counts as sent when its bytes are handed to the connection.
    None,
    /// When the leader has the record.
    Leader,
    /// When `min.insync.replicas` have it.
    #[default]
    All,
}

/// How a producer behaves; names and defaults are those of Kafka's producer settings.
#[derive(Clone, Debug)]
pub struct ProducerOptions {
    /// `acks`.
    pub acks: Acks,
    /// `enable.idempotence`; needs [`Acks::All`].
    pub idempotence: bool,
    /// `linger.ms`.
    pub linger: Duration,
    /// `batch.size`, in bytes before compression.
    pub batch_bytes: usize,
    /// `compression.type`.
    pub compression: Compression,
    /// `max.in.flight.requests.per.connection`; at most 5 with idempotence.
    pub in_flight_max: usize,
    /// `delivery.timeout.ms`: until a record is stored or reported as failed.
    pub delivery_timeout: Duration,
    /// `max.block.ms`: how long [`Producer::send`] waits for metadata or memory.
    pub block_max: Duration,
    /// `buffer.memory`, in bytes.
    pub buffer_bytes: usize,
    /// `retries`: how often a batch is tried again within `delivery.timeout.ms`.
    pub retries: u32,
    /// `max.request.size`: the largest record, in bytes.
    pub record_bytes_max: usize,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self {
            acks: Acks::All,
            idempotence: true,
            linger: Duration::from_millis(5),
            batch_bytes: 16384,
            compression: Compression::None,
            in_flight_max: 5,
            delivery_timeout: Duration::from_secs(120),
            block_max: Duration::from_secs(60),
            buffer_bytes: 32 << 20,
            retries: u32::MAX,
            record_bytes_max: 1 << 20,
        }
    }
}

/// A record to send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducerRecord {
    /// The topic.
    pub topic: String,
    /// The partition; `None`: by key, or any.
    pub partition: Option<i32>,
    /// Milliseconds since 1970; `None`: now.
    pub timestamp: Option<i64>,
    /// The key.
    pub key: Option<Bytes>,
    /// The value; `None` makes a tombstone.
    pub value: Option<Bytes>,
    /// Headers in order.
    pub headers: Vec<Header>,
}

impl ProducerRecord {
    /// An empty record for `topic`.
    #[must_use]
    pub fn new(topic: impl Into<String>) -> Self {
        Self { topic: topic.into(), ..Self::default() }
    }

    /// With a key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With a value.
    #[must_use]
    pub fn value(mut self, value: impl Into<Bytes>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// To this partition.
    #[must_use]
    pub fn partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, key: impl Into<String>, value: Option<Bytes>) -> Self {
        self.headers.push(Header { key: key.into(), value });
        self
    }

    fn bytes(&self) -> usize {
        let part = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize =
            self.headers.iter().map(|header| header.key.len() + part(&header.value) + 8).sum();
        part(&self.key) + part(&self.value) + headers + 30
    }
}

/// Where a record was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordPlace {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset; `None` with acks=0, and when the broker had stored it at an earlier try that was
    /// too long ago to tell.
    pub offset: Option<i64>,
}

/// The fate of one record. Dropping it does not take the record back.
#[derive(Debug)]
pub struct Delivery(oneshot::Receiver<Result<RecordPlace, Error>>);

impl Future for Delivery {
    type Output = Result<RecordPlace, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|result| result.unwrap_or(Err(Error::Closed)))
    }
}

/// A producer. Dropping it gives up what was not sent; see [`Producer::close`].
pub struct Producer {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    client: Client,
    options: ProducerOptions,
    state: Mutex<State>,
    /// Something may have become ready to send.
    wake: Notify,
    /// A batch was resolved: memory is free, a flush may be complete.
    resolved: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Producer {
    /// A producer on the connections of `client`. Asks for a producer id when it is idempotent.
    ///
    /// # Errors
    /// [`Error::Invalid`] for options that exclude each other; when no producer id can be had in
    /// time.
    pub async fn new(client: &Client, options: ProducerOptions) -> Result<Self, Error> {
        if options.idempotence && (options.acks != Acks::All || options.in_flight_max > 5) {
            let why = "the idempotent producer needs acks=all and at most 5 requests in flight; \
                set enable.idempotence=false or change these";
            return Err(Error::Invalid(why.to_owned()));
        }
        if options.in_flight_max == 0 || options.batch_bytes > options.buffer_bytes {
            return Err(Error::Invalid(
                "max.in.flight.requests.per.connection must be at least 1 and batch.size at most \
                 buffer.memory"
                    .to_owned(),
            ));
        }
        let id = if options.idempotence {
            Some(sender::init_producer_id(client, client.api_deadline()).await?)
        } else {
            None
        };
        let state = Mutex::new(State::new(id));
        let shared = Arc::new(Shared {
            client: client.clone(),
            options,
            state,
            wake: Notify::new(),
            resolved: Notify::new(),
        });
        let task = tokio::spawn(sender::run(Arc::clone(&shared)));
        Ok(Self { shared, task })
    }

    /// Puts `record` into a batch; the result tells later where it was stored.
    ///
    /// Waits, up to `max.block.ms`, while the topic is not known or `buffer.memory` is used up.
    /// Records of one partition are stored in the order of the calls. Cancel safe: when dropped,
    /// the record is not sent.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a record that is too large; the broker's for a topic that does not
    /// exist; [`Error::Timeout`].
    pub async fn send(&self, record: ProducerRecord) -> Result<Delivery, Error> {
        let bytes = record.bytes();
        let options = &self.shared.options;
        if bytes > options.record_bytes_max {
            let max = options.record_bytes_max;
            return Err(Error::Invalid(format!(
                "the record has {bytes} bytes; at most {max} are sent (max.request.size)"
            )));
        }
        let deadline = Instant::now() + options.block_max;
        let partition = self.choose_partition(&record, bytes, deadline).await?;
        loop {
            let free = self.shared.resolved.notified();
            {
                let mut state = self.shared.lock();
                if state.buffered_bytes == 0 || state.buffered_bytes + bytes <= options.buffer_bytes
                {
                    let timestamp = record
                        .timestamp
                        .unwrap_or_else(|| self.shared.client.env().clock.wall_ms());
                    let (delivery, wake) =
                        state.append(partition, &record, bytes, timestamp, options)?;
                    drop(state);
                    if wake {
                        self.shared.wake.notify_one();
                    }
                    return Ok(Delivery(delivery));
                }
            }
            if tokio::time::timeout_at(deadline, free).await.is_err() {
                return Err(Error::Timeout {
                    what: "waiting for buffer.memory".to_owned(),
                    after: options.block_max,
                });
            }
        }
    }

    /// Sends everything that is waiting, without lingering, and waits until the fate of all of it
    /// is known.
    pub async fn flush(&self) {
        self.shared.lock().flushing += 1;
        self.shared.wake.notify_one();
        loop {
            let resolved = self.shared.resolved.notified();
            tokio::pin!(resolved);
            resolved.as_mut().enable();
            if self.shared.lock().unresolved == 0 {
                break;
            }
            resolved.await;
        }
        self.shared.lock().flushing -= 1;
    }

    /// Flushes and ends the producer.
    ///
    /// # Errors
    /// None today; the fate of each record is told by its [`Delivery`].
    pub async fn close(self) -> Result<(), Error> {
        self.flush().await;
        Ok(())
    }

    async fn choose_partition(
        &self,
        record: &ProducerRecord,
        bytes: usize,
        deadline: Instant,
    ) -> Result<TopicPartition, Error> {
        let partitions = self.partitions_of(&record.topic, deadline).await?;
        let count = i32::try_from(partitions.len()).unwrap_or(i32::MAX);
        let partition = match (record.partition, &record.key) {
            (Some(partition), _) if (0..count).contains(&partition) => partition,
            (Some(partition), _) => {
                return Err(Error::Invalid(format!(
                    "topic {} has no partition {partition}, only 0 to {}",
                    record.topic,
                    count - 1
                )));
            }
            (None, Some(key)) => partition_for_key(key, count),
            (None, None) => {
                let random = self.shared.client.env().random_u64();
                self.shared.lock().sticky_partition(
                    &record.topic,
                    &partitions,
                    bytes,
                    self.shared.options.batch_bytes,
                    random,
                )
            }
        };
        Ok(TopicPartition::new(record.topic.clone(), partition))
    }

    async fn partitions_of(
        &self,
        topic: &str,
        deadline: Instant,
    ) -> Result<Vec<(i32, bool)>, Error> {
        let client = &self.shared.client;
        if let Some(partitions) = client.known_partitions(topic) {
            return Ok(partitions);
        }
        client
            .retrying_connects(deadline, deadline, || async {
                let metadata =
                    client.read_metadata(Some(&[topic.to_owned()]), true, deadline).await?;
                let code = metadata
                    .topics
                    .get(topic)
                    .map_or(Some(ErrorCode::UnknownTopicOrPartition), |found| found.error);
                match (code, client.known_partitions(topic)) {
                    (None, Some(partitions)) => Ok(partitions),
                    (code, _) => Err(BrokerError {
                        code: code.unwrap_or(ErrorCode::LeaderNotAvailable),
                        message: None,
                    }
                    .into()),
                }
            })
            .await
    }
}

/// Sticky partitions by topic: the partition and the bytes it has had since it was chosen.
type Sticky = BTreeMap<String, (i32, usize)>;
