//! Who acts in a namespace. Two releases of the chart lead each by a Lease of its own. Where both
//! watch one namespace they would change the same objects in turns, so an operator acts in a
//! namespace only while it holds the Lease there, whose name is the same for all of them. It is held
//! in the name of the release, which all of its pods share: the next pod takes it at once, and
//! another release once it has not been renewed for a minute in which it could be written. It is
//! deleted with the last object. One that is not there is made at once in a namespace in which no
//! object has a status yet: elsewhere it may have been deleted under an operator that acts.
//!
//! A namespace that is being deleted loses its Lease, and gets no other one. There an operator acts
//! without: it has to let go of what it holds.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt as _};
use kube::Client;
use kube::api::{Api, ListParams};
use kube::core::Status;
use letterbox_env::Env;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Context;
use super::lease::{Attempts, Held, LeaseOptions, Lost, Pace, RETRY, Seen, Waits, delete};
use super::metrics::Object;
use super::objects::{Guarded, Ours, PAGE};
use crate::api::{KafkaCluster, KafkaTopic};
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
    while_writable: true,
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
    since: Instant,
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

    /// The namespaces and names of the objects of a kind, in `scope` or everywhere, each time when
    /// this operator begins to act in their namespace, or no longer acts there.
    pub(super) fn changed(
        &self,
        kind: &'static str,
        scope: Option<&str>,
    ) -> impl Stream<Item = (String, String)> + Send + use<> {
        let scope = scope.map(ToOwned::to_owned);
        let state = (self.all.subscribe(), BTreeMap::new());
        let changed = futures::stream::unfold(state, move |(mut all, mut known)| {
            let scope = scope.clone();
            async move {
                all.changed().await.ok()?;
                let mut found = Vec::new();
                let mut now = BTreeMap::new();
                for (namespace, it) in &*all.borrow_and_update() {
                    let new = (it.owner.clone(), it.since);
                    // Whoever asks first waits for the answer.
                    let is_news = |old: &(Owner, Instant)| old.0 != Owner::Asked && *old != new;
                    let is_ours = scope.as_ref().is_none_or(|scope| scope == namespace);
                    if is_ours && known.get(namespace).is_some_and(is_news) {
                        let objects = it.objects.iter().filter(|(of, _)| *of == kind);
                        found.extend(objects.map(|(_, name)| (namespace.clone(), name.clone())));
                    }
                    now.insert(namespace.clone(), new);
                }
                known = now;
                Some((futures::stream::iter(found), (all, known)))
            }
        });
        changed.flatten()
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

    /// Takes up who acts. Answers whether that is news.
    fn set(&self, namespace: &str, owner: Owner) -> bool {
        self.all.send_if_modified(|all| {
            let known = all.get_mut(namespace).filter(|known| known.owner != owner);
            let Some(known) = known else { return false };
            (known.owner, known.since) = (owner, Instant::now());
            true
        })
    }

    /// Whether another operator is known to act in a namespace.
    fn is_others(&self, namespace: &str) -> bool {
        let is_it = |known: &Namespace| matches!(known.owner, Owner::Other(_));
        self.all.borrow().get(namespace).is_some_and(is_it)
    }

    /// Since when this operator acts in a namespace, if it does.
    fn ours_since(&self, namespace: &str) -> Option<Instant> {
        let all = self.all.borrow();
        all.get(namespace).filter(|known| known.owner == Owner::Us).map(|known| known.since)
    }

    /// Waits until this operator does not act in a namespace as it has since then.
    async fn ends(&self, namespace: &str, since: Instant) {
        // While a namespace without objects is forgotten, the last one may still be told about.
        let is_over = |known: &Namespace| known.owner != Owner::Us || known.since != since;
        // The sender is ours.
        let _ = self.all.subscribe().wait_for(|all| all.get(namespace).is_some_and(is_over)).await;
    }

    /// Who acts in the namespace of an object. The first one who asks makes [`keep`] find it out.
    async fn of(&self, (kind, namespace, name): &Object) -> Owner {
        let mut all = self.all.subscribe();
        self.all.send_if_modified(|all| {
            let is_new = !all.contains_key(namespace);
            let nothing = || Namespace {
                owner: Owner::Asked,
                since: Instant::now(),
                objects: BTreeSet::new(),
            };
            let known = all.entry(namespace.clone()).or_insert_with(nothing);
            known.objects.insert((*kind, name.clone()));
            is_new
        });
        let owner = |all: &BTreeMap<String, Namespace>| Some(all.get(namespace)?.owner.clone());
        let is_told = |all: &BTreeMap<_, _>| owner(all) != Some(Owner::Asked);
        match tokio::time::timeout(PATIENCE, all.wait_for(is_told)).await {
            // It is asked again by who still needs it in a namespace that was forgotten meanwhile.
            Ok(Ok(all)) => owner(&all).unwrap_or(Owner::Asked),
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

/// Since when this operator acts in a namespace; `None` where it does not. One without a Lease of
/// its own has acted everywhere since it `began`.
pub(super) fn ours_since(context: &Context, namespace: &str, began: Instant) -> Option<Instant> {
    match &context.options.lease {
        Some(_) => context.owners.ours_since(namespace),
        None => Some(began),
    }
}

/// What `work` in a namespace comes to. It is dropped, at any point, as soon as this operator does
/// not act there any more: every step is safe to repeat.
pub(super) async fn while_ours<T>(
    context: &Context,
    namespace: &str,
    work: impl Future<Output = T>,
) -> Option<T> {
    if context.options.lease.is_none() {
        return Some(work.await);
    }
    let since = context.owners.ours_since(namespace)?;
    tokio::select! {
        biased;
        () = context.owners.ends(namespace, since) => None,
        done = work => Some(done),
    }
}

/// Acquires and renews the Leases of the namespaces that are asked about, for ever.
pub(super) async fn keep(context: &Context) -> Infallible {
    let Some(own) = &context.options.lease else { return std::future::pending().await };
    let owners = &context.owners;
    let holder =
        Holder { env: &context.env, leases: &context.unbounded, objects: &context.client, owners };
    let mut all = owners.all.subscribe();
    let (mut begun, mut holds) = (BTreeSet::new(), FuturesUnordered::new());
    loop {
        let asked: Vec<String> = all.borrow_and_update().keys().cloned().collect();
        for namespace in asked {
            if begun.insert(namespace.clone()) {
                holds.push(hold_for_objects(&holder, of_namespace(own, &namespace)));
            }
        }
        tokio::select! {
            biased;
            Some(ended) = holds.next() => match ended {
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

/// What holds Leases.
struct Holder<'a> {
    env: &'a Env,
    leases: &'a Client,
    objects: &'a Client,
    owners: &'a Owners,
}

/// Why a Lease is not held any more.
#[derive(Debug)]
enum Ended {
    NoObjects(String),
    NoNamespace(String),
}

/// Holds a Lease for as long as there are objects in its namespace, and deletes it then.
async fn hold_for_objects(holder: &Holder<'_>, options: LeaseOptions) -> Ended {
    {
        let mut held = std::pin::pin!(hold(holder, &options));
        loop {
            tokio::select! {
                biased;
                () = holder.owners.none_in(&options.namespace) => {
                    // Another object may have come meanwhile.
                    if holder.owners.ends_without_objects(&options.namespace) {
                        break;
                    }
                }
                () = &mut held => return Ended::NoNamespace(options.namespace.clone()),
            }
        }
    }
    delete(holder.leases, &options).await;
    Ended::NoObjects(options.namespace)
}

/// Holds a Lease whenever it can. Ends when its namespace is gone.
async fn hold(holder: &Holder<'_>, options: &LeaseOptions) {
    let (owners, namespace) = (holder.owners, &options.namespace);
    let seen = owners.with_seen(|seen| seen.get(namespace).cloned());
    let mut attempts = Attempts::new(holder.env, holder.leases, options, PACE).after(seen);
    loop {
        let attempt = attempt(holder.objects, namespace, &mut attempts).await;
        owners.with_seen(|all| match attempts.seen().cloned() {
            Some(seen) => all.insert(namespace.clone(), seen),
            None => all.remove(namespace),
        });
        let pause = match attempt {
            Ok(mut held) => {
                let is_others = owners.is_others(namespace);
                if owners.set(namespace, Owner::Us) && is_others {
                    tracing::warn!(namespace, "this operator takes over the namespace");
                }
                let lost = held.keep().await;
                if lost != Lost::Gone {
                    tracing::warn!(namespace, why = %lost, "work in the namespace is interrupted");
                    owners.set(namespace, Owner::Asked);
                }
                attempts.lost(&lost);
                Duration::ZERO
            }
            Err(Waits::Other(Some(other))) => {
                if owners.set(namespace, Owner::Other(other.clone())) {
                    tracing::warn!(namespace, other, "another operator manages the namespace");
                }
                OTHERS
            }
            Err(Waits::Error(kube::Error::Api(status))) if status.code == 404 => return,
            Err(Waits::Error(kube::Error::Api(status))) if is_ending(&status) => {
                owners.set(namespace, Owner::Us);
                OTHERS
            }
            // What another one manages is not ours for lack of a right.
            Err(Waits::Error(kube::Error::Api(status)))
                if lacks_right(&status) && attempts.seen().is_none_or(Seen::is_of_nobody) =>
            {
                if owners.set(namespace, Owner::Us) {
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
                // What is known of another one counts on for as long as its Lease.
                let is_others = attempts.is_others() && owners.is_others(namespace);
                if let Some(why) = waits.told(options).filter(|_| !is_others)
                    && owners.set(namespace, Owner::NotKnown(why.clone()))
                {
                    tracing::warn!(namespace, why, "the namespace is not reconciled");
                }
                if attempts.seen().is_some() { OTHERS } else { RETRY }
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// One attempt. Where the Lease does not exist and this operator has not seen it, it may just have
/// been deleted, and another operator that acts there may not know it yet.
async fn attempt(
    objects: &Client,
    namespace: &str,
    attempts: &mut Attempts,
) -> Result<Held, Waits> {
    match attempts.next().await {
        Err(Waits::Missing) => {}
        attempt => return attempt,
    }
    let looks = async {
        Ok(was_acted_on::<KafkaCluster>(objects, namespace).await?
            || was_acted_on::<KafkaTopic>(objects, namespace).await?)
    };
    let looks = tokio::time::timeout(PATIENCE, looks).await;
    attempts.looked(looks.unwrap_or(Err(Waits::NoAnswer))?);
    attempts.next().await
}

/// Whether the first objects of a kind say that an operator has acted on them.
async fn was_acted_on<K: Ours>(client: &Client, namespace: &str) -> Result<bool, Waits> {
    let api: Api<Guarded<K>> = Api::namespaced(client.clone(), namespace);
    match api.list(&ListParams::default().limit(PAGE)).await {
        Ok(list) => Ok(list.items.iter().any(Guarded::has_status)),
        // There are none.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        // There may be some.
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(true),
        Err(error) => Err(Waits::Error(error)),
    }
}

/// Whether the authorizer refuses something about Leases. Admission refuses with the same code: a
/// quota, a policy, a webhook.
fn lacks_right(status: &Status) -> bool {
    let refused = status.message.strip_prefix("leases.coordination.k8s.io ");
    let why = refused.and_then(|it| it.split_once("is forbidden: ")).map(|(_, why)| why);
    status.code == 403 && why.is_some_and(|why| why.starts_with("User \""))
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
    use std::sync::Arc;

    use axum::http::{Method, Request, Response, Uri};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// What an API server says to whoever asks about Leases.
    #[derive(Clone, Copy)]
    struct Says {
        code: u16,
        words: &'static str,
        /// Whether it answers reads.
        reads: bool,
    }

    const FAULT: Says = Says { code: 500, words: "it says no", reads: false };
    const FORBIDDEN: Says = Says {
        code: 403,
        words: "leases.coordination.k8s.io \"a\" is forbidden: User \"us\" cannot get resource",
        reads: false,
    };
    const ENDING: Says = Says { code: 403, words: "NamespaceTerminating", reads: false };

    /// An API server that has one Lease, or none.
    #[derive(Default)]
    struct Server {
        holder: Option<String>,
        version: u32,
        says: Option<Says>,
        /// Whether objects have a status.
        acted: bool,
        /// How many requests it answers yet, if it is to fall silent.
        answers_left: Option<u32>,
    }

    impl Server {
        /// Whether it answers one more request.
        fn answers(&mut self) -> bool {
            let left = self.answers_left.map(|left| left.checked_sub(1));
            self.answers_left = left.map(Option::unwrap_or_default);
            left != Some(None)
        }

        fn held_by(holder: Option<&str>) -> Arc<Mutex<Self>> {
            let holder = holder.map(ToOwned::to_owned);
            Arc::new(Mutex::new(Self { holder, version: 1, ..Self::default() }))
        }

        fn write(&mut self, holder: Option<&str>) {
            (self.holder, self.version) = (holder.map(ToOwned::to_owned), self.version + 1);
        }

        fn list(&self) -> Value {
            let condition = json!({"type": "Ready", "status": "True", "reason": "", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"});
            let status = if self.acted { json!({"conditions": [condition]}) } else { json!({}) };
            let object = json!({"metadata": {"name": "a"}, "status": status, "spec": {}});
            json!({"metadata": {}, "items": [object]})
        }

        fn answer(&mut self, method: &Method, uri: &Uri, body: &Value) -> (u16, Value) {
            let path = uri.path();
            if path.ends_with("kafkaclusters") || path.ends_with("kafkatopics") {
                return (200, self.list());
            }
            let known = ["/metadata", "/preconditions"].iter().find_map(|at| body.pointer(at));
            let known = known.and_then(|of| of["resourceVersion"].as_str());
            let refusal = |code: u16, words: &str| {
                let reason = if code == 404 { "NotFound" } else { "" };
                let status = json!({"kind": "Status", "status": "Failure", "reason": reason,
                    "code": code, "message": words, "details": {"causes": [{"reason": words}]}});
                (code, status)
            };
            let is_read = method == Method::GET;
            match (method.as_str(), &self.says) {
                // Before anybody is asked whether it may be written.
                ("PUT", _) if self.holder.is_none() => return refusal(404, ""),
                (_, Some(says)) if !(is_read && says.reads) => {
                    return refusal(says.code, says.words);
                }
                ("GET", _) if self.holder.is_none() => return refusal(404, ""),
                ("GET", _) => {}
                ("POST", _) if self.holder.is_some() => return refusal(409, ""),
                _ if known.is_some_and(|known| known != self.version.to_string()) => {
                    return refusal(409, "");
                }
                _ if uri.query().is_some_and(|query| query.contains("dryRun=All")) => {}
                ("DELETE", _) => self.write(None),
                _ => self.write(body["spec"]["holderIdentity"].as_str()),
            }
            let version = self.version.to_string();
            let lease = json!({"metadata": {"name": LEASE, "namespace": "ns", "uid": "1",
                "resourceVersion": version}, "spec": {"holderIdentity": self.holder}});
            (200, lease)
        }
    }

    /// An operator with the namespace `ns`.
    struct Operator {
        name: &'static str,
        client: Client,
        owners: Owners,
    }

    impl Operator {
        fn of(server: &Arc<Mutex<Server>>) -> Self {
            Self::named("one", server)
        }

        fn named(name: &'static str, server: &Arc<Mutex<Server>>) -> Self {
            let server = server.clone();
            let answer = move |request: Request<Body>| {
                let server = server.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect_bytes().await.unwrap();
                    let body = serde_json::from_slice(&body).unwrap_or_default();
                    let (method, uri) = (parts.method, parts.uri);
                    if !server.lock().unwrap().answers() {
                        return std::future::pending().await;
                    }
                    let (code, body) = server.lock().unwrap().answer(&method, &uri, &body);
                    let body = Body::from(body.to_string().into_bytes());
                    Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
                }
            };
            let client = Client::new(tower::service_fn(answer), "ns");
            Self { name, client, owners: Owners::default() }
        }

        async fn hold(&self) -> Ended {
            let own = LeaseOptions {
                namespace: "us".to_owned(),
                name: self.name.to_owned(),
                identity: format!("{}-0", self.name),
            };
            let env = Env::real();
            let (leases, objects) = (&self.client, &self.client);
            let holder = Holder { env: &env, leases, objects, owners: &self.owners };
            hold_for_objects(&holder, of_namespace(&own, "ns")).await
        }

        /// What it comes to while it leads.
        async fn leads<T>(&self, test: impl Future<Output = T>) -> T {
            tokio::select! {
                biased;
                done = test => done,
                ended = self.hold() => panic!("{ended:?}"),
            }
        }

        async fn acts(&self) -> bool {
            self.owners.of(&topic("a")).await == Owner::Us
        }

        /// How long it takes until it acts.
        async fn acts_after(&self) -> Duration {
            let begun = Instant::now();
            while !self.acts().await {
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
        let (them, other) = (Some("them/two"), Owner::Other("them/two".to_owned()));
        let not_known = |words: &str| {
            let why = "the Lease ns/letterbox-operator-of-namespace cannot be acquired";
            Owner::NotKnown(format!("{why}: {words}"))
        };
        let quota = "leases.coordination.k8s.io \"a\" is forbidden: exceeded quota: small";
        let webhook = "admission webhook \"a\" denied the request: leases.coordination.k8s.io \
            is forbidden: User \"us\" cannot create resource";
        let no = |words| Some(Says { code: 403, words, reads: false });
        let (forbidden, fault) = (Some(FORBIDDEN), Some(FAULT));
        let writes = |says: Says| Some(Some(Says { reads: true, ..says }));
        for (case, holder, says, then, expected) in [
            ("nobody has it", None, None, None, Owner::Us),
            ("we have it", Some("us/one"), None, None, Owner::Us),
            ("it was given back", Some(""), None, None, Owner::Us),
            ("another one has it", them, None, None, other.clone()),
            ("no right", None, forbidden, None, Owner::Us),
            ("no right to make it", None, Some(Says { reads: true, ..FORBIDDEN }), None, Owner::Us),
            ("a quota", None, no(quota), None, not_known(quota)),
            ("a webhook", None, no(webhook), None, not_known(webhook)),
            ("a fault", None, fault, None, not_known(FAULT.words)),
            ("a fault is over", None, fault, Some(None), Owner::Us),
            ("the namespace ends", None, Some(ENDING), None, Owner::Us),
            ("no right any more", them, None, Some(forbidden), not_known(FORBIDDEN.words)),
            ("a fault beside another one", them, None, Some(fault), not_known(FAULT.words)),
            (
                "another one is gone, and no right",
                them,
                None,
                writes(FORBIDDEN),
                not_known(FORBIDDEN.words),
            ),
            ("another one is gone, and a fault", them, None, writes(FAULT), not_known(FAULT.words)),
            ("it is given back, and the namespace ends", Some(""), Some(ENDING), None, Owner::Us),
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
                tokio::time::sleep(A_WHILE / 2).await;
                let counts_on = operator.owners.of(&topic("a")).await;
                assert!(says.is_none() || counts_on == other, "{case}: {counts_on:?}");
                tokio::time::sleep(A_WHILE / 2).await;
                operator.owners.of(&topic("a")).await
            };
            assert_eq!(operator.leads(asks).await, expected, "{case}");
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
                assert!(!operator.acts().await);
                tokio::time::sleep(PACE.renewal).await;
                server.lock().unwrap().write(Some("them/two"));
            }
        };
        operator.leads(renews).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_in_which_nobody_could_renew_does_not_count() {
        let server = Server::held_by(Some("them/two"));
        let operator = Operator::of(&server);
        let outage = async {
            assert!(!operator.acts().await);
            tokio::time::sleep(PACE.renewal).await;
            server.lock().unwrap().says = Some(FAULT);
            tokio::time::sleep(A_WHILE).await;
            server.lock().unwrap().says = None;
            // The other one renews when it is its time.
            for _ in 0..PACE.renewal.as_secs() * 5 / 4 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert!(!operator.acts().await);
            }
            operator.acts_after().await;
        };
        operator.leads(outage).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_stays_with_its_operator_when_no_lease_could_be_written_for_long() {
        // It is there meanwhile, or is not, as when it was deleted.
        for is_there in [true, false] {
            let server = Server::held_by(None);
            let (first, second) = (Operator::named("a", &server), Operator::named("b", &server));
            let both = async {
                assert!(first.acts().await);
                let refused = async {
                    assert!(!second.acts().await);
                    {
                        let mut held = server.lock().unwrap();
                        held.acted = true;
                        if !is_there {
                            held.write(None);
                        }
                        held.says = Some(Says { reads: true, ..FAULT });
                    }
                    for _ in 0..A_WHILE.as_secs() {
                        assert!(!second.acts().await, "it may be the other's");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    assert!(!first.acts().await, "it is not renewed");
                    server.lock().unwrap().says = None;
                    first.acts_after().await;
                    tokio::time::sleep(A_WHILE).await;
                    assert!(first.acts().await && !second.acts().await);
                };
                second.leads(refused).await;
            };
            first.leads(both).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_was_deleted_is_not_made_under_an_operator_that_acts() {
        for acted in [true, false] {
            let server = Server::held_by(None);
            let (first, second) = (Operator::named("a", &server), Operator::named("b", &server));
            let test = async {
                let begun = Instant::now();
                assert!(first.acts().await, "nobody has acted there");
                // It is renewed, and deleted just after that.
                let version = || server.lock().unwrap().version;
                let before = version();
                while version() == before {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                let mut server = server.lock().unwrap();
                server.write(None);
                server.acted = acted;
                begun
            };
            let both = async {
                test.await;
                let begins = second.leads(async {
                    for _ in 0..60 {
                        let (one, two) = (first.acts().await, second.acts().await);
                        assert!(!(one && two && acted), "both act");
                        assert!(one || two, "nobody acts");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                });
                begins.await;
            };
            first.leads(both).await;
            assert_eq!(server.lock().unwrap().holder.as_deref() == Some("us/a"), acted);
        }
        // Nobody has it any more.
        let server = Server::held_by(None);
        server.lock().unwrap().acted = true;
        let operator = Operator::of(&server);
        let after = operator.leads(operator.acts_after()).await;
        assert!((PACE.honoured..PACE.honoured + OTHERS * 2).contains(&after), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_acts_goes_on_when_the_lease_is_deleted_and_is_interrupted_when_it_is_lost() {
        // Another pod of it has made the Lease and acted.
        let server = Server::held_by(Some("us/one"));
        server.lock().unwrap().acted = true;
        let operator = Operator::of(&server);
        let (owners, second) = (&operator.owners, Duration::from_secs(1));
        let test = async {
            operator.acts_after().await;
            let since = owners.ours_since("ns").unwrap();
            let mut ends = std::pin::pin!(owners.ends("ns", since));
            server.lock().unwrap().write(None);
            for _ in 0..PACE.renewal.as_secs() * 2 {
                assert!(tokio::time::timeout(second, &mut ends).await.is_err());
                assert!(operator.acts().await);
            }
            assert_eq!(server.lock().unwrap().holder.as_deref(), Some("us/one"));
            server.lock().unwrap().says = Some(FAULT);
            let ended = tokio::time::timeout(PACE.deadline + RETRY, &mut ends).await;
            assert!(ended.is_ok() && !operator.acts().await, "nothing is done any more");
            assert_eq!(owners.ours_since("ns"), None);
            tokio::time::sleep(A_WHILE).await;
            server.lock().unwrap().says = None;
            assert!(operator.acts_after().await < RETRY * 2);
            let again = owners.ours_since("ns").unwrap();
            assert!(again > since);
            tokio::time::timeout(second, owners.ends("ns", since)).await.expect("that is over");
            // Another one takes it.
            server.lock().unwrap().write(Some("them/two"));
            let ended = tokio::time::timeout(PACE.renewal * 2, owners.ends("ns", again)).await;
            assert!(ended.is_ok());
            assert_eq!(owners.of(&topic("a")).await, Owner::Other("them/two".to_owned()));
        };
        operator.leads(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_loses_the_lease_stops_before_it_knows_more_and_makes_no_other_one_at_once() {
        let server = Server::held_by(Some("us/one"));
        server.lock().unwrap().acted = true;
        let operator = Operator::of(&server);
        let (owners, moment) = (&operator.owners, Duration::from_millis(10));
        let test = async {
            operator.acts_after().await;
            let since = owners.ours_since("ns").unwrap();
            server.lock().unwrap().write(Some("them/two"));
            // The renewal is refused, the Lease is read, and the API server falls silent.
            server.lock().unwrap().answers_left = Some(2);
            while server.lock().unwrap().answers_left != Some(0) {
                tokio::time::sleep(moment).await;
            }
            let ended = tokio::time::timeout(moment, owners.ends("ns", since)).await;
            assert!(ended.is_ok(), "the other one acts already");
            // It was not read again before it was deleted, and the other one may not know that.
            server.lock().unwrap().write(None);
            server.lock().unwrap().answers_left = None;
            operator.acts_after().await
        };
        let after = operator.leads(test).await;
        assert!(after > PACE.honoured - OTHERS, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_acts_in_a_namespace_is_news_to_its_own_objects() {
        let owners = Owners::default();
        let mut told = std::pin::pin!(owners.changed("KafkaTopic", None));
        let mut elsewhere = std::pin::pin!(owners.changed("KafkaTopic", Some("elsewhere")));
        let cluster = ("KafkaCluster", "ns".to_owned(), "c".to_owned());
        for object in [topic("a"), cluster, ("KafkaTopic", "other".to_owned(), "b".to_owned())] {
            let asks = owners.of(&object);
            assert!(tokio::time::timeout(RETRY, asks).await.is_err());
            let next = tokio::time::timeout(RETRY, told.next()).await;
            assert!(next.is_err(), "who asks first waits");
        }
        let mut next = async || tokio::time::timeout(RETRY, told.next()).await.ok().flatten();
        let at = |namespace: &str, name: &str| Some((namespace.to_owned(), name.to_owned()));
        for (namespace, owner, expected) in [
            ("ns", Owner::Us, None),
            ("other", Owner::Us, None),
            ("other", Owner::Us, None),
            ("ns", Owner::Asked, at("ns", "a")),
            ("ns", Owner::Other("them/two".to_owned()), None),
            ("ns", Owner::Us, at("ns", "a")),
        ] {
            owners.set(namespace, owner.clone());
            assert_eq!(next().await, expected, "{namespace} {owner:?}");
        }
        // It is lost and held again before anybody looks.
        tokio::time::advance(RETRY).await;
        assert!(owners.set("other", Owner::Asked) && owners.set("other", Owner::Us));
        assert_eq!((next().await, next().await), (at("other", "b"), None));
        assert!(tokio::time::timeout(RETRY, elsewhere.next()).await.is_err());
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
                let since = operator.owners.ours_since("ns").unwrap_or_else(Instant::now);
                operator.owners.forget(&topic("a"));
                tokio::time::sleep(A_WHILE / 2).await;
                assert!(server.lock().unwrap().holder.is_some(), "there is another object");
                operator.owners.forget(&topic("b"));
                // The next one comes before it is seen that there is none.
                assert_ne!(operator.owners.of(&topic("c")).await, Owner::Asked);
                operator.owners.forget(&topic("c"));
                // What is told of the last one is told.
                operator.owners.ends("ns", since).await;
                assert!(is_left);
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
