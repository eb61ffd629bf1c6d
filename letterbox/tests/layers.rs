//! Who may use whom: the picture in ARCHITECTURE.md ("Layers"), for the crates, for the modules of
//! broker, cluster and operator, and for crates of others that only some modules may name.
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
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

/// What each crate is built with; tests may use more (`[dev-dependencies]`).
const CRATES: &[(&str, &[&str])] = &[
    ("broker", &["cluster", "env", "protocol", "storage"]),
    ("cli", &["client", "env"]),
    ("client", &["env", "protocol"]),
    ("cluster", &["env", "protocol", "storage"]),
    ("env", &[]),
    ("letterbox", &["broker", "cli", "env", "operator"]),
    ("operator", &["client", "env"]),
    ("protocol", &[]),
    ("sim", &["client", "env", "protocol"]),
    ("storage", &["env", "protocol"]),
];

/// What each module of the broker uses of the others and of those of the crate `cluster`; its own
/// tests may use more.
const OF_THE_BROKER: &[(&str, &[&str])] = &[
    ("coordinator", &["request", "security"]),
    ("lifecycle", &["controller", "metadata"]),
    ("metrics", &["coordinator"]),
    (
        "node",
        &["config", "controller", "coordinator", "metadata", "quorum", "replication", "server"],
    ),
    ("replication", &["config", "metadata"]),
    ("request", &["security"]),
    ("security", &[]),
    (
        "server",
        &[
            "config",
            "controller",
            "coordinator",
            "lifecycle",
            "metadata",
            "metrics",
            "quorum",
            "replication",
            "request",
            "security",
        ],
    ),
];

/// As [`OF_THE_BROKER`].
const OF_THE_CLUSTER: &[(&str, &[&str])] = &[
    ("config", &[]),
    ("controller", &["metadata", "quorum"]),
    ("metadata", &["config"]),
    ("quorum", &["metadata"]),
];

/// As [`OF_THE_BROKER`].
const OF_THE_OPERATOR: &[(&str, &[&str])] = &[
    ("admin", &[]),
    ("api", &[]),
    (
        "controller",
        &["admin", "api", "desired", "observe", "plan", "platform", "reconcile", "status"],
    ),
    ("desired", &["api"]),
    ("observe", &["admin", "desired"]),
    ("plan", &["admin", "api", "desired", "observe"]),
    ("platform", &["admin", "api", "desired", "observe", "plan", "status"]),
    ("reconcile", &["admin", "api", "desired", "observe", "plan", "platform", "status"]),
    ("status", &["admin", "api", "desired", "observe", "plan"]),
    ("up", &["admin", "api", "desired", "plan", "platform", "reconcile", "status"]),
];

