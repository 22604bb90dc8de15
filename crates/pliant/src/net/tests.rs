use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use format::{
    ctl::{self, FromManager, ToManager},
    data::{DataMessage, Hello, Peer, RequestId, Status},
    frame,
};
use model::{
    epoch::Epoch,
    id::{GroupId, NodeId, ServerId},
};

use super::*;
use crate::clock::Clock;

/// Generous: reached only when something never happens.
const PATIENCE: Duration = Duration::from_secs(20);
const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A reactor and the events nobody has looked at.
struct Side {
    reactor: Reactor<u32>,
    events: Vec<NetEvent<u32>>,
}

impl Side {
    fn new() -> Self {
        Self::of_cluster("c")
    }

    fn of_cluster(cluster: &str) -> Self {
        let reactor = Reactor::new(Clock::start(), hello(cluster)).expect("a reactor");
        Self { reactor, events: Vec::new() }
    }

    fn listen(&mut self, address: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind(address).expect("a free port");
        let bound = listener.local_addr().expect("bound");
        self.reactor.listen_data(listener).expect("a listener");
        bound
    }

    /// One turn that does not wait.
    fn poll(&mut self) {
        let now = self.reactor.now();
        self.reactor.turn(Some(now), &mut self.events).expect("a turn");
    }

    /// Turns until an event of this kind comes; earlier ones are dropped.
    fn until<T>(&mut self, mut wanted: impl FnMut(NetEvent<u32>) -> Option<T>) -> T {
        let deadline = self.reactor.now() + PATIENCE;
        loop {
            let mut seen = std::mem::take(&mut self.events).into_iter();
            if let Some(found) = seen.find_map(&mut wanted) {
                self.events = seen.collect();
                return found;
            }
            assert!(self.reactor.now() < deadline, "the event never came");
            self.reactor.turn(Some(deadline), &mut self.events).expect("a turn");
        }
    }

    fn opened(&mut self) -> ConnId {
        self.until(|event| match event {
            NetEvent::ConnOpened { conn, .. } => Some(conn),
            _ => None,
        })
    }

    fn closed(&mut self) -> ConnId {
        self.until(|event| match event {
            NetEvent::ConnClosed { conn } => Some(conn),
            _ => None,
        })
    }

    fn received(&mut self) -> (ConnId, u64) {
        self.until(|event| match event {
            NetEvent::ConnReceived { conn, message: DataMessage::Read { id, .. } } => {
                Some((conn, id.request))
            }
            _ => None,
        })
    }
}

/// Two reactors on one thread: turns both until `wanted` finds something among `left`'s events.
fn until_linked(left: &mut Side, right: &mut Side, server: &ServerId) {
    let deadline = left.reactor.now() + PATIENCE;
    loop {
        left.poll();
        right.poll();
        let up = |e: NetEvent<u32>| matches!(e, NetEvent::LinkUp { server: s } if s == *server);
        if left.events.drain(..).any(up) {
            return;
        }
        assert!(left.reactor.now() < deadline, "the link never came up");
    }
}

fn hello(cluster: &str) -> Hello {
    let node: NodeId = "node-a".parse().expect("a name");
    Hello { cluster: cluster.to_owned(), peer: Peer::Node(node) }
}

fn server() -> ServerId {
    "server-a-1".parse().expect("a name")
}

fn read_request(request: u64) -> DataMessage {
    let id = RequestId { session: 1, request };
    DataMessage::Read {
        group: GroupId::from_raw(1),
        epoch: Epoch::FIRST,
        id,
        offset: 0,
        length: 4096,
    }
}

fn reply(request: u64, data: Bytes) -> DataMessage {
    DataMessage::Reply {
        group: GroupId::from_raw(1),
        epoch: Epoch::FIRST,
        id: RequestId { session: 1, request },
        status: Status::Ok,
        crcs: vec![0; data.len() / 4096],
        data,
    }
}

fn wire(message: DataMessage) -> Bytes {
    message.into_frame().encode()
}

