//! Partitions as topics come and go.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use futures::FutureExt;
use letterbox_env::{Env, OpenMode};
use letterbox_protocol::ErrorCode;
use letterbox_protocol::batch::BatchBuilder;
use letterbox_protocol::model::BrokerId;
use letterbox_sim::disk::SimDisk;
use letterbox_storage::{LogError, LogManager, LogManagerOptions};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::role::Commit;
use super::{Acks, AppendRefused, ReplicaManager, Wanted};
use crate::config::Config;
use crate::metadata::identity::encode_uuid;
use crate::metadata::record::{
    ConfigRecord, PartitionRecord, RemoveTopicRecord, TopicRecord, decode, encode,
};
use crate::metadata::{
    ConfigResource, MetadataDelta, MetadataImage, MetadataRecord, PartitionState, apply,
};

pub(super) const TOPIC: &str = "orders";
pub(super) const OLD: Uuid = Uuid::from_u128(1);
const NEW: Uuid = Uuid::from_u128(2);

/// A change of the metadata, and all that follows from it.
async fn change(replicas: &ReplicaManager, before: Arc<MetadataImage>, after: Arc<MetadataImage>) {
    let delta = MetadataDelta::between(before, after);
    replicas.apply(&delta);
    replicas.apply_to_logs(&delta).await;
}

pub(super) async fn replicas(env: &Env, dir: &Path) -> Arc<ReplicaManager> {
    replicas_of(env, vec![dir.into()]).await.unwrap()
}

async fn replicas_of(env: &Env, dirs: Vec<PathBuf>) -> Result<Arc<ReplicaManager>, LogError> {
    Ok(with_logs(env, dirs).await?.0)
}

async fn with_logs(
    env: &Env,
    dirs: Vec<PathBuf>,
) -> Result<(Arc<ReplicaManager>, Arc<LogManager>), LogError> {
    let text = "process.roles=broker,controller\nnode.id=0\ncontroller.quorum.voters=0@localhost:9093\n\
                controller.listener.names=CONTROLLER\nlisteners=PLAINTEXT://:9092,CONTROLLER://:9093\nlog.dirs=/nowhere\n";
    let options = LogManagerOptions { reserve_bytes: Some(0), ..LogManagerOptions::new(dirs) };
    let logs = LogManager::open(env.clone(), options).await?;
    Ok((ReplicaManager::new(env, Config::parse(text).unwrap(), logs.clone()), logs))
}

pub(super) fn with_topic(image: &MetadataImage, id: Uuid, partitions: i32) -> Arc<MetadataImage> {
    with_topic_named(TOPIC, image, id, partitions)
}

fn with_topic_named(
    name: &str,
    image: &MetadataImage,
    id: Uuid,
    partitions: i32,
) -> Arc<MetadataImage> {
    let mut records = vec![MetadataRecord::Topic(TopicRecord { name: name.into(), id })];
    records.extend((0..partitions).map(|partition| {
        let state = PartitionState {
            replicas: [BrokerId(0)].into(),
            isr: [BrokerId(0)].into(),
            leader: Some(BrokerId(0)),
            ..PartitionState::default()
        };
        MetadataRecord::Partition(PartitionRecord { topic_id: id, partition, state })
    }));
    Arc::new(apply(image, image.applied_index + 1, &records).unwrap())
}

fn without_topic(image: &MetadataImage, id: Uuid) -> Arc<MetadataImage> {
    let records = [MetadataRecord::RemoveTopic(RemoveTopicRecord { id })];
    Arc::new(apply(image, image.applied_index + 1, &records).unwrap())
}

/// `image`, with another leader epoch and the leader it begins with.
pub(super) fn led(
    image: &MetadataImage,
    id: Uuid,
    leader: i32,
    leader_epoch: i32,
) -> Arc<MetadataImage> {
    let state = PartitionState {
        replicas: [BrokerId(0), BrokerId(1)].into(),
        isr: [BrokerId(0), BrokerId(1)].into(),
        leader: Some(BrokerId(leader)),
        leader_epoch,
        partition_epoch: leader_epoch,
        ..PartitionState::default()
    };
    let record = MetadataRecord::Partition(PartitionRecord { topic_id: id, partition: 0, state });
    Arc::new(apply(image, image.applied_index + 1, &[record]).unwrap())
}

