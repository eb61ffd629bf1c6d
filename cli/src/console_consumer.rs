//! `kafka-console-consumer`.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::time::Duration;

use letterbox_client::{
    AutoOffsetReset, Client, Consumer, ConsumerOptions, ConsumerRecord, GroupOptions,
    IsolationLevel, OffsetSpec, TopicPartition,
};
use letterbox_env::{Env, Gather};
use tokio::time::Instant;

use crate::args::{Grammar, Parsed, Spec, Takes};
use crate::connect::Properties;
use crate::failure::{Failure, plain};
use crate::formatters::Formatter;
use crate::pattern::Pattern;

const DESERIALIZERS: &str = "A deserializer of org.apache.kafka.common.serialization: String, \
    ByteArray, Bytes, Boolean, Short, Integer, Long, Float, Double, UUID or Void.";

pub(crate) const SPECS: [Spec; 20] = [
    (
        "command-property",
        Takes::Values("String: consumer_prop"),
        "A consumer setting as key=value. May be repeated.",
    ),
    (
        "consumer-property",
        Takes::Values("String: consumer_prop"),
        "(DEPRECATED) Use --command-property.",
    ),
    ("consumer.config", Takes::Value("String: config file"), "(DEPRECATED) Use --command-config."),
    ("enable-systest-events", Takes::Nothing, "Print shutdown_complete before exiting."),
    (
        "formatter",
        Takes::Value("String: class"),
        "Formatter class of org.apache.kafka.tools.consumer: DefaultMessageFormatter, \
         LoggingMessageFormatter (prints the same), NoOpMessageFormatter (prints nothing), \
         OffsetsMessageFormatter or GroupMetadataMessageFormatter (for __consumer_offsets). \
         (default: DefaultMessageFormatter)",
    ),
    ("formatter-config", Takes::Value("String: config file"), "Property file for the formatter."),
    (
        "formatter-property",
        Takes::Values("String: prop"),
        "A property of the formatter: print.timestamp, print.partition, print.offset, \
         print.delivery, print.epoch, print.headers, print.key, print.value, key.separator, \
         line.separator, headers.separator, null.literal, key.deserializer, value.deserializer, \
         headers.deserializer.",
    ),
    (
        "from-beginning",
        Takes::Nothing,
        "Start with the earliest record if the group has no committed offset.",
    ),
    (
        "group",
        Takes::Value("String: consumer group id"),
        "The consumer group. Without it, no group is used.",
    ),
    (
        "include",
        Takes::Value("String: Java regex"),
        "Regular expression for the topics to read. Only topics that exist when the tool starts \
         are read.",
    ),
    (
        "isolation-level",
        Takes::Value("String"),
        "read_committed or read_uncommitted. (default: read_uncommitted)",
    ),
    ("key-deserializer", Takes::Value("String: deserializer for keys"), DESERIALIZERS),
    ("max-messages", Takes::Value("Integer: num_messages"), "Exit after this many records."),
    (
        "offset",
        Takes::Value("String: consume offset"),
        "Offset to start from in --partition: a number, earliest or latest. (default: latest)",
    ),
    ("partition", Takes::Value("Integer: partition"), "The partition to read."),
    ("property", Takes::Values("String: prop"), "(DEPRECATED) Use --formatter-property."),
    (
        "skip-message-on-error",
        Takes::Nothing,
        "Skip a record that cannot be printed instead of exiting.",
    ),
    (
        "timeout-ms",
        Takes::Value("Long: timeout_ms"),
        "Exit if no record arrives for this many milliseconds.",
    ),
    ("topic", Takes::Value("String: topic"), "The topic to read."),
    ("value-deserializer", Takes::Value("String: deserializer for values"), DESERIALIZERS),
];

