//! The log as a whole, on a real directory and on a disk that fails.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use futures::FutureExt;
use letterbox_env::{Disk, Env, OpenMode};
use letterbox_sim::disk::{Fault, SimDisk};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::*;
use letterbox_protocol::batch::{Batch, BatchBuilder, BatchHeader, Compression, RecordIter};
use letterbox_protocol::compression::compress;
use letterbox_protocol::model::Offset;

mod cuts;
mod faults;
mod gaps;
mod lifecycle;
mod open_files;
mod upkeep;

const TOPIC: &str = "orders";
const ID: Uuid = Uuid::from_u128(42);

/// Where logs are on a simulated disk.
const DIR: &str = "/logs";

const EIO: i32 = 5;
const EACCES: i32 = 13;

fn options(dir: &Path) -> LogManagerOptions {
    LogManagerOptions { reserve_bytes: Some(0), ..LogManagerOptions::new(vec![dir.into()]) }
}

fn small() -> LogConfig {
    LogConfig {
        segment_bytes: 2_000,
        index_interval_bytes: 200,
        retention_ms: -1,
        message_timestamp_after_max_ms: i64::MAX,
        ..LogConfig::default()
    }
}

async fn open(env: &Env, dir: &Path) -> Arc<LogManager> {
    LogManager::open(env.clone(), options(dir)).await.unwrap()
}

impl LogManager {
    async fn create(
        &self,
        topic: &str,
        topic_id: Uuid,
        partition: i32,
        config: LogConfig,
    ) -> Result<Arc<Log>, LogError> {
        self.host(vec![WantedLog {
            topic: topic.into(),
            topic_id,
            partition,
            config,
            is_new: true,
            may_be_copied: false,
        }])
        .await
        .remove(0)
    }
}

async fn new_log(env: &Env, dir: &Path, config: LogConfig) -> (Arc<LogManager>, Arc<Log>) {
    let manager = open(env, dir).await;
    let log = manager.create(TOPIC, ID, 0, config).await.unwrap();
    (manager, log)
}

fn batch(timestamp: i64, values: &[&str]) -> BytesMut {
    let mut builder = BatchBuilder::new(timestamp);
    for (i, value) in values.iter().enumerate() {
        builder.push(timestamp + i as i64, Some(b"k"), Some(value.as_bytes()), &[]);
    }
    builder.build()
}

fn client(now_ms: i64) -> AppendOptions {
    AppendOptions { leader_epoch: 0, now_ms, origin: Origin::Client }
}

/// What a leader has, all of which is committed.
const COPIED: Origin = Origin::Replication { committed: Offset::MAX };

fn append(log: &Arc<Log>, timestamp: i64, values: &[&str]) -> AppendInfo {
    log.append(batch(timestamp, values), &client(timestamp)).unwrap()
}

fn bytes_of(result: &ReadResult) -> Vec<u8> {
    let mut out = Vec::new();
    for slice in &result.slices {
        match slice {
            Slice::Memory(bytes) => out.extend_from_slice(bytes),
            Slice::File { file, position, len, .. } => {
                let mut bytes = vec![0; *len];
                file.read_exact_at(&mut bytes, *position).unwrap();
                out.extend_from_slice(&bytes);
            }
        }
    }
    assert_eq!(out.len(), result.bytes);
    out
}

fn batches(mut bytes: &[u8]) -> Vec<BatchHeader> {
    let mut headers = Vec::new();
    while !bytes.is_empty() {
        let (batch, rest) = Batch::split(bytes).unwrap();
        batch.check_crc().unwrap();
        headers.push(batch.header);
        bytes = rest;
    }
    headers
}

/// Every value by its offset.
fn contents(log: &Log) -> BTreeMap<Offset, String> {
    let bytes =
        bytes_of(&log.read_from_disk(log.start_offset(), usize::MAX, Offset::MAX, true).unwrap());
    let (mut found, mut rest) = (BTreeMap::new(), &bytes[..]);
    while !rest.is_empty() {
        let (batch, after) = Batch::split(rest).unwrap();
        for record in
            RecordIter::new(batch.records_bytes(), batch.header.records_count).map(Result::unwrap)
        {
            found.insert(
                batch.header.base_offset + i64::from(record.offset_delta),
                String::from_utf8(record.value.unwrap_or_default().to_vec()).unwrap(),
            );
        }
        rest = after;
    }
    found
}

fn copy_dir(from: &Path, to: &Path) {
    let disk = Env::real().disk;
    disk.create_dir_all(to).unwrap();
    for entry in disk.list(from).unwrap() {
        if entry.is_dir {
            copy_dir(&from.join(&entry.name), &to.join(&entry.name));
        } else {
            let file = disk.open(&to.join(&entry.name), OpenMode::Truncate).unwrap();
            file.write_at(&[io::IoSlice::new(&disk.read(&from.join(&entry.name)).unwrap())], 0)
                .unwrap();
        }
    }
}

#[tokio::test]
async fn records_survive_a_clean_stop_and_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let (manager, log) = new_log(&env, dir.path(), small()).await;
    for i in 0..100 {
        let info = append(&log, 1_000 + i, &["a", "b"]);
        assert_eq!((info.base_offset, info.last_offset), (i * 2, i * 2 + 1));
        if i % 7 == 0 {
            log.sync().unwrap();
        }
    }
    assert!(log.segments.load().len() > 3);
    let expected = contents(&log);
    assert_eq!(expected.len(), 200);
    // A kill: the directory as it is now, reserve and all.
    let killed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), killed.path());
    manager.close().await.unwrap();
    assert_eq!(log.append(batch(0, &["x"]), &client(0)).unwrap_err().code().code(), 6);
    drop((manager, log));
    for path in [dir.path(), killed.path()] {
        let manager = open(&env, path).await;
        let log = manager.get(ID, 0).unwrap();
        assert_eq!((log.start_offset(), log.end_offset(), log.durable_end()), (0, 200, 200));
        assert_eq!(contents(&log), expected);
        assert_eq!(log.end_offset_for_epoch(0), Some((0, 200)));
        assert_eq!(append(&log, 5_000, &["c"]).base_offset, 200);
    }
}

/// Who looked an epoch up may find it over when it appends: nothing is stored then.
#[tokio::test]
async fn no_record_is_appended_in_an_epoch_that_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let (_manager, log) = new_log(&Env::real(), dir.path(), small()).await;
    let (epoch, is_done) = (AtomicI32::new(0), AtomicBool::new(false));
    let mut begun = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                let leader_epoch = epoch.load(Ordering::Relaxed);
                let options = AppendOptions { leader_epoch, ..client(0) };
                let _ = log.append(batch(0, &["a"]), &options);
            }
        });
        for next in 1..=500 {
            log.begin_epoch(next);
            begun.push((next, log.end_offset()));
            epoch.store(next, Ordering::Relaxed);
            std::thread::yield_now();
        }
        is_done.store(true, Ordering::Relaxed);
    });
    for (epoch, end) in begun {
        let before = log.end_offset_for_epoch(epoch - 1);
        assert!(before.is_none_or(|(_, until)| until <= end), "{epoch} begun at {end}: {before:?}");
    }
    let stale = AppendOptions { leader_epoch: 499, ..client(0) };
    let refusal = log.append(batch(0, &["a"]), &stale).unwrap_err();
    assert_eq!(
        (refusal.code().code(), refusal.to_string()),
        (74, "leader epoch 499 is older than the log's 500".into())
    );
    let followed = AppendOptions { origin: COPIED, ..stale };
    assert_eq!(log.append(batch(0, &["a"]), &followed).unwrap_err().code().code(), 74);
}

#[tokio::test]
async fn a_start_reads_little() {
    let dir = Path::new(DIR);
    let disk = SimDisk::new(1);
    let opened = async || {
        let before = disk.stats().bytes_read;
        let manager = open(&disk.env(), dir).await;
        let log = manager.get(ID, 0).unwrap();
        (manager, log, disk.stats().bytes_read - before)
    };
    let value = "v".repeat(10_000);
    // Segments of 16 MiB, 40 MiB in all: the last is half full.
    let config = LogConfig { segment_bytes: 16 << 20, index_interval_bytes: 4096, ..small() };
    let (manager, log) = new_log(&disk.env(), dir, config).await;
    for i in 0..4_000 {
        append(&log, i, &[&value]);
    }
    drop(log);
    manager.close().await.unwrap();
    drop(manager);
    let (manager, log, read) = opened().await;
    assert!(read <= 1 << 20, "{read} bytes after a clean stop");
    assert_eq!(log.end_offset(), 4_000);
    // Killed with 3 MB past the recovery point: those are read, whole and then their headers in
    // blocks of 8 KiB, and not the 40 MB before.
    for i in 4_000..4_300 {
        append(&log, i, &[&value]);
    }
    log.sync().unwrap();
    drop((manager, log));
    let (_manager, log, read) = opened().await;
    assert!((3_000_000..9_000_000).contains(&read), "{read} bytes after a kill");
    assert_eq!(log.end_offset(), 4_300);
}

