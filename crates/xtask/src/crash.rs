//! `cargo xtask crash`: as many crash states of the engine as are wanted, on every core.
//!
//! Decides: which seeds run, and how what comes of them is told. What a state is and what must
//! hold is `sim::crash`'s.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use engine::sabotage::{self, Sabotage};
use sim::{
    arguments::Arguments,
    crash::{self, Failure, damage::Counts},
};

const HELP: &str = "\
Crash states of the storage engine: histories from seeds, cut short at many moments, opened again
and compared with a plain model.

  cargo xtask crash [--states N] [--seed S] [--jobs J] [--keep-going]
  cargo xtask crash --seed S --state K        replays one state, with what led to it
  cargo xtask crash --damage [--seeds N]      damages drives at rest, and counts what comes of it
  cargo xtask crash --faults [--seeds N]      histories on drives that fail or lie
  cargo xtask crash --seed S --trace          one seed, and what happened in it

  --states N     stop after so many states (5000)
  --seed S       the first seed (1); the same seed gives the same states
  --jobs J       threads (one per core)
  --sabotage B   break the engine on purpose: a name, or 'all' (each must be found, and 'none' is not)
  --keep-going   tell of every seed that fails, not only of the first

Examples:
  cargo xtask crash --states 1000000
  cargo xtask crash --seed 42 --state 17
  cargo xtask crash --sabotage NoFlush

Prints a line of JSON every five seconds; exits 1 if a state is wrong.
";

struct Options {
    states: u64,
    seed: u64,
    jobs: usize,
    state: Option<u64>,
    trace: bool,
    keep_going: bool,
    sabotage: Option<Sabotage>,
}

