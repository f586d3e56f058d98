//! Pairs of figures, theirs and ours, as a table.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::machine;
use crate::report::{aligned, shown};
use crate::stats::median;

/// What a ratio must be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum Bar {
    /// Nothing is promised.
    None,
    /// Ours by theirs, at least this.
    AtLeast(f64),
    /// Ours by theirs, at most this.
    AtMost(f64),
    /// Ours less theirs, at most this.
    AddsAtMost(f64),
}

/// One figure over all pairs.
#[derive(Debug, Clone, Serialize)]
pub struct Series {
    what: String,
    bar: Bar,
    /// Theirs and ours.
    sides: [Vec<f64>; 2],
}

impl Series {
    /// A series without figures.
    pub const fn new(what: String, bar: Bar) -> Self {
        Self { what, bar, sides: [Vec::new(), Vec::new()] }
    }

    /// One more figure; side 0 is theirs, 1 ours.
    pub fn push(&mut self, side: usize, value: f64) {
        if let Some(values) = self.sides.get_mut(side) {
            values.push(value);
        }
    }

    /// Ours by theirs, pair by pair, ascending.
    fn ratios(&self) -> Vec<f64> {
        let [theirs, ours] = &self.sides;
        let mut ratios: Vec<f64> = theirs.iter().zip(ours).map(|(theirs, ours)| ours / theirs).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    }

    fn added(&self) -> Option<f64> {
        let [theirs, ours] = &self.sides;
        let added: Vec<f64> = theirs.iter().zip(ours).map(|(theirs, ours)| ours - theirs).collect();
        median(&added)
    }

    fn verdict(&self) -> String {
        let ratio = median(&self.ratios());
        let (words, kept) = match self.bar {
            Bar::None => return "-".to_owned(),
            Bar::AtLeast(bar) => (format!(">= {bar}"), ratio.is_some_and(|ratio| ratio >= bar)),
            Bar::AtMost(bar) => (format!("<= {bar}"), ratio.is_some_and(|ratio| ratio <= bar)),
            Bar::AddsAtMost(bar) => {
                (format!("adds <= {bar}"), self.added().is_some_and(|added| added <= bar))
            }
        };
        format!("{words}: {}", if kept { "kept" } else { "missed" })
    }

    /// All of it in one line.
    pub fn line(&self) -> String {
        self.cells().join("  ")
    }

    fn cells(&self) -> Vec<String> {
        let [theirs, ours] = &self.sides;
        let ratios = self.ratios();
        let spread = match (ratios.first(), ratios.last()) {
            (Some(low), Some(high)) => format!("{low:.2}-{high:.2}"),
            _ => "-".to_owned(),
        };
        let ratio = median(&ratios).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        vec![self.what.clone(), shown(median(theirs)), shown(median(ours)), ratio, spread, self.verdict()]
    }
}

/// All models.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: String,
    load_before: f64,
    pairs: usize,
    threads: u32,
    models: Vec<(String, Vec<Series>)>,
}

impl Report {
    /// A report without figures.
    pub fn new(load_before: f64, pairs: usize, threads: u32) -> Self {
        Self { machine: machine::describe(), load_before, pairs, threads, models: Vec::new() }
    }

    /// Adds the figures of one model.
    pub fn add(&mut self, model: &Path, series: Vec<Series>) {
        let name = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        self.models.push((name, series));
    }

    /// The machine and a table per model.
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "{}; load average before the run {:.1}; {} threads; medians of {} pairs, ratio of each pair, its spread.\n",
            self.machine, self.load_before, self.threads, self.pairs
        );
        for (model, series) in &self.models {
            let head = [model.as_str(), "theirs", "ours", "ours / theirs", "spread", "bar"];
            let mut rows = vec![head.map(str::to_owned).to_vec()];
            rows.extend(series.iter().map(Series::cells));
            let _ = write!(out, "\n{}", aligned(&rows));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_held_against_the_median_of_the_pairs() {
        let mut rate = Series::new("rate".into(), Bar::AtLeast(0.98));
        for (theirs, ours) in [(100.0, 99.0), (200.0, 220.0), (50.0, 40.0)] {
            rate.push(0, theirs);
            rate.push(1, ours);
        }
        assert_eq!(rate.cells()[3..], ["0.99", "0.80-1.10", ">= 0.98: kept"].map(str::to_owned));
        rate.bar = Bar::AddsAtMost(-2.0);
        assert_eq!(rate.verdict(), "adds <= -2: missed");
    }
}
