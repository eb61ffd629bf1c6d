//! Logs that come and go: nothing of a log survives its topic id.

use std::collections::BTreeSet;

use super::*;

const OLD: Uuid = Uuid::from_u128(1);
const NEW: Uuid = Uuid::from_u128(2);

/// Every file below `dir` with its bytes.
fn snapshot(disk: &dyn Disk, dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in disk.list(dir).unwrap() {
        let path = dir.join(entry.name);
        if entry.is_dir {
            files.extend(snapshot(disk, &path))
        } else {
            drop(files.insert(path.clone(), disk.read(&path).unwrap()))
        }
    }
    files
}

fn gone(topic: &str, id: Uuid) -> Vec<(Arc<str>, Uuid, i32)> {
    vec![(topic.into(), id, 0)]
}

#[tokio::test]
async fn what_is_queued_for_a_deleted_log_has_no_effect() {
    let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
    let manager = open(&env, dir.path()).await;
    let old = manager.create(TOPIC, OLD, 0, compacted()).await.unwrap();
    for i in 0..40i64 {
        keyed(&old, i, &[(&format!("k{}", i % 3), Some("old"))]);
    }
    old.set_high_watermark(30);
    old.sync().unwrap();
    keyed(&old, 41, &[("late", Some("old"))]);
    manager.delete(gone(TOPIC, OLD)).await;
    let new = manager.create(TOPIC, NEW, 0, small()).await.unwrap();
    append(&new, 1, &["new"]);
    new.sync().unwrap();
    manager.checkpoint().await;
    let before = snapshot(&*env.disk, &dir.path().join("orders-0"));
    let checkpoints = |file: &str| snapshot(&*env.disk, dir.path())[&dir.path().join(file)].clone();
    let points = checkpoints("recovery-point-offset-checkpoint");

    // The syncer, the upkeep and late readers come to it only now.
    assert!(old.sync().is_err() && old.checkpoint().is_err() && old.close().is_err());
    assert!(old.append(batch(1, &["x"]), &client(1)).is_err());
    assert!(old.truncate_to(3).is_err() && old.truncate_fully_and_start_at(7).is_err());
    old.set_high_watermark(40);
    let _ = old.roll_if_old(i64::MAX);
    let _ = old.roll_now(100);
    old.set_config(LogConfig { retention_ms: 0, ..small() });
    assert!(old.apply_retention(i64::MAX).unwrap_or_default().is_empty());
    old.set_config(compacted());
    let _ = old.compact(&pass(100, 0, 1_000));
    old.close_idle();
    old.close_idle();
    let _ = old.read_from_disk(0, usize::MAX, Offset::MAX, true);
    old.dir.partitions.set_recovery_points([&*old]).unwrap();
    old.dir.partitions.set_cleaned(&old, 33).unwrap();
    old.dir.partitions.set_positions([&*old]).unwrap();

    assert!(!old.is_offline(), "the log directory is out of use: {:?}", old.dir.offline());
    assert_eq!(
        snapshot(&*env.disk, &dir.path().join("orders-0")),
        before,
        "the new log's files were touched"
    );
    assert_eq!(checkpoints("recovery-point-offset-checkpoint"), points);
    assert_eq!(new.dir.partitions.cleaned(&new), 0);
    assert_eq!(contents(&new).into_values().collect::<Vec<_>>(), ["new"]);
}

