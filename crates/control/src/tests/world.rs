//! The world. Fault model: servers, node managers and the manager die at any moment and keep
//! what they made durable; links lose what is under way; the network between servers works
//! whenever both are up. After every step the checker runs: nothing acknowledged is missing on
//! a serving primary, configurations are well formed, no drive promises more than it has.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use format::{
    ctl::{
        Attach, Damage, DriveReport, DriveState, DriveStatus, DriveUsage, FillProgress,
        FromManager, RegisterNode, RegisterServer, ReplicaProgress, ReplicaReport, ScrubStatus,
        ToManager,
    },
    record::{Modification, Record, Volume},
};
use model::{
    epoch::{AttachGeneration, Epoch},
    group::{GroupConfig, Role},
    id::{AccountId, BootId, DriveName, GroupId, InstanceId, ReplicaId, VolumeId},
    time::{Instant, WallTime},
    units::{ByteCount, Gib, Iops, MibPerSec, Rate},
    volume::Media,
};

use crate::{
    api::{ApiError, CallToken, Caller, Command, CommandKind, CreateVolume, Done, ZoneChoice},
    ledger::Ledger,
    machine::{Action, Event, LinkId, Manager, ManagerParams, RootAccount, Timing},
    state::{State, Write},
};

pub const STEP_MS: u64 = 50;

/// One copy of the data: which writes it holds.
#[derive(Debug, Clone, Default)]
pub struct Replica {
    pub group: Option<GroupId>,
    pub drive: String,
    /// The other drives it is striped over.
    pub beside: Vec<DriveName>,
    pub promised: Epoch,
    pub config: Option<GroupConfig>,
    pub writes: BTreeSet<u64>,
    /// What it stores, where a test cares.
    pub bytes: u64,
    // Lost with the process.
    serving: bool,
    handed_over: Option<u64>,
    drained: bool,
    filled: Option<(ReplicaId, u64)>,
    ready_since: u64,
    silent_since: BTreeMap<ReplicaId, u64>,
}

impl Replica {
    fn lies_on(&self, drive: &str) -> bool {
        self.drive == drive || self.beside.iter().any(|d| d.as_str() == drive)
    }
}

#[derive(Debug)]
pub struct Server {
    pub name: String,
    pub zone: String,
    pub boot: u64,
    pub up: bool,
    pub link: Option<LinkId>,
    pub replicas: BTreeMap<ReplicaId, Replica>,
    pub inbox: VecDeque<FromManager>,
    pub ssd: DriveReport,
    pub hdd: DriveReport,
    /// Further drives.
    pub more: Vec<DriveReport>,
    pub refuses: bool,
    /// Drives that are out of service.
    pub failed: BTreeSet<DriveName>,
    /// What the slots of each of its drives hold; without it nothing is said of drives.
    pub drive_bytes: Option<u64>,
    /// Writes that wait for space on the SSD.
    waiting: u64,
    beat: u64,
}

#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub zone: String,
    pub up: bool,
    pub boot: u64,
    pub link: Option<LinkId>,
    pub instance: InstanceId,
    pub attached: BTreeMap<VolumeId, Attach>,
    pub inbox: VecDeque<FromManager>,
    /// Something is in flight: it does not let go of a volume.
    pub drains: bool,
    beat: u64,
}

pub struct World {
    pub ms: u64,
    pub manager: Option<Manager>,
    pub params: ManagerParams,
    pub store: BTreeMap<String, Record>,
    pub servers: Vec<Server>,
    pub nodes: Vec<Node>,
    pub answers: BTreeMap<u64, Result<Done, ApiError>>,
    pub commits: u64,
    /// Kill the manager at this commit: made durable first, or not.
    pub kill_at: Option<(u64, bool)>,
    pub steps_seen: Vec<String>,
    pub acknowledged: BTreeSet<u64>,
    pub reports: Vec<String>,
    pub longest_stall_ms: u64,
    pub handed_over: u64,
    /// Steps that a fill takes, a MiB each.
    pub fill_steps: u64,
    /// Every fill ends in failure: a block that nobody can read.
    pub unreadable: bool,
    /// A test lets the manager turn somebody away.
    pub strangers_expected: bool,
    /// A configuration that primaries do not take.
    pub refused_epoch: Option<Epoch>,
    /// How long a primary takes to stop.
    pub drain_ms: u64,
    boots: u64,
    links: u64,
    calls: u64,
    next_write: u64,
    stall_ms: u64,
    restart_manager_at: Option<u64>,
}

