//! The first storage failure ends the node's use of its data: what the engine holds after an error is not known.

use std::io;
use std::sync::{Arc, OnceLock};

/// Shared by everything that works on one data folder.
#[derive(Clone, Debug, Default)]
pub(crate) struct Poison(Arc<OnceLock<(io::ErrorKind, String)>>);

impl Poison {
    /// Records the first failure; from now on every call fails.
    pub(crate) fn fail(&self, doing: &str, error: &dyn std::fmt::Display) -> io::Error {
        self.set(io::ErrorKind::Other, doing, error)
    }

    /// The same for what is kept and is not what was written: to open it again cannot help.
    pub(crate) fn damaged(&self, doing: &str, error: &dyn std::fmt::Display) -> io::Error {
        self.set(io::ErrorKind::InvalidData, doing, error)
    }

    /// Whichever of both the error is.
    pub(crate) fn failed(&self, doing: &str, error: &io::Error) -> io::Error {
        match error.kind() {
            io::ErrorKind::InvalidData => self.damaged(doing, error),
            _ => self.fail(doing, error),
        }
    }

    fn set(&self, kind: io::ErrorKind, doing: &str, error: &dyn std::fmt::Display) -> io::Error {
        let message = format!("{doing}: {error}");
        if self.0.set((kind, message.clone())).is_ok() {
            tracing::error!("storage failed, the node must stop: {message}");
        }
        io::Error::new(kind, message)
    }

    pub(crate) fn check(&self) -> io::Result<()> {
        match self.0.get() {
            None => Ok(()),
            Some((kind, message)) => Err(io::Error::new(*kind, format!("storage failed before: {message}"))),
        }
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.0.get().is_some()
    }
}

/// What a call after close answers.
pub(crate) fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "storage is closed")
}

/// The engine panics where it finds its own files impossible: that is an error like any other.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let first = text.and_then(|t| t.lines().next()).unwrap_or("no reason given");
        format!("the engine gave up ({first})")
    })
}
