//! Names chosen by pattern, ids in Kafka's spelling.

use uuid::Uuid;

/// Kafka's spelling of a topic id: URL-safe base64 without padding.
pub(crate) fn base64(id: Uuid) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(22);
    for chunk in id.as_bytes().chunks(3) {
        let bits = chunk.iter().fold(0u32, |value, byte| (value << 8) | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for index in 0..=chunk.len() {
            let digit = usize::try_from((bits >> (18 - 6 * index)) & 63).unwrap_or(0);
            text.extend(ALPHABET.get(digit).map(|digit| char::from(*digit)));
        }
    }
    text
}

/// The inverse of [`base64`].
pub(crate) fn from_base64(text: &str) -> Option<Uuid> {
    let mut bits: u128 = 0;
    if text.len() != 22 {
        return None;
    }
    for (index, digit) in text.bytes().enumerate() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = if index == 21 {
            (bits << 2) | u128::from(value >> 4)
        } else {
            (bits << 6) | u128::from(value)
        };
    }
    Some(Uuid::from_u128(bits))
}

/// Topic patterns as Kafka's tools use them: Java regular expressions. Here: alternatives by `|` or
/// `,`, `.` for any character, `*`, `+` and `?` after one character, `.` or a class in `[]`.
/// Anything else is refused, not misread.
pub(crate) struct Pattern(Vec<Vec<(Atom, Repeat)>>);

#[derive(Debug)]
enum Atom {
    Any,
    Literal(char),
    Class { negated: bool, ranges: Vec<(char, char)> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    Once,
    Optional,
    Many,
    Some,
}

impl Pattern {
    /// Reads a pattern.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim().trim_matches(['"', '\'']);
        let text = text.strip_prefix('^').unwrap_or(text);
        let text = text.strip_suffix('$').unwrap_or(text);
        let mut alternatives = vec![Vec::new()];
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let atom = match c {
                '|' | ',' => {
                    alternatives.push(Vec::new());
                    continue;
                }
                ' ' => continue,
                '.' => Atom::Any,
                '\\' => Atom::Literal(
                    chars
                        .next()
                        .filter(|c| !c.is_alphanumeric())
                        .ok_or("an escape that is not supported")?,
                ),
                '[' => {
                    let negated = chars.next_if_eq(&'^').is_some();
                    let mut ranges = Vec::new();
                    loop {
                        match chars.next() {
                            None => return Err("an unclosed [".to_owned()),
                            Some(']') => break,
                            Some('\\' | '[' | '&') => {
                                return Err("a character class that is not supported".to_owned());
                            }
                            Some(low) => match chars
                                .next_if_eq(&'-')
                                .and_then(|_| chars.next_if(|c| *c != ']'))
                            {
                                Some(high) => ranges.push((low, high)),
                                None => ranges.push((low, low)),
                            },
                        }
                    }
                    Atom::Class { negated, ranges }
                }
                '(' | ')' | '{' | '}' | '*' | '+' | '?' | '^' | '$' | ']' => {
                    return Err(format!("'{c}' is not supported here"));
                }
                c => Atom::Literal(c),
            };
            let repeat = match chars.peek() {
                Some('*') => Repeat::Many,
                Some('+') => Repeat::Some,
                Some('?') => Repeat::Optional,
                _ => Repeat::Once,
            };
            if repeat != Repeat::Once {
                chars.next();
            }
            if let Some(last) = alternatives.last_mut() {
                last.push((atom, repeat));
            }
        }
        Ok(Self(alternatives))
    }

    /// Whether the whole of `name` fits.
    pub(crate) fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        self.0.iter().any(|atoms| fits(atoms, &name))
    }
}

/// Follows all places in the pattern at once, so that no pattern takes more than its length times
/// that of the name.
fn fits(atoms: &[(Atom, Repeat)], name: &[char]) -> bool {
    let close = |places: &mut Vec<bool>| {
        for (index, (_, repeat)) in atoms.iter().enumerate() {
            if places.get(index) == Some(&true)
                && matches!(repeat, Repeat::Optional | Repeat::Many)
                && let Some(next) = places.get_mut(index + 1)
            {
                *next = true;
            }
        }
    };
    let mut places = vec![false; atoms.len() + 1];
    places[0] = true;
    close(&mut places);
    for c in name {
        let mut next = vec![false; atoms.len() + 1];
        for (index, (atom, repeat)) in atoms.iter().enumerate() {
            let hit = match atom {
                Atom::Any => true,
                Atom::Literal(wanted) => wanted == c,
                Atom::Class { negated, ranges } => {
                    ranges.iter().any(|(low, high)| (low..=high).contains(&c)) != *negated
                }
            };
            if hit && places[index] {
                next[index + 1] = true;
                if matches!(repeat, Repeat::Many | Repeat::Some) {
                    next[index] = true;
                }
            }
        }
        close(&mut next);
        places = next;
    }
    places.last() == Some(&true)
}

/// Whether `name` is a topic of the broker's own.
pub(crate) fn is_internal(name: &str) -> bool {
    matches!(
        name,
        "__consumer_offsets" | "__transaction_state" | "__share_group_state" | "__cluster_metadata"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_spelt_as_kafka_spells_them() {
        let id = Uuid::from_u128(0x9de7_bc21_93df_4f8b_88f2_6721_783c_173f);
        assert_eq!(base64(id), "nee8IZPfT4uI8mcheDwXPw");
        assert_eq!(from_base64(&base64(id)), Some(id));
        assert_eq!(base64(Uuid::nil()), "AAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(from_base64("short"), None);
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, fits) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a.*", "abc", true),
            (".*", "", true),
            ("a|b", "b", true),
            ("x,y", "y", true),
            ("a.b", "a-b", true),
            ("a\\.b", "a-b", false),
            ("t-[0-9]+", "t-42", true),
            ("t-[0-9]+", "t-", false),
            ("[^_].*", "__consumer_offsets", false),
            ("ab?c", "ac", true),
            ("a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(name), fits, "{pattern} {name}");
        }
        assert!(Pattern::parse("(a)").is_err());
        assert!(Pattern::parse("*a").is_err());
    }
}
