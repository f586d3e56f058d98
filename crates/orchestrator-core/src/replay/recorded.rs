//! What happened to each job of a journal, gathered while it is replayed.

use std::collections::BTreeMap;

use api_types::event::RunEnd;
use api_types::task::{Priority, TaskStatus};
use api_types::{Attempt, JobId, TaskEvent, TenantId, WorkerId};

use crate::event::{Event, RunKey, Submission};
use crate::journal::{Entry, Input};
use crate::orchestrator::Orchestrator;
use crate::row::JobRow;
use crate::step::{Action, Answer, Step};
use crate::time::Time;

/// The life of one job, as far as the journal tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Life {
    /// Who it was done for.
    pub tenant: TenantId,
    /// Its class.
    pub priority: Priority,
    /// When it was handed in.
    pub submitted_at: Time,
    /// When it was first handed out.
    pub dispatched_at: Option<Time>,
    /// When it ended, and how.
    pub ended: Option<(Time, TaskStatus)>,
    /// The worker of its last attempt.
    pub worker: Option<WorkerId>,
}

impl Life {
    /// Milliseconds from submission to the first dispatch.
    pub fn wait_ms(&self) -> Option<u64> {
        self.dispatched_at.map(|at| at.since(self.submitted_at))
    }
}

/// How long a job's run took on its worker.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Service {
    /// From the dispatch to the first token, in milliseconds.
    pub prefill_ms: u64,
    /// From there to the end, in milliseconds.
    pub decode_ms: u64,
    /// The worker's figures.
    pub end: RunEnd,
}

/// All jobs of a journal.
#[derive(Debug, Default)]
pub(super) struct Lives {
    pub jobs: BTreeMap<JobId, Life>,
    /// Of the runs that ended by themselves.
    pub services: BTreeMap<JobId, Service>,
    opened: BTreeMap<JobId, (Attempt, Time)>,
    first_tokens: BTreeMap<JobId, (Attempt, Time)>,
}

impl Lives {
    /// The jobs that were there when the journal began.
    pub fn of(brain: &Orchestrator) -> Self {
        let life = |row: &JobRow| Life {
            tenant: row.tenant.clone(),
            priority: row.priority,
            submitted_at: row.submitted_at,
            dispatched_at: row.attempt.as_ref().map(|attempt| attempt.dispatched_at),
            ended: None,
            worker: row.attempt.as_ref().map(|attempt| attempt.worker_id.clone()),
        };
        let jobs = brain.jobs.iter().map(|(job_id, job)| (*job_id, life(&job.row))).collect();
        Self { jobs, ..Self::default() }
    }

    /// Takes in an input and what came of it.
    pub fn note(&mut self, entry: &Entry, step: &Step) {
        match &entry.input {
            Input::Event(Event::Submit(submission)) => self.submitted(submission, step, entry.at),
            Input::Event(Event::FirstToken(run)) => {
                self.first_tokens.insert(run.job_id, (run.attempt, entry.at));
            }
            Input::Event(Event::StreamEnded { run, end }) => self.served(run, end, entry.at),
            Input::Event(_) | Input::Timeout | Input::Cut(_) => {}
        }
        self.acted(step, entry.at);
    }

    /// Takes in what the brain asks for.
    pub fn acted(&mut self, step: &Step, at: Time) {
        for action in &step.actions {
            if let Action::OpenStream(open) = action {
                self.opened.insert(open.run.job_id, (open.run.attempt, at));
                if let Some(life) = self.jobs.get_mut(&open.run.job_id) {
                    life.dispatched_at.get_or_insert(at);
                    life.worker = Some(open.run.worker_id.clone());
                }
            }
            if let Action::EndJob { job_id, last_event, .. } = action
                && let Some(life) = self.jobs.get_mut(job_id)
            {
                life.ended = Some((at, status_of(last_event)));
            }
        }
    }

    /// A submission that became a job of its own.
    pub fn submitted(&mut self, submission: &Submission, step: &Step, at: Time) {
        let accepted = step.actions.iter().any(|action| {
            matches!(action, Action::Answer { answer: Answer::Accepted { job_id, replayed: false, .. }, .. }
                if *job_id == submission.job_id)
        });
        if accepted {
            let life = Life {
                tenant: submission.tenant.clone(),
                priority: submission.priority,
                submitted_at: at,
                dispatched_at: None,
                ended: None,
                worker: None,
            };
            self.jobs.insert(submission.job_id, life);
        }
    }

    fn served(&mut self, run: &RunKey, end: &RunEnd, at: Time) {
        let of_run = |noted: Option<&(Attempt, Time)>| {
            noted.filter(|(attempt, _)| *attempt == run.attempt).map(|(_, at)| *at)
        };
        let Some(opened) = of_run(self.opened.get(&run.job_id)) else { return };
        // How long a run that was stopped would have taken, nobody knows.
        if end.stop_reason == api_types::StopReason::Cancelled {
            return;
        }
        let first_token = of_run(self.first_tokens.get(&run.job_id)).unwrap_or(at);
        self.services.insert(
            run.job_id,
            Service {
                prefill_ms: first_token.since(opened),
                decode_ms: at.since(first_token),
                end: end.clone(),
            },
        );
    }
}

fn status_of(last: &TaskEvent) -> TaskStatus {
    match last {
        TaskEvent::End(end) if end.stop_reason == api_types::StopReason::Cancelled => TaskStatus::Cancelled,
        TaskEvent::Error { .. } => TaskStatus::Failed,
        TaskEvent::End(_)
        | TaskEvent::Queued { .. }
        | TaskEvent::Started { .. }
        | TaskEvent::Token { .. }
        | TaskEvent::Metrics(_)
        | TaskEvent::Seam { .. } => TaskStatus::Completed,
    }
}
