//! How many files of segments that take no more appends are open.

use super::*;

const DESCRIPTORS: usize = 320;
/// Of either kind, see `open_segments`.
const MOST: usize = DESCRIPTORS / 16;
/// Files of the segment that takes appends, and of the log directory.
const OTHERS: u64 = 3 + 2;

async fn rolls_for_each_batch(disk: &SimDisk) -> Arc<LogManager> {
    let options = LogManagerOptions { descriptors: DESCRIPTORS, ..options(Path::new(DIR)) };
    LogManager::open(disk.env(), options).await.unwrap()
}

fn each_batch(config: LogConfig) -> LogConfig {
    LogConfig { segment_index_bytes: 4, segment_bytes: 1 << 20, ..config }
}

fn open_segments_max(segments: usize) -> u64 {
    3 * segments as u64 + OTHERS
}

/// One client took all descriptors with a topic that rolls for each batch; others could not connect
/// and were answered with KAFKA_STORAGE_ERROR.
#[tokio::test]
async fn a_log_that_rolls_for_each_batch_leaves_descriptors_to_others() {
    let disk = SimDisk::new(1);
    let manager = rolls_for_each_batch(&disk).await;
    let log = manager.create(TOPIC, ID, 0, each_batch(small())).await.unwrap();
    for i in 0..200 {
        append(&log, 1_000 + i, &["a"]);
    }
    assert_eq!(log.segments_count(), MOST + 1, "further rolls wait for the device");
    assert!(disk.open_files() <= open_segments_max(MOST), "{}", disk.open_files());
    log.sync().unwrap();
    assert!(disk.open_files() <= OTHERS, "what is on the device is closed: {}", disk.open_files());
    for i in 200..400 {
        append(&log, 1_000 + i, &["a"]);
        log.sync().unwrap();
    }
    assert_eq!(log.segments_count(), MOST + 1 + 200);
    assert!(disk.open_files() <= OTHERS, "{}", disk.open_files());
    // Readers open them again.
    for offset in 0..400 {
        log.read_from_disk(offset, 1, Offset::MAX, true).unwrap();
        assert!(disk.open_files() <= open_segments_max(MOST), "{}", disk.open_files());
    }
    // Those that were read last stay open.
    disk.set_descriptors_left(Some(0));
    for offset in 390..400 {
        log.read_from_disk(offset, 1, Offset::MAX, true).unwrap();
    }
    disk.heal();
    // What is on its way to a reader is not opened a second time.
    let (mut answers, mut offset) = (Vec::new(), 0);
    while offset < 400 {
        let answer = log.read_from_disk(offset, usize::MAX, Offset::MAX, true).unwrap();
        assert!(answer.slices.len() <= 64, "one answer does not take all descriptors");
        offset = answer.next_offset;
        answers.push(answer);
    }
    let open = disk.open_files();
    for offset in 0..400 {
        log.read_from_disk(offset, 1, Offset::MAX, true).unwrap();
        assert!(disk.open_files() <= open + open_segments_max(MOST), "{}", disk.open_files());
    }
}

/// A stop had to write a thousand of them, and a start after a crash to look at as many.
#[tokio::test]
async fn segments_that_were_rolled_are_few_until_they_are_on_the_device_and_go_there_soon() {
    let disk = SimDisk::new(1);
    let (_manager, log) = new_log(&disk.env(), Path::new(DIR), each_batch(small())).await;
    for i in 0..8 {
        append(&log, 1_000 + i, &["a"]);
        log.sync().unwrap();
    }
    assert!(!log.is_checkpoint_due());
    for i in 8..20 {
        append(&log, 1_000 + i, &["a"]);
        log.sync().unwrap();
    }
    assert!(log.is_checkpoint_due(), "a start would open them all");
    log.checkpoint().unwrap();
    assert!(!log.is_checkpoint_due());
    // Nothing waits for the device any more.
    log.set_config(each_batch(LogConfig { durable: false, ..small() }));
    log.sync().unwrap();
    let before = log.segments_count();
    append(&log, 1_100, &["a"]);
    assert!(log.is_checkpoint_due(), "one was rolled");
    for i in 0..200 {
        append(&log, 1_200 + i, &["a"]);
    }
    assert_eq!(log.segments_count() - before, 64, "further rolls wait for the device");
    log.checkpoint().unwrap();
    assert!(!log.is_checkpoint_due());
}

