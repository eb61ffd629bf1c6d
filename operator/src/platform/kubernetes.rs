//! Kubernetes as a platform.
//!
//! Every read is a list or get from the API server, not from a cache: what a plan is made from is
//! what is. Every write is a server-side apply under one field manager, and refuses objects that
//! belong to somebody else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, PersistentVolumeClaim, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams,
    PostParams, Preconditions,
};
use kube::{Client, ResourceExt as _};
use letterbox_env::{BoxFuture, Gather, with_causes};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::calls::no_answer;
use super::own::Own;
use super::pods::{
    News, has_other_image, image_in, is_ready, not_grown, run_of, unbound, waits_for_pod,
    with_own_words,
};
use super::unwatched::Unwatched;
use super::{Live, Platform};
use crate::admin::{AskIdentity, Identity, MayEnd};
use crate::api::{
    ADMIN_PORT, CLUSTER_FINALIZER, DeletionPolicy, KafkaCluster, Listener, ListenerType, bytes_of,
    is_paused,
};
use crate::desired::compare::{differences, marked, taken_over};
use crate::desired::objects::{
    self, ASKED_ANNOTATION, ASKED_CLASS_ANNOTATION, ASKED_SIZE_ANNOTATION, BROKER_LABEL,
    CLUSTER_ID_ANNOTATION, CLUSTER_LABEL, CONFIG_ANNOTATION, IMAGE_ANNOTATION, Kind,
    MADE_ANNOTATION, MANAGER, ObjectKey, external_bootstrap_name, external_broker_name,
};
use crate::desired::{
    Address, Blueprint, BrokerFacts, CONTROLLER_PORT, Facts, Host, VolumePlace, advertised_in,
    bootstrap_name, broker_ids, broker_name, claim_name, cluster_id_of, expected_directories,
    given_up_directories, image_of, lost_metadata_log, volume_names, volume_of_claim,
};
use crate::observe::{Asked, Compared, Difference, Observed, ObservedBroker, Part, Run, Volume};
use crate::plan::Step;
use crate::status::Fault;

/// The API server.
#[derive(Clone)]
pub struct Kubernetes {
    client: Client,
    /// The image of a new cluster that asks for none.
    default_image: String,
    brokers: Arc<dyn AskIdentity>,
    /// The uids of the last claims that went without ever having had a volume.
    unmade: Arc<Mutex<VecDeque<String>>>,
    /// The pods, by namespace and name, that were ended to restore their image.
    restored: Arc<Mutex<BTreeMap<(String, String), RestoredImage>>>,
    /// What the API server does not let the operator watch.
    pub(crate) unwatched: Unwatched,
}

/// A pod that was ended to restore its image.
struct RestoredImage {
    at: Instant,
    /// Since when its successor has another image again and does not serve.
    does_not_serve: Option<Instant>,
}

/// How often a broker is restarted at most because somebody changes the image of its pod, while it
/// serves with that.
const RESTORE_PAUSE: Duration = Duration::from_secs(3600);
/// How long a broker may take to serve with an image that somebody put into its pod.
const OTHER_IMAGE_PATIENCE: Duration = Duration::from_secs(120);
/// So many of them are remembered.
const UNMADE_MAX: usize = 4096;
/// Why a broker cannot be asked.
const NO_ADDRESS: &str = "its pod has no address to ask at";

/// What the API server has of one cluster.
#[derive(Clone, Debug, Default)]
pub struct KubernetesLive {
    namespace: String,
    default_image: String,
    objects: BTreeMap<ObjectKey, Value>,
    pods: Vec<Pod>,
    /// The names of those whose image is left although somebody changed it.
    left: BTreeSet<String>,
    /// What has the cluster's label, and is no pod of its own.
    foreign: Vec<Pod>,
    claims: Vec<PersistentVolumeClaim>,
    identities: BTreeMap<i32, Identity>,
    /// What brokers that run and do not serve say that they wait for.
    starting: BTreeMap<i32, String>,
    is_held: bool,
    /// When the cluster's object was made.
    made: Option<Time>,
    /// Of the claims that status names.
    unmade: BTreeSet<String>,
    /// The uids of the claims that may be deleted with the cluster.
    own: BTreeSet<String>,
    unread: BTreeMap<Part, Fault>,
    unwatched: BTreeMap<String, String>,
    news: News,
}

impl Kubernetes {
    /// The API server behind `client`.
    #[must_use]
    pub fn new(client: Client, default_image: String, brokers: Arc<dyn AskIdentity>) -> Self {
        let (unmade, restored, unwatched) = Default::default();
        Self { client, default_image, brokers, unmade, restored, unwatched }
    }

    /// Takes up that a claim is gone, and how it was at its end: one that has no volume then never
    /// had one. One that only lost its label is gone from the watch and is still there.
    pub(crate) fn saw_end(&self, claim: &PersistentVolumeClaim) {
        let is_deleted = claim.metadata.deletion_timestamp.is_some();
        let never_was = is_deleted && !is_bound(claim);
        let Some(uid) = claim.uid().filter(|_| never_was) else { return };
        let mut unmade = self.unmade.lock().unwrap_or_else(PoisonError::into_inner);
        if unmade.len() >= UNMADE_MAX {
            unmade.pop_front();
        }
        unmade.push_back(uid);
    }

    fn unmade(&self, cluster: &KafkaCluster) -> BTreeSet<String> {
        let nodes = cluster.status.iter().flat_map(|status| &status.nodes);
        let uids = nodes.flat_map(|node| {
            let lost = node.losses.iter().flat_map(|loss| [&loss.claim_uid, &loss.replaced_by]);
            node.volumes.iter().map(|volume| &volume.claim_uid).chain(lost).flatten()
        });
        let unmade = self.unmade.lock().unwrap_or_else(PoisonError::into_inner);
        uids.filter(|uid| unmade.contains(uid)).cloned().gather()
    }

