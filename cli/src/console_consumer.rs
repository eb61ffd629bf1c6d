//! `kafka-console-consumer`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use letterbox_client::{
    AutoOffsetReset, Client, Consumer, ConsumerOptions, ConsumerRecord, GroupOptions, IsolationLevel, OffsetSpec, TopicPartition,
};
use letterbox_env::Env;
use tokio::time::Instant;

use crate::args::{Grammar, Parsed, Spec, Takes};
use crate::connect::Properties;
use crate::failure::{Failure, plain};
use crate::table::Pattern;

const SPECS: [Spec; 23] = [
    ("command-property", Takes::Values("String: consumer_prop"), "A consumer setting as key=value. May be repeated."),
    ("consumer-property", Takes::Values("String: consumer_prop"), "(DEPRECATED) As --command-property."),
    ("consumer.config", Takes::Value("String: config file"), "(DEPRECATED) As --command-config."),
    ("enable-systest-events", Takes::Refused, ""),
    (
        "formatter",
        Takes::Value("String: class"),
        "The formatter; only the default one is supported. (default: org.apache.kafka.tools.consumer.DefaultMessageFormatter)",
    ),
    ("formatter-config", Takes::Value("String: config file"), "Properties file for the formatter."),
    (
        "formatter-property",
        Takes::Values("String: prop"),
        "A property of the formatter: print.timestamp, print.partition, print.offset, print.epoch, print.headers, print.key, print.value, key.separator, \
         line.separator, headers.separator, null.literal, key.deserializer, value.deserializer.",
    ),
    ("from-beginning", Takes::Nothing, "Begin with the earliest record when the group has no committed offset."),
    ("group", Takes::Value("String: consumer group id"), "The consumer group; none when not given."),
    ("include", Takes::Value("String: Java regex"), "Topics to read, by pattern; those that exist when the tool starts."),
    ("isolation-level", Takes::Value("String"), "read_committed or read_uncommitted. (default: read_uncommitted)"),
    ("key-deserializer", Takes::Value("String: deserializer for keys"), "The String, ByteArray, Integer or Long deserializer."),
    ("max-messages", Takes::Value("Integer: num_messages"), "End after so many records."),
    ("new-consumer", Takes::Refused, ""),
    ("offset", Takes::Value("String: consume offset"), "Where to begin in --partition: a number, earliest or latest. (default: latest)"),
    ("partition", Takes::Value("Integer: partition"), "The partition to read."),
    ("property", Takes::Values("String: prop"), "(DEPRECATED) As --formatter-property."),
    ("skip-message-on-error", Takes::Refused, ""),
    ("timeout-ms", Takes::Value("Long: timeout_ms"), "End when no record came for so long."),
    ("topic", Takes::Value("String: topic"), "The topic to read."),
    ("value-deserializer", Takes::Value("String: deserializer for values"), "The String, ByteArray, Integer or Long deserializer."),
    ("whitelist", Takes::Refused, ""),
    ("zookeeper", Takes::Refused, ""),
];

/// Runs the tool until it has what it was asked for, or Ctrl-C.
pub(crate) async fn run(env: &Env, args: Vec<String>, out: &mut (dyn Write + Send), err: &mut (dyn Write + Send)) -> Result<i32, Failure> {
    let parsed = Grammar::new("This tool helps to read data from Kafka topics and outputs it to standard output.", &SPECS).parse(args)?;
    let bootstrap = parsed.required("bootstrap-server")?.to_owned();
    parsed.exactly_one(&["topic", "include"], "Exactly one of the following arguments is required: [topic], [include]")?;
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
    let pairs = [("property", "formatter-property"), ("consumer-property", "command-property"), ("consumer.config", "command-config")];
    parsed.not_together(&pairs)?;
    parsed.warn_deprecated("Option", &pairs, out)?;
    let formatter = Formatter::new(env, &parsed)?;
    let max: Option<u64> = parsed.number::<i64>("max-messages")?.and_then(|max| u64::try_from(max).ok());
    let timeout: Option<Duration> = parsed.number::<u64>("timeout-ms")?.map(Duration::from_millis);
    let start = start(&parsed)?;
    let (options, properties) = options(env, &parsed)?;
    let reset = options.offset_reset;
    let client = properties.connect(env, &bootstrap, "console-consumer", None).await?;
    let in_group = options.group.is_some();
    let mut consumer = Consumer::new(&client, options);
    if in_group {
        let topics = topics(&client, &parsed).await?;
        consumer.subscribe(topics)?;
    } else {
        assign(&client, &parsed, &mut consumer, start, reset, timeout).await?;
    }
    let mut count = 0u64;
    let mut last_record = Instant::now();
    let ended = loop {
        if max.is_some_and(|max| count >= max) {
            break Ok(());
        }
        let wait = timeout.map_or(Duration::from_millis(500), |timeout| timeout.saturating_sub(last_record.elapsed()));
        let polled = tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => break Ok(()),
            polled = consumer.poll(wait) => polled,
        };
        let records = match polled {
            Ok(records) => records,
            Err(error) => break Err(Failure::Stderr(format!("Error processing message, terminating consumer process: {}", plain(&error)))),
        };
        if records.is_empty() {
            if timeout.is_some_and(|timeout| last_record.elapsed() >= timeout) {
                break Ok(());
            }
            continue;
        }
        let room = max.map_or(usize::MAX, |max| usize::try_from(max - count).unwrap_or(usize::MAX));
        let mut written = Ok(());
        for record in records.iter().take(room) {
            written = formatter.write(record, out);
            if written.is_err() {
                break;
            }
            count += 1;
        }
        if room < records.len() {
            // What was not printed stays for the next reader of the group.
            rewind(&mut consumer, records.get(room..).unwrap_or_default())?;
        }
        if let Err(error) = written.and_then(|()| out.flush()) {
            break Err(Failure::Output(error));
        }
        last_record = Instant::now();
    };
    if let Err(error) = consumer.close().await {
        writeln!(err, "The last commit failed: {}", plain(&error))?;
    }
    writeln!(err, "Processed a total of {count} messages")?;
    ended.map(|()| 0)
}