/// A peer that speaks by hand.
struct Client {
    stream: TcpStream,
    input: BytesMut,
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        Self::of(TcpStream::connect(address).expect("a listener"))
    }

    fn of(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        Self { stream, input: BytesMut::new() }
    }

    fn greeted(address: SocketAddr) -> Self {
        let mut client = Self::connect(address);
        client.send(&wire(DataMessage::Hello(hello("c"))));
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the reactor reads");
    }

    fn frame(&mut self) -> Option<frame::Frame> {
        loop {
            if let Some(frame) = frame::decode(&mut self.input).expect("good frames") {
                return Some(frame);
            }
            let mut chunk = [0; 65536];
            match self.stream.read(&mut chunk).expect("an answer in time") {
                0 => return None,
                count => self.input.extend_from_slice(&chunk[..count]),
            }
        }
    }

    fn message(&mut self) -> Option<DataMessage> {
        self.frame().map(|frame| DataMessage::from_frame(frame).expect("a good message"))
    }
}

#[test]
fn messages_survive_any_cut_of_the_stream() {
    let mut side = Side::new();
    let address = side.listen(ANY);
    let mut bytes = wire(DataMessage::Hello(hello("c"))).to_vec();
    let write = DataMessage::Change {
        group: GroupId::from_raw(1),
        epoch: Epoch::FIRST,
        id: RequestId { session: 1, request: 7 },
        offset: 8192,
        change: format::data::Change::Write { crcs: vec![1, 2], data: vec![9; 8192].into() },
    };
    bytes.extend_from_slice(&wire(read_request(6)));
    bytes.extend_from_slice(&wire(write.clone()));
    bytes.extend_from_slice(&wire(read_request(8)));
    for step in [1, 63, 64, 65, 4096, bytes.len()] {
        let mut client = Client::connect(address);
        for chunk in bytes.chunks(step) {
            client.send(chunk);
            side.poll();
        }
        side.opened();
        let (conn, first) = side.received();
        assert_eq!(first, 6, "in steps of {step}");
        let got = side.until(|event| match event {
            NetEvent::ConnReceived { message, .. } => Some(message),
            _ => None,
        });
        assert_eq!(got, write, "in steps of {step}");
        assert_eq!(side.received(), (conn, 8), "in steps of {step}");
        drop(client);
        assert_eq!(side.closed(), conn);
    }
}

#[test]
fn a_malformed_frame_closes_its_connection_and_no_other() {
    let mut side = Side::new();
    let address = side.listen(ANY);
    let mut good = Client::greeted(address);
    let good_conn = side.opened();
    let unknown_kind = frame::Frame {
        header: frame::Header { kind: 99, ..frame::Header::default() },
        ..frame::Frame::default()
    };
    let mut flipped = wire(read_request(1)).to_vec();
    flipped[9] ^= 1;
    let second_hello = wire(DataMessage::Hello(hello("c")));
    for bad in [&[0xff; 64][..], &unknown_kind.encode(), &flipped, &second_hello] {
        let mut client = Client::greeted(address);
        let conn = side.opened();
        assert_ne!(conn, good_conn);
        client.send(&wire(read_request(3)));
        client.send(bad);
        assert_eq!(side.received(), (conn, 3), "what came before the fault counts");
        assert_eq!(side.closed(), conn);
        assert!(matches!(client.message(), Some(DataMessage::Hello(_))));
        // A reset is as good an end as a clean one.
        assert!(!matches!(client.stream.read(&mut [0; 16]), Ok(1..)), "it goes on talking");
    }
    good.send(&wire(read_request(4)));
    assert_eq!(side.received(), (good_conn, 4));
}

#[test]
fn a_stranger_is_closed_without_an_event() {
    let mut side = Side::new();
    let address = side.listen(ANY);
    let strangers = [
        wire(DataMessage::Hello(hello("another"))),
        wire(read_request(1)),
        Bytes::from_static(
            b"GET / HTTP/1.1\r\nHost: example\r\nUser-Agent: curl/8.0 and some more\r\n",
        ),
    ];
    for bytes in strangers {
        let mut client = Client::connect(address);
        client.send(&bytes);
        // The next client's hello comes after the stranger was dealt with.
        let _next = Client::greeted(address);
        side.opened();
        assert!(side.events.is_empty(), "{:?}", side.events);
        assert!(!matches!(client.stream.read(&mut [0; 16]), Ok(1..)));
    }
}

