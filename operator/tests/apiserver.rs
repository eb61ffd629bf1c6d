//! The operator against a real API server with etcd behind it, and nothing else: no kubelet, no
//! controllers.
//!
//! The binaries `etcd` and `kube-apiserver` are taken from KUBEBUILDER_ASSETS (the convention of
//! envtest) or PATH, and openssl makes a key; helm renders the chart's Roles. `cargo test` leaves
//! it out; `./dev apiserver` runs it, or says NOT RUN where they are missing.
#![allow(clippy::disallowed_methods, reason = "a test stands outside of the seam")]

#[path = "../../sim/tests/platform/admin.rs"]
mod admin;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use admin::ModelAdmin;
use axum::body::{Body, Bytes, HttpBody};
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, PersistentVolumeClaim, Pod, ResourceQuota, Service, ServiceAccount,
};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use letterbox_env::Env;
use letterbox_operator::admin::{AskIdentity, Identity, MayEnd};
use letterbox_operator::api::{
    CLUSTER_FINALIZER, KafkaCluster, KafkaTopic, READY, TOPIC_FINALIZER, crds, find_condition,
};
use letterbox_operator::controller::{self, KubernetesHome, LeaseOptions, Options};
use letterbox_operator::plan::{ClusterState, Step, TopicFacts};
use letterbox_operator::platform::Platform as _;
use letterbox_operator::platform::kubernetes::Kubernetes;
use letterbox_operator::reconcile::{ClusterPass, reconcile_cluster, reconcile_topic};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const TOKEN: &str = "apiserver-test";

fn now() -> Time {
    Time(Timestamp::from_millisecond(Env::real().clock.wall_ms()).unwrap())
}

/// etcd and kube-apiserver; ended when dropped.
struct Server {
    children: Vec<Child>,
    /// How the API server itself is started.
    api: (PathBuf, Vec<String>, PathBuf),
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn binary(name: &str) -> PathBuf {
    let named = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    named
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is neither in KUBEBUILDER_ASSETS nor in PATH"))
}

async fn free_port() -> u16 {
    Env::real().net.bind("127.0.0.1", 0).await.unwrap().local_addr().unwrap().port()
}

fn spawn(program: &Path, arguments: &[String], log: &Path) -> Child {
    let file = Env::real().disk.open(log, letterbox_env::OpenMode::Truncate).unwrap();
    let output = || Stdio::from(file.as_fd().unwrap().try_clone_to_owned().unwrap());
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output())
        .stderr(output())
        .spawn()
        .unwrap()
}

impl Server {
    async fn start() -> Self {
        let (etcd, apiserver, openssl) =
            (binary("etcd"), binary("kube-apiserver"), binary("openssl"));
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let disk = Env::real().disk;
        disk.write_atomically(
            &dir.path().join("tokens"),
            format!("{TOKEN},admin,1,system:masters\n").as_bytes(),
        )
        .unwrap();
        let made =
            Command::new(openssl).args(["genrsa", "-out", &at("key"), "2048"]).output().unwrap();
        assert!(made.status.success());
        let (client, peer, port) = (free_port().await, free_port().await, free_port().await);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let flags = |pairs: &[(&str, String)]| {
            pairs.iter().map(|(key, value)| format!("--{key}={value}")).collect::<Vec<_>>()
        };
        let etcd_flags = flags(&[
            ("data-dir", at("etcd")),
            ("listen-client-urls", url(client)),
            ("advertise-client-urls", url(client)),
            ("listen-peer-urls", url(peer)),
            ("initial-advertise-peer-urls", url(peer)),
            ("initial-cluster", format!("default={}", url(peer))),
            ("unsafe-no-fsync", "true".into()),
        ]);
        let api_flags = flags(&[
            ("etcd-servers", url(client)),
            ("bind-address", "127.0.0.1".into()),
            ("advertise-address", "127.0.0.1".into()),
            ("secure-port", port.to_string()),
            ("cert-dir", at("certs")),
            ("service-account-issuer", "https://kubernetes.default.svc".into()),
            ("service-account-key-file", at("key")),
            ("service-account-signing-key-file", at("key")),
            ("service-cluster-ip-range", "10.0.0.0/24".into()),
            ("token-auth-file", at("tokens")),
            ("authorization-mode", "RBAC".into()),
            ("disable-admission-plugins", "ServiceAccount".into()),
        ]);
        let api = (apiserver, api_flags, dir.path().join("api.log"));
        let children = vec![
            spawn(&etcd, &etcd_flags, &dir.path().join("etcd.log")),
            spawn(&api.0, &api.1, &api.2),
        ];
        let server = Self { children, api, port, _dir: dir };
        let client = server.client();
        server
            .until("the API server is ready", || async { client.list_api_groups().await.is_ok() })
            .await;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        server
            .until("the namespace default is there", || async {
                namespaces.get("default").await.is_ok()
            })
            .await;
        server
    }

    fn config(&self) -> kube::Config {
        let mut config =
            kube::Config::new(format!("https://127.0.0.1:{}", self.port).parse().unwrap());
        config.accept_invalid_certs = true;
        config.auth_info.token = Some(TOKEN.to_owned().into());
        config
    }

    fn client(&self) -> Client {
        Client::try_from(self.config()).unwrap()
    }

    /// Ends the API server; etcd keeps what it knows.
    fn stop_api(&mut self) {
        let api = self.children.last_mut().unwrap();
        api.kill().unwrap();
        api.wait().unwrap();
    }

    fn start_api(&mut self) {
        *self.children.last_mut().unwrap() = spawn(&self.api.0, &self.api.1, &self.api.2);
    }

    /// A client of an operator that is killed after its `writes`-th write: nothing more reaches the
    /// API server.
    fn mortal(&self, writes: i64) -> Client {
        let left = Arc::new(AtomicI64::new(writes));
        let layer = tower::layer::layer_fn(move |inner| Mortal { inner, left: left.clone() });
        kube::client::ClientBuilder::try_from(self.config()).unwrap().with_layer(&layer).build()
    }

    /// A client that may do everything in `namespace`, except for listing one kind of resource.
    async fn without_right_to_list(
        &self,
        client: &Client,
        namespace: &str,
        refused: &str,
    ) -> Client {
        let all = [
            "poddisruptionbudgets",
            "persistentvolumeclaims",
            "services",
            "serviceaccounts",
            "configmaps",
            "statefulsets",
            "pods",
            "events",
        ];
        let others: Vec<&str> = all.into_iter().filter(|resource| *resource != refused).collect();
        let role: Role = serde_json::from_value(json!({"metadata": {"name": "blind"}, "rules": [
            {"apiGroups": ["*"], "resources": others, "verbs": ["*"]},
            {"apiGroups": ["*"], "resources": [refused], "verbs": ["get", "create", "patch"]},
            {"apiGroups": ["letterbox.dev"], "resources": ["*"], "verbs": ["*"]},
        ]}))
        .unwrap();
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": {"name": "blind"}, "subjects": [{"kind": "User", "name": "blind", "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "blind"},
        }))
        .unwrap();
        Api::<Role>::namespaced(client.clone(), namespace)
            .create(&PostParams::default(), &role)
            .await
            .unwrap();
        Api::<RoleBinding>::namespaced(client.clone(), namespace)
            .create(&PostParams::default(), &binding)
            .await
            .unwrap();
        let mut config = self.config();
        config.headers.push((
            http::HeaderName::from_static("impersonate-user"),
            http::HeaderValue::from_static("blind"),
        ));
        let blind = Client::try_from(config).unwrap();
        // The authorizer reads its rules through a watch.
        let maps: Api<StatefulSet> = Api::namespaced(blind.clone(), namespace);
        let pods: Api<Pod> = Api::namespaced(blind.clone(), namespace);
        self.until("the right is given", || async {
            maps.list(&ListParams::default()).await.is_ok()
                || pods.list(&ListParams::default()).await.is_ok()
        })
        .await;
        blind
    }

    /// A client whose requests are written down: method and path. Its watch of KafkaTopics is slow:
    /// each piece comes so much later than the one before.
    fn counted(&self, late: Duration) -> (Client, Requests) {
        let requests = Requests::default();
        let log = requests.clone();
        let layer = tower::layer::layer_fn(move |inner| Counted { inner, log: log.clone(), late });
        (
            kube::client::ClientBuilder::try_from(self.config())
                .unwrap()
                .with_layer(&layer)
                .build(),
            requests,
        )
    }

    async fn until<F: Future<Output = bool>>(&self, what: &str, mut holds: impl FnMut() -> F) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(90);
        while !holds().await {
            assert!(tokio::time::Instant::now() < deadline, "not within 90 s: {what}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[derive(Clone, Default)]
struct Requests(Arc<std::sync::Mutex<Vec<String>>>);

impl Requests {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[derive(Clone)]
struct Counted<S> {
    inner: S,
    log: Requests,
    late: Duration,
}

impl<S, B, R> tower::Service<http::Request<B>> for Counted<S>
where
    S: tower::Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    R: HttpBody<Data = Bytes, Error: Into<tower::BoxError>> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = letterbox_env::BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let uri = request.uri();
        self.log.0.lock().unwrap().push(format!("{} {uri}", request.method()));
        let is_watch = uri.query().is_some_and(|query| query.contains("watch=true"));
        let is_late = is_watch && uri.path().ends_with("/kafkatopics");
        let (late, answer) = (self.late, self.inner.call(request));
        Box::pin(async move {
            Ok(answer.await?.map(Body::new).map(|body| {
                let later = move |piece| async move {
                    tokio::time::sleep(late).await;
                    piece
                };
                match is_late {
                    true => Body::from_stream(body.into_data_stream().then(later)),
                    false => body,
                }
            }))
        })
    }
}

#[derive(Clone)]
struct Mortal<S> {
    inner: S,
    left: Arc<AtomicI64>,
}

impl<S, B> tower::Service<http::Request<B>> for Mortal<S>
where
    S: tower::Service<http::Request<B>>,
    S::Error: Into<tower::BoxError>,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
{
    type Response = S::Response;
    type Error = tower::BoxError;
    type Future = letterbox_env::BoxFuture<'static, Result<S::Response, tower::BoxError>>;

    fn poll_ready(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let cost = i64::from(request.method() != http::Method::GET);
        let before = self.left.fetch_sub(cost, Ordering::SeqCst);
        if before < cost || before < 0 || (before == 0 && cost == 0) {
            return Box::pin(std::future::ready(Err("the operator was killed".into())));
        }
        let call = self.inner.call(request);
        Box::pin(async move { call.await.map_err(Into::into) })
    }
}

fn cluster_of(name: &str, namespace: &str, spec: Value) -> KafkaCluster {
    serde_json::from_value(json!({
        "apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaCluster", "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    }))
    .unwrap()
}

/// What every broker says of itself: that it uses the volumes of its pod.
struct Says(Client);

impl AskIdentity for Says {
    fn identity<'a>(
        &'a self,
        host: &'a str,
        _: u16,
    ) -> letterbox_env::BoxFuture<'a, Option<Identity>> {
        Box::pin(async move {
            let pods: Api<Pod> = Api::all(self.0.clone());
            let pods = pods.list(&ListParams::default()).await.ok()?.items;
            let is_asked = |pod: &Pod| {
                pod.status.as_ref().is_some_and(|status| status.pod_ip.as_deref() == Some(host))
            };
            // All pods have the same address here.
            let specs = pods.into_iter().filter(is_asked).filter_map(|pod| pod.spec);
            let volumes: Vec<_> = specs.flat_map(|spec| spec.volumes.unwrap_or_default()).collect();
            let claimed = volumes.iter().filter(|each| each.persistent_volume_claim.is_some());
            let directory = |name: &str| {
                (format!("/var/lib/kafka/{name}/kafka-log"), format!("{name} of {host}"))
            };
            let directories = claimed.map(|each| directory(&each.name)).collect();
            Some(Identity { directories, ..Identity::default() })
        })
    }

    fn reserve<'a>(&'a self, _: &'a str, _: u16, _: i32) -> letterbox_env::BoxFuture<'a, MayEnd> {
        Box::pin(std::future::ready(MayEnd::Yes))
    }

    fn give_back<'a>(&'a self, _: &'a str, _: u16) -> letterbox_env::BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    fn may_end<'a>(&'a self, _: &'a str, _: u16, _: i32) -> letterbox_env::BoxFuture<'a, MayEnd> {
        Box::pin(std::future::ready(MayEnd::Yes))
    }
}

async fn pass(
    client: &Client,
    cluster: &KafkaCluster,
) -> Result<ClusterPass, letterbox_operator::status::Fault> {
    let mut cluster = cluster.clone();
    if cluster.status.is_none() {
        let clusters: Api<KafkaCluster> =
            Api::namespaced(client.clone(), &cluster.namespace().unwrap());
        let live = clusters.get_opt(&cluster.name_any()).await.ok().flatten();
        let live = live.filter(|live| live.uid() == cluster.uid());
        cluster.status = live.and_then(|live| live.status);
    }
    reconcile_cluster(
        &Kubernetes::new(client.clone(), "letterbox:9".into(), Arc::new(Says(client.clone()))),
        &cluster,
        None,
        &now(),
    )
    .await
}

async fn write_status(
    client: &Client,
    cluster: &KafkaCluster,
    pass: &ClusterPass,
) -> kube::Result<KafkaCluster> {
    let clusters: Api<KafkaCluster> =
        Api::namespaced(client.clone(), &cluster.namespace().unwrap());
    let status = Patch::Merge(json!({"status": pass.status}));
    clusters.patch_status(&cluster.name_any(), &PatchParams::default(), &status).await
}

/// Passes until no step is left and nothing new is to be remembered; the last pass. Its status is
/// written.
async fn settle(client: &Client, cluster: &KafkaCluster) -> ClusterPass {
    let mut cluster = cluster.clone();
    for _ in 0..10 {
        let pass = pass(client, &cluster).await.unwrap();
        let known = cluster.status.as_ref().map(|status| &status.nodes);
        if pass.plan.steps.is_empty() && known == Some(&pass.status.nodes) {
            write_status(client, &cluster, &pass).await.unwrap();
            return pass;
        }
        assert_eq!(pass.faults, [], "{:?}", pass.plan);
        cluster.status = Some(pass.status);
    }
    panic!("no fixed point: {:?}", pass(client, &cluster).await.unwrap().plan);
}

#[test]
fn against_a_real_api_server() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut server = Server::start().await;
        let client = server.client();
        install(&server, &client).await;
        explains_each_field(&server, &client).await;
        refuses_what_cannot_work(&client).await;
        makes_and_repairs(&client).await;
        scales_as_far_as_there_are_brokers(&client).await;
        volumes_are_added_and_their_loss_is_told(&client).await;
        volumes_go_or_stay_as_the_spec_says_when_the_cluster_goes(&client).await;
        leaves_what_belongs_to_others(&client).await;
        takes_away_what_is_not_allowed_beside_what_it_applies(&client).await;
        makes_again_what_nobody_can_change(&client).await;
        one_list_that_fails_stops_nothing_else(&server, &client).await;
        survives_a_kill_after_each_write(&server, &client).await;
        topics_hold_and_let_go(&client).await;
        five_hundred_topics_of_a_cluster_that_is_down_ask_nothing(&server, &client).await;
        waits_for_the_api_server_and_its_definitions(&mut server, &client).await;
        the_whole_operator_runs(&server, &client).await;
        only_a_lease_that_the_authorizer_refuses_is_done_without(&server, &client).await;
        a_second_release_leaves_the_definitions_to_the_first(&server, &client).await;
    });
}

