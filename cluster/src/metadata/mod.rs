//! What the cluster knows about itself: an immutable [`MetadataImage`] that every reader shares.
//!
//! Nothing in here does I/O except [`identity`]. State changes in one way only: a
//! [`MetadataRecord`] that the quorum has committed is applied with [`apply`], which is pure and
//! deterministic, so that every voter and every replay of the log reaches the same image. What is
//! to be changed is decided, purely too, by the operations in [`decide`]; `crate::controller`
//! carries their records into the log.
//!
//! Refuses: to skip a record that it does not understand. See [`record`].

pub mod decide;
pub mod features;
pub mod identity;
pub mod record;

mod apply;
mod delta;
mod entry;
mod envelope;
mod error;
mod image;
mod lease;
mod removed;
mod shared_map;

pub use apply::{ApplyError, apply};
pub use delta::{MetadataDelta, PartitionChange, TopicChange};
pub use entry::{EntryError, Part, Text, Unfinished, cut};
pub use error::ApiError;
pub use image::{
    BrokerRegistration, ConfigResource, Configs, Election, Endpoint, MetadataImage, PartitionState,
    Secret, SecurityProtocol, Stamp, Topic,
};
pub use lease::RestartLease;
pub use record::MetadataRecord;
pub use removed::{RemovedTopics, RemovedTopicsRecord};
pub use shared_map::SharedMap;