/// A crate, or a module of one, and the crates, folders and files that may name it.
const NAMED_IN: &[(&str, &[&str])] = &[
    // HTTP: health and metrics, and the bodies of the API server's answers.
    ("axum", &["broker/server/admin_http", "operator/controller", "operator/platform/calls"]),
    ("hyper", &["broker/server/admin_http"]),
    ("hyper_util", &["broker/server/admin_http"]),
    // Kubernetes.
    ("k8s_openapi", &["operator"]),
    ("kube", &["operator"]),
    ("kube::Client", &["operator/controller", "operator/main", "operator/platform"]),
    ("kube::api", &["operator/controller", "operator/platform"]),
    ("kube::runtime", &["operator/controller"]),
    // Kafka's messages.
    (
        "kafka_protocol",
        &[
            "broker/coordinator",
            "broker/node/replication",
            "broker/server/dispatch",
            "broker/server/errors",
            "broker/server/gate",
            "broker/server/handlers",
            "client",
            "protocol",
        ],
    ),
    ("letterbox_client", &["cli", "operator/admin", "operator/api", "operator/desired", "sim"]),
    ("flate2", &["protocol/compression"]),
    ("lz4_flex", &["protocol/compression"]),
    ("snap", &["protocol/compression"]),
    ("zstd", &["protocol/compression"]),
    // Raft.
    ("openraft", &["cluster/quorum"]),
    ("rand_core", &["cluster/quorum/runtime"]),
    ("prometheus_client", &["broker/metrics", "broker/server/in_flight", "operator/controller"]),
    // The operating system.
    ("getrandom", &["env"]),
    (
        "rustix",
        &[
            "broker/server/response",
            "broker/server/system",
            "env",
            "letterbox/limits",
            "letterbox/logging",
            "letterbox/server_tools",
            "operator/platform/local",
        ],
    ),
    ("socket2", &["env"]),
    ("turmoil", &["sim"]),
    // What decides does not wait: no other module has tasks, channels or timers.
    (
        "tokio",
        &[
            "broker/coordinator/runtime",
            "broker/coordinator/service",
            "broker/lifecycle",
            "broker/node",
            "broker/replication/manager",
            "broker/replication/outbox",
            "broker/replication/partition",
            "broker/replication/waiters",
            "broker/server",
            "cli",
            "client",
            "cluster/controller",
            "cluster/quorum",
            "env",
            "letterbox",
            "operator/admin",
            "operator/controller",
            "operator/main",
            "operator/platform",
            "operator/up",
            "sim",
            "storage",
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

/// The members of the workspace, as Cargo reads their manifests.
static MEMBERS: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let arguments = ["metadata", "--no-deps", "--format-version=1", "--offline"];
    let out = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
});

/// The folder of a member, which is its name in [`CRATES`].
fn folder(member: &Value) -> String {
    let manifest = Path::new(member["manifest_path"].as_str().unwrap());
    manifest.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}

/// The members that a member is built with, under their own names.
fn dependencies(member: &Value) -> BTreeSet<String> {
    let all = member["dependencies"].as_array().unwrap().iter().filter(|it| it["kind"] != "dev");
    all.filter_map(|it| {
        assert!(it["rename"].is_null(), "{}: {it} goes by another name", folder(member));
        let path = Path::new(it["path"].as_str()?);
        Some(path.file_name().unwrap().to_str().unwrap().to_owned())
    })
    .collect()
}

#[test]
fn crates_use_only_what_the_picture_shows() {
    let found = MEMBERS.iter().map(|member| (folder(member), dependencies(member))).collect();
    check("crates", &found, &arrows(CRATES));
}

#[test]
fn modules_use_only_what_the_picture_shows() {
    let tables =
        [("broker", OF_THE_BROKER), ("cluster", OF_THE_CLUSTER), ("operator", OF_THE_OPERATOR)];
    for (name, allowed) in tables {
        let mut found = Arrows::new();
        for file in files(&root().join(name).join("src/lib.rs"), &[]) {
            let Some(top) = file.module.first() else { continue };
            let used = file.paths.iter().filter_map(|path| top_module(path, &file.module));
            found.entry(top.clone()).or_default().extend(used.filter(|used| used != top));
        }
        check(name, &found, &arrows(allowed));
    }
}

#[test]
fn crates_are_named_only_where_they_may_be() {
    let mut found: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for member in MEMBERS.iter() {
        let targets = member["targets"].as_array().unwrap();
        let is_built = |target: &&Value| ["lib", "bin"].iter().any(|it| target["kind"][0] == *it);
        for target in targets.iter().filter(is_built) {
            let main = if target["kind"][0] == "bin" { "/main" } else { "" };
            for file in files(Path::new(target["src_path"].as_str().unwrap()), &[]) {
                let root = if file.module.is_empty() { main } else { "" };
                let at = [&[folder(member)], &*file.module].concat().join("/") + root;
                for (name, _) in NAMED_IN {
                    let parts: Vec<_> = name.split("::").map(str::to_owned).collect();
                    if file.paths.iter().any(|path| path.starts_with(&parts)) {
                        found.entry(name).or_default().insert(at.clone());
                    }
                }
            }
        }
    }
    for (name, allowed) in NAMED_IN {
        let found = found.remove(name).unwrap_or_default();
        let is_in = |at: &str, of: &str| at == of || at.starts_with(&format!("{of}/"));
        let new: Vec<_> =
            found.iter().filter(|at| !allowed.iter().any(|of| is_in(at, of))).collect();
        assert!(new.is_empty(), "{name} is named in {new:?}, and may be in {allowed:?} only");
        let gone: Vec<_> =
            allowed.iter().filter(|of| !found.iter().any(|at| is_in(at, of))).collect();
        assert!(gone.is_empty(), "{name} is no longer named in {gone:?}; take it out of the table");
    }
}

/// A file of a crate, without what is compiled for tests only.
struct File {
    /// Names of the modules from the crate's root to this file.
    module: Vec<String>,
    /// Every path in it that has more than one name or stands behind `use`.
    paths: Vec<Vec<String>>,
}

/// The file of a module and those of the modules in it, by way of `mod name;`.
fn files(file: &Path, module: &[String]) -> Vec<File> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let tokens = without_tests(&tokens(&text));
    let (folder, stem) = (file.parent().unwrap(), file.file_stem().unwrap().to_str().unwrap());
    let within = match stem {
        "lib" | "main" | "mod" => folder.to_owned(),
        stem => folder.join(stem),
    };
    let mut found = vec![File { module: module.to_vec(), paths: paths(&tokens) }];
    for at in tokens.windows(3) {
        assert!(at[..2] != ["extern", "crate"], "{}: extern crate hides arrows", file.display());
        assert!(at[..2] != ["crate", "as"], "{}: crate by another name", file.display());
        if let ["mod", name, ";"] = at {
            let flat = within.join(format!("{name}.rs"));
            let file = if flat.exists() { flat } else { within.join(name).join("mod.rs") };
            found.extend(files(&file, &[module, &[(*name).to_owned()]].concat()));
        }
    }
    found
}

/// The module below the crate's root that a path in `module` leads to, when it begins with `crate`
/// or leaves by `super`.
fn top_module(path: &[String], module: &[String]) -> Option<String> {
    let mut names = path.iter().skip_while(|name| *name == "self");
    let up = names.clone().take_while(|name| *name == "super").count();
    let leaves = names.clone().next()? == "crate" || (up > 0 && up >= module.len());
    names.find(|name| leaves && !["crate", "super"].contains(&name.as_str())).cloned()
}

