//! What a primary does with the requests of guests, and with regions that it has filled.
//!
//! Changes are told apart by their content, which is unique in a run. Only what goes to members is
//! seen, so a primary that is alone is not watched here.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bds::api::{Action, ConnId, Event};
use format::{
    ctl::{FromManager, ToManager},
    data::{Change, DataMessage, FillRegion, Replicate, RequestId, Status},
};
use model::{
    epoch::{AttachGeneration, Epoch, ModSeq},
    group::GroupConfig,
    id::{GroupId, ReplicaId, ServerId},
    time::Instant,
};

/// A change in flight for so long may wait for space: a barrier does not wait for it.
const STUCK: Duration = Duration::from_millis(450);

/// A change that in-sync members have not all acknowledged.
#[derive(Debug)]
struct Flight {
    group: GroupId,
    content: Option<u64>,
    start: u64,
    end: u64,
    since: Instant,
    owed: BTreeSet<ReplicaId>,
}

#[derive(Debug, Default)]
pub(super) struct Requests {
    /// Of each group, as its primary here acts on it.
    configs: BTreeMap<GroupId, GroupConfig>,
    /// Which replica here has acted as primary in which epoch: a server may hold two of one group.
    led: BTreeMap<(GroupId, Epoch), ReplicaId>,
    /// Named by the manager, and not acted on yet.
    offered: BTreeMap<(GroupId, Epoch), GroupConfig>,
    attach: BTreeMap<u64, AttachGeneration>,
    opening: BTreeSet<RequestId>,
    newest: BTreeMap<u64, ConnId>,
    /// What came on another than its session's newest connection.
    late: BTreeSet<(ConnId, RequestId)>,
    /// What came from a guest that had lost the volume already.
    fenced: BTreeMap<RequestId, AttachGeneration>,
    /// Each change, and what it wants to write.
    wanted: BTreeMap<RequestId, u64>,
    /// Of each content, whose it is, and when it was first asked for: what is sent to a member may have been
    /// in flight for long before that member counted.
    session_of: BTreeMap<u64, (u64, Instant)>,
    /// As what a content was ordered.
    ordered: BTreeMap<u64, ModSeq>,
    flights: BTreeMap<ModSeq, Flight>,
    /// Regions that a learner fills, by learner and token.
    fills: BTreeMap<(ReplicaId, u64), (ServerId, u64, u64)>,
}

fn content(change: &Change) -> Option<u64> {
    let Change::Write { data, .. } = change else { return None };
    Some(u64::from_le_bytes(data.get(..8)?.try_into().expect("eight bytes")))
}

impl Requests {
    /// Which replica here ordered a change.
    pub(super) fn who_ordered(&self, group: GroupId, mod_seq: ModSeq) -> Option<ReplicaId> {
        self.led.get(&(group, mod_seq.epoch())).copied()
    }

    /// A replica that was primary with changes in flight, and is mirror now.
    #[must_use]
    pub(super) fn deposed(&self, event: &Event) -> Option<ReplicaId> {
        let (group, replica) = match event {
            Event::MessageReceived { message: DataMessage::Adopt { config }, .. } => {
                let ours = self.configs.get(&config.group).filter(|o| o.epoch < config.epoch)?;
                let replica = ours.primary().replica;
                (config.group, config.mirrors().map(|m| m.replica).find(|r| *r == replica)?)
            }
            Event::ManagerSent {
                message: FromManager::Prepare { replica, group, as_mirror: true, .. },
            } => {
                let ours = self.configs.get(group)?.primary().replica;
                (*group, Some(*replica).filter(|replica| *replica == ours)?)
            }
            _ => return None,
        };
        self.flights.values().any(|flight| flight.group == group).then_some(replica)
    }

    pub(super) fn handles(&mut self, now: Instant, event: &Event) {
        match event {
            Event::MessageReceived { conn, message } => self.received(now, *conn, message),
            Event::ManagerSent { message: FromManager::Configure { config } } => {
                self.offered.insert((config.group, config.epoch), config.clone());
            }
            Event::LinkReceived { message, .. } => self.answered(message),
            Event::LinkDown { server } => self.fills.retain(|_, (at, ..)| at != server),
            _ => {}
        }
    }

