//! A world of a few servers, one manager and one node manager, in virtual time.
//!
//! Connections are ordered, slow by a random while, and break when told to; what was on its way
//! to a server when one broke may still arrive, even after messages of the connection that
//! replaced it. A crashed server keeps what its drives had flushed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use bds::{
    Server,
    api::{Action, ConnId, DriveParams, Event, Incident, ServerParams, Timing},
};
use engine::api::{Durability, IoToken};
use format::{
    ctl::{FromManager, ToManager},
    data::DataMessage,
};
use model::{
    id::{BootId, DriveName, GroupId, ReplicaId, ServerId},
    time::Instant,
    units::{ByteCount, Iops, MibPerSec, Rate},
    volume::Media,
};

use crate::{client::Client, disk::Disk, manager::Manager};

pub fn group() -> GroupId {
    GroupId::from_raw(7)
}

pub const SIZE: u64 = 8 << 20;

pub const ROOMY: u64 = 256 << 20;
const TIGHT: u64 = 12 << 20;

/// So short that the scrub is at work in every test.
const SCRUB_PERIOD: Duration = Duration::from_millis(500);

#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn micros(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from + self.below(to - from))
    }
}

#[derive(Debug)]
pub enum Happening {
    Drive {
        server: ServerId,
        life: u64,
        drive: DriveName,
        token: IoToken,
        op: DriveOp,
    },
    /// The owner of a link tries to connect.
    Dial {
        from: End,
        to: ServerId,
    },
    Deliver {
        conn: u64,
        forward: bool,
        number: u64,
        message: DataMessage,
    },
    Closed {
        conn: u64,
        forward: bool,
    },
    ToManager {
        server: ServerId,
        link: u64,
        message: ToManager,
    },
    FromManager {
        server: ServerId,
        link: u64,
        message: FromManager,
    },
    LinkManager {
        server: ServerId,
        life: u64,
    },
    ManagerTick,
    ClientTick,
    ClientConfig(model::group::GroupConfig),
    Boot {
        server: ServerId,
    },
}

#[derive(Debug)]
pub enum DriveOp {
    Read { offset: u64, length: u32 },
    Write { offset: u64, data: Vec<bytes::Bytes>, durability: Durability },
    Flush,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Server(ServerId),
    Client(u64),
}

#[derive(Debug)]
struct Conn {
    from: End,
    from_life: u64,
    to: ServerId,
    to_life: u64,
    open: bool,
    /// Messages to the server beyond this number were lost when it broke.
    limit: u64,
    sent: u64,
    arrived: u64,
    last: [Instant; 2],
    /// When it broke: what survived arrives only now.
    linger: Instant,
}

#[derive(Debug)]
pub struct Host {
    pub server: Option<Server>,
    pub life: u64,
    pub disks: BTreeMap<DriveName, Disk>,
    pub wanted: BTreeMap<ServerId, SocketAddr>,
    pub boot: BootId,
    pub ready: bool,
    /// Its link to the manager, if it has one; `cut`: it cannot get one.
    pub manager_link: Option<u64>,
    pub cut: bool,
    /// Extra time of each drive action.
    pub slow: Duration,
    /// Drives that fail whatever they are asked.
    pub broken: BTreeSet<DriveName>,
}

#[derive(Debug)]
pub struct World {
    pub now: Instant,
    pub rng: Rng,
    pub hosts: BTreeMap<ServerId, Host>,
    pub manager: Manager,
    pub client: Client,
    pub timing: Timing,
    queue: BTreeMap<(Instant, u64), Happening>,
    events: u64,
    conns: BTreeMap<u64, Conn>,
    conn_last: u64,
    links: u64,
    lives: u64,
    /// Longest delay of a message, in microseconds.
    pub delay_us: u64,
    pub media: BTreeMap<DriveName, Media>,
    /// Pairs of servers that cannot connect.
    pub severed: BTreeSet<(ServerId, ServerId)>,
    pub incidents: Vec<Incident>,
    /// Messages that reached a server.
    pub delivered: u64,
    /// Servers with small drives; those after them have roomy ones.
    tight: u64,
}

pub fn server_name(n: u64) -> ServerId {
    format!("server-{n}").parse().expect("a name")
}