async fn install(server: &Server, client: &Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in crds() {
        let name = crd.name_any();
        api.patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(&crd)).await.unwrap();
        let established = || async {
            let conditions = api
                .get(&name)
                .await
                .unwrap()
                .status
                .and_then(|status| status.conditions)
                .unwrap_or_default();
            conditions
                .iter()
                .any(|condition| condition.type_ == "Established" && condition.status == "True")
        };
        server.until(&name, established).await;
    }
    let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), "default");
    server
        .until("clusters are served", || async {
            clusters.list(&ListParams::default()).await.is_ok()
        })
        .await;
    let topics: Api<KafkaTopic> = Api::namespaced(client.clone(), "default");
    server
        .until("topics are served", || async { topics.list(&ListParams::default()).await.is_ok() })
        .await;
}

/// `kubectl explain` reads the API server's OpenAPI document, and shows descriptions and no
/// defaults.
async fn explains_each_field(server: &Server, client: &Client) {
    fn look(path: &str, schema: &Value, missing: &mut Vec<String>, known: &mut usize) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let (at, text) = (format!("{path}.{name}"), field["description"].as_str());
            let (text, default) = (text.unwrap_or_default(), &field["default"]);
            let is_told = default.is_null() || default.is_object() || text.contains("Default: ");
            let is_read_only = path.contains(".status");
            if text.is_empty() || !(is_told || is_read_only) {
                missing.push(at.clone());
            }
            *known += 1;
            look(&at, field, missing, known);
            look(&at, &field["items"], missing, known);
            look(&at, &field["additionalProperties"], missing, known);
        }
    }
    let document = async || {
        let ask = http::Request::get("/openapi/v3/apis/letterbox.dev/v1alpha1");
        let ask = ask.body(Vec::new()).unwrap();
        client.request::<Value>(ask).await.unwrap_or_default()["components"]["schemas"].clone()
    };
    let of = |kind: &str| format!("dev.letterbox.v1alpha1.{kind}");
    let is_there = async || document().await[of("KafkaTopic")].is_object();
    server.until("the definitions are explained", is_there).await;
    let document = document().await;
    let (mut missing, mut known) = (Vec::new(), 0);
    for kind in ["KafkaCluster", "KafkaTopic"] {
        for part in ["spec", "status"] {
            let schema = &document[of(kind)]["properties"][part];
            assert!(schema["description"].is_string(), "{kind}.{part}");
            look(&format!("{kind}.{part}"), schema, &mut missing, &mut known);
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
    assert!(known > 100, "{known} fields");
}

/// `kubectl scale`: one broker is what this version has, and another number is refused with words.
async fn scales_as_far_as_there_are_brokers(client: &Client) {
    let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), "default");
    let scale = clusters.get_scale("demo").await.unwrap();
    let status = scale.status.unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(1));
    let cluster = clusters.get("demo").await.unwrap();
    let own = cluster.status.unwrap();
    assert_eq!((status.replicas, status.selector), (own.replicas, own.selector));
    let to = |replicas: i32| Patch::Merge(json!({"spec": {"replicas": replicas}}));
    let params = PatchParams::default();
    let refused = clusters.patch_scale("demo", &params, &to(2)).await.unwrap_err().to_string();
    assert!(refused.contains("set spec.replicas to 1, 3 or 5"), "{refused}");
    let refused = clusters.patch_scale("demo", &params, &to(3)).await.unwrap_err().to_string();
    assert!(refused.contains("does not change how many brokers"), "{refused}");
    clusters.patch_scale("demo", &params, &to(1)).await.unwrap();
}

