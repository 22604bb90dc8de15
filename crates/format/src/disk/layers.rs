//! Frozen layers: what a replica's row says of them, and the records that make, merge and hide them.
//!
//! In a row, from byte 32 on:
//!
//! ```text
//!  0 head u16   2 layers u8   3 zero [5]
//!  8 per layer, the oldest first: id u64, number u16, state u8 (1 kept, 2 released), zero u8
//! ```
//!
//! Head and layers have numbers, which say in map pages and records what a slot belongs to.

use bytes::{Buf, BufMut, BytesMut};
use model::{
    epoch::ModSeq,
    id::{LayerId, ReplicaId},
};

use super::{
    DiskError,
    journal::{Head, put_crcs, take_crcs, unit_in_slot},
    page::Owner,
};

/// Frozen layers of a replica.
pub const LAYERS_MAX: usize = 7;

/// Of a row's 96 bytes.
const LAYERS_LEN: usize = 96;
const KEPT: u8 = 1;
const RELEASED: u8 = 2;

const _: () = assert!(8 + 12 * LAYERS_MAX <= LAYERS_LEN);

/// What a replica consists of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layers {
    /// Number of the layer that changes go to.
    pub head: u16,
    /// The oldest first.
    pub frozen: Vec<FrozenLayer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrozenLayer {
    pub id: LayerId,
    pub number: u16,
    /// It merges into the next newer one.
    pub is_released: bool,
}

impl Layers {
    /// A number that no slot of the replica has: no layer's, and none that slots have without one.
    pub fn next_number(&self, strays: &[u16]) -> u16 {
        let is_taken = |number| {
            strays.contains(&number) || self.frozen.iter().any(|layer| layer.number == number)
        };
        let mut number = self.head.wrapping_add(1);
        while is_taken(number) {
            number = number.wrapping_add(1);
        }
        number
    }

    pub fn position(&self, id: LayerId) -> Option<usize> {
        self.frozen.iter().position(|layer| layer.id == id)
    }

    /// The head becomes the newest frozen layer.
    pub fn freeze(&mut self, id: LayerId, head: u16) {
        self.frozen.push(FrozenLayer { id, number: self.head, is_released: false });
        self.head = head;
    }

    pub(super) fn put(&self, out: &mut BytesMut) {
        assert!(self.frozen.len() <= LAYERS_MAX, "{} frozen layers", self.frozen.len());
        out.put_u16_le(self.head);
        out.put_u8(u8::try_from(self.frozen.len()).expect("few"));
        out.put_bytes(0, 5);
        for layer in &self.frozen {
            out.put_u64_le(layer.id.raw());
            out.put_u16_le(layer.number);
            out.put_u8(if layer.is_released { RELEASED } else { KEPT });
            out.put_u8(0);
        }
        out.put_bytes(0, LAYERS_LEN - 8 - 12 * self.frozen.len());
    }

    pub(super) fn take(mut bytes: &[u8]) -> Result<Self, DiskError> {
        let mut found = Self { head: bytes.get_u16_le(), frozen: Vec::new() };
        let count = usize::from(bytes.get_u8());
        bytes.advance(5);
        if count > LAYERS_MAX {
            return Err(DiskError::Field("layers"));
        }
        for _ in 0..count {
            let (id, number) = (LayerId::from_raw(bytes.get_u64_le()), bytes.get_u16_le());
            let state = bytes.get_u8();
            bytes.advance(1);
            let is_new = found.head != number
                && found.frozen.iter().all(|layer| layer.number != number && layer.id != id);
            if !is_new || !matches!(state, KEPT | RELEASED) {
                return Err(DiskError::Field("layer"));
            }
            let is_released = state == RELEASED;
            found.frozen.push(FrozenLayer { id, number, is_released });
        }
        Ok(found)
    }
}

/// A record about layers. `index` is the replica's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerRecord {
    /// The head is the frozen layer `layer` from now on, and a new one has the number `head`.
    Freeze {
        index: u32,
        replica: ReplicaId,
        layer: LayerId,
        head: u16,
    },
    /// Nobody wants the layer any more.
    Release {
        index: u32,
        replica: ReplicaId,
        layer: LayerId,
    },
    /// No slot belongs to the layer any more.
    Merged {
        index: u32,
        replica: ReplicaId,
        layer: LayerId,
    },
    /// The slot belongs to the owner's layer now.
    Relabel {
        slot: u32,
        owner: Owner,
    },
    Masks(Masks),
}

