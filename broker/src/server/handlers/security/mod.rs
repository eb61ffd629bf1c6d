//! Who may do what, as administrators see and change it.

pub(in crate::server) mod acls;

use super::{Errors, errors};
