//! The files beside a segment: offset index, time index, producer snapshot, aborted transactions.

use std::io::Write;

use bytes::{Buf, Bytes};
use letterbox_client::record::crc32c;

use super::Dump;
use super::batches::{Batches, Head, Segment};
use crate::failure::Failure;
use crate::files::read;

const INDEX_ENTRY_BYTES: usize = 8;
const TIME_ENTRY_BYTES: usize = 12;
const PRODUCER_BYTES: usize = 8 + 2 + 4 + 8 + 4 + 8 + 4 + 8;
const ABORTED_BYTES: usize = 2 + 8 + 8 + 8 + 8;

/// As Kafka names a file in its complaints.
fn absolute(file: &str) -> String {
    std::path::absolute(file).map_or_else(|_| file.to_owned(), |path| path.display().to_string())
}

/// The entries of an index that are in use, by their offset. Unused entries are zero: they end the
/// list, unless it is the first, which may belong to the first batch of the segment. `entry` reads
/// one: its offset from the segment's first, and the rest.
fn entries<T>(
    bytes: &[u8],
    entry_bytes: usize,
    base_offset: i64,
    entry: fn(&[u8]) -> (i32, T),
) -> Vec<(i64, T)> {
    let all = bytes.chunks_exact(entry_bytes).map(entry).enumerate();
    all.take_while(|(index, (offset, _))| *index == 0 || *offset != 0)
        .map(|(_, (offset, rest))| (base_offset.saturating_add(i64::from(offset)), rest))
        .collect()
}

/// Offset and position of each entry of an offset index.
fn positions(bytes: &[u8], base_offset: i64) -> Vec<(i64, u64)> {
    entries(bytes, INDEX_ENTRY_BYTES, base_offset, |mut entry| {
        (entry.get_i32(), u64::try_from(entry.get_i32()).unwrap_or(u64::MAX))
    })
}

/// Offset and timestamp of each entry of a time index.
fn times(bytes: &[u8], base_offset: i64) -> Vec<(i64, i64)> {
    entries(bytes, TIME_ENTRY_BYTES, base_offset, |mut entry| {
        let timestamp = entry.get_i64();
        (entry.get_i32(), timestamp)
    })
}

/// Whether an index is whole: a length of whole entries, and nothing before the segment. What a
/// broker checks when it starts.
fn sanity(
    dump: &mut Dump<'_>,
    bytes: &[u8],
    entry_bytes: usize,
    last: Option<i64>,
    base_offset: i64,
) -> Result<(), Failure> {
    let file = dump.file;
    if !bytes.len().is_multiple_of(entry_bytes) {
        let line = format!(
            "Index file {file} is corrupt, found {} bytes which is neither positive nor a multiple \
             of {entry_bytes}",
            bytes.len()
        );
        return Err(Failure::Stderr(line));
    }
    if let Some(last) = last.filter(|last| *last < base_offset) {
        return Err(Failure::Stderr(format!(
            "Index file {file} is corrupt: its last offset {last} is less than the base offset \
             {base_offset}"
        )));
    }
    writeln!(dump.out, "{file} passed sanity check.")?;
    Ok(())
}

/// That the last entry of a time index is not before the first. A broker that still writes this
/// index keeps zeros behind its entries: Kafka's tool takes such a file for corrupt, too.
fn time_order(file: &str, bytes: &[u8]) -> Result<(), Failure> {
    let mut raw = bytes.chunks_exact(TIME_ENTRY_BYTES).map(|mut entry| entry.get_i64());
    match (raw.clone().next(), raw.next_back()) {
        (Some(first), Some(last)) if last < first => Err(Failure::Stderr(format!(
            "Index file {file} is corrupt: its last timestamp {last} is less than the first one, \
             {first}"
        ))),
        _ => Ok(()),
    }
}

pub(super) fn dump_index(dump: &mut Dump<'_>, base_offset: i64) -> Result<(), Failure> {
    let bytes = read(dump.env, dump.file)?;
    let positions = positions(&bytes, base_offset);
    if dump.options.sanity_only {
        let last = positions.last().map(|(offset, _)| *offset);
        return sanity(dump, &bytes, INDEX_ENTRY_BYTES, last, base_offset);
    }
    let segment = Segment::open(dump.env, &beside(dump.file, "index", "log"))?;
    for (offset, position) in positions {
        let head = Batches::new(&segment, position)
            .next()?
            .filter(|head| head.bytes <= dump.options.batch_bytes_max);
        if head.is_none() && (offset, position) == (base_offset, 0) {
            // The index of a segment without batches: there is no entry. Kafka's tool ends with an
            // exception here.
            break;
        }
        let last = head.map_or(-1, |head| head.header.next_offset().saturating_sub(1));
        if last != offset {
            dump.complaints.mismatches.entry(absolute(dump.file)).or_default().push((offset, last));
        }
        if !dump.options.verify_only {
            writeln!(dump.out, "offset: {offset} position: {position}")?;
        }
    }
    Ok(())
}

