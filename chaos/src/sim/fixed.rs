//! The randomness that the standard library takes from the machine (the keys of its hash maps, and through them tokio's
//! choices), from the seed instead.
//!
//! std asks `getrandom` through a weak symbol, so that a program can put its own in place. That is done here; the
//! machine's is used until a simulation says otherwise. It works for a whole process only (tokio counts its runtimes),
//! which is one reason why every seed runs in a process of its own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static FIXED: AtomicBool = AtomicBool::new(false);
static STATE: AtomicU64 = AtomicU64::new(0);

/// From now on the standard library's randomness follows from `seed`. Call it before the thread that simulates starts.
pub(crate) fn fix(seed: u64) {
    STATE.store(seed, Ordering::SeqCst);
    FIXED.store(true, Ordering::SeqCst);
}

/// Fills `buffer` as the system call does.
///
/// # Safety
/// `buffer` must be writable for `length` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    length: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    if !FIXED.load(Ordering::SeqCst) {
        // SAFETY: the arguments are the caller's, and the system call writes at most `length` bytes.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) } as libc::ssize_t;
    }
    for at in 0..length {
        let state = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
        let byte = (state ^ (state >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 56;
        // SAFETY: `at` is below `length`.
        unsafe { buffer.cast::<u8>().add(at).write(byte as u8) };
    }
    length as libc::ssize_t
}
