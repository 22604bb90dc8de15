//! The durable record of a replica beside its blocks: what it promised and what it adopted.
//!
//! It lives in the engine's metadata of the replica, as JSON. A field that is added later gets a
//! serde default; a field is never given a new meaning.

use bytes::Bytes;
use model::{
    epoch::Epoch,
    group::GroupConfig,
    id::{GroupId, VolumeId},
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
