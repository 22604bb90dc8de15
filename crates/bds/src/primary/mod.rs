//! The primary of a group: orders changes, answers the node manager, fills learners.
//!
//! Decides: the order of changes, when one is acknowledged, what is served and what is put off.
//! Does not: make anything durable itself (the engine and the members do), or change the
//! configuration (it is given one that is durable already).
//! Invariants: a change is acknowledged only when its own engine, every in-sync member and every
//! learner filled there have it durably (6, 17); a `ModSeq` is given once (8); reads wait for the
//! changes they overlap (12); once a newer epoch is known to be promised, nothing of the own one
//! is acknowledged.
//!
//! `request` is the path of a guest's request, `change` that of a change to all members, `member`
//! watches the members, `resync` fills learners, `repair` replaces damaged blocks,
//! `compare` finds mirrors that differ, `pace` one that is slow, `room` lets changes wait while a drive
//! is full.

mod change;
mod compare;
mod fill;
mod member;
mod pace;
mod repair;
mod request;
mod resync;
mod room;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use format::{
    ctl::{FillProgress, ReplicaProgress, ToManager},
    data::{DataMessage, RequestId, Status},
};
use model::{
    epoch::{Epoch, ModSeq},
    group::GroupConfig,
    id::ReplicaId,
    sabotage::{Sabotage, is_on},
    time::Instant,
    units::ByteCount,
};

use crate::{
    api::ConnId,
    examine::Examiner,
    lock::{LockId, Locks, Range},
    rate::Throttle,
    session::Sessions,
    turn::Turn,
};

use self::{
    change::Flight, compare::Comparing, fill::Fill, member::Peer, pace::Pace, repair::Repair,
    request::Guest,
};

/// How often silence is looked for while somebody owes an answer.
const TICK: Duration = Duration::from_millis(250);
/// How often what the manager must hear is said again until it acts.
const REPEAT: Duration = Duration::from_secs(1);
/// A change in flight for so long may be so for ever: it may wait for space.
const STUCK: Duration = Duration::from_millis(500);

/// ```text
/// serving ◄─► handing over
///    │  ▲         │
///    ▼  │         ▼
///   deposed ◄─────┘      back to serving only by a newer configuration
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Takes up nothing new. `until`: nothing is in flight, the manager was told, and has this
    /// long to go on.
    HandingOver {
        until: Option<Instant>,
    },
    /// A newer epoch is promised somewhere: acknowledges nothing.
    Deposed,
}

/// Whose turn it is when a lock is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Guest(u64),
    Fill { learner: ReplicaId, token: u64 },
    Repair(u64),
    Compare(u64),
}

/// A session that is open as soon as nothing older is in flight.
#[derive(Debug, Clone, Copy)]
struct Barrier {
    conn: ConnId,
    epoch: Epoch,
    id: RequestId,
}

#[derive(Debug)]
pub struct Primary {
    id: ReplicaId,
    config: GroupConfig,
    phase: Phase,
    /// Sequence of the last change ordered in this epoch.
    sequence: u64,
    sessions: Sessions,
    barrier: Option<Barrier>,
    /// All guests' requests that are not answered, by ticket, which is the order of arrival.
    guests: BTreeMap<u64, Guest>,
    ticket_last: u64,
    /// Of those, the ones the throttle has not admitted yet.
    queue: VecDeque<u64>,
    /// Of those, the ones that wait, unordered, because a drive is full.
    waiting_for_room: BTreeSet<u64>,
    /// Of those, the ones the throttle has admitted and that do not wait for room, and the bytes
    /// they carry.
    running: usize,
    running_bytes: u64,
    throttle: Throttle,
    throttled_until: Option<Instant>,
    locks: Locks,
    owners: BTreeMap<LockId, Owner>,
    /// Locks granted to who does not know it yet.
    granted: VecDeque<LockId>,
    flights: BTreeMap<ModSeq, Flight>,
    peers: BTreeMap<ReplicaId, Peer>,
    fills: BTreeMap<ReplicaId, Fill>,
    repairs: BTreeMap<u64, Repair>,
    /// Own units that repairs look at.
    examiner: Examiner<u64>,
    comparing: Comparing,
    pace: Pace,
    tick: Option<Instant>,
}

