//! What to do next: pure functions of (desired, observed), giving ordered steps and the reason for
//! every wait.
//!
//! Level-driven: a plan is made from what is, never from which event came, so a restarted operator
//! makes the same one. Every step is safe to repeat.

mod access;
mod cluster;
mod loss;
mod memory;
mod roll;
mod safety;
mod step;
mod topic;
mod volumes;
mod wait;

pub use cluster::{Plan, plan_cluster};
pub use loss::Loss;
pub use memory::tell_their_directories;
pub use step::{Step, VolumesAtEnd};
pub use topic::{
    BrokerCount, ClusterState, RESTART_PATIENCE_SECONDS, Refusal, TopicFacts, TopicPlan, TopicStep,
    TopicWait, has_finalizer, plan_topic, put_together, to_make,
};
pub use wait::{Note, Wait};
