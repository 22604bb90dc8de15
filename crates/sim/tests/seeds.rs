//! Seeds that every change must pass. `cargo xtask sim --seeds N` runs more.

use std::time::Duration;

use sim::scenario::{Options, Outcome, run};

fn check(seed: u64, options: &Options) -> Outcome {
    match run(seed, options) {
        Ok(outcome) => outcome,
        Err(violation) => panic!(
            "seed {seed}: {}\nreplay: cargo xtask sim --seed {seed} {}{}--length {} --trace",
            violation.what,
            if options.all_faults { "" } else { "--plain " },
            if options.fault_every == Options::dense().fault_every { "--dense " } else { "" },
            options.length.as_secs()
        ),
    }
}

fn faults(from: u64, count: u64) {
    let options = Options { length: Duration::from_secs(12), ..Options::default() };
    survive(from, count, &options);
}

fn survive(from: u64, count: u64, options: &Options) {
    let (mut writes, mut kills, mut completed) = (0, 0, 0);
    for seed in from..from + count {
        let outcome = check(seed, options);
        writes += outcome.writes;
        kills += outcome.kills;
        completed += outcome.completed;
    }
    assert!(writes > count * 100 && kills > count && completed > 0, "the runs did too little");
}

#[test]
fn same_seed_same_run() {
    let options = Options { length: Duration::from_secs(6), ..Options::default() };
    let one = check(7, &options);
    assert_eq!(one, check(7, &options));
    assert_ne!(one.digest, check(8, &options).digest);
}

#[test]
fn a_quiet_run_modifies_without_a_stall() {
    let options =
        Options { fault_every: None, length: Duration::from_secs(15), ..Options::default() };
    for seed in 1..6 {
        let outcome = check(seed, &options);
        assert!(outcome.completed >= 2, "{outcome:?}");
        assert_eq!(outcome.failed, 0, "{outcome:?}");
        assert!(outcome.longest_wait < Duration::from_secs(1), "{outcome:?}");
    }
}

#[test]
fn a_link_between_replicas_that_breaks_changes_nothing() {
    for seed in 1..11 {
        let outcome = check(seed, &Options::calm());
        assert!(outcome.resets > 20, "{outcome:?}");
        assert!(outcome.longest_wait < Duration::from_secs(1), "{outcome:?}");
    }
}

#[test]
fn faults_lose_nothing_1() {
    faults(1_000, 30);
}

#[test]
fn faults_lose_nothing_2() {
    faults(2_000, 30);
}

#[test]
fn everything_goes_wrong_and_nothing_is_lost() {
    let options = Options { length: Duration::from_secs(12), ..Options::everything() };
    let (mut cuts, mut pauses, mut drives, mut moves) = (0, 0, 0, 0);
    for seed in 7_000..7_040 {
        let outcome = check(seed, &options);
        cuts += outcome.cuts;
        pauses += outcome.pauses;
        drives += outcome.drive_failures;
        moves += outcome.moves;
    }
    assert!(cuts > 40 && pauses > 10 && drives > 10 && moves > 40, "the runs did too little");
}

fn dense(from: u64, count: u64) {
    let options = Options::dense();
    let (mut writes, mut faults, mut moves) = (0, 0, 0);
    for seed in from..from + count {
        let outcome = check(seed, &options);
        writes += outcome.writes;
        faults += outcome.kills + outcome.resets + outcome.cuts + outcome.pauses;
        moves += outcome.moves;
    }
    assert!(writes > count * 100 && faults > count * 4 && moves > count / 2, "too little");
}

#[test]
fn two_thousand_seeds_with_the_others_here_1() {
    dense(100_000, 930);
}

#[test]
fn two_thousand_seeds_with_the_others_here_2() {
    dense(200_000, 930);
}

#[test]
fn faults_lose_nothing_of_striped_volumes() {
    let length = Duration::from_secs(12);
    let modify_every = Some(Duration::from_secs(2));
    let options = Options { length, modify_every, striped: true, ..Options::default() };
    survive(5_000, 20, &options);
}

/// After a hand-over the former primary reached a third member before the new primary did.
#[test]
fn a_third_member_takes_nothing_of_a_former_primary() {
    for seed in [1_002_389, 1_003_003, 1_008_133] {
        check(seed, &Options::dense());
    }
}