/// The disk was full, so that the row of a deleted topic stayed; a directory of its name was made, and
/// the broker killed: the directory counted as the damaged one of the old topic, and was set aside.
#[tokio::test]
async fn a_row_says_nothing_of_a_directory_that_was_made_after_it() {
    for is_deleted in [true, false] {
        let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
        let manager = open(&disk.env(), dir).await;
        let config = LogConfig { file_delete_delay_ms: 0, ..small() };
        let old = manager.create(TOPIC, OLD, 0, config).await.unwrap();
        for i in 0..10 {
            append(&old, i, &["old"]);
        }
        old.checkpoint().unwrap();
        old.set_high_watermark(10);
        old.dir.partitions.set_recovery_points([&*old]).unwrap();
        manager.checkpoint().await;
        if is_deleted {
            for file in ["offset-checkpoint", "partition-topic-ids"] {
                disk.inject(Fault::NoSpace, file, 0, u64::MAX);
            }
            manager.delete(gone(TOPIC, OLD)).await;
            manager.remove_doomed(&CancellationToken::new()).await;
            assert!(manager.create(TOPIC, NEW, 0, small()).await.is_err());
        } else {
            // By a person.
            let path = old.path.clone();
            disk.remove_dir_all(&path).unwrap();
            disk.create_dir_all(&path).unwrap();
        }
        drop((manager, old));
        disk.end_process();
        disk.heal();
        assert!(disk.exists(&dir.join("orders-0")).unwrap());
        let manager = open(&disk.env(), dir).await;
        assert!(manager.offline_logs().is_empty(), "{:?}", manager.offline_logs());
        assert_eq!(manager.not_open(), [(TOPIC.into(), Some(OLD), 0)]);
        if is_deleted {
            // As the metadata say.
            manager.delete(gone(TOPIC, OLD)).await;
            let new = manager.create(TOPIC, NEW, 0, small()).await.unwrap();
            append(&new, 1, &["new"]);
        } else {
            let lost = manager.create(TOPIC, OLD, 0, small()).await;
            assert!(matches!(lost, Err(LogError::Missing { end_offset: 10, .. })));
        }
        assert_eq!(cuts::strays(&disk), [] as [PathBuf; 0]);
    }
}

#[tokio::test]
async fn a_topic_made_again_begins_with_nothing_of_the_old_one() {
    // Killed after any number of changes to the disk since the old topic was deleted.
    for at in 0.. {
        let dir = Path::new(DIR);
        let disk = SimDisk::new(1);
        let manager = open(&disk.env(), dir).await;
        let old = manager.create(TOPIC, OLD, 0, small()).await.unwrap();
        for i in 0..60 {
            append(&old, i, &["old"]);
        }
        old.checkpoint().unwrap();
        old.set_high_watermark(60);
        old.delete_records_before(45).unwrap();
        old.dir.partitions.set_cleaned(&old, 50).unwrap();
        old.dir.partitions.set_recovery_points([&*old]).unwrap();
        manager.checkpoint().await;
        disk.inject(Fault::FailChange, "", at, u64::MAX);
        manager.delete(gone(TOPIC, OLD)).await;
        let mut acknowledged = 0;
        if let Ok(new) = manager.create(TOPIC, NEW, 0, small()).await {
            for i in 0..10 {
                if new.append(batch(i, &["new"]), &client(i)).is_ok() && new.sync().is_ok() {
                    acknowledged = i + 1;
                }
            }
            let _ = old.dir.partitions.set_recovery_points([&*old]);
            let _ = old.dir.partitions.set_positions([&*old]);
        }
        let failed = !disk.stats().faults.is_empty();
        drop((manager, old));
        disk.heal();
        let manager = open(&disk.env(), dir).await;
        manager
            .set_unknown_aside(|name, id, partition| (name, id, partition) == (TOPIC, Some(NEW), 0))
            .await;
        let new = manager
            .create(TOPIC, NEW, 0, small())
            .await
            .unwrap_or_else(|error| panic!("after {at} changes: {error}"));
        assert_eq!(
            (new.topic_id(), new.start_offset(), new.dir.partitions.cleaned(&new)),
            (NEW, 0, 0),
            "after {at} changes"
        );
        let kept = contents(&new);
        assert!(
            kept.len() as i64 >= acknowledged && kept.values().all(|value| value == "new"),
            "after {at}: {acknowledged} of {kept:?}"
        );
        // And again, when everything was checkpointed under the new id.
        append(&new, 1, &["new"]);
        let end = new.end_offset();
        manager.close().await.unwrap();
        drop((manager, new));
        let new = open(&disk.env(), dir).await.get(NEW, 0).unwrap();
        assert_eq!((new.start_offset(), new.end_offset()), (0, end));
        if !failed {
            assert!(at > 20, "the faults have to have met something: {at}");
            break;
        }
    }
}

fn many(count: i32, id: Uuid) -> Vec<WantedLog> {
    (0..count)
        .map(|partition| WantedLog {
            topic: TOPIC.into(),
            topic_id: id,
            partition,
            config: small(),
            is_new: true,
            may_be_copied: false,
        })
        .collect()
}

