//! `kafka-dump-log`: the files of a partition, read where they lie.

mod batches;
mod indexes;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use letterbox_client::record::{Batch, Compression, Record};
use letterbox_env::Env;

use crate::args::{Grammar, Parsed, Spec, Takes, listed};
use crate::coordinator_records::{key_json, key_type, value_json};
use crate::deserializers::Show;
use crate::failure::Failure;
use crate::json;
use batches::{Batches, Head, Segment};

const SPECS: [Spec; 15] = [
    ("cluster-metadata-decoder", Takes::Refused, METADATA_LOG),
    (
        "deep-iteration",
        Takes::Nothing,
        "Also read the records in each batch. Implied by --print-data-log.",
    ),
    (
        "files",
        Takes::Value("String: file1, file2, ..."),
        "REQUIRED: The files, separated by commas.",
    ),
    (
        "index-sanity-check",
        Takes::Nothing,
        "Only run the check of an index that a broker runs when it starts.",
    ),
    ("key-decoder-class", Takes::Value("String"), DECODER),
    (
        "max-bytes",
        Takes::Value("Integer: size"),
        "Bytes of a .log file to read, rounded down to whole batches. (default: 2147483647)",
    ),
    (
        "max-message-size",
        Takes::Value("Integer: size"),
        "Maximum size of a batch in bytes. (default: 5242880)",
    ),
    ("offsets-decoder", Takes::Nothing, "Decode the records as those of __consumer_offsets."),
    ("print-data-log", Takes::Nothing, "Print keys and values. Implied by each decoder option."),
    (
        "remote-log-metadata-decoder",
        Takes::Refused,
        "tiered storage is not offered by this version, which writes no __remote_log_metadata",
    ),
    (
        "share-group-state-decoder",
        Takes::Refused,
        "share groups are not offered by this version, which writes no __share_group_state",
    ),
    ("skip-record-metadata", Takes::Nothing, "Print only the keys and values of records."),
    (
        "transaction-log-decoder",
        Takes::Refused,
        "transactions are not offered by this version, which writes no __transaction_state",
    ),
    ("value-decoder-class", Takes::Value("String"), DECODER),
    ("verify-index-only", Takes::Nothing, "Check an index without printing its entries."),
];
const DECODER: &str = "A decoder of org.apache.kafka.tools.api: StringDecoder, DefaultDecoder, \
    IntegerDecoder or LongDecoder. (default: StringDecoder)";

const METADATA_LOG: &str = "the metadata log of Letterbox (__letterbox_metadata) is not in Kafka's \
    format; kafka-metadata-quorum, kafka-topics and kafka-configs tell what it holds";
/// What the file of a metadata log of Letterbox begins with.
const METADATA_MAGIC: &[u8] = b"LBXRAFT";

/// Runs the tool.
pub(crate) fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let about = "This tool helps to parse a log file and dump its contents to the console, useful \
        for debugging a seemingly corrupt log segment.";
    let parsed = Grammar::local(about, &SPECS).parse(args)?;
    let files = parsed.required("files")?;
    let options = Options::new(&parsed)?;
    let mut complaints = Complaints::default();
    for file in listed(files) {
        writeln!(out, "Dumping {file}")?;
        let (stem, suffix) = Path::new(file)
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.rsplit_once('.'))
            .unwrap_or_default();
        let base_offset = || {
            stem.parse::<i64>().map_err(|_| {
                Failure::Stderr(format!(
                    "{file}: the name of a segment's file is its first offset, \
                    as in 00000000000000000000.{suffix}"
                ))
            })
        };
        let mut dump = Dump { env, file, options: &options, complaints: &mut complaints, out };
        match suffix {
            "log" => dump_log(&mut dump, base_offset()?)?,
            "index" => indexes::dump_index(&mut dump, base_offset()?)?,
            "timeindex" => indexes::dump_time_index(&mut dump, base_offset()?)?,
            "snapshot" => indexes::dump_producers(&mut dump)?,
            "txnindex" => indexes::dump_aborted(&mut dump)?,
            _ => writeln!(err, "Ignoring unknown file {file}")?,
        }
    }
    complaints.report(err)?;
    Ok(0)
}

/// A file, how much of it is printed, and where.
struct Dump<'a> {
    env: &'a Env,
    file: &'a str,
    options: &'a Options,
    complaints: &'a mut Complaints,
    out: &'a mut (dyn Write + Send),
}

/// How much is printed.
struct Options {
    verify_only: bool,
    sanity_only: bool,
    deep: bool,
    contents: bool,
    metadata: bool,
    offsets: bool,
    show_key: Show,
    show_value: Show,
    bytes_max: u64,
    batch_bytes_max: u64,
}

