//! What this node hosts follows the metadata: the roles of its partitions at once; their logs, what
//! clients are told, and the group coordinator as logs are made and closed.

use std::sync::Arc;
use std::time::Duration;

use letterbox_protocol::model::TopicId;
use letterbox_storage::LogManager;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::groups::{GroupHost, keep_live};
use crate::metadata::{Configs, MetadataDelta, MetadataImage};
use crate::quorum::DeltaStream;
use crate::server::Services;

/// How often partitions that are offline are tried again.
const HEAL_EVERY: Duration = Duration::from_secs(1);

/// Hosts what the metadata of now asks for, and returns when clients may be told of it; the rest of
/// its changes are for the two tasks that it gives.
pub(super) async fn begin(
    services: Arc<Services>,
    logs: Arc<LogManager>,
    groups: GroupHost,
    mut deltas: DeltaStream,
) -> (Roles, Hosting) {
    let first = deltas.next().await;
    let newest = watch::Sender::new(services.image());
    let mut hosting = Hosting { services: services.clone(), groups, newest: newest.subscribe() };
    let roles = Roles { services, logs, deltas, newest };
    if let Some(first) = first {
        roles.take_dynamic_configs(&first.after);
        hosting.services.replicas.start(&first.after).await;
        hosting.publish(&first).await;
        roles.newest.send_replace(first.after);
        hosting.newest.mark_unchanged();
    }
    (roles, hosting)
}

/// Has settings and the roles of partitions follow the metadata. Waits for no log.
pub(super) struct Roles {
    services: Arc<Services>,
    logs: Arc<LogManager>,
    deltas: DeltaStream,
    newest: watch::Sender<Arc<MetadataImage>>,
}

impl Roles {
    /// Goes on until `stop`.
    pub(super) async fn follow(mut self, stop: CancellationToken) {
        loop {
            let delta = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                delta = self.deltas.next() => delta,
            };
            let Some(delta) = delta else { return };
            if !delta.configs_changed.is_empty() {
                self.take_dynamic_configs(&delta.after);
            }
            keep_live(&self.services.groups, &delta);
            self.services.replicas.apply(&delta);
            self.newest.send_replace(delta.after);
        }
    }

    /// Brings the dynamic configurations of this broker into force; topics follow with their
    /// partitions.
    fn take_dynamic_configs(&self, image: &MetadataImage) {
        let (config, none) = (&self.services.config, Configs::new());
        let own = image.broker_configs.get(&config.node_id).unwrap_or(&none);
        config.set_dynamic(own, &image.cluster_configs);
        self.services.take_bounds();
        self.logs.set_cleaner_backoff(config.duration("log.cleaner.backoff.ms"));
    }
}

/// Has the logs follow the metadata, beside the roles of their partitions, which have followed
/// already; what changes while logs are made is done in one go afterwards. Clients are shown what
/// is open.
pub(super) struct Hosting {
    services: Arc<Services>,
    groups: GroupHost,
    newest: watch::Receiver<Arc<MetadataImage>>,
}

impl Hosting {
    /// Goes on until `stop`.
    pub(super) async fn follow(mut self, stop: CancellationToken) {
        let mut heal = tokio::time::interval(HEAL_EVERY);
        heal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = self.newest.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_newest().await;
                }
                () = self.groups.one_is_loaded(), if self.groups.is_loading() => {}
                _ = heal.tick() => self.heal().await,
            }
        }
    }

    async fn take_newest(&mut self) {
        let after = self.newest.borrow_and_update().clone();
        let delta = MetadataDelta::between(self.services.image(), after);
        self.services.replicas.apply_to_logs(&delta).await;
        self.publish(&delta).await;
    }

    /// Tries again what is offline.
    async fn heal(&mut self) {
        let image = self.services.image();
        let back: Vec<(TopicId, i32)> = self.services.replicas.heal(&image).await;
        self.groups.partitions_are_back(&image, &back);
    }

    /// Shows clients what is open now, and lets the group coordinator take over its partitions.
    async fn publish(&mut self, delta: &MetadataDelta) {
        self.groups.release(delta).await;
        self.services.shown.show(delta.after.clone());
        self.groups.take_over(delta);
        self.services.shown.in_force();
    }
}
