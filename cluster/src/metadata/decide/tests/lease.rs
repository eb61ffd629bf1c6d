//! Restart leases: who gets one, what its brokers lead meanwhile, and when it is over.

use super::verdict::{fence, ids, judge, make, put_in_sync, world};
use super::*;
use crate::metadata::record::FeatureRecord;
use crate::metadata::{MetadataRecord, RestartLease};

const MIN_2: &[(&str, &str)] = &[(MIN_INSYNC, "2")];

/// As [`world`], at that level.
fn at_level(level: i16) -> World {
    let mut world = world();
    let level = MetadataRecord::Feature(FeatureRecord { name: FEATURE.to_owned(), level });
    world.image = apply(&world.image, world.image.applied_index + 1, &[level]).unwrap();
    world
}

fn new_world() -> World {
    at_level(Levels::SUPPORTED.max)
}

fn asked(holder: &str, brokers: &[i32]) -> TakeRestartLease {
    let brokers = ids(brokers).into_iter().collect();
    let restart = JudgeRestart { brokers, names_max: 3 };
    TakeRestartLease { holder: holder.to_owned(), restart, for_ms: 60_000, leads_max: 1_000 }
}

fn take(world: &mut World, holder: &str, brokers: &[i32]) -> LeaseAnswer {
    world.run(&asked(holder, brokers)).unwrap()
}

fn tend(world: &mut World) -> usize {
    world.run(&TendLeases { leads_max: 1_000, ..TendLeases::default() }).unwrap()
}

fn holders(world: &World) -> Vec<&str> {
    world.image.leases().map(|lease| lease.holder.as_str()).collect()
}

fn leader(world: &World) -> Option<i32> {
    world.image.partition("t", 0).unwrap().leader.map(|id| id.0)
}

#[test]
fn a_lease_counts_for_whoever_asks_after_it() {
    let mut world = new_world();
    make(&mut world, &[1, 2, 3], &[1, 2, 3], MIN_2);
    assert!(judge(&mut world, &[2]).unwrap().is_safe());
    let first = take(&mut world, "a", &[1]).lease.unwrap();
    assert_eq!(first.brokers.keys().copied().collect::<Vec<_>>(), ids(&[1]));
    let second = take(&mut world, "b", &[2]);
    assert_eq!((second.lease, second.conflict), (None, None));
    assert_eq!((second.verdict.below_min_isr.count, second.verdict.voters.left), (1, 1));
    assert_eq!(second.verdict.away, [BrokerId(1)].into());
    let told: Vec<_> = second.verdict.leases.iter().map(|lease| lease.holder.clone()).collect();
    assert_eq!(told, ["a"]);
    // The verdict says it, too: of others, and not of the one that has it.
    assert!(!judge(&mut world, &[2]).unwrap().is_safe());
    let own = judge(&mut world, &[1]).unwrap();
    assert!(own.is_safe() && own.leases.is_empty() && own.away.is_empty(), "{own:?}");
    // Who does not matter to these partitions and the quorum may.
    assert!(take(&mut world, "c", &[4]).lease.is_some());
    // What is interrupted anyway is nobody's reason to wait: it is judged as if 1 were gone.
    fence(&mut world, 3);
    world.voters.in_step.remove(&BrokerId(3));
    assert!(take(&mut world, "b", &[3]).lease.is_some());
    assert_eq!(holders(&world), ["a", "b", "c"]);
}

#[test]
fn a_voter_without_partitions_is_reserved_as_well() {
    let mut world = new_world();
    assert!(take(&mut world, "a", &[1]).lease.is_some());
    let second = take(&mut world, "b", &[2]);
    assert!(second.lease.is_none() && !second.verdict.voters.is_kept(), "{second:?}");
    // One that is a controller only is leased, too.
    world.voters.all = ids(&[1, 2, 9]).into_iter().collect();
    world.voters.in_step = world.voters.all.clone();
    assert!(world.run(&ReleaseRestartLease { holder: "a".to_owned() }));
    assert!(take(&mut world, "a", &[9]).lease.is_some());
    assert!(take(&mut world, "b", &[2]).lease.is_none());
}

