//! Any bytes as a response, as the client's side of a connection meets them. The first four bytes
//! choose API and version.
#![no_main]

use bytes::Bytes;
use letterbox_protocol::{apis, decode_response, encode_response};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((head, frame)) = input.split_first_chunk::<4>() else { return };
    let api_key = i16::from_be_bytes([head[0], head[1]]);
    let version = i16::from_be_bytes([head[2], head[3]]);
    if apis::find(api_key).is_none() {
        return;
    }
    if let Ok((correlation_id, response)) =
        decode_response(api_key, version, Bytes::copy_from_slice(frame))
        && let Ok(again) = encode_response(correlation_id, version, &response)
    {
        decode_response(api_key, version, again.slice(4..))
            .expect("what the codec writes is right");
    }
});
