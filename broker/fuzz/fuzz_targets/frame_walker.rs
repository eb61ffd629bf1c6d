//! Any bytes as a request: the walker never panics, and what it passes the codec reads without
//! panic and without a single allocation above the bound that `run` gives to libFuzzer.
#![no_main]

use bytes::{Bytes, BytesMut};
use letterbox_protocol::produce::ProduceView;
use letterbox_protocol::{
    apis, check_request, decode_checked_request, encode_request, peek_request,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|frame: &[u8]| {
    let Ok(header) = check_request(frame) else { return };
    let prefix = peek_request(frame).expect("a right request has a prefix");
    assert_eq!((prefix.api_key, prefix.api_version), (header.api.key, header.api_version));
    let body = Bytes::copy_from_slice(&frame[header.body_offset..]);
    if header.api.key == apis::PRODUCE {
        let view =
            ProduceView::of_checked(header.api_version, &body).expect("a right body has a view");
        view.topics().for_each(|topic| topic.partitions().for_each(drop));
        let parts = view.parts();
        let mut parts = parts(BytesMut::from(&body[..]));
        while parts.next_topic().is_some() {
            while parts.next_partition().is_some() {}
        }
    }
    let client_id = header.client_id.map(|id| std::str::from_utf8(id).expect("it was checked"));
    // The codec may still refuse; what it reads, it must be able to write, and the walker must pass
    // that again.
    if let Ok(request) = decode_checked_request(header.api.key, header.api_version, body)
        && let Ok(again) =
            encode_request(header.correlation_id, client_id, header.api_version, &request)
    {
        check_request(&again[4..]).expect("what the codec writes is right");
    }
});
