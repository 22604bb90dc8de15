//! A node manager's process, its primary and its manager.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use format::ctl::{self, Attach, FromManager, RegisterNode, ToManager};
use model::{
    epoch::{AttachGeneration, Epoch},
    group::{GroupConfig, Member, Role},
    id::{GroupId, InstanceId, ReplicaId, VolumeId},
    units::{ByteCount, Rate},
    volume::Media,
};

use super::primary::{CLUSTER, Primary, SERVER, next_frame};

pub const MIB: u64 = 1 << 20;
/// Nothing here takes nearly as long; a test that waits longer has failed.
const LIMIT: Duration = Duration::from_secs(30);

pub struct World {
    pub dir: PathBuf,
    pub primary: Primary,
    pub manager: Manager,
    node: Option<Child>,
    config: PathBuf,
}

/// The manager's end of the control link.
pub struct Manager {
    listener: TcpListener,
    link: Option<TcpStream>,
    received: Receiver<ToManager>,
    sender: Sender<ToManager>,
}

/// What `Attached` said.
#[derive(Debug)]
pub struct Attached {
    pub unix: String,
    pub tcp: String,
    pub device: Option<String>,
}

pub fn volume() -> VolumeId {
    VolumeId::from_raw(0x0012_3456_789a_bcde)
}

