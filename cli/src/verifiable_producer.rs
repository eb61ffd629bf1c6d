//! `kafka-verifiable-producer`: numbers in ascending order, and a line of JSON for what became of
//! each.

use std::io::Write;

use futures::FutureExt;
use letterbox_client::{Delivery, Error, Producer, ProducerRecord, RecordPlace};
use letterbox_env::Env;
use tokio::time::Instant;

use crate::args::{Grammar, Parsed, Spec, Takes};
use crate::connect::Properties;
use crate::console_producer::producer_options;
use crate::failure::{Failure, java_class, plain};
use crate::json;
use crate::sending::{UnderWay, due};

const SPECS: [Spec; 8] = [
    ("acks", Takes::Value("ACKS"), "Acks required on each record: -1, 0 or 1. (default: -1)"),
    (
        "max-messages",
        Takes::Value("MAX-MESSAGES"),
        "Number of records to produce; -1 to produce until the tool is stopped. (default: -1)",
    ),
    (
        "message-create-time",
        Takes::Value("CREATE-TIME"),
        "Timestamp of the first record, in milliseconds since 1970; -1 for the current time. \
         (default: -1)",
    ),
    ("producer.config", Takes::Value("CONFIG-FILE"), "(DEPRECATED) Use --command-config."),
    (
        "repeating-keys",
        Takes::Value("REPEATING-KEYS"),
        "Number of keys: the records get the keys 0, 1, and so on, and then 0 again.",
    ),
    (
        "throughput",
        Takes::Value("THROUGHPUT"),
        "Approximate records per second; below 0 for no limit. (default: -1)",
    ),
    ("topic", Takes::Value("TOPIC"), "REQUIRED: The topic to produce to."),
    (
        "value-prefix",
        Takes::Value("VALUE-PREFIX"),
        "Number to put before each value, followed by a dot.",
    ),
];
/// Records under way at most.
const UNDER_WAY_MAX: usize = 100_000;

/// Runs the tool until it has sent what it was asked for, or is told to stop.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let about = "This tool produces increasing integers to the specified topic and prints JSON \
        metadata to stdout on each \"send\" request, making externally visible which messages have \
        been acked and which have not.";
    let parsed = Grammar::new(about, &SPECS).argparse(&[]).parse(args)?;
    let mut numbers = Numbers::new(&parsed)?;
    let bootstrap = parsed.required("bootstrap-server")?.to_owned();
    let max = parsed
        .number::<i64>("max-messages")?
        .and_then(|max| u64::try_from(max).ok())
        .unwrap_or(u64::MAX);
    let throughput: i32 = parsed.number("throughput")?.unwrap_or(-1);
    let mut properties = settings(env, &parsed)?;
    let options = producer_options(&mut properties)?;
    let client = properties.connect(env, &bootstrap, "producer-1", None, err).await?;
    let producer = Producer::new(&client, options).await?;
    let (began, began_ms) = (Instant::now(), env.clock.wall_ms());
    event(env, out, "startup_complete", "")?;
    let mut stop = Stop::new()?;
    let mut told = Told { env, topic: numbers.topic.clone(), acked: 0 };
    let mut under_way = UnderWay::new(UNDER_WAY_MAX);
    let mut sent = 0u64;
    while sent < max && !stop.is_asked() {
        let (key, value) = numbers.next(sent);
        let record =
            numbers.record(key.clone(), &value, env.clock.wall_ms().saturating_sub(began_ms));
        sent += 1;
        match producer.send(record).await {
            Ok(delivery) => under_way.push(answer(delivery, key, value)),
            Err(error) => told.report((Err(error), key, value), out)?,
        }
        if sent.is_multiple_of(64) {
            tokio::task::yield_now().await;
        }
        while let Some(answer) = under_way.next_ready() {
            told.report(answer, out)?;
        }
        let due = due(began, sent, f64::from(throughput));
        loop {
            let answer = tokio::select! {
                biased;
                () = stop.asked() => None,
                answer = under_way.next_before(due) => answer,
            };
            let Some(answer) = answer else { break };
            told.report(answer, out)?;
        }
    }
    let mut flush = std::pin::pin!(producer.flush().fuse());
    while let Some(answer) = under_way.next_flushed(&mut flush).await {
        told.report(answer, out)?;
    }
    event(env, out, "shutdown_complete", "")?;
    let acked = told.acked;
    #[allow(clippy::cast_precision_loss, reason = "an average")]
    let average = acked as f64 / began.elapsed().as_secs_f64().max(0.001);
    let data = format!(
        ",\"sent\":{sent},\"acked\":{acked},\"target_throughput\":{throughput},\
         \"avg_throughput\":{average:?}"
    );
    event(env, out, "tool_data", &data)?;
    Ok(0)
}