/// Runs the tool until it has what it was asked for, or Ctrl-C.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let about = "This tool helps to read data from Kafka topics and outputs it to standard output.";
    let parsed = Grammar::new(about, &SPECS).parse(args)?;
    let bootstrap = parsed.required("bootstrap-server")?.to_owned();
    check(&parsed)?;
    let pairs = [
        ("property", "formatter-property"),
        ("consumer-property", "command-property"),
        ("consumer.config", "command-config"),
    ];
    parsed.not_together(&pairs)?;
    parsed.warn_deprecated("Option", &pairs, out)?;
    let formatter = Formatter::new(env, &parsed)?;
    let limits = Limits::new(&parsed)?;
    let start = start(&parsed)?;
    let (options, properties) = options(env, &parsed)?;
    let reset = options.offset_reset;
    let client = properties.connect(env, &bootstrap, "console-consumer", None, err).await?;
    let in_group = options.group.is_some();
    let mut consumer = Consumer::new(&client, options);
    if in_group {
        let topics = topics(&client, &parsed).await?;
        consumer.subscribe(topics)?;
    } else {
        assign(&client, &parsed, &mut consumer, start, reset, limits.timeout).await?;
    }
    let mut count = 0;
    let ended = read(&mut consumer, &formatter, &limits, &mut count, out, err).await;
    if let Err(error) = consumer.close().await {
        writeln!(err, "The last commit failed: {}", plain(&error))?;
    }
    writeln!(err, "Processed a total of {count} messages")?;
    if parsed.has("enable-systest-events") {
        writeln!(out, "shutdown_complete")?;
    }
    ended.map(|()| 0)
}

fn check(parsed: &Parsed) -> Result<(), Failure> {
    parsed.exactly_one(
        &["topic", "include"],
        "Exactly one of the following arguments is required: [topic], [include]",
    )?;
    if parsed.has("partition") && !parsed.has("topic") {
        return Err(parsed.wrong("The topic is required when partition is specified."));
    }
    if parsed.has("offset") && !parsed.has("partition") {
        return Err(parsed.wrong("The partition is required when offset is specified."));
    }
    if parsed.has("offset") && parsed.has("from-beginning") {
        return Err(parsed.wrong("Options from-beginning and offset cannot be specified together."));
    }
    if parsed.has("partition") && parsed.has("group") {
        return Err(parsed.wrong("Options group and partition cannot be specified together."));
    }
    Ok(())
}

/// When reading ends, and what does not end it.
struct Limits {
    /// After so many records.
    max: Option<u64>,
    /// When no record came for so long.
    timeout: Option<Duration>,
    /// Whether a record that cannot be printed is left out.
    skip_errors: bool,
}

impl Limits {
    fn new(parsed: &Parsed) -> Result<Self, Failure> {
        Ok(Self {
            max: parsed.number::<i64>("max-messages")?.and_then(|max| u64::try_from(max).ok()),
            timeout: parsed.number("timeout-ms")?.map(Duration::from_millis),
            skip_errors: parsed.has("skip-message-on-error"),
        })
    }
}

/// Prints records until a limit or Ctrl-C; `count` grows by each.
async fn read(
    consumer: &mut Consumer,
    formatter: &Formatter,
    limits: &Limits,
    count: &mut u64,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let terminating = |why: String| {
        Failure::Stderr(format!("Error processing message, terminating consumer process: {why}"))
    };
    let not_printed = |error: std::io::Error| match error.kind() {
        ErrorKind::InvalidData => terminating(error.to_string()),
        _ => Failure::Output(error),
    };
    let mut last_record = Instant::now();
    while limits.max.is_none_or(|max| *count < max) {
        let wait = limits.timeout.map_or(Duration::from_millis(500), |timeout| {
            timeout.saturating_sub(last_record.elapsed())
        });
        let polled = tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => return Ok(()),
            polled = consumer.poll(wait) => polled,
        };
        let records = polled.map_err(|error| terminating(plain(&error)))?;
        if records.is_empty() {
            if limits.timeout.is_some_and(|timeout| last_record.elapsed() >= timeout) {
                return Ok(());
            }
            continue;
        }
        let (wanted, rest) = records.split_at(room(limits.max, *count).min(records.len()));
        // What is not printed stays for the next reader of the group.
        rewind(consumer, rest)?;
        for record in wanted {
            match formatter.write(record, out) {
                Err(error) if error.kind() == ErrorKind::InvalidData && limits.skip_errors => {
                    writeln!(err, "Error processing message, skipping this message: {error}")?;
                }
                written => written.map_err(not_printed)?,
            }
            *count += 1;
        }
        out.flush().map_err(not_printed)?;
        last_record = Instant::now();
    }
    Ok(())
}

/// How many records may still be taken after the first `count`.
pub(crate) fn room(max: Option<u64>, count: u64) -> usize {
    max.map_or(usize::MAX, |max| usize::try_from(max.saturating_sub(count)).unwrap_or(usize::MAX))
}