pub fn root() -> AccountId {
    "000000000001".parse().expect("twelve digits")
}

pub fn caller() -> Caller {
    Caller { account: root(), access_key: "AKIAROOT".to_owned(), root: true }
}

pub fn rate(iops: u32, mib: u32) -> Rate {
    Rate { iops: Iops::new(iops), throughput: MibPerSec::new(mib) }
}

pub fn drive(name: &str, media: Media, gib: u32, rate: Rate) -> DriveReport {
    DriveReport {
        drive: name.parse().expect("a drive's name"),
        media,
        capacity: Gib::new(gib).to_bytes(),
        rate,
        allocated: ByteCount::ZERO,
        emulation: None,
        failed: None,
        identity: None,
    }
}

pub fn gp3(zone: &str, gib: u32) -> CreateVolume {
    CreateVolume {
        zone: ZoneChoice::Name(zone.to_owned()),
        size: Some(Gib::new(gib)),
        volume_type: Some("gp3".to_owned()),
        iops: None,
        throughput: None,
        multi_attach: false,
        encrypted: false,
        kms_key_id: None,
        snapshot_id: None,
        stripes: None,
        tags: BTreeMap::new(),
        client_token: None,
    }
}

pub fn standard(zone: &str, gib: u32) -> CreateVolume {
    CreateVolume { volume_type: Some("standard".to_owned()), ..gp3(zone, gib) }
}

impl World {
    /// Three zones of two servers, a node manager in each, started and past the grace.
    pub fn new() -> Self {
        let mut world = Self::unstarted(2);
        world.run(4_000);
        world
    }

    pub fn unstarted(servers_per_zone: u32) -> Self {
        let zones = ["local-1a", "local-1b", "local-1c"];
        let params = ManagerParams {
            cluster: "test".to_owned(),
            place: crate::api::Place {
                region: "local-1".to_owned(),
                zones: zones.iter().map(|z| z.parse().expect("a zone")).collect(),
                endpoint: "http://127.0.0.1:1".to_owned(),
            },
            root: RootAccount {
                account: root(),
                access_key: "AKIAROOT".to_owned(),
                secret: "secret".to_owned(),
            },
            remirror_delay: Duration::from_secs(6),
            timing: Timing::default(),
        };
        let mut world = Self {
            ms: 0,
            manager: None,
            params,
            store: BTreeMap::new(),
            servers: Vec::new(),
            nodes: Vec::new(),
            answers: BTreeMap::new(),
            commits: 0,
            kill_at: None,
            steps_seen: Vec::new(),
            acknowledged: BTreeSet::new(),
            reports: Vec::new(),
            longest_stall_ms: 0,
            handed_over: 0,
            unreadable: false,
            fill_steps: 8,
            strangers_expected: false,
            refused_epoch: None,
            drain_ms: 0,
            boots: 0,
            links: 0,
            calls: 0,
            next_write: 0,
            stall_ms: 0,
            restart_manager_at: Some(0),
        };
        for zone in zones {
            let letter = &zone[zone.len() - 1..];
            for n in 1..=servers_per_zone {
                world.boots += 1;
                world.servers.push(Server {
                    failed: BTreeSet::new(),
                    name: format!("server-{letter}-{n}"),
                    zone: zone.to_owned(),
                    boot: world.boots,
                    up: true,
                    link: None,
                    replicas: BTreeMap::new(),
                    inbox: VecDeque::new(),
                    ssd: drive("ssd", Media::Ssd, 100, rate(10_000, 1_000)),
                    hdd: drive("hdd", Media::Hdd, 200, rate(500, 300)),
                    more: Vec::new(),
                    refuses: false,
                    drive_bytes: None,
                    waiting: 0,
                    beat: 0,
                });
            }
            world.boots += 1;
            world.nodes.push(Node {
                drains: false,
                name: format!("node-{letter}"),
                zone: zone.to_owned(),
                up: true,
                boot: world.boots,
                link: None,
                instance: InstanceId::from_raw(u128::from(world.boots)),
                attached: BTreeMap::new(),
                inbox: VecDeque::new(),
                beat: 0,
            });
        }
        world
    }

    pub fn now(&self) -> Instant {
        Instant::from_nanos(self.ms * 1_000_000)
    }

    pub fn wall(&self) -> WallTime {
        WallTime::from_millis(1_795_338_000_000 + self.ms)
    }

    pub fn state(&self) -> State {
        let mut state = State::default();
        for record in self.store.values() {
            state.apply(&Write::Put(record.clone()));
        }
        state
    }

