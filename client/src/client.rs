//! Connections to a cluster, what is known about it, and whom to ask for what.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{FindCoordinatorRequest, MetadataRequest, TopicName};
use kafka_protocol::protocol::{Request, StrBytes};
use letterbox_env::{Env, Gather};
use letterbox_protocol::ErrorCode;
use tokio::time::Instant;

use crate::connection::Connection;
use crate::error::{BrokerError, Error};
use crate::metadata::{Broker, Metadata, TopicPartition};

/// How a client behaves. The defaults are Kafka's where Kafka has the option.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// `client.id`.
    pub client_id: String,
    /// How long one connection attempt may take, and the first answer on it.
    pub connect_timeout: Duration,
    /// For how long connecting is tried again when nobody answers, by [`Client::connect`] and by
    /// later calls; zero: one try per address. Producers and consumers that are under way wait
    /// longer: until `delivery.timeout.ms`, or for ever.
    pub connect_wait: Duration,
    /// `request.timeout.ms`: how long one request may take before its connection is given up.
    pub request_timeout: Duration,
    /// `default.api.timeout.ms`: how long a call may take with all its retries.
    pub api_timeout: Duration,
    /// `retry.backoff.ms`.
    pub retry_backoff: Duration,
    /// `metadata.max.age.ms`: how long leaders are remembered.
    pub metadata_max_age: Duration,
    /// The largest response that is accepted, in bytes.
    pub response_bytes_max: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            client_id: "letterbox".to_owned(),
            connect_timeout: Duration::from_secs(1),
            connect_wait: Duration::ZERO,
            request_timeout: Duration::from_secs(30),
            api_timeout: Duration::from_secs(60),
            retry_backoff: Duration::from_millis(100),
            metadata_max_age: Duration::from_secs(300),
            response_bytes_max: 128 << 20,
        }
    }
}

/// Requests that may wait long in the broker have a connection of their own, so that others do not
/// wait behind them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    Main,
    Fetch,
    Group,
}

/// A client of one cluster. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    env: Env,
    options: ClientOptions,
    bootstrap: Vec<String>,
    state: Mutex<State>,
    /// Held while a connection is being made, so that concurrent callers share it.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    any: Option<Arc<Connection>>,
    nodes: BTreeMap<(i32, Lane), Arc<Connection>>,
    brokers: BTreeMap<i32, Broker>,
    topics: BTreeMap<String, KnownTopic>,
    coordinators: BTreeMap<String, i32>,
}

struct KnownTopic {
    read_at: Instant,
    /// Leader and leader epoch by partition; `None` without a leader.
    leaders: BTreeMap<i32, Option<(i32, i32)>>,
}

