//! A world in memory: what the planner is driven against in tests, with faults on demand.

use std::collections::BTreeMap;
use std::sync::Mutex;

use kube::ResourceExt as _;
use letterbox_env::BoxFuture;

use super::{Live, Platform};
use crate::admin::{AdminError, Identity, KafkaAdmin, Topic};
use crate::api::{KafkaCluster, Listener, ListenerType, bytes_of};
use crate::desired::{
    Address, Blueprint, BrokerFacts, Facts, Host, broker_ids, broker_name, expected_directories,
    image_of,
};
use crate::observe::{Compared, Observed, ObservedBroker, Part, Run, Volume};
use crate::plan::Step;
use crate::status::Fault;

/// The world. Change it between passes to play a fault.
#[derive(Debug, Default)]
pub struct Model {
    state: Mutex<ModelState>,
}

/// What the model's world consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelState {
    /// Whether services and the like are there.
    pub has_access: bool,
    /// Whether the cluster's object is held.
    pub is_held: bool,
    /// Whether the disruption budget was deleted.
    pub lost_budget: bool,
    /// What cannot be read.
    pub unread: BTreeMap<Part, Fault>,
    /// Services that nothing asks for.
    pub stale: Vec<String>,
    /// Brokers, by id.
    pub brokers: BTreeMap<i32, ModelBroker>,
    /// Whether Kubernetes has chosen no node ports yet.
    pub addresses_pending: bool,
    /// Whether no volume can grow.
    pub fixed_volumes: bool,
    /// Classes in which no volume can be made.
    pub bad_classes: Vec<String>,
    /// Images that cannot be run.
    pub bad_images: Vec<String>,
    /// The operator's default image; empty means `letterbox:default`.
    pub default_image: String,
    /// What the operator's version changes in every configuration, though no spec asks for it.
    pub operator_change: String,
    /// How many more steps work; each one after that fails as if the operator had been killed.
    /// `None`: all.
    pub steps_left: Option<u32>,
    /// Volumes, by the broker that has them. They outlive it.
    pub disks: BTreeMap<i32, ModelDisk>,
    /// How many volumes were ever made, and directories on them.
    pub made: u32,
    /// How often the operator took a serving broker down.
    pub restarts: u32,
}

/// What a broker of the model is defined with, or was started with: the image, what the spec asks
/// for, the whole configuration, and the directories that are expected in it.
pub type Definition = (String, String, String, Vec<String>);

/// A volume and its claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelDisk {
    /// The claim's uid.
    pub uid: String,
    /// What a broker made of it; `None` while it is empty.
    pub directory: Option<String>,
    /// The class that its claim names.
    pub class: Option<String>,
}

/// A broker of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelBroker {
    /// What it would be started with.
    pub defined: Definition,
    /// What it was started with; `None` until the world starts it.
    pub started: Option<Definition>,
    /// Passes of time until it serves.
    pub starts_in: u32,
    /// How often it was started.
    pub starts: u32,
    /// Bytes of its volume.
    pub volume: u64,
}

impl ModelBroker {
    /// Ends it, by whatever hand: the world starts it again by its newest definition.
    pub fn end(&mut self) {
        self.started = None;
    }
}

impl Model {
    /// Looks at the world, or changes it.
    ///
    /// # Panics
    /// When a call before this one panicked.
    pub fn with<T>(&self, f: impl FnOnce(&mut ModelState) -> T) -> T {
        f(&mut self.state.lock().expect("no caller panics while it holds the model"))
    }

    /// Lets some time go by: what has a definition and was not started is started, on a new volume
    /// where there is none; brokers that start come closer to serving, and make an empty volume
    /// theirs unless they expect another one.
    pub fn tick(&self) {
        self.with(|state| {
            let ModelState { brokers, disks, made, bad_classes, .. } = state;
            for (id, broker) in brokers {
                let disk = disks.entry(*id).or_insert_with(|| ModelDisk {
                    uid: format!("claim-{}", next(made)),
                    ..ModelDisk::default()
                });
                if disk.class.as_ref().is_some_and(|class| bad_classes.contains(class)) {
                    continue;
                }
                match &broker.started {
                    Some(started) => {
                        broker.starts_in = broker.starts_in.saturating_sub(1);
                        if broker.starts_in == 0 && started.3.is_empty() && disk.directory.is_none()
                        {
                            disk.directory = Some(format!("directory-{}", next(made)));
                        }
                    }
                    None => {
                        (broker.started, broker.starts_in, broker.starts) =
                            (Some(broker.defined.clone()), 2, broker.starts + 1)
                    }
                }
            }
        });
    }
}

