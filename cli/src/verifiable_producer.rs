//! `kafka-verifiable-producer`: numbers in ascending order, and a line of JSON for what became of
//! each.

use std::io::Write;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use letterbox_client::{Delivery, Error, Producer, ProducerRecord, RecordPlace};
use letterbox_env::Env;
use tokio::time::Instant;

use crate::args::{Grammar, Spec, Takes};
use crate::connect::Properties;
use crate::console_producer::producer_options;
use crate::failure::{Failure, java_class, plain};
use crate::json;

const SPECS: [Spec; 8] = [
    ("acks", Takes::Value("ACKS"), "Acks required on each record: -1, 0 or 1. (default: -1)"),
    (
        "max-messages",
        Takes::Value("MAX-MESSAGES"),
        "Produce so many records; -1: until the tool is stopped. (default: -1)",
    ),
    (
        "message-create-time",
        Takes::Value("CREATE-TIME"),
        "Begin with this time of creation, in milliseconds since 1970. (default: -1: now)",
    ),
    ("producer.config", Takes::Value("CONFIG-FILE"), "(DEPRECATED) As --command-config."),
    (
        "repeating-keys",
        Takes::Value("REPEATING-KEYS"),
        "Give records the keys from 0 up to below this number, again and again.",
    ),
    (
        "throughput",
        Takes::Value("THROUGHPUT"),
        "Records per second, about; below 0: no limit. (default: -1)",
    ),
    ("topic", Takes::Value("TOPIC"), "REQUIRED: The topic to produce to."),
    (
        "value-prefix",
        Takes::Value("VALUE-PREFIX"),
        "A number that each value begins with, and a dot.",
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
    let parsed = Grammar::new(about, &SPECS).argparse(&[]).shorts(&[("h", "help")]).parse(args)?;
    let topic = parsed.required("topic")?.to_owned();
    let bootstrap = parsed.required("bootstrap-server")?.to_owned();
    let max = parsed
        .number::<i64>("max-messages")?
        .and_then(|max| u64::try_from(max).ok())
        .unwrap_or(u64::MAX);
    let throughput: i32 = parsed.number("throughput")?.unwrap_or(-1);
    let create_ms = parsed.number::<i64>("message-create-time")?.filter(|ms| *ms != -1);
    let prefix: Option<i32> = parsed.number("value-prefix")?;
    let keys = parsed.number::<u64>("repeating-keys")?.filter(|keys| *keys > 0);
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
    if let Some(file) = parsed.value("command-config").or(parsed.value("producer.config")) {
        properties.add_file(env, file)?;
    }
    let options = producer_options(&mut properties)?;
    let client = properties.connect(env, &bootstrap, "producer-1", None, err).await?;
    let producer = Producer::new(&client, options).await?;
    let (began, began_ms) = (Instant::now(), env.clock.wall_ms());
    event(env, out, "startup_complete", "")?;
    let mut stop = Stop::new()?;
    let mut sends = Sends { env, topic: &topic, acked: 0, under_way: FuturesUnordered::new() };
    let mut sent = 0u64;
    let mut time = create_ms;
    while sent < max {
        let key = keys.map(|keys| (sent % keys).to_string());
        let value = prefix.map_or_else(|| sent.to_string(), |prefix| format!("{prefix}.{sent}"));
        let mut record = ProducerRecord::new(topic.clone()).value(value.clone());
        record.key = key.clone().map(Into::into);
        record.timestamp = time;
        // As Kafka's tool moves the time on: by how long it has been running.
        time = time.map(|ms| ms.saturating_add(env.clock.wall_ms().saturating_sub(began_ms)));
        sent += 1;
        match producer.send(record).await {
            Ok(delivery) => sends.under_way.push(answer(delivery, key, value)),
            Err(error) => sends.report((Err(error), key, value), out)?,
        }
        if sent.is_multiple_of(64) {
            tokio::task::yield_now().await;
        }
        while let Some(Some(answer)) = futures::FutureExt::now_or_never(sends.under_way.next()) {
            sends.report(answer, out)?;
        }
        let due = match f64::from(throughput) {
            #[allow(clippy::cast_precision_loss, reason = "about is enough")]
            rate if rate > 0.0 => began + Duration::from_secs_f64(sent as f64 / rate),
            _ => began,
        };
        let mut stopped = false;
        while !stopped && (Instant::now() < due || sends.under_way.len() >= UNDER_WAY_MAX) {
            tokio::select! {
                biased;
                () = stop.asked() => stopped = true,
                Some(answer) = sends.under_way.next(), if !sends.under_way.is_empty() => sends.report(answer, out)?,
                () = tokio::time::sleep_until(due), if Instant::now() < due => {}
            }
        }
        if stopped || stop.is_asked() {
            break;
        }
    }
    let mut flush = std::pin::pin!(producer.flush());
    let mut flushed = false;
    while !flushed || !sends.under_way.is_empty() {
        tokio::select! {
            biased;
            Some(answer) = sends.under_way.next(), if !sends.under_way.is_empty() => sends.report(answer, out)?,
            () = &mut flush, if !flushed => flushed = true,
        }
    }
    event(env, out, "shutdown_complete", "")?;
    let acked = sends.acked;
    #[allow(clippy::cast_precision_loss, reason = "an average")]
    let average = acked as f64 / began.elapsed().as_secs_f64().max(0.001);
    event(
        env,
        out,
        "tool_data",
        &format!(
            ",\"sent\":{sent},\"acked\":{acked},\"target_throughput\":{throughput},\"avg_throughput\":{average:?}"
        ),
    )?;
    Ok(0)
}

type Answer = (Result<RecordPlace, Error>, Option<String>, String);

async fn answer(delivery: Delivery, key: Option<String>, value: String) -> Answer {
    (delivery.await, key, value)
}

struct Sends<'a, F> {
    env: &'a Env,
    topic: &'a str,
    acked: u64,
    under_way: FuturesUnordered<F>,
}

impl<F> Sends<'_, F> {
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
                    json::text(self.topic),
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