#[tokio::test]
async fn reads_are_whole_batches_within_their_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let (_manager, log) = new_log(&Env::real(), dir.path(), small()).await;
    let mut ends = vec![0];
    for i in 0..150i64 {
        let values = vec!["some value"; (i % 5) as usize + 1];
        ends.push(append(&log, i, &values).last_offset + 1);
    }
    let all = batches(&bytes_of(&log.read_from_disk(0, usize::MAX, Offset::MAX, true).unwrap()));
    assert_eq!(all.len(), 150);
    for from in 0..=log.end_offset() {
        for (max, end) in
            [(0, Offset::MAX), (1, 200), (300, Offset::MAX), (5_000, 333), (usize::MAX, 101)]
        {
            for at_least_one in [false, true] {
                let mut expected: Vec<&BatchHeader> = all
                    .iter()
                    .filter(|batch| batch.last_offset() >= from && batch.next_offset() <= end)
                    .collect();
                // Naively: as many as fit.
                let mut room = max;
                let fit = expected
                    .iter()
                    .take_while(|batch| {
                        room.checked_sub(batch.size()).map(|left| room = left).is_some()
                    })
                    .count();
                expected.truncate(if fit == 0 && at_least_one { 1 } else { fit });
                let found = log.read_from_disk(from, max, end, at_least_one).unwrap();
                assert_eq!(
                    batches(&bytes_of(&found)).iter().collect::<Vec<_>>(),
                    expected,
                    "from {from} max {max} end {end}"
                );
                let warm = log
                    .try_read_from_page_cache(from, max, end, at_least_one)
                    .expect("it has just been written");
                assert_eq!(
                    (bytes_of(&warm), warm.next_offset),
                    (bytes_of(&found), found.next_offset),
                    "from {from} max {max} end {end}"
                );
                let cached = log.try_read_cached(from, max, end, at_least_one).unwrap();
                if let Some(cached) = cached {
                    assert_eq!(
                        bytes_of(&cached),
                        bytes_of(&found),
                        "cached: from {from} max {max} end {end}"
                    );
                    assert_eq!(cached.next_offset, found.next_offset);
                }
            }
        }
    }
    assert!(
        log.try_read_cached(0, 10, 10, true).unwrap().is_some(),
        "150 small batches stay in memory"
    );
    assert_eq!(
        log.read_from_disk(log.end_offset() + 1, 1, 1, true).err().unwrap().code().code(),
        1
    );
}

#[tokio::test]
async fn a_read_that_would_wait_for_the_device_says_so() {
    let disk = SimDisk::new(1);
    let (_manager, log) = new_log(&disk.env(), Path::new(DIR), small()).await;
    append(&log, 0, &["some value"]);
    log.sync().unwrap();
    disk.drop_caches();
    assert!(
        log.try_read_from_page_cache(0, 300, Offset::MAX, true).is_none(),
        "it waits for the device"
    );
    assert!(!log.read_from_disk(0, 300, Offset::MAX, true).unwrap().slices.is_empty());
}

#[tokio::test]
async fn timestamps_are_found_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let (_manager, log) = new_log(&Env::real(), dir.path(), small()).await;
    let mut times = Vec::new();
    for i in 0..120i64 {
        // Out of order, with equal ones.
        let time = 1_000 + (i * 37) % 50 * 10;
        append(&log, time, &["a", "b", "c"]);
        times.extend([time, time + 1, time + 2]);
    }
    for timestamp in 990..1_510 {
        let expected =
            times.iter().position(|time| *time >= timestamp).map(|at| (times[at], at as i64));
        assert_eq!(
            log.offset_for_timestamp(timestamp)
                .unwrap()
                .map(|found| (found.timestamp, found.offset)),
            expected,
            "{timestamp}"
        );
    }
    let max = *times.iter().max().unwrap();
    let found = log.max_timestamp().unwrap().unwrap();
    assert_eq!(
        (found.timestamp, found.offset),
        (max, times.iter().position(|time| *time == max).unwrap() as i64)
    );
}

#[tokio::test]
async fn tail_cut_at_every_byte_is_recovered_to_the_last_whole_batch() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Env::real().disk;
    let (_manager, log) =
        new_log(&Env::real(), dir.path(), LogConfig { segment_bytes: 1 << 20, ..small() }).await;
    let mut ends = vec![(0u64, 0i64)];
    for i in 0..6 {
        append(&log, i, &["first", "second"]);
        ends.push((log.size(), log.end_offset()));
    }
    let path = dir.path().join("orders-0");
    let file = path.join("00000000000000000000.log");
    let whole = disk.read(&file).unwrap();
    let put = |bytes: &[u8]| {
        disk.open(&file, OpenMode::Truncate)
            .unwrap()
            .write_at(&[io::IoSlice::new(bytes)], 0)
            .unwrap()
    };
    for cut in 0..whole.len() {
        // Once the file ends there, once zeros follow, as after a crash inside the reserve.
        for zeros in [0, 500] {
            let mut bytes = whole[..cut].to_vec();
            bytes.resize(cut + zeros, 0);
            put(&bytes);
            // A batch that ends with a zero is whole when only that was cut.
            let expected = ends
                .iter()
                .rev()
                .find(|(size, _)| bytes.starts_with(&whole[..*size as usize]))
                .unwrap();
            let found = recover(&disk, &path, 0, 0, 0, None, 0).unwrap();
            assert_eq!(
                (found.end_offset(), disk.read(&file).unwrap().len() as u64),
                (expected.1, expected.0),
                "cut at {cut}"
            );
        }
        // The same below the recovery point is no torn tail.
        put(&whole[..cut]);
        let lost = recover(&disk, &path, 12, 0, 0, None, 0);
        assert!(matches!(lost, Err(LogError::Corrupt { .. })), "cut at {cut}");
        assert_eq!(disk.read(&file).unwrap().len(), cut, "nothing is cut below the recovery point");
    }
    // The reserve still stands where a sector was not written that ends within the offset of the
    // last batch: no gap, but torn.
    let last = ends[ends.len() - 2];
    for unwritten in 1..=8 {
        let mut bytes = whole.clone();
        bytes[last.0 as usize..][..unwritten].fill(0x7f);
        put(&bytes);
        let found = recover(&disk, &path, 0, 0, 0, None, 0).unwrap();
        assert_eq!(
            (found.end_offset(), disk.read(&file).unwrap().len() as u64),
            (last.1, last.0),
            "{unwritten} bytes of the offset"
        );
    }
    // A flipped bit ends the log in front of its batch; the offset and the epoch lie outside the
    // checksum.
    for at in (0..whole.len()).filter(|at| at % 3 == 0) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        put(&bytes);
        let (start, expected) = *ends.iter().rev().find(|(size, _)| *size <= at as u64).unwrap();
        let inside = at as u64 - start;
        let found = recover(&disk, &path, 0, 0, 0, None, 0).unwrap();
        if inside >= 16 {
            assert_eq!(found.end_offset(), expected, "flip at {at}");
            assert!(matches!(
                {
                    put(&bytes);
                    recover(&disk, &path, 12, 0, 0, None, 0)
                },
                Err(LogError::Corrupt { .. })
            ));
        }
    }
}

#[tokio::test]
async fn crash_between_any_two_changes_loses_nothing_synced() {
    for at in 0.. {
        let dir = Path::new(DIR);
        let disk = SimDisk::new(1);
        let (manager, log) =
            new_log(&disk.env(), dir, LogConfig { segment_bytes: 400, ..small() }).await;
        disk.inject(Fault::FailChange, "", at, u64::MAX);
        let mut acknowledged = 0;
        let mut appended = 0;
        for i in 0..12i64 {
            if log.append(batch(i, &["a value", "another"]), &client(i)).is_ok() {
                appended = log.end_offset();
            }
            match if i % 3 == 2 { log.checkpoint() } else { log.sync() } {
                Ok(durable) => acknowledged = durable,
                Err(_) => assert!(log.is_offline(), "a failed sync fences"),
            }
            if i % 4 == 3 {
                let _ = log.dir.partitions.set_recovery_points([&*log]);
            }
        }
        let failed = !disk.stats().faults.is_empty();
        if failed {
            assert!(
                log.append(batch(99, &["late"]), &client(99)).is_err(),
                "fenced after {at} changes"
            );
        }
        drop((manager, log));
        disk.heal();
        let manager = open(&disk.env(), dir).await;
        let log = manager
            .get(ID, 0)
            .unwrap_or_else(|| panic!("after {at} changes: {:?}", manager.offline_logs()));
        assert!(
            log.end_offset() >= acknowledged,
            "after {at} changes: {} of {acknowledged}",
            log.end_offset()
        );
        assert!(log.end_offset() <= appended + 2);
        assert!(contents(&log).keys().copied().eq(0..log.end_offset()));
        if !failed {
            assert!(at > 50, "the faults have to have met something: {at}");
            break;
        }
    }
}

