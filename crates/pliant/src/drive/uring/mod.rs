//! One io_uring per drive, served by one thread of its own.
//!
//! Decides: what is with the kernel at once, and which writes share an `fdatasync`.
//! Everything that came or became possible since the last turn goes to the kernel in one
//! system call, and everything that ended meanwhile is answered in one batch.
//!
//! Reads, writes that somebody waits for and writes in the background have their own shares of the
//! ring, so that none starves another. What finds no place waits here; that is bounded by what the
//! engine has under way.

mod line;
mod ring;

use std::{
    fs, io,
    os::fd::AsRawFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
};

use self::{line::Line, ring::Wake};
use super::{Driver, Request, Sink, file::DriveFile};

/// What the submitter and the drive's thread share.
#[derive(Debug)]
struct Shared {
    inbox: Mutex<Inbox>,
    wake: Wake,
}

#[derive(Debug, Default)]
struct Inbox {
    requests: Vec<Request>,
    /// The thread waits for the kernel and must be woken.
    asleep: bool,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        // Nothing panics while it holds the lock, so what it guards is whole even if poisoned.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub struct Uring {
    shared: Arc<Shared>,
    bytes: u64,
    description: String,
    thread: Option<JoinHandle<()>>,
}

impl Uring {
    /// An error means that the kernel, or what confines this process, refuses io_uring.
    pub(super) fn start(file: Arc<DriveFile>, bytes: u64, sink: Sink) -> io::Result<Self> {
        let shared = Arc::new(Shared { inbox: Mutex::default(), wake: Wake::new()? });
        let (sender, ready) = mpsc::sync_channel(1);
        let thread = {
            let (shared, file) = (Arc::clone(&shared), Arc::clone(&file));
            // The ring belongs to the thread that made it.
            let serve = move || match Line::new(&file, shared.wake.as_raw_fd()) {
                Ok(line) => {
                    // Whoever starts us waits for this.
                    drop(sender.send(Ok(line.is_registered())));
                    shared.serve(line, &file, &sink);
                }
                Err(error) => drop(sender.send(Err(error))),
            };
            thread::Builder::new().name("drive-ring".to_owned()).spawn(serve)?
        };
        let started = ready.recv().unwrap_or_else(|_| Err(io::Error::other("the thread died")));
        match started {
            Ok(registered) => {
                let cache = if file.is_direct() { "O_DIRECT" } else { "buffered" };
                let buffers = if registered { ", registered buffers" } else { "" };
                let stability = file.stability();
                let description = format!("io_uring, {cache}{buffers}; {stability}");
                Ok(Self { shared, bytes, description, thread: Some(thread) })
            }
            Err(error) => {
                drop(thread.join());
                Err(error)
            }
        }
    }
}

impl Driver for Uring {
    fn submit(&self, batch: Vec<Request>) {
        batch.iter().for_each(|request| request.check(self.bytes));
        let mut inbox = self.shared.lock();
        inbox.requests.extend(batch);
        let asleep = std::mem::take(&mut inbox.asleep);
        drop(inbox);
        if asleep {
            self.shared.wake.wake();
        }
    }

    fn description(&self) -> String {
        self.description.clone()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a drive's thread panicked");
        }
    }
}

impl Shared {
    fn serve(&self, mut line: Line, file: &DriveFile, sink: &Sink) {
        loop {
            let mut inbox = self.lock();
            let requests = std::mem::take(&mut inbox.requests);
            let closed = inbox.closed;
            inbox.asleep = false;
            drop(inbox);
            let mut done = Vec::new();
            line.take(requests, &mut done);
            line.start(file, &mut done);
            if !done.is_empty() {
                // They needed no transfer.
                sink.deliver(std::mem::take(&mut done));
            }
            if closed && line.is_idle() {
                return;
            }
            let mut inbox = self.lock();
            let empty = inbox.requests.is_empty() && inbox.closed == closed;
            inbox.asleep = empty;
            drop(inbox);
            line.turn(empty, file, &self.wake, &mut done);
            sink.deliver(done);
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