    // ---- The script's hands.

    pub fn submit(&mut self, kind: CommandKind) -> u64 {
        self.submit_as(caller(), Command { dry_run: false, kind })
    }

    pub fn submit_as(&mut self, caller: Caller, command: Command) -> u64 {
        self.calls += 1;
        if let Some(manager) = &mut self.manager {
            manager.submit(CallToken(self.calls), caller, command);
        }
        self.feed(Event::TimeReached);
        self.calls
    }

    pub fn ask(&mut self, kind: CommandKind) -> Result<Done, ApiError> {
        let call = self.submit(kind);
        self.answers.remove(&call).expect("commits are at once here")
    }

    pub fn ask_as(&mut self, caller: Caller, command: Command) -> Result<Done, ApiError> {
        let call = self.submit_as(caller, command);
        self.answers.remove(&call).expect("commits are at once here")
    }

    pub fn create(&mut self, request: CreateVolume) -> VolumeId {
        match self.ask(CommandKind::CreateVolume(request)) {
            Ok(Done::Volume(volume)) => volume.volume,
            other => panic!("not created: {other:?}"),
        }
    }

    pub fn volume(&self, volume: VolumeId) -> Volume {
        let key = format!("volume/{volume}");
        match self.store.get(&key) {
            Some(Record::Volume(v)) => v.clone(),
            other => panic!("{key}: {other:?}"),
        }
    }

    pub fn config(&self, volume: VolumeId) -> GroupConfig {
        self.state().groups[&self.volume(volume).group].config.clone()
    }

    pub fn modification(&self, volume: VolumeId) -> Modification {
        self.state().latest_modification(volume).expect("it was modified").clone()
    }

    pub fn kill_server(&mut self, name: &str) {
        let server = self.server(name);
        server.up = false;
        server.inbox.clear();
        let link = server.link.take();
        for replica in server.replicas.values_mut() {
            *replica = Replica {
                group: replica.group,
                drive: replica.drive.clone(),
                promised: replica.promised,
                config: replica.config.clone(),
                writes: replica.writes.clone(),
                bytes: replica.bytes,
                ..Replica::default()
            };
        }
        if let Some(link) = link {
            self.feed(Event::LinkClosed { link });
        }
    }

    /// Loses the link to the manager and what is under way on it.
    pub fn break_link(&mut self, name: &str) {
        let server = self.server(name);
        server.inbox.clear();
        if let Some(link) = server.link.take() {
            self.feed(Event::LinkClosed { link });
        }
    }

    /// Writes where nothing was written before. False where a drive is too full: the write waits.
    pub fn grow(&mut self, volume: VolumeId, bytes: u64) -> bool {
        let config = self.config(volume);
        let mut room = true;
        for member in &config.members {
            let server = self.server(member.server.as_str());
            let total = server.drive_bytes.expect("the test says how large drives are");
            let fits = (server.used("ssd") + bytes) * 100 <= total * 97;
            server.waiting = u64::from(!fits);
            room &= fits;
        }
        let members = config.in_sync().filter(|_| room);
        for member in members {
            let replica = self.server(member.server.as_str()).replicas.get_mut(&member.replica);
            replica.expect("members are there").bytes += bytes;
        }
        room
    }

    /// The drive's replicas are served no more. `status_only`: the first word of it was lost.
    pub fn fail_drive(&mut self, name: &str, drive: &str, status_only: bool) {
        let server = self.server(name);
        server.replicas.retain(|_, r| !r.lies_on(drive));
        let link = server.link.expect("linked");
        let (drive, reason): (DriveName, _) = (drive.parse().expect("a name"), "EIO".to_owned());
        server.failed.insert(drive.clone());
        self.report(
            link,
            if status_only {
                ToManager::DriveStatus(DriveStatus {
                    drive,
                    identity: None,
                    state: DriveState::OutOfService,
                    reason: Some(reason),
                    usage: DriveUsage::default(),
                    damage: Damage::default(),
                    scrub: ScrubStatus::default(),
                })
            } else {
                ToManager::DriveFailed { drive, reason }
            },
        );
    }

    pub fn report(&mut self, link: LinkId, message: ToManager) {
        self.feed(Event::LinkReceived { link, message });
    }

    pub fn start_server(&mut self, name: &str) {
        self.boots += 1;
        let boot = self.boots;
        let server = self.server(name);
        server.up = true;
        server.boot = boot;
    }

