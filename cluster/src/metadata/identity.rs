//! Who a log directory belongs to: `meta.properties`, in Kafka's format.
//!
//! A directory is identified once, when it is empty, and is refused ever after by another cluster
//! or under another node id. The `directory.id` tells a disk from its empty successor.
//!
//! Its version is a word that Apache Kafka does not know: Kafka starts with no directory that has
//! it, and so changes nothing in it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use letterbox_env::{Env, Fault, Gather};
use letterbox_protocol::topics::PARTITION_TOPIC_IDS;
use uuid::Uuid;

use super::Stamp;
use crate::config::{escape_value, parse_properties};

pub use letterbox_protocol::model::{decode_uuid, encode_uuid};

/// The file's name.
pub const META_PROPERTIES: &str = "meta.properties";

/// The `version` of the file. Earlier versions of Letterbox wrote Kafka's, as does Kafka's own
/// `kafka-storage format`.
const VERSION: &str = "letterbox-1";
const KAFKAS_VERSION: &str = "1";

/// The log directories beside the metadata's that this broker has used, in the directory of the
/// metadata log: one on each line, as `directory.id`, a space, and its path. Not one of Kafka's
/// files.
pub const LOG_DIRECTORIES: &str = "log-directories";

/// Names that may be in a directory that was never used: a file system's own and the lock's.
const NOT_DATA: &[&str] = &["lost+found", ".lock", "meta.properties.tmp"];

/// What `meta.properties` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryIdentity {
    /// `cluster.id`.
    pub cluster_id: String,
    /// `node.id`.
    pub node_id: i32,
    /// `directory.id`: tells it from every other directory, also an empty one in its place.
    pub directory_id: Uuid,
    /// `run.id` and `run.id.before`: which state of it this is, where there are several nodes.
    pub stamp: Stamp,
    /// `used`: it has the list of its partitions.
    pub is_used: bool,
    /// Whether this call has just created it.
    pub created: bool,
    /// Whether Apache Kafka refuses the directory: the file has our `version`, not Kafka's.
    pub is_marked: bool,
}

impl DirectoryIdentity {
    /// `version`.
    #[must_use]
    pub fn version(&self) -> &'static str {
        if self.is_marked { VERSION } else { KAFKAS_VERSION }
    }
}

/// Why a directory cannot be used. Each message says what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum IdentityError {
    #[error("log directory {}: cannot be read or written", directory.display())]
    Io {
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "log directory {} has data but no {META_PROPERTIES}, so its cluster and node are not known \
        (found \"{found}\"). Point log.dirs at the right directory, put {META_PROPERTIES} back, or \
        empty the directory if its data is not needed",
        directory.display()
    )]
    Unidentified { directory: PathBuf, found: String },
    #[error(
        "log directory {}: {META_PROPERTIES} {reason}. Restore the file from a copy, or empty the \
         directory if its data is not needed",
        directory.display()
    )]
    Damaged { directory: PathBuf, reason: String },
    #[error(
        "log directory {} belongs to cluster {found}, but this node is configured for cluster \
         {expected}. Point log.dirs at another directory or correct the cluster id",
        directory.display()
    )]
    WrongCluster { directory: PathBuf, found: String, expected: String },
    #[error(
        "log directory {} belongs to node.id={found}, but this node has node.id={expected}. Point \
         log.dirs at another directory or correct node.id",
        directory.display()
    )]
    WrongNode { directory: PathBuf, found: i32, expected: i32 },
    #[error("log directories {} and {} both have directory.id {id}: one is a copy of the other. \
        Remove one from log.dirs", first.display(), second.display())]
    Copied { first: PathBuf, second: PathBuf, id: String },
    #[error(
        "log directory {} is empty, but this node has been started with \
         expected.directory.ids={expected}: its volume was lost, or another one is mounted. \
         Restore the volume, or remove expected.directory.ids to start without the records that \
         were on it",
        directory.display()
    )]
    Lost { directory: PathBuf, expected: String },
    #[error(
        "log directory {} has directory.id={found}, which is not in \
         expected.directory.ids={expected}: another volume is mounted. Mount the right one, or \
         correct expected.directory.ids",
        directory.display()
    )]
    Unexpected { directory: PathBuf, found: String, expected: String },
    #[error(
        "the metadata log in {} is missing, but there are partitions in {}: starting with a new \
         one would disown them. Bring the volume back, or begin a new one, without the topics of \
         before: accepted.lost.metadata.log",
        directory.display(), partitions.display()
    )]
    NoMetadata { directory: PathBuf, partitions: PathBuf },
    #[error(
        "the metadata log is in {newest}{}, but is looked for in {}, because metadata.log.dir or, \
         where that is not set, the first of log.dirs says so. Set metadata.log.dir={newest}, or \
         move that log away if this node has not used it last",
        older_logs(others), directory.display(), newest = newest.display()
    )]
    MetadataElsewhere { directory: PathBuf, newest: PathBuf, others: Vec<PathBuf> },
    #[error("{} is damaged: each line is a directory.id, a space, and the path of a log directory. \
        Correct it, or remove it if no log directory is lost", path.display())]
    UsedDamaged { path: PathBuf },
    #[error("log.dirs is empty: name at least one directory")]
    NoDirectories,
}

