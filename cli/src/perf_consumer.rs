//! `kafka-consumer-perf-test`.

use std::io::Write;
use std::time::Duration;

use letterbox_client::{Client, Consumer, ConsumerRecord, TopicPartition};
use letterbox_env::Env;
use tokio::time::Instant;

use crate::args::{Grammar, Parsed, Spec, Takes};
use crate::connect::Properties;
use crate::console_consumer::consumer_options;
use crate::failure::Failure;
use crate::metrics::{self, Metric};

const SPECS: [Spec; 17] = [
    (
        "command-property",
        Takes::Values("String: prop1=val1"),
        "A consumer setting. May be repeated.",
    ),
    ("consumer.config", Takes::Value("String: config file"), "(DEPRECATED) Use --command-config."),
    ("date-format", Takes::Refused, ""),
    (
        "fetch-size",
        Takes::Value("Integer: size"),
        "Bytes to fetch from one partition in one request. (default: 1048576)",
    ),
    ("from-latest", Takes::Nothing, "Start with the latest record instead of the earliest."),
    ("group", Takes::Value("String: gid"), "The consumer group. Without it, no group is used."),
    ("hide-header", Takes::Nothing, "Do not print the column names."),
    ("include", Takes::Refused, ""),
    ("messages", Takes::Value("Long: count"), "(DEPRECATED) Use --num-records."),
    ("num-records", Takes::Value("Long: count"), "REQUIRED: Number of records to read."),
    ("print-metrics", Takes::Nothing, "Print the metrics of the consumer at the end."),
    (
        "reporting-interval",
        Takes::Value("Long: interval_ms"),
        "Milliseconds between the reports of --show-detailed-stats. (default: 5000)",
    ),
    (
        "show-detailed-stats",
        Takes::Nothing,
        "Report each interval instead of the total at the end.",
    ),
    ("socket-buffer-size", Takes::Refused, ""),
    ("threads", Takes::Refused, ""),
    (
        "timeout",
        Takes::Value("Long: milliseconds"),
        "Milliseconds to wait for the next record before exiting. (default: 10000)",
    ),
    ("topic", Takes::Value("String: topic"), "REQUIRED: The topic to read."),
];

/// Runs the tool.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let parsed = Grammar::new("This tool is used to verify the consumer performance.", &SPECS)
        .parse(args)?;
    let bootstrap = parsed.required("bootstrap-server")?.to_owned();
    let topic = parsed.required("topic")?.to_owned();
    parsed.exactly_one(
        &["num-records", "messages"],
        "Exactly one of the following arguments is required: [num-records], [messages]",
    )?;
    parsed.excludes("consumer.config", &["command-config"])?;
    for (old, new) in [("messages", "num-records"), ("consumer.config", "command-config")] {
        if parsed.has(old) {
            writeln!(out, "Warning: --{old} is deprecated. Use --{new} instead.")?;
        }
    }
    let wanted = Wanted::new(&parsed)?;
    let mut properties = settings(env, &parsed)?;
    let options = consumer_options(&mut properties)?;
    let client = properties.connect(env, &bootstrap, "perf-consumer-client", None, err).await?;
    let in_group = options.group.is_some();
    let mut consumer = Consumer::new(&client, options);
    if !parsed.has("hide-header") {
        let times = if parsed.has("show-detailed-stats") {
            "time, threadId"
        } else {
            "start.time, end.time"
        };
        let names = "data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, nMsg.sec, \
            rebalance.time.ms, fetch.time.ms, fetch.MB.sec, fetch.nMsg.sec";
        writeln!(out, "{times}, {names}")?;
    }
    let (began, began_ms) = (Instant::now(), env.clock.wall_ms());
    if in_group {
        consumer.subscribe([topic])?;
    } else {
        assign(&client, &mut consumer, topic).await?;
    }
    let read = read(env, &mut consumer, &wanted, out).await?;
    let elapsed = began.elapsed();
    if read.count < wanted.count {
        writeln!(
            out,
            "WARNING: Exiting before consuming the expected number of records: timeout ({} ms) \
             exceeded. You can use the --timeout option to increase the timeout.",
            wanted.timeout.as_millis()
        )?;
    }
    let (joins, assigned) = (consumer.joins(), consumer.assignment().len());
    consumer.close().await?;
    if wanted.report_every.is_none() {
        writeln!(out, "{}", line(began_ms, env.clock.wall_ms(), elapsed, read))?;
    }
    if parsed.has("print-metrics") {
        let metrics = metrics(read, elapsed, joins, u64::try_from(assigned).unwrap_or(0));
        metrics::print(&client.options().client_id, &metrics, out)?;
    }
    Ok(0)
}

