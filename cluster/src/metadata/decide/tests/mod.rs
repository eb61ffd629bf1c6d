//! Decisions: tables of refusals, and properties over random histories.

mod lease;
mod liveness;
mod operation;
mod partitions;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};

use letterbox_env::Random;
use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use proptest::prelude::*;
use uuid::Uuid;

use super::change::{MIN_INSYNC, UNCLEAN, min_insync};
use super::*;
use crate::metadata::features::{FEATURE, Levels, Release};
use crate::metadata::record::{decode, encode};
use crate::metadata::{ConfigResource, PartitionState, Stamp, apply};

/// Counts, so that ids differ and runs repeat.
struct Counter(std::sync::atomic::AtomicU64);

impl Random for Counter {
    fn fill(&self, buffer: &mut [u8]) {
        let n = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, std::sync::atomic::Ordering::Relaxed);
        let bytes = n.to_le_bytes();
        buffer.iter_mut().zip(bytes.iter().cycle()).for_each(|(byte, random)| *byte = *random);
    }
}

/// `cleanup.policy` is a list; `bad` is not a key; the rest is.
struct Rules;

impl ConfigRules for Rules {
    fn validate(&self, _: ConfigScope, key: &str, value: Option<&str>) -> Result<(), String> {
        if key == "bad" {
            Err(format!("Unknown topic config name: {key} {value:?}"))
        } else {
            Ok(())
        }
    }

    fn list_default(&self, _: ConfigScope, key: &str) -> Option<String> {
        (key == "cleanup.policy").then(|| "delete".to_owned())
    }
}

struct World {
    image: MetadataImage,
    random: Counter,
    voters: Voters,
    lags: Lags,
}

impl World {
    /// With brokers 1, 2, … in the racks given.
    fn with_racks(racks: &[&str]) -> Self {
        let (image, voters) = (MetadataImage::default(), Voters::default());
        let mut world = Self { image, random: Counter(1.into()), voters, lags: Lags::new() };
        for (id, rack) in (1..).zip(racks) {
            world.run(&register(id, rack)).unwrap();
        }
        world
    }

    fn run<O: Decide>(&mut self, operation: &O) -> O::Outcome {
        let (voters, lags) = (|| self.voters.clone(), || self.lags.clone());
        let context = Context {
            node: BrokerId(1),
            random: &self.random,
            rules: &Rules,
            voters: &voters,
            lags: &lags,
        };
        let decision = operation.decide(&self.image, &context);
        // Through the bytes of the log, as in production.
        let records = decode(&encode(&decision.records).unwrap()).unwrap();
        assert_eq!(records, decision.records);
        let next = apply(&self.image, self.image.applied_index + 1, &records).unwrap();
        assert_eq!(next, apply(&self.image, self.image.applied_index + 1, &records).unwrap());
        self.image = next;
        check_invariants(&self.image);
        decision.outcome
    }

    fn create(&mut self, name: &str, partitions: i32, factor: i16) -> ItemResult<CreatedTopic> {
        self.create_with(name, TopicPlacement::automatic(partitions, factor), false)
    }

    fn grow(&mut self, name: &str, count: i32) -> ItemResult<()> {
        let growth = TopicGrowth { name: name.to_owned(), count, assignments: None };
        self.run(&CreatePartitions { topics: vec![growth], validate_only: false }).remove(0).1
    }

    fn create_with(
        &mut self,
        name: &str,
        placement: TopicPlacement,
        validate_only: bool,
    ) -> ItemResult<CreatedTopic> {
        let topics = vec![NewTopic { name: name.to_owned(), placement, configs: BTreeMap::new() }];
        let operation = CreateTopics {
            topics,
            validate_only,
            default_partitions: 4,
            default_replication_factor: 1,
        };
        self.run(&operation).remove(0).1
    }
}

fn register(id: i32, rack: &str) -> RegisterBroker {
    RegisterBroker {
        id: BrokerId(id),
        directories: [(Uuid::from_u128(1), Stamp::default())].into(),
        absent: BTreeSet::new(),
        endpoints: Vec::new(),
        rack: Some(rack.to_owned()),
        clean_start: true,
        flushes_on_ack: false,
        found: None,
        min_insync_replicas: 1,
        session_ms: 0,
        replaces: None,
        release: Release::own(),
    }
}

