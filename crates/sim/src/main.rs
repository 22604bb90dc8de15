//! `cargo xtask sim`: as many seeds of the whole service as are wanted, on every core.
//!
//! Decides: which seeds run, and how what comes of them is told. What happens in a run and what
//! must hold is `scenario`'s.

#![allow(clippy::disallowed_types, reason = "how long a run takes is told to a person")]

use std::{
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

#[cfg(feature = "sabotage")]
use model::sabotage::{self, Sabotage};
use sim::{
    arguments::Arguments,
    scenario::{
        self, Options, Outcome, Violation,
        shapes::{SHAPES, partition},
        slow::{SLOW, SUFFERS, slow_member},
    },
};

const HELP: &str = "\
The real machines of a manager, six servers and two node managers on simulated drives and links, in
virtual time: a volume is used, modified and moved while the seed decides what goes wrong. Then faults
end, everything must come to its end, and what guests saw and replicas hold is checked.

  cargo xtask sim [--seeds N] [--seed S] [--jobs J] [--plain | --dense] [--striped]
                  [--length SECONDS]
  cargo xtask sim --seed S --trace            one seed, and what happened in it
  cargo xtask sim --breaks [--seeds N]        breaks the protocol on purpose; each must be found
  cargo xtask sim --shapes [--seed S]         one partition of each shape, and what it costs a guest
  cargo xtask sim --slow [--length SECONDS]   one replica's drive or link slow, and what it costs a guest

  --seeds N      so many seeds (100)
  --seed S       the first seed (1); the same seed gives the same run
  --jobs J       threads (one per core)
  --plain        only deaths of processes, power cuts and broken links
  --dense        three seconds each, with three times as many faults
  --striped      volumes striped over drives, modified to be striped otherwise
  --length SEC   virtual time with faults, for each seed (20; 3 with --dense)
  --keep-going   tell of every seed that fails, not only of the first

Examples:
  cargo xtask sim --seeds 2000
  cargo xtask sim --seed 42 --trace

Prints a line of JSON every five seconds; exits 1 if a run goes wrong.
";

struct Wanted {
    seeds: u64,
    seed: u64,
    jobs: usize,
    keep_going: bool,
    shapes: bool,
    breaks: bool,
    slow: bool,
    run: Options,
}

fn main() -> ExitCode {
    let mut arguments = Arguments::new(std::env::args().skip(1));
    if arguments.flag("--help") {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    match wanted(arguments) {
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
        Ok(wanted) => {
            let well = match (wanted.shapes, wanted.run.keep_trace) {
                _ if wanted.breaks => breaks(&wanted),
                _ if wanted.slow => slow(&wanted),
                (true, _) => shapes(&wanted),
                (false, true) => one(&wanted),
                (false, false) => many(&wanted),
            };
            if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    }
}

fn wanted(mut arguments: Arguments) -> Result<Wanted, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (plain, dense) = (arguments.flag("--plain"), arguments.flag("--dense"));
    let kind = match (plain, dense) {
        (true, true) => return Err("--plain and --dense are two kinds of runs".to_owned()),
        (true, false) => Options::default(),
        (false, true) => Options::dense(),
        (false, false) => Options::everything(),
    };
    let wanted = Wanted {
        seeds: arguments.value("--seeds")?.unwrap_or(100),
        seed: arguments.value("--seed")?.unwrap_or(1),
        jobs: arguments.value("--jobs")?.unwrap_or(cores),
        keep_going: arguments.flag("--keep-going"),
        shapes: arguments.flag("--shapes"),
        breaks: arguments.flag("--breaks"),
        slow: arguments.flag("--slow"),
        run: Options {
            length: arguments.value("--length")?.map_or(kind.length, Duration::from_secs),
            striped: arguments.flag("--striped"),
            keep_trace: arguments.flag("--trace"),
            ..kind
        },
    };
    arguments.end()?;
    Ok(wanted)
}

/// An assertion of a machine that does not hold is found as any other violation is.
fn run(seed: u64, options: &Options) -> Result<Outcome, Box<Violation>> {
    let run = AssertUnwindSafe(|| scenario::run(seed, options));
    panic::catch_unwind(run).unwrap_or_else(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        let text = text.or_else(|| cause.downcast_ref::<&str>().map(|&s| s.to_owned()));
        let what = format!("panicked: {}", text.unwrap_or_default());
        Err(Box::new(Violation { seed, what, trace: Vec::new() }))
    })
}

fn shapes(wanted: &Wanted) -> bool {
    let mut well = true;
    for shape in SHAPES {
        match partition(wanted.seed, shape, false) {
            Ok(served) => println!(
                "{{\"shape\":\"{}\",\"stall_ms\":{},\"answers\":{}}}",
                shape.name,
                served.stall.as_millis(),
                served.answers
            ),
            Err(violation) => {
                well = false;
                println!("seed {}: {}", violation.seed, violation.what);
            }
        }
    }
    well
}

/// Whether guests of a slow replica are well again in time, and nothing moves twice.
fn slow(wanted: &Wanted) -> bool {
    let mut well = true;
    for (what, factor) in SLOW.into_iter().flat_map(|what| [20, 1_000].map(|by| (what, by))) {
        match slow_member(wanted.seed, (what, factor), wanted.run.length) {
            Ok(borne) => {
                well &= borne.after <= 3 * borne.quiet && borne.left <= 1;
                println!(
                    "{{\"slow\":\"{what:?}\",\"factor\":{factor},\"quiet_p99_us\":{},\
                     \"after_{}s_p99_us\":{},\"suffered_ms\":{},\"replicas_replaced\":{}}}",
                    borne.quiet.as_micros(),
                    SUFFERS.as_secs(),
                    borne.after.as_micros(),
                    borne.suffered.as_millis(),
                    borne.left
                );
            }
            Err(violation) => {
                well = false;
                println!("seed {}: {}", violation.seed, violation.what);
            }
        }
    }
    well
}

/// Breaks one rule of the protocol after the other; returns whether each was noticed.
#[cfg(feature = "sabotage")]
fn breaks(wanted: &Wanted) -> bool {
    panic::set_hook(Box::new(|_| {}));
    let next = AtomicU64::new(0);
    let missed: Mutex<Vec<Sabotage>> = Mutex::default();
    std::thread::scope(|scope| {
        let work = || {
            while let Some(&broken) = Sabotage::ALL
                .get(usize::try_from(next.fetch_add(1, Ordering::Relaxed)).expect("a handful"))
            {
                sabotage::activate(Some(broken));
                let found = notice(wanted);
                sabotage::activate(None);
                // What goes wrong anyway shows nothing.
                let found =
                    found.filter(|(_, options, violation)| run(violation.seed, options).is_ok());
                match found {
                    Some((kind, _, violation)) => {
                        let what: String = violation.what.chars().take(100).collect();
                        println!("{broken:?}: seed {}{kind}: {what}", violation.seed);
                    }
                    None => {
                        println!("{broken:?}: NOT FOUND in {} seeds", wanted.seeds);
                        missed.lock().expect("nobody panics with it").push(broken);
                    }
                }
            }
        };
        (0..wanted.jobs).for_each(|_| drop(scope.spawn(work)));
    });
    let missed = missed.into_inner().expect("nobody panics with it");
    println!("{} breaks, not found: {missed:?}", Sabotage::ALL.len());
    missed.is_empty()
}

/// What notices first that something is broken, of runs of every kind.
#[cfg(feature = "sabotage")]
fn notice(wanted: &Wanted) -> Option<(&'static str, Options, Box<Violation>)> {
    let calm = Options { length: wanted.run.length, ..Options::calm() };
    let striped = Options { striped: true, ..wanted.run.clone() };
    let plain = Options { length: wanted.run.length, ..Options::default() };
    let kinds =
        [(" calm", calm), ("", wanted.run.clone()), (" --plain", plain), (" --striped", striped)];
    (wanted.seed..wanted.seed + wanted.seeds).find_map(|seed| {
        // What calm runs find, few of them find.
        let some = if seed < wanted.seed + 5 { &kinds[..] } else { &kinds[1..] };
        some.iter().find_map(|(kind, options)| {
            let violation = run(seed, options).err()?;
            Some((*kind, options.clone(), violation))
        })
    })
}

#[cfg(not(feature = "sabotage"))]
fn breaks(_: &Wanted) -> bool {
    eprintln!("only `cargo xtask sim --breaks` is built so that it can break anything");
    false
}

fn one(wanted: &Wanted) -> bool {
    match scenario::run(wanted.seed, &wanted.run) {
        Ok(outcome) => {
            println!("seed {}: {outcome:?}", wanted.seed);
            true
        }
        Err(violation) => {
            violation.trace.iter().for_each(|line| println!("{line}"));
            println!("seed {}: {}", violation.seed, violation.what);
            false
        }
    }
}

/// Returns whether no run went wrong.
fn many(wanted: &Wanted) -> bool {
    panic::set_hook(Box::new(|_| {}));
    let (next, done) = (AtomicU64::new(wanted.seed), AtomicU64::new(0));
    let (stop, failed) = (AtomicBool::new(false), AtomicU64::new(0));
    let total: Mutex<Outcome> = Mutex::default();
    let begun = Instant::now();
    let end = wanted.seed + wanted.seeds;
    let told = |word: &str| {
        let total = total.lock().expect("nobody panics with it").clone();
        progress(wanted, (done.load(Ordering::Relaxed), begun), &total, word);
    };
    std::thread::scope(|scope| {
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    return;
                }
                match run(seed, &wanted.run) {
                    Ok(outcome) => total.lock().expect("nobody panics with it").add(&outcome),
                    Err(violation) => {
                        failed.fetch_add(1, Ordering::Relaxed);
                        tell(&violation, wanted);
                        stop.fetch_or(!wanted.keep_going, Ordering::Relaxed);
                    }
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
        };
        let workers: Vec<_> = (0..wanted.jobs).map(|_| scope.spawn(work)).collect();
        let mut last = begun;
        while workers.iter().any(|worker| !worker.is_finished()) {
            std::thread::park_timeout(Duration::from_millis(50));
            if last.elapsed() > Duration::from_secs(5) {
                last = Instant::now();
                told("running");
            }
        }
    });
    let failed = failed.into_inner();
    told(if failed == 0 { "passed" } else { "failed" });
    println!("{} seeds from {}, {failed} failed", done.load(Ordering::Relaxed), wanted.seed);
    failed == 0
}

