//! Which log lines are written, as `--log-level` and `LETTERBOX_LOG` say it.

use std::fmt;

use tracing_subscriber::filter::{LevelFilter, Targets};

/// A directive that is neither a level nor `module=level`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WrongDirective(String);

impl fmt::Display for WrongDirective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?}: must be off, error, warn, info, debug or trace, or module=level, separated by \
             commas",
            self.0
        )
    }
}

impl std::error::Error for WrongDirective {}

/// Reads a level, or levels by module, such as `info,letterbox_broker::server=debug`. The longest
/// module that fits decides; of two directives for one module the later.
///
/// # Errors
/// The first directive that is none. A misspelt level is not taken for a module's name.
pub fn log_filter(directives: &str) -> Result<Targets, WrongDirective> {
    directives.split(',').map(str::trim).filter(|each| !each.is_empty()).try_fold(
        Targets::new(),
        |filter, each| {
            let wrong = || WrongDirective(each.to_owned());
            let level = |word: &str| word.parse::<LevelFilter>().map_err(|_| wrong());
            match each.split_once('=') {
                None => Ok(filter.with_default(level(each)?)),
                Some((module, word)) if is_path(module) => {
                    Ok(filter.with_target(module, level(word)?))
                }
                Some(_) => Err(wrong()),
            }
        },
    )
}

fn is_path(module: &str) -> bool {
    let fits = |each: char| each.is_alphanumeric() || each == '_' || each == ':' || each == '-';
    !module.is_empty() && module.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::filter::LevelFilter;

    use super::log_filter;

    #[test]
    fn the_longest_module_that_fits_decides_and_of_two_for_one_the_later() {
        let filter = log_filter("kube=off, warn,,letterbox::a=debug,letterbox=error,kube=info");
        let filter = filter.unwrap();
        for (module, most) in [
            ("other", LevelFilter::WARN),
            ("letterbox::b", LevelFilter::ERROR),
            ("letterbox::a::c", LevelFilter::DEBUG),
            ("kube", LevelFilter::INFO),
        ] {
            for level in [
                tracing::Level::ERROR,
                tracing::Level::WARN,
                tracing::Level::INFO,
                tracing::Level::DEBUG,
                tracing::Level::TRACE,
            ] {
                assert_eq!(filter.would_enable(module, &level), level <= most, "{module} {level}");
            }
        }
    }

    #[test]
    fn a_directive_that_is_none_is_refused_by_name() {
        for (bad, named) in [
            ("debgu", "\"debgu\""),
            ("info,verbose", "\"verbose\""),
            ("kube=loud", "\"kube=loud\""),
            ("kube[span]=trace", "\"kube[span]=trace\""),
            ("=info", "\"=info\""),
        ] {
            let said = log_filter(bad).unwrap_err().to_string();
            assert!(said.starts_with(named), "{said}");
        }
        for good in ["info", "DEBUG", "off", "", "warn,letterbox_operator=debug"] {
            log_filter(good).unwrap();
        }
    }
}
