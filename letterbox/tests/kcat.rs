//! An unmodified client, librdkafka's kcat, against a broker process that is killed.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

mod common;

use common::{Broker, kcat};

fn lines(from: usize, to: usize) -> String {
    (from..to).map(|n| format!("key-{}:value {n}\n", n % 7)).collect()
}

#[test]
fn records_of_kcat_survive_a_kill_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "num.partitions=1");
    let first = lines(0, 500);
    kcat(
        &broker,
        &[
            "-P",
            "-t",
            "orders",
            "-K",
            ":",
            "-H",
            "source=test",
            "-H",
            "source=again",
            "-X",
            "acks=all",
        ],
        &first,
    );
    let broker = broker.kill_and_restart();
    let second = lines(500, 1000);
    kcat(&broker, &["-P", "-t", "orders", "-K", ":", "-X", "enable.idempotence=true"], &second);
    let seen = kcat(&broker, &["-C", "-t", "orders", "-o", "beginning", "-e", "-q", "-K", ":"], "");
    assert_eq!(seen, first.clone() + &second);
    let headers =
        kcat(&broker, &["-C", "-t", "orders", "-o", "0", "-c", "1", "-q", "-f", "%o %h\n"], "");
    assert_eq!(headers, "0 source=test,source=again\n");

    // Compressed by the client, stored as they came, and still there after a clean stop.
    for codec in ["gzip", "snappy", "lz4", "zstd"] {
        kcat(&broker, &["-P", "-t", codec, "-K", ":", "-z", codec], &first);
    }
    let broker = broker.stop_and_restart();
    for codec in ["gzip", "snappy", "lz4", "zstd"] {
        assert_eq!(
            kcat(&broker, &["-C", "-t", codec, "-o", "beginning", "-e", "-q", "-K", ":"], ""),
            first,
            "{codec}"
        );
    }
    assert_eq!(
        kcat(&broker, &["-C", "-t", "orders", "-o", "-10", "-e", "-q", "-K", ":"], ""),
        lines(990, 1000)
    );
}

#[test]
fn a_group_goes_on_where_it_committed_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path(), "num.partitions=3\noffsets.topic.num.partitions=4");
    kcat(&broker, &["-P", "-t", "orders", "-K", ":"], &lines(0, 300));
    let group =
        ["-G", "readers", "orders", "-X", "auto.offset.reset=earliest", "-e", "-q", "-K", ":"];
    let mut seen: Vec<String> = kcat(&broker, &group, "").lines().map(str::to_owned).collect();
    let broker = broker.kill_and_restart();
    kcat(&broker, &["-P", "-t", "orders", "-K", ":"], &lines(300, 400));
    let again = kcat(&broker, &group, "");
    assert_eq!(again.lines().count(), 100, "only what was not committed");
    seen.extend(again.lines().map(str::to_owned));
    let mut expected: Vec<String> = lines(0, 400).lines().map(str::to_owned).collect();
    seen.sort();
    expected.sort();
    assert_eq!(seen, expected);
}

#[test]
fn an_idle_broker_stops_in_less_than_two_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path(), "");
    kcat(&broker, &["-P", "-t", "orders"], "one\n");
    let took = broker.stop();
    assert!(took < std::time::Duration::from_secs(2), "{took:?}");
}
