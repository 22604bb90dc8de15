//! The path of a guest's request: check, throttle, lock, carry out, answer.

use bytes::Bytes;
use engine::api::{OpError, Outcome, Request};
use format::data::{Change, DataMessage, RequestId, Status};
use model::{
    epoch::{AttachGeneration, Epoch},
    limits::{IN_FLIGHT_BYTES_MAX, IN_FLIGHT_REQUESTS_MAX, RESYNC_UNIT_BYTES},
    sabotage::{Sabotage, is_on},
    units::BLOCK,
};

use crate::{
    api::ConnId,
    examine::unit_start,
    image::checksums_match,
    lock::{LockId, Mode, Range},
    rate::Cost,
    session::{Opening, Standing},
    turn::{Op, Turn},
};

use super::{Barrier, Owner, Phase, Primary, room::has_slots};

/// Requests that wait for the throttle; a node manager has fewer in flight, but those of a
/// session that was replaced may still be here.
const QUEUE_MAX: usize = 2 * IN_FLIGHT_REQUESTS_MAX;

/// No request covers it.
pub(super) const NOWHERE: Range = Range { start: u64::MAX - 1, end: u64::MAX };

#[derive(Debug)]
pub struct Guest {
    conn: ConnId,
    epoch: Epoch,
    id: RequestId,
    work: Work,
    range: Range,
    /// Of data; counted while it runs.
    bytes: u64,
    stage: Stage,
    /// Units that were looked into because it could not be carried out.
    examined: Vec<u64>,
}

#[derive(Debug)]
enum Work {
    Read,
    Allocated,
    /// Taken by the change in flight when it starts.
    Change(Option<Change>),
}

impl Work {
    /// Data that it moves.
    fn bytes(&self, range: Range) -> u64 {
        match self {
            Self::Read | Self::Change(Some(Change::Write { .. })) => range.length(),
            Self::Allocated | Self::Change(_) => 0,
        }
    }

    fn mode(&self) -> Mode {
        if matches!(self, Self::Change(_)) { Mode::Exclusive } else { Mode::Shared }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// In the throttle's queue.
    Queued,
    /// For what it overlaps.
    Waiting(LockId),
    /// For the engine to say whether it needs space, because a drive is full.
    Weighing(LockId),
    /// For space, unordered.
    WaitingForRoom,
    Running(LockId),
    /// For a damaged block to be repaired.
    Repairing,
}

/// How a request ended.
#[derive(Debug)]
struct Answer {
    status: Status,
    crcs: Vec<u32>,
    data: Bytes,
}

impl Answer {
    fn bare(status: Status) -> Self {
        Self { status, crcs: Vec::new(), data: Bytes::new() }
    }
}

impl Primary {
    /// A message of a node manager.
    pub fn guest(&mut self, turn: &mut Turn<'_>, conn: ConnId, message: DataMessage) {
        match message {
            DataMessage::OpenSession { epoch, attach, id, .. } => {
                self.open_session(turn, Barrier { conn, epoch, id }, attach);
            }
            DataMessage::Read { epoch, id, offset, length, .. } => {
                self.ask(turn, (conn, epoch, id), (offset, length), Work::Read);
            }
            DataMessage::QueryAllocated { epoch, id, offset, length, .. } => {
                self.ask(turn, (conn, epoch, id), (offset, length), Work::Allocated);
            }
            DataMessage::Change { epoch, id, offset, change, .. } => {
                let range = (offset, change.length());
                self.ask(turn, (conn, epoch, id), range, Work::Change(Some(change)));
            }
            _ => return,
        }
        self.go_on(turn);
    }

    fn open_session(&mut self, turn: &mut Turn<'_>, asked: Barrier, attach: AttachGeneration) {
        let Barrier { conn, epoch, id } = asked;
        let wanted = self.config.attach_generation;
        let status = match self.phase {
            Phase::Deposed => Status::Moved,
            _ if attach < wanted && !is_on(Sabotage::FencedServed) => Status::Fenced,
            _ if attach > wanted || epoch > self.config.epoch => Status::NotReady,
            _ => match self.sessions.open(id.session, attach, conn) {
                Opening::Ignore => return,
                Opening::Refuse(status) => status,
                Opening::Superseded(before) => {
                    if let Some(before) = before {
                        self.drop_session(turn, before);
                    }
                    if is_on(Sabotage::SessionOpenedEarly) {
                        return self.reply(turn, (conn, epoch, id), Answer::bare(Status::Ok));
                    }
                    self.barrier = Some(asked);
                    return;
                }
                Opening::Current => match &mut self.barrier {
                    Some(barrier) => {
                        *barrier = asked;
                        return;
                    }
                    None => Status::Ok,
                },
            },
        };
        self.reply(turn, (conn, epoch, id), Answer::bare(status));
    }

