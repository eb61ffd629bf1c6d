//! From checked bytes to message structs and back, with the framing around them.
//!
//! The structs are those of `kafka-protocol`. It reserves memory by what it reads, so
//! [`decode_request`] walks the bytes first, always; records stay slices of the frame. Produce and
//! Fetch have cheaper ways of their own: [`super::produce`] and [`super::fetch`].

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages as m;
use kafka_protocol::protocol::{Decodable, Encodable, Message, StrBytes, VersionRange};

use super::apis::{self, Api};
use super::by_id;
use super::check::{STRING_MAX, check_request_body, check_response_body};
use super::fault::{Problem, WireError};
use super::put::{Put, cut};

macro_rules! messages {
    ($($key:literal $name:ident $request:ident $response:ident $versions:tt,)*) => {
        /// The body of a request of one of the APIs in [`apis::APIS`].
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs, reason = "the names are Kafka's")]
        pub enum Request { $($name(m::$request),)* }

        /// The body of a response of one of the APIs in [`apis::APIS`].
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs, reason = "the names are Kafka's")]
        pub enum Response { $($name(m::$response),)* }

        $(
            impl From<m::$request> for Request {
                fn from(body: m::$request) -> Request { Request::$name(body) }
            }
            impl From<m::$response> for Response {
                fn from(body: m::$response) -> Response { Response::$name(body) }
            }
        )*

        impl Request {
            /// The API key.
            pub fn api_key(&self) -> i16 {
                match self { $(Request::$name(_) => $key,)* }
            }

            fn decode(api_key: i16, version: i16, body: &mut Bytes) -> Option<anyhow::Result<Request>> {
                match api_key { $($key => Some(m::$request::decode(body, layout(api_key, version)).map(Request::$name)),)* _ => None }
            }

            fn size(&self, version: i16) -> anyhow::Result<usize> {
                match self { $(Request::$name(body) => body.compute_size(layout($key, version)),)* }
            }

            fn encode(&self, version: i16, out: &mut BytesMut) -> anyhow::Result<()> {
                match self { $(Request::$name(body) => body.encode(out, layout($key, version)),)* }
            }
        }

        impl Response {
            /// The API key.
            pub fn api_key(&self) -> i16 {
                match self { $(Response::$name(_) => $key,)* }
            }

            fn decode(api_key: i16, version: i16, body: &mut Bytes) -> Option<anyhow::Result<Response>> {
                match api_key { $($key => Some(m::$response::decode(body, layout(api_key, version)).map(Response::$name)),)* _ => None }
            }

            fn size(&self, version: i16) -> anyhow::Result<usize> {
                match self { $(Response::$name(body) => body.compute_size(layout($key, version)),)* }
            }

            fn encode(&self, version: i16, out: &mut BytesMut) -> anyhow::Result<()> {
                match self { $(Response::$name(body) => body.encode(out, layout($key, version)),)* }
            }
        }

        fn messages_range(api_key: i16) -> Option<VersionRange> {
            match api_key { $($key => Some(m::$request::VERSIONS.intersect(&m::$response::VERSIONS)),)* _ => None }
        }
    };
}

/// Versions that `kafka-protocol` does not know and that look like the one before: (API key,
/// version). What is new in them is a value, not a field.
pub(super) const SAME_AS_BEFORE: &[(i16, i16)] = &[
    // KIP-1023: ListOffsets for the earliest offset that waits for its upload.
    (2, 11),
];

/// What can be read and written of an API; the ceiling of [`apis::APIS`].
pub fn codec_range(api_key: i16) -> Option<VersionRange> {
    let mut range = messages_range(api_key)?;
    while SAME_AS_BEFORE.contains(&(api_key, range.max.saturating_add(1))) {
        range.max = range.max.saturating_add(1);
    }
    if by_id::request_shape(api_key, by_id::BY_ID).is_some() {
        range.max = by_id::BY_ID;
    }
    Some(range)
}

/// A text for a message, cut at the length of Kafka's longest string ([`STRING_MAX`]): an error
/// that names a word of the request may be longer than that.
#[must_use]
pub fn text(text: &str) -> StrBytes {
    StrBytes::from_string(cut(text).to_owned())
}

/// The version whose layout `version` has, for the codec.
fn layout(api_key: i16, version: i16) -> i16 {
    if SAME_AS_BEFORE.contains(&(api_key, version)) { version.saturating_sub(1) } else { version }
}

apis::served!(messages);

/// Reads a request body, after the walk over it. `body` is what follows the header, see
/// [`super::CheckedHeader::body_offset`]; records and strings stay slices of it.
///
/// # Errors
/// What the walk refuses; `Codec` when the codec is stricter than the schema.
pub fn decode_request(api_key: i16, version: i16, body: Bytes) -> Result<Request, WireError> {
    served(api_key, version)?;
    check_request_body(api_key, version, &body)?;
    decode_checked_request(api_key, version, body)
}

