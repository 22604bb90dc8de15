//! A replica whose drive or link is slow: guests are well again soon, and nothing moves to and fro.

use std::time::Duration;

use sim::scenario::slow::{SLOW, slow_member};

/// `cargo xtask sim --slow --length 600` looks at ten minutes.
const LASTS: Duration = Duration::from_secs(20);

fn bear(factor: u64) {
    for what in SLOW {
        for seed in 1..4 {
            let borne = slow_member(seed, (what, factor), LASTS);
            let borne = borne.unwrap_or_else(|v| panic!("{what:?}, seed {seed}: {}", v.what));
            let what = format!("{what:?}, {factor} times, seed {seed}: {borne:?}");
            assert!(borne.after <= 3 * borne.quiet, "{what}");
            assert_eq!(borne.left, 1, "{what}");
        }
    }
}

#[test]
fn twenty_times_as_slow() {
    bear(20);
}

#[test]
fn a_thousand_times_as_slow() {
    bear(1_000);
}
