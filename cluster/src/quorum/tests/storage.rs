//! The log's file: openraft's own conformance suite, torn writes, bit rot.

use std::path::Path;
use std::sync::Arc;

use letterbox_env::{Disk, Env, Fault};
use letterbox_sim::disk::{Fault as DiskFault, SimDisk};
use openraft::EntryPayload;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite};

use super::sole;
use crate::metadata::{MetadataImage, record};
use crate::quorum::Seat;
use crate::quorum::log_store::LogStore;
use crate::quorum::patience::Patience;
use crate::quorum::snapshot::{Meta, Slots};
use crate::quorum::state_machine::{Published, StateMachine};
use crate::quorum::types::{
    Entry, Members, StorageError, StoredMembership, TypeConfig, Vote, Voter, first_entry, log_id,
};
use crate::quorum::wal::{FILE_NAME, Item, Wal, WalError};

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError> {
        let env = Env::real();
        let dir = tempfile::tempdir().unwrap();
        let (wal, items) = open(dir.path()).unwrap();
        let (slots, stored) = Slots::open(Arc::clone(&env.disk), dir.path()).unwrap();
        let (coverage, patience) = (slots.coverage(), Patience::default());
        // The suite purges without a snapshot.
        coverage.extend(Some(log_id(u64::MAX, u64::MAX)));
        let store = LogStore::new(env.clone(), patience, coverage, wal, items).unwrap();
        let machine = StateMachine::new(
            env,
            Patience::default(),
            Published::new(),
            Arc::new(std::sync::Mutex::new(slots)),
            stored,
        )
        .unwrap();
        Ok((dir, store, machine))
    }
}

fn open(dir: &Path) -> Result<(Wal, Vec<Item>), WalError> {
    let env = Env::real();
    Wal::open(Arc::clone(&env.disk), &*env.random, dir, 1, true)
}

#[test]
fn storage_passes_the_conformance_suite_of_openraft() {
    Suite::test_all(Builder).unwrap();
}

const SEAL_LEN: usize = 16;

fn all_items() -> Vec<Item> {
    some_items().concat()
}

fn some_items() -> Vec<Vec<Item>> {
    vec![
        vec![Item::Vote(b"a vote".to_vec())],
        vec![Item::Entry(vec![1; 30]), Item::Entry(vec![2; 7])],
        vec![Item::Truncate(2)],
        vec![Item::Entry(vec![3; 100])],
        vec![Item::Purge(1, 1)],
    ]
}

/// A file with the frames of [`some_items`], and where each frame ends.
fn written(dir: &Path) -> (Vec<u8>, Vec<usize>) {
    let (mut wal, _) = open(dir).unwrap();
    let mut ends = vec![wal.len()];
    for items in some_items() {
        wal.append(&items).unwrap();
        ends.push(wal.len());
    }
    (Env::real().disk.read(&dir.join(FILE_NAME)).unwrap(), ends)
}

#[allow(clippy::disallowed_methods, reason = "the test is the disk's fault")]
fn put(dir: &Path, bytes: &[u8]) {
    std::fs::write(dir.join(FILE_NAME), bytes).unwrap();
}

/// Which steps of an election of node 1 write: the log of a cluster of `nodes` is begun, it votes for
/// itself, it wins, it appends its first entry, it votes for another one. And all that is in the file
/// then.
async fn elect(nodes: u64) -> ([bool; 5], Vec<Item>) {
    let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
    let (wal, items) = open(dir.path()).unwrap();
    let coverage = Slots::open(Arc::clone(&env.disk), dir.path()).unwrap().0.coverage();
    let mut store = LogStore::new(env.clone(), Patience::default(), coverage, wal, items).unwrap();
    let mut seen = Vec::new();
    let mut writes = || {
        let now = env.disk.read(&dir.path().join(FILE_NAME)).unwrap();
        std::mem::replace(&mut seen, now.clone()) != now
    };
    writes();
    let members = (1..=nodes).map(|id| (id, Voter::default())).collect();
    store.begin(first_entry(members)).await.unwrap();
    let begun = writes();
    store.save_vote(&Vote::new(1, 1)).await.unwrap();
    let voted = writes();
    store.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
    assert_eq!(store.reached().term, 1);
    let won = writes();
    let blank = Entry { log_id: log_id(1, 1), payload: EntryPayload::Blank };
    store.blocking_append([blank]).await.unwrap();
    let appended = writes();
    store.save_vote(&Vote::new(2, 2)).await.unwrap();
    ([begun, voted, won, appended, writes()], open(dir.path()).unwrap().1)
}

