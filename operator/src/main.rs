//! The operator's binary: reads configuration and wires parts.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use letterbox_env::{Env, log_filter};
use letterbox_operator::api;
use letterbox_operator::controller::{self, LeaseOptions, Options};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

/// Runs Letterbox clusters and topics on Kubernetes.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the custom resource definitions as YAML.
    Crd,
    /// Watch clusters and topics, and keep them as their specs describe.
    Run(RunArgs),
}

#[derive(clap::Args)]
struct RunArgs {
    /// Image of new clusters that name none [env: LETTERBOX_IMAGE; default: letterbox:VERSION].
    #[arg(long)]
    image: Option<String>,
    /// Namespaces to watch, comma-separated; empty means all [env: LETTERBOX_NAMESPACES].
    #[arg(long, value_delimiter = ',')]
    namespaces: Option<Vec<String>>,
    /// Port of /livez, /readyz and /metrics.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Act only while holding a Lease, so that more than one replica may run. The namespace and the
    /// replica's name come from POD_NAMESPACE and POD_NAME.
    #[arg(long)]
    leader_elect: bool,
    /// The name of that Lease: one for each operator of a namespace.
    #[arg(long, default_value = "letterbox-operator")]
    lease_name: String,
    /// Log lines as JSON.
    #[arg(long)]
    log_json: bool,
}

fn main() -> anyhow::Result<()> {
    letterbox_env::panics::end_process_on_panic();
    match Args::parse().command {
        Command::Crd => {
            print!("{}", api::crds_yaml().context("write the definitions as YAML")?);
            Ok(())
        }
        Command::Run(args) => {
            let directives = variable("LETTERBOX_LOG").unwrap_or_else(|| "info".to_owned());
            let filter = read_log_level(&directives)?;
            let log = tracing_subscriber::fmt()
                .with_max_level(LevelFilter::TRACE)
                .with_writer(std::io::stderr);
            // No colour codes in a pod's log.
            let log = log.with_ansi(std::io::stderr().is_terminal());
            if args.log_json {
                log.json().flatten_event(true).finish().with(filter).init()
            } else {
                log.finish().with(filter).init()
            }
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .context("start the runtime")?;
            runtime.block_on(run(args))
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Reads what the chart sets from `log.level`.
fn read_log_level(directives: &str) -> anyhow::Result<Targets> {
    // It says each failed request as an error, every second while the API server is away; we say it
    // once.
    let quiet = "kube_client::client::builder=off";
    log_filter(&format!("{quiet},{directives}")).with_context(|| {
        format!("LETTERBOX_LOG={directives} (the Helm chart sets it from log.level)")
    })
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    let namespaces = args.namespaces.or_else(|| {
        Some(variable("LETTERBOX_NAMESPACES")?.split(',').map(ToOwned::to_owned).collect())
    });
    let lease = match args.leader_elect {
        false => None,
        true => Some(LeaseOptions {
            namespace: variable("POD_NAMESPACE")
                .context("read POD_NAMESPACE, which --leader-elect needs")?,
            name: args.lease_name,
            identity: variable("POD_NAME").context("read POD_NAME, which --leader-elect needs")?,
        }),
    };
    let options = Options {
        image: args
            .image
            .or_else(|| variable("LETTERBOX_IMAGE"))
            .unwrap_or_else(|| format!("letterbox:{}", env!("CARGO_PKG_VERSION"))),
        namespaces: namespaces
            .unwrap_or_default()
            .into_iter()
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .collect(),
        listen: (String::new(), args.port),
        lease,
    };
    let client = kube::Client::try_default()
        .await
        .context("find the API server (in-cluster, or KUBECONFIG)")?;
    controller::run(Env::real(), client, options).await
}

#[cfg(test)]
mod tests {
    use super::read_log_level;

    #[test]
    fn a_level_that_is_none_is_refused_with_where_it_is_set() {
        read_log_level("info,letterbox_operator=debug").unwrap();
        let said = format!("{:#}", read_log_level("debgu").unwrap_err());
        assert!(said.contains("log.level") && said.contains("\"debgu\""), "{said}");
    }
}
