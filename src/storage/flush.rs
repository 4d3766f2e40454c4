//! Makes the engine's `flush` mean that the disk has the data.
//!
//! sled 0.34 flushes with `sync_file_range`, which neither empties the disk's cache nor covers the file's size: an
//! acknowledged entry could be lost in a power cut. This library defines the symbol itself, so the call ends here.
//! Whether it does depends on the linker, so every open proves it, and refuses to start otherwise.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use libc::{c_int, c_uint, off64_t};

use crate::metrics;

const PROBE: &[u8] = b"probe";

static CALLS: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicBool = AtomicBool::new(false);

/// # Safety
/// As libc's: any descriptor may be passed, a wrong one is an error of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sync_file_range(fd: c_int, _offset: off64_t, _len: off64_t, _flags: c_uint) -> c_int {
    CALLS.fetch_add(1, Ordering::Relaxed);
    let begun = Instant::now();
    // SAFETY: fdatasync takes any descriptor and touches no memory of ours.
    let outcome = unsafe { libc::fdatasync(fd) };
    metrics::FLUSHES.record(begun.elapsed());
    if outcome != 0 {
        FAILED.store(true, Ordering::SeqCst);
    }
    outcome
}

/// The engine's own background flush ends with this call, and only logs when it fails. But the kernel tells of an error
/// once, whoever asks first, and takes the data for written: the next flush would be told that all is well. So the
/// failure is kept, as that of any other flush.
///
/// # Safety
/// As libc's: any descriptor may be passed, a wrong one is an error of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    // SAFETY: the call takes any descriptor and touches no memory of ours; it sets errno as libc's does.
    let outcome = unsafe { libc::syscall(libc::SYS_fsync, fd) };
    if outcome == 0 {
        return 0;
    }
    // Not what cannot be synced at all, such as a pipe.
    if !matches!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EINVAL | libc::EROFS | libc::EBADF)) {
        FAILED.store(true, Ordering::SeqCst);
    }
    -1
}

/// Whether any flush of this process failed. The engine's own background flushes only log it, and the kernel may
/// have dropped what it could not write, so a later flush that succeeds says nothing.
pub fn has_failed() -> bool {
    FAILED.load(Ordering::SeqCst)
}

/// How often a flush reached the disk, in this process.
pub fn calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// Writes and flushes a key; false if the flush did not come through [`sync_file_range`] above.
pub fn probe(tree: &sled::Tree) -> sled::Result<bool> {
    let before = calls();
    // The value must differ from the last one: the engine writes nothing for an equal one.
    let last = tree.get(PROBE)?.and_then(|v| v.as_ref().try_into().ok()).map_or(0, u64::from_le_bytes);
    tree.insert(PROBE, &last.wrapping_add(1).to_le_bytes())?;
    tree.flush()?;
    Ok(calls() > before)
}

/// Whether a probe was ever written here, as every open does.
pub fn was_probed(tree: &sled::Tree) -> sled::Result<bool> {
    tree.contains_key(PROBE)
}
