//! A replica that follows a primary: as mirror, or as learner.
//!
//! Decides: whether a change of the primary is obeyed, and when it is acknowledged.
//! Does not: adopt configurations (the replica does, durably, before it lets anything reach this
//! module).
//! Invariants: nothing of an epoch below the promised one is obeyed (3); a change is acknowledged
//! only when it is durable (6); only the connection that the primary last adopted its
//! configuration on is obeyed, because what an older one still holds was sent again since and may
//! undo what followed it.

use engine::api::{OpError, Outcome, Request};
use format::data::{
    DataMessage, DigestQuery, FetchBlocks, FillRegion, MendBlocks, Replicate, Status,
};
use model::{
    epoch::{Epoch, ModSeq},
    id::{GroupId, ReplicaId},
    sabotage::{Sabotage, is_on},
};

use crate::{
    api::ConnId,
    learner::Learner,
    mend::Mender,
    turn::{Op, Turn, refused_unknown},
};

/// What of the replica's durable record decides here.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    pub group: GroupId,
    pub replica: ReplicaId,
    pub promised: Epoch,
    pub adopted: Epoch,
}

#[derive(Debug, Default)]
pub struct Mirror {
    /// The primary's connection, once it has said which configuration it acts under.
    pub conn: Option<ConnId>,
    pub learner: Learner,
    pub mender: Mender,
    /// Changes were withdrawn that came on this connection.
    withdrawn: Option<ConnId>,
}

impl Mirror {
    /// Obeys another connection (or the same one under another configuration) from now on.
    pub fn follow(&mut self, turn: &mut Turn<'_>, conn: ConnId, standing: Standing) {
        self.conn = Some(conn);
        if self.withdrawn.take() == Some(conn) {
            // Behind the acknowledgements of all others, so that just these are sent again. On a
            // new connection everything is.
            let Standing { group, replica, promised, .. } = standing;
            turn.reply(conn, DataMessage::Refused { group, replica, epoch: promised });
        }
        self.learner.cancel();
        self.tell_room(turn, standing);
    }

    /// The primary lets changes that need space wait while there is none here.
    pub fn tell_room(&self, turn: &mut Turn<'_>, standing: Standing) {
        let Some(conn) = self.conn else { return };
        let (Standing { group, replica, .. }, full) = (standing, turn.drive_full);
        turn.reply(conn, DataMessage::Room { group, replica, full });
    }

    /// Whether a message of this epoch from this connection is to be obeyed. An older epoch is
    /// told so.
    fn obeys(&self, turn: &mut Turn<'_>, conn: ConnId, epoch: Epoch, standing: Standing) -> bool {
        let Standing { group, replica, promised, adopted } = standing;
        if epoch < promised && !is_on(Sabotage::PromiseIgnored) {
            turn.reply(conn, DataMessage::Refused { group, replica, epoch: promised });
            return false;
        }
        epoch == adopted && (self.conn == Some(conn) || is_on(Sabotage::OldConnectionObeyed))
    }

    pub fn replicate(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        standing: Standing,
        message: Replicate,
    ) {
        if !self.obeys(turn, conn, message.epoch, standing) {
            return;
        }
        let Replicate { replica, mod_seq, offset, change, .. } = message;
        if is_on(Sabotage::MirrorAcknowledgesEarly) {
            let group = standing.group;
            turn.reply(conn, DataMessage::ReplicateAck { group, replica, mod_seq });
        }
        let request = Request::Change { replica, mod_seq, offset, change };
        turn.request(Op::Apply(conn, mod_seq), request);
    }

    pub fn applied(
        &mut self,
        turn: &mut Turn<'_>,
        (conn, mod_seq): (ConnId, ModSeq),
        standing: Standing,
        outcome: Result<Outcome, OpError>,
    ) {
        let Standing { group, replica, .. } = standing;
        match outcome {
            Ok(_) => turn.reply(conn, DataMessage::ReplicateAck { group, replica, mod_seq }),
            // Damaged on the way. Not acknowledged: the primary will find this member silent.
            Err(OpError::BadChecksum) => {}
            Err(OpError::Withdrawn) => self.withdrawn = Some(conn),
            Err(_) => turn.reply(conn, refused_unknown(group, replica)),
        }
    }

    pub fn digest(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        standing: Standing,
        query: &DigestQuery,
    ) {
        if self.obeys(turn, conn, query.epoch, standing) {
            let &DigestQuery { replica, offset, length, token, .. } = query;
            let length = u64::from(length);
            turn.request(Op::Digest(conn, token), Request::Digest { replica, offset, length });
        }
    }

    pub fn digested(
        &mut self,
        turn: &mut Turn<'_>,
        (conn, token): (ConnId, u64),
        standing: Standing,
        outcome: Result<Outcome, OpError>,
    ) {
        let (status, digest) = match outcome {
            Ok(Outcome::Digest { digest }) => (Status::Ok, digest),
            _ => (Status::DriveFailed, 0),
        };
        let Standing { group, replica, .. } = standing;
        turn.reply(conn, DataMessage::Digest { group, replica, token, status, digest });
    }

    pub fn fetch(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        of: (Standing, u64),
        fetch: &FetchBlocks,
    ) {
        if self.obeys(turn, conn, fetch.epoch, of.0) {
            self.mender.fetch(turn, conn, of, fetch);
        }
    }

    pub fn mend(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        of: (Standing, u64),
        mend: MendBlocks,
    ) {
        if self.obeys(turn, conn, mend.epoch, of.0) {
            self.mender.mend(turn, conn, of, mend);
        }
    }

    pub fn fill(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        standing: Standing,
        fill: FillRegion,
    ) {
        if self.obeys(turn, conn, fill.epoch, standing) {
            self.learner.fill(turn, conn, fill);
        }
    }
}
