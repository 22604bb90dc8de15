//! How a volume fares, from its group's configuration and the links to its servers.

use format::record::Volume;

use crate::api::View;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// The primary's server is connected: requests are answered.
    pub primary_up: bool,
    /// Replicas that hold every acknowledged write.
    pub in_sync: usize,
    /// Replicas that should.
    pub wanted: usize,
    /// Fewer replicas than wanted would survive the next failure: one is not in sync, or its
    /// server is away.
    pub degraded: bool,
}

impl Health {
    /// `None`: the volume has no group.
    pub fn of(view: &View<'_>, volume: &Volume) -> Option<Self> {
        let group = view.state.groups.get(&volume.group)?;
        let config = &group.config;
        let in_sync = config.in_sync().count();
        let up = config.in_sync().filter(|m| view.servers_up.contains(&m.server)).count();
        let primary = config.members.iter().find(|m| m.role == model::group::Role::Primary);
        Some(Self {
            primary_up: primary.is_some_and(|m| view.servers_up.contains(&m.server)),
            in_sync,
            wanted: group.desired.len(),
            degraded: up < group.desired.len(),
        })
    }
}
