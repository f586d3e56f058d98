//! The only clock of the daemon.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use orchestrator_core::Time;

/// The wall clock at start, carried on by the monotonic clock: it never runs backward, not even
/// over a restart.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    base: Time,
    started: Instant,
}

impl Clock {
    /// Starts now, but not before `floor`, the largest time found in the database.
    pub fn not_before(floor: Time) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = Time(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX));
        Self { base: wall.max(floor), started: Instant::now() }
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

    #[test]
    fn a_clock_never_starts_before_its_floor() {
        let far = Time(u64::MAX / 2);
        assert!(Clock::not_before(far).now() >= far);
        assert!(Clock::not_before(Time(0)).now().0 > 1_600_000_000_000);
    }

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(rfc3339(Time(0)), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(Time(1_500)), "1970-01-01T00:00:01.5Z");
    }
}
