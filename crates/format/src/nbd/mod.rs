//! The NBD server side: fixed newstyle negotiation and the transmission phase, without I/O.
//!
//! Decides: what a client's bytes ask for, which of it is malformed, and how answers are encoded.
//! Does not: read or write sockets, know what an export holds, or bound how many requests are in
//! flight (whoever calls [`Server::step`] stops calling it while too many are).
//! Invariants:
//! - no input panics or makes us allocate beyond [`PAYLOAD_BYTES_MAX`] and a header;
//! - bytes are answered with an NBD error where the protocol has one, else with [`Event::Close`],
//!   and after that nothing of this connection is looked at any more;
//! - payloads are handed on and sent without being copied.
//!
//! Specification: `doc/proto.md` of github.com/NetworkBlockDevice/nbd. Not spoken: TLS, extended
//! headers, the old style. The size that a client learns is that of the moment it opened the
//! export; whether a request fits the device as it is now is for whoever carries it out.

mod negotiation;
mod reply;
#[cfg(test)]
mod tests;
mod transmission;
mod wire;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

pub use reply::{NbdError, Pending};

/// Longest read, and longest payload of a write; told to clients as the maximum block size.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// Longest range that one block status request is answered for. The protocol lets a server
/// answer for less than was asked.
pub const STATUS_BYTES_MAX: u32 = 1 << 30;
/// Longest data of an option, and longest export name, in bytes.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;
pub const NAME_BYTES_MAX: u32 = 4096;
/// Options of one connection; a client needs a handful.
pub const OPTIONS_MAX: u32 = 4096;

/// What a client may open, by name.
pub type Exports = BTreeMap<String, ExportInfo>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportInfo {
    /// In bytes.
    pub size: u64,
}

/// What the shell is to do, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Send(Bytes),
    /// Negotiation is over: requests of this connection are for this export.
    Opened {
        export: String,
    },
    /// To be answered exactly once, by encoding the answer with `pending`. Answers may be sent in
    /// any order, but never one within another.
    Request {
        pending: Pending,
        request: NbdRequest,
    },
    /// Nothing more is read. What is in flight is answered (unless the reason is malformed
    /// input), then the connection is closed.
    Close {
        reason: CloseReason,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdRequest {
    Read {
        offset: u64,
        length: u32,
    },
    /// Durable when answered if `fua`.
    Write {
        offset: u64,
        data: Bytes,
        fua: bool,
    },
    Flush,
    Trim {
        offset: u64,
        length: u32,
        fua: bool,
    },
    WriteZeroes {
        offset: u64,
        length: u32,
        fua: bool,
    },
    BlockStatus {
        offset: u64,
        length: u32,
    },
}

/// Why a connection ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    #[error("the client disconnected")]
    Disconnected,
    #[error("the client gave up negotiating")]
    Aborted,
    #[error("there is no export of that name")]
    UnknownExport,
    #[error("malformed input: {0}")]
    Malformed(&'static str),
}

/// One connection.
#[derive(Debug)]
pub struct Server {
    phase: Phase,
}

/// ```text
/// client flags ─► options ─► transmission ─► closed
///       └────────────┴──────────────────────────┘
/// ```
#[derive(Debug)]
enum Phase {
    ClientFlags,
    Options(negotiation::Negotiation),
    Transmission(transmission::Transmission),
    Closed,
}

/// Whether there may be more to take off the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Something was consumed; call again.
    Made,
    /// More bytes are needed (or the connection is closed).
    Stalled,
}

impl Server {
    /// A new connection; the greeting is the first thing to send.
    pub fn new(out: &mut Vec<Event>) -> Self {
        out.push(Event::Send(wire::greeting()));
        Self { phase: Phase::ClientFlags }
    }

    /// Takes at most one message off `input`: one option, or one request with its payload.
    pub fn step(
        &mut self,
        input: &mut BytesMut,
        exports: &Exports,
        out: &mut Vec<Event>,
    ) -> Progress {
        let result = match &mut self.phase {
            Phase::Closed => {
                input.clear();
                return Progress::Stalled;
            }
            Phase::ClientFlags => negotiation::client_flags(input),
            Phase::Options(negotiation) => negotiation.step(input, exports, out),
            Phase::Transmission(transmission) => transmission.step(input, out),
        };
        match result {
            Ok(Step::Stalled) => Progress::Stalled,
            Ok(Step::Made) => Progress::Made,
            Ok(Step::Enter(phase)) => {
                self.phase = phase;
                Progress::Made
            }
            Err(reason) => {
                self.phase = Phase::Closed;
                out.push(Event::Close { reason });
                Progress::Stalled
            }
        }
    }

    /// Takes everything complete off `input`. What it returns is bounded by the bytes given.
    pub fn receive(&mut self, input: &mut BytesMut, exports: &Exports, out: &mut Vec<Event>) {
        while self.step(input, exports, out) == Progress::Made {}
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }
}

/// How taking one message went.
#[derive(Debug)]
enum Step {
    Made,
    Stalled,
    Enter(Phase),
}