#[test]
fn a_broker_registers_only_if_it_supports_the_finalized_level() {
    let registers = |founded: bool, release: &Release| {
        let mut world = World::with_racks(&[]);
        if founded {
            world.run(&SetClusterId { cluster_id: "c".to_owned() }).unwrap();
        }
        let registration = RegisterBroker { release: release.clone(), ..register(3, "a") };
        let outcome = world.run(&registration);
        let registered = world.image.brokers.get(&BrokerId(3)).map(|broker| &broker.release);
        assert_eq!(registered, outcome.is_ok().then_some(release));
        outcome.map(drop).map_err(|error| (error.code, error.message))
    };
    // A cluster that was founded before there were levels takes whoever supports the first one.
    for (founded, levels) in [(false, (1, 1)), (false, (1, 4)), (true, (1, 4)), (true, (2, 5))] {
        assert_eq!(registers(founded, &supports(levels)), Ok(()));
    }
    assert_eq!(registers(false, &Release::default()), Ok(()));
    for (founded, release, words) in [
        (true, supports((1, 3)), "release 9.9 does not support finalized version 4 of letterbox"),
        (true, supports((5, 6)), "The broker wants a version between 5 and 6, inclusive."),
        (false, supports((2, 3)), "does not support finalized version 1 of letterbox.version. "),
        (true, Release::default(), "because a release that does not name itself does not support"),
    ] {
        let (code, message) = registers(founded, &release).unwrap_err();
        let is_named = message.starts_with("Unable to register broker 3 because ");
        assert!(is_named && message.contains(words), "{message}");
        assert_eq!(code, ErrorCode::UnsupportedVersion);
    }
}

/// A release that supports these levels.
fn supports((min, max): (i16, i16)) -> Release {
    let features = [(FEATURE.to_owned(), Levels { min, max })].into();
    Release { version: "9.9".to_owned(), features }
}

#[test]
fn a_broker_that_does_not_say_its_log_directories_is_refused() {
    let mut world = World::with_racks(&["a"]);
    let directories = BTreeMap::new();
    let refused = world.run(&RegisterBroker { directories, ..register(2, "b") }).unwrap_err();
    assert_eq!(refused.code, ErrorCode::UnsupportedVersion);
    assert!(refused.message.contains("does not say its log directories"), "{refused}");
    assert!(!world.image.brokers.contains_key(&BrokerId(2)));
    // They cannot be used now, and may be again.
    let (directories, absent) = (BTreeMap::new(), [Uuid::from_u128(1)].into());
    world.run(&RegisterBroker { directories, absent, ..register(2, "b") }).unwrap();
}

/// The cluster was founded before there were levels.
#[test]
fn levels_of_features_are_raised_and_never_lowered_in_kafkas_words() {
    use UpgradeType::{SafeDowngrade, UnsafeDowngrade, Upgrade};
    let mut world = World::with_racks(&["a", "b"]);
    let ask = |world: &mut World, validate_only, asked: &[(&str, i16, UpgradeType)]| {
        let update = |(name, level, kind): &(&str, i16, UpgradeType)| FeatureUpdate {
            name: (*name).to_owned(),
            level: *level,
            kind: *kind,
        };
        let updates = asked.iter().map(update).collect();
        let done = world.run(&UpdateFeatures { updates, validate_only });
        (done.map_err(|error| (error.code, error.message)), world.image.level(FEATURE))
    };
    let refused =
        |why: &str, level| (Err((ErrorCode::InvalidUpdateVersion, why.to_owned())), level);
    let of = |level: i16, why: &str, at| {
        refused(&format!("Invalid update version {level} for feature {FEATURE}. {why}"), at)
    };
    // What is only checked changes nothing, and one that is refused has all refused.
    assert_eq!(ask(&mut world, true, &[(FEATURE, 2, Upgrade)]), (Ok(()), 1));
    let unknown = "Invalid update version 1 for feature x.version. Local controller 1 does not \
                   support this feature.";
    let asked = [(FEATURE, 2, Upgrade), ("x.version", 1, Upgrade)];
    assert_eq!(ask(&mut world, false, &asked), refused(unknown, 1));
    let range = "Local controller 1 only supports versions 1-4";
    for (level, kind, why) in [
        (-1, Upgrade, "A feature version cannot be less than 0."),
        (5, Upgrade, range),
        (0, UnsafeDowngrade, range),
        (2, SafeDowngrade, "Can't downgrade to a newer version."),
    ] {
        let asked = [(FEATURE, level, kind)];
        assert_eq!(ask(&mut world, false, &asked), of(level, why, 1));
    }
    let nothing = "Invalid update version 0 for feature x.version. Feature x.version not found.";
    assert_eq!(ask(&mut world, false, &[("x.version", 0, SafeDowngrade)]), refused(nothing, 1));
    // A broker that is away counts: it may come back.
    world.run(&RegisterBroker { release: supports((1, 1)), ..register(2, "b") }).unwrap();
    let epoch = world.image.brokers[&BrokerId(2)].epoch;
    let fence = FenceBrokers { brokers: vec![(BrokerId(2), epoch)], fenced: true };
    world.run(&fence).remove(0).unwrap();
    let why = "Broker 2 (release 9.9) only supports versions 1";
    assert_eq!(ask(&mut world, false, &[(FEATURE, 2, Upgrade)]), of(2, why, 1));
    world.run(&register(2, "b")).unwrap();
    assert_eq!(ask(&mut world, false, &[(FEATURE, 2, Upgrade)]), (Ok(()), 2));
    assert_eq!(ask(&mut world, false, &[(FEATURE, 2, Upgrade)]), (Ok(()), 2));
    let words = "Can't downgrade the version of this feature without setting the upgrade type to \
                 either safe or unsafe downgrade.";
    assert_eq!(ask(&mut world, false, &[(FEATURE, 1, Upgrade)]), of(1, words, 2));
    for (kind, why) in [
        (SafeDowngrade, "Refusing to perform the requested downgrade because it might delete"),
        (UnsafeDowngrade, "Unsafe metadata downgrade is not supported in this version."),
    ] {
        let (done, level) = ask(&mut world, false, &[(FEATURE, 1, kind)]);
        let (code, message) = done.unwrap_err();
        let words = format!("Unsupported letterbox.version downgrade from 2 to 1. {why}");
        assert!(message.starts_with(&words), "{message}");
        assert_eq!((code, level), (ErrorCode::InvalidUpdateVersion, 2));
    }
}

