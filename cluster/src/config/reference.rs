//! `docs/configuration.md`: the reference page, made from the tables.
//!
//! To refresh after a change: `LETTERBOX_UPDATE=1 cargo test --workspace --lib config::reference`.

use std::fmt::Write as _;
use std::path::Path;

use letterbox_env::Env;

use super::keys::{self, Effect};
use super::{group, topic};

const HEAD: &str = "# Configuration

Letterbox takes the settings of Apache Kafka by Kafka's names: in a `server.properties` file (`letterbox broker --config FILE`), as
`KAFKA_*` variables of the container image, in `spec.config` of a `KafkaCluster` or `KafkaTopic`, and while the broker runs through the
protocol (`kafka-configs`). Names, types, bounds and defaults are those of Apache Kafka 4.3.1. This page is made from the tables that the
broker itself uses (`cluster/src/config/`).

- A setting that nothing acts on is a warning at start: unknown keys, keys of clients and other products, empty values, and the keys of the
  second table with another value than their default. `config.strict=true` refuses all of these, so what such a broker was given acts.
- Refused always: a value that a key of the first table does not take, the keys of the third table, a listener with TLS or SASL, and a
  process that is not both broker and voter of the metadata quorum.
- Files are read as UTF-8, or as Latin-1 where they are not UTF-8, with Java's `\\\\uXXXX` escapes. Errors name the line or the key.
- A broker that refuses its configuration ends with exit code 78, one that cannot listen on a port because another process has it with 69.
- Settings marked *live* can be changed while the broker runs, for all brokers (`--entity-default`) or for one, which wins.
";

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn shown(default: Option<&str>) -> String {
    match default {
        None => "not set".to_owned(),
        Some("") => "empty".to_owned(),
        Some(value) => format!("`{value}`"),
    }
}

/// The broker's keys whose effect `is` so, each with what `text` says of it.
fn broker_rows(is: fn(&Effect) -> bool, text: fn(&keys::Key) -> &str) -> Vec<String> {
    let row = |key: &keys::Key| {
        let live = if key.dynamic { " *live*" } else { "" };
        let (default, kind) = (shown(key.default), cell(&key.kind.to_string()));
        format!("| `{}`{live} | {default} | {kind} | {} |", key.name, cell(text(key)))
    };
    keys::KEYS.iter().filter(|key| is(&key.effect)).map(row).collect()
}

fn topic_row(key: &topic::TopicKey) -> String {
    let default = key
        .synonym
        .map_or_else(|| shown(Some(key.default)), |synonym| format!("the broker's `{synonym}`"));
    let (kind, text) = (cell(&key.kind.to_string()), cell(&key.documentation()));
    format!("| `{}` | {default} | {kind} | {text} |", key.name)
}

fn group_row(key: &group::GroupKey) -> String {
    let default = match key.default {
        "" => format!("the broker's `{}`", key.synonym),
        default => shown(Some(default)),
    };
    format!("| `{}` | {default} | {} |", key.name, cell(&key.kind.to_string()))
}

fn page() -> String {
    let mut page = HEAD.replace("\\\\", "\\");
    let mut table = |title: &str, head: &str, rows: Vec<String>| {
        // Writing to a string cannot fail.
        let _ = write!(page, "\n## {title}\n\n{head}\n{}\n", rows.join("\n"));
    };
    let meaning = "| setting | default | values | meaning |\n|---|---|---|---|";
    let why = "| setting | default | values | why |\n|---|---|---|---|";
    let reason: fn(&keys::Key) -> &str = |key| key.effect.reason().unwrap_or_default();
    table(
        "Broker settings",
        meaning,
        broker_rows(|effect| matches!(effect, Effect::Honoured), |key| key.help),
    );
    table(
        "Broker settings without effect",
        why,
        broker_rows(|effect| matches!(effect, Effect::None(_) | Effect::Needless(_)), reason),
    );
    table(
        "Broker settings that are refused unless they have their default",
        why,
        broker_rows(|effect| matches!(effect, Effect::Guard(_)), reason),
    );
    table("Topic settings", meaning, topic::KEYS.iter().map(topic_row).collect());
    table(
        "Group settings",
        "They are kept and shown, and have no effect: only groups of the classic protocol are \
         offered by this version.\n\n| setting | default | values |\n|---|---|---|",
        group::KEYS.iter().map(group_row).collect(),
    );
    page
}

#[test]
fn the_reference_page_is_what_the_tables_say() {
    let disk = Env::real().disk;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let made = page();
    if std::env::var_os("LETTERBOX_UPDATE").is_some() {
        disk.write_atomically(&path, made.as_bytes()).unwrap();
    }
    let kept = disk.read(&path).map(|bytes| String::from_utf8(bytes).unwrap()).unwrap_or_default();
    assert!(
        kept == made,
        "docs/configuration.md is not what the tables say; refresh it with LETTERBOX_UPDATE=1"
    );
}
