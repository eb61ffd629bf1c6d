//! What is known of each idempotent producer: its epoch and its last five batches.
//!
//! Snapshots are in Kafka's format. Kafka stores only the last batch of each producer; we store up
//! to five entries per producer, oldest first, of which Kafka keeps the last it reads, so that a
//! retry of any batch in flight is recognised after a restart too.
//!
//! Source: KIP-98; Apache Kafka's ProducerAppendInfo and ProducerStateManager for what they leave
//! open.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, BufMut};

use super::error::AppendError;
use letterbox_protocol::batch::{BatchHeader, crc32c, increment_sequence};
use letterbox_protocol::model::{Offset, ProducerId, TimestampMs};

/// Batches a producer may have in flight (`max.in.flight.requests.per.connection` of an idempotent
/// one).
const BATCHES_MAX: usize = 5;
const SNAPSHOT_VERSION: i16 = 1;
const SNAPSHOT_HEADER: usize = 10;
const SNAPSHOT_ENTRY: usize = 8 + 2 + 4 + 8 + 4 + 8 + 4 + 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    last_sequence: i32,
    last_offset: Offset,
    offset_delta: i32,
    timestamp: TimestampMs,
}

impl Entry {
    fn first_sequence(&self) -> i32 {
        increment_sequence_back(self.last_sequence, self.offset_delta)
    }
}

fn increment_sequence_back(sequence: i32, by: i32) -> i32 {
    ((i64::from(sequence) - i64::from(by)) & i64::from(i32::MAX)) as i32
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Producer {
    epoch: i16,
    batches: VecDeque<Entry>,
    last_timestamp: TimestampMs,
    /// Since when nothing came from it; `None` when something came after the last look. What a
    /// snapshot brought is as old as its records.
    idle_since: Option<TimestampMs>,
}

/// What is told of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerView {
    /// Its id.
    pub id: ProducerId,
    /// Its epoch.
    pub epoch: i16,
    /// Sequence of its last record; −1 before the first.
    pub last_sequence: i32,
    /// Largest timestamp of its records.
    pub last_timestamp: TimestampMs,
}

/// A batch that was stored before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Duplicate {
    pub(super) base_offset: Offset,
    pub(super) last_offset: Offset,
    pub(super) timestamp: TimestampMs,
}

/// The producers of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Producers {
    by_id: BTreeMap<ProducerId, Producer>,
}

impl Producers {
    /// Whether a client's batch follows what its producer sent before; `Some` when it is one of the
    /// last five.
    pub(super) fn check(&self, header: &BatchHeader) -> Result<Option<Duplicate>, AppendError> {
        let Some(producer) = self.by_id.get(&header.producer_id) else { return Ok(None) };
        let (id, epoch) = (header.producer_id, header.producer_epoch);
        if epoch < producer.epoch {
            return Err(AppendError::InvalidProducerEpoch {
                producer_id: id,
                epoch,
                current: producer.epoch,
            });
        }
        let (first, last) = (header.base_sequence, header.last_sequence());
        let out_of_order = |last_sequence| AppendError::OutOfOrderSequenceNumber {
            producer_id: id,
            epoch: producer.epoch,
            first_sequence: first,
            last_sequence,
        };
        if epoch > producer.epoch {
            return if first == 0 { Ok(None) } else { Err(out_of_order(-1)) };
        }
        if let Some(entry) = producer
            .batches
            .iter()
            .find(|entry| entry.last_sequence == last && entry.first_sequence() == first)
        {
            let base_offset = entry.last_offset.saturating_sub(i64::from(entry.offset_delta));
            return Ok(Some(Duplicate {
                base_offset,
                last_offset: entry.last_offset,
                timestamp: entry.timestamp,
            }));
        }
        let last_sequence = producer.batches.back().map_or(-1, |entry| entry.last_sequence);
        let expected = if last_sequence < 0 { 0 } else { increment_sequence(last_sequence, 1) };
        if first == expected { Ok(None) } else { Err(out_of_order(last_sequence)) }
    }

