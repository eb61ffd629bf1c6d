//! `kafka-verifiable-consumer`: a line of JSON for each thing that happens to a member of a group.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use letterbox_client::{CommittedOffset, Consumer, ConsumerRecord, TopicPartition};
use letterbox_env::{Env, Gather};

use crate::args::{Grammar, Parsed, Spec, Takes};
use crate::connect::Properties;
use crate::console_consumer::{consumer_options, room};
use crate::failure::{Failure, plain};
use crate::json;
use crate::verifiable_producer::{Stop, event};

const SPECS: [Spec; 12] = [
    (
        "assignment-strategy",
        Takes::Value("ASSIGNMENT-STRATEGY"),
        "The partition assignor; only RangeAssignor is supported. (default: RangeAssignor)",
    ),
    ("consumer.config", Takes::Value("CONFIG-FILE"), "(DEPRECATED) Use --command-config."),
    (
        "enable-autocommit",
        Takes::Nothing,
        "Commit offsets periodically instead of after each poll.",
    ),
    ("group-id", Takes::Value("GROUP-ID"), "REQUIRED: The group id of the consumer group."),
    (
        "group-instance-id",
        Takes::Value("GROUP-INSTANCE-ID"),
        "The instance id, which makes the member static.",
    ),
    (
        "group-protocol",
        Takes::Value("GROUP-PROTOCOL"),
        "The group protocol; only classic is supported. (default: classic)",
    ),
    (
        "group-remote-assignor",
        Takes::Refused,
        "the broker assigns no partitions (ConsumerGroupHeartbeat, KIP-848)",
    ),
    (
        "max-messages",
        Takes::Value("MAX-MESSAGES"),
        "Number of records to consume; -1 to consume until the tool is stopped. (default: -1)",
    ),
    (
        "reset-policy",
        Takes::Value("RESET-POLICY"),
        "Where to start if there is no committed offset: earliest, latest or none. (default: \
         earliest)",
    ),
    ("session-timeout", Takes::Value("TIMEOUT-MS"), "The session timeout of the consumer."),
    ("topic", Takes::Value("TOPIC"), "REQUIRED: The topic to consume."),
    ("verbose", Takes::Nothing, "Print each record."),
];

/// Runs the tool until it has read what it was asked for, or is told to stop.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let about = "This tool consumes messages from a specific topic and emits consumer events (e.g. \
        group rebalances, received messages, and offsets committed) as JSON objects to STDOUT.";
    let parsed = Grammar::new(about, &SPECS).argparse(&[]).parse(args)?;
    let topic = parsed.required("topic")?.to_owned();
    let bootstrap = parsed.required("bootstrap-server")?.to_owned();
    let group = parsed.required("group-id")?;
    let max = parsed.number::<i64>("max-messages")?.and_then(|max| u64::try_from(max).ok());
    let mut properties = settings(env, &parsed, group)?;
    let options = consumer_options(&mut properties)?;
    let client =
        properties.connect(env, &bootstrap, &format!("consumer-{group}-1"), None, err).await?;
    let consumer = Consumer::new(&client, options);
    let mut stop = Stop::new()?;
    event(env, out, "startup_complete", "")?;
    let mut member = Member { consumer, joins: 0, assigned: Vec::new() };
    member.consumer.subscribe([topic])?;
    let ended = member.read(env, &parsed, max, &mut stop, out).await;
    let told = stop.is_asked();
    if told {
        event(env, out, "shutdown_requested", "")?;
    }
    if member.joins > 0 {
        event(env, out, "partitions_revoked", &partitions(&member.assigned))?;
    }
    if let Err(error) = member.consumer.close().await {
        writeln!(err, "The last commit failed: {}", plain(&error))?;
    }
    event(env, out, "shutdown_complete", "")?;
    if !told {
        event(env, out, "shutdown_requested", "")?;
    }
    ended.map(|()| 0)
}

