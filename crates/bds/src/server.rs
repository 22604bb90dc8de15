//! The machine of a server: routes events to engines and replicas, and keeps the manager informed.
//!
//! Decides: which replica an event concerns, which links are wanted, what the manager is told of
//! drives and replicas.
//! Does not: act on the state of a replica (replicas do), or keep bytes (engines do).
//! Invariant: every event is followed to its end: engine completions reach their replica, and
//! what that asks of its engine is asked, before `handle` returns.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use engine::api::{OpError, OpToken, OpenError, Outcome, Request};
use format::{
    ctl::{FromManager, RegisterServer, ToManager},
    data::{DataMessage, Status},
    replica::ReplicaRecord,
};
use model::{
    epoch::Epoch,
    id::{DriveName, GroupId, ReplicaId, ServerId, VolumeId},
    time::Instant,
    units::ByteCount,
};

use crate::{
    api::{Action, ConnId, Event, ServerParams},
    drive::{Drive, FromDrive},
    replica::{Fate, Input, Replica},
    turn::{Links, Op, Turn, Wanted, refused_unknown},
};

#[derive(Debug)]
pub struct Server {
    params: ServerParams,
    drives: BTreeMap<DriveName, Drive>,
    replicas: BTreeMap<ReplicaId, Replica>,
    groups: BTreeMap<GroupId, BTreeSet<ReplicaId>>,
    links: Links,
    /// Requests that an engine has not completed: for whom, and why.
    asked: BTreeMap<OpToken, (ReplicaId, Op)>,
    completed: VecDeque<(OpToken, Result<Outcome, OpError>)>,
    tokens: u64,
    manager_up: bool,
    next_beat: Instant,
    ready: bool,
    /// When replicas want to be woken.
    wakes: BTreeMap<ReplicaId, Instant>,
    wake_order: BTreeSet<(Instant, ReplicaId)>,
}

impl Server {
    /// Begins to open every drive; `Action::Ready` follows when all are open or out of service.
    pub fn new(
        params: ServerParams,
        seed: u64,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> Result<Self, OpenError> {
        let mut server = Self {
            drives: BTreeMap::new(),
            replicas: BTreeMap::new(),
            groups: BTreeMap::new(),
            links: Links::default(),
            asked: BTreeMap::new(),
            completed: VecDeque::new(),
            tokens: 0,
            manager_up: false,
            next_beat: now,
            ready: false,
            wakes: BTreeMap::new(),
            wake_order: BTreeSet::new(),
            params,
        };
        for (index, drive) in (0_u64..).zip(server.params.drives.clone()) {
            let name = drive.drive.clone();
            let mut from_drive = Vec::new();
            let drive = Drive::open(drive, seed.wrapping_add(index), now, &mut from_drive)?;
            server.drives.insert(name.clone(), drive);
            server.take_from(now, &name, from_drive, out);
        }
        server.follow(now, out);
        Ok(server)
    }

    pub fn handle(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::DriveRead { drive, token, result } => {
                let event = engine::api::Event::DriveRead { token, result };
                self.feed_engine(now, &drive, event, out);
            }
            Event::DriveWritten { drive, token, result } => {
                let event = engine::api::Event::DriveWritten { token, result };
                self.feed_engine(now, &drive, event, out);
            }
            Event::DriveFlushed { drive, token, result } => {
                let event = engine::api::Event::DriveFlushed { token, result };
                self.feed_engine(now, &drive, event, out);
            }
            Event::MessageReceived { conn, message } => self.received(now, conn, message, out),
            Event::ConnClosed { .. } => {}
            Event::LinkUp { server } => {
                self.links.note(&server, true, now);
                self.each_replica(now, out, |replica, turn| replica.link_up(turn, &server));
            }
            Event::LinkDown { server } => self.link_down(now, &server, out),
            Event::LinkReceived { message, .. } => self.answered(now, message, out),
            Event::ManagerLinkUp => self.manager_link_up(now, out),
            Event::ManagerLinkDown => self.manager_up = false,
            Event::ManagerSent { message } => self.command(now, message, out),
            Event::TimeReached => self.time_reached(now, out),
        }
        self.follow(now, out);
    }

