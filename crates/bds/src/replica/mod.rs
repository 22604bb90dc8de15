//! One replica: its durable promise and configuration, and the role it plays under them.
//!
//! Decides: which configuration it acts under, in which role, and what it refuses.
//! Does not: order or apply changes (primary and mirror do), or choose configurations.
//! Invariants: a promise or configuration is durable before it is acted on or answered; promised
//! and adopted epochs only grow (3); a primary begins only under a configuration that no earlier
//! run of this process adopted, so no sequence is used twice (8); a change of role waits until
//! the engine has completed everything of the old one.

mod record;

use std::collections::VecDeque;

use bytes::Bytes;
use engine::api::{OpError, Outcome, Request};
use format::{
    ctl::{ReplicaReport, ToManager},
    data::{DataMessage, Status, UnitMeta},
    replica::ReplicaRecord,
};
use model::{
    epoch::Epoch,
    group::{GroupConfig, Role as MemberRole},
    id::{GroupId, ReplicaId, ServerId, VolumeId},
    sabotage::{Sabotage, is_on},
    time::Instant,
    units::ByteCount,
};

use crate::{
    api::ConnId,
    damage::Ledger,
    examine::{UNIT_BYTES, unit_start},
    lock::Range,
    mirror::{Mirror, Standing},
    place::Place,
    primary::Primary,
    source::{Source, Wish},
    turn::{Op, Turn, Wanted},
};

use self::record::{Pending, Then, encode, fits};

/// Messages kept while a configuration is being adopted. A primary has far fewer in flight.
const HELD_MAX: usize = 4 * model::limits::IN_FLIGHT_REQUESTS_MAX;

/// A region as a source sent it.
pub type Image = (Status, Vec<UnitMeta>, Bytes);

/// What reaches a replica in an order that matters to its configuration.
#[derive(Debug)]
pub enum Input {
    Created,
    Prepare { epoch: Epoch, as_mirror: bool },
    Configure(GroupConfig),
    HandOver(Epoch),
    Remove,
    Peer(ConnId, DataMessage),
}

#[derive(Debug)]
enum Role {
    Mirror(Mirror),
    Primary(Box<Primary>),
}

/// What became of the replica in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Lives,
    /// It could not be made, or has been removed: forget it.
    Gone,
}

#[derive(Debug)]
pub struct Replica {
    pub id: ReplicaId,
    pub place: Place,
    /// Requests that its engine has not completed.
    pub busy: usize,
    /// The links it wants may be others than before.
    pub links_changed: bool,
    /// It had a turn since a beat looked at it.
    pub touched: bool,
    pub fate: Fate,
    pub damage: Ledger,
    /// The pass of the scrub that was asked for last and is complete.
    pub scrubbed: Option<u64>,
    size: ByteCount,
    record: ReplicaRecord,
    created: bool,
    pending: Option<Pending>,
    held: VecDeque<Input>,
    role: Role,
    source: Source,
}

impl Replica {
    /// A replica that the engine has or is to have. Nothing is done yet.
    pub fn new(id: ReplicaId, place: Place, size: ByteCount, record: ReplicaRecord) -> Self {
        Self {
            id,
            place,
            busy: 0,
            links_changed: false,
            touched: false,
            fate: Fate::Lives,
            damage: Ledger::default(),
            scrubbed: None,
            size,
            created: true,
            pending: None,
            held: VecDeque::new(),
            role: Role::Mirror(Mirror::default()),
            source: Source::new(record.group, id),
            record,
        }
    }

    pub fn create(&mut self, turn: &mut Turn<'_>) {
        self.created = false;
        let (record, size) = (self.record.clone(), self.size);
        let request = Request::CreateReplica { replica: self.id, size, meta: encode(&record) };
        turn.request(Op::Record, request);
        self.pending = Some(Pending { record, size, then: Then::Created, durable: false });
    }

