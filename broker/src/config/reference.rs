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
broker itself uses (`broker/src/config/`).

- A setting that nothing acts on is a warning at start: unknown keys, keys of clients and other products, empty values, and the keys of the
  second table. `config.strict=true` refuses them, but those whose function the broker does by itself.
- Refused always: a value that a key of the first table does not take, the keys of the third table, a listener with TLS or SASL, and a
  quorum of more than this node.
- Files are read as UTF-8, or as Latin-1 where they are not UTF-8, with Java's `\\\\uXXXX` escapes. Errors name the line or the key.
- A broker that refuses its configuration ends with exit code 78.
- Settings marked *live* can be changed while the broker runs, for all brokers (`--entity-default`) or for one, which wins.
";

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn page() -> String {
    let mut page = HEAD.replace("\\\\", "\\");
    let shown = |default: Option<&str>| match default {
        None => "not set".to_owned(),
        Some("") => "empty".to_owned(),
        Some(value) => format!("`{value}`"),
    };
    let mut table = |title: &str, head: &str, rows: Vec<String>| {
        // Writing to a string cannot fail.
        let _ = write!(page, "\n## {title}\n\n{head}\n{}\n", rows.join("\n"));
    };
    let row = |key: &keys::Key, text: &str| {
        let live = if key.dynamic { " *live*" } else { "" };
        format!(
            "| `{}`{live} | {} | {} | {} |",
            key.name,
            shown(key.default),
            cell(&key.kind.to_string()),
            cell(text)
        )
    };
    let of = |is: fn(&Effect) -> bool| keys::KEYS.iter().filter(move |key| is(&key.effect));
    let honoured =
        of(|effect| matches!(effect, Effect::Honoured)).map(|key| row(key, key.help)).collect();
    table(
        "Broker settings",
        "| setting | default | values | meaning |\n|---|---|---|---|",
        honoured,
    );
    let idle = of(|effect| matches!(effect, Effect::None(_) | Effect::Absent(_)));
    let idle = idle.map(|key| row(key, key.effect.reason().unwrap_or_default())).collect();
    table(
        "Broker settings without effect",
        "| setting | default | values | why |\n|---|---|---|---|",
        idle,
    );
    let guards = of(|effect| matches!(effect, Effect::Guard(_)));
    let guards = guards.map(|key| row(key, key.effect.reason().unwrap_or_default())).collect();
    table(
        "Broker settings that are refused unless they have their default",
        "| setting | default | values | why |\n|---|---|---|---|",
        guards,
    );
    let topics = topic::KEYS.iter().map(|key| {
        let default = key.synonym.map_or_else(
            || shown(Some(key.default)),
            |synonym| format!("the broker's `{synonym}`"),
        );
        format!(
            "| `{}` | {default} | {} | {} |",
            key.name,
            cell(&key.kind.to_string()),
            cell(&key.documentation())
        )
    });
    table(
        "Topic settings",
        "| setting | default | values | meaning |\n|---|---|---|---|",
        topics.collect(),
    );
    let groups = group::KEYS.iter().map(|key| {
        let default = if key.default.is_empty() {
            format!("the broker's `{}`", key.synonym)
        } else {
            shown(Some(key.default))
        };
        format!("| `{}` | {default} | {} |", key.name, cell(&key.kind.to_string()))
    });
    table(
        "Group settings",
        "They are kept and shown, and have no effect: only groups of the classic protocol are \
         offered by this version.\n\n| setting | default | values |\n|---|---|---|",
        groups.collect(),
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
