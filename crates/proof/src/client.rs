//! A node manager: one attachment, one session, at most one change in flight per block.
//!
//! Decides: when something is sent, and sent again; what an answer means.
//! Does not: choose what guests write: that may be anything.
//! Invariants: nothing is sent before the primary of the known configuration has opened the
//! session; what is sent again keeps its number and goes out in the order of the numbers; what is
//! over a link is unanswered when it breaks.
//!
//! A read is one step, at the primary, over a link on which it would be answered. One that takes
//! longer sees what such a step within its time sees.

use crate::{
    model::{Action, Turn},
    network::{Conn, Message, Reply, Status},
    state::{BLOCKS_MAX, NOBODY, Note},
};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Path {
    /// No link.
    Down,
    Opening,
    Open,
    /// Refused for now: opens again at some time.
    Waiting,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Request {
    pub value: u8,
    pub sent: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Client {
    pub generation: u8,
    /// Of the configuration that it knows; 0: none yet.
    pub epoch: u8,
    pub primary: u8,
    pub path: Path,
    pub in_flight: [Option<Request>; BLOCKS_MAX],
    /// It was fenced.
    pub over: bool,
}

impl Client {
    pub fn new(generation: u8) -> Self {
        Self {
            generation,
            epoch: 0,
            primary: NOBODY,
            path: Path::Down,
            in_flight: [None; BLOCKS_MAX],
            over: false,
        }
    }

    /// Its session is open at this server, under the first configuration.
    pub fn attached_to(&mut self, server: u8) {
        (self.epoch, self.primary, self.path) = (1, server, Path::Open);
    }

    fn forget_sent(&mut self) {
        for request in self.in_flight.iter_mut().flatten() {
            request.sent = false;
        }
    }
}

impl Turn<'_> {
    pub fn client_actions(&self, number: u8, actions: &mut Vec<Action>) {
        let client = self.state.client(number);
        if client.over || client.primary == NOBODY {
            return;
        }
        let from = self.state.links.client(number);
        let link = self.state.links.get(from, client.primary);
        match client.path {
            Path::Down => actions.push(Action::Dial(number)),
            Path::Waiting => actions.push(Action::Reopen(number)),
            Path::Opening | Path::Open => {}
        }
        if link.is_up() && self.state.breaks_left > 0 {
            actions.push(Action::BreakClient(number));
        }
        let scope = &self.model.scope;
        let history = &self.state.history;
        for block in 0..scope.blocks {
            // Blocks are alike, so the first write is to the first.
            let chosen = history.begun > 0 || block == 0;
            let free = client.in_flight[usize::from(block)].is_none() && chosen;
            if history.begun < scope.writes && free && client.path == Path::Open {
                actions.push(Action::Write { client: number, block });
            }
            if self.read_value(number, block).is_some() {
                actions.push(Action::Read { client: number, block });
            }
        }
    }

    /// What a read of this client would find now.
    fn read_value(&self, number: u8, block: u8) -> Option<u8> {
        let client = self.state.client(number);
        let from = self.state.links.client(number);
        let link = self.state.links.get(from, client.primary);
        let superseded = number == 0 && self.state.history.superseded;
        if client.path != Path::Open || superseded || !link.is_up() {
            return None;
        }
        let conn = Conn { from, number: link.number };
        self.readable(client.primary, conn, client.epoch, block)
    }

    pub fn read(&mut self, number: u8, block: u8) {
        let value = self.read_value(number, block).expect("it was found readable");
        self.state.history.read(block, value);
    }

    /// The manager says what the stored configuration is.
    pub fn tell(&mut self, number: u8) {
        let config = self.state.manager.stored;
        let from = self.state.links.client(number);
        let client = self.state.client_mut(number);
        let before = std::mem::replace(&mut client.primary, config.primary);
        client.epoch = config.epoch;
        if before == config.primary {
            if client.path != Path::Down {
                self.open(number);
            }
            return;
        }
        client.path = Path::Down;
        client.forget_sent();
        if before != NOBODY {
            self.state.links.get_mut(from, before).close();
        }
    }

    pub fn dial(&mut self, number: u8) {
        let from = self.state.links.client(number);
        let to = self.state.client(number).primary;
        self.next_connection(from, to);
        self.state.client_mut(number).forget_sent();
        self.open(number);
    }

    pub fn break_client(&mut self, number: u8) {
        let from = self.state.links.client(number);
        let to = self.state.client(number).primary;
        self.state.links.get_mut(from, to).close();
        self.state.breaks_left -= 1;
        self.dial(number);
    }

    /// A server died.
    pub fn link_lost(&mut self, number: u8, server: u8) {
        let client = self.state.client_mut(number);
        if client.primary == server {
            client.path = Path::Down;
            client.forget_sent();
        }
    }

    pub fn open(&mut self, number: u8) {
        let from = self.state.links.client(number);
        let client = self.state.client_mut(number);
        client.path = Path::Opening;
        let (epoch, generation, to) = (client.epoch, client.generation, client.primary);
        self.state.links.send(from, to, Message::OpenSession { epoch, generation });
    }

    /// A guest writes.
    pub fn begin_write(&mut self, number: u8, block: u8) {
        let value = self.state.history.begin(number, block);
        let request = Request { value, sent: false };
        self.state.client_mut(number).in_flight[usize::from(block)] = Some(request);
        if self.state.client(number).path == Path::Open {
            self.send_unsent(number);
        }
    }

    fn send_unsent(&mut self, number: u8) {
        let from = self.state.links.client(number);
        let client = self.state.client_mut(number);
        let (epoch, to) = (client.epoch, client.primary);
        let mut unsent = Vec::new();
        for (block, request) in (0_u8..).zip(&mut client.in_flight) {
            if let Some(request) = request.as_mut().filter(|r| !r.sent) {
                request.sent = true;
                unsent.push((request.value, block));
            }
        }
        unsent.sort_unstable();
        for (value, block) in unsent {
            self.state.links.send(from, to, Message::Write { epoch, block, value });
        }
    }

    /// An answer over the present link to the present primary.
    pub fn told(&mut self, number: u8, reply: Reply) {
        match reply {
            Reply::Opened { epoch, status } => self.session_answered(number, epoch, status),
            Reply::Written { value, status } => self.write_answered(number, value, status),
            Reply::ReplicateAck(_) | Reply::Refused { .. } | Reply::FillDone { .. } => {}
        }
    }

    fn session_answered(&mut self, number: u8, epoch: u8, status: Status) {
        let client = self.state.client_mut(number);
        if client.over || client.path != Path::Opening || client.epoch != epoch {
            return;
        }
        match status {
            Status::Ok => {
                client.path = Path::Open;
                if number > 0 && !self.state.history.superseded {
                    self.state.history.supersede();
                }
                self.send_unsent(number);
            }
            Status::Fenced => self.fenced(number),
            Status::Moved | Status::NotReady => client.path = Path::Waiting,
        }
    }

    fn write_answered(&mut self, number: u8, value: u8, status: Status) {
        let client = self.state.client_mut(number);
        let asked = |r: &Option<Request>| r.is_some_and(|r| r.sent && r.value == value);
        let Some(block) = client.in_flight.iter().position(asked) else { return };
        match status {
            Status::Ok => {
                client.in_flight[block] = None;
                let block = u8::try_from(block).expect("few blocks");
                self.state.history.acknowledge(block, value);
            }
            Status::Fenced => self.fenced(number),
            Status::Moved | Status::NotReady => {
                client.in_flight[block] = Some(Request { value, sent: false });
                if client.path == Path::Open {
                    client.path = Path::Waiting;
                }
            }
        }
    }

    /// Somebody newer holds the volume: it gives everything up.
    fn fenced(&mut self, number: u8) {
        let from = self.state.links.client(number);
        let client = self.state.client_mut(number);
        client.over = true;
        client.path = Path::Down;
        client.in_flight = [None; BLOCKS_MAX];
        let to = client.primary;
        self.state.links.get_mut(from, to).close();
        self.note(Note::Fenced);
    }
}
