//! Histories on a drive that fails or lies.
//!
//! Decides: what must hold then. After a failed write or flush nothing more is done, every request
//! ends, and what was acknowledged is there when the drive is opened again. A drive that loses,
//! misdirects or changes what it is given never makes the engine show content that is wrong: a
//! block is said to be damaged, a replica to be stale, or the drive is refused.

use engine::api::OpError;

use super::{
    bench::Bench,
    check::check,
    damage::{Found, Rest},
    history::History,
};
use crate::{
    drive::{
        Crash,
        faults::{Faults, Rates},
        image::Images,
    },
    random::Random,
};

/// What a faulty history came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The drive went out of service, and held all that was acknowledged.
    OutOfService,
    /// It went on to its end; what was found on the drive then.
    WentOn(Found),
}

/// Errors are told by the drive; lies are not. Each history meets some kinds of one of the two.
fn rates(random: &mut Random, lies: bool) -> Rates {
    let mut some = |one_in: u64| if random.below(2) == 0 { one_in } else { 0 };
    let (read_error, stall, no_space) = (some(40), some(20), some(30));
    if lies {
        Rates {
            read_error,
            stall,
            no_space,
            lost_write: some(60),
            misdirected_write: some(60),
            misdirected_read: some(40),
            rot: some(60),
            ..Rates::default()
        }
    } else {
        Rates {
            read_error,
            stall,
            no_space,
            write_error: some(300),
            flush_error: some(20),
            ..Rates::default()
        }
    }
}

/// How many actions met a fault; none does from now on.
fn faults_met(bench: &mut Bench) -> u64 {
    let devices = [&mut bench.drive, &mut bench.journal];
    devices.into_iter().filter_map(|drive| drive.faults.take()).map(|faults| faults.met).sum()
}

impl History {
    /// Runs with faults; returns what came of it, and how many actions met one.
    pub fn faulty(mut self) -> Result<(End, u64), String> {
        let lies = self.random.below(2) == 0;
        self.model.past = Some(Default::default());
        self.model.is_faulty = true;
        let mut bench = Bench::open(self.plan.geometry, Images::default(), self.trace.clone())?;
        self.prefill(&mut bench)?;
        let rates = rates(&mut self.random, lies);
        self.trace.note(|| format!("{rates:?}"));
        let seed = self.random.number();
        bench.drive.faults = Some(Faults::new(seed, rates));
        bench.journal.faults = Some(Faults::new(!seed, rates));
        for _ in 0..self.plan.steps {
            self.step(&mut bench);
            if bench.out_of_service.is_some() {
                let met = faults_met(&mut bench);
                if lies {
                    return Err("the drive is out of service without an error".into());
                }
                self.out_of_service(bench)?;
                return Ok((End::OutOfService, met));
            }
            self.take_answers(&mut bench)?;
        }
        let met = faults_met(&mut bench);
        self.settle(&mut bench)?;
        // Batches that are sure to be there say that the ones before them were durable.
        for _ in 0..2 {
            self.one_write(&mut bench)?;
        }
        let rest = Rest::new(self.plan, self.model, &bench);
        let mut random = self.random;
        let found = rest.look(bench.seen(), &self.trace, &mut random)?;
        if !lies && found != Found::Harmless {
            return Err(format!("{found:?}, though the drive told no lie"));
        }
        Ok((End::WentOn(found), met))
    }

    /// Every request has ended, nothing more is asked of the drive, and what it holds is right.
    fn out_of_service(&mut self, mut bench: Bench) -> Result<(), String> {
        let left = bench.under_way.len();
        bench.run();
        for (token, outcome) in std::mem::take(&mut bench.completed) {
            if outcome == Err(OpError::DriveFailed) {
                // It may have happened or not, as if no answer had come.
                if !self.model.failed(token) {
                    return Err(format!("request {} ends twice", token.0));
                }
            } else {
                self.model.completed(token, &outcome, self.plan.mix.blocks_max)?;
            }
        }
        if self.model.requests_left() > 0 {
            return Err(format!("requests have not ended, {left} actions were under way"));
        }
        let request = super::requests::remove(1).request;
        let refused = bench.try_ask(request);
        if refused != Err(OpError::DriveFailed) {
            return Err(format!("a drive out of service answers {refused:?}"));
        }
        let kind = *self.random.pick(&Crash::KINDS);
        self.trace.note(|| format!("opened again after {kind:?}"));
        let images = bench.crash_images((kind, kind), &mut self.random);
        let mut bench = Bench::open(self.plan.geometry, images, self.trace.clone())?;
        check(&self.model, &mut bench, &self.plan).map(|_| ())
    }
}
