//! Deadlines: refused before work is spent where they cannot be kept.

use api_types::event::Eta;
use api_types::{ErrorCode, ErrorDetail};
use serde_json::json;

use crate::estimate::Service;
use crate::orchestrator::Orchestrator;
use crate::row::JobRow;
use crate::time::Time;

/// The longest time after which a job that was refused is asked to try again, in ms.
const LONGEST_RETRY_MS: u64 = 60_000;

impl Orchestrator {
    /// Refuses a job whose estimated end misses its deadline. An unknown estimate admits, and so
    /// does one that is not binding. What the rates alone speak against is let through from time to
    /// time as a probe, whose estimate binds nobody: see [`Probes`](crate::estimate::Probes).
    ///
    /// # Errors
    /// `DEADLINE_UNMET` with the estimate.
    pub(crate) fn check_deadline(&mut self, row: &mut JobRow, now: Time) -> Result<(), ErrorDetail> {
        let Some(deadline) = row.deadline else { return Ok(()) };
        let given_ms = deadline.since(row.submitted_at);
        if let Some(until) = row.not_before.filter(|until| *until >= deadline) {
            return Err(held_too_long(given_ms, until.since(row.submitted_at)));
        }
        let Some(forecast) = row.eta.as_ref().filter(|forecast| forecast.binding) else { return Ok(()) };
        let (eta, calibrated) = self.clockwork.learnt.calibration.range(row.priority, forecast);
        let (needed_ms, by) = if calibrated { (eta.p90, "p90") } else { (eta.p50, "p50") };
        if needed_ms <= given_ms {
            return Ok(());
        }
        let error = deadline_unmet(given_ms, eta, by, self.queue.len());
        let working_ms = needed_ms.saturating_sub(forecast.held_ms);
        let alone_ms =
            forecast.held_ms + working_ms.saturating_mul(forecast.service_ms) / forecast.expected_ms();
        if alone_ms <= given_ms {
            // It is the queue that is too long: once that much of it is done, the same request fits.
            let error = error.with_retry_after_ms((needed_ms - given_ms).min(LONGEST_RETRY_MS));
            return Err(ErrorDetail { retriable: true, ..error });
        }
        if forecast.held_ms.saturating_add(forecast.wait_ms) >= given_ms {
            // It would not even begin, and teach nothing.
            return Err(error);
        }
        if !self.is_probe(row, given_ms, now) {
            return Err(error);
        }
        if let Some(forecast) = &mut row.eta {
            forecast.binding = false;
        }
        Ok(())
    }

    /// Refuses a job that is given less time than its prompt alone takes. How long answers of such a
    /// bound are may not be known yet; this is.
    ///
    /// # Errors
    /// `DEADLINE_UNMET` with the time that it needs at least.
    pub(crate) fn check_least(&mut self, row: &JobRow, now: Time) -> Result<(), ErrorDetail> {
        let Some(deadline) = row.deadline.filter(|_| row.eta.is_none_or(|forecast| !forecast.binding)) else {
            return Ok(());
        };
        let is_restricted = self.demands(row).is_some();
        let least = self.clockwork.least(row, is_restricted).filter(Service::is_believed);
        let fastest = self.clockwork.learnt.calibration.fastest(row.priority);
        let least_ms = least.map_or(0, |least| (least.ms * fastest) as u64);
        let given_ms = deadline.since(row.submitted_at);
        if least_ms <= given_ms {
            return Ok(());
        }
        let begins =
            row.eta.is_none_or(|forecast| forecast.held_ms.saturating_add(forecast.wait_ms) < given_ms);
        if begins && self.is_probe(row, given_ms, now) {
            return Ok(());
        }
        Err(no_time_for_the_prompt(given_ms, least_ms, row.eta.map(|forecast| forecast.eta)))
    }

    /// Whether a job that the rates alone speak against is let through to see.
    fn is_probe(&mut self, row: &JobRow, given_ms: u64, now: Time) -> bool {
        self.clockwork.unsaved.note(now);
        self.clockwork.learnt.probes.ask(&row.model, given_ms, now)
    }

    /// Whether a waiting job could not end before its deadline even if it were handed out now and
    /// were faster than nineteen in twenty.
    pub(crate) fn too_late(&self, row: &JobRow, now: Time) -> Option<ErrorDetail> {
        let (deadline, forecast) = (row.deadline?, row.eta.as_ref().filter(|forecast| forecast.binding)?);
        let fastest = self.clockwork.learnt.calibration.fastest(row.priority);
        let needed_ms = (forecast.service_ms as f64 * fastest) as u64;
        (deadline.since(now) < needed_ms).then(|| cannot_be_kept(row, deadline, needed_ms, now))
    }
}

fn deadline_unmet(given_ms: u64, eta: Eta, by: &str, queue_depth: u64) -> ErrorDetail {
    let message = format!(
        "The job would likely end after {} ms (half of such jobs) to {} ms (nine in ten); its deadline is {given_ms} ms.",
        eta.p50, eta.p90
    );
    ErrorDetail::new(ErrorCode::DeadlineUnmet, message)
        .with_field("deadline_ms")
        .with_details(json!({
            "deadline_ms": given_ms, "eta_ms": eta, "judged_by": by, "queue_depth": queue_depth
        }))
        .with_hint("Give a later `deadline_ms`, ask for fewer tokens, or try again when less is queued.")
}

fn no_time_for_the_prompt(given_ms: u64, least_ms: u64, eta: Option<Eta>) -> ErrorDetail {
    let message =
        format!("The job needs at least {least_ms} ms to read its prompt; its deadline is {given_ms} ms.");
    ErrorDetail::new(ErrorCode::DeadlineUnmet, message)
        .with_field("deadline_ms")
        .with_details(json!({
            "deadline_ms": given_ms, "eta_ms": eta, "judged_by": "least", "least_ms": least_ms
        }))
        .with_hint("Give a later `deadline_ms`, or a shorter prompt.")
}

fn held_too_long(given_ms: u64, held_ms: u64) -> ErrorDetail {
    let message =
        format!("The policy holds the job for {held_ms} ms, which is past its deadline of {given_ms} ms.");
    ErrorDetail::new(ErrorCode::DeadlineUnmet, message)
        .with_field("deadline_ms")
        .with_details(json!({ "deadline_ms": given_ms, "held_ms": held_ms }))
        .with_hint("Give a later `deadline_ms`, or leave it out; `rbees policy show` shows the policy.")
}

fn cannot_be_kept(row: &JobRow, deadline: Time, needed_ms: u64, now: Time) -> ErrorDetail {
    let given_ms = deadline.since(row.submitted_at);
    let message = format!(
        "The job waited too long: {} ms are left of its deadline of {given_ms} ms, and it needs at least {needed_ms} ms.",
        deadline.since(now)
    );
    ErrorDetail::new(ErrorCode::DeadlineExceeded, message)
        .with_details(json!({
            "deadline_ms": given_ms, "elapsed_ms": now.since(row.submitted_at), "needed_ms": needed_ms
        }))
        .with_hint("Give a later `deadline_ms`, or ask for fewer tokens.")
}
