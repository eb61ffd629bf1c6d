//! Text that several tools print alike.

use std::fmt::Display;

/// One after the other with commas between.
pub(crate) fn joined<T: Display>(all: impl IntoIterator<Item = T>) -> String {
    all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(",")
}

/// A table as Java's tools print it: each column as wide as its longest cell, and a tab.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let line = |row: &[String; N]| -> String {
        row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}\t")).collect()
    };
    rows.iter().map(|row| format!("{}\n", line(row))).collect()
}
