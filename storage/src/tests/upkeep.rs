//! Upkeep of logs: retention, compaction, checkpoints, and what a stop waits for.

use std::sync::Barrier;
use std::sync::atomic::AtomicUsize;

use letterbox_protocol::compression::decompress_all;

use super::*;

/// Issue 7 §2.2: three rounds of the same keys, then one more key.
async fn rounds(dir: &Path, config: LogConfig) -> (Arc<LogManager>, Arc<Log>) {
    let (manager, log) = new_log(&Env::real(), dir, config).await;
    for round in 0..3i64 {
        for i in 0..30i64 {
            keyed(&log, round * 1_000 + i, &[(&format!("k{}", i % 3), Some("value"))]);
        }
        log.roll_now(round * 1_000).unwrap();
    }
    keyed(&log, 4_000, &[("one more", Some("value"))]);
    log.set_high_watermark(91);
    log.sync().unwrap();
    // Two of them do not fit into one segment.
    log.set_config(compacted());
    log.compact(&pass(5_000, 0, 1_000)).unwrap().unwrap();
    log.set_config(rounds_config());
    (manager, log)
}

fn rounds_config() -> LogConfig {
    LogConfig { segment_bytes: 1 << 20, ..compacted() }
}

#[tokio::test]
async fn what_compaction_emptied_does_not_move_the_log_start_alone() {
    let both = CleanupPolicy { delete: true, compact: true };
    let live: Vec<Offset> = vec![87, 88, 89, 90];
    for (name, cleanup_policy, retention_bytes, retention_ms, start) in [
        ("compact", CleanupPolicy { delete: false, compact: true }, -1, -1, 0),
        (
            "compact, with a size that is for delete",
            CleanupPolicy { delete: false, compact: true },
            1,
            1,
            0,
        ),
        ("both without a bound", both, -1, -1, 0),
        ("both, and exactly as large as may be", both, 0, -1, 0),
        ("both, and smaller than may be", both, 1 << 20, -1, 0),
        ("both, and a segment too much", both, 1, -1, 90),
        ("both, and nothing is old", both, -1, 100_000, 0),
        (
            "both, and the last round is old: what is empty in front of it goes too",
            both,
            -1,
            1_500,
            90,
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (manager, log) = rounds(dir.path(), rounds_config()).await;
        let sizes: Vec<_> =
            log.segments.load().iter().map(|segment| (segment.base, segment.size() > 0)).collect();
        assert!(
            sizes.contains(&(30, false)) || sizes[0] == (0, false),
            "compaction empties whole segments: {sizes:?}"
        );
        let retention_bytes = match retention_bytes {
            0 => i64::try_from(log.size()).unwrap(),
            // All but the last segment.
            1 => i64::try_from(log.active().size()).unwrap(),
            bytes => bytes,
        };
        log.set_config(LogConfig {
            cleanup_policy,
            retention_bytes,
            retention_ms,
            ..rounds_config()
        });
        log.apply_retention(5_000).unwrap();
        assert_eq!(log.start_offset(), start, "{name}");
        let found: Vec<_> = table(&log).into_iter().map(|record| record.0).collect();
        let expected: Vec<_> = live.iter().copied().filter(|offset| *offset >= start).collect();
        assert_eq!(found, expected, "{name}");
        if start == 0 {
            let at_committed = log.read_from_disk(30, usize::MAX, 91, true).unwrap();
            assert_eq!(
                batches(&bytes_of(&at_committed)).len(),
                4,
                "{name}: a group at 30 reads on"
            );
        }
        // Nothing moves at a restart, in order or not.
        let killed = tempfile::tempdir().unwrap();
        manager.checkpoint().await;
        copy_dir(dir.path(), killed.path());
        manager.close().await.unwrap();
        drop((manager, log));
        for path in [dir.path(), killed.path()] {
            let manager = open(&Env::real(), path).await;
            let log = manager.get(ID, 0).unwrap();
            assert_eq!((log.start_offset(), log.end_offset()), (start, 91), "{name}");
            assert_eq!(
                table(&log).into_iter().map(|record| record.0).collect::<Vec<_>>(),
                expected,
                "{name}"
            );
        }
    }
}

#[tokio::test]
async fn what_delete_records_left_behind_goes_whether_empty_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let (_manager, log) = rounds(dir.path(), rounds_config()).await;
    log.delete_records_before(75).unwrap();
    log.apply_retention(5_000).unwrap();
    assert_eq!(
        log.segments.load().iter().map(|segment| segment.base).collect::<Vec<_>>(),
        [60, 90]
    );
    assert_eq!(log.start_offset(), 75);
}

#[tokio::test]
async fn offsets_of_an_empty_active_segment_stay_within_its_format() {
    let dir = tempfile::tempdir().unwrap();
    let (manager, log) = new_log(&Env::real(), dir.path(), small()).await;
    let far = i64::from(i32::MAX) + 10;
    let options = AppendOptions { leader_epoch: 1, now_ms: 0, origin: COPIED };
    let mut builder = BatchBuilder::new(1).at(far, 1);
    builder.push(1, None, Some(b"after a gap that compaction left"), &[]);
    log.append(builder.build(), &options).unwrap();
    assert_eq!(
        log.segments.load().iter().map(|segment| segment.base).collect::<Vec<_>>(),
        [0, far]
    );
    log.sync().unwrap();
    manager.close().await.unwrap();
    drop((manager, log));
    let log = open(&Env::real(), dir.path()).await.get(ID, 0).unwrap();
    assert_eq!((log.start_offset(), log.end_offset()), (0, far + 1));
    assert_eq!(contents(&log).into_keys().collect::<Vec<_>>(), [far]);
}

