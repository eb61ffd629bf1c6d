//! `kafka-acls`: of its actions the one that changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use letterbox_client::{AccessControlEntry, AclResource, Error, ResourceFilter};
use letterbox_env::Env;

use crate::args::{CONTROLLERS, Grammar, Parsed, Spec, Takes};
use crate::connect;
use crate::failure::{Failure, java_cause};

const NO_AUTHORIZER: &str = "there is no authorizer in this version, and so no ACL to change \
    (CreateAcls, DeleteAcls)";

const SPECS: [Spec; 21] = [
    ("add", Takes::Refused, NO_AUTHORIZER),
    ("allow-host", Takes::Refused, NO_AUTHORIZER),
    ("allow-principal", Takes::Refused, NO_AUTHORIZER),
    ("bootstrap-controller", Takes::Refused, CONTROLLERS),
    ("cluster", Takes::Nothing, "List the ACLs of the cluster."),
    ("consumer", Takes::Refused, NO_AUTHORIZER),
    (
        "delegation-token",
        Takes::Values("String: delegation-token"),
        "List the ACLs of this delegation token.",
    ),
    ("deny-host", Takes::Refused, NO_AUTHORIZER),
    ("deny-principal", Takes::Refused, NO_AUTHORIZER),
    ("force", Takes::Refused, NO_AUTHORIZER),
    ("group", Takes::Values("String: group"), "List the ACLs of this group."),
    ("idempotent", Takes::Refused, NO_AUTHORIZER),
    ("list", Takes::Nothing, "List the ACLs of the given resources, or of all."),
    ("operation", Takes::Refused, NO_AUTHORIZER),
    (
        "principal",
        Takes::Values("String: principal"),
        "List the ACLs of this principal, as in User:alice.",
    ),
    ("producer", Takes::Refused, NO_AUTHORIZER),
    ("remove", Takes::Refused, NO_AUTHORIZER),
    (
        "resource-pattern-type",
        Takes::Value("String: ANY|MATCH|LITERAL|PREFIXED"),
        "Which patterns of resources: with this type, of 'any', or all that 'match' the name. \
         Default: literal.",
    ),
    ("topic", Takes::Values("String: topic"), "List the ACLs of this topic."),
    (
        "transactional-id",
        Takes::Values("String: transactional-id"),
        "List the ACLs of this transactional id.",
    ),
    (
        "user-principal",
        Takes::Values("String: user-principal"),
        "List the ACLs of this user as a resource.",
    ),
];
/// By the numbers of the protocol, from 0.
const KINDS: [&str; 8] =
    ["UNKNOWN", "ANY", "TOPIC", "GROUP", "CLUSTER", "TRANSACTIONAL_ID", "DELEGATION_TOKEN", "USER"];
const PATTERNS: [&str; 5] = ["UNKNOWN", "ANY", "MATCH", "LITERAL", "PREFIXED"];
const OPERATIONS: [&str; 16] = [
    "UNKNOWN",
    "ANY",
    "ALL",
    "READ",
    "WRITE",
    "CREATE",
    "DELETE",
    "ALTER",
    "DESCRIBE",
    "CLUSTER_ACTION",
    "DESCRIBE_CONFIGS",
    "ALTER_CONFIGS",
    "IDEMPOTENT_WRITE",
    "CREATE_TOKENS",
    "DESCRIBE_TOKENS",
    "TWO_PHASE_COMMIT",
];
const PERMISSIONS: [&str; 4] = ["UNKNOWN", "ANY", "DENY", "ALLOW"];
const LITERAL: i8 = 3;
const CLUSTER: i8 = 4;

type Acls = BTreeMap<AclResource, BTreeSet<AccessControlEntry>>;

/// Runs the tool.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let parsed = Grammar::new("This tool helps to manage acls on kafka.", &SPECS).parse(args)?;
    if !parsed.has("bootstrap-server") {
        return Err(
            parsed.wrong("One of --bootstrap-server or --bootstrap-controller must be specified")
        );
    }
    parsed.exactly_one(
        &["list"],
        "Command must include exactly one action: --list, --add, --remove. ",
    )?;
    let filters = filters(&parsed)?;
    let client = connect::admin(env, &parsed, None, err).await?;
    let mut acls = Acls::new();
    for filter in &filters {
        let found = client.describe_acls(filter).await.map_err(|error| failed(&error))?;
        for (resource, entries) in found {
            acls.entry(resource).or_default().extend(entries);
        }
    }
    write!(out, "{}", listed(&acls, &parsed.values("principal")))?;
    Ok(0)
}

fn failed(error: &Error) -> Failure {
    match error {
        Error::Broker(refusal) => {
            Failure::Stdout(format!("Error while executing ACL command: {}", java_cause(refusal)))
        }
        error => Failure::Stderr(error.to_string()),
    }
}

