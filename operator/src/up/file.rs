//! The file of `letterbox up`.

use std::path::Path;

use anyhow::{Context as _, bail};
use kube::ResourceExt as _;
use letterbox_env::Env;
use serde::Deserialize as _;
use serde_json::Value;

use crate::api::validate::{self, Problem, parse_strict};
use crate::api::{KafkaCluster, KafkaTopic};

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What the file asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct Documents {
    pub(super) text: String,
    pub(super) clusters: Vec<KafkaCluster>,
    pub(super) topics: Vec<KafkaTopic>,
}

impl Documents {
    pub(super) fn cluster_of(&self, topic: &KafkaTopic) -> Option<&KafkaCluster> {
        self.clusters.iter().find(|cluster| cluster.name_any() == topic.spec.cluster_ref.name)
    }
}

pub(super) async fn read(env: &Env, path: &Path) -> anyhow::Result<Documents> {
    let text = text(env, path).await?;
    parse(&text).with_context(|| format!("read {}", path.display()))
}

pub(super) async fn text(env: &Env, path: &Path) -> anyhow::Result<String> {
    let (own, own_path) = (env.clone(), path.to_owned());
    let read = env.blocking(move || -> std::io::Result<Vec<u8>> {
        let len = own.disk.open(&own_path, letterbox_env::OpenMode::Read)?.len()?;
        if len > FILE_BYTES_MAX {
            return Err(std::io::Error::new(
                std::io::ErrorKind::FileTooLarge,
                format!("{len} bytes, more than {FILE_BYTES_MAX}"),
            ));
        }
        own.disk.read(&own_path)
    });
    let bytes = read.await.with_context(|| format!("read {}", path.display()))?;
    String::from_utf8(bytes).with_context(|| format!("read {} as UTF-8", path.display()))
}

/// Reads every document; the first thing that is wrong refuses the whole file.
pub(super) fn parse(text: &str) -> anyhow::Result<Documents> {
    let mut documents = Documents { text: text.to_owned(), ..Documents::default() };
    for (index, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let at = format!("document {}", index.saturating_add(1));
        let value = Value::deserialize(document).with_context(|| at.clone())?;
        if value.is_null() {
            continue;
        }
        add(&mut documents, &value).with_context(|| {
            match value.pointer("/metadata/name").and_then(Value::as_str) {
                Some(name) => format!("{at} ({name})"),
                None => at,
            }
        })?;
    }
    if documents.clusters.is_empty() {
        bail!("there is no KafkaCluster in it");
    }
    // The cluster of a topic may come after it.
    for topic in &documents.topics {
        let brokers = documents.cluster_of(topic).map_or(1, |cluster| cluster.spec.replicas);
        refuse(&validate::local_topic(topic, brokers))
            .with_context(|| format!("KafkaTopic {}", topic.name_any()))?;
    }
    Ok(documents)
}

fn add(documents: &mut Documents, value: &Value) -> anyhow::Result<()> {
    let is_named = || match value.pointer("/metadata/name") {
        Some(Value::String(name)) if !name.is_empty() => Ok(()),
        None | Some(Value::Null | Value::String(_)) => bail!("metadata.name is missing"),
        Some(_) => bail!("metadata.name must be text; put it in quotes"),
    };
    match (value["apiVersion"].as_str(), value["kind"].as_str()) {
        (Some("letterbox.dev/v1alpha1"), Some("KafkaCluster")) => {
            is_named()?;
            let cluster: KafkaCluster = parse_strict(value)?;
            refuse(&validate::local_cluster(&cluster))?;
            if documents.clusters.iter().any(|other| other.name_any() == cluster.name_any()) {
                bail!("two KafkaClusters have this name");
            }
            documents.clusters.push(cluster);
        }
        (Some("letterbox.dev/v1alpha1"), Some("KafkaTopic")) => {
            is_named()?;
            let topic: KafkaTopic = parse_strict(value)?;
            let same = |other: &KafkaTopic| {
                other.spec.cluster_ref == topic.spec.cluster_ref
                    && other.kafka_name() == topic.kafka_name()
            };
            if documents
                .topics
                .iter()
                .any(|other| other.name_any() == topic.name_any() || same(other))
            {
                bail!("two KafkaTopics have this name");
            }
            documents.topics.push(topic);
        }
        (api_version, kind) => bail!(
            "it is {} {}; letterbox up runs letterbox.dev/v1alpha1 KafkaCluster and KafkaTopic \
             only",
            api_version.unwrap_or("(no apiVersion)"),
            kind.unwrap_or("(no kind)")
        ),
    }
    Ok(())
}

fn refuse(problems: &[Problem]) -> anyhow::Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    bail!("{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_are_valid() {
        for (name, clusters, topics) in
            [("cluster.yaml", 1, 0), ("orders.yaml", 1, 1), ("local/three-brokers.yaml", 1, 1)]
        {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name);
            let documents =
                parse(&String::from_utf8(Env::real().disk.read(&path).unwrap()).unwrap()).unwrap();
            assert_eq!(
                (documents.clusters.len(), documents.topics.len()),
                (clusters, topics),
                "{name}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let cluster = "apiVersion: letterbox.dev/v1alpha1\nkind: KafkaCluster\nmetadata: \
            {name: a}\nspec: {}\n";
        let three = cluster.replace("spec: {}", "spec: {replicas: 3}");
        let topic = |replicas: i32| {
            format!(
                "apiVersion: letterbox.dev/v1alpha1\nkind: KafkaTopic\nmetadata: {{name: t}}\n\
                 spec: {{clusterRef: {{name: a}}, replicas: {replicas}}}\n"
            )
        };
        parse(&format!("{}---\n{three}", topic(3))).unwrap();
        for (text, expected) in [
            (String::new(), "there is no KafkaCluster in it"),
            (
                format!("{cluster}---\n{cluster}"),
                "document 2 (a): two KafkaClusters have this name",
            ),
            (
                cluster.replace("spec: {}", "spec: {replicas: 5}"),
                "document 1 (a): spec.replicas: letterbox up runs one or three brokers per \
                 cluster; set spec.replicas to 1 or 3.",
            ),
            (
                format!("{}---\n{three}", topic(4)),
                "KafkaTopic t: spec.replicas: The cluster has 3 brokers; set spec.replicas to 1 to 3.",
            ),
            (
                format!("{}---\n{cluster}", topic(3)),
                "KafkaTopic t: spec.replicas: The cluster has one broker; set spec.replicas to 1.",
            ),
            (
                cluster.replace("spec: {}", "spec: {zookeeper: 3}"),
                "document 1 (a): spec.zookeeper: there is no such field",
            ),
            (
                cluster.replace("name: a", "name: 5"),
                "document 1: metadata.name must be text; put it in quotes",
            ),
            (
                "apiVersion: v1\nkind: List\nitems: []\n".to_owned(),
                "document 1: it is v1 List; letterbox up runs letterbox.dev/v1alpha1 \
                 KafkaCluster and KafkaTopic only",
            ),
            (
                "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n".to_owned(),
                "document 1 (s): it is v1 Secret; letterbox up runs letterbox.dev/v1alpha1 \
                 KafkaCluster and KafkaTopic only",
            ),
        ] {
            assert_eq!(format!("{:#}", parse(&text).unwrap_err()), expected);
        }
    }
}
