//! What the cluster is told of this node, and that it takes it.

use std::error::Error;

use letterbox_env::BoxListener;
use tracing::warn;

use super::identity::Identity;
use super::patience::patiently;
use super::start::StartError;
use crate::config::Config;
use crate::controller::{Controller, ControllerError};
use crate::metadata::decide::{RegisterBroker, SetClusterId};
use crate::metadata::{Endpoint, SecurityProtocol};
use crate::quorum::{MetadataQuorum, QuorumError};

/// Registers this broker, with the addresses that clients are told.
pub(super) async fn register(
    controller: &Controller,
    quorum: &dyn MetadataQuorum,
    config: &Config,
    identity: &Identity,
    listeners: &[BoxListener],
    clean_start: bool,
) -> Result<(), StartError> {
    let passes = |error: &ControllerError| {
        matches!(
            error,
            ControllerError::Quorum(QuorumError::Waiting { .. } | QuorumError::OutcomeUnknown)
        )
    };
    // An earlier run's, from before this one changes anything.
    let incarnation = identity.incarnation(config, &quorum.image());
    let set = SetClusterId { cluster_id: identity.cluster_id.clone() };
    let set = patiently("register with the cluster", passes, || controller.run(set.clone())).await;
    set.map_err(refused)?.outcome.map_err(refused)?;
    let operation = RegisterBroker {
        id: config.node_id,
        incarnation,
        endpoints: endpoints(config, listeners),
        rack: config.rack.clone(),
        clean_start,
    };
    // The image holds what came before the cluster id was set again. A directory that was only
    // formatted has seen no run.
    if !clean_start && quorum.image().brokers.contains_key(&config.node_id) {
        warn!(
            "the last run did not end cleanly; the partitions that this broker leads get a new \
            leader epoch"
        );
    }
    let registered =
        patiently("register with the cluster", passes, || controller.run(operation.clone())).await;
    registered.map_err(refused)?.outcome.map_err(refused)?;
    Ok(())
}

fn refused(error: impl Error + Send + Sync + 'static) -> StartError {
    StartError::Register(error.into())
}

/// Where clients are told to connect.
fn endpoints(config: &Config, listeners: &[BoxListener]) -> Vec<Endpoint> {
    // A port of 0 was chosen by the system; clients are told the one it chose.
    let port = |at: usize, port: u16| {
        if port == 0 {
            listeners.get(at).and_then(|l| l.local_addr().ok()).map_or(0, |a| a.port())
        } else {
            port
        }
    };
    let endpoint = |(at, endpoint): (usize, &crate::config::Endpoint)| Endpoint {
        listener: endpoint.name.clone(),
        host: endpoint.host.clone(),
        port: port(at, endpoint.port),
        security_protocol: SecurityProtocol::Plaintext,
    };
    config.advertised.iter().enumerate().map(endpoint).collect()
}
