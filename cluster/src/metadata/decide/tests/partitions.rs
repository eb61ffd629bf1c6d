//! Who is in sync, eligible and leads: told line by line, and as a property over random histories
//! with replicas that really have records, and lose what was not on their disk.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::test_runner::TestRunner;

use super::*;
use crate::metadata::record::FeatureRecord;
use crate::metadata::{Election, PartitionState};
use letterbox_sim::transcript::{Line, check};

/// The brokers; the first three have the partition.
const IDS: [BrokerId; 5] = [BrokerId(1), BrokerId(2), BrokerId(3), BrokerId(4), BrokerId(5)];

fn list(ids: &[BrokerId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The state as the transcripts tell it; what is empty is left out.
fn told(state: &PartitionState) -> String {
    let mut text = format!("epoch {}", state.leader_epoch);
    let leader = state.leader.map_or("nobody".to_owned(), |leader| leader.to_string());
    text.push_str(&format!(" {leader} leads"));
    if !state.election.is_clean() {
        text.push_str(&format!(" ({:?})", state.election));
    }
    let moves = if state.is_reassigning() { state.replicas.clone() } else { Default::default() };
    for (name, ids) in [
        ("isr", &state.isr),
        ("elr", &state.elr),
        ("last-known", &state.last_known_elr),
        ("of", &moves),
        ("adding", &state.adding),
        ("removing", &state.removing),
        ("offline", &state.offline),
        ("full", &state.full),
        ("lost", &state.lost),
        ("may-have-more", &state.may_have_more),
    ] {
        if !ids.is_empty() {
            text.push_str(&format!(" {name} {}", list(ids)));
        }
    }
    text
}

/// A topic `t` with one partition on brokers 1, 2 and 3, and what is asked of the controller.
struct One(World);

impl One {
    fn new(configs: &[(&str, &str)]) -> Self {
        Self::at(Levels::SUPPORTED.max, configs)
    }

    /// In a cluster at that level.
    fn at(level: i16, configs: &[(&str, &str)]) -> Self {
        let mut world = World::with_racks(&["a", "b", "c", "d", "e"]);
        let level = FeatureRecord { name: FEATURE.to_owned(), level };
        let index = world.image.applied_index + 1;
        world.image = apply(&world.image, index, &[MetadataRecord::Feature(level)]).unwrap();
        let assignments = vec![(0, IDS[..3].to_vec())];
        let placement = TopicPlacement { assignments, ..TopicPlacement::automatic(-1, -1) };
        let configs =
            configs.iter().map(|(key, value)| ((*key).to_owned(), Some((*value).to_owned())));
        let topics = vec![NewTopic { name: "t".into(), placement, configs: configs.collect() }];
        let operation = CreateTopics {
            topics,
            validate_only: false,
            default_partitions: 1,
            default_replication_factor: 1,
        };
        world.run(&operation).remove(0).1.unwrap();
        Self(world)
    }

    fn state(&self) -> PartitionState {
        self.0.image.partition("t", 0).unwrap().clone()
    }

    fn epoch(&self, id: BrokerId) -> i64 {
        self.0.image.brokers[&id].epoch
    }

    fn fence(&mut self, id: BrokerId, fenced: bool) {
        let epoch = self.epoch(id);
        self.0.run(&FenceBrokers { brokers: vec![(id, epoch)], fenced }).remove(0).unwrap();
    }

    fn start(&mut self, id: BrokerId, clean_start: bool, min_insync_replicas: usize) {
        let registration = register(id.0, "a");
        self.0.run(&RegisterBroker { clean_start, min_insync_replicas, ..registration }).unwrap();
    }

    /// The leader asks for that ISR.
    fn alter(&mut self, isr: &[BrokerId]) -> Result<(), ErrorCode> {
        let state = self.state();
        let broker = state.leader.unwrap();
        let isr = isr.iter().map(|id| IsrMember { id: *id, epoch: self.epoch(*id) });
        let change = IsrChange {
            topic_id: self.0.image.topic("t").unwrap().id,
            partition: 0,
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
            isr: isr.collect(),
        };
        let broker_epoch = self.epoch(broker);
        let operation = AlterIsr { broker, broker_epoch, changes: vec![change] };
        self.0.run(&operation).remove(0).map(|_| ()).map_err(|error| error.code)
    }

    fn set(&mut self, resource: ConfigResource, key: &str, value: Option<&str>) {
        let op = value.map_or(ConfigOp::Delete, |value| ConfigOp::Set(Some(value.to_owned())));
        let changes = vec![(key.to_owned(), op)];
        let resources = vec![ResourceAlteration { resource, changes, replace: false }];
        self.0.run(&AlterConfigs { resources, validate_only: false }).remove(0).1.unwrap();
    }

    /// `is` is `offline`, `online`, `full`, `shorter`, `anew` or `new`: all but the first are online.
    fn log(&mut self, id: BrokerId, is: &str) {
        let topic_id = self.0.image.topic("t").unwrap().id;
        let logs = vec![LogReport {
            topic_id,
            partition: 0,
            is_offline: is == "offline",
            is_full: is == "full",
            may_have_lost: matches!(is, "shorter" | "anew" | "new"),
            lacks_records: matches!(is, "anew" | "new"),
            is_new: is == "new",
        }];
        let broker_epoch = self.epoch(id);
        self.0.run(&ReportLogs { broker: id, broker_epoch, logs }).unwrap();
    }

    fn stop(&mut self, id: BrokerId) -> usize {
        let epoch = self.epoch(id);
        self.0.run(&StopBroker { id, epoch, partitions_max: 10 }).unwrap()
    }

    fn elect(&mut self, wanted: WantedLeader) -> ItemResult<()> {
        let partitions = Some(vec![("t".to_owned(), 0)]);
        self.0.run(&ElectLeaders { wanted, partitions }).remove(0).1
    }

    fn move_to(&mut self, replicas: Option<Vec<BrokerId>>) -> ItemResult<()> {
        let one = Reassignment { topic: "t".to_owned(), partition: 0, replicas };
        let partitions = vec![one];
        let operation = AlterReassignments { partitions, may_change_replication_factor: true };
        self.0.run(&operation).remove(0)
    }

    /// With the logs and directories that the line tells.
    fn start_with(&mut self, id: BrokerId, line: &Line<'_>) -> Option<ErrorCode> {
        let (mut found, mut open) = (FoundLogs::default(), OpenLogs::default());
        let all = [(self.0.image.topic("t").unwrap().id, BTreeSet::from([0]))];
        match line.text("log") {
            "whole" => open.whole.extend(all),
            "shorter" => open.may_have_lost.extend(all),
            "holed" => {
                open.may_have_lost.extend(all.clone());
                open.lacks_records.extend(all);
            }
            "offline" => found.offline.extend(all),
            "offline-by-name" => {
                found.offline_by_name.insert("t".to_owned(), BTreeSet::from([0]));
            }
            "unread" => found.has_unread = true,
            "never" => found.has_lists = true,
            _ => {}
        }
        let ids = |name: &str| line.find(name).map(|ids| ids.split(','));
        let uuid = |text: &str| Uuid::from_u128(text.parse().unwrap());
        found.given_up = ids("accepted").into_iter().flatten().map(uuid).collect();
        let absent = ids("absent").into_iter().flatten().map(uuid).collect();
        let disks: Vec<_> = ids("disk").map_or(vec!["1"], Iterator::collect);
        let directories: BTreeMap<_, _> = disks.into_iter().map(directory).collect();
        // The log lies in the last one that is named.
        let last = ids("disk").and_then(Iterator::last).unwrap_or("1");
        found.open.insert(directory(last).0, open);
        let found = Some(found);
        let registration = register(id.0, "a");
        let registration = RegisterBroker { directories, absent, found, ..registration };
        self.0.run(&registration).err().map(|error| error.code)
    }

    /// What it is refused for, if it is.
    fn step(&mut self, line: &Line<'_>) -> Option<ErrorCode> {
        let one = || line.ids("broker")[0];
        match line.word() {
            "fence" => {
                let brokers = line.ids("broker").into_iter().map(|id| (id, self.epoch(id)));
                let fence = FenceBrokers { brokers: brokers.collect(), fenced: true };
                self.0.run(&fence).into_iter().for_each(|done| done.unwrap());
            }
            "unfence" => self.fence(one(), false),
            "unregister" => {
                let unregister = UnregisterBroker { id: one() };
                return self.0.run(&unregister).err().map(|error| error.code);
            }
            "isr" => return self.alter(&line.ids("is")).err(),
            "log" => self.log(one(), line.text("is")),
            "start" => self.start(one(), line.text("clean") == "yes", 1),
            "of-an-earlier-version" => {
                let brokers = Arc::make_mut(&mut self.0.image.brokers);
                let own = Arc::make_mut(brokers.get_mut(&one()).unwrap());
                own.directories.clear();
            }
            "start-with" => return self.start_with(one(), line),
            "set" => {
                let resource = match line.text("on") {
                    "topic" => ConfigResource::Topic("t".to_owned()),
                    "cluster" => ConfigResource::Cluster,
                    id => ConfigResource::Broker(BrokerId(id.parse().unwrap())),
                };
                let (key, value) = line.text("key").split_once(':').unwrap();
                self.set(resource, key, Some(value));
            }
            "stop" => assert_eq!(self.stop(one()), 0),
            "elect" => {
                let unclean = line.text("wanted") == "unclean";
                let wanted = if unclean { WantedLeader::Unclean } else { WantedLeader::Preferred };
                return self.elect(wanted).err().map(|error| error.code);
            }
            "move" => {
                return self.move_to(Some(line.ids("to"))).err().map(|error| error.code);
            }
            "cancel" => return self.move_to(None).err().map(|error| error.code),
            other => panic!("{other}"),
        }
        None
    }
}

/// `2:7<6` is the log directory 2 in the state of the run 7, which comes after 6.
fn directory(text: &str) -> (Uuid, Stamp) {
    let number = |text: &str| Uuid::from_u128(text.parse().unwrap());
    let (id, runs) = text.split_once(':').unwrap_or((text, "0"));
    let (run, before) = runs.split_once('<').map_or((runs, None), |(run, it)| (run, Some(it)));
    (number(id), Stamp { run: number(run), before: before.map(number) })
}

/// `create` makes the topic with those configurations; every other event is followed by the state,
/// or by what it is refused for.
fn tell(script: &str) {
    let mut one = None;
    check(script, |line| {
        if line.word() == "create" {
            let configs = line.find("with").into_iter().flat_map(|with| with.split(','));
            let configs: Vec<_> = configs.map(|pair| pair.split_once(':').unwrap()).collect();
            let level = line.find("level").map(|level| level.parse().unwrap());
            one = Some(One::at(level.unwrap_or(Levels::SUPPORTED.max), &configs));
        } else {
            let refused = one.as_mut().unwrap().step(line);
            if let Some(code) = refused {
                return vec![format!("{code:?}")];
            }
        }
        vec![told(&one.as_ref().unwrap().state())]
    });
}

#[test]
fn who_leaves_an_isr_that_is_too_small_stays_eligible() {
    tell(
        "
        > create with=min.insync.replicas:2
        epoch 0 1 leads isr 1,2,3
        # Two are enough: what is committed now, 3 has not.
        > isr is=1,2
        epoch 0 1 leads isr 1,2
        # One is not: nothing is committed any more, and 2 has all that was.
        > fence broker=2
        epoch 0 1 leads isr 1 elr 2
        > fence broker=1
        epoch 1 nobody leads elr 1,2 last-known 1
        # 3 comes back and has not everything.
        > start broker=3 clean=yes
        epoch 1 nobody leads elr 1,2 last-known 1
        > unfence broker=2
        epoch 2 2 leads isr 2 elr 1
        > isr is=2,3
        epoch 2 2 leads isr 2,3
        > unfence broker=1
        epoch 2 2 leads isr 2,3
        ",
    );
}

/// One after the other, 1 would leave an ISR that is large enough, and 2 would lead for a moment.
#[test]
fn who_dies_together_is_eligible_together() {
    tell(
        "
        > create with=min.insync.replicas:2
        epoch 0 1 leads isr 1,2,3
        > fence broker=1,2
        epoch 1 3 leads isr 3 elr 1,2
        > fence broker=3
        epoch 2 nobody leads elr 1,2,3 last-known 3
        > unfence broker=1
        epoch 3 1 leads isr 1 elr 2,3
        > create with=min.insync.replicas:2
        epoch 0 1 leads isr 1,2,3
        > fence broker=1,2,3
        epoch 1 nobody leads elr 1,2,3 last-known 1
        ",
    );
}

#[test]
fn the_last_of_the_isr_waits_for_itself() {
    tell(
        "
        > create with=min.insync.replicas:1
        epoch 0 1 leads isr 1,2,3
        > isr is=1
        epoch 0 1 leads isr 1
        > fence broker=1
        epoch 1 nobody leads elr 1 last-known 1
        > start broker=2 clean=no
        epoch 1 nobody leads elr 1 last-known 1
        # Its process ended and its page cache with it: it may have lost some, and nobody has more.
        > start broker=1 clean=no
        epoch 2 1 leads (LastKnown) isr 1 may-have-more 2,3
        > isr is=1,3
        epoch 2 1 leads (LastKnown) isr 1,3 may-have-more 2
        # Another epoch begins with everything that is committed.
        > fence broker=1
        epoch 3 3 leads isr 3 may-have-more 2
        ",
    );
}

/// Its broker lives: a log directory has failed.
#[test]
fn who_has_its_log_out_of_use_leads_nothing_until_it_is_back() {
    tell(
        "
        > create with=min.insync.replicas:2
        epoch 0 1 leads isr 1,2,3
        > log broker=1 is=offline
        epoch 1 2 leads isr 2,3 offline 1
        > log broker=1 is=offline
        epoch 1 2 leads isr 2,3 offline 1
        # A word of the leader that was on its way.
        > isr is=1,2,3
        IneligibleReplica
        # Its broker started again, and has not said what its disk is like now.
        > start broker=1 clean=yes
        epoch 1 2 leads isr 2,3 offline 1
        > fence broker=3
        epoch 1 2 leads isr 2 elr 3 offline 1
        > elect wanted=preferred
        PreferredLeaderNotAvailable
        > log broker=2 is=offline
        epoch 2 nobody leads elr 2,3 last-known 2 offline 1,2
        # It has missed what was committed with 2 and 3.
        > log broker=1 is=online
        epoch 2 nobody leads elr 2,3 last-known 2 offline 2
        > log broker=2 is=online
        epoch 3 2 leads isr 2 elr 3
        > isr is=1,2
        epoch 3 2 leads isr 1,2
        ",
    );
}

/// Neither by an election that may lose records, nor after it has lost its own.
#[test]
fn nobody_is_elected_whose_log_is_out_of_use() {
    tell(
        "
        > create with=min.insync.replicas:1,unclean.leader.election.enable:true
        epoch 0 1 leads isr 1,2,3
        > isr is=1
        epoch 0 1 leads isr 1
        > log broker=2 is=offline
        epoch 0 1 leads isr 1 offline 2
        > fence broker=1
        epoch 1 3 leads (Unclean) isr 3 offline 2 may-have-more 1,2
        > fence broker=3
        epoch 2 nobody leads elr 3 last-known 3 offline 2 may-have-more 1,2
        > log broker=2 is=online
        epoch 3 2 leads (Unclean) isr 2 may-have-more 1,3
        > create with=min.insync.replicas:1
        epoch 0 1 leads isr 1,2,3
        > isr is=1
        epoch 0 1 leads isr 1
        > log broker=1 is=offline
        epoch 1 nobody leads elr 1 last-known 1 offline 1
        # The power of its machine was cut, and its log is still out of use.
        > start broker=1 clean=no
        epoch 1 nobody leads last-known 1 offline 1
        > log broker=1 is=online
        epoch 2 1 leads (LastKnown) isr 1 may-have-more 2,3
        ",
    );
}

#[test]
fn an_unclean_start_ends_eligibility_unless_it_had_synced() {
    tell(
        "
        > create with=min.insync.replicas:3,flush.on.ack:false
        epoch 0 1 leads isr 1,2,3
        > fence broker=3
        epoch 0 1 leads isr 1,2 elr 3
        > start broker=3 clean=no
        epoch 0 1 leads isr 1,2
        > fence broker=2
        epoch 0 1 leads isr 1 elr 2
        > start broker=2 clean=yes
        epoch 0 1 leads isr 1 elr 2
        # The leader itself, before anybody has noticed its end.
        > start broker=1 clean=no
        epoch 1 2 leads isr 2
        ",
    );
    tell(
        "
        > create with=min.insync.replicas:3,flush.on.ack:true
        epoch 0 1 leads isr 1,2,3
        > fence broker=3
        epoch 0 1 leads isr 1,2 elr 3
        > start broker=3 clean=no
        epoch 0 1 leads isr 1,2 elr 3
        > start broker=1 clean=no
        epoch 1 1 leads isr 1,2 elr 3
        ",
    );
}

/// Whatever its topic says now: it did not wait for the disk when they counted; or a person has
/// accepted that they are lost.
#[test]
fn who_says_that_its_log_may_lack_records_is_not_eligible() {
    tell(
        "
        > create with=min.insync.replicas:3,flush.on.ack:true
        epoch 0 1 leads isr 1,2,3
        > fence broker=1,2,3
        epoch 1 nobody leads elr 1,2,3 last-known 1
        > start-with broker=1 log=shorter
        epoch 1 nobody leads elr 2,3 last-known 1
        > log broker=2 is=offline
        epoch 1 nobody leads elr 2,3 last-known 1 offline 2
        > start broker=2 clean=yes
        epoch 1 nobody leads elr 2,3 last-known 1 offline 2
        # It can be opened now, and is not whole.
        > log broker=2 is=shorter
        epoch 1 nobody leads elr 3 last-known 1
        > start broker=3 clean=yes
        epoch 2 3 leads isr 3
        ",
    );
}

/// It was not fenced between its two starts.
#[test]
fn who_starts_without_a_log_neither_leads_nor_is_in_sync() {
    tell(
        "
        > create with=min.insync.replicas:2,flush.on.ack:true
        epoch 0 1 leads isr 1,2,3
        > start-with broker=1 log=whole
        epoch 0 1 leads isr 1,2,3
        > start-with broker=1 log=none
        epoch 1 2 leads isr 2,3 lost 1
        > start-with broker=2 log=offline
        epoch 2 3 leads isr 3 elr 2 offline 2 lost 1
        > start-with broker=2 log=offline-by-name
        epoch 2 3 leads isr 3 elr 2 offline 2 lost 1
        > start-with broker=2 log=unread
        epoch 2 3 leads isr 3 elr 2 offline 2 lost 1
        > isr is=1,3
        epoch 2 3 leads isr 1,3 offline 2
        > start-with broker=2 log=whole
        epoch 2 3 leads isr 1,3
        > fence broker=1,3
        epoch 3 nobody leads elr 1,3 last-known 3
        > start-with broker=1 log=none
        epoch 3 nobody leads elr 3 last-known 3 lost 1
        # 2 has missed something, and is the only one that has anything.
        > start-with broker=3 log=none
        epoch 4 2 leads (LastKnown) isr 2 lost 1,3 may-have-more 1,3
        > isr is=2,3
        epoch 4 2 leads (LastKnown) isr 2,3 lost 1 may-have-more 1
        ",
    );
}

/// It was the last in sync: the others, who are behind, have what there is.
#[test]
fn a_lost_log_does_not_lead_by_itself_where_there_is_another() {
    for log in ["none", "holed"] {
        tell(
            &"
            > create with=min.insync.replicas:1,flush.on.ack:true
            epoch 0 1 leads isr 1,2,3
            > isr is=1
            epoch 0 1 leads isr 1
            > fence broker=1,2,3
            epoch 1 nobody leads elr 1 last-known 1
            > start-with broker=1 log=LOG
            epoch 1 nobody leads last-known 2,3 lost 1
            # It is not known which of two has more.
            > start-with broker=2 log=whole
            epoch 1 nobody leads last-known 2,3 lost 1
            > start-with broker=3 log=LOG
            epoch 2 2 leads (LastKnown) isr 2 lost 1,3 may-have-more 1,3
            # One of them may be empty, and another copied nearly whole.
            > start-with broker=2 log=LOG
            epoch 3 nobody leads last-known 1,2,3 lost 1,2,3 may-have-more 1,3
            > fence broker=1
            epoch 3 nobody leads last-known 1,2,3 lost 1,2,3 may-have-more 1,3
            > start-with broker=1 log=whole
            epoch 3 nobody leads last-known 1,2,3 lost 1,2,3 may-have-more 1,3
            # A person says which, by the order of the assignment.
            > move to=3,1,2
            epoch 3 nobody leads last-known 3,1,2 lost 3,1,2 may-have-more 3,1
            > elect wanted=unclean
            epoch 4 3 leads (Unclean) isr 3 lost 1,2 may-have-more 1,2
            > isr is=3,2
            epoch 4 3 leads (Unclean) isr 3,2 lost 1 may-have-more 1
            > fence broker=3
            epoch 5 2 leads isr 2 lost 1 may-have-more 1
            "
            .replace("LOG", log),
        );
    }
    // A log that lacks its end is another matter: it led last, and nobody is known to have more.
    tell(
        "
        > create with=min.insync.replicas:1,flush.on.ack:true
        epoch 0 1 leads isr 1,2,3
        > isr is=1
        epoch 0 1 leads isr 1
        > start-with broker=1 log=shorter
        epoch 1 1 leads (LastKnown) isr 1 may-have-more 2,3
        # Made anew while the broker runs, where nothing was left.
        > log broker=1 is=offline
        epoch 2 nobody leads elr 1 last-known 1 offline 1 may-have-more 2,3
        > log broker=1 is=anew
        epoch 2 nobody leads last-known 2,3 lost 1 may-have-more 2,3
        ",
    );
}

/// The configuration asks for a leader at any cost, but not for one that has nothing while another
/// may come back with something; a person may. Where all have lost theirs, it does.
#[test]
fn an_unclean_election_takes_who_has_something() {
    tell(
        "
        > create with=min.insync.replicas:1,unclean.leader.election.enable:true
        epoch 0 1 leads isr 1,2,3
        > isr is=1
        epoch 0 1 leads isr 1
        > fence broker=1,2,3
        epoch 1 nobody leads elr 1 last-known 1
        > start-with broker=1 log=none
        epoch 1 nobody leads last-known 2,3 lost 1
        > start-with broker=3 log=whole
        epoch 2 3 leads (Unclean) isr 3 lost 1 may-have-more 1,2
        # Eligible, though fenced: a lost one does not take the lead from it.
        > fence broker=3
        epoch 3 nobody leads elr 3 last-known 3 lost 1 may-have-more 1,2
        > elect wanted=unclean
        epoch 4 1 leads (Unclean) isr 1 may-have-more 2,3
        > start-with broker=3 log=none
        epoch 4 1 leads (Unclean) isr 1 lost 3 may-have-more 2,3
        > start-with broker=2 log=none
        epoch 4 1 leads (Unclean) isr 1 lost 2,3 may-have-more 2,3
        > start-with broker=1 log=none
        epoch 5 1 leads (Unclean) isr 1 lost 2,3 may-have-more 2,3
        > create with=min.insync.replicas:1
        epoch 0 1 leads isr 1,2,3
        > isr is=1
        epoch 0 1 leads isr 1
        > start-with broker=1 log=none
        epoch 1 nobody leads last-known 2,3 lost 1
        > move to=4,2,3
        epoch 1 nobody leads last-known 2,3 of 4,2,3,1 adding 4 removing 1 lost 1
        # Who had the partition before it moved rather than who is only getting it.
        > elect wanted=unclean
        epoch 2 2 leads (Unclean) isr 2 of 4,2,3,1 adding 4 removing 1 lost 1 may-have-more 4,3,1
        > elect wanted=preferred
        PreferredLeaderNotAvailable
        # It may have the last copy of something until it has been in sync.
        > isr is=4,2,3
        epoch 2 2 leads (Unclean) isr 4,2,3 of 4,2,3,1 adding 4 removing 1 lost 1 may-have-more 1
        > isr is=4,2,3,1
        epoch 3 2 leads isr 4,2,3
        ",
    );
}

/// It may be empty yet, and the log of who had the partition be copied nearly whole.
#[test]
fn who_is_only_to_come_does_not_lead_by_itself_beside_lost_logs() {
    for lost in ["start-with broker=1 log=holed", "log broker=1 is=anew"] {
        tell(
            &"
            > create with=min.insync.replicas:1
            epoch 0 1 leads isr 1,2,3
            > move to=1
            epoch 1 1 leads isr 1
            > move to=4
            epoch 1 1 leads isr 1 of 4,1 adding 4 removing 1
            > LOST
            epoch 2 nobody leads last-known 4,1 of 4,1 adding 4 removing 1 lost 1
            > start-with broker=4 log=whole
            epoch 2 nobody leads last-known 4,1 of 4,1 adding 4 removing 1 lost 1
            # The one way to have the log of before.
            > cancel
            epoch 3 1 leads (LastKnown) isr 1
            > move to=1,4
            epoch 3 1 leads (LastKnown) isr 1 of 1,4 adding 4
            > LOST
            epoch 4 nobody leads last-known 1,4 of 1,4 adding 4 lost 1
            > move to=5,4
            epoch 4 nobody leads last-known 5,4 of 5,4,1 adding 5,4 removing 1 lost 1
            # Of several, the others are lost.
            > start-with broker=5 log=none
            epoch 4 nobody leads last-known 5,4,1 of 5,4,1 adding 5,4 removing 1 lost 5,1
            > elect wanted=unclean
            epoch 5 4 leads (Unclean) isr 4 of 5,4,1 adding 5,4 removing 1 lost 5,1 may-have-more 5,1
            "
            .replace("LOST", lost),
        );
    }
    // Who was to come and led last had everything.
    tell(
        "
        > create with=min.insync.replicas:1
        epoch 0 1 leads isr 1,2,3
        > move to=4,5
        epoch 0 1 leads isr 1,2,3 of 4,5,1,2,3 adding 4,5 removing 1,2,3
        > isr is=1,4
        epoch 0 1 leads isr 4,1 of 4,5,1,2,3 adding 4,5 removing 1,2,3
        > fence broker=1
        epoch 1 4 leads isr 4 of 4,5,1,2,3 adding 4,5 removing 1,2,3
        > start-with broker=4 log=shorter
        epoch 2 4 leads (LastKnown) isr 4 of 4,5,1,2,3 adding 4,5 removing 1,2,3 may-have-more 5,1,2,3
        ",
    );
}

/// Its log would be deleted, and may be the last one that has something.
#[test]
fn a_move_does_not_end_while_one_that_is_to_go_may_have_more() {
    for end in ["isr is=4,1", "unregister broker=1"] {
        tell(
            &"
            > create with=min.insync.replicas:1,unclean.leader.election.enable:true
            epoch 0 1 leads isr 1,2,3
            > move to=1
            epoch 1 1 leads isr 1
            > move to=4
            epoch 1 1 leads isr 1 of 4,1 adding 4 removing 1
            > fence broker=1
            epoch 2 4 leads (Unclean) isr 4 of 4,1 adding 4 removing 1 may-have-more 1
            > unfence broker=1
            epoch 2 4 leads (Unclean) isr 4 of 4,1 adding 4 removing 1 may-have-more 1
            > log broker=1 is=offline
            epoch 2 4 leads (Unclean) isr 4 of 4,1 adding 4 removing 1 offline 1 may-have-more 1
            > log broker=1 is=online
            epoch 2 4 leads (Unclean) isr 4 of 4,1 adding 4 removing 1 may-have-more 1
            # It has been in sync, or is gone for good.
            > END
            epoch 3 4 leads isr 4
            "
            .replace("END", end),
        );
    }
}

#[test]
fn a_move_that_is_given_up_keeps_who_may_have_more() {
    tell(
        "
        > create with=min.insync.replicas:1,unclean.leader.election.enable:true
        epoch 0 1 leads isr 1,2,3
        > move to=1
        epoch 1 1 leads isr 1
        > move to=4,5
        epoch 1 1 leads isr 1 of 4,5,1 adding 4,5 removing 1
        > isr is=1,4
        epoch 1 1 leads isr 4,1 of 4,5,1 adding 4,5 removing 1
        > fence broker=1
        epoch 2 4 leads isr 4 of 4,5,1 adding 4,5 removing 1
        > fence broker=4,5
        epoch 3 nobody leads elr 4 last-known 4 of 4,5,1 adding 4,5 removing 1
        > unfence broker=1
        epoch 4 1 leads (Unclean) isr 1 of 4,5,1 adding 4,5 removing 1 may-have-more 4,5
        > cancel
        epoch 4 1 leads (Unclean) isr 1 of 1,4,5 adding 4,5 removing 4,5 may-have-more 4,5
        > unfence broker=4,5
        epoch 4 1 leads (Unclean) isr 1 of 1,4,5 adding 4,5 removing 4,5 may-have-more 4,5
        > isr is=1,4
        epoch 4 1 leads (Unclean) isr 1,4 of 1,4,5 adding 4,5 removing 4,5 may-have-more 5
        # It is gone for good.
        > unregister broker=5
        epoch 5 1 leads isr 1
        ",
    );
}

/// The others are gone for good. A person says so by an unclean election.
#[test]
fn a_lost_log_leads_when_a_person_asks_for_it() {
    tell(
        "
        > create with=min.insync.replicas:1
        epoch 0 1 leads isr 1,2,3
        > isr is=1
        epoch 0 1 leads isr 1
        > fence broker=2,3
        epoch 0 1 leads isr 1
        > start-with broker=1 log=none
        epoch 1 nobody leads last-known 2,3 lost 1
        > move to=1
        epoch 1 nobody leads last-known 2,3 of 1,2,3 removing 2,3 lost 1
        > elect wanted=unclean
        epoch 2 1 leads (Unclean) isr 1 of 1,2,3 removing 2,3 may-have-more 2,3
        > unregister broker=2
        epoch 2 1 leads (Unclean) isr 1 of 1,2,3 removing 2,3 may-have-more 2,3
        > unregister broker=3
        epoch 3 1 leads isr 1
        ",
    );
}

#[test]
fn fewer_that_must_be_in_sync_end_eligibility() {
    for on in ["topic", "cluster"] {
        let script = "
            > create
            epoch 0 1 leads isr 1,2,3
            > set on=ON key=min.insync.replicas:3
            epoch 0 1 leads isr 1,2,3
            > isr is=1,2
            epoch 0 1 leads isr 1,2 elr 3
            > set on=ON key=min.insync.replicas:2
            epoch 0 1 leads isr 1,2
            > fence broker=2
            epoch 0 1 leads isr 1 elr 2
            # Nobody commits anything meanwhile.
            > fence broker=1
            epoch 1 nobody leads elr 1,2 last-known 1
            > set on=ON key=min.insync.replicas:1
            epoch 1 nobody leads elr 1,2 last-known 1
            > start broker=2 clean=yes
            epoch 2 2 leads isr 2
            ";
        tell(&script.replace("ON", on));
    }
    // What one broker goes by counts: it may lead.
    tell(
        "
        > create
        epoch 0 1 leads isr 1,2,3
        > set on=cluster key=min.insync.replicas:3
        epoch 0 1 leads isr 1,2,3
        > isr is=1,2
        epoch 0 1 leads isr 1,2 elr 3
        > set on=2 key=min.insync.replicas:2
        epoch 0 1 leads isr 1,2
        ",
    );
}

#[test]
fn nobody_leads_who_may_have_missed_something_unless_the_topic_allows_it() {
    tell(
        "
        > create with=min.insync.replicas:1
        epoch 0 1 leads isr 1,2,3
        > isr is=1
        epoch 0 1 leads isr 1
        > fence broker=1
        epoch 1 nobody leads elr 1 last-known 1
        > set on=topic key=unclean.leader.election.enable:true
        epoch 2 2 leads (Unclean) isr 2 may-have-more 1,3
        > unfence broker=1
        epoch 2 2 leads (Unclean) isr 2 may-have-more 1,3
        > fence broker=2
        epoch 3 1 leads (Unclean) isr 1 may-have-more 2,3
        > isr is=1,3
        epoch 3 1 leads (Unclean) isr 1,3 may-have-more 2
        > fence broker=1
        epoch 4 3 leads isr 3 may-have-more 2
        > set on=cluster key=unclean.leader.election.enable:false
        epoch 4 3 leads isr 3 may-have-more 2
        > set on=topic key=unclean.leader.election.enable:false
        epoch 4 3 leads isr 3 may-have-more 2
        > fence broker=3
        epoch 5 nobody leads elr 3 last-known 3 may-have-more 2
        > set on=topic key=unclean.leader.election.enable:false
        epoch 5 nobody leads elr 3 last-known 3 may-have-more 2
        ",
    );
}

#[test]
fn leaders_are_elected_on_request_with_kafkas_refusals() {
    tell(
        "
        > create with=min.insync.replicas:1
        epoch 0 1 leads isr 1,2,3
        > elect wanted=preferred
        ElectionNotNeeded
        > elect wanted=unclean
        ElectionNotNeeded
        > fence broker=1
        epoch 1 2 leads isr 2,3
        > elect wanted=preferred
        PreferredLeaderNotAvailable
        > unfence broker=1
        epoch 1 2 leads isr 2,3
        # It is there and has not everything.
        > elect wanted=preferred
        PreferredLeaderNotAvailable
        > isr is=1,2,3
        epoch 1 2 leads isr 1,2,3
        > elect wanted=preferred
        epoch 2 1 leads isr 1,2,3
        > isr is=1
        epoch 2 1 leads isr 1
        > fence broker=1
        epoch 3 nobody leads elr 1 last-known 1
        > elect wanted=unclean
        epoch 4 2 leads (Unclean) isr 2 may-have-more 1,3
        > fence broker=2
        epoch 5 nobody leads elr 2 last-known 2 may-have-more 1,3
        > fence broker=3
        epoch 5 nobody leads elr 2 last-known 2 may-have-more 1,3
        > elect wanted=unclean
        EligibleLeadersNotAvailable
        ",
    );
    let mut one = One::new(&[]);
    for (partition, words) in [(("u", 0), "No such topic as u"), (("t", 7), "partition as t-7")] {
        let partitions = Some(vec![(partition.0.to_owned(), partition.1)]);
        let operation = ElectLeaders { wanted: WantedLeader::Preferred, partitions };
        let error = one.0.run(&operation).remove(0).1.unwrap_err();
        assert_eq!(error.code, ErrorCode::UnknownTopicOrPartition);
        assert!(error.message.contains(words), "{error}");
    }
    let all = ElectLeaders { wanted: WantedLeader::Preferred, partitions: None };
    assert_eq!(one.0.run(&all), []);
}

#[test]
fn a_broker_that_stops_leaves_what_others_can_take() {
    tell(
        "
        > create with=min.insync.replicas:2
        epoch 0 1 leads isr 1,2,3
        > stop broker=1
        epoch 1 2 leads isr 2,3
        > unfence broker=1
        epoch 1 2 leads isr 2,3
        # The first of the assignment does not get it back before its next start.
        > elect wanted=preferred
        PreferredLeaderNotAvailable
        > stop broker=2
        epoch 2 3 leads isr 3 elr 2
        # The only one that is in sync stays, so that the stop of all ends.
        > stop broker=3
        epoch 2 3 leads isr 3 elr 2
        > fence broker=3
        epoch 3 2 leads isr 2 elr 3
        > start broker=1 clean=yes
        epoch 3 2 leads isr 2 elr 3
        > isr is=1,2
        epoch 3 2 leads isr 1,2
        > stop broker=2
        epoch 4 1 leads isr 1 elr 2
        ",
    );
    let mut one = One::new(&[]);
    one.stop(IDS[1]);
    assert_eq!(one.alter(&IDS[..3]), Err(ErrorCode::IneligibleReplica));
    one.stop(IDS[0]);
    one.stop(IDS[2]);
    one.0.create("u", 6, 2).unwrap();
    for state in one.0.image.topic("u").unwrap().partitions.values() {
        assert!(state.replicas.iter().all(|id| [4, 5].contains(&id.0)), "{state:?}");
    }
}

#[test]
fn a_stop_leaves_some_partitions_at_a_time() {
    let mut world = World::with_racks(&["a", "b", "c"]);
    world.create("t", 30, 3).unwrap();
    let (id, epoch) = (BrokerId(2), world.image.brokers[&BrokerId(2)].epoch);
    let mut left = Vec::new();
    while left.last() != Some(&0) {
        left.push(world.run(&StopBroker { id, epoch, partitions_max: 12 }).unwrap());
    }
    assert_eq!(left, [18, 6, 0]);
    let states = world.image.topic("t").unwrap().partitions.values();
    states.for_each(|state| assert!(!state.isr.contains(&id) && state.leader != Some(id)));
}

#[test]
fn leads_go_back_to_the_preferred_replicas_some_at_a_time() {
    let mut world = World::with_racks(&["a", "b", "c"]);
    world.create("t", 30, 3).unwrap();
    let (id, epoch) = (BrokerId(2), world.image.brokers[&BrokerId(2)].epoch);
    for fenced in [true, false] {
        let fence = FenceBrokers { brokers: vec![(id, epoch)], fenced };
        world.run(&fence).remove(0).unwrap();
    }
    // Not in sync yet.
    assert_eq!(world.run(&BalanceLeaders { leads_max: 4 }), 0);
    (0..30).for_each(|index| alter_isr_of(&mut world, "t", index, 0b1110));
    let moved: Vec<_> = (0..4).map(|_| world.run(&BalanceLeaders { leads_max: 4 })).collect();
    assert_eq!(moved, [4, 4, 2, 0]);
    let states = world.image.topic("t").unwrap().partitions.values();
    states.for_each(|state| assert_eq!(state.leader, state.replicas.first().copied()));
}

#[test]
fn replicas_move_when_all_that_stay_are_in_sync() {
    tell(
        "
        > create with=min.insync.replicas:2
        epoch 0 1 leads isr 1,2,3
        > cancel
        NoReassignmentInProgress
        > move to=4,4
        InvalidReplicaAssignment
        > move to=9
        InvalidReplicaAssignment
        > move to=4,2,5
        epoch 0 1 leads isr 2,1,3 of 4,2,5,1,3 adding 4,5 removing 1,3
        > isr is=1,2,3,4
        epoch 0 1 leads isr 4,2,1,3 of 4,2,5,1,3 adding 4,5 removing 1,3
        # A source and a target go and come back.
        > fence broker=1
        epoch 1 4 leads isr 4,2,3 of 4,2,5,1,3 adding 4,5 removing 1,3
        > fence broker=4
        epoch 2 2 leads isr 2,3 of 4,2,5,1,3 adding 4,5 removing 1,3
        > start broker=4 clean=yes
        epoch 2 2 leads isr 2,3 of 4,2,5,1,3 adding 4,5 removing 1,3
        > isr is=2,3,4,5
        epoch 3 2 leads isr 4,2,5
        > elect wanted=preferred
        epoch 4 4 leads isr 4,2,5
        ",
    );
    // More and fewer: what must be in sync follows what is there.
    tell(
        "
        > create with=min.insync.replicas:2
        epoch 0 1 leads isr 1,2,3
        > move to=3
        epoch 1 3 leads isr 3
        > move to=1,2,3
        epoch 1 3 leads isr 3 of 1,2,3 adding 1,2
        > isr is=3,1
        epoch 1 3 leads isr 1,3 of 1,2,3 adding 1,2
        > isr is=1,2,3
        epoch 1 3 leads isr 1,2,3
        # The order alone.
        > move to=3,2,1
        epoch 1 3 leads isr 3,2,1
        > isr is=2,3
        epoch 1 3 leads isr 3,2
        # Fewer, and one that stays is not in sync.
        > move to=1,2
        epoch 1 3 leads isr 2,3 of 1,2,3 removing 3
        > isr is=1,2,3
        epoch 2 1 leads isr 1,2
        ",
    );
}

#[test]
fn a_move_is_given_up_or_changed_only_while_enough_stay_in_sync() {
    tell(
        "
        > create with=min.insync.replicas:2
        epoch 0 1 leads isr 1,2,3
        > move to=4,5
        epoch 0 1 leads isr 1,2,3 of 4,5,1,2,3 adding 4,5 removing 1,2,3
        > isr is=1,2,3,4
        epoch 0 1 leads isr 4,1,2,3 of 4,5,1,2,3 adding 4,5 removing 1,2,3
        > cancel
        epoch 1 1 leads isr 1,2,3
        > move to=4,5
        epoch 1 1 leads isr 1,2,3 of 4,5,1,2,3 adding 4,5 removing 1,2,3
        > isr is=1,4
        epoch 1 1 leads isr 4,1 of 4,5,1,2,3 adding 4,5 removing 1,2,3
        # One of two that have everything would go.
        > cancel
        InvalidReplicaAssignment
        # It may be the one that has everything: it stays until the others have.
        > move to=1,2,5
        epoch 1 1 leads isr 1,4 of 1,2,5,4,3 adding 5,4 removing 4,3
        > isr is=1,2,4
        epoch 1 1 leads isr 1,2,4 of 1,2,5,4,3 adding 5,4 removing 4,3
        > cancel
        epoch 2 1 leads isr 1,2
        > move to=4,5
        epoch 2 1 leads isr 1,2 of 4,5,1,2,3 adding 4,5 removing 1,2,3
        > isr is=1,4
        epoch 2 1 leads isr 4,1 of 4,5,1,2,3 adding 4,5 removing 1,2,3
        > move to=4,1
        epoch 3 1 leads isr 4,1
        ",
    );
    // Also where an unclean leader could be had at once.
    tell(
        "
        > create with=min.insync.replicas:1,unclean.leader.election.enable:true
        epoch 0 1 leads isr 1,2,3
        > move to=4,5
        epoch 0 1 leads isr 1,2,3 of 4,5,1,2,3 adding 4,5 removing 1,2,3
        > isr is=1,4
        epoch 0 1 leads isr 4,1 of 4,5,1,2,3 adding 4,5 removing 1,2,3
        > fence broker=1
        epoch 1 4 leads isr 4 of 4,5,1,2,3 adding 4,5 removing 1,2,3
        > move to=2,5
        epoch 1 4 leads isr 4 of 2,5,4,1,3 adding 5,4 removing 4,1,3
        > isr is=2,4,5
        epoch 2 2 leads isr 2,5
        ",
    );
    let mut one = One::new(&[]);
    let partitions = vec![Reassignment {
        topic: "t".to_owned(),
        partition: 0,
        replicas: Some(vec![BrokerId(4)]),
    }];
    let operation = AlterReassignments { partitions, may_change_replication_factor: false };
    let error = one.0.run(&operation).remove(0).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidReplicationFactor);
    one.move_to(Some(vec![BrokerId(4), BrokerId(5), BrokerId(1)])).unwrap();
    let moving: Vec<_> =
        one.0.image.reassignments().map(|(topic, n, _)| (&*topic.name, n)).collect();
    assert_eq!(moving, [("t", 0)]);
}

/// The records of every replica, and what was committed.
struct Model {
    one: One,
    /// Whether records count before they are on the disk.
    counts_page_cache: bool,
    logs: BTreeMap<BrokerId, Vec<u32>>,
    synced: BTreeMap<BrokerId, usize>,
    up: BTreeSet<BrokerId>,
    /// Whose log is out of use.
    offline: BTreeSet<BrokerId>,
    /// Whose log takes no records.
    full: BTreeSet<BrokerId>,
    committed: Vec<u32>,
    /// What was committed and is lost with an election.
    gone: BTreeSet<u32>,
    next: u32,
    /// Who lost its log and was not in sync since.
    lost: BTreeSet<BrokerId>,
    /// The leader epoch whose leader was looked at.
    looked_at: i32,
    seen: Seen,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    committed: usize,
    elected: usize,
    from_elr: usize,
    unclean: usize,
    last_known: usize,
    full: usize,
}

fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

impl Model {
    fn new(counts_page_cache: bool, min_insync: usize) -> Self {
        let flush_on_ack = (!counts_page_cache).to_string();
        let one = One::new(&[("flush.on.ack", &flush_on_ack)]);
        let mut model = Self {
            one,
            counts_page_cache,
            logs: IDS.map(|id| (id, Vec::new())).into(),
            synced: IDS.map(|id| (id, 0)).into(),
            up: IDS.into(),
            offline: BTreeSet::new(),
            full: BTreeSet::new(),
            committed: Vec::new(),
            gone: BTreeSet::new(),
            next: 0,
            lost: BTreeSet::new(),
            looked_at: 0,
            seen: Seen::default(),
        };
        IDS.iter().for_each(|id| model.one.start(*id, true, min_insync));
        model
    }

    fn is_fenced(&self, id: BrokerId) -> bool {
        !self.one.0.image.is_live(id)
    }

    /// The leader, when its process is up.
    fn leader(&self) -> Option<BrokerId> {
        self.one.state().leader.filter(|leader| self.up.contains(leader))
    }

    /// How many must be in sync, as the leader sees it.
    fn required(&self, leader: BrokerId) -> usize {
        let image = &self.one.0.image;
        let set = |configs: &crate::metadata::Configs| {
            configs.get(MIN_INSYNC).map(|value| value.parse::<usize>().unwrap())
        };
        let min_insync = set(&image.topic("t").unwrap().configs)
            .or_else(|| image.broker_configs.get(&leader).and_then(set))
            .or_else(|| set(&image.cluster_configs))
            .unwrap_or(image.brokers[&leader].min_insync_replicas);
        self.one.state().required_in_sync(min_insync)
    }

    /// Up to where a replica counts for the leader.
    fn counts(&self, id: BrokerId, leader: BrokerId) -> usize {
        let log = &self.logs[&id];
        let counted = if self.counts_page_cache { log.len() } else { self.synced[&id] };
        common(log, &self.logs[&leader]).min(counted)
    }

    fn step(&mut self, (what, whom, more): (u8, u8, u8)) {
        let id = IDS[usize::from(whom) % 5];
        let is_there = self.up.contains(&id) && !self.offline.contains(&id);
        match what % 26 {
            0..=2 => self.produce(),
            3 | 4 => self.fetch(id),
            5 => drop(self.synced.insert(id, self.logs[&id].len())),
            6 | 7 => self.alter(more),
            8 => self.crash(id, more),
            9 if !self.is_fenced(id) => self.one.fence(id, true),
            10 if self.is_fenced(id) && self.up.contains(&id) => self.one.fence(id, false),
            11 | 12 if !self.up.contains(&id) => {
                self.up.insert(id);
                self.one.start(id, false, usize::from(more % 3) + 1);
            }
            20..=22 if !self.up.contains(&id) => self.start_empty(id),
            13 => self.configure(id, more),
            14 if self.up.contains(&id) => drop(self.one.stop(id)),
            15 => drop(self.one.elect(WantedLeader::Preferred)),
            16 => {
                let target = IDS.into_iter().cycle().skip(usize::from(whom) % 5);
                drop(self.one.move_to(Some(target.take(usize::from(more) % 4).collect())));
            }
            17 => drop(self.one.move_to(None)),
            18 if self.up.contains(&id) && self.offline.insert(id) => {
                self.one.log(id, "offline");
            }
            19 if self.up.contains(&id) && self.offline.remove(&id) => {
                self.full.remove(&id);
                self.one.log(id, if self.lost.contains(&id) { "anew" } else { "online" });
            }
            23 | 24 if is_there && self.full.insert(id) => {
                let had = self.one.state().isr.contains(&id);
                self.one.log(id, "full");
                self.seen.full += usize::from(had && !self.one.state().isr.contains(&id));
            }
            25 if is_there && self.full.remove(&id) => self.one.log(id, "online"),
            _ => {}
        }
        let replicas = self.one.state().replicas;
        for (id, log) in self.logs.iter_mut().filter(|(id, _)| !replicas.contains(id)) {
            log.clear();
            self.synced.insert(*id, 0);
        }
    }

    /// Its disk was lost, and that was accepted.
    fn start_empty(&mut self, id: BrokerId) {
        self.up.insert(id);
        self.logs.entry(id).or_default().clear();
        self.synced.insert(id, 0);
        self.offline.remove(&id);
        self.lost.insert(id);
        let found = Some(FoundLogs::default());
        self.one.0.run(&RegisterBroker { found, ..register(id.0, "a") }).unwrap();
        // It was out of use before, and is not made anew by itself.
        if self.one.state().is_lost_on(id) {
            self.offline.insert(id);
        }
    }

    fn produce(&mut self) {
        let Some(leader) = self.leader().filter(|id| !self.full.contains(id)) else { return };
        if self.one.state().isr.len() >= self.required(leader) {
            self.next += 1;
            self.logs.get_mut(&leader).unwrap().push(self.next);
        }
    }

    fn fetch(&mut self, id: BrokerId) {
        let Some(leader) = self.leader().filter(|leader| *leader != id) else { return };
        let is_there = self.up.contains(&id) && !self.offline.contains(&id);
        if !is_there || !self.one.state().replicas.contains(&id) {
            return;
        }
        let mut newest = self.logs[&leader].clone();
        let same = common(&self.logs[&id], &newest);
        // What differs is cut, and nothing is appended.
        if self.full.contains(&id) {
            newest.truncate(same);
        }
        self.synced.entry(id).and_modify(|synced| *synced = same.min(*synced));
        self.logs.insert(id, newest);
    }

    fn commit(&mut self) {
        let state = self.one.state();
        self.lost.retain(|id| state.replicas.contains(id) && !state.isr.contains(id));
        let Some(leader) = self.leader() else { return };
        let isr = self.one.state().isr;
        if isr.len() < self.required(leader) {
            return;
        }
        let end = isr.iter().map(|id| self.counts(*id, leader)).min().unwrap();
        if end > self.committed.len() {
            self.seen.committed += end - self.committed.len();
            assert_eq!(self.logs[&leader][..self.committed.len()], self.committed);
            self.committed = self.logs[&leader][..end].to_vec();
        }
    }

    /// The leader drops whom it likes from the ISR, and adds who has what is committed.
    fn alter(&mut self, mask: u8) {
        let Some(leader) = self.leader() else { return };
        let PartitionState { isr: old, replicas, offline, full, .. } = self.one.state();
        let may_stay = |id: &BrokerId| {
            *id == leader
                || mask & (1 << id.0) != 0
                    && (old.contains(id)
                        || self.one.0.image.is_serving(*id)
                            && replicas.contains(id)
                            && !offline.contains(id)
                            && self.counts(*id, leader) >= self.committed.len()
                            // It has cut what its leader does not have.
                            && self.logs[&leader].starts_with(&self.logs[id]))
        };
        let mut isr: Vec<_> = IDS.into_iter().filter(may_stay).collect();
        if !isr.iter().all(|id| full.contains(id)) {
            isr.retain(|id| old.contains(id) || !full.contains(id));
        }
        self.one.alter(&isr).unwrap();
    }

    /// The power of one broker goes: what was not synced is lost, or some of it.
    fn crash(&mut self, id: BrokerId, more: u8) {
        if self.up.remove(&id) {
            let (log, synced) = (self.logs.get_mut(&id).unwrap(), self.synced[&id]);
            log.truncate(synced + usize::from(more) % (log.len() - synced + 1));
            self.synced.insert(id, self.logs[&id].len());
        }
    }

    fn configure(&mut self, id: BrokerId, more: u8) {
        let on = match more % 4 {
            0 => ConfigResource::Cluster,
            1 => ConfigResource::Topic("t".to_owned()),
            _ => ConfigResource::Broker(id),
        };
        let value = (more / 4 % 4).to_string();
        match more / 16 {
            0 => {
                let value = more.is_multiple_of(2).to_string();
                self.one.set(ConfigResource::Topic("t".to_owned()), UNCLEAN, Some(&value));
            }
            _ => self.one.set(on, MIN_INSYNC, Some(&*value).filter(|value| *value != "0")),
        }
    }

    /// Whoever leads has what was committed as soon as it is there, or the state has said that it
    /// may not.
    fn check(&mut self, before: &PartitionState) -> Result<(), TestCaseError> {
        let after = self.one.state();
        let is_new = after.leader_epoch != before.leader_epoch;
        prop_assert!(is_new || after.leader == before.leader);
        if let Some(leader) = after.leader.filter(|_| is_new) {
            if after.election.is_clean() {
                self.seen.from_elr += usize::from(before.isr.is_empty());
            } else {
                self.seen.unclean += 1;
                self.check_left(before, leader)?;
                let kept = common(&self.logs[&leader], &self.committed);
                self.gone.extend(self.committed.drain(kept..));
            }
        }
        self.check_more()?;
        let Some(leader) = self.leader() else { return Ok(()) };
        if std::mem::replace(&mut self.looked_at, after.leader_epoch) != after.leader_epoch {
            self.seen.elected += 1;
            let kept = common(&self.logs[&leader], &self.committed);
            prop_assert_eq!(kept, self.committed.len(), "{:?} -> {:?}", before, after);
        }
        Ok(())
    }

    /// Who has more than its leader of what was committed is known.
    fn check_more(&self) -> Result<(), TestCaseError> {
        let state = self.one.state();
        let Some(leader) = state.leader else { return Ok(()) };
        let is_more =
            |record: &&u32| self.gone.contains(record) && !self.logs[&leader].contains(record);
        for id in state.replicas.iter().filter(|id| !state.isr.contains(id)) {
            let has_more = self.logs[id].iter().any(|record| is_more(&record));
            prop_assert!(!has_more || state.may_have_more.contains(id), "{id}: {state:?}");
        }
        Ok(())
    }

    /// Nobody who has something loses it to a leader that was elected without anybody's asking, as
    /// long as what counts is on disks.
    fn check_left(
        &mut self,
        before: &PartitionState,
        leader: BrokerId,
    ) -> Result<(), TestCaseError> {
        let after = self.one.state();
        let left = || before.replicas.iter().filter(|id| !self.lost.contains(id));
        let has_lost = self.lost.contains(&leader);
        let others = left().filter(|id| after.replicas.contains(id) && **id != leader).count();
        prop_assert!(!has_lost || others == 0, "{:?} -> {:?}", before, after);
        // Nor does one of several that have all lost some.
        let is_by_itself = after.election == Election::LastKnown;
        prop_assert!(!has_lost || !is_by_itself || after.replicas.len() == 1, "{:?}", after);
        if after.election == Election::LastKnown && !self.counts_page_cache {
            self.seen.last_known += 1;
            let has = |id: &BrokerId| common(&self.logs[id], &self.committed);
            let most = left().filter(|id| after.replicas.contains(id)).map(has).max();
            prop_assert!(most.unwrap_or(0) <= has(&leader), "{:?} -> {:?}", before, after);
        }
        Ok(())
    }

    /// Only the last leader, or where it is allowed.
    fn check_election(&self, before: &PartitionState) -> Result<(), TestCaseError> {
        let after = self.one.state();
        if after.leader_epoch != before.leader_epoch && after.election == Election::Unclean {
            let allowed = self.one.0.image.topic("t").unwrap().configs.get(UNCLEAN);
            prop_assert!(allowed.is_some_and(|value| value == "true"), "{:?}", after);
        }
        Ok(())
    }
}

/// A log directory is full, and has room again: nothing waits for it.
#[test]
fn who_has_no_room_gives_its_leads_away_and_leaves_the_isr() {
    tell(
        "
        > create with=min.insync.replicas:2
        epoch 0 1 leads isr 1,2,3
        > log broker=1 is=full
        epoch 1 2 leads isr 2,3 full 1
        # A word of the leader that was on its way.
        > isr is=1,2,3
        IneligibleReplica
        > elect wanted=preferred
        PreferredLeaderNotAvailable
        > log broker=1 is=online
        epoch 1 2 leads isr 2,3
        > isr is=1,2,3
        epoch 1 2 leads isr 1,2,3
        # A follower.
        > log broker=3 is=full
        epoch 1 2 leads isr 1,2 full 3
        > start broker=3 clean=yes
        epoch 1 2 leads isr 1,2 full 3
        # It goes out of use.
        > log broker=3 is=offline
        epoch 1 2 leads isr 1,2 offline 3
        ",
    );
}

/// A node of the release before could not read it: the upgrade may be in its middle, or be taken
/// back.
#[test]
fn who_has_no_room_is_not_told_before_all_nodes_can_read_it() {
    tell(
        "
        > create level=2
        epoch 0 1 leads isr 1,2,3
        > log broker=1 is=full
        epoch 0 1 leads isr 1,2,3
        > log broker=1 is=offline
        epoch 1 2 leads isr 2,3 offline 1
        > log broker=1 is=full
        epoch 1 2 leads isr 2,3
        ",
    );
}

/// Whoever has everything may lead, or the last one to fill would be the only one.
#[test]
fn disks_that_fill_together_leave_all_who_may_lead() {
    tell(
        "
        > create with=min.insync.replicas:2
        epoch 0 1 leads isr 1,2,3
        > log broker=1 is=full
        epoch 1 2 leads isr 2,3 full 1
        > log broker=2 is=full
        epoch 2 3 leads isr 3 elr 2 full 1,2
        > log broker=3 is=full
        epoch 2 3 leads isr 3 elr 2 full 1,2,3
        # Who has everything comes back into the ISR.
        > isr is=1,2,3
        epoch 2 3 leads isr 1,2,3 full 1,2,3
        > fence broker=3
        epoch 3 1 leads isr 1,2 full 1,2,3
        > fence broker=1
        epoch 4 2 leads isr 2 elr 1 full 1,2,3
        > unfence broker=1
        epoch 4 2 leads isr 2 elr 1 full 1,2,3
        # The first one that has room takes over as soon as it is in sync.
        > log broker=1 is=online
        epoch 4 2 leads isr 2 elr 1 full 2,3
        > isr is=1,2
        epoch 5 1 leads isr 1 elr 2 full 2,3
        # Rather than 3, which comes before it.
        > fence broker=1
        epoch 6 2 leads isr 2 elr 1 full 2,3
        ",
    );
    // An election takes who has room, whatever the order.
    tell(
        "
        > create with=min.insync.replicas:2
        epoch 0 1 leads isr 1,2,3
        > fence broker=1,2,3
        epoch 1 nobody leads elr 1,2,3 last-known 1
        > log broker=1 is=full
        epoch 1 nobody leads elr 1,2,3 last-known 1 full 1
        > elect wanted=unclean
        EligibleLeadersNotAvailable
        > unfence broker=3
        epoch 2 3 leads isr 3 elr 1,2 full 1
        ",
    );
}

#[test]
fn nobody_leads_without_what_was_committed_unless_the_state_says_so() {
    let steps = prop::collection::vec(any::<(u8, u8, u8)>(), 1..100);
    let config = ProptestConfig { cases: 2500, failure_persistence: None, ..Default::default() };
    let all = Cell::new(Seen::default());
    let run = |(counts_page_cache, min_insync, steps): (bool, usize, Vec<(u8, u8, u8)>)| {
        let mut model = Model::new(counts_page_cache, min_insync);
        for step in steps {
            let before = model.one.state();
            model.step(step);
            model.check_election(&before)?;
            model.check(&before)?;
            model.commit();
        }
        let (seen, sum) = (model.seen, all.get());
        all.set(Seen {
            committed: sum.committed + seen.committed,
            elected: sum.elected + seen.elected,
            from_elr: sum.from_elr + seen.from_elr,
            unclean: sum.unclean + seen.unclean,
            last_known: sum.last_known + seen.last_known,
            full: sum.full + seen.full,
        });
        Ok(())
    };
    TestRunner::new(config).run(&(any::<bool>(), 1usize..4, steps), run).unwrap();
    let seen = all.get();
    let is_enough = seen.committed > 500 && seen.elected > 500 && seen.from_elr > 10;
    let is_enough = is_enough && seen.unclean > 10 && seen.last_known > 5 && seen.full > 100;
    assert!(is_enough, "too little happened: {seen:?}");
}

/// Whatever logs are on it: it is another one, or a copy.
#[test]
fn who_comes_with_another_disk_counts_for_nothing_and_is_copied_anew() {
    tell(
        "
        > create with=min.insync.replicas:2
        epoch 0 1 leads isr 1,2,3
        # The process with the disk of before may live.
        > start-with broker=1 disk=2 log=none
        DuplicateBrokerRegistration
        > isr is=1,2
        epoch 0 1 leads isr 1,2
        > fence broker=1
        epoch 1 2 leads isr 2 elr 1
        > start-with broker=1 disk=2 log=whole
        epoch 1 2 leads isr 2 lost 1
        > isr is=1,2
        epoch 1 2 leads isr 1,2
        # That one as well. 3 has not everything.
        > fence broker=2
        epoch 2 1 leads isr 1 elr 2
        > start-with broker=2 disk=2 log=none
        epoch 2 1 leads isr 1 lost 2
        > isr is=1,3
        epoch 2 1 leads isr 1,3 lost 2
        ",
    );
}

#[test]
fn what_lay_on_a_lost_disk_alone_is_offline_until_a_person_accepts_or_it_is_back() {
    tell(
        "
        > create with=min.insync.replicas:1
        epoch 0 1 leads isr 1,2,3
        > isr is=1
        epoch 0 1 leads isr 1
        > fence broker=1
        epoch 1 nobody leads elr 1 last-known 1
        > start-with broker=1 disk=2 log=none
        epoch 1 nobody leads last-known 1 offline 1
        # Its next starts change nothing.
        > start-with broker=1 disk=2 log=none
        epoch 1 nobody leads last-known 1 offline 1
        > start-with broker=1 disk=2 log=offline
        epoch 1 nobody leads last-known 1 offline 1
        > fence broker=1
        epoch 1 nobody leads last-known 1 offline 1
        # A third one is not the one that it was on.
        > start-with broker=1 disk=3 log=whole
        epoch 1 nobody leads last-known 1 offline 1
        > fence broker=1
        epoch 1 nobody leads last-known 1 offline 1
        > start-with broker=1 disk=2 log=none
        epoch 1 nobody leads last-known 1 offline 1
        > log broker=1 is=shorter
        epoch 2 1 leads (LastKnown) isr 1 may-have-more 2,3
        > fence broker=1
        epoch 3 nobody leads elr 1 last-known 1 may-have-more 2,3
        > start-with broker=1 disk=4 log=none
        epoch 3 nobody leads last-known 1 offline 1 may-have-more 2,3
        > fence broker=1
        epoch 3 nobody leads last-known 1 offline 1 may-have-more 2,3
        # The right one.
        > start-with broker=1 disk=2 log=whole
        epoch 4 1 leads (LastKnown) isr 1 may-have-more 2,3
        > fence broker=1
        epoch 5 nobody leads elr 1 last-known 1 may-have-more 2,3
        > start-with broker=1 disk=5 log=none
        epoch 5 nobody leads last-known 1 offline 1 may-have-more 2,3
        > log broker=1 is=shorter
        epoch 6 1 leads (LastKnown) isr 1 may-have-more 2,3
        # The records since then are not on the one of before.
        > fence broker=1
        epoch 7 nobody leads elr 1 last-known 1 may-have-more 2,3
        > start-with broker=1 disk=2 log=whole
        epoch 7 nobody leads last-known 1 offline 1 may-have-more 2,3
        # Nobody knows who of the others has more.
        > start-with broker=1 disk=2 log=holed
        epoch 7 nobody leads last-known 2,3 lost 1 may-have-more 2,3
        > fence broker=1
        epoch 7 nobody leads last-known 2,3 lost 1 may-have-more 2,3
        > start-with broker=1 disk=2 log=none
        epoch 7 nobody leads last-known 2,3 lost 1 may-have-more 2,3
        ",
    );
}

#[test]
fn the_loss_of_a_disk_may_be_accepted_before_another_one_comes() {
    tell(
        "
        > create with=min.insync.replicas:1
        epoch 0 1 leads isr 1,2,3
        > isr is=1
        epoch 0 1 leads isr 1
        > fence broker=1
        epoch 1 nobody leads elr 1 last-known 1
        > start-with broker=1 disk=6 log=none accepted=1
        epoch 1 nobody leads last-known 2,3 lost 1
        ",
    );
}

/// The disks are full. Who left while others could commit has not everything.
#[test]
fn a_log_that_could_not_be_made_was_not_lost() {
    tell(
        "
        > create with=min.insync.replicas:1
        epoch 0 1 leads isr 1,2,3
        > start-with broker=2 disk=1 log=never
        epoch 0 1 leads isr 1,2,3
        > start-with broker=1 disk=1 log=never
        epoch 0 1 leads isr 1,2,3
        > log broker=1 is=offline
        epoch 1 2 leads isr 2,3 offline 1
        > log broker=2 is=offline
        epoch 2 3 leads isr 3 offline 1,2
        > log broker=3 is=offline
        epoch 3 nobody leads elr 3 last-known 3 offline 1,2,3
        > log broker=1 is=new
        epoch 3 nobody leads elr 3 last-known 3 offline 2,3 lost 1
        > start-with broker=2 disk=1 log=never
        epoch 3 nobody leads elr 3 last-known 3 offline 3 lost 1,2
        > log broker=3 is=new
        epoch 4 3 leads isr 3 lost 1,2
        > log broker=3 is=offline
        epoch 5 nobody leads elr 3 last-known 3 offline 3 lost 1,2
        > start-with broker=3 disk=1 log=never
        epoch 6 3 leads isr 3 lost 1,2
        # It may have been in another log directory.
        > start-with broker=3 disk=2,1 log=whole
        epoch 6 3 leads isr 3 lost 1,2
        > start-with broker=3 disk=2 log=never
        epoch 7 nobody leads last-known 3 offline 3 lost 1,2
        ",
    );
}

/// They are what they are by their ids: their order says nothing.
#[test]
fn a_log_counts_in_the_directories_that_its_broker_was_registered_with() {
    tell(
        "
        > create with=min.insync.replicas:2
        epoch 0 1 leads isr 1,2,3
        # One more.
        > start-with broker=1 disk=2,1 log=whole
        epoch 0 1 leads isr 1,2,3
        > start-with broker=1 disk=1,2 log=whole
        epoch 0 1 leads isr 1,2,3
        # One is out of use, and back.
        > start-with broker=1 disk=2 absent=1 log=unread
        epoch 1 2 leads isr 2,3 offline 1
        > start-with broker=1 disk=2 absent=1 log=unread
        epoch 1 2 leads isr 2,3 offline 1
        > start-with broker=1 disk=2,1 log=whole
        epoch 1 2 leads isr 2,3
        > isr is=1,2
        epoch 1 2 leads isr 1,2
        > fence broker=2
        epoch 2 1 leads isr 1 elr 2
        > start-with broker=1 disk=2 absent=1 log=unread
        epoch 3 nobody leads elr 1,2 last-known 1 offline 1
        > start-with broker=1 disk=2,1 log=whole
        epoch 4 1 leads isr 1 elr 2
        # The other one is lost, and that was accepted.
        > start-with broker=1 disk=1 log=whole accepted=2
        epoch 4 1 leads isr 1 elr 2
        # Another one in the place of the first.
        > fence broker=1
        epoch 5 nobody leads elr 1,2 last-known 1
        > start-with broker=1 disk=3 log=whole
        epoch 5 nobody leads elr 2 last-known 2 lost 1
        ",
    );
}

/// Beside another one that is there, too.
#[test]
fn the_loss_of_a_log_directory_is_waited_for_until_a_person_accepts_it() {
    tell(
        "
        > create with=min.insync.replicas:1
        epoch 0 1 leads isr 1,2,3
        > isr is=1
        epoch 0 1 leads isr 1
        > start-with broker=1 disk=2,1 log=whole
        epoch 0 1 leads isr 1
        > start-with broker=1 disk=2 log=none
        epoch 1 nobody leads last-known 1 offline 1
        > start-with broker=1 disk=2 log=none accepted=1
        epoch 1 nobody leads last-known 2,3 lost 1
        ",
    );
}

/// What is missing then lay in the last one alone.
#[test]
fn a_loss_is_accepted_by_itself_after_another_one_that_left_nothing_missing() {
    tell(
        "
        > create with=min.insync.replicas:1
        epoch 0 1 leads isr 1,2,3
        > fence broker=1
        epoch 1 2 leads isr 2,3
        > start-with broker=1 disk=7 log=none
        epoch 1 2 leads isr 2,3 lost 1
        > isr is=1,2,3
        epoch 1 2 leads isr 1,2,3
        > fence broker=2
        epoch 2 1 leads isr 1,3
        > isr is=1
        epoch 2 1 leads isr 1
        > fence broker=1
        epoch 3 nobody leads elr 1 last-known 1
        > start-with broker=1 disk=8 log=none
        epoch 3 nobody leads last-known 1 offline 1
        > start-with broker=1 disk=8 log=none accepted=7
        epoch 3 nobody leads last-known 2,3 lost 1
        ",
    );
}

/// Also when it is killed at any moment of any number of starts.
#[test]
fn an_older_state_of_a_directory_counts_for_nothing() {
    tell(
        "
        > create with=min.insync.replicas:2
        epoch 0 1 leads isr 1,2,3
        > start-with broker=1 disk=1:5<0 log=whole
        epoch 0 1 leads isr 1,2,3
        # It was killed before it knew that it was registered, and before it registered.
        > start-with broker=1 disk=1:5<0 log=whole
        epoch 0 1 leads isr 1,2,3
        > start-with broker=1 disk=1:6<5 log=whole
        epoch 0 1 leads isr 1,2,3
        # A directory that was written, and one that was not yet.
        > start-with broker=1 disk=2,1:7<6 log=whole
        epoch 0 1 leads isr 1,2,3
        > start-with broker=1 disk=1:7<6,2:1<0 log=whole
        epoch 0 1 leads isr 1,2,3
        > start-with broker=1 disk=2:1<0,1:8<7 log=whole
        epoch 0 1 leads isr 1,2,3
        > isr is=1,2
        epoch 0 1 leads isr 1,2
        > fence broker=2
        epoch 0 1 leads isr 1 elr 2
        # A copy of the run 5.
        > start-with broker=1 disk=1:9<5 log=whole
        DuplicateBrokerRegistration
        > fence broker=1
        epoch 1 nobody leads elr 1,2 last-known 1
        > start-with broker=1 disk=1:9<5 log=whole
        epoch 1 nobody leads elr 2 last-known 2 lost 1
        > unfence broker=2
        epoch 2 2 leads isr 2 lost 1
        > isr is=1,2
        epoch 2 2 leads isr 1,2
        # It has been copied since.
        > start-with broker=1 disk=1:10<9 log=whole
        epoch 2 2 leads isr 1,2
        ",
    );
    tell(
        "
        > create with=min.insync.replicas:1
        epoch 0 1 leads isr 1,2,3
        > start-with broker=1 disk=1:5<0 log=whole
        epoch 0 1 leads isr 1,2,3
        > isr is=1
        epoch 0 1 leads isr 1
        > fence broker=1
        epoch 1 nobody leads elr 1 last-known 1
        > start-with broker=1 disk=1:7<4 log=whole
        epoch 1 nobody leads last-known 1 offline 1
        # It was killed before it had set the log aside.
        > start-with broker=1 disk=1:7<4 log=whole
        DuplicateBrokerRegistration
        > fence broker=1
        epoch 1 nobody leads last-known 1 offline 1
        > start-with broker=1 disk=1:7<4 log=whole
        epoch 1 nobody leads last-known 1 offline 1
        > start-with broker=1 disk=1:8<7 log=none
        epoch 1 nobody leads last-known 1 offline 1
        > fence broker=1
        epoch 1 nobody leads last-known 1 offline 1
        # The right one is back.
        > start-with broker=1 disk=1:6<5 log=whole
        epoch 2 1 leads (LastKnown) isr 1 may-have-more 2,3
        > fence broker=1
        epoch 3 nobody leads elr 1 last-known 1 may-have-more 2,3
        # A person has accepted what it lacks.
        > start-with broker=1 disk=1:7<4 log=whole accepted=1
        epoch 3 nobody leads last-known 2,3 lost 1 may-have-more 2,3
        ",
    );
}

/// Nothing is known of its directories, whichever can be used then.
#[test]
fn the_first_start_after_an_earlier_version_loses_nothing() {
    tell(
        "
        > create with=min.insync.replicas:2
        epoch 0 1 leads isr 1,2,3
        > of-an-earlier-version broker=1
        epoch 0 1 leads isr 1,2,3
        > start-with broker=1 disk=7:3<0 absent=8 log=whole
        epoch 0 1 leads isr 1,2,3
        > start-with broker=1 disk=7:4<3,8:1<0 log=whole
        epoch 0 1 leads isr 1,2,3
        > of-an-earlier-version broker=1
        epoch 0 1 leads isr 1,2,3
        > start-with broker=1 disk=8:2<1,7:5<4 log=whole
        epoch 0 1 leads isr 1,2,3
        ",
    );
}

/// Else the next one to stop would not be known to have everything.
#[test]
fn who_is_unregistered_says_nothing_of_how_many_must_be_in_sync() {
    let mut one = One::new(&[]);
    IDS[..3].iter().for_each(|id| one.start(*id, true, 2));
    one.alter(&IDS[..3]).unwrap();
    one.0.run(&UnregisterBroker { id: IDS[2] }).unwrap();
    one.fence(IDS[1], true);
    let state = one.state();
    assert_eq!((&*state.isr, &*state.elr), (&IDS[..1], &IDS[1..2]));
}

/// It may come back, with any disk.
#[test]
fn who_is_unregistered_counts_for_nothing_and_is_taken_with_what_it_has() {
    tell(
        "
        > create with=min.insync.replicas:2
        epoch 0 1 leads isr 1,2,3
        > unregister broker=9
        BrokerIdNotRegistered
        > isr is=1,2
        epoch 0 1 leads isr 1,2
        > unregister broker=1
        epoch 1 2 leads isr 2
        > unregister broker=1
        BrokerIdNotRegistered
        > start-with broker=1 disk=7 log=none
        epoch 1 2 leads isr 2 lost 1
        > unregister broker=2
        epoch 2 nobody leads last-known 2 lost 1
        > start-with broker=2 disk=8 log=none
        epoch 2 nobody leads last-known 2 offline 2 lost 1
        > unregister broker=2
        epoch 2 nobody leads last-known 2 offline 2 lost 1
        > start-with broker=2 disk=1 log=whole
        epoch 3 2 leads (LastKnown) isr 2 lost 1 may-have-more 1,3
        ",
    );
}
