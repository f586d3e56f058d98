//! One event at work: its time, the step it builds, and what is to be looked at before it is done.

use std::collections::BTreeSet;

use api_types::{ErrorDetail, JobId, WorkerId};

use crate::event::RequestId;
use crate::job::Job;
use crate::policy::PolicyLog;
use crate::row::WorkerRow;
use crate::step::{Action, Answer, Notice, Step, Write};
use crate::time::Time;

/// The step in the making.
#[derive(Debug)]
pub(crate) struct Turn {
    /// When the event is handled.
    pub now: Time,
    /// What it has led to so far.
    pub step: Step,
    /// Jobs whose alarm is to be set anew.
    pub jobs_touched: BTreeSet<JobId>,
    /// Workers whose alarm is to be set anew and whose watchers may have news.
    pub workers_touched: BTreeSet<WorkerId>,
    /// Models that may have both a waiting job and a free slot now.
    pub to_place: BTreeSet<String>,
    /// Whether something changed that decides what capacity can be made.
    pub supply: bool,
    /// Whether readers of waiting jobs may have news, once it is known who still waits.
    pub live_due: bool,
    /// The submission to be answered once it is known whether it could start at once.
    pub submitted: Option<Submitted>,
    /// What policies did.
    pub policy: PolicyLog,
}

/// A submission that was admitted in this turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Submitted {
    /// Who waits for the answer.
    pub request: RequestId,
    /// The job it became.
    pub job_id: JobId,
    /// Jobs that went before it at admission.
    pub queue_position: u64,
}

impl Turn {
    /// A turn with nothing done yet.
    pub fn new(now: Time) -> Self {
        Self {
            now,
            step: Step::default(),
            jobs_touched: BTreeSet::new(),
            workers_touched: BTreeSet::new(),
            to_place: BTreeSet::new(),
            supply: false,
            live_due: false,
            submitted: None,
            policy: PolicyLog::default(),
        }
    }

    /// Adds a write.
    pub fn write(&mut self, write: Write) {
        self.step.writes.push(write);
    }

    /// Adds an action.
    pub fn act(&mut self, action: Action) {
        self.step.actions.push(action);
    }

    /// Answers a caller.
    pub fn answer(&mut self, request: RequestId, answer: Answer) {
        self.act(Action::Answer { request, answer });
    }

    /// Answers a caller with a refusal.
    pub fn refuse(&mut self, request: RequestId, error: ErrorDetail) {
        self.answer(request, Answer::Refused(error));
    }

    /// Counts a message that came too late to matter.
    pub fn drop_stale(&mut self, kind: &'static str) {
        self.act(Action::Notify(Notice::StaleDropped { kind }));
    }

    /// Writes a job that moved on, unless it is kept in memory only, and tells watchers.
    pub fn save_job(&mut self, job: &Job) {
        self.jobs_touched.insert(job.row.job_id);
        if job.is_durable() {
            self.write(Write::UpdateJob(job.row.clone()));
        }
    }

    /// Tells watchers where a job stands now.
    pub fn tell_job(&mut self, job: &Job) {
        self.act(Action::Notify(Notice::Job {
            job_id: job.row.job_id,
            status: job.row.status,
            attempt: job.row.attempt.as_ref().map_or(0, |attempt| attempt.attempt.0),
            model: job.row.model.clone(),
            worker_id: job.row.attempt.as_ref().map(|attempt| attempt.worker_id.clone()),
        }));
    }

    /// Writes a worker that is new or changed.
    pub fn save_worker(&mut self, row: &WorkerRow) {
        self.workers_touched.insert(row.facts.worker_id.clone());
        self.write(Write::PutWorker(row.clone()));
    }
}
