//! NBD on a unix socket and on TCP: every attached volume is an export named by its id.
//!
//! Decides: which requests of a connection are taken now and which wait in its socket.
//! Does not: speak the protocol (`format::nbd` does), or answer requests (the node machine does).
//! Invariants:
//! - a connection has at most [`REQUESTS_MAX`] requests in flight, and takes no further one while
//!   they carry [`BYTES_MAX`] bytes or more, or while it leaves its answers unread; beyond that
//!   its socket is not read;
//! - every request taken is answered once, unless its connection is gone: then the machine is
//!   told so;
//! - malformed input ends its own connection and nothing else;
//! - after `close_export` no request of that volume is handed out, and none waits for an answer.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use format::nbd::{
    CloseReason, Event as NbdEvent, ExportInfo, Exports, NbdError, NbdRequest, Pending, Progress,
    Server,
};
use model::{id::VolumeId, units::ByteCount};
use node::api::{Event, GuestError, GuestReply, GuestRequest, GuestToken};

use super::Tokens;
use crate::net::{ConnId, RawAddress, Reactor};

/// Requests of one connection in flight.
const REQUESTS_MAX: usize = 128;
/// Bytes that they carry, to or fro.
const BYTES_MAX: u64 = 64 << 20;

/// Where the front listens.
#[derive(Debug, Clone, Default)]
pub struct NbdAddresses {
    pub socket: Option<PathBuf>,
    pub tcp: Option<SocketAddr>,
}

pub struct NbdFront {
    /// As bound: with the absolute path, and the port that the kernel chose.
    bound: NbdAddresses,
    exports: Exports,
    conns: BTreeMap<ConnId, Conn>,
    in_flight: BTreeMap<GuestToken, InFlight>,
}

struct Conn {
    server: Server,
    volume: Option<VolumeId>,
    tokens: BTreeSet<GuestToken>,
    bytes: u64,
    paused: bool,
    /// The client has said that nothing more comes: closed when the last answer is sent.
    ending: bool,
}

impl Conn {
    fn is_full(&self) -> bool {
        self.tokens.len() >= REQUESTS_MAX || self.bytes >= BYTES_MAX
    }
}

struct InFlight {
    conn: ConnId,
    pending: Pending,
    bytes: u64,
}

impl NbdFront {
    /// Listens. A socket file left by a predecessor is replaced; one that is answered is an error.
    pub fn listen<P>(reactor: &mut Reactor<P>, addresses: &NbdAddresses) -> io::Result<Self> {
        let mut bound = NbdAddresses::default();
        if let Some(path) = &addresses.socket {
            let path = std::path::absolute(path)?;
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            reactor.listen_raw(&RawAddress::Unix(path.clone()))?;
            // Whoever may connect may read and write every volume attached here.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            bound.socket = Some(path);
        }
        if let Some(address) = addresses.tcp {
            let raw = reactor.listen_raw(&RawAddress::Tcp(address))?;
            let RawAddress::Tcp(address) = raw else { unreachable!("asked for TCP") };
            bound.tcp = Some(address);
        }
        let (exports, conns, in_flight) = (Exports::new(), BTreeMap::new(), BTreeMap::new());
        Ok(Self { bound, exports, conns, in_flight })
    }

    /// Lets clients open the volume. Returns the addresses for it.
    pub fn open_export(&mut self, volume: VolumeId, size: ByteCount) -> Vec<String> {
        self.exports.insert(volume.to_string(), ExportInfo { size: size.get() });
        let unix = self.bound.socket.as_deref().map(|path| unix_uri(volume, path));
        let tcp = self.bound.tcp.map(|address| format!("nbd://{address}/{volume}"));
        unix.into_iter().chain(tcp).collect()
    }

    /// Clients that connect from now on see the new size; the protocol cannot tell those that
    /// are connected, but their requests up to the new end are served.
    pub fn resize_export(&mut self, volume: VolumeId, size: ByteCount) {
        if let Some(export) = self.exports.get_mut(&volume.to_string()) {
            export.size = size.get();
        }
    }

