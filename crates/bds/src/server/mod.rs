//! The machine of a server: routes events to engines and replicas, and keeps the manager informed.
//!
//! Decides: which replica an event concerns, which links are wanted, what the manager is told of
//! drives and replicas.
//! Does not: act on the state of a replica (replicas do), or keep bytes (engines do).
//! Invariant: every event is followed to its end: engine completions reach their replica, and
//! what that asks of its engine is asked, before `handle` returns.

mod follow;
mod incomplete;
mod route;
mod scrub;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use engine::api::{OpError, OpToken, OpenError, Outcome};
use format::{
    ctl::{FromManager, RegisterServer, ToManager},
    replica::ReplicaRecord,
};
use model::{
    epoch::Epoch,
    id::{DriveName, GroupId, ReplicaId, VolumeId},
    time::Instant,
    units::ByteCount,
    volume::Stripes,
};

use crate::{
    api::{Action, Event, ServerParams},
    beat::Beats,
    drive::Drive,
    filling::Filling,
    parts::Join,
    place::Place,
    primary::Primary,
    replica::{Input, Replica},
    scrub::Scrub,
    turn::{Links, Op},
};

use self::incomplete::Incomplete;

#[derive(Debug)]
pub struct Server {
    params: ServerParams,
    drives: BTreeMap<DriveName, Drive>,
    replicas: BTreeMap<ReplicaId, Replica>,
    groups: BTreeMap<GroupId, BTreeSet<ReplicaId>>,
    links: Links,
    /// The replicas may want other links than there are.
    links_changed: bool,
    /// Requests that an engine has not completed: for whom, and why.
    asked: BTreeMap<OpToken, (ReplicaId, Op)>,
    completed: VecDeque<(OpToken, Result<Outcome, OpError>)>,
    /// Drives that became full, or have room again, of which their replicas do not know yet.
    room_changed: Vec<DriveName>,
    /// Of those, what striped replicas wait for, and the requests of their parts: of which one,
    /// and its number there.
    joins: BTreeMap<OpToken, Join>,
    pieces: BTreeMap<OpToken, (OpToken, usize)>,
    /// Striped replicas of which not every part is here.
    incomplete: BTreeMap<ReplicaId, Incomplete>,
    tokens: u64,
    manager_up: bool,
    next_beat: Instant,
    beats: Beats,
    filling: Filling,
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
            links_changed: false,
            asked: BTreeMap::new(),
            completed: VecDeque::new(),
            room_changed: Vec::new(),
            joins: BTreeMap::new(),
            pieces: BTreeMap::new(),
            incomplete: BTreeMap::new(),
            tokens: 0,
            manager_up: false,
            next_beat: now,
            beats: Beats::default(),
            filling: Filling::new(params.timing.fills_max),
            ready: false,
            wakes: BTreeMap::new(),
            wake_order: BTreeSet::new(),
            params,
        };
        let timing = server.params.timing;
        let drives = u64::try_from(server.params.drives.len()).expect("few").max(1);
        for (index, drive) in (0_u64..).zip(server.params.drives.clone()) {
            let name = drive.drive.clone();
            let mut from_drive = Vec::new();
            let seed = seed.wrapping_add(index);
            let rate = timing.scrub_bytes_per_sec / drives;
            let scrub = Scrub::new(timing.scrub_period, rate, seed, now);
            let drive = Drive::open(drive, (seed, scrub), now, &mut from_drive)?;
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
        let scrubs = self.drives.values().filter_map(|drive| drive.scrub.deadline());
        engines.chain(beat).chain(wake).chain(scrubs).min()
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
        self.scrub_on(now, out);
        if self.manager_up && self.next_beat <= now {
            self.next_beat = now + self.params.timing.beat;
            let (all, drives) = (&mut self.replicas, &self.drives);
            let replicas = self.beats.next(|id| {
                let replica = all.get_mut(&id)?;
                replica.touched = false;
                Some(replica.primary()?.progress(allocated(drives, id, &replica.place)))
            });
            out.push(Action::SendManager { message: ToManager::Beat { replicas } });
            self.tell_news(now, out);
            self.tell_scrubs(out);
            self.begin_scrubs(now);
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
            incomplete: self.incomplete.iter().map(|(&id, known)| known.report(id)).collect(),
        };
        out.push(Action::SendManager { message: ToManager::RegisterServer(register) });
        self.beats.tell_all();
        self.drives.values_mut().for_each(Drive::tell_again);
        self.tell_news(now, out);
        self.each_replica(now, out, |replica, turn| {
            if let Some(primary) = replica.primary_mut() {
                primary.manager_link_up(turn);
            }
        });
    }

    fn tell_news(&mut self, now: Instant, out: &mut Vec<Action>) {
        for (name, drive) in self.drives.iter_mut().filter(|(_, d)| d.minds_waiting()) {
            // Of what is striped, on those of its drives that it may wait for.
            let minds = |r: &&Replica| {
                r.place.lies_on(name) && (r.place.striped().is_none() || drive.is_full())
            };
            let there = self.replicas.values().filter(minds);
            let waiting: usize =
                there.filter_map(Replica::primary).map(Primary::changes_waiting).sum();
            drive.waiting_for_room = u64::try_from(waiting).expect("a count");
        }
        let news = self.drives.values_mut().filter_map(|drive| drive.news(now));
        out.extend(news.map(|n| Action::SendManager { message: ToManager::DriveStatus(n) }));
    }

    fn command(&mut self, now: Instant, message: FromManager, out: &mut Vec<Action>) {
        let (replica, input) = match message {
            FromManager::CreateReplica { replica, group, volume, drive, beside, size } => {
                let drives = std::iter::once(drive).chain(beside).collect();
                return self.create(now, replica, (group, volume), (drives, size), out);
            }
            FromManager::RemoveReplica { replica, drive, beside } => {
                if !self.replicas.contains_key(&replica) {
                    let drives = std::iter::once(drive).chain(beside).collect();
                    return self.remove_parts(now, replica, drives, out);
                }
                (replica, Input::Remove)
            }
            FromManager::Scrub { replica, pass } => {
                return self.scrub_asked(now, (replica, pass), out);
            }
            FromManager::Prepare { replica, epoch, as_mirror, .. } => {
                (replica, Input::Prepare { epoch, as_mirror })
            }
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
        (drives, size): (Vec<DriveName>, ByteCount),
        out: &mut Vec<Action>,
    ) {
        if let Some(reason) = self.refusal(id, &drives) {
            let message = ToManager::ReplicaRefused { replica: id, reason };
            return out.push(Action::SendManager { message });
        }
        if self.replicas.contains_key(&id) {
            return self.turn(now, id, out, |replica, turn| replica.input(turn, Input::Created));
        }
        self.incomplete.remove(&id);
        let (promised, adopted, stale) = (Epoch::NONE, None, false);
        let record = ReplicaRecord { group, volume, promised, adopted, stale };
        self.add(Replica::new(id, Place::new(drives, 0), size, record));
        self.turn(now, id, out, Replica::create);
    }

    /// Why a replica cannot be made on these drives.
    fn refusal(&self, id: ReplicaId, drives: &[DriveName]) -> Option<String> {
        let stripes = u32::try_from(drives.len()).unwrap_or(u32::MAX);
        if let Err(error) = Stripes::try_from(stripes) {
            return Some(error.to_string());
        }
        for (index, name) in drives.iter().enumerate() {
            if drives[..index].contains(name) {
                return Some(format!("drive {name} is named twice"));
            }
            let Some(drive) = self.drives.get(name) else {
                return Some(format!("there is no drive {name} here"));
            };
            if let Some(reason) = drive.failed() {
                return Some(format!("drive {name}: {reason}"));
            }
        }
        let parts = self.incomplete.get(&id)?;
        let made_again = parts.is_untouched() && parts.lie_on(drives);
        (!made_again).then(|| parts.to_string())
    }

    fn allocated(&self, replica: &Replica) -> ByteCount {
        allocated(&self.drives, replica.id, &replica.place)
    }
}

/// What a replica occupies on all its drives.
fn allocated(drives: &BTreeMap<DriveName, Drive>, replica: ReplicaId, place: &Place) -> ByteCount {
    let each = place.drives().iter().filter_map(|name| drives.get(name));
    ByteCount::new(each.map(|drive| drive.allocated(replica).get()).sum())
}

const PRIMARY: model::group::Role = model::group::Role::Primary;
