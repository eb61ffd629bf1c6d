//! What is wrong with one thing stays with it, and what was given up is not given out again.

use std::io::IoSlice;

use super::*;

const OTHER: Uuid = Uuid::from_u128(43);

fn cut(disk: &dyn Disk, path: &Path, len: u64) {
    let file = disk.open(path, OpenMode::ReadWrite).unwrap();
    file.set_len(len).unwrap();
    file.sync().unwrap();
}

fn put(disk: &dyn Disk, path: &Path, bytes: &[u8]) {
    let file = disk.open(path, OpenMode::Truncate).unwrap();
    file.write_at(&[IoSlice::new(bytes)], 0).unwrap();
    file.sync().unwrap();
}

/// Ten records that were acknowledged, in a log that was closed in order; it is damaged after the
/// first `whole` of them, and a person has accepted that.
async fn accepted(disk: &SimDisk, whole: u64) {
    let (manager, log) = new_log(&disk.env(), Path::new(DIR), small()).await;
    for i in 0..10 {
        append(&log, i, &["a"]);
    }
    log.set_high_watermark(10);
    manager.close().await.unwrap();
    cut(disk, &log.path.join("00000000000000000000.log"), log.size() / 10 * whole + 20);
    disk.open(&log.path.join("accept-data-loss"), OpenMode::Create).unwrap();
    disk.sync_dir(&log.path).unwrap();
}

/// The log went on at offset 1048699, where a header said that it ended.
#[tokio::test]
async fn a_header_that_was_damaged_after_a_stop_in_order_is_not_believed() {
    for (at, is_copy) in [(23, false), (24, false), (25, false), (7, true)] {
        let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
        let (manager, log) = new_log(&disk.env(), dir, small()).await;
        for i in 0..4 {
            append(&log, i, &["a"]);
        }
        manager.close().await.unwrap();
        let path = log.path.join("00000000000000000000.log");
        let mut bytes = disk.read(&path).unwrap();
        let batch = bytes.len() / 4;
        if is_copy {
            // Of the last batch, with a later offset, and another record.
            bytes.extend_from_within(3 * batch..);
            *bytes.last_mut().unwrap() ^= 1;
        }
        let last = bytes.len() - batch;
        bytes[last + at] ^= 0x10;
        put(&disk, &path, &bytes);
        drop((manager, log));
        let manager = open(&disk.env(), dir).await;
        match manager.get(ID, 0) {
            Some(log) if is_copy => assert_eq!(log.end_offset(), 4),
            None if !is_copy => assert!(matches!(
                &manager.offline_logs()[..],
                [OfflineLog { error: LogError::Corrupt { offset: 3, durable_end: 4, .. }, .. }]
            )),
            found => panic!("{at}: {:?}", found.map(|log| log.end_offset())),
        }
    }
}

/// Groups and replicas know offsets up to the end of what is lost: none of them gets another
/// record, wherever the power fails while the log is opened.
#[tokio::test]
async fn the_offsets_of_an_accepted_loss_are_given_to_no_other_record() {
    for whole in [0, 5] {
        for at in 0.. {
            let (disk, dir) = (SimDisk::new(at), Path::new(DIR));
            accepted(&disk, whole).await;
            disk.cut_power_after(at);
            drop(LogManager::open(disk.env(), options(dir)).await);
            let failed = !disk.is_powered();
            disk.power_cut();
            let manager = open(&disk.env(), dir).await;
            let log = manager.get(ID, 0).unwrap_or_else(|| {
                panic!("{whole}, after {at} changes: {:?}", manager.offline_logs())
            });
            assert_eq!((contents(&log).len() as u64, log.end_offset()), (whole, 10), "{at}");
            assert_eq!(append(&log, 20, &["b"]).base_offset, 10);
            log.sync().unwrap();
            for from in whole as Offset..11 {
                let found = log.read_from_disk(from, usize::MAX, 11, true).unwrap();
                let found = batches(&bytes_of(&found));
                assert_eq!(found.last().unwrap().base_offset, 10, "{whole}: from {from}");
            }
            assert!(!disk.exists(&log.path.join("accept-data-loss")).unwrap());
            drop((manager, log));
            disk.power_cut();
            let log = open(&disk.env(), dir).await.get(ID, 0).unwrap();
            assert_eq!(log.end_offset(), 11);
            if !failed {
                assert!(at > 8, "the faults have to have met something: {at}");
                break;
            }
        }
    }
}