    fn received(&mut self, now: Instant, conn: ConnId, message: &DataMessage) {
        match message {
            DataMessage::OpenSession { attach, id, .. } => {
                self.attach.insert(id.session, *attach);
                self.opening.insert(*id);
                self.came_on(conn, *id);
            }
            DataMessage::Read { group, id, .. } => self.asked(conn, *group, *id),
            DataMessage::Change { group, id, change, .. } => {
                self.asked(conn, *group, *id);
                if let Some(content) = content(change) {
                    self.wanted.insert(*id, content);
                    self.session_of.entry(content).or_insert((id.session, now));
                }
            }
            // Another is primary now, perhaps: what this one knew of requests is gone.
            DataMessage::Adopt { config } => {
                let ours = self.configs.get(&config.group).map(|ours| ours.epoch);
                if ours.is_some_and(|ours| ours < config.epoch) {
                    self.forget(config.group);
                }
            }
            _ => {}
        }
    }

    /// A session belongs to the newest connection that spoke for it.
    fn came_on(&mut self, conn: ConnId, id: RequestId) {
        let newest = self.newest.entry(id.session).or_insert(conn);
        *newest = (*newest).max(conn);
        if conn < *newest {
            self.late.insert((conn, id));
        }
    }

    fn asked(&mut self, conn: ConnId, group: GroupId, id: RequestId) {
        self.came_on(conn, id);
        let attach = self.attach.get(&id.session).copied();
        let wanted = self.configs.get(&group).map(|config| config.attach_generation);
        if let Some(attach) = attach.filter(|attach| wanted.is_some_and(|wanted| *attach < wanted))
        {
            self.fenced.insert(id, attach);
        }
    }

    fn forget(&mut self, group: GroupId) {
        self.configs.remove(&group);
        self.flights.retain(|_, flight| flight.group != group);
        self.ordered.clear();
        self.fills.clear();
    }

    fn answered(&mut self, message: &DataMessage) {
        match message {
            DataMessage::ReplicateAck { replica, mod_seq, .. } => {
                if let Some(flight) = self.flights.get_mut(mod_seq) {
                    flight.owed.remove(replica);
                    if flight.owed.is_empty() {
                        self.flights.remove(mod_seq);
                    }
                }
            }
            DataMessage::FillDone { replica, token, .. } => {
                self.fills.remove(&(*replica, *token));
            }
            _ => {}
        }
    }

    pub(super) fn acts(&mut self, now: Instant, action: &Action) -> Result<(), String> {
        match action {
            Action::Send { message: DataMessage::Replicate(replicate), .. } => {
                self.replicates(now, replicate)
            }
            Action::Send { server, message: DataMessage::FillRegion(region) } => {
                self.fills_region(server, region)
            }
            // The learner forgets what it was asked before it takes that up.
            Action::Send { server, message: DataMessage::Adopt { .. } } => {
                self.fills.retain(|_, (at, ..)| at != server);
                Ok(())
            }
            Action::SendManager { message: ToManager::Adopted { group, replica, epoch } } => {
                self.led.insert((*group, *epoch), *replica);
                if let Some(config) = self.offered.get(&(*group, *epoch)) {
                    self.adopts(config.clone());
                }
                Ok(())
            }
            Action::SendManager { message: ToManager::HandedOver { group, epoch, .. } } => {
                let owed = self.flights.values().any(|flight| flight.group == *group);
                let what = || format!("a hand-over in epoch {epoch} while changes are in flight");
                if owed { Err(what()) } else { Ok(()) }
            }
            Action::SendManager { message: ToManager::Promised { state, .. } } => {
                self.forget(state.group);
                Ok(())
            }
            Action::SendManager { message: ToManager::LearnerFailed { learner, .. } } => {
                self.fills.retain(|(replica, _), _| replica != learner);
                Ok(())
            }
            Action::Reply { conn, message: DataMessage::Reply { id, status, group, .. } }
                if *status == Status::Ok =>
            {
                if self.late.contains(&(*conn, *id)) {
                    return Err("a request on a connection that is no more counted (9)".to_owned());
                }
                self.replies(now, *group, *id)
            }
            _ => Ok(()),
        }
    }

