//! The quorum on real files, on a disk with faults, and as three nodes over loopback.

mod asking;
mod founding;
mod one_voter;
mod storage;
mod three_voters;
mod voters;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{QuorumConfig, QuorumTiming, RaftQuorum};
use crate::controller::Controller;
use crate::metadata::decide::{
    ConfigRules, ConfigScope, CreateTopics, NewTopic, RegisterBroker, TopicPlacement,
};
use crate::metadata::features::Release;
use crate::metadata::{Endpoint, SecurityProtocol, Stamp};
use letterbox_env::Env;
use letterbox_protocol::model::BrokerId;
use uuid::Uuid;

/// Every key is allowed, none is a list.
struct AnyConfig;

impl ConfigRules for AnyConfig {
    fn validate(&self, _: ConfigScope, _: &str, _: Option<&str>) -> Result<(), String> {
        Ok(())
    }

    fn list_default(&self, _: ConfigScope, _: &str) -> Option<String> {
        None
    }
}

#[test]
fn timeouts_that_would_not_work_count_as_the_least_that_does() {
    let ms = Duration::from_millis;
    let set = |fetch, election| {
        let timing = QuorumTiming::default().with_timeouts(ms(fetch), ms(election));
        assert!(timing.lease <= timing.patience(), "{timing:?}");
        assert!(timing.heartbeat < timing.votes_within(), "{timing:?}");
        assert!(timing.votes_within() < timing.patience(), "{timing:?}");
        (timing.fetch_timeout, timing.election_timeout)
    };
    assert_eq!(set(2_000, 1_000), (ms(2_000), ms(1_000)), "Kafka's defaults");
    assert_eq!(set(15_000, 3_000), (ms(15_000), ms(3_000)));
    assert_eq!(set(0, 0), (ms(2_000), ms(600)));
    assert_eq!(set(2_000, 5_000), (ms(10_000), ms(5_000)));
    set(i32::MAX as u64, i32::MAX as u64);
}

fn sole(dir: &Path) -> QuorumConfig {
    QuorumConfig {
        node_id: 1,
        dir: dir.join("__letterbox_metadata"),
        voters: BTreeMap::from([(1, ("127.0.0.1".to_owned(), 0))]),
        listener: None,
        cluster_id: None,
        servers: Vec::new(),
        reached_at: None,
        joins: false,
        must_exist: false,
        timing: QuorumTiming::default(),
    }
}

fn controller(env: &Env, quorum: &Arc<RaftQuorum>) -> Controller {
    let session = Duration::from_secs(600);
    Controller::start(env.clone(), Arc::clone(quorum) as _, Arc::new(AnyConfig), session)
}

fn registration(id: i32) -> RegisterBroker {
    let endpoint = Endpoint {
        listener: "PLAINTEXT".into(),
        host: "localhost".into(),
        port: 9092,
        security_protocol: SecurityProtocol::Plaintext,
    };
    RegisterBroker {
        id: BrokerId(id),
        directories: [(Uuid::from_u128(1), Stamp::default())].into(),
        absent: Default::default(),
        endpoints: vec![endpoint],
        rack: None,
        clean_start: true,
        flushes_on_ack: true,
        found: None,
        min_insync_replicas: 1,
        session_ms: 0,
        replaces: None,
        release: Release::own(),
    }
}

fn topic(name: &str, partitions: i32) -> CreateTopics {
    CreateTopics {
        topics: vec![NewTopic {
            name: name.to_owned(),
            placement: TopicPlacement::automatic(partitions, 1),
            configs: BTreeMap::new(),
        }],
        validate_only: false,
        default_partitions: 1,
        default_replication_factor: 1,
    }
}

/// Waits until `condition` holds; fails after ten seconds.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
