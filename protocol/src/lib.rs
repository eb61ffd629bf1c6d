//! The wire: frames, headers, messages, version ranges, error codes. Bytes in, values out; no I/O.
//!
//! Beside the wire, what both its sides write the same way: property files ([`properties`]), ids
//! as text ([`model::encode_uuid`]).
//!
//! Trusts no length and never panics on input. The way of a request: [`frame::FrameLimit`] bounds
//! its size, [`check_request`] proves that it is whole, then [`decode_checked_request`] (or
//! [`produce::ProduceView`], which builds nothing) reads it. Versions are in one table,
//! [`apis::APIS`].

pub mod api_versions;
pub mod apis;
pub mod batch;
pub mod by_id;
mod check;
mod codec;
pub mod compression;
pub mod error;
mod fault;
pub mod fetch;
pub mod frame;
pub mod model;
pub mod produce;
pub mod properties;
mod put;
pub mod replica;
mod schema;
#[rustfmt::skip]
mod schema_table;
#[cfg(test)]
mod tests;
pub mod topics;
pub mod varint;

pub use check::{
    CheckedHeader, ELEMENTS_MAX, RequestPrefix, STRING_MAX, check_request, check_request_body,
    check_response_body, mend_text, peek_request,
};
pub use codec::{
    Request, Response, codec_range, decode_answer, decode_checked_request, decode_request,
    decode_response, encode_call, encode_request, encode_response, encode_response_if, text,
};
pub use error::ErrorCode;
pub use fault::{Problem, Step, WireError};
