//! `cargo run --release -p sim -- [--seeds N] [--from SEED] [--striped]
//! [--trace]`: runs seeds until one fails.

use std::{process::ExitCode, time::Duration};

use sim::scenario::{self, Options};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str, default: u64| {
        let at = arguments.iter().position(|a| a == name);
        at.and_then(|i| arguments.get(i + 1)).and_then(|v| v.parse().ok()).unwrap_or(default)
    };
    let (seeds, from) = (value("--seeds", 100), value("--from", 1));
    let options = Options {
        keep_trace: arguments.iter().any(|a| a == "--trace"),
        length: Duration::from_secs(value("--length", 20)),
        striped: arguments.iter().any(|a| a == "--striped"),
        all_faults: arguments.iter().any(|a| a == "--all-faults"),
        move_every: arguments.iter().any(|a| a == "--all-faults").then_some(Duration::from_secs(5)),
        ..Options::default()
    };
    if arguments.iter().any(|a| a == "--shapes") {
        for shape in sim::scenario::shapes::SHAPES {
            match sim::scenario::shapes::partition(from, shape, options.keep_trace) {
                Ok(served) => println!("{}: {served:?}", shape.name),
                Err(violation) => println!("FAILED {}", violation.what),
            }
        }
        return ExitCode::SUCCESS;
    }
    let mut failures = 0;
    for seed in from..from + seeds {
        match scenario::run(seed, &options) {
            Ok(outcome) => println!("seed {seed}: {outcome:?}"),
            Err(violation) => {
                failures += 1;
                for line in &violation.trace {
                    println!("{line}");
                }
                println!("seed {seed} FAILED: {}", violation.what);
                println!("replay: cargo run --release -p sim -- --seeds 1 --from {seed} --trace");
            }
        }
    }
    println!("{} seeds, {failures} failed", seeds);
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