/// Which resources are asked for; without any, all are.
fn filters(parsed: &Parsed) -> Result<Vec<ResourceFilter>, Failure> {
    let pattern = match parsed.value("resource-pattern-type") {
        None => LITERAL,
        Some(given) => {
            let known = PATTERNS.iter().skip(1).position(|name| name.eq_ignore_ascii_case(given));
            let pattern = known.and_then(|at| i8::try_from(at + 1).ok());
            pattern.ok_or_else(|| {
                parsed.wrong(format!(
                    "Cannot parse argument '{given}' of option resource-pattern-type"
                ))
            })?
        }
    };
    let mut filters = Vec::new();
    for (option, kind) in [
        ("topic", 2),
        ("group", 3),
        ("transactional-id", 5),
        ("delegation-token", 6),
        ("user-principal", 7),
    ] {
        let of = |name: &str| ResourceFilter { kind, name: Some(name.trim().to_owned()), pattern };
        filters.extend(parsed.values(option).into_iter().map(of));
    }
    // As with Java's tool, not for other patterns.
    if parsed.has("cluster") && pattern == LITERAL {
        let name = Some("kafka-cluster".to_owned());
        filters.push(ResourceFilter { kind: CLUSTER, name, pattern });
    }
    if filters.is_empty() {
        filters.push(ResourceFilter::any());
    }
    Ok(filters)
}

fn name_of(names: &[&'static str], number: i8) -> &'static str {
    usize::try_from(number).ok().and_then(|at| names.get(at)).copied().unwrap_or("UNKNOWN")
}

/// All of them, or for each of `principals` its own.
fn listed(acls: &Acls, principals: &[&str]) -> String {
    if principals.is_empty() {
        return table(acls.iter().map(|(resource, entries)| (resource, entries.iter().collect())));
    }
    let mut text = String::new();
    for principal in principals.iter().collect::<BTreeSet<_>>() {
        text += &format!("ACLs for principal `{principal}`\n");
        text += &table(acls.iter().filter_map(|(resource, entries)| {
            let own: Vec<_> = entries.iter().filter(|one| one.principal == **principal).collect();
            (!own.is_empty()).then_some((resource, own))
        }));
    }
    text
}

fn table<'a>(acls: impl Iterator<Item = (&'a AclResource, Vec<&'a AccessControlEntry>)>) -> String {
    let resource = |(resource, entries): (&AclResource, Vec<&AccessControlEntry>)| {
        let entry = |one: &AccessControlEntry| {
            format!(
                "\t(principal={}, host={}, operation={}, permissionType={})\n",
                one.principal,
                one.host,
                name_of(&OPERATIONS, one.operation),
                name_of(&PERMISSIONS, one.permission)
            )
        };
        format!(
            "Current ACLs for resource `ResourcePattern(resourceType={}, name={}, patternType={})`:\
             \n{}\n",
            name_of(&KINDS, resource.kind),
            resource.name,
            name_of(&PATTERNS, resource.pattern),
            entries.into_iter().map(entry).collect::<String>()
        )
    };
    acls.map(resource).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Parsed {
        let words = line.split(' ').map(str::to_owned).collect();
        Grammar::new("", &SPECS).parse(words).unwrap()
    }

    #[test]
    fn resources_are_asked_for_as_java_does() {
        let any = ResourceFilter::any();
        let of = |kind, name: &str, pattern| ResourceFilter {
            kind,
            name: Some(name.to_owned()),
            pattern,
        };
        for (line, expected) in [
            ("--list", vec![any.clone()]),
            (
                "--list --topic a --topic b --group c",
                vec![of(2, "a", 3), of(2, "b", 3), of(3, "c", 3)],
            ),
            ("--list --cluster --topic a", vec![of(2, "a", 3), of(4, "kafka-cluster", 3)]),
            ("--list --cluster --resource-pattern-type match", vec![any]),
            ("--list --user-principal x --resource-pattern-type PREFIXED", vec![of(7, "x", 4)]),
        ] {
            assert_eq!(filters(&parsed(line)).unwrap(), expected, "{line}");
        }
        assert!(filters(&parsed("--list --resource-pattern-type unknown")).is_err());
    }

    #[test]
    fn entries_are_printed_by_resource_and_by_principal() {
        let entry = |principal: &str, operation| AccessControlEntry {
            principal: principal.to_owned(),
            host: "*".to_owned(),
            operation,
            permission: 3,
        };
        let topic = |name: &str| AclResource { kind: 2, name: name.to_owned(), pattern: 3 };
        let acls = Acls::from([
            (topic("a"), BTreeSet::from([entry("User:x", 3), entry("User:y", 4)])),
            (topic("b"), BTreeSet::from([entry("User:y", 99)])),
        ]);
        let head = |name: &str| {
            format!(
                "Current ACLs for resource `ResourcePattern(resourceType=TOPIC, name={name}, \
                 patternType=LITERAL)`:\n"
            )
        };
        let row = |principal: &str, operation: &str| {
            format!(
                "\t(principal={principal}, host=*, operation={operation}, permissionType=ALLOW)\n"
            )
        };
        let (a, b) = (head("a"), head("b"));
        let (x, y, other) =
            (row("User:x", "READ"), row("User:y", "WRITE"), row("User:y", "UNKNOWN"));
        assert_eq!(listed(&acls, &[]), format!("{a}{x}{y}\n{b}{other}\n"));
        assert_eq!(
            listed(&acls, &["User:x", "User:z"]),
            format!("ACLs for principal `User:x`\n{a}{x}\nACLs for principal `User:z`\n")
        );
    }
}
