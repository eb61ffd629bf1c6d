//! [`KafkaAdmin`] through the Kafka client.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use letterbox_client::{
    AlterOp, BrokerError, Client, ClientOptions, ConfigResource, ConfigSource, Error, ErrorCode,
    TopicPartition,
};
use letterbox_env::{BoxFuture, Env, Gather};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::replicas::{Replicas, placed};
use super::{AdminError, KafkaAdmin, NewTopic, Topic};

/// A cluster behind its bootstrap address. Connects when first asked and again after a fault.
pub struct ClientAdmin {
    env: Env,
    bootstrap: String,
    /// How long a call may take with all its retries.
    timeout: Duration,
    client: Mutex<Option<Client>>,
    /// What it is asked, and what it is asked to change: a broker whose disk hangs answers the one
    /// and not the other.
    reads: Kind,
    changes: Kind,
    /// The requests to make topics that may still be carried out, by the topic's name.
    asked: std::sync::Mutex<BTreeMap<String, Asked>>,
}

/// Calls of one kind.
#[derive(Default)]
struct Kind {
    /// Since when they are not answered; `None` while they are.
    failure: std::sync::Mutex<Option<Failure>>,
    /// Held by the one call that finds out whether they are answered again.
    tries: Mutex<()>,
}

/// Requests to make a topic.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    /// How many are on their way.
    on_way: u32,
    /// When the last one that was never answered was given up.
    given_up: Option<Instant>,
}

/// So many partitions of a topic are begun to be moved with one request.
const MOVES_MAX: usize = 1000;

/// The replicas that the partitions of `topic` have, or are to have where they move; and how many
/// move. A move ends as soon as all that is to stay is in sync, so that nobody is asked about a topic
/// whose replicas all are.
async fn targets(
    client: &Client,
    topic: &letterbox_client::Topic,
) -> Result<(BTreeMap<i32, Replicas>, usize), Error> {
    let is_behind = |it: &letterbox_client::Partition| it.isr.len() < it.replicas.len();
    let behind = topic.partitions.values().filter(|it| is_behind(it));
    let behind = behind.map(|it| TopicPartition::new(topic.name.clone(), it.index));
    let behind: Vec<TopicPartition> = behind.collect();
    let mut moving = match behind.is_empty() {
        true => BTreeMap::new(),
        false => client.partition_reassignments(Some(&behind)).await?,
    };
    let count = moving.len();
    let replicas = topic.partitions.values().map(|it| {
        let moves = moving.remove(&TopicPartition::new(topic.name.clone(), it.index));
        let all = match moves {
            Some(moves) => {
                let stays = |id: &i32| !moves.removing.contains(id);
                moves.replicas.iter().copied().filter(stays).collect()
            }
            None => it.replicas.clone(),
        };
        (it.index, Replicas { all, in_sync: it.isr.clone() })
    });
    Ok((replicas.gather(), count))
}

/// How long a request that was never answered may still be carried out: the broker gives one up
/// after the time that the request names, which is shorter.
pub(crate) const UNANSWERED: Duration = Duration::from_secs(30);

impl Asked {
    fn may_come(self) -> bool {
        self.on_way > 0 || self.given_up.is_some_and(|at| at.elapsed() < UNANSWERED)
    }
}

