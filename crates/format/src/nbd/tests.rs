use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

use super::*;

const SIZE: u64 = 1 << 30;

fn exports() -> Exports {
    BTreeMap::from([("vol-1".to_owned(), ExportInfo { size: SIZE })])
}

/// A client that plays bytes in and keeps what came out.
struct Client {
    server: Server,
    input: BytesMut,
    exports: Exports,
    events: Vec<Event>,
}

impl Client {
    fn new() -> Self {
        let mut events = Vec::new();
        let server = Server::new(&mut events);
        let greeting = sent(&events);
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(greeting[16..], [0, 3]);
        Self { server, input: BytesMut::new(), exports: exports(), events: Vec::new() }
    }

    /// Past the client's flags.
    fn negotiating() -> Self {
        let mut client = Self::new();
        client.play(&3u32.to_be_bytes());
        client
    }

    fn transmitting(structured: bool) -> Self {
        let mut client = Self::negotiating();
        if structured {
            client.option(8, &[]);
            client.option(10, &meta_context("vol-1", &["base:allocation"]));
        }
        client.option(7, &info_data("vol-1", &[]));
        assert_eq!(client.events.last(), Some(&Event::Opened { export: "vol-1".into() }));
        client.events.clear();
        client
    }

    fn play(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        self.server.receive(&mut self.input, &self.exports, &mut self.events);
    }

    /// Sends an option; returns the replies' codes and bodies.
    fn option(&mut self, code: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.events.clear();
        self.play(&option(code, data));
        let mut wire = sent(&self.events);
        let mut replies = Vec::new();
        while !wire.is_empty() {
            let length = u32::from_be_bytes(wire[16..20].try_into().expect("four bytes"));
            let whole = 20 + usize::try_from(length).expect("short");
            assert_eq!(wire[..8], wire::OPTION_REPLY_MAGIC.to_be_bytes());
            assert_eq!(wire[8..12], code.to_be_bytes());
            let reply = u32::from_be_bytes(wire[12..16].try_into().expect("four bytes"));
            replies.push((reply, wire[20..whole].to_vec()));
            wire.drain(..whole);
        }
        replies
    }

    fn codes(&mut self, code: u32, data: &[u8]) -> Vec<u32> {
        self.option(code, data).into_iter().map(|(reply, _)| reply).collect()
    }

    /// Sends a request; returns what it became.
    fn request(&mut self, flags: u16, kind: u16, offset: u64, length: u32, data: &[u8]) -> Event {
        self.events.clear();
        self.play(&request(flags, kind, offset, length));
        self.play(data);
        assert_eq!(self.events.len(), 1, "{:?}", self.events);
        self.events.remove(0)
    }

    fn pending(&mut self, flags: u16, kind: u16, offset: u64, length: u32) -> Pending {
        match self.request(flags, kind, offset, length, &[]) {
            Event::Request { pending, .. } => pending,
            other => panic!("no request but {other:?}"),
        }
    }

    fn closed(&self) -> Option<&CloseReason> {
        match self.events.last() {
            Some(Event::Close { reason }) => Some(reason),
            _ => None,
        }
    }
}

fn sent(events: &[Event]) -> Vec<u8> {
    let mut wire = Vec::new();
    for event in events {
        if let Event::Send(bytes) = event {
            wire.extend_from_slice(bytes);
        }
    }
    wire
}

fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    wire.put_u64(wire::OPTION_MAGIC);
    wire.put_u32(code);
    wire.put_u32(u32::try_from(data.len()).expect("short"));
    wire.put_slice(data);
    wire
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.put_u32(u32::try_from(text.len()).expect("short"));
    out.put_slice(text.as_bytes());
}

fn info_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = Vec::new();
    text(&mut data, name);
    data.put_u16(u16::try_from(wanted.len()).expect("short"));
    for &info in wanted {
        data.put_u16(info);
    }
    data
}

fn meta_context(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    text(&mut data, name);
    data.put_u32(u32::try_from(queries.len()).expect("short"));
    for query in queries {
        text(&mut data, query);
    }
    data
}

const COOKIE: u64 = 0x0102_0304_0506_0708;

fn request(flags: u16, kind: u16, offset: u64, length: u32) -> Vec<u8> {
    let mut wire = Vec::new();
    wire.put_u32(wire::REQUEST_MAGIC);
    wire.put_u16(flags);
    wire.put_u16(kind);
    wire.put_u64(COOKIE);
    wire.put_u64(offset);
    wire.put_u32(length);
    wire
}

const ACK: u32 = 1;
const INFO: u32 = 3;
const UNSUP: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;
const UNKNOWN: u32 = 0x8000_0006;
const TOO_BIG: u32 = 0x8000_0009;

