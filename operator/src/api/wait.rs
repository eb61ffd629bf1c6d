//! What the status of an object says that is waited for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Something that is waited for, or that is wrong.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct WaitStatus {
    /// A CamelCase word for it, as in the reason of a condition.
    pub reason: String,

    /// What it is about, for example `broker 0` or `volume data of broker 0`.
    #[serde(default)]
    pub subject: String,

    /// What is waited for, or what is wrong and what to do about it.
    #[serde(default)]
    pub message: String,

    /// Since when there is this reason for this subject.
    pub since: Time,

    /// How far it is, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<WaitProgress>,

    /// When it ends if it goes on as fast as so far, where that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_completion: Option<Time>,
}

/// How far something is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct WaitProgress {
    /// So much of it is done.
    pub done: i64,

    /// So much there is to do altogether.
    pub total: i64,

    /// What is counted: `brokers`, `logs` or `partitions`.
    pub unit: String,
}
