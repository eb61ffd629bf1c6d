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
    use std::path::{Path, PathBuf};

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

    /// In two pieces, so that this file has none.
    const MARK: &str = concat!("#[", "error(");

    /// The variants of errors in `text` that repeat their cause: `with_causes` says it anyway.
    fn repeats(text: &str) -> Vec<String> {
        let variants = text.split(MARK).skip(1);
        let says_twice = |variant: &&str| {
            let (own, fields) = variant.split_once(")]").unwrap_or((variant, ""));
            let fields = fields.split("#[cfg(test)]").next().unwrap_or(fields);
            let is_cause = |at: usize| !fields[..at].contains("\n}");
            let has_cause =
                ["#[source]", "#[from]"].iter().any(|mark| fields.find(mark).is_some_and(is_cause));
            has_cause && (own.contains("{source") || own.contains("{0"))
        };
        variants.filter(says_twice).map(|variant| variant.lines().next().unwrap().into()).collect()
    }

    #[test]
    fn no_error_of_ours_repeats_its_cause() {
        let disk = crate::Env::real().disk;
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let crates = ["broker", "cli", "client", "env", "letterbox", "operator", "protocol"];
        let mut folders: Vec<PathBuf> = crates
            .iter()
            .chain(&["sim", "storage"])
            .map(|name| root.join(name).join("src"))
            .collect();
        let mut seen = 0;
        while let Some(folder) = folders.pop() {
            for entry in disk.list(&folder).unwrap() {
                let path = folder.join(&entry.name);
                match entry.is_dir {
                    true => folders.push(path),
                    false if entry.name.ends_with(".rs") => {
                        let text = String::from_utf8(disk.read(&path).unwrap()).unwrap();
                        seen += text.matches(MARK).count();
                        assert_eq!(repeats(&text), Vec::<String>::new(), "{}", path.display());
                    }
                    false => {}
                }
            }
        }
        assert!(seen > 100, "{seen}");
        let twice = format!("{MARK}\"a: {{0}}\")] A(#[source] E), {MARK}\"b\")] B(#[source] E)");
        assert_eq!(repeats(&twice).len(), 1);
    }
}
