//! Compiles `proto/` with a protobuf compiler written in Rust, so that nothing needs installing.

use std::error::Error;

const FILES: [&str; 4] =
    ["tillsync/v1/state.proto", "tillsync/v1/command.proto", "tillsync/v1/raft.proto", "tillsync/v1/cluster.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let mut prost = tonic_prost_build::Config::new();
    // Record data is shared, not copied, between the log entry, the state and the broadcast.
    prost.bytes(["."]);
    tonic_prost_build::configure().compile_fds_with_config(descriptors, prost)?;
    Ok(())
}
