//! What is known of a topic, and what it has to hold because of that.

use std::collections::BTreeMap;

use letterbox_client::ConsumerRecord;
use uuid::Uuid;

use super::super::read_all::Contents;

/// More than a record and its batch have in bytes beside key and value.
const OVERHEAD: u64 = 200;
/// The header that says what a tombstone is, since it has no value.
pub(super) const IDENTITY: &str = "identity";

/// What a topic keeps, by its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeps {
    /// Every record.
    All,
    /// The newest record of each key; tombstones go after a while if `drops_tombstones`.
    Newest { drops_tombstones: bool },
    /// What is younger than this.
    Age { ms: i64 },
    /// The newest bytes, at least this many.
    Size { bytes: u64 },
}

/// A record that was sent, whatever became of it.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) partition: i32,
    pub(super) key: String,
    pub(super) is_tombstone: bool,
    /// Whether it may be there only once.
    pub(super) idempotent: bool,
    /// The clients' time before it was sent.
    pub(super) at_ms: i64,
    /// Bytes that were sent to the partition before.
    bytes_before: u64,
}

/// An acknowledgement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acknowledged {
    pub(super) value: u64,
    /// For one that does not wait for a sync: [`super::Broken::losses`] before it was sent.
    pub(super) unsynced_at: Option<u64>,
}

/// A topic as it must be.
pub(super) struct Known {
    pub(super) id: Uuid,
    pub(super) partitions: i32,
    pub(super) keeps: Keeps,
    /// Of each place, the record that was acknowledged there.
    pub(super) acknowledged: BTreeMap<(i32, i64), Acknowledged>,
    sent: BTreeMap<u64, Sent>,
    bytes: BTreeMap<i32, u64>,
    /// Up to where records were to be deleted.
    deleted_before: BTreeMap<i32, i64>,
}

/// When something was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// The largest time that the broker's clock has shown.
    pub(super) broker_ms_max: i64,
    /// [`super::Broken::losses`]
    pub(super) losses: u64,
}

/// What is not as it must be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unmet {
    /// It can never be right again.
    Broken(String),
    /// It has to be right after a while.
    NotYet(String),
}

impl Known {
    pub(super) fn new(id: Uuid, partitions: i32, keeps: Keeps) -> Self {
        let (acknowledged, sent, bytes, deleted_before) = Default::default();
        Self { id, partitions, keeps, acknowledged, sent, bytes, deleted_before }
    }

    /// Notes that a record is about to be sent; gives what identifies it.
    pub(super) fn send(
        &mut self,
        value: u64,
        partition: i32,
        key: &str,
        len: Option<usize>,
        idempotent: bool,
        at_ms: i64,
    ) -> String {
        let bytes = self.bytes.entry(partition).or_default();
        let is_tombstone = len.is_none();
        self.sent.insert(
            value,
            Sent {
                partition,
                key: key.to_owned(),
                is_tombstone,
                idempotent,
                at_ms,
                bytes_before: *bytes,
            },
        );
        *bytes += OVERHEAD + (key.len() + len.unwrap_or(0)) as u64;
        format!("{} {value} ", self.id)
    }

    /// Notes that the records of `partition` before `offset` are about to be deleted.
    pub(super) fn delete_before(&mut self, partition: i32, offset: i64) {
        // Even without an answer they are not demanded any more; what lies after them is.
        self.acknowledged.retain(|place, _| place.0 != partition || place.1 >= offset);
        let before = self.deleted_before.entry(partition).or_default();
        *before = offset.max(*before);
    }

    /// Notes that what `partition` had is given up.
    pub(super) fn give_up(&mut self, partition: i32) {
        self.acknowledged.retain(|place, _| place.0 != partition);
        self.deleted_before.insert(partition, i64::MAX);
    }