/// One of three took the place of the other two, and a whole one that of a damaged one.
#[tokio::test]
async fn a_partition_in_several_log_directories_is_served_from_none() {
    for (copies, is_damaged) in [(2, false), (2, true), (3, false), (3, true)] {
        let disk = SimDisk::new(1);
        let dirs: Vec<PathBuf> = (0..copies).map(|copy| format!("/{copy}").into()).collect();
        for dir in &dirs {
            let (manager, log) = new_log(&disk.env(), dir, small()).await;
            append(&log, 1, &["a"]);
            manager.close().await.unwrap();
        }
        if is_damaged {
            cut(&disk, &dirs[0].join("orders-0/00000000000000000000.log"), 20);
        }
        let options =
            LogManagerOptions { reserve_bytes: Some(0), ..LogManagerOptions::new(dirs.clone()) };
        let manager = LogManager::open(disk.env(), options).await.unwrap();
        assert_eq!(manager.logs().len(), 0, "{copies} copies");
        let offline = manager.offline_logs();
        let [OfflineLog { error, topic_id: Some(ID), .. }] = &offline[..] else {
            panic!("{offline:?}")
        };
        assert!(matches!(error, LogError::Twice { .. }), "{error}");
        for dir in &dirs {
            assert!(error.to_string().contains(dir.to_str().unwrap()), "{error}");
        }
        // All but one are moved away.
        for (at, dir) in dirs.iter().enumerate().skip(1) {
            let error = manager.create(TOPIC, ID, 0, small()).await.err().unwrap();
            assert!(matches!(error, LogError::Twice { .. }), "{error}");
            let away = PathBuf::from(format!("/away{at}"));
            disk.rename(&dir.join("orders-0"), &away).unwrap();
        }
        match manager.create(TOPIC, ID, 0, small()).await {
            Ok(log) if !is_damaged => assert_eq!(contents(&log).len(), 1),
            Err(LogError::Corrupt { .. }) if is_damaged => {}
            other => panic!("{:?}", other.map(|log| log.end_offset())),
        }
    }
}

/// A `.nfs` file, a wrong owner or a bad block in what was deleted anyway took the log directory,
/// or the partition, out of use at the next start.
#[tokio::test]
async fn what_is_thrown_away_decides_nothing_at_a_start() {
    let deleted = "orders-7.0000000000000000000000000000002b-delete";
    for (place, errno) in [
        (deleted.to_owned(), EACCES),
        (deleted.to_owned(), EIO),
        (format!("{deleted}/00000000000000000000.log"), EACCES),
        ("orders-0/00000000000000000000.log.deleted".to_owned(), EIO),
        ("orders-0/00000000000000000000.log.cleaned".to_owned(), EIO),
        ("orders-0/leader-epoch-checkpoint.tmp".to_owned(), EIO),
    ] {
        let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
        let (manager, log) = new_log(&disk.env(), dir, small()).await;
        append(&log, 1, &["a"]);
        manager.close().await.unwrap();
        drop((manager, log));
        let place = dir.join(place);
        let within = if place.ends_with(deleted) { place.join("file") } else { place.clone() };
        disk.create_dir_all(within.parent().unwrap()).unwrap();
        disk.open(&within, OpenMode::Create).unwrap();
        disk.inject(Fault::Refuse(errno), place.to_str().unwrap(), 0, u64::MAX);
        let manager = open(&disk.env(), dir).await;
        assert!(manager.was_clean());
        let log = manager.get(ID, 0).unwrap_or_else(|| panic!("{:?}", manager.offline_logs()));
        assert_eq!(contents(&log).len(), 1);
        // It goes with the upkeep, or with that of the next start.
        let stop = CancellationToken::new();
        manager.remove_doomed(&stop).await;
        disk.heal();
        assert!(disk.exists(&within).unwrap());
        drop((manager, log));
        let manager = open(&disk.env(), dir).await;
        manager.remove_doomed(&stop).await;
        assert!(!disk.exists(&within).unwrap(), "{}", place.display());
        assert!(within.parent().unwrap().ends_with("orders-0") || !disk.exists(&place).unwrap());
    }
}

