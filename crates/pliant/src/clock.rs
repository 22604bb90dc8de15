//! The clock of a process: the only place that asks for the time.
//!
//! Machines get [`Clock::now`] (monotonic, from the start of the process) and [`wall`] with their
//! events and never ask.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::time::{Instant, WallTime};

/// How far ahead of [`Instant::ZERO`] a clock starts, so that "long before the start" can be said.
const HEAD_START: Duration = Duration::from_secs(1);

/// Monotonic time since the clock was made. Copies agree, so every thread of a process shares
/// one.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: std::time::Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self { start: std::time::Instant::now() }
    }

    pub fn now(&self) -> Instant {
        let nanos = (self.start.elapsed() + HEAD_START).as_nanos();
        Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The operating system's name for a machine's instant, for timers; the start for what lies
    /// before it.
    pub fn std_instant(&self, at: Instant) -> std::time::Instant {
        self.start + Duration::from_nanos(at.as_nanos()).saturating_sub(HEAD_START)
    }
}

/// Civil time. Zero before 1970: a clock that wrong makes signatures fail, nothing worse.
pub fn wall() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Random bits from the operating system: seeds, boot ids, keys.
pub fn random() -> std::io::Result<u128> {
    use std::io::Read;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}
