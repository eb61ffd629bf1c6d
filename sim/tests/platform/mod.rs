//! A platform in memory: what the operator's planner is driven against in tests, with faults on
//! demand.

pub(crate) mod admin;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use kube::ResourceExt as _;
use letterbox_env::BoxFuture;
use letterbox_operator::admin::{Identity, MayEnd};
use letterbox_operator::api::{KafkaCluster, Listener, ListenerType, bytes_of};
use letterbox_operator::desired::objects::ObjectKey;
use letterbox_operator::desired::{
    Address, Blueprint, BrokerFacts, Facts, Host, VolumePlace, broker_ids, broker_name,
    expected_directories, given_up_directories, image_of, lost_metadata_log, volume_names,
};
use letterbox_operator::observe::{
    Asked, Compared, Difference, Observed, ObservedBroker, Part, Run, Volume,
};
use letterbox_operator::plan::Step;
use letterbox_operator::platform::{Live, Platform};
use letterbox_operator::status::Fault;

/// The world. Change it between passes to play a fault.
#[derive(Debug, Default)]
pub(crate) struct Model {
    state: Mutex<ModelState>,
}

/// What the model's world consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ModelState {
    /// Whether services and the like are there.
    pub(crate) has_access: bool,
    /// Whether the cluster's object is held.
    pub(crate) is_held: bool,
    /// Whether the disruption budget was deleted.
    pub(crate) lost_budget: bool,
    /// What cannot be read.
    pub(crate) unread: BTreeMap<Part, Fault>,
    /// The part in which no step ends.
    pub(crate) hangs: Option<Part>,
    /// Services that nothing asks for.
    pub(crate) stale: Vec<ObjectKey>,
    /// Sets with the cluster's label that are none of its brokers.
    pub(crate) strays: Vec<ObjectKey>,
    /// Brokers, by id.
    pub(crate) brokers: BTreeMap<i32, ModelBroker>,
    /// Whether Kubernetes has chosen no node ports yet.
    pub(crate) addresses_pending: bool,
    /// Whether no volume can grow.
    pub(crate) fixed_volumes: bool,
    /// As many bytes as a volume can have, where that is known to it alone.
    pub(crate) volume_max: Option<u64>,
    /// Classes in which no volume can be made.
    pub(crate) bad_classes: Vec<String>,
    /// Whether volumes are made before there is a pod that has them.
    pub(crate) binds_at_once: bool,
    /// Whether Kubernetes has yet to say anything about claims without a volume.
    pub(crate) silent: bool,
    /// Whether brokers do not say who they are.
    pub(crate) mute: bool,
    /// What brokers remember of log directories that they do not find.
    pub(crate) not_found: BTreeMap<String, String>,
    /// Whether brokers that start make no empty volume theirs.
    pub(crate) frozen: bool,
    /// Which brokers the cluster does not do without, and why.
    pub(crate) held_back: BTreeMap<i32, String>,
    /// Of which brokers that was asked.
    pub(crate) asked: Vec<i32>,
    /// The broker whose end is reserved.
    pub(crate) reserved: Option<i32>,
    /// What has to be done before any broker that is reserved may end.
    pub(crate) not_yet: Option<String>,
    /// Which brokers the cluster would not do without, and why, where nothing is to be ended.
    pub(crate) not_safe: BTreeMap<i32, String>,
    /// Whether the disruption budget allows none.
    pub(crate) holds_evictions: bool,
    /// Brokers that run and answer and are not ready.
    pub(crate) not_ready: BTreeSet<i32>,
    /// Images that cannot be run.
    pub(crate) bad_images: Vec<String>,
    /// The brokers whose node does not answer.
    pub(crate) silent_nodes: BTreeSet<i32>,
    /// What admission makes of each claim: class and size.
    pub(crate) admitted: Option<(Option<String>, u64)>,
    /// The operator's default image; empty means `letterbox:default`.
    pub(crate) default_image: String,
    /// What the operator's version changes in every configuration, though no spec asks for it.
    pub(crate) operator_change: String,
    /// How many more steps work; each one after that fails as if the operator had been killed.
    /// `None`: all.
    pub(crate) steps_left: Option<u32>,
    /// Claims and their volumes, by broker and name. They outlive the broker.
    pub(crate) disks: BTreeMap<(i32, String), ModelDisk>,
    /// The uids of claims that were seen to go without ever having had a volume.
    pub(crate) unmade: BTreeSet<String>,
    /// How many volumes were ever made, and directories on them.
    pub(crate) made: u32,
    /// How often the operator took a serving broker down.
    pub(crate) restarts: u32,
}