    /// Recovery may have lost acknowledged changes: makes sure that this is not forgotten.
    pub fn mark_stale(&mut self, turn: &mut Turn<'_>) {
        let record = ReplicaRecord { stale: true, ..self.record.clone() };
        self.begin(turn, record, self.size, Then::Nothing);
    }

    /// Goes on as the primary that it was before it restarted: only on purpose.
    pub fn begin_again(&mut self, turn: &mut Turn<'_>) {
        let led = self.record.adopted.as_ref().map(|c| c.primary().replica);
        if led == Some(self.id) && is_on(Sabotage::BegunTwice) {
            self.lead(turn);
        }
    }

    /// Whether the engine has made it, as far as is known.
    pub fn is_created(&self) -> bool {
        self.created
    }

    pub fn record(&self) -> &ReplicaRecord {
        &self.record
    }

    pub fn group(&self) -> GroupId {
        self.record.group
    }

    /// Whether the manager should hear of it: not while it is being made, nor when its content
    /// does not count.
    pub fn is_reported(&self) -> bool {
        let becomes_stale = self.pending.as_ref().is_some_and(|p| p.record.stale);
        let unfit = (self.record.stale || becomes_stale) && !is_on(Sabotage::StalePromises);
        self.created && !unfit
    }

    pub fn report(&self, allocated: ByteCount) -> ReplicaReport {
        ReplicaReport {
            replica: self.id,
            group: self.record.group,
            drive: self.place.first().clone(),
            promised: self.record.promised,
            adopted: self.record.adopted_epoch(),
            allocated,
        }
    }

    pub fn primary(&self) -> Option<&Primary> {
        match &self.role {
            Role::Primary(primary) => Some(primary),
            Role::Mirror(_) => None,
        }
    }

    pub fn primary_mut(&mut self) -> Option<&mut Primary> {
        match &mut self.role {
            Role::Primary(primary) => Some(primary),
            Role::Mirror(_) => None,
        }
    }

    /// Whether it asked for the image of this token, as a learner to be filled.
    pub fn awaits(&self, token: u64) -> bool {
        matches!(&self.role, Role::Mirror(mirror) if mirror.learner.knows(token))
    }

    pub fn image(&mut self, turn: &mut Turn<'_>, token: u64, image: Image) {
        if let Role::Mirror(mirror) = &mut self.role {
            mirror.learner.received(turn, token, self.id, image);
        }
        self.withdraw_if_ending(turn);
    }

    /// Something at this offset cannot be read. The unit around it is looked into, and repaired
    /// from another replica.
    pub fn met_damage(&mut self, turn: &mut Turn<'_>, offset: u64) {
        let standing = self.standing();
        let start = unit_start(offset);
        let unit = Range { start, end: self.size.get().min(start + UNIT_BYTES) };
        match &mut self.role {
            Role::Primary(primary) => primary.met_damage(turn, offset),
            Role::Mirror(mirror) => mirror.mender.met_damage(turn, standing, unit),
        }
    }

    /// Whether damage that was found, or a comparison, is still being looked into.
    pub fn is_checking(&self) -> bool {
        match &self.role {
            Role::Primary(primary) => primary.is_checking(),
            Role::Mirror(mirror) => mirror.mender.is_busy(),
        }
    }

    /// Whether what it holds counts, by the last configuration it adopted.
    pub fn is_in_sync(&self) -> bool {
        let adopted = self.record.adopted.as_ref();
        self.is_reported() && adopted.is_some_and(|config| config.is_in_sync(self.id))
    }

    pub fn volume(&self) -> VolumeId {
        self.record.volume
    }

    pub fn size(&self) -> ByteCount {
        self.size
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.primary().and_then(Primary::deadline)
    }

    /// Links to whoever it must send to: a primary to all members, a learner to those in sync.
    pub fn add_wanted(&self, wanted: &mut Wanted) {
        let Some(config) = &self.record.adopted else { return };
        let is_learner = config.learners().any(|m| m.replica == self.id);
        for member in &config.members {
            let leads = matches!(self.role, Role::Primary(_));
            let pulls = is_learner && config.is_in_sync(member.replica);
            if (leads || pulls) && member.replica != self.id {
                wanted.insert(member.server.clone(), member.address);
            }
        }
    }

