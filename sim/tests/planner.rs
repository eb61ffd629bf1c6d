//! The planner driven to a fixed point on a model, with faults on the way and the operator killed
//! after every step.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "planner/memory.rs"]
mod memory;
mod platform;

use std::collections::BTreeMap;

use futures::FutureExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use letterbox_operator::admin::Topic;
use letterbox_operator::api::{
    ACCEPT_LOSS_ANNOTATION, DEGRADED, DeletionPolicy, KafkaCluster, KafkaClusterSpec,
    KafkaClusterStatus, KafkaTopic, KafkaTopicStatus, LossReason, LossStatus, PAUSE_ANNOTATION,
    PAUSED, PROGRESSING, READY, TOPIC_FINALIZER, VolumeStatus, WaitStatus, condition,
    find_condition, is_true,
};
use letterbox_operator::desired::objects::{Kind, ObjectKey};
use letterbox_operator::observe::{Asked, Part};
use letterbox_operator::plan::{
    BrokerCount, ClusterState, Note, Step, TopicFacts, TopicStep, VolumesAtEnd, has_finalizer,
    plan_topic,
};
use letterbox_operator::reconcile::{
    ClusterPass, TopicHome, TopicPass, reconcile_cluster, reconcile_topic,
};
use letterbox_operator::status::Fault;
use serde_json::json;

use platform::admin::ModelAdmin;
use platform::{Model, ModelDisk};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn now() -> Time {
    Time(Timestamp::UNIX_EPOCH)
}

fn cluster(spec: serde_json::Value) -> KafkaCluster {
    serde_json::from_value(json!({
        "apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaCluster",
        "metadata": {"name": "demo", "namespace": "ns", "generation": 7}, "spec": spec,
    }))
    .unwrap()
}

fn pass(model: &Model, cluster: &mut KafkaCluster) -> ClusterPass {
    let pass = block_on(reconcile_cluster(model, cluster, None, &now())).unwrap();
    if cluster.status.as_ref() != Some(&pass.status) {
        cluster.status = Some(pass.status.clone());
        changes(cluster);
    }
    model.tick();
    pass
}

/// The API server gives the object a new version.
fn changes(cluster: &mut KafkaCluster) {
    let version = cluster.metadata.resource_version.as_deref().unwrap_or("0");
    let version: u64 = version.parse().unwrap();
    cluster.metadata.resource_version = Some((version + 1).to_string());
}

/// What Degraded says after so many passes.
fn degraded_after(passes: u32, model: &Model, cluster: &mut KafkaCluster) -> Condition {
    (0..passes).for_each(|_| drop(pass(model, cluster)));
    find_condition(&cluster.status.as_ref().unwrap().conditions, DEGRADED).unwrap().clone()
}

/// Passes until nothing is left to do; panics when that takes more than a bounded number.
fn settle(model: &Model, cluster: &mut KafkaCluster) -> ClusterPass {
    for _ in 0..30 {
        let before = cluster.status.clone();
        let pass = pass(model, cluster);
        // What was written down is what the next pass begins with.
        if pass.is_settled() && before.as_ref() == Some(&pass.status) {
            return pass;
        }
    }
    panic!("no fixed point: {:?}", model.with(|state| state.clone()));
}

/// Passes until a broker that nobody hears serves.
fn settle_mute(model: &Model, cluster: &mut KafkaCluster) {
    passes(model, cluster, 12);
    assert!(model.with(|state| state.serves(0)) && losses(cluster).is_empty());
}

fn old_service() -> ObjectKey {
    ObjectKey { kind: Kind::Service, name: "old".to_owned() }
}

fn ready_reason(pass: &ClusterPass) -> (String, String) {
    ready_reason_of(&pass.status)
}

fn ready_reason_of(status: &KafkaClusterStatus) -> (String, String) {
    let ready = find_condition(&status.conditions, READY).unwrap();
    (ready.status.clone(), ready.reason.clone())
}

#[test]
fn a_new_cluster_becomes_ready_and_then_nothing_is_done() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    let first = pass(&model, &mut cluster);
    assert!(matches!(
        first.plan.steps.as_slice(),
        [Step::ApplyAccess { .. }, Step::MakeClaim { broker: 0, .. },]
    ));
    assert_eq!(ready_reason(&first), ("False".into(), "BrokerStarting".into()));
    let message = &find_condition(&first.status.conditions, READY).unwrap().message;
    let waits = "waiting for broker 0: its volume claims are created and recorded in status first";
    assert_eq!((first.status.phase.as_str(), message.as_str()), ("Starting", waits));
    // The claim is written down before anything may use it.
    assert_eq!(pass(&model, &mut cluster).plan.steps, []);
    let third = pass(&model, &mut cluster);
    assert!(matches!(
        third.plan.steps.as_slice(),
        [Step::ApplyBroker { broker: 0, restarts: false, .. }]
    ));
    let last = settle(&model, &mut cluster);
    assert_eq!(ready_reason(&last), ("True".into(), "Ready".into()));
    assert_eq!(
        (last.status.phase.as_str(), last.status.brokers.as_str(), last.status.version.as_deref()),
        ("Ready", "1/1", Some("default"))
    );
    for condition in &last.status.conditions {
        assert_eq!(condition.observed_generation, Some(7), "{}", condition.type_);
    }
    assert_eq!(model.with(|state| state.restarts), 0);
}

#[test]
fn a_changed_configuration_restarts_once_and_a_reverted_one_again() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    settle(&model, &mut cluster);
    cluster.spec.config.insert("num.partitions".into(), "3".into());
    let change = pass(&model, &mut cluster);
    assert!(
        matches!(
            change.plan.steps.as_slice(),
            [Step::ApplyBroker { broker: 0, restarts: true, .. }]
        ),
        "{:?}",
        change.plan
    );
    assert_eq!(ready_reason(&change), ("False".into(), "BrokerRestarting".into()));
    let restart = pass(&model, &mut cluster);
    assert!(
        matches!(restart.plan.steps.as_slice(), [Step::RestartBroker { broker: 0, .. }]),
        "{:?}",
        restart.plan
    );
    settle(&model, &mut cluster);
    assert_eq!(model.with(|state| state.restarts), 1);
}

#[test]
fn what_the_spec_did_not_ask_for_waits_until_the_broker_restarts_anyway() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    settle(&model, &mut cluster);
    let started = || model.with(|state| state.brokers[&0].started.clone().unwrap());
    let before = started();
    // An operator of a newer version writes configurations differently.
    model.with(|state| state.operator_change = "-newer".into());
    let upgraded = settle(&model, &mut cluster);
    assert_eq!((ready_reason(&upgraded).0.as_str(), started()), ("True", before.clone()));
    assert_ne!(model.with(|state| state.brokers[&0].defined.clone()), before, "it is written down");
    // While the broker recovers its log, too.
    model.with(|state| state.brokers.get_mut(&0).unwrap().starts_in = 5);
    model.with(|state| state.operator_change = "-newest".into());
    settle(&model, &mut cluster);
    assert_eq!((started(), model.with(|state| state.brokers[&0].starts)), (before.clone(), 1));
    // Whatever became of the node it is on.
    model.with(|state| {
        (state.silent_nodes, state.brokers.get_mut(&0).unwrap().starts_in) = ([0].into(), 0)
    });
    let silent = pass(&model, &mut cluster);
    assert_eq!((&silent.done, started()), (&vec![], before.clone()));
    assert_eq!(ready_reason(&silent), ("False".into(), "BrokerFailing".into()));
    model.with(|state| state.silent_nodes.clear());
    // It is taken up by whatever ends the broker, and what fails is given it at once.
    model.with(|state| state.brokers.get_mut(&0).unwrap().end());
    settle(&model, &mut cluster);
    assert_eq!(started(), model.with(|state| state.brokers[&0].defined.clone()));
    model.with(|state| {
        (state.bad_images, state.operator_change) =
            (vec!["letterbox:default".into()], "-fixed".into())
    });
    for _ in 0..3 {
        pass(&model, &mut cluster);
    }
    assert_eq!(
        (model.with(|state| state.brokers[&0].starts), model.with(|state| state.restarts)),
        (3, 0)
    );
}

/// What is remembered of the only broker: claim and directory, incarnation, loss.
fn remembered(cluster: &KafkaCluster) -> (Option<String>, Option<String>, i32, Option<String>) {
    let [node] = cluster.status.as_ref().unwrap().nodes.as_slice() else { panic!("one broker") };
    let volume = node.volumes.first().cloned().unwrap_or_default();
    (volume.claim_uid, volume.directory_id, node.incarnation, node.data_loss.clone())
}

/// Whether the first open loss is called so.
fn told_as(cluster: &KafkaCluster, begins: &str) -> bool {
    remembered(cluster).3.is_some_and(|name| name.starts_with(begins))
}

/// A person accepts the loss that is told first.
fn accept_told(cluster: &mut KafkaCluster) {
    let loss = remembered(cluster).3.unwrap();
    accept(cluster, &loss);
}

/// The names of its volumes, and what it found on each.
fn directories(cluster: &KafkaCluster) -> Vec<(String, Option<String>)> {
    let [node] = cluster.status.as_ref().unwrap().nodes.as_slice() else { panic!("one broker") };
    let volume = |volume: &VolumeStatus| (volume.name.clone(), volume.directory_id.clone());
    node.volumes.iter().map(volume).collect()
}

/// An empty volume, or a restored one, with a claim that somebody made by hand.
fn by_hand(model: &Model, volume: &str, directory: Option<String>) {
    let disk = ModelDisk { uid: "by-hand".into(), directory, ..ModelDisk::default() };
    model.with(|state| drop(state.disks.insert((0, volume.to_owned()), disk)));
}

fn accept(cluster: &mut KafkaCluster, loss: &str) {
    cluster.metadata.annotations =
        Some(BTreeMap::from([(ACCEPT_LOSS_ANNOTATION.to_owned(), loss.to_owned())]));
}

#[test]
fn an_empty_volume_in_place_of_a_lost_one_is_told_and_nothing_goes_on_until_a_person_says_so() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    let healthy = settle(&model, &mut cluster);
    assert_eq!(
        (healthy.status.cluster_id.as_deref(), model.with(|state| state.restarts)),
        (Some("model"), 0)
    );
    let first = remembered(&cluster);
    assert_eq!(first, (Some("claim-1".into()), Some("dir-2".into()), 1, None));
    // The claim and the pod are deleted, and a person makes an empty claim.
    model.with(|state| state.lose(0, "data"));
    pass(&model, &mut cluster);
    assert_eq!(model.with(|state| state.disks.len()), 0, "the operator does not");
    by_hand(&model, "data", None);
    let loss = remembered(&cluster).3.unwrap();
    assert!(loss.starts_with("broker-0-incarnation-1-dir-2-"), "{loss}");
    for (passes, wrong) in [(6, "broker-0-incarnation-1"), (6, "broker-0-incarnation-1-dir-2")] {
        for _ in 0..passes {
            let lost = pass(&model, &mut cluster);
            let degraded = find_condition(&lost.status.conditions, DEGRADED).unwrap();
            assert_eq!(
                (degraded.status.as_str(), degraded.reason.as_str()),
                ("True", "DataLost"),
                "{}",
                degraded.message
            );
            assert!(
                degraded.message.ends_with(&format!(
                    "kubectl -n ns annotate --overwrite kafkacluster demo \
                     letterbox.dev/accept-data-loss={loss}"
                )),
                "{}",
                degraded.message
            );
            assert_eq!(ready_reason(&lost).0, "False");
            assert_eq!(
                ClusterState::of(Some(&cluster), &now()),
                ClusterState::NotReady,
                "no topic is made again"
            );
            assert_eq!(
                remembered(&cluster),
                (first.0.clone(), first.1.clone(), 1, Some(loss.clone()))
            );
        }
        accept(&mut cluster, wrong);
    }
    assert_eq!(
        model.with(|state| state.disk(0, "data").directory.clone()),
        None,
        "no broker made it its own"
    );
    accept(&mut cluster, &loss);
    let healed = settle(&model, &mut cluster);
    assert_eq!(
        (ready_reason(&healed).0.as_str(), healed.status.cluster_id.as_deref()),
        ("True", Some("model"))
    );
    assert_eq!(remembered(&cluster).2, 2);
    // That was one loss; the next one is another.
    model.with(|state| state.lose(0, "data"));
    for _ in 0..6 {
        pass(&model, &mut cluster);
    }
    assert_eq!(remembered(&cluster).2, 2);
    assert!(told_as(&cluster, "broker-0-incarnation-2-dir-3-"));
}

#[test]
fn a_broker_that_came_up_empty_before_anybody_looked_is_not_taken_for_the_old_one() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    settle(&model, &mut cluster);
    // Its definition did not say yet what to expect, and no operator was there.
    model.with(|state| {
        let broker = state.brokers.get_mut(&0).unwrap();
        broker.defined.3.clear();
        state.lose(0, "data");
    });
    by_hand(&model, "data", None);
    (0..4).for_each(|_| model.tick());
    assert!(model.with(|state| state.serves(0)));
    for _ in 0..3 {
        let lost = pass(&model, &mut cluster);
        assert_eq!(ready_reason(&lost), ("False".into(), "DataLost".into()));
        assert_eq!(ClusterState::of(Some(&cluster), &now()), ClusterState::NotReady);
    }
    assert!(told_as(&cluster, "broker-0-incarnation-1-dir-2-"));
    accept_told(&mut cluster);
    settle(&model, &mut cluster);
    assert_eq!(remembered(&cluster).2, 2);
}

#[test]
fn a_volume_that_is_restored_under_a_new_claim_is_no_loss() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    settle(&model, &mut cluster);
    let directory = model.with(|state| state.disk(0, "data").directory.clone());
    model.with(|state| state.lose(0, "data"));
    for _ in 0..4 {
        pass(&model, &mut cluster);
    }
    assert!(remembered(&cluster).3.is_some());
    by_hand(&model, "data", directory.clone());
    let healed = settle(&model, &mut cluster);
    assert_eq!(ready_reason(&healed).0, "True");
    let now = remembered(&cluster);
    assert_eq!((now.0, now.1, now.2, now.3), (Some("by-hand".into()), directory, 1, None));
}

#[test]
fn a_claim_that_vanishes_under_a_broker_that_serves_is_a_loss() {
    let told_of = |told: &ClusterPass| {
        assert_eq!(ready_reason(told), ("False".into(), "DataLost".into()));
        let degraded = find_condition(&told.status.conditions, DEGRADED).unwrap();
        assert!(degraded.message.contains("still has the old volume"), "{}", degraded.message);
    };
    for is_made_by_hand in [false, true] {
        let model = Model::default();
        let mut cluster = cluster(json!({}));
        settle(&model, &mut cluster);
        let first = remembered(&cluster);
        model.with(|state| state.vanish(0, "data"));
        if is_made_by_hand {
            by_hand(&model, "data", None);
            model.with(|state| state.disk(0, "data").size = 10 << 30);
        }
        cluster.spec.config.insert("num.partitions".into(), "3".into());
        let mut loss = None;
        for _ in 0..4 {
            let told = pass(&model, &mut cluster);
            told_of(&told);
            loss = remembered(&cluster).3;
            assert_eq!((told.plan.steps, model.with(|state| state.restarts)), (vec![], 0));
            assert_eq!(
                remembered(&cluster),
                (first.0.clone(), first.1.clone(), 1, loss.clone()),
                "the new claim is not the old one"
            );
        }
        // Once it is accepted, nothing more is written to what goes.
        accept(&mut cluster, loss.as_deref().unwrap());
        let healed = settle(&model, &mut cluster);
        assert_eq!(ready_reason(&healed).0, "True");
        assert_eq!(model.with(|state| state.brokers[&0].held.len()), 0, "it was restarted");
        let now = remembered(&cluster);
        assert_eq!((now.2, now.3), (2, None));
        assert_eq!(now.1, model.with(|state| state.disk(0, "data").directory.clone()));
    }
}

