//! The members as the primary sees them: reachable, silent, refusing.

use std::{collections::BTreeSet, net::SocketAddr};

use format::{ctl::ToManager, data::DataMessage};
use model::{
    epoch::Epoch,
    group::Role,
    id::{ReplicaId, ServerId},
    sabotage::{Sabotage, is_on},
    time::Instant,
};

use crate::turn::Turn;

use super::{Primary, REPEAT, fill::Fill};

#[derive(Debug)]
pub struct Peer {
    pub(super) server: ServerId,
    address: SocketAddr,
    /// When it last acknowledged anything.
    heard: Instant,
    refusal: Option<Refusal>,
    /// Its drive has slots left only for what is in flight. It says so, or that it has room,
    /// whenever it is told a configuration; until then what it said before counts.
    pub(super) is_full: bool,
    /// When the manager was last told that it is silent.
    pub(super) reported: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// It promised a newer epoch, which came to our knowledge at this time.
    Newer(Instant),
    /// It does not have the replica, or may not count.
    Unknown,
}

impl Peer {
    pub(super) fn needs_watching(&self, turn: &Turn<'_>) -> bool {
        self.refusal.is_some() || !turn.links.is_up(&self.server)
    }
}

impl Primary {
    /// Takes up the members of a new configuration, and tells each of it before anything else.
    pub(super) fn meet_members(&mut self, turn: &mut Turn<'_>) {
        let mut before = std::mem::take(&mut self.peers);
        for member in &self.config.members {
            if member.replica == self.id {
                continue;
            }
            let same = |p: &Peer| p.server == member.server && p.address == member.address;
            let peer = match before.remove(&member.replica).filter(same) {
                Some(peer) => Peer { refusal: None, reported: None, ..peer },
                None => Peer {
                    server: member.server.clone(),
                    address: member.address,
                    heard: turn.now,
                    refusal: None,
                    is_full: false,
                    reported: None,
                },
            };
            self.peers.insert(member.replica, peer);
        }
        let servers: BTreeSet<ServerId> = self.peers.values().map(|p| p.server.clone()).collect();
        for server in &servers {
            turn.send(server, DataMessage::Adopt { config: self.config.clone() });
        }
        self.meet_learners(turn);
    }

    fn meet_learners(&mut self, turn: &mut Turn<'_>) {
        let learners: Vec<ReplicaId> = self
            .config
            .members
            .iter()
            .filter(|m| matches!(m.role, Role::Learner { .. }))
            .map(|m| m.replica)
            .collect();
        let known: Vec<ReplicaId> = self.fills.keys().copied().collect();
        for replica in known {
            let goes_on = learners.contains(&replica)
                && self.fills.get(&replica).is_some_and(|fill| !fill.has_failed());
            if goes_on {
                self.restart_tasks(turn, replica);
            } else {
                self.drop_tasks(replica);
                self.fills.remove(&replica);
            }
        }
        for replica in learners {
            self.fills.entry(replica).or_insert_with(|| Fill::new(turn.now));
        }
    }

    fn peers_at(&self, server: &ServerId) -> Vec<ReplicaId> {
        let there = self.peers.iter().filter(|(_, peer)| peer.server == *server);
        there.map(|(&replica, _)| replica).collect()
    }

    /// A link is there (again): what was sent before may be lost.
    pub fn link_up(&mut self, turn: &mut Turn<'_>, server: &ServerId) {
        let replicas = self.peers_at(server);
        if replicas.is_empty() {
            return;
        }
        turn.send(server, DataMessage::Adopt { config: self.config.clone() });
        for replica in replicas {
            let peer = self.peers.get_mut(&replica).expect("listed just now");
            (peer.heard, peer.refusal, peer.reported) = (turn.now, None, None);
            self.reset_fill(turn, replica);
            if !is_on(Sabotage::NotSentAgain) {
                self.resend(turn, replica, Epoch::MAX);
            }
            self.ask_source_again(turn, replica);
        }
        self.ask_mirrors_again(turn, Some(server));
        self.go_on(turn);
    }

    pub fn link_down(&mut self, turn: &mut Turn<'_>, server: &ServerId) {
        for replica in self.peers_at(server) {
            self.reset_fill(turn, replica);
            self.put_off_compare(0);
        }
        self.go_on(turn);
    }

    pub(super) fn heard(&mut self, turn: &Turn<'_>, replica: ReplicaId) {
        if let Some(peer) = self.peers.get_mut(&replica) {
            peer.heard = turn.now;
            peer.reported = None;
        }
    }

    /// A member refuses us. None: it does not count as what we think it is. Newer: this primary
    /// is replaced, or about to learn of a newer configuration. Else it refused what we sent
    /// before we adopted the configuration that it knew already.
    pub(super) fn refused(&mut self, turn: &mut Turn<'_>, replica: ReplicaId, epoch: Epoch) {
        let Some(peer) = self.peers.get_mut(&replica) else { return };
        if epoch > self.config.epoch {
            if !matches!(peer.refusal, Some(Refusal::Newer(_))) {
                peer.refusal = Some(Refusal::Newer(turn.now));
            }
            self.depose(turn);
        } else if epoch == Epoch::NONE {
            peer.refusal = Some(Refusal::Unknown);
            if self.fills.get(&replica).is_some_and(|fill| !fill.counts()) {
                self.fail_fill(turn, replica, "its server does not have it".to_owned());
            }
        } else {
            // What was sent under this epoch or a later one is not what it refuses.
            self.resend(turn, replica, epoch);
        }
    }

    /// Since when a peer has owed us an answer, or could not be reached.
    pub(super) fn silent_since(&self, turn: &Turn<'_>, replica: ReplicaId) -> Option<Instant> {
        let peer = self.peers.get(&replica)?;
        match peer.refusal {
            Some(Refusal::Newer(at)) => return Some(at),
            Some(Refusal::Unknown) => return Some(Instant::ZERO),
            None => {}
        }
        if let Some(since) = turn.links.down_since(&peer.server) {
            return Some(since);
        }
        let owed = self.flights.values().find(|flight| flight.is_owed_to(replica))?;
        Some(owed.since.max(peer.heard))
    }

    /// Whether a member can be reached, does not refuse us, and has acknowledged something since.
    pub(super) fn has_answered_since(
        &self,
        turn: &Turn<'_>,
        replica: ReplicaId,
        since: Instant,
    ) -> bool {
        self.peers.get(&replica).is_some_and(|peer| {
            peer.refusal.is_none() && turn.links.is_up(&peer.server) && peer.heard > since
        })
    }

    /// Reports each member without which nothing is acknowledged, and which does not answer.
    pub(super) fn watch_members(&mut self, turn: &mut Turn<'_>) {
        let members: Vec<ReplicaId> = self.peers.keys().copied().collect();
        for replica in members {
            if !self.config.is_in_sync(replica) {
                continue;
            }
            let silent = self
                .silent_since(turn, replica)
                .is_some_and(|since| turn.now.since(since) >= turn.timing.member_silence);
            let peer = self.peers.get_mut(&replica).expect("listed just now");
            let told = peer.reported.is_some_and(|at| turn.now.since(at) < REPEAT);
            if silent && !told {
                peer.reported = Some(turn.now);
                let (group, epoch) = (self.config.group, self.config.epoch);
                turn.tell(ToManager::MemberSilent { group, epoch, silent: replica });
                if is_on(Sabotage::ShrunkAlone) {
                    self.forgive(turn, replica);
                }
            }
        }
    }
}
