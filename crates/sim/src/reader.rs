//! Opens an engine on a drive at rest and reads what it holds, as an auditor would.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use engine::{
    Engine,
    api::{Action, Device, Event, Geometry, OpToken, Outcome, Request},
};
use model::{id::ReplicaId, time::Instant};

use crate::drive::{Drive, zeros};

pub struct Reader<'a> {
    engine: Engine,
    /// What the drive holds, and what recovery writes over it.
    drive: Scratch<'a>,
    /// Where the journal lies, if it lies apart.
    journal: Option<Scratch<'a>>,
    next: u64,
    /// What lies on the drive.
    pub replicas: Vec<ReplicaId>,
}

/// A device's content with later writes on top, so that the audit leaves the device as it is.
struct Scratch<'a> {
    below: &'a Drive,
    above: BTreeMap<u64, Bytes>,
}

impl<'a> Reader<'a> {
    pub fn open(
        geometry: Geometry,
        drive: &'a Drive,
        journal: Option<&'a Drive>,
    ) -> Result<Self, String> {
        let (drive, journal) = (Scratch::of(drive), journal.map(Scratch::of));
        let mut actions = Vec::new();
        let engine =
            Engine::open(geometry, 1, Instant::ZERO, &mut actions).map_err(|e| e.to_string())?;
        let mut reader = Self { engine, drive, journal, next: 1, replicas: Vec::new() };
        for action in reader.run(actions) {
            if let Action::Opened { replicas, .. } = action {
                reader.replicas = replicas.into_iter().map(|open| open.replica).collect();
            }
        }
        Ok(reader)
    }

    /// One block of a replica.
    pub fn read(&mut self, replica: ReplicaId, offset: u64) -> Result<Bytes, String> {
        self.next += 1;
        let token = OpToken(self.next);
        let request = Request::Read { replica, offset, length: 4096 };
        let mut actions = Vec::new();
        self.engine.handle(Instant::ZERO, Event::Requested { token, request }, &mut actions);
        for action in self.run(actions) {
            if let Action::Complete { token: done, outcome } = action
                && done == token
            {
                return match outcome {
                    Ok(Outcome::Read { data, .. }) => Ok(data),
                    other => Err(format!("reading {replica} at {offset}: {other:?}")),
                };
            }
        }
        Err(format!("reading {replica} at {offset}: no answer"))
    }

    /// Carries out drive actions until there are none; returns the others.
    fn run(&mut self, actions: Vec<Action>) -> Vec<Action> {
        let mut queue = VecDeque::from(actions);
        let mut rest = Vec::new();
        while let Some(action) = queue.pop_front() {
            let event = match action {
                Action::ReadDrive { device, token, offset, length } => {
                    let result = Ok(self.device(device).read(offset, length));
                    Event::DriveRead { token, result }
                }
                Action::WriteDrive { device, token, offset, data, .. } => {
                    self.device(device).write(offset, &data);
                    Event::DriveWritten { token, result: Ok(()) }
                }
                Action::PrepareDrive { token, offset, length } => {
                    self.drive.write(offset, &zeros(length));
                    Event::DriveWritten { token, result: Ok(()) }
                }
                Action::FlushDrive { token, .. } => Event::DriveFlushed { token, result: Ok(()) },
                other => {
                    rest.push(other);
                    continue;
                }
            };
            let mut out = Vec::new();
            self.engine.handle(Instant::ZERO, event, &mut out);
            queue.extend(out);
        }
        rest
    }

    fn device(&mut self, device: Device) -> &mut Scratch<'a> {
        match device {
            Device::Data => &mut self.drive,
            Device::Journal => self.journal.as_mut().expect("it lies apart"),
        }
    }
}

impl<'a> Scratch<'a> {
    fn of(below: &'a Drive) -> Self {
        Self { below, above: BTreeMap::new() }
    }

    fn read(&self, offset: u64, length: u32) -> Bytes {
        let mut out = self.below.read(offset, length).to_vec();
        for (index, block) in out.chunks_exact_mut(4096).enumerate() {
            if let Some(newer) = self.above.get(&(offset / 4096 + index as u64)) {
                block.copy_from_slice(newer);
            }
        }
        out.into()
    }

    fn write(&mut self, offset: u64, data: &[Bytes]) {
        let joined: Bytes = data.concat().into();
        for index in 0..joined.len() / 4096 {
            let block = joined.slice(index * 4096..(index + 1) * 4096);
            self.above.insert(offset / 4096 + index as u64, block);
        }
    }
}
