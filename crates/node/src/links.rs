//! Links to servers: which are wanted, and whether each is up.
//!
//! Invariant: a link is wanted exactly while some attachment has its primary there. Each time a
//! link comes up it gets a new number, so that an answer is known to belong to what was sent over
//! it since.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use model::{
    id::{ServerId, VolumeId},
    time::Instant,
};

use crate::api::Action;

#[derive(Debug, Default)]
pub struct Links {
    links: BTreeMap<ServerId, Link>,
    numbers_used: u64,
}

#[derive(Debug)]
struct Link {
    address: SocketAddr,
    /// The number since it last came up.
    up: Option<u64>,
    /// When something last came over it.
    heard: Instant,
    users: BTreeSet<VolumeId>,
}

impl Links {
    /// The volume's primary is there. Returns whether that broke a link that others use, because
    /// the server has moved to another address.
    #[must_use]
    pub fn want(
        &mut self,
        volume: VolumeId,
        server: &ServerId,
        address: SocketAddr,
        out: &mut Vec<Action>,
    ) -> bool {
        let connect = Action::Connect { server: server.clone(), address };
        match self.links.get_mut(server) {
            Some(link) if link.address == address => {
                link.users.insert(volume);
                false
            }
            Some(link) => {
                link.users.insert(volume);
                link.address = address;
                link.up = None;
                out.push(Action::Disconnect { server: server.clone() });
                out.push(connect);
                true
            }
            None => {
                let users = BTreeSet::from([volume]);
                self.links.insert(
                    server.clone(),
                    Link { address, up: None, heard: Instant::ZERO, users },
                );
                out.push(connect);
                false
            }
        }
    }

    /// The volume needs the server no more.
    pub fn release(&mut self, volume: VolumeId, server: &ServerId, out: &mut Vec<Action>) {
        let Some(link) = self.links.get_mut(server) else { return };
        link.users.remove(&volume);
        if link.users.is_empty() {
            self.links.remove(server);
            out.push(Action::Disconnect { server: server.clone() });
        }
    }

    pub fn set_up(&mut self, server: &ServerId) {
        if let Some(link) = self.links.get_mut(server) {
            self.numbers_used += 1;
            link.up = Some(self.numbers_used);
        }
    }

    pub fn set_down(&mut self, server: &ServerId) {
        if let Some(link) = self.links.get_mut(server) {
            link.up = None;
        }
    }

    pub fn note_heard(&mut self, server: &ServerId, now: Instant) {
        if let Some(link) = self.links.get_mut(server) {
            link.heard = now;
        }
    }

    /// Whether the server is there: its link is up, and something has come over it since.
    pub fn has_heard_since(&self, server: &ServerId, since: Instant) -> bool {
        self.links.get(server).is_some_and(|link| link.up.is_some() && link.heard >= since)
    }

    /// The number of the link if it is up.
    pub fn up(&self, server: &ServerId) -> Option<u64> {
        self.links.get(server)?.up
    }

    /// Whose primary is there.
    pub fn users(&self, server: &ServerId) -> Vec<VolumeId> {
        self.links.get(server).map(|l| l.users.iter().copied().collect()).unwrap_or_default()
    }
}
