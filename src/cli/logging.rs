//! Structured logs of a node, on standard output.

use std::fs::File;
use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use super::log_writer::{LogEnd, LogWriter};
use crate::config::{Config, LogFormat, wrong};
use crate::consensus::runtime::QUIET;
use crate::model::error::{Code, Error};

/// Starts logging as configured. Once a process. What is returned ends it: keep it as long as there is something to log.
pub(super) fn start(config: &Config) -> Result<LogEnd, Error> {
    let invalid = |error: String| wrong("log_level", &error);
    let filter = EnvFilter::try_new(&config.log_level).map_err(|error| invalid(error.to_string()))?;
    let filter = filter.add_directive(QUIET.parse().map_err(|error: ParseError| invalid(error.to_string()))?);
    let started = standard_output().and_then(LogWriter::start);
    let (log, end) = started.map_err(|e| Error::new(Code::Internal, format!("the log cannot be started: {e}")))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        .with_writer(move || log.clone());
    let started = match config.log_format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => builder.try_init(),
    };
    // A second start keeps the first one's settings: only tests do that.
    let _ = started;
    Ok(end)
}

/// Standard output without the buffer in between, which would keep what could not be written.
#[cfg(unix)]
fn standard_output() -> io::Result<File> {
    use std::os::fd::AsFd;
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

#[cfg(not(unix))]
fn standard_output() -> io::Result<io::Stdout> {
    Ok(io::stdout())
}
