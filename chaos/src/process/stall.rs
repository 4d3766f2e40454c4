//! A slow disk without another disk: the thread that writes a node's log is held up, again and again, while all its
//! other threads go on. To the node that is a sync that takes long. Linux only: a debugger's call does it.

use std::path::Path;
use std::time::{Duration, Instant};

/// The thread that owns the log (`storage`).
const THREAD: &str = "tillsync-log";
/// Between two stalls.
const FREE: Duration = Duration::from_millis(2);

/// Whether a thread of a child can be held up here.
pub(super) fn possible() -> Result<(), String> {
    if !cfg!(target_os = "linux") {
        return Err("threads can be held up on Linux only".into());
    }
    match std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope") {
        // 1: descendants only, which nodes are. More: administrators, or nobody.
        Ok(scope) if scope.trim() > "1" => Err(format!("kernel.yama.ptrace_scope is {}", scope.trim())),
        _ => Ok(()),
    }
}

/// The number of the thread of this name in a process.
fn thread_of(pid: u32) -> Result<i32, String> {
    let tasks = Path::new("/proc").join(pid.to_string()).join("task");
    let entries = std::fs::read_dir(&tasks).map_err(|error| format!("{}: {error}", tasks.display()))?;
    let named = entries
        .flatten()
        .find(|entry| std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim() == THREAD));
    let number = named.and_then(|entry| entry.file_name().to_str()?.parse().ok());
    number.ok_or_else(|| format!("process {pid} has no thread {THREAD}"))
}

/// Holds the thread up for `held` at a time until `end`; says how often. Blocks: whoever traces a thread has to be one
/// thread all the time.
#[cfg(target_os = "linux")]
pub(super) fn stall(pid: u32, held: Duration, end: Instant) -> Result<u64, String> {
    let tid = thread_of(pid)?;
    let call = |request, data: usize| {
        // SAFETY: no memory of ours or of the traced thread is touched by these requests.
        let done = unsafe { libc::ptrace(request, tid, std::ptr::null_mut::<u8>(), data) };
        if done == -1 { Err(format!("thread {tid}: {}", std::io::Error::last_os_error())) } else { Ok(()) }
    };
    call(libc::PTRACE_SEIZE, 0)?;
    let mut times = 0;
    loop {
        call(libc::PTRACE_INTERRUPT, 0)?;
        let mut status = 0;
        // SAFETY: the status is ours.
        let waited = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) };
        if waited != tid || !libc::WIFSTOPPED(status) {
            return Err(format!("thread {tid} ended"));
        }
        times += 1;
        std::thread::sleep(held.min(end.saturating_duration_since(Instant::now())));
        // A signal that it was about to get is handed on.
        let signal = if status >> 16 == 0 { libc::WSTOPSIG(status) as usize } else { 0 };
        if Instant::now() >= end {
            call(libc::PTRACE_DETACH, signal)?;
            return Ok(times);
        }
        call(libc::PTRACE_CONT, signal)?;
        std::thread::sleep(FREE);
    }
}

#[cfg(not(target_os = "linux"))]
pub fn stall(pid: u32, _: Duration, _: Instant) -> Result<u64, String> {
    thread_of(pid).map(|_| 0)
}
