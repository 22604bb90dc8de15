//! Simulated links: ordered, delayed, and broken when either end dies or a fault strikes.
//!
//! A link belongs to the process that wants it; it is dialled again until it stands. What is in
//! transit when it breaks is lost, or comes late, on the old link, when there is a new one already.
//! What is sent in a direction that is cut waits, as it does in a socket, until the cut is healed or the
//! link given up; then each end learns of it in its own time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Life(pub u64);

#[derive(Debug)]
pub struct Link {
    pub life: Life,
    pub up: bool,
    /// The far end has given it up, and this one does not know yet.
    pub abandoned: bool,
    /// How the far end names it: an inbound connection or a control link.
    pub conn: ConnId,
    /// When the last message each way arrives: later ones never overtake it.
    last_out: Instant,
    last_back: Instant,
}

/// A link that is no more, and who believed in it.
#[derive(Debug)]
pub struct Broken {
    pub from: Process,
    pub to: Process,
    pub near: bool,
    pub far: bool,
    pub life: Life,
    pub conn: ConnId,
}

/// All links, by who wants them and to whom.
#[derive(Debug, Default)]
pub struct Network {
    links: BTreeMap<(Process, Process), Link>,
    next: u64,
    /// From whom nothing gets through to whom.
    cuts: BTreeSet<(Process, Process)>,
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
        let (up, abandoned) = (false, false);
        self.links.insert(key, Link { life, up, abandoned, conn, last_out, last_back });
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
    pub fn break_all(&mut self, process: &Process) -> Vec<Broken> {
        let touched = |k: &&(Process, Process)| k.0 == *process || k.1 == *process;
        let keys: Vec<_> = self.links.keys().filter(touched).cloned().collect();
        keys.into_iter().map(|(from, to)| self.break_link(&from, &to)).collect()
    }

    pub fn break_link(&mut self, from: &Process, to: &Process) -> Broken {
        let link = self.links.remove(&(from.clone(), to.clone())).expect("an existing link");
        Broken {
            from: from.clone(),
            to: to.clone(),
            near: link.up || link.abandoned,
            far: link.up,
            life: link.life,
            conn: link.conn,
        }
    }

    /// The far end gives the link up: nothing comes of it any more, and the near end still
    /// believes in it. Returns its connection.
    pub fn abandon(&mut self, from: &Process, to: &Process, life: Life) -> Option<ConnId> {
        let link = self.links.get_mut(&(from.clone(), to.clone()))?;
        if link.life != life || !link.up {
            return None;
        }
        link.up = false;
        link.abandoned = true;
        Some(link.conn)
    }

    /// Nothing gets through from the one to the other until this is healed.
    pub fn cut(&mut self, from: &Process, to: &Process) {
        self.cuts.insert((from.clone(), to.clone()));
    }

    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    pub fn is_cut(&self, from: &Process, to: &Process) -> bool {
        self.cuts.contains(&(from.clone(), to.clone()))
    }

    /// Whether a link between the two cannot live.
    pub fn is_severed(&self, one: &Process, other: &Process) -> bool {
        self.is_cut(one, other) || self.is_cut(other, one)
    }

    pub fn life(&self, from: &Process, to: &Process) -> Option<Life> {
        self.link(from, to).map(|link| link.life)
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
