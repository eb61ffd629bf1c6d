//! The disk against its stated rules.

use std::io::{ErrorKind, IoSlice};
use std::path::Path;

use letterbox_env::{Disk, FileRef, OpenMode};
use proptest::prelude::{Just, Strategy, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::*;

fn path(name: &str) -> &Path {
    Path::new(name)
}

fn make(disk: &SimDisk, name: &str, bytes: &[u8]) -> FileRef {
    let file = disk.open(path(name), OpenMode::Create).unwrap();
    file.write_at(&[IoSlice::new(bytes)], 0).unwrap();
    file
}

fn names(disk: &SimDisk, dir: &str) -> Vec<String> {
    disk.list(path(dir)).unwrap().into_iter().map(|entry| entry.name).collect()
}

#[test]
fn synced_bytes_under_a_synced_name_survive_every_power_cut() {
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        let file = make(&disk, "/a", b"kept");
        file.sync().unwrap();
        disk.sync_dir(path("/")).unwrap();
        file.write_at(&[IoSlice::new(&[9; 4000])], 512).unwrap();
        disk.power_cut();
        assert_eq!(disk.read(path("/a")).unwrap()[..4], *b"kept");
    }
}

#[test]
fn a_synced_file_without_a_synced_name_may_be_gone() {
    let gone = (0..100).filter(|seed| {
        let disk = SimDisk::new(*seed);
        make(&disk, "/a", b"kept").sync().unwrap();
        disk.power_cut();
        !disk.exists(path("/a")).unwrap()
    });
    assert!((10..90).contains(&gone.count()));
}

#[test]
fn a_removed_file_may_come_back_until_its_directory_is_synced() {
    let (mut back, mut gone) = (0, 0);
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        make(&disk, "/a", b"old").sync().unwrap();
        disk.sync_dir(path("/")).unwrap();
        disk.remove_file(path("/a")).unwrap();
        assert!(!disk.exists(path("/a")).unwrap());
        if seed % 2 == 0 {
            disk.sync_dir(path("/")).unwrap();
        }
        disk.power_cut();
        match disk.read(path("/a")) {
            Ok(bytes) => {
                assert!(seed % 2 == 1, "removed and synced, yet back");
                assert_eq!(bytes, b"old");
                back += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound);
                gone += 1;
            }
        }
    }
    assert!(back > 10 && gone > 50, "{back} {gone}");
}

/// Cuts the power at every operation of `write_atomically`, under many seeds.
#[test]
fn atomic_write_leaves_the_old_or_the_new_content_whole_at_every_cut() {
    let (old, new) = (vec![1_u8; 1500], vec![2_u8; 2500]);
    let (mut olds, mut news) = (0, 0);
    for seed in 0..60 {
        for cut in 0..8 {
            let disk = SimDisk::new(seed);
            disk.create_dir_all(path("/d")).unwrap();
            disk.sync_dir(path("/")).unwrap();
            disk.write_atomically(path("/d/state"), &old).unwrap();
            disk.cut_power_after(cut);
            let result = disk.write_atomically(path("/d/state"), &new);
            assert_eq!(result.is_ok(), disk.is_powered());
            disk.power_cut();
            let found = disk.read(path("/d/state")).unwrap();
            if result.is_ok() {
                assert_eq!(found, new, "acknowledged, seed {seed}, cut {cut}");
            }
            match found {
                found if found == old => olds += 1,
                found if found == new => news += 1,
                found => {
                    panic!("neither old nor new: {} bytes, seed {seed}, cut {cut}", found.len())
                }
            }
        }
    }
    assert!(olds > 100 && news > 100, "{olds} {news}");
}

/// The same without the sync of the file: the test above must be able to fail.
#[test]
fn rename_without_sync_is_caught_by_power_cuts() {
    let caught = (0..100).any(|seed| {
        let disk = SimDisk::new(seed);
        disk.write_atomically(path("/state"), &[1; 1500]).unwrap();
        make(&disk, "/state.tmp", &[2; 2500]);
        disk.rename(path("/state.tmp"), path("/state")).unwrap();
        disk.sync_dir(path("/")).unwrap();
        disk.power_cut();
        let found = disk.read(path("/state")).unwrap();
        found != [1; 1500] && found != [2; 2500]
    });
    assert!(caught);
}

