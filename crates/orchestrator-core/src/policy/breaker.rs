//! When a policy that keeps failing is asked no more.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::failure::Hook;

/// What one failure weighs against an answer.
const FAILURE: u32 = 10;
/// A hook that weighs this much is out: ten failures in a row, or in the long run more than one in
/// eleven.
const OUT: u32 = 100;

/// How the hooks of one policy did in one turn: answers and failures.
#[derive(Debug, Default)]
pub struct Outcomes(BTreeMap<Hook, (u32, u32)>);

impl Outcomes {
    /// Counts an answer, or that none came.
    pub(super) fn note(&mut self, hook: Hook, answered: bool) {
        let (answers, failures) = self.0.entry(hook).or_default();
        let count = if answered { answers } else { failures };
        *count = count.saturating_add(1);
    }
}

/// Weighs the failures of one policy against its answers, hook by hook: one that always fails is not
/// saved by another that never does. Made from what was decided only, so that a replay trips it where
/// it tripped.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Breaker(BTreeMap<Hook, u32>);

impl Breaker {
    /// Takes in a turn.
    pub fn take(&mut self, outcomes: &Outcomes) {
        for (hook, (answers, failures)) in &outcomes.0 {
            let before = self.0.get(hook).copied().unwrap_or_default();
            let after = before.saturating_add(failures.saturating_mul(FAILURE)).saturating_sub(*answers);
            match after {
                0 => drop(self.0.remove(hook)),
                weight => drop(self.0.insert(*hook, weight)),
            }
        }
    }

    /// Whether it failed too often to go on.
    pub fn is_out(&self) -> bool {
        self.0.values().any(|weight| *weight >= OUT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(hook: Hook, answers: u32, failures: u32) -> Outcomes {
        Outcomes(BTreeMap::from([(hook, (answers, failures))]))
    }

    #[test]
    fn ten_failures_in_a_row_are_too_many_and_answers_of_another_hook_do_not_help() {
        let mut breaker = Breaker::default();
        for _ in 0..9 {
            breaker.take(&turn(Hook::Score, 0, 1));
            breaker.take(&turn(Hook::Admit, 5, 0));
            assert!(!breaker.is_out(), "{breaker:?}");
        }
        breaker.take(&turn(Hook::Score, 0, 1));
        assert!(breaker.is_out(), "{breaker:?}");
    }

    #[test]
    fn a_rare_failure_is_forgiven_and_a_frequent_one_is_not() {
        let (mut rare, mut frequent) = (Breaker::default(), Breaker::default());
        for _ in 0..10_000 {
            rare.take(&turn(Hook::Order, 20, 1));
        }
        assert!(!rare.is_out(), "{rare:?}");
        for _ in 0..20 {
            frequent.take(&turn(Hook::Order, 1, 1));
        }
        assert!(frequent.is_out(), "{frequent:?}");
    }
}
