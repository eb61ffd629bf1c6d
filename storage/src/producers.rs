//! What is known of each idempotent producer: its epoch and its last five batches.
//!
//! Snapshots are in Kafka's format. Kafka stores only the last batch of each producer; we store up
//! to five entries per producer, oldest first, of which Kafka keeps the last it reads, so that a
//! retry of any batch in flight is recognised after a restart too.
//!
//! Source: KIP-98; Apache Kafka's ProducerAppendInfo and ProducerStateManager for what they leave
//! open.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::{Buf, BufMut};
use letterbox_env::Failing;

use super::error::AppendError;
use letterbox_protocol::batch::{BatchHeader, crc32c, increment_sequence};
use letterbox_protocol::model::{Offset, ProducerId, TimestampMs};

/// Batches a producer may have in flight (`max.in.flight.requests.per.connection` of an idempotent
/// one).
const BATCHES_MAX: usize = 5;
const SNAPSHOT_VERSION: i16 = 1;
const SNAPSHOT_HEADER: usize = 10;
const SNAPSHOT_ENTRY: usize = 8 + 2 + 4 + 8 + 4 + 8 + 4 + 8;

/// What a producer takes of memory in one partition, with its five batches.
const BYTES_EACH: usize = 352;
/// A producer that has sent something within this time is not forgotten: it may send it again.
/// Librdkafka does so for 5 minutes (`message.timeout.ms`), Java for 2 (`delivery.timeout.ms`).
pub(super) const RETRIES_END_MS: i64 = 15 * 60_000;
/// How long a producer that is not known may not begin with anything but its first batch after
/// another was refused: the one in front of it may have been.
const AFTER_REFUSAL_MS: i64 = 60_000;

/// What is remembered of producers in all logs, and its bound, in producers of a partition.
///
/// A producer that is forgotten while it repeats a batch would have that stored twice, and one of
/// which only the second batch is taken has them out of order. So none is forgotten that has sent
/// something within the time of its retries, whatever timestamps its records have; when there is no
/// room, what is refused are the batches of those that are not known. What is read from disk or from
/// a leader is always taken: a leader has a bound of its own. Only what was committed before it was
/// copied, or was read from disk, may be more than a leader ever remembers at once: of those
/// producers the ones that came here first go when there are more than the bound.
pub(super) struct ProducerMemory {
    known: AtomicUsize,
    max: usize,
    refused: AtomicU64,
    /// How many producers the partitions had in which a batch was refused since the last look, the
    /// largest number, and one more; 0 when none was.
    lacks_room: AtomicUsize,
    failing: Failing<()>,
}

impl ProducerMemory {
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            known: AtomicUsize::new(0),
            max: bytes / BYTES_EACH,
            refused: AtomicU64::new(0),
            lacks_room: AtomicUsize::new(0),
            failing: Failing::default(),
        }
    }

    /// Producers that are known, in each of their partitions.
    pub(super) fn known(&self) -> usize {
        self.known.load(Ordering::Relaxed)
    }

    /// Bytes of what is known of them.
    pub(super) fn used(&self) -> usize {
        self.known().saturating_mul(BYTES_EACH)
    }

    /// Batches that were refused.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether those that are idle are to be forgotten before their time.
    pub(super) fn is_tight(&self) -> bool {
        let refused = self.lacks_room.load(Ordering::Relaxed).checked_sub(1);
        // One refused batch makes room for many: others follow it.
        let wanted = |len: usize| len.saturating_add(self.max / 16);
        self.known() > self.max / 4 * 3 || refused.is_some_and(|len| !self.has_room(wanted(len)))
    }

    /// Whether there are more than there may be.
    pub(super) fn is_over(&self) -> bool {
        self.known() > self.max
    }

    /// Those that are idle were forgotten; says, once, that none was refused meanwhile.
    pub(super) fn looked_at(&self) {
        if self.lacks_room.swap(0, Ordering::Relaxed) == 0 && self.failing.succeeded() {
            tracing::info!("accepting new idempotent producers again");
        }
    }

    /// Whether a partition that has `len` of them may have another one. Each may have as many as
    /// are free for all, so that those of many do not keep out those of few.
    fn has_room(&self, len: usize) -> bool {
        len < self.max.saturating_sub(self.known())
    }

    /// In a partition that has `len` of them.
    fn refuse(&self, producer_id: ProducerId, len: usize) -> AppendError {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.lacks_room.fetch_max(len.saturating_add(1), Ordering::Relaxed);
        if self.failing.failed(()) {
            tracing::warn!(
                limit_bytes = self.max.saturating_mul(BYTES_EACH),
                "refusing batches of new idempotent producers, because the broker already \
                 remembers too many; a client that creates a producer for each batch should reuse \
                 one"
            );
        }
        AppendError::TooManyProducers { producer_id }
    }
}

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
    /// Since when nothing came from it; `None` when something came after the last look. What was
    /// read from disk or copied from a leader is as old as its records.
    idle_since: Option<TimestampMs>,
    /// When its last batch came here, from whomever; `None` when it came after the last look.
    noted: Option<TimestampMs>,
    /// Its last batch was committed before it was copied to here, or was read from disk.
    is_late: bool,
}

