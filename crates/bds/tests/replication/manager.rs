//! A manager of one group, just clever enough: it stores configurations in its memory, one after
//! the other, and never more than one step is under way.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use format::ctl::{Damage, FromManager, ToManager};
use model::{
    epoch::{AttachGeneration, Epoch},
    group::{GroupConfig, Member, Role},
    id::{BootId, DriveName, ReplicaId, ServerId, VolumeId},
    time::Instant,
    units::{ByteCount, Iops, MibPerSec, Rate},
    volume::Media,
};

use crate::world::{
    Happening, SIZE, World, address_of, drive_name, group, replica_id, server_name,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    None,
    /// `next` is stored when its primary has promised its epoch; `by`: only until then.
    Promise {
        next: GroupConfig,
        by: Option<Instant>,
    },
    HandOver {
        to: ReplicaId,
        asked: Instant,
    },
}

#[derive(Debug)]
pub struct Manager {
    pub config: GroupConfig,
    /// Where replicas should be, in order.
    pub desired: Vec<Member>,
    pub wanted_members: usize,
    pub created: BTreeSet<ReplicaId>,
    pub adopted: bool,
    pub step: Step,
    /// The run of the primary's server that the configuration was made for.
    primary_boot: Option<BootId>,
    boots: BTreeMap<ServerId, BootId>,
    up: BTreeSet<ServerId>,
    /// What each server said it holds when it registered, and what was made since.
    held: BTreeMap<ServerId, BTreeSet<ReplicaId>>,
    silent: BTreeMap<ReplicaId, u32>,
    said: Option<Instant>,
    pub learners_failed: u32,
    pub silent_reports: u32,
    pub failovers: u32,
    pub ready_reports: u32,
    /// Learners are added, and admitted when they are ready.
    pub heals: bool,
    pub admits: bool,
    /// Configurations so far, for tests that look.
    pub history: Vec<GroupConfig>,
    pub progress: Option<format::ctl::FillProgress>,
    pub filled_bytes_moved: u64,
    patience: Instant,
    /// Mirrors that were found to differ.
    pub differing: Vec<ReplicaId>,
    /// Passes of the scrub that were asked for and are finished.
    pub scrubbed: BTreeMap<(ReplicaId, u64), Damage>,
    /// The last status of each server's drive.
    pub damage: BTreeMap<ServerId, Damage>,
    /// The drives, after the member's own, that a replica is striped over.
    pub beside: BTreeMap<ReplicaId, Vec<DriveName>>,
    pub removed: BTreeSet<ReplicaId>,
    /// Servers that lost a drive.
    pub drive_failed: BTreeSet<ServerId>,
    pub refused: BTreeMap<ReplicaId, String>,
}

impl Manager {
    pub fn new(servers: u64) -> Self {
        let wanted_members = servers.min(2) as usize;
        let desired = members(wanted_members);
        let config = GroupConfig {
            group: group(),
            volume: VolumeId::from_raw(5),
            epoch: Epoch::FIRST,
            members: desired.clone(),
            size: ByteCount::new(SIZE),
            attach_generation: AttachGeneration::from_raw(1),
            rate: Rate { iops: Iops::new(50_000), throughput: MibPerSec::new(1_000) },
            media: Media::Ssd,
        };
        Self {
            config,
            desired,
            wanted_members,
            created: BTreeSet::new(),
            adopted: false,
            step: Step::None,
            primary_boot: None,
            boots: BTreeMap::new(),
            up: BTreeSet::new(),
            held: BTreeMap::new(),
            silent: BTreeMap::new(),
            said: None,
            learners_failed: 0,
            silent_reports: 0,
            failovers: 0,
            ready_reports: 0,
            heals: true,
            admits: true,
            history: Vec::new(),
            progress: None,
            filled_bytes_moved: 0,
            patience: Instant::ZERO,
            differing: Vec::new(),
            scrubbed: BTreeMap::new(),
            damage: BTreeMap::new(),
            beside: BTreeMap::new(),
            removed: BTreeSet::new(),
            drive_failed: BTreeSet::new(),
            refused: BTreeMap::new(),
        }
    }