fn check_invariants(image: &MetadataImage) {
    let by_name: BTreeSet<_> = image.topics().map(|topic| topic.id).collect();
    assert_eq!(by_name.len(), image.topics_by_id.len());
    let forms = image.topics().filter(|topic| topic.name.contains(['.', '_'])).count();
    assert_eq!(image.topics_by_metric_name.len(), forms);
    for topic in image.topics() {
        for partition in topic.partitions.values() {
            let replicas: BTreeSet<_> = partition.replicas.iter().collect();
            assert_eq!(replicas.len(), partition.replicas.len());
            check_state(image, partition);
        }
    }
    check_index(image);
    let again = apply(&MetadataImage::default(), image.applied_index, &image.to_records()).unwrap();
    assert_eq!(&again, image, "a snapshot of it is another image");
}

fn is_in(ids: &[BrokerId], id: &BrokerId) -> bool {
    ids.contains(id)
}

fn check_state(image: &MetadataImage, state: &PartitionState) {
    let PartitionState { replicas, isr, elr, last_known_elr, leader, adding, removing, .. } = state;
    let PartitionState { offline, full, lost, may_have_more, .. } = state;
    let is_out_of_sync = |id: &BrokerId| is_in(replicas, id) && !isr.contains(id);
    assert!(may_have_more.iter().all(is_out_of_sync), "{state:?}");
    assert!(lost.iter().all(|id| is_in(replicas, id) && !isr.contains(id)), "{state:?}");
    assert!(lost.iter().all(|id| !elr.contains(id)), "{state:?}");
    assert!(offline.iter().all(|id| is_in(replicas, id) && !isr.contains(id)), "{state:?}");
    assert!(full.iter().all(|id| is_in(replicas, id)), "{state:?}");
    let is_full = |id: &BrokerId| full.contains(id);
    assert!(isr.iter().all(is_full) || !isr.iter().any(is_full), "{state:?}");
    assert!(adding.iter().all(|id| is_in(replicas, id)), "{state:?}");
    assert!(removing.iter().all(|id| is_in(replicas, id)), "{state:?}");
    let target = || replicas.iter().filter(|id| !removing.contains(id));
    assert!(target().next().is_some(), "{state:?}");
    // Who may have more than the leader is not taken away.
    let waits = removing.iter().any(|id| may_have_more.contains(id));
    let is_done = target().all(|id| isr.contains(id)) && !waits;
    assert!(!state.is_reassigning() || !is_done, "{state:?}");
    let is_replica = |id: &BrokerId| replicas.contains(id);
    assert!(isr.iter().all(is_replica) && elr.iter().all(is_replica), "{state:?}");
    assert!(isr.iter().all(|id| !elr.contains(id)), "{state:?}");
    // Whoever may lead does.
    let may_lead = if isr.is_empty() { elr } else { isr };
    match leader {
        Some(leader) => assert!(isr.contains(leader) && image.is_live(*leader), "{state:?}"),
        None => {
            let is_there = |id: &BrokerId| image.is_live(*id) && !offline.contains(id);
            assert!(!may_lead.iter().any(is_there), "{state:?}");
        }
    }
    assert!(!isr.is_empty() || leader.is_none() && !last_known_elr.is_empty(), "{state:?}");
    assert!(last_known_elr.is_empty() || isr.is_empty(), "{state:?}");
}

/// Every broker finds its partitions, and no others.
fn check_index(image: &MetadataImage) {
    let mut expected = BTreeSet::new();
    for topic in image.topics() {
        for (index, state) in topic.indexed_partitions() {
            expected.extend(state.replicas.iter().map(|id| (*id, topic.id, index)));
        }
    }
    let brokers = image.replicas_by_broker.iter().map(|(id, _)| *id);
    let found = brokers
        .flat_map(|id| image.partitions_of(id).map(move |(topic, index, _)| (id, topic.id, index)));
    assert_eq!(found.collect::<BTreeSet<_>>(), expected);
    assert!(image.replicas_by_broker.values().all(|all| !all.is_empty()));
}

