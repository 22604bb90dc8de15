//! Crash states: at many moments of random histories of an engine, what a crash may leave on its
//! drive is opened again and compared with a plain model.
//!
//! Decides: which moments, which images, what must hold. The engine is a black box behind its API.
//! Does not: run in parallel, print, or know the time.
//! Invariant: the same seed gives the same history, the same images and the same verdict.

pub mod bench;
pub mod check;
pub mod content;
pub mod damage;
pub mod faulty;
mod history;
mod journals;
mod layers;
pub mod model;
pub mod plan;
pub mod requests;
mod streams;
pub mod trace;

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
};

use crate::random::Random;
use damage::{Area, Counts, Rest};
use faulty::End;
use history::History;
use trace::Trace;

/// A crash state that is wrong.
#[derive(Debug)]
pub struct Failure {
    pub seed: u64,
    /// Counted from the beginning of the seed's history.
    pub state: u64,
    pub what: String,
    pub trace: Vec<String>,
}

/// Runs the history of a seed on a drive with faults; returns what came of it, and how many
/// actions met a fault.
pub fn faulty(seed: u64, keep_trace: bool) -> Result<(End, u64), Failure> {
    let trace = Trace::new(keep_trace);
    let history = History::new(seed, trace.clone(), Rc::default());
    guarded(seed, &trace, &Rc::default(), || history.faulty())
}

/// The drive that a seed's history leaves behind when nothing goes wrong.
pub fn at_rest(seed: u64) -> Result<Rest, String> {
    History::new(seed, Trace::default(), Rc::default()).rest()
}

/// Damages what a seed's history leaves, in `rounds` ways in each area, and counts what comes of it.
pub fn damage(seed: u64, rounds: u64, keep_trace: bool) -> Result<Counts, Failure> {
    let trace = Trace::new(keep_trace);
    let round = Rc::new(Cell::new(0));
    guarded(seed, &trace, &round, || {
        let rest = at_rest(seed)?;
        let mut random = Random::new(seed ^ 0xda3a_9ed0);
        let mut counts = Counts::new();
        for _ in 0..rounds {
            for area in Area::ALL {
                round.set(round.get() + 1);
                let Some((images, told)) = rest.damage_one(area, &mut random) else { continue };
                trace.note(|| told.clone());
                let found = rest.look(images, &trace, &mut random);
                *counts.entry((area, found.map_err(|e| format!("{told}: {e}"))?)).or_default() += 1;
            }
        }
        for one_in in [10, 100, 1000] {
            round.set(round.get() + 1);
            trace.note(|| format!("a flip in one of {one_in} blocks"));
            let images = rest.damage_many(one_in, &mut random);
            let found = rest.look(images, &trace, &mut random);
            found.map_err(|e| format!("a flip in one of {one_in} blocks: {e}"))?;
        }
        Ok(counts)
    })
}

/// Runs the history of a seed and checks its crash states, or those up to `last`. Returns how many.
pub fn run(seed: u64, last: Option<u64>, keep_trace: bool) -> Result<u64, Failure> {
    let trace = Trace::new(keep_trace);
    let states = Rc::new(Cell::new(0));
    let history = History::new(seed, trace.clone(), states.clone());
    guarded(seed, &trace, &states.clone(), || history.run(last).map(|()| states.get()))
}

/// An assertion that fails is a failure like others.
fn guarded<T>(
    seed: u64,
    trace: &Trace,
    state: &Rc<Cell<u64>>,
    work: impl FnOnce() -> Result<T, String>,
) -> Result<T, Failure> {
    let what = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(what)) => what,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&s| s.to_owned()));
            format!("an assertion failed: {}", text.unwrap_or_default())
        }
    };
    Err(Failure { seed, state: state.get(), what, trace: trace.lines() })
}