    pub fn kill_node(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.up = false;
        node.inbox.clear();
        if let Some(link) = node.link.take() {
            self.feed(Event::LinkClosed { link });
        }
    }

    pub fn start_node(&mut self, at: usize) {
        self.boots += 1;
        self.nodes[at].boot = self.boots;
        self.nodes[at].up = true;
    }

    pub fn kill_manager(&mut self, restart_after_ms: u64) {
        self.manager = None;
        for server in &mut self.servers {
            server.link = None;
            server.inbox.clear();
        }
        for node in &mut self.nodes {
            node.link = None;
            node.inbox.clear();
        }
        self.restart_manager_at = Some(self.ms + restart_after_ms);
    }

    pub fn server(&mut self, name: &str) -> &mut Server {
        self.servers.iter_mut().find(|s| s.name == name).expect("a server of the world")
    }

    pub fn run(&mut self, ms: u64) {
        for _ in 0..ms / STEP_MS {
            self.step();
        }
    }

    /// Runs until `done`, and says how long it took.
    pub fn until(&mut self, what: &str, limit_ms: u64, done: impl Fn(&Self) -> bool) -> u64 {
        let start = self.ms;
        while !done(self) {
            assert!(
                self.ms - start < limit_ms,
                "not within {limit_ms} ms: {what}\n{:#?}\n{:#?}",
                self.store.values().collect::<Vec<_>>(),
                self.manager
            );
            self.step();
        }
        self.ms - start
    }

    // ---- One step of everything.

    pub fn step(&mut self) {
        self.ms += STEP_MS;
        if self.restart_manager_at.is_some_and(|at| at <= self.ms) {
            self.restart_manager_at = None;
            self.start_manager();
        }
        self.link_up();
        for at in 0..self.servers.len() {
            self.serve(at);
        }
        for at in 0..self.nodes.len() {
            self.attend(at);
        }
        self.replicate();
        self.write();
        self.feed(Event::TimeReached);
        self.check();
    }

    fn start_manager(&mut self) {
        let mut out = Vec::new();
        let records = self.store.values().cloned().collect();
        let (now, wall) = (self.now(), self.wall());
        let manager = Manager::new(self.params.clone(), records, self.ms + 7, now, wall, &mut out);
        self.manager = Some(manager);
        self.carry_out(out);
    }

    pub fn feed(&mut self, event: Event) {
        let (now, wall) = (self.now(), self.wall());
        let Some(manager) = &mut self.manager else { return };
        let mut out = Vec::new();
        manager.handle(now, wall, event, &mut out);
        self.carry_out(out);
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        if let Some(manager) = &mut self.manager {
            self.answers.extend(manager.typed_answers.drain(..).map(|(c, r)| (c.0, r)));
        }
        for action in actions {
            match action {
                Action::Send { link, message } => self.deliver(link, message),
                Action::CloseLink { link } => {
                    self.servers.iter_mut().filter(|s| s.link == Some(link)).for_each(|s| {
                        s.link = None;
                    });
                    self.nodes.iter_mut().filter(|n| n.link == Some(link)).for_each(|n| {
                        n.link = None;
                    });
                }
                Action::Commit { commit, writes } => self.commit(commit, &writes),
                Action::AnswerHttp { .. } => {}
                Action::Report { text } => self.reports.push(text),
            }
        }
    }

    fn commit(&mut self, commit: u64, writes: &[Write]) {
        self.commits += 1;
        let dies = self.kill_at.filter(|(at, _)| *at == self.commits);
        if dies.is_none_or(|(_, durable)| durable) {
            for write in writes {
                if let Write::Put(Record::Modification(m)) = write
                    && self.steps_seen.last() != Some(&m.step)
                {
                    self.steps_seen.push(m.step.clone());
                }
                match write {
                    Write::Put(record) => drop(self.store.insert(record.key(), record.clone())),
                    Write::Delete(record) => drop(self.store.remove(&record.key())),
                }
            }
        }
        if dies.is_some() {
            self.kill_manager(200);
            return;
        }
        self.feed(Event::Committed { commit });
    }

    fn deliver(&mut self, link: LinkId, message: FromManager) {
        if let Some(server) = self.servers.iter_mut().find(|s| s.link == Some(link)) {
            server.inbox.push_back(message);
        } else if let Some(node) = self.nodes.iter_mut().find(|n| n.link == Some(link)) {
            node.inbox.push_back(message);
        }
    }

