//! One group as the rules look at it: its records and what is known of its replicas.
//!
//! Decides: which values a configuration carries (size, rate, media, addresses), given its
//! members.
//! Does not: decide who the members are; that is `membership` and `replacing`.
//! Invariant: a configuration made here passes [`GroupConfig::check`] and has an epoch above the
//! stored one and not below any promise of its members.

use std::collections::BTreeSet;

use format::record::{Group, Modification, Parameters, Placed, Record, Volume};
use model::{
    group::{GroupConfig, Member, Role},
    id::{ReplicaId, ServerId},
    sabotage::{Sabotage, is_on},
    state::{ModificationState, VolumeState},
    time::{Instant, WallTime},
    units::{Iops, MibPerSec, Rate},
};

use crate::{
    live::{GroupLive, Live, Standing},
    machine::Timing,
    replacing,
    state::{State, Write},
};

/// Everything a rule may look at. Facts of this group alone are beside it, in [`GroupLive`].
#[derive(Clone, Copy)]
pub struct Case<'a> {
    pub state: &'a State,
    pub live: &'a Live,
    pub timing: &'a Timing,
    pub remirror_delay: std::time::Duration,
    pub now: Instant,
    pub wall: WallTime,
    pub group: &'a Group,
    pub volume: &'a Volume,
    /// The modification under way, if there is one.
    pub modification: Option<&'a Modification>,
}

/// What a rule decided: writes for one commit.
#[derive(Debug, Default)]
pub struct Decision {
    pub writes: Vec<Write>,
    /// It reserved room: nothing else may be placed before it is durable.
    pub placed: bool,
}

impl Decision {
    pub fn of(writes: Vec<Write>) -> Self {
        Self { writes, placed: false }
    }
}

pub fn running(state: &State, volume: &Volume) -> Option<Modification> {
    let latest = state.latest_modification(volume.volume)?;
    let active =
        matches!(latest.state, ModificationState::Modifying | ModificationState::Optimizing);
    active.then(|| latest.clone())
}

