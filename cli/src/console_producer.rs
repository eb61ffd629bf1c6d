//! `kafka-console-producer`.

use std::collections::BTreeMap;
use std::io::Write;

use letterbox_client::record::Header;
use letterbox_client::{
    Acks, Compression, Delivery, Error, Producer, ProducerOptions, ProducerRecord,
};
use letterbox_env::Env;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use crate::args::{Grammar, Parsed, Spec, TRANSACTIONS, Takes};
use crate::connect::Properties;
use crate::failure::{Failure, plain};
use crate::files::read_properties;

const SPECS: [Spec; 21] = [
    (
        "batch-size",
        Takes::Value("Integer: size"),
        "Size of a batch in bytes; --max-partition-memory-bytes overrides it. (default: 16384)",
    ),
    (
        "command-property",
        Takes::Values("String: producer_prop"),
        "A producer setting as key=value. May be repeated.",
    ),
    (
        "compression-codec",
        Takes::Perhaps("String: compression-codec"),
        "The compression: none, gzip, snappy, lz4 or zstd; gzip if no value is given.",
    ),
    (
        "line-reader",
        Takes::Value("String: reader_class"),
        "Class that makes records of the input; only the default is supported. (default: \
         org.apache.kafka.tools.LineMessageReader)",
    ),
    (
        "max-block-ms",
        Takes::Value("Long: max block on send"),
        "Milliseconds that sending a record may block. (default: 60000)",
    ),
    (
        "max-memory-bytes",
        Takes::Value("Long: total memory in bytes"),
        "Bytes of memory for records that are not sent yet. (default: 33554432)",
    ),
    (
        "max-partition-memory-bytes",
        Takes::Value("Integer"),
        "(DEPRECATED) Use --batch-size, which this option overrides.",
    ),
    (
        "message-send-max-retries",
        Takes::Value("Integer"),
        "Number of retries of a batch. (default: 3)",
    ),
    (
        "metadata-expiry-ms",
        Takes::Value("Long"),
        "Milliseconds until the leaders of partitions are looked up again. (default: 300000)",
    ),
    (
        "producer-property",
        Takes::Values("String: producer_prop"),
        "(DEPRECATED) Use --command-property.",
    ),
    ("producer.config", Takes::Value("String: config file"), "(DEPRECATED) Use --command-config."),
    ("property", Takes::Values("String: prop"), "(DEPRECATED) Use --reader-property."),
    ("reader-config", Takes::Value("String: config file"), "Property file for the line reader."),
    (
        "reader-property",
        Takes::Values("String: prop"),
        "A property of the line reader: parse.key, key.separator, parse.headers, \
         headers.delimiter, headers.separator, headers.key.separator, ignore.error, null.marker.",
    ),
    (
        "request-required-acks",
        Takes::Value("String: acks"),
        "Acknowledgements required for each record: -1 (all), 0 or 1. (default: -1)",
    ),
    (
        "request-timeout-ms",
        Takes::Value("Integer"),
        "Milliseconds to wait for the response to a request. (default: 1500)",
    ),
    (
        "retry-backoff-ms",
        Takes::Value("Long"),
        "Milliseconds to wait before a retry. (default: 100)",
    ),
    ("socket-buffer-size", Takes::Refused, "the operating system sizes the buffers of sockets"),
    ("sync", Takes::Nothing, "Send one record at a time."),
    (
        "timeout",
        Takes::Value("Long: timeout_ms"),
        "Milliseconds to wait for more records before a batch is sent (linger.ms). (default: 1000)",
    ),
    ("topic", Takes::Value("String: topic"), "REQUIRED: The topic to send to."),
];

/// Answers that are waited for at most.
const WAITING_MAX: usize = 10_000;

/// Runs the tool: one record for each line of `input`.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    input: &mut (dyn AsyncRead + Send + Unpin),
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let parsed = Grammar::new(
        "This tool helps to read data from standard input and publish it to Kafka.",
        &SPECS,
    )
    .parse(args)?;
    let bootstrap = parsed.required("bootstrap-server")?.to_owned();
    let topic = parsed.required("topic")?.to_owned();
    let pairs = [
        ("property", "reader-property"),
        ("producer-property", "command-property"),
        ("producer.config", "command-config"),
    ];
    parsed.not_together(&pairs.map(|(old, new)| (new, old)))?;
    parsed.warn_deprecated("Warning:", &pairs, out)?;
    if parsed.has("max-partition-memory-bytes") {
        let now =
            "is deprecated and will be removed in Apache Kafka 5.0. Use --batch-size instead.";
        writeln!(out, "Warning: --max-partition-memory-bytes {now}")?;
    }
    let reader = LineReader::new(env, &parsed)?;
    let (options, properties) = options(env, &parsed)?;
    let client = properties.connect(env, &bootstrap, "console-producer", None, err).await?;
    let producer = Producer::new(&client, options).await?;
    let sending = Sending { producer, topic, sync: parsed.has("sync") };
    let sent = sending.lines(&reader, input, out, err).await;
    sending.producer.close().await?;
    sent.map(|()| 0)
}