    /// The pods whose image is left although somebody changed it: it was restored not long ago, and
    /// they serve with it, or may yet.
    fn left(&self, namespace: &str, pods: &[Pod]) -> BTreeSet<String> {
        let mut all = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, known| known.at.elapsed() < RESTORE_PAUSE);
        let mut left = BTreeSet::new();
        let stays = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none();
        for pod in pods.iter().filter(|pod| has_other_image(pod)).filter(stays) {
            let name = pod.name_any();
            let Some(known) = all.get_mut(&(namespace.to_owned(), name.clone())) else { continue };
            let since = known.does_not_serve.unwrap_or_else(Instant::now);
            known.does_not_serve = (!is_ready(pod)).then_some(since);
            if since.elapsed() < OTHER_IMAGE_PATIENCE || is_ready(pod) {
                left.insert(name);
            }
        }
        left
    }

    fn api(&self, namespace: &str, kind: Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &resource(kind))
    }

    async fn list(
        &self,
        namespace: &str,
        kind: Kind,
        params: &ListParams,
    ) -> Result<Vec<(ObjectKey, Value)>, Fault> {
        let list = self.api(namespace, kind).list(params).await;
        let list = list.map_err(|error| list_fault(&format!("{kind}s"), params, &error))?;
        let found = list.items.into_iter().map(|object| {
            let key = ObjectKey { kind, name: object.name_any() };
            Ok((
                key,
                serde_json::to_value(object).map_err(|error| {
                    api_fault("read an object", &kube::Error::SerdeError(error))
                })?,
            ))
        });
        found.collect()
    }

    /// What events say about brokers that do not serve and claims without a volume: nothing is
    /// asked about the others.
    async fn news(&self, live: &KubernetesLive, cluster: &KafkaCluster) -> (News, Option<Fault>) {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &live.namespace);
        let names = broker_ids(cluster).flat_map(|id| {
            let broker = broker_name(&cluster.name_any(), id);
            let serves = live.pod(id).is_some_and(is_ready);
            let unbound = live.claims.iter().filter(|claim| !is_bound(claim));
            let mut names: Vec<String> = unbound
                .map(|claim| claim.name_any())
                .filter(|claim| volume_of_claim(&broker, claim).is_some())
                .collect();
            names.extend((!serves).then(|| format!("{broker}-0")));
            names.extend((!serves).then_some(broker));
            names
        });
        let list = |name: String| {
            let events = events.clone();
            async move {
                let about = ListParams::default().fields(&format!("involvedObject.name={name}"));
                events.list(&about).await
            }
        };
        let (mut news, mut unread) = (News::default(), None);
        for list in futures::future::join_all(names.map(list)).await {
            match list {
                Ok(list) => news.extend(list),
                Err(error) => unread = unread.or_else(|| Some(api_fault("list events", &error))),
            }
        }
        (news, unread)
    }

    /// Applies one object, unless it belongs to somebody else.
    async fn apply(
        &self,
        desired: &Blueprint,
        live: &KubernetesLive,
        key: &ObjectKey,
        object: &Value,
    ) -> Result<(), Fault> {
        let api = self.api(&desired.namespace, key.kind);
        let what = format!("apply {key}");
        let known = match live.objects.get(key) {
            Some(known) => Some(known.clone()),
            // It has no label of ours, or is not there.
            None => api
                .get_opt(&key.name)
                .await
                .map_err(|error| api_fault(&what, &error))?
                .and_then(|object| serde_json::to_value(object).ok()),
        };
        if known.as_ref().is_some_and(|known| !belongs(known, desired)) {
            return Err(Fault {
                reason: "ResourceConflict".to_owned(),
                message: format!(
                    "{key} exists and does not belong to this KafkaCluster; rename or delete one \
                     of the two"
                ),
            });
        }
        if let Some(known) = known.as_ref().filter(|known| !can_become(key.kind, known, object)) {
            delete_as_seen(&api, key, known).await?;
        }
        if live
            .objects
            .get(key)
            .is_some_and(|live| live.pointer("/spec/updateStrategy/rollingUpdate").is_some())
        {
            // The parameters of a strategy that was set by hand are not allowed beside ours, and
            // applying ours leaves them.
            let strategy =
                json!({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}});
            let params =
                PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
            api.patch(&key.name, &params, &Patch::Merge(&strategy))
                .await
                .map_err(|error| api_fault(&what, &error))?;
        }
        let (params, ours) = (PatchParams::apply(MANAGER).force(), Patch::Apply(marked(object)));
        match api.patch(&key.name, &params, &ours).await {
            Err(kube::Error::Api(status)) if status.code == 422 && known.is_some() => {
                let refused = status.details.iter().flat_map(|details| &details.causes);
                let refused: Vec<&str> = refused.map(|cause| &*cause.field).collect();
                if !self.take_over(&api, key, desired, object, &refused).await? {
                    return Err(api_fault(&what, &kube::Error::Api(status)));
                }
                let again = api.patch(&key.name, &params, &ours).await;
                again.map(drop).map_err(|error| api_fault(&what, &error))
            }
            result => result.map(drop).map_err(|error| api_fault(&what, &error)),
        }
    }

    /// Makes what others have put into the fields that the API server refused count as applied by
    /// the operator, so that the next apply takes it away where it is not desired: it is not allowed
    /// beside what is. What the API server chose, as an address, stays. False when there is nothing
    /// to take over.
    async fn take_over(
        &self,
        api: &Api<DynamicObject>,
        key: &ObjectKey,
        desired: &Blueprint,
        object: &Value,
        refused: &[&str],
    ) -> Result<bool, Fault> {
        let tell = |error: kube::Error| {
            api_fault(&format!("take over what others have changed of {key}"), &error)
        };
        let read = async || {
            let live = api.get_opt(&key.name).await.map_err(tell)?;
            let live = live.and_then(|live| serde_json::to_value(live).ok());
            Ok(live.filter(|live| belongs(live, desired)))
        };
        let Some(mut live) = read().await? else { return Ok(false) };
        let has_fields = |live: &Value| {
            let fields = live.pointer("/metadata/managedFields").and_then(Value::as_array);
            fields.is_some_and(|fields| !fields.is_empty())
        };
        if !has_fields(&live) {
            // Somebody emptied them. The first apply after that, also of nothing, notes all that is
            // there as put there by somebody.
            let nothing = json!({
                "apiVersion": object["apiVersion"], "kind": object["kind"],
                "metadata": {"name": key.name, "uid": live["metadata"]["uid"]},
            });
            let params = PatchParams::apply(MANAGER).force();
            api.patch(&key.name, &params, &Patch::Apply(&nothing)).await.map_err(tell)?;
            live = read().await?.unwrap_or_default();
        }
        let Some(fields) = taken_over(&live, refused, object) else { return Ok(false) };
        let patch = json!({"metadata": {
            "uid": live["metadata"]["uid"],
            "resourceVersion": live["metadata"]["resourceVersion"],
            "managedFields": fields,
        }});
        let taken = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        taken.map(|_| true).map_err(tell)
    }

    /// Finds the sets and claims that have lost their label: by the names that they must have.
    async fn find_by_name(&self, cluster: &KafkaCluster, live: &mut KubernetesLive) {
        let (name, uid) = (cluster.name_any(), cluster.uid().unwrap_or_default());
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &live.namespace);
        for id in broker_ids(cluster) {
            let key = ObjectKey { kind: Kind::StatefulSet, name: broker_name(&name, id) };
            if !live.objects.contains_key(&key) && !live.unread.contains_key(&Part::Definitions) {
                let found = self.api(&live.namespace, key.kind).get_opt(&key.name).await;
                let found = found.map_err(|error| api_fault(&format!("read {key}"), &error));
                let found = live_or_unread(
                    found.map(|set| set.into_iter().collect()),
                    Part::Definitions,
                    &mut live.unread,
                );
                let values = found
                    .into_iter()
                    .filter_map(|set: DynamicObject| serde_json::to_value(set).ok());
                live.objects.extend(
                    values
                        .filter(|set| owner_uids(set).any(|owner| owner == uid))
                        .map(|set| (key.clone(), set)),
                );
            }
            for volume in live.volumes_of(cluster, id) {
                let claim = claim_name(&broker_name(&name, id), &volume);
                if live.unread.contains_key(&Part::Storage) || live.claim(&claim).is_some() {
                    continue;
                }
                let found = claims
                    .get_opt(&claim)
                    .await
                    .map_err(|error| api_fault(&format!("read volume claim {claim}"), &error));
                live.claims.extend(live_or_unread(
                    found.map(|claim| claim.into_iter().collect()),
                    Part::Storage,
                    &mut live.unread,
                ));
            }
        }
    }

    /// Asks every pod who it is: one that waits for its log directories tells it too. An address may
    /// be another pod's by now: what a broker with another id says is left out.
    async fn ask(&self, pods: &[Pod]) -> BTreeMap<i32, Identity> {
        let asked = pods.iter().filter_map(|pod| {
            let id: i32 = pod.labels().get(BROKER_LABEL)?.parse().ok()?;
            let address = pod.status.as_ref()?.pod_ip.as_deref()?;
            Some(async move {
                let said = self.brokers.identity(address, port_of(ADMIN_PORT)?).await?;
                said.is_of(id, None).then_some((id, said))
            })
        });
        futures::future::join_all(asked).await.into_iter().flatten().gather()
    }

    /// Asks every pod that does not serve what it waits for.
    async fn ask_why(&self, pods: &[Pod]) -> BTreeMap<i32, String> {
        let asked = pods.iter().filter(|pod| !is_ready(pod)).filter_map(|pod| {
            let id: i32 = pod.labels().get(BROKER_LABEL)?.parse().ok()?;
            let address = pod.status.as_ref()?.pod_ip.as_deref()?;
            Some(async move {
                Some((id, self.brokers.not_ready_because(address, port_of(ADMIN_PORT)?).await?))
            })
        });
        futures::future::join_all(asked).await.into_iter().flatten().gather()
    }

    async fn prune(&self, desired: &Blueprint, key: &ObjectKey) -> Result<(), Fault> {
        let api = self.api(&desired.namespace, key.kind);
        let tell = |error: kube::Error| api_fault(&format!("remove {key}"), &error);
        // A live read before anything is removed, and the removal only of what was read.
        let Some(live) = api.get_opt(&key.name).await.map_err(tell)? else { return Ok(()) };
        if !live.owner_references().iter().any(|owner| owner.uid == desired.uid) {
            return Ok(());
        }
        let preconditions =
            Preconditions { uid: live.uid(), resource_version: live.resource_version() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(&key.name, &params).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            result => result.map(drop).map_err(tell),
        }
    }

    /// Ends the pod of a broker: the one with this uid, and none that came after it.
    async fn end(
        &self,
        desired: &Blueprint,
        live: &KubernetesLive,
        broker: i32,
        uid: &str,
    ) -> Result<(), Fault> {
        self.look_at_claims(desired, live, broker).await?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &desired.namespace);
        let name = format!("{}-0", broker_name(&desired.name, broker));
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match pods.delete(&name, &params).await {
            // It is gone, or another one has its name.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
            Err(error) => Err(api_fault(&format!("delete pod {name}"), &error)),
            Ok(_) if !live.pod(broker).is_some_and(has_other_image) => Ok(()),
            Ok(_) => {
                let mut all = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
                let restored = RestoredImage { at: Instant::now(), does_not_serve: None };
                all.insert((desired.namespace.clone(), name), restored);
                Ok(())
            }
        }
    }

    /// Right before a broker is ended: whether its claims are still those that the plan saw. One
    /// that is being deleted since goes with the pod.
    ///
    /// # Errors
    /// They cannot be read, or one of them is not.
    async fn look_at_claims(
        &self,
        desired: &Blueprint,
        live: &KubernetesLive,
        broker: i32,
    ) -> Result<(), Fault> {
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &desired.namespace);
        let params = ListParams::default().labels(&format!("{CLUSTER_LABEL}={}", desired.name));
        let found = claims.list(&params).await;
        let found = found.map_err(|error| api_fault("list volume claims", &error))?.items;
        let name = broker_name(&desired.name, broker);
        let state = |claim: &PersistentVolumeClaim| {
            let is_ending = claim.metadata.deletion_timestamp.is_some();
            let phase = claim.status.as_ref().and_then(|status| status.phase.clone());
            (claim.uid(), is_ending, phase)
        };
        for seen in &live.claims {
            let claim = seen.name_any();
            let is_used = volume_of_claim(&name, &claim).is_some();
            // One without its label is read by its name.
            let now = match found.iter().find(|each| each.name_any() == claim) {
                Some(now) => Some(now.clone()),
                None if is_used => claims
                    .get_opt(&claim)
                    .await
                    .map_err(|error| api_fault(&format!("read volume claim {claim}"), &error))?,
                None => None,
            };
            if is_used && now.as_ref().map(state) != Some(state(seen)) {
                return Err(Fault {
                    reason: "Changed".to_owned(),
                    message: format!(
                        "volume claim {claim} has changed since the reconcile began; the broker is \
                         not ended, and the reconcile is retried"
                    ),
                });
            }
        }
        Ok(())
    }

    /// Deletes the set of a broker, which goes after its pod.
    async fn remove(
        &self,
        desired: &Blueprint,
        live: &KubernetesLive,
        broker: i32,
    ) -> Result<(), Fault> {
        let name = broker_name(&desired.name, broker);
        let seen = live.set_of(&name).and_then(|set| set.pointer("/metadata/uid")?.as_str());
        let Some(uid) = seen else { return Ok(()) };
        self.look_at_claims(desired, live, broker).await?;
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let params =
            DeleteParams { preconditions: Some(preconditions), ..DeleteParams::foreground() };
        match self.api(&desired.namespace, Kind::StatefulSet).delete(&name, &params).await {
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
            result => result
                .map(drop)
                .map_err(|error| api_fault(&format!("delete StatefulSet {name}"), &error)),
        }
    }

    fn clusters(&self, namespace: &str) -> Api<KafkaCluster> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Holds the cluster's object, or lets it go.
    async fn hold(&self, namespace: &str, name: &str, uid: &str, held: bool) -> Result<(), Fault> {
        let metadata = ObjectMeta {
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectMeta::default()
        };
        let cluster = Own::named(&self.client, ApiResource::erase::<KafkaCluster>(&()), &metadata);
        cluster.set_finalizer(CLUSTER_FINALIZER, held).await.map(drop)
    }

    /// Ends what holds a cluster that is being deleted. Its volumes are deleted first if its spec
    /// says so now, whatever it said when it was looked at last. Safe to repeat.
    ///
    /// # Errors
    /// What the API server did not do; the object is held until it does.
    pub async fn let_go(&self, namespace: &str, name: &str, uid: &str) -> Result<(), Fault> {
        let live = self
            .clusters(namespace)
            .get_opt(name)
            .await
            .map_err(|error| api_fault("read the cluster", &error))?;
        let Some(live) = live.filter(|live| live.uid().as_deref() == Some(uid)) else {
            return Ok(());
        };
        let deletes = live.spec.storage.deletion_policy == DeletionPolicy::Delete
            && !is_paused(&live.metadata);
        if live.metadata.deletion_timestamp.is_some() && deletes {
            self.delete_volumes(&live).await?;
        }
        self.hold(namespace, name, uid, false).await
    }

    /// Ends what holds a cluster, and deletes nothing.
    ///
    /// # Errors
    /// What the API server did not do.
    pub(crate) async fn release(&self, cluster: &KafkaCluster) -> Result<(), Fault> {
        let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
        self.hold(&namespace, &name, &cluster.uid().unwrap_or_default(), false).await
    }

    /// Deletes the sets of a cluster's brokers and their claims, if they are its own.
    async fn delete_volumes(&self, cluster: &KafkaCluster) -> Result<(), Fault> {
        // Nothing goes while the claims may not: the brokers would be gone, and their volumes
        // would hold the cluster.
        for id in broker_ids(cluster) {
            self.delete_claims(cluster, id, true).await.map_err(|fault| Fault {
                message: format!(
                    "{}; the cluster is held until its volume claims may be deleted, and none of \
                     its brokers is deleted before. To keep the volumes instead, set \
                     spec.storage.deletionPolicy to Retain",
                    fault.message
                ),
                ..fault
            })?;
        }
        for id in broker_ids(cluster) {
            // The set first: it would make a new claim.
            self.delete_set(cluster, id).await?;
            self.delete_claims(cluster, id, false).await?;
        }
        Ok(())
    }

    /// Deletes the set of a broker, if it is the cluster's own.
    async fn delete_set(&self, cluster: &KafkaCluster, id: i32) -> Result<(), Fault> {
        let uid = cluster.uid().unwrap_or_default();
        let name = broker_name(&cluster.name_any(), id);
        let set = ObjectKey { kind: Kind::StatefulSet, name };
        let sets = self.api(&cluster.namespace().unwrap_or_default(), set.kind);
        let live = sets
            .get_opt(&set.name)
            .await
            .map_err(|error| api_fault(&format!("read {set}"), &error))?;
        match live.filter(|live| live.owner_references().iter().any(|owner| owner.uid == uid)) {
            Some(live) => {
                let deleted = sets.delete(&set.name, &only(live.uid(), false)).await;
                ends(&set.to_string(), deleted.map(drop))
            }
            None => Ok(()),
        }
    }

    /// Deletes the claims of a broker, if they are the cluster's own: by uid, not by name. Or
    /// `only_asks` whether that is allowed.
    async fn delete_claims(
        &self,
        cluster: &KafkaCluster,
        id: i32,
        only_asks: bool,
    ) -> Result<(), Fault> {
        let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
        let broker = broker_name(&name, id);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let labelled = ListParams::default().labels(&format!("{CLUSTER_LABEL}={name}"));
        let found = claims
            .list(&labelled)
            .await
            .map_err(|error| api_fault("list volume claims", &error))?;
        let kept =
            found.items.iter().filter_map(|claim| volume_of_claim(&broker, &claim.name_any()));
        for volume in volume_names(cluster, id, kept) {
            let claim = claim_name(&broker, &volume);
            let live = claims
                .get_opt(&claim)
                .await
                .map_err(|error| api_fault(&format!("read volume claim {claim}"), &error))?;
            let Some(live) = live else { continue };
            if !is_own(cluster, &live) {
                tracing::warn!(
                    cluster = name,
                    namespace,
                    claim,
                    "the operator did not make the volume claim for this cluster, and it stays"
                );
                continue;
            }
            let deleted = claims.delete(&claim, &only(live.uid(), only_asks)).await;
            ends(&format!("volume claim {claim}"), deleted.map(drop))?;
        }
        Ok(())
    }

    /// Makes the claim of a volume. One that is there by now is left as it is.
    async fn make_claim(
        &self,
        desired: &Blueprint,
        broker: i32,
        volume: &str,
    ) -> Result<(), Fault> {
        let Some(broker) = desired.brokers.get(&broker) else { return Ok(()) };
        let Some(volume) = broker.volumes.iter().find(|each| each.name == volume) else {
            return Ok(());
        };
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &desired.namespace);
        let what = format!("create volume claim {}", claim_name(&broker.name, &volume.name));
        let claim = serde_json::from_value(objects::claim(desired, broker, volume))
            .map_err(|error| api_fault(&what, &kube::Error::SerdeError(error)))?;
        let params =
            PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        match claims.create(&params, &claim).await {
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
            Err(error) => Err(api_fault(&what, &error)),
            Ok(made) => mark(&claims, &made).await,
        }
    }

    /// Deletes the claim of a volume that nothing is on, and that no definition names; the next pass
    /// makes it again if it is wanted. It goes only as the plan saw it: one that was bound since
    /// stays.
    async fn remake(
        &self,
        desired: &Blueprint,
        live: &KubernetesLive,
        broker: i32,
        volume: &str,
    ) -> Result<(), Fault> {
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &desired.namespace);
        let name = claim_name(&broker_name(&desired.name, broker), volume);
        let Some(claim) = live.claim(&name) else { return Ok(()) };
        let preconditions =
            Some(Preconditions { uid: claim.uid(), resource_version: claim.resource_version() });
        match claims.delete(&name, &DeleteParams { preconditions, ..DeleteParams::default() }).await
        {
            // It is gone, or is another one since: the next pass sees.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
            result => result.map(drop).map_err(|error| {
                api_fault(&format!("delete the unused volume claim {name}"), &error)
            }),
        }
    }

    async fn grow(
        &self,
        desired: &Blueprint,
        broker: i32,
        volume: &str,
        to: u64,
    ) -> Result<(), Fault> {
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &desired.namespace);
        let name = claim_name(&broker_name(&desired.name, broker), volume);
        let broker = desired.brokers.get(&broker);
        let Some(wanted) = broker
            .and_then(|broker| broker.volumes.iter().find(|each| each.name == volume))
            .map(|volume| &volume.size)
        else {
            return Ok(());
        };
        let live = claims
            .get(&name)
            .await
            .map_err(|error| api_fault(&format!("read volume claim {name}"), &error))?;
        let tell = |error: kube::Error| {
            let class = live
                .spec
                .as_ref()
                .and_then(|spec| spec.storage_class_name.as_deref())
                .unwrap_or("(none)");
            let requests = live
                .spec
                .as_ref()
                .and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
            let has = requests.map_or("what it was", |quantity| &quantity.0);
            Fault {
                reason: "VolumeNotGrown".to_owned(),
                message: format!(
                    "the volume claim {name} has {has} of storage class {class} and cannot grow to \
                     {wanted}: {}; set its size in spec.storage back to {has}, or use a class that \
                     allows expansion",
                    said(&error)
                ),
            }
        };
        let seen = claim_volume(&live, &News::default());
        if seen.is_some_and(|volume| !volume.is_to_ask_for(to)) {
            return Ok(());
        }
        // With the version that was read, so that a growth by hand in between is not undone.
        let patch = json!({
            "metadata": {"resourceVersion": live.resource_version()},
            "spec": {"resources": {"requests": {"storage": wanted}}},
        });
        let params =
            PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        claims.patch(&name, &params, &Patch::Merge(&patch)).await.map(drop).map_err(tell)
    }
}

