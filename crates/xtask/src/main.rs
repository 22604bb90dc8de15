//! Tasks of the workspace: `cargo xtask <task>`.

mod arguments;
mod crash;
mod fuzz;
mod tidy;

use std::process::ExitCode;

use arguments::Arguments;

const USAGE: &str = "\
usage: cargo xtask <task> [--help]
  tidy     house rules that the compiler cannot check
  crash    crash states of the storage engine, compared with a model
  fuzz     decoders on inputs that are nearly valid
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next();
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
