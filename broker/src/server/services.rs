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
        let memory = match config.number("queued.max.request.bytes") {
            ..=0 => REQUEST_MEMORY,
            bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
        };
        let connections = Connections::new(
            config.size("max.connections"),
            config.size("max.connections.per.ip"),
            descriptors_max(),
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

#[expect(
    clippy::disallowed_methods,
    reason = "how many files may be open is the system's to say, in a simulation too"
)]
pub(crate) fn descriptors_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    usize::try_from(limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX)
}
