//! The syntax of Java's `.properties` files: brokers read `server.properties` and
//! `meta.properties`, clients read the files that `--command-config` and the like name.

/// A file that is not in the format: where, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: \"{text}\" {why}")]
pub struct SyntaxError {
    /// The line, counted from 1.
    pub line: usize,
    /// The key on it; empty when it is the file as a whole.
    pub text: String,
    /// What is wrong, as words that follow `text`.
    pub why: &'static str,
}

/// Reads `key=value` lines: `=`, `:` or blanks separate, `#` and `!` begin comments, a backslash at
/// the end of a line continues it, and backslash escapes (including `\uXXXX`) are resolved. A key
/// that is set twice keeps its last value. Blanks at the end of a value belong to it.
///
/// Bytes that are not UTF-8 are read as Latin-1, which Java takes every file for. A byte order mark
/// is skipped.
///
/// # Errors
/// A broken escape, or a file in UTF-16, with the line it is on.
///
/// Source: `java.util.Properties.load`.
pub fn parse_properties(bytes: impl AsRef<[u8]>) -> Result<Vec<(String, String)>, SyntaxError> {
    let bytes = bytes.as_ref();
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(SyntaxError {
            line: 1,
            text: String::new(),
            why: "is UTF-16; save the file as UTF-8",
        });
    }
    let bytes = bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(bytes);
    let text = str::from_utf8(bytes)
        .map_or_else(|_| bytes.iter().copied().map(char::from).collect(), str::to_owned);
    parse(&text)
}

fn parse(text: &str) -> Result<Vec<(String, String)>, SyntaxError> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut lines = natural_lines(text).enumerate();
    while let Some((index, first)) = lines.next() {
        let first = first.trim_start();
        if first.is_empty() || first.starts_with(['#', '!']) {
            continue;
        }
        let mut line = first.to_owned();
        while ends_in_open_backslash(&line) {
            line.pop();
            match lines.next() {
                Some((_, next)) => line.push_str(next.trim_start()),
                None => break,
            }
        }
        let (key, value) = split(&line);
        let at = |part| {
            unescape(part).map_err(|why| SyntaxError { line: index + 1, text: key.to_owned(), why })
        };
        let (key, value) = (at(key)?, at(value)?);
        pairs.retain(|(other, _)| *other != key);
        pairs.push((key, value));
    }
    Ok(pairs)
}

/// Lines that end in LF, CR or both.
fn natural_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

fn ends_in_open_backslash(line: &str) -> bool {
    line.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
}

fn split(line: &str) -> (&str, &str) {
    let mut escaped = false;
    for (at, c) in line.char_indices() {
        if !escaped && (c == '=' || c == ':' || c.is_whitespace()) {
            let (key, rest) = line.split_at(at);
            let rest = rest.trim_start();
            let rest = rest.strip_prefix(['=', ':']).unwrap_or(rest);
            return (key, rest.trim_start());
        }
        escaped = c == '\\' && !escaped;
    }
    (line, "")
}

fn unescape(text: &str) -> Result<String, &'static str> {
    const BROKEN: &str = "has \\u without four hexadecimal digits after it, or half a character; \
        write \\\\ for a backslash";
    // In the units of Java's strings: a character beyond the first 65,536 is written as two
    // escapes.
    let mut out: Vec<u16> = Vec::with_capacity(text.len());
    let mut chars = text.chars();
    let push = |out: &mut Vec<u16>, c: char| out.extend_from_slice(c.encode_utf16(&mut [0; 2]));
    while let Some(c) = chars.next() {
        if c != '\\' {
            push(&mut out, c);
            continue;
        }
        match chars.next() {
            Some('t') => push(&mut out, '\t'),
            Some('n') => push(&mut out, '\n'),
            Some('r') => push(&mut out, '\r'),
            Some('f') => push(&mut out, '\u{c}'),
            Some('u') => {
                let digits: String = chars.by_ref().take(4).collect();
                let is_hex =
                    digits.len() == 4 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                out.push(u16::from_str_radix(&digits, 16).ok().filter(|_| is_hex).ok_or(BROKEN)?);
            }
            Some(other) => push(&mut out, other),
            None => {}
        }
    }
    String::from_utf16(&out).map_err(|_| BROKEN)
}