    /// Answers what is still unanswered with "shutting down" and closes the volume's connections.
    pub fn close_export<P>(&mut self, reactor: &mut Reactor<P>, volume: VolumeId) {
        self.exports.remove(&volume.to_string());
        let of_volume = |(id, conn): (&ConnId, &Conn)| (conn.volume == Some(volume)).then_some(*id);
        let ids: Vec<ConnId> = self.conns.iter().filter_map(of_volume).collect();
        for id in ids {
            let mut conn = self.conns.remove(&id).expect("it was just found");
            let mut answers = Vec::new();
            for token in &conn.tokens {
                let request = self.in_flight.remove(token).expect("tokens of a connection wait");
                answers.push(request.pending.error(NbdError::Shutdown));
            }
            if !conn.ending {
                self.refuse_rest(reactor, id, &mut conn.server, &mut answers);
            }
            reactor.send_raw(id, answers);
            reactor.close(id);
        }
    }

    /// Answers the requests that have arrived but were not taken.
    fn refuse_rest<P>(
        &self,
        reactor: &mut Reactor<P>,
        id: ConnId,
        server: &mut Server,
        answers: &mut Vec<Bytes>,
    ) {
        let Some(input) = reactor.raw_input(id) else { return };
        let mut events = Vec::new();
        server.receive(input, &self.exports, &mut events);
        for event in events {
            match event {
                NbdEvent::Send(bytes) => answers.push(bytes),
                NbdEvent::Request { pending, .. } => {
                    answers.push(pending.error(NbdError::Shutdown));
                }
                NbdEvent::Opened { .. } | NbdEvent::Close { .. } => {}
            }
        }
    }

    /// A client connected.
    pub fn connected<P>(&mut self, reactor: &mut Reactor<P>, id: ConnId) {
        let mut events = Vec::new();
        let server = Server::new(&mut events);
        for event in events {
            if let NbdEvent::Send(bytes) = event {
                reactor.send_raw(id, vec![bytes]);
            }
        }
        let tokens = BTreeSet::new();
        let conn = Conn { server, volume: None, tokens, bytes: 0, paused: false, ending: false };
        self.conns.insert(id, conn);
    }

    /// A client's connection is gone.
    pub fn disconnected(&mut self, id: ConnId, out: &mut VecDeque<Event>) {
        if let Some(conn) = self.conns.remove(&id) {
            self.forget(conn, out);
        }
    }

    /// Bytes arrived, or the client has caught up with its answers.
    pub fn received<P>(
        &mut self,
        reactor: &mut Reactor<P>,
        id: ConnId,
        tokens: &mut Tokens,
        out: &mut VecDeque<Event>,
    ) {
        self.take_requests(reactor, id, tokens, out);
    }

    /// Sends the machine's answer. One that nobody waits for any more is dropped.
    pub fn reply<P>(
        &mut self,
        reactor: &mut Reactor<P>,
        token: GuestToken,
        reply: GuestReply,
        tokens: &mut Tokens,
        out: &mut VecDeque<Event>,
    ) {
        let Some(InFlight { conn: id, pending, bytes }) = self.in_flight.remove(&token) else {
            return;
        };
        reactor.send_raw(id, answer(&pending, reply));
        let conn = self.conns.get_mut(&id).expect("a request in flight has its connection");
        let was_full = conn.is_full();
        conn.tokens.remove(&token);
        conn.bytes -= bytes;
        if conn.ending && conn.tokens.is_empty() {
            self.conns.remove(&id);
            reactor.close(id);
        } else if was_full {
            self.take_requests(reactor, id, tokens, out);
        }
    }

