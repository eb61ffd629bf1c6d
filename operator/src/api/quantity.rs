//! Kubernetes quantities as numbers.

/// Bytes of a quantity such as `10Gi`, `500M`, `1e9` or `1.5Gi`; a fraction of a byte is rounded up. `None` when it is not one.
#[must_use]
pub fn bytes_of(quantity: &str) -> Option<u64> {
    let millis = millis_of(quantity)?;
    u64::try_from(millis.checked_add(999)? / 1000).ok()
}

/// Thousandths of a quantity (so `250m` of a CPU is 250). `None` when it is not a non-negative quantity.
#[must_use]
pub fn millis_of(quantity: &str) -> Option<u128> {
    let number_len = quantity.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at_checked(number_len)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || fraction.len() > 9 || whole.len() > 19 {
        return None;
    }
    let digits: u128 = format!("0{whole}{fraction}").parse().ok()?;
    let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    // Thousandths per unit of the suffix.
    let unit: u128 = match suffix {
        "m" => 1,
        "" => 1000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "P" => 1_000_000_000_000_000_000,
        "E" => 1_000_000_000_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        "Pi" => 1000 << 50,
        "Ei" => 1000 << 60,
        exponent => 1000u128.checked_mul(10u128.checked_pow(exponent.strip_prefix(['e', 'E'])?.parse::<u32>().ok()?)?)?,
    };
    Some(digits.checked_mul(unit)?.div_ceil(scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, bytes) in [
            ("10Gi", Some(10 << 30)),
            ("1.5Gi", Some(3 << 29)),
            ("1536Mi", Some(3 << 29)),
            ("500M", Some(500_000_000)),
            ("1e3", Some(1000)),
            ("1E", Some(1_000_000_000_000_000_000)),
            (".5k", Some(500)),
            ("100m", Some(1)),
            ("7", Some(7)),
            ("", None),
            ("Gi", None),
            ("-1", None),
            ("1.2.3", None),
            ("10 Gi", None),
            ("10GiB", None),
            ("1e99", None),
            ("99999999999999999999", None),
            ("9999999999999999999Ei", None),
            ("ä", None),
        ] {
            assert_eq!(bytes_of(text), bytes, "{text}");
        }
        assert_eq!(millis_of("250m"), Some(250));
    }
}
