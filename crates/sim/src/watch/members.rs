//! What a member acknowledges: only changes that came from a primary it obeyed (3, 8).

use std::collections::{BTreeMap, BTreeSet};

use bds::api::{Action, ConnId, Event};
use format::data::DataMessage;
use model::{
    epoch::{Epoch, ModSeq},
    id::ReplicaId,
};

#[derive(Debug, Default)]
pub(super) struct Members {
    /// Under which configuration, and on which connection, each replica last was told to follow.
    follows: BTreeMap<ReplicaId, (Epoch, ConnId)>,
    /// What came from whom it must not follow any more.
    stray: BTreeSet<(ConnId, ReplicaId, ModSeq)>,
    /// What came since a drive last finished anything.
    fresh: BTreeSet<(ConnId, ReplicaId, ModSeq)>,
}

impl Members {
    pub(super) fn handles(&mut self, promised: &BTreeMap<ReplicaId, Epoch>, event: &Event) {
        if let Event::DriveWritten { .. } | Event::DriveFlushed { .. } = event {
            self.fresh.clear();
        }
        let Event::MessageReceived { conn, message } = event else { return };
        match message {
            DataMessage::Adopt { config } => {
                for member in &config.members {
                    let follows =
                        self.follows.entry(member.replica).or_insert((Epoch::NONE, *conn));
                    *follows = (*follows).max((config.epoch, *conn));
                }
            }
            DataMessage::Replicate(replicate) => {
                let replica = replicate.replica;
                let follows = self.follows.get(&replica);
                let promised = promised.get(&replica).copied().unwrap_or(Epoch::NONE);
                let obeyed = follows == Some(&(replicate.epoch, *conn));
                let key = (*conn, replica, replicate.mod_seq);
                self.fresh.insert(key);
                if obeyed && replicate.epoch >= promised {
                    self.stray.remove(&key);
                } else {
                    self.stray.insert(key);
                }
            }
            _ => {}
        }
    }

    pub(super) fn acts(&self, action: &Action) -> Result<(), String> {
        let Action::Reply { conn, message: DataMessage::ReplicateAck { replica, mod_seq, .. } } =
            action
        else {
            return Ok(());
        };
        if self.fresh.contains(&(*conn, *replica, *mod_seq)) {
            return Err(format!(
                "replica {replica} acknowledged change {mod_seq}, and its drives did nothing (6)"
            ));
        }
        if self.stray.contains(&(*conn, *replica, *mod_seq)) {
            return Err(format!(
                "replica {replica} acknowledged change {mod_seq} to a primary that it does not \
                 follow any more (3, 8)"
            ));
        }
        Ok(())
    }
}