/// Where lines go.
struct Sending {
    producer: Producer,
    topic: String,
    /// Each record waits for the answer to the one before.
    sync: bool,
}

impl Sending {
    /// Sends a record for each line of `input`, and waits for all answers.
    async fn lines(
        &self,
        reader: &LineReader,
        input: &mut (dyn AsyncRead + Send + Unpin),
        out: &mut (dyn Write + Send),
        err: &mut (dyn Write + Send),
    ) -> Result<(), Failure> {
        let interactive = std::io::IsTerminal::is_terminal(&std::io::stdin());
        let mut lines = BufReader::with_capacity(64 * 1024, input);
        let mut waiting: Vec<Delivery> = Vec::new();
        let mut line = Vec::new();
        let mut number = 0u64;
        loop {
            if interactive {
                write!(out, ">")?;
                out.flush()?;
            }
            line.clear();
            let read = read_line(&mut lines, &mut line)
                .await
                .map_err(|error| Failure::Stderr(format!("cannot read the input: {error}")))?;
            if !read {
                break;
            }
            number += 1;
            let record = reader.record(&self.topic, &line, number).map_err(Failure::Stderr)?;
            match self.producer.send(record).await {
                Ok(delivery) if self.sync => {
                    delivery.await.map_err(|error| Failure::Stderr(plain(&error)))?;
                }
                Ok(delivery) => waiting.push(delivery),
                Err(error) => self.report(&error, err)?,
            }
            if waiting.len() >= WAITING_MAX {
                self.settle(waiting.drain(..WAITING_MAX / 2), err).await?;
            }
        }
        self.producer.flush().await;
        self.settle(waiting.drain(..), err).await
    }

    /// Waits for `deliveries` and reports those that failed; like Kafka's tool it goes on then.
    async fn settle(
        &self,
        deliveries: impl Iterator<Item = Delivery>,
        err: &mut (dyn Write + Send),
    ) -> Result<(), Failure> {
        for delivery in deliveries {
            if let Err(error) = delivery.await {
                self.report(&error, err)?;
            }
        }
        Ok(())
    }

    fn report(&self, error: &Error, err: &mut (dyn Write + Send)) -> std::io::Result<()> {
        writeln!(err, "Error when sending message to topic {}: {}", self.topic, plain(error))
    }
}

/// One line without its end; a last line without an end counts. False at the end of the input.
async fn read_line(
    input: &mut (impl AsyncBufReadExt + Unpin),
    line: &mut Vec<u8>,
) -> std::io::Result<bool> {
    if input.read_until(b'\n', line).await? == 0 {
        return Ok(false);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    }
    Ok(true)
}

fn options(env: &Env, parsed: &Parsed) -> Result<(ProducerOptions, Properties), Failure> {
    let mut properties = Properties::load(env, parsed, &["command-config", "producer.config"])?;
    properties.add_words(&parsed.values("producer-property"))?;
    properties.add_words(&parsed.values("command-property"))?;
    // What stands on the command line wins over properties; the tool's own defaults do not.
    let mut take = |option: &str, key: &str, default: &str| {
        if parsed.has(option) || properties.get(key).is_none() {
            properties.set(key, parsed.value(option).unwrap_or(default));
        }
    };
    take("request-required-acks", "acks", "-1");
    take("timeout", "linger.ms", "1000");
    take(
        if parsed.has("max-partition-memory-bytes") {
            "max-partition-memory-bytes"
        } else {
            "batch-size"
        },
        "batch.size",
        "16384",
    );
    take("max-memory-bytes", "buffer.memory", "33554432");
    take("max-block-ms", "max.block.ms", "60000");
    take("message-send-max-retries", "retries", "3");
    take(
        "compression-codec",
        "compression.type",
        if parsed.has("compression-codec") { "gzip" } else { "none" },
    );
    for (option, key, default) in [
        ("request-timeout-ms", "request.timeout.ms", "1500"),
        ("retry-backoff-ms", "retry.backoff.ms", "100"),
        ("metadata-expiry-ms", "metadata.max.age.ms", "300000"),
    ] {
        parsed.number::<u64>(option)?;
        take(option, key, default);
    }
    let options = producer_options(&mut properties)?;
    Ok((options, properties))
}

