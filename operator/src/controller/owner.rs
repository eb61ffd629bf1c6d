//! Who acts in a namespace. Two releases of the chart lead each by a Lease of its own. Where both
//! watch one namespace they would change the same objects in turns, so an operator acts in a
//! namespace only while it holds the Lease there, whose name is the same for all of them. It is held
//! in the name of the release, which all of its pods share: the next pod takes it at once, and
//! another release once it has not been renewed for a minute. It is deleted with the last object.
//!
//! A namespace that is being deleted loses its Lease, and gets no other one. There an operator acts
//! without: it has to let go of what it holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kube::Client;
use kube::core::Status;
use letterbox_env::Env;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Context;
use super::lease::{Attempts, LeaseOptions, Lost, Pace, RETRY, Seen, Waits, delete};
use super::metrics::Object;
use crate::status::Fault;

/// The name of the Lease. The chart's Roles have it too.
const LEASE: &str = "letterbox-operator-of-namespace";
/// The reason of what is not done because another operator does it.
pub(super) const OTHER_OPERATOR: &str = "OtherOperator";
/// The reason of what is not done because another operator may do it.
pub(super) const OWNER_NOT_KNOWN: &str = "OperatorNotKnown";
/// There may be many such Leases. Pods of one release do not wait for each other's end.
const PACE: Pace = Pace {
    honoured: Duration::from_secs(60),
    deadline: Duration::from_secs(40),
    renewal: Duration::from_secs(15),
};
/// How long a pass waits for the answer to the first attempt.
const PATIENCE: Duration = Duration::from_secs(6);
/// Between two attempts at a Lease that another operator holds, or held.
const OTHERS: Duration = Duration::from_secs(5);
/// Between two attempts at a Lease that the API server refuses.
const REFUSED: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    /// Nothing was tried yet.
    Asked,
    Us,
    /// Another operator: its namespace, and the name of its own Lease.
    Other(String),
    /// Why that is not known.
    NotKnown(String),
}

/// A namespace that has objects of ours.
struct Namespace {
    owner: Owner,
    /// Those that were asked about and are not gone: kind and name.
    objects: BTreeSet<(&'static str, String)>,
}

/// Who acts in each namespace that has objects of ours.
#[derive(Default)]
pub(super) struct Owners {
    all: watch::Sender<BTreeMap<String, Namespace>>,
    /// What was seen of Leases that others hold, whoever of us leads.
    seen: Mutex<BTreeMap<String, Seen>>,
}

impl Owners {
    /// Forgets who acts: that is looked at anew.
    pub(super) fn forget_all(&self) {
        self.all.send_modify(BTreeMap::clear);
    }

    /// Takes up that an object is gone. The Lease goes with the last one of a namespace.
    pub(super) fn forget(&self, (kind, namespace, name): &Object) {
        self.all.send_if_modified(|all| {
            let Some(known) = all.get_mut(namespace) else { return false };
            known.objects.remove(&(*kind, name.clone()));
            known.objects.is_empty()
        });
    }

    /// Forgets who acts in a namespace that still has no object.
    fn ends_without_objects(&self, namespace: &str) -> bool {
        let mut ends = true;
        self.all.send_if_modified(|all| {
            ends = all.get(namespace).is_none_or(|known| known.objects.is_empty());
            ends && all.remove(namespace).is_some()
        });
        ends
    }

    /// Takes up who acts; who did before. `None` where that is nobody's business any more. What is
    /// known of another operator counts on while nothing else is known.
    fn set(&self, namespace: &str, owner: Owner) -> Option<Owner> {
        let mut old = None;
        let is_unknown = matches!(owner, Owner::NotKnown(_));
        self.all.send_if_modified(|all| {
            let known = all.get_mut(namespace);
            let known = known.filter(|it| !(is_unknown && matches!(it.owner, Owner::Other(_))));
            let Some(known) = known else { return false };
            let before = std::mem::replace(&mut known.owner, owner);
            let is_news = before != known.owner;
            old = Some(before);
            is_news
        });
        old
    }

