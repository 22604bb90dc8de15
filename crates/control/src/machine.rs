//! The manager's machine: events in, actions out, one commit in flight at a time.
//!
//! Decides: when a decision may be taken and when its consequences may be told.
//! Does not: know the rules themselves; they are functions of the state and of what servers
//! report, in the modules beside this one.
//! Invariants: every decision is taken on durable state; nothing that depends on a write is sent
//! or answered before [`Event::Committed`]; what must be told to a server or node manager is
//! derived again from the state, never remembered, so that nothing is lost with a link or a
//! process.

use std::time::Duration;

use format::{
    ctl::{FromManager, ToManager},
    record::Record,
};
use model::{
    id::AccountId,
    time::{Instant, WallTime},
};

use crate::{
    api::{CallToken, Place},
    http::{HttpRequest, HttpResponse},
    state::{State, Write},
};

/// An inbound control link; the shell numbers them, never reusing a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

#[derive(Debug, Clone)]
pub struct ManagerParams {
    pub cluster: String,
    pub place: Place,
    pub root: RootAccount,
    /// How long a server may be away before its replicas are made anew elsewhere.
    pub remirror_delay: Duration,
    pub timing: Timing,
}

/// The account that exists from the first start on.
#[derive(Clone)]
pub struct RootAccount {
    pub account: AccountId,
    pub access_key: String,
    pub secret: String,
}

/// Leaves the secret out: parameters are logged.
impl std::fmt::Debug for RootAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootAccount").field("account", &self.account).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// A server or node manager that has sent nothing for this long is down.
    pub server_silence: Duration,
    /// Nobody is declared down before this long after the manager's start.
    pub start_grace: Duration,
    /// What is not answered is sent again after this long; also the pace of looking again.
    pub resend: Duration,
    /// A member that the primary calls silent while its server seems up is dropped after this
    /// long.
    pub member_patience: Duration,
    /// A hand-over that has not come to its commit within this long is given up. Must be well
    /// below the primaries' own `hand_over_limit`.
    pub hand_over: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            server_silence: Duration::from_secs(3),
            start_grace: Duration::from_secs(3),
            resend: Duration::from_secs(1),
            member_patience: Duration::from_secs(3),
            hand_over: Duration::from_millis(500),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    LinkOpened {
        link: LinkId,
    },
    LinkClosed {
        link: LinkId,
    },
    LinkReceived {
        link: LinkId,
        message: ToManager,
    },
    HttpReceived {
        call: CallToken,
        request: HttpRequest,
    },
    /// The writes of that commit are durable.
    Committed {
        commit: u64,
    },
    /// `Manager::deadline` has come.
    TimeReached,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Dropped when the link has closed.
    Send {
        link: LinkId,
        message: FromManager,
    },
    CloseLink {
        link: LinkId,
    },
    /// Make all of these durable or none, then report [`Event::Committed`]. There is never more
    /// than one in flight. A store that cannot commit (another manager holds the leader term)
    /// ends this process.
    Commit {
        commit: u64,
        writes: Vec<Write>,
    },
    AnswerHttp {
        call: CallToken,
        response: HttpResponse,
    },
}

/// The manager.
#[derive(Debug)]
pub struct Manager {
    params: ManagerParams,
    state: State,
}

impl Manager {
    /// A manager over what the metadata store holds. `out` gets the first actions.
    pub fn new(
        params: ManagerParams,
        records: Vec<Record>,
        seed: u64,
        now: Instant,
        wall: WallTime,
        out: &mut Vec<Action>,
    ) -> Self {
        let _ = (seed, now, wall, out);
        let mut state = State::default();
        for record in records {
            state.apply(&Write::Put(record));
        }
        Self { params, state }
    }

    pub fn handle(&mut self, now: Instant, wall: WallTime, event: Event, out: &mut Vec<Action>) {
        let _ = (now, wall, event, out, &self.params);
    }

    /// When the machine wants [`Event::TimeReached`], whatever else happens.
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    /// What is durable.
    pub fn state(&self) -> &State {
        &self.state
    }
}
