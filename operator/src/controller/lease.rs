//! Leader election through a Lease: at most one replica of the operator acts.
//!
//! Whether another holder is still there is judged by how long its record has not changed on our
//! own monotonic clock, never by comparing wall clocks of two machines. Every write carries the
//! version that was read.
//!
//! An API server that does not answer, or refuses, is waited for: leadership ends, and the process
//! goes on trying. One that stops in order gives the Lease back, so that the next one leads at
//! once.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::{Client, ResourceExt as _};
use letterbox_env::Env;
use tokio::time::Instant;

use super::jittered;
use crate::platform::kubernetes::said as said_by;

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

/// How long a Lease holds.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    /// How long a record that does not change is honoured.
    pub(crate) honoured: Duration,
    /// How long we go on without a successful renewal; shorter, so that we stop before another
    /// begins.
    pub(crate) deadline: Duration,
    /// Between two renewals.
    pub(crate) renewal: Duration,
    /// Whether only the time counts in which the Lease could be written: its holder is to have it
    /// again after a fault that keeps everybody from that.
    pub(crate) while_writable: bool,
}

/// Of leadership.
const LEADER: Pace = Pace {
    honoured: Duration::from_secs(15),
    deadline: Duration::from_secs(10),
    renewal: Duration::from_secs(2),
    while_writable: false,
};
/// Between two attempts to lead, so that a Lease that was given back is taken within two seconds.
pub(crate) const RETRY: Duration = Duration::from_secs(1);
/// How long one call may take.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// How long after one another two attempts read the Lease while the API server answers: the longest
/// pause, and a call.
const LOOKS_APART_MAX: Duration = Duration::from_secs(10);
/// How long a stopping operator takes to give the Lease back.
const RELEASE_DEADLINE: Duration = Duration::from_secs(2);
/// So often a Lease is deleted that changes meanwhile.
const DELETIONS: usize = 3;

/// Leadership.
pub(crate) struct Held {
    env: Env,
    api: Api<Lease>,
    options: LeaseOptions,
    pace: Pace,
    lease: Lease,
    renewed: Instant,
}

/// Why a Lease is not ours yet.
pub(crate) enum Waits {
    /// Somebody else holds it; `None` when it was deleted and may be held on.
    Other(Option<String>),
    /// There is none, and whether one was deleted is not known.
    Missing,
    /// Somebody else has just written it.
    Conflict,
    /// What the API server says.
    Error(kube::Error),
    /// Nothing was said in time.
    NoAnswer,
}

impl Waits {
    /// Why, in words; `None` for what is over in a moment.
    pub(crate) fn told(&self, options: &LeaseOptions) -> Option<String> {
        Some(match self {
            Self::Other(Some(holder)) => format!("another replica leads: {holder}"),
            Self::Other(None) => format!(
                "the Lease {}/{} does not exist, and whoever held it may not know that yet",
                options.namespace, options.name
            ),
            Self::Missing | Self::Conflict => return None,
            Self::Error(error) => format!(
                "the Lease {}/{} cannot be acquired: {}",
                options.namespace,
                options.name,
                said_by(error)
            ),
            Self::NoAnswer => {
                format!("the API server does not answer within {} s", CALL_DEADLINE.as_secs())
            }
        })
    }
}

/// What was seen of the Lease of somebody else.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Its version; `None` once it was deleted.
    version: Option<String>,
    /// For how long it has had this version while it could be renewed.
    unrenewed: Duration,
    /// When it was read last, and could be written.
    read: Instant,
}

impl Seen {
    /// A Lease of this version, which is read now.
    fn of(version: Option<String>) -> Self {
        Self { version, unrenewed: Duration::ZERO, read: Instant::now() }
    }

    /// A Lease that was deleted, as far as is known now.
    fn deleted() -> Self {
        Self::of(None)
    }

    /// Whether nobody is known who has it.
    pub(crate) fn is_of_nobody(&self) -> bool {
        self.version.is_none()
    }