/// Topics that are about to be asked for, or are; until this is dropped.
pub(crate) struct Asking<'a> {
    admin: &'a ClientAdmin,
    names: Vec<String>,
    /// Whether no request is on its way any more that nobody has heard of.
    is_answered: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let given_up = (!self.is_answered).then(Instant::now);
        let mut all = self.admin.asked.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &self.names {
            if let Some(asked) = all.get_mut(name) {
                asked.on_way = asked.on_way.saturating_sub(1);
                asked.given_up = given_up.or(asked.given_up);
            }
        }
        all.retain(|_, asked| asked.may_come());
    }
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
    /// A cluster at `bootstrap` (`host:port`, separated by commas), each call ending within
    /// `timeout`. Nothing is connected yet.
    #[must_use]
    pub fn new(env: Env, bootstrap: String, timeout: Duration) -> Self {
        Self {
            env,
            bootstrap,
            timeout,
            client: Mutex::new(None),
            reads: Kind::default(),
            changes: Kind::default(),
            asked: std::sync::Mutex::default(),
        }
    }

    /// Whether a topic of this name may still come, because a request to make it is on its way or
    /// was never answered. Ask this before you look whether the topic is there: a request that is
    /// answered in between has made it then.
    #[must_use]
    pub fn may_come(&self, name: &str) -> bool {
        let all = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(name).copied().is_some_and(Asked::may_come)
    }

    /// Notes that these topics are about to be asked for, so that whoever looks from now on knows
    /// it, also before the request is sent.
    pub(crate) fn asking<'a>(&self, names: impl Iterator<Item = &'a String>) -> Asking<'_> {
        let names: Vec<String> = names.cloned().collect();
        let mut all = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        names.iter().for_each(|name| all.entry(name.clone()).or_default().on_way += 1);
        drop(all);
        Asking { admin: self, names, is_answered: true }
    }

    /// The connections for a call; `tries` says that it is the one that finds out whether calls of
    /// its kind are answered again.
    async fn client(&self, kind: &Kind, tries: bool) -> Result<Client, AdminError> {
        let mut slot = self.client.lock().await;
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        // The call that was here before has found out.
        if let Some(failure) = kind.failure().filter(|_| !tries) {
            return Err(AdminError::Unreachable(failure.why));
        }
        let options = ClientOptions {
            client_id: "letterbox-operator".to_owned(),
            request_timeout: self.timeout,
            api_timeout: self.timeout,
            ..ClientOptions::default()
        };
        let bootstrap: Vec<String> = self.bootstrap.split(',').map(ToOwned::to_owned).collect();
        let connected = Client::connect(self.env.clone(), &bootstrap, options).await;
        if connected.is_err() {
            kind.note(&connected);
        }
        let client = connected.map_err(told)?;
        *slot = Some(client.clone());
        Ok(client)
    }

    /// How long the cluster has not answered what it is asked, and what the first call met; `None`
    /// while it answers.
    #[must_use]
    pub fn silence(&self) -> Option<(Duration, String)> {
        self.reads.failure().map(|failure| (failure.since.elapsed(), failure.why))
    }

    async fn make(&self, topics: &[NewTopic]) -> Result<Vec<Result<(), AdminError>>, AdminError> {
        self.call(&self.changes, async |client: &Client| {
            let wanted = topics.iter().map(|topic| letterbox_client::NewTopic {
                name: topic.name.clone(),
                partitions: topic.partitions,
                replication_factor: topic.replicas.and_then(|it| i16::try_from(it).ok()),
                assignments: BTreeMap::new(),
                configs: topic.config.clone(),
            });
            let mut outcomes = client.create_topics(&wanted.collect::<Vec<_>>(), false).await?;
            let outcome =
                |topic: &NewTopic| one(outcomes.remove(&topic.name)).map(drop).map_err(told);
            Ok(topics.iter().map(outcome).collect())
        })
        .await
    }

    /// Runs `call`; after a fault of the connection the next call makes a new one. While calls of
    /// its kind are not answered one at a time is made, after a pause: the topics of a cluster, and
    /// of every other one, share the passes that run at a time.
    async fn call<T>(
        &self,
        kind: &Kind,
        call: impl AsyncFnOnce(&Client) -> Result<T, Error>,
    ) -> Result<T, AdminError> {
        let failure = kind.failure();
        let tries = match (&failure, kind.tries.try_lock()) {
            (None, _) => None,
            (Some(failure), Ok(tries)) if failure.asked.elapsed() >= failure.pause() => Some(tries),
            (Some(failure), _) => return Err(AdminError::Unreachable(failure.why.clone())),
        };
        let client = self.client(kind, tries.is_some()).await?;
        let result = call(&client).await;
        kind.note(&result);
        let result = result.map_err(told);
        if matches!(result, Err(AdminError::Unreachable(_))) {
            *self.client.lock().await = None;
        }
        result
    }
}

impl Kind {
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
}

