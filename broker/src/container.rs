//! What the image runs: the configuration of the environment.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use letterbox_broker::config::image_env::{self, MOUNTED_CONFIG, TopicToCreate};
use letterbox_broker::config::{Config, parse_properties};
use letterbox_broker::server::Broker;
use letterbox_env::Env;
use tracing::info;

/// The configuration from `KAFKA_*` variables and the mounted file, and the topics to make once it runs.
///
/// # Errors
/// Names the variable to change.
pub(crate) fn configuration() -> anyhow::Result<(Config, Vec<TopicToCreate>)> {
    let disk = Env::real().disk;
    let mounted = Path::new(MOUNTED_CONFIG);
    let file = if disk.exists(mounted)? {
        let text = String::from_utf8(disk.read(mounted).with_context(|| format!("read {MOUNTED_CONFIG}"))?)
            .with_context(|| format!("read {MOUNTED_CONFIG}"))?;
        parse_properties(&text).with_context(|| MOUNTED_CONFIG.to_owned())?
    } else {
        Vec::new()
    };
    let environment: BTreeMap<String, String> = std::env::vars().collect();
    let image = image_env::from_environment(&environment, &file)?;
    for note in &image.notes {
        info!("{note}");
    }
    let mut pairs: BTreeMap<String, String> =
        image.properties.iter().map(|(key, property)| (key.clone(), property.value.clone())).collect();
    if let Some(id) = image.cluster_id {
        pairs.insert("cluster.id".to_owned(), id);
    }
    let config = Config::from_pairs(pairs).map_err(|refused| {
        let origins: Vec<String> = image
            .properties
            .iter()
            .filter(|(key, _)| refused.0.iter().any(|problem| problem.to_string().starts_with(key.as_str())))
            .map(|(key, property)| format!("{key} was set by {}", property.origin))
            .collect();
        anyhow::anyhow!("{refused}\n{}", origins.join("\n"))
    })?;
    Ok((config, image.topics))
}

/// Makes the topics of `KAFKA_CREATE_TOPICS`; those that are there already stay as they are.
///
/// # Errors
/// Names the topic that cannot be made.
pub(crate) async fn create_topics(broker: &Broker, topics: Vec<TopicToCreate>) -> anyhow::Result<()> {
    for topic in topics {
        let configs = topic.cleanup_policy.iter().map(|policy| ("cleanup.policy".to_owned(), policy.clone())).collect();
        if let Err(why) = broker.ensure_topic(&topic.name, topic.partitions, topic.replication_factor, configs).await {
            bail!("KAFKA_CREATE_TOPICS: {}: {why}", topic.name);
        }
    }
    Ok(())
}
