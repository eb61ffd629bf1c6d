//! Changes of the metadata that requests ask for: the one way of a handler to the controller.
//!
//! An answer waits until this broker shows its outcome, whichever broker decided it: who was told
//! of a change sees it in the next request to the same broker.

use std::time::Duration;

use super::Shared;
use crate::controller::ControllerError;
use crate::metadata::decide::Kind;

/// What came of a change.
pub(crate) struct Changed<T> {
    /// What it came to.
    pub(crate) outcome: T,
    /// Whether [`Shared::image`] shows it. If not yet, it will.
    pub(crate) is_shown: bool,
}

impl Shared {
    /// Has the controller carry out `operation`, and waits until [`Shared::image`] shows its
    /// outcome, for at most `show_within`. The operation itself is not cut short.
    ///
    /// # Errors
    /// [`ControllerError`] when there is no outcome.
    pub(crate) async fn change<O: Kind>(
        &self,
        operation: O,
        show_within: Duration,
    ) -> Result<Changed<O::Outcome>, ControllerError> {
        let done = self.controller.run(operation).await?;
        let mut hosted = self.hosted_index.subscribe();
        let shown = hosted.wait_for(|index| *index >= done.index);
        // An error of the channel means that the broker stops; then nobody waits for an answer.
        let is_shown = tokio::time::timeout(show_within, shown).await.is_ok();
        Ok(Changed { outcome: done.outcome, is_shown })
    }
}
