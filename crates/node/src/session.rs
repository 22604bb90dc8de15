//! The way from one attachment to its primary: a session, and what was sent in it.
//!
//! Decides: when something is sent, and sent again. Does not: decide what is sent first among
//! changes that overlap (they never meet here, see `ranges`).
//! Invariants:
//! - nothing is sent before the primary of this configuration has answered `OpenSession`;
//! - an answer counts only over the link, as it has been up since, over which its request was
//!   last sent;
//! - what is sent again keeps its number, and goes out in the order of the numbers;
//! - a request is given up only when the primary gave a final answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use bytes::Bytes;
use format::{
    ctl::ToManager,
    data::{Change, DataMessage, RequestId, Status},
};
use model::{
    epoch::{AttachGeneration, Epoch},
    group::GroupConfig,
    id::{GroupId, ReplicaId, ServerId},
    sabotage::{Sabotage, is_on},
    time::Instant,
    units::BLOCK,
};

use crate::{
    api::{Action, GuestError},
    machine::Context,
    requests::{Operation, PartId},
};

/// After a change of configuration under the same primary, what is still unanswered after this
/// long is sent again. The protocol does not need it: a primary answers all it was sent, or its
/// link closes.
const RECHECK: Duration = Duration::from_secs(5);
/// Between two reports of the same silence, and two attempts to open a session that gets no
/// answer.
const REPORT_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Session {
    group: GroupId,
    attach: AttachGeneration,
    /// Names this session at the primary.
    number: u64,
    epoch: Epoch,
    primary: ServerId,
    /// Its replica: a migration may move the primary between two drives of one server.
    replica: ReplicaId,
    path: Path,
    requests_numbered: u64,
    in_flight: BTreeMap<u64, InFlight>,
    /// Numbers to send as soon as the path is open.
    unsent: BTreeSet<u64>,
    /// Numbers to send at a time, after a damaged answer.
    delayed: BTreeSet<(Instant, u64)>,
    backoff: Duration,
    /// When the primary is reported silent, if it is to answer something.
    silent_at: Option<Instant>,
    /// When its server was last asked whether it is there, since it fell silent.
    probed: Option<Instant>,
    recheck_at: Option<Instant>,
}

/// ```text
///           link up               answered Ok
/// Down ──────────────► Opening ────────────────► Open
///  ▲   link down from anywhere  ▲ │ Moved,        │
///  └────────────────────────────│ │ NotReady      │ Moved, NotReady
///                        in time│ ▼               │
///                              Waiting ◄──────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Down,
    /// `request` is the number of the `OpenSession` that counts.
    Opening {
        request: u64,
    },
    Open,
    Waiting {
        until: Instant,
    },
}

#[derive(Debug)]
struct InFlight {
    part: PartId,
    wire: Wire,
    sent: Option<Sent>,
    /// Damaged answers so far.
    damaged: u32,
}

/// What goes over the wire for an operation.
#[derive(Debug)]
enum Wire {
    Read(Range<u64>),
    Query(Range<u64>),
    Change { offset: u64, change: Change },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    server: ServerId,
    link: u64,
    epoch: Epoch,
}

/// What a message from the primary means to the attachment.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Nothing,
    /// The primary acts under the session's configuration.
    Opened,
    Completed {
        part: PartId,
        result: Result<Bytes, GuestError>,
    },
    /// Somebody newer holds the volume.
    Fenced,
}

/// A reply's fields.
#[derive(Debug)]
pub struct Reply {
    pub id: RequestId,
    pub status: Status,
    pub crcs: Vec<u32>,
    pub data: Bytes,
}

