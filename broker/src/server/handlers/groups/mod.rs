//! Groups and the offsets they commit: who coordinates, and the coordinator's answers.
//!
//! The coordinator (`crate::coordinator`) decides and answers; here is what a caller may ask it.

pub(in crate::server) mod admin;
pub(in crate::server) mod find;
pub(in crate::server) mod members;
pub(in crate::server) mod offsets;

use super::{Errors, Services, errors, text};
