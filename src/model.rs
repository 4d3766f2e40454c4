//! The pure core: applying a command is a function of (state, command) and nothing else.
//!
//! No clock, no randomness, no I/O, no async. What a command needs of the world (time, ids) it
//! carries. Rows live behind [`tables::Tables`]: a `BTreeMap` here, sled above.

pub mod access;
pub mod audit;
pub mod background_tasks;
mod boots;
pub mod change;
#[cfg(test)]
mod collisions;
pub mod conflict;
pub mod cursor;
mod dedup;
pub mod device;
pub mod door;
pub mod effect;
pub mod election;
pub mod error;
pub mod evidence;
mod fingerprint;
pub mod gates;
pub mod import;
mod load;
mod merge;
mod meta;
mod nodes;
pub mod pairing;
pub mod policy;
#[cfg(test)]
pub(crate) mod properties;
pub mod read;
mod refusal;
mod row_pages;
pub mod state;
pub mod sync;
mod table;
pub mod tables;
pub mod time;
pub mod time_back;
mod tokens;
mod txn;
pub mod value;
pub mod visible;
