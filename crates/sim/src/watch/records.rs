//! What the manager stores, judged by what it had been told.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use format::{ctl::ToManager, record::Group};
use model::{
    epoch::Epoch,
    id::{GroupId, ReplicaId},
    time::Instant,
};

/// A primary that has stopped for a hand-over goes on by itself after a second of its own clock, which
/// may be 10 % fast.
const STOPPED: Duration = Duration::from_millis(1_100);

/// What had reached the manager.
#[derive(Debug)]
pub(super) struct Records {
    promised: BTreeMap<ReplicaId, Epoch>,
    /// In which epoch a primary last called a learner ready.
    ready: BTreeMap<ReplicaId, Epoch>,
    /// The last epoch of which a primary said that it stopped in it.
    handed_over: BTreeMap<GroupId, (Epoch, Instant)>,
    /// When what is stored next was decided.
    pub(super) decided: Instant,
    adopted: BTreeMap<GroupId, Epoch>,
    /// Since which epoch a replica has been learner without a break.
    learner_since: BTreeMap<ReplicaId, Epoch>,
}

impl Default for Records {
    fn default() -> Self {
        Self {
            promised: BTreeMap::new(),
            ready: BTreeMap::new(),
            handed_over: BTreeMap::new(),
            decided: Instant::ZERO,
            adopted: BTreeMap::new(),
            learner_since: BTreeMap::new(),
        }
    }
}

impl Records {
    pub(super) fn told(&mut self, now: Instant, message: &ToManager) {
        match message {
            ToManager::Promised { replica, epoch, .. } => {
                raise(&mut self.promised, *replica, *epoch)
            }
            ToManager::LearnerReady { learner, epoch, .. } => {
                raise(&mut self.ready, *learner, *epoch);
            }
            ToManager::HandedOver { group, epoch, .. } => {
                self.handed_over.insert(*group, (*epoch, now));
            }
            ToManager::Adopted { group, epoch, .. } => raise(&mut self.adopted, *group, *epoch),
            ToManager::RegisterServer(register) => {
                for report in &register.replicas {
                    raise(&mut self.promised, report.replica, report.promised);
                }
            }
            _ => {}
        }
    }

    pub(super) fn stored(&mut self, before: Option<&Group>, after: &Group) -> Result<(), String> {
        let rule = before.map_or(Ok(()), |before| self.follows(before, after));
        let config = &after.config;
        let learners: BTreeSet<_> = config.learners().map(|m| m.replica).collect();
        for member in &config.members {
            if !learners.contains(&member.replica) {
                self.learner_since.remove(&member.replica);
            }
        }
        self.learner_since.retain(|replica, _| config.member(*replica).is_some());
        for learner in learners {
            self.learner_since.entry(learner).or_insert(config.epoch);
        }
        rule.map_err(|what| format!("group {}, epoch {}: {what}", config.group, config.epoch))
    }

    fn follows(&self, before: &Group, after: &Group) -> Result<(), String> {
        let (old, new) = (&before.config, &after.config);
        if old == new && before.primary_boot == after.primary_boot {
            return removed_in_time(self.adopted.get(&new.group), before, after);
        }
        let must = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
        must(new.epoch == old.epoch.next(), "epochs rise by one (1)")?;
        new.check().map_err(|e| e.to_string())?;
        let primary = new.primary().replica;
        must(old.is_in_sync(primary), "the new primary was not in sync (2, 16)")?;
        for member in new.in_sync().filter(|m| !old.is_in_sync(m.replica)) {
            let since = self.learner_since.get(&member.replica);
            let ready = self.ready.get(&member.replica);
            let admitted = since.is_some_and(|since| ready.is_some_and(|ready| ready >= since));
            must(admitted, "a replica is in sync that nobody called ready (15)")?;
        }
        let begins = old.primary().replica != primary || before.primary_boot != after.primary_boot;
        if begins {
            let promised = self.promised.get(&primary).is_some_and(|e| *e >= new.epoch);
            let stays = |replica| replica != primary && replica != old.primary().replica;
            let bound = |replica| self.promised.get(&replica).is_some_and(|e| *e >= new.epoch);
            let all = new.in_sync().map(|m| m.replica).filter(|r| stays(*r)).all(bound);
            must(all, "a member stays that may still follow the former primary (2)")?;
            must(promised, "a primary begins without having promised (4)")?;
            let handed_over = self.handed_over.get(&old.group).is_some_and(|(epoch, at)| {
                *epoch == old.epoch && self.decided.since(*at) < STOPPED
            });
            let alone = new.in_sync().count() == 1;
            must(
                alone || handed_over,
                "others stay in the set, and the former primary had not stopped for that",
            )?;
        }
        removed_in_time(self.adopted.get(&new.group), before, after)
    }
}

/// A member's replica is not forgotten, nor does it become surplus before its primary acts without it.
fn removed_in_time(adopted: Option<&Epoch>, before: &Group, after: &Group) -> Result<(), String> {
    let gone = before.replicas.keys().find(|r| !after.replicas.contains_key(r));
    let Some(gone) = gone else { return Ok(()) };
    let acts = before.config.member(*gone).is_none() && adopted.is_some();
    if acts {
        Ok(())
    } else {
        Err(format!("replica {gone} is forgotten while it is a member (34)"))
    }
}

fn raise<K: Ord>(map: &mut BTreeMap<K, Epoch>, key: K, epoch: Epoch) {
    let known = map.entry(key).or_default();
    *known = (*known).max(epoch);
}