    /// Takes an input now, or keeps it until the change of configuration under way is over.
    pub fn input(&mut self, turn: &mut Turn<'_>, input: Input) {
        if self.pending.is_none() {
            return self.take(turn, input);
        }
        if self.held.len() < HELD_MAX {
            self.held.push_back(input);
        } else if let Role::Mirror(mirror) = &mut self.role {
            // Order would be lost with a message: obey nobody until the primary begins again.
            mirror.conn = None;
            self.held.retain(|held| !matches!(held, Input::Peer(..)));
        }
    }

    fn take(&mut self, turn: &mut Turn<'_>, input: Input) {
        match input {
            Input::Created => turn.tell(ToManager::ReplicaCreated { replica: self.id }),
            Input::Prepare { epoch, as_mirror } => self.prepare(turn, epoch, as_mirror),
            Input::Configure(config) => self.configure(turn, config),
            Input::HandOver(epoch) => {
                if let Role::Primary(primary) = &mut self.role {
                    primary.hand_over(turn, epoch);
                }
            }
            Input::Remove => self.remove(turn),
            Input::Peer(conn, message) => self.peer(turn, conn, message),
        }
    }

    fn prepare(&mut self, turn: &mut Turn<'_>, epoch: Epoch, as_mirror: bool) {
        let unfit = self.record.stale && !is_on(Sabotage::StalePromises);
        // What it has adopted already it is asked late, and again.
        if epoch < self.record.promised || epoch <= self.record.adopted_epoch() || unfit {
            return;
        }
        if let Role::Primary(primary) = &mut self.role {
            primary.promised(turn, epoch);
        }
        if as_mirror && self.may_hold_more() && !is_on(Sabotage::PromisedInDoubt) {
            let record = ReplicaRecord { stale: true, ..self.record.clone() };
            return self.begin(turn, record, self.size, Then::TellStale);
        }
        let record = ReplicaRecord { promised: epoch, ..self.record.clone() };
        self.begin(turn, record, self.size, Then::Promised);
    }

    /// Whether it may hold changes that no other member took, from when it was primary: it is so still,
    /// and they are in flight, or it has restarted since, and nobody knows. Another was made primary after
    /// it had stopped, but it may have heard so late of that, that it had gone on.
    fn may_hold_more(&self) -> bool {
        match &self.role {
            Role::Primary(primary) => primary.has_changes_in_flight(),
            Role::Mirror(_) => {
                let led = self.record.adopted.as_ref().map(|c| c.primary().replica);
                led == Some(self.id)
            }
        }
    }

    fn configure(&mut self, turn: &mut Turn<'_>, config: GroupConfig) {
        let unfit = self.record.stale && !is_on(Sabotage::StalePromises);
        if config.check().is_err() || config.group != self.record.group || unfit {
            return;
        }
        if let Role::Primary(primary) = &mut self.role {
            if config.epoch == primary.epoch() {
                return primary.tell_adopted(turn);
            }
            if !primary.may_adopt(&config) {
                return;
            }
        }
        // What an earlier run of this process adopted is not begun again: its sequences are used.
        if config.epoch < self.record.promised || config.epoch <= self.record.adopted_epoch() {
            return;
        }
        let size = self.size.max(config.size);
        let promised = config.epoch;
        let record = ReplicaRecord { promised, adopted: Some(config), ..self.record.clone() };
        if fits(&record) {
            self.begin(turn, record, size, Then::Lead);
        }
    }

    fn remove(&mut self, turn: &mut Turn<'_>) {
        if let Role::Primary(primary) = &mut self.role {
            primary.depose(turn);
        }
        self.begin(turn, self.record.clone(), self.size, Then::Remove);
    }

