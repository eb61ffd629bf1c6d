//! The walker: proves that a message is whole before anything reads it.
//!
//! The message codec reserves memory by the counts that it reads, so four bytes from the network
//! could end the process. Nothing reaches it before this walk has shown that
//! - every length and every count fits into the bytes that are there;
//! - null stands only where the version allows it, strings are UTF-8 and as short as Kafka's
//!   ([`STRING_MAX`]), varints have at most 32 bits;
//! - the value of every tagged field is exactly as long as its size says;
//! - there are at most [`ELEMENTS_MAX`] array elements and tagged fields in all, which bounds what
//!   decoding allocates.
//!
//! Text that is not UTF-8 is refused, or mended first ([`mend_text`]).
//!
//! One pass, no allocation unless the message is refused (then one short path), recursion as deep
//! as the schema, no panic on any input. The records inside Produce are not looked into here.
//!
//! Bytes after the last field are ignored, as Apache Kafka does in every API and version: clients
//! send them. librdkafka from 2.1 on asks for all topics with three of them.

use std::cell::RefCell;
use std::ops::Range;

use super::apis::{self, Api};
use super::fault::{Problem, Step, WireError};
use super::schema::{self, Field, Kind, Message};
use super::schema_table::{REQUESTS, RESPONSES};
use super::varint::{self, VarintError};

/// Array elements, plain numbers too, and tagged fields in one request. Decoded, an element takes
/// some 100 to 200 bytes, so one request makes at most about 100 MiB besides its own bytes. Kafka's
/// largest sensible requests, a fetch or a metadata request over all partitions of a large cluster,
/// stay well below.
pub const ELEMENTS_MAX: usize = 1 << 19;

/// The same for an answer, which a client reads from the broker that it chose: with each partition
/// come the numbers of its replicas.
const ANSWER_ELEMENTS_MAX: usize = ELEMENTS_MAX << 3;

/// Bytes of a string, however its length is written: Apache Kafka's generated readers refuse a
/// longer one.
pub const STRING_MAX: usize = i16::MAX as usize;

/// What the header of a request says, once the whole request was found right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckedHeader<'a> {
    /// The API, which is served.
    pub api: &'static Api,
    /// The version; accepted, see [`Api::accepts`].
    pub api_version: i16,
    /// Comes back in the response.
    pub correlation_id: i32,
    /// How the client calls itself, in UTF-8.
    pub client_id: Option<&'a [u8]>,
    /// Where the body begins in the frame.
    pub body_offset: usize,
    /// Array elements and tagged fields in it, as [`ELEMENTS_MAX`] counts them: what decoding
    /// allocates follows from them.
    pub elements: usize,
}

/// The first eight bytes of every request, whatever its API and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestPrefix {
    /// The API key, served or not.
    pub api_key: i16,
    /// The version, served or not.
    pub api_version: i16,
    /// Comes back in the response.
    pub correlation_id: i32,
}

/// The first eight bytes of a request (without its size): enough to answer an ApiVersions request
/// of a version from the future.
pub fn peek_request(frame: &[u8]) -> Option<RequestPrefix> {
    let (key, rest) = frame.split_first_chunk::<2>()?;
    let (version, rest) = rest.split_first_chunk::<2>()?;
    let (correlation, _) = rest.split_first_chunk::<4>()?;
    Some(RequestPrefix {
        api_key: i16::from_be_bytes(*key),
        api_version: i16::from_be_bytes(*version),
        correlation_id: i32::from_be_bytes(*correlation),
    })
}

/// Proves that `frame` (a request without its size) is a whole request of an API and version that
/// is served.
///
/// # Errors
/// `UnsupportedApi` and `UnsupportedVersion` before the body is looked at; everything else says
/// where and what.
pub fn check_request(frame: &[u8]) -> Result<CheckedHeader<'_>, WireError> {
    let Some(prefix) = peek_request(frame) else {
        let claims = |at: usize| {
            frame
                .get(at..at.saturating_add(2))
                .and_then(|b| b.try_into().ok())
                .map(i16::from_be_bytes)
        };
        let problem = Problem::Truncated { needed: PREFIX_BYTES };
        return Err(WireError {
            api_key: claims(0),
            api_version: claims(2),
            path: Vec::new(),
            problem,
            remaining: frame.len(),
        });
    };
    let RequestPrefix { api_key, api_version, correlation_id } = prefix;
    let refuse = |problem| WireError {
        remaining: frame.len(),
        ..WireError::of(api_key, api_version, problem)
    };
    let api = apis::find(api_key).ok_or_else(|| refuse(Problem::UnsupportedApi))?;
    if !api.accepts(api_version) {
        return Err(refuse(Problem::UnsupportedVersion { min: api.min, max: api.max }));
    }
    let message = schema::find(REQUESTS, api_key).ok_or_else(|| refuse(Problem::UnsupportedApi))?;
    let mut walk = Walk::new(frame.get(PREFIX_BYTES..).unwrap_or_default(), api_version, false);
    let header = walk
        .header(api.is_flexible(api_version))
        .map_err(|fault| fault.into_error(api_key, api_version))?;
    let body_offset = frame.len().saturating_sub(walk.left.len());
    walk.message(message).map_err(|fault| fault.into_error(api_key, api_version))?;
    Ok(CheckedHeader {
        api,
        api_version,
        correlation_id,
        client_id: header,
        body_offset,
        elements: ELEMENTS_MAX.saturating_sub(walk.elements_left),
    })
}

