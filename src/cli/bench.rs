//! `tillsync bench`: load on a cluster, with latencies that leave nothing out.
//!
//! Closed loop (the default): every client sends its next request when the last one is answered. Open loop
//! (`--rate`): requests are due at fixed times whatever the cluster does, and a latency counts from when its
//! request was due. One thread for all clients: the nodes need the other cores.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{CliResult, CommandError};
use crate::cli::target::TargetArgs;
use crate::client::link::ClientTransport;

mod clients;
mod failover;
mod fanout;
mod idle;
mod requests;
mod stats;
mod sync;

use stats::BenchLine;

#[derive(Subcommand, Debug)]
pub(crate) enum BenchCommand {
    /// Acknowledged `data_update`s
    Write(RequestArgs),
    /// Linearizable `data_request`s
    Read(RequestArgs),
    /// Deliveries of one sender's changes to many sessions
    Fanout(FanoutArgs),
    /// Sessions that do nothing
    Idle(IdleArgs),
    /// Full syncs of one device
    Sync(SyncArgs),
    /// The master's node killed, the master shut down, elections among many: on a cluster of its own
    Failover(failover::FailoverArgs),
}

/// What every kind of load has.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    #[command(flatten)]
    target: TargetArgs,
    /// How long to measure, seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// How long to run before measuring, seconds
    #[arg(long, default_value_t = 2)]
    warmup: u64,
    /// Write the results there as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RequestArgs {
    #[command(flatten)]
    common: Common,
    /// How many clients, a connection each; one run for each number
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,16,64", value_parser = clap::value_parser!(u32).range(1..))]
    clients: Vec<u32>,
    /// Bytes of a record's data
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(8..=262_144))]
    size: u32,
    /// Open loop: this many requests a second, all clients together
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Which broadcasts the clients hear
    #[arg(long, value_enum, default_value_t = Subscribe::None)]
    subscribe: Subscribe,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct FanoutArgs {
    #[command(flatten)]
    common: Common,
    /// How many sessions receive; one run for each number
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    clients: Vec<u32>,
    /// Bytes of a record's data
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(32..=262_144))]
    size: u32,
    /// Open loop: this many changes a second. Without it the sender keeps a few changes on their way
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Receivers on all nodes instead of the first only
    #[arg(long)]
    spread: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct IdleArgs {
    #[command(flatten)]
    common: Common,
    /// How many sessions; one run for each number
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    clients: Vec<u32>,
    #[arg(long, value_enum, default_value_t = ClientTransport::Ws)]
    transport: ClientTransport,
    /// Process ids of the nodes, to see what their memory grows by (Linux)
    #[arg(long = "pid", value_name = "PID", value_delimiter = ',')]
    pids: Vec<u32>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct SyncArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// How many records are synced; they are made first if they are not there
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    records: u32,
    /// Bytes of a record's data
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(8..=262_144))]
    size: u32,
    /// How often
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Write the results there as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subscribe {
    All,
    None,
}

/// When measuring begins and ends.
#[derive(Clone, Copy, Debug)]
struct Phases {
    begin: tokio::time::Instant,
    end: tokio::time::Instant,
}

impl Phases {
    fn from_now(common: &Common) -> Self {
        let begin = tokio::time::Instant::now() + Duration::from_secs(common.warmup);
        Self { begin, end: begin + Duration::from_secs(common.seconds) }
    }

    fn measured(&self, at: tokio::time::Instant) -> bool {
        at >= self.begin && at < self.end
    }
}

pub(crate) async fn execute(command: BenchCommand) -> CliResult {
    let (json, reports) = match &command {
        BenchCommand::Failover(args) => return failover::run(args).await,
        BenchCommand::Write(args) => (&args.common.json, requests::run(args, requests::BenchRequest::Write).await?),
        BenchCommand::Read(args) => (&args.common.json, requests::run(args, requests::BenchRequest::Read).await?),
        BenchCommand::Fanout(args) => (&args.common.json, fanout::run(args).await?),
        BenchCommand::Idle(args) => (&args.common.json, idle::run(args).await?),
        BenchCommand::Sync(args) => (&args.json, sync::run(args).await?),
    };
    if let Some(path) = json {
        let text = format!("{:#}\n", serde_json::Value::from_iter(reports.iter().map(BenchLine::json)));
        std::fs::write(path, text).map_err(|e| CommandError::new(format!("{}: {e}", path.display())))?;
    }
    Ok(())
}
