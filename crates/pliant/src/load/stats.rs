//! Latency of single requests, and what is said of many.

use std::time::Duration;

/// One answered request.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// When it was answered, in microseconds since the load's start.
    pub at_us: u64,
    pub latency_us: u64,
}

impl Sample {
    pub fn began_us(&self) -> u64 {
        self.at_us.saturating_sub(self.latency_us)
    }
}

/// What is said of a set of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    pub count: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

pub fn summarize(samples: impl IntoIterator<Item = Sample>) -> Summary {
    let mut latencies: Vec<u64> = samples.into_iter().map(|s| s.latency_us).collect();
    latencies.sort_unstable();
    let Some(&max_us) = latencies.last() else { return Summary::default() };
    let at = |percent: usize| latencies[(latencies.len() * percent / 100).min(latencies.len() - 1)];
    let count = u64::try_from(latencies.len()).expect("usize fits u64");
    Summary { count, p50_us: at(50), p99_us: at(99), max_us }
}

/// Samples answered within `[from, to)` of the load's start.
pub fn between(samples: &[Sample], from: Duration, to: Duration) -> impl Iterator<Item = Sample> {
    let (from, to) = (from.as_micros(), to.as_micros());
    samples.iter().copied().filter(move |s| (from..to).contains(&u128::from(s.at_us)))
}

/// The longest wait of any request that was in flight at some moment of `[from, to)`.
pub fn longest_stall(samples: &[Sample], from: Duration, to: Duration) -> Duration {
    let (from, to) = (from.as_micros(), to.as_micros());
    let overlaps = |s: &&Sample| u128::from(s.at_us) >= from && u128::from(s.began_us()) < to;
    let longest = samples.iter().filter(overlaps).map(|s| s.latency_us).max();
    Duration::from_micros(longest.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_us: u64, latency_us: u64) -> Sample {
        Sample { at_us, latency_us }
    }

    #[test]
    fn percentiles_are_of_the_sorted_latencies() {
        let summary = summarize((1..=100).rev().map(|n| sample(n, n)));
        assert_eq!(summary, Summary { count: 100, p50_us: 51, p99_us: 100, max_us: 100 });
        assert_eq!(summarize([]), Summary::default());
    }

    #[test]
    fn a_stall_counts_for_the_event_it_spans() {
        let samples = [sample(100, 10), sample(500_000, 400_000), sample(900_000, 10)];
        let micros = Duration::from_micros;
        assert_eq!(longest_stall(&samples, micros(150_000), micros(200_000)), micros(400_000));
        assert_eq!(longest_stall(&samples, micros(600_000), micros(700_000)), micros(0));
    }
}