impl Platform for Kubernetes {
    type Live = KubernetesLive;

    fn read<'a>(
        &'a self,
        cluster: &'a KafkaCluster,
    ) -> BoxFuture<'a, Result<KubernetesLive, Fault>> {
        Box::pin(async move {
            let namespace = cluster.namespace().unwrap_or_default();
            let params =
                ListParams::default().labels(&format!("{CLUSTER_LABEL}={}", cluster.name_any()));
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            let claims: Api<PersistentVolumeClaim> =
                Api::namespaced(self.client.clone(), &namespace);
            let pods = async {
                let list = pods.list(&params).await;
                list.map_err(|error| list_fault("pods", &params, &error))
            };
            let claims = async {
                let list = claims.list(&params).await;
                list.map_err(|error| list_fault("volume claims", &params, &error))
            };
            let kinds = [
                Kind::ServiceAccount,
                Kind::Service,
                Kind::ConfigMap,
                Kind::PodDisruptionBudget,
                Kind::StatefulSet,
            ];
            let lists =
                futures::future::join_all(kinds.map(|kind| self.list(&namespace, kind, &params)));
            let (lists, pods, claims) = futures::join!(lists, pods, claims);
            let is_held =
                cluster.finalizers().iter().any(|finalizer| finalizer == CLUSTER_FINALIZER);
            let mut live = KubernetesLive {
                is_held,
                made: cluster.metadata.creation_timestamp.clone(),
                unmade: self.unmade(cluster),
                unwatched: self.unwatched.of(&namespace),
                default_image: self.default_image.clone(),
                namespace,
                ..KubernetesLive::default()
            };
            for (kind, list) in kinds.into_iter().zip(lists) {
                live.objects.extend(live_or_unread(list, part_of(kind), &mut live.unread));
            }
            live.pods =
                live_or_unread(pods.map(|list| list.items), Part::Brokers, &mut live.unread);
            live.claims =
                live_or_unread(claims.map(|list| list.items), Part::Storage, &mut live.unread);
            self.find_by_name(cluster, &mut live).await;
            let own = live.claims.iter().filter(|claim| is_own(cluster, claim));
            live.own = own.filter_map(|claim| claim.uid()).gather();
            live.believe_own_pods(cluster);
            live.left = self.left(&live.namespace, &live.pods);
            let (identities, starting) =
                futures::join!(self.ask(&live.pods), self.ask_why(&live.pods));
            (live.identities, live.starting) = (identities, starting);
            let cluster_id = live.cluster_id(cluster);
            live.identities.retain(|id, said| said.is_of(*id, cluster_id.as_deref()));
            let (news, fault) = self.news(&live, cluster).await;
            live.news = news;
            live.unread.extend(fault.map(|fault| (Part::Events, fault)));
            Ok(live)
        })
    }

    fn reserve<'a>(&'a self, live: &'a KubernetesLive, broker: i32) -> BoxFuture<'a, MayEnd> {
        Box::pin(async move {
            match live.admin_of(broker) {
                Some((host, port)) => self.brokers.reserve(host, port, broker).await,
                None => MayEnd::Unknown(NO_ADDRESS.to_owned()),
            }
        })
    }

    fn give_back<'a>(&'a self, live: &'a KubernetesLive, broker: i32) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some((host, port)) = live.admin_of(broker) {
                self.brokers.give_back(host, port).await;
            }
        })
    }

    fn may_end<'a>(&'a self, live: &'a KubernetesLive, broker: i32) -> BoxFuture<'a, MayEnd> {
        Box::pin(async move {
            match live.admin_of(broker) {
                Some((host, port)) => self.brokers.may_end(host, port, broker).await,
                None => MayEnd::Unknown(NO_ADDRESS.to_owned()),
            }
        })
    }

    fn act<'a>(
        &'a self,
        desired: &'a Blueprint,
        live: &'a KubernetesLive,
        step: &'a Step,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            // What was written all the same is seen by the next pass.
            let done = tokio::time::timeout(STEP_WITHIN, self.carry_out(desired, live, step)).await;
            done.unwrap_or_else(|_| Err(api_fault(&step.to_string(), &no_answer(STEP_WITHIN))))
        })
    }
}