    /// Compares what was read of some partitions with what has to be there; the answer is how many
    /// acknowledged records were found. `strays` may be in any topic of this name: they were sent
    /// without waiting for an answer.
    pub(super) fn check(
        &self,
        found: &BTreeMap<i32, Contents>,
        now: Moment,
        strays: &dyn Fn(u64) -> bool,
    ) -> Result<u64, Unmet> {
        let mut verified = 0;
        for (partition, contents) in found {
            let values = self.identify(*partition, contents, strays)?;
            let is_fixed = matches!(self.keeps, Keeps::All | Keeps::Newest { .. });
            let start_max = self.deleted_before.get(partition).copied().unwrap_or(0);
            if is_fixed && contents.start > start_max {
                return Err(Unmet::Broken(format!(
                    "partition {partition} starts at {}, and nothing past {start_max} was deleted",
                    contents.start
                )));
            }
            verified += self.find_acknowledged(*partition, contents, &values, now)?;
            if matches!(self.keeps, Keeps::Newest { .. }) {
                self.find_newest(*partition, &values, now)?;
            }
        }
        Ok(verified)
    }

    /// The value at each offset; every record has to be one that was sent to this partition of this
    /// topic.
    fn identify(
        &self,
        partition: i32,
        contents: &Contents,
        strays: &dyn Fn(u64) -> bool,
    ) -> Result<BTreeMap<i64, u64>, Unmet> {
        let (mut values, mut places) = (BTreeMap::new(), BTreeMap::new());
        for record in &contents.records {
            let shown =
                || format!("partition {partition} offset {}: {}", record.offset, identity(record));
            let own =
                parse(record).filter(|(id, value)| *id == self.id && self.sent.contains_key(value));
            let Some((_, value)) = own else {
                if parse(record).is_some_and(|(_, value)| strays(value)) {
                    continue;
                }
                return Err(Unmet::Broken(format!("a record of another topic at {}", shown())));
            };
            let Some(sent) = self.sent.get(&value) else { continue };
            if sent.partition != partition
                || Some(sent.key.as_bytes()) != record.key.as_deref()
                || sent.is_tombstone != record.value.is_none()
            {
                return Err(Unmet::Broken(format!("not what was sent at {}: {sent:?}", shown())));
            }
            if values.insert(record.offset, value).is_some() {
                return Err(Unmet::Broken(format!("two records at {}", shown())));
            }
            if let Some(other) = places.insert(value, record.offset)
                && sent.idempotent
            {
                return Err(Unmet::Broken(format!(
                    "an idempotent producer's record at {} is also at offset {other}",
                    shown()
                )));
            }
        }
        Ok(values)
    }

    fn find_acknowledged(
        &self,
        partition: i32,
        contents: &Contents,
        values: &BTreeMap<i64, u64>,
        now: Moment,
    ) -> Result<u64, Unmet> {
        let mut verified = 0;
        for ((_, offset), acknowledged) in
            self.acknowledged.range((partition, i64::MIN)..=(partition, i64::MAX))
        {
            let found = values.get(offset);
            if found == Some(&acknowledged.value) {
                verified += 1;
            } else if !is_lost(acknowledged, now)
                && (found.is_some()
                    || self.is_kept(partition, *offset, acknowledged.value, contents.start, now))
            {
                let (first, last) = (values.keys().next(), values.keys().next_back());
                return Err(Unmet::Broken(format!(
                    "partition {partition}: acknowledged {} at offset {offset}, found {found:?}; \
                     it has {first:?}..={last:?} of {}..{}; {:?}, {now:?}, {:?}",
                    acknowledged.value,
                    contents.start,
                    contents.end,
                    self.keeps,
                    self.sent.get(&acknowledged.value),
                )));
            }
        }
        Ok(verified)
    }

    /// Whether an acknowledged record has to be at its offset.
    fn is_kept(&self, partition: i32, offset: i64, value: u64, start: i64, now: Moment) -> bool {
        let Some(sent) = self.sent.get(&value) else { return true };
        match self.keeps {
            Keeps::All => true,
            Keeps::Newest { .. } => false,
            Keeps::Age { ms } => {
                offset >= start || sent.at_ms.saturating_add(ms) > now.broker_ms_max
            }
            Keeps::Size { bytes } => {
                let total = self.bytes.get(&partition).copied().unwrap_or(0);
                offset >= start || total.saturating_sub(sent.bytes_before) <= bytes
            }
        }
    }

