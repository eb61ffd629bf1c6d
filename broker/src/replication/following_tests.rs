//! A partition that follows, over a real log: what its leader answers, and what becomes of the log.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use letterbox_env::{Env, OpenMode};
use letterbox_protocol::batch::BatchBuilder;
use letterbox_protocol::model::{BrokerId, LeaderEpoch, Offset};
use letterbox_storage::{DurabilityObserver as _, Log};

use super::fetcher::{Key, Position};
use super::follower::{Answer, OwnLog as _};
use super::outbox::Change;
use super::tests::{OLD, TOPIC, led, replicas, with_topic};
use super::{Partition, ReplicaManager};
use crate::metadata::record::ConfigRecord;
use crate::metadata::{ConfigResource, MetadataDelta, MetadataImage, MetadataRecord, apply};

const KEY: Key = (OLD, 0);
const LEADER: BrokerId = BrokerId(1);

/// Broker 0's partition, which follows broker 1 in epoch 1.
struct Follower {
    replicas: Arc<ReplicaManager>,
    image: Arc<MetadataImage>,
    partition: Arc<Partition>,
    dir: tempfile::TempDir,
}

impl Follower {
    async fn new(config: Option<(&str, &str)>) -> Self {
        Self::start(tempfile::tempdir().unwrap(), config).await
    }

    async fn start(dir: tempfile::TempDir, config: Option<(&str, &str)>) -> Self {
        let env = Env::real();
        let replicas = replicas(&env, dir.path()).await;
        let mut image = led(&with_topic(&MetadataImage::default(), OLD, 1), OLD, 1, 1);
        if let Some((key, value)) = config {
            let resource = ConfigResource::Topic(TOPIC.into());
            let (key, value) = (key.to_owned(), Some(value.to_owned()));
            let record = MetadataRecord::Config(ConfigRecord { resource, key, value });
            image = Arc::new(apply(&image, image.applied_index + 1, &[record]).unwrap());
        }
        replicas.start(&image).await;
        let partition = replicas.hosted(&KEY).unwrap();
        Self { replicas, image, partition, dir }
    }

    /// Started again, with a log in which a person has accepted a loss.
    async fn lacks_records(self) -> Self {
        let Self { replicas, partition, dir, .. } = self;
        drop((replicas, partition));
        let mark = dir.path().join(format!("{TOPIC}-0")).join("lacks-records");
        drop(Env::real().disk.open(&mark, OpenMode::Create).unwrap());
        Self::start(dir, None).await
    }

    fn log(&self) -> &Arc<Log> {
        self.partition.log().unwrap()
    }

    /// Start, high watermark and end.
    fn offsets(&self) -> (Offset, Offset, Offset) {
        let log = self.log();
        (log.start_offset(), log.high_watermark(), log.end_offset())
    }

    /// From where it asks now.
    fn asks(&self) -> Position {
        self.replicas.outbox().take_fetches(LEADER)[&KEY].unwrap()
    }

    fn records(&self, records: &[u8], high_watermark: Offset, leader_start: Offset) {
        self.records_from(&self.asks(), records, high_watermark, leader_start);
    }

    fn records_from(&self, from: &Position, records: &[u8], high_watermark: Offset, start: Offset) {
        let answer = Answer::Records { high_watermark, leader_start: start };
        self.partition.answered(from, answer, records);
    }

    fn change_log(&self) {
        for (_, change) in self.replicas.outbox().take_changes() {
            self.partition.change_log(&change);
        }
    }

    fn lead(&mut self, epoch: LeaderEpoch) {
        self.is_led(0, epoch);
    }

    fn is_led(&mut self, by: i32, epoch: LeaderEpoch) {
        let next = led(&self.image, OLD, by, epoch);
        self.replicas.apply(&MetadataDelta::between(self.image.clone(), next.clone()));
        self.image = next;
    }
}

fn batch(at: Offset, records: usize, bytes: usize) -> BytesMut {
    let (mut batch, value) = (BatchBuilder::new(1).at(at, 0), vec![7; bytes]);
    (0..records).for_each(|_| batch.push(1, None, Some(&value), &[]));
    batch.build()
}

/// DeleteRecords may leave a leader whose log begins in the middle of a batch.
#[tokio::test]
async fn an_empty_log_begins_with_the_batch_that_holds_the_leaders_start() {
    let follower = Follower::new(None).await;
    let answer = Answer::OutOfRange { leader_start: 15, leader_end: 30 };
    follower.partition.answered(&follower.asks(), answer, &[]);
    follower.change_log();
    assert_eq!(follower.offsets(), (15, 15, 15));
    follower.records(&batch(10, 10, 5), 30, 15);
    follower.change_log();
    assert_eq!(follower.offsets(), (15, 20, 20));
    assert_eq!(follower.asks().at, 20);
}