impl KafkaAdmin for ClientAdmin {
    fn cluster_id(&self) -> BoxFuture<'_, Result<Option<String>, AdminError>> {
        Box::pin(self.call(&self.reads, async |client: &Client| {
            Ok(Some(client.describe_cluster().await?.cluster_id).filter(|id| !id.is_empty()))
        }))
    }

    fn describe_topic<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Topic>, AdminError>> {
        Box::pin(self.call(&self.reads, async move |client: &Client| {
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
            let (replicas, moving) = targets(client, topic).await?;
            let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
            let most = replicas.values().map(|it| it.all.len()).max().unwrap_or(0);
            let fewer = replicas.values().filter(|it| it.all.len() < most).count();
            Ok(Some(Topic {
                id: letterbox_client::encode_uuid(topic.id),
                partitions: count(topic.partitions.len()),
                replicas: count(most),
                fewer: count(fewer),
                moving: count(moving),
                config: own.filter_map(|entry| Some((entry.name, entry.value?))).gather(),
            }))
        }))
    }

    fn create_topics<'a>(
        &'a self,
        topics: &'a [NewTopic],
    ) -> BoxFuture<'a, Result<Vec<Result<(), AdminError>>, AdminError>> {
        Box::pin(async move {
            let mut asking = self.asking(topics.iter().map(|topic| &topic.name));
            asking.is_answered = false;
            let made = self.make(topics).await;
            let is_open = |outcome: &Result<(), AdminError>| {
                matches!(outcome, Err(AdminError::Unreachable(_)))
            };
            asking.is_answered = match &made {
                Ok(outcomes) => !outcomes.iter().any(is_open),
                Err(error) => !matches!(error, AdminError::Unreachable(_)),
            };
            made
        })
    }

    fn create_partitions<'a>(
        &'a self,
        name: &'a str,
        total: i32,
    ) -> BoxFuture<'a, Result<(), AdminError>> {
        Box::pin(self.call(&self.changes, async move |client: &Client| {
            let mut outcomes = client
                .create_partitions(&BTreeMap::from([(name.to_owned(), (total, None))]))
                .await?;
            one(outcomes.remove(name))
        }))
    }

    fn change_replicas<'a>(
        &'a self,
        name: &'a str,
        replicas: i32,
    ) -> BoxFuture<'a, Result<(), AdminError>> {
        Box::pin(self.call(&self.changes, async move |client: &Client| {
            let metadata = client.metadata(Some(&[name.to_owned()])).await?;
            let Some(topic) = metadata.topics.get(name) else { return Ok(()) };
            let (known, _) = targets(client, topic).await?;
            let racks = metadata.brokers.iter().map(|(id, broker)| (*id, broker.rack.clone()));
            let wanted = usize::try_from(replicas).unwrap_or(1).max(1);
            let Some(moves) = placed(&known, &racks.gather(), wanted) else {
                let (code, serve) = (ErrorCode::InvalidReplicationFactor, metadata.brokers.len());
                let message = format!("{serve} brokers serve now, and {wanted} are needed");
                return Err(BrokerError { code, message: Some(message) }.into());
            };
            let moves = moves.into_iter().take(MOVES_MAX).map(|(partition, replicas)| {
                (TopicPartition::new(name.to_owned(), partition), Some(replicas))
            });
            let outcomes = client.alter_partition_reassignments(&moves.gather(), true).await?;
            Ok(outcomes.into_values().collect::<Result<(), BrokerError>>()?)
        }))
    }

    fn alter_topic_config<'a>(
        &'a self,
        name: &'a str,
        changes: &'a BTreeMap<String, Option<String>>,
    ) -> BoxFuture<'a, Result<(), AdminError>> {
        Box::pin(self.call(&self.changes, async move |client: &Client| {
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
        Box::pin(self.call(&self.changes, async move |client: &Client| {
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

    #[tokio::test(start_paused = true)]
    async fn a_topic_may_come_until_its_request_is_answered_or_long_past() {
        let nowhere = ClientAdmin::new(Env::real(), "127.0.0.1:1".into(), Duration::from_secs(1));
        let topics = [NewTopic { name: "a".into(), ..NewTopic::default() }];
        let names = ["a".to_owned(), "b".to_owned()];
        let about = nowhere.asking(names.iter());
        assert!(nowhere.may_come("a") && nowhere.may_come("b") && !nowhere.may_come("c"));
        drop(about);
        assert!(!nowhere.may_come("a"), "it was not asked for after all");
        assert!(nowhere.create_topics(&topics).await.is_err());
        assert!(nowhere.may_come("a"), "nobody knows what became of the request");
        tokio::time::advance(UNANSWERED).await;
        assert!(!nowhere.may_come("a"));
        // One that is dropped on its way was never answered either.
        let on_way = tokio::time::timeout(Duration::ZERO, nowhere.create_topics(&topics)).await;
        assert!(on_way.is_err() && nowhere.may_come("a"));
    }

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