/// A directory that was restored as another user took its whole log directory out of use, and with
/// the last of them the broker.
#[tokio::test]
async fn one_directory_that_is_refused_is_not_taken_for_a_broken_device() {
    for (errno, is_device) in [(EACCES, false), (EIO, true)] {
        let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
        let (manager, log) = new_log(&disk.env(), dir, small()).await;
        append(&log, 1, &["a"]);
        manager.create("other", OTHER, 0, small()).await.unwrap();
        manager.close().await.unwrap();
        drop((manager, log));
        disk.inject(Fault::Refuse(errno), "/logs/orders-0", 0, u64::MAX);
        let manager = open(&disk.env(), dir).await;
        assert!(manager.get(ID, 0).is_none());
        assert_eq!(manager.dirs()[0].offline().is_some(), is_device);
        if !is_device {
            append(&manager.get(OTHER, 0).unwrap(), 1, &["b"]);
            manager.get(OTHER, 0).unwrap().sync().unwrap();
            // Put right, it is back without a restart.
            disk.heal();
            disk.open(&dir.join("orders-0/accept-data-loss"), OpenMode::Create).unwrap();
            let log = manager.create(TOPIC, ID, 0, small()).await.unwrap();
            assert_eq!(contents(&log).len(), 1);
        }
    }
}

/// What becomes of a log whose compaction a lack has ended.
const THEN: [&str; 3] = ["compacted again", "cut", "set aside"];

/// The first one removed an index, and every later one asked for it. One that had begun to put a
/// segment in the place of others did so at the next start, whatever was in the log then.
#[tokio::test]
async fn a_compaction_that_a_lack_has_ended_is_done_by_the_next() {
    let lacks = [Fault::NoDescriptor, Fault::NoSpace];
    let cases = lacks.into_iter().flat_map(|lack| THEN.map(|then| (lack, then)));
    for ((lack, then), segment_bytes) in cases.flat_map(|case| [(case, 700), (case, 1_500)]) {
        for at in 0.. {
            let (disk, dir) = (SimDisk::new(at), Path::new(DIR));
            let (manager, log) = with_segments_to_merge(&disk.env(), segment_bytes).await;
            let expected = latest(&table(&log));
            disk.inject(lack, "", at, u64::MAX);
            let done = log.compact(&pass(1, 0, 1_000)).is_ok();
            disk.heal();
            let said = format!("{lack:?}, after {at}, then {then}");
            match then {
                "cut" => {
                    // What is appended to a segment that was sealed is in the file of that name.
                    log.truncate_to(log.segments.load()[1].base + 1).unwrap();
                    append(&log, 50, &["new"]);
                }
                "set aside" => {
                    log.set_aside_and_start_at(0).unwrap();
                    for i in 0..10 {
                        append(&log, 50 + i, &["new"]);
                    }
                }
                _ if done => {}
                _ => {
                    let again = log.compact(&pass(1, 0, 1_000));
                    assert!(matches!(again, Ok(Some(_))), "{said}: {again:?}");
                }
            }
            log.sync().unwrap();
            let (left, end) = (table(&log), log.end_offset());
            assert!(then != THEN[0] || latest(&left) == expected, "{said}");
            drop((manager, log));
            disk.power_cut();
            let log = open(&disk.env(), dir).await.get(ID, 0).expect(&said);
            assert_eq!((table(&log), log.end_offset()), (left, end), "{said}");
            if done {
                assert!(at > 8, "the faults have to have met something: {at}");
                break;
            }
        }
    }
}

