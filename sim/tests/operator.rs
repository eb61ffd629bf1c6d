//! The operator as it runs on Kubernetes, against a model of the API server: killed after each of
//! its writes, with caches that are behind, answers that never come and two leaders at once.
//! `sim::apiserver::monitor` looks at every write.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on has failed"
)]

mod apiserver;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use letterbox_env::{BoxFuture, BoxListener, BoxStream, Env, Net};
use letterbox_operator::admin::{
    AdminError, ClientAdmin, KafkaAdmin as _, NewTopic, restart_verdict,
};
use letterbox_operator::controller::{self, LeaseOptions, Options};
use letterbox_sim::seeds;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use apiserver::faults::{Broken, Chances, Faults, How};
use apiserver::kafka::Kafka;
use apiserver::monitor::{Monitor, OPERATOR, Violation};
use apiserver::world::{NEVER_SERVES, NOT_PULLED, Pipe, World, WorldNet};
use apiserver::{ApiServer, Key};

const TICK: Duration = Duration::from_secs(1);
const TOPIC_OBJECTS: &str = "letterbox.dev/kafkatopics";
/// The key of an API.
const CREATE_TOPICS: i16 = 19;

fn clusters(name: &str) -> Key {
    Key::new("letterbox.dev/kafkaclusters", "ns", name)
}

/// A world, what looks at it, and the operators in it.
struct Play {
    world: World,
    /// What answers Kafka's clients, if anything does.
    kafka: Option<Kafka>,
    monitor: Monitor,
    operators: Vec<(Faults, tokio::task::JoinHandle<anyhow::Result<()>>)>,
    /// Those that operators watch.
    namespaces: Vec<String>,
    started: u32,
}

impl Drop for Play {
    fn drop(&mut self) {
        self.operators.iter().for_each(|(_, task)| task.abort());
    }
}

impl Play {
    fn new() -> Self {
        let world = World::default();
        let (monitor, namespaces) = (Monitor::default(), vec!["ns".into()]);
        Self { world, kafka: None, monitor, operators: Vec::new(), namespaces, started: 0 }
    }

    fn server(&self) -> &ApiServer {
        &self.world.server
    }

    /// Starts an operator; one with a lease leads only while no other one does.
    fn start(&mut self, faults: &Faults, leases: bool) {
        self.start_release(faults, leases.then_some("letterbox-operator"), "letterbox:1");
    }

    /// Starts an operator with this lease, and this image for new clusters.
    fn start_release(&mut self, faults: &Faults, lease: Option<&str>, image: &str) {
        self.started += 1;
        let name = format!("{OPERATOR}-{}", self.started);
        let client = self.server().client(&name, faults);
        if let Some(kafka) = &self.kafka {
            kafka.follow(self.server());
        }
        let real = Env::real();
        let env = Env {
            net: Arc::new(WorldNet::new(self.world.clone(), self.kafka.clone())),
            clock: Arc::new(self.server().clock()),
            ..real
        };
        let lease = lease.map(|lease| LeaseOptions {
            namespace: "ns".into(),
            name: lease.into(),
            identity: name.clone(),
        });
        let options = Options {
            image: image.into(),
            namespaces: self.namespaces.clone(),
            listen: ("127.0.0.1".into(), 0),
            lease,
        };
        let task = tokio::spawn(controller::run(env, client, options));
        self.operators.push((faults.clone(), task));
    }

    /// A second goes by.
    async fn tick(&mut self) {
        tokio::time::sleep(TICK).await;
        self.look();
        self.world.tick();
        self.look();
        for (_, task) in self.operators.iter().filter(|(faults, _)| faults.is_dead()) {
            task.abort();
        }
        self.operators.retain(|(faults, _)| !faults.is_dead());
    }

    fn look(&mut self) {
        let about = self.kafka.as_ref().map(Kafka::take_about).unwrap_or_default();
        let mut found = self.monitor.look(&self.world, about);
        // Two operators that both lead each restart a broker: what one cannot see, only the brokers
        // can refuse it (the restart lease of issue 10). A cluster has one broker until then.
        if self.operators.len() > 1 {
            found.retain(|violation| {
                !matches!(
                    violation,
                    Violation::TwoBrokersDown { .. } | Violation::OtherBehind { .. }
                )
            });
        }
        assert_eq!(found, [], "{}", self.told());
    }

    /// Ticks until `holds`; an operator that was killed is followed by one without faults.
    async fn until(&mut self, what: &str, seconds: u64, holds: impl Fn(&Self) -> bool) {
        for _ in 0..seconds {
            if self.operators.is_empty() {
                self.start(&Faults::none(), true);
            }
            self.tick().await;
            if holds(self) {
                return;
            }
        }
        panic!("not within {seconds} s: {what}: {}", self.told());
    }

    fn cluster(&self) -> Value {
        self.server().get(&clusters("demo")).unwrap_or_default()
    }

    fn edit(&self, change: impl FnOnce(&mut Value)) {
        self.server().edit("person", &clusters("demo"), change);
    }

    /// Whether the status says Ready for the newest spec, and nothing is going on.
    fn is_settled(&self) -> bool {
        let cluster = self.cluster();
        let is = |type_: &str, status: &str| {
            cluster["status"]["conditions"].as_array().into_iter().flatten().any(|condition| {
                condition["type"] == type_
                    && condition["status"] == status
                    && condition["observedGeneration"] == cluster["metadata"]["generation"]
            })
        };
        is("Ready", "True") && is("Progressing", "False") && is("Degraded", "False")
    }

    /// Whether every broker has every record: only then does a cluster do without one.
    fn is_in_sync(&self) -> bool {
        let pods = self.server().all("/pods");
        pods.iter().all(|(_, pod)| self.world.is_in_sync(pod))
    }

    fn condition(&self, type_: &str) -> Value {
        let cluster = self.cluster();
        let all = cluster["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|condition| condition["type"] == type_).unwrap_or_default()
    }

    fn told(&self) -> String {
        let pods: Vec<Value> = self
            .server()
            .all("/pods")
            .into_iter()
            .map(|(key, pod)| json!([key.name, pod["status"]["conditions"]]))
            .collect();
        format!("{:#}\n{pods:?}", self.cluster()["status"])
    }

    /// What is there in the end, without what differs from one run to the next.
    fn outcome(&self) -> Vec<(Key, Value)> {
        ["apps/statefulsets", "/services", "/configmaps", "/persistentvolumeclaims"]
            .into_iter()
            .flat_map(|resource| self.server().all(resource))
            .map(|(key, object)| {
                let what = [
                    object["data"].clone(),
                    object["spec"]["selector"].clone(),
                    object["spec"]["resources"].clone(),
                    object["spec"]["template"]["spec"]["containers"][0]["image"].clone(),
                    object["spec"]["template"]["metadata"]["annotations"].clone(),
                ];
                (key, json!(what))
            })
            .collect()
    }

    /// Nothing is written any more.
    async fn is_at_rest(&mut self) {
        for _ in 0..20 {
            self.tick().await;
        }
        let before = self.monitor.writes;
        for _ in 0..90 {
            self.tick().await;
        }
        assert_eq!(self.monitor.writes, before, "writes in 90 s of rest");
    }
}

fn play(test: impl AsyncFnOnce(Play)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async { test(Play::new()).await });
}

/// What the status of an object says that is waited for.
fn waits_of(play: &Play, key: &Key) -> Vec<Value> {
    let object = play.server().get(key).unwrap();
    object["status"]["waits"].as_array().cloned().unwrap_or_default()
}

fn make_cluster(play: &Play) {
    make_cluster_of(play, json!({"replicas": 3, "storage": {"size": "1Gi"}}));
}

fn make_cluster_of(play: &Play, spec: Value) {
    let cluster = json!({
        "apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaCluster", "metadata": {},
        "spec": spec,
    });
    play.server().create("person", &clusters("demo"), cluster).unwrap();
}

/// A cluster that is ready, and the key of the claim of its broker 1.
async fn make_ready(play: &mut Play) -> Key {
    make_cluster(play);
    play.until("it is ready", 120, Play::is_settled).await;
    Key::new("/persistentvolumeclaims", "ns", "data-demo-broker-1-0")
}

/// A person goes on without the volume of broker 1.
async fn accept_loss(play: &mut Play) {
    play.edit(|cluster| {
        let name = cluster["status"]["nodes"][1]["dataLoss"].clone();
        cluster["metadata"]["annotations"] = json!({"letterbox.dev/accept-data-loss": name});
    });
    play.until("it goes on", 120, Play::is_settled).await;
}

/// The life of a cluster: it is made, its configuration changes, a volume is added, and grows.
async fn live(play: &mut Play, seconds: u64) {
    make_cluster(play);
    play.until("it is ready", seconds, Play::is_settled).await;
    play.edit(|cluster| cluster["spec"]["config"] = json!({"num.partitions": "3"}));
    play.until("its configuration is taken up", seconds, Play::is_settled).await;
    play.edit(|cluster| {
        cluster["spec"]["storage"]["volumes"] = json!([{"name": "data"}, {"name": "data-1"}]);
    });
    play.until("a volume is added", seconds, Play::is_settled).await;
    play.edit(|cluster| cluster["spec"]["storage"]["size"] = json!("2Gi"));
    play.until("the volumes grow", seconds, Play::is_settled).await;
}

#[test]
fn an_operator_that_is_killed_after_any_write_leaves_nothing_that_the_next_one_does_not_finish() {
    let lived = |writes: Option<u64>| {
        let (mut outcome, mut written) = (Vec::new(), 0);
        play(async |mut play: Play| {
            if let Some(writes) = writes {
                play.start(&Faults::none().killed_after(writes), true);
            }
            live(&mut play, 120).await;
            if writes.is_none() {
                play.is_at_rest().await;
            }
            assert_eq!(play.monitor.restarts, 6, "two restarts of three brokers");
            (outcome, written) = (play.outcome(), play.monitor.writes);
        });
        (outcome, written)
    };
    let (undisturbed, writes) = lived(None);
    assert!(writes > 40, "{writes}");
    let test = "an_operator_that_is_killed_after_any_write_leaves_nothing_that_the_next_one_does_not_finish";
    // So many seeds as there are writes kill it after each of them: 11 and that number have no
    // common divisor, or nearly all.
    seeds::for_each(6, "operator", test, |seed| {
        let killed = seed * 11 % writes;
        assert_eq!(lived(Some(killed)).0, undisturbed, "killed after {killed} writes");
    });
}

#[test]
fn a_broker_that_ends_while_its_definition_is_refused_starts_as_it_was() {
    play(async |mut play: Play| {
        make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
        let faults = Faults::none();
        play.start(&faults, false);
        play.until("it is ready", 120, Play::is_settled).await;
        let pod = Key::new("/pods", "ns", "demo-broker-0-0");
        // The uid of the pod, and the configuration that it has.
        let config = |play: &Play| {
            let pod = play.server().get(&pod)?;
            let volumes = pod.pointer("/spec/volumes")?.as_array()?;
            let map = volumes.iter().find_map(|it| it.pointer("/configMap/name")?.as_str())?;
            let map = play.server().get(&Key::new("/configmaps", "ns", map))?;
            Some((pod["metadata"]["uid"].clone(), map["data"].to_string()))
        };
        let maps = |play: &Play| play.server().all("/configmaps").len();
        let (uid, before) = config(&play).unwrap();
        let refused = Broken { resource: "apps/statefulsets", is_write: true, how: How::Refused };
        faults.set_broken(&[refused]);
        play.edit(|cluster| cluster["spec"]["config"] = json!({"num.partitions": "3"}));
        play.until("its new ConfigMap is there", 30, |play| maps(play) == 2).await;
        play.until("that is told", 30, |play| play.condition("Degraded")["status"] == "True").await;
        play.server().remove("crash", &pod);
        let is_other = |play: &Play| config(play).is_some_and(|now| now.0 != uid);
        play.until("another pod runs", 30, is_other).await;
        assert_eq!(config(&play).unwrap().1, before);
        for _ in 0..30 {
            play.tick().await;
        }
        assert!(!before.contains("num.partitions") && !play.is_settled(), "{}", play.told());
        faults.set_broken(&[]);
        play.until("it is as it should be", 60, Play::is_settled).await;
        assert!(config(&play).unwrap().1.contains("num.partitions=3"));
        play.until("the old ConfigMap is gone", 60, |play| maps(play) == 1).await;
    });
}

#[test]
fn another_repository_of_images_restarts_no_broker_of_a_version() {
    play(async |mut play: Play| {
        make_cluster_of(&play, json!({"version": "2", "storage": {"size": "1Gi"}}));
        let release = |play: &mut Play, image: &str| {
            play.operators.drain(..).for_each(|(_, task)| task.abort());
            play.start_release(&Faults::none(), None, image);
        };
        release(&mut play, "here/letterbox:1");
        play.until("it is ready", 120, Play::is_settled).await;
        release(&mut play, "elsewhere/letterbox:3");
        let set = Key::new("apps/statefulsets", "ns", "demo-broker-0");
        let image = |play: &Play| {
            let set = play.server().get(&set).unwrap();
            set["spec"]["template"]["spec"]["containers"][0]["image"].clone()
        };
        let is_defined = |play: &Play| image(play) == "elsewhere/letterbox:2";
        play.until("the broker is defined with it", 60, is_defined).await;
        play.is_at_rest().await;
        assert_eq!((play.monitor.restarts, play.is_settled()), (0, true), "{}", play.told());
        // One that does not run is started from there.
        let pod = Key::new("/pods", "ns", "demo-broker-0-0");
        play.server().remove("crash", &pod);
        let asked = |play: &Play| {
            let pod = play.server().get(&pod).unwrap_or_default();
            pod["metadata"]["annotations"]["letterbox.dev/image"].clone()
        };
        play.until("it starts again", 60, |play| asked(play) == "elsewhere/letterbox:2").await;
        play.until("it is ready", 60, Play::is_settled).await;
        // And one that cannot be started from where it was to come.
        release(&mut play, &format!("{NOT_PULLED}letterbox:3"));
        play.until("it is defined with what is not there", 60, |play| !is_defined(play)).await;
        play.server().remove("crash", &pod);
        let fails = |play: &Play| play.condition("Ready")["reason"] == "BrokerFailing";
        play.until("it cannot be pulled", 60, fails).await;
        release(&mut play, "elsewhere/letterbox:3");
        play.until("it is ready again", 60, Play::is_settled).await;
    });
}