#[test]
fn go_tells_size_flags_and_block_sizes() {
    let mut client = Client::negotiating();
    let replies = client.option(7, &info_data("vol-1", &[1, 3]));
    let codes: Vec<u32> = replies.iter().map(|r| r.0).collect();
    assert_eq!(codes, [INFO, INFO, INFO, ACK]);
    let mut export = vec![0, 0];
    export.put_u64(SIZE);
    // HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, DF, MULTI_CONN.
    export.put_u16(0b1_1110_1101);
    assert_eq!(replies[0].1, export);
    assert_eq!(replies[1].1, b"\0\x01vol-1");
    let mut sizes = vec![0, 3];
    sizes.put_u32(1);
    sizes.put_u32(4096);
    sizes.put_u32(32 << 20);
    assert_eq!(replies[2].1, sizes);
    assert_eq!(client.events.last(), Some(&Event::Opened { export: "vol-1".into() }));
}

#[test]
fn info_does_not_open() {
    let mut client = Client::negotiating();
    assert_eq!(client.codes(6, &info_data("vol-1", &[])), [INFO, INFO, ACK]);
    assert_eq!(client.codes(3, &[]), [2, ACK]);
}

#[test]
fn export_name_opens_with_and_without_zeroes() {
    for (flags, bytes) in [(3u32, 10), (1, 134)] {
        let mut client = Client::new();
        client.play(&flags.to_be_bytes());
        client.play(&option(1, b"vol-1"));
        let wire = sent(&client.events);
        assert_eq!(wire.len(), bytes);
        assert_eq!(wire[..8], SIZE.to_be_bytes());
    }
    let mut client = Client::negotiating();
    client.play(&option(1, b"vol-2"));
    assert_eq!(client.closed(), Some(&CloseReason::UnknownExport));
}

#[test]
fn the_empty_name_is_the_only_export() {
    let mut client = Client::negotiating();
    assert_eq!(client.codes(6, &info_data("", &[])), [INFO, INFO, ACK]);
    client.exports.insert("vol-2".into(), ExportInfo { size: 4096 });
    assert_eq!(client.codes(6, &info_data("", &[])), [UNKNOWN]);
}

#[test]
fn refused_options_leave_the_negotiation_open() {
    let mut client = Client::negotiating();
    let cases: [(u32, Vec<u8>, u32); 11] = [
        (5, vec![], UNSUP),
        (11, vec![], UNSUP),
        (77, vec![1, 2, 3], UNSUP),
        (3, vec![1], INVALID),
        (8, vec![1], INVALID),
        (7, info_data("vol-2", &[]), UNKNOWN),
        (7, vec![0, 0], INVALID),
        (7, vec![0, 0, 0, 9, b'x'], INVALID),
        (7, info_data("vol-1", &[3])[..12].to_vec(), INVALID),
        (7, info_data(&"n".repeat(4097), &[]), TOO_BIG),
        // Before structured replies.
        (10, meta_context("vol-1", &["base:allocation"]), INVALID),
    ];
    for (code, data, refusal) in cases {
        assert_eq!(client.codes(code, &data), [refusal], "option {code}");
    }
    assert_eq!(client.codes(7, &info_data("vol-1", &[])), [INFO, INFO, ACK]);
}

#[test]
fn an_option_too_long_is_skipped_without_being_kept() {
    let mut client = Client::negotiating();
    client.play(&option(77, &[])[..12]);
    client.play(&100_000u32.to_be_bytes());
    for _ in 0..100 {
        client.play(&[7; 1000]);
        assert!(client.input.is_empty());
    }
    assert_eq!(sent(&client.events)[12..16], TOO_BIG.to_be_bytes());
    assert_eq!(client.codes(3, &[]), [2, ACK]);
}

#[test]
fn meta_contexts_follow_the_queries() {
    let mut client = Client::negotiating();
    assert_eq!(client.codes(8, &[]), [ACK]);
    let context = |id: u32| {
        let mut body = id.to_be_bytes().to_vec();
        body.put_slice(b"base:allocation");
        (4, body)
    };
    let ack = || (ACK, vec![]);
    assert_eq!(client.option(9, &meta_context("vol-1", &[])), [context(0), ack()]);
    assert_eq!(client.option(9, &meta_context("vol-1", &["base:"])), [context(0), ack()]);
    assert_eq!(client.option(9, &meta_context("vol-1", &["qemu:"])), [ack()]);
    let set = client.option(10, &meta_context("vol-1", &["other:x", "base:allocation"]));
    assert_eq!(set, [context(1), ack()]);
    assert_eq!(client.codes(10, &meta_context("vol-2", &["base:allocation"])), [UNKNOWN]);
    let mut lying = meta_context("vol-1", &[]);
    lying.splice(9..13, u32::MAX.to_be_bytes());
    assert_eq!(client.codes(10, &lying), [INVALID]);
}

