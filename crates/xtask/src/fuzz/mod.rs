//! `cargo xtask fuzz`: every decoder of bytes that come from a drive or a peer, on inputs that are
//! nearly valid.
//!
//! Decides: which target runs for how long, and how a failing input is told. What must hold: no
//! panic, no allocation out of proportion, no endless loop, and what decodes encodes to something
//! that decodes to the same.

mod allocation;
mod drive;
mod mutate;
mod targets;
mod valid;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sim::{arguments::Arguments, random::Random};

use targets::{TARGETS, Target};

const HELP: &str = "\
Decoders on inputs that are nearly valid: valid encodings, changed, checksums made right again.

  cargo xtask fuzz [--target NAME] [--seconds N] [--seed S] [--jobs J]
  cargo xtask fuzz --target NAME --input FILE     replays one input

  --seconds N    for each target (30)
  --seed S       where the inputs begin (1)
  --jobs J       targets at a time (one per core)

Examples:
  cargo xtask fuzz --seconds 600
  cargo xtask fuzz --target batch

Prints a line of JSON for each target; exits 1 if an input fails, and says where it is kept.
";

/// An input that takes longer does not end.
const HANG: Duration = Duration::from_secs(20);

/// What a worker is at, for the watchman.
type Current = Mutex<Option<(Instant, &'static str, Vec<u8>)>>;

pub fn run(mut arguments: Arguments) -> Result<ExitCode, String> {
    if arguments.flag("--help") {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let name: Option<String> = arguments.value("--target")?;
    let seconds = Duration::from_secs(arguments.value("--seconds")?.unwrap_or(30));
    let seed: u64 = arguments.value("--seed")?.unwrap_or(1);
    let jobs: usize = arguments.value("--jobs")?.unwrap_or(cores);
    let input: Option<PathBuf> = arguments.value("--input")?;
    arguments.end()?;
    let wanted: Vec<&'static Target> =
        TARGETS.iter().filter(|t| name.as_ref().is_none_or(|name| name == t.name)).collect();
    if wanted.is_empty() {
        let names: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
        return Err(format!("there is no such target; there are {}", names.join(", ")));
    }
    if let Some(path) = input {
        let bytes = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let result = examine(wanted[0], &bytes);
        println!("{}: {result:?}", wanted[0].name);
        return Ok(if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    std::panic::set_hook(Box::new(|_| {}));
    let failed = many(&wanted, seconds, seed, jobs);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns how many targets failed.
fn many(wanted: &[&'static Target], seconds: Duration, seed: u64, jobs: usize) -> u64 {
    let (next, failed) = (AtomicUsize::new(0), AtomicU64::new(0));
    let current: Vec<Current> = (0..jobs).map(|_| Mutex::new(None)).collect();
    let work = |current: &Current| {
        while let Some(target) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
            let ok = one(target, seconds, seed, current);
            failed.fetch_add(u64::from(!ok), Ordering::Relaxed);
        }
    };
    let work = &work;
    std::thread::scope(|scope| {
        let workers: Vec<_> = current.iter().map(|c| scope.spawn(move || work(c))).collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            std::thread::park_timeout(Duration::from_millis(50));
            current.iter().for_each(watch);
        }
    });
    failed.into_inner()
}

/// Ends the process when a worker is stuck: there is no other way out of an endless loop.
fn watch(current: &Current) {
    let current = current.lock().expect("nobody panics with it");
    if let Some((since, name, bytes)) = &*current
        && since.elapsed() > HANG
    {
        tell(name, bytes, "it does not end");
        std::process::exit(1);
    }
}

/// Runs a target for so long, or until an input fails. Returns whether none did.
fn one(target: &'static Target, seconds: Duration, seed: u64, current: &Current) -> bool {
    let mut random = Random::new(seed);
    let (begun, mut runs, mut taken) = (Instant::now(), 0u64, 0u64);
    // What it needs once is not the inputs'.
    drop(examine(target, &(target.valid)(&mut random)));
    let mut failed = false;
    while begun.elapsed() < seconds && !failed {
        let bytes = input(target, &mut random);
        if runs.is_multiple_of(16) || target.name == "drive" {
            let now = Some((Instant::now(), target.name, bytes.clone()));
            *current.lock().expect("nobody panics with it") = now;
        }
        runs += 1;
        match examine(target, &bytes) {
            Ok(valid) => taken += u64::from(valid),
            Err(what) => {
                tell(target.name, &bytes, &what);
                failed = true;
            }
        }
    }
    *current.lock().expect("nobody panics with it") = None;
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{{\"task\":\"fuzz\",\"target\":\"{}\",\"inputs\":{runs},\"taken\":{taken},\"seconds\":{seconds:.1},\
         \"inputs_per_second\":{:.0},\"failed\":{failed}}}",
        target.name,
        runs as f64 / seconds.max(0.001)
    );
    !failed
}

fn input(target: &Target, random: &mut Random) -> Vec<u8> {
    if random.below(50) == 0 {
        return mutate::random_bytes(random);
    }
    let mut bytes = (target.valid)(random);
    if random.below(50) > 0 {
        let other = (target.valid)(random);
        mutate::mutate(&mut bytes, &other, random);
    }
    if random.below(8) > 0 {
        (target.seal)(&mut bytes);
    }
    bytes
}

/// Whether the input was taken for valid.
fn examine(target: &Target, bytes: &[u8]) -> Result<bool, String> {
    let checked = AssertUnwindSafe(|| (target.check)(bytes));
    let (result, peak) = allocation::peak_of(|| catch_unwind(checked));
    let bound = (target.bound)(bytes.len());
    match result {
        Ok(Ok(taken)) if peak <= bound => Ok(taken),
        Ok(Ok(_)) => Err(format!("{peak} bytes allocated; {bound} are in proportion")),
        Ok(Err(what)) => Err(what),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&s| s.to_owned()));
            Err(format!("it panics: {}", text.unwrap_or_default()))
        }
    }
}

fn tell(name: &str, bytes: &[u8], what: &str) {
    let path = std::env::temp_dir().join(format!("fuzz-{name}-{:08x}", crc32c::crc32c(bytes)));
    let kept = fs::write(&path, bytes);
    println!("{name}: an input of {} bytes fails: {what}", bytes.len());
    match kept {
        Ok(()) => println!("replay: cargo xtask fuzz --target {name} --input {}", path.display()),
        Err(error) => println!("it could not be kept in {}: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long each target runs in the test suite; `FUZZ_SECONDS` says otherwise.
    const SECONDS: u64 = 30;

    #[test]
    fn no_decoder_panics_hangs_or_allocates_without_bound() {
        let given = std::env::var("FUZZ_SECONDS").ok().map(|s| s.parse().expect("a number"));
        let seconds = Duration::from_secs(given.unwrap_or(SECONDS));
        let all: Vec<&'static Target> = TARGETS.iter().collect();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        assert_eq!(many(&all, seconds, 1, cores), 0, "an input fails; it is kept, see above");
    }

    /// Of each target, most valid inputs must be taken whole, or the fuzzer looks at nothing.
    #[test]
    fn valid_inputs_pass_and_inputs_that_are_wrong_are_found() {
        let mut random = Random::new(1);
        for target in &TARGETS {
            let mut taken = 0;
            for _ in 0..20 {
                let bytes = (target.valid)(&mut random);
                let valid = examine(target, &bytes).expect(target.name);
                taken += u32::from(valid);
            }
            assert!(taken >= 10, "{}: {taken} of 20", target.name);
        }
        let greedy = Target {
            name: "greedy",
            valid: valid::row,
            seal: |_| {},
            check: |bytes| {
                drop(vec![1u8; 200 * bytes.len() + (1 << 20)]);
                Ok(true)
            },
            bound: |length| 64 * length,
        };
        assert!(examine(&greedy, &[1; 9]).is_err_and(|e| e.contains("allocated")));
        let panics = Target { check: |bytes| panic!("{}", bytes.len()), ..greedy };
        assert!(examine(&panics, &[1; 9]).is_err_and(|e| e.contains("panics: 9")));
    }
}