/// They waited for an append that never came, and the rolls of all other logs for them.
#[tokio::test(start_paused = true)]
async fn what_is_rolled_for_its_age_waits_for_no_append() {
    let disk = SimDisk::new(1);
    let manager = rolls_for_each_batch(&disk).await;
    let config = LogConfig { segment_ms: 1_000, ..small() };
    for partition in 0..100 {
        let log = manager.create(TOPIC, ID, partition, config.clone()).await.unwrap();
        append(&log, manager.env.clock.wall_ms() - 60_000, &["a"]);
        log.checkpoint().unwrap();
    }
    let stop = CancellationToken::new();
    let upkeep = tokio::spawn(manager.clone().run_upkeep(stop.clone()));
    let all_rolled = async {
        while manager.logs().iter().any(|log| log.segments_count() == 1) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), all_rolled).await.expect("some wait");
    assert!(!manager.dirs()[0].rolls_wait());
    stop.cancel();
    upkeep.await.unwrap();
}

/// Those that were written to first kept their files, and all others were refused while these were in
/// use.
#[tokio::test]
async fn partitions_are_written_to_in_turn_where_descriptors_are_few() {
    let disk = SimDisk::new(1);
    let manager = open(&disk.env(), Path::new(DIR)).await;
    let mut logs = Vec::new();
    for partition in 0..30 {
        logs.push(manager.create(TOPIC, ID, partition, small()).await.unwrap());
    }
    // Room for five, and for what a sync opens.
    disk.set_descriptors_left(Some(3 * 5 + 1));
    for round in 0..4 {
        for log in &logs {
            append(log, 1_000 + round, &["a"]);
            log.sync().unwrap();
        }
    }
    // What is not on the device keeps its files.
    let refused = |log: &Arc<Log>| {
        let refused = log.append(batch(2_000, &["a"]), &client(2_000));
        matches!(refused, Err(AppendError::Unavailable { .. }))
    };
    let unsynced: Vec<_> = logs.iter().take_while(|log| !refused(log)).collect();
    assert_eq!(unsynced.len(), 5);
    let last = logs.last().unwrap();
    assert!(refused(last));
    unsynced[2].sync().unwrap();
    append(last, 2_000, &["a"]);
    assert_eq!((last.end_offset(), last.durable_end()), (5, 4));
}

/// Entries of the indexes that waited in memory while the files were closed were never written.
#[tokio::test]
async fn a_segment_whose_files_were_closed_meanwhile_has_whole_indexes() {
    let indexes = async |closes: bool| {
        let disk = SimDisk::new(1);
        let config = LogConfig { segment_bytes: 1 << 20, ..small() };
        let (manager, log) = new_log(&disk.env(), Path::new(DIR), config).await;
        for i in 0..20 {
            append(&log, 1_000 + i, &["a".repeat(100).as_str()]);
        }
        let active = log.active();
        assert!(!manager.descriptors.active.close_one(), "its records are not on the device");
        log.sync().unwrap();
        if closes {
            assert!(manager.descriptors.active.close_one());
            assert!(!manager.descriptors.active.close_one(), "there is one");
        }
        active.sync_indexes().unwrap();
        [".index", ".timeindex"].map(|suffix| disk.read(&active.path(suffix)).unwrap())
    };
    let whole = indexes(false).await;
    assert!(whole[0].len() > 8 && whole[1].len() > 12);
    assert_eq!(indexes(true).await, whole);
}

/// Small compacted segments were opened at each look, and so never closed.
#[tokio::test]
async fn a_look_at_segments_opens_none_of_them() {
    let disk = SimDisk::new(1);
    let manager = rolls_for_each_batch(&disk).await;
    let log = manager.create(TOPIC, ID, 0, each_batch(compacted())).await.unwrap();
    for i in 0..100 {
        append(&log, 1_000 + i, &["a"]);
        log.sync().unwrap();
    }
    log.set_high_watermark(100);
    disk.set_descriptors_left(Some(0));
    assert_eq!(log.compact(&pass(5_000, 100, 1_000)).unwrap(), None, "nothing is dirty");
    log.set_config(each_batch(LogConfig { retention_ms: i64::MAX, ..small() }));
    assert!(log.apply_retention(5_000).unwrap().is_empty());
    assert!(disk.open_files() <= OTHERS);
}

/// A broker that could open none of its logs any more did not start.
#[tokio::test]
async fn a_log_with_more_segments_than_descriptors_past_its_recovery_point_is_opened() {
    for (is_closed, lacks_space) in [(false, false), (false, true), (true, false)] {
        let disk = SimDisk::new(1);
        let manager = rolls_for_each_batch(&disk).await;
        let log = manager.create(TOPIC, ID, 0, each_batch(small())).await.unwrap();
        for i in 0..200 {
            append(&log, 1_000 + i, &["a"]);
            log.sync().unwrap();
        }
        assert_eq!((log.recovery_point(), log.segments_count()), (0, 200));
        drop(log);
        if is_closed {
            manager.close().await.unwrap();
        }
        drop(manager);
        disk.power_cut();
        if !lacks_space {
            disk.set_descriptors_left(Some(10));
        } else {
            disk.set_free(0);
        }
        let manager = rolls_for_each_batch(&disk).await;
        let log = manager.get(ID, 0).expect("it is opened");
        assert_eq!((log.end_offset(), log.durable_end()), (200, 200));
        disk.heal();
        append(&log, 2_000, &["a"]);
        log.checkpoint().unwrap();
        assert!(disk.open_files() <= open_segments_max(MOST), "{}", disk.open_files());
    }
}