    /// Takes up that it is read again, and could be written. The time since that was so last does
    /// not count when that is long: nobody could renew it.
    fn read_again(&mut self) {
        let since = self.read.elapsed();
        self.read = Instant::now();
        if since <= LOOKS_APART_MAX {
            self.unrenewed += since;
        }
    }
}

/// Attempts to hold a Lease, one after the other.
pub(crate) struct Attempts {
    env: Env,
    api: Api<Lease>,
    options: LeaseOptions,
    pace: Pace,
    seen: Option<Seen>,
    /// Whether a Lease that does not exist, and was not seen before, is made.
    may_make: bool,
}

impl Attempts {
    pub(crate) fn new(env: &Env, client: &Client, options: &LeaseOptions, pace: Pace) -> Self {
        let api = Api::namespaced(client.clone(), &options.namespace);
        Self { env: env.clone(), api, options: options.clone(), pace, seen: None, may_make: true }
    }

    /// Goes on with what was seen before. A Lease that does not exist is not made before it is known
    /// whether somebody may have held one ([`Attempts::looked`]).
    pub(crate) fn after(self, seen: Option<Seen>) -> Self {
        Self { seen, may_make: false, ..self }
    }

    /// What was seen of the Lease of somebody else.
    pub(crate) fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    /// Takes up whether somebody else may hold on a Lease that does not exist any more.
    pub(crate) fn looked(&mut self, may_be_held: bool) {
        (self.seen, self.may_make) = (may_be_held.then(Seen::deleted), true);
    }

    /// Takes up why the Lease that was held is not any more.
    pub(crate) fn lost(&mut self, lost: &Lost) {
        // One that was deleted was ours.
        self.may_make = *lost == Lost::Gone;
    }

    /// Whether somebody else may hold the Lease, as far as was read less than [`Pace::honoured`]
    /// ago.
    pub(crate) fn is_others(&self) -> bool {
        let lasts = |time: Duration| time <= self.pace.honoured;
        self.seen.as_ref().is_some_and(|seen| lasts(seen.unrenewed) && lasts(seen.read.elapsed()))
    }

    /// One attempt.
    pub(crate) async fn next(&mut self) -> Result<Held, Waits> {
        let began = Instant::now();
        let attempt = tokio::time::timeout(CALL_DEADLINE, self.attempt());
        let lease = attempt.await.unwrap_or(Err(Waits::NoAnswer))?;
        self.seen = None;
        Ok(Held {
            env: self.env.clone(),
            api: self.api.clone(),
            options: self.options.clone(),
            pace: self.pace,
            lease,
            renewed: began,
        })
    }

    /// Takes the Lease if nobody else holds it. One that was given back is free at once. One that
    /// was deleted may be held on by whoever was seen with it, until that one finds it out.
    async fn attempt(&mut self) -> Result<Lease, Waits> {
        let (api, options) = (&self.api, &self.options);
        let live = api.get_opt(&options.name).await.map_err(Waits::Error)?;
        if live.is_none() && self.seen.is_none() && !self.may_make {
            return Err(Waits::Missing);
        }
        let holder = live.as_ref().map(|live| holder_of(live).unwrap_or_default());
        let is_free = holder
            .map_or(self.seen.is_none(), |holder| holder.is_empty() || holder == options.identity);
        if !is_free {
            let version = live.as_ref().and_then(Lease::resource_version);
            let is_known = self.seen.as_ref().is_some_and(|seen| seen.version == version);
            if is_known && self.pace.while_writable {
                // Where it is refused, as by a webhook, its holder cannot renew it either.
                self.write(live.as_ref(), true).await?;
            }
            let seen = match self.seen.take() {
                Some(mut known) if known.version == version => {
                    known.read_again();
                    known
                }
                _ => Seen::of(version),
            };
            if self.seen.insert(seen).unrenewed <= self.pace.honoured {
                return Err(Waits::Other(holder.map(ToOwned::to_owned)));
            }
        }
        self.write(live.as_ref(), false).await
    }

