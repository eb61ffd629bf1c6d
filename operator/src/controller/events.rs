//! Kubernetes Events.

use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};

/// Tells people what changed, next to the object that it concerns.
pub(crate) struct Events {
    recorder: Recorder,
}

impl Events {
    pub(crate) fn new(client: Client) -> Self {
        let reporter = Reporter { controller: "letterbox-operator".to_owned(), instance: std::env::var("POD_NAME").ok() };
        Self { recorder: Recorder::new(client, reporter) }
    }

    /// Says what was done or noticed. An event that cannot be written is logged and forgotten.
    pub(crate) async fn tell<K: Resource<DynamicType = ()>>(&self, object: &K, warning: bool, reason: &str, action: &str, note: &str) {
        let type_ = if warning { EventType::Warning } else { EventType::Normal };
        // The API server takes at most 1024 bytes.
        let end = (0..=note.len().min(1000)).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
        let note = note.get(..end).map(ToOwned::to_owned);
        let event = Event { type_, reason: reason.to_owned(), note, action: action.to_owned(), secondary: None };
        if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
            tracing::debug!(%error, reason, "an event was not written");
        }
    }
}
