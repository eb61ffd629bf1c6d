#![allow(clippy::type_complexity, reason = "rows of tables")]

use bytes::BytesMut;

use super::*;

const CODECS: [Compression; 5] = [
    Compression::None,
    Compression::Gzip,
    Compression::Snappy,
    Compression::Lz4,
    Compression::Zstd,
];

fn header(key: &str, value: Option<&'static [u8]>) -> Header {
    Header { key: key.to_owned(), value: value.map(Bytes::from_static) }
}

fn sample(builder: &mut BatchBuilder) -> Vec<Record> {
    let long = vec![b'x'; 100_000];
    let rows: Vec<(i64, Option<&[u8]>, Option<&[u8]>, Vec<Header>)> = vec![
        (1000, Some(b"k"), Some(b"v"), vec![]),
        (
            999,
            None,
            Some(&long),
            vec![header("b", Some(b"1")), header("a", None), header("b", Some(b""))],
        ),
        (5000, Some(b""), None, vec![header("", Some(b"x"))]),
    ];
    let mut records = Vec::new();
    for (offset, (timestamp, key, value, headers)) in (0..).zip(rows) {
        builder.push(timestamp, key, value, &headers).unwrap();
        let copy = |bytes: Option<&[u8]>| bytes.map(Bytes::copy_from_slice);
        records.push(Record { offset, timestamp, key: copy(key), value: copy(value), headers });
    }
    records
}

#[test]
fn batches_come_back_as_written_with_every_codec() {
    for codec in CODECS {
        let mut builder = BatchBuilder::new();
        let records = sample(&mut builder);
        let mut bytes =
            builder.finish(codec, ProducerStamp { id: 7, epoch: 2, sequence: 40 }).unwrap();
        assert_eq!(builder.count(), 3, "it may be sent again under another stamp");
        let batch = Batch::take(&mut bytes).unwrap().unwrap();
        assert!(bytes.is_empty());
        assert_eq!(batch.records().unwrap(), records, "{codec:?}");
        let h = batch.header;
        assert_eq!(
            (h.producer_id, h.producer_epoch, h.base_sequence, h.records_count),
            (7, 2, 40, 3)
        );
        assert_eq!(
            (h.base_timestamp, h.max_timestamp, h.last_offset_delta, h.next_offset()),
            (1000, 5000, 2, 3)
        );
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let mut builder = BatchBuilder::new();
    builder.push(1, Some(b"key"), Some(b"value"), &[header("h", Some(b"1"))]).unwrap();
    let whole = builder.finish(Compression::None, ProducerStamp::NONE).unwrap();
    for cut in 1..whole.len() {
        assert!(Batch::take(&mut whole.slice(..cut)).is_err(), "cut at {cut}");
    }
    // Base offset (0..8) and leader epoch (12..16) are the broker's to write and not covered by the
    // checksum.
    for byte in (8..12).chain(16..whole.len()) {
        for bit in 0..8 {
            let mut broken = whole.to_vec();
            broken[byte] ^= 1 << bit;
            assert!(Batch::take(&mut Bytes::from(broken)).is_err(), "byte {byte} bit {bit}");
        }
    }
}

#[test]
fn wrong_counts_and_lengths_are_errors_not_allocations() {
    let mut builder = BatchBuilder::new();
    builder.push(1, None, Some(b"value"), &[]).unwrap();
    let whole = builder.finish(Compression::None, ProducerStamp::NONE).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = whole.to_vec();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        let crc = crc32c(&changed[21..]);
        changed[17..21].copy_from_slice(&crc.to_be_bytes());
        Batch::take(&mut Bytes::from(changed)).unwrap().unwrap().records()
    };
    assert!(with(57, &i32::MAX.to_be_bytes()).is_err());
    assert!(with(57, &(-1i32).to_be_bytes()).is_err());
    for at in HEADER_BYTES..whole.len() {
        // Only that it returns: the byte may be part of the value.
        let _ = with(at, &[0xff]);
    }
    for codec in [1u8, 2, 3, 4, 5, 6, 7] {
        assert!(with(22, &[codec]).is_err(), "codec {codec} on bytes that are not compressed");
    }
}

#[test]
fn a_batch_that_is_too_large_or_empty_is_not_written() {
    let mut builder = BatchBuilder::new();
    assert_eq!(builder.finish(Compression::None, ProducerStamp::NONE), Err(RecordsError::Empty));
    let (huge, header) = (vec![0; 1 << 29], header("h", None));
    builder.push(1, Some(&huge), None, &[]).unwrap();
    assert!(matches!(
        builder.push(1, None, Some(&huge), &[header]),
        Err(RecordsError::TooLarge { .. })
    ));
    assert_eq!(builder.count(), 1);
}

/// What the message crate's own encoder writes, this one reads (it keeps headers in a map, so one
/// header here).
#[test]
fn batches_of_the_message_crate_are_read() {
    use kafka_protocol::records::{
        Compression as TheirCompression, Record as TheirRecord, RecordBatchEncoder,
        RecordEncodeOptions, TimestampType,
    };
    let theirs: Vec<TheirRecord> = (0..3)
        .map(|n| TheirRecord {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: 4,
            producer_id: 9,
            producer_epoch: 1,
            timestamp_type: TimestampType::Creation,
            offset: 100 + n,
            sequence: i32::try_from(n).unwrap(),
            timestamp: 5000 + n * 10,
            key: Some(Bytes::from(format!("key-{n}"))),
            value: (n != 1).then(|| Bytes::from(vec![b'v'; 40])),
            headers: [("h".into(), Some(Bytes::from_static(b"x")))].into_iter().collect(),
        })
        .collect();
    let mut bytes = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: TheirCompression::None };
    RecordBatchEncoder::encode(&mut bytes, &theirs, &options).unwrap();
    let batch = Batch::take(&mut bytes.freeze()).unwrap().unwrap();
    assert_eq!(
        (batch.header.base_offset, batch.header.leader_epoch, batch.header.producer_id),
        (100, 4, 9)
    );
    for (ours, theirs) in batch.records().unwrap().iter().zip(&theirs) {
        assert_eq!(
            (ours.offset, ours.timestamp, &ours.key, &ours.value),
            (theirs.offset, theirs.timestamp, &theirs.key, &theirs.value)
        );
        assert_eq!(ours.headers, [header("h", Some(b"x"))]);
    }
}
