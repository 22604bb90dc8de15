//! What node managers ask of a primary: writes, reads, and sessions.
//!
//! Decides: what a request is to the sessions, what waits, when a session is open.
//! Does not: order or count changes (`primary`).
//! Invariants: once a session is superseded or its attachment over, its requests are refused for
//! good (10); requests count only from the newest connection that spoke for the session (9); reads
//! wait for the changes they overlap (12).
//!
//! A request that the real primary would put off, because of a lock, a hold, a barrier or a
//! hand-over, stays on its link instead, and what follows it on that link with it.

use crate::{
    breaks::Break,
    model::Turn,
    network::{Conn, Reply, Status},
    primary::{Flight, Phase, Primary, Session},
    state::{Note, Set},
};

/// What a request is to the sessions.
enum Standing {
    New,
    Repeated(usize),
    Acknowledged,
    Refuse(Status),
    Ignore,
}

impl Turn<'_> {
    pub fn answer_write(&mut self, at: u8, conn: Conn, value: u8, status: Status) {
        self.state.links.reply(at, conn, Reply::Written { value, status });
    }

    fn classify(&self, at: u8, conn: Conn, value: u8) -> Standing {
        let primary = self.state.primary(at).expect("the caller found a primary");
        let client = self.state.links.as_client(conn.from).expect("requests come from clients");
        let fenced_served = self.has(Break::FencedServed);
        let Some(session) = primary.session.filter(|s| s.client == client || fenced_served) else {
            let fenced = primary.session.is_some() || primary.past.contains(client);
            return Standing::Refuse(if fenced { Status::Fenced } else { Status::NotReady });
        };
        if session.client == client
            && conn.number < session.conn.number
            && !self.has(Break::OldRequestCounts)
        {
            return Standing::Ignore;
        }
        if self.has(Break::RepetitionForgotten) {
            return Standing::New;
        }
        let same = |f: &Flight| f.content.value == value && f.ticket.is_some();
        if let Some(index) = primary.flights.iter().position(same) {
            Standing::Repeated(index)
        } else if session.done.contains(value - 1) {
            Standing::Acknowledged
        } else {
            Standing::New
        }
    }

    /// Whether a write would have to wait here.
    pub fn waits(&self, at: u8, conn: Conn, epoch: u8, (block, value): (u8, u8)) -> bool {
        let server = self.state.server(at);
        let Some(primary) = server.primary() else { return false };
        if primary.is_deposed() || epoch > server.adopted.epoch {
            return false;
        }
        let held = primary.fill.and_then(|f| f.task).is_some_and(|t| t.block == block);
        let held = held && !self.has(Break::FilledWithoutHold);
        let free = primary.phase == Phase::Serving
            && primary.barrier.is_none()
            && !primary.flies(block)
            && !held;
        !free && matches!(self.classify(at, conn, value), Standing::New)
    }

    pub fn write(&mut self, at: u8, conn: Conn, epoch: u8, (block, value): (u8, u8)) {
        let server = self.state.server(at);
        if server.primary().is_none_or(Primary::is_deposed) {
            return self.answer_write(at, conn, value, Status::Moved);
        }
        if epoch > server.adopted.epoch {
            return self.answer_write(at, conn, value, Status::NotReady);
        }
        let standing = self.classify(at, conn, value);
        if let Standing::Refuse(status) = standing {
            return self.answer_write(at, conn, value, status);
        }
        if matches!(standing, Standing::Ignore) {
            return self.note(Note::LateIgnored);
        }
        let client = self.state.links.as_client(conn.from).expect("requests come from clients");
        let old_counts = self.has(Break::OldRequestCounts);
        if let Some(session) = self.lead(at).session.as_mut().filter(|s| s.client == client)
            && (conn.number > session.conn.number || !old_counts)
        {
            session.conn = conn;
        }
        match standing {
            Standing::New => self.order(at, conn, block, value),
            Standing::Repeated(index) => self.lead(at).flights[index].ticket = Some(conn),
            Standing::Acknowledged => {
                self.note(Note::RepetitionAnswered);
                self.answer_write(at, conn, value, Status::Ok);
            }
            Standing::Refuse(_) | Standing::Ignore => unreachable!("answered above"),
        }
    }

    // Sessions.

    pub fn open_session(&mut self, at: u8, conn: Conn, epoch: u8, generation: u8) {
        let client = self.state.links.as_client(conn.from).expect("requests come from clients");
        let server = self.state.server(at);
        let config = server.adopted;
        let fenced_served = self.has(Break::FencedServed);
        let answer = |status| Reply::Opened { epoch, status };
        let status = match server.primary() {
            None => Status::Moved,
            Some(primary) if primary.is_deposed() => Status::Moved,
            Some(_) if generation < config.generation && !fenced_served => Status::Fenced,
            Some(_) if generation > config.generation || epoch > config.epoch => Status::NotReady,
            Some(primary) if primary.past.contains(client) && !fenced_served => Status::Fenced,
            Some(primary) => match primary.session {
                Some(now) if now.client == client => {
                    if conn.number < now.conn.number {
                        return self.note(Note::LateIgnored);
                    }
                    let primary = self.lead(at);
                    primary.session = Some(Session { conn, ..now });
                    if primary.barrier.is_some() {
                        primary.barrier = Some((conn, epoch));
                        return;
                    }
                    Status::Ok
                }
                Some(now) if conn.number < now.conn.number => Status::Fenced,
                _ => {
                    self.end_session(at);
                    let done = Set::EMPTY;
                    let primary = self.lead(at);
                    primary.session = Some(Session { client, generation, conn, done });
                    if !primary.flights.is_empty() {
                        self.note(Note::BarrierWaited);
                    }
                    if self.has(Break::OpenedEarly) {
                        return self.state.links.reply(at, conn, answer(Status::Ok));
                    }
                    self.lead(at).barrier = Some((conn, epoch));
                    return self.settle_barrier(at);
                }
            },
        };
        self.state.links.reply(at, conn, answer(status));
    }

    pub fn end_session(&mut self, at: u8) {
        let primary = self.lead(at);
        let Some(ended) = primary.session.take() else { return };
        primary.past = primary.past.with(ended.client);
        if let Some((conn, epoch)) = primary.barrier.take() {
            let refused = Reply::Opened { epoch, status: Status::Fenced };
            self.state.links.reply(at, conn, refused);
        }
    }

    pub fn settle_barrier(&mut self, at: u8) {
        let primary = self.lead(at);
        if primary.flights.is_empty()
            && let Some((conn, epoch)) = primary.barrier.take()
        {
            self.state.links.reply(at, conn, Reply::Opened { epoch, status: Status::Ok });
        }
    }

    /// What a client would be answered if it read now: nothing while the read would wait.
    pub fn readable(&self, at: u8, conn: Conn, epoch: u8, block: u8) -> Option<u8> {
        let client = self.state.links.as_client(conn.from)?;
        let server = self.state.server(at);
        let primary = server.primary()?;
        let session = primary.session.filter(|s| s.client == client)?;
        let free = !primary.flies(block) || self.has(Break::ReadsUncommitted);
        let serves = primary.phase == Phase::Serving
            && primary.barrier.is_none()
            && epoch <= server.adopted.epoch
            && conn.number >= session.conn.number;
        (free && serves).then(|| server.visible(block).value)
    }
}
