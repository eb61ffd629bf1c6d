//! Whose log directories these are, before anything in them is opened.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use letterbox_env::{Env, Fault};
use letterbox_protocol::topics::METADATA_DIR;
use letterbox_storage::LogManager;
use tracing::warn;
use uuid::Uuid;

use super::patience::{MAKE_ROOM, patiently, patiently_until};
use super::start::{StartError, partitions_in, quorum_config, take_seat};
use crate::config::Config;
use crate::metadata::Stamp;
use crate::metadata::identity::{
    DirectoryIdentity, Expected, IdentityError, Usable, change, encode_uuid, expect_directories,
    found_and_lost, known_cluster_id, open_usable, read_directory, try_change,
};
use crate::quorum::{OpenError, Seat, settle, written_ms};
use crate::server::admin_http::Whose;

/// What the log directories say of this node.
pub(super) struct Identity {
    /// Those that can be used, with what is written in each.
    pub(super) directories: Vec<(PathBuf, DirectoryIdentity)>,
    /// Those that cannot be used now, and those that are lost; their partitions are offline.
    pub(super) unusable: BTreeMap<PathBuf, Arc<io::Error>>,
    /// The ids of those that are lost, and where they were.
    pub(super) lost: BTreeMap<Uuid, PathBuf>,
    pub(super) cluster_id: String,
    /// That of the directory with the metadata log.
    pub(super) metadata_directory_id: Option<Uuid>,
    /// The ids of all log directories that are known beside the metadata's.
    used: BTreeSet<Uuid>,
}

/// The log directories that this start registers.
pub(super) struct Directories {
    /// Those in use: what each is, and its state.
    pub(super) in_use: BTreeMap<PathBuf, DirectoryIdentity>,
    /// Those that are known and are not in use.
    pub(super) absent: BTreeSet<Uuid>,
}

impl Identity {
    /// Reads the identities, and writes them into directories that are new: of the cluster
    /// `cluster_id`, or of a new one. `has_new_log` where the metadata log was made already, and
    /// holds nothing. While it waits for directories that are missing, where the configuration says
    /// that it does, it tells which through `tell`.
    ///
    /// # Errors
    /// A directory is another node's, or none can be used.
    pub(super) async fn open(
        env: &Env,
        config: &Config,
        cluster_id: Option<String>,
        has_new_log: bool,
        tell: impl Fn(Whose),
    ) -> Result<Self, IdentityError> {
        let advice = |error: &IdentityError| match error {
            IdentityError::Io { source, .. } if Fault::of(source).is_state() => Some(MAKE_ROOM),
            error if waits(config, error) => Some(BRING_BACK),
            _ => None,
        };
        let attempt = async || {
            let (of_task, of_node) = (env.clone(), config.clone());
            let cluster_id = cluster_id.clone();
            let new_log = has_new_log.then_some(METADATA_DIR);
            let identify = move || {
                let found = identify(&of_task, &of_node, cluster_id.as_deref(), new_log);
                let refused = found.as_ref().err().filter(|error| waits(&of_node, error));
                let whose = refused.map(|error| told(&of_task, &of_node, error));
                (found, whose)
            };
            let (found, whose) = env.blocking(identify).await;
            whose.into_iter().for_each(&tell);
            found
        };
        let Usable { identities, unusable, lost, used } =
            patiently_until("identify the log directories", advice, attempt).await?;
        let (_, first) = identities.first().cloned().ok_or(IdentityError::NoDirectories)?;
        let metadata = identities.iter().find(|(directory, _)| *directory == config.metadata_dir);
        let metadata_directory_id = metadata.map(|(_, identity)| identity.directory_id);
        Ok(Self {
            directories: identities,
            unusable: unusable.into_iter().map(|(path, why)| (path, Arc::new(why))).collect(),
            lost,
            cluster_id: first.cluster_id,
            metadata_directory_id,
            used,
        })
    }

