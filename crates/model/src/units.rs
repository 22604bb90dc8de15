//! Quantities. Integers with a unit in their type; conversions are named and checked.

use std::{
    fmt,
    ops::{Add, Sub},
};

use serde::{Deserialize, Serialize};

/// The smallest unit stored and checksummed, in bytes.
pub const BLOCK_BYTES: u32 = 4096;
/// [`BLOCK_BYTES`] for arithmetic on offsets.
pub const BLOCK: u64 = 4096;

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $raw:ty) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name($raw);

        impl $name {
            pub const ZERO: Self = Self(0);

            pub const fn new(raw: $raw) -> Self {
                Self(raw)
            }

            pub const fn get(self) -> $raw {
                self.0
            }

            pub fn checked_add(self, other: Self) -> Option<Self> {
                self.0.checked_add(other.0).map(Self)
            }

            pub fn checked_sub(self, other: Self) -> Option<Self> {
                self.0.checked_sub(other.0).map(Self)
            }

            pub fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
        }

        impl Add for $name {
            type Output = Self;

            /// Panics on overflow: a sum of checked inputs that overflows is our fault.
            fn add(self, other: Self) -> Self {
                self.checked_add(other).expect("sum of quantities overflows")
            }
        }

        impl Sub for $name {
            type Output = Self;

            /// Panics on underflow: see [`Add`].
            fn sub(self, other: Self) -> Self {
                self.checked_sub(other).expect("difference of quantities underflows")
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

quantity!(
    /// Bytes.
    ByteCount, u64
);
quantity!(
    /// Gibibytes: the unit in which customers buy capacity.
    Gib, u32
);
quantity!(
    /// Customer I/O operations per second.
    Iops, u32
);
quantity!(
    /// Mebibytes per second.
    MibPerSec, u32
);

impl Gib {
    pub fn to_bytes(self) -> ByteCount {
        ByteCount::new(u64::from(self.0) << 30)
    }
}

impl MibPerSec {
    pub fn bytes_per_sec(self) -> u64 {
        u64::from(self.0) << 20
    }
}

impl ByteCount {
    /// Whole blocks that cover these bytes.
    pub fn blocks(self) -> u64 {
        self.0.div_ceil(BLOCK)
    }
}

/// What a volume may use per second: at once its limit and what the ledger reserves for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rate {
    pub iops: Iops,
    pub throughput: MibPerSec,
}
