//! The pure core: applying a command is a function of (state, command) and nothing else.
//!
//! No clock, no randomness, no I/O, no async. What a command needs of the world (time, ids) it
//! carries. Rows live behind [`tables::Tables`]: a `BTreeMap` here, sled above.

pub mod effect;
pub mod error;
pub mod state;
pub mod tables;
pub mod time;

pub use crate::proto::{
    Audit, Change, Conflict, ConflictType, Device, Election, ElectionMethod, ElectionReason, Meta, Operation, Presence,
    ResolutionMethod, Role, SyncState, SyncStatus, SyncType,
};
