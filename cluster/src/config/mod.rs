//! What an operator of a broker can set: `server.properties` with Kafka's names.
//!
//! [`keys`], [`topic`] and [`group`] are the tables (name, type, default, range, meaning) that
//! parsing, refusal, `DescribeConfigs` and `docs/configuration.md` are made from. [`Config`] is the
//! typed result, with what is set while the broker runs over it. A setting that nothing acts on is
//! a warning with a reason; refused is what would drop security or safety.

mod broker;
mod foreign;
pub mod group;
pub mod keys;
mod listener;
mod log;
mod properties;
#[cfg(test)]
mod reference;
mod table;
pub mod topic;

pub use broker::{Config, Entry, Roles, Source, Warning};
pub use keys::{Kind, Problem};
pub use listener::{Endpoint, Protocol};
pub use log::log_config;
pub use properties::{escape_value, parse_properties};

/// Why a configuration cannot be used: every problem found, not only the first.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<Problem>);
