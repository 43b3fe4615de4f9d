//! Choices, from a seed or from the bytes of a fuzzer's input.

use lb_common::hash::mix;

/// A sequence of choices.
pub enum Dice<'b> {
    /// Random numbers (Steele, Lea, Flood: SplitMix64's counter, with another mixer).
    Seeded(u64),
    /// Bytes, then zeros for ever: the first of what there is to choose from.
    Bytes(&'b [u8]),
}

impl Dice<'_> {
    /// Dice that fall alike whenever the seed is the same.
    pub const fn seeded(seed: u64) -> Self {
        Self::Seeded(mix(seed))
    }

    /// Eight random bytes.
    pub fn roll(&mut self) -> u64 {
        match self {
            Self::Seeded(state) => {
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                mix(*state)
            }
            // Spread out, so that two bytes of input make a number that differs in all bits.
            Self::Bytes(_) => match self.small() {
                0 => 0,
                number => mix(u64::from(number)),
            },
        }
    }

    /// Less than `bound`, which is at most 65536.
    pub fn below(&mut self, bound: usize) -> usize {
        match self {
            Self::Seeded(_) => (self.roll() % bound as u64) as usize,
            Self::Bytes(rest) if bound <= 256 => match rest.split_first() {
                Some((first, others)) => {
                    *rest = others;
                    usize::from(*first) % bound
                }
                None => 0,
            },
            Self::Bytes(_) => usize::from(self.small()) % bound,
        }
    }

    /// True in so many of a hundred cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        // Zero, of which exhausted bytes have no end, is the usual case.
        self.below(100) >= 100 - percent
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// So many random bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length.div_ceil(8)).flat_map(|_| self.roll().to_ne_bytes()).take(length).collect()
    }

    fn small(&mut self) -> u16 {
        let mut byte = || match self {
            Self::Bytes(rest) => rest.split_first().map_or(0, |(first, others)| {
                *rest = others;
                *first
            }),
            Self::Seeded(_) => unreachable!("numbers are rolled"),
        };
        u16::from_le_bytes([byte(), byte()])
    }
}
