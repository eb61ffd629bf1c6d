//! `kafka-delete-records`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use letterbox_client::TopicPartition;
use letterbox_env::Env;
use serde_json::Value;

use crate::args::{Grammar, Spec, Takes};
use crate::connect;
use crate::failure::{Failure, java_cause};
use crate::json;
use crate::text::joined;

const SPECS: [Spec; 1] = [(
    "offset-json-file",
    Takes::Value("String: Offset json file path"),
    "REQUIRED: The JSON file with an offset for each partition; -1 is the high watermark. Example: \
     {\"partitions\":[{\"topic\":\"foo\",\"partition\":1,\"offset\":1}],\"version\":1}",
)];

/// Runs the tool.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let about =
        "This tool helps to delete records of the given partitions down to the specified offset.";
    let parsed = Grammar::new(about, &SPECS).parse(args)?;
    parsed.required("bootstrap-server")?;
    let file = parsed.required("offset-json-file")?;
    let bytes = env
        .disk
        .read(Path::new(file))
        .map_err(|error| Failure::Stderr(format!("Unable to read file {file}: {error}")))?;
    let before = offsets(&bytes).map_err(Failure::Stderr)?;
    let client = connect::admin(env, &parsed, None, err).await?;
    writeln!(out, "Executing records delete operation")?;
    out.flush()?;
    let deleted = client.delete_records(&before).await?;
    writeln!(out, "Records delete operation completed:")?;
    for (partition, outcome) in deleted {
        match outcome {
            Ok(low_watermark) => {
                writeln!(out, "partition: {partition}\tlow_watermark: {low_watermark}")?
            }
            Err(error) => writeln!(out, "partition: {partition}\terror: {}", java_cause(&error))?,
        }
    }
    Ok(0)
}

fn offsets(bytes: &[u8]) -> Result<BTreeMap<TopicPartition, i64>, String> {
    let file = json::read(bytes)?;
    let partitions = json::entries(&file, "partitions")?.ok_or("Missing partitions field")?;
    let (mut offsets, mut twice) = (BTreeMap::new(), BTreeSet::new());
    for entry in partitions {
        let partition = json::partition(entry)?;
        let offset = entry.get("offset").and_then(Value::as_i64);
        let offset = offset.ok_or_else(|| json::wrong(entry, "offset"))?;
        if offsets.insert(partition.clone(), offset).is_some() {
            twice.insert(partition.to_string());
        }
    }
    if twice.is_empty() {
        return Ok(offsets);
    }
    let twice = joined(&twice);
    Err(format!("Offset json file contains duplicate topic partitions: {twice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_as_kafka_reads_it() {
        let read = |text: &str| offsets(text.as_bytes());
        let one = r#"{"partitions":[{"topic":"a","partition":0,"offset":-1}],"version":1}"#;
        assert_eq!(read(one), Ok(BTreeMap::from([(TopicPartition::new("a", 0), -1)])));
        assert_eq!(read(&one.replace(",\"version\":1", "")), read(one));
        for (text, why) in [
            ("{\"part", "The input string is not a valid JSON"),
            ("{}", "Missing partitions field"),
            (r#"{"partitions":[],"version":2}"#, "Not supported version field value 2"),
            (
                r#"{"partitions":[{"topic":"a","partition":0,"offset":1},{"topic":"a","partition":0,"offset":2}]}"#,
                "Offset json file contains duplicate topic partitions: a-0",
            ),
        ] {
            assert_eq!(read(text), Err(why.to_owned()), "{text}");
        }
        assert!(
            read(r#"{"partitions":[{"topic":"a","partition":4294967296,"offset":1}]}"#).is_err()
        );
    }
}