#[test]
fn faults_of_the_api_server_and_two_leaders_break_nothing() {
    let test = "faults_of_the_api_server_and_two_leaders_break_nothing";
    seeds::for_each(4, "operator", test, |seed| {
        play(async |mut play: Play| {
            let chances = Chances {
                refused: 5,
                conflict: 5,
                not_answered: 5,
                watch_ends: 5,
                watch_hangs: seed % 3,
                delay_max: Duration::from_millis([50, 800, 3000][(seed % 3) as usize]),
            };
            // Without a lease, both lead all the time.
            let both: Vec<Faults> =
                ["a", "b"].iter().map(|name| Faults::new(seed, name, chances)).collect();
            // Every fourth seed has two.
            for faults in &both[..if seed % 4 == 3 { 2 } else { 1 }] {
                play.start(faults, false);
            }
            live(&mut play, 1800).await;
            both.iter().for_each(Faults::end);
            // Two leaders are an overlap, and it ends.
            play.operators.drain(1..).for_each(|(_, task)| task.abort());
            // A watch that hangs ends after five minutes at most.
            for _ in 0..360 {
                play.tick().await;
            }
            assert!(play.is_settled(), "{}", play.told());
            play.is_at_rest().await;
        });
    });
}

#[test]
fn an_operator_whose_watches_bring_nothing_goes_by_what_is() {
    play(async |mut play: Play| {
        make_cluster(&play);
        play.start(&Faults::new(1, "a", Chances { watch_hangs: 100, ..Chances::default() }), false);
        play.until("it is ready", 120, Play::is_settled).await;
        play.edit(|cluster| cluster["spec"]["config"] = json!({"num.partitions": "3"}));
        play.until("its configuration is taken up", 200, Play::is_settled).await;
        let events = play.server().all("events.k8s.io/events");
        let ready = events.iter().filter(|(_, event)| event["reason"] == "Ready");
        // Once when it was made, and once more after the restarts.
        let told: Vec<&Value> = ready.map(|(_, event)| &event["series"]["count"]).collect();
        assert_eq!(told, [&json!(2)], "the same news is told once");
    });
}

#[test]
fn a_lost_volume_is_told_by_whoever_looks_and_healed_over_by_nobody() {
    play(async |mut play: Play| {
        let claim = make_ready(&mut play).await;
        play.server().remove("thief", &claim);
        play.server().remove("thief", &Key::new("/pods", "ns", "demo-broker-1-0"));
        let is_told = |play: &Play| play.condition("Degraded")["reason"] == "DataLost";
        play.until("it is told", 60, is_told).await;
        // The next operator knows no more than what is there.
        play.operators.drain(..).for_each(|(_, task)| task.abort());
        for _ in 0..60 {
            play.tick().await;
            if play.operators.is_empty() {
                play.start(&Faults::none(), false);
            }
        }
        assert!(is_told(&play) && play.server().get(&claim).is_none(), "{}", play.told());
        accept_loss(&mut play).await;
    });
}

#[test]
fn a_claim_that_never_had_a_volume_is_made_again_when_a_person_deletes_it() {
    play(async |mut play: Play| {
        make_cluster_of(&play, json!({"storage": {"size": "1Gi", "class": "fsat"}}));
        let claim = claim_of(0, "data");
        let uid = |play: &Play| play.server().get(&claim).map(|it| it["metadata"]["uid"].clone());
        let is_used = |play: &Play| {
            let pod = play.server().get(&Key::new("/pods", "ns", "demo-broker-0-0"));
            pod.is_some()
                && play.cluster()["status"]["nodes"][0]["volumes"][0]["claimUid"] != json!(null)
        };
        play.until("a pod waits for it", 60, is_used).await;
        let before = uid(&play);
        play.server().delete("person", &claim, None, None).unwrap();
        play.until("it is made again", 60, |play| uid(play).is_some() && uid(play) != before).await;
        for _ in 0..20 {
            play.tick().await;
            assert!(!is_lost(&play), "{}", play.told());
        }
        play.edit(|cluster| cluster["spec"]["storage"] = json!({"size": "1Gi"}));
        play.until("it is ready", 120, Play::is_settled).await;
    });
}

#[test]
fn a_claim_that_only_lost_its_label_may_still_get_a_volume() {
    play(async |mut play: Play| {
        // Nobody knows the directories: what is known of a volume is its claim.
        play.world.mute(true);
        make_cluster_of(&play, json!({"storage": {"size": "1Gi", "class": "fsat"}}));
        let (claim, server) = (claim_of(0, "data"), play.server().clone());
        let is_recorded = |play: &Play| {
            play.cluster()["status"]["nodes"][0]["volumes"][0]["claimUid"] != json!(null)
        };
        play.until("it is recorded", 60, is_recorded).await;
        server.edit("person", &claim, |claim| claim["metadata"]["labels"] = json!({}));
        for _ in 0..10 {
            play.tick().await;
        }
        server.edit("kubernetes", &claim, |it| it["spec"]["storageClassName"] = json!("fast"));
        let is_up = |play: &Play| play.cluster()["status"]["readyReplicas"] == json!(1);
        play.until("the broker has it", 60, is_up).await;
        server.remove("thief", &claim);
        server.remove("thief", &Key::new("/pods", "ns", "demo-broker-0-0"));
        play.until("it is told", 60, is_lost).await;
        for _ in 0..30 {
            play.tick().await;
        }
        assert!(is_lost(&play) && server.get(&claim).is_none(), "{}", play.told());
    });
}

#[test]
fn a_claim_that_vanishes_under_a_broker_is_made_again_by_no_operator() {
    play(async |mut play: Play| {
        let claim = make_ready(&mut play).await;
        let recorded = |play: &Play| play.cluster()["status"]["nodes"][1]["volumes"].clone();
        let (before, object) = (recorded(&play), play.server().get(&claim).unwrap());
        play.server().remove("thief", &claim);
        let is_told = |play: &Play| play.condition("Degraded")["reason"] == "DataLost";
        play.until("it is told", 60, is_told).await;
        // Nor is one that a person makes taken for it, while the broker has the old volume.
        play.server().create("person", &claim, object).unwrap();
        play.edit(|cluster| cluster["spec"]["config"] = json!({"num.partitions": "3"}));
        for _ in 0..120 {
            play.tick().await;
        }
        assert!(is_told(&play), "{}", play.told());
        assert_eq!((recorded(&play), play.monitor.restarts), (before, 2), "the other two");
        accept_loss(&mut play).await;
        assert_eq!(play.monitor.restarts, 3);
    });
}

#[test]
fn a_broker_whose_claim_is_being_deleted_is_not_restarted() {
    play(async |mut play: Play| {
        let claim = make_ready(&mut play).await;
        play.server().delete("person", &claim, None, None).unwrap();
        let is_told = |play: &Play| play.condition("Degraded")["reason"] == "ClaimBeingDeleted";
        play.until("it is told", 60, is_told).await;
        play.edit(|cluster| cluster["spec"]["config"] = json!({"num.partitions": "3"}));
        for _ in 0..120 {
            play.tick().await;
        }
        assert_eq!(play.monitor.restarts, 2, "the other two");
        assert!(is_told(&play) && play.server().get(&claim).is_some(), "{}", play.told());
    });
}

#[test]
fn a_cluster_whose_claims_may_not_be_deleted_says_so_and_serves_on() {
    play(async |mut play: Play| {
        let faults = Faults::none();
        make_cluster_of(&play, json!({"storage": {"size": "1Gi", "deletionPolicy": "Delete"}}));
        play.start(&faults, false);
        play.until("it is ready", 120, Play::is_settled).await;
        let resource = "/persistentvolumeclaims";
        faults.set_broken(&[Broken { resource, is_write: true, how: How::Refused }]);
        play.server().delete("person", &clusters("demo"), None, None).unwrap();
        let is_told = |play: &Play| {
            let (ready, degraded) = (play.condition("Ready"), play.condition("Degraded"));
            let is_so = |it: &Value, status: &str, reason: &str, part: &str| {
                let message = it["message"].as_str().unwrap_or_default();
                it["status"] == status && it["reason"] == reason && message.contains(part)
            };
            is_so(&ready, "False", "Deleting", "letterbox.dev/delete-volumes")
                && is_so(&degraded, "True", "Forbidden", "data-demo-broker-0-0")
        };
        play.until("it is told", 10, is_told).await;
        for _ in 0..30 {
            play.tick().await;
        }
        assert!(is_told(&play), "{}", play.told());
        assert_eq!(play.cluster()["status"]["phase"], "Deleting");
        let broker = Key::new("apps/statefulsets", "ns", "demo-broker-0");
        assert!(play.server().get(&broker).is_some(), "nothing goes before all may go");
        faults.set_broken(&[]);
        let is_gone = |play: &Play| {
            let all = [clusters("demo"), broker.clone(), claim_of(0, "data")];
            all.iter().all(|key| play.server().get(key).is_none())
        };
        play.until("it is gone", 30, is_gone).await;
    });
}

#[test]
fn what_clients_need_and_is_refused_is_what_ready_says() {
    let says = |play: &Play, name: &str| {
        let ready = play.condition("Ready");
        let message = ready["message"].as_str().unwrap_or_default();
        ready["status"] == "False" && ready["reason"] == "Forbidden" && message.contains(name)
    };
    let refused = |resource| [Broken { resource, is_write: true, how: How::Refused }];
    play(async |mut play: Play| {
        let faults = Faults::none();
        make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
        play.start(&faults, false);
        play.until("it is ready", 120, Play::is_settled).await;
        faults.set_broken(&refused("/services"));
        let service = Key::new("/services", "ns", "demo-kafka-bootstrap");
        let label = "app.kubernetes.io/instance";
        play.server().edit("person", &service, |it| it["metadata"]["labels"][label] = json!("x"));
        for _ in 0..20 {
            play.tick().await;
        }
        assert_eq!(play.condition("Ready")["status"], "True", "a label keeps nobody from it");
        play.server().edit("person", &service, |it| it["spec"]["selector"]["x"] = json!("y"));
        play.until("it is told", 30, |play| says(play, "demo-kafka-bootstrap")).await;
        faults.set_broken(&[]);
        play.until("it is ready again", 60, Play::is_settled).await;
    });
    play(async |mut play: Play| {
        let faults = Faults::none();
        faults.set_broken(&refused("/persistentvolumeclaims"));
        make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
        play.start(&faults, false);
        play.until("it is told", 30, |play| says(play, "data-demo-broker-0-0")).await;
        faults.set_broken(&[]);
        play.until("it is ready", 120, Play::is_settled).await;
    });
}

/// The messages of the events about a cluster.
fn events_of(play: &Play, reason: &str) -> Vec<String> {
    let all = play.server().all("events.k8s.io/events").into_iter();
    let told = all.filter(|(_, event)| event["reason"] == reason);
    told.filter_map(|(_, event)| Some(event["note"].as_str()?.to_owned())).collect()
}

/// As earlier versions asked for it.
#[test]
fn a_setting_that_is_needless_is_told_and_keeps_no_cluster_from_its_brokers() {
    play(async |mut play: Play| {
        let config = json!({"unstable.several.nodes.enable": true});
        make_cluster_of(&play, json!({"config": config, "storage": {"size": "1Gi"}}));
        play.start(&Faults::none(), false);
        play.until("it is ready", 120, Play::is_settled).await;
        let told = events_of(&play, "SettingNeedless");
        let expected = "unstable.several.nodes.enable in spec.config has no effect: several \
            brokers form a cluster without it; remove it";
        assert_eq!(told, [expected]);
    });
}

#[test]
fn only_the_claims_that_the_operator_made_go_with_a_cluster_and_it_is_told_which_stay() {
    let by_hand = |spec: Value, annotations: Value| {
        json!({
            "metadata": {
                "labels": {"letterbox.dev/cluster": "demo"}, "annotations": annotations,
            },
            "spec": spec, "status": {},
        })
    };
    let size = json!({"requests": {"storage": "1Gi"}});
    let asked = json!({"letterbox.dev/asked-storage-class": ""});
    let copied = json!({
        "letterbox.dev/asked-storage-class": "", "letterbox.dev/asked-storage-size": "1Gi",
        "letterbox.dev/cluster-id": OWN_ID, "letterbox.dev/made-as": "another one",
    });
    for (case, claim, is_paused, stays, told) in [
        ("its own", None, false, false, "its volumes are deleted"),
        ("paused", None, true, true, "because the object is paused"),
        (
            "a copy of one of its own, as a backup restores it",
            Some(by_hand(json!({"resources": size}), copied)),
            false,
            true,
            "except those of the claims data-demo-broker-0-0",
        ),
        (
            "made by hand",
            Some(by_hand(json!({"resources": size}), json!({}))),
            false,
            true,
            "except those of the claims data-demo-broker-0-0",
        ),
        (
            "of a snapshot",
            Some(by_hand(
                json!({"resources": size, "dataSource": {"kind": "VolumeSnapshot", "name": "s"}}),
                asked,
            )),
            false,
            true,
            "except those of the claims data-demo-broker-0-0",
        ),
    ] {
        play(async |mut play: Play| {
            let server = play.server().clone();
            if let Some(claim) = claim.clone() {
                server.create("person", &claim_of(0, "data"), claim).unwrap();
            }
            make_cluster_of(&play, json!({"storage": {"size": "1Gi", "deletionPolicy": "Delete"}}));
            play.start(&Faults::none(), false);
            play.until("it is ready", 120, Play::is_settled).await;
            let pause = json!({"letterbox.dev/pause-reconciliation": "true"});
            if is_paused {
                play.edit(|cluster| cluster["metadata"]["annotations"] = pause);
            }
            server.delete("person", &clusters("demo"), None, None).unwrap();
            play.until("it is gone", 30, |_| server.get(&clusters("demo")).is_none()).await;
            for _ in 0..10 {
                play.tick().await;
            }
            let is_there = server
                .get(&claim_of(0, "data"))
                .is_some_and(|it| it.pointer("/metadata/deletionTimestamp").is_none());
            assert_eq!(is_there, stays, "{case}");
            let events = events_of(&play, "FinalizerRemoved");
            assert!(events.iter().any(|event| event.contains(told)), "{case}: {events:?}");
        });
    }
}