/// What a broker of the model is defined with, or was started with: the image, what the spec asks
/// for, the whole configuration, the directories that are expected in it, and its volumes.
pub(crate) type Definition = (String, String, String, Vec<String>, Vec<VolumePlace>);

/// A volume and its claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ModelDisk {
    /// The claim's uid.
    pub(crate) uid: String,
    /// What a broker made of it; `None` while it is empty.
    pub(crate) directory: Option<String>,
    /// The class that its claim names.
    pub(crate) class: Option<String>,
    /// What its claim asks for, in bytes.
    pub(crate) size: u64,
    /// What the operator asked for when it made the claim.
    pub(crate) asked: Option<Asked>,
    /// Whether a pod was started with it since it was made: only then a volume is made for it.
    pub(crate) is_bound: bool,
    /// Whether its claim is being deleted: it goes when the broker ends.
    pub(crate) is_ending: bool,
    /// Whether what was behind its claim is gone.
    pub(crate) is_gone: bool,
    /// Whether its claim is older than the cluster's object.
    pub(crate) is_kept: bool,
    /// Whether its claim names a snapshot.
    pub(crate) is_restored: bool,
    /// What the broker remembers here, with its metadata, of the log directories that it has used:
    /// where each was.
    pub(crate) remembers: BTreeMap<String, String>,
}

/// A broker of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ModelBroker {
    /// Whether there is a definition of it.
    pub(crate) is_defined: bool,
    /// What it would be started with.
    pub(crate) defined: Definition,
    /// What it was started with; `None` until the world starts it.
    pub(crate) started: Option<Definition>,
    /// Passes of time until it serves.
    pub(crate) starts_in: u32,
    /// How often it was started.
    pub(crate) starts: u32,
    /// The directories that it would start without.
    pub(crate) given_up: Vec<String>,
    /// Whether it would begin a new metadata log beside partitions.
    pub(crate) begins_anew: bool,
    /// Volumes that it has until it ends, though their claims are gone.
    pub(crate) held: BTreeMap<String, ModelDisk>,
}

impl ModelBroker {
    /// Ends it, by whatever hand: the world starts it again by its newest definition.
    pub(crate) fn end(&mut self) {
        self.started = None;
        self.held.clear();
    }
}

impl Model {
    /// Looks at the world, or changes it.
    ///
    /// # Panics
    /// When a call before this one panicked.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut ModelState) -> T) -> T {
        f(&mut self.state.lock().expect("no caller panics while it holds the model"))
    }

    /// Lets some time go by: what has a definition and was not started is started, once all its
    /// claims are there and volumes can be made for them; brokers that start come closer to
    /// serving, and make an empty volume theirs if all that they expect is there.
    pub(crate) fn tick(&self) {
        self.with(|state| {
            let known = state.brokers.keys().chain(state.disks.keys().map(|(id, _)| id));
            for id in known.copied().collect::<BTreeSet<_>>() {
                state.tick_broker(id);
            }
        });
    }
}

impl Clone for Model {
    fn clone(&self) -> Self {
        Self { state: Mutex::new(self.with(|state| state.clone())) }
    }
}

fn next(made: &mut u32) -> u32 {
    *made += 1;
    *made
}

impl ModelState {
    /// Whether a broker serves.
    #[must_use]
    pub(crate) fn serves(&self, id: i32) -> bool {
        self.run(id) == Run::Ready
    }

    /// Takes away a volume of a broker with its claim, by whatever accident.
    pub(crate) fn lose(&mut self, id: i32, volume: &str) {
        self.disks.remove(&(id, volume.to_owned()));
        self.brokers.entry(id).and_modify(ModelBroker::end);
    }

