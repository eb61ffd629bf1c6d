//! What is remembered of topics between two runs: which keys were set.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use kube::ResourceExt as _;
use letterbox_env::{BoxFuture, Env};
use tokio::sync::Mutex;

use crate::api::{KafkaTopic, KafkaTopicStatus};
use crate::reconcile::TopicHome;
use crate::status::Fault;

/// One file with the status of every topic, written whole.
pub(super) struct LocalHome {
    env: Env,
    path: PathBuf,
    statuses: Mutex<BTreeMap<String, KafkaTopicStatus>>,
}

impl LocalHome {
    pub(super) async fn open(env: Env, path: PathBuf) -> anyhow::Result<Self> {
        let (own, own_path) = (env.clone(), path.clone());
        let bytes = env
            .blocking(move || {
                if own.disk.exists(&own_path)? {
                    own.disk.read(&own_path).map(Some)
                } else {
                    Ok(None)
                }
            })
            .await;
        let statuses = match bytes.with_context(|| format!("read {}", path.display()))? {
            None => BTreeMap::new(),
            Some(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("read {} as JSON", path.display()))?,
        };
        Ok(Self { env, path, statuses: Mutex::new(statuses) })
    }

    pub(super) async fn status(&self, topic: &KafkaTopic) -> Option<KafkaTopicStatus> {
        self.statuses.lock().await.get(&key(topic)).cloned()
    }
}

fn key(topic: &KafkaTopic) -> String {
    format!("{}/{}", topic.spec.cluster_ref.name, topic.name_any())
}

impl TopicHome for LocalHome {
    fn read<'a>(
        &'a self,
        topic: &'a KafkaTopic,
    ) -> BoxFuture<'a, Result<Option<KafkaTopic>, Fault>> {
        Box::pin(std::future::ready(Ok(Some(topic.clone()))))
    }

    fn set_finalizer<'a>(
        &'a self,
        _: &'a mut KafkaTopic,
        _: bool,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        // Nothing deletes a document but the user's editor.
        Box::pin(std::future::ready(Ok(())))
    }

    fn write_status<'a>(
        &'a self,
        topic: &'a mut KafkaTopic,
        status: &'a KafkaTopicStatus,
    ) -> BoxFuture<'a, Result<bool, Fault>> {
        Box::pin(async move {
            let mut statuses = self.statuses.lock().await;
            statuses.insert(key(topic), status.clone());
            let tell = |error: String| Fault {
                reason: "NotWritten".to_owned(),
                message: format!("write {}: {error}", self.path.display()),
            };
            let bytes =
                serde_json::to_vec_pretty(&*statuses).map_err(|error| tell(error.to_string()))?;
            let (env, path) = (self.env.clone(), self.path.clone());
            self.env
                .blocking(move || env.disk.write_atomically(&path, &bytes))
                .await
                .map_err(|error| tell(error.to_string()))?;
            Ok(true)
        })
    }
}
