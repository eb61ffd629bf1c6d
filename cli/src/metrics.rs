//! The table that `--print-metrics` of the perf tools prints.

use std::io::Write;

/// One of Kafka's client metrics: group, name, value. Counts and rates print with three digits.
pub(crate) type Metric = (&'static str, &'static str, f64);

/// Prints `metrics` of the client called `client_id`.
pub(crate) fn print(
    client_id: &str,
    metrics: &[Metric],
    out: &mut (dyn Write + Send),
) -> std::io::Result<()> {
    let mut rows: Vec<(String, f64)> = metrics
        .iter()
        .map(|(group, name, value)| (format!("{group}:{name}:{{client-id={client_id}}}"), *value))
        .collect();
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    writeln!(out, "\n{:<width$}   Value", "Metric Name")?;
    for (name, value) in rows {
        writeln!(out, "{name:<width$} : {value:.3}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::print;

    #[test]
    fn metrics_are_a_table_sorted_by_name() {
        let mut out = Vec::new();
        print("c", &[("g", "long-name", 2.0), ("g", "b", 0.5)], &mut out).unwrap();
        let expected = "\nMetric Name                 Value\ng:b:{client-id=c}         : \
            0.500\ng:long-name:{client-id=c} : 2.000\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
