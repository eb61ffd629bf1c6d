//! JSON as Kafka's tools print it: fields in a fixed order, so it is written by hand.

/// A string in quotes, with what must be escaped escaped.
pub(crate) fn text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A string in quotes, or null.
pub(crate) fn text_or_null(value: Option<&str>) -> String {
    value.map_or_else(|| "null".to_owned(), text)
}