/// What stands in the place of a byte that is not UTF-8: Unicode's own substitute that is one byte
/// long.
const SUBSTITUTE: u8 = 0x1a;

/// Makes a request whole that [`check_request`] refuses for its text alone: Apache Kafka takes any
/// bytes, puts another character in the place of what is not UTF-8, and goes on. Clients send
/// the name of a host or a group as they find it.
pub fn mend_text(frame: &mut [u8]) {
    let odd = Odd { start: frame.as_ptr().addr(), ..Odd::default() };
    let Some(prefix) = peek_request(frame) else { return };
    let (Some(api), Some(message)) =
        (apis::find(prefix.api_key), schema::find(REQUESTS, prefix.api_key))
    else {
        return;
    };
    let body = frame.get(PREFIX_BYTES..).unwrap_or_default();
    let mut walk = Walk { odd: Some(&odd), ..Walk::new(body, prefix.api_version, false) };
    let walked =
        walk.header(api.is_flexible(prefix.api_version)).and_then(|_| walk.message(message));
    if walked.is_err() {
        return;
    }
    for text in odd.found.into_inner() {
        let Some(mut rest) = frame.get_mut(text) else { continue };
        while let Err(error) = std::str::from_utf8(rest) {
            let valid = error.valid_up_to();
            let odd = error.error_len().unwrap_or(rest.len());
            let Some((bad, after)) = rest
                .get_mut(valid..)
                .and_then(|rest| rest.split_at_mut_checked(odd.min(rest.len())))
            else {
                break;
            };
            bad.fill(SUBSTITUTE);
            rest = after;
        }
    }
}

/// Proves that `body` is a whole request body of this API and version.
///
/// # Errors
/// As [`check_request`].
pub fn check_request_body(api_key: i16, api_version: i16, body: &[u8]) -> Result<(), WireError> {
    check_body(REQUESTS, ELEMENTS_MAX, api_key, api_version, body)
}

/// Proves that `body` is a whole response body of this API and version: for the client's side of a
/// connection. Versions are Kafka's here, not only those that are served.
///
/// # Errors
/// As [`check_request`].
pub fn check_response_body(api_key: i16, api_version: i16, body: &[u8]) -> Result<(), WireError> {
    check_body(RESPONSES, ANSWER_ELEMENTS_MAX, api_key, api_version, body)
}

fn check_body(
    table: &'static [Message],
    elements_max: usize,
    api_key: i16,
    api_version: i16,
    body: &[u8],
) -> Result<(), WireError> {
    let refuse = |problem| WireError {
        remaining: body.len(),
        ..WireError::of(api_key, api_version, problem)
    };
    let message = schema::find(table, api_key).ok_or_else(|| refuse(Problem::UnsupportedApi))?;
    if !message.versions.contains(api_version) {
        return Err(refuse(Problem::UnsupportedVersion {
            min: message.versions.0,
            max: message.versions.1,
        }));
    }
    let walk = Walk::new(body, api_version, false);
    Walk { elements_left: elements_max, elements_max, ..walk }
        .message(message)
        .map_err(|fault| fault.into_error(api_key, api_version))
}

/// How many bytes the tagged fields at the start of `bytes` take: those of a response header.
pub(super) fn skip_tagged_fields(
    api_key: i16,
    api_version: i16,
    bytes: &[u8],
) -> Result<usize, WireError> {
    let mut walk = Walk::new(bytes, api_version, true);
    walk.tagged_fields(&[]).map_err(|fault| fault.into_error(api_key, api_version))?;
    Ok(bytes.len().saturating_sub(walk.left.len()))
}

/// API key, version and correlation id.
const PREFIX_BYTES: usize = 8;

/// Boxed, so that what is right costs no more than a register at each step.
type Walked<T> = Result<T, Box<Fault>>;

/// A [`WireError`] on its way up: the path is collected from the inside to the outside.
struct Fault {
    problem: Problem,
    remaining: usize,
    path: Vec<Step>,
}

impl Fault {
    fn within(mut self: Box<Self>, step: Step) -> Box<Self> {
        self.path.push(step);
        self
    }