    fn link_up(&mut self) {
        for at in 0..self.servers.len() {
            if self.manager.is_some() && self.servers[at].up && self.servers[at].link.is_none() {
                self.links += 1;
                let link = LinkId(self.links);
                self.servers[at].link = Some(link);
                self.feed(Event::LinkOpened { link });
                let message = ToManager::RegisterServer(self.servers[at].registration());
                self.feed(Event::LinkReceived { link, message });
            }
        }
        for at in 0..self.nodes.len() {
            if self.manager.is_some() && self.nodes[at].up && self.nodes[at].link.is_none() {
                self.links += 1;
                let link = LinkId(self.links);
                self.nodes[at].link = Some(link);
                self.feed(Event::LinkOpened { link });
                let message = ToManager::RegisterNode(self.nodes[at].registration());
                self.feed(Event::LinkReceived { link, message });
            }
        }
    }

    /// A server handles what the manager sent, and beats.
    fn serve(&mut self, at: usize) {
        let now = self.ms;
        let server = &mut self.servers[at];
        if !server.up {
            return;
        }
        let mut answers = Vec::new();
        while let Some(message) = server.inbox.pop_front() {
            if matches!(message, FromManager::Rejected { .. }) && self.strangers_expected {
                continue;
            }
            if let FromManager::Configure { config } = &message
                && self.refused_epoch == Some(config.epoch)
            {
                continue;
            }
            answers.extend(server.handle(now, message));
        }
        for replica in server.replicas.values_mut() {
            let Some(since) = replica.handed_over else { continue };
            if now - since >= 1_000 + self.drain_ms {
                replica.handed_over = None;
            } else if now - since >= self.drain_ms && !replica.drained {
                replica.drained = true;
                let config = replica.config.as_ref().expect("a primary has one");
                let (group, epoch) = (config.group, config.epoch);
                let replica = config.primary().replica;
                answers.push(ToManager::HandedOver { group, replica, epoch });
            }
        }
        if now >= server.beat + 500 {
            server.beat = now;
            answers.push(ToManager::Beat { replicas: server.progress(self.fill_steps) });
            if let Some(bytes) = server.drive_bytes {
                let more = server.more.iter().map(|d| d.drive.as_str());
                let drives = std::iter::once("ssd").chain(more);
                answers
                    .extend(drives.map(|d| ToManager::DriveStatus(server.drive_status(d, bytes))));
            }
        }
        let Some(link) = server.link else { return };
        for message in answers {
            self.handed_over += u64::from(matches!(message, ToManager::HandedOver { .. }));
            self.feed(Event::LinkReceived { link, message });
        }
    }

    fn attend(&mut self, at: usize) {
        let now = self.ms;
        let node = &mut self.nodes[at];
        if !node.up {
            return;
        }
        let mut answers = Vec::new();
        while let Some(message) = node.inbox.pop_front() {
            match message {
                FromManager::Attach(attach) => {
                    answers.push(ToManager::Attached {
                        volume: attach.volume,
                        attach_generation: attach.config.attach_generation,
                        nbd_uris: vec![format!("nbd://127.0.0.1/{}", attach.volume)],
                        device: attach.kernel_device.then(|| "/dev/loop7".to_owned()),
                    });
                    let known = node.attached.get(&attach.volume).map(|a| a.config.epoch);
                    if known <= Some(attach.config.epoch) {
                        node.attached.insert(attach.volume, attach);
                    }
                }
                FromManager::Detach { .. } if node.drains => {}
                FromManager::Detach { volume, attach_generation, .. } => {
                    if node
                        .attached
                        .get(&volume)
                        .is_some_and(|a| a.config.attach_generation <= attach_generation)
                    {
                        node.attached.remove(&volume);
                    }
                    answers.push(ToManager::Detached { volume, attach_generation });
                }
                other => panic!("{} was sent {other:?}", node.name),
            }
        }
        if now >= node.beat + 500 {
            node.beat = now;
            answers.push(ToManager::Beat { replicas: Vec::new() });
        }
        let Some(link) = node.link else { return };
        for message in answers {
            self.feed(Event::LinkReceived { link, message });
        }
    }

    // ---- What servers do among themselves.

    fn server_at(&self, name: &str) -> usize {
        self.servers.iter().position(|s| s.name == name).expect("a server of the world")
    }

    /// A member that can be reached and does not refuse `epoch`.
    fn member(&mut self, server: &str, replica: ReplicaId, epoch: Epoch) -> Option<&mut Replica> {
        let at = self.server_at(server);
        if !self.servers[at].up {
            return None;
        }
        self.servers[at].replicas.get_mut(&replica).filter(|r| r.promised <= epoch)
    }

