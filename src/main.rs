//! The `tillsync` binary; its commands are in `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tillsync::cli::main()
}
