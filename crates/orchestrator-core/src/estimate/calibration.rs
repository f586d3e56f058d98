//! From an expectation to a range that holds: how long jobs really took against what was expected.

use api_types::event::Eta;
use api_types::task::Priority;
use serde::{Deserialize, Serialize};

use super::Forecast;
use super::stream::Quantile;

/// Ends of a kind after which its range counts as calibrated.
const CALIBRATED_FROM: u32 = 50;
/// Before anything ended: half of the jobs within the expectation, nine in ten within twice of it.
const PRIOR_P90: f64 = 2.0;
/// Fewer than one job in twenty is faster than this quantile of the service.
const FASTEST: f64 = 0.05;
const PRIOR_FASTEST: f64 = 0.5;

/// How much of its time a job was expected to wait. Waits err otherwise than service does: a long
/// one is the mean of many jobs, a single job may be of any length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    None,
    Short,
    Long,
    VeryLong,
}

impl Wait {
    const COUNT: usize = 4;

    fn of(forecast: &Forecast) -> Self {
        match forecast.wait_ms / forecast.service_ms.max(1) {
            0 if forecast.wait_ms == 0 => Self::None,
            0 => Self::Short,
            1..4 => Self::Long,
            _ => Self::VeryLong,
        }
    }
}

/// The ratios of one class and one kind of wait.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Ratios {
    p50: Quantile,
    p90: Quantile,
}

impl Default for Ratios {
    fn default() -> Self {
        Self { p50: Quantile::new(0.5, 1.0), p90: Quantile::new(0.9, PRIOR_P90) }
    }
}

/// What is known of a class.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct ClassRatios {
    by_wait: [Ratios; Wait::COUNT],
    fastest: Quantile,
}

impl Default for ClassRatios {
    fn default() -> Self {
        Self { by_wait: Default::default(), fastest: Quantile::new(FASTEST, PRIOR_FASTEST) }
    }
}

/// The multipliers that turn an expectation into p50 and p90, by class and kind of wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    interactive: ClassRatios,
    batch: ClassRatios,
}

impl Calibration {
    /// The range of an expectation, and whether enough jobs of its kind have ended for the shares
    /// to hold.
    pub fn range(&self, class: Priority, forecast: &Forecast) -> (Eta, bool) {
        let Some(ratios) = self.ratios(class, forecast) else { return (Eta { p50: 0, p90: 0 }, false) };
        let expected = forecast.expected_ms() as f64;
        let p50 = expected * ratios.p50.factor();
        let p90 = (expected * ratios.p90.factor()).max(p50);
        let after_hold = |ms: f64| forecast.held_ms.saturating_add(ms as u64);
        let range = Eta { p50: after_hold(p50.round()), p90: after_hold(p90.ceil()) };
        (range, ratios.p90.count() >= CALIBRATED_FROM)
    }

    /// The share of the expected service below which hardly any job stays.
    pub fn fastest(&self, class: Priority) -> f64 {
        self.class(class).fastest.factor().min(1.0)
    }

    /// A job ended by itself, this long after its submission. A hold is known to the millisecond, so
    /// it says nothing of how far off expectations are.
    pub fn note_end(&mut self, class: Priority, forecast: &Forecast, actual_ms: u64) {
        let ratio = ratio(forecast, actual_ms);
        if let Some(ratios) = self.ratios_mut(class, forecast) {
            ratios.p50.note(ratio);
            ratios.p90.note(ratio);
        }
    }

    /// A job could not end within this time; how long it would have taken is not known.
    pub fn note_at_least(&mut self, class: Priority, forecast: &Forecast, bound_ms: u64) {
        let ratio = ratio(forecast, bound_ms);
        if let Some(ratios) = self.ratios_mut(class, forecast) {
            ratios.p50.note_at_least(ratio);
            ratios.p90.note_at_least(ratio);
        }
    }

    /// An attempt took this long.
    pub fn note_service(&mut self, class: Priority, expected_ms: f64, actual_ms: u64) {
        if expected_ms > 0.0 {
            self.class_mut(class).fastest.note(actual_ms.max(1) as f64 / expected_ms);
        }
    }

    fn ratios(&self, class: Priority, forecast: &Forecast) -> Option<&Ratios> {
        self.class(class).by_wait.get(Wait::of(forecast) as usize)
    }

    fn ratios_mut(&mut self, class: Priority, forecast: &Forecast) -> Option<&mut Ratios> {
        self.class_mut(class).by_wait.get_mut(Wait::of(forecast) as usize)
    }

    const fn class(&self, class: Priority) -> &ClassRatios {
        match class {
            Priority::Interactive => &self.interactive,
            Priority::Batch => &self.batch,
        }
    }

    const fn class_mut(&mut self, class: Priority) -> &mut ClassRatios {
        match class {
            Priority::Interactive => &mut self.interactive,
            Priority::Batch => &mut self.batch,
        }
    }
}

fn ratio(forecast: &Forecast, actual_ms: u64) -> f64 {
    actual_ms.saturating_sub(forecast.held_ms).max(1) as f64 / forecast.expected_ms() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::Basis;

    fn forecast(wait_ms: u64) -> Forecast {
        Forecast {
            held_ms: 0,
            wait_ms,
            service_ms: 1_000,
            basis: Basis::Exact,
            binding: true,
            eta: Eta { p50: 0, p90: 0 },
        }
    }

    #[test]
    fn the_range_becomes_what_nine_in_ten_jobs_keep_whatever_the_expectation_was_worth() {
        let mut calibration = Calibration::default();
        assert_eq!(calibration.range(Priority::Batch, &forecast(0)), (Eta { p50: 1_000, p90: 2_000 }, false));
        let (mut inside, mut asked) = (0, 0);
        for n in 0..2_000_u64 {
            // Three times what is expected, give or take a half.
            let actual = 3_000 + n * 7_919 % 1_000;
            let (eta, calibrated) = calibration.range(Priority::Interactive, &forecast(0));
            if calibrated {
                asked += 1;
                inside += u64::from(actual <= eta.p90);
            }
            calibration.note_end(Priority::Interactive, &forecast(0), actual);
        }
        let share = inside as f64 / f64::from(asked);
        assert!(asked > 1_900 && (0.87..0.93).contains(&share), "{share} of {asked}");
        let other = calibration.range(Priority::Interactive, &forecast(9_000)).0;
        assert_eq!(other, Eta { p50: 10_000, p90: 20_000 }, "long waits learn by themselves");
    }
}
