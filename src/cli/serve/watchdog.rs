//! Ends the process when a call on its data folder does not come back.
//!
//! Nothing else would: the threads of the storage wait for each other inside the engine, and a stop in order waits for them.

use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::model::error::{Code, Error};
use crate::storage::flush;
use crate::storage::stalls::{self, StalledCall};

/// How long it may take to say why, where perhaps nobody takes what is said.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Watches from now on. A thread of its own: those of the runtime may all wait for the disk.
pub(super) fn start(data_dir: PathBuf, patience: Duration) -> Result<(), Error> {
    let step = (patience / 16).clamp(Duration::from_millis(50), Duration::from_secs(1));
    let watch = move || {
        let stalled = loop {
            std::thread::sleep(step);
            if let Some(longest) = flush::stalled(patience) {
                break longest;
            }
        };
        let (said, heard) = channel();
        std::thread::spawn(move || {
            say_why(&data_dir, &stalled, patience);
            let _ = said.send(());
        });
        let _ = heard.recv_timeout(LAST_WORDS);
        // The same as for a disk that failed.
        std::process::exit(1);
    };
    let started = std::thread::Builder::new().name("tillsync-watch".into()).spawn(watch);
    started.map(drop).map_err(|error| Error::new(Code::Internal, format!("no thread could be started: {error}")))
}

fn say_why(data_dir: &Path, stalled: &StalledCall, patience: Duration) {
    let (call, seconds) = (stalled.name(), stalled.lasting.as_secs());
    let cause = flush::failed().map_or_else(|error| format!("{error}: "), |()| String::new());
    let why = format!(
        "data folder {}: the node stopped by itself: {cause}{call} has not come back for {seconds} s; look at this disk, in \
         the system's log too, then start the node again",
        data_dir.display()
    );
    let error = Error::new(Code::Storage, why);
    tracing::error!(%error, "stopping");
    note!("error: {error}");
    // Those that wait for it, too.
    for stalled in stalls::longer_than(stalled.lasting.min(patience) / 2) {
        for line in stalls::trace(&stalled).lines() {
            tracing::error!("{line}");
        }
    }
}