    /// Whether the metadata log is lost and given up, so that this node begins a new one. A voter
    /// among others neither votes nor counts with that before it is added anew.
    pub(super) fn begins_anew(&self, config: &Config) -> bool {
        let is_given_up = |lost: &String| {
            let mut here = self.directories.iter();
            let here = here.find(|(directory, _)| *directory == config.metadata_dir);
            here.is_some_and(|(_, identity)| encode_uuid(identity.directory_id) != *lost)
        };
        config.accepted_lost_metadata_log.as_ref().is_some_and(is_given_up)
    }

    /// Begins this run in the directories, now that the metadata log is open, they are known to be
    /// ours, and their locks are held: Apache Kafka refuses those of an earlier version from now on,
    /// and those of a broker among several are told from any older state of them.
    ///
    /// A run that was begun and not settled is begun again: it may be registered, or the one before.
    pub(super) async fn begin_run(
        &self,
        env: &Env,
        config: &Config,
        logs: &Arc<LogManager>,
    ) -> Directories {
        let (of_task, directories, logs) = (env.clone(), self.directories.clone(), logs.clone());
        let has_several = config.has_several_nodes();
        let begin = move |(path, known): (PathBuf, DirectoryIdentity)| {
            let dir = logs.dirs().iter().find(|dir| dir.path() == path && dir.offline().is_none());
            let has_list = dir.is_some_and(|dir| dir.has_list());
            let run = of_task.random_uuid();
            let begun = change(&of_task, &path, &known, |identity| {
                identity.is_marked = true;
                identity.is_used |= has_list;
                let Stamp { run: last, before } = identity.stamp;
                if has_several && dir.is_some() && before.is_none() {
                    identity.stamp = Stamp { run, before: Some(last) };
                }
            });
            dir.map(|_| (path, begun))
        };
        let begin_all = move || directories.into_iter().filter_map(begin).collect();
        let in_use: BTreeMap<PathBuf, DirectoryIdentity> = env.blocking(begin_all).await;
        let mut absent = self.used.clone();
        let of_logs = self.directories.iter().filter(|(path, _)| config.log_dirs.contains(path));
        absent.extend(of_logs.map(|(_, identity)| identity.directory_id));
        absent.retain(|id| in_use.values().all(|identity| identity.directory_id != *id));
        Directories { in_use, absent }
    }
}

impl Directories {
    /// Notes that the run is registered. A directory that is registered with `came_with_others`, with
    /// logs that did not count, is waited for as long as there is no space: until it is noted, the
    /// next start would take what is in it now for those.
    pub(super) async fn settle(self, env: &Env, came_with_others: &BTreeSet<Uuid>) {
        for (path, begun) in self.in_use {
            let attempt = async || {
                let (of_task, path, begun) = (env.clone(), path.clone(), begun.clone());
                let stamp = Stamp { before: None, ..begun.stamp };
                let settle = move || {
                    let settled = |identity: &mut DirectoryIdentity| identity.stamp = stamp;
                    try_change(&of_task, &path, &begun, settled).map_err(|(_, error)| error)
                };
                env.blocking(settle).await
            };
            let waits = came_with_others.contains(&begun.directory_id);
            let passes = |error: &io::Error| waits && Fault::of(error).is_state();
            let doing = "note that the log directory is registered";
            if let Err(error) = patiently(doing, passes, attempt).await {
                warn!(directory = %path.display(), %error, "could not {doing}; the next start retries");
            }
        }
    }
}