    /// Who acts in the namespace of an object. The first one who asks makes [`keep`] find it out.
    async fn of(&self, (kind, namespace, name): &Object) -> Owner {
        let mut all = self.all.subscribe();
        self.all.send_if_modified(|all| {
            let is_new = !all.contains_key(namespace);
            let nothing = || Namespace { owner: Owner::Asked, objects: BTreeSet::new() };
            let known = all.entry(namespace.clone()).or_insert_with(nothing);
            known.objects.insert((*kind, name.clone()));
            is_new
        });
        let owner = |all: &BTreeMap<String, Namespace>| Some(all.get(namespace)?.owner.clone());
        let is_told = |all: &BTreeMap<_, _>| owner(all) != Some(Owner::Asked);
        match tokio::time::timeout(PATIENCE, all.wait_for(is_told)).await {
            // The namespace is gone.
            Ok(Ok(all)) => owner(&all).unwrap_or(Owner::Us),
            _ => Owner::Asked,
        }
    }

    /// Waits until there is no object in a namespace.
    async fn none_in(&self, namespace: &str) {
        // The sender is ours.
        let none = |known: &Namespace| known.objects.is_empty();
        let _ = self.all.subscribe().wait_for(|all| all.get(namespace).is_none_or(none)).await;
    }

    fn with_seen<T>(&self, f: impl FnOnce(&mut BTreeMap<String, Seen>) -> T) -> T {
        f(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Why nothing is done about an object; `None` where this operator acts. One without a Lease of its
/// own asks nobody.
pub(super) async fn not_ours(context: &Context, object: &Object) -> Option<Fault> {
    let own = context.options.lease.as_ref()?;
    let not_known = |why: &str| {
        let message = format!("whether another operator manages the objects is not known: {why}");
        (OWNER_NOT_KNOWN, message)
    };
    let (reason, message) = match context.owners.of(object).await {
        Owner::Us => return None,
        Owner::Other(other) => (
            OTHER_OPERATOR,
            format!(
                "the operator {other} manages the objects of namespace {}, so that the \
                 operator {} does not change them; let only one of them watch the namespace \
                 (watchNamespaces, watchAnyNamespace)",
                object.1,
                identity(own)
            ),
        ),
        Owner::NotKnown(why) => not_known(&why),
        Owner::Asked => not_known("the API server does not answer"),
    };
    Some(Fault { reason: reason.to_owned(), message })
}

/// Acquires and renews the Leases of the namespaces that are asked about. Ends when everything is
/// to be looked at anew, and says why.
pub(super) async fn keep(context: &Context) -> String {
    let Some(own) = &context.options.lease else { return std::future::pending().await };
    let (env, client, owners) = (&context.env, &context.unbounded, &context.owners);
    let mut all = owners.all.subscribe();
    let (mut begun, mut holds) = (BTreeSet::new(), FuturesUnordered::new());
    loop {
        let asked: Vec<String> = all.borrow_and_update().keys().cloned().collect();
        for namespace in asked {
            if begun.insert(namespace.clone()) {
                holds.push(hold_for_objects(env, client, owners, of_namespace(own, &namespace)));
            }
        }
        tokio::select! {
            biased;
            Some(ended) = holds.next() => match ended {
                Ended::Changed(why) => return why,
                Ended::NoObjects(namespace) => drop(begun.remove(&namespace)),
                Ended::NoNamespace(namespace) => {
                    begun.remove(&namespace);
                    owners.with_seen(|seen| seen.remove(&namespace));
                    owners.all.send_modify(|all| drop(all.remove(&namespace)));
                }
            },
            // The sender is the context's own.
            _ = all.changed() => {}
        }
    }
}

/// Why a Lease is not held any more.
#[derive(Debug)]
enum Ended {
    /// This operator begins to act where it did not, or no longer acts where it did.
    Changed(String),
    NoObjects(String),
    NoNamespace(String),
}

/// Holds a Lease for as long as there are objects in its namespace, and deletes it then.
async fn hold_for_objects(
    env: &Env,
    client: &Client,
    owners: &Owners,
    options: LeaseOptions,
) -> Ended {
    {
        let mut held = std::pin::pin!(hold(env, client, owners, &options));
        loop {
            tokio::select! {
                biased;
                () = owners.none_in(&options.namespace) => {
                    // Another object may have come meanwhile.
                    if owners.ends_without_objects(&options.namespace) {
                        break;
                    }
                }
                ended = &mut held => return ended,
            }
        }
    }
    delete(client, &options).await;
    Ended::NoObjects(options.namespace)
}

async fn hold(env: &Env, client: &Client, owners: &Owners, options: &LeaseOptions) -> Ended {
    let namespace = &options.namespace;
    let mut attempts = Attempts::new(env, client, options, PACE);
    attempts.seen = owners.with_seen(|seen| seen.get(namespace).cloned());
    loop {
        let attempt = attempts.next().await;
        owners.with_seen(|all| match attempts.seen.clone() {
            Some(seen) => all.insert(namespace.clone(), seen),
            None => all.remove(namespace),
        });
        let pause = match attempt {
            Ok(mut held) => match owners.set(namespace, Owner::Us) {
                None | Some(Owner::Asked | Owner::Us) => match held.keep().await {
                    Lost::Gone => Duration::ZERO,
                    lost => {
                        if lost == Lost::Taken {
                            let seen = (None, Instant::now());
                            owners.with_seen(|all| all.insert(namespace.clone(), seen));
                        }
                        return Ended::Changed(format!("namespace {namespace}: {lost}"));
                    }
                },
                // As by one that begins to lead.
                _ => return Ended::Changed(format!("it takes over namespace {namespace}")),
            },
            Err(Waits::Other(Some(other))) => {
                let owner = Owner::Other(other.clone());
                if owners.set(namespace, owner.clone()).is_some_and(|old| old != owner) {
                    tracing::warn!(namespace, other, "another operator manages the namespace");
                }
                OTHERS
            }
            Err(Waits::Error(kube::Error::Api(status))) if status.code == 404 => {
                return Ended::NoNamespace(namespace.clone());
            }
            Err(Waits::Error(kube::Error::Api(status))) if is_ending(&status) => {
                owners.set(namespace, Owner::Us);
                OTHERS
            }
            // What another one manages is not ours for lack of a right.
            Err(Waits::Error(kube::Error::Api(status)))
                if status.code == 403 && attempts.seen.is_none() =>
            {
                if owners.set(namespace, Owner::Us).is_some_and(|old| old != Owner::Us) {
                    tracing::warn!(
                        namespace,
                        error = status.message,
                        "cannot acquire the Lease {LEASE}, so that another operator in the \
                         namespace would not be noticed"
                    );
                }
                REFUSED
            }
            Err(waits) => {
                if let Some(why) = waits.told(options) {
                    let owner = Owner::NotKnown(why.clone());
                    if owners.set(namespace, owner.clone()).is_some_and(|old| old != owner) {
                        tracing::warn!(namespace, why, "the namespace is not reconciled");
                    }
                }
                if attempts.seen.is_some() { OTHERS } else { RETRY }
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Whether nothing can be made because the namespace is being deleted.
fn is_ending(status: &Status) -> bool {
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    causes.any(|cause| cause.reason == "NamespaceTerminating")
}

fn of_namespace(own: &LeaseOptions, namespace: &str) -> LeaseOptions {
    LeaseOptions {
        namespace: namespace.to_owned(),
        name: LEASE.to_owned(),
        identity: identity(own),
    }
}

/// The name of this operator for others: the same for all of its replicas.
fn identity(own: &LeaseOptions) -> String {
    format!("{}/{}", own.namespace, own.name)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::http::{Method, Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// An API server that has one Lease, or none, and what it says to whoever asks.
    #[derive(Default)]
    struct Server {
        holder: Option<&'static str>,
        version: u32,
        says: Option<(u16, Option<&'static str>)>,
    }

    impl Server {
        fn held_by(holder: Option<&'static str>) -> Arc<Mutex<Self>> {
            Arc::new(Mutex::new(Self { holder, version: 1, says: None }))
        }

        fn write(&mut self, holder: Option<&'static str>) {
            (self.holder, self.version) = (holder, self.version + 1);
        }

        fn answer(&mut self, method: &Method, body: &Value) -> (u16, Value) {
            let known = ["/metadata", "/preconditions"].iter().find_map(|at| body.pointer(at));
            let known = known.and_then(|of| of["resourceVersion"].as_str());
            let refusal = |code: u16, cause: Option<&str>| {
                let causes: Vec<Value> = cause.iter().map(|it| json!({"reason": it})).collect();
                let (words, reason) = ("it says no", if code == 404 { "NotFound" } else { "" });
                let status = json!({"kind": "Status", "status": "Failure", "reason": reason,
                    "code": code, "message": words, "details": {"causes": causes}});
                (code, status)
            };
            match (method.as_str(), self.says) {
                (_, Some((code, cause))) => return refusal(code, cause),
                ("GET", _) if self.holder.is_none() => return refusal(404, None),
                ("GET", _) => {}
                _ if known.is_some_and(|known| known != self.version.to_string()) => {
                    return refusal(409, None);
                }
                ("DELETE", _) => self.write(None),
                _ => self.write(Some("us/one")),
            }
            let version = self.version.to_string();
            let lease = json!({"metadata": {"name": LEASE, "namespace": "ns", "uid": "1",
                "resourceVersion": version}, "spec": {"holderIdentity": self.holder}});
            (200, lease)
        }
    }

    /// An operator with the namespace `ns`.
    struct Operator {
        client: Client,
        owners: Owners,
        /// How often everything was looked at anew.
        begun: AtomicU32,
    }

    impl Operator {
        fn of(server: &Arc<Mutex<Server>>) -> Self {
            let server = server.clone();
            let answer = move |request: Request<Body>| {
                let server = server.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect_bytes().await.unwrap();
                    let body = serde_json::from_slice(&body).unwrap_or_default();
                    let (code, body) = server.lock().unwrap().answer(&parts.method, &body);
                    let body = Body::from(body.to_string().into_bytes());
                    Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
                }
            };
            let client = Client::new(tower::service_fn(answer), "ns");
            Self { client, owners: Owners::default(), begun: AtomicU32::new(0) }
        }

        async fn lead(&self) -> Infallible {
            loop {
                self.begun.fetch_add(1, Ordering::Relaxed);
                let ended = self.hold().await;
                assert!(matches!(ended, Ended::Changed(_)), "{ended:?}");
                self.owners.forget_all();
                // Somebody asks.
                let _ = tokio::time::timeout(Duration::ZERO, self.owners.of(&topic("a"))).await;
            }
        }

        async fn hold(&self) -> Ended {
            let own = LeaseOptions {
                namespace: "us".to_owned(),
                name: "one".to_owned(),
                identity: "one-0".to_owned(),
            };
            hold_for_objects(&Env::real(), &self.client, &self.owners, of_namespace(&own, "ns"))
                .await
        }

        /// What it comes to while it leads.
        async fn leads<T>(&self, test: impl Future<Output = T>) -> T {
            tokio::select! {
                biased;
                done = test => done,
                never = self.lead() => match never {},
            }
        }

        /// How long it takes until it acts.
        async fn acts_after(&self) -> Duration {
            let begun = Instant::now();
            while self.owners.of(&topic("a")).await != Owner::Us {
                tokio::time::sleep(Duration::from_millis(100)).await;
                assert!(begun.elapsed() < PACE.honoured * 3, "it does not act");
            }
            begun.elapsed()
        }
    }

    fn topic(name: &str) -> Object {
        ("KafkaTopic", "ns".to_owned(), name.to_owned())
    }

    const A_WHILE: Duration = Duration::from_secs(90);

    #[tokio::test(start_paused = true)]
    async fn who_acts_follows_from_what_the_api_server_says_of_the_lease() {
        let other = Owner::Other("them/two".to_owned());
        let why = "the Lease ns/letterbox-operator-of-namespace cannot be acquired: it says no";
        let not_known = Owner::NotKnown(why.to_owned());
        let ending = Some((403, Some("NamespaceTerminating")));
        let (forbidden, fault) = (Some((403, None)), Some((500, None)));
        for (case, holder, says, then, expected) in [
            ("nobody has it", None, None, None, Owner::Us),
            ("we have it", Some("us/one"), None, None, Owner::Us),
            ("it was given back", Some(""), None, None, Owner::Us),
            ("another one has it", Some("them/two"), None, None, other.clone()),
            ("no right", None, forbidden, None, Owner::Us),
            ("a fault", None, fault, None, not_known.clone()),
            ("a fault is over", None, fault, Some(None), Owner::Us),
            ("the namespace ends", None, ending, None, Owner::Us),
            ("no right any more", Some("them/two"), None, Some(forbidden), other.clone()),
            ("a fault beside another one", Some("them/two"), None, Some(fault), other),
            ("it is given back, and the namespace ends", Some(""), ending, None, Owner::Us),
        ] {
            let server = Server::held_by(holder);
            server.lock().unwrap().says = says;
            let operator = Operator::of(&server);
            let begun = Instant::now();
            let asks = async {
                let owner = operator.owners.of(&topic("a")).await;
                assert!(begun.elapsed() < Duration::from_secs(1), "{case}: the first answer tells");
                let Some(says) = then else { return owner };
                server.lock().unwrap().says = says;
                tokio::time::sleep(A_WHILE).await;
                operator.owners.of(&topic("a")).await
            };
            assert_eq!(operator.leads(asks).await, expected, "{case}");
            // It leads anew.
            operator.owners.forget_all();
            let owner = operator.leads(operator.owners.of(&topic("a"))).await;
            let expected = if then.flatten().is_some() { not_known.clone() } else { expected };
            assert_eq!(owner, expected, "{case}, and it leads anew");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_one_left_is_taken_over_after_a_while_however_often_we_begin() {
        let least = PACE.honoured - Duration::from_secs(5);
        for (case, is_deleted, range) in [
            ("not renewed", false, least..PACE.honoured + OTHERS * 2),
            ("deleted", true, PACE.honoured + least..PACE.honoured * 2 + OTHERS * 2),
        ] {
            let server = Server::held_by(Some("them/two"));
            let operator = Operator::of(&server);
            let begun = Instant::now();
            // Leadership is lost meanwhile.
            let most = tokio::time::sleep(PACE.honoured - Duration::from_secs(1));
            let asked = topic("a");
            operator.leads(async { tokio::join!(operator.owners.of(&asked), most) }).await;
            operator.owners.forget_all();
            if is_deleted {
                server.lock().unwrap().write(None);
            }
            tokio::time::sleep(OTHERS).await;
            operator.leads(operator.acts_after()).await;
            assert!(range.contains(&begun.elapsed()), "{case}: {:?}", begun.elapsed());
        }
        // One that goes on writing keeps it.
        let server = Server::held_by(Some("them/two"));
        let operator = Operator::of(&server);
        let renews = async {
            for _ in 0..20 {
                assert_ne!(operator.owners.of(&topic("a")).await, Owner::Us);
                tokio::time::sleep(PACE.renewal).await;
                server.lock().unwrap().write(Some("them/two"));
            }
        };
        operator.leads(renews).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_acts_goes_on_at_once_when_the_lease_is_deleted_and_stops_when_it_is_lost() {
        let server = Server::held_by(None);
        let operator = Operator::of(&server);
        let acts = || async { operator.owners.of(&topic("a")).await == Owner::Us };
        let begun = || operator.begun.load(Ordering::Relaxed);
        let test = async {
            operator.acts_after().await;
            server.lock().unwrap().write(None);
            for _ in 0..PACE.renewal.as_secs() * 2 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert!(acts().await);
            }
            assert_eq!((server.lock().unwrap().holder, begun()), (Some("us/one"), 1));
            server.lock().unwrap().says = Some((500, None));
            tokio::time::sleep(PACE.deadline + RETRY).await;
            assert!(!acts().await && begun() == 2, "nothing is done any more");
            tokio::time::sleep(A_WHILE).await;
            assert_eq!(begun(), 2);
            server.lock().unwrap().says = None;
            assert!(operator.acts_after().await < RETRY * 2);
            assert_eq!(begun(), 3, "and then everything is looked at");
            // Another one takes it.
            server.lock().unwrap().write(Some("them/two"));
            tokio::time::sleep(PACE.renewal * 2).await;
            assert_eq!(operator.owners.of(&topic("a")).await, Owner::Other("them/two".to_owned()));
        };
        operator.leads(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_lease_goes_with_the_last_object_of_the_namespace() {
        for (holder, is_left) in [(None, false), (Some("them/two"), true)] {
            let server = Server::held_by(holder);
            let operator = Operator::of(&server);
            let objects = async {
                for name in ["a", "b", "a"] {
                    operator.owners.of(&topic(name)).await;
                }
                operator.owners.forget(&topic("a"));
                tokio::time::sleep(A_WHILE / 2).await;
                assert!(server.lock().unwrap().holder.is_some(), "there is another object");
                operator.owners.forget(&topic("b"));
                // The next one comes before it is seen that there is none.
                assert_ne!(operator.owners.of(&topic("c")).await, Owner::Asked);
                operator.owners.forget(&topic("c"));
                std::future::pending::<()>().await;
            };
            let ended = tokio::select! {
                biased;
                () = objects => unreachable!(),
                ended = operator.hold() => ended,
            };
            assert!(matches!(ended, Ended::NoObjects(of) if of == "ns"));
            assert_eq!(server.lock().unwrap().holder.is_some(), is_left, "{holder:?}");
        }
    }
}