fn batch() -> bytes::BytesMut {
    let mut batch = BatchBuilder::new(1);
    batch.push(1, None, Some(b"value"), &[]);
    batch.build()
}

#[tokio::test]
async fn who_waits_for_a_deleted_topic_is_told_at_once() {
    let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
    let replicas = replicas(&env, dir.path()).await;
    let image = with_topic(&MetadataImage::default(), OLD, 1);
    replicas.start(&image).await;
    let partition = replicas.partition(&OLD, 0).unwrap();
    // Nothing syncs here, so it is never committed.
    let appended = partition.append(batch(), Acks::All).unwrap();
    let waiting = Arc::new(Notify::new());
    partition.waiters.register(appended.end_offset, &waiting);
    let commit = || partition.commit(appended.leader_epoch, appended.end_offset);
    assert_eq!(commit(), Commit::Waiting);
    let next = without_topic(&image, OLD);
    change(&replicas, image, next).await;
    assert!(waiting.notified().now_or_never().is_some(), "it was not woken");
    assert_eq!(commit(), Commit::Gone);
    assert!(partition.append(batch(), Acks::Leader).is_err());
    assert_eq!(replicas.partition(&OLD, 0).err(), Some(ErrorCode::UnknownTopicOrPartition));
}

#[tokio::test]
async fn a_role_changes_while_logs_are_made() {
    let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
    let replicas = replicas(&env, dir.path()).await;
    let none = Arc::new(MetadataImage::default());
    let made = with_topic(&none, OLD, 1);
    let making = MetadataDelta::between(none, made.clone());
    replicas.apply(&making);
    let found = || replicas.partition(&OLD, 0).map(|partition| partition.leader_epoch());
    assert_eq!(found(), Err(ErrorCode::UnknownTopicOrPartition), "its log is not there yet");

    // Before its log is there the leader changes, and a configuration.
    let config = MetadataRecord::Config(ConfigRecord {
        resource: ConfigResource::Topic(TOPIC.into()),
        key: "max.message.bytes".into(),
        value: Some("1077".into()),
    });
    let next = led(&made, OLD, 0, 4);
    let next = Arc::new(apply(&next, next.applied_index + 1, &[config]).unwrap());
    replicas.apply(&MetadataDelta::between(made, next.clone()));
    replicas.apply_to_logs(&making).await;
    assert_eq!(found(), Ok(4));
    let partition = replicas.partition(&OLD, 0).unwrap();
    assert_eq!(partition.log().unwrap().config().max_message_bytes, 1077);

    // Another broker leads: at once, and who waits is told.
    let appended = partition.append(batch(), Acks::All).unwrap();
    let waiting = Arc::new(Notify::new());
    partition.waiters.register(appended.end_offset, &waiting);
    replicas.apply(&MetadataDelta::between(next.clone(), led(&next, OLD, 1, 5)));
    assert_eq!(found(), Err(ErrorCode::NotLeaderOrFollower));
    assert!(waiting.notified().now_or_never().is_some(), "it was not woken");
    assert!(matches!(partition.append(batch(), Acks::Leader), Err(AppendRefused::NotLeader)));
    let commit = partition.commit(appended.leader_epoch, appended.end_offset);
    assert_eq!(commit, Commit::NotLeader);
}

#[tokio::test]
async fn a_topic_that_is_deleted_while_its_log_is_made_leaves_nothing() {
    let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
    let replicas = replicas(&env, dir.path()).await;
    let none = Arc::new(MetadataImage::default());
    let made = with_topic(&none, OLD, 1);
    let gone = without_topic(&made, OLD);
    let making = MetadataDelta::between(none, made.clone());
    let deleting = MetadataDelta::between(made, gone);
    replicas.apply(&making);
    replicas.apply(&deleting);
    replicas.apply_to_logs(&making).await;
    assert_eq!((replicas.counts(), replicas.log_dirs().1.len()), ((0, 0, 0), 0));
    replicas.apply_to_logs(&deleting).await;
    assert_eq!(replicas.log_dirs().1.len(), 0);
}