#[test]
fn a_silent_stranger_is_closed_in_time() {
    let mut side = Side::new();
    let address = side.listen(ANY);
    let mut silent = Client::connect(address);
    let deadline = side.reactor.now() + HANDSHAKE_LIMIT + Duration::from_millis(500);
    while side.reactor.now() < deadline {
        side.reactor.turn(Some(deadline), &mut side.events).expect("a turn");
    }
    assert_eq!(silent.stream.read(&mut [0; 1]).expect("a clean end"), 0);
}

#[test]
fn a_link_is_dialed_until_it_is_up_and_again_when_it_falls() {
    let placeholder = TcpListener::bind(ANY).expect("a port");
    let address = placeholder.local_addr().expect("bound");
    drop(placeholder);
    let mut dialer = Side::new();
    dialer.reactor.connect(server(), address);
    // Nobody listens yet: several tries fail without an event.
    let early = dialer.reactor.now() + Duration::from_millis(100);
    while dialer.reactor.now() < early {
        dialer.reactor.turn(Some(early), &mut dialer.events).expect("a turn");
    }
    assert!(dialer.events.is_empty(), "{:?}", dialer.events);
    for round in 0..3_u64 {
        let mut listener = Side::new();
        listener.listen(address);
        until_linked(&mut dialer, &mut listener, &server());
        dialer.reactor.send_link(&server(), read_request(round));
        dialer.poll();
        let (conn, request) = listener.received();
        assert_eq!(request, round);
        listener.reactor.send(conn, reply(round, Bytes::new()));
        listener.poll();
        let answer = dialer.until(|event| match event {
            NetEvent::LinkReceived { message, .. } => Some(message),
            _ => None,
        });
        assert_eq!(answer, reply(round, Bytes::new()));
        drop(listener);
        dialer.until(|event| matches!(event, NetEvent::LinkDown { .. }).then_some(()));
        // Dropped, not kept for later.
        dialer.reactor.send_link(&server(), read_request(99));
    }
}

#[test]
fn a_link_moves_to_a_new_address_and_ends_on_request() {
    let (mut old, mut new, mut dialer) = (Side::new(), Side::new(), Side::new());
    let old_address = old.listen(ANY);
    let new_address = new.listen(ANY);
    dialer.reactor.connect(server(), old_address);
    until_linked(&mut dialer, &mut old, &server());
    dialer.reactor.connect(server(), old_address);
    dialer.reactor.connect(server(), new_address);
    dialer.reactor.send_link(&server(), read_request(1));
    dialer.until(|event| matches!(event, NetEvent::LinkDown { .. }).then_some(()));
    until_linked(&mut dialer, &mut new, &server());
    old.closed();
    dialer.reactor.disconnect(&server());
    new.closed();
    dialer.poll();
    assert!(dialer.events.is_empty(), "{:?}", dialer.events);
}

#[test]
fn a_server_of_another_cluster_is_never_linked() {
    let (mut other, mut dialer) = (Side::of_cluster("other"), Side::new());
    let address = other.listen(ANY);
    dialer.reactor.connect(server(), address);
    let deadline = dialer.reactor.now() + Duration::from_millis(100);
    while dialer.reactor.now() < deadline {
        dialer.poll();
        other.poll();
    }
    assert!(dialer.events.is_empty() && other.events.is_empty());
}

#[test]
fn the_managers_link_carries_control_messages_both_ways() {
    let manager = TcpListener::bind(ANY).expect("a port");
    let mut side = Side::new();
    side.reactor.connect_manager(manager.local_addr().expect("bound"));
    for _ in 0..2 {
        side.until(|event| matches!(event, NetEvent::ManagerLinkUp).then_some(()));
        let beat = ToManager::Beat { replicas: Vec::new() };
        side.reactor.send_manager(&beat);
        side.poll();
        let mut peer = Client::of(manager.accept().expect("it was dialed").0);
        let frame = peer.frame().expect("a beat");
        assert_eq!(ctl::decode::<ToManager>(&frame), Ok(beat));
        let rejected = FromManager::Rejected { reason: "test".to_owned() };
        peer.send(&ctl::encode(&rejected).encode());
        let sent = side.until(|event| match event {
            NetEvent::ManagerSent { message } => Some(message),
            _ => None,
        });
        assert_eq!(sent, rejected);
        drop(peer);
        side.until(|event| matches!(event, NetEvent::ManagerLinkDown).then_some(()));
    }
}

