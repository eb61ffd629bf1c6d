//! The operator's binary: reads configuration and wires parts.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use letterbox_env::Env;
use letterbox_operator::api;
use letterbox_operator::controller::{self, LeaseOptions, Options};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

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
            let log = tracing_subscriber::fmt()
                .with_env_filter(log_filter(&directives)?)
                .with_writer(std::io::stderr);
            // No colour codes in a pod's log.
            let log = log.with_ansi(std::io::stderr().is_terminal());
            if args.log_json {
                log.json().flatten_event(true).init()
            } else {
                log.init()
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

/// Reads a level, or directives per module. A misspelt level would be taken for a module's name,
/// and silence all others.
fn log_filter(directives: &str) -> anyhow::Result<EnvFilter> {
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let wrong =
        directives.split(',').map(str::trim).find(|each| !each.contains('=') && !is_level(each));
    // It says each failed request as an error, every second while the API server is away; we say it
    // once.
    let quiet = "kube_client::client::builder=off";
    match (wrong, EnvFilter::try_new(format!("{quiet},{directives}"))) {
        (None, Ok(filter)) => Ok(filter),
        _ => anyhow::bail!(
            "LETTERBOX_LOG={directives} ({}): must be off, error, warn, info, debug or trace, or \
             module=level, separated by commas; the Helm chart sets it from log.level",
            wrong.unwrap_or("not readable")
        ),
    }
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
    use super::log_filter;

    #[test]
    fn a_level_that_is_none_is_refused_by_name() {
        for good in ["info", "DEBUG", "off", "warn,letterbox_operator=debug,kube[span]=trace"] {
            log_filter(good).unwrap();
        }
        for (bad, named) in
            [("debgu", "(debgu)"), ("info,verbose", "(verbose)"), ("kube=loud", "(not readable)")]
        {
            let said = log_filter(bad).unwrap_err().to_string();
            assert!(said.contains(named) && said.contains("log.level"), "{said}");
        }
    }
}
