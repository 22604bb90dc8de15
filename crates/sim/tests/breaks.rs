//! A sample of the broken rules that the simulator must notice; `cargo xtask sim --breaks` has them all.

use std::time::Duration;

use model::sabotage::{Sabotage, activate};
use sim::scenario::{Options, run};

/// So many seeds may pass before one notices.
const SEEDS: u64 = 12;

/// A run that goes wrong with the break, and well without it.
fn notice(broken: Sabotage, options: &Options) {
    let goes_wrong = |seed: &u64| {
        activate(Some(broken));
        // An assertion of a machine notices as well as a checker.
        let outcome = std::panic::catch_unwind(|| run(*seed, options).is_err());
        activate(None);
        outcome.unwrap_or(true)
    };
    let seed = (1..=SEEDS).find(goes_wrong);
    let seed = seed.unwrap_or_else(|| panic!("{broken:?} is not noticed in {SEEDS} seeds"));
    if let Err(violation) = run(seed, options) {
        panic!("seed {seed} goes wrong without {broken:?} too: {}", violation.what);
    }
}

fn everything() -> Options {
    Options { length: Duration::from_secs(12), ..Options::everything() }
}

#[test]
fn what_is_acknowledged_too_early_is_noticed() {
    for broken in [Sabotage::AcknowledgedAlone, Sabotage::MirrorAcknowledgesEarly] {
        notice(broken, &Options::calm());
    }
}

#[test]
fn what_links_lose_or_bring_late_is_noticed() {
    for broken in [Sabotage::NotSentAgain, Sabotage::OldConnectionObeyed] {
        notice(broken, &Options::calm());
    }
}

#[test]
fn a_wrong_successor_is_noticed() {
    for broken in
        [Sabotage::FailoverWithoutPromise, Sabotage::LearnerPromoted, Sabotage::SurvivorsKept]
    {
        notice(broken, &everything());
    }
}

#[test]
fn a_learner_that_is_not_whole_is_noticed() {
    for broken in
        [Sabotage::LearnerAdmitted, Sabotage::LearnerReadyEarly, Sabotage::FilledWithoutHold]
    {
        notice(broken, &everything());
    }
}

#[test]
fn a_former_primary_that_counts_too_much_is_noticed() {
    for broken in [Sabotage::HandedOverInFlight, Sabotage::StaleForgotten] {
        notice(broken, &everything());
    }
}
