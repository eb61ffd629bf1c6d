//! Changes of the metadata that requests ask for: the one way of a handler to the controller.
//!
//! An answer waits until this broker shows its outcome, whichever broker decided it: who was told
//! of a change sees it in the next request to the same broker.

use std::sync::Arc;
use std::time::Duration;

use letterbox_protocol::ErrorCode;
use tokio::time::Instant;

use super::Services;
use crate::controller::ControllerError;
use crate::metadata::decide::Kind;
use crate::metadata::{ApiError, MetadataImage};

/// What came of a change.
pub(crate) struct Changed<T> {
    /// What it came to.
    pub(crate) outcome: T,
    /// Whether [`Services::image`] shows it. If not yet, it will.
    pub(crate) is_shown: bool,
}

/// How long a change may take, counted from now.
#[derive(Clone, Copy)]
pub(crate) struct Within {
    /// Until it is decided. It is not begun later than that.
    pub(crate) decided: Duration,
    /// Until it is shown. It will be, also when that takes longer.
    pub(crate) shown: Duration,
}

/// The least time for a decision: clients that name a shorter one want the answer soon, and the
/// change all the same.
const DECIDED_MIN: Duration = Duration::from_secs(1);

impl Within {
    /// `timeout_ms` of a request. What only checks changes nothing, so that nothing is to be shown.
    pub(crate) fn asked(timeout_ms: i32, validate_only: bool) -> Self {
        let asked = Duration::from_millis(u64::try_from(timeout_ms).unwrap_or(0));
        let shown = if validate_only { Duration::ZERO } else { asked };
        Self { decided: asked.max(DECIDED_MIN), shown }
    }
}

impl Services {
    /// What clients are told, as soon as it shows what the active controller knew when this was
    /// asked; not longer than `within`.
    ///
    /// # Errors
    /// There is no controller that can be reached, or what it knows is not shown in time.
    pub(crate) async fn newest_image(
        &self,
        within: Duration,
    ) -> Result<Arc<MetadataImage>, ApiError> {
        let begun = Instant::now();
        let known = self.controller.quorum_status_within(within).await;
        let known = known.map_err(|error| super::handlers::of_controller(&error))?;
        let left = within.saturating_sub(begun.elapsed());
        match self.shown.reaches(known.applied_index, left).await {
            true => Ok(self.image()),
            false => Err(ErrorCode::RequestTimedOut.into()),
        }
    }

    /// Has the controller carry out `operation`, and waits until [`Services::image`] shows its
    /// outcome; not longer than `within`.
    ///
    /// # Errors
    /// [`ControllerError`] when there is no outcome.
    pub(crate) async fn change<O: Kind>(
        &self,
        operation: O,
        within: Within,
    ) -> Result<Changed<O::Outcome>, ControllerError> {
        let begun = Instant::now();
        let done = self.controller.run_within(operation, within.decided).await?;
        let left = within.shown.saturating_sub(begun.elapsed());
        let is_shown = self.shown.reaches(done.index, left).await;
        Ok(Changed { outcome: done.outcome, is_shown })
    }
}
