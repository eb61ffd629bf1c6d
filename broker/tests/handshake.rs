//! Bytes that no client should send, and the handshake's traps: an error answer or a closed connection, never a
//! broker that is gone.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;

use common::{Broker, kcat};

fn connect(broker: &Broker) -> TcpStream {
    let stream = TcpStream::connect(broker.address).unwrap();
    stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    stream
}

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

fn read_frame(stream: &mut TcpStream) -> Vec<u8> {
    let mut size = [0; 4];
    stream.read_exact(&mut size).unwrap();
    let mut frame = vec![0; usize::try_from(i32::from_be_bytes(size)).unwrap()];
    stream.read_exact(&mut frame).unwrap();
    frame
}

fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0; 16]), Ok(0)) || stream.read(&mut [0; 16]).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset)
}

#[test]
fn hostile_bytes_close_the_connection_and_are_said_in_the_log() {
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
        ("a length of 2^31-1 from a known client", [&known[..], &count_of_2_31].concat(), "allowed are"),
        ("a TLS hello", vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01], "TLS"),
        ("an HTTP request", b"GET / HTTP/1.1\r\n\r\n".to_vec(), "HTTP"),
        ("an unknown API", frame(999, 0, &[]), "999"),
        ("a version that was removed", frame(1, 0, &[0; 20]), "Fetch"),
        ("an empty frame", vec![0, 0, 0, 0], "no request is that short"),
    ];
    for (name, bytes, said) in cases {
        let mut stream = connect(&broker);
        stream.write_all(&bytes).unwrap();
        if bytes.starts_with(&known) {
            read_frame(&mut stream);
        }
        assert!(is_closed(&mut stream), "{name}: the connection is still open");
        let line = broker.wait_for_line("connection closed");
        assert!(line.contains(said), "{name}: {line}");
    }
    // Half a frame and gone.
    let mut stream = connect(&broker);
    stream.write_all(&frame(18, 0, &[])[..9]).unwrap();
    drop(stream);
    assert!(broker.wait_for_line("connection closed").contains("middle of a request"));
    // And everybody else is served.
    kcat(&broker, &["-L"], "");
}

#[test]
fn too_new_api_versions_is_answered_in_version_0() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = connect(&broker);
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
        .map(|c| (i16::from_be_bytes([c[0], c[1]]), i16::from_be_bytes([c[2], c[3]]), i16::from_be_bytes([c[4], c[5]])))
        .collect();
    // Older librdkafka turns compression off unless Produce begins at 0 (KAFKA-18659).
    assert!(keys.contains(&(0, 0, 13)), "{keys:?}");
    assert_eq!(keys.len(), 23);
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = connect(&broker);
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