#[test]
fn abort_is_acknowledged_and_closes() {
    let mut client = Client::negotiating();
    assert_eq!(client.codes(2, &[]), [ACK]);
    assert_eq!(client.closed(), Some(&CloseReason::Aborted));
    client.events.clear();
    client.play(&option(3, &[]));
    assert_eq!(client.events, []);
}

#[test]
fn bad_magic_and_unknown_flags_close() {
    let mut client = Client::new();
    client.play(&8u32.to_be_bytes());
    assert!(matches!(client.closed(), Some(CloseReason::Malformed(_))));
    let mut client = Client::negotiating();
    client.play(&[0; 16]);
    assert!(matches!(client.closed(), Some(CloseReason::Malformed(_))));
    let mut client = Client::transmitting(true);
    client.play(&[0; 28]);
    assert!(matches!(client.closed(), Some(CloseReason::Malformed(_))));
    assert!(client.server.is_closed());
}

#[test]
fn requests_are_decoded() {
    let mut client = Client::transmitting(true);
    let asked = |event| match event {
        Event::Request { pending, request } => {
            assert_eq!(pending.cookie(), COOKIE);
            request
        }
        other => panic!("no request but {other:?}"),
    };
    let read = asked(client.request(0, 0, 512, 1024, &[]));
    assert_eq!(read, NbdRequest::Read { offset: 512, length: 1024 });
    let write = asked(client.request(1, 1, 7, 3, b"abc"));
    assert_eq!(write, NbdRequest::Write { offset: 7, data: Bytes::from("abc"), fua: true });
    assert_eq!(asked(client.request(0, 3, 0, 0, &[])), NbdRequest::Flush);
    let trim = asked(client.request(0, 4, 0, u32::MAX, &[]));
    assert_eq!(trim, NbdRequest::Trim { offset: 0, length: u32::MAX, fua: false });
    let zeroes = asked(client.request(2, 6, 1, 2, &[]));
    assert_eq!(zeroes, NbdRequest::WriteZeroes { offset: 1, length: 2, fua: false });
    let status = asked(client.request(8, 7, 0, u32::MAX, &[]));
    assert_eq!(status, NbdRequest::BlockStatus { offset: 0, length: STATUS_BYTES_MAX });
}

#[test]
fn requests_in_pieces_are_put_together() {
    let mut client = Client::transmitting(false);
    let mut wire = request(0, 1, 0, 5);
    wire.put_slice(b"hello");
    wire.extend(request(0, 3, 0, 0));
    for byte in wire {
        client.play(&[byte]);
    }
    let requests: Vec<_> = client
        .events
        .iter()
        .filter_map(|e| match e {
            Event::Request { request, .. } => Some(request.clone()),
            _ => None,
        })
        .collect();
    let write = NbdRequest::Write { offset: 0, data: Bytes::from("hello"), fua: false };
    assert_eq!(requests, [write, NbdRequest::Flush]);
}

#[test]
fn bad_requests_are_refused_one_by_one() {
    let mut client = Client::transmitting(false);
    let cases = [
        (0, 5, 0, 4096, "cache is not offered"),
        (0, 99, 0, 4096, "unknown command"),
        (4, 0, 0, 4096, "don't fragment without structured replies"),
        (16, 6, 0, 4096, "fast zero is not offered"),
        (8, 0, 0, 4096, "one extent of a read"),
        (0, 0, u64::MAX, 4096, "offset overflows"),
        (0, 0, 0, PAYLOAD_BYTES_MAX + 1, "read too long"),
        (0, 0, 0, 0, "empty read"),
        (0, 3, 0, 1, "flush of something"),
        (0, 7, 0, 4096, "block status without a context"),
    ];
    for (flags, kind, offset, length, why) in cases {
        let Event::Send(reply) = client.request(flags, kind, offset, length, &[]) else {
            panic!("{why} was let through")
        };
        assert_eq!(reply[..4], wire::SIMPLE_REPLY_MAGIC.to_be_bytes(), "{why}");
        assert_eq!(reply[4..8], 22u32.to_be_bytes(), "{why}");
        assert_eq!(reply[8..], COOKIE.to_be_bytes(), "{why}");
    }
    // The payload of a refused write is consumed.
    let Event::Send(_) = client.request(0x80, 1, 0, 4, b"data") else { panic!("let through") };
    assert!(matches!(client.request(0, 3, 0, 0, &[]), Event::Request { .. }));
}

#[test]
fn a_write_beyond_the_limit_closes_before_its_payload_is_kept() {
    let mut client = Client::transmitting(true);
    client.play(&request(0, 1, 0, PAYLOAD_BYTES_MAX + 1));
    assert!(matches!(client.closed(), Some(CloseReason::Malformed(_))));
    client.play(&[0; 4096]);
    assert!(client.input.is_empty());
}