/// Names, and signs one by one, `::` as one; no comments, strings and lifetimes.
fn tokens(text: &str) -> Vec<&str> {
    let is_of_name = |c: char| c.is_alphanumeric() || c == '_';
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some(first) = rest.chars().next() {
        let name = rest.find(|c| !is_of_name(c)).unwrap_or(rest.len());
        let after_name = &rest[name..];
        let hashes = after_name.len() - after_name.trim_start_matches('#').len();
        let is_raw =
            ["r", "br", "cr"].contains(&&rest[..name]) && after_name[hashes..].starts_with('"');
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").expect("a comment ends") + 2
        } else if is_raw {
            let end = format!("\"{}", &after_name[..hashes]);
            let begin = name + hashes + 1;
            begin + rest[begin..].find(&end).expect("a string ends") + end.len()
        } else if first == '"' {
            let mut escaped = false;
            let is_end = |c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            };
            1 + rest[1..].find(is_end).expect("a string ends") + 1
        } else if let Some(char) = rest.strip_prefix('\'') {
            let of_char = char.chars().next().map_or(0, char::len_utf8);
            if char.starts_with('\\') {
                3 + char[2..].find('\'').expect("a character ends") + 1
            } else if char[of_char..].starts_with('\'') {
                1 + of_char + 1
            } else {
                1 // a lifetime: its name stays, which does no harm
            }
        } else {
            let len = match name {
                0 if rest.starts_with("::") => 2,
                0 => first.len_utf8(),
                name => name,
            };
            if !first.is_whitespace() {
                found.push(&rest[..len]);
            }
            len
        };
        rest = &rest[len..];
    }
    found
}

/// Leaves out items behind `#[cfg(test)]`, each to its end.
fn without_tests<'a>(tokens: &[&'a str]) -> Vec<&'a str> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut left, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        if !tokens[at..].starts_with(&MARK) {
            left.push(tokens[at]);
            at += 1;
            continue;
        }
        at += MARK.len();
        let mut depth = 0_usize;
        while at < tokens.len() {
            let token = tokens[at];
            depth += usize::from(["(", "[", "{"].contains(&token));
            depth -= usize::from([")", "]", "}"].contains(&token));
            at += 1;
            if depth == 0 && [";", "}"].contains(&token) {
                break;
            }
        }
    }
    left
}

/// The paths in `tokens`, those of a group one by one.
fn paths(tokens: &[&str]) -> Vec<Vec<String>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        if tokens[at] == "use" {
            at = tree(tokens, at + 1, &[], &mut found);
        } else if is_name(tokens[at]) && tokens.get(at + 1) == Some(&"::") {
            at = tree(tokens, at, &[], &mut found);
        } else {
            at += 1;
        }
    }
    found
}

/// Reads the path that begins at `at`, behind `prefix`, and says where it ends.
fn tree(tokens: &[&str], mut at: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    at += usize::from(tokens.get(at) == Some(&"::"));
    while let Some(token) = tokens.get(at) {
        if *token == "{" && !path.is_empty() {
            while tokens[at] != "}" {
                at = tree(tokens, at + 1, &path, found);
                at += tokens[at..].iter().take_while(|it| !["}", ","].contains(it)).count();
            }
            return at + 1;
        }
        if !is_name(token) && *token != "*" {
            break;
        }
        path.push((*token).to_owned());
        at += 1;
        if tokens.get(at) != Some(&"::") {
            break;
        }
        at += 1;
    }
    if path.len() > prefix.len() {
        found.push(path);
    }
    at
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Where a module `a::b` with this text leads to.
fn seen(text: &str) -> Vec<String> {
    let module = ["a".to_owned(), "b".to_owned()];
    let paths = paths(&without_tests(&tokens(text)));
    let found: BTreeSet<_> = paths.iter().filter_map(|path| top_module(path, &module)).collect();
    found.into_iter().collect()
}

#[test]
fn an_arrow_is_seen_and_a_comment_is_none() {
    let text = "use crate::quorum::Quorum;\n// crate::server is not used\nlet a = crate::log(1);";
    assert_eq!(seen(text), ["log", "quorum"]);
    assert_eq!(seen("let a = \"crate::server\"; let b = r#\"\"crate::server\"#;"), [""; 0]);
    assert_eq!(
        seen("use super::{c, super::{quorum as q, server::{Services}}};"),
        ["quorum", "server"]
    );
    assert_eq!(seen("use crate::{quorum, server::Services};"), ["quorum", "server"]);
    assert_eq!(seen("use super::c; use self::d::e; f::<'a', '\\''>(g::h);"), [""; 0]);
    assert_eq!(seen("use crate::*;"), ["*"]);
    let tests = "#[cfg(test)]\nmod tests {\n    use crate::server::Services;\n}";
    assert_eq!(seen(tests), [""; 0]);
    assert_eq!(seen(&format!("{tests}\nuse crate::quorum;")), ["quorum"]);
}
