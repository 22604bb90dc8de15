//! What each drive has promised.
//!
//! Decides: nothing; it is the sum of what group records say, beside what servers may promise.
//! Does not: know who is up. A promise stands while its server is away.
//! Invariant: nobody reserves beyond what is left: [`Ledger::reserve`] asserts it. (A drive whose
//! configured capacity shrinks may still hold more than it now offers; then nothing is left.)

use std::collections::BTreeMap;

use model::{
    id::{DriveId, Zone},
    units::{ByteCount, Gib, Rate},
    volume::Media,
};

use crate::state::State;

/// A claim on one drive.
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
            if let Some(account) = drives.get_mut(&placed.drive) {
                let claim = Claim { size: placed.size, rate: placed.rate };
                account.promised = account.promised.plus(claim.into());
            }
        }
        Self { drives }
    }

    /// Whether a drive has room for `claim`.
    pub fn fits(&self, drive: &DriveId, claim: Claim) -> bool {
        let Some(account) = self.drives.get(drive) else { return false };
        let (left, claim) = (account.left(), Sum::from(claim));
        claim.bytes <= left.bytes
            && claim.iops <= left.iops
            && claim.mib_per_sec <= left.mib_per_sec
    }

    /// Promises `claim`. The caller has asked [`Self::fits`].
    pub fn reserve(&mut self, drive: &DriveId, claim: Claim) {
        assert!(self.fits(drive, claim), "{drive} would promise more than it has: {claim:?}");
        let account = self.drives.get_mut(drive).expect("a claim that fits has its drive");
        account.promised = account.promised.plus(claim.into());
    }

    /// Raises `from` as far towards `to` as there is room: size and rate each for itself, each
    /// whole or not at all, never lower. Returns what is now promised.
    pub fn raise(&mut self, drive: &DriveId, from: Claim, to: Claim) -> Claim {
        let mut now = from;
        for wanted in [Claim { rate: Rate::default(), ..to }, Claim { size: Gib::ZERO, ..to }] {
            let next = now.and(wanted);
            if self.fits(drive, now.up_to(next)) {
                self.reserve(drive, now.up_to(next));
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

    /// What `to` asks for beyond this.
    pub fn up_to(self, to: Self) -> Self {
        let rate = Rate {
            iops: to.rate.iops.saturating_sub(self.rate.iops),
            throughput: to.rate.throughput.saturating_sub(self.rate.throughput),
        };
        Self { size: to.size.saturating_sub(self.size), rate }
    }
}
