//! The seeds of the fuzzer: in `broker/fuzz/seeds/frame_walker` one right request per API and
//! version, in `frame_reader` responses by hand.
//!
//! `LETTERBOX_UPDATE=1 cargo test --workspace --lib made_from_the_table_of_apis` writes those of
//! requests after a change of the table.

use std::path::Path;

use bytes::Bytes;

use super::walk::{each_version, request_frame};
use crate::schema_table::REQUESTS;
use crate::{check_request, decode_response};

#[test]
#[allow(clippy::disallowed_methods, reason = "test data of the repository, not of a broker")]
fn seeds_of_the_fuzzer_are_right_requests_made_from_the_table_of_apis() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../broker/fuzz/seeds/frame_walker");
    each_version(REQUESTS, |api, version, message| {
        let path = folder.join(format!("{}-{version}", api.name));
        // The first of the makings that is neither empty nor long.
        let made = (0..50)
            .map(|seed| request_frame(api, version, message, seed).bytes)
            .find(|frame| (20..400).contains(&frame.len()));
        let frame = made.unwrap_or_else(|| request_frame(api, version, message, 0).bytes);
        if std::env::var_os("LETTERBOX_UPDATE").is_some() {
            std::fs::write(&path, &frame).unwrap();
        }
        let kept = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(kept, frame, "{}: see the top of this file", path.display());
        check_request(&kept).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    });
}

/// API key and version, then the response.
#[test]
#[allow(clippy::disallowed_methods, reason = "test data of the repository, not of a broker")]
fn seeds_of_the_fuzzer_are_right_responses() {
    for entry in std::fs::read_dir(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../broker/fuzz/seeds/frame_reader"),
    )
    .unwrap()
    {
        let path = entry.unwrap().path();
        let seed = std::fs::read(&path).unwrap();
        let (key, version) =
            (i16::from_be_bytes([seed[0], seed[1]]), i16::from_be_bytes([seed[2], seed[3]]));
        let read = decode_response(key, version, Bytes::copy_from_slice(&seed[4..]));
        assert_eq!(
            read.is_err(),
            path.ends_with("cut") || path.ends_with("huge_count"),
            "{}: {read:?}",
            path.display()
        );
    }
}
