//! Reads everything after all faults are healed.

use std::collections::BTreeMap;
use std::time::Duration;

use letterbox_client::Error;
use tokio::time::{Instant, sleep};

use super::read_all::{Contents, read_all};
use super::reader::read;
use super::{Load, PAUSE, Scribe};
use crate::history::Action;

/// `load` must not be over: give it a stop of its own. Reads every partition from its log start
/// offset to its high watermark and writes it down as the log of `broker`.
///
/// # Errors
/// When it did not succeed within `limit`: the cluster has not healed.
pub async fn scan(load: &Load, broker: &str, limit: Duration) -> Result<(), String> {
    let deadline = Instant::now() + limit;
    loop {
        match tokio::time::timeout_at(deadline, attempt(load)).await {
            Ok(Ok(logs)) => {
                let mut scribe = Scribe::new(load, "scanner".to_owned());
                for (partition, Contents { start, end, records }) in logs {
                    let (broker, topic, records) =
                        (broker.to_owned(), load.topic.clone(), records.iter().map(read).collect());
                    scribe.note(Action::Scan { broker, topic, partition, start, end, records });
                }
                return Ok(());
            }
            Ok(Err(error)) => tracing::debug!(%error, "scan begins anew"),
            Err(_) => {
                return Err(format!(
                    "nothing could be read in {limit:?} after everything was healed"
                ));
            }
        }
        sleep(PAUSE).await;
    }
}

async fn attempt(load: &Load) -> Result<BTreeMap<i32, Contents>, Error> {
    let client = load.client().await.ok_or(Error::Closed)?;
    read_all(&client, &load.topic, 0..load.partitions).await
}