/// What is found by time, segment by segment, and what by offset.
fn looked_up(log: &Log) -> Vec<(Offset, Option<(i64, Offset)>)> {
    let segments = log.segments.load_full();
    segments.iter().map(|segment| (segment.base, segment.max_timestamp().unwrap())).collect()
}

/// Indexes that were made anew were on no list of what is to be synced, and whatever a power cut
/// left of them was believed: retention took segments with newer records than it saw.
#[tokio::test]
async fn indexes_that_are_made_anew_are_there_as_a_whole_or_not_at_all() {
    for compacts in [false, true] {
        for at in 0.. {
            let (disk, dir) = (SimDisk::new(at), Path::new(DIR));
            let config = LogConfig { segment_bytes: 400_000, ..compacted() };
            let (manager, log) = new_log(&disk.env(), dir, config).await;
            let value = "x".repeat(5_000);
            for i in 0..200i64 {
                // Half of the keys come once.
                let key = if i % 2 == 0 { i } else { 1 };
                keyed(&log, i, &[(&format!("k{key}"), Some(&value))]);
            }
            log.set_high_watermark(200);
            log.checkpoint().unwrap();
            manager.close().await.unwrap();
            let segments = log.segments.load_full();
            drop((manager, log));
            let newest = looked_up(&open(&disk.env(), dir).await.get(ID, 0).unwrap());
            if !compacts {
                for suffix in [".index", ".timeindex"] {
                    disk.remove_file(&segments[0].path(suffix)).unwrap();
                }
                disk.sync_dir(&dir.join("orders-0")).unwrap();
            }
            let manager = open(&disk.env(), dir).await;
            let log = manager.get(ID, 0).unwrap();
            log.set_config(compacted());
            disk.cut_power_after(at);
            let made = if compacts {
                log.compact(&pass(1, 0, 10_000)).map(drop).map_err(|error| error.to_string())
            } else {
                let first = &log.segments.load()[0];
                first.max_timestamp().map(drop).map_err(|error| error.to_string())
            };
            drop((manager, log));
            disk.power_cut();
            let manager = open(&disk.env(), dir).await;
            let log = manager.get(ID, 0).unwrap_or_else(|| panic!("{:?}", manager.offline_logs()));
            // The record with the largest time of a segment is its last, which compaction keeps.
            let found = looked_up(&log);
            let times = |of: &[(Offset, Option<(i64, Offset)>)]| {
                of.iter().map(|(base, max)| (*base, max.map(|max| max.0 / 2))).collect::<Vec<_>>()
            };
            assert_eq!(times(&found), times(&newest), "{compacts}, after {at} changes");
            if made.is_ok() {
                assert!(at > 3, "the faults have to have met something: {at}");
                break;
            }
        }
    }
}

/// A producer waited while retention made an index anew: the lock that it decides under is the
/// appends'.
#[tokio::test]
async fn retention_decides_from_what_is_in_memory() {
    let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
    let (_manager, log) = new_log(&disk.env(), dir, compacted()).await;
    for i in 0..40i64 {
        keyed(&log, i, &[(&format!("k{}", i % 6), Some(&i.to_string()))]);
    }
    log.set_high_watermark(40);
    log.sync().unwrap();
    log.compact(&pass(1, 0, 1_000)).unwrap().unwrap();
    let read = disk.stats().bytes_read;
    let known = looked_up(&log);
    assert_eq!(disk.stats().bytes_read, read, "compaction leaves its indexes in memory");
    let in_memory: Vec<_> = log
        .segments
        .load()
        .iter()
        .map(|segment| (segment.base, segment.known_max_timestamp()))
        .collect();
    assert_eq!(in_memory, known);
    // Where they are not: kept, until the next time.
    let cold: Vec<_> = log
        .segments
        .load()
        .iter()
        .map(|segment| {
            Arc::new(segment::Segment::new(
                log.dir.disk.clone(),
                &log.path,
                segment.base,
                segment.size(),
            ))
        })
        .collect();
    log.set_config(LogConfig {
        cleanup_policy: CleanupPolicy { delete: true, compact: false },
        retention_ms: 1,
        ..small()
    });
    let warm = log.segments.load_full();
    let read = disk.stats().bytes_read;
    assert!(log.deletable_in_memory(1_000_000, &warm, usize::MAX).unwrap() > 1);
    assert_eq!(log.deletable_in_memory(1_000_000, &cold, usize::MAX).unwrap(), 0);
    assert_eq!(disk.stats().bytes_read, read);
}

