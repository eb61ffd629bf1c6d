//! What the image runs: the configuration of the environment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, bail};
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
    let image = image_env::from_environment(&environment(std::env::vars_os())?, &file)?;
    for note in &image.notes {
        match note {
            Note::NoEffect { reason: NoEffect::KubernetesService, .. } => debug!("{note}"),
            Note::NoEffect { .. } => warn!("{note}"),
            Note::Mapped { .. } => info!("{note}"),
        }
    }
    Ok((image.config()?, image.topics))
}

/// The variables that are text. Others are not ours, unless their name says so.
fn environment(
    all: impl Iterator<Item = (OsString, OsString)>,
) -> anyhow::Result<BTreeMap<String, String>> {
    let mut environment = BTreeMap::new();
    for (name, value) in all {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => {
                environment.insert(name, value);
            }
            Err(_) if name.starts_with("KAFKA_") || name.starts_with("CLUSTER_ID") => {
                bail!("the value of the environment variable {name} is not UTF-8");
            }
            Err(_) => {}
        }
    }
    Ok(environment)
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn a_variable_that_is_no_text_matters_only_when_it_is_ours() {
        let of = |name: &str| {
            let other = (OsString::from("KAFKA_NODE_ID"), OsString::from("1"));
            environment([(name.into(), OsString::from_vec(vec![0xff])), other].into_iter())
        };
        assert_eq!(of("LESSCHARSET").unwrap().into_keys().collect::<Vec<_>>(), ["KAFKA_NODE_ID"]);
        let refused = of("KAFKA_LOG_DIRS").unwrap_err().to_string();
        assert!(refused.contains("KAFKA_LOG_DIRS is not UTF-8"), "{refused}");
    }
}
