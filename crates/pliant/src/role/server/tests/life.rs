//! A real server on real files, with a manager and a node manager that are played by hand.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use format::{
    ctl::{self, FromManager, RegisterServer, ToManager},
    data::{Change, DataMessage, Hello, Peer, RequestId, Status},
    frame,
};
use mio::{Events, Interest, Poll, Token, unix::SourceFd};
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
        let (mut poll, mut events) = (Poll::new().expect("an epoll"), Events::with_capacity(1));
        let (descriptor, readable) = (listener.as_raw_fd(), Interest::READABLE);
        let registered = poll.registry().register(&mut SourceFd(&descriptor), Token(0), readable);
        registered.expect("it can be watched");
        // Another test of this process may have been told of the end of a child.
        while let Err(error) = poll.poll(&mut events, Some(PATIENCE)) {
            assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
        }
        assert!(!events.is_empty(), "no server dials");
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
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = self.next();
            if wanted(&message) {
                return message;
            }
            assert!(Instant::now() < deadline, "only others came, the last of them {message:?}");
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

fn server_config(folder: &Path, id: &str, manager: SocketAddr) -> Config {
    let text = format!(
        r#"
        cluster = "test"
        id = "{id}"
        zone = "local-1a"
        listen = "127.0.0.1:0"
        manager = "{manager}"
        [[drive]]
        name = "ssd"
        media = "ssd"
        path = "{id}-ssd"
        size_gib = 1
        journal_mib = 64
        iops = 10000
        throughput_mib = 500
        [[drive]]
        name = "hdd"
        media = "hdd"
        path = "{id}-hdd"
        size_gib = 1
        journal_mib = 64
        iops = 10000
        throughput_mib = 500
        emulation = {{ seek_ms = 0.1, ops_per_sec = 10000, mib_per_sec = 1000 }}
        "#
    );
    Config::parse(&text, folder).expect("a good configuration")
}

fn member(number: u64, server: &str, drive: &str, address: SocketAddr, role: Role) -> Member {
    Member {
        replica: ReplicaId::from_raw(number),
        server: server.parse().expect("a name"),
        address,
        drive: drive.parse().expect("a name"),
        role,
    }
}

fn group_config(epoch: Epoch, members: Vec<Member>) -> GroupConfig {
    GroupConfig {
        group: group(),
        volume: VolumeId::from_random(7),
        epoch,
        members,
        size: ByteCount::new(SIZE),
        attach_generation: AttachGeneration::default().next(),
        rate: Rate { iops: Iops::new(10_000), throughput: MibPerSec::new(1000) },
        media: Media::Ssd,
    }
}

fn content(seed: u8, length: usize) -> Bytes {
    (0..length).map(|i| (i / 97 % 251) as u8 ^ seed).collect()
}

impl Manager {
    fn create(&mut self, number: u64, drive: &str) {
        self.send(&FromManager::CreateReplica {
            replica: ReplicaId::from_raw(number),
            group: group(),
            volume: VolumeId::from_random(7),
            drive: drive.parse().expect("a name"),
            beside: Vec::new(),
            size: ByteCount::new(SIZE),
        });
        self.until(|m| matches!(m, ToManager::ReplicaCreated { .. }));
    }

    fn prepare(&mut self, number: u64, epoch: Epoch) {
        let replica = ReplicaId::from_raw(number);
        self.send(&FromManager::Prepare { replica, group: group(), epoch, as_mirror: false });
        self.until(|m| matches!(m, ToManager::Promised { epoch: e, .. } if *e == epoch));
    }

    /// Gives the primary its configuration and waits until it serves.
    fn configure(&mut self, epoch: Epoch, members: Vec<Member>) {
        let config = group_config(epoch, members);
        self.send(&FromManager::Configure { config });
        self.until(|m| matches!(m, ToManager::Adopted { epoch: e, .. } if *e == epoch));
    }
}

fn what_is_acknowledged_survives_a_restart(drive: &str, journal: Option<&str>) {
    let folder = folder(&format!("life-{drive}-{}", journal.is_some()));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut config = server_config(&folder.0, "server-a-1", listener.local_addr().expect("bound"));
    config.drives[1].journal_path = journal.map(|name| folder.0.join(name));
    let server = config.id.clone();
    let alone = |address| vec![member(1, "server-a-1", drive, address, Role::Primary)];

    let running = Running::start(config.clone());
    let (mut manager, register) = Manager::accept(&listener);
    assert_eq!((register.server, register.replicas.len()), (server.clone(), 0));
    assert_eq!(register.drives.len(), 2);
    let first_boot = register.boot;
    manager.create(1, drive);
    manager.configure(Epoch::FIRST, alone(register.address));
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
    manager.prepare(1, epoch);
    manager.configure(epoch, alone(register.address));
    let mut node = Node::connect(&server, register.address, epoch, 5);
    assert!(node.read(0, 1 << 20) == expected, "acknowledged bytes are gone");
    assert_eq!(node.read(SIZE - 4096, 4096), small);
    assert_eq!(node.read(2 << 20, 4096), vec![0; 4096]);
}

#[test]
fn what_is_acknowledged_on_an_ssd_survives_a_restart() {
    what_is_acknowledged_survives_a_restart("ssd", None);
}

#[test]
fn what_is_acknowledged_on_an_emulated_hdd_survives_a_restart() {
    what_is_acknowledged_survives_a_restart("hdd", None);
}

#[test]
fn what_is_acknowledged_with_the_journal_apart_survives_a_restart() {
    what_is_acknowledged_survives_a_restart("hdd", Some("journal"));
}

