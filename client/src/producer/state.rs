//! What waits to be sent. No I/O here: the sender asks what is ready and tells what became of it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use letterbox_protocol::ErrorCode;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{ProducerOptions, ProducerRecord, RecordPlace, Sticky};
use crate::error::Error;
use crate::metadata::TopicPartition;
use crate::record::{BatchBuilder, ProducerStamp};

type Waiter = oneshot::Sender<Result<RecordPlace, Error>>;

/// Everything between `send` and the connections.
pub(super) struct State {
    queues: BTreeMap<TopicPartition, Queue>,
    sticky: Sticky,
    /// The producer id and epoch; `None` without idempotence.
    pub(super) id: Option<(i64, i16)>,
    /// A sequence of some partition has a hole: once no batch carries the old id any more, a new
    /// one is needed.
    pub(super) id_is_spent: bool,
    pub(super) buffered_bytes: usize,
    /// Batches whose fate is not known.
    pub(super) unresolved: usize,
    /// Flushes under way: nothing lingers.
    pub(super) flushing: usize,
}

/// The batches of one partition.
///
/// Invariant: `waiting` is sorted by `Batch::order`; stamped batches come before those without a
/// stamp.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Batch>,
    /// Orders of the batches that are being sent.
    in_flight: std::collections::BTreeSet<u64>,
    next_order: u64,
    next_sequence: i32,
    /// The producer id of which something was stored last. A broker takes any number for the first
    /// of an id that it does not know (KIP-360), so that until then one batch is under way alone: a
    /// later one might be stored before an earlier one that was refused for a moment.
    known_id: Option<(i64, i16)>,
    /// Nothing is sent before this.
    retry_at: Option<Instant>,
}

/// A batch and those who wait for it.
pub(super) struct Batch {
    order: u64,
    builder: BatchBuilder,
    waiters: Vec<Waiter>,
    created: Instant,
    bytes: usize,
    attempts: u32,
    /// With idempotence, from the first try on: the numbers a retry must repeat.
    stamp: Option<ProducerStamp>,
    encoded: Option<Bytes>,
    /// Whether every earlier batch was resolved when this one was sent last.
    first_in_line: bool,
}

impl Batch {
    /// The bytes to send.
    pub(super) fn encoded(&self) -> Bytes {
        self.encoded.clone().unwrap_or_default()
    }
}

/// What became of one try to send a batch.
pub(super) enum Outcome {
    /// Stored from this offset on; `None` when the offset is not known.
    Stored(Option<i64>),
    /// Refused or lost.
    Failed(Error),
}

impl State {
    pub(super) fn new(id: Option<(i64, i16)>) -> Self {
        Self {
            queues: BTreeMap::new(),
            sticky: BTreeMap::new(),
            id,
            id_is_spent: false,
            buffered_bytes: 0,
            unresolved: 0,
            flushing: 0,
        }
    }

    /// Adds a record; tells also whether the sender has something new to look at.
    pub(super) fn append(
        &mut self,
        partition: TopicPartition,
        record: &ProducerRecord,
        bytes: usize,
        timestamp: i64,
        options: &ProducerOptions,
    ) -> Result<(oneshot::Receiver<Result<RecordPlace, Error>>, bool), Error> {
        let queue = self.queues.entry(partition).or_default();
        let fits = |batch: &Batch| {
            batch.encoded.is_none()
                && batch.builder.bytes().saturating_add(bytes) <= options.batch_bytes
        };
        let mut wake = false;
        if !queue.waiting.back().is_some_and(fits) {
            let order = queue.next_order;
            queue.next_order += 1;
            queue.waiting.push_back(Batch {
                order,
                builder: BatchBuilder::new(),
                waiters: Vec::new(),
                created: Instant::now(),
                bytes: 0,
                attempts: 0,
                stamp: None,
                encoded: None,
                first_in_line: false,
            });
            self.unresolved += 1;
            wake = true;
        }
        let (waiter, delivery) = oneshot::channel();
        if let Some(batch) = queue.waiting.back_mut() {
            let pushed = batch.builder.push(
                timestamp,
                record.key.as_deref(),
                record.value.as_deref(),
                &record.headers,
            );
            pushed.map_err(|error| Error::Invalid(error.to_string()))?;
            batch.waiters.push(waiter);
            batch.bytes += bytes;
            self.buffered_bytes += bytes;
            wake |= batch.builder.bytes() >= options.batch_bytes;
        }
        Ok((delivery, wake))
    }