#[tokio::test]
async fn many_logs_cost_as_few_syncs_as_one() {
    let dir = Path::new(DIR);
    let disk = SimDisk::new(1);
    let manager = open(&disk.env(), dir).await;
    let mut before = disk.stats();
    let mut counted = || {
        let (then, now) = (std::mem::replace(&mut before, disk.stats()), disk.stats());
        let syncs = now.syncs + now.dir_syncs - then.syncs - then.dir_syncs;
        (now.operations - then.operations, syncs)
    };
    let logs = manager.host(many(1_000, OLD)).await;
    assert!(logs.iter().all(Result::is_ok));
    let (changes, syncs) = counted();
    assert!(changes <= 1_000 + 10 && syncs <= 5, "making: {changes} changes, {syncs} syncs");
    manager.delete((0..1_000).map(|partition| (TOPIC.into(), OLD, partition)).collect()).await;
    let (changes, syncs) = counted();
    assert!(changes <= 1_000 + 5 && syncs <= 2, "deleting: {changes} changes, {syncs} syncs");
    let logs = manager.host(many(1_000, NEW)).await;
    assert!(logs.iter().all(Result::is_ok));
    let (changes, syncs) = counted();
    assert!(changes <= 1_000 + 40 && syncs <= 15, "making again: {changes} changes, {syncs} syncs");
}

/// What the broker does at its start, when the cluster has one topic: `orders` with this id.
async fn start(
    env: &Env,
    dir: &Path,
    id: Uuid,
    count: i32,
) -> (Arc<LogManager>, Vec<Result<Arc<Log>, LogError>>) {
    let manager = open(env, dir).await;
    manager
        .set_unknown_aside(|name, known, _| name == TOPIC && known.is_none_or(|known| known == id))
        .await;
    let logs = manager.host(many(count, id)).await;
    (manager, logs)
}

#[tokio::test]
async fn a_topic_of_the_same_name_is_hosted_after_a_crash_between_delete_and_create() {
    for at in 0.. {
        let dir = Path::new(DIR);
        let disk = SimDisk::new(1);
        let manager = open(&disk.env(), dir).await;
        let old: Vec<_> =
            manager.host(many(5, OLD)).await.into_iter().map(Result::unwrap).collect();
        for log in &old {
            append(log, 1, &["old"]);
            log.checkpoint().unwrap();
        }
        manager.checkpoint().await;
        disk.inject(Fault::FailChange, "", at, u64::MAX);
        manager.delete((0..5).map(|partition| (TOPIC.into(), OLD, partition)).collect()).await;
        let _ = manager.host(many(5, NEW)).await;
        let failed = !disk.stats().faults.is_empty();
        drop((manager, old));
        disk.heal();
        let (_manager, logs) = start(&disk.env(), dir, NEW, 5).await;
        for log in logs {
            let log = log.unwrap_or_else(|error| panic!("after {at} changes: {error}"));
            assert_eq!((log.start_offset(), log.end_offset()), (0, 0), "after {at} changes");
        }
        if !failed {
            assert!(at > 10, "the faults have to have met something: {at}");
            break;
        }
    }
}

/// Nobody counts on this copy. One that is back is opened as it is.
#[tokio::test]
async fn a_missing_directory_of_a_replica_that_others_have_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let manager = open(&env, dir.path()).await;
    let log = manager.create(TOPIC, OLD, 0, small()).await.unwrap();
    append(&log, 1, &["kept"]);
    manager.close().await.unwrap();
    drop((manager, log));
    let (path, aside) = (dir.path().join("orders-0"), dir.path().join("moved"));
    env.disk.rename(&path, &aside).unwrap();
    let wanted = |may_be_copied| WantedLog {
        topic: TOPIC.into(),
        topic_id: OLD,
        partition: 0,
        config: small(),
        is_new: false,
        may_be_copied,
    };
    let (manager, logs) = start(&env, dir.path(), OLD, 1).await;
    assert!(matches!(&logs[0], Err(LogError::Missing { .. })));
    assert!(manager.host(vec![wanted(false)]).await[0].is_err());
    env.disk.rename(&path.with_file_name("moved"), &path).unwrap();
    let log = manager.host(vec![wanted(true)]).await.remove(0).unwrap();
    assert_eq!((log.end_offset(), log.loss()), (1, Loss::None));
    manager.close().await.unwrap();
    drop((manager, log));
    env.disk.rename(&path, &aside).unwrap();
    let (manager, logs) = start(&env, dir.path(), OLD, 1).await;
    assert!(logs[0].is_err());
    let log = manager.host(vec![wanted(true)]).await.remove(0).unwrap();
    assert_eq!((log.range(), log.loss()), ((0, 0), Loss::Records));
    assert!(manager.offline_logs().is_empty());
    drop((manager, log));
    let (_manager, logs) = start(&env, dir.path(), OLD, 1).await;
    assert_eq!(logs[0].as_ref().unwrap().range(), (0, 0));
}

