//! How a volume fares, from its group's configuration and what its servers report.

use format::record::{Group, Placed, Volume};
use model::id::DriveId;

use crate::{api::View, live::Standing};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The primary is there: requests are answered.
    pub primary_up: bool,
    /// Replicas that hold every acknowledged write, as far as the manager can know: one whose
    /// server is away counts, one that its server does not hold any more does not.
    pub in_sync: usize,
    /// Replicas that should.
    pub wanted: usize,
    /// Fewer replicas than wanted would survive the next failure: one is not in sync, or cannot
    /// be reached.
    pub degraded: bool,
    /// What is wrong with its replicas, for people.
    pub faults: Vec<String>,
}

impl Health {
    /// `None`: the volume has no group.
    pub fn of(view: &View<'_>, volume: &Volume) -> Option<Self> {
        let group = view.state.groups.get(&volume.group)?;
        let placed = group.config.in_sync().filter_map(|m| group.replicas.get(&m.replica));
        let standings: Vec<Standing> = placed.map(|p| view.standing(p)).collect();
        let up = standings.iter().filter(|s| **s == Standing::Up).count();
        let primary = group.replicas.get(&group.config.primary().replica);
        Some(Self {
            primary_up: primary.is_some_and(|p| view.standing(p) == Standing::Up),
            in_sync: standings.iter().filter(|s| !s.is_lost()).count(),
            wanted: group.desired.len(),
            degraded: up < group.desired.len(),
            faults: faults(view, group),
        })
    }

    /// Nobody holds what was acknowledged, unless a drive comes back.
    pub fn is_lost(&self) -> bool {
        self.in_sync == 0
    }
}

fn faults(view: &View<'_>, group: &Group) -> Vec<String> {
    let concerned = group.replicas.values().filter(|p| {
        group.config.member(p.replica).is_some()
            || group.desired.iter().any(|d| d.replica == p.replica)
    });
    let facts = view.live.groups.get(&group.config.group);
    let no_place = facts.and_then(|f| f.no_place.as_ref());
    let no_place = no_place.map(|refusal| format!("no place for a replica: {refusal}"));
    let slow = facts.and_then(|f| f.relieved.why.clone());
    concerned.filter_map(|placed| fault(view, placed)).chain(no_place).chain(slow).collect()
}

fn fault(view: &View<'_>, placed: &Placed) -> Option<String> {
    let Placed { replica, drive, .. } = placed;
    match view.standing(placed) {
        Standing::Up | Standing::Unknown => None,
        Standing::Down => Some(format!("{} is down", drive.server)),
        Standing::Missing => {
            let facts = view.live.servers.get(&drive.server);
            let known = facts.into_iter().flat_map(|s| &s.registration.incomplete);
            let held = known.into_iter().find(|known| known.replica == *replica);
            let gone = |d: &DriveId| held.is_none_or(|held| !held.drives.contains(&d.drive));
            let gone = placed.drives().filter(gone).map(|d| d.drive.to_string());
            let (server, gone) = (&drive.server, gone.collect::<Vec<_>>().join(", "));
            Some(if held.is_some() {
                format!("{server} does not hold the part of {replica} on {gone} any more")
            } else {
                format!("{server} does not hold {replica} on {gone} any more")
            })
        }
        Standing::DriveFailed => {
            let failed = &view.live.servers.get(&drive.server)?.failed_drives;
            let (drive, reason) =
                placed.drives().find_map(|d| Some((d.clone(), failed.get(&d.drive)?)))?;
            Some(format!("{drive} is out of service: {reason}"))
        }
    }
}
