//! What an operator of a broker can set: `server.properties` with Kafka's names.
//!
//! [`keys`] and [`topic`] are the two tables (name, type, default, range, meaning) that parsing, refusal and
//! `DescribeConfigs` are made from. [`Config`] is the typed result. A key of
//! Kafka's that has no meaning here is accepted only with a reason that is logged at start; a key that
//! would promise something this version does not do is refused by name.

mod broker;
pub mod image_env;
pub mod keys;
mod listener;
mod log;
mod properties;
pub mod topic;

pub use broker::{Config, Entry, Roles};
pub use keys::{Kind, Problem};
pub use listener::{Endpoint, Protocol};
pub use log::log_config;
pub use properties::parse_properties;

/// Why a configuration cannot be used: every problem found, not only the first.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<Problem>);
