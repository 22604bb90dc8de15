//! The machine of one drive: opening, open, out of service.

use std::{collections::VecDeque, time::Duration};

use format::disk::{DriveShape, FormatVersion, Layout};
use model::{
    id::{DriveIdentity, ReplicaId},
    time::Instant,
    units::ByteCount,
};

use crate::{
    api::{Action, Event, Geometry, OpError, OpToken, OpenError, Request, Usage},
    drive::Drive,
    open::{Opening, Progress},
};

/// Requests accepted at once. The caller bounds what it has in flight far below; this many means
/// that it does not.
const ACCEPTED_MAX: usize = 1 << 20;

/// How long after the last batch another one tells recovery that it was durable.
pub(crate) const SEAL_AFTER: Duration = Duration::from_millis(100);

/// One drive. See the crate's documentation.
#[derive(Debug)]
pub struct Engine {
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Opening { opening: Box<Opening>, early: VecDeque<(OpToken, Request)> },
    Open(Box<Drive>),
    OutOfService,
}

impl Engine {
    /// Begins to open the drive; `Action::Opened` says when it is open, `DriveOutOfService` that
    /// it cannot be. A drive whose head is zeros is formatted; `seed` then makes its identity, and
    /// must not be guessable by a guest.
    pub fn open(
        geometry: Geometry,
        seed: u64,
        _now: Instant,
        out: &mut Vec<Action>,
    ) -> Result<Self, OpenError> {
        let Geometry { media, drive_bytes, journal_bytes, journal, replicas_max, memory_bytes } =
            geometry;
        let shape = DriveShape { media, drive_bytes, journal_bytes, journal, replicas_max };
        let layout = Layout::of(&shape, FormatVersion::V3)
            .map_err(|wanted| OpenError::TooSmall { drive_bytes, wanted })?;
        let opening = Box::new(Opening::begin(shape, layout, memory_bytes, seed, out));
        Ok(Self { phase: Phase::Opening { opening, early: VecDeque::new() } })
    }

    pub fn handle(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        match &mut self.phase {
            Phase::Opening { opening, early } => match event {
                Event::Requested { token, request } => {
                    assert!(early.len() < ACCEPTED_MAX, "the caller bounds its requests");
                    early.push_back((token, request));
                }
                Event::TimeReached => {}
                event => {
                    let progress = opening.handle(event, out);
                    self.progressed(now, progress, out);
                }
            },
            Phase::Open(drive) => {
                if let Event::Requested { .. } = &event {
                    assert!(drive.accepted() < ACCEPTED_MAX, "the caller bounds its requests");
                }
                drive.handle(now, event, out);
                if let Some(reason) = drive.failure() {
                    out.push(Action::DriveOutOfService { reason });
                    drive.refuse_accepted(out);
                    self.phase = Phase::OutOfService;
                }
            }
            Phase::OutOfService => {
                if let Event::Requested { token, .. } = event {
                    refuse(token, out);
                }
            }
        }
    }

    fn progressed(&mut self, now: Instant, progress: Progress, out: &mut Vec<Action>) {
        match progress {
            Progress::More => {}
            Progress::Failed(reason) => {
                let phase = std::mem::replace(&mut self.phase, Phase::OutOfService);
                out.push(Action::DriveOutOfService { reason });
                if let Phase::Opening { early, .. } = phase {
                    early.into_iter().for_each(|(token, _)| refuse(token, out));
                }
            }
            Progress::Open { drive, replicas, formatted } => {
                out.push(Action::Opened { replicas, formatted });
                let mut drive = drive;
                drive.go_on(false, out);
                let phase = std::mem::replace(&mut self.phase, Phase::Open(drive));
                if let Phase::Opening { early, .. } = phase {
                    for (token, request) in early {
                        self.handle(now, Event::Requested { token, request }, out);
                    }
                }
            }
        }
    }

    /// When `Event::TimeReached` is wanted.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Open(drive) => drive.deadline(),
            Phase::Opening { .. } | Phase::OutOfService => None,
        }
    }

    pub fn usage(&self) -> Usage {
        match &self.phase {
            Phase::Open(drive) => drive.usage(),
            Phase::Opening { .. } | Phase::OutOfService => Usage::default(),
        }
    }

    /// Which formatting of the drive this is, once it is open.
    pub fn identity(&self) -> Option<DriveIdentity> {
        match &self.phase {
            Phase::Open(drive) => Some(drive.identity()),
            Phase::Opening { .. } | Phase::OutOfService => None,
        }
    }

    /// Makes the next write-back cycle begin now, however empty the journal is.
    #[cfg(test)]
    pub(crate) fn want_cycle(&mut self) {
        if let Phase::Open(drive) = &mut self.phase {
            drive.writeback.wanted = true;
        }
    }

    /// Bytes of memory that what was read ahead takes, or is going to.
    #[cfg(test)]
    pub(crate) fn bytes_ahead(&self) -> u64 {
        match &self.phase {
            Phase::Open(drive) => drive.readers.ahead.bytes(),
            Phase::Opening { .. } | Phase::OutOfService => 0,
        }
    }

    /// How the drive was formatted.
    #[cfg(test)]
    pub(crate) fn format_version(&self) -> Option<FormatVersion> {
        match &self.phase {
            Phase::Open(drive) => Some(drive.layout.version),
            Phase::Opening { .. } | Phase::OutOfService => None,
        }
    }

    /// Bytes of the drive that the replica occupies.
    pub fn allocated(&self, replica: ReplicaId) -> ByteCount {
        match &self.phase {
            Phase::Open(drive) => drive.allocated(replica),
            Phase::Opening { .. } | Phase::OutOfService => ByteCount::ZERO,
        }
    }
}

fn refuse(token: OpToken, out: &mut Vec<Action>) {
    out.push(Action::Complete { token, outcome: Err(OpError::DriveFailed) });
}
