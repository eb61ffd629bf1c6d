//! `kafka-producer-perf-test`.

use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use letterbox_client::{Delivery, Error, Producer, ProducerRecord};
use letterbox_env::Env;
use tokio::time::Instant;

use crate::args::{Grammar, Parsed, Spec, TRANSACTIONS, Takes};
use crate::connect::Properties;
use crate::console_producer::producer_options;
use crate::failure::{Failure, plain};
use crate::sending::{UnderWay, due};
use crate::{files, metrics};

const SPECS: [Spec; 15] = [
    (
        "command-property",
        Takes::Values("PROP-NAME=PROP-VALUE ..."),
        "One or more producer settings.",
    ),
    ("num-records", Takes::Value("NUM-RECORDS"), "REQUIRED: How many records to send."),
    (
        "payload-delimiter",
        Takes::Value("PAYLOAD-DELIMITER"),
        "Separator between the payloads in --payload-file. (default: \\n)",
    ),
    (
        "payload-file",
        Takes::Value("PAYLOAD-FILE"),
        "File with payloads. Each record gets one of them at random.",
    ),
    ("payload-monotonic", Takes::Nothing, "Use the number of the record as its payload."),
    ("print-metrics", Takes::Nothing, "Print the metrics of the producer at the end."),
    (
        "producer-props",
        Takes::Values("PROP-NAME=PROP-VALUE ..."),
        "(DEPRECATED) Use --command-property.",
    ),
    ("producer.config", Takes::Value("CONFIG-FILE"), "(DEPRECATED) Use --command-config."),
    (
        "record-size",
        Takes::Value("RECORD-SIZE"),
        "Size of each record in bytes. The payload is random letters.",
    ),
    (
        "reporting-interval",
        Takes::Value("INTERVAL-MS"),
        "Milliseconds between reports. (default: 5000)",
    ),
    (
        "throughput",
        Takes::Value("THROUGHPUT"),
        "REQUIRED: Approximate records per second; -1 for no limit.",
    ),
    ("topic", Takes::Value("TOPIC"), "REQUIRED: The topic to send to."),
    ("transaction-duration-ms", Takes::Refused, TRANSACTIONS),
    ("transactional-id", Takes::Refused, TRANSACTIONS),
    (
        "warmup-records",
        Takes::Value("WARMUP-RECORDS"),
        "Number of records to send before the steady state, which gets a summary of its own. \
         (default: 0)",
    ),
];

/// Records under way at most; beyond it sending waits for the oldest answers.
const UNDER_WAY_MAX: usize = 200_000;

/// Runs the tool.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let parsed = Grammar::new("This tool is used to verify the producer performance.", &SPECS)
        .argparse(&["command-property", "producer-props"])
        .parse(args)?;
    let pairs = [("producer-props", "command-property"), ("producer.config", "command-config")];
    if let Some((old, new)) = pairs.iter().find(|(old, new)| parsed.has(old) && parsed.has(new)) {
        return Err(parsed.wrong(format!("--{new} and --{old} cannot be specified together.")));
    }
    for (old, new) in pairs {
        if parsed.has(old) {
            writeln!(
                out,
                "Option --{old} has been deprecated and will be removed in a future version. Use \
                 --{new} instead."
            )?;
        }
    }
    let load = Load::new(&parsed)?;
    let mut payloads = Payloads::new(env, &parsed)?;
    let mut properties = Properties::load(env, &parsed, &["command-config", "producer.config"])?;
    properties.add_words(&parsed.values("producer-props"))?;
    properties.add_words(&parsed.values("command-property"))?;
    let servers = properties.get("bootstrap.servers");
    let bootstrap = parsed.value("bootstrap-server").map(str::to_owned).or(servers);
    let bootstrap = bootstrap.ok_or_else(|| {
        parsed.wrong(
            "At least one of --bootstrap-server and bootstrap.servers in the settings is required",
        )
    })?;
    let options = producer_options(&mut properties)?;
    let client = properties.connect(env, &bootstrap, "perf-producer-client", None, err).await?;
    let producer = Producer::new(&client, options).await?;
    let mut stats = send(&producer, &load, &mut payloads, out, err).await?;
    stats.all.report_total("records", out)?;
    if let Some(steady) = &mut stats.steady {
        steady.report_total("steady state records", out)?;
    }
    if parsed.has("print-metrics") {
        metrics::print(&client.options().client_id, &stats.metrics(), out)?;
    }
    Ok(0)
}