/// As [`decode_request`], for a body that [`super::check_request`] has already walked as part of
/// its frame. Never call it on other bytes: the codec allocates by the counts that it reads.
///
/// # Errors
/// `Codec` when the codec is stricter than the schema.
pub fn decode_checked_request(
    api_key: i16,
    version: i16,
    mut body: Bytes,
) -> Result<Request, WireError> {
    served(api_key, version)?;
    let mut codec_version = version;
    if let Some(shape) = by_id::request_shape(api_key, version) {
        body = by_id::to_names(shape, &body).ok_or_else(|| not_whole(api_key, version))?;
        codec_version = by_id::BY_NAME;
    }
    let decoded = Request::decode(api_key, codec_version, &mut body)
        .ok_or_else(|| WireError::of(api_key, version, Problem::UnsupportedApi))?;
    decoded.map_err(|e| codec_error(api_key, version, &e))
}

/// A whole response frame: size, header and body.
///
/// # Errors
/// `Codec` when the response holds what this version cannot say, or is larger than 2 GiB.
pub fn encode_response(
    correlation_id: i32,
    version: i16,
    response: &Response,
) -> Result<Bytes, WireError> {
    encode_response_if(correlation_id, version, response, |_| true)?.ok_or_else(|| {
        codec_error(response.api_key(), version, &anyhow::anyhow!("there is no room for it"))
    })
}

/// As [`encode_response`], once `has_room` for the bytes of the frame; `None` when there is none.
///
/// # Errors
/// As [`encode_response`].
pub fn encode_response_if(
    correlation_id: i32,
    version: i16,
    response: &Response,
    has_room: impl FnOnce(usize) -> bool,
) -> Result<Option<Bytes>, WireError> {
    let api = served(response.api_key(), version)?;
    let fail = |e: &anyhow::Error| codec_error(api.key, version, e);
    let flexible = api.response_header_version(version) >= 1;
    let header_bytes = if flexible { 5 } else { 4 };
    let by_id = match by_id::response_shape(api.key, version) {
        Some(shape) => {
            let mut body = BytesMut::new();
            response.encode(by_id::BY_NAME, &mut body).map_err(|e| fail(&e))?;
            Some(by_id::to_ids(shape, &body).ok_or_else(|| not_whole(api.key, version))?)
        }
        None => None,
    };
    let body_bytes = by_id
        .as_ref()
        .map_or_else(|| response.size(version).map_err(|e| fail(&e)), |body| Ok(body.len()))?;
    let frame_bytes = body_bytes.saturating_add(header_bytes);
    if !has_room(frame_bytes) {
        return Ok(None);
    }
    let mut out = frame(api.key, version, frame_bytes)?;
    out.int32(correlation_id);
    if flexible {
        out.no_tags();
    }
    match by_id {
        Some(body) => out.extend_from_slice(&body),
        None => response.encode(version, &mut out).map_err(|e| fail(&e))?,
    }
    Ok(Some(out.freeze()))
}

/// A whole request frame: size, header and body. For the client's side of a connection.
///
/// # Errors
/// `Codec` when the request holds what this version cannot say, or is larger than 2 GiB.
pub fn encode_request(
    correlation_id: i32,
    client_id: Option<&str>,
    version: i16,
    request: &Request,
) -> Result<Bytes, WireError> {
    let key = request.api_key();
    let size = |version| request.size(version);
    request_frame(key, version, correlation_id, client_id, size, |version, out| {
        request.encode(version, out)
    })
}

/// As [`encode_request`], of a message whose API is known when the program is built.
///
/// # Errors
/// As [`encode_request`].
pub fn encode_call<R: kafka_protocol::protocol::Request>(
    correlation_id: i32,
    client_id: Option<&str>,
    version: i16,
    request: &R,
) -> Result<Bytes, WireError> {
    let size = |version| request.compute_size(layout(R::KEY, version));
    request_frame(R::KEY, version, correlation_id, client_id, size, |version, out| {
        request.encode(out, layout(R::KEY, version))
    })
}

