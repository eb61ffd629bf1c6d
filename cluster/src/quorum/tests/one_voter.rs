//! One voter, as today's product runs it.

use std::path::Path;
use std::time::Duration;

use letterbox_env::{Env, with_causes};
use letterbox_protocol::model::BrokerId;
use letterbox_sim::disk::{Fault, SimDisk};

use super::{controller, eventually, registration, sole, topic};
use crate::controller::{Controller, ControllerError, Done};
use crate::metadata::decide::{
    AllocateProducerIds, CreatedTopic, DeleteTopics, ItemResult, RegisterBroker, SetClusterId,
    TopicSelector,
};
use crate::quorum::{MetadataQuorum, OpenError, QuorumError, RaftQuorum};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sole_voter_leads_at_once_and_keeps_everything_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let mut first_ids = Vec::new();
    for round in 0..4 {
        let before = tokio::time::Instant::now();
        let quorum = RaftQuorum::open(env.clone(), sole(dir.path())).await.unwrap();
        eprintln!("open took {:?}", before.elapsed());
        let controller = controller(&env, &quorum);
        assert_eq!(quorum.image().topic_count(), round);
        controller
            .run(SetClusterId { cluster_id: "abcdefghijklmnopqrstuv".into() })
            .await
            .unwrap()
            .outcome
            .unwrap();
        controller.run(registration(1)).await.unwrap().outcome.unwrap();
        let done = controller.run(topic(&format!("topic-{round}"), 3)).await.unwrap();
        let made = done.outcome;
        assert!(made[0].1.is_ok(), "{made:?}");
        // What was answered is in the image already, at the index that the answer tells.
        assert_eq!(quorum.image().applied_index, done.index);
        assert_eq!(quorum.image().topic(&format!("topic-{round}")).unwrap().partitions.len(), 3);
        first_ids.push(
            controller
                .run(AllocateProducerIds { broker: BrokerId(1) })
                .await
                .unwrap()
                .outcome
                .unwrap()
                .first_id,
        );
        controller.shutdown().await;
        assert_eq!(
            controller.run(topic("late", 1)).await.unwrap_err(),
            ControllerError::ShuttingDown
        );
        if round % 2 == 0 {
            MetadataQuorum::snapshot(&*quorum).await.unwrap();
            eventually("a snapshot", || quorum.status().snapshot_index > 0).await;
        }
        quorum.shutdown().await;
    }
    assert_eq!(first_ids, [0, 1000, 2000, 3000]);
}