/// A replica was taken off the broker, which is killed, and comes back to it.
#[tokio::test]
async fn what_was_deleted_just_before_a_kill_is_not_missed() {
    let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
    let manager = open(&disk.env(), dir).await;
    let logs = manager.host(many(3, OLD)).await;
    for log in logs {
        append(&log.unwrap(), 1, &["old"]);
    }
    manager.checkpoint().await;
    manager.delete(gone(TOPIC, OLD)).await;
    // One that a person removed was not deleted.
    disk.env().disk.remove_dir_all(&dir.join("orders-1")).unwrap();
    drop(manager);
    let manager = open(&disk.env(), dir).await;
    assert_eq!(manager.not_open(), [(TOPIC.into(), Some(OLD), 1)]);
    let ends: Vec<_> = manager
        .host(many(3, OLD))
        .await
        .into_iter()
        .map(|log| Some(log.ok()?.end_offset()))
        .collect();
    assert_eq!(ends, [Some(0), None, Some(1)]);
}

#[tokio::test]
async fn a_missing_directory_is_offline_until_it_is_back_or_its_loss_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let manager = open(&env, dir.path()).await;
    let log = manager.create(TOPIC, OLD, 0, small()).await.unwrap();
    for i in 0..30 {
        append(&log, i, &["kept"]);
    }
    manager.close().await.unwrap();
    drop((manager, log));
    let (path, aside) = (dir.path().join("orders-0"), dir.path().join("moved"));
    env.disk.rename(&path, &aside).unwrap();
    let (manager, mut logs) = start(&env, dir.path(), OLD, 1).await;
    let error = logs.remove(0).err().unwrap();
    assert!(matches!(error, LogError::Missing { end_offset: 30, .. }), "{error}");
    assert!(!env.disk.exists(&path).unwrap(), "nothing is made in its place");
    assert_eq!(manager.offline_logs().len(), 1);
    // It is still known after the checkpoints were written, and after another start.
    manager.checkpoint().await;
    drop(manager);
    let (manager, logs) = start(&env, dir.path(), OLD, 1).await;
    assert!(matches!(&logs[0], Err(LogError::Missing { end_offset: 30, .. })));
    env.disk.rename(&aside, &path).unwrap();
    let log = manager.create(TOPIC, OLD, 0, small()).await.unwrap();
    assert_eq!(contents(&log).len(), 30);
    assert!(manager.offline_logs().is_empty());
    manager.close().await.unwrap();
    drop((manager, log));
    env.disk.remove_dir_all(&path).unwrap();
    let (manager, logs) = start(&env, dir.path(), OLD, 1).await;
    assert!(logs[0].is_err());
    env.disk.create_dir_all(&path).unwrap();
    env.disk.open(&path.join("accept-data-loss"), OpenMode::Create).unwrap();
    let log = manager.create(TOPIC, OLD, 0, small()).await.unwrap();
    assert_eq!((log.start_offset(), log.end_offset()), (30, 30), "no offset is given out twice");
    assert_eq!(append(&log, 1, &["next"]).base_offset, 30);
    log.sync().unwrap();
    drop((manager, log));
    let (_manager, mut logs) = start(&env, dir.path(), OLD, 1).await;
    assert_eq!(contents(&logs.remove(0).unwrap()), BTreeMap::from([(30, "next".to_owned())]));
    assert!(!env.disk.exists(&path.join("accept-data-loss")).unwrap());
}

#[tokio::test]
async fn leader_epochs_whose_file_is_lost_are_found_in_the_batches() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let manager = open(&env, dir.path()).await;
    let log = manager.create(TOPIC, OLD, 0, small()).await.unwrap();
    for i in 0..40i64 {
        let options = AppendOptions { leader_epoch: i as i32 / 10 * 3, ..client(i) };
        log.append(batch(i, &["kept"]), &options).unwrap();
    }
    let of = |log: &Log| (0..12).map(|epoch| log.end_offset_for_epoch(epoch)).collect::<Vec<_>>();
    let epochs = of(&log);
    assert_eq!(epochs[4], Some((3, 20)));
    manager.close().await.unwrap();
    drop((manager, log));
    let file = dir.path().join("orders-0/leader-epoch-checkpoint");
    for damage in [None, Some(""), Some("junk"), Some("0\n0\n"), Some("0\n1\nx y\n")] {
        env.disk.remove_file(&file).unwrap();
        if let Some(text) = damage {
            let file = env.disk.open(&file, OpenMode::Create).unwrap();
            file.write_at(&[std::io::IoSlice::new(text.as_bytes())], 0).unwrap();
        }
        let (manager, mut logs) = start(&env, dir.path(), OLD, 1).await;
        let log = logs.remove(0).unwrap();
        assert_eq!(of(&log), epochs, "{damage:?}");
        manager.close().await.unwrap();
        assert!(env.disk.read(&file).unwrap().len() > 10, "it is written again");
    }
}

