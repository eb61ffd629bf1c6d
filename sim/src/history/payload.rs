//! The content of a test record: what it is and where it belongs, with a checksum, as one line of
//! text.
//!
//! `lb1 VALUE TOPIC PARTITION [PADDING] CRC`, the CRC-32 (zlib's) of everything before it in eight
//! hexadecimal digits, so that a client in any language can write and read it. Padding is any
//! number of dots: it makes records that span sectors and pages.

/// What is wrong with a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Not of the stated form, or the checksum differs.
    Corrupt,
    /// A whole payload of another partition.
    Misplaced,
}

/// The payload of `value` for a partition.
#[must_use]
pub fn encode(value: u64, topic: &str, partition: i32) -> String {
    padded(value, topic, partition, 0)
}

/// As [`encode`], with `padding` dots.
#[must_use]
pub fn padded(value: u64, topic: &str, partition: i32, padding: usize) -> String {
    let space = if padding > 0 { " " } else { "" };
    let text = format!("lb1 {value} {topic} {partition} {}{space}", ".".repeat(padding));
    let crc = crc32(text.as_bytes());
    format!("{text}{crc:08x}")
}

/// The value in `payload`, which was read from a partition.
///
/// # Errors
/// [`Damage`] when it is not one that was sent to this partition.
pub fn decode(payload: &str, topic: &str, partition: i32) -> Result<u64, Damage> {
    let (text, crc) =
        payload.split_at_checked(payload.len().saturating_sub(8)).ok_or(Damage::Corrupt)?;
    if u32::from_str_radix(crc, 16) != Ok(crc32(text.as_bytes())) {
        return Err(Damage::Corrupt);
    }
    let parts: Vec<&str> = text.split_ascii_whitespace().collect();
    let (&["lb1", value, in_topic, in_partition] | &["lb1", value, in_topic, in_partition, _]) =
        parts.as_slice()
    else {
        return Err(Damage::Corrupt);
    };
    if in_topic != topic || in_partition.parse() != Ok(partition) {
        return Err(Damage::Misplaced);
    }
    value.parse().map_err(|_| Damage::Corrupt)
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc = (crc >> 8) ^ CRC_TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)];
    }
    !crc
}

const CRC_TABLE: [u32; 256] = crate::check::segment::crc_table(0xEDB8_8320);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_zlibs() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn payload_is_found_again_only_where_it_belongs_and_whole() {
        let long = padded(8 << 40, "orders", 3, 5000);
        assert_eq!((decode(&long, "orders", 3), long.len() > 5000), (Ok(8 << 40), true));
        assert_eq!(decode(&long.replace("....", "..."), "orders", 3), Err(Damage::Corrupt));
        let payload = encode(7 << 40, "orders", 3);
        assert_eq!(decode(&payload, "orders", 3), Ok(7 << 40));
        assert_eq!(decode(&payload, "orders", 2), Err(Damage::Misplaced));
        assert_eq!(decode(&payload, "other", 3), Err(Damage::Misplaced));
        for at in 0..payload.len() {
            let mut bytes = payload.clone().into_bytes();
            bytes[at] ^= 1;
            let changed = String::from_utf8(bytes).unwrap();
            assert_eq!(decode(&changed, "orders", 3), Err(Damage::Corrupt), "{changed}");
            assert_eq!(decode(&payload[..at], "orders", 3), Err(Damage::Corrupt));
        }
    }
}
