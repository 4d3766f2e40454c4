//! What a node keeps is for its own user: its data holds the shop's sales, its keys make tokens.

use std::path::Path;

use crate::config::Config;

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
            "other users of this machine can read or change this key: give it mode 0600"
        );
    }
}

/// The keys that other users of the machine can read or change: the setting, and the file.
pub(super) fn readable_keys(config: &Config) -> Vec<(&'static str, &Path)> {
    let keys = [
        ("key_file", Some(&config.key_file)),
        ("raft_tls_key", config.raft_tls.as_ref().map(|tls| &tls.key)),
        ("gateway_tls_key", config.gateway_tls.as_ref().map(|tls| &tls.key)),
    ];
    let keys = keys.into_iter().filter_map(|(setting, path)| Some((setting, path?.as_path())));
    keys.filter(|(_, path)| mode(path).is_some_and(|mode| mode & 0o077 != 0)).collect()
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
