//! What roles ask of this node alone: logs that are cut, and to be told the time.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Shared;

/// Cuts the logs that do not agree with their leader's, beside one another. What was begun is ended
/// also when `stop` comes: its partition waits for it.
pub(super) async fn change_logs(shared: Arc<Shared>, stop: CancellationToken) {
    let (mut under_way, outbox) = (FuturesUnordered::new(), shared.replicas.outbox());
    loop {
        for (key, change) in outbox.take_changes() {
            let (shared, hosted) = (shared.clone(), shared.replicas.hosted(&key));
            under_way.push(async move {
                if let Some(partition) = hosted {
                    shared.env.blocking(move || partition.change_log(&change)).await;
                }
            });
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(()) = under_way.next() => {}
            () = outbox.changes.notified() => {}
        }
    }
    while under_way.next().await.is_some() {}
}

/// Tells roles the time for which they have put something off.
pub(super) async fn wait(shared: Arc<Shared>, stop: CancellationToken) {
    let outbox = shared.replicas.outbox();
    loop {
        let now_ms = shared.replicas.now_ms();
        let (due, next_ms) = outbox.take_due(now_ms);
        for key in due {
            if let Some(partition) = shared.replicas.hosted(&key) {
                partition.tick();
            }
        }
        let wait_ms = next_ms.map(|next_ms| next_ms.saturating_sub(now_ms));
        let until = Instant::now() + Duration::from_millis(wait_ms.unwrap_or(0));
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = outbox.waits.notified() => {}
            () = sleep_until(until), if wait_ms.is_some() => {}
        }
    }
}

/// Looks at who lags, twice within `replica.lag.time.max.ms` as Kafka does.
pub(super) async fn look_at_lags(shared: Arc<Shared>, stop: CancellationToken) {
    let every = shared.config.duration("replica.lag.time.max.ms") / 2;
    let mut looks = tokio::time::interval(every.max(Duration::from_millis(1)));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = looks.tick() => shared.replicas.look_at_lags(),
        }
    }
}

/// Looks at how much others have yet to copy, for the next heartbeat: that one waits for nothing.
pub(super) async fn look_behind(shared: Arc<Shared>, stop: CancellationToken) {
    let every = shared.config.duration("broker.heartbeat.interval.ms");
    let mut looks = tokio::time::interval(every.max(Duration::from_millis(1)));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        let replicas = shared.replicas.clone();
        shared.env.blocking(move || replicas.look_behind()).await;
    }
}
