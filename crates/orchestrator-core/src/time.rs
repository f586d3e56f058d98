//! Time as the brain knows it: a number that somebody else read off a clock.

use std::ops::Add;

/// Milliseconds since the Unix epoch on a clock that never runs backward, not even over a restart.
///
/// The driver makes it: the wall clock at start, carried on by the monotonic clock, and never
/// below the largest time found in the database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// Milliseconds from `earlier` to here; 0 when `earlier` is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Time {
    type Output = Self;

    /// The time this many milliseconds later.
    fn add(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}