fn older_logs(places: &[PathBuf]) -> String {
    let named: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
    match named.is_empty() {
        true => String::new(),
        false => format!(" (written last; others are in {})", named.join(", ")),
    }
}

/// Reads the identity of every directory of `log.dirs`, and writes it into those that are empty.
///
/// The cluster id is the one in the directories, or else `cluster_id`, or else, when
/// `cluster_id` is `None` and no directory has one, a new random one. Blocks: call it through
/// `Env::blocking`.
///
/// # Errors
/// [`IdentityError`]; nothing was written then, except perhaps into empty directories.
pub fn open_directories(
    env: &Env,
    directories: &[PathBuf],
    node_id: i32,
    cluster_id: Option<&str>,
) -> Result<Vec<DirectoryIdentity>, IdentityError> {
    open_directories_as(env, directories, node_id, cluster_id, |_| env.random_uuid())
}

/// The cluster id of the first of `directories` that has one. What the file system refuses is left
/// to whoever opens it. `new_log` is the name of a metadata log that may have been made and not
/// used yet. Blocks.
///
/// # Errors
/// A directory has data but no identity, or a damaged one.
pub fn known_cluster_id<'a>(
    env: &Env,
    directories: impl IntoIterator<Item = &'a PathBuf>,
    new_log: &str,
) -> Result<Option<String>, IdentityError> {
    for directory in directories {
        match read_directory_beside(env, directory, Some(new_log)) {
            Ok(Some(identity)) => return Ok(Some(identity.cluster_id)),
            Ok(None) | Err(IdentityError::Io { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The identities of the log directories that can be used.
pub struct Usable {
    /// In the order of the directories.
    pub identities: Vec<(PathBuf, DirectoryIdentity)>,
    /// Those that cannot be read or written, and why. Those too that were used before and are not
    /// there any more: nothing is written into an empty directory in the place of one, which may be
    /// a disk that is not mounted.
    pub unusable: BTreeMap<PathBuf, io::Error>,
    /// The ids of those that are not there any more, and where they were.
    pub lost: BTreeMap<Uuid, PathBuf>,
    /// The ids of all that are known beside the metadata's, whether they can be used or not.
    pub used: BTreeSet<Uuid>,
}

/// As [`open_directories`], but goes on without directories that the file system refuses or that
/// are lost, as long as there are `metadata_dir` and one of `log_dirs`. A lost one whose id is in
/// `given_up` is forgotten. `new_log` is the name of the metadata log where that was made before
/// the directory was identified, and holds nothing. Blocks.
///
/// # Errors
/// [`IdentityError`]; an I/O error is that of `metadata_dir`, of the last log directory, or passes.
pub fn open_usable(
    env: &Env,
    log_dirs: &[PathBuf],
    metadata_dir: &Path,
    node_id: i32,
    cluster_id: Option<&str>,
    given_up: &[String],
    new_log: Option<&str>,
) -> Result<Usable, IdentityError> {
    let mut usable = log_dirs.to_vec();
    if !usable.iter().any(|directory| directory == metadata_dir) {
        usable.push(metadata_dir.to_owned());
    }
    let mut used = read_used(env, metadata_dir)?;
    let before = used.clone();
    let gone = lost(env, &usable, &used);
    let (forgotten, gone): (Vec<_>, Vec<_>) =
        gone.into_iter().partition(|lost| given_up.contains(&encode_uuid(lost.id)));
    for Lost { id, path, .. } in &forgotten {
        used.remove(id);
        tracing::error!(
            directory_id = encode_uuid(*id),
            "log directory {} was accepted as lost (accepted.lost.directory.ids): its partitions \
             are recreated, empty where no other replica has the records",
            path.display()
        );
    }
    let lost = gone.iter().map(|lost| (lost.id, lost.path.clone())).gather();
    let not_found = |why| io::Error::new(io::ErrorKind::NotFound, why);
    let mut unusable: BTreeMap<PathBuf, io::Error> =
        gone.into_iter().map(|lost| (lost.place, not_found(lost.why))).gather();
    usable.retain(|directory| !unusable.contains_key(directory));
    loop {
        let new_id = |_: &Path| env.random_uuid();
        match open_beside(env, &usable, (node_id, cluster_id), new_id, new_log) {
            Ok(identities) => {
                let identities: Vec<_> = usable.into_iter().zip(identities).collect();
                let others = identities.iter().filter(|(directory, _)| directory != metadata_dir);
                used.extend(
                    others.map(|(directory, identity)| (identity.directory_id, directory.clone())),
                );
                if used != before {
                    write_used(env, metadata_dir, &used)?;
                }
                let used = used.into_keys().gather();
                return Ok(Usable { identities, unusable, lost, used });
            }
            Err(IdentityError::Io { directory, source })
                if directory != metadata_dir
                    && !Fault::of(&source).is_state()
                    && log_dirs
                        .iter()
                        .any(|other| *other != directory && !unusable.contains_key(other)) =>
            {
                usable.retain(|other| *other != directory);
                unusable.insert(directory, source);
            }
            Err(error) => return Err(error),
        }
    }
}

/// What [`LOG_DIRECTORIES`] says; nothing when it is not there.
fn read_used(env: &Env, metadata_dir: &Path) -> Result<BTreeMap<Uuid, PathBuf>, IdentityError> {
    let path = metadata_dir.join(LOG_DIRECTORIES);
    let io = |source| IdentityError::Io { directory: metadata_dir.to_owned(), source };
    let bytes = match env.disk.read_stored(&path) {
        Ok(bytes) => bytes,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(BTreeMap::new());
        }
        Err(error) => return Err(io(error)),
    };
    let lines: Vec<&[u8]> =
        bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    let one = |line: &&[u8]| {
        let (id, path) = line.split_at_checked(ID_LEN)?;
        Some((
            decode_uuid(std::str::from_utf8(id).ok()?)?,
            PathBuf::from(OsStr::from_bytes(path.strip_prefix(b" ")?)),
        ))
    };
    lines.iter().map(one).collect::<Option<_>>().ok_or(IdentityError::UsedDamaged { path })
}

fn write_used(
    env: &Env,
    metadata_dir: &Path,
    used: &BTreeMap<Uuid, PathBuf>,
) -> Result<(), IdentityError> {
    let mut text = Vec::new();
    for (id, path) in used {
        text.extend_from_slice(encode_uuid(*id).as_bytes());
        text.push(b' ');
        text.extend_from_slice(path.as_os_str().as_bytes());
        text.push(b'\n');
    }
    let written = env.disk.write_atomically(&metadata_dir.join(LOG_DIRECTORIES), &text);
    written.map_err(|source| IdentityError::Io { directory: metadata_dir.to_owned(), source })
}

/// A directory that was used and is not there.
struct Lost {
    id: Uuid,
    /// Where it was.
    path: PathBuf,
    /// What stands for it now: its path, or another name where another directory has that.
    place: PathBuf,
    /// In words for a person.
    why: String,
}

/// The directories of `used` that are none of `directories` now, and what to do about each. A
/// directory may come back under another path.
fn lost(env: &Env, directories: &[PathBuf], used: &BTreeMap<Uuid, PathBuf>) -> Vec<Lost> {
    let found: Vec<_> =
        directories.iter().map(|directory| (directory, read_directory(env, directory))).collect();
    let is_found = |id: &Uuid| {
        found
            .iter()
            .any(|(_, read)| matches!(read, Ok(Some(identity)) if identity.directory_id == *id))
    };
    let mut lost = Vec::new();
    for (id, path) in used.iter().filter(|(id, _)| !is_found(id)) {
        let there = found.iter().find(|(directory, _)| *directory == path).map(|(_, read)| read);
        let (uuid, id) = (*id, encode_uuid(*id));
        let give_up = "or, if its records are not needed any more, put its id into \
            accepted.lost.directory.ids, and restart the broker";
        let (place, why) = match there {
            Some(Err(_)) => continue, // The file system or the identity says what is wrong with it.
            Some(Ok(None)) => (
                path.clone(),
                format!(
                    "it is empty, and was used as directory.id {id}; mount or restore it, {give_up}"
                ),
            ),
            Some(Ok(Some(_))) => {
                let name = format!("{} (directory.id {id})", path.display());
                (name.into(), format!("another directory is in its place; put it back, {give_up}"))
            }
            None => (
                path.clone(),
                format!(
                    "it was used as directory.id {id} and is not in log.dirs any more; put it back \
                     there, {give_up}"
                ),
            ),
        };
        lost.push(Lost { id: uuid, path: path.clone(), place, why });
    }
    lost
}

/// As [`open_directories`], with `new_id` for the `directory.id` of each empty directory.
///
/// # Errors
/// As [`open_directories`].
pub fn open_directories_as(
    env: &Env,
    directories: &[PathBuf],
    node_id: i32,
    cluster_id: Option<&str>,
    new_id: impl Fn(&Path) -> Uuid,
) -> Result<Vec<DirectoryIdentity>, IdentityError> {
    open_beside(env, directories, (node_id, cluster_id), new_id, None)
}

fn open_beside(
    env: &Env,
    directories: &[PathBuf],
    (node_id, cluster_id): (i32, Option<&str>),
    new_id: impl Fn(&Path) -> Uuid,
    new_log: Option<&str>,
) -> Result<Vec<DirectoryIdentity>, IdentityError> {
    let mut found = Vec::with_capacity(directories.len());
    for directory in directories {
        found.push(read_directory_beside(env, directory, new_log)?);
    }
    let known = found.iter().flatten().map(|identity| identity.cluster_id.clone()).next();
    let expected = match (cluster_id.map(str::to_owned), known) {
        (Some(configured), _) => configured,
        (None, Some(known)) => known,
        (None, None) => encode_uuid(env.random_uuid()),
    };
    let mut seen: BTreeMap<Uuid, &PathBuf> = BTreeMap::new();
    for (directory, identity) in directories.iter().zip(&found) {
        let Some(identity) = identity else { continue };
        check(directory, identity, node_id, &expected)?;
        expect_partitions(env, directory, identity)?;
        if let Some(first) = seen.insert(identity.directory_id, directory) {
            let id = encode_uuid(identity.directory_id);
            return Err(IdentityError::Copied {
                first: first.clone(),
                second: directory.clone(),
                id,
            });
        }
    }
    if directories.is_empty() {
        return Err(IdentityError::NoDirectories);
    }
    let mut identities = Vec::with_capacity(directories.len());
    for (directory, identity) in directories.iter().zip(found) {
        identities.push(match identity {
            Some(identity) => identity,
            None => create(env, directory, node_id, &expected, new_id(directory))?,
        });
    }
    Ok(identities)
}

/// What is known of the directories of a node before it starts.
pub struct Expected<'a> {
    /// The `directory.id` of each that was used; nothing is expected when that is empty.
    pub ids: &'a [String],
    /// Where the metadata log is.
    pub metadata_dir: &'a Path,
    /// The name of the loss of the metadata log that was accepted: the directory with the next one
    /// may have been made already, and whoever starts this node has yet to learn of it.
    pub lost_metadata_log: Option<&'a str>,
}

/// Refuses directories that have another id than those that are expected, and empty ones while one
/// of these is missing. An empty directory beside all that are expected is a new one, and so is one
/// with nothing in it but its identity, which a start has left that did not come to its end. One
/// that this broker has used since ([`LOG_DIRECTORIES`]) is as good as expected. What cannot be
/// read is left to whoever opens it, and may be any of those that are missing. Changes nothing.
/// Blocks.
///
/// # Errors
/// [`IdentityError::Lost`] or [`IdentityError::Unexpected`].
pub fn expect_directories<'a>(
    env: &Env,
    directories: impl IntoIterator<Item = &'a PathBuf>,
    expected: &Expected<'_>,
) -> Result<(), IdentityError> {
    let listed = || expected.ids.join(",");
    let (mut missing, mut used, mut empty) = (expected.ids.to_vec(), Vec::new(), None);
    let mut others = Vec::new();
    let begins_anew = |directory: &Path, found: &str| {
        let is_another = expected.lost_metadata_log.is_some_and(|lost| lost != found);
        directory == expected.metadata_dir && is_another
    };
    for directory in directories.into_iter().filter(|_| !expected.ids.is_empty()) {
        let Ok(identity) = read_directory(env, directory) else { continue };
        match identity.map(|identity| encode_uuid(identity.directory_id)) {
            None => empty = empty.or(Some(directory.clone())),
            Some(found) if expected.ids.contains(&found) || begins_anew(directory, &found) => {
                missing.retain(|id| *id != found);
                used.extend(read_used(env, directory)?.into_keys().map(encode_uuid));
            }
            Some(_) if has_identity_only(env, directory) => {
                empty = empty.or(Some(directory.clone()));
            }
            Some(found) => others.push((directory.clone(), found)),
        }
    }
    if let Some((directory, found)) = others.into_iter().find(|(_, id)| !used.contains(id)) {
        return Err(IdentityError::Unexpected { directory, found, expected: listed() });
    }
    match empty.filter(|_| !missing.is_empty()) {
        Some(directory) => Err(IdentityError::Lost { directory, expected: listed() }),
        None => Ok(()),
    }
}

/// Whether nothing was ever written into a directory but whose it is.
fn has_identity_only(env: &Env, directory: &Path) -> bool {
    let is_identity = |name: &str| name == META_PROPERTIES || NOT_DATA.contains(&name);
    let entries = env.disk.list(directory);
    entries.is_ok_and(|entries| entries.iter().all(|entry| is_identity(&entry.name)))
}

/// The directories that have an identity, and those of `expected` that are none of them, by id,
/// each with the place where it may have been: the first directory without one. Blocks.
pub fn found_and_lost<'a>(
    env: &Env,
    directories: impl IntoIterator<Item = &'a PathBuf>,
    expected: &Expected<'_>,
) -> (Vec<(PathBuf, DirectoryIdentity)>, BTreeMap<Uuid, PathBuf>) {
    let (mut found, mut place) = (Vec::new(), None);
    for directory in directories {
        match read_directory(env, directory) {
            Ok(Some(identity)) if !found.iter().any(|(known, _)| known == directory) => {
                found.push((directory.clone(), identity));
            }
            Ok(None) => place = place.or(Some(directory.clone())),
            _ => {}
        }
    }
    let place = place.unwrap_or_else(|| expected.metadata_dir.to_owned());
    let ids = expected.ids.iter().filter_map(|id| decode_uuid(id));
    let is_lost = |id: &Uuid| !found.iter().any(|(_, identity)| identity.directory_id == *id);
    let lost = ids.filter(is_lost).map(|id| (id, place.clone())).gather();
    (found, lost)
}

/// Refuses a directory that was emptied but for its identity: its partitions would be made anew.
fn expect_partitions(
    env: &Env,
    directory: &Path,
    identity: &DirectoryIdentity,
) -> Result<(), IdentityError> {
    let io = |source| IdentityError::Io { directory: directory.to_owned(), source };
    if !identity.is_used || env.disk.exists(&directory.join(PARTITION_TOPIC_IDS)).map_err(io)? {
        return Ok(());
    }
    let why = format!(
        "{PARTITION_TOPIC_IDS} is missing in it, so its partitions may be, too: restore the directory or, if \
         what is there is all that is wanted, take the line used=true out of {META_PROPERTIES}"
    );
    Err(io(io::Error::new(io::ErrorKind::NotFound, why)))
}

fn check(
    directory: &Path,
    identity: &DirectoryIdentity,
    node_id: i32,
    cluster_id: &str,
) -> Result<(), IdentityError> {
    if identity.cluster_id != cluster_id {
        return Err(IdentityError::WrongCluster {
            directory: directory.to_owned(),
            found: identity.cluster_id.clone(),
            expected: cluster_id.to_owned(),
        });
    }
    if identity.node_id != node_id {
        return Err(IdentityError::WrongNode {
            directory: directory.to_owned(),
            found: identity.node_id,
            expected: node_id,
        });
    }
    Ok(())
}

/// The identity of one directory; `None` when it is empty or not there. Blocks.
///
/// # Errors
/// It cannot be read, has data but no identity, or a damaged one.
pub fn read_directory(
    env: &Env,
    directory: &Path,
) -> Result<Option<DirectoryIdentity>, IdentityError> {
    read_directory_beside(env, directory, None)
}

/// As [`read_directory`]; `new_log` in it is no data.
fn read_directory_beside(
    env: &Env,
    directory: &Path,
    new_log: Option<&str>,
) -> Result<Option<DirectoryIdentity>, IdentityError> {
    let io = |source| IdentityError::Io { directory: directory.to_owned(), source };
    if !env.disk.exists(directory).map_err(io)? {
        return Ok(None);
    }
    let entries = env.disk.list(directory).map_err(io)?;
    if entries.iter().any(|entry| entry.name == META_PROPERTIES) {
        let bytes = env.disk.read_stored(&directory.join(META_PROPERTIES)).map_err(io)?;
        let damaged = |reason| IdentityError::Damaged { directory: directory.to_owned(), reason };
        return parse(&bytes).map(Some).map_err(damaged);
    }
    let is_data = |name: &str| !NOT_DATA.contains(&name) && Some(name) != new_log;
    match entries.into_iter().find(|entry| is_data(&entry.name)) {
        Some(entry) => {
            Err(IdentityError::Unidentified { directory: directory.to_owned(), found: entry.name })
        }
        None => Ok(None),
    }
}

fn create(
    env: &Env,
    directory: &Path,
    node_id: i32,
    cluster_id: &str,
    directory_id: Uuid,
) -> Result<DirectoryIdentity, IdentityError> {
    let identity = DirectoryIdentity {
        cluster_id: cluster_id.to_owned(),
        node_id,
        directory_id,
        stamp: Stamp::default(),
        is_used: false,
        created: true,
        is_marked: true,
    };
    let written =
        env.disk.create_dir_all_durably(directory).and_then(|()| write(env, directory, &identity));
    written.map_err(|source| IdentityError::Io { directory: directory.to_owned(), source })?;
    Ok(identity)
}

fn write(env: &Env, directory: &Path, identity: &DirectoryIdentity) -> io::Result<()> {
    let mut text = format!(
        "#\nversion={}\ncluster.id={}\nnode.id={}\ndirectory.id={}\n",
        identity.version(),
        escape_value(&identity.cluster_id),
        identity.node_id,
        encode_uuid(identity.directory_id)
    );
    if identity.is_used {
        text.push_str("used=true\n");
    }
    let Stamp { run, before } = identity.stamp;
    for (key, run) in [(RUN, Some(run).filter(|run| !run.is_nil())), (RUN_BEFORE, before)] {
        if let Some(run) = run {
            text.push_str(&format!("{key}={}\n", encode_uuid(run)));
        }
    }
    env.disk.write_atomically(&directory.join(META_PROPERTIES), text.as_bytes())
}

/// Writes what has changed of the identity of a directory whose lock is held, `known` before that;
/// what the directory says then. What cannot be written stays: the directory can be used all the
/// same. Blocks.
pub fn change(
    env: &Env,
    directory: &Path,
    known: &DirectoryIdentity,
    change: impl FnOnce(&mut DirectoryIdentity),
) -> DirectoryIdentity {
    match try_change(env, directory, known, change) {
        Ok(next) => next,
        Err((now, error)) => {
            tracing::warn!(directory = %directory.display(), %error, "could not rewrite \
                meta.properties; the next start retries, and until then neither Apache Kafka nor \
                an older state of the directory may be refused");
            now
        }
    }
}

/// As [`change`].
///
/// # Errors
/// The file system's own, with what the directory says.
pub fn try_change(
    env: &Env,
    directory: &Path,
    known: &DirectoryIdentity,
    change: impl FnOnce(&mut DirectoryIdentity),
) -> Result<DirectoryIdentity, (DirectoryIdentity, io::Error)> {
    // Another process may have written it before this one had the lock.
    let Ok(Some(now)) = read_directory(env, directory) else { return Ok(known.clone()) };
    let mut next = now.clone();
    change(&mut next);
    if next == now {
        return Ok(now);
    }
    match write(env, directory, &next) {
        Ok(()) => Ok(next),
        Err(error) => Err((now, error)),
    }
}

fn parse(bytes: &[u8]) -> Result<DirectoryIdentity, String> {
    let properties: BTreeMap<String, String> = parse_properties(bytes)
        .map_err(|problem| format!("is damaged: {problem}"))?
        .into_iter()
        .gather();
    let get = |key: &str| {
        properties.get(key).filter(|value| !value.is_empty()).ok_or_else(|| format!("has no {key}"))
    };
    let version = get("version")?;
    if ![VERSION, KAFKAS_VERSION].contains(&version.as_str()) {
        return Err(format!(
            "has version={version}, and only versions {VERSION} and {KAFKAS_VERSION} are supported"
        ));
    }
    let is_marked = version == VERSION;
    let cluster_id = get("cluster.id")?.clone();
    let node_id = get("node.id")?;
    let node_id = node_id
        .parse()
        .ok()
        .filter(|id| *id >= 0)
        .ok_or_else(|| format!("has node.id={node_id}, which is not a node id"))?;
    let directory_id = get("directory.id")?;
    let directory_id = decode_uuid(directory_id).ok_or_else(|| {
        format!("has directory.id={directory_id}, which is not an id of 22 characters")
    })?;
    let run = |key: &str| match properties.get(key) {
        None => Ok(None),
        Some(run) => decode_uuid(run)
            .map(Some)
            .ok_or_else(|| format!("has {key}={run}, which is not an id of 22 characters")),
    };
    let stamp = Stamp { run: run(RUN)?.unwrap_or_default(), before: run(RUN_BEFORE)? };
    let is_used = properties.get("used").is_some_and(|used| used == "true");
    Ok(DirectoryIdentity {
        cluster_id,
        node_id,
        directory_id,
        stamp,
        is_used,
        created: false,
        is_marked,
    })
}

const RUN: &str = "run.id";
const RUN_BEFORE: &str = "run.id.before";

/// Characters of [`encode_uuid`].
const ID_LEN: usize = 22;

#[cfg(test)]
mod tests {
    use super::*;

    fn open(
        dirs: &[PathBuf],
        node_id: i32,
        cluster_id: Option<&str>,
    ) -> Result<Vec<DirectoryIdentity>, IdentityError> {
        open_directories(&Env::real(), dirs, node_id, cluster_id)
    }

    #[test]
    fn empty_directory_is_identified_once_and_then_held_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().join("new/a")];
        let first = open(&dirs, 3, None).unwrap().remove(0);
        assert!(first.created && decode_uuid(&first.cluster_id).is_some());
        let again = open(&dirs, 3, Some(&first.cluster_id)).unwrap().remove(0);
        assert_eq!(again, DirectoryIdentity { created: false, ..first });
        assert!(matches!(
            open(&dirs, 4, None),
            Err(IdentityError::WrongNode { found: 3, expected: 4, .. })
        ));
        assert!(matches!(
            open(&dirs, 3, Some("ASNFZ4mrze8BI0VniavN7w")),
            Err(IdentityError::WrongCluster { .. })
        ));
    }

    #[test]
    fn a_metadata_log_that_was_made_before_the_identity_is_no_data_if_it_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let (env, dirs) = (Env::real(), [dir.path().to_owned()]);
        env.disk.create_dir_all(&dir.path().join("log-0")).unwrap();
        let known = |new_log| known_cluster_id(&env, &dirs, new_log);
        assert_eq!(known("log-0").unwrap(), None);
        assert!(matches!(known("other"), Err(IdentityError::Unidentified { .. })));
        let open = |new_log| open_usable(&env, &dirs, &dirs[0], 1, Some("test"), &[], new_log);
        assert!(matches!(open(None), Err(IdentityError::Unidentified { .. })));
        assert!(open(Some("log-0")).unwrap().identities[0].1.created);
        assert_eq!(known("log-0").unwrap().as_deref(), Some("test"));
        assert!(open(None).is_ok());
    }

    fn read_ids(directories: &[PathBuf]) -> BTreeMap<Uuid, PathBuf> {
        let id = |path: &PathBuf| read_directory(&Env::real(), path).unwrap().unwrap().directory_id;
        directories.iter().map(|path| (id(path), path.clone())).collect()
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the test plays the broker")]
    fn an_empty_or_another_directory_is_refused_where_one_is_expected() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().join("a"), dir.path().join("b")];
        let without = |lost_metadata_log, dirs: &[PathBuf], ids: &[String]| {
            let metadata_dir = &dir.path().join("a");
            let expected = Expected { ids, metadata_dir, lost_metadata_log };
            expect_directories(&Env::real(), dirs, &expected)
        };
        let expect = |dirs: &[PathBuf], ids: &[String]| without(None, dirs, ids);
        expect(&dirs, &[]).unwrap();
        let ids: Vec<String> = open(&dirs, 1, None)
            .unwrap()
            .iter()
            .map(|identity| encode_uuid(identity.directory_id))
            .collect();
        expect(&dirs, &ids).unwrap();
        expect(&dirs[..1], &ids).unwrap();
        // One that holds nothing but its identity was made by a start that did not come to its end.
        expect(&dirs, &ids[..1]).unwrap();
        assert!(matches!(
            expect(&dirs, &[ids[0].clone(), encode_uuid(Uuid::from_u128(1))]),
            Err(IdentityError::Lost { .. })
        ));
        for used in &dirs {
            std::fs::create_dir(used.join("orders-0")).unwrap();
        }
        assert!(matches!(expect(&dirs, &ids[..1]), Err(IdentityError::Unexpected { .. })));
        // The metadata log was given up, and the next one has begun.
        assert!(matches!(expect(&dirs, &ids[1..]), Err(IdentityError::Unexpected { .. })));
        without(Some("lost"), &dirs, &ids[1..]).unwrap();
        assert!(without(Some(&ids[0]), &dirs, &ids[1..]).is_err(), "it is the lost one");
        let lost = dir.path().join("c");
        // Beside all that are expected, an empty one is new.
        expect(&[dirs[0].clone(), lost.clone(), dirs[1].clone()], &ids).unwrap();
        expect(&[dirs[0].clone(), lost.clone()], &ids[..1]).unwrap();
        // And it stays one of ours, though nobody who starts us knows it yet.
        write_used(&Env::real(), &dirs[0], &read_ids(&dirs[1..])).unwrap();
        expect(&dirs, &ids[..1]).unwrap();
        expect(&dirs, &ids).unwrap();
        write_used(&Env::real(), &dirs[0], &BTreeMap::new()).unwrap();
        let said = expect(&[dirs[0].clone(), lost.clone()], &ids).unwrap_err();
        assert!(
            matches!(&said, IdentityError::Lost { .. }) && said.to_string().contains(&ids[0]),
            "{said}"
        );
        assert!(!Env::real().disk.exists(&lost).unwrap(), "nothing is written into it");
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the test plays an earlier version")]
    fn a_directory_of_an_earlier_version_is_read_and_marked() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned()];
        let file = dir.path().join(META_PROPERTIES);
        let id = "JEXY6aqzQY-32P5TStzaFg";
        let text = format!("version=1\ncluster.id=my cluster\nnode.id=1\ndirectory.id={id}\n");
        std::fs::write(&file, &text).unwrap();
        let found = open(&dirs, 1, None).unwrap().remove(0);
        assert_eq!((found.is_marked, found.version()), (false, "1"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "it may be Kafka's own");
        change(&Env::real(), &dirs[0], &found, |identity| identity.is_marked = true);
        let marked = open(&dirs, 1, None).unwrap().remove(0);
        assert_eq!(marked, DirectoryIdentity { is_marked: true, ..found });
        assert!(std::fs::read_to_string(&file).unwrap().contains("version=letterbox-1\n"));
    }

    /// As `kafka-storage format --cluster-id` takes it.
    #[test]
    fn any_text_is_a_cluster_id() {
        for id in
            ["test", "my cluster: #1 = best\\", "zürich", "00000000-0000-0000-0000-000000000000"]
        {
            let dir = tempfile::tempdir().unwrap();
            let dirs = [dir.path().join("a")];
            assert_eq!(open(&dirs, 1, Some(id)).unwrap()[0].cluster_id, id);
            assert_eq!(open(&dirs, 1, None).unwrap()[0].cluster_id, id);
            assert!(
                matches!(open(&dirs, 1, Some("other")), Err(IdentityError::WrongCluster { .. })),
                "{id}"
            );
        }
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the test plays the user")]
    fn directory_with_data_or_half_an_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned()];
        std::fs::create_dir(dir.path().join("orders-0")).unwrap();
        assert!(matches!(open(&dirs, 1, None), Err(IdentityError::Unidentified { .. })));
        for text in [
            "",
            "version=1\n",
            "version=0\ncluster.id=a\nnode.id=1\n",
            "version=1\ncluster.id=a\nnode.id=1\n",
            "\u{0}",
        ] {
            std::fs::write(dir.path().join(META_PROPERTIES), text).unwrap();
            assert!(matches!(open(&dirs, 1, None), Err(IdentityError::Damaged { .. })), "{text:?}");
        }
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the test plays the device")]
    fn directories_that_cannot_be_used_are_left_out_while_there_are_the_metadata_and_a_log_directory()
     {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, bad] = ["a", "b", "bad"].map(|name| dir.path().join(name));
        std::fs::write(&bad, "no directory").unwrap();
        let open = |log_dirs: &[&PathBuf], metadata_dir: &Path| {
            let log_dirs: Vec<_> = log_dirs.iter().copied().cloned().collect();
            open_usable(&Env::real(), &log_dirs, metadata_dir, 1, Some("test"), &[], None).map(
                |found| {
                    let usable: Vec<_> =
                        found.identities.into_iter().map(|(directory, _)| directory).collect();
                    (usable, found.unusable.into_keys().collect::<Vec<_>>())
                },
            )
        };
        let (a_only, none) = (vec![a.clone()], Vec::<PathBuf>::new());
        assert_eq!(open(&[&bad, &a], &a).unwrap(), (a_only.clone(), vec![bad.clone()]));
        assert_eq!(open(&[&a], &a).unwrap(), (a_only, none));
        assert_eq!(open(&[&a, &bad], &b).unwrap(), (vec![a.clone(), b.clone()], vec![bad.clone()]));
        let refused = |found: Result<_, IdentityError>| matches!(found, Err(IdentityError::Io { directory, .. }) if directory == bad);
        assert!(refused(open(&[&a, &bad], &bad)), "the metadata log lies there");
        assert!(refused(open(&[&bad], &a)), "no log directory is left");
    }

    /// A disk that is not mounted, say: its partitions must not be made anew, neither there nor
    /// elsewhere.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "the test plays the user")]
    fn directory_that_was_used_and_is_not_there_is_lost_until_it_is_back_or_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c, away] = ["a", "b", "c", "away"].map(|name| dir.path().join(name));
        let open = |log_dirs: &[&PathBuf]| {
            let log_dirs: Vec<_> = log_dirs.iter().copied().cloned().collect();
            let found =
                open_usable(&Env::real(), &log_dirs, &a, 1, Some("test"), &[], None).unwrap();
            let usable: Vec<_> =
                found.identities.into_iter().map(|(directory, _)| directory).collect();
            (
                usable,
                found
                    .unusable
                    .into_iter()
                    .map(|(directory, why)| (directory, why.to_string()))
                    .collect::<Vec<_>>(),
            )
        };
        let all = (vec![a.clone(), b.clone(), c.clone()], vec![]);
        let is_lost = |found: &[(PathBuf, String)], says: &str| {
            assert!(
                matches!(found, [(path, why)] if *path == b && why.contains(says) && why.contains("accepted.lost.directory.ids")),
                "{found:?}"
            );
        };
        assert_eq!(open(&[&a]), (vec![a.clone()], vec![]));
        assert!(
            !a.join(LOG_DIRECTORIES).exists(),
            "the directory of the metadata is its own witness"
        );
        assert_eq!(open(&[&a, &b, &c]), all);
        // Gone, then an empty one in its place: nothing is written there.
        std::fs::rename(&b, &away).unwrap();
        for _ in 0..2 {
            let (usable, lost) = open(&[&a, &b, &c]);
            assert_eq!(usable, [a.clone(), c.clone()]);
            is_lost(&lost, "mount or restore it");
            let _ = std::fs::create_dir(&b);
            assert_eq!(std::fs::read_dir(&b).unwrap().count(), 0);
        }
        // Not named any more.
        is_lost(&open(&[&a, &c]).1, "not in log.dirs any more");
        // Back, and back under another path.
        std::fs::remove_dir(&b).unwrap();
        std::fs::rename(&away, &b).unwrap();
        assert_eq!(open(&[&a, &b, &c]), all);
        std::fs::rename(&b, &away).unwrap();
        assert_eq!(open(&[&a, &away, &c]), (vec![a.clone(), away.clone(), c.clone()], vec![]));
        // Given up.
        std::fs::remove_dir_all(&away).unwrap();
        assert_eq!(open(&[&a, &c]).1.len(), 1);
        let used = std::fs::read_to_string(a.join(LOG_DIRECTORIES)).unwrap();
        let kept: String = used
            .lines()
            .filter(|line| line.ends_with("/c"))
            .map(|line| format!("{line}\n"))
            .collect();
        std::fs::write(a.join(LOG_DIRECTORIES), kept).unwrap();
        assert_eq!(open(&[&a, &b, &c]), all);
        std::fs::write(a.join(LOG_DIRECTORIES), "what is this").unwrap();
        assert!(matches!(
            open_usable(&Env::real(), std::slice::from_ref(&a), &a, 1, None, &[], None),
            Err(IdentityError::UsedDamaged { .. })
        ));
    }
}