#[test]
fn what_a_broker_uses_without_a_claim_and_before_it_was_recorded_is_not_made_again() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    settle(&model, &mut cluster);
    // The operator was killed before it wrote anything down.
    cluster.status = None;
    model.with(|state| state.vanish(0, "data"));
    (0..4).for_each(|_| drop(pass(&model, &mut cluster)));
    assert_eq!(model.with(|state| state.disks.len()), 0);
    assert!(told_as(&cluster, "broker-0-incarnation-1-dir-2-"));
}

#[test]
fn an_old_acceptance_names_no_loss_of_a_cluster_that_was_made_again() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    settle(&model, &mut cluster);
    model.with(|state| state.lose(0, "data"));
    (0..2).for_each(|_| drop(pass(&model, &mut cluster)));
    let loss = remembered(&cluster).3.unwrap();
    accept(&mut cluster, &loss);
    settle(&model, &mut cluster);
    // The same manifest, with its annotation, in the place of the old cluster.
    model.with(|state| (state.brokers, state.disks) = Default::default());
    cluster.status = None;
    settle(&model, &mut cluster);
    model.with(|state| state.lose(0, "data"));
    (0..4).for_each(|_| drop(pass(&model, &mut cluster)));
    assert!(remembered(&cluster).3.is_some());
    assert_eq!(model.with(|state| state.disks.len()), 0);
}

#[test]
fn no_broker_is_ended_whose_claim_is_being_deleted() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    settle(&model, &mut cluster);
    model.with(|state| state.disk(0, "data").is_ending = true);
    let told = pass(&model, &mut cluster);
    let degraded = find_condition(&told.status.conditions, DEGRADED).unwrap();
    assert_eq!(
        (degraded.reason.as_str(), ready_reason(&told).0.as_str()),
        ("ClaimBeingDeleted", "True")
    );
    assert!(
        degraded.message.contains("claim data-0 of broker 0 is being deleted"),
        "{}",
        degraded.message
    );
    cluster.spec.config.insert("num.partitions".into(), "3".into());
    let changed = passes(&model, &mut cluster, 6);
    assert_eq!(ready_reason(&changed), ("False".into(), "BrokerNotRestarted".into()));
    // Nor one that cannot run, for a definition that heals it.
    model.with(|state| state.bad_images.push("letterbox:default".into()));
    cluster.spec.image = Some("letterbox:good".into());
    (0..6).for_each(|_| drop(pass(&model, &mut cluster)));
    assert_eq!(model.with(|state| (state.brokers[&0].starts, state.disks.len())), (1, 1));
    // It has ended; its volume is gone, and that is a loss.
    model.with(|state| state.brokers.get_mut(&0).unwrap().end());
    (0..3).for_each(|_| drop(pass(&model, &mut cluster)));
    assert!(remembered(&cluster).3.is_some());
}

#[test]
fn an_address_for_a_broker_that_there_is_not_is_told() {
    let model = Model::default();
    let listeners = json!([
        {"name": "plain", "port": 9092},
        {"name": "outside", "port": 9094, "type": "nodeport", "brokers": [{"broker": 0}, {"broker": 5}]},
    ]);
    let mut cluster = cluster(json!({"listeners": listeners}));
    let told = settle(&model, &mut cluster);
    let ready = find_condition(&told.status.conditions, READY).unwrap();
    let says = "listener outside has an address for broker 5, and there is none of this id";
    assert!(ready.status == "True" && ready.message.starts_with(says), "{}", ready.message);
    // Any id can be the cluster's.
    cluster.spec.listeners[1].brokers.remove(0);
    let status = cluster.status.as_mut().unwrap();
    status.nodes[0].id = 5;
    let plan = pass(&model, &mut cluster).plan;
    assert!(!plan.notes.iter().any(|note| matches!(note, Note::NoSuchBroker { .. })));
}

#[test]
fn what_serves_is_not_restarted_while_nobody_knows_its_claims() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    settle(&model, &mut cluster);
    let fault = Fault { reason: "Forbidden".into(), message: "list x: forbidden".into() };
    model.with(|state| state.unread.insert(Part::Storage, fault));
    cluster.spec.config.insert("num.partitions".into(), "3".into());
    (0..6).for_each(|_| drop(pass(&model, &mut cluster)));
    assert_eq!(model.with(|state| (state.brokers[&0].starts, state.serves(0))), (1, true));
    model.with(|state| state.unread.clear());
    settle(&model, &mut cluster);
    assert_eq!(model.with(|state| state.brokers[&0].starts), 2);
}

#[test]
fn a_broker_ends_only_once_its_cluster_says_that_it_does_without_it() {
    let model = Model::default();
    let mut cluster = cluster(json!({"replicas": 3}));
    settle(&model, &mut cluster);
    let asked = || model.with(|state| std::mem::take(&mut state.asked));
    assert_eq!(asked(), Vec::<i32>::new(), "nobody is asked about brokers that start");
    cluster.spec.config.insert("num.partitions".into(), "3".into());
    let all = [0, 1, 2].map(|id| (id, format!("orders-{id} has no other")));
    model.with(|state| state.held_back = all.into());
    let held = pass(&model, &mut cluster);
    assert_eq!((held.plan.steps, asked()), (vec![], vec![0, 1, 2]));
    assert_eq!(ready_reason_of(&held.status), ("False".into(), "WaitingForIsr".into()));
    let waits = held.status.waits.iter().map(|wait| (wait.subject.as_str(), wait.message.as_str()));
    let waits: Vec<_> = waits.collect();
    assert_eq!((waits.len(), waits[1].0), (3, "broker 1"));
    assert!(waits[1].1.contains("yet: orders-1 has no other; "), "{waits:?}");
    // One that may is not held up by another one, and once its definition has changed it is asked
    // about once more, before it ends.
    model.with(|state| drop(state.held_back.remove(&1)));
    let change = pass(&model, &mut cluster);
    assert!(
        matches!(change.plan.steps.as_slice(), [.., Step::ApplyBroker { broker: 1, .. }]),
        "{:?}",
        change.plan
    );
    model.with(|state| state.held_back.insert(1, "orders-7 has no other".into()));
    let held = pass(&model, &mut cluster);
    let ended = held.plan.takes_down(&held.observed, |_| true);
    assert_eq!((ended, asked()), (None, vec![0, 1, 0, 1, 2]));
    model.with(|state| state.held_back.clear());
    settle(&model, &mut cluster);
    assert_eq!(model.with(|state| state.restarts), 3);
}

#[test]
fn a_pass_that_ends_no_broker_gives_back_what_it_reserved() {
    let model = Model::default();
    let mut cluster = cluster(json!({"replicas": 3}));
    settle(&model, &mut cluster);
    cluster.spec.config.insert("num.partitions".into(), "3".into());
    let took = || model.with(|state| (std::mem::take(&mut state.asked), state.reserved.take()));
    // What it leads is still handed over.
    model.with(|state| state.not_yet = Some("7 partitions are still handed over".into()));
    let waits = pass(&model, &mut cluster);
    assert_eq!((waits.plan.steps, took()), (vec![], (vec![0, 1, 2], None)));
    // It goes on as it is until the next pass.
    model.with(|state| state.not_yet = None);
    let defined = pass(&model, &mut cluster);
    assert!(
        matches!(defined.done.as_slice(), [.., Step::ApplyBroker { broker: 0, .. }]),
        "{defined:?}"
    );
    assert_eq!(took(), (vec![0], None));
    // Its end is refused.
    model.with(|state| state.steps_left = Some(0));
    let refused = pass(&model, &mut cluster);
    assert_eq!((refused.faults.len(), took()), (1, (vec![0], None)));
    model.with(|state| state.steps_left = None);
    let ended = pass(&model, &mut cluster);
    assert!(
        matches!(ended.done.as_slice(), [.., Step::RestartBroker { broker: 0, .. }]),
        "{ended:?}"
    );
    assert_eq!(took(), (vec![0], Some(0)), "others count it as away");
}

#[test]
fn a_broker_that_does_not_serve_is_put_right_without_a_question() {
    let model = Model::default();
    let mut cluster = cluster(json!({"replicas": 3}));
    settle(&model, &mut cluster);
    cluster.spec.image = Some("bad:1".into());
    model.with(|state| state.bad_images = vec!["bad:1".into()]);
    (0..20).for_each(|_| drop(pass(&model, &mut cluster)));
    let failing = model.with(|state| (0..3).filter(|id| !state.serves(*id)).count());
    assert_eq!(failing, 1, "the others stay");
    model.with(|state| {
        state.asked.clear();
        state.held_back = [0, 1, 2].map(|id| (id, "no".to_owned())).into();
    });
    cluster.spec.image = None;
    settle(&model, &mut cluster);
    assert_eq!(model.with(|state| state.asked.clone()), Vec::<i32>::new());
}

/// It may lead or vote.
#[test]
fn a_broker_that_runs_and_is_not_ready_is_asked_about_before_it_ends() {
    let model = Model::default();
    let mut cluster = cluster(json!({"replicas": 3}));
    settle(&model, &mut cluster);
    model.with(|state| {
        state.not_ready = [1].into();
        state.held_back = [(1, "orders-7 has no other".to_owned())].into();
    });
    cluster.spec.config.insert("num.partitions".into(), "3".into());
    passes(&model, &mut cluster, 6);
    let starts = |id: i32| model.with(|state| state.brokers[&id].starts);
    assert_eq!([0, 1, 2].map(starts), [1, 1, 1], "{:?}", cluster.status);
    assert!(model.with(|state| state.asked.contains(&1)));
    let waits = &cluster.status.as_ref().unwrap().waits;
    let is_told = |wait: &&WaitStatus| wait.subject == "broker 1" && wait.reason == "WaitingForIsr";
    let told = waits.iter().find(is_told).unwrap();
    assert!(told.message.contains("orders-7 has no other"), "{waits:?}");
    model.with(|state| state.held_back.clear());
    passes(&model, &mut cluster, 6);
    assert_eq!([0, 1, 2].map(starts), [1, 2, 1]);
    model.with(|state| state.not_ready.clear());
    settle(&model, &mut cluster);
    assert_eq!([0, 1, 2].map(starts), [2, 2, 2]);
}

#[test]
fn no_broker_is_evicted_while_the_cluster_would_not_do_without_one() {
    let model = Model::default();
    let mut cluster = cluster(json!({"replicas": 3}));
    settle(&model, &mut cluster);
    assert!(!model.with(|state| state.holds_evictions));
    model.with(|state| drop(state.not_safe.insert(2, "orders-1 has no other".into())));
    let held = pass(&model, &mut cluster);
    assert!(matches!(held.plan.steps.as_slice(), [Step::ApplyBudget { .. }]), "{:?}", held.plan);
    assert!(model.with(|state| state.holds_evictions));
    assert_eq!(ready_reason_of(&held.status).0, "True", "clients miss nothing");
    let told = held.status.waits.iter().find(|wait| wait.reason == "EvictionsHeld").unwrap();
    let why =
        "no broker may be evicted by a drain of its node yet: broker 2: orders-1 has no other";
    assert_eq!((told.subject.as_str(), told.message.as_str()), ("PodDisruptionBudgets", why));
    assert!(!pass(&model, &mut cluster).is_settled(), "it is looked at again soon");
    model.with(|state| state.not_safe.clear());
    let settled = settle(&model, &mut cluster);
    assert!(!model.with(|state| state.holds_evictions) && settled.status.waits.is_empty());
    // With one broker its node could never be drained.
    let model = Model::default();
    let mut one = self::cluster(json!({}));
    model.with(|state| drop(state.not_safe.insert(0, "it is alone".into())));
    settle(&model, &mut one);
    assert!(!model.with(|state| state.holds_evictions));
}

#[test]
fn no_broker_is_evicted_from_before_another_one_is_ended() {
    let model = Model::default();
    let mut cluster = cluster(json!({"replicas": 3}));
    settle(&model, &mut cluster);
    cluster.spec.config.insert("num.partitions".into(), "3".into());
    // Not even its definition changes before the budget is closed.
    model.with(|state| state.hangs = Some(Part::Budget));
    let (before, now) = (model.with(|state| state.brokers.clone()), now());
    let waits = reconcile_cluster(&model, &cluster, None, &now).now_or_never();
    assert!(waits.is_none() && model.with(|state| state.brokers == before));
    model.with(|state| state.hangs = None);
    let mut closed = pass(&model, &mut cluster);
    let steps = closed.done.as_slice();
    let expected = [Step::ApplyBudget { what: vec!["spec.maxUnavailable".into()] }];
    assert!(steps.starts_with(&expected) && steps.len() == 2, "{steps:?}");
    let why = "no broker may be evicted by a drain of its node yet: broker 0 is about to restart";
    let is_told = |wait: &&WaitStatus| wait.reason == "EvictionsHeld";
    assert_eq!(closed.status.waits.iter().find(is_told).unwrap().message, why);
    while model.with(|state| state.restarts) == 0 {
        assert!(model.with(|state| state.holds_evictions), "{:?}", closed.plan);
        closed = pass(&model, &mut cluster);
    }
    // A pause leaves it so, and says so.
    let annotations = BTreeMap::from([(PAUSE_ANNOTATION.to_owned(), "true".to_owned())]);
    cluster.metadata.annotations = Some(annotations);
    let paused = passes(&model, &mut cluster, 9);
    assert!(model.with(|state| state.holds_evictions));
    let told = paused.status.waits.iter().find(is_told).unwrap();
    assert!(told.message.contains("when the object was paused"), "{told:?}");
    cluster.metadata.annotations = None;
    let settled = settle(&model, &mut cluster);
    assert!(!model.with(|state| state.holds_evictions) && settled.status.waits.is_empty());
    assert_eq!(model.with(|state| state.restarts), 3);
}

