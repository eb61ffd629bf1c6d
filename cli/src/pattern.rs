//! Topics chosen by pattern.

use letterbox_client::{METADATA_TOPIC, is_internal_topic};

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
    is_internal_topic(name) || name == METADATA_TOPIC
}

#[cfg(test)]
mod tests {
    use super::*;

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
