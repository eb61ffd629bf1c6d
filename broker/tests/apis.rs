//! What clients ask on the wire and what they are told, where Apache Kafka has one answer and an easy guess has another.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

mod common;

use std::time::Instant;

use common::{Broker, ask, ask_for_topic, produce_request, produced, topic_name};
use kafka_protocol::messages as m;
use letterbox_broker::wire::Response;
use letterbox_broker::wire::batch::{BatchBuilder, Compression};

/// Fetch v11 of `topic`-0 from the start.
fn fetch_request(topic: &'static str) -> m::FetchRequest {
    let partition = m::fetch_request::FetchPartition::default().with_partition_max_bytes(1 << 20);
    let topic = m::fetch_request::FetchTopic::default().with_topic(topic_name(topic)).with_partitions(vec![partition]);
    m::FetchRequest::default().with_max_bytes(1 << 20).with_min_bytes(1).with_max_wait_ms(1_000).with_topics(vec![topic])
}

/// Issue 7, 2.3: kafka-go sends session −1 with epoch −1 always. Kafka makes a new answer of all partitions from it.
#[test]
fn a_fetch_of_a_whole_session_is_a_full_request_whatever_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    assert_eq!(ask_for_topic(&mut stream, "t"), 0);
    assert_eq!(produced(ask(&mut stream, 9, produce_request("t", b"v"))), (0, 0));
    for version in 7..=12 {
        for (id, epoch, error) in [(0, -1, 0), (0, 0, 0), (-1, -1, 0), (-1, 0, 0), (77, 0, 0), (77, -1, 0), (77, 1, 70), (0, 1, 70)] {
            let request = fetch_request("t").with_session_id(id).with_session_epoch(epoch);
            let Response::Fetch(answer) = ask(&mut stream, version, request) else { unreachable!() };
            assert_eq!((answer.error_code, answer.session_id), (error, 0), "v{version} session {id} epoch {epoch}");
            assert_eq!(answer.responses.len(), usize::from(error == 0));
            let bytes: usize = answer.responses.iter().map(|topic| topic.partitions[0].records.as_ref().unwrap().len()).sum();
            assert_eq!(bytes > 0, error == 0, "v{version} session {id} epoch {epoch}");
        }
    }
}

#[test]
fn a_fetch_of_nothing_is_answered_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    let asked = Instant::now();
    for version in [4, 7, 12] {
        let request = m::FetchRequest::default().with_min_bytes(1).with_max_bytes(1 << 20).with_max_wait_ms(600_000);
        let Response::Fetch(answer) = ask(&mut stream, version, request) else { unreachable!() };
        assert_eq!((answer.error_code, answer.responses.len()), (0, 0), "v{version}");
    }
    assert!(asked.elapsed() < common::PATIENCE, "max.wait.ms was waited for");
}

/// KIP-110. A fetch of it is answered in every version, as in Kafka since 4.0, which converts nothing for readers any more.
#[test]
fn zstd_is_taken_from_produce_7_on() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    assert_eq!(ask_for_topic(&mut stream, "t"), 0);
    let mut records = BatchBuilder::new(1_700_000_000_000);
    records.push(1_700_000_000_000, None, Some(b"v"), &[]);
    let packed = zstd::encode_all(records.records(), 0).unwrap();
    let batch = records.build_with(Compression::Zstd, &packed).freeze();
    for version in 3..=12 {
        let mut request = produce_request("t", b"");
        request.topic_data[0].partition_data[0].records = Some(batch.clone());
        let (error, offset) = produced(ask(&mut stream, version, request));
        let expected = if version < 7 { (76, -1) } else { (0, i64::from(version) - 7) };
        assert_eq!((error, offset), expected, "Produce v{version}");
    }
    for version in 4..=12 {
        let Response::Fetch(answer) = ask(&mut stream, version, fetch_request("t")) else { unreachable!() };
        let partition = &answer.responses[0].partitions[0];
        assert_eq!((partition.error_code, partition.records.as_ref().unwrap().is_empty()), (0, false), "Fetch v{version}");
    }
}
