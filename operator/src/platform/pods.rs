//! Why a broker does not run: what its pod, its volume claim and the events about them and its
//! StatefulSet say.
//!
//! Kubernetes tells each cause in one place: a refusal by admission in an event of the StatefulSet,
//! a missing storage class in an event of the claim, a dead node in an event of the pod, everything
//! else in the pod's status. What is said here stays the same for as long as the cause does, so
//! that a condition made from it does not flap while a container is started again and again.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ContainerStateTerminated, ContainerStatus, Event, PersistentVolumeClaim, Pod, PodCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::Value;

use super::local::CONFIGURATION_REFUSED;
use super::sentence_of;
use crate::desired::objects::{CONTAINER, IMAGE_ANNOTATION};
use crate::observe::Run;
use crate::status::Fault;

/// What the newest events say, by the uid of the object that they are about.
#[derive(Clone, Debug, Default)]
pub(super) struct News(BTreeMap<String, Told>);

/// One event.
#[derive(Clone, Debug)]
struct Told {
    at: Option<Timestamp>,
    is_warning: bool,
    reason: String,
    message: String,
    count: i32,
}

/// So often has Kubernetes to fail at the same thing before it counts as a fault: volumes mount,
/// mostly, at the second attempt.
const REPEATED: i32 = 3;

/// What says only that something is tried, again and again while it fails: the last outcome counts
/// until there is another one.
const ATTEMPTS: [&str; 2] = ["ExternalProvisioning", "Provisioning"];

impl News {
    /// Takes up `events`; only the newest one about an object counts.
    pub(super) fn extend(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            let Some(about) = event.involved_object.uid.clone() else { continue };
            if event.reason.as_deref().is_some_and(|reason| ATTEMPTS.contains(&reason)) {
                continue;
            }
            let series = event.series.as_ref();
            let seen = series.and_then(|series| Some(series.last_observed_time.as_ref()?.0));
            let told = Told {
                at: seen
                    .or(event.last_timestamp.map(|time| time.0))
                    .or(event.event_time.map(|time| time.0)),
                is_warning: event.type_.as_deref() == Some("Warning"),
                reason: event.reason.unwrap_or_default(),
                message: event.message.unwrap_or_default(),
                count: series.and_then(|series| series.count).or(event.count).unwrap_or(1),
            };
            match self.0.get(&about) {
                Some(known) if known.at > told.at => {}
                _ => drop(self.0.insert(about, told)),
            }
        }
    }

    fn about(&self, uid: Option<&str>) -> Option<&Told> {
        self.0.get(uid?)
    }
}

/// Whether the broker in `pod` serves.
pub(super) fn is_ready(pod: &Pod) -> bool {
    run_of(None, Some(pod), [], &News::default()) == Run::Ready
}

/// What the broker of `set`, with this `pod` and these `claims`, is doing.
pub(super) fn run_of<'a>(
    set: Option<&Value>,
    pod: Option<&Pod>,
    claims: impl IntoIterator<Item = &'a PersistentVolumeClaim>,
    news: &News,
) -> Run {
    let Some(pod) = pod else {
        let Some(set) = set else { return Run::Absent };
        return match news.about(set.pointer("/metadata/uid").and_then(Value::as_str)) {
            Some(told) if told.is_warning => failing(&told.reason, refusal_in(&told.message)),
            _ => Run::Starting("Kubernetes has not made its pod yet".to_owned()),
        };
    };
    let Some(status) = &pod.status else {
        return Run::Starting("Kubernetes has yet to look at its pod".to_owned());
    };
    let condition =
        |type_: &str| status.conditions.iter().flatten().find(|condition| condition.type_ == type_);
    let told = news.about(pod.metadata.uid.as_deref()).filter(|told| told.is_warning);
    let is_silent = told.is_some_and(|told| told.reason == "NodeNotReady");
    if pod.metadata.deletion_timestamp.is_some() {
        let evicted = condition("DisruptionTarget")
            .is_some_and(|target| target.reason.as_deref() == Some("DeletionByTaintManager"));
        return if evicted || is_silent {
            node_gone(pod)
        } else {
            Run::Starting("its old pod is ending".to_owned())
        };
    }
    let ready = condition("Ready");
    if ready.is_some_and(|ready| ready.status == "True") {
        return Run::Ready;
    }
    let container =
        status.container_statuses.iter().flatten().find(|container| container.name == CONTAINER);
    let waits = || waiting_for_node(condition("PodScheduled")?);
    container
        .and_then(|container| failure_of(container, image_of(pod), ready))
        .or_else(|| is_silent.then(|| node_gone(pod)))
        .or_else(|| {
            let fault = claims.into_iter().find_map(|claim| unbound(claim, news))?;
            Some(failing(&fault.reason, fault.message))
        })
        .or_else(waits)
        .or_else(|| told.and_then(|told| not_made(told, container)))
        .unwrap_or_else(|| Run::Starting(progress(container)))
}

