//! One drive of the server: its engine, and how it stands.

use std::time::Duration;

use engine::{
    Engine,
    api::{Action as EngineAction, Event as EngineEvent, OpError, OpToken, OpenError, Outcome},
};
use format::{
    ctl::{Damage, DriveReport, DriveState, DriveStatus, DriveUsage},
    disk::JournalPlace,
    replica::StoredRecord,
};
use model::{id::ReplicaId, limits::DRIVE_FULL_PERCENT, time::Instant, units::ByteCount};

use crate::{
    api::{Action, DriveParams},
    scrub::Scrub,
};

/// The manager hears of a drive no more often.
const STATUS_EVERY: Duration = Duration::from_secs(2);

/// A full drive has room again with so many slots below the mark; one in a hundred if it is small.
const ROOM_SLOTS: u64 = 64;

#[derive(Debug)]
pub struct Drive {
    params: DriveParams,
    engine: Engine,
    state: State,
    /// What the manager was last told, and when.
    told: Option<DriveStatus>,
    /// Of all its replicas since the start, those that are gone included.
    pub damage: Damage,
    pub scrub: Scrub,
    told_at: Option<Instant>,
    is_full: bool,
    /// Changes that wait, unordered, at primaries on it.
    pub waiting_for_room: u64,
}

/// `opening ─► open ─► failed`, or failed at once.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Opening,
    Open,
    Failed(String),
}

/// What comes out of a drive.
#[derive(Debug)]
pub enum FromDrive {
    Act(Action),
    Completed(OpToken, Result<Outcome, OpError>),
    Opened { found: Vec<Found>, formatted: bool },
    Failed(String),
}

/// A replica, or a part of one, that the drive holds.
#[derive(Debug)]
pub struct Found {
    pub replica: ReplicaId,
    pub size: ByteCount,
    pub record: StoredRecord,
    /// Its content is in doubt.
    pub stale: bool,
}

impl Drive {
    pub fn open(
        params: DriveParams,
        (seed, scrub): (u64, Scrub),
        now: Instant,
        out: &mut Vec<FromDrive>,
    ) -> Result<Self, OpenError> {
        let mut actions = Vec::new();
        let engine = Engine::open(params.geometry, seed, now, &mut actions)?;
        let mut drive = Self {
            params,
            engine,
            state: State::Opening,
            told: None,
            told_at: None,
            damage: Damage::default(),
            scrub,
            is_full: false,
            waiting_for_room: 0,
        };
        drive.pass_on(actions, out);
        Ok(drive)
    }

    pub fn handle(&mut self, now: Instant, event: EngineEvent, out: &mut Vec<FromDrive>) {
        let mut actions = Vec::new();
        self.engine.handle(now, event, &mut actions);
        self.pass_on(actions, out);
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.engine.deadline()
    }

    /// Why the drive is out of service.
    pub fn failed(&self) -> Option<&str> {
        match &self.state {
            State::Failed(reason) => Some(reason),
            State::Opening | State::Open => None,
        }
    }

    pub fn is_settled(&self) -> bool {
        self.state != State::Opening
    }

    /// Whether it has slots left only for what is in flight.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// Whether changes may wait at primaries on it, or were said to.
    pub fn minds_waiting(&self) -> bool {
        self.is_full || self.waiting_for_room > 0
    }

    /// Looks how full it is; true when that is another answer than before. Some slots must come
    /// free until a full drive has room again, so that it is not both with every slot that does.
    pub fn fullness_changed(&mut self) -> bool {
        let usage = self.engine.usage();
        let (used, total) = (usage.slots_used, usage.slots_total);
        let margin = if self.is_full { ROOM_SLOTS.min(total / 100) } else { 0 };
        let is_full = total > 0 && (used + margin) * 100 >= total * DRIVE_FULL_PERCENT;
        std::mem::replace(&mut self.is_full, is_full) != is_full
    }

