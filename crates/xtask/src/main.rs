//! Tasks of the workspace: `cargo xtask <task>`.

mod crash;
mod fuzz;
mod tidy;

use std::process::{Command, ExitCode};

use sim::arguments::Arguments;

const USAGE: &str = "\
usage: cargo xtask <task> [--help]
  tidy     house rules that the compiler cannot check
  crash    crash states of the storage engine, compared with a model
  fuzz     decoders on inputs that are nearly valid
  sim      the whole service in virtual time, from seeds, with everything that goes wrong
  model    the group protocol as a model, in every order of steps
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next();
    if let Some(program) = task.as_deref().and_then(program) {
        return run(program, arguments);
    }
    let arguments = Arguments::new(arguments);
    let result = match task.as_deref() {
        Some("tidy") => arguments.end().map(|()| tidy::run()),
        Some("crash") => crash::run(arguments),
        Some("fuzz") => fuzz::run(arguments),
        _ => Err(USAGE.to_owned()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::from(2)
    })
}

/// The simulator and the model have programs of their own, so that the other tasks need not compile
/// every machine or the checker.
fn program(task: &str) -> Option<&'static str> {
    match task {
        "sim" => Some("sim"),
        "model" => Some("proof"),
        _ => None,
    }
}

fn run(program: &str, arguments: impl Iterator<Item = String>) -> ExitCode {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    let arguments: Vec<String> = arguments.collect();
    command.args(["run", "--quiet", "--profile", "proof", "-p", program]);
    if program == "sim" && arguments.iter().any(|argument| argument == "--breaks") {
        command.args(["--features", "sabotage"]);
    }
    command.arg("--").args(arguments);
    match command.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cannot run {program}: {error}");
            ExitCode::from(2)
        }
    }
}