    fn replicate(&mut self) {
        for at in 0..self.servers.len() {
            let primaries: Vec<ReplicaId> = self.servers[at].primaries();
            for replica in primaries {
                self.lead(at, replica);
            }
        }
    }

    fn lead(&mut self, at: usize, id: ReplicaId) {
        let now = self.ms;
        let mut mine = self.servers[at].replicas.remove(&id).expect("listed");
        let config = mine.config.clone().expect("a primary has one");
        let mut reports = Vec::new();
        let (group, epoch) = (config.group, config.epoch);
        for member in config.members.iter().filter(|m| m.replica != id) {
            let learner = matches!(member.role, Role::Learner { .. });
            let server = member.server.to_string();
            let Some(other) = self.member(&server, member.replica, epoch) else {
                let since = *mine.silent_since.entry(member.replica).or_insert(now);
                if now - since >= 2_000 && (now - since).is_multiple_of(1_000) {
                    let silent = member.replica;
                    reports.push(if learner {
                        let reason = "silent".to_owned();
                        ToManager::LearnerFailed { group, epoch, learner: silent, reason }
                    } else {
                        ToManager::MemberSilent { group, epoch, silent }
                    });
                }
                continue;
            };
            mine.silent_since.remove(&member.replica);
            if other.config.as_ref().is_none_or(|c| c.epoch < epoch) {
                other.config = Some(config.clone());
                other.promised = epoch;
                other.serving = false;
            }
            let bytes = mine.bytes;
            let Role::Learner { source } = member.role else {
                other.bytes = bytes;
                // What was not acknowledged is sent again.
                other.writes.extend(mine.writes.iter());
                continue;
            };
            let source_server = config.member(source).expect("checked").server.to_string();
            let source_ok = source == id || self.member(&source_server, source, epoch).is_some();
            let filled = match mine.filled {
                Some((of, n)) if of == member.replica => n + u64::from(source_ok),
                _ => 0,
            };
            mine.filled = Some((member.replica, filled));
            let there = bytes * filled.min(self.fill_steps) / self.fill_steps;
            if let Some(other) = self.member(&server, member.replica, epoch) {
                other.bytes = there;
            }
            if filled >= self.fill_steps {
                let other = self.member(&server, member.replica, epoch).expect("seen above");
                other.writes.clone_from(&mine.writes);
                if now >= mine.ready_since + 1_000 || filled == self.fill_steps {
                    mine.ready_since = now;
                    let learner = member.replica;
                    reports.push(if self.unreadable {
                        let reason = "a block that nobody can read".to_owned();
                        ToManager::LearnerFailed { group, epoch, learner, reason }
                    } else {
                        ToManager::LearnerReady { group, epoch, learner, bytes_moved: 0 }
                    });
                }
            }
        }
        self.servers[at].replicas.insert(id, mine);
        let Some(link) = self.servers[at].link else { return };
        for message in reports {
            self.feed(Event::LinkReceived { link, message });
        }
    }

    /// Each attached volume gets one write each step, retried until it is acknowledged.
    fn write(&mut self) {
        for at in 0..self.nodes.len() {
            if !self.nodes[at].up {
                continue;
            }
            let attachments: Vec<Attach> = self.nodes[at].attached.values().cloned().collect();
            for attach in attachments {
                self.write_once(at, &attach);
            }
        }
    }

    fn write_once(&mut self, at: usize, attach: &Attach) {
        let (write, fill_steps) = (self.next_write, self.fill_steps);
        let told = &attach.config;
        let primary = told.primary();
        let server_at = self.server_at(primary.server.as_str());
        let server = &mut self.servers[server_at];
        if !server.up {
            self.stalled();
            if let Some(link) = self.nodes[at].link
                && self.stall_ms >= 2_000
            {
                let message = ToManager::PrimarySilent {
                    group: told.group,
                    epoch: told.epoch,
                    out_of_reach: false,
                };
                self.feed(Event::LinkReceived { link, message });
            }
            return;
        }
        let ready = |r: &&mut Replica| {
            r.serving
                && r.handed_over.is_none()
                && r.config.as_ref().is_some_and(|c| {
                    c.epoch == told.epoch && c.attach_generation == told.attach_generation
                })
        };
        let Some(replica) = server.replicas.get_mut(&primary.replica).filter(ready) else {
            self.stalled();
            return;
        };
        replica.writes.insert(write);
        let learner_filled = replica.filled.filter(|(_, n)| *n >= fill_steps).map(|(l, _)| l);
        let config = replica.config.clone().expect("checked");
        let mut acknowledged = true;
        for member in config.members.iter().filter(|m| m.replica != primary.replica) {
            let learner = matches!(member.role, Role::Learner { .. });
            if learner && learner_filled != Some(member.replica) {
                continue;
            }
            match self.member(member.server.as_str(), member.replica, config.epoch) {
                Some(other) => drop(other.writes.insert(write)),
                None => acknowledged = learner && acknowledged,
            }
        }
        if acknowledged {
            self.acknowledged.insert(write);
            self.next_write += 1;
            self.longest_stall_ms = self.longest_stall_ms.max(self.stall_ms);
            self.stall_ms = 0;
        } else {
            self.stalled();
        }
    }