/// The id of the cluster whose object is the second one that is made in a world.
const OWN_ID: &str = "AAAAAAAAQACAAAAAAAAAAg";

#[test]
fn a_claim_that_was_never_marked_goes_with_a_later_cluster_only_where_a_person_says_whose_it_is() {
    let (claim, mark) = (claim_of(0, "data"), "letterbox.dev/made-as");
    for is_marked in [false, true] {
        play(async |mut play: Play| {
            let server = play.server().clone();
            let end = async |play: &mut Play| {
                server.delete("person", &clusters("demo"), None, None).unwrap();
                play.until("it is gone", 30, |_| server.get(&clusters("demo")).is_none()).await;
                for _ in 0..10 {
                    play.tick().await;
                }
            };
            make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
            play.until("it is ready", 120, Play::is_settled).await;
            end(&mut play).await;
            // As a build left it that did not mark claims.
            server.edit("person", &claim, |claim| {
                let uid = claim["metadata"]["uid"].clone();
                let annotations = claim["metadata"]["annotations"].as_object_mut().unwrap();
                annotations.remove(mark);
                if is_marked {
                    annotations.insert(mark.to_owned(), uid);
                }
            });
            make_cluster_of(&play, json!({"storage": {"size": "1Gi", "deletionPolicy": "Delete"}}));
            play.until("it is ready again", 120, Play::is_settled).await;
            let annotations = server.get(&claim).unwrap()["metadata"]["annotations"].clone();
            assert_eq!(annotations.get(mark).is_some(), is_marked, "nobody else marks it");
            end(&mut play).await;
            let is_kept = server
                .get(&claim)
                .is_some_and(|it| it.pointer("/metadata/deletionTimestamp").is_none());
            assert_eq!(is_kept, !is_marked);
            let told = events_of(&play, "FinalizerRemoved");
            let names_it = told.iter().any(|event| event.contains("data-demo-broker-0-0"));
            assert_eq!(names_it, !is_marked, "{told:?}");
        });
    }
}

#[test]
fn a_claim_says_that_it_is_no_copy_whenever_the_operator_is_killed() {
    let claim = claim_of(0, "data");
    let mark = |play: &Play| {
        let claim = play.server().get(&claim)?;
        let mark = claim["metadata"]["annotations"].get("letterbox.dev/made-as").cloned();
        Some((mark, claim["metadata"]["uid"].clone()))
    };
    for is_killed in [false, true] {
        play(async |mut play: Play| {
            make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
            play.until("it is ready", 120, Play::is_settled).await;
            let (marked, uid) = mark(&play).unwrap();
            assert_eq!(marked, Some(uid.clone()));
            if is_killed {
                // As one leaves it that is killed before it could write that.
                let unmark = |it: &mut Value| {
                    let all = it["metadata"]["annotations"].as_object_mut().unwrap();
                    all.remove("letterbox.dev/made-as");
                };
                play.server().edit("person", &claim, unmark);
                play.until("it is marked again", 30, |play| {
                    mark(play).unwrap().0 == Some(uid.clone())
                })
                .await;
            }
            play.until("it is settled", 30, Play::is_settled).await;
        });
    }
}

#[test]
fn a_cluster_id_that_somebody_wrote_is_put_right_by_what_brokers_and_claims_say() {
    const WRONG: &str = "AAAAAAAAAAAAAAAAAAAAAA";
    let annotation = "letterbox.dev/cluster-id";
    for (case, is_mute, has_annotations) in
        [("both", false, true), ("the brokers", false, false), ("the claims", true, true)]
    {
        play(async |mut play: Play| {
            make_cluster(&play);
            play.until("it is ready", 120, Play::is_settled).await;
            let id = |play: &Play| play.cluster()["status"]["clusterId"].clone();
            let right = id(&play);
            let outcome = play.outcome();
            play.world.mute(is_mute);
            if !has_annotations {
                play.world.remember_ids();
                for broker in 0..3 {
                    play.server().edit("person", &claim_of(broker, "data"), |claim| {
                        let all = claim["metadata"]["annotations"].as_object_mut().unwrap();
                        all.remove(annotation);
                    });
                }
            }
            play.edit(|cluster| cluster["status"]["clusterId"] = json!(WRONG));
            play.until(case, 70, |play| id(play) == right).await;
            assert_eq!(events_of(&play, "ClusterIdCorrected").len(), 1, "{case}");
            play.world.mute(false);
            play.until("it is settled", 70, Play::is_settled).await;
            assert_eq!(play.outcome(), outcome, "{case}: nothing of it reached a broker");
            // One claim that says another one is not believed.
            play.world.mute(true);
            play.world.remember_ids();
            play.server().edit("person", &claim_of(0, "data"), |claim| {
                claim["metadata"]["annotations"][annotation] = json!(WRONG);
            });
            for _ in 0..70 {
                play.tick().await;
                assert_eq!(id(&play), right, "{case}");
            }
        });
    }
}

#[test]
fn a_set_that_was_made_again_with_what_nobody_can_change_is_made_again() {
    for (field, value) in [
        ("/spec/serviceName", json!("other")),
        ("/spec/selector/matchLabels/letterbox.dev~1pool", json!("other")),
    ] {
        play(async |mut play: Play| {
            make_cluster(&play);
            play.until("it is ready", 120, Play::is_settled).await;
            play.until("it is in sync", 120, Play::is_in_sync).await;
            let key = Key::new("apps/statefulsets", "ns", "demo-broker-1");
            let server = play.server().clone();
            let mut set = server.get(&key).unwrap();
            let right = set.pointer(field).cloned();
            *set.pointer_mut(field).unwrap() = value.clone();
            // All of it is written by whoever creates it.
            for field in ["ownerReferences", "managedFields"] {
                set["metadata"].as_object_mut().unwrap().remove(field);
            }
            server.remove("person", &key);
            server.create("person", &key, set).unwrap();
            let is_right = |play: &Play| {
                let set = server.get(&key);
                set.is_some_and(|set| set.pointer(field).cloned() == right) && play.is_settled()
            };
            play.until(field, 120, is_right).await;
            play.is_at_rest().await;
        });
    }
}

#[test]
fn a_topic_that_is_to_be_deleted_is_let_go_when_there_is_no_definition_of_clusters() {
    for restarts in [false, true] {
        play(async |mut play: Play| {
            play.kafka = Some(Kafka::start().await);
            make_topics(&play, 2, |_| json!({"deletionPolicy": "Delete"}));
            make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
            play.start(&Faults::none(), false);
            play.until("they are ready", 120, |play| topics_that_are(play, "Ready") == 2).await;
            let server = play.server().clone();
            server.define("letterbox.dev/kafkaclusters", false);
            if restarts {
                play.operators.drain(..).for_each(|(_, task)| task.abort());
                play.start(&Faults::none(), false);
            }
            let topic = |number: u32| Key::new(TOPIC_OBJECTS, "ns", &format!("t{number}"));
            server.delete("person", &topic(0), None, None).unwrap();
            play.until("it is let go", 60, |_| server.get(&topic(0)).is_none()).await;
            assert!(server.get(&topic(1)).is_some());
            server.define("letterbox.dev/kafkaclusters", true);
            make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
            play.until("it is ready", 120, |play| topics_that_are(play, "Ready") == 1).await;
        });
    }
}

#[test]
fn a_definition_that_is_not_served_for_a_moment_lets_no_topic_go() {
    const DELETE_TOPICS: i16 = 20;
    play(async |mut play: Play| {
        let kafka = Kafka::start().await;
        play.kafka = Some(kafka.clone());
        make_topics(&play, 1, |_| json!({"deletionPolicy": "Delete"}));
        make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
        play.start(&Faults::none(), false);
        play.until("it is ready", 120, |play| topics_that_are(play, "Ready") == 1).await;
        let (server, topic) = (play.server().clone(), Key::new(TOPIC_OBJECTS, "ns", "t0"));
        kafka.hold(Some(DELETE_TOPICS));
        server.delete("person", &topic, None, None).unwrap();
        // Together for longer than it takes to be believed. No look falls on the way back.
        for _ in 0..2 {
            for (is_served, seconds) in [(false, 18), (true, 17)] {
                server.serve("letterbox.dev/kafkaclusters", is_served);
                for _ in 0..seconds {
                    play.tick().await;
                    assert!(server.get(&topic).is_some(), "it is held until its topic is deleted");
                }
            }
        }
        kafka.hold(None);
        play.until("it is gone", 120, |_| server.get(&topic).is_none()).await;
    });
}

#[test]
fn a_watch_that_is_refused_slows_no_other_one_and_is_told() {
    for resource in [
        "watch /serviceaccounts",
        "watch /services",
        "watch /configmaps",
        "watch apps/statefulsets",
        "watch policy/poddisruptionbudgets",
        "watch /pods",
        "watch /persistentvolumeclaims",
        "watch letterbox.dev/kafkatopics",
    ] {
        play(async |mut play: Play| {
            let faults = Faults::none();
            let broken = Broken { resource, is_write: false, how: How::Refused };
            faults.set_broken(&[broken]);
            play.start(&faults, false);
            for _ in 0..60 {
                play.tick().await;
            }
            make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
            let has_status = |play: &Play| play.cluster()["status"]["phase"].is_string();
            play.until("it has a status", 3, has_status).await;
            let is_ready = |play: &Play| play.condition("Ready")["status"] == "True";
            play.until("it is ready", 60, is_ready).await;
            let word = resource.rsplit('/').next().unwrap();
            let is_told = |play: &Play| {
                let degraded = play.condition("Degraded");
                let message = degraded["message"].as_str().unwrap_or_default();
                degraded["reason"] == "NotWatched" && message.contains(word)
            };
            play.until("it is told", 30, is_told).await;
            play.edit(|cluster| cluster["spec"]["config"] = json!({"num.partitions": "3"}));
            play.until("it restarts", 60, |play| play.monitor.restarts == 1).await;
            faults.set_broken(&[]);
            play.until("all is well", 60, Play::is_settled).await;
        });
    }
}

#[test]
fn what_is_held_by_others_while_it_is_deleted_says_by_whom() {
    play(async |mut play: Play| {
        play.kafka = Some(Kafka::start().await);
        make_topics(&play, 1, |_| json!({"deletionPolicy": "Delete"}));
        make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
        play.start(&Faults::none(), false);
        play.until("they are ready", 120, |play| {
            play.is_settled() && topics_that_are(play, "Ready") == 1
        })
        .await;
        let topic = Key::new("letterbox.dev/kafkatopics", "ns", "t0");
        let server = play.server().clone();
        let hold = |object: &mut Value| {
            let mut held = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            held.push(json!("example.com/backup"));
            object["metadata"]["finalizers"] = json!(held);
        };
        let says = |object: Value| {
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let mut ready = conditions.into_iter().filter(|each| each["type"] == "Ready");
            ready.next().is_some_and(|ready| {
                let message = ready["message"].as_str().unwrap_or_default();
                ready["status"] == "False"
                    && ready["reason"] == "Deleting"
                    && message.ends_with("removed: example.com/backup")
            })
        };
        for key in [topic, clusters("demo")] {
            server.edit("person", &key, hold);
            server.delete("person", &key, None, None).unwrap();
            let is_told = |_: &Play| says(server.get(&key).unwrap());
            play.until("it is told", 30, is_told).await;
            server.edit("person", &key, |it| it["metadata"]["finalizers"] = json!([]));
            play.until("it is gone", 30, |_| server.get(&key).is_none()).await;
        }
        assert!(server.get(&claim_of(0, "data")).is_some(), "the policy is Retain");
    });
}

/// What a person changes or loses while calls of one kind meet a fault, and what each change comes
/// to when the operator has done its part.
const JOBS: [&str; 5] = ["access", "budget", "storage", "definition", "topic"];

fn begin_jobs(play: &Play) {
    let server = play.server();
    server.remove("thief", &Key::new("/services", "ns", "demo-kafka-bootstrap"));
    server.remove("thief", &Key::new("policy/poddisruptionbudgets", "ns", "demo-kafka"));
    make_topics(play, 1, |_| json!({"deletionPolicy": "Delete", "config": {"retention.ms": "9"}}));
    play.edit(|cluster| {
        cluster["spec"]["config"] = json!({"num.partitions": "3"});
        cluster["spec"]["storage"]["size"] = json!("2Gi");
    });
}

