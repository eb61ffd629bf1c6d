//! `kafka-consumer-perf-test`.

use std::io::Write;
use std::time::Duration;

use letterbox_client::{Client, Consumer, ConsumerRecord, TopicPartition};
use letterbox_env::Env;
use tokio::time::Instant;

use crate::args::{Grammar, Parsed, Spec, Takes};
use crate::connect::Properties;
use crate::console_consumer::{consumer_options, topics};
use crate::failure::Failure;
use crate::metrics::{self, Metric};

const SPECS: [Spec; 16] = [
    (
        "command-property",
        Takes::Values("String: prop1=val1"),
        "A consumer setting. May be repeated.",
    ),
    ("consumer.config", Takes::Value("String: config file"), "(DEPRECATED) Use --command-config."),
    (
        "date-format",
        Takes::Value("String: date format"),
        "How times are printed, in UTC: the letters y, M, d, H, m, s and S of Java's \
         SimpleDateFormat. (default: yyyy-MM-dd HH:mm:ss:SSS)",
    ),
    (
        "fetch-size",
        Takes::Value("Integer: size"),
        "Bytes to fetch from one partition in one request. (default: 1048576)",
    ),
    ("from-latest", Takes::Nothing, "Start with the latest record instead of the earliest."),
    ("group", Takes::Value("String: gid"), "The consumer group. Without it, no group is used."),
    ("hide-header", Takes::Nothing, "Do not print the column names."),
    ("include", Takes::Value("String: Java regex"), "The topics to read, as a regular expression."),
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
    ("socket-buffer-size", Takes::Refused, "the operating system sizes the buffers of sockets"),
    (
        "timeout",
        Takes::Value("Long: milliseconds"),
        "Milliseconds to wait for the next record before exiting. (default: 10000)",
    ),
    ("topic", Takes::Value("String: topic"), "The topic to read."),
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
    parsed.exactly_one(
        &["num-records", "messages"],
        "Exactly one of the following arguments is required: [messages], [num-records]",
    )?;
    parsed.exactly_one(
        &["topic", "include"],
        "Exactly one of the following arguments is required: [topic], [include]",
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
    let topics = topics(&client, &parsed).await?;
    if in_group {
        consumer.subscribe(topics)?;
    } else {
        assign(&client, &mut consumer, &topics).await?;
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
        let dates = [began_ms, env.clock.wall_ms()].map(|ms| wanted.dates.of(ms));
        writeln!(out, "{}", line(dates, elapsed, read))?;
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
    dates: DateFormat,
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
        let dates = parsed.value("date-format").unwrap_or(DATE_FORMAT);
        let dates = DateFormat::parse(dates).map_err(|why| parsed.wrong(why))?;
        Ok(Self { count, timeout, report_every, dates })
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

/// Gives `consumer`, which is in no group, all partitions of `topics`.
async fn assign(
    client: &Client,
    consumer: &mut Consumer,
    topics: &[String],
) -> Result<(), Failure> {
    let metadata = client.metadata(Some(topics)).await?;
    let found = metadata.topics.values().filter(|found| found.error.is_none());
    consumer.assign(found.flat_map(|topic| {
        topic.partitions.keys().map(|id| TopicPartition::new(topic.name.clone(), *id))
    }));
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
                let (now, mib) = (wanted.dates.of(env.clock.wall_ms()), mib(read.bytes));
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

fn line([began, ended]: [String; 2], elapsed: Duration, read: Read) -> String {
    let (mib, rates) = (mib(read.bytes), rates(elapsed, read, read.count));
    format!("{began}, {ended}, {mib:.4}, {rates}")
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

const DATE_FORMAT: &str = "yyyy-MM-dd HH:mm:ss:SSS";

/// The part of Java's SimpleDateFormat that has numbers only: runs of a letter with their length,
/// and what stands between them.
struct DateFormat(Vec<(char, usize)>);

/// What is no letter of a format.
const LITERAL: usize = 0;

impl DateFormat {
    fn parse(text: &str) -> Result<Self, String> {
        let mut parts: Vec<(char, usize)> = Vec::new();
        let (mut chars, mut is_quoted) = (text.chars().peekable(), false);
        while let Some(c) = chars.next() {
            match c {
                '\'' if chars.next_if_eq(&'\'').is_some() => parts.push((c, LITERAL)),
                '\'' => is_quoted = !is_quoted,
                c if is_quoted || !c.is_ascii_alphabetic() => parts.push((c, LITERAL)),
                'y' | 'M' | 'd' | 'H' | 'm' | 's' | 'S' => {
                    let mut width = 1;
                    while chars.next_if_eq(&c).is_some() {
                        width += 1;
                    }
                    if width > 18 {
                        return Err(format!("--date-format {text}: {c} stands more than 18 times"));
                    }
                    if c == 'M' && width > 2 {
                        return Err(format!(
                            "--date-format {text}: names of months are not \
                            supported; write M or MM"
                        ));
                    }
                    parts.push((c, width));
                }
                c => {
                    return Err(format!(
                        "--date-format {text}: the letter {c} is not supported; y, M, d, H, m, s \
                         and S are, and others in single quotes"
                    ));
                }
            }
        }
        if is_quoted {
            return Err(format!("--date-format {text}: a quote is not closed"));
        }
        Ok(Self(parts))
    }

    /// `ms` since 1970, in UTC.
    fn of(&self, ms: i64) -> String {
        let (year, month, day) = date(ms.div_euclid(86_400_000));
        let rest = ms.rem_euclid(86_400_000);
        let mut text = String::new();
        for &(c, width) in &self.0 {
            let number = match (c, width) {
                (c, LITERAL) => {
                    text.push(c);
                    continue;
                }
                ('y', 2) => year.rem_euclid(100),
                ('y', _) => year,
                ('M', _) => month,
                ('d', _) => day,
                ('H', _) => rest / 3_600_000,
                ('m', _) => rest / 60_000 % 60,
                ('s', _) => rest / 1000 % 60,
                _ => rest % 1000,
            };
            text.push_str(&format!("{number:0width$}"));
        }
        text
    }
}

/// Year, month and day of a day since 1970.
fn date(days: i64) -> (i64, i64, i64) {
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
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_lines_are_those_of_kafka() {
        let shown = |format: &str, ms| DateFormat::parse(format).unwrap().of(ms);
        assert_eq!(shown(DATE_FORMAT, 0), "1970-01-01 00:00:00:000");
        assert_eq!(shown(DATE_FORMAT, 1_709_209_815_250), "2024-02-29 12:30:15:250");
        assert_eq!(shown(DATE_FORMAT, 951_868_799_999), "2000-02-29 23:59:59:999");
        let short = shown("yy/M/d 'at' H.m.s S ''", 1_706_745_605_007);
        assert_eq!(short, "24/2/1 at 0.0.5 7 '");
        for format in ["EEE d", "MMM", "'open"] {
            assert!(DateFormat::parse(format).is_err(), "{format}");
        }
        let read = Read { count: 10, bytes: 1_048_576, joining: Duration::from_secs(1) };
        let dates = [0, 2000].map(|ms| shown(DATE_FORMAT, ms));
        let printed = line(dates, Duration::from_secs(2), read);
        assert_eq!(
            printed,
            "1970-01-01 00:00:00:000, 1970-01-01 00:00:02:000, 1.0000, 0.5000, 10, 5.0000, 1000, \
             1000, 1.0000, 10.0000"
        );
    }
}