#[test]
fn one_broker_at_a_time_is_taken_down_and_none_while_another_is() {
    let model = Model::default();
    let mut cluster = cluster(json!({"replicas": 3}));
    settle(&model, &mut cluster);
    cluster.spec.config.insert("num.partitions".into(), "3".into());
    let down = || model.with(|state| state.brokers.keys().filter(|id| !state.serves(**id)).count());
    let mut passes = 0;
    while !pass(&model, &mut cluster).is_settled() {
        passes += 1;
        assert!(down() <= 1 && passes < 60, "{:?}", model.with(|state| state.clone()));
    }
    assert_eq!(model.with(|state| state.restarts), 3);
    // A broker that is down by itself keeps the others up, and as they were.
    model.with(|state| state.brokers.get_mut(&2).unwrap().starts_in = 9);
    cluster.spec.config.insert("num.partitions".into(), "4".into());
    let before = model.with(|state| state.brokers[&0].defined.clone());
    for _ in 0..3 {
        let waiting = pass(&model, &mut cluster);
        assert!(
            waiting.plan.waits.iter().any(|wait| wait.reason() == "WaitingForOtherBroker"),
            "{:?}",
            waiting.plan
        );
    }
    assert_eq!(
        (model.with(|state| state.brokers[&0].defined.clone()), model.with(|state| state.restarts)),
        (before, 3)
    );
    settle(&model, &mut cluster);
}

#[test]
fn a_bad_image_degrades_and_the_next_correct_spec_heals() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    settle(&model, &mut cluster);
    model.with(|state| state.bad_images.push("nonsense:1".into()));
    cluster.spec.image = Some("nonsense:1".into());
    for _ in 0..6 {
        pass(&model, &mut cluster);
    }
    let stuck = pass(&model, &mut cluster);
    assert_eq!(ready_reason(&stuck), ("False".into(), "BrokerFailing".into()));
    assert!(
        is_true(&stuck.status.conditions, DEGRADED)
            && is_true(&stuck.status.conditions, PROGRESSING)
    );
    assert!(stuck.plan.steps.is_empty(), "nothing to do but wait: {:?}", stuck.plan.steps);
    cluster.spec.image = Some("letterbox:2".into());
    let healed = settle(&model, &mut cluster);
    assert_eq!(healed.status.version.as_deref(), Some("2"));
    assert!(!is_true(&healed.status.conditions, DEGRADED));
}

#[test]
fn an_operator_that_knows_a_newer_image_leaves_the_cluster_on_its_own() {
    let model = Model::default();
    let mut cluster = cluster(json!({"version": "1"}));
    settle(&model, &mut cluster);
    cluster.spec.version = None;
    let kept = settle(&model, &mut cluster);
    assert_eq!(
        (kept.status.version.as_deref(), model.with(|state| state.restarts)),
        (Some("1"), 0)
    );
    model.with(|state| state.default_image = "letterbox:newer".into());
    // Neither a hand on the set nor its loss changes that.
    model.with(|state| state.brokers.get_mut(&0).unwrap().defined.0 = "by-hand:2".into());
    assert_eq!(settle(&model, &mut cluster).status.version.as_deref(), Some("1"));
    model.with(|state| state.brokers.clear());
    assert_eq!(settle(&model, &mut cluster).status.version.as_deref(), Some("1"));
}

#[test]
fn an_image_that_never_served_is_forgotten_with_the_spec_that_named_it() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    // The operator's own default may be bad too: the next operator's is taken then.
    model.with(|state| {
        (state.default_image, state.bad_images) =
            ("letterbox:bad".into(), vec!["letterbox:bad".into()])
    });
    for _ in 0..4 {
        let stuck = pass(&model, &mut cluster);
        assert_eq!((stuck.status.version, stuck.status.image), (None, None), "it does not run");
    }
    model.with(|state| state.default_image = "letterbox:1".into());
    assert_eq!(settle(&model, &mut cluster).status.default_image.as_deref(), Some("letterbox:1"));
    for bad in [json!({"version": "bad"}), json!({"image": "letterbox:bad"})] {
        let good = cluster.spec.clone();
        cluster.spec = serde_json::from_value(bad).unwrap();
        for _ in 0..4 {
            pass(&model, &mut cluster);
        }
        let stuck = pass(&model, &mut cluster);
        assert_eq!(
            (ready_reason(&stuck).1.as_str(), stuck.status.version),
            ("BrokerFailing", None)
        );
        cluster.spec = good;
        assert_eq!(settle(&model, &mut cluster).status.version.as_deref(), Some("1"));
    }
    // One that served is an upgrade, and taking it out of the spec is the way back.
    cluster.spec.version = Some("2".into());
    let upgraded = settle(&model, &mut cluster);
    assert_eq!(
        (upgraded.status.version.as_deref(), upgraded.status.default_image.as_deref()),
        (Some("2"), Some("letterbox:1"))
    );
    cluster.spec.version = None;
    assert_eq!(settle(&model, &mut cluster).status.version.as_deref(), Some("1"));
}

#[test]
fn a_volume_grows_and_one_grown_by_hand_is_only_noted() {
    let model = Model::default();
    let mut cluster = cluster(json!({"storage": {"size": "1Gi"}}));
    settle(&model, &mut cluster);
    cluster.spec.storage.size = "2Gi".into();
    // Growth does not wait for the broker.
    model.with(|state| state.bad_images.push("letterbox:default".into()));
    let grow = pass(&model, &mut cluster);
    assert!(
        matches!(grow.done.first(), Some(Step::GrowVolume { broker: 0, from, to, .. }) if *to == 2 * from),
        "{:?}",
        grow.done
    );
    model.with(|state| state.bad_images.clear());
    model.with(|state| state.disk(0, "data").size = 5 << 30);
    let noted = settle(&model, &mut cluster);
    assert_eq!((ready_reason(&noted).0.as_str(), noted.plan.notes.len()), ("True", 1));
    assert_eq!(model.with(|state| state.disk(0, "data").size), 5 << 30);
}

#[test]
fn a_volume_that_cannot_grow_is_told_so_with_the_way_out_and_never_as_growing() {
    let model = Model::default();
    let mut cluster = cluster(json!({"storage": {"size": "1Gi"}}));
    settle(&model, &mut cluster);
    let mut grow = |size: &str, refused: bool, most: Option<u64>| {
        cluster.spec.storage.size = size.into();
        model.with(|state| (state.fixed_volumes, state.volume_max) = (refused, most));
        let told = passes(&model, &mut cluster, 2);
        let waits =
            told.status.waits.iter().map(|wait| (wait.reason.clone(), wait.message.clone()));
        let status = &told.status.conditions;
        let degraded = find_condition(status, DEGRADED).unwrap().reason.clone();
        let progressing = find_condition(status, PROGRESSING).unwrap().reason.clone();
        assert_eq!(ready_reason(&told).0, "True", "nobody is kept from the cluster");
        (waits.collect::<Vec<_>>(), degraded, progressing)
    };
    let well = (vec![], "NoFault".to_owned(), "AsDesired".to_owned());
    let not_grown = |message: &str| {
        let reason = || "VolumeNotGrown".to_owned();
        (vec![(reason(), message.to_owned())], reason(), reason())
    };
    // The API server refuses to have it asked for.
    let refused = "grow volume data of broker 0 from 1Gi to 4Gi: the class does not allow it";
    assert_eq!(grow("4Gi", true, None), not_grown(refused));
    assert_eq!(grow("1Gi", true, None), well);
    // It is asked for, and the storage does not have it.
    let most = Some(2 << 30);
    let cannot = |to: &str| {
        not_grown(&format!(
            "volume data of broker 0 has 2Gi and cannot grow to {to}Gi: ControllerResizeError: \
             the pool is full; set its size in spec.storage to one that its storage class can \
             provide, or back to 2Gi"
        ))
    };
    assert_eq!(grow("4Gi", false, most), cannot("4"));
    assert_eq!(grow("3Gi", false, most), cannot("3"));
    assert_eq!(grow("2Gi", false, most), well);
    assert_eq!(grow("5Gi", false, None), well);
}

#[test]
fn mistakes_about_storage_can_be_taken_back() {
    let storage = |size: &str, class: &str| json!({"storage": {"size": size, "class": class}});
    let model = Model::default();
    model.with(|state| state.bad_classes.push("fsat".into()));
    let mut cluster = cluster(storage("1Gi", "fsat"));
    for _ in 0..5 {
        assert_eq!(ready_reason(&pass(&model, &mut cluster)).0, "False");
    }
    let class = || model.with(|state| state.disk(0, "data").class.clone());
    // The default class is right where none is named.
    set(&mut cluster, json!({"storage": {"size": "1Gi"}}));
    passes(&model, &mut cluster, 9);
    assert_eq!(class(), None);
    // Again, and the cluster is deleted and made again with the right class; its claim was
    // retained.
    model.with(|state| {
        let (class, disk) = (Some("fsat".to_owned()), state.disk(0, "data"));
        (disk.class, disk.is_bound) = (class.clone(), false);
        disk.asked = Some(Asked { class, size: Some(1 << 30) });
    });
    model.with(|state| state.brokers.clear());
    cluster.status = None;
    set(&mut cluster, storage("1Gi", "fast"));
    settle(&model, &mut cluster);
    assert_eq!(class().as_deref(), Some("fast"));
    // A volume that is there is never made again: the mismatch is told, with the way out.
    let disk = model.with(|state| state.disk(0, "data").clone());
    set(&mut cluster, storage("1Gi", "slow"));
    for _ in 0..3 {
        let told = pass(&model, &mut cluster);
        let degraded = find_condition(&told.status.conditions, DEGRADED).unwrap();
        assert_eq!(
            (degraded.reason.as_str(), ready_reason(&told).0.as_str()),
            ("StorageClassDiffers", "True")
        );
        assert!(degraded.message.contains("set it to fast"), "{}", degraded.message);
    }
    set(&mut cluster, storage("1Gi", "fast"));
    assert!(!is_true(&settle(&model, &mut cluster).status.conditions, DEGRADED));
    // Growth that the class refuses.
    model.with(|state| state.fixed_volumes = true);
    set(&mut cluster, storage("2Gi", "fast"));
    assert!(is_true(&pass(&model, &mut cluster).status.conditions, DEGRADED));
    set(&mut cluster, storage("1Gi", "fast"));
    assert!(!is_true(&settle(&model, &mut cluster).status.conditions, DEGRADED));
    assert_eq!(model.with(|state| state.disk(0, "data").clone()), disk);
}

#[test]
fn a_wrong_size_of_a_volume_that_was_not_made_can_be_taken_back() {
    let model = Model::default();
    model.with(|state| state.bad_classes.push("fast".into()));
    let storage = |size: &str| json!({"storage": {"size": size, "class": "fast"}});
    let mut cluster = cluster(storage("500Ti"));
    (0..3).for_each(|_| drop(pass(&model, &mut cluster)));
    for size in ["1Gi", "2Gi"] {
        set(&mut cluster, storage(size));
        (0..9).for_each(|_| drop(pass(&model, &mut cluster)));
        let wanted = letterbox_operator::api::bytes_of(size).unwrap();
        assert_eq!(model.with(|state| state.disk(0, "data").size), wanted);
    }
    model.with(|state| state.bad_classes.clear());
    settle(&model, &mut cluster);
}

#[test]
fn what_admission_makes_of_a_claim_is_not_asked_for_again_and_again() {
    let model = Model::default();
    model.with(|state| {
        (state.silent, state.admitted) = (true, Some((Some("chosen".into()), 3 << 30)));
        state.bad_classes.push("chosen".into());
    });
    let mut cluster = cluster(json!({"storage": {"size": "1Gi"}}));
    passes(&model, &mut cluster, 9);
    let uid = model.with(|state| state.disk(0, "data").uid.clone());
    passes(&model, &mut cluster, 9);
    assert_eq!(model.with(|state| state.disk(0, "data").uid.clone()), uid);
    model.with(|state| state.bad_classes.clear());
    let settled = settle(&model, &mut cluster);
    assert_eq!((ready_reason(&settled).0.as_str(), settled.plan.notes.len()), ("True", 1));
    assert_eq!(model.with(|state| state.disk(0, "data").uid.clone()), uid);
}

#[test]
fn a_claim_that_somebody_else_made_is_never_deleted() {
    let model = Model::default();
    model.with(|state| state.silent = true);
    // Their volumes, with records, are bound to them in a moment.
    by_hand(&model, "data", None);
    by_hand(&model, "data-7", None);
    model.with(|state| state.disk(0, "data").size = 20 << 30);
    let mut cluster = cluster(json!({"storage": {"size": "10Gi", "class": "fast"}}));
    passes(&model, &mut cluster, 9);
    let uids = model
        .with(|state| state.disks.values().map(|disk| disk.uid.clone()).collect::<Vec<String>>());
    assert_eq!(uids, ["by-hand", "by-hand"]);
}

#[test]
fn a_claim_that_restores_a_snapshot_is_never_deleted() {
    let model = Model::default();
    model.with(|state| state.silent = true);
    let mut cluster = cluster(json!({"storage": {"size": "1Gi", "class": "fast"}}));
    by_hand(&model, "data", None);
    by_hand(&model, "data-7", None);
    model.with(|state| {
        for disk in state.disks.values_mut() {
            (disk.is_restored, disk.asked) = (true, Some(Asked::default()));
        }
    });
    model.with(|state| {
        state.bad_classes.push("slow".into());
        let disk = state.disk(0, "data");
        (disk.class, disk.size) = (Some("slow".into()), 1 << 30);
    });
    for _ in 0..3 {
        let told = pass(&model, &mut cluster);
        assert!(!told.plan.steps.iter().any(|step| step.part() == Part::Storage));
        let waits = told.plan.waits.iter().map(|wait| wait.reason());
        assert!(waits.into_iter().any(|reason| reason == "StorageClassDiffers"));
    }
    assert_eq!(model.with(|state| state.disks.len()), 2);
}

#[test]
fn no_broker_restarts_for_a_volume_before_it_is_known_to_be_possible() {
    let model = Model::default();
    let mut cluster = cluster(volumes(&["data"]));
    settle(&model, &mut cluster);
    model.with(|state| state.silent = true);
    set(&mut cluster, volumes(&["data", "data-1"]));
    for _ in 0..5 {
        pass(&model, &mut cluster);
    }
    let told = pass(&model, &mut cluster);
    assert_eq!(ready_reason(&told), ("False".into(), "VolumePending".into()));
    assert_eq!(model.with(|state| (state.serves(0), state.restarts)), (true, 0));
    model.with(|state| state.silent = false);
    settle(&model, &mut cluster);
    assert_eq!(model.with(|state| state.restarts), 1);
}

#[test]
fn a_claim_that_has_a_volume_is_never_deleted_because_the_spec_forgets_it() {
    let model = Model::default();
    let mut cluster = cluster(volumes(&["data"]));
    settle(&model, &mut cluster);
    // It is made at once, and the broker does not restart yet.
    model.with(|state| (state.binds_at_once, state.silent) = (true, true));
    set(&mut cluster, volumes(&["data", "data-1"]));
    pass(&model, &mut cluster);
    model.tick();
    assert!(model.with(|state| state.disk(0, "data-1").is_bound));
    set(&mut cluster, volumes(&["data"]));
    settle(&model, &mut cluster);
    // Nobody knows what is on it: a person may have put records there.
    assert_eq!(model.with(|state| (state.disks.len(), state.restarts)), (2, 0));
    // One that nothing was made for goes.
    model.with(|state| state.disk(0, "data-1").is_bound = false);
    settle(&model, &mut cluster);
    assert_eq!(model.with(|state| (state.disks.len(), state.restarts)), (1, 0));
}