    /// A session is open when everything older has left. What may be in flight for ever is not
    /// waited for: whatever overlaps it comes after it, by its lock.
    pub(super) fn settle_barrier(&mut self, turn: &mut Turn<'_>) {
        let stuck = self.flights.values().all(|flight| flight.is_stuck(turn.now));
        let of_flights = self.flights.values().filter(|flight| flight.has_guest()).count();
        if self.barrier.is_some() && stuck && self.running == of_flights {
            let Barrier { conn, epoch, id } = self.barrier.take().expect("looked at above");
            self.reply(turn, (conn, epoch, id), Answer::bare(Status::Ok));
        }
    }

    /// Refuses what an ended session has not begun.
    pub(super) fn drop_session(&mut self, turn: &mut Turn<'_>, session: u64) {
        if self.barrier.is_some_and(|b| b.id.session == session) {
            let Barrier { conn, epoch, id } = self.barrier.take().expect("looked at above");
            self.reply(turn, (conn, epoch, id), Answer::bare(Status::Fenced));
        }
        let of_session = |guest: &&Guest| guest.id.session == session;
        let not_begun: Vec<u64> = self
            .guests
            .iter()
            .filter(|(_, guest)| of_session(guest) && !matches!(guest.stage, Stage::Running(_)))
            .map(|(&ticket, _)| ticket)
            .collect();
        for ticket in not_begun {
            self.queue.retain(|&queued| queued != ticket);
            self.finish(turn, ticket, Answer::bare(Status::Fenced));
        }
    }

    /// Whoever waits is told to look elsewhere. Reads under way end unheard; changes in flight
    /// stay in flight.
    pub(super) fn send_guests_away(&mut self, turn: &mut Turn<'_>) {
        if let Some(Barrier { conn, epoch, id }) = self.barrier.take() {
            self.reply(turn, (conn, epoch, id), Answer::bare(Status::Moved));
            self.sessions.forget();
        }
        self.queue.clear();
        self.throttled_until = None;
        let tickets: Vec<u64> = self.guests.keys().copied().collect();
        for ticket in tickets {
            let Some(guest) = self.guests.get(&ticket) else { continue };
            let of_change = matches!(guest.work, Work::Change(_));
            if matches!(guest.stage, Stage::Running(_)) && of_change {
                let guest = self.guests.remove(&ticket).expect("listed above");
                self.forget_running(&guest);
                self.orphan_flight(ticket, guest.id);
                self.sessions.ended(guest.id, false);
                let to = (guest.conn, guest.epoch, guest.id);
                self.reply(turn, to, Answer::bare(Status::Moved));
            } else {
                self.finish(turn, ticket, Answer::bare(Status::Moved));
            }
        }
    }

    fn ask(
        &mut self,
        turn: &mut Turn<'_>,
        from: (ConnId, Epoch, RequestId),
        (offset, length): (u64, u32),
        work: Work,
    ) {
        let (conn, epoch, id) = from;
        let refuse = |status| Answer::bare(status);
        if self.phase == Phase::Deposed {
            return self.reply(turn, from, refuse(Status::Moved));
        }
        if epoch > self.config.epoch {
            return self.reply(turn, from, refuse(Status::NotReady));
        }
        match self.sessions.classify(id, conn) {
            Standing::New => {}
            Standing::Ignore => return,
            Standing::Refuse(status) => return self.reply(turn, from, refuse(status)),
            Standing::Acknowledged => return self.reply(turn, from, refuse(Status::Ok)),
            Standing::Repeated(ticket) => {
                let guest = self.guests.get_mut(&ticket).expect("live requests have a guest");
                (guest.conn, guest.epoch) = (conn, epoch);
                return;
            }
        }
        let Some(range) = self.checked(offset, length) else {
            return self.reply(turn, from, refuse(Status::OutOfRange));
        };
        if let Work::Change(Some(Change::Write { crcs, data })) = &work
            && !checksums_match(crcs, data)
        {
            return self.reply(turn, from, refuse(Status::BadChecksum));
        }
        if self.queue.len() + self.waiting_for_room.len() >= QUEUE_MAX {
            return self.reply(turn, from, refuse(Status::NotReady));
        }
        self.ticket_last += 1;
        let ticket = self.ticket_last;
        self.sessions.began(id, ticket);
        let (bytes, stage) = (work.bytes(range), Stage::Queued);
        self.guests.insert(
            ticket,
            Guest { conn, epoch, id, work, range, bytes, stage, examined: Vec::new() },
        );
        self.queue.push_back(ticket);
    }