/// How much is read, and what is printed meanwhile.
struct Wanted {
    count: u64,
    /// How long to wait between records.
    timeout: Duration,
    /// `None`: only the whole at the end.
    report_every: Option<Duration>,
}

impl Wanted {
    fn new(parsed: &Parsed) -> Result<Self, Failure> {
        let count = parsed.number("num-records")?.or(parsed.number("messages")?).unwrap_or(0);
        let timeout = Duration::from_millis(parsed.number("timeout")?.unwrap_or(10_000));
        let interval: u64 = parsed.number("reporting-interval")?.unwrap_or(5000);
        if interval == 0 {
            return Err(parsed.wrong("Reporting interval must be greater than 0."));
        }
        let detailed = parsed.has("show-detailed-stats");
        let report_every = detailed.then(|| Duration::from_millis(interval));
        Ok(Self { count, timeout, report_every })
    }
}

fn settings(env: &Env, parsed: &Parsed) -> Result<Properties, Failure> {
    let mut properties = Properties::load(env, parsed, &["command-config", "consumer.config"])?;
    properties.add_words(&parsed.values("command-property"))?;
    if let Some(group) = parsed.value("group") {
        properties.set("group.id", group);
    }
    if let Some(size) = parsed.value("fetch-size") {
        properties.set("max.partition.fetch.bytes", size);
    }
    let reset = if parsed.has("from-latest") { "latest" } else { "earliest" };
    properties.set("auto.offset.reset", reset);
    Ok(properties)
}

/// Gives `consumer`, which is in no group, all partitions of `topic`.
async fn assign(client: &Client, consumer: &mut Consumer, topic: String) -> Result<(), Failure> {
    let metadata = client.metadata(Some(std::slice::from_ref(&topic))).await?;
    let partitions = metadata
        .topics
        .values()
        .filter(|found| found.error.is_none())
        .flat_map(|found| found.partitions.keys());
    consumer.assign(partitions.map(|id| TopicPartition::new(topic.clone(), *id)));
    Ok(())
}

/// What was read.
#[derive(Clone, Copy, Default)]
struct Read {
    count: u64,
    /// Of keys and values.
    bytes: u64,
    /// How long joining the group took.
    joining: Duration,
}

impl Read {
    fn add(&mut self, record: &ConsumerRecord) {
        let part = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
        let bytes = part(&record.key).saturating_add(part(&record.value));
        self.bytes = self.bytes.saturating_add(u64::try_from(bytes).unwrap_or(0));
        self.count += 1;
    }

    /// What was read after `earlier`.
    fn since(self, earlier: Self) -> Self {
        Self {
            count: self.count.saturating_sub(earlier.count),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            joining: self.joining.saturating_sub(earlier.joining),
        }
    }
}

