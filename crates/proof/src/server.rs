//! One replica on a server: its durable record and content, its engine, and what it does as mirror.
//!
//! Decides: what it promises, adopts and obeys, and when it acknowledges; what a crash leaves.
//! Does not: order changes (`primary`), or pull what it lacks (`fill`).
//! Invariants: a promise is durable when it is answered, and nothing below it is obeyed (3); a
//! change is acknowledged when it is durable (6); only the connection that the primary last
//! adopted its configuration on is obeyed; a role ends when the engine has completed what it was
//! asked in it.
//!
//! A change of the record is one step: whatever would have to wait for the engine meanwhile stays
//! on its link instead. A server that is down is one to which nothing is delivered, so a crash and
//! the start after it are one step too.

use crate::{
    breaks::Break,
    fill::Pull,
    history::Wrong,
    model::Turn,
    network::{Conn, Reply},
    primary::Primary,
    state::{BLOCKS_MAX, Config, Content, Note},
};

/// Why the engine was asked for a write.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Origin {
    /// A change that this primary ordered.
    Own,
    Replicated(Conn),
    /// An image that a learner pulled.
    Installed {
        conn: Conn,
        token: u8,
    },
}

/// What the engine was asked for and has not made durable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Job {
    pub block: u8,
    pub content: Content,
    pub origin: Origin,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Mirror {
    /// The primary's connection, once it has said which configuration it acts under.
    pub conn: Option<Conn>,
    /// At most one, as one region is filled at a time.
    pub pulls: Vec<Pull>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    Mirror(Mirror),
    Primary(Primary),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Server {
    // Durable.
    pub promised: u8,
    pub adopted: Config,
    pub stale: bool,
    pub blocks: [Content; BLOCKS_MAX],
    // Of this run of the process.
    pub boot: u8,
    pub connections: u8,
    pub engine: Vec<Job>,
    pub role: Role,
    /// The highest promise ever answered. The server does not look at it; (3) does.
    pub answered: u8,
}

impl Server {
    pub fn new(adopted: Config) -> Self {
        Self {
            promised: adopted.epoch,
            adopted,
            stale: false,
            blocks: [Content::default(); BLOCKS_MAX],
            boot: 1,
            connections: 0,
            engine: Vec::new(),
            role: Role::Mirror(Mirror::default()),
            answered: 0,
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

    pub fn mirror(&self) -> Option<&Mirror> {
        match &self.role {
            Role::Mirror(mirror) => Some(mirror),
            Role::Primary(_) => None,
        }
    }

    /// What a read finds: the engine serves what it was asked to write.
    pub fn visible(&self, block: u8) -> Content {
        let asked = self.engine.iter().rev().find(|job| job.block == block);
        asked.map_or(self.blocks[usize::from(block)], |job| job.content)
    }

    /// Whether the engine may complete this before what it was asked earlier.
    pub fn may_complete(&self, index: usize) -> bool {
        let block = self.engine[index].block;
        !self.engine[..index].iter().any(|job| job.block == block)
    }
}

impl Turn<'_> {
    pub fn prepare(&mut self, at: u8, epoch: u8) {
        let server = self.state.server_mut(at);
        if epoch < server.promised || server.stale {
            return;
        }
        if self.would_not_promise(at) {
            self.state.server_mut(at).stale = true;
            self.note(Note::BecameStale);
            return;
        }
        if self.state.server(at).primary().is_some() && epoch > self.state.server(at).adopted.epoch
        {
            self.depose(at);
        }
        let server = self.state.server_mut(at);
        server.promised = epoch;
        server.answered = server.answered.max(epoch);
    }

    /// A replica that led under its last configuration,
    /// and is asked for a promise as mirror, has missed the configuration that made it one. It
    /// counts only if it still knows that nothing was in flight, which it does not after a restart.
    pub fn would_not_promise(&self, at: u8) -> bool {
        let server = self.state.server(at);
        let as_mirror = self.state.manager.stored.mirrors.contains(at);
        let uncertain = server.primary().is_none_or(|p| !p.flights.is_empty());
        self.model.scope.doubted && as_mirror && server.adopted.primary == at && uncertain
    }

    pub fn may_configure(&self, at: u8, config: &Config) -> bool {
        let server = self.state.server(at);
        let newer = config.epoch > server.adopted.epoch && config.epoch >= server.promised;
        // As if the process had begun it by itself, or took it from whoever told it.
        let found = config.epoch == server.adopted.epoch && server.primary().is_none();
        let again = found && self.has(Break::BegunTwice);
        let by_itself = found && self.has(Break::ServesAgain);
        if server.stale || !(newer || again || by_itself) {
            return false;
        }
        let meant = config.boot == server.boot || self.has(Break::RestartOverlooked);
        if !meant && !by_itself {
            return false;
        }
        match &server.role {
            Role::Primary(primary) => {
                primary.may_adopt(at, &server.adopted, config) || self.has(Break::AdoptsAnyMirror)
            }
            Role::Mirror(_) => server.engine.is_empty() || self.has(Break::LeadsAtOnce),
        }
    }

    pub fn configure(&mut self, at: u8, config: Config) {
        let server = self.state.server_mut(at);
        server.promised = config.epoch;
        let before = std::mem::replace(&mut server.adopted, config);
        if server.primary().is_some() {
            return self.go_on_under(at, &before);
        }
        server.role = Role::Primary(Primary::default());
        self.meet_members(at);
    }

    /// A primary says which configuration it acts under.
    pub fn adopt(&mut self, at: u8, conn: Conn, config: Config) {
        let as_mirror = config.mirrors.contains(at);
        if !as_mirror && !config.is_learner(at) {
            return;
        }
        let server = self.state.server(at);
        let (promised, adopted, mut uncertain) = (server.promised, server.adopted, server.stale);
        if config.epoch < promised || config.epoch < adopted.epoch {
            return self.state.links.reply(at, conn, Reply::Refused { epoch: promised });
        }
        let pulls = server.mirror().filter(|_| self.has(Break::PullSurvives));
        let pulls = pulls.map_or_else(Vec::new, |m| m.pulls.clone());
        match &server.role {
            Role::Primary(_) if config.epoch == adopted.epoch => return,
            Role::Primary(primary) => {
                uncertain |= !primary.flights.is_empty() && !self.has(Break::NeverStale);
                self.depose(at);
            }
            Role::Mirror(mirror) => {
                let older = mirror.conn.is_some_and(|c| conn.number < c.number);
                if config.epoch == adopted.epoch && older && !self.has(Break::OldAdoptObeyed) {
                    return self.note(Note::LateIgnored);
                }
                let led = adopted.primary == at && config.epoch > adopted.epoch;
                uncertain |= led && self.model.scope.doubted;
            }
        }
        let was_learner = adopted.is_learner(at);
        let server = self.state.server_mut(at);
        server.promised = config.epoch;
        if uncertain && as_mirror && !was_learner {
            server.stale = true;
            self.note(Note::BecameStale);
            return self.state.links.reply(at, conn, Reply::Refused { epoch: 0 });
        }
        server.stale &= !as_mirror;
        server.adopted = config;
        let was_primary = server.primary().is_some();
        server.role = Role::Mirror(Mirror { conn: Some(conn), pulls });
        if was_primary {
            self.close_links_of(at);
        }
    }

    pub fn replicate(&mut self, at: u8, conn: Conn, epoch: u8, block: u8, content: Content) {
        let server = self.state.server(at);
        let (promised, answered) = (server.promised, server.answered);
        let obeyed = server.mirror().is_some_and(|mirror| {
            mirror.conn == Some(conn) || self.has(Break::OldConnectionObeyed)
        });
        if epoch < promised && !self.has(Break::PromiseIgnored) {
            self.note(Note::RefusedBelowPromise);
            return self.state.links.reply(at, conn, Reply::Refused { epoch: promised });
        }
        if !obeyed || epoch != server.adopted.epoch {
            return self.note(Note::LateIgnored);
        }
        if epoch < answered {
            self.state.history.note(Wrong::PromiseBroken);
        }
        let job = Job { block, content, origin: Origin::Replicated(conn) };
        self.state.server_mut(at).engine.push(job);
        if self.has(Break::AcknowledgedEarly) {
            self.state.links.reply(at, conn, Reply::ReplicateAck(content.mod_seq));
        }
    }

    /// The engine has made something durable.
    pub fn complete(&mut self, at: u8, index: usize) {
        let server = self.state.server_mut(at);
        let job = server.engine.remove(index);
        server.blocks[usize::from(job.block)] = job.content;
        match job.origin {
            Origin::Own => self.finish_flights(at),
            Origin::Replicated(_) if self.has(Break::AcknowledgedEarly) => {}
            Origin::Replicated(conn) => {
                self.state.links.reply(at, conn, Reply::ReplicateAck(job.content.mod_seq));
            }
            Origin::Installed { conn, token } => {
                self.state.links.reply(at, conn, Reply::FillDone { token });
            }
        }
    }

    /// The process dies and starts again. Any part of what its engine had not completed is there.
    pub fn crash(&mut self, at: u8, survived: u8) {
        let server = self.state.server_mut(at);
        let jobs = std::mem::take(&mut server.engine);
        let mut lost = false;
        for (index, job) in jobs.iter().enumerate() {
            if survived & 1 << index == 0 {
                lost = true;
            } else {
                server.blocks[usize::from(job.block)] = job.content;
            }
        }
        server.boot += 1;
        server.connections = 0;
        server.role = Role::Mirror(Mirror::default());
        if self.has(Break::PromiseForgotten) {
            self.state.server_mut(at).promised = self.state.server(at).adopted.epoch;
        }
        self.close_links_of(at);
        let scope = &self.model.scope;
        for from in 0..scope.servers + scope.clients {
            if from != at {
                self.state.links.get_mut(from, at).lose();
            }
            if let Some(client) = self.state.links.as_client(from) {
                self.link_lost(client, at);
            }
        }
        self.state.crashes_left -= 1;
        if lost {
            self.note(Note::CrashLost);
        }
    }

    /// It dials nobody any more.
    fn close_links_of(&mut self, at: u8) {
        for to in self.model.scope.all_servers().without(at).iter() {
            self.state.links.get_mut(at, to).close();
        }
    }

    pub fn next_connection(&mut self, from: u8, to: u8) -> Conn {
        let server = self.state.server_mut(to);
        server.connections += 1;
        let number = server.connections;
        self.state.links.get_mut(from, to).number = number;
        Conn { from, number }
    }
}
