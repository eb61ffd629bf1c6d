//! How `kafka-console-consumer` prints a record: Kafka's formatters by their class names.

use std::collections::BTreeMap;
use std::io::Write;

use letterbox_client::ConsumerRecord;
use letterbox_env::Env;

use crate::args::Parsed;
use crate::coordinator_records::{Kind, key_json, key_type, value_json};
use crate::deserializers::Show;
use crate::failure::Failure;
use crate::files::read_properties;

/// A formatter.
pub(crate) enum Formatter {
    Default(Fields),
    /// Prints nothing: for measuring.
    NoOp,
    /// Records of `__consumer_offsets` of one kind as JSON; others are passed over.
    Coordinator(Kind),
}

impl Formatter {
    /// The formatter that was asked for, with its properties.
    pub(crate) fn new(env: &Env, parsed: &Parsed) -> Result<Self, Failure> {
        let class = parsed
            .value("formatter")
            .unwrap_or("org.apache.kafka.tools.consumer.DefaultMessageFormatter");
        let mut properties = properties(env, parsed)?;
        // The names before 4.0 stand in most answers on the web.
        let formatter = match class {
            "org.apache.kafka.tools.consumer.DefaultMessageFormatter"
            | "org.apache.kafka.tools.consumer.LoggingMessageFormatter"
            | "kafka.tools.DefaultMessageFormatter"
            | "kafka.tools.LoggingMessageFormatter" => Self::Default(Fields::new(&mut properties)?),
            "org.apache.kafka.tools.consumer.NoOpMessageFormatter"
            | "kafka.tools.NoOpMessageFormatter" => Self::NoOp,
            "org.apache.kafka.tools.consumer.OffsetsMessageFormatter"
            | "kafka.coordinator.group.GroupMetadataManager$OffsetsMessageFormatter" => {
                Self::Coordinator(Kind::Offset)
            }
            "org.apache.kafka.tools.consumer.GroupMetadataMessageFormatter"
            | "kafka.coordinator.group.GroupMetadataManager$GroupMetadataMessageFormatter" => {
                Self::Coordinator(Kind::Group)
            }
            class => {
                let known = "DefaultMessageFormatter, LoggingMessageFormatter, \
                    NoOpMessageFormatter, OffsetsMessageFormatter or \
                    GroupMetadataMessageFormatter of org.apache.kafka.tools.consumer";
                return Err(Failure::Stderr(format!(
                    "the formatter {class} is not supported; use {known}"
                )));
            }
        };
        match properties.keys().next() {
            // Kafka's formatters without properties pass over them; that of fields would leave a
            // wish unfulfilled.
            Some(key) if matches!(formatter, Self::Default(_)) => {
                Err(Failure::Stderr(format!("the formatter property {key} is not supported")))
            }
            _ => Ok(formatter),
        }
    }

    /// Prints `record`.
    ///
    /// # Errors
    /// `InvalidData` when a deserializer cannot read it; the output's own.
    pub(crate) fn write(
        &self,
        record: &ConsumerRecord,
        out: &mut (dyn Write + Send),
    ) -> std::io::Result<()> {
        match self {
            Self::Default(fields) => fields.write(record, out),
            Self::NoOp => Ok(()),
            Self::Coordinator(kind) => match coordinator_json(*kind, record) {
                Some(line) => out.write_all(line.as_bytes()),
                None => Ok(()),
            },
        }
    }
}

/// `{"key":{"type":…,"data":…},"value":{"version":…,"data":…}}`, without an end of line as Kafka's;
/// `None` when it is of another kind.
fn coordinator_json(kind: Kind, record: &ConsumerRecord) -> Option<String> {
    let key = record.key.as_ref()?;
    let (number, _) = key_type(key).filter(|(_, found)| *found == Some(kind))?;
    let key = key_json(kind, key).ok()?;
    let value = match &record.value {
        None => "null".to_owned(),
        Some(value) => {
            let (version, data) = value_json(kind, value, false).ok()?;
            format!(
                "{{\"version\":{version},\"data\":{}}}",
                data.unwrap_or_else(|_| "\"unknown\"".to_owned())
            )
        }
    };
    Some(format!("{{\"key\":{{\"type\":{number},\"data\":{key}}},\"value\":{value}}}"))
}