    fn peer(&mut self, turn: &mut Turn<'_>, conn: ConnId, message: DataMessage) {
        match message {
            DataMessage::Adopt { config } => return self.adopt(turn, conn, config),
            DataMessage::PullRegion { epoch, token, offset, length, have, .. } if length > 0 => {
                let range = Range::new(offset, u64::from(length));
                let wish = Wish { conn, token, range, have };
                return if epoch == self.record.adopted_epoch() {
                    self.source.serve(turn, wish)
                } else {
                    self.source.refuse(turn, &wish, Status::NotReady)
                };
            }
            _ => {}
        }
        let (standing, size) = (self.standing(), self.size.get());
        let Role::Mirror(mirror) = &mut self.role else {
            // An older primary, unless it is this replica that is about to be replaced; then the
            // newer one has to say so first.
            let (group, replica, epoch) = (standing.group, self.id, standing.promised);
            if epoch_of(&message).is_some_and(|e| e < epoch) {
                turn.reply(conn, DataMessage::Refused { group, replica, epoch });
            }
            return;
        };
        match message {
            DataMessage::Replicate(r) => mirror.replicate(turn, conn, standing, r),
            DataMessage::QueryDigest(query) => mirror.digest(turn, conn, standing, &query),
            DataMessage::FillRegion(fill) => mirror.fill(turn, conn, standing, fill),
            DataMessage::FetchBlocks(fetch) => mirror.fetch(turn, conn, (standing, size), &fetch),
            DataMessage::MendBlocks(mend) => mirror.mend(turn, conn, (standing, size), mend),
            _ => {}
        }
    }

    /// A primary says which configuration it acts under.
    fn adopt(&mut self, turn: &mut Turn<'_>, conn: ConnId, config: GroupConfig) {
        let (group, replica) = (self.record.group, self.id);
        let Some(role) = config.member(self.id).map(|m| m.role) else { return };
        if config.check().is_err() || config.group != group || role == MemberRole::Primary {
            return;
        }
        if config.epoch < self.record.promised || config.epoch < self.record.adopted_epoch() {
            let epoch = self.record.promised;
            return turn.reply(conn, DataMessage::Refused { group, replica, epoch });
        }
        match &mut self.role {
            Role::Primary(primary) if config.epoch > primary.epoch() => {
                primary.depose(turn);
            }
            Role::Primary(_) => return,
            Role::Mirror(mirror) => {
                let again = config.epoch == self.record.adopted_epoch();
                if again && mirror.conn.is_some_and(|current| conn < current) {
                    return;
                }
            }
        }
        let was_learner = is_learner(self.record.adopted.as_ref(), self.id);
        let doubtful = self.may_hold_more() && !is_on(Sabotage::StaleForgotten);
        let uncertain = self.record.stale || doubtful;
        let promised = config.epoch;
        if uncertain && role == MemberRole::Mirror && !was_learner {
            let record = ReplicaRecord { promised, stale: true, ..self.record.clone() };
            return self.begin(turn, record, self.size, Then::Refuse(conn));
        }
        let stale = self.record.stale && role != MemberRole::Mirror;
        let size = self.size.max(config.size);
        let record =
            ReplicaRecord { promised, adopted: Some(config), stale, ..self.record.clone() };
        if fits(&record) {
            self.begin(turn, record, size, Then::Follow(conn));
        }
    }

