//! What goes wrong in a run, and when it is over.

use model::id::DriveName;

use super::*;
use crate::{
    drive::faults::{Faults, Rates},
    world::Moment,
};

/// What may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9` of a process.
    Kill,
    /// Its machine loses power: what a server's drives had not made stable is lost.
    Power,
    /// A link breaks, and can be made again at once.
    Reset,
    /// Two processes cannot reach each other.
    Cut,
    /// One process cannot reach another, which reaches it.
    OneWay,
    /// A process reaches nobody.
    Isolate,
    /// The two zones cannot reach each other; the manager is in one of them, or reaches both.
    ZoneCut,
    /// A process stands still.
    Pause,
    /// The drives of a server are slow.
    SlowDrive,
    /// The links of a process are slow.
    SlowLink,
    /// A drive fails what it is asked.
    Drive,
}

impl Fault {
    pub const ALL: [Self; 11] = [
        Self::Kill,
        Self::Power,
        Self::Reset,
        Self::Cut,
        Self::OneWay,
        Self::Isolate,
        Self::ZoneCut,
        Self::Pause,
        Self::SlowDrive,
        Self::SlowLink,
        Self::Drive,
    ];

    /// What processes that die and links that break alone can do.
    pub const PLAIN: [Self; 3] = [Self::Kill, Self::Power, Self::Reset];

    /// Those of one run: some of all, so that each is met with few others beside it as well.
    pub fn some(random: &mut Random) -> Vec<Self> {
        let some: Vec<_> = Self::ALL.into_iter().filter(|_| random.chance(40)).collect();
        if some.is_empty() { vec![*random.pick(&Self::ALL)] } else { some }
    }
}

/// What ends a fault that lasts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    Cuts,
    Pause(Process),
    SlowDrive(ServerId),
    SlowLink(Process),
    /// Somebody sees to the drive, and starts the server again.
    Drive(ServerId, DriveName),
}

impl Run {
    pub(super) fn strike(&mut self) {
        if self.options.calm {
            self.outcome.resets += 1;
            return self.world.reset_between_servers();
        }
        let fault = *self.world.random.pick(&self.faults);
        let processes = self.world.processes();
        let victim = self.world.random.pick(&processes).clone();
        match fault {
            Fault::Reset => {
                self.outcome.resets += 1;
                self.world.reset_a_link();
            }
            Fault::Kill | Fault::Power => {
                if self.world.is_up(&victim) {
                    self.kill(&victim, fault == Fault::Power);
                    let down = self.how_long();
                    self.world.start_later(&victim, down);
                }
            }
            Fault::Cut | Fault::OneWay | Fault::Isolate | Fault::ZoneCut => {
                self.outcome.cuts += 1;
                let other = self.world.random.pick(&processes).clone();
                self.cut(fault, &victim, &other);
                self.ends_later(End::Cuts);
            }
            Fault::Pause => {
                self.outcome.pauses += 1;
                self.world.pause(&victim);
                self.ends_later(End::Pause(victim));
            }
            Fault::SlowLink => {
                let factor = *self.world.random.pick(&[20, 200, 1_000]);
                self.world.slow_links.insert(victim.clone(), factor);
                self.ends_later(End::SlowLink(victim));
            }
            Fault::SlowDrive | Fault::Drive => {
                let servers: Vec<ServerId> = self.world.servers().cloned().collect();
                let server = self.world.random.pick(&servers).clone();
                self.trouble_a_drive(fault, server);
            }
        }
    }

    /// A server has just said something that others go by: now and then something befalls it at once.
    pub(super) fn strike_at_moments(&mut self) {
        for (server, moment) in std::mem::take(&mut self.world.moments) {
            let often = if moment == Moment::Adopted { 2 } else { 12 };
            if !self.options.all_faults || !self.world.random.chance(often) {
                continue;
            }
            self.world.trace(|| format!("STRIKE {server} at {moment:?}"));
            let victim = Process::Server(server);
            match self.world.random.below(4) {
                0 => self.kill_for_a_while(&victim),
                1 => self.kill_for_a_while(&Process::Manager),
                2 => {
                    self.world.pause(&victim);
                    self.ends_later(End::Pause(victim));
                }
                // Its guests reach it, and nobody who knows more than it does.
                _ => {
                    let deciders: Vec<Process> = self.world.processes();
                    let deciders = deciders.iter().filter(|p| !matches!(p, Process::Node(_)));
                    for decider in deciders.filter(|p| **p != victim).cloned().collect::<Vec<_>>() {
                        self.world.cut(&decider, &victim);
                    }
                    self.ends_later(End::Cuts);
                }
            }
        }
    }