    fn adopts(&mut self, config: GroupConfig) {
        for flight in self.flights.values_mut().filter(|f| f.group == config.group) {
            flight.owed.retain(|replica| config.is_in_sync(*replica));
        }
        self.flights.retain(|_, flight| !flight.owed.is_empty());
        self.fills.retain(|(replica, _), _| config.member(*replica).is_some());
        self.offered.retain(|(group, epoch), _| *group != config.group || *epoch >= config.epoch);
        self.configs.insert(config.group, config);
    }

    fn replicates(&mut self, now: Instant, replicate: &Replicate) -> Result<(), String> {
        let Replicate { group, replica, mod_seq, offset, change, .. } = replicate;
        let Some(config) = self.configs.get(group) else { return Ok(()) };
        // One that has handed over to another on the same server may go on in vain: its members refuse.
        if self.who_ordered(*group, *mod_seq) != Some(config.primary().replica) {
            return Ok(());
        }
        let (start, end) = (*offset, *offset + u64::from(change.length()));
        let held = self.fills.iter().find(|(_, (_, from, to))| *from < end && start < *to);
        if let Some(((learner, _), _)) = held {
            return Err(format!(
                "change {mod_seq} of {start}..{end} went on while learner {learner} fills it (17)"
            ));
        }
        let content = content(change);
        if let Some(content) = content {
            let before = *self.ordered.entry(content).or_insert(*mod_seq);
            if before != *mod_seq {
                return Err(format!(
                    "content {content} was carried out as {before} and as {mod_seq} (9)"
                ));
            }
        }
        if config.is_in_sync(*replica) {
            let asked = content.and_then(|c| self.session_of.get(&c)).map(|(_, at)| *at);
            let since = asked.unwrap_or(now);
            let flight = self.flights.entry(*mod_seq).or_insert_with(|| Flight {
                group: *group,
                content,
                start,
                end,
                since,
                owed: BTreeSet::new(),
            });
            flight.owed.insert(*replica);
        }
        Ok(())
    }

    fn fills_region(&mut self, server: &ServerId, region: &FillRegion) -> Result<(), String> {
        let (start, end) = (region.offset, region.offset + u64::from(region.length));
        let overlapping = self
            .flights
            .iter()
            .find(|(_, f)| f.group == region.group && f.start < end && start < f.end);
        if let Some((mod_seq, _)) = overlapping {
            return Err(format!(
                "{start}..{end} is filled while change {mod_seq} of it is in flight (17)"
            ));
        }
        self.fills.insert((region.replica, region.token), (server.clone(), start, end));
        Ok(())
    }

    fn replies(&mut self, now: Instant, group: GroupId, id: RequestId) -> Result<(), String> {
        if let Some(late) = self.fenced.get(&id) {
            return Err(format!("a request of {late:?} was served that came after the next (10)"));
        }
        if self.opening.remove(&id) {
            let older = self.flights.iter().find(|(_, flight)| {
                flight.group == group
                    && now.since(flight.since) < STUCK
                    && flight
                        .content
                        .and_then(|c| self.session_of.get(&c))
                        .is_some_and(|(session, _)| *session != id.session)
            });
            if let Some((mod_seq, flight)) = older {
                return Err(format!(
                    "session {:x} was opened while change {mod_seq} of another was in flight, for {:?} (10)",
                    id.session,
                    now.since(flight.since)
                ));
            }
        }
        if let Some(content) = self.wanted.remove(&id)
            && let Some(mod_seq) = self.ordered.get(&content)
            && let Some(flight) = self.flights.get(mod_seq)
        {
            return Err(format!(
                "change {mod_seq} was answered though {:?} have not acknowledged it (6)",
                flight.owed
            ));
        }
        Ok(())
    }
}