    fn stalled(&mut self) {
        self.stall_ms += STEP_MS;
    }

    // ---- The checker.

    fn check(&self) {
        let state = self.state();
        for (drive, account) in &Ledger::of(&state).drives {
            let (promised, offered) = (account.promised, account.offered);
            assert!(
                promised.bytes <= offered.bytes
                    && promised.iops <= offered.iops
                    && promised.mib_per_sec <= offered.mib_per_sec,
                "{drive} promised {promised:?} of {offered:?}"
            );
        }
        for group in state.groups.values() {
            group.config.check().expect("stored configurations are well formed");
            let desired: BTreeSet<_> = group.desired.iter().map(|p| &p.drive.server).collect();
            assert_eq!(desired.len(), group.desired.len(), "desired replicas share a server");
        }
        for server in self.servers.iter().filter(|s| s.up) {
            for (id, replica) in &server.replicas {
                let primary = replica
                    .config
                    .as_ref()
                    .is_some_and(|c| c.primary().replica == *id && replica.promised == c.epoch);
                if replica.serving && primary {
                    let newest = self.newest_epoch(replica.group);
                    let current = replica.config.as_ref().map(|c| c.epoch) == newest;
                    let missing = self.acknowledged.difference(&replica.writes).next();
                    assert!(
                        !current || missing.is_none(),
                        "{id} on {} serves without acknowledged write {missing:?}",
                        server.name
                    );
                }
            }
        }
    }

    fn newest_epoch(&self, group: Option<GroupId>) -> Option<Epoch> {
        let of_group = |r: &&Replica| r.group == group;
        let replicas = self.servers.iter().flat_map(|s| s.replicas.values());
        replicas.filter(of_group).filter_map(|r| r.config.as_ref().map(|c| c.epoch)).max()
    }
}

impl Server {
    fn registration(&self) -> RegisterServer {
        let report = |(id, r): (&ReplicaId, &Replica)| self.report(*id, r);
        RegisterServer {
            cluster: "test".to_owned(),
            server: self.name.parse().expect("a name"),
            boot: BootId::from_raw(self.boot),
            zone: self.zone.parse().expect("a zone"),
            address: "127.0.0.1:9".parse().expect("an address"),
            drives: [&self.ssd, &self.hdd].into_iter().chain(&self.more).cloned().collect(),
            replicas: self.replicas.iter().map(report).collect(),
            incomplete: Vec::new(),
        }
    }

    fn report(&self, id: ReplicaId, replica: &Replica) -> ReplicaReport {
        ReplicaReport {
            replica: id,
            group: replica.group.expect("made with one"),
            drive: replica.drive.parse().expect("a drive's name"),
            promised: replica.promised,
            adopted: replica.config.as_ref().map(|c| c.epoch).unwrap_or_default(),
            allocated: ByteCount::new(1 << 20),
        }
    }

    fn primaries(&self) -> Vec<ReplicaId> {
        let leads = |(id, r): &(&ReplicaId, &Replica)| {
            self.up
                && r.serving
                && r.config
                    .as_ref()
                    .is_some_and(|c| c.primary().replica == **id && r.promised == c.epoch)
        };
        self.replicas.iter().filter(leads).map(|(id, _)| *id).collect()
    }

    fn progress(&self, fill_steps: u64) -> Vec<ReplicaProgress> {
        let of = |id: &ReplicaId| {
            let replica = &self.replicas[id];
            let config = replica.config.as_ref().expect("a primary has one");
            let fill = replica.filled.map(|(learner, n)| FillProgress {
                learner_replica: learner.raw(),
                bytes_done: n.min(fill_steps),
                bytes_total: fill_steps,
                bytes_moved: n.min(fill_steps) << 20,
            });
            ReplicaProgress {
                group: config.group,
                replica: *id,
                epoch: config.epoch,
                allocated: ByteCount::new(replica.bytes.max(fill_steps << 20)),
                fill: fill.filter(|_| config.learners().next().is_some()),
            }
        };
        self.primaries().iter().map(of).collect()
    }

