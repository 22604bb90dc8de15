//! Volume types and the media behind them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::limits::STRIPES_MAX;

/// Over how many drives of its server each replica of a volume is striped. One: it lies on one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Stripes(u32);

/// The number of stripes is none that a replica can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a replica lies on 1 to {STRIPES_MAX} drives of its server, not on {0}")]
pub struct StripesError(pub u32);

impl Stripes {
    pub const ONE: Self = Self(1);

    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for Stripes {
    fn default() -> Self {
        Self::ONE
    }
}

impl TryFrom<u32> for Stripes {
    type Error = StripesError;

    fn try_from(count: u32) -> Result<Self, StripesError> {
        if (1..=STRIPES_MAX).contains(&count) { Ok(Self(count)) } else { Err(StripesError(count)) }
    }
}

impl From<Stripes> for u32 {
    fn from(stripes: Stripes) -> Self {
        stripes.0
    }
}

impl fmt::Display for Stripes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a drive is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Media {
    Ssd,
    Hdd,
}

impl Media {
    /// Bytes of one request that count as one customer I/O, after EBS: 256 KiB on SSD, 1 MiB on
    /// HDD.
    pub fn io_unit_bytes(self) -> u32 {
        match self {
            Media::Ssd => 256 << 10,
            Media::Hdd => 1 << 20,
        }
    }

    /// The fixed run of blocks that is the unit of space and resync on such a drive.
    pub fn extent_bytes(self) -> u32 {
        match self {
            Media::Ssd => 64 << 10,
            Media::Hdd => 1 << 20,
        }
    }
}

impl fmt::Display for Media {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Media::Ssd => "ssd",
            Media::Hdd => "hdd",
        })
    }
}

/// EC2's volume types: limits, price and media.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeType {
    Gp2,
    Gp3,
    Io1,
    Io2,
    St1,
    Sc1,
    Standard,
}

impl VolumeType {
    pub const ALL: [Self; 7] =
        [Self::Gp2, Self::Gp3, Self::Io1, Self::Io2, Self::St1, Self::Sc1, Self::Standard];

    pub fn media(self) -> Media {
        match self {
            Self::Gp2 | Self::Gp3 | Self::Io1 | Self::Io2 => Media::Ssd,
            Self::St1 | Self::Sc1 | Self::Standard => Media::Hdd,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gp2 => "gp2",
            Self::Gp3 => "gp3",
            Self::Io1 => "io1",
            Self::Io2 => "io2",
            Self::St1 => "st1",
            Self::Sc1 => "sc1",
            Self::Standard => "standard",
        }
    }
}

impl fmt::Display for VolumeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text names no volume type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no volume type; the types are gp2, gp3, io1, io2, st1, sc1 and standard")]
pub struct UnknownVolumeType(pub String);

impl FromStr for VolumeType {
    type Err = UnknownVolumeType;

    fn from_str(text: &str) -> Result<Self, UnknownVolumeType> {
        Self::ALL
            .into_iter()
            .find(|t| t.as_str() == text)
            .ok_or_else(|| UnknownVolumeType(text.to_owned()))
    }
}
