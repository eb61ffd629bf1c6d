//! `kafka-features`.

use std::collections::BTreeMap;
use std::io::Write;

use letterbox_client::{Client, UpgradeType};
use letterbox_env::Env;

use crate::args::{CONTROLLERS, Command, Grammar, Parsed, Spec, Takes};
use crate::connect;
use crate::failure::{Failure, plain, sentence};

const SPECS: [Spec; 1] = [("bootstrap-controller", Takes::Refused, CONTROLLERS)];
const FEATURE: Spec = (
    "feature",
    Takes::Values("FEATURE=LEVEL"),
    "A feature to change, and its new level. May be repeated.",
);
const UNSAFE: Spec =
    ("unsafe", Takes::Nothing, "Perform this change even if it may irreversibly destroy metadata.");
const DRY_RUN: Spec = ("dry-run", Takes::Nothing, "Validate this change, but do not perform it.");
/// Why no release of Apache Kafka is named.
const RELEASES: &str =
    "which levels a release of Apache Kafka has is not known to this tool; use --feature";
const METADATA: Spec = ("metadata", Takes::Refused, RELEASES);
const RELEASE: Spec = ("release-version", Takes::Refused, RELEASES);
const COMMANDS: &[Command] = &[
    (
        "describe",
        "Describes the current active feature flags.",
        &[("node-id", Takes::Value("NODE_ID"), "The broker that is asked.")],
    ),
    ("upgrade", "Upgrade one or more feature flags.", &[FEATURE, DRY_RUN, METADATA, RELEASE]),
    (
        "downgrade",
        "Downgrade one or more feature flags.",
        &[FEATURE, UNSAFE, DRY_RUN, METADATA, RELEASE],
    ),
    (
        "disable",
        "Disable one or more feature flags: downgrade them to level 0.",
        &[("feature", Takes::Values("FEATURE"), "A feature to disable."), UNSAFE, DRY_RUN],
    ),
    ("version-mapping", "", &[]),
    ("feature-dependencies", "", &[]),
];

/// Runs the tool.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let parsed = Grammar::new("This tool manages feature flags in Kafka.", &SPECS)
        .argparse(&[])
        .commands(COMMANDS)
        .parse(args)?;
    if parsed.command() != "describe" {
        let levels = levels(&parsed)?;
        let client = connect::admin(env, &parsed, None, err).await?;
        return update(&client, &parsed, &levels, out).await;
    }
    let node = parsed.value("node-id").map(node_id).transpose()?;
    let client = connect::admin(env, &parsed, None, err).await?;
    let versions = client.api_versions(node).await?;
    let epoch = versions
        .finalized
        .as_ref()
        .map_or_else(|| "-".to_owned(), |finalized| finalized.epoch.to_string());
    for (name, range) in &versions.features {
        let finalized = versions
            .finalized
            .as_ref()
            .and_then(|finalized| finalized.levels.get(name))
            .copied()
            .unwrap_or(0);
        let [min, max, finalized] =
            [range.min, range.max, finalized].map(|level| level_name(name, level));
        writeln!(
            out,
            "Feature: {name:<41} SupportedMinVersion: {min:<16} SupportedMaxVersion: {max:<16} \
             FinalizedVersionLevel: {finalized:<16} Epoch: {epoch}"
        )?;
    }
    Ok(0)
}

fn node_id(text: &str) -> Result<i32, Failure> {
    match text.parse() {
        Ok(id @ 0..) => Ok(id),
        Ok(id) => Err(Failure::Stderr(format!("Invalid node id {id}: must be non-negative."))),
        Err(_) => Err(Failure::Stderr(format!(
            "argument --node-id: could not convert '{text}' to integer (32 bit)"
        ))),
    }
}

/// The levels that are asked for, by feature; complaints are Java's.
fn levels(parsed: &Parsed) -> Result<BTreeMap<String, i16>, Failure> {
    let (command, mut levels) = (parsed.command(), BTreeMap::new());
    let complain = |why: String| Err(Failure::Stderr(why));
    for asked in parsed.values("feature") {
        let (name, level) = match command {
            "disable" => (asked, 0),
            _ => name_and_level(asked).map_err(Failure::Stderr)?,
        };
        if level < 0 {
            return complain("Cannot specify a negative version level.".to_owned());
        }
        if level == 0 && command == "upgrade" {
            return complain(
                "The upgradeType flag should be set to SAFE_DOWNGRADE or UNSAFE_DOWNGRADE when the \
                 provided maxVersionLevel:0 is < 1."
                    .to_owned(),
            );
        }
        if levels.insert(name.to_owned(), level).is_some() {
            return complain(format!("Feature {name} was specified more than once."));
        }
    }
    if levels.is_empty() {
        return complain(format!("You must specify at least one feature to {command}"));
    }
    if levels.keys().any(|name| name.trim().is_empty()) {
        return complain("Provided feature can not be empty.".to_owned());
    }
    Ok(levels)
}