fn properties(env: &Env, parsed: &Parsed) -> Result<BTreeMap<String, String>, Failure> {
    let mut properties = BTreeMap::new();
    if let Some(file) = parsed.value("formatter-config") {
        properties.extend(read_properties(env, file)?);
    }
    for (option, key) in
        [("key-deserializer", "key.deserializer"), ("value-deserializer", "value.deserializer")]
    {
        if let Some(class) = parsed.value(option) {
            properties.insert(key.to_owned(), class.to_owned());
        }
    }
    for word in parsed.values("property").into_iter().chain(parsed.values("formatter-property")) {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        properties.insert(key.trim().to_owned(), value.to_owned());
    }
    Ok(properties)
}

/// Which fields of a record are printed, and how.
pub(crate) struct Fields {
    timestamp: bool,
    partition: bool,
    offset: bool,
    delivery: bool,
    epoch: bool,
    headers: bool,
    key: bool,
    value: bool,
    key_separator: Vec<u8>,
    line_separator: Vec<u8>,
    headers_separator: Vec<u8>,
    null_literal: Vec<u8>,
    show_key: Show,
    show_value: Show,
    show_headers: Show,
}

impl Fields {
    fn new(properties: &mut BTreeMap<String, String>) -> Result<Self, Failure> {
        let mut take = |key: &str| properties.remove(key);
        let flag = |value: Option<String>, default: bool| {
            value.map_or(default, |value| value.trim().eq_ignore_ascii_case("true"))
        };
        let bytes = |value: Option<String>, default: &str| {
            value
                .map_or_else(
                    || default.to_owned(),
                    |value| value.replace("\\t", "\t").replace("\\n", "\n"),
                )
                .into_bytes()
        };
        Ok(Self {
            timestamp: flag(take("print.timestamp"), false),
            partition: flag(take("print.partition"), false),
            offset: flag(take("print.offset"), false),
            delivery: flag(take("print.delivery"), false),
            epoch: flag(take("print.epoch"), false),
            headers: flag(take("print.headers"), false),
            key: flag(take("print.key"), false),
            value: flag(take("print.value"), true),
            key_separator: bytes(take("key.separator"), "\t"),
            line_separator: bytes(take("line.separator"), "\n"),
            headers_separator: bytes(take("headers.separator"), ","),
            null_literal: bytes(take("null.literal"), "null"),
            show_key: Show::of(take("key.deserializer").as_deref())?,
            show_value: Show::of(take("value.deserializer").as_deref())?,
            show_headers: Show::of(take("headers.deserializer").as_deref())?,
        })
    }

    fn write(&self, record: &ConsumerRecord, out: &mut (dyn Write + Send)) -> std::io::Result<()> {
        let fields = [
            self.timestamp,
            self.partition,
            self.offset,
            self.delivery,
            self.epoch,
            self.headers,
            self.key,
            self.value,
        ];
        let last = fields.iter().rposition(|wanted| *wanted);
        for (index, _) in fields.iter().enumerate().filter(|(_, wanted)| **wanted) {
            match index {
                0 if record.timestamp < 0 => write!(out, "NO_TIMESTAMP")?,
                0 => write!(
                    out,
                    "{}:{}",
                    if record.log_append_time { "LogAppendTime" } else { "CreateTime" },
                    record.timestamp
                )?,
                1 => write!(out, "Partition:{}", record.partition)?,
                2 => write!(out, "Offset:{}", record.offset)?,
                // Deliveries are counted in share groups only.
                3 => write!(out, "Delivery:NOT_PRESENT")?,
                4 if record.leader_epoch < 0 => write!(out, "Epoch:NOT_PRESENT")?,
                4 => write!(out, "Epoch:{}", record.leader_epoch)?,
                5 => self.write_headers(record, out)?,
                6 => self.write_field(record.key.as_deref(), self.show_key, out)?,
                _ => self.write_field(record.value.as_deref(), self.show_value, out)?,
            }
            out.write_all(if Some(index) == last {
                &self.line_separator
            } else {
                &self.key_separator
            })?;
        }
        Ok(())
    }

    fn write_headers(
        &self,
        record: &ConsumerRecord,
        out: &mut (dyn Write + Send),
    ) -> std::io::Result<()> {
        if record.headers.is_empty() {
            return write!(out, "NO_HEADERS");
        }
        for (index, header) in record.headers.iter().enumerate() {
            if index > 0 {
                out.write_all(&self.headers_separator)?;
            }
            write!(out, "{}:", header.key)?;
            self.write_field(header.value.as_deref(), self.show_headers, out)?;
        }
        Ok(())
    }

