#![allow(clippy::type_complexity, reason = "rows of tables")]

use std::time::Duration;

use super::*;
use crate::error::BrokerError;

fn record() -> ProducerRecord {
    ProducerRecord::new("t").value(vec![0; 10])
}

fn failed(code: ErrorCode) -> Outcome {
    Outcome::Failed(BrokerError { code, message: None }.into())
}

/// One record per batch.
fn options() -> ProducerOptions {
    ProducerOptions { batch_bytes: 1, linger: Duration::ZERO, ..ProducerOptions::default() }
}

fn sequences(
    state: &mut State,
    partition: &TopicPartition,
    options: &ProducerOptions,
) -> Vec<(i32, Batch)> {
    std::iter::from_fn(|| state.take(partition, options))
        .map(|batch| (batch.stamp.unwrap().sequence, batch))
        .collect()
}

fn filled(
    count: usize,
) -> (State, TopicPartition, ProducerOptions, Vec<oneshot::Receiver<Result<RecordPlace, Error>>>) {
    let (mut state, partition, options) =
        (State::new(Some((7, 0))), TopicPartition::new("t", 0), options());
    let deliveries = (0..count)
        .map(|_| state.append(partition.clone(), &record(), 50, 1, &options).unwrap().0)
        .collect();
    (state, partition, options, deliveries)
}

#[tokio::test]
async fn retries_repeat_their_sequence_and_keep_their_order() {
    let (mut state, partition, options, mut deliveries) = filled(3);
    let mut sent = sequences(&mut state, &partition, &options);
    assert_eq!(sent.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), [0, 1, 2]);
    let now = Instant::now();
    // The first is refused for a while, so the broker refuses the later ones for their numbers;
    // answers come in any order.
    let (_, third) = sent.pop().unwrap();
    state.settle(&partition, third, failed(ErrorCode::OutOfOrderSequenceNumber), &options, now);
    for (_, batch) in sent {
        let code = if batch.first_in_line {
            ErrorCode::NotLeaderOrFollower
        } else {
            ErrorCode::OutOfOrderSequenceNumber
        };
        state.settle(&partition, batch, failed(code), &options, now);
    }
    assert!(!state.id_is_spent);
    let sent = sequences(&mut state, &partition, &options);
    assert_eq!(sent.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), [0, 1, 2]);
    for (index, (_, batch)) in sent.into_iter().enumerate() {
        state.settle(
            &partition,
            batch,
            Outcome::Stored(Some(100 + i64::try_from(index).unwrap())),
            &options,
            now,
        );
    }
    assert_eq!((state.unresolved, state.buffered_bytes), (0, 0));
    assert_eq!(deliveries[2].try_recv().unwrap().unwrap().offset, Some(102));
}

#[tokio::test]
async fn a_hole_in_the_sequence_takes_a_new_id_before_anything_else_is_sent() {
    let (mut state, partition, options, mut deliveries) = filled(3);
    let sent = sequences(&mut state, &partition, &options);
    let now = Instant::now();
    let mut sent = sent.into_iter().map(|(_, batch)| batch);
    state.settle(
        &partition,
        sent.next().unwrap(),
        failed(ErrorCode::MessageTooLarge),
        &options,
        now,
    );
    assert!(deliveries[0].try_recv().unwrap().is_err());
    assert!(state.id_is_spent && !state.may_take_new_id());
    for batch in sent {
        state.settle(&partition, batch, failed(ErrorCode::OutOfOrderSequenceNumber), &options, now);
    }
    assert!(state.ready(now, &options).0.is_empty(), "nothing goes out under the spent id");
    assert!(state.may_take_new_id());
    state.set_id((8, 0));
    let sent = sequences(&mut state, &partition, &options);
    assert_eq!(
        sent.iter()
            .map(|(sequence, batch)| (*sequence, batch.stamp.unwrap().id))
            .collect::<Vec<_>>(),
        [(0, 8), (1, 8)]
    );
}

#[tokio::test]
async fn duplicates_count_as_stored_and_late_batches_fail() {
    let (mut state, partition, options, mut deliveries) = filled(2);
    let now = Instant::now();
    let batch = state.take(&partition, &options).unwrap();
    state.settle(&partition, batch, failed(ErrorCode::DuplicateSequenceNumber), &options, now);
    assert_eq!(deliveries[0].try_recv().unwrap().unwrap().offset, None);
    state.expire(now + options.delivery_timeout, &options);
    assert!(matches!(deliveries[1].try_recv().unwrap(), Err(Error::Timeout { .. })));
    assert!(!state.id_is_spent, "it was never sent, so its number is still free");
}

/// A broker takes any number for the first of an id that it does not know.
#[tokio::test]
async fn the_first_batch_of_an_id_is_under_way_alone_until_it_is_stored() {
    let (mut state, partition, options, _deliveries) = filled(5);
    let now = Instant::now();
    let is_ready = |state: &State| !state.ready(now, &options).0.is_empty();
    for id in [(7, 0), (8, 0)] {
        state.set_id(id);
        let first = state.take(&partition, &options).unwrap();
        assert!(!is_ready(&state), "a later one might be stored before the first");
        state.settle(&partition, first, failed(ErrorCode::NotLeaderOrFollower), &options, now);
        let first = state.take(&partition, &options).unwrap();
        assert_eq!(first.stamp.unwrap().sequence, 0);
        state.settle(&partition, first, Outcome::Stored(Some(0)), &options, now);
        let second = state.take(&partition, &options).unwrap();
        assert!(is_ready(&state), "from then on several are under way");
        state.settle(&partition, second, Outcome::Stored(Some(1)), &options, now);
    }
}