/// What an operator does not know was accepted it does not delete: the claim says which volume it
/// was.
#[test]
fn a_claim_whose_volume_is_gone_stays_until_its_loss_is_accepted() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    // The operator never learned what is on the volume, and the broker does not run any more.
    model.with(|state| state.mute = true);
    for _ in 0..6 {
        pass(&model, &mut cluster);
    }
    let uid = model.with(|state| {
        state.disk(0, "data").is_gone = true;
        state.frozen = true;
        state.disk(0, "data").uid.clone()
    });
    for _ in 0..6 {
        pass(&model, &mut cluster);
    }
    assert_eq!(model.with(|state| state.disk(0, "data").uid.clone()), uid);
}

#[test]
fn a_claim_whose_volume_is_gone_is_a_loss() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    settle(&model, &mut cluster);
    model.with(|state| (state.disk(0, "data").is_gone, state.frozen) = (true, false));
    for _ in 0..4 {
        let told = pass(&model, &mut cluster);
        assert_eq!(ready_reason(&told), ("False".into(), "DataLost".into()));
        let degraded = find_condition(&told.status.conditions, DEGRADED).unwrap();
        assert!(degraded.message.contains("phase is Lost"), "{}", degraded.message);
    }
    assert_eq!(model.with(|state| (state.disks.len(), state.restarts)), (1, 0));
    let loss = remembered(&cluster).3.unwrap();
    accept(&mut cluster, &loss);
    settle(&model, &mut cluster);
    assert!(!model.with(|state| state.disk(0, "data").is_gone));
    assert_eq!(remembered(&cluster).2, 2);
}

fn volumes(names: &[&str]) -> serde_json::Value {
    let all: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
    json!({"storage": {"size": "1Gi", "volumes": all}})
}

fn set(cluster: &mut KafkaCluster, spec: serde_json::Value) {
    cluster.spec = serde_json::from_value(spec).unwrap();
}

#[test]
fn a_volume_is_added_with_one_restart_and_a_used_one_is_not_taken_away() {
    let model = Model::default();
    let mut cluster = cluster(volumes(&["data"]));
    settle(&model, &mut cluster);
    let first = directories(&cluster);
    // A class that does not exist takes no broker down.
    model.with(|state| state.bad_classes.push("fsat".into()));
    set(&mut cluster, volumes(&["data", "data-1"]));
    cluster.spec.storage.volumes[1].class = Some("fsat".into());
    let degraded = degraded_after(5, &model, &mut cluster);
    assert_eq!(
        (degraded.reason.as_str(), degraded.message.as_str()),
        (
            "VolumeNotMade",
            "cannot create volume data-1 of broker 0: ProvisioningFailed: there is no such class"
        )
    );
    assert_eq!(model.with(|state| (state.serves(0), state.restarts)), (true, 0));
    // Taken back: nothing is left of it, and nothing restarts.
    set(&mut cluster, volumes(&["data"]));
    settle(&model, &mut cluster);
    assert_eq!(model.with(|state| (state.disks.len(), state.restarts)), (1, 0));

    set(&mut cluster, volumes(&["data-1", "data"]));
    let ready = settle(&model, &mut cluster);
    assert_eq!((ready_reason(&ready).0.as_str(), model.with(|state| state.restarts)), ("True", 1));
    let both = directories(&cluster);
    assert_eq!((both.len(), &both[0], both[1].0.as_str()), (2, &first[0], "data-1"));
    let expected = model.with(|state| state.brokers[&0].defined.3.clone());
    assert_eq!(expected, both.iter().filter_map(|(_, id)| id.clone()).collect::<Vec<_>>());

    // Each grows by itself.
    cluster.spec.storage.volumes[0].size = Some("3Gi".into());
    settle(&model, &mut cluster);
    let sizes = || model.with(|state| (state.disk(0, "data").size, state.disk(0, "data-1").size));
    assert_eq!(sizes(), (1 << 30, 3 << 30));

    // Records are on it: it stays as it is, and says so.
    set(&mut cluster, volumes(&["data"]));
    cluster.spec.storage.size = "5Gi".into();
    for _ in 0..3 {
        let kept = pass(&model, &mut cluster);
        let degraded = find_condition(&kept.status.conditions, DEGRADED).unwrap();
        assert_eq!(
            (degraded.reason.as_str(), ready_reason(&kept).0.as_str()),
            ("VolumeStillUsed", "True")
        );
        assert!(degraded.message.contains("put data-1 back"), "{}", degraded.message);
    }
    assert_eq!(sizes(), (5 << 30, 3 << 30), "what the spec says is not said of it");
    // Also for a cluster that is made again on kept claims.
    cluster.status = None;
    for _ in 0..3 {
        pass(&model, &mut cluster);
    }
    assert_eq!((directories(&cluster), model.with(|state| state.restarts)), (both, 1));
    set(&mut cluster, volumes(&["data", "data-1"]));
    assert!(!is_true(&settle(&model, &mut cluster).status.conditions, DEGRADED));
}

#[test]
fn each_volume_that_is_lost_is_told_and_accepted_by_itself() {
    let model = Model::default();
    let mut cluster = cluster(volumes(&["data", "data-1", "data-2"]));
    settle(&model, &mut cluster);
    let before = directories(&cluster);
    model.with(|state| state.lose(0, "data-1"));
    model.with(|state| state.lose(0, "data-2"));
    for (loss, lost) in [
        ("broker-0-data-1-incarnation-1-dir-5-", ["data-1", "data-2"].as_slice()),
        ("broker-0-data-2-incarnation-1-dir-6-", &["data-2"]),
    ] {
        for _ in 0..4 {
            let told = pass(&model, &mut cluster);
            let degraded = find_condition(&told.status.conditions, DEGRADED).unwrap();
            assert_eq!(degraded.reason, "DataLost");
            assert_eq!(ClusterState::of(Some(&cluster), &now()), ClusterState::NotReady);
            assert!(told_as(&cluster, loss));
            for name in lost {
                assert!(!model.with(|state| state.disks.contains_key(&(0, (*name).to_owned()))));
            }
        }
        accept_told(&mut cluster);
        pass(&model, &mut cluster);
    }
    assert_eq!(ready_reason(&settle(&model, &mut cluster)).0, "True");
    let after = directories(&cluster);
    assert_eq!((&after[0], after.len(), remembered(&cluster).2), (&before[0], 3, 3));
    assert!(after[1] != before[1] && after[2] != before[2], "{after:?}");
}

#[test]
fn a_log_directory_that_a_broker_does_not_use_is_told() {
    let model = Model::default();
    let mut cluster = cluster(volumes(&["data", "data-1"]));
    settle(&model, &mut cluster);
    // The broker went on without it, as it does when its disk breaks.
    model.with(|state| {
        state.brokers.get_mut(&0).unwrap().started.as_mut().unwrap().3.clear();
        state.disk(0, "data-1").directory = None;
        state.disk(0, "data").remembers.clear();
        state.frozen = true;
    });
    let told = pass(&model, &mut cluster);
    assert_eq!(ready_reason(&told), ("False".into(), "VolumeOffline".into()));
    assert_eq!(ClusterState::of(Some(&cluster), &now()), ClusterState::Ready, "others are served");
}

#[test]
fn a_log_directory_that_is_offline_is_told_until_the_broker_says_otherwise() {
    let model = Model::default();
    let mut cluster = cluster(volumes(&["data", "data-1"]));
    settle(&model, &mut cluster);
    let directory = model.with(|state| state.disk(0, "data-1").directory.take());
    model.with(|state| {
        state.brokers.get_mut(&0).unwrap().started.as_mut().unwrap().3.clear();
        state.disk(0, "data").remembers.clear();
        state.frozen = true;
    });
    pass(&model, &mut cluster);
    // It does not answer now and then, and the spec changes.
    cluster.spec.config.insert("num.partitions".into(), "3".into());
    for mute in [false, true, true, false] {
        model.with(|state| (state.mute, state.brokers.get_mut(&0).unwrap().starts_in) = (mute, 1));
        let told = pass(&model, &mut cluster);
        let offline = told.plan.waits.iter().find(|wait| wait.reason() == "VolumeOffline");
        assert!(offline.is_some(), "{:?}", told.plan.waits);
    }
    model.with(|state| {
        (state.mute, state.frozen) = (false, false);
        state.disk(0, "data-1").directory = directory;
    });
    assert_eq!(ready_reason(&settle(&model, &mut cluster)).0, "True");
}

#[test]
fn a_broker_that_does_not_say_who_it_is_is_told_and_nothing_relies_on_it() {
    let model = Model::default();
    let mut cluster = cluster(volumes(&["data"]));
    model.with(|state| state.mute = true);
    let degraded = degraded_after(7, &model, &mut cluster);
    assert_eq!(
        (degraded.status.as_str(), degraded.reason.as_str()),
        ("True", "IdentityUnknown"),
        "{}",
        degraded.message
    );
    assert!(degraded.message.contains("9644"), "{}", degraded.message);
    // Its claim vanishes, and nobody knows what is on the volume.
    model.with(|state| state.vanish(0, "data"));
    (0..4).for_each(|_| drop(pass(&model, &mut cluster)));
    assert_eq!(model.with(|state| (state.disks.len(), state.restarts)), (0, 0));
    model.with(|state| state.mute = false);
    (0..2).for_each(|_| drop(pass(&model, &mut cluster)));
    assert!(remembered(&cluster).3.is_some(), "it is a loss once that is known");
}

#[test]
fn a_cluster_that_is_made_again_without_one_of_its_volumes_says_so() {
    let model = Model::default();
    let mut cluster = cluster(volumes(&["data"]));
    let missing = ("dir-90".to_owned(), "/var/lib/kafka/data-1/kafka-log".to_owned());
    model.with(|state| state.not_found.extend([missing]));
    (0..6).for_each(|_| drop(pass(&model, &mut cluster)));
    let told = pass(&model, &mut cluster);
    assert_eq!(ready_reason(&told), ("False".into(), "DataLost".into()));
    let degraded = find_condition(&told.status.conditions, DEGRADED).unwrap();
    assert!(
        degraded.message.contains("on volume data-1 (directory.id dir-90)"),
        "{}",
        degraded.message
    );
    assert_eq!(ClusterState::of(Some(&cluster), &now()), ClusterState::NotReady);
    let before = directories(&cluster);
    assert!(told_as(&cluster, "broker-0-data-1-incarnation-1-dir-90-"));
    accept_told(&mut cluster);
    for _ in 0..3 {
        pass(&model, &mut cluster);
    }
    let told = model.with(|state| state.brokers[&0].given_up.clone());
    assert_eq!(told, ["dir-90"], "the broker is told");
    let healed = settle(&model, &mut cluster);
    assert_eq!(ready_reason(&healed).0, "True");
    assert_eq!((directories(&cluster), model.with(|state| state.restarts)), (before, 1));
    assert_eq!(healed.status.nodes[0].losses, [], "it goes on without");
}

/// The losses of the only broker.
fn losses(cluster: &KafkaCluster) -> Vec<LossStatus> {
    cluster.status.as_ref().unwrap().nodes[0].losses.clone()
}

fn passes(model: &Model, cluster: &mut KafkaCluster, count: u32) -> ClusterPass {
    (1..count).for_each(|_| drop(pass(model, cluster)));
    pass(model, cluster)
}

#[test]
fn a_volume_is_used_once_a_pod_has_its_claim_whether_or_not_the_broker_answers() {
    let model = Model::default();
    // Nobody saw a volume behind the claim when it went; nobody knows whether there was one since.
    model.with(|state| (state.mute, state.bad_classes) = (true, vec!["fast".into()]));
    let mut cluster = cluster(json!({"storage": {"class": "fast"}}));
    passes(&model, &mut cluster, 4);
    model.with(|state| state.lose(0, "data"));
    passes(&model, &mut cluster, 3);
    assert_eq!((losses(&cluster).len(), model.with(|state| state.disks.len())), (1, 0));
    accept_told(&mut cluster);
    passes(&model, &mut cluster, 6);
    assert_eq!(model.with(|state| state.disks.len()), 1);
    // The broker recovers its log, and is not ready when its claim goes.
    model.with(|state| state.bad_classes.clear());
    settle_mute(&model, &mut cluster);
    model.with(|state| state.disk(0, "data").uid = "first".into());
    cluster.status.as_mut().unwrap().nodes[0].volumes[0].claim_uid = Some("first".into());
    model.with(|state| state.brokers.get_mut(&0).unwrap().starts_in = 9);
    passes(&model, &mut cluster, 1);
    let node = || cluster.status.as_ref().unwrap().nodes[0].clone();
    assert_eq!(node().volumes[0].claim_uid.as_deref(), Some("first"));
    assert_eq!(node().volumes[0].directory_id, None);
    model.with(|state| state.lose(0, "data"));
    let lost = passes(&model, &mut cluster, 4);
    assert_eq!(ready_reason(&lost), ("False".into(), "DataLost".into()));
    assert_eq!(model.with(|state| state.disks.len()), 0, "it is not made again");
    assert!(told_as(&cluster, "broker-0-incarnation-2-first-"));
    accept_told(&mut cluster);
    passes(&model, &mut cluster, 12);
    assert_eq!((losses(&cluster), remembered(&cluster).2), (vec![], 3));
    assert!(model.with(|state| state.serves(0)));
}

#[test]
fn an_open_loss_ends_when_the_records_are_seen_and_not_because_nothing_is_seen() {
    let fault = || Fault { reason: "Forbidden".into(), message: "list x: forbidden".into() };
    for is_missed in [false, true] {
        let model = Model::default();
        let both = volumes(&["data", "data-1"]);
        let mut cluster = cluster(if is_missed { volumes(&["data"]) } else { both.clone() });
        settle(&model, &mut cluster);
        let (name, back) = match is_missed {
            false => {
                model.with(|state| state.lose(0, "data-1"));
                ("broker-0-data-1-incarnation-1-dir-4-", "dir-4")
            }
            true => {
                let missing = ("dir-90".to_owned(), "/data-1/kafka-log".to_owned());
                model.with(|state| state.not_found.extend([missing]));
                ("broker-0-data-1-incarnation-1-dir-90-", "dir-90")
            }
        };
        passes(&model, &mut cluster, 3);
        model.with(|state| state.not_found.clear());
        for (unread, mute) in [
            (vec![], true),
            (vec![Part::Storage], false),
            (vec![Part::Storage, Part::Brokers, Part::Definitions], true),
            (vec![], false),
        ] {
            model.with(|state| state.unread = unread.into_iter().map(|p| (p, fault())).collect());
            model.with(|state| state.mute = mute);
            let told = passes(&model, &mut cluster, 3);
            assert_eq!(ready_reason(&told), ("False".into(), "DataLost".into()));
            assert!(told_as(&cluster, name));
        }
        by_hand(&model, "data-1", Some(back.to_owned()));
        model.with(|state| state.disk(0, "data-1").size = 1 << 30);
        set(&mut cluster, both);
        assert_eq!(ready_reason(&settle(&model, &mut cluster)).0, "True");
        assert_eq!((losses(&cluster), remembered(&cluster).2), (vec![], 1));
    }
}

