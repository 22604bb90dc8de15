//! The server role: sockets and drives around [`bds::Server`].
//!
//! Decides nothing: each turn of the loop feeds the machine what happened, then carries out what
//! it decided, in its order. Drive requests of one turn reach each drive as one batch.

mod config;
mod incidents;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpListener},
    path::Path,
};

use anyhow::Context;
use bds::{
    Server,
    api::{Action, ConnId as BdsConnId, Event},
};
use engine::api::Device;
use format::{
    ctl::ToManager,
    data::{Hello, Peer},
};
use model::id::{BootId, DriveName};

use self::{config::Config, incidents::Incidents};
use crate::{
    clock::{self, Clock},
    drive::{Completion, Driver, Request, Sink},
    net::{ConnId, NetEvent, Reactor},
};

/// Completions of one drive.
struct DriveLetter {
    drive: DriveName,
    completions: Vec<Completion>,
}

/// Runs a BDS server until SIGTERM or SIGINT.
pub fn run(config: &Path) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    let mut shell = Shell::start(&config)?;
    tracing::info!(server = %config.id, zone = %config.zone, listen = %config.listen, "started");
    while !shell.stopping {
        shell.turn().context("the server's loop failed")?;
    }
    tracing::info!(server = %config.id, "stopped");
    Ok(())
}

/// Fields are dropped in this order: drive threads that wait for room in the mailbox are let go
/// before the drives are waited for.
struct Shell {
    reactor: Reactor<DriveLetter>,
    drives: BTreeMap<DriveName, Drive>,
    server: Server,
    events: Vec<NetEvent<DriveLetter>>,
    actions: Vec<Action>,
    incidents: Incidents,
    /// Until the machine is ready.
    listener: Option<TcpListener>,
    manager: SocketAddr,
    stopping: bool,
}

struct Drive {
    data: Lane,
    /// Where its journal lies, if that lies apart.
    journal: Option<Lane>,
}

struct Lane {
    driver: Box<dyn Driver>,
    /// Of this turn.
    batch: Vec<Request>,
}

impl Shell {
    fn start(config: &Config) -> anyhow::Result<Self> {
        let clock = Clock::start();
        let hello =
            Hello { cluster: config.cluster.clone(), peer: Peer::Server(config.id.clone()) };
        let mut reactor = Reactor::new(clock, hello).context("cannot make the reactor")?;
        // Before any thread starts, so that no other thread takes the signals.
        reactor.watch_signals().context("cannot watch for signals")?;
        let mut drives = BTreeMap::new();
        for drive in &config.drives {
            let poster = reactor.poster();
            let name = drive.name.clone();
            let sink = Sink::new(move |completions| {
                poster.post(DriveLetter { drive: name.clone(), completions });
            });
            let journal = drive.open_journal(sink.clone())?;
            let driver = drive.open(sink)?;
            tracing::info!(drive = %drive.name, path = %drive.path.display(), driver =
                %driver.description(), "drive opened");
            if let (Some(path), Some(journal)) = (&drive.journal_path, &journal) {
                tracing::info!(drive = %drive.name, path = %path.display(), driver =
                    %journal.description(), "its journal opened");
            }
            let mut watched = |driver| Lane::watched(driver, &mut reactor);
            let data = watched(driver).context("cannot watch a drive")?;
            let journal = journal.map(watched).transpose().context("cannot watch a journal")?;
            drives.insert(drive.name.clone(), Drive { data, journal });
        }
        // After the drives: who has them may have the address too, and is waited for there.
        let listener = TcpListener::bind(config.listen)
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        let address = listener.local_addr().context("cannot ask for the address")?;
        let random = || clock::random().context("cannot read random bits");
        let boot = BootId::from_random(random()?);
        let seed = u64::try_from(random()? >> 64).expect("half of the bits remain");
        let mut actions = Vec::new();
        let params = config.params(boot, address);
        let server = Server::new(params, seed, clock.now(), &mut actions)
            .context("cannot open the drives")?;
        let mut shell = Self {
            reactor,
            drives,
            server,
            events: Vec::new(),
            actions,
            incidents: Incidents::default(),
            listener: Some(listener),
            manager: config.manager,
            stopping: false,
        };
        shell.carry_out()?;
        Ok(shell)
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        let is_quiet = |drive: &mut Drive| drive.lanes().all(|lane| lane.driver.is_quiet());
        let quiet = self.drives.values_mut().all(is_quiet);
        let deadline = if quiet { self.server.deadline() } else { Some(self.reactor.now()) };
        self.reactor.turn(deadline, &mut self.events)?;
        let now = self.reactor.now();
        for event in self.events.drain(..) {
            let server = &mut self.server;
            let actions = &mut self.actions;
            let mut handle = |event| server.handle(now, event, actions);
            match event {
                NetEvent::Posted(letter) => feed_completions(letter, handle),
                NetEvent::StopRequested => self.stopping = true,
                NetEvent::ConnOpened { conn, peer } => {
                    tracing::debug!(conn = conn.0, ?peer, "connection opened");
                }
                event => {
                    if let Some(event) = translate(event) {
                        handle(event);
                    }
                }
            }
        }
        for (name, drive) in &mut self.drives {
            let completions = drive.lanes().flat_map(|lane| lane.driver.reap()).collect();
            let letter = DriveLetter { drive: name.clone(), completions };
            feed_completions(letter, |event| self.server.handle(now, event, &mut self.actions));
        }
        if self.server.deadline().is_some_and(|deadline| deadline <= now) {
            self.server.handle(now, Event::TimeReached, &mut self.actions);
        }
        self.carry_out()
    }