#[tokio::test]
async fn a_batch_that_comes_while_retention_decides_is_kept() {
    for round in 0..1_000 {
        let dir = Path::new(DIR);
        let env = SimDisk::new(1).env();
        let (_manager, log) =
            new_log(&env, dir, LogConfig { retention_ms: 1_000, ..small() }).await;
        append(&log, 0, &["old"]);
        // As without a wait for replicas: what is appended is committed at once.
        log.set_high_watermark(1);
        let both = Arc::new(Barrier::new(2));
        let (appender, barrier) = (log.clone(), both.clone());
        let appended = env.blocking(move || {
            barrier.wait();
            let info = append(&appender, 100_000, &["new"]);
            appender.set_high_watermark(info.last_offset + 1);
        });
        let (kept, barrier) = (log.clone(), both);
        let retained = env.blocking(move || {
            barrier.wait();
            kept.apply_retention(100_000).unwrap();
        });
        futures::join!(appended, retained);
        assert_eq!(
            contents(&log).get(&1).map(String::as_str),
            Some("new"),
            "round {round}: start {}",
            log.start_offset()
        );
        // Nobody syncs here, and what waits for a sync holds its files.
        log.dir().take_dirty();
    }
}

#[tokio::test]
async fn crash_between_any_two_steps_of_a_cut_leaves_no_hole() {
    for (name, to) in [("a cut inside", 7), ("a cut at a segment's start", 30), ("all of it", -1)] {
        for at in 0.. {
            let dir = Path::new(DIR);
            let disk = SimDisk::new(1);
            let (manager, log) =
                new_log(&disk.env(), dir, LogConfig { segment_bytes: 500, ..small() }).await;
            for i in 0..60i64 {
                append(&log, i, &["a value"]);
            }
            log.checkpoint().unwrap();
            log.dir.partitions.set_recovery_points([&*log]).unwrap();
            assert!(log.segments.load().len() > 6);
            let before = contents(&log);
            disk.inject(Fault::FailChange, "", at, u64::MAX);
            let done =
                if to < 0 { log.truncate_fully_and_start_at(100) } else { log.truncate_to(to) }
                    .is_ok();
            log.dir().take_dirty();
            drop((manager, log));
            disk.heal();
            let manager = open(&disk.env(), dir).await;
            let log = manager.get(ID, 0).unwrap_or_else(|| {
                panic!("{name} after {at} changes: {:?}", manager.offline_logs())
            });
            let left = contents(&log);
            let expected = if log.start_offset() == 100 {
                before.range(100..)
            } else {
                before.range(..log.end_offset())
            };
            assert!(left.iter().eq(expected), "{name} after {at} changes: {:?}", left.keys());
            assert_eq!(append(&log, 99, &["next"]).base_offset, log.end_offset() - 1);
            log.dir().take_dirty();
            if done {
                assert!(at > 20, "the faults have to have met something: {at}");
                break;
            }
        }
    }
}

fn dirty(log: &Arc<Log>) {
    for i in 0..60i64 {
        keyed(log, i, &[(&format!("k{}", i % 3), Some("value"))]);
    }
    log.set_high_watermark(60);
    log.sync().unwrap();
}

#[tokio::test]
async fn compaction_ends_at_the_next_batch_when_the_broker_stops_or_the_log_goes() {
    for deleted in [false, true] {
        let dir = Path::new(DIR);
        let disk = SimDisk::new(1);
        let (_manager, log) = new_log(&disk.env(), dir, compacted()).await;
        dirty(&log);
        let before = table(&log);
        let (pass, stopped) = (pass(1, 0, 1_000), log.clone());
        let stop = pass.stop.clone();
        // In the middle: keys are known, and the first segment is about to be written.
        disk.on_make(move |path| {
            if path.to_string_lossy().ends_with(".cleaned") {
                if deleted { stopped.set_gone() } else { stop.cancel() }
            }
        });
        assert!(matches!(log.compact(&pass), Err(LogError::Interrupted)));
        assert_eq!(table(&log), before);
        let left = disk.list(&log.path).unwrap();
        // What a log that is gone has left goes with its directory.
        assert!(deleted || !left.iter().any(|entry| entry.name.ends_with(".cleaned")), "{left:?}");
        // Before anything is read.
        let read = disk.stats().bytes_read;
        assert!(matches!(log.compact(&pass), Err(LogError::Interrupted)));
        assert!(disk.stats().bytes_read - read < 20_000);
    }
}

#[tokio::test]
async fn a_change_of_the_cleaners_backoff_acts_at_once() {
    let dir = Path::new(DIR);
    let disk = SimDisk::new(1);
    let options =
        LogManagerOptions { cleaner_backoff: Duration::from_secs(86_400), ..options(dir) };
    let manager = LogManager::open(disk.env(), options).await.unwrap();
    dirty(&manager.create(TOPIC, ID, 0, compacted()).await.unwrap());
    let compacted = Arc::new(tokio::sync::Notify::new());
    let hears = compacted.clone();
    disk.on_make(move |path| {
        if path.to_string_lossy().ends_with(".cleaned") {
            hears.notify_one();
        }
    });
    let stop = CancellationToken::new();
    let upkeep = tokio::spawn(manager.clone().run_upkeep(stop.clone()));
    tokio::task::yield_now().await;
    manager.set_cleaner_backoff(Duration::from_millis(10));
    assert!(
        tokio::time::timeout(Duration::from_secs(60), compacted.notified()).await.is_ok(),
        "it waits for the old time"
    );
    stop.cancel();
    upkeep.await.unwrap();
    manager.close().await.unwrap();
}