fn next(made: &mut u32) -> u32 {
    *made += 1;
    *made
}

impl ModelState {
    /// Whether a broker serves.
    #[must_use]
    pub fn serves(&self, id: i32) -> bool {
        self.run(id) == Run::Ready
    }

    /// Takes away what a broker has on its volume, and its claim, by whatever accident.
    pub fn lose(&mut self, id: i32) {
        self.disks.remove(&id);
        self.brokers.entry(id).and_modify(ModelBroker::end);
    }

    fn run(&self, id: i32) -> Run {
        let Some(broker) = self.brokers.get(&id) else { return Run::Absent };
        let Some((image, _, _, expected)) = &broker.started else {
            return Run::Starting("it starts".to_owned());
        };
        let directory = self.disks.get(&id).and_then(|disk| disk.directory.clone());
        if self.bad_images.contains(image) {
            Run::Failing { reason: "ImagePullBackOff".to_owned(), message: String::new() }
        } else if broker.starts_in > 0 {
            Run::Starting("it starts".to_owned())
        } else if !expected.is_empty()
            && !directory.is_some_and(|directory| expected.contains(&directory))
        {
            Run::Failing {
                reason: "CrashLoopBackOff".to_owned(),
                message: "the log directory is empty".to_owned(),
            }
        } else {
            Run::Ready
        }
    }

    fn volume(&self, id: i32) -> Option<Volume> {
        let disk = self.disks.get(&id)?;
        let size = self.brokers.get(&id).map_or(0, |broker| broker.volume);
        let is_bound = !disk.class.as_ref().is_some_and(|class| self.bad_classes.contains(class));
        Some(Volume {
            claim: format!("data-{id}"),
            uid: disk.uid.clone(),
            class: disk.class.clone(),
            is_bound,
            is_ending: false,
            requested: size,
            capacity: if is_bound { size } else { 0 },
        })
    }
}

impl Platform for Model {
    type Live = ModelState;

    fn read<'a>(&'a self, _: &'a KafkaCluster) -> BoxFuture<'a, Result<ModelState, Fault>> {
        Box::pin(async { Ok(self.with(|state| state.clone())) })
    }

    fn act<'a>(
        &'a self,
        desired: &'a Blueprint,
        _: &'a ModelState,
        step: &'a Step,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            self.with(|state| {
                if let Some(left) = &mut state.steps_left {
                    let killed = || Fault {
                        reason: "Killed".to_owned(),
                        message: "the operator was killed".to_owned(),
                    };
                    *left = left.checked_sub(1).ok_or_else(killed)?;
                }
                match step {
                    Step::ApplyAccess { .. } => state.has_access = true,
                    Step::ApplyBudget { .. } => state.lost_budget = false,
                    Step::Prune { what } => state.stale.retain(|stale| stale != what),
                    Step::GrowVolume { .. } if state.fixed_volumes => {
                        return Err(Fault {
                            reason: "VolumeNotGrown".to_owned(),
                            message: "the class does not allow it".to_owned(),
                        });
                    }
                    Step::GrowVolume { broker, to, .. } => {
                        state.brokers.entry(*broker).and_modify(|broker| broker.volume = *to);
                    }
                    Step::RemakeClaim { broker, .. } => {
                        state.brokers.remove(broker);
                        state.disks.remove(broker);
                    }
                    Step::HoldObject { held } => state.is_held = *held,
                    Step::ApplyBroker { broker: id, .. } => {
                        let size = bytes_of(&desired.storage.size).unwrap_or_default();
                        let ModelState { brokers, disks, made, .. } = state;
                        let broker = brokers.entry(*id).or_insert_with(|| ModelBroker {
                            volume: size,
                            ..ModelBroker::default()
                        });
                        broker.defined = definition(desired, *id).unwrap_or_default();
                        let class = desired.storage.class.clone();
                        disks.entry(*id).or_insert_with(|| ModelDisk {
                            uid: format!("claim-{}", next(made)),
                            directory: None,
                            class,
                        });
                    }
                    Step::RestartBroker { broker: id, ended } => {
                        let serves = state.serves(*id);
                        if let Some(broker) = state
                            .brokers
                            .get_mut(id)
                            .filter(|broker| broker.starts.to_string() == *ended)
                        {
                            broker.end();
                            state.restarts += u32::from(serves);
                        }
                    }
                    Step::AcceptLoss { .. } => {}
                }
                Ok(())
            })
        })
    }
}

