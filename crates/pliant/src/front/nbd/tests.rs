//! The front over real sockets, with the test in the place of the node machine.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::Duration,
};

use bytes::{Buf, BufMut};
use format::data::{Hello, Peer};

use super::*;
use crate::{clock::Clock, net::NetEvent};

const SIZE: u64 = 1 << 30;
const SHUTDOWN: u32 = 108;

fn volume() -> VolumeId {
    VolumeId::from_raw(7)
}

fn other_volume() -> VolumeId {
    VolumeId::from_raw(8)
}

struct Rig {
    reactor: Reactor<()>,
    front: NbdFront,
    tokens: Tokens,
    events: VecDeque<Event>,
    dir: PathBuf,
}

impl Rig {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("pliant-nbd-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let node = "node-a".parse().expect("a legal name");
        let hello = Hello { cluster: "test".to_owned(), peer: Peer::Node(node) };
        let mut reactor = Reactor::new(Clock::start(), hello).expect("a reactor");
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let addresses = NbdAddresses { socket: Some(dir.join("nbd.sock")), tcp: Some(loopback) };
        let front = NbdFront::listen(&mut reactor, &addresses).expect("listening");
        let (tokens, events) = (Tokens::default(), VecDeque::new());
        Self { reactor, front, tokens, events, dir }
    }

    fn turn(&mut self) {
        let deadline = self.reactor.now() + Duration::from_secs(10);
        let mut happened = Vec::new();
        self.reactor.turn(Some(deadline), &mut happened).expect("a turn");
        assert!(self.reactor.now() < deadline, "nothing happened");
        happened.into_iter().for_each(|event| self.take_in(event));
    }

    fn take_in(&mut self, event: NetEvent<()>) {
        match event {
            NetEvent::RawOpened { conn, .. } => self.front.connected(&mut self.reactor, conn),
            NetEvent::RawReceived { conn } | NetEvent::RawDrained { conn } => {
                let (reactor, tokens) = (&mut self.reactor, &mut self.tokens);
                self.front.received(reactor, conn, tokens, &mut self.events);
            }
            NetEvent::RawClosed { conn } => self.front.disconnected(conn, &mut self.events),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn turn_until(&mut self, ready: impl Fn(&Self) -> bool) {
        while !ready(self) {
            self.turn();
        }
    }

    /// Runs the loop for as long as another thread needs it.
    fn serve<T: Send + 'static>(&mut self, client: impl FnOnce() -> T + Send + 'static) -> T {
        self.serve_until_end(std::thread::spawn(client))
    }

    fn serve_until_end<T>(&mut self, thread: std::thread::JoinHandle<T>) -> T {
        while !thread.is_finished() {
            let deadline = self.reactor.now() + Duration::from_millis(5);
            let mut happened = Vec::new();
            self.reactor.turn(Some(deadline), &mut happened).expect("a turn");
            happened.into_iter().for_each(|event| self.take_in(event));
        }
        thread.join().expect("the client")
    }

    /// A client on the unix socket with the export open.
    fn client(&mut self, export: &str) -> Client<UnixStream> {
        let path = self.dir.join("nbd.sock");
        let export = export.to_owned();
        self.serve(move || {
            let stream = UnixStream::connect(path).expect("it listens");
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit");
            Client::open(stream, &export).expect("the export opens")
        })
    }

    fn requests(&self) -> Vec<GuestToken> {
        let token = |event: &Event| match event {
            Event::GuestRequested { token, .. } => Some(*token),
            _ => None,
        };
        self.events.iter().filter_map(token).collect()
    }

    fn answer(&mut self, token: GuestToken, reply: GuestReply) {
        let (reactor, tokens) = (&mut self.reactor, &mut self.tokens);
        self.front.reply(reactor, token, reply, tokens, &mut self.events);
    }

    /// Lets what is queued leave.
    fn flush(&mut self) {
        let now = self.reactor.now();
        self.reactor.turn(Some(now), &mut Vec::new()).expect("a turn");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

struct Client<S> {
    stream: S,
    size: u64,
}

impl<S: Read + Write> Client<S> {
    /// Negotiates with EXPORT_NAME; `None` if the server closes.
    fn open(mut stream: S, export: &str) -> Option<Self> {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).ok()?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let mut out = Vec::new();
        out.put_u32(3);
        out.put_slice(b"IHAVEOPT");
        out.put_u32(1);
        out.put_u32(u32::try_from(export.len()).expect("short"));
        out.put_slice(export.as_bytes());
        stream.write_all(&out).ok()?;
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).ok()?;
        Some(Self { stream, size: (&answer[..]).get_u64() })
    }

    fn request(&mut self, command: u16, cookie: u64, offset: u64, length: u32, data: &[u8]) {
        let head = request_head(command, cookie, offset, length);
        self.stream.write_all(&[&head[..], data].concat()).expect("the server reads");
    }

    /// Sent as one: a socket takes only so many small writes that nobody reads.
    fn read_many(&mut self, cookies: std::ops::Range<u64>) {
        let heads: Vec<u8> = cookies.flat_map(|c| request_head(0, c, 0, 4096)).collect();
        self.stream.write_all(&heads).expect("the server reads");
    }

    fn read(&mut self, cookie: u64, offset: u64, length: u32) {
        self.request(0, cookie, offset, length, &[]);
    }

    /// The next simple reply: error and cookie.
    fn reply(&mut self) -> (u32, u64) {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head).expect("a reply");
        let mut head = &head[..];
        assert_eq!(head.get_u32(), 0x6744_6698);
        (head.get_u32(), head.get_u64())
    }

    fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0))
    }
}

fn request_head(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u32(0x2560_9513);
    out.put_u16(0);
    out.put_u16(command);
    out.put_u64(cookie);
    out.put_u64(offset);
    out.put_u32(length);
    out
}

#[test]
fn a_request_reaches_the_machine_as_it_was_sent_and_its_answer_the_client() {
    let mut rig = Rig::new("round-trip");
    rig.front.open_export(volume(), ByteCount::new(SIZE));
    let mut client = rig.client(&volume().to_string());
    assert_eq!(client.size, SIZE);
    client.request(1, 11, 4096, 8, b"contents");
    client.read(12, 1, 3);
    client.request(3, 13, 0, 0, &[]);
    rig.turn_until(|rig| rig.events.len() == 3);
    let requests = rig.requests();
    let asked: Vec<GuestRequest> = rig
        .events
        .drain(..)
        .map(|event| match event {
            Event::GuestRequested { volume: of, request, .. } if of == volume() => request,
            other => panic!("unexpected {other:?}"),
        })
        .collect();
    let data = Bytes::from_static(b"contents");
    assert_eq!(
        asked,
        [
            GuestRequest::Write { offset: 4096, data },
            GuestRequest::Read { offset: 1, length: 3 },
            GuestRequest::Flush,
        ]
    );
    // In another order than asked.
    rig.answer(requests[2], GuestReply::Done);
    rig.answer(requests[1], GuestReply::Data(Bytes::from_static(b"abc")));
    rig.answer(requests[0], GuestReply::Failed(GuestError::OutOfRange));
    rig.flush();
    assert_eq!(client.reply(), (0, 13));
    assert_eq!(client.reply(), (0, 12));
    let mut data = [0; 3];
    client.stream.read_exact(&mut data).expect("the data");
    assert_eq!(&data, b"abc");
    assert_eq!(client.reply(), (28, 11));
}

#[test]
fn no_more_than_the_limit_of_requests_is_taken_and_each_answer_lets_one_in() {
    let mut rig = Rig::new("limit");
    rig.front.open_export(volume(), ByteCount::new(SIZE));
    let mut client = rig.client(&volume().to_string());
    client.read_many(0..300);
    rig.turn_until(|rig| rig.events.len() >= REQUESTS_MAX);
    rig.flush();
    assert_eq!(rig.events.len(), REQUESTS_MAX);
    let data = || GuestReply::Data(Bytes::from(vec![0; 4096]));
    for done in 0..300 {
        let token = rig.requests()[done];
        rig.answer(token, data());
        let taken = rig.events.len();
        assert!(taken <= done + 1 + REQUESTS_MAX, "{taken} taken after {done} answers");
        if taken == done + 1 && done < 299 {
            rig.turn_until(|rig| rig.events.len() > taken);
        }
    }
    assert_eq!(rig.events.len(), 300);
}