impl Options {
    fn new(parsed: &Parsed) -> Result<Self, Failure> {
        let decoder = |option: &str| match parsed
            .value(option)
            .map(|class| class.rsplit('.').next().unwrap_or(class))
        {
            None | Some("StringDecoder") => Ok(Show::Text),
            Some("DefaultDecoder") => Ok(Show::Raw),
            Some("IntegerDecoder") => Ok(Show::Integer),
            Some("LongDecoder") => Ok(Show::Long),
            Some(class) => Err(parsed.wrong(format!(
                "--{option}: the decoder {class} is not supported; use StringDecoder, \
                 DefaultDecoder, IntegerDecoder or LongDecoder"
            ))),
        };
        let offsets = parsed.has("offsets-decoder");
        let contents = parsed.has("print-data-log")
            || offsets
            || parsed.has("key-decoder-class")
            || parsed.has("value-decoder-class");
        Ok(Self {
            verify_only: parsed.has("verify-index-only"),
            sanity_only: parsed.has("index-sanity-check"),
            deep: contents || parsed.has("deep-iteration"),
            contents,
            metadata: !parsed.has("skip-record-metadata"),
            offsets,
            show_key: decoder("key-decoder-class")?,
            show_value: decoder("value-decoder-class")?,
            bytes_max: parsed.number("max-bytes")?.unwrap_or(2_147_483_647),
            batch_bytes_max: parsed.number("max-message-size")?.unwrap_or(5_242_880),
        })
    }
}

/// What does not fit together, told on standard error at the end.
#[derive(Default)]
struct Complaints {
    mismatches: BTreeMap<String, Vec<(i64, i64)>>,
    times: BTreeMap<String, Vec<String>>,
    gaps: BTreeMap<String, Vec<(i64, i64)>>,
}

impl Complaints {
    fn report(&self, err: &mut (dyn Write + Send)) -> Result<(), Failure> {
        for (file, pairs) in &self.mismatches {
            writeln!(err, "Mismatches in :{file}")?;
            for (index, log) in pairs {
                writeln!(err, "  Index offset: {index}, log offset: {log}")?;
            }
        }
        for (file, lines) in &self.times {
            writeln!(err, "Found timestamp mismatch in :{file}")?;
            for line in lines {
                writeln!(err, "  {line}")?;
            }
        }
        for (file, pairs) in &self.gaps {
            writeln!(err, "Non-consecutive offsets in {file}")?;
            for (one, next) in pairs {
                writeln!(err, "  {one} is followed by {next}")?;
            }
        }
        Ok(())
    }
}

fn dump_log(dump: &mut Dump<'_>, base_offset: i64) -> Result<(), Failure> {
    let Dump { env, file, options, complaints, out } = dump;
    writeln!(out, "Log starting offset: {base_offset}")?;
    let segment = Segment::open(env, file)?;
    if segment.begins_with(METADATA_MAGIC)? {
        return Err(Failure::Stderr(format!("{file}: {METADATA_LOG}.")));
    }
    let mut batches = Batches::new(&segment, 0);
    let mut previous = None;
    while let Some(head) = batches.next()? {
        if head.position.saturating_add(head.bytes) > options.bytes_max {
            return Ok(());
        }
        let bytes = segment.batch(&head)?;
        let valid = head.header.crc
            == letterbox_client::record::crc32c(bytes.get(21..).unwrap_or_default());
        write_batch(&head, valid, out)?;
        if options.deep && valid {
            let batch = Batch::take(&mut bytes.clone()).ok().flatten();
            let records = batch
                .ok_or_else(|| "no batch".to_owned())
                .and_then(|batch| batch.records().map_err(|why| why.to_string()));
            let records = records.map_err(|why| {
                Failure::Stderr(format!(
                    "{file}: the batch at position {} cannot be read: {why}",
                    head.position
                ))
            })?;
            for (index, record) in records.iter().enumerate() {
                if let Some(previous) = previous
                    && record.offset != previous + 1
                {
                    complaints
                        .gaps
                        .entry((*file).to_owned())
                        .or_default()
                        .push((previous, record.offset));
                }
                previous = Some(record.offset);
                write_record(&head, index, record, options, out)?;
            }
        }
    }
    if batches.left > 0 {
        writeln!(out, "Found {} invalid bytes at the end of {}", batches.left, segment.name())?;
    }
    Ok(())
}

fn write_batch(head: &Head, valid: bool, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let header = &head.header;
    let horizon = header
        .delete_horizon_ms()
        .map_or_else(|| "OptionalLong.empty".to_owned(), |at| format!("OptionalLong[{at}]"));
    let codec = header.compression().map_or("unknown", Compression::name);
    writeln!(
        out,
        "baseOffset: {} lastOffset: {} count: {} baseSequence: {} lastSequence: {} producerId: {} \
         producerEpoch: {} partitionLeaderEpoch: {} isTransactional: {} isControl: {} \
         deleteHorizonMs: {horizon} position: {} {}: {} size: {} magic: 2 compresscodec: {codec} \
         crc: {} isvalid: {valid}",
        header.base_offset,
        header.next_offset().saturating_sub(1),
        header.records_count,
        header.base_sequence,
        sequence(head, header.last_offset_delta),
        header.producer_id,
        header.producer_epoch,
        header.leader_epoch,
        header.is_transactional(),
        header.is_control(),
        head.position,
        time_name(head),
        header.max_timestamp,
        head.bytes,
        header.crc,
    )?;
    Ok(())
}

