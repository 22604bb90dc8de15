//! SIGTERM and SIGINT as something epoll can see.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io::{self, Read},
    mem::MaybeUninit,
    os::fd::{AsRawFd, FromRawFd},
    ptr,
};

use mio::{Interest, Registry, Token, unix::SourceFd};

/// A signalfd. Made before other threads are, so that they inherit the blocked signals.
pub(super) struct StopSignal {
    file: File,
}

impl StopSignal {
    pub(super) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `set` is initialised by `sigemptyset` before anything reads it, and the
        // pointers are valid for the length of each call.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
            libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `signalfd` returned this descriptor, and nothing else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        registry.register(&mut SourceFd(&file.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Self { file })
    }

    /// Whether a signal had arrived.
    pub(super) fn take(&mut self) -> bool {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        let mut seen = false;
        while self.file.read_exact(&mut info).is_ok() {
            seen = true;
        }
        seen
    }
}
