//! Where a node's memory comes from.

use std::alloc::{GlobalAlloc, Layout, System};

use mimalloc::MiMalloc;

/// From this many bytes on a block comes from the system's allocator. A node's small blocks are keys, short rows and
/// messages; a larger one is a part of a long row, a page of a scan or a buffer of a connection.
pub const LARGE: usize = 2 * 1024;
/// From this many bytes on a block is a mapping of its own. Few of them live at a time.
pub const MAPPED: usize = 64 * 1024;

/// mimalloc for small blocks, which are fast there, and the system's allocator for large ones.
///
/// mimalloc keeps what was freed for the thread that allocated it, in pages of the block's size. A payload of 96 KB is
/// read by one thread, proposed by a second, written by a third and answered by a fourth, and a snapshot brings all rows
/// through the engine's cache on a fifth: after a while every thread keeps pages for every size that it has ever seen.
/// The system's allocator keeps one heap for all threads, and a mapping goes back to the kernel when it is freed.
pub struct BySize;

// SAFETY: both allocators keep the promises of `GlobalAlloc`, and a block is always given back to the one that it came
// from: the size in its layout, which is the same at both ends, says which.
unsafe impl GlobalAlloc for BySize {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { if is_large(layout.size()) { System.alloc(layout) } else { MiMalloc.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { if is_large(layout.size()) { System.alloc_zeroed(layout) } else { MiMalloc.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises; the layout is the one that the block was allocated with.
        unsafe { if is_large(layout.size()) { System.dealloc(block, layout) } else { MiMalloc.dealloc(block, layout) } }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match (is_large(layout.size()), is_large(size)) {
            // SAFETY: as the caller promises.
            (false, false) => unsafe { MiMalloc.realloc(block, layout, size) },
            // SAFETY: as the caller promises.
            (true, true) => unsafe { System.realloc(block, layout, size) },
            // SAFETY: the caller promises that `size`, rounded up to the alignment, is no larger than `isize::MAX`; both
            // blocks are at least as long as what is copied, and they do not overlap.
            _ => unsafe {
                let new = Layout::from_size_align_unchecked(size, layout.align());
                let moved = self.alloc(new);
                if !moved.is_null() {
                    std::ptr::copy_nonoverlapping(block, moved, layout.size().min(size));
                    self.dealloc(block, layout);
                }
                moved
            },
        }
    }
}

const fn is_large(size: usize) -> bool {
    size >= LARGE
}

/// Once, before other threads run: one heap for all threads, and each block of [`MAPPED`] bytes is a mapping, and stays
/// one. Left alone, glibc has eight heaps a core, moves its bound up to the largest block that was freed, and then keeps
/// such blocks. Other C libraries know no such setting; musl always has one heap, and maps from 128 KiB on.
pub fn share_large_blocks() {
    // SAFETY: the calls take two numbers each, and change only where blocks come from.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED as libc::c_int);
        // The default is 65,536 mappings, as many as the kernel gives a process: past it blocks come from the heap.
        libc::mallopt(libc::M_MMAP_MAX, 16_384);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 16).unwrap_or(Layout::new::<u128>())
    }

    /// Grown and shrunk over the bound in both directions, a block keeps its bytes.
    #[test]
    fn a_block_keeps_its_bytes_whatever_its_size_becomes() {
        let sizes = [1, LARGE - 1, LARGE, LARGE + 1, MAPPED, LARGE, LARGE - 1, 4_096, 10 * MAPPED, MAPPED - 1, 7];
        // SAFETY: each block is used within its size, and freed with the layout that it has.
        unsafe {
            let mut size = 16;
            let mut block = BySize.alloc(layout(size));
            assert!(!block.is_null());
            std::slice::from_raw_parts_mut(block, size).fill(0xA5);
            for next in sizes {
                let kept = size.min(next);
                block = BySize.realloc(block, layout(size), next);
                assert!(!block.is_null());
                assert!(std::slice::from_raw_parts(block, kept).iter().all(|byte| *byte == 0xA5), "{size} -> {next}");
                std::slice::from_raw_parts_mut(block, next).fill(0xA5);
                size = next;
            }
            BySize.dealloc(block, layout(size));
        }
    }

    #[test]
    fn a_zeroed_block_is_zero_also_where_another_one_was() {
        for size in [100, LARGE - 1, LARGE, MAPPED, 2 * MAPPED] {
            for _ in 0..3 {
                // SAFETY: as above.
                unsafe {
                    let block = BySize.alloc_zeroed(layout(size));
                    let bytes = std::slice::from_raw_parts_mut(block, size);
                    assert!(bytes.iter().all(|byte| *byte == 0));
                    bytes.fill(0xFF);
                    BySize.dealloc(block, layout(size));
                }
            }
        }
    }
}
