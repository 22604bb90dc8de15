//! The throttle of a volume: token buckets of operations and of bytes.
//!
//! Decides: whether a request may start now, and else when.
//! Does not: queue; know what a request is.
//! Invariants: over any stretch of time in which requests wait, exactly the rate is admitted,
//! give or take one burst; integers only, so nothing drifts.

use std::time::Duration;

use model::{
    time::Instant,
    units::{Iops, MibPerSec, Rate},
    volume::Media,
};

/// How much unused rate is kept: enough that a timer which fires late loses nothing.
const BURST_NANOS: i128 = 40_000_000;
const NANOS: i128 = 1_000_000_000;

/// What a request costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    operations: u32,
    bytes: u32,
}

impl Cost {
    /// A transfer counts as one operation per started unit of its media.
    pub fn transfer(media: Media, bytes: u32) -> Self {
        Self { operations: bytes.div_ceil(media.io_unit_bytes()).max(1), bytes }
    }

    /// A request that moves no data.
    pub fn operation() -> Self {
        Self { operations: 1, bytes: 0 }
    }
}

/// One bucket, filled at `per_second`. Levels are in billionths, so that a nanosecond adds
/// exactly `per_second`.
#[derive(Debug)]
struct Bucket {
    per_second: u64,
    level: i128,
}

impl Bucket {
    fn new(per_second: u64) -> Self {
        let mut bucket = Self { per_second: per_second.max(1), level: 0 };
        bucket.level = bucket.full();
        bucket
    }

    fn full(&self) -> i128 {
        (i128::from(self.per_second) * BURST_NANOS).max(NANOS)
    }

    fn fill(&mut self, elapsed: Duration) {
        let gained = i128::from(self.per_second)
            .saturating_mul(i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX));
        self.level = self.level.saturating_add(gained).min(self.full());
    }

    /// The level at which a cost is admitted: what it takes, or a full bucket, from which it then
    /// goes into debt.
    fn wanted(&self, cost: u32) -> i128 {
        (i128::from(cost) * NANOS).min(self.full())
    }

    fn admits(&self, cost: u32) -> bool {
        self.level >= self.wanted(cost)
    }

    fn take(&mut self, cost: u32) {
        self.level -= i128::from(cost) * NANOS;
    }

    fn wait(&self, cost: u32) -> Duration {
        let missing = (self.wanted(cost) - self.level).max(0);
        let per_second = i128::from(self.per_second);
        let nanos = (missing + per_second - 1) / per_second;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[derive(Debug)]
pub struct Throttle {
    rate: Rate,
    operations: Bucket,
    bytes: Bucket,
    filled: Instant,
}

impl Throttle {
    pub fn new(rate: Rate, now: Instant) -> Self {
        let Rate { iops, throughput } = rate;
        Self {
            rate,
            operations: Bucket::new(operations_per_second(iops)),
            bytes: Bucket::new(bytes_per_second(throughput)),
            filled: now,
        }
    }

    /// Acts at once: what has gathered so far is kept up to the new burst, and so is debt.
    pub fn change(&mut self, rate: Rate, now: Instant) {
        if rate == self.rate {
            return;
        }
        self.fill(now);
        self.rate = rate;
        self.operations.per_second = operations_per_second(rate.iops);
        self.bytes.per_second = bytes_per_second(rate.throughput);
        self.fill(now);
    }

    /// Takes the cost if it may start now.
    pub fn admit(&mut self, cost: Cost, now: Instant) -> bool {
        self.fill(now);
        let admitted = self.operations.admits(cost.operations) && self.bytes.admits(cost.bytes);
        if admitted {
            self.operations.take(cost.operations);
            self.bytes.take(cost.bytes);
        }
        admitted
    }

    /// When the cost may start, if nothing else starts before it.
    pub fn ready_at(&self, cost: Cost) -> Instant {
        let wait = self.operations.wait(cost.operations).max(self.bytes.wait(cost.bytes));
        self.filled + wait
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.since(self.filled);
        self.operations.fill(elapsed);
        self.bytes.fill(elapsed);
        self.filled = self.filled.max(now);
    }
}

fn operations_per_second(iops: Iops) -> u64 {
    u64::from(iops.get()).max(1)
}

fn bytes_per_second(throughput: MibPerSec) -> u64 {
    throughput.bytes_per_sec().max(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(iops: u32, mib: u32) -> Rate {
        Rate { iops: Iops::new(iops), throughput: MibPerSec::new(mib) }
    }

    /// Admits as much as it can until `end`, waking `late` after each time asked for.
    fn flood(
        throttle: &mut Throttle,
        from: Instant,
        end: Instant,
        cost: Cost,
        late: Duration,
    ) -> u32 {
        let mut now = from;
        let mut admitted = 0;
        while now < end {
            while throttle.admit(cost, now) {
                admitted += 1;
            }
            now = throttle.ready_at(cost) + late;
        }
        admitted
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_backlogged_volume_gets_its_iops_within_one_per_cent() {
        for (iops, late_us) in [(100, 0), (500, 0), (500, 9_000), (16_000, 500)] {
            let start = Instant::from_nanos(7);
            let mut throttle = Throttle::new(rate(iops, 1_000), start);
            let cost = Cost::transfer(Media::Ssd, 4096);
            let late = Duration::from_micros(late_us);
            let admitted = flood(&mut throttle, start, start + seconds(5), cost, late);
            let wanted = iops * 5;
            let off = admitted.abs_diff(wanted);
            assert!(off * 100 <= wanted, "{admitted} instead of {wanted}, late by {late_us} us");
        }
    }

    #[test]
    fn large_transfers_are_limited_by_throughput_and_count_by_unit() {
        let start = Instant::ZERO;
        let mut throttle = Throttle::new(rate(10_000, 125), start);
        let cost = Cost::transfer(Media::Ssd, 1 << 20);
        let admitted = flood(&mut throttle, start, start + seconds(4), cost, Duration::ZERO);
        assert!((498..=506).contains(&admitted), "{admitted} MiB in 4 s at 125 MiB/s");

        let mut throttle = Throttle::new(rate(400, 1_000), start);
        let admitted = flood(&mut throttle, start, start + seconds(4), cost, Duration::ZERO);
        assert!((398..=405).contains(&admitted), "{admitted}: a MiB on SSD is four operations");
        assert_eq!(Cost::transfer(Media::Hdd, 1 << 20).operations, 1);
        assert_eq!(Cost::transfer(Media::Ssd, (256 << 10) + 4096).operations, 2);
    }

    #[test]
    fn idle_time_gathers_no_more_than_one_burst() {
        let mut throttle = Throttle::new(rate(500, 1_000), Instant::ZERO);
        let later = Instant::ZERO + seconds(3_600);
        let cost = Cost::operation();
        let mut burst = 0;
        while throttle.admit(cost, later) {
            burst += 1;
        }
        assert_eq!(burst, 20);
    }

    #[test]
    fn a_new_rate_acts_at_once() {
        let start = Instant::ZERO;
        let mut throttle = Throttle::new(rate(100, 1_000), start);
        let cost = Cost::operation();
        let middle = start + seconds(1);
        flood(&mut throttle, start, middle, cost, Duration::ZERO);
        throttle.change(rate(2_000, 1_000), middle);
        let admitted = flood(&mut throttle, middle, middle + seconds(1), cost, Duration::ZERO);
        assert!((1_980..=2_020).contains(&admitted), "{admitted}");
    }
}
