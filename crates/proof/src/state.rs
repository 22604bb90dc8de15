//! The state that the checker explores: what every party holds, durably or not, and what is on its
//! way between them.
//!
//! Decides: nothing. What the parties do with it is in the module named after each.
//! Invariant: what is compared and hashed is exactly what the protocol can see, and what the
//! properties need of the past. What was merely noted of the last step ([`Notes`]) is neither
//! compared nor hashed.

use crate::{
    client::Client, history::History, manager::Manager, network::Links, primary::Primary,
    server::Server,
};

pub const BLOCKS_MAX: usize = 2;
pub const SERVERS_MAX: usize = 3;
/// The primary of a configuration that nobody ever adopted.
pub const NOBODY: u8 = u8::MAX;

/// A small set of servers, clients, blocks, or writes, by number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Set(u8);

impl Set {
    pub const EMPTY: Self = Self(0);

    pub fn first(count: u8) -> Self {
        (0..count).fold(Self::EMPTY, Self::with)
    }

    pub fn of(item: u8) -> Self {
        Self::EMPTY.with(item)
    }

    pub fn with(self, item: u8) -> Self {
        assert!(item < 8, "sets are of small numbers");
        Self(self.0 | 1 << item)
    }

    pub fn without(self, item: u8) -> Self {
        Self(self.0 & !Self::of(item).0)
    }

    pub fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub fn contains(self, item: u8) -> bool {
        item < 8 && self.0 & 1 << item != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..8).filter(move |&item| self.contains(item))
    }

    pub fn bits(self) -> u8 {
        self.0
    }

    pub fn from_bits(bits: u8) -> Self {
        Self(bits)
    }
}

impl std::fmt::Debug for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// `GroupConfig` of the real code, as far as the protocol looks at it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Config {
    pub epoch: u8,
    pub primary: u8,
    pub mirrors: Set,
    pub learner: Option<u8>,
    pub generation: u8,
    /// The run of the primary's server that it was made for: the manager's `primary_boot`.
    pub boot: u8,
}

impl Config {
    pub const NONE: Self = Self {
        epoch: 0,
        primary: NOBODY,
        mirrors: Set::EMPTY,
        learner: None,
        generation: 0,
        boot: 0,
    };

    pub fn in_sync(&self) -> Set {
        self.mirrors.with(self.primary)
    }

    /// Everybody but the primary.
    pub fn others(&self) -> impl Iterator<Item = u8> {
        self.mirrors.iter().chain(self.learner)
    }

    /// Whom the learner is filled from: a mirror if there is one.
    pub fn source(&self) -> u8 {
        self.mirrors.iter().next().unwrap_or(self.primary)
    }

    pub fn is_learner(&self, server: u8) -> bool {
        self.learner == Some(server)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct ModSeq {
    pub epoch: u8,
    pub sequence: u8,
}

/// What a block holds. Each write has a value of its own, which also is its request number; 0 is
/// what was there at first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Content {
    pub mod_seq: ModSeq,
    pub value: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    pub manager: Manager,
    pub servers: Vec<Server>,
    pub clients: Vec<Client>,
    pub links: Links,
    pub history: History,
    /// What the scope still allows.
    pub crashes_left: u8,
    pub breaks_left: u8,
    pub notes: Notes,
}

impl State {
    pub fn server(&self, server: u8) -> &Server {
        &self.servers[usize::from(server)]
    }

    pub fn server_mut(&mut self, server: u8) -> &mut Server {
        &mut self.servers[usize::from(server)]
    }

    pub fn client(&self, client: u8) -> &Client {
        &self.clients[usize::from(client)]
    }

    pub fn client_mut(&mut self, client: u8) -> &mut Client {
        &mut self.clients[usize::from(client)]
    }

    /// The primary that runs on a server, whatever the manager thinks.
    pub fn primary(&self, server: u8) -> Option<&Primary> {
        self.server(server).primary()
    }
}

/// Something worth knowing to be reachable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Note {
    LateIgnored,
    RepetitionAnswered,
    RefusedBelowPromise,
    SentAgainAfterRefusal,
    Fenced,
    BarrierWaited,
    BecameStale,
    LearnerAdmitted,
    ForwardedToLearner,
    HandedOver,
    CrashLost,
    FilledAgain,
    CompletedByDrop,
}

/// What happened in the last step. It is no part of the state's identity: a state that was
/// reached before without the note is not looked at again with it. So what is reported as reached
/// was reached; what is not, may have been.
#[derive(Clone, Copy, Debug, Default)]
pub struct Notes(u32);

impl Notes {
    pub fn add(&mut self, note: Note) {
        self.0 |= 1 << note as u32;
    }

    pub fn has(self, note: Note) -> bool {
        self.0 & 1 << note as u32 != 0
    }

    pub fn clear(&mut self) {
        self.0 = 0;
    }
}

impl PartialEq for Notes {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Notes {}

impl std::hash::Hash for Notes {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}