/// The id of the cluster that this node belongs to, if that is known before its directories are
/// identified, and its seat in the quorum if that had to be taken to know it: voters that are all
/// new agree on an id, each of which has a log by then.
///
/// # Errors
/// [`StartError`].
pub(super) async fn cluster_id(
    env: &Env,
    config: &Config,
) -> Result<(Option<String>, Option<Seat>), StartError> {
    if config.cluster_id.is_some() || config.voters.len() == 1 {
        return Ok((config.cluster_id.clone(), None));
    }
    let (of_task, of_node) = (env.clone(), config.clone());
    let expect = move || {
        let directories = of_node.log_dirs.iter().chain([&of_node.metadata_dir]);
        expect_directories(&of_task, directories, &expected(&of_node))
    };
    env.blocking(expect).await?;
    settle_metadata_log(env, config).await?;
    let (of_task, of_node) = (env.clone(), config.clone());
    let known = env.blocking(move || {
        let directories = of_node.log_dirs.iter().chain([&of_node.metadata_dir]);
        known_cluster_id(&of_task, directories, METADATA_DIR)
    });
    if let Some(known) = known.await? {
        return Ok((Some(known), None));
    }
    let mut seat = take_seat(env, quorum_config(env, config, None).await).await?;
    Ok((seat.agree().await?, Some(seat)))
}

/// Has the metadata log lie where this version has it.
///
/// # Errors
/// What lies there is not ours.
pub(super) async fn settle_metadata_log(env: &Env, config: &Config) -> Result<(), OpenError> {
    let settle = || {
        let (disk, metadata_dir) = (env.disk.clone(), config.metadata_dir.clone());
        env.blocking(move || settle(&*disk, &metadata_dir))
    };
    patiently("move the metadata log", OpenError::is_state, settle).await
}

/// What ends a wait for directories.
const BRING_BACK: &str = "bring the volumes back or, where their records are not needed, accept \
    their loss; GET /identity on admin.listener tells which are missing";

/// Whether the node waits for the directories that it is refused without.
fn waits(config: &Config, error: &IdentityError) -> bool {
    let is_missing = matches!(
        error,
        IdentityError::Lost { .. }
            | IdentityError::Unexpected { .. }
            | IdentityError::NoMetadata { .. }
    );
    is_missing && config.is_true("missing.directories.wait.enable")
}

fn expected(config: &Config) -> Expected<'_> {
    Expected {
        ids: &config.expected_directory_ids,
        metadata_dir: &config.metadata_dir,
        lost_metadata_log: config.accepted_lost_metadata_log.as_deref(),
    }
}

/// Who a node is that is refused its directories. Blocks.
fn told(env: &Env, config: &Config, error: &IdentityError) -> Whose {
    let directories = config.log_dirs.iter().chain([&config.metadata_dir]);
    let (directories, lost) = found_and_lost(env, directories, &expected(config));
    Whose {
        node_id: config.node_id.0,
        cluster_id: config.cluster_id.clone(),
        directories,
        unusable: BTreeMap::new(),
        lost,
        misses_metadata: matches!(error, IdentityError::NoMetadata { .. }),
        refusal: Some(error.to_string()),
    }
}

/// Blocks.
fn identify(
    env: &Env,
    config: &Config,
    cluster_id: Option<&str>,
    new_log: Option<&str>,
) -> Result<Usable, IdentityError> {
    let directories = config.log_dirs.iter().chain([&config.metadata_dir]);
    expect_directories(env, directories, &expected(config))?;
    expect_metadata(env, config)?;
    open_usable(
        env,
        &config.log_dirs,
        &config.metadata_dir,
        config.node_id.0,
        cluster_id,
        &config.accepted_lost_directory_ids,
        new_log,
    )
}