impl Kubernetes {
    async fn carry_out(
        &self,
        desired: &Blueprint,
        live: &KubernetesLive,
        step: &Step,
    ) -> Result<(), Fault> {
        let objects = objects::build(desired);
        match step {
            Step::ApplyAccess { .. } | Step::ApplyBudget { .. } => {
                let part = step.part();
                let differs = |(key, object): &(&ObjectKey, &Value)| {
                    part_of(key.kind) == part && live.differs(key, object)
                };
                // One service that cannot be made (its node port is taken) does not keep the
                // others away.
                let differing = objects.access.iter().filter(differs);
                let applied = differing.map(|(key, object)| self.apply(desired, live, key, object));
                futures::future::join_all(applied).await.into_iter().collect()
            }
            Step::Prune(key) => self.prune(desired, key).await,
            Step::MakeClaim { broker, volume } => self.make_claim(desired, *broker, volume).await,
            Step::MarkClaim { broker, volume } => {
                let name = claim_name(&broker_name(&desired.name, *broker), volume);
                match live.claim(&name) {
                    Some(claim) => {
                        mark(&Api::namespaced(self.client.clone(), &desired.namespace), claim).await
                    }
                    None => Ok(()),
                }
            }
            Step::GrowVolume { broker, volume, to, .. } => {
                self.grow(desired, *broker, volume, *to).await
            }
            // The status records it.
            Step::AcceptLoss { .. } | Step::CorrectClusterId { .. } => Ok(()),
            Step::RestartBroker { broker, ended } => self.end(desired, live, *broker, ended).await,
            Step::RemoveBroker { broker, .. } => self.remove(desired, live, *broker).await,
            Step::RemakeClaim { broker, volume, .. } | Step::DropClaim { broker, volume } => {
                self.remake(desired, live, *broker, volume).await
            }
            Step::LetGo { .. } => {
                self.let_go(&desired.namespace, &desired.name, &desired.uid).await
            }
            Step::HoldObject { held } => {
                self.hold(&desired.namespace, &desired.name, &desired.uid, *held).await
            }
            Step::ApplyBroker { broker, .. } => {
                // The configuration first: the set's template names its revision.
                for (key, object) in objects.brokers.get(broker).into_iter().flatten() {
                    if live.differs(key, object) {
                        self.apply(desired, live, key, object).await?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl Live for KubernetesLive {
    fn facts(&self, cluster: &KafkaCluster) -> Facts {
        let name = cluster.name_any();
        let brokers = broker_ids(cluster).map(|id| {
            let broker = broker_name(&name, id);
            let host = format!("{broker}.{}.svc", self.namespace);
            let advertised = cluster.spec.listeners.iter().map(|listener| {
                let address = match listener.type_ {
                    ListenerType::Internal => port_of(listener.port)
                        .map(|port| Address { host: Host::Named(host.clone()), port }),
                    ListenerType::Nodeport => self.external_address(&broker, id, listener),
                };
                // A service that is gone, or has yet to change, leaves the broker with what it has.
                let address = address.or_else(|| self.last_address(&broker, listener));
                (listener.name.clone(), address)
            });
            let claim_templates = self
                .set_of(&broker)
                .and_then(|set| set.pointer("/spec/volumeClaimTemplates"))
                .cloned();
            let facts = BrokerFacts {
                volumes: self
                    .volumes_of(cluster, id)
                    .into_iter()
                    .map(|name| VolumePlace { log_dir: objects::log_dir(&name), name })
                    .collect(),
                bind: BTreeMap::new(),
                advertised: advertised.gather(),
                quorum: (host, CONTROLLER_PORT),
                quorum_bind: (String::new(), CONTROLLER_PORT),
                admin_bind: None,
                directory_ids: expected_directories(cluster, id),
                given_up: given_up_directories(cluster, id),
                begins_anew: lost_metadata_log(cluster, id),
                claim_templates,
            };
            (id, facts)
        });
        let cluster_id = self.cluster_id(cluster);
        Facts {
            brokers: brokers.gather(),
            cluster_id,
            image: image_of(cluster, self.ready_image().as_deref(), &self.default_image),
        }
    }

    fn observe(&self, desired: &Blueprint) -> Observed {
        let objects = objects::build(desired);
        let (mut access, mut budget) = (Compared::default(), Compared::default());
        let budgets = objects.access.keys().filter(|key| part_of(key.kind) == Part::Budget);
        let mut budgets = budgets.filter_map(|key| self.objects.get(key));
        let holds_evictions = budgets.any(objects::holds_evictions);
        for (key, object) in &objects.access {
            self.compare(
                key,
                object,
                if part_of(key.kind) == Part::Budget { &mut budget } else { &mut access },
            );
        }
        let is_stale = |(key, live): &(&ObjectKey, &Value)| {
            let is_ours = owner_uids(live).any(|uid| uid == desired.uid);
            is_ours
                && match key.kind {
                    Kind::Service => !objects.access.contains_key(key),
                    Kind::ConfigMap => self.is_abandoned(key, live, &objects),
                    _ => false,
                }
        };
        let stale = self.objects.iter().filter(is_stale).map(|(key, _)| key.clone()).collect();
        let is_stray = |key: &&ObjectKey| {
            key.kind == Kind::StatefulSet
                && !desired.brokers.values().any(|broker| broker.name == key.name)
        };
        let strays = self.objects.keys().filter(is_stray).cloned().collect();
        let is_stray = |claim: &&PersistentVolumeClaim| {
            let mut brokers = desired.brokers.values();
            claim.metadata.deletion_timestamp.is_none()
                && !brokers.any(|it| volume_of_claim(&it.name, &claim.name_any()).is_some())
        };
        let stray_claims = self.claims.iter().filter(is_stray).map(|claim| claim.name_any());
        let selector = objects::client_selector(desired);
        let foreign = self.foreign.iter().filter(|pod| is_selected(pod, &selector));
        let foreign = foreign.map(|pod| pod.name_any()).collect();
        let brokers = desired
            .brokers
            .keys()
            .map(|&id| (id, self.observe_broker(desired, &objects, id)))
            .collect();
        let bootstrap = desired.listeners.iter().filter_map(|listener| {
            Some((listener.name.clone(), self.bootstrap(desired, listener)?))
        });
        let bootstrap = bootstrap.collect();
        Observed {
            access,
            budget,
            holds_evictions,
            stale,
            strays,
            stray_claims: stray_claims.collect(),
            foreign,
            brokers,
            bootstrap,
            cluster_id: None,
            is_held: Some(self.is_held),
            unmade: self.unmade.clone(),
            unread: self.unread.clone(),
            unwatched: self.unwatched.clone(),
        }
    }
}

impl KubernetesLive {
    /// Forgets pods that another cluster, a person or a Job made with our labels: a pod is believed
    /// when our set controls it.
    fn believe_own_pods(&mut self, cluster: &KafkaCluster) {
        let uid = cluster.uid().unwrap_or_default();
        let is_ours = |set: &Value| {
            owner_uids(set).next().is_none() || owner_uids(set).any(|owner| owner == uid)
        };
        let sets =
            self.objects.iter().filter(|(key, set)| key.kind == Kind::StatefulSet && is_ours(set));
        let sets: BTreeMap<String, String> = sets
            .filter_map(|(key, set)| {
                Some((set.pointer("/metadata/uid")?.as_str()?.to_owned(), key.name.clone()))
            })
            .collect();
        // Whose the sets are is not known while they cannot be read; Ready is Unknown then.
        let is_unread = self.unread.contains_key(&Part::Definitions);
        let is_believed = |pod: &Pod| {
            let controller =
                pod.owner_references().iter().find(|owner| owner.controller == Some(true));
            controller.is_some_and(|owner| {
                sets.get(&owner.uid) == Some(&owner.name)
                    || (is_unread && owner.kind == "StatefulSet")
            })
        };
        (self.pods, self.foreign) =
            std::mem::take(&mut self.pods).into_iter().partition(is_believed);
        // Kubernetes gives a pod of a broker's name to its set, or ends it.
        let brokers = broker_ids(cluster).map(|id| broker_name(&cluster.name_any(), id));
        let own_names: BTreeSet<String> = brokers.map(|broker| format!("{broker}-0")).collect();
        self.foreign.retain(|pod| !is_unread && !own_names.contains(&pod.name_any()));
    }

    /// The id that the cluster has, or that its volumes say, or, where there is nothing yet, the
    /// one that it is to have. `None` while there are volumes of which nobody says whose they are:
    /// the first broker tells.
    ///
    /// What status says is believed unless all that can be compared says another one: the brokers,
    /// or, where none answers, their claims together with their definitions.
    fn cluster_id(&self, cluster: &KafkaCluster) -> Option<String> {
        let names: Vec<String> =
            broker_ids(cluster).map(|id| broker_name(&cluster.name_any(), id)).collect();
        let recorded = cluster.status.as_ref().and_then(|status| status.cluster_id.clone());
        if let Some(recorded) = recorded {
            let told = self.told_ids(cluster);
            let claims = self.claims.iter().filter(|claim| {
                names.iter().any(|name| volume_of_claim(name, &claim.name_any()).is_some())
            });
            let claims = claims.filter_map(|claim| claim.annotations().get(CLUSTER_ID_ANNOTATION));
            let mut claims: BTreeSet<String> = claims.cloned().collect();
            let defined = |name: &String| self.started_with(name, "cluster.id");
            let is_doubtful =
                !claims.is_empty() && !names.iter().filter_map(defined).any(|id| id == recorded);
            let other = match (told.first(), claims.len()) {
                (Some(_), _) if told.contains(&recorded) => None,
                (Some(told), _) => Some(told.clone()),
                (None, 1) if is_doubtful => claims.pop_first(),
                _ => None,
            };
            return Some(other.unwrap_or(recorded));
        }
        let is_kept = |claim: &&PersistentVolumeClaim| {
            claim.metadata.deletion_timestamp.is_none()
                && names.iter().any(|name| volume_of_claim(name, &claim.name_any()).is_some())
        };
        let mut kept = self.claims.iter().filter(is_kept).peekable();
        if kept.peek().is_none() {
            return cluster_id_of(&cluster.uid()?)
                .filter(|_| !self.unread.contains_key(&Part::Storage));
        }
        kept.find_map(|claim| claim.annotations().get(CLUSTER_ID_ANNOTATION).cloned())
    }

    /// What brokers say that the cluster's id is, if they have a directory that is recorded of them:
    /// at an address there may be another cluster's broker by now.
    fn told_ids(&self, cluster: &KafkaCluster) -> BTreeSet<String> {
        let is_known = |(id, said): &(&i32, &Identity)| {
            let known = expected_directories(cluster, **id);
            said.directories.values().any(|directory| known.contains(directory))
        };
        let said = self.identities.iter().filter(is_known);
        said.map(|(_, said)| said.cluster_id.clone()).filter(|id| !id.is_empty()).collect()
    }

    /// What a broker's definition sets a key of server.properties to.
    fn started_with(&self, broker: &str, key: &str) -> Option<&str> {
        let name = self.config_map_of(broker)?.to_owned();
        let map = self.objects.get(&ObjectKey { kind: Kind::ConfigMap, name })?;
        let properties = map.pointer("/data/server.properties")?.as_str()?;
        properties.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }

    /// The volumes that a broker should have: also those that are there and that its spec and
    /// status do not name, because records may be on them.
    fn volumes_of(&self, cluster: &KafkaCluster, id: i32) -> Vec<String> {
        let broker = broker_name(&cluster.name_any(), id);
        // What was made for a broker that runs since before was never used.
        let pod = self.pod(id).filter(|pod| is_ready(pod));
        let may_be_used = |claim: &&PersistentVolumeClaim| {
            is_bound(claim) && pod.is_none_or(|pod| came_after(pod, claim))
        };
        let kept = self.claims.iter().filter(may_be_used);
        let kept = kept.filter_map(|claim| volume_of_claim(&broker, &claim.name_any()));
        // While it is not known which claims there are, the broker keeps those that it has.
        let set = self.set_of(&broker).filter(|_| self.unread.contains_key(&Part::Storage));
        let defined = set
            .and_then(|set| set.pointer("/spec/template/spec/volumes")?.as_array())
            .into_iter()
            .flatten()
            .filter_map(|volume| volume.pointer("/persistentVolumeClaim/claimName")?.as_str())
            .filter_map(|claim| volume_of_claim(&broker, claim));
        volume_names(cluster, id, kept.chain(defined))
    }

    /// Whether a claim is an earlier object's: it names another cluster id than this object's own, as
    /// also one does that a backup restored since; or it is older.
    fn is_kept(&self, desired: &Blueprint, claim: &PersistentVolumeClaim) -> bool {
        let own = cluster_id_of(&desired.uid);
        let is_other = |id: &String| own.as_ref() != Some(id);
        claim.annotations().get(CLUSTER_ID_ANNOTATION).is_some_and(is_other)
            || self.made.is_some() && claim.metadata.creation_timestamp < self.made
    }

    /// The volumes whose claims a broker's own set names, or makes.
    fn defined_volumes(&self, desired: &Blueprint, broker: &str) -> BTreeSet<String> {
        let is_ours = |set: &&Value| {
            owner_uids(set).next().is_none() || owner_uids(set).any(|uid| uid == desired.uid)
        };
        let Some(set) = self.set_of(broker).filter(is_ours) else { return BTreeSet::new() };
        let all = |at: &str| set.pointer(at).and_then(Value::as_array).into_iter().flatten();
        let named = all("/spec/template/spec/volumes")
            .filter_map(|volume| volume.pointer("/persistentVolumeClaim/claimName")?.as_str())
            .filter_map(|claim| volume_of_claim(broker, claim));
        let made = all("/spec/volumeClaimTemplates")
            .filter_map(|template| template.pointer("/metadata/name")?.as_str())
            .map(ToOwned::to_owned);
        named.chain(made).collect()
    }

    fn claim(&self, name: &str) -> Option<&PersistentVolumeClaim> {
        self.claims.iter().find(|claim| claim.name_any() == name)
    }

    fn set_of(&self, broker: &str) -> Option<&Value> {
        self.objects.get(&ObjectKey { kind: Kind::StatefulSet, name: broker.to_owned() })
    }

    /// The name of the ConfigMap that a broker's definition names.
    fn config_map_of(&self, broker: &str) -> Option<&str> {
        let volumes = self.set_of(broker)?.pointer("/spec/template/spec/volumes")?.as_array()?;
        volumes.iter().find_map(|volume| volume.pointer("/configMap/name")?.as_str())
    }

    /// Whether a ConfigMap is the revision of a broker's configuration that neither its definition
    /// nor its pod has any more. While one of these is not known, or a pod may just be made from an
    /// older definition, it stays.
    fn is_abandoned(&self, key: &ObjectKey, map: &Value, objects: &objects::Objects) -> bool {
        let id = map
            .pointer("/metadata/labels")
            .and_then(|labels| labels.get(BROKER_LABEL)?.as_str()?.parse::<i32>().ok());
        let Some(id) = id.filter(|id| objects.brokers.contains_key(id)) else { return false };
        let set = objects.brokers[&id]
            .iter()
            .find(|(key, _)| key.kind == Kind::StatefulSet)
            .and_then(|(key, _)| self.set_of(&key.name));
        let (Some(set), Some(pod)) = (set, self.pod(id)) else { return false };
        let mounted = pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten())
            .filter_map(|volume| volume.config_map.as_ref());
        is_seen(set)
            && !self.unread.contains_key(&Part::Definitions)
            && !objects.brokers[&id].iter().any(|(desired, _)| desired == key)
            && self.config_map_of(set["metadata"]["name"].as_str().unwrap_or_default())
                != Some(&key.name)
            && !mounted.map(|map| &map.name).any(|name| *name == key.name)
    }

    /// The image of the first broker that is ready.
    fn ready_image(&self) -> Option<String> {
        self.pods.iter().filter(|pod| is_ready(pod) && !has_other_image(pod)).find_map(image_in)
    }

    fn node_port(&self, service: String, listener: &Listener) -> Option<u16> {
        let service = self.objects.get(&ObjectKey { kind: Kind::Service, name: service })?;
        let ports = service.pointer("/spec/ports")?.as_array()?;
        let port =
            ports.iter().find(|port| port["name"] == *listener.name)?["nodePort"].as_i64()?;
        u16::try_from(port).ok().filter(|port| *port > 0)
    }

    fn external_address(&self, broker: &str, id: i32, listener: &Listener) -> Option<Address> {
        let asked = listener.brokers.iter().find(|address| address.broker == id);
        let node_port = self.node_port(external_broker_name(broker, &listener.name), listener)?;
        let wanted = asked.and_then(|address| address.node_port);
        if wanted.is_some_and(|wanted| wanted != i32::from(node_port)) {
            // The service has yet to get the port that the spec asks for.
            return None;
        }
        let host = asked
            .and_then(|address| address.advertised_host.clone())
            .map_or(Host::Node, Host::Named);
        let port = asked
            .and_then(|address| address.advertised_port)
            .and_then(port_of)
            .unwrap_or(node_port);
        Some(Address { host, port })
    }

    /// The address that a broker's definition has for `listener`.
    fn last_address(&self, broker: &str, listener: &Listener) -> Option<Address> {
        let command = self
            .set_of(broker)
            .and_then(|set| set.pointer("/spec/template/spec/containers/0/command")?.as_array());
        let map = self
            .config_map_of(broker)
            .map(|name| ObjectKey { kind: Kind::ConfigMap, name: name.to_owned() });
        let properties =
            map.and_then(|key| self.objects.get(&key)?.pointer("/data/server.properties"));
        command
            .into_iter()
            .flatten()
            .chain(properties)
            .find_map(|text| advertised_in(text.as_str()?, listener))
    }

    /// Where clients of `listener` connect first.
    fn bootstrap(&self, desired: &Blueprint, listener: &Listener) -> Option<String> {
        if listener.type_ == ListenerType::Internal {
            return Some(format!(
                "{}.{}.svc:{}",
                bootstrap_name(&desired.name),
                desired.namespace,
                listener.port
            ));
        }
        let addresses = desired.brokers.values().filter_map(|broker| {
            let address = self.external_address(&broker.name, broker.id, listener)?;
            match address.host {
                // Something in front of the nodes knows the way to this broker; it may not know the
                // bootstrap port.
                Host::Named(_) => Some(address.to_string()),
                Host::Node => {
                    let host = Host::Named(self.pod(broker.id)?.status.as_ref()?.host_ip.clone()?);
                    let port = self.node_port(
                        external_bootstrap_name(&desired.name, &listener.name),
                        listener,
                    )?;
                    Some(Address { host, port }.to_string())
                }
            }
        });
        Some(addresses.collect::<Vec<_>>().join(",")).filter(|servers| !servers.is_empty())
    }

    /// Where a broker is asked.
    fn admin_of(&self, broker: i32) -> Option<(&str, u16)> {
        let address = self.pod(broker)?.status.as_ref()?.pod_ip.as_deref();
        address.zip(port_of(ADMIN_PORT))
    }

    fn pod(&self, broker: i32) -> Option<&Pod> {
        let id = broker.to_string();
        self.pods.iter().find(|pod| pod.labels().get(BROKER_LABEL) == Some(&id))
    }

    fn compare(&self, key: &ObjectKey, object: &Value, compared: &mut Compared) {
        match self.objects.get(key) {
            None => compared.missing.push(key.to_string()),
            Some(live) => {
                let differ = |path: &String| Difference {
                    what: format!("{key}: {path}"),
                    is_of_spec: path.starts_with("spec."),
                    is_fixed: key.kind == Kind::StatefulSet && is_fixed(path),
                };
                compared.differs.extend(differences(object, live).iter().map(differ));
            }
        }
    }

    /// Whether `object` is not there as it should be.
    fn differs(&self, key: &ObjectKey, object: &Value) -> bool {
        self.objects.get(key).is_none_or(|live| !differences(object, live).is_empty())
    }

    fn observe_broker(
        &self,
        desired: &Blueprint,
        objects: &objects::Objects,
        id: i32,
    ) -> ObservedBroker {
        let mut definition = Compared::default();
        for (key, object) in objects.brokers.get(&id).into_iter().flatten() {
            self.compare(key, object, &mut definition);
        }
        let set = self.set_of(&broker_name(&desired.name, id));
        let is_ours = set.is_some_and(|set| belongs(set, desired));
        let fixed = definition.differs.iter().filter(|it| is_ours && it.is_fixed);
        let fixed: Vec<String> = fixed.map(|it| it.what.clone()).collect();
        let pod = self.pod(id);
        let broker = desired.brokers.get(&id);
        let name = broker_name(&desired.name, id);
        let mounts = pod.map(|pod| mounts_of(pod, &name)).unwrap_or_default();
        let of_broker = |claim: &PersistentVolumeClaim| {
            let volume = volume_of_claim(&name, &claim.name_any())?;
            let is_mounted =
                mounts.contains(&volume) && pod.is_some_and(|pod| came_after(pod, claim));
            let is_kept = self.is_kept(desired, claim);
            let is_own = claim.uid().is_some_and(|uid| self.own.contains(&uid));
            let is_unmarked = is_own && !claim.annotations().contains_key(MADE_ANNOTATION);
            let seen = claim_volume(claim, &self.news)?;
            Some((volume, Volume { is_mounted, is_kept, is_own, is_unmarked, ..seen }))
        };
        let is_wanted = |claim: &&PersistentVolumeClaim| {
            let volume = volume_of_claim(&name, &claim.name_any());
            let mut wanted = broker.iter().flat_map(|broker| &broker.volumes);
            wanted.any(|wanted| Some(&wanted.name) == volume.as_ref())
        };
        let is_of_newest = definition.is_as_desired() && is_of_newest(set, pod);
        let has = |annotation: &str, wanted: Option<&str>| {
            let told = pod.and_then(|pod| pod.annotations().get(annotation)).map(String::as_str);
            // Admission may take annotations away.
            wanted.is_some() && (told == wanted || told.is_none() && is_of_newest)
        };
        let wanted = self.claims.iter().filter(is_wanted);
        let run = with_own_words(run_of(set, pod, wanted, &self.news), self.starting.get(&id));
        // The image is a part of it. Who changes it again and again does not keep the broker from
        // its work, as long as it serves with that, or may yet.
        let other = pod.filter(|pod| has_other_image(pod));
        let is_image_left = other.is_some_and(|pod| self.left.contains(&pod.name_any()))
            && !matches!(run, Run::Failing { .. });
        let is_current = has(ASKED_ANNOTATION, broker.map(|broker| broker.asked.as_str()))
            && (other.is_none() || is_image_left);
        let is_newest = is_current
            && has(CONFIG_ANNOTATION, broker.map(|broker| broker.config.revision.as_str()))
            && has(IMAGE_ANNOTATION, broker.map(|_| desired.image.as_str()));
        // A pod that is made now is made from the newest definition.
        let to_end = pod
            .filter(|pod| set.is_some_and(is_seen) && pod.metadata.deletion_timestamp.is_none())
            .and_then(Pod::uid);
        ObservedBroker {
            definition,
            fixed,
            run,
            is_current,
            is_newest,
            to_end,
            volumes: self.claims.iter().filter_map(of_broker).collect(),
            mounts,
            defined: self.defined_volumes(desired, &name),
            is_removed: set.is_some_and(|set| set.pointer("/metadata/deletionTimestamp").is_some()),
            identity: self.identities.get(&id).cloned(),
            image: pod.and_then(image_in),
            is_image_left,
            held_back: None,
        }
    }
}

/// Deletes the object with this uid alone; or `only_asks` whether that is allowed: the API server
/// asks admission and carries out nothing.
fn only(uid: Option<String>, only_asks: bool) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions { uid, resource_version: None }),
        dry_run: only_asks,
        ..DeleteParams::background()
    }
}

/// What a deletion of `what` ended with. An object that is gone, or is another one, is deleted.
fn ends(what: &str, result: Result<(), kube::Error>) -> Result<(), Fault> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        result => result.map_err(|error| api_fault(&format!("delete {what}"), &error)),
    }
}

