//! What is wrong with one thing stays with it, and what was given up is not given out again.

use super::*;

fn cut(disk: &dyn Disk, path: &Path, len: u64) {
    let file = disk.open(path, OpenMode::ReadWrite).unwrap();
    file.set_len(len).unwrap();
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