fn rewind(consumer: &mut Consumer, unread: &[ConsumerRecord]) -> Result<(), Failure> {
    let mut first: BTreeMap<TopicPartition, i64> = BTreeMap::new();
    for record in unread {
        first.entry(TopicPartition::new(record.topic.clone(), record.partition)).or_insert(record.offset);
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
                "The provided offset value '{text}' is incorrect. Valid values are 'earliest', 'latest', or a non-negative long."
            ))),
        },
    }
}

async fn topics(client: &Client, parsed: &Parsed) -> Result<Vec<String>, Failure> {
    match parsed.value("include") {
        None => Ok(vec![parsed.required("topic")?.to_owned()]),
        Some(text) => {
            let pattern = Pattern::parse(text).map_err(|why| parsed.wrong(format!("{text} is an invalid regex: {why}")))?;
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

/// Without a group nobody else can tell the difference between a group of its own and none, and none starts at once.
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
            Some(id) => {
                found.filter(|topic| topic.partitions.contains_key(&id)).map(|topic| TopicPartition::new(topic.name.clone(), id)).collect()
            }
            None => found.flat_map(|topic| topic.partitions.keys().map(|id| TopicPartition::new(topic.name.clone(), *id))).collect(),
        };
        if !partitions.is_empty() {
            consumer.assign(partitions.iter().cloned());
            let offsets = match (start, reset) {
                (Start::Offset(offset), _) => partitions.iter().map(|partition| (partition.clone(), offset)).collect(),
                (Start::Spec(spec), _) => positions(client, &partitions, spec).await?,
                (Start::Reset, AutoOffsetReset::Earliest) => positions(client, &partitions, OffsetSpec::Earliest).await?,
                (Start::Reset, AutoOffsetReset::Latest) => positions(client, &partitions, OffsetSpec::Latest).await?,
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

async fn positions(client: &Client, partitions: &[TopicPartition], spec: OffsetSpec) -> Result<BTreeMap<TopicPartition, i64>, Failure> {
    let wanted = partitions.iter().map(|partition| (partition.clone(), spec)).collect();
    let mut positions = BTreeMap::new();
    for (partition, found) in client.list_offsets(&wanted, IsolationLevel::ReadUncommitted).await? {
        let found = found.map_err(letterbox_client::Error::from)?;
        positions.insert(partition, found.offset.unwrap_or(0));
    }
    Ok(positions)
}

fn options(env: &Env, parsed: &Parsed) -> Result<(ConsumerOptions, Properties), Failure> {
    let mut properties = Properties::load(env, parsed.value("command-config").or(parsed.value("consumer.config")))?;
    properties.add_words(&parsed.values("consumer-property"))?;
    properties.add_words(&parsed.values("command-property"))?;
    if let Some(level) = parsed.value("isolation-level") {
        properties.set("isolation.level", level);
    }
    if let Some(group) = parsed.value("group") {
        if properties.get("group.id").is_some_and(|other| other != group) {
            return Err(parsed.wrong("The group ids provided in different places (directly using '--group', via '--command-property', or via '--command-config') do not match."));
        }
        properties.set("group.id", group);
    }
    if parsed.has("from-beginning") {
        if properties.get("auto.offset.reset").is_some_and(|reset| reset != "earliest") {
            return Err(
                parsed.wrong("Can't simultaneously specify --from-beginning and 'auto.offset.reset=latest', please remove one option")
            );
        }
        properties.set("auto.offset.reset", "earliest");
    }
    let options = consumer_options(&mut properties)?;
    Ok((options, properties))
}

/// Consumer settings by Kafka's names.
pub(crate) fn consumer_options(properties: &mut Properties) -> Result<ConsumerOptions, Failure> {
    let defaults = ConsumerOptions::default();
    let wrong = |key: &str, value: &str| Failure::Stderr(format!("Invalid value {value} for configuration {key}"));
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
    if let Some(protocol) = properties.get("group.protocol").filter(|protocol| protocol != "classic") {
        return Err(Failure::Stderr(format!("group.protocol={protocol} is not supported yet; classic is")));
    }
    let auto_commit = properties.flag("enable.auto.commit")?.unwrap_or(true);
    let interval = properties.millis("auto.commit.interval.ms")?.unwrap_or(Duration::from_secs(5));
    let instance_id = properties.get("group.instance.id");
    let (session, heartbeat, poll) =
        (properties.millis("session.timeout.ms")?, properties.millis("heartbeat.interval.ms")?, properties.millis("max.poll.interval.ms")?);
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
        partition_fetch_bytes: properties.number("max.partition.fetch.bytes")?.unwrap_or(defaults.partition_fetch_bytes),
        poll_records_max: properties.number("max.poll.records")?.unwrap_or(defaults.poll_records_max),
    })
}

/// How bytes are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Show {
    Raw,
    Integer,
    Long,
}

impl Show {
    fn of(class: Option<&str>) -> Result<Self, Failure> {
        let Some(class) = class else { return Ok(Self::Raw) };
        match class.strip_prefix("org.apache.kafka.common.serialization.").unwrap_or(class) {
            "StringDeserializer" | "ByteArrayDeserializer" | "BytesDeserializer" => Ok(Self::Raw),
            "IntegerDeserializer" => Ok(Self::Integer),
            "LongDeserializer" => Ok(Self::Long),
            _ => Err(Failure::Stderr(format!("the deserializer {class} is not supported; String, ByteArray, Integer and Long are"))),
        }
    }

    fn write(self, bytes: &[u8], out: &mut (dyn Write + Send)) -> std::io::Result<()> {
        let wrong = |size: usize| std::io::Error::other(format!("Size of data received by the deserializer is not {size}"));
        match self {
            Self::Raw => out.write_all(bytes),
            Self::Integer => write!(out, "{}", i32::from_be_bytes(bytes.try_into().map_err(|_| wrong(4))?)),
            Self::Long => write!(out, "{}", i64::from_be_bytes(bytes.try_into().map_err(|_| wrong(8))?)),
        }
    }
}

/// How a record becomes a line.
struct Formatter {
    timestamp: bool,
    partition: bool,
    offset: bool,
    epoch: bool,
    headers: bool,
    key: bool,
    value: bool,
    key_separator: Vec<u8>,
    line_separator: Vec<u8>,
    headers_separator: Vec<u8>,
    null_literal: Vec<u8>,
    show_key: Show,
    show_value: Show,
}

impl Formatter {
    fn new(env: &Env, parsed: &Parsed) -> Result<Self, Failure> {
        const DEFAULT: [&str; 2] = ["org.apache.kafka.tools.consumer.DefaultMessageFormatter", "kafka.tools.DefaultMessageFormatter"];
        if let Some(class) = parsed.value("formatter").filter(|class| !DEFAULT.contains(class)) {
            return Err(Failure::Stderr(format!("the formatter {class} is not supported yet; {} is", DEFAULT[0])));
        }
        let mut properties = BTreeMap::new();
        if let Some(file) = parsed.value("formatter-config") {
            let bytes = env.disk.read(Path::new(file)).map_err(|error| Failure::Stderr(format!("cannot read {file}: {error}")))?;
            for line in String::from_utf8_lossy(&bytes).lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
                let (key, value) = line.split_once('=').unwrap_or((line, ""));
                properties.insert(key.trim().to_owned(), value.to_owned());
            }
        }
        for word in parsed.values("property").into_iter().chain(parsed.values("formatter-property")) {
            let (key, value) = word.split_once('=').ok_or_else(|| Failure::Stderr(format!("{word:?} is not of the form key=value")))?;
            properties.insert(key.trim().to_owned(), value.to_owned());
        }
        for (option, key) in [("key-deserializer", "key.deserializer"), ("value-deserializer", "value.deserializer")] {
            if let Some(class) = parsed.value(option) {
                properties.insert(key.to_owned(), class.to_owned());
            }
        }
        let mut take = |key: &str| properties.remove(key);
        let flag = |value: Option<String>, default: bool| value.map_or(default, |value| value.trim().eq_ignore_ascii_case("true"));
        let bytes = |value: Option<String>, default: &str| {
            value.map_or_else(|| default.to_owned(), |value| value.replace("\\t", "\t").replace("\\n", "\n")).into_bytes()
        };
        let formatter = Self {
            timestamp: flag(take("print.timestamp"), false),
            partition: flag(take("print.partition"), false),
            offset: flag(take("print.offset"), false),
            epoch: flag(take("print.epoch"), false),
            headers: flag(take("print.headers"), false),
            key: flag(take("print.key"), false),
            value: flag(take("print.value"), true),
            key_separator: bytes(take("key.separator"), "\t"),
            line_separator: bytes(take("line.separator"), "\n"),
            headers_separator: bytes(take("headers.separator"), ","),
            null_literal: bytes(take("null.literal"), "null"),
            show_key: Show::of(take("key.deserializer").as_deref())?,
            show_value: Show::of(take("value.deserializer").as_deref())?,
        };
        match properties.keys().next() {
            Some(key) => Err(Failure::Stderr(format!("the formatter property {key} is not supported"))),
            None => Ok(formatter),
        }
    }

    fn write(&self, record: &ConsumerRecord, out: &mut (dyn Write + Send)) -> std::io::Result<()> {
        let fields = [self.timestamp, self.partition, self.offset, self.epoch, self.headers, self.key, self.value];
        let last = fields.iter().rposition(|wanted| *wanted);
        for (index, _) in fields.iter().enumerate().filter(|(_, wanted)| **wanted) {
            match index {
                0 if record.timestamp < 0 => write!(out, "NO_TIMESTAMP")?,
                0 => write!(out, "{}:{}", if record.log_append_time { "LogAppendTime" } else { "CreateTime" }, record.timestamp)?,
                1 => write!(out, "Partition:{}", record.partition)?,
                2 => write!(out, "Offset:{}", record.offset)?,
                3 if record.leader_epoch < 0 => write!(out, "Epoch:NOT_PRESENT")?,
                3 => write!(out, "Epoch:{}", record.leader_epoch)?,
                4 => self.write_headers(record, out)?,
                5 => self.write_field(record.key.as_deref(), self.show_key, out)?,
                _ => self.write_field(record.value.as_deref(), self.show_value, out)?,
            }
            out.write_all(if Some(index) == last { &self.line_separator } else { &self.key_separator })?;
        }
        Ok(())
    }

    fn write_headers(&self, record: &ConsumerRecord, out: &mut (dyn Write + Send)) -> std::io::Result<()> {
        if record.headers.is_empty() {
            return write!(out, "NO_HEADERS");
        }
        for (index, header) in record.headers.iter().enumerate() {
            if index > 0 {
                out.write_all(&self.headers_separator)?;
            }
            write!(out, "{}:", header.key)?;
            self.write_field(header.value.as_deref(), Show::Raw, out)?;
        }
        Ok(())
    }

    fn write_field(&self, bytes: Option<&[u8]>, show: Show, out: &mut (dyn Write + Send)) -> std::io::Result<()> {
        match bytes {
            Some(bytes) => show.write(bytes, out),
            None => out.write_all(&self.null_literal),
        }
    }
}