/// The volumes of `broker` that `pod` has: all that it names, once it was given to a node, for a pod
/// waits for a claim that is not there.
fn mounts_of(pod: &Pod, broker: &str) -> BTreeSet<String> {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let is_scheduled = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())
        || conditions
            .filter(|condition| ["PodScheduled", "Ready"].contains(&condition.type_.as_str()))
            .any(|condition| condition.status == "True");
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter(|_| is_scheduled)
        .filter_map(|volume| volume.persistent_volume_claim.as_ref())
        .filter_map(|claim| volume_of_claim(broker, &claim.claim_name))
        .collect()
}

/// Whether `pod` was given to a node when there was this `claim`, and so has the volume behind it. A
/// pod waits for a claim that is not there.
fn came_after(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut scheduled = conditions
        .filter(|condition| condition.type_ == "PodScheduled" && condition.status == "True")
        .filter_map(|condition| condition.last_transition_time.as_ref());
    let begun = scheduled.next().max(pod.metadata.creation_timestamp.as_ref());
    claim.metadata.creation_timestamp.as_ref() <= begun
}

/// Whether Kubernetes lets nobody change what is at `path` of a `StatefulSet`.
fn is_fixed(path: &str) -> bool {
    let name = path.strip_prefix("spec.").and_then(|field| field.split(['.', '[']).next());
    ["serviceName", "selector", "podManagementPolicy", "volumeClaimTemplates"]
        .map(Some)
        .contains(&name)
}