#[test]
fn a_failed_sync_is_an_error_once_and_the_next_one_succeeds_without_the_bytes() {
    let mut lost = 0;
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        let file = make(&disk, "/a", &[0; 4096]);
        file.sync().unwrap();
        disk.sync_dir(path("/")).unwrap();
        disk.inject(Fault::FailSync, "/a", 0, 1);
        file.write_at(&[IoSlice::new(&[7; 4096])], 0).unwrap();
        assert_eq!(
            letterbox_env::Fault::of(&file.sync().unwrap_err()),
            letterbox_env::Fault::LostWrite
        );
        file.sync().unwrap();
        disk.power_cut();
        lost += u64::from(disk.read(path("/a")).unwrap() != [7; 4096]);
        assert_eq!(disk.stats().faults["failed sync"], 1);
    }
    assert!(lost > 20, "{lost}");
}

#[test]
fn faults_hit_the_named_file_after_the_stated_number_of_operations() {
    let disk = SimDisk::new(1);
    let (a, b) = (make(&disk, "/dir-a", b"x"), make(&disk, "/dir-b", b"x"));
    disk.inject(Fault::FailRead, "dir-a", 2, 1);
    let mut byte = [0];
    let results: Vec<bool> = (0..4).map(|_| a.read_at(&mut byte, 0).is_ok()).collect();
    assert_eq!(results, [true, true, false, true]);
    assert!(b.read_at(&mut byte, 0).is_ok());
    disk.inject(Fault::FailWrite, "dir-b", 0, 1);
    assert!(b.write_at(&[IoSlice::new(b"y")], 0).is_err());
    assert_eq!(disk.read(path("/dir-b")).unwrap(), b"x");
}

#[test]
fn a_lying_device_is_found_out_when_the_cache_is_dropped() {
    for (fault, left) in [(Fault::DropWrite, [1, 1]), (Fault::MisdirectWrite(1), [1, 2])] {
        let disk = SimDisk::new(1);
        let file = make(&disk, "/a", &[1; 1024]);
        file.sync().unwrap();
        disk.inject(fault, "/a", 0, 1);
        file.write_at(&[IoSlice::new(&[2; 512])], 0).unwrap();
        disk.drop_caches();
        assert_eq!(disk.read(path("/a")).unwrap()[0], 2, "dirty pages stay");
        file.sync().unwrap();
        disk.drop_caches();
        let bytes = disk.read(path("/a")).unwrap();
        assert_eq!([bytes[0], bytes[512]], left);
    }
}

#[test]
fn a_full_disk_takes_what_fits_and_has_room_again_after_a_removal() {
    let disk = SimDisk::new(1);
    let old = make(&disk, "/old", &[1; 600]);
    disk.set_capacity(Some(1000));
    let file = disk.open(path("/new"), OpenMode::Create).unwrap();
    let error = file.write_at(&[IoSlice::new(&[2; 600])], 0).unwrap_err();
    assert_eq!(
        letterbox_env::Fault::of(&error),
        letterbox_env::Fault::State(letterbox_env::Resource::Space)
    );
    assert_eq!(file.len().unwrap(), 400);
    assert_eq!(disk.space(path("/")).unwrap(), (1000, 0));
    assert!(file.set_len(401).is_err());
    file.write_at(&[IoSlice::new(&[3; 400])], 0).unwrap();
    disk.remove_file(path("/old")).unwrap();
    assert!(file.set_len(401).is_err(), "an open file keeps its space");
    drop(old);
    file.set_len(1000).unwrap();
}

#[test]
fn without_descriptors_nothing_is_opened_until_there_is_one() {
    let disk = SimDisk::new(1);
    let file = make(&disk, "/open", &[1; 10]);
    disk.set_descriptors_left(Some(1));
    let last = make(&disk, "/last", &[1; 10]);
    let code = |result: io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(code(disk.open(path("/open"), OpenMode::Read).map(drop)), Some(EMFILE));
    assert_eq!(code(disk.sync_dir(path("/"))), Some(EMFILE));
    file.write_at(&[IoSlice::new(&[2; 10])], 0).unwrap();
    file.sync().unwrap();
    drop(last);
    disk.sync_dir(path("/")).unwrap();
    disk.set_descriptors_left(Some(0));
    disk.heal();
    disk.open(path("/open"), OpenMode::Read).unwrap();
}

