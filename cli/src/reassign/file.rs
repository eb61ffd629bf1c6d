//! The files of the tool: what is to move where.

use std::collections::BTreeMap;

use letterbox_client::TopicPartition;
use serde_json::Value;

use crate::json;
use crate::text::joined;

/// Where a partition is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) partition: TopicPartition,
    /// The preferred leader first.
    pub(super) replicas: Vec<i32>,
}

/// In which log directory of its broker a replica lies is the broker's choice.
const ANY: &str = "any";

/// The entries of a reassignment file, in its order.
pub(super) fn moves_of(text: &str) -> Result<Vec<Assignment>, String> {
    let file = json::read(text.as_bytes())?;
    let entries = json::entries(&file, "partitions")?.unwrap_or_default();
    entries.iter().map(assignment).collect()
}

/// The topics of a file for `--generate`, in its order.
pub(super) fn topics_of(text: &str) -> Result<Vec<String>, String> {
    let file = json::read(text.as_bytes())?;
    let entries = json::entries(&file, "topics")?.unwrap_or_default();
    entries.iter().map(|entry| json::topic(entry).map(str::to_owned)).collect()
}

fn assignment(entry: &Value) -> Result<Assignment, String> {
    let partition = json::partition(entry)?;
    let ids = entry.get("replicas").and_then(Value::as_array);
    let ids = ids.and_then(|ids| ids.iter().map(json::id).collect::<Option<Vec<i32>>>());
    let replicas = ids.ok_or_else(|| json::wrong(entry, "replicas"))?;
    if let Some(dirs) = entry.get("log_dirs") {
        let dirs = dirs.as_array().ok_or_else(|| json::wrong(entry, "log_dirs"))?;
        if dirs.len() != replicas.len() {
            return Err(format!(
                "Size of replicas list {replicas:?} is different from size of log dirs list {} for \
                 partition {partition}",
                Value::from(dirs.clone())
            ));
        }
        if dirs.iter().any(|dir| dir.as_str() != Some(ANY)) {
            return Err(format!(
                "The log_dirs of partition {partition} name a directory. Moving replicas between \
                 log directories is not supported by this tool yet: write \"{ANY}\" for each."
            ));
        }
    }
    Ok(Assignment { partition, replicas })
}

/// What may be started: each partition once, on brokers that are named once.
pub(super) fn checked(
    moves: Vec<Assignment>,
) -> Result<BTreeMap<TopicPartition, Vec<i32>>, String> {
    if moves.is_empty() {
        return Err("Partition reassignment list cannot be empty".to_owned());
    }
    if moves.iter().any(|one| one.replicas.is_empty()) {
        return Err("Partition replica list cannot be empty".to_owned());
    }
    let (mut checked, mut twice) = (BTreeMap::new(), Vec::new());
    for Assignment { partition, replicas } in moves {
        if checked.insert(partition.clone(), replicas).is_some() && !twice.contains(&partition) {
            twice.push(partition);
        }
    }
    if !twice.is_empty() {
        let twice = joined(&twice);
        return Err(format!("Partition reassignment contains duplicate topic partitions: {twice}"));
    }
    let several = checked.iter().filter_map(|(partition, replicas)| {
        let several = duplicates(replicas);
        let ids = joined(&several);
        (!several.is_empty()).then(|| format!("{partition} contains multiple entries for {ids}"))
    });
    let several: Vec<String> = several.collect();
    if several.is_empty() {
        return Ok(checked);
    }
    Err(format!(
        "Partition replica lists may not contain duplicate entries: {}",
        several.join(". ")
    ))
}

/// What is there more than once, in the order in which it comes again.
pub(super) fn duplicates<T: PartialEq + Clone>(all: &[T]) -> Vec<T> {
    let mut found: Vec<T> = Vec::new();
    for (at, one) in all.iter().enumerate() {
        if all.iter().take(at).any(|earlier| earlier == one) && !found.contains(one) {
            found.push(one.clone());
        }
    }
    found
}

/// As the tool reads it again.
pub(super) fn as_json(assignments: &BTreeMap<TopicPartition, Vec<i32>>) -> String {
    let partitions: Vec<String> = assignments
        .iter()
        .map(|(partition, replicas)| {
            let dirs = joined(replicas.iter().map(|_| json::text(ANY)));
            format!(
                "{{\"topic\":{},\"partition\":{},\"replicas\":[{}],\"log_dirs\":[{dirs}]}}",
                json::text(&partition.topic),
                partition.partition,
                joined(replicas)
            )
        })
        .collect();
    format!("{{\"version\":1,\"partitions\":[{}]}}", partitions.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_and_check(text: &str) -> Result<BTreeMap<TopicPartition, Vec<i32>>, String> {
        moves_of(text).and_then(checked)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let moves = BTreeMap::from([
            (TopicPartition::new("a", 0), vec![2, 1]),
            (TopicPartition::new("a \"b\"", 10), vec![3]),
        ]);
        let written = as_json(&moves);
        assert_eq!(read_and_check(&written), Ok(moves.clone()));
        assert_eq!(read_and_check(&written.replace("\"version\":1,", "")), Ok(moves));
        let topics = r#"{"topics":[{"topic":"b"},{"topic":"a"}],"version":1}"#;
        assert_eq!(topics_of(topics), Ok(vec!["b".to_owned(), "a".to_owned()]));
    }

    #[test]
    fn what_is_wrong_is_said_as_kafka_says_it() {
        let one = |topic: &str, ids: &str| {
            format!(r#"{{"topic":"{topic}","partition":0,"replicas":[{ids}]}}"#)
        };
        let file = |entries: &[String]| format!(r#"{{"partitions":[{}]}}"#, entries.join(","));
        for (text, why) in [
            ("{\"part".to_owned(), "The input string is not a valid JSON"),
            (r#"{"partitions":[],"version":2}"#.to_owned(), "Not supported version field value 2"),
            ("{}".to_owned(), "Partition reassignment list cannot be empty"),
            (file(&[one("a", "")]), "Partition replica list cannot be empty"),
            (
                file(&[one("a", "1"), one("b", "1"), one("a", "2")]),
                "Partition reassignment contains duplicate topic partitions: a-0",
            ),
            (
                file(&[one("a", "1,1,2"), one("b", "3,3")]),
                "Partition replica lists may not contain duplicate entries: a-0 contains multiple \
                 entries for 1. b-0 contains multiple entries for 3",
            ),
            (
                file(&[
                    one("a", "1,2").replace("\"replicas\"", "\"log_dirs\":[\"any\"],\"replicas\"")
                ]),
                "Size of replicas list [1, 2] is different from size of log dirs list [\"any\"] for \
                 partition a-0",
            ),
        ] {
            assert_eq!(read_and_check(&text), Err(why.to_owned()), "{text}");
        }
        let dir = one("a", "1").replace("\"replicas\"", "\"log_dirs\":[\"/d\"],\"replicas\"");
        assert!(read_and_check(&file(&[dir])).is_err_and(|why| why.contains("not supported")));
        for wrong in [one("a", "\"x\""), one("a", "4294967296"), "{}".to_owned()] {
            assert!(read_and_check(&file(&[wrong])).is_err());
        }
    }
}