impl Session {
    pub fn new(config: &GroupConfig, number: u64, cx: &mut Context<'_>) -> Self {
        let mut session = Self {
            group: config.group,
            attach: config.attach_generation,
            number,
            epoch: config.epoch,
            primary: config.primary().server.clone(),
            replica: config.primary().replica,
            path: Path::Down,
            requests_numbered: 0,
            in_flight: BTreeMap::new(),
            unsent: BTreeSet::new(),
            delayed: BTreeSet::new(),
            backoff: cx.timing.retry_min,
            silent_at: None,
            probed: None,
            recheck_at: None,
        };
        session.open(cx);
        session.listen_again(cx);
        session
    }

    pub fn primary(&self) -> &ServerId {
        &self.primary
    }

    pub fn is_open(&self) -> bool {
        self.path == Path::Open
    }

    /// A newer configuration: the session is opened again, wherever its primary is.
    pub fn reconfigure(&mut self, config: &GroupConfig, cx: &mut Context<'_>) {
        assert!(config.epoch > self.epoch, "a configuration that is not newer");
        self.epoch = config.epoch;
        let primary = config.primary();
        if primary.server != self.primary || primary.replica != self.replica {
            self.primary = primary.server.clone();
            self.replica = primary.replica;
            self.forget_sent();
        }
        self.backoff = cx.timing.retry_min;
        self.open(cx);
        self.listen_again(cx);
    }

    pub fn link_up(&mut self, cx: &mut Context<'_>) {
        if !is_on(Sabotage::RequestLost) {
            self.forget_sent();
        }
        self.backoff = cx.timing.retry_min;
        self.open(cx);
        self.listen(cx);
    }

    pub fn link_down(&mut self, cx: &mut Context<'_>) {
        self.path = Path::Down;
        self.listen(cx);
    }

    pub fn submit(&mut self, part: PartId, operation: Operation, cx: &mut Context<'_>) {
        let number = self.next_number();
        let wire = Wire::new(operation);
        self.in_flight.insert(number, InFlight { part, wire, sent: None, damaged: 0 });
        self.unsent.insert(number);
        if self.is_open() {
            self.send_unsent(cx);
        }
        self.listen(cx);
    }

    /// Gives up everything: the attachment is over.
    pub fn abandon(&mut self) {
        self.in_flight.clear();
        self.unsent.clear();
        self.delayed.clear();
        self.silent_at = None;
        self.recheck_at = None;
        self.path = Path::Down;
    }

    pub fn deadline(&self) -> Option<Instant> {
        let waiting = match self.path {
            Path::Waiting { until } => Some(until),
            Path::Down | Path::Opening { .. } | Path::Open => None,
        };
        let delayed = self.delayed.first().map(|&(at, _)| at);
        [waiting, delayed, self.silent_at, self.recheck_at].into_iter().flatten().min()
    }

    pub fn time_reached(&mut self, cx: &mut Context<'_>) {
        if let Path::Waiting { until } = self.path
            && cx.now >= until
        {
            self.open(cx);
        }
        while let Some(&(at, number)) = self.delayed.first()
            && cx.now >= at
        {
            self.delayed.pop_first();
            self.unsent.insert(number);
        }
        self.recheck(cx);
        if self.is_open() {
            self.send_unsent(cx);
        }
        if self.silent_at.is_some_and(|at| cx.now >= at) {
            self.report_silence(cx);
        }
    }

    /// A reply of this group that came from `server`.
    pub fn receive(&mut self, server: &ServerId, reply: Reply, cx: &mut Context<'_>) -> Outcome {
        if reply.id.session != self.number || *server != self.primary {
            return Outcome::Nothing;
        }
        let outcome = if self.path == (Path::Opening { request: reply.id.request }) {
            self.session_answered(reply.status, cx)
        } else {
            self.request_answered(reply, cx)
        };
        self.listen_again(cx);
        outcome
    }

    fn session_answered(&mut self, status: Status, cx: &mut Context<'_>) -> Outcome {
        match status {
            Status::Ok => {
                self.path = Path::Open;
                self.send_unsent(cx);
                let older = |f: &InFlight| f.sent.as_ref().is_some_and(|s| s.epoch < self.epoch);
                let older = self.in_flight.values().any(older);
                self.recheck_at = older.then(|| cx.now + RECHECK);
                Outcome::Opened
            }
            Status::Fenced => Outcome::Fenced,
            _ => {
                self.wait(cx);
                Outcome::Nothing
            }
        }
    }