fn definition(desired: &Blueprint, id: i32) -> Option<Definition> {
    let broker = desired.brokers.get(&id)?;
    let expected = broker
        .config
        .overrides
        .iter()
        .find_map(|text| text.strip_prefix("expected.directory.ids="));
    let expected =
        expected.into_iter().flat_map(|ids| ids.split(',')).map(ToOwned::to_owned).collect();
    Some((desired.image.clone(), broker.asked.clone(), broker.config.revision.clone(), expected))
}

impl Live for ModelState {
    fn facts(&self, cluster: &KafkaCluster) -> Facts {
        let name = cluster.name_any();
        let ready = self
            .brokers
            .iter()
            .filter(|(id, _)| self.serves(**id))
            .find_map(|(_, broker)| Some(broker.started.as_ref()?.0.as_str()));
        let brokers = broker_ids(cluster).map(|id| {
            let address = |listener: &Listener| {
                let known = listener.type_ == ListenerType::Internal || !self.addresses_pending;
                known.then(|| Address {
                    host: Host::Named(broker_name(&name, id)),
                    port: listener.port as u16,
                })
            };
            let facts = BrokerFacts {
                data_dir: format!("/data{}", self.operator_change),
                bind: BTreeMap::new(),
                advertised: cluster
                    .spec
                    .listeners
                    .iter()
                    .map(|listener| (listener.name.clone(), address(listener)))
                    .collect(),
                quorum: (broker_name(&name, id), 9090),
                quorum_bind: (String::new(), 9090),
                admin_bind: None,
                directory_ids: expected_directories(cluster, id),
                claim_templates: None,
            };
            (id, facts)
        });
        Facts {
            cluster_id: Some("model".to_owned()),
            image: image_of(
                cluster,
                ready,
                if self.default_image.is_empty() {
                    "letterbox:default"
                } else {
                    &self.default_image
                },
            ),
            brokers: brokers.collect(),
        }
    }

    fn observe(&self, desired: &Blueprint) -> Observed {
        let missing =
            |there: bool, what: &str| if there { Vec::new() } else { vec![what.to_owned()] };
        let brokers = self.brokers.iter().map(|(&id, broker)| {
            let wanted = definition(desired, id);
            let differs = wanted.as_ref().is_some_and(|wanted| *wanted != broker.defined);
            let run = self.run(id);
            let serving = self.disks.get(&id).filter(|_| run == Run::Ready);
            let identity = serving.map(|disk| Identity {
                cluster_id: "model".to_owned(),
                directory_ids: disk.directory.clone().into_iter().collect(),
            });
            let asked = |definition: &Definition| (definition.0.clone(), definition.1.clone());
            let seen = ObservedBroker {
                definition: Compared {
                    missing: Vec::new(),
                    differs: if differs { vec!["definition".to_owned()] } else { Vec::new() },
                },
                is_current: broker.started.as_ref().map(asked) == wanted.as_ref().map(asked),
                is_newest: broker.started == wanted,
                to_end: broker.started.as_ref().map(|_| broker.starts.to_string()),
                run,
                volume: self.volume(id),
                identity,
                image: broker.started.as_ref().map(|(image, ..)| image.clone()),
            };
            (id, seen)
        });
        let mut brokers: BTreeMap<i32, ObservedBroker> = brokers.collect();
        for &id in desired.brokers.keys() {
            brokers.entry(id).or_insert_with(|| ObservedBroker {
                definition: Compared { missing: vec!["broker".to_owned()], differs: Vec::new() },
                volume: self.volume(id),
                ..ObservedBroker::default()
            });
        }
        Observed {
            access: Compared { missing: missing(self.has_access, "services"), differs: Vec::new() },
            budget: Compared { missing: missing(!self.lost_budget, "budget"), differs: Vec::new() },
            stale: self.stale.clone(),
            brokers,
            bootstrap: BTreeMap::new(),
            cluster_id: None,
            is_held: Some(self.is_held),
            unread: self.unread.clone(),
        }
    }
}