/// Deletes an object that nobody can change into what is desired, as it was seen: one that somebody
/// has changed since is looked at again.
async fn delete_as_seen(
    api: &Api<DynamicObject>,
    key: &ObjectKey,
    seen: &Value,
) -> Result<(), Fault> {
    let text = |at: &str| seen.pointer(at).and_then(Value::as_str).map(ToOwned::to_owned);
    let preconditions = Some(Preconditions {
        uid: text("/metadata/uid"),
        resource_version: text("/metadata/resourceVersion"),
    });
    match api.delete(&key.name, &DeleteParams { preconditions, ..DeleteParams::default() }).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        deleted => deleted.map(drop).map_err(|error| {
            api_fault(&format!("delete {key}, which nobody can change as wanted"), &error)
        }),
    }
}

/// Whether Kubernetes lets anybody make of `live` what is `desired`. A Service with an address of its
/// own never becomes one without, nor the other way round where it has a node port; what an immutable
/// ConfigMap has under our keys stays. Of sets the plan knows it.
fn can_become(kind: Kind, live: &Value, desired: &Value) -> bool {
    let is_headless = |service: &Value| service["spec"]["clusterIP"] == "None";
    match kind {
        Kind::Service => match is_headless(desired) {
            true => is_headless(live),
            false => !is_headless(live) || desired["spec"]["type"] == "ClusterIP",
        },
        Kind::ConfigMap => {
            let mut data = desired["data"].as_object().into_iter().flatten();
            live["immutable"] != true || data.all(|(key, value)| live["data"][key] == *value)
        }
        _ => true,
    }
}

