//! The cluster and its brokers: what they are, how they are configured, what they hold.

pub(in crate::server) mod api_versions;
pub(in crate::server) mod configs;
pub(in crate::server) mod features;
pub(in crate::server) mod log_dirs;
pub(in crate::server) mod metadata;
pub(in crate::server) mod quorum;
pub(in crate::server) mod unregister;
pub(in crate::server) mod voters;

use super::{Errors, Services, errors, message, of_controller, text, topic_name};
