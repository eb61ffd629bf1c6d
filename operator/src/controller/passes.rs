//! Passes that end with an error. Such a one writes no status, so what the status says may not be
//! what is. That is told where it can be: in the object's conditions, by an event, in the metrics,
//! and by `/readyz` while every pass over objects of a kind ends so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use super::metrics::Object;
use super::objects::{Guarded, Ours};
use super::owner::{OTHER_OPERATOR, OWNER_NOT_KNOWN};
use super::{Context, upgrade_command};
use crate::api::{READY, find_condition};
use crate::platform::kubernetes::said;
use crate::platform::own::{MAY_BE_OLDER, STATUS_NOT_WRITTEN};
use crate::status::{Fault, not_checked, only};

/// So many passes over an object in a row have to end with an error before that is told: one may
/// meet a fault of a moment.
const TOLD_AFTER: u32 = 2;
/// How soon the same error of the same object is told again where the conditions do not say it.
const AGAIN: Duration = Duration::from_secs(60);

/// How the last passes over each object ended. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Passes(Arc<Mutex<BTreeMap<Object, Ended>>>);

/// How the last passes over an object ended.
#[derive(Default)]
struct Ended {
    /// So many of them, in a row, with an error.
    failed: u32,
    /// The last error.
    fault: Option<Fault>,
    /// When that was told.
    told: Option<Instant>,
}

impl Passes {
    /// Takes up that a pass over an object ended with an error. `None`: that may be one of a
    /// moment. Otherwise whether it is to be told now.
    fn failed(&self, object: Object, fault: &Fault) -> Option<bool> {
        self.with(|all| {
            let ended = all.entry(object).or_default();
            ended.failed = ended.failed.saturating_add(1);
            // The words of one cause may differ each time.
            if ended.fault.as_ref().is_none_or(|known| known.reason != fault.reason) {
                ended.told = None;
            }
            ended.fault = Some(fault.clone());
            if ended.failed < TOLD_AFTER {
                return None;
            }
            // What another operator manages is no news after the first time.
            let is_over = |told: Instant| fault.reason != OTHER_OPERATOR && told.elapsed() >= AGAIN;
            let is_due = ended.told.is_none_or(is_over);
            if is_due {
                ended.told = Some(Instant::now());
            }
            Some(is_due)
        })
    }

    /// Takes up that a pass over an object ended without an error.
    pub(super) fn worked<K: Ours>(&self, kind: &'static str, object: &K) {
        self.with(|all| drop(all.insert(named(kind, object), Ended::default())));
    }

    /// Whether the last pass over an object ended with the first error after others without one.
    pub(super) fn is_first_failure<K: Ours>(&self, kind: &'static str, object: &K) -> bool {
        self.with(|all| all.get(&named(kind, object)).is_some_and(|ended| ended.failed == 1))
    }

    /// Forgets an object that is gone.
    pub(super) fn forget(&self, object: &Object) {
        self.with(|all| drop(all.remove(object)));
    }

    /// Forgets all of them: another replica looks at them now, or all are looked at anew.
    pub(super) fn forget_all(&self) {
        self.with(BTreeMap::clear);
    }