fn is_done(play: &Play, job: &str, asked: &str) -> bool {
    let get = |resource: &str, name: &str| play.server().get(&Key::new(resource, "ns", name));
    match job {
        "access" => get("/services", "demo-kafka-bootstrap").is_some(),
        "budget" => get("policy/poddisruptionbudgets", "demo-kafka").is_some(),
        "storage" => get("/persistentvolumeclaims", "data-demo-broker-0-0")
            .is_some_and(|claim| claim["spec"]["resources"]["requests"]["storage"] == "2Gi"),
        "definition" => get("/pods", "demo-broker-0-0").is_some_and(|pod| {
            let told = &pod["metadata"]["annotations"]["letterbox.dev/asked-revision"];
            told.is_string() && told != asked
        }),
        _ => topics_that_are(play, "Ready") == 1,
    }
}

/// Each reader and each writer, what waits for it, and whether the cluster tells that.
const CALLS: [(&str, bool, &[&str], bool); 16] = [
    ("/services", false, &["access"], true),
    ("/services", true, &["access"], true),
    ("/serviceaccounts", false, &["access"], true),
    ("policy/poddisruptionbudgets", false, &["budget"], true),
    ("policy/poddisruptionbudgets", true, &["budget"], true),
    // What a restart could end is not known.
    ("/persistentvolumeclaims", false, &["storage", "definition"], true),
    ("/persistentvolumeclaims", true, &["storage"], true),
    ("apps/statefulsets", false, &["definition"], true),
    ("apps/statefulsets", true, &["definition"], true),
    ("/configmaps", false, &["definition"], true),
    ("/configmaps", true, &["definition"], true),
    ("/pods", false, &["definition"], true),
    ("/pods", true, &["definition"], true),
    // Causes of what is waited for, and words about it.
    ("/events", false, &[], true),
    ("events.k8s.io/events", true, &[], false),
    ("/namespaces", false, &[], false),
];

/// Everything that a fault in the calls of one kind leaves going is done within a minute, and
/// nothing else waits for it; the cluster tells it within seconds.
async fn one_fault(play: &mut Play, broken: Broken, waits: &[&str], is_told: bool) {
    let faults = Faults::none();
    play.kafka = Some(Kafka::start().await);
    make_cluster_of(play, json!({"storage": {"size": "1Gi", "deletionPolicy": "Delete"}}));
    play.start(&faults, false);
    play.until("it is ready", 120, Play::is_settled).await;
    let pod = play.server().get(&Key::new("/pods", "ns", "demo-broker-0-0")).unwrap();
    let asked =
        pod["metadata"]["annotations"]["letterbox.dev/asked-revision"].as_str().unwrap().to_owned();
    faults.set_broken(&[broken]);
    begin_jobs(play);
    let blocks = matches!(broken.how, How::Refused | How::Hangs);
    let waits = if blocks { waits } else { &[] };
    let others = |play: &Play| {
        let mut others = JOBS.iter().filter(|job| !waits.contains(job));
        others.all(|job| is_done(play, job, &asked))
    };
    let word = match broken.resource.rsplit('/').next().unwrap_or_default() {
        "persistentvolumeclaims" => "volume claim",
        plural => plural.trim_end_matches('s'),
    };
    let mut told_after = None;
    for second in 0..60 {
        play.tick().await;
        let degraded = play.condition("Degraded");
        let message = degraded["message"].as_str().unwrap_or_default().to_lowercase();
        if degraded["status"] == "True" && message.contains(word) {
            told_after.get_or_insert(second);
        }
    }
    assert!(others(play), "{broken:?}: {:?}", {
        let mut left = JOBS.to_vec();
        left.retain(|job| !is_done(play, job, &asked));
        (left, play.told())
    });
    for job in waits {
        assert!(!is_done(play, job, &asked), "{broken:?}: {job} does not show it");
    }
    // A refusal is an answer; what hangs is given up after ten seconds.
    let seconds = if matches!(broken.how, How::Refused) { 5 } else { 25 };
    let in_time = told_after.is_some_and(|second| second <= seconds);
    // A broker is back before a list of events has hung for so long that it is told.
    let is_over = (broken.resource, broken.how) == ("/events", How::Hangs);
    let is_right = is_over || in_time == (is_told && blocks);
    assert!(is_right, "{broken:?}: {told_after:?} {}", play.told());
    faults.set_broken(&[]);
    play.until("all is done", 60, |play| {
        JOBS.iter().all(|job| is_done(play, job, &asked)) && play.is_settled()
    })
    .await;
}

#[test]
fn a_fault_in_one_reader_or_writer_is_told_and_holds_up_nothing_else() {
    for (resource, is_write, waits, is_told) in CALLS {
        let mut all = vec![How::Refused, How::Hangs, How::Slow(Duration::from_secs(3))];
        all.extend(is_write.then_some([How::TimesOut, How::HangsWhenDone]).into_iter().flatten());
        for how in all {
            let broken = Broken { resource, is_write, how };
            play(async |mut play: Play| one_fault(&mut play, broken, waits, is_told).await);
        }
    }
}

#[test]
fn a_leader_that_cannot_read_its_lease_again_stops_before_another_one_leads() {
    play(async |mut play: Play| {
        let faults = Faults::none();
        make_cluster(&play);
        play.start(&faults, true);
        play.until("it is ready", 120, Play::is_settled).await;
        play.start(&Faults::none(), true);
        play.tick().await;
        let lease =
            |is_write, how| Broken { resource: "coordination.k8s.io/leases", is_write, how };
        faults.set_broken(&[lease(true, How::Conflicts), lease(false, How::Hangs)]);
        for _ in 0..13 {
            play.tick().await;
        }
        let (_, since) = play.server().changes_since(u64::MAX);
        for _ in 0..4 {
            play.server().remove("thief", &Key::new("/services", "ns", "demo-kafka-bootstrap"));
            for _ in 0..10 {
                play.tick().await;
            }
        }
        let (changes, _) = play.server().changes_since(since);
        let by = |name: &str| changes.iter().filter(|change| change.actor == name).count();
        assert_eq!(by("operator-1"), 0, "it does not lead any more");
        assert!(by("operator-2") > 0, "the other one leads");
    });
}

#[test]
fn a_status_that_is_refused_is_not_left_standing_as_if_it_were_true() {
    play(async |mut play: Play| {
        let faults = Faults::none();
        make_cluster(&play);
        play.start(&faults, false);
        play.until("it is ready", 120, Play::is_settled).await;
        let resource = "letterbox.dev/kafkaclusters";
        faults.set_broken(&[Broken { resource, is_write: true, how: How::Undeclared }]);
        play.server().remove("thief", &claim_of(1, "data"));
        let is_told = |play: &Play| {
            let ready = play.condition("Ready");
            (ready["status"] == "Unknown", ready["reason"] == "StatusNotWritten") == (true, true)
        };
        play.until("it is told", 30, is_told).await;
        let writes = play.monitor.writes;
        for _ in 0..30 {
            play.tick().await;
        }
        assert!(play.monitor.writes - writes < 3, "once");
        faults.set_broken(&[]);
        play.until("the loss is told", 30, is_lost).await;
    });
}

#[test]
fn of_two_releases_that_watch_a_namespace_one_acts_and_the_other_says_so() {
    play(async |mut play: Play| {
        play.kafka = Some(Kafka::start().await);
        make_topics(&play, 1, |_| json!({}));
        make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
        play.start_release(&Faults::none(), Some("one"), "letterbox:1");
        // It has the namespace once it has written anything.
        play.until("the first one acts", 20, |play| play.monitor.writes > 0).await;
        play.start_release(&Faults::none(), Some("two"), "letterbox:2");
        let are_ready = |play: &Play| play.is_settled() && topics_that_are(play, "Ready") == 1;
        play.until("they are ready", 120, are_ready).await;
        for key in [clusters("demo"), Key::new(TOPIC_OBJECTS, "ns", "t0")] {
            assert_eq!(waits_of(&play, &key), [] as [Value; 0], "{key:?}");
        }
        let says = "the operator ns/one manages the objects of namespace ns";
        let is_told = |play: &Play| {
            let events = play.server().all("events.k8s.io/events");
            events.iter().any(|(_, event)| {
                let note = event["note"].as_str().unwrap_or_default();
                event["reason"] == "OtherOperator" && note.starts_with(says)
            })
        };
        play.until("an event tells it", 20, is_told).await;
        let ready = play.world.ask_operator("/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503") && ready.contains(says), "{ready}");
        play.edit(|cluster| cluster["spec"]["config"] = json!({"num.partitions": "3"}));
        play.until("it restarts", 60, |play| play.monitor.restarts == 1).await;
        play.until("they are ready again", 60, are_ready).await;
        let (changes, _) = play.server().changes_since(0);
        let is_told = |key: &Key| key.resource.ends_with("/events");
        let by_second = changes.iter().filter(|it| it.actor == "operator-2");
        let mut acted = by_second.filter(|it| !it.key.resource.ends_with("/leases"));
        assert!(acted.all(|it| is_told(&it.key)), "it changes nothing");
        // Longer than what lasts is told again.
        for _ in 0..70 {
            play.tick().await;
        }
        let told = play.server().all("events.k8s.io/events").into_iter().filter(|(_, event)| {
            event["reason"] == "OtherOperator" && event["regarding"]["kind"] == "KafkaCluster"
        });
        let told: Vec<_> = told.map(|(_, event)| event["series"]["count"].clone()).collect();
        assert_eq!(told, [Value::Null], "once");
        let metrics = play.world.ask_operator("/metrics").await;
        let counts = |line: &str| {
            let mut words = line.split(' ');
            let is_it =
                ["letterbox_operator_not_ready{", "letterbox_operator_reconciliation_faults"]
                    .iter()
                    .any(|name| line.starts_with(name));
            is_it && words.next_back() != Some("0")
        };
        let counted: Vec<&str> = metrics.lines().filter(|line| counts(line)).collect();
        assert!(counted.is_empty(), "what another one does is no fault: {counted:?}");
        // Somebody deletes the Lease.
        let lease = Key::new("coordination.k8s.io/leases", "ns", "letterbox-operator-of-namespace");
        play.server().remove("thief", &lease);
        let holder = |play: &Play| play.server().get(&lease).map(|it| it["spec"].clone());
        let is_first =
            |play: &Play| holder(play).is_some_and(|it| it["holderIdentity"] == "ns/one");
        play.until("it is there again, and nobody else has it", 25, is_first).await;
        // The pod of the first one is replaced by another one, as by an upgrade.
        play.start_release(&Faults::none(), Some("one"), "letterbox:1");
        let (_, ended) = play.operators.remove(0);
        ended.abort();
        play.until("the next one leads", 40, |play| {
            let own = play.server().get(&Key::new("coordination.k8s.io/leases", "ns", "one"));
            own.is_some_and(|it| it["spec"]["holderIdentity"] == "operator-3")
        })
        .await;
        // Longer than an operator that begins is given for its first look at a cluster.
        for _ in 0..70 {
            play.tick().await;
        }
        assert!(is_first(&play));
        // It ends. The image of the cluster stays, and so does what is said of its topics.
        let (_, ended) = play.operators.remove(1);
        ended.abort();
        play.edit(|cluster| cluster["spec"]["config"] = json!({"num.partitions": "4"}));
        for _ in 0..120 {
            play.tick().await;
            assert_eq!(topics_that_are(&play, "ClusterNotChecked"), 0);
        }
        assert_eq!(play.monitor.restarts, 2, "the other one acts");
        assert!(are_ready(&play), "{}", play.told());
        let set = play.server().get(&Key::new("apps/statefulsets", "ns", "demo-broker-0")).unwrap();
        let image = &set["spec"]["template"]["spec"]["containers"][0]["image"];
        assert_eq!(image, "letterbox:1");
    });
}

#[test]
fn a_pod_of_somebody_else_that_gets_clients_is_told() {
    play(async |mut play: Play| {
        make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
        play.start(&Faults::none(), false);
        play.until("it is ready", 120, Play::is_settled).await;
        let (server, key) = (play.server().clone(), Key::new("/pods", "ns", "other"));
        let own = server.get(&Key::new("/pods", "ns", "demo-broker-0-0")).unwrap();
        let labels = own["metadata"]["labels"].clone();
        let with = |labels: &Value| {
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"labels": labels},
                "spec": {"containers": [], "volumes": []},
            })
        };
        let is_told = |play: &Play| {
            let degraded = play.condition("Degraded");
            let message = degraded["message"].as_str().unwrap_or_default();
            degraded["reason"] == "UnknownPod" && message.starts_with("pod other ")
        };
        server.create("person", &key, with(&labels)).unwrap();
        play.until("it is told", 10, is_told).await;
        assert_eq!(play.condition("Ready")["status"], "True");
        server.remove("person", &key);
        play.until("it is gone", 30, Play::is_settled).await;
        // No service selects it.
        let mut labels = labels;
        labels["app.kubernetes.io/component"] = json!("backup");
        server.create("person", &key, with(&labels)).unwrap();
        for _ in 0..70 {
            play.tick().await;
            assert!(!is_told(&play));
        }
    });
}

#[test]
fn volume_claims_of_a_broker_that_there_is_not_are_told_and_stay() {
    play(async |mut play: Play| {
        make_cluster_of(&play, json!({"storage": {"size": "1Gi", "deletionPolicy": "Delete"}}));
        play.start(&Faults::none(), false);
        play.until("it is ready", 120, Play::is_settled).await;
        let (server, own) = (play.server().clone(), claim_of(0, "data"));
        let mut other = server.get(&own).unwrap();
        other["metadata"] = json!({"labels": other["metadata"]["labels"]});
        let others = [claim_of(7, "data"), Key { name: "restored".into(), ..own.clone() }];
        others.iter().for_each(|key| drop(server.create("person", key, other.clone()).unwrap()));
        let told = |play: &Play| {
            let degraded = play.condition("Degraded");
            let message = degraded["message"].as_str().unwrap_or_default().to_owned();
            (degraded["reason"] == "UnusedVolumeClaims").then_some(message)
        };
        let both = "volume claims data-demo-broker-7-0, restored have this cluster's label";
        let is_told = |play: &Play| told(play).is_some_and(|it| it.starts_with(both));
        play.until("it is told", 130, is_told).await;
        assert_eq!(play.condition("Ready")["status"], "True");
        server.remove("person", &others[1]);
        let is_one = |play: &Play| told(play).is_some_and(|it| !it.contains("restored"));
        play.until("one of them is gone", 130, is_one).await;
        server.delete("person", &clusters("demo"), None, None).unwrap();
        play.until("it is gone", 130, |_| server.get(&clusters("demo")).is_none()).await;
        play.until("its own claim goes", 60, |_| server.get(&own).is_none()).await;
        assert!(server.get(&others[0]).is_some());
        let events = server.all("events.k8s.io/events");
        let mut notes = events.iter().filter_map(|(_, event)| event["note"].as_str());
        let but = "except those of the claims data-demo-broker-7-0";
        assert!(notes.any(|note| note.contains(but)), "and what stays is told");
    });
}

