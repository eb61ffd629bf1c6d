//! Produce without building anything: a view of the request, and the response written by hand.
//! Versions 3 to 13.

use bytes::{Buf, Bytes, BytesMut};
use uuid::Uuid;

use super::apis::{Api, PRODUCE, served_api};
use super::check::check_request_body;
use super::fault::{Problem, WireError};
use super::put::Put;
use super::varint;

const API: &Api = served_api(PRODUCE);
const UUID_BYTES: usize = 16;

/// A topic as a request names it: by name up to version 12, by id from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TopicKey<'a> {
    /// By name.
    Name(&'a str),
    /// By id (KIP-516).
    Id(Uuid),
}

/// A [`TopicKey`] that outlives the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnedTopicKey {
    /// By name.
    Name(Box<str>),
    /// By id.
    Id(Uuid),
}

impl OwnedTopicKey {
    /// As a request has it.
    pub fn key(&self) -> TopicKey<'_> {
        match self {
            Self::Name(name) => TopicKey::Name(name),
            Self::Id(id) => TopicKey::Id(*id),
        }
    }
}

impl From<TopicKey<'_>> for OwnedTopicKey {
    fn from(key: TopicKey<'_>) -> Self {
        match key {
            TopicKey::Name(name) => Self::Name(name.into()),
            TopicKey::Id(id) => Self::Id(id),
        }
    }
}

/// A produce request where it lies; [`ProduceParts`] has its records.
#[derive(Debug, Clone)]
pub struct ProduceView<'a> {
    /// −1: every in-sync replica; 1: the leader; 0: no answer at all. Others are for
    /// INVALID_REQUIRED_ACKS.
    pub acks: i16,
    /// How long to wait for the replicas, in milliseconds, as the client says.
    pub timeout_ms: i32,
    body: &'a [u8],
    layout: Layout,
    transactional_id: Option<Ends>,
    topics: Span,
}

/// A produce request that is taken apart from its front, without a copy of its records.
#[derive(Debug)]
pub struct ProduceParts {
    layout: Layout,
    topics_left: usize,
    /// Of the topic that was taken last.
    partitions_left: usize,
    /// Bytes of `rest` that were read.
    read: usize,
    rest: BytesMut,
}

/// One topic of a [`ProduceView`].
#[derive(Debug, Clone, Copy)]
pub struct ProduceTopicView<'a> {
    /// Which topic.
    pub topic: TopicKey<'a>,
    cursor: Cursor<'a>,
    partitions: Span,
}