#[test]
fn topics_are_refused_with_kafkas_code_and_words() {
    let mut world = World::with_racks(&["a"]);
    world.create("taken.name", 1, 1).unwrap();
    let manual = |assignments: &[(i32, &[i32])], partitions, factor| TopicPlacement {
        num_partitions: partitions,
        replication_factor: factor,
        assignments: assignments
            .iter()
            .map(|(p, ids)| (*p, ids.iter().map(|id| BrokerId(*id)).collect()))
            .collect(),
    };
    let auto = TopicPlacement::automatic;
    let long = "x".repeat(250);
    let cases: Vec<(&str, TopicPlacement, ErrorCode, &str)> = vec![
        ("", auto(1, 1), ErrorCode::InvalidTopicException, "empty string"),
        ("..", auto(1, 1), ErrorCode::InvalidTopicException, "'..' is not allowed"),
        ("__cluster_metadata", auto(1, 1), ErrorCode::InvalidRequest, "the cluster's own"),
        (
            &long,
            auto(1, 1),
            ErrorCode::InvalidTopicException,
            "longer than the max allowed length 249",
        ),
        ("a b", auto(1, 1), ErrorCode::InvalidTopicException, "ASCII alphanumerics"),
        (
            "taken.name",
            auto(1, 1),
            ErrorCode::TopicAlreadyExists,
            "Topic 'taken.name' already exists.",
        ),
        (
            "taken_name",
            auto(1, 1),
            ErrorCode::InvalidTopicException,
            "collides with existing topic: taken.name",
        ),
        ("t", auto(0, 1), ErrorCode::InvalidPartitions, "non-positive"),
        ("t", auto(i32::MIN, 1), ErrorCode::InvalidPartitions, "non-positive"),
        ("t", auto(i32::MAX, 1), ErrorCode::PolicyViolation, "at most 10000"),
        ("t", auto(1, 0), ErrorCode::InvalidReplicationFactor, "larger than 0"),
        ("t", auto(1, i16::MIN), ErrorCode::InvalidReplicationFactor, "larger than 0"),
        (
            "t",
            auto(1, 3),
            ErrorCode::InvalidReplicationFactor,
            "The target replication factor of 3 cannot be reached because only 1 broker(s)",
        ),
        (
            "t",
            manual(&[(0, &[1])], 1, -1),
            ErrorCode::InvalidRequest,
            "numPartitions was not set to -1",
        ),
        (
            "t",
            manual(&[(0, &[1])], -1, 1),
            ErrorCode::InvalidRequest,
            "replication factor was not set to -1",
        ),
        ("t", manual(&[(1, &[1])], -1, -1), ErrorCode::InvalidReplicaAssignment, "consecutive"),
        (
            "t",
            manual(&[(0, &[1]), (0, &[1])], -1, -1),
            ErrorCode::InvalidReplicaAssignment,
            "multiple",
        ),
        (
            "t",
            manual(&[(0, &[])], -1, -1),
            ErrorCode::InvalidReplicaAssignment,
            "empty replica list",
        ),
        ("t", manual(&[(0, &[9])], -1, -1), ErrorCode::InvalidReplicaAssignment, "broker 9"),
        (
            "t",
            manual(&[(0, &[1, 1])], -1, -1),
            ErrorCode::InvalidReplicaAssignment,
            "more than once",
        ),
    ];
    for (name, placement, code, words) in cases {
        let before = world.image.applied_index;
        let error = world.create_with(name, placement.clone(), false).unwrap_err();
        assert!(
            error.code == code && error.message.contains(words),
            "{name} {placement:?}: {error}"
        );
        assert_eq!((world.image.topic_count(), world.image.applied_index), (1, before + 1));
    }
}

#[test]
fn names_that_metrics_cannot_tell_apart_collide_within_one_request_too() {
    let mut world = World::with_racks(&["a"]);
    let topics = ["c.x", "c_x", "plain", "c.x.y", "c_x.y", "c.y"].map(|name| NewTopic {
        name: name.to_owned(),
        placement: TopicPlacement::automatic(1, 1),
        configs: BTreeMap::new(),
    });
    let request = CreateTopics {
        topics: topics.into(),
        validate_only: false,
        default_partitions: 1,
        default_replication_factor: 1,
    };
    let outcome = world.run(&request);
    let refused: Vec<_> = outcome
        .iter()
        .filter_map(|(name, result)| Some((name.as_str(), result.as_ref().err()?.message.as_str())))
        .collect();
    assert_eq!(
        refused,
        [
            ("c_x", "Topic 'c_x' collides with existing topic: c.x"),
            ("c_x.y", "Topic 'c_x.y' collides with existing topic: c.x.y")
        ]
    );
}

