//! The operator's process: watches, requeue and back-off, leader election, health. The only place
//! that knows the kube runtime.

mod cluster;
mod doomed;
mod events;
mod http;
mod lease;
mod looked;
mod metrics;
mod objects;
mod owner;
mod passes;
mod probe;
mod schema;
mod topic;
mod topics;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::runtime::controller;
use kube::runtime::watcher::Event;
use letterbox_env::Env;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin::HttpIdentity;
use crate::platform::calls::Silences;
use crate::platform::kubernetes::Kubernetes;
use lease::Held;
pub use lease::LeaseOptions;
pub use topic::KubernetesHome;

use crate::platform::kubernetes::words_of;

/// How the operator's process runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The image of a new cluster that asks for none.
    pub image: String,
    /// The namespaces that are watched; empty means all of them.
    pub namespaces: Vec<String>,
    /// The address of health and metrics.
    pub listen: (String, u16),
    /// Where leadership is recorded; `None` means that this is the only replica.
    pub lease: Option<LeaseOptions>,
}

/// How long a settled object is left alone when no event comes: what was changed by hand inside
/// Kafka has no event.
pub(crate) const RESYNC: Duration = Duration::from_secs(60);
/// How soon an object that waits for something without an event is looked at again.
pub(crate) const WAITING: Duration = Duration::from_secs(5);

/// How long a stopping operator takes to let go of clusters and topics; shorter than the ten
/// seconds that its pod is given to end.
const LET_GO_DEADLINE: Duration = Duration::from_secs(8);

/// Between three quarters and five quarters of `pause`.
pub(crate) fn jittered(env: &Env, pause: Duration) -> Duration {
    let half = pause / 2;
    let part = u32::try_from(env.random_u64() % 1024).unwrap_or(0);
    half + half / 2 + half * part / 1024
}

/// What both controllers share.
pub(crate) struct Context {
    pub(crate) env: Env,
    /// Its calls are bounded by `silences`.
    pub(crate) client: Client,
    pub(crate) silences: Silences,
    /// For the Lease, whose calls have deadlines of their own.
    pub(crate) unbounded: Client,
    pub(crate) options: Options,
    pub(crate) events: events::Events,
    pub(crate) metrics: metrics::Metrics,
    pub(crate) clusters: Kubernetes,
    pub(crate) admins: topic::Admins,
    looked: looked::Looked,
    owners: owner::Owners,
    passes: passes::Passes,
    held_unread: doomed::HeldUnread,
}

impl Context {
    pub(crate) fn now(&self) -> Time {
        Time(Timestamp::from_millisecond(self.env.clock.wall_ms()).unwrap_or(Timestamp::UNIX_EPOCH))
    }

    /// Takes up that an object is gone.
    fn gone(&self, object: &metrics::Object) {
        self.passes.forget(object);
        self.owners.forget(object);
    }
}

/// Runs the operator until SIGTERM or SIGINT.
///
/// An API server that does not answer and definitions that are missing are waited for, and so is
/// leadership.
///
/// # Errors
/// When the port of health is taken, or signals cannot be listened for.
pub async fn run(env: Env, client: Client, options: Options) -> anyhow::Result<()> {
    let (told, health) = watch::channel(probe::unknown());
    let (metrics, passes) = (metrics::Metrics::new(), passes::Passes::default());
    let listener = env
        .net
        .bind(&options.listen.0, options.listen.1)
        .await
        .with_context(|| format!("listen on port {}", options.listen.1))?;
    let mut background = JoinSet::new();
    background.spawn(http::serve(listener, health.clone(), metrics.clone(), passes.clone()));
    background.spawn(probe::run(client.clone(), told, upgrade_command(&options)));
    tracing::info!(namespaces = ?options.namespaces, image = %options.image, "operator started");

    let scopes = scopes(&options);
    let silences = Silences::default();
    let (unbounded, client) = (client.clone(), silences.client(client));
    let identities = Arc::new(HttpIdentity(env.clone()));
    let kubernetes = Kubernetes::new(client.clone(), options.image.clone(), identities);
    let context = Arc::new(Context {
        events: events::Events::new(env.clone(), client.clone()),
        clusters: kubernetes,
        admins: topic::Admins::new(env.clone()),
        looked: looked::Looked::new(),
        owners: owner::Owners::default(),
        passes,
        held_unread: doomed::HeldUnread::default(),
        metrics,
        env,
        client: client.clone(),
        silences,
        unbounded,
        options,
    });
    let held = lead_until(stop_signal(), context.clone(), health).await?;
    let let_go = scopes.iter().map(|scope| doomed::let_go(&client, scope.as_deref()));
    let let_go = futures::future::join_all(let_go);
    let release = async {
        if let Some(held) = held {
            held.release().await;
        }
    };
    // Another replica may lead while we let go: whoever does it, the outcome is the same.
    let (let_go, ()) = tokio::join!(tokio::time::timeout(LET_GO_DEADLINE, let_go), release);
    if let_go.is_err() {
        tracing::warn!("finalizers of some clusters or topics may keep a namespace Terminating");
    }
    Ok(())
}

