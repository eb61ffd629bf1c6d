//! Whether the API server answers and knows our definitions: what `/readyz` says, and when watches
//! are begun afresh.
//!
//! The kube runtime waits up to half a minute between two attempts at a watch. This looks more
//! often, so that work goes on within a second or two after the API server, or a definition, is
//! back.

use std::time::Duration;

use kube::{Client, Resource as _};
use tokio::sync::watch;

use crate::api::{KafkaCluster, KafkaTopic};

/// Between two looks while all is well.
const PAUSE: Duration = Duration::from_secs(5);
/// And while it is not.
const PAUSE_MISSING: Duration = Duration::from_secs(1);
/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// So many looks in a row have to fail before the API server counts as not reachable: one lost
/// answer begins nothing afresh.
const FAILURES: u32 = 2;

/// `None` while the operator can work, or else why it cannot.
pub(crate) type Health = Option<String>;

/// What is said before the first answer.
pub(crate) fn unknown() -> Health {
    Some("the API server has not been reached yet".to_owned())
}

/// Looks for ever; tells `health` what changes.
pub(crate) async fn run(client: Client, health: watch::Sender<Health>) {
    let mut failures = 0;
    let mut version_told = false;
    loop {
        let seen = look(&client).await;
        if seen.is_ok() && !version_told {
            version_told = tell_version(&client).await;
        }
        failures = if seen.is_err() { failures + 1 } else { 0 };
        let now = match seen {
            Ok(now) => Some(now),
            Err(why) if failures >= FAILURES => Some(Some(why)),
            Err(_) => None,
        };
        if let Some(now) = now {
            health.send_if_modified(|known| {
                let changed = *known != now;
                match &now {
                    Some(why) if changed => {
                        tracing::warn!(why, "waiting; retrying every second")
                    }
                    None if changed => {
                        tracing::info!("the API server answers and has the definitions")
                    }
                    _ => {}
                }
                *known = now;
                changed
            });
        }
        let is_well = failures == 0 && health.borrow().is_none();
        tokio::time::sleep(if is_well { PAUSE } else { PAUSE_MISSING }).await;
        failures = failures.min(FAILURES);
    }
}

/// What is missing, or the reason why that is not known.
async fn look(client: &Client) -> Result<Health, String> {
    let served = tokio::time::timeout(
        DEADLINE,
        client.list_api_group_resources(&KafkaCluster::api_version(&())),
    )
    .await;
    let served = match served {
        Ok(Ok(list)) => list.resources,
        // No version of the group is served: every definition is missing.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Vec::new(),
        Ok(Err(error)) => {
            return Err(format!(
                "the API server does not answer: {}",
                crate::platform::kubernetes::said(&error)
            ));
        }
        Err(_) => {
            return Err(format!("the API server does not answer within {} s", DEADLINE.as_secs()));
        }
    };
    let names = [KafkaCluster::plural(&()), KafkaTopic::plural(&())];
    let missing: Vec<String> = names
        .iter()
        .filter(|name| !served.iter().any(|resource| resource.name == **name))
        .map(|name| format!("{name}.{}", crate::api::GROUP))
        .collect();
    let why = || {
        format!(
            "the API server has no CustomResourceDefinition {}; install the chart's CRDs again \
             (crds.install)",
            missing.join(" and ")
        )
    };
    Ok((!missing.is_empty()).then(why))
}

async fn tell_version(client: &Client) -> bool {
    match tokio::time::timeout(DEADLINE, client.apiserver_version()).await {
        Ok(Ok(version)) => {
            tracing::info!(kubernetes = %version.git_version, "the API server answers");
            true
        }
        _ => false,
    }
}

/// Waits until the operator can work.
pub(crate) async fn well(health: &mut watch::Receiver<Health>) {
    if health.wait_for(Option::is_none).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Ends when what was missing is there again, and watches should be begun afresh.
pub(crate) async fn returned(health: &mut watch::Receiver<Health>) {
    if health.wait_for(Option::is_some).await.is_err() {
        std::future::pending::<()>().await;
    }
    well(health).await;
}
