//! Who may use whom: the picture in ARCHITECTURE.md ("Layers"), for the crates and for the modules
//! of the broker.
//!
//! A new arrow fails here. When it is right, it belongs into the tables below and into the picture;
//! mostly what it wants is to live elsewhere.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test stands outside of the seam"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What each crate is built with; tests may use more (`[dev-dependencies]`).
const CRATES: &[(&str, &[&str])] = &[
    ("broker", &["env", "protocol", "storage"]),
    ("cli", &["client", "env"]),
    ("client", &["env", "protocol"]),
    ("env", &[]),
    ("letterbox", &["broker", "cli", "env", "operator"]),
    ("operator", &["client", "env"]),
    ("protocol", &[]),
    ("sim", &["client", "env"]),
    ("storage", &["env", "protocol"]),
];

/// What each module of the broker uses of the others; its own tests may use more.
const MODULES: &[(&str, &[&str])] = &[
    ("config", &[]),
    ("controller", &["metadata", "quorum"]),
    ("coordinator", &["request", "security"]),
    ("metadata", &["config"]),
    ("metrics", &["coordinator"]),
    (
        "node",
        &["config", "controller", "coordinator", "metadata", "quorum", "replication", "server"],
    ),
    ("quorum", &["metadata"]),
    ("replication", &["config", "metadata"]),
    ("request", &["security"]),
    ("security", &[]),
    (
        "server",
        &[
            "config",
            "controller",
            "coordinator",
            "metadata",
            "metrics",
            "quorum",
            "replication",
            "request",
            "security",
        ],
    ),
];

type Arrows = BTreeMap<String, BTreeSet<String>>;

fn arrows(table: &[(&str, &[&str])]) -> Arrows {
    table
        .iter()
        .map(|(from, to)| ((*from).to_owned(), to.iter().map(|to| (*to).to_owned()).collect()))
        .collect()
}

/// That none of `found` is missing in `allowed`, nor the other way round; and that no arrow leads
/// back to where it began.
fn check(what: &str, found: &Arrows, allowed: &Arrows) {
    let names = |arrows: &Arrows| arrows.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(allowed), "{what}");
    for (from, to) in found {
        let allowed = &allowed[from];
        let new: Vec<_> = to.difference(allowed).collect();
        assert!(
            new.is_empty(),
            "{what}: {from} uses {new:?}, which ARCHITECTURE.md does not allow"
        );
        let gone: Vec<_> = allowed.difference(to).collect();
        assert!(
            gone.is_empty(),
            "{what}: {from} no longer uses {gone:?}; take it out of the table and the picture"
        );
        let (mut seen, mut next) = (BTreeSet::new(), to.clone());
        while let Some(name) = next.pop_first() {
            assert_ne!(&name, from, "{what}: {from} uses itself by way of {seen:?}");
            next.extend(
                found
                    .get(&name)
                    .into_iter()
                    .flatten()
                    .filter(|name| !seen.contains(*name))
                    .cloned(),
            );
            seen.insert(name);
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn crates_use_only_what_the_picture_shows() {
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = workspace.lines().find_map(|line| line.strip_prefix("members = [")).unwrap();
    let members =
        members.trim_end_matches(']').split(',').map(|name| name.trim().trim_matches('"'));
    let used = |name: &str| {
        let manifest = std::fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        let section = manifest
            .lines()
            .skip_while(|line| *line != "[dependencies]")
            .skip(1)
            .take_while(|line| !line.starts_with('['));
        let name = |line: &str| {
            Some(line.strip_prefix("letterbox-")?.split(['.', ' ', '=']).next()?.to_owned())
        };
        section.filter_map(name).collect::<BTreeSet<_>>()
    };
    let found: Arrows = members.map(|name| (name.to_owned(), used(name))).collect();
    check("crates", &found, &arrows(CRATES));
}

#[test]
fn modules_of_the_broker_use_only_what_the_picture_shows() {
    let (mut found, source) = (Arrows::new(), root().join("broker/src"));
    let mut folders = vec![source.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let within = path.strip_prefix(&source).unwrap();
            let parts: Vec<&str> =
                within.iter().map(|part| part.to_str().unwrap().trim_end_matches(".rs")).collect();
            if parts.contains(&"tests") || parts == ["lib"] {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            // `mod.rs` is the module of its folder.
            let depth = parts.len() - usize::from(parts.ends_with(&["mod"]));
            let to = found.entry(parts[0].to_owned()).or_default();
            to.extend(
                used(&std::fs::read_to_string(&path).unwrap(), depth, within)
                    .into_iter()
                    .filter(|name| name != parts[0]),
            );
        }
    }
    check("broker", &found, &arrows(MODULES));
}

/// The names behind `crate::` in `text`, a module `depth` below the crate, without comments and
/// without the tests at its end.
fn used(text: &str, depth: usize, at: &Path) -> BTreeSet<String> {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let outside = "super::".repeat(depth);
    assert!(
        !code.contains(&outside),
        "{}: {outside} leads out of its module; write crate::",
        at.display()
    );
    assert!(!code.contains("crate::{"), "{}: one `use crate::` for each module", at.display());
    let name = |rest: &str| {
        rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
    };
    code.split("crate::").skip(1).map(name).collect()
}

#[test]
fn an_arrow_is_seen_and_a_comment_is_none() {
    let seen = |text: &str| used(text, 2, Path::new("x")).into_iter().collect::<Vec<_>>();
    assert_eq!(
        seen("use crate::quorum::Quorum;\n// crate::server is not used\nlet a = crate::log(1);"),
        ["log", "quorum"]
    );
    assert_eq!(
        seen("fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::server::Services;\n}"),
        Vec::<String>::new()
    );
}
