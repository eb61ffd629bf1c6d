//! Bounds on what clients together make a broker hold: what is above them waits or is refused, and is served later.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{
    Broker, PATIENCE, PRODUCE_VERSION, ask, ask_for_topic, free_port, http_get, is_closed, produce_request, produced, read_answer,
};
use kafka_protocol::messages as m;
use letterbox_broker::wire::{apis, encode_request};

fn greet(client: &mut TcpStream) {
    ask(client, 0, m::ApiVersionsRequest::default());
}

#[test]
fn a_connection_above_max_connections_is_refused_until_one_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "max.connections=2");
    let (mut leaves, mut stays) = (broker.connect(), broker.connect());
    greet(&mut leaves);
    greet(&mut stays);
    let mut third = broker.connect();
    let line = broker.wait_for_line("connection refused");
    assert!(line.contains(&third.local_addr().unwrap().to_string()) && line.contains("max.connections"), "{line}");
    assert!(is_closed(&mut third));
    drop(leaves);
    // The broker sees in its own time that a client is gone.
    let deadline = Instant::now() + PATIENCE;
    let ask_for_versions = encode_request(7, None, 0, &m::ApiVersionsRequest::default().into()).unwrap();
    loop {
        let mut next = broker.connect();
        if next.write_all(&ask_for_versions).is_ok() && next.read_exact(&mut [0; 4]).is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "no place is free");
    }
    greet(&mut stays);
}

/// With memory for one large request, four at once are read one after another; small ones pass them by.
#[test]
fn large_requests_wait_for_memory_and_none_is_lost() {
    const MEMORY: f64 = 1_048_576.0;
    let dir = tempfile::tempdir().unwrap();
    let admin = free_port();
    let broker = Broker::start(dir.path(), &format!("queued.max.request.bytes={MEMORY}\nadmin.listener=127.0.0.1:{admin}"));
    let wait_for_memory = |enough: fn(f64) -> bool| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, metrics) = http_get(admin, "/metrics");
            let line = metrics.lines().find_map(|line| line.strip_prefix("letterbox_request_memory_free_bytes "));
            if enough(line.unwrap().parse().unwrap()) {
                break;
            }
            assert!(Instant::now() < deadline, "{line:?}");
        }
    };
    let mut small = broker.connect();
    assert_eq!(ask_for_topic(&mut small, "orders"), 0);
    let large = encode_request(7, None, PRODUCE_VERSION, &produce_request("orders", &[b'x'; 900_000]).into()).unwrap();
    let mut clients: Vec<TcpStream> = (0..4).map(|_| broker.connect()).collect();
    clients.iter_mut().for_each(greet);
    let (first, others) = clients.split_first_mut().unwrap();
    let (begun, rest) = large.split_at(1000);
    first.write_all(begun).unwrap();
    wait_for_memory(|free| free < MEMORY / 2.0);
    std::thread::scope(|scope| {
        for other in others.iter() {
            let (mut other, large) = (other.try_clone().unwrap(), &large);
            scope.spawn(move || other.write_all(large).unwrap());
        }
        assert_eq!(produced(ask(&mut small, PRODUCE_VERSION, produce_request("orders", b"small"))), (0, 0));
        for other in others.iter_mut() {
            other.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            assert!(other.read(&mut [0; 4]).is_err(), "answered without memory for it");
            other.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        first.write_all(rest).unwrap();
    });
    let mut offsets: Vec<(i16, i64)> =
        clients.iter_mut().map(|client| produced(read_answer(client, PRODUCE_VERSION, apis::PRODUCE))).collect();
    offsets.sort_unstable();
    assert_eq!(offsets, [(0, 1), (0, 2), (0, 3), (0, 4)]);
    wait_for_memory(|free| free == MEMORY);
}
