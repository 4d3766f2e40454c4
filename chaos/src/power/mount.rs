//! Mounting, in a namespace of this process's own: nobody else sees the mounts, and they end with it however it ends.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::null;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, MountOption};

use super::device::BlockDevice;
use super::fs::FuseFront;

/// Threads that answer the kernel: one may be held up by a slow sync while others go on.
const THREADS: usize = 3;
/// How long an unmount may wait for the last file to be closed.
const BUSY: Duration = Duration::from_secs(5);

/// From now on mounts of this thread, and of the threads and processes that it starts, are their own. Without the right
/// to do so, a user namespace gives it; that needs a process of one thread.
pub(super) fn own_namespace() -> io::Result<()> {
    // SAFETY: neither call touches memory.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    // SAFETY: as above.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        // SAFETY: as above.
        if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) } != 0 {
            return Err(io::Error::last_os_error());
        }
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
    }
    // SAFETY: the path is a string that ends with zero, the other pointers may be null.
    match unsafe { libc::mount(null(), c"/".as_ptr(), null(), libc::MS_REC | libc::MS_PRIVATE, null()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(super) struct Mount {
    at: PathBuf,
    session: Option<BackgroundSession>,
}

impl Mount {
    pub(super) fn new(device: Arc<BlockDevice>, at: &Path) -> io::Result<Self> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("tillsync-chaos".into())];
        config.n_threads = Some(THREADS);
        let session = fuser::spawn_mount(FuseFront(device), at, &config)?;
        Ok(Self { at: at.to_path_buf(), session: Some(session) })
    }

    /// Unmounts, and waits until nothing of the mount is left. No call may hang any more.
    pub(super) fn end(mut self) -> io::Result<()> {
        unmount(&self.at)?;
        match self.session.take() {
            Some(session) => session.join(),
            None => Ok(()),
        }
    }
}

fn unmount(at: &Path) -> io::Result<()> {
    let path = CString::new(at.as_os_str().as_bytes())?;
    let begun = Instant::now();
    loop {
        // SAFETY: the path is a string that ends with zero.
        if unsafe { libc::umount2(path.as_ptr(), 0) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) || begun.elapsed() > BUSY {
            return Err(error);
        }
        // The kernel tells nobody when the last file of a dead process is closed.
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.session.is_some()
            && let Ok(path) = CString::new(self.at.as_os_str().as_bytes())
        {
            // SAFETY: the path is a string that ends with zero.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
    }
}