#[tokio::test]
async fn partitions_that_are_offline_come_back_or_are_replaced() {
    let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
    let first = replicas(&env, dir.path()).await;
    let image = with_topic(&MetadataImage::default(), OLD, 3);
    first.start(&image).await;
    for partition in first.leading() {
        partition.append(batch(), Acks::Leader).unwrap();
        partition.log().unwrap().sync().unwrap();
    }
    drop(first);
    let path = |partition: i32| dir.path().join(format!("{TOPIC}-{partition}"));
    env.disk.rename(&path(0), &dir.path().join("moved")).unwrap();
    env.disk.remove_dir_all(&path(1)).unwrap();

    let second = replicas(&env, dir.path()).await;
    second.start(&image).await;
    assert_eq!(second.counts(), (3, 1, 2));
    let offline = |replicas: &ReplicaManager| {
        (0..3).filter(|index| replicas.is_offline(&OLD, *index)).collect::<Vec<_>>()
    };
    assert_eq!(
        (offline(&second), second.partition(&OLD, 0).err()),
        (vec![0, 1], Some(ErrorCode::KafkaStorageError))
    );
    assert_eq!(second.heal(&image).await, []);
    env.disk.rename(&dir.path().join("moved"), &path(0)).unwrap();
    assert_eq!(second.heal(&image).await, [(OLD, 0)]);
    assert_eq!(second.partition(&OLD, 0).unwrap().end_offset(), 1);

    // The topic is deleted and made again: the new partitions are whole.
    let deleted = without_topic(&image, OLD);
    let again = with_topic(&deleted, NEW, 3);
    change(&second, image, deleted.clone()).await;
    change(&second, deleted, again.clone()).await;
    assert_eq!(second.counts(), (3, 3, 0));
    assert!(second.leading().iter().all(|partition| partition.end_offset() == 0));
    drop(second);
    let third = replicas(&env, dir.path()).await;
    third.start(&again).await;
    assert_eq!(third.counts(), (3, 3, 0));
}

#[tokio::test]
async fn a_topic_made_again_while_the_broker_was_down_is_hosted() {
    let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
    let first = replicas(&env, dir.path()).await;
    first.start(&with_topic(&MetadataImage::default(), OLD, 100)).await;
    drop(first);
    let image = with_topic(&MetadataImage::default(), NEW, 100);
    let second = replicas(&env, dir.path()).await;
    second.start(&image).await;
    assert_eq!(second.counts(), (100, 100, 0));
    assert_eq!(ends_with(&env, dir.path(), "-stray"), 100, "nothing is known of the other topic");
}

/// Directories in `dir` whose names end so.
fn ends_with(env: &Env, dir: &Path, end: &str) -> usize {
    let entries = env.disk.list(dir).unwrap();
    entries.iter().filter(|entry| entry.is_dir && entry.name.ends_with(end)).count()
}

/// The process ended between the deletion of a topic and that of its logs, or was away.
#[tokio::test]
async fn the_logs_of_a_topic_that_is_known_to_be_deleted_go_at_the_start() {
    let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
    let first = replicas(&env, dir.path()).await;
    let image = with_topic(&MetadataImage::default(), OLD, 100);
    first.start(&image).await;
    for partition in first.leading() {
        partition.append(batch(), Acks::Leader).unwrap();
        partition.log().unwrap().sync().unwrap();
    }
    drop(first);
    // One of them is not opened, and the directory of another has the name and is not its own.
    let path = |name: &str| dir.path().join(name);
    env.disk.open(&path("orders-1/00000000000000000007.log.swap"), OpenMode::Create).unwrap();
    env.disk.rename(&path("orders-2"), &path("moved")).unwrap();
    env.disk.create_dir_all(&path("orders-2")).unwrap();
    let other = format!("version: 0\ntopic_id: {}", encode_uuid(Uuid::from_u128(7)));
    env.disk.write_atomically(&path("orders-2/partition.metadata"), other.as_bytes()).unwrap();
    // As a snapshot has it.
    let image = without_topic(&image, OLD);
    let records = decode(&encode(&image.to_records()).unwrap()).unwrap();
    let image = apply(&MetadataImage::default(), image.applied_index, &records).unwrap();
    let image = with_topic(&image, NEW, 3);
    let second = replicas(&env, dir.path()).await;
    second.start(&image).await;
    assert_eq!(second.counts(), (3, 3, 0));
    assert!(second.leading().iter().all(|partition| partition.end_offset() == 0));
    assert_eq!(ends_with(&env, dir.path(), "-delete"), 99);
    assert_eq!(ends_with(&env, dir.path(), "-stray"), 1, "what is not its own is kept");
}

