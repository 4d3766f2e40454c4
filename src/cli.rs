//! The commands of the `tillsync` binary: one file a command, no logic of the server.

use std::fmt;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::backup::StoreError;
use crate::client::ClientError;
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
mod backup;
pub(crate) mod bench;
mod certs;
mod cluster;
mod demo;
mod dev;
mod device;
mod doctor;
mod health;
mod load;
mod local;
mod log_writer;
mod logging;
mod private;
mod recover;
mod restore;
pub(crate) mod serve;
mod sqlite;
pub mod target;
mod token;
mod waiting;
mod watch;

/// Keeps a store's devices in step on a small Raft cluster.
#[derive(Parser, Debug)]
#[command(name = "tillsync", version, propagate_version = true)]
struct TillsyncCli {
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Subcommand, Debug)]
enum CliCommand {
    /// Show on this machine, in a minute, what Tillsync does: five devices, three nodes, one of them killed
    Demo(demo::DemoArgs),
    /// Run a three-node cluster on this machine, with nothing to configure
    Dev(dev::DevArgs),
    /// Run one node of a real cluster
    Serve(serve::ServeArgs),
    /// Send the lines of a CSV file as records; running it again sends only what is missing
    Load(load::LoadArgs),
    /// Write everything that a cluster keeps to a SQLite file of the documented schema
    Export(sqlite::export::ExportArgs),
    /// Take over a SQLite database of the documented schema into an empty cluster
    Import(sqlite::import::ImportArgs),
    /// Write everything that a cluster keeps to one file, while it goes on; or prove that such a file can be restored
    Backup(backup::BackupArgs),
    /// Make a new cluster of one with everything that a backup holds
    Restore(restore::RestoreArgs),
    /// Go on with one stopped node's data when most of the nodes lost their disks
    Recover(recover::RecoverArgs),
    /// Show the cluster's events as they happen
    Watch(watch::WatchArgs),
    /// Make the certificates of a cluster's nodes
    #[command(subcommand)]
    Certs(certs::CertsCommand),
    /// Ask one node whether it is there: exit code 0 or 1, for health checks
    Health(health::HealthArgs),
    /// Look at this machine before it becomes a node: its disk, memory, clock, ports, keys and the way to the others
    Doctor(doctor::DoctorArgs),
    /// Make tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Look after a cluster
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// See who is there, let devices in and keep them out
    #[command(subcommand)]
    Device(device::DeviceCommand),
    /// Set which class of tokens may read and write which table
    #[command(subcommand)]
    Access(access::AccessCommand),
    /// Measure a cluster under load
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// Why a command did not do what it was asked: one sentence and an exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandError {
    pub message: String,
    pub exit: u8,
}

pub type CliResult<T = ()> = Result<T, CommandError>;

impl CommandError {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), exit: 1 }
    }

    /// The command line or the configuration is wrong: exit code 2, as clap has it.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), exit: 2 }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for CommandError {
    fn from(error: Error) -> Self {
        let exit = if error.code == Code::Configuration { 2 } else { 1 };
        Self { message: error.to_string(), exit }
    }
}

impl From<ClientError> for CommandError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Unusable(_) => Self::usage(error.to_string()),
            _ => Self::new(error.to_string()),
        }
    }
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unusable(why) => Self::usage(why),
            StoreError::Failed(why) => Self::new(why),
        }
    }
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let command = TillsyncCli::parse().command;
    // Certificates are for others to read; their keys have their mode by themselves.
    if !matches!(command, CliCommand::Certs(_)) {
        private::by_default();
    }
    let result = match command {
        CliCommand::Serve(args) => serve::execute(args),
        CliCommand::Dev(args) => block_on(dev::execute(args)),
        CliCommand::Demo(args) => block_on(demo::execute(args)),
        CliCommand::Load(args) => block_on(load::execute(args)),
        CliCommand::Export(args) => block_on(sqlite::export::execute(args)),
        CliCommand::Import(args) => block_on(sqlite::import::execute(args)),
        CliCommand::Backup(args) => block_on(backup::execute(args)),
        CliCommand::Restore(args) => block_on(restore::execute(args)),
        CliCommand::Recover(args) => block_on(recover::execute(args)),
        CliCommand::Watch(args) => block_on(watch::execute(args)),
        CliCommand::Certs(command) => certs::execute(command),
        CliCommand::Health(args) => block_on(health::execute(args)),
        CliCommand::Doctor(args) => block_on(doctor::execute(args)),
        CliCommand::Token(command) => token::execute(command),
        CliCommand::Cluster(command) => block_on(cluster::execute(command)),
        CliCommand::Device(command) => block_on(device::execute(command)),
        CliCommand::Access(command) => block_on(access::execute(command)),
        CliCommand::Bench(command) => block_on(bench::execute(command)),
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
        .map_err(|e| CommandError::new(format!("the async runtime cannot start: {e}")))?;
    runtime.block_on(future)
}

/// Resolves when someone asks this process to stop: Ctrl-C or SIGTERM.
async fn stop_signal() -> CliResult {
    let failed = |e: std::io::Error| CommandError::new(format!("signals cannot be caught: {e}"));
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
        super::TillsyncCli::command().debug_assert();
    }
}
