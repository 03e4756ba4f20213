//! An allocator that counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts the allocations of each thread. All tests of a program share this allocator.
#[derive(Debug)]
pub struct Counting;

/// The largest size that glibc's allocator serves from a thread's cache. For larger sizes it takes a lock, on which
/// threads wait that free each other's memory (<https://sourceware.org/glibc/wiki/MallocInternals>, "Thread Local
/// Cache").
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

/// The number of allocations of this thread.
pub fn allocations() -> usize {
    ALLOCATIONS.with(Cell::get)
}

/// The number of allocations of this thread with more than [`LARGE`] bytes.
pub fn large_allocations() -> usize {
    LARGE_ALLOCATIONS.with(Cell::get)
}