#[test]
fn validate_only_changes_nothing_and_defaults_are_used() {
    let mut world = World::with_racks(&["a"]);
    let checked = world.create_with("t", TopicPlacement::automatic(-1, -1), true).unwrap();
    assert_eq!(
        (checked.id.is_nil(), checked.num_partitions, world.image.topic_count()),
        (true, 4, 0)
    );
    let made = world.create("t", -1, -1).unwrap();
    assert_eq!((made.id.is_nil(), made.num_partitions, made.replication_factor), (false, 4, 1));
}

#[test]
fn replicas_go_to_different_racks_and_leaders_to_every_broker() {
    let mut world = World::with_racks(&["a", "a", "b", "b", "c", "c"]);
    world.create("t", 60, 3).unwrap();
    let topic = world.image.topic("t").unwrap();
    let mut leads: BTreeMap<BrokerId, i32> = BTreeMap::new();
    for partition in topic.partitions.values() {
        let racks: BTreeSet<_> =
            partition.replicas.iter().map(|id| world.image.brokers[id].rack.clone()).collect();
        assert_eq!(racks.len(), 3, "{partition:?}");
        *leads.entry(partition.leader.unwrap()).or_default() += 1;
    }
    assert!(leads.len() == 6 && leads.values().all(|count| *count == 10), "{leads:?}");
}

#[test]
fn topics_only_grow() {
    let mut world = World::with_racks(&["a"]);
    world.create("t", 3, 1).unwrap();
    for (count, words) in [
        (3, "Topic already has 3 partition(s)."),
        (2, "2 would not be an increase"),
        (-5, "would not be an increase"),
    ] {
        let error = world.grow("t", count).unwrap_err();
        assert!(
            error.code == ErrorCode::InvalidPartitions && error.message.contains(words),
            "{error}"
        );
    }
    world.grow("t", 5).unwrap();
    assert_eq!(world.image.topic("t").unwrap().partitions.len(), 5);
}

#[test]
fn a_topic_that_others_are_found_by_does_not_grow() {
    let mut world = World::with_racks(&["a"]);
    world.create("__consumer_offsets", 2, 1).unwrap();
    let error = world.grow("__consumer_offsets", 3).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidRequest);
    assert!(error.message.contains("offsets.topic.num.partitions"), "{}", error.message);
}

#[test]
fn configurations_are_set_appended_subtracted_and_deleted() {
    let mut world = World::with_racks(&["a"]);
    world.create("t", 1, 1).unwrap();
    let resource = ConfigResource::Topic("t".to_owned());
    let mut alter = |key: &str, op: ConfigOp| {
        let resources = vec![ResourceAlteration {
            resource: resource.clone(),
            changes: vec![(key.to_owned(), op)],
            replace: false,
        }];
        let result = world.run(&AlterConfigs { resources, validate_only: false }).remove(0).1;
        result
            .map(|()| world.image.configs(&resource).unwrap().get(key).cloned())
            .map_err(|error| error.code)
    };
    let some = |value: &str| Some(value.to_owned());
    assert_eq!(
        alter("cleanup.policy", ConfigOp::Append(some("compact"))),
        Ok(some("delete,compact"))
    );
    let nothing = ConfigOp::Append(some(" "));
    assert_eq!(alter("cleanup.policy", nothing), Err(ErrorCode::InvalidConfig));
    // As Kafka, which takes a comma for no item.
    let comma = ConfigOp::Append(some(","));
    assert_eq!(alter("cleanup.policy", comma), Ok(some("delete,compact")));
    assert_eq!(alter("cleanup.policy", ConfigOp::Subtract(some("delete"))), Ok(some("compact")));
    assert_eq!(alter("cleanup.policy", ConfigOp::Delete), Ok(None));
    assert_eq!(alter("retention.ms", ConfigOp::Set(some("5"))), Ok(some("5")));
    let long = (0..10_000).map(|each| each.to_string()).collect::<Vec<_>>().join(",");
    let refused = alter("cleanup.policy", ConfigOp::Append(Some(long)));
    assert_eq!(refused, Err(ErrorCode::InvalidConfig));
    assert_eq!(alter("retention.ms", ConfigOp::Append(some("6"))), Err(ErrorCode::InvalidConfig));
    assert_eq!(alter("retention.ms", ConfigOp::Set(None)), Err(ErrorCode::InvalidRequest));
    assert_eq!(alter("bad", ConfigOp::Set(some("1"))), Err(ErrorCode::InvalidConfig));
}

