//! The life of partitions under simulated faults: topics that are deleted and made again, with the
//! power failing at any operation, the process killed, or the disk full. What was acknowledged to
//! the newest topic is there, nothing of an older one is, and every partition serves in the end.

mod common;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use letterbox_client::{
    Client, ClientOptions, Error, ErrorCode, NewTopic, Producer, ProducerOptions, ProducerRecord,
};
use letterbox_env::{Disk as _, Env};
use letterbox_sim::cluster::{Cluster, Exit};
use letterbox_sim::rng::Rng;
use letterbox_sim::seeds;
use letterbox_sim::workload::read_all;
use tokio::time::sleep;

use common::{BROKER, DATA, broker, show_log};

const TOPIC: &str = "orders";
const PARTITIONS: i32 = 12;
const CONFIG: &str = "replica.high.watermark.checkpoint.interval.ms=700\nlog.flush.offset.checkpoint.interval.ms=1500";
const PATIENCE: Duration = Duration::from_secs(60);

/// What the clients know of the newest topic.
#[derive(Default)]
struct Known {
    /// How many topics were made.
    topics: u64,
    /// Values that were acknowledged, by partition.
    acknowledged: BTreeMap<i32, BTreeSet<String>>,
}

async fn connect(env: &Env) -> Result<Client, Error> {
    let options = ClientOptions {
        connect_timeout: Duration::from_millis(300),
        request_timeout: Duration::from_secs(5),
        api_timeout: Duration::from_secs(10),
        retry_backoff: Duration::from_millis(50),
        ..ClientOptions::default()
    };
    Client::connect(env.clone(), &[format!("{BROKER}:9092")], options).await
}