/// Upkeep made a warning of it, and the syncer, which asked next, was told that all is well: the
/// names of new segments went with a power cut, and what was acknowledged in them.
#[tokio::test]
async fn names_that_a_directory_has_lost_are_lost_for_everybody() {
    for by in ["retention", "compaction", "checkpoint", "deletion"] {
        let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
        let (manager, log) = new_log(&disk.env(), dir, compacted()).await;
        manager.create("other", OTHER, 0, small()).await.unwrap();
        for i in 0..40i64 {
            keyed(&log, i, &[(&format!("k{}", i % 6), Some(&i.to_string()))]);
        }
        log.set_high_watermark(40);
        log.checkpoint().unwrap();
        keyed(&log, 41, &[("new", Some("record"))]);
        log.roll_now(41).unwrap();
        keyed(&log, 42, &[("new", Some("in a new file"))]);
        disk.inject(Fault::FailSyncDir, "", 0, 1);
        match by {
            "retention" => {
                log.delete_records_before(20).unwrap();
                log.apply_retention(100).unwrap_err();
            }
            "compaction" => drop(log.compact(&pass(1, 0, 1_000)).unwrap_err()),
            "checkpoint" => manager.checkpoint().await,
            _ => manager.delete(vec![("other".into(), OTHER, 0)]).await,
        }
        assert_eq!(disk.stats().faults.get("failed directory sync"), Some(&1), "{by}");
        assert!(log.sync().is_err(), "{by}: what comes after is acknowledged");
        assert!(log.dir().offline().is_some_and(|why| why.contains("sync directory")), "{by}");
    }
}

/// A checkpoint kept the lock over its syncs, and with it the threads that serve clients.
#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "a thread that may wait for ever, if it fails")]
async fn whose_a_partition_is_is_told_while_a_checkpoint_is_written() {
    for file in ["recovery-point-offset-checkpoint.tmp", "partition-topic-ids.tmp"] {
        let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
        let (manager, log) = new_log(&disk.env(), dir, small()).await;
        append(&log, 1, &["a"]);
        log.sync().unwrap();
        let (told, heard) = std::sync::mpsc::channel();
        let (asked, manager_asked) = (Mutex::new(Some(told)), Arc::downgrade(&manager));
        disk.on_make(move |path| {
            if !path.ends_with(file) {
                return;
            }
            let (told, manager) = (asked.lock().unwrap().take(), manager_asked.upgrade());
            let (Some(told), Some(manager)) = (told, manager) else { return };
            let (answer, answered) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let table = &manager.dirs()[0].partitions;
                table.forget([(&("gone".into(), 0), None)]);
                let _ = answer.send(table.get(&(TOPIC.into(), 0)).unwrap().0);
            });
            // Inside of the write, which does not go on before.
            told.send(answered.recv_timeout(Duration::from_secs(10))).unwrap();
        });
        if file.starts_with("recovery") {
            log.dir().partitions.set_recovery_points([&*log]).unwrap();
        } else {
            manager.create("other", OTHER, 0, small()).await.unwrap();
        }
        assert_eq!(heard.recv().unwrap(), Ok(Some(ID)), "{file}");
    }
}

fn sent(sequence: i32) -> BytesMut {
    let mut builder = BatchBuilder::new(1_000).producer(5, 0, sequence);
    builder.push(1_000, None, Some(b"v"), &[]);
    builder.build()
}

