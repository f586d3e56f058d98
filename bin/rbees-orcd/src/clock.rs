//! The only clock of the daemon.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use orchestrator_core::Time;

/// The database may be so far ahead of the wall clock and is believed all the same, in milliseconds:
/// a clock that was set back a little, or that a machine without a battery restored from its last
/// shutdown. Nothing but time mends that, and it takes a day at most.
const BELIEVED_AHEAD_MS: u64 = 24 * 3_600_000;
/// A wall clock before this is that of a machine which does not know the time yet: 2026-01-01.
const EARLIEST: Time = Time(1_767_225_600_000);

/// The wall clock at start, carried on by the monotonic clock: it never runs backward, and over a
/// restart only when the database is far ahead of the wall clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    base: Time,
    started: Instant,
}

/// Where the wall clock is read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wall {
    ahead_ms: i64,
}

impl Wall {
    /// One that differs from the system's by so many milliseconds.
    pub const fn ahead_by(ahead_ms: i64) -> Self {
        Self { ahead_ms }
    }

    /// What it shows.
    pub fn now(self) -> Time {
        let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let system = u64::try_from(system.as_millis()).unwrap_or(u64::MAX);
        Time(system.saturating_add_signed(self.ahead_ms))
    }
}

impl Clock {
    /// Starts when the wall clock shows `wall` and the largest time in the database is `floor`. It
    /// starts at the later of the two, unless the database is so far ahead that it must have been
    /// written under a wrong clock: then it starts at `wall`, and the second value says by how many
    /// milliseconds the times in the database are to be set back.
    pub fn start(wall: Time, floor: Time) -> (Self, Option<u64>) {
        let ahead_ms = floor.since(wall);
        let set_back = ahead_ms > BELIEVED_AHEAD_MS && wall >= EARLIEST;
        let base = if set_back { wall } else { wall.max(floor) };
        (Self { base, started: Instant::now() }, set_back.then_some(ahead_ms))
    }

    /// The time now.
    pub fn now(&self) -> Time {
        self.base + u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A time as it stands on the wire: RFC 3339, UTC.
pub fn rfc3339(time: Time) -> String {
    let ms = i64::try_from(time.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn a_clock_starts_at_the_later_of_wall_and_database() {
        let wall = Wall::default().now();
        assert!(wall > EARLIEST);
        let (clock, set_back) = Clock::start(wall, Time(0));
        assert!(clock.now() >= wall && set_back.is_none());
        let (clock, set_back) = Clock::start(wall, wall + 23 * HOUR);
        assert!(clock.now() >= wall + 23 * HOUR && set_back.is_none());
    }

    #[test]
    fn a_database_from_the_far_future_is_not_believed() {
        let wall = EARLIEST + HOUR;
        let (clock, set_back) = Clock::start(wall, wall + 25 * HOUR);
        assert_eq!(set_back, Some(25 * HOUR));
        assert!(clock.now() < wall + HOUR);
    }

    #[test]
    fn a_machine_that_does_not_know_the_time_yet_is_not_believed() {
        let (clock, set_back) = Clock::start(Time(HOUR), EARLIEST);
        assert!(clock.now() >= EARLIEST && set_back.is_none());
    }

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(rfc3339(Time(0)), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(Time(1_500)), "1970-01-01T00:00:01.5Z");
    }
}
