//! Offsets without records: what a power cut or a person takes out of a log.

use std::sync::OnceLock;

use super::*;

/// The WARN lines so far that name `dir`, from whichever thread.
fn warnings(dir: &Path) -> Vec<String> {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    static LINES: OnceLock<Lines> = OnceLock::new();
    let lines = LINES.get_or_init(|| {
        let (lines, filter) = (Lines::default(), tracing_subscriber::filter::LevelFilter::WARN);
        let writer = lines.clone();
        let say = tracing_subscriber::fmt().with_max_level(filter).with_ansi(false);
        say.with_writer(move || writer.clone()).init();
        lines
    });
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    text.lines().filter(|line| line.contains(dir.to_str().unwrap())).map(str::to_owned).collect()
}

/// A log of three records, one a batch, in a segment that was rolled: `kept` of them are left in
/// its file, as after a power cut that kept the name of the next segment, though they may have been
/// known to be durable.
async fn with_lost_tail(
    dir: &Path,
    kept: usize,
    were_durable: bool,
) -> (Arc<LogManager>, Arc<Log>) {
    let env = Env::real();
    let (manager, log) = new_log(&env, dir, small()).await;
    let mut sizes = vec![0];
    for i in 0..3 {
        append(&log, i, &["a"]);
        sizes.push(log.size());
        if i == 0 {
            // The first is known.
            log.sync().unwrap();
            log.set_high_watermark(1);
            log.dir.partitions.set_positions([&*log]).unwrap();
        }
    }
    log.roll_now(3).unwrap();
    if were_durable {
        log.sync().unwrap();
        log.set_high_watermark(3);
        log.dir.partitions.set_positions([&*log]).unwrap();
    }
    let file = log.path.join("00000000000000000000.log");
    drop((manager, log));
    env.disk.open(&file, OpenMode::ReadWrite).unwrap().set_len(sizes[kept]).unwrap();
    let manager = open(&env, dir).await;
    let log = manager.get(ID, 0).unwrap();
    (manager, log)
}

fn read(log: &Log, from: Offset) -> Vec<BatchHeader> {
    batches(&bytes_of(&log.read_from_disk(from, 1 << 20, Offset::MAX, true).unwrap()))
}

fn place(batch: &BatchHeader) -> (Offset, Offset, i32) {
    (batch.base_offset, batch.last_offset(), batch.records_count)
}

/// It went on behind them, and counted in replication for records that it did not have.
#[tokio::test]
async fn a_log_ends_before_what_a_power_cut_took_and_no_segment_follows() {
    for kept in 1..3 {
        let dir = tempfile::tempdir().unwrap();
        let (manager, log) = with_lost_tail(dir.path(), kept, false).await;
        let end = kept as Offset;
        assert_eq!((log.end_offset(), contents(&log).len()), (end, kept));
        append(&log, 9, &["b"]);
        log.sync().unwrap();
        drop((manager, log));
        let manager = open(&Env::real(), dir.path()).await;
        let log = manager.get(ID, 0).unwrap();
        assert_eq!((log.end_offset(), contents(&log).len()), (end + 1, kept + 1));
    }
}

/// Nothing tells that what lacks between its segments is not lost, and nothing more is taken away.
#[tokio::test]
async fn a_compacted_log_without_its_checkpoints_is_kept_whole() {
    for is_clean in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let env = Env::real();
        let (manager, log) = new_log(&env, dir.path(), compacted()).await;
        for i in 0..60 {
            keyed(&log, i, &[(&format!("k{}", i % 7), Some("value"))]);
        }
        log.set_high_watermark(60);
        log.sync().unwrap();
        log.compact(&pass(100, 0, 1_000)).unwrap().unwrap();
        let before = table(&log);
        if is_clean {
            manager.close().await.unwrap();
        }
        drop((manager, log));
        for entry in env.disk.list(dir.path()).unwrap() {
            if entry.name.ends_with("-checkpoint") || entry.name.ends_with("-ends") {
                env.disk.remove_file(&dir.path().join(entry.name)).unwrap();
            }
        }
        let manager = open(&env, dir.path()).await;
        let log = manager.get(ID, 0).unwrap();
        assert_eq!((table(&log), log.end_offset()), (before, 60), "clean: {is_clean}");
    }
}

