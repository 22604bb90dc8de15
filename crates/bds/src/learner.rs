//! A learner: pulls the regions it is told to fill from the source.
//!
//! Decides: what it asks the source for, and whether an image may be installed.
//! Does not: choose regions or sources, or know when it is in sync (the primary does).
//! Invariant: an image is installed only while the fill that asked for it still stands: a new
//! configuration or connection of the primary cancels every pull, and nothing newer is begun
//! before installations under way have ended (the replica waits for its engine).

use std::collections::BTreeMap;

use bytes::Bytes;
use engine::api::{OpError, Outcome, Request};
use format::data::{DataMessage, FillRegion, Status, UnitMeta};
use model::id::{ReplicaId, ServerId};

use crate::{
    api::ConnId,
    image,
    lock::Range,
    turn::{Op, Turn},
};

/// Pulls at once; the primary's fill window is far below.
const PULLS_MAX: usize = 64;

#[derive(Debug)]
struct Pull {
    conn: ConnId,
    fill: FillRegion,
    /// What it has, once described.
    have: Option<Vec<UnitMeta>>,
    /// Bytes that came from the source.
    moved: u64,
}

impl Pull {
    fn range(&self) -> Range {
        Range::new(self.fill.offset, u64::from(self.fill.length))
    }
}

#[derive(Debug, Default)]
pub struct Learner {
    pulls: BTreeMap<u64, Pull>,
}

impl Learner {
    /// Forgets every pull: answers to them are ignored from now on.
    pub fn cancel(&mut self) {
        self.pulls.clear();
    }

    pub fn knows(&self, pull: u64) -> bool {
        self.pulls.contains_key(&pull)
    }

    pub fn fill(&mut self, turn: &mut Turn<'_>, conn: ConnId, fill: FillRegion) {
        if self.pulls.len() >= PULLS_MAX || fill.length == 0 {
            return done(turn, conn, &fill, Status::NotReady, 0);
        }
        let key = turn.token();
        let (replica, offset) = (fill.replica, fill.offset);
        let length = u64::from(fill.length);
        turn.request(Op::PullDescribe(key), Request::Describe { replica, offset, length });
        self.pulls.insert(key, Pull { conn, fill, have: None, moved: 0 });
    }

    pub fn described(&mut self, turn: &mut Turn<'_>, key: u64, outcome: Result<Outcome, OpError>) {
        let Some(pull) = self.pulls.get_mut(&key) else { return };
        match outcome {
            Ok(Outcome::Described { units }) => pull.have = Some(units),
            _ => return self.end(turn, key, Status::DriveFailed),
        }
        ask(turn, key, pull);
    }

    /// The link to a source is back: whatever was asked for may be lost.
    pub fn link_up(&mut self, turn: &mut Turn<'_>, server: &ServerId) {
        for (&key, pull) in &self.pulls {
            if pull.fill.source_server == *server {
                ask(turn, key, pull);
            }
        }
    }

    pub fn received(
        &mut self,
        turn: &mut Turn<'_>,
        key: u64,
        replica: ReplicaId,
        image: (Status, Vec<UnitMeta>, Bytes),
    ) {
        let (status, units, data) = image;
        let Some(pull) = self.pulls.get_mut(&key) else { return };
        if pull.have.take().is_none() {
            return; // The same image again, after the link came back.
        }
        if status != Status::Ok {
            return self.end(turn, key, status);
        }
        if !image::verified(&units, &data, pull.range()) {
            return self.end(turn, key, Status::BadChecksum);
        }
        if units.is_empty() {
            return self.end(turn, key, Status::Ok);
        }
        pull.moved = data.len() as u64;
        turn.request(Op::PullInstall(key), Request::Install { replica, units, data });
    }

    pub fn installed(&mut self, turn: &mut Turn<'_>, key: u64, outcome: Result<Outcome, OpError>) {
        let status = match outcome {
            Ok(_) => Status::Ok,
            Err(OpError::BadChecksum) => Status::BadChecksum,
            Err(OpError::Withdrawn) => Status::NotReady,
            Err(_) => Status::DriveFailed,
        };
        self.end(turn, key, status);
    }

    fn end(&mut self, turn: &mut Turn<'_>, key: u64, status: Status) {
        if let Some(pull) = self.pulls.remove(&key) {
            done(turn, pull.conn, &pull.fill, status, pull.moved);
        }
    }
}

fn ask(turn: &mut Turn<'_>, key: u64, pull: &Pull) {
    let Some(have) = pull.have.clone() else { return };
    let fill = &pull.fill;
    let message = DataMessage::PullRegion {
        group: fill.group,
        epoch: fill.epoch,
        replica: fill.source,
        token: key,
        offset: fill.offset,
        length: fill.length,
        have,
    };
    turn.send(&fill.source_server, message);
}

fn done(turn: &mut Turn<'_>, conn: ConnId, fill: &FillRegion, status: Status, bytes_moved: u64) {
    let (group, replica, token) = (fill.group, fill.replica, fill.token);
    turn.reply(conn, DataMessage::FillDone { group, replica, token, status, bytes_moved });
}
