//! The reactor: one thread, one epoll, every socket of a server or node manager.
//!
//! Decides: when bytes are read and written, when a peer is dialed again, whether bytes are
//! frames and the peer is of this cluster.
//! Does not: know what a message means, or which peer ought to be up.
//! Invariants:
//! - What one turn of the loop produces for a connection leaves in one `writev`.
//! - Nothing is dropped on an open connection: a peer that does not read its answers is not read
//!   from, and one whose queue passes [`OUTPUT_BYTES_MAX`] is closed.
//! - A fault of a peer closes that connection and no other.
//! - A [`ConnId`] is never used again.
//!
//! ```text
//! loop {
//!     reactor.turn(machine.deadline(), &mut events)?;   // flush, sleep, read
//!     for event in events.drain(..) { machine.handle(reactor.now(), event, &mut actions) }
//!     for action in actions.drain(..) { reactor.send(..) }   // queued until the next turn
//! }
//! ```

mod conn;
mod dial;
mod input;
mod links;
mod mailbox;
mod output;
pub mod patience;
mod reactor;
mod signal;
mod socket;

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use format::{
    ctl::{CtlError, FromManager},
    data::{DataError, DataMessage, Peer},
    frame::FrameError,
};
use model::id::ServerId;

pub use mailbox::Poster;
pub use reactor::Reactor;

/// An accepted connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Where raw connections are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawAddress {
    /// Port 0 lets the kernel choose; `Reactor::listen_raw` says what it chose.
    Tcp(SocketAddr),
    /// The path is removed first when nothing listens on it any more.
    Unix(PathBuf),
}

/// What happened. `P` is what other threads post.
#[derive(Debug)]
pub enum NetEvent<P> {
    /// A data connection was accepted and its `Hello` is of this cluster.
    ConnOpened {
        conn: ConnId,
        peer: Peer,
    },
    ConnReceived {
        conn: ConnId,
        message: DataMessage,
    },
    /// Comes once for each `ConnOpened`, unless we closed it.
    ConnClosed {
        conn: ConnId,
    },
    /// The link to a server is up: both sides said `Hello`.
    LinkUp {
        server: ServerId,
    },
    /// Comes once for each `LinkUp`, unless we disconnected; the reactor keeps dialing.
    LinkDown {
        server: ServerId,
    },
    LinkReceived {
        server: ServerId,
        message: DataMessage,
    },
    /// The manager's link is up; the caller registers first.
    ManagerLinkUp,
    ManagerLinkDown,
    ManagerSent {
        message: FromManager,
    },
    RawOpened {
        conn: ConnId,
    },
    /// More bytes are in `Reactor::raw_input`; take what is complete, leave the rest.
    RawReceived {
        conn: ConnId,
    },
    /// The peer has caught up with its answers: `Reactor::is_congested` was true and is no more.
    RawDrained {
        conn: ConnId,
    },
    /// Comes once for each `RawOpened`, unless we closed it.
    RawClosed {
        conn: ConnId,
    },
    /// From another thread.
    Posted(P),
    /// SIGTERM or SIGINT arrived.
    StopRequested,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("closed by the peer")]
    Closed,
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("malformed frame: {0}")]
    Frame(#[from] FrameError),
    #[error("malformed message: {0}")]
    Data(#[from] DataError),
    #[error("malformed control message: {0}")]
    Ctl(#[from] CtlError),
    #[error("the first message was not a hello")]
    HelloMissing,
    #[error("a second hello")]
    HelloRepeated,
    #[error("peer is of cluster '{0}'")]
    Cluster(String),
    #[error("no hello within {HANDSHAKE_LIMIT:?}")]
    HandshakeTimeout,
    #[error("did not take its last bytes within {HANDSHAKE_LIMIT:?}")]
    LingerTimeout,
    #[error("{0} bytes are queued for a peer that does not read")]
    OutputOverflow(usize),
}

/// Most bytes taken from one connection in one turn.
const READ_BYTES: usize = 256 << 10;
/// A read buffer with less room than this is replaced.
const READ_ROOM_MIN: usize = 16 << 10;
/// Payloads below this are copied next to their header; larger ones are sent from where they are.
const PAYLOAD_COPY_BYTES_MAX: usize = 1 << 10;
/// An accepted connection with more unsent output than this is not read from.
const OUTPUT_PAUSE_BYTES: usize = 8 << 20;
/// A connection with more unsent output than this is closed.
const OUTPUT_BYTES_MAX: usize = 256 << 20;
/// A raw connection whose owner left more input than this is not read from: the largest NBD
/// write and its header fit.
const RAW_INPUT_BYTES_MAX: usize = 33 << 20;
/// From accept or dial to the end of the hello exchange; also from close to the last byte's leave.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(2);
const REDIAL_MIN: Duration = Duration::from_millis(10);
const REDIAL_MAX: Duration = Duration::from_millis(500);
/// A link that was up for this long starts its back-off afresh.
const LINK_PROVEN_AFTER: Duration = Duration::from_secs(1);
/// Accepted connections; more are closed at once.
const CONNS_MAX: usize = 4096;
/// Posted events that wait; a thread that posts more waits for room.
const MAILBOX_MAX: usize = 16 << 10;

const _: () = assert!(OUTPUT_PAUSE_BYTES < OUTPUT_BYTES_MAX);
