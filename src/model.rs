//! The pure core: applying a command is a function of (state, command) and nothing else.
//!
//! No clock, no randomness, no I/O, no async. What a command needs of the world (time, ids) it
//! carries. Rows live behind [`tables::Tables`]: a `BTreeMap` here, sled above.

pub(crate) mod access;
pub(crate) mod audit;
pub(crate) mod background_tasks;
mod boots;
pub(crate) mod change;
#[cfg(test)]
mod collisions;
pub(crate) mod conflict;
pub(crate) mod cursor;
mod dedup;
pub(crate) mod device;
pub(crate) mod door;
pub(crate) mod effect;
pub(crate) mod election;
pub mod error;
pub(crate) mod evidence;
mod fingerprint;
pub(crate) mod gates;
pub(crate) mod import;
mod load;
mod merge;
mod meta;
mod nodes;
pub(crate) mod pairing;
pub(crate) mod policy;
#[cfg(test)]
pub(crate) mod properties;
pub mod read;
mod refusal;
mod row_pages;
pub mod state;
pub(crate) mod sync;
mod table;
pub mod tables;
pub mod time;
pub(crate) mod time_back;
mod tokens;
mod txn;
pub(crate) mod value;
pub mod version;
pub(crate) mod visible;