/// How old the producers are that are forgotten, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ages {
    /// `producer.id.expiration.ms`.
    pub(super) expiration_ms: i64,
    /// Those that have sent nothing for so long go too, while there is no room for new ones.
    pub(super) early_ms: i64,
    /// So do those that came late ([`Producer::is_late`]) so long ago, while there are more than
    /// there may be.
    pub(super) late_ms: i64,
}

impl Ages {
    pub(super) fn new(expiration_ms: i64) -> Self {
        Self { expiration_ms, early_ms: expiration_ms, late_ms: RETRIES_END_MS }
    }

    /// The next to be forgotten, after all of these were; `None`: nobody else goes.
    pub(super) fn next(mut self, memory: &ProducerMemory) -> Option<Self> {
        if self.early_ms > RETRIES_END_MS {
            self.early_ms = (self.early_ms / 2).max(RETRIES_END_MS);
            memory.is_tight().then_some(self)
        } else {
            let is_last = self.late_ms == 0;
            self.late_ms /= 2;
            (!is_last && memory.is_over()).then_some(self)
        }
    }
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
    /// Largest timestamp of its last batch.
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
#[derive(Default)]
pub(super) struct Producers {
    by_id: BTreeMap<ProducerId, Producer>,
    /// Where they are counted; not until the log is open.
    memory: Option<Arc<ProducerMemory>>,
    /// When one that was not known was last refused.
    refused_ms: Option<TimestampMs>,
}

impl Drop for Producers {
    fn drop(&mut self) {
        self.counted(self.by_id.len(), 0);
    }
}

impl Producers {
    /// From now on they are counted in `memory`.
    pub(super) fn count_in(&mut self, memory: Arc<ProducerMemory>) {
        self.memory = Some(memory);
        self.counted(0, self.by_id.len());
    }

    /// Takes the place of others, as what is known of the log now.
    pub(super) fn replace(&mut self, mut others: Self) {
        let before = self.by_id.len();
        std::mem::swap(&mut self.by_id, &mut others.by_id);
        self.counted(before, self.by_id.len());
    }

    fn counted(&self, before: usize, now: usize) {
        if let Some(memory) = &self.memory {
            memory.known.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
        }
    }