/// Producer settings by Kafka's names.
pub(crate) fn producer_options(properties: &mut Properties) -> Result<ProducerOptions, Failure> {
    if properties.get("transactional.id").is_some() {
        return Err(Failure::Stderr(format!("transactional.id is set, but {TRANSACTIONS}.")));
    }
    let defaults = ProducerOptions::default();
    let acks = match properties.get("acks").as_deref() {
        None | Some("-1" | "all") => Acks::All,
        Some("1") => Acks::Leader,
        Some("0") => Acks::None,
        Some(other) => {
            return Err(Failure::Stderr(format!(
                "Invalid value {other} for configuration acks: String must be one of: all, -1, 0, 1"
            )));
        }
    };
    let compression = match properties.get("compression.type") {
        None => Compression::None,
        Some(name) => {
            let wrong = || {
                Failure::Stderr(format!(
                    "Invalid value {name} for configuration compression.type: must be one of none, \
                     gzip, snappy, lz4, zstd"
                ))
            };
            Compression::from_name(&name).ok_or_else(wrong)?
        }
    };
    Ok(ProducerOptions {
        acks,
        compression,
        idempotence: properties.flag("enable.idempotence")?.unwrap_or(acks == Acks::All),
        linger: properties.millis("linger.ms")?.unwrap_or(defaults.linger),
        batch_bytes: properties.number("batch.size")?.unwrap_or(defaults.batch_bytes),
        in_flight_max: properties
            .number("max.in.flight.requests.per.connection")?
            .unwrap_or(defaults.in_flight_max),
        delivery_timeout: properties
            .millis("delivery.timeout.ms")?
            .unwrap_or(defaults.delivery_timeout),
        block_max: properties.millis("max.block.ms")?.unwrap_or(defaults.block_max),
        buffer_bytes: properties.number("buffer.memory")?.unwrap_or(defaults.buffer_bytes),
        retries: properties.number("retries")?.unwrap_or(defaults.retries),
        record_bytes_max: properties
            .number("max.request.size")?
            .unwrap_or(defaults.record_bytes_max),
    })
}

/// How a line becomes a record.
#[derive(Debug)]
struct LineReader {
    parse_key: bool,
    parse_headers: bool,
    ignore_error: bool,
    key_separator: String,
    headers_delimiter: String,
    headers_separator: String,
    headers_key_separator: String,
    null_marker: Option<String>,
}

impl LineReader {
    fn new(env: &Env, parsed: &Parsed) -> Result<Self, Failure> {
        const CLASS: [&str; 2] = [
            "org.apache.kafka.tools.LineMessageReader",
            "kafka.tools.ConsoleProducer$LineMessageReader",
        ];
        if let Some(class) = parsed.value("line-reader").filter(|class| !CLASS.contains(class)) {
            return Err(Failure::Stderr(format!(
                "the line reader {class} is not supported; use {}",
                CLASS[0]
            )));
        }
        let mut properties = BTreeMap::new();
        if let Some(file) = parsed.value("reader-config") {
            properties.extend(read_properties(env, file)?);
        }
        for word in parsed.values("property").into_iter().chain(parsed.values("reader-property")) {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            properties.insert(key.trim().to_owned(), value.to_owned());
        }
        let mut take = |key: &str| properties.remove(key);
        let flag = |value: Option<String>| {
            value.is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
        };
        let unescape = |value: Option<String>, default: &str| {
            value.map_or_else(|| default.to_owned(), |value| value.replace("\\t", "\t"))
        };
        let reader = Self {
            parse_key: flag(take("parse.key")),
            parse_headers: flag(take("parse.headers")),
            ignore_error: flag(take("ignore.error")),
            key_separator: unescape(take("key.separator"), "\t"),
            headers_delimiter: unescape(take("headers.delimiter"), "\t"),
            headers_separator: unescape(take("headers.separator"), ","),
            headers_key_separator: unescape(take("headers.key.separator"), ":"),
            null_marker: take("null.marker"),
        };
        if let Some(key) = properties.keys().next() {
            return Err(Failure::Stderr(format!("the reader property {key} is not supported")));
        }
        if [
            &reader.key_separator,
            &reader.headers_delimiter,
            &reader.headers_separator,
            &reader.headers_key_separator,
        ]
        .iter()
        .any(|s| s.is_empty())
        {
            return Err(Failure::Stderr("separators and delimiters must not be empty".to_owned()));
        }
        Ok(reader)
    }

