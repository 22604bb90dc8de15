//! Crash states that every change must pass, and that they find an engine which is broken.
//! `cargo xtask crash` runs more.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use engine::sabotage::{Sabotage, activate};
use sim::crash::{self, Failure};

const STATES: u64 = 5000;
/// A break that is not found in so many states is not found.
const STATES_TO_FIND: u64 = 8000;

/// Runs seeds from `first` on, on every core, until there are enough states or one is wrong.
fn states(first: u64, wanted: u64, sabotage: Option<Sabotage>) -> Result<u64, Failure> {
    let (next, done, stop) = (AtomicU64::new(first), AtomicU64::new(0), AtomicBool::new(false));
    let work = || {
        activate(sabotage);
        while done.load(Ordering::Relaxed) < wanted && !stop.load(Ordering::Relaxed) {
            let run = crash::run(next.fetch_add(1, Ordering::Relaxed), None, false);
            stop.fetch_or(run.is_err(), Ordering::Relaxed);
            done.fetch_add(run?, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let results = workers.into_iter().map(|w| w.join().expect("failures are returned"));
        results.collect::<Result<Vec<()>, Failure>>()
    })?;
    Ok(done.into_inner())
}

#[test]
fn every_crash_state_holds_what_was_acknowledged() {
    match states(1, STATES, None) {
        Ok(done) => assert!(done >= STATES, "{done} states"),
        Err(Failure { seed, state, what, .. }) => panic!(
            "seed {seed} state {state}: {what}\n\
             replay: cargo xtask crash --seed {seed} --state {state}"
        ),
    }
}

#[test]
fn a_seed_gives_the_same_states_and_the_same_trace() {
    let of = |seed| {
        activate(Some(Sabotage::NoFlush));
        let failure = (seed..).find_map(|seed| crash::run(seed, None, true).err());
        let Failure { seed, state, what, trace } = failure.expect("a break is found");
        (seed, state, what, trace)
    };
    let (seed, state, what, trace) = of(1);
    assert_eq!(of(1), (seed, state, what.clone(), trace.clone()));
    assert!(trace.len() > 10);
    // The command that is told replays exactly this.
    activate(Some(Sabotage::NoFlush));
    let again = crash::run(seed, Some(state), true).expect_err("it is wrong");
    assert_eq!((again.state, again.what, again.trace), (state, what, trace));
}

#[test]
fn every_break_of_the_engine_is_found() {
    let missed: Vec<Sabotage> = Sabotage::ALL
        .into_iter()
        .filter(|&sabotage| states(1, STATES_TO_FIND, Some(sabotage)).is_ok())
        .collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
