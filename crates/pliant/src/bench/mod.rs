//! What one drive can do: with an engine on it, and without. For `make bench`.
//!
//! Each command prepares its drive, says so, and then measures what standard input asks for, one
//! job a line: so two of them can take turns on the same disk. Nobody but `tests/bench.py` needs
//! it, so the command line does not show it.

mod jobs;
mod lay;
mod raw;
mod turning;

use std::{
    io::{BufRead, Write},
    path::Path,
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

/// Measure a drive with an engine on it, or without; lay out a drive to be opened
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// A volume on an engine
    Engine(jobs::Args),
    /// A file, with what the kernel offers
    Raw(raw::Args),
    /// Give every replica of a drive extents that hold zeros, without writing them
    Lay(lay::Args),
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Engine(args) => jobs::run(args),
        Command::Raw(args) => raw::run(args),
        Command::Lay(args) => lay::run(args),
    }
}

/// One line of standard input: `KIND DEPTH SECONDS`.
#[derive(Debug, Clone, Copy)]
struct Job {
    kind: Kind,
    depth: usize,
    time: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// 4 KiB anywhere, durable when answered.
    RandomWrite,
    /// 4 KiB anywhere.
    RandomRead,
    /// 1 MiB after 1 MiB.
    SequentialWrite,
    /// 4 KiB after 4 KiB.
    SequentialRead,
    /// As that, one at a time, while as many others as the depth says go anywhere; these do not
    /// count.
    ReadBeside,
}

impl Kind {
    fn bytes(self) -> u32 {
        match self {
            Self::RandomWrite | Self::RandomRead | Self::SequentialRead | Self::ReadBeside => 4096,
            Self::SequentialWrite => 1 << 20,
        }
    }
}

impl FromStr for Job {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let mut words = line.split_whitespace();
        let mut next = || words.next().with_context(|| format!("'{line}': KIND DEPTH SECONDS"));
        let kind = match next()? {
            "randwrite" => Kind::RandomWrite,
            "randread" => Kind::RandomRead,
            "write" => Kind::SequentialWrite,
            "read" => Kind::SequentialRead,
            "readbeside" => Kind::ReadBeside,
            other => bail!("'{other}' is not randwrite, randread, write, read or readbeside"),
        };
        let depth = next()?.parse()?;
        ensure!((1..=256).contains(&depth), "a depth of {depth}: give 1 to 256");
        let time = Duration::from_secs_f64(next()?.parse()?);
        Ok(Self { kind, depth, time })
    }
}

/// What a job came to.
#[derive(Debug, Default)]
struct Outcome {
    operations: u64,
    elapsed: Duration,
    latencies: Vec<Duration>,
}

/// Answers every line of standard input with what the job came to and what it cost.
fn serve(mut measure: impl FnMut(Job) -> anyhow::Result<Outcome>) -> anyhow::Result<()> {
    say(&json!({ "ready": true }))?;
    for line in std::io::stdin().lock().lines() {
        let job: Job = line?.parse()?;
        let before = Cost::now()?;
        let mut outcome = measure(job)?;
        let after = Cost::now()?;
        outcome.latencies.sort();
        let percentile = |percent: usize| {
            let at = (outcome.latencies.len() * percent / 100).min(outcome.latencies.len() - 1);
            outcome.latencies.get(at).map_or(0.0, |l| l.as_secs_f64() * 1e6)
        };
        let operations = outcome.operations as f64;
        let bytes = operations * f64::from(job.kind.bytes());
        say(&json!({
            "operations": outcome.operations,
            "per_second": operations / outcome.elapsed.as_secs_f64(),
            "p50_us": percentile(50),
            "p99_us": percentile(99),
            "cpu_per_100k": (after.cpu - before.cpu).as_secs_f64() / operations * 1e5,
            "written_per_byte": (after.written - before.written) as f64 / bytes,
        }))?;
    }
    Ok(())
}

fn say(value: &Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}").and_then(|()| out.flush()).context("writing to standard output")
}

/// What this process has used so far.
struct Cost {
    cpu: Duration,
    written: u64,
}

impl Cost {
    fn now() -> anyhow::Result<Self> {
        let io = std::fs::read_to_string("/proc/self/io").context("reading /proc/self/io")?;
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        let written = written.context("/proc/self/io names no write_bytes")?.parse()?;
        Ok(Self { cpu: raw::cpu_time(), written })
    }
}

/// Makes a file of that many bytes, all written, so that writing it again changes nothing of the
/// file system; one that is there is kept.
fn prewrite(path: &Path, bytes: u64) -> anyhow::Result<()> {
    if std::fs::metadata(path).is_ok_and(|found| found.len() == bytes) {
        return Ok(());
    }
    let written = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(path)?;
        let zeros = vec![0; 1 << 20];
        for _ in 0..bytes >> 20 {
            file.write_all(&zeros)?;
        }
        file.sync_all()
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}
