//! The source of ids: splitmix64 from a seed that the shell draws.
//!
//! Not for secrets: callers see its outputs (request ids), and from one the next ones follow.

/// Sebastiano Vigna's splitmix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another source, for who cannot have this one.
    pub fn fork(&mut self) -> Self {
        Self(self.bits())
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn wide(&mut self) -> u128 {
        u128::from(self.bits()) << 64 | u128::from(self.bits())
    }

    /// A version 4 UUID, as text.
    pub fn uuid(&mut self) -> String {
        let bits = self.wide();
        let bits = bits & !(0xf << 76) | 4 << 76;
        let bits = bits & !(0x3 << 62) | 2 << 62;
        let hex = format!("{bits:032x}");
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}
