//! [`KafkaAdmin`] through the Kafka client.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use letterbox_client::{
    AlterOp, BrokerError, Client, ClientOptions, ConfigResource, ConfigSource, Error, ErrorCode,
};
use letterbox_env::{BoxFuture, Env};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{AdminError, KafkaAdmin, NewTopic, Topic};

/// A cluster behind its bootstrap address. Connects when first asked and again after a fault.
pub struct ClientAdmin {
    env: Env,
    bootstrap: String,
    /// How long a call may take with all its retries.
    timeout: Duration,
    client: Mutex<Option<Client>>,
    /// Since when it does not answer; `None` while it does.
    failure: std::sync::Mutex<Option<Failure>>,
}

/// A time in which the cluster did not answer.
#[derive(Clone, Debug)]
struct Failure {
    since: Instant,
    /// What the first call met.
    why: String,
    /// When it was last asked.
    asked: Instant,
    /// How often it was asked in vain.
    times: u32,
}

impl Failure {
    /// How long it is not asked again: its topics, and those of every other cluster, share the
    /// passes that run at a time.
    fn pause(&self) -> Duration {
        PAUSE_MIN.saturating_mul(1 << self.times.saturating_sub(1).min(16)).min(PAUSE_MAX)
    }
}

/// The pause after the first failure: a cluster that has just started is asked again soon.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(3);

impl ClientAdmin {
    /// A cluster at `bootstrap` (`host:port`), each call ending within `timeout`. Nothing is
    /// connected yet.
    #[must_use]
    pub fn new(env: Env, bootstrap: String, timeout: Duration) -> Self {
        Self {
            env,
            bootstrap,
            timeout,
            client: Mutex::new(None),
            failure: std::sync::Mutex::default(),
        }
    }

    async fn client(&self) -> Result<Client, AdminError> {
        let mut slot = match (self.client.try_lock(), self.failure()) {
            (Ok(slot), _) => slot,
            (Err(_), None) => self.client.lock().await,
            // Another call finds out already whether it answers again.
            (Err(_), Some(Failure { why, .. })) => return Err(AdminError::Unreachable(why)),
        };
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        if let Some(failure) =
            self.failure().filter(|failure| failure.asked.elapsed() < failure.pause())
        {
            return Err(AdminError::Unreachable(failure.why));
        }
        let options = ClientOptions {
            client_id: "letterbox-operator".to_owned(),
            request_timeout: self.timeout,
            api_timeout: self.timeout,
            ..ClientOptions::default()
        };
        let connected =
            Client::connect(self.env.clone(), std::slice::from_ref(&self.bootstrap), options).await;
        self.note(&connected);
        let client = connected.map_err(told)?;
        *slot = Some(client.clone());
        Ok(client)
    }

    /// How long the cluster has not answered, and what the first call met; `None` while it answers.
    #[must_use]
    pub fn silence(&self) -> Option<(Duration, String)> {
        self.failure().map(|failure| (failure.since.elapsed(), failure.why))
    }

    fn failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers whether it answered, be it with an error.
    fn note<T>(&self, result: &Result<T, Error>) {
        let now = Instant::now();
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        *failure = match (result, failure.take()) {
            (Ok(_) | Err(Error::Broker(_)), _) => None,
            (Err(_), Some(known)) => {
                Some(Failure { asked: now, times: known.times.saturating_add(1), ..known })
            }
            (Err(error), None) => {
                Some(Failure { since: now, why: error.to_string(), asked: now, times: 1 })
            }
        };
    }

    /// Runs `call`; after a fault of the connection the next call makes a new one.
    async fn call<T>(
        &self,
        call: impl AsyncFnOnce(&Client) -> Result<T, Error>,
    ) -> Result<T, AdminError> {
        let client = self.client().await?;
        let result = call(&client).await;
        self.note(&result);
        let result = result.map_err(told);
        if matches!(result, Err(AdminError::Unreachable(_))) {
            *self.client.lock().await = None;
        }
        result
    }
}

