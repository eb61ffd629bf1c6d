//! The fetch response written by hand, around records that are never copied. Versions 4 to 18.
//!
//! [`FetchAnswer::frame`] gives the frame as a list of parts: bytes to send as they are, and places
//! where the caller sends the records of one partition from memory or from a file.

use bytes::Bytes;

use super::apis::{self, FETCH};
use super::fault::{Problem, WireError};
use super::produce::{
    LeaderIdAndEpoch, NodeEndpoint, TopicKey, put_leader, put_node_endpoints, put_topic_key,
};
use super::put::Put;
use super::replica::SECRET;

/// What a fetch request is answered with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FetchAnswer<'a> {
    /// How long the client should stay away, in milliseconds.
    pub throttle_time_ms: i32,
    /// [`super::ErrorCode`] of the whole request as a number; from version 7 on.
    pub error_code: i16,
    /// The fetch session, 0 when there is none (KIP-227); must be 0 before version 7.
    pub session_id: i32,
    /// The topics.
    pub topics: Vec<FetchTopicAnswer<'a>>,
    /// Where the new leaders named in `current_leader` are; from version 16 on (KIP-951).
    pub node_endpoints: Vec<NodeEndpoint<'a>>,
    /// To a follower that has proved that it is one: see [`super::replica::has_secret`]; from version
    /// 12 on.
    pub secret: Option<[u8; 16]>,
}

/// The answer for one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchTopicAnswer<'a> {
    /// By name up to version 12, by id from then on.
    pub topic: TopicKey<'a>,
    /// The partitions.
    pub partitions: Vec<FetchPartitionAnswer>,
}

/// The answer for one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchPartitionAnswer {
    /// The partition's index.
    pub index: i32,
    /// [`super::ErrorCode`] as a number.
    pub error_code: i16,
    /// Exclusive; −1 with an error.
    pub high_watermark: i64,
    /// Exclusive; −1 when unknown.
    pub last_stable_offset: i64,
    /// −1 when unknown; from version 5 on.
    pub log_start_offset: i64,
    /// From which epoch and offset on the follower's log differs (KIP-595); from version 12 on.
    pub diverging_epoch: Option<EpochEndOffset>,
    /// The leader, for a client that asked the wrong broker (KIP-951); from version 12 on.
    pub current_leader: Option<LeaderIdAndEpoch>,
    /// The snapshot to read instead (KIP-630); from version 12 on.
    pub snapshot_id: Option<EpochEndOffset>,
    /// Aborted transactions among the records, as (producer id, first offset); `None` for null,
    /// which stands for read-uncommitted.
    pub aborted_transactions: Option<Vec<(i64, i64)>>,
    /// The replica to read from instead (KIP-392), or −1; must be −1 before version 11.
    pub preferred_read_replica: i32,
    /// How many bytes of records follow; `None` for null.
    pub records_bytes: Option<usize>,
}

/// An epoch and where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochEndOffset {
    /// The epoch.
    pub epoch: i32,
    /// Exclusive.
    pub end_offset: i64,
}

/// A piece of a response frame, in the order of the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Bytes to send as they are.
    Bytes(Bytes),
    /// The records of one partition: exactly `bytes` of them, however the caller comes by them.
    Records {
        /// The partition by its place in the answer, counted from 0 over all topics.
        partition: usize,
        /// As in [`FetchPartitionAnswer::records_bytes`]; never 0.
        bytes: usize,
    },
}

impl FetchAnswer<'_> {
    /// The whole response frame: size, header and body.
    ///
    /// # Errors
    /// `UnsupportedVersion`; `Codec` when the answer holds what this version cannot say, or is
    /// larger than 2 GiB.
    pub fn frame(&self, correlation_id: i32, version: i16) -> Result<Vec<Part>, WireError> {
        let refuse = |problem| WireError::of(FETCH, version, problem);
        let api = apis::find(FETCH).ok_or_else(|| refuse(Problem::UnsupportedApi))?;
        if !api.accepts(version) {
            return Err(refuse(Problem::UnsupportedVersion { min: api.min, max: api.max }));
        }
        if version < 7 && self.session_id != 0 {
            return Err(refuse(Problem::Codec(
                "a fetch session, this version has none".to_owned(),
            )));
        }
        let mut writer = Writer {
            version,
            flexible: api.is_flexible(version),
            out: Vec::with_capacity(256),
            cuts: Vec::new(),
            partitions: 0,
        };
        writer.answer(correlation_id, self).map_err(refuse)?;
        writer.finish().map_err(refuse)
    }
}

struct Writer {
    version: i16,
    flexible: bool,
    /// Everything but the records.
    out: Vec<u8>,
    /// Where records belong: (length of `out` there, partition, bytes).
    cuts: Vec<(usize, usize, usize)>,
    partitions: usize,
}