    /// Notes a stored batch.
    pub(super) fn note(&mut self, header: &BatchHeader) {
        if !header.has_producer_id() {
            return;
        }
        let producer = self.by_id.entry(header.producer_id).or_insert_with(|| Producer {
            epoch: header.producer_epoch,
            batches: VecDeque::new(),
            last_timestamp: header.max_timestamp,
            idle_since: None,
        });
        producer.idle_since = None;
        if producer.epoch != header.producer_epoch {
            producer.epoch = header.producer_epoch;
            producer.batches.clear();
        }
        producer.last_timestamp = producer.last_timestamp.max(header.max_timestamp);
        if !header.is_control() && header.base_sequence >= 0 {
            producer.push(Entry {
                last_sequence: header.last_sequence(),
                last_offset: header.last_offset(),
                offset_delta: header.last_offset_delta,
                timestamp: header.max_timestamp,
            });
        }
    }

    pub(super) fn views(&self) -> Vec<ProducerView> {
        let view = |(id, producer): (&ProducerId, &Producer)| ProducerView {
            id: *id,
            epoch: producer.epoch,
            last_sequence: producer.batches.back().map_or(-1, |entry| entry.last_sequence),
            last_timestamp: producer.last_timestamp,
        };
        self.by_id.iter().map(view).collect()
    }

    /// Forgets producers that have sent nothing for `expiration_ms` (`producer.id.expiration.ms`).
    /// What counts is when their batches came, not the timestamps of their records: who sends
    /// records of last year is still known when it sends one of them again.
    pub(super) fn expire(&mut self, now: TimestampMs, expiration_ms: i64) {
        self.by_id.retain(|_, producer| {
            now.saturating_sub(*producer.idle_since.get_or_insert(now)) < expiration_ms
        });
    }

