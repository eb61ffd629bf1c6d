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
    DirectoryIdentity, IdentityError, Usable, expect_directories, open_usable,
};

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
    /// Reads the identities, and writes them into directories that are new.
    ///
    /// # Errors
    /// A directory is another node's, or none can be used.
    pub(super) async fn open(env: &Env, config: &Config) -> Result<Self, IdentityError> {
        let passes = |error: &IdentityError| match error {
            IdentityError::Io { source, .. } => Fault::of(source).is_state(),
            _ => false,
        };
        let Usable { identities, unusable, lost } =
            patiently("identify the log directories", passes, || {
                let (of_task, config) = (env.clone(), config.clone());
                env.blocking(move || identify(&of_task, &config))
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

    /// Under which incarnation this node registers, if `image` knows an earlier one.
    pub(super) fn incarnation(&self, config: &Config, image: &MetadataImage) -> Uuid {
        let known = image.brokers.get(&config.node_id).map(|present| present.incarnation);
        known.filter(|_| self.keeps_incarnation).unwrap_or(self.directory_id)
    }
}

/// Blocks.
fn identify(env: &Env, config: &Config) -> Result<Usable, IdentityError> {
    let directories = config.log_dirs.iter().chain([&config.metadata_dir]);
    expect_directories(env, directories, &config.expected_directory_ids)?;
    open_usable(
        env,
        &config.log_dirs,
        &config.metadata_dir,
        config.node_id.0,
        config.cluster_id.as_deref(),
        &config.accepted_lost_directory_ids,
    )
}