impl KafkaAdmin for ClientAdmin {
    fn cluster_id(&self) -> BoxFuture<'_, Result<Option<String>, AdminError>> {
        Box::pin(self.call(async |client: &Client| {
            Ok(Some(client.describe_cluster().await?.cluster_id).filter(|id| !id.is_empty()))
        }))
    }

    fn describe_topic<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Topic>, AdminError>> {
        Box::pin(self.call(async move |client: &Client| {
            let metadata = client.metadata(Some(&[name.to_owned()])).await?;
            let Some(topic) = metadata.topics.get(name) else { return Ok(None) };
            match topic.error {
                None | Some(ErrorCode::LeaderNotAvailable) => {}
                Some(ErrorCode::UnknownTopicOrPartition) => return Ok(None),
                Some(code) => return Err(BrokerError { code, message: None }.into()),
            }
            let resource = ConfigResource::topic(name);
            let mut configs =
                client.describe_configs(std::slice::from_ref(&resource), None, false).await?;
            let entries = match configs.remove(&resource) {
                Some(Ok(entries)) => entries,
                // Deleted between the two calls.
                Some(Err(BrokerError { code: ErrorCode::UnknownTopicOrPartition, .. })) => {
                    return Ok(None);
                }
                Some(Err(error)) => return Err(error.into()),
                None => {
                    return Err(Error::Invalid(
                        "the broker left the topic out of its answer".to_owned(),
                    ));
                }
            };
            let own = entries
                .into_iter()
                .filter(|entry| entry.source == ConfigSource::DYNAMIC_TOPIC_CONFIG);
            Ok(Some(Topic {
                id: letterbox_client::encode_uuid(topic.id),
                partitions: i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX),
                replicas: topic
                    .partitions
                    .values()
                    .map(|p| i32::try_from(p.replicas.len()).unwrap_or(i32::MAX))
                    .max()
                    .unwrap_or(0),
                config: own.filter_map(|entry| Some((entry.name, entry.value?))).collect(),
            }))
        }))
    }

    fn create_topics<'a>(
        &'a self,
        topics: &'a [NewTopic],
    ) -> BoxFuture<'a, Result<Vec<Result<(), AdminError>>, AdminError>> {
        Box::pin(self.call(async move |client: &Client| {
            let wanted = topics.iter().map(|topic| letterbox_client::NewTopic {
                name: topic.name.clone(),
                partitions: topic.partitions,
                replication_factor: i16::try_from(topic.replicas).ok(),
                assignments: BTreeMap::new(),
                configs: topic.config.clone(),
            });
            let mut outcomes = client.create_topics(&wanted.collect::<Vec<_>>(), false).await?;
            let outcome =
                |topic: &NewTopic| one(outcomes.remove(&topic.name)).map(drop).map_err(told);
            Ok(topics.iter().map(outcome).collect())
        }))
    }

    fn create_partitions<'a>(
        &'a self,
        name: &'a str,
        total: i32,
    ) -> BoxFuture<'a, Result<(), AdminError>> {
        Box::pin(self.call(async move |client: &Client| {
            let mut outcomes = client
                .create_partitions(&BTreeMap::from([(name.to_owned(), (total, None))]))
                .await?;
            one(outcomes.remove(name))
        }))
    }

    fn alter_topic_config<'a>(
        &'a self,
        name: &'a str,
        changes: &'a BTreeMap<String, Option<String>>,
    ) -> BoxFuture<'a, Result<(), AdminError>> {
        Box::pin(self.call(async move |client: &Client| {
            let ops = changes.iter().map(|(key, value)| {
                (key.clone(), value.clone().map_or(AlterOp::Delete, AlterOp::Set))
            });
            let resource = ConfigResource::topic(name);
            let mut outcomes = client
                .incremental_alter_configs(
                    &BTreeMap::from([(resource.clone(), ops.collect())]),
                    false,
                )
                .await?;
            one(outcomes.remove(&resource))
        }))
    }

    fn delete_topic<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), AdminError>> {
        Box::pin(self.call(async move |client: &Client| {
            let mut outcomes = client.delete_topics(&[name.to_owned()]).await?;
            one(outcomes.remove(name))
        }))
    }
}

fn one<T>(outcome: Option<Result<T, BrokerError>>) -> Result<T, Error> {
    let missing = || Error::Invalid("the broker left the topic out of its answer".to_owned());
    Ok(outcome.ok_or_else(missing)??)
}

fn told(error: Error) -> AdminError {
    match error {
        Error::Broker(error)
            if !error.code.is_retriable() || error.code == ErrorCode::UnknownTopicOrPartition =>
        {
            AdminError::Refused {
                code: error.code.name().to_owned(),
                message: error.message.unwrap_or_default(),
            }
        }
        error => AdminError::Unreachable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cluster_that_does_not_answer_is_asked_once_and_not_by_every_topic() {
        let env = Env::real();
        let listener = env.net.bind("127.0.0.1", 0).await.unwrap();
        let bootstrap = listener.local_addr().unwrap().to_string();
        let accepted = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
        let count = accepted.clone();
        // Takes connections, and never says a word.
        let silent = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok(connection) = listener.accept().await {
                count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                open.push(connection);
            }
        });
        let admin = ClientAdmin::new(env, bootstrap, Duration::from_millis(200));
        let ask = async || {
            assert!(matches!(admin.describe_topic("a").await, Err(AdminError::Unreachable(_))))
        };
        ask().await;
        let tried = accepted.load(std::sync::atomic::Ordering::SeqCst);
        for _ in 0..10 {
            ask().await;
        }
        assert!(tried > 0);
        assert_eq!(accepted.load(std::sync::atomic::Ordering::SeqCst), tried);
        silent.abort();
    }
}
