//! What is printed of files that are made here; `e2e/cli/compare` compares with Kafka's tool on the
//! files of a broker.

use std::path::Path;

use letterbox_client::Compression;
use letterbox_client::record::{BatchBuilder, Header, ProducerStamp};

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    #[allow(clippy::disallowed_methods, reason = "the test plays the broker")]
    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    }

    /// Standard output and standard error, without the folder's path.
    fn dump(&self, words: &[&str]) -> (Result<i32, String>, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let args = words.iter().map(|word| (*word).to_owned()).collect();
        let code =
            run(&Env::real(), args, &mut out, &mut err).map_err(|failure| format!("{failure:?}"));
        let text = |bytes: Vec<u8>| {
            String::from_utf8(bytes).unwrap().replace(&format!("{}/", self.0.path().display()), "")
        };
        (code, text(out), text(err))
    }
}

fn folder() -> Folder {
    Folder(tempfile::tempdir().unwrap())
}

/// A batch of the records `k1: v1` and `v2` at `base_offset`.
fn batch(base_offset: i64, stamp: ProducerStamp, compression: Compression) -> Vec<u8> {
    let mut batch = BatchBuilder::new();
    batch
        .push(1000, Some(b"k1"), Some(b"v1"), &[Header { key: "h".to_owned(), value: None }])
        .unwrap();
    batch.push(1001, None, Some(b"v2"), &[]).unwrap();
    let mut bytes = batch.finish(compression, stamp).unwrap().to_vec();
    bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
    bytes
}

const NAME: &str = "00000000000000000040";

#[test]
fn batches_and_their_records_are_printed_as_kafka_prints_them() {
    let folder = folder();
    let stamped = ProducerStamp { id: 7, epoch: 1, sequence: 3 };
    let (one, two) =
        (batch(40, ProducerStamp::NONE, Compression::None), batch(42, stamped, Compression::Gzip));
    // A running broker keeps a reserve ahead of what it writes: that is no complaint.
    let log = folder.file(
        &format!("{NAME}.log"),
        &[one.clone(), two.clone(), vec![0x7f; 4096], vec![0; 4096]].concat(),
    );
    let (code, out, err) = folder.dump(&["--files", &log, "--print-data-log"]);
    let crc = |bytes: &[u8]| u32::from_be_bytes(bytes[17..21].try_into().unwrap());
    let expected = format!(
        "Dumping {NAME}.log\nLog starting offset: 40\nbaseOffset: 40 lastOffset: 41 count: 2 \
         baseSequence: -1 lastSequence: -1 producerId: -1 producerEpoch: -1 partitionLeaderEpoch: \
         -1 isTransactional: false isControl: false deleteHorizonMs: OptionalLong.empty position: \
         0 CreateTime: 1001 size: {} magic: 2 compresscodec: none crc: {} isvalid: true\n| offset: \
         40 CreateTime: 1000 keySize: 2 valueSize: 2 sequence: -1 headerKeys: [h] key: k1 payload: \
         v1\n| offset: 41 CreateTime: 1001 keySize: -1 valueSize: 2 sequence: -1 headerKeys: [] \
         payload: v2\nbaseOffset: 42 lastOffset: 43 count: 2 baseSequence: 3 lastSequence: 4 \
         producerId: 7 producerEpoch: 1 partitionLeaderEpoch: -1 isTransactional: false isControl: \
         false deleteHorizonMs: OptionalLong.empty position: {} CreateTime: 1001 size: {} magic: 2 \
         compresscodec: gzip crc: {} isvalid: true\n| offset: 42 CreateTime: 1000 keySize: 2 \
         valueSize: 2 sequence: 3 headerKeys: [h] key: k1 payload: v1\n| offset: 43 CreateTime: \
         1001 keySize: -1 valueSize: 2 sequence: 4 headerKeys: [] payload: v2\n",
        one.len(),
        crc(&one),
        one.len(),
        two.len(),
        crc(&two),
    );
    assert_eq!((code, out, err.as_str()), (Ok(0), expected, ""));
    let (_, out, _) = folder.dump(&["--files", &log, "--print-data-log", "--skip-record-metadata"]);
    assert!(out.contains("\n| key: k1 payload: v1\n| payload: v2\n"), "{out}");
    let (_, out, _) = folder.dump(&["--files", &log, "--max-bytes", &one.len().to_string()]);
    assert_eq!(out.lines().count(), 3, "{out}");
}

