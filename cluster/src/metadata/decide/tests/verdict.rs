//! What restarts interrupt, as a table of states, and against what the controller really does.

use super::*;
use crate::metadata::MetadataRecord;
use crate::metadata::decide::liveness::{Behind, Lag};
use crate::metadata::record::PartitionRecord;

pub(super) fn ids(ids: &[i32]) -> Vec<BrokerId> {
    ids.iter().copied().map(BrokerId).collect()
}

/// Brokers 1 to 5, all voters that follow but 4 and 5.
pub(super) fn world() -> World {
    let mut world = World::with_racks(&["a", "b", "c", "d", "e"]);
    let all: BTreeSet<_> = ids(&[1, 2, 3]).into_iter().collect();
    world.voters = Voters { in_step: all.clone(), all };
    world
}

/// A topic with one partition on these brokers, of which `isr` are in sync.
pub(super) fn make(world: &mut World, replicas: &[i32], isr: &[i32], configs: &[(&str, &str)]) {
    let placement = TopicPlacement {
        assignments: vec![(0, ids(replicas))],
        ..TopicPlacement::automatic(-1, -1)
    };
    let configs = configs.iter().map(|(key, value)| ((*key).into(), Some((*value).into())));
    let topics = vec![NewTopic { name: "t".into(), placement, configs: configs.collect() }];
    let operation = CreateTopics {
        topics,
        validate_only: false,
        default_partitions: 1,
        default_replication_factor: 1,
    };
    world.run(&operation).remove(0).1.unwrap();
    put_in_sync(world, isr);
}

/// These are in sync, and the first one leads.
pub(super) fn put_in_sync(world: &mut World, isr: &[i32]) {
    let topic = world.image.topic("t").unwrap();
    let state = PartitionState {
        isr: ids(isr).into(),
        leader: isr.first().copied().map(BrokerId),
        ..topic.partition(0).unwrap().clone()
    };
    let record = MetadataRecord::Partition(PartitionRecord::of(topic.id, 0, &state));
    world.image = apply(&world.image, world.image.applied_index + 1, &[record]).unwrap();
}

pub(super) fn fence(world: &mut World, id: i32) {
    let epoch = world.image.brokers[&BrokerId(id)].epoch;
    let brokers = vec![(BrokerId(id), epoch)];
    world.run(&FenceBrokers { brokers, fenced: true }).remove(0).unwrap();
}

pub(super) fn judge(world: &mut World, brokers: &[i32]) -> ItemResult<Verdict> {
    let brokers = ids(brokers).into_iter().collect();
    world.run(&JudgeRestart { brokers, names_max: 3 })
}

/// The name of the list that the partition is in.
fn told(verdict: &Verdict) -> &'static str {
    let lists = [
        (&verdict.records_lost, "records lost"),
        (&verdict.only_copies, "only copies"),
        (&verdict.without_leader, "without leader"),
        (&verdict.below_min_isr, "below min ISR"),
        (&verdict.single_replica, "single"),
        (&verdict.no_spare_replica, "no spare"),
    ];
    let mut found = lists.iter().filter(|(list, _)| list.count > 0);
    let name = found.next().map_or("unharmed", |(_, name)| name);
    assert!(found.next().is_none(), "{verdict:?}");
    name
}

#[test]
fn a_partition_is_told_by_what_a_restart_makes_worse() {
    const MIN_2: &[(&str, &str)] = &[(MIN_INSYNC, "2")];
    const UNCLEAN_2: &[(&str, &str)] = &[(MIN_INSYNC, "2"), (UNCLEAN, "true")];
    const MIN_1: &[(&str, &str)] = &[(MIN_INSYNC, "1")];
    type Row<'a> = (&'a [i32], &'a [i32], &'a [(&'a str, &'a str)], &'a [i32], &'a str);
    let rows: &[Row<'_>] = &[
        (&[1, 2, 3], &[1, 2, 3], MIN_2, &[1], "unharmed"),
        (&[1, 2, 3], &[1, 2, 3], MIN_2, &[4, 5], "unharmed"),
        (&[1, 2, 3], &[1, 2, 3], MIN_2, &[1, 2], "below min ISR"),
        (&[1, 2, 3], &[1, 2, 3], MIN_2, &[1, 2, 3], "only copies"),
        // One that is not in sync holds up the others, and nobody holds it up.
        (&[1, 2, 3], &[1, 2], MIN_2, &[1], "below min ISR"),
        (&[1, 2, 3], &[1, 2], MIN_2, &[3], "unharmed"),
        (&[1, 2, 3], &[1, 2], MIN_1, &[1], "unharmed"),
        (&[1, 2, 3], &[1, 2], MIN_1, &[1, 2], "only copies"),
        // What is below already does not get worse by it, until nobody leads.
        (&[1, 2, 3], &[1], MIN_2, &[2, 3], "unharmed"),
        (&[1, 2, 3], &[1], MIN_2, &[1], "only copies"),
        (&[1, 2, 3], &[1], UNCLEAN_2, &[1], "records lost"),
        (&[1, 2, 3], &[1], UNCLEAN_2, &[1, 2, 3], "only copies"),
        (&[1], &[1], MIN_2, &[1], "single"),
        (&[1, 2], &[1, 2], MIN_2, &[2], "no spare"),
        (&[1, 2], &[1, 2], MIN_2, &[1, 2], "only copies"),
        (&[1, 2], &[1, 2], MIN_1, &[1], "unharmed"),
        (&[1, 2, 3], &[1, 2, 3], &[(MIN_INSYNC, "3")], &[2], "no spare"),
    ];
    for (replicas, isr, configs, brokers, expected) in rows {
        let mut world = world();
        make(&mut world, replicas, isr, configs);
        let before = world.image.clone();
        // A word about voters is for others.
        world.voters = Voters::default();
        let verdict = judge(&mut world, brokers).unwrap();
        let row = format!("{replicas:?} {isr:?} {configs:?} {brokers:?}");
        assert_eq!(told(&verdict), *expected, "{row}");
        let is_safe = ["unharmed", "single", "no spare"].contains(expected);
        assert_eq!(verdict.is_safe(), is_safe, "{row}");
        assert_eq!(before.topics_by_id, world.image.topics_by_id, "nothing is changed");
    }
}