/// Issue 7 §1.11: a compaction that takes long is in nobody's way.
#[tokio::test]
async fn nothing_waits_for_a_compaction() {
    let dir = Path::new(DIR);
    let disk = SimDisk::new(1);
    let soon = Duration::from_millis(10);
    let options =
        LogManagerOptions { cleaner_backoff: soon, recovery_point_interval: soon, ..options(dir) };
    let manager = LogManager::open(disk.env(), options).await.unwrap();
    let log = manager.create(TOPIC, ID, 0, compacted()).await.unwrap();
    let other = manager.create("other", Uuid::from_u128(1), 0, small()).await.unwrap();
    dirty(&log);
    append(&other, 1, &["a"]);
    // So that the recovery points' own loop does not wait for the log that is held in its
    // compaction.
    log.checkpoint().unwrap();
    let before = table(&log);
    let (compacting, (checkpointed, release)) = (
        Arc::new(tokio::sync::Notify::new()),
        (Arc::new(tokio::sync::Notify::new()), Arc::new(Barrier::new(2))),
    );
    let (hears, written, holds) = (compacting.clone(), checkpointed.clone(), release.clone());
    disk.on_make(move |path| {
        let name = path.to_string_lossy();
        if name.ends_with(".log.cleaned") {
            hears.notify_one();
            holds.wait();
        } else if name.ends_with("recovery-point-offset-checkpoint.tmp") {
            written.notify_one();
        }
    });
    let stop = CancellationToken::new();
    let upkeep = tokio::spawn(manager.clone().run_upkeep(stop.clone()));
    let minute = Duration::from_secs(60);
    tokio::time::timeout(minute, compacting.notified()).await.unwrap();
    // It is inside now, and stays there.
    let meanwhile = async {
        manager.delete(vec![("other".into(), Uuid::from_u128(1), 0)]).await;
        let again = manager.create("other", Uuid::from_u128(2), 0, small()).await.unwrap();
        append(&again, 1, &["b"]);
        while again.recovery_point() != 1 {
            checkpointed.notified().await;
        }
    };
    let meanwhile = tokio::time::timeout(minute, meanwhile).await;
    stop.cancel();
    // In any case: a thread that stays inside would keep the test from ending.
    Env::real().blocking(move || release.wait()).await;
    assert!(meanwhile.is_ok(), "a deletion or a checkpoint waits for the compaction");
    tokio::time::timeout(minute, upkeep).await.unwrap().unwrap();
    assert_eq!(table(&log), before, "it has ended early");
    manager.close().await.unwrap();
}

/// Issue 7 §1.11: what the directory keeps of its logs is written once for all of them.
#[tokio::test]
async fn a_checkpoint_pass_is_linear_in_the_number_of_logs() {
    let dir = Path::new(DIR);
    let disk = SimDisk::new(1);
    let options =
        LogManagerOptions { recovery_point_interval: Duration::from_millis(10), ..options(dir) };
    let manager = LogManager::open(disk.env(), options).await.unwrap();
    let logs = 100;
    for partition in 0..logs {
        append(&manager.create(TOPIC, ID, partition, small()).await.unwrap(), 1, &["a"]);
    }
    let (writes, written) = (Arc::new(AtomicU64::new(0)), Arc::new(tokio::sync::Notify::new()));
    let (counted, hears) = (writes.clone(), written.clone());
    disk.on_make(move |path| {
        if path.to_string_lossy().ends_with("recovery-point-offset-checkpoint.tmp") {
            counted.fetch_add(1, Ordering::Relaxed);
            hears.notify_one();
        }
    });
    let stop = CancellationToken::new();
    let upkeep = tokio::spawn(manager.clone().run_upkeep(stop.clone()));
    tokio::time::timeout(Duration::from_secs(60), written.notified()).await.unwrap();
    stop.cancel();
    upkeep.await.unwrap();
    assert!(
        manager.logs().iter().all(|log| log.recovery_point() == 1),
        "every log was synced before the first write"
    );
    assert!(writes.load(Ordering::Relaxed) <= 2, "{writes:?}");
}

/// Issue 7, small: every untouched log was synced at a stop.
#[tokio::test]
async fn a_stop_touches_no_log_that_nothing_was_appended_to() {
    let dir = Path::new(DIR);
    let disk = SimDisk::new(1);
    let manager = open(&disk.env(), dir).await;
    let untouched = 40;
    for partition in 0..untouched {
        let log = manager.create(TOPIC, ID, partition, small()).await.unwrap();
        if partition % 2 == 0 {
            append(&log, 1, &["a"]);
            log.sync().unwrap();
        }
    }
    manager.close().await.unwrap();
    drop(manager);
    let manager = open(&disk.env(), dir).await;
    assert!(manager.was_clean());
    let before = disk.stats().operations;
    manager.close().await.unwrap();
    let changes = disk.stats().operations - before;
    assert!(changes < 30, "{changes} for the checkpoints and the marker");
    drop(manager);
    let manager = open(&disk.env(), dir).await;
    assert!(
        manager.was_clean()
            && manager
                .logs()
                .iter()
                .all(|log| log.end_offset() == i64::from((log.partition() + 1) % 2))
    );
}

fn file_len(log: &Log) -> u64 {
    Env::real().disk.open(&log.active().path(".log"), OpenMode::Read).unwrap().len().unwrap()
}

/// Issue 7, small: 2,000 idle partitions with 50 records each held 192 MB.
#[tokio::test]
async fn an_idle_log_gives_its_reserve_back() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let (manager, log) =
        new_log(&env, dir.path(), LogConfig { segment_bytes: 1 << 20, ..small() }).await;
    for i in 0..50 {
        append(&log, i, &["tiny"]);
        log.sync().unwrap();
    }
    let reserved = file_len(&log);
    assert!(reserved >= 64 << 10);
    log.close_idle();
    assert_eq!(file_len(&log), reserved, "it was in use a moment ago");
    append(&log, 50, &["tiny"]);
    log.close_idle();
    log.sync().unwrap();
    log.close_idle();
    assert!(file_len(&log) > log.size(), "something was appended since the last look");
    log.close_idle();
    assert_eq!(file_len(&log), log.size());
    append(&log, 51, &["tiny"]);
    log.sync().unwrap();
    assert!(file_len(&log) > log.size(), "a log that is used again has one again");
    let killed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), killed.path());
    drop((manager, log));
    assert_eq!(contents(&open(&env, killed.path()).await.get(ID, 0).unwrap()).len(), 52);
}

/// Issue 7 §2.14: a reserve that was not used is no lost data.
#[tokio::test]
async fn only_bytes_of_batches_count_as_cut() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Env::real().disk;
    let (manager, log) =
        new_log(&Env::real(), dir.path(), LogConfig { segment_bytes: 1 << 20, ..small() }).await;
    append(&log, 1, &["a"]);
    log.sync().unwrap();
    let (size, path) = (log.size(), log.path.clone());
    let file = log.active().path(".log");
    drop((manager, log));
    let whole = disk.read(&file).unwrap();
    let torn = batch(2, &["b"]);
    let zeros = [&whole[..usize::try_from(size).unwrap()], &[0; 5_000]].concat();
    let mut unfinished = whole.clone();
    unfinished[usize::try_from(size).unwrap()..][..35].copy_from_slice(&torn[..35]);
    for (name, bytes, cut) in [
        ("the reserve", &whole, 0),
        ("a reserve of an earlier version, or a longer file", &zeros, 0),
        ("a torn batch", &unfinished, 35),
    ] {
        disk.open(&file, OpenMode::Truncate)
            .unwrap()
            .write_at(&[io::IoSlice::new(bytes)], 0)
            .unwrap();
        let found = recover(&disk, &path, 0, 0, 0, None, 0).unwrap();
        assert_eq!(
            (found.end_offset(), found.bytes_cut, disk.read(&file).unwrap().len() as u64),
            (1, cut, size),
            "{name}"
        );
    }
}