/// It passed for one of the compaction of before, until the log was as long again.
#[tokio::test]
async fn a_gap_behind_a_cut_is_none_of_compaction() {
    for cut in [None, Some(7)] {
        let dir = tempfile::tempdir().unwrap();
        let env = Env::real();
        let (manager, log) = new_log(&env, dir.path(), compacted()).await;
        for i in 0..60 {
            keyed(&log, i, &[(&format!("k{}", i % 7), Some("value"))]);
        }
        log.set_high_watermark(60);
        log.sync().unwrap();
        let upper = log.compact(&pass(100, 0, 1_000)).unwrap().unwrap();
        assert_eq!(log.dir.partitions.cleaned(&log), upper);
        match cut {
            None => log.truncate_fully_and_start_at(0).unwrap(),
            Some(at) => log.truncate_to(at).unwrap(),
        }
        let end = log.end_offset();
        assert!(end < upper && log.dir.partitions.cleaned(&log) <= end, "{end} of {upper}");
        append(&log, 1, &["a"]);
        log.sync().unwrap();
        log.set_high_watermark(end + 1);
        log.dir.partitions.set_positions([&*log]).unwrap();
        let (active, known) = (log.active().path(".log"), log.active().size());
        append(&log, 2, &["b"]);
        log.roll_now(3).unwrap();
        append(&log, 4, &["c"]);
        log.sync().unwrap();
        drop((manager, log));
        env.disk.open(&active, OpenMode::ReadWrite).unwrap().set_len(known).unwrap();
        let manager = open(&env, dir.path()).await;
        let log = manager.get(ID, 0).unwrap();
        assert_eq!(log.end_offset(), end + 1, "what lies behind {end} is not counted");
    }
}

/// A reader waited there until the next append.
#[tokio::test]
async fn a_reader_gets_past_offsets_that_a_power_cut_took() {
    for kept in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        assert!(warnings(dir.path()).is_empty());
        let (manager, log) = with_lost_tail(dir.path(), kept, true).await;
        let lost = kept as Offset;
        assert_eq!((log.start_offset(), log.end_offset()), (0, 3), "no offset is given out twice");
        assert_eq!(contents(&log).len(), kept);
        let found = read(&log, lost);
        assert_eq!(found.iter().map(place).collect::<Vec<_>>(), [(lost, 2, 0)]);
        assert_eq!(
            (found[0].leader_epoch, found[0].max_timestamp),
            (log.latest_epoch().unwrap_or(-1), -1)
        );
        assert!(!found[0].has_producer_id() && !found[0].is_control());
        // Up to where the reader may see, and from within.
        let bounded = log.read_from_disk(lost, 1, 3, true).unwrap();
        assert_eq!(bounded.next_offset, 3);
        // A cut may be under way, and whoever reads what is in memory does not wait for it.
        assert!(log.try_read_from_page_cache(2, 1, 3, true).is_none());
        assert_eq!(log.read_from_disk(3, 1, Offset::MAX, true).unwrap().bytes, 0);
        let said = warnings(dir.path());
        let numbers = format!("from={lost} to=3");
        assert!(said.len() == 1 && said[0].contains(&numbers), "{said:?}");
        // Nothing of it is in the log.
        append(&log, 9, &["b"]);
        assert_eq!(place(&read(&log, lost)[0]), (3, 3, 1));
        log.sync().unwrap();
        drop((manager, log));
        let manager = open(&Env::real(), dir.path()).await;
        let log = manager.get(ID, 0).unwrap();
        assert_eq!((log.end_offset(), contents(&log).len()), (4, kept + 1));
    }
}

#[tokio::test]
async fn a_gap_that_is_wider_than_a_batch_is_passed_in_steps() {
    let dir = tempfile::tempdir().unwrap();
    let (env, wide) = (Env::real(), i64::from(i32::MAX) + 10);
    let (manager, log) = new_log(&env, dir.path(), small()).await;
    append(&log, 0, &["a"]);
    log.roll_now(1).unwrap();
    log.sync().unwrap();
    let next = log.path.join(format!("{wide:020}.log"));
    drop((manager, log));
    env.disk.open(&next, OpenMode::Create).unwrap();
    let marks = dir.path().join("replication-offset-checkpoint");
    env.disk.write_atomically(&marks, b"0\n1\norders 0 2\n").unwrap();
    let log = open(&env, dir.path()).await.get(ID, 0).unwrap();
    let (mut at, mut steps) = (0, Vec::new());
    while at < log.end_offset() {
        let found = log.read_from_disk(at, 1 << 20, Offset::MAX, true).unwrap();
        assert!(found.next_offset > at);
        at = found.next_offset;
        steps.push(at);
    }
    assert_eq!(steps, [1, 1 + (1 << 31), wide]);
}

/// The power failed before the segment's file had its records, and an index was written. The
/// records that came there instead were looked for by time behind where they are.
#[tokio::test]
async fn indexes_beside_an_empty_segment_are_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let (manager, log) = new_log(&env, dir.path(), small()).await;
    append(&log, 1, &["a"]);
    log.roll_now(2).unwrap();
    log.sync().unwrap();
    let segment = log.active();
    drop((manager, log));
    // Offset 4 at time 5.
    let times = env.disk.open(&segment.path(".timeindex"), OpenMode::Truncate).unwrap();
    times.write_at(&[io::IoSlice::new(&[0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 3])], 0).unwrap();
    let manager = open(&env, dir.path()).await;
    let log = manager.get(ID, 0).unwrap();
    append(&log, 10, &["b"]);
    for (time, expected) in [(0, Some(0)), (1, Some(0)), (6, Some(1)), (10, Some(1)), (11, None)] {
        let found = log.offset_for_timestamp(time).unwrap().map(|found| found.offset);
        assert_eq!(found, expected, "at {time}");
    }
}

