//! What the relay reports of runs: first token, end, failure, a broken connection.

use api_types::event::RunEnd;
use api_types::task::TaskStatus;
use api_types::worker::{WorkerState, WorkerStatus};
use api_types::{ErrorCode, ErrorDetail};

use crate::event::{BrokenCause, RunKey};
use crate::job::{Breaks, Job};
use crate::orchestrator::Orchestrator;
use crate::place::open_stream;
use crate::retry::Failure;
use crate::settings::LeaseSettings;
use crate::step::{Action, Notice};
use crate::time::Time;
use crate::turn::Turn;

impl Orchestrator {
    /// The job whose current run this is; anything else is late, and counted.
    fn job_of(&self, run: &RunKey, kind: &'static str, turn: &mut Turn) -> Option<&Job> {
        let job = self.jobs.get(&run.job_id).filter(|job| job.run().as_ref() == Some(run));
        if job.is_none() {
            turn.drop_stale(kind);
        }
        job.map(Box::as_ref)
    }

    /// Makes the job `running`, and lets its tokens pass once that is on disk.
    pub(crate) fn first_token(&mut self, run: &RunKey, turn: &mut Turn) {
        if self.job_of(run, "first_token", turn).is_none() {
            return;
        }
        let Some(job) = self.jobs.get_mut(&run.job_id) else { return };
        if job.row.status == TaskStatus::Dispatched {
            job.set_running();
            turn.save_job(job);
            turn.tell_job(job);
            self.sessions.served_by(&job.row, &run.worker_id);
        }
        turn.act(Action::PassStream(run.clone()));
    }

    /// Ends the job with the worker's figures.
    pub(crate) fn stream_ended(&mut self, run: &RunKey, end: RunEnd, turn: &mut Turn) {
        let Some(job) = self.job_of(run, "stream_ended", turn) else { return self.free_slot(run, turn) };
        let end = RunEnd { queue_time_ms: job.queue_time_ms(turn.now), ..end };
        self.end_job(run.job_id, end, true, turn);
        self.settle_run(run, turn);
    }

    /// The worker refused the run, or its engine failed.
    pub(crate) fn stream_failed(&mut self, run: &RunKey, error: ErrorDetail, turn: &mut Turn) {
        let Some(job) = self.job_of(run, "stream_failed", turn) else { return self.free_slot(run, turn) };
        let showed_nothing = job.row.status == TaskStatus::Dispatched;
        if is_not_to_blame(error.code) && showed_nothing {
            return self.worker_was_busy(run, error.code, turn);
        }
        turn.act(Action::DropStream(run.clone()));
        if is_run_gone(error.code) {
            self.free_slot(run, turn);
            return self.fail_attempt(run.job_id, lost_run(run), turn);
        }
        self.settle_run(run, turn);
        let too_long = showed_nothing && error.code == ErrorCode::ContextOverflow;
        if too_long && self.outgrew(run, &error, turn.now) {
            return self.requeue_unblamed(run.job_id, turn);
        }
        self.fail_attempt(run.job_id, Failure { error, lost: None }, turn);
    }

    /// The worker takes no job at the moment, which we did not know.
    fn worker_was_busy(&mut self, run: &RunKey, code: ErrorCode, turn: &mut Turn) {
        turn.act(Action::DropStream(run.clone()));
        self.free_slot(run, turn);
        if let Some(worker) = self.registry.get_mut(&run.worker_id) {
            worker.status = status_behind(code).or(worker.status);
            worker.paused_until = Some(turn.now + self.settings.lease.busy_pause_ms);
        }
        self.requeue_unblamed(run.job_id, turn);
    }

    /// The connection ended without a last event.
    pub(crate) fn stream_broken(&mut self, run: &RunKey, cause: BrokenCause, turn: &mut Turn) {
        let Some(job) = self.job_of(run, "stream_broken", turn) else { return };
        let running = job.row.status == TaskStatus::Running;
        match cause {
            BrokenCause::Refused => self.worker_refused(run, turn),
            BrokenCause::Unreachable => self.take_up_again(run, turn),
            BrokenCause::RunUnknown if running => self.run_vanished(run, turn),
            BrokenCause::RunUnknown => self.open_again(run, turn),
            BrokenCause::Stalled => self.give_up_run(run, stalled(run, running), turn),
            BrokenCause::Protocol => self.protocol_error(run, turn),
        }
    }

    /// Nobody listens where the worker was: its process is gone, and all its runs with it.
    fn worker_refused(&mut self, run: &RunKey, turn: &mut Turn) {
        if self.registry.holder(run).is_some_and(|worker| worker.gone.is_none()) {
            return self.give_up_worker(&run.worker_id, WorkerState::Lost, false, turn);
        }
        self.run_vanished(run, turn);
    }

    /// Takes the stream up from the worker's log after a pause that grows with each break in short
    /// succession; gives the run up when that does not help.
    pub(crate) fn take_up_again(&mut self, run: &RunKey, turn: &mut Turn) {
        match self.count_break(run, turn.now) {
            Some(delay_ms) => self.resume(run, delay_ms, turn),
            None => self.give_up_run(run, unreachable_worker(run), turn),
        }
    }