/// Issue 7 §2.12: Apache Kafka's tools go through the files of a running broker and stop without an
/// error at the reserve. As its `FileLogInputStream.nextBatch` decides.
#[tokio::test]
async fn the_reserve_reads_as_the_unfinished_end_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (_manager, log) =
        new_log(&Env::real(), dir.path(), LogConfig { segment_bytes: 1 << 20, ..small() }).await;
    for i in 0..20 {
        append(&log, i, &["a value"]);
        log.sync().unwrap();
    }
    let bytes = Env::real().disk.read(&log.active().path(".log")).unwrap();
    assert!(bytes.len() as u64 > log.size());
    let (mut at, mut found) = (0, 0);
    while at + 17 < bytes.len() {
        let size = i32::from_be_bytes(bytes[at + 8..at + 12].try_into().unwrap());
        assert!(size >= 14, "CorruptRecordException at {at}");
        if at as u64 + 12 + u64::from(size.unsigned_abs()) > bytes.len() as u64 {
            break;
        }
        (at, found) = (at + 12 + size as usize, found + 1);
    }
    assert_eq!((at as u64, found), (log.size(), 20));
}

#[tokio::test]
async fn a_log_that_cannot_be_checkpointed_keeps_no_other_from_it() {
    let dir = Path::new(DIR);
    let disk = SimDisk::new(1);
    let options =
        LogManagerOptions { recovery_point_interval: Duration::from_millis(10), ..options(dir) };
    let manager = LogManager::open(disk.env(), options).await.unwrap();
    let broken = manager.create("broken", Uuid::from_u128(1), 0, small()).await.unwrap();
    let other = manager.create("other", Uuid::from_u128(2), 0, small()).await.unwrap();
    append(&broken, 1, &["a"]);
    disk.remove_dir_all(&broken.path).unwrap();
    append(&other, 1, &["b"]);
    let written = Arc::new(tokio::sync::Notify::new());
    let hears = written.clone();
    disk.on_make(move |path| {
        if path.to_string_lossy().ends_with("recovery-point-offset-checkpoint.tmp") {
            hears.notify_one();
        }
    });
    let stop = CancellationToken::new();
    let upkeep = tokio::spawn(manager.clone().run_upkeep(stop.clone()));
    let in_time = tokio::time::timeout(Duration::from_secs(20), written.notified()).await;
    assert!(in_time.is_ok() && broken.is_offline(), "the log in front of it is broken");
    assert_eq!((other.recovery_point(), broken.recovery_point()), (1, 0));
    stop.cancel();
    upkeep.await.unwrap();
}

/// With `flush.on.ack=false` nothing is queued for a sync. When the topic begins to wait for the
/// disk, somebody may wait for a record that was appended a moment earlier, and no other append may
/// follow.
#[tokio::test]
async fn what_was_appended_before_a_topic_waits_for_the_disk_is_synced_without_another_append() {
    let dir = tempfile::tempdir().unwrap();
    let (_manager, log) =
        new_log(&Env::real(), dir.path(), LogConfig { durable: false, ..small() }).await;
    append(&log, 1, &["a"]);
    // The first one waits until the disk says that what is not synced counts from now on.
    assert_eq!((log.dir().take_dirty().len(), log.durable_end()), (1, 0));
    log.sync().unwrap();
    append(&log, 1, &["b"]);
    assert_eq!((log.dir().take_dirty().len(), log.durable_end()), (0, 2));
    log.set_config(small());
    assert_eq!(log.dir().take_dirty().len(), 1);
    assert_eq!(log.durable_end(), 1);
    log.sync().unwrap();
    assert_eq!(log.durable_end(), 2);
    log.set_config(small());
    assert!(log.dir().take_dirty().is_empty(), "there is nothing to sync");
}

/// What counted before the topic began to wait for the disk may not be there after a power cut. The
/// disk remembers it until everything was synced since and the log is the cluster's again.
#[tokio::test]
async fn a_log_that_counted_what_was_not_synced_says_so_after_a_power_cut() {
    let disk = SimDisk::new(1);
    let open = || async {
        let manager = LogManager::open(disk.env(), options(Path::new(DIR))).await.unwrap();
        let log = manager.create("t", Uuid::from_u128(1), 0, small()).await.unwrap();
        (manager, log)
    };
    let not_durable = || LogConfig { durable: false, ..small() };
    let (manager, log) = open().await;
    append(&log, 1, &["a"]);
    log.sync().unwrap();
    drop((log, manager));
    disk.power_cut();
    let (manager, log) = open().await;
    assert_eq!(log.loss(), Loss::None, "all that counted was on the device");
    log.set_config(not_durable());
    append(&log, 1, &["b"]);
    assert_eq!(log.durable_end(), 1, "nothing tells the next start");
    log.sync().unwrap();
    append(&log, 1, &["c"]);
    assert_eq!(log.durable_end(), 3);
    // And the topic waits for the disk, which has not come to it.
    log.set_config(small());
    drop((log, manager));
    disk.power_cut();
    // Also when the start after it did not come to its end.
    for _ in 0..2 {
        let manager = LogManager::open(disk.env(), options(Path::new(DIR))).await.unwrap();
        let log = manager.get(Uuid::from_u128(1), 0).unwrap();
        assert_eq!(log.loss(), Loss::End);
        log.sync().unwrap();
        drop((log, manager));
        disk.power_cut();
    }
    let (manager, log) = open().await;
    assert_eq!(log.loss(), Loss::End);
    append(&log, 1, &["d"]);
    log.sync().unwrap();
    disk.env().disk.sync_dir(&log.path).unwrap();
    drop((log, manager));
    disk.power_cut();
    assert_eq!(open().await.1.loss(), Loss::None, "everything was synced since");
}

