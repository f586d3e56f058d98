//! After a failed attempt: another one after a pause, or the end with the last cause.

use api_types::task::{RetryMode, TaskStatus};
use api_types::{ErrorCode, ErrorDetail, WorkerId};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::row::JobRow;
use crate::settings::RetrySettings;
use crate::time::Time;

/// What befell an attempt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure {
    /// What the client is told if the job ends with it.
    pub error: ErrorDetail,
    /// The worker that was lost with it, if one was.
    pub lost: Option<WorkerId>,
}

/// What follows from a failed attempt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// Another attempt, not before this time.
    Retry(Time),
    /// The job ends with this error.
    Fail(ErrorDetail),
}

/// Decides what follows. The row already counts this failure. Takes from the budget only when the
/// verdict is another attempt.
pub(crate) fn retry_or_fail(
    row: &JobRow,
    failure: Failure,
    settings: &RetrySettings,
    budget: &mut Budget,
    now: Time,
) -> Verdict {
    let Failure { error, .. } = failure;
    if !may_retry(row) || !error.retriable {
        return Verdict::Fail(error);
    }
    if row.workers_lost.len() >= settings.poison_after {
        return Verdict::Fail(poison(row));
    }
    if row.tries_failed >= settings.attempts {
        return Verdict::Fail(exhausted(row, &error, "it has had all the attempts a job may have"));
    }
    if !budget.take(settings, now) {
        return Verdict::Fail(exhausted(row, &error, "too many jobs are being retried at the moment"));
    }
    Verdict::Retry(now + backoff_ms(row, settings))
}

/// Whether another attempt is wanted where the job stands: after the first token only as a
/// continuation of this one.
fn may_retry(row: &JobRow) -> bool {
    match row.retry {
        RetryMode::Never => false,
        RetryMode::BeforeFirstToken => row.status != TaskStatus::Running,
        RetryMode::Continue => true,
    }
}

/// The pause before the next attempt: doubles with each failed one, of which half is fixed and
/// half follows from the job and the try, so that jobs which failed together do not return together.
pub(crate) fn backoff_ms(row: &JobRow, settings: &RetrySettings) -> u64 {
    let doublings = row.tries_failed.saturating_sub(1).min(32);
    let full = settings.backoff_first_ms.saturating_mul(1 << doublings).min(settings.backoff_max_ms);
    let half = full / 2;
    half + scatter(row.number, row.tries_failed) % (full - half + 1)
}

/// A number that looks random and follows from its inputs (the finalizer of SplitMix64).
fn scatter(number: u64, tries: u32) -> u64 {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(tries));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn poison(row: &JobRow) -> ErrorDetail {
    let workers: Vec<&str> = row.workers_lost.iter().map(WorkerId::as_str).collect();
    let message = format!(
        "The job is not tried again: {} workers were lost while they ran it ({}).",
        workers.len(),
        workers.join(", ")
    );
    ErrorDetail::new(ErrorCode::Poison, message).with_details(json!({ "workers_lost": workers })).with_hint(
        "Look at the logs of these workers (`rbees pool worker logs ID`) before you submit it again.",
    )
}

/// The end of a job whose attempts are used up, and why no further one follows.
pub(crate) fn exhausted(row: &JobRow, last: &ErrorDetail, why: &str) -> ErrorDetail {
    let message = format!(
        "The job is not tried again after {} failed attempts, because {why}. The last one failed with {}: {}",
        row.tries_failed, last.code, last.message
    );
    ErrorDetail::new(ErrorCode::RetriesExhausted, message)
        .with_details(json!({ "tries_failed": row.tries_failed, "last_error": last.code.as_str() }))
        .with_hint("Submit it again later; `rbees status` shows how the workers are.")
}

/// Bounds how much work all retries together may add. Held in hundredths of a retry.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Budget {
    hundredths: u64,
    refilled_at: Time,
}

impl Budget {
    /// A full budget.
    pub const fn full(settings: &RetrySettings, now: Time) -> Self {
        Self { hundredths: settings.budget.saturating_mul(100), refilled_at: now }
    }

    /// An admitted job pays in its share.
    pub fn admit(&mut self, settings: &RetrySettings) {
        self.add(settings.budget_percent, settings);
    }

    fn add(&mut self, hundredths: u64, settings: &RetrySettings) {
        let most = settings.budget.saturating_mul(100);
        self.hundredths = self.hundredths.saturating_add(hundredths).min(most);
    }

    /// Gives back a retry that was taken and is not made.
    pub fn give_back(&mut self, settings: &RetrySettings) {
        self.add(100, settings);
    }

    /// Takes one retry, if there is one.
    fn take(&mut self, settings: &RetrySettings, now: Time) -> bool {
        let seconds = now.since(self.refilled_at) / 1_000;
        self.refilled_at = self.refilled_at + seconds * 1_000;
        self.add(seconds.saturating_mul(100), settings);
        let left = self.hundredths.checked_sub(100);
        self.hundredths = left.unwrap_or(self.hundredths);
        left.is_some()
    }
}
