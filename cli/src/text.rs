//! Text that several tools print alike.

use std::fmt::Display;

/// One after the other with commas between.
pub(crate) fn joined<T: Display>(all: impl IntoIterator<Item = T>) -> String {
    all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(",")
}
