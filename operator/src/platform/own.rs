//! What the operator writes to its own objects, `KafkaCluster`s and `KafkaTopic`s: finalizers, by
//! metadata alone, and status, over the version that it was computed from.

use kube::api::{Api, ApiResource, DynamicObject, ObjectMeta, Patch, PatchParams};
use kube::{Client, Resource};
use serde_json::{Value, json};

use super::kubernetes::api_fault;
use crate::desired::objects::MANAGER;
use crate::status::Fault;

/// The reason of a status that could not be written.
pub(crate) const STATUS_NOT_WRITTEN: &str = "StatusNotWritten";
/// How the words about it end where the API server does not take what it says.
pub(crate) const MAY_BE_OLDER: &str =
    "the CustomResourceDefinition of the object may be older than the operator";

/// One of them, as it was when it was looked at.
pub(crate) struct Own {
    api: Api<DynamicObject>,
    resource: ApiResource,
    name: String,
    uid: Option<String>,
    version: Option<String>,
}

impl Own {
    /// `object`.
    pub(crate) fn of<K: Resource<DynamicType = ()>>(client: &Client, object: &K) -> Self {
        Self::named(client, ApiResource::erase::<K>(&()), object.meta())
    }

    /// The object of this kind with this name, uid and version.
    pub(crate) fn named(client: &Client, resource: ApiResource, metadata: &ObjectMeta) -> Self {
        let namespace = metadata.namespace.clone().unwrap_or_default();
        Self {
            api: Api::namespaced_with(client.clone(), &namespace, &resource),
            resource,
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone(),
            version: metadata.resource_version.clone(),
        }
    }

    /// Adds or removes a finalizer, also of an object that this version cannot read. From a live
    /// read, and with its version: other controllers' finalizers must not be lost.
    ///
    /// Answers with the version that the object has now, if that alone was changed since it was
    /// looked at.
    pub(crate) async fn set_finalizer(
        &self,
        finalizer: &str,
        present: bool,
    ) -> Result<Option<String>, Fault> {
        let tell = |error: kube::Error| api_fault("change the finalizers", &error);
        let live = self.api.get_metadata_opt(&self.name).await.map_err(tell)?;
        let live = live.map(|live| live.metadata).filter(|live| live.uid == self.uid);
        let Some(live) = live else { return Ok(None) };
        let before = live.finalizers.unwrap_or_default();
        let mut finalizers: Vec<&str> =
            before.iter().map(String::as_str).filter(|each| *each != finalizer).collect();
        if present {
            finalizers.push(finalizer);
        }
        if finalizers == before {
            return Ok(None);
        }
        let patch = json!({"metadata": {
            "uid": live.uid, "resourceVersion": live.resource_version, "finalizers": finalizers,
        }});
        let params = PatchParams::default();
        match self.api.patch_metadata(&self.name, &params, &Patch::Merge(&patch)).await {
            Ok(now) if live.resource_version == self.version => Ok(now.metadata.resource_version),
            Ok(_) => Ok(None),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(tell(error)),
        }
    }

    /// Writes the status in the place of the one that it follows from, which `had_waits` or not:
    /// what another replica has recorded since is not taken back. Answers with the version that the
    /// object has then; `None` when it was not written, because the object has changed or is gone.
    ///
    /// # Errors
    /// With the reason [`STATUS_NOT_WRITTEN`].
    pub(crate) async fn write_status(
        &self,
        mut status: Value,
        had_waits: bool,
    ) -> Result<Option<String>, Fault> {
        // What a merge patch has written (`controller/passes.rs`) stays where an apply leaves the
        // field out.
        if had_waits && status.get("waits").is_none() {
            status["waits"] = json!([]);
        }
        let patch = json!({
            "apiVersion": self.resource.api_version, "kind": self.resource.kind,
            "metadata": {"name": self.name, "uid": self.uid, "resourceVersion": self.version},
            "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        match self.api.patch_status(&self.name, &params, &Patch::Apply(&patch)).await {
            Ok(now) => Ok(now.metadata.resource_version),
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(None),
            Err(error) => {
                let mut message = api_fault("write the status", &error).message;
                // It is refused for what it says, and will be.
                let is_lasting = |code: u16| code == 400 || code == 422;
                if matches!(&error, kube::Error::Api(it) if is_lasting(it.code))
                    || message.contains("field not declared in schema")
                {
                    message = format!("{message}; {MAY_BE_OLDER}");
                }
                Err(Fault { reason: STATUS_NOT_WRITTEN.to_owned(), message })
            }
        }
    }
}
