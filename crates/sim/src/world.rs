//! The event loop: processes, links, drives and the metadata store in virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use bds::api as bds_api;
use bytes::Bytes;
use control::{
    api::CallToken,
    http::{HttpRequest, HttpResponse},
    machine as control_api,
    state::Write,
};
use engine::api::{Device, DriveError, Durability, IoToken};
use format::{
    ctl::{Attach, FromManager, ToManager},
    disk::JournalPlace,
    record::Record,
};
use model::{
    id::{DriveName, NodeId, ServerId, VolumeId},
    time::{Instant, WallTime},
};
use node::api as node_api;
use node::api::{GuestReply, GuestRequest, GuestToken};

mod life;
mod links;
mod machines;

use crate::{
    drive::{Drive, faults::Faults},
    network::{Life, Network, Process},
    random::Random,
    watch::Watch,
};

/// Milliseconds since 1970 at the start of every run.
const WALL_START_MS: u64 = 1_790_000_000_000;

/// What may happen at a moment. `life` drops what was meant for an earlier run of a process.
#[derive(Debug)]
enum Happening {
    Wake {
        process: Process,
        life: u64,
    },
    Dialled {
        from: Process,
        to: Process,
        life: Life,
    },
    Data {
        from: Process,
        to: Process,
        life: Life,
        outward: bool,
        wire: Bytes,
    },
    ToManager {
        from: Process,
        life: Life,
        message: ToManager,
    },
    FromManager {
        to: Process,
        life: Life,
        message: FromManager,
    },
    DriveRead {
        server: ServerId,
        life: u64,
        drive: DriveName,
        token: IoToken,
        result: Result<Bytes, DriveError>,
    },
    DriveWritten {
        server: ServerId,
        life: u64,
        drive: DriveName,
        device: Device,
        token: IoToken,
        ticket: u64,
        durability: Durability,
    },
    DriveFlushed {
        server: ServerId,
        life: u64,
        drive: DriveName,
        device: Device,
        token: IoToken,
        ticket: u64,
    },
    Committed {
        life: u64,
        commit: u64,
    },
    Export {
        node: NodeId,
        life: u64,
        event: node_api::Event,
    },
    Start {
        process: Process,
    },
    /// Nothing has come through for so long that an end gives the link up, if that is still so.
    GivenUp {
        from: Process,
        to: Process,
        life: Life,
    },
    NearLearns {
        from: Process,
        to: Process,
        life: Life,
    },
    FarLearns {
        to: Process,
        to_life: u64,
        life: Life,
        conn: bds_api::ConnId,
    },
}

/// What a process that stands still will find.
#[derive(Debug)]
enum Fed {
    Manager(control_api::Event),
    Server(bds_api::Event),
    Node(node_api::Event),
}

/// A process's own monotonic clock: it runs fast or slow, and starts anywhere.
#[derive(Debug, Clone, Copy)]
struct Clock {
    per_mille: u64,
}

impl Clock {
    fn local(self, global: Instant) -> Instant {
        Instant::from_nanos(global.as_nanos() / 1_000 * self.per_mille)
    }

    /// Not before the local clock shows this.
    fn global(self, local: Instant) -> Instant {
        Instant::from_nanos(local.as_nanos().div_ceil(self.per_mille).saturating_mul(1_000))
    }
}