/// Until it is certain that the topic is gone.
async fn delete_topic(env: &Env) {
    loop {
        if let Ok(client) = connect(env).await
            && let Ok(outcomes) = client.delete_topics(&[TOPIC.to_owned()]).await
        {
            match outcomes.get(TOPIC) {
                Some(Ok(())) => return,
                Some(Err(error)) if error.code == ErrorCode::UnknownTopicOrPartition => return,
                _ => {}
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Until it is certain that the topic is there.
async fn create_topic(env: &Env) {
    let topic =
        NewTopic { name: TOPIC.to_owned(), partitions: Some(PARTITIONS), ..NewTopic::default() };
    loop {
        if let Ok(client) = connect(env).await
            && let Ok(outcomes) = client.create_topics(std::slice::from_ref(&topic), false).await
        {
            match outcomes.get(TOPIC) {
                Some(Ok(_)) => return,
                Some(Err(error)) if error.code == ErrorCode::TopicAlreadyExists => return,
                _ => {}
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Sends until `count` records are acknowledged, or it has failed.
async fn produce(
    env: &Env,
    rng: &mut Rng,
    known: &Rc<RefCell<Known>>,
    count: u64,
) -> Result<(), Error> {
    let client = connect(env).await?;
    let options = ProducerOptions {
        delivery_timeout: Duration::from_secs(5),
        block_max: Duration::from_secs(3),
        ..ProducerOptions::default()
    };
    let producer = Producer::new(&client, options).await?;
    let topics = known.borrow().topics;
    for _ in 0..count {
        let partition = i32::try_from(rng.below(PARTITIONS.unsigned_abs().into())).unwrap_or(0);
        let value = format!("{topics}/{}", rng.below(u64::MAX));
        let sent = producer
            .send(ProducerRecord::new(TOPIC).partition(partition).value(value.clone()))
            .await?;
        sent.await?;
        known.borrow_mut().acknowledged.entry(partition).or_default().insert(value);
    }
    producer.close().await
}

/// Every value of every partition. A start that an older topic has left behind is an error.
async fn values(env: &Env) -> Result<BTreeMap<i32, BTreeSet<String>>, Error> {
    let mut values = BTreeMap::<i32, BTreeSet<String>>::new();
    for (partition, held) in read_all(&connect(env).await?, TOPIC, 0..PARTITIONS).await? {
        if held.start != 0 {
            return Err(Error::Invalid(format!("partition {partition} starts at {}", held.start)));
        }
        let read = held
            .records
            .into_iter()
            .map(|record| String::from_utf8_lossy(&record.value.unwrap_or_default()).into_owned());
        values.insert(partition, read.collect());
    }
    Ok(values)
}

async fn load(env: Env, known: Rc<RefCell<Known>>, stop: Arc<AtomicBool>) -> Exit {
    let mut rng = Rng::new(env.random_u64());
    loop {
        let is_last = stop.load(Ordering::Relaxed);
        delete_topic(&env).await;
        let topics = known.borrow().topics + 1;
        *known.borrow_mut() = Known { topics, ..Known::default() };
        create_topic(&env).await;
        let count = rng.between(1, 80);
        if let Err(error) = produce(&env, &mut rng, &known, count).await {
            tracing::debug!(%error, "sending has failed");
        }
        if is_last {
            return Ok(());
        }
    }
}

#[test]
fn a_topic_deleted_and_made_again_is_whole_whenever_the_broker_ends() {
    seeds::for_each(
        4,
        "partitions",
        "a_topic_deleted_and_made_again_is_whole_whenever_the_broker_ends",
        |seed| {
            show_log();
            let mut cluster = Cluster::new(seed);
            let (known, stop) =
                (Rc::new(RefCell::new(Known::default())), Arc::new(AtomicBool::new(false)));
            cluster.host(BROKER, broker(CONFIG));
            let (of_client, stops) = (known.clone(), stop.clone());
            cluster.client("clients", move |env| load(env, of_client, stops));
            let mut rng = cluster.schedule_rng();
            cluster.run_for(Duration::from_secs(2));
            for _ in 0..8 {
                cluster.run_for(Duration::from_millis(rng.between(50, 2_500)));
                match rng.below(4) {
                    0 => cluster.power_cut(BROKER),
                    1 => cluster.kill(BROKER),
                    _ => {
                        // In the middle of a delete, of a create, of a checkpoint, of a recovery.
                        cluster.disk(BROKER).cut_power_after(rng.below(150));
                        let cuts = cluster.disk_stats(BROKER).power_cuts;
                        cluster.run_until(Duration::from_secs(3), |cluster| {
                            cluster.disk_stats(BROKER).power_cuts > cuts
                        });
                        cluster.run_for(Duration::from_millis(rng.between(0, 500)));
                    }
                }
                if !cluster.is_running(BROKER) {
                    cluster.restart(BROKER);
                }
                let cuts = cluster.disk_stats(BROKER).power_cuts;
                // Long enough that the old topic's offsets are checkpointed now and then.
                cluster.run_for(Duration::from_millis(rng.between(200, 4_000)));
                // Without a power cut in the middle of it, nothing ends the broker.
                if let Some(Err(reason)) = cluster.exit(BROKER)
                    && cluster.disk_stats(BROKER).power_cuts == cuts
                {
                    panic!("the broker gave up: {reason}");
                }
            }
            cluster.disk(BROKER).heal();
            if !cluster.is_running(BROKER) {
                cluster.restart(BROKER);
            }
            stop.store(true, Ordering::Relaxed);
            assert!(cluster.run_clients(PATIENCE), "the clients do not end");
            // And once more from what is durable.
            cluster.power_cut(BROKER);
            cluster.restart(BROKER);
            let (result, expected) = (Rc::new(RefCell::new(None)), known.clone());
            let found = result.clone();
            cluster.client("reader", move |env| async move {
                let read = async {
                    loop {
                        match values(&env).await {
                            Ok(values) => return values,
                            Err(error) => tracing::debug!(%error, "reading begins anew"),
                        }
                        sleep(Duration::from_millis(100)).await;
                    }
                };
                let read = tokio::time::timeout(PATIENCE, read).await;
                *found.borrow_mut() =
                    Some(read.map_err(|_| "a partition does not serve".to_owned())?);
                Ok(())
            });
            assert!(cluster.run_clients(PATIENCE * 2), "reading does not end");
            let values = result.borrow_mut().take().unwrap_or_default();
            let Known { topics, acknowledged } = &*expected.borrow();
            println!(
                "seed {seed}: {topics} topics, {} acknowledged in the last",
                acknowledged.values().map(BTreeSet::len).sum::<usize>()
            );
            assert!(*topics > 5, "only {topics} topics were made");
            for (partition, acknowledged) in acknowledged {
                let none = BTreeSet::new();
                let there = values.get(partition).unwrap_or(&none);
                let lost: Vec<_> = acknowledged.difference(there).collect();
                assert!(lost.is_empty(), "partition {partition} has lost {lost:?}");
            }
            let mine = format!("{topics}/");
            assert!(
                values.values().flatten().all(|value| value.starts_with(&mine)),
                "records of an older topic"
            );
        },
    );
}

/// One partition's directory is taken away while the broker is down; the metadata say it, the
/// others serve, and a person decides.
#[test]
fn a_missing_directory_is_told_to_clients_until_its_loss_is_accepted() {
    let mut cluster = Cluster::new(1);
    let known = Rc::new(RefCell::new(Known::default()));
    cluster.host(BROKER, broker(CONFIG));
    let of_client = known.clone();
    cluster.client("clients", move |env| load(env, of_client, Arc::new(AtomicBool::new(true))));
    assert!(cluster.run_clients(PATIENCE));
    assert!(cluster.stop(BROKER, Duration::from_secs(20)));
    let lost = *known.borrow().acknowledged.keys().next().expect("a partition with records");
    let path = Path::new(DATA).join(format!("{TOPIC}-{lost}"));
    let disk = cluster.disk(BROKER);
    disk.remove_dir_all(&path).unwrap();
    disk.sync_dir(Path::new(DATA)).unwrap();
    cluster.restart(BROKER);
    let leaders = |cluster: &mut Cluster, name: &str, expected: usize| {
        cluster.client(name, move |env| async move {
            loop {
                if let Ok(client) = connect(&env).await
                    && let Ok(metadata) = client.metadata(Some(&[TOPIC.to_owned()])).await
                    && let Some(topic) = metadata.topics.get(TOPIC)
                {
                    let led = topic
                        .partitions
                        .values()
                        .filter(|partition| partition.leader.is_some())
                        .count();
                    if led == expected {
                        return Ok(());
                    }
                    tracing::debug!(led, "not yet");
                }
                sleep(Duration::from_millis(200)).await;
            }
        });
        assert!(cluster.run_clients(PATIENCE), "{name}");
    };
    leaders(&mut cluster, "sees the loss", usize::try_from(PARTITIONS - 1).unwrap());
    disk.create_dir_all(&path).unwrap();
    disk.open(&path.join("accept-data-loss"), letterbox_env::OpenMode::Create).unwrap();
    leaders(&mut cluster, "sees all", usize::try_from(PARTITIONS).unwrap());
}
