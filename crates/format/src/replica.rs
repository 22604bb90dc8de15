//! The durable record of a replica beside its blocks: what it promised and what it adopted.
//!
//! It lives in the engine's metadata of the replica, as JSON. A field that is added later gets a
//! serde default; a field is never given a new meaning. On each drive that a replica is striped
//! over, the record is wrapped in one of that part, so that nobody takes a part for a whole.

use bytes::Bytes;
use model::{
    epoch::Epoch,
    group::GroupConfig,
    id::{GroupId, VolumeId},
    units::ByteCount,
    volume::Stripes,
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    pub group: GroupId,
    pub volume: VolumeId,
    /// Everything below is refused.
    pub promised: Epoch,
    /// The last configuration that the replica acted under.
    pub adopted: Option<GroupConfig>,
    /// The content may miss acknowledged changes: it does not count until it has been a learner.
    #[serde(default)]
    pub stale: bool,
}

/// What a drive keeps of a replica that is striped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRecord {
    pub part: Part,
    pub record: ReplicaRecord,
}

/// Which part of a striped replica it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub index: u32,
    /// How many there are, each on a drive of its own.
    pub of: Stripes,
    /// Of the whole replica.
    pub size: ByteCount,
    /// Counts the records that were written to the parts. They are written to all at once, so after
    /// a crash some parts may have the latest and some the one before.
    pub serial: u64,
}

/// More than a part adds to the record of its replica.
pub const PART_BYTES_MAX: usize = 160;

/// A replica's record as a drive has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredRecord {
    Whole(ReplicaRecord),
    Part(PartRecord),
}

impl StoredRecord {
    pub fn decode(bytes: &[u8]) -> Result<Self, ReplicaRecordError> {
        if let Ok(part) = serde_json::from_slice::<PartRecord>(bytes) {
            let Part { index, of, .. } = part.part;
            if index < of.get() && of > Stripes::ONE {
                return Ok(Self::Part(part));
            }
        }
        Ok(Self::Whole(ReplicaRecord::decode(bytes)?))
    }
}

impl PartRecord {
    pub fn encode(&self) -> Bytes {
        Bytes::from(serde_json::to_vec(self).expect("plain data always serializes"))
    }
}

/// Why stored bytes are not a replica's record.
#[derive(Debug, thiserror::Error)]
#[error("the replica's record does not parse: {0}")]
pub struct ReplicaRecordError(#[from] serde_json::Error);

impl ReplicaRecord {
    /// Epoch of the adopted configuration; none yet is [`Epoch::NONE`].
    pub fn adopted_epoch(&self) -> Epoch {
        self.adopted.as_ref().map_or(Epoch::NONE, |config| config.epoch)
    }

    pub fn encode(&self) -> Bytes {
        Bytes::from(serde_json::to_vec(self).expect("plain data always serializes"))
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, ReplicaRecordError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ReplicaRecord {
        let (group, volume) = (GroupId::from_raw(1), VolumeId::from_raw(2));
        let promised = Epoch::MAX;
        ReplicaRecord { group, volume, promised, adopted: None, stale: true }
    }

    #[test]
    fn the_record_of_a_part_is_not_taken_for_that_of_a_whole_replica_or_the_reverse() {
        let of = Stripes::try_from(8).expect("legal");
        let part = Part { index: 7, of, size: ByteCount::new(u64::MAX), serial: u64::MAX };
        let part = PartRecord { part, record: record() };
        let bytes = part.encode();
        assert!(bytes.len() <= record().encode().len() + PART_BYTES_MAX);
        assert!(ReplicaRecord::decode(&bytes).is_err(), "an older version leaves it alone");
        assert_eq!(StoredRecord::decode(&bytes).ok(), Some(StoredRecord::Part(part)));
        let whole = record();
        let decoded = StoredRecord::decode(&whole.encode()).ok();
        assert_eq!(decoded, Some(StoredRecord::Whole(whole)));
    }

    #[test]
    fn a_part_that_cannot_be_is_no_record() {
        let of = Stripes::try_from(2).expect("legal");
        let part = Part { index: 2, of, size: ByteCount::new(4096), serial: 1 };
        assert!(StoredRecord::decode(&PartRecord { part, record: record() }.encode()).is_err());
    }
}