fn number_of(server: &ServerId) -> u64 {
    server.as_str().rsplit('-').next().expect("numbered").parse().expect("a number")
}

pub fn drive_name() -> DriveName {
    "ssd".parse().expect("a name")
}

/// The first is [`drive_name`].
pub fn drive_number(n: u64) -> DriveName {
    if n == 0 { drive_name() } else { format!("ssd-{n}").parse().expect("a name") }
}

pub fn replica_id(n: u64) -> ReplicaId {
    ReplicaId::from_raw(n)
}

pub fn address_of(n: u64) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9000 + u16::try_from(n).expect("few")))
}

impl World {
    /// `servers` servers with one drive each; replica `n` belongs on server `n`.
    pub fn new(seed: u64, servers: u64) -> Self {
        Self::with_drives(seed, servers, &[(drive_name(), Media::Ssd)])
    }

    /// Scrubs nothing unless it is asked to.
    pub fn unscrubbed(seed: u64, servers: u64) -> Self {
        let timing = Timing { scrub_period: Duration::ZERO, ..Timing::default() };
        Self::with(seed, servers, &[(drive_name(), Media::Ssd)], timing, 0)
    }

    /// The drives of the first `tight` servers are so small that what clients write does not fit.
    pub fn tight(seed: u64, tight: u64, servers: u64) -> Self {
        let timing = Timing { scrub_period: SCRUB_PERIOD, ..Timing::default() };
        Self::with(seed, servers, &[(drive_name(), Media::Ssd)], timing, tight)
    }

    pub fn with_drives(seed: u64, servers: u64, drives: &[(DriveName, Media)]) -> Self {
        let timing = Timing { scrub_period: SCRUB_PERIOD, ..Timing::default() };
        Self::with(seed, servers, drives, timing, 0)
    }

    /// Replica `n` is striped over so many drives of server `n` as the `n`th number says.
    pub fn striped(seed: u64, stripes: &[u64]) -> Self {
        let drives = [0, 1, 2].map(|n| (drive_number(n), Media::Ssd));
        let mut world = Self::with_drives(seed, stripes.len() as u64, &drives);
        for (n, &count) in (1..).zip(stripes) {
            let beside = (1..count).map(drive_number).collect();
            world.manager.beside.insert(replica_id(n), beside);
        }
        world
    }

    fn with(
        seed: u64,
        servers: u64,
        drives: &[(DriveName, Media)],
        timing: Timing,
        tight: u64,
    ) -> Self {
        let mut world = Self {
            now: Instant::from_nanos(1_000_000_000),
            rng: Rng::new(seed),
            hosts: BTreeMap::new(),
            manager: Manager::new(servers),
            client: Client::new(1),
            timing,
            queue: BTreeMap::new(),
            events: 0,
            conns: BTreeMap::new(),
            conn_last: 0,
            links: 0,
            lives: 0,
            delay_us: 300,
            media: drives.iter().cloned().collect(),
            severed: BTreeSet::new(),
            incidents: Vec::new(),
            delivered: 0,
            tight,
        };
        for n in 1..=servers {
            let host = Host {
                server: None,
                life: 0,
                disks: drives.iter().map(|(name, _)| (name.clone(), Disk::default())).collect(),
                wanted: BTreeMap::new(),
                boot: BootId::from_raw(0),
                ready: false,
                manager_link: None,
                cut: false,
                slow: Duration::ZERO,
                broken: BTreeSet::new(),
            };
            world.hosts.insert(server_name(n), host);
            world.boot(&server_name(n));
        }
        world.at(Duration::ZERO, Happening::ManagerTick);
        world
    }

    pub fn at(&mut self, after: Duration, happening: Happening) {
        self.events += 1;
        self.queue.insert((self.now + after, self.events), happening);
    }

    pub fn drive_bytes(&self, server: &ServerId) -> u64 {
        if number_of(server) <= self.tight { TIGHT } else { ROOMY }
    }

