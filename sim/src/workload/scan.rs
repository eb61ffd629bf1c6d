//! Reads everything after all faults are healed.

use std::collections::BTreeMap;
use std::time::Duration;

use letterbox_client::{AutoOffsetReset, Consumer, ConsumerOptions, Error, IsolationLevel, OffsetSpec, TopicPartition};
use tokio::time::{Instant, sleep};

use super::reader::read;
use super::{Load, PAUSE, Scribe};
use crate::history::{Action, Read};

/// `load` must not be over: give it a stop of its own. Reads every partition from its log start offset to its high watermark and writes it down as the log of `broker`.
///
/// # Errors
/// When it did not succeed within `limit`: the cluster has not healed.
pub async fn scan(load: &Load, broker: &str, limit: Duration) -> Result<(), String> {
    let deadline = Instant::now() + limit;
    loop {
        match tokio::time::timeout_at(deadline, attempt(load)).await {
            Ok(Ok(logs)) => {
                let mut scribe = Scribe::new(load, "scanner".to_owned());
                for (partition, (start, end, records)) in logs {
                    let (topic, partition) = (partition.topic, partition.partition);
                    scribe.note(Action::Scan { broker: broker.to_owned(), topic, partition, start, end, records });
                }
                return Ok(());
            }
            Ok(Err(error)) => tracing::debug!(%error, "scan begins anew"),
            Err(_) => return Err(format!("nothing could be read in {limit:?} after everything was healed")),
        }
        sleep(PAUSE).await;
    }
}

type Logs = BTreeMap<TopicPartition, (i64, i64, Vec<Read>)>;

async fn attempt(load: &Load) -> Result<Logs, Error> {
    let client = load.client().await.ok_or(Error::Closed)?;
    let partitions: Vec<TopicPartition> =
        (0..load.partitions).map(|partition| TopicPartition::new(load.topic.clone(), partition)).collect();
    let mut edges = Vec::new();
    for spec in [OffsetSpec::Earliest, OffsetSpec::Latest] {
        let wanted = partitions.iter().map(|partition| (partition.clone(), spec)).collect();
        edges.push(client.list_offsets(&wanted, IsolationLevel::ReadUncommitted).await?);
    }
    let mut logs = Logs::new();
    let mut consumer = Consumer::new(&client, ConsumerOptions { offset_reset: AutoOffsetReset::None, ..ConsumerOptions::default() });
    consumer.assign(partitions.clone());
    for partition in &partitions {
        let edge = |at: usize| match edges.get(at).and_then(|found| found.get(partition)) {
            Some(Ok(found)) => found.offset.ok_or_else(|| Error::Invalid(format!("no offset of {partition}"))),
            Some(Err(error)) => Err(Error::Broker(error.clone())),
            None => Err(Error::Invalid(format!("no offsets of {partition}"))),
        };
        let (start, end) = (edge(0)?, edge(1)?);
        consumer.seek(partition, start)?;
        logs.insert(partition.clone(), (start, end, Vec::new()));
    }
    while logs.iter().any(|(partition, (start, end, _))| consumer.position(partition).unwrap_or(*start) < *end) {
        for record in consumer.poll(Duration::from_secs(1)).await? {
            let partition = TopicPartition::new(record.topic.clone(), record.partition);
            if let Some((_, end, records)) = logs.get_mut(&partition)
                && record.offset < *end
            {
                records.push(read(&record));
            }
        }
    }
    Ok(logs)
}
