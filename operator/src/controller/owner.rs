//! Who acts in a namespace. Two releases of the chart lead each by a Lease of its own. Where both
//! watch one namespace they would change the same objects in turns, so an operator acts in a
//! namespace only while it holds the Lease there, whose name is the same for all of them. It is held
//! in the name of the release, which all replicas share, and given back by one that stops.
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

use super::Context;
use super::lease::{Attempts, LeaseOptions, Lost, Pace, RETRY, Seen, Waits, release};
use crate::status::Fault;

/// The name of the Lease. The chart's Roles have it too.
const LEASE: &str = "letterbox-operator-of-namespace";
/// The reason of what is not done because another operator does it.
pub(super) const OTHER_OPERATOR: &str = "OtherOperator";
/// There may be many such Leases. Replicas of one release do not wait for each other's end.
const PACE: Pace = Pace {
    honoured: Duration::from_secs(60),
    deadline: Duration::from_secs(40),
    renewal: Duration::from_secs(15),
};
/// How long a pass waits for the answer to the first attempt.
const PATIENCE: Duration = Duration::from_secs(6);
/// Between two attempts at a Lease that another operator holds.
const OTHERS: Duration = Duration::from_secs(5);
/// Between two attempts at a Lease that the API server refuses.
const REFUSED: Duration = Duration::from_secs(30);
/// So many Leases are given back at a time.
const AT_ONCE: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    /// Somebody asks, and nothing was tried yet.
    Asked,
    Us,
    /// Another operator: its namespace, and the name of its own Lease.
    Other(String),
    /// Why that is not known.
    NotKnown(String),
}

/// Who acts in each namespace that has objects of ours.
#[derive(Default)]
pub(super) struct Owners {
    all: watch::Sender<BTreeMap<String, Owner>>,
    /// Since when what others wrote has not changed: whoever of us leads.
    seen: Mutex<BTreeMap<String, Seen>>,
}

impl Owners {
    /// Forgets all of them: this replica does not lead.
    pub(super) fn forget_all(&self) {
        self.all.send_modify(BTreeMap::clear);
    }

    /// True when that is news.
    fn set(&self, namespace: &str, owner: Owner) -> bool {
        self.all.send_if_modified(|all| {
            let old = all.insert(namespace.to_owned(), owner.clone());
            old.as_ref() != Some(&owner)
        })
    }

    /// Who acts in a namespace. The first one who asks makes [`keep`] find it out.
    async fn of(&self, namespace: &str) -> Owner {
        let mut all = self.all.subscribe();
        self.all.send_if_modified(|all| {
            let is_new = !all.contains_key(namespace);
            if is_new {
                all.insert(namespace.to_owned(), Owner::Asked);
            }
            is_new
        });
        let is_told =
            |all: &BTreeMap<String, Owner>| all.get(namespace).is_none_or(|it| *it != Owner::Asked);
        match tokio::time::timeout(PATIENCE, all.wait_for(is_told)).await {
            // The namespace is gone.
            Ok(Ok(all)) => all.get(namespace).cloned().unwrap_or(Owner::Us),
            _ => Owner::Asked,
        }
    }

    /// The namespaces where this operator acts.
    fn ours(&self) -> Vec<String> {
        let all = self.all.borrow();
        let ours = all.iter().filter(|(_, owner)| **owner == Owner::Us);
        ours.map(|(namespace, _)| namespace.clone()).collect()
    }