impl Primary {
    /// Begins to serve under a configuration that is durable here and was never acted on before.
    pub fn activate(turn: &mut Turn<'_>, id: ReplicaId, config: GroupConfig) -> Self {
        assert_eq!(config.primary().replica, id, "only the primary activates");
        let mut primary = Self {
            id,
            phase: Phase::Serving,
            sequence: 0,
            sessions: Sessions::default(),
            barrier: None,
            guests: BTreeMap::new(),
            ticket_last: 0,
            queue: VecDeque::new(),
            waiting_for_room: BTreeSet::new(),
            running: 0,
            running_bytes: 0,
            throttle: Throttle::new(config.rate, turn.now),
            throttled_until: None,
            locks: Locks::default(),
            owners: BTreeMap::new(),
            granted: VecDeque::new(),
            flights: BTreeMap::new(),
            peers: BTreeMap::new(),
            fills: BTreeMap::new(),
            repairs: BTreeMap::new(),
            examiner: Examiner::default(),
            comparing: Comparing::default(),
            pace: Pace::default(),
            tick: None,
            config,
        };
        primary.meet_members(turn);
        primary.tell_adopted(turn);
        primary.go_on(turn);
        primary
    }

    pub fn epoch(&self) -> Epoch {
        self.config.epoch
    }

    /// Whether a configuration can follow the present one. Only who is known to hold everything
    /// may come to count.
    pub fn may_adopt(&self, config: &GroupConfig) -> bool {
        config.primary().replica == self.id
            && config.mirrors().all(|mirror| {
                self.config.is_in_sync(mirror.replica)
                    || self.fills.get(&mirror.replica).is_some_and(Fill::counts)
            })
    }

    /// Goes on under a newer configuration, which is durable here. What is in flight keeps its
    /// `ModSeq` and counts under the new set.
    pub fn adopt(&mut self, turn: &mut Turn<'_>, config: GroupConfig) {
        assert!(config.epoch > self.config.epoch, "configurations only follow");
        assert!(self.may_adopt(&config), "checked before it was made durable");
        let was_deposed = self.phase == Phase::Deposed;
        self.config = config;
        self.sequence = 0;
        self.phase = Phase::Serving;
        self.throttle.change(self.config.rate, turn.now);
        if let Some(ended) = self.sessions.fence(self.config.attach_generation) {
            self.drop_session(turn, ended);
        }
        let config = &self.config;
        self.pace.forget(|member| config.is_in_sync(member));
        self.meet_members(turn);
        self.tell_adopted(turn);
        if was_deposed {
            self.resend_all(turn);
        }
        self.recount_flights(turn);
        self.ask_mirrors_again(turn, None);
        self.restart_compare();
        self.go_on(turn);
    }

    pub fn tell_adopted(&self, turn: &mut Turn<'_>) {
        if self.phase != Phase::Deposed {
            let (group, replica, epoch) = (self.config.group, self.id, self.config.epoch);
            turn.tell(ToManager::Adopted { group, replica, epoch });
        }
    }

    /// This replica itself promises an epoch.
    pub fn promised(&mut self, turn: &mut Turn<'_>, epoch: Epoch) {
        if epoch > self.config.epoch {
            self.depose(turn);
        }
    }

    /// A newer epoch is known to be promised: whoever waits is sent away, nothing more is
    /// acknowledged. Changes in flight stay owed, in case the newer epoch names this primary.
    pub fn depose(&mut self, turn: &mut Turn<'_>) {
        self.phase = Phase::Deposed;
        self.send_guests_away(turn);
    }

    fn is_deposed(&self) -> bool {
        self.phase == Phase::Deposed
    }

    pub fn has_changes_in_flight(&self) -> bool {
        !self.flights.is_empty()
    }

    /// Stops taking up requests; answers when nothing is in flight.
    pub fn hand_over(&mut self, turn: &mut Turn<'_>, epoch: Epoch) {
        if epoch != self.config.epoch || self.phase == Phase::Deposed {
            return;
        }
        self.phase = Phase::HandingOver { until: None };
        self.announce_hand_over(turn);
    }

    fn announce_hand_over(&mut self, turn: &mut Turn<'_>) {
        let drained =
            (self.flights.is_empty() && self.running == 0) || is_on(Sabotage::HandedOverInFlight);
        if self.phase == (Phase::HandingOver { until: None }) && drained {
            let until = Some(turn.now + turn.timing.hand_over_limit);
            self.phase = Phase::HandingOver { until };
            let (group, replica, epoch) = (self.config.group, self.id, self.config.epoch);
            turn.tell(ToManager::HandedOver { group, replica, epoch });
        }
    }

    pub fn time_reached(&mut self, turn: &mut Turn<'_>) {
        if let Phase::HandingOver { until: Some(until) } = self.phase
            && turn.now >= until
        {
            self.phase = Phase::Serving;
        }
        if self.tick.is_some_and(|at| turn.now >= at) {
            self.tick = None;
            self.watch_members(turn);
            self.watch_pace(turn);
            self.watch_fills(turn);
            self.watch_holds(turn);
            self.ask_mirrors_again(turn, None);
            self.watch_compare(turn);
        }
        self.go_on(turn);
    }

