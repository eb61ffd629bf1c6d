//! Java's property files, as Kafka's tools take them.

use std::path::Path;

use letterbox_env::Env;

use crate::failure::Failure;

/// The settings in `file`, in their order.
pub(crate) fn read_properties(env: &Env, file: &str) -> Result<Vec<(String, String)>, Failure> {
    let bytes = env
        .disk
        .read(Path::new(file))
        .map_err(|error| Failure::Stderr(format!("cannot read {file}: {error}")))?;
    let text = String::from_utf8_lossy(&bytes);
    parse(text.trim_start_matches('\u{feff}'))
        .map_err(|line| Failure::Stderr(format!("{file}, line {line}: a broken \\u escape")))
}

/// `=`, `:` or blanks separate, `#` and `!` begin comments, a backslash at the end continues the
/// line, escapes are resolved. The number of a line that cannot be read. Source:
/// `java.util.Properties.load`.
fn parse(text: &str) -> Result<Vec<(String, String)>, usize> {
    let mut pairs = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let mut line = line.trim_start().to_owned();
        if line.is_empty() || line.starts_with(['#', '!']) {
            continue;
        }
        while line.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1 {
            line.pop();
            match lines.next() {
                Some((_, next)) => line.push_str(next.trim_start()),
                None => break,
            }
        }
        let mut chars = line.chars().peekable();
        let key =
            take(&mut chars, |c| c == '=' || c == ':' || c.is_whitespace()).ok_or(index + 1)?;
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next_if(|c| matches!(c, '=' | ':')).is_some() {
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
        }
        pairs.push((key, take(&mut chars, |_| false).ok_or(index + 1)?));
    }
    Ok(pairs)
}

/// Resolves escapes up to an unescaped character that `ends` it, which stays; `None` for a broken
/// one.
fn take(
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
    ends: impl Fn(char) -> bool,
) -> Option<String> {
    let mut taken = String::new();
    while let Some(c) = chars.next_if(|c| !ends(*c)) {
        if c != '\\' {
            taken.push(c);
            continue;
        }
        match chars.next() {
            Some('t') => taken.push('\t'),
            Some('n') => taken.push('\n'),
            Some('r') => taken.push('\r'),
            Some('f') => taken.push('\u{c}'),
            Some('u') => {
                let digits: String = chars.by_ref().take(4).collect();
                let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 4)?;
                taken.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            Some(other) => taken.push(other),
            None => {}
        }
    }
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn files_are_read_as_java_reads_them() {
        let text = "# c\n! c\n\n a = 1\nb:2\nc 3\nlong=x,\\\n   \
            y\npath=C\\:\\\\tmp\nuni=\\u00e9\nempty\nspace=a b \n";
        let pairs = parse(text).unwrap();
        let pairs: Vec<(&str, &str)> =
            pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let expected = [
            ("a", "1"),
            ("b", "2"),
            ("c", "3"),
            ("long", "x,y"),
            ("path", "C:\\tmp"),
            ("uni", "é"),
            ("empty", ""),
            ("space", "a b "),
        ];
        assert_eq!(pairs, expected);
        assert_eq!(parse("a=1\nb=\\u12"), Err(2));
    }
}