    /// The newest acknowledged record of each key is there, or a newer one.
    fn find_newest(
        &self,
        partition: i32,
        values: &BTreeMap<i64, u64>,
        now: Moment,
    ) -> Result<(), Unmet> {
        let mut newest = BTreeMap::new();
        for ((_, offset), acknowledged) in
            self.acknowledged.range((partition, i64::MIN)..=(partition, i64::MAX))
        {
            if let Some(sent) = self.sent.get(&acknowledged.value)
                && !is_lost(acknowledged, now)
            {
                newest.insert(sent.key.as_str(), (*offset, acknowledged.value));
            }
        }
        let mut there: BTreeMap<&str, i64> = BTreeMap::new();
        for (offset, value) in values {
            if let Some(sent) = self.sent.get(value) {
                there.insert(&sent.key, *offset);
            }
        }
        for (key, (offset, value)) in newest {
            let last = there.get(key);
            if last.is_some_and(|last| *last >= offset) {
                continue;
            }
            // The records of this key that may have come after it: their acknowledgements were
            // lost, or were no promise.
            let mut later = self
                .sent
                .range(value..)
                .filter(|(_, sent)| sent.partition == partition && sent.key == key);
            let is_deleted = self.keeps == Keeps::Newest { drops_tombstones: true }
                && later.clone().any(|(_, sent)| sent.is_tombstone);
            let words = format!(
                "partition {partition}: key {key} was last acknowledged at offset {offset} \
                 ({value}); there is {last:?}"
            );
            match last {
                None if is_deleted => {}
                // An old value is seen until the cleaner has passed.
                Some(_) if is_deleted => return Err(Unmet::NotYet(words)),
                // A newer one may lie past the end that was read to.
                _ if later.any(|(later, _)| *later != value) => return Err(Unmet::NotYet(words)),
                _ => return Err(Unmet::Broken(words)),
            }
        }
        Ok(())
    }
}

/// Whether an acknowledged record may be gone, because it was acknowledged before it was synced.
fn is_lost(acknowledged: &Acknowledged, now: Moment) -> bool {
    acknowledged.unsynced_at.is_some_and(|losses| losses != now.losses)
}

fn identity(record: &ConsumerRecord) -> String {
    let header = || {
        record
            .headers
            .iter()
            .find(|header| header.key == IDENTITY)
            .and_then(|header| header.value.clone())
    };
    String::from_utf8_lossy(&record.value.clone().or_else(header).unwrap_or_default()).into_owned()
}

