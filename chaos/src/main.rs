//! Breaks a Tillsync cluster on purpose and checks what it promised.
//!
//! - [`history`]: what happened, as clients saw it; [`checker`] and [`invariants`]: what must hold of it;
//!   [`finding`]: what one of them found
//! - [`recorder`]: what writes it down while it happens
//! - [`clients`]: what uses a cluster meanwhile, where the runs share it
//! - [`sim`]: whole clusters on a simulated network, clock and disk
//! - [`process`]: real nodes on this machine under real faults; [`power`]: power loss and bad disks, under the real storage
//! - [`starter`]: how a `tillsync` is started; [`child`]: other programs, for as long as they may take
//! - [`cost`]: how long checking takes
//! - [`report`]: what a run came to, as a page and as JSON
//! - [`operator`]: faults in running clusters, drills, and what this machine allows
//! - [`mutants`]: the proof that the checkers find bugs: bugs on purpose

use std::process::ExitCode;

use clap::Parser;

mod checker;
mod child;
mod clients;
mod commands;
mod cost;
mod finding;
mod history;
mod invariants;
mod mutants;
mod operator;
mod power;
mod process;
mod recorder;
mod report;
mod rng;
mod sim;
mod starter;

fn main() -> ExitCode {
    match commands::ChaosCli::parse().run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("chaos: {why}");
            ExitCode::from(2)
        }
    }
}
