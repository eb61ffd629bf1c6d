//! Topics in memory, for whatever asks a Kafka cluster about them.

use std::collections::BTreeMap;
use std::sync::Mutex;

use letterbox_env::BoxFuture;
use letterbox_operator::admin::{AdminError, KafkaAdmin, NewTopic, Topic};

/// Topics in memory.
#[derive(Debug, Default)]
pub(crate) struct ModelAdmin {
    state: Mutex<AdminState>,
}

/// What the model's cluster holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AdminState {
    /// Topics, by name.
    pub(crate) topics: BTreeMap<String, Topic>,
    /// Whether nobody answers.
    pub(crate) unreachable: bool,
    /// How many topics were ever made.
    pub(crate) made: u32,
    /// How many calls changed something.
    pub(crate) changes: u32,
}

impl AdminState {
    fn create(&mut self, new: &NewTopic) -> Result<(), AdminError> {
        let refused = |code: &str, message: &str| {
            Err(AdminError::Refused { code: code.to_owned(), message: message.to_owned() })
        };
        if self.topics.contains_key(&new.name) {
            return refused("TOPIC_ALREADY_EXISTS", "");
        }
        if new.config.values().any(|value| value == "nonsense") {
            return refused("INVALID_CONFIG", "nonsense");
        }
        self.made += 1;
        self.changes += 1;
        let topic = Topic {
            id: format!("id-{}", self.made),
            partitions: new.partitions.unwrap_or(1),
            replicas: new.replicas.unwrap_or(1),
            fewer: 0,
            moving: 0,
            config: new.config.clone(),
        };
        self.topics.insert(new.name.clone(), topic);
        Ok(())
    }
}

impl ModelAdmin {
    /// Looks at the cluster, or changes it behind the operator's back.
    ///
    /// # Panics
    /// When a call before this one panicked.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut AdminState) -> T) -> T {
        f(&mut self.state.lock().expect("no caller panics while it holds the model"))
    }

    fn call<'a, T: Send + 'a>(
        &self,
        f: impl FnOnce(&mut AdminState) -> Result<T, AdminError>,
    ) -> BoxFuture<'a, Result<T, AdminError>> {
        let result = self.with(|state| {
            if state.unreachable {
                Err(AdminError::Unreachable("refused".to_owned()))
            } else {
                f(state)
            }
        });
        Box::pin(std::future::ready(result))
    }

    fn change<'a>(
        &self,
        name: &str,
        f: impl FnOnce(&mut Topic),
    ) -> BoxFuture<'a, Result<(), AdminError>> {
        self.call(|state| {
            state.changes += 1;
            let unknown = || AdminError::Refused {
                code: "UNKNOWN_TOPIC_OR_PARTITION".to_owned(),
                message: String::new(),
            };
            f(state.topics.get_mut(name).ok_or_else(unknown)?);
            Ok(())
        })
    }
}

impl KafkaAdmin for ModelAdmin {
    fn cluster_id(&self) -> BoxFuture<'_, Result<Option<String>, AdminError>> {
        self.call(|_| Ok(Some("model".to_owned())))
    }

    fn describe_topic<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Topic>, AdminError>> {
        self.call(|state| Ok(state.topics.get(name).cloned()))
    }

    fn create_topics<'a>(
        &'a self,
        topics: &'a [NewTopic],
    ) -> BoxFuture<'a, Result<Vec<Result<(), AdminError>>, AdminError>> {
        self.call(|state| Ok(topics.iter().map(|topic| state.create(topic)).collect()))
    }

    fn create_partitions<'a>(
        &'a self,
        name: &'a str,
        total: i32,
    ) -> BoxFuture<'a, Result<(), AdminError>> {
        self.change(name, |topic| topic.partitions = total)
    }

    fn change_replicas<'a>(
        &'a self,
        name: &'a str,
        replicas: i32,
    ) -> BoxFuture<'a, Result<(), AdminError>> {
        self.change(name, |topic| {
            (topic.replicas, topic.fewer, topic.moving) = (replicas, 0, topic.partitions);
        })
    }

    fn alter_topic_config<'a>(
        &'a self,
        name: &'a str,
        changes: &'a BTreeMap<String, Option<String>>,
    ) -> BoxFuture<'a, Result<(), AdminError>> {
        self.change(name, |topic| {
            for (key, value) in changes {
                match value {
                    Some(value) => topic.config.insert(key.clone(), value.clone()),
                    None => topic.config.remove(key),
                };
            }
        })
    }

    fn delete_topic<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), AdminError>> {
        self.call(|state| {
            state.changes += 1;
            state.topics.remove(name);
            Ok(())
        })
    }
}
