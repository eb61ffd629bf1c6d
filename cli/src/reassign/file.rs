//! The files of the tool: what is to move where.

use std::collections::BTreeMap;

use letterbox_client::TopicPartition;
use letterbox_env::Gather;
use serde_json::Value;

use super::dirs::{Dirs, Named};
use crate::json;
use crate::text::joined;

/// Where a partition is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) partition: TopicPartition,
    /// The preferred leader first.
    pub(super) replicas: Vec<i32>,
    /// The log directory of each, or [`ANY`]; empty where the file says nothing of them.
    dirs: Vec<String>,
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
    let Some(dirs) = entry.get("log_dirs") else {
        return Ok(Assignment { partition, replicas, dirs: Vec::new() });
    };
    let wrong = || json::wrong(entry, "log_dirs");
    let texts = dirs.as_array().ok_or_else(wrong)?.iter();
    let texts = texts.map(|dir| dir.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
    let texts = texts.ok_or_else(wrong)?;
    if texts.len() != replicas.len() {
        return Err(format!(
            "Size of replicas list {replicas:?} is different from size of log dirs list {dirs} for \
             partition {partition}"
        ));
    }
    Ok(Assignment { partition, replicas, dirs: texts })
}

/// The replicas for which a directory is named.
pub(super) fn named(moves: &[Assignment]) -> Named {
    let of_one = |one: &Assignment| {
        let each = one.replicas.iter().copied().zip(one.dirs.clone()).filter(|(_, dir)| dir != ANY);
        let partition = one.partition.clone();
        each.map(move |(id, dir)| ((id, partition.clone()), dir)).collect::<Vec<_>>()
    };
    moves.iter().flat_map(of_one).gather()
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
    for Assignment { partition, replicas, .. } in moves {
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

/// As the tool reads it again, with the directories that are known.
pub(super) fn as_json(assignments: &BTreeMap<TopicPartition, Vec<i32>>, known: &Dirs) -> String {
    let partitions: Vec<String> = assignments
        .iter()
        .map(|(partition, replicas)| {
            let dir = |id: &i32| json::text(known.place(*id, partition).unwrap_or(ANY));
            let dirs = joined(replicas.iter().map(dir));
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
    use letterbox_client::{LogDirectory, LogReplica};

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
        let written = as_json(&moves, &Dirs::default());
        assert_eq!(read_and_check(&written), Ok(moves.clone()));
        assert_eq!(read_and_check(&written.replace("\"version\":1,", "")), Ok(moves));
        let topics = r#"{"topics":[{"topic":"b"},{"topic":"a"}],"version":1}"#;
        assert_eq!(topics_of(topics), Ok(vec!["b".to_owned(), "a".to_owned()]));
    }

    #[test]
    fn the_directories_that_are_known_are_written_and_read_again() {
        let partition = TopicPartition::new("a", 0);
        let replica = LogReplica { bytes: 0, offset_lag: 0, is_future: false };
        let replicas = BTreeMap::from([(partition.clone(), replica)]);
        let dir = LogDirectory { path: "/d".to_owned(), error: None, replicas };
        let moves = BTreeMap::from([(partition.clone(), vec![2, 1])]);
        let written = as_json(&moves, &Dirs::known(1, vec![dir]));
        assert!(written.contains(r#""log_dirs":["any","/d"]"#), "{written}");
        let read = moves_of(&written).unwrap();
        assert_eq!(named(&read), Named::from([((1, partition), "/d".to_owned())]));
        assert_eq!(checked(read), Ok(moves));
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
        let dir = one("a", "1").replace("\"replicas\"", "\"log_dirs\":[1],\"replicas\"");
        for wrong in [one("a", "\"x\""), one("a", "4294967296"), "{}".to_owned(), dir] {
            assert!(read_and_check(&file(&[wrong])).is_err());
        }
    }
}
