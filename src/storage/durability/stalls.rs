//! Which calls on the engine and on the disk are under way, and for how long: one that never comes back leaves a node that
//! neither serves nor stops. Its other threads wait for the engine's locks, so nothing but the process's end helps.

use std::fs;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum DiskCall {
    Flush,
    Sync,
    WriteLog,
    WriteRows,
}

impl DiskCall {
    const ALL: [Self; 4] = [Self::Flush, Self::Sync, Self::WriteLog, Self::WriteRows];

    fn name(self) -> &'static str {
        match self {
            Self::Flush => "a flush of the storage engine",
            Self::Sync => "a sync of the disk",
            Self::WriteLog => "a write of the log",
            Self::WriteRows => "a write of rows",
        }
    }
}

/// A call that has not come back.
#[derive(Clone, Copy, Debug)]
pub struct StalledCall {
    call: DiskCall,
    /// The system's number of the thread.
    thread: i32,
    /// Of [`SLOTS`].
    slot: usize,
    pub lasting: Duration,
}

impl StalledCall {
    pub fn name(&self) -> &'static str {
        self.call.name()
    }
}

/// Threads that are looked after at the same time; more are not.
const CALLS: usize = 16;
/// How long a thread may take to show where it stands.
const SHOW: Duration = Duration::from_secs(2);

struct CallSlot {
    /// Milliseconds of [`now`]; 0: free.
    since: AtomicU64,
    thread: AtomicI32,
    call: AtomicU8,
}

static SLOTS: [CallSlot; CALLS] =
    [const { CallSlot { since: AtomicU64::new(0), thread: AtomicI32::new(0), call: AtomicU8::new(0) } }; CALLS];

/// Never 0.
fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_millis() as u64 + 1
}

thread_local! {
    // SAFETY: the call has no arguments and cannot fail.
    static THREAD: i32 = unsafe { libc::syscall(libc::SYS_gettid) } as i32;
}

/// Held during a call.
pub(crate) struct CallUnderWay(Option<&'static CallSlot>);

impl CallUnderWay {
    pub(crate) fn begin(call: DiskCall) -> Self {
        let now = now();
        let free = SLOTS.iter().find(|slot| {
            slot.since.load(Ordering::Relaxed) == 0
                && slot.since.compare_exchange(0, now, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        });
        if let Some(slot) = free {
            slot.thread.store(THREAD.with(|thread| *thread), Ordering::Release);
            slot.call.store(call as u8, Ordering::Release);
        }
        Self(free)
    }
}

impl Drop for CallUnderWay {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.since.store(0, Ordering::Release);
        }
    }
}

/// The calls that have been under way for longer than this, the longest first.
pub(crate) fn longer_than(patience: Duration) -> Vec<StalledCall> {
    let now = now();
    let stalled = |(slot, of): (usize, &CallSlot)| {
        let since = of.since.load(Ordering::Acquire);
        let lasting = Duration::from_millis(now.saturating_sub(since));
        let call = DiskCall::ALL.get(usize::from(of.call.load(Ordering::Acquire))).copied()?;
        let thread = of.thread.load(Ordering::Acquire);
        (since != 0 && lasting > patience).then_some(StalledCall { call, thread, slot, lasting })
    };
    let mut all: Vec<StalledCall> = SLOTS.iter().enumerate().filter_map(stalled).collect();
    all.sort_by_key(|stalled| std::cmp::Reverse(stalled.lasting));
    all
}

/// Where a thread stands, as far as it can be had: in the kernel, and in our own code if it can still be interrupted. The
/// process must end afterwards: the thread may have been interrupted anywhere.
pub(crate) fn trace(stalled: &StalledCall) -> String {
    let of = |name: &str| {
        let text = fs::read_to_string(format!("/proc/self/task/{}/{name}", stalled.thread)).unwrap_or_default();
        match text.trim() {
            "" | "0" => "?".to_owned(),
            text => text.to_owned(),
        }
    };
    let shown = shown(stalled).unwrap_or("the thread cannot be interrupted: it waits for the disk in the kernel");
    let seconds = stalled.lasting.as_secs();
    format!("{} for {seconds} s: thread {}, in the kernel at {}\n{shown}", stalled.name(), of("comm"), of("wchan"))
}

/// What the threads in these slots wrote down.
static SHOWN: [OnceLock<String>; CALLS] = [const { OnceLock::new() }; CALLS];

extern "C" fn show(_: libc::c_int) {
    let here = THREAD.with(|thread| *thread);
    let stack = std::backtrace::Backtrace::force_capture().to_string();
    for (slot, shown) in SLOTS.iter().zip(&SHOWN) {
        if slot.since.load(Ordering::Acquire) != 0 && slot.thread.load(Ordering::Acquire) == here {
            let _ = shown.set(stack.clone());
        }
    }
}

/// Has a thread write down its own stack.
fn shown(stalled: &StalledCall) -> Option<&'static str> {
    let shown = SHOWN.get(stalled.slot)?;
    let handler = show as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: both calls take plain numbers and a function that lives as long as the process. The handler may deadlock
    // with what it interrupts; nobody waits for it without end, and the process ends next.
    let sent = unsafe {
        libc::signal(libc::SIGUSR2, handler) != libc::SIG_ERR
            && libc::syscall(libc::SYS_tgkill, libc::getpid(), stalled.thread, libc::SIGUSR2) == 0
    };
    let begun = Instant::now();
    while sent && shown.get().is_none() && begun.elapsed() < SHOW {
        std::thread::sleep(Duration::from_millis(10));
    }
    shown.get().map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other tests of this process flush, too: only what this thread does is looked at.
    fn of_thread(thread: i32) -> Vec<DiskCall> {
        let all = longer_than(Duration::ZERO).into_iter().filter(|stalled| stalled.thread == thread);
        all.map(|stalled| stalled.call).collect()
    }

    #[test]
    fn a_call_is_known_while_it_is_under_way() {
        let here = THREAD.with(|thread| *thread);
        let outer = CallUnderWay::begin(DiskCall::WriteLog);
        std::thread::sleep(Duration::from_millis(3));
        let inner = CallUnderWay::begin(DiskCall::Flush);
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(of_thread(here), [DiskCall::WriteLog, DiskCall::Flush], "the longest first");
        assert!(longer_than(Duration::from_secs(3_600)).is_empty());
        drop(inner);
        assert_eq!(of_thread(here), [DiskCall::WriteLog]);
        drop(outer);
        assert!(of_thread(here).is_empty());
    }

    /// A frame of its own in every build.
    #[inline(never)]
    fn waits_for(end: &std::sync::mpsc::Receiver<()>) {
        let ended = end.recv();
        std::hint::black_box(ended.is_ok());
    }

    #[test]
    fn a_thread_that_waits_shows_where() {
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let waits = std::thread::spawn(move || {
            let _under_way = CallUnderWay::begin(DiskCall::Sync);
            tell.send(THREAD.with(|thread| *thread)).unwrap();
            waits_for(&ended);
        });
        let thread = told.recv().unwrap();
        std::thread::sleep(Duration::from_millis(3));
        let stalled = longer_than(Duration::ZERO).into_iter().find(|stalled| stalled.thread == thread).unwrap();
        let text = trace(&stalled);
        assert!(text.starts_with("a sync of the disk for 0 s: thread"), "{text}");
        assert!(text.contains("in the kernel at") && text.contains("waits_for"), "{text}");
        end.send(()).unwrap();
        waits.join().unwrap();
    }
}