/// What it had decided on is older than what the other leader in between may have committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lead_that_was_lost_and_won_again_is_another_one() {
    let (dir, env) = (tempfile::tempdir().unwrap(), Env::real());
    let mut before = None;
    for _ in 0..2 {
        let quorum = RaftQuorum::open(env.clone(), sole(dir.path())).await.unwrap();
        let term = quorum.begin_leading().await.unwrap();
        assert_eq!(quorum.confirm_leading(term).await, Ok(quorum.image().applied_index));
        if let Some(before) = before.replace(term) {
            let refused = quorum.confirm_leading(before).await;
            assert_eq!(refused, Err(QuorumError::NotLeader { leader: None }));
        }
        quorum.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_that_wait_together_become_one_entry() {
    let disk = SimDisk::new(1);
    let env = disk.env();
    let quorum = RaftQuorum::open(env.clone(), sole(Path::new("/data"))).await.unwrap();
    let controller = controller(&env, &quorum);
    controller.run(registration(1)).await.unwrap().outcome.unwrap();
    let (index, syncs) = (quorum.image().applied_index, disk.stats().syncs);
    let made = futures::future::join_all(
        (0..200).map(|n| controller.run(topic(&format!("t{}", n % 150), 1))),
    )
    .await;
    let made: Vec<_> =
        made.into_iter().map(|result| result.unwrap().outcome[0].1.is_ok()).collect();
    // Later ones of the same batch see what earlier ones made.
    assert_eq!(made.iter().filter(|ok| **ok).count(), 150);
    assert_eq!(quorum.image().topic_count(), 150);
    let entries = quorum.image().applied_index - index;
    assert!(entries <= 10, "{entries} entries");
    assert!(disk.stats().syncs - syncs <= 12);
    controller.shutdown().await;
    quorum.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_a_power_cut() {
    let disk = SimDisk::new(1);
    let env = disk.env();
    let mut answered: Vec<String> = Vec::new();
    for round in 0..8 {
        let quorum = RaftQuorum::open(env.clone(), sole(Path::new("/data"))).await.unwrap();
        for name in &answered {
            assert!(quorum.image().topic(name).is_some(), "{name} is lost in round {round}");
        }
        let controller = controller(&env, &quorum);
        controller.run(registration(1)).await.unwrap().outcome.unwrap();
        for n in 0..5 {
            let name = format!("t-{round}-{n}");
            assert!(controller.run(topic(&name, 2)).await.unwrap().outcome[0].1.is_ok());
            answered.push(name);
        }
        let (_, after) = tokio::join!(controller.run(topic(&format!("open-{round}"), 1)), async {
            tokio::time::sleep(Duration::from_micros(150 * round)).await;
            disk.power_off();
        });
        let () = after;
        controller.shutdown().await;
        quorum.shutdown().await;
        drop(quorum);
        disk.power_cut();
    }
}

/// Each directory on the way to it is new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_takes_no_directory_that_the_log_was_made_in() {
    for seed in 0..10 {
        let (disk, dir) = (SimDisk::new(seed), Path::new("/var/lib/letterbox"));
        let env = disk.env();
        let quorum = RaftQuorum::open(env.clone(), sole(dir)).await.unwrap();
        let controller = controller(&env, &quorum);
        controller.run(registration(1)).await.unwrap().outcome.unwrap();
        disk.power_off();
        controller.shutdown().await;
        quorum.shutdown().await;
        drop(quorum);
        disk.power_cut();
        let quorum = RaftQuorum::open(env.clone(), sole(dir)).await.unwrap();
        assert!(quorum.image().brokers.contains_key(&BrokerId(1)), "seed {seed}");
        quorum.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_sync_ends_the_quorum_and_is_never_acknowledged() {
    let disk = SimDisk::new(1);
    let env = disk.env();
    let quorum = RaftQuorum::open(env.clone(), sole(Path::new("/data"))).await.unwrap();
    let controller = controller(&env, &quorum);
    controller.run(registration(1)).await.unwrap().outcome.unwrap();
    disk.inject(Fault::FailSync, "", 0, u64::MAX);
    let result = controller.run(topic("lost", 1)).await;
    // It may be in the log.
    assert_eq!(result, Err(QuorumError::OutcomeUnknown.into()));
    let reason = tokio::time::timeout(Duration::from_secs(10), quorum.fatal()).await.unwrap();
    assert!(reason.contains("os error 5"), "{reason}");
    controller.shutdown().await;
    quorum.shutdown().await;
    drop(quorum);
    disk.heal();
    disk.power_cut();
    // The topic may have got there or not: nobody was told.
    let quorum = RaftQuorum::open(env.clone(), sole(Path::new("/data"))).await.unwrap();
    assert!(quorum.image().brokers.contains_key(&BrokerId(1)));
    quorum.shutdown().await;
}

/// Proposes until the space ahead in the log is used up, then with space again; snapshots wait
/// meanwhile, and so does a start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_waited_for_and_nothing_answered_is_lost() {
    let disk = SimDisk::new(1);
    let env = disk.env();
    let quorum = RaftQuorum::open(env.clone(), sole(Path::new("/data"))).await.unwrap();
    let first = controller(&env, &quorum);
    first.run(registration(1)).await.unwrap().outcome.unwrap();
    disk.set_free(0);
    MetadataQuorum::snapshot(&*quorum).await.unwrap();
    let mut made = Vec::new();
    let refused = loop {
        let name = format!("t{}", made.len());
        match first.run(topic(&name, 100)).await {
            Ok(done) => assert!(done.outcome[0].1.is_ok()),
            Err(error) => break error,
        }
        made.push(name);
    };
    assert!(made.len() > 10, "{} topics of 100 partitions fit into the space ahead", made.len());
    assert_eq!(
        (refused.clone(), refused.code().code()),
        (ControllerError::Quorum(QuorumError::OutcomeUnknown), 7)
    );
    let refused = first.run(topic("later", 1)).await.unwrap_err();
    assert!(
        matches!(refused, ControllerError::Quorum(QuorumError::Waiting { .. }))
            && refused.code().code() == 56,
        "{refused}"
    );
    assert_eq!(quorum.status().snapshot_index, 0);
    assert!(futures::FutureExt::now_or_never(quorum.fatal()).is_none());

    disk.heal();
    eventually("a snapshot", || quorum.status().snapshot_index > 0).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while let Err(error) = first.run(topic("later", 1)).await {
        assert!(tokio::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    made.push("later".to_owned());

    // It also stops while it waits, and starts again as soon as there is space.
    disk.set_free(0);
    while first.run(topic(&format!("more{}", made.len()), 100)).await.is_ok() {
        made.push(format!("more{}", made.len()));
    }
    first.shutdown().await;
    tokio::time::timeout(Duration::from_secs(10), quorum.shutdown()).await.unwrap();
    let starting = RaftQuorum::open(env.clone(), sole(Path::new("/data")));
    let (quorum, ()) = tokio::join!(starting, async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        disk.heal();
    });
    let quorum = quorum.unwrap();
    for name in &made {
        assert!(quorum.image().topic(name).is_some(), "{name} was answered and is lost");
    }
    quorum.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_changes_are_compacted_and_deltas_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let quorum = RaftQuorum::open(env.clone(), sole(dir.path())).await.unwrap();
    let controller = controller(&env, &quorum);
    let mut deltas = quorum.deltas();
    let mut open = std::collections::BTreeSet::new();
    controller.run(registration(1)).await.unwrap().outcome.unwrap();
    for n in 0..1300 {
        let name = format!("t{}", n % 7);
        let deleted = controller
            .run(DeleteTopics { topics: vec![TopicSelector::Name(name.clone())] })
            .await
            .unwrap()
            .outcome;
        assert_eq!(deleted[0].1.is_ok(), n >= 7);
        assert!(controller.run(topic(&name, 1)).await.unwrap().outcome[0].1.is_ok());
        if n % 5 == 0 {
            let delta = deltas.next().await.unwrap();
            for topic in delta.topics_removed {
                assert!(open.remove(&topic.id));
            }
            for topic in delta.topics_added {
                assert!(open.insert(topic.id));
            }
        }
    }
    eventually("a snapshot", || quorum.status().snapshot_index > 1000).await;
    let before = quorum.image();
    controller.shutdown().await;
    quorum.shutdown().await;
    let quorum = RaftQuorum::open(env.clone(), sole(dir.path())).await.unwrap();
    assert!(quorum.image().topics().eq(before.topics()));
    quorum.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::disallowed_methods, reason = "the test is the disk's fault")]
async fn lost_or_foreign_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let quorum = RaftQuorum::open(env.clone(), sole(dir.path())).await.unwrap();
    assert!(matches!(
        RaftQuorum::open(env.clone(), sole(dir.path())).await.err().unwrap(),
        OpenError::Locked { .. }
    ));
    let controller = controller(&env, &quorum);
    controller.run(SetClusterId { cluster_id: "one".into() }).await.unwrap().outcome.unwrap();
    MetadataQuorum::snapshot(&*quorum).await.unwrap();
    eventually("a snapshot", || quorum.status().snapshot_index > 0).await;
    controller.shutdown().await;
    quorum.shutdown().await;
    drop(quorum);
    let mut other = sole(dir.path());
    other.cluster_id = Some("two".into());
    let error = RaftQuorum::open(env.clone(), other).await.err().unwrap();
    assert!(matches!(error, OpenError::WrongCluster { .. }), "{error}");
    let mut other = sole(dir.path());
    other.node_id = 2;
    other.voters = [(2, ("127.0.0.1".to_owned(), 0))].into();
    assert!(matches!(RaftQuorum::open(env.clone(), other).await.err().unwrap(), OpenError::Wal(_)));
    std::fs::remove_file(dir.path().join("__letterbox_metadata/00000000000000000000.log")).unwrap();
    assert!(matches!(
        RaftQuorum::open(env.clone(), sole(dir.path())).await.err().unwrap(),
        OpenError::Wal(_)
    ));
}

/// Both become one decision of about 4 MB, if the runtime has one thread.
async fn create_two_large_topics(
    controller: &Controller,
    names: [&str; 2],
) -> [Result<(), ControllerError>; 2] {
    let (first, second) = tokio::join!(
        controller.run_within(topic(names[0], 10_000), Duration::from_secs(60)),
        controller.run_within(topic(names[1], 10_000), Duration::from_secs(60)),
    );
    let made =
        |done: Done<Vec<(String, ItemResult<CreatedTopic>)>>| assert!(done.outcome[0].1.is_ok());
    [first.map(made), second.map(made)]
}

/// A broker that comes back after a kill gives every partition that it leads a new epoch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_with_more_partitions_than_fit_into_an_entry_registers() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let quorum = RaftQuorum::open(env.clone(), sole(dir.path())).await.unwrap();
    let controller = controller(&env, &quorum);
    controller.run(registration(1)).await.unwrap().outcome.unwrap();
    for names in [["a", "b"], ["c", "d"], ["e", "f"]] {
        for result in create_two_large_topics(&controller, names).await {
            result.unwrap();
        }
    }
    let before = quorum.image().applied_index;
    let again = RegisterBroker { clean_start: false, ..registration(1) };
    let done = controller.run_within(again, Duration::from_secs(60)).await.unwrap();
    done.outcome.unwrap();
    assert!(done.index > before + 10, "it fits into {} entries", done.index - before);
    let epochs = |quorum: &RaftQuorum| {
        let image = quorum.image();
        let epochs = image.topics().flat_map(|topic| topic.indexed_partitions());
        epochs.map(|(_, state)| state.leader_epoch).collect::<Vec<_>>()
    };
    assert_eq!(epochs(&quorum), vec![1; 60_000]);
    controller.shutdown().await;
    quorum.shutdown().await;
    let quorum = RaftQuorum::open(env.clone(), sole(dir.path())).await.unwrap();
    assert_eq!(epochs(&quorum), vec![1; 60_000]);
    quorum.shutdown().await;
}

