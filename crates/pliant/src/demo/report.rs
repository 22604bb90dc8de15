//! What the demo found, as a table and as a verdict.

use std::{fmt::Write, time::Duration};

use super::{Stretch, stream::Streamed};
use crate::load::{
    Seen,
    stats::{Summary, between, longest_stall, summarize},
};

pub struct Stretches {
    pub before: Stretch,
    pub change: Stretch,
    pub cut_over: Stretch,
    pub after: Stretch,
    pub failover: Stretch,
}

pub struct Report {
    pub written: Streamed,
    pub read: Streamed,
    pub blocks_checked: u64,
    pub blocks_wrong: u64,
    /// The grown end read as zeros and took data.
    pub grown: bool,
    pub bytes_moved: u64,
    pub stretches: Stretches,
    pub seen: Seen,
}

impl Report {
    fn io_errors(&self) -> u64 {
        self.seen.io_errors + self.written.io_errors + self.read.io_errors
    }

    /// Everything that did not hold.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let mut check = |holds: bool, what: String| {
            if !holds {
                failures.push(what);
            }
        };
        check(self.io_errors() == 0, format!("{} I/O errors", self.io_errors()));
        check(self.seen.mismatches == 0, format!("{} wrong reads", self.seen.mismatches));
        check(self.blocks_wrong == 0, format!("{} blocks lost", self.blocks_wrong));
        check(self.blocks_checked > 0, "the load wrote nothing".to_owned());
        check(self.read.sha256 == self.written.sha256, "SHA-256 differs".to_owned());
        check(self.grown, "the grown end does not work".to_owned());
        check(self.seen.failure.is_none(), format!("the load failed: {:?}", self.seen.failure));
        failures
    }

    pub fn table(&self, took: Duration) -> String {
        let mut out = String::from("\n");
        let mut row = |name: &str, value: String| {
            let _ = writeln!(out, "  {name:<34} {value}");
        };
        let stall = |s: Stretch| longest_stall(&self.seen.samples, s.from, s.to);
        let s = &self.stretches;
        row("I/O errors", self.io_errors().to_string());
        row("longest stall at cut-over", format!("{:.1} ms", ms(stall(s.cut_over))));
        row("longest stall at failover", format!("{:.1} ms", ms(stall(s.failover))));
        row("p50 / p99 before (200 IOPS bought)", self.quantiles(s.before));
        row("p50 / p99 during the change", self.quantiles(s.change));
        row("p50 / p99 after (6,000 IOPS bought)", self.quantiles(s.after));
        let seconds = (s.change.to - s.change.from).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let speed = self.bytes_moved as f64 / (1 << 20) as f64 / seconds.max(0.001);
        row(
            "bytes moved",
            format!("{} MiB in {seconds:.1} s ({speed:.0} MiB/s)", self.bytes_moved >> 20),
        );
        row("streamed", format!("{} MiB", self.written.bytes >> 20));
        row("SHA-256 written", self.written.sha256.clone());
        row("SHA-256 read back", self.read.sha256.clone());
        row(
            "verified blocks of the load",
            format!("{}, {} wrong", self.blocks_checked, self.blocks_wrong),
        );
        row("time", format!("{:.0} s", took.as_secs_f64()));
        out
    }

    fn quantiles(&self, stretch: Stretch) -> String {
        let Summary { count, p50_us, p99_us, .. } =
            summarize(between(&self.seen.samples, stretch.from, stretch.to));
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let per_sec = count as f64 / (stretch.to - stretch.from).as_secs_f64().max(0.001);
        let ms = |us: u64| ms(Duration::from_micros(us));
        format!("{:.2} / {:.2} ms at {per_sec:.0} per second", ms(p50_us), ms(p99_us))
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