    pub fn allocated(&self, replica: ReplicaId) -> ByteCount {
        self.engine.allocated(replica)
    }

    pub fn report(&self) -> DriveReport {
        let usage = self.engine.usage();
        let slot = u64::from(self.params.media.extent_bytes());
        DriveReport {
            drive: self.params.drive.clone(),
            media: self.params.media,
            capacity: self.params.capacity,
            rate: self.params.rate,
            allocated: ByteCount::new(usage.slots_used.saturating_mul(slot)),
            emulation: self.params.emulation.clone(),
            failed: self.failed().map(str::to_owned),
            identity: self.engine.identity(),
        }
    }

    /// For the manager, if it would learn anything new.
    pub fn news(&mut self, now: Instant) -> Option<DriveStatus> {
        if self.told_at.is_some_and(|at| now.since(at) < STATUS_EVERY) {
            return None;
        }
        let status = self.status();
        if self.told.as_ref() == Some(&status) {
            return None;
        }
        self.told_at = Some(now);
        self.told = Some(status.clone());
        Some(status)
    }

    /// The manager may not have heard what it was told.
    pub fn tell_again(&mut self) {
        (self.told, self.told_at) = (None, None);
    }

    fn status(&self) -> DriveStatus {
        let usage = self.engine.usage();
        let usage = DriveUsage {
            slots_total: usage.slots_total,
            slots_used: usage.slots_used,
            slot_bytes: u64::from(self.params.media.extent_bytes()),
            journal_bytes: self.params.geometry.journal_bytes,
            journal_bytes_used: usage.journal_bytes_used,
            waiting_for_space: usage.waiting_for_space + self.waiting_for_room,
            journal_apart: self.params.geometry.journal == JournalPlace::Apart,
            memory_used: usage.memory_bytes,
            memory_max: usage.memory_bytes_max,
        };
        let state = match self.state {
            State::Opening => DriveState::Opening,
            State::Open => DriveState::Serving,
            State::Failed(_) => DriveState::OutOfService,
        };
        DriveStatus {
            drive: self.params.drive.clone(),
            identity: self.engine.identity(),
            state,
            reason: self.failed().map(str::to_owned),
            usage,
            damage: self.damage,
            scrub: self.scrub.status(),
        }
    }

    fn pass_on(&mut self, actions: Vec<EngineAction>, out: &mut Vec<FromDrive>) {
        for action in actions {
            let drive = self.params.drive.clone();
            out.push(match action {
                EngineAction::ReadDrive { device, token, offset, length } => {
                    FromDrive::Act(Action::ReadDrive { drive, device, token, offset, length })
                }
                EngineAction::WriteDrive { device, token, offset, data, durability, urgency } => {
                    FromDrive::Act(Action::WriteDrive {
                        drive,
                        device,
                        token,
                        offset,
                        data,
                        durability,
                        urgency,
                    })
                }
                EngineAction::FlushDrive { device, token } => {
                    FromDrive::Act(Action::FlushDrive { drive, device, token })
                }
                EngineAction::PrepareDrive { token, offset, length } => {
                    FromDrive::Act(Action::PrepareDrive { drive, token, offset, length })
                }
                EngineAction::Complete { token, outcome } => FromDrive::Completed(token, outcome),
                EngineAction::Opened { replicas, formatted } => {
                    self.state = State::Open;
                    // A record that does not parse belongs to nobody we could serve.
                    let known = replicas.into_iter().filter_map(|r| {
                        let record = StoredRecord::decode(&r.meta).ok()?;
                        let (replica, size, stale) = (r.replica, r.size, r.stale);
                        Some(Found { replica, size, record, stale })
                    });
                    FromDrive::Opened { found: known.collect(), formatted }
                }
                EngineAction::DriveOutOfService { reason } => {
                    let reason = format!("{}: {reason}", self.params.place);
                    self.state = State::Failed(reason.clone());
                    FromDrive::Failed(reason)
                }
            });
        }
    }
}
