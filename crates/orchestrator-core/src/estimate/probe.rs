//! Jobs that are let through although their deadline looks too short: what never runs cannot turn
//! out to be faster than it once was.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::time::Time;

/// The shortest time between two probes of one model, in ms.
const EVERY_MS: u64 = 60_000;
/// Times the deadline of the probe that lie between it and the one before at least, so that probes
/// take no more than one part in so many of one slot.
const DEADLINES_APART: u64 = 20;
/// Most models that are remembered; the one whose probe is longest ago makes room.
const MOST_MODELS: usize = 128;

/// By model: when a deadline was first refused for its rates alone, or the last probe was let through.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probes(BTreeMap<String, Time>);

impl Probes {
    /// Asks for a job of `model` that is given `given_ms` and is about to be refused for the model's
    /// rates alone. Returns whether it is let through as a probe.
    pub fn ask(&mut self, model: &str, given_ms: u64, now: Time) -> bool {
        let Some(since) = self.0.get_mut(model) else {
            self.make_room();
            self.0.insert(model.to_owned(), now);
            return false;
        };
        // A clock that was set back must not keep probes out.
        *since = (*since).min(now);
        let due = now.since(*since) >= EVERY_MS.max(given_ms.saturating_mul(DEADLINES_APART));
        if due {
            *since = now;
        }
        due
    }

    /// A job that was expected to miss its deadline kept it: the next one need not wait for its turn.
    pub fn open(&mut self, model: &str) {
        if let Some(since) = self.0.get_mut(model) {
            *since = Time::default();
        }
    }

    fn make_room(&mut self) {
        let oldest = self.0.iter().min_by_key(|(_, since)| **since).map(|(model, _)| model.clone());
        if let Some(oldest) = oldest.filter(|_| self.0.len() >= MOST_MODELS) {
            self.0.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_refusal_starts_the_clock_and_probes_lie_apart_by_their_deadlines() {
        let mut probes = Probes::default();
        let mut ask = |given_ms, at| probes.ask("a", given_ms, Time(at));
        assert!(!ask(1_000, 5_000_000));
        assert!(!ask(1_000, 5_000_000 + EVERY_MS - 1));
        assert!(ask(1_000, 5_000_000 + EVERY_MS));
        assert!(!ask(10_000, 5_000_000 + 2 * EVERY_MS), "ten seconds twenty times are longer than a minute");
        assert!(ask(10_000, 5_000_000 + EVERY_MS + 200_000));
        assert!(!ask(1_000, 1_000) && ask(1_000, 1_000 + EVERY_MS), "the clock was set back");
        probes.open("a");
        let mut ask = |at| probes.ask("a", 1_000, Time(at));
        assert!(ask(5_000_001) && !ask(5_000_002), "one that kept its deadline lets the next one in");
    }

    #[test]
    fn models_are_forgotten_before_they_are_too_many() {
        let mut probes = Probes::default();
        assert!((0..1_000).all(|n| !probes.ask(&n.to_string(), 1, Time(n))));
        assert_eq!(probes.0.len(), MOST_MODELS);
    }
}