/// A log that has a snapshot with the last sequence 97, and ends at `end`, on the device.
async fn with_snapshot_at_98(disk: &SimDisk, end: i32) -> (Arc<LogManager>, Arc<Log>) {
    let (manager, log) = new_log(&disk.env(), Path::new(DIR), small()).await;
    for sequence in 0..end {
        if sequence == 98 {
            log.checkpoint().unwrap();
            log.dir().partitions.set_recovery_points([&*log]).unwrap();
        }
        log.append(sent(sequence), &client(1_000)).unwrap();
    }
    log.sync().unwrap();
    log.set_high_watermark(end.into());
    (manager, log)
}

/// The deletion of the segments was on the device, and the producer's last batches in no snapshot:
/// an older one was taken for all that is known, and the next batch was out of order.
#[tokio::test]
async fn a_producer_goes_on_after_its_batches_were_deleted_and_the_power_failed() {
    for at in 0.. {
        let (disk, dir) = (SimDisk::new(at), Path::new(DIR));
        let (manager, log) = with_snapshot_at_98(&disk, 109).await;
        assert_eq!(log.delete_records_before(109).unwrap(), 109);
        manager.keep_log_starts(vec![log.clone()]).await.unwrap();
        log.set_config(LogConfig { retention_ms: 0, ..small() });
        disk.cut_power_after(at);
        let done = log.apply_retention(1_000_000).is_ok();
        drop((manager, log));
        for sequence in [109, 110] {
            disk.power_cut();
            let manager = open(&disk.env(), dir).await;
            let log = manager.get(ID, 0).unwrap_or_else(|| {
                panic!("after {at} changes: {:?}", manager.offline_logs());
            });
            let again = log.append(sent(sequence - 1), &client(1_000)).unwrap();
            assert!(again.duplicate, "{sequence} after {at} changes");
            let next = log.append(sent(sequence), &client(1_000)).unwrap();
            assert_eq!(next.base_offset, i64::from(sequence), "after {at} changes");
            log.sync().unwrap();
        }
        if done {
            assert!(at > 8, "the power has to have failed in between: {at}");
            break;
        }
    }
}

/// No room for a snapshot is no reason to keep what takes the room. What is left of the producer is
/// not taken for all of it.
#[tokio::test]
async fn retention_frees_a_full_disk_although_it_has_no_room_for_a_snapshot() {
    let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
    let (manager, log) = with_snapshot_at_98(&disk, 109).await;
    manager.checkpoint().await;
    log.set_config(LogConfig { retention_ms: 0, ..small() });
    log.roll_now(1_000).unwrap();
    log.sync().unwrap();
    disk.inject(Fault::NoSpace, ".snapshot", 0, u64::MAX);
    assert!(!log.apply_retention(1_000_000).unwrap().is_empty());
    assert_eq!(log.start_offset(), 109);
    disk.heal();
    drop((manager, log));
    disk.power_cut();
    let log = open(&disk.env(), dir).await.get(ID, 0).unwrap();
    assert_eq!((log.range(), log.producers_count()), ((109, 109), 0));
    assert_eq!(log.append(sent(109), &client(1_000)).unwrap().base_offset, 109);
}

/// A follower begins anew where its leader's log begins: what it knew of producers before is not
/// what they sent since.
#[tokio::test]
async fn a_producer_goes_on_at_a_follower_whose_log_began_anew() {
    for start in [98, 109] {
        for at in 0.. {
            let (disk, dir) = (SimDisk::new(at), Path::new(DIR));
            let (manager, log) = with_snapshot_at_98(&disk, 99).await;
            disk.cut_power_after(at);
            let done = log.truncate_fully_and_start_at(start).is_ok();
            assert!(!done || log.producers_count() == 0, "{start} after {at} changes");
            drop((manager, log));
            disk.power_cut();
            let manager = open(&disk.env(), dir).await;
            let log = manager.get(ID, 0).unwrap_or_else(|| {
                panic!("{start} after {at} changes: {:?}", manager.offline_logs());
            });
            log.truncate_fully_and_start_at(start).unwrap();
            let next = log.append(sent(109), &client(1_000)).unwrap();
            assert_eq!(next.base_offset, start, "after {at} changes");
            log.sync().unwrap();
            drop((manager, log));
            disk.power_cut();
            let log = open(&disk.env(), dir).await.get(ID, 0).unwrap();
            let next = log.append(sent(110), &client(1_000)).unwrap();
            assert_eq!(next.base_offset, start + 1, "after {at} changes");
            if done {
                assert!(at > 8, "the power has to have failed in between: {at}");
                break;
            }
        }
    }
}