    fn request_answered(&mut self, reply: Reply, cx: &mut Context<'_>) -> Outcome {
        let number = reply.id.request;
        let link = cx.links.up(&self.primary);
        let Some(request) = self.in_flight.get_mut(&number) else { return Outcome::Nothing };
        let counts =
            request.sent.as_ref().is_some_and(|s| s.server == self.primary && Some(s.link) == link);
        if !counts {
            return Outcome::Nothing;
        }
        let result = match reply.status {
            Status::Ok if request.wire.is_answered_by(&reply.crcs, &reply.data) => Ok(reply.data),
            Status::Ok | Status::BadChecksum => {
                self.delay(number, cx);
                return Outcome::Nothing;
            }
            Status::Moved | Status::NotReady | Status::DriveFailed => {
                request.sent = None;
                self.unsent.insert(number);
                if self.is_open() {
                    self.wait(cx);
                }
                return Outcome::Nothing;
            }
            Status::Fenced => return Outcome::Fenced,
            Status::OutOfRange => Err(GuestError::OutOfRange),
            Status::BadBlock => Err(GuestError::BadBlock),
        };
        self.backoff = cx.timing.retry_min;
        let request = self.in_flight.remove(&number).expect("looked up above");
        Outcome::Completed { part: request.part, result }
    }

    /// Damaged in transit, one way or the other: the same again, a little later.
    fn delay(&mut self, number: u64, cx: &mut Context<'_>) {
        cx.counters.damaged += 1;
        let request = self.in_flight.get_mut(&number).expect("the caller looked it up");
        let doublings = request.damaged.min(16);
        request.damaged = request.damaged.saturating_add(1);
        request.sent = None;
        let wait = cx.timing.retry_min.saturating_mul(1 << doublings).min(cx.timing.retry_max);
        self.delayed.insert((cx.now + wait, number));
    }

    /// The primary is not ready for us: opens the session again after a while.
    fn wait(&mut self, cx: &mut Context<'_>) {
        self.path = Path::Waiting { until: cx.now + self.backoff };
        self.backoff = self.backoff.saturating_mul(2).min(cx.timing.retry_max);
    }

    fn open(&mut self, cx: &mut Context<'_>) {
        self.recheck_at = None;
        if cx.links.up(&self.primary).is_none() {
            self.path = Path::Down;
            return;
        }
        let request = self.next_number();
        self.path = Path::Opening { request };
        let id = RequestId { session: self.number, request };
        let (group, epoch, attach) = (self.group, self.epoch, self.attach);
        let message = DataMessage::OpenSession { group, epoch, attach, id };
        cx.out.push(Action::Send { server: self.primary.clone(), message });
    }

    fn next_number(&mut self) -> u64 {
        self.requests_numbered += 1;
        self.requests_numbered
    }

    fn send_unsent(&mut self, cx: &mut Context<'_>) {
        let link = cx.links.up(&self.primary).expect("an open path has a link");
        for number in std::mem::take(&mut self.unsent) {
            let request = self.in_flight.get_mut(&number).expect("unsent is a part of in_flight");
            let server = self.primary.clone();
            request.sent = Some(Sent { server: server.clone(), link, epoch: self.epoch });
            let id = RequestId { session: self.number, request: number };
            let message = request.wire.message(self.group, self.epoch, id);
            cx.out.push(Action::Send { server, message });
            cx.counters.sent += 1;
        }
    }

    /// Nothing that was sent can be answered any more.
    fn forget_sent(&mut self) {
        self.delayed.clear();
        for (&number, request) in &mut self.in_flight {
            request.sent = None;
            self.unsent.insert(number);
        }
    }

