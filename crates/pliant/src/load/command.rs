//! `pliant load`: the verifying load as a command, for trying out an installation and for tests.

use std::{
    io::{Read, Write},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::json;

use super::{Params, nbd::Address, stats, worker::BLOCK_BYTES};

/// Put a verifying load on an attached volume, until standard input ends or the time is up, then
/// read everything back. Overwrites the range it is given.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    pliant load \"$(pliant attachment list --json | jq -r '.attachments[0].nbd_uris[0]')\" --seconds 30\n  \
    pliant load nbd://127.0.0.1:10809/vol-0123456789abcdef0 --offset 1073741824 --length 67108864 --json")]
pub struct Args {
    /// The attachment's NBD address, as `pliant attachment list` shows it
    uri: String,
    /// First byte of the range to use
    #[arg(long, default_value_t = 0)]
    offset: u64,
    /// Bytes of the range to use
    #[arg(long, default_value_t = 64 << 20)]
    length: u64,
    /// Connections, each with one request in flight
    #[arg(long, default_value_t = 4)]
    workers: u64,
    /// Percentage of requests that read
    #[arg(long, default_value_t = 50)]
    read_percent: u64,
    /// Bytes of each request
    #[arg(long, default_value_t = 4096)]
    request_bytes: u32,
    /// Most requests per second; as fast as it goes when absent
    #[arg(long)]
    rate: Option<f64>,
    /// Makes another sequence of requests and contents
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long to run; until standard input ends when absent
    #[arg(long)]
    seconds: Option<u64>,
    /// Seconds that one answer may take before the load gives up
    #[arg(long, default_value_t = 120)]
    patience: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the load. An error, a mismatch or a lost write makes it fail.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let params = params(args)?;
    let began = Instant::now();
    let running = super::start(&params, began);
    wait(args.seconds);
    let took = began.elapsed();
    let ended = running.stop();
    let summary = stats::summarize(ended.seen.samples.iter().copied());
    let mut failure = ended.seen.failure.clone();
    let (checked, wrong) = ended.verify().unwrap_or_else(|error| {
        failure.get_or_insert(format!("reading back from {}: {error}", args.uri));
        (0, 0)
    });
    let clean =
        ended.seen.io_errors == 0 && ended.seen.mismatches == 0 && wrong == 0 && failure.is_none();
    let report = json!({
        "seconds": took.as_secs_f64(),
        "requests": summary.count,
        "io_errors": ended.seen.io_errors,
        "mismatches": ended.seen.mismatches,
        "reconnects": ended.seen.reconnects,
        "failure": failure,
        "blocks_checked": checked,
        "blocks_wrong": wrong,
        "p50_us": summary.p50_us,
        "p99_us": summary.p99_us,
        "longest_ms": summary.max_us / 1000,
    });
    let text = if args.json { report.to_string() } else { serde_json::to_string_pretty(&report)? };
    writeln!(std::io::stdout(), "{text}").context("writing the report")?;
    if clean { Ok(()) } else { bail!("the load saw errors or wrong data: see the report") }
}

fn params(args: &Args) -> anyhow::Result<Params> {
    let Some(address) = Address::parse(&args.uri) else {
        bail!(
            "'{}' is no NBD address; expected nbd://host:port/name or nbd+unix:///name?socket=path",
            args.uri
        );
    };
    let block = u64::from(BLOCK_BYTES);
    if args.request_bytes == 0 || !args.request_bytes.is_multiple_of(BLOCK_BYTES) {
        bail!("--request-bytes {} is not a multiple of {BLOCK_BYTES}", args.request_bytes);
    }
    if !args.offset.is_multiple_of(block) || !args.length.is_multiple_of(block) {
        bail!("--offset and --length must be multiples of {BLOCK_BYTES}");
    }
    if args.workers == 0 || args.workers > 256 {
        bail!("--workers {} is not between 1 and 256", args.workers);
    }
    if args.length / u64::from(args.request_bytes) < args.workers {
        bail!("--length {} is too small for {} workers", args.length, args.workers);
    }
    if args.rate.is_some_and(|r| r.is_nan() || r <= 0.0) {
        bail!("--rate must be above zero");
    }
    Ok(Params {
        address,
        offset: args.offset,
        length: args.length,
        workers: args.workers,
        read_percent: args.read_percent.min(100),
        request_bytes: args.request_bytes,
        seed: args.seed,
        rate: args.rate,
        patience: Duration::from_secs(args.patience),
    })
}

/// Waits for the time to pass, or for standard input to end.
fn wait(seconds: Option<u64>) {
    let (ended, end) = mpsc::channel::<()>();
    match seconds {
        Some(seconds) => drop(end.recv_timeout(Duration::from_secs(seconds))),
        None => {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
        }
    }
    drop(ended);
}