/// The disk fails in each part of a start.
#[tokio::test]
async fn a_start_that_the_disk_ends_tells_what_the_disk_said() {
    let mut by_raft = 0;
    for round in 0..12 {
        let disk = SimDisk::new(round);
        let env = disk.env();
        disk.inject(Fault::FailSync, "", round, u64::MAX);
        match RaftQuorum::open(env.clone(), sole(Path::new("/data"))).await {
            Ok(quorum) => quorum.shutdown().await,
            Err(error) => {
                by_raft += u32::from(matches!(error, OpenError::Raft(_)));
                let told = with_causes(&error);
                assert!(told.contains("os error 5"), "round {round}: {told}");
            }
        }
    }
    assert!(by_raft > 0, "no start was ended while raft ran");
}

/// The disk fails in each part of a decision, while snapshots are made.
#[tokio::test]
async fn crash_in_the_middle_of_a_decision_leaves_all_of_it_or_nothing() {
    let (mut whole, mut nothing) = (0, 0);
    for round in (1..26).step_by(4) {
        let disk = SimDisk::new(round);
        let env = disk.env();
        let quorum = RaftQuorum::open(env.clone(), sole(Path::new("/data"))).await.unwrap();
        let controller = controller(&env, &quorum);
        controller.run(registration(1)).await.unwrap().outcome.unwrap();
        let names = [format!("first-{round}"), format!("second-{round}")];
        disk.inject(Fault::FailSync, "", round, u64::MAX);
        let snapshots = async {
            while MetadataQuorum::snapshot(&*quorum).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let results = tokio::select! {
            results = create_two_large_topics(&controller, names.each_ref().map(|name| name.as_str())) => results,
            () = snapshots => [Ok(()), Ok(())],
        };
        controller.shutdown().await;
        quorum.shutdown().await;
        drop(quorum);
        disk.heal();
        disk.power_cut();

        let quorum = RaftQuorum::open(env.clone(), sole(Path::new("/data"))).await.unwrap();
        let counts = names
            .each_ref()
            .map(|name| quorum.image().topic(name).map_or(0, |topic| topic.partitions.len()));
        match counts {
            [0, 0] => nothing += 1,
            [10_000, 10_000] => whole += 1,
            _ => panic!("round {round}: {counts:?}"),
        }
        let _ = results;
        quorum.shutdown().await;
    }
    assert!(nothing > 0, "no crash was in the middle: {whole} whole decisions");
}