#[test]
fn a_broker_that_has_the_last_copy_is_ended_for_nothing() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    settle(&model, &mut cluster);
    model.with(|state| state.disk(0, "data").is_gone = true);
    passes(&model, &mut cluster, 2);
    let [loss] = losses(&cluster).try_into().unwrap();
    assert_eq!((loss.reason, loss.held), (LossReason::VolumeGone, true));
    cluster.spec.config.insert("num.partitions".into(), "3".into());
    let told = passes(&model, &mut cluster, 4);
    assert!(told.plan.waits.iter().any(|wait| wait.reason() == "HoldsLastCopy"), "{told:?}");
    // Nor to heal one that cannot run.
    model.with(|state| state.bad_images.push("letterbox:default".into()));
    cluster.spec.image = Some("letterbox:good".into());
    passes(&model, &mut cluster, 4);
    let started = || model.with(|state| state.brokers[&0].starts);
    assert_eq!((started(), model.with(|state| state.disks.len())), (1, 1));
    accept(&mut cluster, &loss.name);
    settle(&model, &mut cluster);
    assert_eq!(started(), 2);
}

#[test]
fn nothing_ends_a_broker_before_what_it_has_is_written_down() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    passes(&model, &mut cluster, 2);
    let before = cluster.status.clone();
    cluster.spec.config.insert("num.partitions".into(), "3".into());
    for _ in 0..4 {
        // The status cannot be written.
        let pass = pass(&model, &mut cluster);
        cluster.status.clone_from(&before);
        let ends = |step: &Step| matches!(step, Step::RestartBroker { .. });
        assert!(!pass.done.iter().any(ends), "{:?}", pass.done);
    }
    settle(&model, &mut cluster);
}

#[test]
fn an_acceptance_lives_until_what_it_allows_is_done_however_often_that_fails() {
    for is_held in [false, true] {
        for steps in 0..6 {
            let model = Model::default();
            let mut cluster = cluster(volumes(&["data", "data-1"]));
            settle(&model, &mut cluster);
            if is_held {
                model.with(|state| state.vanish(0, "data-1"));
            } else {
                model.with(|state| state.lose(0, "data-1"));
            }
            passes(&model, &mut cluster, 3);
            let loss = remembered(&cluster).3.unwrap();
            accept(&mut cluster, &loss);
            model.with(|state| state.steps_left = Some(steps));
            pass(&model, &mut cluster);
            // It is written down, and need not be said again.
            cluster.metadata.annotations = None;
            passes(&model, &mut cluster, 4);
            model.with(|state| state.steps_left = None);
            assert_eq!(ready_reason(&settle(&model, &mut cluster)).0, "True", "{steps} steps");
            assert_eq!((losses(&cluster), remembered(&cluster).2), (vec![], 2));
            assert!(model.with(|state| state.disk(0, "data-1").directory.is_some()));
        }
    }
}

#[test]
fn a_broker_that_lost_its_metadata_and_not_its_partitions_is_told_to_begin_anew() {
    let model = Model::default();
    let mut cluster = cluster(volumes(&["data", "data-1"]));
    settle(&model, &mut cluster);
    let kept = model.with(|state| state.disk(0, "data-1").directory.clone());
    model.with(|state| state.lose(0, "data"));
    passes(&model, &mut cluster, 3);
    let loss = remembered(&cluster).3.unwrap();
    accept(&mut cluster, &loss);
    assert_eq!(ready_reason(&settle(&model, &mut cluster)).0, "True");
    assert_eq!(model.with(|state| state.disk(0, "data-1").directory.clone()), kept);
    assert_eq!(losses(&cluster), []);
    assert!(!model.with(|state| state.brokers[&0].begins_anew), "once");
}

#[test]
fn an_empty_claim_that_a_person_deletes_to_bring_the_old_one_back_is_not_made_again() {
    // The cluster was made again, and the operator has made an empty claim for data-1.
    let model = Model::default();
    let mut cluster = cluster(volumes(&["data", "data-1"]));
    let old = ("dir-90".to_owned(), "/data-1".to_owned());
    model.with(|state| (state.frozen, state.not_found) = (true, [old].into()));
    by_hand(&model, "data", Some("dir-80".into()));
    model.with(|state| state.disk(0, "data").size = 1 << 30);
    passes(&model, &mut cluster, 6);
    assert!(told_as(&cluster, "broker-0-data-1-incarnation-1-dir-90-"));
    // The page: the empty claim is deleted, and the broker's pod with it.
    model.with(|state| state.lose(0, "data-1"));
    passes(&model, &mut cluster, 4);
    assert_eq!(model.with(|state| state.disks.len()), 1);
    model.with(|state| (state.frozen, state.not_found) = (false, BTreeMap::new()));
    by_hand(&model, "data-1", Some("dir-90".into()));
    model.with(|state| state.disk(0, "data-1").size = 1 << 30);
    assert_eq!(ready_reason(&settle(&model, &mut cluster)).0, "True");
    assert_eq!(directories(&cluster)[1], ("data-1".into(), Some("dir-90".into())));
    assert_eq!((losses(&cluster), remembered(&cluster).2), (vec![], 1));
}

#[test]
fn a_cluster_that_is_made_again_without_its_metadata_makes_no_empty_volume_for_it() {
    let model = Model::default();
    let mut cluster = cluster(volumes(&["data", "data-1"]));
    by_hand(&model, "data-1", Some("dir-90".into()));
    model.with(|state| {
        let kept = state.disk(0, "data-1");
        (kept.is_kept, kept.is_bound, kept.size) = (true, true, 1 << 30);
    });
    let told = passes(&model, &mut cluster, 4);
    assert_eq!(ready_reason(&told), ("False".into(), "DataLost".into()));
    assert_eq!(model.with(|state| state.disks.len()), 1);
    let back = |directory: Option<&str>, is_kept: bool| {
        by_hand(&model, "data", directory.map(ToOwned::to_owned));
        model.with(|state| {
            (state.disk(0, "data").size = 1 << 30, state.disk(0, "data").is_kept = is_kept)
        });
    };
    let restored = model.with(|state| state.clone());
    back(Some("dir-80"), true);
    let mut same = cluster.clone();
    assert_eq!(ready_reason(&settle(&model, &mut same)).0, "True");
    // An empty one that somebody makes is not the old one, though the broker may serve with it.
    model.with(|state| *state = restored.clone());
    model.with(|state| state.brokers.clear());
    back(None, false);
    let mut same = cluster.clone();
    passes(&model, &mut same, 3);
    model.with(|state| state.brokers.get_mut(&0).unwrap().begins_anew = true);
    passes(&model, &mut same, 6);
    assert!(model.with(|state| state.serves(0)));
    assert!(told_as(&same, "broker-0-incarnation-1-unknown-"));
    // Or it is gone for good.
    model.with(|state| *state = restored);
    assert!(told_as(&cluster, "broker-0-incarnation-1-unknown-"));
    accept_told(&mut cluster);
    assert_eq!(ready_reason(&settle(&model, &mut cluster)).0, "True");
    assert_eq!((losses(&cluster), remembered(&cluster).2), (vec![], 2));
}

/// Its name is new with each loss, so that an acceptance of before is none of this one.
#[test]
fn a_volume_that_is_lost_again_after_it_was_back_is_another_loss() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    settle(&model, &mut cluster);
    let directory = model.with(|state| state.disk(0, "data").directory.clone());
    model.with(|state| state.lose(0, "data"));
    passes(&model, &mut cluster, 3);
    let first = remembered(&cluster).3.unwrap();
    by_hand(&model, "data", directory);
    settle(&model, &mut cluster);
    accept(&mut cluster, &first);
    settle(&model, &mut cluster);
    model.with(|state| state.lose(0, "data"));
    passes(&model, &mut cluster, 6);
    assert_eq!((remembered(&cluster).2, model.with(|state| state.disks.len())), (1, 0));
    assert_ne!(remembered(&cluster).3.as_ref(), Some(&first));
    assert!(told_as(&cluster, "broker-0-incarnation-1-dir-2-"));
}

#[test]
fn a_loss_is_accepted_only_once_it_is_recorded() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    settle(&model, &mut cluster);
    model.with(|state| state.lose(0, "data"));
    // As if somebody could know what the pass that finds it will call it.
    let mut same = cluster.clone();
    pass(&model, &mut same);
    accept(&mut cluster, &remembered(&same).3.unwrap());
    let found = pass(&model, &mut cluster);
    assert_eq!((found.status.nodes[0].incarnation, losses(&cluster)[0].accepted), (1, false));
}

/// The broker brought back an older memory of its directories, and misses one that was given up.
#[test]
fn an_open_loss_hides_no_other_one_of_its_volume() {
    let model = Model::default();
    let mut cluster = cluster(volumes(&["data", "data-1"]));
    settle(&model, &mut cluster);
    let missing = ("dir-90".to_owned(), "/data-1".to_owned());
    model.with(|state| state.not_found.extend([missing]));
    passes(&model, &mut cluster, 3);
    assert!(told_as(&cluster, "broker-0-data-1-incarnation-1-dir-90-"));
    model.with(|state| state.vanish(0, "data-1"));
    cluster.spec.config.insert("num.partitions".into(), "3".into());
    let told = passes(&model, &mut cluster, 6);
    let [missed, held] = losses(&cluster).try_into().unwrap();
    assert_eq!((missed.held, held.held, held.reason), (false, true, LossReason::ClaimGone));
    assert_eq!(held.directory_id.as_deref(), Some("dir-4"));
    assert!(told.plan.waits.iter().any(|wait| wait.reason() == "HoldsLastCopy"), "{told:?}");
    assert_eq!(model.with(|state| (state.brokers[&0].starts, state.restarts)), (1, 0));
    // One after the other.
    while let Some(loss) = remembered(&cluster).3 {
        accept(&mut cluster, &loss);
        passes(&model, &mut cluster, 3);
    }
    assert_eq!(ready_reason(&settle(&model, &mut cluster)).0, "True");
}

#[test]
fn what_a_broker_wrote_in_the_place_of_an_open_loss_is_a_loss_of_its_own() {
    // The operator never learns a directory: the broker is not told to wait for the old one.
    let model = Model::default();
    model.with(|state| state.mute = true);
    let mut cluster = cluster(volumes(&["data"]));
    settle_mute(&model, &mut cluster);
    model.with(|state| state.lose(0, "data"));
    passes(&model, &mut cluster, 2);
    let lost = losses(&cluster)[0].clone();
    by_hand(&model, "data", None);
    passes(&model, &mut cluster, 6);
    assert!(model.with(|state| state.serves(0) && state.disk(0, "data").directory.is_some()));
    assert_eq!(losses(&cluster)[0].replaced_by.as_deref(), Some("by-hand"));
    model.with(|state| state.lose(0, "data"));
    passes(&model, &mut cluster, 2);
    let [first, second] = losses(&cluster).try_into().unwrap();
    assert_eq!((&first.name, second.claim_uid.as_deref()), (&lost.name, Some("by-hand")));
    // Each is accepted by itself.
    accept(&mut cluster, &first.name);
    passes(&model, &mut cluster, 4);
    assert!(!model.with(|state| state.disks.contains_key(&(0, "data".to_owned()))));
    accept(&mut cluster, &second.name);
    settle_mute(&model, &mut cluster);
    assert_eq!(losses(&cluster), []);
}

#[test]
fn a_claim_that_was_seen_to_go_without_a_volume_is_no_loss() {
    for is_told in [false, true] {
        let model = Model::default();
        model.with(|state| state.bad_classes.push("fsat".into()));
        let mut cluster = cluster(json!({"storage": {"size": "1Gi", "class": "fsat"}}));
        passes(&model, &mut cluster, 6);
        let recorded = cluster.status.as_ref().unwrap().nodes[0].volumes[0].clone();
        let uid = recorded.claim_uid.unwrap();
        model.with(|state| state.lose(0, "data"));
        if is_told {
            passes(&model, &mut cluster, 3);
            assert_eq!(losses(&cluster).len(), 1, "what nobody saw may have been used");
        }
        model.with(|state| state.unmade.insert(uid.clone()));
        passes(&model, &mut cluster, 9);
        assert_eq!(losses(&cluster), []);
        assert_ne!(model.with(|state| state.disk(0, "data").uid.clone()), uid);
        cluster.spec.storage.class = None;
        changes(&mut cluster);
        assert_eq!(ready_reason(&settle(&model, &mut cluster)).0, "True");
    }
}

/// One part is not answered: whoever asks waits for ever.
#[test]
fn a_step_that_does_not_end_holds_up_no_other_part() {
    for part in [Part::Access, Part::Budget, Part::Storage, Part::Definitions] {
        let model = Model::default();
        let mut cluster = cluster(json!({"storage": {"size": "1Gi"}}));
        settle(&model, &mut cluster);
        model.with(|state| {
            (state.has_access, state.lost_budget) = (false, true);
            state.brokers.get_mut(&0).unwrap().defined.1 = "by hand".into();
            state.hangs = Some(part);
        });
        cluster.spec.storage.size = "2Gi".into();
        let now = now();
        let pass = reconcile_cluster(&model, &cluster, None, &now);
        assert!(pass.now_or_never().is_none(), "it waits for {part:?}");
        let done = model.with(|state| {
            [
                (Part::Access, state.has_access),
                (Part::Budget, !state.lost_budget),
                (Part::Storage, state.disk(0, "data").size == 2 << 30),
                (Part::Definitions, state.brokers[&0].defined.1 != "by hand"),
            ]
        });
        for (other, is_done) in done {
            assert_eq!(is_done, other != part, "{other:?} beside {part:?}");
        }
    }
}

#[test]
fn each_fault_is_told_whatever_else_is_wrong() {
    let model = Model::default();
    let mut cluster = cluster(json!({"storage": {"size": "1Gi"}}));
    settle(&model, &mut cluster);
    let fault = |what: &str| Fault { reason: "Forbidden".into(), message: what.into() };
    model.with(|state| {
        state.unread.insert(Part::Budget, fault("list budgets"));
        state.fixed_volumes = true;
        state.strays.push(old_service());
    });
    cluster.spec.storage.size = "2Gi".into();
    let told = degraded_after(2, &model, &mut cluster);
    for each in ["list budgets", "class does not allow", "NotChecked", "UnknownBroker"] {
        assert!(told.message.contains(each) || told.reason == each, "{each}: {told:?}");
    }
}

#[test]
fn an_acceptance_is_not_forgotten_when_the_volume_leaves_the_spec() {
    let model = Model::default();
    let mut cluster = cluster(volumes(&["data", "data-1"]));
    settle(&model, &mut cluster);
    model.with(|state| state.vanish(0, "data-1"));
    passes(&model, &mut cluster, 3);
    set(&mut cluster, volumes(&["data"]));
    accept_told(&mut cluster);
    let healed = settle(&model, &mut cluster);
    assert_eq!(ready_reason(&healed).0, "True");
    assert_eq!((remembered(&cluster).2, losses(&cluster)), (2, vec![]));
    assert_eq!(model.with(|state| (state.restarts, state.disks.len())), (1, 1));
}

