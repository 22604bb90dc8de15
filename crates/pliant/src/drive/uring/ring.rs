//! The kernel's side: the ring and its registered buffers.
//!
//! The file is not registered: the kernel would hold it, and the drive's lock with it, for a second
//! and more after its process was killed, and refuse the drive to the next one.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    sync::atomic::{Ordering, fence},
};

use io_uring::{IoUring, Probe, opcode, squeue, types};

use crate::drive::buffer::AlignedBuffer;

/// Room for every transfer and a sync.
const ENTRIES: u32 = 128;

/// Buffers for writes: content comes in memory that is seldom aligned, so it is copied into one of
/// these.
const SMALL_BYTES: usize = 32 << 10;
const LARGE_BYTES: usize = 1 << 20;

/// What an entry of the completion queue answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    Transfer(usize),
    Sync,
}

const SYNC: u64 = u64::MAX;

impl Tag {
    fn encode(self) -> u64 {
        match self {
            Self::Transfer(index) => u64::try_from(index).expect("a small index"),
            Self::Sync => SYNC,
        }
    }

    fn decode(data: u64) -> Self {
        match data {
            SYNC => Self::Sync,
            index => Self::Transfer(usize::try_from(index).expect("we made it")),
        }
    }
}

/// How a write becomes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stable {
    /// Not before something else makes it so.
    Later,
    /// The write ends when it is, and says nothing of others (RWF_DSYNC: a write that forces unit
    /// access where the device has that, else a flush).
    ByItself,
    /// An `fdatasync` follows, if the write ends well.
    ByLinkedSync,
}

/// Memory is handed to the kernel by address: whoever asks for a transfer keeps the memory in
/// place until its end has been reaped, or for ever.
pub(super) struct Ring {
    ring: IoUring,
    file: types::Fd,
    /// Buffers for writes are registered by their number.
    registered: bool,
    /// Entries that were pushed and whose ends were not taken.
    under_way: usize,
}