/// The image that the broker's container in `pod` is to have.
fn image_of(pod: &Pod) -> Option<&str> {
    let containers = &pod.spec.as_ref()?.containers;
    containers.iter().find(|each| each.name == CONTAINER)?.image.as_deref()
}

/// The image that the operator asked for when `pod` was made. What admission made of it then is
/// still that; what somebody has made of it since is not.
pub(super) fn image_in(pod: &Pod) -> Option<String> {
    let asked = pod.annotations().get(IMAGE_ANNOTATION).filter(|_| !has_other_image(pod));
    asked.cloned().or_else(|| image_of(pod).map(str::to_owned))
}

/// Whether somebody has changed the image of `pod` since it was made: that field is not owned any
/// more by who owns the references to its owner (`metadata.managedFields`), but by who wrote later.
pub(super) fn has_other_image(pod: &Pod) -> bool {
    let image = format!("/f:spec/f:containers/k:{{\"name\":\"{CONTAINER}\"}}/f:image");
    let owns = |entry: &ManagedFieldsEntry, path: &str| {
        entry.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer(path).is_some())
    };
    let fields = pod.metadata.managed_fields.iter().flatten();
    let mut owners = fields.filter(|entry| owns(entry, &image)).peekable();
    owners.peek().is_some()
        && owners.all(|entry| {
            entry.time > pod.metadata.creation_timestamp
                && !owns(entry, "/f:metadata/f:ownerReferences")
        })
}

fn failing(reason: &str, message: impl Into<String>) -> Run {
    Run::Failing { reason: reason.to_owned(), message: message.into() }
}

fn node_gone(pod: &Pod) -> Run {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("(unknown)");
    let way_out = "the broker goes on when the node is back, and elsewhere when the node is \
        deleted or has the taint node.kubernetes.io/out-of-service";
    Run::Unreachable(format!("its node {node} does not answer; {way_out}"))
}

/// The part of a controller's message that names the cause.
fn refusal_in(message: &str) -> &str {
    message.split_once("failed error: ").map_or(message, |(_, cause)| cause)
}

/// Whether Kubernetes makes a volume for `claim` once there is a pod that has it.
pub(super) fn waits_for_pod(claim: &PersistentVolumeClaim, news: &News) -> bool {
    news.about(claim.metadata.uid.as_deref())
        .is_some_and(|told| told.reason == "WaitForFirstConsumer")
}

/// A claim that waits for something that Kubernetes does not have.
pub(super) fn unbound(claim: &PersistentVolumeClaim, news: &News) -> Option<Fault> {
    let phase = claim.status.as_ref()?.phase.as_deref()?;
    let name = claim.name_any();
    if phase == "Lost" {
        return Some(Fault {
            reason: "VolumeLost".to_owned(),
            message: format!("the volume of claim {name} is gone"),
        });
    }
    // FailedBinding (no class at all) is told as if it were normal.
    let told = news
        .about(claim.metadata.uid.as_deref())
        .filter(|told| told.is_warning || told.reason == "FailedBinding");
    told.filter(|_| phase == "Pending").map(|told| Fault {
        reason: told.reason.clone(),
        message: format!("volume claim {name}: {}", told.message),
    })
}

/// Why a volume does not grow to what its claim asks for. Kubernetes takes that back when it begins
/// again, and when it is done.
pub(super) fn not_grown(claim: &PersistentVolumeClaim) -> Option<Fault> {
    let mut conditions = claim.status.as_ref()?.conditions.iter().flatten();
    let condition = conditions.find(|condition| {
        let is_it =
            ["ControllerResizeError", "NodeResizeError"].contains(&condition.type_.as_str());
        is_it && condition.status == "True"
    })?;
    let (reason, message) = (condition.type_.clone(), condition.message.clone());
    Some(Fault { reason, message: message.unwrap_or_default() })
}