#[tokio::test]
async fn failed_sync_fences_and_no_space_passes() {
    let dir = Path::new(DIR);
    let disk = SimDisk::new(1);
    let (manager, log) = new_log(&disk.env(), dir, small()).await;
    append(&log, 0, &["a"]);
    log.sync().unwrap();
    assert!(manager.until_all_offline().now_or_never().is_none());
    disk.inject(Fault::NoSpace, "", 0, u64::MAX);
    let error = log.append(batch(1, &["b"]), &client(1)).unwrap_err();
    assert!(matches!(error, AppendError::LogDirFull { .. }) && error.code().code() == 56);
    disk.heal();
    assert!(matches!(
        log.append(batch(1, &["b"]), &client(1)),
        Err(AppendError::LogDirFull { .. })
    ));
    log.dir().check_space(Some(0));
    assert_eq!(append(&log, 1, &["b"]).base_offset, 1);
    log.sync().unwrap();
    append(&log, 2, &["c"]);
    disk.inject(Fault::FailSync, "", 0, u64::MAX);
    log.sync().unwrap_err();
    disk.heal();
    assert!(matches!(
        log.append(batch(3, &["d"]), &client(3)),
        Err(AppendError::LogDirOffline { .. })
    ));
    log.sync().unwrap_err();
    assert_eq!((log.durable_end(), contents(&log).len()), (2, 3));
    let reason =
        tokio::time::timeout(Duration::from_secs(10), manager.until_all_offline()).await.unwrap();
    assert!(reason.contains(": sync: "), "{reason}");
}

/// Rolls, syncs and checkpoints, and in front of each change of the disk in turn it begins to lack
/// space or descriptors.
#[tokio::test]
async fn a_lack_of_space_or_descriptors_passes_and_loses_nothing_wherever_it_strikes() {
    for fault in [Fault::NoSpace, Fault::NoDescriptor] {
        for at in 0.. {
            let dir = Path::new(DIR);
            let disk = SimDisk::new(1);
            let (manager, log) =
                new_log(&disk.env(), dir, LogConfig { segment_bytes: 400, ..small() }).await;
            disk.inject(fault, "", at, u64::MAX);
            let mut met = false;
            let (mut stored, mut durable) = (BTreeMap::new(), 0);
            for i in 0..24i64 {
                if i == 18 {
                    met = !disk.stats().faults.is_empty();
                    disk.heal();
                    log.dir().check_space(Some(0));
                }
                if i % 6 == 5 {
                    log.close_idle();
                    log.close_idle();
                }
                let value = format!("value {i}");
                match log.append(
                    batch(i, &[&value]),
                    &AppendOptions { leader_epoch: i as i32 / 4, ..client(i) },
                ) {
                    Ok(info) => drop(stored.insert(info.base_offset, value)),
                    Err(error) => assert_eq!(
                        (error.code().code(), i < 18),
                        (56, true),
                        "{fault:?} after {at} changes, append {i}: {error}"
                    ),
                }
                match if i % 3 == 2 { log.checkpoint() } else { log.sync() } {
                    Ok(end) => durable = end,
                    Err(error) => {
                        assert!(i < 18, "{fault:?} after {at} changes, sync {i}: {error}")
                    }
                }
                if i % 6 == 5 {
                    let _ = log.dir.partitions.set_recovery_points([&*log]);
                }
                assert!(
                    !log.is_offline() && log.dir().offline().is_none(),
                    "{fault:?} after {at} changes: {:?}",
                    log.dir().offline()
                );
            }
            assert_eq!(durable, log.end_offset());
            assert_eq!(contents(&log), stored, "{fault:?} after {at} changes");
            let epochs: Vec<_> = (0..6).map(|epoch| log.end_offset_for_epoch(epoch)).collect();
            drop((manager, log));
            let manager = open(&disk.env(), dir).await;
            let log = manager.get(ID, 0).unwrap_or_else(|| {
                panic!("{fault:?} after {at} changes: {:?}", manager.offline_logs())
            });
            assert_eq!(contents(&log), stored, "{fault:?} after {at} changes and a kill");
            assert_eq!(
                (0..6).map(|epoch| log.end_offset_for_epoch(epoch)).collect::<Vec<_>>(),
                epochs
            );
            if !met {
                assert!(at > 30, "the faults have to have met something: {at}");
                break;
            }
        }
    }
}

/// A roll that finds a descriptor for one file and none for the next leaves no segment behind:
/// readers would look there for the records that went into the old one instead.
#[tokio::test]
async fn a_roll_that_fails_half_way_hides_no_record_after_a_restart() {
    for (fault, opened) in
        (0..4).flat_map(|n| [Fault::NoDescriptor, Fault::NoSpace].map(|fault| (fault, n)))
    {
        let dir = Path::new(DIR);
        let disk = SimDisk::new(1);
        let (manager, log) =
            new_log(&disk.env(), dir, LogConfig { segment_bytes: 400, ..small() }).await;
        append(&log, 0, &["a value"]);
        append(&log, 1, &[&"long ".repeat(20)]);
        log.sync().unwrap();
        disk.inject(fault, "", opened, u64::MAX);
        let refused = log.append(batch(2, &[&"longer ".repeat(30)]), &client(2)).is_err();
        disk.heal();
        log.dir().check_space(Some(0));
        // These fit where the long one did not, until the log rolls after all.
        for i in 3..9 {
            append(&log, i, &["short"]);
        }
        log.sync().unwrap();
        let stored = contents(&log);
        assert_eq!(stored.len(), if refused { 8 } else { 9 });
        drop((manager, log));
        let manager = open(&disk.env(), dir).await;
        let log = manager.get(ID, 0).unwrap();
        for from in 0..log.end_offset() {
            let found =
                batches(&bytes_of(&log.read_from_disk(from, 1, Offset::MAX, true).unwrap()));
            assert_eq!(
                found.first().map(|batch| batch.base_offset),
                Some(from),
                "{fault:?} after {opened} changes"
            );
        }
        assert_eq!(contents(&log), stored, "{fault:?} after {opened} changes");
    }
}

#[tokio::test]
async fn a_log_whose_files_are_gone_is_out_of_use_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (manager, log) =
        new_log(&Env::real(), dir.path(), LogConfig { segment_bytes: 150, ..small() }).await;
    let other = manager.create("other", Uuid::from_u128(43), 0, small()).await.unwrap();
    append(&log, 0, &["a"]);
    Env::real().disk.remove_dir_all(&log.path).unwrap();
    let error = log
        .append(batch(1, &["rolls into a new segment, whose directory is not there"]), &client(1))
        .unwrap_err();
    assert!(matches!(error, AppendError::Broken { .. }) && error.code().code() == 56, "{error}");
    assert!(log.is_offline() && !other.is_offline());
    log.sync().unwrap_err();
    append(&other, 0, &["b"]);
    other.sync().unwrap();
}

#[tokio::test]
async fn the_bytes_from_an_offset_on_are_known_without_a_look_at_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { segment_bytes: 400, ..small() };
    let (_manager, log) = new_log(&Env::real(), dir.path(), config).await;
    assert_eq!((log.bytes_from(0), log.bytes_from(9)), (0, 0));
    for offset in 0..40 {
        append(&log, offset, &["a record"]);
    }
    assert!(log.segments_count() > 3);
    // All are equally large.
    let one = log.size() / 40;
    for offset in 0..50 {
        let left = u64::try_from(40 - offset).unwrap_or(0);
        assert_eq!(log.bytes_from(offset), left * one, "{offset}");
    }
    assert_eq!(log.bytes_from(-1), log.size());
}

#[tokio::test]
async fn the_reserve_is_for_coordinators_and_fits_the_file_system() {
    let dir = Path::new(DIR);
    let disk = SimDisk::new(1);
    let config = LogConfig { segment_bytes: 16 << 20, ..small() };
    let (_manager, log) = new_log(&disk.env(), dir, config).await;
    let is_full = |options: &AppendOptions| match log.append(batch(0, &["a"]), options) {
        Ok(_) => false,
        Err(AppendError::LogDirFull { .. }) => true,
        Err(error) => panic!("{error}"),
    };
    let (of_client, of_coordinator) =
        (client(0), AppendOptions { origin: Origin::Coordinator, ..client(0) });
    for (name, free, reserve, expected) in [
        ("the default of a large file system", (64 << 20) - 1, None, (true, false)),
        ("the default of a large file system", 65 << 20, None, (false, false)),
        ("less than the reserve", 999_999, Some(1_000_000), (true, false)),
        ("less than a quarter of it", 249_999, Some(1_000_000), (true, true)),
        ("no reserve", 1 << 20, Some(0), (false, false)),
    ] {
        disk.set_free(free);
        log.dir().check_space(reserve);
        assert_eq!((is_full(&of_client), is_full(&of_coordinator)), expected, "{name}");
        assert_eq!(
            log.dir().refusal().is_some_and(|reason| reason.contains("log.dir.reserve.bytes")),
            expected.0,
            "{name}"
        );
    }
    // Between two looks at the space, appends count against it.
    disk.set_free(5 << 20);
    log.dir().check_space(Some(1 << 20));
    let big = "x".repeat(1 << 10);
    let taken =
        (0..10_000).take_while(|i| log.append(batch(*i, &[&big]), &client(*i)).is_ok()).count();
    assert!((3_000..4_200).contains(&taken), "{taken} KiB of 4 MiB");
}

