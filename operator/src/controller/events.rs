//! Kubernetes Events.
//!
//! An event is named by what it says, so that another cause is another event, and the same one
//! again, even from a restarted operator, counts up. (The recorder of kube-rs takes events that
//! differ only in their note for one, and keeps the first note.)

use std::hash::{Hash as _, Hasher as _};

use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt as _};
use letterbox_env::Env;
use serde_json::json;

use crate::platform::kubernetes::api_fault;

const CONTROLLER: &str = "letterbox-operator";
/// So much of the object's name is in the event's, which has at most 253 characters.
const NAME_PART: usize = 200;

/// Tells people what changed, next to the object that it concerns.
pub(crate) struct Events {
    env: Env,
    client: Client,
    instance: String,
}

impl Events {
    pub(crate) fn new(env: Env, client: Client) -> Self {
        Self {
            env,
            client,
            instance: std::env::var("POD_NAME").unwrap_or_else(|_| CONTROLLER.to_owned()),
        }
    }

    /// Says what was done or noticed. An event that cannot be written is logged and forgotten.
    pub(crate) async fn tell<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        warning: bool,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        let type_ = if warning { "Warning" } else { "Normal" };
        // The API server takes at most 1024 bytes.
        let end =
            (0..=note.len().min(1000)).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
        let note = note.get(..end).unwrap_or_default();
        let mut hash = std::hash::DefaultHasher::new();
        (object.meta().uid.as_deref(), type_, reason, note).hash(&mut hash);
        let about: String = object.name_any().chars().take(NAME_PART).collect();
        let name = format!("{about}.{:016x}", hash.finish());
        let now = MicroTime(
            Timestamp::from_millisecond(self.env.clock.wall_ms()).unwrap_or(Timestamp::UNIX_EPOCH),
        );
        let event = json!({
            "metadata": {"name": name},
            "regarding": object.object_ref(&()),
            "type": type_, "reason": reason, "note": note, "action": action, "eventTime": now,
            "reportingController": CONTROLLER, "reportingInstance": self.instance,
        });
        if let Err(error) =
            self.write(&object.namespace().unwrap_or_default(), &name, event, &now).await
        {
            tracing::debug!(
                error = api_fault("write an event", &error).message,
                reason,
                "an event was not written"
            );
        }
    }

    async fn write(
        &self,
        namespace: &str,
        name: &str,
        event: serde_json::Value,
        now: &MicroTime,
    ) -> Result<(), kube::Error> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let event: Event = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
        match api.create(&PostParams::default(), &event).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                // It was said before, and not long ago: events are kept for an hour.
                let known = api.get(name).await?;
                let count = known.series.map_or(1, |series| series.count).saturating_add(1);
                let again = json!({"series": {"count": count, "lastObservedTime": now}, "reportingInstance": self.instance});
                api.patch(name, &PatchParams::default(), &Patch::Merge(&again)).await.map(drop)
            }
            result => result.map(drop),
        }
    }
}