/// A node is made anew with its local volume.
#[test]
fn a_volume_that_is_empty_under_the_same_claim_is_a_loss() {
    for volume in ["data", "data-1"] {
        let model = Model::default();
        let mut cluster = cluster(volumes(&["data", "data-1"]));
        settle(&model, &mut cluster);
        let lost = model.with(|state| {
            state.brokers.get_mut(&0).unwrap().end();
            let disk = state.disk(0, volume);
            disk.remembers.clear();
            disk.directory.take().unwrap()
        });
        let told = passes(&model, &mut cluster, 8);
        assert_eq!(ready_reason(&told), ("False".into(), "DataLost".into()), "{volume}");
        let [loss] = losses(&cluster).try_into().unwrap();
        assert_eq!((loss.reason, loss.directory_id), (LossReason::NotFound, Some(lost)));
        accept_told(&mut cluster);
        assert_eq!(ready_reason(&settle(&model, &mut cluster)).0, "True", "{volume}");
        assert_eq!((remembered(&cluster).2, losses(&cluster)), (2, vec![]));
    }
}

#[test]
fn a_lost_claim_that_somebody_made_is_made_again_after_the_acceptance() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    settle(&model, &mut cluster);
    model.with(|state| state.lose(0, "data"));
    passes(&model, &mut cluster, 2);
    by_hand(&model, "data", None);
    model.with(|state| {
        (state.disk(0, "data").is_bound, state.disk(0, "data").is_gone) = (true, true)
    });
    passes(&model, &mut cluster, 3);
    accept_told(&mut cluster);
    assert_eq!(ready_reason(&settle(&model, &mut cluster)).0, "True");
    assert_ne!(model.with(|state| state.disk(0, "data").uid.clone()), "by-hand");
}

#[test]
fn what_happens_while_a_cluster_is_paused_is_remembered() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    settle(&model, &mut cluster);
    model.with(|state| state.lose(0, "data"));
    passes(&model, &mut cluster, 2);
    accept_told(&mut cluster);
    // The broker begins anew, and has not told its directory when the pause begins.
    let applies =
        |pass: &ClusterPass| pass.done.iter().any(|step| matches!(step, Step::ApplyBroker { .. }));
    assert!((0..9).any(|_| applies(&pass(&model, &mut cluster))));
    let before = remembered(&cluster);
    assert!(before.0.is_some() && before.1.is_none(), "{before:?}");
    let pause = || BTreeMap::from([(PAUSE_ANNOTATION.to_owned(), "true".to_owned())]);
    cluster.metadata.annotations = Some(pause());
    passes(&model, &mut cluster, 6);
    assert!(remembered(&cluster).1.is_some());
    model.with(|state| state.lose(0, "data"));
    let paused = passes(&model, &mut cluster, 2);
    assert_eq!(ready_reason(&paused), ("False".into(), "DataLost".into()));
    assert!(is_true(&paused.status.conditions, DEGRADED) && paused.plan.steps.is_empty());
    cluster.metadata.annotations = None;
    let told = passes(&model, &mut cluster, 4);
    assert_eq!(ready_reason(&told), ("False".into(), "DataLost".into()));
    assert_eq!(model.with(|state| state.disks.len()), 0);
}

/// What is said stays, whether or not the broker answers.
#[test]
fn the_words_about_a_loss_change_only_with_the_loss() {
    let model = Model::default();
    let mut cluster = cluster(volumes(&["data", "data-1"]));
    settle(&model, &mut cluster);
    let missing = ("dir-90".to_owned(), "/data-1".to_owned());
    model.with(|state| state.not_found.extend([missing]));
    let first = degraded_after(2, &model, &mut cluster);
    for mute in [true, false, true] {
        model.with(|state| state.mute = mute);
        assert_eq!(degraded_after(1, &model, &mut cluster), first);
    }
}

#[test]
fn what_an_operator_of_an_earlier_version_recorded_counts() {
    let model = Model::default();
    let mut cluster = cluster(volumes(&["data", "data-1"]));
    settle(&model, &mut cluster);
    model.with(|state| state.lose(0, "data-1"));
    passes(&model, &mut cluster, 2);
    let new = cluster.status.clone().unwrap();
    // As it wrote it.
    let mut status = serde_json::to_value(&new).unwrap();
    let node = &mut status["nodes"][0];
    node["losses"] = json!(null);
    node.as_object_mut().unwrap().remove("losses");
    node["givenUp"] = json!(["dir-70"]);
    let name = "broker-0-data-1-incarnation-1-dir-4";
    node["dataLoss"] = json!(name);
    cluster.status = Some(serde_json::from_value(status).unwrap());
    // Nothing can be read in the first pass.
    let fault = Fault { reason: "Forbidden".into(), message: "list x: forbidden".into() };
    model.with(|state| drop(state.unread.insert(Part::Storage, fault)));
    let told = passes(&model, &mut cluster, 2);
    assert_eq!(ready_reason(&told), ("False".into(), "DataLost".into()));
    let node = &told.status.nodes[0];
    assert_eq!((node.data_loss.as_deref(), &node.volumes), (Some(name), &new.nodes[0].volumes));
    let accepted: Vec<_> = node.accepted_losses().map(|loss| loss.directory_id.clone()).collect();
    assert_eq!((accepted, node.given_up.len()), (vec![Some("dir-70".into())], 0));
    model.with(|state| state.unread.clear());
    accept(&mut cluster, name);
    assert_eq!(ready_reason(&settle(&model, &mut cluster)).0, "True");
    assert_eq!(losses(&cluster), []);
}

/// It told only the name of what the broker missed, which tells the volume.
#[test]
fn a_miss_that_an_earlier_version_recorded_ends_when_the_broker_misses_nothing() {
    let model = Model::default();
    let mut cluster = cluster(volumes(&["data", "data-1"]));
    settle(&model, &mut cluster);
    let node = &mut cluster.status.as_mut().unwrap().nodes[0];
    node.data_loss = Some("broker-0-data-1-incarnation-1-dir-90".to_owned());
    model.with(|state| state.mute = true);
    passes(&model, &mut cluster, 2);
    assert_eq!(losses(&cluster)[0].volume, "data-1");
    model.with(|state| state.mute = false);
    assert_eq!(ready_reason(&settle(&model, &mut cluster)).0, "True");
    assert_eq!((losses(&cluster), remembered(&cluster).2), (vec![], 1));
}

#[test]
fn a_set_that_is_no_broker_of_the_cluster_is_told_and_left_alone() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    settle(&model, &mut cluster);
    let set = ObjectKey { kind: Kind::StatefulSet, name: "demo-broker-7".to_owned() };
    model.with(|state| state.strays.push(set));
    let told = pass(&model, &mut cluster);
    let degraded = find_condition(&told.status.conditions, DEGRADED).unwrap();
    assert_eq!(
        (degraded.reason.as_str(), ready_reason(&told).0.as_str()),
        ("UnknownBroker", "True")
    );
    assert!(degraded.message.starts_with("StatefulSet demo-broker-7"), "{}", degraded.message);
    assert_eq!(told.plan.steps, []);
    model.with(|state| state.strays.clear());
    assert!(!is_true(&settle(&model, &mut cluster).status.conditions, DEGRADED));
}

#[test]
fn volumes_go_with_the_cluster_only_while_the_policy_is_delete() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    settle(&model, &mut cluster);
    for (policy, owned) in [(DeletionPolicy::Delete, true), (DeletionPolicy::Retain, false)] {
        cluster.spec.storage.deletion_policy = policy;
        let change = pass(&model, &mut cluster);
        assert_eq!(change.done, [Step::HoldObject { held: owned }]);
        assert!(settle(&model, &mut cluster).done.is_empty());
    }
    assert_eq!(model.with(|state| state.restarts), 0);
}

#[test]
fn a_cluster_that_is_being_deleted_is_let_go_and_told_until_then() {
    let model = Model::default();
    let mut cluster = cluster(json!({"storage": {"deletionPolicy": "Delete"}}));
    settle(&model, &mut cluster);
    let recorded = cluster.status.clone().unwrap().nodes;
    cluster.metadata.deletion_timestamp = Some(now());
    cluster.metadata.finalizers = Some(vec!["held".into()]);
    model.with(|state| state.fixed_volumes = true);
    let held = pass(&model, &mut cluster);
    assert_eq!(ready_reason(&held), ("False".into(), "Deleting".into()));
    let degraded = find_condition(&held.status.conditions, DEGRADED).unwrap().clone();
    assert_eq!((degraded.status.as_str(), degraded.reason.as_str()), ("True", "Forbidden"));
    // Volumes that go now are no losses, and nothing is made in their place.
    model.with(|state| state.lose(0, "data"));
    let held = passes(&model, &mut cluster, 3);
    let let_go = Step::LetGo { volumes: VolumesAtEnd::Deleted { but: Vec::new() } };
    assert_eq!((&held.plan.steps, &held.status.nodes), (&vec![let_go.clone()], &recorded));
    model.with(|state| state.fixed_volumes = false);
    assert_eq!(pass(&model, &mut cluster).done, [let_go]);
    let others = pass(&model, &mut cluster);
    assert!(others.plan.steps.is_empty() && !is_true(&others.status.conditions, DEGRADED));
    assert_eq!(ready_reason(&others), ("False".into(), "Deleting".into()));
}

#[test]
fn a_volume_that_cannot_grow_degrades_the_cluster_and_keeps_no_topic_waiting() {
    let model = Model::default();
    let mut cluster = cluster(json!({"storage": {"size": "1Gi"}}));
    settle(&model, &mut cluster);
    model.with(|state| state.fixed_volumes = true);
    cluster.spec.storage.size = "2Gi".into();
    let stuck = pass(&model, &mut cluster);
    let degraded = find_condition(&stuck.status.conditions, DEGRADED).unwrap();
    assert_eq!((degraded.status.as_str(), degraded.reason.as_str()), ("True", "VolumeNotGrown"));
    assert_eq!((ready_reason(&stuck).0.as_str(), stuck.status.phase.as_str()), ("True", "Ready"));
    assert_eq!(
        find_condition(&stuck.status.conditions, PROGRESSING).unwrap().reason,
        "VolumeNotGrown"
    );
    assert!(!stuck.is_settled(), "it is tried again");
    // An address that cannot be made is another matter, and still none of the topics'.
    model.with(|state| (state.has_access, state.steps_left) = (false, Some(0)));
    let missing = pass(&model, &mut cluster);
    assert_eq!(ready_reason(&missing), ("False".into(), "Killed".into()));
    assert_eq!(ClusterState::of(Some(&cluster), &now()), ClusterState::Ready);
}

#[test]
fn what_cannot_be_read_is_told_and_left_alone_while_everything_else_goes_on() {
    for (part, mute, ready) in [
        (Part::Budget, false, "True"),
        (Part::Storage, false, "True"),
        // Then nobody tells that the volumes are there.
        (Part::Storage, true, "Unknown"),
        (Part::Access, false, "Unknown"),
        (Part::Definitions, false, "Unknown"),
        (Part::Brokers, false, "Unknown"),
    ] {
        let model = Model::default();
        let mut cluster = cluster(json!({"storage": {"size": "1Gi"}}));
        let before = settle(&model, &mut cluster).status;
        model.with(|state| state.mute = mute);
        let fault = Fault { reason: "Forbidden".into(), message: "list x: forbidden".into() };
        // Everything needs something, and a broker is down.
        model.with(|state| {
            (state.has_access, state.lost_budget) = (false, true);
            state.stale.push(old_service());
            let broker = state.brokers.get_mut(&0).unwrap();
            broker.defined.1 = "by hand".into();
            state.unread.insert(part, fault.clone());
        });
        cluster.spec.storage.size = "2Gi".into();
        let first = pass(&model, &mut cluster);
        let touched: Vec<Part> = first.done.iter().map(Step::part).collect();
        let mut others =
            vec![Part::Access, Part::Budget, Part::Storage, Part::Definitions, Part::Access];
        // Whether a broker may be restarted follows from which ones serve.
        others.retain(|other| {
            *other != part && !(part == Part::Brokers && *other == Part::Definitions)
        });
        assert_eq!(touched, others, "{part:?}");
        for _ in 0..6 {
            pass(&model, &mut cluster);
        }
        let last = pass(&model, &mut cluster);
        assert_eq!(
            find_condition(&last.status.conditions, READY).unwrap().status,
            ready,
            "{part:?}"
        );
        let degraded = find_condition(&last.status.conditions, DEGRADED).unwrap();
        assert_eq!(
            (degraded.status.as_str(), degraded.reason.as_str()),
            ("True", "NotChecked"),
            "{part:?}"
        );
        assert!(degraded.message.ends_with("list x: forbidden"), "{}", degraded.message);
        // What was seen before is neither lost nor made worse.
        assert_eq!(
            (last.status.brokers.as_str(), &last.status.default_image),
            ("1/1", &before.default_image),
            "{part:?}"
        );
        assert!(!last.is_settled(), "it is tried again");
        model.with(|state| state.unread.clear());
        assert_eq!(ready_reason(&settle(&model, &mut cluster)).0, "True", "{part:?}");
    }
}

#[test]
fn a_cluster_is_asked_about_topics_while_a_broker_of_it_serves() {
    let mut cluster = cluster(json!({}));
    assert_eq!(ClusterState::of(None, &now()), ClusterState::Missing);
    assert_eq!(ClusterState::of(Some(&cluster), &now()), ClusterState::NotReady);
    cluster.status =
        Some(KafkaClusterStatus { phase: "Starting 0/1".into(), ..KafkaClusterStatus::default() });
    assert_eq!(ClusterState::of(Some(&cluster), &now()), ClusterState::NotReady);
    cluster.status.as_mut().unwrap().ready_replicas = 1;
    assert_eq!(ClusterState::of(Some(&cluster), &now()), ClusterState::Ready);
    // It served, and went away: for a minute nobody is alarmed.
    let status = cluster.status.as_mut().unwrap();
    (status.ready_replicas, status.cluster_id) = (0, Some("id".into()));
    status.conditions.push(condition(READY, false, "BrokerStarting", "", None, now()));
    let later = |second: i64| Time(Timestamp::from_second(second).unwrap());
    assert_eq!(ClusterState::of(Some(&cluster), &later(59)), ClusterState::Restarting);
    assert_eq!(ClusterState::of(Some(&cluster), &later(60)), ClusterState::NotReady);
    cluster.metadata.deletion_timestamp = Some(now());
    assert_eq!(ClusterState::of(Some(&cluster), &now()), ClusterState::Deleting);
}

#[test]
fn topics_wait_while_so_many_brokers_miss_records_that_a_topic_may_be_lost() {
    let lost = || json!({"id": 0, "dataLoss": "a loss"});
    let accepted = || json!({"id": 0, "losses": [{"name": "a loss", "accepted": true}]});
    let well = || json!({"id": 0});
    for (nodes, expected) in [
        (vec![well()], ClusterState::Ready),
        (vec![lost()], ClusterState::NotReady),
        (vec![accepted()], ClusterState::NotReady),
        (vec![well(), lost(), well()], ClusterState::Ready),
        (vec![well(), accepted(), lost()], ClusterState::NotReady),
        (vec![lost(), well(), lost(), well(), well()], ClusterState::Ready),
        (vec![lost(), well(), lost(), well(), accepted()], ClusterState::NotReady),
    ] {
        let mut cluster = cluster(json!({}));
        let status = json!({"readyReplicas": 1, "clusterId": "id", "nodes": nodes});
        cluster.status = Some(serde_json::from_value(status).unwrap());
        assert_eq!(ClusterState::of(Some(&cluster), &now()), expected, "{nodes:?}");
    }
}