    /// The partition for the next record without a key: one partition until it has had a batch
    /// worth of bytes (KIP-794).
    pub(super) fn sticky_partition(
        &mut self,
        topic: &str,
        partitions: &[(i32, bool)],
        bytes: usize,
        batch_bytes: usize,
        random: u64,
    ) -> i32 {
        if let Some((partition, used)) = self.sticky.get_mut(topic)
            && used.saturating_add(bytes) <= batch_bytes
            && partitions.iter().any(|(id, has_leader)| id == partition && *has_leader)
        {
            *used += bytes;
            return *partition;
        }
        let mut candidates: Vec<i32> =
            partitions.iter().filter(|(_, has_leader)| *has_leader).map(|(id, _)| *id).collect();
        if candidates.is_empty() {
            candidates = partitions.iter().map(|(id, _)| *id).collect();
        }
        let index = usize::try_from(random % u64::try_from(candidates.len().max(1)).unwrap_or(1))
            .unwrap_or(0);
        let chosen = candidates.get(index).copied().unwrap_or(0);
        self.sticky.insert(topic.to_owned(), (chosen, bytes));
        chosen
    }

    /// The partitions whose next batch may be sent now, and otherwise when one may be.
    pub(super) fn ready(
        &self,
        now: Instant,
        options: &ProducerOptions,
    ) -> (Vec<TopicPartition>, Option<Instant>) {
        let mut ready = Vec::new();
        let mut next: Option<Instant> = None;
        for (partition, queue) in &self.queues {
            let Some(first) = queue.waiting.front() else { continue };
            if first.stamp.is_none() && self.id_is_spent {
                continue;
            }
            let is_known = self.id.is_none() || queue.known_id == self.id;
            if !is_known && !queue.in_flight.is_empty() {
                continue;
            }
            let complete = self.flushing > 0
                || first.attempts > 0
                || queue.waiting.len() > 1
                || first.builder.bytes() >= options.batch_bytes
                || self.buffered_bytes.saturating_mul(2) > options.buffer_bytes;
            let linger_end = if complete { now } else { first.created + options.linger };
            let at = queue.retry_at.map_or(linger_end, |retry_at| retry_at.max(linger_end));
            if at <= now {
                ready.push(partition.clone());
            } else {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        (ready, next)
    }

    /// Takes the next batch of `partition` for sending, with its numbers and bytes fixed.
    pub(super) fn take(
        &mut self,
        partition: &TopicPartition,
        options: &ProducerOptions,
    ) -> Option<Batch> {
        let queue = self.queues.get_mut(partition)?;
        let mut batch = queue.waiting.pop_front()?;
        queue.retry_at = None;
        if batch.encoded.is_none() {
            let stamp = match self.id {
                Some((id, epoch)) => {
                    let sequence = queue.next_sequence;
                    // Sequence numbers start again at 0 after 2^31 - 1.
                    queue.next_sequence = i32::try_from(
                        (i64::from(sequence) + i64::from(batch.builder.count()))
                            & i64::from(i32::MAX),
                    )
                    .unwrap_or(0);
                    batch.stamp = Some(ProducerStamp { id, epoch, sequence });
                    ProducerStamp { id, epoch, sequence }
                }
                None => ProducerStamp::NONE,
            };
            match batch.builder.finish(options.compression, stamp) {
                Ok(bytes) => batch.encoded = Some(bytes),
                Err(error) => {
                    self.resolve(partition, batch, Err(Error::Invalid(error.to_string())));
                    return None;
                }
            }
        }
        batch.first_in_line = queue.in_flight.first().is_none_or(|order| *order > batch.order);
        batch.attempts = batch.attempts.saturating_add(1);
        queue.in_flight.insert(batch.order);
        Some(batch)
    }

    /// Puts a batch that could not even be handed to a connection back, as if it had not been
    /// taken.
    pub(super) fn put_back(&mut self, partition: &TopicPartition, batch: Batch, retry_at: Instant) {
        let Some(queue) = self.queues.get_mut(partition) else { return };
        queue.in_flight.remove(&batch.order);
        queue.retry_at = Some(retry_at);
        let at = queue
            .waiting
            .iter()
            .position(|other| other.order > batch.order)
            .unwrap_or(queue.waiting.len());
        queue.waiting.insert(at, batch);
    }

    /// Notes what became of a try; the batch is resolved, or waits for the next try.
    pub(super) fn settle(
        &mut self,
        partition: &TopicPartition,
        mut batch: Batch,
        outcome: Outcome,
        options: &ProducerOptions,
        retry_at: Instant,
    ) {
        let error = match outcome {
            Outcome::Stored(offset) => return self.resolve(partition, batch, Ok(offset)),
            Outcome::Failed(error) => error,
        };
        let code = error.code();
        if code == Some(ErrorCode::DuplicateSequenceNumber) {
            return self.resolve(partition, batch, Ok(None));
        }
        let sequence_lost = matches!(
            code,
            Some(
                ErrorCode::OutOfOrderSequenceNumber
                    | ErrorCode::UnknownProducerId
                    | ErrorCode::InvalidProducerEpoch
            )
        ) && batch.stamp.is_some();
        let late = batch.created + options.delivery_timeout <= retry_at;
        if late || !(sequence_lost || error.is_retriable()) || batch.attempts > options.retries {
            // The sequence has a hole now: what comes behind it needs another producer id.
            self.id_is_spent |= batch.stamp.is_some();
            return self.resolve(partition, batch, Err(error));
        }
        // A batch behind one that is not stored yet is refused for its number alone and keeps it.
        // Otherwise the broker expects another number: this batch was not stored and is sent again
        // under a new id (KIP-360).
        if sequence_lost && (batch.first_in_line || self.id_is_spent) {
            self.id_is_spent = true;
            batch.stamp = None;
            batch.encoded = None;
        }
        self.put_back(partition, batch, retry_at);
    }

    /// Fails batches that have waited longer than `delivery.timeout.ms`; tells when the next one
    /// will have.
    pub(super) fn expire(&mut self, now: Instant, options: &ProducerOptions) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut expired = Vec::new();
        for (partition, queue) in &mut self.queues {
            while queue
                .waiting
                .front()
                .is_some_and(|batch| batch.created + options.delivery_timeout <= now)
            {
                expired.extend(queue.waiting.pop_front().map(|batch| (partition.clone(), batch)));
            }
            if let Some(batch) = queue.waiting.front() {
                let at = batch.created + options.delivery_timeout;
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        for (partition, batch) in expired {
            self.id_is_spent |= batch.stamp.is_some();
            let what = format!("delivery to {partition}");
            self.resolve(
                &partition,
                batch,
                Err(Error::Timeout { what, after: options.delivery_timeout }),
            );
        }
        next
    }

    /// Whether no batch carries the spent id any more, so that a new one may be taken.
    pub(super) fn may_take_new_id(&self) -> bool {
        let stamped = |queue: &Queue| {
            !queue.in_flight.is_empty() || queue.waiting.iter().any(|batch| batch.stamp.is_some())
        };
        self.id_is_spent && !self.queues.values().any(stamped)
    }

    /// Goes on with a new id; all sequences start at 0.
    pub(super) fn set_id(&mut self, id: (i64, i16)) {
        self.id = Some(id);
        self.id_is_spent = false;
        for queue in self.queues.values_mut() {
            queue.next_sequence = 0;
        }
    }

    fn resolve(
        &mut self,
        partition: &TopicPartition,
        batch: Batch,
        result: Result<Option<i64>, Error>,
    ) {
        if let Some(queue) = self.queues.get_mut(partition) {
            queue.in_flight.remove(&batch.order);
            if let (Some(ProducerStamp { id, epoch, .. }), Ok(_)) = (batch.stamp, &result) {
                queue.known_id = Some((id, epoch));
            }
        }
        self.unresolved = self.unresolved.saturating_sub(1);
        self.buffered_bytes = self.buffered_bytes.saturating_sub(batch.bytes);
        for (index, waiter) in (0i64..).zip(batch.waiters) {
            let place = result.clone().map(|base| RecordPlace {
                topic: partition.topic.clone(),
                partition: partition.partition,
                offset: base.map(|base| base.saturating_add(index)),
            });
            // Nobody may wait for it.
            let _ = waiter.send(place);
        }
    }
}

#[cfg(test)]
mod tests;
