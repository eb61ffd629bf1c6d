//! `kafka-cluster`.

use std::io::Write;

use letterbox_env::Env;

use crate::args::{Command, Grammar, Spec, Takes};
use crate::connect;
use crate::failure::Failure;

const SPECS: [Spec; 2] = [
    ("bootstrap-controller", Takes::Refused, ""),
    ("config", Takes::Value("CONFIG"), "(DEPRECATED) Use --command-config."),
];
const COMMANDS: &[Command] = &[
    ("cluster-id", "Get information about the ID of a cluster.", &[]),
    ("unregister", "", &[]),
    (
        "list-endpoints",
        "List endpoints",
        &[(
            "include-fenced-brokers",
            Takes::Nothing,
            "Whether to include fenced brokers when listing broker endpoints",
        )],
    ),
];
const SHORTS: &[(&str, &str)] = &[
    ("b", "bootstrap-server"),
    ("c", "command-config"),
    ("C", "bootstrap-controller"),
    ("h", "help"),
];

/// Runs the tool.
pub(crate) async fn run(
    env: &Env,
    args: Vec<String>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<i32, Failure> {
    let parsed = Grammar::new("The Kafka cluster tool.", &SPECS)
        .argparse(&[])
        .commands(COMMANDS)
        .shorts(SHORTS)
        .parse(args)?;
    if !parsed.has("bootstrap-server") {
        return Err(parsed.wrong("one of the arguments --bootstrap-server/-b is required"));
    }
    if parsed.has("config") {
        let now = "has been deprecated and will be removed in a future version. Use \
            --command-config instead.";
        writeln!(out, "Option --config {now}")?;
    }
    let client =
        connect::admin_with(env, &parsed, &["command-config", "config"], None, err).await?;
    if parsed.command() == "cluster-id" {
        writeln!(out, "Cluster ID: {}", client.describe_cluster().await?.cluster_id)?;
        return Ok(0);
    }
    let mut row = |id: &str, host: &str, port: &str, rack: &str, state: &str, kind: &str| {
        writeln!(out, "{id:<10} {host:<9} {port:<10} {rack:<10} {state:<10} {kind:<15}")
    };
    row("ID", "HOST", "PORT", "RACK", "STATE", "ENDPOINT_TYPE")?;
    for endpoint in client.endpoints(parsed.has("include-fenced-brokers")).await? {
        let broker = &endpoint.broker;
        let state = if endpoint.is_fenced { "fenced" } else { "unfenced" };
        row(
            &broker.id.to_string(),
            &broker.host,
            &broker.port.to_string(),
            broker.rack.as_deref().unwrap_or("null"),
            state,
            "broker",
        )?;
    }
    Ok(0)
}