fn progress(wanted: &Wanted, (done, begun): (u64, Instant), total: &Outcome, state: &str) {
    let seconds = begun.elapsed().as_secs_f64().max(0.001);
    let rate = done as f64 / seconds;
    let left = wanted.seeds.saturating_sub(done) as f64 / rate.max(0.001);
    let virtual_rate = total.lasted.as_secs_f64() / seconds;
    let Outcome { reads, writes, kills, resets, cuts, pauses, drive_failures, .. } = total;
    println!(
        "{{\"task\":\"sim\",\"state\":\"{state}\",\"seeds\":{done},\"of\":{},\"seconds\":{seconds:.1},\
         \"eta_seconds\":{left:.0},\"simulated_seconds_per_second\":{virtual_rate:.0},\
         \"reads\":{reads},\"writes\":{writes},\"kills\":{kills},\"resets\":{resets},\"cuts\":{cuts},\
         \"pauses\":{pauses},\"drive_failures\":{drive_failures},\"moves\":{},\"drains\":{},\"modifications\":{}}}",
        wanted.seeds, total.moves, total.drains, total.completed
    );
}

fn tell(violation: &Violation, wanted: &Wanted) {
    println!("seed {}: {}", violation.seed, violation.what);
    let dense = wanted.run.fault_every == Options::dense().fault_every;
    let plain = match (wanted.run.all_faults, dense) {
        (false, _) => " --plain",
        (true, true) => " --dense",
        (true, false) => "",
    };
    let striped = if wanted.run.striped { " --striped" } else { "" };
    let length = wanted.run.length.as_secs();
    let seed = violation.seed;
    println!("replay: cargo xtask sim --seed {seed}{plain}{striped} --length {length} --trace");
}
