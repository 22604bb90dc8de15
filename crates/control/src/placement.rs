//! Where a replica goes: filter, then score. Pure.
//!
//! Decides: which drive gets a new replica, or which drives of one server when it is striped.
//! Does not: reserve it, or move anything.
//! Invariants: never a server that is excluded (it has, or will have, another replica of the
//! group); never more than is left in the ledger; never onto a drive that is nearly full of data,
//! or would be; the same fleet and wish give the same drives.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    id::{DriveId, ServerId, Zone},
    limits::DRIVE_PLACEMENT_PERCENT,
    volume::{Media, Stripes},
};

use crate::{
    fullness::share_reaches,
    ledger::{Account, Claim, Ledger, Sum},
};

/// Everything that a choice depends on.
#[derive(Debug, Clone)]
pub struct Fleet {
    pub ledger: Ledger,
    /// Servers that are up.
    pub up: BTreeSet<ServerId>,
    /// Drives that are out of service or have just refused, and those of servers that are drained.
    pub barred: BTreeSet<DriveId>,
    /// Drives that keep what they have and get nothing new.
    pub cordoned: BTreeSet<DriveId>,
    /// What drives hold, where it is known.
    pub stored: BTreeMap<DriveId, Stored>,
}

/// Bytes in use on a drive, with what is on its way there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub used: u64,
    pub total: u64,
}

impl Stored {
    /// Whether so many bytes more leave it below the mark for placement, which it has not
    /// reached yet.
    fn takes(self, more: u64) -> bool {
        let reaches = |used| share_reaches(used, self.total, DRIVE_PLACEMENT_PERCENT);
        !reaches(self.used) && !reaches(self.used.saturating_add(more))
    }
}

#[derive(Debug, Clone)]
pub struct Wish<'a> {
    pub media: Media,
    pub zone: &'a Zone,
    /// Whether a drive in another zone will do where the zone has none.
    pub zone_rule: ZoneRule,
    /// Of the whole replica.
    pub claim: Claim,
    /// Over how many drives of its server.
    pub stripes: Stripes,
    /// Bytes that the replica will hold as soon as it is filled.
    pub stored: u64,
    /// Servers with another replica of the group: the failure domain.
    pub excluded: &'a BTreeSet<ServerId>,
    /// Servers that hold the volume now: tried first.
    pub preferred: &'a BTreeSet<ServerId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneRule {
    Strict,
    /// Another zone, but only when no other server of the zone has such a drive, whatever its
    /// room or state: a zone of one server still gets mirrors.
    WhereZoneHasNone,
    /// Another zone when nothing in the zone fits.
    WhereZoneIsFull,
}

/// No drive fits: how many were left out by what, and the most that is left on any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub zone: Zone,
    pub media: Media,
    pub claim: Claim,
    pub stripes: Stripes,
    /// Drives of that media in that zone.
    pub drives: usize,
    /// Of those, the most that one server has.
    pub together: usize,
    pub excluded: usize,
    pub down: usize,
    /// Drives that hold too much data already.
    pub full: usize,
    /// The most that one drive could still promise, each for itself.
    pub best: Sum,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { zone, media, claim, stripes, drives, together, excluded, down, full, best } =
            self;
        write!(
            f,
            "There is not enough {media} capacity in {zone} for {} GiB at {} IOPS and {} MiB/s",
            claim.size, claim.rate.iops, claim.rate.throughput
        )?;
        if *stripes > Stripes::ONE {
            write!(f, ", striped over {stripes} drives of one server")?;
        }
        if *drives == 0 {
            return write!(f, ": no server there has an {media} drive.");
        }
        if *together < usize::try_from(stripes.get()).expect("a handful") {
            return write!(
                f,
                ": no server there has more than {together} of them. Ask for fewer stripes, or for \
                 another zone or volume type."
            );
        }
        write!(
            f,
            ". One drive has at most {} GiB, {} IOPS and {} MiB/s left ({drives} drives",
            best.bytes >> 30,
            best.iops,
            best.mib_per_sec
        )?;
        if *down > 0 {
            write!(f, ", {down} out of service or cordoned")?;
        }
        if *full > 0 {
            write!(f, ", {full} too full of data")?;
        }
        if *excluded > 0 {
            write!(f, ", {excluded} on servers that hold another replica")?;
        }
        write!(f, "). Ask for less, or for another zone or volume type.")
    }
}

/// The policy is the order of the fields; the lowest is chosen.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    in_another_zone: bool,
    not_in_use: bool,
    /// The fullest of what is promised and what is stored on any of the drives, in thousandths,
    /// once it is there.
    utilisation: u64,
    /// Makes the choice deterministic.
    drives: Vec<DriveId>,
}