/// A directory that holds partitions cannot be used: these are not made anew elsewhere, which would
/// hide their records.
#[tokio::test]
async fn with_an_unusable_log_directory_the_partitions_of_the_others_are_served() {
    let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
    let [good, bad, hidden] = ["good", "bad", "hidden"].map(|name| dir.path().join(name));
    let dirs = || vec![good.clone(), bad.clone()];
    let first = replicas_of(&env, dirs()).await.unwrap();
    let image = with_topic(&MetadataImage::default(), OLD, 4);
    first.start(&image).await;
    for partition in first.leading() {
        partition.append(batch(), Acks::Leader).unwrap();
        partition.log().unwrap().sync().unwrap();
    }
    let lost: Vec<i32> = first
        .leading()
        .iter()
        .filter(|p| p.log().unwrap().dir().path() == bad)
        .map(|p| p.key().1)
        .collect();
    assert_eq!(lost.len(), 2);
    drop(first);
    env.disk.rename(&bad, &hidden).unwrap();
    env.disk.open(&bad, letterbox_env::OpenMode::Create).unwrap();

    let second = replicas_of(&env, dirs()).await.unwrap();
    second.start(&image).await;
    let is_lost = |id: &Uuid, index: i32| {
        second.partition(id, index).err() == Some(ErrorCode::KafkaStorageError)
    };
    assert_eq!((0..4).filter(|index| is_lost(&OLD, *index)).collect::<Vec<_>>(), lost);
    assert_eq!((second.counts(), second.heal(&image).await), ((4, 2, 2), vec![]));
    // A topic that is made now has its partitions elsewhere, and a deleted one can be made again.
    let deleted = without_topic(&image, OLD);
    let again = with_topic(&deleted, NEW, 4);
    change(&second, image, deleted.clone()).await;
    change(&second, deleted, again.clone()).await;
    assert_eq!(second.counts(), (4, 4, 0));
    for partition in second.leading() {
        partition.append(batch(), Acks::Leader).unwrap();
    }
    drop(second);
    assert!(env.disk.list(&bad).is_err(), "nothing was made there");
    env.disk.remove_file(&bad).unwrap();
    env.disk.rename(&hidden, &bad).unwrap();

    let third = replicas_of(&env, dirs()).await.unwrap();
    third.start(&again).await;
    assert_eq!(third.counts(), (4, 4, 0));
    assert!(
        third.leading().iter().all(|partition| partition.end_offset() == 1),
        "the new topic's records"
    );
    assert_eq!(ends_with(&env, &bad, "-delete"), 2, "the old topic's are deleted");
    drop(third);

    env.disk.remove_dir_all(&good).unwrap();
    env.disk.remove_dir_all(&bad).unwrap();
    for path in [&good, &bad] {
        env.disk.open(path, letterbox_env::OpenMode::Create).unwrap();
    }
    assert!(
        matches!(replicas_of(&env, dirs()).await.err(), Some(LogError::Io { .. })),
        "none is usable"
    );
}