fn waiting_for_node(scheduled: &PodCondition) -> Option<Run> {
    if scheduled.status != "False" {
        return None;
    }
    let reason = scheduled.reason.as_deref().unwrap_or("Unschedulable");
    let message = scheduled.message.as_deref().unwrap_or("no node was chosen yet");
    // The claim is bound in a moment, or tells itself why it is not.
    let passes =
        reason != "Unschedulable" || message.contains("unbound immediate PersistentVolumeClaims");
    Some(if passes {
        Run::Starting(format!("{reason}: {message}"))
    } else {
        failing(reason, message)
    })
}

/// A container that is not made, and why.
fn not_made(told: &Told, container: Option<&ContainerStatus>) -> Option<Run> {
    let is_running = container
        .and_then(|container| container.state.as_ref())
        .is_some_and(|state| state.running.is_some());
    if is_running {
        return None;
    }
    let repeated = told.count >= REPEATED;
    Some(if repeated {
        failing(&told.reason, &*told.message)
    } else {
        Run::Starting(format!("{}: {}", told.reason, told.message))
    })
}

/// Container states that no amount of waiting ends by itself.
fn failure_of(
    container: &ContainerStatus,
    image: Option<&str>,
    ready: Option<&PodCondition>,
) -> Option<Run> {
    let state = container.state.as_ref()?;
    let waiting = state.waiting.as_ref();
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
    let message = waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or_default();
    match reason {
        // The two take turns; the first one's words are in the second one's.
        "ErrImagePull" | "ImagePullBackOff" => {
            let cause = message.split_once("ErrImagePull: ").map_or(message, |(_, cause)| cause);
            let cause = if cause.starts_with("Back-off pulling image") { "" } else { cause };
            // The status has the image of the container before, as long as there is no other.
            let image = image.unwrap_or(&container.image);
            let message = if cause.is_empty() {
                format!("image {image} cannot be pulled")
            } else {
                format!("image {image}: {cause}")
            };
            return Some(failing("ImagePullBackOff", message));
        }
        "ErrImageNeverPull"
        | "InvalidImageName"
        | "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError" => {
            return Some(failing(reason, message));
        }
        _ => {}
    }
    let ended =
        state.terminated.as_ref().or_else(|| container.last_state.as_ref()?.terminated.as_ref())?;
    if let Some(running) = &state.running {
        // It served since this start: how the one before ended is over.
        let served = ready
            .and_then(|ready| ready.last_transition_time.as_ref())
            .zip(running.started_at.as_ref());
        if served.is_some_and(|(ready, started)| ready.0 > started.0) {
            return None;
        }
        // The first start after an end is not a loop yet, unless it cannot end differently.
        if container.restart_count < 2 && ended.exit_code != i32::from(CONFIGURATION_REFUSED) {
            return None;
        }
    }
    if ended.exit_code == 0 && !reason.ends_with("BackOff") {
        return None;
    }
    Some(end_of(ended))
}

/// How a container ended.
fn end_of(ended: &ContainerStateTerminated) -> Run {
    let last_words = ended.message.as_deref().unwrap_or_default();
    if ended.exit_code == i32::from(CONFIGURATION_REFUSED) {
        return failing("ConfigurationRefused", sentence_of(last_words));
    }
    if ended.reason.as_deref() == Some("OOMKilled") {
        return failing(
            "OOMKilled",
            "it needs more memory than spec.resources.limits.memory gives it",
        );
    }
    let last =
        last_words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    let said = if last.is_empty() { String::new() } else { format!(": {last}") };
    failing("CrashLoopBackOff", format!("it ended with exit code {}{said}", ended.exit_code))
}

/// Adds what the broker itself says about its start.
pub(super) fn with_own_words(run: Run, told: Option<&String>) -> Run {
    match (run, told) {
        (Run::Starting(detail), Some(told)) => Run::Starting(format!("{detail}: {told}")),
        (run, _) => run,
    }
}