fn settings(env: &Env, parsed: &Parsed) -> Result<Properties, Failure> {
    let acks = parsed.value("acks").unwrap_or("-1");
    if !["-1", "0", "1"].contains(&acks) {
        return Err(parsed
            .wrong(format!("argument --acks: invalid choice: '{acks}' (choose from {{0,1,-1}})")));
    }
    let mut properties = Properties::default();
    properties.set("acks", acks);
    // What is refused is told, not tried again, unless the file says otherwise; that rules
    // idempotence out.
    properties.set("retries", "0");
    properties.set("enable.idempotence", "false");
    properties.add_file(env, parsed, &["command-config", "producer.config"])?;
    Ok(properties)
}

/// The records to send.
struct Numbers {
    topic: String,
    /// Each value begins with it, and a dot.
    prefix: Option<i32>,
    /// Keys go from 0 to below it, again and again; more than 0.
    keys: Option<u64>,
    /// The timestamp of the next record; `None`: the producer sets it.
    time: Option<i64>,
}

impl Numbers {
    fn new(parsed: &Parsed) -> Result<Self, Failure> {
        Ok(Self {
            topic: parsed.required("topic")?.to_owned(),
            prefix: parsed.number("value-prefix")?,
            keys: parsed.number("repeating-keys")?.filter(|keys| *keys > 0),
            time: parsed.number("message-create-time")?.filter(|ms| *ms != -1),
        })
    }

    /// Key and value of the record after the first `sent`.
    fn next(&self, sent: u64) -> (Option<String>, String) {
        let key = self.keys.map(|keys| (sent % keys).to_string());
        let value =
            self.prefix.map_or_else(|| sent.to_string(), |prefix| format!("{prefix}.{sent}"));
        (key, value)
    }

    /// The record; as Kafka's tool moves the time on: by the `running_ms` since it began.
    fn record(&mut self, key: Option<String>, value: &str, running_ms: i64) -> ProducerRecord {
        let mut record = ProducerRecord::new(self.topic.clone()).value(value.to_owned());
        record.key = key.map(Into::into);
        record.timestamp = self.time;
        self.time = self.time.map(|ms| ms.saturating_add(running_ms));
        record
    }
}

type Answer = (Result<RecordPlace, Error>, Option<String>, String);

async fn answer(delivery: Delivery, key: Option<String>, value: String) -> Answer {
    (delivery.await, key, value)
}

/// Prints what became of each record, and counts.
struct Told<'a> {
    env: &'a Env,
    topic: String,
    acked: u64,
}

impl Told<'_> {
    fn report(
        &mut self,
        (result, key, value): Answer,
        out: &mut (dyn Write + Send),
    ) -> Result<(), Failure> {
        let record = format!(
            ",\"key\":{},\"value\":{}",
            json::text_or_null(key.as_deref()),
            json::text(&value)
        );
        match result {
            Ok(place) => {
                self.acked += 1;
                let (topic, partition, offset) =
                    (json::text(&place.topic), place.partition, place.offset.unwrap_or(-1));
                let rest = format!(
                    "{record},\"offset\":{offset},\"topic\":{topic},\"partition\":{partition}"
                );
                event(self.env, out, "producer_send_success", &rest)
            }
            Err(error) => {
                let class = match &error {
                    Error::Broker(error) => java_class(error.code),
                    Error::Timeout { .. } => {
                        "org.apache.kafka.common.errors.TimeoutException".to_owned()
                    }
                    _ => "org.apache.kafka.common.KafkaException".to_owned(),
                };
                let (message, class, topic) = (
                    json::text(&plain(&error)),
                    json::text(&format!("class {class}")),
                    json::text(&self.topic),
                );
                event(
                    self.env,
                    out,
                    "producer_send_error",
                    &format!(
                        ",\"topic\":{topic}{record},\"exception\":{class},\"message\":{message}"
                    ),
                )
            }
        }
    }
}

/// Prints one event; `fields` begin with a comma.
pub(crate) fn event(
    env: &Env,
    out: &mut (dyn Write + Send),
    name: &str,
    fields: &str,
) -> Result<(), Failure> {
    writeln!(out, "{{\"timestamp\":{},\"name\":\"{name}\"{fields}}}", env.clock.wall_ms())?;
    out.flush()?;
    Ok(())
}

/// SIGTERM and SIGINT: the tool ends in good order.
pub(crate) struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    asked: bool,
}

impl Stop {
    pub(crate) fn new() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let failed =
            |error: std::io::Error| Failure::Stderr(format!("cannot listen for signals: {error}"));
        let (terminate, interrupt) = (
            signal(SignalKind::terminate()).map_err(failed)?,
            signal(SignalKind::interrupt()).map_err(failed)?,
        );
        Ok(Self { terminate, interrupt, asked: false })
    }

    /// Completes when the process was told to stop.
    pub(crate) async fn asked(&mut self) {
        if !self.asked {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
            self.asked = true;
        }
    }

    /// Whether it was, without waiting.
    pub(crate) fn is_asked(&mut self) -> bool {
        futures::FutureExt::now_or_never(self.asked()).is_some()
    }
}