/// Refuses a metadata directory whose log is in another one, and an empty one beside partitions,
/// before anything is written into it. The empty one of a voter among others is for the quorum to
/// judge. Blocks.
fn expect_metadata(env: &Env, config: &Config) -> Result<(), IdentityError> {
    let directory = &config.metadata_dir;
    if written_ms(&*env.disk, directory).is_none() {
        let written = |place: &'_ PathBuf| Some((written_ms(&*env.disk, place)?, place.clone()));
        let mut found: Vec<_> = config.log_dirs.iter().filter_map(written).collect();
        found.sort_by_key(|(written_ms, _)| Reverse(*written_ms));
        let mut found = found.into_iter().map(|(_, place)| place.clone());
        if let Some(newest) = found.next() {
            let (directory, others) = (directory.clone(), found.collect());
            return Err(IdentityError::MetadataElsewhere { directory, newest, others });
        }
    }
    if config.accepted_lost_metadata_log.is_some()
        || config.voters.len() != 1
        || !matches!(read_directory(env, directory), Ok(None))
    {
        return Ok(());
    }
    match partitions_in(&*env.disk, &config.log_dirs) {
        Some(partitions) => {
            Err(IdentityError::NoMetadata { directory: directory.clone(), partitions })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test plays the user")]
mod tests {
    use std::path::Path;
    use std::time::{Duration, UNIX_EPOCH};

    use letterbox_env::Disk as _;
    use letterbox_sim::disk::{Fault as DiskFault, SimDisk};
    use tokio::time::Instant;

    use super::*;

    /// What the start after it goes by.
    #[tokio::test(start_paused = true)]
    async fn a_directory_that_came_with_other_logs_is_settled_as_soon_as_there_is_space() {
        let (disk, path, id) = (SimDisk::new(1), Path::new("/data"), Uuid::from_u128(7));
        disk.create_dir_all_durably(path).unwrap();
        let text = |runs: &str| {
            let id = encode_uuid(id);
            format!("version=letterbox-1\ncluster.id=c\nnode.id=1\ndirectory.id={id}\n{runs}")
        };
        let (run, before) = (encode_uuid(Uuid::from_u128(9)), encode_uuid(Uuid::from_u128(8)));
        let begun = text(&format!("run.id={run}\nrun.id.before={before}\n"));
        for (came_with_others, is_waited_for) in [(BTreeSet::new(), false), ([id].into(), true)] {
            disk.write_atomically(&path.join("meta.properties"), begun.as_bytes()).unwrap();
            let identity = read_directory(&disk.env(), path).unwrap().unwrap();
            assert!(identity.stamp.before.is_some());
            disk.inject(DiskFault::NoSpace, "meta.properties", 0, 3);
            let in_use = [(path.to_owned(), identity)].into();
            let directories = Directories { in_use, absent: BTreeSet::new() };
            let asked = Instant::now();
            directories.settle(&disk.env(), &came_with_others).await;
            disk.heal();
            let stamp = read_directory(&disk.env(), path).unwrap().unwrap().stamp;
            assert_eq!(stamp.before.is_none(), is_waited_for);
            assert_eq!(asked.elapsed() >= Duration::from_secs(1), is_waited_for);
        }
    }

    /// The error named the first of `log.dirs` that has one, which may be an older one.
    #[test]
    fn of_several_metadata_logs_the_one_that_was_written_last_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (name, written) in [("older", 7), ("newest", 9), ("oldest", 5)] {
            let log = at(name).join(METADATA_DIR);
            std::fs::create_dir_all(&log).unwrap();
            let log = log.join("00000000000000000000.log");
            std::fs::write(&log, b"LBXRAFT2\x7f\x7f\x7f\x7f and so on").unwrap();
            let file = std::fs::File::options().write(true).open(&log).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(written)).unwrap();
        }
        let dirs =
            ["empty", "older", "newest", "oldest"].map(|name| at(name).display().to_string());
        let config = Config::parse(&format!(
            "process.roles=broker,controller\nnode.id=1\n\
             controller.quorum.voters=1@localhost:9093\ncontroller.listener.names=CONTROLLER\n\
             listeners=PLAINTEXT://127.0.0.1:0,CONTROLLER://127.0.0.1:9093\nlog.dirs={}\n",
            dirs.join(",")
        ));
        let said = expect_metadata(&Env::real(), &config.unwrap()).unwrap_err().to_string();
        assert!(said.contains(&format!("Set metadata.log.dir={},", dirs[2])), "{said}");
        let others = format!("others are in {}, {})", dirs[1], dirs[3]);
        assert!(said.contains(&others), "{said}");
    }
}