#[test]
fn brokers_that_are_gone_or_about_to_stop_count_as_such() {
    for (word, expected) in [("fenced", "below min ISR"), ("stopping", "below min ISR")] {
        let mut world = world();
        make(&mut world, &[1, 2, 3], &[1, 2, 3], &[(MIN_INSYNC, "2")]);
        let epoch = world.image.brokers[&BrokerId(3)].epoch;
        match word {
            "fenced" => fence(&mut world, 3),
            // It has said so, and has left nothing yet.
            _ => {
                let stop = StopBroker { id: BrokerId(3), epoch, partitions_max: 0 };
                assert_eq!(world.run(&stop), Ok(1));
            }
        }
        let verdict = judge(&mut world, &[1]).unwrap();
        assert_eq!(told(&verdict), expected, "{word}");
        assert_eq!(verdict.away, [BrokerId(3)].into(), "{word}");
        // It is down itself: its restart makes nothing worse.
        assert!(judge(&mut world, &[3]).unwrap().is_safe(), "{word}");
    }
    // Who has everything is not there, and leads as soon as it is.
    let mut world = world();
    make(&mut world, &[1, 2, 3], &[1, 2], &[(MIN_INSYNC, "2")]);
    fence(&mut world, 2);
    assert_eq!(told(&judge(&mut world, &[1]).unwrap()), "without leader");
}

#[test]
fn the_quorum_keeps_its_majority_or_it_is_said() {
    for (all, in_step, brokers, left, is_kept) in [
        (&[1, 2, 3][..], &[1, 2, 3][..], &[1][..], 2, true),
        (&[1, 2, 3], &[1, 2, 3], &[1, 2], 1, false),
        (&[1, 2, 3], &[1, 2], &[1], 1, false),
        (&[1, 2, 3], &[1, 2], &[3], 2, true),
        (&[1, 2, 3], &[1], &[3], 1, false),
        // No voter: that one is missing is nothing to wait for.
        (&[1, 2, 3], &[1], &[4], 1, true),
        (&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5], &[1, 2], 3, true),
        // Nobody to spare.
        (&[1], &[1], &[1], 0, true),
        (&[1, 2], &[1, 2], &[2], 1, true),
        // A controller that is no broker.
        (&[1, 2, 9], &[1, 2, 9], &[9], 2, true),
    ] {
        let mut world = world();
        let set = |list: &[i32]| ids(list).into_iter().collect();
        world.voters = Voters { all: set(all), in_step: set(in_step) };
        let verdict = judge(&mut world, brokers).unwrap();
        let row = format!("{all:?} {in_step:?} {brokers:?}");
        assert_eq!((verdict.voters.left, verdict.voters.is_kept()), (left, is_kept), "{row}");
        assert_eq!(verdict.is_safe(), is_kept, "{row}");
    }
}

#[test]
fn who_is_not_there_is_not_judged() {
    let mut world = world();
    for (brokers, code) in [
        (&[][..], ErrorCode::InvalidRequest),
        (&[1, 7], ErrorCode::BrokerIdNotRegistered),
        (&(0..2_000).collect::<Vec<_>>(), ErrorCode::InvalidRequest),
    ] {
        assert_eq!(judge(&mut world, brokers).unwrap_err().code, code);
    }
}

