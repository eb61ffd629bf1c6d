//! Who acts in a namespace. Two releases of the chart lead each by a Lease of its own. Where both
//! watch one namespace they would change the same objects in turns, so an operator acts in a
//! namespace only while it holds the Lease there, whose name is the same for all of them. It is held
//! in the name of the release, which all replicas share.
//!
//! A namespace that is being deleted loses its Lease, and gets no other one. There an operator acts
//! without: it has to let go of what it holds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;

use super::Context;
use super::lease::{Attempts, LeaseOptions, Lost, RETRY, Waits};
use crate::status::Fault;

/// The name of the Lease. The chart's Roles have it too.
const LEASE: &str = "letterbox-operator-of-namespace";
/// The reason of what is not done because another operator does it.
pub(super) const OTHER_OPERATOR: &str = "OtherOperator";
/// Between two renewals of such a Lease, of which there may be many.
const RENEW: Duration = Duration::from_secs(4);
/// How long a pass waits until it is known who acts.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two attempts at a Lease that the API server refuses.
const REFUSED: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    NotKnown,
    Us,
    /// Another operator: its namespace, and the name of its own Lease.
    Other(String),
}

/// Who acts in each namespace that has objects of ours.
#[derive(Default)]
pub(super) struct Owners(watch::Sender<BTreeMap<String, Owner>>);

impl Owners {
    /// Forgets all of them: this replica does not lead.
    pub(super) fn forget_all(&self) {
        self.0.send_modify(BTreeMap::clear);
    }

    /// True when that is news.
    fn set(&self, namespace: &str, owner: Owner) -> bool {
        self.0.send_if_modified(|all| {
            let old = all.insert(namespace.to_owned(), owner.clone());
            old.as_ref() != Some(&owner)
        })
    }

    /// Who acts in a namespace. The first one who asks makes [`keep`] find it out.
    async fn of(&self, namespace: &str) -> Owner {
        let mut all = self.0.subscribe();
        self.0.send_if_modified(|all| {
            let is_new = !all.contains_key(namespace);
            if is_new {
                all.insert(namespace.to_owned(), Owner::NotKnown);
            }
            is_new
        });
        let is_known = |all: &BTreeMap<String, Owner>| {
            all.get(namespace).is_some_and(|owner| *owner != Owner::NotKnown)
        };
        match tokio::time::timeout(PATIENCE, all.wait_for(is_known)).await {
            Ok(Ok(all)) => all.get(namespace).cloned().unwrap_or(Owner::NotKnown),
            _ => Owner::NotKnown,
        }
    }
}

/// Why nothing is done in a namespace; `None` where this operator acts. One without a Lease of its
/// own asks nobody.
pub(super) async fn not_ours(context: &Context, namespace: &str) -> Option<Fault> {
    let own = context.options.lease.as_ref()?;
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
        Owner::NotKnown => (
            "NotChecked",
            format!(
                "it is not known yet whether another operator manages namespace {namespace}: the \
                 Lease {LEASE} could not be acquired"
            ),
        ),
    };
    Some(Fault { reason: reason.to_owned(), message })
}

/// Acquires and renews the Leases of the namespaces that are asked about. Ends when one of them is
/// lost, and says why.
pub(super) async fn keep(context: &Context) -> String {
    let Some(own) = &context.options.lease else { return std::future::pending().await };
    let mut all = context.owners.0.subscribe();
    let (mut begun, mut holds) = (BTreeSet::new(), FuturesUnordered::new());
    loop {
        let asked: Vec<String> = all.borrow_and_update().keys().cloned().collect();
        for namespace in asked {
            if begun.insert(namespace.clone()) {
                holds.push(hold(context, own, namespace));
            }
        }
        tokio::select! {
            biased;
            Some(ended) = holds.next() => match ended {
                Ended::Lost(why) => return why,
                Ended::NoNamespace(namespace) => {
                    begun.remove(&namespace);
                    context.owners.0.send_modify(|all| drop(all.remove(&namespace)));
                }
            },
            // The sender is the context's own.
            _ = all.changed() => {}
        }
    }
}

/// Why a Lease is not held any more.
enum Ended {
    Lost(String),
    NoNamespace(String),
}

async fn hold(context: &Context, own: &LeaseOptions, namespace: String) -> Ended {
    let options = LeaseOptions {
        namespace: namespace.clone(),
        name: LEASE.to_owned(),
        identity: identity(own),
    };
    let mut was_others = false;
    let mut attempts = Attempts::new(&context.env, &context.unbounded, &options, RENEW);
    loop {
        let pause = match attempts.next().await {
            // Everything is looked at anew, as by one that begins to lead.
            Ok(_) if was_others => {
                return Ended::Lost(format!("it takes over namespace {namespace}"));
            }
            Ok(mut held) => {
                context.owners.set(&namespace, Owner::Us);
                match held.keep().await {
                    Lost::Gone => {
                        context.owners.set(&namespace, Owner::NotKnown);
                        Duration::ZERO
                    }
                    lost => return Ended::Lost(format!("namespace {namespace}: {lost}")),
                }
            }
            Err(Waits::Other(other)) => {
                was_others = true;
                if context.owners.set(&namespace, Owner::Other(other.clone())) {
                    tracing::warn!(namespace, other, "another operator manages the namespace");
                }
                RETRY
            }
            Err(Waits::Error(kube::Error::Api(status))) if status.code == 404 => {
                return Ended::NoNamespace(namespace);
            }
            Err(Waits::Error(kube::Error::Api(status))) if status.code == 403 => {
                if context.owners.set(&namespace, Owner::Us) {
                    tracing::warn!(
                        namespace,
                        error = status.message,
                        "cannot acquire the Lease {LEASE}, so that another operator in the \
                         namespace would not be noticed"
                    );
                }
                REFUSED
            }
            Err(_) => RETRY,
        };
        tokio::time::sleep(pause).await;
    }
}

/// The name of this operator for others: the same for all of its replicas.
fn identity(own: &LeaseOptions) -> String {
    format!("{}/{}", own.namespace, own.name)
}