/// Consumers that caught up from a volume that hangs took all threads that may wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_of_a_device_that_hangs_hold_up_no_sync_and_no_new_log() {
    let disk = SimDisk::new(1);
    let (env, dir) = (disk.env(), Path::new("/data"));
    let none = MetadataImage::default();
    let image = with_topic(&none, OLD, 1);
    let first = replicas(&env, dir).await;
    first.start(&image).await;
    let partition = first.partition(&OLD, 0).unwrap();
    partition.append(batch(), Acks::Leader).unwrap();
    partition.log().unwrap().sync().unwrap();
    drop((partition, first));
    disk.drop_caches();
    let (replicas, logs) = with_logs(&env, vec![dir.into()]).await.unwrap();
    replicas.start(&image).await;
    let cold = replicas.partition(&OLD, 0).unwrap();
    let (held, stop) = (Arc::new((Mutex::new(true), Condvar::new())), CancellationToken::new());
    let of_disk = held.clone();
    disk.on_read(move |path| {
        if path.ends_with("orders-0/00000000000000000000.log") {
            let is_held = of_disk.0.lock().unwrap();
            drop(of_disk.1.wait_while(is_held, |is_held| *is_held).unwrap());
        }
    });
    let reader = || {
        let (env, cold) = (env.clone(), cold.clone());
        let wanted = Wanted { from: 0, max_bytes: 1000, at_least_one_batch: true };
        tokio::spawn(async move { cold.read(&env, wanted, |_| true).await.unwrap().records })
    };
    let readers: Vec<_> = (0..1000).map(|_| reader()).collect();
    let syncing = tokio::spawn(logs.run_syncers(replicas.clone(), stop.clone()));
    let goes_on = async {
        let next = with_topic_named("other", &image, NEW, 1);
        change(&replicas, image.clone(), next).await;
        let other = replicas.partition(&NEW, 0).unwrap();
        let appended = other.append(batch(), Acks::All).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        other.committed(appended.leader_epoch, appended.end_offset, Some(deadline)).await;
        assert_eq!(other.high_watermark(), 1);
        env.blocking(|| ()).await;
    };
    let gone_on = tokio::time::timeout(Duration::from_secs(60), goes_on).await;
    // In front of the verdict, since the end of the test waits for all threads.
    *held.0.lock().unwrap() = false;
    held.1.notify_all();
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap().next_offset, 1);
    }
    stop.cancel();
    syncing.await.unwrap();
    gone_on.expect("others wait for readers");
}

/// `image` with partition 0 on these brokers; the first leads.
fn moved(image: &MetadataImage, replicas: &[i32], epoch: i32) -> Arc<MetadataImage> {
    let replicas: Vec<_> = replicas.iter().copied().map(BrokerId).collect();
    let state = PartitionState {
        replicas: replicas.clone().into(),
        isr: replicas.clone().into(),
        leader: Some(replicas[0]),
        leader_epoch: epoch,
        partition_epoch: epoch,
        ..PartitionState::default()
    };
    let record = MetadataRecord::Partition(PartitionRecord { topic_id: OLD, partition: 0, state });
    Arc::new(apply(image, image.applied_index + 1, &[record]).unwrap())
}

/// The directories of the topic, as `delete`, `stray` or `log`.
fn directories(env: &Env, dir: &Path) -> Vec<&'static str> {
    let names = env.disk.list(dir).unwrap().into_iter().filter(|entry| entry.is_dir);
    let mut kinds: Vec<_> = names
        .map(|entry| match entry.name.rsplit_once('-').unwrap().1 {
            "delete" => "delete",
            "stray" => "stray",
            _ => "log",
        })
        .collect();
    kinds.sort_unstable();
    kinds
}

#[tokio::test]
async fn a_replica_that_is_taken_away_leaves_no_log_and_may_come_back() {
    let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
    let replicas = replicas(&env, dir.path()).await;
    let mut image = with_topic(&MetadataImage::default(), OLD, 1);
    replicas.start(&image).await;
    for round in 0..3 {
        let partition = replicas.partition(&OLD, 0).unwrap();
        assert_eq!(partition.end_offset(), 0, "round {round}");
        let appended = partition.append(batch(), Acks::All).unwrap();
        let waiting = Arc::new(Notify::new());
        partition.waiters.register(appended.end_offset, &waiting);
        let away = moved(&image, &[1], 2 * round + 1);
        change(&replicas, image, away.clone()).await;
        assert!(waiting.notified().now_or_never().is_some(), "it was not woken");
        let commit = partition.commit(appended.leader_epoch, appended.end_offset);
        assert_eq!(commit, Commit::NotLeader);
        assert_eq!((replicas.counts(), replicas.log_dirs().1.len()), ((0, 0, 0), 0));
        assert_eq!(replicas.partition(&OLD, 0).err(), Some(ErrorCode::NotLeaderOrFollower));
        assert!(!directories(&env, dir.path()).contains(&"log"), "round {round}");
        image = moved(&away, &[0], 2 * round + 2);
        change(&replicas, away, image.clone()).await;
    }
    assert_eq!(directories(&env, dir.path()), ["delete", "delete", "delete", "log"]);
}

