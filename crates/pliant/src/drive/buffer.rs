//! Memory that O_DIRECT accepts: it begins on a block boundary.
#![allow(unsafe_code)]

use std::{
    alloc::{self, Layout},
    ptr::NonNull,
    slice,
    sync::OnceLock,
};

use bytes::Bytes;
use engine::api::PREPARED_BYTES_MAX;
use model::units::BLOCK_BYTES;

/// Alignment that every drive accepts.
pub(super) const ALIGN: usize = BLOCK_BYTES as usize;

/// Block-aligned memory, of which the first `filled` bytes have been written.
#[derive(Debug)]
pub(super) struct AlignedBuffer {
    start: NonNull<u8>,
    layout: Layout,
    filled: usize,
}

// SAFETY: the buffer owns its memory and hands out references only by the usual rules.
unsafe impl Send for AlignedBuffer {}
// SAFETY: as above; a shared buffer can only be read.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    pub(super) fn new(capacity: usize) -> Self {
        // SAFETY: asked with a layout whose size is not zero.
        Self::from(capacity, |layout| unsafe { alloc::alloc(layout) })
    }

    /// Zeros, all of them filled. They take memory only when somebody writes to them: nobody does.
    fn zeros(length: usize) -> Self {
        // SAFETY: as above.
        let mut buffer = Self::from(length, |layout| unsafe { alloc::alloc_zeroed(layout) });
        buffer.filled = length;
        buffer
    }

    fn from(capacity: usize, allocate: impl FnOnce(Layout) -> *mut u8) -> Self {
        let layout = Layout::from_size_align(capacity.max(ALIGN), ALIGN)
            .expect("the alignment is a power of two and requests are far below the limit");
        let Some(start) = NonNull::new(allocate(layout)) else { alloc::handle_alloc_error(layout) };
        Self { start, layout, filled: 0 }
    }

    pub(super) fn capacity(&self) -> usize {
        self.layout.size()
    }

    /// Memory after what is filled. Nothing may be read from it.
    pub(super) fn room(&mut self) -> (*mut u8, usize) {
        // SAFETY: `filled` never exceeds the allocation.
        let start = unsafe { self.start.as_ptr().add(self.filled) };
        (start, self.capacity() - self.filled)
    }

    /// Makes `count` more bytes readable.
    ///
    /// # Safety
    /// They must have been written to the room's beginning.
    pub(super) unsafe fn advance(&mut self, count: usize) {
        assert!(count <= self.capacity() - self.filled, "filled past the end");
        self.filled += count;
    }

    pub(super) fn truncate(&mut self, filled: usize) {
        self.filled = self.filled.min(filled);
    }

    /// Copies as much of `bytes` as there is room for; says how much that was.
    pub(super) fn fill(&mut self, bytes: &[u8]) -> usize {
        let (room, length) = self.room();
        let count = bytes.len().min(length);
        // SAFETY: `room` has space for `count` bytes, and a borrowed slice cannot overlap memory
        // that is borrowed mutably.
        unsafe {
            room.copy_from_nonoverlapping(bytes.as_ptr(), count);
            self.advance(count);
        }
        count
    }

    pub(super) fn filled(&self) -> &[u8] {
        // SAFETY: the first `filled` bytes have been written and live as long as `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.filled) }
    }

    pub(super) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

/// As many zeros, shared by all who want some, from where the kernel takes them.
pub(super) fn zeros(length: u32) -> Bytes {
    static ZEROS: OnceLock<Bytes> = OnceLock::new();
    let most = usize::try_from(PREPARED_BYTES_MAX).expect("a 64-bit machine");
    let zeros = ZEROS.get_or_init(|| AlignedBuffer::zeros(most).into_bytes());
    zeros.slice(..usize::try_from(length).expect("a 64-bit machine"))
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        self.filled()
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, freed once.
        unsafe { alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}