/// Writes a key so that every reader of the format, Java's too, gets the same text back.
#[must_use]
pub fn escape_key(key: &str) -> String {
    escape(key, true)
}

/// Writes a value so that every reader of the format, Java's too, gets the same text back: no value
/// can end its line or begin another key.
#[must_use]
pub fn escape_value(value: &str) -> String {
    escape(value, false)
}

fn escape(text: &str, is_key: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for (index, unit) in text.encode_utf16().enumerate() {
        match char::from_u32(u32::from(unit)) {
            Some('\\') => escaped.push_str("\\\\"),
            Some('\n') => escaped.push_str("\\n"),
            Some('\r') => escaped.push_str("\\r"),
            Some('\t') => escaped.push_str("\\t"),
            Some('\u{c}') => escaped.push_str("\\f"),
            // Blanks before a value are not part of it.
            Some(' ') if is_key || index == 0 => escaped.push_str("\\ "),
            Some(c @ ('=' | ':')) if is_key => escaped.extend(['\\', c]),
            Some(c @ ('#' | '!')) if is_key && index == 0 => escaped.extend(['\\', c]),
            Some(c @ (' '..='~')) => escaped.push(c),
            _ => escaped.push_str(&format!("\\u{unit:04x}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::{escape_value, parse_properties};

    #[test]
    fn reads_what_java_reads() {
        let text = "# comment\n! comment\n\n a = 1 \nb:2\nc 3 \nlong=x,\\\n   \
            y\npath=C\\:\\\\tmp\nuni=\\u00e9\nempty\na=4\n";
        let pairs = parse_properties(text).unwrap();
        let expected = [
            ("b", "2"),
            ("c", "3 "),
            ("long", "x,y"),
            ("path", "C:\\tmp"),
            ("uni", "é"),
            ("empty", ""),
            ("a", "4"),
        ];
        assert_eq!(
            pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(),
            expected
        );
    }

    #[test]
    fn a_broken_escape_names_its_line() {
        for (text, line) in [
            ("a=1\nb=\\u12", "line 2"),
            ("#\r\n\r\na=\\uzzzz", "line 3"),
            ("a=\\ud83d", "line 1"),
            ("\rb=\\u+123", "line 2"),
        ] {
            let problem = parse_properties(text).unwrap_err().to_string();
            assert!(problem.contains(line), "{text}: {problem}");
        }
    }

    #[test]
    fn files_come_in_latin_1_in_utf_8_and_with_a_byte_order_mark() {
        for (bytes, rack) in [
            (&b"broker.rack=z\xfcrich"[..], "zürich"),
            (&b"# caf\xe9\nbroker.rack=a"[..], "a"),
            ("broker.rack=zürich".as_bytes(), "zürich"),
            (b"\xef\xbb\xbfbroker.rack=a", "a"),
            (b"x=1\rbroker.rack=a\r", "a"),
            (b"broker.rack=\\ud83d\\udce8", "📨"),
        ] {
            let pairs = parse_properties(bytes).unwrap();
            assert_eq!(pairs.last(), Some(&("broker.rack".to_owned(), rack.to_owned())));
        }
        let problem = parse_properties(b"\xff\xfea\0=\0").unwrap_err().to_string();
        assert!(problem.contains("line 1") && problem.contains("UTF-16"), "{problem}");
    }

    #[test]
    fn what_is_written_is_read_again() {
        for value in [
            "plain",
            "two words",
            " ends ",
            "a=b:c#d!e",
            "C:\\tmp",
            "line\nbreak\ttab",
            "zürich 📨",
            "",
        ] {
            let escaped = escape_value(value);
            assert!(escaped.is_ascii(), "{escaped}");
            let pairs = parse_properties(format!("id={escaped}\n")).unwrap();
            assert_eq!(pairs, [("id".to_owned(), value.to_owned())]);
        }
    }
}
