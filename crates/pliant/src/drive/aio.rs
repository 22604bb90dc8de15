//! Many transfers handed to the kernel in one call: Linux's native AIO, which works on files
//! opened with O_DIRECT, and where a container's seccomp profile forbids io_uring.
//!
//! A single `pwrite` costs a doorbell to the device, an interrupt and two switches of context; of
//! a batch, all transfers share them.
#![allow(unsafe_code)]

use std::{io, mem::MaybeUninit, os::fd::RawFd, ptr};

/// Transfers that one thread has with the kernel at once.
pub(super) const DEPTH: usize = 32;

const READ: u16 = 0;
const WRITE: u16 = 1;

/// The kernel's `struct iocb`, little-endian.
#[repr(C)]
#[derive(Clone, Copy)]
struct ControlBlock {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_file: u32,
}

/// The kernel's `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy)]
struct KernelEvent {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

const _: () = assert!(size_of::<ControlBlock>() == 64 && size_of::<KernelEvent>() == 32);

/// One read or write between the file and memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transfer {
    opcode: u16,
    offset: u64,
    start: *mut u8,
    length: usize,
}

impl Transfer {
    /// # Safety
    /// The memory must be the caller's alone until [`Aio::run`] has returned.
    pub(super) unsafe fn read(offset: u64, start: *mut u8, length: usize) -> Self {
        Self { opcode: READ, offset, start, length }
    }

    /// # Safety
    /// The memory must not change until [`Aio::run`] has returned.
    pub(super) unsafe fn write(offset: u64, bytes: &[u8]) -> Self {
        Self { opcode: WRITE, offset, start: bytes.as_ptr().cast_mut(), length: bytes.len() }
    }
}

/// How a transfer ended: which one, and the bytes it moved.
pub(super) type Ended = (usize, io::Result<usize>);

/// One thread's context.
#[derive(Debug)]
pub(super) struct Aio {
    context: libc::c_ulong,
}

impl Aio {
    pub(super) fn new() -> io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one context to the pointer.
        let status = unsafe { libc::syscall(libc::SYS_io_setup, DEPTH, &raw mut context) };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { context }) }
    }

    /// Carries out at most [`DEPTH`] transfers; `each` is given them as they end, each once.
    /// Nothing is with the kernel any more when this returns.
    pub(super) fn run(
        &mut self,
        file: RawFd,
        transfers: &[Transfer],
        mut each: impl FnMut(Vec<Ended>),
    ) {
        assert!(transfers.len() <= DEPTH, "{} transfers", transfers.len());
        let mut blocks: Vec<_> =
            (0..).zip(transfers).map(|(index, t)| control_block(file, index, t)).collect();
        // Waits, when dropped, for what is under way: also if `each` panics.
        let mut flight = Flight { context: self.context, count: 0 };
        let mut next = 0;
        while next < blocks.len() {
            match flight.submit(&mut blocks[next..]) {
                Ok(count) => next += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel has no room for more.
                Err(error) if flight.count > 0 && error.raw_os_error() == Some(libc::EAGAIN) => {
                    each(flight.wait());
                }
                Err(error) => {
                    each(vec![(next, Err(error))]);
                    next += 1;
                }
            }
        }
        while flight.count > 0 {
            each(flight.wait());
        }
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: our own context, with nothing under way.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

fn control_block(file: RawFd, index: u64, transfer: &Transfer) -> ControlBlock {
    ControlBlock {
        data: index,
        key: 0,
        rw_flags: 0,
        opcode: transfer.opcode,
        priority: 0,
        file: u32::try_from(file).expect("an open file"),
        buffer: u64::try_from(transfer.start.expose_provenance()).expect("an address"),
        length: u64::try_from(transfer.length).expect("a length"),
        offset: i64::try_from(transfer.offset).expect("checked against the drive's size"),
        reserved: 0,
        flags: 0,
        event_file: 0,
    }
}

/// What the kernel has.
struct Flight {
    context: libc::c_ulong,
    count: usize,
}

impl Flight {
    /// How many of the blocks, from the first on, the kernel took.
    fn submit(&mut self, blocks: &mut [ControlBlock]) -> io::Result<usize> {
        let mut pointers = [ptr::null_mut::<ControlBlock>(); DEPTH];
        for (pointer, block) in pointers.iter_mut().zip(blocks.iter_mut()) {
            *pointer = block;
        }
        let count = blocks.len().min(DEPTH);
        // SAFETY: `count` pointers to control blocks, which the kernel copies before it returns.
        // The memory that they name stays valid until the transfers have ended: whoever made the
        // `Transfer`s promised that until `Aio::run` returns, and `drop` waits for the rest.
        let taken = unsafe {
            libc::syscall(libc::SYS_io_submit, self.context, count, pointers.as_mut_ptr())
        };
        let taken = usize::try_from(taken).map_err(|_| io::Error::last_os_error())?;
        self.count += taken;
        Ok(taken)
    }

    /// Waits until at least one has ended.
    fn wait(&mut self) -> Vec<Ended> {
        let mut events = [MaybeUninit::<KernelEvent>::uninit(); DEPTH];
        let count = loop {
            // SAFETY: room for `DEPTH` events.
            let count = unsafe {
                let (least, most) = (1, DEPTH);
                let no_timeout = ptr::null_mut::<libc::timespec>();
                let events = events.as_mut_ptr();
                libc::syscall(libc::SYS_io_getevents, self.context, least, most, events, no_timeout)
            };
            match usize::try_from(count) {
                Ok(count) => break count,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    let interrupted = error.kind() == io::ErrorKind::Interrupted;
                    assert!(interrupted, "the kernel lost our transfers: {error}");
                }
            }
        };
        self.count -= count;
        let ended = events[..count].iter().map(|event| {
            // SAFETY: the kernel wrote the first `count` events.
            let event = unsafe { event.assume_init() };
            let index = usize::try_from(event.data).expect("we numbered it");
            let result = usize::try_from(event.result).map_err(|_| {
                io::Error::from_raw_os_error(i32::try_from(-event.result).unwrap_or(libc::EIO))
            });
            (index, result)
        });
        ended.collect()
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        while self.count > 0 {
            self.wait();
        }
    }
}