#[test]
fn the_old_call_unsets_what_it_does_not_name() {
    let mut world = World::with_racks(&["a"]);
    world.create("t", 1, 1).unwrap();
    for resource in [
        ConfigResource::Topic("t".to_owned()),
        ConfigResource::Cluster,
        ConfigResource::Group("g".to_owned()),
    ] {
        let mut replace = |configs: &[(&str, &str)]| {
            let changes = configs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), ConfigOp::Set(Some((*value).to_owned()))))
                .collect();
            let resources =
                vec![ResourceAlteration { resource: resource.clone(), changes, replace: true }];
            let result = world.run(&AlterConfigs { resources, validate_only: false }).remove(0).1;
            result
                .map(|()| world.image.configs(&resource).unwrap().clone())
                .map_err(|error| error.code)
        };
        let set = |configs: &[(&str, &str)]| {
            configs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(replace(&[("a", "1"), ("b", "2")]), Ok(set(&[("a", "1"), ("b", "2")])));
        assert_eq!(replace(&[("b", "3")]), Ok(set(&[("b", "3")])));
        assert_eq!(replace(&[("c", "1"), ("bad", "1")]), Err(ErrorCode::InvalidConfig));
        assert_eq!(replace(&[]), Ok(set(&[])));
    }
    assert!(world.image.group_configs.is_empty(), "a group without settings takes no room");
}

/// The first attempt of a start is long on its way, or an earlier start's.
#[test]
fn a_registration_replaces_the_one_that_it_names_and_no_other() {
    let mut world = World::with_racks(&[]);
    let of = |replaces| RegisterBroker { replaces: Some(replaces), ..register(1, "a") };
    let first = world.run(&of(0)).unwrap();
    let secret = |world: &World| world.image.brokers[&BrokerId(1)].secret.unwrap();
    let first_secret = secret(&world);
    let second = world.run(&of(first)).unwrap();
    assert_ne!(secret(&world), first_secret);
    assert_eq!(format!("{:?}", secret(&world)), "Secret");
    for late in [0, first] {
        let refused = world.run(&of(late)).unwrap_err();
        assert_eq!(refused.code, ErrorCode::StaleBrokerEpoch);
        assert_eq!(world.image.brokers[&BrokerId(1)].epoch, second);
    }
    // An earlier version names none.
    assert!(world.run(&register(1, "a")).unwrap() > second);
}

#[test]
fn a_clean_start_keeps_the_leader_epoch_and_another_does_not() {
    let mut world = World::with_racks(&["a"]);
    world.create("t", 1, 1).unwrap();
    let epoch = |world: &World| world.image.partition("t", 0).unwrap().leader_epoch;
    world.run(&register(1, "a")).unwrap();
    assert_eq!(epoch(&world), 0);
    world.run(&RegisterBroker { clean_start: false, ..register(1, "a") }).unwrap();
    assert_eq!(epoch(&world), 1);
}

#[test]
fn fence_that_is_meant_for_an_earlier_start_does_nothing() {
    let mut world = World::with_racks(&["a"]);
    let first = world.image.brokers[&BrokerId(1)].epoch;
    let second = world.run(&register(1, "a")).unwrap();
    assert!(second > first);
    let fence = |epoch| FenceBrokers { brokers: vec![(BrokerId(1), epoch)], fenced: true };
    let refused = world.run(&fence(first)).remove(0).unwrap_err();
    assert_eq!(refused.code, ErrorCode::StaleBrokerEpoch);
    assert!(world.image.is_live(BrokerId(1)));
    world.run(&fence(second)).remove(0).unwrap();
    assert!(!world.image.is_live(BrokerId(1)));
}