    pub fn used(&self, drive: &str) -> u64 {
        let there = self.replicas.values().filter(|r| r.lies_on(drive));
        there.map(|r| r.bytes / (1 + r.beside.len() as u64)).sum()
    }

    fn drive_status(&self, drive: &str, bytes: u64) -> DriveStatus {
        let usage = DriveUsage {
            slots_total: bytes >> 20,
            slots_used: self.used(drive) >> 20,
            slot_bytes: 1 << 20,
            waiting_for_space: self.waiting,
            ..DriveUsage::default()
        };
        DriveStatus {
            drive: drive.parse().expect("a name"),
            identity: None,
            state: DriveState::Serving,
            reason: None,
            usage,
            damage: Damage::default(),
            scrub: ScrubStatus::default(),
        }
    }

    fn handle(&mut self, now: u64, message: FromManager) -> Option<ToManager> {
        match message {
            FromManager::CreateReplica { replica, .. } if self.refuses => {
                let reason = "no room".to_owned();
                Some(ToManager::ReplicaRefused { replica, reason })
            }
            FromManager::CreateReplica { replica, group, drive, beside, .. } => {
                let (group, drive) = (Some(group), drive.to_string());
                let made = Replica { group, drive, beside, ..Replica::default() };
                self.replicas.entry(replica).or_insert(made);
                Some(ToManager::ReplicaCreated { replica })
            }
            FromManager::Scrub { replica, pass } => Some(ToManager::Scrubbed {
                replica,
                pass,
                percent: 100,
                bytes: 4096,
                damage: Damage { bad_found: 1, bad_repaired: 1, bad_lost: 0 },
                finished: true,
                failure: None,
            }),
            FromManager::RemoveReplica { replica, drive, beside } => {
                self.replicas.remove(&replica);
                if self.failed.contains(&drive) || beside.iter().any(|d| self.failed.contains(d)) {
                    return None;
                }
                Some(ToManager::ReplicaRemoved { replica })
            }
            FromManager::Prepare { replica, epoch, .. } => {
                let known = self.replicas.get_mut(&replica)?;
                known.promised = known.promised.max(epoch);
                let known = self.replicas[&replica].clone();
                (known.promised == epoch).then(|| ToManager::Promised {
                    replica,
                    epoch,
                    state: self.report(replica, &known),
                })
            }
            FromManager::Configure { config } => {
                let replica = config.primary().replica;
                let known = self.replicas.get_mut(&replica)?;
                if known.promised > config.epoch {
                    return None;
                }
                known.promised = config.epoch;
                known.serving = true;
                known.handed_over = None;
                known.silent_since.clear();
                let learners: BTreeSet<_> = config.learners().map(|m| m.replica).collect();
                known.filled = known.filled.filter(|(l, _)| learners.contains(l));
                let (group, epoch) = (config.group, config.epoch);
                known.config = Some(config);
                Some(ToManager::Adopted { group, replica, epoch })
            }
            FromManager::HandOver { group, epoch } => {
                let leads = self.primaries();
                let (_, replica) = self.replicas.iter_mut().find(|(id, r)| {
                    leads.contains(id)
                        && r.group == Some(group)
                        && r.config.as_ref().is_some_and(|c| c.epoch == epoch)
                })?;
                if replica.handed_over.is_none() {
                    replica.handed_over = Some(now);
                    replica.drained = false;
                }
                None
            }
            other => panic!("{} was sent {other:?}", self.name),
        }
    }
}

impl Node {
    fn registration(&self) -> RegisterNode {
        let held = |a: &Attach| (a.volume, a.config.attach_generation);
        RegisterNode {
            cluster: "test".to_owned(),
            node: self.name.parse().expect("a name"),
            boot: BootId::from_raw(self.boot),
            zone: self.zone.parse().expect("a zone"),
            account: root(),
            instances: vec![self.instance],
            attachments: self.attached.values().map(held).collect(),
        }
    }

    pub fn generation(&self, volume: VolumeId) -> Option<AttachGeneration> {
        self.attached.get(&volume).map(|a| a.config.attach_generation)
    }
}