#[test]
fn a_peer_that_does_not_read_is_not_read_from_and_loses_nothing() {
    const REQUESTS: u64 = 200;
    let mut side = Side::new();
    let address = side.listen(ANY);
    let mut client = Client::greeted(address);
    let conn = side.opened();
    side.poll();
    assert!(matches!(client.message(), Some(DataMessage::Hello(_))));
    let data = Bytes::from(vec![7; 1 << 20]);
    let mut taken = 0;
    // One request at a time, so that what the reactor takes is what it chose to take.
    let mut sent = 0;
    while taken == sent && sent < REQUESTS {
        client.send(&wire(read_request(sent)));
        sent += 1;
        let deadline = side.reactor.now() + Duration::from_millis(50);
        while side.reactor.now() < deadline && taken < sent {
            side.reactor.turn(Some(deadline), &mut side.events).expect("a turn");
            for event in std::mem::take(&mut side.events) {
                let NetEvent::ConnReceived { message: DataMessage::Read { id, .. }, .. } = event
                else {
                    panic!("unexpected {event:?}")
                };
                assert_eq!(id.request, taken);
                side.reactor.send(conn, reply(taken, data.clone()));
                taken += 1;
            }
        }
    }
    assert!(taken < REQUESTS, "{taken} MiB were queued for a peer that does not read");
    // Another peer is served meanwhile.
    let mut other = Client::greeted(address);
    let other_conn = side.opened();
    other.send(&wire(read_request(1)));
    assert_eq!(side.received(), (other_conn, 1));

    let reader = thread::spawn(move || {
        for expected in 0..sent {
            let Some(DataMessage::Reply { id, data, .. }) = client.message() else {
                panic!("the connection ended")
            };
            assert_eq!((id.request, data.len()), (expected, 1 << 20));
        }
        client
    });
    while taken < sent {
        let (_, request) = side.received();
        assert_eq!(request, taken);
        side.reactor.send(conn, reply(taken, data.clone()));
        taken += 1;
    }
    let deadline = side.reactor.now() + PATIENCE;
    while !reader.is_finished() && side.reactor.now() < deadline {
        let soon = side.reactor.now() + Duration::from_millis(5);
        side.reactor.turn(Some(soon), &mut side.events).expect("a turn");
    }
    assert!(reader.is_finished(), "replies are missing");
    reader.join().expect("every reply came in order");
}

#[test]
fn a_peer_that_dies_without_reading_is_noticed() {
    let mut side = Side::new();
    let address = side.listen(ANY);
    let mut client = Client::greeted(address);
    let conn = side.opened();
    for request in 0..64 {
        side.reactor.send(conn, reply(request, Bytes::from(vec![7; 1 << 20])));
    }
    client.send(&wire(read_request(1)));
    let deadline = side.reactor.now() + Duration::from_millis(20);
    while side.reactor.now() < deadline {
        side.reactor.turn(Some(deadline), &mut side.events).expect("a turn");
    }
    assert!(side.events.is_empty(), "it was read from: {:?}", side.events);
    drop(client);
    assert_eq!(side.closed(), conn);
}

#[test]
fn a_queue_beyond_its_bound_ends_the_link_instead_of_growing() {
    let (mut stuck, mut dialer) = (Side::new(), Side::new());
    let address = stuck.listen(ANY);
    dialer.reactor.connect(server(), address);
    until_linked(&mut dialer, &mut stuck, &server());
    let data = Bytes::from(vec![7; 4 << 20]);
    for request in 0..80 {
        dialer.reactor.send_link(&server(), reply(request, data.clone()));
    }
    dialer.until(|event| matches!(event, NetEvent::LinkDown { .. }).then_some(()));
}