#[test]
fn a_broker_is_in_one_lease_and_a_holder_has_one() {
    let mut world = new_world();
    let first = take(&mut world, "a", &[1]).lease.unwrap();
    let leased = |holder: &str| LeaseConflict::BrokerLeased {
        broker: BrokerId(1),
        holder: holder.to_owned(),
    };
    assert_eq!(take(&mut world, "b", &[1]).conflict, Some(leased("a")));
    assert_eq!(take(&mut world, "b", &[1, 4]).conflict, Some(leased("a")));
    let other = LeaseConflict::HolderHasLease { brokers: ids(&[1]) };
    for brokers in [&[4][..], &[1, 4]] {
        assert_eq!(take(&mut world, "a", brokers).conflict, Some(other.clone()), "{brokers:?}");
    }
    // Who does not know the answer asks again: it is another grant, for all of its time.
    let left = [("a".to_owned(), (first.grant, 9_000))].into();
    world.run(&TendLeases { left, ..TendLeases::default() }).unwrap();
    assert_eq!(world.image.lease("a").unwrap().left_ms, 9_000);
    let again = take(&mut world, "a", &[1]).lease.unwrap();
    assert!(again.grant > first.grant, "{again:?}");
    assert_eq!(world.image.lease("a").unwrap().left_ms, 60_000);
    // What is said of the first grant is not said of this one.
    let (expired, left) = ([("a".to_owned(), first.grant)], [("a".to_owned(), (first.grant, 5))]);
    world.run(&TendLeases { expired: expired.into(), left: left.into(), leads_max: 9 }).unwrap();
    assert_eq!(world.image.lease("a"), Some(&again));
    let release = ReleaseRestartLease { holder: "a".to_owned() };
    assert_eq!((world.run(&release), world.run(&release)), (true, false));
    assert!(take(&mut world, "b", &[1]).lease.is_some());
}

#[test]
fn who_has_a_lease_over_it_leads_only_where_nobody_else_may() {
    let mut world = new_world();
    make(&mut world, &[1, 2, 3], &[1, 2, 3], MIN_2);
    let answer = take(&mut world, "a", &[1]);
    assert_eq!((answer.leads_left, leader(&world)), (0, Some(2)));
    let state = world.image.partition("t", 0).unwrap();
    assert_eq!(&*state.isr, &*ids(&[1, 2, 3]), "it stays in sync");
    // Neither a person nor the balance gives it back.
    let preferred = ElectLeaders { wanted: WantedLeader::Preferred, partitions: None };
    let refused = world.run(&preferred).remove(0).1.unwrap_err();
    assert_eq!(refused.code, ErrorCode::PreferredLeaderNotAvailable);
    assert_eq!(world.run(&BalanceLeaders { leads_max: 9 }), 0);
    // Nor does an election, while there is another one.
    fence(&mut world, 2);
    assert_eq!(leader(&world), Some(3));
    fence(&mut world, 3);
    assert_eq!(leader(&world), Some(1));
    // It is handed over as soon as there is.
    world.run(&register(2, "b")).unwrap();
    put_in_sync(&mut world, &[1, 2]);
    assert_eq!((tend(&mut world), leader(&world)), (0, Some(2)));
    assert!(world.run(&ReleaseRestartLease { holder: "a".to_owned() }));
    assert_eq!((world.run(&BalanceLeaders { leads_max: 9 }), leader(&world)), (1, Some(1)));
}

#[test]
fn a_new_partition_is_led_by_another_one_and_the_only_replica_by_itself() {
    let mut world = new_world();
    assert_eq!(take(&mut world, "a", &[1]).leads_left, 0);
    for (replicas, expected) in [(&[1, 2, 3][..], 2), (&[1], 1)] {
        let assignments = vec![(0, ids(replicas))];
        let placement = TopicPlacement { assignments, ..TopicPlacement::automatic(-1, -1) };
        let name = format!("t{expected}");
        world.create_with(&name, placement, false).unwrap();
        let led = world.image.partition(&name, 0).unwrap().leader;
        assert_eq!(led, Some(BrokerId(expected)));
    }
    assert_eq!(tend(&mut world), 0, "nobody else could");
}