fn settings(env: &Env, parsed: &Parsed, group: &str) -> Result<Properties, Failure> {
    if let Some(strategy) = parsed
        .value("assignment-strategy")
        .filter(|strategy| strategy.rsplit('.').next() != Some("RangeAssignor"))
    {
        return Err(parsed.wrong(format!(
            "--assignment-strategy: {strategy} is not supported; use \
             org.apache.kafka.clients.consumer.RangeAssignor"
        )));
    }
    let mut properties = Properties::load(env, parsed, &["command-config", "consumer.config"])?;
    properties.set("group.id", group);
    let protocol = parsed.value("group-protocol").unwrap_or("classic").to_ascii_lowercase();
    properties.set("group.protocol", &protocol);
    let commits = if parsed.has("enable-autocommit") { "true" } else { "false" };
    properties.set("enable.auto.commit", commits);
    properties.set("auto.offset.reset", parsed.value("reset-policy").unwrap_or("earliest"));
    for (option, key) in
        [("group-instance-id", "group.instance.id"), ("session-timeout", "session.timeout.ms")]
    {
        if let Some(value) = parsed.value(option) {
            properties.set(key, value);
        }
    }
    Ok(properties)
}

/// The member of the group, and what was said about it.
struct Member {
    consumer: Consumer,
    /// Of which `assigned` is the outcome.
    joins: u64,
    assigned: Vec<TopicPartition>,
}

impl Member {
    /// Reads up to `max` records, or until it is told to stop.
    async fn read(
        &mut self,
        env: &Env,
        parsed: &Parsed,
        max: Option<u64>,
        stop: &mut Stop,
        out: &mut (dyn Write + Send),
    ) -> Result<(), Failure> {
        let mut count = 0u64;
        while max.is_none_or(|max| count < max) {
            let polled = tokio::select! {
                biased;
                () = stop.asked() => return Ok(()),
                polled = self.consumer.poll(Duration::from_millis(500)) => polled,
            };
            self.tell_assignment(env, out)?;
            let records = polled.map_err(|error| {
                Failure::Stderr(format!(
                    "Error during processing, terminating consumer process: {}",
                    plain(&error)
                ))
            })?;
            if records.is_empty() {
                continue;
            }
            let taken: Vec<&ConsumerRecord> = records.iter().take(room(max, count)).collect();
            count = count.saturating_add(u64::try_from(taken.len()).unwrap_or(0));
            if parsed.has("verbose") {
                for record in &taken {
                    event(env, out, "record_data", &record_fields(record))?;
                }
            }
            let offsets = consumed(env, &taken, records.len(), out)?;
            if !parsed.has("enable-autocommit") {
                let committed = self.consumer.commit_offsets(&offsets).await;
                let error = committed.err().map(|error| plain(&error));
                let fields = commit_fields(&offsets, error.as_deref());
                event(env, out, "offsets_committed", &fields)?;
            }
        }
        Ok(())
    }

    /// Says which partitions the member has, when it has joined since.
    fn tell_assignment(&mut self, env: &Env, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
        if self.consumer.joins() <= self.joins {
            return Ok(());
        }
        // The member has the new partitions by now; it gave the old ones up before.
        if self.joins > 0 {
            event(env, out, "partitions_revoked", &partitions(&self.assigned))?;
        }
        (self.joins, self.assigned) = (self.consumer.joins(), self.consumer.assignment());
        event(env, out, "partitions_assigned", &partitions(&self.assigned))
    }
}

fn text(bytes: Option<&bytes::Bytes>) -> String {
    json::text_or_null(bytes.map(|bytes| String::from_utf8_lossy(bytes)).as_deref())
}

fn partition_fields(partition: &TopicPartition) -> String {
    format!("\"topic\":{},\"partition\":{}", json::text(&partition.topic), partition.partition)
}

fn partitions(assigned: &[TopicPartition]) -> String {
    let list: Vec<String> =
        assigned.iter().map(|partition| format!("{{{}}}", partition_fields(partition))).collect();
    format!(",\"partitions\":[{}]", list.join(","))
}