    fn with_seen<T>(&self, f: impl FnOnce(&mut BTreeMap<String, Seen>) -> T) -> T {
        f(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Why nothing is done in a namespace; `None` where this operator acts. One without a Lease of its
/// own asks nobody.
pub(super) async fn not_ours(context: &Context, namespace: &str) -> Option<Fault> {
    let own = context.options.lease.as_ref()?;
    let not_known = |why: &str| {
        let message = format!("whether another operator manages the objects is not known: {why}");
        ("NotChecked", message)
    };
    let (reason, message) = match context.owners.of(namespace).await {
        Owner::Us => return None,
        Owner::Other(other) => (
            OTHER_OPERATOR,
            format!(
                "the operator {other} manages the objects of namespace {namespace}, so that the \
                 operator {} does not change them; let only one of them watch the namespace \
                 (watchNamespaces, watchAnyNamespace)",
                identity(own)
            ),
        ),
        Owner::NotKnown(why) => not_known(&why),
        Owner::Asked => not_known("the API server does not answer"),
    };
    Some(Fault { reason: reason.to_owned(), message })
}

/// Acquires and renews the Leases of the namespaces that are asked about. Ends when one of them is
/// lost, and says why.
pub(super) async fn keep(context: &Context) -> String {
    let Some(own) = &context.options.lease else { return std::future::pending().await };
    let mut all = context.owners.all.subscribe();
    let (mut begun, mut holds) = (BTreeSet::new(), FuturesUnordered::new());
    loop {
        let asked: Vec<String> = all.borrow_and_update().keys().cloned().collect();
        for namespace in asked {
            if begun.insert(namespace.clone()) {
                let (env, client) = (&context.env, &context.unbounded);
                let options = of_namespace(own, &namespace);
                holds.push(hold(env, client, &context.owners, options));
            }
        }
        tokio::select! {
            biased;
            Some(ended) = holds.next() => match ended {
                Ended::Lost(why) => return why,
                Ended::NoNamespace(namespace) => {
                    begun.remove(&namespace);
                    context.owners.with_seen(|seen| seen.remove(&namespace));
                    context.owners.all.send_modify(|all| drop(all.remove(&namespace)));
                }
            },
            // The sender is the context's own.
            _ = all.changed() => {}
        }
    }
}

/// Gives the Leases back, while nothing is changed any more and no other replica leads.
pub(super) async fn release_all(context: &Context) {
    let Some(own) = &context.options.lease else { return };
    let released = context.owners.ours().into_iter().map(|namespace| {
        let options = of_namespace(own, &namespace);
        async move { release(&context.env, &context.unbounded, &options, PACE).await }
    });
    futures::stream::iter(released).buffer_unordered(AT_ONCE).collect::<()>().await;
}

/// Why a Lease is not held any more.
#[derive(Debug)]
enum Ended {
    Lost(String),
    NoNamespace(String),
}

async fn hold(env: &Env, client: &Client, owners: &Owners, options: LeaseOptions) -> Ended {
    let namespace = &options.namespace;
    let mut attempts = Attempts::new(env, client, &options, PACE);
    attempts.seen = owners.with_seen(|seen| seen.get(namespace).cloned());
    let mut is_others = false;
    loop {
        let pause = match attempts.next().await {
            // Everything is looked at anew, as by one that begins to lead.
            Ok(_) if is_others => {
                return Ended::Lost(format!("it takes over namespace {namespace}"));
            }
            Ok(mut held) => {
                owners.set(namespace, Owner::Us);
                match held.keep().await {
                    Lost::Gone => {
                        owners.set(namespace, Owner::Asked);
                        Duration::ZERO
                    }
                    lost => return Ended::Lost(format!("namespace {namespace}: {lost}")),
                }
            }
            Err(Waits::Other(other)) => {
                is_others = true;
                let seen = attempts.seen.clone();
                owners.with_seen(|all| seen.map(|seen| all.insert(namespace.clone(), seen)));
                if owners.set(namespace, Owner::Other(other.clone())) {
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
            Err(_) if is_others => OTHERS,
            Err(Waits::Error(kube::Error::Api(status))) if status.code == 403 => {
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
                if let Some(why) = waits.told(&options)
                    && owners.set(namespace, Owner::NotKnown(why.clone()))
                {
                    tracing::warn!(namespace, why, "nothing is done in the namespace");
                }
                RETRY
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

    use axum::http::{Method, Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::time::Instant;

    use super::*;

    /// An API server that has one Lease, or none, and what it says to whoever writes it.
    #[derive(Default)]
    struct Server {
        holder: Option<&'static str>,
        version: u32,
        says: Option<(u16, Option<&'static str>)>,
    }

    fn client(server: &Arc<Mutex<Server>>) -> Client {
        let server = server.clone();
        let answer = move |request: Request<Body>| {
            let mut server = server.lock().unwrap();
            let refusal = |code: u16, cause: Option<&str>| {
                let causes: Vec<Value> = cause.iter().map(|it| json!({"reason": it})).collect();
                let details = json!({"causes": causes});
                let (words, reason) = ("it says no", if code == 404 { "NotFound" } else { "" });
                (
                    code,
                    json!({"kind": "Status", "status": "Failure", "reason": reason, "code": code,
                    "message": words, "details": details}),
                )
            };
            let lease = |server: &Server| {
                let version = server.version.to_string();
                json!({"metadata": {"name": LEASE, "namespace": "ns", "resourceVersion": version},
                    "spec": {"holderIdentity": server.holder}})
            };
            let (code, body) = match (request.method() == Method::GET, server.says) {
                (true, _) if server.holder.is_none() => refusal(404, None),
                (true, _) => (200, lease(&server)),
                (false, Some((code, cause))) => refusal(code, cause),
                (false, None) => {
                    (server.holder, server.version) = (Some("us/one"), server.version + 1);
                    (200, lease(&server))
                }
            };
            let body = Body::from(body.to_string().into_bytes());
            let answer = Response::builder().status(code).body(body).unwrap();
            async move { Ok::<_, Infallible>(answer) }
        };
        Client::new(tower::service_fn(answer), "ns")
    }

    fn ours() -> LeaseOptions {
        let own = LeaseOptions {
            namespace: "us".to_owned(),
            name: "one".to_owned(),
            identity: "one-0".to_owned(),
        };
        of_namespace(&own, "ns")
    }

    #[tokio::test(start_paused = true)]
    async fn who_acts_follows_from_what_the_api_server_says_of_the_lease() {
        let other = Owner::Other("them/two".to_owned());
        let why = "the Lease ns/letterbox-operator-of-namespace cannot be acquired: it says no";
        let ending = Some("NamespaceTerminating");
        for (case, holder, says, then, expected) in [
            ("nobody has it", None, None, None, Owner::Us),
            ("we have it", Some("us/one"), None, None, Owner::Us),
            ("another one has it", Some("them/two"), None, None, other.clone()),
            ("no right", None, Some((403, None)), None, Owner::Us),
            ("a fault", None, Some((500, None)), None, Owner::NotKnown(why.to_owned())),
            ("a fault is over", None, Some((500, None)), Some(None), Owner::Us),
            ("the namespace ends", None, Some((403, ending)), None, Owner::Us),
            ("no right any more", Some("them/two"), None, Some(Some((403, None))), other),
            (
                "it is given back, and the namespace ends",
                Some(""),
                Some((403, ending)),
                None,
                Owner::Us,
            ),
        ] {
            let server = Arc::new(Mutex::new(Server { holder, version: 1, says }));
            let (env, client, owners) = (Env::real(), client(&server), Owners::default());
            let begun = Instant::now();
            let asks = async {
                let mut owner = owners.of("ns").await;
                assert!(begun.elapsed() < Duration::from_secs(1), "{case}: the first answer tells");
                if let Some(says) = then {
                    server.lock().unwrap().says = says;
                    tokio::time::sleep(PACE.honoured + OTHERS * 2).await;
                    owner = owners.of("ns").await;
                }
                owner
            };
            let owner = tokio::select! {
                biased;
                owner = asks => owner,
                ended = hold(&env, &client, &owners, ours()) => panic!("{case}: {ended:?}"),
            };
            assert_eq!(owner, expected, "{case}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_one_left_is_taken_over_after_a_while_however_often_we_begin() {
        let holder = Some("them/two");
        let server = Arc::new(Mutex::new(Server { holder, version: 1, says: None }));
        let (env, client, owners) = (Env::real(), client(&server), Owners::default());
        let begun = Instant::now();
        // Leadership is lost meanwhile.
        let most = PACE.honoured - Duration::from_secs(1);
        let ended = tokio::time::timeout(most, hold(&env, &client, &owners, ours())).await;
        assert!(ended.is_err(), "{ended:?}");
        owners.forget_all();
        tokio::time::sleep(OTHERS).await;
        let holds = hold(&env, &client, &owners, ours());
        let is_ours = async {
            while owners.of("ns").await != Owner::Us {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            biased;
            () = is_ours => {}
            // It takes over in another way.
            ended = holds => panic!("{ended:?}"),
        }
        assert!(begun.elapsed() < PACE.honoured + OTHERS * 2, "{:?}", begun.elapsed());
        // One that goes on writing keeps it.
        let server = Arc::new(Mutex::new(Server { holder, version: 1, says: None }));
        let (client, owners) = (self::client(&server), Owners::default());
        let renews = async {
            for _ in 0..20 {
                tokio::time::sleep(PACE.renewal).await;
                server.lock().unwrap().version += 1;
            }
        };
        tokio::select! {
            () = renews => {}
            ended = hold(&env, &client, &owners, ours()) => panic!("{ended:?}"),
        }
    }
}
