//! Topics in memory, for whatever asks a Kafka cluster about them.

use std::collections::BTreeMap;
use std::sync::Mutex;

use letterbox_env::BoxFuture;
use letterbox_operator::admin::{AdminError, KafkaAdmin, Topic};

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

    fn create_topic<'a>(
        &'a self,
        name: &'a str,
        partitions: Option<i32>,
        replicas: i32,
        config: &'a BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<(), AdminError>> {
        self.call(|state| {
            if state.topics.contains_key(name) {
                return Err(AdminError::Refused {
                    code: "TOPIC_ALREADY_EXISTS".to_owned(),
                    message: String::new(),
                });
            }
            if config.values().any(|value| value == "nonsense") {
                return Err(AdminError::Refused {
                    code: "INVALID_CONFIG".to_owned(),
                    message: "nonsense".to_owned(),
                });
            }
            state.made += 1;
            state.changes += 1;
            let topic = Topic {
                id: format!("id-{}", state.made),
                partitions: partitions.unwrap_or(1),
                replicas,
                config: config.clone(),
            };
            state.topics.insert(name.to_owned(), topic);
            Ok(())
        })
    }

    fn create_partitions<'a>(
        &'a self,
        name: &'a str,
        total: i32,
    ) -> BoxFuture<'a, Result<(), AdminError>> {
        self.change(name, |topic| topic.partitions = total)
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