#[test]
fn bit_rot_is_one_bit_and_stays() {
    let disk = SimDisk::new(1);
    make(&disk, "/a", &[0; 100]).sync().unwrap();
    disk.sync_dir(path("/")).unwrap();
    assert!(disk.flip_bit(path("/a"), 50, 3));
    assert!(!disk.flip_bit(path("/a"), 100, 0));
    for _ in 0..2 {
        let bytes = disk.read(path("/a")).unwrap();
        assert_eq!(bytes.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        assert_eq!(bytes[50], 8);
        disk.power_cut();
    }
}

#[test]
fn locks_are_held_until_dropped_or_until_the_process_ends() {
    let disk = SimDisk::new(1);
    let first = disk.lock(path("/.lock")).unwrap();
    assert_eq!(disk.lock(path("/.lock")).err().unwrap().kind(), ErrorKind::WouldBlock);
    drop(first);
    let held = disk.lock(path("/.lock")).unwrap();
    disk.end_process();
    let after = disk.lock(path("/.lock")).unwrap();
    drop(held);
    assert!(disk.lock(path("/.lock")).is_err(), "the old handle released the new lock");
    disk.power_cut();
    drop(disk.lock(path("/.lock")).unwrap());
    drop(after);
}

#[test]
fn the_end_of_a_process_keeps_the_page_cache() {
    let disk = SimDisk::new(1);
    let file = make(&disk, "/a", b"unsynced");
    disk.end_process();
    assert_eq!(disk.read(path("/a")).unwrap(), b"unsynced");
    assert!(file.write_at(&[IoSlice::new(b"zombie")], 0).is_err());
    assert_eq!(disk.read(path("/a")).unwrap(), b"unsynced");
}

#[test]
fn nothing_changes_while_the_power_is_off() {
    let disk = SimDisk::new(1);
    let file = make(&disk, "/a", b"one");
    file.sync().unwrap();
    disk.sync_dir(path("/")).unwrap();
    disk.power_off();
    assert!(file.write_at(&[IoSlice::new(b"two")], 0).is_err());
    assert!(file.sync().is_err());
    assert!(disk.remove_file(path("/a")).is_err());
    assert!(disk.list(path("/")).is_err());
    disk.power_cut();
    assert_eq!(disk.read(path("/a")).unwrap(), b"one");
}

#[test]
fn directory_operations_answer_as_linux_does() {
    let disk = SimDisk::new(1);
    disk.create_dir_all(path("/a/b")).unwrap();
    disk.create_dir_all(path("/a/b")).unwrap();
    make(&disk, "/a/f", b"f");
    assert_eq!(names(&disk, "/a"), ["b", "f"]);
    let code = |result: io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(code(disk.create_dir_all(path("/a/f"))), Some(EEXIST));
    assert_eq!(code(disk.create_dir_all(path("/a/f/g"))), Some(EEXIST));
    assert_eq!(disk.open(path("/a/b"), OpenMode::Read).err().unwrap().raw_os_error(), Some(EISDIR));
    assert_eq!(disk.open(path("/a/x"), OpenMode::Read).err().unwrap().kind(), ErrorKind::NotFound);
    assert_eq!(
        disk.open(path("/x/y"), OpenMode::Create).err().unwrap().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(disk.list(path("/a/f")).unwrap_err().raw_os_error(), Some(ENOTDIR));
    assert_eq!(code(disk.remove_file(path("/a/b"))), Some(EISDIR));
    assert_eq!(code(disk.rename(path("/a/f"), path("/a/b"))), Some(EISDIR));
    assert_eq!(code(disk.rename(path("/a"), path("/a/b/c"))), Some(EINVAL));
    assert!(!disk.exists(path("/a/f/g")).unwrap());
    disk.rename(path("/a"), path("/z")).unwrap();
    assert_eq!(disk.read(path("/z/f")).unwrap(), b"f");
    disk.remove_dir_all(path("/z")).unwrap();
    assert_eq!(names(&disk, "/"), Vec::<String>::new());
    let reader = disk
        .open(path("/r"), OpenMode::Create)
        .and_then(|_| disk.open(path("/r"), OpenMode::Read))
        .unwrap();
    assert_eq!(code(reader.write_at(&[IoSlice::new(b"x")], 0)), Some(9));
}

#[test]
fn cold_files_say_so_until_read_with_waiting() {
    let disk = SimDisk::new(3);
    make(&disk, "/a", b"abc").sync().unwrap();
    disk.sync_dir(path("/")).unwrap();
    disk.power_cut();
    let file = disk.open(path("/a"), OpenMode::Read).unwrap();
    let mut bytes = [0; 3];
    assert_eq!(file.read_at_nowait(&mut bytes, 0).unwrap(), None);
    assert_eq!(
        file.read_at_nowait(&mut bytes, 0).unwrap(),
        None,
        "only a read that waits warms the cache"
    );
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!((0..4).any(|_| file.read_at_nowait(&mut bytes, 0).unwrap().is_some()));
}

#[test]
fn waits_outside_of_blocking_jobs_are_counted() {
    let disk = SimDisk::new(1);
    let file = make(&disk, "/a", b"x");
    disk.blocking(true);
    file.sync().unwrap();
    assert!(disk.blocking(false) > Duration::ZERO);
    assert_eq!(disk.stats().waits_outside_blocking, 0);
    file.sync().unwrap();
    assert_eq!(disk.stats().waits_outside_blocking, 1);
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize, u8),
    Sync,
    Replace(u8),
    Cut,
    Kill,
}

proptest! {
    /// A log that syncs before it says yes, and a checkpoint written atomically, keep all they said
    /// yes to through any sequence of power cuts and kills.
    #[test]
    fn acknowledged_data_survives_any_sequence(
        seed: u64,
        steps in prop::collection::vec(
            prop_oneof![
                5 => (1usize..2000, 1u8..=255).prop_map(|(len, byte)| Step::Append(len, byte)),
                3 => Just(Step::Sync),
                2 => (1u8..=255).prop_map(Step::Replace),
                2 => Just(Step::Cut),
                1 => Just(Step::Kill),
            ],
            1..60,
        ),
    ) {
        let disk = SimDisk::new(seed);
        make(&disk, "/log", b"").sync().unwrap();
        disk.sync_dir(path("/")).unwrap();
        let (mut written, mut safe, mut state) = (Vec::new(), 0, None);
        for step in steps {
            match step {
                Step::Append(len, byte) => {
                    let file = disk.open(path("/log"), OpenMode::ReadWrite).unwrap();
                    file.write_at(&[IoSlice::new(&vec![byte; len])], written.len() as u64).unwrap();
                    written.resize(written.len() + len, byte);
                }
                Step::Sync => {
                    disk.open(path("/log"), OpenMode::ReadWrite).unwrap().sync().unwrap();
                    safe = written.len();
                }
                Step::Replace(byte) => {
                    disk.write_atomically(path("/state"), &[byte; 700]).unwrap();
                    state = Some(byte);
                }
                Step::Kill => {
                    disk.end_process();
                    prop_assert_eq!(&disk.read(path("/log")).unwrap(), &written);
                }
                Step::Cut => {
                    disk.power_cut();
                    let found = disk.read(path("/log")).unwrap();
                    prop_assert!(found.len() >= safe);
                    prop_assert_eq!(&found[..safe], &written[..safe]);
                    if let Some(byte) = state {
                        prop_assert_eq!(disk.read(path("/state")).unwrap(), vec![byte; 700]);
                    }
                    // Recovery: cut what was not acknowledged, and make that durable.
                    let file = disk.open(path("/log"), OpenMode::ReadWrite).unwrap();
                    file.set_len(safe as u64).unwrap();
                    file.sync().unwrap();
                    written.truncate(safe);
                }
            }
        }
    }

    /// The same seed and the same operations give the same platter.
    #[test]
    fn the_same_seed_loses_the_same_bytes(seed: u64, lens in prop::collection::vec(1usize..3000, 1..10)) {
        let run = || {
            let disk = SimDisk::new(seed);
            let file = make(&disk, "/a", b"");
            disk.sync_dir(path("/")).unwrap();
            for (i, len) in lens.iter().enumerate() {
                file.write_at(&[IoSlice::new(&vec![7; *len])], i as u64 * 700).unwrap();
            }
            disk.power_cut();
            (disk.read(path("/a")).unwrap(), disk.stats())
        };
        prop_assert_eq!(run(), run());
    }
}

/// Killed before each change in turn, then run again to the end, and then the power is cut.
#[test]
fn directories_that_were_made_durably_survive_a_power_cut_whenever_a_kill_came_before() {
    for killed_at in 0.. {
        let disk = SimDisk::new(killed_at);
        disk.inject(Fault::FailChange, "", killed_at, u64::MAX);
        let directory = Path::new("/a/b/c");
        let is_done = disk.create_dir_all_durably(directory).is_ok();
        // A kill is not a power cut: what was made stays in the page cache.
        disk.heal();
        disk.end_process();
        disk.create_dir_all_durably(directory).unwrap();
        let file = disk.open(&directory.join("file"), OpenMode::Create).unwrap();
        file.sync().unwrap();
        disk.sync_dir(directory).unwrap();
        drop(file);
        disk.power_cut();
        assert!(disk.exists(&directory.join("file")).unwrap(), "killed at change {killed_at}");
        if is_done {
            assert!(killed_at > 5, "three are made and three parents synced: {killed_at}");
            break;
        }
    }
}