fn time_name(head: &Head) -> &'static str {
    if head.header.is_log_append_time() { "LogAppendTime" } else { "CreateTime" }
}

/// Sequence numbers start again at 0 after 2^31 - 1.
fn sequence(head: &Head, delta: i32) -> i32 {
    let base = head.header.base_sequence;
    if base < 0 { -1 } else { base.wrapping_add(delta) & i32::MAX }
}

fn write_record(
    head: &Head,
    index: usize,
    record: &Record,
    options: &Options,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let size = |bytes: &Option<Bytes>| {
        bytes.as_ref().map_or_else(|| "-1".to_owned(), |bytes| bytes.len().to_string())
    };
    let mut prefix = "| ";
    if options.metadata {
        let keys: Vec<&str> = record.headers.iter().map(|header| header.key.as_str()).collect();
        // Offsets of one batch may have gaps, sequence numbers follow them.
        let delta = i32::try_from(record.offset.saturating_sub(head.header.base_offset))
            .unwrap_or(i32::try_from(index).unwrap_or(0));
        write!(
            out,
            "| offset: {} {}: {} keySize: {} valueSize: {} sequence: {} headerKeys: [{}]",
            record.offset,
            time_name(head),
            record.timestamp,
            size(&record.key),
            size(&record.value),
            sequence(head, delta),
            keys.join(","),
        )?;
        prefix = " ";
        if head.header.is_control() {
            write!(out, "{}", control(record))?;
        }
    } else if head.header.is_control() {
        return Ok(());
    }
    if options.contents && !head.header.is_control() {
        let (key, value) = if options.offsets {
            offsets(record)?
        } else {
            (
                shown(record.key.as_ref(), options.show_key)?,
                shown(record.value.as_ref(), options.show_value)?,
            )
        };
        if let Some(key) = key {
            write!(out, "{prefix}key: ")?;
            out.write_all(&key)?;
            prefix = " ";
        }
        if let Some(value) = value {
            write!(out, "{prefix}payload: ")?;
            out.write_all(&value)?;
        }
    }
    writeln!(out)?;
    Ok(())
}

/// A key and a value as they are printed.
type Shown = (Option<Vec<u8>>, Option<Vec<u8>>);

fn shown(bytes: Option<&Bytes>, show: Show) -> Result<Option<Vec<u8>>, Failure> {
    let Some(bytes) = bytes else { return Ok(None) };
    let mut text = Vec::new();
    show.write(bytes, &mut text).map_err(|why| Failure::Stderr(why.to_string()))?;
    Ok(Some(text))
}

/// Key and value of a record of `__consumer_offsets`, as Kafka's decoder prints them.
fn offsets(record: &Record) -> Result<Shown, Failure> {
    let Some(key) = &record.key else {
        return Err(Failure::Stderr(format!(
            "Failed to decode message at offset {} using offset topic decoder (message had a \
             missing key)",
            record.offset
        )));
    };
    let Some((number, kind)) = key_type(key) else {
        return Ok((
            Some(skipped(record.offset, "Could not read version from key's buffer.")),
            None,
        ));
    };
    let Some(kind) = kind else {
        let text = format!("Unknown record type {number} at offset {}, skipping.", record.offset);
        return Ok((Some(text.into_bytes()), None));
    };
    let value = |value: &Bytes| {
        let (version, data) = value_json(kind, value, true)?;
        Ok(format!("{{\"version\":{},\"data\":{}}}", json::text(&version.to_string()), data?))
    };
    let both = key_json(kind, key).and_then(|key| {
        Ok((
            key,
            record.value.as_ref().map_or_else(|| Ok::<_, String>("<DELETE>".to_owned()), value)?,
        ))
    });
    Ok(match both {
        Ok((key, value)) => {
            let key = format!("{{\"type\":{},\"data\":{key}}}", json::text(&number.to_string()));
            (Some(key.into_bytes()), Some(value.into_bytes()))
        }
        Err(why) => (Some(skipped(record.offset, &why)), None),
    })
}

fn skipped(offset: i64, why: &str) -> Vec<u8> {
    format!("Error at offset {offset}, skipping. {why}").into_bytes()
}

/// What the record of a control batch says: the end of a transaction; others are named by their
/// number.
fn control(record: &Record) -> String {
    let number = |bytes: &Option<Bytes>, at: usize| {
        bytes
            .as_ref()
            .and_then(|bytes| bytes.get(at..at + 2))
            .map(|pair| i16::from_be_bytes([pair[0], pair[1]]))
    };
    let kind = match number(&record.key, 2) {
        Some(0) => "ABORT",
        Some(1) => "COMMIT",
        Some(other) => return format!(" controlType: {other}"),
        None => return " controlType: unknown".to_owned(),
    };
    let epoch = record
        .value
        .as_ref()
        .and_then(|value| value.get(2..6))
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(-1, i32::from_be_bytes);
    format!(" endTxnMarker: {kind} coordinatorEpoch: {epoch}")
}

#[cfg(test)]
mod tests;