/// A restored backup of an older topic of that name, for example.
#[tokio::test]
async fn another_topics_directory_in_the_place_of_a_lost_one_does_not_hide_the_loss() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let manager = open(&env, dir.path()).await;
    let log = manager.create(TOPIC, NEW, 0, small()).await.unwrap();
    for i in 0..7 {
        append(&log, i, &["kept"]);
    }
    manager.close().await.unwrap();
    drop((manager, log));
    let (path, aside) = (dir.path().join("orders-0"), dir.path().join("moved"));
    env.disk.rename(&path, &aside).unwrap();
    // Of a log directory of its own, in which the older topic had the name.
    let older = tempfile::tempdir().unwrap();
    let manager = open(&env, older.path()).await;
    let log = manager.create(TOPIC, OLD, 0, small()).await.unwrap();
    append(&log, 0, &["older"]);
    manager.close().await.unwrap();
    drop((manager, log));
    env.disk.create_dir_all(&path).unwrap();
    for (file, bytes) in snapshot(&*env.disk, &older.path().join("orders-0")) {
        let to = env.disk.open(&path.join(file.file_name().unwrap()), OpenMode::Create).unwrap();
        to.write_at(&[std::io::IoSlice::new(&bytes)], 0).unwrap();
    }
    for again in [false, true] {
        // A broker that ends before the metadata are there has decided nothing.
        drop(open(&env, dir.path()).await);
        let (manager, logs) = start(&env, dir.path(), NEW, 1).await;
        let error = logs.into_iter().next().unwrap().err().unwrap();
        assert!(matches!(error, LogError::Missing { end_offset: 7, .. }), "{again}: {error}");
        assert!(!env.disk.exists(&path).unwrap(), "the other one is set aside");
        manager.checkpoint().await;
    }
    env.disk.rename(&aside, &path).unwrap();
    let (manager, mut logs) = start(&env, dir.path(), NEW, 1).await;
    assert_eq!(contents(&logs.remove(0).unwrap()).len(), 7);
    drop(manager);
    env.disk.rename(&path, &aside).unwrap();
    // The same while the broker runs, and then the topic is deleted.
    let (manager, _logs) = start(&env, dir.path(), NEW, 1).await;
    env.disk.rename(&older.path().join("orders-0"), &path).unwrap();
    let error = manager.create(TOPIC, NEW, 0, small()).await.err().unwrap();
    assert!(matches!(error, LogError::Malformed { .. }), "{error}");
    manager.delete(gone(TOPIC, NEW)).await;
    let stray = |entry: &letterbox_env::DirEntry| entry.name.ends_with("-stray");
    let aside_count = env.disk.list(dir.path()).unwrap().iter().filter(|each| stray(each)).count();
    assert_eq!(aside_count, 2, "what is not the topic's own is never deleted");
}

