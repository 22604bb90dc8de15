//! Links that we keep: whom we dial, and when again.

use std::{fmt, net::SocketAddr, time::Duration};

use model::{id::ServerId, time::Instant};

use super::{LINK_PROVEN_AFTER, REDIAL_MAX, REDIAL_MIN};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LinkName {
    Manager,
    Server(ServerId),
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manager => f.write_str("manager"),
            Self::Server(server) => server.fmt(f),
        }
    }
}

/// Between tries the state is `conn: None`; a redial timer is then set.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) address: SocketAddr,
    pub(super) conn: Option<u64>,
    /// Since when messages may be sent.
    pub(super) up_since: Option<Instant>,
    /// How long to wait after the next failure.
    wait: Duration,
    /// A failure is logged when it begins, not for each try.
    logged: bool,
}

impl Link {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, conn: None, up_since: None, wait: REDIAL_MIN, logged: false }
    }

    pub(super) fn raise(&mut self, now: Instant) {
        self.up_since = Some(now);
        self.logged = false;
    }

    /// The connection is gone. Returns how long to wait before the next try.
    pub(super) fn lower(&mut self, now: Instant) -> Duration {
        self.conn = None;
        let proven = self.up_since.take().is_some_and(|up| now.since(up) >= LINK_PROVEN_AFTER);
        if proven {
            self.wait = REDIAL_MIN;
        }
        let wait = self.wait;
        self.wait = (wait * 2).min(REDIAL_MAX);
        wait
    }

    /// Whether this failure is the first since the link was up.
    pub(super) fn first_failure(&mut self) -> bool {
        !std::mem::replace(&mut self.logged, true)
    }
}
