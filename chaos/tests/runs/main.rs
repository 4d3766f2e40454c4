//! Runs of `chaos`, from the command line to the verdict. One program, so that a run that waits and one that computes share
//! the time.

// Helpers of a test are outside of what clippy takes for one.
#![allow(clippy::unwrap_used)]

mod common;
mod hostile;
mod operator;
mod power;
mod process;
mod report;
mod simulation;