fn rewind(consumer: &mut Consumer, unread: &[ConsumerRecord]) -> Result<(), Failure> {
    let mut first: BTreeMap<TopicPartition, i64> = BTreeMap::new();
    for record in unread {
        first
            .entry(TopicPartition::new(record.topic.clone(), record.partition))
            .or_insert(record.offset);
    }
    for (partition, offset) in first {
        consumer.seek(&partition, offset)?;
    }
    Ok(())
}

/// Where reading `--partition` begins.
#[derive(Clone, Copy)]
enum Start {
    Reset,
    Spec(OffsetSpec),
    Offset(i64),
}

fn start(parsed: &Parsed) -> Result<Start, Failure> {
    match parsed.value("offset") {
        None => Ok(Start::Reset),
        Some("earliest") => Ok(Start::Spec(OffsetSpec::Earliest)),
        Some("latest") => Ok(Start::Spec(OffsetSpec::Latest)),
        Some(text) => match text.parse() {
            Ok(offset) if offset >= 0 => Ok(Start::Offset(offset)),
            _ => Err(parsed.wrong(format!(
                "The provided offset value '{text}' is incorrect. Valid values are 'earliest', \
                 'latest', or a non-negative long."
            ))),
        },
    }
}

/// The topics that `--topic` or `--include` means.
pub(crate) async fn topics(client: &Client, parsed: &Parsed) -> Result<Vec<String>, Failure> {
    match parsed.value("include") {
        None => Ok(vec![parsed.required("topic")?.to_owned()]),
        Some(text) => {
            let pattern = Pattern::parse(text)
                .map_err(|why| parsed.wrong(format!("{text} is an invalid regex: {why}")))?;
            let metadata = client.metadata(None).await?;
            Ok(metadata
                .topics
                .into_values()
                .filter(|topic| !topic.is_internal && pattern.matches(&topic.name))
                .map(|topic| topic.name)
                .collect())
        }
    }
}

/// Without a group nobody else can tell the difference between a group of its own and none, and
/// none starts at once.
async fn assign(
    client: &Client,
    parsed: &Parsed,
    consumer: &mut Consumer,
    start: Start,
    reset: AutoOffsetReset,
    timeout: Option<Duration>,
) -> Result<(), Failure> {
    let wanted = topics(client, parsed).await?;
    let began = Instant::now();
    loop {
        let mut metadata = client.metadata(Some(&wanted)).await?;
        if let [topic] = wanted.as_slice()
            && metadata.topics.get(topic).is_none_or(|found| found.error.is_some())
        {
            metadata = client.metadata_creating(topic).await?;
        }
        let found = metadata.topics.values().filter(|topic| topic.error.is_none());
        let partitions: Vec<TopicPartition> = match parsed.number::<i32>("partition")? {
            Some(id) => found
                .filter(|topic| topic.partitions.contains_key(&id))
                .map(|topic| TopicPartition::new(topic.name.clone(), id))
                .collect(),
            None => found
                .flat_map(|topic| {
                    topic.partitions.keys().map(|id| TopicPartition::new(topic.name.clone(), *id))
                })
                .collect(),
        };
        if !partitions.is_empty() {
            consumer.assign(partitions.iter().cloned());
            let offsets = match (start, reset) {
                (Start::Offset(offset), _) => {
                    partitions.iter().map(|partition| (partition.clone(), offset)).gather()
                }
                (Start::Spec(spec), _) => positions(client, &partitions, spec).await?,
                (Start::Reset, AutoOffsetReset::Earliest) => {
                    positions(client, &partitions, OffsetSpec::Earliest).await?
                }
                (Start::Reset, AutoOffsetReset::Latest) => {
                    positions(client, &partitions, OffsetSpec::Latest).await?
                }
                (Start::Reset, AutoOffsetReset::None) => BTreeMap::new(),
            };
            for (partition, offset) in offsets {
                consumer.seek(&partition, offset)?;
            }
            return Ok(());
        }
        // The topic may be on its way, as it is for Kafka's tool.
        if timeout.is_some_and(|timeout| began.elapsed() >= timeout) {
            return Ok(());
        }
        tokio::time::sleep(client.options().retry_backoff).await;
    }
}

