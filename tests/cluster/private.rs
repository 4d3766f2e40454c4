//! Who else on the machine can read what a node keeps.

#![cfg(unix)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::single_node::Alone;

fn others_rights(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o077
}

/// Everything under `folder`, itself included, that others have a right to.
fn open_to_others(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        if others_rights(&folder) != 0 {
            found.push(folder.display().to_string());
        }
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if others_rights(&path) != 0 {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

#[test]
fn what_a_node_keeps_is_its_users_alone() {
    let node = Alone::new();
    assert_eq!(others_rights(&node.path("token.key")), 0);
    // As a packager or an operator made it.
    std::fs::create_dir(node.data()).unwrap();
    std::fs::set_permissions(node.data(), std::fs::Permissions::from_mode(0o755)).unwrap();
    node.run_once();
    assert_eq!(open_to_others(&node.data()), Vec::<String>::new());
}
