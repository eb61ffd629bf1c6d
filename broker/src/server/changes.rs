//! Changes of the metadata that requests ask for: the one way of a handler to the controller.
//!
//! An answer waits until this broker shows its outcome, whichever broker decided it: who was told
//! of a change sees it in the next request to the same broker.

use std::time::Duration;

use super::Services;
use crate::controller::ControllerError;
use crate::metadata::decide::Kind;

/// What came of a change.
pub(crate) struct Changed<T> {
    /// What it came to.
    pub(crate) outcome: T,
    /// Whether [`Services::image`] shows it. If not yet, it will.
    pub(crate) is_shown: bool,
}

impl Services {
    /// Has the controller carry out `operation`, and waits until [`Services::image`] shows its
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
        let is_shown = self.shown.reaches(done.index, show_within).await;
        Ok(Changed { outcome: done.outcome, is_shown })
    }
}
