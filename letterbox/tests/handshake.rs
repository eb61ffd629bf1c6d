//! Bytes that no client should send, and the handshake's traps: an error answer or a closed
//! connection, never a broker that is gone.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

mod common;

use std::io::Write;

use common::{Broker, ask, is_closed, read_frame};
use kafka_protocol::messages as m;
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::Response;

/// A frame: api key, version, correlation id 7, client id "t", and the rest as it is.
fn frame(api_key: i16, version: i16, rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(api_key.to_be_bytes());
    body.extend(version.to_be_bytes());
    body.extend(7i32.to_be_bytes());
    body.extend([0, 1, b't']);
    body.extend(rest);
    let mut frame = i32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    frame.extend(body);
    frame
}

#[test]
fn hostile_bytes_close_the_connection_and_are_one_line_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let count_of_2_31 = [0x7f, 0xff, 0xff, 0xff];
    let known: Vec<u8> = frame(18, 0, &[]);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("the four bytes that abort the codec", frame(3, 0, &count_of_2_31), "Metadata"),
        (
            "a count of 2^31-1 topics in Produce",
            frame(0, 3, &[&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1][..], &count_of_2_31].concat()),
            "Produce",
        ),
        ("a length of 2^31-1", count_of_2_31.to_vec(), "allowed are"),
        ("a negative length", vec![0xff, 0xff, 0xff, 0xfe], "-2 bytes"),
        (
            "a length of 2^31-1 from a known client",
            [&known[..], &count_of_2_31].concat(),
            "allowed are",
        ),
        ("a TLS hello", vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01], "TLS"),
        ("an HTTP request", b"GET / HTTP/1.1\r\n\r\n".to_vec(), "HTTP"),
        ("an unknown API", frame(999, 0, &[]), "999"),
        ("a version that was removed", frame(1, 0, &[0; 20]), "Fetch"),
        ("an empty frame", vec![0, 0, 0, 0], "no request is that short"),
        ("half a frame", known[..9].to_vec(), "middle of a request (9 of 15 bytes)"),
        ("half a length", known[..2].to_vec(), "middle of a request (2 of 4 bytes)"),
    ];
    let mut neighbour = broker.connect();
    let mut expected = Vec::new();
    for (name, bytes, said) in cases {
        let mut stream = broker.connect();
        expected.push((name, stream.local_addr().unwrap().to_string(), said));
        stream.write_all(&bytes).unwrap();
        if known.starts_with(&bytes) {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        } else if bytes.starts_with(&known) {
            read_frame(&mut stream);
        }
        assert!(is_closed(&mut stream), "{name}: the connection is still open");
        // Who was there before is served, and who comes after.
        for client in [&mut neighbour, &mut broker.connect()] {
            ask(client, 0, m::ApiVersionsRequest::default());
        }
    }
    let log = broker.stop_and_read_log();
    for (name, peer, said) in expected {
        let lines: Vec<&String> =
            log.iter().filter(|line| line.split(' ').any(|word| word.ends_with(&peer))).collect();
        assert_eq!(lines.len(), 1, "{name}: {lines:?}");
        assert!(lines[0].contains(said), "{name}: {lines:?}");
    }
}

/// A broker does not hold more than a small frame for a peer that has not shown that it speaks the
/// protocol: by a whole request, or by a large one that begins as one that is served.
#[test]
fn a_large_frame_is_for_clients_that_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mebibyte = (1i32 << 20).to_be_bytes();
    const PRODUCE_9: [u8; 4] = [0, 0, 0, 9];
    for (name, first, begins, said) in [
        ("nothing before", None, [0x7f; 4], "allowed are 524288 before the first valid request"),
        ("a Produce, and nothing before", None, PRODUCE_9, "(8 of 1048580 bytes)"),
        // Answered, so that the client can ask again; nothing behind its first eight bytes was
        // looked at.
        (
            "ApiVersions from the future",
            Some(frame(18, 127, &[0xff; 20])),
            [0x7f; 4],
            "allowed are 524288 before the first valid request",
        ),
        ("ApiVersions", Some(frame(18, 0, &[])), [0x7f; 4], "(8 of 1048580 bytes)"),
    ] {
        let mut stream = broker.connect();
        if let Some(first) = first {
            stream.write_all(&first).unwrap();
            read_frame(&mut stream);
        }
        stream.write_all(&[mebibyte, begins].concat()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(is_closed(&mut stream), "{name}");
        let line = broker.wait_for_line("connection closed");
        assert!(line.contains(said), "{name}: {line}");
    }
}