/// A commit of a group's offsets is acknowledged when its followers have it.
#[tokio::test]
async fn a_follower_takes_into_its_reserve_what_a_coordinator_may_write() {
    let disk = SimDisk::new(1);
    let manager = open(&disk.env(), Path::new(DIR)).await;
    let options = AppendOptions { leader_epoch: 1, now_ms: 0, origin: COPIED };
    for (topic, free, expected) in [
        (TOPIC, 999_999, true),
        ("__consumer_offsets", 999_999, false),
        ("__consumer_offsets", 249_999, true),
    ] {
        disk.set_free(2_000_000);
        let id = Uuid::from_u128(topic.len() as u128);
        let log = manager.create(topic, id, 0, small()).await.unwrap();
        disk.set_free(free);
        log.dir().check_space(Some(1_000_000));
        let mut builder = BatchBuilder::new(1).at(log.end_offset(), 1);
        builder.push(1, Some(b"k"), Some(b"v"), &[]);
        let appended = log.append(builder.build(), &options);
        let is_full = matches!(appended, Err(AppendError::LogDirFull { .. }));
        assert_eq!((is_full, appended.is_ok()), (expected, !expected), "{topic}, {free}");
        log.dir().check_space(Some(0));
    }
}

/// Whatever says so moves leads: a directory that is full now and then stays full meanwhile.
#[tokio::test]
async fn a_log_is_full_until_its_directory_has_had_room_for_a_while() {
    let disk = SimDisk::new(1);
    let manager = open(&disk.env(), Path::new(DIR)).await;
    let log = manager.create(TOPIC, Uuid::from_u128(1), 0, small()).await.unwrap();
    let offsets = manager.create("__consumer_offsets", Uuid::from_u128(2), 0, small()).await;
    let offsets = offsets.unwrap();
    tokio::time::pause();
    let look = |free| {
        disk.set_free(free);
        log.dir().check_space(Some(1_000_000));
        (log.is_full(), offsets.is_full())
    };
    let wait = |secs| tokio::time::advance(Duration::from_secs(secs));
    assert_eq!(look(1_000_000), (false, false));
    assert_eq!(look(999_999), (true, false), "coordinators have the reserve");
    assert_eq!(look(249_999), (true, true));
    wait(6).await;
    assert_eq!(look(999_999), (true, true));
    wait(6).await;
    assert_eq!(look(1_000_000), (true, false));
    wait(6).await;
    assert_eq!(look(1_000_000), (false, false));
    // The file system says that it has bytes free, and takes no write.
    disk.inject(Fault::NoSpace, "", 0, u64::MAX);
    log.append(batch(0, &["a"]), &client(0)).unwrap_err();
    disk.heal();
    assert_eq!(look(2_000_000), (true, true));
    wait(11).await;
    assert_eq!(look(2_000_000), (false, false));
}

/// It would live on in files without names, in sync, until its process ends.
#[tokio::test]
async fn a_log_directory_that_is_removed_is_out_of_use() {
    let dir = tempfile::tempdir().unwrap();
    let (manager, log) = new_log(&Env::real(), dir.path(), small()).await;
    log.dir().check_space(None);
    assert_eq!(log.dir().offline(), None);
    Env::real().disk.remove_dir_all(dir.path()).unwrap();
    log.dir().check_space(None);
    assert!(log.is_offline());
    let said = manager.until_all_offline().await;
    assert!(said.contains("removed while it was in use"), "{said}");
}

#[derive(Default)]
struct Observed {
    durable: Mutex<BTreeMap<i32, Offset>>,
    changed: tokio::sync::Notify,
}

impl DurabilityObserver for Observed {
    fn durable(&self, log: &Arc<Log>, durable_end: Offset) {
        assert!(log.durable_end() >= durable_end);
        self.durable.lock().unwrap().insert(log.partition(), durable_end);
        self.changed.notify_one();
    }
    fn failed(&self, _log: &Arc<Log>) {}
}

#[tokio::test]
async fn group_commit_tells_how_far_each_log_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let manager = open(&env, dir.path()).await;
    let (observed, stop) = (Arc::new(Observed::default()), CancellationToken::new());
    let syncers = tokio::spawn(manager.clone().run_syncers(observed.clone(), stop.clone()));
    let mut logs = Vec::new();
    for partition in 0..20 {
        let durable = partition != 19;
        logs.push(
            manager.create(TOPIC, ID, partition, LogConfig { durable, ..small() }).await.unwrap(),
        );
    }
    // From now on the disk says that what is not synced counts.
    logs[19].sync().unwrap();
    for round in 1..=5 {
        for log in &logs {
            append(log, round, &["x"]);
        }
        assert_eq!(logs[19].durable_end(), round, "without `durable` the page cache is enough");
        let all = || {
            (0..19)
                .all(|partition| observed.durable.lock().unwrap().get(&partition) == Some(&round))
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), async {
            while !all() {
                observed.changed.notified().await;
            }
        })
        .await
        .unwrap();
    }
    append(&logs[0], 9, &["last"]);
    stop.cancel();
    syncers.await.unwrap();
    assert_eq!(logs[0].durable_end(), 6);
    let size = |log: &Log| {
        Env::real()
            .disk
            .open(&log.path.join("00000000000000000000.log"), OpenMode::Read)
            .unwrap()
            .len()
            .unwrap()
    };
    assert!(size(&logs[0]) > logs[0].size(), "a reserve is kept ahead of the tail");
    manager.close().await.unwrap();
    assert_eq!(size(&logs[0]), logs[0].size(), "a clean stop trims it");
}

#[tokio::test]
async fn duplicates_are_known_after_a_clean_stop_and_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let (manager, log) = new_log(&env, dir.path(), small()).await;
    let sent = |sequence: i32| {
        let mut builder = BatchBuilder::new(1_000).producer(5, 2, sequence);
        builder.push(1_000, None, Some(b"v"), &[]);
        builder.build()
    };
    for sequence in 0..40 {
        assert_eq!(
            log.append(sent(sequence), &client(1_000)).unwrap().base_offset,
            i64::from(sequence)
        );
        if sequence == 30 {
            log.checkpoint().unwrap();
            log.dir.partitions.set_recovery_points([&*log]).unwrap();
        }
    }
    let killed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), killed.path());
    manager.close().await.unwrap();
    drop((manager, log));
    for path in [dir.path(), killed.path()] {
        let manager = open(&env, path).await;
        let log = manager.get(ID, 0).unwrap();
        for sequence in 35..40 {
            let again = log.append(sent(sequence), &client(1_000)).unwrap();
            assert!(again.duplicate && again.base_offset == i64::from(sequence));
        }
        assert_eq!(log.append(sent(34), &client(1_000)).unwrap_err().code().code(), 45);
        assert_eq!(log.append(sent(41), &client(1_000)).unwrap_err().code().code(), 45);
        assert!(!log.append(sent(40), &client(1_000)).unwrap().duplicate);
    }
}

/// After a kill, the indexes of rolled segments past the recovery point are made anew. When the
/// power failed after the next checkpoint, such a time index was empty or zeros, the segment as old
/// as 1970, and retention took it.
#[tokio::test]
async fn a_checkpoint_makes_the_indexes_durable_that_recovery_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let (manager, log) = new_log(&env, dir.path(), small()).await;
    for i in 0..60 {
        append(&log, 1_000 + i, &["some value"]);
    }
    log.sync().unwrap();
    let rolled: Vec<_> = log
        .segments
        .load()
        .iter()
        .rev()
        .skip(1)
        .map(|segment| segment.path(".timeindex"))
        .collect();
    assert!(rolled.len() > 1);
    let killed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), killed.path());
    drop((manager, log));
    let manager = open(&env, killed.path()).await;
    manager.get(ID, 0).unwrap().checkpoint().unwrap();
    for path in rolled {
        let path = killed.path().join(path.strip_prefix(dir.path()).unwrap());
        assert!(env.disk.read(&path).unwrap().len() >= 12, "{} has no entry", path.display());
    }
}