impl Happening {
    /// From whom it comes to whom, if it is a message.
    fn way(&self) -> Option<(Process, Process)> {
        match self {
            Self::Data { from, to, outward: true, .. } => Some((from.clone(), to.clone())),
            Self::Data { from, to, outward: false, .. } => Some((to.clone(), from.clone())),
            Self::ToManager { from, .. } => Some((from.clone(), Process::Manager)),
            Self::FromManager { to, .. } => Some((Process::Manager, to.clone())),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct ManagerProcess {
    params: control_api::ManagerParams,
    machine: Option<control::machine::Manager>,
    life: u64,
    /// Durable.
    records: BTreeMap<String, Record>,
    pending: Option<(u64, Vec<Write>)>,
}

struct ServerProcess {
    params: bds_api::ServerParams,
    machine: Option<bds::Server>,
    ready: bool,
    life: u64,
    /// Each, and where its journal lies, if that lies apart.
    drives: BTreeMap<(DriveName, Device), Drive>,
}

impl ServerProcess {
    fn disk(&mut self, drive: &DriveName, device: Device) -> &mut Drive {
        self.drives
            .get_mut(&(drive.clone(), device))
            .expect("a server knows where its journals lie")
    }
}

/// What a drive consists of. One may lose what the other keeps.
fn devices(drive: &bds_api::DriveParams) -> Vec<((DriveName, Device), Drive)> {
    let devices: &[Device] = match drive.geometry.journal {
        JournalPlace::Inside => &[Device::Data],
        JournalPlace::Apart => &[Device::Data, Device::Journal],
    };
    devices.iter().map(|&device| ((drive.drive.clone(), device), Drive::default())).collect()
}

struct NodeProcess {
    params: node_api::NodeParams,
    machine: Option<node::Node>,
    life: u64,
    /// Durable.
    cached: Vec<Attach>,
}

/// When it hurts a server most to fail: just when it has said something that others go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Promised,
    HandedOver,
    LearnerReady,
    Adopted,
}

/// A guest's request that was answered, or lost with its node manager.
#[derive(Debug)]
pub struct Answered {
    pub node: NodeId,
    pub token: GuestToken,
    pub reply: GuestReply,
}

pub struct World {
    pub now: Instant,
    pub random: Random,
    queue: BTreeMap<(Instant, u64), Happening>,
    next: u64,
    network: Network,
    /// What waits in sockets behind a cut, by sender and receiver.
    held: BTreeMap<(Process, Process), Vec<Happening>>,
    paused: BTreeMap<Process, Vec<Fed>>,
    clocks: BTreeMap<Process, Clock>,
    /// How many times slower than usual a server's drives, and a process's links, are.
    pub slow_drives: BTreeMap<ServerId, u64>,
    pub slow_links: BTreeMap<Process, u64>,
    wakes: BTreeMap<Process, Instant>,
    manager: ManagerProcess,
    servers: BTreeMap<ServerId, ServerProcess>,
    nodes: BTreeMap<NodeId, NodeProcess>,
    /// HTTP answers nobody has taken yet.
    pub http: BTreeMap<u64, HttpResponse>,
    next_call: u64,
    /// Answers to guests nobody has taken yet.
    pub answered: Vec<Answered>,
    /// What each node shows: volume and size.
    pub exports: BTreeMap<(NodeId, VolumeId), u64>,
    pub trace: Option<Vec<String>>,
    /// What has been said that a scenario may want to interrupt, until it looks.
    pub moments: Vec<(ServerId, Moment)>,
    watch: Watch,
    /// Ends of links that do not know yet that they have ended, and what reaches them until they do.
    lingering: BTreeMap<Life, Vec<Happening>>,
}

impl World {
    pub fn new(
        seed: u64,
        manager: control_api::ManagerParams,
        servers: Vec<bds_api::ServerParams>,
        nodes: Vec<node_api::NodeParams>,
    ) -> Self {
        let manager = ManagerProcess {
            params: manager,
            machine: None,
            life: 0,
            records: BTreeMap::new(),
            pending: None,
        };
        let server = |params: bds_api::ServerParams| {
            let drives = params.drives.iter().flat_map(devices).collect();
            let id = params.server.clone();
            (id, ServerProcess { params, machine: None, ready: false, life: 0, drives })
        };
        let node = |params: node_api::NodeParams| {
            (
                params.node.clone(),
                NodeProcess { params, machine: None, life: 0, cached: Vec::new() },
            )
        };
        Self {
            now: Instant::from_nanos(1_000_000_000),
            random: Random::new(seed),
            queue: BTreeMap::new(),
            next: 0,
            network: Network::default(),
            held: BTreeMap::new(),
            paused: BTreeMap::new(),
            clocks: BTreeMap::new(),
            slow_drives: BTreeMap::new(),
            slow_links: BTreeMap::new(),
            wakes: BTreeMap::new(),
            manager,
            servers: servers.into_iter().map(server).collect(),
            nodes: nodes.into_iter().map(node).collect(),
            http: BTreeMap::new(),
            next_call: 0,
            answered: Vec::new(),
            exports: BTreeMap::new(),
            trace: None,
            moments: Vec::new(),
            watch: Watch::default(),
            lingering: BTreeMap::new(),
        }
    }

    /// Starts everybody.
    pub fn begin(&mut self) {
        for process in self.processes() {
            self.start(&process);
        }
    }

    pub fn processes(&self) -> Vec<Process> {
        let servers = self.servers.keys().cloned().map(Process::Server);
        let nodes = self.nodes.keys().cloned().map(Process::Node);
        std::iter::once(Process::Manager).chain(servers).chain(nodes).collect()
    }

    /// From now on, for a process that has not begun: its clock runs at so many thousandths.
    pub fn set_clock(&mut self, process: &Process, per_mille: u64) {
        assert!(!self.is_up(process), "a clock does not jump");
        self.clocks.insert(process.clone(), Clock { per_mille });
    }

    fn clock(&self, process: &Process) -> Clock {
        self.clocks.get(process).copied().unwrap_or(Clock { per_mille: 1_000 })
    }

    fn local(&self, process: &Process) -> Instant {
        self.clock(process).local(self.now)
    }

    fn travel(&mut self, from: &Process, to: &Process, micros: (u64, u64)) -> Duration {
        let factor = |p| self.slow_links.get(p).copied().unwrap_or(1);
        let factor = factor(from).max(factor(to));
        self.random.micros(micros.0 * factor, micros.1 * factor)
    }

    fn drive_time(&mut self, server: &ServerId, micros: (u64, u64)) -> Duration {
        let factor = self.slow_drives.get(server).copied().unwrap_or(1);
        self.random.micros(micros.0 * factor, micros.1 * factor)
    }

    pub fn wall(&self) -> WallTime {
        WallTime::from_millis(WALL_START_MS + self.now.as_nanos() / 1_000_000)
    }

    pub fn is_up(&self, process: &Process) -> bool {
        match process {
            Process::Manager => self.manager.machine.is_some(),
            Process::Server(s) => self.servers[s].machine.is_some(),
            Process::Node(n) => self.nodes[n].machine.is_some(),
        }
    }

    /// Runs the next thing that happens, unless it lies beyond `until`; tells whether it did.
    pub fn step(&mut self, until: Instant) -> bool {
        let Some((&(at, number), _)) = self.queue.first_key_value() else {
            self.now = until;
            return false;
        };
        if at > until {
            self.now = until;
            return false;
        }
        let happening = self.queue.remove(&(at, number)).expect("just seen");
        self.now = at;
        self.happen(happening);
        true
    }

    /// A rule of the protocol that a machine has not kept, whether or not anybody suffers from it.
    pub fn take_wrong(&mut self) -> Option<String> {
        self.watch.take_wrong()
    }

    pub fn trace(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>12.6} {}", self.now.as_nanos() as f64 / 1e9, line()));
        }
    }

