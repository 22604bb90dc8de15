//! Identifiers. Each is a type of its own, parsed and printed in the form users see.
//!
//! Ids are made by the caller from random bits (`from_random`), never here: the pure crates have
//! no source of randomness.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a valid id; expected {expected}")]
pub struct IdError {
    pub text: String,
    pub expected: &'static str,
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $raw:ty, $prefix:literal, $digits:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($raw);

        impl $name {
            pub const PREFIX: &'static str = $prefix;
            /// How a valid id looks, for error messages.
            pub const EXPECTED: &'static str = concat!($prefix, " and ", $digits, " hex digits");

            /// Takes as many of the given random bits as the id holds.
            pub fn from_random(bits: u128) -> Self {
                let digits: u32 = const { parse_digits($digits) };
                let mask = (1u128 << (digits * 4)) - 1;
                Self(<$raw>::try_from(bits & mask).expect("the mask fits the raw type"))
            }

            pub fn from_raw(raw: $raw) -> Self {
                Self(raw)
            }

            pub fn raw(self) -> $raw {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                const DIGITS: usize = parse_digits($digits) as usize;
                write!(f, concat!($prefix, "{:0width$x}"), self.0, width = DIGITS)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                const DIGITS: usize = parse_digits($digits) as usize;
                let error = || IdError { text: text.to_owned(), expected: Self::EXPECTED };
                let hex = text.strip_prefix($prefix).ok_or_else(error)?;
                let lower = hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                if hex.len() != DIGITS || !lower {
                    return Err(error());
                }
                <$raw>::from_str_radix(hex, 16).map(Self).map_err(|_| error())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

const fn parse_digits(text: &str) -> u32 {
    let bytes = text.as_bytes();
    let mut value = 0;
    let mut i = 0;
    while i < bytes.len() {
        value = value * 10 + (bytes[i] - b'0') as u32;
        i += 1;
    }
    value
}

hex_id!(
    /// A volume, in EC2's form. CSI drivers derive a device serial from the 17 digits.
    VolumeId, u128, "vol-", "17"
);
hex_id!(
    /// An instance that a node manager registered, in EC2's form.
    InstanceId, u128, "i-", "17"
);
hex_id!(
    /// The replicas that hold one segment of a volume. Never reused.
    GroupId, u64, "grp-", "16"
);
hex_id!(
    /// One stored copy of a group's data on one drive. Never reused.
    ReplicaId, u64, "rep-", "16"
);
hex_id!(
    /// A frozen state of a replica: the same on all replicas of a group. Never used again for one
    /// of them.
    LayerId, u64, "lay-", "16"
);
hex_id!(
    /// One run of a process. A new value tells the manager that the process restarted.
    BootId, u64, "boot-", "16"
);
hex_id!(
    /// One formatting of a drive. A new value under an old name tells the manager that the drive
    /// was swapped, and that what was stored there is gone.
    DriveIdentity, u64, "drv-", "16"
);

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
                if text.is_empty() || text.len() > 63 || !text.bytes().all(legal) {
                    return Err(IdError {
                        text: text.chars().take(80).collect(),
                        expected: "1 to 63 lower-case letters, digits and hyphens",
                    });
                }
                Ok(Self(text.into()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

name_id!(
    /// A BDS server, by its configured name, such as `server-a-1`.
    ServerId
);
name_id!(
    /// A node manager, by its configured name, such as `node-a`.
    NodeId
);
name_id!(
    /// An availability zone, such as `local-1a`: region and letter, as EC2 names them.
    Zone
);
name_id!(
    /// A drive within a server, such as `ssd`.
    DriveName
);

/// A drive of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DriveId {
    pub server: ServerId,
    pub drive: DriveName,
}

impl fmt::Display for DriveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.server, self.drive)
    }
}

/// A customer account: twelve decimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(u64);

impl AccountId {
    const LIMIT: u64 = 1_000_000_000_000;

    pub fn from_random(bits: u128) -> Self {
        let digits = u64::try_from(bits % u128::from(Self::LIMIT)).expect("below 10^12");
        Self(digits)
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012}", self.0)
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for AccountId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = || IdError { text: text.to_owned(), expected: "12 decimal digits" };
        if text.len() != 12 || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error());
        }
        text.parse().map(Self).map_err(|_| error())
    }
}

impl Serialize for AccountId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AccountId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_parse_in_their_ec2_form() {
        let id = VolumeId::from_random(u128::MAX);
        assert_eq!(id.to_string(), "vol-fffffffffffffffff");
        assert_eq!(
            "vol-0123456789abcdef0".parse::<VolumeId>().map(|v| v.to_string()),
            Ok("vol-0123456789abcdef0".to_owned())
        );
        for bad in [
            "",
            "vol-",
            "vol-123",
            "vol-0123456789ABCDEF0",
            "snap-0123456789abcdef0",
            "vol-+123456789abcdef0",
        ] {
            assert!(bad.parse::<VolumeId>().is_err(), "{bad} must be refused");
        }
    }

    #[test]
    fn an_account_is_twelve_digits() {
        assert_eq!(
            "000000000001".parse::<AccountId>().map(|a| a.to_string()),
            Ok("000000000001".to_owned())
        );
        assert!("1".parse::<AccountId>().is_err());
        assert!("00000000000a".parse::<AccountId>().is_err());
    }
}
