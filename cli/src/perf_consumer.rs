//! `kafka-consumer-perf-test`.

use std::io::Write;
use std::time::Duration;

use letterbox_client::{Consumer, TopicPartition};
use letterbox_env::Env;
use tokio::time::Instant;

use crate::args::{Grammar, Spec, Takes};
use crate::connect::Properties;
use crate::console_consumer::consumer_options;
use crate::failure::Failure;
use crate::metrics;

const SPECS: [Spec; 17] = [
    (
        "command-property",
        Takes::Values("String: prop1=val1"),
        "A consumer setting. May be repeated.",
    ),
    ("consumer.config", Takes::Value("String: config file"), "(DEPRECATED) As --command-config."),
    ("date-format", Takes::Refused, ""),
    (
        "fetch-size",
        Takes::Value("Integer: size"),
        "Bytes to fetch from one partition at once. (default: 1048576)",
    ),
    ("from-latest", Takes::Nothing, "Begin with the latest record and not the earliest."),
    ("group", Takes::Value("String: gid"), "The consumer group; none when not given."),
    ("hide-header", Takes::Nothing, "Do not print the names of the columns."),
    ("include", Takes::Refused, ""),
    ("messages", Takes::Value("Long: count"), "(DEPRECATED) As --num-records."),
    ("num-records", Takes::Value("Long: count"), "REQUIRED: How many records to read."),
    ("print-metrics", Takes::Nothing, "Print what the consumer counted at the end."),
    (
        "reporting-interval",
        Takes::Value("Long: interval_ms"),
        "How often --show-detailed-stats reports. (default: 5000)",
    ),
    ("show-detailed-stats", Takes::Nothing, "Report each interval, and not the whole at the end."),
    ("socket-buffer-size", Takes::Refused, ""),
    ("threads", Takes::Refused, ""),
    (
        "timeout",
        Takes::Value("Long: milliseconds"),
        "How long to wait between records. (default: 10000)",
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
    let wanted: u64 = parsed.number("num-records")?.or(parsed.number("messages")?).unwrap_or(0);
    let timeout_ms: u64 = parsed.number("timeout")?.unwrap_or(10_000);
    let timeout = Duration::from_millis(timeout_ms);
    let interval: u64 = parsed.number("reporting-interval")?.unwrap_or(5000);
    if interval == 0 {
        return Err(parsed.wrong("Reporting interval must be greater than 0."));
    }
    let interval = parsed.has("show-detailed-stats").then(|| Duration::from_millis(interval));
    let mut properties =
        Properties::load(env, parsed.value("command-config").or(parsed.value("consumer.config")))?;
    properties.add_words(&parsed.values("command-property"))?;
    if let Some(group) = parsed.value("group") {
        properties.set("group.id", group);
    }
    if let Some(size) = parsed.value("fetch-size") {
        properties.set("max.partition.fetch.bytes", size);
    }
    properties
        .set("auto.offset.reset", if parsed.has("from-latest") { "latest" } else { "earliest" });
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
        consumer.subscribe([topic.clone()])?;
    } else {
        let metadata = client.metadata(Some(std::slice::from_ref(&topic))).await?;
        let partitions = metadata
            .topics
            .values()
            .filter(|found| found.error.is_none())
            .flat_map(|found| found.partitions.keys());
        consumer.assign(partitions.map(|id| TopicPartition::new(topic.clone(), *id)));
    }
    let (mut count, mut bytes) = (0u64, 0u64);
    let mut joined = Duration::ZERO;
    let mut last = Instant::now();
    let mut reported = (Instant::now(), 0u64, 0u64, Duration::ZERO);
    while count < wanted && last.elapsed() < timeout {
        let joins = consumer.joins();
        let before = Instant::now();
        let records = consumer
            .poll(timeout.saturating_sub(last.elapsed()).min(Duration::from_millis(100)))
            .await?;
        if consumer.joins() > joins {
            joined += before.elapsed();
        }
        if records.is_empty() {
            continue;
        }
        last = Instant::now();
        for record in &records {
            let part = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
            bytes = bytes.saturating_add(
                u64::try_from(part(&record.key) + part(&record.value)).unwrap_or(0),
            );
            count += 1;
            if interval.is_some_and(|interval| reported.0.elapsed() >= interval) {
                let (at, count_before, bytes_before, joined_before) = reported;
                let read = (count.saturating_sub(count_before), bytes.saturating_sub(bytes_before));
                let rates = rates(at.elapsed(), joined.saturating_sub(joined_before), read, count);
                writeln!(out, "{}, 0, {:.4}, {rates}", date(env.clock.wall_ms()), mib(bytes))?;
                out.flush()?;
                reported = (Instant::now(), count, bytes, joined);
            }
        }
    }
    let elapsed = began.elapsed();
    if count < wanted {
        writeln!(
            out,
            "WARNING: Exiting before consuming the expected number of records: timeout \
             ({timeout_ms} ms) exceeded. You can use the --timeout option to increase the \
             timeout."
        )?;
    }
    let (joins, assigned) = (consumer.joins(), consumer.assignment().len());
    consumer.close().await?;
    if interval.is_none() {
        writeln!(out, "{}", line(began_ms, env.clock.wall_ms(), elapsed, joined, (count, bytes)))?;
    }
    if parsed.has("print-metrics") {
        #[allow(clippy::cast_precision_loss, reason = "printed with three digits")]
        let [count, bytes, joins, assigned] =
            [count, bytes, joins, u64::try_from(assigned).unwrap_or(0)].map(|number| number as f64);
        let seconds = elapsed.as_secs_f64().max(0.001);
        let table = [
            ("consumer-coordinator-metrics", "assigned-partitions", assigned),
            ("consumer-coordinator-metrics", "join-total", joins),
            ("consumer-fetch-manager-metrics", "bytes-consumed-rate", bytes / seconds),
            ("consumer-fetch-manager-metrics", "bytes-consumed-total", bytes),
            ("consumer-fetch-manager-metrics", "records-consumed-rate", count / seconds),
            ("consumer-fetch-manager-metrics", "records-consumed-total", count),
        ];
        metrics::print(&client.options().client_id, &table, out)?;
    }
    Ok(0)
}

fn line(
    began_ms: i64,
    ended_ms: i64,
    elapsed: Duration,
    joined: Duration,
    read: (u64, u64),
) -> String {
    format!(
        "{}, {}, {:.4}, {}",
        date(began_ms),
        date(ended_ms),
        mib(read.1),
        rates(elapsed, joined, read, read.0)
    )
}

/// Of the `(records, bytes)` that were read in `elapsed`: the columns from MB.sec on, with `shown`
/// as the number of records.
#[allow(clippy::cast_precision_loss, reason = "printed with four digits")]
fn rates(elapsed: Duration, joined: Duration, (count, bytes): (u64, u64), shown: u64) -> String {
    let (mib, count) = (mib(bytes), count as f64);
    let (seconds, fetching) = (elapsed.as_secs_f64().max(0.001), elapsed.saturating_sub(joined));
    let fetch_seconds = fetching.as_secs_f64().max(0.001);
    format!(
        "{:.4}, {shown}, {:.4}, {}, {}, {:.4}, {:.4}",
        mib / seconds,
        count / seconds,
        joined.as_millis(),
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
        let printed =
            line(0, 2000, Duration::from_secs(2), Duration::from_secs(1), (10, 1_048_576));
        assert_eq!(
            printed,
            "1970-01-01 00:00:00:000, 1970-01-01 00:00:02:000, 1.0000, 0.5000, 10, 5.0000, 1000, \
             1000, 1.0000, 10.0000"
        );
    }
}