/// What is sent, and how fast.
struct Load {
    topic: String,
    count: u64,
    /// Of the records, the first ones, which the steady state leaves out: `warmup < count`, or 0.
    warmup: u64,
    /// Records per second; no limit at 0 and below.
    throughput: f64,
    report_every: Duration,
}

impl Load {
    fn new(parsed: &Parsed) -> Result<Self, Failure> {
        let topic = parsed.required("topic")?.to_owned();
        let count = parsed
            .number("num-records")?
            .ok_or_else(|| parsed.wrong("argument --num-records is required"))?;
        let throughput = parsed
            .number("throughput")?
            .ok_or_else(|| parsed.wrong("argument --throughput is required"))?;
        let interval = parsed.number("reporting-interval")?.unwrap_or(5000).max(1);
        let warmup = parsed.number("warmup-records")?.unwrap_or(0);
        if warmup > 0 && warmup >= count {
            let line = "The value for --warmup-records must be strictly fewer than the number of \
                records in the test, --num-records.";
            return Err(parsed.wrong(line));
        }
        let report_every = Duration::from_millis(interval);
        Ok(Self { topic, count, warmup, throughput, report_every })
    }
}

/// Sends all records, waits for the answers and counts them; reports in between.
async fn send(
    producer: &Producer,
    load: &Load,
    payloads: &mut Payloads,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<Both, Failure> {
    if load.warmup > 0 {
        writeln!(
            out,
            "Warmup first {} records. Steady state results will print after the complete test \
             summary.",
            load.warmup
        )?;
    }
    let began = Instant::now();
    let mut stats = Both { all: Stats::new(began), steady: None, errors: 0 };
    let mut under_way = UnderWay::new(UNDER_WAY_MAX);
    for number in 0..load.count {
        if load.warmup > 0 && number == load.warmup {
            stats.steady = Some(Stats::new(Instant::now()));
        }
        let payload = payloads.next(number);
        let bytes = payload.len();
        let at = Instant::now();
        match producer.send(ProducerRecord::new(load.topic.clone()).value(payload)).await {
            Ok(delivery) => under_way.push(timed(delivery, at, bytes, stats.steady.is_some())),
            Err(error) => {
                stats.errors += 1;
                writeln!(err, "{}", plain(&error))?;
            }
        }
        // Everything runs in one thread: let the answers in, too.
        if number % 64 == 63 {
            tokio::task::yield_now().await;
            while let Some(answer) = under_way.next_ready() {
                stats.record(answer, err)?;
            }
        }
        stats.report_window(load.report_every, out)?;
        let due = due(began, number + 1, load.throughput);
        while let Some(answer) = under_way.next_before(due).await {
            stats.record(answer, err)?;
        }
    }
    let mut flush = std::pin::pin!(producer.flush().fuse());
    while let Some(answer) = under_way.next_flushed(&mut flush).await {
        stats.record(answer, err)?;
        stats.report_window(load.report_every, out)?;
    }
    Ok(stats)
}

/// Whether it was sent in the steady state comes last.
type Answer = (Result<(), Error>, Duration, usize, bool);

async fn timed(delivery: Delivery, began: Instant, bytes: usize, steady: bool) -> Answer {
    let result = delivery.await.map(|_| ());
    (result, began.elapsed(), bytes, steady)
}

/// All records, and those after the warm-up.
struct Both {
    all: Stats,
    steady: Option<Stats>,
    errors: u64,
}

impl Both {
    fn record(
        &mut self,
        (result, latency, bytes, steady): Answer,
        err: &mut (dyn Write + Send),
    ) -> Result<(), Failure> {
        if let Err(error) = result {
            self.errors += 1;
            writeln!(err, "{}", plain(&error))?;
            return Ok(());
        }
        self.all.record(latency, bytes);
        if let Some(stats) = self.steady.as_mut().filter(|_| steady) {
            stats.record(latency, bytes);
        }
        Ok(())
    }

    fn report_window(
        &mut self,
        interval: Duration,
        out: &mut (dyn Write + Send),
    ) -> Result<(), Failure> {
        let Some(steady) = &mut self.steady else { return self.all.report_window(interval, out) };
        // Told with the first report of it.
        if steady.window_began.elapsed() >= interval && steady.window.count == steady.total.count {
            writeln!(out, "In steady state.")?;
        }
        steady.report_window(interval, out)
    }

    /// By the names of Kafka's producer. A rate is over the whole run.
    #[allow(clippy::cast_precision_loss, reason = "printed with three digits")]
    fn metrics(&self) -> Vec<metrics::Metric> {
        let (total, elapsed) = (&self.all.total, self.all.began.elapsed());
        let (rate, _, latency) = total.rates(elapsed);
        let size =
            if total.count == 0 { f64::NAN } else { total.bytes as f64 / total.count as f64 };
        vec![
            (
                "producer-metrics",
                "record-error-rate",
                self.errors as f64 / elapsed.as_secs_f64().max(0.001),
            ),
            ("producer-metrics", "record-error-total", self.errors as f64),
            ("producer-metrics", "record-send-rate", rate),
            ("producer-metrics", "record-send-total", total.count as f64),
            ("producer-metrics", "record-size-avg", size),
            ("producer-metrics", "record-latency-avg", latency),
            ("producer-metrics", "record-latency-max", total.latency_ms_max),
        ]
    }
}

/// Counts and latencies since the start and in the current window.
struct Stats {
    began: Instant,
    window_began: Instant,
    latencies_ms: Vec<u32>,
    total: Sums,
    window: Sums,
}

#[derive(Default)]
struct Sums {
    count: u64,
    bytes: u64,
    latency_ms: f64,
    latency_ms_max: f64,
}

impl Sums {
    fn add(&mut self, latency: Duration, bytes: usize) {
        // Kafka's tool counts whole milliseconds.
        let ms = latency.as_secs_f64().mul_add(1000.0, 0.0).floor();
        self.count += 1;
        self.bytes += u64::try_from(bytes).unwrap_or(0);
        self.latency_ms += ms;
        self.latency_ms_max = self.latency_ms_max.max(ms);
    }

    /// Records per second, MiB per second, mean latency in ms.
    #[allow(clippy::cast_precision_loss, reason = "printed with few digits")]
    fn rates(&self, elapsed: Duration) -> (f64, f64, f64) {
        let seconds = elapsed.as_secs_f64().max(0.001);
        let mean = if self.count == 0 { 0.0 } else { self.latency_ms / self.count as f64 };
        (self.count as f64 / seconds, self.bytes as f64 / seconds / 1_048_576.0, mean)
    }
}

impl Stats {
    fn new(now: Instant) -> Self {
        Self {
            began: now,
            window_began: now,
            latencies_ms: Vec::new(),
            total: Sums::default(),
            window: Sums::default(),
        }
    }

    fn record(&mut self, latency: Duration, bytes: usize) {
        self.total.add(latency, bytes);
        self.window.add(latency, bytes);
        self.latencies_ms.push(u32::try_from(latency.as_millis()).unwrap_or(u32::MAX));
    }

    fn report_window(
        &mut self,
        interval: Duration,
        out: &mut (dyn Write + Send),
    ) -> Result<(), Failure> {
        if self.window_began.elapsed() < interval {
            return Ok(());
        }
        let (records, mib, mean) = self.window.rates(self.window_began.elapsed());
        let (count, max) = (self.window.count, self.window.latency_ms_max);
        writeln!(
            out,
            "{count} records sent, {records:.1} records/sec ({mib:.2} MB/sec), {mean:.1} ms avg \
             latency, {max:.1} ms max latency."
        )?;
        out.flush()?;
        self.window = Sums::default();
        self.window_began = Instant::now();
        Ok(())
    }

    fn report_total(&mut self, what: &str, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
        self.latencies_ms.sort_unstable();
        let (records, mib, mean) = self.total.rates(self.began.elapsed());
        let (count, max) = (self.total.count, self.total.latency_ms_max);
        let [p50, p95, p99, p999] =
            [500, 950, 990, 999].map(|permille| percentile(&self.latencies_ms, permille));
        writeln!(
            out,
            "{count} {what} sent, {records:.6} records/sec ({mib:.2} MB/sec), {mean:.2} ms avg \
             latency, {max:.2} ms max latency, {p50} ms 50th, {p95} ms 95th, {p99} ms 99th, {p999} \
             ms 99.9th."
        )?;
        Ok(())
    }
}

fn percentile(sorted: &[u32], permille: usize) -> u32 {
    let index = sorted.len().saturating_mul(permille) / 1000;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
}

/// Where payloads come from.
enum Payloads {
    Random { bytes: usize, state: u64 },
    Lines { lines: Vec<Bytes>, state: u64 },
    Numbers,
}

impl Payloads {
    fn new(env: &Env, parsed: &Parsed) -> Result<Self, Failure> {
        let one = parsed.exactly_one(
            &["record-size", "payload-file", "payload-monotonic"],
            "one of the arguments --record-size --payload-file --payload-monotonic is required",
        )?;
        let state = env.random_u64() | 1;
        if one == "payload-monotonic" {
            return Ok(Self::Numbers);
        }
        if one == "record-size" {
            let bytes: usize = parsed.number("record-size")?.unwrap_or(0);
            if bytes == 0 {
                return Err(parsed.wrong("--record-size should be greater than zero."));
            }
            return Ok(Self::Random { bytes, state });
        }
        let file = parsed.required("payload-file")?;
        let text = String::from_utf8(files::read(env, file)?)
            .map_err(|_| Failure::Stderr(format!("{file} is not UTF-8 text")))?;
        let delimiter = parsed.value("payload-delimiter").unwrap_or("\n").replace("\\n", "\n");
        let lines: Vec<Bytes> = text
            .split(delimiter.as_str())
            .filter(|line| !line.is_empty())
            .map(|line| Bytes::from(line.to_owned()))
            .collect();
        if lines.is_empty() {
            return Err(Failure::Stderr(format!("{file} has no payloads")));
        }
        Ok(Self::Lines { lines, state })
    }

    fn next(&mut self, number: u64) -> Bytes {
        match self {
            Self::Numbers => Bytes::from(number.to_string()),
            Self::Lines { lines, state } => {
                let index = usize::try_from(step(state) % u64::try_from(lines.len()).unwrap_or(1))
                    .unwrap_or(0);
                lines.get(index).cloned().unwrap_or_default()
            }
            Self::Random { bytes, state } => {
                let mut payload = Vec::with_capacity(*bytes);
                while payload.len() < *bytes {
                    let random = step(state).to_le_bytes();
                    payload.extend(
                        random.iter().take(*bytes - payload.len()).map(|byte| b'A' + byte % 26),
                    );
                }
                payload.into()
            }
        }
    }
}

/// xorshift64: fast, and random enough for payloads.
fn step(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_taken_as_kafka_takes_them() {
        let sorted: Vec<u32> = (1..=100).collect();
        assert_eq!([500, 950, 990, 999].map(|p| percentile(&sorted, p)), [51, 96, 100, 100]);
        assert_eq!(percentile(&[], 500), 0);
    }

    #[test]
    fn payloads_have_the_size_that_was_asked_for() {
        let mut payloads = Payloads::Random { bytes: 13, state: 7 };
        let (one, two) = (payloads.next(0), payloads.next(1));
        assert!(one.len() == 13 && one != two && one.iter().all(u8::is_ascii_uppercase));
        assert_eq!(Payloads::Numbers.next(42), "42");
    }
}