    /// Before the group starts: it has this many members.
    pub fn want(&mut self, count: usize) {
        self.wanted_members = count;
        self.desired = members(count);
        self.config.members = self.desired.clone();
    }

    /// Every drive that a replica lies on, in the order of the stripes.
    pub fn drives_of(&self, member: &Member) -> Vec<DriveName> {
        let beside = self.beside.get(&member.replica).into_iter().flatten();
        std::iter::once(&member.drive).chain(beside).cloned().collect()
    }

    /// Whether the server said that it holds the replica.
    pub fn is_held(&self, server: &ServerId, replica: ReplicaId) -> bool {
        self.held.get(server).is_some_and(|held| held.contains(&replica))
    }

    /// Whether the member's server is up and holds content that counts.
    fn has(&self, member: &Member) -> bool {
        let held = self.held.get(&member.server);
        self.up.contains(&member.server) && held.is_some_and(|h| h.contains(&member.replica))
    }

    fn next(&self) -> GroupConfig {
        GroupConfig { epoch: self.config.epoch.next(), ..self.config.clone() }
    }

    /// Everything desired is in sync, and the primary has said so.
    pub fn is_whole(&self) -> bool {
        self.adopted
            && self.step == Step::None
            && self.desired.iter().all(|d| self.config.is_in_sync(d.replica))
            && self.config.members.len() == self.desired.len()
    }
}

/// Replica `n` on server `n`, the first of them primary.
fn members(count: usize) -> Vec<Member> {
    let member = |n: u64| Member {
        replica: replica_id(n),
        server: server_name(n),
        address: address_of(n),
        drive: drive_name(),
        role: if n == 1 { Role::Primary } else { Role::Mirror },
    };
    (1..=count as u64).map(member).collect()
}

fn without(config: &GroupConfig, replica: ReplicaId) -> GroupConfig {
    let mut next = GroupConfig { epoch: config.epoch.next(), ..config.clone() };
    next.members.retain(|m| m.replica != replica);
    let source = source_of(&next.members);
    for member in &mut next.members {
        if let Role::Learner { source: old } = &mut member.role
            && *old == replica
        {
            *old = source;
        }
    }
    next
}

/// A mirror if there is one, else the primary.
fn source_of(members: &[Member]) -> ReplicaId {
    let mirror = members.iter().find(|m| m.role == Role::Mirror);
    mirror.or(members.iter().find(|m| m.role == Role::Primary)).expect("a primary").replica
}

impl World {
    /// Makes a configuration the group's, and tells the primary.
    pub fn store(&mut self, next: GroupConfig) {
        let manager = &mut self.manager;
        assert_eq!(next.epoch, manager.config.epoch.next(), "compare and swap");
        next.check().expect("well formed");
        manager.primary_boot = manager.boots.get(&next.primary().server).copied();
        manager.history.push(next.clone());
        manager.config = next;
        manager.adopted = false;
        manager.step = Step::None;
        manager.silent.clear();
        manager.said = None;
        self.manage();
    }

    pub fn change(&mut self, change: impl FnOnce(&mut GroupConfig)) {
        let mut next = self.manager.next();
        change(&mut next);
        self.store(next);
    }

    pub fn begin_hand_over(&mut self, to: ReplicaId) {
        self.manager.step = Step::HandOver { to, asked: self.now };
        let (group, epoch) = (group(), self.manager.config.epoch);
        let server = self.manager.config.primary().server.clone();
        self.command(&server, FromManager::HandOver { group, epoch });
    }

    pub fn manager_lost(&mut self, server: &ServerId) {
        self.manager.up.remove(server);
        self.manager.patience = self.now + Duration::from_millis(1);
    }

