//! A plan of what goes wrong with a drive, from a seed.
//!
//! Decides: which action meets which fault. Does not: know what the drive holds.
//! Invariant: the same seed and the same actions give the same faults.

use crate::random::Random;

/// One action in that many meets the fault; zero: none does.
pub type OneIn = u64;

#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    pub read_error: OneIn,
    pub write_error: OneIn,
    pub flush_error: OneIn,
    /// It reports success, and nothing has been written.
    pub lost_write: OneIn,
    /// It lands some blocks away from where it belongs.
    pub misdirected_write: OneIn,
    /// What comes back was written some blocks away.
    pub misdirected_read: OneIn,
    /// One bit of what is written changes on the way to the media.
    pub rot: OneIn,
    /// It takes long: everything else may overtake it.
    pub stall: OneIn,
    /// There is no space below the drive for what it shall prepare.
    pub no_space: OneIn,
}

#[derive(Debug, Clone)]
pub struct Faults {
    rates: Rates,
    random: Random,
    /// Actions that met a fault.
    pub met: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteFault {
    Error,
    Lost,
    /// By so many blocks.
    Misdirected(i64),
    /// This bit of the bytes written.
    Rot(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFault {
    Error,
    Misdirected(i64),
}

impl Faults {
    pub fn new(seed: u64, rates: Rates) -> Self {
        Self { rates, random: Random::new(seed), met: 0 }
    }

    fn strikes(&mut self, rate: OneIn) -> bool {
        let strikes = rate > 0 && self.random.below(rate) == 0;
        self.met += u64::from(strikes);
        strikes
    }

    fn distance(&mut self) -> i64 {
        let blocks = 1 + i64::try_from(self.random.below(64)).expect("small");
        if self.random.chance(50) { blocks } else { -blocks }
    }

    pub fn of_write(&mut self, bytes: u64) -> Option<WriteFault> {
        if self.strikes(self.rates.write_error) {
            return Some(WriteFault::Error);
        }
        if self.strikes(self.rates.lost_write) {
            return Some(WriteFault::Lost);
        }
        if self.strikes(self.rates.misdirected_write) {
            return Some(WriteFault::Misdirected(self.distance()));
        }
        self.strikes(self.rates.rot).then(|| WriteFault::Rot(self.random.below(bytes * 8)))
    }

    pub fn of_read(&mut self) -> Option<ReadFault> {
        if self.strikes(self.rates.read_error) {
            return Some(ReadFault::Error);
        }
        self.strikes(self.rates.misdirected_read).then(|| ReadFault::Misdirected(self.distance()))
    }

    pub fn of_flush(&mut self) -> bool {
        self.strikes(self.rates.flush_error)
    }

    pub fn of_space(&mut self) -> bool {
        self.strikes(self.rates.no_space)
    }

    pub fn stalls(&mut self) -> bool {
        self.strikes(self.rates.stall)
    }
}
