//! Logs: one event a line, as text or JSON, on standard output; why the process ends, on standard
//! error.

use std::io::IsTerminal;

use anyhow::Context;
use letterbox_env::with_causes;
use tracing::error;
use tracing_subscriber::EnvFilter;

/// What `--log-format` and `--log-level` say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// JSON instead of text.
    pub(crate) json: bool,
    /// `info`, `debug`, or directives such as `info,letterbox_broker::server=debug`.
    pub(crate) level: Option<String>,
}

/// Starts logging.
///
/// # Errors
/// When the level cannot be read.
pub(crate) fn start(options: &Options) -> anyhow::Result<()> {
    // What ends openraft is said as why the broker cannot go on; the rest is a voter that is away.
    let level = options.level.as_deref().unwrap_or("info,openraft=off");
    let filter = EnvFilter::try_new(level).with_context(|| format!("--log-level {level}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    if options.json {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(std::io::stdout().is_terminal()).init();
    }
    Ok(())
}

/// Says why the process ends, as text or JSON, whatever the level and whether or not logging has
/// started.
pub(crate) fn say_refusal(error: &anyhow::Error, json: bool) {
    if json {
        let once = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_target(false)
            .with_writer(std::io::stderr)
            .finish();
        tracing::subscriber::with_default(once, || error!("{}", with_causes(error.as_ref())));
    } else {
        eprintln!("letterbox: {}", with_causes(error.as_ref()));
    }
}
