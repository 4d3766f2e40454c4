//! The `tillsync` binary; its commands are in `cli`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tillsync::allocator::BySize = tillsync::allocator::BySize;

fn main() -> ExitCode {
    without_huge_pages();
    tillsync::allocator::share_large_blocks();
    tillsync::cli::main()
}

/// A node allocates and frees all over its memory: with huge pages the kernel clears two megabytes where a few
/// kilobytes are touched, which took a sixth of the CPU of a write. Where the kernel knows no such setting, nothing is
/// lost.
fn without_huge_pages() {
    // SAFETY: the call takes four numbers and changes only how the kernel backs this process's memory.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
    }
}