/// Until it was copied anew or leads, however often the broker starts.
#[tokio::test]
async fn a_log_with_an_accepted_loss_says_so() {
    let disk = SimDisk::new(1);
    let (id, path) = (Uuid::from_u128(1), Path::new(DIR).join("t-0"));
    let open = || async {
        let manager = LogManager::open(disk.env(), options(Path::new(DIR))).await.unwrap();
        let log = manager.get(id, 0);
        (manager, log)
    };
    let (manager, _) = open().await;
    let log = manager.create("t", id, 0, small()).await.unwrap();
    append(&log, 1, &["a"]);
    log.checkpoint().unwrap();
    drop((log, manager));
    disk.env().disk.remove_dir_all(&path).unwrap();
    let (manager, log) = open().await;
    assert!(log.is_none());
    assert_eq!(manager.not_open(), [("t".into(), Some(id), 0)]);
    drop(manager);
    disk.env().disk.create_dir_all(&path).unwrap();
    let accept = path.join("accept-data-loss");
    drop(disk.env().disk.open(&accept, letterbox_env::OpenMode::Create).unwrap());
    for _ in 0..2 {
        let (manager, log) = open().await;
        let log = log.unwrap();
        assert!(log.loss() == Loss::Records && log.lacks_records());
        log.sync().unwrap();
        drop((log, manager));
        disk.power_cut();
    }
    let (manager, log) = open().await;
    log.unwrap().lacks_nothing_more().unwrap();
    drop(manager);
    disk.power_cut();
    let (_manager, log) = open().await;
    assert_eq!(log.unwrap().loss(), Loss::None);
}

/// Followers may have what it lacks at its front.
#[tokio::test]
async fn a_log_that_leads_with_an_accepted_loss_tells_no_start_until_it_moves() {
    tell_no_start(false).await;
}

/// It is not what the note on the disk speaks of any more.
#[tokio::test]
async fn a_log_that_led_with_an_accepted_loss_and_is_emptied_tells_its_start() {
    tell_no_start(true).await;
}

async fn tell_no_start(is_emptied: bool) {
    let disk = SimDisk::new(1);
    let (id, path) = (Uuid::from_u128(1), Path::new(DIR).join("t-0"));
    let open = || async {
        let manager = LogManager::open(disk.env(), options(Path::new(DIR))).await.unwrap();
        (manager.get(id, 0), manager)
    };
    let (_, manager) = open().await;
    let log = manager.create("t", id, 0, small()).await.unwrap();
    while log.segments.load().len() < 3 {
        append(&log, 1, &["a", "b", "c"]);
    }
    log.checkpoint().unwrap();
    let (start, end) = (log.segments.load()[1].base, log.end_offset());
    assert_eq!(log.start_for_followers(), 0);
    drop((log, manager));
    let of_first = |name: &str| name.starts_with("00000000000000000000.");
    for entry in disk.list(&path).unwrap().iter().filter(|entry| of_first(&entry.name)) {
        disk.remove_file(&path.join(&entry.name)).unwrap();
    }
    drop(disk.open(&path.join("accept-data-loss"), letterbox_env::OpenMode::Create).unwrap());
    let (log, manager) = open().await;
    let log = log.unwrap();
    assert_eq!((log.start_offset(), log.start_for_followers()), (start, -1));
    log.goes_on_with_loss(|_| ()).unwrap();
    assert!(log.lacks_records(), "another one leads by now");
    disk.set_free(0);
    assert!(log.goes_on_with_loss(|settle| settle()).unwrap_err().fault().is_state());
    assert!(log.lacks_records() && log.may_lack_records(), "there was no room to note it");
    disk.set_free(1 << 30);
    log.goes_on_with_loss(|settle| settle()).unwrap();
    assert!(!log.lacks_records() && !log.may_lack_records());
    drop((log, manager));
    disk.power_cut();
    let (log, manager) = open().await;
    let log = log.unwrap();
    assert_eq!(log.loss(), Loss::None);
    assert_eq!((log.start_offset(), log.start_for_followers()), (start, -1));
    log.set_high_watermark(end);
    if !is_emptied {
        log.delete_records_before(start).unwrap();
    }
    let told = if is_emptied { -1 } else { start };
    assert_eq!(log.start_for_followers(), told, "a person says that it is not wanted");
    let kept = if is_emptied {
        log.truncate_fully_and_start_at(0).unwrap();
        0
    } else {
        manager.keep_log_starts(vec![log.clone()]).await.unwrap();
        start
    };
    assert_eq!(log.start_for_followers(), kept);
    drop((log, manager));
    disk.power_cut();
    let (log, _manager) = open().await;
    assert_eq!(log.unwrap().start_for_followers(), kept);
}

/// Files of logs that nobody uses are closed when there is no descriptor for another, not only
/// every minute, and also where their records are not on the device.
#[tokio::test(start_paused = true)]
async fn a_lack_of_descriptors_closes_the_files_of_logs_that_nobody_uses() {
    let disk = SimDisk::new(1);
    let manager = LogManager::open(disk.env(), options(Path::new(DIR))).await.unwrap();
    let stop = CancellationToken::new();
    let upkeep = tokio::spawn(manager.clone().run_upkeep(stop.clone()));
    for partition in 0..20 {
        let config = LogConfig { durable: false, ..small() };
        let log = manager.create("t", Uuid::from_u128(1), partition, config).await.unwrap();
        append(&log, manager.env.clock.wall_ms(), &["a"]);
    }
    let before = disk.open_files();
    disk.set_descriptors_left(Some(0));
    let began = tokio::time::Instant::now();
    let mut is_made = false;
    while !is_made || disk.open_files() >= before / 2 {
        is_made = is_made || manager.create("u", Uuid::from_u128(2), 0, small()).await.is_ok();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "still {} of {before}, made: {is_made}",
            disk.open_files()
        );
    }
    stop.cancel();
    upkeep.await.unwrap();
}

