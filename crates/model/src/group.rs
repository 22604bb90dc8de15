//! The configuration of a group: who holds the data, who orders the writes, under which epoch.
//!
//! Only the manager makes a new one, by compare-and-swap on the epoch. Everybody else adopts it,
//! durably, before acting on it. The numbers in the comments are the invariants of
//! `docs/replication.md`.

use core::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{
    epoch::{AttachGeneration, Epoch},
    id::{DriveName, GroupId, ReplicaId, ServerId, VolumeId},
    units::{ByteCount, Rate},
    volume::Media,
};

/// One replica as the configuration knows it, with where to reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub replica: ReplicaId,
    pub server: ServerId,
    /// Where the server listens for data frames.
    pub address: SocketAddr,
    pub drive: DriveName,
    pub role: Role,
}

/// What a member is in this configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Orders the writes and answers the node. In the in-sync set.
    Primary,
    /// Follows the primary. In the in-sync set: no write is acknowledged without it.
    Mirror,
    /// Being filled from `source`. Never read, never counted, never promoted (16).
    Learner { source: ReplicaId },
}

/// A group's configuration at one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupConfig {
    pub group: GroupId,
    pub volume: VolumeId,
    pub epoch: Epoch,
    /// In order of promotion; the primary first, learners last.
    pub members: Vec<Member>,
    pub size: ByteCount,
    pub attach_generation: AttachGeneration,
    /// The limit that the primary enforces.
    pub rate: Rate,
    /// Decides how many bytes count as one customer I/O.
    pub media: Media,
}

/// Why a configuration is not well formed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration has {0} primaries instead of one")]
    Primaries(usize),
    #[error("replica {0} is listed twice")]
    Duplicate(ReplicaId),
    #[error("replicas share server {0}")]
    SharedServer(ServerId),
    #[error("learner {learner} names source {source_replica}, which is not in sync")]
    Source { learner: ReplicaId, source_replica: ReplicaId },
    #[error("size {0} is not a whole number of blocks")]
    Size(ByteCount),
}

impl GroupConfig {
    /// Checks what must hold of every configuration, whoever made it (2, 16).
    pub fn check(&self) -> Result<(), ConfigError> {
        let primaries = self.members.iter().filter(|m| m.role == Role::Primary).count();
        if primaries != 1 {
            return Err(ConfigError::Primaries(primaries));
        }
        if !self.size.get().is_multiple_of(crate::units::BLOCK) {
            return Err(ConfigError::Size(self.size));
        }
        for (i, member) in self.members.iter().enumerate() {
            for other in &self.members[..i] {
                if other.replica == member.replica {
                    return Err(ConfigError::Duplicate(member.replica));
                }
            }
            if let Role::Learner { source } = member.role
                && !self.in_sync().any(|m| m.replica == source)
            {
                return Err(ConfigError::Source {
                    learner: member.replica,
                    source_replica: source,
                });
            }
        }
        Ok(())
    }

    pub fn primary(&self) -> &Member {
        self.members.iter().find(|m| m.role == Role::Primary).expect("checked: one primary")
    }

    /// Members whose acknowledgement every write needs.
    pub fn in_sync(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| !matches!(m.role, Role::Learner { .. }))
    }

    pub fn mirrors(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| m.role == Role::Mirror)
    }

    pub fn learners(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| matches!(m.role, Role::Learner { .. }))
    }

    pub fn member(&self, replica: ReplicaId) -> Option<&Member> {
        self.members.iter().find(|m| m.replica == replica)
    }

    pub fn is_in_sync(&self, replica: ReplicaId) -> bool {
        self.in_sync().any(|m| m.replica == replica)
    }
}