/// Topic id and value.
fn parse(record: &ConsumerRecord) -> Option<(Uuid, u64)> {
    let identity = identity(record);
    let mut parts = identity.split(' ');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use letterbox_client::ConsumerRecord;

    use super::*;

    const ID: Uuid = Uuid::from_u128(7);
    const NOW: Moment = Moment { broker_ms_max: 10_000, losses: 3 };

    /// Partition 0 of a topic, and what was read of it.
    struct Case {
        known: Known,
        read: Contents,
    }

    impl Case {
        fn new(keeps: Keeps) -> Self {
            Self { known: Known::new(ID, 1, keeps), read: Contents::default() }
        }

        /// Sent by an idempotent producer at time `at_ms`, with a value or without, and
        /// acknowledged at `offset`.
        fn acknowledged(
            mut self,
            offset: i64,
            value: u64,
            key: &str,
            len: Option<usize>,
            at_ms: i64,
        ) -> Self {
            self.known.send(value, 0, key, len, true, at_ms);
            self.known.acknowledged.insert((0, offset), Acknowledged { value, unsynced_at: None });
            self
        }

        fn read(mut self, offset: i64, id: Uuid, value: u64, key: &str) -> Self {
            self.read.records.push(ConsumerRecord {
                topic: "t".into(),
                partition: 0,
                offset,
                leader_epoch: 0,
                timestamp: 0,
                log_append_time: false,
                key: Some(Bytes::copy_from_slice(key.as_bytes())),
                value: Some(format!("{id} {value} ...").into()),
                headers: Vec::new(),
            });
            self.read.end = offset + 1;
            self
        }

        fn starts(mut self, start: i64) -> Self {
            self.read.start = start;
            self
        }

        /// What is wrong: nothing, `never` or `later`.
        fn verdict(&self) -> (&'static str, String) {
            match self
                .known
                .check(&BTreeMap::from([(0, self.read.clone())]), NOW, &|value| value == 99)
            {
                Ok(_) => ("", String::new()),
                Err(Unmet::Broken(what)) => ("never", what),
                Err(Unmet::NotYet(what)) => ("later", what),
            }
        }
    }

    #[test]
    fn what_is_not_as_it_must_be_is_found() {
        let all = || {
            Case::new(Keeps::All).acknowledged(0, 1, "1", Some(5), 0).acknowledged(
                1,
                2,
                "2",
                Some(5),
                0,
            )
        };
        let mut unsynced = all();
        for acknowledged in unsynced.known.acknowledged.values_mut() {
            acknowledged.unsynced_at = Some(3);
        }
        let mut lost = all();
        for acknowledged in lost.known.acknowledged.values_mut() {
            acknowledged.unsynced_at = Some(2);
        }
        let age =
            || {
                Case::new(Keeps::Age { ms: 1000 })
                    .acknowledged(0, 1, "1", Some(5), 8_000)
                    .acknowledged(1, 2, "2", Some(5), 9_500)
            };
        let size =
            || {
                Case::new(Keeps::Size { bytes: 300 })
                    .acknowledged(0, 1, "1", Some(5), 0)
                    .acknowledged(1, 2, "2", Some(5), 0)
            };
        let newest = |drops_tombstones| {
            let case = Case::new(Keeps::Newest { drops_tombstones });
            case.acknowledged(0, 1, "a", Some(5), 0)
                .acknowledged(1, 2, "a", Some(5), 0)
                .acknowledged(2, 3, "b", Some(5), 0)
        };
        let deleted = |drops| newest(drops).acknowledged(3, 4, "a", None, 0).read(2, ID, 3, "b");
        let cases = [
            ("all of it", all().read(0, ID, 1, "1").read(1, ID, 2, "2"), ""),
            ("a record is lost", all().read(0, ID, 1, "1"), "never"),
            ("another one is there", all().read(0, ID, 2, "2"), "never"),
            ("the start moved", all().starts(1).read(1, ID, 2, "2"), "never"),
            (
                "a record twice",
                all().read(0, ID, 1, "1").read(1, ID, 2, "2").read(2, ID, 2, "2"),
                "never",
            ),
            (
                "a record of another topic",
                all().read(0, ID, 1, "1").read(1, ID, 2, "2").read(2, Uuid::nil(), 1, "1"),
                "never",
            ),
            (
                "a record that was sent to another topic without an answer",
                all().read(0, ID, 1, "1").read(1, ID, 2, "2").read(2, Uuid::nil(), 99, "99"),
                "",
            ),
            ("another key", all().read(0, ID, 1, "1").read(1, ID, 2, "3"), "never"),
            ("not synced, and nothing was lost since", unsynced, "never"),
            ("not synced, and the power has failed since", lost, ""),
            ("an old record is gone", age().starts(1).read(1, ID, 2, "2"), ""),
            ("an old record is gone from the middle", age().read(1, ID, 2, "2"), "never"),
            ("a young record is gone", age().starts(2), "never"),
            ("what is too much is gone", size().starts(1).read(1, ID, 2, "2"), ""),
            ("what is not too much is gone", size().starts(2), "never"),
            ("compacted", newest(false).read(1, ID, 2, "a").read(2, ID, 3, "b"), ""),
            (
                "not compacted yet",
                newest(false).read(0, ID, 1, "a").read(1, ID, 2, "a").read(2, ID, 3, "b"),
                "",
            ),
            (
                "the newest record of a key is gone",
                newest(false).read(0, ID, 1, "a").read(2, ID, 3, "b"),
                "never",
            ),
            ("a key is gone", newest(true).read(2, ID, 3, "b"), "never"),
            ("a key was deleted, and its tombstone is gone", deleted(true), ""),
            ("a key was deleted, and its tombstone must stay", deleted(false), "never"),
            (
                "an old value is seen without its tombstone",
                deleted(true).read(0, ID, 1, "a"),
                "later",
            ),
        ];
        for (name, case, expected) in cases {
            let (found, what) = case.verdict();
            assert_eq!(found, expected, "{name}: {what}");
        }
    }
}