    /// Why the operator does its work for no object of a kind, or leaves some of them to another
    /// operator; `None` while it works.
    pub(super) fn in_vain(&self) -> Option<String> {
        self.with(|all| {
            let mut kinds: BTreeMap<&str, (bool, Option<&Fault>)> = BTreeMap::new();
            for ((kind, ..), ended) in &*all {
                let lasts = ended.fault.as_ref().filter(|_| ended.failed >= TOLD_AFTER);
                if let Some(fault) = lasts.filter(|fault| fault.reason == OTHER_OPERATOR) {
                    return Some(fault.message.clone());
                }
                let (every, _) = kinds.entry(*kind).or_insert((true, lasts));
                *every &= lasts.is_some();
            }
            let (kind, (_, fault)) = kinds.into_iter().find(|(_, (every, _))| *every)?;
            let why = &fault?.message;
            Some(format!("every reconcile of a {kind} ends with an error: {why}"))
        })
    }

    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<Object, Ended>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub(super) fn named<K: Ours>(kind: &'static str, object: &K) -> Object {
    (kind, object.namespace().unwrap_or_default(), object.name_any())
}

/// Says of an object, when a second pass over it has ended with an error, that its status is out of
/// date. What that writes is of a form that every version has. Answers with the object that has it,
/// once it is written.
pub(super) async fn tell_failed<K: Ours>(
    context: &Context,
    kind: &'static str,
    object: &K,
    fault: &Fault,
) -> Option<K> {
    let of = named(kind, object);
    let is_due = context.passes.failed(of.clone(), fault)?;
    let (_, namespace, name) = of;
    let (reason, message) = words(context, fault);
    let waits = (reason != OTHER_OPERATOR).then_some(reason);
    context.metrics.set_not_ready(kind, &namespace, &name, waits);
    if [OTHER_OPERATOR, OWNER_NOT_KNOWN].contains(&reason) {
        // The status is the other one's, or may be.
        if is_due {
            context.events.tell(object, true, reason, "Reconcile", &message).await;
        }
        return None;
    }
    let (told, now) = (Fault { reason: reason.to_owned(), message }, context.now());
    let (before, generation) = (object.conditions(), object.meta().generation);
    let conditions = not_checked(before.to_vec(), generation, &now, &told);
    let ready = |all: &[Condition]| {
        find_condition(all, READY).map(|ready| (ready.reason.clone(), ready.message.clone()))
    };
    if !is_due || ready(&conditions) == ready(before) {
        return None;
    }
    let mut status = K::phase("Not checked", &now);
    status["conditions"] = json!(conditions);
    status["waits"] = json!(only(object.waits(), K::SUBJECT, &told, &now));
    let api: Api<Guarded<K>> = Api::namespaced(context.client.clone(), &namespace);
    let patch = json!({"metadata": {"uid": object.uid()}, "status": status});
    let written = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
    if let Err(error) = &written {
        tracing::warn!(
            error = said(error),
            name,
            namespace,
            "cannot write the conditions of an object whose reconcile failed"
        );
    }
    context.events.tell(object, true, reason, "Reconcile", &told.message).await;
    written.ok()?.understood().ok()
}

/// The reason and the message of the conditions and of the event.
fn words(context: &Context, fault: &Fault) -> (&'static str, String) {
    let said = &fault.message;
    for known in [OTHER_OPERATOR, OWNER_NOT_KNOWN] {
        if fault.reason == known {
            return (known, said.clone());
        }
    }
    if fault.reason != STATUS_NOT_WRITTEN {
        let message = format!(
            "the reconcile of this object ends with an error, so that the status shown may be out \
             of date: {said}"
        );
        return ("NotChecked", message);
    }
    let mut message = format!(
        "the operator cannot write the new status of this object, so that the status shown is out \
         of date: {said}"
    );
    if said.ends_with(MAY_BE_OLDER) {
        message = format!("{message}; upgrade it: {}", upgrade_command(&context.options));
    }
    (STATUS_NOT_WRITTEN, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_error_is_told_when_it_lasts_and_again_after_a_while() {
        let passes = Passes::default();
        let object = |name: &str| ("KafkaTopic", "ns".to_owned(), name.to_owned());
        let fault =
            |reason: &str, words: &str| Fault { reason: reason.into(), message: words.into() };
        let fails = |words: &str| passes.failed(object("a"), &fault("Forbidden", words));
        let (told, untold) = (Some(true), Some(false));
        assert_eq!((fails("read it"), passes.in_vain()), (None, None), "it may be of a moment");
        assert_eq!((fails("read it"), fails("read it")), (told, untold), "once");
        let every = "every reconcile of a KafkaTopic ends with an error: read it";
        assert_eq!(passes.in_vain().as_deref(), Some(every));
        assert_eq!(fails("write it"), untold, "other words for it");
        let other = passes.failed(object("a"), &fault("NoAnswer", "write it"));
        assert_eq!(
            (other, fails("write it"), fails("write it")),
            (told, told, untold),
            "another one"
        );
        tokio::time::sleep(AGAIN).await;
        assert_eq!((fails("write it"), fails("write it")), (told, untold));
        // It works for another object of the kind, and then for no other one of it.
        passes.with(|all| drop(all.insert(object("b"), Ended::default())));
        assert_eq!(passes.in_vain(), None);
        passes.forget(&object("b"));
        let other = ("KafkaCluster", "ns".to_owned(), "b".to_owned());
        passes.with(|all| drop(all.insert(other, Ended::default())));
        assert!(passes.in_vain().is_some());
        passes.with(|all| drop(all.insert(object("a"), Ended::default())));
        assert_eq!(passes.in_vain(), None);
        assert_eq!(fails("write it"), None);
    }
}
