//! Any bytes as record batches: no panic, and what reads well reads the same after it was written
//! again.
#![no_main]

use letterbox_protocol::batch::{Batch, BatchBuilder, Compression, RecordIter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut rest = input;
    while let Ok((batch, after)) = Batch::split(rest) {
        assert_eq!(batch.bytes().len() + after.len(), rest.len());
        rest = after;
        let _ = batch.check_crc();
        let _ =
            (batch.header.last_offset(), batch.header.next_offset(), batch.header.last_sequence());
        if batch.header.compression() == Ok(Compression::None) {
            check_records(&batch);
        }
    }
});

fn check_records(batch: &Batch<'_>) {
    let records = RecordIter::new(batch.records_bytes(), batch.header.records_count);
    let Ok(records) = records.collect::<Result<Vec<_>, _>>() else { return };
    let mut again = BatchBuilder::like(&batch.header);
    for record in &records {
        assert_eq!(record.headers.iter().count(), record.headers.len());
        again.keep(batch.header.timestamp(record.timestamp_delta), record);
    }
    let again = again.build();
    let (built, rest) = Batch::split(&again).expect("a built batch is whole");
    assert!(rest.is_empty() && built.check_crc().is_ok());
    let read: Vec<_> = RecordIter::new(built.records_bytes(), built.header.records_count)
        .map(|r| r.expect("a built record"))
        .collect();
    assert_eq!(read.len(), records.len());
    for (read, record) in read.iter().zip(&records) {
        let is = |r: &letterbox_protocol::batch::Record<'_>| {
            (r.offset_delta, r.key.map(<[u8]>::to_vec), r.value.map(<[u8]>::to_vec))
        };
        assert_eq!(is(read), is(record));
        assert_eq!(read.headers, record.headers);
    }
}