/// A damaged checkpoint hid every record.
#[tokio::test]
async fn a_log_start_past_the_end_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let (manager, log) = new_log(&env, dir.path(), small()).await;
    for i in 0..3 {
        append(&log, i, &["a"]);
    }
    manager.close().await.unwrap();
    let (path, starts) = (log.path.clone(), dir.path().join("log-start-offset-checkpoint"));
    drop((manager, log));
    for start in [7, Offset::MAX] {
        let said = format!("0\n1\norders 0 {start}\n");
        env.disk.write_atomically(&starts, said.as_bytes()).unwrap();
        let manager = open(&env, dir.path()).await;
        let error = manager.offline_logs().remove(0).error;
        assert!(
            matches!(error, LogError::StartsPastEnd { log_start, end_offset: 3, .. } if log_start == start),
            "{error}"
        );
    }
    // Corrected: nothing was lost by it.
    env.disk.write_atomically(&starts, b"0\n1\norders 0 1\n").unwrap();
    let manager = open(&env, dir.path()).await;
    let log = manager.get(ID, 0).unwrap();
    assert_eq!((log.start_offset(), contents(&log).len()), (1, 2));
    drop((manager, log));
    // Accepted: no offset is given out twice.
    env.disk.write_atomically(&starts, b"0\n1\norders 0 7\n").unwrap();
    env.disk.open(&path.join("accept-data-loss"), OpenMode::Create).unwrap();
    for expected in [7, 8] {
        let manager = open(&env, dir.path()).await;
        let log = manager.get(ID, 0).unwrap();
        assert_eq!((log.start_offset(), log.end_offset()), (7, expected));
        append(&log, 9, &["b"]);
        log.sync().unwrap();
        assert_eq!(contents(&log).len(), usize::try_from(expected - 6).unwrap());
    }
}

/// Deleted records stay deleted, and the log start that says so is within what the device has.
#[tokio::test]
async fn a_log_start_is_kept_with_the_records_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let (manager, log) = new_log(&env, dir.path(), LogConfig { durable: false, ..small() }).await;
    for i in 0..3 {
        append(&log, i, &["a"]);
    }
    log.set_high_watermark(3);
    log.delete_records_before(2).unwrap();
    manager.checkpoint().await;
    let kept = |log: &Log| {
        let name = (log.topic().clone(), 0);
        log.dir.partitions.get(&name).unwrap().1.log_start
    };
    assert_eq!((log.synced_end(), kept(&log)), (0, 0));
    manager.keep_log_starts(vec![log.clone()]).await.unwrap();
    assert_eq!((log.synced_end(), kept(&log)), (3, 2));
    drop((manager, log));
    let manager = open(&env, dir.path()).await;
    assert_eq!(contents(&manager.get(ID, 0).unwrap()).len(), 1);
}

/// Both were served without a word.
#[tokio::test]
async fn segments_that_were_removed_by_hand_are_missed() {
    let env = Env::real();
    for (clean, removed) in [(true, 0), (true, 1), (false, 1)] {
        let dir = tempfile::tempdir().unwrap();
        assert!(warnings(dir.path()).is_empty());
        let (manager, log) = new_log(&env, dir.path(), small()).await;
        let mut bases = vec![0];
        for i in 0..3 {
            append(&log, i, &["a", "b"]);
            log.roll_now(i).unwrap();
            bases.push(log.end_offset());
        }
        log.set_high_watermark(6);
        if clean {
            manager.close().await.unwrap();
        } else {
            log.checkpoint().unwrap();
            log.dir.partitions.set_recovery_points([&*log]).unwrap();
        }
        let segment = log.segments.load().get(removed).unwrap().clone();
        drop((manager, log));
        for suffix in [".log", ".index", ".timeindex"] {
            env.disk.remove_file(&segment.path(suffix)).unwrap();
        }
        let manager = open(&env, dir.path()).await;
        let log = manager.get(ID, 0).unwrap();
        log.set_config(small());
        let at_open = warnings(dir.path());
        assert_eq!(
            log.read_from_disk(log.start_offset(), 1 << 20, 6, true).unwrap().next_offset,
            6
        );
        let said = warnings(dir.path());
        let numbers = format!("from={} to={}", bases[removed], bases[removed + 1]);
        assert!(said.len() == 1 && said[0].contains(&numbers), "{said:?}");
        assert_eq!(at_open.len(), usize::from(removed == 0), "{at_open:?}");
    }
}