#[tokio::test]
async fn followers_truncate_and_continue() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let (manager, log) = new_log(&env, dir.path(), small()).await;
    let replicated = |base, epoch| {
        let mut builder =
            BatchBuilder::new(base).at(base, epoch).producer(3, 0, i32::try_from(base).unwrap());
        builder.push(base, None, Some(b"r"), &[]);
        builder.push(base, None, Some(b"r"), &[]);
        builder.build()
    };
    let options = AppendOptions { leader_epoch: 9, now_ms: 0, origin: COPIED };
    for i in 0..60 {
        log.append(replicated(i * 2, if i < 40 { 1 } else { 4 }), &options).unwrap();
    }
    log.checkpoint().unwrap();
    assert_eq!(log.end_offset_for_epoch(3), Some((1, 80)));
    assert!(matches!(
        log.append(replicated(100, 4), &options),
        Err(AppendError::OutOfOrderOffset { .. })
    ));
    log.truncate_to(75).unwrap();
    assert_eq!((log.end_offset(), log.durable_end(), log.latest_epoch()), (74, 74, Some(1)));
    log.append(replicated(74, 5), &options).unwrap();
    log.sync().unwrap();
    let expected = contents(&log);
    assert_eq!(expected.len(), 76);
    drop((manager, log));
    let manager = open(&env, dir.path()).await;
    let log = manager.get(ID, 0).unwrap();
    assert_eq!(contents(&log), expected);
    assert_eq!((log.epoch_for_offset(73), log.epoch_for_offset(74)), (Some(1), Some(5)));
    assert_eq!(log.offset_for_timestamp(70).unwrap().unwrap().offset, 70);
    log.truncate_fully_and_start_at(500).unwrap();
    assert_eq!((log.start_offset(), log.end_offset(), log.latest_epoch()), (500, 500, None));
    log.append(replicated(500, 6), &options).unwrap();
    drop((manager, log));
    assert_eq!(contents(&open(&env, dir.path()).await.get(ID, 0).unwrap()).len(), 2);
}

/// A leader that has lost everything does not destroy the last copy.
#[tokio::test]
async fn what_a_follower_sets_aside_can_be_put_back() {
    let disk = SimDisk::new(1);
    let (manager, log) = new_log(&disk.env(), Path::new(DIR), small()).await;
    for at in 0..60 {
        append(&log, at, &["a value of some length", "and another"]);
    }
    log.set_high_watermark(120);
    let (expected, segments) = (contents(&log), log.segments.load().len());
    assert!(segments > 1);
    let reader = log.read_from_disk(0, usize::MAX, 120, true).unwrap();
    log.set_aside_and_start_at(0).unwrap();
    let [aside] = &cuts::strays(&disk)[..] else { panic!() };
    assert_eq!((log.range(), log.high_watermark(), log.latest_epoch()), ((0, 0), 0, None));
    assert!(!bytes_of(&reader).is_empty(), "who reads it goes on");
    append(&log, 1, &["new"]);
    log.sync().unwrap();
    drop((log, manager));
    disk.power_cut();
    let manager = open(&disk.env(), Path::new(DIR)).await;
    assert_eq!(contents(&manager.get(ID, 0).unwrap()).len(), 1);
    drop(manager);
    // As docs/offline-partitions.md says.
    let real = Path::new(DIR).join(format!("{TOPIC}-0"));
    disk.env().disk.remove_dir_all(&real).unwrap();
    disk.env().disk.rename(aside, &real).unwrap();
    let manager = open(&disk.env(), Path::new(DIR)).await;
    assert_eq!(contents(&manager.get(ID, 0).unwrap()), expected);
}

/// A log of ten records, one a batch, and how to append one.
async fn replicated(dir: &Path) -> (Arc<LogManager>, Arc<Log>, impl Fn(&Arc<Log>) + Sync) {
    let (manager, log) = new_log(&Env::real(), dir, small()).await;
    let append = |log: &Arc<Log>| {
        let mut builder = BatchBuilder::new(1).at(log.end_offset(), 1);
        builder.push(1, None, Some(b"r"), &[]);
        let options = AppendOptions { leader_epoch: 1, now_ms: 0, origin: COPIED };
        log.append(builder.build(), &options).unwrap();
    };
    (0..10).for_each(|_| append(&log));
    (manager, log, append)
}

/// Looks again and again while a follower is cut in many rounds.
fn look_while_cutting(cut: impl Fn(usize) + Send, look: impl Fn()) {
    std::thread::scope(|scope| {
        let cutting = scope.spawn(move || (0..150).for_each(cut));
        while !cutting.is_finished() {
            look();
        }
    });
}

/// A reader saw the files cut and the end as it was before, and was told to go on behind offsets
/// that other records got.
#[tokio::test]
async fn a_reader_skips_no_offset_while_a_follower_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (_manager, log, append) = replicated(dir.path()).await;
    let cut = |_| {
        log.truncate_to(5).unwrap();
        (5..10).for_each(|_| append(&log));
    };
    look_while_cutting(cut, || {
        // Batches are shown from their file; one that only says "go on behind me" is in memory.
        if let Ok(found) = log.read_from_disk(7, 1 << 20, 10, true) {
            assert!(found.slices.iter().all(|slice| matches!(slice, Slice::File { .. })));
        }
    });
}

/// The start was stored before the end: readers saw a log that starts past its end.
#[tokio::test]
async fn a_log_never_starts_past_its_end_for_anybody() {
    let dir = tempfile::tempdir().unwrap();
    let (_manager, log, append) = replicated(dir.path()).await;
    let cut = |round: usize| {
        let at = [1_000_000, 3][round % 2];
        log.truncate_fully_and_start_at(at).unwrap();
        assert_eq!((log.high_watermark(), log.durable_end()), (at, 0));
        (0..3).for_each(|_| append(&log));
        log.sync().unwrap();
        log.set_high_watermark(at + 2);
    };
    look_while_cutting(cut, || {
        let (start, end) = log.range();
        assert!(start <= end, "{start}..{end}");
        let _ = log.try_read_cached(5, 1, Offset::MAX, true);
    });
}

/// The start lay within the batch that was cut: after a restart the log was out of use, since it
/// started past its end.
#[tokio::test]
async fn a_cut_at_a_start_within_a_batch_takes_the_start_along() {
    let dir = tempfile::tempdir().unwrap();
    let (manager, log) = new_log(&Env::real(), dir.path(), small()).await;
    for at in 0..3 {
        append(&log, at, &["a", "b", "c"]);
    }
    log.sync().unwrap();
    log.set_high_watermark(8);
    assert_eq!(log.delete_records_before(7).unwrap(), 7);
    manager.keep_log_starts(vec![log.clone()]).await.unwrap();
    log.truncate_to(7).unwrap();
    assert_eq!((log.range(), log.high_watermark()), ((6, 6), 6));
    drop((manager, log));
    let log = open(&Env::real(), dir.path()).await.get(ID, 0).unwrap();
    assert_eq!(log.range(), (6, 6));
}

#[tokio::test]
async fn retention_frees_the_oldest_below_the_high_watermark() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let (_manager, log) = new_log(&env, dir.path(), small()).await;
    for i in 0..100i64 {
        append(&log, i * 1_000, &["a value"]);
    }
    log.set_config(LogConfig { retention_ms: 40_000, ..small() });
    assert!(log.apply_retention(100_000).unwrap().is_empty(), "nothing is committed");
    log.set_high_watermark(100);
    let reader = log.read_from_disk(0, usize::MAX, 10, true).unwrap();
    let doomed = log.apply_retention(100_000).unwrap();
    assert!(
        !doomed.is_empty() && log.start_offset() > 20 && log.start_offset() <= 60,
        "{}",
        log.start_offset()
    );
    assert_eq!(batches(&bytes_of(&reader)).len(), 10, "a read that had begun goes on");
    assert_eq!(log.read_from_disk(0, 1, 100, true).err().unwrap().code().code(), 1);
    assert_eq!(contents(&log).keys().next(), Some(&log.start_offset()));
    log.set_config(LogConfig { retention_bytes: 2_500, ..small() });
    log.apply_retention(100_000).unwrap();
    assert!(log.size() >= 2_500 && log.size() < 4_600, "{}", log.size());
    assert_eq!(log.delete_records_before(95).unwrap(), 95);
    log.set_config(LogConfig { retention_ms: 1, ..small() });
    log.apply_retention(1_000_000).unwrap();
    assert_eq!((log.start_offset(), log.end_offset(), log.size()), (100, 100, 0));
    assert_eq!(append(&log, 7, &["next"]).base_offset, 100);
}

