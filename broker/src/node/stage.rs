//! The tasks of one stage of the start, which end together.

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Tasks that were started together. They are asked to end, and waited for; dropping the stage
/// aborts them.
#[derive(Default)]
pub(super) struct Stage {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Stage {
    /// Starts a task, which ends when it is asked to.
    pub(super) fn run<F>(&mut self, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task(self.stop()));
    }

    /// Cancelled when the tasks are asked to end.
    pub(super) fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Asks the tasks to end.
    pub(super) fn ask_to_end(&self) {
        self.stop.cancel();
    }

    /// Ends the tasks, and waits for that.
    pub(super) async fn end(&mut self) {
        self.ask_to_end();
        while self.tasks.join_next().await.is_some() {}
    }
}
