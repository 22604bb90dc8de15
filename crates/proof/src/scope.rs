//! How much of everything the model explores: what makes the state space finite.
//!
//! Decides: the numbers of servers, guests, writes, failures and configurations, and which of the
//! manager's rules are in force.

use crate::state::Set;

/// What the old primary of a hand-over does when its second is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandOvers {
    None,
    /// It serves again only if the manager has given the hand-over up.
    Prompt,
    /// It may do so as well while it is replaced, because the newer configuration is slow to reach
    /// it.
    Slow,
    /// It may do so at any time, because its answer was slow to reach the manager.
    Late,
}

#[derive(Clone, Copy, Debug)]
pub struct Scope {
    pub name: &'static str,
    pub servers: u8,
    /// In sync at first; the first is primary.
    pub in_sync: u8,
    pub clients: u8,
    pub blocks: u8,
    pub writes: u8,
    /// The last epoch that the manager may store; it begins with 1.
    pub epochs: u8,
    pub crashes: u8,
    /// Of links, those that die with a process apart.
    pub breaks: u8,
    pub failover: bool,
    /// Mirrors may be dropped.
    pub drop: bool,
    /// Who is not a member may become learner.
    pub learn: bool,
    /// Learners may be taken out of the configuration again.
    pub abandon: bool,
    pub hand_over: HandOvers,
    /// A former primary that may hold more than others does not count. Without that rule: what the model
    /// found, in `docs/replication.md`, "The model".
    pub doubted: bool,
    /// Nothing is forgotten: to see that forgetting changes no result.
    pub everything: bool,
    /// Takes minutes: by command only.
    pub large: bool,
}

impl Scope {
    pub fn all_servers(&self) -> Set {
        Set::first(self.servers)
    }

    /// One write of one guest to a primary with a mirror; nothing fails.
    pub const LEAST: Self = Self {
        name: "least",
        servers: 2,
        in_sync: 2,
        clients: 1,
        blocks: 1,
        writes: 1,
        epochs: 2,
        crashes: 0,
        breaks: 0,
        failover: false,
        drop: false,
        learn: false,
        abandon: false,
        hand_over: HandOvers::None,
        doubted: true,
        everything: false,
        large: false,
    };
}

const TWO: Scope = Scope { writes: 2, ..Scope::LEAST };
const LARGE: Scope = Scope { large: true, ..TWO };
const THREE: Scope = Scope { servers: 3, in_sync: 3, ..LARGE };
const PROMPT: Scope = Scope { hand_over: HandOvers::Prompt, ..LARGE };
const LATE: Scope = Scope { hand_over: HandOvers::Late, ..LARGE };

/// What is explored to the end without a violation.
pub const SCOPES: &[Scope] = &[
    Scope { name: "links", crashes: 1, breaks: 1, failover: true, drop: true, ..TWO },
    Scope { name: "guests", clients: 2, epochs: 3, failover: true, ..TWO },
    Scope { name: "learner", blocks: 2, epochs: 4, drop: true, learn: true, ..TWO },
    Scope { name: "hand-over", epochs: 3, crashes: 1, hand_over: HandOvers::Prompt, ..TWO },
    Scope { name: "crash", epochs: 3, crashes: 1, failover: true, drop: true, ..LARGE },
    Scope { name: "crashes", crashes: 2, breaks: 1, failover: true, drop: true, ..LARGE },
    Scope { name: "guests-crash", clients: 2, epochs: 3, crashes: 1, failover: true, ..LARGE },
    Scope { name: "refill", epochs: 4, failover: true, learn: true, ..LARGE },
    Scope { name: "refill-link", epochs: 4, breaks: 1, drop: true, learn: true, ..LARGE },
    Scope { name: "everybody", epochs: 4, failover: true, learn: true, ..PROMPT },
    Scope { name: "late", epochs: 3, crashes: 1, ..LATE },
    Scope { name: "three", writes: 1, epochs: 3, failover: true, drop: true, ..THREE },
    Scope { name: "three-crash", crashes: 1, failover: true, ..THREE },
    Scope { name: "three-links", breaks: 1, failover: true, drop: true, ..THREE },
    Scope {
        name: "three-refill",
        in_sync: 2,
        epochs: 3,
        failover: true,
        learn: true,
        large: false,
        ..THREE
    },
    Scope {
        name: "three-moves",
        in_sync: 2,
        epochs: 4,
        learn: true,
        drop: true,
        large: false,
        ..THREE
    },
];

/// What has a violation: the finding of `docs/replication.md`, "The model".
pub const FINDINGS: &[Scope] = &[
    Scope { name: "restart", crashes: 1, hand_over: HandOvers::Slow, doubted: false, ..TWO },
    Scope {
        name: "promise",
        clients: 2,
        epochs: 3,
        failover: true,
        hand_over: HandOvers::Slow,
        doubted: false,
        ..TWO
    },
];