/// Whether the set's controller has seen its newest definition.
fn is_seen(set: &Value) -> bool {
    set.pointer("/status/observedGeneration")
        .is_some_and(|seen| Some(seen) == set.pointer("/metadata/generation"))
}

/// Whether the set's controller made the pod from the set's newest definition, as it says itself.
fn is_of_newest(set: Option<&Value>, pod: Option<&Pod>) -> bool {
    let revision = set.and_then(|set| set.pointer("/status/updateRevision")?.as_str());
    let made_from = pod.and_then(|pod| pod.labels().get("controller-revision-hash"));
    set.is_some_and(is_seen) && revision.is_some() && revision == made_from.map(String::as_str)
}

/// Whether a service with this selector may send clients to a pod.
fn is_selected(pod: &Pod, selector: &Value) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let ends = pod.metadata.deletion_timestamp.is_some();
    let mut wanted = selector.as_object().into_iter().flatten();
    !ends
        && !matches!(phase, Some("Succeeded" | "Failed"))
        && wanted.all(|(key, value)| pod.labels().get(key).map(String::as_str) == value.as_str())
}

/// Whether a claim names a snapshot or another claim whose content its volume is to have.
fn is_restored(claim: &PersistentVolumeClaim) -> bool {
    let spec = claim.spec.as_ref();
    spec.is_some_and(|spec| spec.data_source.is_some() || spec.data_source_ref.is_some())
}

/// Writes on a claim that the operator made which one it is: no copy of it is that.
async fn mark(
    claims: &Api<PersistentVolumeClaim>,
    claim: &PersistentVolumeClaim,
) -> Result<(), Fault> {
    let (name, uid) = (claim.name_any(), claim.uid());
    let patch = json!({"metadata": {"uid": uid, "annotations": {MADE_ANNOTATION: uid}}});
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    match claims.patch_metadata(&name, &params, &Patch::Merge(&patch)).await {
        // It is gone, or is another one since.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        marked => marked
            .map(drop)
            .map_err(|error| api_fault(&format!("mark volume claim {name}"), &error)),
    }
}

