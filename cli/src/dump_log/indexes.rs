//! The files beside a segment: offset index, time index, producer snapshot, aborted transactions.

use std::io::Write;
use std::path::Path;

use bytes::{Buf, Bytes};
use letterbox_client::record::crc32c;
use letterbox_env::Env;

use super::batches::{Batches, Segment};
use super::{Complaints, Options};
use crate::failure::Failure;

const INDEX_ENTRY_BYTES: usize = 8;
const TIME_ENTRY_BYTES: usize = 12;
const PRODUCER_BYTES: usize = 8 + 2 + 4 + 8 + 4 + 8 + 4 + 8;
const ABORTED_BYTES: usize = 2 + 8 + 8 + 8 + 8;

fn read(env: &Env, file: &str) -> Result<Bytes, Failure> {
    env.disk
        .read(Path::new(file))
        .map(Bytes::from)
        .map_err(|error| Failure::Stderr(format!("cannot read {file}: {error}")))
}

/// As Kafka names a file in its complaints.
fn absolute(file: &str) -> String {
    std::path::absolute(file).map_or_else(|_| file.to_owned(), |path| path.display().to_string())
}

/// Offset and position of each entry. Unused entries are zero: they end the list, unless it is the
/// first, which may belong to the first batch of the segment.
fn entries(bytes: &Bytes, base_offset: i64) -> Vec<(i64, u64)> {
    let mut entries = Vec::new();
    for mut entry in bytes.chunks_exact(INDEX_ENTRY_BYTES) {
        let (offset, position) = (i64::from(entry.get_i32()), entry.get_i32());
        if offset == 0 && !entries.is_empty() {
            break;
        }
        entries.push((
            base_offset.saturating_add(offset),
            u64::try_from(position).unwrap_or(u64::MAX),
        ));
    }
    entries
}

/// Whether an index is whole: a length of whole entries, and nothing before the segment. What a
/// broker checks when it starts.
fn sanity(
    file: &str,
    bytes: &Bytes,
    entry_bytes: usize,
    last: Option<i64>,
    base_offset: i64,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
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
    writeln!(out, "{file} passed sanity check.")?;
    Ok(())
}

pub(super) fn dump_index(
    env: &Env,
    file: &str,
    base_offset: i64,
    options: &Options,
    complaints: &mut Complaints,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let bytes = read(env, file)?;
    let entries = entries(&bytes, base_offset);
    if options.sanity_only {
        return sanity(
            file,
            &bytes,
            INDEX_ENTRY_BYTES,
            entries.last().map(|(offset, _)| *offset),
            base_offset,
            out,
        );
    }
    let segment = Segment::open(env, &beside(file, "index"))?;
    for (offset, position) in entries {
        let head = Batches::new(&segment, position)
            .next()?
            .filter(|head| head.bytes <= options.batch_bytes_max);
        if head.is_none() && (offset, position) == (base_offset, 0) {
            break; // the index of a segment without batches: there is no entry. Kafka's tool ends with an exception here.
        }
        let last = head.map_or(-1, |head| head.header.next_offset().saturating_sub(1));
        if last != offset {
            complaints.mismatches.entry(absolute(file)).or_default().push((offset, last));
        }
        if !options.verify_only {
            writeln!(out, "offset: {offset} position: {position}")?;
        }
    }
    Ok(())
}

pub(super) fn dump_time_index(
    env: &Env,
    file: &str,
    base_offset: i64,
    options: &Options,
    complaints: &mut Complaints,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let bytes = read(env, file)?;
    let mut times: Vec<(i64, i64)> = Vec::new();
    for mut entry in bytes.chunks_exact(TIME_ENTRY_BYTES) {
        let (timestamp, offset) = (entry.get_i64(), i64::from(entry.get_i32()));
        if offset == 0 && !times.is_empty() {
            break;
        }
        times.push((timestamp, base_offset.saturating_add(offset)));
    }
    if options.sanity_only {
        // A broker that still writes this index keeps zeros behind its entries: Kafka's tool takes
        // such a file for corrupt, too.
        let time = |mut entry: &[u8]| entry.get_i64();
        let mut raw = bytes.chunks_exact(TIME_ENTRY_BYTES).map(time);
        if let (Some(first), Some(last)) = (raw.clone().next(), raw.next_back())
            && last < first
        {
            return Err(Failure::Stderr(format!(
                "Index file {file} is corrupt: its last timestamp {last} is less than the first \
                 one, {first}"
            )));
        }
        return sanity(
            file,
            &bytes,
            TIME_ENTRY_BYTES,
            times.last().map(|(_, offset)| *offset),
            base_offset,
            out,
        );
    }
    let segment = Segment::open(env, &beside(file, "timeindex"))?;
    let positions =
        entries(&read(env, &beside(file, "timeindex").replace(".log", ".index"))?, base_offset);
    let mut previous = i64::MIN;
    for (timestamp, offset) in times {
        let position = positions
            .iter()
            .rev()
            .find(|(indexed, _)| *indexed <= offset)
            .map_or(0, |(_, position)| *position);
        let mut complain =
            |line: String| complaints.times.entry(absolute(file)).or_default().push(line);
        let mut batches = Batches::new(&segment, position);
        let batch = loop {
            match batches.next()? {
                Some(head) if head.header.next_offset() <= offset => {}
                found => break found,
            }
        };
        match batch {
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
        if !options.verify_only {
            writeln!(out, "timestamp: {timestamp} offset: {offset}")?;
        }
        previous = timestamp;
    }
    Ok(())
}

/// The segment that an index belongs to.
fn beside(file: &str, suffix: &str) -> String {
    format!("{}log", file.strip_suffix(suffix).unwrap_or(file))
}

pub(super) fn dump_producers(
    env: &Env,
    file: &str,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let bytes = read(env, file)?;
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

pub(super) fn dump_aborted(
    env: &Env,
    file: &str,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    for mut entry in read(env, file)?.chunks_exact(ABORTED_BYTES) {
        let (version, id, first, last, stable) =
            (entry.get_i16(), entry.get_i64(), entry.get_i64(), entry.get_i64(), entry.get_i64());
        writeln!(
            out,
            "version: {version} producerId: {id} firstOffset: {first} lastOffset: {last} \
             lastStableOffset: {stable}"
        )?;
    }
    Ok(())
}
