//! `tillsync serve`: one node.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{CliResult, CommandError, logging, private, stop_signal};
use crate::config::{Config, Layers};
use crate::limits;
use crate::model::error::{Code, Error};

mod backups;
pub(crate) mod descriptors;
mod keys;
mod node;
mod scrub;
mod slow_disk;
mod version;
mod waste;
mod watchdog;

use node::ServingNode;

#[derive(clap::Args, Debug)]
pub(crate) struct ServeArgs {
    /// The node's settings (see deploy/node.toml)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A setting over those of the file and of the environment; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Stop when standard input ends: a parent that dies takes its nodes with it
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

/// Reads the settings, then runs the node until it is asked to stop.
pub(crate) fn execute(args: ServeArgs) -> CliResult {
    let config = settings(&args)?;
    let _log = logging::start(&config)?;
    private::secure(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(limits::BLOCKING_THREADS)
        .thread_name("tillsync")
        .build()
        .map_err(|e| CommandError::new(format!("the async runtime cannot start: {e}")))?;
    // Among the runtime's own threads: one that only waits here would be woken, and put to sleep, for each of its turns.
    let running = runtime.spawn(run(config, args.stop_with_stdin));
    runtime.block_on(running).map_err(|e| CommandError::new(format!("the node ended: {e}")))?
}

fn settings(args: &ServeArgs) -> Result<Config, Error> {
    let mut layers = layers(args.config.as_deref(), &args.set)?;
    for (key, value) in [("log_format", &args.log_format), ("log_level", &args.log_level)] {
        if let Some(value) = value {
            layers.flag(key, value)?;
        }
    }
    Config::from_layers(&layers)
}

/// The settings of a node, as `serve` would have them.
pub(crate) fn node_settings(config: Option<&Path>, set: &[String]) -> Result<Config, Error> {
    Config::from_layers(&layers(config, set)?)
}

fn layers(config: Option<&Path>, set: &[String]) -> Result<Layers, Error> {
    let mut layers = Layers::default();
    if let Some(path) = config {
        let name = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|e| Error::new(Code::Configuration, format!("{name}: {e}")))?;
        layers.file(&name, &text)?;
    }
    layers.environment(|name| std::env::var(name).ok())?;
    for pair in set {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| Error::new(Code::Configuration, format!("--set {pair}: expected KEY=VALUE")))?;
        layers.flag(key, value)?;
    }
    Ok(layers)
}

/// Runs the node until it is asked to stop.
async fn run(config: Config, stop_with_stdin: bool) -> CliResult {
    #[cfg(unix)]
    take_hangups()?;
    watchdog::start(config.data_dir.clone(), config.flush_watchdog)?;
    // What elections have to wait for at least.
    let mut flush = Duration::ZERO;
    // When it started again for its files.
    let mut shrunk = None;
    let mut node = ServingNode::start(&config, flush).await?;
    let asked = async {
        tokio::select! {
            signal = stop_signal() => signal,
            () = stdin_end(), if stop_with_stdin => Ok(()),
        }
    };
    tokio::pin!(asked);
    let asked = loop {
        tokio::select! {
            asked = &mut asked => break asked,
            error = node.failed() => {
                tracing::error!(%error, "stopping");
                if let Err(why) = node.stop(false).await {
                    tracing::debug!(%why, "after that, the node did not stop in order");
                }
                return Err(error.into());
            }
            bytes = node.should_shrink(shrunk) => {
                shrunk = Some(Instant::now());
                let mb = bytes >> 20;
                tracing::info!(mb, "the engine's files are much larger than what is in them: starting again, which copies it");
                node.stop(true).await?;
                node = ServingNode::start(&config, flush).await?;
            }
            slower = node.has_outgrown_its_times() => {
                flush = slower;
                let flush_ms = flush.as_millis();
                tracing::warn!(flush_ms, "the disk takes too long for an election in the times of this start: starting again");
                node.stop(false).await?;
                // Each such start waits half as long again at least, up to a bound: there are few of them.
                node = ServingNode::start(&config, flush).await?;
            }
        }
    };
    tracing::info!("stopping");
    node.stop(true).await?;
    asked
}

/// A node outlives the terminal that it was started from, and a tool that rotates logs may tell it so.
#[cfg(unix)]
fn take_hangups() -> CliResult {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangups =
        signal(SignalKind::hangup()).map_err(|e| CommandError::new(format!("signals cannot be caught: {e}")))?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            tracing::info!(
                "hangup: nothing to read again, keys and certificates are followed, the log is standard output"
            );
        }
    });
    Ok(())
}

/// Resolves when standard input ends. A thread of its own reads it: such a read cannot be taken back.
async fn stdin_end() {
    let (ended, end) = oneshot::channel();
    std::thread::spawn(move || {
        let mut sink = [0; 64];
        while matches!(std::io::stdin().read(&mut sink), Ok(n) if n > 0) {}
        let _ = ended.send(());
    });
    let _ = end.await;
}