    pub fn boot(&mut self, name: &ServerId) {
        self.lives += 1;
        let life = self.lives;
        let (n, drive_bytes) = (number_of(name), self.drive_bytes(name));
        let media = self.media.clone();
        let host = self.hosts.get_mut(name).expect("a host");
        assert!(host.server.is_none(), "{name} runs already");
        host.life = life;
        host.boot = BootId::from_raw(life);
        host.ready = false;
        let drive = |drive: &DriveName| DriveParams {
            drive: drive.clone(),
            place: format!("{name}/{drive}"),
            geometry: geometry(media[drive], drive_bytes),
            capacity: ByteCount::new(1 << 30),
            rate: Rate { iops: Iops::new(10_000), throughput: MibPerSec::new(1_000) },
            media: media[drive],
            emulation: None,
        };
        let params = ServerParams {
            cluster: "test".to_owned(),
            server: name.clone(),
            boot: host.boot,
            zone: "local-1a".parse().expect("a zone"),
            address: address_of(n),
            drives: host.disks.keys().map(drive).collect(),
            timing: self.timing,
        };
        let mut out = Vec::new();
        let seed = self.rng.next();
        let server = Server::new(params, seed, self.now, &mut out).expect("drives open");
        self.hosts.get_mut(name).expect("a host").server = Some(server);
        self.carry_out(name, out);
    }