/// As many drives of one server as the replica is striped over, in the order of the stripes.
pub fn choose(fleet: &Fleet, wish: &Wish<'_>) -> Result<Vec<DriveId>, Refusal> {
    let stripes = usize::try_from(wish.stripes.get()).expect("a handful");
    let share = wish.claim.share(stripes as u64);
    let stored = wish.stored.div_ceil(stripes as u64);
    let mut servers: BTreeMap<&ServerId, Vec<(&DriveId, &Account)>> = BTreeMap::new();
    for (drive, account) in fleet.ledger.drives.iter().filter(|(_, a)| a.media == wish.media) {
        servers.entry(&drive.server).or_default().push((drive, account));
    }
    let in_zone = |a: &Account| a.zone == *wish.zone;
    let free = |d: &DriveId| !wish.excluded.contains(&d.server);
    let open = |d: &DriveId| !fleet.barred.contains(d) && !fleet.cordoned.contains(d);
    let ready = |d: &DriveId| fleet.up.contains(&d.server) && open(d);
    let takes = |d: &DriveId| fleet.stored.get(d).is_none_or(|s| s.takes(stored));
    let could = |drives: &Vec<(&DriveId, &Account)>| {
        drives.len() >= stripes && drives.iter().all(|(d, a)| in_zone(a) && free(d))
    };
    let anywhere = match wish.zone_rule {
        ZoneRule::Strict => false,
        ZoneRule::WhereZoneHasNone => !servers.values().any(could),
        ZoneRule::WhereZoneIsFull => true,
    };
    let score = |(server, drives): (&&ServerId, &Vec<(&DriveId, &Account)>)| {
        let (_, first) = drives.first()?;
        let mut fitting: Vec<(u64, DriveId)> = drives
            .iter()
            .filter(|(d, _)| free(d) && ready(d) && takes(d))
            .filter(|(d, _)| fleet.ledger.fits_share(d, share))
            .map(|(d, a)| (utilisation(a, share).max(filling(fleet, d, stored)), (*d).clone()))
            .collect();
        fitting.sort();
        fitting.truncate(stripes);
        let &(utilisation, _) = fitting.last().filter(|_| fitting.len() == stripes)?;
        let in_another_zone = !in_zone(first);
        let not_in_use = !wish.preferred.contains(*server);
        let drives = fitting.into_iter().map(|(_, drive)| drive).collect();
        let wanted = !in_another_zone || anywhere;
        wanted.then_some(Score { in_another_zone, not_in_use, utilisation, drives })
    };
    if let Some(best) = servers.iter().filter_map(score).min() {
        return Ok(best.drives);
    }
    let zone: Vec<_> = servers.values().flatten().filter(|(_, a)| in_zone(a)).collect();
    let usable = zone.iter().filter(|(d, _)| free(d) && ready(d)).map(|(_, a)| a.left());
    let mut most = Sum::default();
    for left in usable {
        most.bytes = most.bytes.max(left.bytes);
        most.iops = most.iops.max(left.iops);
        most.mib_per_sec = most.mib_per_sec.max(left.mib_per_sec);
    }
    let of_zone = |drives: &&Vec<(&DriveId, &Account)>| drives.iter().all(|(_, a)| in_zone(a));
    Err(Refusal {
        zone: wish.zone.clone(),
        media: wish.media,
        claim: wish.claim,
        stripes: wish.stripes,
        drives: zone.len(),
        together: servers.values().filter(of_zone).map(Vec::len).max().unwrap_or(0),
        excluded: zone.iter().filter(|(d, _)| !free(d)).count(),
        down: zone.iter().filter(|(d, _)| !ready(d)).count(),
        full: zone.iter().filter(|(d, _)| ready(d) && !takes(d)).count(),
        best: most,
    })
}

/// How full of data the drive will be, in thousandths.
fn filling(fleet: &Fleet, drive: &DriveId, more: u64) -> u64 {
    let Some(Stored { used, total }) = fleet.stored.get(drive) else { return 0 };
    let thousandths = (u128::from(*used) + u128::from(more)) * 1000 / u128::from(*total).max(1);
    u64::try_from(thousandths).unwrap_or(u64::MAX)
}

fn utilisation(account: &Account, claim: Claim) -> u64 {
    let claim = Sum::from(claim);
    let promised = account.promised;
    let share = |used: u64, more: u64, offered: u64| {
        let total = u128::from(used) + u128::from(more);
        let thousandths = total * 1000 / u128::from(offered.max(1));
        u64::try_from(thousandths).unwrap_or(u64::MAX)
    };
    share(promised.bytes, claim.bytes, account.offered.bytes)
        .max(share(promised.iops, claim.iops, account.offered.iops))
        .max(share(promised.mib_per_sec, claim.mib_per_sec, account.offered.mib_per_sec))
}
