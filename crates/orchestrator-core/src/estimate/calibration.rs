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

/// The narrowest range, p90 over p50, that a run over its time is believed to follow.
const NARROWEST_TAIL: f64 = 1.5;

/// What is left of a range for one that has lasted `spent_ms` and not ended. A time whose half and
/// nine tenths lie at `p50` and `p90` is taken to be log-logistic, so its survivors' quantiles have a
/// closed form: `S(t) = 1 / (1 + (t / p50)^b)` with `b = ln 9 / ln(p90 / p50)`. The longer it has
/// lasted, the more is left; nothing is ever left for who shows no sign of ending.
pub fn remaining(range: Eta, spent_ms: u64) -> Eta {
    let (p50, p90) = (range.p50.max(1) as f64, range.p90.max(1) as f64);
    let spent = spent_ms as f64;
    let shape = |spread: f64| libm::log(9.0) / libm::log(spread);
    let (b, b_tail) = (shape((p90 / p50).max(1.01)), shape((p90 / p50).max(NARROWEST_TAIL)));
    // The share of those that are left which is yet to end, at the half and at nine tenths.
    let left = |of_left: f64| {
        let past = libm::pow(spent / p50, b);
        let at = p50 * libm::pow((1.0 + past) / of_left - 1.0, 1.0 / b);
        let tail = spent * (libm::pow(of_left, -1.0 / b_tail) - 1.0);
        // Far out the powers leave the range of numbers, and only the tail counts.
        if at.is_finite() { (at - spent).max(tail) } else { tail }
    };
    let half = left(0.5).ceil();
    Eta { p50: half as u64, p90: left(0.1).ceil().max(half) as u64 }
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
    fn what_is_left_of_a_run_shrinks_while_it_keeps_its_time_and_grows_when_it_is_over() {
        for range in [Eta { p50: 1_000, p90: 2_000 }, Eta { p50: 1_000, p90: 1_000 }] {
            let left = |spent| remaining(range, spent);
            let fresh = left(0);
            assert!(fresh.p50.abs_diff(range.p50) <= 1 && fresh.p90.abs_diff(range.p90) <= 10, "{fresh:?}");
            assert!(left(500).p50 < 600 && left(500).p50 >= 500, "{:?}", left(500));
            for spent in [1_000, 2_000, 10_000, 1_000_000, u64::MAX / 4] {
                let eta = left(spent);
                assert!(
                    eta.p50 >= spent / 10 && eta.p90 >= spent / 3 && eta.p90 >= eta.p50,
                    "{spent}: {eta:?}"
                );
            }
        }
        assert_eq!(remaining(Eta { p50: 0, p90: 0 }, 0).p50, 1, "nobody ends this very instant");
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
