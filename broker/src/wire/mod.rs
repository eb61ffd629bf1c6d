//! (to come)

pub mod batch;
