//! Figures learnt from a stream of observations, in constant memory, forgetting what is old.

use serde::{Deserialize, Serialize};

/// The least weight of a new observation: about the last hundred count.
const LEAST_GAIN: f64 = 0.02;
/// From so many observations on, one that is this many times off is cut to it.
const TRUSTED_FROM: u32 = 8;
const CUT: f64 = 8.0;

/// An exponentially weighted mean of positive values. One wild value moves it by little: after the
/// first few, values are cut to an eighth and to eight times of the mean (Huber's clipping).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    mean: f64,
    count: u32,
    /// Runs that were cut off since the last value.
    #[serde(default)]
    cut: u32,
}

impl Mean {
    /// Takes in one value; one that is not a positive number is no observation.
    pub fn note(&mut self, value: f64) {
        if !value.is_finite() || value <= 0.0 {
            return;
        }
        let trusted = self.count >= TRUSTED_FROM;
        let value = if trusted { value.clamp(self.mean / CUT, self.mean * CUT) } else { value };
        self.count = self.count.saturating_add(1);
        self.cut = 0;
        self.mean += (value - self.mean) * (1.0 / f64::from(self.count)).max(LEAST_GAIN);
    }

    /// A run that was expected to have this value was cut off before it could show one.
    pub const fn note_cut(&mut self) {
        self.cut = self.cut.saturating_add(1);
    }

    /// How many runs the mean rests on: those that gave a value, and those that were cut off since.
    pub const fn runs(&self) -> u32 {
        self.count.saturating_add(self.cut)
    }

    /// The mean; `None` before the first value.
    pub fn get(&self) -> Option<f64> {
        (self.count > 0).then_some(self.mean)
    }
}

/// Means by the power of two of what they depend on: a prompt's length, a worker's load.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    points: std::collections::BTreeMap<u8, Mean>,
}

impl Curve {
    /// Takes in a value seen at `at`.
    pub fn note(&mut self, at: u32, value: f64) {
        self.points.entry(octave(at)).or_default().note(value);
    }

    /// The mean at `at`, or at the nearest place where anything was seen, the lower of two.
    pub fn at(&self, at: u32) -> Option<&Mean> {
        self.points.get(&self.nearest(at)?)
    }

    /// As [`Mean::note_cut`], for the mean at `at`.
    pub fn note_cut(&mut self, at: u32) {
        if let Some(mean) = self.nearest(at).and_then(|nearest| self.points.get_mut(&nearest)) {
            mean.note_cut();
        }
    }

    fn nearest(&self, at: u32) -> Option<u8> {
        let wanted = octave(at);
        let below = self.points.range(..=wanted).next_back();
        let above = self.points.range(wanted..).next();
        match (below, above) {
            (Some((below, _)), Some((above, _))) if wanted - below <= above - wanted => Some(*below),
            (Some((below, _)), None) => Some(*below),
            (_, Some((above, _))) => Some(*above),
            (None, None) => None,
        }
    }
}

/// 0 for 0 and 1, then the number of doublings, rounded up.
const fn octave(at: u32) -> u8 {
    if at < 2 { 0 } else { (u32::BITS - (at - 1).leading_zeros()) as u8 }
}

/// Factors a quantile may take: from 1/16 to 16.
const WIDEST: f64 = 16.0;
/// What a quantile's steps are made of: they shrink with the count, never below the least.
const FIRST_STEP: f64 = 2.0;
const LEAST_STEP: f64 = 0.08;
/// The least scale of the steps, in logarithms: a stream without any spread still moves.
const LEAST_SCALE: f64 = 0.01;

/// A quantile of a stream of positive ratios, followed in logarithms by stochastic approximation
/// (Robbins and Monro 1951): up a large step when a ratio lies above, down a small one when below,
/// so that it rests where the shares balance. The steps never vanish, so it follows a stream that
/// changes; that is the tracking of adaptive conformal inference (Gibbs and Candès 2021).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Quantile {
    level: f64,
    log: f64,
    /// Mean distance of a ratio's logarithm from the quantile.
    scale: Mean,
    count: u32,
}

