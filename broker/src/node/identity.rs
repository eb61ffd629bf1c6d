//! Whose log directories these are, before anything in them is opened.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use letterbox_env::{Env, Fault};
use uuid::Uuid;

use super::patience::patiently;
use crate::config::Config;
use crate::metadata::MetadataImage;
use crate::metadata::identity::{
    DirectoryIdentity, IdentityError, Usable, encode_uuid, expect_directories, known_cluster_id,
    open_usable,
};
use crate::quorum::{FoundingError, agree_on_cluster_id};

/// What the log directories say of this node.
pub(super) struct Identity {
    /// Those that can be used, with what is written in each.
    pub(super) directories: Vec<(PathBuf, DirectoryIdentity)>,
    /// Those that cannot be used now, and those that are lost; their partitions are offline.
    pub(super) unusable: BTreeMap<PathBuf, Arc<io::Error>>,
    /// The ids of those that are lost, and where they were.
    pub(super) lost: BTreeMap<Uuid, PathBuf>,
    pub(super) cluster_id: String,
    /// The first directory's.
    directory_id: Uuid,
    /// The directory that this node is registered under may be one that cannot be used now; the
    /// metadata log is witness enough.
    keeps_incarnation: bool,
}

impl Identity {
    /// Reads the identities, and writes them into directories that are new: of the cluster
    /// `cluster_id`, or of a new one.
    ///
    /// # Errors
    /// A directory is another node's, or none can be used.
    pub(super) async fn open(
        env: &Env,
        config: &Config,
        cluster_id: Option<String>,
    ) -> Result<Self, IdentityError> {
        let passes = |error: &IdentityError| match error {
            IdentityError::Io { source, .. } => Fault::of(source).is_state(),
            _ => false,
        };
        let Usable { identities, unusable, lost } =
            patiently("identify the log directories", passes, || {
                let (of_task, config) = (env.clone(), config.clone());
                let cluster_id = cluster_id.clone();
                env.blocking(move || identify(&of_task, &config, cluster_id.as_deref()))
            })
            .await?;
        let (_, first) = identities.first().cloned().ok_or(IdentityError::NoDirectories)?;
        let has_metadata = identities
            .iter()
            .any(|(directory, identity)| *directory == config.metadata_dir && !identity.created);
        Ok(Self {
            keeps_incarnation: !unusable.is_empty() && has_metadata,
            directories: identities,
            unusable: unusable.into_iter().map(|(path, why)| (path, Arc::new(why))).collect(),
            lost,
            cluster_id: first.cluster_id,
            directory_id: first.directory_id,
        })
    }

    /// Whether the metadata log is lost and given up, so that this node begins a new one. A voter
    /// among others must not: it would vote again where it has voted.
    pub(super) fn begins_anew(&self, config: &Config) -> bool {
        let is_given_up = |lost: &String| {
            let mut here = self.directories.iter();
            let here = here.find(|(directory, _)| *directory == config.metadata_dir);
            here.is_some_and(|(_, identity)| encode_uuid(identity.directory_id) != *lost)
        };
        config.voters.len() == 1
            && config.accepted_lost_metadata_log.as_ref().is_some_and(is_given_up)
    }

    /// Under which incarnation this node registers, if `image` knows an earlier one.
    pub(super) fn incarnation(&self, config: &Config, image: &MetadataImage) -> Uuid {
        let known = image.brokers.get(&config.node_id).map(|present| present.incarnation);
        known.filter(|_| self.keeps_incarnation).unwrap_or(self.directory_id)
    }
}

/// The id of the cluster that this node belongs to, if that is known before its directories are
/// opened. Voters that are all new agree on one.
///
/// # Errors
/// [`FoundingError`].
pub(super) async fn cluster_id(
    env: &Env,
    config: &Config,
) -> Result<Option<String>, FoundingError> {
    if config.cluster_id.is_some() || config.voters.len() == 1 {
        return Ok(config.cluster_id.clone());
    }
    let (of_task, of_node) = (env.clone(), config.clone());
    let known = env.blocking(move || {
        known_cluster_id(&of_task, of_node.log_dirs.iter().chain([&of_node.metadata_dir]))
    });
    if let Some(known) = known.await {
        return Ok(Some(known));
    }
    let listener = (config.controller.host.clone(), config.controller.port);
    agree_on_cluster_id(env, config.node_id.0, &listener, &config.voters).await.map(Some)
}

/// Blocks.
fn identify(env: &Env, config: &Config, cluster_id: Option<&str>) -> Result<Usable, IdentityError> {
    let directories = config.log_dirs.iter().chain([&config.metadata_dir]);
    expect_directories(env, directories, &config.expected_directory_ids)?;
    open_usable(
        env,
        &config.log_dirs,
        &config.metadata_dir,
        config.node_id.0,
        cluster_id,
        &config.accepted_lost_directory_ids,
    )
}
