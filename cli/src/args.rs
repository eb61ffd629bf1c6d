//! Options as Kafka's tools take them (jopt-simple): long names with one or two dashes, values
//! after a space or `=`, repeatable, no abbreviations. The other flavour, argparse4j, has the same
//! shape for the tools here.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::KAFKA_VERSION;
use crate::failure::Failure;

/// What follows an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Nothing.
    Nothing,
    /// A value; the text says what, as in `String: topic`. Given twice it is refused.
    Value(&'static str),
    /// A value, and the option may be repeated.
    Values(&'static str),
    /// Perhaps a value.
    Perhaps(&'static str),
    /// An option of Kafka's tool that is not supported here; in place of the help stands why.
    Refused,
}

/// An option: name, what follows, help.
pub type Spec = (&'static str, Takes, &'static str);

/// What a tool does when its word is given, as in `kafka-cluster cluster-id`: name, help, options
/// of its own. Without help it is one of Kafka's that is not supported here.
pub type Command = (&'static str, &'static str, &'static [Spec]);

/// The options every tool that connects has.
pub(crate) const STANDARD: [Spec; 4] = [
    (
        "bootstrap-server",
        Takes::Value("String: server to connect to"),
        "REQUIRED: The brokers to connect to first, as host:port,host:port.",
    ),
    (
        "command-config",
        Takes::Value("String: property file"),
        "Property file with client settings.",
    ),
    HELP,
    VERSION,
];
/// Why nobody asks a controller.
pub(crate) const CONTROLLERS: &str =
    "clients reach controllers through the brokers; use --bootstrap-server";
/// Why nothing is sent in a transaction.
pub(crate) const TRANSACTIONS: &str = "transactions (AddPartitionsToTxn, EndTxn, and \
    InitProducerId with a transactional id) are not offered by this version";
const HELP: Spec = ("help", Takes::Nothing, "Print usage information.");
const VERSION: Spec = ("version", Takes::Nothing, "Display Kafka version.");

/// The options of a tool and the sentence above them.
pub struct Grammar {
    about: &'static str,
    specs: Vec<Spec>,
    commands: &'static [Command],
    /// One letter for an option.
    shorts: &'static [(&'static str, &'static str)],
    /// Options that take all words up to the next option (argparse4j).
    many: Vec<&'static str>,
    /// How the tool says that an option has two values; `None`: the last one counts (argparse4j).
    refuse_repeated: Option<fn(String) -> Failure>,
}

/// What was given on the command line.
#[derive(Debug, Default)]
pub struct Parsed {
    given: BTreeMap<&'static str, Vec<Option<String>>>,
    command: Option<&'static str>,
    pub(crate) usage: String,
}

impl Grammar {
    /// A tool that connects to a cluster.
    pub(crate) fn new(about: &'static str, specs: &[Spec]) -> Self {
        Self::of(about, STANDARD.iter().chain(specs).copied().collect())
    }

    /// A tool that connects to nothing.
    #[must_use]
    pub fn local(about: &'static str, specs: &[Spec]) -> Self {
        Self::of(about, [HELP, VERSION].iter().chain(specs).copied().collect())
    }

    fn of(about: &'static str, mut specs: Vec<Spec>) -> Self {
        specs.sort_unstable_by_key(|(name, ..)| *name);
        Self {
            about,
            specs,
            commands: &[],
            shorts: &[],
            many: Vec::new(),
            refuse_repeated: Some(Failure::Stderr),
        }
    }

    /// Reads as argparse4j does: `many` take several words each, of an option that is repeated the
    /// last value counts, and `-h` asks for help.
    #[must_use]
    pub fn argparse(mut self, many: &[&'static str]) -> Self {
        self.many = many.to_vec();
        self.shorts = &[("h", "help")];
        self.refuse_repeated = None;
        self
    }

    /// One of `commands` must be given; options may stand before and after its word.
    #[must_use]
    pub fn commands(mut self, commands: &'static [Command]) -> Self {
        self.commands = commands;
        self
    }

    /// Letters for options: `-b` for `--bootstrap-server`. They take the place of argparse4j's
    /// `-h`.
    #[must_use]
    pub fn shorts(mut self, shorts: &'static [(&'static str, &'static str)]) -> Self {
        self.shorts = shorts;
        self
    }

    /// Says with `refuse`, and not with a line on stderr, that an option has two values.
    pub(crate) fn refuse_repeated(mut self, refuse: fn(String) -> Failure) -> Self {
        self.refuse_repeated = Some(refuse);
        self
    }

    /// Reads `args`; answers `--help` and `--version`.
    ///
    /// # Errors
    /// The answer, or what is wrong with the line, with the table of options.
    pub fn parse(&self, args: Vec<String>) -> Result<Parsed, Failure> {
        if args.is_empty() {
            return Err(Failure::Usage(self.about.to_owned(), self.usage(None)));
        }
        let mut command = None;
        let parsed = self
            .read(args, &mut command)
            .map_err(|line| Failure::Usage(line, self.usage(command)))?;
        if parsed.has("help") {
            return Err(Failure::Asked(format!("{}\n{}", self.about, parsed.usage)));
        }
        if parsed.has("version") {
            return Err(Failure::Asked(format!("{KAFKA_VERSION}\n")));
        }
        if !self.commands.is_empty() && command.is_none() {
            return Err(parsed.wrong("too few arguments"));
        }
        let single = self.known(command).filter(|(_, takes, _)| !matches!(takes, Takes::Values(_)));
        match (
            self.refuse_repeated,
            single.map(|(name, ..)| *name).find(|name| parsed.values(name).len() > 1),
        ) {
            (Some(refuse), Some(name)) => Err(refuse(two_values(name))),
            _ => Ok(parsed),
        }
    }

    /// The options that may be given together with `command`.
    fn known(&self, command: Option<Command>) -> impl Iterator<Item = &Spec> {
        self.specs.iter().chain(command.map_or(&[] as &[Spec], |(_, _, specs)| specs))
    }

    fn command(&self, word: &str) -> Result<Command, String> {
        match self.commands.iter().find(|(name, ..)| *name == word) {
            Some((name, "", _)) => {
                Err(format!("The command {name} is not supported by this tool yet."))
            }
            Some(command) => Ok(*command),
            None => {
                let names: Vec<String> = self
                    .commands
                    .iter()
                    .filter(|(_, help, _)| !help.is_empty())
                    .map(|(name, ..)| format!("'{name}'"))
                    .collect();
                Err(format!("invalid choice: '{word}' (choose from {})", names.join(", ")))
            }
        }
    }

    fn read(&self, args: Vec<String>, command: &mut Option<Command>) -> Result<Parsed, String> {
        let mut parsed = Parsed::default();
        let mut args = args.into_iter().peekable();
        while let Some(arg) = args.next() {
            let Some(name) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                if !self.commands.is_empty() && command.is_none() {
                    *command = Some(self.command(&arg)?);
                    continue;
                }
                // Kafka's tools pass over words that belong to no option; a mistake is better said.
                return Err(format!("unexpected argument {arg:?}: it belongs to no option"));
            };
            let (name, inline) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            let name = self
                .shorts
                .iter()
                .find(|(letter, _)| *letter == name)
                .map_or(name, |(_, long)| long);
            let Some((name, takes, help)) =
                self.known(*command).find(|(known, ..)| *known == name).copied()
            else {
                return Err(format!("{name} is not a recognized option"));
            };
            let value = match takes {
                Takes::Refused if help.is_empty() => {
                    return Err(format!("The option --{name} is not supported by this tool yet."));
                }
                Takes::Refused => {
                    return Err(format!("The option --{name} is not supported: {help}."));
                }
                Takes::Nothing if inline.is_some() => {
                    return Err(format!("Option {name} does not take an argument"));
                }
                Takes::Nothing => None,
                Takes::Value(_) | Takes::Values(_) => match inline.or_else(|| args.next()) {
                    Some(value) => Some(value),
                    None => return Err(format!("Option {name} requires an argument")),
                },
                Takes::Perhaps(_) => inline.or_else(|| args.next_if(|next| !next.starts_with('-'))),
            };
            parsed.given.entry(name).or_default().push(value);
            while self.many.contains(&name)
                && let Some(more) = args.next_if(|next| !next.starts_with('-'))
            {
                parsed.given.entry(name).or_default().push(Some(more));
            }
        }
        parsed.command = command.map(|(name, ..)| name);
        parsed.usage = self.usage(*command);
        Ok(parsed)
    }

    /// Two columns, only of what is supported.
    fn usage(&self, command: Option<Command>) -> String {
        let mut table = String::new();
        if command.is_none() && !self.commands.is_empty() {
            let offered = self.commands.iter().filter(|(_, help, _)| !help.is_empty());
            rows(&mut table, "Command", offered.map(|(name, help, _)| ((*name).to_owned(), *help)));
        }
        let mut specs: Vec<&Spec> = self.known(command).collect();
        specs.sort_unstable_by_key(|(name, ..)| *name);
        let entries = specs.into_iter().filter_map(|(name, takes, help)| {
            let short = self
                .shorts
                .iter()
                .find(|(_, long)| long == name)
                .map_or_else(String::new, |(letter, _)| format!("-{letter}, "));
            let entry = match takes {
                Takes::Nothing => format!("{short}--{name}"),
                Takes::Value(what) | Takes::Values(what) => format!("{short}--{name} <{what}>"),
                Takes::Perhaps(what) => format!("{short}--{name} [{what}]"),
                Takes::Refused => return None,
            };
            Some((entry, *help))
        });
        rows(&mut table, "Option", entries);
        table
    }
}

/// A table of two columns under a heading.
fn rows<'a>(table: &mut String, heading: &str, entries: impl Iterator<Item = (String, &'a str)>) {
    const LEFT: usize = 40;
    const RIGHT: usize = 40;
    // Writing to a string cannot fail.
    let _ = write!(
        table,
        "{heading:<LEFT$} Description\n{:<LEFT$} -----------\n",
        "-".repeat(heading.len())
    );
    for (entry, help) in entries {
        let (left, right) = (wrap(&entry, LEFT), wrap(help, RIGHT));
        for row in 0..left.len().max(right.len()) {
            let cell = |lines: &[String]| lines.get(row).cloned().unwrap_or_default();
            let line = format!("{:<LEFT$} {}", cell(&left), cell(&right));
            let _ = writeln!(table, "{}", line.trim_end());
        }
    }
}

/// The words of a list that commas separate, without blanks around them and without empty ones.
pub(crate) fn listed(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty())
}

