//! Links between servers, and from node managers to servers: TCP, so ordered, on one connection.
//!
//! Decides: what may arrive, and as from which connection.
//! Does not: know what a message means.
//! Invariants: what goes over one connection arrives in order. A connection that breaks may leave
//! what was sent over it in the sockets of the accepting end, which reads it whenever it likes, as
//! from that connection; answers to it are lost. The accepting server numbers connections in the
//! order in which it accepted them.
//!
//! The manager's links are not here: see `manager`.

use crate::state::{Config, ModSeq};

/// An inbound connection as the accepting server knows it. `from`: servers first, then clients.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Conn {
    pub from: u8,
    pub number: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Status {
    Ok,
    Moved,
    NotReady,
    Fenced,
}

/// From whoever dialled to whoever accepted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Message {
    Adopt(Config),
    Replicate { epoch: u8, mod_seq: ModSeq, block: u8, value: u8 },
    FillRegion { epoch: u8, token: u8, block: u8 },
    OpenSession { epoch: u8, generation: u8 },
    Write { epoch: u8, block: u8, value: u8 },
}

/// Back on the same connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reply {
    ReplicateAck(ModSeq),
    Refused { epoch: u8 },
    FillDone { token: u8 },
    Opened { epoch: u8, status: Status },
    Written { value: u8, status: Status },
}

/// From one party to one server.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Link {
    /// Of the present connection; 0: there is none.
    pub number: u8,
    pub forth: Vec<Message>,
    pub back: Vec<Reply>,
    /// What a connection that is no more has left at the accepting end, and its number.
    pub late_number: u8,
    pub late: Vec<Message>,
}

impl Link {
    pub fn is_up(&self) -> bool {
        self.number != 0
    }

    /// The connection breaks. Only what the newest one left is kept: the bound of the model.
    pub fn close(&mut self) {
        self.back.clear();
        let left = std::mem::take(&mut self.forth);
        if !left.is_empty() {
            self.late_number = self.number;
            self.late = left;
        }
        self.number = 0;
    }

    /// The accepting process dies, and its sockets with it.
    pub fn lose(&mut self) {
        *self = Self::default();
    }

    pub fn take_late(&mut self) -> Option<Message> {
        let message = take_first(&mut self.late);
        if self.late.is_empty() {
            self.late_number = 0;
        }
        message
    }
}

pub fn take_first<T>(queue: &mut Vec<T>) -> Option<T> {
    (!queue.is_empty()).then(|| queue.remove(0))
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Links {
    servers: u8,
    links: Vec<Link>,
}

impl Links {
    pub fn new(servers: u8, clients: u8) -> Self {
        let count = usize::from(servers) * usize::from(servers + clients);
        Self { servers, links: vec![Link::default(); count] }
    }

    fn index(&self, from: u8, to: u8) -> usize {
        usize::from(from) * usize::from(self.servers) + usize::from(to)
    }

    pub fn get(&self, from: u8, to: u8) -> &Link {
        &self.links[self.index(from, to)]
    }

    pub fn get_mut(&mut self, from: u8, to: u8) -> &mut Link {
        let index = self.index(from, to);
        &mut self.links[index]
    }

    /// A client as the dialling end of a link.
    pub fn client(&self, client: u8) -> u8 {
        self.servers + client
    }

    pub fn as_client(&self, from: u8) -> Option<u8> {
        from.checked_sub(self.servers)
    }

    pub fn send(&mut self, from: u8, to: u8, message: Message) {
        let link = self.get_mut(from, to);
        if link.is_up() {
            link.forth.push(message);
        }
    }

    /// Answers reach the dialling end only over the present connection.
    pub fn reply(&mut self, to: u8, conn: Conn, reply: Reply) {
        let link = self.get_mut(conn.from, to);
        if link.number == conn.number {
            link.back.push(reply);
        }
    }
}
