//! Whether the API server answers and knows our definitions: what `/readyz` says, and when watches
//! are begun afresh.
//!
//! The kube runtime waits up to half a minute between two attempts at a watch. This looks more
//! often, so that work goes on within a second or two after the API server, or a definition, is
//! back.

use std::borrow::Cow;
use std::time::Duration;

use kube::{Client, Resource as _};
use tokio::sync::watch;

use super::schema::{Served, named};
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

/// What `/readyz` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// The operator works.
    Well,
    /// It works, and the API server's definitions are older than it is: what they lack cannot be
    /// written. A Deployment does not end the operator before it for this one.
    Outdated(String),
    /// It cannot work.
    Waits(String),
}

/// What is said before the first answer.
pub(crate) fn unknown() -> Health {
    Health::Waits("the API server has not been reached yet".to_owned())
}

/// Looks for ever; tells `health` what changes. `upgrade` is the command that upgrades the
/// definitions.
pub(crate) async fn run(client: Client, health: watch::Sender<Health>, upgrade: String) {
    let mut failures = 0;
    let mut version_told = false;
    let mut served = Served::default();
    loop {
        let seen = look(&client, &mut served, &upgrade).await;
        if seen.is_ok() && !version_told {
            version_told = tell_version(&client).await;
        }
        failures = if seen.is_err() { failures + 1 } else { 0 };
        let now = match seen {
            Ok(now) => Some(now),
            Err(why) if failures >= FAILURES => Some(Health::Waits(why)),
            Err(_) => None,
        };
        if let Some(now) = now {
            health.send_if_modified(|known| {
                let changed = *known != now;
                match &now {
                    Health::Waits(why) if changed => {
                        tracing::warn!(why, "not ready; checked again every second")
                    }
                    Health::Outdated(why) if changed => tracing::warn!(why, "not ready"),
                    Health::Well if changed => {
                        tracing::info!("the API server answers and has the definitions")
                    }
                    _ => {}
                }
                *known = now;
                changed
            });
        }
        let waits = failures > 0 || matches!(*health.borrow(), Health::Waits(_));
        tokio::time::sleep(if waits { PAUSE_MISSING } else { PAUSE }).await;
        failures = failures.min(FAILURES);
    }
}

/// What is missing, or the reason why that is not known.
async fn look(client: &Client, known: &mut Served, upgrade: &str) -> Result<Health, String> {
    let missing = match tokio::time::timeout(DEADLINE, missing(client)).await {
        Ok(Ok(missing)) => missing,
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
    if !missing.is_empty() {
        let missing = missing.iter().map(|name| format!("{name}.{}", crate::api::GROUP));
        let missing: Vec<String> = missing.collect();
        return Ok(Health::Waits(format!(
            "the API server has no CustomResourceDefinition {}; install the chart's CRDs again \
             (crds.install)",
            missing.join(" and ")
        )));
    }
    // What it does not tell keeps nobody from work.
    match tokio::time::timeout(DEADLINE, known.look(client)).await {
        Ok(Ok(())) => {}
        unread => tracing::debug!(?unread, "the definitions were not compared"),
    }
    Ok(match known.missing() {
        [] => Health::Well,
        missing => Health::Outdated(format!(
            "the CustomResourceDefinitions of the API server are older than the operator and lack \
             {}; upgrade them: {upgrade}",
            named(missing)
        )),
    })
}

/// The plurals of the definitions that the API server does not have.
pub(super) async fn missing(client: &Client) -> kube::Result<Vec<Cow<'static, str>>> {
    let served = client.list_api_group_resources(&KafkaCluster::api_version(&())).await;
    let served = match served {
        Ok(list) => list.resources,
        // No version of the group is served: every definition is missing.
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return Err(error),
    };
    let names = [KafkaCluster::plural(&()), KafkaTopic::plural(&())].into_iter();
    let is_served = |name: &str| served.iter().any(|resource| resource.name == name);
    Ok(names.filter(|name| !is_served(name)).collect())
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
    until(health, |health| !matches!(health, Health::Waits(_))).await;
}

/// Waits until the operator cannot work.
pub(super) async fn waits(health: &mut watch::Receiver<Health>) {
    until(health, |health| matches!(health, Health::Waits(_))).await;
}

/// Ends when what was missing is there again, and watches should be begun afresh.
pub(crate) async fn returned(health: &mut watch::Receiver<Health>) {
    waits(health).await;
    well(health).await;
}

async fn until(health: &mut watch::Receiver<Health>, is: impl FnMut(&Health) -> bool) {
    if health.wait_for(is).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;
    use crate::controller::schema::tests::served;

    /// An API server that has the definitions that are in `document`, and how often it was asked for
    /// them.
    fn server(document: &Arc<Mutex<(u32, Value)>>, asked: &Arc<Mutex<u32>>) -> Client {
        let (document, asked) = (document.clone(), asked.clone());
        let answer = move |request: Request<Body>| {
            let (version, document) = document.lock().unwrap().clone();
            let url = format!("/openapi/v3/apis/letterbox.dev/v1alpha1?hash={version}");
            let resource = |name: &str| json!({"name": name, "singularName": "", "namespaced": true, "kind": "", "verbs": []});
            let answer = match request.uri().path() {
                "/openapi/v3" => {
                    json!({"paths": {"apis/letterbox.dev/v1alpha1": {"serverRelativeURL": url}}})
                }
                "/apis/letterbox.dev/v1alpha1" => json!({
                    "groupVersion": "letterbox.dev/v1alpha1",
                    "resources": [resource("kafkaclusters"), resource("kafkatopics")],
                }),
                path if url.starts_with(path) => {
                    *asked.lock().unwrap() += 1;
                    document
                }
                _ => Value::Null,
            };
            async move {
                let body = Body::from(answer.to_string().into_bytes());
                Ok::<_, std::convert::Infallible>(Response::new(body))
            }
        };
        Client::new(tower::service_fn(answer), "ns")
    }

    #[tokio::test(start_paused = true)]
    async fn definitions_that_are_older_than_the_operator_are_told_until_they_are_upgraded() {
        let mut older = served();
        let status = "/components/schemas/dev.letterbox.v1alpha1.KafkaCluster/properties/status";
        let status = older.pointer_mut(&format!("{status}/properties")).unwrap();
        status.as_object_mut().unwrap().remove("selector");
        let document = Arc::new(Mutex::new((1, older)));
        let asked = Arc::default();
        let (told, mut health) = watch::channel(unknown());
        let client = server(&document, &asked);
        let looks = tokio::spawn(run(client, told, "letterbox-operator crd | …".to_owned()));
        let is_told = |health: &Health| {
            matches!(health, Health::Outdated(why) if why.contains("lack KafkaCluster.status.selector;")
                && why.ends_with("upgrade them: letterbox-operator crd | …"))
        };
        let told = tokio::time::timeout(PAUSE * 2, health.wait_for(is_told)).await;
        assert!(told.is_ok_and(|told| told.is_ok()), "{:?}", health.borrow());
        // It works all the same.
        well(&mut health).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(is_told(&health.borrow()));
        assert_eq!(*asked.lock().unwrap(), 1, "only what has changed is read");
        *document.lock().unwrap() = (2, served());
        tokio::time::timeout(PAUSE * 2, health.wait_for(|health| *health == Health::Well))
            .await
            .unwrap()
            .unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(*asked.lock().unwrap(), 2);
        looks.abort();
    }
}
