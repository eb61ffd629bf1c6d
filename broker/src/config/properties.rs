//! The syntax of Java's `.properties` files, as `server.properties` uses it.

use super::Problem;

/// Reads `key=value` lines: `=`, `:` or blanks separate, `#` and `!` begin comments, a backslash at the
/// end of a line continues it, and backslash escapes (including `\uXXXX`) are resolved. A key that is set twice keeps its last value.
///
/// # Errors
/// A broken escape, with the line it is on.
///
/// Source: `java.util.Properties.load`.
pub fn parse_properties(text: &str) -> Result<Vec<(String, String)>, Problem> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut lines = text.lines().enumerate();
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
        let at = |part| unescape(part).ok_or_else(|| Problem::Syntax { line: index + 1, text: line.clone() });
        let (key, value) = (at(key)?, at(value)?);
        pairs.retain(|(other, _)| *other != key);
        pairs.push((key, value.trim_end().to_owned()));
    }
    Ok(pairs)
}

fn ends_in_open_backslash(line: &str) -> bool {
    line.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
}

fn split(line: &str) -> (&str, &str) {
    let mut escaped = false;
    for (at, c) in line.char_indices() {
        if !escaped && (c == '=' || c == ':' || c.is_whitespace()) {
            let rest = line[at..].trim_start();
            let rest = rest.strip_prefix(['=', ':']).unwrap_or(rest);
            return (&line[..at], rest.trim_start());
        }
        escaped = c == '\\' && !escaped;
    }
    (line, "")
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('f') => out.push('\u{c}'),
            Some('u') => {
                let digits: String = chars.by_ref().take(4).collect();
                out.push(char::from_u32(u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 4)?)?);
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::parse_properties;

    #[test]
    fn reads_what_java_reads() {
        let text = "# comment\n! comment\n\n a = 1 \nb:2\nc 3\nlong=x,\\\n   y\npath=C\\:\\\\tmp\nuni=\\u00e9\nempty\na=4\n";
        let pairs = parse_properties(text).unwrap();
        let expected = [("b", "2"), ("c", "3"), ("long", "x,y"), ("path", "C:\\tmp"), ("uni", "é"), ("empty", ""), ("a", "4")];
        assert_eq!(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_broken_escape_names_its_line() {
        let problem = parse_properties("a=1\nb=\\u12").unwrap_err().to_string();
        assert!(problem.contains("line 2"), "{problem}");
    }
}