    /// The range, if it is whole blocks within the volume.
    fn checked(&self, offset: u64, length: u32) -> Option<Range> {
        let length = u64::from(length);
        let end = offset.checked_add(length)?;
        let whole = offset.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK) && length > 0;
        (whole && end <= self.config.size.get()).then(|| Range::new(offset, length))
    }

    /// Takes requests off the queue as fast as the volume's rate and the limits allow.
    pub(super) fn take_up(&mut self, turn: &mut Turn<'_>) {
        self.throttled_until = None;
        while self.phase == Phase::Serving
            && self.barrier.is_none()
            && let Some(&ticket) = self.queue.front()
        {
            let guest = self.guests.get(&ticket).expect("queued requests have a guest");
            let bytes = guest.bytes;
            let room = self.running < IN_FLIGHT_REQUESTS_MAX
                && (self.running == 0 || self.running_bytes + bytes <= IN_FLIGHT_BYTES_MAX);
            if !room {
                return;
            }
            let cost = match u32::try_from(bytes) {
                Ok(bytes) if bytes > 0 => Cost::transfer(self.config.media, bytes),
                _ => Cost::operation(),
            };
            if !self.throttle.admit(cost, turn.now) {
                self.throttled_until = Some(self.throttle.ready_at(cost));
                return;
            }
            self.queue.pop_front();
            self.run(turn, ticket);
        }
    }

    /// Takes a place in the order of what overlaps it.
    pub(super) fn run(&mut self, turn: &mut Turn<'_>, ticket: u64) {
        self.running += 1;
        self.running_bytes += self.guests[&ticket].bytes;
        self.lock(turn, ticket);
    }

    fn lock(&mut self, turn: &mut Turn<'_>, ticket: u64) {
        let guest = self.guests.get_mut(&ticket).expect("taken up just now");
        let (lock, granted) = self.locks.take(guest.range, guest.work.mode());
        guest.stage = Stage::Waiting(lock);
        self.owners.insert(lock, Owner::Guest(ticket));
        if granted {
            self.start(turn, ticket);
        }
    }

    /// The range is free: carry the request out.
    pub(super) fn start(&mut self, turn: &mut Turn<'_>, ticket: u64) {
        let guest = self.guests.get(&ticket).expect("waiting requests have a guest");
        let Stage::Waiting(lock) = guest.stage else { unreachable!("a lock is granted once") };
        let range = guest.range;
        let is_write = matches!(guest.work, Work::Change(Some(Change::Write { .. })));
        if is_write && self.is_full(turn) {
            self.guests.get_mut(&ticket).expect("looked up above").stage = Stage::Weighing(lock);
            return self.weigh(turn, ticket, range);
        }
        self.carry_out(turn, ticket, lock);
    }

    fn carry_out(&mut self, turn: &mut Turn<'_>, ticket: u64, lock: LockId) {
        let guest = self.guests.get_mut(&ticket).expect("who holds a lock has a guest");
        guest.stage = Stage::Running(lock);
        let (replica, range) = (self.id, guest.range);
        let (offset, length) = (range.start, range.length());
        let request = match &mut guest.work {
            Work::Change(_) if self.sessions.is_settled(guest.id) => {
                return self.finish(turn, ticket, Answer::bare(Status::Ok));
            }
            Work::Change(change) => {
                let change = change.take().expect("a change starts once");
                return self.order(turn, (ticket, lock), range, change);
            }
            Work::Read => {
                let length = u32::try_from(length).expect("it came as u32");
                Request::ReadStream { replica, offset, length }
            }
            Work::Allocated => Request::Allocated { replica, offset, length },
        };
        turn.request(Op::Guest(ticket), request);
    }

    /// The engine has read.
    pub fn guest_done(
        &mut self,
        turn: &mut Turn<'_>,
        ticket: u64,
        outcome: Result<Outcome, OpError>,
    ) {
        if let Some(&Guest { stage: Stage::Weighing(lock), .. }) = self.guests.get(&ticket) {
            self.weighed(turn, (ticket, lock), outcome);
            return self.go_on(turn);
        }
        if let Err(OpError::BadBlock { offset }) = outcome
            && self.repair_for(turn, ticket, offset)
        {
            return self.go_on(turn);
        }
        let answer = match outcome {
            Ok(Outcome::Read { crcs, data }) => Answer { status: Status::Ok, crcs, data },
            Ok(Outcome::Allocated { bitmap }) => {
                Answer { status: Status::Ok, crcs: Vec::new(), data: bitmap }
            }
            Ok(_) => unreachable!("the engine answers what was asked"),
            Err(error) => Answer::bare(status_of(&error)),
        };
        if self.guests.contains_key(&ticket) {
            self.finish(turn, ticket, answer);
        }
        self.go_on(turn);
    }

