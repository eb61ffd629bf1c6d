//! An idempotent producer of unique values, with several operations in flight.

use std::collections::VecDeque;
use std::time::Duration;

use letterbox_client::{Delivery, Error, Producer, ProducerOptions, ProducerRecord};
use tokio::time::sleep;

use super::{Load, PAUSE, Scribe};
use crate::history::{Action, Phase, Sent, payload};
use crate::rng::Rng;

/// How many operations are in flight.
const IN_FLIGHT_MAX: usize = 6;

/// An operation that has begun: its number, its records and what will be known of each.
struct Pending {
    op: u64,
    records: Vec<Sent>,
    deliveries: Vec<Delivery>,
}

/// Sends until the load ends: operations of one to four records, each to one partition.
///
/// After an error it goes on with a new producer: what the old one left behind has an unknown fate,
/// and order is promised only within one producer.
pub async fn producer(load: Load, number: u64) {
    let mut rng = Rng::new(load.env.random_u64());
    let mut scribe = Scribe::new(&load, format!("producer-{number}"));
    let (mut counter, mut session) = (0, 0);
    while let Some(client) = load.client().await {
        let options = ProducerOptions {
            delivery_timeout: Duration::from_secs(8),
            block_max: Duration::from_secs(4),
            ..ProducerOptions::default()
        };
        let Ok(producer) = Producer::new(&client, options).await else {
            sleep(PAUSE).await;
            continue;
        };
        session += 1;
        let mut pending = VecDeque::new();
        let mut trouble = None;
        while trouble.is_none() && !load.is_over() {
            let partition =
                i32::try_from(rng.below(load.partitions.unsigned_abs().into())).unwrap_or(0);
            let records: Vec<Sent> = (0..rng.between(1, 5))
                .map(|_| {
                    counter += 1;
                    Sent {
                        topic: load.topic.clone(),
                        partition,
                        value: (number << 40) | counter,
                        offset: None,
                    }
                })
                .collect();
            let op = scribe.begin(send(records.clone(), session));
            let mut begun = Pending { op, records, deliveries: Vec::new() };
            for record in &begun.records {
                // Now and then a batch that spans many sectors, so that a power cut can tear it.
                let padding = if rng.percent(25) { rng.index(6000) } else { 0 };
                let value = payload::padded(record.value, &record.topic, record.partition, padding);
                match producer
                    .send(ProducerRecord::new(load.topic.clone()).partition(partition).value(value))
                    .await
                {
                    Ok(delivery) => begun.deliveries.push(delivery),
                    Err(error) => trouble = Some(error),
                }
            }
            pending.push_back(begun);
            if pending.len() >= IN_FLIGHT_MAX
                && let Some(oldest) = pending.pop_front()
                && let Err(error) = settle(&scribe, session, oldest).await
            {
                trouble = Some(error);
            }
            sleep(Duration::from_millis(rng.below(50))).await;
        }
        for pending in pending {
            // The first trouble is told; what follows it has its fate in the history.
            let _ = settle(&scribe, session, pending).await;
        }
        if let Some(error) = trouble {
            tracing::debug!(%error, number, "producer begins anew");
            sleep(PAUSE).await;
        }
    }
}

fn send(records: Vec<Sent>, session: u64) -> Action {
    Action::Send { records, acks: -1, idempotent: true, session }
}

/// Waits for the fate of an operation and writes it down. One record of unknown fate makes all of
/// it unknown.
async fn settle(scribe: &Scribe, session: u64, pending: Pending) -> Result<(), Error> {
    let Pending { op, mut records, deliveries } = pending;
    let mut failed = (deliveries.len() < records.len()).then_some(Error::Closed);
    for (record, delivery) in records.iter_mut().zip(deliveries) {
        match delivery.await {
            Ok(place) => record.offset = place.offset,
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        None => scribe.end(op, Phase::Ok, send(records, session), None),
        Some(error) => {
            scribe.end(op, Phase::Info, send(records, session), Some(error.to_string()));
            return Err(error);
        }
    }
    Ok(())
}
