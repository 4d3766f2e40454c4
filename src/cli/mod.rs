//! The commands of the `tillsync` binary: one file a command, no logic of the server.

use std::fmt;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::model::error::{Code, Error};

/// A line on standard output, with nothing in it that a terminal obeys: much of it is what devices sent. A reader that
/// went away is no reason to panic: `dev | head` goes on serving.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), "{}", crate::model::visible::escaped(&format!($($words)*)));
    }};
}

/// A line on standard error, by the same rule.
macro_rules! note {
    ($($words:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "{}", crate::model::visible::escaped(&format!($($words)*)));
    }};
}

mod access;
pub mod bench;
mod certs;
pub mod client;
mod cluster;
mod demo;
mod dev;
mod device;
mod health;
mod load;
mod local;
mod logging;
mod private;
pub mod serve;
mod sqlite;
mod token;
mod watch;

/// Keeps a store's devices in step on a small Raft cluster.
#[derive(Parser, Debug)]
#[command(name = "tillsync", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show on this machine, in a minute, what Tillsync does: five devices, three nodes, one of them killed
    Demo(demo::Args),
    /// Run a three-node cluster on this machine, with nothing to configure
    Dev(dev::Args),
    /// Run one node of a real cluster
    Serve(serve::Args),
    /// Send the lines of a CSV file as records; running it again sends only what is missing
    Load(load::Args),
    /// Write everything that a cluster keeps to a SQLite file of the documented schema
    Export(sqlite::export::Args),
    /// Take over a SQLite database of the documented schema into an empty cluster
    Import(sqlite::import::Args),
    /// Show the cluster's events as they happen
    Watch(watch::Args),
    /// Make the certificates of a cluster's nodes
    #[command(subcommand)]
    Certs(certs::Command),
    /// Ask one node whether it is there: exit code 0 or 1, for health checks
    Health(health::Args),
    /// Make tokens
    #[command(subcommand)]
    Token(token::Command),
    /// Look after a cluster
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// See who is there, let devices in and keep them out
    #[command(subcommand)]
    Device(device::Command),
    /// Set which class of tokens may read and write which table
    #[command(subcommand)]
    Access(access::Command),
    /// Measure a cluster under load
    #[command(subcommand)]
    Bench(bench::Command),
}

/// Why a command did not do what it was asked: one sentence and an exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub message: String,
    pub exit: u8,
}

pub type CliResult<T = ()> = Result<T, Failure>;

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), exit: 1 }
    }

    /// The command line or the configuration is wrong: exit code 2, as clap has it.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), exit: 2 }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = if error.code == Code::Configuration { 2 } else { 1 };
        Self { message: error.to_string(), exit }
    }
}

impl From<client::ClientError> for Failure {
    fn from(error: client::ClientError) -> Self {
        Self::new(error.to_string())
    }
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    // Certificates are for others to read; their keys have their mode by themselves.
    if !matches!(command, Command::Certs(_)) {
        private::by_default();
    }
    let result = match command {
        Command::Serve(args) => serve::execute(args),
        Command::Dev(args) => block_on(dev::execute(args)),
        Command::Demo(args) => block_on(demo::execute(args)),
        Command::Load(args) => block_on(load::execute(args)),
        Command::Export(args) => block_on(sqlite::export::execute(args)),
        Command::Import(args) => block_on(sqlite::import::execute(args)),
        Command::Watch(args) => block_on(watch::execute(args)),
        Command::Certs(command) => certs::execute(command),
        Command::Health(args) => block_on(health::execute(args)),
        Command::Token(command) => token::execute(command),
        Command::Cluster(command) => block_on(cluster::execute(command)),
        Command::Device(command) => block_on(device::execute(command)),
        Command::Access(command) => block_on(access::execute(command)),
        Command::Bench(command) => block_on(bench::execute(command)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            note!("error: {failure}");
            ExitCode::from(failure.exit)
        }
    }
}

/// The clients' runtime: one thread, since the nodes on the same machine need the others.
fn block_on<F: Future<Output = CliResult>>(future: F) -> CliResult {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("the async runtime cannot start: {e}")))?;
    runtime.block_on(future)
}

/// Resolves when someone asks this process to stop: Ctrl-C or SIGTERM.
async fn stop_signal() -> CliResult {
    let failed = |e: std::io::Error| Failure::new(format!("signals cannot be caught: {e}"));
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut term = signal(SignalKind::terminate()).map_err(failed)?;
        let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        Ok(())
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
