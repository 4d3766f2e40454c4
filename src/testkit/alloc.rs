//! An allocator that counts, and that refuses what no input justifies.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// A single allocation that is larger while a case runs is refused, which ends the process.
const ONE: usize = 256 << 20;

thread_local! {
    /// Bytes that this thread allocated and nobody has freed; what another thread frees is not seen.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static MEASURES: Cell<bool> = const { Cell::new(false) };
}

/// Counts by thread. Fuzz targets and this crate's tests have it as their global allocator.
pub struct Counting;

fn count(bytes: isize) {
    // No thread that ends is asked for its count.
    let live = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        live.get()
    });
    if let Ok(live) = live {
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live)));
    }
}

fn is_refused(size: usize) -> bool {
    size > ONE && MEASURES.try_with(Cell::get).unwrap_or(false)
}

// SAFETY: everything is the system allocator's; a null pointer says that there is no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_refused(layout.size()) {
            return std::ptr::null_mut();
        }
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_refused(layout.size()) {
            return std::ptr::null_mut();
        }
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if is_refused(size) {
            return std::ptr::null_mut();
        }
        count(size as isize - layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// What this thread holds now. Bytes.
pub fn live() -> isize {
    LIVE.get()
}

/// What a case took. Bytes, over what its thread held before.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    pub peak: isize,
    /// Still there when it was over.
    pub left: isize,
}

pub fn measure<T>(case: impl FnOnce() -> T) -> (T, Taken) {
    let before = LIVE.get();
    PEAK.set(before);
    MEASURES.set(true);
    let outcome = case();
    MEASURES.set(false);
    (outcome, Taken { peak: PEAK.get() - before, left: LIVE.get() - before })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_case_took_and_left_is_counted() {
        let (kept, taken) = measure(|| {
            drop(vec![0u8; 3 << 20]);
            vec![0u8; 1 << 20]
        });
        assert!(((3 << 20)..(3 << 20) + 1_024).contains(&taken.peak), "{taken:?}");
        assert!(((1 << 20)..(1 << 20) + 1_024).contains(&taken.left), "{taken:?}");
        drop(kept);
    }
}
