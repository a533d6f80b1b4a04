//! Everything that is left to chance, from one seed.

use std::time::Duration;

/// A stream of choices that a seed decides.
#[derive(Debug)]
pub struct Dice(fastrand::Rng);

impl Dice {
    /// The choices of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// A number in `from..to`; `from` if there is none.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        if to <= from { from } else { self.0.u64(from..to) }
    }

    /// A time between two, in microseconds.
    pub fn time(&mut self, from_us: u64, to_us: u64) -> Duration {
        Duration::from_micros(self.between(from_us, to_us))
    }

    /// An index below `count`, which must not be 0.
    pub fn below(&mut self, count: usize) -> usize {
        self.0.usize(0..count.max(1))
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.0.u64(0..n.max(1)) == 0
    }

    /// True `of` times in a thousand.
    pub fn per_mille(&mut self, of: u64) -> bool {
        of > 0 && self.0.u64(0..1000) < of
    }

    /// One of `of`.
    pub fn pick<'s, T>(&mut self, of: &'s [T]) -> Option<&'s T> {
        if of.is_empty() {
            None
        } else {
            of.get(self.0.usize(0..of.len()))
        }
    }

    /// An id that nobody else has.
    pub fn id(&mut self) -> u128 {
        self.0.u128(..)
    }
}
