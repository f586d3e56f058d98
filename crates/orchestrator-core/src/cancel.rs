//! Ends by request and by the clock: cancellation, readers who left, deadlines, time limits.

use api_types::task::TaskStatus;
use api_types::{ErrorCode, ErrorDetail, JobId};
use serde_json::json;

use crate::event::RequestId;
use crate::job::Job;
use crate::orchestrator::Orchestrator;
use crate::settings::Settings;
use crate::step::Answer;
use crate::time::Time;
use crate::turn::Turn;

/// What is due about a job, the most final first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Uncounted,
    CancelFinal,
    Deadline,
    TimeLimit,
    Disconnected,
    Rested,
}

impl Orchestrator {
    /// Somebody wants the job ended. Any number of times has the effect of once.
    pub(crate) fn cancel(&mut self, request: Option<RequestId>, job_id: JobId, turn: &mut Turn) {
        let answer = if self.jobs.contains_key(&job_id) {
            self.request_end(job_id, turn);
            let status = self.jobs.get(&job_id).map_or(TaskStatus::Cancelled, |job| job.row.status);
            Answer::Cancelled { status, already_ended: false }
        } else if let Some(row) = self.memory.job(job_id) {
            Answer::Cancelled { status: row.status, already_ended: true }
        } else {
            Answer::Refused(no_such_job(job_id))
        };
        if let Some(request) = request {
            turn.answer(request, answer);
        }
    }

    /// Ends a waiting job; asks the worker of any other to stop, once.
    fn request_end(&mut self, job_id: JobId, turn: &mut Turn) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        let Some(run) = job.run() else { return self.end_cancelled(job_id, turn) };
        if job.row.cancel_requested_at.is_none() {
            job.row.cancel_requested_at = Some(turn.now);
            turn.save_job(job);
            self.stop_run(&run, turn);
        }
    }

    /// Ends a job only because nobody listens any more. Who comes back with its idempotency key wants
    /// an answer and not that end, so the key is free from now on.
    pub(crate) fn abandon(&mut self, job_id: JobId, turn: &mut Turn) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        if job.row.cancel_requested_at.is_some() {
            return;
        }
        if let Some(idempotency) = job.row.idempotency.take() {
            self.memory.free_key(&job.row.tenant, idempotency.key, job_id);
        }
        self.request_end(job_id, turn);
    }

    /// The number of readers of a job's stream changed. Not worth a commit of its own: it is
    /// written with the job's next move, and a crash before that only lets the job go on.
    pub(crate) fn readers_changed(&mut self, job_id: JobId, readers: u32, turn: &mut Turn) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        turn.jobs_touched.insert(job_id);
        job.set_readers(readers, turn.now);
    }

    /// Does what is due about a job.
    pub(crate) fn job_due(&mut self, job_id: JobId, turn: &mut Turn) {
        turn.jobs_touched.insert(job_id);
        let Some(job) = self.jobs.get(&job_id) else { return };
        match due(job, &self.settings, turn.now) {
            None => {}
            Some(Due::Uncounted) => self.end_as_counted(job_id, turn),
            Some(Due::CancelFinal) => self.end_cancelled(job_id, turn),
            Some(Due::Deadline) => {
                let error = deadline_exceeded(job, turn.now);
                self.stop_and_fail(job_id, error, turn);
            }
            Some(Due::TimeLimit) => {
                self.stop_and_fail(job_id, execution_timeout(self.settings.job_time_limit_ms), turn);
            }
            Some(Due::Disconnected) => self.abandon(job_id, turn),
            Some(Due::Rested) => self.wake(job_id, turn),
        }
    }

    fn wake(&mut self, job_id: JobId, turn: &mut Turn) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        let was_held = job.is_held();
        job.resting = false;
        turn.jobs_touched.insert(job_id);
        turn.to_place.insert(job.row.model.clone());
        if was_held && let Some(row) = self.jobs.get(&job_id).map(|job| job.row.clone()) {
            self.note_arrival(&row, turn.now);
        }
        self.wake_in_queue(job_id, turn);
    }
}

fn due(job: &Job, settings: &Settings, now: Time) -> Option<Due> {
    if job.ending.is_some() {
        return Some(Due::Uncounted);
    }
    let passed = |at: Option<Time>| at.is_some_and(|at| at <= now);
    let cancelling = job.row.cancel_requested_at.is_some();
    let deadline = passed(job.row.deadline);
    let time_limit = passed(job.time_limit_at(settings));
    if passed(job.cancel_final_at(settings)) || (cancelling && (deadline || time_limit)) {
        return Some(Due::CancelFinal);
    }
    if deadline {
        return Some(Due::Deadline);
    }
    if time_limit {
        return Some(Due::TimeLimit);
    }
    if passed(job.disconnect_at(settings)) {
        return Some(Due::Disconnected);
    }
    (job.resting && passed(job.row.not_before)).then_some(Due::Rested)
}

fn no_such_job(job_id: JobId) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::JobNotFound, format!("No job has the id {job_id}."))
        .with_hint("`rbees jobs list` shows the jobs that are kept.")
}

fn deadline_exceeded(job: &Job, now: Time) -> ErrorDetail {
    let given = job.row.deadline.map_or(0, |deadline| deadline.since(job.row.submitted_at));
    let what = match job.row.status {
        TaskStatus::Queued => "waited for a worker",
        TaskStatus::Dispatched => "was in the prefill",
        TaskStatus::Running => "was generating",
        TaskStatus::Completed | TaskStatus::Failed | TaskStatus::Cancelled => "had ended",
    };
    ErrorDetail::new(
        ErrorCode::DeadlineExceeded,
        format!("The deadline of {given} ms passed while the job {what}."),
    )
    .with_details(json!({ "deadline_ms": given, "elapsed_ms": now.since(job.row.submitted_at) }))
    .with_hint("Give a later `deadline_ms`, or ask for fewer tokens.")
}

fn execution_timeout(limit_ms: u64) -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::ExecutionTimeout,
        format!("The job ran for {limit_ms} ms, as long as a job may."),
    )
    .with_details(json!({ "limit_ms": limit_ms }))
    .with_hint("Ask for fewer tokens, or raise the time limit in the configuration.")
}
