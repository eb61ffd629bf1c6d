//! How keys, values and headers are shown: Kafka's deserializers by their class names.

use std::io::Write;

use uuid::Uuid;

use crate::failure::Failure;

/// A deserializer and the text of what it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// The bytes as they are.
    Raw,
    /// UTF-8; what is not is replaced as Java does ([`java_text`]).
    Text,
    /// Kafka's `Bytes`: what is not printable ASCII as `\xNN`.
    Escaped,
    Boolean,
    Short,
    Integer,
    Long,
    Float,
    Double,
    Uuid,
    Void,
}

impl Show {
    /// By its class, in full or the last part of it; raw without one.
    pub(crate) fn of(class: Option<&str>) -> Result<Self, Failure> {
        let Some(class) = class else { return Ok(Self::Raw) };
        Ok(match class.strip_prefix("org.apache.kafka.common.serialization.").unwrap_or(class) {
            "StringDeserializer" => Self::Text,
            "ByteArrayDeserializer" => Self::Raw,
            "BytesDeserializer" => Self::Escaped,
            "BooleanDeserializer" => Self::Boolean,
            "ShortDeserializer" => Self::Short,
            "IntegerDeserializer" => Self::Integer,
            "LongDeserializer" => Self::Long,
            "FloatDeserializer" => Self::Float,
            "DoubleDeserializer" => Self::Double,
            "UUIDDeserializer" => Self::Uuid,
            "VoidDeserializer" => Self::Void,
            _ => {
                let known = "String, ByteArray, Bytes, Boolean, Short, Integer, Long, Float, \
                    Double, UUID or Void";
                return Err(Failure::Stderr(format!(
                    "the deserializer {class} is not supported; use {known}"
                )));
            }
        })
    }

    /// Writes what `bytes` are.
    ///
    /// # Errors
    /// `InvalidData` when they are not of this type; the output's own.
    pub(crate) fn write(self, bytes: &[u8], out: &mut (dyn Write + Send)) -> std::io::Result<()> {
        let text = match self {
            Self::Raw => return out.write_all(bytes),
            Self::Escaped => return escaped(bytes, out),
            Self::Text => java_text(bytes),
            Self::Void => "null".to_owned(),
            Self::Boolean => match bytes {
                [0] => "false".to_owned(),
                [1] => "true".to_owned(),
                _ => {
                    return Err(invalid(
                        "Unexpected byte received by BooleanDeserializer".to_owned(),
                    ));
                }
            },
            Self::Short => i16::from_be_bytes(sized(bytes)?).to_string(),
            Self::Integer => i32::from_be_bytes(sized(bytes)?).to_string(),
            Self::Long => i64::from_be_bytes(sized(bytes)?).to_string(),
            Self::Float => {
                let number = f32::from_be_bytes(sized(bytes)?);
                java_number(f64::from(number), &format!("{:e}", number.abs()))
            }
            Self::Double => {
                let number = f64::from_be_bytes(sized(bytes)?);
                java_number(number, &format!("{:e}", number.abs()))
            }
            Self::Uuid => {
                let text = str::from_utf8(bytes).ok().and_then(|text| Uuid::try_parse(text).ok());
                text.ok_or_else(|| invalid("Error parsing data into UUID".to_owned()))?.to_string()
            }
        };
        out.write_all(text.as_bytes())
    }
}

fn invalid(why: String) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, why)
}

fn sized<const N: usize>(bytes: &[u8]) -> std::io::Result<[u8; N]> {
    bytes
        .try_into()
        .map_err(|_| invalid(format!("Size of data received by the deserializer is not {N}")))
}

