//! What happened to each job of a journal, gathered while it is replayed.

use std::collections::BTreeMap;

use api_types::event::RunEnd;
use api_types::task::{Priority, TaskStatus};
use api_types::{Attempt, JobId, StopReason, TaskEvent, TenantId, WorkerId};

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

/// What was seen of a run that was told to stop, or that still ran when the record ended. How long it
/// would have taken nobody knows; it was longer than this.
#[derive(Debug, Clone, Copy)]
struct Cut {
    attempt: Attempt,
    /// From the dispatch to the first token, in milliseconds, where there was one.
    prefill_ms: Option<u64>,
    /// From the dispatch on.
    run_ms: u64,
}

impl Cut {
    /// A run like the typical one, but longer than what was seen.
    fn stretched(&self, typical: Option<&Service>) -> Service {
        let least = self.run_ms.saturating_add(1);
        let typical = typical.cloned().unwrap_or_else(no_figures);
        match self.prefill_ms {
            Some(prefill_ms) => Service {
                prefill_ms,
                decode_ms: typical.decode_ms.max(least.saturating_sub(prefill_ms)),
                ..typical
            },
            None => Service { prefill_ms: typical.prefill_ms.max(least), ..typical },
        }
    }
}

/// A run of which nothing is known, where no other run ended by itself.
const fn no_figures() -> Service {
    let end = RunEnd {
        tokens_in: 0,
        tokens_out: 0,
        queue_time_ms: 0,
        prefill_time_ms: 0,
        decode_time_ms: 0,
        stop_reason: StopReason::Eos,
        seed: None,
        tokens_cached: None,
    };
    Service { prefill_ms: 0, decode_ms: 0, end }
}

/// All jobs of a journal.
#[derive(Debug, Default)]
pub(super) struct Lives {
    pub jobs: BTreeMap<JobId, Life>,
    /// Of the runs that ended by themselves.
    services: BTreeMap<JobId, Service>,
    /// Of the runs that did not.
    cut: BTreeMap<JobId, Cut>,
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
            if let Action::StopRun { run, .. } = action {
                self.cut_off(run.job_id, run.attempt, at);
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

    /// The record ends here.
    pub fn close(&mut self, at: Time) {
        let ended = |job_id| self.jobs.get(job_id).is_none_or(|life| life.ended.is_some());
        let open = self.opened.iter().filter(|(job_id, _)| !ended(*job_id));
        let open: Vec<(JobId, Attempt)> = open.map(|(job_id, (attempt, _))| (*job_id, *attempt)).collect();
        open.into_iter().for_each(|(job_id, attempt)| self.cut_off(job_id, attempt, at));
    }

    /// A run is over or lost sight of before it ended by itself; what counts is when that was first so.
    fn cut_off(&mut self, job_id: JobId, attempt: Attempt, at: Time) {
        let is_known = self.cut.get(&job_id).is_some_and(|cut| cut.attempt == attempt);
        let Some(opened) = of_attempt(&self.opened, job_id, attempt).filter(|_| !is_known) else { return };
        let first_token = of_attempt(&self.first_tokens, job_id, attempt);
        let prefill_ms = first_token.map(|first_token| first_token.since(opened));
        self.cut.insert(job_id, Cut { attempt, prefill_ms, run_ms: at.since(opened) });
    }

    /// How long a job's run takes: as long as it took; longer than it was seen to where it was cut off;
    /// as long as the typical run where the job never ran.
    pub fn service(&self, job_id: JobId, typical: Option<&Service>) -> Option<Service> {
        if let Some(service) = self.services.get(&job_id) {
            return Some(service.clone());
        }
        self.cut.get(&job_id).map(|cut| cut.stretched(typical)).or_else(|| typical.cloned())
    }

    /// The run whose length is the median.
    pub fn typical(&self) -> Option<Service> {
        let mut by_length: Vec<&Service> = self.services.values().collect();
        by_length.sort_by_key(|service| service.prefill_ms + service.decode_ms);
        by_length.get(by_length.len() / 2).map(|service| (*service).clone())
    }

    fn served(&mut self, run: &RunKey, end: &RunEnd, at: Time) {
        let Some(opened) = of_attempt(&self.opened, run.job_id, run.attempt) else { return };
        if end.stop_reason == StopReason::Cancelled {
            return;
        }
        let first_token = of_attempt(&self.first_tokens, run.job_id, run.attempt).unwrap_or(at);
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

/// When this was noted of an attempt, if it was noted of this one.
fn of_attempt(noted: &BTreeMap<JobId, (Attempt, Time)>, job_id: JobId, attempt: Attempt) -> Option<Time> {
    noted.get(&job_id).filter(|(of, _)| *of == attempt).map(|(_, at)| *at)
}

fn status_of(last: &TaskEvent) -> TaskStatus {
    match last {
        TaskEvent::End(end) if end.stop_reason == StopReason::Cancelled => TaskStatus::Cancelled,
        TaskEvent::Error { .. } => TaskStatus::Failed,
        TaskEvent::End(_)
        | TaskEvent::Queued { .. }
        | TaskEvent::Started { .. }
        | TaskEvent::Token { .. }
        | TaskEvent::Metrics(_)
        | TaskEvent::Seam { .. } => TaskStatus::Completed,
    }
}