    /// Looks at everything and takes the next step.
    pub fn manage(&mut self) {
        let manager = &mut self.manager;
        for member in manager.desired.clone() {
            if !manager.created.contains(&member.replica) && manager.up.contains(&member.server) {
                let message = FromManager::CreateReplica {
                    replica: member.replica,
                    group: group(),
                    volume: manager.config.volume,
                    drive: member.drive.clone(),
                    beside: manager.beside.get(&member.replica).cloned().unwrap_or_default(),
                    size: manager.config.size,
                };
                return self.say(&member.server.clone(), message);
            }
        }
        let all_created =
            manager.config.members.iter().all(|m| manager.created.contains(&m.replica));
        if !all_created {
            return;
        }
        if let Step::HandOver { asked, .. } = manager.step
            && self.now.since(asked) > Duration::from_millis(500)
        {
            manager.step = Step::None;
        }
        if let Step::Promise { by: Some(by), .. } = &manager.step
            && self.now > *by
        {
            manager.step = Step::None;
        }
        if let Step::Promise { next, .. } = manager.step.clone() {
            let primary = next.primary();
            if manager.up.contains(&primary.server) {
                let message = FromManager::Prepare {
                    replica: primary.replica,
                    group: group(),
                    epoch: next.epoch,
                    as_mirror: manager.config.mirrors().any(|m| m.replica == primary.replica),
                };
                return self.say(&primary.server.clone(), message);
            }
            manager.step = Step::None;
        }
        let primary = manager.config.primary().clone();
        let is_up = manager.up.contains(&primary.server);
        let boot = manager.boots.get(&primary.server).copied();
        if manager.primary_boot.is_none() {
            manager.primary_boot = boot;
        }
        if !is_up || boot != manager.primary_boot {
            return self.fail_over();
        }
        if !manager.adopted {
            let config = manager.config.clone();
            return self.say(&primary.server, FromManager::Configure { config });
        }
        if manager.step == Step::None {
            self.look_after_members();
        }
    }

    /// Says the same thing not more than once in 300 ms.
    fn say(&mut self, server: &ServerId, message: FromManager) {
        let soon = Duration::from_millis(300);
        if self.manager.said.is_some_and(|at| self.now.since(at) < soon) {
            return;
        }
        self.manager.said = Some(self.now);
        self.command(server, message);
    }

    fn fail_over(&mut self) {
        let manager = &mut self.manager;
        if self.now < manager.patience || manager.step != Step::None {
            return;
        }
        let mut candidates: Vec<Member> = manager.config.mirrors().cloned().collect();
        candidates.push(manager.config.primary().clone());
        let chosen = candidates.into_iter().find(|m| manager.has(m));
        let Some(chosen) = chosen else { return };
        let mut next = manager.next();
        next.members = vec![Member { role: Role::Primary, ..chosen }];
        manager.said = None;
        manager.step = Step::Promise { next, by: None };
        manager.failovers += 1;
        self.manage();
    }

    fn look_after_members(&mut self) {
        let manager = &mut self.manager;
        let dead = manager.config.mirrors().find(|m| {
            let reports = manager.silent.get(&m.replica).copied().unwrap_or(0);
            let lost = manager.up.contains(&m.server) && !manager.has(m);
            lost || reports > 0 && !manager.up.contains(&m.server) || reports >= 3
        });
        if let Some(dead) = dead.map(|m| m.replica) {
            let next = without(&manager.config, dead);
            return self.store(next);
        }
        let primary = manager.config.primary().replica;
        let misplaced = manager.desired.iter().all(|d| d.replica != primary);
        let successor = manager.config.mirrors().find(|m| {
            let desired = manager.desired.iter().any(|d| d.replica == m.replica);
            misplaced && desired && manager.up.contains(&m.server)
        });
        if let Some(successor) = successor.map(|m| m.replica) {
            return self.begin_hand_over(successor);
        }
        let surplus = manager.config.members.iter().find(|m| {
            let desired = manager.desired.iter().any(|d| d.replica == m.replica);
            !desired && m.role != Role::Primary
        });
        let enough = manager.desired.iter().all(|d| manager.config.is_in_sync(d.replica));
        if let Some(surplus) = surplus.map(|m| m.replica)
            && (enough || manager.config.in_sync().count() > manager.wanted_members)
        {
            let next = without(&manager.config, surplus);
            return self.store(next);
        }
        if !manager.heals || manager.config.learners().count() > 0 || self.now < manager.patience {
            return;
        }
        let missing = manager
            .desired
            .iter()
            .find(|d| manager.config.member(d.replica).is_none() && manager.up.contains(&d.server));
        if let Some(missing) = missing.cloned() {
            let mut next = manager.next();
            let source = source_of(&next.members);
            next.members.push(Member { role: Role::Learner { source }, ..missing });
            self.store(next);
        }
    }

