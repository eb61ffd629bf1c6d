//! Upkeep of logs: retention, compaction, checkpoints, and what a stop waits for.

use std::sync::Barrier;

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
    log.compact(&pass(5_000, 0, 1_000)).unwrap().unwrap();
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
        ("compact, with a size that is for delete", CleanupPolicy { delete: false, compact: true }, 1, 1, 0),
        ("both without a bound", both, -1, -1, 0),
        ("both, and exactly as large as may be", both, 0, -1, 0),
        ("both, and smaller than may be", both, 1 << 20, -1, 0),
        ("both, and a segment too much", both, 1, -1, 90),
        ("both, and nothing is old", both, -1, 100_000, 0),
        ("both, and the last round is old: what is empty in front of it goes too", both, -1, 1_500, 90),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (manager, log) = rounds(dir.path(), rounds_config()).await;
        let sizes: Vec<_> = log.segments.load().iter().map(|segment| (segment.base, segment.size() > 0)).collect();
        assert!(sizes.contains(&(30, false)) || sizes[0] == (0, false), "compaction empties whole segments: {sizes:?}");
        let retention_bytes = match retention_bytes {
            0 => i64::try_from(log.size()).unwrap(),
            // All but the last segment.
            1 => i64::try_from(log.active().size()).unwrap(),
            bytes => bytes,
        };
        log.set_config(LogConfig { cleanup_policy, retention_bytes, retention_ms, ..rounds_config() });
        log.apply_retention(5_000).unwrap();
        assert_eq!(log.start_offset(), start, "{name}");
        let found: Vec<_> = table(&log).into_iter().map(|record| record.0).collect();
        let expected: Vec<_> = live.iter().copied().filter(|offset| *offset >= start).collect();
        assert_eq!(found, expected, "{name}");
        if start == 0 {
            let at_committed = log.read_from_disk(30, usize::MAX, 91, true).unwrap();
            assert_eq!(batches(&bytes_of(&at_committed)).len(), 4, "{name}: a group at 30 reads on");
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
            assert_eq!(table(&log).into_iter().map(|record| record.0).collect::<Vec<_>>(), expected, "{name}");
        }
    }
}

#[tokio::test]
async fn what_delete_records_left_behind_goes_whether_empty_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let (_manager, log) = rounds(dir.path(), rounds_config()).await;
    log.delete_records_before(75).unwrap();
    log.apply_retention(5_000).unwrap();
    assert_eq!(log.segments.load().iter().map(|segment| segment.base).collect::<Vec<_>>(), [60, 90]);
    assert_eq!(log.start_offset(), 75);
}

#[tokio::test]
async fn offsets_of_an_empty_active_segment_stay_within_its_format() {
    let dir = tempfile::tempdir().unwrap();
    let (manager, log) = new_log(&Env::real(), dir.path(), small()).await;
    let far = i64::from(i32::MAX) + 10;
    let options = AppendOptions { leader_epoch: -1, now_ms: 0, origin: Origin::Replication };
    let mut builder = BatchBuilder::new(1).at(far, 1);
    builder.push(1, None, Some(b"after a gap that compaction left"), &[]);
    log.append(builder.build(), &options).unwrap();
    assert_eq!(log.segments.load().iter().map(|segment| segment.base).collect::<Vec<_>>(), [0, far]);
    log.sync().unwrap();
    manager.close().await.unwrap();
    drop((manager, log));
    let log = open(&Env::real(), dir.path()).await.get(ID, 0).unwrap();
    assert_eq!((log.start_offset(), log.end_offset()), (0, far + 1));
    assert_eq!(contents(&log).into_keys().collect::<Vec<_>>(), [far]);
}

#[tokio::test]
async fn a_batch_that_comes_while_retention_decides_is_kept() {
    for round in 0..300 {
        let dir = tempfile::tempdir().unwrap();
        let env = FaultDisk::new().env();
        let (_manager, log) = new_log(&env, dir.path(), LogConfig { retention_ms: 1_000, ..small() }).await;
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
        assert_eq!(contents(&log).get(&1).map(String::as_str), Some("new"), "round {round}: start {}", log.start_offset());
    }
}
