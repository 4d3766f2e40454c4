//! Power loss and bad disks: programs on a disk of our own that loses what was not synced, and fails on command.
//!
//! - [`disk`] and [`loss`]: the disk, and what a power cut leaves of it; [`faults`]: what else goes wrong, and when
//! - [`device`], [`fs`], [`mount`]: the disk as a file system (FUSE) that a program can use
//! - [`child`] and [`content`]: the program of a storage run; [`known`]: what it was told, and whether that is there
//! - [`serve`] and [`ledger`]: a whole node instead, written to over REST
//! - [`plan`], [`program`], [`run`]: one seed is one run; [`commands`]: `chaos power`

pub(crate) mod child;
pub(crate) mod commands;

mod content;
mod device;
mod disk;
mod events;
mod faults;
mod fs;
mod known;
mod ledger;
mod loss;
mod mount;
mod plan;
mod program;
mod run;
mod serve;

#[cfg(test)]
mod tests;