/// What jopt-simple says when a tool asks for the value of an option that has two.
pub(crate) fn two_values(name: &str) -> String {
    format!("Found multiple arguments for option {name}, but you asked for only one")
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) => lines.push(format!("  {word}")),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

impl Parsed {
    /// Whether the option was given.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// The word of [`Grammar::commands`] that was given; empty for a tool without.
    #[must_use]
    pub fn command(&self) -> &'static str {
        self.command.unwrap_or_default()
    }

    /// The value; of an option that may have several the last.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        self.given.get(name)?.last()?.as_deref()
    }

    /// All values.
    #[must_use]
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.given.get(name).into_iter().flatten().filter_map(Option::as_deref).collect()
    }

    /// The value of the first of `names` that was given.
    pub(crate) fn first(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.value(name))
    }

    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Failure> {
        match self.value(name) {
            None => Ok(None),
            Some(text) => match text.trim().parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => {
                    Err(self.wrong(format!("Cannot parse argument '{text}' of option {name}")))
                }
            },
        }
    }

    /// Exactly one of `names` must be there; else `line`.
    pub(crate) fn exactly_one(
        &self,
        names: &[&'static str],
        line: &str,
    ) -> Result<&'static str, Failure> {
        let mut given = names.iter().filter(|name| self.has(name));
        match (given.next(), given.next()) {
            (Some(name), None) => Ok(name),
            _ => Err(self.wrong(line)),
        }
    }

    /// The value of an option that must be there.
    ///
    /// # Errors
    /// It is not there.
    pub fn required(&self, name: &str) -> Result<&str, Failure> {
        self.value(name)
            .ok_or_else(|| self.wrong(format!("Missing required argument \"[{name}]\"")))
    }

    /// `name`, when given, excludes each of `others`.
    pub(crate) fn excludes(&self, name: &str, others: &[&str]) -> Result<(), Failure> {
        match others.iter().find(|other| self.has(name) && self.has(other)) {
            Some(other) => {
                Err(self
                    .wrong(format!("Option \"[{name}]\" can't be used with option \"[{other}]\"")))
            }
            None => Ok(()),
        }
    }

    /// Of each pair only one may be given.
    pub(crate) fn not_together(&self, pairs: &[(&str, &str)]) -> Result<(), Failure> {
        match pairs.iter().find(|(one, other)| self.has(one) && self.has(other)) {
            Some((one, other)) => {
                Err(self
                    .wrong(format!("Options --{one} and --{other} cannot be specified together.")))
            }
            None => Ok(()),
        }
    }

    /// Says on `out`, each line with `word` in front, which of the given options are deprecated in
    /// favour of which.
    pub(crate) fn warn_deprecated(
        &self,
        word: &str,
        pairs: &[(&str, &str)],
        out: &mut (dyn std::io::Write + Send),
    ) -> std::io::Result<()> {
        for (old, new) in pairs.iter().filter(|(old, _)| self.has(old)) {
            writeln!(
                out,
                "{word} --{old} is deprecated and will be removed in a future version. Use --{new} \
                 instead."
            )?;
        }
        Ok(())
    }

    /// A complaint with the usage behind it.
    pub fn wrong(&self, line: impl Into<String>) -> Failure {
        Failure::Usage(line.into(), self.usage.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grammar() -> Grammar {
        let specs = [
            ("topic", Takes::Value("String: topic"), "A topic."),
            ("config", Takes::Values("String"), ""),
            ("list", Takes::Nothing, ""),
            ("state", Takes::Perhaps("String"), ""),
            ("old", Takes::Refused, ""),
            ("absent", Takes::Refused, "it needs what is not there"),
        ];
        Grammar::new("About.", &specs)
    }

    fn parse_with(grammar: &Grammar, args: &[&str]) -> Result<Parsed, Failure> {
        grammar.parse(args.iter().map(|arg| (*arg).to_owned()).collect())
    }

    fn parse(args: &[&str]) -> Result<Parsed, Failure> {
        parse_with(&grammar(), args)
    }

    #[test]
    fn one_or_two_dashes_and_space_or_equals_mean_the_same() {
        for args in [["--topic", "a"].as_slice(), &["-topic", "a"], &["--topic=a"], &["-topic=a"]] {
            assert_eq!(parse(args).unwrap().value("topic"), Some("a"), "{args:?}");
        }
        let parsed = parse(&["--state", "--list"]).unwrap();
        assert!(parsed.has("state") && parsed.has("list") && parsed.value("state").is_none());
        assert_eq!(parse(&["--state", "Empty"]).unwrap().value("state"), Some("Empty"));
    }

    #[test]
    fn only_what_may_be_repeated_has_several_values() {
        assert_eq!(parse(&["--config", "a", "--config=b"]).unwrap().values("config"), ["a", "b"]);
        assert!(parse(&["--list", "--list", "--state", "--state", "Empty"]).is_ok());
        for (args, name) in [
            (["--topic", "a", "--topic", "a"], "topic"),
            (["--state", "a", "-state", "b"], "state"),
        ] {
            let line =
                format!("Found multiple arguments for option {name}, but you asked for only one");
            assert!(matches!(parse(&args), Err(Failure::Stderr(said)) if said == line));
            let refusing = grammar().refuse_repeated(Failure::Stdout);
            assert!(
                matches!(parse_with(&refusing, &args), Err(Failure::Stdout(said)) if said == line)
            );
        }
        let last = parse_with(
            &grammar().argparse(&["config"]),
            &["--topic", "a", "--config", "x", "y", "--topic", "b"],
        )
        .unwrap();
        assert_eq!((last.value("topic"), last.values("config")), (Some("b"), vec!["x", "y"]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let line = |args: &[&str]| match parse(args) {
            Err(Failure::Usage(line, usage)) => {
                assert!(!usage.contains("--old") && usage.contains("--topic <String: topic>"));
                line
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(line(&["--foo"]), "foo is not a recognized option");
        assert_eq!(line(&["--top", "a"]), "top is not a recognized option");
        assert_eq!(line(&["--topic"]), "Option topic requires an argument");
        assert_eq!(line(&["--old", "1"]), "The option --old is not supported by this tool yet.");
        let absent = "The option --absent is not supported: it needs what is not there.";
        assert_eq!(line(&["--absent"]), absent);
        assert!(line(&["stray"]).contains("stray"));
        assert!(matches!(parse(&["--version"]), Err(Failure::Asked(text)) if text == "4.3.1\n"));
    }
}