    fn kill_for_a_while(&mut self, victim: &Process) {
        let power = self.world.random.chance(50);
        self.kill(victim, power);
        let down = self.how_long();
        self.world.start_later(victim, down);
    }

    pub(super) fn kill(&mut self, victim: &Process, power: bool) {
        self.outcome.kills += 1;
        self.world.kill(victim, power);
        if let Process::Node(node) = victim {
            // Its guests' requests died with it, unanswered; they count as pending for ever.
            let lost: Vec<_> = self.pending.values().filter(|p| p.node == *node).collect();
            self.unanswered.extend(lost.into_iter().flat_map(Pending::writes));
            self.pending.retain(|_, p| p.node != *node);
            self.zombies.retain(|_, p| p.node != *node);
        }
    }

    /// Mostly short, now and then longer than anybody waits.
    fn how_long(&mut self) -> Duration {
        if self.world.random.chance(25) {
            self.world.random.micros(1_000_000, 8_000_000)
        } else {
            self.world.random.micros(5_000, 400_000)
        }
    }

    pub(super) fn ends_later(&mut self, end: End) {
        let at = self.world.now + self.how_long();
        self.ends.insert((at, end));
    }

    fn cut(&mut self, fault: Fault, victim: &Process, other: &Process) {
        let processes = self.world.processes();
        match fault {
            Fault::OneWay => self.world.cut(victim, other),
            Fault::Cut => {
                self.world.cut(victim, other);
                self.world.cut(other, victim);
            }
            Fault::Isolate => {
                let others = processes.iter().filter(|p| *p != victim);
                // Sometimes only from servers, or only from whoever is not one.
                let kind = self.world.random.below(3);
                let concerned =
                    others.filter(|p| kind == 0 || (kind == 1) == matches!(p, Process::Server(_)));
                for other in concerned.cloned().collect::<Vec<_>>() {
                    self.world.cut(victim, &other);
                    self.world.cut(&other, victim);
                }
            }
            _ => {
                let manager = self.world.random.below(3);
                let side = |p: &Process| match p {
                    Process::Manager => manager,
                    Process::Server(s) => u64::from(s.to_string().starts_with("server-b")),
                    Process::Node(n) => u64::from(n.to_string() == "node-b"),
                };
                let pairs = processes.iter().flat_map(|a| processes.iter().map(move |b| (a, b)));
                let across = pairs.filter(|(a, b)| side(a) + side(b) == 1);
                for (a, b) in across.map(|(a, b)| (a.clone(), b.clone())).collect::<Vec<_>>() {
                    self.world.cut(&a, &b);
                }
            }
        }
    }

    fn trouble_a_drive(&mut self, fault: Fault, server: ServerId) {
        if fault == Fault::SlowDrive {
            let factor = *self.world.random.pick(&[20, 200, 1_000]);
            self.world.slow_drives.insert(server.clone(), factor);
            return self.ends_later(End::SlowDrive(server));
        }
        let drives: Vec<DriveName> =
            self.world.server_params(&server).drives.iter().map(|d| d.drive.clone()).collect();
        let drive = self.world.random.pick(&drives).clone();
        let one_in = *self.world.random.pick(&[1, 20]);
        let rates = Rates { write_error: one_in, flush_error: one_in, ..Rates::default() };
        let faults = Faults::new(self.world.random.number(), rates);
        self.outcome.drive_failures += 1;
        self.world.trace(|| format!("FAULTY {drive} of {server}"));
        self.world.set_faults(&server, &drive, Some(&faults));
        self.ends_later(End::Drive(server, drive));
    }

    /// When the first of what lasts is over.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|(at, _)| *at)
    }

    pub(super) fn end_due(&mut self) {
        while self.next_end().is_some_and(|at| at <= self.world.now) {
            let (_, end) = self.ends.pop_first().expect("just seen");
            self.end(end);
        }
    }

    fn end(&mut self, end: End) {
        match end {
            End::Cuts => self.world.heal_cuts(),
            End::Pause(process) => self.world.resume(&process),
            End::SlowDrive(server) => drop(self.world.slow_drives.remove(&server)),
            End::SlowLink(process) => drop(self.world.slow_links.remove(&process)),
            End::Drive(server, drive) => {
                self.world.set_faults(&server, &drive, None);
                let process = Process::Server(server);
                let power = self.world.random.chance(50);
                self.world.kill(&process, power);
                self.world.start_later(&process, Duration::from_millis(20));
            }
        }
    }

    pub(super) fn end_faults(&mut self) {
        while let Some((_, end)) = self.ends.pop_first() {
            self.end(end);
        }
    }
}
