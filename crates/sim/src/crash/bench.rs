//! An engine on a simulated drive: what it asks of the drive is carried out when and in the order
//! that the owner of the bench says.

use std::{collections::VecDeque, time::Duration};

use engine::{
    Engine,
    api::{
        Action, Device, DriveError, Durability, Event, Geometry, IoToken, OpError, OpToken,
        OpenReplica, Outcome, Request,
    },
};
use model::time::Instant;

use super::trace::Trace;
use crate::{
    drive::{Crash, Drive, Ticket, faults::Faults, image::Images, zeros},
    random::Random,
};

/// Actions without a request between them, far beyond what a drive of this size can need.
const STEPS_MAX: u64 = 200_000;
const DURABLE_WRITES_KEPT: usize = 16;

#[derive(Debug)]
pub struct Bench {
    pub engine: Engine,
    pub drive: Drive,
    /// Where the journal lies, if it lies apart.
    pub journal: Drive,
    pub under_way: Vec<Io>,
    pub completed: Vec<(OpToken, Result<Outcome, OpError>)>,
    pub opened: Option<Vec<OpenReplica>>,
    pub out_of_service: Option<String>,
    pub now: Instant,
    next_op: u64,
    /// A write became stable, or a flush completed, in the last step.
    pub at_boundary: bool,
    /// The last writes that were durable, newest first: first block and count.
    pub durable_writes: VecDeque<(Device, u64, u64)>,
    /// What happened, when it is wanted.
    pub trace: Trace,
}

/// A drive action that is under way.
#[derive(Debug)]
pub struct Io {
    device: Device,
    token: IoToken,
    work: Work,
    /// It waits until nothing else is left.
    stalled: bool,
}

#[derive(Debug)]
enum Work {
    Read { offset: u64, length: u32 },
    Write { ticket: Ticket, offset: u64, blocks: u64, durability: Durability },
    Flush { ticket: Ticket },
    Prepare { ticket: Ticket },
}

impl Bench {
    /// Starts to open; nothing is carried out yet.
    pub fn start(geometry: Geometry, drive: Drive, journal: Drive, trace: Trace) -> Self {
        let mut out = Vec::new();
        let now = Instant::ZERO;
        let engine = Engine::open(geometry, 7, now, &mut out).expect("the drive is large enough");
        let mut bench = Self {
            engine,
            drive,
            journal,
            under_way: Vec::new(),
            completed: Vec::new(),
            opened: None,
            out_of_service: None,
            now,
            next_op: 0,
            at_boundary: false,
            durable_writes: VecDeque::new(),
            trace,
        };
        bench.take(out);
        bench
    }

    /// Opens the engine on what a crash left.
    pub fn open(geometry: Geometry, images: Images, trace: Trace) -> Result<Self, String> {
        let bench = Self::tried(geometry, images, trace);
        match (&bench.opened, &bench.out_of_service) {
            (Some(_), None) => Ok(bench),
            (_, reason) => Err(format!("the drive does not open: {reason:?}")),
        }
    }

    /// Opens the engine, or sees it refuse to.
    pub fn tried(geometry: Geometry, Images { data, journal }: Images, trace: Trace) -> Self {
        let mut bench = Self::start(geometry, Drive::of(data), Drive::of(journal), trace);
        bench.run();
        bench
    }

    /// What reads see.
    pub fn seen(&self) -> Images {
        Images { data: self.drive.seen().clone(), journal: self.journal.seen().clone() }
    }

    /// What a crash leaves now, on each device for itself.
    pub fn crash_images(&self, kinds: (Crash, Crash), random: &mut Random) -> Images {
        let data = self.drive.crash_image(kinds.0, random);
        Images { data, journal: self.journal.crash_image(kinds.1, random) }
    }

    pub fn unstable_writes(&self) -> usize {
        self.drive.unstable_writes() + self.journal.unstable_writes()
    }

    pub fn note(&self, text: impl FnOnce() -> String) {
        self.trace.note(text);
    }

    fn take(&mut self, actions: Vec<Action>) {
        let out_of_service = self.out_of_service.is_some();
        for action in actions {
            let is_answer = matches!(action, Action::Complete { .. });
            assert!(is_answer || !out_of_service, "{action:?} of a drive out of service");
            match action {
                Action::WriteDrive { device, token, offset, data, durability, .. } => {
                    let blocks = data.iter().map(|part| part.len() as u64).sum::<u64>() / 4096;
                    let ticket = self.device(device).begin_write(offset, &data);
                    self.note(|| {
                        format!(
                            "  write {} at {device:?} {offset:#x}, {blocks} blocks, {durability:?}",
                            token.0
                        )
                    });
                    self.begin(device, token, Work::Write { ticket, offset, blocks, durability });
                }
                Action::ReadDrive { device, token, offset, length } => {
                    self.begin(device, token, Work::Read { offset, length });
                }
                Action::FlushDrive { device, token } => {
                    let ticket = self.device(device).begin_flush();
                    self.note(|| format!("  flush {} of {device:?}", token.0));
                    self.begin(device, token, Work::Flush { ticket });
                }
                Action::PrepareDrive { token, offset, length } => {
                    let device = Device::Data;
                    self.note(|| format!("  prepare {} at {offset:#x}+{length:#x}", token.0));
                    // What was written before may keep what it has.
                    let keeps = token.0.is_multiple_of(4);
                    let zeros = zeros(length);
                    let ticket = self.drive.begin_write(offset, if keeps { &[] } else { &zeros });
                    self.begin(device, token, Work::Prepare { ticket });
                }
                Action::Complete { token, outcome } => self.completed.push((token, outcome)),
                Action::Opened { replicas, .. } => {
                    assert!(self.opened.is_none() && self.completed.is_empty(), "opened first");
                    self.opened = Some(replicas);
                }
                Action::DriveOutOfService { reason } => self.out_of_service = Some(reason),
            }
        }
    }

