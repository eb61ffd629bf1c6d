//! Where the metadata log lies: not where Apache Kafka has its own.
//!
//! Apache Kafka cuts to nothing what it cannot read in `__cluster_metadata-0`, and earlier versions
//! of Letterbox had their log there. Now it lies in a directory that Apache Kafka refuses to
//! start with, and the first start moves it there, with one rename.

use std::io;
use std::path::Path;

use letterbox_env::{Disk, OpenMode};
use letterbox_protocol::topics::{KAFKA_METADATA_DIR, METADATA_DIR};

use super::raft_quorum::OpenError;
use super::wal::{FILE_NAME, RESTORE, begins_as_ours};

/// Files that Apache Kafka has beside its metadata log, and Letterbox never had.
const KAFKAS: &[&str] = &["quorum-state", "partition.metadata"];

/// Moves the metadata log in `metadata_dir` (`metadata.log.dir`) to where it lies now, if an
/// earlier version left it under Kafka's name. What is another's is left as it is. Blocks.
///
/// # Errors
/// `Kafkas`, `Unusable`, `Locked`; the file system's own.
pub fn settle(disk: &dyn Disk, metadata_dir: &Path) -> Result<(), OpenError> {
    let (now, before) = (metadata_dir.join(METADATA_DIR), metadata_dir.join(KAFKA_METADATA_DIR));
    let io = |source| OpenError::Io { directory: before.clone(), source };
    if !disk.exists(&before).map_err(io)? {
        return Ok(());
    }
    let begins = begins_as_ours(disk, &before.join(FILE_NAME)).map_err(io)?;
    let is_there = |name: &&str| disk.exists(&before.join(name)).unwrap_or(true);
    let is_kafkas = begins != Some(true) && KAFKAS.iter().any(is_there);
    match (disk.exists(&now).map_err(io)?, begins) {
        // Whoever made it, ours is not there.
        (true, None | Some(false)) => Ok(()),
        (true, Some(true)) => Err(OpenError::Unusable {
            directory: before.clone(),
            reason: format!(
                "it is a metadata log, and so is {}, which is in use. A directory must be restored \
                 as a whole: move one of them away",
                now.display()
            ),
        }),
        (false, _) if is_kafkas => Err(OpenError::Kafkas { log: before.clone() }),
        (false, Some(false)) => Err(OpenError::Unusable {
            directory: before.clone(),
            reason: format!(
                "its log begins neither as Letterbox's nor as Apache Kafka's. If it was \
                 Letterbox's, the disk has changed it. {RESTORE}"
            ),
        }),
        (false, _) => {
            // An earlier version that still runs has locked it.
            let _lock = disk.lock(&before.join(".lock")).map_err(|source| {
                let locked = source.kind() == io::ErrorKind::WouldBlock;
                if locked { OpenError::Locked { directory: before.clone() } } else { io(source) }
            })?;
            disk.rename(&before, &now).and_then(|()| disk.sync_dir(metadata_dir)).map_err(io)?;
            tracing::info!(
                from = %before.display(),
                to = %now.display(),
                "renamed the metadata log's directory, because Apache Kafka uses the old name"
            );
            Ok(())
        }
    }
}

