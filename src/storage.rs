//! All that knows sled: the Raft log, the rows of the state machine, snapshots, what makes them durable.
//!
//! Above this module nothing knows which engine holds the bytes: the traits of `api` have a sled implementation and an
//! in-memory twin for tests and simulation.
//!
//! - `open` puts the stores of a folder together, `scrub` reads all of it again later
//! - `folder`: what a data folder says of itself, and the marks beside the engine
//! - `engine`: sled, opened so that it is safe to use; what its keys and values look like
//! - `log`: the Raft log; `rows`: the rows of the state machine; `snapshot`: all rows in one file
//! - `durability`: what makes bytes durable, and what happens when a disk does not
//! - [`room`]: how much room the disk has

mod api;
mod durability;
mod engine;
mod folder;
#[cfg(any(test, feature = "testkit"))]
#[allow(clippy::expect_used)]
pub(crate) mod fuzz;
mod log;
#[cfg(any(test, feature = "testkit"))]
pub mod memory;
mod open;
pub mod room;
mod rows;
mod scrub;
mod snapshot;
#[cfg(test)]
mod tests;

pub use self::api::{
    Backpressure, BoxFuture, Close, Durable, LogBounds, LogStore, SnapshotBody, SnapshotReceiver, SnapshotStore,
    StartMark, StartMarks, StateSnapshot, Stores, WriteAck,
};
pub use self::durability::flush;
pub(crate) use self::durability::stalls;
pub(crate) use self::folder::format;
pub use self::folder::format::{FolderIdentity, OpenError};
pub use self::folder::restoring::RestoreClaim;
pub use self::open::{open, open_claimed, open_in, open_shrunk};
pub use self::snapshot::contents::{SnapshotContents, read_contents, read_header};
pub use self::snapshot::reader::SnapshotReader;