#[test]
fn damage_is_told_and_stops_nothing() {
    let folder = folder();
    let mut flipped = batch(40, ProducerStamp::NONE, Compression::None);
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let whole = batch(50, ProducerStamp::NONE, Compression::None);
    let log = folder
        .file(&format!("{NAME}.log"), &[flipped, whole.clone(), whole[..27].to_vec()].concat());
    let (code, out, err) = folder.dump(&["--files", &log, "--deep-iteration"]);
    assert!(
        out.contains("isvalid: false\nbaseOffset: 50 ")
            && out.ends_with(&format!("Found 27 invalid bytes at the end of {NAME}.log\n")),
        "{out}"
    );
    assert_eq!((code, err.as_str()), (Ok(0), ""));
    // Every cut of a file ends in good order.
    let bytes = [batch(40, ProducerStamp::NONE, Compression::Lz4), whole].concat();
    for cut in 0..bytes.len() {
        let log = folder.file(&format!("{NAME}.log"), &bytes[..cut]);
        assert_eq!(folder.dump(&["--files", &log, "--print-data-log"]).0, Ok(0), "cut at {cut}");
    }
}

#[test]
fn indexes_are_held_against_their_segment() {
    let folder = folder();
    let (one, two) = (
        batch(40, ProducerStamp::NONE, Compression::None),
        batch(42, ProducerStamp::NONE, Compression::None),
    );
    folder.file(&format!("{NAME}.log"), &[one.clone(), two].concat());
    let position = i32::try_from(one.len()).unwrap();
    let entry =
        |offset: i32, position: i32| [offset.to_be_bytes(), position.to_be_bytes()].concat();
    let time = |ms: i64, offset: i32| [ms.to_be_bytes().as_slice(), &offset.to_be_bytes()].concat();
    let index = folder.file(&format!("{NAME}.index"), &[entry(3, position), vec![0; 64]].concat());
    let times = folder.file(&format!("{NAME}.timeindex"), &[time(1001, 3), vec![0; 60]].concat());
    let files = format!("{index},{times}");
    let expected = format!(
        "Dumping {NAME}.index\noffset: 43 position: {position}\nDumping \
         {NAME}.timeindex\ntimestamp: 1001 offset: 43\n"
    );
    assert_eq!(folder.dump(&["--files", &files]), (Ok(0), expected, String::new()));
    let expected = format!(
        "Dumping {NAME}.index\n{NAME}.index passed sanity check.\nDumping {NAME}.timeindex\n"
    );
    let (code, out, _) = folder.dump(&["--files", &files, "--index-sanity-check"]);
    assert!(code.unwrap_err().contains("its last timestamp 0 is less than the first one, 1001"));
    assert_eq!(out, expected);
    folder.file(&format!("{NAME}.timeindex"), &[time(1001, 3), time(1001, 3)].concat());
    let expected = format!("Dumping {NAME}.timeindex\n{NAME}.timeindex passed sanity check.\n");
    assert_eq!(
        folder.dump(&["--files", &times, "--index-sanity-check"]),
        (Ok(0), expected, String::new())
    );

    folder.file(&format!("{NAME}.index"), &entry(2, position));
    folder.file(&format!("{NAME}.timeindex"), &time(999, 3));
    let (code, out, err) = folder.dump(&["--files", &files, "--verify-index-only"]);
    assert_eq!((code, out), (Ok(0), format!("Dumping {NAME}.index\nDumping {NAME}.timeindex\n")));
    let expected = format!(
        "Mismatches in :{NAME}.index\n  Index offset: 42, log offset: 43\nFound timestamp mismatch \
         in :{NAME}.timeindex\n  Index timestamp: 999, log timestamp: 1001\n"
    );
    assert_eq!(err, expected);
    // A segment without batches has an index without entries, however long its file is.
    folder.file(&format!("{NAME}.log"), &[]);
    folder.file(&format!("{NAME}.index"), &[0; 64]);
    assert_eq!(
        folder.dump(&["--files", &index]),
        (Ok(0), format!("Dumping {NAME}.index\n"), String::new())
    );
    folder.file(&format!("{NAME}.index"), &[0; 9]);
    assert!(
        folder
            .dump(&["--files", &index, "--index-sanity-check"])
            .0
            .unwrap_err()
            .contains("is corrupt")
    );
}