#[tokio::test]
async fn a_damaged_partition_is_replaced_by_a_new_topic_or_opened_without_what_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let manager = open(&env, dir.path()).await;
    let log = manager.create(TOPIC, OLD, 0, small()).await.unwrap();
    append(&log, 0, &["a"]);
    append(&log, 0, &["b"]);
    manager.close().await.unwrap();
    drop((manager, log));
    let path = dir.path().join("orders-0");
    let cut = |base, len| {
        let file = path.join(format!("{base:020}.log"));
        env.disk.open(&file, OpenMode::ReadWrite).unwrap().set_len(len).unwrap()
    };
    cut(0, 80);
    let (manager, logs) = start(&env, dir.path(), OLD, 1).await;
    assert!(matches!(&logs[0], Err(LogError::Corrupt { .. })));
    env.disk.open(&path.join("accept-data-loss"), OpenMode::Create).unwrap();
    let log = manager.create(TOPIC, OLD, 0, small()).await.unwrap();
    assert_eq!(contents(&log).into_values().collect::<Vec<_>>(), ["a"]);
    append(&log, 0, &["c"]);
    manager.close().await.unwrap();
    drop((manager, log));
    cut(2, 20);
    let (manager, logs) = start(&env, dir.path(), OLD, 1).await;
    assert!(logs[0].is_err());
    manager.delete(gone(TOPIC, OLD)).await;
    let log = manager.create(TOPIC, NEW, 0, small()).await.unwrap();
    assert_eq!((log.end_offset(), manager.offline_logs().len()), (0, 0));
    let names: Vec<_> = env
        .disk
        .list(dir.path())
        .unwrap()
        .into_iter()
        .filter(|entry| entry.is_dir)
        .map(|entry| entry.name)
        .collect();
    assert!(names.len() == 2 && names.iter().any(|name| name.ends_with("-delete")), "{names:?}");
}

#[tokio::test]
async fn a_log_is_made_once_there_is_space_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let manager = open(&Env::real(), dir.path()).await;
    manager.dirs()[0].check_space(Some(u64::MAX));
    assert!(matches!(manager.create(TOPIC, OLD, 0, small()).await, Err(LogError::NoLogDir)));
    manager.dirs()[0].check_space(Some(0));
    append(&manager.create(TOPIC, OLD, 0, small()).await.unwrap(), 0, &["a"]);
}

/// Its directory may not be marked as left in order then: the next start checks the tails.
#[tokio::test]
async fn a_stop_without_space_ends_well() {
    for changes in 0..8 {
        let dir = Path::new(DIR);
        let disk = SimDisk::new(1);
        let manager = open(&disk.env(), dir).await;
        let log = manager.create(TOPIC, OLD, 0, small()).await.unwrap();
        append(&log, 0, &["a"]);
        log.sync().unwrap();
        disk.inject(Fault::NoSpace, "", changes, u64::MAX);
        manager.close().await.unwrap();
        drop((manager, log));
        disk.heal();
        let (_manager, logs) = start(&disk.env(), dir, OLD, 1).await;
        assert_eq!(
            contents(logs[0].as_ref().unwrap()).into_values().collect::<Vec<_>>(),
            ["a"],
            "after {changes} changes"
        );
    }
}

#[tokio::test]
async fn making_thousands_of_logs_leaves_the_rest_of_the_reserve() {
    let dir = Path::new(DIR);
    let disk = SimDisk::new(1);
    let manager = open(&disk.env(), dir).await;
    disk.set_free(2 << 20);
    manager.dirs()[0].check_space(Some(4 << 20));
    let made = futures::future::join_all(
        (0..100).map(|partition| manager.create("many", NEW, partition, small())),
    )
    .await;
    let made = made.iter().filter(|log| log.is_ok()).count();
    assert_eq!(made, (1 << 20) / (16 << 10) + 1, "a quarter of the reserve, 1 MiB, is left");
}

#[tokio::test]
async fn ids_of_partitions_that_were_not_synced_are_known_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let manager = open(&env, dir.path()).await;
    let log = manager.create(TOPIC, OLD, 0, small()).await.unwrap();
    append(&log, 0, &["in the page cache"]);
    drop((manager, log));
    let path = dir.path().join("orders-0/partition.metadata");
    for torn in [false, true] {
        if torn {
            env.disk.open(&path, OpenMode::ReadWrite).unwrap().set_len(0).unwrap();
        } else {
            assert!(!env.disk.exists(&path).unwrap(), "the first sync makes it");
        }
        let (manager, mut logs) = start(&env, dir.path(), OLD, 1).await;
        let log = logs.remove(0).unwrap();
        assert_eq!(contents(&log).len(), 1);
        log.sync().unwrap();
        assert!(env.disk.read(&path).unwrap().starts_with(b"version: 0\ntopic_id: "));
        drop((manager, log));
    }
}

