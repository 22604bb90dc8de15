//! How much of everything the model explores: what makes the state space finite.
//!
//! Decides: the numbers of servers, guests, writes, failures and configurations, and which of the
//! manager's rules are in force.

use crate::state::Set;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandOvers {
    None,
    /// The old primary serves again only after the manager has given the hand-over up.
    Prompt,
    /// It may do so as well while it is replaced, because the newer configuration is slow to reach it.
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
    /// With the mend of the finding in `docs/replication.md`, "The model".
    pub mended: bool,
    /// Nothing is forgotten: to see that forgetting changes no result.
    pub everything: bool,
}

impl Scope {
    pub fn all_servers(&self) -> Set {
        Set::first(self.servers)
    }

    const SMALL: Self = Self {
        name: "small",
        servers: 2,
        in_sync: 2,
        clients: 1,
        blocks: 1,
        writes: 2,
        epochs: 3,
        crashes: 1,
        breaks: 1,
        failover: true,
        drop: true,
        learn: false,
        abandon: false,
        hand_over: HandOvers::None,
        mended: false,
        everything: false,
    };
}

/// The scopes that the command knows.
pub const SCOPES: &[Scope] = &[Scope::SMALL];
