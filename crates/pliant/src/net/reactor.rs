//! The loop's turn: flush what is queued, sleep, read what came.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    net::{SocketAddr, TcpListener},
    os::{fd::RawFd, unix::net::UnixStream},
    path::Path,
};

use bytes::{Bytes, BytesMut};
use format::{
    ctl::{self, ToManager},
    data::{DataMessage, Hello},
    frame::Frame,
};
use mio::{Events, Interest, Poll, Token, unix::SourceFd};
use model::{id::ServerId, time::Instant};

use crate::clock::Clock;

use super::{
    CONNS_MAX, ConnId, Fault, HANDSHAKE_LIMIT, NetEvent, Poster, RawAddress,
    conn::{Conn, Kind},
    dial::{Link, LinkName},
    mailbox::Mailbox,
    signal::StopSignal,
    socket::{Listener, Stream},
};

const WAKER: Token = Token(0);
const SIGNAL: Token = Token(1);
const FIRST_SOCKET: u64 = 16;
/// How long a listener rests when the process is out of file descriptors.
const ACCEPT_REST: std::time::Duration = std::time::Duration::from_millis(100);

/// What a timer is for. Timers are not cancelled: one that comes when its reason is gone does
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Redial(LinkName),
    Handshake(u64),
    Accept(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Data,
    Raw,
}

struct Listening {
    listener: Listener,
    purpose: Purpose,
}

pub struct Reactor<P> {
    pub(super) clock: Clock,
    pub(super) hello: Hello,
    poll: Poll,
    ready: Events,
    mailbox: Mailbox<P>,
    signal: Option<StopSignal>,
    next_socket: u64,
    listeners: BTreeMap<u64, Listening>,
    pub(super) conns: HashMap<u64, Conn>,
    pub(super) links: BTreeMap<LinkName, Link>,
    pub(super) timers: BTreeSet<(Instant, Timer)>,
    /// Connections with output that the kernel has not been offered.
    dirty: Vec<u64>,
    /// Connections with input that the kernel has announced.
    pub(super) hot: Vec<u64>,
}