#[tokio::test]
async fn an_answer_that_is_larger_than_a_segment_is_appended_in_runs() {
    let follower = Follower::new(Some(("segment.bytes", "1048576"))).await;
    let batches: Vec<u8> = (0..3).flat_map(|at| batch(at, 1, 600_000)).collect();
    follower.records(&batches, 0, 0);
    let asks = follower.asks();
    assert_eq!((asks.at, follower.log().segments_count()), (3, 3));
    // And a batch that its leader took when segments were larger.
    follower.records_from(&asks, &batch(3, 1, 1_200_000), 0, 0);
    assert_eq!(follower.asks().at, 4);
}

/// The word that a log has synced may come late.
#[tokio::test]
async fn what_was_synced_and_then_cut_does_not_count_for_a_leader() {
    let mut follower = Follower::new(None).await;
    follower.records(&[batch(0, 1, 5), batch(1, 1, 5)].concat(), 0, 0);
    let synced = follower.log().sync().unwrap();
    let answer = Answer::Diverging { epoch: 0, end: 1 };
    follower.partition.answered(&follower.asks(), answer, &[]);
    assert_eq!(
        follower.replicas.outbox().take_changes().remove(&KEY),
        Some(Change::Truncate { to: 1 })
    );
    follower.partition.change_log(&Change::Truncate { to: 1 });
    follower.lead(2);
    follower.partition.append(batch(0, 1, 5), super::Acks::Leader).unwrap();
    // The other replica has it.
    let log = follower.log().clone();
    let fetch = |counts| super::leader::FollowerFetch {
        replica: LEADER,
        broker_epoch: -1,
        leader_epoch: 2,
        at: 2,
        last_epoch: 2,
        counts,
        start: 0,
    };
    follower.partition.follower_fetches(fetch(2));
    follower.replicas.durable(&log, synced);
    assert_eq!(log.high_watermark(), 1, "its own disk does not have it");
    log.sync().unwrap();
    follower.replicas.durable(&log, 2);
    assert_eq!(log.high_watermark(), 2);
}

/// The disk may be slow, and a person may have elected another one by then, which has all.
#[tokio::test]
async fn a_log_goes_on_with_its_loss_only_while_it_leads() {
    let follower = Follower::new(None).await;
    follower.records(&batch(0, 3, 5), 0, 0);
    let mut follower = follower.lacks_records().await;
    follower.lead(2);
    let late = follower.replicas.outbox().take_changes().remove(&KEY).unwrap();
    follower.is_led(1, 3);
    follower.partition.change_log(&late);
    let asks = follower.asks();
    assert_eq!((asks.epoch, asks.at), (3, 0));
    follower.records_from(&asks, &batch(0, 3, 5), 0, 0);
    let changes = follower.replicas.outbox().take_changes();
    assert_eq!(changes.get(&KEY), Some(&Change::RestartAt { at: 0 }));
    follower.lead(4);
    follower.partition.change_log(&changes[&KEY]);
    assert_eq!(follower.offsets(), (0, 0, 0));

    follower.is_led(1, 5);
    follower.records(&batch(0, 3, 5), 0, 0);
    let mut follower = follower.lacks_records().await;
    follower.lead(6);
    assert!(follower.log().lacks_records());
    follower.change_log();
    assert!(!follower.log().lacks_records());
}

/// The next start would take the log for one that lacks records, with what was acknowledged since.
#[tokio::test]
async fn nothing_is_acknowledged_before_it_is_noted_that_the_log_goes_on_with_its_loss() {
    let follower = Follower::new(None).await;
    follower.records(&batch(0, 3, 5), 0, 0);
    let mut follower = follower.lacks_records().await;
    follower.lead(2);
    let in_the_way = follower.dir.path().join(format!("{TOPIC}-0")).join("lost-before");
    Env::real().disk.create_dir_all(&in_the_way).unwrap();
    follower.change_log();
    let synced = follower.log().sync().unwrap();
    follower.replicas.durable(follower.log(), synced);
    assert!(follower.log().lacks_records());
    assert_eq!(follower.log().counts(), 0);
    Env::real().disk.remove_dir_all(&in_the_way).unwrap();
    // It has asked to be told the time.
    let (due, next_ms) = follower.replicas.outbox().take_due(follower.replicas.now_ms());
    assert!(due.is_empty());
    // Not before, whatever else ticks: it would be tried more and more often.
    follower.partition.tick();
    follower.change_log();
    assert!(follower.log().lacks_records());
    while follower.replicas.now_ms() < next_ms.unwrap() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    follower.partition.tick();
    follower.change_log();
    assert!(!follower.log().lacks_records());
    assert_eq!(follower.log().counts(), 3);
}

/// What is not of the epoch that is followed is of a leader that was replaced while it read.
#[tokio::test]
async fn records_of_a_newer_epoch_than_the_followed_one_are_not_appended() {
    let follower = Follower::new(None).await;
    let mut newer = BatchBuilder::new(1).at(0, 2);
    newer.push(1, None, Some(b"value"), &[]);
    follower.records(&newer.build(), 0, 0);
    assert_eq!(follower.offsets(), (0, 0, 0));
}
