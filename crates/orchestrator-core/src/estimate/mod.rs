//! Knowing when: what is learnt from the jobs that ended, and what it says of those to come.
//!
//! [`Rates`] learns how fast which model runs where and how much it says. The ledger sums the work
//! that lies ahead, so that a wait is a question of O(log n). Both give an expectation;
//! [`Calibration`] turns it into a range by how far earlier expectations were off. What nothing is
//! known of has no estimate: no rate is ever made up. Only how long a worker takes to start is assumed
//! where it was never seen, and nothing is refused on that.

mod calibration;
pub(crate) mod ledger;
mod probe;
mod rates;
mod stream;

use api_types::event::Eta;
use api_types::task::EstimateView;
use serde::{Deserialize, Serialize};

pub use self::calibration::{Calibration, remaining};
pub use self::probe::Probes;
pub use self::rates::{Basis, Engine, Rates, Service, Size, Took};
use crate::row::JobRow;
use crate::time::Time;

/// Runs from which on a figure is believed enough to refuse a deadline on it.
const BELIEVED_FROM: u32 = 8;

/// Changes after which what was learnt is written with the next commit that is made anyway, and how
/// long at least lies between two.
const SAVED_EVERY: u32 = 64;
const SAVED_EVERY_MS: u64 = 5_000;
/// How long a change waits at most, in ms; then it has a commit of its own.
const SAVED_WITHIN_MS: u64 = 30_000;

/// When a job was expected to end, as of its admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// Milliseconds for which it is not to be handed out, because a policy holds it.
    #[serde(default)]
    pub held_ms: u64,
    /// Expected milliseconds from there until it is handed out.
    pub wait_ms: u64,
    /// Expected milliseconds from there to its end.
    pub service_ms: u64,
    /// What the service is known from.
    pub basis: Basis,
    /// Whether a deadline may be refused on it: the service was learnt from this model, from 8 runs at
    /// least, and the job is no probe.
    #[serde(default)]
    pub binding: bool,
    /// The range that was told, in milliseconds from the submission.
    pub eta: Eta,
}

impl Service {
    /// Whether a deadline may be refused on it.
    pub fn is_believed(&self) -> bool {
        self.basis < Basis::Backend && self.runs >= BELIEVED_FROM
    }

    /// The same, after something else that is known less well.
    pub fn after(self, first: Took) -> Self {
        let basis = if first.runs == 0 { Basis::Backend } else { self.basis };
        Self { basis, runs: self.runs.min(first.runs), ..self }
    }
}

impl Forecast {
    /// Expected milliseconds from submission, or from the end of the hold, to the end; at least 1.
    pub fn expected_ms(&self) -> u64 {
        self.wait_ms.saturating_add(self.service_ms).max(1)
    }
}

/// The forecast of a job as clients see it, with the actual time once it ended.
pub fn estimate_view(row: &JobRow) -> Option<EstimateView> {
    row.eta.as_ref().map(|forecast| EstimateView {
        eta_ms: forecast.eta,
        wait_ms: forecast.held_ms.saturating_add(forecast.wait_ms),
        service_ms: forecast.service_ms,
        basis: forecast.basis.as_str().to_owned(),
        actual_ms: row.ended_at.map(|at| at.since(row.submitted_at)),
    })
}

/// How an ended job's range held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Milliseconds from submission to end.
    pub actual_ms: u64,
    /// Whether it ended inside its p50.
    pub inside_p50: bool,
    /// Whether it ended inside its p90.
    pub inside_p90: bool,
}

/// How the range of this job held: of one that ended by itself, or that its deadline cut off after
/// its p90. Whatever was cancelled or failed otherwise says nothing of the estimate.
pub fn outcome(row: &JobRow) -> Option<Outcome> {
    let (forecast, ended_at) = (row.eta.as_ref()?, row.ended_at?);
    let elapsed = ended_at.since(row.submitted_at);
    if row.status == api_types::task::TaskStatus::Completed {
        return Some(Outcome {
            actual_ms: elapsed,
            inside_p50: elapsed <= forecast.eta.p50,
            inside_p90: elapsed <= forecast.eta.p90,
        });
    }
    let bound = cut_off_after(row)?;
    let outside = Outcome { actual_ms: bound, inside_p50: false, inside_p90: false };
    (bound >= forecast.eta.p90).then_some(outside)
}

/// Milliseconds in which a job could not end that failed by its deadline.
pub(crate) fn cut_off_after(row: &JobRow) -> Option<u64> {
    use api_types::ErrorCode::{DeadlineExceeded, DeadlineUnmet};
    let by_deadline = row.error.as_ref().is_some_and(|e| matches!(e.code, DeadlineExceeded | DeadlineUnmet));
    row.deadline.filter(|_| by_deadline).map(|deadline| deadline.since(row.submitted_at))
}

/// When a job with a deadline has to be handed out to end in time, as far as is known: its deadline
/// less its expected service. What orders jobs by slack orders them by this.
pub fn latest_start(row: &JobRow) -> Option<Time> {
    let service_ms = row.eta.as_ref().map_or(0, |forecast| forecast.service_ms);
    row.deadline.map(|deadline| Time(deadline.0.saturating_sub(service_ms)))
}

/// Everything that was learnt. Written down within half a minute of a change and at an orderly stop, so
/// that a restart does not forget it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Estimates {
    /// How fast, how much.
    pub rates: Rates,
    /// How far off.
    pub calibration: Calibration,
    /// Who was let through to see.
    pub probes: Probes,
}

/// When what was learnt is to be written.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Unsaved {
    changes: u32,
    saved_at: Time,
    /// When the first of the changes has waited for long enough.
    due_at: Option<Time>,
    /// For when the alarm is set.
    alarm_at: Option<Time>,
}

impl Unsaved {
    /// Nothing is unsaved.
    pub const fn none(now: Time) -> Self {
        Self { changes: 0, saved_at: now, due_at: None, alarm_at: None }
    }

    /// Something more was learnt.
    pub fn note(&mut self, now: Time) {
        self.changes = self.changes.saturating_add(1);
        self.due_at.get_or_insert(now + SAVED_WITHIN_MS);
    }

    /// Whether anything was learnt since the last write.
    pub const fn any(&self) -> bool {
        self.changes > 0
    }

    /// Whether it is time to write, where a commit is made anyway or not; counts anew when it is.
    pub fn is_due(&mut self, commits: bool, now: Time) -> bool {
        let ripe = self.changes >= SAVED_EVERY && now.since(self.saved_at) >= SAVED_EVERY_MS;
        let due = (commits && ripe) || self.due_at.is_some_and(|at| at <= now);
        if due {
            *self = Self { alarm_at: self.alarm_at, ..Self::none(now) };
        }
        due
    }

    /// The new alarm, when it is to be set or taken away.
    pub fn take_alarm(&mut self) -> Option<Option<Time>> {
        let changed = self.alarm_at != self.due_at;
        self.alarm_at = self.due_at;
        changed.then_some(self.due_at)
    }
}
