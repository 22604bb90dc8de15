//! Two io_urings per drive, in the thread that submits to them.
//!
//! Decides: what is with the kernel at once, and how a write becomes durable.
//! There is no hand-over: requests go to the kernel in the call that submits them, and what has
//! ended is reaped by the same thread, which finds out by polling a descriptor together with its
//! sockets.
//!
//! Reads, writes that somebody waits for and writes in the background have their own shares of the
//! ring, so that none starves another. What finds no place waits here; that is bounded by what the
//! engine has under way.

mod line;
mod ring;
mod transfer;

use std::{fs, io, os::fd::RawFd, sync::Arc};

use self::line::Line;
use super::{Completion, Driver, Request, file::DriveFile};

pub struct Uring {
    line: Line,
    file: Arc<DriveFile>,
    bytes: u64,
    /// Answered without the kernel.
    done: Vec<Completion>,
}

impl Uring {
    /// An error means that the kernel, or what confines this process, refuses io_uring.
    /// From now on this thread alone uses the driver.
    pub(super) fn start(file: Arc<DriveFile>, bytes: u64) -> io::Result<Self> {
        let line = Line::new(&file)?;
        Ok(Self { line, file, bytes, done: Vec::new() })
    }
}

impl Driver for Uring {
    fn submit(&mut self, batch: Vec<Request>) {
        batch.iter().for_each(|request| request.check(self.bytes));
        let mut writes = Vec::with_capacity(batch.len());
        for request in batch {
            match self.file.as_write(request) {
                Ok(request) => writes.push(request),
                Err(completion) => self.done.push(completion),
            }
        }
        self.line.take(writes, &mut self.done);
        self.line.start(&self.file, &mut self.done);
        self.line.enter(false);
    }

    fn description(&self) -> String {
        let cache = if self.file.is_direct() { "O_DIRECT" } else { "buffered" };
        let buffers = if self.line.is_registered() { ", registered buffers" } else { "" };
        format!("io_uring, {cache}{buffers}; {}", self.file.stability())
    }

    fn descriptor(&self) -> Option<RawFd> {
        Some(self.line.descriptor())
    }

    fn is_quiet(&mut self) -> bool {
        self.done.is_empty() && self.line.is_quiet()
    }

    fn reap(&mut self) -> Vec<Completion> {
        let mut done = std::mem::take(&mut self.done);
        self.line.reap(&self.file, &mut done);
        self.line.start(&self.file, &mut done);
        self.line.enter(false);
        done
    }
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.description())
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // What was asked is done, though nobody hears of it.
        while !self.line.is_idle() {
            self.line.enter(true);
            self.reap();
        }
    }
}

/// What to do about a refusal.
pub(super) fn remedy(error: &io::Error) -> String {
    const SWITCH: &str = "/proc/sys/kernel/io_uring_disabled";
    let switch = fs::read_to_string(SWITCH).unwrap_or_default();
    match (switch.trim(), error.raw_os_error()) {
        ("1" | "2", _) => {
            format!("the sysctl kernel.io_uring_disabled is {}: set it to 0", switch.trim())
        }
        (_, Some(libc::EPERM | libc::EACCES | libc::ENOSYS)) => {
            "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp \
             profile; if there is none, the kernel is older than 5.6 or built without io_uring"
                .to_owned()
        }
        (_, Some(libc::ENOMEM)) => {
            "raise the limit on locked memory (ulimit -l, LimitMEMLOCK)".to_owned()
        }
        _ => "see io_uring_setup(2) for this error".to_owned(),
    }
}