    /// Takes away the claim of a volume under a broker that goes on.
    pub(crate) fn vanish(&mut self, id: i32, volume: &str) {
        if let Some(disk) = self.disks.remove(&(id, volume.to_owned()))
            && let Some(broker) = self.brokers.get_mut(&id)
            && broker.started.is_some()
        {
            broker.held.insert(volume.to_owned(), disk);
        }
    }

    /// What a broker that runs has for a volume.
    fn mounted(&self, id: i32, volume: &str) -> Option<&ModelDisk> {
        let held = self.brokers.get(&id).and_then(|broker| broker.held.get(volume));
        held.or_else(|| self.disks.get(&(id, volume.to_owned())))
    }

    /// A volume of a broker.
    ///
    /// # Panics
    /// When there is none.
    pub(crate) fn disk(&mut self, id: i32, volume: &str) -> &mut ModelDisk {
        self.disks.get_mut(&(id, volume.to_owned())).expect("the volume is there")
    }

    fn tick_broker(&mut self, id: i32) {
        if self.brokers.get(&id).is_none_or(|broker| broker.started.is_none()) {
            self.disks.retain(|(holder, _), disk| *holder != id || !disk.is_ending);
        }
        let Some(broker) = self.brokers.get_mut(&id).filter(|broker| broker.is_defined) else {
            return;
        };
        for disk in self.disks.values_mut().filter(|_| self.binds_at_once) {
            disk.is_bound = true;
        }
        let volumes = broker.started.as_ref().unwrap_or(&broker.defined).4.clone();
        let key = |place: &VolumePlace| (id, place.name.clone());
        let can_be_made = |disk: &ModelDisk| {
            !disk.class.as_ref().is_some_and(|class| self.bad_classes.contains(class))
                && !disk.is_gone
        };
        let is_there = |place: &VolumePlace| {
            let held = broker.held.get(&place.name);
            held.or_else(|| self.disks.get(&key(place))).is_some_and(can_be_made)
        };
        if !volumes.iter().all(is_there) {
            return;
        }
        let Some(started) = &broker.started else {
            self.not_found.retain(|id, _| !broker.given_up.contains(id));
            (broker.started, broker.starts_in, broker.starts) =
                (Some(broker.defined.clone()), 2, broker.starts + 1);
            for place in &volumes {
                self.disks.entry(key(place)).and_modify(|disk| disk.is_bound = true);
            }
            return;
        };
        broker.starts_in = broker.starts_in.saturating_sub(1);
        let (is_starting, expected) = (broker.starts_in > 0, started.3.clone());
        let held = broker.held.clone();
        if is_starting
            || self.frozen
            || !self.finds_all(id, &expected)
            || !self.has_metadata_log(id, &volumes)
        {
            return;
        }
        // What is in the place of what it misses it leaves as it is.
        let lost: Vec<String> = self.lost(id, &volumes, &[]).into_values().collect();
        for place in volumes.iter().filter(|place| !held.contains_key(&place.name)) {
            if let Some(disk) = self
                .disks
                .get_mut(&key(place))
                .filter(|disk| disk.directory.is_none() && !lost.contains(&place.log_dir))
            {
                disk.directory = Some(format!("dir-{}", next(&mut self.made)));
            }
        }
        let given_up = self.brokers[&id].given_up.clone();
        let others = volumes.iter().filter(|place| place.name != "data");
        let has = |place: &VolumePlace| {
            Some((self.mounted(id, &place.name)?.directory.clone()?, place.log_dir.clone()))
        };
        let has: Vec<_> = others.filter_map(has).collect();
        if let Some(data) = self.mounted_mut(id, "data") {
            let is_there = |lost: &String| has.iter().any(|(has, _)| has == lost);
            data.remembers.retain(|lost, _| is_there(lost) || !given_up.contains(lost));
            data.remembers.extend(has);
        }
    }

