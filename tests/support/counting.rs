//! An allocator that counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts what each thread allocates. Unlike most of what a test looks at, an allocator is its whole program's.
#[derive(Debug)]
pub struct Counting;

/// What is larger, glibc's allocator looks for under a lock that threads share: those that free what another has
/// allocated wait for each other (<https://sourceware.org/glibc/wiki/MallocInternals>, "Thread Local Cache").
pub const LARGE: usize = 1032;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static LARGE_ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
        if layout.size() > LARGE {
            let _ = LARGE_ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
        }
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// How often this thread has allocated.
pub fn allocations() -> usize {
    ALLOCATIONS.with(Cell::get)
}

/// How often this thread has allocated more than [`LARGE`] bytes.
pub fn large_allocations() -> usize {
    LARGE_ALLOCATIONS.with(Cell::get)
}
