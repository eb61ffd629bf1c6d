//! `kafka-groups`: groups of every type.

use std::io::Write;

use letterbox_client::ListedGroup;
use letterbox_env::Env;

use crate::args::{Grammar, Parsed, Spec, Takes};
use crate::connect;
use crate::failure::Failure;

const SPECS: [Spec; 6] = [
    (
        "consumer",
        Takes::Nothing,
        "Only consumer groups of any kind: of type 'consumer', and of type 'classic' with the \
         protocol 'consumer' or none.",
    ),
    (
        "group-type",
        Takes::Value("String: type"),
        "Only groups of this type: 'classic', 'consumer', 'share' or 'streams'.",
    ),
    ("list", Takes::Nothing, "List the groups."),
    ("protocol", Takes::Value("String: protocol"), "Only groups of this protocol type."),
    ("share", Takes::Nothing, "Only share groups."),
    ("streams", Takes::Nothing, "Only streams groups."),
];
/// The narrowest column.
const WIDTH_MIN: usize = 20;

/// Runs the tool.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let parsed =
        Grammar::new("This tool helps to list groups of all types.", &SPECS).parse(args)?;
    parsed.exactly_one(&["list"], "Command must include exactly one action: --list.")?;
    parsed.excludes("consumer", &["share", "streams", "group-type", "protocol"])?;
    parsed.excludes("share", &["streams", "group-type", "protocol"])?;
    parsed.excludes("streams", &["group-type", "protocol"])?;
    let kind = parsed.value("group-type").map(str::to_ascii_lowercase);
    if kind
        .as_deref()
        .is_some_and(|kind| !["classic", "consumer", "share", "streams"].contains(&kind))
    {
        return Err(Failure::Stderr("--group-type must be a valid group type.".to_owned()));
    }
    let client = connect::admin(env, &parsed, None, err).await?;
    let groups = client.list_groups(&[], &[]).await?;
    let wanted: Vec<&ListedGroup> =
        groups.values().filter(|group| fits(&parsed, kind.as_deref(), group)).collect();
    let width = wanted.iter().map(|group| group.group.chars().count()).fold(WIDTH_MIN, usize::max);
    writeln!(out, "{:<width$} {:<width$} {:<width$}", "GROUP", "TYPE", "PROTOCOL")?;
    for group in wanted {
        // Kafka's rows end with one more blank than its header.
        writeln!(
            out,
            "{:<width$} {:<width$} {:<width$} ",
            group.group,
            kind_name(&group.kind),
            group.protocol_type
        )?;
    }
    Ok(0)
}

/// As Kafka's tool spells a type, however the broker does.
fn kind_name(kind: &str) -> &str {
    ["Classic", "Consumer", "Share", "Streams"]
        .into_iter()
        .find(|name| name.eq_ignore_ascii_case(kind))
        .unwrap_or(kind)
}

fn fits(parsed: &Parsed, kind: Option<&str>, group: &ListedGroup) -> bool {
    let is = |kind: &str| group.kind.eq_ignore_ascii_case(kind);
    let consumer = || {
        is("consumer")
            || (is("classic") && ["", "consumer"].contains(&group.protocol_type.as_str()))
    };
    (!parsed.has("consumer") || consumer())
        && (!parsed.has("share") || is("share"))
        && (!parsed.has("streams") || is("streams"))
        && kind.is_none_or(is)
        && parsed.value("protocol").is_none_or(|protocol| protocol == group.protocol_type)
}

#[cfg(test)]
mod tests {
    use super::kind_name;

    #[test]
    fn types_are_spelt_as_kafka_spells_them() {
        assert_eq!(
            [kind_name("classic"), kind_name("Consumer"), kind_name("new-kind")],
            ["Classic", "Consumer", "new-kind"]
        );
    }
}
