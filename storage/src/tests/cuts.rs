//! Logs that are cut, emptied or set aside, whatever fails in the middle of it.

use super::*;
use letterbox_protocol::batch::HEADER_BYTES;

/// The directories in which something was set aside.
pub(super) fn strays(disk: &SimDisk) -> Vec<PathBuf> {
    let entries = disk.list(Path::new(DIR)).unwrap().into_iter();
    let names = entries.map(|entry| entry.name).filter(|name| name.ends_with("-stray"));
    names.map(|name| Path::new(DIR).join(name)).collect()
}

/// What the segments in a directory have, as [`contents`].
fn records_in(disk: &SimDisk, dir: &Path) -> BTreeMap<Offset, String> {
    let mut found = BTreeMap::new();
    for entry in disk.list(dir).unwrap().iter().filter(|entry| entry.name.ends_with(".log")) {
        let bytes = disk.read(&dir.join(&entry.name)).unwrap();
        let mut rest = &bytes[..];
        while let Ok((batch, after)) = Batch::split(rest) {
            let count = batch.header.records_count;
            for record in RecordIter::new(batch.records_bytes(), count).map(Result::unwrap) {
                let value = String::from_utf8(record.value.unwrap_or_default().to_vec()).unwrap();
                found.insert(batch.header.base_offset + i64::from(record.offset_delta), value);
            }
            rest = after;
        }
    }
    found
}

const BATCHES: i64 = 30;

/// The `nth` batch of an idempotent producer, of two records.
fn produced(nth: i64) -> BytesMut {
    produced_by(3, nth)
}

fn produced_by(id: i64, nth: i64) -> BytesMut {
    let mut builder = BatchBuilder::new(nth).producer(id, 0, i32::try_from(2 * nth).unwrap());
    builder.push(nth, None, Some(format!("{nth}: a value of some length").as_bytes()), &[]);
    builder.push(nth, None, Some(b"and another"), &[]);
    builder.build()
}

/// A log of several segments, synced; half of it lies below the recovery point.
async fn filled(disk: &SimDisk) -> (Arc<LogManager>, Arc<Log>) {
    let config = LogConfig { segment_bytes: 700, ..small() };
    let (manager, log) = new_log(&disk.env(), Path::new(DIR), config).await;
    for nth in 0..BATCHES {
        log.append(produced(nth), &client(nth)).unwrap();
        if nth == BATCHES / 2 {
            log.checkpoint().unwrap();
            log.dir.partitions.set_recovery_points([&*log]).unwrap();
        }
    }
    log.set_high_watermark(2 * BATCHES);
    log.sync().unwrap();
    log.dir.partitions.set_positions([&*log]).unwrap();
    assert!(log.segments_count() > 3);
    (manager, log)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Short,
    Within,
    Emptied,
    SetAside,
}

impl Cut {
    const ALL: [Self; 4] = [Self::Short, Self::Within, Self::Emptied, Self::SetAside];

    fn carry_out(self, log: &Arc<Log>) -> Result<(), LogError> {
        match self {
            Self::Short | Self::Within => log.truncate_to(self.end() + 1),
            Self::Emptied => log.truncate_fully_and_start_at(self.end()),
            Self::SetAside => log.set_aside_and_start_at(self.end()),
        }
    }

    fn is_anew(self) -> bool {
        matches!(self, Self::Emptied | Self::SetAside)
    }

    fn end(self) -> Offset {
        match self {
            Self::Short => 2 * BATCHES - 2,
            Self::Within => 10,
            Self::Emptied => 200,
            Self::SetAside => 0,
        }
    }
}

/// The next try of the cut took for written where the log was closed, and the next start missed
/// records that had been cut.
#[tokio::test]
async fn a_cut_that_could_not_note_its_end_does_so_when_it_is_tried_again() {
    for cut in Cut::ALL {
        let disk = SimDisk::new(1);
        let (manager, log) = filled(&disk).await;
        drop(log);
        manager.close().await.unwrap();
        drop(manager);
        let manager = open(&disk.env(), Path::new(DIR)).await;
        let log = manager.get(ID, 0).unwrap();
        disk.inject(Fault::NoSpace, "log-end-offset-checkpoint", 0, 1);
        cut.carry_out(&log).unwrap_err();
        disk.heal();
        log.dir.check_space(Some(0));
        cut.carry_out(&log).unwrap();
        log.sync().unwrap();
        let left = contents(&log);
        drop((manager, log));
        disk.power_cut();
        let manager = open(&disk.env(), Path::new(DIR)).await;
        let log = manager.get(ID, 0).unwrap_or_else(|| panic!("{cut:?} is offline"));
        assert_eq!(contents(&log), left, "{cut:?}");
    }
}

