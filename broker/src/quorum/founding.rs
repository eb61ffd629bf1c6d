//! How voters that are all new agree on the id of their cluster, before there is a quorum.
//!
//! The voter with the lowest id draws it, when every other voter has said that it has none; all
//! others wait for one that has it. So no voter that belongs to a cluster is ever passed over, and
//! a cluster has one id whoever stops in the middle. Where the configuration names the id
//! (`cluster.id`), nothing has to be agreed on.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use letterbox_env::{BoxListener, Env};
use letterbox_protocol::model::encode_uuid;

use super::network::{answer_as_new, ask_who};
use super::types::Voter;

/// Between two rounds of asking.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// How often it is said who is waited for, in rounds.
const SAY_EVERY: u64 = 40;
/// Voters that ask at the same time.
const ASKING_MAX: usize = 64;

/// Why there is no id.
#[derive(Debug, thiserror::Error)]
pub enum FoundingError {
    /// The address is taken, or is not this machine's.
    #[error("cannot listen for other voters on {host}:{port}")]
    Listen {
        /// As configured.
        host: String,
        /// As configured.
        port: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The voters that are listed belong to several clusters.
    #[error(
        "voter {first} belongs to cluster {first_cluster}, and voter {second} to cluster \
         {second_cluster}; correct controller.quorum.voters, so that it names the voters of one"
    )]
    SeveralClusters {
        /// One of them.
        first: u64,
        /// Its cluster.
        first_cluster: String,
        /// Another.
        second: u64,
        /// Its cluster.
        second_cluster: String,
    },
}

/// The id of the cluster that `voters` make up, for a voter `node_id` that has none; listens at
/// `listener` meanwhile. Waits as long as it takes, and says for whom. Cancel safe.
///
/// # Errors
/// [`FoundingError`].
pub async fn agree_on_cluster_id(
    env: &Env,
    node_id: i32,
    listener: &(String, u16),
    voters: &BTreeMap<i32, (String, u16)>,
) -> Result<String, FoundingError> {
    let (host, port) = listener;
    let bound = env.net.bind(host, *port).await;
    let listener = bound.map_err(|source| FoundingError::Listen {
        host: host.clone(),
        port: *port,
        source,
    })?;
    let id = u64::try_from(node_id).unwrap_or_default();
    tokio::select! {
        biased;
        never = answer_all(&listener, id) => match never {},
        agreed = agree(env, id, voters) => agreed,
    }
}

async fn answer_all(listener: &BoxListener, id: u64) -> Infallible {
    let mut answering = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = answering.join_next() => {}
            accepted = listener.accept(), if answering.len() < ASKING_MAX => match accepted {
                Ok((stream, _)) => drop(answering.spawn(answer_as_new(stream, id))),
                Err(_) => tokio::time::sleep(ASK_EVERY).await,
            }
        }
    }
}

async fn agree(
    env: &Env,
    id: u64,
    voters: &BTreeMap<i32, (String, u16)>,
) -> Result<String, FoundingError> {
    let others: BTreeMap<u64, Voter> = voters
        .iter()
        .filter_map(|(other, (host, port))| {
            Some((u64::try_from(*other).ok()?, Voter { host: host.clone(), port: *port }))
        })
        .filter(|(other, _)| *other != id)
        .collect();
    let draws = others.keys().all(|other| id < *other);
    let mut round = 0u64;
    loop {
        let asked = others
            .iter()
            .map(|(other, at)| async move { (*other, ask_who(env, id, *other, at).await) });
        let answers = futures::future::join_all(asked).await;
        let mut belong = answers.iter().filter_map(|(other, answer)| {
            Some((*other, answer.as_ref().ok()?.cluster_id.clone()?))
        });
        if let Some((first, first_cluster)) = belong.next() {
            return match belong.find(|(_, cluster)| *cluster != first_cluster) {
                None => Ok(first_cluster),
                Some((second, second_cluster)) => Err(FoundingError::SeveralClusters {
                    first,
                    first_cluster,
                    second,
                    second_cluster,
                }),
            };
        }
        let missing = answers.iter().filter(|(_, answer)| answer.is_err()).map(|(other, _)| *other);
        let missing: Vec<u64> = missing.collect();
        if draws && missing.is_empty() {
            let cluster_id = encode_uuid(env.random_uuid());
            tracing::info!(cluster_id, "all voters are new: this one gives the cluster its id");
            return Ok(cluster_id);
        }
        if round % SAY_EVERY == SAY_EVERY / 8 {
            tracing::warn!(
                ?missing,
                "a new cluster begins when all its voters are there (controller.quorum.voters); \
                 to begin without waiting for them, set cluster.id to one value in all of them"
            );
        }
        round = round.wrapping_add(1);
        tokio::time::sleep(ASK_EVERY).await;
    }
}