/// Whether a claim is a copy of one that the operator made, as a backup restores it: it has its
/// annotations, and may have records that are nowhere else.
fn is_copy(claim: &PersistentVolumeClaim) -> bool {
    let made = claim.annotations().get(MADE_ANNOTATION);
    made.is_some() && made != claim.metadata.uid.as_ref()
}

/// Whether a claim may be deleted with `cluster`: the operator made it, as it wrote on it then, for
/// this cluster, which knows it by the uid that it recorded, or by its own id. A claim that
/// somebody else made, or restored, is recorded too, once a broker uses it, and its volume may have
/// come with records.
fn is_own(cluster: &KafkaCluster, claim: &PersistentVolumeClaim) -> bool {
    let written = |annotation: &str| claim.annotations().get(annotation);
    if written(ASKED_CLASS_ANNOTATION).is_none() || is_restored(claim) || is_copy(claim) {
        return false;
    }
    // One that was never marked was made for this very object.
    let made_for = cluster.uid().and_then(|uid| cluster_id_of(&uid));
    if written(MADE_ANNOTATION).is_none() {
        return made_for.is_some() && written(CLUSTER_ID_ANNOTATION) == made_for.as_ref();
    }
    let status = cluster.status.as_ref();
    let own_id = status.and_then(|status| status.cluster_id.clone()).or(made_for);
    let nodes = status.into_iter().flat_map(|status| &status.nodes);
    let mut recorded = nodes.flat_map(|node| &node.volumes);
    recorded.any(|volume| volume.claim == claim.name_any() && volume.claim_uid == claim.uid())
        || written(CLUSTER_ID_ANNOTATION) == own_id.as_ref()
}

/// Whether there is a volume behind a claim, or may soon be.
fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let has_volume = claim
        .spec
        .as_ref()
        .is_some_and(|spec| spec.volume_name.as_ref().is_some_and(|name| !name.is_empty()));
    has_volume
        || claim
            .status
            .as_ref()
            .is_some_and(|status| status.phase.as_deref().is_some_and(|phase| phase != "Pending"))
}

fn claim_volume(claim: &PersistentVolumeClaim, news: &News) -> Option<Volume> {
    let spec = claim.spec.as_ref()?;
    let requested =
        spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get("storage"));
    let asked = |annotation: &str| claim.annotations().get(annotation).filter(|_| !is_copy(claim));
    let capacity =
        claim.status.as_ref().and_then(|status| status.capacity.as_ref()?.get("storage"));
    Some(Volume {
        claim: claim.name_any(),
        uid: claim.uid()?,
        class: spec.storage_class_name.clone(),
        asked: asked(ASKED_CLASS_ANNOTATION).map(|class| Asked {
            class: Some(class.clone()).filter(|class| !class.is_empty()),
            size: asked(ASKED_SIZE_ANNOTATION).and_then(|size| bytes_of(size)),
        }),
        is_bound: is_bound(claim),
        is_ending: claim.metadata.deletion_timestamp.is_some(),
        is_gone: claim
            .status
            .as_ref()
            .is_some_and(|status| status.phase.as_deref() == Some("Lost")),
        is_restored: is_restored(claim),
        waits_for_pod: waits_for_pod(claim, news),
        is_mounted: false,
        is_kept: false,
        is_own: false,
        is_unmarked: false,
        fault: unbound(claim, news),
        not_grown: not_grown(claim),
        requested: requested.and_then(|requested| bytes_of(&requested.0)),
        capacity: capacity.and_then(|capacity| bytes_of(&capacity.0)).unwrap_or(0),
    })
}

fn port_of(port: i32) -> Option<u16> {
    u16::try_from(port).ok()
}

fn owner_uids(object: &Value) -> impl Iterator<Item = &str> {
    let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    owners
        .into_iter()
        .flatten()
        .filter(|owner| owner["controller"] == true)
        .filter_map(|owner| owner["uid"].as_str())
}

/// Whether the cluster may write to a live object: it is its controller, or the object has its
/// label and no controller (a restored backup has none).
fn belongs(object: &Value, desired: &Blueprint) -> bool {
    let mut owners = owner_uids(object).peekable();
    if owners.peek().is_some() {
        return owners.any(|uid| uid == desired.uid);
    }
    object.pointer("/metadata/labels").and_then(|labels| labels.get(CLUSTER_LABEL)?.as_str())
        == Some(&desired.name)
}

/// The part that objects of `kind` belong to.
fn part_of(kind: Kind) -> Part {
    match kind {
        Kind::ServiceAccount | Kind::Service => Part::Access,
        Kind::PodDisruptionBudget => Part::Budget,
        Kind::ConfigMap | Kind::StatefulSet => Part::Definitions,
    }
}

/// How long one step may take, which is a few calls.
const STEP_WITHIN: Duration = Duration::from_secs(30);

/// What was listed; nothing, and the reason in `unread`, when it could not be.
fn live_or_unread<T>(
    list: Result<Vec<T>, Fault>,
    part: Part,
    unread: &mut BTreeMap<Part, Fault>,
) -> Vec<T> {
    list.unwrap_or_else(|fault| {
        unread.entry(part).or_insert(fault);
        Vec::new()
    })
}

fn resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
        Kind::Service => ApiResource::erase::<Service>(&()),
        Kind::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
        Kind::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
        Kind::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
    }
}

/// What a list of `what` by a label ended with.
fn list_fault(what: &str, params: &ListParams, error: &kube::Error) -> Fault {
    let label = params.label_selector.as_deref().unwrap_or_default();
    api_fault(&format!("list {what} with the label {label}"), error)
}

/// What an API call that was to do `what` ended with.
pub(crate) fn api_fault(what: &str, error: &kube::Error) -> Fault {
    let (reason, said) = match error {
        kube::Error::Api(status) if !status.reason.is_empty() => {
            (status.reason.clone(), status.message.clone())
        }
        other => ("KubernetesError".to_owned(), self::said(other)),
    };
    Fault { reason, message: format!("{what}: {said}") }
}

/// What went wrong, down to its cause ("Connection refused").
pub(crate) fn said(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error
        && !status.message.is_empty()
    {
        return status.message.clone();
    }
    match error {
        // Without the names of the library's types.
        kube::Error::Service(error) => with_causes(&**error),
        kube::Error::HyperError(error) => with_causes(error),
        error => with_causes(error),
    }
}

/// [`said`] of the API call that `error` began with.
pub(crate) fn words_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut at = error;
    loop {
        match (at.downcast_ref::<kube::Error>(), at.source()) {
            (Some(call), _) => return said(call),
            (None, Some(deeper)) => at = deeper,
            (None, None) => return at.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_whose_volume_cannot_grow_says_why_and_may_ask_for_less() {
        let volume = |condition: &str, status: &str| {
            let claim = json!({
                "metadata": {"name": "data", "uid": "1"},
                "spec": {"volumeName": "pv", "resources": {"requests": {"storage": "3Gi"}}},
                "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "conditions": [
                    {"type": "Resizing", "status": "True"},
                    {"type": condition, "status": status, "message": "no room"},
                ]},
            });
            claim_volume(&serde_json::from_value(claim).unwrap(), &News::default()).unwrap()
        };
        for (condition, status, is_refused) in [
            ("ControllerResizeError", "True", true),
            ("NodeResizeError", "True", true),
            ("NodeResizeError", "False", false),
            ("FileSystemResizePending", "True", false),
        ] {
            let volume = volume(condition, status);
            let fault = Fault { reason: condition.to_owned(), message: "no room".to_owned() };
            assert_eq!(volume.not_grown, is_refused.then_some(fault), "{condition} {status}");
            for (gib, is_asked) in [(1, false), (2, is_refused), (3, false), (4, true)] {
                assert_eq!(volume.is_to_ask_for(gib << 30), is_asked, "{condition} {gib}");
            }
        }
    }

    #[test]
    fn an_immutable_config_map_becomes_what_is_desired_when_our_own_keys_are_the_same() {
        let map = |data: Value| json!({"data": data, "immutable": true});
        let desired = map(json!({"a": "1", "b": "2"}));
        for (live, can) in [
            (map(json!({"a": "1", "b": "2"})), true),
            (map(json!({"a": "1", "b": "2", "another": "3"})), true),
            (map(json!({"a": "1", "b": "3"})), false),
            (map(json!({"a": "1"})), false),
            (map(json!(null)), false),
            (json!({"data": {"a": "3"}}), true),
        ] {
            assert_eq!(can_become(Kind::ConfigMap, &live, &desired), can, "{live}");
        }
    }
}