#[cfg(test)]
mod tests {
    use letterbox_client::record::Header;

    use super::*;

    fn printed(words: &[&str]) -> String {
        let args = words.iter().map(|word| format!("--formatter-property={word}"));
        let parsed = Grammar::new("", &SPECS).parse(args.chain(["--from-beginning".to_owned()]).collect()).unwrap();
        let record = ConsumerRecord {
            topic: "t".to_owned(),
            partition: 2,
            offset: 9,
            leader_epoch: -1,
            timestamp: 1234,
            log_append_time: false,
            key: None,
            value: Some("v".into()),
            headers: vec![Header { key: "a".to_owned(), value: Some("1".into()) }, Header { key: "b".to_owned(), value: None }],
        };
        let mut out = Vec::new();
        Formatter::new(&Env::real(), &parsed).unwrap().write(&record, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn records_are_printed_in_kafkas_order_of_fields() {
        assert_eq!(printed(&[]), "v\n");
        let all = [
            "print.timestamp=true",
            "print.partition=true",
            "print.offset=true",
            "print.epoch=true",
            "print.headers=true",
            "print.key=true",
        ];
        assert_eq!(printed(&all), "CreateTime:1234\tPartition:2\tOffset:9\tEpoch:NOT_PRESENT\ta:1,b:null\tnull\tv\n");
        assert_eq!(printed(&["print.key=true", "print.value=false", "null.literal=-", "line.separator=|"]), "-|");
    }
}