    /// To be called at the end of whatever may have made room or taken some.
    fn go_on(&mut self, turn: &mut Turn<'_>) {
        loop {
            while let Some(lock) = self.granted.pop_front() {
                // Whoever waited may have been sent away meanwhile.
                match self.owners.get(&lock) {
                    Some(&Owner::Guest(ticket)) => self.start(turn, ticket),
                    Some(&Owner::Fill { learner, token }) => self.start_task(turn, learner, token),
                    Some(&Owner::Repair(token)) => self.start_repair(turn, token),
                    Some(&Owner::Compare(_)) => self.start_compare(turn),
                    None => {}
                }
            }
            self.settle_barrier(turn);
            self.take_up_waiting(turn);
            self.take_up(turn);
            self.advance_fills(turn);
            self.advance_compare(turn);
            if self.granted.is_empty() {
                break;
            }
        }
        self.announce_hand_over(turn);
        let watch = !self.flights.is_empty()
            || !self.fills.is_empty()
            || !self.repairs.is_empty()
            || self.comparing.needs_watching()
            || self.peers.values().any(|peer| peer.needs_watching(turn));
        if watch {
            self.tick.get_or_insert(turn.now + TICK);
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        let hand_over = match self.phase {
            Phase::HandingOver { until } => until,
            _ => None,
        };
        [hand_over, self.tick, self.throttled_until].into_iter().flatten().min()
    }

    pub fn progress(&self, allocated: ByteCount) -> ReplicaProgress {
        let fill = self.fills.iter().next().map(|(learner, fill)| FillProgress {
            learner_replica: learner.raw(),
            bytes_done: fill.bytes_done(),
            bytes_total: self.config.size.get(),
            bytes_moved: fill.bytes_moved(),
        });
        let (group, replica, epoch) = (self.config.group, self.id, self.config.epoch);
        ReplicaProgress { group, replica, epoch, allocated, fill }
    }

    /// What the manager may have missed while its link was down.
    pub fn manager_link_up(&mut self, turn: &mut Turn<'_>) {
        for peer in self.peers.values_mut() {
            peer.reported = None;
        }
        for fill in self.fills.values_mut() {
            fill.report_again();
        }
        self.tick = Some(turn.now);
    }

    /// Whether damage or differences of its own or its mirrors are being looked into.
    pub fn is_checking(&self) -> bool {
        !self.repairs.is_empty() || self.comparing.is_busy()
    }

    /// A message of a member.
    pub fn received(&mut self, turn: &mut Turn<'_>, message: &DataMessage) {
        match *message {
            DataMessage::ReplicateAck { replica, mod_seq, .. } => {
                self.acknowledged(turn, replica, mod_seq);
            }
            DataMessage::Refused { replica, epoch, .. } => self.refused(turn, replica, epoch),
            DataMessage::FillDone { replica, token, status, bytes_moved, .. } => {
                self.heard(turn, replica);
                self.fill_done(turn, replica, (token, status, bytes_moved));
            }
            DataMessage::Digest { replica, token, status, digest, .. } => {
                self.heard(turn, replica);
                let digest = (status == Status::Ok).then_some(digest);
                self.digest_received(turn, replica, token, digest);
                self.compare_answered(turn, (replica, token), digest);
            }
            DataMessage::FetchedBlocks { replica, token, ref content, .. } => {
                self.heard(turn, replica);
                self.blocks_fetched(turn, (replica, token), content.as_ref());
            }
            DataMessage::Mended { replica, token, differs, .. } => {
                self.heard(turn, replica);
                self.mended(turn, (replica, token), differs);
            }
            DataMessage::BadUnit { replica, epoch, offset, blocks, .. } => {
                self.complaint(turn, (replica, epoch), (offset, blocks));
            }
            DataMessage::Room { replica, full, .. } => self.room_told(turn, replica, full),
            _ => return,
        }
        self.go_on(turn);
    }

    /// Holds that wait for a change that waits for space do not keep others waiting. Those others
    /// may be what makes space.
    fn watch_holds(&mut self, turn: &Turn<'_>) {
        let stuck: Vec<Range> = self
            .flights
            .values()
            .filter(|flight| flight.is_stuck(turn.now))
            .map(Flight::range)
            .collect();
        let mut granted = Vec::new();
        for (&lock, owner) in &self.owners {
            if !matches!(owner, Owner::Guest(_)) {
                let range = self.locks.range(lock);
                let yields = stuck.iter().any(|stuck| stuck.overlaps(range));
                self.locks.set_yields(lock, yields, &mut granted);
            }
        }
        self.granted.extend(granted);
    }

    /// Gives a lock up. Whoever waited for it goes on in [`Primary::go_on`].
    fn release(&mut self, lock: LockId) {
        self.owners.remove(&lock).expect("every lock has an owner");
        let mut granted = Vec::new();
        self.locks.release(lock, &mut granted);
        self.granted.extend(granted);
    }
}