/// Records without a timestamp were kept for ever, and what is behind them too; Apache Kafka takes
/// the time of the file's last write.
#[tokio::test]
async fn records_without_a_timestamp_are_as_old_as_their_file() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let (manager, log) = new_log(&env, dir.path(), small()).await;
    let now = env.clock.wall_ms();
    for timestamp in [-1, -5, i64::MIN / 2] {
        for _ in 0..40 {
            log.append(batch(timestamp, &["a"]), &client(now)).unwrap();
        }
    }
    log.set_high_watermark(log.end_offset());
    manager.close().await.unwrap();
    drop((manager, log));
    let manager = open(&env, dir.path()).await;
    let log = manager.get(ID, 0).unwrap();
    log.append(batch(-1, &["new"]), &client(now + 50_000)).unwrap();
    log.set_high_watermark(log.end_offset());
    log.set_config(LogConfig { retention_ms: 60_000, ..small() });
    let kept = |at| {
        log.apply_retention(at).unwrap();
        log.start_offset()
    };
    assert_eq!(kept(now + 30_000), 0);
    let active = log.active().base;
    assert!(active > 0);
    assert_eq!(kept(now + 100_000), active);
    assert_eq!(kept(now + 200_000), log.end_offset());
}

/// KIP-734: nothing was found where the record that had the largest timestamp was deleted.
#[tokio::test]
async fn the_largest_timestamp_is_that_of_a_record_that_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let (_manager, log) = new_log(&Env::real(), dir.path(), small()).await;
    let mut times = vec![500, 0, 100, 90, 100];
    times.extend((0..60).map(|i| 40 + i % 7));
    for time in &times {
        append(&log, *time, &["a"]);
    }
    log.set_high_watermark(log.end_offset());
    for start in 0..=times.len() {
        log.delete_records_before(start as Offset).unwrap();
        let left = times.iter().enumerate().skip(start);
        let expected =
            left.rev().max_by_key(|(_, time)| **time).map(|(at, time)| (*time, at as Offset));
        let found = log.max_timestamp().unwrap();
        assert_eq!(found.map(|found| (found.timestamp, found.offset)), expected, "from {start}");
    }
}

/// A segment that got no smaller was thrown away, and its superseded records with it: a key came
/// back as soon as its tombstone was gone.
#[tokio::test]
async fn a_deleted_key_stays_deleted_whatever_size_its_segment_gets() {
    let codecs = [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4];
    for codec in codecs.into_iter().chain([Compression::Zstd]) {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig {
            segment_bytes: 1 << 20,
            min_cleanable_dirty_permille: 0,
            delete_retention_ms: 1_000_000,
            ..compacted()
        };
        let (_manager, log) = new_log(&Env::real(), dir.path(), config.clone()).await;
        let put = |records: &[(&str, Option<&str>)]| {
            let mut builder = BatchBuilder::new(1);
            for (key, value) in records {
                let value = value.map(str::as_bytes);
                builder.push(1, Some(key.as_bytes()), value, &[(b"h", Some(b"x")), (b"i", None)]);
            }
            let packed = compress(codec, None, builder.records()).unwrap();
            log.append(builder.build_with(codec, &packed), &client(1)).unwrap();
        };
        let seal = || {
            log.roll_now(1).unwrap();
            log.set_high_watermark(log.end_offset());
            log.sync().unwrap();
        };
        let many: Vec<String> = (0..400).map(|i| format!("unique{i}")).collect();
        let mut first = vec![("k", Some("v1")), ("x", None)];
        first.extend(many.iter().map(|key| (key.as_str(), Some(""))));
        put(&first);
        seal();
        let size = log.size();
        put(&[("k", None), ("z", Some("long"))]);
        seal();
        let upper = log.compact(&pass(100, 0, 1_000)).unwrap().unwrap();
        let is_there = |key: &str| records(&log).iter().any(|record| record.0 == key);
        assert!(!records(&log).contains(&("k".into(), Some("v1".into()))), "{codec:?}");
        assert!(codec != Compression::None || log.size() > size, "the case is not met");
        put(&[("z", Some("short"))]);
        seal();
        log.compact(&pass(2_000_000, upper, 1_000)).unwrap().unwrap();
        assert!(!is_there("k") && !is_there("x"), "{codec:?}");
        assert!(many.iter().all(|key| is_there(key)), "{codec:?}");
    }
}

/// Keys and values of the whole log.
fn records(log: &Log) -> Vec<(String, Option<String>)> {
    let bytes = bytes_of(&log.read_from_disk(0, usize::MAX, Offset::MAX, true).unwrap());
    let (mut found, mut rest) = (Vec::new(), &bytes[..]);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    while !rest.is_empty() {
        let (batch, after) = Batch::split(rest).unwrap();
        batch.check_crc().unwrap();
        let codec = batch.header.compression().unwrap();
        let unpacked = decompress_all(codec, batch.records_bytes(), 1 << 20).unwrap();
        for record in RecordIter::new(&unpacked, batch.header.records_count).map(Result::unwrap) {
            assert_eq!(record.headers.len(), 2);
            found.push((text(record.key.unwrap()), record.value.map(text)));
        }
        rest = after;
    }
    found
}

/// Some 40 kB in one sealed segment, of which half of the batches go.
fn half_dirty(log: &Arc<Log>) {
    let value = "v".repeat(200);
    for i in 0..150i64 {
        let (once, often) = (format!("once {i}"), format!("often {}", i % 5));
        keyed(log, 1_000 + i, &[(if i % 2 == 0 { &once } else { &often }, Some(&value))]);
    }
    log.roll_now(2_000).unwrap();
    log.set_high_watermark(150);
    log.checkpoint().unwrap();
}