impl Quantile {
    /// The quantile at `level` (0 to 1), believed to be `prior` before anything is seen.
    pub fn new(level: f64, prior: f64) -> Self {
        Self { level, log: log(prior), scale: Mean::default(), count: 0 }
    }

    /// The factor below which a share of `level` of the ratios lie.
    pub fn factor(&self) -> f64 {
        libm::exp(self.log)
    }

    /// Ratios seen.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Takes in a ratio.
    pub fn note(&mut self, ratio: f64) {
        if !ratio.is_finite() || ratio <= 0.0 {
            return;
        }
        let seen = log(ratio).clamp(-log(WIDEST), log(WIDEST));
        self.scale.note((seen - self.log).abs().max(LEAST_SCALE));
        self.step(seen > self.log);
    }

    /// Takes in a ratio of which only a lower bound is known: it counts when it lies above anyway.
    pub fn note_at_least(&mut self, bound: f64) {
        if bound.is_finite() && bound > self.factor() {
            self.note(bound);
        }
    }

    fn step(&mut self, above: bool) {
        self.count = self.count.saturating_add(1);
        let gain = (FIRST_STEP / f64::from(self.count).sqrt()).max(LEAST_STEP);
        let scale = self.scale.get().unwrap_or(LEAST_SCALE);
        let push = if above { self.level } else { self.level - 1.0 };
        self.log = (self.log + gain * scale * push).clamp(-log(WIDEST), log(WIDEST));
    }
}

/// The natural logarithm, equal to the last bit on every machine, so that a replay is exact.
fn log(value: f64) -> f64 {
    libm::log(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between 0 and 1 that look random.
    fn uniform(n: u64) -> f64 {
        let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    #[test]
    fn a_mean_follows_its_stream_and_one_wild_value_hardly_moves_it() {
        let mut mean = Mean::default();
        assert_eq!(mean.get(), None);
        (0..50).for_each(|_| mean.note(10.0));
        mean.note(1e12);
        mean.note(f64::NAN);
        mean.note(-3.0);
        assert!(mean.get().is_some_and(|mean| (10.0..12.0).contains(&mean)), "{mean:?}");
        (0..400).for_each(|_| mean.note(20.0));
        assert!(mean.get().is_some_and(|mean| (19.0..21.0).contains(&mean)), "{mean:?}");
    }

    #[test]
    fn a_curve_answers_with_the_nearest_place_it_knows() {
        assert_eq!([0, 1, 2, 3, 4, 5, 8, 9].map(octave), [0, 0, 1, 2, 2, 3, 3, 4]);
        let mut curve = Curve::default();
        assert_eq!(curve.at(7), None);
        curve.note(2, 5.0);
        curve.note(100, 50.0);
        for (at, value) in [(1, 5.0), (2, 5.0), (4, 5.0), (15, 5.0), (33, 50.0), (100, 50.0), (9_999, 50.0)] {
            assert_eq!(curve.at(at).and_then(Mean::get), Some(value), "{at}");
        }
    }

    #[test]
    fn a_quantile_comes_to_rest_where_the_shares_balance_and_follows_a_change() {
        for level in [0.05, 0.5, 0.9] {
            let mut quantile = Quantile::new(level, 1.0);
            let mut below = 0;
            for n in 0..4_000_u64 {
                // Log-normal-like: a sum of uniforms, twice as large after the first half.
                let log: f64 = (0..6).map(|i| uniform(6 * n + i) - 0.5).sum();
                let ratio = log.exp() * if n < 2_000 { 1.0 } else { 2.0 };
                below += u32::from(n >= 200 && ratio <= quantile.factor());
                quantile.note(ratio);
            }
            let share = f64::from(below) / 3_800.0;
            assert!((share - level).abs() < 0.03, "{share} lie below the quantile at {level}");
        }
    }

    #[test]
    fn a_lower_bound_below_the_quantile_says_nothing() {
        let mut quantile = Quantile::new(0.9, 2.0);
        quantile.note_at_least(1.0);
        assert_eq!((quantile.count(), quantile.factor().round()), (0, 2.0));
        quantile.note_at_least(3.0);
        assert!(quantile.count() == 1 && quantile.factor() > 2.0);
    }
}
