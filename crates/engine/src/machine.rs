//! The machine of one drive.

use std::time::Instant;

use model::{id::ReplicaId, units::ByteCount};

use crate::api::{Action, Event, Geometry, OpenError, Usage};

/// One drive. See the crate's documentation.
#[derive(Debug)]
pub struct Engine {
    usage: Usage,
}

impl Engine {
    /// Begins to open the drive; `Action::Opened` says when it is open. `seed` only makes the
    /// identity of a drive that is formatted now.
    pub fn open(
        geometry: Geometry,
        seed: u64,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> Result<Self, OpenError> {
        let _ = (seed, now, out);
        let wanted = 64 << 20;
        if geometry.drive_bytes < wanted {
            return Err(OpenError::TooSmall { drive_bytes: geometry.drive_bytes, wanted });
        }
        Ok(Self { usage: Usage::default() })
    }

    pub fn handle(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        let _ = (now, event, out);
    }

    /// When `Event::TimeReached` is wanted.
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Bytes of the drive that the replica occupies.
    pub fn allocated(&self, replica: ReplicaId) -> ByteCount {
        let _ = replica;
        ByteCount::ZERO
    }
}
