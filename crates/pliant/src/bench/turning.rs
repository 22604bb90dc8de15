//! An engine on a driver, turned by one thread: a server's loop without sockets.

use std::{
    io::ErrorKind,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use engine::{
    Engine,
    api::{Action, Device, Event, Geometry, OpError, OpToken, OpenReplica, Outcome, Request},
};

use mio::{Events, Interest, Poll, Token, unix::SourceFd};

use crate::{
    clock::{Clock, random},
    drive::{self, Completion, Driver, Sink},
};

/// How long a drive may take at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// What passes a request on, or answers it.
pub type Gate = fn(drive::Request) -> Result<drive::Request, Completion>;

pub struct Turning {
    engine: Engine,
    driver: Box<dyn Driver>,
    gate: Option<Gate>,
    clock: Clock,
    sender: Sender<Vec<Completion>>,
    inbox: Receiver<Vec<Completion>>,
    poll: Poll,
    ready: Events,
    actions: Vec<Action>,
    /// What the drive has to answer.
    awaited: usize,
    pub completed: Vec<(OpToken, Result<Outcome, OpError>)>,
}

impl Turning {
    /// Opens the drive; `driver` makes what answers to the sink.
    pub fn open(
        geometry: Geometry,
        gate: Option<Gate>,
        driver: impl FnOnce(Sink) -> anyhow::Result<Box<dyn Driver>>,
    ) -> anyhow::Result<(Self, Vec<OpenReplica>)> {
        let (sender, inbox) = channel();
        let deliver = sender.clone();
        // Nobody listens any more once the engine is dropped.
        let sink = Sink::new(move |completions| drop(deliver.send(completions)));
        let driver = driver(sink)?;
        let poll = Poll::new().context("no epoll here")?;
        if let Some(descriptor) = driver.descriptor() {
            let (source, readable) = (&mut SourceFd(&descriptor), Interest::READABLE);
            poll.registry().register(source, Token(0), readable).context("cannot watch it")?;
        }
        let clock = Clock::start();
        let mut actions = Vec::new();
        let seed = u64::try_from(random()? >> 64).expect("half of the bits remain");
        let engine = Engine::open(geometry, seed, clock.now(), &mut actions)?;
        let completed = Vec::new();
        let mut this = Self {
            engine,
            driver,
            gate,
            clock,
            sender,
            inbox,
            poll,
            ready: Events::with_capacity(1),
            actions,
            awaited: 0,
            completed,
        };
        loop {
            if let Some(replicas) = this.carry_out()? {
                return Ok((this, replicas));
            }
            this.wait()?;
        }
    }

    pub fn request(&mut self, token: OpToken, request: Request) {
        let event = Event::Requested { token, request };
        self.engine.handle(self.clock.now(), event, &mut self.actions);
    }

    /// Does what there is to do; waits, if nothing completed, until something happens.
    pub fn turn(&mut self) -> anyhow::Result<()> {
        self.end_turn();
        self.carry_out()?;
        if self.completed.is_empty() {
            self.wait()?;
            self.carry_out()?;
        }
        Ok(())
    }

    /// Lets what is under way end, writing home too.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        self.end_turn();
        self.carry_out()?;
        while self.awaited > 0 {
            self.wait()?;
            self.carry_out()?;
        }
        Ok(())
    }

    /// Carries out one request alone.
    pub fn ask(&mut self, request: Request) -> anyhow::Result<Outcome> {
        self.request(OpToken(0), request);
        loop {
            self.turn()?;
            if let Some((_, result)) = self.completed.pop() {
                return Ok(result?);
            }
        }
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let now = self.clock.now();
        let left = self.engine.deadline().map(|at| at.since(now));
        if self.driver.descriptor().is_some() {
            self.poll(left)?;
        } else {
            self.receive(left)?;
        }
        self.end_turn();
        Ok(())
    }

    /// Everything that came with this turn is known.
    fn end_turn(&mut self) {
        let now = self.clock.now();
        if self.engine.deadline().is_some_and(|at| at <= now) {
            self.engine.handle(now, Event::TimeReached, &mut self.actions);
        }
    }

    /// As a server's loop does it.
    fn poll(&mut self, left: Option<Duration>) -> anyhow::Result<()> {
        let mut completions = self.driver.reap();
        completions.extend(self.inbox.try_iter().flatten());
        if completions.is_empty() && self.driver.is_quiet() {
            match self.poll.poll(&mut self.ready, Some(left.unwrap_or(PATIENCE))) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                polled => {
                    polled.context("waiting for the drive")?;
                    ensure!(left.is_some() || !self.ready.is_empty(), "the drive hangs");
                }
            }
            completions = self.driver.reap();
        }
        self.feed(completions);
        Ok(())
    }

    fn receive(&mut self, left: Option<Duration>) -> anyhow::Result<()> {
        match self.inbox.recv_timeout(left.unwrap_or(PATIENCE)) {
            Ok(completions) => self.feed(completions),
            Err(RecvTimeoutError::Timeout) if left.is_none() => bail!("the drive hangs"),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => unreachable!("we hold a sender"),
        }
        while let Ok(completions) = self.inbox.try_recv() {
            self.feed(completions);
        }
        Ok(())
    }

    fn feed(&mut self, completions: Vec<Completion>) {
        self.awaited -= completions.len();
        let now = self.clock.now();
        for completion in completions {
            let event = match completion {
                Completion::Read { token, result } => Event::DriveRead { token, result },
                Completion::Written { token, result } => Event::DriveWritten { token, result },
                Completion::Flushed { token, result } => Event::DriveFlushed { token, result },
            };
            self.engine.handle(now, event, &mut self.actions);
        }
    }

    /// The replicas, when this opened the drive.
    fn carry_out(&mut self) -> anyhow::Result<Option<Vec<OpenReplica>>> {
        let mut opened = None;
        let mut batch = Vec::new();
        for action in self.actions.drain(..) {
            batch.push(match action {
                Action::ReadDrive { device, token, offset, length } => {
                    only_drive(device);
                    drive::Request::Read { token, offset, length }
                }
                Action::WriteDrive { device, token, offset, data, durability, urgency } => {
                    only_drive(device);
                    drive::Request::Write { token, offset, data, durability, urgency }
                }
                Action::FlushDrive { device, token } => {
                    only_drive(device);
                    drive::Request::Flush { token }
                }
                Action::PrepareDrive { token, offset, length } => {
                    drive::Request::Prepare { token, offset, length }
                }
                Action::Opened { replicas, .. } => {
                    opened = Some(replicas);
                    continue;
                }
                Action::Complete { token, outcome } => {
                    self.completed.push((token, outcome));
                    continue;
                }
                Action::DriveOutOfService { reason } => {
                    bail!("the drive is out of service: {reason}")
                }
            });
        }
        self.awaited += batch.len();
        if let Some(gate) = self.gate {
            let (mut passed, mut answered) = (Vec::new(), Vec::new());
            for request in batch {
                match gate(request) {
                    Ok(request) => passed.push(request),
                    Err(completion) => answered.push(completion),
                }
            }
            batch = passed;
            if !answered.is_empty() {
                self.sender.send(answered).context("we hold the receiver")?;
            }
        }
        if !batch.is_empty() {
            self.driver.submit(batch);
        }
        Ok(opened)
    }

    pub fn description(&self) -> String {
        self.driver.description()
    }
}

/// No drive that is measured has its journal apart.
fn only_drive(device: Device) {
    assert_eq!(device, Device::Data, "nothing lies apart");
}
