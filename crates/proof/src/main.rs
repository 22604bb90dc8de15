//! `cargo xtask model`: explores the model of the group protocol.
//!
//! Decides: which scopes are explored, and how what comes of them is told.

#![allow(clippy::disallowed_types, reason = "how long a run takes is told to a person")]

use std::{process::ExitCode, time::Instant};

use proof::{
    breaks::{FOUND, MASKED},
    explore::{Outcome, explore},
    model::Proof,
    scope::{FINDINGS, SCOPES, Scope},
};

const HELP: &str = "\
Explores a model of the group protocol (docs/replication.md) to the end of each scope: every order of
steps, losses, late arrivals and deaths of processes that the scope allows.

  cargo xtask model [--servers 2|3] [--scope NAME] [--large]
  cargo xtask model --breaks [--paths]     each mistake that the model can make is found, or masked
  cargo xtask model --findings [--paths]   what the protocol itself does wrong

  --servers N    only scopes with so many servers
  --scope NAME   only this one
  --large        those that take minutes too
  --everything   without forgetting what can have no effect: more states, the same results
  --paths        the steps that lead to each violation
  --threads N    (2)

Examples:
  cargo xtask model
  cargo xtask model --servers 3 --large
  cargo xtask model --breaks --paths

Exits 1 if a property does not hold, what must be reachable is not, or a mistake goes unnoticed.
";

#[derive(Default)]
struct Wanted {
    servers: Option<u8>,
    scope: Option<String>,
    large: bool,
    breaks: bool,
    findings: bool,
    everything: bool,
    paths: bool,
    threads: usize,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help") {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    match wanted(arguments.into_iter()) {
        Ok(wanted) if run(&wanted) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn wanted(mut arguments: impl Iterator<Item = String>) -> Result<Wanted, String> {
    let mut wanted = Wanted { threads: 2, ..Wanted::default() };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
        let number =
            |text: String| text.parse::<u8>().map_err(|_| format!("{text} is not a small number"));
        match argument.as_str() {
            "--servers" => wanted.servers = Some(number(value()?)?),
            "--scope" => wanted.scope = Some(value()?),
            "--threads" => wanted.threads = usize::from(number(value()?)?.max(1)),
            "--large" => wanted.large = true,
            "--breaks" => wanted.breaks = true,
            "--findings" => wanted.findings = true,
            "--everything" => wanted.everything = true,
            "--paths" => wanted.paths = true,
            _ => return Err(format!("'{argument}' is not known here; --help says what is")),
        }
    }
    Ok(wanted)
}

/// True if everything is as it should be.
fn run(wanted: &Wanted) -> bool {
    if wanted.breaks {
        return breaks(wanted);
    }
    if wanted.findings {
        let unexpected = FINDINGS.iter().filter(|scope| !finding(wanted, scope)).count();
        return unexpected == 0;
    }
    let named = |s: &&Scope| wanted.scope.as_ref().is_none_or(|name| s.name == name);
    let sized = |s: &&Scope| wanted.large || wanted.scope.is_some() || !s.large;
    let peopled = |s: &&Scope| wanted.servers.is_none_or(|servers| s.servers == servers);
    let scopes: Vec<&Scope> = SCOPES.iter().filter(named).filter(sized).filter(peopled).collect();
    if scopes.is_empty() {
        eprintln!("no scope is like that; without --large, those that take minutes are left out");
    }
    let unsound = scopes.iter().filter(|scope| !sound(wanted, scope)).count();
    unsound == 0 && !scopes.is_empty()
}

fn measured(name: &str, explore: impl FnOnce() -> Outcome) -> Outcome {
    let begin = Instant::now();
    let outcome = explore();
    println!(
        "{name:<24} {:>11} states {:>12} generated  depth {:>3} {:>8.1} s",
        outcome.states,
        outcome.generated,
        outcome.depth,
        begin.elapsed().as_secs_f64()
    );
    outcome
}

fn show(outcome: &Outcome, paths: bool) {
    let Some(violation) = &outcome.violation else { return };
    println!("    violates {}, in {} steps", violation.property, violation.path.len() - 1);
    if paths {
        violation.path.iter().for_each(|line| println!("    {line}"));
    }
}

/// Whether nothing is violated, and everything reached that must be.
fn sound(wanted: &Wanted, scope: &Scope) -> bool {
    let scope = Scope { everything: wanted.everything, ..*scope };
    let outcome = measured(scope.name, || explore(Proof::new(scope), wanted.threads));
    show(&outcome, true);
    for name in &outcome.reached {
        println!("    reached: {name}");
    }
    for name in &outcome.missing {
        println!("    NEVER reached: {name}");
    }
    outcome.violation.is_none() && outcome.missing.is_empty()
}

/// Whether the violation is there, and gone with the rule that mends it.
fn finding(wanted: &Wanted, scope: &Scope) -> bool {
    let outcome = measured(scope.name, || explore(Proof::new(*scope), 1));
    show(&outcome, wanted.paths);
    let doubted = Scope { doubted: true, ..*scope };
    let name = format!("{}, mended", scope.name);
    let healed = measured(&name, || explore(Proof::new(doubted), wanted.threads));
    show(&healed, true);
    outcome.violation.is_some() && healed.violation.is_none()
}

/// Whether each mistake is found, or masked as it should be.
fn breaks(wanted: &Wanted) -> bool {
    let mut well = true;
    for found in FOUND {
        let outcome = measured(&format!("{:?}", found.mistake), || found.explore());
        show(&outcome, wanted.paths);
        if outcome.violation.is_none() {
            well = false;
            println!("    UNNOTICED");
        }
    }
    for masked in MASKED {
        let name = format!("{:?}", masked.mistake);
        let outcome = measured(&name, || masked.explore(wanted.threads));
        show(&outcome, wanted.paths);
        println!("    masked: {}", masked.why);
        well &= outcome.violation.is_none();
        if let Some(with) = masked.with {
            let name = format!("... with {with:?}");
            let both = measured(&name, || masked.explore_both().expect("there is another rule"));
            show(&both, wanted.paths);
            well &= both.violation.is_some();
        }
    }
    well
}