    fn write_field(
        &self,
        bytes: Option<&[u8]>,
        show: Show,
        out: &mut (dyn Write + Send),
    ) -> std::io::Result<()> {
        match bytes {
            Some(bytes) => show.write(bytes, out),
            None => out.write_all(&self.null_literal),
        }
    }
}

#[cfg(test)]
mod tests {
    use letterbox_client::record::Header;

    use super::*;
    use crate::args::Grammar;

    fn record(key: Option<&'static [u8]>, value: Option<&'static [u8]>) -> ConsumerRecord {
        ConsumerRecord {
            topic: "t".to_owned(),
            partition: 2,
            offset: 9,
            leader_epoch: -1,
            timestamp: 1234,
            log_append_time: false,
            key: key.map(bytes::Bytes::from_static),
            value: value.map(bytes::Bytes::from_static),
            headers: vec![
                Header { key: "a".to_owned(), value: Some("1".into()) },
                Header { key: "b".to_owned(), value: None },
            ],
        }
    }

    fn printed(words: &[&str], record: &ConsumerRecord) -> Result<String, String> {
        let parsed = Grammar::new("", &crate::console_consumer::SPECS);
        let parsed = parsed
            .parse(
                words
                    .iter()
                    .map(|word| (*word).to_owned())
                    .chain(["--from-beginning".to_owned()])
                    .collect(),
            )
            .unwrap();
        let mut out = Vec::new();
        let formatter =
            Formatter::new(&Env::real(), &parsed).map_err(|failure| format!("{failure:?}"))?;
        formatter.write(record, &mut out).map_err(|error| error.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn records_are_printed_in_kafkas_order_of_fields() {
        let record = record(None, Some(b"v"));
        let print = |words: &[&str]| {
            let words: Vec<String> =
                words.iter().map(|word| format!("--formatter-property={word}")).collect();
            printed(&words.iter().map(String::as_str).collect::<Vec<_>>(), &record).unwrap()
        };
        assert_eq!(print(&[]), "v\n");
        let all = ["timestamp", "partition", "offset", "delivery", "epoch", "headers", "key"]
            .map(|field| format!("print.{field}=true"));
        let expected = "CreateTime:1234\tPartition:2\tOffset:9\tDelivery:NOT_PRESENT\tEpoch:NOT_PRESENT\ta:1,b:null\tnull\tv\n";
        assert_eq!(print(&all.each_ref().map(String::as_str)), expected);
        assert_eq!(
            print(&["print.key=true", "print.value=false", "null.literal=-", "line.separator=|"]),
            "-|"
        );
    }

    #[test]
    fn formatters_are_known_by_their_names_of_today_and_before() {
        let offset = record(
            Some(b"\0\x01\0\x01g\0\x01t\0\0\0\x03"),
            Some(b"\0\x03\0\0\0\0\0\0\0\x05\0\0\0\x02\0\x01m\0\0\0\0\0\0\0\x09"),
        );
        let json = r#"{"key":{"type":1,"data":{"group":"g","topic":"t","partition":3}},"value":{"version":3,"data":{"offset":5,"leaderEpoch":2,"metadata":"m","commitTimestamp":9}}}"#;
        for class in [
            "org.apache.kafka.tools.consumer.OffsetsMessageFormatter",
            "kafka.coordinator.group.GroupMetadataManager$OffsetsMessageFormatter",
        ] {
            assert_eq!(printed(&["--formatter", class], &offset), Ok(json.to_owned()));
        }
        for class in [
            "org.apache.kafka.tools.consumer.GroupMetadataMessageFormatter",
            "org.apache.kafka.tools.consumer.NoOpMessageFormatter",
        ] {
            assert_eq!(printed(&["--formatter", class], &offset), Ok(String::new()), "{class}");
        }
        let removed = ConsumerRecord { value: None, ..offset };
        let expected =
            r#"{"key":{"type":1,"data":{"group":"g","topic":"t","partition":3}},"value":null}"#;
        assert_eq!(
            printed(
                &["--formatter", "org.apache.kafka.tools.consumer.OffsetsMessageFormatter"],
                &removed
            ),
            Ok(expected.to_owned())
        );
        assert!(
            printed(&["--formatter", "com.example.Mine"], &removed)
                .unwrap_err()
                .contains("com.example.Mine is not supported")
        );
    }
}
