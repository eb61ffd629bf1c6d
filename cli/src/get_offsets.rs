//! `kafka-get-offsets`.

use std::collections::BTreeMap;
use std::io::Write;

use letterbox_client::{IsolationLevel, OffsetSpec, TopicPartition};
use letterbox_env::Env;

use crate::args::{Grammar, Parsed, Spec, Takes, listed};
use crate::connect;
use crate::failure::{Failure, plain};
use crate::pattern::{Pattern, is_internal};

const SPECS: [Spec; 5] = [
    ("exclude-internal-topics", Takes::Nothing, "Exclude internal topics."),
    ("partitions", Takes::Value("String: partition ids"), "Partition ids, separated by commas."),
    (
        "time",
        Takes::Value(
            "String: <timestamp> / -1 or latest / -2 or earliest / -3 or max-timestamp / -4 or \
             earliest-local / -5 or latest-tiered / -6 or earliest-pending-upload",
        ),
        "The offset to list. (default: latest)",
    ),
    ("topic", Takes::Value("String: topic"), "The topics, as a regular expression."),
    (
        "topic-partitions",
        Takes::Value("String: topic1:1,topic2:0-3,topic3"),
        "Patterns with partition ranges, separated by commas.",
    ),
];

/// Runs the tool.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let occurred = |why: String| Failure::Stderr(format!("Error occurred: {why}"));
    let grammar = Grammar::new("An interactive shell for getting topic-partition offsets.", &SPECS);
    let parsed = grammar.refuse_repeated(occurred).parse(args)?;
    parsed.required("bootstrap-server")?;
    if parsed.has("topic-partitions") && (parsed.has("topic") || parsed.has("partitions")) {
        return Err(occurred(
            "--topic-partitions cannot be used with --topic or --partitions".to_owned(),
        ));
    }
    let spec = time(parsed.value("time").unwrap_or("latest")).map_err(occurred)?;
    let filters = filters(&parsed).map_err(occurred)?;
    let client = connect::admin(env, &parsed, None, err).await?;
    let metadata = client.metadata(None).await.map_err(|error| occurred(plain(&error)))?;
    let mut wanted = BTreeMap::new();
    for (name, topic) in &metadata.topics {
        if parsed.has("exclude-internal-topics") && (topic.is_internal || is_internal(name)) {
            continue;
        }
        for partition in topic.partitions.keys() {
            if filters.iter().any(|filter| filter.takes(name, *partition)) {
                wanted.insert(TopicPartition::new(name, *partition), spec);
            }
        }
    }
    if wanted.is_empty() {
        return Err(occurred(
            "Could not match any topic-partitions with the specified filters".to_owned(),
        ));
    }
    let found = client
        .list_offsets(&wanted, IsolationLevel::ReadUncommitted)
        .await
        .map_err(|error| occurred(plain(&error)))?;
    for (partition, found) in found {
        // No offset, no line; a partition without leader is left out as well.
        if let Ok(Some(offset)) = found.map(|found| found.offset) {
            writeln!(out, "{}:{}:{offset}", partition.topic, partition.partition)?;
        }
    }
    Ok(0)
}

fn time(text: &str) -> Result<OffsetSpec, String> {
    Ok(match text {
        "latest" | "-1" => OffsetSpec::Latest,
        "earliest" | "-2" => OffsetSpec::Earliest,
        "max-timestamp" | "-3" => OffsetSpec::MaxTimestamp,
        "earliest-local" | "-4" => OffsetSpec::EarliestLocal,
        "latest-tiered" | "-5" => OffsetSpec::LatestTiered,
        "earliest-pending-upload" | "-6" => OffsetSpec::EarliestPendingUpload,
        text => match text.parse::<i64>() {
            Ok(ms) if ms >= 0 => OffsetSpec::Timestamp(ms),
            _ => {
                return Err(format!(
                    "Malformed time argument {text}. Please use -1 or latest / -2 or earliest / -3 \
                     or max-timestamp / -4 or earliest-local / -5 or latest-tiered / -6 or \
                     earliest-pending-upload, or a specified long format timestamp"
                ));
            }
        },
    })
}

/// A pattern of topics and half-open ranges of partitions; no ranges: all.
struct Filter {
    topics: Pattern,
    ranges: Vec<(i32, i32)>,
}

impl Filter {
    fn takes(&self, topic: &str, partition: i32) -> bool {
        let in_range = self.ranges.is_empty()
            || self.ranges.iter().any(|(from, to)| (*from..*to).contains(&partition));
        in_range && self.topics.matches(topic)
    }
}

fn filters(parsed: &Parsed) -> Result<Vec<Filter>, String> {
    let pattern = |text: &str| {
        Pattern::parse(if text.is_empty() { ".*" } else { text })
            .map_err(|why| format!("invalid pattern {text:?}: {why}"))
    };
    if let Some(text) = parsed.value("topic-partitions") {
        return text
            .split(',')
            .map(|part| {
                let (topics, range) = part.split_once(':').unwrap_or((part, ""));
                Ok(Filter {
                    topics: pattern(topics.trim())?,
                    ranges: range_of(range.trim())?.into_iter().collect(),
                })
            })
            .collect();
    }
    let mut ranges = Vec::new();
    for id in parsed.value("partitions").into_iter().flat_map(listed) {
        let id: i32 = id.parse().map_err(|_| {
            format!(
                "--partitions expects a comma separated list of numeric \
                partition ids, but received: {id}"
            )
        })?;
        ranges.push((id, id.saturating_add(1)));
    }
    Ok(vec![Filter { topics: pattern(parsed.value("topic").unwrap_or(".*"))?, ranges }])
}

/// `3`, `0-3` (up to 2), `2-` (from 2) or `-3` (up to 2); nothing for all.
fn range_of(text: &str) -> Result<Option<(i32, i32)>, String> {
    let wrong = |_| format!("Invalid partition range: {text}");
    if text.is_empty() {
        return Ok(None);
    }
    let Some((from, to)) = text.split_once('-') else {
        let id: i32 = text.parse().map_err(wrong)?;
        return Ok(Some((id, id.saturating_add(1))));
    };
    let from = if from.is_empty() { 0 } else { from.parse().map_err(wrong)? };
    let to = if to.is_empty() { i32::MAX } else { to.parse().map_err(wrong)? };
    Ok(Some((from, to)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_half_open() {
        assert_eq!(range_of("3"), Ok(Some((3, 4))));
        assert_eq!(range_of("0-3"), Ok(Some((0, 3))));
        assert_eq!(range_of("2-"), Ok(Some((2, i32::MAX))));
        assert_eq!(range_of("-3"), Ok(Some((0, 3))));
        assert!(range_of("x").is_err());
        assert_eq!(time("-3"), Ok(OffsetSpec::MaxTimestamp));
        assert_eq!(time("7"), Ok(OffsetSpec::Timestamp(7)));
        assert!(time("-9").is_err());
    }
}
