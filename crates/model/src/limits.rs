//! Every limit in one table, with the relations between them asserted at compile time.

use crate::{
    units::{Gib, Iops, MibPerSec, Rate},
    volume::VolumeType,
};

/// Largest single guest or wire transfer, in bytes. Larger guest requests are split.
pub const TRANSFER_BYTES_MAX: u32 = 1 << 20;
/// Largest payload of a data frame: an extent image of the largest extent and its metadata.
pub const FRAME_PAYLOAD_BYTES_MAX: u32 = 4 << 20;
/// Largest control message, in bytes of JSON.
pub const CONTROL_BYTES_MAX: usize = 4 << 20;
/// Unit in which a learner is filled and writes are held, in bytes.
pub const REGION_BYTES: u64 = 1 << 20;
/// Run of blocks that carries one `mod_seq`, in bytes, on every media: what resync compares.
pub const RESYNC_UNIT_BYTES: u32 = 64 << 10;
/// Drives of one server that a replica may be striped over.
pub const STRIPES_MAX: u32 = 8;
/// A striped replica turns to its next drive after so many bytes: whole extents of every media, and
/// whole regions, so that a region lies on one drive.
pub const STRIPE_BYTES: u64 = 1 << 20;
/// Requests of one session in flight at the node manager; more wait in the guest's queue.
pub const IN_FLIGHT_REQUESTS_MAX: usize = 1024;
/// Bytes of one session in flight.
pub const IN_FLIGHT_BYTES_MAX: u64 = 64 << 20;
/// Of a drive's slots, in use, in percent: from here on no replica is placed there.
pub const DRIVE_PLACEMENT_PERCENT: u64 = 90;
/// Below this a drive that was full is left alone again: no more is moved away from it.
pub const DRIVE_RELIEVED_PERCENT: u64 = 94;
/// From here on replicas are moved away, and changes that need a new slot wait before they are
/// ordered. The slots beyond are for what is in flight.
pub const DRIVE_FULL_PERCENT: u64 = 97;
/// Members of a group, learners included.
pub const MEMBERS_MAX: usize = 8;
/// Tags of one resource, EC2's limit.
pub const TAGS_MAX: usize = 50;
pub const TAG_KEY_CHARS_MAX: usize = 127;
pub const TAG_VALUE_CHARS_MAX: usize = 256;
/// Filter values in one call. EC2 documents 200; its CSI driver sends up to 1,000.
pub const FILTER_VALUES_MAX: usize = 1000;
/// Volumes attached to one instance.
pub const ATTACHMENTS_PER_INSTANCE_MAX: usize = 64;
/// Largest body of an API call, in bytes.
pub const API_BODY_BYTES_MAX: usize = 1 << 20;

const _: () = assert!(DRIVE_PLACEMENT_PERCENT < DRIVE_RELIEVED_PERCENT);
const _: () = assert!(DRIVE_RELIEVED_PERCENT < DRIVE_FULL_PERCENT);
const _: () = assert!(DRIVE_FULL_PERCENT < 100);
const _: () = assert!(TRANSFER_BYTES_MAX <= FRAME_PAYLOAD_BYTES_MAX);
const _: () = assert!(REGION_BYTES < FRAME_PAYLOAD_BYTES_MAX as u64);
const _: () = assert!(REGION_BYTES.is_multiple_of(64 << 10));
const _: () = assert!(STRIPE_BYTES.is_multiple_of(REGION_BYTES));
const _: () = assert!(STRIPE_BYTES.is_multiple_of(RESYNC_UNIT_BYTES as u64));

/// What a volume of one type may be asked for. Source: EC2's API reference, November 2026.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeLimits {
    pub size_min: Gib,
    pub size_max: Gib,
    /// How IOPS are set for this type.
    pub iops: RateRule,
    /// Most IOPS per GiB, where IOPS are given.
    pub iops_per_gib_max: u32,
    /// Whether the Throughput parameter is accepted (gp3 alone).
    pub throughput: Option<(MibPerSec, MibPerSec)>,
    pub multi_attach: bool,
}

/// How a type's IOPS are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateRule {
    /// Not accepted; follows from type and size.
    Derived,
    /// Accepted, with a default.
    Optional { default: Iops, min: Iops, max: Iops },
    /// Must be given.
    Required { min: Iops, max: Iops },
}

pub fn type_limits(volume_type: VolumeType) -> TypeLimits {
    let derived = |min, max| TypeLimits {
        size_min: Gib::new(min),
        size_max: Gib::new(max),
        iops: RateRule::Derived,
        iops_per_gib_max: 0,
        throughput: None,
        multi_attach: false,
    };
    match volume_type {
        VolumeType::Gp2 => derived(1, 16_384),
        VolumeType::St1 | VolumeType::Sc1 => derived(125, 16_384),
        VolumeType::Standard => derived(1, 1_024),
        VolumeType::Gp3 => TypeLimits {
            iops: RateRule::Optional {
                default: Iops::new(3_000),
                min: Iops::new(3_000),
                max: Iops::new(80_000),
            },
            iops_per_gib_max: 500,
            throughput: Some((MibPerSec::new(125), MibPerSec::new(2_000))),
            ..derived(1, 65_536)
        },
        VolumeType::Io1 => TypeLimits {
            iops: RateRule::Required { min: Iops::new(100), max: Iops::new(64_000) },
            iops_per_gib_max: 50,
            multi_attach: true,
            ..derived(4, 16_384)
        },
        VolumeType::Io2 => TypeLimits {
            iops: RateRule::Required { min: Iops::new(100), max: Iops::new(256_000) },
            iops_per_gib_max: 1_000,
            multi_attach: true,
            ..derived(4, 65_536)
        },
    }
}

/// The rate of a type whose IOPS follow from its size. Throughput of the HDD types is EBS's base
/// per TiB, never below 8 MiB/s so that a small volume stays usable; bursts are not modelled.
pub fn derived_rate(volume_type: VolumeType, size: Gib) -> Rate {
    let gib = size.get();
    let per_tib = |base: u32, max: u32| MibPerSec::new((gib * base / 1_024).clamp(8, max));
    match volume_type {
        VolumeType::Gp2 => Rate {
            iops: Iops::new((gib.saturating_mul(3)).clamp(100, 16_000)),
            throughput: MibPerSec::new(if gib <= 170 { 128 } else { 250 }),
        },
        VolumeType::St1 => Rate { iops: Iops::new(500), throughput: per_tib(40, 500) },
        VolumeType::Sc1 => Rate { iops: Iops::new(250), throughput: per_tib(12, 250) },
        VolumeType::Standard => Rate { iops: Iops::new(200), throughput: MibPerSec::new(90) },
        VolumeType::Gp3 | VolumeType::Io1 | VolumeType::Io2 => {
            unreachable!("{volume_type} is given its rate")
        }
    }
}

/// Throughput of an io1 or io2 volume: a quarter MiB/s per IOPS (256 KiB an operation), to the
/// type's limit.
pub fn io_throughput(volume_type: VolumeType, iops: Iops) -> MibPerSec {
    let max = if volume_type == VolumeType::Io2 { 4_000 } else { 1_000 };
    MibPerSec::new((iops.get() / 4).clamp(16, max))
}