    /// Takes requests off the connection's input until it is full or the input runs dry.
    fn take_requests<P>(
        &mut self,
        reactor: &mut Reactor<P>,
        id: ConnId,
        tokens: &mut Tokens,
        out: &mut VecDeque<Event>,
    ) {
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| !conn.ending) else { return };
        let mut events = Vec::new();
        let mut answers = Vec::new();
        let mut close = None;
        while !conn.is_full() && !reactor.is_congested(id) && close.is_none() {
            let Some(input) = reactor.raw_input(id) else { break };
            let progress = conn.server.step(input, &self.exports, &mut events);
            for event in events.drain(..) {
                match event {
                    NbdEvent::Send(bytes) => answers.push(bytes),
                    NbdEvent::Opened { export } => {
                        let volume = export.parse().expect("exports are named by volume ids");
                        conn.volume = Some(volume);
                    }
                    NbdEvent::Request { pending, request } => {
                        let volume = conn.volume.expect("requests follow the opening");
                        let token = tokens.next();
                        let bytes = bytes_carried(&request);
                        conn.tokens.insert(token);
                        conn.bytes += bytes;
                        self.in_flight.insert(token, InFlight { conn: id, pending, bytes });
                        let request = guest_request(request);
                        out.push_back(Event::GuestRequested { volume, token, request });
                    }
                    NbdEvent::Close { reason } => close = Some(reason),
                }
            }
            if progress == Progress::Stalled {
                break;
            }
        }
        if conn.paused != conn.is_full() {
            conn.paused = conn.is_full();
            reactor.pause(id, conn.paused);
        }
        if !answers.is_empty() {
            reactor.send_raw(id, answers);
        }
        if let Some(reason) = close {
            self.end(reactor, id, &reason, out);
        }
    }

    /// The connection sends nothing more that we would look at.
    fn end<P>(
        &mut self,
        reactor: &mut Reactor<P>,
        id: ConnId,
        reason: &CloseReason,
        out: &mut VecDeque<Event>,
    ) {
        let malformed = matches!(reason, CloseReason::Malformed(_));
        if malformed {
            tracing::warn!(conn = id.0, %reason, "NBD connection closed");
        } else {
            tracing::debug!(conn = id.0, %reason, "NBD connection ends");
        }
        let conn = self.conns.get_mut(&id).expect("the caller has it");
        conn.ending = true;
        if malformed || conn.tokens.is_empty() {
            let conn = self.conns.remove(&id).expect("it was just there");
            reactor.close(id);
            self.forget(conn, out);
        }
    }

    fn forget(&mut self, conn: Conn, out: &mut VecDeque<Event>) {
        for token in &conn.tokens {
            self.in_flight.remove(token);
        }
        if let Some(volume) = conn.volume
            && !conn.tokens.is_empty()
        {
            out.push_back(Event::GuestGone { volume, tokens: conn.tokens.into_iter().collect() });
        }
    }
}

/// Flags need no mention: every answered write is durable, so FUA asks nothing more.
fn guest_request(request: NbdRequest) -> GuestRequest {
    match request {
        NbdRequest::Read { offset, length } => GuestRequest::Read { offset, length },
        NbdRequest::Write { offset, data, fua: _ } => GuestRequest::Write { offset, data },
        NbdRequest::Flush => GuestRequest::Flush,
        NbdRequest::Trim { offset, length, fua: _ } => {
            GuestRequest::Trim { offset, length: u64::from(length) }
        }
        NbdRequest::WriteZeroes { offset, length, fua: _ } => {
            GuestRequest::WriteZeroes { offset, length: u64::from(length) }
        }
        NbdRequest::BlockStatus { offset, length } => GuestRequest::BlockStatus { offset, length },
    }
}

fn bytes_carried(request: &NbdRequest) -> u64 {
    match request {
        NbdRequest::Read { length, .. } => u64::from(*length),
        NbdRequest::Write { data, .. } => u64::try_from(data.len()).expect("a length fits"),
        NbdRequest::Flush
        | NbdRequest::Trim { .. }
        | NbdRequest::WriteZeroes { .. }
        | NbdRequest::BlockStatus { .. } => 0,
    }
}

fn answer(pending: &Pending, reply: GuestReply) -> Vec<Bytes> {
    match reply {
        GuestReply::Done => vec![pending.done()],
        GuestReply::Data(data) => pending.data(data).into(),
        GuestReply::Blocks(runs) => vec![pending.blocks(&runs)],
        GuestReply::Failed(GuestError::OutOfRange) => vec![pending.out_of_range()],
        GuestReply::Failed(GuestError::BadBlock) => vec![pending.error(NbdError::Io)],
        GuestReply::Failed(GuestError::Gone) => vec![pending.error(NbdError::Shutdown)],
    }
}

/// As the NBD project's `doc/uri.md` has it; what is special in a query is escaped.
fn unix_uri(volume: VolumeId, socket: &Path) -> String {
    use std::{fmt::Write, os::unix::ffi::OsStrExt};
    let mut uri = format!("nbd+unix:///{volume}?socket=");
    for &byte in socket.as_os_str().as_bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' => uri.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => uri.push(char::from(byte)),
            _ => write!(uri, "%{byte:02X}").expect("writing to a string does not fail"),
        }
    }
    uri
}