pub fn run(mut arguments: Arguments) -> Result<ExitCode, String> {
    if arguments.flag("--help") {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let sabotage: Option<String> = arguments.value("--sabotage")?;
    let all = sabotage.as_deref() == Some("all");
    let sabotage = sabotage.filter(|_| !all).map(|name| name.parse()).transpose()?;
    let mut options = Options {
        states: arguments.value("--states")?.unwrap_or(5000),
        seed: arguments.value("--seed")?.unwrap_or(1),
        jobs: arguments.value("--jobs")?.unwrap_or(cores),
        state: arguments.value("--state")?,
        trace: arguments.flag("--trace"),
        keep_going: arguments.flag("--keep-going"),
        sabotage,
    };
    let damage = arguments.flag("--damage");
    let faults = arguments.flag("--faults");
    let seeds = arguments.value("--seeds")?.unwrap_or(20);
    arguments.end()?;
    // What panics is told with its seed; nothing else needs to be said at that moment.
    std::panic::set_hook(Box::new(|_| {}));
    if damage {
        return Ok(damaged(&options, seeds));
    }
    if faults {
        return Ok(faulty(&options, seeds));
    }
    if options.trace || options.state.is_some() {
        return Ok(replay(&options));
    }
    if !all {
        return Ok(if many(&options) { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let mut missed = Vec::new();
    for sabotage in Sabotage::ALL {
        println!("{sabotage:?}");
        options.sabotage = Some(sabotage);
        if many(&options) {
            missed.push(sabotage);
        }
    }
    println!("{} breaks, not found: {missed:?}", Sabotage::ALL.len());
    Ok(if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Rounds of damage in each area, per seed.
const ROUNDS: u64 = 25;

fn damaged(options: &Options, seeds: u64) -> ExitCode {
    sabotage::activate(options.sabotage);
    let mut all = Counts::new();
    for seed in options.seed..options.seed + seeds {
        match crash::damage(seed, ROUNDS, options.trace) {
            Ok(counts) => counts.into_iter().for_each(|(k, n)| *all.entry(k).or_default() += n),
            Err(failure) => {
                failure.trace.iter().for_each(|line| println!("{line}"));
                println!("seed {} round {}: {}", failure.seed, failure.state, failure.what);
                println!("replay: cargo xtask crash --damage --seed {} --seeds 1 --trace", seed);
                return ExitCode::FAILURE;
            }
        }
    }
    for ((area, found), count) in &all {
        println!("{{\"area\":\"{area:?}\",\"found\":\"{found:?}\",\"count\":{count}}}");
    }
    ExitCode::SUCCESS
}

fn faulty(options: &Options, seeds: u64) -> ExitCode {
    sabotage::activate(options.sabotage);
    let (mut ends, mut faults) = (BTreeMap::<_, u64>::new(), 0);
    for seed in options.seed..options.seed + seeds {
        match crash::faulty(seed, options.trace) {
            Ok((end, met)) => {
                *ends.entry(end).or_default() += 1;
                faults += met;
            }
            Err(failure) => {
                failure.trace.iter().for_each(|line| println!("{line}"));
                println!("seed {}: {}", failure.seed, failure.what);
                println!("replay: cargo xtask crash --faults --seed {} --seeds 1 --trace", seed);
                return ExitCode::FAILURE;
            }
        }
    }
    for (end, count) in &ends {
        println!("{{\"end\":\"{end:?}\",\"count\":{count}}}");
    }
    println!("{seeds} histories met {faults} faults");
    ExitCode::SUCCESS
}

fn replay(options: &Options) -> ExitCode {
    sabotage::activate(options.sabotage);
    match crash::run(options.seed, options.state, true) {
        Ok(states) => {
            println!("seed {}: {states} states, none wrong", options.seed);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            failure.trace.iter().for_each(|line| println!("{line}"));
            println!("seed {} state {}: {}", failure.seed, failure.state, failure.what);
            ExitCode::FAILURE
        }
    }
}

/// Returns whether no state was wrong.
fn many(options: &Options) -> bool {
    let next = AtomicU64::new(options.seed);
    let states = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let failures: Mutex<Vec<Failure>> = Mutex::default();
    let begun = Instant::now();
    let wanted = |done: u64| done < options.states && !stop.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        let work = || {
            sabotage::activate(options.sabotage);
            while wanted(states.load(Ordering::Relaxed)) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                match crash::run(seed, None, false) {
                    Ok(done) => drop(states.fetch_add(done, Ordering::Relaxed)),
                    Err(failure) => {
                        states.fetch_add(failure.state + 1, Ordering::Relaxed);
                        tell(&failure, options.sabotage);
                        failures.lock().expect("nobody panics with it").push(failure);
                        stop.fetch_or(!options.keep_going, Ordering::Relaxed);
                    }
                }
            }
        };
        let workers: Vec<_> = (0..options.jobs).map(|_| scope.spawn(work)).collect();
        let mut told = begun;
        while workers.iter().any(|worker| !worker.is_finished()) {
            std::thread::park_timeout(Duration::from_millis(50));
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                progress(options, states.load(Ordering::Relaxed), begun, "running");
            }
        }
    });
    let failed = failures.into_inner().expect("nobody panics with it").len();
    let word = if failed == 0 { "passed" } else { "failed" };
    progress(options, states.load(Ordering::Relaxed), begun, word);
    let seeds = next.load(Ordering::Relaxed) - options.seed;
    println!("{seeds} histories from seed {}, {failed} failed", options.seed);
    failed == 0
}

fn progress(options: &Options, states: u64, begun: Instant, state: &str) {
    let seconds = begun.elapsed().as_secs_f64();
    let rate = states as f64 / seconds.max(0.001);
    let left = options.states.saturating_sub(states) as f64 / rate.max(0.001);
    println!(
        "{{\"task\":\"crash\",\"state\":\"{state}\",\"states\":{states},\"of\":{},\
         \"seconds\":{seconds:.1},\"states_per_second\":{rate:.0},\"eta_seconds\":{left:.0}}}",
        options.states
    );
}

fn tell(failure: &Failure, sabotage: Option<Sabotage>) {
    let Failure { seed, state, what, .. } = failure;
    println!("seed {seed} state {state}: {what}");
    let broken = sabotage.map_or(String::new(), |sabotage| format!(" --sabotage {sabotage:?}"));
    println!("replay: cargo xtask crash --seed {seed} --state {state}{broken}");
}