#[tokio::test]
async fn deleted_and_stray_partitions_leave_their_names_free() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let (manager, log) = new_log(&env, dir.path(), small()).await;
    append(&log, 0, &["a"]);
    log.checkpoint().unwrap();
    assert!(matches!(
        manager.create(TOPIC, Uuid::from_u128(43), 0, small()).await,
        Err(LogError::Exists(_))
    ));
    manager.delete(vec![(TOPIC.into(), ID, 0)]).await;
    assert_eq!(log.append(batch(0, &["b"]), &client(0)).unwrap_err().code().code(), 6);
    let again = manager.create(TOPIC, Uuid::from_u128(43), 0, small()).await.unwrap();
    assert_eq!(again.end_offset(), 0);
    append(&again, 0, &["new"]);
    manager.set_unknown_aside(|_, _, _| false).await;
    drop((manager, log, again));
    let manager = open(&env, dir.path()).await;
    assert!(manager.logs().is_empty() && manager.offline_logs().is_empty());
    manager.remove_doomed(&CancellationToken::new()).await;
    let names: Vec<_> = env
        .disk
        .list(dir.path())
        .unwrap()
        .into_iter()
        .filter(|entry| entry.is_dir)
        .map(|entry| entry.name)
        .collect();
    assert!(names.len() == 1 && names[0].ends_with("-stray"), "{names:?}");
    assert!(matches!(LogManager::open(env, options(dir.path())).await, Err(LogError::Locked(_))));
}

#[tokio::test]
async fn damaged_partition_stays_offline_and_the_others_open() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let (manager, log) = new_log(&env, dir.path(), small()).await;
    manager.create("other", Uuid::from_u128(1), 0, small()).await.unwrap();
    append(&log, 0, &["a"]);
    append(&log, 0, &["b"]);
    manager.close().await.unwrap();
    drop((manager, log));
    let file = env
        .disk
        .open(&dir.path().join("orders-0/00000000000000000000.log"), OpenMode::ReadWrite)
        .unwrap();
    file.set_len(80).unwrap();
    let manager = open(&env, dir.path()).await;
    assert_eq!(manager.logs().len(), 1);
    let offline = manager.offline_logs();
    assert!(
        matches!(
            &offline[..],
            [OfflineLog { error: LogError::Corrupt { .. }, topic_id: Some(ID), .. }]
        ),
        "{offline:?}"
    );
    assert!(manager.was_clean());
    manager.close().await.unwrap();
    drop(manager);
    assert!(
        !open(&env, dir.path()).await.was_clean(),
        "nobody has looked at the tail of the damaged log"
    );
}

/// The recovery point moves once a minute, the high watermark is written every five seconds: what
/// is below it was acknowledged too.
#[tokio::test]
async fn damage_below_the_high_watermark_is_not_taken_for_an_unfinished_write() {
    let env = Env::real();
    for (name, durable, survives) in [
        ("a damaged byte", true, 1),
        ("no file", true, 0),
        ("only what no sync has reached", false, 2),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (manager, log) = new_log(&env, dir.path(), LogConfig { durable, ..small() }).await;
        let path = log.path.clone();
        let size = append(&log, 0, &["a"]).last_offset + i64::try_from(log.size()).unwrap();
        append(&log, 1, &["b"]);
        log.sync().unwrap();
        let synced = log.size();
        append(&log, 2, &["c"]);
        log.set_high_watermark(if durable { 2 } else { 3 });
        manager.checkpoint().await;
        assert_eq!((log.recovery_point(), log.durable_end()), (0, if durable { 2 } else { 3 }));
        drop((manager, log));
        let file = path.join("00000000000000000000.log");
        let bytes = env.disk.read(&file).unwrap();
        match name {
            "a damaged byte" => {
                let at = usize::try_from(size).unwrap() + 30;
                env.disk
                    .open(&file, OpenMode::ReadWrite)
                    .unwrap()
                    .write_at(&[io::IoSlice::new(&[!bytes[at]])], at as u64)
                    .unwrap();
            }
            "no file" => {
                for entry in env.disk.list(&path).unwrap() {
                    env.disk.remove_file(&path.join(entry.name)).unwrap();
                }
            }
            _ => env.disk.open(&file, OpenMode::ReadWrite).unwrap().set_len(synced).unwrap(),
        }
        let manager = open(&env, dir.path()).await;
        if durable {
            // An empty directory is as good as none, which is found when it is asked for.
            assert_eq!(manager.offline_logs().len(), usize::from(survives > 0), "{name}");
            let error = manager.create(TOPIC, ID, 0, small()).await.err();
            assert!(
                matches!(
                    error,
                    Some(
                        LogError::Corrupt { durable_end: 2, .. }
                            | LogError::Missing { end_offset: 2, .. }
                    )
                ),
                "{name}: {error:?}"
            );
            assert_eq!(
                env.disk.read(&file).map_or(0, |bytes| bytes.len()),
                if survives == 0 { 0 } else { bytes.len() },
                "{name}"
            );
            drop(manager);
            env.disk.create_dir_all(&path).unwrap();
            env.disk.open(&path.join("accept-data-loss"), OpenMode::Create).unwrap();
            let manager = open(&env, dir.path()).await;
            assert_eq!(contents(&manager.get(ID, 0).unwrap()).len(), survives, "{name}");
            continue;
        }
        assert_eq!(contents(&manager.get(ID, 0).unwrap()).len(), survives, "{name}");
    }
}

#[tokio::test]
async fn missing_and_damaged_indexes_are_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let (manager, log) = new_log(&env, dir.path(), small()).await;
    for i in 0..100 {
        append(&log, i, &["a value"]);
    }
    manager.close().await.unwrap();
    let expected = contents(&log);
    drop((manager, log));
    let path = dir.path().join("orders-0");
    for (i, entry) in env
        .disk
        .list(&path)
        .unwrap()
        .into_iter()
        .filter(|entry| entry.name.ends_with("index"))
        .enumerate()
    {
        let file: PathBuf = path.join(entry.name);
        match i % 3 {
            0 => env.disk.remove_file(&file).unwrap(),
            1 => env.disk.open(&file, OpenMode::ReadWrite).unwrap().set_len(5).unwrap(),
            _ => {}
        }
    }
    let manager = open(&env, dir.path()).await;
    let log = manager.get(ID, 0).unwrap();
    assert_eq!(contents(&log), expected);
    for offset in 0..100 {
        assert_eq!(
            batches(&bytes_of(&log.read_from_disk(offset, 1, 100, true).unwrap()))[0].base_offset,
            offset
        );
        assert_eq!(log.offset_for_timestamp(offset).unwrap().unwrap().offset, offset);
    }
}

#[tokio::test]
async fn thousands_of_partitions_hold_no_files_and_open_quickly() {
    let dir = Path::new(DIR);
    let disk = SimDisk::new(1);
    let env = disk.env();
    let manager = open(&env, dir).await;
    for partition in 0..2_000 {
        let log = manager.create(TOPIC, ID, partition, small()).await.unwrap();
        if partition % 4 == 0 {
            append(&log, 0, &["a"]);
            log.sync().unwrap();
        }
        log.close_idle();
        log.close_idle();
    }
    let held = disk.open_files();
    assert!(held < 20, "{held}");
    manager.close().await.unwrap();
    drop(manager);
    let began = tokio::time::Instant::now();
    let manager = open(&env, dir).await;
    assert_eq!(manager.logs().len(), 2_000);
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
}

fn keyed(log: &Arc<Log>, timestamp: i64, records: &[(&str, Option<&str>)]) {
    let mut builder = BatchBuilder::new(timestamp);
    for (key, value) in records {
        builder.push(timestamp, Some(key.as_bytes()), value.map(str::as_bytes), &[]);
    }
    log.append(builder.build(), &client(timestamp)).unwrap();
}

/// Offset, key, value of every record.
fn table(log: &Log) -> Vec<(Offset, String, Option<String>)> {
    let bytes =
        bytes_of(&log.read_from_disk(log.start_offset(), usize::MAX, Offset::MAX, true).unwrap());
    let (mut found, mut rest) = (Vec::new(), &bytes[..]);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    while !rest.is_empty() {
        let (batch, after) = Batch::split(rest).unwrap();
        batch.check_crc().unwrap();
        for record in
            RecordIter::new(batch.records_bytes(), batch.header.records_count).map(Result::unwrap)
        {
            found.push((
                batch.header.base_offset + i64::from(record.offset_delta),
                text(record.key.unwrap_or_default()),
                record.value.map(text),
            ));
        }
        rest = after;
    }
    found
}

/// What a consumer that reads everything ends up with.
fn latest(table: &[(Offset, String, Option<String>)]) -> BTreeMap<String, String> {
    let mut latest = BTreeMap::new();
    for (_, key, value) in table {
        match value {
            Some(value) => latest.insert(key.clone(), value.clone()),
            None => latest.remove(key),
        };
    }
    latest
}

fn compacted() -> LogConfig {
    LogConfig {
        cleanup_policy: CleanupPolicy { delete: false, compact: true },
        segment_bytes: 700,
        delete_retention_ms: 1_000,
        ..small()
    }
}

fn pass(now: i64, first_dirty: Offset, keys_max: usize) -> super::cleaner::Pass {
    let (stop, keys) = (CancellationToken::new(), Arc::default());
    super::cleaner::Pass { seed: 7, keys_max, now, first_dirty, stop, keys }
}

