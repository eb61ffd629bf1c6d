//! Any bytes as the files of a partition, opened after a crash: no panic, and what was recovered is
//! recovered again, without anything more to cut.
//!
//! The first byte says whether the stop was clean, the second how the rest is dealt out, the next
//! eight are the recovery point.
#![no_main]

use std::path::Path;
use std::sync::Arc;

use letterbox_env::Env;
use letterbox_storage::recover;
use libfuzzer_sys::fuzz_target;

/// The files of one segment, in the order in which the input is dealt out; the log itself comes
/// last and takes what is left.
const FILES: [&str; 4] = [
    "00000000000000000000.index",
    "00000000000000000000.timeindex",
    "00000000000000000000.snapshot",
    "leader-epoch-checkpoint",
];

fuzz_target!(|input: &[u8]| {
    let Some((head, mut rest)) = input.split_first_chunk::<10>() else { return };
    let clean = head[0] & 1 == 1;
    let recovery_point = i64::from_be_bytes([
        head[2], head[3], head[4], head[5], head[6], head[7], head[8], head[9],
    ]);
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    for (bit, name) in FILES.iter().enumerate() {
        if head[1] & (1 << bit) != 0 {
            let Some((length, after)) = rest.split_first() else { break };
            let (file, after) = after.split_at(usize::from(*length).min(after.len()));
            std::fs::write(dir.path().join(name), file).expect("a file in memory");
            rest = after;
        }
    }
    // With the fifth bit the log is two segments, split in the middle; the second begins where its
    // first batch says.
    let (first, second) =
        if head[1] & 16 != 0 { rest.split_at(rest.len() / 2) } else { (rest, &[][..]) };
    write_log(dir.path(), 0, first);
    if let Some(base) =
        second.first_chunk::<8>().map(|bytes| i64::from_be_bytes(*bytes)).filter(|base| *base > 0)
    {
        write_log(dir.path(), base, second);
    }
    let disk = Arc::clone(&Env::real().disk);
    let closed = |end| clean.then_some(end);
    let found = recover(&disk, dir.path(), recovery_point, 0, 0, closed(recovery_point), 0);
    let Ok(found) = found else { return };
    let end = found.end_offset();
    drop(found);
    let again = recover(&disk, dir.path(), recovery_point.min(end), 0, 0, closed(end), 0)
        .unwrap_or_else(|error| panic!("recovered once to {end}, then: {error}"));
    assert_eq!((again.end_offset(), again.bytes_cut), (end, 0));
});

fn write_log(dir: &Path, base: i64, bytes: &[u8]) {
    std::fs::write(dir.join(format!("{base:020}.log")), bytes).expect("a file in memory");
}
