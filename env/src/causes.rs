//! An error with its causes, in one line for a person.

use std::error::Error;

/// The text of `error` and of each cause behind it, from the outermost in: `open the metadata:
/// metadata log /data/x.log: cannot be read or written: Permission denied (os error 13)`.
///
/// Nothing is said twice: an error of a library may have the text of its cause in its own.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::io;

    use super::*;

    #[derive(Debug)]
    struct Failed(&'static str, Option<Box<dyn Error + 'static>>);

    impl fmt::Display for Failed {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Failed {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref()
        }
    }

    #[test]
    fn each_cause_is_said_once() {
        let full = || Some(io::Error::other("no space").into());
        let open = |text, cause| Failed("open the logs", Some(Failed(text, cause).into()));
        for (error, expected) in [
            (open("create /data", full()), "open the logs: create /data: no space"),
            (open("create /data: no space", full()), "open the logs: create /data: no space"),
            (open("create /data", None), "open the logs: create /data"),
        ] {
            assert_eq!(with_causes(&error), expected);
        }
    }
}