    fn mounted_mut(&mut self, id: i32, volume: &str) -> Option<&mut ModelDisk> {
        let held = self.brokers.get_mut(&id).and_then(|broker| broker.held.get_mut(volume));
        held.or_else(|| self.disks.get_mut(&(id, volume.to_owned())))
    }

    /// What a broker that was started with `volumes` says that it misses: what it remembers, and
    /// what it was told to expect.
    fn lost(
        &self,
        id: i32,
        volumes: &[VolumePlace],
        expected: &[String],
    ) -> BTreeMap<String, String> {
        let disk = |place: &VolumePlace| Some((place.clone(), self.mounted(id, &place.name)?));
        let disks: Vec<_> = volumes.iter().filter_map(disk).collect();
        let found: Vec<&String> =
            disks.iter().filter_map(|(_, disk)| disk.directory.as_ref()).collect();
        let empty = disks.iter().find(|(_, disk)| disk.directory.is_none());
        let at = empty.map_or("", |(place, _)| &place.log_dir);
        let remembered = self.mounted(id, "data").into_iter().flat_map(|disk| &disk.remembers);
        let remembered = remembered.map(|(lost, at)| (lost.clone(), at.clone()));
        let expected = expected.iter().map(|lost| (lost.clone(), at.to_owned()));
        let mut lost: BTreeMap<String, String> = expected.chain(remembered).collect();
        lost.retain(|lost, _| !found.contains(&lost));
        let given_up = &self.brokers[&id].given_up;
        lost.retain(|lost, _| !given_up.contains(lost));
        lost.extend(self.not_found.clone());
        lost
    }

    /// Whether every directory that a broker expects is on one of its volumes.
    fn finds_all(&self, id: i32, expected: &[String]) -> bool {
        let disks = self.disks.range((id, String::new())..(id + 1, String::new()));
        let held = self.brokers.get(&id).into_iter().flat_map(|broker| broker.held.values());
        let disks = disks.map(|(_, disk)| disk).chain(held);
        let found: Vec<&String> = disks.filter_map(|disk| disk.directory.as_ref()).collect();
        expected.iter().all(|each| found.contains(&each))
    }

    /// Whether a broker that was started with `volumes` finds its metadata log, or may begin one:
    /// there are no partitions elsewhere, or it was told to.
    fn has_metadata_log(&self, id: i32, volumes: &[VolumePlace]) -> bool {
        let is_used = |name: &str| self.mounted(id, name).is_some_and(|d| d.directory.is_some());
        let mut others = volumes.iter().filter(|place| place.name != "data");
        is_used("data")
            || self.brokers[&id].begins_anew
            || !others.any(|place| is_used(&place.name))
    }

    /// Whether a broker waits for the directories that it expects.
    fn waits(&self, id: i32) -> bool {
        let broker = self.brokers.get(&id);
        let started =
            broker.filter(|broker| broker.starts_in == 0).and_then(|b| b.started.as_ref());
        started.is_some_and(|(image, _, _, expected, volumes)| {
            let mut all = volumes.iter();
            !self.bad_images.contains(image)
                && all.all(|place| self.mounted(id, &place.name).is_some())
                && !(self.finds_all(id, expected) && self.has_metadata_log(id, volumes))
        })
    }

    fn run(&self, id: i32) -> Run {
        let Some(broker) = self.brokers.get(&id).filter(|broker| broker.is_defined) else {
            return Run::Absent;
        };
        let Some((image, _, _, expected, volumes)) = &broker.started else {
            return Run::Starting("it starts".to_owned());
        };
        let has = |place: &VolumePlace| self.mounted(id, &place.name).is_some();
        if self.silent_nodes.contains(&id) {
            Run::Unreachable("its node does not answer".to_owned())
        } else if self.bad_images.contains(image) {
            Run::Failing { reason: "ImagePullBackOff".to_owned(), message: String::new() }
        } else if self.not_ready.contains(&id) {
            Run::Starting("a device holds up its writes".to_owned())
        } else if broker.starts_in > 0 || !volumes.iter().all(has) {
            Run::Starting("it starts".to_owned())
        } else if !self.finds_all(id, expected) {
            Run::Starting("waiting for its log directories".to_owned())
        } else if !self.has_metadata_log(id, volumes) {
            Run::Starting("waiting for its metadata log".to_owned())
        } else {
            Run::Ready
        }
    }

