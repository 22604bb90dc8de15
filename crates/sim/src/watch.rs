//! Looks over the shoulder of every machine: rules of the protocol that a guest need not notice the
//! breach of, because another rule catches what comes of it.
//!
//! Decides: whether what a machine is about to do keeps the invariants of `docs/replication.md`.
//! Does not: see the insides of machines, only what they are told and what they answer; or change
//! anything.
//!
//! `records` watches what the manager stores, `members` what replicas promise and acknowledge,
//! `requests` what a primary does for guests. The first breach is kept; the run ends with it.

mod members;
mod records;
mod requests;

use std::collections::{BTreeMap, BTreeSet};

use bds::api as bds_api;
use control::{machine as control_api, state::Write};
use format::{ctl::ToManager, data::DataMessage, record::Record};
use model::{
    epoch::{Epoch, ModSeq},
    id::{GroupId, ReplicaId, ServerId},
    time::Instant,
};

use self::{members::Members, records::Records, requests::Requests};

/// Of one server process, from its start to its end.
#[derive(Debug, Default)]
struct Life {
    members: Members,
    requests: Requests,
}

#[derive(Debug, Default)]
pub struct Watch {
    records: Records,
    lives: BTreeMap<ServerId, Life>,
    /// The highest epoch that a replica has said it promised, and that it adopted: neither is ever
    /// taken back (3).
    promised: BTreeMap<ReplicaId, Epoch>,
    adopted: BTreeMap<ReplicaId, Epoch>,
    /// Which replica has ordered changes in an epoch, in which run of its server (8).
    begun: BTreeMap<(GroupId, Epoch), (ReplicaId, u64)>,
    /// Was primary with changes in flight when another configuration named it mirror, and was not
    /// filled since.
    uncertain: BTreeSet<ReplicaId>,
    wrong: Option<String>,
}

impl Watch {
    /// The first breach, once.
    pub fn take_wrong(&mut self) -> Option<String> {
        self.wrong.take()
    }

    fn must(&mut self, rule: Result<(), String>) {
        if let Err(what) = rule {
            self.wrong.get_or_insert(what);
        }
    }

    pub fn manager_handles(&mut self, now: Instant, event: &control_api::Event) {
        if let control_api::Event::LinkReceived { message, .. } = event {
            self.records.told(now, message);
        }
    }

    /// It asks for what will be stored next.
    pub fn manager_decides(&mut self, now: Instant) {
        self.records.decided = now;
    }

    /// To be called before these become what is stored.
    pub fn commits(&mut self, stored: &BTreeMap<String, Record>, writes: &[Write]) {
        for write in writes {
            let Write::Put(record @ Record::Group(after)) = write else { continue };
            let before = stored.get(&record.key());
            let before = before.and_then(|r| if let Record::Group(g) = r { Some(g) } else { None });
            let rule = self.records.stored(before, after);
            self.must(rule);
        }
    }

    pub fn server_dies(&mut self, server: &ServerId) {
        self.lives.remove(server);
    }

    pub fn server_handles(&mut self, server: &ServerId, now: Instant, event: &bds_api::Event) {
        let life = self.lives.entry(server.clone()).or_default();
        self.uncertain.extend(life.requests.deposed(event));
        if let bds_api::Event::MessageReceived { message: DataMessage::Adopt { config }, .. } =
            event
        {
            for learner in config.learners() {
                self.uncertain.remove(&learner.replica);
            }
        }
        life.requests.handles(now, event);
        life.members.handles(&self.promised, event);
    }

    /// `run` counts the starts of the server.
    pub fn server_acts(
        &mut self,
        (server, run): (&ServerId, u64),
        now: Instant,
        action: &bds_api::Action,
    ) {
        let life = self.lives.entry(server.clone()).or_default();
        let rule = life.members.acts(action).and_then(|()| life.requests.acts(now, action));
        self.must(rule);
        self.must(self.counts(action));
        match action {
            bds_api::Action::SendManager { message } => self.said(message),
            bds_api::Action::Send { message: DataMessage::Replicate(replicate), .. } => {
                self.ordered(server, run, (replicate.group, replicate.mod_seq))
            }
            _ => {}
        }
    }

    /// What was primary with changes in flight, and mirror next, holds what nobody else may have (19).
    fn counts(&self, action: &bds_api::Action) -> Result<(), String> {
        let replica = match action {
            bds_api::Action::Reply {
                message: DataMessage::ReplicateAck { replica, .. }, ..
            }
            | bds_api::Action::SendManager {
                message: ToManager::Promised { replica, .. } | ToManager::Adopted { replica, .. },
            } => replica,
            _ => return Ok(()),
        };
        if self.uncertain.contains(replica) {
            return Err(format!(
                "replica {replica} counts, which was primary with changes in flight before (16, 19)"
            ));
        }
        Ok(())
    }

    /// What a server says of its replicas.
    fn said(&mut self, message: &ToManager) {
        match message {
            ToManager::Promised { replica, epoch, .. } => {
                let promised = self.promised.entry(*replica).or_default();
                *promised = (*promised).max(*epoch);
            }
            ToManager::Adopted { replica, epoch, .. } => {
                let adopted = self.adopted.entry(*replica).or_default();
                *adopted = (*adopted).max(*epoch);
            }
            ToManager::RegisterServer(register) => {
                for report in &register.replicas {
                    let kept = |map: &BTreeMap<_, _>| map.get(&report.replica).copied();
                    let promised = kept(&self.promised).unwrap_or(Epoch::NONE);
                    let adopted = kept(&self.adopted).unwrap_or(Epoch::NONE);
                    if report.promised < promised || report.adopted < adopted {
                        let what = format!(
                            "replica {} promised {promised} and adopted {adopted}, and knows of {} \
                             and {} (3)",
                            report.replica, report.promised, report.adopted
                        );
                        self.must(Err(what));
                    }
                }
            }
            _ => {}
        }
    }

    /// A sequence of an epoch is given by one run of one replica alone (8).
    fn ordered(&mut self, server: &ServerId, run: u64, (group, mod_seq): (GroupId, ModSeq)) {
        let requests = self.lives.get(server).map(|life| &life.requests);
        let Some(primary) = requests.and_then(|r| r.who_ordered(group, mod_seq)) else {
            return;
        };
        let begun = *self.begun.entry((group, mod_seq.epoch())).or_insert((primary, run));
        if begun != (primary, run) {
            let what = format!(
                "changes of epoch {} are ordered by replica {primary} in run {run} of its server, \
                 after replica {} in run {} (8)",
                mod_seq.epoch(),
                begun.0,
                begun.1
            );
            self.must(Err(what));
        }
    }
}