impl<'a> ProduceView<'a> {
    /// A view of a request body.
    ///
    /// # Errors
    /// As [`super::check_request`].
    pub fn new(version: i16, body: &'a [u8]) -> Result<ProduceView<'a>, WireError> {
        check_request_body(PRODUCE, version, body)?;
        ProduceView::of_checked(version, body)
    }

    /// A view of a request body that [`super::check_request`] has already walked as part of its
    /// frame. Of any other bytes it shows what comes before the first fault.
    ///
    /// # Errors
    /// `UnsupportedVersion`; `Truncated` when the bytes were not checked.
    pub fn of_checked(version: i16, body: &'a [u8]) -> Result<ProduceView<'a>, WireError> {
        let refuse = |problem| WireError {
            remaining: body.len(),
            ..WireError::of(PRODUCE, version, problem)
        };
        if !API.accepts(version) {
            return Err(refuse(Problem::UnsupportedVersion { min: API.min, max: API.max }));
        }
        let layout = Layout { flexible: API.is_flexible(version), ids: version >= 13 };
        let mut at = Cursor { bytes: body, at: 0, layout };
        let head = at.head().ok_or_else(|| refuse(Problem::Truncated { needed: 0 }))?;
        let (transactional_id, acks, timeout_ms, topics) = head;
        Ok(ProduceView { acks, timeout_ms, layout, transactional_id, topics, body })
    }

    /// How many topics it names.
    pub fn topic_count(&self) -> usize {
        self.topics.count
    }

    /// Whether it is for one partition alone.
    pub fn is_for_one(&self) -> bool {
        let mut at = Cursor { bytes: self.body, at: self.topics.at, layout: self.layout };
        self.topics.count == 1
            && at.topic_key_ends().and_then(|_| at.span()).is_some_and(|span| span.count == 1)
    }

    /// Takes it apart: made for the body that this is a view of.
    pub fn parts(&self) -> impl FnOnce(BytesMut) -> ProduceParts + use<> {
        let (layout, topics) = (self.layout, self.topics);
        move |rest| ProduceParts {
            layout,
            topics_left: topics.count,
            partitions_left: 0,
            read: topics.at,
            rest,
        }
    }

    /// The transactional id, when the producer is transactional.
    pub fn transactional_id(&self) -> Option<&'a str> {
        let (from, to) = self.transactional_id?;
        self.body.get(from..to).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// The topics in the order of the request. A client may name one twice.
    pub fn topics(&self) -> impl Iterator<Item = ProduceTopicView<'a>> + use<'a> {
        let mut at = Cursor { bytes: self.body, at: self.topics.at, layout: self.layout };
        (0..self.topics.count).map_while(move |_| {
            let topic = at.topic_key()?;
            let partitions = at.span()?;
            let cursor = at;
            for _ in 0..partitions.count {
                at.partition()?;
            }
            at.skip_tags()?;
            Some(ProduceTopicView { topic, cursor, partitions })
        })
    }
}

impl ProduceParts {
    /// The next topic, and how many partitions of it follow. What was not taken of the last one is
    /// passed over.
    pub fn next_topic(&mut self) -> Option<(OwnedTopicKey, usize)> {
        while self.next_partition().is_some() {}
        self.topics_left = self.topics_left.checked_sub(1)?;
        let (topic, count) = self.read(|at| {
            let (topic, count) = (at.topic_key()?.into(), at.span()?.count);
            at.skip_tags_if(count == 0)?;
            Some((topic, count))
        })?;
        self.partitions_left = count;
        Some((topic, count))
    }

    /// The next partition of the topic and its records, not yet looked at; `None` for null.
    pub fn next_partition(&mut self) -> Option<(i32, Option<BytesMut>)> {
        self.partitions_left = self.partitions_left.checked_sub(1)?;
        let (index, len) = self.read(|at| Some((at.index()?, at.int32_length()?)))?;
        let records = len.map(|len| self.rest.split_to(len.min(self.rest.len())));
        let is_last = self.partitions_left == 0;
        // Those of the topic stand behind its last partition.
        self.read(|at| at.skip_tags().and_then(|()| at.skip_tags_if(is_last)))?;
        Some((index, records))
    }

    /// Reads from the front of the rest, and lets go of what was read.
    fn read<T>(&mut self, read: impl FnOnce(&mut Cursor<'_>) -> Option<T>) -> Option<T> {
        let mut at = Cursor { bytes: &self.rest, at: self.read, layout: self.layout };
        let found = read(&mut at);
        self.read = 0;
        let end = at.at;
        self.rest.advance(end);
        found
    }
}

impl<'a> ProduceTopicView<'a> {
    /// The indexes of its partitions in the order of the request.
    pub fn partitions(&self) -> impl Iterator<Item = i32> + 'a {
        let mut at = self.cursor;
        (0..self.partitions.count).map_while(move |_| at.partition())
    }
}

/// An array: where its first element begins, and how many there are.
#[derive(Debug, Clone, Copy)]
struct Span {
    at: usize,
    count: usize,
}

#[derive(Debug, Clone, Copy)]
struct Layout {
    flexible: bool,
    ids: bool,
}

/// Reads forward; `None` when the bytes end. A range it returns lies inside the bytes.
#[derive(Debug, Clone, Copy)]
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    layout: Layout,
}

type Ends = (usize, usize);

impl<'a> Cursor<'a> {
    fn head(&mut self) -> Option<(Option<Ends>, i16, i32, Span)> {
        let length = self.string_length()?;
        let transactional_id = self.range(length)?;
        Some((
            transactional_id,
            i16::from_be_bytes(self.array()?),
            i32::from_be_bytes(self.array()?),
            self.span()?,
        ))
    }

    fn topic_key(&mut self) -> Option<TopicKey<'a>> {
        let (from, to) = self.topic_key_ends()?;
        let bytes = self.bytes.get(from..to)?;
        if self.layout.ids {
            return Uuid::from_slice(bytes).ok().map(TopicKey::Id);
        }
        std::str::from_utf8(bytes).ok().map(TopicKey::Name)
    }

    fn topic_key_ends(&mut self) -> Option<Ends> {
        let length = if self.layout.ids { Some(UUID_BYTES) } else { self.string_length()? };
        self.range(length)?
    }

    fn index(&mut self) -> Option<i32> {
        self.array().map(i32::from_be_bytes)
    }