    /// The volumes of a broker that are there.
    fn kept(&self, id: i32) -> Vec<String> {
        let serves = self.serves(id);
        let bound = self.disks.iter().filter(|((broker, _), disk)| *broker == id && disk.is_bound);
        let names = bound.map(|((_, name), _)| name.clone());
        names.filter(|name| !serves || self.is_mounted(id, name)).collect()
    }

    /// Whether a broker was started with the claim of a volume that is there now.
    fn is_mounted(&self, id: i32, volume: &str) -> bool {
        let Some(broker) = self.brokers.get(&id) else { return false };
        let mut started = broker.started.iter().flat_map(|started| &started.4);
        started.any(|place| place.name == volume) && !broker.held.contains_key(volume)
    }

    /// The volumes that a broker has until it ends.
    fn mounts(&self, id: i32) -> BTreeSet<String> {
        let started = self.brokers.get(&id).and_then(|broker| broker.started.as_ref());
        started.iter().flat_map(|started| &started.4).map(|place| place.name.clone()).collect()
    }

    /// What a broker that was started with `volumes` says of its directories. A path that a newer
    /// operator gives them means nothing to this model.
    fn directories(
        &self,
        id: i32,
        volumes: &[VolumePlace],
        desired: &Blueprint,
    ) -> BTreeMap<String, String> {
        let directory = |place: &VolumePlace| {
            let disk = self.mounted(id, &place.name)?;
            let path = desired.log_dir_of(id, &place.name).unwrap_or(&place.log_dir);
            Some((path.to_owned(), disk.directory.clone()?))
        };
        volumes.iter().filter_map(directory).collect()
    }

    fn volumes(&self, id: i32) -> BTreeMap<String, Volume> {
        let of_broker = self.disks.iter().filter(|((broker, _), _)| *broker == id);
        let volume = |((_, name), disk): (&(i32, String), &ModelDisk)| {
            let most = self.volume_max.unwrap_or(u64::MAX);
            let is_bad = disk.class.as_ref().is_some_and(|class| self.bad_classes.contains(class));
            let volume = Volume {
                claim: format!("{name}-{id}"),
                uid: disk.uid.clone(),
                class: disk.class.clone(),
                asked: disk.asked.clone(),
                is_bound: disk.is_bound,
                is_ending: disk.is_ending,
                is_gone: disk.is_gone,
                is_restored: disk.is_restored,
                waits_for_pod: !self.silent,
                is_mounted: self.is_mounted(id, name),
                is_kept: disk.is_kept,
                is_own: disk.asked.is_some() && !disk.is_restored,
                is_unmarked: false,
                fault: (is_bad || disk.is_gone).then(|| Fault {
                    reason: "ProvisioningFailed".to_owned(),
                    message: "there is no such class".to_owned(),
                }),
                not_grown: (disk.size > most).then(|| Fault {
                    reason: "ControllerResizeError".to_owned(),
                    message: "the pool is full".to_owned(),
                }),
                requested: Some(disk.size),
                capacity: if disk.is_bound { disk.size.min(most) } else { 0 },
            };
            (name.clone(), volume)
        };
        of_broker.map(volume).collect()
    }
}

impl Platform for Model {
    type Live = ModelState;

    fn read<'a>(&'a self, _: &'a KafkaCluster) -> BoxFuture<'a, Result<ModelState, Fault>> {
        Box::pin(async { Ok(self.with(|state| state.clone())) })
    }

    fn reserve<'a>(&'a self, _: &'a ModelState, broker: i32) -> BoxFuture<'a, MayEnd> {
        let answer = self.with(|state| {
            if !state.serves(broker) && !state.not_ready.contains(&broker) {
                return MayEnd::Unknown("no answer".to_owned());
            }
            state.asked.push(broker);
            if let Some(why) = state.held_back.get(&broker) {
                return MayEnd::No(why.clone());
            }
            state.reserved = Some(broker);
            state.not_yet.clone().map_or(MayEnd::Yes, MayEnd::NotYet)
        });
        Box::pin(std::future::ready(answer))
    }

