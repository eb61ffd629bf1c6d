//! Operations and outcomes come back as they were written, and what is too new is refused by name.

use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

use super::super::*;
use crate::metadata::features::{Levels, Release};
use crate::metadata::{
    ConfigResource, Endpoint, PartitionState, RestartLease, SecurityProtocol, Stamp,
};

fn name() -> impl Strategy<Value = String> {
    "[a-z\"\\\\\u{1}\u{e4}\u{1f600}]{0,6}"
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn broker() -> impl Strategy<Value = BrokerId> {
    any::<i32>().prop_map(BrokerId)
}

fn brokers() -> impl Strategy<Value = Vec<BrokerId>> {
    vec(broker(), 0..4)
}

fn item<T: std::fmt::Debug>(
    value: impl Strategy<Value = T>,
) -> impl Strategy<Value = ItemResult<T>> {
    const CODES: &[ErrorCode] = &[
        ErrorCode::TopicAlreadyExists,
        ErrorCode::UnknownServerError,
        ErrorCode::InvalidReplicaAssignment,
    ];
    let error = (proptest::sample::select(CODES), name())
        .prop_map(|(code, message)| ApiError::new(code, message));
    proptest::result::maybe_err(value, error)
}

fn resource() -> impl Strategy<Value = ConfigResource> {
    prop_oneof![
        name().prop_map(ConfigResource::Topic),
        broker().prop_map(ConfigResource::Broker),
        Just(ConfigResource::Cluster),
        name().prop_map(ConfigResource::Group),
    ]
}

fn selector() -> impl Strategy<Value = TopicSelector> {
    prop_oneof![name().prop_map(TopicSelector::Name), uuid().prop_map(TopicSelector::Id)]
}

fn new_topic() -> impl Strategy<Value = NewTopic> {
    let placement = (any::<i32>(), any::<i16>(), vec((any::<i32>(), brokers()), 0..3)).prop_map(
        |(num_partitions, replication_factor, assignments)| TopicPlacement {
            num_partitions,
            replication_factor,
            assignments,
        },
    );
    let configs = proptest::collection::btree_map(name(), proptest::option::of(name()), 0..3);
    (name(), placement, configs).prop_map(|(name, placement, configs)| NewTopic {
        name,
        placement,
        configs,
    })
}

fn alteration() -> impl Strategy<Value = ResourceAlteration> {
    let value = || proptest::option::of(name());
    let op = prop_oneof![
        value().prop_map(ConfigOp::Set),
        Just(ConfigOp::Delete),
        value().prop_map(ConfigOp::Append),
        value().prop_map(ConfigOp::Subtract),
    ];
    (resource(), vec((name(), op), 0..3), any::<bool>())
        .prop_map(|(resource, changes, replace)| ResourceAlteration { resource, changes, replace })
}

fn registration() -> impl Strategy<Value = RegisterBroker> {
    let protocol = proptest::sample::select(&[
        SecurityProtocol::Plaintext,
        SecurityProtocol::Ssl,
        SecurityProtocol::SaslPlaintext,
        SecurityProtocol::SaslSsl,
    ]);
    let endpoint = (name(), name(), any::<u16>(), protocol).prop_map(
        |(listener, host, port, security_protocol)| Endpoint {
            listener,
            host,
            port,
            security_protocol,
        },
    );
    let flags = any::<(bool, bool, Option<i64>)>();
    let some = || {
        let indexes = proptest::collection::btree_set(any::<i32>(), 0..3);
        proptest::collection::btree_map(uuid(), indexes, 0..3)
    };
    let indexes = proptest::collection::btree_set(any::<i32>(), 0..3);
    let offline = (some(), proptest::collection::btree_map(name(), indexes, 0..3));
    let open = (some(), some(), some()).prop_map(|(whole, may_have_lost, lacks_records)| {
        OpenLogs { whole, may_have_lost, lacks_records }
    });
    let open = proptest::collection::btree_map(uuid(), open, 0..3);
    let ids = || proptest::collection::btree_set(uuid(), 0..3);
    let found = (open, offline, any::<(bool, bool)>(), ids()).prop_map(
        |(open, offline, flags, given_up)| {
            let ((has_unread, has_lists), (offline, offline_by_name)) = (flags, offline);
            FoundLogs { open, offline, offline_by_name, has_unread, has_lists, given_up }
        },
    );
    let found = proptest::option::of(found);
    let stamp =
        (uuid(), proptest::option::of(uuid())).prop_map(|(run, before)| Stamp { run, before });
    let directories = (proptest::collection::btree_map(uuid(), stamp, 0..3), ids());
    let levels = any::<(i16, i16)>().prop_map(|(min, max)| Levels { min, max });
    let release = (name(), proptest::collection::btree_map(name(), levels, 0..3))
        .prop_map(|(version, features)| Release { version, features });
    let found = (found, release);
    (broker(), directories, vec(endpoint, 0..3), proptest::option::of(name()), flags, found)
        .prop_map(|(id, (directories, absent), endpoints, rack, flags, (found, release))| {
            let (clean_start, flushes_on_ack, replaces) = flags;
            RegisterBroker {
                id,
                directories,
                absent,
                endpoints,
                rack,
                clean_start,
                flushes_on_ack,
                found,
                min_insync_replicas: 2,
                session_ms: 9,
                replaces,
                release,
            }
        })
}

fn isr_change() -> impl Strategy<Value = IsrChange> {
    let member = (broker(), any::<i64>()).prop_map(|(id, epoch)| IsrMember { id, epoch });
    (uuid(), any::<i32>(), any::<i32>(), any::<i32>(), vec(member, 0..3)).prop_map(
        |(topic_id, partition, leader_epoch, partition_epoch, isr)| IsrChange {
            topic_id,
            partition,
            leader_epoch,
            partition_epoch,
            isr,
        },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    let growth = (name(), any::<i32>(), proptest::option::of(vec(brokers(), 0..3)))
        .prop_map(|(name, count, assignments)| TopicGrowth { name, count, assignments });
    let move_to = (name(), any::<i32>(), proptest::option::of(brokers()))
        .prop_map(|(topic, partition, replicas)| Reassignment { topic, partition, replicas });
    prop_oneof![
        (vec(new_topic(), 0..3), any::<bool>(), any::<i32>(), any::<i16>()).prop_map(
            |(topics, validate_only, default_partitions, default_replication_factor)| {
                Operation::from(CreateTopics {
                    topics,
                    validate_only,
                    default_partitions,
                    default_replication_factor,
                })
            }
        ),
        vec(selector(), 0..3).prop_map(|topics| DeleteTopics { topics }.into()),
        (vec(growth, 0..3), any::<bool>())
            .prop_map(|(topics, validate_only)| CreatePartitions { topics, validate_only }.into()),
        (vec(alteration(), 0..3), any::<bool>())
            .prop_map(|(resources, validate_only)| AlterConfigs { resources, validate_only }.into()),
        registration().prop_map(Operation::from),
        (vec((broker(), any::<i64>()), 0..3), any::<bool>())
            .prop_map(|(brokers, fenced)| FenceBrokers { brokers, fenced }.into()),
        (broker(), any::<i64>(), vec(isr_change(), 0..3)).prop_map(
            |(broker, broker_epoch, changes)| AlterIsr { broker, broker_epoch, changes }.into()
        ),
        broker().prop_map(|broker| AllocateProducerIds { broker }.into()),
        broker().prop_map(|id| UnregisterBroker { id }.into()),
        (broker(), any::<i64>(), any::<usize>())
            .prop_map(|(id, epoch, max)| StopBroker { id, epoch, partitions_max: max }.into()),
        proptest::option::of(vec((name(), any::<i32>()), 0..3)).prop_map(|partitions| {
            ElectLeaders { wanted: WantedLeader::Unclean, partitions }.into()
        }),
        any::<usize>().prop_map(|leads_max| BalanceLeaders { leads_max }.into()),
        (vec(move_to, 0..3), any::<bool>()).prop_map(|(partitions, change)| {
            AlterReassignments { partitions, may_change_replication_factor: change }.into()
        }),
        (broker(), any::<i64>(), vec((uuid(), any::<i32>(), any::<bool>()), 0..3)).prop_map(
            |(broker, broker_epoch, logs)| {
                let of_one = |(topic_id, partition, is_offline)| LogReport {
                    topic_id,
                    partition,
                    is_offline,
                    is_full: partition > 3,
                    may_have_lost: partition > 0,
                    lacks_records: partition > 1,
                    is_new: partition > 2,
                };
                let logs = logs.into_iter().map(of_one).collect();
                ReportLogs { broker, broker_epoch, logs }.into()
            }
        ),
        name().prop_map(|cluster_id| SetClusterId { cluster_id }.into()),
        (brokers(), any::<usize>()).prop_map(|(brokers, names_max)| {
            JudgeRestart { brokers: brokers.into_iter().collect(), names_max }.into()
        }),
        (name(), brokers(), any::<(usize, u64)>()).prop_map(|(holder, brokers, (max, for_ms))| {
            let restart =
                JudgeRestart { brokers: brokers.into_iter().collect(), names_max: max };
            TakeRestartLease { holder, restart, for_ms, leads_max: max }.into()
        }),
        name().prop_map(|holder| ReleaseRestartLease { holder }.into()),
        (name(), any::<(i64, u64, usize)>()).prop_map(|(holder, (grant, left, leads_max))| {
            let expired = [(holder.clone(), grant)].into();
            TendLeases { expired, left: [(holder, (grant, left))].into(), leads_max }.into()
        }),
        (brokers(), any::<(usize, Option<i64>)>()).prop_map(|(brokers, (names_max, since_epoch))| {
            AskCaughtUp { brokers: brokers.into_iter().collect(), names_max, since_epoch }.into()
        }),
        (vec((name(), any::<i16>()), 0..3), any::<bool>()).prop_map(|(asked, validate_only)| {
            let kind = UpgradeType::SafeDowngrade;
            let of_one = |(name, level)| FeatureUpdate { name, level, kind };
            let updates = asked.into_iter().map(of_one).collect();
            UpdateFeatures { updates, validate_only }.into()
        }),
    ]
}

fn caught_up() -> impl Strategy<Value = CaughtUp> {
    let of_one = |(broker, (epoch, is_serving, replicas, bytes_left))| BrokerCaughtUp {
        broker,
        epoch,
        is_of_before: false,
        is_serving,
        replicas,
        not_in_sync: Named::default(),
        offline: Named { count: replicas, some: vec![("t".to_owned(), 0)] },
        led_elsewhere: 1,
        bytes_left,
        bytes_per_second: bytes_left,
    };
    let one = (broker(), any::<(Option<i64>, bool, usize, Option<u64>)>()).prop_map(of_one);
    (any::<i64>(), vec(one, 0..3)).prop_map(|(epoch, brokers)| CaughtUp { epoch, brokers })
}

fn lease_answer() -> impl Strategy<Value = LeaseAnswer> {
    let leased = proptest::collection::btree_map(broker(), any::<i64>(), 0..3);
    let lease = (name(), any::<(i64, u64)>(), leased).prop_map(|(holder, (grant, ms), brokers)| {
        RestartLease { holder, grant, brokers, for_ms: ms, left_ms: ms }
    });
    let conflict = prop_oneof![
        (broker(), name())
            .prop_map(|(broker, holder)| LeaseConflict::BrokerLeased { broker, holder }),
        brokers().prop_map(|brokers| LeaseConflict::HolderHasLease { brokers }),
    ];
    let conflict = proptest::option::of(conflict);
    (proptest::option::of(lease), conflict, any::<usize>()).prop_map(
        |(lease, conflict, leads_left)| {
            let leases = lease.iter().cloned().collect();
            let verdict = Verdict { leases, ..Verdict::default() };
            LeaseAnswer { lease, verdict, conflict, leads_left }
        },
    )
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let configs = proptest::collection::btree_map(name(), name(), 0..3);
    let created = (uuid(), any::<i32>(), any::<i16>(), configs).prop_map(
        |(id, num_partitions, replication_factor, configs)| CreatedTopic {
            id,
            num_partitions,
            replication_factor,
            configs,
        },
    );
    let deleted = (name(), uuid()).prop_map(|(name, id)| DeletedTopic { name, id });
    let state = (brokers(), brokers(), proptest::option::of(broker()), any::<i32>(), any::<i32>())
        .prop_map(|(replicas, isr, leader, leader_epoch, partition_epoch)| PartitionState {
            replicas: replicas.into(),
            isr: isr.into(),
            leader,
            leader_epoch,
            partition_epoch,
            ..PartitionState::default()
        });
    let block =
        (any::<i64>(), any::<i32>()).prop_map(|(first_id, len)| ProducerIdBlock { first_id, len });
    let verdict = (vec((name(), any::<i32>()), 0..3), brokers(), any::<(usize, bool)>()).prop_map(
        |(some, away, (count, restart))| Verdict {
            only_copies: Named { count, some },
            away: away.into_iter().collect(),
            voters: VotersLeft { count, needed: 1, left: 2, restart },
            ..Verdict::default()
        },
    );
    prop_oneof![
        vec((name(), item(created)), 0..3).prop_map(Outcome::CreateTopics),
        vec((selector(), item(deleted)), 0..3).prop_map(Outcome::DeleteTopics),
        vec((name(), item(Just(()))), 0..3).prop_map(Outcome::CreatePartitions),
        vec((resource(), item(Just(()))), 0..3).prop_map(Outcome::AlterConfigs),
        item(any::<i64>()).prop_map(Outcome::RegisterBroker),
        vec(item(Just(())), 0..3).prop_map(Outcome::FenceBrokers),
        vec(item(state), 0..3).prop_map(Outcome::AlterIsr),
        item(block).prop_map(Outcome::AllocateProducerIds),
        item(any::<usize>()).prop_map(Outcome::StopBroker),
        vec(((name(), any::<i32>()), item(Just(()))), 0..3).prop_map(Outcome::ElectLeaders),
        any::<usize>().prop_map(Outcome::BalanceLeaders),
        vec(item(Just(())), 0..3).prop_map(Outcome::AlterReassignments),
        item(Just(())).prop_map(Outcome::SetClusterId),
        item(Just(())).prop_map(Outcome::ReportLogs),
        item(Just(())).prop_map(Outcome::UnregisterBroker),
        item(Just(())).prop_map(Outcome::UpdateFeatures),
        item(verdict).prop_map(Outcome::JudgeRestart),
        item(caught_up()).prop_map(Outcome::AskCaughtUp),
        item(lease_answer()).prop_map(Outcome::TakeRestartLease),
        any::<bool>().prop_map(Outcome::ReleaseRestartLease),
        item(any::<usize>()).prop_map(Outcome::TendLeases),
    ]
}

proptest! {
    #[test]
    fn operation_is_read_as_it_was_written(operation in operation()) {
        prop_assert_eq!(Operation::decode(&operation.encode().unwrap()).unwrap(), operation);
    }

    #[test]
    fn answer_is_read_as_it_was_written(index in any::<u64>(), outcome in outcome()) {
        let answer = Answer { index, outcome };
        prop_assert_eq!(Answer::decode(&answer.encode().unwrap()).unwrap(), answer);
    }

    #[test]
    fn operation_with_a_byte_changed_is_read_or_refused(
        operation in operation(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = operation.encode().unwrap().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(text) = str::from_utf8(&bytes) {
            let _ = Operation::decode(text);
        }
    }
}

/// What an older broker or a newer one sends: these bytes stay readable.
#[test]
fn operations_and_answers_are_written_like_this() {
    let operation = Operation::from(DeleteTopics {
        topics: vec![TopicSelector::Name("a".to_owned()), TopicSelector::Id(Uuid::from_u128(7))],
    });
    let written = r#"{"k":"deleteTopics","v":0,"d":{"topics":[{"Name":"a"},{"Id":"00000000-0000-0000-0000-000000000007"}]}}"#;
    assert_eq!(operation.encode().unwrap(), written);
    let refused = ApiError::new(ErrorCode::UnknownTopicOrPartition, "no");
    let outcome = vec![(TopicSelector::Name("a".to_owned()), Err(refused))];
    let answer = Answer { index: 9, outcome: Outcome::DeleteTopics(outcome) };
    let written = r#"{"index":9,"outcome":{"k":"deleteTopics","v":0,"d":[[{"Name":"a"},{"Err":{"code":3,"message":"no"}}]]}}"#;
    assert_eq!(answer.encode().unwrap(), written);
}

#[test]
fn what_is_newer_or_damaged_is_refused_by_name() {
    let newer = r#"{"k":"deleteTopics","v":1,"d":{"topics":[],"colour":"blue"}}"#;
    let unknown = r#"{"k":"paintTopics","v":0,"d":{}}"#;
    for (text, words) in [
        (newer, "controller operation of kind \"deleteTopics\" version 1"),
        (unknown, "controller operation of kind \"paintTopics\" version 0"),
        ("{", "controller operation is damaged"),
        (r#"{"k":"deleteTopics","v":0,"d":{}}"#, "controller operation is damaged"),
    ] {
        let error = Operation::decode(text).unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
    let error = Answer::decode(&format!(r#"{{"index":1,"outcome":{newer}}}"#)).unwrap_err();
    assert!(error.to_string().contains("outcome of a controller operation"), "{error}");
    // A field that is not known is tolerated, and so is a code.
    let known = r#"{"k":"allocateProducerIds","v":0,"d":{"broker":3,"colour":"blue"},"x":1}"#;
    assert_eq!(
        Operation::decode(known).unwrap(),
        AllocateProducerIds { broker: BrokerId(3) }.into()
    );
    let code = r#"{"index":1,"outcome":{"k":"setClusterId","v":0,"d":{"Err":{"code":31000,"message":"m"}}}}"#;
    assert_eq!(
        Answer::decode(code).unwrap().outcome,
        Outcome::SetClusterId(Err(ApiError::new(ErrorCode::UnknownServerError, "m")))
    );
}

#[test]
fn outcome_of_another_kind_is_none() {
    let outcome = Outcome::SetClusterId(Ok(()));
    assert_eq!(<FenceBrokers as Kind>::outcome(outcome.clone()), None);
    assert_eq!(<SetClusterId as Kind>::outcome(outcome), Some(Ok(())));
}