#[test]
fn an_unknown_address_is_waited_for_by_name_and_only_by_its_listener() {
    let model = Model::default();
    model.with(|state| state.addresses_pending = true);
    let outside = json!({"name": "outside", "port": 9094, "type": "nodeport"});
    let mut cluster = cluster(json!({"listeners": [{"name": "plain", "port": 9092}, outside]}));
    let first = pass(&model, &mut cluster);
    assert!(
        matches!(
            first.plan.steps.as_slice(),
            [Step::ApplyAccess { .. }, Step::MakeClaim { broker: 0, .. }]
        ),
        "the next pass may know it: {:?}",
        first.plan.steps
    );
    for _ in 0..6 {
        let waiting = pass(&model, &mut cluster);
        assert_eq!(ready_reason(&waiting), ("False".into(), "WaitingForAddress".into()));
        let message = &find_condition(&waiting.status.conditions, READY).unwrap().message;
        assert!(
            message.contains("listener outside")
                && waiting.status.phase == "Waiting for an address",
            "{message}"
        );
    }
    assert_eq!(
        ClusterState::of(Some(&cluster), &now()),
        ClusterState::Ready,
        "it serves the others"
    );
    // And it is looked after.
    model.with(|state| state.brokers.get_mut(&0).unwrap().defined.1 = "by hand".into());
    assert!(matches!(pass(&model, &mut cluster).done.as_slice(), [Step::ApplyBroker { .. }]));
    model.with(|state| state.addresses_pending = false);
    settle(&model, &mut cluster);
}

#[test]
fn a_paused_cluster_is_left_alone_and_says_so() {
    let model = Model::default();
    let mut cluster = cluster(json!({}));
    cluster.metadata.annotations =
        Some(BTreeMap::from([(PAUSE_ANNOTATION.to_owned(), "true".to_owned())]));
    let paused = pass(&model, &mut cluster);
    assert!(paused.plan.steps.is_empty() && is_true(&paused.status.conditions, PAUSED));
    assert_eq!(paused.status.phase, "Paused");
    assert_eq!(ready_reason(&paused), ("False".into(), "Paused".into()));
    // What is asked for during a pause is not claimed to be so.
    let pause = cluster.metadata.annotations.take();
    settle(&model, &mut cluster);
    cluster.metadata.annotations = pause;
    cluster.metadata.generation = Some(8);
    cluster.spec.config.insert("num.partitions".into(), "3".into());
    let told = |pass: &ClusterPass| {
        let ready = find_condition(&pass.status.conditions, READY).unwrap().clone();
        let spoken_of = (ready.observed_generation, pass.status.observed_generation);
        assert_eq!(spoken_of, (Some(7), Some(8)));
        (ready.status, ready.reason, pass.status.brokers.clone())
    };
    let tells = |told: (String, String, String), expected: [&str; 3]| {
        assert_eq!([&*told.0, &*told.1, &*told.2], expected);
    };
    tells(told(&pass(&model, &mut cluster)), ["True", "Ready", "1/1"]);
    model.with(|state| state.has_access = false);
    tells(told(&pass(&model, &mut cluster)), ["True", "Ready", "1/1"]);
    model.with(|state| state.has_access = true);
    // What is there and what is not is told as it is.
    model.with(|state| state.brokers.get_mut(&0).unwrap().starts_in = 3);
    tells(told(&pass(&model, &mut cluster)), ["False", "BrokerStarting", "0/1"]);
    passes(&model, &mut cluster, 4);
    cluster.metadata.generation = Some(7);
    model.with(|state| state.has_access = false);
    for _ in 0..2 {
        let paused = pass(&model, &mut cluster);
        assert_eq!(ready_reason(&paused), ("False".into(), "Paused".into()));
        assert!(paused.plan.steps.is_empty() && !is_true(&paused.status.conditions, DEGRADED));
    }
    // A pause makes nothing true that was not.
    model.with(|state| state.has_access = true);
    assert_eq!(ready_reason(&passes(&model, &mut cluster, 3)), ("False".into(), "Paused".into()));
    cluster.metadata.annotations = None;
    settle(&model, &mut cluster);
}

#[test]
fn a_paused_topic_is_left_alone_and_what_is_there_is_told() {
    let mut world = World::new(json!({"config": {"retention.ms": "1000"}}));
    let pause = |world: &World, paused: bool| {
        let annotations = BTreeMap::from([(PAUSE_ANNOTATION.to_owned(), paused.to_string())]);
        world.home.with(|topic| topic.metadata.annotations = Some(annotations));
    };
    let tells = |world: &World, status: &str, reason: &str| {
        assert!(world.pass().unwrap().done.is_empty());
        assert_eq!(world.ready(), (status.into(), reason.into()));
    };
    // It was there before the object, and nobody has compared them.
    let theirs = Topic { id: "theirs".into(), partitions: 1, replicas: 1, ..Topic::default() };
    world.admin.with(|state| state.topics.insert("orders".into(), theirs));
    pause(&world, true);
    tells(&world, "False", "Paused");
    pause(&world, false);
    world.pass().unwrap();
    pause(&world, true);
    tells(&world, "True", "Ready");
    world.cluster = ClusterState::NotReady;
    tells(&world, "False", "WaitingForCluster");
    world.cluster = ClusterState::Ready;
    tells(&world, "True", "Ready");
    // What is asked for during a pause is not claimed to be so, nor to be missing.
    world.home.with(|topic| {
        topic.metadata.generation = topic.metadata.generation.map(|it| it + 1);
        topic.spec.config.insert("segment.ms".into(), "5".into());
    });
    tells(&world, "True", "Ready");
    world.cluster = ClusterState::NotReady;
    tells(&world, "False", "WaitingForCluster");
    world.cluster = ClusterState::Ready;
    tells(&world, "Unknown", "Paused");
    world.admin.with(|state| state.topics.remove("orders"));
    tells(&world, "False", "Paused");
    let keys = world.home.with(|topic| topic.status.clone().unwrap().config_keys);
    assert_eq!(keys, ["retention.ms"], "what was not set is not recorded");
    pause(&world, false);
    world.pass().unwrap();
    assert_eq!(world.ready(), ("True".into(), "Ready".into()));
}

#[test]
fn an_operator_killed_after_any_step_converges_to_the_same_world() {
    let script = |model: &Model, steps_left: Option<u32>| {
        let mut cluster = cluster(json!({"storage": {"size": "1Gi"}}));
        model.with(|state| state.steps_left = steps_left);
        for stage in 0..3 {
            match stage {
                0 => model.with(|state| state.stale.push(old_service())),
                1 => cluster.spec.storage.size = "3Gi".into(),
                _ => {
                    cluster.spec = KafkaClusterSpec {
                        config: BTreeMap::from([("num.partitions".into(), "9".into())]),
                        ..cluster.spec.clone()
                    }
                }
            }
            for _ in 0..8 {
                let killed = !pass(model, &mut cluster).faults.is_empty();
                if killed {
                    // The next replica starts, knowing nothing but what is there.
                    model.with(|state| state.steps_left = None);
                    cluster.status = None;
                }
            }
        }
        settle(model, &mut cluster);
        model.with(|state| state.steps_left = None);
        model.with(|state| state.clone())
    };
    let undisturbed = script(&Model::default(), None);
    assert_eq!(undisturbed.restarts, 1);
    for steps in 0..9 {
        assert_eq!(
            script(&Model::default(), Some(steps)),
            undisturbed,
            "killed after {steps} steps"
        );
    }
}

/// The `KafkaTopic` object, as an API server would keep it, and a count of writes until the
/// operator is killed.
#[derive(Default)]
struct Home {
    topic: std::sync::Mutex<Option<KafkaTopic>>,
    writes_left: std::sync::Mutex<Option<u32>>,
}

impl Home {
    fn with<T>(&self, f: impl FnOnce(&mut KafkaTopic) -> T) -> T {
        f(self.topic.lock().unwrap().as_mut().unwrap())
    }

    /// Writes as of a version, if that is there; `topic` gets the new one.
    fn write(
        &self,
        topic: &mut KafkaTopic,
        f: impl FnOnce(&mut KafkaTopic),
    ) -> Result<bool, Fault> {
        if let Some(left) = &mut *self.writes_left.lock().unwrap() {
            *left = left
                .checked_sub(1)
                .ok_or_else(|| Fault { reason: "Killed".into(), message: String::new() })?;
        }
        Ok(self.with(|live| {
            if live.metadata.resource_version != topic.metadata.resource_version {
                return false;
            }
            f(live);
            Self::renew(live);
            topic.metadata.resource_version = live.metadata.resource_version.clone();
            true
        }))
    }

    fn renew(topic: &mut KafkaTopic) {
        let version = topic.metadata.resource_version.as_deref().unwrap_or_default();
        let next = version.parse::<u64>().unwrap_or_default() + 1;
        topic.metadata.resource_version = Some(next.to_string());
    }
}

impl TopicHome for Home {
    fn read<'a>(
        &'a self,
        _: &'a KafkaTopic,
    ) -> letterbox_env::BoxFuture<'a, Result<Option<KafkaTopic>, Fault>> {
        Box::pin(async { Ok(self.topic.lock().unwrap().clone()) })
    }

    fn set_finalizer<'a>(
        &'a self,
        topic: &'a mut KafkaTopic,
        present: bool,
    ) -> letterbox_env::BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            let held = present.then(|| vec![TOPIC_FINALIZER.to_owned()]);
            self.write(topic, |topic| topic.metadata.finalizers = held).map(drop)
        })
    }

    fn write_status<'a>(
        &'a self,
        topic: &'a mut KafkaTopic,
        status: &'a KafkaTopicStatus,
    ) -> letterbox_env::BoxFuture<'a, Result<bool, Fault>> {
        Box::pin(async move { self.write(topic, |topic| topic.status = Some(status.clone())) })
    }
}

struct World {
    home: Home,
    admin: ModelAdmin,
    cluster: ClusterState,
    namespace_terminating: bool,
}

impl World {
    fn new(spec: serde_json::Value) -> Self {
        let world = Self {
            home: Home::default(),
            admin: ModelAdmin::default(),
            cluster: ClusterState::Ready,
            namespace_terminating: false,
        };
        let mut full = json!({"clusterRef": {"name": "demo"}});
        full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let topic = json!({
            "apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaTopic",
            "metadata": {"name": "orders", "namespace": "ns", "generation": 1, "uid": "u"}, "spec": full,
        });
        *world.home.topic.lock().unwrap() = Some(serde_json::from_value(topic).unwrap());
        world
    }

    fn pass(&self) -> Result<TopicPass, Fault> {
        let topic = self.home.with(|topic| topic.clone());
        let live = self.admin.with(|state| state.topics.get("orders").cloned());
        let facts = TopicFacts {
            may_come: false,
            cluster: self.cluster.clone(),
            topic: live,
            other_owner: None,
            namespace_terminating: self.namespace_terminating,
            brokers: None,
        };
        block_on(reconcile_topic(&self.home, &self.admin, &topic, &facts, &now()))
    }

    fn is_held(&self) -> bool {
        self.home.with(|topic| has_finalizer(topic))
    }

    fn ready(&self) -> (String, String) {
        self.condition(READY)
    }

    fn progressing(&self) -> (String, String) {
        self.condition(PROGRESSING)
    }

    fn condition(&self, type_: &str) -> (String, String) {
        self.home.with(|topic| {
            let condition =
                find_condition(&topic.status.as_ref().unwrap().conditions, type_).unwrap();
            (condition.status.clone(), condition.reason.clone())
        })
    }

    fn delete(&self) {
        self.home.with(|topic| topic.metadata.deletion_timestamp = Some(now()));
    }
}

#[test]
fn a_topic_waits_for_its_cluster_and_is_then_made() {
    let mut world = World::new(json!({"partitions": 3, "config": {"retention.ms": "1000"}}));
    world.cluster = ClusterState::Missing;
    assert!(world.pass().unwrap().done.is_empty());
    assert_eq!(world.ready(), ("False".into(), "WaitingForCluster".into()));
    world.cluster = ClusterState::Ready;
    world.pass().unwrap();
    assert_eq!(world.ready(), ("True".into(), "Ready".into()));
    let topic = world.admin.with(|state| state.topics["orders"].clone());
    assert_eq!((topic.partitions, topic.config["retention.ms"].as_str()), (3, "1000"));
    assert_eq!(
        world.home.with(|topic| topic.status.clone().unwrap().topic_id),
        Some("id-1".into())
    );
    // A fixed point: nothing more is done or written.
    *world.home.writes_left.lock().unwrap() = Some(0);
    assert!(world.pass().unwrap().done.is_empty());
}

#[test]
fn a_broker_that_restarts_costs_no_write_per_topic_and_an_outage_one() {
    let mut world = World::new(json!({"partitions": 3}));
    world.pass().unwrap();
    let writes = |world: &World, left: u32| *world.home.writes_left.lock().unwrap() = Some(left);
    writes(&world, 0);
    for cluster in [ClusterState::Restarting, ClusterState::Ready, ClusterState::Restarting] {
        world.cluster = cluster;
        world.pass().unwrap();
        assert_eq!(world.ready(), ("True".into(), "Ready".into()));
    }
    writes(&world, 1);
    world.cluster = ClusterState::NotReady;
    for _ in 0..3 {
        world.pass().unwrap();
        assert_eq!(world.ready(), ("False".into(), "WaitingForCluster".into()));
        world.cluster = if world.cluster == ClusterState::Restarting {
            ClusterState::NotReady
        } else {
            ClusterState::Restarting
        };
    }
    let message = world.home.with(|topic| {
        find_condition(&topic.status.as_ref().unwrap().conditions, READY).unwrap().message.clone()
    });
    assert!(message.starts_with("cluster not ready"), "{message}");
    // A spec that changed meanwhile is answered.
    world.home.with(|topic| topic.metadata.generation = Some(2));
    writes(&world, 1);
    world.cluster = ClusterState::Restarting;
    world.pass().unwrap();
    assert_eq!(
        world.home.with(|topic| topic.status.as_ref().unwrap().observed_generation),
        Some(2)
    );
}

#[test]
fn what_was_changed_by_hand_is_put_back_and_foreign_keys_are_left() {
    let world =
        World::new(json!({"partitions": 3, "config": {"retention.ms": "1000", "segment.ms": "5"}}));
    world.pass().unwrap();
    world.admin.with(|state| {
        let config = &mut state.topics.get_mut("orders").unwrap().config;
        config.insert("retention.ms".into(), "7".into());
        config.insert("cleanup.policy".into(), "compact".into());
    });
    world.home.with(|topic| drop(topic.spec.config.remove("segment.ms")));
    world.pass().unwrap();
    let config = world.admin.with(|state| state.topics["orders"].config.clone());
    assert_eq!(
        config,
        BTreeMap::from([
            ("retention.ms".into(), "1000".into()),
            ("cleanup.policy".into(), "compact".into())
        ])
    );
    assert_eq!(
        world.home.with(|topic| topic.status.clone().unwrap().config_keys),
        ["retention.ms"]
    );
}