/// Waits for leadership and reconciles, again and again, until `stop`; then what is held of
/// leadership, with nothing going on any more.
async fn lead_until(
    stop: impl Future<Output = anyhow::Result<()>>,
    context: Arc<Context>,
    mut health: watch::Receiver<probe::Health>,
) -> anyhow::Result<Option<Held>> {
    tokio::pin!(stop);
    loop {
        let mut held = match &context.options.lease {
            None => None,
            Some(lease) => tokio::select! {
                biased;
                stopped = &mut stop => return stopped.map(|()| None),
                held = lease::acquire(&context.env, &context.unbounded, lease) => Some(held),
            },
        };
        context.metrics.set_leader(true);
        let told = health.clone();
        // What was begun is dropped as soon as one of these ends: somebody else may lead by then,
        // and every step is safe to repeat.
        let lost = tokio::select! {
            biased;
            stopped = &mut stop => return stopped.map(|()| held),
            lost = keep(&mut held) => lost,
            never = doomed::let_go_without_clusters(context.clone(), told) => match never {},
            () = work(&context, &mut health) => "the watches ended".to_owned(),
        };
        context.metrics.set_leader(false);
        context.passes.forget_all();
        tracing::warn!(why = lost, "this replica is no longer the leader");
    }
}

/// Ends when leadership is lost, which a replica without a Lease never does.
async fn keep(held: &mut Option<Held>) -> String {
    match held {
        Some(held) => held.keep().await.to_string(),
        None => std::future::pending().await,
    }
}

/// Reconciles for ever. Watches begin afresh when the API server, or a definition, is back after it
/// was missing.
async fn work(context: &Arc<Context>, health: &mut watch::Receiver<probe::Health>) {
    loop {
        probe::well(health).await;
        context.silences.forget();
        context.looked.forget_all();
        context.clusters.unwatched.forget_all();
        context.metrics.forget_all();
        context.passes.forget_all();
        context.owners.forget_all();
        tokio::select! {
            biased;
            () = probe::returned(health) => {}
            never = owner::keep(context) => match never {},
            () = reconcile_all(context.clone()) => return,
        }
    }
}

/// How a person upgrades the definitions to those of this version.
pub(crate) fn upgrade_command(options: &Options) -> String {
    let exec = options
        .lease
        .as_ref()
        .map(|lease| format!("kubectl exec -n {} {} -- ", lease.namespace, lease.identity));
    format!(
        "{}letterbox-operator crd | kubectl apply --server-side --force-conflicts -f -",
        exec.unwrap_or_default()
    )
}

/// Each watched namespace, or `None` for all of them.
fn scopes(options: &Options) -> Vec<Option<String>> {
    match options.namespaces.as_slice() {
        [] => vec![None],
        names => names.iter().cloned().map(Some).collect(),
    }
}

async fn reconcile_all(context: Arc<Context>) {
    let controllers = scopes(&context.options).into_iter().flat_map(|namespace| {
        let context = context.clone();
        [
            Box::pin(cluster::run(context.clone(), namespace.clone()))
                as letterbox_env::BoxFuture<'static, ()>,
            Box::pin(topic::run(context, namespace)),
        ]
    });
    let let_go = Box::pin(doomed::let_go_of_unread(context.clone()));
    let all = controllers.chain([let_go as letterbox_env::BoxFuture<'static, ()>]);
    futures::future::join_all(all).await;
}

async fn stop_signal() -> anyhow::Result<()> {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .context("listen for SIGTERM")?;
    tokio::select! {
        biased;
        _ = term.recv() => {}
        result = tokio::signal::ctrl_c() => result.context("listen for SIGINT")?,
    }
    tracing::info!("operator stops");
    Ok(())
}

/// A pass that did not work, for the runtime's back-off.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}", .0.reason, .0.message)]
pub(crate) struct PassFailed(pub(crate) crate::status::Fault);

/// What the runtime says of a pass: only what did not work is told. An object that is gone is no
/// fault, and waits for nothing.
pub(crate) fn told<T, E: std::error::Error + 'static>(
    context: &Context,
    kind: &'static str,
    result: Result<T, controller::Error<PassFailed, E>>,
) {
    match result {
        Ok(_) => {}
        Err(controller::Error::ObjectNotFound(gone)) => {
            let namespace = gone.namespace.clone().unwrap_or_default();
            context.metrics.forget(kind, &namespace, &gone.name);
            context.gone(&(kind, namespace, gone.name.clone()));
            tracing::debug!(object = %gone, "gone");
        }
        Err(controller::Error::ReconcilerFailed(failed, object)) => {
            tracing::warn!(error = %failed, %object, "reconcile failed; retrying")
        }
        Err(error) => tracing::warn!(error = words_of(&error), kind, "watch failed; retrying"),
    }
}

/// Takes up the objects of a kind that go. One that this version cannot read any more is as if it
/// had gone.
fn told_gone<K: objects::Ours>(
    context: &Arc<Context>,
    kind: &'static str,
) -> impl FnMut(&Event<K>) + Send + use<K> {
    let context = context.clone();
    move |event| {
        if let Event::Delete(object) = event {
            context.owners.forget(&passes::named(kind, object));
        }
    }
}

/// The API of a kind in one namespace or in all.
pub(crate) fn scoped<K>(client: &Client, namespace: Option<&str>) -> kube::Api<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    namespace.map_or_else(
        || kube::Api::all(client.clone()),
        |name| kube::Api::namespaced(client.clone(), name),
    )
}