/// What a server says of its HDD when it is started.
fn state_of_hdd(config: &Config, listener: &TcpListener) -> Option<String> {
    let running = Running::start(config.clone());
    // The link outlives the server, which would dial again.
    let (_manager, register) = Manager::accept(listener);
    drop(running);
    let hdd = register.drives.into_iter().find(|drive| drive.drive.to_string() == "hdd");
    hdd.expect("it is configured").failed
}

#[test]
fn a_drive_is_not_served_without_the_journal_that_is_its_own() {
    let folder = folder("life-swapped");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let manager = listener.local_addr().expect("bound");
    let [config, other] = ["server-a-1", "server-a-2"].map(|id| {
        let mut config = server_config(&folder.0, id, manager);
        config.drives[1].journal_path = Some(folder.0.join(format!("{id}-journal")));
        config
    });
    assert_eq!(state_of_hdd(&config, &listener), None);
    assert_eq!(state_of_hdd(&other, &listener), None);
    let path = config.drives[1].journal_path.clone().expect("just set");
    let older = fs::read(&path).expect("a journal");
    let foreign = fs::read(folder.0.join("server-a-2-journal")).expect("a journal");
    assert_eq!(state_of_hdd(&config, &listener), None);
    let own = fs::read(&path).expect("a journal");

    let blank = vec![0; own.len()];
    let strange = vec![7; own.len()];
    for (swapped, words) in [
        (&older, "the journal is an older copy"),
        (&blank, "is blank, and the drive is not"),
        (&foreign, "the journal of another drive"),
        (&strange, "holds something else"),
    ] {
        fs::write(&path, swapped).expect("ours");
        let reason = state_of_hdd(&config, &listener).expect("it must be refused");
        assert!(reason.contains(words) && reason.contains("bring back"), "{reason}");
        assert!(fs::read(&path).expect("it is there") == *swapped, "it was written to");
    }
    let refusal = |config: &Config| {
        let error = Shell::start(config).err().expect("it must be refused");
        format!("{error:#}")
    };
    fs::write(&path, &own[..own.len() / 2]).expect("ours");
    let text = refusal(&config);
    assert!(text.contains("server-a-1-hdd") && text.contains("33554432 bytes"), "{text}");
    fs::remove_file(&path).expect("ours");
    let text = refusal(&config);
    assert!(text.contains("server-a-1-hdd") && text.contains("server-a-1-journal"), "{text}");
    assert!(text.contains("is missing, and the drive is in use: mount"), "{text}");
    assert!(!path.exists(), "none is made for a drive in use");

    fs::write(&path, &own).expect("ours");
    assert_eq!(state_of_hdd(&config, &listener), None);
    let mut inside = config.clone();
    inside.drives[1].journal_path = None;
    let reason = state_of_hdd(&inside, &listener).expect("it must be refused");
    assert!(reason.contains("name it in 'journal_path'"), "{reason}");
}

#[test]
fn a_mirror_serves_what_was_acknowledged_and_fills_the_primary_that_returns() {
    let folder = folder("life-mirror");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let manager_address = listener.local_addr().expect("bound");
    let configs =
        ["server-a-1", "server-a-2"].map(|id| server_config(&folder.0, id, manager_address));
    let first = Running::start(configs[0].clone());
    let (mut first_link, first_register) = Manager::accept(&listener);
    let _second = Running::start(configs[1].clone());
    let (mut second_link, second_register) = Manager::accept(&listener);
    first_link.create(1, "ssd");
    second_link.create(2, "hdd");
    let on_first = |address, role| member(1, "server-a-1", "ssd", address, role);
    let on_second = |role| member(2, "server-a-2", "hdd", second_register.address, role);
    let both = vec![on_first(first_register.address, Role::Primary), on_second(Role::Mirror)];
    first_link.configure(Epoch::FIRST, both);
    let server = &configs[0].id;
    let mut node = Node::connect(server, first_register.address, Epoch::FIRST, 5);
    let data = content(3, 1 << 20);
    node.write(4096, &data);
    node.write(32 << 20, &data);
    drop(first);

    let epoch = Epoch::FIRST.next();
    second_link.prepare(2, epoch);
    second_link.configure(epoch, vec![on_second(Role::Primary)]);
    let mut node = Node::connect(&configs[1].id, second_register.address, epoch, 5);
    assert!(node.read(4096, 1 << 20) == data, "acknowledged bytes are gone");
    node.write(33 << 20, &data);

    // It comes back, is filled from the new primary and admitted, and then serves alone.
    let _first = Running::start(configs[0].clone());
    let (mut first_link, first_register) = Manager::accept(&listener);
    let epoch = epoch.next();
    let source = ReplicaId::from_raw(2);
    let learner = on_first(first_register.address, Role::Learner { source });
    second_link.configure(epoch, vec![on_second(Role::Primary), learner]);
    second_link.until(|m| matches!(m, ToManager::LearnerReady { epoch: e, .. } if *e == epoch));
    let epoch = epoch.next();
    let mirror = on_first(first_register.address, Role::Mirror);
    second_link.configure(epoch, vec![on_second(Role::Primary), mirror]);
    let epoch = epoch.next();
    first_link.prepare(1, epoch);
    first_link.configure(epoch, vec![on_first(first_register.address, Role::Primary)]);
    let mut node = Node::connect(server, first_register.address, epoch, 5);
    for offset in [4096, 32 << 20, 33 << 20] {
        assert!(node.read(offset, 1 << 20) == data, "at {offset}");
    }
}
