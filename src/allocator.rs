//! Where a node's memory comes from.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use mimalloc::MiMalloc;

/// From this many bytes on a block comes from the system's allocator. A node's small blocks are keys, short rows and
/// messages; a larger one is a part of a long row, a page of a scan or a buffer of a connection.
pub const LARGE: usize = 2 * 1024;
/// From this many bytes on a block is a mapping of its own. Few of them live at a time.
pub const MAPPED: usize = 64 * 1024;
/// The length and alignment of the buffers through which the storage engine writes its log: a new one a segment, as the
/// one before goes.
pub const ENGINE_BUFFER: usize = 2 << 20;
const ENGINE_ALIGNMENT: usize = 8_192;

/// Such buffers that were freed, one for each of a node's two engines. As mappings of their own they cost a write 7 % of
/// its CPU: each page of a new one is a fault.
static SPARE: [AtomicPtr<u8>; 2] = [const { AtomicPtr::new(ptr::null_mut()) }; 2];

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
        unsafe {
            if is_large(layout.size()) {
                take_spare(layout).unwrap_or_else(|| System.alloc(layout))
            } else {
                MiMalloc.alloc(layout)
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { if is_large(layout.size()) { System.alloc_zeroed(layout) } else { MiMalloc.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises; the layout is the one that the block was allocated with.
        unsafe {
            if !is_large(layout.size()) {
                MiMalloc.dealloc(block, layout);
            } else if !keep_spare(block, layout) {
                System.dealloc(block, layout);
            }
        }
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
                    ptr::copy_nonoverlapping(block, moved, layout.size().min(size));
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

fn is_engine_buffer(layout: Layout) -> bool {
    layout.size() == ENGINE_BUFFER && layout.align() == ENGINE_ALIGNMENT
}

fn take_spare(layout: Layout) -> Option<*mut u8> {
    let mut slots = SPARE.iter().filter(|_| is_engine_buffer(layout));
    // Acquire, and the release below: what its last owner wrote lies before what the next one does.
    slots.find_map(|slot| {
        let spare = slot.swap(ptr::null_mut(), Ordering::Acquire);
        (!spare.is_null()).then_some(spare)
    })
}

fn keep_spare(block: *mut u8, layout: Layout) -> bool {
    let mut slots = SPARE.iter().filter(|_| is_engine_buffer(layout));
    slots.any(|slot| slot.compare_exchange(ptr::null_mut(), block, Ordering::Release, Ordering::Relaxed).is_ok())
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

    /// Two are kept and given out again; a third, and a block of another alignment, goes back to the system.
    #[test]
    fn the_engines_buffers_are_kept_for_its_next_segments() {
        let buffer = Layout::from_size_align(ENGINE_BUFFER, ENGINE_ALIGNMENT).unwrap_or(Layout::new::<u8>());
        // SAFETY: each block is used within its size, and freed once, with the layout that it has.
        unsafe {
            let blocks = [(); 3].map(|()| BySize.alloc(buffer));
            for (at, block) in blocks.into_iter().enumerate() {
                assert_eq!(block.addr() % ENGINE_ALIGNMENT, 0);
                std::slice::from_raw_parts_mut(block, ENGINE_BUFFER).fill(at as u8);
            }
            for (at, block) in blocks.into_iter().enumerate() {
                assert!(std::slice::from_raw_parts(block, ENGINE_BUFFER).iter().all(|byte| *byte == at as u8));
                BySize.dealloc(block, buffer);
            }
            let other = BySize.alloc(layout(ENGINE_BUFFER));
            assert!(!blocks[..2].contains(&other), "a block for 16 bytes' alignment is not an engine's");
            BySize.dealloc(other, layout(ENGINE_BUFFER));
            let mut again = [(); 2].map(|()| BySize.alloc(buffer));
            again.sort();
            let mut kept = [blocks[0], blocks[1]];
            kept.sort();
            assert_eq!(again, kept);
            assert!(take_spare(buffer).is_none(), "no more than two are kept");
            again.into_iter().for_each(|block| BySize.dealloc(block, buffer));
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
