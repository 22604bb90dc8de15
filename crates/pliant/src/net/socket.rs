//! TCP and unix sockets as one thing, and reading into memory that nobody cleared first.
#![allow(unsafe_code)]

use std::{
    io::{self, IoSlice, Write},
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
};

use super::patience;
use bytes::{BufMut, BytesMut};
use mio::{Interest, Registry, Token, event::Source};

#[derive(Debug)]
pub(super) enum Stream {
    Tcp(mio::net::TcpStream),
    Unix(mio::net::UnixStream),
}

impl Stream {
    /// Begins to connect; the socket becomes writable when that has ended.
    pub(super) fn dial(address: SocketAddr) -> io::Result<Self> {
        mio::net::TcpStream::connect(address).map(Self::Tcp)
    }

    /// How connecting ended.
    pub(super) fn connected(&self) -> io::Result<()> {
        let Self::Tcp(tcp) = self else { return Ok(()) };
        if let Some(error) = tcp.take_error()? {
            return Err(error);
        }
        tcp.peer_addr().map(drop)
    }

    /// Small messages leave at once: the loop does the batching.
    pub(super) fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Self::Tcp(tcp) => tcp.set_nodelay(true),
            Self::Unix(_) => Ok(()),
        }
    }

    /// The far end is one of our own processes.
    pub(super) fn limit_silence(&self) -> io::Result<()> {
        match self {
            Self::Tcp(tcp) => patience::limit(tcp),
            Self::Unix(_) => Ok(()),
        }
    }

    /// Whom we talk to, for the log.
    pub(super) fn peer_name(&self) -> String {
        match self {
            Self::Tcp(tcp) => {
                tcp.peer_addr().map_or_else(|_| "unknown".to_owned(), |a| a.to_string())
            }
            Self::Unix(_) => "unix".to_owned(),
        }
    }

    /// Appends what one `read` gives to `input`'s spare room. Zero: the peer has finished.
    pub(super) fn read_into(&self, input: &mut BytesMut) -> io::Result<usize> {
        let room = input.chunk_mut();
        // SAFETY: `room` is memory that `input` owns and nobody else refers to; the kernel writes
        // at most `room.len()` bytes to it.
        let count =
            unsafe { libc::read(self.fd(), room.as_mut_ptr().cast::<libc::c_void>(), room.len()) };
        let Ok(count) = usize::try_from(count) else { return Err(io::Error::last_os_error()) };
        // SAFETY: the kernel has just written the first `count` bytes of the spare room.
        unsafe { input.advance_mut(count) };
        Ok(count)
    }

    fn fd(&self) -> RawFd {
        match self {
            Self::Tcp(tcp) => tcp.as_raw_fd(),
            Self::Unix(unix) => unix.as_raw_fd(),
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(tcp) => tcp,
            Self::Unix(unix) => unix,
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(self.source(), token, Interest::READABLE | Interest::WRITABLE)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.write(bytes),
            Self::Unix(unix) => unix.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.write_vectored(slices),
            Self::Unix(unix) => unix.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
pub(super) enum Listener {
    Tcp(mio::net::TcpListener),
    Unix(mio::net::UnixListener),
}

impl Listener {
    pub(super) fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(tcp) => tcp.accept().map(|(stream, _)| Stream::Tcp(stream)),
            Self::Unix(unix) => unix.accept().map(|(stream, _)| Stream::Unix(stream)),
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            Self::Tcp(tcp) => registry.register(tcp, token, Interest::READABLE),
            Self::Unix(unix) => registry.register(unix, token, Interest::READABLE),
        }
    }
}
