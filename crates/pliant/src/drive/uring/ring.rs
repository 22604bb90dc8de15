//! The kernel's side: the ring, its registered buffers, and the descriptor that wakes it.
//!
//! The file is not registered: the kernel would hold it, and the drive's lock with it, for a second
//! and more after its process was killed, and refuse the drive to the next one.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, RawFd},
};

use io_uring::{IoUring, Probe, opcode, squeue, types};

use crate::drive::buffer::AlignedBuffer;

/// Room for every transfer, a sync and a wake-up.
const ENTRIES: u32 = 128;

/// Buffers for writes: content comes in memory that is seldom aligned, so it is copied into one of
/// these. Their number bounds what writes pin, and stays below the default of RLIMIT_MEMLOCK.
const SMALL: (usize, usize) = (32, 32 << 10);
const LARGE: (usize, usize) = (4, 1 << 20);

/// What an entry of the completion queue answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    Transfer(usize),
    Sync,
    Wake,
}

const SYNC: u64 = u64::MAX - 1;
const WAKE: u64 = u64::MAX;

impl Tag {
    fn encode(self) -> u64 {
        match self {
            Self::Transfer(index) => u64::try_from(index).expect("a small index"),
            Self::Sync => SYNC,
            Self::Wake => WAKE,
        }
    }

    fn decode(data: u64) -> Self {
        match data {
            SYNC => Self::Sync,
            WAKE => Self::Wake,
            index => Self::Transfer(usize::try_from(index).expect("we made it")),
        }
    }
}

/// Makes a thread that waits for the ring look at its inbox.
#[derive(Debug)]
pub(super) struct Wake(File);

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no pointers; a descriptor that is returned is ours alone.
        unsafe {
            let descriptor = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if descriptor < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(File::from_raw_fd(descriptor)))
        }
    }

    pub(super) fn wake(&self) {
        // It fails only when the count is at its limit, and then the thread is being woken.
        drop(io::Write::write(&mut &self.0, &1u64.to_ne_bytes()));
    }

    pub(super) fn clear(&self) {
        // It fails only when nothing is to be cleared.
        drop(io::Read::read(&mut &self.0, &mut [0; 8]));
    }
}

impl AsRawFd for Wake {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Memory is handed to the kernel by address: whoever asks for a transfer keeps the memory in
/// place until its end has been reaped, or for ever.
pub(super) struct Ring {
    ring: IoUring,
    file: types::Fd,
    wake: types::Fd,
    /// Buffers for writes are registered by their number.
    registered: bool,
}

impl Ring {
    pub(super) fn new(file: RawFd, wake: RawFd, buffers: &mut [AlignedBuffer]) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all();
        let ring = match builder.build(ENTRIES) {
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
            opcode::PollAdd::CODE,
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
        Ok(Self { ring, file: types::Fd(file), wake: types::Fd(wake), registered })
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
    /// `bytes` lie in the registered buffer with this number and do not change until the end was
    /// reaped.
    pub(super) unsafe fn write(
        &mut self,
        index: usize,
        offset: u64,
        bytes: &[u8],
        buffer: usize,
        then_sync: bool,
    ) {
        let length = u32::try_from(bytes.len()).expect("at most a buffer");
        let start = bytes.as_ptr();
        let entry = if self.registered {
            let number = u16::try_from(buffer).expect("few buffers");
            opcode::WriteFixed::new(self.file, start, length, number).offset(offset).build()
        } else {
            opcode::Write::new(self.file, start, length).offset(offset).build()
        };
        let flags = if then_sync { squeue::Flags::IO_LINK } else { squeue::Flags::empty() };
        self.push(entry.flags(flags), Tag::Transfer(index));
        if then_sync {
            self.sync();
        }
    }

    pub(super) fn sync(&mut self) {
        let entry = opcode::Fsync::new(self.file).flags(types::FsyncFlags::DATASYNC).build();
        self.push(entry, Tag::Sync);
    }

    pub(super) fn watch_wake(&mut self) {
        let events = u32::try_from(libc::POLLIN).expect("a small flag");
        self.push(opcode::PollAdd::new(self.wake, events).build(), Tag::Wake);
    }

    fn push(&mut self, entry: squeue::Entry, tag: Tag) {
        let entry = entry.user_data(tag.encode());
        // SAFETY: who asked for a transfer has promised that its memory stays; the others have
        // none.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the ring has room for all that may be under way");
    }

    /// Hands everything to the kernel and, if told so, waits until something has ended.
    pub(super) fn enter(&mut self, wait: bool) -> Vec<(Tag, io::Result<usize>)> {
        match self.ring.submit_and_wait(usize::from(wait)) {
            Ok(_) => {}
            Err(error) => {
                let code = error.raw_os_error();
                let again = matches!(code, Some(libc::EINTR | libc::EAGAIN | libc::EBUSY));
                assert!(again, "the kernel refuses its own ring: {error}");
            }
        }
        let ended = self.ring.completion().map(|entry| {
            let result = usize::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(-entry.result()));
            (Tag::decode(entry.user_data()), result)
        });
        ended.collect()
    }
}

/// The buffers for writes: small ones first.
pub(super) struct Pool {
    buffers: Vec<AlignedBuffer>,
    small: Vec<usize>,
    large: Vec<usize>,
}

impl Pool {
    pub(super) fn new() -> Self {
        let sizes = [SMALL, LARGE].into_iter().flat_map(|(count, size)| vec![size; count]);
        Self {
            buffers: sizes.map(AlignedBuffer::new).collect(),
            small: (0..SMALL.0).collect(),
            large: (SMALL.0..SMALL.0 + LARGE.0).collect(),
        }
    }

    pub(super) fn empty() -> Self {
        Self { buffers: Vec::new(), small: Vec::new(), large: Vec::new() }
    }

    pub(super) fn buffers(&mut self) -> &mut [AlignedBuffer] {
        &mut self.buffers
    }

    /// The number of an empty buffer for that many bytes, or for a part of them.
    pub(super) fn take(&mut self, bytes: usize) -> Option<usize> {
        let number = if bytes <= SMALL.1 { self.small.pop() } else { None };
        number.or_else(|| self.large.pop())
    }

    pub(super) fn give_back(&mut self, number: usize) {
        self.buffers[number].truncate(0);
        if number < SMALL.0 { self.small.push(number) } else { self.large.push(number) }
    }
}