#[derive(Clone, Debug)]
enum Step {
    Create(u8, i8, i8),
    Delete(u8),
    Grow(u8, i8),
    Fence(i32, bool),
    Register(i32, bool),
    Isr(u8, u8),
    Stop(i32, u8),
    Log(i32, u8, bool),
    Elect(bool),
    Balance(u8),
    Move(u8, u8, Option<Vec<i32>>),
    Ids(i32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..6u8, -2..7i8, -2..5i8).prop_map(|(n, p, f)| Step::Create(n, p, f)),
        (0..6u8).prop_map(Step::Delete),
        (0..6u8, -2..12i8).prop_map(|(n, c)| Step::Grow(n, c)),
        (0..6i32, any::<bool>()).prop_map(|(id, fenced)| Step::Fence(id, fenced)),
        (0..6i32, any::<bool>()).prop_map(|(id, clean)| Step::Register(id, clean)),
        (0..6u8, any::<u8>()).prop_map(|(n, mask)| Step::Isr(n, mask)),
        (0..6i32, 0..4u8).prop_map(|(id, max)| Step::Stop(id, max)),
        (0..6i32, 0..6u8, any::<bool>()).prop_map(|(id, n, is)| Step::Log(id, n, is)),
        any::<bool>().prop_map(Step::Elect),
        (0..4u8).prop_map(Step::Balance),
        (0..6u8, 0..3u8, prop::option::of(prop::collection::vec(0..6i32, 0..4)))
            .prop_map(|(n, index, target)| Step::Move(n, index, target)),
        (0..6i32).prop_map(Step::Ids),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn any_history_keeps_the_invariants_and_never_reuses_an_id(steps in prop::collection::vec(step(), 0..40)) {
        let mut world = World::with_racks(&["a", "b", "b", "c"]);
        let mut next = 0;
        for step in steps {
            let before: BTreeMap<_, _> = epochs(&world.image);
            match step {
                Step::Create(n, p, f) => drop(world.create(&format!("t{n}"), p.into(), f.into())),
                Step::Delete(n) => drop(world.run(&DeleteTopics { topics: vec![TopicSelector::Name(format!("t{n}"))] })),
                Step::Grow(n, count) => {
                    let growth = TopicGrowth { name: format!("t{n}"), count: count.into(), assignments: None };
                    drop(world.run(&CreatePartitions { topics: vec![growth], validate_only: false }));
                }
                Step::Fence(id, fenced) => {
                    let with_epoch = |id| {
                        let known = world.image.brokers.get(&BrokerId(id));
                        (BrokerId(id), known.map_or(0, |broker| broker.epoch))
                    };
                    // Some together.
                    let brokers = (id..=id + i32::from(id % 2 == 0)).map(with_epoch).collect();
                    let _ = world.run(&FenceBrokers { brokers, fenced });
                }
                Step::Register(id, clean_start) => {
                    let present = world.image.brokers.get(&BrokerId(id)).map_or(0, |broker| broker.epoch);
                    let epoch = world.run(&RegisterBroker { clean_start, ..register(id, "d") }).unwrap();
                    prop_assert!(epoch > present && epoch.unsigned_abs() <= world.image.applied_index);
                }
                Step::Isr(n, mask) => alter_isr(&mut world, n, mask),
                Step::Stop(id, max) => {
                    let id = BrokerId(id);
                    let epoch = world.image.brokers.get(&id).map_or(0, |broker| broker.epoch);
                    if world.run(&StopBroker { id, epoch, partitions_max: max.into() }).is_ok() {
                        prop_assert!(!world.image.is_serving(id));
                    }
                }
                Step::Log(id, n, is) => report_logs(&mut world, BrokerId(id), n, is),
                Step::Elect(unclean) => {
                    let kinds = [WantedLeader::Preferred, WantedLeader::Unclean];
                    let wanted = kinds[usize::from(unclean)];
                    drop(world.run(&ElectLeaders { wanted, partitions: None }));
                }
                Step::Balance(max) => {
                    let moved = world.run(&BalanceLeaders { leads_max: max.into() });
                    prop_assert!(moved <= max.into());
                }
                Step::Move(n, index, target) => {
                    move_replicas(&mut world, n, index.into(), target)?;
                }
                Step::Ids(id) => {
                    if let Ok(block) = world.run(&AllocateProducerIds { broker: BrokerId(id) }) {
                        prop_assert_eq!(block.first_id, next);
                        next += i64::from(block.len);
                    }
                }
            }
            for (key, after) in epochs(&world.image) {
                if let Some(old) = before.get(&key) {
                    // Another leader only in another epoch; another state only in another partition
                    // epoch.
                    prop_assert!(after.0 > old.0 || (after.0 == old.0 && after.2 == old.2), "{:?} {:?}", old, after);
                    prop_assert!(after.1 > old.1 || *old == after);
                }
            }
        }
    }
}

fn report_logs(world: &mut World, broker: BrokerId, n: u8, is_offline: bool) {
    let Some(topic) = world.image.topic(&format!("t{n}")) else { return };
    let logs = (0..3).map(|partition| LogReport {
        topic_id: topic.id,
        partition,
        is_offline,
        is_full: false,
        may_have_lost: partition > 0,
        lacks_records: partition == 2,
        is_new: false,
    });
    let broker_epoch = world.image.brokers.get(&broker).map_or(0, |known| known.epoch);
    let _ = world.run(&ReportLogs { broker, broker_epoch, logs: logs.collect() });
}

/// Nobody who is in sync goes by it unless enough stay.
fn move_replicas(
    world: &mut World,
    n: u8,
    partition: i32,
    target: Option<Vec<i32>>,
) -> Result<(), TestCaseError> {
    let topic = format!("t{n}");
    let before = world.image.partition(&topic, partition).cloned();
    let replicas = target.map(|ids| ids.into_iter().map(BrokerId).collect());
    let one = Reassignment { topic: topic.clone(), partition, replicas };
    let partitions = vec![one];
    let operation = AlterReassignments { partitions, may_change_replication_factor: true };
    let result = world.run(&operation).remove(0);
    let (Some(before), Ok(())) = (before, result) else { return Ok(()) };
    let after = world.image.partition(&topic, partition).unwrap();
    let topic = world.image.topic(&topic).unwrap();
    let required = after.required_in_sync(min_insync(&world.image, topic, &after.replicas));
    prop_assert!(after.isr.len() >= before.isr.len().min(required), "{:?} {:?}", before, after);
    if !after.is_reassigning() && before.is_reassigning() {
        let is_back = after.replicas.iter().all(|id| !before.adding.contains(id));
        prop_assert!(is_back || after.isr.len() == after.replicas.len(), "{:?}", after);
    }
    Ok(())
}