#[test]
fn large_requests_are_bounded_by_their_bytes() {
    let mut rig = Rig::new("bytes");
    rig.front.open_export(volume(), ByteCount::new(SIZE));
    let mut client = rig.client(&volume().to_string());
    for cookie in 0..5 {
        client.read(cookie, 0, 32 << 20);
    }
    rig.turn_until(|rig| rig.events.len() == 2);
    rig.flush();
    let taken = rig.requests();
    assert_eq!(taken.len(), 2, "two of 32 MiB fill 64 MiB");
    rig.answer(taken[0], GuestReply::Failed(GuestError::BadBlock));
    assert_eq!(rig.requests().len(), 3);
}

#[test]
fn a_client_that_does_not_read_its_answers_is_given_no_more_of_them() {
    const LENGTH: u32 = 32 << 20;
    let mut rig = Rig::new("congested");
    rig.front.open_export(volume(), ByteCount::new(SIZE));
    let mut client = rig.client("");
    for cookie in 0..8 {
        client.read(cookie, 0, LENGTH);
    }
    let data = Bytes::from(vec![1; usize::try_from(LENGTH).expect("it fits")]);
    rig.turn_until(|rig| rig.events.len() == 2);
    let first = rig.requests()[0];
    rig.answer(first, GuestReply::Data(data.clone()));
    rig.flush();
    assert_eq!(rig.requests().len(), 2, "the first answer is not read yet");
    let mut buffer = data.to_vec();
    let reader = std::thread::spawn(move || {
        for cookie in 0..8 {
            assert_eq!(client.reply(), (0, cookie));
            client.stream.read_exact(&mut buffer).expect("the data");
        }
    });
    for next in 1..8 {
        rig.turn_until(|rig| rig.requests().len() > next);
        let token = rig.requests()[next];
        rig.answer(token, GuestReply::Data(data.clone()));
    }
    rig.serve_until_end(reader);
}

#[test]
fn malformed_input_ends_its_own_connection_and_no_other() {
    let mut rig = Rig::new("malformed");
    rig.front.open_export(volume(), ByteCount::new(SIZE));
    let mut bad = rig.client("");
    let mut good = rig.client("");
    good.read(1, 0, 4096);
    rig.turn_until(|rig| rig.events.len() == 1);
    bad.read(2, 0, 4096);
    bad.stream.write_all(&[0xff; 28]).expect("the server reads");
    rig.turn_until(|rig| rig.events.len() == 3);
    let tokens = rig.requests();
    assert_eq!(rig.events[2], Event::GuestGone { volume: volume(), tokens: vec![tokens[1]] });
    rig.answer(tokens[1], GuestReply::Failed(GuestError::BadBlock));
    rig.answer(tokens[0], GuestReply::Failed(GuestError::BadBlock));
    rig.flush();
    assert!(bad.is_closed());
    assert_eq!(good.reply(), (5, 1));
}

#[test]
fn a_closed_export_answers_what_waits_and_closes_its_connections_only() {
    let mut rig = Rig::new("close");
    rig.front.open_export(volume(), ByteCount::new(SIZE));
    rig.front.open_export(other_volume(), ByteCount::new(SIZE));
    let mut client = rig.client(&volume().to_string());
    let mut other = rig.client(&other_volume().to_string());
    client.read_many(0..200);
    other.read(500, 0, 4096);
    rig.turn_until(|rig| rig.events.len() == REQUESTS_MAX + 1);
    let first = rig.requests()[0];
    rig.front.close_export(&mut rig.reactor, volume());
    rig.flush();
    for cookie in 0..200 {
        assert_eq!(client.reply(), (SHUTDOWN, cookie));
    }
    assert!(client.is_closed());
    // The machine's answer comes too late for anybody.
    rig.answer(first, GuestReply::Failed(GuestError::Gone));
    let last = *rig.requests().last().expect("the other's");
    rig.answer(last, GuestReply::Failed(GuestError::BadBlock));
    rig.flush();
    assert_eq!(other.reply(), (5, 500));
    let path = rig.dir.join("nbd.sock");
    let name = volume().to_string();
    let reopened = rig.serve(move || {
        Client::open(UnixStream::connect(path).expect("it listens"), &name).is_some()
    });
    assert!(!reopened, "a closed export must not open");
}