    fn recheck(&mut self, cx: &mut Context<'_>) {
        if self.recheck_at.is_none_or(|at| cx.now < at) {
            return;
        }
        self.recheck_at = None;
        for (&number, request) in &mut self.in_flight {
            if request.sent.as_ref().is_some_and(|s| s.epoch < self.epoch) {
                request.sent = None;
                self.unsent.insert(number);
            }
        }
    }

    /// Whether the primary owes us an answer, or a link.
    fn is_waiting(&self) -> bool {
        !self.is_open() || !self.in_flight.is_empty()
    }

    /// Starts or ends watching for silence.
    fn listen(&mut self, cx: &Context<'_>) {
        if !self.is_waiting() {
            self.silent_at = None;
        } else if self.silent_at.is_none() {
            self.silent_at = Some(cx.now + cx.timing.primary_silence);
        }
    }

    /// As [`Self::listen`], after something was heard.
    fn listen_again(&mut self, cx: &Context<'_>) {
        self.silent_at = None;
        self.probed = None;
        self.listen(cx);
    }

    fn report_silence(&mut self, cx: &mut Context<'_>) {
        self.silent_at = Some(cx.now + REPORT_AGAIN);
        let heard = |since| cx.links.has_heard_since(&self.primary, since);
        let is_up = cx.links.up(&self.primary).is_some();
        let out_of_reach = !is_up || self.probed.is_some_and(|at| !heard(at));
        self.probed = is_up.then_some(cx.now);
        if is_up {
            let server = self.primary.clone();
            cx.out.push(Action::Send { server, message: DataMessage::Ping });
        }
        let message =
            ToManager::PrimarySilent { group: self.group, epoch: self.epoch, out_of_reach };
        cx.out.push(Action::SendManager { message });
        if matches!(self.path, Path::Opening { .. }) {
            self.open(cx);
        }
    }
}

impl Wire {
    fn new(operation: Operation) -> Self {
        match operation {
            Operation::Read(range) => Self::Read(range),
            Operation::Query(range) => Self::Query(range),
            Operation::Write { offset, data } => {
                let change = Change::Write { crcs: block_crcs(&data), data };
                Self::Change { offset, change }
            }
            Operation::Zero(range) => {
                let change = Change::Zero { length: length(&range) };
                Self::Change { offset: range.start, change }
            }
        }
    }

    fn message(&self, group: GroupId, epoch: Epoch, id: RequestId) -> DataMessage {
        match self {
            Self::Read(range) => {
                let (offset, length) = (range.start, length(range));
                DataMessage::Read { group, epoch, id, offset, length }
            }
            Self::Query(range) => {
                let (offset, length) = (range.start, length(range));
                DataMessage::QueryAllocated { group, epoch, id, offset, length }
            }
            Self::Change { offset, change } => {
                let change = change.clone();
                DataMessage::Change { group, epoch, id, offset: *offset, change }
            }
        }
    }

    /// Whether this is what was asked for, undamaged.
    fn is_answered_by(&self, crcs: &[u32], data: &[u8]) -> bool {
        let bytes = u64::try_from(data.len()).expect("usize fits u64");
        match self {
            Self::Read(range) => {
                bytes == range.end - range.start && crcs == block_crcs(data).as_slice()
            }
            Self::Query(range) => {
                let blocks = (range.end - range.start) / BLOCK;
                let intact = crcs.is_empty() || crcs == block_crcs(data).as_slice();
                bytes == blocks.div_ceil(8) && intact
            }
            Self::Change { .. } => true,
        }
    }
}

fn length(range: &Range<u64>) -> u32 {
    u32::try_from(range.end - range.start).expect("parts are cut to fit")
}

/// One CRC32C for each block.
fn block_crcs(data: &[u8]) -> Vec<u32> {
    let block = usize::try_from(BLOCK).expect("a block fits memory");
    data.chunks(block).map(crc32c::crc32c).collect()
}