    fn carry_out(&mut self) -> anyhow::Result<()> {
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::ReadDrive { drive, device, token, offset, length } => {
                    self.queue(&drive, device, Request::Read { token, offset, length });
                }
                Action::WriteDrive { drive, device, token, offset, data, durability, urgency } => {
                    let write = Request::Write { token, offset, data, durability, urgency };
                    self.queue(&drive, device, write);
                }
                Action::FlushDrive { drive, device, token } => {
                    self.queue(&drive, device, Request::Flush { token });
                }
                Action::PrepareDrive { drive, token, offset, length } => {
                    self.queue(&drive, Device::Data, Request::Prepare { token, offset, length });
                }
                Action::Reply { conn, message } => self.reactor.send(ConnId(conn.0), message),
                Action::Send { server, message } => self.reactor.send_link(&server, message),
                Action::Connect { server, address } => self.reactor.connect(server, address),
                Action::Disconnect { server } => self.reactor.disconnect(&server),
                Action::SendManager { message } => {
                    if let ToManager::DriveFailed { drive, reason } = &message {
                        tracing::error!(%drive, reason, "drive is out of service");
                    }
                    self.reactor.send_manager(&message);
                }
                Action::Note(incident) => self.incidents.log(self.reactor.now(), &incident),
                Action::DriveOpened { drive, formatted, replicas, stale } => {
                    incidents::log_opened(&drive, formatted, replicas, stale);
                }
                Action::Ready => self.open_doors()?,
            }
        }
        self.drives.values_mut().flat_map(Drive::lanes).for_each(Lane::submit);
        Ok(())
    }

    fn queue(&mut self, drive: &DriveName, device: Device, request: Request) {
        let drive = self.drives.get_mut(drive).expect("the machine knows the drives we gave it");
        drive.lane(device).batch.push(request);
    }

    fn open_doors(&mut self) -> anyhow::Result<()> {
        let listener = self.listener.take().expect("the machine is ready once");
        self.reactor.listen_data(listener).context("cannot accept connections")?;
        self.reactor.connect_manager(self.manager);
        tracing::info!(manager = %self.manager, "drives are open; serving");
        Ok(())
    }
}

impl Drive {
    fn lane(&mut self, device: Device) -> &mut Lane {
        match device {
            Device::Data => &mut self.data,
            Device::Journal => self.journal.as_mut().expect("the machine knows where it lies"),
        }
    }

    fn lanes(&mut self) -> impl Iterator<Item = &mut Lane> {
        std::iter::once(&mut self.data).chain(&mut self.journal)
    }
}

impl Lane {
    /// The reactor wakes for a driver that has no threads.
    fn watched(driver: Box<dyn Driver>, reactor: &mut Reactor<DriveLetter>) -> io::Result<Self> {
        if let Some(descriptor) = driver.descriptor() {
            reactor.watch(descriptor)?;
        }
        Ok(Self { driver, batch: Vec::new() })
    }

    fn submit(&mut self) {
        if !self.batch.is_empty() {
            self.driver.submit(std::mem::take(&mut self.batch));
        }
    }
}

fn feed_completions(letter: DriveLetter, mut handle: impl FnMut(Event)) {
    for completion in letter.completions {
        let drive = letter.drive.clone();
        handle(match completion {
            Completion::Read { token, result } => Event::DriveRead { drive, token, result },
            Completion::Written { token, result } => Event::DriveWritten { drive, token, result },
            Completion::Flushed { token, result } => Event::DriveFlushed { drive, token, result },
        });
    }
}

/// What the machine is told; a server has no raw connections, and hears of a connection with its
/// first message.
fn translate(event: NetEvent<DriveLetter>) -> Option<Event> {
    Some(match event {
        NetEvent::ConnReceived { conn, message } => {
            Event::MessageReceived { conn: BdsConnId(conn.0), message }
        }
        NetEvent::ConnClosed { conn } => Event::ConnClosed { conn: BdsConnId(conn.0) },
        NetEvent::LinkUp { server } => Event::LinkUp { server },
        NetEvent::LinkDown { server } => Event::LinkDown { server },
        NetEvent::LinkReceived { server, message } => Event::LinkReceived { server, message },
        NetEvent::ManagerLinkUp => Event::ManagerLinkUp,
        NetEvent::ManagerLinkDown => Event::ManagerLinkDown,
        NetEvent::ManagerSent { message } => Event::ManagerSent { message },
        NetEvent::ConnOpened { .. }
        | NetEvent::RawOpened { .. }
        | NetEvent::RawReceived { .. }
        | NetEvent::RawDrained { .. }
        | NetEvent::RawClosed { .. }
        | NetEvent::Posted(_)
        | NetEvent::StopRequested => return None,
    })
}