#[test]
fn disconnect_closes_in_order() {
    let mut client = Client::transmitting(true);
    let mut wire = request(0, 3, 0, 0);
    wire.extend(request(0, 2, 0, 0));
    wire.extend(request(0, 3, 0, 0));
    client.play(&wire);
    assert_eq!(client.events.len(), 2);
    assert_eq!(client.closed(), Some(&CloseReason::Disconnected));
}

#[test]
fn simple_replies_are_encoded() {
    let mut client = Client::transmitting(false);
    let pending = client.pending(0, 0, 0, 3);
    let [head, data] = pending.data(Bytes::from("abc"));
    let mut expected = vec![];
    expected.put_u32(0x6744_6698);
    expected.put_u32(0);
    expected.put_u64(COOKIE);
    assert_eq!(head[..], expected);
    assert_eq!(data, "abc");
    assert_eq!(pending.error(NbdError::Io)[4..8], 5u32.to_be_bytes());
    assert_eq!(pending.out_of_range()[4..8], 22u32.to_be_bytes());
    let pending = client.pending(0, 6, 0, 3);
    assert_eq!(pending.done()[..], expected);
    assert_eq!(pending.out_of_range()[4..8], 28u32.to_be_bytes());
}

#[test]
fn structured_replies_are_encoded() {
    let mut client = Client::transmitting(true);
    let chunk = |kind: u16, length: u32| {
        let mut head = vec![];
        head.put_u32(0x668e_33ef);
        head.put_u16(1);
        head.put_u16(kind);
        head.put_u64(COOKIE);
        head.put_u32(length);
        head
    };
    let pending = client.pending(4, 0, 8192, 4096);
    let [head, data] = pending.data(Bytes::from(vec![9; 4096]));
    let mut expected = chunk(1, 8 + 4096);
    expected.put_u64(8192);
    assert_eq!((head.to_vec(), data.len()), (expected, 4096));

    let [head, data] = pending.data(Bytes::from(vec![0; 4096]));
    let mut expected = chunk(2, 12);
    expected.put_u64(8192);
    expected.put_u32(4096);
    assert_eq!((head.to_vec(), data.len()), (expected, 0));

    let error = pending.error(NbdError::Io);
    let mut expected = chunk(0x8001, u32::try_from(error.len()).expect("short") - 20);
    expected.put_u32(5);
    assert_eq!(error[..24], expected);

    let runs = [(4096, false), (8192, true)];
    let mut expected = chunk(5, 20);
    expected.put_u32(1);
    expected.put_u64(4096 << 32);
    expected.put_u64((8192 << 32) | 3);
    assert_eq!(client.pending(0, 7, 0, 12288).blocks(&runs), expected);
    let one = client.pending(8, 7, 0, 12288).blocks(&runs);
    assert_eq!(one.len(), 20 + 4 + 8);
}

/// Streams that get past the greeting, so that mutations reach deep.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let valid = [
        option(8, &[]),
        option(3, &[]),
        option(10, &meta_context("vol-1", &["base:allocation"])),
        option(6, &info_data("vol-1", &[1, 3])),
        option(7, &info_data("vol-1", &[])),
    ];
    let requests = prop::collection::vec((0..9u16, 0..10u16, any::<u64>(), 0..9000u32), 0..20);
    requests.prop_map(move |requests| {
        let mut wire = 3u32.to_be_bytes().to_vec();
        wire.extend(valid.iter().flatten());
        for (flags, kind, offset, length) in requests {
            wire.extend(request(flags, kind, offset, length));
            if kind == 1 {
                wire.extend(std::iter::repeat_n(0x25, usize::try_from(length).expect("short")));
            }
        }
        wire
    })
}

fn play_in_pieces(bytes: &[u8], piece: usize) -> Vec<Event> {
    let mut client = Client::new();
    for piece in bytes.chunks(piece) {
        client.play(piece);
        let bound = wire::REQUEST_BYTES + usize::try_from(PAYLOAD_BYTES_MAX).expect("fits");
        assert!(client.input.capacity() <= 2 * bound);
    }
    client.events
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        play_in_pieces(&bytes, 64);
        let mut negotiating = vec![0, 0, 0, 3];
        negotiating.extend(&bytes);
        play_in_pieces(&negotiating, 64);
    }

    #[test]
    fn mutated_streams_never_panic(
        mut bytes in stream(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        for (index, value) in changes {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        play_in_pieces(&bytes, 4096);
    }

    #[test]
    fn how_a_stream_is_split_changes_nothing(bytes in stream(), piece in 1..3000usize) {
        prop_assert_eq!(play_in_pieces(&bytes, piece), play_in_pieces(&bytes, bytes.len()));
    }
}