/// A topic with one partition on three brokers, led by the first of them.
fn replicated(flush_on_ack: &str) -> (World, [BrokerId; 3]) {
    let mut world = World::with_racks(&["a", "b", "c"]);
    let replicas = [1, 2, 3].map(BrokerId);
    let assignments = vec![(0, replicas.to_vec())];
    let placement = TopicPlacement { assignments, ..TopicPlacement::automatic(-1, -1) };
    let configs = BTreeMap::from([("flush.on.ack".to_owned(), Some(flush_on_ack.to_owned()))]);
    let topics = vec![NewTopic { name: "t".into(), placement, configs }];
    let operation = CreateTopics {
        topics,
        validate_only: false,
        default_partitions: 1,
        default_replication_factor: 1,
    };
    world.run(&operation).remove(0).1.unwrap();
    (world, replicas)
}

#[test]
fn an_unclean_start_leaves_the_isrs_that_it_counted_unsynced_records_in() {
    let unclean = |id| RegisterBroker { clean_start: false, ..register(id, "a") };
    let state = |world: &World| world.image.partition("t", 0).unwrap().clone();
    // What is synced before it counts is there.
    let (mut world, replicas) = replicated("true");
    world.run(&unclean(2)).unwrap();
    assert_eq!(*state(&world).isr, replicas);

    let (mut world, [first, second, third]) = replicated("false");
    world.run(&RegisterBroker { clean_start: true, ..register(2, "b") }).unwrap();
    assert_eq!(*state(&world).isr, [first, second, third]);
    // A follower, and the leader before anybody has noticed its end: another one leads.
    world.run(&unclean(2)).unwrap();
    assert_eq!(*state(&world).isr, [first, third]);
    let before = state(&world);
    world.run(&unclean(1)).unwrap();
    let after = state(&world);
    assert_eq!((&*after.isr, after.leader), (&[third][..], Some(third)));
    assert!(after.leader_epoch > before.leader_epoch);
    // The last one has the newest there is, whatever it lost.
    world.run(&unclean(3)).unwrap();
    assert_eq!((&*state(&world).isr, state(&world).leader), (&[third][..], Some(third)));
    assert!(state(&world).leader_epoch > after.leader_epoch);
}

#[test]
fn an_isr_change_counts_for_the_starts_of_brokers_that_it_names() {
    let (mut world, replicas) = replicated("false");
    let topic_id = world.image.topic("t").unwrap().id;
    let epochs = |world: &World| replicas.map(|id| world.image.brokers[&id].epoch);
    let alter = |world: &mut World, broker_epoch: i64, epochs: [i64; 3]| {
        let state = world.image.partition("t", 0).unwrap().clone();
        let change = IsrChange {
            topic_id,
            partition: 0,
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
            isr: (replicas.into_iter().zip(epochs))
                .map(|(id, epoch)| IsrMember { id, epoch })
                .collect(),
        };
        let operation = AlterIsr { broker: replicas[0], broker_epoch, changes: vec![change] };
        world.run(&operation).remove(0).map_err(|error| error.code)
    };
    let before = epochs(&world);
    world.run(&RegisterBroker { clean_start: false, ..register(2, "b") }).unwrap();
    assert_eq!(alter(&mut world, before[0], before), Err(ErrorCode::IneligibleReplica));
    let now = epochs(&world);
    assert_eq!(alter(&mut world, before[0] + 1, now), Err(ErrorCode::StaleBrokerEpoch));
    assert_eq!(*alter(&mut world, now[0], now).unwrap().isr, replicas);
}

type Epochs = (i32, i32, Option<BrokerId>, Vec<BrokerId>);

fn epochs(image: &MetadataImage) -> BTreeMap<(Uuid, i32), Epochs> {
    let all = image
        .topics()
        .flat_map(|topic| topic.indexed_partitions().map(move |(n, state)| ((topic.id, n), state)));
    all.map(|(key, state)| {
        (key, (state.leader_epoch, state.partition_epoch, state.leader, state.isr.to_vec()))
    })
    .collect()
}

fn alter_isr(world: &mut World, n: u8, mask: u8) {
    alter_isr_of(world, &format!("t{n}"), 0, mask);
}

fn alter_isr_of(world: &mut World, topic: &str, partition: i32, mask: u8) {
    let Some(topic) = world.image.topic(topic).cloned() else { return };
    let state = topic.partition(partition).unwrap();
    let Some(leader) = state.leader else { return };
    let epoch = |id| world.image.brokers.get(&id).map_or(0, |broker| broker.epoch);
    let ids = (0..6).filter(|id| mask & (1 << id) != 0).map(BrokerId);
    let isr = ids.map(|id| IsrMember { id, epoch: epoch(id) }).collect();
    let broker_epoch = epoch(leader);
    let change = IsrChange {
        topic_id: topic.id,
        partition,
        leader_epoch: state.leader_epoch,
        partition_epoch: state.partition_epoch,
        isr,
    };
    drop(world.run(&AlterIsr { broker: leader, broker_epoch, changes: vec![change] }));
}
