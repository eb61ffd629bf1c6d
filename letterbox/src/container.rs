//! What the image runs: the configuration of the environment.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use letterbox_broker::config::{Config, parse_properties};
use letterbox_broker::node::Node;
use letterbox_env::Env;
use tracing::{debug, error, info, warn};

use crate::image_env::{self, MOUNTED_CONFIG, NoEffect, Note, TopicToCreate};

/// The configuration from `KAFKA_*` variables and the mounted file, and the topics to make once it
/// runs.
///
/// # Errors
/// Names the variable to change.
pub(crate) fn configuration() -> anyhow::Result<(Config, Vec<TopicToCreate>)> {
    let disk = Env::real().disk;
    let mounted = Path::new(MOUNTED_CONFIG);
    let file = if disk.exists(mounted)? {
        let bytes = disk.read(mounted).with_context(|| format!("read {MOUNTED_CONFIG}"))?;
        parse_properties(bytes).with_context(|| MOUNTED_CONFIG.to_owned())?
    } else {
        Vec::new()
    };
    let environment: BTreeMap<String, String> = std::env::vars().collect();
    let image = image_env::from_environment(&environment, &file)?;
    for note in &image.notes {
        match note {
            Note::NoEffect { reason: NoEffect::KubernetesService, .. } => debug!("{note}"),
            Note::NoEffect { .. } => warn!("{note}"),
            Note::Mapped { .. } => info!("{note}"),
        }
    }
    Ok((image.config()?, image.topics))
}

/// Makes the topics of `KAFKA_CREATE_TOPICS`; those that are there already stay as they are. One
/// that cannot be made is told, and the broker goes on, as with the image that the variable comes
/// from.
pub(crate) async fn create_topics(broker: &Node, topics: Vec<TopicToCreate>) {
    for topic in topics {
        let configs = topic
            .cleanup_policy
            .iter()
            .map(|policy| ("cleanup.policy".to_owned(), policy.clone()))
            .collect();
        if let Err(why) = broker
            .ensure_topic(&topic.name, topic.partitions, topic.replication_factor, configs)
            .await
        {
            error!(topic = topic.name, "cannot create the topic of KAFKA_CREATE_TOPICS: {why}");
        }
    }
}
