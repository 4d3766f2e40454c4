//! The programs under test.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Once;

pub(crate) fn chaos(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_chaos")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// What it said, on either stream.
pub(crate) fn both(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The node's program of the same build; built if it is not there, as with `cargo test -p chaos` on a fresh tree: tests
/// of one package do not build another's.
pub(crate) fn tillsync() -> PathBuf {
    static BUILD: Once = Once::new();
    let path = Path::new(env!("CARGO_BIN_EXE_chaos")).with_file_name("tillsync");
    BUILD.call_once(|| {
        if !path.exists() {
            let release = path.parent().unwrap().ends_with("release");
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args(["build", "--package", "tillsync", "--bin", "tillsync"]).args(release.then_some("--release"));
            cargo.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
            assert!(cargo.status().unwrap().success());
        }
    });
    path
}