#[test]
fn snapshots_of_producers_and_aborted_transactions_are_printed() {
    let folder = folder();
    let mut entries = 1i32.to_be_bytes().to_vec();
    for part in [
        7i64.to_be_bytes().as_slice(),
        &1i16.to_be_bytes(),
        &4i32.to_be_bytes(),
        &43i64.to_be_bytes(),
        &1i32.to_be_bytes(),
    ] {
        entries.extend_from_slice(part);
    }
    for part in [1001i64.to_be_bytes().as_slice(), &(-1i32).to_be_bytes(), &(-1i64).to_be_bytes()] {
        entries.extend_from_slice(part);
    }
    let crc = letterbox_client::record::crc32c(&entries);
    let bytes = [1i16.to_be_bytes().as_slice(), &crc.to_be_bytes(), &entries].concat();
    let snapshot = folder.file(&format!("{NAME}.snapshot"), &bytes);
    let expected = format!(
        "Dumping {NAME}.snapshot\nproducerId: 7 producerEpoch: 1 coordinatorEpoch: -1 \
         currentTxnFirstOffset: OptionalLong.empty lastTimestamp: 1001 firstSequence: 3 \
         lastSequence: 4 lastOffset: 43 offsetDelta: 1 timestamp: 1001\n"
    );
    assert_eq!(folder.dump(&["--files", &snapshot]), (Ok(0), expected, String::new()));
    for cut in 0..bytes.len() {
        folder.file(&format!("{NAME}.snapshot"), &bytes[..cut]);
        assert!(
            folder.dump(&["--files", &snapshot]).0.unwrap_err().contains("is corrupt"),
            "cut at {cut}"
        );
    }
    let aborted: Vec<u8> = [
        0i16.to_be_bytes().as_slice(),
        &7i64.to_be_bytes(),
        &40i64.to_be_bytes(),
        &42i64.to_be_bytes(),
        &43i64.to_be_bytes(),
    ]
    .concat();
    let file = folder.file(&format!("{NAME}.txnindex"), &aborted);
    let expected = format!(
        "Dumping {NAME}.txnindex\nversion: 0 producerId: 7 firstOffset: 40 lastOffset: 42 \
         lastStableOffset: 43\n"
    );
    assert_eq!(folder.dump(&["--files", &file]), (Ok(0), expected, String::new()));
}

#[test]
fn other_files_are_passed_over_and_a_missing_one_is_named() {
    let folder = folder();
    let other = folder.file("partition.metadata", b"version: 0");
    assert_eq!(
        folder.dump(&["--files", &other]),
        (
            Ok(0),
            "Dumping partition.metadata\n".to_owned(),
            "Ignoring unknown file partition.metadata\n".to_owned()
        )
    );
    let missing = folder.0.path().join("00000000000000000001.log").display().to_string();
    assert!(
        folder
            .dump(&["--files", &missing])
            .0
            .unwrap_err()
            .contains(&format!("cannot read {missing}"))
    );
    assert!(
        folder
            .dump(&["--files", &Path::new("/x/nope.log").display().to_string()])
            .0
            .unwrap_err()
            .contains("the name of a segment's file is its first offset")
    );
    assert!(
        folder
            .dump(&["--files", "a", "--cluster-metadata-decoder"])
            .0
            .unwrap_err()
            .contains("cluster-metadata-decoder is not supported")
    );
}

