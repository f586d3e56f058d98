//! Time as the brain knows it: a number that somebody else read off a clock.

use serde::{Deserialize, Serialize};
use std::ops::Add;

/// Milliseconds since the Unix epoch on a clock that never runs backward, not even over a restart.
///
/// The driver makes it: the wall clock at start, carried on by the monotonic clock, and never
/// below the largest time found in the database, whose times are set back first when they are too
/// far ahead to be true.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time(pub u64);

impl Time {
    /// Milliseconds from `earlier` to here; 0 when `earlier` is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This instant as RFC 3339 in UTC with milliseconds, for example `2026-11-21T04:09:12.007Z`.
    pub fn rfc3339(self) -> String {
        let (seconds, milliseconds) = (self.0 / 1_000, self.0 % 1_000);
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil_date(days);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
    }
}

/// A span of milliseconds for people: `340 ms`, `2.1 s`, `3 min 05 s`, `2 h 07 min`.
pub(crate) fn in_words(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{seconds}.{} s", ms % 1_000 / 100),
        60..3_600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3_600, seconds / 60 % 60),
    }
}

/// Year, month and day of a count of days since 1970-01-01, in the Gregorian calendar.
///
/// Counts from 0000-03-01, so that the leap day is the last of its year and every month's start
/// follows one formula.
const fn civil_date(days_since_epoch: u64) -> (u64, u64, u64) {
    const DAYS_TO_EPOCH: u64 = 719_468;
    const DAYS_IN_400_YEARS: u64 = 146_097;
    let days = days_since_epoch + DAYS_TO_EPOCH;
    let (era, day_of_era) = (days / DAYS_IN_400_YEARS, days % DAYS_IN_400_YEARS);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

impl Add<u64> for Time {
    type Output = Self;

    /// The time this many milliseconds later.
    fn add(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_well_at_every_length() {
        let shown = [0, 999, 1_000, 59_999, 60_000, 185_000, 3_600_000, 28_800_000].map(in_words);
        let words =
            ["0 ms", "999 ms", "1.0 s", "59.9 s", "1 min 00 s", "3 min 05 s", "1 h 00 min", "8 h 00 min"];
        assert_eq!(shown, words);
    }

    #[test]
    fn instants_print_as_the_calendar_has_them() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_735_689_599_000, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(Time(ms).rfc3339(), text);
        }
    }
}