#[test]
fn an_image_that_somebody_changes_again_and_again_is_restored_once_an_hour() {
    play(async |mut play: Play| {
        make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
        play.start(&Faults::none(), false);
        play.until("it is ready", 120, Play::is_settled).await;
        let (server, key) = (play.server().clone(), Key::new("/pods", "ns", "demo-broker-0-0"));
        let change = |image: &str| {
            server.edit("person", &key, |pod| {
                pod["spec"]["containers"][0]["image"] = json!(image);
                let image = json!({"f:containers": {"k:{\"name\":\"kafka\"}": {"f:image": {}}}});
                let made = json!({"f:metadata": {"f:ownerReferences": {}}});
                pod["metadata"]["managedFields"] = json!([
                    {"manager": "kube-controller-manager", "operation": "Update", "fieldsV1": made},
                    {
                        "manager": "kubectl", "operation": "Update", "time": "2999-01-01T00:00:00Z",
                        "fieldsV1": {"f:spec": image},
                    },
                ]);
            });
        };
        change("other:1");
        let is_restored = |restarts: u64| {
            move |play: &Play| play.monitor.restarts == restarts && play.is_settled()
        };
        play.until("it is restored", 130, is_restored(1)).await;
        assert_eq!(events_of(&play, "ImageChanged"), Vec::<String>::new(), "it was the first time");
        change("other:1");
        let is_told = |play: &Play| play.condition("Degraded")["reason"] == "ImageChanged";
        play.until("it is told", 130, is_told).await;
        let message = play.condition("Degraded")["message"].clone();
        assert!(message.to_string().contains("broker 0 runs image other:1"), "{message}");
        for _ in 0..1800 {
            play.tick().await;
            assert_eq!(play.monitor.restarts, 1);
            assert!(is_told(&play) && play.condition("Ready")["status"] == "True");
        }
        play.until("it is restored an hour later", 1900, is_restored(2)).await;
        // One with which the broker does not serve is not left for so long.
        change(NEVER_SERVES);
        play.until("it is told", 130, is_told).await;
        let is_left = || {
            let pod = server.get(&key);
            pod.is_some_and(|pod| pod["spec"]["containers"][0]["image"] == NEVER_SERVES)
        };
        for _ in 0..60 {
            play.tick().await;
            assert!(is_left(), "it may serve yet");
        }
        play.until("it does not serve", 130, |play| !is_left() && play.is_settled()).await;
    });
}

#[test]
fn a_pass_that_ends_with_an_error_is_told_where_it_can_be() {
    // Calls that are refused, of which kind, and what is said then.
    for (kind, is_write, reason, words) in [
        ("KafkaCluster", false, "NotChecked", "read the cluster: "),
        ("KafkaCluster", true, "StatusNotWritten", "write the status: "),
        ("KafkaTopic", true, "StatusNotWritten", "write the status: "),
    ] {
        play(async |play: Play| is_told_where_it_can_be(play, kind, is_write, reason, words).await);
    }
}

async fn is_told_where_it_can_be(
    mut play: Play,
    kind: &str,
    is_write: bool,
    reason: &str,
    words: &str,
) {
    let faults = Faults::none();
    play.kafka = Some(Kafka::start().await);
    make_topics(&play, 1, |_| json!({}));
    make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
    play.start(&faults, false);
    let are_ready = |play: &Play| play.is_settled() && topics_that_are(play, "Ready") == 1;
    play.until("they are ready", 240, are_ready).await;
    let (object, resource) = match kind {
        "KafkaCluster" => (clusters("demo"), "letterbox.dev/kafkaclusters"),
        _ => (Key::new(TOPIC_OBJECTS, "ns", "t0"), TOPIC_OBJECTS),
    };
    let told = format!("name=\"{}\",reason=\"{reason}\"}} 1", object.name);
    let of_kind = format!("letterbox_operator_reconciliation_faults_total{{kind=\"{kind}\"}} ");
    let count = |metrics: &str| {
        let mut counts = metrics.lines().filter_map(|line| line.strip_prefix(&*of_kind));
        counts.next().map_or(0, |count| count.parse::<u64>().unwrap())
    };
    let before = count(&play.world.ask_operator("/metrics").await);
    faults.set_broken(&[Broken { resource, is_write, how: How::Refused }]);
    play.server().edit("person", &object, |it| match kind {
        "KafkaCluster" => it["spec"]["config"] = json!({"num.partitions": "3"}),
        _ => it["spec"]["partitions"] = json!(2),
    });
    let is_told = |play: &Play| {
        let events = play.server().all("events.k8s.io/events");
        events.iter().any(|(_, event)| {
            let note = event["note"].as_str().unwrap_or_default();
            event["reason"] == reason && event["type"] == "Warning" && note.contains(words)
        })
    };
    play.until("an event tells it", 10, is_told).await;
    let conditions = play.server().get(&object).unwrap()["status"]["conditions"].clone();
    let has = |type_: &str, status: &str| {
        conditions.as_array().unwrap().iter().any(|condition| {
            let is_it = condition["type"] == type_ && condition["reason"] == reason;
            is_it && condition["status"] == status
        })
    };
    let in_conditions = (has("Ready", "Unknown"), has("Degraded", "True"));
    assert_eq!(in_conditions, (!is_write, !is_write), "{conditions}");
    // Where nothing can be written, there is what was before.
    let waits = waits_of(&play, &object);
    let in_waits =
        waits.iter().any(|wait| wait["reason"] == reason && wait["subject"] == "cluster");
    assert_eq!((in_waits, waits.len()), (!is_write, usize::from(!is_write)), "{waits:?}");
    for _ in 0..20 {
        play.tick().await;
        let metrics = play.world.ask_operator("/metrics").await;
        assert!(metrics.contains(&told), "{metrics}");
    }
    let counted = count(&play.world.ask_operator("/metrics").await);
    assert!(counted >= before + 4, "{before}, {counted}");
    let ready = play.world.ask_operator("/readyz").await;
    let says = ready.contains(words) && ready.contains(&format!("every reconcile of a {kind} "));
    assert!(ready.starts_with("HTTP/1.1 503") && says, "{ready}");
    faults.set_broken(&[]);
    // One whose status could not be written said Ready all the time.
    let generation = |it: &Value| it["metadata"]["generation"].clone();
    let (server, of) = (play.server().clone(), object.clone());
    let is_seen = move || {
        let object = server.get(&of).unwrap();
        object["status"]["observedGeneration"] == generation(&object)
    };
    play.until("they are ready again", 60, |play| is_seen() && are_ready(play)).await;
    assert_eq!(waits_of(&play, &object), [] as [Value; 0]);
    play.tick().await;
    let metrics = play.world.ask_operator("/metrics").await;
    assert!(!metrics.contains("letterbox_operator_not_ready{"), "{metrics}");
    assert!(play.world.ask_operator("/readyz").await.ends_with("\r\n\r\nok\n"));
}

#[test]
fn events_that_cannot_be_read_are_told_while_a_cause_may_be_missing() {
    for how in [How::Refused, How::Hangs] {
        play(async |mut play: Play| {
            let faults = Faults::none();
            faults.set_broken(&[Broken { resource: "/events", is_write: false, how }]);
            // There is no such class.
            make_cluster_of(&play, json!({"storage": {"size": "1Gi", "class": "fsat"}}));
            play.start(&faults, false);
            let is_told = |play: &Play| {
                let degraded = play.condition("Degraded");
                let message = degraded["message"].as_str().unwrap_or_default();
                degraded["reason"] == "NotChecked" && message.contains("list events: ")
            };
            play.until("it is told", 30, is_told).await;
            assert_eq!(play.condition("Ready")["reason"], "BrokerStarting", "{}", play.told());
            faults.set_broken(&[]);
            play.until("they are read", 60, |play| !is_told(play)).await;
        });
    }
}

#[test]
fn a_topics_status_that_is_refused_is_not_left_standing_as_if_it_were_true() {
    for seconds in [0, 3] {
        let delay_max = Duration::from_secs(seconds);
        let late = Faults::new(1, "late", Chances { delay_max, ..Chances::default() });
        play(async |play: Play| is_told_that_its_status_is_refused(play, late).await);
    }
}

async fn is_told_that_its_status_is_refused(mut play: Play, faults: Faults) {
    play.kafka = Some(Kafka::start().await);
    make_topics(&play, 1, |_| json!({}));
    make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
    play.start(&faults, false);
    play.until("it is ready", 240, |play| topics_that_are(play, "Ready") == 1).await;
    let resource = TOPIC_OBJECTS;
    faults.set_broken(&[Broken { resource, is_write: true, how: How::Undeclared }]);
    let topic = Key::new(TOPIC_OBJECTS, "ns", "t0");
    play.server().edit("person", &topic, |it| it["spec"]["partitions"] = json!(2));
    let is_told = |play: &Play| topics_that_are(play, "StatusNotWritten") == 1;
    play.until("it is told", 60, is_told).await;
    for _ in 0..10 {
        play.tick().await;
    }
    let writes = play.monitor.writes;
    for _ in 0..30 {
        play.tick().await;
    }
    assert!(play.monitor.writes - writes < 3, "once");
    let events = play.server().all("events.k8s.io/events");
    let told = events.iter().filter(|(_, event)| event["reason"] == "StatusNotWritten");
    let told: Vec<&Value> = told.map(|(_, event)| &event["series"]).collect();
    assert_eq!(told, [&Value::Null], "and by one event");
    let known = play.server().get(&topic).unwrap()["status"].clone();
    assert_eq!((&known["partitions"], &known["topicName"]), (&json!(1), &json!("t0")));
    faults.set_broken(&[]);
    play.until("it is ready again", 60, |play| topics_that_are(play, "Ready") == 1).await;
}

#[test]
fn a_topics_status_of_an_earlier_leader_that_comes_late_takes_nothing_back() {
    play(async |mut play: Play| {
        play.kafka = Some(Kafka::start().await);
        make_topics(&play, 1, |_| json!({"config": {"retention.ms": "1"}}));
        make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
        let earlier = Faults::none();
        play.start(&earlier, false);
        play.until("it is ready", 120, |play| topics_that_are(play, "Ready") == 1).await;
        let topic = Key::new(TOPIC_OBJECTS, "ns", "t0");
        let how = How::Slow(Duration::from_secs(24));
        earlier.set_broken(&[Broken { resource: TOPIC_OBJECTS, is_write: true, how }]);
        let server = play.server().clone();
        let set = |key: &str| {
            server.edit("person", &topic, |it| it["spec"]["config"][key] = json!("5"));
        };
        let keys = || server.get(&topic).unwrap()["status"]["configKeys"].clone();
        set("segment.ms");
        play.tick().await;
        // Its write is on the way; another one leads.
        play.start(&Faults::none(), false);
        set("max.message.bytes");
        play.until("all is known", 8, |_| keys().as_array().is_some_and(|it| it.len() == 3)).await;
        for _ in 0..40 {
            play.tick().await;
            assert_eq!(keys().as_array().map(Vec::len), Some(3), "{}", keys());
        }
    });
}

#[test]
fn a_message_that_changes_all_the_time_is_written_every_few_seconds() {
    play(async |mut play: Play| {
        play.world.open_logs_for_ever();
        make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
        let opens = |play: &Play| {
            let message = play.condition("Ready")["message"].clone();
            message.as_str().is_some_and(|message| message.contains("logs are open"))
        };
        play.until("the broker opens its logs", 60, opens).await;
        let told = |play: &Play| {
            play.server().get(&clusters("demo")).unwrap()["status"]["waits"][0].clone()
        };
        let (before, first) = (play.monitor.writes, told(&play));
        for _ in 0..60 {
            play.tick().await;
        }
        let writes = play.monitor.writes - before;
        assert!((5..=20).contains(&writes), "{writes} writes in a minute");
        let last = told(&play);
        assert_eq!(
            (&last["reason"], &last["subject"]),
            (&json!("BrokerStarting"), &json!("broker 0"))
        );
        assert_eq!(last["since"], first["since"]);
        let (done, total) = (&last["progress"]["done"], &last["progress"]["total"]);
        assert!(done.as_u64() > first["progress"]["done"].as_u64() && total == 5000, "{last}");
        assert!(last["estimatedCompletion"].is_string(), "{last}");
    });
}

#[test]
fn a_restart_that_the_api_server_refuses_reserves_nothing_for_long() {
    play(async |mut play: Play| {
        let faults = Faults::none();
        play.start(&faults, true);
        make_ready(&mut play).await;
        let is_leased = |play: &Play| play.world.leased("demo").is_some();
        faults.set_broken(&[Broken { resource: "/pods", is_write: true, how: How::Refused }]);
        play.edit(|cluster| cluster["spec"]["config"] = json!({"num.partitions": "3"}));
        let is_told = |play: &Play| {
            let told = play.condition("Degraded")["message"].clone();
            told.as_str().is_some_and(|told| told.contains("delete pod"))
        };
        play.until("it is told that no pod may be deleted", 60, is_told).await;
        play.until("nothing is reserved", 2, |play| !is_leased(play)).await;
        faults.set_broken(&[]);
        play.until("a broker is ended", 60, is_leased).await;
        play.until("the new configuration is taken up", 120, Play::is_settled).await;
    });
}

