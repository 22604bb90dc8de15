//! Where a replica lies: on one drive, or striped over several of its server.

use std::sync::Arc;

use model::{id::DriveName, volume::Stripes};

use crate::stripe::Stripe;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// In the order of the stripes.
    drives: Arc<[DriveName]>,
    /// Of the last record that was written to its parts; see [`format::replica::Part`].
    pub serial: u64,
}

impl Place {
    pub fn new(drives: Vec<DriveName>, serial: u64) -> Self {
        assert!(!drives.is_empty(), "a replica lies somewhere");
        Self { drives: drives.into(), serial }
    }

    /// The one drive, or the one that stands for all: it reports the replica and scrubs it.
    pub fn first(&self) -> &DriveName {
        &self.drives[0]
    }

    pub fn drives(&self) -> &[DriveName] {
        &self.drives
    }

    pub fn lies_on(&self, drive: &DriveName) -> bool {
        self.drives.contains(drive)
    }

    /// Over how many drives, if it is more than one.
    pub fn striped(&self) -> Option<Stripes> {
        let count = u32::try_from(self.drives.len()).expect("a handful");
        let stripes = Stripes::try_from(count).expect("checked before it was placed");
        (stripes > Stripes::ONE).then_some(stripes)
    }

    pub fn stripe(&self) -> Stripe {
        Stripe::new(self.drives.len())
    }

    /// The drive that holds a byte of the replica.
    pub fn drive_of(&self, offset: u64) -> &DriveName {
        &self.drives[self.stripe().to_part(offset).0]
    }
}