#[tokio::test]
async fn compaction_keeps_the_last_record_of_each_key() {
    let dir = tempfile::tempdir().unwrap();
    let (manager, log) = new_log(&Env::real(), dir.path(), compacted()).await;
    for i in 0..60i64 {
        let (a, b) = (format!("k{}", i % 7), format!("k{}", i % 4));
        keyed(&log, i, &[(&a, (i % 5 != 0).then_some("value")), (&b, Some(&i.to_string()))]);
    }
    let before = table(&log);
    let reader = log.read_from_disk(0, usize::MAX, Offset::MAX, true).unwrap();
    assert_eq!(log.compact(&pass(100, 0, 1_000)).unwrap(), None, "nothing is committed");
    log.set_high_watermark(120);
    log.sync().unwrap();
    let upper = log.compact(&pass(100, 0, 1_000)).unwrap().unwrap();
    let after = table(&log);
    let sealed_end = log.active().base;
    assert_eq!(upper, sealed_end);
    // Naively: below `upper` a record stays when no later one below `upper` has its key.
    let expected: Vec<_> = before
        .iter()
        .filter(|(offset, key, _)| {
            *offset >= upper
                || !before
                    .iter()
                    .any(|later| later.0 > *offset && later.0 < upper && later.1 == *key)
        })
        .cloned()
        .collect();
    assert_eq!(after, expected);
    assert_eq!(latest(&after), latest(&before));
    assert_eq!(batches(&bytes_of(&reader)).len(), 60, "a read that had begun sees the old files");
    // Tombstones stay until their horizon, which is counted from the first pass.
    keyed(&log, 200, &[("new", Some("x"))]);
    log.roll_now(200).unwrap();
    log.set_high_watermark(121);
    log.sync().unwrap();
    let config = LogConfig { min_cleanable_dirty_permille: 0, ..compacted() };
    log.set_config(config.clone());
    log.compact(&pass(500, upper, 1_000)).unwrap().unwrap();
    let tombstones = |log: &Log| {
        table(log).iter().filter(|record| record.2.is_none() && record.0 < upper).count()
    };
    let waiting = tombstones(&log);
    keyed(&log, 201, &[("newer", Some("x"))]);
    log.roll_now(201).unwrap();
    log.set_high_watermark(122);
    log.sync().unwrap();
    log.compact(&pass(1_101, 121, 1_000)).unwrap().unwrap();
    assert!(waiting > 0 && tombstones(&log) == 0, "{waiting} then {}", tombstones(&log));
    let end = table(&log);
    drop((manager, log));
    let manager = open(&Env::real(), dir.path()).await;
    let log = manager.get(ID, 0).unwrap();
    assert_eq!((table(&log), log.start_offset(), log.end_offset()), (end, 0, 122));
}

#[tokio::test]
async fn compaction_with_room_for_few_keys_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (_manager, log) = new_log(&Env::real(), dir.path(), compacted()).await;
    for i in 0..80i64 {
        keyed(&log, i, &[(&format!("k{}", i % 20), Some(&i.to_string()))]);
    }
    log.set_high_watermark(80);
    log.sync().unwrap();
    log.set_config(LogConfig { min_cleanable_dirty_permille: 0, ..compacted() });
    let (expected, mut at, mut rounds) = (latest(&table(&log)), 0, 0);
    while let Some(next) = log.compact(&pass(1, at, 5)).unwrap() {
        assert!(next > at);
        assert_eq!(latest(&table(&log)), expected);
        (at, rounds) = (next, rounds + 1);
    }
    assert!(
        rounds > 5 && at == log.active().base && table(&log).len() < 40,
        "{rounds} {at} {}",
        table(&log).len()
    );
}

/// Segments of 700 bytes, and what of them fits into `segment_bytes` may become one.
async fn with_segments_to_merge(env: &Env, segment_bytes: u64) -> (Arc<LogManager>, Arc<Log>) {
    let (manager, log) = new_log(env, Path::new(DIR), compacted()).await;
    for i in 0..40i64 {
        keyed(&log, i, &[(&format!("k{}", i % 6), Some(&i.to_string()))]);
    }
    log.set_config(LogConfig { segment_bytes, ..compacted() });
    log.set_high_watermark(40);
    log.checkpoint().unwrap();
    (manager, log)
}

#[tokio::test]
async fn crash_between_any_two_steps_of_compaction_loses_no_key() {
    for (segment_bytes, cuts_power) in [(700, false), (700, true), (1_500, false), (1_500, true)] {
        for at in 0.. {
            let said = format!("{segment_bytes}, {cuts_power}, after {at} changes");
            let dir = Path::new(DIR);
            let disk = SimDisk::new(at);
            let (manager, log) = with_segments_to_merge(&disk.env(), segment_bytes).await;
            log.dir.partitions.set_recovery_points([&*log]).unwrap();
            let (expected, before) = (latest(&table(&log)), log.segments_count());
            disk.inject(Fault::FailChange, "", at, u64::MAX);
            let done = log.compact(&pass(1, 0, 1_000)).is_ok();
            drop((manager, log));
            if cuts_power {
                disk.power_cut();
            }
            disk.heal();
            let manager = open(&disk.env(), dir).await;
            let log = manager
                .get(ID, 0)
                .unwrap_or_else(|| panic!("{said}: {:?}", manager.offline_logs()));
            let found = table(&log);
            assert_eq!((latest(&found), log.end_offset()), (expected, 40), "{said}");
            assert!(found.is_sorted_by(|one, next| one.0 < next.0), "{said}: {found:?}");
            for offset in 0..40 {
                let found = log.read_from_disk(offset, 1, 40, true).unwrap();
                let batches = batches(&bytes_of(&found));
                assert!(batches.iter().all(|batch| batch.last_offset() >= offset), "{said}");
            }
            let left = disk.list(&log.path).unwrap();
            assert!(!left.iter().any(|entry| entry.name.ends_with(".swap")), "{said}: {left:?}");
            if done {
                assert!(at > 15, "the faults have to have met something: {at}");
                let after = log.segments_count();
                assert_eq!(after < before, segment_bytes > 700, "{said}: {before}, {after}");
                break;
            }
        }
    }
}

/// Each pass left the segments as many as they were, with a record or none in each.
#[tokio::test]
async fn small_neighbours_become_one_segment_as_far_as_they_fit() {
    let disk = SimDisk::new(1);
    let (_manager, log) = with_segments_to_merge(&disk.env(), 1_500).await;
    let before = log.segments_count();
    assert!(before >= 5, "{before}");
    let (reader, whole) = (log.segments.load_full(), table(&log));
    log.compact(&pass(1, 0, 1_000)).unwrap().unwrap();
    let segments = log.segments.load_full();
    assert!(segments.len() <= before.div_ceil(2) + 1, "{before}, then {}", segments.len());
    assert!(segments.iter().all(|segment| segment.size() <= 1_500));
    assert_eq!(latest(&table(&log)), latest(&whole));
    // Who still has the old list reads on.
    assert!(reader.iter().all(|segment| segment.find(segment.base).is_ok()));
    // Compacted once more, what is left of all of them fits into one.
    log.set_config(LogConfig { min_cleanable_dirty_permille: 0, ..compacted() });
    log.compact(&pass(1, 0, 1_000)).unwrap().unwrap();
    assert_eq!(log.segments_count(), 2, "and the one that takes appends");
    assert_eq!(latest(&table(&log)), latest(&whole));
    // By an index as large as is allowed.
    let (_manager, log) = with_segments_to_merge(&SimDisk::new(1).env(), 1_500).await;
    log.set_config(LogConfig { segment_bytes: 1_500, segment_index_bytes: 12, ..compacted() });
    log.compact(&pass(1, 0, 1_000)).unwrap().unwrap();
    assert_eq!(log.segments_count(), before);
}

/// Who reads up to the latest offset, as Kafka Streams does to restore its state, waited for ever.
#[tokio::test]
async fn a_reader_gets_to_the_end_of_a_log_whose_last_tombstone_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { min_cleanable_dirty_permille: 0, ..compacted() };
    let (_manager, log) = new_log(&Env::real(), dir.path(), config).await;
    keyed(&log, 0, &[("a", Some("value"))]);
    keyed(&log, 1, &[("a", None)]);
    log.roll_now(1).unwrap();
    log.set_high_watermark(2);
    log.sync().unwrap();
    for now in [1, 5_000] {
        log.compact(&pass(now, 0, 1_000)).unwrap().unwrap();
    }
    assert!(table(&log).is_empty());
    let left = batches(&bytes_of(&log.read_from_disk(0, usize::MAX, 2, true).unwrap()));
    assert_eq!(left.last().map(BatchHeader::last_offset), Some(1));
}

