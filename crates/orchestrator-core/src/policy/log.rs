//! What policies did in one turn: failures, calls the watchdog cut, and how the shadow differed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::breaker::Outcomes;
use super::failure::{FailureKind, Hook, PolicyFailure};

/// Differences between live and shadow that are kept as examples.
const EXAMPLES_KEPT: usize = 20;

/// The notes of one turn. Views that only speculate throw theirs away.
#[derive(Debug, Default)]
pub struct PolicyLog {
    /// Questions asked of policies so far.
    pub(super) asked: u32,
    /// Which of them, by number from 0, the watchdog cut short.
    pub interrupted: Vec<u32>,
    /// Failures of the live policy or the last good one.
    pub failures: Vec<Failed>,
    /// How the live policy did.
    pub(super) live: Outcomes,
    /// What the shadow would have said.
    pub shadowed: Vec<Shadowed>,
    /// Failures of the shadow.
    pub shadow_failures: Vec<PolicyFailure>,
    /// How the shadow did.
    pub(super) shadow: Outcomes,
}

/// A question that a policy in force gave no answer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The policy.
    pub name: String,
    /// Whether it was the live one; else it was the last good one.
    pub live: bool,
    /// Where and why.
    pub failure: PolicyFailure,
}

/// One decision beside which the shadow decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shadowed {
    /// The question.
    pub hook: Hook,
    /// `None` when both said the same; else what was about which job or worker, the live answer and
    /// the shadow's.
    pub difference: Option<Difference>,
}

/// Where live and shadow differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The job or worker in question.
    pub about: String,
    /// What the live policy said, and what was done.
    pub live: String,
    /// What the shadow said, or how it failed.
    pub shadow: String,
}

impl PolicyLog {
    /// The number of the next question.
    pub(super) fn ask(&mut self) -> u32 {
        let number = self.asked;
        self.asked = self.asked.saturating_add(1);
        number
    }

    /// Notes a failure at question `number`.
    pub(super) fn fail(&mut self, number: u32, failed: Failed) {
        if failed.failure.kind == FailureKind::Interrupted {
            self.interrupted.push(number);
        }
        self.failures.push(failed);
    }

    /// Notes that the shadow gave no answer.
    pub(super) fn shadow_failed(&mut self, hook: Hook, failure: PolicyFailure) {
        self.shadow.note(hook, false);
        self.shadow_failures.push(failure);
    }

    /// Notes what the shadow said beside the live policy.
    pub fn compare(&mut self, hook: Hook, about: &str, live: String, shadow: String) {
        let difference = (live != shadow).then(|| Difference { about: about.to_owned(), live, shadow });
        self.shadowed.push(Shadowed { hook, difference });
    }
}

/// Sums of one policy since it was set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Failures by hook.
    pub failures: BTreeMap<Hook, u64>,
    /// The last failure.
    pub last_failure: Option<PolicyFailure>,
    /// Decisions that live and shadow both made, by hook. Of the shadow only.
    pub compared: BTreeMap<Hook, u64>,
    /// Of these, how many would have differed.
    pub differed: BTreeMap<Hook, u64>,
    /// The latest of them, oldest first.
    pub examples: Vec<(Hook, Difference)>,
}

impl Tally {
    /// Adds a failure.
    pub(super) fn fail(&mut self, failure: PolicyFailure) {
        if let Some(hook) = failure.hook {
            *self.failures.entry(hook).or_default() += 1;
        }
        self.last_failure = Some(failure);
    }

    /// Adds a comparison.
    pub(super) fn compare(&mut self, shadowed: Shadowed) {
        let Shadowed { hook, difference } = shadowed;
        *self.compared.entry(hook).or_default() += 1;
        let Some(difference) = difference else { return };
        *self.differed.entry(hook).or_default() += 1;
        if self.examples.len() >= EXAMPLES_KEPT {
            self.examples.remove(0);
        }
        self.examples.push((hook, difference));
    }
}
