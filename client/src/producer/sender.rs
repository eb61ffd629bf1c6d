//! The task that sends batches to the leaders of their partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{InitProducerIdRequest, ProduceRequest};
use letterbox_env::{BoxFuture, Gather};
use tokio::time::Instant;

use super::state::{Batch, Outcome};
use super::{Acks, Shared};
use crate::client::{Client, Lane, topic_name};
use crate::error::{BrokerError, Error};
use crate::metadata::TopicPartition;

enum Event {
    Sent { leader: i32, outcomes: Vec<(TopicPartition, Batch, Outcome)> },
    LeadersRead { topic: String },
    NewId(Result<(i64, i16), Error>),
}

/// Sends until it is aborted by its producer.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut sender = Sender {
        shared,
        events: FuturesUnordered::new(),
        in_flight: BTreeMap::new(),
        reading: BTreeSet::new(),
        taking_id: false,
    };
    loop {
        let now = Instant::now();
        let (ready, wait_until) = sender.ready(now);
        // More batches of the same partitions may be ready at once; requests have to be under way
        // first.
        let wait_until = if sender.send_ready(ready) { Some(now) } else { wait_until };
        let event = tokio::select! {
            biased;
            Some(event) = sender.events.next(), if !sender.events.is_empty() => event,
            () = sender.shared.wake.notified() => continue,
            () = sleep_until(wait_until) => continue,
        };
        sender.take(event);
    }
}

struct Sender {
    shared: Arc<Shared>,
    events: FuturesUnordered<BoxFuture<'static, Event>>,
    /// Requests to each leader that are not answered: at most `in_flight_max`.
    in_flight: BTreeMap<i32, usize>,
    /// Topics whose leaders are being looked up.
    reading: BTreeSet<String>,
    /// Whether a new producer id was asked for.
    taking_id: bool,
}

impl Sender {
    /// The partitions with a batch that may be sent, after what is too old was given up; and when
    /// to look again. Asks for a new producer id when that is due.
    fn ready(&mut self, now: Instant) -> (Vec<TopicPartition>, Option<Instant>) {
        let mut state = self.shared.lock();
        let unresolved = state.unresolved;
        let expiry = state.expire(now, &self.shared.options);
        if state.unresolved < unresolved {
            self.shared.resolved.notify_waiters();
        }
        let (ready, next) = state.ready(now, &self.shared.options);
        if state.may_take_new_id() && !self.taking_id {
            self.taking_id = true;
            self.events.push(new_id(Arc::clone(&self.shared)));
        }
        (ready, [expiry, next].into_iter().flatten().min())
    }

    /// Sends a batch of each of `ready` whose leader is known and takes more; looks up unknown
    /// leaders. Whether a request was made.
    fn send_ready(&mut self, ready: Vec<TopicPartition>) -> bool {
        let shared = &self.shared;
        let mut by_leader: BTreeMap<i32, Vec<(TopicPartition, Batch)>> = BTreeMap::new();
        for partition in ready {
            match shared.client.known_leader(&partition) {
                Some((leader, _))
                    if self.in_flight.get(&leader).copied().unwrap_or(0)
                        < shared.options.in_flight_max =>
                {
                    let batch = shared.lock().take(&partition, &shared.options);
                    by_leader
                        .entry(leader)
                        .or_default()
                        .extend(batch.map(|batch| (partition, batch)));
                }
                // The answer to one of the requests in flight wakes us.
                Some(_) => {}
                None if self.reading.insert(partition.topic.clone()) => {
                    self.events.push(read_leaders(Arc::clone(shared), partition));
                }
                None => {}
            }
        }
        let any = !by_leader.is_empty();
        for (leader, batches) in by_leader {
            *self.in_flight.entry(leader).or_default() += 1;
            self.events.push(send(Arc::clone(shared), leader, batches));
        }
        any
    }

