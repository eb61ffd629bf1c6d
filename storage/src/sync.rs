//! Group commit: one loop per log directory takes all logs with new bytes, syncs them, and tells
//! how far each is durable. While one round waits for the device the next one gathers.

use std::sync::Arc;
use std::time::Duration;

use letterbox_env::{Env, Fault};
use tokio_util::sync::CancellationToken;

use super::Log;
use super::dir::LogDir;
use super::types::DurabilityObserver;

/// Files synced at the same time in one directory.
const PARALLEL_MAX: usize = 4;
/// Consecutive syncs before the thread yields and the free space is read.
const SYNCS_MAX: usize = 64;
/// How long that thread waits for the next log, so that a client which waits for each answer finds
/// it awake.
const WAIT_MAX: Duration = Duration::from_millis(10);
/// How often the free space is looked at, appends or not.
const SPACE_CHECK: Duration = Duration::from_secs(1);

/// After how long a sync is tried again that could not be begun, for want of a descriptor say.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Runs until `stop`; what is queued then is still synced.
pub(super) async fn run(
    env: Env,
    dir: Arc<LogDir>,
    reserve_bytes: Option<u64>,
    observer: Arc<dyn DurabilityObserver>,
    stop: CancellationToken,
) {
    let mut next_check = tokio::time::Instant::now();
    let mut retry_at = None;
    let mut dirty = Vec::new();
    loop {
        if tokio::time::Instant::now() >= next_check {
            let checked = dir.clone();
            env.urgent(move || checked.check_space(reserve_bytes)).await;
            next_check = tokio::time::Instant::now() + SPACE_CHECK;
        }
        if dir.has_put_off()
            && tokio::time::Instant::now()
                >= *retry_at.get_or_insert_with(|| tokio::time::Instant::now() + RETRY_AFTER)
        {
            dirty.append(&mut dir.take_put_off());
            retry_at = None;
        }
        dirty.append(&mut dir.take_dirty());
        if !dirty.is_empty() {
            dirty = sync_round(&env, &dir, dirty, &observer).await;
            continue;
        }
        tokio::select! {
            biased;
            () = dir.wake.notified() => {}
            () = stop.cancelled() => {
                dirty = dir.take_dirty();
                while !dirty.is_empty() {
                    dirty = sync_round(&env, &dir, dirty, &observer).await;
                }
                return;
            }
            () = tokio::time::sleep_until(retry_at.map_or(next_check, |retry_at| next_check.min(retry_at))) => {}
        }
    }
}

/// Syncs `dirty`; gives what it took from the queue besides and did not sync.
async fn sync_round(
    env: &Env,
    dir: &Arc<LogDir>,
    dirty: Vec<Arc<Log>>,
    observer: &Arc<dyn DurabilityObserver>,
) -> Vec<Arc<Log>> {
    if let [log] = &dirty[..] {
        // As long as one log at a time is queued, the thread that has just synced goes on: no hop
        // between threads for each sync.
        let (mut log, dir, observer) = (log.clone(), dir.clone(), observer.clone());
        let wait_max = if env.tasks.may_wait() { WAIT_MAX } else { Duration::ZERO };
        return env
            .urgent(move || {
                for _ in 0..SYNCS_MAX {
                    sync_one(&log, &observer);
                    let mut queued = dir.wait_dirty(wait_max);
                    match queued.pop() {
                        Some(next) if queued.is_empty() => log = next,
                        last => {
                            queued.extend(last);
                            return queued;
                        }
                    }
                }
                vec![log]
            })
            .await;
    }
    let share = dirty.len().div_ceil(PARALLEL_MAX).max(1);
    let jobs = dirty.chunks(share).map(|logs| {
        let (logs, observer) = (logs.to_vec(), observer.clone());
        env.urgent(move || logs.iter().for_each(|log| sync_one(log, &observer)))
    });
    futures::future::join_all(jobs).await;
    Vec::new()
}

fn sync_one(log: &Arc<Log>, observer: &Arc<dyn DurabilityObserver>) {
    let begun = log.dir().syncs.begin();
    let synced = log.sync();
    drop(begun);
    match synced {
        Ok(durable_end) => observer.durable(log, durable_end),
        // Nothing is lost and nothing acknowledged: who waits for it goes on waiting.
        Err(error) if Fault::of(&error).is_state() => log.dir().put_off(log.clone()),
        Err(_) => observer.failed(log),
    }
}