impl World {
    /// A node manager that runs, with nothing attached.
    pub fn new(name: &str, kernel_devices: bool) -> Self {
        let dir = std::env::temp_dir().join(format!("pliant-node-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let primary = Primary::start();
        let manager = Manager::new();
        let config = dir.join("node.toml");
        let text = format!(
            "cluster = \"{CLUSTER}\"\nid = \"node-a\"\nzone = \"local-1a\"\nmanager = \"{}\"\n\
             account = \"000000000001\"\ninstances = [\"i-0123456789abcdef0\"]\n\
             dir = \"{}\"\nnbd_socket = \"{}\"\nnbd_listen = \"127.0.0.1:0\"\n\
             kernel_devices = {kernel_devices}\n",
            manager.listener.local_addr().expect("bound"),
            dir.join("state").display(),
            dir.join("nbd.sock").display(),
        );
        fs::write(&config, text).expect("a configuration");
        let mut world = Self { dir, primary, manager, node: None, config };
        world.start();
        world
    }

    pub fn start(&mut self) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pliant"))
            .args(["node", "--config"])
            .arg(&self.config)
            .stderr(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .expect("the node manager starts");
        // Into the test's own output, where the harness captures it.
        let log = child.stderr.take().expect("it is piped");
        thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                eprintln!("node: {line}");
            }
        });
        self.node = Some(child);
    }

    /// Signal 9.
    pub fn kill(&mut self) {
        let mut node = self.node.take().expect("it runs");
        node.kill().expect("it runs");
        node.wait().expect("it was killed");
        self.manager.link = None;
    }

    /// SIGTERM; it must end by itself, with success.
    pub fn stop(&mut self) {
        let mut node = self.node.take().expect("it runs");
        let pid = node.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
        assert!(sent.success());
        let status = node.wait().expect("it ends");
        assert!(status.success(), "{status}, signal {:?}", status.signal());
        self.manager.link = None;
    }

    pub fn config(&self, epoch: u64, size: u64, generation: u64) -> GroupConfig {
        let member = Member {
            replica: ReplicaId::from_raw(3),
            server: SERVER.parse().expect("a legal name"),
            address: self.primary.address,
            drive: "ssd".parse().expect("a legal name"),
            role: Role::Primary,
        };
        GroupConfig {
            group: GroupId::from_raw(2),
            volume: volume(),
            epoch: Epoch::new(epoch).expect("a legal epoch"),
            members: vec![member],
            size: ByteCount::new(size),
            attach_generation: AttachGeneration::from_raw(generation),
            rate: Rate::default(),
            media: Media::Ssd,
        }
    }

    pub fn send_attach(&mut self, epoch: u64, size: u64, generation: u64, kernel_device: bool) {
        let config = self.config(epoch, size, generation);
        let instance: InstanceId = "i-0123456789abcdef0".parse().expect("a legal id");
        let device = "/dev/sdf".to_owned();
        let attach = Attach { volume: volume(), instance, device, kernel_device, config };
        self.manager.send(&FromManager::Attach(attach));
    }

    /// Registers, attaches the volume and waits until it can be used.
    pub fn attach(&mut self, size: u64, kernel_device: bool) -> Attached {
        self.manager.accept();
        self.send_attach(1, size, 1, kernel_device);
        self.manager.attached()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut node) = self.node.take() {
            let pid = node.id().to_string();
            let _ = Command::new("kill").args(["-TERM", &pid]).status();
            let _ = node.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Manager {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (sender, received) = mpsc::channel();
        Self { listener, link: None, received, sender }
    }

    /// Waits for the node manager to dial and register.
    pub fn accept(&mut self) -> RegisterNode {
        let (stream, _) = self.listener.accept().expect("it dials");
        let mut reading = stream.try_clone().expect("a second handle");
        self.link = Some(stream);
        let sender = self.sender.clone();
        thread::spawn(move || {
            let mut input = BytesMut::new();
            while let Ok(Some(frame)) = next_frame(&mut reading, &mut input) {
                let message = ctl::decode(&frame).expect("a control message");
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        self.wait("registration", |message| match message {
            ToManager::RegisterNode(register) => Some(register),
            _ => None,
        })
    }

    pub fn send(&mut self, message: &FromManager) {
        let link = self.link.as_mut().expect("it has dialed");
        link.write_all(&ctl::encode(message).encode()).expect("the link is up");
    }

    /// The first message from now on that `pick` takes.
    pub fn wait<T>(&self, what: &str, mut pick: impl FnMut(ToManager) -> Option<T>) -> T {
        let until = Instant::now() + LIMIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let message = self.received.recv_timeout(left);
            let message = message.unwrap_or_else(|_| panic!("no {what} within {LIMIT:?}"));
            if let Some(found) = pick(message) {
                return found;
            }
        }
    }

    pub fn attached(&self) -> Attached {
        self.wait("attachment", |message| match message {
            ToManager::Attached { nbd_uris, device, .. } => {
                let [unix, tcp] = nbd_uris.try_into().expect("one address for each listener");
                Some(Attached { unix, tcp, device })
            }
            _ => None,
        })
    }

    /// Waits until the node manager says that the primary does not answer.
    pub fn silence(&self) {
        self.wait("report of silence", |message| match message {
            ToManager::PrimarySilent { .. } => Some(()),
            _ => None,
        });
    }

    pub fn size_shown(&self, wanted: u64) {
        self.wait("new size", |message| match message {
            ToManager::SizeShown { size, .. } if size.get() == wanted => Some(()),
            _ => None,
        });
    }

    pub fn detach(&mut self, generation: u64, force: bool) {
        let attach_generation = AttachGeneration::from_raw(generation);
        self.send(&FromManager::Detach { volume: volume(), attach_generation, force });
        self.wait("detachment", |message| match message {
            ToManager::Detached { attach_generation: ended, .. } if ended == attach_generation => {
                Some(())
            }
            _ => None,
        });
    }
}

/// Runs a program to its end and returns its output. A missing program is a failure: `make test`
/// installs what the tests need.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let (success, output) = try_run(program, arguments);
    assert!(success, "{program} {arguments:?}: {output}");
    output
}

/// Whether the program succeeded, and its output.
pub fn try_run(program: &str, arguments: &[&str]) -> (bool, String) {
    let result = Command::new("timeout").arg("60").arg(program).args(arguments).output();
    let output = result.expect("timeout runs");
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    assert_ne!(output.status.code(), Some(127), "{program} is not installed");
    (output.status.success(), text)
}

pub fn path(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}