#[test]
fn the_decoder_of_offsets_tells_why_a_record_is_none_in_kafkas_words() {
    let folder = folder();
    let hex = |text: &str| -> Vec<u8> {
        let text: String = text.split_whitespace().collect();
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    };
    let offset = "0001 0001 67 0001 74 00000003";
    let group = "0002 0001 67";
    let key_1 = "Could not read record with version 1 from key's buffer due to";
    let value_3 = "Could not read record with version 3 from value's buffer due to";
    let value_4 = "Could not read record with version 4 from value's buffer due to";
    // What kafka-dump-log of Apache Kafka 4.3.1 prints of the same records.
    for (key, value, expected) in [
        ("6b65", "00", "Unknown record type 27493 at offset 40, skipping.".to_owned()),
        ("0009 0001 67", "00", "Unknown record type 9 at offset 40, skipping.".to_owned()),
        ("6b", "00", "Error at offset 40, skipping. Could not read version from key's buffer.".to_owned()),
        ("0001", "00", format!("Error at offset 40, skipping. {key_1}: null.")),
        (
            "0001 0005 67",
            "00",
            format!("Error at offset 40, skipping. {key_1}: Error reading byte array of 5 byte(s): \
                only 1 byte(s) available."),
        ),
        ("0001 ffff 67", "00", format!("Error at offset 40, skipping. {key_1}: non-nullable field \
            group was serialized as null.")),
        (offset, "", "Error at offset 40, skipping. Could not read version from value's buffer.".to_owned()),
        (offset, "0009 00", "Error at offset 40, skipping. Found an unknown record version 9 for 1 \
            type".to_owned()),
        (offset, "0003 00", format!("Error at offset 40, skipping. {value_3}: null.")),
        (
            offset,
            "0004 0000000000000005 ffffffff ffffffffff",
            format!(
                "Error at offset 40, skipping. {value_4}: Varint is too long, the most significant \
                 bit in the 5th byte is set, converted value: ffffffff."
            ),
        ),
        (
            group,
            "0003 0001 63 00000001 ffff ffff 0000000000000001 7fffffff",
            format!(
                "Error at offset 40, skipping. {value_3}: Tried to allocate a collection of size \
                 2147483647, but there are only 0 bytes remaining.."
            ),
        ),
        (
            "0001 0001 ff 0001 74 00000009",
            "0003 0000000000000005 00000002 0000 0000000000000009",
            "{\"type\":\"1\",\"data\":{\"group\":\"\u{fffd}\",\"topic\":\"t\",\"partition\":9}} \
             payload: {\"version\":\"3\",\"data\":{\"offset\":5,\"leaderEpoch\":2,\"metadata\":\"\",\"commitTimestamp\":9}}"
                .to_owned(),
        ),
    ] {
        let mut batch = BatchBuilder::new();
        batch.push(1000, Some(&hex(key)), Some(&hex(value)), &[]).unwrap();
        let mut bytes = batch.finish(Compression::None, ProducerStamp::NONE).unwrap().to_vec();
        bytes[..8].copy_from_slice(&40i64.to_be_bytes());
        let log = folder.file(&format!("{NAME}.log"), &bytes);
        let (code, out, err) = folder.dump(&["--files", &log, "--offsets-decoder", "--skip-record-metadata"]);
        assert_eq!((code, out.lines().nth(3), err.as_str()), (Ok(0), Some(format!("| key: {expected}").as_str()), ""), "{key} {value}");
    }
    // A record without a key is none of that topic's: the tool ends there.
    let log =
        folder.file(&format!("{NAME}.log"), &batch(40, ProducerStamp::NONE, Compression::None));
    let (code, out, _) = folder.dump(&["--files", &log, "--offsets-decoder"]);
    assert!(
        code.unwrap_err().contains(
            "message at offset 41 using offset topic decoder (message had a missing key)"
        )
    );
    assert!(
        out.ends_with(
            "| offset: 41 CreateTime: 1001 keySize: -1 valueSize: 2 sequence: -1 headerKeys: []"
        ),
        "{out}"
    );
}

#[test]
fn keys_and_values_that_are_no_text_are_replaced_as_java_does() {
    let folder = folder();
    let mut batch = BatchBuilder::new();
    batch.push(1000, Some(b"\xffk"), Some(b"v\xed\xa0\x80"), &[]).unwrap();
    let bytes = batch.finish(Compression::None, ProducerStamp::NONE).unwrap().to_vec();
    let log = folder.file(&format!("{NAME}.log"), &bytes);
    let (_, out, _) = folder.dump(&["--files", &log, "--print-data-log", "--skip-record-metadata"]);
    assert!(out.ends_with("| key: \u{fffd}k payload: v\u{fffd}\n"), "{out}");
}

#[test]
fn a_metadata_log_of_ours_is_named_as_what_it_is() {
    let folder = folder();
    let log = folder.file("00000000000000000000.log", b"LBXRAFT2\x7f\x7f and so on");
    let (code, out, _) = folder.dump(&["--files", &log]);
    assert!(code.unwrap_err().contains("is not in Kafka's format"), "{out}");
}