/// What creating `object` is refused with; panics when it is not.
async fn refusal(client: &Client, kind: &str, name: &str, spec: Value) -> String {
    let resource = if kind == "KafkaCluster" {
        kube::api::ApiResource::erase::<KafkaCluster>(&())
    } else {
        kube::api::ApiResource::erase::<KafkaTopic>(&())
    };
    let api: Api<kube::api::DynamicObject> =
        Api::namespaced_with(client.clone(), "default", &resource);
    let object = serde_json::from_value(json!({
        "apiVersion": "letterbox.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap();
    match api.create(&PostParams::default(), &object).await {
        Err(kube::Error::Api(status)) if status.code == 422 => status.message,
        other => panic!("{kind} {spec} was not refused: {other:?}"),
    }
}

async fn refuses_what_cannot_work(client: &Client) {
    for (name, spec, sentence) in [
        (
            "a",
            json!({"replicas": 2}),
            "A cluster has one, three or five brokers; set spec.replicas to 1, 3 or 5.",
        ),
        (
            "a",
            json!({"config": {"node.id": "1", "num.partitions": "3"}}),
            "The operator sets node.id itself; remove it from spec.config.",
        ),
        ("a", json!({"image": "a:1", "version": "1"}), "set it or spec.version, not both"),
        ("a", json!({"storage": {"size": "lots"}}), "The size must be a quantity of at least 64Mi"),
        ("a", json!({"storage": {"size": "63Mi"}}), "The size must be a quantity of at least 64Mi"),
        (
            "a",
            json!({"storage": {"volumes": [{"name": "data", "size": "63Mi"}]}}),
            "The size must be a quantity of at least 64Mi",
        ),
        (
            "a",
            json!({"storage": {"volumes": [{"name": "data-1"}]}}),
            "Every broker has a volume named data",
        ),
        (
            "a",
            json!({"storage": {"volumes": [{"name": "data"}, {"name": "logs"}]}}),
            "spec.storage.volumes[1].name in body should match",
        ),
        (
            "a",
            json!({"storage": {"volumes": [{"name": "data"}, {"name": "data"}]}}),
            "Duplicate value",
        ),
        (
            "a",
            json!({"resources": {"requests": {"memory": "lots"}}}),
            "spec.resources.requests.memory in body should match",
        ),
        (
            "a",
            json!({"resources": {"limits": {"cpu": "-1"}}}),
            "spec.resources.limits.cpu in body should match",
        ),
        (
            "a",
            json!({"listeners": [{"name": "a", "port": 9092}, {"name": "b", "port": 9092}]}),
            "give each listener a port of its own",
        ),
        (
            "a",
            json!({"listeners": [{"name": "a", "port": 9092, "type": "nodeport"}]}),
            "One listener must be of type internal",
        ),
        (
            "a",
            json!({"listeners": [{"name": "controller", "port": 9092}]}),
            "The name controller is taken",
        ),
        ("a", json!({"listeners": [{"name": "admin", "port": 9092}]}), "The name admin is taken"),
        ("a", json!({"listeners": [{"name": "kafka", "port": 9092}]}), "The name kafka is taken"),
        ("a", json!({"listeners": [{"name": "a", "port": 9644}]}), "Port 9644 is taken"),
        (
            "a",
            json!({"listeners": [{"name": "a", "port": 9092, "bootstrap": {"nodePort": 30000}}]}),
            "Only a listener of type nodeport has bootstrap",
        ),
        ("0a", json!({}), "A cluster's name has at most 32 characters"),
        (
            "a-name-of-more-than-thirty-two-characters",
            json!({}),
            "A cluster's name has at most 32 characters",
        ),
    ] {
        let said = refusal(client, "KafkaCluster", name, spec.clone()).await;
        assert!(said.contains(sentence), "{spec}: {said}");
    }
    let topic = |more: Value| {
        let mut spec = json!({"clusterRef": {"name": "demo"}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    for (spec, sentence) in [
        (topic(json!({"replicas": 6})), "should be less than or equal to 5"),
        (
            topic(json!({"topicName": "__consumer_offsets"})),
            "begin with two underscores are the brokers' own",
        ),
        (topic(json!({"topicName": ".."})), "A topic cannot be named '.' or '..'."),
        (topic(json!({"partitions": 0})), "should be greater than or equal to 1"),
        (json!({}), "spec.clusterRef: Required value"),
    ] {
        let said = refusal(client, "KafkaTopic", "a", spec.clone()).await;
        assert!(said.contains(sentence), "{spec}: {said}");
    }
    // What may not change.
    let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), "default");
    let topics: Api<KafkaTopic> = Api::namespaced(client.clone(), "default");
    clusters
        .create(
            &PostParams::default(),
            &cluster_of("fixed", "default", json!({"storage": {"size": "2Gi", "class": "a"}})),
        )
        .await
        .unwrap();
    let made: KafkaTopic = serde_json::from_value(json!({
        "apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaTopic", "metadata": {"name": "fixed"}, "spec": topic(json!({"topicName": "Fixed_1"})),
    }))
    .unwrap();
    let defaults = topics.create(&PostParams::default(), &made).await.unwrap();
    assert_eq!((defaults.spec.replicas, defaults.spec.partitions), (None, None));
    let merge = |spec: Value| Patch::Merge(json!({"spec": spec}));
    let params = PatchParams::default();
    for (result, sentence) in [
        (
            topics.patch("fixed", &params, &merge(json!({"topicName": "x"}))).await.map(drop),
            "A topic cannot be renamed",
        ),
        (
            topics
                .patch("fixed", &params, &merge(json!({"clusterRef": {"name": "x"}})))
                .await
                .map(drop),
            "A topic cannot move to another cluster",
        ),
    ] {
        match result {
            Err(kube::Error::Api(status)) => {
                assert!(status.message.contains(sentence), "{}", status.message)
            }
            other => panic!("{sentence}: {other:?}"),
        }
    }
    // What may be taken back: the live volume decides what comes of it.
    for storage in [
        json!({"size": "3072Mi"}),
        json!({"size": "1Gi"}),
        json!({"class": "b"}),
        json!({"class": null}),
        json!({"volumes": [{"name": "data"}, {"name": "data-1", "size": "1Gi", "class": "c"}]}),
        json!({"volumes": null}),
    ] {
        clusters.patch("fixed", &params, &merge(json!({"storage": storage}))).await.unwrap();
    }
    let volumes = clusters.get("fixed").await.unwrap().spec.storage.volumes;
    assert_eq!(volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["data"]);
    clusters.delete("fixed", &DeleteParams::default()).await.unwrap();
    topics.delete("fixed", &DeleteParams::default()).await.unwrap();
}

async fn makes_and_repairs(client: &Client) {
    let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), "default");
    let spec = json!({
        "storage": {"size": "1Gi"}, "resources": {"requests": {"cpu": "0.5", "memory": "512Mi"}},
        "listeners": [{"name": "plain", "port": 9092}, {"name": "external", "port": 9094, "type": "nodeport"}],
    });
    let cluster = clusters
        .create(&PostParams::default(), &cluster_of("demo", "default", spec))
        .await
        .unwrap();
    let first = pass(client, &cluster).await.unwrap();
    assert_eq!(first.faults, []);
    assert_eq!(
        find_condition(&first.status.conditions, READY).unwrap().reason,
        "WaitingForAddress"
    );
    settle(client, &cluster).await;

    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let node_port =
        services.get("demo-broker-0-external").await.unwrap().spec.unwrap().ports.unwrap()[0]
            .node_port
            .unwrap();
    let set = sets.get("demo-broker-0").await.unwrap();
    let container = set.spec.clone().unwrap().template.spec.unwrap().containers[0].clone();
    assert!(
        container
            .command
            .unwrap()
            .contains(&format!("advertised.listeners=PLAIN://demo-broker-0.default.svc:9092,EXTERNAL://$(HOST_IP):{node_port}"))
    );

    // Somebody changes each object.
    let merge = |value: Value| Patch::Merge(value);
    let params = PatchParams::default();
    services
        .patch(
            "demo-kafka-bootstrap",
            &params,
            &merge(json!({"spec": {"selector": {"letterbox.dev/cluster": "other"}}})),
        )
        .await
        .unwrap();
    let hidden =
        json!({"spec": {"publishNotReadyAddresses": true, "internalTrafficPolicy": "Local"}});
    services.patch("demo-kafka-external-bootstrap", &params, &merge(hidden)).await.unwrap();
    services.delete("demo-kafka-brokers", &DeleteParams::default()).await.unwrap();
    let map = the_config_map(&maps).await;
    let edited = maps
        .patch(&map, &params, &merge(json!({"data": {"server.properties": "node.id=8\n"}})))
        .await;
    assert!(edited.unwrap_err().to_string().contains("immutable"));
    maps.delete(&map, &DeleteParams::default()).await.unwrap();
    let held = json!({"spec": {"replicas": 0, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}}});
    sets.patch("demo-broker-0", &params, &merge(held)).await.unwrap();
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), "default");
    let foreign =
        json!({"spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"foreign": "1"}}}});
    budgets.patch("demo-kafka", &params, &merge(foreign)).await.unwrap();
    services
        .patch("demo-broker-0", &params, &merge(json!({"spec": {"selector": {"foreign": "1"}}})))
        .await
        .unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    accounts
        .patch("demo-kafka", &params, &merge(json!({"automountServiceAccountToken": true})))
        .await
        .unwrap();
    let repair = pass(client, &cluster).await.unwrap();
    let said: Vec<String> = repair.plan.steps.iter().map(ToString::to_string).collect();
    for object in [
        "Service demo-kafka-bootstrap: spec.selector",
        "Service demo-kafka-brokers",
        "Service demo-kafka-external-bootstrap: spec.publishNotReadyAddresses",
        "Service demo-kafka-external-bootstrap: spec.internalTrafficPolicy",
        "StatefulSet demo-broker-0: spec.updateStrategy.type",
        "Service demo-broker-0: spec.selector.foreign",
        "PodDisruptionBudget demo-kafka: spec.selector.matchLabels.foreign",
        "ServiceAccount demo-kafka",
        &format!("ConfigMap {map}"),
        "StatefulSet demo-broker-0: spec.replicas",
    ] {
        assert!(said.iter().any(|step| step.contains(object)), "{object} in {said:?}");
    }
    assert!(
        repair
            .plan
            .steps
            .iter()
            .all(|step| !matches!(step, Step::ApplyBroker { restarts: true, .. })),
        "no restart for it: {said:?}"
    );
    settle(client, &cluster).await;
    assert_eq!(the_config_map(&maps).await, map);
    assert!(
        maps.get(&map).await.unwrap().data.unwrap()["server.properties"].contains("node.id=0\n")
    );
    let strategy = sets.get("demo-broker-0").await.unwrap().spec.unwrap().update_strategy.unwrap();
    assert_eq!((strategy.type_.as_deref(), strategy.rolling_update), (Some("OnDelete"), None));

    // Somebody's pod with every label of ours, ready, on another node: it is no broker of this
    // cluster.
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let labels = set.spec.clone().unwrap().template.metadata.unwrap().labels;
    let foreign: Pod = serde_json::from_value(json!({
        "metadata": {"name": "a-foreign-pod", "labels": labels},
        "spec": {"containers": [{"name": "kafka", "image": container.image}]},
    }))
    .unwrap();
    pods.create(&PostParams::default(), &foreign).await.unwrap();
    pods.patch_status("a-foreign-pod", &params, &merge(pod_ready("192.0.2.66"))).await.unwrap();
    let unimpressed = settle(client, &cluster).await;
    assert_eq!(
        (
            unimpressed.status.brokers.as_str(),
            unimpressed.status.version,
            unimpressed.status.listeners.len()
        ),
        ("0/1", None, 1)
    );

    // A volume and its pod, as Kubernetes would make them.
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "default");
    // The claim that the operator made; a person made it larger.
    let made = claims.get("data-demo-broker-0-0").await.unwrap();
    assert_eq!(made.owner_references(), []);
    let claim_annotations = made.metadata.annotations.clone();
    delete_claim(&claims, "data-demo-broker-0-0").await;
    let larger: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {"name": "data-demo-broker-0-0", "labels": labels, "annotations": claim_annotations},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}},
    }))
    .unwrap();
    claims.create(&PostParams::default(), &larger).await.unwrap();
    is_bound(&claims, "data-demo-broker-0-0", "2Gi").await;
    // After it: a pod that is older than its claim has another volume.
    plays_kubernetes(client, "demo-broker-0").await;
    // As if that one had been there from the beginning.
    let uid = claims.get("data-demo-broker-0-0").await.unwrap().uid();
    let mut nodes = clusters.get("demo").await.unwrap().status.unwrap().nodes;
    nodes[0].volumes[0].claim_uid = uid;
    let known = Patch::Merge(json!({"status": {"nodes": nodes}}));
    clusters.patch_status("demo", &params, &known).await.unwrap();
    // On a busy machine a question to the API server may end without an answer: asked again.
    let mut ready = settle(client, &cluster).await;
    for _ in 0..10 {
        if ready.status.phase == "Ready" {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        ready = settle(client, &cluster).await;
    }
    assert_eq!(
        (ready.status.phase.as_str(), ready.status.version.as_deref(), ready.plan.notes.len()),
        ("Ready", Some("9"), 1)
    );
    // What is remembered of the broker, and on its volume of the cluster.
    let [node] = ready.status.nodes.as_slice() else { panic!("{:?}", ready.status.nodes) };
    let uid = claims.get("data-demo-broker-0-0").await.unwrap().uid();
    assert_eq!(
        (&node.volumes[0].claim_uid, node.volumes[0].directory_id.as_deref()),
        (&uid, Some("data of 192.0.2.7"))
    );
    assert_eq!(
        claim_annotations.unwrap().get("letterbox.dev/cluster-id"),
        ready.status.cluster_id.as_ref()
    );
    assert!(ready.status.cluster_id.is_some());
    // A label that somebody removes from the claim or the set loses neither.
    let unlabelled = json!({"metadata": {"labels": {"letterbox.dev/cluster": null}}});
    claims.patch("data-demo-broker-0-0", &params, &merge(unlabelled.clone())).await.unwrap();
    sets.patch("demo-broker-0", &params, &merge(unlabelled)).await.unwrap();
    let known = KafkaCluster { status: Some(ready.status.clone()), ..cluster.clone() };
    let found = pass(client, &known).await.unwrap();
    assert_eq!((found.plan.losses.as_slice(), found.faults.as_slice()), (&[][..], &[][..]));
    assert!(
        sets.get("demo-broker-0").await.unwrap().labels().contains_key("letterbox.dev/cluster")
    );
    observes(client, "demo-broker-0").await;
    // From now on the next pod of this broker expects its directory; the one that runs stays.
    let next = sets
        .get("demo-broker-0")
        .await
        .unwrap()
        .spec
        .unwrap()
        .template
        .spec
        .unwrap()
        .containers
        .remove(0)
        .command
        .unwrap();
    assert!(next.contains(&"expected.directory.ids=data of 192.0.2.7".to_owned()), "{next:?}");
    assert!(pass(client, &known).await.unwrap().plan.steps.is_empty());
    let external = &ready.status.listeners[1].bootstrap_servers;
    assert!(external.starts_with("192.0.2.7:3"), "{external}");

    pods.delete("a-foreign-pod", &DeleteParams::default()).await.unwrap();

    // A service that somebody deletes comes back, and the broker keeps what it was given until
    // then.
    services.delete("demo-broker-0-external", &DeleteParams::default()).await.unwrap();
    let known = KafkaCluster { status: Some(ready.status.clone()), ..cluster.clone() };
    let repair = pass(client, &known).await.unwrap();
    assert!(
        matches!(repair.plan.steps.as_slice(), [Step::ApplyAccess { is_missed: true, .. }]),
        "{:?}",
        repair.plan.steps
    );
    settle(client, &cluster).await;

    // What leaves the spec leaves the objects.
    let listeners = |more: Value| json!([{"name": "plain", "port": 9092}, {"name": "external", "port": 9094, "type": "nodeport"}, more]);
    let ports = async || {
        services.get("demo-kafka-bootstrap").await.unwrap().spec.unwrap().ports.unwrap().len()
    };
    let more = json!({"spec": {"listeners": listeners(json!({"name": "more", "port": 9095}))}});
    let more = settle(client, &clusters.patch("demo", &params, &merge(more)).await.unwrap()).await;
    assert_eq!(ports().await, 2);
    let less = json!({"spec": {"resources": null, "listeners": [listeners(json!(null))[0], listeners(json!(null))[1]]}});
    let mut cluster = clusters.patch("demo", &params, &merge(less)).await.unwrap();
    cluster.status = Some(more.status);
    let planned = pass(client, &cluster).await.unwrap().plan.steps;
    assert!(planned.iter().any(|step| step.to_string().contains("resources")), "{planned:?}");
    let known = settle(client, &cluster).await.status;
    assert_eq!(ports().await, 1);
    let container = sets
        .get("demo-broker-0")
        .await
        .unwrap()
        .spec
        .unwrap()
        .template
        .spec
        .unwrap()
        .containers
        .remove(0);
    assert_eq!(container.resources.unwrap_or_default().requests, None);

    // The object is held while its volumes go with it. A volume never has an owner: none is deleted
    // by a policy of before.
    let held = async |policy: &str| {
        let spec = json!({"spec": {"storage": {"deletionPolicy": policy}}});
        let cluster = clusters.patch("demo", &params, &merge(spec)).await.unwrap();
        pass(client, &cluster).await.unwrap();
        settle(client, &clusters.get("demo").await.unwrap()).await;
        let set = sets.get("demo-broker-0").await.unwrap().spec.unwrap();
        assert_eq!(
            set.persistent_volume_claim_retention_policy.unwrap().when_deleted.as_deref(),
            Some("Retain")
        );
        assert_eq!(claims.get("data-demo-broker-0-0").await.unwrap().owner_references(), []);
        clusters.get("demo").await.unwrap().finalizers().to_vec()
    };
    assert_eq!(held("Delete").await, [CLUSTER_FINALIZER]);
    assert_eq!(held("Retain").await, Vec::<String>::new());

    // Growth: the API server refuses it for a claim without an expandable class, and nothing else
    // stops.
    let grown = json!({"spec": {"storage": {"size": "3Gi"}, "listeners": [{"name": "plain", "port": 9092}]}});
    let mut cluster = clusters.patch("demo", &params, &merge(grown)).await.unwrap();
    cluster.status = Some(known);
    let refused = pass(client, &cluster).await.unwrap();
    assert_eq!(
        refused.faults.iter().map(|(_, fault)| fault.reason.as_str()).collect::<Vec<_>>(),
        ["VolumeNotGrown"],
        "{:?}",
        refused.faults
    );
    assert!(
        services.get_opt("demo-kafka-external-bootstrap").await.unwrap().is_none(),
        "the removed listener's service is gone"
    );
    assert!(
        refused.done.iter().any(|step| matches!(step, Step::ApplyBroker { restarts: true, .. }))
    );

    // The pod is ended once Kubernetes would make the next one from the new definition, and the old
    // configuration goes with it.
    let steps = pass(client, &cluster).await.unwrap().plan.steps;
    assert!(!steps.iter().any(|step| matches!(step, Step::RestartBroker { .. })), "{steps:?}");
    observes(client, "demo-broker-0").await;
    let ended = pass(client, &cluster).await.unwrap();
    assert!(
        ended.done.iter().any(|step| matches!(step, Step::RestartBroker { broker: 0, .. })),
        "{:?}",
        ended.plan
    );
    assert!(pods.get_opt("demo-broker-0-0").await.unwrap().is_none());
    assert!(
        maps.list(&ListParams::default()).await.unwrap().items.len() > 1,
        "a pod may just be made from an older definition"
    );
    plays_kubernetes(client, "demo-broker-0").await;
    pass(client, &cluster).await.unwrap();
    assert_eq!(
        the_config_map(&maps).await,
        config_map_of(&sets.get("demo-broker-0").await.unwrap())
    );
}

