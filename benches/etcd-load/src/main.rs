//! The load of `tillsync bench write|read`, on etcd: closed loop, a connection a client, one thread for all of
//! them, the same histogram. And the table that sets the two beside each other.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What the shared file prints with; here a closed reader may end the program.
macro_rules! say {
    ($($arg:tt)*) => { println!($($arg)*) };
}

mod load;
/// The very file of `tillsync bench`: figures of both are made alike.
#[path = "../../../src/cli/bench/stats.rs"]
#[allow(dead_code)]
mod stats;
mod table;

#[derive(Parser)]
#[command(name = "etcd-load")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Puts
    Write(load::Args),
    /// Linearizable gets of a key a client
    Read(load::Args),
    /// Medians of several runs, and their ratios
    Table(table::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Write(args) => load::run(&args, load::Kind::Write),
        Command::Read(args) => load::run(&args, load::Kind::Read),
        Command::Table(args) => table::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