pub(super) fn dump_time_index(dump: &mut Dump<'_>, base_offset: i64) -> Result<(), Failure> {
    let bytes = read(dump.env, dump.file)?;
    let times = times(&bytes, base_offset);
    if dump.options.sanity_only {
        time_order(dump.file, &bytes)?;
        let last = times.last().map(|(offset, _)| *offset);
        return sanity(dump, &bytes, TIME_ENTRY_BYTES, last, base_offset);
    }
    let segment = Segment::open(dump.env, &beside(dump.file, "timeindex", "log"))?;
    let index = read(dump.env, &beside(dump.file, "timeindex", "index"))?;
    let positions = positions(&index, base_offset);
    let mut previous = i64::MIN;
    for (offset, timestamp) in times {
        let mut complain =
            |line: String| dump.complaints.times.entry(absolute(dump.file)).or_default().push(line);
        match batch_with(&segment, &positions, offset)? {
            _ if timestamp == 0 && offset == base_offset => {} // an index without entries
            Some(head) if head.header.max_timestamp != timestamp => {
                complain(format!(
                    "Index timestamp: {timestamp}, log timestamp: {}",
                    head.header.max_timestamp
                ));
            }
            Some(_) => {}
            None => complain(format!("Indexed offset: {offset}, not found in the log")),
        }
        if previous >= timestamp {
            complain(format!(
                "Out of order timestamp: {timestamp}, the previous one is {previous}"
            ));
        }
        if !dump.options.verify_only {
            writeln!(dump.out, "timestamp: {timestamp} offset: {offset}")?;
        }
        previous = timestamp;
    }
    Ok(())
}

/// The batch that has `offset`, looked for from the nearest of `positions` before it.
fn batch_with(
    segment: &Segment,
    positions: &[(i64, u64)],
    offset: i64,
) -> Result<Option<Head>, Failure> {
    let before = positions.iter().rev().find(|(indexed, _)| *indexed <= offset);
    let mut batches = Batches::new(segment, before.map_or(0, |(_, position)| *position));
    loop {
        match batches.next()? {
            Some(head) if head.header.next_offset() <= offset => {}
            found => return Ok(found),
        }
    }
}

/// The file of the same segment with another ending.
fn beside(file: &str, ending: &str, other: &str) -> String {
    format!("{}{other}", file.strip_suffix(ending).unwrap_or(file))
}

pub(super) fn dump_producers(dump: &mut Dump<'_>) -> Result<(), Failure> {
    let (file, out) = (dump.file, &mut dump.out);
    let bytes = Bytes::from(read(dump.env, file)?);
    let corrupt = |why: &str| Failure::Stderr(format!("Snapshot {file} is corrupt: {why}"));
    let mut view = bytes.clone();
    let (Ok(version), Ok(crc), Ok(count)) =
        (view.try_get_i16(), view.try_get_u32(), view.try_get_i32())
    else {
        return Err(corrupt("it is cut off"));
    };
    if version != 1 {
        return Err(corrupt(&format!("version {version} is not known; only 1 is")));
    }
    if crc != crc32c(bytes.get(6..).unwrap_or_default()) {
        return Err(corrupt("CRC mismatch"));
    }
    if usize::try_from(count)
        .ok()
        .and_then(|count| count.checked_mul(PRODUCER_BYTES))
        .is_none_or(|needed| needed > view.len())
    {
        return Err(corrupt("it is cut off"));
    }
    for _ in 0..count {
        let (id, epoch, last_sequence, last_offset) =
            (view.get_i64(), view.get_i16(), view.get_i32(), view.get_i64());
        let (offset_delta, timestamp, coordinator_epoch, first_in_transaction) =
            (view.get_i32(), view.get_i64(), view.get_i32(), view.get_i64());
        let first_in_transaction = if first_in_transaction < 0 {
            "OptionalLong.empty".to_owned()
        } else {
            format!("OptionalLong[{first_in_transaction}]")
        };
        write!(
            out,
            "producerId: {id} producerEpoch: {epoch} coordinatorEpoch: {coordinator_epoch} \
             currentTxnFirstOffset: {first_in_transaction} lastTimestamp: {timestamp} "
        )?;
        if last_offset >= 0 {
            // Sequence numbers start again at 0 after 2^31 - 1.
            let first_sequence = last_sequence.wrapping_sub(offset_delta) & i32::MAX;
            write!(
                out,
                "firstSequence: {first_sequence} lastSequence: {last_sequence} lastOffset: \
                 {last_offset} offsetDelta: {offset_delta} timestamp: {timestamp}"
            )?;
        }
        writeln!(out)?;
    }
    Ok(())
}

pub(super) fn dump_aborted(dump: &mut Dump<'_>) -> Result<(), Failure> {
    for mut entry in read(dump.env, dump.file)?.chunks_exact(ABORTED_BYTES) {
        let (version, id, first, last, stable) =
            (entry.get_i16(), entry.get_i64(), entry.get_i64(), entry.get_i64(), entry.get_i64());
        writeln!(
            dump.out,
            "version: {version} producerId: {id} firstOffset: {first} lastOffset: {last} \
             lastStableOffset: {stable}"
        )?;
    }
    Ok(())
}