#[test]
fn a_paused_cluster_whose_brokers_may_not_be_evicted_says_so() {
    play(async |mut play: Play| {
        make_ready(&mut play).await;
        let budget = Key::new("policy/poddisruptionbudgets", "ns", "demo-kafka");
        let most =
            |play: &Play| play.server().get(&budget).unwrap()["spec"]["maxUnavailable"].clone();
        assert_eq!(most(&play), 1);
        play.edit(|cluster| cluster["spec"]["config"] = json!({"num.partitions": "3"}));
        play.until("a broker is about to restart", 30, |play| most(play) == 0).await;
        let pause = "letterbox.dev/pause-reconciliation";
        play.edit(|cluster| cluster["metadata"]["annotations"] = json!({pause: "true"}));
        let is_told = |play: &Play| {
            let message = "when the object was paused";
            let mut waits = waits_of(play, &clusters("demo")).into_iter();
            waits.any(|wait| wait["message"].as_str().is_some_and(|it| it.contains(message)))
        };
        play.until("it is told", 90, is_told).await;
        assert_eq!(most(&play), 0);
        play.edit(|cluster| cluster["metadata"]["annotations"] = json!({pause: "false"}));
        play.until("the restarts go on", 120, Play::is_settled).await;
        assert_eq!(most(&play), 1);
    });
}

/// Something valid for the API server, that no parser of ours reads.
fn unreadable(how: u32) -> Value {
    let mut deep = json!(1);
    for _ in 0..140 {
        deep = json!([deep]);
    }
    match how {
        0 => json!({"config": {"a": deep}}),
        _ => json!({"partitions": "three"}),
    }
}

#[test]
fn an_object_that_cannot_be_read_is_told_and_keeps_no_other_waiting() {
    play(async |mut play: Play| {
        play.kafka = Some(Kafka::start().await);
        // Before the operator starts, and while it runs.
        for round in 0..2 {
            for how in 0..2 {
                let mut spec = json!({"clusterRef": {"name": "demo"}});
                spec.as_object_mut().unwrap().extend(unreadable(how).as_object().unwrap().clone());
                let topic = json!({
                    "apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaTopic", "metadata": {},
                    "spec": spec,
                });
                let name = format!("bad-{round}-{how}");
                let key = Key::new("letterbox.dev/kafkatopics", "ns", &name);
                play.server().create("person", &key, topic).unwrap();
            }
            let mut cluster = json!({
                "apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaCluster", "metadata": {},
                "spec": {"storage": {"size": "1Gi"}},
            });
            cluster["spec"]["replicas"] = json!("many");
            play.server().create("person", &clusters(&format!("bad-{round}")), cluster).unwrap();
            if round == 0 {
                make_topics(&play, 3, |_| json!({}));
                make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
                play.until("the others are ready", 60, |play| {
                    play.is_settled() && topics_that_are(play, "Ready") == 3
                })
                .await;
            }
        }
        play.until("it is told", 30, |play| topics_that_are(play, "NotUnderstood") == 2).await;
        // One that was ready says nothing of that any more.
        let (was_ready, server) = (Key::new(TOPIC_OBJECTS, "ns", "t2"), play.server().clone());
        server.edit("person", &was_ready, |it| it["spec"]["partitions"] = json!("three"));
        play.until("it is told too", 30, |play| topics_that_are(play, "NotUnderstood") == 3).await;
        let object = server.get(&was_ready).unwrap();
        let (status, generation) = (&object["status"], &object["metadata"]["generation"]);
        assert_eq!(
            (&status["observedGeneration"], &status["topicName"]),
            (generation, &json!("t2"))
        );
        let unread = json!("NotUnderstood");
        let never_read = server.get(&Key::new(TOPIC_OBJECTS, "ns", "bad-0-1")).unwrap();
        for status in [status, &never_read["status"]] {
            let conditions = status["conditions"].as_array().unwrap().iter();
            let told: Vec<_> =
                conditions.map(|it| (&it["type"], &it["status"], &it["reason"])).collect();
            for (type_, is_so, reason) in [
                ("Ready", "False", &unread),
                ("Progressing", "False", &unread),
                ("Degraded", "True", &unread),
                ("Paused", "False", &json!("NotPaused")),
            ] {
                assert!(told.contains(&(&json!(type_), &json!(is_so), reason)), "{told:?}");
            }
        }
        assert!(status["conditions"][0]["lastTransitionTime"].is_string());
        let [wait] = &*waits_of(&play, &was_ready) else { panic!("{status}") };
        let expected = (&unread, &json!("topic"));
        assert_eq!((&wait["reason"], &wait["subject"]), expected);
        assert!(wait["message"].as_str().is_some_and(|it| it.contains("cannot parse the object")));
        let phase = server.get(&clusters("bad-0")).unwrap()["status"]["phase"].clone();
        assert_eq!(phase, "Not understood");
        for _ in 0..30 {
            play.tick().await;
        }
        let told = server.all("events.k8s.io/events");
        let not_read = told.iter().filter(|(_, event)| event["reason"] == "NotUnderstood");
        let not_read: Vec<&Value> = not_read.map(|(_, event)| &event["series"]).collect();
        assert_eq!(not_read, [&Value::Null; 5], "three topics, and two clusters, and each once");
        server.edit("person", &was_ready, |it| it["spec"]["partitions"] = json!(3));
        let nothing_left = |play: &Play| waits_of(play, &was_ready).is_empty();
        play.until("it can be read again", 30, nothing_left).await;
    });
}

#[test]
fn who_acts_in_one_namespace_begins_nothing_afresh_in_another_one() {
    play(async |mut play: Play| {
        play.kafka = Some(Kafka::start().await);
        play.namespaces = vec!["ns".into(), "other".into()];
        make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
        make_topics(&play, 1, |_| json!({}));
        let server = play.server().clone();
        let waits = Key::new(TOPIC_OBJECTS, "other", "waits");
        let unread = Key::new(TOPIC_OBJECTS, "other", "unread");
        let topic = |spec: Value| {
            json!({"apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaTopic", "metadata": {},
                "spec": spec})
        };
        let good = topic(json!({"clusterRef": {"name": "demo"}}));
        server.create("person", &waits, good).unwrap();
        let are_told = |play: &Play| {
            play.is_settled()
                && topics_that_are(play, "Ready") == 1
                && waits_of(play, &waits).len() == 1
        };
        play.until("all are told", 120, are_told).await;
        let lease =
            Key::new("coordination.k8s.io/leases", "other", "letterbox-operator-of-namespace");
        let lists = server.lists("ns");
        let takes = |second: u32| {
            server.edit("them", &lease, |it| {
                it["spec"]["holderIdentity"] = json!("them/two");
                it["spec"]["leaseTransitions"] = json!(second);
            });
        };
        takes(0);
        for _ in 0..20 {
            play.tick().await;
        }
        // The other operator acts now, and then no longer.
        takes(1);
        let bad = topic(json!({"clusterRef": {"name": "demo"}, "partitions": "three"}));
        server.create("person", &unread, bad).unwrap();
        server.edit("person", &waits, |it| it["spec"]["partitions"] = json!(2));
        play.tick().await;
        let (_, since) = server.changes_since(u64::MAX);
        for _ in 0..40 {
            play.tick().await;
        }
        let (changes, _) = server.changes_since(since);
        let by_us = changes.iter().filter(|it| it.actor.starts_with(OPERATOR));
        let by_us: Vec<&Key> = by_us.map(|it| &it.key).collect();
        let elsewhere =
            |key: &&&Key| key.namespace == "other" && !key.resource.ends_with("/events");
        assert_eq!(by_us.iter().find(elsewhere), None);
        let is_seen = move |play: &Play| {
            let object = play.server().get(&waits).unwrap();
            object["status"]["observedGeneration"] == object["metadata"]["generation"]
                && waits_of(play, &unread).len() == 1
        };
        assert!(!is_seen(&play));
        play.until("it takes over", 50, is_seen).await;
        assert_eq!(server.lists("ns"), lists, "nothing of it is read anew");
    });
}

#[test]
fn what_cannot_be_read_holds_no_namespace_that_is_being_deleted() {
    play(async |mut play: Play| {
        let spec = json!({"storage": {"size": "1Gi", "deletionPolicy": "Delete"}});
        make_topics(&play, 1, |_| json!({"deletionPolicy": "Delete"}));
        make_cluster_of(&play, spec);
        let server = play.server().clone();
        let topic = Key::new(TOPIC_OBJECTS, "ns", "t0");
        let is_held = |key: &Key| {
            let object = server.get(key).unwrap();
            object["metadata"]["finalizers"].as_array().is_some_and(|held| !held.is_empty())
        };
        let both = [clusters("demo"), topic.clone()];
        play.until("both are held", 60, |_| both.iter().all(is_held)).await;
        server.edit("person", &both[0], |it| it["spec"]["replicas"] = json!("many"));
        server.edit("person", &both[1], |it| it["spec"]["partitions"] = json!("three"));
        for _ in 0..15 {
            play.tick().await;
        }
        assert!(both.iter().all(is_held), "nothing of theirs is deleted");
        let namespace = Key::new("/namespaces", "", "ns");
        let held = json!({"finalizers": ["kubernetes"]});
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": held});
        server.create("person", &namespace, object).unwrap();
        server.delete("person", &namespace, None, None).unwrap();
        play.until("they are let go", 20, |_| !both.iter().any(is_held)).await;
    });
}

#[test]
fn what_others_label_as_a_clusters_own_makes_no_pass_large() {
    play(async |mut play: Play| {
        make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
        play.start(&Faults::none(), false);
        play.until("it is ready", 120, Play::is_settled).await;
        let server = play.server().clone();
        let keys: Vec<Key> =
            (0..3).map(|it| Key::new("/configmaps", "ns", &format!("large-{it}"))).collect();
        for key in &keys {
            let labels = json!({"letterbox.dev/cluster": "demo"});
            let object = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"labels": labels},
                "data": {"a": "x".repeat(1 << 20)},
            });
            server.create("person", key, object).unwrap();
        }
        server.remove("thief", &Key::new("policy/poddisruptionbudgets", "ns", "demo-kafka"));
        play.until("it is told", 30, |play| {
            let degraded = play.condition("Degraded");
            let message = degraded["message"].as_str().unwrap_or_default();
            degraded["reason"] == "NotChecked"
                && message.contains("list ConfigMaps")
                && message.contains("letterbox.dev/cluster=demo")
        })
        .await;
        let is_made = |play: &Play| is_done(play, "budget", "");
        play.until("everything else goes on", 30, is_made).await;
        keys.iter().for_each(|key| server.remove("person", key));
        play.until("it is well again", 30, Play::is_settled).await;
    });
}

#[test]
fn a_topic_whose_object_cannot_be_read_is_deleted_by_no_double() {
    const DELETE_TOPICS: i16 = 20;
    play(async |mut play: Play| {
        let kafka = Kafka::start().await;
        play.kafka = Some(kafka.clone());
        let spec = |_| json!({"topicName": "orders", "deletionPolicy": "Delete"});
        make_topics(&play, 1, spec);
        make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
        play.start(&Faults::none(), false);
        play.until("it is ready", 120, |play| topics_that_are(play, "Ready") == 1).await;
        let server = play.server().clone();
        let topic = |name: &str| Key::new("letterbox.dev/kafkatopics", "ns", name);
        server.edit("person", &topic("t0"), |it| it["spec"]["partitions"] = json!("three"));
        play.until("it is told", 30, |play| topics_that_are(play, "NotUnderstood") == 1).await;
        let mut double = server.get(&topic("t0")).unwrap();
        double["spec"]["partitions"] = json!(1);
        double["metadata"] = json!({});
        double["status"] = json!(null);
        server.create("person", &topic("double"), double).unwrap();
        let is_told = |play: &Play| topics_that_are(play, "ResourceConflict") == 1;
        play.until("it does not own the topic", 30, is_told).await;
        server.delete("person", &topic("double"), None, None).unwrap();
        play.until("it is gone", 30, |_| server.get(&topic("double")).is_none()).await;
        assert_eq!(kafka.asked(DELETE_TOPICS), 0);
        server.edit("person", &topic("t0"), |it| it["spec"]["partitions"] = json!(1));
        play.until("it is read again", 30, |play| topics_that_are(play, "Ready") == 1).await;
        assert_eq!(kafka.asked(CREATE_TOPICS), 1);
    });
}

/// The volume of the one broker is lost, and it comes back with an empty one that a person made,
/// while no operator runs.
async fn comes_back_empty(play: &mut Play) {
    let claim = claim_of(0, "data");
    let mut empty = play.server().get(&claim).unwrap();
    empty["status"] = json!({});
    let pod = Key::new("/pods", "ns", "demo-broker-0-0");
    play.server().remove("thief", &claim);
    play.server().remove("thief", &pod);
    play.server().create("person", &claim, empty).unwrap();
    for _ in 0..10 {
        play.tick().await;
    }
    let conditions = play.server().get(&pod).unwrap()["status"]["conditions"].clone();
    assert_eq!(conditions[0]["status"], "True", "it serves");
}