/// A unit of a slot: which blocks it has, and which it hides without having them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masks {
    pub slot: u32,
    pub owner: Owner,
    pub fresh: bool,
    pub unit: u32,
    pub mod_seq: ModSeq,
    pub valid: u16,
    /// They read as zeros, whatever older layers have.
    pub cleared: u16,
    /// Of the valid ones, those whose content is in the batch's payload. The others keep theirs.
    pub filled: u16,
    /// Of the valid ones, those whose content was found damaged.
    pub lost: u16,
    /// Of the filled ones, then of the lost ones.
    pub crcs: Vec<u32>,
}

pub(super) mod kind {
    pub const FREEZE: u8 = 10;
    pub const RELEASE: u8 = 11;
    pub const MERGED: u8 = 12;
    pub const RELABEL: u8 = 13;
    pub const MASKS: u8 = 14;
}

impl Masks {
    /// Of the payload.
    pub fn payload_crcs(&self) -> &[u32] {
        &self.crcs[..usize::try_from(self.filled.count_ones()).expect("at most 16")]
    }

    /// The unit's blocks of `mask` with their checksums.
    pub fn blocks(mask: u16, crcs: &[u32]) -> impl Iterator<Item = (u32, u32)> {
        (0..u16::BITS).filter(move |b| mask >> b & 1 == 1).zip(crcs.iter().copied())
    }

    pub fn lost_crcs(&self) -> &[u32] {
        &self.crcs[self.payload_crcs().len()..]
    }

    fn is_sound(&self) -> bool {
        self.valid & self.cleared == 0
            && (self.filled | self.lost) & !self.valid == 0
            && self.filled & self.lost == 0
    }
}

impl LayerRecord {
    pub(super) fn put(&self, out: &mut BytesMut) {
        let row = |kind, index: u32, replica: ReplicaId, layer: LayerId| Head {
            kind,
            slot: index,
            replica: replica.raw(),
            number: layer.raw(),
            ..Head::default()
        };
        match self {
            Self::Freeze { index, replica, layer, head } => {
                Head { layer: *head, ..row(kind::FREEZE, *index, *replica, *layer) }.put(0, out);
            }
            Self::Release { index, replica, layer } => {
                row(kind::RELEASE, *index, *replica, *layer).put(0, out);
            }
            Self::Merged { index, replica, layer } => {
                row(kind::MERGED, *index, *replica, *layer).put(0, out);
            }
            Self::Relabel { slot, owner } => Head::of(kind::RELABEL, *slot, owner).put(0, out),
            Self::Masks(masks) => {
                assert!(masks.is_sound(), "{masks:?}");
                let head = Head {
                    fresh: masks.fresh,
                    a: u16::try_from(masks.unit).expect("an index within a slot"),
                    b: masks.valid,
                    number: masks.mod_seq.raw(),
                    old: u32::from(masks.cleared) | u32::from(masks.filled) << 16,
                    c: masks.lost,
                    ..Head::of(kind::MASKS, masks.slot, &masks.owner)
                };
                head.put(4 * masks.crcs.len(), out);
                put_crcs(out, &masks.crcs);
            }
        }
    }

    /// `None`: it is of another kind.
    pub(super) fn take(head: &Head, tail: &mut &[u8]) -> Result<Option<Self>, DiskError> {
        let (index, slot, owner) = (head.slot, head.slot, head.owner());
        let (replica, layer) = (owner.replica, LayerId::from_raw(head.number));
        Ok(Some(match head.kind {
            kind::FREEZE => Self::Freeze { index, replica, layer, head: head.layer },
            kind::RELEASE => Self::Release { index, replica, layer },
            kind::MERGED => Self::Merged { index, replica, layer },
            kind::RELABEL => Self::Relabel { slot, owner },
            kind::MASKS => {
                let half = |shift: u32| (head.old >> shift & 0xffff) as u16;
                let (cleared, filled, lost) = (half(0), half(16), head.c);
                let masks = Masks {
                    slot,
                    owner,
                    fresh: head.fresh,
                    unit: unit_in_slot(head.a)?,
                    mod_seq: ModSeq::from_raw(head.number),
                    valid: head.b,
                    cleared,
                    filled,
                    lost,
                    crcs: take_crcs(tail, (filled | lost).count_ones())?,
                };
                if !masks.is_sound() {
                    return Err(DiskError::Field("masks"));
                }
                Self::Masks(masks)
            }
            _ => return Ok(None),
        }))
    }
}
