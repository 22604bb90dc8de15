//! What each drive has promised.
//!
//! Decides: nothing; it is the sum of what group records say, beside what servers may promise.
//! Does not: know who is up. A promise stands while its server is away.
//! Invariant: nobody reserves beyond what is left: [`Ledger::reserve`] asserts it. (A drive whose
//! configured capacity shrinks may still hold more than it now offers; then nothing is left.)

use std::collections::BTreeMap;

use model::{
    id::{DriveId, Zone},
    units::{ByteCount, Gib, Iops, MibPerSec, Rate},
    volume::Media,
};

use crate::state::State;

/// What one replica claims: of its drive, or of all that it is striped over together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    pub size: Gib,
    pub rate: Rate,
}

/// One drive: what it is, what it may promise, what it has promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub zone: Zone,
    pub media: Media,
    pub offered: Sum,
    pub promised: Sum,
}

/// Bytes, operations and bandwidth; wide enough for any sum of claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    pub bytes: u64,
    pub iops: u64,
    pub mib_per_sec: u64,
}

impl Sum {
    pub fn of(size: ByteCount, rate: Rate) -> Self {
        Self {
            bytes: size.get(),
            iops: u64::from(rate.iops.get()),
            mib_per_sec: u64::from(rate.throughput.get()),
        }
    }

    fn plus(self, other: Self) -> Self {
        let add = |a: u64, b: u64| a.checked_add(b).expect("claims are far below 2^64");
        Self {
            bytes: add(self.bytes, other.bytes),
            iops: add(self.iops, other.iops),
            mib_per_sec: add(self.mib_per_sec, other.mib_per_sec),
        }
    }

    fn minus(self, other: Self) -> Self {
        let subtract = |a: u64, b: u64| a.checked_sub(b).expect("it was promised");
        Self {
            bytes: subtract(self.bytes, other.bytes),
            iops: subtract(self.iops, other.iops),
            mib_per_sec: subtract(self.mib_per_sec, other.mib_per_sec),
        }
    }
}

impl From<Claim> for Sum {
    fn from(claim: Claim) -> Self {
        Self::of(claim.size.to_bytes(), claim.rate)
    }
}

impl Account {
    /// What may still be promised.
    pub fn left(&self) -> Sum {
        let (offered, promised) = (self.offered, self.promised);
        Sum {
            bytes: offered.bytes.saturating_sub(promised.bytes),
            iops: offered.iops.saturating_sub(promised.iops),
            mib_per_sec: offered.mib_per_sec.saturating_sub(promised.mib_per_sec),
        }
    }
}

/// Every drive of every server that ever registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    pub drives: BTreeMap<DriveId, Account>,
}

impl Ledger {
    pub fn of(state: &State) -> Self {
        let mut drives = BTreeMap::new();
        for server in state.servers.values() {
            for drive in &server.drives {
                let id = DriveId { server: server.server.clone(), drive: drive.drive.clone() };
                let account = Account {
                    zone: server.zone.clone(),
                    media: drive.media,
                    offered: Sum::of(drive.capacity, drive.rate),
                    promised: Sum::default(),
                };
                drives.insert(id, account);
            }
        }
        for placed in state.groups.values().flat_map(|g| g.replicas.values()) {
            let claim = Claim { size: placed.size, rate: placed.rate };
            let share = claim.share(placed.stripes());
            for drive in placed.drives() {
                if let Some(account) = drives.get_mut(&drive) {
                    account.promised = account.promised.plus(share.into());
                }
            }
        }
        Self { drives }
    }

    /// Whether drives have room for a replica that claims so much and is striped over them.
    pub fn fits(&self, drives: &[DriveId], claim: Claim) -> bool {
        let share = claim.share(drives.len() as u64);
        drives.iter().all(|drive| self.fits_share(drive, share))
    }

    /// Whether a drive has room for its part of a claim.
    pub fn fits_share(&self, drive: &DriveId, share: Claim) -> bool {
        let Some(account) = self.drives.get(drive) else { return false };
        let (left, share) = (account.left(), Sum::from(share));
        share.bytes <= left.bytes
            && share.iops <= left.iops
            && share.mib_per_sec <= left.mib_per_sec
    }

    /// Promises `claim`. The caller has asked [`Self::fits`].
    pub fn reserve(&mut self, drives: &[DriveId], claim: Claim) {
        let share = claim.share(drives.len() as u64);
        for drive in drives {
            assert!(self.fits_share(drive, share), "{drive} would promise too much: {share:?}");
            let account = self.drives.get_mut(drive).expect("a claim that fits has its drive");
            account.promised = account.promised.plus(share.into());
        }
    }

    /// Takes back a promise that was made.
    pub fn release(&mut self, drives: impl Iterator<Item = DriveId>, stripes: u64, claim: Claim) {
        let share = Sum::from(claim.share(stripes));
        for drive in drives {
            if let Some(account) = self.drives.get_mut(&drive) {
                account.promised = account.promised.minus(share);
            }
        }
    }

    /// Raises `from` as far towards `to` as there is room: size and rate each for itself, each
    /// whole or not at all, never lower. Returns what is now promised.
    pub fn raise(&mut self, drives: &[DriveId], from: Claim, to: Claim) -> Claim {
        let mut now = from;
        for wanted in [Claim { rate: Rate::default(), ..to }, Claim { size: Gib::ZERO, ..to }] {
            let next = now.and(wanted);
            if self.fits(drives, now.up_to(next)) {
                self.reserve(drives, now.up_to(next));
                now = next;
            }
        }
        now
    }
}

impl Claim {
    /// The higher of each: enough for both, one after the other.
    pub fn and(self, other: Self) -> Self {
        let rate = Rate {
            iops: self.rate.iops.max(other.rate.iops),
            throughput: self.rate.throughput.max(other.rate.throughput),
        };
        Self { size: self.size.max(other.size), rate }
    }

    /// Of each of so many drives: a like part, rounded up. It is what an even load asks of them.
    pub fn share(self, stripes: u64) -> Self {
        let stripes = u32::try_from(stripes).expect("a handful").max(1);
        let rate = Rate {
            iops: Iops::new(self.rate.iops.get().div_ceil(stripes)),
            throughput: MibPerSec::new(self.rate.throughput.get().div_ceil(stripes)),
        };
        Self { size: Gib::new(self.size.get().div_ceil(stripes)), rate }
    }

    /// What `to` asks for beyond this.
    pub fn up_to(self, to: Self) -> Self {
        let rate = Rate {
            iops: to.rate.iops.saturating_sub(self.rate.iops),
            throughput: to.rate.throughput.saturating_sub(self.rate.throughput),
        };
        Self { size: to.size.saturating_sub(self.size), rate }
    }
}
