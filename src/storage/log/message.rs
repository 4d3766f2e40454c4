//! What callers hand to the log's thread.

use std::io;

use bytes::Bytes;

use crate::ids::LogIndex;
use crate::storage::Durable;

/// A call on its way to the disk, and who is to be told.
pub(crate) struct Message {
    pub op: LogCommand,
    pub done: Option<Durable>,
    /// A new `committed`, of before the call.
    pub committed: Option<Option<Bytes>>,
}

pub(crate) enum LogCommand {
    /// `epoch`: how many truncations came before.
    Append {
        entries: Vec<(LogIndex, Bytes)>,
        epoch: u64,
    },
    Truncate {
        after: Option<LogIndex>,
    },
    Purge(Purge),
    Vote(Bytes),
    Close,
}

/// Entries up to `index` may go once the engine has the rows of write set `rows`.
pub(crate) struct Purge {
    pub index: LogIndex,
    pub mark: Bytes,
    pub rows: u64,
    /// No entry is left behind it.
    pub empties: bool,
}

impl Message {
    /// Answers with an error.
    pub(crate) fn fail(self, error: io::Error) {
        if let Some(done) = self.done {
            done(Err(error));
        }
    }

    /// Entries and bytes.
    pub(crate) fn weight(&self) -> (usize, usize) {
        match &self.op {
            LogCommand::Append { entries, .. } => (entries.len(), entries.iter().map(|(_, entry)| entry.len()).sum()),
            _ => (1, 0),
        }
    }
}
