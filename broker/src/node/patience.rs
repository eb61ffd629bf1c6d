//! Waiting, at the start, for what passes by itself.

use std::time::Duration;

use letterbox_env::with_causes;
use tracing::error;

/// Between two tries of a part of the start that lacks space or descriptors.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What ends a lack of space or descriptors.
pub(super) const MAKE_ROOM: &str =
    "free some disk space, or raise the limit of open files (ulimit -n)";

/// Begins a part of the start again and again while its error `passes`: on a full disk a broker
/// waits for space, since one that ended would only be started again. Cancel safe where the part
/// is.
pub(super) async fn patiently<
    T,
    E: std::error::Error + 'static,
    F: Future<Output = Result<T, E>>,
>(
    action: &str,
    passes: impl Fn(&E) -> bool,
    attempt: impl FnMut() -> F,
) -> Result<T, E> {
    patiently_until(action, |error| passes(error).then_some(MAKE_ROOM), attempt).await
}

/// As [`patiently`], while there is an advice how the error may end.
pub(super) async fn patiently_until<
    T,
    E: std::error::Error + 'static,
    F: Future<Output = Result<T, E>>,
>(
    action: &str,
    advice: impl Fn(&E) -> Option<&'static str>,
    mut attempt: impl FnMut() -> F,
) -> Result<T, E> {
    let mut said = None;
    loop {
        let result = attempt().await;
        let Some((error, advice)) =
            result.as_ref().err().and_then(|error| Some((error, advice(error)?)))
        else {
            return result;
        };
        if said.replace(advice) != Some(advice) {
            error!(
                error = with_causes(error),
                "cannot {action} now; retrying until it succeeds: {advice}"
            );
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}