    /// Writes that the Lease is ours over what was read of it; `tries` only finds out whether that
    /// could be done.
    async fn write(&self, live: Option<&Lease>, tries: bool) -> Result<Lease, Waits> {
        let params = PostParams { dry_run: tries, ..PostParams::default() };
        let ours = record(&self.env, &self.options, self.pace, live);
        let written = match live {
            None => self.api.create(&params, &ours).await,
            Some(_) => self.api.replace(&self.options.name, &params, &ours).await,
        };
        written.map_err(|error| match &error {
            kube::Error::Api(status) if status.code == 409 => Waits::Conflict,
            // It was deleted since.
            kube::Error::Api(status) if status.code == 404 && live.is_some() => Waits::Conflict,
            _ => Waits::Error(error),
        })
    }
}

/// Waits until we lead, for ever if need be.
pub(crate) async fn acquire(env: &Env, client: &Client, options: &LeaseOptions) -> Held {
    let mut attempts = Attempts::new(env, client, options, LEADER);
    // What was said last: an attempt each second is not a line each second.
    let mut said = String::new();
    loop {
        let waits_for = match attempts.next().await {
            Ok(held) => {
                tracing::info!(identity = options.identity, "this replica leads");
                return held;
            }
            Err(waits) => waits.told(options).unwrap_or_else(|| said.clone()),
        };
        if waits_for != said {
            tracing::info!("{waits_for}; trying again");
            said = waits_for;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Why a Lease is not held any more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// Somebody else holds it.
    Taken,
    /// It was deleted.
    Gone,
    /// It was not renewed in time.
    NotRenewed(Duration),
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Taken => f.write_str("another replica acquired the Lease"),
            Self::Gone => f.write_str("the Lease was deleted"),
            Self::NotRenewed(within) => {
                write!(f, "the Lease could not be renewed for {} s", within.as_secs())
            }
        }
    }
}

impl Held {
    /// Renews for as long as it works; returns why it no longer does. Whatever is awaited meanwhile:
    /// leadership ends at its deadline.
    pub(crate) async fn keep(&mut self) -> Lost {
        loop {
            let deadline = self.renewed + self.pace.deadline;
            match tokio::time::timeout_at(deadline, self.renew()).await {
                Ok(None) => {}
                Ok(Some(lost)) => return lost,
                Err(_) => return Lost::NotRenewed(self.pace.deadline),
            }
        }
    }

    /// One attempt to renew; why the Lease is lost, if it is.
    async fn renew(&mut self) -> Option<Lost> {
        // So that many are not renewed at once.
        tokio::time::sleep(jittered(&self.env, self.pace.renewal)).await;
        let began = Instant::now();
        let next = record(&self.env, &self.options, self.pace, Some(&self.lease));
        let params = PostParams::default();
        let call = self.api.replace(&self.options.name, &params, &next);
        // One that is not answered is repeated while there is time.
        let Ok(answer) = tokio::time::timeout(CALL_DEADLINE, call).await else {
            tracing::warn!("the Lease was not renewed: no answer in {} s", CALL_DEADLINE.as_secs());
            return None;
        };
        match answer {
            Ok(lease) => {
                self.lease = lease;
                self.renewed = began;
            }
            Err(kube::Error::Api(status)) if status.code == 404 => return Some(Lost::Gone),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                match self.api.get(&self.options.name).await {
                    Ok(live) if holder_of(&live) == Some(self.options.identity.as_str()) => {
                        self.lease = live;
                    }
                    Ok(_) => return Some(Lost::Taken),
                    Err(kube::Error::Api(status)) if status.code == 404 => return Some(Lost::Gone),
                    Err(error) => {
                        tracing::warn!(error = said_by(&error), "the Lease could not be read")
                    }
                }
            }
            Err(error) => tracing::warn!(error = said_by(&error), "the Lease was not renewed"),
        }
        None
    }

    /// Gives the Lease back, so that another replica leads at once. Call it when nothing is being
    /// changed any more.
    pub(crate) async fn release(self) {
        let mut free = record(&self.env, &self.options, self.pace, Some(&self.lease));
        if let Some(spec) = &mut free.spec {
            spec.holder_identity = None;
        }
        // With the version that was read last: a Lease that somebody else took is left alone.
        let params = PostParams::default();
        let call = self.api.replace(&self.options.name, &params, &free);
        match tokio::time::timeout(RELEASE_DEADLINE, call).await {
            Ok(Ok(_)) => {
                tracing::info!(namespace = self.options.namespace, "released the Lease")
            }
            Ok(Err(error)) => {
                tracing::warn!(error = said_by(&error), "the Lease was not released")
            }
            Err(_) => {
                tracing::warn!("the Lease was not released within {} s", RELEASE_DEADLINE.as_secs())
            }
        }
    }
}