    fn partition(&mut self) -> Option<i32> {
        let index = self.index()?;
        let length = self.int32_length()?;
        self.range(length)?;
        self.skip_tags()?;
        Some(index)
    }

    fn span(&mut self) -> Option<Span> {
        let count = self.int32_length()?.unwrap_or(0);
        Some(Span { at: self.at, count })
    }

    fn skip_tags(&mut self) -> Option<()> {
        if self.layout.flexible {
            for _ in 0..self.varint()? {
                self.varint()?;
                let size = self.varint()? as usize;
                self.range(Some(size))?;
            }
        }
        Some(())
    }

    fn skip_tags_if(&mut self, is_there: bool) -> Option<()> {
        if is_there { self.skip_tags() } else { Some(()) }
    }

    fn string_length(&mut self) -> Option<Option<usize>> {
        if self.layout.flexible {
            self.compact_length()
        } else {
            Some(usize::try_from(i16::from_be_bytes(self.array()?)).ok())
        }
    }

    fn int32_length(&mut self) -> Option<Option<usize>> {
        if self.layout.flexible {
            self.compact_length()
        } else {
            Some(usize::try_from(i32::from_be_bytes(self.array()?)).ok())
        }
    }

    fn compact_length(&mut self) -> Option<Option<usize>> {
        Some((self.varint()? as usize).checked_sub(1))
    }

    fn varint(&mut self) -> Option<u32> {
        let mut rest = self.bytes.get(self.at..)?;
        let value = varint::take(&mut rest).ok()?;
        self.at = self.bytes.len() - rest.len();
        Some(value)
    }

    /// The next `length` bytes, or `Some(None)` for null.
    fn range(&mut self, length: Option<usize>) -> Option<Option<Ends>> {
        let Some(length) = length else { return Some(None) };
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len())?;
        let from = std::mem::replace(&mut self.at, end);
        Some(Some((from, end)))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let array = *self.bytes.get(self.at..)?.first_chunk::<N>()?;
        self.at = self.at.checked_add(N)?;
        Some(array)
    }
}

/// What a produce request is answered with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProduceAnswer<'a> {
    /// One entry per topic of the request.
    pub topics: Vec<ProduceTopicAnswer>,
    /// How long the client should stay away, in milliseconds.
    pub throttle_time_ms: i32,
    /// Where the new leaders named in `current_leader` are; from version 10 on (KIP-951).
    pub node_endpoints: Vec<NodeEndpoint<'a>>,
}

/// The answer for one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProduceTopicAnswer {
    /// As the request named it.
    pub topic: OwnedTopicKey,
    /// One entry per partition of the request.
    pub partitions: Vec<ProducePartitionAnswer>,
}

/// The answer for one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducePartitionAnswer {
    /// The partition's index.
    pub index: i32,
    /// [`super::ErrorCode`] as a number; 0 when the records are stored.
    pub error_code: i16,
    /// Offset of the first record; −1 when nothing was stored.
    pub base_offset: i64,
    /// The broker's time when the topic uses it, else −1.
    pub log_append_time_ms: i64,
    /// −1 when unknown; from version 5 on.
    pub log_start_offset: i64,
    /// More about what was not stored. In a box: nearly all is stored.
    pub refusal: Option<Box<ProduceRefusal>>,
}

/// What is told of a batch that was not stored, beside its error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProduceRefusal {
    /// Which records of the batch were refused, and why; from version 8 on.
    pub record_errors: Vec<(i32, Option<String>)>,
    /// Why the batch was refused; from version 8 on.
    pub error_message: Option<String>,
    /// Leader and its epoch, for a client that asked the wrong broker; from version 10 on
    /// (KIP-951).
    pub current_leader: Option<LeaderIdAndEpoch>,
}

/// A partition's leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaderIdAndEpoch {
    /// −1: none.
    pub leader_id: i32,
    /// −1: unknown.
    pub leader_epoch: i32,
}

/// Where a broker listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeEndpoint<'a> {
    /// The broker's id.
    pub node_id: i32,
    /// Name or address.
    pub host: &'a str,
    /// TCP port.
    pub port: i32,
    /// `broker.rack`.
    pub rack: Option<&'a str>,
}