/// Deletes a claim that Kubernetes protects, as if no pod used it.
async fn delete_claim(claims: &Api<PersistentVolumeClaim>, name: &str) {
    let free = json!({"metadata": {"finalizers": null}});
    claims.patch(name, &PatchParams::default(), &Patch::Merge(free)).await.unwrap();
    claims.delete(name, &DeleteParams::default()).await.unwrap();
    assert!(claims.get_opt(name).await.unwrap().is_none());
}

/// Kubernetes makes a volume for a claim.
async fn is_bound(claims: &Api<PersistentVolumeClaim>, name: &str, capacity: &str) {
    let status = json!({"status": {"phase": "Bound", "capacity": {"storage": capacity}}});
    claims.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

/// A volume is added to a broker that runs, is used, and is lost.
async fn volumes_are_added_and_their_loss_is_told(client: &Client) {
    let params = PatchParams::default();
    let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), "default");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "default");
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let cluster = clusters
        .create(&PostParams::default(), &cluster_of("wide", "default", json!({})))
        .await
        .unwrap();
    settle(client, &cluster).await;
    is_bound(&claims, "data-wide-broker-0-0", "10Gi").await;
    plays_kubernetes(client, "wide-broker-0").await;
    let ready = settle(client, &cluster).await;
    let uid = sets.get("wide-broker-0").await.unwrap().uid();

    let volumes = json!([{"name": "data"}, {"name": "data-1", "size": "3Gi", "class": "fast"}]);
    let more = json!({"spec": {"storage": {"volumes": volumes}}});
    let mut cluster = clusters.patch("wide", &params, &Patch::Merge(more)).await.unwrap();
    cluster.status = Some(ready.status);
    let first = pass(client, &cluster).await.unwrap();
    assert_eq!(
        first.done,
        [Step::MakeClaim { broker: 0, volume: "data-1".into() }],
        "no restart before the claim is there: {:?}",
        first.plan
    );
    let claim = claims.get("data-1-wide-broker-0-0").await.unwrap();
    let spec = claim.spec.clone().unwrap();
    assert_eq!(
        (
            spec.storage_class_name.as_deref(),
            &spec.resources.unwrap().requests.unwrap()["storage"].0
        ),
        (Some("fast"), &"3Gi".to_owned())
    );
    let waits = pass(client, &cluster).await.unwrap().plan.waits;
    assert!(waits.iter().any(|wait| wait.reason() == "VolumePending"), "{waits:?}");
    is_bound(&claims, "data-1-wide-broker-0-0", "3Gi").await;
    // The claim is written down before a definition names it.
    let noted = pass(client, &cluster).await.unwrap();
    assert_eq!(noted.done, []);
    cluster.status = Some(noted.status);
    pass(client, &cluster).await.unwrap();
    observes(client, "wide-broker-0").await;
    pass(client, &cluster).await.unwrap();
    assert!(pods.get_opt("wide-broker-0-0").await.unwrap().is_none(), "it takes it up");
    plays_kubernetes(client, "wide-broker-0").await;
    let set = sets.get("wide-broker-0").await.unwrap();
    assert_eq!((set.uid(), set.spec.clone().unwrap().volume_claim_templates), (uid, None));
    let template = set.spec.unwrap().template.spec.unwrap();
    let mounts = template.containers[0].volume_mounts.clone().unwrap();
    assert!(mounts.iter().any(|mount| mount.mount_path == "/var/lib/kafka/data-1"), "{mounts:?}");
    let both = settle(client, &cluster).await;
    let recorded: Vec<_> = both.status.nodes[0]
        .volumes
        .iter()
        .map(|volume| (volume.name.as_str(), volume.directory_id.as_deref()))
        .collect();
    assert_eq!(
        recorded,
        [("data", Some("data of 192.0.2.7")), ("data-1", Some("data-1 of 192.0.2.7"))]
    );

    // A restart that was planned before a claim changed is not carried out.
    let kubernetes =
        Kubernetes::new(client.clone(), "letterbox:9".into(), Arc::new(Says(client.clone())));
    let (seen, pod) = (kubernetes.read(&cluster).await.unwrap(), pods.get("wide-broker-0-0").await);
    let restart = Step::RestartBroker { broker: 0, ended: pod.unwrap().uid().unwrap() };
    let phase = |phase: &str| Patch::Merge(json!({"status": {"phase": phase}}));
    claims.patch_status("data-wide-broker-0-0", &params, &phase("Lost")).await.unwrap();
    let refused = kubernetes.act(&both.desired, &seen, &restart).await.unwrap_err();
    assert_eq!(refused.reason, "Changed", "{}", refused.message);
    claims.patch_status("data-wide-broker-0-0", &params, &phase("Bound")).await.unwrap();
    assert!(pods.get_opt("wide-broker-0-0").await.unwrap().is_some());

    // The claim goes, and its pod with it: the operator makes no empty one in its place.
    cluster.status = Some(both.status);
    let end = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    pods.delete("wide-broker-0-0", &end).await.unwrap();
    delete_claim(&claims, "data-1-wide-broker-0-0").await;
    let lost = pass(client, &cluster).await.unwrap();
    let ready = find_condition(&lost.status.conditions, READY).unwrap();
    assert_eq!(ready.reason, "DataLost", "{}", ready.message);
    let loss = lost.status.nodes[0].data_loss.clone().unwrap();
    let begins = "broker-0-data-1-incarnation-1-data-1 o-";
    assert!(loss.starts_with(begins), "a part of its directory.id: {loss}");
    assert!(ready.message.contains(&loss), "{}", ready.message);
    assert!(claims.get_opt("data-1-wide-broker-0-0").await.unwrap().is_none());
    let annotation = json!({"letterbox.dev/accept-data-loss": loss});
    cluster.metadata.annotations = serde_json::from_value(annotation).unwrap();
    cluster.status = Some(lost.status);
    let accepted = pass(client, &cluster).await.unwrap();
    // The acceptance is written down before anything follows from it.
    assert_eq!(accepted.done.len(), 1, "{:?}", accepted.plan);
    cluster.status = Some(accepted.status);
    let removed = pass(client, &cluster).await.unwrap();
    assert!(matches!(removed.done.as_slice(), [Step::RemoveBroker { .. }]), "{:?}", removed.plan);
    // While the set is there, the claim that it names is not made.
    assert_eq!(pass(client, &cluster).await.unwrap().done, []);
    assert!(claims.get_opt("data-1-wide-broker-0-0").await.unwrap().is_none());
    // It goes after its pod.
    let finalizers = sets.get("wide-broker-0").await.unwrap().metadata.finalizers;
    assert_eq!(finalizers, Some(vec!["foregroundDeletion".to_owned()]));
    let goes = json!({"metadata": {"finalizers": null}});
    sets.patch("wide-broker-0", &params, &Patch::Merge(goes)).await.unwrap();
    let made = pass(client, &cluster).await.unwrap();
    let claim = Step::MakeClaim { broker: 0, volume: "data-1".into() };
    assert_eq!(made.done, [claim], "{:?}", made.plan);
    let noted = pass(client, &cluster).await.unwrap();
    assert_eq!(noted.done, []);
    cluster.status = Some(noted.status);
    let again = pass(client, &cluster).await.unwrap();
    assert!(matches!(again.done.as_slice(), [Step::ApplyBroker { .. }]), "{:?}", again.plan);
    clusters.delete("wide", &DeleteParams::default()).await.unwrap();
}