    fn give_back<'a>(&'a self, _: &'a ModelState, broker: i32) -> BoxFuture<'a, ()> {
        self.with(|state| state.reserved = state.reserved.filter(|it| *it != broker));
        Box::pin(std::future::ready(()))
    }

    fn may_end<'a>(&'a self, _: &'a ModelState, broker: i32) -> BoxFuture<'a, MayEnd> {
        let why = self.with(|state| state.not_safe.get(&broker).cloned());
        Box::pin(std::future::ready(why.map_or(MayEnd::Yes, MayEnd::No)))
    }

    fn act<'a>(
        &'a self,
        desired: &'a Blueprint,
        _: &'a ModelState,
        step: &'a Step,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            if self.with(|state| state.hangs) == Some(step.part()) {
                std::future::pending::<()>().await;
            }
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
                    Step::ApplyBudget { .. } => {
                        state.lost_budget = false;
                        state.holds_evictions = desired.evictions_held.is_some();
                    }
                    Step::Prune(key) => state.stale.retain(|stale| stale != key),
                    Step::GrowVolume { .. } if state.fixed_volumes => {
                        return Err(Fault {
                            reason: "VolumeNotGrown".to_owned(),
                            message: "the class does not allow it".to_owned(),
                        });
                    }
                    Step::GrowVolume { broker, volume, to, .. } => {
                        let disk = state.disks.entry((*broker, volume.clone()));
                        disk.and_modify(|disk| disk.size = *to);
                    }
                    Step::MakeClaim { broker, volume } => {
                        let mut all = desired.brokers.get(broker).into_iter();
                        let wanted = all
                            .find_map(|each| each.volumes.iter().find(|each| each.name == *volume));
                        let ModelState { disks, made, admitted, .. } = state;
                        if let Some(wanted) = wanted {
                            let asked =
                                Asked { class: wanted.class.clone(), size: bytes_of(&wanted.size) };
                            let (class, size) = admitted.clone().unwrap_or_else(|| {
                                (asked.class.clone(), asked.size.unwrap_or_default())
                            });
                            disks.entry((*broker, volume.clone())).or_insert_with(|| ModelDisk {
                                uid: format!("claim-{}", next(made)),
                                class,
                                size,
                                asked: Some(asked),
                                ..ModelDisk::default()
                            });
                        }
                    }
                    Step::RemakeClaim { broker, volume, .. }
                    | Step::DropClaim { broker, volume } => {
                        let is_mounted = state.is_mounted(*broker, volume);
                        let key = (*broker, volume.clone());
                        if is_mounted {
                            state.disks.entry(key).and_modify(|disk| disk.is_ending = true);
                        } else {
                            state.disks.remove(&key);
                        }
                    }
                    Step::HoldObject { held } => state.is_held = *held,
                    Step::LetGo { .. } if state.fixed_volumes => {
                        return Err(Fault {
                            reason: "Forbidden".to_owned(),
                            message: "the claims may not be deleted".to_owned(),
                        });
                    }
                    Step::LetGo { .. } => state.is_held = false,
                    Step::ApplyBroker { broker: id, .. } => {
                        let broker = state.brokers.entry(*id).or_default();
                        broker.is_defined = true;
                        broker.defined = definition(desired, *id).unwrap_or_default();
                        broker.given_up = ids(desired, *id, "accepted.lost.directory.ids=");
                        broker.begins_anew =
                            !ids(desired, *id, "accepted.lost.metadata.log=").is_empty();
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
                    Step::RemoveBroker { broker: id, .. } => {
                        let serves = state.serves(*id);
                        if let Some(broker) = state.brokers.get_mut(id) {
                            broker.end();
                            broker.is_defined = false;
                            state.restarts += u32::from(serves);
                        }
                    }
                    Step::AcceptLoss { .. }
                    | Step::CorrectClusterId { .. }
                    | Step::MarkClaim { .. } => {}
                }
                Ok(())
            })
        })
    }
}

