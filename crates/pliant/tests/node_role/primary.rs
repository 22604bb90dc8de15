//! A primary that keeps its blocks in memory: what a node manager may expect of a server, and no
//! more. It outlives its connections, so the test can cut them.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use bytes::{Bytes, BytesMut};
use format::{
    data::{Change, DataMessage, Hello, Peer, RequestId, Status},
    frame::{self, Frame},
};
use model::{epoch::Epoch, id::GroupId, units::BLOCK};

pub const CLUSTER: &str = "node-role-test";
pub const SERVER: &str = "server-a-1";

/// What the next requests meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Serving,
    /// Takes requests and never answers.
    Silent,
    /// Closes connections as they come.
    Away,
}

#[derive(Clone)]
pub struct Primary {
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    blocks: BTreeMap<u64, Bytes>,
    conns: Vec<TcpStream>,
    mood: Mood,
    changes: u64,
    reads: u64,
    /// Highest request number of each session that changed something: a repeat is not a second
    /// change.
    sessions: Vec<u64>,
}

impl Primary {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let shared = Shared {
            blocks: BTreeMap::new(),
            conns: Vec::new(),
            mood: Mood::Serving,
            changes: 0,
            reads: 0,
            sessions: Vec::new(),
        };
        let primary = Self { address, shared: Arc::new(Mutex::new(shared)) };
        let accepting = primary.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let primary = accepting.clone();
                thread::spawn(move || primary.talk(stream));
            }
        });
        primary
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on; connections that exist are cut.
    pub fn set_mood(&self, mood: Mood) {
        let mut shared = self.shared();
        shared.mood = mood;
        for conn in shared.conns.drain(..) {
            let _ = conn.shutdown(Shutdown::Both);
        }
    }

    pub fn changes(&self) -> u64 {
        self.shared().changes
    }

    pub fn sessions(&self) -> usize {
        self.shared().sessions.len()
    }

    /// Bytes as they are stored.
    pub fn stored(&self, offset: u64, length: u64) -> Vec<u8> {
        self.shared().read(offset, length)
    }

    fn talk(&self, mut stream: TcpStream) {
        {
            let mut shared = self.shared();
            if shared.mood == Mood::Away {
                return;
            }
            shared.conns.push(stream.try_clone().expect("a second handle"));
        }
        stream.set_nodelay(true).expect("a TCP stream");
        let peer = Peer::Server(SERVER.parse().expect("a legal name"));
        let hello = DataMessage::Hello(Hello { cluster: CLUSTER.to_owned(), peer });
        let mut input = BytesMut::new();
        if stream.write_all(&hello.into_frame().encode()).is_err() {
            return;
        }
        // An error means that one side has closed; what was asked is asked again elsewhere.
        while let Ok(Some(frame)) = next_frame(&mut stream, &mut input) {
            let message = DataMessage::from_frame(frame).expect("a well-formed message");
            let reply = self.carry_out(message);
            if let Some(reply) = reply
                && stream.write_all(&reply.into_frame().encode()).is_err()
            {
                return;
            }
        }
    }

    fn carry_out(&self, message: DataMessage) -> Option<DataMessage> {
        let mut shared = self.shared();
        if shared.mood != Mood::Serving {
            return None;
        }
        match message {
            DataMessage::Hello(hello) => {
                assert_eq!(hello.cluster, CLUSTER);
                None
            }
            DataMessage::Ping => Some(DataMessage::Pong),
            DataMessage::OpenSession { group, epoch, id, .. } => {
                if !shared.sessions.contains(&id.session) {
                    shared.sessions.push(id.session);
                }
                Some(reply(group, epoch, id, Vec::new(), Bytes::new()))
            }
            DataMessage::Read { group, epoch, id, offset, length } => {
                shared.reads += 1;
                let data = shared.read(offset, u64::from(length));
                Some(reply(group, epoch, id, crcs(&data), data.into()))
            }
            DataMessage::Change { group, epoch, id, offset, change } => {
                assert_eq!(shared.sessions.last(), Some(&id.session), "an older session wrote");
                shared.changes += 1;
                shared.change(offset, change);
                Some(reply(group, epoch, id, Vec::new(), Bytes::new()))
            }
            DataMessage::QueryAllocated { group, epoch, id, offset, length } => {
                let data = shared.bitmap(offset, u64::from(length));
                Some(reply(group, epoch, id, crcs(&data), data.into()))
            }
            other => panic!("a node manager sent {other:?}"),
        }
    }
}

impl Shared {
    fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        let (first, last) = (offset / BLOCK, (offset + length).div_ceil(BLOCK));
        let zeros = vec![0; usize::try_from(BLOCK).expect("4096")];
        let block = |at| self.blocks.get(&at).map_or(&zeros[..], |bytes| bytes);
        let data: Vec<u8> = (first..last).flat_map(|at| block(at).to_vec()).collect();
        let skip = usize::try_from(offset % BLOCK).expect("small");
        data[skip..skip + usize::try_from(length).expect("small")].to_vec()
    }

    fn change(&mut self, offset: u64, change: Change) {
        let first = offset / BLOCK;
        match change {
            Change::Write { crcs: sent, data } => {
                assert_eq!(sent, crcs(&data), "checksums of the node manager");
                for (at, block) in (first..).zip(data.chunks(usize::try_from(BLOCK).expect("4096")))
                {
                    self.blocks.insert(at, Bytes::copy_from_slice(block));
                }
            }
            Change::Zero { length } => {
                let end = first + u64::from(length) / BLOCK;
                let zeroed: Vec<u64> = self.blocks.range(first..end).map(|(&at, _)| at).collect();
                for at in zeroed {
                    self.blocks.remove(&at);
                }
            }
        }
    }

    fn bitmap(&self, offset: u64, length: u64) -> Vec<u8> {
        let (first, count) = (offset / BLOCK, length / BLOCK);
        let mut bits = vec![0; usize::try_from(count.div_ceil(8)).expect("small")];
        for (&at, _) in self.blocks.range(first..first + count) {
            bits[usize::try_from((at - first) / 8).expect("small")] |= 1 << ((at - first) % 8);
        }
        bits
    }
}

fn reply(group: GroupId, epoch: Epoch, id: RequestId, crcs: Vec<u32>, data: Bytes) -> DataMessage {
    DataMessage::Reply { group, epoch, id, status: Status::Ok, crcs, data }
}

fn crcs(data: &[u8]) -> Vec<u32> {
    data.chunks(usize::try_from(BLOCK).expect("4096")).map(crc32c::crc32c).collect()
}

/// The next frame, or `None` when the peer has finished.
pub fn next_frame(stream: &mut TcpStream, input: &mut BytesMut) -> io::Result<Option<Frame>> {
    loop {
        if let Some(frame) = frame::decode(input).map_err(io::Error::other)? {
            return Ok(Some(frame));
        }
        let mut piece = [0; 64 << 10];
        let count = stream.read(&mut piece)?;
        if count == 0 {
            return Ok(None);
        }
        input.extend_from_slice(&piece[..count]);
    }
}
