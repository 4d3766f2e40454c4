//! The main job, as a newcomer starts it.

use crate::harness::{succeeds, tillsync};

#[test]
fn the_demo_holds() {
    let said = succeeds(tillsync().arg("demo"));
    assert!(said.contains("everything held") && !said.contains("FAILED"), "{said}");
}