/// Whether there is a metadata log of ours in `directory`, where it lies now or where an earlier
/// version had it; then when it was written last, in milliseconds of wall-clock time, or 0 where the
/// file system does not tell. What cannot be read is none. Blocks.
#[must_use]
pub fn written_ms(disk: &dyn Disk, directory: &Path) -> Option<i64> {
    [METADATA_DIR, KAFKA_METADATA_DIR].iter().find_map(|name| {
        let log = directory.join(name).join(FILE_NAME);
        if !matches!(begins_as_ours(disk, &log), Ok(Some(true))) {
            return None;
        }
        let file = disk.open(&log, OpenMode::Read).ok()?;
        Some(file.modified_ms().ok().flatten().unwrap_or(0))
    })
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the tests play the user")]
mod tests {
    use std::fs;

    use letterbox_env::Env;

    use super::*;

    /// `metadata.log.dir` with these files, each with its first bytes, and what is said of it.
    fn check(files: &[(&str, &[u8])], said: &str, after: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let settled = settle(&*Env::real().disk, dir.path());
        let words = settled.err().map_or(String::new(), |error| error.to_string());
        assert!(if said.is_empty() { words.is_empty() } else { words.contains(said) }, "{words}");
        for path in after {
            assert!(dir.path().join(path).exists(), "{path} after {files:?}: {words}");
        }
    }

    const OURS: &[u8] = b"LBXRAFT2\x7f\x7f\x7f\x7f and so on";
    const KAFKAS_LOG: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 90, 0, 0, 0, 1, 2];
    const BEFORE: &str = "__cluster_metadata-0/00000000000000000000.log";
    const NOW: &str = "__letterbox_metadata/00000000000000000000.log";

    #[test]
    fn the_log_is_moved_if_it_is_ours_and_never_if_it_is_not() {
        check(&[], "", &[]);
        check(&[(BEFORE, OURS)], "", &[NOW]);
        check(&[(BEFORE, OURS), ("__cluster_metadata-0/snapshot-1", b"")], "", &[NOW]);
        // It was being made, or only its snapshot is left: whoever opens it says so.
        check(&[("__cluster_metadata-0/.lock", b"")], "", &["__letterbox_metadata/.lock"]);
        let snapshot = "__letterbox_metadata/snapshot-0";
        check(&[("__cluster_metadata-0/snapshot-0", b"")], "", &[snapshot]);
        let state = ("__cluster_metadata-0/quorum-state", &b"{}"[..]);
        check(&[(BEFORE, KAFKAS_LOG), state], "is Apache Kafka's metadata log", &[BEFORE]);
        check(&[state], "is Apache Kafka's metadata log", &["__cluster_metadata-0/quorum-state"]);
        check(&[(BEFORE, KAFKAS_LOG)], "neither as Letterbox's nor as Apache", &[BEFORE]);
        check(&[(BEFORE, b"")], "neither as Letterbox's nor as Apache", &[BEFORE]);
        // Apache Kafka has begun a log of its own beside ours.
        check(&[(BEFORE, KAFKAS_LOG), state, (NOW, OURS)], "", &[BEFORE, NOW]);
        check(&[(BEFORE, OURS), (NOW, OURS)], "move one of them away", &[BEFORE, NOW]);
    }

    #[test]
    fn it_is_known_when_a_log_was_written_last() {
        let (disk, dir) = (Env::real().disk, tempfile::tempdir().unwrap());
        let written = |name: &str, at: u64| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, OURS).unwrap();
            let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(at);
            fs::File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
        };
        written(&format!("a/{BEFORE}"), 7);
        written(&format!("b/{NOW}"), 9);
        for (of, at) in [("a", Some(7_000)), ("b", Some(9_000)), ("c", None)] {
            assert_eq!(written_ms(&*disk, &dir.path().join(of)), at, "{of}");
        }
    }

    #[test]
    fn the_log_of_a_node_that_runs_is_not_moved() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Env::real().disk;
        fs::create_dir(dir.path().join("__cluster_metadata-0")).unwrap();
        fs::write(dir.path().join(BEFORE), OURS).unwrap();
        let lock = disk.lock(&dir.path().join("__cluster_metadata-0/.lock")).unwrap();
        let settled = settle(&*disk, dir.path());
        assert!(matches!(settled, Err(OpenError::Locked { .. })), "{settled:?}");
        assert!(dir.path().join(BEFORE).exists());
        drop(lock);
        settle(&*disk, dir.path()).unwrap();
        // It was done.
        settle(&*disk, dir.path()).unwrap();
        assert!(dir.path().join(NOW).exists());
    }
}