#[test]
fn each_of_ten_thousand_partitions_is_judged_once_and_a_few_are_named() {
    let mut world = world();
    for topic in 0..10 {
        world
            .create_with(&format!("t{topic}"), TopicPlacement::automatic(1_000, 3), false)
            .unwrap();
    }
    let verdict = judge(&mut world, &[1, 2, 3, 4]).unwrap();
    assert_eq!((verdict.partitions, verdict.only_copies.some.len()), (10_000, 3));
    assert!(verdict.only_copies.count > 1_000, "{verdict:?}");
}

proptest! {
    /// What is told is what comes when these brokers are fenced.
    #[test]
    fn the_verdict_says_what_fencing_does(
        isr in proptest::sample::subsequence(vec![1, 2, 3], 1..=3),
        brokers in proptest::sample::subsequence(vec![1, 2, 3, 4], 1..=4),
        (min, unclean) in (1_usize..4, any::<bool>()),
    ) {
        let mut world = world();
        let (min_text, unclean) = (min.to_string(), unclean.to_string());
        make(&mut world, &[1, 2, 3], &isr, &[(MIN_INSYNC, &min_text), (UNCLEAN, &unclean)]);
        let verdict = judge(&mut world, &brokers).unwrap();
        let before = world.image.partition("t", 0).unwrap().clone();
        let epochs = brokers.iter().map(|id| (BrokerId(*id), world.image.brokers[&BrokerId(*id)].epoch));
        let operation = FenceBrokers { brokers: epochs.collect(), fenced: true };
        world.run(&operation);
        let after = world.image.partition("t", 0).unwrap();
        let is_led = after.leader.is_some();
        let is_clean = after.election.is_clean();
        let refuses = before.isr.len() >= min && after.isr.len() < min;
        let expected = match (is_led, is_clean) {
            (true, false) => vec!["records lost"],
            (false, _) => vec!["only copies", "without leader"],
            (true, true) if refuses => vec!["below min ISR", "no spare"],
            (true, true) => vec!["unharmed"],
        };
        let told = told(&verdict);
        prop_assert!(expected.contains(&told), "{} {:?}", told, after);
    }
}

#[test]
fn a_broker_is_caught_up_when_it_serves_and_each_of_its_replicas_is_in_sync() {
    let ask = |world: &mut World, id: i32, since_epoch| {
        let asked = AskCaughtUp { brokers: [BrokerId(id)].into(), names_max: 3, since_epoch };
        world.run(&asked).unwrap().brokers.remove(0)
    };
    let mut world = world();
    make(&mut world, &[1, 2, 3], &[2, 3], &[(MIN_INSYNC, "2")]);
    let behind = ask(&mut world, 1, None);
    assert_eq!((behind.is_caught_up(), behind.not_in_sync.count), (false, 1));
    assert_eq!((behind.bytes_left, behind.led_elsewhere), (None, 0), "nobody has told it yet");
    let told = Behind { partitions: 1, bytes: 70 };
    world.lags.insert(BrokerId(1), Lag { behind: told, bytes_per_second: Some(8) });
    let told = ask(&mut world, 1, None);
    assert_eq!((told.bytes_left, told.seconds_left()), (Some(70), Some(9)));
    for (id, is_caught_up, replicas) in [(2, true, 1), (3, true, 1), (4, true, 0), (7, false, 0)] {
        let found = ask(&mut world, id, None);
        assert_eq!((found.is_caught_up(), found.replicas), (is_caught_up, replicas), "{id}");
        assert_eq!(found.bytes_left, Some(0), "{id}");
    }
    fence(&mut world, 4);
    let fenced = ask(&mut world, 4, None);
    assert!(fenced.epoch.is_some() && !fenced.is_caught_up());
    // In sync, preferred, and led by another.
    let mut world = self::world();
    make(&mut world, &[1, 2], &[2, 1], &[]);
    let found = ask(&mut world, 1, None);
    assert_eq!((found.is_caught_up(), found.led_elsewhere), (true, 1));
    // Nobody who asks about a restart takes the registration of before it for the one after it.
    let epoch = found.epoch.unwrap();
    assert_eq!(judge(&mut world, &[1]).unwrap().epoch, epoch);
    for (since, is_caught_up) in [(epoch, false), (epoch + 1, false), (epoch - 1, true)] {
        assert_eq!(ask(&mut world, 1, Some(since)).is_caught_up(), is_caught_up, "{since}");
    }
    let brokers = BTreeSet::new();
    let all = AskCaughtUp { brokers, names_max: 3, since_epoch: None };
    assert_eq!(world.run(&all).unwrap().brokers.len(), 5);
    let brokers = (0..=1_000).map(BrokerId).collect();
    let refused = world.run(&AskCaughtUp { brokers, ..all }).unwrap_err();
    assert_eq!(refused.code, ErrorCode::InvalidRequest);
}