    pub fn deadline(&self) -> Option<Instant> {
        let beat = self.manager_up.then_some(self.next_beat);
        let wake = self.wake_order.first().map(|&(at, _)| at);
        let engines = self.drives.values().filter_map(Drive::deadline);
        engines.chain(beat).chain(wake).min()
    }

    fn time_reached(&mut self, now: Instant, out: &mut Vec<Action>) {
        let due: Vec<DriveName> = self
            .drives
            .iter()
            .filter(|(_, drive)| drive.deadline().is_some_and(|at| at <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for drive in due {
            self.feed_engine(now, &drive, engine::api::Event::TimeReached, out);
        }
        while let Some(&(at, replica)) = self.wake_order.first()
            && at <= now
        {
            self.wake_order.pop_first();
            self.wakes.remove(&replica);
            self.turn(now, replica, out, Replica::time_reached);
        }
        if self.manager_up && self.next_beat <= now {
            self.next_beat = now + self.params.timing.beat;
            let replicas = self
                .replicas
                .values()
                .filter_map(|r| Some(r.primary()?.progress(self.allocated(r))))
                .collect();
            out.push(Action::SendManager { message: ToManager::Beat { replicas } });
        }
    }

    // The manager.

    fn manager_link_up(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.manager_up = true;
        self.next_beat = now + self.params.timing.beat;
        let reported = self.replicas.values().filter(|r| r.is_reported());
        let replicas = reported.map(|r| r.report(self.allocated(r))).collect();
        let params = &self.params;
        let register = RegisterServer {
            cluster: params.cluster.clone(),
            server: params.server.clone(),
            boot: params.boot,
            zone: params.zone.clone(),
            address: params.address,
            drives: self.drives.values().map(Drive::report).collect(),
            replicas,
        };
        out.push(Action::SendManager { message: ToManager::RegisterServer(register) });
        self.each_replica(now, out, |replica, turn| {
            if let Some(primary) = replica.primary_mut() {
                primary.manager_link_up(turn);
            }
        });
    }

    fn command(&mut self, now: Instant, message: FromManager, out: &mut Vec<Action>) {
        let (replica, input) = match message {
            FromManager::CreateReplica { replica, group, volume, drive, size } => {
                return self.create(now, replica, (group, volume), (drive, size), out);
            }
            FromManager::RemoveReplica { replica, .. } => {
                if !self.replicas.contains_key(&replica) {
                    let message = ToManager::ReplicaRemoved { replica };
                    return out.push(Action::SendManager { message });
                }
                (replica, Input::Remove)
            }
            FromManager::Prepare { replica, epoch, .. } => (replica, Input::Prepare(epoch)),
            FromManager::Configure { config } => {
                let Some(primary) = config.members.iter().find(|m| m.role == PRIMARY) else {
                    return;
                };
                (primary.replica, Input::Configure(config))
            }
            FromManager::HandOver { group, epoch } => {
                let leads = |r: &&Replica| r.primary().is_some_and(|p| p.epoch() == epoch);
                let Some(replica) = self.here(group).find(leads).map(|r| r.id) else { return };
                (replica, Input::HandOver(epoch))
            }
            FromManager::Attach(_) | FromManager::Detach { .. } | FromManager::Rejected { .. } => {
                return;
            }
        };
        self.turn(now, replica, out, |replica, turn| replica.input(turn, input));
    }

    fn create(
        &mut self,
        now: Instant,
        id: ReplicaId,
        (group, volume): (GroupId, VolumeId),
        (drive, size): (DriveName, ByteCount),
        out: &mut Vec<Action>,
    ) {
        let refusal = match self.drives.get(&drive) {
            None => Some("there is no such drive here".to_owned()),
            Some(drive) => drive.failed().map(str::to_owned),
        };
        if let Some(reason) = refusal {
            let message = ToManager::ReplicaRefused { replica: id, reason };
            return out.push(Action::SendManager { message });
        }
        if self.replicas.contains_key(&id) {
            return self.turn(now, id, out, |replica, turn| replica.input(turn, Input::Created));
        }
        let (promised, adopted, stale) = (Epoch::NONE, None, false);
        let record = ReplicaRecord { group, volume, promised, adopted, stale };
        self.add(Replica::new(id, drive, size, record));
        self.turn(now, id, out, Replica::create);
    }

    // Data links.

    /// A message on an inbound connection: of a node manager, or of another server.
    fn received(
        &mut self,
        now: Instant,
        conn: ConnId,
        message: DataMessage,
        out: &mut Vec<Action>,
    ) {
        let (group, replica) = match &message {
            DataMessage::OpenSession { group, epoch, id, .. }
            | DataMessage::Read { group, epoch, id, .. }
            | DataMessage::QueryAllocated { group, epoch, id, .. }
            | DataMessage::Change { group, epoch, id, .. } => {
                let (group, epoch, id) = (*group, *epoch, *id);
                let Some(replica) = self.primary_of(group) else {
                    let (status, crcs, data) = (Status::Moved, Vec::new(), bytes::Bytes::new());
                    let message = DataMessage::Reply { group, epoch, id, status, crcs, data };
                    return out.push(Action::Reply { conn, message });
                };
                return self.turn(now, replica, out, |replica, turn| {
                    let primary = replica.primary_mut().expect("found as primary");
                    primary.guest(turn, conn, message);
                });
            }
            DataMessage::Adopt { config } => {
                let here = |m: &&model::group::Member| m.server == self.params.server;
                let members = config.members.iter().filter(here).filter(|m| m.role != PRIMARY);
                let replicas: Vec<ReplicaId> = members.map(|m| m.replica).collect();
                for replica in replicas {
                    self.pass_to_member(now, conn, (config.group, replica), message.clone(), out);
                }
                return;
            }
            DataMessage::Replicate(r) => (r.group, r.replica),
            DataMessage::FillRegion(f) => (f.group, f.replica),
            DataMessage::QueryDigest(q) => (q.group, q.replica),
            DataMessage::PullRegion { group, replica, .. } => (*group, *replica),
            _ => return,
        };
        self.pass_to_member(now, conn, (group, replica), message, out);
    }

    fn pass_to_member(
        &mut self,
        now: Instant,
        conn: ConnId,
        (group, replica): (GroupId, ReplicaId),
        message: DataMessage,
        out: &mut Vec<Action>,
    ) {
        let known = self.replicas.get(&replica).is_some_and(|r| r.group() == group);
        if known {
            let input = Input::Peer(conn, message);
            return self.turn(now, replica, out, |replica, turn| replica.input(turn, input));
        }
        let message = match message {
            DataMessage::PullRegion { token, .. } => {
                let (status, units, data) = (Status::NotReady, Vec::new(), bytes::Bytes::new());
                DataMessage::RegionImage { group, token, status, units, data }
            }
            _ => refused_unknown(group, replica),
        };
        out.push(Action::Reply { conn, message });
    }

    /// A message on an outbound link.
    fn answered(&mut self, now: Instant, message: DataMessage, out: &mut Vec<Action>) {
        let group = match &message {
            DataMessage::ReplicateAck { group, .. }
            | DataMessage::Refused { group, .. }
            | DataMessage::FillDone { group, .. }
            | DataMessage::Digest { group, .. }
            | DataMessage::RegionImage { group, .. } => *group,
            _ => return,
        };
        let here: Vec<ReplicaId> = self.here(group).map(|r| r.id).collect();
        if let DataMessage::RegionImage { token, status, units, data, .. } = message {
            let knows = |r: &mut Replica| r.mirror_mut().is_some_and(|m| m.learner.knows(token));
            let learner = here.into_iter().find(|id| self.replicas.get_mut(id).is_some_and(knows));
            let Some(learner) = learner else { return };
            return self.turn(now, learner, out, |replica, turn| {
                let id = replica.id;
                let mirror = replica.mirror_mut().expect("it knows the pull");
                mirror.learner.received(turn, token, id, (status, units, data));
            });
        }
        for replica in here {
            self.turn(now, replica, out, |replica, turn| {
                if let Some(primary) = replica.primary_mut() {
                    primary.received(turn, &message);
                }
            });
        }
    }

    /// Of two primaries of a group here, one is about to learn that it is no more.
    fn primary_of(&self, group: GroupId) -> Option<ReplicaId> {
        let leading = self.here(group).filter_map(|r| Some((r.primary()?.epoch(), r.id)));
        leading.max().map(|(_, replica)| replica)
    }

    fn link_down(&mut self, now: Instant, server: &ServerId, out: &mut Vec<Action>) {
        self.links.note(server, false, now);
        self.each_replica(now, out, |replica, turn| replica.link_down(turn, server));
    }

    /// Makes the links those that the replicas want now.
    fn reconcile_links(&mut self, now: Instant, out: &mut Vec<Action>) {
        if !self.replicas.values().any(|r| r.links_changed) {
            return;
        }
        let mut wanted = Wanted::new();
        for replica in self.replicas.values_mut() {
            replica.links_changed = false;
            replica.add_wanted(&mut wanted);
        }
        for server in self.links.reconcile(&wanted, now, out) {
            self.link_down(now, &server, out);
        }
    }

    // Turns.

    fn each_replica(
        &mut self,
        now: Instant,
        out: &mut Vec<Action>,
        mut act: impl FnMut(&mut Replica, &mut Turn<'_>),
    ) {
        let all: Vec<ReplicaId> = self.replicas.keys().copied().collect();
        for replica in all {
            self.turn(now, replica, out, &mut act);
        }
    }

    /// Lets a replica act, and passes on what it asks of its engine.
    fn turn(
        &mut self,
        now: Instant,
        id: ReplicaId,
        out: &mut Vec<Action>,
        act: impl FnOnce(&mut Replica, &mut Turn<'_>),
    ) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let drive = self.drives.get(&replica.drive).expect("a replica lies on a drive");
        let mut requests = Vec::new();
        let mut turn = Turn {
            now,
            timing: self.params.timing,
            links: &self.links,
            tokens: &mut self.tokens,
            out,
            requests: &mut requests,
            allocated: drive.allocated(id),
            busy: replica.busy,
        };
        act(replica, &mut turn);
        replica.advance(&mut turn);
        replica.busy = turn.busy;
        let (drive, deadline) = (replica.drive.clone(), replica.deadline());
        if replica.fate == Fate::Gone {
            self.forget(id);
        } else {
            self.wake(id, deadline);
        }
        for (op, request) in requests {
            self.ask(now, &drive, (id, op), request, out);
        }
    }

    fn wake(&mut self, replica: ReplicaId, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.wakes.insert(replica, at),
            None => self.wakes.remove(&replica),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.wake_order.remove(&(before, replica));
        }
        if let Some(at) = at {
            self.wake_order.insert((at, replica));
        }
    }

    /// The replicas of a group that lie here: one, or two while it moves between drives.
    fn here(&self, group: GroupId) -> impl Iterator<Item = &Replica> {
        let ids = self.groups.get(&group).into_iter().flatten();
        ids.map(|id| self.replicas.get(id).expect("the index follows the replicas"))
    }

    fn add(&mut self, replica: Replica) {
        self.groups.entry(replica.group()).or_default().insert(replica.id);
        self.replicas.insert(replica.id, replica);
    }

    fn forget(&mut self, replica: ReplicaId) {
        self.wake(replica, None);
        let Some(gone) = self.replicas.remove(&replica) else { return };
        if let Some(group) = self.groups.get_mut(&gone.group()) {
            group.remove(&replica);
            if group.is_empty() {
                self.groups.remove(&gone.group());
            }
        }
        // Somebody else may have to give up a link in its place.
        if let Some(other) = self.replicas.values_mut().next() {
            other.links_changed = true;
        }
    }

    // Engines.

    fn ask(
        &mut self,
        now: Instant,
        drive: &DriveName,
        (replica, op): (ReplicaId, Op),
        request: Request,
        out: &mut Vec<Action>,
    ) {
        self.tokens += 1;
        let token = OpToken(self.tokens);
        self.asked.insert(token, (replica, op));
        let is_open = self.drives.get(drive).is_some_and(|d| d.failed().is_none());
        if is_open {
            let event = engine::api::Event::Requested { token, request };
            self.feed_engine(now, drive, event, out);
        } else {
            self.completed.push_back((token, Err(OpError::DriveFailed)));
        }
    }

    fn feed_engine(
        &mut self,
        now: Instant,
        name: &DriveName,
        event: engine::api::Event,
        out: &mut Vec<Action>,
    ) {
        let Some(drive) = self.drives.get_mut(name) else { return };
        let mut from_drive = Vec::new();
        drive.handle(now, event, &mut from_drive);
        self.take_from(now, name, from_drive, out);
    }

    fn take_from(
        &mut self,
        now: Instant,
        name: &DriveName,
        from_drive: Vec<FromDrive>,
        out: &mut Vec<Action>,
    ) {
        for each in from_drive {
            match each {
                FromDrive::Act(action) => out.push(action),
                FromDrive::Completed(token, outcome) => self.completed.push_back((token, outcome)),
                FromDrive::Opened(replicas) => {
                    for (id, size, record, stale) in replicas {
                        self.add(Replica::new(id, name.clone(), size, record));
                        if stale {
                            self.turn(now, id, out, Replica::mark_stale);
                        }
                    }
                }
                FromDrive::Failed(reason) => self.drive_failed(now, name, reason, out),
            }
        }
    }

    /// Its replicas are served no more: whoever waits at a primary there is sent away, and who
    /// asks for them is told that they are unknown.
    fn drive_failed(
        &mut self,
        now: Instant,
        name: &DriveName,
        reason: String,
        out: &mut Vec<Action>,
    ) {
        let drive = name.clone();
        out.push(Action::SendManager { message: ToManager::DriveFailed { drive, reason } });
        let there: Vec<ReplicaId> =
            self.replicas.values().filter(|r| r.drive == *name).map(|r| r.id).collect();
        for id in there {
            self.turn(now, id, out, |replica, turn| {
                if let Some(primary) = replica.primary_mut() {
                    primary.depose(turn);
                }
            });
            self.forget(id);
        }
    }

    /// Follows what has happened to its end.
    fn follow(&mut self, now: Instant, out: &mut Vec<Action>) {
        loop {
            while let Some((token, outcome)) = self.completed.pop_front() {
                let asked = self.asked.remove(&token);
                let (id, op) = asked.expect("an engine completes each request once");
                self.turn(now, id, out, |replica, turn| {
                    turn.busy -= 1;
                    replica.completed(turn, op, outcome);
                });
            }
            self.reconcile_links(now, out);
            if self.completed.is_empty() {
                break;
            }
        }
        if !self.ready && self.drives.values().all(Drive::is_settled) {
            self.ready = true;
            out.push(Action::Ready);
        }
    }

    fn allocated(&self, replica: &Replica) -> ByteCount {
        self.drives.get(&replica.drive).map_or(ByteCount::ZERO, |d| d.allocated(replica.id))
    }
}

const PRIMARY: model::group::Role = model::group::Role::Primary;
