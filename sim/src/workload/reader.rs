//! A consumer by assignment: all partitions, from the beginning.

use std::collections::BTreeMap;
use std::time::Duration;

use letterbox_client::{
    AutoOffsetReset, Consumer, ConsumerOptions, ConsumerRecord, TopicPartition,
};
use tokio::time::sleep;

use super::{Load, PAUSE, Scribe};
use crate::history::{Action, Phase, Position, Read};

/// Reads until the load ends. After an error it goes on, with a new consumer, where it was.
pub async fn reader(load: Load, number: u64) {
    let mut scribe = Scribe::new(&load, format!("reader-{number}"));
    let partitions: Vec<TopicPartition> = (0..load.partitions)
        .map(|partition| TopicPartition::new(load.topic.clone(), partition))
        .collect();
    let mut next: BTreeMap<TopicPartition, i64> =
        partitions.iter().map(|partition| (partition.clone(), 0)).collect();
    while let Some(client) = load.client().await {
        let options = ConsumerOptions {
            offset_reset: AutoOffsetReset::None,
            fetch_wait: Duration::from_millis(100),
            ..ConsumerOptions::default()
        };
        let mut consumer = Consumer::new(&client, options);
        consumer.assign(partitions.clone());
        for (partition, offset) in &next {
            if let Err(error) = consumer.seek(partition, *offset) {
                tracing::error!(%error, %partition, "seek");
            }
        }
        let positions =
            next.iter().map(|(partition, offset)| position(partition, *offset)).collect();
        scribe.note(Action::Assign { partitions: positions });
        while !load.is_over() {
            let op = scribe.begin(Action::Poll { records: Vec::new() });
            match consumer.poll(Duration::from_millis(200)).await {
                Ok(records) => {
                    for record in &records {
                        next.insert(
                            TopicPartition::new(record.topic.clone(), record.partition),
                            record.offset + 1,
                        );
                    }
                    scribe.end(
                        op,
                        Phase::Ok,
                        Action::Poll { records: records.iter().map(read).collect() },
                        None,
                    );
                }
                Err(error) => {
                    scribe.end(
                        op,
                        Phase::Fail,
                        Action::Poll { records: Vec::new() },
                        Some(error.to_string()),
                    );
                    break;
                }
            }
        }
        sleep(PAUSE).await;
    }
}

pub(super) fn position(partition: &TopicPartition, offset: i64) -> Position {
    Position { topic: partition.topic.clone(), partition: partition.partition, offset }
}

/// A received record, as the history has it.
pub(super) fn read(record: &ConsumerRecord) -> Read {
    let payload = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned();
    Read {
        topic: record.topic.clone(),
        partition: record.partition,
        offset: record.offset,
        value: None,
        payload: Some(payload),
    }
}