    fn take(&mut self, event: Event) {
        let shared = &self.shared;
        match event {
            Event::Sent { leader, outcomes } => {
                if let Some(count) = self.in_flight.get_mut(&leader) {
                    *count = count.saturating_sub(1);
                }
                let retry_at = Instant::now() + shared.client.options().retry_backoff;
                for (partition, batch, outcome) in outcomes {
                    if let Outcome::Failed(error) = &outcome {
                        tracing::debug!(%partition, %error, "batch not stored");
                        shared.client.forget_topic(&partition.topic);
                    }
                    shared.lock().settle(&partition, batch, outcome, &shared.options, retry_at);
                }
                shared.resolved.notify_waiters();
            }
            Event::LeadersRead { topic } => drop(self.reading.remove(&topic)),
            Event::NewId(result) => {
                self.taking_id = false;
                match result {
                    Ok(id) => shared.lock().set_id(id),
                    Err(error) => tracing::warn!(%error, "no new producer id; trying again"),
                }
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Asks for a producer id; a broker that is starting may not have one yet.
pub(super) async fn init_producer_id(
    client: &Client,
    deadline: Instant,
) -> Result<(i64, i16), Error> {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(None)
        .with_transaction_timeout_ms(i32::MAX)
        .with_producer_id((-1).into())
        .with_producer_epoch(-1);
    client
        .retrying_connects(deadline, deadline, || async {
            let response = client.call_any(&request, i16::MAX, deadline).await?;
            BrokerError::check(response.error_code, None)?;
            Ok((response.producer_id.0, response.producer_epoch))
        })
        .await
}

fn new_id(shared: Arc<Shared>) -> BoxFuture<'static, Event> {
    Box::pin(async move {
        let deadline = shared.client.request_deadline(shared.client.api_deadline());
        let result = init_producer_id(&shared.client, deadline).await;
        if result.is_err() {
            tokio::time::sleep(shared.client.options().retry_backoff).await;
        }
        Event::NewId(result)
    })
}

fn read_leaders(shared: Arc<Shared>, partition: TopicPartition) -> BoxFuture<'static, Event> {
    Box::pin(async move {
        let deadline = shared.client.request_deadline(shared.client.api_deadline());
        if let Err(error) = shared.client.leader(&partition, deadline).await {
            tracing::debug!(%partition, %error, "no leader yet");
            tokio::time::sleep(shared.client.options().retry_backoff).await;
        }
        Event::LeadersRead { topic: partition.topic }
    })
}

fn send(
    shared: Arc<Shared>,
    leader: i32,
    batches: Vec<(TopicPartition, Batch)>,
) -> BoxFuture<'static, Event> {
    Box::pin(async move {
        let answers = produce(&shared, leader, &batches).await;
        let outcomes = batches.into_iter().map(|(partition, batch)| {
            let outcome = match &answers {
                Err(error) => Outcome::Failed(error.clone()),
                Ok(answers) => match answers.get(&partition) {
                    Some(Ok(offset)) => Outcome::Stored(*offset),
                    Some(Err(error)) => Outcome::Failed(error.clone().into()),
                    None => Outcome::Failed(Error::Malformed {
                        address: format!("broker {leader}"),
                        reason: format!("Produce without an answer for {partition}"),
                    }),
                },
            };
            (partition, batch, outcome)
        });
        Event::Sent { leader, outcomes: outcomes.collect() }
    })
}

type Answers = BTreeMap<TopicPartition, Result<Option<i64>, BrokerError>>;

async fn produce(
    shared: &Shared,
    leader: i32,
    batches: &[(TopicPartition, Batch)],
) -> Result<Answers, Error> {
    let client = &shared.client;
    let mut topics: BTreeMap<&str, Vec<PartitionProduceData>> = BTreeMap::new();
    for (partition, batch) in batches {
        let data = PartitionProduceData::default()
            .with_index(partition.partition)
            .with_records(Some(batch.encoded()));
        topics.entry(&partition.topic).or_default().push(data);
    }
    let topics = topics.into_iter().map(|(name, data)| {
        TopicProduceData::default().with_name(topic_name(name)).with_partition_data(data)
    });
    let acks = match shared.options.acks {
        Acks::None => 0,
        Acks::Leader => 1,
        Acks::All => -1,
    };
    let request = ProduceRequest::default()
        .with_acks(acks)
        .with_timeout_ms(client.timeout_ms())
        .with_topic_data(topics.collect());
    let deadline = client.request_deadline(Instant::now() + shared.options.delivery_timeout);
    let connection = client.node(leader, Lane::Main).await?;
    let version = connection.version_of::<ProduceRequest>(i16::MAX)?;
    if shared.options.acks == Acks::None {
        connection.send_only(&request, version, deadline).await?;
        return Ok(batches.iter().map(|(partition, _)| (partition.clone(), Ok(None))).gather());
    }
    let response = connection.call(&request, version, deadline).await?;
    let answers = response.responses.iter().flat_map(|topic| {
        topic.partition_responses.iter().map(|row| {
            let partition = TopicPartition::new(topic.name.0.to_string(), row.index);
            let answer = BrokerError::check(row.error_code, row.error_message.as_deref());
            (partition, answer.map(|()| (row.base_offset >= 0).then_some(row.base_offset)))
        })
    });
    Ok(answers.gather())
}