    fn record(&self, topic: &str, line: &[u8], number: u64) -> Result<ProducerRecord, String> {
        let mut record = ProducerRecord::new(topic);
        let mut rest = line;
        let missing = |what: &str| {
            format!(
                "org.apache.kafka.common.KafkaException: No {what} found on line number {number}: \
                 '{}'",
                String::from_utf8_lossy(line)
            )
        };
        if self.parse_headers {
            match split(rest, self.headers_delimiter.as_bytes()) {
                Some((headers, after)) => {
                    record.headers = self.headers(headers, number)?;
                    rest = after;
                }
                None if self.ignore_error => {}
                None => return Err(missing("headers delimiter")),
            }
        }
        if self.parse_key {
            match split(rest, self.key_separator.as_bytes()) {
                Some((key, after)) => {
                    record.key = self.field(key);
                    rest = after;
                }
                None if self.ignore_error => {}
                None => return Err(missing("key separator")),
            }
        }
        record.value = self.field(rest);
        Ok(record)
    }

    fn headers(&self, text: &[u8], number: u64) -> Result<Vec<Header>, String> {
        if self.field(text).is_none() {
            return Ok(Vec::new());
        }
        let mut headers = Vec::new();
        let mut rest = Some(text);
        while let Some(part) = rest {
            let (pair, after) = split(part, self.headers_separator.as_bytes())
                .map_or((part, None), |(pair, after)| (pair, Some(after)));
            rest = after;
            match split(pair, self.headers_key_separator.as_bytes()) {
                Some((key, value)) => {
                    if self.null_marker.as_deref().is_some_and(|marker| marker.as_bytes() == key) {
                        return Err(format!(
                            "org.apache.kafka.common.KafkaException: Header keys should not be \
                             equal to the null marker '{}' as they can't be null",
                            self.null_marker.as_deref().unwrap_or_default()
                        ));
                    }
                    headers.push(Header {
                        key: String::from_utf8_lossy(key).into_owned(),
                        value: self.field(value),
                    });
                }
                None if self.ignore_error => headers
                    .push(Header { key: String::from_utf8_lossy(pair).into_owned(), value: None }),
                None => {
                    let pair = String::from_utf8_lossy(pair);
                    return Err(format!(
                        "org.apache.kafka.common.KafkaException: No header key separator found in \
                         pair '{pair}' on line number {number}"
                    ));
                }
            }
        }
        Ok(headers)
    }

    /// `None` for the null marker.
    fn field(&self, bytes: &[u8]) -> Option<bytes::Bytes> {
        if self.null_marker.as_deref().is_some_and(|marker| marker.as_bytes() == bytes) {
            return None;
        }
        Some(bytes::Bytes::copy_from_slice(bytes))
    }
}

/// What is before and after the first `separator`.
fn split<'a>(bytes: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(separator.len()).position(|window| window == separator)?;
    Some((bytes.get(..at)?, bytes.get(at + separator.len()..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(words: &[&str]) -> LineReader {
        let args = words.iter().map(|word| format!("--reader-property={word}"));
        let parsed =
            Grammar::new("", &SPECS).parse(args.chain(["--sync".to_owned()]).collect()).unwrap();
        LineReader::new(&Env::real(), &parsed).unwrap()
    }

    #[test]
    fn lines_become_records() {
        let r = reader(&["parse.key=true", "key.separator=:", "null.marker=NULL"])
            .record("t", b"k:v:w", 1)
            .unwrap();
        assert_eq!(
            (r.key.as_deref(), r.value.as_deref()),
            (Some(b"k".as_slice()), Some(b"v:w".as_slice()))
        );
        let r = reader(&["parse.key=true", "key.separator=:", "null.marker=NULL"])
            .record("t", b"NULL:NULL", 1)
            .unwrap();
        assert_eq!((r.key, r.value), (None, None));
        let r = reader(&["parse.headers=true", "parse.key=true"])
            .record("t", b"a:1,b:2,a:3\tk\tv", 1)
            .unwrap();
        assert_eq!(
            r.headers.iter().map(|h| (h.key.as_str(), h.value.as_deref())).collect::<Vec<_>>(),
            [
                ("a", Some(b"1".as_slice())),
                ("b", Some(b"2".as_slice())),
                ("a", Some(b"3".as_slice()))
            ]
        );
        assert_eq!(
            (r.key.as_deref(), r.value.as_deref()),
            (Some(b"k".as_slice()), Some(b"v".as_slice()))
        );
        let why = reader(&["parse.key=true"]).record("t", b"nokey", 7).unwrap_err();
        assert_eq!(
            why,
            "org.apache.kafka.common.KafkaException: No key separator found on line number 7: \
             'nokey'"
        );
        let r = reader(&["parse.key=true", "ignore.error=true"]).record("t", b"nokey", 7).unwrap();
        assert_eq!((r.key, r.value.as_deref()), (None, Some(b"nokey".as_slice())));
    }
}