/// The string that Java makes of `bytes`: U+FFFD stands for each part that is not UTF-8. Rust's own
/// differs for surrogates (0xED, 0xA0 to 0xBF, and one more byte): Java takes the three bytes for
/// one part, Rust for three.
pub(crate) fn java_text(bytes: &[u8]) -> String {
    let mut text = String::new();
    // Of a surrogate that has been replaced: how many bytes follow. They come one by one, each a
    // chunk without valid text.
    let mut rest_of_surrogate = 0;
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(chunk.valid());
        if !chunk.valid().is_empty() {
            rest_of_surrogate = 0;
        }
        match chunk.invalid() {
            [] => {}
            [0x80..=0xbf] if rest_of_surrogate > 0 => rest_of_surrogate -= 1,
            [0xed] => {
                let surrogate = chunks.peek().is_some_and(|next| {
                    next.valid().is_empty() && matches!(next.invalid(), [0xa0..=0xbf])
                });
                rest_of_surrogate = if surrogate { 2 } else { 0 };
                text.push(char::REPLACEMENT_CHARACTER);
            }
            _ => {
                rest_of_surrogate = 0;
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
    }
    text
}

fn escaped(bytes: &[u8], out: &mut (dyn Write + Send)) -> std::io::Result<()> {
    for byte in bytes {
        // Kafka leaves the backslash out of what it prints as it is.
        if (b' '..=b'~').contains(byte) && *byte != b'\\' {
            out.write_all(&[*byte])?
        } else {
            write!(out, "\\x{byte:02X}")?
        }
    }
    Ok(())
}

/// As Java prints a floating-point number, from its shortest digits in the form `1.25e10`.
fn java_number(number: f64, shortest: &str) -> String {
    let sign = if number.is_sign_negative() && !number.is_nan() { "-" } else { "" };
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return format!("{sign}Infinity");
    }
    let (digits, exponent) = shortest.split_once('e').unwrap_or((shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let digits = digits.replace('.', "");
    if number == 0.0 {
        return format!("{sign}0.0");
    }
    // Plain from 10^-3 up to below 10^7.
    if !(-3..7).contains(&exponent) {
        let (first, rest) = digits.split_at(1);
        return format!("{sign}{first}.{}E{exponent}", if rest.is_empty() { "0" } else { rest });
    }
    match usize::try_from(exponent) {
        Ok(exponent) => {
            let whole = format!("{digits:0<width$}", width = exponent + 1);
            let (whole, fraction) = whole.split_at(exponent + 1);
            format!("{sign}{whole}.{}", if fraction.is_empty() { "0" } else { fraction })
        }
        Err(_) => {
            let zeros = usize::try_from(-exponent - 1).unwrap_or(0);
            format!("{sign}0.{}{digits}", "0".repeat(zeros))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JAVA_TEXT: &str = "\u{fffd}a\u{fffd}b\u{fffd}\u{fffd}\u{fffd}\u{fffd}c\u{fffd}d\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}";

    fn shown(class: &str, bytes: &[u8]) -> Result<String, String> {
        let mut out = Vec::new();
        Show::of(Some(class)).unwrap().write(bytes, &mut out).map_err(|error| error.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn each_deserializer_shows_what_kafkas_makes_of_the_bytes() {
        for (class, bytes, expected) in [
            ("StringDeserializer", b"a\xc3\xa9".as_slice(), "aé"),
            // Java 17's new String(bytes, UTF_8) of the same bytes.
            ("StringDeserializer", b"\xffa\xed\xa0\x80b\xed\xb0\xc3\xed\xa0\x80\x80c\xf0\x90\x80d\xe0\x80\xf5\xc0\x80\xed", JAVA_TEXT),
            ("org.apache.kafka.common.serialization.LongDeserializer", &42i64.to_be_bytes(), "42"),
            ("IntegerDeserializer", &(-7i32).to_be_bytes(), "-7"),
            ("ShortDeserializer", &7i16.to_be_bytes(), "7"),
            ("BytesDeserializer", b"a b\\\0\xff~", "a b\\x5C\\x00\\xFF~"),
            ("BooleanDeserializer", &[1], "true"),
            ("VoidDeserializer", b"x", "null"),
            ("UUIDDeserializer", b"123e4567-e89b-12d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174000"),
            ("FloatDeserializer", &1.1f32.to_be_bytes(), "1.1"),
            ("DoubleDeserializer", &1.0f64.to_be_bytes(), "1.0"),
            ("DoubleDeserializer", &1234567.25f64.to_be_bytes(), "1234567.25"),
            ("DoubleDeserializer", &1e7f64.to_be_bytes(), "1.0E7"),
            ("DoubleDeserializer", &(-1.25e10f64).to_be_bytes(), "-1.25E10"),
            ("DoubleDeserializer", &0.001f64.to_be_bytes(), "0.001"),
            ("DoubleDeserializer", &0.00012f64.to_be_bytes(), "1.2E-4"),
            ("DoubleDeserializer", &(-0.0f64).to_be_bytes(), "-0.0"),
            ("DoubleDeserializer", &f64::NEG_INFINITY.to_be_bytes(), "-Infinity"),
            ("DoubleDeserializer", &f64::NAN.to_be_bytes(), "NaN"),
            ("DoubleDeserializer", &100.5f64.to_be_bytes(), "100.5"),
        ] {
            assert_eq!(shown(class, bytes), Ok(expected.to_owned()), "{class}");
        }
        assert!(shown("LongDeserializer", b"short").unwrap_err().contains("is not 8"));
        assert!(Show::of(Some("com.example.AvroDeserializer")).is_err());
    }
}
