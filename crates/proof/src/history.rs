//! What guests have seen, and what they may see next: a register per block.
//!
//! Decides: whether an answer to a write, or a value that a read returns, is one that a register
//! could give (9, 11, 12), where nothing of a superseded guest takes effect after its successor
//! was answered (10).
//! Does not: know replicas.
//! Invariant: `possible` is closed: it holds each value that the block may have now, together with
//! the writes that are not answered and have taken effect in that case. So it is a complete test of
//! linearizability for these histories, in a few bits.

use crate::state::{BLOCKS_MAX, Set};

/// Writes of one run. Their values are 1, 2, …; 0 is what was there at first.
pub const WRITES_MAX: u8 = 4;

/// Pairs of a value and of the unanswered writes that took effect, as a set of bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Possible(u128);

impl Possible {
    fn initial() -> Self {
        Self(1)
    }

    /// `taken` is a set of write numbers, from 0; the value of a write is its number + 1.
    fn bit(value: u8, taken: Set) -> u128 {
        1 << (u32::from(value) * (1 << WRITES_MAX) + u32::from(taken.bits()))
    }

    fn pairs(self) -> impl Iterator<Item = (u8, Set)> {
        let values = 0..=WRITES_MAX;
        let pairs = values.flat_map(|v| (0..1 << WRITES_MAX).map(move |t| (v, Set::from_bits(t))));
        pairs.filter(move |&(value, taken)| self.0 & Self::bit(value, taken) != 0)
    }

    fn close(self, open: Set) -> Self {
        if open.is_empty() {
            return self;
        }
        let mut bits = self.0;
        loop {
            let mut grown = bits;
            for (_, taken) in Self(bits).pairs() {
                for write in open.minus(taken).iter() {
                    grown |= Self::bit(write + 1, taken.with(write));
                }
            }
            if grown == bits {
                return Self(bits);
            }
            bits = grown;
        }
    }

    fn keep(self, mut holds: impl FnMut(u8, Set) -> bool) -> Self {
        let kept = self.pairs().filter(|&(value, taken)| holds(value, taken));
        Self(kept.fold(0, |bits, (value, taken)| bits | Self::bit(value, taken)))
    }

    fn forget(self, write: u8) -> Self {
        let pairs = self.pairs().map(|(value, taken)| (value, taken.without(write)));
        Self(pairs.fold(0, |bits, (value, taken)| bits | Self::bit(value, taken)))
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn may_be(self, value: u8) -> bool {
        let values = (1_u128 << (1 << WRITES_MAX)) - 1;
        self.0 >> (u32::from(value) * (1 << WRITES_MAX)) & values != 0
    }
}

/// What went wrong, once and for all.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wrong {
    /// A replica took up something of an epoch below one that it has promised.
    PromiseBroken,
    /// A guest saw what no register could have given.
    NotARegister,
    /// Something of a superseded guest took effect after its successor was answered.
    TookEffectLate,
    /// A configuration names a primary that was not in sync, or shares nobody with the one before.
    NotInSync,
    /// Learner and source differed when everything was filled.
    Differs,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct History {
    pub possible: [Possible; BLOCKS_MAX],
    /// Writes that may take effect at any time, by block.
    open: [Set; BLOCKS_MAX],
    /// Writes of the second client.
    of_second: Set,
    pub acknowledged: Set,
    pub begun: u8,
    /// The second client has been answered: nothing of the first may take effect any more.
    pub superseded: bool,
    pub wrong: Option<Wrong>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            possible: [Possible::initial(); BLOCKS_MAX],
            open: [Set::EMPTY; BLOCKS_MAX],
            of_second: Set::EMPTY,
            acknowledged: Set::EMPTY,
            begun: 0,
            superseded: false,
            wrong: None,
        }
    }
}

impl History {
    /// A client asks for a write: its value.
    pub fn begin(&mut self, client: u8, block: u8) -> u8 {
        let (write, at) = (self.begun, usize::from(block));
        self.begun += 1;
        if client > 0 {
            self.of_second = self.of_second.with(write);
        }
        if client > 0 || !self.superseded {
            self.open[at] = self.open[at].with(write);
            self.possible[at] = self.possible[at].close(self.open[at]);
        }
        write + 1
    }

    /// A client is told that its write is done.
    pub fn acknowledge(&mut self, block: u8, value: u8) {
        let (write, at) = (value - 1, usize::from(block));
        let left = self.possible[at].keep(|_, taken| taken.contains(write));
        if left.is_empty() {
            return self.fail(value);
        }
        self.open[at] = self.open[at].without(write);
        self.possible[at] = left.forget(write);
        self.acknowledged = self.acknowledged.with(write);
    }

    /// A client has read.
    pub fn read(&mut self, block: u8, value: u8) {
        let at = usize::from(block);
        let left = self.possible[at].keep(|now, _| now == value);
        if left.is_empty() {
            return self.fail(value);
        }
        self.possible[at] = left.close(self.open[at]);
    }

    /// The second client is answered for the first time.
    pub fn supersede(&mut self) {
        self.superseded = true;
        for open in &mut self.open {
            *open = Set::from_bits(open.bits() & self.of_second.bits());
        }
    }

    pub fn may_hold(&self, block: u8, value: u8) -> bool {
        self.possible[usize::from(block)].may_be(value)
    }

    fn fail(&mut self, value: u8) {
        let of_first = value > 0 && !self.of_second.contains(value - 1);
        let late = self.superseded && of_first;
        self.note(if late { Wrong::TookEffectLate } else { Wrong::NotARegister });
    }

    pub fn note(&mut self, wrong: Wrong) {
        self.wrong.get_or_insert(wrong);
    }
}
