//! Counts what a thread has allocated, so that an input which makes a decoder allocate without
//! bound is found, and not by the machine running out of memory.
//!
//! Invariant: allocates through the system's allocator and changes nothing about it.
#![allow(unsafe_code)] // A global allocator cannot be written without.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn changed(by: isize) {
    // A thread that ends may free after its counters are gone.
    let _ = LIVE.try_with(|live| {
        let now = live.get().saturating_add(by);
        live.set(now);
        PEAK.with(|peak| peak.set(peak.get().max(now)));
    });
}

fn len(layout: Layout) -> isize {
    isize::try_from(layout.size()).unwrap_or(isize::MAX)
}

// SAFETY: every call is passed on to `System` as it is; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        changed(len(layout));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        changed(len(layout));
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        changed(-len(layout));
        // SAFETY: the caller keeps the contract of `dealloc`, and `System` gave the pointer.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs `work`; returns what it returned and the most bytes that this thread held at once in it,
/// beyond what it held before.
pub fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    (result, usize::try_from(PEAK.get() - before).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::peak_of;

    #[test]
    fn what_is_freed_again_counts_at_its_peak() {
        let (_, peak) = peak_of(|| drop(vec![1u8; 1 << 20]));
        assert!((1 << 20..1 << 21).contains(&peak), "{peak} bytes");
        let (_, peak) = peak_of(|| {
            (0..100).for_each(|n| drop(vec![n; 1000]));
        });
        assert!((1000..10_000).contains(&peak), "{peak} bytes");
    }
}
