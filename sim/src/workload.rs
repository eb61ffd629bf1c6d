//! Clients that load a cluster and write down what they saw: idempotent producers, consumers by
//! assignment, members of a group, and the scan of everything at the end. They use the `client`
//! crate through [`Env`].

mod broken;
mod churn;
mod committer;
mod member;
mod producer;
mod read_all;
mod reader;
mod scan;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use letterbox_client::{Client, ClientOptions, NewTopic};
use letterbox_env::Env;
use tokio::time::sleep;

pub use self::broken::{Broken, Hurt};
pub use self::churn::{Churned, churner};
pub use self::committer::committer;
pub use self::member::member;
pub use self::producer::producer;
pub use self::read_all::{Contents, read_all};
pub use self::reader::reader;
pub use self::scan::scan;
use crate::env::now;
use crate::history::{Action, Event, History, Phase};

/// How long a client waits after an error before it begins anew.
const PAUSE: Duration = Duration::from_millis(50);

/// After an answer that did not come, the broker has carried the request out by then, or never
/// will: no fault of the simulation delays one for longer.
const SETTLED: Duration = Duration::from_secs(6);

/// What all clients of one run share.
#[derive(Clone)]
pub struct Load {
    /// Their outside world.
    pub env: Env,
    /// Where the cluster is: some of its brokers.
    pub bootstrap: Vec<String>,
    /// The topic, with this many partitions.
    pub topic: String,
    /// Partitions of the topic.
    pub partitions: i32,
    /// Where they write down what they saw.
    pub history: History,
    /// Set to let them end.
    pub stop: Arc<AtomicBool>,
}

impl Load {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A client with deadlines that fit simulated clusters, however long it takes to get one.
    async fn client(&self) -> Option<Client> {
        while !self.is_over() {
            if let Ok(client) = Client::connect(self.env.clone(), &self.bootstrap, options()).await
            {
                return Some(client);
            }
            sleep(PAUSE).await;
        }
        None
    }

    /// Makes the topic; returns once it is there.
    ///
    /// # Errors
    /// When the load was ended before.
    pub async fn create_topic(&self, configs: BTreeMap<String, String>) -> Result<(), String> {
        let client = self.client().await.ok_or("stopped before there was a cluster")?;
        let topic = NewTopic {
            name: self.topic.clone(),
            partitions: Some(self.partitions),
            configs,
            ..NewTopic::default()
        };
        while !self.is_over() {
            match client.create_topics(std::slice::from_ref(&topic), false).await {
                Ok(outcomes) => match outcomes.get(&self.topic) {
                    Some(Ok(_)) => return Ok(()),
                    Some(Err(error))
                        if error.code == letterbox_client::ErrorCode::TopicAlreadyExists =>
                    {
                        return Ok(());
                    }
                    outcome => tracing::debug!(?outcome, "the topic is not there yet"),
                },
                Err(error) => tracing::debug!(%error, "the topic is not there yet"),
            }
            sleep(PAUSE).await;
        }
        Err("stopped before the topic was there".to_owned())
    }
}

fn options() -> ClientOptions {
    ClientOptions {
        connect_timeout: Duration::from_millis(300),
        request_timeout: Duration::from_secs(2),
        api_timeout: Duration::from_secs(5),
        retry_backoff: Duration::from_millis(50),
        ..ClientOptions::default()
    }
}

/// One process of the history: numbers its operations and writes them down.
struct Scribe {
    history: History,
    process: String,
    op: u64,
}

impl Scribe {
    fn new(load: &Load, process: String) -> Self {
        Self { history: load.history.clone(), process, op: 0 }
    }

    /// Writes down that an operation begins; the answer is its number.
    fn begin(&mut self, action: Action) -> u64 {
        self.op += 1;
        self.write(self.op, Phase::Invoke, action, None);
        self.op
    }

    fn end(&self, op: u64, phase: Phase, action: Action, error: Option<String>) {
        self.write(op, phase, action, error);
    }

    /// An operation without a beginning of its own.
    fn note(&mut self, action: Action) {
        self.op += 1;
        self.write(self.op, Phase::Ok, action, None);
    }

    fn write(&self, op: u64, phase: Phase, action: Action, error: Option<String>) {
        let time_ns = u64::try_from(now().as_nanos()).unwrap_or(u64::MAX);
        self.history.push(Event {
            process: self.process.clone(),
            op,
            phase,
            time_ns,
            action,
            error,
        });
    }
}