    fn into_error(mut self, api_key: i16, api_version: i16) -> WireError {
        self.path.reverse();
        let Fault { problem, remaining, path } = self;
        WireError {
            api_key: Some(api_key),
            api_version: Some(api_version),
            path,
            problem,
            remaining,
        }
    }
}

/// Where a message has text that is not UTF-8; see [`mend_text`].
#[derive(Default)]
struct Odd {
    /// Of the message.
    start: usize,
    found: RefCell<Vec<Range<usize>>>,
}

struct Walk<'a> {
    left: &'a [u8],
    /// Where text is noted that is not UTF-8, instead of refused.
    odd: Option<&'a Odd>,
    version: i16,
    flexible: bool,
    /// See [`ELEMENTS_MAX`].
    elements_max: usize,
    /// Elements that may still come.
    elements_left: usize,
}

impl<'a> Walk<'a> {
    fn new(left: &'a [u8], version: i16, flexible: bool) -> Walk<'a> {
        let elements = ELEMENTS_MAX;
        Walk { left, odd: None, version, flexible, elements_max: elements, elements_left: elements }
    }

    /// What follows the prefix in a request header. The client id keeps its int16 length in every
    /// version, so that a broker can read it before both sides agreed on versions.
    fn header(&mut self, flexible: bool) -> Walked<Option<&'a [u8]>> {
        let client_id = self.string(true).map_err(|fault| fault.within(Step::Field("ClientId")))?;
        if flexible {
            self.tagged_fields(&[])?;
        }
        Ok(client_id)
    }

    /// A whole body; what follows it is not looked at.
    fn message(&mut self, message: &Message) -> Walked<()> {
        self.flexible = message.flexible.contains(self.version);
        self.structure(message.fields)
    }

    fn structure(&mut self, fields: &'static [Field]) -> Walked<()> {
        for field in fields {
            if field.tag.is_none() && field.versions.contains(self.version) {
                let nullable = field.nullable.contains(self.version);
                self.value(&field.kind, nullable)
                    .map_err(|fault| fault.within(Step::Field(field.name)))?;
            }
        }
        if self.flexible { self.tagged_fields(fields) } else { Ok(()) }
    }

    fn value(&mut self, kind: &'static Kind, nullable: bool) -> Walked<()> {
        match kind {
            Kind::Fixed(size) => self.take(*size).map(|_| ()),
            Kind::Str => self.string(nullable).map(|_| ()),
            Kind::Blob | Kind::Records => {
                let length =
                    if self.flexible { self.compact_length()? } else { self.int32_length()? };
                match self.non_null(length, nullable)? {
                    Some(length) => self.take_claimed(length).map(|_| ()),
                    None => Ok(()),
                }
            }
            Kind::Array(element) => self.array(element, nullable),
            Kind::Struct(fields) if nullable => match self.take(1)? {
                [0xff] => Ok(()),
                [1] => self.structure(fields),
                // The codec takes every other byte for null, Kafka only the negative ones: a reader
                // must not guess.
                mark => Err(self.fault(Problem::NullMark {
                    byte: mark.first().map_or(0, |byte| byte.cast_signed()),
                })),
            },
            Kind::Struct(fields) => self.structure(fields),
        }
    }

    fn array(&mut self, element: &'static Kind, nullable: bool) -> Walked<()> {
        let count = if self.flexible { self.compact_length()? } else { self.int32_length()? };
        let Some(count) = self.non_null(count, nullable)? else { return Ok(()) };
        let too_large = Problem::CountTooLarge { claimed: count as u64 };
        if let Kind::Fixed(size) = element {
            let Some(bytes) = count.checked_mul(*size).filter(|bytes| *bytes <= self.left.len())
            else {
                return Err(self.fault(too_large));
            };
            self.spend(count)?;
            return self.take(bytes).map(|_| ());
        }
        // Every element takes at least one byte.
        if count > self.left.len() {
            return Err(self.fault(too_large));
        }
        self.spend(count)?;
        for at in 0..count {
            self.value(element, false).map_err(|fault| fault.within(Step::Element(at)))?;
        }
        Ok(())
    }

    fn tagged_fields(&mut self, fields: &'static [Field]) -> Walked<()> {
        let count = self.varint()?;
        // A tagged field takes at least two bytes.
        if count as usize > self.left.len() / 2 {
            return Err(self.fault(Problem::CountTooLarge { claimed: count.into() }));
        }
        self.spend(count as usize)?;
        for _ in 0..count {
            let tag = self.varint()?;
            if i32::try_from(tag).is_err() {
                // The codec keeps tags as int32 and would count a negative one without writing it.
                return Err(self.fault(Problem::TagTooLarge { tag }));
            }
            let size = self.varint()?;
            let field = fields.iter().find(|field| field.tag == Some(tag));
            let step = field.map_or(Step::Tag(tag), |field| Step::Field(field.name));
            self.tagged_field(field, size as usize).map_err(|fault| fault.within(step))?;
        }
        Ok(())
    }

