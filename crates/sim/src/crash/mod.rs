//! Crash states: at many moments of random histories of an engine, what a crash may leave on its
//! drive is opened again and compared with a plain model.
//!
//! Decides: which moments, which images, what must hold. The engine is a black box behind its API.
//! Does not: run in parallel, print, or know the time.
//! Invariant: the same seed gives the same history, the same images and the same verdict.

pub mod bench;
pub mod check;
pub mod content;
mod history;
pub mod model;
pub mod plan;
pub mod requests;
pub mod trace;

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
};

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

/// Runs the history of a seed and checks its crash states, or those up to `last`. Returns how many.
pub fn run(seed: u64, last: Option<u64>, keep_trace: bool) -> Result<u64, Failure> {
    let trace = Trace::new(keep_trace);
    let states = Rc::new(Cell::new(0));
    let history = History::new(seed, trace.clone(), states.clone());
    let result = catch_unwind(AssertUnwindSafe(|| history.run(last)));
    let what = match result {
        Ok(Ok(())) => return Ok(states.get()),
        Ok(Err(what)) => what,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&s| s.to_owned()));
            format!("an assertion failed: {}", text.unwrap_or_default())
        }
    };
    Err(Failure { seed, state: states.get(), what, trace: trace.lines() })
}