#[tokio::test]
async fn an_election_of_a_node_that_is_alone_is_one_write() {
    let is_whole = |items: &[Item]| {
        matches!(items, [Item::Entry(_), Item::Vote(_), Item::Entry(_), Item::Vote(_)])
    };
    let (writes, items) = elect(1).await;
    assert_eq!(writes, [false, false, false, true, true]);
    assert!(is_whole(&items), "{items:?}");
    // Others count on a vote as soon as they hear of it, and nobody on having won.
    let (writes, items) = elect(3).await;
    assert_eq!(writes, [true, true, false, true, true]);
    assert!(is_whole(&items), "{items:?}");
}

/// Room is there, and synced, before anything is written to it: no crash makes the file shorter.
#[test]
fn file_that_was_cut_short_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, ends) = written(dir.path());
    let last = *ends.last().unwrap();
    for len in 0..last + SEAL_LEN {
        put(dir.path(), &bytes[..len]);
        assert!(matches!(open(dir.path()), Err(WalError::Damaged { .. })), "cut at {len}");
    }
    put(dir.path(), &bytes[..last + SEAL_LEN]);
    assert_eq!(open(dir.path()).unwrap().1, all_items());
}

/// The bytes of the file when the machine ended during the last append: the seal of the frame
/// before is where it was to be written, or is lost.
fn torn(bytes: &[u8], ends: &[usize], written: impl Fn(usize) -> bool, is_sealed: bool) -> Vec<u8> {
    let (start, end) = (ends[ends.len() - 2], ends[ends.len() - 1]);
    let mut before = tempfile::tempdir().map(|dir| {
        let (mut wal, _) = open(dir.path()).unwrap();
        for items in some_items().split_last().unwrap().1 {
            wal.append(items).unwrap();
        }
        Env::real().disk.read(&dir.path().join(FILE_NAME)).unwrap()
    });
    let mut before = before.as_mut().unwrap().split_off(start);
    if !is_sealed {
        before[..SEAL_LEN].fill(0);
    }
    let mut torn = bytes.to_vec();
    torn[start..end + SEAL_LEN].copy_from_slice(&before[..end + SEAL_LEN - start]);
    for at in (start..end).filter(|at| written(*at)) {
        torn[at] = bytes[at];
    }
    torn
}

#[test]
fn last_frame_torn_anywhere_is_cut_and_never_seen_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut bytes, ends) = written(dir.path());
    let (start, end) = (ends[ends.len() - 2], ends[ends.len() - 1]);
    let kept: Vec<Item> = some_items().into_iter().take(4).flatten().collect();
    for is_sealed in [false, true] {
        for hole in start..end {
            let torn = torn(&bytes, &ends, |at| at / 8 != hole / 8, is_sealed);
            if torn[start..end] == bytes[start..end] {
                continue;
            }
            put(dir.path(), &torn);
            assert_eq!(open(dir.path()).unwrap().1, kept, "hole at {hole}");
            let after = Env::real().disk.read(&dir.path().join(FILE_NAME)).unwrap();
            assert!(after[start..].iter().all(|byte| *byte == 0), "hole at {hole}");
            let (mut wal, _) = open(dir.path()).unwrap();
            wal.append(&[Item::Truncate(99)]).unwrap();
            drop(wal);
            let again = [kept.clone(), vec![Item::Truncate(99)]].concat();
            assert_eq!(open(dir.path()).unwrap().1, again, "hole at {hole}");
        }
    }
    // A seal that is not there, or is torn, is nothing that is missed.
    for kept in 0..SEAL_LEN {
        bytes[end + kept..end + SEAL_LEN].fill(0);
        put(dir.path(), &bytes);
        assert_eq!(open(dir.path()).unwrap().1, all_items());
    }
}

#[test]
fn bit_rot_of_what_was_synced_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, ends) = written(dir.path());
    let last = ends[ends.len() - 1];
    let mut noticed = 0;
    for at in 0..last {
        let mut rotten = bytes.clone();
        rotten[at] ^= 0x10;
        put(dir.path(), &rotten);
        match open(dir.path()) {
            Err(WalError::Damaged { .. } | WalError::WrongNode { .. }) => noticed += 1,
            Ok((_, items)) => assert_eq!(items, all_items(), "only padding at {at}"),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(noticed > last - 64);
}

#[test]
fn rewritten_file_has_only_what_was_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path()).unwrap();
    let before = wal.incarnation();
    wal.append(&[Item::Entry(vec![5; 1000])]).unwrap();
    wal.rewrite(&[Item::Purge(1, 8)]).unwrap();
    wal.append(&[Item::Truncate(9)]).unwrap();
    drop(wal);
    let (wal, items) = open(dir.path()).unwrap();
    assert_eq!((items, wal.incarnation()), (vec![Item::Purge(1, 8), Item::Truncate(9)], before));
}

