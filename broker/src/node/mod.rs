//! A node: it owns the parts of a broker, starts them in order, and stops them in the reverse.
//!
//! - `identity`: whose log directories these are.
//! - `start`: each stage of the start, from the directories to the first client.
//! - `registration`: what the cluster is told of this node, and that it lives.
//! - `lease`: up to when it leads what it leads by its metadata.
//! - `hosting`: what this node hosts follows the metadata, as long as it runs.
//! - `replication`: what its partitions ask of other nodes.
//! - `groups`: the group coordinator over the partitions of `__consumer_offsets` that are here.
//! - `stop`: the reverse of the start.
//!
//! Nothing below uses this module.

mod group_log;
mod groups;
mod hosting;
mod identity;
mod lease;
mod patience;
mod registration;
mod replication;
mod stage;
mod start;
mod stop;

use std::net::SocketAddr;
use std::sync::Arc;

use letterbox_storage::LogManager;

use self::stage::Stage;
use self::start::Admin;
pub use self::start::StartError;
use crate::metadata::Configs;
use crate::server::Services;

/// A node that runs. [`Node::start`] and [`Node::shutdown`] are its life; dropping it ends it at
/// once, as a crash would.
pub struct Node {
    services: Arc<Services>,
    logs: Arc<LogManager>,
    addresses: Vec<SocketAddr>,
    admin: Admin,
    /// Which start of the broker this is.
    epoch: i64,
    heartbeats: Stage,
    syncing: Stage,
    hosting: Stage,
    replication: Stage,
    upkeep: Stage,
    listening: Stage,
}

impl Node {
    /// Where clients connect, in the order of the listeners.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where health and metrics are served.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.address
    }

    /// Makes a topic unless it is there.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub async fn ensure_topic(
        &self,
        name: &str,
        partitions: i32,
        replication_factor: i16,
        configs: Configs,
    ) -> Result<(), String> {
        self.services.ensure_topic(name, partitions, replication_factor, configs).await
    }

    /// Completes, with the reason, when the node cannot go on and the process must end.
    pub async fn fatal(&self) -> String {
        tokio::select! {
            biased;
            reason = self.services.quorum.fatal() => reason,
            reason = registration::until_replaced(
                &*self.services.quorum,
                self.services.config.node_id,
                self.epoch,
            ) => reason,
            reason = self.logs.until_all_offline() => {
                format!("every log directory is offline: {reason}")
            }
        }
    }

    /// What its requests are served with.
    #[cfg(test)]
    pub(crate) fn services(&self) -> &Arc<Services> {
        &self.services
    }
}