/// A damaged segment kept every record in front of it from its readers, without a word.
#[tokio::test]
async fn what_lies_around_damage_is_read() {
    const DAMAGED: Offset = 13;
    let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
    let (manager, log) = new_log(&disk.env(), dir, small()).await;
    for i in 0..140 {
        append(&log, i, &["a"]);
    }
    log.set_high_watermark(140);
    log.checkpoint().unwrap();
    manager.close().await.unwrap();
    let bases: Vec<Offset> = log.segments.load().iter().map(|segment| segment.base).collect();
    let path = log.path.join("00000000000000000000.log");
    let mut bytes = disk.read(&path).unwrap();
    let batch = bytes.len() / usize::try_from(bases[1]).unwrap();
    let at = usize::try_from(DAMAGED).unwrap() * batch;
    assert!(bases[1] > DAMAGED + 1 && bases.len() > 3);
    bytes[at..at + 61].fill(0);
    put(&disk, &path, &bytes);
    let second = log.path.join(format!("{:020}.log", bases[2]));
    put(&disk, &second, &vec![0; disk.read(&second).unwrap().len()]);
    drop((manager, log));

    let log = open(&disk.env(), dir).await.get(ID, 0).unwrap();
    let read = |from, max| log.read_from_disk(from, max, 140, true);
    let mut seen = Vec::new();
    for from in 0..140 {
        for max in [0, 2 * batch, 5 * batch, usize::MAX] {
            match read(from, max) {
                Ok(found) => {
                    assert!(found.bytes > 0 && found.next_offset > from, "{from}, {max}");
                    seen.push(from);
                }
                Err(error) => assert!(matches!(error, ReadError::Corrupt { .. }), "{error}"),
            }
        }
    }
    seen.dedup();
    // Batches are found from the index entry in front of them, which are 200 bytes apart.
    let is_near = |offset: &Offset| (DAMAGED + 1..DAMAGED + 4).contains(offset);
    let lost = |offset: &Offset| {
        *offset == DAMAGED || is_near(offset) || (bases[2]..bases[3]).contains(offset)
    };
    seen.retain(|offset| !is_near(offset));
    let readable: Vec<Offset> = (0..140).filter(|offset| !lost(offset)).collect();
    assert_eq!(seen, readable);
    // As far as there are index entries, nobody looks at headers: the client does.
    assert_eq!(read(0, usize::MAX).unwrap().next_offset, bases[2]);
}

/// A read that failed once was taken for the end of the log, and what followed was cut off.
#[tokio::test]
async fn what_cannot_be_read_at_a_start_is_not_taken_for_the_end_of_the_log() {
    for at in 0.. {
        let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
        let (manager, log) = new_log(&disk.env(), dir, small()).await;
        for i in 0..60 {
            append(&log, i, &["a"]);
        }
        log.sync().unwrap();
        drop((manager, log));
        disk.inject(Fault::FailRead, "orders-0", at, 1);
        let manager = open(&disk.env(), dir).await;
        let was_hit = !disk.stats().faults.is_empty();
        if manager.get(ID, 0).is_none() {
            let offline = manager.offline_logs();
            assert!(
                matches!(&offline[..], [OfflineLog { error: LogError::Io { .. }, .. }]),
                "{offline:?}"
            );
        }
        drop(manager);
        let manager = open(&disk.env(), dir).await;
        let log = manager.get(ID, 0).unwrap();
        assert_eq!((log.end_offset(), contents(&log).len()), (60, 60), "after {at} reads");
        assert_eq!(log.max_timestamp().unwrap().map(|found| found.timestamp), Some(59));
        if !was_hit {
            assert!(at > 3, "the faults have to have met something: {at}");
            break;
        }
    }
}
