//! Reads all that a topic holds.

use std::collections::BTreeMap;
use std::time::Duration;

use letterbox_client::{
    AutoOffsetReset, Client, Consumer, ConsumerOptions, ConsumerRecord, Error, IsolationLevel,
    OffsetSpec, TopicPartition,
};
use tokio::time::Instant;

/// How long reading takes at most, in a cluster in which nothing is broken.
const LIMIT: Duration = Duration::from_secs(20);

/// What a partition held.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The log start offset, before the records were read.
    pub start: i64,
    /// The high watermark, before the records were read.
    pub end: i64,
    /// The records of `start..end`, in the order of their offsets.
    pub records: Vec<ConsumerRecord>,
}

/// Every record of `partitions` between the log start offset and the high watermark.
///
/// # Errors
/// When one of them cannot be read, or not within 20 s.
pub async fn read_all(
    client: &Client,
    topic: &str,
    partitions: impl IntoIterator<Item = i32>,
) -> Result<BTreeMap<i32, Contents>, Error> {
    let partitions: Vec<_> =
        partitions.into_iter().map(|partition| TopicPartition::new(topic, partition)).collect();
    let mut edges = Vec::new();
    for spec in [OffsetSpec::Earliest, OffsetSpec::Latest] {
        let wanted = partitions.iter().map(|partition| (partition.clone(), spec)).collect();
        edges.push(client.list_offsets(&wanted, IsolationLevel::ReadUncommitted).await?);
    }
    let edge = |at: usize, partition: &TopicPartition| match edges
        .get(at)
        .and_then(|found| found.get(partition))
    {
        Some(Ok(found)) => {
            found.offset.ok_or_else(|| Error::Invalid(format!("no offset of {partition}")))
        }
        Some(Err(error)) => Err(Error::Broker(error.clone())),
        None => Err(Error::Invalid(format!("no offsets of {partition}"))),
    };
    let mut found = BTreeMap::new();
    for partition in &partitions {
        let (start, end) = (edge(0, partition)?, edge(1, partition)?);
        found.insert(partition.partition, Contents { start, end, records: Vec::new() });
    }
    let mut consumer = Consumer::new(
        client,
        ConsumerOptions {
            offset_reset: AutoOffsetReset::None,
            fetch_wait: Duration::from_millis(100),
            ..ConsumerOptions::default()
        },
    );
    let unread = partitions.into_iter().filter(|partition| {
        found.get(&partition.partition).is_some_and(|held| held.start < held.end)
    });
    let unread: Vec<_> = unread.collect();
    consumer.assign(unread.clone());
    for partition in &unread {
        consumer.seek(partition, found.get(&partition.partition).map_or(0, |held| held.start))?;
    }
    let deadline = Instant::now() + LIMIT;
    let is_unread = |consumer: &Consumer, found: &BTreeMap<i32, Contents>| {
        let position = |partition: &TopicPartition| consumer.position(partition).unwrap_or(0);
        unread.iter().any(|partition| {
            found.get(&partition.partition).is_some_and(|held| position(partition) < held.end)
        })
    };
    while is_unread(&consumer, &found) {
        if Instant::now() > deadline {
            return Err(Error::Timeout { what: format!("reading {topic}"), after: LIMIT });
        }
        for record in consumer.poll(Duration::from_millis(500)).await? {
            if let Some(held) = found.get_mut(&record.partition)
                && record.offset < held.end
            {
                held.records.push(record);
            }
        }
    }
    Ok(found)
}