#[test]
fn leads_move_some_at_a_time() {
    let mut world = new_world();
    world.create("many", 30, 3).unwrap();
    let led = |world: &World| {
        let states = world.image.partitions_of(BrokerId(1));
        states.filter(|(_, _, state)| state.leader == Some(BrokerId(1))).count()
    };
    let before = led(&world);
    assert!(before > 4, "{before}");
    let answer = world.run(&TakeRestartLease { leads_max: 2, ..asked("a", &[1]) }).unwrap();
    assert_eq!((answer.leads_left, led(&world)), (before - 2, before - 2));
    let left = world.run(&TendLeases { leads_max: 2, ..TendLeases::default() }).unwrap();
    assert_eq!((left, led(&world)), (before - 4, before - 4));
    assert_eq!((tend(&mut world), led(&world)), (0, 0));
}

#[test]
fn a_lease_is_over_when_each_broker_has_started_again_and_is_caught_up() {
    let mut world = new_world();
    make(&mut world, &[1, 2, 3], &[1, 2, 3], MIN_2);
    take(&mut world, "a", &[1, 4]);
    let is_held = |world: &mut World| {
        tend(world);
        !holders(world).is_empty()
    };
    assert!(is_held(&mut world), "both serve, and neither has restarted");
    fence(&mut world, 1);
    assert!(is_held(&mut world));
    world.run(&register(1, "a")).unwrap();
    assert!(!judge(&mut world, &[2]).unwrap().is_safe());
    assert!(is_held(&mut world), "it is not in sync");
    put_in_sync(&mut world, &[2, 3, 1]);
    assert!(is_held(&mut world), "4 has not restarted");
    world.run(&register(4, "d")).unwrap();
    // At once, for who asks.
    assert!(judge(&mut world, &[2]).unwrap().is_safe());
    assert!(take(&mut world, "b", &[2]).lease.is_some());
    assert_eq!(holders(&world), ["b"]);
    // Nobody waits for one that is gone for good.
    fence(&mut world, 2);
    world.run(&UnregisterBroker { id: BrokerId(2) }).unwrap();
    assert!(!is_held(&mut world));
}

#[test]
fn what_cannot_be_granted_is_refused_by_name() {
    let mut old = at_level(3);
    let refused = old.run(&asked("a", &[1])).unwrap_err();
    assert_eq!(refused.code, ErrorCode::UnsupportedVersion);
    let words = "letterbox.version is finalized at level 3, and 4 has them";
    assert!(refused.message.contains(words), "{refused}");
    assert!(holders(&old).is_empty());
    let mut world = new_world();
    let invalid = ErrorCode::InvalidRequest;
    for (operation, code) in [
        (asked("", &[1]), invalid),
        (asked("two words", &[1]), invalid),
        (asked(&"x".repeat(201), &[1]), invalid),
        (TakeRestartLease { for_ms: 999, ..asked("a", &[1]) }, invalid),
        (TakeRestartLease { for_ms: 3_600_001, ..asked("a", &[1]) }, invalid),
        (asked("a", &[]), invalid),
        (asked("a", &[7]), ErrorCode::BrokerIdNotRegistered),
    ] {
        assert_eq!(world.run(&operation).unwrap_err().code, code, "{operation:?}");
    }
    let holder = "x".repeat(200);
    assert!(take(&mut world, &holder, &[1]).lease.is_some());
}