#[tokio::test]
async fn files_of_deleted_segments_are_handed_over_although_their_renaming_has_failed() {
    let mut retried = 0;
    for at in 0.. {
        let dir = Path::new(DIR);
        let disk = SimDisk::new(1);
        let (_manager, log) = new_log(&disk.env(), dir, small()).await;
        for i in 0..40 {
            append(&log, i, &["old"]);
        }
        log.sync().unwrap();
        log.set_high_watermark(40);
        log.set_config(LogConfig { retention_ms: 0, ..small() });
        disk.inject(Fault::FailChange, "", at, u64::MAX);
        let mut given = BTreeSet::new();
        let first = log.apply_retention(1_000_000);
        let failed = first.is_err();
        given.extend(first.unwrap_or_default());
        disk.heal();
        let files = || snapshot(&disk, &log.path).into_keys().collect::<BTreeSet<PathBuf>>();
        let is_deleted = |path: &PathBuf| path.to_string_lossy().ends_with(".deleted");
        if log.is_offline() && !files().iter().any(is_deleted) {
            // The checkpoint before it has failed, and nothing goes.
            assert!(failed && log.apply_retention(1_000_000).is_err());
            continue;
        }
        retried += u32::from(failed);
        loop {
            let more = log.apply_retention(1_000_000).unwrap();
            if more.is_empty() {
                break;
            }
            given.extend(more);
        }
        let files = files();
        let deleted: BTreeSet<_> = files.iter().filter(|path| is_deleted(path)).cloned().collect();
        assert_eq!(given, deleted, "after {at} changes");
        let logs = files
            .iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .count();
        assert_eq!(logs, log.segments_count(), "after {at} changes");
        if !failed {
            assert!(retried > 5, "the faults have to have met something: {retried}");
            break;
        }
    }
}

/// As when a log directory comes back after its partitions were made anew elsewhere: neither is
/// served in the place of the other.
#[tokio::test]
async fn a_partition_in_two_log_directories_is_offline_until_one_is_moved_away() {
    let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
    let [a, b, away] = ["a", "b", "away"].map(|name| dir.path().join(name));
    let open = || {
        LogManager::open(
            env.clone(),
            LogManagerOptions {
                reserve_bytes: Some(0),
                ..LogManagerOptions::new(vec![a.clone(), b.clone()])
            },
        )
    };
    let wanted = || {
        vec![WantedLog {
            topic: TOPIC.into(),
            topic_id: OLD,
            partition: 0,
            config: small(),
            is_new: false,
            may_be_copied: false,
        }]
    };
    for (dir, value) in [(&a, "first"), (&b, "second")] {
        let only = LogManager::open(env.clone(), options(dir)).await.unwrap();
        let log = only.create(TOPIC, OLD, 0, small()).await.unwrap();
        append(&log, 1, &[value]);
        log.sync().unwrap();
        only.checkpoint().await;
    }
    let both = open().await.unwrap();
    assert_eq!((both.logs().len(), both.offline_logs().len()), (0, 1));
    for _ in 0..2 {
        let error = both.host(wanted()).await.remove(0).err().unwrap();
        assert!(matches!(error, LogError::Twice { .. }), "{error}");
    }
    env.disk.rename(&a.join("orders-0"), &away).unwrap();
    let log = both.host(wanted()).await.remove(0).unwrap();
    assert_eq!(contents(&log).into_values().collect::<Vec<_>>(), ["second"]);
    assert!(both.offline_logs().is_empty());
    drop((log, both));
    let again = open().await.unwrap();
    assert_eq!((again.logs().len(), again.offline_logs().len()), (1, 0));
}

/// What was left of a log in the one directory is not taken for a second copy at the next start.
#[tokio::test]
async fn a_log_that_one_log_directory_could_not_make_is_served_from_the_other() {
    for fault in [Fault::FailChange, Fault::FailSyncDir, Fault::NoSpace, Fault::NoDescriptor] {
        let mut moved = 0;
        for at in 0.. {
            let disk = SimDisk::new(at);
            let dirs: Vec<PathBuf> = vec!["/a".into(), "/b".into()];
            let options = || LogManagerOptions {
                reserve_bytes: Some(0),
                ..LogManagerOptions::new(dirs.clone())
            };
            let manager = LogManager::open(disk.env(), options()).await.unwrap();
            manager.create(TOPIC, OLD, 0, small()).await.unwrap();
            disk.inject(fault, "/b", at, u64::MAX);
            let first = manager.create(TOPIC, OLD, 1, small()).await;
            disk.heal();
            let log = manager.create(TOPIC, OLD, 1, small()).await.unwrap();
            moved += u32::from(first.is_err() && log.path.starts_with("/a"));
            append(&log, 1, &["kept"]);
            log.sync().unwrap();
            disk.end_process();
            drop((manager, log));
            let manager = LogManager::open(disk.env(), options()).await.unwrap();
            let offline = manager.offline_logs();
            assert!(offline.is_empty(), "{fault:?} at {at}: {:?}", offline[0].error);
            let log = manager.create(TOPIC, OLD, 1, small()).await.unwrap();
            assert_eq!(contents(&log).into_values().collect::<Vec<_>>(), ["kept"]);
            if first.is_ok() {
                break;
            }
        }
        let ends_the_use = matches!(fault, Fault::FailChange | Fault::FailSyncDir);
        assert!(!ends_the_use || moved > 0, "{fault:?}");
    }
}

