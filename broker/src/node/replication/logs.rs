//! Telling the controller which logs are out of use here or have no room, and which take records
//! again: somebody else leads meanwhile. The metadata is compared with what is, again and again, so nothing has to be
//! remembered of what was told.

use std::sync::Arc;
use std::time::Duration;

use letterbox_storage::Loss;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Shared;
use crate::metadata::decide::{LogReport, ReportLogs};
use crate::replication::fetcher::Key;
use crate::replication::role::LogStanding;

/// Partitions in one operation.
const TOGETHER_MAX: usize = 1_000;
/// How often it is looked at; at once when something fails that somebody waits for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Goes on until `stop`.
pub(super) async fn tell(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let work = async {
            for logs in shared.replicas.unreported_logs().chunks(TOGETHER_MAX) {
                if !report(&shared, logs).await {
                    break;
                }
            }
            let failed = shared.replicas.outbox().logs.notified();
            let _ = tokio::time::timeout(LOOK_EVERY, failed).await;
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = work => {}
        }
    }
}

/// Tells whether the controller has taken note.
async fn report(shared: &Shared, logs: &[(Key, LogStanding)]) -> bool {
    let log = |key: &Key| shared.replicas.hosted(key).and_then(|one| one.log().ok().cloned());
    let of_one = |(key, is): &(Key, LogStanding)| {
        let loss = log(key).map_or(Loss::None, |log| log.loss());
        LogReport {
            topic_id: key.0,
            partition: key.1,
            is_offline: is.is_offline,
            is_full: is.is_full,
            may_have_lost: loss != Loss::None,
            lacks_records: matches!(loss, Loss::Records | Loss::New),
            is_new: loss == Loss::New,
        }
    };
    let operation = ReportLogs {
        broker: shared.me.id,
        broker_epoch: shared.me.epoch,
        logs: logs.iter().map(of_one).collect(),
    };
    let offline = logs.iter().filter(|(_, is)| is.is_offline).count();
    let full = logs.iter().filter(|(_, is)| is.is_full).count();
    let back = logs.len().saturating_sub(offline + full);
    let refusal = match shared.controller.run(operation).await {
        Ok(done) => done.outcome.err().map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    };
    match &refusal {
        None => {
            logs.iter().filter_map(|(key, _)| log(key)).for_each(|log| log.loss_is_known());
            info!(offline, full, back, "reported to the controller which replicas take no records");
        }
        Some(why) => {
            warn!(
                offline,
                full,
                back,
                why,
                "cannot report to the controller which replicas take no records; retrying"
            );
        }
    }
    refusal.is_none()
}