    pub fn manager_received(&mut self, server: &ServerId, message: ToManager) {
        let manager = &mut self.manager;
        let current = manager.config.epoch;
        match message {
            ToManager::RegisterServer(register) => {
                manager.boots.insert(server.clone(), register.boot);
                manager.up.insert(server.clone());
                let held = register.replicas.iter().map(|r| r.replica).collect();
                manager.held.insert(server.clone(), held);
            }
            ToManager::ReplicaCreated { replica } => {
                manager.held.entry(server.clone()).or_default().insert(replica);
                manager.created.insert(replica);
                manager.said = None;
            }
            ToManager::ReplicaRemoved { replica } => {
                manager.removed.insert(replica);
            }
            ToManager::ReplicaRefused { replica, reason } => {
                manager.refused.insert(replica, reason);
            }
            ToManager::ReplicaStale { replica } => {
                if let Some(held) = manager.held.get_mut(server) {
                    held.remove(&replica);
                }
                // It will not promise, so another is looked for.
                if let Step::Promise { next, .. } = &manager.step
                    && next.primary().replica == replica
                {
                    manager.step = Step::None;
                }
            }
            ToManager::Promised { epoch, state, .. } => {
                assert!(state.promised >= epoch);
                let Step::Promise { next, .. } = &manager.step else { return };
                if next.epoch == epoch && next.primary().replica == state.replica {
                    let next = next.clone();
                    self.store(next);
                }
            }
            ToManager::Adopted { epoch, .. } if epoch == current && !manager.adopted => {
                manager.adopted = true;
                manager.said = None;
                let config = manager.config.clone();
                let after = self.rng.micros(50, 2_000);
                self.at(after, Happening::ClientConfig(config));
            }
            ToManager::HandedOver { epoch, .. } if epoch == current => {
                let Step::HandOver { to, asked } = manager.step else { return };
                let mut next = manager.next();
                for member in &mut next.members {
                    match member.role {
                        Role::Primary => member.role = Role::Mirror,
                        Role::Mirror if member.replica == to => member.role = Role::Primary,
                        _ => {}
                    }
                }
                next.members.sort_by_key(|m| m.role != Role::Primary);
                next.members.retain(|m| !matches!(m.role, Role::Learner { .. }));
                let by = Some(asked + Duration::from_millis(500));
                manager.said = None;
                manager.step = Step::Promise { next, by };
            }
            ToManager::MemberSilent { epoch, silent, .. } if epoch == current => {
                manager.silent_reports += 1;
                *manager.silent.entry(silent).or_insert(0) += 1;
            }
            ToManager::MemberDiffers { epoch, member, .. } if epoch == current => {
                manager.differing.push(member);
                let next = without(&manager.config, member);
                self.store(next);
            }
            ToManager::Scrubbed { replica, pass, damage, finished: true, failure, .. } => {
                assert_eq!(failure, None, "{replica} was in sync");
                manager.scrubbed.insert((replica, pass), damage);
            }
            ToManager::DriveFailed { .. } => {
                manager.drive_failed.insert(server.clone());
            }
            ToManager::DriveStatus(status) => {
                manager.damage.insert(server.clone(), status.damage);
            }
            ToManager::LearnerReady { epoch, learner, .. } if epoch == current => {
                manager.ready_reports += 1;
                if !manager.admits {
                    return;
                }
                let mut next = manager.next();
                let member = next.members.iter_mut().find(|m| m.replica == learner);
                let member = member.expect("a learner is a member");
                member.role = Role::Mirror;
                let held = manager.held.entry(member.server.clone()).or_default();
                held.insert(learner);
                self.store(next);
            }
            ToManager::LearnerFailed { epoch, learner, .. } if epoch == current => {
                manager.learners_failed += 1;
                manager.patience = self.now + Duration::from_millis(100);
                let next = without(&manager.config, learner);
                self.store(next);
            }
            ToManager::Beat { replicas } => {
                for progress in replicas {
                    if let Some(fill) = progress.fill {
                        manager.filled_bytes_moved = fill.bytes_moved;
                        manager.progress = Some(fill);
                    }
                }
            }
            _ => {}
        }
        self.manage();
    }
}