#[test]
fn a_client_that_says_goodbye_gets_its_answers_first() {
    let mut rig = Rig::new("goodbye");
    rig.front.open_export(volume(), ByteCount::new(SIZE));
    let mut client = rig.client("");
    client.request(1, 1, 0, 4, b"last");
    client.request(2, 0, 0, 0, &[]);
    rig.turn_until(|rig| rig.events.len() == 1);
    let token = rig.requests()[0];
    rig.answer(token, GuestReply::Done);
    rig.flush();
    assert_eq!(client.reply(), (0, 1));
    assert!(client.is_closed());
}

#[test]
fn a_client_that_vanishes_leaves_nobody_waiting() {
    let mut rig = Rig::new("vanish");
    rig.front.open_export(volume(), ByteCount::new(SIZE));
    let mut client = rig.client("");
    client.read(1, 0, 4096);
    rig.turn_until(|rig| rig.events.len() == 1);
    drop(client);
    rig.turn_until(|rig| rig.events.len() == 2);
    let tokens = rig.requests();
    assert_eq!(rig.events[1], Event::GuestGone { volume: volume(), tokens });
    assert!(rig.front.in_flight.is_empty() && rig.front.conns.is_empty());
}

#[test]
fn the_empty_name_opens_the_only_export_and_none_of_two() {
    let mut rig = Rig::new("default");
    rig.front.open_export(volume(), ByteCount::new(SIZE));
    assert_eq!(rig.client("").size, SIZE);
    rig.front.open_export(other_volume(), ByteCount::new(SIZE));
    let path = rig.dir.join("nbd.sock");
    let opened = rig
        .serve(move || Client::open(UnixStream::connect(path).expect("it listens"), "").is_some());
    assert!(!opened);
}

#[test]
fn a_new_size_is_shown_to_those_who_connect_after_it() {
    let mut rig = Rig::new("resize");
    rig.front.open_export(volume(), ByteCount::new(SIZE));
    assert_eq!(rig.client("").size, SIZE);
    rig.front.resize_export(volume(), ByteCount::new(2 * SIZE));
    assert_eq!(rig.client("").size, 2 * SIZE);
}

#[test]
fn the_addresses_work_and_the_socket_is_its_owners_alone() {
    let mut rig = Rig::new("addresses");
    let uris = rig.front.open_export(volume(), ByteCount::new(SIZE));
    let path = rig.dir.join("nbd.sock");
    assert_eq!(uris[0], format!("nbd+unix:///{}?socket={}", volume(), path.display()));
    let mode = fs::metadata(&path).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let address = uris[1].strip_prefix("nbd://").and_then(|uri| uri.split_once('/'));
    let (address, name) = address.expect("a host and a name");
    let (address, name) = (address.to_owned(), name.to_owned());
    let size = rig.serve(move || {
        let stream = TcpStream::connect(address).expect("it listens");
        Client::open(stream, &name).map(|client| client.size)
    });
    assert_eq!(size, Some(SIZE));
}

#[test]
fn a_socket_left_by_a_predecessor_is_replaced_and_one_in_use_is_not() {
    let rig = Rig::new("stale");
    let addresses = NbdAddresses { socket: Some(rig.dir.join("nbd.sock")), tcp: None };
    let node = "node-b".parse().expect("a legal name");
    let hello = Hello { cluster: "test".to_owned(), peer: Peer::Node(node) };
    let mut second: Reactor<()> = Reactor::new(Clock::start(), hello).expect("a reactor");
    assert!(NbdFront::listen(&mut second, &addresses).is_err(), "somebody answers there");
    let stale = NbdAddresses { socket: Some(rig.dir.join("stale.sock")), tcp: None };
    drop(std::os::unix::net::UnixListener::bind(rig.dir.join("stale.sock")).expect("bound"));
    NbdFront::listen(&mut second, &stale).expect("nobody answers there");
}

#[test]
fn what_is_special_in_an_address_is_escaped() {
    let uri = unix_uri(volume(), Path::new("/run/a b&c#d/nbd.sock"));
    assert_eq!(uri, format!("nbd+unix:///{}?socket=/run/a%20b%26c%23d/nbd.sock", volume()));
}
