//! Data links: which replica a message concerns, and which links are kept.

use format::data::{DataMessage, Status};
use model::{
    id::{GroupId, ReplicaId, ServerId},
    time::Instant,
};

use crate::{
    api::{Action, ConnId},
    replica::Input,
    turn::{Wanted, refused_unknown},
};

use super::{PRIMARY, Server};

impl Server {
    /// A message on an inbound connection: of a node manager, or of another server.
    pub(super) fn received(
        &mut self,
        now: Instant,
        conn: ConnId,
        message: DataMessage,
        out: &mut Vec<Action>,
    ) {
        let (group, replica) = match &message {
            DataMessage::OpenSession { group, epoch, id, .. }
            | DataMessage::Read { group, epoch, id, .. }
            | DataMessage::QueryAllocated { group, epoch, id, .. }
            | DataMessage::Change { group, epoch, id, .. } => {
                let (group, epoch, id) = (*group, *epoch, *id);
                let Some(replica) = self.primary_of(group) else {
                    let (status, crcs, data) = (Status::Moved, Vec::new(), bytes::Bytes::new());
                    let message = DataMessage::Reply { group, epoch, id, status, crcs, data };
                    return out.push(Action::Reply { conn, message });
                };
                return self.turn(now, replica, out, |replica, turn| {
                    let primary = replica.primary_mut().expect("found as primary");
                    primary.guest(turn, conn, message);
                });
            }
            DataMessage::Adopt { config } => {
                let here = |m: &&model::group::Member| m.server == self.params.server;
                let members = config.members.iter().filter(here).filter(|m| m.role != PRIMARY);
                let replicas: Vec<ReplicaId> = members.map(|m| m.replica).collect();
                for replica in replicas {
                    self.pass_to_member(now, conn, (config.group, replica), message.clone(), out);
                }
                return;
            }
            DataMessage::Ping => {
                return out.push(Action::Reply { conn, message: DataMessage::Pong });
            }
            DataMessage::Replicate(r) => (r.group, r.replica),
            DataMessage::FillRegion(f) => (f.group, f.replica),
            DataMessage::QueryDigest(q) => (q.group, q.replica),
            DataMessage::FetchBlocks(f) => (f.group, f.replica),
            DataMessage::MendBlocks(m) => (m.group, m.replica),
            DataMessage::PullRegion { group, replica, .. } => (*group, *replica),
            _ => return,
        };
        self.pass_to_member(now, conn, (group, replica), message, out);
    }

    pub(super) fn pass_to_member(
        &mut self,
        now: Instant,
        conn: ConnId,
        (group, replica): (GroupId, ReplicaId),
        message: DataMessage,
        out: &mut Vec<Action>,
    ) {
        let known = self.replicas.get(&replica).is_some_and(|r| r.group() == group);
        if known {
            let input = Input::Peer(conn, message);
            return self.turn(now, replica, out, |replica, turn| replica.input(turn, input));
        }
        let message = match message {
            DataMessage::PullRegion { token, .. } => {
                let (status, units, data) = (Status::NotReady, Vec::new(), bytes::Bytes::new());
                DataMessage::RegionImage { group, token, status, units, data }
            }
            _ => refused_unknown(group, replica),
        };
        out.push(Action::Reply { conn, message });
    }

    /// A message on an outbound link.
    pub(super) fn answered(&mut self, now: Instant, message: DataMessage, out: &mut Vec<Action>) {
        let group = match &message {
            DataMessage::ReplicateAck { group, .. }
            | DataMessage::Refused { group, .. }
            | DataMessage::FillDone { group, .. }
            | DataMessage::Digest { group, .. }
            | DataMessage::FetchedBlocks { group, .. }
            | DataMessage::Mended { group, .. }
            | DataMessage::BadUnit { group, .. }
            | DataMessage::Room { group, .. }
            | DataMessage::RegionImage { group, .. } => *group,
            _ => return,
        };
        let here: Vec<ReplicaId> = self.here(group).map(|r| r.id).collect();
        if let DataMessage::RegionImage { token, status, units, data, .. } = message {
            let image = (status, units, data);
            let asked = |id: &ReplicaId| self.replicas.get(id).is_some_and(|r| r.awaits(token));
            let Some(replica) = here.into_iter().find(asked) else { return };
            return self.turn(now, replica, out, |replica, turn| replica.image(turn, token, image));
        }
        for replica in here {
            self.turn(now, replica, out, |replica, turn| {
                if let Some(primary) = replica.primary_mut() {
                    primary.received(turn, &message);
                }
            });
        }
    }

    /// Of two primaries of a group here, one is about to learn that it is no more.
    pub(super) fn primary_of(&self, group: GroupId) -> Option<ReplicaId> {
        let leading = self.here(group).filter_map(|r| Some((r.primary()?.epoch(), r.id)));
        leading.max().map(|(_, replica)| replica)
    }

    pub(super) fn link_down(&mut self, now: Instant, server: &ServerId, out: &mut Vec<Action>) {
        self.links.note(server, false, now);
        self.each_replica(now, out, |replica, turn| replica.link_down(turn, server));
    }

    /// Makes the links those that the replicas want now.
    pub(super) fn reconcile_links(&mut self, now: Instant, out: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.links_changed, false) {
            return;
        }
        let mut wanted = Wanted::new();
        for replica in self.replicas.values() {
            replica.add_wanted(&mut wanted);
        }
        for server in self.links.reconcile(&wanted, now, out) {
            self.link_down(now, &server, out);
        }
    }
}
