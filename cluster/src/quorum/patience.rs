//! Waiting for space. openraft ends when its storage fails, and a full disk is no reason to end:
//! whatever the log or a snapshot could not write for want of a resource is written again until it
//! succeeds or this node stops.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use letterbox_env::{Env, Fault};
use tokio::sync::watch;

/// Between two tries.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// Shared by the storage, which waits, and those who want to know.
#[derive(Clone)]
pub(super) struct Patience {
    stop: watch::Sender<bool>,
    /// What the log waits for.
    waiting: watch::Sender<Option<Arc<str>>>,
}

impl Default for Patience {
    fn default() -> Self {
        Self { stop: watch::Sender::new(false), waiting: watch::Sender::new(None) }
    }
}

/// What a write is part of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// Nothing is committed meanwhile, and who proposes is told.
    Log,
    /// Goes on beside the log.
    Snapshot,
}

impl Patience {
    /// Ends all waiting: what waits fails.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }

    pub(super) fn stopped(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// What the log waits for.
    pub(super) fn waits_for(&self) -> Option<Arc<str>> {
        self.waiting.borrow().clone()
    }

    /// Completes with the reason when the log waits. Cancel safe.
    pub(super) async fn until_waiting(&self) -> Arc<str> {
        let mut waiting = self.waiting.subscribe();
        let reason = waiting.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            // The sender lives in `self`.
            None => std::future::pending().await,
        }
    }

    /// Carries `write` out off the async threads, again and again while it fails for want of a
    /// resource.
    pub(super) async fn write(
        &self,
        env: &Env,
        of: Of,
        write: impl Fn() -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<()> {
        let write = Arc::new(write);
        let mut stopped = self.stopped();
        let mut said = false;
        loop {
            let again = Arc::clone(&write);
            let result = env.urgent(move || again()).await;
            let Err(error) = &result else {
                if said {
                    tracing::info!("the files of the metadata quorum can be written again");
                }
                return self.done(of, result);
            };
            if !Fault::of(error).is_state() {
                return self.done(of, result);
            }
            if of == Of::Log {
                self.waiting.send_replace(Some(error.to_string().into()));
            }
            if !std::mem::replace(&mut said, true) {
                let what =
                    if of == Of::Log { "metadata log" } else { "snapshot of the metadata log" };
                tracing::error!(%error, "cannot write the {what}; retrying until it succeeds: free \
                    some space in metadata.log.dir, or grow its volume");
            }
            tokio::select! {
                biased;
                () = super::stopped(&mut stopped) => return self.done(of, result),
                () = tokio::time::sleep(RETRY_AFTER) => {}
            }
        }
    }

    fn done(&self, of: Of, result: io::Result<()>) -> io::Result<()> {
        if of == Of::Log {
            self.waiting.send_if_modified(|waiting| waiting.take().is_some());
        }
        result
    }
}
