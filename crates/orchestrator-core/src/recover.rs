//! From the rows of the last commit to a brain at work again.

use api_types::task::TaskStatus;
use api_types::{ErrorCode, ErrorDetail, Incarnation, JobId, WorkerId};

use crate::eta::Clockwork;
use crate::event::RunKey;
use crate::job::Job;
use crate::orchestrator::Orchestrator;
use crate::retry::Failure;
use crate::row::{JobRow, Rows, WorkerRow};
use crate::turn::Turn;
use crate::worker::Worker;

impl Orchestrator {
    /// Takes the rows in and decides how to go on: waiting jobs wait again in their order, runs are
    /// taken up from their workers' own logs, and every worker is asked for a sign of life.
    pub(crate) fn take_rows(&mut self, rows: Rows, turn: &mut Turn) {
        self.last_number = rows.last_number;
        self.clockwork = Clockwork::new(rows.estimates.clone().unwrap_or_default(), turn.now);
        self.registry.next_incarnation = next_incarnation(&rows);
        self.pools = rows.pools.into_iter().map(|pool| (pool.pool_id.clone(), pool)).collect();
        rows.sessions.into_iter().for_each(|row| self.sessions.recover(row));
        for row in rows.workers {
            self.take_worker(row, turn);
        }
        self.take_spawns(rows.spawns, turn);
        self.registry.refresh(&self.settings, turn.now);
        let (ended, living): (Vec<_>, Vec<_>) =
            rows.jobs.into_iter().partition(|row| row.status.is_terminal());
        self.take_ended(ended, turn);
        let ids: Vec<JobId> = self.take_living(living, turn);
        for (job_id, _, decision) in rows.decisions {
            if let Some(job) = self.jobs.get_mut(&job_id) {
                job.decisions.push(decision);
            }
        }
        for job_id in ids {
            self.go_on(job_id, turn);
        }
    }

    fn take_worker(&mut self, row: WorkerRow, turn: &mut Turn) {
        let worker_id = row.facts.worker_id.clone();
        self.registry.put(Worker::new(row, None, turn.now));
        self.probe(&worker_id, turn);
        turn.workers_touched.insert(worker_id);
    }

    fn take_ended(&mut self, mut rows: Vec<JobRow>, turn: &Turn) {
        rows.sort_by_key(|row| (row.ended_at, row.number));
        for row in rows {
            self.last_number = self.last_number.max(row.number);
            self.memory.admit(&row);
            self.memory.end(row, &self.settings, turn.now);
        }
    }

    /// Puts living jobs back where they were, in the order of arrival.
    fn take_living(&mut self, mut rows: Vec<JobRow>, turn: &mut Turn) -> Vec<JobId> {
        rows.sort_by_key(|row| row.number);
        let mut ids = Vec::with_capacity(rows.len());
        for row in rows {
            ids.push(row.job_id);
            self.last_number = self.last_number.max(row.number);
            self.memory.admit(&row);
            let mut job = Job { reserved: self.reserve_tokens(&row, turn.now), ..Job::new(row) };
            job.wait_for_reader(turn.now);
            self.sessions.reopen(&job.row, job.reserved);
            turn.jobs_touched.insert(job.row.job_id);
            self.jobs.insert(job.row.job_id, Box::new(job));
        }
        ids
    }

    fn go_on(&mut self, job_id: JobId, turn: &mut Turn) {
        let Some(job) = self.jobs.get(&job_id) else { return };
        let Some(run) = job.run() else { return self.queue_again(job_id, turn) };
        let cancelling = job.row.cancel_requested_at.is_some();
        self.go_on_serving(job_id);
        if self.registry.holder(&run).is_none() {
            return self.fail_attempt(job_id, forgotten(&run), turn);
        }
        self.registry.hold_slot(&run);
        self.resume(&run, 0, turn);
        if cancelling {
            self.stop_run(&run, turn);
        }
    }

    fn queue_again(&mut self, job_id: JobId, turn: &mut Turn) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        debug_assert_eq!(job.row.status, TaskStatus::Queued);
        job.resting = job.row.not_before.is_some_and(|at| at > turn.now);
        self.join_queue(job_id, turn);
    }
}

/// Above every number that any row bears.
fn next_incarnation(rows: &Rows) -> Incarnation {
    let of_workers = rows.workers.iter().map(|row| row.next_incarnation.0.max(row.incarnation.0 + 1)).max();
    Incarnation(rows.next_incarnation.map_or(1, |next| next.0).max(of_workers.unwrap_or(1)))
}

fn forgotten(run: &RunKey) -> Failure {
    let worker_id: &WorkerId = &run.worker_id;
    let message = format!("The worker `{worker_id}` was no longer registered when the orchestrator started.");
    Failure { error: ErrorDetail::new(ErrorCode::WorkerLost, message), lost: Some(worker_id.clone()) }
}
