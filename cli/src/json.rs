//! JSON as Kafka's tools print it: fields in a fixed order, so it is written by hand. And the files
//! that they read.

use letterbox_client::TopicPartition;
use serde_json::Value;

/// A string in quotes, with what must be escaped escaped.
pub(crate) fn text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A string in quotes, or null.
pub(crate) fn text_or_null(value: Option<&str>) -> String {
    value.map_or_else(|| "null".to_owned(), text)
}

/// Reads a file of a tool. Kafka's tools take one without a version for version 1.
pub(crate) fn read(text: &[u8]) -> Result<Value, String> {
    let file: Value = serde_json::from_slice(text)
        .map_err(|_| "The input string is not a valid JSON".to_owned())?;
    match file.get("version").map(Value::as_i64) {
        None | Some(Some(1)) => Ok(file),
        Some(version) => Err(format!(
            "Not supported version field value {}",
            version.map_or_else(String::new, |version| version.to_string())
        )),
    }
}

/// The list `field` of such a file; `None` when it has none.
pub(crate) fn entries<'a>(file: &'a Value, field: &str) -> Result<Option<&'a [Value]>, String> {
    let list = |all: &'a Value| {
        all.as_array().map(Vec::as_slice).ok_or_else(|| format!("The field {field} is not a list"))
    };
    file.get(field).map(list).transpose()
}

/// What to say of an entry whose `field` is missing or out of range.
pub(crate) fn wrong(entry: &Value, field: &str) -> String {
    format!("The entry {entry} has no valid field {field}")
}

/// The field `topic` of an entry.
pub(crate) fn topic(entry: &Value) -> Result<&str, String> {
    entry.get("topic").and_then(Value::as_str).ok_or_else(|| wrong(entry, "topic"))
}

/// The fields `topic` and `partition` of an entry.
pub(crate) fn partition(entry: &Value) -> Result<TopicPartition, String> {
    let partition = entry.get("partition").and_then(id).ok_or_else(|| wrong(entry, "partition"))?;
    Ok(TopicPartition::new(topic(entry)?, partition))
}

/// An index of a partition, or the id of a broker.
pub(crate) fn id(value: &Value) -> Option<i32> {
    i32::try_from(value.as_i64()?).ok()
}
