//! Leader election through a Lease: at most one replica of the operator acts.
//!
//! Whether another holder is still there is judged by how long its record has not changed on our own monotonic clock,
//! never by comparing wall clocks of two machines. Every write carries the version that was read.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt as _};
use letterbox_env::Env;
use tokio::time::Instant;

/// Where leadership is recorded.
#[derive(Clone, Debug)]
pub struct LeaseOptions {
    /// The namespace of the Lease.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who we are: unique among the replicas.
    pub identity: String,
}

/// How long a record that does not change is honoured.
const DURATION: Duration = Duration::from_secs(15);
/// How long we go on without a successful renewal; shorter than [`DURATION`], so that we stop before another begins.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two attempts.
const RETRY: Duration = Duration::from_secs(2);

/// Leadership.
pub struct Held {
    env: Env,
    api: Api<Lease>,
    options: LeaseOptions,
    lease: Lease,
    renewed: Instant,
}

/// Waits until we lead.
///
/// # Errors
/// When the Lease may not be read or written.
pub async fn acquire(env: &Env, client: &Client, options: &LeaseOptions) -> anyhow::Result<Held> {
    let api: Api<Lease> = Api::namespaced(client.clone(), &options.namespace);
    let mut seen: Option<(Option<String>, Instant)> = None;
    let mut said = false;
    loop {
        let began = Instant::now();
        let attempt = match api.get_opt(&options.name).await {
            Ok(None) => api.create(&PostParams::default(), &record(env, options, None)).await.map(Some),
            Ok(Some(live)) => {
                let version = live.resource_version();
                if seen.as_ref().is_none_or(|(known, _)| *known != version) {
                    seen = Some((version, Instant::now()));
                }
                let quiet = seen.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
                let holder = live.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
                if holder.is_empty() || holder == options.identity || quiet > DURATION {
                    api.replace(&options.name, &PostParams::default(), &record(env, options, Some(&live))).await.map(Some)
                } else {
                    if !said {
                        tracing::info!(holder, "another replica leads");
                        said = true;
                    }
                    Ok(None)
                }
            }
            Err(error) => Err(error),
        };
        match attempt {
            Ok(Some(lease)) => {
                tracing::info!(identity = options.identity, "this replica leads");
                return Ok(Held { env: env.clone(), api, options: options.clone(), lease, renewed: began });
            }
            Ok(None) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(kube::Error::Api(status)) if status.code == 403 => {
                return Err(kube::Error::Api(status)).context(format!("take the Lease {}/{}", options.namespace, options.name));
            }
            Err(error) => tracing::warn!(%error, "the Lease could not be read or written; trying again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

impl Held {
    /// Renews for as long as it works; returns why it no longer does.
    pub async fn keep(mut self) -> anyhow::Error {
        loop {
            tokio::time::sleep(RETRY).await;
            let began = Instant::now();
            let next = record(&self.env, &self.options, Some(&self.lease));
            let left = RENEW_DEADLINE.saturating_sub(self.renewed.elapsed());
            match tokio::time::timeout(left, self.api.replace(&self.options.name, &PostParams::default(), &next)).await {
                Ok(Ok(lease)) => {
                    self.lease = lease;
                    self.renewed = began;
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => match self.api.get(&self.options.name).await {
                    Ok(live) if live.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()) == Some(&self.options.identity) => self.lease = live,
                    Ok(_) => return anyhow::anyhow!("another replica took the Lease"),
                    Err(error) => tracing::warn!(%error, "the Lease could not be read"),
                },
                Ok(Err(error)) => tracing::warn!(%error, "the Lease was not renewed"),
                Err(_) => {}
            }
            if self.renewed.elapsed() >= RENEW_DEADLINE {
                return anyhow::anyhow!("the Lease could not be renewed for {} s", RENEW_DEADLINE.as_secs());
            }
        }
    }
}

fn record(env: &Env, options: &LeaseOptions, old: Option<&Lease>) -> Lease {
    let now = Timestamp::from_millisecond(env.clock.wall_ms()).ok().map(MicroTime);
    let mut lease = old.cloned().unwrap_or_default();
    lease.metadata.name = Some(options.name.clone());
    lease.metadata.namespace = Some(options.namespace.clone());
    lease.metadata.managed_fields = None;
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    if spec.holder_identity.as_deref() != Some(&options.identity) {
        spec.acquire_time = now.clone();
        spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |count| count.saturating_add(1)));
        spec.holder_identity = Some(options.identity.clone());
    }
    spec.renew_time = now;
    spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
    lease
}
