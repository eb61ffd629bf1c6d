//! What requests are served with.

use std::sync::Arc;

use letterbox_env::Env;

use super::budget::{Account, Connections};
use super::handlers::data::consumer_fetch::ConsumerSessions;
use super::handlers::data::init_producer_id::ProducerIds;
use super::handlers::data::replica_fetch::ReplicaSessions;
use super::handlers::topics::create::ensure;
use super::heavy::Heavy;
use super::shown::Shown;
use super::system;
use crate::config::Config;
use crate::controller::Controller;
use crate::coordinator::GroupCoordinator;
use crate::lifecycle::Lifecycle;
use crate::metadata::{Configs, MetadataImage};
use crate::metrics::Metrics;
use crate::quorum::MetadataQuorum;
use crate::replication::ReplicaManager;
use crate::security::{AllowAll, Authorizer};

/// Memory for requests and answers when `queued.max.request.bytes` is not set.
const REQUEST_MEMORY: usize = 256 * 1024 * 1024;
/// The part of what the process may have that it is then at most.
const REQUEST_SHARE: usize = 4;

/// What every request to a broker may use. The parts belong to the node, which starts and stops
/// them; here are handles to them, and the bounds on what clients can make the broker hold.
pub(crate) struct Services {
    pub(crate) env: Env,
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    pub(crate) memory: Arc<Account>,
    /// Where large and compressed batches are validated.
    pub(crate) validation: Heavy,
    /// Where offsets are looked up by time.
    pub(crate) lookups: Heavy,
    /// Where requests with many elements, or many in their answers, are handled.
    pub(crate) wide: Heavy,
    pub(crate) connections: Arc<Connections>,
    pub(crate) replicas: Arc<ReplicaManager>,
    /// What consumers fetch in sessions.
    pub(crate) consumers: ConsumerSessions,
    /// What followers fetch here.
    pub(crate) sessions: ReplicaSessions,
    pub(crate) controller: Controller,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) groups: GroupCoordinator,
    pub(crate) producer_ids: ProducerIds,
    /// What this node knows of the metadata log; clients are told of `shown`, not of its image.
    pub(crate) quorum: Arc<dyn MetadataQuorum>,
    pub(crate) shown: Arc<Shown>,
    /// Decides what callers may do.
    pub(crate) authorizer: Arc<dyn Authorizer>,
}

impl Services {
    /// Services over the parts of a broker. Must be called within a tokio runtime.
    pub(crate) fn new(
        env: Env,
        config: Config,
        quorum: Arc<dyn MetadataQuorum>,
        controller: Controller,
        replicas: Arc<ReplicaManager>,
        groups: GroupCoordinator,
        shown: Arc<Shown>,
    ) -> Self {
        let memory = request_memory(&config, system::memory_max());
        let connections = Connections::new(
            config.size("max.connections"),
            config.size("max.connections.per.ip"),
            system::descriptors_max(),
        );
        let workers = tokio::runtime::Handle::current().metrics().num_workers();
        Self {
            env,
            metrics: Metrics::new(),
            memory: Account::new(memory),
            validation: Heavy::new(workers),
            lookups: Heavy::new(workers),
            wide: Heavy::new(workers),
            connections: Arc::new(connections),
            replicas,
            consumers: ConsumerSessions::default(),
            sessions: ReplicaSessions::default(),
            lifecycle: Lifecycle::new(controller.clone()),
            controller,
            groups,
            producer_ids: ProducerIds::default(),
            quorum,
            shown,
            authorizer: Arc::new(AllowAll),
            config,
        }
    }

    /// The metadata clients are told: every partition in it that is led from here can be used.
    pub(crate) fn image(&self) -> Arc<MetadataImage> {
        self.shown.image()
    }

    /// Brings the dynamic configurations of this broker that bound its clients into force.
    pub(crate) fn take_bounds(&self) {
        self.connections.set_bounds(
            self.config.size("max.connections"),
            self.config.size("max.connections.per.ip"),
        );
    }

    /// Makes a topic unless it is there.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub(crate) async fn ensure_topic(
        &self,
        name: &str,
        partitions: i32,
        replication_factor: i16,
        configs: Configs,
    ) -> Result<(), String> {
        ensure(self, name, partitions, replication_factor, configs).await
    }
}

/// How much memory clients may hold where the process may have `most` bytes of it, if that is
/// bounded.
fn request_memory(config: &Config, most: Option<usize>) -> usize {
    let memory = match config.number("queued.max.request.bytes") {
        ..=0 => most.map_or(REQUEST_MEMORY, |most| REQUEST_MEMORY.min(most / REQUEST_SHARE)),
        bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
    };
    let request = config.size("socket.request.max.bytes");
    if let Some(most) = most.filter(|most| memory.saturating_add(request) > *most) {
        tracing::warn!(
            limit_bytes = most,
            "clients may hold {} MiB (queued.max.request.bytes), and one request of \
             {} MiB (socket.request.max.bytes) beside it, which is more than this process may have \
             (the limit of its container, or ulimit -v), and it would be ended: raise the limit, or \
             lower these",
            memory >> 20,
            request >> 20
        );
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_hold_a_quarter_of_what_a_small_container_has() {
        let memory = |set: &str, most| {
            let base = "node.id=1\nprocess.roles=broker,controller\nlisteners=PLAINTEXT://:9092,\
                        CONTROLLER://:9093\ncontroller.listener.names=CONTROLLER\n\
                        controller.quorum.voters=1@localhost:9093\n";
            request_memory(&Config::parse(&format!("{base}{set}")).unwrap(), most)
        };
        assert_eq!(memory("", None), 256 << 20);
        assert_eq!(memory("", Some(8 << 30)), 256 << 20);
        assert_eq!(memory("", Some(128 << 20)), 32 << 20);
        assert_eq!(memory("queued.max.request.bytes=100000000", Some(128 << 20)), 100_000_000);
    }
}