#[test]
fn topics_are_not_made_again_before_their_cluster_was_looked_at() {
    play(async |mut play: Play| {
        play.kafka = Some(Kafka::start().await);
        // Which directory the broker had, nobody knows: it starts on any.
        play.world.mute(true);
        make_topics(&play, 2, |_| json!({}));
        make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
        play.start(&Faults::none(), false);
        play.until("they are ready", 120, |play| topics_that_are(play, "Ready") == 2).await;
        play.operators.drain(..).for_each(|(_, task)| task.abort());
        comes_back_empty(&mut play).await;
        let kafka = Kafka::start().await;
        play.kafka = Some(kafka.clone());
        let faults = Faults::none();
        let (resource, how) = ("/persistentvolumeclaims", How::Slow(Duration::from_secs(8)));
        faults.set_broken(&[Broken { resource, is_write: false, how }]);
        play.start(&faults, false);
        play.until("it is told", 60, is_lost).await;
        for _ in 0..90 {
            play.tick().await;
        }
        assert_eq!(
            (kafka.asked(CREATE_TOPICS), topics_that_are(&play, "WaitingForCluster")),
            (0, 2)
        );
        accept(&play, 0);
        play.until("they are made", 120, |play| topics_that_are(play, "Ready") == 2).await;
    });
}

#[test]
fn a_topic_that_vanished_is_made_again_after_a_look_at_its_cluster() {
    for (heals_claims, restarts) in [(true, false), (false, false), (true, true), (false, true)] {
        play(async |mut play: Play| {
            looks_before_it_makes_a_topic_again(&mut play, heals_claims, restarts).await;
        });
    }
}

/// A topic vanishes while neither the claims nor the brokers tell whether the volumes are there. To
/// see the one or the other is enough.
async fn looks_before_it_makes_a_topic_again(play: &mut Play, heals_claims: bool, restarts: bool) {
    let kafka = Kafka::start().await;
    play.kafka = Some(kafka.clone());
    make_topics(play, 1, |_| json!({}));
    make_cluster_of(play, json!({"storage": {"size": "1Gi"}}));
    let faults = Faults::none();
    play.start(&faults, false);
    play.until("it is ready", 120, |play| topics_that_are(play, "Ready") == 1).await;
    let resource = "/persistentvolumeclaims";
    faults.set_broken(&[Broken { resource, is_write: false, how: How::Refused }]);
    play.world.mute(true);
    let env = Env { net: Arc::new(kafka.clone()), ..Env::real() };
    let address = "demo-kafka-bootstrap.ns.svc:9092".to_owned();
    ClientAdmin::new(env, address, Duration::from_secs(10)).delete_topic("t0").await.unwrap();
    let mut topics = 1;
    if restarts {
        play.operators.drain(..).for_each(|(_, task)| task.abort());
        play.start(&faults, false);
        make_topics_from(play, 1, 1, |_| json!({}));
        topics = 2;
    }
    for _ in 0..150 {
        play.tick().await;
    }
    assert_eq!(kafka.asked(CREATE_TOPICS), 1, "what became of the volumes is not known");
    assert_eq!(topics_that_are(play, "ClusterNotChecked"), topics, "and nobody says Ready");
    match heals_claims {
        true => faults.set_broken(&[]),
        false => play.world.mute(false),
    }
    play.until("all is made", 80, |play| topics_that_are(play, "Ready") == topics).await;
    assert!(kafka.asked(CREATE_TOPICS) > 1);
}

/// The topics of the cluster `demo`, each with what is special about it.
fn make_topics(play: &Play, count: u32, special: impl Fn(u32) -> Value) {
    make_topics_from(play, 0, count, special);
}

fn make_topics_from(play: &Play, first: u32, count: u32, special: impl Fn(u32) -> Value) {
    for number in first..first + count {
        let mut spec = json!({"clusterRef": {"name": "demo"}, "partitions": 1});
        spec.as_object_mut().unwrap().extend(special(number).as_object().unwrap().clone());
        let topic = json!({
            "apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaTopic", "metadata": {},
            "spec": spec,
        });
        let key = Key::new("letterbox.dev/kafkatopics", "ns", &format!("t{number}"));
        play.server().create("person", &key, topic).unwrap();
    }
}

