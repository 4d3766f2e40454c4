//! Makes the engine's `flush` mean that the disk has the data.
//!
//! sled 0.34 flushes with `sync_file_range`, which neither empties the disk's cache nor covers the file's size: an
//! acknowledged entry could be lost in a power cut. This library defines the symbol itself, so the call ends here.
//! Whether it does depends on the linker, so every open proves it, and refuses to start otherwise.

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libc::{c_int, c_uint, off64_t};
use parking_lot::RwLock;

use super::stalls::{self, CallUnderWay, DiskCall, StalledCall};
use crate::metrics;

const PROBE: &[u8] = b"probe";

/// How long a call is waited for once a sync has failed: the engine does not always wake those that wait for it then.
const AFTER_FAILURE: Duration = Duration::from_secs(2);

static CALLS: AtomicU64 = AtomicU64::new(0);
/// How long the last flushes took, in microseconds; 0: there were fewer.
static LAST: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// The first error of a sync; 0: none.
static FAILED: AtomicI32 = AtomicI32::new(0);
/// Read by every sync, from before the system is asked until its failure is kept.
static UNDER_WAY: RwLock<()> = RwLock::new(());

/// # Safety
/// As libc's: any descriptor may be passed, a wrong one is an error of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sync_file_range(fd: c_int, _offset: off64_t, _len: off64_t, _flags: c_uint) -> c_int {
    CALLS.fetch_add(1, Ordering::Relaxed);
    let begun = Instant::now();
    // SAFETY: fdatasync takes any descriptor and touches no memory of ours.
    let outcome = watched(&[], || unsafe { libc::fdatasync(fd) });
    took(begun.elapsed());
    outcome
}

fn took(time: Duration) {
    metrics::FLUSHES.record(time);
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    LAST[NEXT.fetch_add(1, Ordering::Relaxed) % LAST.len()].store(micros, Ordering::Relaxed);
}

/// How long a flush takes here: the median of the last eight of this process.
pub(in crate::storage) fn usual_time() -> Duration {
    let mut times = LAST.each_ref().map(|micros| micros.load(Ordering::Relaxed));
    times.sort_unstable();
    let known = &times[times.partition_point(|micros| *micros == 0)..];
    Duration::from_micros(known.get(known.len() / 2).copied().unwrap_or(0))
}

/// The engine's own background flush ends with this call, and only logs when it fails. But the kernel tells of an error
/// once, whoever asks first, and takes the data for written: the next flush would be told that all is well. So the
/// failure is kept, as that of any other flush.
///
/// # Safety
/// As libc's: any descriptor may be passed, a wrong one is an error of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    // What cannot be synced at all, such as a pipe.
    let excused = [libc::EINVAL, libc::EROFS, libc::EBADF];
    // SAFETY: the call takes any descriptor and touches no memory of ours; it sets errno as libc's does.
    watched(&excused, || if unsafe { libc::syscall(libc::SYS_fsync, fd) } == 0 { 0 } else { -1 })
}

/// Keeps that a sync failed, unless for one of these reasons, before anyone can be told that nothing is under way.
fn watched(excused: &[c_int], sync: impl FnOnce() -> c_int) -> c_int {
    let under_way = UNDER_WAY.read();
    let watched = CallUnderWay::begin(DiskCall::Sync);
    let outcome = sync();
    drop(watched);
    if outcome != 0 {
        // SAFETY: the thread's own errno.
        let error = unsafe { *libc::__errno_location() };
        if !excused.contains(&error) {
            let _ = FAILED.compare_exchange(0, error, Ordering::SeqCst, Ordering::SeqCst);
        }
        drop(under_way);
        // SAFETY: as above. The caller reads it next.
        unsafe { *libc::__errno_location() = error };
    }
    outcome
}

/// An error if any flush of this process failed. The engine's own background flushes only log it, and the kernel may
/// have dropped what it could not write, so a later flush that succeeds says nothing. Nor does one at the same time:
/// waits for those that are under way.
pub fn check() -> io::Result<()> {
    drop(UNDER_WAY.write());
    failed()
}

/// The same for those that have ended: waits for none.
pub fn failed() -> io::Result<()> {
    match FAILED.load(Ordering::SeqCst) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The call that lasts longest, if it is not worth waiting for: for longer than this, or much less once a sync has failed.
pub fn stalled(patience: Duration) -> Option<StalledCall> {
    let patience = if failed().is_err() { patience.min(AFTER_FAILURE) } else { patience };
    stalls::longer_than(patience).first().copied()
}

/// How often a flush reached the disk, in this process.
pub fn calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// Writes and flushes a key; false if the flush did not come through [`sync_file_range`] above.
pub fn probe(tree: &sled::Tree) -> sled::Result<bool> {
    let before = calls();
    // The value must differ from the last one: the engine writes nothing for an equal one.
    tree.insert(PROBE, &probes(tree)?.wrapping_add(1).to_le_bytes())?;
    let under_way = CallUnderWay::begin(DiskCall::Flush);
    tree.flush()?;
    drop(under_way);
    Ok(calls() > before)
}

/// How often that was done here: once an open.
pub fn probes(tree: &sled::Tree) -> sled::Result<u64> {
    Ok(tree.get(PROBE)?.and_then(|v| v.as_ref().try_into().ok()).map_or(0, u64::from_le_bytes))
}