/// It went through each segment that it had written to make its indexes.
#[tokio::test]
async fn compaction_reads_no_records_while_syncs_wait_and_makes_the_same_indexes() {
    let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
    let (manager, log) = new_log(&disk.env(), dir, rounds_config()).await;
    half_dirty(&log);
    let (watched, reads) = (log.clone(), Arc::new(AtomicUsize::new(0)));
    let held = reads.clone();
    disk.on_read(move |path| {
        if path.extension().is_some_and(|suffix| suffix == "log") && watched.is_at_work() {
            held.fetch_add(1, Ordering::Relaxed);
        }
    });
    log.compact(&pass(5_000, 0, 1_000)).unwrap().unwrap();
    assert_eq!(reads.load(Ordering::Relaxed), 0);
    disk.on_read(|_| {});
    let (segment, before) = (log.segments.load()[0].clone(), table(&log));
    assert_eq!(before.len(), 80);
    let indexes = || [".index", ".timeindex"].map(|it| disk.read(&segment.path(it)).unwrap());
    let written = indexes();
    assert!(written[0].len() >= 3 * 8 && written[1].len() >= 3 * 12, "{written:?}");
    manager.close().await.unwrap();
    let paths = [".index", ".timeindex"].map(|suffix| segment.path(suffix));
    drop((manager, log));
    paths.iter().for_each(|path| disk.remove_file(path).unwrap());
    let log = open(&disk.env(), dir).await.get(ID, 0).unwrap();
    assert_eq!(table(&log), before);
    append(&log, 9_000, &["a"]);
    log.checkpoint().unwrap();
    assert_eq!(indexes(), written, "as they are made from the segment");
}

/// It used up what is kept free of records.
#[tokio::test]
async fn compaction_takes_no_room_that_records_do_not_get_unless_these_are_refused() {
    let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
    let (_manager, log) = new_log(&disk.env(), dir, rounds_config()).await;
    half_dirty(&log);
    let compact = |free: u64, reserve: u64| {
        disk.set_free(free);
        log.dir().check_space(Some(reserve));
        log.compact(&pass(5_000, 0, 1_000))
    };
    let files = || disk.list(&log.path).unwrap().len();
    let before = files();
    // The first one would leave what is kept free of records, and the next record would not fit.
    for (free, reserve) in [(60 << 10, 20 << 10), (30 << 10, 50 << 10)] {
        let refused = compact(free, reserve).unwrap_err();
        assert!(refused.fault().is_state(), "{refused:?}");
        assert_eq!(files(), before, "what it had written is gone");
        assert!(log.dir().is_read_only() == (free < reserve));
        log.dir().check_space(Some(0));
        append(&log, 6_000, &["a"]);
    }
    // There is so much to spare that it is worth it, and records are refused anyway. What an attempt
    // takes that finds no room for its last file is counted as free again.
    let done = (40u64 << 10..80 << 10).step_by(32).find(|free| {
        let done = compact(*free, 50 << 10);
        assert!(done.is_ok() || log.dir().counted_free() == (*free).cast_signed(), "{free}");
        done.is_ok()
    });
    assert!(done.is_some_and(|free| free > 40 << 10), "{done:?}");
    assert!(log.segments.load()[0].size() < 30 << 10);
}

/// Issue 7 §1.14: what is remembered of producers has a bound.
#[tokio::test]
async fn producers_that_are_idle_make_room_when_their_retries_have_ended() {
    const MINUTE: i64 = 60_000;
    let dir = tempfile::tempdir().unwrap();
    let options = LogManagerOptions { producers_memory_bytes: 10 * 352, ..options(dir.path()) };
    let manager = LogManager::open(Env::real(), options).await.unwrap();
    let log = manager.create(TOPIC, ID, 0, small()).await.unwrap();
    let send = |id: i64| {
        let mut builder = BatchBuilder::new(1_000).producer(id, 0, 0);
        builder.push(1_000, None, Some(b"v"), &[]);
        log.append(builder.build(), &client(1_000)).map_err(|error| error.code().code())
    };
    let stop = CancellationToken::new();
    for (minutes, known, taken) in [(0, 5, 5), (14, 5, 0), (15, 4, 0)] {
        let accepted = (0..100).filter(|id| send(100 * (minutes + 1) + id).is_ok()).count();
        assert_eq!(accepted, taken, "after {minutes} minutes");
        assert_eq!(send(99).map(|_| ()), Err(19));
        manager.expire_producers(minutes * MINUTE, &stop).await;
        assert_eq!(log.producers_count(), known, "after {minutes} minutes");
    }
    assert_eq!(send(99).map(|info| info.duplicate), Ok(false));
    assert_eq!((manager.producers_memory().0, manager.producers_memory().1), (5, 5 * 352));
    assert!(manager.producers_memory().2 > 200);
    manager.close().await.unwrap();
}

/// A leader waits for a replica that is in sync: what comes from there was sent just now, whatever
/// the timestamps of its records say.
#[tokio::test]
async fn producers_that_may_still_wait_are_known_to_a_replica_in_sync_before_all_others() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogManagerOptions { producers_memory_bytes: 10 * 352, ..options(dir.path()) };
    let manager = LogManager::open(Env::real(), options).await.unwrap();
    let log = manager.create(TOPIC, ID, 0, small()).await.unwrap();
    let now = 1_700_000_000_000;
    for id in 0..20 {
        let committed = if id < 10 { id } else { Offset::MAX };
        let mut builder = BatchBuilder::new(1_000).producer(id, 0, 0).at(id, 0);
        builder.push(1_000, None, Some(b"v"), &[]);
        let origin = Origin::Replication { committed };
        log.append(builder.build(), &AppendOptions { origin, ..client(now) }).unwrap();
    }
    manager.expire_producers(now, &CancellationToken::new()).await;
    let known: Vec<_> = log.producers().iter().map(|producer| producer.id).collect();
    assert_eq!(known, (0..10).collect::<Vec<_>>());
}

/// Each start wrote the checkpoints of all logs that were rolled, some eight syncs each.
#[tokio::test]
async fn what_is_as_it_was_at_a_stop_in_order_is_not_written_again() {
    for (name, is_checkpointed, removed) in [
        ("as it was", true, None),
        ("with batches past the recovery point", false, None),
        ("without an index", true, Some(".timeindex")),
    ] {
        let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
        let (manager, log) = new_log(&disk.env(), dir, small()).await;
        for at in 0..40 {
            append(&log, at, &["a"]);
        }
        log.roll_now(40).unwrap();
        if is_checkpointed {
            log.checkpoint().unwrap();
        }
        let segments = log.segments.load_full();
        let (rolled, before) = (segments[segments.len() - 2].clone(), contents(&log));
        manager.close().await.unwrap();
        drop((manager, log, segments));
        if let Some(suffix) = removed {
            disk.remove_file(&rolled.path(suffix)).unwrap();
        }
        let manager = open(&disk.env(), dir).await;
        let log = manager.get(ID, 0).unwrap();
        let is_changed = !is_checkpointed || removed.is_some();
        assert_eq!(log.is_checkpoint_due(), is_changed, "{name}");
        assert_eq!(contents(&log), before, "{name}");
    }
}