    /// The engine has said what the range of a change holds, which a full drive made it ask.
    fn weighed(
        &mut self,
        turn: &mut Turn<'_>,
        (ticket, lock): (u64, LockId),
        outcome: Result<Outcome, OpError>,
    ) {
        match outcome {
            Ok(Outcome::Allocated { bitmap }) if self.is_full(turn) && !has_slots(&bitmap) => {
                let guest = self.guests.get_mut(&ticket).expect("looked up by the caller");
                guest.stage = Stage::WaitingForRoom;
                self.running -= 1;
                self.running_bytes -= guest.bytes;
                self.waiting_for_room.insert(ticket);
                self.release(lock);
            }
            Ok(Outcome::Allocated { .. }) => self.carry_out(turn, ticket, lock),
            Ok(_) => unreachable!("the engine answers what was asked"),
            Err(error) => self.finish(turn, ticket, Answer::bare(status_of(&error))),
        }
    }

    /// Lets a read wait for a repair, unless everything it covers has been looked into.
    fn repair_for(&mut self, turn: &mut Turn<'_>, ticket: u64, offset: u64) -> bool {
        let Some(guest) = self.guests.get_mut(&ticket) else { return false };
        let Stage::Running(lock) = guest.stage else { return false };
        // A drive that fails a long read does not say which block it is.
        let mut units = (unit_start(offset)..guest.range.end).step_by(RESYNC_UNIT_BYTES as usize);
        let Some(unit) = units.find(|unit| !guest.examined.contains(unit)) else { return false };
        guest.examined.push(unit);
        if !self.repair(turn, ticket, unit) {
            return false;
        }
        self.guests.get_mut(&ticket).expect("looked up above").stage = Stage::Repairing;
        // Only now: the repair comes before any change that waited for the read.
        self.release(lock);
        true
    }

    /// A repair has ended that the read waited for, well or not.
    pub(super) fn read_again(&mut self, turn: &mut Turn<'_>, ticket: u64) {
        let waits = |guest: &&Guest| guest.stage == Stage::Repairing;
        if self.guests.get(&ticket).filter(waits).is_some() {
            self.lock(turn, ticket);
        }
    }

    /// A change is durable wherever it must be.
    pub(super) fn change_done(&mut self, turn: &mut Turn<'_>, ticket: u64) {
        self.finish(turn, ticket, Answer::bare(Status::Ok));
    }

    /// Answers a request and gives up what it held.
    fn finish(&mut self, turn: &mut Turn<'_>, ticket: u64, answer: Answer) {
        let guest = self.guests.remove(&ticket).expect("answered once");
        let is_change = matches!(guest.work, Work::Change(_));
        self.sessions.ended(guest.id, is_change && answer.status == Status::Ok);
        self.reply(turn, (guest.conn, guest.epoch, guest.id), answer);
        self.forget_running(&guest);
        self.waiting_for_room.remove(&ticket);
        if let Stage::Waiting(lock) | Stage::Weighing(lock) | Stage::Running(lock) = guest.stage {
            self.release(lock);
        }
    }

    fn forget_running(&mut self, guest: &Guest) {
        if !matches!(guest.stage, Stage::Queued | Stage::WaitingForRoom) {
            self.running -= 1;
            self.running_bytes -= guest.bytes;
        }
    }

    fn reply(&self, turn: &mut Turn<'_>, to: (ConnId, Epoch, RequestId), answer: Answer) {
        let (conn, epoch, id) = to;
        let Answer { status, crcs, data } = answer;
        let group = self.config.group;
        turn.reply(conn, DataMessage::Reply { group, epoch, id, status, crcs, data });
    }
}

/// What a failed request means to the node manager.
fn status_of(error: &OpError) -> Status {
    match error {
        OpError::OutOfRange => Status::OutOfRange,
        OpError::BadBlock { .. } => Status::BadBlock,
        OpError::BadChecksum => Status::BadChecksum,
        OpError::UnknownReplica
        | OpError::Full
        | OpError::Memory { .. }
        | OpError::Withdrawn
        | OpError::Layers { .. }
        | OpError::NoLayers
        | OpError::UnknownLayer
        | OpError::Released
        | OpError::DriveFailed => Status::Moved,
    }
}