    /// The process dies, and with it (as after a power failure) what drives had not flushed.
    pub fn crash(&mut self, name: &ServerId) {
        let host = self.hosts.get_mut(name).expect("a host");
        if host.server.take().is_none() {
            return;
        }
        host.life = 0;
        host.wanted.clear();
        for disk in host.disks.values_mut() {
            disk.crash(&mut self.rng);
        }
        let link = host.manager_link.take();
        let touching: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, c)| c.open && (c.to == *name || c.from == End::Server(name.clone())))
            .map(|(&id, _)| id)
            .collect();
        for conn in touching {
            self.reset(conn);
        }
        if link.is_some() {
            self.manager_lost(name);
        }
    }

    pub fn is_up(&self, name: &ServerId) -> bool {
        self.hosts[name].server.is_some()
    }

    /// The manager loses a server that lives on.
    pub fn cut_manager(&mut self, name: &ServerId) {
        let host = self.hosts.get_mut(name).expect("a host");
        host.cut = true;
        if host.manager_link.take().is_some() {
            self.feed(name, Event::ManagerLinkDown);
            self.manager_lost(name);
        }
    }

    pub fn mend_manager(&mut self, name: &ServerId) {
        let host = self.hosts.get_mut(name).expect("a host");
        let was_cut = std::mem::replace(&mut host.cut, false);
        let life = host.life;
        if was_cut && host.server.is_some() && host.manager_link.is_none() {
            self.at(
                Duration::from_millis(1),
                Happening::LinkManager { server: name.clone(), life },
            );
        }
    }

    /// Breaks a connection between two servers, in both directions, if there is one.
    pub fn break_link(&mut self, from: &ServerId, to: &ServerId) {
        let end = End::Server(from.clone());
        let found: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, c)| c.open && c.from == end && c.to == *to)
            .map(|(&id, _)| id)
            .collect();
        for conn in found {
            self.reset(conn);
        }
    }

    /// From now on the two cannot reach each other.
    pub fn sever(&mut self, a: &ServerId, b: &ServerId) {
        self.severed.insert((a.clone(), b.clone()));
        self.severed.insert((b.clone(), a.clone()));
        self.break_link(a, b);
        self.break_link(b, a);
    }

    pub fn heal(&mut self) {
        self.severed.clear();
        let names: Vec<ServerId> = self.hosts.keys().cloned().collect();
        for name in names {
            self.mend_manager(&name);
            if !self.is_up(&name) {
                self.boot(&name);
            }
        }
    }

    pub fn reset(&mut self, id: u64) {
        let conn = self.conns.get_mut(&id).expect("a connection");
        conn.open = false;
        let under_way = conn.sent - conn.arrived;
        conn.limit = conn.arrived + self.rng.below(under_way + 1);
        // The server reads what had arrived already, sooner or later.
        let late = if self.rng.chance(50) { 30_000 } else { 1 };
        let linger = self.rng.micros(0, late);
        self.conns.get_mut(&id).expect("looked up above").linger = self.now + linger;
        let after = self.rng.micros(10, 2 * self.delay_us + 50);
        self.at(after, Happening::Closed { conn: id, forward: false });
        self.at(after.max(linger) + after, Happening::Closed { conn: id, forward: true });
    }

    pub fn send_to_server(&mut self, conn: u64, message: DataMessage) {
        self.transmit(conn, true, message);
    }

    fn transmit(&mut self, id: u64, forward: bool, message: DataMessage) {
        let delay = self.rng.micros(20, self.delay_us + 21);
        let Some(conn) = self.conns.get_mut(&id).filter(|c| c.open) else { return };
        let last = &mut conn.last[usize::from(forward)];
        *last = (*last).max(self.now + delay);
        let after = last.since(self.now);
        let number = conn.sent;
        conn.sent += u64::from(forward);
        self.at(after, Happening::Deliver { conn: id, forward, number, message });
    }

    pub fn dial_soon(&mut self, from: End, to: ServerId) {
        let after = self.rng.micros(50, 500);
        self.at(after, Happening::Dial { from, to });
    }

    /// The connection of one server to another.
    pub fn link_between(&self, from: &ServerId, to: &ServerId) -> u64 {
        self.connected(&End::Server(from.clone()), to).expect("they are connected")
    }

    fn connected(&self, from: &End, to: &ServerId) -> Option<u64> {
        let mut conns = self.conns.iter();
        conns.find(|(_, c)| c.open && c.from == *from && c.to == *to).map(|(&id, _)| id)
    }

    fn dial(&mut self, from: End, to: ServerId) {
        let from_life = match &from {
            End::Server(name) => {
                let host = &self.hosts[name];
                if host.server.is_none() || !host.wanted.contains_key(&to) {
                    return;
                }
                host.life
            }
            End::Client(life) => {
                if *life != self.client.life || self.client.server.as_ref() != Some(&to) {
                    return;
                }
                *life
            }
        };
        if self.connected(&from, &to).is_some() {
            return;
        }
        let severed = match &from {
            End::Server(name) => self.severed.contains(&(name.clone(), to.clone())),
            End::Client(_) => false,
        };
        let target = &self.hosts[&to];
        if target.server.is_none() || !target.ready || severed {
            self.at(Duration::from_millis(5), Happening::Dial { from, to });
            return;
        }
        self.conn_last += 1;
        let id = self.conn_last;
        let conn = Conn {
            from: from.clone(),
            from_life,
            to: to.clone(),
            to_life: target.life,
            open: true,
            limit: u64::MAX,
            sent: 0,
            arrived: 0,
            last: [self.now; 2],
            linger: Instant::ZERO,
        };
        self.conns.insert(id, conn);
        match from {
            End::Server(name) => self.feed(&name, Event::LinkUp { server: to }),
            End::Client(_) => self.client_link_up(id),
        }
    }

    /// Lets time pass until `stop` holds; panics after `limit`.
    pub fn run_until(&mut self, limit: Duration, what: &str, mut stop: impl FnMut(&Self) -> bool) {
        let end = self.now + limit;
        while !stop(self) {
            assert!(self.now < end, "{what}: not within {limit:?}\n{}", self.describe());
            self.step();
        }
    }

    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.next_time() <= end {
            self.step();
        }
        self.now = end;
    }

    pub fn describe(&self) -> String {
        let up: Vec<_> = self.hosts.iter().map(|(n, h)| (n, h.server.is_some(), h.cut)).collect();
        format!(
            "now {:?}\nup {up:?}\n{:#?}\nclient {}",
            self.now,
            self.manager,
            self.client.describe()
        )
    }

    fn next_time(&self) -> Instant {
        let servers = self.hosts.values().filter_map(|h| h.server.as_ref()?.deadline());
        let queued = self.queue.keys().next().map(|&(at, _)| at);
        servers.chain(queued).min().expect("the manager ticks")
    }

    fn step(&mut self) {
        let at = self.next_time();
        self.now = self.now.max(at);
        let due: Option<ServerId> = self
            .hosts
            .iter()
            .find(|(_, h)| h.server.as_ref().and_then(Server::deadline).is_some_and(|d| d <= at))
            .map(|(name, _)| name.clone());
        if let Some(name) = due {
            return self.feed(&name, Event::TimeReached);
        }
        let ((_, _), happening) = self.queue.pop_first().expect("something is next");
        self.happen(happening);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Drive { server, life, drive, token, op } => {
                self.drive_done(&server, life, drive, token, op);
            }
            Happening::Dial { from, to } => self.dial(from, to),
            Happening::Deliver { conn, forward, number, message } => {
                self.deliver(conn, forward, number, message);
            }
            Happening::Closed { conn, forward } => self.closed(conn, forward),
            Happening::ToManager { server, link, message } => {
                if self.hosts[&server].manager_link == Some(link) {
                    self.manager_received(&server, message);
                }
            }
            Happening::FromManager { server, link, message } => {
                if self.hosts[&server].manager_link == Some(link) {
                    self.feed(&server, Event::ManagerSent { message });
                }
            }
            Happening::LinkManager { server, life } => {
                let host = self.hosts.get_mut(&server).expect("a host");
                if host.life == life && !host.cut && host.manager_link.is_none() {
                    self.links += 1;
                    host.manager_link = Some(self.links);
                    self.feed(&server, Event::ManagerLinkUp);
                }
            }
            Happening::ManagerTick => {
                self.manage();
                self.at(Duration::from_millis(20), Happening::ManagerTick);
            }
            Happening::ClientTick => self.client_tick(),
            Happening::ClientConfig(config) => self.client_learns(config),
            Happening::Boot { server } => {
                if !self.is_up(&server) {
                    self.boot(&server);
                }
            }
        }
    }

    fn drive_done(
        &mut self,
        name: &ServerId,
        life: u64,
        drive: DriveName,
        token: IoToken,
        op: DriveOp,
    ) {
        let host = self.hosts.get_mut(name).expect("a host");
        if host.life != life {
            return;
        }
        let broken = || engine::api::DriveError::Io("broken".to_owned());
        let is_broken = host.broken.contains(&drive);
        let disk = host.disks.get_mut(&drive).expect("a drive");
        let event = match op {
            DriveOp::Read { .. } if is_broken => {
                Event::DriveRead { drive, token, result: Err(broken()) }
            }
            DriveOp::Write { .. } if is_broken => {
                Event::DriveWritten { drive, token, result: Err(broken()) }
            }
            DriveOp::Flush if is_broken => {
                Event::DriveFlushed { drive, token, result: Err(broken()) }
            }
            DriveOp::Read { offset, length } => {
                let result = Ok(disk.read(offset, length));
                Event::DriveRead { drive, token, result }
            }
            DriveOp::Write { offset, data, durability } => {
                disk.write(offset, &data, durability);
                Event::DriveWritten { drive, token, result: Ok(()) }
            }
            DriveOp::Flush => {
                disk.flush();
                Event::DriveFlushed { drive, token, result: Ok(()) }
            }
        };
        self.feed(name, event);
    }

    fn deliver(&mut self, id: u64, forward: bool, number: u64, message: DataMessage) {
        self.delivered += 1;
        let conn = self.conns.get_mut(&id).expect("connections are kept");
        // Everything passes through a frame, as on the wire.
        let message = DataMessage::from_frame(message.into_frame()).expect("it decodes");
        if forward {
            if number >= conn.limit || self.hosts[&conn.to].life != conn.to_life {
                return;
            }
            if !conn.open && self.now < conn.linger {
                let after = conn.linger.since(self.now);
                let happening = Happening::Deliver { conn: id, forward, number, message };
                return self.at(after, happening);
            }
            conn.arrived += 1;
            let to = conn.to.clone();
            return self.feed(&to, Event::MessageReceived { conn: ConnId(id), message });
        }
        if !conn.open {
            return;
        }
        let (from, to, life) = (conn.from.clone(), conn.to.clone(), conn.from_life);
        match from {
            End::Server(name) if self.hosts[&name].life == life => {
                self.feed(&name, Event::LinkReceived { server: to, message });
            }
            End::Client(client) if client == self.client.life => {
                self.client_received(id, message);
            }
            _ => {}
        }
    }

    fn closed(&mut self, id: u64, forward: bool) {
        let conn = &self.conns[&id];
        let (from, to) = (conn.from.clone(), conn.to.clone());
        if forward {
            if self.hosts[&to].life == conn.to_life {
                self.feed(&to, Event::ConnClosed { conn: ConnId(id) });
            }
            return;
        }
        match &from {
            End::Server(name) if self.hosts[name].life == conn.from_life => {
                let name = name.clone();
                self.feed(&name, Event::LinkDown { server: to.clone() });
            }
            End::Client(life) if *life == self.client.life => self.client_link_down(id),
            _ => return,
        }
        self.dial_soon(from, to);
    }

    pub fn feed(&mut self, name: &ServerId, event: Event) {
        let now = self.now;
        let host = self.hosts.get_mut(name).expect("a host");
        let Some(server) = &mut host.server else { return };
        let mut out = Vec::new();
        server.handle(now, event, &mut out);
        self.carry_out(name, out);
    }

    fn carry_out(&mut self, name: &ServerId, actions: Vec<Action>) {
        for action in actions {
            self.act(name, action);
        }
    }

    fn act(&mut self, name: &ServerId, action: Action) {
        let host = self.hosts.get_mut(name).expect("a host");
        let (life, slow) = (host.life, host.slow);
        let server = name.clone();
        match action {
            Action::ReadDrive { drive, token, offset, length, .. } => {
                let op = DriveOp::Read { offset, length };
                let after = slow + self.rng.micros(20, 150);
                self.at(after, Happening::Drive { server, life, drive, token, op });
            }
            Action::WriteDrive { drive, token, offset, data, durability, .. } => {
                let op = DriveOp::Write { offset, data, durability };
                let after = slow + self.rng.micros(50, 600);
                self.at(after, Happening::Drive { server, life, drive, token, op });
            }
            Action::PrepareDrive { drive, token, offset, length } => {
                let data = vec![vec![0; length as usize].into()];
                let op = DriveOp::Write { offset, data, durability: Durability::Later };
                let after = slow + self.rng.micros(50, 5000);
                self.at(after, Happening::Drive { server, life, drive, token, op });
            }
            Action::FlushDrive { drive, token, .. } => {
                let op = DriveOp::Flush;
                let after = slow + self.rng.micros(50, 600);
                self.at(after, Happening::Drive { server, life, drive, token, op });
            }
            Action::Reply { conn, message } => self.transmit(conn.0, false, message),
            Action::Send { server: to, message } => {
                if let Some(conn) = self.connected(&End::Server(server), &to) {
                    self.transmit(conn, true, message);
                }
            }
            Action::Connect { server: to, address } => {
                host.wanted.insert(to.clone(), address);
                self.dial_soon(End::Server(server), to);
            }
            Action::Disconnect { server: to } => {
                host.wanted.remove(&to);
                if let Some(conn) = self.connected(&End::Server(server), &to) {
                    self.conns.get_mut(&conn).expect("it is there").open = false;
                    self.conns.get_mut(&conn).expect("it is there").limit = u64::MAX;
                    let after = self.rng.micros(10, 300);
                    self.at(after, Happening::Closed { conn, forward: true });
                }
            }
            Action::SendManager { message } => {
                if let Some(link) = host.manager_link {
                    let after = Duration::from_micros(150);
                    self.at(after, Happening::ToManager { server, link, message });
                }
            }
            Action::Note(incident) => self.incidents.push(incident),
            Action::DriveOpened { .. } => {}
            Action::Ready => {
                host.ready = true;
                let after = Duration::from_millis(2);
                self.at(after, Happening::LinkManager { server, life });
            }
        }
    }

    pub fn command(&mut self, server: &ServerId, message: FromManager) {
        if let Some(link) = self.hosts[server].manager_link {
            let after = Duration::from_micros(150);
            let server = server.clone();
            self.at(after, Happening::FromManager { server, link, message });
        }
    }
}

pub fn geometry(media: Media, drive_bytes: u64) -> engine::api::Geometry {
    engine::api::Geometry {
        media,
        drive_bytes,
        journal_bytes: 4 << 20,
        journal: format::disk::JournalPlace::Inside,
        replicas_max: 8,
        memory_bytes: 16 << 20,
    }
}