/// What was read of a log before it was cut says nothing of what came in the place of that: the last
/// record of a key was taken away for one that is not there any more.
#[tokio::test]
async fn compaction_of_a_log_that_is_cut_meanwhile_takes_nothing_away() {
    for segment_bytes in [700, 1_500] {
        let disk = SimDisk::new(1);
        let (_manager, log) = new_log(&disk.env(), Path::new(DIR), compacted()).await;
        keyed(&log, 0, &[("only", Some("kept"))]);
        for i in 1..60i64 {
            let key = if i == 50 { "only".to_owned() } else { format!("k{}", i % 3) };
            keyed(&log, i, &[(&key, Some("value"))]);
        }
        log.set_high_watermark(60);
        log.sync().unwrap();
        // Two of them fit into one, or none.
        log.set_config(LogConfig { segment_bytes, ..compacted() });
        let (is_begun, is_cut) = (Arc::new(AtomicBool::new(false)), AtomicBool::new(false));
        let (begins, cuts) = (is_begun.clone(), log.clone());
        disk.on_make(move |path| {
            if path.to_string_lossy().ends_with(".log.cleaned") {
                begins.store(true, Ordering::Relaxed);
            }
        });
        disk.on_read(move |_| {
            if is_begun.load(Ordering::Relaxed) && !is_cut.swap(true, Ordering::Relaxed) {
                cuts.truncate_to(50).unwrap();
                for i in 50..60i64 {
                    keyed(&cuts, i, &[("another", Some("value"))]);
                }
                cuts.set_high_watermark(60);
                cuts.sync().unwrap();
            }
        });
        let done = log.compact(&pass(1, 0, 1_000));
        assert_eq!(log.cuts(), 1, "it has to be cut meanwhile");
        assert!(matches!(done, Err(LogError::Interrupted)), "{segment_bytes}: {done:?}");
        disk.on_read(|_| {});
        log.compact(&pass(1, 0, 1_000)).unwrap().unwrap();
        let kept = (0, "only".to_owned(), Some("kept".to_owned()));
        assert!(table(&log).contains(&kept), "{segment_bytes}: {:?}", table(&log));
    }
}

/// Five files of each log were synced: 3 s for 2,000 logs.
#[tokio::test]
async fn a_stop_waits_for_nothing_of_a_log_that_the_device_has() {
    let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
    let manager = open(&disk.env(), dir).await;
    let logs = 40;
    for partition in 0..logs {
        let log = manager.create(TOPIC, ID, partition, small()).await.unwrap();
        append(&log, 1, &["a"]);
        log.sync().unwrap();
    }
    let before = disk.stats();
    manager.close().await.unwrap();
    let after = disk.stats();
    let syncs = after.syncs + after.dir_syncs - before.syncs - before.dir_syncs;
    assert!(syncs < 20, "{syncs} for the checkpoints and the marker");
    drop(manager);
    disk.power_cut();
    let manager = open(&disk.env(), dir).await;
    assert!(manager.was_clean() && manager.logs().len() == 40);
    assert!(manager.logs().iter().all(|log| (log.end_offset(), log.recovery_point()) == (1, 0)));
    assert!(manager.logs().iter().all(|log| log.bytes_since_checkpoint() > 0), "it moves soon");
}

#[tokio::test]
async fn indexes_that_a_stop_left_in_the_page_cache_are_made_again() {
    let mut lost = 0;
    for seed in 0..60 {
        let disk = SimDisk::new(seed);
        let config = LogConfig { segment_bytes: 1 << 20, ..small() };
        let (manager, log) = new_log(&disk.env(), Path::new(DIR), config).await;
        let time = |i: i64| if i == 400 { 5_000 } else { i };
        for i in 0..600i64 {
            append(&log, time(i), &["a value"]);
            if i == 100 {
                log.checkpoint().unwrap();
                log.dir.partitions.set_recovery_points([&*log]).unwrap();
            }
        }
        log.set_high_watermark(600);
        log.sync().unwrap();
        manager.close().await.unwrap();
        drop((manager, log));
        disk.power_cut();
        lost += disk.stats().writes_lost;
        let manager = open(&disk.env(), Path::new(DIR)).await;
        let log = manager.get(ID, 0).unwrap();
        assert!(manager.was_clean() && (log.end_offset(), log.recovery_point()) == (600, 101));
        for (wanted, offset) in [(50, 50), (99, 99), (300, 300), (399, 399), (450, 400), (900, 400)]
        {
            let found = log.offset_for_timestamp(wanted).unwrap().map(|found| found.offset);
            assert_eq!(found, Some(offset), "seed {seed}: {wanted}");
        }
        assert_eq!(log.max_timestamp().unwrap().unwrap().offset, 400, "seed {seed}");
        assert_eq!(contents(&log).len(), 600);
    }
    assert!(lost > 0, "the power cuts have to have taken something");
}

/// What is past the recovery point is looked at as what lies below it is: nobody else has written.
#[tokio::test]
async fn a_log_that_does_not_end_where_it_was_closed_is_damaged() {
    let disk = SimDisk::new(1);
    let (manager, log) = new_log(&disk.env(), Path::new(DIR), small()).await;
    append(&log, 1, &["a"]);
    append(&log, 1, &["b"]);
    log.sync().unwrap();
    let (path, size) = (log.active().path(".log"), log.size());
    manager.close().await.unwrap();
    drop((manager, log));
    disk.env().disk.open(&path, OpenMode::ReadWrite).unwrap().set_len(size - 1).unwrap();
    let manager = open(&disk.env(), Path::new(DIR)).await;
    let offline = manager.offline_logs();
    assert!(matches!(&offline[0].error, LogError::Corrupt { durable_end: 2, .. }), "{offline:?}");
}
