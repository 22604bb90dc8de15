//! Questions that memory answers: which units hold data, and their digest.
//!
//! Invariant: the answers depend on what the replica holds, never on the drive's media or layout.

use bytes::Bytes;
use format::{
    data::UnitMeta,
    disk::{UNIT_BLOCKS, UNIT_BYTES},
};
use model::{id::ReplicaId, units::BLOCK};

use crate::{
    api::{OpError, Outcome},
    drive::Drive,
};

impl Drive {
    pub fn describe(
        &self,
        replica: ReplicaId,
        offset: u64,
        length: u64,
    ) -> Result<Outcome, OpError> {
        self.check_range(replica, offset, length)?;
        let mut units = Vec::new();
        self.for_each_unit(replica, offset, length, |meta| units.push(meta));
        Ok(Outcome::Described { units })
    }

    pub fn digest(&self, replica: ReplicaId, offset: u64, length: u64) -> Result<Outcome, OpError> {
        self.check_range(replica, offset, length)?;
        let mut digest = 0;
        self.for_each_unit(replica, offset, length, |meta| digest = fold(digest, &meta));
        Ok(Outcome::Digest { digest })
    }

    pub fn allocated_blocks(
        &self,
        replica: ReplicaId,
        offset: u64,
        length: u64,
    ) -> Result<Outcome, OpError> {
        self.check_range(replica, offset, length)?;
        let bytes = usize::try_from((length / BLOCK).div_ceil(8)).expect("replicas are bounded");
        let mut bitmap = vec![0u8; bytes];
        self.for_each_unit(replica, offset, length, |meta| {
            let valid = u16::from_le_bytes([meta.valid[0], meta.valid[1]]);
            for block in (0..UNIT_BLOCKS).filter(|b| valid >> b & 1 == 1) {
                let at = meta.offset + u64::from(block) * BLOCK;
                if at >= offset && at < offset + length {
                    let index = (at - offset) / BLOCK;
                    bitmap[usize::try_from(index / 8).expect("fits")] |= 1 << (index % 8);
                }
            }
        });
        Ok(Outcome::Allocated { bitmap: Bytes::from(bitmap) })
    }

    /// The units that overlap the range and hold data, in order.
    fn for_each_unit(
        &self,
        replica: ReplicaId,
        offset: u64,
        length: u64,
        mut visit: impl FnMut(UnitMeta),
    ) {
        if length == 0 {
            return;
        }
        let unit_bytes = u64::from(UNIT_BYTES);
        let (first, _) = self.extent_and_block(offset);
        let (last, _) = self.extent_and_block(offset + length - 1);
        for (extent, slot) in self.table.extents(replica, first, last) {
            let descriptor = self.table.descriptor(slot);
            for unit in 0..self.layout.slot_units() {
                let at =
                    u64::from(extent) * self.layout.slot_bytes() + u64::from(unit) * unit_bytes;
                let valid = descriptor.valid(unit);
                if valid == 0 || at + unit_bytes <= offset || at >= offset + length {
                    continue;
                }
                let blocks = (0..UNIT_BLOCKS).filter(|b| valid >> b & 1 == 1);
                let crcs = blocks.map(|b| descriptor.crc(unit * UNIT_BLOCKS + b)).collect();
                visit(UnitMeta {
                    offset: at,
                    mod_seq: descriptor.mod_seq(unit),
                    valid: valid.to_le_bytes().to_vec(),
                    crcs,
                });
            }
        }
    }
}

/// The digest with one more unit. Part of the protocol: both sides must compute the same.
fn fold(digest: u64, meta: &UnitMeta) -> u64 {
    let valid = u64::from(u16::from_le_bytes([meta.valid[0], meta.valid[1]]));
    let head = [meta.offset, meta.mod_seq.raw(), valid];
    head.into_iter().chain(meta.crcs.iter().map(|&crc| u64::from(crc))).fold(digest, mix)
}

/// One round of splitmix64.
fn mix(state: u64, word: u64) -> u64 {
    let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
