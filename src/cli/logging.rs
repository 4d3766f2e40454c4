//! Structured logs of a node, on standard output.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat, wrong};
use crate::model::error::Error;
use crate::model::visible::escaped;

/// Starts logging as configured. Once a process.
pub fn start(config: &Config) -> Result<(), Error> {
    let filter = EnvFilter::try_new(&config.log_level).map_err(|e| wrong("log_level", &e.to_string()))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        .with_writer(|| Harmless(io::stdout()));
    let started = match config.log_format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => builder.try_init(),
    };
    // A second start keeps the first one's settings: only tests do that.
    let _ = started;
    Ok(())
}

/// Log lines quote what clients sent: a terminal that shows them must not obey it. Each write is whole lines of UTF-8.
struct Harmless<W>(W);

impl<W: Write> Write for Harmless<W> {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.0.write_all(escaped(&String::from_utf8_lossy(lines)).as_bytes())?;
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_holds_nothing_that_a_terminal_obeys() {
        let mut log = Harmless(Vec::new());
        log.write_all("a reason \u{9b}2J\u{202e}\n".as_bytes()).unwrap();
        assert_eq!(log.0, b"a reason \\u009b2J\\u202e\n");
    }
}