/// Deletes a Lease if it is ours.
pub(crate) async fn delete(client: &Client, options: &LeaseOptions) {
    let api: Api<Lease> = Api::namespaced(client.clone(), &options.namespace);
    for _ in 0..DELETIONS {
        let deleted = tokio::time::timeout(CALL_DEADLINE, delete_if_held(&api, options)).await;
        match deleted {
            // A renewal was under way.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                let (namespace, error) = (&options.namespace, said_by(&error));
                return tracing::warn!(namespace, error, "the Lease was not deleted; it expires");
            }
            Err(_) => return,
        }
    }
}

async fn delete_if_held(api: &Api<Lease>, options: &LeaseOptions) -> kube::Result<()> {
    let Some(lease) = api.get_opt(&options.name).await? else { return Ok(()) };
    if holder_of(&lease) != Some(options.identity.as_str()) {
        return Ok(());
    }
    let (uid, resource_version) = (lease.uid(), lease.resource_version());
    let params = DeleteParams::default().preconditions(Preconditions { uid, resource_version });
    api.delete(&options.name, &params).await.map(drop)
}

fn holder_of(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}

fn record(env: &Env, options: &LeaseOptions, pace: Pace, old: Option<&Lease>) -> Lease {
    let now = Timestamp::from_millisecond(env.clock.wall_ms()).ok().map(MicroTime);
    let mut lease = old.cloned().unwrap_or_default();
    lease.metadata.name = Some(options.name.clone());
    lease.metadata.namespace = Some(options.namespace.clone());
    lease.metadata.managed_fields = None;
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    if spec.holder_identity.as_deref() != Some(&options.identity) {
        spec.acquire_time = now.clone();
        spec.lease_transitions =
            Some(spec.lease_transitions.map_or(0, |count| count.saturating_add(1)));
        spec.holder_identity = Some(options.identity.clone());
    }
    spec.renew_time = now;
    spec.lease_duration_seconds = i32::try_from(pace.honoured.as_secs()).ok();
    lease
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use http::{Method, Request, Response};
    use kube::client::Body;

    use super::*;

    /// An API server that refuses each renewal, because it is at another version, and then does not
    /// answer a read.
    #[derive(Clone)]
    struct Conflicts;

    impl tower::Service<Request<Body>> for Conflicts {
        type Response = Response<Body>;
        type Error = std::io::Error;
        type Future =
            Pin<Box<dyn Future<Output = Result<Response<Body>, std::io::Error>> + Send + 'static>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            let is_write = request.method() == Method::PUT;
            Box::pin(async move {
                if !is_write {
                    return std::future::pending().await;
                }
                let refusal = r#"{"kind":"Status","status":"Failure","reason":"Conflict","message":"","code":409}"#;
                let answer =
                    Response::builder().status(409).body(refusal.as_bytes().to_vec().into());
                Ok(answer.expect("an answer"))
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn leadership_ends_at_its_deadline_also_while_a_read_is_not_answered() {
        let options = LeaseOptions {
            namespace: "kafka".to_owned(),
            name: "letterbox-operator".to_owned(),
            identity: "a".to_owned(),
        };
        let client = Client::new(Conflicts, "kafka");
        let renewed = Instant::now();
        let mut held = Held {
            env: Env::real(),
            api: Api::namespaced(client, &options.namespace),
            lease: Lease::default(),
            options,
            pace: LEADER,
            renewed,
        };
        let ended = tokio::time::timeout(LEADER.honoured, held.keep()).await;
        assert_eq!(ended, Ok(Lost::NotRenewed(LEADER.deadline)));
        assert!(renewed.elapsed() < LEADER.honoured, "another replica may lead already");
    }
}