    fn tagged_field(&mut self, field: Option<&'static Field>, size: usize) -> Walked<()> {
        let value = self.take_claimed(size)?;
        let Some(field) = field else { return Ok(()) };
        if !field.versions.contains(self.version) {
            return Err(self.fault(Problem::TagOfOtherVersion));
        }
        // The value is walked in a frame of its own, so that it cannot reach past its size.
        let mut inner = Walk { left: value, elements_left: self.elements_left, ..*self };
        inner.value(&field.kind, field.nullable.contains(self.version))?;
        self.elements_left = inner.elements_left;
        if inner.left.is_empty() {
            Ok(())
        } else {
            Err(self.fault(Problem::TagSize { size, used: size - inner.left.len() }))
        }
    }

    fn string(&mut self, nullable: bool) -> Walked<Option<&'a [u8]>> {
        let length = if self.flexible { self.compact_length()? } else { self.int16_length()? };
        let Some(length) = self.non_null(length, nullable)? else { return Ok(None) };
        let bytes = self.take_claimed(length)?;
        if length > STRING_MAX {
            return Err(self.fault(Problem::StringTooLong { claimed: length }));
        }
        // Nearly all text is ASCII, which is seen several times faster.
        let is_text = bytes.is_ascii() || std::str::from_utf8(bytes).is_ok();
        match self.odd {
            _ if is_text => Ok(Some(bytes)),
            None => Err(self.fault(Problem::NotUtf8)),
            Some(odd) => {
                let start = bytes.as_ptr().addr().saturating_sub(odd.start);
                odd.found.borrow_mut().push(start..start.saturating_add(length));
                Ok(Some(&[]))
            }
        }
    }

    /// A length or count of −1 as `None`; longer than int32 is refused further down, where it does
    /// not fit.
    fn int16_length(&mut self) -> Walked<Option<usize>> {
        let length = i16::from_be_bytes(self.array_of()?);
        self.signed_length(length.into())
    }

    fn int32_length(&mut self) -> Walked<Option<usize>> {
        let length = i32::from_be_bytes(self.array_of()?);
        self.signed_length(length)
    }

    fn compact_length(&mut self) -> Walked<Option<usize>> {
        Ok((self.varint()? as usize).checked_sub(1))
    }

    fn signed_length(&self, length: i32) -> Walked<Option<usize>> {
        match length {
            -1 => Ok(None),
            _ => usize::try_from(length)
                .map(Some)
                .map_err(|_| self.fault(Problem::NegativeLength { claimed: length })),
        }
    }

    fn non_null(&self, length: Option<usize>, nullable: bool) -> Walked<Option<usize>> {
        if length.is_none() && !nullable { Err(self.fault(Problem::Null)) } else { Ok(length) }
    }

    fn varint(&mut self) -> Walked<u32> {
        varint::take(&mut self.left).map_err(|error| {
            self.fault(match error {
                VarintError::Truncated => Problem::Truncated { needed: 1 },
                VarintError::TooLong => Problem::VarintTooLong,
            })
        })
    }

    fn spend(&mut self, elements: usize) -> Walked<()> {
        match self.elements_left.checked_sub(elements) {
            Some(left) => self.elements_left = left,
            None => return Err(self.fault(Problem::TooManyElements { max: self.elements_max })),
        }
        Ok(())
    }

    fn array_of<const N: usize>(&mut self) -> Walked<[u8; N]> {
        let (taken, rest) = self
            .left
            .split_first_chunk::<N>()
            .ok_or_else(|| self.fault(Problem::Truncated { needed: N }))?;
        self.left = rest;
        Ok(*taken)
    }

    /// A value whose size the schema knows.
    fn take(&mut self, size: usize) -> Walked<&'a [u8]> {
        let (taken, rest) = self
            .left
            .split_at_checked(size)
            .ok_or_else(|| self.fault(Problem::Truncated { needed: size }))?;
        self.left = rest;
        Ok(taken)
    }

    /// A value whose size the sender claims.
    fn take_claimed(&mut self, size: usize) -> Walked<&'a [u8]> {
        let (taken, rest) = self
            .left
            .split_at_checked(size)
            .ok_or_else(|| self.fault(Problem::LengthTooLarge { claimed: size as u64 }))?;
        self.left = rest;
        Ok(taken)
    }

    #[cold]
    fn fault(&self, problem: Problem) -> Box<Fault> {
        Box::new(Fault { problem, remaining: self.left.len(), path: Vec::new() })
    }
}
