//! What a node keeps is for its own user: its data holds the shop's sales, its keys make tokens.

use std::path::Path;

use crate::config::Config;

/// What neither the group nor all others may have of a key.
const OTHERS: u32 = 0o037;

/// New files and folders of this process are its user's alone (0600, 0700), whatever the shell's umask says. Called
/// before any thread starts.
#[cfg(unix)]
pub(super) fn by_default() {
    // SAFETY: the call takes a number, cannot fail, and changes only the mode of what this process makes.
    unsafe {
        libc::umask(0o077);
    }
}

#[cfg(not(unix))]
pub fn by_default() {}

/// Takes the data folder from other users, who may have got it before, and warns of keys that they can read.
pub(super) fn secure(config: &Config) {
    close(&config.data_dir);
    for (setting, path) in readable_keys(config) {
        tracing::warn!(
            setting,
            path = %path.display(),
            "other users of this machine can read or change this key: give it mode 0640 or 0600"
        );
    }
}

/// The keys that other users of the machine can read or change: the setting, and the file. Its group may read a key:
/// root's files in /etc/tillsync are read by the group `tillsync`, which the node runs in.
pub(super) fn readable_keys(config: &Config) -> Vec<(&'static str, &Path)> {
    let keys = [
        ("key_file", Some(&config.key_file)),
        ("raft_tls_key", config.raft_tls.as_ref().map(|tls| &tls.key)),
        ("gateway_tls_key", config.gateway_tls.as_ref().map(|tls| &tls.key)),
    ];
    let keys = keys.into_iter().filter_map(|(setting, path)| Some((setting, path?.as_path())));
    keys.filter(|(_, path)| open_to_others(path)).collect()
}

fn open_to_others(key: &Path) -> bool {
    mode(key).is_some_and(|mode| mode & OTHERS != 0)
}

#[cfg(unix)]
fn mode(path: &Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt;
    Some(path.metadata().ok()?.permissions().mode())
}

#[cfg(not(unix))]
fn mode(_path: &Path) -> Option<u32> {
    None
}

#[cfg(unix)]
fn close(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if mode(folder).is_none_or(|mode| mode & 0o077 == 0) {
        return;
    }
    match std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)) {
        Ok(()) => {
            tracing::warn!(folder = %folder.display(), "other users could open the data folder: it has mode 0700 now")
        }
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error, "other users can open the data folder: give it mode 0700");
        }
    }
}

#[cfg(not(unix))]
fn close(_folder: &Path) {}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_may_be_read_by_its_group_and_by_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("token.key");
        std::fs::write(&key, "").unwrap();
        let warned = [0o600, 0o640, 0o644, 0o660, 0o604].map(|mode| {
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
            open_to_others(&key)
        });
        assert_eq!(warned, [false, false, true, true, true]);
    }
}