impl<P> Reactor<P> {
    /// `hello` is what we say first on every data connection; its cluster is what we insist on.
    pub fn new(clock: Clock, hello: Hello) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mailbox = Mailbox::new(poll.registry(), WAKER)?;
        Ok(Self {
            clock,
            hello,
            poll,
            ready: Events::with_capacity(256),
            mailbox,
            signal: None,
            next_socket: FIRST_SOCKET,
            listeners: BTreeMap::new(),
            conns: HashMap::new(),
            links: BTreeMap::new(),
            timers: BTreeSet::new(),
            dirty: Vec::new(),
            hot: Vec::new(),
        })
    }

    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    pub fn poster(&self) -> Poster<P> {
        self.mailbox.poster()
    }

    /// SIGTERM and SIGINT become `StopRequested`. Call it before any thread is started.
    pub fn watch_signals(&mut self) -> io::Result<()> {
        self.signal = Some(StopSignal::new(self.poll.registry(), SIGNAL)?);
        Ok(())
    }

    /// A turn ends when the descriptor becomes readable; what that means is its owner's matter.
    pub fn watch(&mut self, descriptor: RawFd) -> io::Result<()> {
        let id = self.take_socket();
        let source = &mut SourceFd(&descriptor);
        self.poll.registry().register(source, token(id), Interest::READABLE)
    }

    /// Accepts data connections. The caller binds, so that it knows early whether it may, and its
    /// address; until then callers wait in the kernel's queue.
    pub fn listen_data(&mut self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = Listener::Tcp(mio::net::TcpListener::from_std(listener));
        self.listen(listener, Purpose::Data)
    }

    /// Accepts raw connections. Returns where (the port that the kernel chose, if it did).
    pub fn listen_raw(&mut self, address: &RawAddress) -> io::Result<RawAddress> {
        let (listener, bound) = match address {
            RawAddress::Tcp(address) => {
                let tcp = mio::net::TcpListener::bind(*address)?;
                let bound = tcp.local_addr()?;
                (Listener::Tcp(tcp), RawAddress::Tcp(bound))
            }
            RawAddress::Unix(path) => {
                remove_stale(path)?;
                (Listener::Unix(mio::net::UnixListener::bind(path)?), address.clone())
            }
        };
        self.listen(listener, Purpose::Raw)?;
        Ok(bound)
    }

    fn listen(&mut self, mut listener: Listener, purpose: Purpose) -> io::Result<()> {
        let id = self.take_socket();
        listener.register(self.poll.registry(), token(id))?;
        self.listeners.insert(id, Listening { listener, purpose });
        Ok(())
    }

    /// Keeps a link to a server, until `disconnect`. Another address than before dials afresh.
    pub fn connect(&mut self, server: ServerId, address: SocketAddr) {
        self.keep_link(LinkName::Server(server), address);
    }

    /// Drops the link and what is queued on it. No event follows.
    pub fn disconnect(&mut self, server: &ServerId) {
        if let Some(link) = self.links.remove(&LinkName::Server(server.clone()))
            && let Some(conn) = link.conn
        {
            self.conns.remove(&conn);
        }
    }

    /// Keeps the link to the manager for as long as the reactor lives.
    pub fn connect_manager(&mut self, address: SocketAddr) {
        self.keep_link(LinkName::Manager, address);
    }

    /// Answers on an accepted data connection. Dropped when that has closed.
    pub fn send(&mut self, conn: ConnId, message: DataMessage) {
        if self.conns.contains_key(&conn.0) {
            self.queue(conn.0, &message.into_frame());
        }
    }

    /// Sends on the link to a server. Dropped while it is down.
    pub fn send_link(&mut self, server: &ServerId, message: DataMessage) {
        // The key is a counted reference: cloning it copies no text.
        if let Some(conn) = self.link_conn(&LinkName::Server(server.clone())) {
            self.queue(conn, &message.into_frame());
        }
    }

    /// Dropped while the link is down.
    pub fn send_manager(&mut self, message: &ToManager) {
        if let Some(conn) = self.link_conn(&LinkName::Manager) {
            self.queue(conn, &ctl::encode(message));
        }
    }

    /// Sends bytes on a raw connection. Dropped when that has closed.
    pub fn send_raw(&mut self, conn: ConnId, segments: Vec<Bytes>) {
        let Some(held) = self.conns.get_mut(&conn.0) else { return };
        segments.into_iter().for_each(|segment| held.output.push(segment));
        self.mark_dirty(conn.0);
    }

    /// Whether a connection's peer is so far behind with reading its answers that its owner
    /// should make no more for now.
    pub fn is_congested(&self, conn: ConnId) -> bool {
        self.conns.get(&conn.0).is_some_and(Conn::is_congested)
    }

    /// Bytes of a raw connection that its owner has not taken.
    pub fn raw_input(&mut self, conn: ConnId) -> Option<&mut BytesMut> {
        self.conns.get_mut(&conn.0).map(|held| &mut held.input)
    }

    /// Stops (or goes on) reading from an accepted connection: its owner's back-pressure.
    pub fn pause(&mut self, conn: ConnId, paused: bool) {
        let Some(held) = self.conns.get_mut(&conn.0) else { return };
        held.paused = paused;
        self.mark_hot(conn.0);
    }

    /// Closes an accepted connection once what is queued for it has left. No event follows.
    pub fn close(&mut self, conn: ConnId) {
        let Some(held) = self.conns.get_mut(&conn.0) else { return };
        held.closing = true;
        self.mark_dirty(conn.0);
        self.limit_handshake(conn.0);
    }

    /// One turn: writes what was queued, sleeps until something happens or `deadline` comes, and
    /// appends what happened to `events`.
    pub fn turn(
        &mut self,
        deadline: Option<Instant>,
        events: &mut Vec<NetEvent<P>>,
    ) -> io::Result<()> {
        self.flush_dirty(events);
        self.sleep(deadline, !events.is_empty())?;
        self.mailbox.take(|letter| events.push(NetEvent::Posted(letter)));
        self.take_readiness(events);
        self.read_hot(events);
        self.fire_timers(events);
        Ok(())
    }

    fn sleep(&mut self, deadline: Option<Instant>, busy: bool) -> io::Result<()> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let until = [deadline, timer].into_iter().flatten().min();
        let timeout = if busy || !self.hot.is_empty() || !self.mailbox.may_sleep() {
            Some(std::time::Duration::ZERO)
        } else {
            until.map(|at| at.since(self.clock.now()))
        };
        match self.poll.poll(&mut self.ready, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Notes what the kernel announced.
    fn take_readiness(&mut self, events: &mut Vec<NetEvent<P>>) {
        let ready = std::mem::replace(&mut self.ready, Events::with_capacity(0));
        for event in &ready {
            match event.token() {
                WAKER => {}
                SIGNAL => {
                    if self.signal.as_mut().is_some_and(StopSignal::take) {
                        events.push(NetEvent::StopRequested);
                    }
                }
                Token(raw) => {
                    let id = u64::try_from(raw).expect("tokens are made from u64");
                    if self.listeners.contains_key(&id) {
                        self.accept(id, events);
                    } else {
                        self.note_readiness(id, event, events);
                    }
                }
            }
        }
        self.ready = ready;
    }

    fn note_readiness(
        &mut self,
        id: u64,
        event: &mio::event::Event,
        events: &mut Vec<NetEvent<P>>,
    ) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let dialing = matches!(conn.kind, Kind::Dialed { connected: false, .. });
        if dialing && (event.is_writable() || event.is_error()) {
            match conn.stream.connected() {
                Ok(()) => self.finish_dial(id, events),
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return,
                Err(error) => return self.fail(id, &error.into(), events),
            }
        }
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.read_closed |= event.is_read_closed() || event.is_error();
        conn.readable |= event.is_readable() || conn.read_closed;
        // A write is how a peer's death is met while nothing is read.
        conn.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        let unsent = conn.output.bytes() > 0;
        self.mark_hot(id);
        if unsent {
            self.mark_dirty(id);
        }
    }

    fn accept(&mut self, id: u64, events: &mut Vec<NetEvent<P>>) {
        while let Some(listening) = self.listeners.get(&id) {
            let purpose = listening.purpose;
            match listening.listener.accept() {
                Ok(_) if self.conns.len() >= CONNS_MAX => {
                    tracing::warn!("{CONNS_MAX} connections are open; another was closed");
                }
                Ok(stream) => self.admit(purpose, stream, events),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections; trying again");
                    self.timers.insert((self.clock.now() + ACCEPT_REST, Timer::Accept(id)));
                    return;
                }
            }
        }
    }

    fn admit(&mut self, purpose: Purpose, stream: Stream, events: &mut Vec<NetEvent<P>>) {
        let kind = match purpose {
            Purpose::Data => Kind::Inbound { greeted: false },
            Purpose::Raw => Kind::Raw,
        };
        let id = match self.add_conn(stream, kind) {
            Ok(id) => id,
            Err(error) => return tracing::warn!(%error, "cannot serve an accepted connection"),
        };
        match purpose {
            Purpose::Data => self.limit_handshake(id),
            Purpose::Raw => events.push(NetEvent::RawOpened { conn: ConnId(id) }),
        }
    }

    pub(super) fn add_conn(&mut self, mut stream: Stream, kind: Kind) -> io::Result<u64> {
        let id = self.take_socket();
        stream.set_nodelay()?;
        if !matches!(kind, Kind::Raw) {
            stream.limit_silence()?;
        }
        stream.register(self.poll.registry(), token(id))?;
        self.conns.insert(id, Conn::new(stream, kind));
        Ok(id)
    }

    pub(super) fn limit_handshake(&mut self, id: u64) {
        self.timers.insert((self.clock.now() + HANDSHAKE_LIMIT, Timer::Handshake(id)));
    }

    // Output.

    pub(super) fn queue(&mut self, id: u64, frame: &Frame) {
        let conn = self.conns.get_mut(&id).expect("the caller has looked");
        conn.output.push_frame(frame);
        self.mark_dirty(id);
    }

    fn flush_dirty(&mut self, events: &mut Vec<NetEvent<P>>) {
        for id in std::mem::take(&mut self.dirty) {
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            conn.dirty = false;
            let was_congested = conn.is_congested();
            if let Err(fault) = conn.flush() {
                self.fail(id, &fault, events);
                continue;
            }
            if was_congested && !conn.is_congested() && conn.kind == Kind::Raw && !conn.closing {
                events.push(NetEvent::RawDrained { conn: ConnId(id) });
            }
            if conn.closing && conn.output.bytes() == 0 {
                self.end(id, &Fault::Closed, events);
            } else {
                // Less output may mean that reading goes on.
                self.mark_hot(id);
            }
        }
    }

    pub(super) fn mark_dirty(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if !std::mem::replace(&mut conn.dirty, true) {
            self.dirty.push(id);
        }
    }

    pub(super) fn mark_hot(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.may_read() && !std::mem::replace(&mut conn.hot, true) {
            self.hot.push(id);
        }
    }

    // Ends.

    /// Logs why and closes.
    pub(super) fn fail(&mut self, id: u64, fault: &Fault, events: &mut Vec<NetEvent<P>>) {
        let Some(conn) = self.conns.get(&id) else { return };
        let peer = conn.stream.peer_name();
        match (&conn.kind, fault) {
            // Logged as the link's.
            (Kind::Dialed { .. }, _) => {}
            (_, Fault::Closed) => tracing::debug!(%peer, "connection closed"),
            _ => tracing::warn!(%peer, %fault, "connection closed"),
        }
        self.end(id, fault, events);
    }

    fn end(&mut self, id: u64, fault: &Fault, events: &mut Vec<NetEvent<P>>) {
        let Some(conn) = self.conns.remove(&id) else { return };
        let told = !conn.closing;
        match conn.kind {
            Kind::Inbound { greeted } => {
                if greeted && told {
                    events.push(NetEvent::ConnClosed { conn: ConnId(id) });
                }
            }
            Kind::Raw => {
                if told {
                    events.push(NetEvent::RawClosed { conn: ConnId(id) });
                }
            }
            Kind::Dialed { link, .. } => {
                if self.lower_link(&link, fault) {
                    events.push(match link {
                        LinkName::Manager => NetEvent::ManagerLinkDown,
                        LinkName::Server(server) => NetEvent::LinkDown { server },
                    });
                }
            }
        }
    }

    // Time.

    fn fire_timers(&mut self, events: &mut Vec<NetEvent<P>>) {
        let now = self.clock.now();
        while self.timers.first().is_some_and(|(at, _)| *at <= now) {
            let (_, timer) = self.timers.pop_first().expect("looked at above");
            match timer {
                Timer::Redial(name) => self.dial(&name),
                Timer::Accept(id) => self.accept(id, events),
                Timer::Handshake(id) => {
                    if let Some(fault) = self.overdue(id) {
                        self.fail(id, &fault, events);
                    }
                }
            }
        }
    }

    /// What a connection has not done in its time.
    fn overdue(&self, id: u64) -> Option<Fault> {
        let conn = self.conns.get(&id)?;
        if conn.closing {
            return Some(Fault::LingerTimeout);
        }
        let greeted = match &conn.kind {
            Kind::Inbound { greeted } => *greeted,
            Kind::Dialed { link, .. } => {
                self.links.get(link).is_some_and(|link| link.up_since.is_some())
            }
            Kind::Raw => true,
        };
        (!greeted).then_some(Fault::HandshakeTimeout)
    }

    fn take_socket(&mut self) -> u64 {
        self.next_socket += 1;
        self.next_socket
    }
}

fn token(id: u64) -> Token {
    Token(usize::try_from(id).expect("a 64-bit machine"))
}

/// Removes the socket file of a process that is gone; one that answers is left, so that binding
/// fails.
fn remove_stale(path: &Path) -> io::Result<()> {
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Ok(()),
    }
}
