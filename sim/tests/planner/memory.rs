//! What the operator remembers of volumes, under any sequence of what happens to them, to the
//! cluster's object, and to the operator.
//!
//! Beside the model stands what is true, which nobody in the model can see: which directory each
//! volume of the broker had when it last served in order. After each event:
//!
//! - No empty claim is made in the place of what the broker had, before a person accepted the loss
//!   of that very directory or claim: by its name, while status had it.
//! - What the broker had and has no more is told as an open loss, whatever is in its place.
//! - Nothing ends a broker that has the last copy of something.
//!
//! And from wherever a sequence ends, accepting what is told, one loss after the other, leads to a
//! cluster that is ready.

use std::collections::{BTreeMap, BTreeSet};

use futures::FutureExt as _;
use kube::ResourceExt as _;
use letterbox_operator::api::{
    ACCEPT_LOSS_ANNOTATION, KafkaCluster, LossStatus, NodeStatus, PAUSE_ANNOTATION, READY, is_true,
};
use letterbox_operator::plan::Step;
use letterbox_operator::reconcile::{ClusterPass, reconcile_cluster};

use super::platform::{Model, ModelDisk};
use super::{changes, cluster, now, volumes};

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// The operator looks, does what there is to do, and writes it down.
    Pass,
    /// Time goes by without an operator.
    Tick,
    /// The operator is killed after so many writes of a pass.
    Killed(u32),
    Pause,
    Unpause,
    /// A claim and the pod are deleted.
    Lose(&'static str),
    /// A claim is deleted by force under the broker.
    Vanish(&'static str),
    /// A claim is deleted: it goes when the pod does.
    Delete(&'static str),
    /// The volume behind a claim is made anew, empty, and the pod starts on it.
    Empty(&'static str),
    /// The volume behind a claim is gone for good.
    Gone(&'static str),
    /// What was lost last is brought back, by a claim that a person makes.
    Restore(&'static str),
    /// The same, by a claim that names a snapshot.
    RestoreSnapshot(&'static str),
    /// Both volumes are brought back, each under the name of the other.
    RestoreCrosswise,
    /// A person makes an empty claim.
    Make(&'static str),
    /// A person accepts the loss that is told first.
    Accept,
    /// The first acceptance comes once more, and the last one.
    AcceptFirstAgain,
    AcceptLastAgain,
    /// A person accepts something else.
    AcceptOther,
    AddVolume,
    RemoveVolume,
    /// The object is deleted, and the same manifest applied; the claims are kept.
    Recreate,
    /// The spec asks for a restart.
    Change,
    /// The broker is not heard by the operator, or is again.
    Mute,
    Hear,
    /// The pod ends.
    End,
}

use Event::*;

const EVENTS: &[Event] = &[
    Pass,
    Tick,
    Killed(0),
    Killed(1),
    Killed(2),
    Killed(9),
    Pause,
    Unpause,
    Lose("data"),
    Lose("data-1"),
    Vanish("data"),
    Vanish("data-1"),
    Delete("data"),
    Delete("data-1"),
    Empty("data"),
    Empty("data-1"),
    Gone("data"),
    Gone("data-1"),
    Restore("data"),
    Restore("data-1"),
    RestoreSnapshot("data"),
    RestoreSnapshot("data-1"),
    RestoreCrosswise,
    Make("data"),
    Make("data-1"),
    Accept,
    AcceptFirstAgain,
    AcceptLastAgain,
    AcceptOther,
    AddVolume,
    RemoveVolume,
    Recreate,
    Change,
    Mute,
    Hear,
    End,
];

const VOLUMES: [&str; 2] = ["data", "data-1"];

/// The model, the cluster in it, and what is true.
#[derive(Clone)]
struct Play {
    model: Model,
    cluster: KafkaCluster,
    /// The directory, and its claim's uid, that the broker had when it last served in order.
    had: BTreeMap<&'static str, (String, String)>,
    /// What it served with in the place of what is lost and not accepted, as an operator saw it.
    beside: BTreeSet<(&'static str, String, String)>,
    /// Volumes that an earlier object of the cluster had: this one learns of them from brokers
    /// only.
    earlier: BTreeSet<&'static str>,
    /// The directories and claims that a person accepted the loss of.
    accepted: BTreeSet<(&'static str, String)>,
    /// The names that a person accepted while status had them open.
    said: BTreeSet<String>,
    names: Vec<String>,
    away: BTreeMap<&'static str, ModelDisk>,
    hands: u32,
    past: Vec<Event>,
}

fn one_of(volume: &str) -> Option<&'static str> {
    VOLUMES.into_iter().find(|known| *known == volume)
}

impl Play {
    /// A cluster of which nothing was made yet.
    fn begun() -> Self {
        let mut cluster = cluster(volumes(&VOLUMES));
        cluster.metadata.uid = Some("00000000-0000-0000-0000-000000000001".to_owned());
        Self {
            model: Model::default(),
            cluster,
            had: BTreeMap::new(),
            beside: BTreeSet::new(),
            earlier: BTreeSet::new(),
            accepted: BTreeSet::new(),
            said: BTreeSet::new(),
            names: Vec::new(),
            away: BTreeMap::new(),
            hands: 0,
            past: Vec::new(),
        }
    }

    /// One that is ready.
    fn new() -> Self {
        let mut play = Self::begun();
        for _ in 0..9 {
            play.happens(Pass);
        }
        assert_eq!(play.had.len(), 2, "{}", play.told());
        play.past.clear();
        play
    }

    fn told(&self) -> String {
        let state = self.model.with(|state| (state.brokers.clone(), state.disks.clone()));
        let ready = self.cluster.status.as_ref().and_then(|status| status.conditions.first());
        let (had, accepted) = (&self.had, &self.accepted);
        format!(
            "\nafter {:?}\nhad {had:?} accepted {accepted:?}\n{:?}\n{state:?}\n{ready:?}\n",
            self.past,
            self.node(),
        )
    }

    fn node(&self) -> NodeStatus {
        let status = self.cluster.status.as_ref();
        status.and_then(|status| status.nodes.first().cloned()).unwrap_or_default()
    }

    fn open(&self) -> Vec<LossStatus> {
        self.node().open_losses().cloned().collect()
    }

    fn annotate(&mut self, key: &str, value: Option<String>) {
        let all = self.cluster.annotations_mut();
        match value {
            Some(value) => drop(all.insert(key.to_owned(), value)),
            None => drop(all.remove(key)),
        }
        changes(&mut self.cluster);
    }

    fn accept(&mut self, name: String) {
        if self.open().iter().any(|loss| loss.name == name) {
            self.said.insert(name.clone());
            self.names.push(name.clone());
        }
        self.annotate(ACCEPT_LOSS_ANNOTATION, Some(name));
    }

    fn happens(&mut self, event: Event) {
        self.past.push(event);
        match event {
            Pass => self.pass(None),
            Killed(writes) => self.pass(Some(writes)),
            Tick => {}
            Pause => self.annotate(PAUSE_ANNOTATION, Some("true".to_owned())),
            Unpause => self.annotate(PAUSE_ANNOTATION, None),
            Accept => {
                if let Some(loss) = self.open().first() {
                    self.accept(loss.name.clone());
                }
            }
            AcceptFirstAgain => {
                self.names.first().cloned().into_iter().for_each(|n| self.accept(n))
            }
            AcceptLastAgain => self.names.last().cloned().into_iter().for_each(|n| self.accept(n)),
            AcceptOther => self.accept("broker-0-incarnation-1-unknown".to_owned()),
            AddVolume => self.spec(&VOLUMES),
            RemoveVolume => self.spec(&["data"]),
            Recreate => self.recreate(),
            Change => {
                let count = self.past.len().to_string();
                self.cluster.spec.config.insert("num.partitions".into(), count);
                changes(&mut self.cluster);
            }
            Mute | Hear => self.model.with(|state| state.mute = event == Mute),
            End => self.model.with(|state| {
                state.brokers.entry(0).and_modify(super::platform::ModelBroker::end);
            }),
            RestoreCrosswise => {
                let (data, other) =
                    (self.away.get("data").cloned(), self.away.get("data-1").cloned());
                let is_empty = self
                    .model
                    .with(|state| state.disks.values().all(|disk| disk.directory.is_none()));
                if let (Some(data), Some(other), true) = (data, other, is_empty) {
                    for (v, away) in [("data", &other), ("data-1", &data)] {
                        self.away.insert(v, away.clone());
                        self.befalls(Restore(v));
                    }
                    self.away.extend([("data", data), ("data-1", other)]);
                }
            }
            volume => self.befalls(volume),
        }
        self.model.tick();
        self.see();
    }

    fn spec(&mut self, names: &[&str]) {
        let config = self.cluster.spec.config.clone();
        super::set(&mut self.cluster, volumes(names));
        self.cluster.spec.config = config;
        changes(&mut self.cluster);
    }

    fn befalls(&mut self, event: Event) {
        let (Lose(v) | Vanish(v) | Delete(v) | Empty(v) | Gone(v) | Restore(v)
        | RestoreSnapshot(v) | Make(v)) = event
        else {
            return;
        };
        let key = (0, v.to_owned());
        let there = self.model.with(|state| state.disks.get(&key).cloned());
        let is_empty = there.as_ref().is_none_or(|disk| disk.directory.is_none());
        if let (Lose(_) | Vanish(_) | Empty(_), Some(disk)) = (event, &there)
            && disk.directory.is_some()
            && !disk.is_gone
        {
            self.away.insert(v, disk.clone());
        }
        self.hands += 1;
        let made = ModelDisk {
            uid: format!("by-hand-{}", self.hands),
            size: 1 << 30,
            ..ModelDisk::default()
        };
        let away = self.away.get(v).cloned();
        self.model.with(|state| match event {
            Lose(_) => state.lose(0, v),
            Vanish(_) => state.vanish(0, v),
            Delete(_) => drop(state.disks.entry(key).and_modify(|disk| disk.is_ending = true)),
            Gone(_) => drop(state.disks.entry(key).and_modify(|disk| disk.is_gone = disk.is_bound)),
            Empty(_) => {
                let empties = |disk: &mut ModelDisk| {
                    (disk.directory, disk.remembers) = (None, BTreeMap::new());
                };
                state.brokers.entry(0).and_modify(super::platform::ModelBroker::end);
                state.disks.entry(key).and_modify(empties);
            }
            Restore(_) | RestoreSnapshot(_) if is_empty => {
                let Some(away) = away else { return };
                state.brokers.entry(0).and_modify(super::platform::ModelBroker::end);
                let (directory, remembers) = (away.directory, away.remembers);
                let is_restored = matches!(event, RestoreSnapshot(_));
                state.disks.insert(key, ModelDisk { directory, remembers, is_restored, ..made });
            }
            Make(_) => drop(state.disks.entry(key).or_insert(made)),
            _ => {}
        });
    }

    fn recreate(&mut self) {
        self.hands += 1;
        self.cluster.status = None;
        self.cluster.metadata.uid = Some(format!("00000000-0000-0000-0000-{:012}", self.hands));
        changes(&mut self.cluster);
        self.said.clear();
        self.beside.clear();
        self.accepted.clear();
        let disks = self.model.with(|state| {
            state.brokers.clear();
            state.disks.retain(|_, disk| !disk.is_ending);
            state.disks.values_mut().for_each(|disk| disk.is_kept = true);
            state.disks.clone()
        });
        self.earlier = VOLUMES.into();
        let disk = |volume: &str| disks.get(&(0, volume.to_owned()));
        let is_there = |volume: &str, id: &String| {
            disk(volume).is_some_and(|disk| disk.directory.as_ref() == Some(id) && !disk.is_gone)
        };
        let data = disk("data").filter(|disk| !disk.is_gone);
        let is_remembered = |id: &String| data.is_some_and(|disk| disk.remembers.contains_key(id));
        self.had.retain(|volume, (id, _)| is_there(volume, id) || is_remembered(id));
    }

    /// The volumes whose last copy the broker has: it goes when the broker ends.
    fn last_copies(&self) -> Vec<&'static str> {
        let has = |v: &&'static str| {
            let Some(had) = self.had.get(v).filter(|had| !self.is_accepted(v, had)) else {
                return false;
            };
            self.model.with(|state| {
                let broker = state.brokers.get(&0).filter(|broker| broker.started.is_some());
                let held = broker.and_then(|broker| broker.held.get(*v));
                let disk = || state.disks.get(&(0, (*v).to_owned()));
                let goes = || disk().filter(|disk| disk.is_gone || disk.is_ending);
                let last = held.or_else(|| broker.and_then(|_| goes()));
                last.is_some_and(|disk| disk.directory.as_ref() == Some(&had.0))
            })
        };
        VOLUMES.into_iter().filter(has).collect()
    }

    fn pass(&mut self, killed: Option<u32>) {
        let held = self.last_copies();
        self.model.with(|state| state.steps_left = killed);
        let now = now();
        let pass = reconcile_cluster(&self.model, &self.cluster, None, &now);
        let pass = pass.now_or_never().expect("the model answers at once").unwrap();
        self.model.with(|state| state.steps_left = None);
        let ends =
            |step: &Step| matches!(step, Step::RestartBroker { .. } | Step::RemoveBroker { .. });
        let is_ended = pass.done.iter().any(ends) && !held.is_empty();
        assert!(!is_ended, "the last copy of {held:?} is ended {}", self.told());
        self.judge(&pass);
        if killed.is_some() {
            return;
        }
        self.write(&pass);
        self.see_beside();
        self.compare();
    }

    /// What the broker serves with, as the pass saw it, though something else of that name is lost.
    fn see_beside(&mut self) {
        let (serves, disks) = self.model.with(|state| (state.serves(0), state.disks.clone()));
        let open = self.open();
        for v in VOLUMES.into_iter().filter(|_| serves) {
            let Some(disk) = disks.get(&(0, v.to_owned())).filter(|disk| !disk.is_gone) else {
                continue;
            };
            let is_noted = |loss: &LossStatus| {
                loss.volume == *v && loss.replaced_by.as_ref() == Some(&disk.uid)
            };
            if let Some(directory) = disk.directory.clone().filter(|_| open.iter().any(is_noted)) {
                self.beside.insert((v, directory, disk.uid.clone()));
            }
        }
    }

    /// What an operator must not do.
    fn judge(&mut self, pass: &ClusterPass) {
        for step in &pass.done {
            let Step::MakeClaim { volume, .. } = step else { continue };
            let Some(v) = one_of(volume) else { continue };
            let had = self.had.get(v).filter(|_| !self.earlier.contains(v));
            assert!(had.is_none_or(|had| self.is_accepted(v, had)), "{step} {}", self.told());
        }
    }

    fn is_accepted(&self, volume: &'static str, (id, uid): &(String, String)) -> bool {
        // What is lost may have been restored under the name of another one before.
        let is_it = |(of, what): &(&str, String)| what == id || *of == volume && what == uid;
        self.accepted.iter().any(is_it)
    }

    /// The status of a pass is written: from now on what it accepts is accepted.
    fn write(&mut self, pass: &ClusterPass) {
        for step in &pass.done {
            let Step::AcceptLoss { name, .. } = step else { continue };
            assert!(self.said.contains(name), "{name} {}", self.told());
            let open = self.open();
            let loss = open.iter().find(|loss| loss.name == *name);
            let loss = loss.unwrap_or_else(|| panic!("{name} was not recorded {}", self.told()));
            let Some(v) = one_of(&loss.volume) else { continue };
            let ids = loss.directory_id.iter().chain(&loss.claim_uid).cloned();
            let mut ids: Vec<String> = ids.collect();
            if ids.is_empty() {
                ids.extend(self.had.get(v).map(|(id, _)| id.clone()));
            }
            self.accepted.extend(ids.into_iter().map(|id| (v, id)));
        }
        let before = self.node().losses;
        if self.cluster.status.as_ref() != Some(&pass.status) {
            self.cluster.status = Some(pass.status.clone());
            changes(&mut self.cluster);
        }
        let after = self.node().losses;
        let is_in =
            |all: &[LossStatus], loss: &LossStatus| all.iter().any(|other| other.name == loss.name);
        for ended in before.iter().filter(|loss| !is_in(&after, loss)) {
            let is_same = |new: &&LossStatus| {
                let what = |loss: &LossStatus| {
                    (loss.volume.clone(), loss.claim_uid.clone(), loss.directory_id.clone())
                };
                what(new) == what(ended) && !is_in(&before, new)
            };
            let again = after.iter().find(is_same);
            assert_eq!(again, None, "{ended:?} ends and is found again {}", self.told());
        }
        let open: BTreeSet<String> = self.open().into_iter().map(|loss| loss.name).collect();
        self.said.retain(|name| open.contains(name));
        for loss in self.open() {
            // What a claim had may have been back. What the broker says that it misses was not.
            let missed = loss.directory_id.iter().filter(|_| loss.claim_uid.is_none());
            let again = one_of(&loss.volume)
                .is_some_and(|v| missed.cloned().any(|id| self.accepted.contains(&(v, id))));
            assert!(!again, "{} was accepted already {}", loss.name, self.told());
        }
        for loss in self.node().losses {
            let same = self.node().losses.into_iter().filter(|other| other.name == loss.name);
            assert_eq!(same.count(), 1, "a name is of one loss {}", self.told());
        }
    }

    /// What the status of a pass has to say.
    fn compare(&self) {
        let open = self.open();
        let (brokers, disks) =
            self.model.with(|state| (state.brokers.clone(), state.disks.clone()));
        for (v, id, uid) in &self.beside {
            let is_there = |disk: &ModelDisk| disk.directory.as_ref() == Some(id) && !disk.is_gone;
            let is_known = |loss: &LossStatus| {
                loss.claim_uid.as_ref() == Some(uid) || loss.directory_id.as_ref() == Some(id)
            };
            assert!(
                self.is_accepted(v, &(id.clone(), uid.clone()))
                    || disks.values().any(is_there)
                    || open.iter().any(is_known)
                    // The same claim with another content is seen through the broker only.
                    || disks.values().any(|disk| disk.uid == *uid && !disk.is_gone),
                "the loss of what came after {v} is not told: {brokers:?} {}",
                self.told()
            );
        }
        for (v, (id, uid)) in &self.had {
            if self.is_accepted(v, &(id.clone(), uid.clone())) || self.earlier.contains(v) {
                continue;
            }
            let disk = disks.get(&(0, (*v).to_owned()));
            // A restored one may be told until the broker shows it, and need not be.
            let has = |disk: &ModelDisk| !disk.is_gone && disk.directory.as_ref() == Some(id);
            let is_there = disks.values().any(has);
            // The same claim with another content is seen through the broker only.
            let is_seen = disk.is_none_or(|disk| disk.is_gone || disk.uid != *uid);
            if !is_there && is_seen {
                let is_told = open
                    .iter()
                    .any(|loss| loss.volume == *v || loss.directory_id.as_ref() == Some(id));
                assert!(is_told, "the loss of {v} is not told: {brokers:?} {}", self.told());
            }
        }
    }

    /// The world goes on: what the broker serves with from now on.
    fn see(&mut self) {
        let (serves, disks, held) = self.model.with(|state| {
            let held = state.brokers.get(&0).map(|broker| broker.held.clone());
            (state.serves(0), state.disks.clone(), held.unwrap_or_default())
        });
        // Who had the last copy of something has it, or was ended by another hand.
        if !serves {
            return;
        }
        for v in VOLUMES {
            let disk = held.get(v).or_else(|| disks.get(&(0, v.to_owned())));
            let Some((id, uid)) =
                disk.and_then(|disk| Some((disk.directory.clone()?, disk.uid.clone())))
            else {
                continue;
            };
            let has = (id.clone(), uid);
            match self.had.get(v) {
                Some((known, _)) if *known == id => {
                    let status = self.cluster.status.as_ref();
                    if status.is_some_and(|status| is_true(&status.conditions, READY)) {
                        self.earlier.remove(v);
                    }
                    // It may have been restored under another claim.
                    if self
                        .node()
                        .volume(v)
                        .is_some_and(|known| known.claim_uid.as_ref() == Some(&has.1))
                    {
                        self.had.insert(v, has);
                    }
                }
                Some(known) if !self.is_accepted(v, known) => {}
                _ => {
                    // What comes back after its loss was accepted may be lost again.
                    self.accepted.retain(|(_, what)| *what != id);
                    self.had.insert(v, has);
                }
            }
        }
    }

    /// A person reads the page: accepts what is told, one after the other.
    fn comes_to_rest(&mut self) {
        for event in [Unpause, Hear, AddVolume] {
            self.happens(event);
        }
        for round in 0..120 {
            self.happens(Pass);
            let status = self.cluster.status.as_ref();
            if is_true(&status.unwrap().conditions, READY) && self.node().losses.is_empty() {
                return;
            }
            if round % 6 == 5 {
                self.happens(Accept);
            }
            // A claim that is being deleted goes with the pod, as the page says.
            let lends = self.model.with(|state| state.disks.values().any(|disk| disk.is_ending));
            if round % 20 == 19 && lends {
                self.happens(End);
            }
        }
        panic!("there is no way out {}", self.told());
    }
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn plays(settled: &Play, events: impl IntoIterator<Item = Event>) {
    let mut play = settled.clone();
    events.into_iter().for_each(|event| play.happens(event));
    play.comes_to_rest();
}

#[test]
fn whatever_happens_no_empty_volume_is_taken_for_the_old_one_and_there_is_a_way_out() {
    // Every sequence of two events, with passes of an operator between them or not.
    let settled = Play::new();
    for first in EVENTS {
        for second in EVENTS {
            for (between, after) in [(0, 0), (1, 1), (3, 0)] {
                let pass = |count: usize| std::iter::repeat_n(Pass, count);
                let events = [*first].into_iter().chain(pass(between)).chain([*second]);
                plays(&settled, events.chain(pass(after)));
            }
        }
    }
}

/// What is lost before an operator looks that was killed right before, after any of its writes.
#[test]
fn what_a_killed_operator_left_and_nobody_saw_is_lost_with_a_word() {
    let ends = [Lose("data"), Lose("data-1"), Vanish("data-1")];
    let starts: &[&[Event]] = &[
        &[],
        &[Lose("data"), Pass, Accept],
        &[Lose("data-1"), Pass, Accept],
        &[Mute, Lose("data"), Pass, Accept],
        &[Vanish("data-1"), Pass, RemoveVolume, Accept],
        &[Gone("data"), Pass, Accept],
        &[Empty("data-1"), Tick, Tick, Tick, Pass, Accept],
        &[Lose("data"), Pass, Make("data"), Accept],
        &[RemoveVolume, AddVolume, Change],
    ];
    let begun = [Play::begun(), Play::new(), {
        let mut unheard = Play::begun();
        [Mute].into_iter().chain(std::iter::repeat_n(Pass, 9)).for_each(|e| unheard.happens(e));
        unheard
    }];
    for begun in &begun {
        for start in starts {
            for passes in 0..8 {
                for writes in [0, 1, 9] {
                    for end in ends {
                        let pass = std::iter::repeat_n(Pass, passes);
                        let unseen = [Killed(writes), Tick, Tick, Tick, Tick, end];
                        plays(begun, start.iter().copied().chain(pass).chain(unseen));
                    }
                }
            }
        }
    }
}

#[test]
fn whatever_happens_for_long_no_empty_volume_is_taken_for_the_old_one() {
    let test = "memory::whatever_happens_for_long_no_empty_volume_is_taken_for_the_old_one";
    let settled = Play::new();
    letterbox_sim::seeds::for_each(1000, "planner", test, |seed| {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let events = (0..4 + seed % 16).map(|_| match random(&mut state) % 3 {
            0 => Pass,
            _ => EVENTS[(random(&mut state) % EVENTS.len() as u64) as usize],
        });
        plays(&settled, events.collect::<Vec<_>>());
    });
}