/// The name of the only configuration there is.
async fn the_config_map(maps: &Api<ConfigMap>) -> String {
    let found =
        maps.list(&ListParams::default().labels("letterbox.dev/cluster=demo")).await.unwrap();
    let names: Vec<String> = found.items.iter().map(ConfigMap::name_any).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    names[0].clone()
}

fn config_map_of(set: &StatefulSet) -> String {
    let volumes = set.spec.clone().unwrap().template.spec.unwrap().volumes.unwrap();
    volumes.into_iter().find_map(|volume| volume.config_map).unwrap().name
}

fn pod_ready(host: &str) -> Value {
    json!({"status": {"phase": "Running", "podIP": host, "podIPs": [{"ip": host}], "hostIP": host, "hostIPs": [{"ip": host}], "conditions": [{"type": "Ready", "status": "True"}]}})
}

/// The set's controller has seen the newest definition.
async fn observes(client: &Client, set: &str) {
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let generation = sets.get(set).await.unwrap().metadata.generation;
    let status = json!({"status": {"replicas": 1, "observedGeneration": generation}});
    sets.patch_status(set, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

/// The set's controller makes its pod, and a kubelet runs it.
async fn plays_kubernetes(client: &Client, set: &str) {
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let live = sets.get(set).await.unwrap();
    let template = live.spec.clone().unwrap().template;
    let meta = template.metadata.unwrap();
    let mut spec = json!(template.spec.unwrap());
    // Nothing binds it here.
    spec["serviceAccountName"] = Value::Null;
    spec["containers"][0]["volumeMounts"] = Value::Null;
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {
            "name": format!("{set}-0"), "labels": meta.labels, "annotations": meta.annotations,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": set, "uid": live.metadata.uid, "controller": true}],
        },
        "spec": spec,
    }))
    .unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    pods.patch_status(
        &format!("{set}-0"),
        &PatchParams::default(),
        &Patch::Merge(pod_ready("192.0.2.7")),
    )
    .await
    .unwrap();
    observes(client, set).await;
}

async fn volumes_go_or_stay_as_the_spec_says_when_the_cluster_goes(client: &Client) {
    let params = PatchParams::default();
    let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), "default");
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "default");
    let kubernetes =
        Kubernetes::new(client.clone(), "letterbox:9".into(), Arc::new(Says(client.clone())));
    for (name, last_policy, whose, stays) in [
        ("leaves", "Delete", "its own", false),
        // The operator was down, or paused, when the policy changed.
        ("stays", "Retain", "its own", true),
        ("foreign", "Delete", "somebody else's", true),
    ] {
        let spec = json!({"storage": {"deletionPolicy": "Delete"}});
        let cluster = clusters
            .create(&PostParams::default(), &cluster_of(name, "default", spec))
            .await
            .unwrap();
        let last = settle_held(client, &cluster).await;
        let claim_name = format!("data-{name}-broker-0-0");
        let id = claims.get(&claim_name).await.unwrap().annotations()["letterbox.dev/cluster-id"]
            .clone();
        assert_eq!(Some(id), last.desired.cluster_id);
        if whose != "its own" {
            let other =
                json!({"metadata": {"annotations": {"letterbox.dev/cluster-id": "another"}}});
            claims.patch(&claim_name, &params, &Patch::Merge(other)).await.unwrap();
            let forgets = Patch::Merge(json!({"status": {"nodes": null}}));
            clusters.patch_status(name, &params, &forgets).await.unwrap();
        }
        let policy = json!({"spec": {"storage": {"deletionPolicy": last_policy}}});
        clusters.patch(name, &params, &Patch::Merge(policy)).await.unwrap();
        clusters.delete(name, &DeleteParams::default()).await.unwrap();
        // What the operator saw before it went down says Delete.
        let uid = cluster.uid().unwrap();
        kubernetes.let_go("default", name, &uid).await.unwrap();
        let live = claims
            .get_opt(&claim_name)
            .await
            .unwrap()
            .filter(|claim| claim.metadata.deletion_timestamp.is_none());
        assert_eq!(live.is_some(), stays, "{name}");
        assert_eq!(
            sets.get_opt(&format!("{name}-broker-0")).await.unwrap().is_some(),
            last_policy == "Retain"
        );
        assert!(clusters.get_opt(name).await.unwrap().is_none(), "{name} is let go");
    }
}

/// Passes until the object is held, and then until no step is left.
async fn settle_held(client: &Client, cluster: &KafkaCluster) -> ClusterPass {
    let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), "default");
    pass(client, cluster).await.unwrap();
    let held = clusters.get(&cluster.name_any()).await.unwrap();
    assert_eq!(held.finalizers(), [CLUSTER_FINALIZER]);
    settle(client, &held).await
}

async fn leaves_what_belongs_to_others(client: &Client) {
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let foreign: Service = serde_json::from_value(
        json!({"metadata": {"name": "theirs-kafka-bootstrap"}, "spec": {"ports": [{"port": 80}]}}),
    )
    .unwrap();
    services.create(&PostParams::default(), &foreign).await.unwrap();
    let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), "default");
    let cluster = clusters
        .create(&PostParams::default(), &cluster_of("theirs", "default", json!({})))
        .await
        .unwrap();
    let conflict = pass(client, &cluster).await.unwrap();
    assert_eq!(conflict.faults[0].1.reason, "ResourceConflict");
    assert_eq!(
        services.get("theirs-kafka-bootstrap").await.unwrap().spec.unwrap().ports.unwrap()[0].port,
        80
    );
    services.delete("theirs-kafka-bootstrap", &DeleteParams::default()).await.unwrap();
    settle(client, &cluster).await;
    clusters.delete("theirs", &DeleteParams::default()).await.unwrap();
}

/// What a person puts into objects in place of what the operator applied.
async fn takes_away_what_is_not_allowed_beside_what_it_applies(client: &Client) {
    let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), "default");
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let listeners = |ports: &[u16]| {
        let listener = |port: &u16| json!({"name": format!("p{port}"), "port": port});
        let external = json!({"name": "ext", "port": 9094, "type": "nodeport"});
        let all: Vec<Value> = ports.iter().map(listener).chain([external]).collect();
        json!({ "listeners": all })
    };
    let made = cluster_of("edited", "default", listeners(&[9092, 9095]));
    let cluster = clusters.create(&PostParams::default(), &made).await.unwrap();
    settle(client, &cluster).await;
    for is_emptied in [false, true] {
        put_in_what_is_not_allowed(client, &cluster, is_emptied).await;
    }
    // What leaves the spec leaves the objects as before.
    let fewer = Patch::Merge(json!({"spec": listeners(&[9092])}));
    let cluster = clusters.patch("edited", &PatchParams::default(), &fewer).await.unwrap();
    settle(client, &cluster).await;
    let left = services.get("edited-kafka-bootstrap").await.unwrap().spec.unwrap().ports.unwrap();
    assert_eq!(left.iter().map(|port| port.port).collect::<Vec<_>>(), [9092]);
    clusters.delete("edited", &DeleteParams::default()).await.unwrap();
}

/// Also where nothing tells who put it there, the addresses stay.
async fn put_in_what_is_not_allowed(client: &Client, cluster: &KafkaCluster, is_emptied: bool) {
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), "default");
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let before = services.get("edited-kafka-bootstrap").await.unwrap();
    let external = services.get("edited-kafka-ext-bootstrap").await.unwrap();

    let params = PatchParams::default();
    let mut renamed = json!(external.spec.as_ref().unwrap().ports.as_ref().unwrap()[0]);
    renamed["name"] = json!("x");
    let port = json!({"name": "ext", "port": 9999, "protocol": "TCP", "targetPort": "ext"});
    let ports = Patch::Merge(json!({"spec": {"ports": [renamed, port]}}));
    services.patch("edited-kafka-ext-bootstrap", &params, &ports).await.unwrap();
    let port = json!({"name": "p9092", "port": 9999, "protocol": "TCP", "targetPort": "p9092"});
    let ports = Patch::Merge(json!({"spec": {"ports": [port]}}));
    services.patch("edited-kafka-bootstrap", &params, &ports).await.unwrap();
    let fewest = Patch::Merge(json!({"spec": {"maxUnavailable": null, "minAvailable": 1}}));
    budgets.patch("edited-kafka", &params, &fewest).await.unwrap();
    let probe = json!({"httpGet": null, "tcpSocket": {"port": 1}});
    // Beside it, what is allowed: the refusal does not name it.
    let more = json!([{"name": "ADDED", "value": "1"}]);
    let probe = json!({"containers": [{"name": "kafka", "livenessProbe": probe, "env": more}]});
    let probe = Patch::Strategic(json!({"spec": {"template": {"spec": probe}}}));
    sets.patch("edited-broker-0", &params, &probe).await.unwrap();
    if is_emptied {
        let emptied = Patch::Merge(json!({"metadata": {"managedFields": [{}]}}));
        for name in ["edited-kafka-bootstrap", "edited-kafka-ext-bootstrap"] {
            let left = services.patch(name, &params, &emptied).await.unwrap();
            assert_eq!(left.metadata.managed_fields, None);
        }
        budgets.patch("edited-kafka", &params, &emptied).await.unwrap();
        sets.patch("edited-broker-0", &params, &emptied).await.unwrap();
    }
    settle(client, cluster).await;

    for before in [before, external] {
        let after = services.get(&before.name_any()).await.unwrap();
        assert_eq!(after.spec, before.spec, "the address is the same");
    }
    let budget = budgets.get("edited-kafka").await.unwrap().spec.unwrap();
    assert!(budget.max_unavailable.is_some() && budget.min_available.is_none());
    let set = sets.get("edited-broker-0").await.unwrap().spec.unwrap();
    let container = set.template.spec.unwrap().containers.remove(0);
    assert_eq!(container.liveness_probe.unwrap().tcp_socket, None);
    assert!(container.env.unwrap().iter().any(|each| each.name == "ADDED"), "it stays");
}