/// Topics in memory.
#[derive(Debug, Default)]
pub struct ModelAdmin {
    state: Mutex<AdminState>,
}

/// What the model's cluster holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminState {
    /// Topics, by name.
    pub topics: BTreeMap<String, Topic>,
    /// Whether nobody answers.
    pub unreachable: bool,
    /// How many topics were ever made.
    pub made: u32,
    /// How many calls changed something.
    pub changes: u32,
}

impl ModelAdmin {
    /// Looks at the cluster, or changes it behind the operator's back.
    ///
    /// # Panics
    /// When a call before this one panicked.
    pub fn with<T>(&self, f: impl FnOnce(&mut AdminState) -> T) -> T {
        f(&mut self.state.lock().expect("no caller panics while it holds the model"))
    }

    fn call<'a, T: Send + 'a>(
        &self,
        f: impl FnOnce(&mut AdminState) -> Result<T, AdminError>,
    ) -> BoxFuture<'a, Result<T, AdminError>> {
        let result = self.with(|state| {
            if state.unreachable {
                Err(AdminError::Unreachable("refused".to_owned()))
            } else {
                f(state)
            }
        });
        Box::pin(std::future::ready(result))
    }

    fn change<'a>(
        &self,
        name: &str,
        f: impl FnOnce(&mut Topic),
    ) -> BoxFuture<'a, Result<(), AdminError>> {
        self.call(|state| {
            state.changes += 1;
            let unknown = || AdminError::Refused {
                code: "UNKNOWN_TOPIC_OR_PARTITION".to_owned(),
                message: String::new(),
            };
            f(state.topics.get_mut(name).ok_or_else(unknown)?);
            Ok(())
        })
    }
}

impl KafkaAdmin for ModelAdmin {
    fn cluster_id(&self) -> BoxFuture<'_, Result<Option<String>, AdminError>> {
        self.call(|_| Ok(Some("model".to_owned())))
    }

    fn describe_topic<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Topic>, AdminError>> {
        self.call(|state| Ok(state.topics.get(name).cloned()))
    }

    fn create_topic<'a>(
        &'a self,
        name: &'a str,
        partitions: Option<i32>,
        replicas: i32,
        config: &'a BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<(), AdminError>> {
        self.call(|state| {
            if state.topics.contains_key(name) {
                return Err(AdminError::Refused {
                    code: "TOPIC_ALREADY_EXISTS".to_owned(),
                    message: String::new(),
                });
            }
            if config.values().any(|value| value == "nonsense") {
                return Err(AdminError::Refused {
                    code: "INVALID_CONFIG".to_owned(),
                    message: "nonsense".to_owned(),
                });
            }
            state.made += 1;
            state.changes += 1;
            let topic = Topic {
                id: format!("id-{}", state.made),
                partitions: partitions.unwrap_or(1),
                replicas,
                config: config.clone(),
            };
            state.topics.insert(name.to_owned(), topic);
            Ok(())
        })
    }

    fn create_partitions<'a>(
        &'a self,
        name: &'a str,
        total: i32,
    ) -> BoxFuture<'a, Result<(), AdminError>> {
        self.change(name, |topic| topic.partitions = total)
    }

    fn alter_topic_config<'a>(
        &'a self,
        name: &'a str,
        changes: &'a BTreeMap<String, Option<String>>,
    ) -> BoxFuture<'a, Result<(), AdminError>> {
        self.change(name, |topic| {
            for (key, value) in changes {
                match value {
                    Some(value) => topic.config.insert(key.clone(), value.clone()),
                    None => topic.config.remove(key),
                };
            }
        })
    }

    fn delete_topic<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), AdminError>> {
        self.call(|state| {
            state.changes += 1;
            state.topics.remove(name);
            Ok(())
        })
    }
}