    fn device(&mut self, device: Device) -> &mut Drive {
        match device {
            Device::Data => &mut self.drive,
            Device::Journal => &mut self.journal,
        }
    }

    fn begin(&mut self, device: Device, token: IoToken, work: Work) {
        let stalled = self.device(device).faults.as_mut().is_some_and(Faults::stalls);
        self.under_way.push(Io { device, token, work, stalled });
    }

    pub fn event(&mut self, event: Event) {
        let mut out = Vec::new();
        self.engine.handle(self.now, event, &mut out);
        self.take(out);
    }

    pub fn request(&mut self, request: Request) -> OpToken {
        let token = OpToken(self.next_op);
        self.next_op += 1;
        self.event(Event::Requested { token, request });
        token
    }

    /// Carries out one action, or another one if that is stalled.
    pub fn step(&mut self, index: usize) {
        let others = (index..self.under_way.len()).chain(0..index);
        let index = others.into_iter().find(|&i| !self.under_way[i].stalled).unwrap_or(index);
        let Io { device, token, work, .. } = self.under_way.remove(index);
        self.at_boundary = false;
        let event = match work {
            Work::Read { offset, length } => {
                let result =
                    self.device(device).carry_out_read(offset, length).map_err(DriveError::Io);
                Event::DriveRead { token, result }
            }
            Work::Write { ticket, offset, blocks, durability } => {
                let result = self.device(device).carry_out_write(ticket, durability);
                let result = result.map_err(DriveError::Io);
                self.at_boundary = result.is_ok() && durability != Durability::Later;
                if self.at_boundary {
                    self.durable_writes.truncate(DURABLE_WRITES_KEPT - 1);
                    self.durable_writes.push_front((device, offset / 4096, blocks));
                }
                self.note(|| format!("  written {} at {offset:#x}: {result:?}", token.0));
                Event::DriveWritten { token, result }
            }
            Work::Prepare { ticket } => {
                let result = self.drive.carry_out_preparing(ticket);
                self.note(|| format!("  prepared {}: {result:?}", token.0));
                Event::DriveWritten { token, result }
            }
            Work::Flush { ticket } => {
                let result = self.device(device).carry_out_flush(ticket).map_err(DriveError::Io);
                self.at_boundary = result.is_ok();
                self.note(|| format!("  flushed {}: {result:?}", token.0));
                Event::DriveFlushed { token, result }
            }
        };
        self.event(event);
    }

    /// The turn in which the last events came ends; returns whether the engine minds.
    pub fn end_turn(&mut self) -> bool {
        let minds = self.engine.deadline() == Some(self.now);
        if minds {
            self.event(Event::TimeReached);
        }
        minds
    }

    /// Until nothing is under way.
    pub fn run(&mut self) {
        for _ in 0..STEPS_MAX {
            if self.end_turn() {
                continue;
            }
            if self.under_way.is_empty() {
                return;
            }
            self.step(0);
        }
        panic!("the engine never comes to rest");
    }

    /// Lets time come to the engine's deadline; returns whether it wants any.
    pub fn pass_time(&mut self) -> bool {
        let Some(at) = self.engine.deadline() else { return false };
        self.now = self.now.max(at) + Duration::from_millis(1);
        self.event(Event::TimeReached);
        true
    }

    /// Lets time pass until the engine wants none.
    pub fn idle(&mut self) {
        self.run();
        while self.pass_time() {
            self.run();
        }
    }

    /// Runs one request to its end.
    pub fn ask(&mut self, request: Request) -> Result<Outcome, String> {
        let what = request.clone();
        self.try_ask(request).map_err(|error| format!("{error}: {}", short(&what)))
    }

    pub fn try_ask(&mut self, request: Request) -> Result<Outcome, OpError> {
        let token = self.request(request);
        self.run();
        let found = self.completed.iter().position(|(t, _)| *t == token);
        self.completed.remove(found.expect("what waits for nothing is answered")).1
    }
}

fn short(request: &Request) -> String {
    format!("{request:?}").chars().take(160).collect()
}