    /// Opens the same attempt again: the worker never gets two runs of one attempt, and its process
    /// is still the same.
    fn open_again(&mut self, run: &RunKey, turn: &mut Turn) {
        if self.count_break(run, turn.now).is_none() {
            return self.give_up_run(run, unreachable_worker(run), turn);
        }
        let Some(job) = self.jobs.get(&run.job_id) else { return };
        let Some(worker) = self.registry.holder(run) else { return self.run_vanished(run, turn) };
        turn.act(Action::OpenStream(open_stream(job, run, worker, &self.settings, turn.now)));
    }

    /// Counts a break. Returns the pause before the next try, or `None` after too many.
    fn count_break(&mut self, run: &RunKey, now: Time) -> Option<u64> {
        let job = self.jobs.get_mut(&run.job_id)?;
        let (breaks, delay_ms) = next_break(job.breaks, &self.settings.lease, now);
        job.breaks = breaks;
        (breaks.count <= self.settings.lease.resume_tries).then_some(delay_ms)
    }

    /// Asks for the run's stream from the worker's own log.
    pub(crate) fn resume(&mut self, run: &RunKey, delay_ms: u64, turn: &mut Turn) {
        let Some(job) = self.jobs.get(&run.job_id) else { return };
        let Some(worker) = self.registry.holder(run) else { return self.run_vanished(run, turn) };
        turn.act(Action::ResumeStream {
            run: run.clone(),
            uri: worker.row.facts.uri.clone(),
            secret: worker.row.secret.clone(),
            delay_ms,
            passed: job.row.status == TaskStatus::Running,
        });
    }

    /// The run is no longer where it was.
    fn run_vanished(&mut self, run: &RunKey, turn: &mut Turn) {
        turn.act(Action::DropStream(run.clone()));
        self.free_slot(run, turn);
        self.fail_attempt(run.job_id, lost_run(run), turn);
    }

    /// Stops a run that leads nowhere.
    fn give_up_run(&mut self, run: &RunKey, error: ErrorDetail, turn: &mut Turn) {
        self.abandon_run(run, turn);
        self.fail_attempt(run.job_id, Failure { error, lost: None }, turn);
    }

    fn protocol_error(&mut self, run: &RunKey, turn: &mut Turn) {
        if let Some(worker) = self.registry.get_mut(&run.worker_id) {
            worker.break_protocol(&self.settings, turn.now);
            turn.act(Action::Notify(Notice::ProtocolBroken {
                worker_id: run.worker_id.clone(),
                errors: worker.protocol_errors,
                quarantine_ms: worker.quarantined_until.map(|until| until.since(turn.now)),
            }));
            turn.workers_touched.insert(run.worker_id.clone());
        }
        let message = format!("The worker `{}` sent what is not the protocol.", run.worker_id);
        self.give_up_run(run, ErrorDetail::new(ErrorCode::WorkerProtocolError, message), turn);
    }
}

/// Whether a worker refuses a run without anybody being at fault.
const fn is_not_to_blame(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::AllSlotsBusy | ErrorCode::WorkerLoading | ErrorCode::WorkerDraining)
}

/// What a worker that refuses a run like this is doing, as far as it tells.
const fn status_behind(code: ErrorCode) -> Option<WorkerStatus> {
    if matches!(code, ErrorCode::WorkerLoading) {
        return Some(WorkerStatus::Loading);
    }
    if matches!(code, ErrorCode::WorkerDraining) { Some(WorkerStatus::Draining) } else { None }
}

/// Whether the worker says that it has no such run and will not have it again.
const fn is_run_gone(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::StaleIncarnation | ErrorCode::StaleAttempt | ErrorCode::AttemptGone)
}

/// The next state of the count of breaks, and the pause in milliseconds before the stream is taken
/// up again. A stream that held for as long as a lease starts the count anew.
fn next_break(breaks: Breaks, settings: &LeaseSettings, now: Time) -> (Breaks, u64) {
    let held = now.since(breaks.last) > settings.lost_ms;
    let count = if held { 1 } else { breaks.count.saturating_add(1) };
    let doublings = count.saturating_sub(1).min(32);
    let delay_ms = settings.resume_first_ms.saturating_mul(1 << doublings).min(settings.resume_max_ms);
    (Breaks { count, last: now }, delay_ms)
}

fn lost_run(run: &RunKey) -> Failure {
    let message = format!("The worker `{}` no longer has the run of this job.", run.worker_id);
    Failure { error: ErrorDetail::new(ErrorCode::WorkerLost, message), lost: None }
}

fn stalled(run: &RunKey, running: bool) -> ErrorDetail {
    let (when, limit) = if running {
        ("since its last token", "stall_timeout_ms")
    } else {
        ("before the first token", "first_token_timeout_ms")
    };
    let worker_id = &run.worker_id;
    let message = format!("The worker `{worker_id}` is connected but sent nothing for too long {when}.");
    ErrorDetail::new(ErrorCode::StreamStalled, message).with_hint(format!(
        "Look at the worker's log (`rbees pool worker logs {worker_id}`); raise `{limit}` if it was only slow."
    ))
}

fn unreachable_worker(run: &RunKey) -> ErrorDetail {
    let message = format!(
        "The stream from the worker `{}` broke again and again although the worker shows that it lives.",
        run.worker_id
    );
    ErrorDetail::new(ErrorCode::WorkerUnreachable, message)
        .with_hint("Check that the orchestrator can connect to the worker's address.")
}