#[test]
fn too_new_api_versions_is_answered_in_version_0() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    // A flexible header of version 127 with tags nobody knows.
    stream.write_all(&frame(18, 127, &[0, 5, b'x'])).unwrap();
    let answer = read_frame(&mut stream);
    assert_eq!(answer[..4], 7i32.to_be_bytes(), "correlation id, and a header without tags");
    assert_eq!(answer[4..6], 35i16.to_be_bytes(), "UNSUPPORTED_VERSION");
    assert_eq!(answer[6..10], 1i32.to_be_bytes());
    assert_eq!(answer[10..16], [0, 18, 0, 0, 0, 4], "ApiVersions 0 to 4");
    // The same connection goes on.
    stream.write_all(&frame(18, 0, &[])).unwrap();
    let answer = read_frame(&mut stream);
    assert_eq!(answer[4..6], 0i16.to_be_bytes());
    let keys: Vec<(i16, i16, i16)> = answer[10..]
        .chunks(6)
        .map(|c| {
            (
                i16::from_be_bytes([c[0], c[1]]),
                i16::from_be_bytes([c[2], c[3]]),
                i16::from_be_bytes([c[4], c[5]]),
            )
        })
        .collect();
    // Older librdkafka turns compression off unless Produce begins at 0 (KAFKA-18659).
    assert!(keys.contains(&(0, 0, 13)), "{keys:?}");
    assert_eq!(keys.len(), letterbox_protocol::apis::APIS.len());
}

/// Issue 7, 2.1: what librdkafka 2.1 and newer send to list all topics, with three bytes after the
/// last field.
#[test]
fn surplus_bytes_do_not_close_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    for (version, api, rest) in [
        (13, 3, &[0u8, 0, 0, 0, 0, 1, 0, 0][..]),
        // Fetch v4 of no topic at all, with a byte that belongs to nothing.
        (4, 1, &[&[0xff; 4][..], &[0; 4], &[0; 4], &[0, 0, 1, 0], &[0], &[0; 4], &[9]].concat()),
        (0, 18, &[1, 2, 3]),
    ] {
        stream.write_all(&frame(api, version, rest)).unwrap();
        assert_eq!(read_frame(&mut stream)[..4], 7i32.to_be_bytes(), "API {api} v{version}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    let mut all = Vec::new();
    for id in 0..200i32 {
        let mut one = if id % 2 == 0 { frame(18, 0, &[]) } else { frame(3, 1, &[0, 0, 0, 0]) };
        one[8..12].copy_from_slice(&id.to_be_bytes());
        all.extend(one);
    }
    stream.write_all(&all).unwrap();
    for id in 0..200i32 {
        assert_eq!(read_frame(&mut stream)[..4], id.to_be_bytes());
    }
}

#[test]
fn software_names_that_kafka_refuses_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let cases: &[(&'static str, &'static str, i16)] = &[
        ("apache-kafka-java", "4.4.0", 0),
        ("librdkafka", "2.15.0-rc1", 0),
        ("", "1.0", 42),
        ("librdkafka", "", 42),
        ("-kafka", "1.0", 42),
        ("my client", "1.0", 42),
        ("client", "1.0 beta", 42),
        ("client\n2026 INFO all is well", "1.0", 42),
    ];
    let mut stream = broker.connect();
    for version in [3, 4] {
        for (name, software_version, expected) in cases {
            let request = m::ApiVersionsRequest::default()
                .with_client_software_name(StrBytes::from_static_str(name))
                .with_client_software_version(StrBytes::from_static_str(software_version));
            let Response::ApiVersions(answer) = ask(&mut stream, version, request) else {
                unreachable!()
            };
            assert_eq!(answer.error_code, *expected, "v{version} {name:?} {software_version:?}");
            assert_eq!(answer.api_keys.is_empty(), *expected != 0);
        }
    }
}
