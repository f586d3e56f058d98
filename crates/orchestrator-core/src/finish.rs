//! How jobs leave: ended with figures, or failed; and how attempts fail.

use api_types::event::RunEnd;
use api_types::task::TaskStatus;
use api_types::{ErrorDetail, JobId, TaskEvent};

use crate::event::RunKey;
use crate::job::{Ending, Job};
use crate::orchestrator::Orchestrator;
use crate::retry::{Failure, Verdict, retry_or_fail};
use crate::step::{Action, Write};
use crate::time::Time;
use crate::turn::Turn;

impl Orchestrator {
    /// Ends a job with the figures of its run. `release_held`: what the relay holds back is part of
    /// its log.
    pub(crate) fn end_job(&mut self, job_id: JobId, end: RunEnd, release_held: bool, turn: &mut Turn) {
        let Some(mut job) = self.take_out(job_id, turn) else { return };
        let last_event = TaskEvent::End(end.clone());
        job.end(end, turn.now);
        self.close(job, last_event, release_held, turn);
    }

    /// Fails a job that no worker holds, or whose run is dealt with.
    pub(crate) fn fail_job(&mut self, job_id: JobId, error: ErrorDetail, turn: &mut Turn) {
        let Some(mut job) = self.take_out(job_id, turn) else { return };
        let last_event = TaskEvent::Error {
            code: error.code,
            message: error.message.clone(),
            retriable: error.retriable,
            details: error.details.clone(),
        };
        let error = ErrorDetail { correlation_id: Some(job.row.correlation_id.clone()), ..error };
        job.fail(error, turn.now);
        self.close(job, last_event, false, turn);
    }

    pub(crate) fn take_out(&mut self, job_id: JobId, turn: &mut Turn) -> Option<Box<Job>> {
        let job = self.jobs.remove(&job_id)?;
        self.queue.remove(&job.row);
        turn.jobs_touched.insert(job_id);
        Some(job)
    }

    fn close(&mut self, job: Box<Job>, last_event: TaskEvent, release_held: bool, turn: &mut Turn) {
        let job_id = job.row.job_id;
        if job.is_durable() {
            turn.write(Write::EndJob { row: job.row.clone(), last_event: last_event.clone() });
        }
        turn.act(Action::EndJob { job_id, release_held, last_event });
        turn.tell_job(&job);
        self.settle_tokens(&job, turn);
        self.memory.end(job.row, &self.settings, turn.now);
    }

    /// Ends a job by request without waiting for its worker any longer.
    pub(crate) fn end_cancelled(&mut self, job_id: JobId, turn: &mut Turn) {
        self.stop_and_end(job_id, Ending::Cancelled, turn);
    }

    /// Fails a job whatever its run is doing.
    pub(crate) fn stop_and_fail(&mut self, job_id: JobId, error: ErrorDetail, turn: &mut Turn) {
        self.stop_and_end(job_id, Ending::Failed(error), turn);
    }

    fn stop_and_end(&mut self, job_id: JobId, ending: Ending, turn: &mut Turn) {
        let run = self.jobs.get(&job_id).filter(|job| job.ending.is_none()).and_then(|job| job.run());
        if let Some(run) = run {
            self.abandon_run(&run, turn);
        }
        self.end_without_word(job_id, ending, turn);
    }