/// The log counted segments whose files were gone, appended to them, and set aside into another
/// directory with each try; of a producer whose records it had cut it took the next try for one
/// that it has.
#[tokio::test]
async fn a_cut_that_fails_half_way_is_finished_before_the_log_takes_records() {
    let faults = [Fault::NoSpace, Fault::NoDescriptor, Fault::FailChange, Fault::FailRead];
    let cases = Cut::ALL.into_iter().flat_map(|cut| faults.map(|fault| (cut, fault)));
    for (cut, fault) in cases {
        let mut half_way = 0;
        for at in 0.. {
            let said = format!("{cut:?}, {fault:?} after {at}");
            let disk = SimDisk::new(at);
            let (manager, log) = filled(&disk).await;
            let expected = contents(&log);
            disk.inject(fault, "", at, 1 + u64::from(fault == Fault::NoDescriptor));
            let done = cut.carry_out(&log).is_ok();
            disk.heal();
            log.dir.check_space(Some(0));
            let is_cut = log.end_offset() == cut.end();
            half_way += u64::from(is_cut && !done);
            let left = expected.range(..log.end_offset()).filter(|_| log.start_offset() == 0);
            assert!(contents(&log).iter().eq(left), "{said}");
            if is_cut && !done {
                let refused = log.append(batch(1, &["new"]), &client(1)).unwrap_err();
                assert_eq!(refused.code().code(), 56, "{said}: {refused}");
            }
            if !log.is_offline() {
                log.sync().expect(&said);
                if !is_cut {
                    cut.carry_out(&log).expect(&said);
                }
                // Sent again by its producer: it is not there any more.
                let again = log.append(produced(cut.end() / 2), &client(99)).expect(&said);
                assert!(!again.duplicate && again.base_offset == cut.end(), "{said}: {again:?}");
                log.sync().expect(&said);
            }
            let (left, is_offline) = (contents(&log), log.is_offline());
            drop((manager, log));
            disk.power_cut();
            let manager = open(&disk.env(), Path::new(DIR)).await;
            let log = manager
                .get(ID, 0)
                .unwrap_or_else(|| panic!("{said}: {:?}", manager.offline_logs()));
            if is_offline {
                assert_nothing_lost(&disk, &log, cut, &expected, &said);
            } else {
                assert_eq!(contents(&log), left, "{said}");
                let asides = strays(&disk);
                assert_eq!(asides.len(), usize::from(cut == Cut::SetAside), "{said}");
                let kept = asides.first().map(|dir| records_in(&disk, dir));
                assert!(kept.is_none_or(|kept| kept == expected), "{said}");
            }
            if disk.stats().faults.is_empty() {
                // Where nothing is kept, nothing is read.
                let is_met = half_way > 0 || (fault == Fault::FailRead && cut.is_anew());
                assert!(is_met, "{said}: the faults have to have met something");
                break;
            }
        }
    }
}

/// What the log has after a start, with what was set aside, is all that it had or, where it was cut,
/// the beginning of that.
fn assert_nothing_lost(
    disk: &SimDisk,
    log: &Log,
    cut: Cut,
    expected: &BTreeMap<Offset, String>,
    said: &str,
) {
    let mut found = contents(log);
    for aside in strays(disk) {
        found.extend(records_in(disk, &aside));
    }
    match cut {
        Cut::SetAside => assert_eq!(found, *expected, "{said}"),
        Cut::Emptied => assert!(found.iter().eq(expected.iter().take(found.len())), "{said}"),
        Cut::Short | Cut::Within => {
            let least = usize::try_from(cut.end()).unwrap();
            assert!(found.len() >= least, "{said}: {}", found.len());
            assert!(found.iter().eq(expected.iter().take(found.len())), "{said}");
        }
    }
}

/// Killed after each change to the disk, or the power fails there.
#[tokio::test]
async fn what_a_kill_leaves_of_a_cut_is_a_log() {
    for (cut, is_power) in Cut::ALL.into_iter().flat_map(|cut| [(cut, false), (cut, true)]) {
        for at in 0.. {
            let said = format!("{cut:?}, power {is_power}, after {at}");
            let disk = SimDisk::new(at);
            let (manager, log) = filled(&disk).await;
            let expected = contents(&log);
            if is_power {
                disk.cut_power_after(at);
            } else {
                disk.inject(Fault::FailChange, "", at, u64::MAX);
            }
            let done = cut.carry_out(&log).is_ok();
            drop((manager, log));
            if is_power {
                disk.power_cut();
            } else {
                disk.end_process();
            }
            disk.heal();
            let manager = open(&disk.env(), Path::new(DIR)).await;
            let log = manager
                .get(ID, 0)
                .unwrap_or_else(|| panic!("{said}: {:?}", manager.offline_logs()));
            assert_nothing_lost(&disk, &log, cut, &expected, &said);
            // It goes on from there.
            let end = log.end_offset();
            assert_eq!(append(&log, 1, &["new"]).base_offset, end, "{said}");
            if done {
                assert!(at > 4, "the faults have to have met something: {at}");
                break;
            }
        }
    }
}

