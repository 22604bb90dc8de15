//! The source of a learner: sends what differs of a region.
//!
//! Decides: what of a region the learner lacks.
//! Does not: hold changes back (the primary does, until the learner has installed the image).
//! Invariant: an image is of one state of the region: what is read is compared with what was
//! described, and a region that changed in between is refused.

use std::collections::BTreeMap;

use bytes::Bytes;
use engine::api::{OpError, Outcome, Request};
use format::data::{DataMessage, Status, UnitMeta};
use model::id::{GroupId, ReplicaId};

use crate::{
    api::ConnId,
    image::{self, RunRead},
    lock::Range,
    turn::{Op, Turn},
};

/// Regions served at once; a learner asks for its fill window.
const SERVES_MAX: usize = 64;

/// A region that a learner asked for.
#[derive(Debug)]
pub struct Wish {
    pub conn: ConnId,
    pub token: u64,
    pub range: Range,
    pub have: Vec<UnitMeta>,
}

#[derive(Debug)]
struct Serve {
    wish: Wish,
    units: Vec<UnitMeta>,
    reads: Vec<Option<RunRead>>,
}

#[derive(Debug)]
pub struct Source {
    group: GroupId,
    replica: ReplicaId,
    serves: BTreeMap<u64, Serve>,
}

impl Source {
    pub fn new(group: GroupId, replica: ReplicaId) -> Self {
        Self { group, replica, serves: BTreeMap::new() }
    }

    pub fn serve(&mut self, turn: &mut Turn<'_>, wish: Wish) {
        if self.serves.len() >= SERVES_MAX || !image::well_formed(&wish.have, wish.range) {
            return self.refuse(turn, &wish, Status::NotReady);
        }
        let key = turn.token();
        let (offset, length) = (wish.range.start, wish.range.length());
        let request = Request::Describe { replica: self.replica, offset, length };
        turn.request(Op::ServeDescribe(key), request);
        self.serves.insert(key, Serve { wish, units: Vec::new(), reads: Vec::new() });
    }

    pub fn refuse(&self, turn: &mut Turn<'_>, wish: &Wish, status: Status) {
        let (units, data) = (Vec::new(), Bytes::new());
        let (group, token) = (self.group, wish.token);
        let image = DataMessage::RegionImage { group, token, status, units, data };
        turn.reply(wish.conn, image);
    }

    pub fn described(&mut self, turn: &mut Turn<'_>, key: u64, outcome: Result<Outcome, OpError>) {
        let Some(serve) = self.serves.get_mut(&key) else { return };
        let Ok(Outcome::Described { units }) = outcome else {
            return self.give_up(turn, key, Status::NotReady);
        };
        serve.units = image::differing(&serve.wish.have, units);
        let runs = image::runs(&serve.units);
        serve.reads = vec![None; runs.len()];
        for (index, run) in runs.iter().enumerate() {
            let length = u32::try_from(run.length()).expect("a region is below 4 GiB");
            let request = Request::Read { replica: self.replica, offset: run.start, length };
            turn.request(Op::ServeRead(key, index), request);
        }
        self.finish(turn, key);
    }

    pub fn read(
        &mut self,
        turn: &mut Turn<'_>,
        (key, index): (u64, usize),
        outcome: Result<Outcome, OpError>,
    ) {
        let Some(serve) = self.serves.get_mut(&key) else { return };
        let (crcs, data) = match outcome {
            Ok(Outcome::Read { crcs, data }) => (crcs, data),
            Err(OpError::BadBlock { .. }) => return self.give_up(turn, key, Status::BadBlock),
            _ => return self.give_up(turn, key, Status::NotReady),
        };
        let runs = image::runs(&serve.units);
        serve.reads[index] = Some(RunRead { range: runs[index], crcs, data });
        self.finish(turn, key);
    }

    /// Answers when all runs have been read.
    fn finish(&mut self, turn: &mut Turn<'_>, key: u64) {
        let Some(serve) = self.serves.get_mut(&key) else { return };
        if serve.reads.iter().any(Option::is_none) {
            return;
        }
        let reads: Vec<RunRead> = serve.reads.drain(..).flatten().collect();
        let Some(data) = image::gather(&serve.units, &reads) else {
            return self.give_up(turn, key, Status::NotReady);
        };
        let serve = self.serves.remove(&key).expect("looked up above");
        let (group, token, status) = (self.group, serve.wish.token, Status::Ok);
        let image = DataMessage::RegionImage { group, token, status, units: serve.units, data };
        turn.reply(serve.wish.conn, image);
    }

    fn give_up(&mut self, turn: &mut Turn<'_>, key: u64, status: Status) {
        if let Some(serve) = self.serves.remove(&key) {
            self.refuse(turn, &serve.wish, status);
        }
    }
}
