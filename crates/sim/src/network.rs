//! Simulated links: ordered, delayed, and broken when either end dies or a fault strikes.
//!
//! A link belongs to the process that wants it; it is dialled again until it stands. What is in
//! transit when it breaks is lost.

use std::{collections::BTreeMap, time::Duration};

use bds::api::ConnId;
use model::{
    id::{NodeId, ServerId},
    time::Instant,
};

/// A process of the simulated service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Process {
    Manager,
    Server(ServerId),
    Node(NodeId),
}

/// One direction of one link's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life(pub u64);

#[derive(Debug)]
pub struct Link {
    pub life: Life,
    pub up: bool,
    /// How the far end names it: an inbound connection or a control link.
    pub conn: ConnId,
    /// When the last message each way arrives: later ones never overtake it.
    last_out: Instant,
    last_back: Instant,
}

/// All links, by who wants them and to whom.
#[derive(Debug, Default)]
pub struct Network {
    links: BTreeMap<(Process, Process), Link>,
    next: u64,
}

impl Network {
    /// Wants a link; returns its life when it is new and must be dialled.
    pub fn want(&mut self, from: &Process, to: &Process) -> Option<Life> {
        let key = (from.clone(), to.clone());
        if self.links.contains_key(&key) {
            return None;
        }
        self.next += 1;
        let life = Life(self.next);
        let conn = ConnId(self.next);
        let (last_out, last_back) = (Instant::ZERO, Instant::ZERO);
        self.links.insert(key, Link { life, up: false, conn, last_out, last_back });
        Some(life)
    }

    pub fn drop_wanted(&mut self, from: &Process, to: &Process) -> Option<Link> {
        self.links.remove(&(from.clone(), to.clone()))
    }

    pub fn link(&self, from: &Process, to: &Process) -> Option<&Link> {
        self.links.get(&(from.clone(), to.clone()))
    }

    pub fn raise(&mut self, from: &Process, to: &Process, life: Life) -> bool {
        match self.links.get_mut(&(from.clone(), to.clone())) {
            Some(link) if link.life == life && !link.up => {
                link.up = true;
                true
            }
            _ => false,
        }
    }

    /// When a message sent now arrives, or nothing when the link is down.
    pub fn send(
        &mut self,
        from: &Process,
        to: &Process,
        outward: bool,
        now: Instant,
        delay: Duration,
    ) -> Option<(Instant, Life)> {
        let link = self.links.get_mut(&(from.clone(), to.clone()))?;
        if !link.up {
            return None;
        }
        let last = if outward { &mut link.last_out } else { &mut link.last_back };
        *last = (*last).max(now + delay);
        Some((*last, link.life))
    }

    /// Breaks every link that touches a process; links that others still want get a new life.
    /// Returns `(from, to, was up, connection)` of each.
    pub fn break_all(&mut self, process: &Process) -> Vec<(Process, Process, bool, ConnId)> {
        let touched = |k: &&(Process, Process)| k.0 == *process || k.1 == *process;
        let keys: Vec<_> = self.links.keys().filter(touched).cloned().collect();
        keys.into_iter().map(|(from, to)| self.break_link(&from, &to)).collect()
    }

    pub fn break_link(&mut self, from: &Process, to: &Process) -> (Process, Process, bool, ConnId) {
        let link = self.links.remove(&(from.clone(), to.clone())).expect("an existing link");
        (from.clone(), to.clone(), link.up, link.conn)
    }

    pub fn up_links(&self) -> Vec<(Process, Process)> {
        self.links.iter().filter(|(_, l)| l.up).map(|(k, _)| k.clone()).collect()
    }

    pub fn is_current(&self, from: &Process, to: &Process, life: Life) -> bool {
        self.link(from, to).is_some_and(|l| l.life == life && l.up)
    }

    /// Which process wants the inbound connection `conn` of `to`.
    pub fn by_conn(&self, to: &Process, conn: ConnId) -> Option<Process> {
        self.links
            .iter()
            .find(|(k, l)| k.1 == *to && l.conn == conn && l.up)
            .map(|(k, _)| k.0.clone())
    }
}