impl Ring {
    /// The kernel counts the bell up when something has ended, while it is told to. Rings may share
    /// one.
    pub(super) fn new(file: RawFd, bell: RawFd, buffers: &mut [AlignedBuffer]) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
        let mut ring = match builder.build(ENTRIES) {
            // A kernel before 6.1 does not know these flags.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(ENTRIES)?,
            built => built?,
        };
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let wanted = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::WriteFixed::CODE,
            opcode::Fsync::CODE,
        ];
        if !wanted.iter().all(|&code| probe.is_supported(code)) {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        let vectors: Vec<_> = buffers
            .iter_mut()
            .map(|buffer| {
                let (start, length) = buffer.room();
                libc::iovec { iov_base: start.cast(), iov_len: length }
            })
            .collect();
        // SAFETY: the line keeps the buffers, in place, longer than the ring.
        let registered = unsafe { ring.submitter().register_buffers(&vectors) }.is_ok();
        // The ring's own descriptor is not registered: until the thread ends the kernel would keep the
        // ring by it, and with the ring the file and its lock.
        ring.submitter().register_eventfd(bell)?;
        ring.completion().disable_eventfd();
        Ok(Self { ring, file: types::Fd(file), registered, under_way: 0 })
    }

    /// Something is with the kernel, or has ended and was not taken.
    pub(super) fn is_busy(&self) -> bool {
        self.under_way > 0
    }

    /// Nothing has ended that was not taken, and the kernel has all that was pushed; whatever ends
    /// from now on rings.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.ring.completion().enable_eventfd();
        // What ends now either finds the bell enabled or is seen here.
        fence(Ordering::SeqCst);
        let (_, queue, completions) = self.ring.split();
        let has_ended = !completions.is_empty() || queue.taskrun() || queue.cq_overflow();
        queue.is_empty() && !has_ended
    }

    pub(super) fn is_registered(&self) -> bool {
        self.registered
    }

    /// # Safety
    /// `start` has room for `length` bytes that nobody else uses until the end was reaped.
    pub(super) unsafe fn read(&mut self, index: usize, offset: u64, start: *mut u8, length: usize) {
        let length = u32::try_from(length).expect("a read's length has 32 bits");
        let entry = opcode::Read::new(self.file, start, length).offset(offset).build();
        self.push(entry, Tag::Transfer(index));
    }

    /// # Safety
    /// The bytes, which lie in the registered buffer with this number, if any, do not change until
    /// the end was reaped.
    pub(super) unsafe fn write(
        &mut self,
        index: usize,
        offset: u64,
        (start, length): (*const u8, usize),
        buffer: Option<usize>,
        stable: Stable,
    ) {
        let length = u32::try_from(length).expect("a write's length has 32 bits");
        let file = self.file;
        let flags = if stable == Stable::ByItself { libc::RWF_DSYNC } else { 0 };
        let entry = if let Some(number) = buffer.filter(|_| self.registered) {
            let number = u16::try_from(number).expect("few buffers");
            let write = opcode::WriteFixed::new(file, start, length, number);
            write.offset(offset).rw_flags(flags).build()
        } else {
            opcode::Write::new(file, start, length).offset(offset).rw_flags(flags).build()
        };
        let linked = stable == Stable::ByLinkedSync;
        let flags = if linked { squeue::Flags::IO_LINK } else { squeue::Flags::empty() };
        self.push(entry.flags(flags), Tag::Transfer(index));
        if linked {
            self.sync();
        }
    }

    pub(super) fn sync(&mut self) {
        let entry = opcode::Fsync::new(self.file).flags(types::FsyncFlags::DATASYNC).build();
        self.push(entry, Tag::Sync);
    }

    fn push(&mut self, entry: squeue::Entry, tag: Tag) {
        let entry = entry.user_data(tag.encode());
        // SAFETY: who asked for a transfer has promised that its memory stays; the others have
        // none.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the ring has room for all that may be under way");
        self.under_way += 1;
    }

    /// Hands everything to the kernel; waits, if told so, until something has ended. No system
    /// call if there is nothing to do.
    pub(super) fn enter(&mut self, wait: bool) {
        let (submitter, queue, _) = self.ring.split();
        if !wait && queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
            return;
        }
        match submitter.submit_and_wait(usize::from(wait)) {
            Ok(_) => {}
            Err(error) => {
                let code = error.raw_os_error();
                let again = matches!(code, Some(libc::EINTR | libc::EAGAIN | libc::EBUSY));
                assert!(again, "the kernel refuses its own ring: {error}");
            }
        }
    }

    /// What has ended.
    pub(super) fn ended(&mut self) -> Vec<(Tag, io::Result<usize>)> {
        self.ring.completion().disable_eventfd();
        self.enter(false);
        let ended = self.ring.completion().map(|entry| {
            let result = usize::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(-entry.result()));
            (Tag::decode(entry.user_data()), result)
        });
        let ended: Vec<_> = ended.collect();
        self.under_way -= ended.len();
        ended
    }
}

pub(super) fn bell() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a descriptor that is returned is ours alone.
    unsafe {
        let descriptor = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// The buffers for writes: small ones first.
pub(super) struct Pool {
    buffers: Vec<AlignedBuffer>,
    small: Vec<usize>,
    large: Vec<usize>,
    /// Small ones.
    smalls: usize,
}

impl Pool {
    pub(super) fn new(smalls: usize, larges: usize) -> Self {
        let sizes = [(smalls, SMALL_BYTES), (larges, LARGE_BYTES)];
        let sizes = sizes.into_iter().flat_map(|(count, size)| vec![size; count]);
        Self {
            buffers: sizes.map(AlignedBuffer::new).collect(),
            small: (0..smalls).collect(),
            large: (smalls..smalls + larges).collect(),
            smalls,
        }
    }

    pub(super) fn empty() -> Self {
        Self::new(0, 0)
    }

    pub(super) fn buffers(&mut self) -> &mut [AlignedBuffer] {
        &mut self.buffers
    }

    /// The number of an empty buffer for that many bytes, or for a part of them.
    pub(super) fn take(&mut self, bytes: usize) -> Option<usize> {
        let number = if bytes <= SMALL_BYTES { self.small.pop() } else { None };
        number.or_else(|| self.large.pop())
    }

    pub(super) fn give_back(&mut self, number: usize) {
        self.buffers[number].truncate(0);
        if number < self.smalls { self.small.push(number) } else { self.large.push(number) }
    }
}