    /// Whether a client's batch follows what its producer sent before; `Some` when it is one of the
    /// last five.
    pub(super) fn check(
        &mut self,
        header: &BatchHeader,
        now: TimestampMs,
    ) -> Result<Option<Duplicate>, AppendError> {
        let Some(producer) = self.by_id.get(&header.producer_id) else {
            return self.check_new(header, now).map(|()| None);
        };
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

    /// Whether there is room for a producer that is not known.
    fn check_new(&mut self, header: &BatchHeader, now: TimestampMs) -> Result<(), AppendError> {
        let Some(memory) = &self.memory else { return Ok(()) };
        let is_behind_refused = header.base_sequence != 0
            && self
                .refused_ms
                .is_some_and(|at| (0..AFTER_REFUSAL_MS).contains(&now.saturating_sub(at)));
        if !memory.has_room(self.by_id.len()) {
            self.refused_ms = Some(now);
        } else if !is_behind_refused {
            return Ok(());
        }
        Err(memory.refuse(header.producer_id, self.by_id.len()))
    }

    /// Notes a stored batch.
    pub(super) fn note(&mut self, header: &BatchHeader) {
        if !header.has_producer_id() {
            return;
        }
        let memory = &self.memory;
        let producer = self.by_id.entry(header.producer_id).or_insert_with(|| {
            if let Some(memory) = memory {
                memory.known.fetch_add(1, Ordering::Relaxed);
            }
            Producer {
                epoch: header.producer_epoch,
                batches: VecDeque::new(),
                last_timestamp: header.max_timestamp,
                idle_since: None,
                noted: None,
                is_late: false,
            }
        });
        (producer.idle_since, producer.noted, producer.is_late) = (None, None, false);
        if producer.epoch != header.producer_epoch {
            producer.epoch = header.producer_epoch;
            producer.batches.clear();
        }
        producer.last_timestamp = header.max_timestamp;
        if !header.is_control() && header.base_sequence >= 0 {
            producer.push(Entry {
                last_sequence: header.last_sequence(),
                last_offset: header.last_offset(),
                offset_delta: header.last_offset_delta,
                timestamp: header.max_timestamp,
            });
        }
    }

    /// Notes a stored batch that no client sent here, nor to a leader that still waited for this
    /// broker: it is as old as its records, and came here at `now`, where that is known.
    pub(super) fn note_old(&mut self, header: &BatchHeader, now: Option<TimestampMs>) {
        let known = self.by_id.get(&header.producer_id);
        let before = known.map(|producer| producer.idle_since.unwrap_or(producer.last_timestamp));
        self.note(header);
        if let Some(producer) = self.by_id.get_mut(&header.producer_id) {
            producer.idle_since = before.max(Some(header.max_timestamp));
            (producer.noted, producer.is_late) = (now, true);
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

    /// Forgets producers of these ages. What counts is when their batches came, not the timestamps
    /// of their records: who sends records of last year is still known when it sends one of them
    /// again, also to a broker that has copied or read them.
    pub(super) fn expire(&mut self, now: TimestampMs, ages: &Ages) {
        let Ages { expiration_ms, early_ms, late_ms } = *ages;
        let memory = &self.memory;
        self.by_id.retain(|_, producer| {
            // Neither records nor a clock of before are of the future.
            let since = producer.idle_since.get_or_insert(now);
            *since = (*since).min(now);
            let idle_ms = now.saturating_sub(*since);
            let noted = producer.noted.get_or_insert(now);
            *noted = (*noted).min(now);
            let noted_ms = now.saturating_sub(*noted);
            let is_tight = || memory.as_ref().is_some_and(|memory| memory.is_tight());
            let is_over = || memory.as_ref().is_some_and(|memory| memory.is_over());
            let may_retry = noted_ms < RETRIES_END_MS.min(early_ms);
            let is_in_time = idle_ms < expiration_ms && (idle_ms < early_ms || !is_tight());
            let is_too_many = producer.is_late && noted_ms >= late_ms && is_over();
            let stays = (may_retry || is_in_time) && !is_too_many;
            if !stays && let Some(memory) = memory {
                memory.known.fetch_sub(1, Ordering::Relaxed);
            }
            stays
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
                noted: None,
                is_late: true,
            });
            if producer.epoch != epoch {
                (producer.epoch, producer.batches) = (epoch, VecDeque::new());
            }
            producer.last_timestamp = entry.timestamp;
            producer.idle_since = producer.idle_since.max(Some(entry.timestamp));
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
    use letterbox_protocol::ErrorCode;
    use letterbox_protocol::batch::BatchBuilder;

    fn batch(epoch: i16, first: i32, count: i32, offset: Offset) -> BatchHeader {
        let mut builder = BatchBuilder::new(1_000).producer(9, epoch, first).at(offset, 0);
        (0..count).for_each(|_| builder.push(1_000, None, None, &[]));
        BatchHeader::parse(&builder.build()).unwrap()
    }

    fn code(producers: &mut Producers, header: &BatchHeader) -> i16 {
        match producers.check(header, 0) {
            Ok(None) => 0,
            Ok(Some(_)) => 1,
            Err(error) => error.code().code(),
        }
    }

    /// As Kafka: that of the last batch, also when it is older than one before.
    #[test]
    fn the_last_timestamp_of_a_producer_is_that_of_its_last_batch() {
        let mut producers = Producers::default();
        for (number, timestamp) in [(0, 2_000), (1, 1_500)] {
            let mut batch = BatchBuilder::new(timestamp).producer(9, 0, number);
            batch = batch.at(number.into(), 0);
            batch.push(timestamp, None, None, &[]);
            producers.note_old(&BatchHeader::parse(&batch.build()).unwrap(), None);
        }
        let restored = Producers::from_snapshot(&producers.to_snapshot()).unwrap();
        for mut producers in [producers, restored] {
            assert_eq!(producers.views()[0].last_timestamp, 1_500);
            // It is as old as the newest of its records, and spared as long as it may repeat them.
            producers.expire(2_000, &Ages::new(1_000));
            producers.expire(2_999, &Ages::new(1_000));
            assert_eq!(producers.len(), 1);
            producers.expire(3_000, &Ages::new(1_000));
            assert_eq!(producers.len(), 0);
        }
    }

    #[test]
    fn five_batches_are_known_and_the_next_must_follow() {
        let mut producers = Producers::default();
        assert_eq!(
            code(&mut producers, &batch(0, 17, 1, 0)),
            0,
            "an unknown producer may begin anywhere"
        );
        for i in 0..6 {
            let header = batch(3, i * 2, 2, 100 + i64::from(i) * 2);
            assert_eq!(code(&mut producers, &header), 0);
            producers.note(&header);
        }
        let snapshot = producers.to_snapshot();
        let restored = Producers::from_snapshot(&snapshot).unwrap();
        for mut restored in [producers, restored] {
            assert_eq!(restored.to_snapshot(), snapshot);
            assert_eq!(
                restored.check(&batch(3, 2, 2, 0), 0).unwrap(),
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
                assert_eq!(code(&mut restored, &header), expected, "{name}");
            }
        }
    }

    #[test]
    fn sequences_wrap() {
        let mut producers = Producers::default();
        producers.note(&batch(0, i32::MAX - 1, 3, 0));
        assert_eq!(code(&mut producers, &batch(0, i32::MAX - 1, 3, 0)), 1);
        assert_eq!(code(&mut producers, &batch(0, 1, 1, 0)), 0);
        assert_eq!(code(&mut producers, &batch(0, 0, 1, 0)), 45);
    }

    #[test]
    fn damaged_snapshots_are_not_taken() {
        let mut producers = Producers::default();
        producers.note(&batch(0, 0, 1, 0));
        let bytes = producers.to_snapshot();
        for cut in 0..bytes.len() {
            assert!(Producers::from_snapshot(&bytes[..cut]).is_none());
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Producers::from_snapshot(&bad).is_none(), "bit {bit}");
        }
    }

    fn of(id: ProducerId, first: i32) -> BatchHeader {
        let mut header = batch(0, first, 1, 0);
        header.producer_id = id;
        header
    }

    #[test]
    fn new_producers_are_refused_where_there_is_no_room_and_known_ones_never() {
        let memory = Arc::new(ProducerMemory::new(8 * BYTES_EACH));
        let new = || {
            let mut producers = Producers::default();
            producers.count_in(memory.clone());
            producers
        };
        let (mut many, mut few) = (new(), new());
        let mut known = 0;
        while code(&mut many, &of(known, 0)) == 0 {
            many.note(&of(known, 0));
            known += 1;
        }
        assert_eq!((known, memory.refused(), memory.is_tight()), (4, 1, true), "half, for one");
        memory.looked_at();
        assert!(!memory.is_tight(), "none was refused since");
        assert_eq!(code(&mut many, &of(0, 1)), 0, "it is known");
        assert_eq!(code(&mut few, &of(100, 0)), 0, "there is room for other partitions");
        few.note(&of(100, 0));
        few.note(&of(101, 0));
        assert_eq!((code(&mut few, &of(102, 0)), memory.used()), (19, 6 * BYTES_EACH));
        // From a leader it is taken, and not with the broker's own word.
        (102..110).for_each(|id| few.note(&of(id, 0)));
        assert_eq!((memory.used(), memory.is_tight()), (14 * BYTES_EACH, true));
        assert_eq!(code(&mut new(), &of(200, 0)), 19);
        drop(few);
        assert_eq!(memory.used(), 4 * BYTES_EACH);
        many.replace(Producers::default());
        assert_eq!(memory.used(), 0);
    }

    /// One batch that was refused had all producers forgotten that were idle, in all logs.
    #[test]
    fn no_more_are_forgotten_early_than_there_has_to_be_room_for() {
        let memory = Arc::new(ProducerMemory::new(100 * BYTES_EACH));
        let mut of_logs = [Producers::default(), Producers::default()];
        of_logs.iter_mut().for_each(|producers| producers.count_in(memory.clone()));
        (100..110).for_each(|id| of_logs[0].note(&of(id, 0)));
        (0..50).for_each(|id| of_logs[1].note(&of(id, 0)));
        let expire = |of_logs: &mut [Producers; 2], now| {
            of_logs.each_mut().map(|producers| {
                producers.expire(now, &Ages { early_ms: 500, ..Ages::new(1_000) });
                producers.len()
            })
        };
        assert_eq!(expire(&mut of_logs, 0), [10, 50]);
        assert_eq!(expire(&mut of_logs, 900), [10, 50], "none was refused");
        let refused = of_logs[1].check(&of(60, 0), 900).unwrap_err().code();
        assert_eq!((refused, memory.is_tight()), (ErrorCode::NotEnoughReplicas, true));
        assert_eq!(expire(&mut of_logs, 900), [0, 43], "a sixteenth of all has to have room");
        assert!(!memory.is_tight());
        for id in 60..66 {
            assert!(of_logs[1].check(&of(id, 0), 900).is_ok(), "{id}");
            of_logs[1].note(&of(id, 0));
        }
        assert_eq!(expire(&mut of_logs, 1_000), [0, 6], "the new ones");
    }

    /// The second batch of a producer is not taken after the first one was refused.
    #[test]
    fn what_follows_a_refused_batch_is_refused_though_there_is_room_again() {
        let mut producers = Producers::default();
        producers.count_in(Arc::new(ProducerMemory::new(2 * BYTES_EACH)));
        producers.note(&of(1, 0));
        assert_eq!(producers.check(&of(2, 0), 50).unwrap_err().code().code(), 19);
        producers.expire(50, &Ages::new(0));
        for (first, now, is_taken) in
            [(1, 51, false), (0, 51, true), (1, 60_049, false), (1, 60_050, true)]
        {
            assert_eq!(producers.check(&of(2, first), now).is_ok(), is_taken, "{first} at {now}");
        }
    }

    #[test]
    fn silent_producers_expire() {
        let mut producers = Producers::default();
        producers.note(&batch(0, 0, 1, 0));
        for (now, left) in [(50_000, 1), (50_999, 1), (51_000, 0)] {
            producers.expire(now, &Ages::new(1_000));
            assert_eq!(producers.len(), left, "at {now}");
        }
        // Its records are of 1970, but they come now.
        for now in [50_000, 50_900, 51_800] {
            producers.note(&batch(0, 0, 1, 0));
            producers.expire(now, &Ages::new(1_000));
            assert_eq!(producers.len(), 1, "at {now}");
        }
        // After a restart, and where they are copied to, the records alone tell how long it has
        // been silent, but it may have sent them just now.
        let read = Producers::from_snapshot(&producers.to_snapshot()).unwrap();
        let mut copied = Producers::default();
        copied.note_old(&batch(0, 0, 1, 0), None);
        for mut producers in [read, copied] {
            for (now, left) in [(51_801, 1), (52_800, 1), (52_801, 0)] {
                producers.expire(now, &Ages::new(1_000));
                assert_eq!(producers.len(), left, "at {now}");
            }
        }
    }
    const MINUTE: TimestampMs = 60_000;

    fn expire_all(memory: &ProducerMemory, of_logs: &mut [&mut Producers], now: TimestampMs) {
        let mut ages = Some(Ages::new(24 * 60 * MINUTE));
        while let Some(these) = ages {
            of_logs.iter_mut().for_each(|producers| producers.expire(now, &these));
            ages = these.next(memory);
        }
    }

    /// All have sent records of 1970. A batch that one of them repeats is not stored twice.
    #[test]
    fn who_may_repeat_a_batch_of_old_records_is_known_though_there_is_hardly_room() {
        const NOW: TimestampMs = 1_700_000_000_000;
        let memory = Arc::new(ProducerMemory::new(100 * BYTES_EACH));
        let mut sent = Producers::default();
        sent.count_in(memory.clone());
        (0..40).for_each(|id| sent.note(&of(id, 0)));
        let mut read = Producers::from_snapshot(&sent.to_snapshot()).unwrap();
        read.count_in(memory.clone());
        let mut copied = Producers::default();
        copied.count_in(memory.clone());
        (0..10).for_each(|id| copied.note_old(&of(id, 0), Some(NOW)));
        assert!(memory.is_tight());
        for minutes in [0, 1, 14] {
            let now = NOW + minutes * MINUTE;
            expire_all(&memory, &mut [&mut sent, &mut read, &mut copied], now);
            let known = (sent.len(), read.len(), copied.len());
            assert_eq!(known, (40, 40, 10), "after {minutes} minutes");
        }
        assert_eq!(code(&mut sent, &of(7, 0)), 1, "it repeats a batch");
        assert_eq!(code(&mut sent, &of(100, 0)), 19, "a new one is told to try again");
        expire_all(&memory, &mut [&mut sent, &mut read, &mut copied], NOW + 15 * MINUTE);
        assert!(read.len() == 0 && copied.len() == 0, "their records are old, and came long ago");
    }

    /// A copy of a long log has more producers than any leader remembers at once.
    #[test]
    fn of_those_that_were_committed_before_they_were_copied_the_last_stay() {
        let memory = Arc::new(ProducerMemory::new(100 * BYTES_EACH));
        let (mut copied, mut in_sync) = (Producers::default(), Producers::default());
        copied.count_in(memory.clone());
        in_sync.count_in(memory.clone());
        for id in 0..400 {
            copied.note_old(&of(400 - id, 0), Some(id * 100));
        }
        (0..30).for_each(|id| in_sync.note(&of(id, 0)));
        expire_all(&memory, &mut [&mut copied, &mut in_sync], 40_000);
        assert_eq!((copied.len(), in_sync.len()), (70, 30));
        let last = copied.views().last().map(|view| view.id);
        assert!(last.is_some_and(|id| id <= 100), "{last:?} came before others that are gone");
    }
}
