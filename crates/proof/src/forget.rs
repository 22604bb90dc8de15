//! What can have no effect any more is forgotten, so that states that differ in nothing else are one.
//!
//! Decides: what that is. Each rule says why it is so for good: it stands on something that only
//! grows, or that ends with the process.
//! Does not: act in a model with a mistake, where what is ignored here might be obeyed.

use crate::{
    model::Turn,
    network::{Message, Reply},
    server::{Origin, Role},
    state::{Config, Note},
};

impl Turn<'_> {
    pub fn forget(&mut self) {
        if !self.model.broken.is_empty() || self.model.scope.everything {
            return;
        }
        let (servers, clients) = (self.model.scope.servers, self.model.scope.clients);
        for to in 0..servers {
            self.forget_promise(to);
            for from in 0..servers + clients {
                self.forget_late(from, to);
                self.forget_answers(from, to);
            }
        }
        self.forget_config();
        (0..servers).for_each(|to| self.forget_numbers(to));
    }

    /// Of the numbers of connections only the order matters, so those in use are made small.
    fn forget_numbers(&mut self, to: u8) {
        let mut used = Vec::new();
        self.each_number(to, |number| used.push(*number));
        used.extend([0]);
        used.sort_unstable();
        used.dedup();
        let rank = |number: u8| {
            let rank = used.binary_search(&number).expect("all were listed");
            u8::try_from(rank).expect("few connections")
        };
        self.each_number(to, |number| *number = rank(*number));
        self.state.server_mut(to).connections = rank(*used.last().expect("zero is in it"));
    }

    /// Everywhere that a connection to this server is named.
    fn each_number(&mut self, to: u8, mut act: impl FnMut(&mut u8)) {
        for from in 0..self.model.scope.servers + self.model.scope.clients {
            let link = self.state.links.get_mut(from, to);
            act(&mut link.number);
            act(&mut link.late_number);
        }
        let server = self.state.server_mut(to);
        for job in &mut server.engine {
            match &mut job.origin {
                Origin::Replicated(conn) | Origin::Installed { conn, .. } => act(&mut conn.number),
                Origin::Own => {}
            }
        }
        match &mut server.role {
            Role::Mirror(mirror) => {
                mirror.conn.iter_mut().for_each(|conn| act(&mut conn.number));
                mirror.pulls.iter_mut().for_each(|pull| act(&mut pull.conn.number));
            }
            Role::Primary(primary) => {
                primary.session.iter_mut().for_each(|session| act(&mut session.conn.number));
                primary.barrier.iter_mut().for_each(|(conn, _)| act(&mut conn.number));
                let tickets = primary.flights.iter_mut().filter_map(|f| f.ticket.as_mut());
                tickets.for_each(|conn| act(&mut conn.number));
            }
        }
    }

    /// Changes below the adopted epoch are refused anyway, and the manager asks for nothing below
    /// the stored one.
    fn forget_promise(&mut self, at: u8) {
        let server = self.state.server_mut(at);
        if server.answered <= server.adopted.epoch {
            server.answered = 0;
        }
    }

    /// The configuration before the stored one, when its primary will not take it any more.
    fn forget_config(&mut self) {
        let before = self.state.manager.before;
        if before.epoch == 0 {
            return;
        }
        let server = self.state.server(before.primary);
        let passed = before.epoch <= server.adopted.epoch || before.epoch < server.promised;
        if passed || before.boot < server.boot || server.stale {
            self.state.manager.before = Config::NONE;
        }
    }

    /// What an older connection left, and will be ignored or answered to nobody.
    fn forget_late(&mut self, from: u8, to: u8) {
        if self.state.links.get(from, to).late.is_empty() {
            return;
        }
        let number = self.state.links.get(from, to).late_number;
        let count = self.state.links.get(from, to).late.len();
        match self.state.links.as_client(from) {
            None => {
                let kept: Vec<Message> = {
                    let late = &self.state.links.get(from, to).late;
                    late.iter().filter(|m| self.may_count(to, number, m)).copied().collect()
                };
                self.state.links.get_mut(from, to).late = kept;
            }
            // A write counts only in a session that was opened on its connection or an older one.
            Some(client) => {
                let session = self.state.primary(to).and_then(|p| p.session);
                let counts = session.is_some_and(|s| s.client == client && s.conn.number <= number);
                let generation = self.state.server(to).adopted.generation;
                let late = &mut self.state.links.get_mut(from, to).late;
                while late.first().is_some_and(|first| match *first {
                    Message::OpenSession { generation: of, .. } => of < generation,
                    Message::Write { .. } => !counts,
                    _ => false,
                }) {
                    late.remove(0);
                }
            }
        }
        let link = self.state.links.get_mut(from, to);
        let ignored = link.late.len() < count;
        if link.late.is_empty() {
            link.late_number = 0;
        }
        if ignored {
            self.note(Note::LateIgnored);
        }
    }

    /// Promises and epochs only grow, and within an epoch so do the connections that are obeyed.
    fn may_count(&self, to: u8, number: u8, message: &Message) -> bool {
        let server = self.state.server(to);
        let epoch = match *message {
            Message::Adopt(config) => config.epoch,
            Message::Replicate { epoch, .. } | Message::FillRegion { epoch, .. } => epoch,
            Message::OpenSession { .. } | Message::Write { .. } => return true,
        };
        let conn = server.mirror().map(|m| m.conn.map_or(0, |c| c.number));
        let obeyed = conn.is_some_and(|conn| conn <= number);
        epoch >= server.promised && (epoch > server.adopted.epoch || obeyed)
    }

    /// Acknowledgements of what is not owed, and what was filled for a task that is over.
    fn forget_answers(&mut self, from: u8, to: u8) {
        if self.state.links.get(from, to).back.is_empty() || from >= self.model.scope.servers {
            return;
        }
        let primary = self.state.primary(from);
        let counts = |reply: &Reply| match *reply {
            Reply::ReplicateAck(mod_seq) => primary.is_some_and(|p| {
                let owes = p.flights.iter().find(|f| f.content.mod_seq == mod_seq);
                owes.is_some_and(|f| f.owed[usize::from(to)] > 0)
            }),
            Reply::FillDone { token } => {
                let task = primary.and_then(|p| p.fill).and_then(|f| f.task);
                task.is_some_and(|t| t.token == token)
            }
            Reply::Refused { .. } => primary.is_some(),
            Reply::Opened { .. } | Reply::Written { .. } => true,
        };
        let back = &self.state.links.get(from, to).back;
        let kept: Vec<Reply> = back.iter().filter(|r| counts(r)).copied().collect();
        self.state.links.get_mut(from, to).back = kept;
    }
}