    pub fn completed(&mut self, turn: &mut Turn<'_>, op: Op, outcome: Result<Outcome, OpError>) {
        let standing = self.standing();
        match op {
            Op::Record => return self.record_written(turn, outcome),
            Op::Withdraw => return,
            Op::Remove => {
                turn.tell(ToManager::ReplicaRemoved { replica: self.id });
                self.fate = Fate::Gone;
                return;
            }
            Op::ServeDescribe(key) => return self.source.described(turn, key, outcome),
            Op::ServeRead(key, index) => {
                if let Err(OpError::BadBlock { offset }) = outcome {
                    self.met_damage(turn, offset);
                }
                return self.source.read(turn, (key, index), outcome);
            }
            _ => {}
        }
        match (&mut self.role, op) {
            (Role::Mirror(m), Op::Apply(conn, seq)) => {
                m.applied(turn, (conn, seq), standing, outcome);
            }
            (Role::Mirror(m), Op::Digest(conn, token)) => {
                m.digested(turn, (conn, token), standing, outcome);
            }
            (Role::Mirror(m), Op::ExamineDescribe(key)) => {
                m.mender.described(turn, (m.conn, standing), key, outcome);
            }
            (Role::Mirror(m), Op::ExamineRead(key, block)) => {
                m.mender.read(turn, (m.conn, standing), (key, block), outcome);
            }
            (Role::Mirror(m), Op::Mend(key)) => {
                m.mender.written(turn, (m.conn, standing), key, outcome);
            }
            (Role::Mirror(m), Op::PullDescribe(key)) => m.learner.described(turn, key, outcome),
            (Role::Mirror(m), Op::PullInstall(key)) => m.learner.installed(turn, key, outcome),
            (Role::Primary(p), Op::Change(mod_seq)) => p.own_change_done(turn, mod_seq, outcome),
            (Role::Primary(p), Op::Guest(ticket)) => p.guest_done(turn, ticket, outcome),
            (Role::Primary(p), Op::OwnDigest(token)) => p.own_digest(turn, token, outcome),
            (Role::Primary(p), Op::CompareDigest(token)) => p.compare_digest(turn, token, &outcome),
            (Role::Primary(p), Op::Repair(token)) => p.repair_written(turn, token, &outcome),
            (Role::Primary(p), Op::ExamineDescribe(key)) => p.examine_described(turn, key, outcome),
            (Role::Primary(p), Op::ExamineRead(key, block)) => {
                p.examine_read(turn, (key, block), outcome);
            }
            (_, op) => unreachable!("a role ended before its request {op:?} did"),
        }
    }

    /// Whether it wants to know how full its drive is: a primary that lets changes wait, or one
    /// who follows a primary.
    pub fn minds_room(&self) -> bool {
        match &self.role {
            Role::Primary(primary) => primary.changes_waiting() > 0,
            Role::Mirror(mirror) => mirror.conn.is_some(),
        }
    }

    /// Its drive became full, or has room again.
    pub fn room_changed(&mut self, turn: &mut Turn<'_>) {
        let standing = self.standing();
        match &mut self.role {
            Role::Primary(primary) => primary.room_changed(turn),
            Role::Mirror(mirror) => mirror.tell_room(turn, standing),
        }
    }

    pub fn link_up(&mut self, turn: &mut Turn<'_>, server: &ServerId) {
        match &mut self.role {
            Role::Primary(primary) => primary.link_up(turn, server),
            Role::Mirror(mirror) => mirror.learner.link_up(turn, server),
        }
    }

    pub fn link_down(&mut self, turn: &mut Turn<'_>, server: &ServerId) {
        if let Role::Primary(primary) = &mut self.role {
            primary.link_down(turn, server);
        }
    }

    pub fn time_reached(&mut self, turn: &mut Turn<'_>) {
        if let Role::Primary(primary) = &mut self.role {
            primary.time_reached(turn);
        }
    }

    fn standing(&self) -> Standing {
        Standing {
            group: self.record.group,
            replica: self.id,
            promised: self.record.promised,
            adopted: self.record.adopted_epoch(),
        }
    }
}

fn is_learner(config: Option<&GroupConfig>, replica: ReplicaId) -> bool {
    config.is_some_and(|config| config.learners().any(|m| m.replica == replica))
}

fn epoch_of(message: &DataMessage) -> Option<Epoch> {
    match message {
        DataMessage::Replicate(r) => Some(r.epoch),
        DataMessage::QueryDigest(q) => Some(q.epoch),
        DataMessage::FillRegion(f) => Some(f.epoch),
        DataMessage::FetchBlocks(f) => Some(f.epoch),
        DataMessage::MendBlocks(m) => Some(m.epoch),
        _ => None,
    }
}
