//! A member that is there, and slow: how long guests suffer, and whether anything moves to and fro.

use super::*;

/// What is slow of one of the two servers of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slow {
    MirrorsDrive,
    PrimarysDrive,
    MirrorsLink,
}

pub const SLOW: [Slow; 3] = [Slow::MirrorsDrive, Slow::PrimarysDrive, Slow::MirrorsLink];

/// In how much time things must be well again.
pub const SUFFERS: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Borne {
    /// What 99 of 100 requests took at most, before.
    pub quiet: Duration,
    /// And from [`SUFFERS`] after it became slow, until the end.
    pub after: Duration,
    /// How long after it became slow the last request began that took more than three times as long.
    pub suffered: Duration,
    /// Replicas that left the set.
    pub left: usize,
}

/// Uses a volume while one of its servers is so many times slower than usual for `lasts`.
pub fn slow_member(
    seed: u64,
    (what, factor): (Slow, u64),
    lasts: Duration,
) -> Result<Borne, Box<Violation>> {
    let options = Options { fault_every: None, modify_every: None, ..Options::default() };
    let mut run = Run::new(seed, &options);
    run.play_slow(what, factor, lasts).map_err(|what| {
        let trace = run.world.trace.take().unwrap_or_default();
        Box::new(Violation { seed, what, trace })
    })
}

impl Run {
    fn play_slow(&mut self, what: Slow, factor: u64, lasts: Duration) -> Result<Borne, String> {
        self.make_volume()?;
        self.use_it(Duration::from_secs(2))?;
        self.latencies.clear();
        self.use_it(Duration::from_secs(10))?;
        let quiet = self.percentile_99();
        let group = self.group().ok_or("the volume has no group")?;
        let mut known: BTreeSet<ReplicaId> = group.replicas.keys().copied().collect();
        let mirror = group.config.mirrors().next().ok_or("the volume has no mirror")?;
        let (mirror, primary) = (mirror.server.clone(), group.config.primary().server.clone());
        match what {
            Slow::MirrorsDrive => drop(self.world.slow_drives.insert(mirror.clone(), factor)),
            Slow::PrimarysDrive => drop(self.world.slow_drives.insert(primary.clone(), factor)),
            Slow::MirrorsLink => {
                self.world.slow_links.insert(Process::Server(mirror.clone()), factor);
            }
        }
        let began = self.world.now;
        self.latencies.clear();
        self.use_it(SUFFERS)?;
        let first = self.latencies.len();
        let (end, mut left) = (self.world.now + lasts, 0);
        while self.world.now < end {
            self.use_it(Duration::from_secs(1))?;
            let group = self.group().ok_or("the volume has no group")?;
            left += group.replicas.keys().filter(|r| known.insert(**r)).count();
        }
        let slow = |(_, latency): &&(Instant, Duration)| *latency > 3 * quiet;
        let last = self.latencies.iter().filter(slow).map(|(at, _)| *at).max();
        let suffered = last.map_or(Duration::ZERO, |at| at.since(began));
        self.latencies.drain(..first);
        let after = self.percentile_99();
        self.world.slow_drives.clear();
        self.world.slow_links.clear();
        self.heal()?;
        self.read_everything()?;
        self.compare_replicas()?;
        let group = self.group().ok_or("the volume has no group")?;
        left += group.replicas.keys().filter(|r| known.insert(**r)).count();
        Ok(Borne { quiet, after, suffered, left })
    }

    fn percentile_99(&mut self) -> Duration {
        self.latencies.sort_unstable_by_key(|(_, latency)| *latency);
        let index = self.latencies.len() * 99 / 100;
        self.latencies.get(index).map_or(Duration::ZERO, |(_, latency)| *latency)
    }
}
