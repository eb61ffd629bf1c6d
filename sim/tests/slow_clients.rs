//! Clients that stop in the middle of a request, in simulated time: one that stalls or trickles is
//! given up and stops no other, one that the broker itself lets wait is not.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::time::Duration;

use letterbox_env::{BoxStream, Env};
use letterbox_protocol::batch::BatchBuilder;
use letterbox_sim::cluster::Cluster;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use common::{BROKER, broker};

/// Room for one large request.
const MEMORY: usize = 1_048_576;
/// `connections.max.idle.ms`.
const IDLE: Duration = Duration::from_secs(120);

/// One broker.
fn cluster() -> Cluster {
    let config =
        format!("queued.max.request.bytes={MEMORY}\nconnections.max.idle.ms={}", IDLE.as_millis());
    let mut cluster = Cluster::new(1);
    cluster.host(BROKER, broker(&config));
    cluster
}

/// Size, API key, version, correlation id 7, no client id, and the body.
fn frame(api_key: i16, version: i16, body: &[u8]) -> Vec<u8> {
    let size = i32::try_from(body.len() + 10).unwrap().to_be_bytes();
    [&size[..], &api_key.to_be_bytes(), &version.to_be_bytes(), &[0, 0, 0, 7, 0xff, 0xff], body]
        .concat()
}

/// A Produce that takes most of the memory, for a topic that is not there.
fn large_frame() -> Vec<u8> {
    let records = vec![0; MEMORY * 3 / 4];
    let size = i32::try_from(records.len()).unwrap().to_be_bytes();
    // No transaction, acks=1, 1 s, one topic "t", one partition 0.
    let head = [0xff, 0xff, 0, 1, 0, 0, 3, 0xe8, 0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1, 0, 0, 0, 0];
    frame(0, 3, &[&head[..], &size, &records].concat())
}

/// A connection that the broker knows to be a client's.
async fn connect(env: &Env) -> BoxStream {
    loop {
        if let Ok(mut stream) = env.net.connect(BROKER, 9092).await {
            stream.write_all(&frame(18, 0, &[])).await.unwrap();
            read_answer(&mut stream).await;
            return stream;
        }
        // The broker is starting.
        sleep(Duration::from_millis(10)).await;
    }
}

async fn read_answer(stream: &mut BoxStream) -> Vec<u8> {
    let size = stream.read_i32().await.unwrap();
    let mut answer = vec![0; usize::try_from(size).unwrap()];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[..4], 7i32.to_be_bytes());
    answer
}

/// How long the broker keeps a connection that is silent from now on.
async fn silence_until_closed(stream: &mut BoxStream) -> Duration {
    let silent = Instant::now();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0, "closed without a word");
    silent.elapsed()
}

/// How long a large request waits for its answer.
async fn large_request(stream: &mut BoxStream) -> Duration {
    let begun = Instant::now();
    stream.write_all(&large_frame()).await.unwrap();
    read_answer(stream).await;
    begun.elapsed()
}

#[test]
fn a_request_that_stalls_is_given_up_after_30_seconds() {
    let mut cluster = cluster();
    cluster.client("staller", |env| async move {
        let request = frame(18, 0, &[]);
        let mut stream = connect(&env).await;
        // Slow, but in time.
        for byte in &request {
            sleep(Duration::from_secs(2)).await;
            stream.write_all(&[*byte]).await.unwrap();
        }
        read_answer(&mut stream).await;
        stream.write_all(&request[..9]).await.unwrap();
        let took = silence_until_closed(&mut stream).await.as_millis();
        assert!((30_000..31_000).contains(&took), "{took} ms");
        Ok(())
    });
    assert!(cluster.run_clients(Duration::from_secs(600)));
}

#[test]
fn a_client_is_idle_from_its_last_request_on() {
    let mut cluster = cluster();
    cluster.client("idler", |env| async move {
        let mut stream = connect(&env).await;
        // Never idle for long, but open for much longer.
        for _ in 0..5 {
            sleep(IDLE - Duration::from_secs(10)).await;
            stream.write_all(&frame(18, 0, &[])).await.unwrap();
            read_answer(&mut stream).await;
        }
        let took = silence_until_closed(&mut stream).await;
        assert!((IDLE..IDLE + Duration::from_secs(1)).contains(&took), "{took:?}");
        Ok(())
    });
    assert!(cluster.run_clients(Duration::from_secs(1_200)));
}

/// A Produce with acks=all, 300 s, of one record into "kept".
fn acked_frame() -> Vec<u8> {
    let mut batch = BatchBuilder::new(1);
    batch.push(1, None, Some(b"v"), &[]);
    let records = batch.build();
    let size = i32::try_from(records.len()).unwrap().to_be_bytes();
    let head = [
        0xff, 0xff, 0xff, 0xff, 0, 4, 0x93, 0xe0, 0, 0, 0, 1, 0, 4, b'k', b'e', b'p', b't', 0, 0,
        0, 1, 0, 0, 0, 0,
    ];
    frame(0, 3, &[&head[..], &size, &records].concat())
}

