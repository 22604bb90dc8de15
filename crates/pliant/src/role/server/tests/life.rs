//! A real server on real files, with a manager and a node manager that are played by hand.

use std::{
    fs,
    io::Read,
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use format::{
    ctl::{self, FromManager, RegisterServer, ToManager},
    data::{Change, DataMessage, Hello, Peer, RequestId, Status},
    frame,
};
use model::{
    epoch::{AttachGeneration, Epoch},
    group::{GroupConfig, Member, Role},
    id::{GroupId, NodeId, ReplicaId, ServerId, VolumeId},
    units::{ByteCount, Iops, MibPerSec, Rate},
    volume::Media,
};

use super::super::{Shell, config::Config};
use crate::{
    clock::Clock,
    net::{NetEvent, Reactor},
};

/// Generous: reached only when something never happens.
const PATIENCE: Duration = Duration::from_secs(20);
const SIZE: u64 = 64 << 20;

/// A server in a thread of this process; dropping it stops it.
struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(config: Config) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut shell = Shell::start(&config).expect("the server starts");
            while !seen.load(Ordering::Relaxed) {
                shell.turn().expect("a turn");
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.take().expect("stopped once").join();
        assert!(joined.is_ok() || thread::panicking(), "the server panicked");
    }
}

/// The manager's end of the link.
struct Manager {
    stream: TcpStream,
    input: BytesMut,
}

impl Manager {
    fn accept(listener: &TcpListener) -> (Self, RegisterServer) {
        let (stream, _) = listener.accept().expect("the server dials");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut manager = Self { stream, input: BytesMut::new() };
        match manager.next() {
            ToManager::RegisterServer(register) => (manager, register),
            other => panic!("the first message was {other:?}"),
        }
    }

    fn next(&mut self) -> ToManager {
        loop {
            if let Some(frame) = frame::decode(&mut self.input).expect("good frames") {
                return ctl::decode(&frame).expect("a control message");
            }
            let mut chunk = [0; 4096];
            let count = self.stream.read(&mut chunk).expect("a message in time");
            assert!(count > 0, "the server closed its link");
            self.input.extend_from_slice(&chunk[..count]);
        }
    }

    fn send(&mut self, message: &FromManager) {
        self.stream.write_all(&ctl::encode(message).encode()).expect("the server reads");
    }

    fn until(&mut self, mut wanted: impl FnMut(&ToManager) -> bool) -> ToManager {
        loop {
            let message = self.next();
            if wanted(&message) {
                return message;
            }
        }
    }
}

/// A node manager with one request at a time.
struct Node {
    reactor: Reactor<()>,
    server: ServerId,
    epoch: Epoch,
    session: u64,
    request: u64,
}

impl Node {
    fn connect(server: &ServerId, address: SocketAddr, epoch: Epoch, session: u64) -> Self {
        let name: NodeId = "node-a".parse().expect("a name");
        let hello = Hello { cluster: "test".to_owned(), peer: Peer::Node(name) };
        let mut reactor = Reactor::new(Clock::start(), hello).expect("a reactor");
        reactor.connect(server.clone(), address);
        let mut node = Self { reactor, server: server.clone(), epoch, session, request: 0 };
        node.until(|event| matches!(event, NetEvent::LinkUp { .. }).then_some(()));
        let attach = AttachGeneration::default().next();
        let (group, id) = (group(), node.id());
        node.ask(DataMessage::OpenSession { group, epoch, attach, id });
        node
    }

    fn id(&mut self) -> RequestId {
        self.request += 1;
        RequestId { session: self.session, request: self.request }
    }

    fn until<T>(&mut self, mut wanted: impl FnMut(NetEvent<()>) -> Option<T>) -> T {
        let deadline = self.reactor.now() + PATIENCE;
        let mut events = Vec::new();
        loop {
            self.reactor.turn(Some(deadline), &mut events).expect("a turn");
            if let Some(found) = events.drain(..).find_map(&mut wanted) {
                return found;
            }
            assert!(self.reactor.now() < deadline, "no answer");
        }
    }

    fn ask(&mut self, message: DataMessage) -> Bytes {
        let wanted = RequestId { session: self.session, request: self.request };
        self.reactor.send_link(&self.server, message);
        self.until(|event| match event {
            NetEvent::LinkReceived {
                message: DataMessage::Reply { id, status, data, .. }, ..
            } if id == wanted => {
                assert_eq!(status, Status::Ok, "request {}", wanted.request);
                Some(data)
            }
            _ => None,
        })
    }

    fn write(&mut self, offset: u64, data: &Bytes) {
        let crcs = data.chunks(4096).map(crc32c::crc32c).collect();
        let change = Change::Write { crcs, data: data.clone() };
        let (group, epoch, id) = (group(), self.epoch, self.id());
        self.ask(DataMessage::Change { group, epoch, id, offset, change });
    }

