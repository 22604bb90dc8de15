//! One drive of the server: its engine, and how it stands.

use engine::{
    Engine,
    api::{Action as EngineAction, Event as EngineEvent, OpError, OpToken, OpenError, Outcome},
};
use format::{ctl::DriveReport, replica::ReplicaRecord};
use model::{id::ReplicaId, time::Instant, units::ByteCount};

use crate::api::{Action, DriveParams};

#[derive(Debug)]
pub struct Drive {
    params: DriveParams,
    engine: Engine,
    state: State,
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
    /// Replica, size, record, and whether its content is in doubt.
    Opened(Vec<(ReplicaId, ByteCount, ReplicaRecord, bool)>),
    Failed(String),
}

impl Drive {
    pub fn open(
        params: DriveParams,
        seed: u64,
        now: Instant,
        out: &mut Vec<FromDrive>,
    ) -> Result<Self, OpenError> {
        let mut actions = Vec::new();
        let engine = Engine::open(params.geometry, seed, now, &mut actions)?;
        let mut drive = Self { params, engine, state: State::Opening };
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
        }
    }

    fn pass_on(&mut self, actions: Vec<EngineAction>, out: &mut Vec<FromDrive>) {
        for action in actions {
            let drive = self.params.drive.clone();
            out.push(match action {
                EngineAction::ReadDrive { token, offset, length } => {
                    FromDrive::Act(Action::ReadDrive { drive, token, offset, length })
                }
                EngineAction::WriteDrive { token, offset, data, durable } => {
                    FromDrive::Act(Action::WriteDrive { drive, token, offset, data, durable })
                }
                EngineAction::FlushDrive { token } => {
                    FromDrive::Act(Action::FlushDrive { drive, token })
                }
                EngineAction::Complete { token, outcome } => FromDrive::Completed(token, outcome),
                EngineAction::Opened { replicas } => {
                    self.state = State::Open;
                    // A record that does not parse belongs to nobody we could serve.
                    let known = replicas.into_iter().filter_map(|r| {
                        let record = ReplicaRecord::decode(&r.meta).ok()?;
                        Some((r.replica, r.size, record, r.stale))
                    });
                    FromDrive::Opened(known.collect())
                }
                EngineAction::DriveOutOfService { reason } => {
                    self.state = State::Failed(reason.clone());
                    FromDrive::Failed(reason)
                }
            });
        }
    }
}
