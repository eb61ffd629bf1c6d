//! Kubernetes quantities as numbers.

/// Bytes of a quantity such as `10Gi`, `500M`, `1e9` or `1.5Gi`; a fraction of a byte is rounded
/// up. `None` when it is not one.
#[must_use]
pub fn bytes_of(quantity: &str) -> Option<u64> {
    u64::try_from(nanos_of(quantity)?.div_ceil(NANOS)).ok()
}

/// `bytes` as a person reads them, for example `10Gi`, or `1.5Gi` where that is not exact.
#[must_use]
pub fn shown(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let (mut unit, mut whole, mut rest) = (0, bytes, 0);
    while whole >= 1024 && unit < UNITS.len() - 1 {
        (unit, whole, rest) = (unit + 1, whole / 1024, whole % 1024);
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if name.is_empty() {
        return format!("{bytes} bytes");
    }
    match rest * 10 / 1024 {
        0 => format!("{whole}{name}"),
        tenths => format!("{whole}.{tenths}{name}"),
    }
}

const NANOS: u128 = 1_000_000_000;

/// Billionths of a quantity (so `250m` of a CPU is 250 million), the finest that Kubernetes tells
/// apart; what is finer is rounded up. `None` when it is not a non-negative quantity.
#[must_use]
pub fn nanos_of(quantity: &str) -> Option<u128> {
    let quantity = quantity.strip_prefix('+').unwrap_or(quantity);
    let number_len =
        quantity.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at_checked(number_len)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty()
        || fraction.contains('.')
        || fraction.len() > 9
        || whole.len() > 19
    {
        return None;
    }
    let digits: u128 = format!("0{whole}{fraction}").parse().ok()?;
    // What divides the product of digits and unit.
    let mut scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    // Billionths per unit of the suffix.
    let unit: u128 = match suffix {
        "n" => 1,
        "u" => 1000,
        "m" => 1_000_000,
        "" => NANOS,
        "k" => NANOS * 1000,
        "M" => NANOS * 1_000_000,
        "G" => NANOS * 1_000_000_000,
        "T" => NANOS * 1_000_000_000_000,
        "P" => NANOS * 1_000_000_000_000_000,
        "E" => NANOS * 1_000_000_000_000_000_000,
        "Ki" => NANOS << 10,
        "Mi" => NANOS << 20,
        "Gi" => NANOS << 30,
        "Ti" => NANOS << 40,
        "Pi" => NANOS << 50,
        "Ei" => NANOS << 60,
        exponent => {
            let exponent: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10u128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 {
                scale = scale.checked_mul(power)?;
                NANOS
            } else {
                NANOS.checked_mul(power)?
            }
        }
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
            ("+20Gi", Some(20 << 30)),
            ("100u", Some(1)),
            ("2000000000n", Some(2)),
            ("5e+3", Some(5000)),
            ("5E-3", Some(1)),
            ("2500e-3", Some(3)),
            ("7.999999999Ei", Some(9_223_372_035_701_854_304)),
            ("", None),
            ("Gi", None),
            ("-1", None),
            ("++1", None),
            ("1e+-3", None),
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
        for (bytes, text) in [
            (7, "7 bytes"),
            (10 << 30, "10Gi"),
            (3 << 29, "1.5Gi"),
            ((5 << 30) + 7, "5Gi"),
            (u64::MAX, "15.9Ei"),
        ] {
            assert_eq!(shown(bytes), text);
        }
        assert_eq!(
            (nanos_of("250m"), nanos_of("100u"), nanos_of("3n")),
            (Some(250_000_000), Some(100_000), Some(3))
        );
    }
}