/// What is waited for while nothing is wrong.
fn progress(container: Option<&ContainerStatus>) -> String {
    let state = container.and_then(|container| container.state.as_ref());
    let ended = container.and_then(|container| container.last_state.as_ref()?.terminated.as_ref());
    match (state, ended) {
        (Some(state), Some(ended)) if state.running.is_some() && ended.exit_code != 0 => {
            format!(
                "it ended with exit code {}, was started again, and is not ready yet",
                ended.exit_code
            )
        }
        (Some(state), _) if state.running.is_some() => "it runs and is not ready yet".to_owned(),
        _ => "its container is being made".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    const NEVER_READY: &str = "2026-01-01T00:00:00Z";

    fn pod(status: &Value) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": "p", "uid": "pod"}, "spec": {"nodeName": "worker-1", "containers": []}, "status": status}),
        )
        .unwrap()
    }

    #[test]
    fn an_image_that_was_changed_by_hand_is_told_apart_from_what_admission_made_of_it() {
        let of_image = json!({"f:containers": {"k:{\"name\":\"kafka\"}": {"f:image": {}}}});
        let made = |has_image: bool| {
            let spec = if has_image { of_image.clone() } else { json!({}) };
            json!({"manager": "kube-controller-manager", "operation": "Update", "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:metadata": {"f:ownerReferences": {}}, "f:spec": spec}})
        };
        let by = |time: &str| json!({"manager": "kubectl-set", "operation": "Update", "time": time, "fieldsV1": {"f:spec": of_image}});
        let by_hand = by("2026-01-01T00:01:00Z");
        let image = |fields: Value| {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {IMAGE_ANNOTATION: "letterbox:1"}, "managedFields": fields},
                "spec": {"containers": [{"name": "kafka", "image": "mirror/letterbox:1"}]},
            }))
            .unwrap();
            (has_other_image(&pod), image_in(&pod).unwrap())
        };
        let asked = (false, "letterbox:1".to_owned());
        assert_eq!(image(json!([])), asked, "without managed fields nothing is known");
        assert_eq!(image(json!([made(true)])), asked);
        assert_eq!(image(json!([made(true), by_hand])), asked, "the same image once more");
        let at_once = by("2026-01-01T00:00:00Z");
        assert_eq!(image(json!([made(false), at_once])), asked, "a pod that was restored");
        assert_eq!(image(json!([made(false), by_hand])), (true, "mirror/letterbox:1".to_owned()));
    }

    #[test]
    fn the_image_that_cannot_be_pulled_is_named_and_not_the_one_before() {
        let waiting = json!({"waiting": {"reason": "ErrImagePull", "message": "x: not found"}});
        let mut pod = pod(&kafka(&waiting, &json!({}), 1));
        let spec = json!({"containers": [{"name": "kafka", "image": "letterbox:2"}]});
        pod.spec = serde_json::from_value(spec).unwrap();
        let run = run_of(None, Some(&pod), [], &News::default());
        let Run::Failing { message, .. } = run else { unreachable!("{run:?}") };
        assert_eq!(message, "image letterbox:2: x: not found");
    }

    fn kafka(state: &Value, last: &Value, restarts: i32) -> Value {
        json!({
            "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": NEVER_READY}],
            "containerStatuses": [{"name": "kafka", "image": "letterbox:1", "imageID": "", "ready": false, "restartCount": restarts, "state": state, "lastState": last}],
        })
    }

    fn event(
        uid: &str,
        type_: &str,
        reason: &str,
        message: &str,
        count: i32,
        second: u32,
    ) -> Event {
        serde_json::from_value(json!({
            "metadata": {"name": format!("{uid}.{reason}")}, "involvedObject": {"uid": uid}, "type": type_, "reason": reason, "message": message,
            "count": count, "lastTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
        }))
        .unwrap()
    }

    fn text(run: &Run) -> String {
        match run {
            Run::Failing { reason, message } => format!("FAILS {reason}: {message}"),
            Run::Unreachable(message) => format!("NodeNotReady: {message}"),
            Run::Starting(what) => format!("starts: {what}"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn each_cause_is_told_from_where_kubernetes_put_it() {
        let quota = r#"create Pod demo-broker-0-0 in StatefulSet demo-broker-0 failed error: pods "demo-broker-0-0" is forbidden: exceeded quota: small"#;
        let bad_config = "2026 INFO x\nletterbox: /etc/letterbox/server.properties: \
            num.partitions=x: must be a number\n";
        let ended = |code: i32, words: &str| json!({"terminated": {"exitCode": code, "reason": "Error", "message": words}});
        let running = json!({"running": {"startedAt": "2026-01-01T00:00:10Z"}});
        let waiting = |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
        let no_node = json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/4 nodes are available: 4 Insufficient cpu."}]});
        let unbound = json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "pod has unbound immediate PersistentVolumeClaims."}]});
        let none = json!({});
        let being_made = kafka(&waiting("ContainerCreating", ""), &none, 0);
        let pending = Some("Pending");
        for (case, status, claim, events, expected) in [
            (
                "refused by a quota",
                None,
                None,
                vec![event("set", "Warning", "FailedCreate", quota, 9, 1)],
                "FAILS FailedCreate: pods \"demo-broker-0-0\" is forbidden: exceeded quota: small",
            ),
            (
                "the refusal is over",
                None,
                None,
                vec![
                    event("set", "Warning", "FailedCreate", quota, 9, 1),
                    event("set", "Normal", "SuccessfulCreate", "", 1, 2),
                ],
                "starts: Kubernetes has not made its pod yet",
            ),
            (
                "an event about another object of the name",
                None,
                None,
                vec![event("older", "Warning", "FailedCreate", quota, 9, 1)],
                "starts: Kubernetes has not made its pod yet",
            ),
            (
                "no node has room",
                Some(no_node),
                None,
                vec![],
                "FAILS Unschedulable: 0/4 nodes are available: 4 Insufficient cpu.",
            ),
            (
                "the claim is about to be bound",
                Some(unbound.clone()),
                pending,
                vec![],
                "starts: Unschedulable: pod has unbound immediate PersistentVolumeClaims.",
            ),
            (
                "no such class",
                Some(unbound.clone()),
                pending,
                vec![event(
                    "claim",
                    "Warning",
                    "ProvisioningFailed",
                    "storageclass.storage.k8s.io \"fats\" not found",
                    4,
                    1,
                )],
                "FAILS ProvisioningFailed: volume claim data: storageclass.storage.k8s.io \"fats\" \
                 not found",
            ),
            (
                "and while it is tried again",
                Some(unbound.clone()),
                pending,
                vec![
                    event("claim", "Warning", "ProvisioningFailed", "no pool", 4, 1),
                    event("claim", "Normal", "Provisioning", "is provisioning", 5, 2),
                    event("claim", "Normal", "ExternalProvisioning", "waiting", 9, 3),
                ],
                "FAILS ProvisioningFailed: volume claim data: no pool",
            ),
            (
                "a claim that waits for its pod again",
                Some(unbound),
                pending,
                vec![
                    event("claim", "Warning", "ProvisioningFailed", "no pool", 4, 1),
                    event("claim", "Normal", "WaitForFirstConsumer", "waiting", 1, 2),
                    event("claim", "Normal", "Provisioning", "is provisioning", 5, 3),
                ],
                "starts: Unschedulable: pod has unbound immediate PersistentVolumeClaims.",
            ),
            (
                "a node is dead",
                Some(kafka(&running, &none, 0)),
                Some("Bound"),
                vec![event("pod", "Warning", "NodeNotReady", "Node is not ready", 1, 1)],
                "NodeNotReady: its node worker-1 does not answer; the broker goes on when \
                 the node is back, and elsewhere when the node is deleted or has the taint \
                 node.kubernetes.io/out-of-service",
            ),
            (
                "a mount that fails once",
                Some(being_made.clone()),
                None,
                vec![event("pod", "Warning", "FailedMount", "no", 1, 1)],
                "starts: FailedMount: no",
            ),
            (
                "a mount that keeps failing",
                Some(being_made.clone()),
                None,
                vec![event("pod", "Warning", "FailedMount", "no", 3, 1)],
                "FAILS FailedMount: no",
            ),
            (
                "a container is made",
                Some(being_made),
                None,
                vec![],
                "starts: its container is being made",
            ),
            (
                "an image that cannot be pulled",
                Some(kafka(&waiting("ErrImagePull", "x: not found"), &none, 0)),
                None,
                vec![],
                "FAILS ImagePullBackOff: image letterbox:1: x: not found",
            ),
            (
                "and the pause after it",
                Some(kafka(
                    &waiting(
                        "ImagePullBackOff",
                        "Back-off pulling image \"x\": ErrImagePull: x: not found",
                    ),
                    &none,
                    0,
                )),
                None,
                vec![],
                "FAILS ImagePullBackOff: image letterbox:1: x: not found",
            ),
            (
                "a refused configuration",
                Some(kafka(&ended(78, bad_config), &none, 0)),
                None,
                vec![],
                "FAILS ConfigurationRefused: /etc/letterbox/server.properties: num.partitions=x: \
                 must be a number",
            ),
            (
                "and while it is started again",
                Some(kafka(&running, &ended(78, bad_config), 1)),
                None,
                vec![],
                "FAILS ConfigurationRefused: /etc/letterbox/server.properties: num.partitions=x: \
                 must be a number",
            ),
            (
                "a crash",
                Some(kafka(
                    &waiting("CrashLoopBackOff", "back-off 10s"),
                    &ended(1, "a\nletterbox: no\n\n"),
                    1,
                )),
                None,
                vec![],
                "FAILS CrashLoopBackOff: it ended with exit code 1: letterbox: no",
            ),
            (
                "and the run after it",
                Some(kafka(&running, &ended(1, "a\nletterbox: no\n"), 2)),
                None,
                vec![],
                "FAILS CrashLoopBackOff: it ended with exit code 1: letterbox: no",
            ),
            (
                "the first start after an end",
                Some(kafka(&running, &ended(137, ""), 1)),
                None,
                vec![],
                "starts: it ended with exit code 137, was started again, and is not ready yet",
            ),
            (
                "out of memory",
                Some(kafka(
                    &waiting("CrashLoopBackOff", ""),
                    &json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
                    3,
                )),
                None,
                vec![],
                "FAILS OOMKilled: it needs more memory than spec.resources.limits.memory gives it",
            ),
            (
                "a readiness probe that fails",
                Some(kafka(&running, &none, 0)),
                None,
                vec![event("pod", "Warning", "Unhealthy", "503", 9, 1)],
                "starts: it runs and is not ready yet",
            ),
        ] {
            let mut news = News::default();
            news.extend(events);
            let claim: Option<PersistentVolumeClaim> = claim.map(|phase| {
                serde_json::from_value(json!({"metadata": {"name": "data", "uid": "claim"}, "status": {"phase": phase}})).unwrap()
            });
            let set = json!({"metadata": {"uid": "set"}});
            let run = run_of(Some(&set), status.as_ref().map(pod).as_ref(), &claim, &news);
            assert_eq!(text(&run), expected, "{case}");
        }
    }

    #[test]
    fn a_broker_that_starts_says_how_far_it_is() {
        let told = "starting: 12 of 40 logs are open, about 7 s left".to_owned();
        let running = pod(&kafka(&json!({"running": {}}), &json!({}), 0));
        let run = run_of(None, Some(&running), [], &News::default());
        assert_eq!(
            text(&with_own_words(run, Some(&told))),
            "starts: it runs and is not ready yet: starting: 12 of 40 logs are open, about 7 s left"
        );
        assert_eq!(
            text(&with_own_words(failing("OOMKilled", "x"), Some(&told))),
            "FAILS OOMKilled: x"
        );
    }

    #[test]
    fn a_pod_that_cannot_end_because_its_node_is_dead_is_told_so() {
        let mut pod = pod(&kafka(&json!({"running": {}}), &json!({}), 0));
        pod.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let run = |news: &News| text(&run_of(None, Some(&pod), [], news));
        let mut news = News::default();
        assert_eq!(run(&news), "starts: its old pod is ending");
        news.extend([event("pod", "Warning", "NodeNotReady", "Node is not ready", 1, 1)]);
        assert!(run(&news).starts_with("NodeNotReady: its node worker-1 does not answer"));
    }

    #[test]
    fn a_broker_that_served_since_its_last_start_is_not_in_a_loop() {
        let mut status = kafka(
            &json!({"running": {"startedAt": "2025-12-01T00:00:00Z"}}),
            &json!({"terminated": {"exitCode": 1}}),
            5,
        );
        assert_eq!(
            text(&run_of(None, Some(&pod(&status)), [], &News::default())),
            "starts: it ended with exit code 1, was started again, and is not ready yet"
        );
        status["conditions"][0]["lastTransitionTime"] = json!("2025-11-30T00:00:00Z");
        assert_eq!(
            text(&run_of(None, Some(&pod(&status)), [], &News::default())),
            "FAILS CrashLoopBackOff: it ended with exit code 1"
        );
    }
}
