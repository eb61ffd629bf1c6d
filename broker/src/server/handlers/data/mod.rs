//! Records: appending, reading, finding and deleting them, and who produces them.

pub(in crate::server) mod consumer_fetch;
pub(in crate::server) mod delete_records;
pub(in crate::server) mod fetch;
pub(in crate::server) mod init_producer_id;
pub(in crate::server) mod list_offsets;
pub(in crate::server) mod offset_for_leader_epoch;
pub(in crate::server) mod produce;
pub(in crate::server) mod producers;
pub(in crate::server) mod replica_fetch;
mod session;

use super::{Errors, SETTLE_MAX, Services, errors, text};