fn name_and_level(asked: &str) -> Result<(&str, i16), String> {
    let cannot = |why: String| format!("Can't parse feature=level string {asked}: {why}");
    let (name, level) =
        asked.split_once('=').ok_or_else(|| cannot("equals sign not found.".to_owned()))?;
    let level = level.trim();
    let number = level.parse();
    let number = number.map_err(|_| cannot(format!("unable to parse {level} as a short.")))?;
    Ok((name.trim(), number))
}

async fn update(
    client: &Client,
    parsed: &Parsed,
    levels: &BTreeMap<String, i16>,
    out: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let (command, dry_run) = (parsed.command(), parsed.has("dry-run"));
    let kind = match command {
        "upgrade" => UpgradeType::Upgrade,
        _ if parsed.has("unsafe") => UpgradeType::UnsafeDowngrade,
        _ => UpgradeType::SafeDowngrade,
    };
    let results = client.update_features(levels, kind, dry_run).await;
    let why = |name: &String| match &results {
        Ok(results) => results.get(name)?.as_ref().err().map(sentence),
        Err(error) => Some(plain(error)),
    };
    let mut failures = 0;
    for (name, level) in levels {
        let is_disabled = command == "disable";
        if let Some(why) = why(name) {
            let cannot = if dry_run { "Can not" } else { "Could not" };
            let to = if is_disabled { String::new() } else { format!(" to {level}") };
            writeln!(out, "{cannot} {command} {name}{to}. {why}")?;
            failures += 1;
        } else {
            let verb = if dry_run { "can be" } else { "was" };
            let to = if is_disabled { "." } else { &format!(" to {level}.") };
            writeln!(out, "{name} {verb} {command}d{to}")?;
        }
    }
    match failures {
        0 => Ok(0),
        _ => {
            let all = levels.len();
            Err(Failure::Stderr(format!("{failures} out of {all} operation(s) failed.")))
        }
    }
}

/// The level of `metadata.version` has the name of a release; others are numbers.
fn level_name(feature: &str, level: i16) -> String {
    /// From level 7 on, up to Apache Kafka 4.3.
    const RELEASES: [&str; 24] = [
        "3.3-IV3", "3.4-IV0", "3.5-IV0", "3.5-IV1", "3.5-IV2", "3.6-IV0", "3.6-IV1", "3.6-IV2",
        "3.7-IV0", "3.7-IV1", "3.7-IV2", "3.7-IV3", "3.7-IV4", "3.8-IV0", "3.9-IV0", "4.0-IV0",
        "4.0-IV1", "4.0-IV2", "4.0-IV3", "4.1-IV0", "4.1-IV1", "4.2-IV0", "4.2-IV1", "4.3-IV0",
    ];
    if feature != "metadata.version" {
        return level.to_string();
    }
    let release = level
        .checked_sub(7)
        .and_then(|index| usize::try_from(index).ok())
        .and_then(|index| RELEASES.get(index));
    release.map_or_else(|| format!("UNKNOWN {level}"), |release| (*release).to_owned())
}

#[cfg(test)]
mod tests {
    use super::{level_name, name_and_level};

    #[test]
    fn levels_of_the_metadata_version_are_named_by_release() {
        let name = |level| level_name("metadata.version", level);
        assert_eq!([name(7), name(21), name(30)], ["3.3-IV3", "3.9-IV0", "4.3-IV0"]);
        assert_eq!([name(0), name(6), name(31)], ["UNKNOWN 0", "UNKNOWN 6", "UNKNOWN 31"]);
        assert_eq!(level_name("group.version", 1), "1");
    }

    #[test]
    fn a_feature_stands_before_its_level() {
        assert_eq!(name_and_level(" a.b = 2 "), Ok(("a.b", 2)));
        let cannot = |why: &str| Err(format!("Can't parse feature=level string {why}"));
        assert_eq!(name_and_level("a"), cannot("a: equals sign not found."));
        for level in ["", "x", "1=2", "40000"] {
            let asked = format!("a={level}");
            let why = format!("{asked}: unable to parse {level} as a short.");
            assert_eq!(name_and_level(&asked), cannot(&why));
        }
    }
}