impl Writer {
    fn answer(&mut self, correlation_id: i32, answer: &FetchAnswer<'_>) -> Result<(), Problem> {
        self.out.int32(0);
        self.out.int32(correlation_id);
        self.no_tags();
        self.out.int32(answer.throttle_time_ms);
        if self.version >= 7 {
            self.out.int16(answer.error_code);
            self.out.int32(answer.session_id);
        }
        self.out.count(self.flexible, Some(answer.topics.len()));
        for topic in &answer.topics {
            put_topic_key(&mut self.out, self.flexible, self.version >= 13, &topic.topic)?;
            self.out.count(self.flexible, Some(topic.partitions.len()));
            for partition in &topic.partitions {
                self.partition(partition)?;
            }
            self.no_tags();
        }
        if self.flexible {
            let (known, more) = (self.version >= 16, u32::from(answer.secret.is_some()));
            put_node_endpoints(&mut self.out, known, &answer.node_endpoints, more);
            if let Some(secret) = &answer.secret {
                self.out.varint(SECRET.into());
                self.out.varint(16);
                self.out.extend_from_slice(secret);
            }
        }
        Ok(())
    }

    fn partition(&mut self, partition: &FetchPartitionAnswer) -> Result<(), Problem> {
        self.out.int32(partition.index);
        self.out.int16(partition.error_code);
        self.out.int64(partition.high_watermark);
        self.out.int64(partition.last_stable_offset);
        if self.version >= 5 {
            self.out.int64(partition.log_start_offset);
        }
        self.out.count(self.flexible, partition.aborted_transactions.as_ref().map(Vec::len));
        for (producer_id, first_offset) in partition.aborted_transactions.iter().flatten() {
            self.out.int64(*producer_id);
            self.out.int64(*first_offset);
            self.no_tags();
        }
        if self.version >= 11 {
            self.out.int32(partition.preferred_read_replica);
        } else if partition.preferred_read_replica != -1 {
            return Err(Problem::Codec(
                "a preferred read replica, this version has none".to_owned(),
            ));
        }
        self.out.records_length(self.flexible, partition.records_bytes);
        if let Some(bytes) = partition.records_bytes.filter(|bytes| *bytes > 0) {
            self.cuts.push((self.out.len(), self.partitions, bytes));
        }
        self.partitions += 1;
        if self.flexible {
            self.partition_tags(partition);
        }
        Ok(())
    }

    fn partition_tags(&mut self, partition: &FetchPartitionAnswer) {
        let FetchPartitionAnswer { diverging_epoch, current_leader, snapshot_id, .. } = partition;
        let count = u32::from(diverging_epoch.is_some())
            + u32::from(current_leader.is_some())
            + u32::from(snapshot_id.is_some());
        self.out.varint(count);
        if let Some(diverging) = diverging_epoch {
            self.out.varint(0);
            self.out.varint(13);
            self.out.int32(diverging.epoch);
            self.out.int64(diverging.end_offset);
            self.out.no_tags();
        }
        if let Some(leader) = current_leader {
            put_leader(&mut self.out, 1, *leader);
        }
        if let Some(snapshot) = snapshot_id {
            self.out.varint(2);
            self.out.varint(13);
            self.out.int64(snapshot.end_offset);
            self.out.int32(snapshot.epoch);
            self.out.no_tags();
        }
    }

    fn no_tags(&mut self) {
        if self.flexible {
            self.out.no_tags();
        }
    }

    /// Writes the size and cuts the bytes where records belong.
    fn finish(mut self) -> Result<Vec<Part>, Problem> {
        let too_large = || Problem::Codec("frame of more than 2 GiB".to_owned());
        let records =
            self.cuts.iter().try_fold(0usize, |sum, (_, _, bytes)| sum.checked_add(*bytes));
        let frame_bytes =
            records.and_then(|records| records.checked_add(self.out.len().saturating_sub(4)));
        let size = frame_bytes.and_then(|bytes| i32::try_from(bytes).ok()).ok_or_else(too_large)?;
        if let Some(first) = self.out.first_chunk_mut::<4>() {
            *first = size.to_be_bytes();
        }
        let whole = Bytes::from(self.out);
        let mut parts = Vec::with_capacity(self.cuts.len().saturating_mul(2).saturating_add(1));
        let mut from = 0;
        for (at, partition, bytes) in self.cuts {
            parts.push(Part::Bytes(whole.slice(from..at)));
            parts.push(Part::Records { partition, bytes });
            from = at;
        }
        parts.push(Part::Bytes(whole.slice(from..)));
        Ok(parts)
    }
}