/// The answer comes from the thread that synced, and wakes no task of the connection.
#[test]
fn a_client_that_waited_for_the_disk_is_idle_from_its_last_answer_on() {
    let mut cluster = cluster();
    cluster.client("maker", |env| async move {
        let mut stream = connect(&env).await;
        loop {
            // Metadata v1 of "kept" makes it.
            stream
                .write_all(&frame(3, 1, &[0, 0, 0, 1, 0, 4, b'k', b'e', b'p', b't']))
                .await
                .unwrap();
            read_answer(&mut stream).await;
            stream.write_all(&acked_frame()).await.unwrap();
            if read_answer(&mut stream).await[22..24] == [0, 0] {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(cluster.run_clients(Duration::from_secs(60)));
    cluster.disk(BROKER).set_slow(IDLE / 2);
    cluster.client("waiter", |env| async move {
        let mut stream = connect(&env).await;
        // The simulated device is done with the first at once and waits then.
        stream.write_all(&acked_frame()).await.unwrap();
        read_answer(&mut stream).await;
        sleep(Duration::from_secs(1)).await;
        let sent = Instant::now();
        stream.write_all(&acked_frame()).await.unwrap();
        let answer = read_answer(&mut stream).await;
        assert_eq!(answer[22..24], [0, 0], "{answer:?}");
        let waited = sent.elapsed();
        assert!(waited > Duration::from_secs(10), "it waited for the disk, {waited:?}");
        let took = silence_until_closed(&mut stream).await;
        assert!((IDLE..IDLE + Duration::from_secs(1)).contains(&took), "{took:?}");
        Ok(())
    });
    assert!(cluster.run_clients(Duration::from_secs(1_200)));
}

/// Each announces a request of most of the memory, and sends a byte of it now and then.
#[test]
fn clients_that_trickle_are_given_up_and_stop_no_other() {
    let mut cluster = cluster();
    for name in ["trickler-1", "trickler-2", "trickler-3"] {
        cluster.client(name, |env| async move {
            let mut stream = connect(&env).await;
            let begun = Instant::now();
            let request = large_frame();
            let (mut at_once, slow) = (request[..1000].to_vec(), &request[1000..]);
            for byte in slow {
                if stream.write_all(&at_once).await.is_err()
                    || tokio::time::timeout(Duration::from_secs(10), stream.read_u8()).await.is_ok()
                {
                    break;
                }
                at_once = vec![*byte];
            }
            let took = begun.elapsed().as_secs();
            assert!((1..20).contains(&took), "{took} s: closed when others wait for its memory");
            Ok(())
        });
    }
    cluster.client("honest", |env| async move {
        let mut stream = connect(&env).await;
        // The others are first.
        sleep(Duration::from_secs(5)).await;
        for _ in 0..3 {
            let took = large_request(&mut stream).await;
            assert!(took < Duration::from_secs(5), "{took:?}");
        }
        Ok(())
    });
    assert!(cluster.run_clients(Duration::from_secs(600)));
}

/// Sends a large request at `bytes` every so many milliseconds, in its second half; tells whether
/// it was answered.
async fn send_slowly(env: &Env, bytes: usize, every_ms: u64) -> bool {
    let request = large_frame();
    let mut stream = connect(env).await;
    let (first, rest) = request.split_at(request.len() / 2);
    if stream.write_all(first).await.is_err() {
        return false;
    }
    for piece in rest.chunks(bytes) {
        sleep(Duration::from_millis(every_ms)).await;
        if stream.write_all(piece).await.is_err() {
            return false;
        }
    }
    stream.read_i32().await.is_ok()
}

#[test]
fn a_request_that_waits_for_memory_is_not_given_up() {
    let mut cluster = cluster();
    // One after the other has the memory.
    for at in 0..14 {
        cluster.client(&format!("holder-{at}"), |env| async move {
            assert!(send_slowly(&env, 2 * 1024, 25).await, "it kept pace");
            Ok(())
        });
    }
    cluster.client("waiter", |env| async move {
        let mut stream = connect(&env).await;
        // The others are first.
        sleep(Duration::from_secs(1)).await;
        let took = large_request(&mut stream).await;
        assert!(took > Duration::from_secs(2), "{took:?}: there was no wait");
        Ok(())
    });
    assert!(cluster.run_clients(Duration::from_secs(600)));
}

/// As slow as is allowed while nobody waits: an honest request does not wait for minutes until it
/// ends.
#[test]
fn who_goes_past_the_memory_slowly_is_given_up_when_others_wait_for_that() {
    let mut cluster = cluster();
    cluster.client("alone", |env| async move {
        assert!(send_slowly(&env, 8 * 1024, 400).await, "nobody waits");
        Ok(())
    });
    for at in 0..2 {
        cluster.client(&format!("slow-{at}"), |env| async move {
            sleep(Duration::from_secs(60)).await;
            send_slowly(&env, 8 * 1024, 400).await;
            Ok(())
        });
    }
    cluster.client("honest", |env| async move {
        sleep(Duration::from_secs(61)).await;
        for _ in 0..3 {
            let mut stream = connect(&env).await;
            let took = large_request(&mut stream).await;
            // Both are in front of it, one after the other. Each has 1 s and what its pace buys.
            assert!(took < Duration::from_secs(4), "{took:?}");
        }
        Ok(())
    });
    assert!(cluster.run_clients(Duration::from_secs(600)));
}