#[test]
fn letters_of_many_threads_arrive_once_each_and_a_full_mailbox_makes_them_wait() {
    const THREADS: u32 = 4;
    const LETTERS: u32 = 10_000;
    assert!((THREADS * LETTERS) as usize > 2 * MAILBOX_MAX);
    let mut side = Side::new();
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let poster = side.reactor.poster();
            thread::spawn(move || (0..LETTERS).for_each(|i| poster.post(number * LETTERS + i)))
        })
        .collect();
    let mut next: Vec<u32> = (0..THREADS).map(|number| number * LETTERS).collect();
    for _ in 0..THREADS * LETTERS {
        let letter = side.until(|event| match event {
            NetEvent::Posted(letter) => Some(letter),
            _ => None,
        });
        let slot = &mut next[(letter / LETTERS) as usize];
        assert_eq!(letter, *slot, "in the order of its thread");
        *slot += 1;
    }
    threads.into_iter().for_each(|t| t.join().expect("no panic"));
    let waiting = side.reactor.poster();
    let thread = thread::spawn(move || (0..LETTERS * 4).for_each(|i| waiting.post(i)));
    drop(side);
    thread.join().expect("posting to a reactor that is gone does not wait");
}

#[test]
fn raw_connections_keep_what_their_owner_leaves_and_flush_before_they_close() {
    let folder = std::env::temp_dir().join(format!("pliant-net-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("raw.sock");
    let unix = RawAddress::Unix(path.clone());
    // The second time the file of the first is stale.
    for _ in 0..2 {
        let mut side = Side::new();
        let bound = side.reactor.listen_raw(&unix).expect("a socket");
        assert_eq!(bound, unix);
        let mut client = UnixStream::connect(&path).expect("it listens");
        client.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let conn = side.until(|event| match event {
            NetEvent::RawOpened { conn } => Some(conn),
            _ => None,
        });
        client.write_all(b"abc").expect("room");
        side.until(|event| matches!(event, NetEvent::RawReceived { .. }).then_some(()));
        side.reactor.raw_input(conn).expect("open").advance(1);
        client.write_all(b"def").expect("room");
        side.until(|event| matches!(event, NetEvent::RawReceived { .. }).then_some(()));
        assert_eq!(side.reactor.raw_input(conn).expect("open").split(), "bcdef");
        let segments = vec![Bytes::from_static(b"head"), vec![1; 300_000].into()];
        side.reactor.send_raw(conn, segments);
        side.reactor.close(conn);
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            client.read_to_end(&mut all).expect("a clean end");
            all.len()
        });
        let deadline = side.reactor.now() + PATIENCE;
        while !reader.is_finished() && side.reactor.now() < deadline {
            let soon = side.reactor.now() + Duration::from_millis(5);
            side.reactor.turn(Some(soon), &mut side.events).expect("a turn");
        }
        assert_eq!(reader.join().expect("read"), 300_004);
        assert!(side.reactor.raw_input(conn).is_none());
        assert!(side.events.is_empty(), "we closed it: {:?}", side.events);
    }
    std::fs::remove_dir_all(&folder).expect("ours");
}

#[test]
fn a_paused_connection_is_read_when_it_goes_on() {
    let mut side = Side::new();
    let bound = side.reactor.listen_raw(&RawAddress::Tcp(ANY)).expect("a port");
    let RawAddress::Tcp(address) = bound else { panic!("asked for TCP") };
    let mut client = TcpStream::connect(address).expect("it listens");
    let conn = side.until(|event| match event {
        NetEvent::RawOpened { conn } => Some(conn),
        _ => None,
    });
    side.reactor.pause(conn, true);
    client.write_all(b"wait").expect("room");
    let deadline = side.reactor.now() + Duration::from_millis(50);
    while side.reactor.now() < deadline {
        side.reactor.turn(Some(deadline), &mut side.events).expect("a turn");
    }
    assert!(side.events.is_empty(), "{:?}", side.events);
    side.reactor.pause(conn, false);
    side.until(|event| matches!(event, NetEvent::RawReceived { .. }).then_some(()));
    drop(client);
    side.until(|event| matches!(event, NetEvent::RawClosed { .. }).then_some(()));
}