/// How many topics have this reason in their Ready condition.
fn topics_that_are(play: &Play, reason: &str) -> usize {
    let is_so = |topic: &Value| {
        let conditions = topic["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().any(|each| each["type"] == "Ready" && each["reason"] == reason)
    };
    let topics = play.server().all("letterbox.dev/kafkatopics");
    topics.iter().filter(|(_, topic)| is_so(topic)).count()
}

#[test]
fn an_operator_that_is_killed_after_any_write_leaves_no_topic_unmade() {
    const TOPICS: u32 = 8;
    let lived = |writes: Option<u64>| {
        let mut written = 0;
        play(async |mut play: Play| {
            play.kafka = Some(Kafka::start().await);
            make_topics(&play, TOPICS, |number| match number % 3 {
                0 => json!({"config": {"retention.ms": "1000"}, "deletionPolicy": "Delete"}),
                1 => json!({"config": {"retention.ms": "2000"}}),
                _ => json!({}),
            });
            make_cluster(&play);
            if let Some(writes) = writes {
                play.start(&Faults::none().killed_after(writes), true);
            }
            let all_ready = |play: &Play| topics_that_are(play, "Ready") == TOPICS as usize;
            play.until("each is ready", 240, |play| all_ready(play) && play.is_settled()).await;
            for (key, topic) in play.server().all("letterbox.dev/kafkatopics") {
                let (spec, status) = (&topic["spec"], &topic["status"]);
                let wanted = spec["config"].as_object().map_or(0, serde_json::Map::len);
                let keys = status["configKeys"].as_array().map_or(0, Vec::len);
                let held = topic["metadata"]["finalizers"].as_array().map_or(0, Vec::len);
                let deletes = usize::from(spec["deletionPolicy"] == "Delete");
                assert_eq!((keys, held), (wanted, deletes), "{}: {status}", key.name);
            }
            written = play.monitor.writes;
        });
        written
    };
    let writes = lived(None);
    assert!(writes > 30, "{writes}");
    let test = "an_operator_that_is_killed_after_any_write_leaves_no_topic_unmade";
    seeds::for_each(6, "operator", test, |seed| {
        lived(Some(seed * 11 % writes));
    });
}

#[test]
fn a_cluster_that_becomes_ready_makes_its_topics_with_few_requests_and_one_write_for_each() {
    const TOPICS: u32 = 1100;
    const REFUSED: u32 = 7;
    play(async |mut play: Play| {
        let kafka = Kafka::start().await;
        play.kafka = Some(kafka.clone());
        make_topics(&play, TOPICS, |number| match number {
            REFUSED => json!({"config": {"cleanup.policy": "nonsense"}}),
            _ if number % 3 == 0 => json!({"config": {"retention.ms": "1000"}}),
            _ => json!({}),
        });
        play.start(&Faults::none(), false);
        play.until("each waits", 60, |play| {
            topics_that_are(play, "WaitingForCluster") == TOPICS as usize
        })
        .await;
        make_cluster(&play);
        // A tick is a second.
        play.until("the cluster is ready", 120, Play::is_settled).await;
        play.until("so is its first topic", 1, |play| topics_that_are(play, "Ready") > 0).await;
        play.until("all but one are ready", 120, |play| {
            topics_that_are(play, "Ready") == TOPICS as usize - 1
                && topics_that_are(play, "InvalidConfig") == 1
        })
        .await;
        // Three for all of them, and the one that is refused is asked for again by itself.
        let asked = kafka.asked(CREATE_TOPICS);
        assert!((4..15).contains(&asked), "{asked} requests");
        let (changes, _) = play.server().changes_since(0);
        let mut writes = std::collections::BTreeMap::<&str, u32>::new();
        for change in changes.iter().filter(|change| change.actor.starts_with(OPERATOR)) {
            if change.key.resource == "letterbox.dev/kafkatopics" {
                *writes.entry(&change.key.name).or_default() += 1;
            }
        }
        let others = writes.iter().filter(|(name, _)| **name != format!("t{REFUSED}"));
        let wrong: Vec<_> = others.filter(|(_, writes)| **writes != 2).collect();
        assert_eq!(wrong, [], "what it waits for, and that it is ready");
        let told = play.server().all("events.k8s.io/events");
        let made = told.iter().filter(|(_, event)| event["reason"] == "TopicCreated").count();
        assert_eq!(made, TOPICS as usize - 1, "each is told");
    });
}

#[test]
fn a_watch_that_is_late_makes_no_pass_go_by_less_than_the_operator_wrote_itself() {
    // Few enough that none waits for its turn until the watch has caught up.
    const TOPICS: u32 = 12;
    let test = "a_watch_that_is_late_makes_no_pass_go_by_less_than_the_operator_wrote_itself";
    seeds::for_each(4, "operator", test, |seed| {
        play(async |mut play: Play| {
            play.kafka = Some(Kafka::start().await);
            let config = json!({"config": {"retention.ms": "1000"}, "deletionPolicy": "Delete"});
            make_topics(&play, TOPICS, |number| match number % 3 {
                0 => config.clone(),
                1 => json!({"deletionPolicy": "Delete"}),
                _ => json!({}),
            });
            make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
            let late = Chances { delay_max: Duration::from_secs(3), ..Chances::default() };
            play.start(&Faults::new(seed, "late", late), false);
            let all_ready = |play: &Play| topics_that_are(play, "Ready") == TOPICS as usize;
            play.until("each is ready", 240, all_ready).await;
            for _ in 0..30 {
                play.tick().await;
            }
            assert_eq!(play.server().written_behind(TOPIC_OBJECTS), []);
        });
    });
}

#[test]
fn a_topic_that_is_deleted_while_it_is_made_is_deleted() {
    const DELETE_TOPICS: i16 = 20;
    play(async |mut play: Play| {
        let kafka = Kafka::start().await;
        play.kafka = Some(kafka.clone());
        kafka.hold(Some(CREATE_TOPICS));
        make_topics(&play, 20, |_| json!({"deletionPolicy": "Delete"}));
        make_cluster(&play);
        play.start(&Faults::none(), false);
        play.until("all are on their way, with one request", 60, |_| kafka.holds_one()).await;
        let topic = Key::new("letterbox.dev/kafkatopics", "ns", "t3");
        assert!(play.server().get(&topic).unwrap()["metadata"]["finalizers"].is_array());
        play.server().delete("person", &topic, None, None).unwrap();
        for _ in 0..5 {
            play.tick().await;
            assert!(play.server().get(&topic).is_some(), "it is held");
        }
        kafka.hold(None);
        play.until("the others are ready", 60, |play| topics_that_are(play, "Ready") == 19).await;
        play.until("it is gone", 60, |play| play.server().get(&topic).is_none()).await;
        assert_eq!(kafka.asked(DELETE_TOPICS), 1, "and its topic with it");
    });
}

#[test]
fn changes_that_are_not_answered_are_tried_one_at_a_time_and_hold_up_no_look() {
    play(async |_: Play| {
        let kafka = Kafka::start().await;
        kafka.hold(Some(CREATE_TOPICS));
        let env = Env { net: Arc::new(kafka.clone()), ..Env::real() };
        let patience = Duration::from_secs(10);
        let admin = ClientAdmin::new(env, "demo-kafka-bootstrap.ns.svc:9092".into(), patience);
        let make = async |number: u32| {
            let name = format!("t{number}");
            let began = tokio::time::Instant::now();
            let made = admin.create_topics(&[NewTopic { name, ..NewTopic::default() }]).await;
            assert!(matches!(made, Err(AdminError::Unreachable(_))), "{made:?}");
            began.elapsed()
        };
        futures::future::join_all((0..16).map(make)).await;
        let waited = futures::future::join_all((0..200).map(make)).await;
        let waits = waited.iter().filter(|waited| !waited.is_zero()).count();
        assert!(waits <= 1, "{waits} calls wait at a time");
        let began = tokio::time::Instant::now();
        assert_eq!(admin.describe_topic("t1").await, Ok(None));
        assert!(began.elapsed() < Duration::from_secs(1));
        kafka.hold(None);
        let made = async || {
            let topic = NewTopic { name: "late".into(), replicas: Some(1), ..NewTopic::default() };
            admin.create_topics(&[topic]).await.is_ok()
        };
        for _ in 0..10 {
            tokio::time::sleep(TICK).await;
            if made().await {
                return;
            }
        }
        panic!("it goes on after a pause");
    });
}

fn claim_of(broker: u32, volume: &str) -> Key {
    Key::new("/persistentvolumeclaims", "ns", &format!("{volume}-demo-broker-{broker}-0"))
}

fn accept(play: &Play, broker: usize) {
    play.edit(|cluster| {
        let name = cluster["status"]["nodes"][broker]["dataLoss"].clone();
        cluster["metadata"]["annotations"] = json!({"letterbox.dev/accept-data-loss": name});
    });
}

fn is_lost(play: &Play) -> bool {
    play.condition("Degraded")["reason"] == "DataLost"
}

/// Four volumes are lost, each in another way, and accepted: a claim and its pod, with the
/// metadata, beside partitions that are kept; a claim under a broker that serves; a volume under a
/// broker that serves; what is on a volume, while its claim stays.
async fn lose_and_accept(play: &mut Play, seconds: u64) {
    let server = play.server().clone();
    for (broker, volume) in [(0, "data"), (1, "data-1"), (2, "data"), (1, "data")] {
        let claim = claim_of(broker, volume);
        let pod = Key::new("/pods", "ns", &format!("demo-broker-{broker}-0"));
        match (broker, volume) {
            (0, _) => {
                server.remove("thief", &claim);
                server.remove("thief", &pod);
            }
            (1, "data-1") => server.remove("thief", &claim),
            (1, _) => play.world.empty(&claim, &pod),
            _ => server.edit("thief", &claim, |claim| claim["status"]["phase"] = json!("Lost")),
        }
        play.until("it is told", seconds, is_lost).await;
        accept(play, broker as usize);
        play.until("it goes on", seconds, Play::is_settled).await;
        let losses = &play.cluster()["status"]["nodes"][broker as usize]["losses"];
        assert!(losses.is_null(), "{losses}: {}", play.told());
    }
}

#[test]
fn an_operator_that_is_killed_after_any_write_goes_on_after_an_accepted_loss() {
    let lived = |writes: Option<u64>| {
        let mut written = 0;
        play(async |mut play: Play| {
            let cluster = json!({
                "apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaCluster", "metadata": {},
                "spec": {"replicas": 3, "storage": {
                    "size": "1Gi", "volumes": [{"name": "data"}, {"name": "data-1"}],
                }},
            });
            play.server().create("person", &clusters("demo"), cluster).unwrap();
            play.until("it is ready", 120, Play::is_settled).await;
            play.operators.drain(..).for_each(|(_, task)| task.abort());
            let before = play.monitor.writes;
            if let Some(writes) = writes {
                play.start(&Faults::none().killed_after(writes), true);
            }
            lose_and_accept(&mut play, 120).await;
            written = play.monitor.writes - before;
        });
        written
    };
    let writes = lived(None);
    assert!(writes > 12, "{writes}");
    let test = "an_operator_that_is_killed_after_any_write_goes_on_after_an_accepted_loss";
    seeds::for_each(6, "operator", test, |seed| {
        lived(Some(seed * 7 % writes));
    });
}

#[test]
fn a_loss_is_told_though_no_broker_was_ever_heard() {
    play(async |mut play: Play| {
        play.world.mute(true);
        make_cluster(&play);
        let is_ready = |play: &Play| play.condition("Ready")["status"] == "True";
        play.until("it is ready", 120, is_ready).await;
        // Its pod is not ready when the claim goes.
        let claim = claim_of(1, "data");
        play.server().remove("thief", &claim);
        play.server().remove("thief", &Key::new("/pods", "ns", "demo-broker-1-0"));
        play.until("it is told", 60, is_lost).await;
        for _ in 0..60 {
            play.tick().await;
        }
        assert!(is_lost(&play) && play.server().get(&claim).is_none(), "{}", play.told());
        accept(&play, 1);
        play.until("it goes on", 120, is_ready).await;
        play.world.mute(false);
        play.until("it is settled", 120, Play::is_settled).await;
    });
}

#[test]
fn a_broker_whose_volume_is_gone_is_not_restarted_before_that_is_accepted() {
    play(async |mut play: Play| {
        make_cluster(&play);
        play.until("it is ready", 120, Play::is_settled).await;
        let claim = claim_of(1, "data");
        play.server().edit("thief", &claim, |claim| claim["status"]["phase"] = json!("Lost"));
        play.until("it is told", 60, is_lost).await;
        play.edit(|cluster| cluster["spec"]["config"] = json!({"num.partitions": "3"}));
        for _ in 0..120 {
            play.tick().await;
        }
        assert!(is_lost(&play), "{}", play.told());
        assert_eq!(play.monitor.restarts, 2, "the other two");
        let loss = play.cluster()["status"]["nodes"][1]["losses"][0].clone();
        assert_eq!((&loss["reason"], &loss["held"]), (&json!("VolumeGone"), &json!(true)));
        accept(&play, 1);
        play.until("it goes on", 120, Play::is_settled).await;
        assert_eq!(play.monitor.restarts, 3);
    });
}

/// What admission may do: it pins images, has its own labels, annotations, resources and policies,
/// and takes away annotations that it does not know.
fn rewrite(key: &Key, object: &mut Value) {
    let at = |object: &mut Value, path: &str, value: Value| {
        if let Some(field) = object.pointer_mut(path) {
            *field = value;
        }
    };
    for path in ["/metadata/annotations", "/spec/template/metadata/annotations"] {
        if !key.resource.contains("kafka") && !key.resource.ends_with("claims") {
            at(object, path, json!({}));
        }
    }
    if !["/services", "apps/statefulsets", "/configmaps", "/serviceaccounts"]
        .contains(&key.resource.as_str())
    {
        return;
    }
    at(object, "/metadata/labels/app.kubernetes.io~1name", json!("kafka"));
    if let Some(labels) = object["metadata"]["labels"].as_object_mut() {
        labels.remove("app.kubernetes.io/part-of");
    }
    match key.resource.as_str() {
        "/services" => {
            at(object, "/spec/internalTrafficPolicy", json!("Local"));
            object["spec"]["selector"]["admitted"] = json!("1");
        }
        "apps/statefulsets" => {
            let container = "/spec/template/spec/containers/0";
            at(object, &format!("{container}/image"), json!("mirror/letterbox@sha256:5eed"));
            at(object, &format!("{container}/resources"), json!({"limits": {"cpu": "2"}}));
            at(object, &format!("{container}/command/0"), json!("/usr/bin/letterbox"));
        }
        _ => {}
    }
}

#[test]
fn what_admission_makes_of_objects_is_left_alone_and_what_people_make_of_them_is_put_back() {
    play(async |mut play: Play| {
        play.server().admit_with(rewrite);
        let spec = json!({
            "storage": {"size": "1Gi"},
            "resources": {"requests": {"memory": "512Mi"}, "limits": {"cpu": "0.0001"}},
        });
        make_cluster_of(&play, spec);
        let at_rest = async |play: &mut Play| {
            play.until("it is settled", 120, Play::is_settled).await;
            play.is_at_rest().await;
            let before = play.server().writes_asked();
            for _ in 0..90 {
                play.tick().await;
            }
            assert_eq!(play.server().writes_asked(), before, "requests in 90 s of rest");
        };
        at_rest(&mut play).await;
        // A new operator knows as much.
        let before = play.server().writes_asked();
        play.operators.drain(..).for_each(|(_, task)| task.abort());
        play.until("the Lease is free", 60, |_| true).await;
        for _ in 0..60 {
            play.tick().await;
        }
        assert_eq!(play.server().writes_asked(), before, "writes of a new operator");

        let server = play.server().clone();
        let key = |resource: &str, name: &str| Key::new(resource, "ns", name);
        let (set, service) =
            (key("apps/statefulsets", "demo-broker-0"), key("/services", "demo-kafka-bootstrap"));
        let edits: [(&Key, &str, Value, Value); 5] = [
            (&service, "/spec/selector/letterbox.dev~1cluster", json!("other"), json!("demo")),
            (&service, "/spec/publishNotReadyAddresses", json!(true), json!(false)),
            (&service, "/metadata/labels/app.kubernetes.io~1instance", json!("x"), json!("demo")),
            (&set, "/spec/replicas", json!(0), json!(1)),
            // Admission has the last word, and it is asked again.
            (&set, "/spec/template/spec/terminationGracePeriodSeconds", json!(1), json!(60)),
        ];
        for (key, path, changed, expected) in edits {
            server.edit("person", key, |object| *object.pointer_mut(path).unwrap() = changed);
            let is_back =
                |play: &Play| play.server().get(key).unwrap().pointer(path) == Some(&expected);
            play.until(path, 30, is_back).await;
            at_rest(&mut play).await;
        }
        // What the spec asks for goes through.
        let restarts = play.monitor.restarts;
        play.edit(|cluster| cluster["spec"]["config"] = json!({"num.partitions": "3"}));
        play.until("it is taken up", 60, |play| play.monitor.restarts == restarts + 1).await;
        at_rest(&mut play).await;
        assert_eq!(play.monitor.restarts, restarts + 1);
    });
}

#[test]
fn the_monitor_sees_what_an_operator_must_not_do() {
    play(async |mut play: Play| {
        make_cluster(&play);
        play.until("it is ready", 120, Play::is_settled).await;
        play.until("it is in sync", 120, Play::is_in_sync).await;
        let key = |resource: &str, name: &str| Key::new(resource, "ns", name);
        let server = play.server().clone();
        let pod = |id: u32| format!("demo-broker-{id}-0");
        server.delete(OPERATOR, &key("/pods", &pod(0)), None, None).unwrap();
        assert_eq!(play.monitor.look(&play.world, vec![]), []);
        server.delete(OPERATOR, &key("/pods", &pod(1)), None, None).unwrap();
        let claim = key("/persistentvolumeclaims", "data-demo-broker-2-0");
        let object = server.get(&claim).unwrap();
        server.delete(OPERATOR, &claim, None, None).unwrap();
        server.delete(OPERATOR, &key("/pods", &pod(2)), None, None).unwrap();
        server.remove("kubernetes", &claim);
        server.create(OPERATOR, &claim, object).unwrap();
        assert_eq!(
            play.monitor.look(&play.world, vec![]),
            [
                Violation::TwoBrokersDown { ended: pod(1), down: pod(0) },
                Violation::RecordsDeleted { claim: claim.name.clone() },
                Violation::RecordsEnded { ended: pod(2), claim: claim.name.clone() },
                Violation::LossHealedOver { claim: claim.name.clone() },
            ]
        );
        // Who accepts a loss accepts that of no other volume, and not the next one of the same.
        let (first, second) = (claim_of(0, "data"), claim_of(1, "data"));
        let object = server.get(&first).unwrap();
        server.remove("thief", &first);
        server.remove("thief", &second);
        play.edit(|cluster| {
            cluster["status"]["nodes"][0]["losses"] = json!([{"name": "a", "volume": "data"}]);
        });
        play.edit(|cluster| {
            cluster["metadata"]["annotations"] = json!({"letterbox.dev/accept-data-loss": "a"});
        });
        let healed = |play: &mut Play, claim: &Key| {
            server.create(OPERATOR, claim, object.clone()).unwrap();
            play.monitor.look(&play.world, vec![])
        };
        let violation = |claim: &Key| [Violation::LossHealedOver { claim: claim.name.clone() }];
        assert_eq!(healed(&mut play, &first), []);
        assert_eq!(healed(&mut play, &second), violation(&second));
        server.remove("thief", &first);
        assert_eq!(healed(&mut play, &first), violation(&first));
    });
}

#[test]
fn the_monitor_sees_what_an_operator_must_not_do_to_topics() {
    play(async |mut play: Play| {
        let kafka = Kafka::start().await;
        play.kafka = Some(kafka.clone());
        make_topics(&play, 5, |number| match number {
            0 => json!({}),
            _ => json!({"deletionPolicy": "Delete"}),
        });
        make_cluster_of(&play, json!({"storage": {"size": "1Gi"}}));
        play.start(&Faults::none(), false);
        play.until("they are ready", 120, |play| topics_that_are(play, "Ready") == 5).await;
        play.operators.drain(..).for_each(|(_, task)| task.abort());
        let server = play.server().clone();
        let topic = |number: u32| Key::new(TOPIC_OBJECTS, "ns", &format!("t{number}"));
        let ready = json!([{"type": "Ready", "status": "True", "observedGeneration": 2}]);
        server.edit("person", &topic(0), |it| it["spec"]["partitions"] = json!(2));
        server.edit(OPERATOR, &topic(0), |it| it["status"]["conditions"] = ready);
        // The first one is not to be deleted, and the second one goes.
        server.delete("person", &topic(1), None, None).unwrap();
        let env = Env {
            net: Arc::new(WorldNet::new(play.world.clone(), play.kafka.clone())),
            ..Env::real()
        };
        let address = "demo-kafka-bootstrap.ns.svc:9092".to_owned();
        let admin = ClientAdmin::new(env, address, Duration::from_secs(10));
        admin.delete_topic("t0").await.unwrap();
        admin.delete_topic("t1").await.unwrap();
        server.edit(OPERATOR, &topic(1), |it| it["metadata"]["finalizers"] = json!([]));
        // The third one is let go as it is, and so is the fourth one, which somebody else holds.
        for number in [2, 3] {
            let held = json!(["letterbox.dev/delete-topic", "example.com/backup"]);
            server.edit("person", &topic(number), |it| it["metadata"]["finalizers"] = held);
        }
        server.delete("person", &topic(2), None, None).unwrap();
        let kept = json!(["example.com/backup"]);
        server.edit(OPERATOR, &topic(2), |it| it["metadata"]["finalizers"] = kept);
        let kept = json!(["letterbox.dev/delete-topic"]);
        server.edit(OPERATOR, &topic(3), |it| it["metadata"]["finalizers"] = kept);
        let name = |number: u32| format!("t{number}");
        let finalizer = "example.com/backup".to_owned();
        assert_eq!(
            play.monitor.look(&play.world, kafka.take_about()),
            [
                Violation::ReadyUnchecked { topic: name(0) },
                Violation::TopicDeleted { topic: name(0) },
                Violation::LetGoUnchecked { topic: name(2) },
                Violation::OthersLetGo { object: name(3), finalizer },
            ]
        );
    });
}

/// Brokers that ask the active controller, and say after so long why they have no answer.
struct Slow(Duration);

impl Net for Slow {
    fn bind<'a>(&'a self, _: &'a str, _: u16) -> BoxFuture<'a, io::Result<BoxListener>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::Unsupported.into())))
    }

    fn connect<'a>(&'a self, _: &'a str, _: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let takes = self.0;
        tokio::spawn(async move {
            let _ = theirs.read(&mut [0; 1024]).await;
            tokio::time::sleep(takes).await;
            let answer = "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"error\":\"it is late\"}";
            let _ = theirs.write_all(answer.as_bytes()).await;
        });
        Box::pin(std::future::ready(Ok(Box::new(Pipe(ours)) as BoxStream)))
    }
}

#[test]
fn a_broker_is_given_the_time_to_say_why_it_has_no_verdict() {
    play(async |_| {
        for (seconds, said) in [(5, "it is late"), (60, "no answer: timed out")] {
            let net = Arc::new(Slow(Duration::from_secs(seconds)));
            let env = Env { net, ..Env::real() };
            let asked = restart_verdict(&env, ("broker", 9644), &[1]).await;
            assert_eq!(asked.map(drop), Err(said.to_owned()), "after {seconds} s");
        }
    });
}