/// A compacted log of many segments, in a process that may hold so many descriptors.
async fn to_merge(disk: &SimDisk, descriptors: usize) -> (Arc<LogManager>, Arc<Log>) {
    let options = LogManagerOptions { descriptors, ..options(Path::new(DIR)) };
    let manager = LogManager::open(disk.env(), options).await.unwrap();
    let log = manager.create(TOPIC, ID, 0, each_batch(compacted())).await.unwrap();
    for i in 0..30i64 {
        keyed(&log, i, &[(&format!("k{}", i % 6), Some(&i.to_string()))]);
        log.sync().unwrap();
    }
    log.set_config(LogConfig { segment_bytes: 1 << 20, ..compacted() });
    log.set_high_watermark(30);
    (manager, log)
}

/// It left the files of all segments open that it had come to, for good; few descriptors were used
/// up by it, and no later one came further.
#[tokio::test]
async fn a_compaction_that_a_lack_has_ended_leaves_no_file_open() {
    const DESCRIPTORS: usize = 96;
    let most = open_segments_max(DESCRIPTORS / 16);
    for at in (0..).step_by(3) {
        let disk = SimDisk::new(at);
        let (_manager, log) = to_merge(&disk, DESCRIPTORS).await;
        disk.inject(Fault::NoDescriptor, "", at, u64::MAX);
        let done = log.compact(&pass(1, 0, 1_000)).is_ok();
        disk.heal();
        // Whose files may be closed is closed by what others read.
        for offset in 0..30 {
            log.read_from_disk(offset, 1, Offset::MAX, true).unwrap();
        }
        let logs = disk.list(&log.path).unwrap();
        let logs = logs.iter().filter(|entry| entry.name.ends_with(".log")).count();
        // Readers need the files whose names are gone until the merge is finished.
        let nameless = log.segments_count().saturating_sub(logs);
        let open = disk.open_files();
        assert!(
            open <= most + 3 * (nameless + usize::from(nameless > 0)) as u64,
            "after {at}: {open}, {nameless} without a name"
        );
        if done {
            assert!(at > 50, "the faults have to have met something: {at}");
            break;
        }
        log.compact(&pass(1, 0, 1_000)).unwrap();
        assert!(disk.open_files() <= most, "after {at}: {}", disk.open_files());
    }
}

#[tokio::test]
async fn compaction_of_many_segments_needs_few_descriptors() {
    let disk = SimDisk::new(1);
    let (_manager, log) = to_merge(&disk, 42).await;
    let before = log.segments_count();
    disk.set_descriptors_left(Some(24));
    log.compact(&pass(1, 0, 1_000)).unwrap().unwrap();
    assert!(log.segments_count() <= before / 2 + 1, "{before}, then {}", log.segments_count());
}

/// Clients that read no answer took all descriptors.
#[tokio::test]
async fn the_files_of_all_answers_have_one_bound() {
    let disk = SimDisk::new(1);
    let manager = rolls_for_each_batch(&disk).await;
    let log = manager.create(TOPIC, ID, 0, each_batch(small())).await.unwrap();
    let large = "a".repeat(70_000);
    for i in 0..201 {
        append(&log, 1_000 + i, &[if i < 200 { "a" } else { &large }]);
        log.sync().unwrap();
    }
    let read = |from, is_first| log.read_from_disk(from, usize::MAX, 201, is_first).unwrap();
    let first = read(0, true);
    assert_eq!((first.slices.len(), manager.answer_files()), (MOST, MOST));
    assert!(first.lacks_files, "there are more");
    let second = read(100, true);
    assert!(matches!(&second.slices[..], [Slice::Memory(_)]), "it goes on its way, as a copy");
    assert_eq!((second.next_offset, second.lacks_files), (101, true));
    assert_eq!((first.in_memory(), second.in_memory()), (0, second.bytes));
    let third = read(200, true);
    assert!(matches!(&third.slices[..], [Slice::File { .. }]), "a copy of it would be large");
    drop(third);
    let other = read(150, false);
    assert_eq!((other.bytes, other.next_offset), (0, 150), "it is not the first of its answer");
    assert!(other.lacks_files);
    assert!(log.try_read_from_page_cache(150, 1 << 20, 200, false).is_none_or(|of| of.bytes == 0));
    assert_eq!(manager.answer_files(), MOST);
    drop(first);
    assert_eq!(bytes_of(&read(100, true))[..second.bytes], bytes_of(&second));
    assert_eq!(read(100, false).slices.len(), MOST);
    assert_eq!(manager.answer_files(), 0);
}
