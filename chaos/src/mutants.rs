//! Placeholder.
use clap::Args;
#[derive(Args)]
pub struct Options {}
pub fn run(_: &Options) -> Result<bool, String> {
    Ok(true)
}