/// Reads until there are enough records, or none came for too long.
async fn read(
    env: &Env,
    consumer: &mut Consumer,
    wanted: &Wanted,
    out: &mut (dyn Write + Send),
) -> Result<Read, Failure> {
    let mut read = Read::default();
    let mut last = Instant::now();
    let mut reported = (Instant::now(), read);
    while read.count < wanted.count && last.elapsed() < wanted.timeout {
        let joins = consumer.joins();
        let before = Instant::now();
        let wait = wanted.timeout.saturating_sub(last.elapsed()).min(Duration::from_millis(100));
        let records = consumer.poll(wait).await?;
        if consumer.joins() > joins {
            read.joining += before.elapsed();
        }
        if records.is_empty() {
            continue;
        }
        last = Instant::now();
        for record in &records {
            read.add(record);
            let (at, earlier) = reported;
            if wanted.report_every.is_some_and(|interval| at.elapsed() >= interval) {
                let (now, mib) = (date(env.clock.wall_ms()), mib(read.bytes));
                let rates = rates(at.elapsed(), read.since(earlier), read.count);
                writeln!(out, "{now}, 0, {mib:.4}, {rates}")?;
                out.flush()?;
                reported = (Instant::now(), read);
            }
        }
    }
    Ok(read)
}

/// By the names of Kafka's consumer. A rate is over the whole run.
#[allow(clippy::cast_precision_loss, reason = "printed with three digits")]
fn metrics(read: Read, elapsed: Duration, joins: u64, assigned: u64) -> [Metric; 6] {
    let [count, bytes, joins, assigned] =
        [read.count, read.bytes, joins, assigned].map(|number| number as f64);
    let seconds = elapsed.as_secs_f64().max(0.001);
    [
        ("consumer-coordinator-metrics", "assigned-partitions", assigned),
        ("consumer-coordinator-metrics", "join-total", joins),
        ("consumer-fetch-manager-metrics", "bytes-consumed-rate", bytes / seconds),
        ("consumer-fetch-manager-metrics", "bytes-consumed-total", bytes),
        ("consumer-fetch-manager-metrics", "records-consumed-rate", count / seconds),
        ("consumer-fetch-manager-metrics", "records-consumed-total", count),
    ]
}

fn line(began_ms: i64, ended_ms: i64, elapsed: Duration, read: Read) -> String {
    format!(
        "{}, {}, {:.4}, {}",
        date(began_ms),
        date(ended_ms),
        mib(read.bytes),
        rates(elapsed, read, read.count)
    )
}

/// The columns from MB.sec on for what was `read` in `elapsed`, with `shown` as the number of
/// records.
#[allow(clippy::cast_precision_loss, reason = "printed with four digits")]
fn rates(elapsed: Duration, read: Read, shown: u64) -> String {
    let (mib, count) = (mib(read.bytes), read.count as f64);
    let fetching = elapsed.saturating_sub(read.joining);
    let seconds = elapsed.as_secs_f64().max(0.001);
    let fetch_seconds = fetching.as_secs_f64().max(0.001);
    format!(
        "{:.4}, {shown}, {:.4}, {}, {}, {:.4}, {:.4}",
        mib / seconds,
        count / seconds,
        read.joining.as_millis(),
        fetching.as_millis(),
        mib / fetch_seconds,
        count / fetch_seconds,
    )
}

#[allow(clippy::cast_precision_loss, reason = "printed with four digits")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

/// `yyyy-MM-dd HH:mm:ss:SSS` in UTC.
fn date(ms: i64) -> String {
    let (days, rest) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // Days since 0000-03-01 in the Gregorian calendar, so that leap days come last.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}:{:03}", rest % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_lines_are_those_of_kafka() {
        assert_eq!(date(0), "1970-01-01 00:00:00:000");
        assert_eq!(date(1_709_209_815_250), "2024-02-29 12:30:15:250");
        assert_eq!(date(951_868_799_999), "2000-02-29 23:59:59:999");
        let read = Read { count: 10, bytes: 1_048_576, joining: Duration::from_secs(1) };
        let printed = line(0, 2000, Duration::from_secs(2), read);
        assert_eq!(
            printed,
            "1970-01-01 00:00:00:000, 1970-01-01 00:00:02:000, 1.0000, 0.5000, 10, 5.0000, 1000, \
             1000, 1.0000, 10.0000"
        );
    }
}
