//! `kafka-cluster`.

use std::io::Write;

use letterbox_client::Error;
use letterbox_env::Env;

use crate::args::{CONTROLLERS, Command, Grammar, Parsed, Spec, Takes};
use crate::connect;
use crate::failure::{Failure, java_cause};

const SPECS: [Spec; 2] = [
    ("bootstrap-controller", Takes::Refused, CONTROLLERS),
    ("config", Takes::Value("CONFIG"), "(DEPRECATED) Use --command-config."),
];
const COMMANDS: &[Command] = &[
    ("cluster-id", "Get information about the ID of a cluster.", &[]),
    (
        "unregister",
        "Unregister a broker.",
        &[("id", Takes::Value("ID"), "The ID of the broker to unregister.")],
    ),
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
    ("i", "id"),
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
    let id = match parsed.command() {
        "unregister" => Some(broker_id(&parsed)?),
        _ => None,
    };
    let client =
        connect::admin_with(env, &parsed, &["command-config", "config"], None, err).await?;
    if let Some(id) = id {
        client.unregister_broker(id).await.map_err(failed)?;
        writeln!(out, "Broker {id} is no longer registered.")?;
        return Ok(0);
    }
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

fn broker_id(parsed: &Parsed) -> Result<i32, Failure> {
    let id = parsed.value("id").ok_or_else(|| parsed.wrong("argument --id/-i is required"))?;
    id.parse().map_err(|_| {
        parsed.wrong(format!("argument --id/-i: could not convert '{id}' to integer (32 bit)"))
    })
}

/// As Java's tool tells what an admin call has failed with.
fn failed(error: Error) -> Failure {
    match &error {
        Error::Broker(refusal) => Failure::Stderr(java_cause(refusal)),
        Error::Unsupported { .. } => Failure::Stdout(
            "The target cluster does not support the broker unregistration API.".to_owned(),
        ),
        _ => error.into(),
    }
}
