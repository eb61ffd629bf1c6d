//! `kafka-features`.

use std::io::Write;

use letterbox_env::Env;

use crate::args::{CONTROLLERS, Command, Grammar, Spec, Takes};
use crate::connect;
use crate::failure::Failure;

const SPECS: [Spec; 1] = [("bootstrap-controller", Takes::Refused, CONTROLLERS)];
const COMMANDS: &[Command] = &[
    ("describe", "Describes the current active feature flags.", &[]),
    ("upgrade", "", &[]),
    ("downgrade", "", &[]),
    ("disable", "", &[]),
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
    let client = connect::admin(env, &parsed, None, err).await?;
    let versions = client.api_versions(None).await?;
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
    use super::level_name;

    #[test]
    fn levels_of_the_metadata_version_are_named_by_release() {
        let name = |level| level_name("metadata.version", level);
        assert_eq!([name(7), name(21), name(30)], ["3.3-IV3", "3.9-IV0", "4.3-IV0"]);
        assert_eq!([name(0), name(6), name(31)], ["UNKNOWN 0", "UNKNOWN 6", "UNKNOWN 31"]);
        assert_eq!(level_name("group.version", 1), "1");
    }
}
