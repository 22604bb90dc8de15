//! The primary: orders changes, and counts who has them.
//!
//! Decides: the order of changes, when a change is acknowledged, what follows from a newer
//! configuration.
//! Does not: talk to node managers (`requests`), or fill learners (`fill`).
//! Invariants: a change is acknowledged only when its own engine, every in-sync member and every
//! learner filled there have it durably (6, 17); a `ModSeq` is given once (8); once a newer epoch is
//! known to be promised, nothing is acknowledged.

use crate::{
    breaks::Break,
    fill::Fill,
    model::Turn,
    network::{Conn, Message, Reply, Status},
    server::{Job, Origin},
    state::{Config, Content, ModSeq, Note, SERVERS_MAX, Set},
};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Phase {
    #[default]
    Serving,
    HandingOver {
        told: bool,
    },
    Deposed,
}

/// Of a node manager: one per client, so the client's number names it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Session {
    pub client: u8,
    pub generation: u8,
    pub conn: Conn,
    /// Writes acknowledged in it.
    pub done: Set,
}

/// A change in flight. That its own engine has it not yet is known from the engine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flight {
    pub block: u8,
    pub content: Content,
    pub client: u8,
    /// Who waits for it; nobody any more after this primary was deposed.
    pub ticket: Option<Conn>,
    /// The epoch under which it was last sent to each member that owes an answer; 0: none is owed.
    pub owed: [u8; SERVERS_MAX],
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Primary {
    pub phase: Phase,
    pub sequence: u8,
    pub session: Option<Session>,
    pub past: Set,
    /// A session that is open as soon as nothing older is in flight: where its answer goes.
    pub barrier: Option<(Conn, u8)>,
    pub flights: Vec<Flight>,
    pub fill: Option<Fill>,
    pub tokens: u8,
}

impl Primary {
    /// With a session of the first client, which is open.
    pub fn leading(conn: Conn) -> Self {
        let session = Session { client: 0, generation: 1, conn, done: Set::EMPTY };
        Self { session: Some(session), ..Self::default() }
    }

    /// Only who is known to hold everything may come to count.
    pub fn may_adopt(&self, own: u8, adopted: &Config, config: &Config) -> bool {
        let known = |mirror| {
            adopted.in_sync().contains(mirror)
                || self.fill.is_some_and(|f| f.learner == mirror && f.ready)
        };
        config.primary == own && config.mirrors.iter().all(known)
    }

    pub fn is_deposed(&self) -> bool {
        self.phase == Phase::Deposed
    }

    pub fn flies(&self, block: u8) -> bool {
        self.flights.iter().any(|flight| flight.block == block)
    }
}

