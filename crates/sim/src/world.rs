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
    drive::Drive,
    network::{Life, Network, Process},
    random::Random,
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
        data: Bytes,
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
        let mut world = Self {
            now: Instant::from_nanos(1_000_000_000),
            random: Random::new(seed),
            queue: BTreeMap::new(),
            next: 0,
            network: Network::default(),
            wakes: BTreeMap::new(),
            manager,
            servers: servers.into_iter().map(server).collect(),
            nodes: nodes.into_iter().map(node).collect(),
            http: BTreeMap::new(),
            next_call: 0,
            answered: Vec::new(),
            exports: BTreeMap::new(),
            trace: None,
        };
        for process in world.processes() {
            world.start(&process);
        }
        world
    }

    pub fn processes(&self) -> Vec<Process> {
        let servers = self.servers.keys().cloned().map(Process::Server);
        let nodes = self.nodes.keys().cloned().map(Process::Node);
        std::iter::once(Process::Manager).chain(servers).chain(nodes).collect()
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
        match happening {
            Happening::Start { process } => self.start(&process),
            Happening::Wake { process, life } => self.wake(&process, life),
            Happening::Dialled { from, to, life } => self.dialled(&from, &to, life),
            Happening::Data { from, to, life, outward, wire } => {
                if self.network.is_current(&from, &to, life) {
                    self.deliver(&from, &to, outward, &wire);
                }
            }
            Happening::ToManager { from, life, message } => {
                if self.network.is_current(&from, &Process::Manager, life) {
                    let link = control_api::LinkId(self.conn(&from, &Process::Manager));
                    self.feed_manager(control_api::Event::LinkReceived { link, message });
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
            Happening::DriveRead { server, life, drive, token, data } => {
                if self.servers[&server].life == life {
                    let result = Ok(data);
                    self.feed_server(&server, bds_api::Event::DriveRead { drive, token, result });
                }
            }
            Happening::DriveWritten { server, life, drive, device, token, ticket, durability } => {
                let process = self.servers.get_mut(&server).expect("known");
                if process.life == life {
                    process.disk(&drive, device).finish_write(ticket, durability);
                    let result = Ok(());
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
                    apply(&mut self.manager.records, &writes);
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
}

fn apply(records: &mut BTreeMap<String, Record>, writes: &[Write]) {
    for write in writes {
        match write {
            Write::Put(record) => drop(records.insert(record.key(), record.clone())),
            Write::Delete(record) => drop(records.remove(&record.key())),
        }
    }
}
