//! The stop: accept nothing more, finish what was begun, flush, close.

use letterbox_env::with_causes;
use letterbox_storage::LogError;
use tokio::time::Instant;
use tracing::{error, info};

use super::{Node, registration};

impl Node {
    /// Stops in order: the reverse of the start.
    ///
    /// # Errors
    /// When the logs could not be closed cleanly; nothing that was acknowledged is lost, the next
    /// start recovers.
    pub async fn shutdown(mut self) -> Result<(), LogError> {
        let started = Instant::now();
        info!("stopping: accepting no new connections and finishing the requests in progress");
        self.admin.health.stops();
        // Who takes it out of the cluster meanwhile has it stay out.
        self.services.quorum.leave();
        // While it still serves those that take over.
        registration::leave(&self.services).await;
        // Before the rest, so that the disk is free for what was begun.
        self.upkeep.ask_to_end();
        self.listening.end().await;
        self.services.groups.shutdown().await;
        self.heartbeats.end().await;
        self.upkeep.end().await;
        self.hosting.end().await;
        self.replication.end().await;
        self.admin.serving.end().await;
        // Last of what writes, because what was begun waits for the disk.
        self.syncing.end().await;
        let closed = self.logs.close().await;
        // With the part in the quorum: who leads without a controller lets all others wait.
        self.services.controller.shutdown().await;
        self.services.quorum.shutdown().await;
        match &closed {
            Ok(()) => info!("stopped in {} ms", started.elapsed().as_millis()),
            Err(error) => error!(error = with_causes(error), "the logs were not closed cleanly"),
        }
        closed
    }
}
