//! What this version does not do, refused in the words that make a client stop at once instead of
//! trying for ever.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

mod common;

use common::{Broker, PRODUCE_VERSION, ask, ask_for_topic, produce_request, produced, topic_name};
use kafka_protocol::messages as m;
use kafka_protocol::protocol::StrBytes;
use letterbox_protocol::Response;

#[test]
fn transactions_are_refused_so_that_no_client_waits_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    let id = || Some(m::TransactionalId(StrBytes::from_static_str("transfers")));
    for version in 0..=5 {
        let request = m::InitProducerIdRequest::default()
            .with_transactional_id(id())
            .with_transaction_timeout_ms(60_000);
        let Response::InitProducerId(answer) = ask(&mut stream, version, request) else {
            unreachable!()
        };
        assert_eq!(
            (answer.error_code, answer.producer_id.0),
            (50, -1),
            "InitProducerId v{version}: INVALID_TRANSACTION_TIMEOUT"
        );
    }
    for version in 1..=6 {
        let key = StrBytes::from_static_str("transfers");
        let request = m::FindCoordinatorRequest::default().with_key_type(1);
        let request = if version >= 4 {
            request.with_coordinator_keys(vec![key])
        } else {
            request.with_key(key)
        };
        let Response::FindCoordinator(answer) = ask(&mut stream, version, request) else {
            unreachable!()
        };
        if version >= 4 {
            let coordinator = &answer.coordinators[0];
            let said = coordinator.error_message.as_ref().unwrap().to_string();
            assert_eq!(coordinator.error_code, 35, "FindCoordinator v{version}");
            assert!(
                said.contains("transactions are not offered") && !said.contains("uthori"),
                "{said}"
            );
        } else {
            // Older clients stop at InitProducerId, and at nothing else that does not speak of
            // authorization.
            assert_eq!((answer.error_code, answer.node_id.0), (0, 1), "FindCoordinator v{version}");
        }
    }
    assert_eq!(ask_for_topic(&mut stream, "orders"), 0);
    for version in 3..=12 {
        let request = produce_request("orders", b"never seen").with_transactional_id(id());
        assert_eq!(
            produced(ask(&mut stream, version, request)),
            (48, -1),
            "Produce v{version}: INVALID_TXN_STATE"
        );
    }
    assert_eq!(
        produced(ask(&mut stream, PRODUCE_VERSION, produce_request("orders", b"seen"))),
        (0, 0),
        "nothing was stored before"
    );
}

/// What lies there is believed when a coordinator loads it, so that a copier of "all topics" would
/// overwrite the offsets of live groups.
#[test]
fn clients_do_not_write_into_the_topics_of_the_coordinators() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    for name in ["__consumer_offsets", "__transaction_state", "__share_group_state"] {
        let topic = m::create_topics_request::CreatableTopic::default()
            .with_name(topic_name(name))
            .with_num_partitions(1)
            .with_replication_factor(1);
        let request =
            m::CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(30_000);
        let Response::CreateTopics(answer) = ask(&mut stream, 7, request) else { unreachable!() };
        assert_eq!(answer.topics[0].error_code, 0, "{name}");
        for version in 3..=12 {
            assert_eq!(
                produced(ask(&mut stream, version, produce_request(name, b"forged"))),
                (17, -1),
                "Produce v{version} to {name}: INVALID_TOPIC_EXCEPTION"
            );
        }
    }
}

/// The metadata log is kept in a directory of that name.
#[test]
fn the_topic_of_the_metadata_log_cannot_be_made() {
    const NAME: &str = "__cluster_metadata";
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "");
    let mut stream = broker.connect();
    let topic = m::create_topics_request::CreatableTopic::default()
        .with_name(topic_name(NAME))
        .with_num_partitions(1)
        .with_replication_factor(1);
    for version in 2..=7 {
        let request = m::CreateTopicsRequest::default()
            .with_topics(vec![topic.clone()])
            .with_timeout_ms(30_000);
        let Response::CreateTopics(answer) = ask(&mut stream, version, request) else {
            unreachable!()
        };
        assert_eq!(answer.topics[0].error_code, 42, "CreateTopics v{version}: INVALID_REQUEST");
    }
    assert_eq!(ask_for_topic(&mut stream, NAME), 3, "Metadata: UNKNOWN_TOPIC_OR_PARTITION");
    let Response::Metadata(all) =
        ask(&mut stream, 8, m::MetadataRequest::default().with_topics(None))
    else {
        unreachable!()
    };
    assert!(all.topics.is_empty(), "{:?}", all.topics);
}