/// The ids behind `key` in the configuration of a broker.
fn ids(desired: &Blueprint, id: i32, key: &str) -> Vec<String> {
    let overrides = desired.brokers.get(&id).into_iter().flat_map(|each| &each.config.overrides);
    let mut lists = overrides.filter_map(|text| text.strip_prefix(key));
    lists.next().into_iter().flat_map(|ids| ids.split(',')).map(ToOwned::to_owned).collect()
}

fn definition(desired: &Blueprint, id: i32) -> Option<Definition> {
    let broker = desired.brokers.get(&id)?;
    let expected = ids(desired, id, "expected.directory.ids=");
    let volumes = broker
        .volumes
        .iter()
        .map(|volume| VolumePlace { name: volume.name.clone(), log_dir: volume.log_dir.clone() });
    Some((
        desired.image.clone(),
        broker.asked.clone(),
        broker.config.revision.clone(),
        expected,
        volumes.collect(),
    ))
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
                volumes: volume_names(cluster, id, self.kept(id))
                    .into_iter()
                    .map(|name| VolumePlace {
                        log_dir: format!("/{name}{}", self.operator_change),
                        name,
                    })
                    .collect(),
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
                given_up: given_up_directories(cluster, id),
                begins_anew: lost_metadata_log(cluster, id),
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
            let told = broker.started.as_ref().filter(|_| run == Run::Ready || self.waits(id));
            let identity = told.filter(|_| !self.mute).map(|started| Identity {
                cluster_id: "model".to_owned(),
                node_id: Some(id),
                directories: self.directories(id, &started.4, desired),
                lost: self.lost(id, &started.4, &started.3),
                misses_metadata: !self.has_metadata_log(id, &started.4),
                opening: None,
            });
            let asked = |definition: &Definition| (definition.0.clone(), definition.1.clone());
            let seen = ObservedBroker {
                definition: Compared {
                    missing: missing(broker.is_defined, "broker"),
                    differs: differs
                        .then(|| Difference {
                            what: "definition".to_owned(),
                            is_of_spec: true,
                            is_fixed: false,
                        })
                        .into_iter()
                        .collect(),
                },
                fixed: Vec::new(),
                is_current: broker.started.as_ref().map(asked) == wanted.as_ref().map(asked),
                is_newest: broker.started == wanted,
                to_end: broker.started.as_ref().map(|_| broker.starts.to_string()),
                run,
                volumes: self.volumes(id),
                mounts: self.mounts(id),
                defined: match broker.is_defined {
                    true => broker.defined.4.iter().map(|place| place.name.clone()).collect(),
                    false => BTreeSet::new(),
                },
                is_removed: false,
                identity,
                image: broker.started.as_ref().map(|(image, ..)| image.clone()),
                is_image_left: false,
                held_back: None,
            };
            (id, seen)
        });
        let mut brokers: BTreeMap<i32, ObservedBroker> = brokers.collect();
        for &id in desired.brokers.keys() {
            brokers.entry(id).or_insert_with(|| ObservedBroker {
                definition: Compared { missing: vec!["broker".to_owned()], differs: Vec::new() },
                volumes: self.volumes(id),
                ..ObservedBroker::default()
            });
        }
        Observed {
            access: Compared { missing: missing(self.has_access, "services"), differs: Vec::new() },
            budget: Compared {
                missing: missing(!self.lost_budget, "budget"),
                differs: (self.holds_evictions != desired.evictions_held.is_some())
                    .then(|| Difference {
                        what: "spec.maxUnavailable".to_owned(),
                        is_of_spec: true,
                        is_fixed: false,
                    })
                    .into_iter()
                    .collect(),
            },
            holds_evictions: self.holds_evictions,
            stale: self.stale.clone(),
            strays: self.strays.clone(),
            stray_claims: BTreeSet::new(),
            foreign: Vec::new(),
            brokers,
            bootstrap: BTreeMap::new(),
            cluster_id: None,
            is_held: Some(self.is_held),
            unmade: self.unmade.clone(),
            unread: self.unread.clone(),
            unwatched: BTreeMap::new(),
        }
    }
}