impl Client {
    /// Connects to the first address of `bootstrap` (each `host:port`) that answers.
    ///
    /// # Errors
    /// [`Error::Connect`] when none does, naming all of them; [`Error::Address`].
    pub async fn connect(
        env: Env,
        bootstrap: &[String],
        options: ClientOptions,
    ) -> Result<Self, Error> {
        for address in bootstrap {
            crate::connection::split_address(address)?;
        }
        if bootstrap.is_empty() {
            return Err(Error::Address { address: String::new() });
        }
        let give_up = Instant::now() + options.connect_wait;
        let inner = Inner {
            env,
            options,
            bootstrap: bootstrap.to_vec(),
            state: Mutex::default(),
            connecting: tokio::sync::Mutex::new(()),
        };
        let client = Self { inner: Arc::new(inner) };
        loop {
            match client.any().await {
                Ok(_) => return Ok(client),
                Err(error) if error.is_retriable() && Instant::now() < give_up => {
                    tokio::time::sleep(client.options().retry_backoff).await
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// How this client behaves.
    #[must_use]
    pub fn options(&self) -> &ClientOptions {
        &self.inner.options
    }

    /// The world this client runs in.
    #[must_use]
    pub fn env(&self) -> &Env {
        &self.inner.env
    }

    /// Reads the state of `topics`, or of all topics, and remembers who leads what.
    ///
    /// A topic that does not exist is in the answer with its error. Never creates a topic.
    ///
    /// # Errors
    /// When no broker answers in time.
    pub async fn metadata(&self, topics: Option<&[String]>) -> Result<Metadata, Error> {
        self.read_metadata(topics, false, self.api_deadline()).await
    }

    /// As [`Client::metadata`] of one topic, asking the broker to create it when its settings allow
    /// that.
    ///
    /// # Errors
    /// When no broker answers in time.
    pub async fn metadata_creating(&self, topic: &str) -> Result<Metadata, Error> {
        self.read_metadata(Some(&[topic.to_owned()]), true, self.api_deadline()).await
    }

    pub(crate) async fn read_metadata(
        &self,
        topics: Option<&[String]>,
        create: bool,
        deadline: Instant,
    ) -> Result<Metadata, Error> {
        let wanted = topics.map(|topics| {
            let wanted = topics
                .iter()
                .map(|name| MetadataRequestTopic::default().with_name(Some(topic_name(name))));
            wanted.collect()
        });
        let request =
            MetadataRequest::default().with_topics(wanted).with_allow_auto_topic_creation(create);
        let response = self.call_any(&request, i16::MAX, deadline).await?;
        if let Some(code) = ErrorCode::of_answer(response.error_code) {
            return Err(BrokerError { code, message: None }.into());
        }
        let metadata = Metadata::from(response);
        self.remember(&metadata);
        Ok(metadata)
    }

    pub(crate) fn api_deadline(&self) -> Instant {
        Instant::now() + self.inner.options.api_timeout
    }

    /// The leader of `partition` and its epoch, from memory or by asking.
    ///
    /// Errors are the broker's for the topic or partition; `LEADER_NOT_AVAILABLE` without a leader.
    pub(crate) async fn leader(
        &self,
        partition: &TopicPartition,
        deadline: Instant,
    ) -> Result<(i32, i32), Error> {
        if let Some(leader) = self.known_leader(partition) {
            return Ok(leader);
        }
        let metadata = self
            .read_metadata(Some(std::slice::from_ref(&partition.topic)), false, deadline)
            .await?;
        let refuse = |code| Error::from(BrokerError { code, message: None });
        let topic = metadata
            .topics
            .get(&partition.topic)
            .ok_or_else(|| refuse(ErrorCode::UnknownTopicOrPartition))?;
        if let Some(code) = topic.error {
            return Err(refuse(code));
        }
        let found = topic
            .partitions
            .get(&partition.partition)
            .ok_or_else(|| refuse(ErrorCode::UnknownTopicOrPartition))?;
        match found.leader {
            Some(leader) => Ok((leader, found.leader_epoch)),
            None => Err(refuse(found.error.unwrap_or(ErrorCode::LeaderNotAvailable))),
        }
    }

    /// The partitions of `topic` that are known, lowest first, with whether each has a leader.
    pub(crate) fn known_partitions(&self, topic: &str) -> Option<Vec<(i32, bool)>> {
        let state = self.lock();
        let known = state.topics.get(topic)?;
        if known.read_at.elapsed() > self.inner.options.metadata_max_age || known.leaders.is_empty()
        {
            return None;
        }
        Some(
            known
                .leaders
                .iter()
                .map(|(partition, leader)| (*partition, leader.is_some()))
                .collect(),
        )
    }

    /// Forgets who leads the partitions of `topic`; the next caller asks again.
    pub(crate) fn forget_topic(&self, topic: &str) {
        self.lock().topics.remove(topic);
    }

    /// Forgets which broker coordinates `group`.
    pub(crate) fn forget_coordinator(&self, group: &str) {
        self.lock().coordinators.remove(group);
    }

    /// The broker that coordinates `group`.
    pub(crate) async fn coordinator(&self, group: &str, deadline: Instant) -> Result<i32, Error> {
        if let Some(id) = self.lock().coordinators.get(group) {
            return Ok(*id);
        }
        let key = StrBytes::from_string(group.to_owned());
        let response = self
            .retrying(deadline, async || {
                let connection = self.any().await?;
                let version = connection.version_of::<FindCoordinatorRequest>(i16::MAX)?;
                // From version 4 on several keys are asked for at once.
                let request = FindCoordinatorRequest::default();
                let request = if version < 4 {
                    request.with_key(key.clone())
                } else {
                    request.with_coordinator_keys(vec![key.clone()])
                };
                let response =
                    connection.call(&request, version, self.request_deadline(deadline)).await?;
                let (code, message, id, host, port) = match response.coordinators.first() {
                    Some(found) => (
                        found.error_code,
                        found.error_message.clone(),
                        found.node_id.0,
                        found.host.clone(),
                        found.port,
                    ),
                    None => (
                        response.error_code,
                        response.error_message.clone(),
                        response.node_id.0,
                        response.host.clone(),
                        response.port,
                    ),
                };
                BrokerError::check(code, message.as_deref())?;
                Ok(Broker { id, host: host.to_string(), port, rack: None })
            })
            .await?;
        let mut state = self.lock();
        state.coordinators.insert(group.to_owned(), response.id);
        let id = response.id;
        state.brokers.entry(id).or_insert(response);
        Ok(id)
    }

    /// Sends `request` to whichever broker is connected; retries within `deadline` when the
    /// connection ends or the broker's refusal of the whole request is temporary.
    pub(crate) async fn call_any<R: Request>(
        &self,
        request: &R,
        version_max: i16,
        deadline: Instant,
    ) -> Result<R::Response, Error> {
        self.retrying(deadline, async || {
            let connection = self.any().await?;
            let version = connection.version_of::<R>(version_max)?;
            connection.call(request, version, self.request_deadline(deadline)).await
        })
        .await
    }

    /// Sends `request` to broker `id` once.
    pub(crate) async fn call_node<R: Request>(
        &self,
        id: i32,
        lane: Lane,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, Error> {
        let connection = self.node(id, lane).await?;
        let version = connection.version_of::<R>(i16::MAX)?;
        connection.call(request, version, self.request_deadline(deadline)).await
    }

    /// Calls `attempt` until it succeeds, fails for good, or `deadline` passes; waits
    /// `retry.backoff.ms` in between.
    ///
    /// That nobody can be reached is a failure for good after [`ClientOptions::connect_wait`].
    pub(crate) async fn retrying<T, F: Future<Output = Result<T, Error>>>(
        &self,
        deadline: Instant,
        attempt: impl FnMut() -> F,
    ) -> Result<T, Error> {
        self.retrying_connects(deadline, Instant::now() + self.inner.options.connect_wait, attempt)
            .await
    }

    /// As [`Client::retrying`], but trying to connect until `connects_until`.
    pub(crate) async fn retrying_connects<T, F: Future<Output = Result<T, Error>>>(
        &self,
        deadline: Instant,
        connects_until: Instant,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, Error> {
        loop {
            let result = attempt().await;
            let again = Instant::now() + self.inner.options.retry_backoff;
            match &result {
                Err(Error::Connect { .. }) if again >= connects_until => return result,
                Err(error) if error.is_retriable() && again < deadline => {
                    tracing::debug!(%error, "retrying");
                    tokio::time::sleep(self.inner.options.retry_backoff).await;
                }
                _ => return result,
            }
        }
    }

    pub(crate) fn request_deadline(&self, deadline: Instant) -> Instant {
        deadline.min(Instant::now() + self.inner.options.request_timeout)
    }

    /// A connection to any broker.
    pub(crate) async fn any(&self) -> Result<Arc<Connection>, Error> {
        let _alone = self.inner.connecting.lock().await;
        {
            let state = self.lock();
            let open = state.any.iter().chain(
                state
                    .nodes
                    .iter()
                    .filter(|((_, lane), _)| *lane == Lane::Main)
                    .map(|(_, connection)| connection),
            );
            if let Some(connection) = open.into_iter().find(|connection| !connection.is_broken()) {
                return Ok(Arc::clone(connection));
            }
        }
        // The brokers that were seen last, after the addresses the user gave: pods come back
        // elsewhere.
        let mut addresses = self.inner.bootstrap.clone();
        addresses.extend(self.lock().brokers.values().map(Broker::address));
        let mut seen = std::collections::BTreeSet::new();
        addresses.retain(|address| seen.insert(address.clone()));
        let mut failures = Vec::new();
        for address in &addresses {
            match Connection::open(&self.inner.env, address, &self.inner.options).await {
                Ok(connection) => {
                    let connection = Arc::new(connection);
                    self.lock().any = Some(Arc::clone(&connection));
                    return Ok(connection);
                }
                Err(error) => failures.push((address, error)),
            }
        }
        let tried =
            failures.iter().map(|(address, _)| address.as_str()).collect::<Vec<_>>().join(", ");
        match failures.pop() {
            Some((_, Error::Connect { reason, .. })) => {
                Err(Error::Connect { address: tried, reason })
            }
            Some((_, error)) => Err(error),
            None => Err(Error::Address { address: String::new() }),
        }
    }

    /// A connection to broker `id`.
    pub(crate) async fn node(&self, id: i32, lane: Lane) -> Result<Arc<Connection>, Error> {
        let open = |state: &State| {
            state
                .nodes
                .get(&(id, lane))
                .filter(|connection| !connection.is_broken())
                .map(Arc::clone)
        };
        if let Some(connection) = open(&self.lock()) {
            return Ok(connection);
        }
        let known = self.lock().brokers.get(&id).map(Broker::address);
        let address = match known {
            Some(address) => address,
            None => {
                let metadata = self.read_metadata(Some(&[]), false, self.api_deadline()).await?;
                let broker = metadata.brokers.get(&id).map(Broker::address);
                broker.ok_or(BrokerError {
                    code: ErrorCode::LeaderNotAvailable,
                    message: Some(format!("broker {id} is not available")),
                })?
            }
        };
        let _alone = self.inner.connecting.lock().await;
        {
            let mut state = self.lock();
            if let Some(connection) = open(&state) {
                return Ok(connection);
            }
            // The first connection often goes to the broker that is wanted: no second one then.
            if lane == Lane::Main
                && let Some(any) = state.any.clone()
                && !any.is_broken()
                && any.address() == address
            {
                state.nodes.insert((id, lane), Arc::clone(&any));
                return Ok(any);
            }
        }
        match Connection::open(&self.inner.env, &address, &self.inner.options).await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                self.lock().nodes.insert((id, lane), Arc::clone(&connection));
                Ok(connection)
            }
            Err(error) => {
                // It may have moved to another address: ask again next time.
                self.lock().brokers.remove(&id);
                Err(error)
            }
        }
    }

    pub(crate) fn known_leader(&self, partition: &TopicPartition) -> Option<(i32, i32)> {
        let state = self.lock();
        let known = state.topics.get(&partition.topic)?;
        if known.read_at.elapsed() > self.inner.options.metadata_max_age {
            return None;
        }
        *known.leaders.get(&partition.partition)?
    }

    fn remember(&self, metadata: &Metadata) {
        let mut state = self.lock();
        state.brokers.clone_from(&metadata.brokers);
        let read_at = Instant::now();
        for (name, topic) in &metadata.topics {
            if topic.error.is_some() {
                state.topics.remove(name);
                continue;
            }
            let leaders = topic
                .partitions
                .values()
                .map(|p| (p.index, p.leader.map(|leader| (leader, p.leader_epoch))));
            let known = KnownTopic { read_at, leaders: leaders.gather() };
            state.topics.insert(name.clone(), known);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

pub(crate) fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}