#[test]
fn missing_file_is_made_only_where_that_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let refused = Wal::open(Arc::clone(&env.disk), &*env.random, dir.path(), 1, false);
    assert!(matches!(refused, Err(WalError::Missing { .. })));
}

/// Issue 7 §2.12: as Apache Kafka's `FileLogInputStream.nextBatch` decides about the first batch of
/// a file.
#[test]
fn tools_that_look_at_every_log_file_take_this_one_for_an_unfinished_batch() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, _) = written(dir.path());
    assert_eq!(
        FILE_NAME.strip_suffix(".log").unwrap().parse::<i64>().unwrap(),
        0,
        "the name is an offset"
    );
    let size = i32::from_be_bytes(bytes[8..12].try_into().unwrap());
    assert!(size >= 14 && u64::from(size.unsigned_abs()) + 12 > bytes.len() as u64, "{size}");
}

/// The node ended, although nothing was lost: nobody counts yet on a new file, or on room ahead.
#[test]
fn no_space_at_a_sync_that_nobody_counts_on_passes() {
    let large = |bytes| vec![Item::Entry(vec![7; bytes])];
    for (rewrites, items, passes_at_once) in [
        (true, large(10), false),
        // There is room without what was to be written ahead.
        (false, large(600 << 10), true),
        (false, large(2 << 20), false),
    ] {
        let disk = SimDisk::new(1);
        let (env, dir) = (disk.env(), Path::new("/metadata"));
        disk.create_dir_all_durably(dir).unwrap();
        let open = || Wal::open(Arc::clone(&env.disk), &*env.random, dir, 1, true).unwrap();
        let (mut wal, _) = open();
        wal.append(&large(5)).unwrap();
        disk.inject(DiskFault::NoSpaceAtSync, "", 0, 1);
        let mut write = || if rewrites { wal.rewrite(&items) } else { wal.append(&items) };
        match write() {
            Ok(()) => assert!(passes_at_once),
            Err(error) => {
                assert!(Fault::of(&error).is_state() && !passes_at_once, "{error}");
                write().unwrap();
            }
        }
        drop(wal);
        disk.power_cut();
        let before = if rewrites { Vec::new() } else { large(5) };
        assert_eq!(open().1, [before, items].concat());
    }
}

/// A log that begins with a membership, and the state machine, on a new disk.
async fn begun(disk: &SimDisk) -> (LogStore, StateMachine, StoredMembership) {
    let (env, dir) = (disk.env(), sole(Path::new("/")).dir);
    disk.create_dir_all_durably(&dir).unwrap();
    let (wal, items) = Wal::open(Arc::clone(&env.disk), &*env.random, &dir, 1, true).unwrap();
    let own = Voter { incarnation: wal.incarnation(), ..Voter::default() };
    let members: Members = [(1, own)].into();
    let (slots, stored) = Slots::open(Arc::clone(&env.disk), &dir).unwrap();
    let (patience, coverage) = (Patience::default(), slots.coverage());
    let store = LogStore::new(env.clone(), patience.clone(), coverage, wal, items).unwrap();
    store.begin(first_entry(members)).await.unwrap();
    let (membership, slots) = (store.membership().unwrap(), Arc::new(std::sync::Mutex::new(slots)));
    let machine = StateMachine::new(env, patience, Published::new(), slots, stored).unwrap();
    (store, machine, membership)
}

/// openraft has the log purged while the snapshot that it has received is still being written.
#[tokio::test]
async fn a_voter_whose_power_goes_while_it_takes_a_snapshot_starts_again() {
    for seed in 0..8 {
        for operations in 0.. {
            let disk = SimDisk::new(seed);
            let (mut store, mut machine, last_membership) = begun(&disk).await;
            let upto = log_id(1, 50);
            let snapshot_id = "1-50".to_owned();
            let meta = Meta { last_log_id: Some(upto), last_membership, snapshot_id };
            let data = record::encode(&MetadataImage::default().to_records()).unwrap();
            disk.cut_power_after(operations);
            let snapshot = Box::new(std::io::Cursor::new(data.into_bytes()));
            let (purged, installed) =
                tokio::join!(store.purge(upto), machine.install_snapshot(&meta, snapshot));
            let is_done = disk.is_powered();
            assert!(!is_done || (purged.is_ok() && installed.is_ok()));
            drop((store, machine));
            disk.power_cut();
            let opened = Seat::take(disk.env(), sole(Path::new("/"))).await;
            let reason = opened.err().map(|error| error.to_string());
            assert_eq!(reason, None, "seed {seed}, power cut after {operations} operations");
            if is_done {
                break;
            }
        }
    }
}
