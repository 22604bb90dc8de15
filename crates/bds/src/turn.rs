//! One turn of a replica's machine: what it sees of the server, and where its wishes go.

use core::net::SocketAddr;
use std::collections::BTreeMap;

use engine::api::Request;
use format::{ctl::ToManager, data::DataMessage};
use model::{
    epoch::ModSeq,
    id::{ReplicaId, ServerId},
    time::Instant,
    units::ByteCount,
};

use crate::api::{Action, ConnId, Timing};

/// Why a request was made of the engine; comes back with its completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// The replica's durable record.
    Record,
    Remove,
    /// What waits for space is not to wait any more.
    Withdraw,
    /// A change of the primary's own.
    Change(ModSeq),
    /// A guest's read or query, by ticket.
    Guest(u64),
    /// A replicated change, to be acknowledged on this connection.
    Apply(ConnId, ModSeq),
    /// A digest that the primary asked for over the wire.
    Digest(ConnId, u64),
    /// The primary's own digest, as source of a learner.
    OwnDigest(u64),
    /// The primary's own digest, to be compared with those of its mirrors.
    CompareDigest(u64),
    /// A good copy of a damaged block, written by the primary for itself.
    Repair(u64),
    /// The same, sent by the primary.
    Mend(u64),
    /// The description of a unit that is looked into, and the read of one block of it.
    ExamineDescribe(u64),
    ExamineRead(u64, u32),
    /// The drive's own pass over what it holds.
    Scrub,
    /// A learner's description of what it has, and the installation of what it pulled.
    PullDescribe(u64),
    PullInstall(u64),
    /// A source's description of its own, and the read of one run of it.
    ServeDescribe(u64),
    ServeRead(u64, usize),
}

/// What was found out about a block, or a range, of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// It does not match its checksum, or cannot be read.
    Bad,
    /// It was written again from a good copy.
    Repaired,
    /// No in-sync replica has a good copy: reading it is an error until it is written.
    Lost,
    /// This mirror holds something else than the primary, with nothing in flight.
    Differs { member: ReplicaId },
}

#[derive(Debug)]
pub struct Turn<'a> {
    pub now: Instant,
    pub timing: Timing,
    pub links: &'a Links,
    pub tokens: &'a mut u64,
    pub out: &'a mut Vec<Action>,
    /// For the engine of the replica's drive, in order.
    pub requests: &'a mut Vec<(Op, Request)>,
    /// What was found out about blocks, by their offset.
    pub findings: &'a mut Vec<(u64, Finding)>,
    /// What the replica occupies on its drive.
    pub allocated: ByteCount,
    /// Its drive has slots left only for what is in flight.
    pub drive_full: bool,
    /// The replica's requests that the engine has not completed.
    pub busy: usize,
    /// How many more learners the server may begin to fill, and whether the replica waits for that.
    pub fill_room: usize,
    pub awaits_fill: bool,
}

impl Turn<'_> {
    pub fn request(&mut self, op: Op, request: Request) {
        self.busy += 1;
        self.requests.push((op, request));
    }

    /// Whether the server may fill one more learner now. If not, the replica has another turn when
    /// it may.
    pub fn may_fill(&mut self) -> bool {
        let has_room = self.fill_room > 0;
        self.fill_room -= usize::from(has_room);
        self.awaits_fill |= !has_room;
        has_room
    }

    pub fn note(&mut self, offset: u64, finding: Finding) {
        self.findings.push((offset, finding));
    }

    pub fn reply(&mut self, conn: ConnId, message: DataMessage) {
        self.out.push(Action::Reply { conn, message });
    }

    /// Only while the link is up: what is sent before would be lost, and is sent on `LinkUp`.
    pub fn send(&mut self, server: &ServerId, message: DataMessage) {
        if self.links.is_up(server) {
            self.out.push(Action::Send { server: server.clone(), message });
        }
    }

    pub fn tell(&mut self, message: ToManager) {
        self.out.push(Action::SendManager { message });
    }

    /// A number that names something once in the life of this process.
    pub fn token(&mut self) -> u64 {
        *self.tokens += 1;
        *self.tokens
    }
}

/// The outbound links that the server's replicas want.
#[derive(Debug, Default)]
pub struct Links {
    links: BTreeMap<ServerId, Link>,
}

#[derive(Debug)]
struct Link {
    address: SocketAddr,
    up: bool,
    /// Of the last change of `up`.
    since: Instant,
}

/// Where a replica wants a link to.
pub type Wanted = BTreeMap<ServerId, SocketAddr>;

impl Links {
    pub fn is_up(&self, server: &ServerId) -> bool {
        self.links.get(server).is_some_and(|l| l.up)
    }

    /// Since when there has been no link; `None` while there is one (or none is wanted).
    pub fn down_since(&self, server: &ServerId) -> Option<Instant> {
        self.links.get(server).filter(|l| !l.up).map(|l| l.since)
    }

    pub fn note(&mut self, server: &ServerId, up: bool, now: Instant) {
        if let Some(link) = self.links.get_mut(server) {
            if link.up != up {
                link.since = now;
            }
            link.up = up;
        }
    }

    /// Makes the links those that are wanted. Returns the servers whose link was given up
    /// because the address is another one now.
    pub fn reconcile(
        &mut self,
        wanted: &Wanted,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> Vec<ServerId> {
        let mut moved = Vec::new();
        self.links.retain(|server, link| {
            let keep = wanted.get(server) == Some(&link.address);
            if !keep {
                out.push(Action::Disconnect { server: server.clone() });
                if wanted.contains_key(server) {
                    moved.push(server.clone());
                }
            }
            keep
        });
        for (server, &address) in wanted {
            if !self.links.contains_key(server) {
                self.links.insert(server.clone(), Link { address, up: false, since: now });
                out.push(Action::Connect { server: server.clone(), address });
            }
        }
        moved
    }
}

/// What a member answers that does not know the replica, or must not act as it.
pub fn refused_unknown(group: model::id::GroupId, replica: ReplicaId) -> DataMessage {
    DataMessage::Refused { group, replica, epoch: model::epoch::Epoch::NONE }
}