/// What a person has made again with what Kubernetes lets nobody change.
async fn makes_again_what_nobody_can_change(client: &Client) {
    let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), "default");
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let listeners = json!({"listeners": [{"name": "plain", "port": 9092}, {"name": "ext", "port": 9094, "type": "nodeport"}]});
    let made = cluster_of("remade", "default", listeners);
    let cluster = clusters.create(&PostParams::default(), &made).await.unwrap();
    settle(client, &cluster).await;
    // As a person writes them: with the labels, and without an owner.
    let address = async |name: &str| services.get(name).await.unwrap().spec.unwrap().cluster_ip;
    for (name, has_address) in
        [("remade-kafka-brokers", true), ("remade-kafka-ext-bootstrap", false)]
    {
        let before = services.get(name).await.unwrap();
        services.delete(name, &DeleteParams::default()).await.unwrap();
        let spec = json!({"clusterIP": (!has_address).then_some("None"), "ports": [{"port": 1}]});
        let metadata = json!({"name": name, "labels": before.metadata.labels});
        let other = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
        services.create(&PostParams::default(), &other).await.unwrap();
        assert_eq!(address(name).await.as_deref() == Some("None"), !has_address);
    }
    let map = config_map_of(&sets.get("remade-broker-0").await.unwrap());
    let mut other = maps.get(&map).await.unwrap();
    let right = other.data.replace([("a".to_owned(), "b".to_owned())].into());
    let labels = other.metadata.labels.take();
    other.metadata = ObjectMeta { name: Some(map.clone()), labels, ..ObjectMeta::default() };
    maps.delete(&map, &DeleteParams::default()).await.unwrap();
    maps.create(&PostParams::default(), &other).await.unwrap();

    let settled = settle(client, &cluster).await;
    assert_eq!(address("remade-kafka-brokers").await.as_deref(), Some("None"));
    assert_ne!(address("remade-kafka-ext-bootstrap").await.as_deref(), Some("None"));
    let map = maps.get(&map).await.unwrap();
    assert_eq!((map.data, map.immutable), (right, Some(true)));
    assert!(pass(client, &cluster).await.unwrap().plan.steps.is_empty(), "{:?}", settled.plan);
    clusters.delete("remade", &DeleteParams::default()).await.unwrap();
}

async fn one_list_that_fails_stops_nothing_else(server: &Server, client: &Client) {
    for refused in [
        "poddisruptionbudgets",
        "persistentvolumeclaims",
        "services",
        "serviceaccounts",
        "configmaps",
        "statefulsets",
        "pods",
        "events",
    ] {
        let name = format!("blind-{refused}");
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces
            .create(
                &PostParams::default(),
                &serde_json::from_value(json!({"metadata": {"name": name}})).unwrap(),
            )
            .await
            .unwrap();
        let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), &name);
        let cluster = clusters
            .create(&PostParams::default(), &cluster_of("demo", &name, json!({})))
            .await
            .unwrap();
        let last = pass(&server.without_right_to_list(client, &name, refused).await, &cluster)
            .await
            .unwrap();
        let degraded = find_condition(&last.status.conditions, "Degraded").unwrap();
        assert_eq!(
            (degraded.status.as_str(), degraded.reason.as_str()),
            ("True", "NotChecked"),
            "{refused}"
        );
        assert!(
            degraded.message.contains(&format!("cannot list resource \"{refused}\"")),
            "{}",
            degraded.message
        );
        assert_eq!(last.faults, [], "{refused}: {:?}", last.plan);
        assert!(last.done.len() >= 2, "{refused}: {:?}", last.done);
        settle(client, &cluster).await;
        namespaces.delete(&name, &DeleteParams::default()).await.unwrap();
    }
}

async fn survives_a_kill_after_each_write(server: &Server, client: &Client) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let mut worlds: BTreeMap<i64, BTreeMap<String, Value>> = BTreeMap::new();
    // The first world is made undisturbed.
    for writes in [i64::MAX, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] {
        let name = format!("killed-{}", writes.min(99));
        let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        namespaces.create(&PostParams::default(), &namespace).await.unwrap();
        let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), &name);
        let spec = json!({"listeners": [{"name": "plain", "port": 9092}, {"name": "external", "port": 9094, "type": "nodeport"}]});
        let cluster = clusters
            .create(&PostParams::default(), &cluster_of("demo", &name, spec))
            .await
            .unwrap();
        let mortal = server.mortal(writes);
        for _ in 0..5 {
            match pass(&mortal, &cluster).await {
                Ok(pass) => drop(write_status(&mortal, &cluster, &pass).await),
                Err(fault) => assert_ne!(writes, i64::MAX, "{fault:?}"),
            }
        }
        let last = settle(client, &cluster).await;
        let mut world = BTreeMap::new();
        for (key, object) in letterbox_operator::desired::objects::build(&last.desired)
            .brokers
            .into_values()
            .flatten()
        {
            // Node ports, uids and namespaces differ from world to world, and with them the
            // revision in a ConfigMap's name.
            world.insert(format!("{} of broker 0", key.kind), json!(object["spec"]["serviceName"]));
        }
        let services: Api<Service> = Api::namespaced(client.clone(), &name);
        for service in services.list(&ListParams::default()).await.unwrap() {
            world.insert(
                format!("Service {}", service.name_any()),
                json!(service.spec.unwrap().selector),
            );
        }
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &name);
        for claim in claims.list(&ListParams::default()).await.unwrap() {
            world.insert(format!("claim {}", claim.name_any()), json!(claim.owner_references()));
        }
        worlds.insert(writes, world);
    }
    let undisturbed = &worlds[&i64::MAX];
    assert_eq!(undisturbed.len(), 8, "{undisturbed:?}");
    for (writes, world) in &worlds {
        assert_eq!(world, undisturbed, "killed after {writes} writes");
    }
}

async fn topics_hold_and_let_go(client: &Client) {
    let topics: Api<KafkaTopic> = Api::namespaced(client.clone(), "default");
    let topic: KafkaTopic = serde_json::from_value(json!({
        "apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaTopic", "metadata": {"name": "orders", "namespace": "default"},
        "spec": {"clusterRef": {"name": "demo"}, "deletionPolicy": "Delete", "config": {"retention.ms": "5"}},
    }))
    .unwrap();
    topics.create(&PostParams::default(), &topic).await.unwrap();
    let (home, admin) = (KubernetesHome::new(client.clone()), ModelAdmin::default());
    let step = async |cluster: ClusterState| {
        let topic = topics.get("orders").await.unwrap();
        let live = admin.with(|state| state.topics.get("orders").cloned());
        let facts = TopicFacts {
            cluster,
            topic: live,
            other_owner: None,
            may_come: false,
            namespace_terminating: false,
            brokers: None,
        };
        reconcile_topic(&home, &admin, &topic, &facts, &now()).await.unwrap()
    };
    step(ClusterState::Ready).await;
    let made = topics.get("orders").await.unwrap();
    assert_eq!(made.finalizers(), [TOPIC_FINALIZER]);
    assert_eq!(made.status.clone().unwrap().config_keys, ["retention.ms"]);
    assert!(letterbox_operator::api::is_true(&made.status.unwrap().conditions, READY));
    topics.delete("orders", &DeleteParams::default()).await.unwrap();
    step(ClusterState::NotReady).await;
    assert!(topics.get_opt("orders").await.unwrap().is_some(), "it waits for the cluster");
    assert!(step(ClusterState::Ready).await.released);
    assert!(topics.get_opt("orders").await.unwrap().is_none());
    assert!(admin.with(|state| state.topics.is_empty()));
}

async fn five_hundred_topics_of_a_cluster_that_is_down_ask_nothing(
    server: &Server,
    client: &Client,
) {
    const TOPICS: usize = 500;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces
        .create(
            &PostParams::default(),
            &serde_json::from_value(json!({"metadata": {"name": "many"}})).unwrap(),
        )
        .await
        .unwrap();
    let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), "many");
    clusters.create(&PostParams::default(), &cluster_of("down", "many", json!({}))).await.unwrap();
    let topics: Api<KafkaTopic> = Api::namespaced(client.clone(), "many");
    let make = async |number: usize| {
        let policy = if number.is_multiple_of(2) { "Retain" } else { "Delete" };
        let topic: KafkaTopic = serde_json::from_value(json!({
            "apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaTopic", "metadata": {"name": format!("t{number}")},
            "spec": {"clusterRef": {"name": "down"}, "deletionPolicy": policy},
        }))
        .unwrap();
        topics.create(&PostParams::default(), &topic).await.unwrap();
    };
    futures::stream::iter(0..TOPICS).for_each_concurrent(16, make).await;

    let (own, requests) = server.counted(Duration::from_millis(20));
    let options = Options {
        image: "letterbox:9".into(),
        namespaces: vec!["many".into()],
        listen: ("127.0.0.1".into(), 0),
        lease: None,
    };
    let operator = tokio::spawn(controller::run(Env::real(), own, options));
    let all_told = || async {
        topics.list(&ListParams::default()).await.unwrap().items.iter().all(|topic| {
            let status = topic.status.clone().unwrap_or_default();
            find_condition(&status.conditions, READY)
                .is_some_and(|ready| ready.message.starts_with("cluster not ready"))
        })
    };
    server.until("each topic says what it waits for", all_told).await;
    let about = |requests: &[String], what: &str| {
        requests.iter().filter(|request| request.contains(what)).count()
    };
    let first = requests.take();
    // A finalizer for half of them, read before it is written, and one status for each, however late
    // the watch brings them.
    assert_eq!(about(&first, "/kafkatopics/"), TOPICS * 2);
    assert_eq!(
        about(&first, "/kafkaclusters/down?"),
        0,
        "the cluster is read through the one watch"
    );
    // Longer than the longest pause: each topic is looked at again.
    tokio::time::sleep(Duration::from_secs(13)).await;
    let then = requests.take();
    for what in ["/kafkatopics/", "/kafkaclusters/down?", "events.k8s.io"] {
        assert_eq!(
            about(&then, what),
            0,
            "{what}: {:?}",
            then.iter().filter(|request| request.contains(what)).take(3).collect::<Vec<_>>()
        );
    }
    assert!(about(&then, "GET /api/v1/namespaces/many?") <= 4, "{then:?}");
    println!(
        "500 topics, cluster down: {} requests in 13 s, the cluster's own included",
        then.len()
    );
    // The cluster goes, and holds none of them.
    clusters.delete("down", &DeleteParams::default()).await.unwrap();
    let held = || async {
        topics
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .iter()
            .any(|topic| !topic.finalizers().is_empty())
    };
    server.until("each topic is let go", || async { !held().await }).await;
    operator.abort();
    topics.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
}