impl<'a> Case<'a> {
    pub fn config(&self) -> &'a GroupConfig {
        &self.group.config
    }

    pub fn placed(&self, replica: ReplicaId) -> &'a Placed {
        self.group.replicas.get(&replica).expect("members and desired replicas are in the ledger")
    }

    pub fn server_of(&self, replica: ReplicaId) -> &'a ServerId {
        &self.placed(replica).drive.server
    }

    pub fn standing(&self, replica: ReplicaId) -> Standing {
        let placed = self.placed(replica);
        let server = self.live.server_standing(&placed.drive.server, self.now, self.timing);
        self.live.replica_standing(server, placed)
    }

    pub fn is_up(&self, replica: ReplicaId) -> bool {
        self.standing(replica) == Standing::Up
    }

    /// Neither up nor possibly up.
    pub fn is_gone(&self, replica: ReplicaId) -> bool {
        self.standing(replica).is_gone()
    }

    pub fn is_desired(&self, replica: ReplicaId) -> bool {
        self.group.desired.iter().any(|p| p.replica == replica)
    }

    /// The primary acts under the stored configuration, and its server has not restarted since.
    pub fn adopted(&self, facts: &GroupLive) -> bool {
        let config = self.config();
        self.primary_runs() && facts.adopted == Some((config.primary().replica, config.epoch))
    }

    /// The primary's server is up, holds it, and is in the run the configuration was made for.
    pub fn primary_runs(&self) -> bool {
        self.is_up(self.config().primary().replica) && !self.primary_restarted()
    }

    /// All replicas are in sync and where they should be, and nothing is under way.
    pub fn is_at_rest(&self, facts: &GroupLive) -> bool {
        let (group, config) = (self.group, self.config());
        let used = matches!(self.volume.state, VolumeState::Available | VolumeState::InUse);
        // What is left of replicas that are gone waits for its server, or its drive, to come back.
        let left_over =
            |r: &&ReplicaId| replacing::is_surplus(self, **r) && self.standing(**r).keeps_it();
        let there = group.replicas.len() - group.replicas.keys().filter(left_over).count();
        let whole = group.desired.len() >= replacing::REPLICAS_WANTED
            && config.members.len() == group.desired.len()
            && there == group.desired.len()
            && group.desired.iter().all(|p| config.is_in_sync(p.replica) && self.is_up(p.replica));
        used && whole
            && running(self.state, self.volume).is_none()
            && self.is_current()
            && self.adopted(facts)
            && facts.hand_over.is_none()
    }

    pub fn primary_restarted(&self) -> bool {
        let server = self.server_of(self.config().primary().replica);
        let boot = self.live.servers.get(server).filter(|s| s.link.is_some()).map(|s| s.boot);
        boot.is_some() && boot != self.group.primary_boot && !is_on(Sabotage::RestartUnnoticed)
    }

    pub fn boot_of(&self, replica: ReplicaId) -> Option<model::id::BootId> {
        self.live.servers.get(self.server_of(replica)).map(|s| s.boot)
    }

    /// What the customer is to have: the target as long as a modification runs.
    pub fn target(&self) -> &'a Parameters {
        self.modification.map_or(&self.volume.parameters, |m| &m.target)
    }

    /// The epoch that follows the stored one and no promise forbids.
    pub fn next_epoch(&self) -> model::epoch::Epoch {
        let promised = self.group.replicas.keys().map(|r| self.live.promised(*r)).max();
        self.config().epoch.next().max(promised.unwrap_or_default())
    }

    /// The members of the stored configuration, to be changed into the next one's.
    pub fn roles(&self) -> Vec<(ReplicaId, Role)> {
        self.config().members.iter().map(|m| (m.replica, m.role)).collect()
    }

    /// The next configuration with these members. Size, rate, media, attach generation and
    /// addresses follow from the records.
    pub fn next_config(&self, roles: &[(ReplicaId, Role)]) -> GroupConfig {
        let config = self.described(roles, self.next_epoch());
        config.check().expect("the rules make well-formed configurations");
        config
    }

    /// Whether the stored configuration says what the records say.
    pub fn is_current(&self) -> bool {
        self.described(&self.roles(), self.config().epoch) == *self.config()
    }

    fn described(&self, roles: &[(ReplicaId, Role)], epoch: model::epoch::Epoch) -> GroupConfig {
        let now = self.config();
        let placed: Vec<_> = roles.iter().map(|(r, _)| self.placed(*r)).collect();
        let target = self.target();
        let promised = placed.iter().map(|p| p.size).min().unwrap_or(target.size);
        let size = promised.min(target.size).to_bytes().max(now.size);
        let in_sync = |role: &Role| !matches!(role, Role::Learner { .. });
        let mut rate = target.rate;
        for (replica, _) in roles.iter().filter(|(_, role)| in_sync(role)) {
            rate = lower(rate, self.placed(*replica).rate);
        }
        let primary = roles.iter().find(|(_, role)| *role == Role::Primary);
        let media = primary.and_then(|(r, _)| self.media_of(*r)).unwrap_or(now.media);
        GroupConfig {
            group: now.group,
            volume: now.volume,
            epoch,
            members: roles.iter().map(|(r, role)| self.member(*r, *role)).collect(),
            size,
            attach_generation: self.volume.attach_generation,
            rate,
            media,
        }
    }

    fn media_of(&self, replica: ReplicaId) -> Option<model::volume::Media> {
        let placed = self.placed(replica);
        let server = self.state.servers.get(&placed.drive.server)?;
        server.drives.iter().find(|d| d.drive == placed.drive.drive).map(|d| d.media)
    }

    fn member(&self, replica: ReplicaId, role: Role) -> Member {
        let placed = self.placed(replica);
        let server = self.state.servers.get(&placed.drive.server);
        let address = server.expect("replicas are placed on recorded servers").address;
        Member {
            replica,
            server: placed.drive.server.clone(),
            address,
            drive: placed.drive.drive.clone(),
            role,
        }
    }

    /// Stores a configuration with these members: the group's record, and the step of the
    /// modification under way that it is.
    pub fn store(&self, roles: &[(ReplicaId, Role)], step: Option<&str>) -> Decision {
        let config = self.next_config(roles);
        let mut group = self.group.clone();
        if config.primary().replica != self.config().primary().replica {
            group.primary_boot = self.boot_of(config.primary().replica);
            first(&mut group.desired, config.primary().replica);
        }
        group.config = config;
        let mut decision = Decision::of(vec![self.put_group(group)]);
        decision.writes.extend(step.and_then(|s| self.step(s)));
        decision
    }

    /// A group's record with `desired` saying the same of a replica as the ledger.
    pub fn put_group(&self, mut group: Group) -> Write {
        let known = &group.replicas;
        for placed in &mut group.desired {
            *placed = known.get(&placed.replica).expect("desired replicas are reserved").clone();
        }
        let servers: BTreeSet<_> = group.desired.iter().map(|p| &p.drive.server).collect();
        assert_eq!(servers.len(), group.desired.len(), "desired replicas share a server");
        Write::Put(Record::Group(group))
    }

    pub fn step(&self, step: &str) -> Option<Write> {
        let modification = self.modification.filter(|m| m.step != step)?;
        let mut modification = modification.clone();
        step.clone_into(&mut modification.step);
        Some(Write::Put(Record::Modification(modification)))
    }
}

fn lower(a: Rate, b: Rate) -> Rate {
    Rate {
        iops: Iops::new(a.iops.get().min(b.iops.get())),
        throughput: MibPerSec::new(a.throughput.get().min(b.throughput.get())),
    }
}

/// A desired replica that is primary is listed first, so that nobody hands over for the order's
/// sake alone.
fn first(desired: &mut [Placed], primary: ReplicaId) {
    if let Some(at) = desired.iter().position(|p| p.replica == primary) {
        desired[..=at].rotate_right(1);
    }
}