#[tokio::test]
async fn last_batch_of_a_producer_stays_when_its_records_go() {
    let dir = tempfile::tempdir().unwrap();
    let (_manager, log) = new_log(&Env::real(), dir.path(), compacted()).await;
    let mut builder = BatchBuilder::new(1).producer(8, 0, 0);
    builder.push(1, Some(b"k"), Some(b"old"), &[]);
    log.append(builder.build(), &client(1)).unwrap();
    for i in 0..30 {
        keyed(&log, i, &[("k", Some("new"))]);
    }
    log.set_high_watermark(31);
    log.sync().unwrap();
    log.compact(&pass(1, 0, 1_000)).unwrap().unwrap();
    let first = batches(&bytes_of(&log.read_from_disk(0, 1, 31, true).unwrap()))[0];
    assert_eq!(
        (first.base_offset, first.records_count, first.producer_id, first.last_sequence()),
        (0, 0, 8, 0)
    );
}

/// As Kafka writes it: a header alone, without a codec. A compressed nothing ends the process of
/// every client on librdkafka.
#[tokio::test]
async fn a_batch_without_records_is_a_header_until_its_producer_goes_on() {
    for codec in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let dir = tempfile::tempdir().unwrap();
        let (_manager, log) = new_log(&Env::real(), dir.path(), compacted()).await;
        let by_producer = |sequence| {
            let mut builder = BatchBuilder::new(1).producer(8, 0, sequence);
            builder.push(1, Some(b"k"), Some(b"old"), &[]);
            let packed = compress(codec, None, builder.records()).unwrap();
            log.append(builder.build_with(codec, &packed), &client(1)).unwrap();
        };
        let compact = || {
            for i in 0..30 {
                keyed(&log, i, &[("k", Some("new"))]);
            }
            log.set_high_watermark(log.end_offset());
            log.sync().unwrap();
            log.compact(&pass(1, 0, 1_000)).unwrap().unwrap();
            bytes_of(&log.read_from_disk(0, 1, log.end_offset(), true).unwrap())
        };
        by_producer(0);
        let read = compact();
        let (first, _) = Batch::split(&read).unwrap();
        first.check_crc().unwrap();
        assert_eq!((first.header.base_offset, first.bytes().len()), (0, 61), "{codec:?}");
        assert_eq!(first.header.compression().unwrap(), Compression::None);
        assert_eq!((first.header.producer_id, first.header.last_sequence()), (8, 0));
        by_producer(1);
        let first = batches(&compact())[0];
        assert_eq!((first.base_offset, first.records_count), (31, 0), "the one before has gone");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(u8, u16),
    Sync,
    Checkpoint,
    Kill(u16),
    Truncate(u8),
    Idle,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..5u8, 0..300u16).prop_map(|(records, size)| Step::Append(records, size)),
        2 => Just(Step::Sync),
        1 => Just(Step::Checkpoint),
        2 => any::<u16>().prop_map(Step::Kill),
        1 => any::<u8>().prop_map(Step::Truncate),
        1 => Just(Step::Idle),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Against a list of values: whatever happens, the log is a prefix of what was appended, and at
    /// least what was synced.
    #[test]
    fn log_behaves_like_a_list(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let env = Env::real();
            let config = LogConfig { segment_bytes: 1_500, ..small() };
            let (mut manager, mut log) = new_log(&env, dir.path(), config.clone()).await;
            let (mut model, mut synced) = (Vec::<String>::new(), 0usize);
            for (i, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Append(records, size) => {
                        let values: Vec<String> = (0..records).map(|r| format!("{i}-{r}-{}", "x".repeat(size.into()))).collect();
                        if values.iter().map(String::len).sum::<usize>() < 1_300 {
                            append(&log, i as i64, &values.iter().map(String::as_str).collect::<Vec<_>>());
                            model.extend(values);
                        }
                    }
                    Step::Sync => synced = usize::try_from(log.sync().unwrap()).unwrap(),
                    Step::Checkpoint => {
                        synced = usize::try_from(log.checkpoint().unwrap()).unwrap();
                        log.dir.partitions.set_recovery_points([&*log]).unwrap();
                    }
                    Step::Kill(cut) => {
                        // Some of what was not synced in the last file is torn off.
                        let active = log.active();
                        let first_unsynced = active.find(synced as i64).unwrap().map_or(active.size(), |found| found.0);
                        let torn = active.size() - u64::from(cut) % (active.size() - first_unsynced + 1);
                        let path = active.path(".log");
                        drop((manager, log, active));
                        if env.disk.exists(&path).unwrap() {
                            env.disk.open(&path, OpenMode::ReadWrite).unwrap().set_len(torn).unwrap();
                        }
                        manager = open(&env, dir.path()).await;
                        log = manager.get(ID, 0).unwrap_or_else(|| panic!("{:?}", manager.offline_logs()));
                        log.set_config(config.clone());
                        let end = usize::try_from(log.end_offset()).unwrap();
                        assert!(end >= synced, "{end} of {synced} synced");
                        model.truncate(end);
                        synced = end;
                    }
                    Step::Truncate(at) => {
                        log.truncate_to(at.into()).unwrap();
                        model.truncate(usize::try_from(log.end_offset()).unwrap());
                        synced = synced.min(model.len());
                    }
                    Step::Idle => log.close_idle(),
                }
                assert!(contents(&log).into_values().eq(model.iter().cloned()), "after step {i}");
            }
        });
    }
}

#[tokio::test]
async fn a_restart_makes_no_segment_younger() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let config = LogConfig { segment_bytes: 1 << 20, segment_ms: 5_000, ..small() };
    let (manager, log) = new_log(&env, dir.path(), config.clone()).await;
    append(&log, 1_000, &["a"]);
    drop(log);
    manager.close().await.unwrap();
    drop(manager);
    let restart = async || {
        let manager = LogManager::open(
            env.clone(),
            LogManagerOptions { default_config: config.clone(), ..options(dir.path()) },
        )
        .await
        .unwrap();
        (manager.clone(), manager.get(ID, 0).unwrap())
    };
    let (manager, log) = restart().await;
    append(&log, 6_000, &["b"]);
    assert_eq!(log.segments.load().len(), 1);
    append(&log, 6_001, &["c"]);
    assert_eq!(log.segments.load().iter().map(|segment| segment.base).collect::<Vec<_>>(), [0, 2]);
    drop(log);
    manager.close().await.unwrap();
    drop(manager);
    // Nothing comes any more, and the last segment is closed all the same.
    let (_manager, log) = restart().await;
    assert!(!log.roll_if_old(11_000).unwrap());
    assert!(log.roll_if_old(11_001).unwrap());
    // What is cut away does not make the rest older or younger.
    log.truncate_to(1).unwrap();
    append(&log, 6_000, &["d"]);
    append(&log, 6_001, &["e"]);
    assert_eq!(log.segments.load().iter().map(|segment| segment.base).collect::<Vec<_>>(), [0, 2]);
}

#[tokio::test]
async fn a_recovery_point_moves_early_unless_that_would_be_the_first_sync() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let config = LogConfig { segment_bytes: 80 << 20, max_message_bytes: 8 << 20, ..small() };
    let (_manager, log) = new_log(&env, dir.path(), config.clone()).await;
    let value = "v".repeat(7 << 20);
    let appended = |mib: u64| {
        while log.bytes_since_checkpoint() < mib << 20 {
            append(&log, 1, &[&value]);
        }
    };
    assert!(!log.is_checkpoint_due());
    appended(64);
    assert!(log.is_checkpoint_due());
    log.set_config(LogConfig { durable: false, ..config });
    assert!(!log.is_checkpoint_due());
    appended(80);
    assert!(log.is_checkpoint_due());
    log.checkpoint().unwrap();
    assert!(!log.is_checkpoint_due());
}

#[tokio::test]
async fn a_dirty_log_reaches_the_thread_that_waits_or_else_wakes_the_task() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let (_manager, log) = new_log(&env, dir.path(), small()).await;
    let (log_dir, began) = (log.dir().clone(), tokio::time::Instant::now());
    for _ in 0..100 {
        let waiting = log_dir.clone();
        let waiter = env.blocking(move || waiting.wait_dirty(std::time::Duration::from_secs(60)));
        let enqueued = async {
            while !log_dir.is_awaited() {
                tokio::task::yield_now().await;
            }
            log_dir.enqueue(log.clone());
        };
        assert_eq!(futures::join!(waiter, enqueued).0.len(), 1);
        assert!(began.elapsed() < std::time::Duration::from_secs(30), "it was not told");
    }
    let waiting = log_dir.clone();
    assert!(
        env.blocking(move || waiting.wait_dirty(std::time::Duration::from_millis(1)))
            .await
            .is_empty()
    );
    log_dir.enqueue(log.clone());
    tokio::time::timeout(std::time::Duration::from_secs(300), log_dir.wake.notified())
        .await
        .unwrap();
    assert_eq!(log_dir.take_dirty().len(), 1);
}