#[test]
fn a_status_that_follows_from_an_older_version_takes_back_nothing_that_was_recorded() {
    let world = World::new(json!({"deletionPolicy": "Delete", "config": {"retention.ms": "1"}}));
    // An earlier leader looked before it was held, and writes late.
    let before = world.home.with(|topic| topic.clone());
    let first = world.pass().unwrap();
    assert!(first.done.len() == 3 && !first.is_outdated, "its own writes are none of others");
    world.home.with(|topic| drop(topic.spec.config.insert("segment.ms".into(), "5".into())));
    world.home.with(Home::renew);
    let after = world.home.with(|topic| topic.clone());
    world.pass().unwrap();
    let known = world.home.with(|topic| topic.clone());
    assert_eq!(known.status.as_ref().unwrap().config_keys, ["retention.ms", "segment.ms"]);
    for old in [before, after] {
        let facts = TopicFacts { cluster: ClusterState::NotReady, ..TopicFacts::default() };
        let (home, admin, now) = (&world.home, &world.admin, now());
        let late = block_on(reconcile_topic(home, admin, &old, &facts, &now));
        assert!(late.unwrap().is_outdated);
        assert_eq!(world.home.with(|topic| topic.status.clone()), known.status);
    }
}

#[test]
fn a_topic_that_is_deleted_while_its_cluster_is_away_says_what_holds_it() {
    let mut world = World::new(json!({"deletionPolicy": "Delete"}));
    world.pass().unwrap();
    world.delete();
    let unreachable = ClusterState::Unreachable("refused".into());
    for (state, degraded, part) in [
        (ClusterState::Restarting, "False", "does not serve"),
        (ClusterState::NotReady, "False", "does not serve"),
        (ClusterState::NotChecked, "True", "cannot check"),
        (unreachable, "False", "refused"),
    ] {
        world.cluster = state;
        world.pass().unwrap();
        assert_eq!(world.ready(), ("False".into(), "Deleting".into()), "{part}");
        assert_eq!(world.condition(DEGRADED).0, degraded, "{part}");
        let message = world.home.with(|topic| {
            let conditions = topic.status.clone().unwrap().conditions;
            find_condition(&conditions, READY).unwrap().message.clone()
        });
        assert!(message.contains(part) && message.ends_with("to Retain"), "{message}");
        assert!(world.is_held());
    }
    world.home.with(|topic| topic.spec.deletion_policy = DeletionPolicy::Retain);
    world.pass().unwrap();
    assert!(!world.is_held());
}

#[test]
fn partitions_grow_and_a_shrink_is_refused_by_type() {
    let world = World::new(json!({"partitions": 3}));
    world.pass().unwrap();
    world.home.with(|topic| topic.spec.partitions = Some(5));
    world.pass().unwrap();
    assert_eq!(world.admin.with(|state| state.topics["orders"].partitions), 5);
    world.home.with(|topic| topic.spec.partitions = Some(2));
    world.pass().unwrap();
    assert_eq!(world.ready(), ("False".into(), "NotSupported".into()));
    assert_eq!(world.admin.with(|state| state.topics["orders"].partitions), 5);
    let message = world.home.with(|topic| {
        find_condition(&topic.status.as_ref().unwrap().conditions, DEGRADED)
            .unwrap()
            .message
            .clone()
    });
    assert!(message.starts_with("PartitionsShrink: the topic has 5 partitions"), "{message}");
    assert_eq!(world.progressing(), ("False".into(), "NotSupported".into()));
    world.home.with(|topic| {
        topic.metadata.annotations =
            Some(BTreeMap::from([(PAUSE_ANNOTATION.to_owned(), "true".to_owned())]))
    });
    // A pause makes nothing true that was not.
    for _ in 0..2 {
        world.pass().unwrap();
        assert_eq!(world.progressing(), ("False".into(), "Paused".into()));
        assert_eq!(world.ready(), ("False".into(), "NotSupported".into()));
        let degraded = world.condition(DEGRADED);
        assert_eq!(degraded, ("True".into(), "NotSupported".into()));
    }
    world.home.with(|topic| {
        topic.spec.partitions = None;
        topic.spec.config.insert("retention.ms".into(), "banana".into());
    });
    world.pass().unwrap();
    assert_eq!(world.ready(), ("False".into(), "Paused".into()));
}

#[test]
fn another_number_of_replicas_is_waited_for_and_how_far_it_is_is_told() {
    let world = World::new(json!({"partitions": 4, "replicas": 1}));
    world.pass().unwrap();
    assert_eq!(world.ready(), ("True".into(), "Ready".into()));
    let set = |replicas: Option<i32>| world.home.with(|topic| topic.spec.replicas = replicas);
    let live = |moving: i32| {
        world.admin.with(|state| {
            let topic = state.topics.get_mut("orders").unwrap();
            topic.moving = moving;
            topic.replicas
        })
    };
    let told = || {
        world.home.with(|topic| {
            let waits = topic.status.clone().unwrap().waits;
            let done = waits.iter().map(|it| it.progress.as_ref().map(|it| (it.done, it.total)));
            (waits.iter().map(|it| it.reason.clone()).collect::<Vec<_>>(), done.collect::<Vec<_>>())
        })
    };
    let moving = |done: i64| (vec!["ReplicasMoving".to_owned()], vec![Some((done, 4))]);
    set(Some(3));
    let begun = world.pass().unwrap();
    assert_eq!(begun.done, [TopicStep::ChangeReplicas { from: 1, to: 3 }]);
    assert_eq!(told(), moving(0));
    assert_eq!(live(1), 3);
    assert_eq!(world.pass().unwrap().done, []);
    assert_eq!((told(), world.ready()), (moving(3), ("False".into(), "ReplicasMoving".into())));
    live(0);
    world.pass().unwrap();
    assert_eq!((told(), world.ready()), ((vec![], vec![]), ("True".into(), "Ready".into())));
    // Not all of them: a move was given up by hand.
    world.admin.with(|state| state.topics.get_mut("orders").unwrap().fewer = 2);
    assert_eq!(world.pass().unwrap().done, [TopicStep::ChangeReplicas { from: 3, to: 3 }]);
    live(0);
    // While the object is paused nothing is begun, and nobody is told that it was.
    set(Some(2));
    let pause = |paused: bool| {
        let annotations = BTreeMap::from([(PAUSE_ANNOTATION.to_owned(), paused.to_string())]);
        world.home.with(|topic| topic.metadata.annotations = Some(annotations));
    };
    pause(true);
    assert_eq!(world.pass().unwrap().done, []);
    assert_eq!(world.ready(), ("False".into(), "Paused".into()));
    pause(false);
    world.pass().unwrap();
    assert_eq!(live(0), 2);
    // Who says nothing about it leaves it as it is.
    world.admin.with(|state| state.topics.get_mut("orders").unwrap().fewer = 1);
    set(None);
    assert_eq!(world.pass().unwrap().done, []);
    assert_eq!(world.ready(), ("True".into(), "Ready".into()));
}

#[test]
fn a_topic_waits_for_as_many_brokers_as_it_has_replicas() {
    let brokers = |spec: serde_json::Value, ready: i32, started: usize| {
        let mut cluster = cluster(spec);
        let node = |id: usize| {
            let known = (id < started).then_some("known");
            json!({"id": id, "volumes": [{"name": "data", "directoryId": known}]})
        };
        let nodes: Vec<_> = (0..3).map(node).collect();
        let status = json!({"readyReplicas": ready, "nodes": nodes});
        cluster.status = Some(serde_json::from_value(status).unwrap());
        Some(BrokerCount::of(&cluster))
    };
    let three = || json!({"replicas": 3});
    let small = || json!({"replicas": 3, "config": {"default.replication.factor": "2"}});
    let (waits, few) = (Err("WaitingForBrokers"), Err("NotSupported"));
    for (case, replicas, brokers, expected) in [
        ("one broker", Some(1), brokers(json!({}), 1, 1), Ok(Some(1))),
        ("the default of one broker", None, brokers(json!({}), 1, 1), Ok(None)),
        ("more than there will be", Some(3), brokers(json!({}), 1, 1), few),
        ("not all have started", Some(3), brokers(three(), 2, 2), waits),
        ("so with the default", None, brokers(three(), 2, 1), waits),
        ("enough for this one", Some(2), brokers(three(), 2, 2), Ok(Some(2))),
        ("a smaller default", None, brokers(small(), 1, 2), Ok(None)),
        ("one is down", Some(3), brokers(three(), 2, 3), Ok(Some(3))),
        ("none tells its directories", Some(3), brokers(three(), 3, 0), Ok(Some(3))),
    ] {
        let topic: KafkaTopic = serde_json::from_value(json!({
            "metadata": {"name": "orders"},
            "spec": {"clusterRef": {"name": "demo"}, "replicas": replicas},
        }))
        .unwrap();
        let facts = TopicFacts { cluster: ClusterState::Ready, brokers, ..TopicFacts::default() };
        let plan = plan_topic(&topic, &facts);
        let made = plan.steps.iter().find_map(|step| match step {
            TopicStep::Create(new) => Some(new.replicas),
            _ => None,
        });
        let why = plan.wait.as_ref().map(|wait| wait.reason());
        let why = why.or_else(|| plan.refusals.first().map(|refusal| refusal.reason()));
        assert_eq!(made.ok_or(why.unwrap_or_default()), expected, "{case}");
    }
}

#[test]
fn a_refused_configuration_is_told_and_heals_with_the_next_spec() {
    let world = World::new(json!({"config": {"retention.ms": "nonsense"}}));
    world.pass().unwrap();
    assert_eq!(world.ready(), ("False".into(), "InvalidConfig".into()));
    world.home.with(|topic| drop(topic.spec.config.insert("retention.ms".into(), "5".into())));
    world.pass().unwrap();
    assert_eq!(world.ready(), ("True".into(), "Ready".into()));
}

#[test]
fn a_topic_that_was_made_between_look_and_step_is_looked_at_again() {
    let world = World::new(json!({"partitions": 3, "config": {"retention.ms": "1000"}}));
    let made = Topic { id: "theirs".into(), partitions: 1, replicas: 1, ..Topic::default() };
    world.admin.with(|state| state.topics.insert("orders".into(), made));
    let topic = world.home.with(|topic| topic.clone());
    let facts = TopicFacts {
        may_come: false,
        cluster: ClusterState::Ready,
        topic: None,
        other_owner: None,
        namespace_terminating: false,
        brokers: None,
    };
    let pass = block_on(reconcile_topic(&world.home, &world.admin, &topic, &facts, &now()));
    assert_eq!(pass.unwrap().fault, None);
    assert_eq!(world.ready(), ("True".into(), "Ready".into()));
    let topic = world.admin.with(|state| state.topics["orders"].clone());
    assert_eq!((topic.partitions, topic.config["retention.ms"].as_str()), (3, "1000"));
}

#[test]
fn a_retained_topic_outlives_its_object_and_a_deleted_one_does_not() {
    for (policy, stays) in [(DeletionPolicy::Retain, true), (DeletionPolicy::Delete, false)] {
        let world = World::new(json!({"deletionPolicy": policy}));
        world.pass().unwrap();
        assert_eq!(world.home.with(|topic| topic.metadata.finalizers.is_some()), !stays);
        world.delete();
        let last = world.pass().unwrap();
        assert_eq!(last.released, !stays);
        assert_eq!(world.admin.with(|state| state.topics.contains_key("orders")), stays);
    }
}

#[test]
fn a_finalizer_never_outlives_the_cluster_or_holds_a_namespace() {
    for gone in [ClusterState::Missing, ClusterState::Deleting] {
        let mut world = World::new(json!({"deletionPolicy": "Delete"}));
        world.cluster = gone.clone();
        world.pass().unwrap();
        assert!(!world.is_held(), "there is nothing to wait for");
        world.cluster = ClusterState::Ready;
        world.pass().unwrap();
        assert!(world.is_held());
        world.delete();
        world.cluster = ClusterState::NotReady;
        assert!(
            !world.pass().unwrap().released,
            "while the cluster restarts, the topic waits for it"
        );
        world.cluster = gone;
        assert!(world.pass().unwrap().released);
        assert!(world.admin.with(|state| state.topics.contains_key("orders")));
    }
}

#[test]
fn an_object_is_let_go_before_the_deletion_of_its_namespace_reaches_it() {
    for paused in [false, true] {
        let mut world = World::new(json!({"deletionPolicy": "Delete"}));
        world.pass().unwrap();
        let annotations = BTreeMap::from([(PAUSE_ANNOTATION.to_owned(), paused.to_string())]);
        world.home.with(|topic| topic.metadata.annotations = Some(annotations));
        world.namespace_terminating = true;
        for cluster in [ClusterState::NotReady, ClusterState::Ready] {
            world.cluster = cluster;
            world.pass().unwrap();
            assert!(!world.is_held(), "and it is not held again");
        }
        assert!(
            world.admin.with(|state| state.topics.contains_key("orders")),
            "its records go, or stay, with the cluster's volumes"
        );
    }
}

#[test]
fn a_topic_that_took_the_name_is_not_deleted() {
    let world = World::new(json!({"deletionPolicy": "Delete"}));
    world.pass().unwrap();
    world.delete();
    world.admin.with(|state| state.topics.get_mut("orders").unwrap().id = "somebody-elses".into());
    assert!(world.pass().unwrap().released);
    assert!(world.admin.with(|state| state.topics.contains_key("orders")));
}

#[test]
fn a_deletion_that_was_taken_back_between_plan_and_act_is_not_carried_out() {
    let world = World::new(json!({"deletionPolicy": "Delete"}));
    world.pass().unwrap();
    world.delete();
    let stale = world.home.with(|topic| topic.clone());
    world.home.with(|topic| topic.spec.deletion_policy = DeletionPolicy::Retain);
    let live = world.admin.with(|state| state.topics.get("orders").cloned());
    let facts = TopicFacts {
        may_come: false,
        cluster: ClusterState::Ready,
        topic: live,
        other_owner: None,
        namespace_terminating: false,
        brokers: None,
    };
    let pass =
        block_on(reconcile_topic(&world.home, &world.admin, &stale, &facts, &now())).unwrap();
    assert!(
        pass.plan.steps.iter().any(|step| matches!(step, TopicStep::Delete { .. }))
            && pass.fault.is_some()
    );
    assert!(world.admin.with(|state| state.topics.contains_key("orders")));
}

#[test]
fn keys_that_were_set_are_known_whenever_the_operator_is_killed() {
    for writes in 0..4 {
        let world = World::new(json!({"config": {"retention.ms": "1000"}}));
        *world.home.writes_left.lock().unwrap() = Some(writes);
        let _ = world.pass();
        *world.home.writes_left.lock().unwrap() = None;
        // The key leaves the spec before the next replica looks at the topic.
        world.home.with(|topic| topic.spec.config.clear());
        world.pass().unwrap();
        world.pass().unwrap();
        let config = world.admin.with(|state| state.topics["orders"].config.clone());
        assert_eq!(config, BTreeMap::new(), "killed after {writes} writes");
    }
}