    /// Whether the batch is the last its producer sent: compaction keeps it, empty, so that the
    /// sequence survives.
    pub(super) fn is_last_of_producer(&self, header: &BatchHeader) -> bool {
        self.by_id
            .get(&header.producer_id)
            .and_then(|producer| producer.batches.back())
            .is_some_and(|entry| entry.last_offset == header.last_offset())
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn to_snapshot(&self) -> Vec<u8> {
        let mut entries = Vec::new();
        let mut count = 0i32;
        for (id, producer) in &self.by_id {
            let none = Entry {
                last_sequence: -1,
                last_offset: -1,
                offset_delta: 0,
                timestamp: producer.last_timestamp,
            };
            let batches: Vec<Entry> = if producer.batches.is_empty() {
                vec![none]
            } else {
                producer.batches.iter().copied().collect()
            };
            for entry in batches {
                count = count.saturating_add(1);
                entries.put_i64(*id);
                entries.put_i16(producer.epoch);
                entries.put_i32(entry.last_sequence);
                entries.put_i64(entry.last_offset);
                entries.put_i32(entry.offset_delta);
                entries.put_i64(entry.timestamp);
                entries.put_i32(-1); // coordinator epoch
                entries.put_i64(-1); // first offset of the open transaction
            }
        }
        let mut body = count.to_be_bytes().to_vec();
        body.append(&mut entries);
        let mut out = Vec::with_capacity(body.len() + 6);
        out.put_i16(SNAPSHOT_VERSION);
        out.put_u32(crc32c(&body));
        out.append(&mut body);
        out
    }

    /// `None` when the bytes are not a whole snapshot.
    pub(super) fn from_snapshot(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        if rest.len() < SNAPSHOT_HEADER
            || rest.get_i16() != SNAPSHOT_VERSION
            || rest.get_u32() != crc32c(rest)
        {
            return None;
        }
        let count = usize::try_from(rest.get_i32()).ok()?;
        if rest.len() != count.checked_mul(SNAPSHOT_ENTRY)? {
            return None;
        }
        let mut producers = Self::default();
        for _ in 0..count {
            let (id, epoch) = (rest.get_i64(), rest.get_i16());
            let entry = Entry {
                last_sequence: rest.get_i32(),
                last_offset: rest.get_i64(),
                offset_delta: rest.get_i32(),
                timestamp: rest.get_i64(),
            };
            let _coordinator_epoch_and_transaction = (rest.get_i32(), rest.get_i64());
            let producer = producers.by_id.entry(id).or_insert_with(|| Producer {
                epoch,
                batches: VecDeque::new(),
                last_timestamp: entry.timestamp,
                idle_since: None,
            });
            if producer.epoch != epoch {
                (producer.epoch, producer.batches) = (epoch, VecDeque::new());
            }
            producer.last_timestamp = producer.last_timestamp.max(entry.timestamp);
            producer.idle_since = Some(producer.last_timestamp);
            if entry.last_sequence >= 0 && entry.offset_delta >= 0 {
                producer.push(entry);
            }
        }
        Some(producers)
    }
}

impl Producer {
    fn push(&mut self, entry: Entry) {
        if self.batches.len() == BATCHES_MAX {
            self.batches.pop_front();
        }
        self.batches.push_back(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use letterbox_protocol::batch::BatchBuilder;

    fn batch(epoch: i16, first: i32, count: i32, offset: Offset) -> BatchHeader {
        let mut builder = BatchBuilder::new(1_000).producer(9, epoch, first).at(offset, 0);
        (0..count).for_each(|_| builder.push(1_000, None, None, &[]));
        BatchHeader::parse(&builder.build()).unwrap()
    }

    fn code(producers: &Producers, header: &BatchHeader) -> i16 {
        match producers.check(header) {
            Ok(None) => 0,
            Ok(Some(_)) => 1,
            Err(error) => error.code(),
        }
    }

    #[test]
    fn five_batches_are_known_and_the_next_must_follow() {
        let mut producers = Producers::default();
        assert_eq!(
            code(&producers, &batch(0, 17, 1, 0)),
            0,
            "an unknown producer may begin anywhere"
        );
        for i in 0..6 {
            let header = batch(3, i * 2, 2, 100 + i64::from(i) * 2);
            assert_eq!(code(&producers, &header), 0);
            producers.note(&header);
        }
        for restored in
            [producers.clone(), Producers::from_snapshot(&producers.to_snapshot()).unwrap()]
        {
            assert_eq!(restored.to_snapshot(), producers.to_snapshot());
            assert_eq!(
                restored.check(&batch(3, 2, 2, 0)).unwrap(),
                Some(Duplicate { base_offset: 102, last_offset: 103, timestamp: 1_000 })
            );
            for (name, header, expected) in [
                ("the sixth before", batch(3, 0, 2, 0), 45),
                ("part of a known one", batch(3, 2, 1, 0), 45),
                ("next", batch(3, 12, 1, 0), 0),
                ("a gap", batch(3, 13, 1, 0), 45),
                ("old epoch", batch(2, 12, 1, 0), 47),
                ("new epoch from 0", batch(4, 0, 1, 0), 0),
                ("new epoch not from 0", batch(4, 12, 1, 0), 45),
            ] {
                assert_eq!(code(&restored, &header), expected, "{name}");
            }
        }
    }

    #[test]
    fn sequences_wrap() {
        let mut producers = Producers::default();
        producers.note(&batch(0, i32::MAX - 1, 3, 0));
        assert_eq!(code(&producers, &batch(0, i32::MAX - 1, 3, 0)), 1);
        assert_eq!(code(&producers, &batch(0, 1, 1, 0)), 0);
        assert_eq!(code(&producers, &batch(0, 0, 1, 0)), 45);
    }

    #[test]
    fn damaged_snapshots_are_not_taken() {
        let mut producers = Producers::default();
        producers.note(&batch(0, 0, 1, 0));
        let bytes = producers.to_snapshot();
        for cut in 0..bytes.len() {
            assert_eq!(Producers::from_snapshot(&bytes[..cut]), None);
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Producers::from_snapshot(&bad), None, "bit {bit}");
        }
    }

    #[test]
    fn silent_producers_expire() {
        let mut producers = Producers::default();
        producers.note(&batch(0, 0, 1, 0));
        for (now, left) in [(50_000, 1), (50_999, 1), (51_000, 0)] {
            producers.expire(now, 1_000);
            assert_eq!(producers.len(), left, "at {now}");
        }
        // Its records are of 1970, but they come now.
        for now in [50_000, 50_900, 51_800] {
            producers.note(&batch(0, 0, 1, 0));
            producers.expire(now, 1_000);
            assert_eq!(producers.len(), 1, "at {now}");
        }
        // After a restart the records alone tell how long it has been silent.
        let mut read = Producers::from_snapshot(&producers.to_snapshot()).unwrap();
        read.expire(51_801, 1_000);
        assert_eq!(read.len(), 0);
    }
}
