//! Jobs as clients see them.

use api_types::JobId;
use api_types::event::Eta;
use api_types::task::{Decision, TaskStatus, TaskView, WhyView};
use orchestrator_core::JobRow;
use orchestrator_core::estimate::estimate_view;

use crate::clock::rfc3339;

/// Path of a job's event stream.
pub fn events_url(job_id: JobId) -> String {
    format!("/v2/tasks/{job_id}/events")
}

/// A row as clients see it.
pub fn task_view(
    row: &JobRow,
    queue_position: Option<u64>,
    eta: Option<Eta>,
    result: Option<String>,
) -> TaskView {
    let attempt = row.attempt.as_ref();
    TaskView {
        job_id: row.job_id,
        status: row.status,
        model: row.model.clone(),
        priority: row.priority,
        attempt: attempt.map_or(0, |attempt| attempt.attempt.0),
        worker_id: attempt.map(|attempt| attempt.worker_id.clone()),
        queue_position,
        eta_ms: eta,
        submitted_at: rfc3339(row.submitted_at),
        dispatched_at: attempt.map(|attempt| rfc3339(attempt.dispatched_at)),
        ended_at: row.ended_at.map(rfc3339),
        events_url: events_url(row.job_id),
        correlation_id: row.correlation_id.clone(),
        prompt: None,
        messages: None,
        result,
        end: row.end.clone(),
        error: row.error.clone(),
    }
}

/// The explanation of a job that the brain has forgotten, from what was written down.
pub fn why_ended(row: &JobRow, decisions: Vec<Decision>) -> WhyView {
    let placed = match decisions.iter().rev().find_map(|decision| decision.picked.as_ref()) {
        Some(worker) => format!("it ran on {worker}"),
        None => "it was never handed to a worker".to_owned(),
    };
    let summary = match (row.status, &row.error) {
        (TaskStatus::Failed, Some(error)) => format!("The job failed with {}; {placed}.", error.code),
        (status, _) => format!("The job is {}; {placed}.", status.as_str()),
    };
    let estimate = estimate_view(row);
    WhyView { job_id: row.job_id, status: row.status, summary, decisions, waiting: None, estimate }
}
