//! Waiting, at the start, for what passes by itself.

use std::time::Duration;

use letterbox_env::with_causes;
use tracing::error;

/// Between two tries of a part of the start that lacks space or descriptors.
const RETRY_AFTER: Duration = Duration::from_secs(1);

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
    mut attempt: impl FnMut() -> F,
) -> Result<T, E> {
    let mut is_said = false;
    loop {
        match attempt().await {
            Err(error) if passes(&error) => {
                if !std::mem::replace(&mut is_said, true) {
                    error!(
                        error = with_causes(&error),
                        "cannot {action} now; retrying until it succeeds: free some disk space, or \
                        raise the limit of open files (ulimit -n)"
                    );
                }
                tokio::time::sleep(RETRY_AFTER).await;
            }
            result => return result,
        }
    }
}
