//! A reader at the tail sees everything that was acknowledged before it asked, on a disk as slow as
//! one likes, and nothing that is not durable. Issue 7, 2.4.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::time::Duration;

use letterbox_env::{BoxStream, Env};
use letterbox_protocol::batch::BatchBuilder;
use letterbox_sim::cluster::Cluster;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use common::{BROKER, broker};

/// Most that a disk operation takes. Longer than any wait of a client here, shorter than the
/// broker's bound on waiting for a sync.
const SLOW: Duration = Duration::from_millis(700);

/// The answer after its correlation id to a request of correlation id 7 without a client id.
async fn ask(stream: &mut BoxStream, api_key: i16, version: i16, body: &[u8]) -> Vec<u8> {
    let size = i32::try_from(body.len() + 10).unwrap().to_be_bytes();
    let head =
        [&size[..], &api_key.to_be_bytes(), &version.to_be_bytes(), &[0, 0, 0, 7, 0xff, 0xff]]
            .concat();
    stream.write_all(&[&head[..], body].concat()).await.unwrap();
    let size = stream.read_i32().await.unwrap();
    let mut answer = vec![0; usize::try_from(size).unwrap()];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[..4], 7i32.to_be_bytes());
    answer.split_off(4)
}

/// A broker with a topic "t" of one partition.
fn with_topic() -> Cluster {
    let mut cluster = Cluster::new(1);
    cluster.host(BROKER, broker(""));
    cluster.client("maker", |env| async move {
        connect(&env).await;
        Ok(())
    });
    assert!(cluster.run_clients(Duration::from_secs(60)));
    cluster
}

async fn connect(env: &Env) -> BoxStream {
    loop {
        if let Ok(mut stream) = env.net.connect(BROKER, 9092).await {
            // Metadata v1 of "t": made once it has no error. The array of brokers comes first, so
            // the name is searched for.
            let answer = ask(&mut stream, 3, 1, &[0, 0, 0, 1, 0, 1, b't']).await;
            let at = answer.windows(3).rposition(|part| part == [0, 1, b't']).unwrap();
            if answer[at - 2..at] == [0, 0] {
                return stream;
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// One array of one topic "t" with one array of one partition 0.
const OF_T_0: [u8; 15] = [0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1, 0, 0, 0, 0];

/// Produce v3 with acks=1 and 1 s, of a record at `timestamp`; the offset.
async fn produce(stream: &mut BoxStream, timestamp: i64) -> i64 {
    let mut batch = BatchBuilder::new(timestamp);
    batch.push(timestamp, None, Some(b"v"), &[]);
    let records = batch.build();
    let size = i32::try_from(records.len()).unwrap().to_be_bytes();
    let answer = ask(
        stream,
        0,
        3,
        &[&[0xff, 0xff, 0, 1, 0, 0, 3, 0xe8][..], &OF_T_0, &size, &records].concat(),
    )
    .await;
    assert_eq!(answer[15..17], [0, 0], "{answer:?}");
    i64::from_be_bytes(answer[17..25].try_into().unwrap())
}

/// ListOffsets v1 at `timestamp`.
async fn offset_at(stream: &mut BoxStream, timestamp: i64) -> i64 {
    let answer =
        ask(stream, 2, 1, &[&[0xff; 4][..], &OF_T_0, &timestamp.to_be_bytes()].concat()).await;
    assert_eq!(answer[15..17], [0, 0], "{answer:?}");
    i64::from_be_bytes(answer[25..33].try_into().unwrap())
}

/// Fetch v4 at `offset` with this `max.wait.ms` and `min.bytes`; how many bytes of records.
async fn fetch(stream: &mut BoxStream, offset: i64, wait_ms: i32, min_bytes: i32) -> usize {
    let head =
        [&[0xff; 4][..], &wait_ms.to_be_bytes(), &min_bytes.to_be_bytes(), &[0, 0x10, 0, 0], &[0]]
            .concat();
    let answer =
        ask(stream, 1, 4, &[&head[..], &OF_T_0, &offset.to_be_bytes(), &[0, 0x10, 0, 0]].concat())
            .await;
    let after_throttle = &answer[4..];
    assert_eq!(after_throttle[15..17], [0, 0], "{answer:?}");
    usize::try_from(i32::from_be_bytes(after_throttle[37..41].try_into().unwrap())).unwrap()
}

#[test]
fn a_reader_at_the_tail_sees_what_was_acknowledged_before() {
    let mut cluster = with_topic();
    cluster.disk(BROKER).set_slow(SLOW);
    cluster.client("client", |env| async move {
        let mut stream = connect(&env).await;
        for round in 0..10 {
            let offset = produce(&mut stream, 10 * round + 1).await;
            assert_eq!(offset_at(&mut stream, -1).await, offset + 1, "latest");
            let offset = produce(&mut stream, 10 * round + 2).await;
            assert_eq!(offset_at(&mut stream, 10 * round + 2).await, offset, "by time");
            for (wait_ms, min_bytes) in [(0, 1), (0, 0), (1, 1)] {
                let offset = produce(&mut stream, 10 * round + 3).await;
                assert!(
                    fetch(&mut stream, offset, wait_ms, min_bytes).await > 0,
                    "max.wait.ms={wait_ms} fetch.min.bytes={min_bytes}"
                );
            }
        }
        Ok(())
    });
    assert!(cluster.run_clients(Duration::from_secs(600)));
}

/// A disk that does not come back: the reader is told so within the bound, and never what is not
/// durable.
#[test]
fn a_reader_does_not_wait_for_ever() {
    let mut cluster = with_topic();
    cluster.disk(BROKER).set_slow(Duration::from_secs(3_600));
    cluster.client("client", |env| async move {
        let mut stream = connect(&env).await;
        // The simulated device is done with the first at once and waits then.
        produce(&mut stream, 1).await;
        let offset = produce(&mut stream, 2).await;
        let asked = tokio::time::Instant::now();
        let answer =
            ask(&mut stream, 2, 1, &[&[0xff; 4][..], &OF_T_0, &(-1i64).to_be_bytes()].concat())
                .await;
        assert_eq!(
            answer[15..17],
            [0, 5],
            "LEADER_NOT_AVAILABLE, as there is no OFFSET_NOT_AVAILABLE before version 5"
        );
        assert_eq!(fetch(&mut stream, offset, 0, 1).await, 0);
        let took = asked.elapsed();
        assert!((10_000..11_000).contains(&took.as_millis()), "{took:?}");
        Ok(())
    });
    assert!(cluster.run_clients(Duration::from_secs(60)));
}
