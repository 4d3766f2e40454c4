//! Structured logs of a node, on standard output.

use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat, wrong};
use crate::model::error::Error;

/// Starts logging as configured. Once a process.
pub fn start(config: &Config) -> Result<(), Error> {
    let filter = EnvFilter::try_new(&config.log_level).map_err(|e| wrong("log_level", &e.to_string()))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    let started = match config.log_format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => builder.with_ansi(false).try_init(),
    };
    // A second start keeps the first one's settings: only tests do that.
    let _ = started;
    Ok(())
}