    fn read(&mut self, offset: u64, length: u32) -> Bytes {
        let (group, epoch, id) = (group(), self.epoch, self.id());
        self.ask(DataMessage::Read { group, epoch, id, offset, length })
    }
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("ours");
    }
}

fn folder(name: &str) -> Folder {
    let path = std::env::temp_dir().join(format!("pliant-{name}-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a folder");
    Folder(path)
}

fn group() -> GroupId {
    GroupId::from_raw(1)
}

fn server_config(folder: &Path, manager: SocketAddr) -> Config {
    let text = format!(
        r#"
        cluster = "test"
        id = "server-a-1"
        zone = "local-1a"
        listen = "127.0.0.1:0"
        manager = "{manager}"
        [[drive]]
        name = "ssd"
        media = "ssd"
        path = "ssd"
        size_gib = 1
        journal_mib = 64
        iops = 10000
        throughput_mib = 500
        [[drive]]
        name = "hdd"
        media = "hdd"
        path = "hdd"
        size_gib = 1
        journal_mib = 64
        iops = 10000
        throughput_mib = 500
        emulation = {{ seek_ms = 0.1, ops_per_sec = 10000, mib_per_sec = 1000 }}
        "#
    );
    Config::parse(&text, folder).expect("a good configuration")
}

fn alone(drive: &str, address: SocketAddr, epoch: Epoch) -> GroupConfig {
    GroupConfig {
        group: group(),
        volume: VolumeId::from_random(7),
        epoch,
        members: vec![Member {
            replica: ReplicaId::from_raw(1),
            server: "server-a-1".parse().expect("a name"),
            address,
            drive: drive.parse().expect("a name"),
            role: Role::Primary,
        }],
        size: ByteCount::new(SIZE),
        attach_generation: AttachGeneration::default().next(),
        rate: Rate { iops: Iops::new(10_000), throughput: MibPerSec::new(1000) },
        media: Media::Ssd,
    }
}

fn content(seed: u8, length: usize) -> Bytes {
    (0..length).map(|i| (i / 97 % 251) as u8 ^ seed).collect()
}

/// Makes the replica the only member of its group and waits until it serves.
fn configure(manager: &mut Manager, drive: &str, address: SocketAddr, epoch: Epoch) {
    let config = alone(drive, address, epoch);
    manager.send(&FromManager::Configure { config });
    manager.until(|m| matches!(m, ToManager::Adopted { epoch: e, .. } if *e == epoch));
}

fn what_is_acknowledged_survives_a_restart(drive: &str) {
    let folder = folder(&format!("life-{drive}"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let config = server_config(&folder.0, listener.local_addr().expect("bound"));
    let server = config.id.clone();
    let replica = ReplicaId::from_raw(1);

    let running = Running::start(config.clone());
    let (mut manager, register) = Manager::accept(&listener);
    assert_eq!((register.server, register.replicas.len()), (server.clone(), 0));
    assert_eq!(register.drives.len(), 2);
    let first_boot = register.boot;
    manager.send(&FromManager::CreateReplica {
        replica,
        group: group(),
        volume: VolumeId::from_random(7),
        drive: drive.parse().expect("a name"),
        size: ByteCount::new(SIZE),
    });
    manager.until(|m| matches!(m, ToManager::ReplicaCreated { .. }));
    configure(&mut manager, drive, register.address, Epoch::FIRST);
    let mut node = Node::connect(&server, register.address, Epoch::FIRST, 5);
    let (small, large) = (content(1, 4096), content(2, 1 << 20));
    node.write(0, &large);
    node.write(8192, &small);
    node.write(SIZE - 4096, &small);
    let mut expected = large.to_vec();
    expected[8192..12288].copy_from_slice(&small);
    assert!(node.read(0, 1 << 20) == expected);
    drop(running);

    let _running = Running::start(config);
    let (mut manager, register) = Manager::accept(&listener);
    assert_ne!(register.boot, first_boot);
    assert_eq!(register.replicas.len(), 1);
    assert_eq!(register.replicas[0].adopted, Epoch::FIRST);
    let epoch = Epoch::FIRST.next();
    manager.send(&FromManager::Prepare { replica, group: group(), epoch });
    manager.until(|m| matches!(m, ToManager::Promised { epoch: e, .. } if *e == epoch));
    configure(&mut manager, drive, register.address, epoch);
    let mut node = Node::connect(&server, register.address, epoch, 5);
    assert!(node.read(0, 1 << 20) == expected, "acknowledged bytes are gone");
    assert_eq!(node.read(SIZE - 4096, 4096), small);
    assert_eq!(node.read(2 << 20, 4096), vec![0; 4096]);
}

#[test]
fn what_is_acknowledged_on_an_ssd_survives_a_restart() {
    what_is_acknowledged_survives_a_restart("ssd");
}

#[test]
fn what_is_acknowledged_on_an_emulated_hdd_survives_a_restart() {
    what_is_acknowledged_survives_a_restart("hdd");
}