async fn positions(
    client: &Client,
    partitions: &[TopicPartition],
    spec: OffsetSpec,
) -> Result<BTreeMap<TopicPartition, i64>, Failure> {
    let wanted = partitions.iter().map(|partition| (partition.clone(), spec)).gather();
    let mut positions = BTreeMap::new();
    for (partition, found) in client.list_offsets(&wanted, IsolationLevel::ReadUncommitted).await? {
        let found = found.map_err(letterbox_client::Error::from)?;
        positions.insert(partition, found.offset.unwrap_or(0));
    }
    Ok(positions)
}

fn options(env: &Env, parsed: &Parsed) -> Result<(ConsumerOptions, Properties), Failure> {
    let mut properties = Properties::load(env, parsed, &["command-config", "consumer.config"])?;
    properties.add_words(&parsed.values("consumer-property"))?;
    properties.add_words(&parsed.values("command-property"))?;
    if let Some(level) = parsed.value("isolation-level") {
        properties.set("isolation.level", level);
    }
    if let Some(group) = parsed.value("group") {
        if properties.get("group.id").is_some_and(|other| other != group) {
            return Err(parsed.wrong(
                "The group ids provided in different places (directly using \
                '--group', via '--command-property', or via '--command-config') do not match.",
            ));
        }
        properties.set("group.id", group);
    }
    if parsed.has("from-beginning") {
        if properties.get("auto.offset.reset").is_some_and(|reset| reset != "earliest") {
            return Err(parsed.wrong(
                "Can't simultaneously specify --from-beginning and \
                    'auto.offset.reset=latest', please remove one option",
            ));
        }
        properties.set("auto.offset.reset", "earliest");
    }
    let options = consumer_options(&mut properties)?;
    Ok((options, properties))
}

/// Consumer settings by Kafka's names.
pub(crate) fn consumer_options(properties: &mut Properties) -> Result<ConsumerOptions, Failure> {
    let defaults = ConsumerOptions::default();
    let wrong = |key: &str, value: &str| {
        Failure::Stderr(format!("Invalid value {value} for configuration {key}"))
    };
    let isolation = match properties.get("isolation.level").as_deref() {
        None | Some("read_uncommitted") => IsolationLevel::ReadUncommitted,
        Some("read_committed") => IsolationLevel::ReadCommitted,
        Some(other) => return Err(wrong("isolation.level", other)),
    };
    let offset_reset = match properties.get("auto.offset.reset").as_deref() {
        None | Some("latest") => AutoOffsetReset::Latest,
        Some("earliest") => AutoOffsetReset::Earliest,
        Some("none") => AutoOffsetReset::None,
        Some(other) => return Err(wrong("auto.offset.reset", other)),
    };
    if let Some(protocol) =
        properties.get("group.protocol").filter(|protocol| protocol != "classic")
    {
        return Err(Failure::Stderr(format!(
            "group.protocol={protocol} is not supported yet; use classic"
        )));
    }
    let auto_commit = properties.flag("enable.auto.commit")?.unwrap_or(true);
    let interval = properties.millis("auto.commit.interval.ms")?.unwrap_or(Duration::from_secs(5));
    let instance_id = properties.get("group.instance.id");
    let (session, heartbeat, poll) = (
        properties.millis("session.timeout.ms")?,
        properties.millis("heartbeat.interval.ms")?,
        properties.millis("max.poll.interval.ms")?,
    );
    let group = properties.get("group.id").map(|id| {
        let base = GroupOptions::new(id);
        GroupOptions {
            instance_id,
            session_timeout: session.unwrap_or(base.session_timeout),
            heartbeat_interval: heartbeat.unwrap_or(base.heartbeat_interval),
            rebalance_timeout: poll.unwrap_or(base.rebalance_timeout),
            auto_commit: auto_commit.then_some(interval),
            ..base
        }
    });
    Ok(ConsumerOptions {
        group,
        isolation,
        offset_reset,
        fetch_min_bytes: properties.number("fetch.min.bytes")?.unwrap_or(defaults.fetch_min_bytes),
        fetch_wait: properties.millis("fetch.max.wait.ms")?.unwrap_or(defaults.fetch_wait),
        fetch_max_bytes: properties.number("fetch.max.bytes")?.unwrap_or(defaults.fetch_max_bytes),
        partition_fetch_bytes: properties
            .number("max.partition.fetch.bytes")?
            .unwrap_or(defaults.partition_fetch_bytes),
        poll_records_max: properties
            .number("max.poll.records")?
            .unwrap_or(defaults.poll_records_max),
    })
}