/// A client with the rights that the Helm chart gives to an operator of three namespaces, and no
/// others.
async fn with_the_charts_roles(server: &Server, client: &Client) -> Client {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/letterbox");
    let mut render = Command::new(binary("helm"));
    render.args(["template", "letterbox"]).arg(chart).args([
        "-n",
        "default",
        "--kube-version",
        "1.34.0",
        "-s",
        "templates/rbac.yaml",
    ]);
    let rendered =
        render.args(["--set", "watchNamespaces={default,doomed,doomed-too}"]).output().unwrap();
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    for document in serde_yaml::Deserializer::from_slice(&rendered.stdout) {
        let object: kube::api::DynamicObject = serde::Deserialize::deserialize(document).unwrap();
        let resource = match object.types.as_ref().unwrap().kind.as_str() {
            "ServiceAccount" => kube::api::ApiResource::erase::<ServiceAccount>(&()),
            "Role" => kube::api::ApiResource::erase::<Role>(&()),
            "RoleBinding" => kube::api::ApiResource::erase::<RoleBinding>(&()),
            other => panic!("{other} reaches beyond the namespaces that are watched"),
        };
        let api: Api<kube::api::DynamicObject> =
            Api::namespaced_with(client.clone(), &object.namespace().unwrap(), &resource);
        api.create(&PostParams::default(), &object).await.unwrap();
    }
    let mut config = server.config();
    let account =
        http::HeaderValue::from_static("system:serviceaccount:default:letterbox-operator");
    config.headers.push((http::HeaderName::from_static("impersonate-user"), account));
    Client::try_from(config).unwrap()
}

/// What an operator answers on `port` to `GET path`: status line, headers and body.
async fn ask(port: u16, path: &str) -> String {
    let ask = async {
        let mut stream = Env::real().net.connect("127.0.0.1", port).await?;
        stream
            .write_all(
                format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes(),
            )
            .await?;
        let mut said = String::new();
        stream.read_to_string(&mut said).await?;
        std::io::Result::Ok(said)
    };
    tokio::time::timeout(Duration::from_secs(5), ask)
        .await
        .ok()
        .and_then(Result::ok)
        .unwrap_or_default()
}

async fn waits_for_the_api_server_and_its_definitions(server: &mut Server, client: &Client) {
    let port = free_port().await;
    let lease = LeaseOptions {
        namespace: "default".into(),
        name: "patient".into(),
        identity: "patient".into(),
    };
    let options = Options {
        image: "letterbox:9".into(),
        namespaces: vec!["default".into()],
        listen: ("127.0.0.1".into(), port),
        lease: Some(lease),
    };
    let operator = tokio::spawn(controller::run(Env::real(), client.clone(), options));
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), "default");
    clusters
        .create(&PostParams::default(), &cluster_of("patient", "default", json!({})))
        .await
        .unwrap();
    let is_set_up = || async { sets.get_opt("patient-broker-0").await.unwrap().is_some() };
    server.until("the operator works", is_set_up).await;

    // An outage that outlasts the Lease.
    server.stop_api();
    server
        .until("/readyz says it", || async {
            ask(port, "/readyz").await.contains("the API server does not answer")
        })
        .await;
    server
        .until("it leads no more", || async {
            ask(port, "/metrics").await.contains("letterbox_operator_leader 0")
        })
        .await;
    assert!(!operator.is_finished(), "it waits");
    // `OUTAGE=170` makes it a long one.
    let outage = std::env::var("OUTAGE").ok().and_then(|seconds| seconds.parse().ok());
    tokio::time::sleep(Duration::from_secs(outage.unwrap_or(0))).await;
    server.start_api();
    server
        .until("the API server is back", || async {
            sets.list(&ListParams::default()).await.is_ok()
        })
        .await;
    let back = tokio::time::Instant::now();
    sets.delete("patient-broker-0", &DeleteParams::default()).await.unwrap();
    server.until("it goes on", is_set_up).await;
    println!("API server back after {outage:?} s: went on after {:?}", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(10), "it went on after {:?}", back.elapsed());

    // A definition that somebody deletes, for longer than the runtime's own attempts take to become
    // rare.
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions.delete("kafkatopics.letterbox.dev", &DeleteParams::default()).await.unwrap();
    let names_it = || async {
        ask(port, "/readyz")
            .await
            .contains("no CustomResourceDefinition kafkatopics.letterbox.dev;")
    };
    server.until("/readyz names it", names_it).await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    install(server, client).await;
    let back = tokio::time::Instant::now();
    let topics: Api<KafkaTopic> = Api::namespaced(client.clone(), "default");
    let topic: KafkaTopic = serde_json::from_value(json!({
        "apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaTopic", "metadata": {"name": "noticed"}, "spec": {"clusterRef": {"name": "patient"}},
    }))
    .unwrap();
    topics.create(&PostParams::default(), &topic).await.unwrap();
    server
        .until("a topic is looked at", || async {
            topics.get("noticed").await.unwrap().status.is_some()
        })
        .await;
    assert!(back.elapsed() < Duration::from_secs(5), "it was noticed after {:?}", back.elapsed());
    server
        .until("/readyz is well", || async {
            ask(port, "/readyz").await.starts_with("HTTP/1.1 200")
        })
        .await;
    operator.abort();
    topics.delete("noticed", &DeleteParams::default()).await.unwrap();
    clusters.delete("patient", &DeleteParams::default()).await.unwrap();
}

async fn a_second_release_leaves_the_definitions_to_the_first(server: &Server, client: &Client) {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/letterbox");
    let address = format!("https://127.0.0.1:{}", server.port);
    let try_helm = |arguments: &[&str]| {
        let mut command = Command::new(binary("helm"));
        command.args(arguments).args([
            "--kube-apiserver",
            &address,
            "--kube-token",
            TOKEN,
            "--kube-insecure-skip-tls-verify",
        ]);
        let output = command.output().unwrap();
        let (said, wrong) = (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        );
        (output.status.success(), said, wrong)
    };
    let helm = |arguments: &[&str]| {
        let (is_done, said, wrong) = try_helm(arguments);
        assert!(is_done, "{arguments:?}: {said}{wrong}");
        said
    };
    let chart = chart.to_str().unwrap();
    let definitions = |release: &str, namespace: &str| {
        helm(&["get", "manifest", release, "-n", namespace])
            .lines()
            .filter(|line| *line == "kind: CustomResourceDefinition")
            .count()
    };
    // Definitions that are there already belong to somebody else, and the notes tell how to take
    // them over.
    let notes = helm(&["install", "first", chart, "-n", "one", "--create-namespace"]);
    assert!(notes.contains("installed by another installation"), "{notes}");
    assert_eq!(definitions("first", "one"), 0);
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let taken = json!({"metadata": {
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": {"meta.helm.sh/release-name": "first", "meta.helm.sh/release-namespace": "one"},
    }});
    for crd in crds() {
        api.patch(&crd.name_any(), &PatchParams::default(), &Patch::Merge(&taken)).await.unwrap();
    }
    let notes = helm(&["upgrade", "first", chart, "-n", "one"]);
    assert!(
        !notes.contains("installed by") && notes.contains("in another namespace gets no"),
        "{notes}"
    );
    assert_eq!(definitions("first", "one"), 2);
    // The way back to a revision that brought the definitions, from one that did not.
    helm(&["upgrade", "first", chart, "-n", "one", "--set", "crds.install=false"]);
    assert_eq!(definitions("first", "one"), 0);
    let (is_done, _, wrong) = try_helm(&["rollback", "first", "2", "-n", "one"]);
    assert!(!is_done && wrong.contains("CustomResourceDefinition"), "{wrong}");
    helm(&["upgrade", "first", chart, "-n", "one", "--set", "crds.install=true"]);
    assert_eq!(definitions("first", "one"), 2);
    // An operator made this Lease before the chart did.
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let two = serde_json::from_value(json!({"metadata": {"name": "two"}})).unwrap();
    namespaces.create(&PostParams::default(), &two).await.unwrap();
    let older: Api<Lease> = Api::namespaced(client.clone(), "two");
    let lease = serde_json::from_value(json!({"metadata": {"name": "second-letterbox-operator"}}));
    older.create(&PostParams::default(), &lease.unwrap()).await.unwrap();
    let notes = helm(&["install", "second", chart, "-n", "two"]);
    assert!(notes.contains("installed by release first in namespace one"), "{notes}");
    assert_eq!((definitions("first", "one"), definitions("second", "two")), (2, 0));
    // What is removed leaves the definitions, and takes its Lease along.
    let leases: Api<Lease> = Api::namespaced(client.clone(), "one");
    assert!(leases.get_opt("first-letterbox-operator").await.unwrap().is_some());
    for (release, namespace) in [("second", "two"), ("first", "one")] {
        helm(&["uninstall", release, "-n", namespace]);
    }
    assert!(leases.get_opt("first-letterbox-operator").await.unwrap().is_none());
    assert!(older.get_opt("second-letterbox-operator").await.unwrap().is_none());
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 2);
}