fn request_frame(
    api_key: i16,
    version: i16,
    correlation_id: i32,
    client_id: Option<&str>,
    size: impl Fn(i16) -> anyhow::Result<usize>,
    encode: impl Fn(i16, &mut BytesMut) -> anyhow::Result<()>,
) -> Result<Bytes, WireError> {
    let api = served(api_key, version)?;
    let fail = |e: &anyhow::Error| codec_error(api.key, version, e);
    let flexible = api.is_flexible(version);
    let header_bytes =
        10usize.saturating_add(client_id.map_or(0, str::len)).saturating_add(flexible.into());
    let by_id = match by_id::request_shape(api.key, version) {
        Some(shape) => {
            let mut body = BytesMut::new();
            encode(by_id::BY_NAME, &mut body).map_err(|e| fail(&e))?;
            Some(by_id::to_ids(shape, &body).ok_or_else(|| not_whole(api.key, version))?)
        }
        None => None,
    };
    let body_bytes = by_id
        .as_ref()
        .map_or_else(|| size(version).map_err(|e| fail(&e)), |body| Ok(body.len()))?;
    let frame_bytes = body_bytes.saturating_add(header_bytes);
    let mut out = frame(api.key, version, frame_bytes)?;
    out.int16(api.key);
    out.int16(version);
    out.int32(correlation_id);
    if client_id.is_some_and(|id| id.len() > STRING_MAX) {
        return Err(WireError::of(
            api.key,
            version,
            Problem::Codec("client id of more than 32767 bytes".to_owned()),
        ));
    }
    out.nullable_string(false, client_id);
    if flexible {
        out.no_tags();
    }
    match by_id {
        Some(body) => out.extend_from_slice(&body),
        None => encode(version, &mut out).map_err(|e| fail(&e))?,
    }
    Ok(out.freeze())
}

/// Reads a response frame (without its size) of a request of this API and version, after the walk
/// over it. For the client's side of a connection.
///
/// # Errors
/// What the walk refuses; `Codec` when the codec is stricter than the schema.
pub fn decode_response(
    api_key: i16,
    version: i16,
    frame: Bytes,
) -> Result<(i32, Response), WireError> {
    let (correlation, mut body, codec_version) = response_body(api_key, version, frame)?;
    let decoded = Response::decode(api_key, codec_version, &mut body)
        .ok_or_else(|| WireError::of(api_key, version, Problem::UnsupportedApi))?;
    Ok((correlation, decoded.map_err(|e| codec_error(api_key, version, &e))?))
}

/// As [`decode_response`], of a message whose API is known when the program is built.
///
/// # Errors
/// As [`decode_response`].
pub fn decode_answer<R: kafka_protocol::protocol::Request>(
    version: i16,
    frame: Bytes,
) -> Result<(i32, R::Response), WireError> {
    let (correlation, mut body, codec_version) = response_body(R::KEY, version, frame)?;
    let decoded = R::Response::decode(&mut body, layout(R::KEY, codec_version));
    Ok((correlation, decoded.map_err(|e| codec_error(R::KEY, version, &e))?))
}

/// The correlation id of a response, and its body with the version that the codec knows it by.
fn response_body(
    api_key: i16,
    version: i16,
    mut frame: Bytes,
) -> Result<(i32, Bytes, i16), WireError> {
    let api = served(api_key, version)?;
    let short = |needed, frame: &Bytes| WireError {
        remaining: frame.len(),
        ..WireError::of(api_key, version, Problem::Truncated { needed })
    };
    let correlation =
        frame.first_chunk::<4>().map(|b| i32::from_be_bytes(*b)).ok_or_else(|| short(4, &frame))?;
    let mut body_offset = 4;
    if api.response_header_version(version) >= 1 {
        body_offset +=
            super::check::skip_tagged_fields(api_key, version, frame.get(4..).unwrap_or_default())?;
    }
    let body = frame.split_off(body_offset.min(frame.len()));
    check_response_body(api_key, version, &body)?;
    match by_id::response_shape(api_key, version) {
        Some(shape) => {
            let body = by_id::to_names(shape, &body).ok_or_else(|| not_whole(api_key, version))?;
            Ok((correlation, body, by_id::BY_NAME))
        }
        None => Ok((correlation, body, version)),
    }
}

fn served(api_key: i16, version: i16) -> Result<&'static Api, WireError> {
    let api = apis::find(api_key)
        .ok_or_else(|| WireError::of(api_key, version, Problem::UnsupportedApi))?;
    let unsupported = Problem::UnsupportedVersion { min: api.min, max: api.max };
    if api.accepts(version) { Ok(api) } else { Err(WireError::of(api_key, version, unsupported)) }
}

/// A buffer that begins with the size of a frame and has room for it.
fn frame(api_key: i16, version: i16, frame_bytes: usize) -> Result<BytesMut, WireError> {
    let too_large =
        || WireError::of(api_key, version, Problem::Codec(format!("frame of {frame_bytes} bytes")));
    let size = i32::try_from(frame_bytes).map_err(|_| too_large())?;
    let mut out = BytesMut::with_capacity(frame_bytes.saturating_add(4));
    out.int32(size);
    Ok(out)
}

/// A body of a version with topic ids that cannot be rewritten; what the walk has passed always
/// can.
fn not_whole(api_key: i16, version: i16) -> WireError {
    WireError::of(api_key, version, Problem::Codec("a topic that is not named by an id".to_owned()))
}

fn codec_error(api_key: i16, version: i16, error: &anyhow::Error) -> WireError {
    WireError::of(api_key, version, Problem::Codec(error.to_string()))
}