#[test]
fn a_lease_lasts_its_time_and_a_new_controller_goes_on_with_what_is_left() {
    let mut world = new_world();
    let grant = take(&mut world, "a", &[1]).lease.unwrap().grant;
    let mut times = LeaseTimes::default();
    assert!(times.is_empty());
    times.take(&world.image, 5_000);
    let of = |left: Option<u64>, is_over: bool| TendLeases {
        expired: is_over.then(|| ("a".to_owned(), grant)).into_iter().collect(),
        left: left.map(|left| ("a".to_owned(), (grant, left))).into_iter().collect(),
        leads_max: 7,
    };
    for (now, left, is_over) in [
        (5_000, None, false),
        (10_999, None, false),
        // A tenth of its time is worth writing down.
        (11_000, Some(54_000), false),
        (64_999, Some(1), false),
        (65_000, None, true),
        (99_000, None, true),
    ] {
        assert_eq!(times.tend(now, 7), of(left, is_over), "{now}");
    }
    world.run(&times.tend(35_000, 7)).unwrap();
    times.take(&world.image, 36_000);
    assert_eq!(times.tend(36_000, 7), of(None, false), "it is written down");
    assert_eq!(times.tend(65_000, 7), of(None, true), "and lasts no longer for it");
    let mut next = LeaseTimes::default();
    next.take(&world.image, 0);
    assert_eq!((next.tend(29_999, 7), next.tend(30_000, 7)), (of(Some(1), false), of(None, true)));
    world.run(&next.tend(30_000, 7)).unwrap();
    assert!(holders(&world).is_empty());
    next.take(&world.image, 31_000);
    assert!(next.is_empty());
    // Another grant of the same holder has its own time.
    take(&mut world, "a", &[1]);
    next.take(&world.image, 40_000);
    assert!(next.tend(70_000, 7).expired.is_empty());
}

#[test]
fn a_lease_is_written_like_this() {
    let lease = RestartLease {
        holder: "me".to_owned(),
        grant: 9,
        brokers: [(BrokerId(2), 5)].into(),
        for_ms: 1_000,
        left_ms: 700,
    };
    let written = r#"[{"k":"restartLease","v":0,"d":{"brokers":{"2":5},"for_ms":1000,"grant":9,"holder":"me","left_ms":700}}]"#;
    let record = MetadataRecord::RestartLease(lease);
    assert_eq!(encode(std::slice::from_ref(&record)).unwrap(), written);
    assert_eq!(decode(written).unwrap(), [record]);
}

proptest! {
    /// Whoever has a lease may be gone at the same time: partitions that can do without one of
    /// their replicas are led, and take records.
    #[test]
    fn all_that_have_leases_may_restart_together(
        isr in proptest::sample::subsequence(vec![1, 2, 3, 4], 1..=4),
        min in 1_usize..4,
        asks in proptest::collection::vec(
            proptest::sample::subsequence(vec![1, 2, 3, 4, 5], 1..=3), 1..6),
    ) {
        let mut world = new_world();
        world.voters = Voters::default();
        make(&mut world, &[1, 2, 3, 4], &isr, &[(MIN_INSYNC, &min.to_string())]);
        for (n, brokers) in asks.iter().enumerate() {
            take(&mut world, &format!("h{n}"), brokers);
        }
        let leased = world.image.leased_brokers();
        let named: usize = world.image.leases().map(|lease| lease.brokers.len()).sum();
        prop_assert_eq!(leased.len(), named, "a broker is in two leases");
        let before = world.image.partition("t", 0).unwrap().clone();
        let is_other = |id: &BrokerId| !leased.contains(id);
        if before.isr.iter().any(is_other) {
            prop_assert!(before.leader.is_some_and(|id| is_other(&id)), "{:?}", before);
        }
        let epochs = leased.iter().map(|id| (*id, world.image.brokers[id].epoch)).collect();
        world.run(&FenceBrokers { brokers: epochs, fenced: true });
        let after = world.image.partition("t", 0).unwrap();
        prop_assert!(after.leader.is_some(), "{:?} {:?}", leased, after);
        prop_assert!(before.isr.len() < min || after.isr.len() >= min, "{:?} {:?}", leased, after);
    }
}