async fn the_whole_operator_runs(server: &Server, client: &Client) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for name in ["doomed", "doomed-too"] {
        namespaces
            .create(
                &PostParams::default(),
                &serde_json::from_value(json!({"metadata": {"name": name}})).unwrap(),
            )
            .await
            .unwrap();
    }
    let own = with_the_charts_roles(server, client).await;
    let start = |identity: &str| {
        let options = Options {
            image: "letterbox:9".into(),
            namespaces: ["default", "doomed", "doomed-too"].map(String::from).to_vec(),
            listen: ("127.0.0.1".into(), 0),
            lease: Some(LeaseOptions {
                namespace: "default".into(),
                name: "letterbox-operator".into(),
                identity: identity.into(),
            }),
        };
        tokio::spawn(controller::run(Env::real(), own.clone(), options))
    };
    let leases: Api<Lease> = Api::namespaced(client.clone(), "default");
    let leads = async |identity: &str| {
        let lease = leases.get_opt("letterbox-operator").await.unwrap();
        lease.and_then(|lease| lease.spec?.holder_identity).as_deref() == Some(identity)
    };
    let first = start("a");
    server.until("the first replica leads", || leads("a")).await;
    let operator = start("b");
    let topics: Api<KafkaTopic> = Api::namespaced(client.clone(), "default");
    let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), "default");
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let topic: KafkaTopic = serde_json::from_value(json!({
        "apiVersion": "letterbox.dev/v1alpha1", "kind": "KafkaTopic", "metadata": {"name": "early"},
        "spec": {"clusterRef": {"name": "late"}, "deletionPolicy": "Delete"},
    }))
    .unwrap();
    topics.create(&PostParams::default(), &topic).await.unwrap();
    let says = |message: &'static str| {
        let topics = topics.clone();
        move || {
            let topics = topics.clone();
            async move {
                let status = topics.get("early").await.unwrap().status.unwrap_or_default();
                let is_it = |reason: &str, says: &str| {
                    reason == "WaitingForCluster" && says.contains(message)
                };
                let waits = status.waits.first();
                let in_waits = waits.is_some_and(|wait| {
                    is_it(&wait.reason, &wait.message) && wait.subject == "KafkaCluster late"
                });
                find_condition(&status.conditions, READY)
                    .is_some_and(|ready| is_it(&ready.reason, &ready.message) && in_waits)
            }
        }
    };
    server
        .until("the topic waits for a cluster that is not there", says("there is no KafkaCluster"))
        .await;
    clusters
        .create(&PostParams::default(), &cluster_of("late", "default", json!({})))
        .await
        .unwrap();
    server
        .until("the cluster's set is made", || async {
            sets.get_opt("late-broker-0").await.unwrap().is_some()
        })
        .await;
    server.until("the topic says what its cluster waits for", says("cluster not ready")).await;
    // Drift is noticed by the watch, long before the next look at everything.
    sets.patch(
        "late-broker-0",
        &PatchParams::default(),
        &Patch::Merge(json!({"spec": {"replicas": 0}})),
    )
    .await
    .unwrap();
    server
        .until("drift is repaired", || async {
            sets.get("late-broker-0").await.unwrap().spec.unwrap().replicas == Some(1)
        })
        .await;
    // People are told, next to the object.
    let events: Api<Event> = Api::namespaced(client.clone(), "default");
    let told = async |kind: &str, reason: &str, type_: &str| {
        let events = events.list(&ListParams::default()).await.unwrap();
        events.items.iter().any(|event| {
            let about = event.regarding.as_ref().and_then(|object| object.kind.as_deref());
            let said = event.note.as_ref().is_some_and(|note| !note.is_empty());
            said && (about, event.reason.as_deref(), event.type_.as_deref())
                == (Some(kind), Some(reason), Some(type_))
        })
    };
    server
        .until("an event tells what was done", || told("KafkaCluster", "BrokerApplied", "Normal"))
        .await;
    server
        .until("an event tells what is waited for", || {
            told("KafkaTopic", "WaitingForCluster", "Normal")
        })
        .await;

    // Why Kubernetes does not make a pod is in an event about the set. Another cause is another
    // event about the cluster.
    let set = sets.get("late-broker-0").await.unwrap();
    let causes: Api<k8s_openapi::api::core::v1::Event> = Api::namespaced(client.clone(), "default");
    for (second, cause) in ["exceeded quota: small", "violates PodSecurity"].iter().enumerate() {
        let event = serde_json::from_value(json!({
            "metadata": {"name": format!("late-{second}")}, "type": "Warning", "reason": "FailedCreate",
            "message": format!("create Pod late-broker-0-0 in StatefulSet late-broker-0 failed \
                error: {cause}"),
            "lastTimestamp": format!("2026-01-01T00:00:0{second}Z"), "count": 1,
            "involvedObject": {"apiVersion": "apps/v1", "kind": "StatefulSet", "namespace": "default", "name": "late-broker-0", "uid": set.uid()},
        }))
        .unwrap();
        causes.create(&PostParams::default(), &event).await.unwrap();
        let is_told = || async {
            let status = clusters.get("late").await.unwrap().status.unwrap_or_default();
            let degraded = find_condition(&status.conditions, "Degraded")
                .map(|degraded| degraded.message.clone());
            let events = events.list(&ListParams::default()).await.unwrap();
            let about = |event: &Event| {
                event.regarding.as_ref().and_then(|object| object.kind.clone()).as_deref()
                    == Some("KafkaCluster")
            };
            let says = |event: &&Event| {
                about(event) && event.note.as_ref().is_some_and(|note| note.contains(cause))
            };
            degraded == Some(format!("broker 0 does not run: FailedCreate: {cause}"))
                && status.phase == "Broker failing"
                && status.waits.first().is_some_and(|wait| wait.subject == "broker 0")
                && events
                    .items
                    .iter()
                    .find(says)
                    .is_some_and(|event| event.reason.as_deref() == Some("BrokerFailing"))
        };
        server.until(cause, is_told).await;
    }

    // Somebody deletes the Lease of the namespace.
    let acts = async || {
        let lease = leases.get_opt("letterbox-operator-of-namespace").await.unwrap();
        lease.map(|lease| lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default())
    };
    assert_eq!(acts().await.as_deref(), Some("default/letterbox-operator"));
    leases.delete("letterbox-operator-of-namespace", &DeleteParams::default()).await.unwrap();
    server.until("it is there again", || async { acts().await.is_some() }).await;

    // One of two replicas acts. When it ends without a word, the other one takes over.
    assert!(leads("a").await && !operator.is_finished());
    first.abort();
    server.until("the second replica leads", || leads("b")).await;
    sets.delete("late-broker-0", &DeleteParams::default()).await.unwrap();
    server
        .until("and acts", || async { sets.get_opt("late-broker-0").await.unwrap().is_some() })
        .await;

    // The topic holds its object, and lets it go when the cluster goes.
    topics.delete("early", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(topics.get_opt("early").await.unwrap().is_some());
    clusters.delete("late", &DeleteParams::default()).await.unwrap();
    server
        .until("the topic's object is let go", || async {
            topics.get_opt("early").await.unwrap().is_none()
        })
        .await;
    assert!(!operator.is_finished());
    let (now, all) = (DeleteParams::default(), ListParams::default());
    assert_eq!(acts().await.as_deref(), Some("default/letterbox-operator"), "others are left");
    clusters.delete_collection(&now, &all).await.unwrap();
    topics.delete_collection(&now, &all).await.unwrap();
    server.until("the Lease goes with the last one", || async { acts().await.is_none() }).await;

    // A namespace that is being deleted is not held, whether the operator goes on or is stopped in
    // the same moment.
    for (name, stops) in [("doomed", false), ("doomed-too", true)] {
        let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), name);
        clusters
            .create(&PostParams::default(), &cluster_of("late", name, json!({})))
            .await
            .unwrap();
        let topics: Api<KafkaTopic> = Api::namespaced(client.clone(), name);
        topics.create(&PostParams::default(), &topic).await.unwrap();
        let is_held = || async { !topics.get("early").await.unwrap().finalizers().is_empty() };
        server.until("the topic is held", is_held).await;
        namespaces.delete(name, &DeleteParams::default()).await.unwrap();
        if stops {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
                .unwrap();
            break;
        }
        server.until("the topic is let go", || async { !is_held().await }).await;
    }
    tokio::time::timeout(Duration::from_secs(10), operator)
        .await
        .expect("it ends")
        .unwrap()
        .unwrap();
    let doomed: Api<KafkaTopic> = Api::namespaced(client.clone(), "doomed-too");
    assert!(doomed.get("early").await.unwrap().finalizers().is_empty());

    // A replica that stops in order gives the Lease back, and the next one leads at once.
    let began = tokio::time::Instant::now();
    let third = start("c");
    server.until("the third replica leads", || leads("c")).await;
    assert!(began.elapsed() < Duration::from_secs(2), "it leads after {:?}", began.elapsed());
    third.abort();
}

/// A quota refuses with the same code.
async fn only_a_lease_that_the_authorizer_refuses_is_done_without(
    server: &Server,
    client: &Client,
) {
    let groups = json!(["", "apps", "policy", "events.k8s.io", "letterbox.dev"]);
    for (name, groups) in [("lead", json!(["*"])), ("quota", json!(["*"])), ("no-right", groups)] {
        let namespace: Namespace =
            serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces.create(&PostParams::default(), &namespace).await.unwrap();
        let role: Role = serde_json::from_value(json!({"metadata": {"name": "half"}, "rules": [
            {"apiGroups": groups, "resources": ["*"], "verbs": ["*"]},
        ]}))
        .unwrap();
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": {"name": "half"}, "subjects": [{"kind": "User", "name": "half", "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "half"},
        }))
        .unwrap();
        let roles: Api<Role> = Api::namespaced(client.clone(), name);
        roles.create(&PostParams::default(), &role).await.unwrap();
        let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), name);
        bindings.create(&PostParams::default(), &binding).await.unwrap();
    }
    // As the controller of quotas fills in its status.
    let hard = json!({"count/leases.coordination.k8s.io": "0"});
    let quota: ResourceQuota =
        serde_json::from_value(json!({"metadata": {"name": "small"}, "spec": {"hard": hard}}))
            .unwrap();
    let quotas: Api<ResourceQuota> = Api::namespaced(client.clone(), "quota");
    quotas.create(&PostParams::default(), &quota).await.unwrap();
    let status = Patch::Merge(json!({"status": {"hard": hard, "used": hard}}));
    quotas.patch_status("small", &PatchParams::default(), &status).await.unwrap();
    let leases: Api<Lease> = Api::namespaced(client.clone(), "quota");
    let refused = || async {
        let lease: Lease =
            serde_json::from_value(json!({"metadata": {"generateName": "a-"}})).unwrap();
        leases.create(&PostParams::default(), &lease).await.is_err()
    };
    server.until("the quota is known", refused).await;
    let mut config = server.config();
    let half = http::HeaderValue::from_static("half");
    config.headers.push((http::HeaderName::from_static("impersonate-user"), half));
    let options = Options {
        image: "letterbox:9".into(),
        namespaces: ["quota", "no-right"].map(String::from).to_vec(),
        listen: ("127.0.0.1".into(), 0),
        lease: Some(LeaseOptions {
            namespace: "lead".into(),
            name: "half".into(),
            identity: "half-0".into(),
        }),
    };
    let own = Client::try_from(config).unwrap();
    let operator = tokio::spawn(controller::run(Env::real(), own, options));
    for name in ["quota", "no-right"] {
        let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), name);
        let cluster = cluster_of("late", name, json!({}));
        clusters.create(&PostParams::default(), &cluster).await.unwrap();
    }
    let sets = |name: &str| -> Api<StatefulSet> { Api::namespaced(client.clone(), name) };
    let is_made = async |name: &str| sets(name).get_opt("late-broker-0").await.unwrap().is_some();
    server.until("it acts without a right to the Lease", || is_made("no-right")).await;
    let events: Api<Event> = Api::namespaced(client.clone(), "quota");
    let is_told = || async {
        let events = events.list(&ListParams::default()).await.unwrap();
        events.items.iter().any(|event| {
            let says = |note: &String| note.contains("exceeded quota: small");
            event.reason.as_deref() == Some("OperatorNotKnown") && event.note.iter().any(says)
        })
    };
    server.until("the words of the quota are told", is_told).await;
    assert!(!is_made("quota").await);
    operator.abort();
}