fn record_fields(record: &ConsumerRecord) -> String {
    let place = partition_fields(&TopicPartition::new(record.topic.clone(), record.partition));
    format!(
        ",\"key\":{},\"value\":{},{place},\"offset\":{}",
        text(record.key.as_ref()),
        text(record.value.as_ref()),
        record.offset
    )
}

/// Prints how many records of which partitions came; the offsets to commit.
fn consumed(
    env: &Env,
    taken: &[&ConsumerRecord],
    polled: usize,
    out: &mut (dyn Write + Send),
) -> Result<BTreeMap<TopicPartition, CommittedOffset>, Failure> {
    let mut ranges: BTreeMap<TopicPartition, (u64, i64, i64)> = BTreeMap::new();
    for record in taken {
        let range = ranges
            .entry(TopicPartition::new(record.topic.clone(), record.partition))
            .or_insert((0, record.offset, record.offset));
        *range = (range.0 + 1, range.1, record.offset);
    }
    let summary = |(partition, (count, first, last)): (&TopicPartition, &(u64, i64, i64))| {
        format!(
            "{{{},\"count\":{count},\"minOffset\":{first},\"maxOffset\":{last}}}",
            partition_fields(partition)
        )
    };
    let summaries: Vec<String> = ranges.iter().map(summary).collect();
    event(
        env,
        out,
        "records_consumed",
        &format!(",\"count\":{polled},\"partitions\":[{}]", summaries.join(",")),
    )?;
    let committed = |last: i64| CommittedOffset {
        offset: last.saturating_add(1),
        leader_epoch: -1,
        metadata: String::new(),
    };
    Ok(ranges.into_iter().map(|(partition, (_, _, last))| (partition, committed(last))).gather())
}

fn commit_fields(
    offsets: &BTreeMap<TopicPartition, CommittedOffset>,
    error: Option<&str>,
) -> String {
    let list: Vec<String> = offsets
        .iter()
        .map(|(partition, committed)| {
            format!("{{{},\"offset\":{}}}", partition_fields(partition), committed.offset)
        })
        .collect();
    let list = list.join(",");
    match error {
        None => format!(",\"offsets\":[{list}],\"success\":true"),
        Some(error) => {
            format!(",\"offsets\":[{list}],\"error\":{},\"success\":false", json::text(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_fields_of_kafkas_tool() {
        let record = ConsumerRecord {
            topic: "v".to_owned(),
            partition: 0,
            offset: 2,
            leader_epoch: 0,
            timestamp: 0,
            log_append_time: false,
            key: None,
            value: Some("7.2".into()),
            headers: Vec::new(),
        };
        assert_eq!(
            record_fields(&record),
            r#","key":null,"value":"7.2","topic":"v","partition":0,"offset":2"#
        );
        let mut out = Vec::new();
        let first = ConsumerRecord { offset: 1, ..record.clone() };
        let offsets = consumed(&Env::real(), &[&first, &record], 3, &mut out).unwrap();
        let line = String::from_utf8(out).unwrap();
        let fields = r#""name":"records_consumed","count":3,"partitions":[{"topic":"v","partition":0,"count":2,"minOffset":1,"maxOffset":2}]}"#;
        assert!(
            line.starts_with("{\"timestamp\":") && line.ends_with(&format!("{fields}\n")),
            "{line}"
        );
        assert_eq!(
            commit_fields(&offsets, None),
            r#","offsets":[{"topic":"v","partition":0,"offset":3}],"success":true"#
        );
        assert_eq!(
            commit_fields(&BTreeMap::new(), Some("no")),
            r#","offsets":[],"error":"no","success":false"#
        );
        assert_eq!(
            partitions(&[TopicPartition::new("v", 0)]),
            r#","partitions":[{"topic":"v","partition":0}]"#
        );
    }
}