impl Turn<'_> {
    pub fn lead(&mut self, at: u8) -> &mut Primary {
        self.state.server_mut(at).primary_mut().expect("the caller found a primary")
    }

    // Configurations.

    /// A configuration was adopted by the primary that acts already.
    pub fn go_on_under(&mut self, at: u8, before: &Config) {
        let config = self.state.server(at).adopted;
        let keep_fenced = self.has(Break::FencedServed);
        let primary = self.lead(at);
        let was_deposed = primary.is_deposed();
        primary.phase = Phase::Serving;
        primary.sequence = 0;
        if let Some(session) = primary.session
            && session.generation < config.generation
            && !keep_fenced
        {
            self.end_session(at);
        }
        for gone in before.others().filter(|m| !config.others().any(|o| o == *m)) {
            self.state.links.get_mut(at, gone).close();
        }
        self.meet_members(at);
        if was_deposed {
            for member in config.others() {
                self.resend(at, member, u8::MAX);
            }
        }
        self.recount_flights(at);
    }

    /// Tells each member of the configuration before anything else.
    pub fn meet_members(&mut self, at: u8) {
        let config = self.state.server(at).adopted;
        for member in config.others() {
            self.state.links.send(at, member, Message::Adopt(config));
        }
        self.meet_learner(at);
    }

    /// A newer epoch is known to be promised: whoever waits is sent away.
    pub fn depose(&mut self, at: u8) {
        let primary = self.lead(at);
        primary.phase = Phase::Deposed;
        let mut away = Vec::new();
        if let Some((conn, epoch)) = primary.barrier.take() {
            away.push((conn, Reply::Opened { epoch, status: Status::Moved }));
            primary.session = None;
        }
        for flight in &mut primary.flights {
            let reply = Reply::Written { value: flight.content.value, status: Status::Moved };
            away.extend(flight.ticket.take().map(|conn| (conn, reply)));
        }
        for (conn, reply) in away {
            self.state.links.reply(at, conn, reply);
        }
    }

    pub fn asked_to_hand_over(&mut self, at: u8) {
        if let Some(primary) = self.state.server_mut(at).primary_mut()
            && !primary.is_deposed()
        {
            primary.phase = Phase::HandingOver { told: false };
        }
    }

    pub fn may_announce(&self, at: u8) -> bool {
        let Some(primary) = self.state.primary(at) else { return false };
        let drained = primary.flights.is_empty() || self.has(Break::HandedOverInFlight);
        primary.phase == Phase::HandingOver { told: false } && drained
    }

    pub fn announce(&mut self, at: u8) {
        self.lead(at).phase = Phase::HandingOver { told: true };
        let epoch = self.state.server(at).adopted.epoch;
        let manager = &mut self.state.manager;
        if epoch == manager.stored.epoch
            && let Some(hand_over) = &mut manager.hand_over
        {
            hand_over.handed_over = true;
        }
    }

    /// Nothing followed from the hand-over within its time.
    pub fn resume(&mut self, at: u8) {
        self.lead(at).phase = Phase::Serving;
    }

    // Changes.

    /// Whether changes of this block need the member's acknowledgement.
    fn needs(&self, at: u8, member: u8, block: u8) -> bool {
        let filled = |fill: Fill| {
            let forwarded = fill.filled.contains(block) && !self.has(Break::FilledNotForwarded);
            fill.learner == member && (fill.ready || forwarded)
        };
        self.state.server(at).adopted.mirrors.contains(member)
            || self.state.primary(at).and_then(|p| p.fill).is_some_and(filled)
    }

    /// Gives the change its place in the order and sends it everywhere at once.
    pub fn order(&mut self, at: u8, ticket: Conn, block: u8, value: u8) {
        let config = self.state.server(at).adopted;
        let step = u8::from(!self.has(Break::ModSeqReused));
        let primary = self.lead(at);
        primary.sequence = (primary.sequence + step).max(1);
        let mod_seq = ModSeq { epoch: config.epoch, sequence: primary.sequence };
        let content = Content { mod_seq, value };
        let mut owed = [0; SERVERS_MAX];
        let needed: Vec<u8> = config.others().filter(|&m| self.needs(at, m, block)).collect();
        for member in needed {
            owed[usize::from(member)] = config.epoch;
            if config.is_learner(member) {
                self.note(Note::ForwardedToLearner);
            }
        }
        let client = self.state.links.as_client(ticket.from).expect("requests come from clients");
        let flight = Flight { block, content, client, ticket: Some(ticket), owed };
        for member in config.others().filter(|&m| owed[usize::from(m)] > 0) {
            self.send_change(at, member, &flight);
        }
        let server = self.state.server_mut(at);
        server.engine.push(Job { block, content, origin: Origin::Own });
        self.lead(at).flights.push(flight);
        self.finish_flights(at);
    }

    fn send_change(&mut self, at: u8, member: u8, flight: &Flight) {
        let epoch = self.state.server(at).adopted.epoch;
        let Flight { block, content: Content { mod_seq, value }, .. } = *flight;
        let message = Message::Replicate { epoch, mod_seq, block, value };
        self.state.links.send(at, member, message);
    }

    /// Sends again, in order, what a member has not acknowledged and was last sent below `epoch`.
    pub fn resend(&mut self, at: u8, member: u8, below: u8) {
        let epoch = self.state.server(at).adopted.epoch;
        let mut again = Vec::new();
        for flight in &mut self.lead(at).flights {
            let sent = &mut flight.owed[usize::from(member)];
            if (1..below).contains(sent) {
                *sent = epoch;
                again.push(*flight);
            }
        }
        for flight in again {
            self.send_change(at, member, &flight);
        }
    }

    fn acknowledged(&mut self, at: u8, member: u8, mod_seq: ModSeq) {
        for flight in &mut self.lead(at).flights {
            if flight.content.mod_seq == mod_seq {
                flight.owed[usize::from(member)] = 0;
            }
        }
        self.finish_flights(at);
    }

    fn refused(&mut self, at: u8, member: u8, epoch: u8) {
        if epoch > self.state.server(at).adopted.epoch {
            self.depose(at);
        } else if epoch > 0 {
            self.note(Note::SentAgainAfterRefusal);
            self.resend(at, member, epoch);
        }
    }

    /// What is owed to nobody who counts is complete.
    pub fn recount_flights(&mut self, at: u8) {
        let mut flights = std::mem::take(&mut self.lead(at).flights);
        for flight in &mut flights {
            for member in self.model.scope.all_servers().iter() {
                let owed = &mut flight.owed[usize::from(member)];
                if *owed > 0 && !self.needs(at, member, flight.block) {
                    *owed = 0;
                    self.note(Note::CompletedByDrop);
                }
            }
        }
        self.lead(at).flights = flights;
        self.finish_flights(at);
    }

    /// Not in the protocol: a silent member is not waited for before the manager has said so.
    pub fn give_member_up(&mut self, at: u8, member: u8) {
        for flight in &mut self.lead(at).flights {
            flight.owed[usize::from(member)] = 0;
        }
        self.finish_flights(at);
    }

    fn is_everywhere(&self, at: u8, flight: &Flight) -> bool {
        let mut asked = self.state.server(at).engine.iter();
        let own = !asked.any(|job| job.content.mod_seq == flight.content.mod_seq);
        let others = flight.owed.iter().all(|&epoch| epoch == 0);
        (own || self.has(Break::AcknowledgedUnwritten))
            && (others || self.has(Break::AcknowledgedAlone))
    }

    /// Acknowledges the changes that everybody has who must have them.
    pub fn finish_flights(&mut self, at: u8) {
        let Some(primary) = self.state.primary(at).filter(|p| !p.is_deposed()) else { return };
        let done: Vec<Flight> =
            primary.flights.iter().filter(|f| self.is_everywhere(at, f)).copied().collect();
        for flight in done {
            let value = flight.content.value;
            let primary = self.lead(at);
            primary.flights.retain(|f| f.content.mod_seq != flight.content.mod_seq);
            if flight.ticket.is_some()
                && let Some(session) =
                    primary.session.as_mut().filter(|s| s.client == flight.client)
            {
                session.done = session.done.with(value - 1);
            }
            if let Some(conn) = flight.ticket {
                self.answer_write(at, conn, value, Status::Ok);
            }
        }
        self.settle_barrier(at);
    }

    /// A member has answered over its link.
    pub fn answered(&mut self, at: u8, member: u8, reply: Reply) {
        if self.state.primary(at).is_none() {
            return;
        }
        match reply {
            Reply::ReplicateAck(mod_seq) => self.acknowledged(at, member, mod_seq),
            Reply::Refused { epoch } => self.refused(at, member, epoch),
            Reply::FillDone { token } => self.fill_done(at, member, token),
            Reply::Opened { .. } | Reply::Written { .. } => {}
        }
    }
}