/// The list of the logs that are here is written a while after one was deleted.
#[tokio::test]
async fn a_replica_that_is_taken_away_just_before_a_kill_may_come_back() {
    let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
    let first = replicas(&env, dir.path()).await;
    let here = with_topic(&MetadataImage::default(), OLD, 1);
    first.start(&here).await;
    first.partition(&OLD, 0).unwrap().append(batch(), Acks::Leader).unwrap();
    let away = moved(&here, &[1], 1);
    change(&first, here, away.clone()).await;
    drop(first);
    for entry in env.disk.list(dir.path()).unwrap().into_iter().filter(|entry| entry.is_dir) {
        assert!(entry.name.ends_with("-delete"));
        env.disk.remove_dir_all(&dir.path().join(entry.name)).unwrap();
    }
    let second = replicas(&env, dir.path()).await;
    second.start(&away).await;
    let back = moved(&away, &[0], 2);
    change(&second, away, back).await;
    assert_eq!(second.partition(&OLD, 0).unwrap().end_offset(), 0);
}

/// Logs are slower than roles: they are told of the sum of both changes.
#[tokio::test]
async fn a_replica_that_is_back_before_its_log_is_gone_begins_anew() {
    let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
    let replicas = replicas(&env, dir.path()).await;
    let here = with_topic(&MetadataImage::default(), OLD, 1);
    replicas.start(&here).await;
    replicas.partition(&OLD, 0).unwrap().append(batch(), Acks::Leader).unwrap();
    let away = moved(&here, &[1], 1);
    let back = moved(&away, &[0], 2);
    replicas.apply(&MetadataDelta::between(here.clone(), away.clone()));
    replicas.apply(&MetadataDelta::between(away.clone(), back.clone()));
    replicas.apply_to_logs(&MetadataDelta::between(here, back.clone())).await;
    assert_eq!(replicas.partition(&OLD, 0).unwrap().end_offset(), 0);

    // And the other way round: it is taken away while its new log is made.
    let (none, new) = (moved(&back, &[1], 3), moved(&back, &[0], 4));
    change(&replicas, back, none.clone()).await;
    let making = MetadataDelta::between(none.clone(), new.clone());
    replicas.apply(&making);
    let gone = moved(&new, &[1], 5);
    let leaving = MetadataDelta::between(new, gone);
    replicas.apply(&leaving);
    replicas.apply_to_logs(&making).await;
    replicas.apply_to_logs(&leaving).await;
    assert_eq!((replicas.counts(), replicas.log_dirs().1.len()), ((0, 0, 0), 0));
    assert!(!directories(&env, dir.path()).contains(&"log"));
}

#[tokio::test]
async fn what_was_taken_away_while_the_broker_was_down_goes_at_the_start() {
    let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
    let first = replicas(&env, dir.path()).await;
    let image = with_topic(&MetadataImage::default(), OLD, 2);
    first.start(&image).await;
    for partition in first.leading() {
        partition.append(batch(), Acks::Leader).unwrap();
        partition.log().unwrap().sync().unwrap();
    }
    drop(first);
    let second = replicas(&env, dir.path()).await;
    second.start(&moved(&image, &[1], 1)).await;
    assert_eq!((second.counts(), second.log_dirs().1.len()), ((1, 1, 0), 1));
    assert_eq!(directories(&env, dir.path()), ["delete", "log"]);
    assert_eq!(second.partition(&OLD, 1).unwrap().end_offset(), 1);
}