    /// Ends a job of which its worker says no more. What its readers were shown is counted first: the
    /// count comes at once with [`Self::shown_counted`]; should it not, the job's alarm, which is due
    /// until then, ends it without.
    pub(crate) fn end_without_word(&mut self, job_id: JobId, ending: Ending, turn: &mut Turn) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        let may_have_shown = job.row.status == TaskStatus::Running && job.ending.is_none();
        if let Some(run) = job.run().filter(|_| may_have_shown) {
            job.ending = Some(ending);
            turn.jobs_touched.insert(job_id);
            return turn.act(Action::Salvage(run));
        }
        job.ending.get_or_insert(ending);
        self.end_as_counted(job_id, turn);
    }

    /// Ends a job that was about to end, with as much as was counted.
    pub(crate) fn end_as_counted(&mut self, job_id: JobId, turn: &mut Turn) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        let Some(ending) = job.ending.take() else { return };
        job.is_guessed = true;
        match ending {
            Ending::Failed(error) => self.fail_job(job_id, error, turn),
            Ending::Cancelled => {
                let end = job.cancelled_end(turn.now);
                self.end_job(job_id, end, false, turn);
            }
        }
    }

    /// The tokens that are in the log of a job which ends without its worker's word.
    pub(crate) fn shown_counted(&mut self, job_id: JobId, tokens: u32, turn: &mut Turn) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        job.shown = tokens;
        self.end_as_counted(job_id, turn);
    }

    /// Stops listening to a run and tells its worker to stop it. The slot is free once the worker
    /// no longer lists the run as going on.
    pub(crate) fn abandon_run(&mut self, run: &RunKey, turn: &mut Turn) {
        turn.act(Action::DropStream(run.clone()));
        self.stop_run(run, turn);
        self.registry.await_stop(run);
        turn.workers_touched.insert(run.worker_id.clone());
    }

    /// Tells the worker to stop a run.
    pub(crate) fn stop_run(&self, run: &RunKey, turn: &mut Turn) {
        let Some(worker) = self.registry.holder(run) else { return };
        turn.act(Action::StopRun {
            run: run.clone(),
            uri: worker.row.facts.uri.clone(),
            secret: worker.row.secret.clone(),
        });
    }

    /// Lets the worker forget the log of a run that ended, and frees its slot.
    pub(crate) fn settle_run(&mut self, run: &RunKey, turn: &mut Turn) {
        if let Some(worker) = self.registry.holder(run) {
            turn.act(Action::AckRun {
                run: run.clone(),
                uri: worker.row.facts.uri.clone(),
                secret: worker.row.secret.clone(),
            });
        }
        self.free_slot(run, turn);
    }

    /// Frees the slot of a run and lets the next job have it.
    pub(crate) fn free_slot(&mut self, run: &RunKey, turn: &mut Turn) {
        self.registry.free_slot(run);
        if let Some(worker) = self.registry.holder(run) {
            turn.to_place.insert(worker.row.facts.model.clone());
            turn.workers_touched.insert(run.worker_id.clone());
        }
    }

    /// An attempt failed and its run is dealt with: another attempt, or the end of the job.
    pub(crate) fn fail_attempt(&mut self, job_id: JobId, failure: Failure, turn: &mut Turn) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        if job.row.cancel_requested_at.is_some() {
            return self.end_without_word(job_id, Ending::Cancelled, turn);
        }
        job.row.tries_failed = job.row.tries_failed.saturating_add(1);
        job.row.workers_lost.extend(failure.lost.clone());
        let error = failure.error.clone();
        match retry_or_fail(&job.row, failure, &self.settings.retry, &mut self.budget, turn.now) {
            Verdict::Fail(error) => self.end_without_word(job_id, Ending::Failed(error), turn),
            Verdict::Retry(not_before) => self.try_again(job_id, &error, not_before, turn),
        }
    }

    /// Another attempt after a pause, unless the policy gives the job up.
    fn try_again(&mut self, job_id: JobId, error: &ErrorDetail, not_before: Time, turn: &mut Turn) {
        let given_up = self.jobs.get(&job_id).and_then(|job| self.ask_retry(&job.row, error, turn));
        if let Some(error) = given_up {
            self.budget.give_back(&self.settings.retry);
            return self.end_without_word(job_id, Ending::Failed(error), turn);
        }
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        if let Some(run) = job.run().filter(|_| job.row.status == TaskStatus::Running) {
            turn.act(Action::Salvage(run));
        }
        job.requeue(Some(not_before));
        turn.save_job(job);
        turn.tell_job(job);
        self.return_to_queue(job_id, turn);
    }

    /// A worker could not take a run and is not to blame: the job waits on as if never handed out.
    pub(crate) fn requeue_unblamed(&mut self, job_id: JobId, turn: &mut Turn) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        if job.row.cancel_requested_at.is_some() {
            let end = job.cancelled_end(turn.now);
            return self.end_job(job_id, end, false, turn);
        }
        job.requeue(None);
        turn.save_job(job);
        turn.tell_job(job);
        turn.to_place.insert(job.row.model.clone());
        self.return_to_queue(job_id, turn);
    }
}