/// A leader that changed while a large log was cut held up all other partitions.
#[tokio::test]
async fn who_begins_an_epoch_waits_for_no_cut() {
    for cut in Cut::ALL {
        let disk = SimDisk::new(1);
        let (_manager, log) = filled(&disk).await;
        let (asked, seen) = (log.clone(), Arc::new(AtomicI32::new(0)));
        let looks = {
            let seen = seen.clone();
            move |_: &Path| {
                let (log, epoch) = (asked.clone(), seen.fetch_add(1, Ordering::Relaxed));
                let (told, heard) = std::sync::mpsc::channel();
                #[expect(
                    clippy::disallowed_methods,
                    reason = "one that waits must not end the test"
                )]
                std::thread::spawn(move || {
                    log.begin_epoch(epoch);
                    told.send(log.latest_epoch())
                });
                heard.recv_timeout(Duration::from_secs(20)).expect("it waits for the cut");
            }
        };
        disk.drop_caches();
        log.close_idle();
        disk.on_make(looks.clone());
        disk.on_read(looks);
        cut.carry_out(&log).unwrap();
        assert!(seen.load(Ordering::Relaxed) > 0, "{cut:?}");
    }
}

/// Segments whose renaming had failed were gone on with by name, when a log that had begun anew had
/// segments of these names.
#[tokio::test]
async fn what_retention_has_left_behind_takes_nothing_of_a_log_that_began_anew() {
    let disk = SimDisk::new(1);
    let (manager, log) = filled(&disk).await;
    log.set_config(LogConfig { retention_ms: 1, ..small() });
    disk.inject(Fault::NoSpace, ".log", 0, 1);
    log.apply_retention(1_000_000).unwrap_err();
    log.set_config(small());
    log.truncate_fully_and_start_at(0).unwrap();
    append(&log, 1, &["new"]);
    log.sync().unwrap();
    let _ = log.apply_retention(1_000_001).unwrap();
    let expected = contents(&log);
    drop((manager, log));
    disk.power_cut();
    let log = open(&disk.env(), Path::new(DIR)).await.get(ID, 0).unwrap();
    assert_eq!((contents(&log), expected.len()), (expected, 1));
}

/// A kill between the two left one for ever.
#[tokio::test]
async fn a_directory_aside_that_nothing_came_into_goes_at_the_next_start() {
    let disk = SimDisk::new(1);
    let (manager, log) = filled(&disk).await;
    log.set_aside_and_start_at(0).unwrap();
    let kept_alone = &strays(&disk)[..];
    let [kept] = kept_alone else { panic!() };
    let empty = PathBuf::from(kept.to_str().unwrap().replace("-stray", "-1-stray"));
    disk.create_dir_all(&empty).unwrap();
    disk.rename(&log.path.join("partition.metadata"), &empty.join("partition.metadata")).unwrap();
    drop((manager, log));
    let manager = open(&disk.env(), Path::new(DIR)).await;
    manager.remove_doomed(&CancellationToken::new()).await;
    assert_eq!(strays(&disk), *kept_alone);
}

/// Its files have the names of those of the log that comes after it.
#[tokio::test]
async fn a_log_that_is_deleted_half_way_through_a_cut_opens_no_file_of_another_one() {
    for fault in [Fault::NoSpace, Fault::NoDescriptor] {
        let mut half_way = 0;
        for at in 0.. {
            let disk = SimDisk::new(at);
            let (manager, log) = filled(&disk).await;
            // As a reader has them.
            let before = log.segments.load_full();
            disk.inject(fault, "", at, 1 + u64::from(fault == Fault::NoDescriptor));
            let is_done = log.truncate_to(10).is_ok();
            disk.heal();
            log.dir.check_space(Some(0));
            half_way += u64::from(!is_done && log.end_offset() == 10);
            manager.delete(vec![(TOPIC.into(), ID, 0)]).await;
            let config = LogConfig { segment_bytes: 700, ..small() };
            let new = manager.create(TOPIC, Uuid::from_u128(77), 0, config).await.unwrap();
            for nth in 0..BATCHES {
                new.append(produced_by(4, nth), &client(nth)).unwrap();
            }
            new.sync().unwrap();
            for segment in before.iter() {
                let mut head = [0; HEADER_BYTES];
                let Ok(files) = segment.files() else { continue };
                if files.log.read_exact_at(&mut head, 0).is_ok() {
                    let producer_id = BatchHeader::parse(&head).unwrap().producer_id;
                    assert_eq!(producer_id, 3, "{fault:?} after {at}: {}", segment.base);
                }
            }
            if disk.stats().faults.is_empty() {
                assert!(half_way > 0, "{fault:?}: it has to have met something");
                break;
            }
        }
    }
}