/// A file of offsets from before the topic was made again was put back: the log counted as damaged.
/// Files of earlier versions do not say whose their rows are.
#[tokio::test]
async fn a_row_of_another_topic_says_nothing_and_one_without_an_id_is_taken() {
    let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
    let file = dir.join("replication-offset-checkpoint");
    let manager = open(&disk.env(), dir).await;
    let old = manager.create(TOPIC, OLD, 0, small()).await.unwrap();
    for i in 0..10 {
        append(&old, i, &["old"]);
    }
    old.sync().unwrap();
    old.set_high_watermark(10);
    manager.checkpoint().await;
    let before = disk.read(&file).unwrap();
    manager.delete(gone(TOPIC, OLD)).await;
    let new = manager.create(TOPIC, NEW, 0, small()).await.unwrap();
    append(&new, 1, &["new"]);
    new.sync().unwrap();
    new.set_high_watermark(1);
    manager.checkpoint().await;
    let after = String::from_utf8(disk.read(&file).unwrap()).unwrap();
    let id = format!(" {}", letterbox_protocol::model::encode_uuid(NEW));
    assert!(after.contains(&id), "{after}");
    drop((manager, old, new));
    for (content, high_watermark) in [
        (before, 0),
        (after.replace(&id, "").into_bytes(), 1),
        (after.replace(&id, "").replace("orders 0 1", "orders 0 2").into_bytes(), -1),
    ] {
        disk.end_process();
        disk.write_atomically(&file, &content).unwrap();
        let manager = open(&disk.env(), dir).await;
        let log = manager.get(NEW, 0);
        let found = log.map_or(-1, |log| log.high_watermark());
        assert_eq!(found, high_watermark, "{:?}", manager.offline_logs());
    }
}

/// Who it is told to may count on it as before: nothing was in it.
#[tokio::test]
async fn a_log_that_could_not_be_made_before_is_new() {
    let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
    let manager = open(&disk.env(), dir).await;
    assert!(!manager.had_lists(), "the first start");
    disk.inject(Fault::NoSpace, "", 0, u64::MAX);
    assert!(manager.create(TOPIC, NEW, 0, small()).await.is_err());
    disk.heal();
    manager.dirs().iter().for_each(|dir| dir.check_space(Some(0)));
    assert_eq!(manager.create(TOPIC, NEW, 0, small()).await.unwrap().loss(), Loss::New);
    drop(manager);
    disk.end_process();
    assert!(open(&disk.env(), dir).await.had_lists());
}

/// Where a log ended when it was closed is asked for by the next starts, but not of what came in its
/// place.
#[tokio::test]
async fn a_log_that_was_cut_or_made_again_since_it_was_closed_may_end_before() {
    for is_cut in [true, false] {
        let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
        let manager = open(&disk.env(), dir).await;
        let log = manager.create(TOPIC, OLD, 0, small()).await.unwrap();
        for i in 0..5 {
            append(&log, i, &["a"]);
        }
        manager.close().await.unwrap();
        drop((manager, log));
        disk.end_process();
        let manager = open(&disk.env(), dir).await;
        let log = manager.get(OLD, 0).unwrap();
        if is_cut {
            log.truncate_to(2).unwrap();
            log.sync().unwrap();
        } else {
            // It was another broker's meanwhile.
            manager.delete(gone(TOPIC, OLD)).await;
            let log = manager.create(TOPIC, OLD, 0, small()).await.unwrap();
            append(&log, 1, &["b"]);
            append(&log, 1, &["b"]);
            log.sync().unwrap();
        }
        drop((manager, log));
        disk.power_cut();
        let manager = open(&disk.env(), dir).await;
        let end = manager.get(OLD, 0).map(|log| log.end_offset());
        assert_eq!(end, Some(2), "{is_cut}: {:?}", manager.offline_logs());
    }
}