    // What a scenario does to the world.

    pub fn call(&mut self, request: HttpRequest) -> Option<u64> {
        self.manager.machine.as_ref()?;
        self.next_call += 1;
        let call = CallToken(self.next_call);
        self.feed_manager(control_api::Event::HttpReceived { call, request });
        Some(self.next_call)
    }

    pub fn guest(
        &mut self,
        node: &NodeId,
        volume: VolumeId,
        token: GuestToken,
        request: GuestRequest,
    ) {
        self.feed_node(node, node_api::Event::GuestRequested { volume, token, request });
    }

    /// The durable records of the manager.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.manager.records.values()
    }

    /// The drive, or where its journal lies, if that lies apart.
    pub fn drive(&self, server: &ServerId, drive: &DriveName, device: Device) -> Option<&Drive> {
        self.servers[server].drives.get(&(drive.clone(), device))
    }

    pub fn servers(&self) -> impl Iterator<Item = &ServerId> {
        self.servers.keys()
    }

    /// What goes wrong with a drive and its journal from now on.
    pub fn set_faults(&mut self, server: &ServerId, drive: &DriveName, faults: Option<&Faults>) {
        for device in [Device::Data, Device::Journal] {
            let key = (drive.clone(), device);
            if let Some(disk) = self.servers.get_mut(server).expect("known").drives.get_mut(&key) {
                disk.faults = faults.cloned();
            }
        }
    }

    pub fn server_params(&self, server: &ServerId) -> &bds_api::ServerParams {
        &self.servers[server].params
    }

    // The loop.

    fn schedule(&mut self, delay: Duration, happening: Happening) {
        self.schedule_at(self.now + delay, happening);
    }

    fn schedule_at(&mut self, at: Instant, happening: Happening) {
        self.next += 1;
        self.queue.insert((at.max(self.now), self.next), happening);
    }

    fn happen(&mut self, happening: Happening) {
        if let Some(way) = happening.way()
            && self.network.is_cut(&way.0, &way.1)
        {
            return self.held.entry(way).or_default().push(happening);
        }
        match happening {
            Happening::GivenUp { from, to, life } => self.given_up(&from, &to, life),
            Happening::NearLearns { from, to, life } => self.near_learns(&from, &to, life),
            Happening::FarLearns { to, to_life, life, conn } => {
                self.far_learns(&to, to_life, life, conn);
            }
            Happening::Start { process } => self.start(&process),
            Happening::Wake { process, life } => self.wake(&process, life),
            Happening::Dialled { from, to, life } => self.dialled(&from, &to, life),
            Happening::Data { from, to, life, outward, wire } => {
                if self.network.is_current(&from, &to, life) {
                    let conn = bds_api::ConnId(self.conn(&from, &to));
                    self.deliver(&from, &to, outward.then_some(conn), &wire);
                } else if outward && let Some(late) = self.lingering.get_mut(&life) {
                    late.push(Happening::Data { from, to, life, outward, wire });
                }
            }
            Happening::ToManager { from, life, message } => {
                if self.network.is_current(&from, &Process::Manager, life) {
                    let link = control_api::LinkId(self.conn(&from, &Process::Manager));
                    self.feed_manager(control_api::Event::LinkReceived { link, message });
                } else if let Some(late) = self.lingering.get_mut(&life) {
                    late.push(Happening::ToManager { from, life, message });
                }
            }
            Happening::FromManager { to, life, message } => {
                if self.network.is_current(&to, &Process::Manager, life) {
                    match to {
                        Process::Server(id) => {
                            self.feed_server(&id, bds_api::Event::ManagerSent { message });
                        }
                        Process::Node(id) => {
                            self.feed_node(&id, node_api::Event::ManagerSent { message });
                        }
                        Process::Manager => unreachable!("the manager has no link to itself"),
                    }
                }
            }
            Happening::DriveRead { server, life, drive, token, result } => {
                if self.servers[&server].life == life {
                    self.feed_server(&server, bds_api::Event::DriveRead { drive, token, result });
                }
            }
            Happening::DriveWritten { server, life, drive, device, token, ticket, durability } => {
                let process = self.servers.get_mut(&server).expect("known");
                if process.life == life {
                    let disk = process.disk(&drive, device);
                    let result = disk.carry_out_write(ticket, durability).map_err(DriveError::Io);
                    self.feed_server(
                        &server,
                        bds_api::Event::DriveWritten { drive, token, result },
                    );
                }
            }
            Happening::DriveFlushed { server, life, drive, device, token, ticket } => {
                let process = self.servers.get_mut(&server).expect("known");
                if process.life == life {
                    let disk = process.disk(&drive, device);
                    let result = disk.carry_out_flush(ticket).map_err(DriveError::Io);
                    self.feed_server(
                        &server,
                        bds_api::Event::DriveFlushed { drive, token, result },
                    );
                }
            }
            Happening::Committed { life, commit } => {
                if self.manager.life == life {
                    let (number, writes) = self.manager.pending.take().expect("one in flight");
                    assert_eq!(number, commit);
                    self.apply(&writes);
                    self.feed_manager(control_api::Event::Committed { commit });
                }
            }
            Happening::Export { node, life, event } => {
                if self.nodes[&node].life == life {
                    self.feed_node(&node, event);
                }
            }
        }
    }

    /// What the manager wanted to store is stored.
    fn apply(&mut self, writes: &[Write]) {
        let records = &mut self.manager.records;
        self.watch.commits(records, writes);
        for write in writes {
            match write {
                Write::Put(record) => drop(records.insert(record.key(), record.clone())),
                Write::Delete(record) => drop(records.remove(&record.key())),
            }
        }
    }
}
