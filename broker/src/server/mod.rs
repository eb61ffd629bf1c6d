//! What clients talk to: listeners, connections, the door that every request passes, a handler for
//! each API; and health over HTTP.
//!
//! The node builds the [`Services`] and says when listening begins and ends. Nothing but the node
//! uses this module.

pub(crate) mod admin_http;
mod budget;
mod changes;
mod connection;
mod context;
mod details;
mod dispatch;
mod errors;
mod gate;
mod handlers;
mod heavy;
mod in_flight;
mod incoming;
mod lines;
pub(crate) mod listener;
mod pace;
mod response;
mod services;
mod shown;
mod system;
#[cfg(test)]
mod tests;

pub(crate) use self::handlers::cluster::configs::Rules;
pub(crate) use self::services::Services;
pub(crate) use self::shown::Shown;
pub(crate) use self::system::descriptors_max;
