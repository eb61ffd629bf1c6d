//! Logs: one event a line, as text or JSON, on standard output.

use std::io::IsTerminal;

use anyhow::Context;
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
    let level = options.level.as_deref().unwrap_or("info,openraft=error");
    let filter = EnvFilter::try_new(level).with_context(|| format!("--log-level {level}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    if options.json {
        builder.json().init();
    } else {
        builder.with_ansi(std::io::stdout().is_terminal()).init();
    }
    Ok(())
}