/// A whole response frame: size, header and body.
///
/// # Errors
/// `UnsupportedVersion`; `Codec` when a topic is named by id where the version wants a name, or the
/// other way round, or when the frame would be larger than 2 GiB.
pub fn encode_produce_response(
    correlation_id: i32,
    version: i16,
    answer: &ProduceAnswer<'_>,
) -> Result<Bytes, WireError> {
    let refuse = |problem| WireError::of(PRODUCE, version, problem);
    if !API.accepts(version) {
        return Err(refuse(Problem::UnsupportedVersion { min: API.min, max: API.max }));
    }
    let flexible = API.is_flexible(version);
    let mut out = Vec::with_capacity(
        64 + answer.topics.iter().map(|topic| 48 + 48 * topic.partitions.len()).sum::<usize>(),
    );
    out.int32(0);
    out.int32(correlation_id);
    if flexible {
        out.no_tags();
    }
    out.count(flexible, Some(answer.topics.len()));
    for topic in &answer.topics {
        put_topic_key(&mut out, flexible, version >= 13, &topic.topic.key()).map_err(refuse)?;
        out.count(flexible, Some(topic.partitions.len()));
        for partition in &topic.partitions {
            put_partition(&mut out, version, flexible, partition);
        }
        if flexible {
            out.no_tags();
        }
    }
    out.int32(answer.throttle_time_ms);
    if flexible {
        put_node_endpoints(&mut out, version >= 10, &answer.node_endpoints, 0);
    }
    let size = i32::try_from(out.len().saturating_sub(4))
        .map_err(|_| refuse(Problem::Codec("frame of more than 2 GiB".to_owned())))?;
    if let Some(first) = out.first_chunk_mut::<4>() {
        *first = size.to_be_bytes();
    }
    Ok(out.into())
}

fn put_partition(
    out: &mut Vec<u8>,
    version: i16,
    flexible: bool,
    partition: &ProducePartitionAnswer,
) {
    out.int32(partition.index);
    out.int16(partition.error_code);
    out.int64(partition.base_offset);
    out.int64(partition.log_append_time_ms);
    if version >= 5 {
        out.int64(partition.log_start_offset);
    }
    let refusal = partition.refusal.as_deref();
    if version >= 8 {
        let errors = refusal.map_or(&[][..], |refusal| &refusal.record_errors);
        out.count(flexible, Some(errors.len()));
        for (index, message) in errors {
            out.int32(*index);
            out.nullable_string(flexible, message.as_deref());
            if flexible {
                out.no_tags();
            }
        }
        out.nullable_string(flexible, refusal.and_then(|refusal| refusal.error_message.as_deref()));
    }
    if flexible {
        let leader = refusal.and_then(|refusal| refusal.current_leader).filter(|_| version >= 10);
        out.varint(leader.is_some().into());
        if let Some(leader) = leader {
            put_leader(out, 0, leader);
        }
    }
}

/// The topic, in the one form that the version has.
pub(super) fn put_topic_key(
    out: &mut Vec<u8>,
    flexible: bool,
    ids: bool,
    topic: &TopicKey<'_>,
) -> Result<(), Problem> {
    match (topic, ids) {
        (TopicKey::Name(name), false) => out.string(flexible, name),
        (TopicKey::Id(id), true) => out.uuid(*id),
        (TopicKey::Name(_), true) => {
            return Err(Problem::Codec("topic by name, this version wants its id".to_owned()));
        }
        (TopicKey::Id(_), false) => {
            return Err(Problem::Codec("topic by id, this version wants its name".to_owned()));
        }
    }
    Ok(())
}

/// The tagged field `CurrentLeader`: its tag, its size and its value.
pub(super) fn put_leader(out: &mut Vec<u8>, tag: u32, leader: LeaderIdAndEpoch) {
    out.varint(tag);
    out.varint(9);
    out.int32(leader.leader_id);
    out.int32(leader.leader_epoch);
    out.no_tags();
}

/// The tagged fields of a response: `NodeEndpoints` as tag 0, when the version has it and there are
/// any; `more` are written by the caller.
pub(super) fn put_node_endpoints(
    out: &mut Vec<u8>,
    known: bool,
    endpoints: &[NodeEndpoint<'_>],
    more: u32,
) {
    if !known || endpoints.is_empty() {
        return out.varint(more);
    }
    let mut value = Vec::new();
    value.count(true, Some(endpoints.len()));
    for endpoint in endpoints {
        value.int32(endpoint.node_id);
        value.string(true, endpoint.host);
        value.int32(endpoint.port);
        value.nullable_string(true, endpoint.rack);
        value.no_tags();
    }
    out.varint(more + 1);
    out.varint(0);
    out.varint(u32::try_from(value.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(&value);
}
