//! What an operator does with a cluster: break it, heal it, watch it being broken, and ask what this machine allows.
//!
//! - [`doctor`]: what this machine allows
//! - [`inject`], [`local`]: faults in a cluster of `tillsync dev`
//! - [`drill`], [`target`]: a play of [`steps`] under the load of [`tills`], on a cluster of this machine's or any other
//! - [`cluster`], [`monitor`], [`readback`]: a cluster as it looks from outside
//! - [`hooks`], [`shell`], [`ask`]: commands of the operator's own

use std::time::Duration;

mod ask;
mod cluster;
pub(crate) mod doctor;
pub(crate) mod drill;
mod embedded;
mod hooks;
pub(crate) mod inject;
mod local;
mod monitor;
mod play;
mod readback;
mod shell;
mod steps;
pub(crate) mod target;
mod tills;

/// How long a cluster may take to be well again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a command of this module.
fn block_on<T>(future: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("the async runtime cannot start: {error}"))?.block_on(future)
}

/// Resolves when someone asks this process to stop: Ctrl-C or SIGTERM.
async fn stop_signal() -> Result<(), String> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error: std::io::Error| format!("signals cannot be caught: {error}");
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
