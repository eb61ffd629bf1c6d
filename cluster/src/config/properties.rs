//! `server.properties` and `meta.properties`.

use letterbox_protocol::properties;

use super::Problem;

pub use properties::escape_value;

/// The settings in a file of Java's property format, without blanks at the end of values: Java
/// keeps them, but in the files of people they are a slip.
///
/// # Errors
/// As [`properties::parse_properties`].
pub fn parse_properties(bytes: impl AsRef<[u8]>) -> Result<Vec<(String, String)>, Problem> {
    let mut pairs = properties::parse_properties(bytes)?;
    for (_, value) in &mut pairs {
        value.truncate(value.trim_end().len());
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::parse_properties;

    #[test]
    fn blanks_at_the_end_of_a_value_are_left_out() {
        let pairs = parse_properties("a = b c \t\n").unwrap();
        assert_eq!(pairs, [("a".to_owned(), "b c".to_owned())]);
        let problem = parse_properties("a=1\nb=\\u12").unwrap_err();
        assert!(problem.key().is_none() && problem.to_string().contains("line 2"), "{problem}");
    }
}
