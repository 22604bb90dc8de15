//! Looking at what servers hold, on their drives.

use std::collections::BTreeMap;

use bytes::Bytes;
use engine::{
    Engine,
    api::{Action, Durability, Event, OpToken, Outcome, Request},
};
use format::data::UnitMeta;
use model::{group::Member, id::DriveName, time::Instant, units::BLOCK};

use crate::{
    client::value_of,
    disk::Disk,
    world::{SIZE, World, geometry},
};

const MIB: u64 = 1 << 20;

/// What a replica holds, by what its drive has on it (and would have after a crash).
#[derive(Debug, PartialEq, Eq)]
pub struct Content {
    pub units: Vec<UnitMeta>,
    /// By block; those that are not zero.
    pub values: BTreeMap<u64, u64>,
}

struct Reader {
    engine: Engine,
    disk: Disk,
    now: Instant,
}

impl Reader {
    fn run(&mut self, mut actions: Vec<Action>) -> Vec<Result<Outcome, engine::api::OpError>> {
        let mut outcomes = Vec::new();
        while !actions.is_empty() {
            let mut next = Vec::new();
            for action in std::mem::take(&mut actions) {
                let event = match action {
                    Action::ReadDrive { token, offset, length, .. } => {
                        Event::DriveRead { token, result: Ok(self.disk.read(offset, length)) }
                    }
                    Action::WriteDrive { token, offset, data, durability, .. } => {
                        self.disk.write(offset, &data, durability);
                        Event::DriveWritten { token, result: Ok(()) }
                    }
                    Action::PrepareDrive { token, offset, length } => {
                        let zeros = [Bytes::from(vec![0; length as usize])];
                        self.disk.write(offset, &zeros, Durability::Later);
                        Event::DriveWritten { token, result: Ok(()) }
                    }
                    Action::FlushDrive { token, .. } => {
                        self.disk.flush();
                        Event::DriveFlushed { token, result: Ok(()) }
                    }
                    Action::Complete { outcome, .. } => {
                        outcomes.push(outcome);
                        continue;
                    }
                    Action::Opened { .. } => continue,
                    Action::DriveOutOfService { reason } => panic!("{reason}"),
                };
                self.engine.handle(self.now, event, &mut next);
            }
            actions = next;
        }
        outcomes
    }

    fn ask(&mut self, request: Request) -> Outcome {
        let mut out = Vec::new();
        let token = OpToken(1);
        self.engine.handle(self.now, Event::Requested { token, request }, &mut out);
        let mut outcomes = self.run(out);
        assert_eq!(outcomes.len(), 1);
        outcomes.pop().expect("one").expect("it succeeds")
    }
}

impl World {
    /// Opens copies of the drives, as if the server had lost power now.
    pub fn content(&mut self, member: &Member) -> Content {
        let drives = self.manager.drives_of(member);
        let parts = drives.len() as u64;
        let mut all = Content { units: Vec::new(), values: BTreeMap::new() };
        for (part, drive) in (0..).zip(&drives) {
            let whole = |at: u64| ((at / MIB) * parts + part) * MIB + at % MIB;
            let length = (0..SIZE / MIB).filter(|unit| unit % parts == part).count() as u64 * MIB;
            let Content { units, values } = self.content_of_part(member, drive, length);
            let moved = |unit: UnitMeta| UnitMeta { offset: whole(unit.offset), ..unit };
            all.units.extend(units.into_iter().map(moved));
            all.values.extend(values.into_iter().map(|(b, v)| (whole(b * BLOCK) / BLOCK, v)));
        }
        all.units.sort_by_key(|unit| unit.offset);
        all
    }

    pub fn content_of_part(&mut self, member: &Member, drive: &DriveName, size: u64) -> Content {
        let replica = member.replica;
        let mut disk = self.hosts[&member.server].disks[drive].clone();
        disk.crash(&mut self.rng);
        let mut out = Vec::new();
        let geometry = geometry(self.media[drive], self.drive_bytes(&member.server));
        let engine = Engine::open(geometry, 1, self.now, &mut out).expect("it opened before");
        let mut reader = Reader { engine, disk, now: self.now };
        reader.run(out);
        let request = Request::Describe { replica, offset: 0, length: size };
        let Outcome::Described { units } = reader.ask(request) else { panic!("described") };
        let mut values = BTreeMap::new();
        for unit in &units {
            let length = (64 << 10).min(size - unit.offset) as u32;
            let request = Request::Read { replica, offset: unit.offset, length };
            let Outcome::Read { data, .. } = reader.ask(request) else { panic!("read") };
            for (i, block) in data.chunks(BLOCK as usize).enumerate() {
                let value = value_of(block);
                if value != 0 {
                    values.insert(unit.offset / BLOCK + i as u64, value);
                }
            }
        }
        Content { units, values }
    }

    /// At rest, every in-sync replica holds the same, and what was acknowledged.
    pub fn check_replicas(&mut self) {
        let members: Vec<_> = self.manager.config.in_sync().cloned().collect();
        let mut first: Option<Content> = None;
        for member in members {
            let content = self.content(&member);
            for (block, may) in self.client.expected() {
                let held = content.values.get(&block).copied().unwrap_or(0);
                assert!(
                    may.contains(&held),
                    "block {block} of {} holds {held}, not {may:?}",
                    member.replica
                );
            }
            match &first {
                None => first = Some(content),
                Some(first) => {
                    assert!(*first == content, "replicas differ\n{first:#?}\n{content:#?}")
                }
            }
        }
    }
}
